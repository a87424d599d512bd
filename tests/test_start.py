"""What a program needs of the models before it starts is kept on disk: no jax, and never out of date."""

import json
import os
import subprocess
import sys
import threading
import types

import pytest

import emofm_jax
from emofm_jax import config, models, options
from emofm_jax.data import files
from emofm_jax.options import Option

pytestmark = pytest.mark.fast

PROGRAMS = """
import sys
from emofm_jax import cli, config, prepare, report
for main in (prepare.main, report.main):
    for flag in ("--help", "--helpfull"):
        assert main(["x", flag]) == 0
assert cli.run(print, cli.define_config, ["x", "--config=quickstart"]) == 0
assert config.default().model.dcnv2.num_layers == 3
print("jax" in sys.modules)
"""


class Package:
    """A package of three source files, asked for the options of its models as a new process asks."""

    def __init__(self, home, monkeypatch):
        self.home, self.loads, self.default = home, 0, 3
        for name in ("config.py", "options.py", "models/mine.py"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text("3")
        monkeypatch.setattr(config, "__file__", str(home / "config.py"))
        monkeypatch.delitem(sys.modules, "emofm_jax.models")
        monkeypatch.setattr(emofm_jax, "models", types.SimpleNamespace(options=self.options))

    def options(self):
        self.loads += 1
        return {"depth": Option(self.default, "layers", low=1)}

    def ask(self):
        """The default, and how often the models were loaded for it."""
        self.loads = 0
        return config._of_models()["depth"].default, self.loads

    def kept(self):
        return sorted((self.home.parent / "cache" / "emofm_jax").glob("*"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Package(tmp_path / "package", monkeypatch)


@pytest.mark.slow
def test_programs_that_need_no_jax_load_none():
    def said(code):
        return subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    said("from emofm_jax import config; config.options()")  # the first process loads jax, and keeps
    assert said(PROGRAMS).endswith("\nFalse\n")


@pytest.mark.parametrize("file", ["config.py", "options.py", "models/mine.py", "models/new.py"])
def test_a_change_of_the_source_is_seen(package, file):
    assert package.ask() == (3, 1)
    assert package.ask() == (3, 0)
    (path,) = package.kept()
    assert path.stat().st_mode & 0o077 == 0
    package.default = 4
    (package.home / file).write_text("4")
    assert package.ask() == (4, 1)
    assert package.ask() == (4, 0)


def test_a_change_while_the_models_load_is_not_kept(package):
    options_of = package.options
    emofm_jax.models.options = lambda: (
        (package.home / "options.py").write_text("4") and options_of()
    )
    assert package.ask() == (3, 1) and not package.kept()


def test_models_that_are_loaded_say_it_themselves(package, monkeypatch):
    package.ask()
    package.default = 4
    monkeypatch.setitem(sys.modules, "emofm_jax.models", emofm_jax.models)
    assert package.ask() == (4, 1)
    monkeypatch.delitem(sys.modules, "emofm_jax.models")
    assert package.ask() == (3, 0), "what a process does to its models is not kept"


@pytest.mark.parametrize(
    "damage",
    [b"", b"null", b"{", b'{"depth": {}}', b'{"depth": {"of": "x", "needs": {}}}', b"\xff"],
)
def test_what_is_damaged_is_made_anew(package, damage):
    package.ask()
    (file,) = package.kept()
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert package.ask() == (3, 1) and file.read_bytes() == whole


@pytest.mark.parametrize("place", ["relative", "~", "package/config.py/below"])
def test_without_a_place_to_write_the_models_are_loaded(package, monkeypatch, tmp_path, place):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place) if "/" in place else place)
    before = sorted(os.listdir())
    assert package.ask() == package.ask() == (3, 1) and sorted(os.listdir()) == before


def test_a_package_without_source_files_keeps_nothing(package):
    (package.home / "config.py").unlink()
    assert package.ask() == package.ask() == (3, 1) and not package.kept()


@pytest.mark.parametrize("value", [[1], {1: 2}, b"x", (b"x",)])
def test_what_json_cannot_hold_is_not_kept(package, value):
    package.default = value
    assert package.ask() == package.ask() == (value, 1) and not package.kept()


def test_the_options_of_all_models_come_back_as_they_were():
    found = models.options() | config.options()
    found["x"] = Option(1.0, "all", (1, 2.5), 0, 1 - 1e-12, float, False, {"a | .b": (True, "")})
    back = options.from_json(json.loads(json.dumps(options.to_json(found))))
    assert back == found and [*map(repr, back.values())] == [*map(repr, found.values())]


def test_many_write_a_file_of_the_cache_and_each_reader_finds_a_whole_one(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = {letter * 100_000 for letter in "abcd"}
    write = lambda text: [files.write_cache("x", text) for _ in range(20)]
    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    files.write_cache("x", min(texts))
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert files.read_cache("x") in texts
    assert os.listdir(tmp_path / "cache" / "emofm_jax") == ["x"]
