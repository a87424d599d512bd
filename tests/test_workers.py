"""The processes of a sweep: what they do when one of them is killed, or when all are told to stop."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from emofm_jax import train, workers

SWEEP = Path(__file__).parent / "tiny_sweep.py"


def test_a_process_that_dies_fails_its_run_and_another_takes_over(tmp_path, monkeypatch):
    code = "import json, os, sys\nfor line in sys.stdin:\n run = json.loads(line)\n"
    code += " if run['seed']: os.kill(os.getpid(), 9)\n"
    code += " print(json.dumps({'line': {'point': run['point'], 'seed': run['seed'], 'status': 'ok'}}), flush=True)"
    start = subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", lambda command, **kw: start([sys.executable, "-c", code], **kw))
    groups = [
        [
            {"point": p, "seed": s, "overrides": {}, "config": {}, "workdir": str(tmp_path / f"{p}-{s}"), "place": ""}
            for s in (0, 1)
        ]
        for p in "ab"
    ]
    with open(os.devnull) as lock:
        found = {
            (r["line"]["point"], r["line"]["seed"]): r["line"] for r in workers.execute_all(groups, 2, lock.fileno())
        }
    assert [found[p, 0]["status"] for p in "ab"] == ["ok", "ok"]
    assert all("exit code -9 (killed, perhaps for want of memory)" in found[p, 1]["error"] for p in "ab")


def test_a_sweep_that_is_stopped_ends_with_its_processes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "emofm_jax.sweep",
        f"--config={SWEEP}",
        "--workdir=stopped",
        "--jobs=2",
        "--config.train.epochs=100000",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("stopped/runs/*/*/log.jsonl")):
            time.sleep(0.05)
        process.terminate()
        assert "the same command goes on" in process.communicate()[1]
    assert process.returncode == 143
    with train.alone(tmp_path / "stopped"):  # no process is left that holds it
        assert not list(tmp_path.glob("stopped/runs/*/*/result.json"))
    attempts = [json.loads(path.read_text()) for path in tmp_path.glob("stopped/runs/*/*/attempt.json")]
    assert attempts and all(attempt["deaths"] == 0 and attempt["seconds"] > 0 for attempt in attempts)
