"""Parquet shards: how encoded rows are written, checked and found again.

    <dir>/schema.json
    <dir>/vocabulary/<slot>.parquet     the values of a counted slot, in the order of their ids
    <dir>/<split>/part-00000.parquet    columns of the slots, label, ftype, row_id, weight, gauc_key
    <dir>/<split>/rejected.parquet      file, line, reason of rows that were left out; may be absent
    <dir>/<split>/_SUCCESS              rows and digests; a split without it is not read
    <dir>/<split>/truth.parquet         synthetic data only: the true probabilities, row by row

Each file holds the digest of its rows, `_SUCCESS` those of all files of the split, and schema.json
one of each split: data that are prepared anew while somebody reads are told at the next read.

Ids are int32 and local to their slot (a bag: list<int32>), numbers float32 (a vector:
list<float32>), labels int8, types int8 (null = unknown). A weighted id is struct<id, weight>. Row
groups hold 64k rows, compressed by zstd. No jax here.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from emofm_jax import errors
from emofm_jax.data import files as files_lib
from emofm_jax.data import parquet, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.problems import Bad
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

ROW_GROUP_ROWS = 1 << 16
SHARD_ROWS = 1 << 21
SPLITS = ("train", "valid", "test")
# Keys of a shard's metadata.
FINGERPRINT = b"emofm_jax.fingerprint"
DIGEST = b"emofm_jax.digest"
_SUCCESS = "_SUCCESS"
ANEW = "the data were prepared anew, or moved, while this program reads them; start it again"
WEIGHTED = pa.struct([("id", pa.int32()), ("weight", pa.float32())])
_REJECTED = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])


def columns(schema: Schema) -> dict[str, pa.DataType]:
    """Names and types of the columns of a shard."""
    types = {slot.name: _column_type(slot) for slot in schema.slots}
    types["label"] = pa.int8()
    if schema.types:
        types["ftype"] = pa.int8()
    if schema.row_id:
        types["row_id"] = pa.int64() if schema.row_id == "int64" else pa.string()
    if schema.has_weight:
        types["weight"] = pa.float32()
    if schema.has_gauc_key:
        types["gauc_key"] = pa.int64()
    return types


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of a shard, and the schema's fingerprint."""
    return pa.schema(columns(schema), metadata={FINGERPRINT: schema.fingerprint().encode()})


def _column_type(slot: Slot) -> pa.DataType:
    if not slot.holds_ids:
        return pa.list_(pa.float32()) if slot.is_vector else pa.float32()
    element = WEIGHTED if slot.weighted else pa.int32()
    return pa.list_(element) if slot.is_bag else element


class Writer:
    """Writes one split: `with Writer(directory, "train", schema) as w: w.write(table)`.

    Rows are buffered into row groups of 64k. A thread writes one as the next is gathered; what it
    raises, the next `write` or the end of the block raises. Leaving the block normally writes
    `_SUCCESS`; leaving it by an exception leaves a split that no reader accepts.

    Attributes:
      path: directory of the split.
      num_rows: rows that are in the files so far.
      rejected: {kind: rows} that were left out.
      first_rejected: file, line and reason of the first of them.
      digests: of the files, once they are closed.
    """

    def __init__(self, directory: Path, split: str, schema: Schema):
        self.path = Path(directory) / split
        files_lib.make_directory(self.path)
        self.num_rows = 0
        self.rejected: Counter[str] = Counter()
        self.first_rejected = ""
        self._arrow_schema = arrow_schema(schema)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._file: parquet.Writer | None = None
        self._file_rows: list[int] = []
        self._digest = xxhash.xxh3_64()
        self.digests: list[str] = []
        self._rejects: parquet.Writer | None = None
        self._thread = ThreadPoolExecutor(1, "shards")
        self._writing: Future[None] | None = None

    def write(self, table: pa.Table) -> None:
        """Appends rows; `table` has the columns of `arrow_schema`, in any order."""
        self._pending.append(table.select(self._arrow_schema.names).cast(self._arrow_schema))
        self._pending_rows += table.num_rows
        if self._pending_rows < ROW_GROUP_ROWS:
            return

        rows = pa.concat_tables(self._pending).combine_chunks()
        whole = self._pending_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
        for start in range(0, whole, ROW_GROUP_ROWS):
            self._wait()
            group = rows.slice(start, ROW_GROUP_ROWS)
            self._writing = self._thread.submit(self._write_group, group)
        # A copy, since a slice keeps the memory of the whole table alive.
        rest = rows.slice(whole).take(pa.array(np.arange(self._pending_rows - whole)))
        self._pending, self._pending_rows = [rest], rest.num_rows

    def reject(self, file: str, bad: Sequence[Bad]) -> None:
        """Records rows of a file that were left out."""
        file = files_lib.said(file)
        if self._rejects is None:
            path = self.path / "rejected.parquet"
            self._rejects = parquet.Writer(path, _REJECTED)
            self.first_rejected = f"{file}:{bad[0].line}: {bad[0].reason}"
        lines, kinds, reasons = zip(*bad)
        columns = [[file] * len(bad), lines, reasons]
        self._rejects.write(pa.table(columns, schema=_REJECTED))
        self.rejected.update(kinds)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        self._thread.shutdown()
        if error_type is None:
            self._wait()
        # A split without rows has one file too.
        if error_type is None and (self._pending_rows or not self._file_rows):
            rest = [self._arrow_schema.empty_table(), *self._pending]
            self._write_group(pa.concat_tables(rest).combine_chunks())

        self._close_file()
        if self._rejects is not None:
            self._rejects.close()
        if error_type is None:
            counts = {"rows": self.num_rows, "files": self._file_rows}
            counts |= {"rejected": dict(self.rejected), "digests": self.digests}
            files_lib.write_json(self.path / _SUCCESS, counts, indent=None)

    def _wait(self) -> None:
        """Waits for the thread; raises what it has raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write_group(self, rows: pa.Table) -> None:
        if self._file is None:
            path = self.path / f"part-{len(self._file_rows):05d}.parquet"
            self._file = parquet.Writer(path, self._arrow_schema)
            self._file_rows.append(0)
            self._digest = xxhash.xxh3_64(self._arrow_schema.metadata[FINGERPRINT])

        for column in rows.itercolumns():
            _add(self._digest, column.combine_chunks())
        self._file.write(rows, ROW_GROUP_ROWS)
        self._file_rows[-1] += rows.num_rows
        self.num_rows += rows.num_rows
        if self._file_rows[-1] >= SHARD_ROWS:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self.digests.append(self._digest.hexdigest())
            self._file.note({DIGEST: self.digests[-1].encode()})
            self._file.close()
            self._file = None


def digest_of(digests: Sequence[str]) -> str:
    """The digest of a split from those of its files; empty in data of release 0.1."""
    return xxhash.xxh3_64_hexdigest(" ".join(digests).encode()) if any(digests) else ""


def digests(directory: Path) -> dict[str, str]:
    """{split: digest} of all complete splits of a directory."""
    there = [name for name in SPLITS if (Path(directory) / name / _SUCCESS).exists()]
    return {name: digest_of(_read_counts(Path(directory) / name)[2]) for name in there}


def _add(digest: xxhash.xxh3_64, column: pa.Array) -> None:
    """Adds the values of a column, whatever their offset and whatever lies under nulls."""
    if column.null_count:
        digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_struct(column.type):
        for child in column.flatten():
            _add(digest, child)
    elif pa.types.is_list(column.type):
        digest.update(pc.list_value_length(column).fill_null(0).to_numpy())
        _add(digest, column.flatten())
    elif pa.types.is_string(column.type) and len(column):
        column = column.fill_null("")
        digest.update(pc.binary_length(column).to_numpy())
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset :]
        text = memoryview(column.buffers()[2] or b"")
        digest.update(text[offsets[0] : offsets[len(column)]])
    elif len(column):
        digest.update(column.fill_null(0).to_numpy())


class RowGroup(NamedTuple):
    """Index of a file in `Split.files`, of a row group in it, and its rows."""

    file: int
    group: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Split:
    """A complete, checked split.

    Attributes:
      path: its directory.
      schema: of the shards.
      files: its Parquet files, in order.
      row_groups: all of them, in order.
      num_rows: rows in all.
      digests: of the files; empty texts in data of release 0.1.
    """

    path: Path
    schema: Schema
    files: tuple[Path, ...]
    row_groups: tuple[RowGroup, ...]
    num_rows: int
    digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 hex digits of all rows; empty in data of release 0.1."""
        return digest_of(self.digests)

    def check(self) -> None:
        """Raises UserError if the data have been prepared anew since the split was opened."""
        if not self.path.is_dir() or tuple(_read_counts(self.path)[2]) != self.digests:
            raise UserError(f"{self.path}: not as it was when it was opened; {ANEW}")

    def read_row_group(self, index: int, columns: list[str] | None) -> pa.Table:
        """One row group as a table of these columns, by default of all.

        Raises:
          UserError: the file cannot be decoded, or is not the one that was opened; FileError: the
            system cannot read it.
        """
        file, group, num_rows = self.row_groups[index]
        path = self.files[file]
        try:
            with parquet.open_file(path) as opened:
                if digest_in(opened.metadata) != self.digests[file]:
                    raise UserError(f"{path}: another file than before; {ANEW}")
                table = opened.read_row_group(group, columns=columns)
        except FileNotFoundError:
            raise UserError(f"{path}: not there any more; {ANEW}") from None
        except (pa.ArrowException, OSError) as error:
            damage = f"{path}: row group {group} cannot be read ({error}); prepare again"
            raise errors.unreadable(path, error, damage) from None

        if table.num_rows != num_rows:
            read = f"{table.num_rows} rows of row group {group} were read where it has {num_rows}"
            raise UserError(f"{path}: {read}; prepare again")
        return table


def digest_in(metadata: pq.FileMetaData) -> str:
    """The digest that a file holds; empty in data of release 0.1."""
    return (metadata.metadata or {}).get(DIGEST, b"").decode(errors="replace")


def verify(split: Split) -> None:
    """Reads every row and compares the digests of the files, as far as they have some.

    Raises:
      UserError: a file is not what was written.
    """
    for index, path in enumerate(split.files):
        found = xxhash.xxh3_64(split.schema.fingerprint().encode())
        for group, row_group in enumerate(split.row_groups):
            if row_group.file == index:
                for column in split.read_row_group(group, None).itercolumns():
                    _add(found, column.combine_chunks())
        if split.digests[index] and found.hexdigest() != split.digests[index]:
            other = f"its rows have the digest {found.hexdigest()}, not {split.digests[index]}"
            raise UserError(f"{path}: {other}; prepare again")


def is_split(path: Path) -> bool:
    """Whether a directory is a complete split; Spark, too, leaves a `_SUCCESS`."""
    return (path / "_SUCCESS").exists() and (path.resolve().parent / "schema.json").exists()


def open_split(directory: Path, split: str, schema: Schema | None = None) -> Split:
    """Finds and checks a split: it is complete, of one schema, and every id is inside its slot.

    Args:
      directory: where `prepare` wrote.
      split: name of a sub-directory.
      schema: that the shards must have; by default the one in the directory.

    Raises:
      UserError: missing or incomplete split, truncated file, another schema, id out of range.
    """
    directory = storage.reading(directory)
    path = directory / split
    ours = schema_lib.load(directory)
    if schema is not None and (differs := schema_lib.difference(schema, ours)):
        remedy = schema_lib.remedy(schema, ours, "evaluate raw rows (--input), or name another run")
        raise UserError(f"{directory}: its shards have another schema ({differs}); {remedy}")
    if not path.is_dir():
        found = sorted(p.name for p in directory.glob("*") if (p / _SUCCESS).exists())
        raise UserError(f"{path}: no such split; prepare it, or choose one of {', '.join(found)}")

    storage.need(path)
    num_rows, file_rows, digests = _read_counts(path)
    if ours.digests and digest_of(digests) != ours.digests.get(split):
        raise UserError(f"{path}: not of the preparation of its schema.json; {ANEW}")
    files = tuple(sorted(path.glob("part-*.parquet")))
    if len(files) != len(file_rows):
        counted = f"{len(files)} shards where _SUCCESS counts {len(file_rows)}"
        raise UserError(f"{path}: {counted}; prepare again")
    wanted = zip(files, file_rows, digests)
    groups = [_check_shard(file, rows, digest, ours) for file, rows, digest in wanted]
    row_groups = [RowGroup(i, g, n) for i, rows in enumerate(groups) for g, n in enumerate(rows)]
    if num_rows != sum(file_rows):
        counted = f"{num_rows} rows where its files have {sum(file_rows)}"
        raise UserError(f"{path}/{_SUCCESS}: it counts {counted}; prepare again")
    return Split(path, ours, files, tuple(row_groups), num_rows, tuple(digests))


def _read_counts(path: Path) -> tuple[int, list[int], list[str]]:
    """Rows of a split, in all and of each file, and the digest of each file."""
    try:
        counts = files_lib.read_json(path / _SUCCESS)
        return counts["rows"], counts["files"], counts.get("digests", [""] * len(counts["files"]))
    except FileNotFoundError:
        problem = "no _SUCCESS file, so the split is not complete"
        raise UserError(f"{path}: {problem}; prepare again") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}/{_SUCCESS}: not readable; prepare again") from None


def _check_shard(file: Path, rows: int, digest: str, schema: Schema) -> list[int]:
    """Checks that a file is whole and of the schema; returns the rows of its row groups."""
    try:
        with parquet.open_file(file) as opened:
            metadata = opened.metadata
    except FileNotFoundError:
        raise UserError(f"{file}: not there any more; {ANEW}") from None
    except (pa.ArrowException, OSError) as error:
        damage = f"{file}: not a complete Parquet file ({error}); prepare again"
        raise errors.unreadable(file, error, damage) from None

    found = (metadata.metadata or {}).get(FINGERPRINT, b"none").decode(errors="replace")
    if found != schema.fingerprint():
        raise UserError(
            f"{file}: its schema has the fingerprint {found}, but schema.json "
            f"{schema.fingerprint()}; shards of different schemas cannot be mixed, prepare again"
        )
    if digest_in(metadata) != digest:
        counted = f"its digest is {digest_in(metadata) or 'none'} where {_SUCCESS} has {digest}"
        raise UserError(f"{file}: {counted}; prepare again, or start again if that is under way")
    if metadata.num_rows != rows:
        counted = f"{metadata.num_rows} rows where _SUCCESS counts {rows}"
        raise UserError(f"{file}: {counted}; prepare again")
    _check_ids(file, metadata, schema)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _check_ids(file: Path, metadata: pq.FileMetaData, schema: Schema) -> None:
    """Checks the smallest and largest id of every row group, by Parquet's statistics."""
    # A weighted slot has two columns, ids and weights.
    first = np.cumsum([0, *(1 + slot.weighted for slot in schema.slots)]).tolist()
    slots = [(slot, column) for slot, column in zip(schema.slots, first) if slot.holds_ids]

    for group in range(metadata.num_row_groups):
        for slot, column in slots:
            statistics = metadata.row_group(group).column(column).statistics
            if statistics is None or not statistics.has_min_max:
                continue
            for value in (statistics.min, statistics.max):
                if not 0 <= value < slot.rows:
                    raise UserError(
                        f"{file}: slot {slot.name!r} holds the id {value} in row group {group}; "
                        f"its ids are 0 .. {slot.rows - 1} (prepare again, or raise its rows)"
                    )
