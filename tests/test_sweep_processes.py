"""The processes of a sweep: what they do when one of them is killed, or when all are told to stop."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections import deque
from pathlib import Path

import pytest

from emofm_jax import config, sweep
from emofm_jax.data import files
from emofm_jax.sweeping import processes
from emofm_jax.sweeping.run import Run
from emofm_jax.training import workdir as workdir_lib

# A network that is traced and compiled quickly: each process does it anew.
SWEEP = f"""
from emofm_jax import points

def get_config(arg=""):
    c = points.load({str(Path(__file__).with_name("tiny.py"))!r}).get_config("fm")
    c.prepare.synthetic.rows = (600, 300, 300)
    return c

def sweep(arg=""):
    yield "one", {{}}
    yield "other", {{"optim.network.learning_rate": 0.1}}
"""
LINE = {"status": "ok", "overrides": {}, "metrics": {"valid": {}}}  # of results.jsonl, in part


def run(directory: Path, point: str, seed: int) -> Run:
    """A run that nobody trains."""
    return Run(point, seed, {}, config.default(), directory / f"{point}-{seed}")


def test_a_process_that_dies_fails_its_run_and_another_takes_over(tmp_path, monkeypatch):
    code = "import json, os, sys\nfor line in sys.stdin:\n run, _ = json.loads(line)\n"
    code += " if run['seed']: os.kill(os.getpid(), 9)\n"
    code += f" line = {LINE} | {{'point': run['point'], 'seed': run['seed']}}\n"
    code += " print(json.dumps({'line': line, 'config': {}}), flush=True)"
    start = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess,
        "Popen",
        lambda command, **kw: start([sys.executable, "-c", code], **kw),
    )
    groups = [[run(tmp_path, point, seed) for seed in (0, 1)] for point in "ab"]
    with open(os.devnull) as lock:
        ended = list(processes.execute_all(groups, 2, lock.fileno()))
    found = {(result.point, result.seed): result for result in ended}
    assert all(found[point, 0].ok and not found[point, 1].ok for point in "ab")
    killed = "exit code -9 (killed, perhaps for want of memory)"
    assert all(killed in found[point, 1].error for point in "ab")


def test_a_process_that_is_stopped_stops_the_sweep(tmp_path, monkeypatch):
    code, start = "import os\ninput()\nos.kill(os.getpid(), 15)", subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess,
        "Popen",
        lambda command, **kw: start([sys.executable, "-c", code], **kw),
    )
    groups = [[run(tmp_path, point, 0)] for point in "ab"]
    with open(os.devnull) as lock, pytest.raises(SystemExit) as stop:
        list(processes.execute_all(groups, 2, lock.fileno()))
    assert stop.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("order", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_ends_with_its_processes(tmp_path, order):
    (tmp_path / "quick.py").write_text(SWEEP)
    flags = ["--config=quick.py", "--workdir=stopped", "--jobs=2", "--config.train.epochs=100000"]
    command = [sys.executable, "-m", "emofm_jax.sweep", *flags]
    pipes, end = (
        {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        time.monotonic() + 120,
    )
    # A shell that starts the tests in the background has them ignore SIGINT.
    pipes |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=tmp_path, process_group=0, **pipes) as process:
        try:
            while not (begun := list(tmp_path.glob("stopped/runs/*/*/log.jsonl"))):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            os.killpg(process.pid, order)  # as `timeout` does
            assert "the same command goes on" in process.communicate(timeout=180)[1]
        finally:
            process.kill()  # else a failure would wait for ever
    assert process.returncode == 128 + order
    with workdir_lib.alone(tmp_path / "stopped"):  # no process is left that holds it
        assert not list(tmp_path.glob("stopped/runs/*/*/result.json"))
    assert all(list(path.parent.glob("checkpoints/step_*")) for path in begun)


LOST = """
import gc, os, signal, sys
from emofm_jax.data import files
from emofm_jax.sweeping import processes
from emofm_jax.sweeping import run as sweep_run

def execute(run):  # is told to stop within a callback, where the exception of the handler is lost
    def collected(phase, info):
        gc.callbacks.remove(collected)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
    gc.callbacks.append(collected)
    gc.collect()
    left = signal.alarm(1)  # of an alarm that must be set by now; not so long, for a test
    print("goes on", *os.sched_getaffinity(0), 0 < left <= 600, flush=True)
    while True:
        pass

sweep_run.execute, processes._PATIENCE = execute, 600
sys.exit(processes.main())
"""


def test_a_process_stays_on_its_processor_and_ends_though_the_order_to_stop_is_lost(tmp_path):
    cpu = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", LOST, str(cpu)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            process.stdin.write(json.dumps([run(tmp_path, "a", 0).to_json(), {}]) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"goes on {cpu} True\n"
            assert process.wait(timeout=60) == -signal.SIGALRM
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("jobs", "shares"), [(1, [{3, 5, 6}]), (2, [{3, 6}, {5}]), (4, [{3, 5, 6}] * 4)]
)
def test_processes_have_processors_of_their_own_where_there_are_enough(monkeypatch, jobs, shares):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {5, 3, 6}, raising=False)
    assert processes._shares(jobs) == shares


def test_a_process_that_cannot_write_ends_without_a_word_more(tmp_path):
    """Once it has said why, the sweep tells it to stop: it is in what jax does at the end then."""
    code = """
import atexit, sys, time
from emofm_jax.errors import FileError
from emofm_jax.sweeping import processes

def execute(run):
    raise FileError("a: cannot be written")

processes.sweep_run.execute = execute
atexit.register(time.sleep, 1)
sys.exit(processes.main())
"""
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        process.stdin.write(json.dumps([run(tmp_path, "one", 0).to_json(), {}]) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"refused": "a: cannot be written"}
        process.stdin.close()
        assert process.wait() == 2 and process.stderr.read() == ""


def test_processes_take_points_and_help_where_most_is_left():
    take = processes._share_out([["a0", "a1", "a2"], ["b0"], ["c0", "c1", "c2", "c3"]])
    mine, theirs = take(deque()), take(deque())
    assert (mine.popleft(), theirs.popleft()) == ("a0", "b0")
    for wanted in ("c0", "c1", "c2"):  # the other one is through with its point: it begins the last
        theirs = take(theirs)
        assert theirs.popleft() == wanted
    mine = take(mine)
    assert mine.popleft() == "a1"
    for wanted in ("c3", "a2"):
        theirs = take(theirs)
        assert theirs.popleft() == wanted
    assert not take(theirs) and not take(mine)


def test_a_cluster_has_the_numbers_of_one_process(tmp_path, monkeypatch):
    """Not part of a usual run: Ray is an extra, and takes 15 seconds to start."""
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.py").write_text(SWEEP)
    found = []
    for engine in ("local", "ray"):
        flags = [f"--workdir={engine}", f"--engine={engine}", "--jobs=2"]
        assert sweep.main(["sweep", "--config=quick.py", *flags]) == 0
        runs = sorted(Path(engine, "runs").rglob("metrics.json"))
        found.append([files.read_json(path)["test"] for path in runs])
    assert found[0] == found[1] and len(found[0]) > 1


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--engine=spark"], "--engine=spark: it is not known; choose one of local, ray"),
        (["--engine=ray"], "Ray is not installed; pip install 'emofm_jax[ray]'"),
        (
            ["--engine=ray", "--search=tpe", "--trials=2"],
            "a search trains one point after the other",
        ),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.setitem(
        sys.modules, "ray", types.ModuleType("ray") if "--trials=2" in flags else None
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.py").write_text(SWEEP)
    assert sweep.main(["sweep", "--config=quick.py", "--workdir=x", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --engine") and said in error and error.count("\n") == 1
    assert not Path("x").exists()
