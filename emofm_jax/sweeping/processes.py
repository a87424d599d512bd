"""Trains the runs of a sweep one after another, in this process or in N others.

    a process:  starts -- takes a run -- gives its result -- takes the next -- none is left: ends
      dies                    its run has failed; another process takes the next run
      cannot write            the sweep ends with an error: it is the disk, not the run
      is told to stop         the sweep stops: every process saves its state and ends
      the sweep dies          stdin ends within a run: the process tells itself to stop
      does not stop in time   an alarm ends it

Every process holds the lock of the sweep's workdir: it is free when the last one has ended.

`python -m emofm_jax.sweeping.processes CPU ...` is one of the N others, on these processors: it
reads a run a line on stdin and answers with a result a line.
"""

import contextlib
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
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from emofm_jax.errors import UserError
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.record import Result
from emofm_jax.sweeping.run import Run
from emofm_jax.training import compilation_cache

# Exit codes of a process that was told to stop.
_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGALRM)
_PATIENCE = 10  # seconds in which a process that was told to stop leaves its run


def execute_all(
    groups: Sequence[Sequence[Run]], jobs: int, lock: int
) -> Generator[Result, None, None]:
    """Yields the results of all runs, as they end.

    Args:
      groups: of runs that share what is compiled: a process takes them one after another.
      jobs: processes; with 1 it is this one, whose compiled programs the next runs share too.
      lock: descriptor that the processes keep open.

    Raises:
      SystemExit: told to stop; runs that had begun have saved their state.
      UserError: a process could not write.
    """
    # No alarm where there are others, which need their time.
    before = _on_terminate(_leave if jobs == 1 else lambda *_: sys.exit(143))
    try:
        if jobs == 1:
            yield from map(sweep_run.execute, itertools.chain(*groups))
        else:
            yield from _Processes(groups, jobs, lock).results()
    finally:
        signal.alarm(0)
        _on_terminate(before)


class _Processes:
    """N processes, each fed by a thread of its own; arguments as of `execute_all`."""

    def __init__(self, groups: Sequence[Sequence[Run]], jobs: int, lock: int):
        self._left = [deque(group) for group in groups]
        self._fresh = iter(self._left)
        self._total = sum(map(len, groups))
        self._jobs, self._lock = min(jobs, self._total), lock
        self._taking, self._stop = threading.Lock(), threading.Event()
        self._alive: set[subprocess.Popen] = set()
        # An exit code or an error ends the sweep.
        self._done: queue.SimpleQueue[Result | int | Exception] = queue.SimpleQueue()

    def results(self) -> Iterator[Result]:
        """Yields the results as they end."""
        shares = _shares(self._jobs)
        threads = [threading.Thread(target=self._feed, args=(cpus,)) for cpus in shares]
        try:
            for thread in threads:
                thread.start()
            for _ in range(self._total):
                found = self._done.get()
                if isinstance(found, int):
                    sys.exit(found)
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            self._stop.set()
            for process in list(self._alive):  # they save what they have
                process.terminate()
            for thread in threads:
                if thread.ident:  # else the stop came before its start
                    thread.join()

    def take(self, group: deque[Run] | None) -> tuple[Run | None, deque[Run] | None]:
        """Returns the next run of a process that is at `group`, and the group it is at then.

        A process stays with a group while it has runs, then begins the next one; when all are begun
        it helps where most is left, so that none is idle while another has hours to go.
        """
        with self._taking:
            group = group or next(self._fresh, None) or max(self._left, key=len, default=None)
            return (group.popleft() if group else None), group

    def _feed(self, cpus: set[int]) -> None:
        """Gives one process run after run, and starts another where it dies."""
        process = group = None
        try:
            while not self._stop.is_set():
                run, group = self.take(group)
                if run is None:
                    break
                if process is None:
                    process = _start(cpus, self._lock)
                    self._alive.add(process)
                    if self._stop.is_set():
                        process.terminate()

                began = time.monotonic()
                if line := _ask(process, run):
                    self._done.put(Result.from_json(json.loads(line)))
                    continue

                self._bury(process, run, time.monotonic() - began)
                process = None
        except Exception as error:  # raised where the results are read
            self._done.put(error)
        finally:
            if process is not None:
                _dismiss(process)
                self._alive.discard(process)

    def _bury(self, process: subprocess.Popen, run: Run, seconds: float) -> None:
        """Ends the run of a process that has died, or the sweep."""
        code = process.wait()
        self._alive.discard(process)
        if self._stop.is_set() or code in _STOPPED:
            self._stop.set()
            self._done.put(code if code > 0 else 128 - code)
            return
        if code == 2:  # it has said why on stderr
            what = f"{run.workdir}: its process could not write"
            raise UserError(f"{what}; free space and sweep again")

        killed = code == -signal.SIGKILL
        why = "killed, perhaps for want of memory" if killed else "see what it printed"
        what = f"{run.workdir}: its process ended with exit code {code} ({why})"
        error = f"{what}; choose a smaller model or fewer --jobs"
        self._done.put(sweep_run.end(run, error=error, seconds=seconds))


def _ask(process: subprocess.Popen, run: Run) -> str:
    """The process's answer to a run; empty if it dies of it."""
    assert process.stdin and process.stdout  # pipes
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(run.to_json()) + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    return ""


def _dismiss(process: subprocess.Popen) -> None:
    """Closes its stdin, upon which it ends, and waits for that."""
    assert process.stdin  # a pipe
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.wait()


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
