"""Text files as blocks of whole rows, and a block as columns; what every text format stands on.

A clean block (no quote, no NUL, valid UTF-8, the same number of columns in every row) is parsed in one call of
pyarrow. Where that fails, the rows are looked at one by one, the bad ones are named with their line, and the rest
is parsed. pyarrow's own streaming reader is not used: it knows no line numbers and one bad cell ends the file.
"""

import csv
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv as pa_csv

from emofm_jax.data.recipe import COMPRESSED
from emofm_jax.errors import UserError

BLOCK_BYTES = 1 << 23  # raw bytes of a chunk: some tens of thousands of rows
MAX_ROW_BYTES = 1 << 26
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Bad:
    """A row that cannot be used: its line, a short kind for counting, and the reason in words."""

    line: int
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive raw rows of one file, as columns.

    Attributes:
      file: path of the file.
      lines: i64[n], 1-based lines (Parquet: rows) on which the n readable rows start.
      columns: n raw values each, by the name of the slot, and by role: `label`, `ftype`, `row_id`, `weight`,
        `gauc_key`, `_day`. Text is pa.string(), a bag is a list of them; Parquet keeps its types.
      bad: the rows that are not among the n.
    """

    file: str
    lines: np.ndarray
    columns: dict[str, pa.Array]
    bad: tuple[Bad, ...] = ()


def blocks(
    path: Path,
    *,
    separator: str = "",
    progress: Callable[[int], None] | None = None,
    block_bytes: int = 0,
) -> Iterator[tuple[int, bytes]]:
    """Yields (line of its first row, bytes of whole rows) of a text file, plain, gzip or zstd.

    Args:
      path: the file; `.gz` and `.zst` say how it is compressed.
      separator: between columns, where double quotes may enclose a cell (then a row may span lines); else empty.
      progress: is told how many bytes of the file, as it lies on disk, were read since the last call.
      block_bytes: size of a block; by default BLOCK_BYTES.

    Raises:
      UserError: missing, empty or undecodable file, or a row of more than 64 MiB.
    """
    line, rest, position, first = 1, b"", 0, True
    for data in _read(path, block_bytes or BLOCK_BYTES):
        piece, done = data
        if progress is not None:
            progress(done - position)
            position = done
        if first:
            piece, first = piece.removeprefix(_BOM), False
        rest += piece
        if separator and b'"' in rest:
            cut = int(_row_ends(rest, separator, 1 << 20)[-1:].sum())  # 0 where no row ends
        else:
            cut = rest.rfind(b"\n") + 1
        if cut:
            yield line, rest[:cut]
            line += rest.count(b"\n", 0, cut)
            rest = rest[cut:]
        elif len(rest) > MAX_ROW_BYTES:
            raise UserError(
                f"{path}:{line}: a row of more than {MAX_ROW_BYTES} bytes; is this a text file of rows?"
            )
    if first:
        raise UserError(f"{path}: the file is empty; remove it or name another")
    if rest:
        yield line, rest


def first_row(path: Path) -> bytes:
    """The first line of a text file, without BOM and line end."""
    for _, block in blocks(path, block_bytes=1 << 16):
        return block.split(b"\n", 1)[0].removesuffix(b"\r")
    raise UserError(f"{path}: the file is empty; remove it or name another")


def parse(
    block: bytes,
    first_line: int,
    names: Sequence[str],
    wanted: Sequence[str],
    separator: str,
    quotes: bool,
    null_values: Sequence[str],
) -> tuple[dict[str, pa.Array], np.ndarray, tuple[Bad, ...]]:
    """A block of rows as string columns.

    Args:
      block: whole rows, from `blocks`.
      first_line: of the block in its file.
      names: of the columns of the file, in order.
      wanted: the columns to return.
      separator: one character between columns.
      quotes: whether double quotes may enclose a cell.
      null_values: spellings of a missing value.

    Returns:
      {name: string[n]}, lines i64[n], and the rows that are left out.
    """
    read = functools.partial(
        _arrow, names=names, wanted=wanted, separator=separator, null_values=null_values
    )
    quoted = quotes and b'"' in block
    if not quoted and b"\0" not in block:
        table = read(block, quoted=False)
        if table is not None and table.num_rows == block.count(b"\n") + (not block.endswith(b"\n")):
            return _columns(table, wanted), first_line + np.arange(table.num_rows), ()
    clean, lines, bad = _sieve(block, first_line, len(names), separator, quoted)
    if not len(lines):
        return {name: pa.array([], pa.string()) for name in wanted}, lines, bad
    table = read(clean, quoted=quoted)
    if table is None or table.num_rows != len(lines):
        raise ValueError(
            f"lines {lines[0]} .. {lines[-1]}: rows that passed every check cannot be parsed"
        )
    return _columns(table, wanted), lines, bad


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
      separator: between columns where quotes may enclose a cell, and a line end inside them ends no row.
      open_limit: a cell still open at the end of `data` hides line ends too, if it is shorter than this; otherwise
        it is taken for a stray quote, which the row check then reports.
    """
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if not separator or b'"' not in data:
        return ends
    cell = re.compile(
        rb"(?:\A|(?<=[\n" + re.escape(separator.encode()) + rb']))"(?:[^"]|"")*+("|\Z)'
    )
    spans = [m.span() for m in cell.finditer(data) if m[1] or len(data) - m.start() < open_limit]
    if not spans:
        return ends
    starts, stops = np.array(spans, np.int64).T
    inside = (
        np.searchsorted(starts, ends, side="left") - 1
    )  # the last cell that opens before each line end
    return ends[(inside < 0) | (ends > stops[inside])]


def _sieve(
    block: bytes, first_line: int, num_columns: int, separator: str, quoted: bool
) -> tuple[bytes, np.ndarray, tuple[Bad, ...]]:
    """The good rows, joined, their lines, and the bad ones; blank lines are neither."""
    good, lines, bad = [], [], []
    line, start = first_line, 0
    ends = _row_ends(block, separator if quoted else "").tolist()
    for end in ends if ends and ends[-1] == len(block) else [*ends, len(block)]:
        row = block[start:end].removesuffix(b"\n").removesuffix(b"\r")
        here, start = line, end
        line += 1 + row.count(b"\n")
        if not row:
            continue
        problem = _problem(row, num_columns, separator, quoted)
        if problem:
            bad.append(Bad(here, *problem))
        else:
            good.append(row)
            lines.append(here)
    return b"\n".join(good), np.array(lines, np.int64), tuple(bad)


def _problem(row: bytes, num_columns: int, separator: str, quoted: bool) -> tuple[str, str] | None:
    """(kind, reason) of what is wrong with a row, if anything."""
    if b"\0" in row:
        return "nul", "a NUL byte"
    try:
        text = row.decode()
    except UnicodeDecodeError as error:
        return "encoding", f"invalid UTF-8, byte 0x{row[error.start]:02x}"
    if quoted and '"' in text:
        try:
            rows = list(csv.reader([text], delimiter=separator, strict=True))
        except csv.Error as error:
            return "quote", f"its quotes do not match ({error})"
        found = len(rows[0])
    elif "\r" in text:
        return "line end", "a carriage return inside the row"
    else:
        found = text.count(separator) + 1
    return (
        None
        if found == num_columns
        else ("columns", f"{found} columns where {num_columns} are expected")
    )


def _arrow(block, names, wanted, separator, null_values, quoted) -> pa.Table | None:
    """The block as a table, or None where pyarrow finds rows of another length or invalid UTF-8."""
    try:
        return pa_csv.read_csv(
            pa.BufferReader(block),
            pa_csv.ReadOptions(
                use_threads=False, block_size=len(block) + 1, column_names=list(names)
            ),
            pa_csv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in wanted},
                include_columns=list(wanted),
                null_values=list(null_values),
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None


def _columns(table: pa.Table, wanted: Sequence[str]) -> dict[str, pa.Array]:
    return {name: table[name].combine_chunks() for name in wanted}
