"""A file system of pyarrow.fs whose n-th operation fails, or is the last that its program does.

Faulty(system, 7)                     operation 7 fails, nothing having been done
Faulty(system, 7, done=True)          it is done, and fails: its answer was lost
Faulty(system, 7, killed=True)        no operation from there on is done: Killed is raised
Faulty(system, 7, True, True)         none after it
"""

import contextlib
from typing import Any

CHANGING = ("open_output_stream", "write", "close", "delete_dir", "delete_file")
_lost: list[Any] = []  # streams whose program never got them: let go of, pyarrow publishes them


class Killed(BaseException):
    """The end of a program, which runs no further; whoever catches it catches a kill."""


class Faulty:
    """A file system with one fault; what it opens to write has the operations write and close.

    Args:
      system: pyarrow.fs.FileSystem, or what has its methods.
      at: number of the operation, from 1; 0 for none.
      done: whether that one is done.
      killed: whether the program ends there.
    """

    def __init__(self, system: Any, at: int = 0, done: bool = False, killed: bool = False):
        self.system, self.at, self.done, self.killed = system, at, done, killed
        self.calls, self.changing = 0, []  # numbers of those that change what is there

    def open_output_stream(self, *args: Any, **options: Any) -> "_Stream":
        return _Stream(self.do(self.system.open_output_stream, *args, **options), self)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.system, name)
        return lambda *args, **options: self.do(method, *args, **options)

    def do(self, method: Any, *args: Any, **options: Any) -> Any:
        """Does an operation, unless it fails."""
        self.calls += 1
        if method.__name__ in CHANGING:
            self.changing.append(self.calls)
        if not self.at or self.calls < self.at or (self.calls > self.at and not self.killed):
            return method(*args, **options)
        if self.calls == self.at and self.done:
            with contextlib.suppress(OSError):
                _lost.append(method(*args, **options))
        if self.killed:
            raise Killed
        raise OSError("AWS Error NETWORK_CONNECTION during a test")


class _Stream:
    def __init__(self, stream: Any, system: Faulty):
        self._stream, self._system = stream, system

    def write(self, chunk: bytes) -> None:
        self._system.do(self._stream.write, chunk)

    def close(self) -> None:
        self._system.do(self._stream.close)
