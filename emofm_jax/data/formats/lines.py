"""Text files as blocks of whole rows, and a block as columns; what every text format stands on.

A clean block (no quote, no NUL, valid UTF-8, the same number of columns in every row) is parsed in
one call of pyarrow. Where that fails, `rows` tells the good rows from the bad ones, which are named
by their lines, and the rest is parsed. pyarrow's streaming reader is not used: it knows no line
numbers and one bad cell ends the file.
"""

import bz2
import contextlib
import dataclasses
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv as pa_csv

from emofm_jax.data import raw_files, storage
from emofm_jax.data.formats import rows as rows_lib
from emofm_jax.data.problems import Bad, Notes, Problems
from emofm_jax.data.raw_files import Place, Span
from emofm_jax.errors import UserError

BLOCK_BYTES = 1 << 23  # raw bytes of a chunk: some tens of thousands of rows
MAX_LINES = 1 << 19  # of a chunk, where rows are so short: what is said of a row takes memory, too
MAX_ROW_BYTES = 1 << 26
# Bytes that are counted, and made columns of, at a time: of 8 MiB, each cell missed the cache.
CACHED_BYTES = 1 << 19
_BEGIN = Place(0, 1, 0)
_BOM = b"\xef\xbb\xbf"
# Arrow has no xz, and stops at a member of bzip2 that is empty. What Python opens passes over
# everything behind the first member that it cannot read.
_OF_PYTHON: dict[str, Callable] = {"xz": lzma.LZMADecompressor, "bz2": bz2.BZ2Decompressor}
_PADDING = b"\0\0\0\0"  # that may stand between members of xz


class EmptyFile(UserError):
    """A file that holds nothing; among others it is passed over."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive raw rows of one file as columns, by slot and by role.

    Roles are `label`, `ftype`, `row_id`, `weight`, `gauc_key`, `_day`. Text is pa.string(), a bag
    is a list of them; Parquet keeps its types.
    """

    file: str
    lines: np.ndarray  # i64[n], 1-based lines (Parquet: rows) on which the n readable rows start
    columns: dict[str, pa.Array]  # of n raw values each
    bad: Iterable[Bad] = ()  # the rows that are not among the n, in order
    notes: Notes = dataclasses.field(default_factory=Notes)  # on rows and files

    def bad_rows(self, problems: Problems) -> list[Bad]:
        """The rows with a problem, in order."""
        return [Bad(int(self.lines[row]), *problems[row]) for row in sorted(problems)]

    def without(self, problems: Problems) -> "Chunk":
        """The chunk without the rows that have a problem, which join `bad`."""
        if not problems:
            return self
        bad = sorted([*self.bad, *self.bad_rows(problems)])
        good = self.only(problems.good(len(self.lines)))
        return dataclasses.replace(good, bad=tuple(bad))

    def only(self, kept: np.ndarray) -> "Chunk":
        """The chunk with those of its n readable rows that bool[n] says."""
        if kept.all():
            return self
        columns = {name: column.filter(pa.array(kept)) for name, column in self.columns.items()}
        return dataclasses.replace(self, lines=self.lines[kept], columns=columns)


class Block(NamedTuple):
    """Whole rows of a text file: the file, the line of the first one, and their bytes."""

    file: str
    line: int
    data: bytes

    def first_row(self) -> bytes:
        """The first line, without its end."""
        return self.data.split(b"\n", 1)[0].removesuffix(b"\r")

    def behind_first_row(self) -> "Block":
        """The lines behind the first one."""
        end = self.data.find(b"\n") + 1 or len(self.data)
        return self._replace(line=self.line + 1, data=self.data[end:])


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How columns stand in a row of text."""

    names: Sequence[str]  # of the columns of the file, in order
    separator: str  # one character between columns
    quoting: str = "none"  # `config.prepare.quoting`
    null_values: Sequence[str] = ()  # spellings of a missing value


def blocks(
    path: Path,
    *,
    separator: str = "",
    progress: Callable[[int], None] | None = None,
    block_bytes: int = 0,
    span: Span | None = None,
) -> Iterator[Block]:
    """Yields a text file, plain or compressed, as blocks of whole rows.

    Args:
      path: the file; its first bytes say how it is compressed.
      separator: between columns, if double quotes may enclose a cell and a row span lines; else
        empty.
      progress: is told how many bytes of the file, as it lies on disk, were read since last told.
      block_bytes: size of a block; by default BLOCK_BYTES.
      span: which of the blocks; by default all.

    Raises:
      EmptyFile: there is nothing in it.
      UserError: missing or undecodable file, or a row of more than 64 MiB.
    """
    found = _blocks(path, separator, progress, block_bytes or BLOCK_BYTES, span)
    return (part for block, _ in found for part in _few_lines(block, separator))


def spans(path: Path, separator: str, size: int) -> list[Span]:
    """Parts of a file, in order, of about so many bytes: their blocks are those of the file.

    Args:
      path: a file that is not compressed.
      separator: as of `blocks`.
      size: bytes of a part.
    """
    found, begin, whole = [], _BEGIN, path.stat().st_size
    for _, end in _blocks(path, separator, None, BLOCK_BYTES, None):
        if end.position - begin.position >= size and end.position < whole:
            found.append(Span(begin, end.position))
            begin = end
    return [*found, Span(begin, sys.maxsize)]


def _blocks(
    path: Path,
    separator: str,
    progress: Callable[[int], None] | None,
    block_bytes: int,
    span: Span | None,
) -> Iterator[tuple[Block, Place]]:
    """Yields the blocks of a file or a span, and the place behind each."""
    storage.need(path)
    begin, stop = span or Span(_BEGIN, sys.maxsize)
    (offset, line, position), rest = begin, b""
    begun = position > 0
    if begun:
        with open(path, "rb") as file:
            file.seek(offset)
            rest = file.read(position - offset)

    for piece, done in _read(path, block_bytes, position):
        if progress is not None:
            progress(done - position)
        rest, position = rest + piece, done
        if not begun and len(rest) < len(_BOM):
            continue
        if not begun and rest.startswith(_BOM):
            rest, offset = rest.removeprefix(_BOM), len(_BOM)
        begun = True

        if cut := rows_lib.whole(rest, separator):
            block = Block(str(path), line, rest[:cut])
            line += num_lines(block.data)
            rest, offset = rest[cut:], offset + cut
            yield block, Place(offset, line, position)
        elif len(rest) > MAX_ROW_BYTES:
            problem = f"a row of more than {MAX_ROW_BYTES} bytes"
            raise UserError(f"{path}:{line}: {problem}; is this a text file of rows?")
        if position >= stop:
            return
    if line == 1 and not rest:
        raise EmptyFile(f"{path}: the file is empty; remove it or name another")
    if rest:
        yield Block(str(path), line, rest), Place(offset + len(rest), line, position)


def _few_lines(block: Block, separator: str) -> Iterator[Block]:
    """A block in parts of whole rows and few lines; a single row may have more."""
    file, line, data = block
    while num_lines(data) > MAX_LINES:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        cut, wanted = 0, MAX_LINES
        while not cut and wanted < len(ends):
            cut = rows_lib.whole(data[: ends[wanted - 1] + 1], separator)
            wanted *= 2
        if not cut:
            break
        yield Block(file, line, data[:cut])
        line, data = line + num_lines(data[:cut]), data[cut:]
    yield Block(file, line, data)


def num_lines(data: bytes) -> int:
    """Line feeds in it. `bytes.count` takes four times as long, and keeps other threads waiting."""
    signs = np.frombuffer(data, np.uint8)
    pieces = (signs[i : i + CACHED_BYTES] for i in range(0, len(signs), CACHED_BYTES))
    return sum(int(np.count_nonzero(piece == ord("\n"))) for piece in pieces)


def first_row(path: Path) -> bytes:
    """The first line of a text file, without BOM and line end."""
    for block in blocks(path, block_bytes=1 << 16):
        return block.first_row()
    raise EmptyFile(f"{path}: the file is empty; remove it or name another")


def parse(block: Block, dialect: Dialect, wanted: Sequence[str]) -> Chunk:
    """A block of rows as a chunk of string columns, by their names in the file.

    Args:
      wanted: names of the columns to return.
    """
    file, line, data = block
    quoted = dialect.quoting != "none" and b'"' in data
    # pyarrow takes a carriage return alone for a line end.
    alone = b"\r" in data and data.count(b"\r") != data.count(b"\r\n")
    if not quoted and not alone and b"\0" not in data:
        table = _arrow(data, dialect, wanted, quoted=False)
        if table is not None and table.num_rows == num_lines(data) + (not data.endswith(b"\n")):
            return Chunk(file, line + np.arange(table.num_rows), _columns(table))

    num_columns = len(dialect.names)
    good = rows_lib.sieve(file, line, data, dialect.separator, dialect.quoting, num_columns)
    columns = {name: pa.array([], pa.string()) for name in wanted}
    if len(good.lines):
        table = _arrow(good.data, dialect, wanted, quoted)
        if table is None or table.num_rows != len(good.lines):
            where = f"{file}, lines {good.lines[0]} .. {good.lines[-1]}"
            raise ValueError(f"{where}: rows that passed every check cannot be parsed")
        columns = _columns(table)
    return Chunk(file, good.lines, columns, good.bad, good.notes)


def _read(path: Path, size: int, start: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yields (decompressed bytes, position in the file on disk); from a start in plain text."""
    codec = raw_files.kind(path)
    try:
        with pa.OSFile(str(path)) as raw:
            if not raw.size():
                return
            stream = _decompressed(raw, codec)
            if start:
                raw.seek(start)
            while piece := stream.read(size):
                yield piece, raw.tell()
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: it cannot be read to its end ({reason}); copy it again") from None


def _decompressed(raw: pa.OSFile, kind: str) -> Any:
    """A stream of the bytes that a file of a kind (`raw_files.kind`) holds."""
    if kind == "text":
        return raw
    if kind in _OF_PYTHON:
        return _Members(raw, _OF_PYTHON[kind])
    return pa.CompressedInputStream(raw, kind)


class _Members:
    """The bytes of a file of several members, each of them whole."""

    def __init__(self, raw: pa.OSFile, make: Callable):
        self._raw, self._make, self._member, self._rest = raw, make, make(), b""

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end.

        Raises:
          OSError, EOFError, LZMAError: a member is damaged or cut off, or none is where one should.
        """
        while True:
            if self._member.eof:
                self._rest = self._member.unused_data or self._rest
                while self._make is lzma.LZMADecompressor and self._rest[:4] == _PADDING:
                    self._rest = self._rest[4:] or self._raw.read(CACHED_BYTES)
                self._rest = self._rest or self._raw.read(CACHED_BYTES)
                if not self._rest:
                    return b""
                self._member = self._make()
            elif not self._rest and self._member.needs_input:
                self._rest = self._raw.read(CACHED_BYTES)
                if not self._rest:
                    raise EOFError("it is cut off within a member")
            given, self._rest = self._rest, b""
            if found := self._member.decompress(given, size):
                return found


def _arrow(data: bytes, dialect: Dialect, wanted: Sequence[str], quoted: bool) -> pa.Table | None:
    """The rows as a table, or None where pyarrow finds rows of another length or invalid UTF-8."""
    parse = pa_csv.ParseOptions(
        delimiter=dialect.separator, quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    convert = pa_csv.ConvertOptions(
        column_types={name: pa.string() for name in wanted},
        include_columns=list(wanted),
        null_values=list(dialect.null_values),
        strings_can_be_null=True,
        check_utf8=not data.isascii(),
    )
    if data.startswith(_BOM):
        data = _BOM + data  # pyarrow would take the first character of the block for a file's BOM

    # A long row needs a large piece, and between pieces pyarrow loses line ends within quotes.
    for size in (len(data) + 8,) if quoted else (CACHED_BYTES, len(data) + 8):
        read = pa_csv.ReadOptions(
            use_threads=False, block_size=size, column_names=list(dialect.names)
        )
        with contextlib.suppress(pa.ArrowInvalid):
            return pa_csv.read_csv(pa.BufferReader(data), read, parse, convert)
    return None


def _columns(table: pa.Table) -> dict[str, pa.Array]:
    return {name: table[name].combine_chunks() for name in table.column_names}
