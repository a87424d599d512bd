"""Directories that appear when they are whole."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from emofm_jax.data import directories, files
from emofm_jax.errors import FileError, UserError

pytestmark = pytest.mark.fast


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def write(path, text):
    with directories.whole(path) as new:
        files.write_text(new / text, text)


@pytest.fixture(params=["exchange", "two moves"])
def moved(request, monkeypatch):
    """How a directory takes the place of another."""
    if request.param == "two moves":
        monkeypatch.setattr(directories, "_exchange", lambda one, other: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux's")


def test_a_directory_is_replaced_by_the_whole_new_one(tmp_path, moved):
    for text in ("one", "two"):
        write(tmp_path / "made", text)
        assert names(tmp_path / "made") == [text] and names(tmp_path) == ["made"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_two_directories_change_places_in_one_operation(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / f"of_{name}").mkdir(parents=True)
    assert directories._exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["of_b"] and names(tmp_path / "b") == ["of_a"]
    with pytest.raises(OSError) as caught:
        directories._exchange(tmp_path / "a", tmp_path / "c")
    assert caught.value.errno == errno.ENOENT


def test_after_an_error_the_directory_is_as_it_was(tmp_path, moved):
    write(tmp_path / "made", "one")
    with pytest.raises(KeyError), directories.whole(tmp_path / "made") as new:
        (new / "half").touch()
        raise KeyError
    with directories.whole(tmp_path / "made") as new:
        raise directories.Unneeded
    assert names(tmp_path / "made") == ["one"] and names(tmp_path) == ["made"]


def test_what_vanishes_while_it_is_written_is_an_error(tmp_path):
    with (
        pytest.raises(FileError, match="made: cannot be written .No such file"),
        directories.whole(tmp_path / "made") as new,
    ):
        new.rmdir()
    with (
        pytest.raises(UserError, match="^x made/y.json is wrong$"),
        directories.whole("made") as new,
    ):
        raise UserError(f"x {new}/y.json is wrong")
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from emofm_jax.data import directories
target, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if moment == "between":
    directories._exchange, move = (lambda one, other: False), Path.rename
    Path.rename = lambda self, to: (move(self, to), die())
elif moment == "behind":
    directories.shutil.rmtree = lambda path, **_: path.exists() and die()
with directories.whole(target) as new:
    (new / "new").touch()
    moment == "before" and die()
"""


@pytest.mark.parametrize("moment, held", [("before", "old"), ("between", "old"), ("behind", "new")])
@pytest.mark.parametrize("how", ["the next writer", "clear"])
def test_whatever_kills_the_writer_the_old_one_stays_or_the_new_one_is_there(
    tmp_path, moment, held, how
):
    (tmp_path / "made" / "old").mkdir(parents=True)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "made"), moment]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL and names(tmp_path)[0] == ".made.partial", done.stderr
    if how == "clear":
        directories.clear(tmp_path)
    else:
        with directories.whole(tmp_path / "made"):
            assert names(tmp_path / "made") == [held]
            raise directories.Unneeded
    assert names(tmp_path) == ["made"] and names(tmp_path / "made") == [held]


def test_what_is_in_use_or_not_ours_stays(tmp_path):
    (tmp_path / ".mine.partial" / "letters").mkdir(parents=True)
    (tmp_path / ".file.partial").touch()
    with directories.whole(tmp_path / "made") as new:
        directories.clear(tmp_path)
        assert new.exists()
        with (
            pytest.raises(UserError, match="made: another program exports there now; wait for it"),
            directories.whole(tmp_path / "made", "exports"),
        ):
            pass
    assert names(tmp_path) == [".file.partial", ".mine.partial", "made"]
    write(tmp_path / "mine", "x")
    assert names(tmp_path / ".mine.partial") == ["letters"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real" / "old").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new")
    assert os.readlink(tmp_path / "link") == "real" and names(tmp_path / "real") == ["new"]


def test_a_removed_directory_is_gone_with_all_it_held(tmp_path):
    (tmp_path / "made" / "deep").mkdir(parents=True)
    directories.remove(tmp_path / "made")
    directories.remove(tmp_path / "made")
    assert names(tmp_path) == []


def test_a_removed_link_is_gone_without_what_it_leads_to(tmp_path):
    (tmp_path / "disk" / "made").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/made")
    for _ in range(2):
        directories.remove(tmp_path / "link")
        assert names(tmp_path) == ["disk"] and names(tmp_path / "disk") == ["made"]
    write(tmp_path / "link", "new")
    assert names(tmp_path / "link") == ["new"]


def test_temporary_names():
    name = directories.whole_name
    assert name(".x.partial") == "x" and name(".x.01234567.partial") == "x"
    assert name("x.partial") == "x.partial" and name("x") == "x"


def test_a_fault_of_a_moment_leaves_nothing(tmp_path, monkeypatch):
    """The first look into each directory that is to be removed fails."""
    with directories.whole(tmp_path / "a") as new:
        (new / "old").mkdir()
    remove, failed = shutil.rmtree, []

    def fails_once(path, ignore_errors=False):
        if path.exists() and path not in failed:
            failed.append(path)
        else:
            remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", fails_once)
    with directories.whole(tmp_path / "a") as new:
        (new / "new").mkdir()
    assert failed and [x.name for x in tmp_path.rglob("*")] == ["a", "new"]


def test_a_signal_while_a_directory_is_removed_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove, ended = shutil.rmtree, []

    def ends_once(path, ignore_errors=False):
        if path.exists() and not ended:
            ended.append(path)
            raise SystemExit(143)  # as a handler of SIGTERM does
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", ends_once)
    with pytest.raises(SystemExit, match="143"):
        directories.remove(tmp_path / "a")
    assert ended and not [*tmp_path.iterdir()]


def test_a_disk_that_fails_at_the_end_does_not_keep_the_lock(tmp_path, monkeypatch):
    stat = os.stat

    def fails(path, *args, **kwargs):
        if str(path).endswith("emofm_jax.new") and (tmp_path / "a").exists():
            raise OSError(errno.EIO, "Input/output error", path)
        return stat(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", fails)
        with directories.whole(tmp_path / "a"):
            pass
    with directories.whole(tmp_path / "a") as new:
        (new / "x").mkdir()
    assert (tmp_path / "a" / "x").exists()
