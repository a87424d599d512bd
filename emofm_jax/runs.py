"""Trains the runs of a sweep one after another, in this process or in N others; each leaves result.json in its workdir.

A run is a dict that JSON can hold: {"point", "seed", "overrides", "config", "workdir", "place", "keep"} (`workdir` from
where the program was started, `place` from the workdir of the sweep; `keep`: checkpoints stay). Its record, also in
result.json, is {"line": its line of results.jsonl, "config": {dotted field: value}}. What training prints goes to
train.log.

`python -m emofm_jax.runs` is one of the N others: it reads a run a line on stdin and answers with a record a line.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from emofm_jax import config as config_lib
from emofm_jax import train
from emofm_jax.errors import UserError

_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes of a process that was told to stop


def execute(run: dict) -> dict:
    """Trains a run, or goes on with it; returns its record. An error is part of the record: the next run can do better.

    Raises:
      SystemExit: after SIGTERM or SIGINT, with the state saved; there is no record then.
      OSError: the workdir cannot be written.
    """
    workdir, start = Path(run["workdir"]), time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    metrics = error = None
    with (
        open(workdir / "train.log", "a", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            config = config_lib.from_dict(json.loads(json.dumps(run["config"])))
            metrics = train.run(config, workdir)
        except UserError as mistake:
            error = str(mistake)
        except OSError:
            raise
        except Exception as bug:  # whatever it is, the other runs can go on
            traceback.print_exc()
            error = f"{type(bug).__name__}: {bug}"
        if error:
            print("error:", error)
    found = record(run, metrics, error, time.monotonic() - start)
    if not error and not run["keep"]:
        shutil.rmtree(workdir / "checkpoints")
    return found


def record(run: dict, metrics: dict | None, error: str | None, seconds: float) -> dict:
    """Makes the record of a run that has ended, and keeps it in the run's workdir."""
    line = {
        "point": run["point"],
        "seed": run["seed"],
        "status": "ok" if error is None else "failed",
        "error": None if error is None else " ".join(error.split()),
        "overrides": run["overrides"],
        "metrics": metrics,
        "seconds": round(seconds, 3),
        "workdir": run["place"],
    }
    found = {"line": line, "config": as_json(run["config"])}
    workdir = Path(run["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "result.json.tmp").write_text(json.dumps(found) + "\n")
    (workdir / "result.json.tmp").replace(workdir / "result.json")
    return found


def recorded(run: dict) -> dict | None:
    """The record of a run that has ended, if it was of this config."""
    path = Path(run["workdir"]) / "result.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        same = found["config"] == as_json(run["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); delete it, the run is then looked at again") from None
    if not same:
        return None
    # What the base of the sweep is, and where the workdir lies, may have changed since.
    found["line"] |= {"overrides": json.loads(json.dumps(run["overrides"])), "workdir": run["place"]}
    return found


def as_json(config) -> dict:
    """{dotted field: value} as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(config_lib.flatten(config)))


def execute_all(groups: Sequence[Sequence[dict]], jobs: int, lock: int) -> Iterator[dict]:
    """The records of all runs, as they end.

    Args:
      groups: of runs; those of a group share what is compiled, so one process takes them one after another.
      jobs: processes; with 1 it is this one.
      lock: descriptor that the processes keep open: a sweep's workdir is free when all of them have ended.

    Raises:
      SystemExit: told to stop; runs that had begun have saved their state.
    """
    if jobs == 1:
        for group in groups:
            for run in group:
                yield execute(run)
        return
    todo, done, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for group in groups:
        todo.put(group)
    processes: set[subprocess.Popen] = set()
    threads = [threading.Thread(target=_feed, args=(todo, done, stop, processes, jobs, lock)) for _ in range(jobs)]
    before = _on_terminate(lambda *_: sys.exit(143))
    try:
        for thread in threads:
            thread.start()
        for _ in range(sum(map(len, groups))):
            found = done.get()
            if isinstance(found, int):
                sys.exit(found)
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        stop.set()
        for process in list(processes):  # they save what they have
            process.terminate()
        for thread in threads:
            thread.join()
        _on_terminate(before)


def _feed(todo, done, stop, processes, jobs, lock) -> None:
    """Gives one process group after group, and starts another where it dies; runs in a thread."""
    process = None
    try:
        while not stop.is_set():
            try:
                group = todo.get_nowait()
            except queue.Empty:
                break
            for run in group:
                if process is None:
                    process = _start(jobs, lock)
                    processes.add(process)
                    if stop.is_set():
                        process.terminate()
                start, line = time.monotonic(), ""
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(run) + "\n")
                    process.stdin.flush()
                    line = process.stdout.readline()
                if line:
                    done.put(json.loads(line))
                    continue
                code = process.wait()
                processes.discard(process)
                process = None
                if stop.is_set() or code in _STOPPED:
                    done.put(abs(code))
                    return
                if code == 2:  # it has said why on stderr: the disk, not the run
                    raise UserError(f"{run['workdir']}: its process could not write; free space and sweep again")
                done.put(record(run, None, _death(run, code), time.monotonic() - start))
    except Exception as error:  # raised where the records are read
        done.put(error)
    finally:
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()
            processes.discard(process)


def _death(run: dict, code: int) -> str:
    why = "killed, perhaps for want of memory" if code == -signal.SIGKILL else "see what it printed"
    return f"{run['workdir']}: its process ended with exit code {code} ({why}); choose a smaller model or fewer --jobs"


def _start(jobs: int, lock: int) -> subprocess.Popen:
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # of a GPU that they share
    command = [sys.executable, "-m", "emofm_jax.runs"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, pass_fds=(lock,))


def _on_terminate(handler):
    """Sets the handler of SIGTERM and returns the one before; does nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def main() -> int:
    """Runs what stdin names until it ends; if it ends within a run, the sweep has died, and so the run stops too."""
    runs, busy = queue.SimpleQueue(), threading.Event()

    def read():
        for line in sys.stdin:
            busy.set()
            runs.put(json.loads(line))
        runs.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (run := runs.get()) is not None:
            found = execute(run)
            busy.clear()
            print(json.dumps(found), flush=True)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
