"""What setup.cfg promises: every package is in the wheel, bounds are those that are tested, programs start."""

import configparser
import importlib
import re
from pathlib import Path

import pytest

import emofm_jax

pytestmark = pytest.mark.fast

ROOT = Path(emofm_jax.__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section, key):
    return SETUP[section][key].strip().splitlines()


def test_every_directory_is_packaged():
    found = {path.parent for path in (ROOT / "emofm_jax").rglob("*.py")}
    names = {".".join(path.relative_to(ROOT).parts) for path in found}
    assert set(lines("options", "packages")) == names | {"emofm_jax.experiments"}
    assert lines("options", "package_dir") == ["emofm_jax.experiments = experiments"]
    assert (ROOT / "emofm_jax" / "py.typed").exists()
    other = {
        path for path in (ROOT / "emofm_jax").rglob("*.*") if path.suffix not in (".py", ".pyc")
    }
    packaged = set()
    for package, patterns in SETUP["options.package_data"].items():
        directory = ROOT / package.replace(".", "/")
        packaged |= {
            path for pattern in patterns.split(",") for path in directory.glob(pattern.strip())
        }
    assert packaged == {path for path in other if path.is_file()}


def test_bounds_are_what_is_tested():
    promised = lines("options", "install_requires") + lines("options.extras_require", "test")
    text = (ROOT / "requirements" / "lowest.txt").read_text()
    tested = dict(re.findall(r"^([\w-]+)==(.+)$", text, flags=re.MULTILINE))
    tested = {name.lower().replace("-", "_"): version for name, version in tested.items()}
    for name, bound in (line.split(">=") for line in promised):
        version = tested.pop(name.partition("[")[0].lower().replace("-", "_"))
        assert f"{version}.".startswith(f"{bound}."), name
    assert tested.keys() == {"jaxlib"}


def test_each_program_has_a_command():
    commands = dict(line.split(" = ") for line in lines("options.entry_points", "console_scripts"))
    files = (ROOT / "emofm_jax").glob("*.py")
    programs = {file.stem for file in files if "sys.exit(main())" in file.read_text()}
    assert commands == {f"emofm-{name}": f"emofm_jax.{name}:main" for name in programs}
    for name in programs:
        assert callable(importlib.import_module(f"emofm_jax.{name}").main)


def test_hooks_have_the_pinned_versions():
    pinned = {line for line in lines("options.extras_require", "dev") if "==" in line}
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = set(re.findall(r"additional_dependencies: \[(\S+==\S+)\]", text))
    assert hooks and hooks < pinned


def test_the_changelog_knows_the_version():
    assert SETUP["metadata"]["version"] == "attr: emofm_jax.__version__"
    released = re.findall(
        r"^## (\d\S*) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == emofm_jax.__version__
