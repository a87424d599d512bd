"""Files appear when they are whole: each is written under another name, then renamed."""

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emofm_jax.errors import UserError

# .NAME.TOKEN.partial: a file that is to be called NAME, of one writer.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields the name to write to; at the end the file has its own. After an error neither is.

    Two programs may write the same file: the last to end has it. What a kill left is removed by
    the next writer. Raises OSError if the directory cannot be written.
    """
    _remove_dead(path)
    temporary, descriptor = _make(path)
    try:
        yield temporary
        try:
            temporary.replace(path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path}: cannot be written ({reason}); name another place") from None
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def whole_name(name: str) -> str:
    """The name that a temporary file is to have; that of any other file."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else name


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> None:
    """Locks an open file or directory until it is closed, unless its file system has no locks.

    Raises:
      BlockingIOError: another program has it, and `wait` is not set.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise


def make_locked(directory: Path) -> int:
    """Makes a directory, if it is missing; returns a descriptor that holds its lock.

    Raises:
      BlockingIOError: another program has it.
      OSError: it cannot be made.
    """
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # removed by the program before
            continue
        try:
            lock(descriptor)
            if _is_at(descriptor, directory):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still names what was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _make(path: Path) -> tuple[Path, int]:
    """Makes a temporary file that is locked as long as the descriptor is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        lock(descriptor, wait=True)
        if _is_at(descriptor, temporary):  # nobody took it for a dead one before it was locked
            return temporary, descriptor
        os.close(descriptor)


def _remove_dead(path: Path) -> None:
    """Removes temporary files of the path whose writers have ended: their locks are free."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if whole_name(file.name) != path.name:
            continue
        with contextlib.suppress(OSError):  # it is in use, has gone meanwhile, or is another's
            descriptor = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Writes an object as JSON, with a line end behind it."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def user_cache() -> Path:
    """What the package keeps for a user: ~/.cache/emofm_jax; raises OSError if there is no home."""
    text = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not Path(text).is_absolute():
        raise OSError(f"{text}: nobody knows where the user's home is")
    return Path(text) / "emofm_jax"


def read_cache(name: str) -> str:
    """A file that `write_cache` wrote; raises OSError if there is none."""
    return (user_cache() / name).read_text(encoding="utf-8")


def write_cache(name: str, text: str) -> None:
    """Writes a file of the user's cache, whoever else does so; raises OSError if it cannot."""
    directory = user_cache()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # others may not write there
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=directory, delete=False) as file:
        file.write(text)
    try:
        os.replace(file.name, directory / name)
    except OSError:
        os.unlink(file.name)
        raise
