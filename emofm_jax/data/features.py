"""Features: what the scorer takes, and how raw values become them (docs/scorer.md).

    categorical  i32[B]       0 = missing or unknown, else 1 .. rows - 1
    multi        i32[B, L]    L = max_length: the first ids of the bag, then -1
    numeric      f32[B]       transformed as in training; NaN = missing

One array per slot. Ids are local to their slot, as in a shard. No jax here: `pack` computes with
whichever numpy it is given.
"""

import concurrent.futures
import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data.encode import Encoder, cut_bags
from emofm_jax.data.formats import memory, tabular
from emofm_jax.data.problems import Problems
from emofm_jax.data.schema import ROLE_COLUMNS, Schema, Slot
from emofm_jax.errors import UserError

_THREAD_CELLS = 1 << 16  # fewer cells than this are not worth threads


def signature(schema: Schema) -> dict[str, dict[str, Any]]:
    """{slot: {"dtype", "shape", "kind", "rows", "missing"}}; the axis "b" is any number of rows."""
    found = {}
    for slot in schema.slots:
        dtype, shape = _form(slot)
        missing = "NaN" if slot.is_numeric else 0
        if slot.is_bag:
            missing = "-1 from the end of the bag on; 0 = unknown element"
        described = {"dtype": dtype, "shape": shape, "kind": slot.kind, "rows": slot.rows}
        found[slot.name] = described | {"missing": missing}
    return found


def encode(
    encoder: Encoder, data: Mapping[str, Sequence] | pa.Table | pa.RecordBatch
) -> dict[str, np.ndarray]:
    """Encodes raw values with the code that made the shards.

    Args:
      encoder: of the run.
      data: a column for every slot: lists (None = missing), numpy or Arrow arrays, of B entries. An
        entry of a bag is a list of values, or a text with the slot's separators. Columns with a
        role in `config.prepare` (the label, say) are passed over.

    Returns:
      Features.

    Raises:
      UserError: a slot that is absent, a column that is none, columns of unlike lengths, a cell
        that cannot be read: no number, an id that is no integer below the rows of the slot.
    """
    schema = encoder.schema
    roles = {schema.recipe.get(role) for role in (*ROLE_COLUMNS, "day_column")}
    named = _by_name("data", data)
    _check_names("data", schema, named, roles.union(schema.recipe.get("ignore", ())))
    columns = {slot.name: memory.as_arrow(slot, named[slot.name]) for slot in schema.slots}
    _check_lengths("data", {name: len(column) for name, column in columns.items()})

    def one(slot: Slot) -> tuple[np.ndarray, Problems]:
        raw, problems = {slot.name: columns[slot.name]}, Problems()
        column = tabular.plain_columns("data", schema.recipe, raw, schema.slots)[slot.name]
        return of_column(encoder.slot(slot, column, problems), slot), problems

    if sum(len(column) for column in columns.values()) < _THREAD_CELLS:
        encoded = [one(slot) for slot in schema.slots]
    else:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            encoded = list(pool.map(one, schema.slots))

    # Of a row with several problems the one of its first slot is named.
    bad = {row: reason for _, found in reversed(encoded) for row, (_, reason) in found.items()}
    if bad:
        row = min(bad)
        more = f" ({len(bad):,} such rows)" if len(bad) > 1 else ""
        raise UserError(
            f"data, row {row}: {bad[row]}{more}; correct it, or give None for a missing value"
        )
    return {slot.name: feature for slot, (feature, _) in zip(schema.slots, encoded)}


def from_table(table: pa.Table, schema: Schema) -> dict[str, np.ndarray]:
    """The features of rows of a shard."""
    return {slot.name: of_column(table[slot.name], slot) for slot in schema.slots}


def of_column(encoded: pa.Array | pa.ChunkedArray, slot: Slot) -> np.ndarray:
    """The feature of one column of a shard."""
    if slot.is_numeric:
        return np.array(encoded.to_numpy(zero_copy_only=False), np.float32)  # null becomes NaN
    if not slot.is_bag:
        return np.array(encoded, np.int32)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    bags, lengths = cut_bags(encoded, slot.max_length)
    ids = np.full((len(bags), slot.max_length), -1, np.int32)
    ids[np.arange(slot.max_length) < lengths[:, None]] = bags.flatten().to_numpy()
    return ids


def check(schema: Schema, features: Mapping[str, Any]) -> int:
    """Checks names, dtypes and shapes of features, which may be traced; returns B.

    Raises:
      UserError: an absent slot or one too many, another dtype or shape than `signature` has.
    """
    _check_names("features", schema, _by_name("features", features), ())
    for slot in schema.slots:
        _check_one(slot, features[slot.name])
    lengths = {slot.name: features[slot.name].shape[0] for slot in schema.slots}
    return _check_lengths("features", lengths)


def check_ids(schema: Schema, features: Mapping[str, np.ndarray], valid: np.ndarray) -> None:
    """Raises a UserError that names the first id out of range, or infinite number, `pack` found."""
    if valid.all():
        return
    row, column = (int(x) for x in np.argwhere(~valid)[0])
    index = int(schema.column_slots[column])
    slot, first = schema.slots[index], sum(schema.slot_widths[:index])
    found = np.ravel(features[slot.name][row])[column - first]
    where = f"features: slot {slot.name!r}, row {row}"
    if slot.is_numeric:
        raise UserError(f"{where}: {found} is not finite; a missing number is NaN")
    allowed = f"0 .. {slot.rows - 1}{', -1 for padding' if slot.is_bag else ''} (0 = unknown)"
    raise UserError(f"{where}: the id {found} is out of range; its ids are {allowed}")


def pack(schema: Schema, features: Mapping[str, Any], xp: ModuleType = np) -> tuple:
    """Features -> the arrays of a Batch.

    Args:
      schema: of the run.
      features: checked (`check`).
      xp: numpy, or jax.numpy inside a program.

    Returns:
      ids i32[B, N], global rows of the table, V = padding or out of range; value f32[B, N], or None
      if the schema needs none; valid bool[B, N], False where an id is out of its slot's range, or a
      number infinite.
    """
    columns = []
    for slot in schema.slots:
        local = local_ids(features[slot.name], slot, xp)
        if slot.is_numeric:
            local = xp.where(xp.isinf(features[slot.name])[:, None], -2, local)
        columns.append(local)
    local = columns[0] if len(columns) == 1 else xp.concatenate(columns, axis=1)

    slots = schema.column_slots
    offsets = schema.offsets[slots].astype(np.int32)
    rows = np.array([slot.rows for slot in schema.slots], np.int32)[slots]
    lowest = np.array([-1 if slot.is_bag else 0 for slot in schema.slots], np.int32)[slots]
    inside = (local >= 0) & (local < rows)
    ids = xp.where(inside, local + offsets, schema.num_rows).astype(np.int32)
    value = None
    if schema.has_values:
        each = [values(features[slot.name], slot, xp) for slot in schema.slots]
        value = xp.concatenate(each, axis=1)
    return ids, value, inside | (local == lowest)


def local_ids(feature: Any, slot: Slot, xp: ModuleType) -> Any:
    """i32[B, columns of the slot]: ids of a feature; of a number 0 if it is missing, else 1."""
    if slot.is_numeric:
        return xp.where(xp.isnan(feature), 0, 1).astype(np.int32)[:, None]
    return feature if slot.is_bag else feature[:, None]


def values(feature: Any, slot: Slot, xp: ModuleType) -> Any:
    """f32[B, columns of the slot]: weight of each id: the number, 1 / length of a bag, or 1."""
    if slot.is_numeric:
        return xp.where(xp.isnan(feature), 1.0, feature).astype(np.float32)[:, None]
    if not slot.is_bag:
        return xp.ones((feature.shape[0], 1), np.float32)
    length = xp.maximum((feature >= 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    weight = 1.0 / length if slot.pooling == "mean" else xp.ones_like(length)
    return xp.broadcast_to(weight, feature.shape)


class UnknownCounter:
    """Counts the values of each slot (of a bag: its ids) and those that are missing or unknown."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.values, self.unknown = np.zeros((2, schema.num_slots), np.int64)

    def add(self, features: Mapping[str, np.ndarray]) -> None:
        """Counts features."""
        for i, slot in enumerate(self.schema.slots):
            x = np.asarray(features[slot.name])
            self.unknown[i] += np.count_nonzero(np.isnan(x) if slot.is_numeric else x == 0)
            self.values[i] += np.count_nonzero(x >= 0) if slot.is_bag else x.size

    def add_ids(self, ids: np.ndarray) -> None:
        """Counts the ids of a batch, i32[..., N]: row 0 of a slot is unknown, V no value."""
        columns = self.schema.column_slots
        ids = ids.reshape(-1, len(columns))
        first = self.schema.offsets[columns].astype(np.int32)
        unknown = np.count_nonzero(ids == first, axis=0)
        values = len(ids) - np.count_nonzero(ids == np.int32(self.schema.num_rows), axis=0)
        self.unknown += np.bincount(columns, unknown).astype(np.int64)
        self.values += np.bincount(columns, values).astype(np.int64)

    def shares(self) -> dict[str, float]:
        """{slot: share of its values that are missing or unknown}; 0 without values."""
        shares = self.unknown / np.maximum(self.values, 1)
        return dict(zip((slot.name for slot in self.schema.slots), shares.tolist()))


def pad(features: Mapping[str, np.ndarray], schema: Schema, num_rows: int) -> dict[str, np.ndarray]:
    """The features with rows of nothing known behind them, `num_rows` in all."""
    padded = {}
    for slot in schema.slots:
        x = features[slot.name]
        fill = np.full((num_rows - len(x), *x.shape[1:]), -1 if slot.is_bag else 0, x.dtype)
        padded[slot.name] = np.concatenate([x, fill]) if len(fill) else x
    return padded


def example(schema: Schema, num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Made-up features: ids, bags of every length, numbers from N(0, 1); row 0 knows nothing."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for slot in schema.slots:
        if slot.is_numeric:
            made[slot.name] = rng.standard_normal(num_rows).astype(np.float32)
            made[slot.name][:1] = np.nan
            continue
        ids = rng.integers(0, slot.rows, (num_rows, slot.width), dtype=np.int32)
        if slot.is_bag:
            length = rng.integers(0, slot.width + 1, num_rows)
            length[:1] = 0
            ids = np.where(np.arange(slot.width) < length[:, None], ids, -1).astype(np.int32)
        else:
            ids = ids[:, 0].copy()
            ids[:1] = 0
        made[slot.name] = ids
    return made


def _by_name(where: str, given: Any) -> Mapping[str, Any]:
    """Columns or features by their names."""
    if isinstance(given, pa.Table | pa.RecordBatch):
        names = given.schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{where}: column {twice[0]!r} stands twice; leave one out")
        return dict(zip(names, given.columns))
    if not isinstance(given, Mapping):
        problem = f"a {type(given).__name__} is no mapping"
        raise UserError(f"{where}: {problem}; give an array for each slot, by its name")
    return given


def _check_names(
    where: str, schema: Schema, given: Mapping[str, Any], passed_over: Collection[str | None]
) -> None:
    names = [slot.name for slot in schema.slots]
    absent = [name for name in names if name not in given]
    extra = [str(name) for name in given if name not in names and name not in passed_over]
    if extra:
        near = difflib.get_close_matches(extra[0], absent, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        listed = ", ".join(map(repr, extra))
        raise UserError(f"{where}: {listed} is no slot of {schema.name!r}; {hint}")
    if absent:
        of_all = f"{len(absent)} of the {len(names)} slots of {schema.name!r}"
        listed = ", ".join(map(repr, absent))
        raise UserError(f"{where}: {of_all} are absent: {listed}; give an array for each")


def _check_lengths(where: str, lengths: Mapping[str, int]) -> int:
    """Returns the rows of the slots, of which each must have as many."""
    first, num_rows = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != num_rows:
            found = f"slot {first!r} has {num_rows} rows, slot {name!r} {length}"
            raise UserError(f"{where}: {found}; give as many for each slot")
    return num_rows


def _check_one(slot: Slot, x: Any) -> None:
    """Checks dtype and shape of one feature."""
    dtype, shape = _form(slot)
    wanted = f"{dtype[0]}32[{', '.join(map(str, shape))}]"
    where, raw = f"features: slot {slot.name!r}", "scorer.encode"
    found = f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if kind is None or kind in "OSUT":
        raise UserError(f"{where} is {found}, it must be an array {wanted}; {raw} takes raw values")
    if x.dtype != dtype:
        remedy = f"convert it, or give {raw} raw values"
        raise UserError(f"{where} is {found}, it must be {wanted}; {remedy}")
    if x.ndim != len(shape) or [*x.shape[1:]] != shape[1:]:
        filled = f": bags are filled up with -1, as {raw} does" if slot.is_bag else ""
        raise UserError(f"{where} has shape {x.shape}, it must be {wanted}{filled}; reshape it")


def _form(slot: Slot) -> tuple[str, list[str | int]]:
    """The dtype and shape of a feature; the axis "b" is any number of rows."""
    return "float32" if slot.is_numeric else "int32", ["b", slot.width] if slot.is_bag else ["b"]
