"""Parquet shards: how encoded rows are written, checked and found again.

    <dir>/schema.json
    <dir>/vocabulary/<slot>.parquet     the values of a counted slot, in the order of their ids
    <dir>/<split>/part-00000.parquet    columns of the slots, label, ftype, row_id, weight, gauc_key
    <dir>/<split>/rejected.parquet      file, line, reason of rows that were left out; may be absent
    <dir>/<split>/_SUCCESS              row counts; a split without it is not read
    <dir>/<split>/truth.parquet         synthetic data only: the true probabilities, row by row

Ids are int32 and local to their slot (a bag: list<int32>), numbers float32, labels int8, types int8
(null = unknown). Row groups hold 64k rows, compressed by zstd. No jax here.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emofm_jax.data import files as files_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.problems import Bad
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

ROW_GROUP_ROWS = 1 << 16
SHARD_ROWS = 1 << 21
SPLITS = ("train", "valid", "test")
FINGERPRINT = b"emofm_jax.fingerprint"  # key of a shard's metadata
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
    if slot.is_numeric:
        return pa.float32()
    return pa.list_(pa.int32()) if slot.is_bag else pa.int32()


class Writer:
    """Writes one split: `with Writer(directory, "train", schema) as w: w.write(table)`.

    Rows are buffered into row groups of 64k. Leaving the block normally writes `_SUCCESS`; leaving
    it by an exception leaves a split that no reader accepts.

    Attributes:
      path: directory of the split.
      num_rows: rows that are in the files so far.
      rejected: {kind: rows} that were left out.
      first_rejected: file, line and reason of the first of them.
    """

    def __init__(self, directory: Path, split: str, schema: Schema):
        self.path = Path(directory) / split
        self.path.mkdir(parents=True, exist_ok=True)
        self.num_rows = 0
        self.rejected: Counter[str] = Counter()
        self.first_rejected = ""
        self._arrow_schema = arrow_schema(schema)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._file: pq.ParquetWriter | None = None
        self._file_rows: list[int] = []
        self._rejects: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Appends rows; `table` has the columns of `arrow_schema`, in any order."""
        self._pending.append(table.select(self._arrow_schema.names).cast(self._arrow_schema))
        self._pending_rows += table.num_rows
        if self._pending_rows < ROW_GROUP_ROWS:
            return

        rows = pa.concat_tables(self._pending).combine_chunks()
        whole = self._pending_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
        for start in range(0, whole, ROW_GROUP_ROWS):
            self._write_group(rows.slice(start, ROW_GROUP_ROWS))
        # A copy, since a slice keeps the memory of the whole table alive.
        rest = rows.slice(whole).take(pa.array(np.arange(self._pending_rows - whole)))
        self._pending, self._pending_rows = [rest], rest.num_rows

    def reject(self, file: str, bad: Sequence[Bad]) -> None:
        """Records rows of a file that were left out."""
        if self._rejects is None:
            path = self.path / "rejected.parquet"
            self._rejects = pq.ParquetWriter(path, _REJECTED, compression="zstd")
            self.first_rejected = f"{file}:{bad[0].line}: {bad[0].reason}"
        lines, kinds, reasons = zip(*bad)
        columns = [[file] * len(bad), lines, reasons]
        self._rejects.write_table(pa.table(columns, schema=_REJECTED))
        self.rejected.update(kinds)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        # A split without rows has one file too.
        if error_type is None and (self._pending_rows or not self._file_rows):
            rest = [self._arrow_schema.empty_table(), *self._pending]
            self._write_group(pa.concat_tables(rest).combine_chunks())
        for writer in (self._file, self._rejects):
            if writer is not None:
                writer.close()
        if error_type is None:
            counts = {"rows": self.num_rows, "files": self._file_rows}
            counts["rejected"] = dict(self.rejected)
            files_lib.write_json(self.path / "_SUCCESS", counts, indent=None)

    def _write_group(self, rows: pa.Table) -> None:
        if self._file is None:
            path = self.path / f"part-{len(self._file_rows):05d}.parquet"
            self._file = pq.ParquetWriter(path, self._arrow_schema, compression="zstd")
            self._file_rows.append(0)
        self._file.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        self._file_rows[-1] += rows.num_rows
        self.num_rows += rows.num_rows
        if self._file_rows[-1] >= SHARD_ROWS:
            self._file.close()
            self._file = None


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
    """

    path: Path
    schema: Schema
    files: tuple[Path, ...]
    row_groups: tuple[RowGroup, ...]
    num_rows: int

    def read_row_group(self, index: int, columns: list[str] | None) -> pa.Table:
        """One row group as a table of these columns, by default of all.

        Raises:
          UserError: the file cannot be decoded.
        """
        file, group, _ = self.row_groups[index]
        try:
            return pq.ParquetFile(self.files[file]).read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            where = f"{self.files[file]}: row group {group}"
            raise UserError(f"{where} cannot be read ({error}); prepare again") from None


def open_split(directory: Path, split: str, schema: Schema | None = None) -> Split:
    """Finds and checks a split: it is complete, of one schema, and every id is inside its slot.

    Args:
      directory: where `prepare` wrote.
      split: name of a sub-directory.
      schema: that the shards must have; by default the one in the directory.

    Raises:
      UserError: missing or incomplete split, truncated file, another schema, id out of range.
    """
    directory, path = Path(directory), Path(directory) / split
    ours = schema_lib.load(directory)
    if schema is not None and (differs := schema_lib.difference(schema, ours)):
        remedy = "prepare again or name another run"
        raise UserError(f"{directory}: its shards have another schema ({differs}); {remedy}")
    if not path.is_dir():
        found = sorted(p.name for p in directory.glob("*") if (p / "_SUCCESS").exists())
        raise UserError(f"{path}: no such split; prepare it, or choose one of {', '.join(found)}")

    num_rows, file_rows = _read_counts(path)
    files = tuple(sorted(path.glob("part-*.parquet")))
    if len(files) != len(file_rows):
        counted = f"{len(files)} shards where _SUCCESS counts {len(file_rows)}"
        raise UserError(f"{path}: {counted}; prepare again")
    groups = [_check_shard(file, rows, ours) for file, rows in zip(files, file_rows)]
    row_groups = [RowGroup(i, g, n) for i, rows in enumerate(groups) for g, n in enumerate(rows)]
    return Split(path, ours, files, tuple(row_groups), num_rows)


def _read_counts(path: Path) -> tuple[int, list[int]]:
    """Rows of a split, in all and of each file."""
    try:
        counts = json.loads((path / "_SUCCESS").read_text())
        return counts["rows"], counts["files"]
    except FileNotFoundError:
        problem = "no _SUCCESS file, so the split is not complete"
        raise UserError(f"{path}: {problem}; prepare again") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}/_SUCCESS: not readable; prepare again") from None


def _check_shard(file: Path, rows: int, schema: Schema) -> list[int]:
    """Checks that a file is whole and of the schema; returns the rows of its row groups."""
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a complete Parquet file ({error}); prepare again") from None
    found = (metadata.metadata or {}).get(FINGERPRINT, b"none").decode()
    if found != schema.fingerprint():
        raise UserError(
            f"{file}: its schema has the fingerprint {found}, but schema.json "
            f"{schema.fingerprint()}; shards of different schemas cannot be mixed, prepare again"
        )
    if metadata.num_rows != rows:
        counted = f"{metadata.num_rows} rows where _SUCCESS counts {rows}"
        raise UserError(f"{file}: {counted}; prepare again")
    _check_ids(file, metadata, schema)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _check_ids(file: Path, metadata: pq.FileMetaData, schema: Schema) -> None:
    """Checks the smallest and largest id of every row group, by Parquet's statistics."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    columns = {path.removesuffix(".list.element"): i for i, path in enumerate(paths)}
    slots = [(slot, columns[slot.name]) for slot in schema.slots if not slot.is_numeric]

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
