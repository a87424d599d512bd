"""Engines: where jobs run. Processes of this machine, or a Ray cluster (docs/scaling.md).

    for result in engine.map(function, jobs)     in the order of the jobs

Function and jobs are picklable and small: what they work on lies in files that all see. A job may
run twice, since a worker that dies is replaced and its jobs are run again; so it writes the same
files each time, each of them at once (`files`).

`python -m emofm_jax.data.engines MODULE` is one of the processes: it loads the module, unless it is
empty, reads pickled jobs on stdin, answers each on stdout, and ends with stdin, at once, when the
program that started it has ended.
"""

import atexit
import contextlib
import importlib
import os
import pickle
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from emofm_jax import errors
from emofm_jax.errors import FileError, LostError, UserError

NAMES = ("local", "ray")
_ATTEMPTS = 3  # of a job whose process dies
_QUEUED = 2  # jobs that a process has at a time: it need not wait for the next one
_AHEAD = 3  # jobs for each process, ahead of the result that is taken next
_ADDRESS = re.compile(r"(?:ray://)?\[?([^/\[\]]+?)\]?:(\d+)")
_LENGTH = struct.Struct("<Q")
_early: list[Any] = []  # processes that nobody has asked for yet

T = TypeVar("T")


class Engine(Protocol):
    """What runs jobs; `num_workers` at a time."""

    num_workers: int

    def map(self, function: Callable[[Any], T], jobs: Sequence[Any]) -> Generator[T, None, None]:
        """Yields function(job) of every job, in order; a few jobs run ahead.

        Raises:
          UserError: as the function does; a worker died several times at one job.
        """
        ...

    def close(self) -> None:
        """Ends the workers."""


def make(name: str, num_workers: int) -> Engine:
    """The engine of a name.

    Args:
      name: one of NAMES.
      num_workers: jobs at a time; 0 = as many as the engine has cores.

    Raises:
      UserError: it is not known, or not installed.
    """
    check(name)
    return Ray(num_workers) if name == "ray" else Local(num_workers or num_cores())


def check(name: str) -> None:
    """Raises UserError if an engine is not known, or not installed; starts nothing."""
    if name not in NAMES:
        raise UserError(f"--engine={name}: it is not known; choose one of {', '.join(NAMES)}")
    if name == "ray":
        _ray()


def begin(argv: Sequence[str], module: str) -> None:
    """Starts the processes that `--workers` names, one a core: they load while this program does.

    They end with it, asked for or not. Else nothing happens: a wrong number is told later. Nor does
    it where another engine has the workers, or with a stream that was closed: its number must be
    free until `cli.run` opens it.

    Args:
      argv: arguments of the program.
      module: that they load, since their first job will need it.
    """
    given = "\n".join(argv)
    named = re.search(r"(?:^|\n)--?workers[=\n](\d{1,9})(?:\n|$)", given)
    is_local = not re.search(r"(?:^|\n)--?engine[=\n](?!local(?:\n|$))", given)
    wanted = min(int(named[1]), num_cores()) if named and is_local else 0
    if wanted < 2 or None in (sys.stdin, sys.stdout, sys.stderr):  # 1: this process does the work
        return

    atexit.register(_end_early)
    with contextlib.suppress(OSError):  # told when they are asked for
        while len(_early) < wanted:
            _early.append(_start(module))


def _end_early() -> None:
    while _early:
        process = _early.pop()
        process.kill()
        process.communicate()


def num_cores() -> int:
    """Processors that this process may use."""
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1


class Local:
    """Processes of this machine, which start when they are needed."""

    def __init__(self, num_workers: int):
        self.num_workers = num_workers
        self._workers = [_Worker() for _ in range(num_workers)]

    def map(self, function: Callable[[Any], T], jobs: Sequence[Any]) -> Generator[T, None, None]:
        """See `Engine`."""
        todo, workers = deque(_Task(i, function, job) for i, job in enumerate(jobs)), self._workers
        answers: dict[int, tuple[str, Any]] = {}
        try:
            for i in range(len(jobs)):
                _hand_out(todo, workers, i)
                while i not in answers:
                    busy = {worker.answers: worker for worker in workers if worker.tasks}
                    for ready in select.select(list(busy), [], [])[0]:
                        busy[ready].take(answers, todo)
                    _hand_out(todo, workers, i)
                yield _result(*answers.pop(i))
        finally:
            for worker in workers:
                if worker.tasks:
                    worker.stop()

    def close(self) -> None:
        """See `Engine`."""
        for worker in self._workers:
            worker.stop()


class Ray:
    """A Ray cluster: that of RAY_ADDRESS, or one of this machine while this program runs.

    Args:
      num_workers: jobs at a time; 0 = as many as the cluster has cores.

    Raises:
      UserError: Ray is not installed, or there is no cluster.
    """

    def __init__(self, num_workers: int):
        ray = self._ray = _ray()
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect(ray, num_workers)
        self.num_workers = num_workers or int(ray.cluster_resources().get("CPU", 1))

    def map(self, function: Callable[[Any], T], jobs: Sequence[Any]) -> Generator[T, None, None]:
        """See `Engine`."""
        # One more try for each death that is tolerated; what a function raises is no death.
        remote = self._ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(_there)
        todo, pending, here = deque(jobs), deque(), os.getcwd()
        try:
            while todo or pending:
                while todo and len(pending) < _AHEAD * self.num_workers:
                    pending.append(remote.remote(here, function, todo.popleft()))
                yield self._result(pending.popleft())
        finally:
            for reference in pending:
                self._ray.cancel(reference)

    def each(self, function: Callable[[Any], T], jobs: Sequence[Any]) -> Generator[T, None, None]:
        """Yields function(job) of every job as they end, `num_workers` at a time, none ahead.

        Each has a GPU, if the cluster has some; else Ray would hide them.

        Raises:
          UserError: as the function does; a worker died several times at one job.
        """
        needs = {"num_gpus": 1} if self._ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        remote = self._ray.remote(max_retries=_ATTEMPTS - 1, **needs)(_there)
        todo, running, here = deque(jobs), [], os.getcwd()

        try:
            while todo or running:
                while todo and len(running) < self.num_workers:
                    running.append(remote.remote(here, function, todo.popleft()))
                ended, running = self._ray.wait(running)
                yield from map(self._result, ended)
        finally:
            for reference in running:
                self._ray.cancel(reference)

    def close(self) -> None:
        """See `Engine`."""
        if self._is_ours:
            self._ray.shutdown()

    def _result(self, reference: Any) -> Any:
        try:
            return _result(*self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise LostError(f"--engine=ray: a job was lost ({reason}); start it again") from None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        remedy = "pip install 'emofm_jax[ray]', or leave --engine out"
        raise UserError(f"--engine=ray: Ray is not installed; {remedy}") from None
    return ray


def _connect(ray: Any, num_workers: int) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address := os.environ.get("RAY_ADDRESS", ""):
        _look(address)
    else:
        options |= {"include_dashboard": False, "num_cpus": num_workers or num_cores()}

    options["runtime_env"] = {"env_vars": {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--engine=ray: no cluster ({reason}); see RAY_ADDRESS") from None


def _look(address: str) -> None:
    """Raises UserError if nobody listens at an address of a cluster: Ray would wait for minutes."""
    if not (found := _ADDRESS.fullmatch(address)):
        return  # "auto", and what Ray may know
    host, port = found.groups()
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        remedy = "start it there, or correct RAY_ADDRESS"
        raise UserError(f"--engine=ray: nobody answers at {address} ({why}); {remedy}") from None


def _there(directory: str, function: Callable, job: Any) -> tuple[str, Any]:
    """Does a job where the program was started: raw files are named as they are seen from there."""
    os.chdir(directory)
    return _answer(pickle.dumps((function, job)))


class _Task:
    """A job of `map`, its number, and how often a process has died at it."""

    def __init__(self, number: int, function: Callable, job: Any):
        self.number, self.deaths = number, 0
        self.content = pickle.dumps((function, job))


class _Worker:
    """A process, and another one in its place when it dies.

    Attributes:
      tasks: that it was given, the first of which it does.
    """

    def __init__(self) -> None:
        self.tasks: deque[_Task] = deque()
        self._process: Any = None  # subprocess.Popen with two pipes

    @property
    def answers(self) -> Any:
        """What its answers can be read from."""
        return self._process.stdout

    def give(self, task: _Task) -> None:
        """Gives it a job."""
        self._process = self._process or (_early.pop() if _early else _start())
        self.tasks.append(task)
        with contextlib.suppress(BrokenPipeError):  # it has died: `take` sees to that
            _send(self._process.stdin, task.content)

    def take(self, answers: dict[int, tuple[str, Any]], todo: deque[_Task]) -> None:
        """Reads the answer to its first job; puts the jobs back if the process has died.

        Raises:
          LostError: processes have died at this job before.
        """
        if (answer := _receive(self._process.stdout)) is None:
            self._lost(todo)
        else:
            answers[self.tasks.popleft().number] = pickle.loads(answer)

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self.tasks.clear()

    def _lost(self, todo: deque[_Task]) -> None:
        code, first = self._process.wait(), self.tasks[0]
        first.deaths += 1
        if first.deaths >= _ATTEMPTS:
            killed = code == -signal.SIGKILL
            why = "killed, perhaps for want of memory" if killed else "see what it printed"
            what = f"a process ended {first.deaths} times at one job, with exit code {code} ({why})"
            raise LostError(f"--workers: {what}; start the same command with fewer")
        todo.extendleft(reversed(self.tasks))
        self.stop()


def _hand_out(todo: deque[_Task], workers: list[_Worker], taken: int) -> None:
    """Gives jobs to the processes that have the fewest, not too far ahead of the result `taken`."""
    while todo and todo[0].number < taken + _AHEAD * len(workers):
        worker = min(workers, key=lambda worker: len(worker.tasks))
        if len(worker.tasks) >= _QUEUED:
            return
        worker.give(todo.popleft())


def _result(kind: str, content: Any) -> Any:
    """What a process has answered; raises what was raised there."""
    if kind == "result":
        return content
    raise content if kind == "said" else RuntimeError(content)


def _send(pipe: Any, content: bytes) -> None:
    """Writes bytes behind their length; `_receive` reads them."""
    whole = memoryview(_LENGTH.pack(len(content)) + content)
    while whole:
        whole = whole[pipe.write(whole) :]


def _receive(pipe: Any) -> bytes | None:
    """What `_send` wrote and no byte more, so that `select` tells of the next; None at the end."""
    found, length = b"", _LENGTH.size
    for is_content in (False, True):
        found = b""
        while len(found) < length:
            if not (piece := pipe.read(length - len(found))):
                return None
            found += piece
        length = length if is_content else _LENGTH.unpack(found)[0]
    return found


def python_path() -> str:
    """PYTHONPATH of a process that is to import this very package."""
    ours = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])


def _start(module: str = "") -> Any:
    # A core each: Arrow and numpy would take all of them in each process.
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = os.environ | {"PYTHONPATH": python_path()} | one
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    # A process group of its own: what the terminal sends to all is for the program alone.
    # Without the working directory, where another package of our name may lie.
    command = [sys.executable, "-P", "-m", "emofm_jax.data.engines", module]
    return subprocess.Popen(command, env=environment, process_group=0, **pipes)


def main() -> NoReturn:
    """Does the jobs that stdin gives, until it ends."""
    given: Any = getattr(sys.stdin.buffer, "raw")  # noqa: B009 (of a stream of bytes)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what is printed is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to all: the program decides, and ends this
    todo: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        while (content := _receive(given)) is not None:
            todo.put(content)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    if module := sys.argv[1]:
        importlib.import_module(module)
    while True:
        with contextlib.suppress(BrokenPipeError):  # `read` sees to that
            _send(answers, pickle.dumps(_answer(todo.get())))


def _answer(content: bytes) -> tuple[str, Any]:
    """Does a job; returns what `_result` takes."""
    try:
        function, job = pickle.loads(content)
        return "result", function(job)
    except UserError as error:
        return "said", error
    except Exception as error:
        if line := errors.said(error):
            return "said", FileError(line)
        return "failed", traceback.format_exc()


if __name__ == "__main__":
    main()
