"""The one exception that a user's mistake raises; `cli.run` prints it and exits with 2.

And what files, and the libraries that read and write them, say when something is wrong with them;
and what Python's `warnings` are told of.
"""

import _thread
import contextlib
import errno
import gc
import os
import re
import signal
import sys
import time
import types
from typing import Any

LOST = 75  # exit code of a process that lost another one: EX_TEMPFAIL, start it again


class UserError(Exception):
    """`{where}: {what was wrong, with the value}; {what to do}`, on one line."""

    exit_code = 2


class FileError(UserError):
    """A file that the system, or a library, could not write or read: the disk's mistake."""


class LostError(UserError):
    """Another process of the run has ended."""

    exit_code = LOST


class UnknownValues(UserWarning):
    """A slot that training knew, and of which `scorer.encode` gets nearly unknown values only."""


_PROGRAM = re.compile(r"emofm_jax\.\w+")  # behind -m
_COMMAND = re.compile(r"emofm-(\w+)")  # that pip makes
# Where the exceptions of libraries that read and write files are defined.
_OF_FILES = ("pyarrow", "safetensors", "safetensors_rust", "zlib", "gzip", "lzma", "zipfile")
_NUMBER = re.compile(r"(?:os error|[Ee]rrno) (\d+)")
_REMEDIES = {
    "free space, then start the same command again": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "make it accessible, or name another place": (errno.EACCES, errno.EPERM, errno.EROFS),
    "look at the disk, then start the same command again": (errno.EIO, errno.ESTALE),
    "close what holds files open, then start the same command again": (errno.EMFILE, errno.ENFILE),
}


def end_quietly() -> None:
    """From now on Ctrl-C ends a program of ours, which loads and has made nothing, with one line.

    Without a program, or where Ctrl-C does something else, nothing happens.
    """
    started = sys.argv[:1] == ["-m"] and any(map(_PROGRAM.fullmatch, sys.orig_argv))
    of_pip = _COMMAND.fullmatch(os.path.basename(sys.argv[0] if sys.argv else ""))
    command = of_pip and os.path.exists(os.path.join(os.path.dirname(__file__), f"{of_pip[1]}.py"))
    if (started or command) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, _end)


def raise_interrupts() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again: what a program has loaded sees to it.

    But not within what Python calls as it collects garbage, which would swallow it: a moment later.
    """
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _interrupt)


def _end(*_: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"error: interrupted\n")
    os._exit(130)


def _interrupt(_: int, frame: types.FrameType | None) -> None:
    collecting = {getattr(callback, "__code__", None) for callback in gc.callbacks}  # jax has one
    while frame is not None:
        if frame.f_code in collecting:
            _thread.start_new_thread(_interrupt_later, ())  # which takes no lock, as Timer does
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupt_later() -> None:
    time.sleep(0.01)
    _thread.interrupt_main()


def reason(error: BaseException) -> str:
    """What is wrong with a file, in words; empty where an error is not of a file."""
    of_library = type(error).__module__.partition(".")[0] in _OF_FILES
    if not isinstance(error, OSError | EOFError) and not of_library:
        return ""
    number = _errno(error)
    return os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__


def of_file(path: object, error: BaseException, what: str = "written") -> FileError:
    """The error of the user whose file could not be written, or read."""
    number = _errno(error)
    found = (text for text, numbers in _REMEDIES.items() if number in numbers)
    usual = "name another place" if what == "written" else "restore it, or make it again"
    return FileError(f"{path}: cannot be {what} ({reason(error)}); {next(found, usual)}")


def unreadable(path: object, error: BaseException, damage: str) -> UserError:
    """The error of a file that cannot be read: of the system, as its number says, or of damage.

    Args:
      path: of the file.
      error: what the system or a library said.
      damage: the line if the system has no part in it.
    """
    if any(_errno(error) in numbers for numbers in _REMEDIES.values()):
        return of_file(path, error, "read")
    return UserError(damage)


def said(error: BaseException) -> str:
    """The one line that the user reads of an error of a file or of their own; empty of others."""
    if isinstance(error, UnicodeEncodeError):  # half a surrogate: Python's word for a strange byte
        error = UserError(f"{error.object[:200]}: this name is not UTF-8; rename it")
    if not isinstance(error, UserError):
        if not reason(error):
            return ""
        path = getattr(error, "filename", None) or "a file"
        error = of_file(path, error, "read or written")
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """A text in which names of strangers cannot steer a terminal: escape codes are spelled out."""
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def _errno(error: BaseException) -> int:
    """The system's number, which some libraries only have in their text; 0 without one."""
    found = getattr(error, "errno", None)
    if isinstance(found, int):
        return found
    in_text = _NUMBER.search(str(error))
    return int(in_text[1]) if in_text else 0


def check_choice(where: str, value: str, known) -> None:
    """Raises a UserError that lists `known` unless `value` is one of them."""
    if value not in known:
        raise UserError(f"{where}: {value!r} is not known; choose one of {', '.join(known)}")


def check_heads(where: str, heads: int, width: int, of: str) -> None:
    """Raises a UserError unless `heads` divide `width`, the width `of` something."""
    if width % heads:
        raise UserError(f"{where}: {heads} heads do not divide {of} = {width}; choose a divisor")
