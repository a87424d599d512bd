"""Text files as blocks of whole rows, and a block as columns; what every text format stands on.

A clean block (no quote, no NUL, valid UTF-8, the same number of columns in every row) is parsed in
one call of pyarrow. Where that fails, the rows are looked at one by one: the bad ones are named by
their lines, and the rest is parsed. pyarrow's streaming reader is not used: it knows no line
numbers and one bad cell ends the file.
"""

import csv
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv as pa_csv

from emofm_jax.data.problems import Bad, Problems
from emofm_jax.data.recipe import COMPRESSED
from emofm_jax.errors import UserError

BLOCK_BYTES = 1 << 23  # raw bytes of a chunk: some tens of thousands of rows
MAX_ROW_BYTES = 1 << 26
_BOM = b"\xef\xbb\xbf"
# Bytes after which a quote that is still open is taken for a stray one.
_OPEN_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive raw rows of one file as columns, by slot and by role.

    Roles are `label`, `ftype`, `row_id`, `weight`, `gauc_key`, `_day`. Text is pa.string(), a bag
    is a list of them; Parquet keeps its types.
    """

    file: str
    lines: np.ndarray  # i64[n], 1-based lines (Parquet: rows) on which the n readable rows start
    columns: dict[str, pa.Array]  # of n raw values each
    bad: tuple[Bad, ...] = ()  # the rows that are not among the n

    def bad_rows(self, problems: Problems) -> list[Bad]:
        """The rows with a problem, in order."""
        return [Bad(int(self.lines[row]), *problems[row]) for row in sorted(problems)]

    def without(self, problems: Problems) -> "Chunk":
        """The chunk without the rows that have a problem, which join `bad`."""
        if not problems:
            return self
        good = problems.good(len(self.lines))
        columns = {name: column.filter(pa.array(good)) for name, column in self.columns.items()}
        bad = sorted([*self.bad, *self.bad_rows(problems)])
        return Chunk(self.file, self.lines[good], columns, tuple(bad))


class Block(NamedTuple):
    """Whole rows of a text file: the line of the first one, and their bytes."""

    line: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How columns stand in a row of text."""

    names: Sequence[str]  # of the columns of the file, in order
    separator: str  # one character between columns
    quotes: bool = False  # double quotes may enclose a cell; a row may then span lines
    null_values: Sequence[str] = ()  # spellings of a missing value


def blocks(
    path: Path,
    *,
    separator: str = "",
    progress: Callable[[int], None] | None = None,
    block_bytes: int = 0,
) -> Iterator[Block]:
    """Yields a text file, plain, gzip or zstd, as blocks of whole rows.

    Args:
      path: the file; `.gz` and `.zst` say how it is compressed.
      separator: between columns, if double quotes may enclose a cell and a row span lines; else
        empty.
      progress: is told how many bytes of the file, as it lies on disk, were read since last told.
      block_bytes: size of a block; by default BLOCK_BYTES.

    Raises:
      UserError: missing, empty or undecodable file, or a row of more than 64 MiB.
    """
    line, rest, position = 1, b"", 0
    for piece, done in _read(path, block_bytes or BLOCK_BYTES):
        if progress is not None:
            progress(done - position)
        rest += piece if position else piece.removeprefix(_BOM)
        position = done

        if separator and b'"' in rest:
            ends = _row_ends(rest, separator, _OPEN_BYTES)
            cut = int(ends[-1]) if len(ends) else 0
        else:
            cut = rest.rfind(b"\n") + 1
        if cut:
            yield Block(line, rest[:cut])
            line += rest.count(b"\n", 0, cut)
            rest = rest[cut:]
        elif len(rest) > MAX_ROW_BYTES:
            problem = f"a row of more than {MAX_ROW_BYTES} bytes"
            raise UserError(f"{path}:{line}: {problem}; is this a text file of rows?")
    if not position:
        raise UserError(f"{path}: the file is empty; remove it or name another")
    if rest:
        yield Block(line, rest)


def first_row(path: Path) -> bytes:
    """The first line of a text file, without BOM and line end."""
    for _, data in blocks(path, block_bytes=1 << 16):
        return data.split(b"\n", 1)[0].removesuffix(b"\r")
    raise UserError(f"{path}: the file is empty; remove it or name another")


def parse(
    block: Block, dialect: Dialect, wanted: Sequence[str]
) -> tuple[dict[str, pa.Array], np.ndarray, tuple[Bad, ...]]:
    """A block of rows as string columns.

    Args:
      wanted: names of the columns to return.

    Returns:
      {name: string[n]}, lines i64[n], and the rows that are left out.
    """
    line, data = block
    quoted = dialect.quotes and b'"' in data
    if not quoted and b"\0" not in data:
        table = _arrow(data, dialect, wanted, quoted=False)
        if table is not None and table.num_rows == data.count(b"\n") + (not data.endswith(b"\n")):
            return _columns(table), line + np.arange(table.num_rows), ()

    clean, lines, bad = _sieve(block, dialect, quoted)
    if not len(lines):
        return {name: pa.array([], pa.string()) for name in wanted}, lines, bad
    table = _arrow(clean, dialect, wanted, quoted)
    if table is None or table.num_rows != len(lines):
        where = f"lines {lines[0]} .. {lines[-1]}"
        raise ValueError(f"{where}: rows that passed every check cannot be parsed")
    return _columns(table), lines, bad


def _read(path: Path, size: int) -> Iterator[tuple[bytes, int]]:
    """Yields (decompressed bytes, position in the file on disk)."""
    codec = COMPRESSED.get(path.suffix)
    try:
        with pa.OSFile(str(path)) as raw:
            if not raw.size():
                return
            stream = pa.CompressedInputStream(raw, codec) if codec else raw
            while piece := stream.read(size):
                yield piece, raw.tell()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: it cannot be read to its end ({reason}); copy it again") from None


def _row_ends(data: bytes, separator: str, open_limit: int = 0) -> np.ndarray:
    """Positions behind the line ends that end a row.

    Args:
      data: text that starts with a row.
      separator: between columns, if quotes may enclose a cell; a line end inside ends no row.
      open_limit: a cell still open at the end of `data` hides line ends too, if it is shorter than
        this; otherwise it is taken for a stray quote, which the row check then reports.
    """
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if not separator or b'"' not in data:
        return ends
    begin = rb"(?:\A|(?<=[\n" + re.escape(separator.encode()) + rb"]))"
    cell = re.compile(begin + rb'"(?:[^"]|"")*+("|\Z)')
    spans = [m.span() for m in cell.finditer(data) if m[1] or len(data) - m.start() < open_limit]
    if not spans:
        return ends
    starts, stops = np.array(spans, np.int64).T
    # The last cell that opens before each line end.
    inside = np.searchsorted(starts, ends, side="left") - 1
    return ends[(inside < 0) | (ends > stops[inside])]


def _sieve(
    block: Block, dialect: Dialect, quoted: bool
) -> tuple[bytes, np.ndarray, tuple[Bad, ...]]:
    """The good rows, joined, their lines, and the bad ones; blank lines are neither."""
    good, lines, bad = [], [], []
    (line, data), start = block, 0
    ends = _row_ends(data, dialect.separator if quoted else "").tolist()
    for end in ends if ends and ends[-1] == len(data) else [*ends, len(data)]:
        row = data[start:end].removesuffix(b"\n").removesuffix(b"\r")
        here, start = line, end
        line += 1 + row.count(b"\n")
        if not row:
            continue

        problem = _problem(row, dialect, quoted)
        if problem:
            bad.append(Bad(here, *problem))
        else:
            good.append(row)
            lines.append(here)
    return b"\n".join(good), np.array(lines, np.int64), tuple(bad)


def _problem(row: bytes, dialect: Dialect, quoted: bool) -> tuple[str, str] | None:
    """(kind, reason) of what is wrong with a row, if anything."""
    if b"\0" in row:
        return "nul", "a NUL byte"
    try:
        text = row.decode()
    except UnicodeDecodeError as error:
        return "encoding", f"invalid UTF-8, byte 0x{row[error.start]:02x}"

    if quoted and '"' in text:
        try:
            rows = list(csv.reader([text], delimiter=dialect.separator, strict=True))
        except csv.Error as error:
            return "quote", f"its quotes do not match ({error})"
        found = len(rows[0])
    elif "\r" in text:
        return "line end", "a carriage return inside the row"
    else:
        found = text.count(dialect.separator) + 1
    if found != len(dialect.names):
        return "columns", f"{found} columns where {len(dialect.names)} are expected"
    return None


def _arrow(data: bytes, dialect: Dialect, wanted: Sequence[str], quoted: bool) -> pa.Table | None:
    """The rows as a table, or None where pyarrow finds rows of another length or invalid UTF-8."""
    read = pa_csv.ReadOptions(
        use_threads=False, block_size=len(data) + 1, column_names=list(dialect.names)
    )
    parse = pa_csv.ParseOptions(
        delimiter=dialect.separator, quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    convert = pa_csv.ConvertOptions(
        column_types={name: pa.string() for name in wanted},
        include_columns=list(wanted),
        null_values=list(dialect.null_values),
        strings_can_be_null=True,
    )
    try:
        return pa_csv.read_csv(pa.BufferReader(data), read, parse, convert)
    except pa.ArrowInvalid:
        return None


def _columns(table: pa.Table) -> dict[str, pa.Array]:
    return {name: table[name].combine_chunks() for name in table.column_names}
