"""How directories are written: beside their place, flushed to the disk, then moved there at once.

    .NAME.partial/emofm_jax.new    of one writer, which has the lock of .NAME.partial
    .NAME.partial/emofm_jax.old    what stood there, while the new one is moved

Where there is a directory already, the two change places in one operation (Linux: renameat2), so
that whatever kills the writer leaves the old one or the new one. A file system that cannot do that
gets two moves; what a kill between them left is put back by the next writer.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from emofm_jax import errors
from emofm_jax.data import files
from emofm_jax.errors import FileError, UserError

_NEW, _OLD = "emofm_jax.new", "emofm_jax.old"  # names that nobody else gives
_PARTIAL = re.compile(r"\.(.+)\.partial", re.DOTALL)
_AT_CWD, _EXCHANGE = -100, 2
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


class Unneeded(Exception):
    """Raised within `whole`: the directory stays as it is."""


def place(path: Path) -> Path:
    """Where a directory is written: at the end of a symbolic link, which stays one.

    Raises:
      UserError: it is the root of all, which stands in no other directory; it goes up from a
        directory that is not there.
    """
    path = Path(path)
    is_above = path.name in ("", "..")
    if is_above and not path.exists():  # x/..: to the system that is nothing, to `realpath` it is .
        raise UserError(f"{path}: no such directory; name another")
    found = Path(os.path.realpath(path)) if is_above or path.is_symlink() else path.absolute()
    if not found.name:
        raise UserError(f"{path}: it stands in no directory; name another")
    return found


@contextlib.contextmanager
def whole(path: Path, doing: str = "writes", where: str = "") -> Iterator[Path]:
    """Yields an empty directory; at the end it is `path`. After an error that is as it was.

    Args:
      path: of the directory; what it holds now is replaced.
      doing: what another program is said to do there.
      where: begins the errors; by default the path.

    Raises:
      UserError: another program writes there; something cannot be written.
    """
    target, where = place(path), where or str(path)
    with _locked(target, doing, where) as partial:
        new = partial / _NEW
        try:
            new.mkdir()
            yield new
            _flush(new)
            _move(new, target, partial / _OLD)
        except Unneeded:
            pass
        except UserError as error:
            raise type(error)(str(error).replace(str(new), str(path))) from None
        except Exception as error:
            if not errors.reason(error):
                raise
            file = str(getattr(error, "filename", None) or "")
            if file and str(new) not in file:  # it was read
                raise FileError(errors.said(error)) from None
            raise errors.of_file(file.replace(str(new), str(path)) or where, error) from None


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yields a new directory within another one, for as long as the block takes."""
    path = parent / f".scratch.{secrets.token_hex(4)}"
    files.make_directory(path)
    try:
        yield path
    finally:
        _clear(path)


def copy(source: Path, target: Path) -> None:
    """Copies a directory to a place that is to be moved, or removed, as a whole."""
    with files.named(target):
        shutil.copytree(source, target)


def remove(path: Path) -> None:
    """Removes a directory that we made, so that no half of it is ever taken for one.

    Of a symbolic link it is the link alone, as of `rm`: what it leads to may serve others.

    Raises:
      FileError: it cannot be removed.
    """
    target = Path(path)
    if target.is_symlink():
        with files.named(target):
            target.unlink(missing_ok=True)
        return
    with _locked(target, "writes", str(path)) as partial:
        try:
            os.rename(target, partial / _NEW)
        except FileNotFoundError:
            return
        except OSError as error:
            raise errors.of_file(path, error) from None


def clear(directory: Path) -> None:
    """Removes what killed writers left in a directory that is ours, of files and directories."""
    files.clear(directory)
    for partial in Path(directory).glob(".*.partial"):
        found = _PARTIAL.fullmatch(partial.name)
        if found and partial.is_dir() and not partial.is_symlink():
            with contextlib.suppress(OSError), files.abandoned(partial):
                _restore(partial, partial.with_name(found[1]))
                _remove_partial(partial)


def whole_name(name: str) -> str:
    """The name that a file or a directory under a temporary name is to have, or has."""
    found = _PARTIAL.fullmatch(name)
    return found[1] if files.whole_name(name) == name and found else files.whole_name(name)


@contextlib.contextmanager
def _locked(target: Path, doing: str, where: str) -> Iterator[Path]:
    """`.NAME.partial`, of this program alone; it is gone at the end."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        descriptor = files.make_locked(partial)
    except BlockingIOError:
        problem = f"another program {doing} there now"
        raise UserError(f"{where}: {problem}; wait for it, or name another directory") from None
    except OSError as error:
        raise errors.of_file(where, error) from None

    try:
        with files.named(target):
            _restore(partial, target)
        yield partial
    finally:
        try:
            _remove_partial(partial)
        finally:
            os.close(descriptor)


def _restore(partial: Path, target: Path) -> None:
    """Leaves neither old nor new of a killed writer; puts back what it had only moved away."""
    new, old = partial / _NEW, partial / _OLD
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (new, old):
        _clear(left)


def _remove_partial(partial: Path) -> None:
    """Removes all that is ours, though a signal ends the program meanwhile."""
    with contextlib.ExitStack() as last_first:
        last_first.callback(_remove_empty, partial)
        for name in (_OLD, _NEW):
            last_first.callback(_clear, partial / name)


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):  # not empty: what is in it is not ours
        directory.rmdir()


def _clear(path: Path) -> None:
    """Removes a directory of ours, as far as that goes.

    It is tried again after a fault of a moment, and where a signal ends the program meanwhile.
    """
    with contextlib.ExitStack() as again:
        again.callback(shutil.rmtree, path, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)


def _raise(error: OSError) -> None:
    raise error


def _flush(directory: Path) -> None:
    """Flushes all files of a directory, and its directories, to the disk."""
    for parent, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            files.sync(Path(parent) / name)
        files.sync(Path(parent))


def _move(new: Path, target: Path, old: Path) -> None:
    """Moves a directory to its place; what is there then lies in `new`, or in `old`."""
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        target.rename(old)
        try:
            new.rename(target)
        except OSError:
            old.rename(target)
            raise
    files.sync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two directories change places in one operation; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))
