"""Remote places, `s3://BUCKET/KEY`, by pyarrow.fs: what is there, how it is put and read.

    URL/published.json                                which objects are the files of URL; put last
    URL/.published/TOKEN/train/part-00000.parquet     such an object; it never changes

Objects of a new TOKEN are read by nobody until published.json names them, and that is one object,
which appears whole or not at all. It says size and digest of each. What lies anywhere else is
plain: objects that others have put there, of which nobody knows a digest.

storage.py makes local copies of places, which is what programs work on.
"""

import contextlib
import ctypes
import functools
import posixpath
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from emofm_jax import errors
from emofm_jax.data import files
from emofm_jax.errors import FileError, UserError

INDEX, OBJECTS = "published.json", ".published"
_STAGES = re.compile(r"\..+\.stages")  # directory of what stages leave for each other (by_hand.py)
SCHEMES = ("s3",)
_VERSION = 1
_REQUEST = re.compile(r" \(Request ID: [^)]*\)")
_CODE = re.compile(r"AWS Error ([A-Z_]+)")
_RIGHTS = "give this user the right (AWS_PROFILE or AWS_ACCESS_KEY_ID say who it is)"
_DENIED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "SIGNATURE_DOES")
_MAKE = "make the bucket, or name another"
_NETWORK = "look at the network and the endpoint, then start the command again"
_REMEDIES = {  # by what is in a reason
    r"NETWORK_CONNECTION": _NETWORK,
    r"HTTP status 301": "name its region, as in s3://BUCKET/KEY?region=eu-west-1",
    r"HTTP status 5\d\d|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTL": (
        "the store fails: start the command again later"
    ),
}
_NAME = "name s3://BUCKET/KEY; options of pyarrow.fs stand behind a question mark"
# What stays as it is in a key: %20 is a blank, and so is a blank.
_LETTERS = "/%!$&'()*+,;=:@~-._"
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

T = TypeVar("T")


class Place(NamedTuple):
    """A remote directory or object: its name without options, its file system, its key there."""

    name: str
    system: Any  # pyarrow.fs.FileSystem
    key: str

    def above(self) -> "Place":
        """The directory that it lies in."""
        return Place(posixpath.dirname(self.name), self.system, posixpath.dirname(self.key))


class File(NamedTuple):
    """An object, named from its place, its size, and the digest of its content or when it was put.

    A plain object has the second only.
    """

    object: str
    size: int
    xxh3: str
    changed: str = ""


class Index(NamedTuple):
    """What published.json says: the token that was published last, and the files by their names.

    Of a run within the place of a sweep also what it began with there (nested.py).
    """

    commit: str
    files: dict[str, File]
    began: str = ""


class DeniedError(FileError):
    """Something that this user may not do."""


def shown_name(name: str) -> str:
    """The name of a place as it is printed, without options.

    Raises:
      UserError: it has keys in it, which are not printed.
    """
    scheme, _, rest = name.partition("://")
    bucket = rest.partition("/")[0]  # a secret key may have slashes in it
    if "@" in bucket or (":" in bucket and "@" in rest):
        problem = "the keys in this name would come into logs and config.json"
        remedy = "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise UserError(f"{scheme}://...@{rest.rpartition('@')[2]}: {problem}; {remedy}")
    if ":" in bucket and scheme in SCHEMES:
        problem = "no bucket has a colon in its name, which may be of an address or of keys"
        remedy = "give these as AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise UserError(f"{scheme}://...: {problem}; {remedy}")
    return f"{scheme}://{rest.partition('?')[0].rstrip('/')}"


@functools.lru_cache(maxsize=64)
def place(name: str) -> Place:
    """The place of a name: s3://BUCKET/KEY, with options of pyarrow.fs behind a question mark.

    Raises:
      UserError: its scheme is not known, it has keys in it, or it is no name of a place.
    """
    shown = shown_name(name)
    scheme = shown.partition("://")[0]
    if scheme not in SCHEMES:
        known = " or ".join(f"{one}://" for one in SCHEMES)
        raise UserError(f"{shown}: {scheme}:// is not known; name a local path, or {known}")

    def work() -> tuple[Any, str]:
        try:
            return system(name)
        except ValueError as error:  # before the store is asked
            raise UserError(f"{shown}: {error}; {_NAME}") from None

    found, key = reached(shown, "read", work)
    key = key.strip("/")
    if {"", ".", ".."} & {*key.split("/")}:
        raise UserError(f"{shown}: it is no bucket and key; name {scheme}://BUCKET/KEY")
    return Place(shown, found, key)


def system(name: str) -> tuple[Any, str]:
    """The file system of a name, and the key in it; raises as pyarrow does."""
    from pyarrow import fs

    whole, mark, options = name.partition("?")
    scheme, _, rest = whole.partition("://")
    bucket, slash, key = rest.partition("/")
    key = _PERCENT.sub("%25", quote(key, safe=_LETTERS))
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}{slash}{key}{mark}{options}")


def reached(shown: str, what: str, work: Callable[[], T]) -> T:
    """Does what needs a remote place, to read or write it (`what`: "read", "written").

    Raises:
      FileError: it cannot be done, with the name and a remedy; DeniedError if this user may not.
    """
    try:
        return work()
    except Exception as error:
        if not (reason := errors.reason(error)):
            raise
        code = found[1] if (found := _CODE.search(reason)) else ""
        denied = code.startswith(_DENIED) or "HTTP status 403" in reason
        if code == "NO_SUCH_BUCKET":
            raise FileError(f"{shown}: there is no such bucket; {_MAKE}") from None
        usual = "restore it, or name another" if what == "read" else "name another place"
        known = (text for words, text in _REMEDIES.items() if re.search(words, reason))
        remedy = _RIGHTS if denied else next(known, usual)
        line = f"{shown}: cannot be {what} ({_REQUEST.sub('', reason)}); {remedy}"
        raise (DeniedError if denied else FileError)(line) from None


def token() -> str:
    """A new name for objects that are published together; in the order of time."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    at = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    return f"{at}.{rest:09d}-{secrets.token_hex(4)}"


def opened(of: Place, file: str, shown: str) -> Any:
    """An object as a stream of its bytes; None if there is none; raises FileError."""

    def work() -> Any:
        try:
            return of.system.open_input_stream(f"{of.key}/{file}", compression=None)
        except FileNotFoundError:
            return None

    return reached(shown, "read", work)


def put(of: Place, file: str, shown: str, chunks: Iterable[bytes]) -> None:
    """Puts an object, which appears when its last byte is there; raises FileError.

    No `with`: to close pyarrow's stream is to publish what it was given (apache/arrow#40502). It
    closes itself when Python lets go of it; after an error it is held until the program ends.
    """
    key = f"{of.key}/{file}" if file else of.key
    stream = reached(shown, "written", lambda: of.system.open_output_stream(key, compression=None))
    try:
        for chunk in chunks:
            reached(shown, "written", functools.partial(stream.write, chunk))
        reached(shown, "written", stream.close)
    except BaseException:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise


def check_writable(of: Place) -> None:
    """Raises FileError if nothing can be put at a place."""
    at = f"{OBJECTS}/{token()}"
    put(of, f"{at}/writable", of.name, [b"-"])
    remove(of, at)


def remove(of: Place, directory: str) -> None:
    """Removes the objects below a name; warns where it cannot, since they only cost space."""
    try:
        reached(of.name, "written", lambda: of.system.delete_dir(f"{of.key}/{directory}"))
    except FileError as error:
        files.warn(f"{error}; what is not needed any more stays there")


def remove_file(of: Place, name: str) -> None:
    """Removes an object, if it is there; warns where it cannot, since nobody reads it."""

    def work() -> None:
        with contextlib.suppress(FileNotFoundError):
            of.system.delete_file(f"{of.key}/{name}")

    try:
        reached(of.name, "written", work)
    except FileError as error:
        files.warn(f"{error}; what is not needed any more stays there")


def names(of: Place) -> list[str]:
    """Names of all objects below a place; raises FileError."""
    from pyarrow import fs

    select = fs.FileSelector(of.key, recursive=True, allow_not_found=True)
    found = reached(of.name, "read", lambda: of.system.get_file_info(select))
    return [x.path.removeprefix(f"{of.key}/") for x in found if x.type == fs.FileType.File]


def tokens(of: Place) -> list[str]:
    """The tokens of which a place has objects; raises FileError."""
    from pyarrow import fs

    select = fs.FileSelector(f"{of.key}/{OBJECTS}", allow_not_found=True)
    found = reached(of.name, "read", lambda: of.system.get_file_info(select))
    return [info.base_name for info in found]


def read_index(of: Place) -> Index | None:
    """What is published at a place; None if nothing is.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    shown = f"{of.name}/{INDEX}"
    if (stream := opened(of, INDEX, shown)) is None:
        return None
    with stream:
        content = reached(shown, "read", stream.read)

    try:
        body = files.from_json(content.decode())
        if body["format_version"] != _VERSION:
            problem = f"format version {body['format_version']}, this program reads {_VERSION}"
            raise UserError(f"{shown}: {problem}; install a newer one")
        return _index(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown}: damaged ({error}); {anew(of)}") from None


def anew(of: Place) -> str:
    """What to do where something of a published directory is damaged or gone."""
    return f"restore it, or remove {of.name}/{INDEX} and make all of it anew"


def _index(body: dict[str, Any]) -> Index:
    """What published.json says; raises ValueError, KeyError or TypeError where it cannot be."""
    found = {name: File(*entry) for name, entry in body["files"].items()}
    for name, file in found.items():
        if [*map(type, file[:3])] != [str, int, str]:
            raise ValueError(f"{name!r} is not of an object, a size and a digest")
        for path in (name, file.object):
            if not is_below(path):
                raise ValueError(f"{path!r} does not lie below it")

    if not isinstance(body["commit"], str):
        raise ValueError("its commit is no token")
    if not isinstance(began := body.get("began", ""), str):
        raise ValueError("what it began with is no digest")
    return Index(body["commit"], found, began)


def is_below(name: str) -> bool:
    """Whether a name is of what lies below a directory: nobody's objects go anywhere else."""
    return not {"", ".", ".."} & {*name.split("/")} and "\0" not in name


def write_index(of: Place, index: Index) -> None:
    """Publishes objects that have been put; raises FileError."""
    body = {"format_version": _VERSION, "commit": index.commit}
    body |= {"began": index.began} if index.began else {}
    body |= {"files": {name: list(file[:3]) for name, file in sorted(index.files.items())}}
    put(of, INDEX, of.name, [f"{files.as_json(body, indent=1)}\n".encode()])


def list_plain(of: Place, without: Collection[str] = ()) -> tuple[Place, dict[str, File]]:
    """The plain objects at or below a place, or those whose names fit one with stars in it.

    Args:
      of: the place.
      without: directories in it that are left out.

    Returns:
      The directory that they are in, and the objects by their names in it.

    Raises:
      UserError: there is no such bucket; it cannot be read; a published directory is in it.
    """
    from pyarrow import fs

    base, parts = of, []
    while "*" in base.key:
        parts.insert(0, posixpath.basename(base.key))
        base = base.above()
    look = lambda at: reached(of.name, "read", lambda: of.system.get_file_info(at))
    if not base.key:
        raise UserError(f"{of.name}: a star cannot be in a bucket's name; write it out")
    if (own := look(base.key)).type == fs.FileType.File and not parts:
        return base.above(), {posixpath.basename(base.key): _plain(own, base.above())}

    found = look(fs.FileSelector(base.key, recursive=True, allow_not_found=True))
    bucket = of.key.split("/")[0]
    if not found and look(bucket).type == fs.FileType.NotFound:
        raise UserError(f"{of.name}: there is no bucket {bucket!r}; {_MAKE}")
    out = tuple(f"{base.key}/{name}/" for name in without)
    is_plain = lambda info: info.type == fs.FileType.File and not info.path.startswith(out)
    plain = [_plain(info, base) for info in found if is_plain(info)]
    listed = {file.object: file for file in plain if _fits(file.object.split("/"), parts)}
    if parts and not listed:
        raise UserError(f"{of.name}: no object has such a name; only * stands for other letters")
    if whole := next((name for name in listed if posixpath.basename(name) == INDEX), None):
        within = f"{base.name}/{posixpath.dirname(whole)} in it is published as a whole"
        raise UserError(f"{of.name}: {within}; name that, or a place beside it")
    return base, listed


def _plain(info: Any, base: Place) -> File:
    name = info.path.removeprefix(f"{base.key}/")
    if not is_below(name):
        raise UserError(f"{base.name}/{name}: no file can have such a name; rename the object")
    return File(name, info.size, "", str(info.mtime_ns))


def _fits(names: list[str], patterns: list[str]) -> bool:
    """Whether an object is of no program under way, and fits patterns, if there are some."""
    if OBJECTS in names or any(map(_STAGES.fullmatch, names[:-1])):
        return False
    only_stars = [pattern.replace("[", "[[]").replace("?", "[?]") for pattern in patterns]
    return not patterns or len(names) == len(patterns) and all(map(fnmatchcase, names, only_stars))
