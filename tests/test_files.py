"""Files that appear when they are whole."""

import json
import os
import signal
import subprocess
import sys

import pytest

from emofm_jax.data import files

pytestmark = pytest.mark.fast


def test_a_file_is_replaced_when_the_new_one_is_whole_and_not_before(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1} and path.read_text().endswith("}\n")
    with pytest.raises(RuntimeError), files.whole(path) as temporary:
        temporary.write_text("half")
        assert json.loads(path.read_text()) == {"a": 1}
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert json.loads(path.read_text()) == {"a": 1}


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
