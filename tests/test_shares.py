"""Checkpoints of a table over several devices: whoever wrote them, any number of devices and processes reads them."""

import json
import threading

import numpy as np
import pytest

from emofm_jax.data import placing
from emofm_jax.data.placing import Share
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import FileError, LostError, UserError
from emofm_jax.evaluation import calibration
from emofm_jax.training import checkpoint, checkpoint_files, processes

ROWS = 2500  # 3 of each of 1,024 classes: 3,072 places, of which 572 hold nothing
RNG = np.random.default_rng(0)
WHOLE = {
    "table": RNG.normal(size=(ROWS, 3)).astype(np.float32),
    "sums": RNG.normal(size=ROWS).astype(np.float32),
    "count": np.int32(7),
    "kernel": RNG.normal(size=(4, 2)).astype(np.float32),
}


def layout_of(count):
    slot = Slot("a", "g", encoding="hash", rows=ROWS)
    return placing.Layout(Schema("x", (slot,), rows_per_type=(1,), clicks_per_type=(1,)), count)


def state(count, own):
    """The state as those of `count` devices have it."""
    layout = layout_of(count)
    share = lambda x: Share(layout.spread(x)[own], own.start * layout.rows, ROWS)
    return {k: share(x) if np.shape(x)[:1] == (ROWS,) else x for k, x in WHOLE.items()}


def two_processes(monkeypatch):
    """Lets two threads be the processes of a run: {thread: number}, what they tell each other."""
    numbers, told, new = {}, {}, threading.Condition()

    def tell(key, text):
        with new:
            assert text and told.setdefault(key, text) is text
            new.notify_all()

    def hear(key, given_up):
        with new:
            assert new.wait_for(lambda: key in told or given_up.is_set(), 10)
        if key not in told:
            raise processes.lost()
        return told[key]

    number = lambda: numbers.get(threading.current_thread().name, 0)
    for name, value in {"tell": tell, "hear": hear, "index": number, "count": lambda: 2}.items():
        monkeypatch.setattr(processes, name, value)
    monkeypatch.setattr(processes, "gather", lambda value: [value, value])
    monkeypatch.setattr(checkpoint.secrets, "token_hex", lambda n: "x" * n)
    return numbers


def save_by_two(home, monkeypatch, step=1, break_second=False, error=None):
    """What the two processes raise."""
    numbers, raised = two_processes(monkeypatch), [None, None]
    # The thread of a Saver is called after its executor; the second's is told apart by that.
    executor = checkpoint.concurrent.futures.ThreadPoolExecutor

    def named(count, name):
        numbers[f"{name}{threading.current_thread().name}_0"] = processes.index()
        return executor(count, f"{name}{threading.current_thread().name}")

    monkeypatch.setattr(checkpoint.concurrent.futures, "ThreadPoolExecutor", named)

    def one(i):
        try:
            with checkpoint.Saver(home) as saver:
                saver.save(step, state(2, slice(i, i + 1)), {"n": i})
                if error:
                    raise error
        except UserError as found:
            raised[i] = found

    if break_second:
        write = checkpoint_files.write_arrays
        full = FileError("rows_1.safetensors: cannot be written (No space left on device)")

        def broken(path, arrays):
            if path.name == "rows_1.safetensors":
                raise full
            return write(path, arrays)

        monkeypatch.setattr(checkpoint_files, "write_arrays", broken)
    threads = [threading.Thread(target=one, args=(i,), name=f"p{i}") for i in (0, 1)]
    numbers |= {"p0": 0, "p1": 1}
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    monkeypatch.undo()
    return raised


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    home = tmp_path_factory.mktemp("shares")
    checkpoint.save(home / "whole", 1, WHOLE, {"n": 0})
    checkpoint.save(home / "two devices", 1, state(2, slice(0, 2)), {"n": 0})
    with pytest.MonkeyPatch.context() as patch:
        assert save_by_two(home / "two processes", patch) == [None, None]
    return home


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        one, other = found[name], array
        if isinstance(array, Share):
            assert (one.first, one.num_rows) == (other.first, other.num_rows)
            one, other = one.array, other.array
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other, err_msg=name)


READERS = [(2, 0, 2), (2, 1, 2), (3, 0, 3), (4, 0, 4), (4, 1, 3), (700, 690, 700)]


@pytest.mark.parametrize("source", ["whole", "two devices", "two processes"])
def test_any_number_of_devices_and_processes_reads_it(written, source):
    like = lambda tree: {k: np.zeros_like(x) for k, x in tree.items()}
    back = checkpoint.restore(written / source, like(WHOLE))
    assert back.info == {"n": 0} and back.step == 1
    same(back.state, WHOLE)
    for count, first, last in READERS:
        wanted = state(count, slice(first, last))
        same(checkpoint.restore(written / source, wanted).state, wanted)


def test_what_the_files_hold(written):
    for name, ranges in (
        ("two devices", [[0, 3072]]),
        ("two processes", [[0, 1536], [1536, 3072]]),
    ):
        path = written / name / "step_1"
        files = [f"rows_{i}.safetensors" for i in range(len(ranges))]
        assert sorted(x.name for x in path.iterdir()) == [*files, "state.json", "state.safetensors"]
        body = json.loads((path / "state.json").read_text())
        assert body["rows"] == dict(zip(files, ranges)) and body["format_version"] == 2
        assert body["tree"]["table"] == ["float32", [ROWS, 3]]
        assert checkpoint.verify(written / name, 1) == f"4 arrays, rows in {len(ranges)} files"
    assert json.loads((written / "whole/step_1/state.json").read_text())["format_version"] == 1


def test_a_part_of_it_is_read_alone_as_a_scorer_does(written):
    like = {"table": np.zeros((ROWS, 3), np.float32)}
    for source in ("two devices", "two processes"):
        back = checkpoint.restore(written / source, like, only=("table",))
        same(back.state, {"table": WHOLE["table"]})


def test_a_calibration_is_of_the_table_too(tmp_path):
    tree, found = state(2, slice(0, 2)), []
    for _ in range(2):
        checkpoint.save(tmp_path / "checkpoints", 1, tree, {})
        found.append(calibration._state(tmp_path, 1))
        tree["table"].array[1, 5] += 1
    assert found[0] != found[1]


def test_a_share_is_read_from_the_files_that_have_it(tmp_path, monkeypatch):
    save_by_two(tmp_path, monkeypatch)
    (tmp_path / "step_1" / "rows_1.safetensors").write_bytes(b"damaged")
    first, last = (state(4, slice(i, i + 1)) for i in (0, 3))
    same(checkpoint.restore(tmp_path, first).state, first)
    for like in (last, WHOLE):
        with pytest.raises(UserError, match="step_1: damaged checkpoint .rows_1.safetensors has"):
            checkpoint.restore(tmp_path, like)
    # What is damaged for one process is for all: they go on from one step.
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda value: [value, "rows_1.safetensors is gone"])
    with pytest.raises(UserError, match="damaged checkpoint .rows_1.safetensors is gone"):
        checkpoint.restore(tmp_path, first)


@pytest.mark.parametrize("damage", ["missing", "other range", "one row less"])
def test_rows_that_are_not_what_was_written_are_damage(tmp_path, damage):
    checkpoint.save(tmp_path, 1, state(2, slice(0, 2)), {})
    path = tmp_path / "step_1" / "rows_0.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "other range":
        text = (tmp_path / "step_1" / "state.json").read_text()
        (tmp_path / "step_1" / "state.json").write_text(text.replace("3072", "3071"))
    else:
        body = checkpoint_files.read_index(tmp_path / "step_1")
        table = np.zeros((3071, 3), np.float32)
        digest = checkpoint_files.write_arrays(path, {"table": table, "sums": table[:, 0].copy()})
        digests = body.digests | {path.name: digest}
        checkpoint_files.write_index(tmp_path / "step_1", body._replace(digests=digests))
    for read in (
        lambda: checkpoint.restore(tmp_path, WHOLE),
        lambda: checkpoint.verify(tmp_path, 1),
    ):
        with pytest.raises(UserError, match="step_1: damaged checkpoint"):
            read()


def test_a_full_disk_of_one_process_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, WHOLE, {})
    raised = save_by_two(tmp_path, monkeypatch, step=2, break_second=True)
    assert all("No space left on device" in str(error) for error in raised)
    assert "checkpoints that are there: step_1" in str(raised[0])
    assert [x.name for x in tmp_path.iterdir()] == ["step_1"]


def test_what_ends_all_processes_does_not_take_the_checkpoint_that_is_written(
    tmp_path, monkeypatch
):
    error = UserError("the loss is not finite")
    assert save_by_two(tmp_path, monkeypatch, error=error) == [error, error]
    assert checkpoint.restore(tmp_path, WHOLE).step == 1
    # But who has lost the others does not wait for them.
    two_processes(monkeypatch)
    with pytest.raises(LostError), checkpoint.Saver(tmp_path) as saver:
        saver.save(2, state(2, slice(0, 1)), {})
        raise processes.lost()
    assert checkpoint.steps(tmp_path) == [1]
