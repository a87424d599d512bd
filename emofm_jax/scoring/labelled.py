"""Labelled rows, of shards or raw files -> labels and scores of every row, by any scorer."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from emofm_jax.data import coded as coded_lib
from emofm_jax.data import features, shards
from emofm_jax.data.coded import Coded
from emofm_jax.data.raw_rows import RawRows
from emofm_jax.errors import UserError
from emofm_jax.scoring.row_files import BATCH_ROWS

if TYPE_CHECKING:  # which loads jax
    from emofm_jax.scoring.scorer import Scorer


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Rows that could be read, in their order, with their scores; n rows.

    Attributes:
      position: i64[n], the place of each row among all.
      label: i8[n].
      ftype: i32[n], an index into the schema's types, -1 unknown.
      weight: f32[n], or None where rows have none.
      key: i64[n] of the GAUC, or None.
      p, logit: f32[n].
      coded: of the rows, by the columns that were asked for.
      rejected: (position, reason) of the rows that could not be read.
    """

    position: np.ndarray
    label: np.ndarray
    ftype: np.ndarray
    weight: np.ndarray | None
    key: np.ndarray | None
    p: np.ndarray
    logit: np.ndarray
    coded: dict[str, Coded]
    rejected: Sequence[tuple[int, str]] = ()

    def take(self, index: np.ndarray) -> "Labelled":
        """Some of the rows."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        arrays = {k: x[index] for k, x in fields.items() if isinstance(x, np.ndarray)}
        some = {
            name: dataclasses.replace(one, code=one.code[index]) for name, one in self.coded.items()
        }
        return dataclasses.replace(self, **arrays, coded=some)


def score(scorer: "Scorer", rows: shards.Split | RawRows, by: Sequence[str]) -> Labelled:
    """Scores every row that can be read.

    Args:
      scorer: of the schema of the rows.
      rows: a split, or raw rows that collect the columns of `by`.
      by: columns.

    Raises:
      UserError: no row can be read; the split has no rows; a score is not finite.
    """
    if isinstance(rows, shards.Split) and not rows.num_rows:
        raise UserError(f"{rows.path}: the split has no rows; name another (--split)")
    parts: dict[str, list[np.ndarray]] = {}
    look: dict[str, Any] = {"unit": " rows", "unit_scale": True, "leave": False}
    look |= {"desc": f"  {Path(scorer.names[0]).name}", "disable": not sys.stderr.isatty()}
    with tqdm(**look) as bar:
        for table in _tables(rows):
            inputs = features.from_table(table, scorer.schema)
            scores = scorer.start(inputs, BATCH_ROWS)()
            found = {name: scores[name] for name in ("p", "logit")} | _roles(table)
            for name, array in found.items():
                parts.setdefault(name, []).append(array)
            bar.update(table.num_rows)

    arrays: dict[str, Any] = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    finite = np.isfinite(arrays["logit"])
    if not finite.all():
        remedy = "lower the learning rate and train again"
        where = f"{scorer.names[0]}: the score of row {int(np.argmin(finite))}"
        raise UserError(f"{where} is not finite; {remedy}")
    if isinstance(rows, RawRows):
        extra = {"position": rows.positions, "rejected": rows.rejected}
        found = rows.coded()
    else:
        extra = {"position": np.arange(len(finite))}
        found = [coded_lib.of_split(rows, scorer.directory, column) for column in by]
    optional = {"weight": None, "key": None}
    return Labelled(**optional | arrays, **extra, coded=dict(zip(by, found)))


def _tables(rows: shards.Split | RawRows) -> Iterator[pa.Table]:
    """The encoded rows, piece by piece."""
    if isinstance(rows, RawRows):
        yield from rows.tables()
        return
    for group in range(len(rows.row_groups)):
        yield rows.read_row_group(group, None)


def _roles(table: pa.Table) -> dict[str, np.ndarray]:
    """What the rows have beside their slots."""
    known = {"label": np.int8, "ftype": np.int32, "weight": np.float32, "gauc_key": np.int64}
    absent = {"ftype": -1, "gauc_key": 0}
    found = {}
    for name, kind in known.items():
        if name in table.column_names:
            column = table[name].fill_null(absent.get(name, 0)).to_numpy()
            found["key" if name == "gauc_key" else name] = column.astype(kind)
    found.setdefault("ftype", np.full(table.num_rows, -1, np.int32))
    return found
