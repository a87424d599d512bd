"""The processes of a sweep: what they do when one of them is killed."""

import os
import subprocess
import sys

from emofm_jax import workers


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
