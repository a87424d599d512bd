"""Trains the runs of a sweep one after another, in this process or in N others.

    a process:  starts -- takes a run -- gives its result -- takes the next -- none is left: ends
      dies                    its run has failed; another process takes the next run
      cannot write            the sweep ends with an error: it is the disk, not the run
      is told to stop         the sweep stops: every process saves its state and ends
      the sweep dies          stdin ends within a run: the process tells itself to stop
      does not stop in time   an alarm ends it

A process holds the lock of the sweep's workdir: that is free when the last process has ended.

`python -m emofm_jax.sweeping.processes CPU ...` is one of the N others, on these processors: it
reads a run a line on stdin and answers with a result a line (run.py).
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
from typing import Any

from emofm_jax.errors import UserError
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.record import Result
from emofm_jax.sweeping.run import Run
from emofm_jax.training import compilation_cache

# Exit codes of a process that was told to stop.
_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGALRM)

_PATIENCE = 10  # seconds in which a process that was told to stop leaves its run

# take(group that a process is at) -> its next run, and the group it is at then.
_Take = Callable[[deque[Run] | None], tuple[Run | None, deque[Run] | None]]


def execute_all(groups: Sequence[Sequence[Run]], jobs: int, lock: int) -> Iterator[Result]:
    """Yields the results of all runs, as they end.

    Args:
      groups: of runs; those of a group share what is compiled, so a process takes them one after
        another.
      jobs: processes; with 1 it is this one, whose compiled programs the next runs share too.
      lock: descriptor that the processes keep open.

    Raises:
      SystemExit: told to stop; runs that had begun have saved their state.
      UserError: a process could not write.
    """
    # Without an alarm where there are others, which need their time.
    before = _on_terminate(_leave if jobs == 1 else lambda *_: sys.exit(143))
    try:
        if jobs == 1:
            yield from map(sweep_run.execute, itertools.chain(*groups))
        else:
            yield from _in_processes(groups, jobs, lock)
    finally:
        signal.alarm(0)
        _on_terminate(before)


def _in_processes(groups: Sequence[Sequence[Run]], jobs: int, lock: int) -> Iterator[Result]:
    """A thread a process; an exit code or an error among what they give ends the sweep."""
    total = sum(map(len, groups))
    done: queue.SimpleQueue[Result | int | Exception] = queue.SimpleQueue()
    processes: set[subprocess.Popen] = set()
    stop, take = threading.Event(), _share_out(groups)
    threads = []
    for cpus in _shares(min(jobs, total)):
        start = functools.partial(_start, cpus, lock)
        threads.append(threading.Thread(target=_feed, args=(take, done, stop, processes, start)))

    try:
        for thread in threads:
            thread.start()
        for _ in range(total):
            found = done.get()
            if isinstance(found, int):
                sys.exit(found)
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        stop.set()
        for process in list(processes):  # they save what they have
            process.terminate()
        for thread in threads:
            if thread.ident:  # else the stop came before its start
                thread.join()


def _share_out(groups: Sequence[Sequence[Run]]) -> _Take:
    """What gives processes their runs; no run when none is left.

    A process stays with a group while it has runs, then begins the next one; when all are begun it
    helps where most is left, so that none is idle while another has hours to go.
    """
    left, lock = [deque(group) for group in groups], threading.Lock()
    fresh = iter(left)

    def take(group: deque[Run] | None) -> tuple[Run | None, deque[Run] | None]:
        with lock:
            group = group or next(fresh, None) or max(left, key=len, default=None)
            return (group.popleft() if group else None), group

    return take


def _feed(
    take: _Take,
    done: queue.SimpleQueue,
    stop: threading.Event,
    processes: set[subprocess.Popen],
    start: Callable[[], subprocess.Popen],
) -> None:
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

            began = time.monotonic()
            if line := _ask(process, run):
                done.put(Result.from_json(json.loads(line)))
                continue

            code = process.wait()
            processes.discard(process)
            process = None
            if stop.is_set() or code in _STOPPED:
                done.put(code if code > 0 else 128 - code)
                return
            if code == 2:  # it has said why on stderr: the disk, not the run
                what = f"{run.workdir}: its process could not write"
                raise UserError(f"{what}; free space and sweep again")
            error = _death(run, code)
            done.put(sweep_run.end(run, error=error, seconds=time.monotonic() - began))
    except Exception as error:  # raised where the results are read
        done.put(error)
    finally:
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()
            processes.discard(process)


def _ask(process: subprocess.Popen, run: Run) -> str:
    """The process's answer to a run; empty if it dies of it."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(run.to_json()) + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    return ""


def _death(run: Run, code: int) -> str:
    why = "killed, perhaps for want of memory" if code == -signal.SIGKILL else "see what it printed"
    what = f"{run.workdir}: its process ended with exit code {code} ({why})"
    return f"{what}; choose a smaller model or fewer --jobs"


def _shares(jobs: int) -> list[set[int]]:
    """The processors of each process.

    Its own where there are enough, since two that share theirs slow each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return [set()] * jobs
    mine = sorted(os.sched_getaffinity(0))
    return [set(mine[i::jobs] if len(mine) >= jobs else mine) for i in range(jobs)]


def _start(cpus: set[int], lock: int) -> subprocess.Popen:
    # They share a GPU: none may take all of its memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", "emofm_jax.sweeping.processes", *map(str, cpus)]

    # A process group of its own: what the terminal or `timeout` sends to all would else come twice,
    # from them and from here.
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        pass_fds=(lock,),
        process_group=0,
    )


def _leave(*_: Any) -> None:
    """Handler of SIGTERM: leaves what runs.

    The exception is lost if it comes up in a callback of the garbage collector or of C++; an alarm
    sees to that.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would only disturb the end
    signal.alarm(_PATIENCE)
    sys.exit(143)


def _on_terminate(handler: Any) -> Any:
    """Sets the handler of SIGTERM and returns the one before; does nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def main() -> int:
    """Runs what stdin names until it ends; if it ends within a run, the sweep has died: it stops."""
    if cpus := {int(cpu) for cpu in sys.argv[1:]}:
        os.sched_setaffinity(0, cpus)  # before jax is loaded, which counts them
    compilation_cache.enable()
    todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            busy.set()
            todo.put(line)
        todo.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    _on_terminate(_leave)
    threading.Thread(target=read, daemon=True).start()
    try:
        while (line := todo.get()) is not None:
            result = sweep_run.execute(Run.from_json(json.loads(line)))
            busy.clear()
            print(json.dumps(result.to_json()), flush=True)
        _on_terminate(signal.SIG_IGN)  # all runs are done: it would only disturb the end
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
