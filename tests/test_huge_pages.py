"""Programs that train or score start once more with huge pages, where there are some; no others do."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from emofm_jax.training import huge_pages

pytestmark = pytest.mark.fast
TUNABLE, DONE = "glibc.malloc.hugetlb", "EMOFM_STARTED_AGAIN"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """What the program was started again with; a system that gives huge pages to who asks."""
    found = []
    monkeypatch.setattr(os, "execve", lambda *args: found.append(args))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(huge_pages, "_ENABLED", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "train.py", raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "train.py", "--x"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv(DONE, raising=False)
    return found


def test_the_same_command_with_one_variable_more(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    huge_pages.use("train.py")
    ((program, argv, environment),) = started
    assert (program, argv) == (sys.executable, sys.orig_argv)
    assert environment["GLIBC_TUNABLES"] == f"glibc.malloc.arena_max=2:{TUNABLE}=1"
    assert environment.pop(DONE) == "1"
    assert {**environment, "GLIBC_TUNABLES": os.environ["GLIBC_TUNABLES"]} == dict(os.environ)


@pytest.mark.parametrize("left", ["", None])
def test_it_is_done_once_where_glibc_drops_its_variable(started, monkeypatch, left):
    """As of a Python with file capabilities, which else starts for ever."""
    huge_pages.use("train.py")
    environment = started[0][2]
    monkeypatch.setenv(DONE, environment[DONE])
    if left is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", left)
    huge_pages.use("train.py")
    assert len(started) == 1


def test_a_program_that_the_system_does_not_start_goes_on(started, monkeypatch):
    asked = []

    def refuse(*given):
        asked.append(given)
        raise PermissionError("execve")

    monkeypatch.setattr(os, "execve", refuse)
    huge_pages.use("train.py")
    assert len(asked) == 1, "it was asked for, and here it goes on"


@pytest.mark.parametrize("value", ["0", "1", "2"])
def test_what_the_user_has_set_stays(started, monkeypatch, value):
    monkeypatch.setenv("GLIBC_TUNABLES", f"{TUNABLE}={value}")
    huge_pages.use("train.py")
    assert not started


@pytest.mark.parametrize(
    ("libc", "enabled"),
    [
        ("glibc 2.36", "[always] madvise never\n"),
        ("glibc 2.36", "always madvise [never]\n"),
        ("glibc 2.34", "always [madvise] never\n"),
        ("musl 1.2.5", "always [madvise] never\n"),
        (None, "always [madvise] never\n"),
    ],
)
def test_nothing_happens_where_it_would_not_help(started, monkeypatch, tmp_path, libc, enabled):
    monkeypatch.setattr(os, "confstr", lambda name: libc)
    (tmp_path / "enabled").write_text(enabled)
    huge_pages.use("train.py")
    (tmp_path / "enabled").unlink()
    huge_pages.use("train.py")
    assert not started


def test_a_program_that_calls_ours_is_not_started_again(started, monkeypatch):
    huge_pages.use("sweep.py")
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    huge_pages.use_in_command()
    monkeypatch.setattr(sys, "argv", ["emofm-nightly.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "emofm-nightly.py")
    huge_pages.use_in_command()
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    huge_pages.use("train.py")
    assert not started


def test_a_debugger_keeps_its_process(started, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "gettrace", lambda: print)
        huge_pages.use("train.py")
    # From Python 3.12 on.
    tools = SimpleNamespace(DEBUGGER_ID=0, get_tool={0: "pdb"}.get)
    monkeypatch.setattr(sys, "monitoring", tools, raising=False)
    huge_pages.use("train.py")
    assert not started


@pytest.mark.parametrize("name", ["train", "sweep", "backtest", "evaluate", "predict", "compare"])
def test_a_command_of_pip_is_started_again(started, monkeypatch, name):
    """As soon as it loads our program."""
    command = [f"/bin/emofm-{name}", "--helpshort"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "orig_argv", ["python", *command])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", command[0])
    file = Path(huge_pages.__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location("loaded_again", file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert len(started) == 1


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["-m", "emofm_jax.train"], True),
        (["-Pm", "emofm_jax.train", "--x"], True),
        (["./train.py"], True),
        (["mine.py", "train"], False),  # which runs ours by runpy
        (["-m", "mine", "train"], False),
        (["-c", "import runpy"], False),
    ],
)
def test_only_what_python_was_started_with_is_started_again(started, monkeypatch, words, again):
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    huge_pages.use("train.py")
    assert len(started) == again


@pytest.mark.skipif(not huge_pages._are_there(), reason="no huge pages for who asks here")
def test_it_happens_once_and_the_process_stays(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os, sys\n"
        "print(os.getpid(), flush=True)\n"
        "from emofm_jax.training import huge_pages\n"
        "huge_pages.use(__file__)\n"
        "print(os.environ['GLIBC_TUNABLES'], *sys.argv[1:])\n"
    )
    root = str(Path(huge_pages.__file__).parents[2])
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", DONE)}
    run = [sys.executable, script, "a b", "--x"]
    out = subprocess.run(
        run, env=environment | {"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    first, second, said = out.stdout.splitlines()
    assert first == second and said == f"{TUNABLE}=1 a b --x"
