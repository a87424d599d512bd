"""Files that appear when they are whole."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import safetensors
import safetensors.numpy
import xxhash

from emofm_jax.data import files
from emofm_jax.errors import FileError

pytestmark = pytest.mark.fast


def test_a_file_is_replaced_when_the_new_one_is_whole_and_not_before(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1} and path.read_text().endswith("}\n")
    with pytest.raises(RuntimeError), files.whole(path) as temporary:
        temporary.write_text("half")
        assert files.read_json(path) == {"a": 1}
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert files.read_json(path) == {"a": 1}


def test_text_is_utf8_whatever_the_locale(tmp_path):
    files.write_text(tmp_path / "x", "π")
    assert (tmp_path / "x").read_bytes() == b"\xcf\x80"


def names(directory):
    return sorted(file.name for file in directory.iterdir())


def test_two_writers_of_a_file_do_not_touch_each_other(tmp_path):
    path = tmp_path / "x"
    with files.whole(path) as one:
        one.write_text("one")
        with files.whole(path) as other:
            other.write_text("other")
            assert one != other and {files.whole_name(p.name) for p in (one, other)} == {"x"}
        assert path.read_text() == "other" and one.read_text() == "one"
    assert path.read_text() == "one" and names(tmp_path) == ["x"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_a_file_that_a_library_put_in_its_place_is_flushed_and_has_its_mode(tmp_path, monkeypatch):
    path, flushed, flush = tmp_path / "x.safetensors", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (flushed.append(os.fstat(n).st_ino), flush(n)))
    with files.whole(path) as temporary:
        own = tmp_path / "own"  # as safetensors 0.8 does
        own.touch(0o600)
        own.rename(temporary)
        written = temporary.stat().st_ino
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask() and path.stat().st_ino == written
    assert written in flushed
    with files.whole(path) as temporary:
        safetensors.numpy.save_file({"a": np.zeros(3)}, temporary)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_an_error_that_names_the_temporary_file_names_the_file(tmp_path):
    with pytest.raises(FileError) as raised, files.whole(tmp_path / "x") as temporary:
        raise FileError(f"{temporary}: cannot be written")
    assert str(raised.value) == f"{tmp_path / 'x'}: cannot be written"


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_what_a_kill_left_is_removed_and_what_is_not_ours_stays(tmp_path):
    code = "import os, signal, sys; from pathlib import Path; from emofm_jax.data import files\n"
    code += "with files.whole(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert files.whole_name(left) == "x"
    others = [".x.0000.partial", ".y.01234567.partial", ".x.y.01234567.partial"]
    for name in others:
        (tmp_path / name).touch()
    files.write_text(tmp_path / "x", "whole")
    assert names(tmp_path) == sorted([*others, "x"])


def test_the_name_of_a_file_that_is_not_temporary():
    for name in ("x", ".x", "x.partial", ".x.partial", ".x.0123456.partial"):
        assert files.whole_name(name) == name


@pytest.mark.parametrize("indent", [None, 1])
def test_json_with_any_bit_flipped_is_damaged_or_what_it_was(tmp_path, indent):
    content = {"auc": 0.75, "rows": [1, 2], "name": "π", "inner": {"xxh3": {"a": "b"}}}
    path = tmp_path / "x.json"
    files.write_json(path, content, indent)
    good = path.read_bytes()
    assert files.read_json(path) == content and json.loads(good) == content | {"xxh3": mine(good)}
    for place in range(len(good) - 1):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with contextlib.suppress(ValueError):
                found = files.read_json(path)
                assert {key: found[key] for key in content} == content


def mine(content):
    """The last 16 hex digits, by the definition: xxh3 of what stands before the last entry."""
    head = content.decode().rpartition(",")[0].encode()
    return xxhash.xxh3_64_hexdigest(head)


def test_json_of_others_has_no_digest(tmp_path):
    (tmp_path / "x").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "x") == {"a": 1} and files.from_json("{}") == {}
    for text in ("[1]", "", "{", '{"a": 1, "xxh3": "0123456789abcdef"}', "[" * 100_000):
        with pytest.raises(ValueError):
            files.from_json(text)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "y")
    with pytest.raises(FileError, match="cannot be read .Is a directory.; restore it"):
        files.read_json(tmp_path)


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device); free space, then start the same"),
        (pa.ArrowException("IOError: [Errno 5] x"), "Input/output error); look at the disk, then"),
        (safetensors.SafetensorError("x (os error 30)"), "Read-only file system); make it access"),
        (pa.ArrowInvalid("too\nlong"), "too long); name another place"),
    ],
)
def test_what_a_library_says_becomes_one_line_that_names_the_file(tmp_path, error, said):
    with pytest.raises(FileError) as caught, files.whole(tmp_path / "x"):
        raise error
    assert str(caught.value).startswith(f"{tmp_path}/x: cannot be written ({said}")
    assert names(tmp_path) == []


def test_a_directory_whose_entries_cannot_be_flushed_is_an_error_that_names_the_file(
    tmp_path, monkeypatch
):
    def fail(path):
        raise OSError(errno.EIO, "x", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(FileError, match="^x.json: cannot be written .Input/output error.; look"):
        files.write_json("x.json", {"a": 1})


@pytest.mark.parametrize("is_new", [True, False])
def test_a_directory_that_cannot_be_locked_is_not_left_if_it_is_new(tmp_path, monkeypatch, is_new):
    def fail(path, *_):
        raise OSError(errno.EIO, "x", str(path))

    if not is_new:
        (tmp_path / "made").mkdir()
    monkeypatch.setattr(files.os, "open", fail)
    with pytest.raises(OSError, match="x"):
        files.make_locked(tmp_path / "made")
    monkeypatch.undo()
    assert names(tmp_path) == ([] if is_new else ["made"])


def test_an_error_of_another_file_or_of_none_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), files.whole(tmp_path / "x"):
        (tmp_path / "y").read_bytes()
    with pytest.raises(ZeroDivisionError), files.whole(tmp_path / "x"):
        raise ZeroDivisionError


def test_a_log_goes_on_behind_what_is_known_to_be_good(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text("one\ntwo\nhal")
    log = files.Appended(path, 8)
    log.write("three\n")
    assert log.size == 14
    log.close()
    assert path.read_text() == "one\ntwo\nthree\n" and capsys.readouterr().err == ""
    assert files.Appended(path).size == 14


def test_a_log_that_was_deleted_is_not_refilled(tmp_path, capsys):
    (tmp_path / "log").write_text("one\nha")
    log = files.Appended(tmp_path / "log", 100)
    log.write("two\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n" and log.size == 8
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/log: deleted or cut since, 6 bytes where it had 100: the lines before are lost\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a full disk")
def test_a_log_on_a_full_disk_says_so_once_and_keeps_nobody_from_going_on(capsys):
    log = files.Appended("/dev/full")
    for _ in range(3):
        log.write("line\n")
    log.close()
    said = "/dev/full: cannot be written (No space left on device); free space, then start the same command again"
    assert capsys.readouterr().err == f"warning: {said}; the run goes on without this log\n"
    assert log.size == 0


def test_a_log_whose_closing_fails_says_so_and_no_more(tmp_path, capsys):
    log = files.Appended(tmp_path / "log")
    log.write("line\n")
    os.close(log._file.fileno())  # closing it fails now, as on a disk with errors
    log.close()
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}/log: cannot be written (Bad file descriptor); ")
    assert said.endswith("; the run goes on without this log\n") and said.count("\n") == 1
