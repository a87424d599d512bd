"""How files are written: each under another name, flushed to the disk, then renamed.

    whole(path)           a file that appears when it is whole; text and JSON by functions of it
    Appended(path, size)  lines at the end of a file
    clear(directory)      removes what writers left that were killed
    lock, make_locked     who may write, on this machine

directories.py does the same for whole directories. JSON objects carry a digest, which is compared
when they are read. Errors name the file: FileError, whatever library wrote it.
"""

import contextlib
import errno
import fcntl
import glob
import io
import itertools
import json
import os
import pickle
import re
import secrets
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from emofm_jax import errors

# .NAME.TOKEN.partial: a file that is to be called NAME, of one writer.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial", re.DOTALL)
_shown: dict[str, str] = {}  # {path of a copy: name of its place}
_ITEM = struct.Struct("<QQ")  # length and digest of an object that follows
# The last entry of a JSON object, a digest of all that stands before it.
_DIGEST = re.compile(r',\s*"xxh3": "([0-9a-f]{16})"\s*\}\s*\Z')


@contextlib.contextmanager
def whole(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yields the name to write to; at the end the file has its own. After an error neither is.

    Two programs may write the same file: the last to end has it. What a kill left is removed by
    the next writer. `mode` is who may read and write it, but for the umask.

    Raises:
      FileError: it cannot be written: what the block could not do with its file, too.
    """
    path = Path(path)
    with named(path):
        _remove_dead(path.parent, f".{glob.escape(path.name)}.*.partial", path.name)
        try:
            temporary, descriptor = _make(path, mode)
        except OSError as error:
            raise errors.of_file(path, error) from None

    try:
        with named(path, temporary):
            yield temporary
            _settle(temporary, descriptor)
            temporary.replace(path)
        with named(path, path.parent):
            sync(path.parent)
    finally:
        for tidy in (lambda: temporary.unlink(missing_ok=True), lambda: os.close(descriptor)):
            with contextlib.suppress(OSError):  # what counts has been flushed
                tidy()


@contextlib.contextmanager
def named(path: Path, temporary: Path | None = None, what: str = "written") -> Iterator[None]:
    """Names a file in what the system, or a library, says of it: FileError.

    An error of another file, as its own name says, stays what it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, errors.UserError) and temporary and str(temporary) in str(error):
            raise type(error)(str(error).replace(str(temporary), str(path))) from None
        file = getattr(error, "filename", None)
        if not errors.reason(error) or file not in (None, str(path), str(temporary)):
            raise
        raise errors.of_file(path, error, what) from None


def whole_name(name: str) -> str:
    """The name that a temporary file is to have; that of any other file."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else name


def clear(directory: Path) -> None:
    """Removes temporary files of a directory whose writers have been killed."""
    _remove_dead(Path(directory), ".*.partial")


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _settle(temporary: Path, descriptor: int) -> None:
    """Flushes what was written, which has the mode of the file that was made for it.

    safetensors puts a file of its own in its place, that nobody but its owner may read.
    """
    if _is_at(descriptor, temporary):
        _flush(descriptor)
        return
    with open(temporary, "rb") as written:
        os.fchmod(written.fileno(), stat.S_IMODE(os.fstat(descriptor).st_mode))
        _flush(written.fileno())


def _flush(descriptor: int) -> None:
    """Flushes what is open, unless its file system cannot do that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


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


def make_locked(directory: Path, *, shared: bool = False) -> int:
    """Makes a directory, if it is missing; returns a descriptor that holds its lock.

    A shared one waits for a program that has it alone.

    Raises:
      BlockingIOError: another program has it.
      OSError: it cannot be made.
    """
    while True:
        is_new = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # removed by the program before
            continue
        except OSError:
            with contextlib.suppress(OSError):
                if is_new:
                    directory.rmdir()
            raise
        try:
            lock(descriptor, shared=shared, wait=shared)
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


def _make(path: Path, mode: int = 0o666) -> tuple[Path, int]:
    """Makes a temporary file that is locked as long as the descriptor is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        lock(descriptor, wait=True)
        if _is_at(descriptor, temporary):  # nobody took it for a dead one before it was locked
            return temporary, descriptor
        os.close(descriptor)


def _remove_dead(directory: Path, pattern: str, name: str = "") -> None:
    """Removes temporary files, of a name or any, whose writers have ended: their locks are free."""
    for file in directory.glob(pattern):
        found = whole_name(file.name)
        if found == file.name or (name and found != name):
            continue
        with contextlib.suppress(OSError), abandoned(file):
            file.unlink()


@contextlib.contextmanager
def undamaged(path: Path, remedy: str) -> Iterator[None]:
    """Names a file that is not what was written, as the block finds: a UserError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(f"{path}: damaged ({error}); {remedy}") from None


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[None]:
    """Holds the lock of what a killed writer left.

    Raises:
      OSError: it is in use, has gone meanwhile, or is another's; or nobody can tell, without locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Makes a directory and those above it, if they are missing; raises FileError if it cannot."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.of_file(path, error) from None


def remove(path: Path) -> None:
    """Removes a file, if it is there; raises FileError if it cannot."""
    with named(path):
        Path(path).unlink(missing_ok=True)


def check_writable(directory: Path) -> None:
    """Raises OSError if no file can be made in a directory."""
    temporary, descriptor = _make(Path(directory) / "writable")
    try:
        os.close(descriptor)
    finally:
        temporary.unlink(missing_ok=True)


def show(path: Path, name: str) -> None:
    """Notes what a path is called in all that is written and printed: it is a copy of that."""
    _shown[str(path)] = name


def said(text: str, spelled: Callable[[str], str] = str) -> str:
    """A text with the names of places where it has paths of their copies (storage.py)."""
    for path in sorted(_shown, key=len, reverse=True):
        text = text.replace(spelled(path), spelled(_shown[path]))
    return text


def is_said(written: Any, value: Any) -> bool:
    """Whether a value that was written is another: the name of a place, and a path of its copy."""
    return isinstance(value, str) and said(value) == written


def shown() -> dict[str, str]:
    """{path of a copy: name of its place}, which `show` has noted."""
    return dict(_shown)


def show_all(names: Mapping[str, str]) -> None:
    """Notes what `shown` gave another process."""
    for path, name in names.items():
        show(Path(path), name)


def _unsaid(text: str) -> str:
    """The path of what `said` names, in the newest copy that this program has of it."""
    newest_first = reversed(_shown.items())
    for path, name in sorted(newest_first, key=lambda item: len(item[1]), reverse=True):
        if text == name or text.startswith(f"{name}/"):
            return path + text.removeprefix(name)
    return text


class _Pickler(pickle.Pickler):
    """Pickles names of places in place of paths of copies, which other machines have elsewhere."""

    def persistent_id(self, obj: Any) -> tuple[bool, str] | None:
        """Whether it is a path, and its name; None of whatever names no copy."""
        if not isinstance(obj, (str, Path)):
            return None
        name = said(str(obj))
        return None if name == str(obj) else (isinstance(obj, Path), name)


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` wrote: paths are those of the copies of this program."""

    def persistent_load(self, pid: tuple[bool, str]) -> str | Path:
        """The path, or the text with a name in it."""
        is_path, name = pid
        return Path(_unsaid(name)) if is_path else name


def _pickled(item: Any) -> bytes:
    if not _shown:
        return pickle.dumps(item)
    content = io.BytesIO()
    _Pickler(content).dump(item)
    return content.getvalue()


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    write_bytes(path, said(text).encode())


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Writes a file that the memory holds."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


def write_scratch(path: Path, items: Iterable[Any]) -> None:
    """Writes objects, one after another, for programs of this package; not for later.

    The file appears when it is whole, but is not flushed to the disk. It holds pickles: only who
    runs the programs may write where it lies. Paths of copies are those of whoever reads it.

    Raises:
      FileError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with named(path, temporary):
            file = open(temporary, "wb")  # noqa: SIM115
        with file:
            for content in itertools.chain(map(_pickled, items), [b""]):
                with named(path, temporary):
                    file.write(_ITEM.pack(len(content), xxhash.xxh3_64_intdigest(content)))
                    file.write(content)
        with named(path, temporary):
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_scratch(path: Path) -> Iterator[Any]:
    """Yields what `write_scratch` wrote.

    Raises:
      UserError: it is not there, or damaged.
    """
    try:
        with open(path, "rb") as file:
            while True:
                length, digest = _ITEM.unpack(file.read(_ITEM.size))
                if length > os.fstat(file.fileno()).st_size:
                    raise ValueError("it has less than it says")
                content = file.read(length)
                if xxhash.xxh3_64_intdigest(content) != digest:
                    raise ValueError("its digest is not of what it holds")
                if not content:
                    return
                yield _Unpickler(io.BytesIO(content)).load()
    except (ValueError, struct.error) as error:
        remedy = "remove it, and start the command again that made it"
        raise errors.FileError(f"{path}: damaged ({error}); {remedy}") from None
    except OSError as error:
        raise errors.of_file(path, error, "read") from None


def write_json(path: Path, content: dict[str, Any], indent: int | None = 1) -> None:
    """Writes an object as JSON, with the digest of its text as its last entry and a line end."""
    write_text(path, as_json(content, indent) + "\n")


def as_json(content: dict[str, Any], indent: int | None = None) -> str:
    """An object as JSON, with the digest of its text as its last entry."""
    head = said(json.dumps(content, indent=indent), _in_json).removesuffix("}").rstrip()
    between, end = (", ", "}") if indent is None else (f",\n{' ' * indent}", "\n}")
    return f'{head}{between}"xxh3": "{digest(head)}"{end}' if content else "{}"


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object that `write_json` wrote; one without a digest is taken as it is.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it cannot be read.
      ValueError: it is no JSON, no object, or another than was written.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise errors.of_file(path, error, "read") from None
    return from_json(content.decode())


def from_json(text: str) -> dict[str, Any]:
    """The object of which `as_json` made a text; raises ValueError as `read_json` does."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it has too many brackets within brackets") from None
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__}, not an object")

    if isinstance(content.get("xxh3"), str):
        found, end = content.pop("xxh3"), _DIGEST.search(text)
        if end is None or digest(text[: end.start()]) != found:
            raise ValueError("its digest is not of what it holds; without xxh3 it counts as yours")
    return content


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def digest(text: str) -> str:
    """The digest of a text, xxh3 in hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(text.encode())


class Appended:
    """Text at the end of a file of which `size` bytes are known to be good; the rest goes.

    A log must not stop what it is a log of: after an error it says so on stderr and stays as it is.
    """

    def __init__(self, path: Path, size: int | None = None):
        self._path, self._file, self.size = Path(path), None, size or 0
        with self._or_none():
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            there = self._file.tell()
            if size is None or there == size:
                self.size = there
                return
            if there < size:
                what = f"{there:,} bytes where it had {size:,}: the lines before are lost"
                warn(f"{path}: deleted or cut since, {what}")
                self.size = Path(path).read_bytes().rfind(b"\n") + 1
            self._file.truncate(self.size)

    def write(self, text: str) -> None:
        """Appends text."""
        with self._or_none():
            if self._file is not None:
                content = text.encode(errors="replace")
                if self._file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.size += len(content)

    def close(self) -> None:
        """Closes the file."""
        with self._or_none():
            if self._file is not None:
                self._file.close()

    @contextlib.contextmanager
    def _or_none(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            warn(f"{errors.of_file(self._path, error)}; the run goes on without this log")
            file, self._file = self._file, None
            if file is not None and not file.closed:  # a file whose closing fails is closed
                with contextlib.suppress(OSError):
                    file.truncate(self.size)
                with contextlib.suppress(OSError):
                    file.close()


def warn(text: str) -> None:
    """Says on stderr what went wrong without an end; it may be as full as the disk."""
    with contextlib.suppress(OSError):
        print(f"warning: {errors.printable(text)}", file=sys.stderr)


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
    """Writes a file of the user's cache, whoever else does so; raises FileError if it cannot."""
    directory = user_cache()
    with named(directory):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # others may not write there
    with whole(directory / name, 0o600) as temporary:
        temporary.write_text(text, encoding="utf-8")
