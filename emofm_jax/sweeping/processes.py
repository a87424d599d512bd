"""Trains the runs of a sweep one after another, in this process or in N others.

`python -m emofm_jax.sweeping.processes CPU ...` is one of the N others, on these processors: it reads a run a line on
stdin and answers with a record a line (run.py).
"""

import contextlib
import functools
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from emofm_jax.errors import UserError
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.training import compilation_cache

_STOPPED = (
    130,
    143,
    -signal.SIGINT,
    -signal.SIGTERM,
    -signal.SIGALRM,
)  # exit codes of a process told to stop
_PATIENCE = (
    10  # seconds in which a process that was told to stop leaves its run, before it is ended
)


def execute_all(groups: Sequence[Sequence[dict]], jobs: int, lock: int) -> Iterator[dict]:
    """The records of all runs, as they end.

    Args:
      groups: of runs; those of a group share what is compiled, so a process takes them one after another.
      jobs: processes; with 1 it is this one, whose compiled programs the next runs share too.
      lock: descriptor that the processes keep open: a sweep's workdir is free when all of them have ended.

    Raises:
      SystemExit: told to stop; runs that had begun have saved their state.
    """
    before = _on_terminate(
        _leave if jobs == 1 else lambda *_: sys.exit(143)
    )  # no alarm: the others need their time
    try:
        yield from (
            map(sweep_run.execute, itertools.chain(*groups))
            if jobs == 1
            else _in_processes(groups, jobs, lock)
        )
    finally:
        signal.alarm(0)
        _on_terminate(before)


def _in_processes(groups: Sequence[Sequence[dict]], jobs: int, lock: int) -> Iterator[dict]:
    jobs = min(jobs, sum(map(len, groups)))
    take, done, stop = _share_out(groups), queue.SimpleQueue(), threading.Event()
    processes: set[subprocess.Popen] = set()
    start = [functools.partial(_start, cpus, lock) for cpus in _shares(jobs)]
    threads = [
        threading.Thread(target=_feed, args=(take, done, stop, processes, begin)) for begin in start
    ]
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
            if thread.ident:  # else the stop came before its start
                thread.join()


def _share_out(
    groups: Sequence[Sequence[dict]],
) -> Callable[[deque | None], tuple[dict | None, deque | None]]:
    """take(group the process is at) -> its next run, and the group it is at then; no run when none is left.

    A process stays with a group while it has runs, then begins the next one; when all are begun it helps where most is
    left, so that none is idle while another has hours to go.
    """
    left, lock = [deque(group) for group in groups], threading.Lock()
    fresh = iter(left)

    def take(group):
        with lock:
            group = group or next(fresh, None) or max(left, key=len, default=None)
            return (group.popleft() if group else None), group

    return take


def _feed(take, done, stop, processes, start) -> None:
    """Gives one process run after run, and starts another where it dies; runs in a thread."""
    process = group = None
    try:
        while not stop.is_set():
            run, group = take(group)
            if run is None:
                break
            if process is None:
                process = start()
                processes.add(process)
                if stop.is_set():
                    process.terminate()
            began, line = time.monotonic(), ""
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
                done.put(code if code > 0 else 128 - code)
                return
            if code == 2:  # it has said why on stderr: the disk, not the run
                raise UserError(
                    f"{run['workdir']}: its process could not write; free space and sweep again"
                )
            done.put(sweep_run.record(run, None, _death(run, code), time.monotonic() - began))
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


def _shares(jobs: int) -> list[set[int]]:
    """The processors of each process: its own where there are enough, since two that share theirs slow each other."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return [set()] * jobs
    mine = sorted(os.sched_getaffinity(0))
    return [set(mine[i::jobs] if len(mine) >= jobs else mine) for i in range(jobs)]


def _start(cpus: set[int], lock: int) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false"
    }  # of a GPU that they share
    command = [sys.executable, "-m", "emofm_jax.sweeping.processes", *map(str, cpus)]
    pipe = subprocess.PIPE
    # A group of its own: what the terminal or `timeout` sends to all would else come twice, from them and from here.
    more = {"pass_fds": (lock,), "process_group": 0}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, **more)


def _leave(*_) -> None:
    """Handler of SIGTERM: leaves what runs. The exception is lost if it comes up in a callback of the garbage collector
    or of C++; an alarm sees to that.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would only disturb the end
    signal.alarm(_PATIENCE)
    sys.exit(143)


def _on_terminate(handler):
    """Sets the handler of SIGTERM and returns the one before; does nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def main() -> int:
    """Runs what stdin names until it ends; if it ends within a run, the sweep has died, and so the run stops too."""
    if cpus := {int(cpu) for cpu in sys.argv[1:]}:
        os.sched_setaffinity(0, cpus)  # before jax is loaded, which counts them
    compilation_cache.enable()
    todo, busy = queue.SimpleQueue(), threading.Event()

    def read():
        for line in sys.stdin:
            busy.set()
            todo.put(json.loads(line))
        todo.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    _on_terminate(_leave)
    threading.Thread(target=read, daemon=True).start()
    try:
        while (run := todo.get()) is not None:
            found = sweep_run.execute(run)
            busy.clear()
            print(json.dumps(found), flush=True)
        _on_terminate(
            signal.SIG_IGN
        )  # it comes when all runs are done, and would only disturb the end
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
