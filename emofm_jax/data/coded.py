"""Rows by the values of a column: a code per row, and the value that each code stands for.

    raw rows   the column's text, as it stands in the file
    shards     a slot's values by its vocabulary, or its ids where it has none; `ftype`: the types

Memory is 4 bytes a row and the distinct values.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from emofm_jax.data import vocabulary
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.shards import Split
from emofm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Coded:
    """The rows of a table by the values of one column.

    Attributes:
      column: its name.
      code: i32[n], an index into `values`.
      values: of the codes; None stands for `missing`.
      missing: what a row of the value None lacks, in words.
    """

    column: str
    code: np.ndarray
    values: list[str | None]
    missing: str = "missing"


class Collector:
    """Gathers the values of a column that comes in pieces of text."""

    def __init__(self, column: str):
        self._column = column
        self._codes: dict[str | None, int] = {}
        self._pieces: list[np.ndarray] = []

    def add(self, values: pa.Array) -> None:
        """Adds string[n], null where missing."""
        coded = values.dictionary_encode()
        distinct = [*coded.dictionary.to_pylist(), None]
        codes = self._codes
        if not coded.null_count:
            distinct.pop()
        code = np.array([codes.setdefault(value, len(codes)) for value in distinct], np.int32)
        self._pieces.append(code[coded.indices.fill_null(len(coded.dictionary)).to_numpy()])

    def coded(self) -> Coded:
        """All of the rows so far."""
        code = np.concatenate(self._pieces or [np.zeros(0, np.int32)])
        return Coded(self._column, code, list(self._codes))


def check(schema: Schema, columns: Sequence[str], of_shards: bool, flag: str = "by") -> None:
    """Raises UserError on columns that rows cannot be grouped by, as far as the schema knows them.

    Args:
      of_shards: whether the rows are of shards, which hold slots and types only.
      flag: that names the columns.
    """
    slots = {slot.name: slot for slot in schema.slots}
    for name in columns:
        where, slot = f"--{flag}={name}", slots.get(name)
        if not name:
            raise UserError(
                f"--{flag}={','.join(columns)}: a name is empty; name columns with commas"
            )
        if columns.count(name) > 1:
            raise UserError(f"{where}: it stands twice; name it once")
        if slot is not None and (slot.is_bag or slot.is_vector or slot.weighted):
            several = "its values have weights, or are several a row"
            raise UserError(f"{where}: {several}; name a column of single values")
        if not of_shards:
            continue
        if slot is not None and slot.is_numeric:
            remedy = "give the raw rows (--input), or name another column"
            raise UserError(f"{where}: shards hold a transformed number; {remedy}")
        if slot is None and not (name == "ftype" and schema.types):
            known = [s.name for s in schema.slots if s.holds_ids and not (s.is_bag or s.weighted)]
            known += ["ftype"] if schema.types else []
            remedy = "name one of these, or give the raw rows (--input)"
            raise UserError(f"{where}: shards have no such column ({', '.join(known)}); {remedy}")


def of_split(split: Split, directory: Path, column: str) -> Coded:
    """The rows of a split by a slot, or by `ftype`.

    Args:
      split: of shards.
      directory: that holds `vocabulary/`.
      column: checked (`check`).
    """
    pieces = [np.zeros(0, np.int32)]
    for group in range(len(split.row_groups)):
        table = split.read_row_group(group, [column])
        pieces.append(table[column].fill_null(-1).to_numpy().astype(np.int32))

    ids, code = np.unique(np.concatenate(pieces), return_inverse=True)
    code = code.astype(np.int32)
    if column == "ftype":
        types = [None if t < 0 else split.schema.types[t] for t in ids.tolist()]
        return Coded(column, code, types, "of unknown type")
    slot = next(slot for slot in split.schema.slots if slot.name == column)
    return Coded(column, code, _values(slot, ids, directory), "missing or unknown")


def _values(slot: Slot, ids: np.ndarray, directory: Path) -> list[str | None]:
    """What the ids of a slot stand for; None for the id 0."""
    if slot.encoding == "vocabulary":
        known = vocabulary.load(directory, slot.owner, slot.digest).values
        named = known.take(pa.array(ids[ids > 0] - 1)).to_pylist()
    elif slot.kind == "numeric":
        named = [f"bucket {i}" for i in ids[ids > 0].tolist()]
    elif slot.encoding == "identity":
        named = [str(i - 1) for i in ids[ids > 0].tolist()]
    else:
        named = [f"hash row {i}" for i in ids[ids > 0].tolist()]
    return [None] * int(np.count_nonzero(ids == 0)) + named
