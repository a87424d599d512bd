"""Parquet shards: how encoded rows are written, checked and found again.

    <dir>/schema.json
    <dir>/vocabulary/<slot>.parquet      the values of a counted slot, in the order of their ids
    <dir>/<split>/part-00000.parquet     one column per slot, then label, ftype, row_id, weight, gauc_key
    <dir>/<split>/rejected.parquet       file, line and reason of every row that was left out (absent if none)
    <dir>/<split>/_SUCCESS               row counts; a split without it is not read
    <dir>/<split>/truth.parquet          synthetic data only: the true probabilities, row by row

Ids are int32 and local to their slot (a bag: list<int32>), numbers float32, labels int8, types int8 (null =
unknown). Row groups hold 64k rows, compressed by zstd. No jax here.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError

ROW_GROUP_ROWS = 1 << 16
SHARD_ROWS = 1 << 21
SPLITS = ("train", "valid", "test")
FINGERPRINT = b"emofm_jax.fingerprint"  # key of a shard's metadata


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of a shard."""
    fields = []
    for slot in schema.slots:
        if slot.is_numeric:
            fields.append(pa.field(slot.name, pa.float32()))
        elif slot.kind == "multi":
            fields.append(pa.field(slot.name, pa.list_(pa.int32())))
        else:
            fields.append(pa.field(slot.name, pa.int32()))
    fields.append(pa.field("label", pa.int8()))
    if schema.types:
        fields.append(pa.field("ftype", pa.int8()))
    if schema.row_id:
        fields.append(pa.field("row_id", pa.int64() if schema.row_id == "int64" else pa.string()))
    if schema.has_weight:
        fields.append(pa.field("weight", pa.float32()))
    if schema.has_gauc_key:
        fields.append(pa.field("gauc_key", pa.int64()))
    return pa.schema(fields, metadata={FINGERPRINT: schema.fingerprint().encode()})


class Writer:
    """Writes one split: `with Writer(directory, "train", schema) as w: w.write(table)`.

    Rows are buffered into row groups of 64k. Leaving the block normally writes `_SUCCESS`; leaving it by an
    exception leaves a split that no reader accepts (`prepare` removes the whole directory).
    """

    def __init__(self, directory: Path, split: str, schema: Schema):
        self.path = Path(directory) / split
        self.path.mkdir(parents=True, exist_ok=True)
        self.schema = schema
        self.arrow_schema = arrow_schema(schema)
        self.num_rows = 0
        self.rejected: Counter = Counter()
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._file: pq.ParquetWriter | None = None
        self._file_rows: list[int] = []
        self._rejects: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Appends rows; `table` has the columns of `arrow_schema`, in any order."""
        self._pending.append(table.select(self.arrow_schema.names).cast(self.arrow_schema))
        self._pending_rows += table.num_rows
        if self._pending_rows >= ROW_GROUP_ROWS:
            rows = pa.concat_tables(self._pending).combine_chunks()
            whole = self._pending_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            for start in range(0, whole, ROW_GROUP_ROWS):
                self._write_group(rows.slice(start, ROW_GROUP_ROWS))
            # A copy, since a slice keeps the memory of the whole table alive.
            rest = rows.slice(whole).take(pa.array(np.arange(self._pending_rows - whole)))
            self._pending, self._pending_rows = [rest], rest.num_rows

    def reject(
        self, file: str, lines: list[int], reasons: list[str], kinds: list[str] | None = None
    ) -> None:
        """Records rows that were left out: where they stood and why; `kinds` groups the reasons in the report."""
        if self._rejects is None:
            fields = [("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())]
            self._rejects = pq.ParquetWriter(
                self.path / "rejected.parquet", pa.schema(fields), compression="zstd"
            )
        self._rejects.write_table(
            pa.table({"file": [file] * len(lines), "line": lines, "reason": reasons})
        )
        self.rejected.update(kinds or reasons)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None and (self._pending_rows or not self._file_rows):
            rest = (
                pa.concat_tables(self._pending)
                if self._pending
                else self.arrow_schema.empty_table()
            )
            self._write_group(rest.combine_chunks())
        for writer in (self._file, self._rejects):
            if writer is not None:
                writer.close()
        if error_type is None:
            counts = {
                "rows": self.num_rows,
                "files": self._file_rows,
                "rejected": dict(self.rejected),
            }
            (self.path / "_SUCCESS").write_text(json.dumps(counts) + "\n")

    def _write_group(self, rows: pa.Table) -> None:
        if self._file is None:
            name = f"part-{len(self._file_rows):05d}.parquet"
            self._file = pq.ParquetWriter(self.path / name, self.arrow_schema, compression="zstd")
            self._file_rows.append(0)
        self._file.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        self._file_rows[-1] += rows.num_rows
        self.num_rows += rows.num_rows
        if self._file_rows[-1] >= SHARD_ROWS:
            self._file.close()
            self._file = None


@dataclasses.dataclass(frozen=True)
class Split:
    """A complete, checked split.

    Attributes:
      path: its directory.
      schema: of the shards.
      files: its Parquet files, in order.
      row_groups: (index into `files`, row group, rows), in order.
      num_rows: rows in all.
    """

    path: Path
    schema: Schema
    files: tuple[Path, ...]
    row_groups: tuple[tuple[int, int, int], ...]
    num_rows: int

    def read_row_group(self, index: int, columns: list[str]) -> pa.Table:
        """One row group as a table.

        Raises:
          UserError: the file cannot be decoded.
        """
        file, group, _ = self.row_groups[index]
        try:
            return pq.ParquetFile(self.files[file]).read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{self.files[file]}: row group {group} cannot be read ({error}); prepare again"
            ) from None


def open_split(directory: Path, split: str, schema: Schema | None = None) -> Split:
    """Finds and checks a split: complete, of one schema, every id inside its slot (by Parquet's statistics).

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
        raise UserError(
            f"{directory}: its shards have another schema ({differs}); prepare again or name another run"
        )
    if not path.is_dir():
        raise UserError(
            f"{path}: no such split; prepare it, or choose one of {', '.join(_splits(directory))}"
        )
    try:
        counts = json.loads((path / "_SUCCESS").read_text())
        num_rows, file_rows = counts["rows"], counts["files"]
    except FileNotFoundError:
        raise UserError(
            f"{path}: no _SUCCESS file, so the split is not complete; prepare again"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}/_SUCCESS: not readable; prepare again") from None
    files = tuple(sorted(path.glob("part-*.parquet")))
    if len(files) != len(file_rows):
        raise UserError(
            f"{path}: {len(files)} shards where _SUCCESS counts {len(file_rows)}; prepare again"
        )
    row_groups = []
    for i, (file, rows) in enumerate(zip(files, file_rows)):
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file}: not a complete Parquet file ({error}); prepare again"
            ) from None
        found = (metadata.metadata or {}).get(FINGERPRINT, b"none").decode()
        if found != ours.fingerprint():
            raise UserError(
                f"{file}: its schema has the fingerprint {found}, but schema.json {ours.fingerprint()}; "
                "shards of different schemas cannot be mixed, prepare again"
            )
        if metadata.num_rows != rows:
            raise UserError(
                f"{file}: {metadata.num_rows} rows where _SUCCESS counts {rows}; prepare again"
            )
        _check_ids(file, metadata, ours)
        row_groups += [
            (i, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)
        ]
    return Split(path, ours, files, tuple(row_groups), num_rows)


def rejected(directory: Path, split: str) -> dict[str, int]:
    """How many rows of each kind were left out when the split was prepared."""
    return json.loads((Path(directory) / split / "_SUCCESS").read_text())["rejected"]


def _splits(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.glob("*") if (p / "_SUCCESS").exists())


def _check_ids(file: Path, metadata: pq.FileMetaData, schema: Schema) -> None:
    """Checks every row group's smallest and largest id against the rows of its slot."""
    paths = [
        metadata.schema.column(i).path.removesuffix(".list.element")
        for i in range(metadata.num_columns)
    ]
    columns = {path: i for i, path in enumerate(paths)}
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
