"""Two processes that train one model: the same bits as one with two devices, stops, deaths, mistakes.

One pair of processes does everything (`python -m tests.test_processes pair HOME PORT I`), a third program
(`reference`) takes the steps of a run on two simulated devices. The tests read what they have left.
"""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import s3_server
from emofm_jax import config as config_lib
from emofm_jax import train
from emofm_jax.data import batches, files, shards, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError
from emofm_jax.training import checkpoint, checkpoint_files, compilation, loop, processes

ROOT = Path(__file__).parent.parent
SIZE, GROUP = 512, 1500  # 4,000 rows: one process has 3,000 or 2,500 of them, the other the rest
EPOCHS = 2
MODEL = os.environ.get("EMOFM_JAX_TEST_PROCESSES", "fm")  # hmm takes three times as long


def arguments(home, name, *more):
    flags = [f"--config={ROOT / 'tests' / 'tiny.py'}:{MODEL}", f"--config.data.dir={home / 'data'}"]
    flags += [f"--config.train.epochs={EPOCHS}", f"--config.data.batch_size={SIZE}"]
    return ["train", *flags, f"--workdir={home / name}", *more]


def at_step(number, act):
    """Lets the next run call `act` when so many steps are dispatched."""

    class Window(loop_window):
        def add(self, metrics, rows):
            super().add(metrics, rows)
            if self._progress.step == number:
                act()

    loop.Window = Window


def die_when_saved(checkpoints):
    """Ends this process as soon as all have written their parts of a checkpoint."""
    while checkpoint.latest(checkpoints) is None:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


loop_window = loop.Window


def pair(home, port, index):
    """What each of the two processes does; exit codes and lines go to HOME/INDEX.json."""
    home, index, found = Path(home), int(index), {}
    shards.ROW_GROUP_ROWS = GROUP
    processes.leave = lambda code: code  # else a mistake would end this program
    where = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={index}"]

    def run(name, *more):
        try:
            return train.main(arguments(home, name, *where, *more))
        except SystemExit as stopped:
            return stopped.code

    def note(name, *more):
        found[name] = run(name.split()[0], *more)
        (home / f"{index}.json").write_text(json.dumps(found))

    note("whole")
    if index == 1:
        at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    note("stopped")
    loop.Window = loop_window
    note("stopped again")
    note("stopped done")
    if "AWS_ENDPOINT_URL" in os.environ:
        in_bucket(home, index, note)
    note("other", f"--config.seed={index}")
    if index == 1:
        at_step(8, lambda: die_when_saved(home / "killed" / "checkpoints"))
    note("killed")
    os._exit(found["killed"])


def in_bucket(home, index, note):
    """What the two do that share nothing but a bucket: a stop, and a machine each that goes on.

    And a run that learns nothing: its best state is not its last one.
    """
    run = ["--config.data.dir=s3://bucket/data", "--workdir=s3://bucket/run"]
    best = [run[0], "--workdir=s3://bucket/best", "--config.train.monitor=logloss"]
    best += [f"--config.optim.{key}.learning_rate=1e-30" for key in ("embedding", "network")]
    for name, flags in (("s3", run), ("s3 again", run), ("s3 best", best)):
        storage.forget()
        os.environ["XDG_CACHE_HOME"] = str(home / f"{name} {index}")
        if name == "s3" and index == 1:
            at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        note(name, *flags)
        loop.Window = loop_window


def reference(home):
    """Takes the steps of the run `whole` on two devices, from what two readers give."""
    import jax

    from emofm_jax.training import build, run
    from emofm_jax.training import state as state_lib

    home = Path(home)
    compilation.pmapped = lambda mapped, devices: mapped  # as with several processes
    c = config_lib.load(home / "whole")
    train_split = run.open_data(c)["train"]
    parts = build.make_parts(c, train_split.schema)
    state, order = parts.begin(), {"shuffle_rows": c.data.shuffle_rows, "seed": c.seed}
    for epoch in range(EPOCHS):
        two = [
            batches.read(train_split, SIZE, process=(i, 2), epoch=epoch, **order) for i in (0, 1)
        ]
        for first, second in zip(*two, strict=True):
            both = jax.tree.map(lambda *x: np.concatenate(x), first.batch, second.batch)
            placed = state_lib.put_planned(both, parts.devices, parts.layout)
            state, _ = parts.train_step(state, placed)
    checkpoint.save(home / "reference", 1, build.saved(state, parts), {})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    two = "--xla_force_host_platform_device_count=2"
    flags = {"pair": "", "reference": two}

    def start(mode, *more):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags[mode]}".strip()
        command = [sys.executable, "-m", "tests.test_processes", mode, str(home), *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    with served(home):
        started = [start("pair", port, str(i)) for i in (0, 1)]
        said = [process.communicate(timeout=300) for process in started]
        if "AWS_ENDPOINT_URL" in os.environ:
            all_of(home)
    for i, (process, (out, err)) in enumerate(zip(started, said)):
        (home / f"{i}.out").write_text(out)
        (home / f"{i}.err").write_text(err)
        (home / f"{i}.code").write_text(str(process.returncode))
    done = start("reference")
    assert done.communicate(timeout=300) and done.returncode == 0
    return home


def served(home):
    """A server of S3, if moto is installed: the pair then uses it, too."""
    if not all(map(importlib.util.find_spec, ("moto", "flask"))):
        return contextlib.nullcontext()
    return s3_server.serve(home / "server.log")


def all_of(home):
    """Copies what the pair has published."""
    for name in ("run", "best"):
        storage.need(path := storage.reading(f"s3://bucket/{name}"))
        shutil.copytree(path, home / f"s3-{name}")


def arrays(directory, step=None):
    """The arrays of a checkpoint, the table as a whole."""
    path = directory / f"step_{step or checkpoint.latest(directory)}"
    body = checkpoint_files.read_index(path)
    like = {name: np.zeros(shape, dtype) for name, (dtype, shape) in body.tree.items()}
    return checkpoint_files.read_arrays(path, body, like)


def found(home, index):
    return json.loads((home / f"{index}.json").read_text())


def test_two_processes_train_what_two_devices_do(home):
    assert [found(home, i)["whole"] for i in (0, 1)] == [0, 0], (home / "1.err").read_text()
    steps = files.read_json(home / "whole" / "metrics.json")["train"]["steps"]
    # An epoch ends with the process that has more rows: 3,000 or 2,500 of 4,000, SIZE / 2 a step.
    least, most = (math.ceil(rows / (SIZE // 2)) for rows in (2500, 3000))
    assert EPOCHS * least <= steps <= EPOCHS * most
    kept, wanted = arrays(home / "whole" / "checkpoints", steps), arrays(home / "reference")
    assert kept.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(kept[name], wanted[name], err_msg=name)


def test_each_process_writes_its_rows(home):
    path = home / "whole" / "checkpoints"
    files_of = sorted(x.name for x in (path / f"step_{checkpoint.latest(path)}").iterdir())
    rows = ["rows_0.safetensors", "rows_1.safetensors"]
    assert files_of == [*rows, "state.json", "state.safetensors"]
    places = schema_lib.load(home / "whole").num_rows / 1024
    body = checkpoint_files.read_index(path / f"step_{checkpoint.latest(path)}")
    half, whole = 512 * math.ceil(places), 1024 * math.ceil(places)
    assert body.rows == dict(zip(rows, ([0, half], [half, whole])))


def test_a_stop_of_one_stops_both_at_one_step_and_both_go_on(home):
    for i in (0, 1):
        assert found(home, i)["stopped"] == 128 + signal.SIGTERM
        assert found(home, i)["stopped again"] == found(home, i)["stopped done"] == 0
    err = (home / "0.err").read_text()
    assert "stopped: stopped by SIGTERM; step 6 is saved, the same command goes on" in err
    states = [home / name / "checkpoints" for name in ("whole", "stopped")]
    assert checkpoint.latest(states[0]) == checkpoint.latest(states[1])
    one, other = (arrays(path) for path in states)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    results = [files.read_json(home / name / "metrics.json") for name in ("whole", "stopped")]
    assert results[0]["test"] == results[1]["test"]


def test_processes_that_share_a_bucket_only_have_the_same_bits(home):
    if not (home / "s3-run").exists():
        pytest.skip("moto is not installed: pip install 'emofm_jax[test]'")
    for i in (0, 1):
        assert found(home, i)["s3"] == 128 + signal.SIGTERM
        assert found(home, i)["s3 again"] == found(home, i)["s3 best"] == 0
    err = (home / "0.err").read_text()
    assert "s3://bucket/run: stopped by SIGTERM; step 6 is saved, the same command goes on" in err
    one, other = (arrays(home / name / "checkpoints") for name in ("whole", "s3-run"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    results = [files.read_json(home / name / "metrics.json") for name in ("whole", "s3-run")]
    assert results[0]["test"] == results[1]["test"]
    names = lambda at: {p.relative_to(at).as_posix() for p in at.rglob("*.safetensors")}
    assert names(home / "s3-run") == names(home / "whole")
    train_of = files.read_json(home / "s3-best" / "metrics.json")["train"]
    assert train_of["kept_step"] < train_of["steps"]


def test_processes_that_disagree_say_so_in_one_line(home):
    line = "error: process 1: config.seed is 1 there and 0 in process 0; start all with the same"
    for i in (0, 1):
        assert found(home, i)["other"] == 2
        assert (home / f"{i}.err").read_text().count(line) == 1
    assert not (home / "other").exists()


def test_a_process_that_dies_ends_the_other_with_one_line(home):
    assert (home / "1.code").read_text() == str(-signal.SIGKILL)
    assert (home / "0.code").read_text() == "75"
    lines = [line for line in (home / "0.err").read_text().splitlines() if "error" in line]
    assert lines[-1].startswith("error: process 0 of 2: another process of the run has ended")
    assert (home / "0.err").read_text().endswith(lines[-1] + "\n")


def test_another_number_of_processes_goes_on_at_the_end_of_an_epoch_only(home, capsys):
    assert train.main(arguments(home, "killed")) == 2  # step 6 of 10 or 12 is saved
    err = capsys.readouterr().err
    assert "is in the middle of an epoch that 2 processes share, and there are 1 now" in err
    assert err.rstrip().endswith("may change at the end of an epoch: start 2")


def test_only_the_first_process_writes_and_prints(home):
    assert (home / "1.out").read_text() == ""  # gloo's lines are kept away, too
    assert "Gloo" not in (home / "0.out").read_text()
    assert "2 processes share 4,000 rows in 3 row groups" in (home / "0.out").read_text()
    assert "stopped: the run is finished (" in (home / "0.out").read_text()
    lines = (home / "whole" / "log.jsonl").read_text().splitlines()
    assert len({line for line in lines}) == len(lines)


@pytest.mark.parametrize("flags, said", [
    (("--coordinator=here", "--num_processes=2", "--process_id=0"), "the coordinator is no HOST:PORT"),
    (("--coordinator=here:1", "--num_processes=2", "--process_id=2"), "one of 0 .. 1; give --process_id"),
    (("--coordinator=here:1", "--process_id=0"), "it is not said how many processes; give --num_"),
    (("--process_id=0",), "the coordinator is no HOST:PORT"),
    (("--coordinator=localhost:1", "--num_processes=2", "--process_id=1", "--wait_seconds=1"),
     "nobody answers (Connection refused) after 1 seconds; start process 0 there, or correct"),
])  # fmt: skip
def test_an_address_that_leads_nowhere_is_one_line(tmp_path, capsys, flags, said):
    assert train.main(arguments(tmp_path, "run", *flags)) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def test_processes_with_other_devices_say_so_in_one_line(monkeypatch):
    """Before the first collective, which asks as many of each."""
    told = {"devices/0": "4 x gpu"}
    monkeypatch.setattr(processes, "_place", (1, 2))
    monkeypatch.setattr(processes, "tell", told.__setitem__)
    monkeypatch.setattr(processes, "hear", lambda key, given_up: told[key])
    with pytest.raises(
        UserError, match='^process 1: the number of devices is "1 x cpu" there and "4 x gpu"'
    ):
        processes._check_devices()


def test_who_has_lost_another_process_can_say_so_while_jax_starts(monkeypatch):
    """The abort of C++ code may come while another thread waits for a backend, and for the process that is gone."""
    import jax

    monkeypatch.setattr(processes, "_place", (1, 2))
    for name in ("process_index", "process_count", "devices"):
        monkeypatch.setattr(jax, name, None)
    assert str(processes.lost()).startswith("process 1 of 2: another process of the run has ended")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
