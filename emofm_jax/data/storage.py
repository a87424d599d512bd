"""Local copies of remote places: what a program works on where a user names `s3://bucket/data`.

    reading(name)     a local path to read; of a name without "://" that path
    writing(name)     a directory of this program alone; `publish` puts back what has changed in it
    file(name)        the same for one file
    need(path)        fetches what is fetched late: rows of shards, arrays of checkpoints
    following(name)   where another process writes: `follow` brings it up to date, `part` and
                      `adopt` let files of this one be published with those of that
    take(path)        what another program has published of a run in a sweep (nested.py)

Whoever reads has what one published.json names (remote.py), whatever is published meanwhile.
Digests are compared as files are fetched. A copy of what was published stays in the user's cache
until another one is read; that of plain objects, and one that is written, goes with its program.
"""

import atexit
import contextlib
import hashlib
import os
import posixpath
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from emofm_jax.data import files, nested, remote
from emofm_jax.data.remote import File, Index, Place
from emofm_jax.errors import FileError, UserError

_THREADS = 8
_CHUNK_BYTES = 1 << 23
# What stands in each directory that programs write; without one it is somebody else's.
_MARKS = {"schema.json", "config.json", "sweep.json", "backtest.json", "signature.json"}
_PAGES = {"report.html", "report.md"}  # that `report` makes of a run or sweep, also while it runs
_MANY_BYTES = 1 << 26  # worth a line
# Large files of what programs publish, few of which a program reads.
_LATE = re.compile(
    r"(.+/)?((train|valid|test)/[^/]+\.parquet|checkpoints/step_\d+/[^/]+\.safetensors)"
)

# A place that has lost a slash, as in a pathlib.Path; TensorBoard's writer takes it for one, too.
_CUT = re.compile(r"(s3|gs):/?(?!/)")

_copies: dict[Path, "Copy"] = {}  # by their local directories
_named: list[bool] = []  # not empty where names of places are printed in place of those of copies
_locks: dict[Path, int] = {}  # of directories of copies, which nobody removes meanwhile


def is_remote(name: str | Path) -> bool:
    """Whether a name is of a remote place; raises UserError of one that has lost a slash."""
    text = str(name)
    if cut := _CUT.match(text):
        whole = f"{cut[1]}://{text[cut.end() :]}"
        raise UserError(
            f"{text}: no local path, and two slashes follow the colon of a place; name {whole} "
            "(as a text: a pathlib.Path loses one)"
        )
    return "://" in text


def local(flag: str, name: str | Path, why: str) -> Path:
    """The path of what has to be local; raises UserError, with the reason, of a remote place."""
    if is_remote(name):
        raise UserError(f"{flag}={remote.shown_name(str(name))}: {why}; name a local path")
    return Path(name)


def reading(name: str | Path, *, later: bool = False) -> Path:
    """A local path that has what there is at a place; nothing is there if there is nothing.

    Args:
      name: of the place.
      later: plain objects have their sizes only, until `need` fetches them; `peek` reads them, too.

    Raises:
      UserError: no such bucket, no rights, no network; damage.
    """
    if not is_remote(name):
        return Path(name)
    place = remote.place(str(name))
    if found := None if "*" in place.key else nested.find_index(place):
        of, index = found[0], nested.with_runs(*found)
        copy = _known(of, index.commit, index.files) or Copy(of, index)
        copy.fetch()
        return copy.root / posixpath.relpath(place.key, of.key)

    of, listed = remote.list_plain(place)
    copy = _known(of, "", listed) or Copy(of, Index("", listed))
    if later:
        copy.sketch()
    else:
        copy.fetch(late=True)
    return copy.root if "*" in place.key else copy.root / posixpath.relpath(place.key, of.key)


def writing(name: str | Path, *, is_run: bool = False, has_runs: bool = False) -> Path:
    """A local directory, of this program alone, with what there is at a place.

    Args:
      name: of the place.
      is_run: it may be a run of a published sweep, and is then published alone.
      has_runs: takes in what other programs have published of runs in it; theirs ends there.

    Raises:
      UserError: as of `reading`; it lies within a published directory; nothing can be put there.
    """
    if not is_remote(name):
        return Path(name)
    place = remote.place(str(name))
    if is_run and (within := nested.above(place)):
        return _run_of(str(name), place, *within)

    found, runs = _index_beside(place), nested.runs(place) if has_runs else {}
    index = found or Index("", _plain_of_ours(place, runs))
    remote.check_writable(place)
    copy = Copy(place, index, writes=True)
    copy.fetch(late=not found)
    copy.take(runs)
    return copy.root


def _run_of(name: str, place: Place, sweep: Index, run: str) -> Path:
    """What `writing` gives of a run in a published sweep: a copy that begins with what it has."""
    index = remote.read_index(place)
    began = nested.said(sweep, run)
    is_new = not index or index.began != began
    source = reading(name) if is_new and began else None
    remote.check_writable(place)
    if index and not is_new:
        copy = Copy(place, index, writes=True)
        copy.fetch()
        return copy.root

    # What is published there is not of now: its token says that this program has seen it.
    copy = Copy(place, Index(index.commit if index else "", {}, began), writes=True)
    if source:
        need(source)
        with files.named(copy.root):
            shutil.copytree(source, copy.root, dirs_exist_ok=True)
    return copy.root


def take(path: Path) -> None:
    """Brings a run in what `writing` gave up to date with what another program has published of it.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    if (copy := _copy_of(path)) and copy.writes:
        run = path.relative_to(copy.root).as_posix()
        if index := remote.read_index(nested.run_of(copy.place, run)):
            copy.take({run: index})


def names_for_writing(name: str) -> list[str]:
    """Names of the files that `writing` of a place at s3:// begins with; fetches none.

    Raises:
      UserError: there is no such bucket; it lies within a published directory, or is of others.
    """
    place = remote.place(name)
    found = _index_beside(place)
    return sorted(found.files if found else _plain_of_ours(place))


def following(name: str | Path) -> Path:
    """A local directory with what another process of the same run publishes (`follow`).

    Raises:
      UserError: as of `reading`; it lies within a published directory.
    """
    if not is_remote(name):
        return Path(name)
    place = remote.place(str(name))
    is_run = nested.above(place) is not None  # the other process begins with what the sweep has
    index = remote.read_index(place) if is_run else _index_beside(place)
    copy = Copy(place, index or Index("", {}), follows=True)
    copy.fetch()
    return copy.root


def follow(path: Path) -> None:
    """Brings what `following` gave up to date, if the path is of that; raises UserError."""
    if (copy := _copy_of(path)) and copy.follows:
        copy.follow()


def is_following(path: Path) -> bool:
    """Whether a path is of what `following` gave."""
    return bool((copy := _copy_of(path)) and copy.follows)


def part(path: Path, target: Path, token: str) -> File:
    """Puts a file that the process which writes at a place is to publish as another (`adopt`).

    Args:
      path: the file.
      target: what it is to be, in what `following` gave.
      token: of `remote.token`, for the name of the object.

    Raises:
      FileError: it cannot be put.
    """
    copy = _copy_of(target)
    assert copy and copy.follows
    return copy.put(token, target.relative_to(copy.root).as_posix(), path)


def adopt(target: Path, file: File) -> None:
    """Has the next `publish` name what `part` has put, if its directory is there then."""
    copy = _copy_of(target)
    assert copy and copy.writes
    copy.adopted[target.relative_to(copy.root).as_posix()] = file


def _index_beside(place: Place) -> Index | None:
    """What is published at a place; raises UserError if it lies within another such place."""
    found = nested.find_index(place)
    if found and found[0].key != place.key:
        within = f"it lies within {found[0].name}, which is published as a whole"
        raise UserError(f"{place.name}: {within}; name a place beside that")
    return found[1] if found else None


def _plain_of_ours(place: Place, without: Collection[str] = ()) -> dict[str, File]:
    """The plain objects at a place; raises UserError, before they are fetched, of others'."""
    of, listed = remote.list_plain(place, without)
    if of.key != place.key:
        raise UserError(f"{place.name}: it is an object, no directory; name another place")
    if listed and not listed.keys() & _MARKS:
        holds = f"it holds objects of others ({next(iter(sorted(listed)))})"
        raise UserError(f"{place.name}: {holds}; name a place where nothing is")
    return listed


@contextlib.contextmanager
def file(name: str | Path) -> Iterator[Path]:
    """Yields a local path; if there is a file at the end, even of an error, it is put to its place.

    Raises:
      UserError: it cannot be put there; it would lie within a published directory.
    """
    if not is_remote(name):
        yield Path(name)
        return
    place = remote.place(str(name))
    if not place.above().key:
        raise UserError(f"{place.name}: it is a bucket; name an object in it")
    with contextlib.suppress(remote.DeniedError):  # to put it needs no right to read
        _index_beside(place)

    remote.check_writable(place.above())
    path = _directory(place.name, _own()) / posixpath.basename(place.key)
    _show(path, place.name)
    try:
        yield path
    finally:
        if path.exists():
            remote.put(place, "", place.name, _chunks(path))


def beside(name: str, before: str, after: str) -> str:
    """The name of a place beside another, whose own name it has between two texts."""
    typed, mark, options = name.partition("?")
    above, _, own = typed.rstrip("/").rpartition("/")
    shown = remote.shown_name(name)
    if above.endswith("/"):
        raise UserError(f"{shown}: it is a bucket; name a directory in it")
    return f"{above}/{before}{own}{after}{mark}{options}"


def below(name: str, other: str) -> str:
    """The name of what is called `other` in a place."""
    typed, mark, options = name.partition("?")
    return f"{typed.rstrip('/')}/{other}{mark}{options}"


def about(path: Path) -> tuple[str, int, str | int]:
    """Name and size of a file, and what its content changes: a digest, or when it was written."""
    if copy := _copy_of(path):
        file = copy.index.files[path.relative_to(copy.root).as_posix()]
        return files.said(str(path)), file.size, file.xxh3 or file.changed
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def own_directory(place: Place) -> Path:
    """An empty local directory of this program alone, which is printed as a place."""
    path = _directory(place.name, _own())
    _show(path, place.name)
    return path


def fetch(of: Place, name: str, path: Path) -> None:
    """Fetches an object to a file, which appears when it is whole; raises FileError."""
    shown = f"{of.name}/{name}"
    if (stream := remote.opened(of, name, shown)) is None:
        raise FileError(f"{shown}: not there any more; start this program again")
    with stream, files.whole(path) as temporary:
        _receive(stream, shown, temporary)


def put(of: Place, name: str, path: Path) -> None:
    """Puts a file as an object, which appears when it is whole; raises FileError."""
    remote.put(of, name, f"{of.name}/{name}", _chunks(path))


def need(*paths: Path) -> None:
    """Fetches what lies at or below paths of a copy; of any other path nothing."""
    of_copies: dict[Path, set[Path]] = {}
    for path in paths:
        if (copy := _copy_of(path)) and not copy.has(path):
            of_copies.setdefault(copy.root, set()).add(path)
    for root, some in of_copies.items():
        _copies[root].fetch(some, late=True)


def peek(path: Path, begin: int, size: int) -> bytes:
    """`size` bytes from `begin` on of a file, which may not have been fetched; fewer at its end.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it cannot be read.
    """
    if (copy := _copy_of(path)) and path.is_file() and not copy.has(path):
        return copy.peek(path, begin, size)
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(size)


def publish(path: Path, without: Collection[Path] = ()) -> None:
    """Puts what has changed in a copy for writing, if the path is of one.

    Args:
      path: of the copy, or in it.
      without: directories that other processes write to now: what is published of them stays.

    Raises:
      UserError: something cannot be read or put; another program has published there.
    """
    if (copy := _copy_of(path)) and copy.writes:
        copy.publish(without)


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Prints names of places, once there are copies, for what is printed within the block."""
    streams = sys.stdout, sys.stderr
    _named.append(True)
    try:
        if _copies:
            _rename()
        yield
    finally:
        _named.pop()
        if isinstance(sys.stdout, _Said):
            sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raises a UserError of a copy with the name of its place: for a library, which prints none."""
    try:
        yield
    except UserError as error:
        if (line := files.said(str(error))) == str(error):
            raise
        raise type(error)(line) from None


def _show(path: Path, name: str) -> None:
    """Notes what a path is called."""
    files.show(path, name)
    if _named and not isinstance(sys.stdout, _Said):
        _rename()


def _rename() -> None:
    streams: Any = _Said(sys.stdout), _Said(sys.stderr)
    sys.stdout, sys.stderr = streams


class _Said:
    """A stream of text that goes through `files.said`."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(files.said(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Copy:
    """A local copy of a place.

    Args:
      place: a directory.
      index: what there is; without a commit the objects are plain.
      writes: whether it is of this program alone, which publishes it.
      follows: whether another process publishes it.

    Attributes:
      root: the local directory.
      index: what there is, and what this program has published since.
      adopted: {name: what other processes have put}, to be published.
      taken: {run: what another program has published of it}, to be published here.
    """

    def __init__(self, place: Place, index: Index, *, writes: bool = False, follows: bool = False):
        self.place, self.index, self.writes, self.follows = place, index, writes, follows
        self.adopted: dict[str, File] = {}
        self.taken: dict[str, Index] = {}
        self._published = index  # which is `index` but for what was taken since
        self._replaced: set[str] = set()  # directories of runs, of objects that were named before
        shared = index.commit and not writes and not follows
        self.root = _directory(place.name, index.commit if shared else _own()) / place.key
        self._missing, self._lock = {*index.files}, threading.Lock()
        self._put_as: dict[str, tuple[tuple, File]] = {}  # {name: `_look` of a file, its object}
        self._unsure: Index | None = None  # what may be published: to do so failed
        self._sketched: set[str] = set()  # names of files that have their sizes only

        if writes or follows or index.files:
            files.make_directory(self.root)
        _copies[self.root] = self
        _show(self.root, place.name)

    def sketch(self) -> None:
        """Makes files of their sizes of what is not here yet."""
        with self._lock:
            for name in self._missing - self._sketched:
                files.make_directory((self.root / name).parent)
                with files.named(self.root / name), open(self.root / name, "wb") as file:
                    file.truncate(self.index.files[name].size)
                self._sketched.add(name)

    def has(self, path: Path) -> bool:
        """Whether a path is of a file that is here, and has more than its size."""
        return path.is_file() and path.relative_to(self.root).as_posix() not in self._sketched

    def peek(self, path: Path, begin: int, size: int) -> bytes:
        """Bytes of a file that is not here."""
        name = path.relative_to(self.root).as_posix()
        shown = f"{self.place.name}/{name}"
        with self._opened(name, shown) as stream:
            read = lambda count: remote.reached(shown, "read", lambda: stream.read(count))
            while begin and (passed := len(read(min(begin, _CHUNK_BYTES)))):
                begin -= passed
            return read(size)

    def fetch(self, paths: Collection[Path] | None = None, late: bool = False) -> None:
        """Fetches what is not here yet: all, or what lies at or below paths of the copy.

        Args:
          paths: files or directories.
          late: large files, too.

        Raises:
          UserError: something cannot be read, or is damaged.
        """
        with self._lock:
            here = {name: self.root / name for name in self._missing}
            for directory in {file.parent for file in here.values()}:
                files.make_directory(directory)  # a split is there before its rows are
            is_in = lambda file: paths is None or any(at in paths for at in (file, *file.parents))
            within = [name for name, file in here.items() if is_in(file)]
            wanted = [n for n in within if late or not _LATE.fullmatch(n)]
            here_now = lambda name: name not in self._sketched and here[name].exists()
            fetched = [name for name in sorted(wanted) if not here_now(name)]
            size = sum(self.index.files[name].size for name in fetched)
            if size >= _MANY_BYTES:
                what = f"fetching {len(fetched):,} files, {size / 2**20:,.0f} MiB"
                print(f"{self.place.name}: {what}", file=sys.stderr)
            _each(self._fetch, fetched)
            of = self.index.files
            self._put_as |= {name: (_look(here[name]), of[name]) for name in fetched}
            self._missing -= {*wanted}
            self._sketched -= {*wanted}

    def take(self, runs: dict[str, Index]) -> None:
        """Makes runs here what their own indexes say, of those that are of now."""
        self.taken |= runs
        new = {run: x for run, x in runs.items() if x.began == nested.said(self._published, run)}
        with self._lock:
            before, of = self.index.files, nested.taken(self.index.files, new)
            self._remove_all_but(of)
            changed = {n for n in before.keys() | of.keys() if before.get(n) != of.get(n)}
            self._put_as = {n: put for n, put in self._put_as.items() if n not in changed}
            self._missing = (self._missing - changed) | (changed & of.keys())
            self.index = self.index._replace(files=of)
        self.fetch()

    def follow(self) -> None:
        """Makes what is here what is published now, but for large files, which stay or go."""
        index = remote.read_index(self.place) or Index("", {})
        with self._lock:
            self._remove_all_but(index.files)
            self.index, self._missing = index, {*index.files}
        self.fetch()

    def _remove_all_but(self, of: dict[str, File]) -> None:
        """Removes files that are here and are others now, and directories that went with them."""
        for name, file in self.index.files.items():
            if of.get(name) != file:
                files.remove(self.root / name)
        above = lambda names: {at for name in names for at in (self.root / name).parents}
        gone = above(self.index.files) - above(of)
        for directory in gone - {self.root, *self.root.parents}:
            shutil.rmtree(directory, ignore_errors=True)

    def publish(self, without: Collection[Path] = ()) -> None:
        """Puts new and changed files, then published.json; removes what was replaced before.

        Args:
          without: directories that stay as they were published.
        """
        left = tuple(f"{path.relative_to(self.root).as_posix()}/" for path in without)
        with self._lock:
            self._settle()
            token, before, published = remote.token(), self.index, self._published
            names = [name for name in _names(self.root) if not name.startswith(left)]
            found = _each(lambda name: self._put(token, name), names)
            now = {name: file for name, file in zip(names, found) if file}
            now |= {name: file for name, file in before.files.items() if name.startswith(left)}
            now |= {name: before.files[name] for name in self._missing if self._stays(name, now)}
            now |= {n: f for n, f in self.adopted.items() if (self.root / n).parent.is_dir()}
            if published.commit and now == published.files and not self.taken:
                return
            there = remote.read_index(self.place)
            if (there.commit if there else "") != published.commit:
                now |= self._pages_since(there, now)
                before = self.index
            self._unsure = Index(token, now, before.began)
            remote.write_index(self.place, self._unsure)
            self.index = self._published = self._unsure
            self._unsure = None
            # What is not published any more may be removed.
            self._put_as = {n: of for n, of in self._put_as.items() if now.get(n) == of[1]}
            self._missing |= self.adopted.keys() & now.keys()
            self.adopted.clear()
            self._clear(before, now)

    def _clear(self, before: Index, now: dict[str, File]) -> None:
        """Removes objects that nobody reads, once `now` is published in place of `before`."""
        # Who reads what was published before may end; so may who has begun to publish since.
        used = {file.object for file in [*now.values(), *before.files.values()]}
        kept = {name.split("/")[1] for name in used if name.startswith(f"{remote.OBJECTS}/")}
        if others := {x for x in remote.tokens(self.place) if x < before.commit} - kept:
            for other in others - nested.named_above(self.place):
                remote.remove(self.place, f"{remote.OBJECTS}/{other}")

        for directory in self._replaced - nested.homes(used):
            remote.remove(self.place, directory)
        self._replaced = nested.homes(used) - nested.homes(file.object for file in now.values())
        for run in [*self.taken]:
            nested.remove(self.place, run, self.taken.pop(run), used)

    def _pages_since(self, there: Index | None, now: dict[str, File]) -> dict[str, File]:
        """Pages that `report` has published since this program looked; it goes on from there.

        Raises:
          UserError: another program has published something else.
        """
        of, theirs = self._published.files, there.files if there else {}
        names = {name for name in of.keys() | theirs.keys() if of.get(name) != theirs.get(name)}
        if not there or not self._published.commit or names - _PAGES:
            problem = "another program has published there since this one began"
            raise UserError(f"{self.place.name}: {problem}; start this one again")

        ours = {name: file for name, file in self.index.files.items() if name not in names}
        self.index = there._replace(files=ours | {n: theirs[n] for n in names & theirs.keys()})
        self._published = there
        taken = [n for n in names & theirs.keys() if now.get(n) == of.get(n)]
        for name in taken:
            self._fetch(name)
            self._put_as[name] = _look(self.root / name), theirs[name]
        return {name: theirs[name] for name in taken}

    def _settle(self) -> None:
        """Finds out whether what failed to be published, or was stopped meanwhile, is published."""
        if self._unsure is not None:
            there = remote.read_index(self.place)
            if there and there.commit == self._unsure.commit:
                self.index = self._published = self._unsure
            self._unsure = None

    def _fetch(self, name: str) -> None:
        """Fetches a file, which appears when it is whole."""
        file, shown = self.index.files[name], f"{self.place.name}/{name}"
        with self._opened(name, shown) as stream, files.whole(self.root / name) as temporary:
            size, digest = _receive(stream, shown, temporary)
            if size != file.size or file.xxh3 not in ("", digest):
                other = f"{size:,} bytes with the digest {digest}"
                wanted = f"{file.size:,} bytes, {file.xxh3 or 'any'}"
                raise FileError(f"{shown}: damaged ({other}, not {wanted}); {self._remedy()}")

    def _opened(self, name: str, shown: str) -> Any:
        stream = remote.opened(self.place, self.index.files[name].object, shown)
        if stream is None:
            raise UserError(f"{shown}: not there any more; {self._remedy()}")
        return stream

    def _remedy(self) -> str:
        """What to do where an object is not what the index says."""
        now = remote.read_index(self.place)
        if now and now.commit == self.index.commit.partition("+")[0]:
            return remote.anew(self.place)
        return "something else was put there meanwhile: start this program again"

    def _put(self, token: str, name: str) -> File | None:
        """Puts a file, unless it is as it was published; None if it has gone meanwhile."""
        path = self.root / name
        known, file = self._put_as.get(name, (None, self.index.files.get(name)))
        file = file if file and file.xxh3 else None  # a plain object is none of ours
        try:
            look = _look(path)
            if not file or known != look:
                file = self._put_changed(token, name, file)
        except FileNotFoundError:
            return None

        self._put_as[name] = look, file
        self._missing.discard(name)
        return file

    def _put_changed(self, token: str, name: str, before: File | None) -> File:
        """Puts a file that has been written, unless its content is that of an object seen whole."""
        path, digest = self.root / name, xxhash.xxh3_64()
        seen = name in self._put_as  # else the object may be damaged, or gone
        if before and seen and before.size == path.stat().st_size:
            for chunk in _chunks(path):
                digest.update(chunk)
            if digest.hexdigest() == before.xxh3:
                return before
        return self.put(token, name, path)

    def put(self, token: str, name: str, path: Path) -> File:
        """Puts a file as an object that is to be published under a name."""
        size, digest = 0, xxhash.xxh3_64()

        def chunks() -> Iterator[bytes]:  # of a log that grows as many as there are now
            nonlocal size
            for chunk in _chunks(path):
                size += len(chunk)
                digest.update(chunk)
                yield chunk

        file = f"{remote.OBJECTS}/{token}/{name}"
        remote.put(self.place, file, f"{self.place.name}/{name}", chunks())
        return File(file, size, digest.hexdigest())

    def _stays(self, name: str, now: dict[str, File]) -> bool:
        """Whether a file that was not fetched is still meant: what was, beside it, is as it was."""
        beside = [n for n in self.index.files if posixpath.dirname(n) == posixpath.dirname(name)]
        fetched = [n for n in beside if n not in self._missing]
        return bool(fetched) and all(now.get(n) == self.index.files[n] for n in fetched)


def _known(place: Place, commit: str, listed: dict[str, File]) -> Copy | None:
    """A copy for reading that has the same content; one that is written may change."""
    is_known = lambda copy: not (copy.writes or copy.follows) and copy.place.name == place.name
    known = filter(is_known, _copies.values())
    return next((x for x in known if x.index[:2] == (commit, listed)), None)


def _copy_of(path: Path) -> Copy | None:
    if not _copies:
        return None
    return next((_copies[at] for at in (path, *path.parents) if at in _copies), None)


def _names(root: Path) -> Iterator[str]:
    """Names of the files of a directory; what is not whole has a hidden one."""
    for parent, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        yield from (Path(parent, name).relative_to(root).as_posix() for name in shown)


def _look(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _receive(stream: Any, shown: str, path: Path) -> tuple[int, str]:
    """Writes what a stream gives to a file; returns how many bytes, and their digest."""
    size, digest = 0, xxhash.xxh3_64()
    with open(path, "wb") as to:
        while chunk := remote.reached(shown, "read", lambda: stream.read(_CHUNK_BYTES)):
            size += len(chunk)
            digest.update(chunk)
            to.write(chunk)
    return size, digest.hexdigest()


def _each(work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    """Does work for each name, several at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, names))


def _own() -> str:
    return f"own.{secrets.token_hex(4)}"


def _above() -> Path:
    """Where the copies of this user are."""
    return files.user_cache().resolve() / "remote"


def _directory(name: str, version: str) -> Path:
    """A directory of the user's cache for a copy, which is there as long as this program."""
    above = _above()
    path = above / hashlib.sha256(name.encode()).hexdigest()[:16] / version
    with files.named(above):
        above.mkdir(parents=True, exist_ok=True, mode=0o700)  # nobody else may read it
        if path not in _locks:
            _locks[path] = files.make_locked(path, shared=True)
        # What other programs have left, unless they still use it.
        for other in {*above.glob("*/own.*"), *path.parent.iterdir()} - {path}:
            _remove(other)
    return path


def _remove(directory: Path) -> None:
    with contextlib.suppress(OSError), files.abandoned(directory):
        shutil.rmtree(directory)


@atexit.register
def forget() -> None:
    """Ends what this program has of remote places, and removes what is of it alone."""
    for path, descriptor in _locks.items():
        os.close(descriptor)
        if path.name.startswith("own."):
            _remove(path)
    for of in (_copies, _locks):
        of.clear()
