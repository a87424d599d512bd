"""Labelled raw rows -> encoded rows, with what becomes known of them on the way.

Reads them as a run's own data were read: its recipe, its vocabularies.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from emofm_jax.data import batches, encode, raw_files, recipe
from emofm_jax.data import coded as coded_lib
from emofm_jax.data.problems import Notes
from emofm_jax.data.raw_files import without_compression
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError


class RawRows:
    """Raw rows of files; iterating, once, gives `batches.Rows`, and fills the attributes.

    `tables` gives the same rows as `shards` would hold them.

    Attributes:
      schema, directory: of the run.
      num_read: rows of the files.
      rejected: (position among them, file, line and reason) of each row that is left out.
      notes: on rows and files.
      unseen: as `Encoder` has them.
      days: of the rows, as far as the run's rows were split by day and these have one.
    """

    def __init__(
        self, schema: Schema, directory: Path, paths: Sequence[Path], by: Mapping[str, str]
    ):
        """Checks what can be seen before anything is read.

        Args:
          schema, directory: of the run.
          paths: files, and directories of files.
          by: {column to group the rows by: flag that names it}.

        Raises:
          UserError: made-up data, shards, no such file or one that is named twice, a column that
            cannot be grouped by.
        """
        for path in paths:
            _check(schema, path)
        self._files = [file for path in paths for file in raw_files.find(path)]
        recipe.check_once(self._files)
        coded_lib.check(schema, [*by], of_shards=False)
        self._by = dict(by)
        self.schema, self.num_read = schema, 0
        self.rejected: list[tuple[int, str]] = []
        self.notes = Notes()
        self.unseen: Mapping[str, list[str]] = {}
        self.days: set[str] = set()
        self.directory, self._paths = directory, paths
        self._collectors = {name: coded_lib.Collector(name) for name in by}
        self._positions: list[np.ndarray] = []
        self._row_ids: list[pa.Array] = []

    @property
    def files(self) -> list[Path]:
        """The files that hold the rows."""
        return [file.path for file in self._files]

    @property
    def name(self) -> str:
        """The input in words."""
        return ", ".join(map(str, self._paths))

    @property
    def stem(self) -> str:
        """Of the files that are written of the input: the first one's name, without endings."""
        first = self._paths[0].resolve()
        plain = without_compression(first)
        stem = plain.stem if first.is_file() else first.name
        more = len(self._paths) - 1
        return f"input@{stem}+{more}" if more else f"input@{stem}"

    @property
    def positions(self) -> np.ndarray:
        """i64[n]: the place of each row that was kept among all rows, from 0."""
        return np.concatenate(self._positions or [np.zeros(0, np.int64)])

    @property
    def row_id(self) -> pa.ChunkedArray | None:
        """The row id of each row that was kept; None where the run has no column of them."""
        # Of one file they may be text, and of another integers.
        kinds = {ids.type for ids in self._row_ids}
        one = [ids if len(kinds) == 1 else ids.cast(pa.string()) for ids in self._row_ids]
        return pa.chunked_array(one) if one else None

    def coded(self) -> list[coded_lib.Coded]:
        """The rows that were kept by the values of each column."""
        return [collector.coded() for collector in self._collectors.values()]

    def __iter__(self) -> Iterator[batches.Rows]:
        return (batches.to_rows(table, self.schema) for table in self.tables())

    def tables(self) -> Iterator[pa.Table]:
        """Encoded rows that could be read, piece by piece."""
        where = (self.directory, self._files)
        for chunk in encode.read_encoded(self.schema, *where, labelled=True, also=self._by):
            positions = self.num_read + np.arange(len(chunk.kept))
            self.num_read += len(positions)
            self.unseen = chunk.unseen
            self.days |= chunk.days
            bad = np.flatnonzero(~chunk.kept).tolist()
            self.rejected += [(int(positions[row]), str(chunk.reasons[row])) for row in bad]
            self.notes.join(chunk.notes)
            self._positions.append(positions[chunk.kept])
            if self.schema.row_id:
                self._row_ids.append(chunk.row_id.filter(pa.array(chunk.kept)))
            for name, collector in self._collectors.items():
                collector.add(chunk.also[name])
            yield chunk.table

        if not self.num_read:
            raise UserError(f"--input={self.name}: it has no rows; name labelled raw rows")
        if len(self.rejected) == self.num_read:
            none = f"none of its {self.num_read:,} rows can be read as a labelled row"
            raise UserError(f"--input={self.name}: {none}; the first: {self.rejected[0][1]}")


def _check(schema: Schema, path: Path) -> None:
    where = f"--input={path}"
    if schema.recipe.get("format") == "synthetic":
        remedy = "name shards of such data (--data=DIR)"
        raise UserError(f"{where}: the run's data are made up, and have no raw rows; {remedy}")
    if not path.exists():
        raise UserError(f"{where}: no such file or directory; name raw rows")

    for directory, split in ((path, "test"), (path.resolve().parent, path.resolve().name)):
        if (directory / "schema.json").exists():
            shards = f"--data={directory} --split={split}"
            raise UserError(f"{where}: it holds shards, not raw rows; write {shards}")
