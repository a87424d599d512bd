"""Trains the runs of a sweep one after another, in this process, in N others, or on a Ray cluster.

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
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from emofm_jax import errors
from emofm_jax.data import engines, files, storage
from emofm_jax.errors import FileError
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.record import Result
from emofm_jax.sweeping.run import Run
from emofm_jax.training import compilation_cache

# Exit codes of a process that was told to stop.
_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGALRM)
_PATIENCE = 10  # seconds in which a process that was told to stop leaves its run
_REFUSED = "refused"  # key of an answer that is no result: why a file could not be written
_SAVING = 120  # seconds in which a run that was told to stop saves its state

_Take = Callable[[deque[Run]], deque[Run]]


def execute_all(
    groups: Sequence[Sequence[Run]],
    jobs: int,
    lock: int,
    engine: str = "local",
    name_of: Callable[[Run], str] = lambda run: str(run.workdir),
) -> Generator[Result, None, None]:
    """Yields the results of all runs, as they end.

    Args:
      groups: of runs that share what is compiled: a process takes them one after another.
      jobs: processes; with 1 it is this one, whose compiled programs the next runs share too.
      lock: descriptor that the processes keep open.
      engine: "ray" for processes of a cluster, whose runs lie where all its machines see them.
      name_of: what these call the workdir of a run.

    Raises:
      SystemExit: told to stop; runs that had begun have saved their state.
      FileError: a process could not write.
      UserError: there is no cluster, or a run was lost there.
    """
    # No alarm where there are others, which need their time.
    alone = jobs == 1 and engine == "local"
    before = _on_terminate(_leave if alone else lambda *_: sys.exit(143))
    try:
        if engine != "local":
            yield from _on_cluster(groups, jobs, name_of)
        elif alone:
            yield from map(sweep_run.execute, itertools.chain(*groups))
        else:
            yield from _in_processes(groups, jobs, lock)
    finally:
        signal.alarm(0)
        _on_terminate(before)


def _on_cluster(
    groups: Sequence[Sequence[Run]], jobs: int, name_of: Callable[[Run], str]
) -> Iterator[Result]:
    with contextlib.closing(engines.Ray(jobs)) as cluster:
        _on_terminate(lambda *_: sys.exit(143))  # Ray has set its own
        told = [(run.to_json(), name_of(run)) for run in itertools.chain(*groups)]
        try:
            with contextlib.closing(cluster.each(_execute, told)) as found:
                yield from map(Result.from_json, found)
        except SystemExit:  # where Ray waits it makes another one of it
            sys.exit(143)


def _execute(told: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """A run, on any machine of a cluster; at s3:// it is published alone, for the sweep to take."""
    body, name = told
    compilation_cache.enable()
    with storage.told():
        workdir = storage.writing(name, is_run=True)
        try:
            result = sweep_run.execute(Run.from_json(body | {"workdir": workdir}))
            storage.publish(workdir)
            return result.to_json()
        finally:
            if storage.is_remote(name):  # the process may go on with other runs
                storage.forget()


def _in_processes(groups: Sequence[Sequence[Run]], jobs: int, lock: int) -> Iterator[Result]:
    take, jobs = _share_out(groups), min(jobs, sum(map(len, groups)))
    processes = [_Process(cpus, lock) for cpus in _shares(jobs)]
    try:
        for process in processes:
            process.give(take)
        while busy := {process.answers: process for process in processes if process.run}:
            for answered in select.select(list(busy), [], [])[0]:
                result = busy[answered].result()
                busy[answered].give(take)
                yield result
    finally:
        for process in processes:
            process.stop()
        for process in processes:
            process.wait()


def _share_out(groups: Sequence[Sequence[Run]]) -> _Take:
    """What says where the next run of a process comes from, given the group that it was at.

    A process stays with a group while it has runs, then begins the next one; when all are begun it
    helps where most is left, so that none is idle while another has hours to go.
    """
    left = [deque(group) for group in groups]
    fresh = iter(left)
    return lambda group: group or next(fresh, group) or max(left, key=len)


class _Process:
    """A process on some processors, and another one in its place when it dies.

    Attributes:
      run: that it trains now; None when no run is left.
    """

    def __init__(self, cpus: set[int], lock: int):
        self._cpus, self._lock = cpus, lock
        self._process: Any = None  # subprocess.Popen with two pipes
        self._group: deque[Run] = deque()
        self.run: Run | None = None

    @property
    def answers(self) -> Any:
        """What its results can be read from."""
        return self._process.stdout

    def give(self, take: _Take) -> None:
        """Gives it its next run, if one is left."""
        self._group = take(self._group)
        self.run, self._began = None, time.monotonic()
        if not self._group:
            self.stop()  # its memory is free for the others
            return

        self.run = self._group.popleft()
        self._process = self._process or self._start()
        with contextlib.suppress(BrokenPipeError):  # it has died: `result` sees to that
            self._process.stdin.write(json.dumps([self.run.to_json(), files.shown()]) + "\n")
            self._process.stdin.flush()

    def result(self) -> Result:
        """Waits for the result of its run, which has failed if the process dies."""
        assert self.run
        if line := self._process.stdout.readline():
            body = json.loads(line)
            if _REFUSED in body:
                raise FileError(body[_REFUSED])
            return Result.from_json(body)

        code, self._process = self._process.wait(), None
        if code in _STOPPED:
            sys.exit(code if code > 0 else 128 - code)

        killed = code == -signal.SIGKILL
        why = "killed, perhaps for want of memory" if killed else "see what it printed"
        what = f"{self.run.workdir}: its process ended with exit code {code} ({why})"
        error = f"{what}; choose a smaller model or fewer --jobs"
        return sweep_run.end(self.run, error=error, seconds=time.monotonic() - self._began)

    def stop(self) -> None:
        """Tells it to save what it has and to end."""
        if self._process is not None:
            # Within a run it then tells itself to stop. A signal from here too would be its second,
            # which ends it before the state is saved.
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def wait(self) -> None:
        """Waits until it has ended."""
        if self._process is not None:
            self._process.stdout.read()
            self._process.wait()

    def _start(self) -> Any:
        # They share a GPU: none may take all of its memory.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment["PYTHONPATH"] = engines.python_path()
        name = "emofm_jax.sweeping.processes"
        command = [sys.executable, "-P", "-m", name, *map(str, self._cpus)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

        # A process group of its own: what the terminal or `timeout` sends to all would else come
        # twice, from them and from here.
        more: Any = {"pass_fds": (self._lock,), "process_group": 0}
        return subprocess.Popen(command, env=environment, **pipes, **more)


def _shares(jobs: int) -> list[set[int]]:
    """The processors of each process.

    Its own where there are enough, since two that share theirs slow each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return [set()] * jobs
    mine = sorted(os.sched_getaffinity(0))
    return [set(mine[i::jobs] if len(mine) >= jobs else mine) for i in range(jobs)]


def _leave(*_: Any) -> None:
    """Handler of SIGTERM: leaves what runs.

    The exception is lost if it comes up in a callback of the garbage collector or of C++; an alarm
    sees to that.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would only disturb the end
    signal.alarm(_PATIENCE)
    sys.exit(143)


def _on_terminate(handler: Any) -> Any:
    """Sets the handler of SIGTERM in the main thread, and returns the one before."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def main() -> int:
    """Trains what stdin names until that ends; within a run that means that the sweep has died."""
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
            signal.alarm(_SAVING)
            os.kill(os.getpid(), signal.SIGTERM)

    _on_terminate(_leave)
    threading.Thread(target=read, daemon=True).start()
    try:
        while (line := todo.get()) is not None:
            body, shown = json.loads(line)
            files.show_all(shown)
            result = sweep_run.execute(Run.from_json(body))
            busy.clear()
            print(json.dumps(result.to_json()), flush=True)
    except KeyboardInterrupt:
        return 130
    except (FileError, OSError) as error:
        busy.clear()
        print(json.dumps({_REFUSED: errors.said(error)}), flush=True)
        return 2
    finally:
        _on_terminate(signal.SIG_IGN)  # no run is left: it would only disturb the end
    return 0


if __name__ == "__main__":
    sys.exit(main())
