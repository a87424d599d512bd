"""Raw files as directories hold them: which ones, in which order, and the columns in their paths.

    clicks.parquet/part-00000-1b2c.snappy.parquet, _SUCCESS        as Spark writes it
    clicks/dt=2024-03-01/country=de/part-0.csv.gz                  as Hive does: columns dt, country

Files are read in the order of their paths, sub-directories included. Names that begin with a dot or
an underscore are no data. What is compressed, and what is Parquet, their first bytes say.
"""

import os
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from emofm_jax.data import storage
from emofm_jax.errors import UserError

# Endings of compressed files, for names only.
COMPRESSED = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".bzip2", ".lz4", ".xz")
_MISSING = "__HIVE_DEFAULT_PARTITION__"
# What a directory of a table holds in which some files are removed rows.
_TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi"}
_PARQUET = (".parquet", ".pq")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
}
# bzip2 begins with printable characters, behind which these stand.
_BLOCKS_OF_BZ2 = (b"1AY&SY", b"\x17rE8P\x90")
_STRANGE = {
    b"PK\x03\x04": "a zip archive or a workbook",
    b"Obj\x01": "an Avro file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


class Place(NamedTuple):
    """Between two blocks of a text file (`lines`): where the next begins, and what was read."""

    offset: int  # of the first byte of the next block
    line: int  # of it
    position: int  # bytes that were read


class Span(NamedTuple):
    """Consecutive blocks of a text file: from a place to where `stop` bytes were read."""

    begin: Place
    stop: int


class RawFile(NamedTuple):
    """A file, and the columns in the names `key=value` of directories; None is a missing value."""

    path: Path
    partitions: dict[str, str | None] = {}  # of directories below the one that the user named
    above: dict[str, str | None] = {}  # of that one and those above it; they serve where asked for
    span: Span | None = None  # of a text file, if not all of it


def find(path: Path, root: Path | None = None) -> list[RawFile]:
    """The files of a directory, of all depths, or the file itself.

    Args:
      path: a file or directory.
      root: directory that the user named; by default `path`.

    Raises:
      UserError: the directory is a table of which some files are out of date; it holds what is
        neither file nor directory, or directories of one key below each other.
    """
    root = root or path
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: it is a pipe or a device; write its rows to a file first")

    files = [path] if path.is_file() else _walk(path, ())
    above = _partitions((root.parent if root.is_file() else root).parts)
    depth = len(root.parts)
    found = [RawFile(file, _partitions(file.parts[depth:-1]), above) for file in files]
    for file in found:
        keys = [key for key, _ in _pairs(file.path.parts[depth:-1])]
        if len(keys) > len(file.partitions):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{file.path}: {twice}= stands twice in its path; rename a directory")
    return found


def first_full(files: Sequence[RawFile]) -> RawFile:
    """The first file that is not empty, or the first one."""
    return next((file for file in files if file.path.stat().st_size), files[0])


def without_compression(path: Path) -> Path:
    """The path without the ending of a compressed file, if it has one."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def is_hidden(name: str) -> bool:
    """Whether a file or directory of this name is no data."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def kind(path: Path) -> str:
    """What a file holds by its first bytes: parquet, gzip, zstd, bz2, lz4, xz; else text.

    Raises:
      UserError: no such file, or of a kind that is not read.
    """
    try:
        head = _head(path, 16)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None

    begins = lambda magic: head.startswith(magic)
    if begins(b"PAR1") and (path.suffix in _PARQUET or not head[4:5].isalnum()):
        return "parquet"  # else "PAR1" begins a word of a text
    if begins(b"BZh") and head[4:10] in _BLOCKS_OF_BZ2:
        return "bz2"
    if found := next(filter(begins, _COMPRESSED), None):
        return _COMPRESSED[found]
    if found := next(filter(begins, _STRANGE), None):
        what = _STRANGE[found]
        raise UserError(f"{path}: it is {what}; write it as Parquet, or as text in UTF-8")
    return "text"


def is_unchecked(path: Path) -> bool:
    """Whether a file is compressed, and its first frame has no checksum that would show damage."""
    head = _head(path, 5)
    # RFC 8878, 3.1.1.1.1; LZ4 frame format, FLG: checksums of the content, of blocks.
    checked = {"zstd": 0b100, "lz4": 0b10100}.get(_COMPRESSED.get(head[:4], ""))
    return bool(checked and len(head) == 5 and not head[4] & checked)


def _head(path: Path, size: int) -> bytes:
    """The first bytes of a file, behind frames that zstd and lz4 skip (RFC 8878, 3.1.2)."""
    begin = 0
    while True:
        head = storage.peek(path, begin, max(size, 8))
        if len(head) < 8 or head[0] & 0xF0 != 0x50 or head[1:4] != b"\x2a\x4d\x18":
            return head[:size]
        begin += 8 + int.from_bytes(head[4:8], "little")


def _walk(directory: Path, parents: tuple[tuple[int, int], ...]) -> list[Path]:
    """The files in and under a directory, in the order of their paths."""
    about = directory.stat()
    here = (about.st_dev, about.st_ino)
    if here in parents:
        raise UserError(f"{directory}: the link leads back to a directory above it; remove it")

    found = []
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name in _TABLES:
                table = _TABLES[entry.name]
                problem = f"it is a {table} table, whose files hold removed rows, too"
                raise UserError(f"{directory}: {problem}; write its rows as plain Parquet")
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                found += _walk(directory / entry.name, (*parents, here))
            elif entry.is_file():
                found.append(directory / entry.name)
            else:
                what = "a link to nothing" if entry.is_symlink() else "no file"
                raise UserError(f"{directory / entry.name}: it is {what}; remove it")
    return found


def _partitions(names: tuple[str, ...]) -> dict[str, str | None]:
    """{key: value} of names that are `key=value`."""
    return dict(_pairs(names))


def _pairs(names: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    for name in names:
        key, equals, value = map(urllib.parse.unquote, name.partition("="))
        if key and equals:
            yield key, None if value == _MISSING else value
