"""What a kill, a flipped byte, a cut file or a full disk does to checkpoints: no more than the last one is lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from emofm_jax.data.placing import Share
from emofm_jax.errors import UserError
from emofm_jax.training import checkpoint, checkpoint_files

ROOT = Path(__file__).parent.parent


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def other_arrays(path):
    """Well-formed and hashed right, but not what state.json names."""
    safetensors.numpy.save_file({"x": np.zeros(5, np.float32)}, path / "state.safetensors")
    text = (path / "state.json").read_text()
    head, tail = text.split(', "xxh3": ')
    hashes = json.loads(tail[:-2]) | {
        "state.safetensors": checkpoint_files._hash(path / "state.safetensors")
    }
    (path / "state.json").write_text(f'{head}, "xxh3": {json.dumps(hashes)}}}\n')


DAMAGE = {
    "first byte": lambda path: flip(path / "state.safetensors", 0),
    "header": lambda path: flip(path / "state.safetensors", 20),
    "last byte": lambda path: flip(path / "state.safetensors", -1),
    "truncated": lambda path: os.truncate(path / "state.safetensors", 90),
    "empty": lambda path: os.truncate(path / "state.safetensors", 0),
    "longer": lambda path: (path / "state.safetensors").open("ab").write(b"\0"),
    "no arrays": lambda path: (path / "state.safetensors").unlink(),
    "no json": lambda path: (path / "state.json").unlink(),
    "cut json": lambda path: os.truncate(path / "state.json", 30),
    "no utf-8": lambda path: (path / "state.json").write_bytes(b"\xff\xfe"),
    "json of another kind": lambda path: (path / "state.json").write_text("[1]"),
    "other arrays": other_arrays,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, kind):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": np.full(50, step, np.float32)}, {"n": step})
    DAMAGE[kind](tmp_path / "step_2")
    back = checkpoint.restore(tmp_path, {"x": np.zeros(50, np.float32)})
    assert back.step == 1 and back.info == {"n": 1} and (back.state["x"] == 1).all()
    err = capsys.readouterr().err
    assert (
        err.startswith(f"warning: {tmp_path}/step_2: damaged checkpoint (") and err.count("\n") == 1
    )
    assert err.endswith("; taking step 1 instead\n")


def test_every_byte_of_the_json_is_guarded(tmp_path):
    info = {"position": [12, 3, 400], "best": 0.125}
    checkpoint.save(tmp_path, 1, {"x": np.zeros(2)}, info)
    path = tmp_path / "step_1" / "state.json"
    good, bodies = path.read_bytes(), 0
    for offset in range(len(good) - 1):  # but the line's end
        flip(path, offset)
        try:
            back = checkpoint.restore(tmp_path, {"x": np.zeros(2)})
            bodies += 1
            assert (
                back.info == info
            )  # a harmless one may pass: a blank between tokens outside the hashed part
        except UserError as error:
            assert "damaged checkpoint" in str(error)
        path.write_bytes(good)
    assert bodies <= 8


def test_a_checkpoint_that_is_taken_away_while_it_is_read_is_not_called_damaged(
    tmp_path, monkeypatch
):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": np.zeros(2)}, {})
    read = checkpoint_files._hash

    def gone(path):
        shutil.rmtree(path.parent)
        return read(path)

    monkeypatch.setattr(checkpoint_files, "_hash", gone)
    with pytest.raises(UserError, match="step_2: taken away while it was read, since its run goes"):
        checkpoint.restore(tmp_path, {"x": np.zeros(2)})


def test_all_damaged(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": np.zeros(2)}, {})
        flip(tmp_path / f"step_{step}" / "state.safetensors", -1)
    with pytest.raises(
        UserError,
        match=r"step_2: damaged .*step_1: damaged .*; restore them, or move them away to do without",
    ) as caught:
        checkpoint.restore(tmp_path, {"x": np.zeros(2)})
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    like = {"x": np.zeros(1 << 16)}
    checkpoint.save(tmp_path, 1, like, {"n": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 15, hard)
    )  # as the disk does, the kernel ends the writing
    try:
        with pytest.raises(UserError) as caught:
            checkpoint.save(tmp_path, 2, like, {"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        f"{tmp_path}/step_2/state.safetensors: cannot be written (File too large); free space"
        in str(caught.value)
    )
    assert "checkpoints that are there: step_1" in str(caught.value)
    assert listing(tmp_path) == ["step_1"] and checkpoint.restore(tmp_path, like).info == {"n": 1}


FILES = ["rows_0.safetensors", "state.json", "state.safetensors"]


def state(step):
    """An array, and a table of 1,000 rows on two devices."""
    return {"x": np.full(1000, step), "table": Share(np.full((2, 512, 3), step), 0, 1000)}


KILLED = """
    import os, signal, sys
    import numpy as np
    from emofm_jax.data import directories
    from emofm_jax.training import checkpoint, checkpoint_files
    from tests.test_checkpoint_damage import state

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def write(directory, moment):
        for step in (1, 2):
            checkpoint.save(directory, step, state(step), {"n": step})
        rename = os.rename
        if moment == "before the rename":
            os.rename = die
        elif moment == "after the rename":
            os.rename = lambda *a: (rename(*a), die())
        elif moment == "inside the arrays":
            checkpoint_files.safetensors.numpy.save_file = lambda arrays, path: (open(path, "wb").write(b"12345"), die())
        elif moment == "inside the rows":
            save = checkpoint_files.safetensors.numpy.save_file
            half = lambda arrays, path: (open(path, "wb").write(b"12345"), die())
            choose = lambda arrays, path: (half if "rows_0" in path.name else save)(arrays, path)
            checkpoint_files.safetensors.numpy.save_file = choose
        elif moment == "before the json":
            checkpoint_files.write_index = die
        elif moment == "inside the removal":
            directories.shutil.rmtree = lambda path, **_: path.exists() and (os.remove(path / "state.json"), die())
        with checkpoint.Saver(directory) as saver:
            saver.save(3, state(3), {"n": 3})

    for moment in sys.argv[2:]:
        child = os.fork()  # a start of Python for each would take longer than the rest
        if not child:
            write(os.path.join(sys.argv[1], moment), moment)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
MOMENTS = {
    "inside the arrays": 2,
    "inside the rows": 2,
    "before the json": 2,
    "before the rename": 2,
    "after the rename": 3,
    "inside the removal": 3,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A directory with the checkpoints that a kill at each moment left."""
    home = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), str(home), *MOMENTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(MOMENTS), done.stderr
    return home


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_writing(killed, moment):
    home, step = killed / moment, MOMENTS[moment]
    for found in checkpoint.steps(home):  # no half of one
        assert listing(home / f"step_{found}") == FILES
    like = {"x": np.zeros(1000, int), "table": np.zeros((1000, 3), int)}
    back = checkpoint.restore(home, like)
    assert back.step == step and back.info == {"n": step}
    assert all((array == step).all() for array in back.state.values())
    checkpoint.save(home, 4, like, {})
    assert listing(home) == [f"step_{step}", "step_4"]
    assert listing(home / "step_4") == ["state.json", "state.safetensors"]
