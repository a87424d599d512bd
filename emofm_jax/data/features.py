"""Features: what the scorer takes, and how raw values become them (docs/scorer.md).

    categorical  i32[B]       0 = missing or unknown, else 1 .. rows - 1
    multi        i32[B, L]    L = max_length: the ids of the bag, then -1
    numeric      f32[B]       transformed as in training; NaN = missing
    vector       f32[B, n]    n = length; all NaN = missing

One array per slot. A slot that is weighted has a second one, `<slot>:weight`, f32 of the shape of
its ids, 0 behind a bag. Ids are local to their slot, as in a shard. No jax here: `pack` computes
with whichever numpy it is given.
"""

import concurrent.futures
import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.interchange

from emofm_jax.data import bags, formats
from emofm_jax.data.encode import Encoder
from emofm_jax.data.formats import memory, tabular
from emofm_jax.data.problems import Problems
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

_THREAD_CELLS = 1 << 16  # fewer cells than this are not worth threads


class Array(NamedTuple):
    """One array of the features: the ids or numbers of a slot, or the weights of its ids."""

    name: str
    slot: Slot
    is_weight: bool = False

    @property
    def dtype(self) -> str:
        """Name of its dtype."""
        return "float32" if self.is_weight or not self.slot.holds_ids else "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape behind the axis of rows."""
        return (self.slot.width,) if self.slot.is_bag or self.slot.is_vector else ()

    @property
    def describe(self) -> str:
        """Dtype and shape, as f32[b, 3]."""
        return f"{self.dtype[0]}32[{', '.join(['b', *map(str, self.shape)])}]"


def arrays(schema: Schema) -> list[Array]:
    """The arrays of the features, in the order of the slots."""
    of_slot = lambda slot: [Array(slot.name, slot), Array(slot.weights, slot, True)]
    return [array for slot in schema.slots for array in of_slot(slot)[: 1 + slot.weighted]]


def signature(schema: Schema) -> dict[str, dict[str, Any]]:
    """{name: {"dtype", "shape", "kind", "rows", "missing"}}; the axis "b" is any number of rows."""
    found = {}
    for array in arrays(schema):
        slot, missing = array.slot, 0 if array.slot.holds_ids else "NaN"
        if array.is_weight:
            missing = "0 from the end of the bag on" if slot.is_bag else 1
        elif slot.is_bag:
            missing = "-1 from the end of the bag on; 0 = unknown element"
        kind = "weight" if array.is_weight else slot.kind
        described = {"dtype": array.dtype, "shape": ["b", *array.shape], "kind": kind}
        found[array.name] = described | {"rows": slot.rows, "missing": missing}
    return found


def encode(encoder: Encoder, data: Mapping[str, Sequence] | Any) -> dict[str, np.ndarray]:
    """Encodes raw values with the code that made the shards.

    Args:
      encoder: of the run.
      data: a column for every slot: lists (None = missing), numpy or Arrow arrays, of B entries; or
        a table of Arrow, pandas, polars or any other library that has `__arrow_c_stream__` or
        `__dataframe__`. An entry of a bag is a list of values, or a text with the slot's
        separators. Other columns are passed over, as in files of rows.

    Returns:
      Features.

    Raises:
      UserError: a slot that is absent, columns of unlike lengths, a cell that cannot be read: no
        number, an id that is no integer below the rows of the slot.
    """
    schema = encoder.schema
    names = [slot.name for slot in schema.slots]
    named = _by_name("data", data, names)
    _check_absent("data", schema.name, "slot", names, named)
    spelling = schema.spelling
    recipe = {**schema.recipe, "spelling": spelling}
    columns = {
        s.name: memory.as_arrow(s, named[s.name], spelling, encoder.missing_of(s))
        for s in schema.slots
    }
    _check_lengths("data", {name: len(column) for name, column in columns.items()})

    def one(slot: Slot) -> tuple[dict[str, np.ndarray], Problems]:
        raw, problems = {slot.name: columns[slot.name]}, Problems()
        column = tabular.plain_columns("data", recipe, raw, schema.slots)[slot.name]
        with formats.naming(f"data: slot {slot.name!r}"):
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
    return {name: x for features, _ in encoded for name, x in features.items()}


def from_table(table: pa.Table, schema: Schema) -> dict[str, np.ndarray]:
    """The features of rows of a shard."""
    found: dict[str, np.ndarray] = {}
    for slot in schema.slots:
        found |= of_column(table[slot.name], slot)
    return found


def of_column(encoded: pa.Array | pa.ChunkedArray, slot: Slot) -> dict[str, np.ndarray]:
    """The features of one column of a shard."""
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    if slot.is_numeric:  # null becomes NaN
        return {slot.name: np.array(encoded.to_numpy(zero_copy_only=False), np.float32)}
    if slot.is_vector:
        x = np.full((len(encoded), slot.length), np.nan, np.float32)
        x[np.asarray(encoded.is_valid())] = encoded.flatten().to_numpy().reshape(-1, slot.length)
        return {slot.name: x}

    # Of each row one element, or a bag of these.
    place: Any = slice(None)
    shape = (len(encoded), *Array(slot.name, slot).shape)
    if slot.is_bag:
        encoded, lengths = bags.cut(encoded, slot.max_length, slot.keep)
        place = np.arange(slot.max_length) < lengths[:, None]
    ids = np.full(shape, -1, np.int32)
    if not slot.weighted:
        ids[place] = encoded.to_numpy()
        return {slot.name: ids}
    weights = np.zeros(shape, np.float32)
    ids[place] = pc.struct_field(encoded, "id").to_numpy()
    weights[place] = pc.struct_field(encoded, "weight").to_numpy()
    return {slot.name: ids, slot.weights: weights}


def check(schema: Schema, features: Mapping[str, Any] | Any) -> int:
    """Checks names, dtypes and shapes of features, which may be traced; returns B.

    Raises:
      UserError: an absent slot or one too many, another dtype or shape than `signature` has.
    """
    if not isinstance(features, Mapping):
        problem = f"a {type(features).__name__} is no mapping"
        raise UserError(f"features: {problem}; scorer.encode makes them of raw values")

    wanted = arrays(schema)
    names = [array.name for array in wanted]
    what = "slot" if len(names) == schema.num_slots else "array"
    _check_names("features", schema.name, what, names, features)
    for array in wanted:
        _check_one(array, features[array.name])
    return _check_lengths("features", {name: features[name].shape[0] for name in names})


def check_ids(schema: Schema, features: Mapping[str, np.ndarray], valid: np.ndarray) -> None:
    """Raises a UserError that names the first id out of range, or infinite number, `pack` found."""
    if valid.all():
        return
    row, column = (int(x) for x in np.argwhere(~valid)[0])
    index = int(schema.column_slots[column])
    slot, first = schema.slots[index], sum(schema.slot_widths[:index])
    cell = lambda name: np.ravel(features[name][row])[column - first]
    found, where = cell(slot.name), f"features: slot {slot.name!r}, row {row}"
    if slot.is_numeric:
        raise UserError(f"{where}: {found} is not finite; a missing number is NaN")
    if slot.is_vector:
        said = "its numbers must be finite, or all NaN where the vector is missing"
        raise UserError(f"{where}: {found} is not finite; {said}")
    if slot.weighted and not np.ravel(_good_weights(features, slot, np)[row])[column - first]:
        allowed = bags.allowed_weights(slot)
        raise UserError(f"{where}: the weight {cell(slot.weights)} must be {allowed}; correct it")
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
        x, local = features[slot.name], local_ids(features, slot, xp)
        if slot.is_numeric:
            local = xp.where(xp.isinf(x)[:, None], -2, local)
        elif slot.is_vector:
            good = xp.isfinite(x) | xp.isnan(x).all(axis=1, keepdims=True)
            local = xp.where(good, local, -2)
        elif slot.weighted:
            local = xp.where(_good_weights(features, slot, xp).reshape(local.shape), local, -2)
        columns.append(local)
    local = columns[0] if len(columns) == 1 else xp.concatenate(columns, axis=1)

    slots = schema.column_slots
    offsets = schema.offsets[slots].astype(np.int32)
    rows = np.array([slot.rows for slot in schema.slots], np.int32)[slots]
    has_gaps = [slot.is_bag or slot.is_vector for slot in schema.slots]
    lowest = -np.array(has_gaps, np.int32)[slots]
    inside = (local >= 0) & (local < rows)
    ids = xp.where(inside, local + offsets, schema.num_rows).astype(np.int32)
    value = None
    if schema.has_values:
        each = [values(features, slot, xp) for slot in schema.slots]
        value = xp.concatenate(each, axis=1)
    return ids, value, inside | (local == lowest)


def local_ids(features: Mapping[str, Any], slot: Slot, xp: ModuleType) -> Any:
    """i32[B, columns of the slot]: its ids, -1 where there is none.

    A number is the id 1, or 0 if it is missing; a vector is 1, 2, .., or 0, -1, -1, ..
    """
    x = features[slot.name]
    if slot.is_numeric:
        return xp.where(xp.isnan(x), 0, 1).astype(np.int32)[:, None]
    if slot.is_vector:
        numbers = np.arange(1, slot.length + 1, dtype=np.int32)
        missing = np.where(numbers == 1, 0, -1).astype(np.int32)
        return xp.where(xp.isnan(x).all(axis=1, keepdims=True), missing, numbers)
    return x if slot.is_bag else x[:, None]


def values(features: Mapping[str, Any], slot: Slot, xp: ModuleType) -> Any:
    """f32[B, columns of the slot]: weight of each id.

    That is the number, each number of a vector, the weight of a weighted id, 1 / length of a bag,
    or 1.
    """
    x = features[slot.name]
    if slot.is_numeric:
        return xp.where(xp.isnan(x), 1.0, x).astype(np.float32)[:, None]
    if slot.is_vector:
        return xp.where(xp.isnan(x), 1.0, x).astype(np.float32)
    if slot.weighted:
        return _weights(features, slot, xp)
    if not slot.is_bag:
        return xp.ones((x.shape[0], 1), np.float32)

    length = xp.maximum((x >= 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    weight = 1.0 / length if slot.is_mean else xp.ones_like(length)
    return xp.broadcast_to(weight, x.shape)


def _weights(features: Mapping[str, Any], slot: Slot, xp: ModuleType) -> Any:
    """f32[B, columns of the slot]: weights of its ids, which add up to 1 where they make a mean."""
    w = features[slot.weights]
    if not slot.is_bag:
        return w[:, None]
    w = xp.where(features[slot.name] >= 0, w, 0).astype(np.float32)
    if not slot.is_mean:
        return w
    total = w.sum(axis=1, keepdims=True)
    return w / xp.where(total > 0, total, 1).astype(np.float32)


def _good_weights(features: Mapping[str, Any], slot: Slot, xp: ModuleType) -> Any:
    """Whether each weight is at most MAX_WEIGHT in size and, in a mean, not negative."""
    w = features[slot.weights]
    small = abs(w) <= np.float32(bags.MAX_WEIGHT)
    return small & ~xp.signbit(w) if slot.is_mean else small


class UnknownCounter:
    """Counts the values of each slot (of a bag: its ids) and those that are missing or unknown."""

    def __init__(self, schema: Schema):
        self.schema, self.rows = schema, 0
        self.values, self.unknown = np.zeros((2, schema.num_slots), np.int64)

    def add(self, features: Mapping[str, np.ndarray]) -> None:
        """Counts features."""
        for i, slot in enumerate(self.schema.slots):
            x = np.asarray(features[slot.name])
            x = x[:, 0] if slot.is_vector else x
            self.unknown[i] += np.count_nonzero(x == 0 if slot.holds_ids else np.isnan(x))
            self.values[i] += np.count_nonzero(x >= 0) if slot.is_bag else x.size
        self.rows += len(x)

    def add_ids(self, ids: np.ndarray) -> None:
        """Counts the ids of a batch, i32[..., N]: row 0 of a slot is unknown, V no value."""
        columns = self.schema.column_slots
        ids = ids.reshape(-1, len(columns))
        self.rows += len(ids)
        if self.schema.vectors:  # each is one value, its first column
            vectors = np.array([slot.is_vector for slot in self.schema.slots])
            counted = ~vectors[columns] | np.append(True, columns[1:] != columns[:-1])
            ids, columns = ids[:, counted], columns[counted]

        first = self.schema.offsets[columns].astype(np.int32)
        unknown = np.count_nonzero(ids == first, axis=0)
        values = len(ids) - np.count_nonzero(ids == np.int32(self.schema.num_rows), axis=0)
        self.unknown += np.bincount(columns, unknown).astype(np.int64)
        self.values += np.bincount(columns, values).astype(np.int64)

    def counts(self) -> dict[str, tuple[int, int]]:
        """{slot: (its values, those that are missing or unknown)}."""
        pairs = zip(self.values.tolist(), self.unknown.tolist())
        return dict(zip((slot.name for slot in self.schema.slots), pairs))

    def shares(self) -> dict[str, float]:
        """{slot: share of its values that are missing or unknown}; 1 if all bags are empty."""
        shares = np.where(self.values, self.unknown / np.maximum(self.values, 1), self.rows > 0)
        return dict(zip((slot.name for slot in self.schema.slots), shares.tolist()))


def pad(features: Mapping[str, np.ndarray], schema: Schema, num_rows: int) -> dict[str, np.ndarray]:
    """The features with rows of nothing known behind them, `num_rows` in all."""
    padded = {}
    for array in arrays(schema):
        x, of_bag = features[array.name], array.slot.is_bag and not array.is_weight
        fill = np.full((num_rows - len(x), *x.shape[1:]), -1 if of_bag else 0, x.dtype)
        padded[array.name] = np.concatenate([x, fill]) if len(fill) else x
    return padded


def example(schema: Schema, num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Made-up features: ids, bags of every length, numbers from N(0, 1); row 0 knows nothing.

    Weights are between 0.5 and 1.5.
    """
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for slot in schema.slots:
        if not slot.holds_ids:
            shape = (num_rows, *Array(slot.name, slot).shape)
            made[slot.name] = rng.standard_normal(shape).astype(np.float32)
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
        if slot.weighted:
            weights = rng.uniform(0.5, 1.5, ids.shape).astype(np.float32)
            made[slot.weights] = np.where(ids >= 0, weights, 0).astype(np.float32)
    return made


def _by_name(where: str, given: Any, slots: Collection[str]) -> Mapping[str, Any]:
    """Columns by their names; of a frame of pandas those that are no slots are None."""
    if isinstance(given, Mapping):
        return given
    if hasattr(given, "__dataframe__") and hasattr(given, "index"):
        return _of_pandas(where, given, slots)
    if hasattr(given, "get_columns"):  # of polars, whose objects Arrow would take for bytes
        return {series.name: series for series in given.get_columns()}
    try:
        if isinstance(given, pa.RecordBatch) or hasattr(given, "__arrow_c_stream__"):
            given = pa.table(given)
        elif hasattr(given, "__dataframe__"):
            given = pa.interchange.from_dataframe(given)
    except (pa.ArrowException, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: no table can be made of it ({reason}); give a dict") from None

    if not isinstance(given, pa.Table):
        if hasattr(given, "collect"):  # of polars, say, that is yet to be read
            problem = f"a {type(given).__name__} is no table yet"
            raise UserError(f"{where}: {problem}; give what its collect() returns")
        problem = f"a {type(given).__name__} is no mapping and no table"
        raise UserError(f"{where}: {problem}; give an array for each slot, by its name")
    _check_twice(where, given.column_names)
    return dict(zip(given.column_names, given.columns))


def _of_pandas(where: str, given: Any, slots: Collection[str]) -> dict[str, Any]:
    """The columns of a frame, and the levels of its index that are slots, as a file has them."""
    names = [str(name) for name in given.columns]
    _check_twice(where, names)
    levels = {str(name) for name in given.index.names if name is not None} - {*names} & {*slots}
    columns = {n: given[column] if n in slots else None for n, column in zip(names, given.columns)}
    return columns | {level: given.index.get_level_values(level) for level in levels}


def _check_twice(where: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: column {twice[0]!r} stands twice; leave one out")


def _check_names(
    where: str, data_set: str, what: str, names: Sequence[str], given: Mapping[str, Any]
) -> None:
    """Checks that there are these names and no others."""
    if extra := [str(name) for name in given if name not in names]:
        near = difflib.get_close_matches(extra[0], [n for n in names if n not in given], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        listed = ", ".join(map(repr, extra))
        raise UserError(f"{where}: {listed} is no {what} of {data_set!r}; {hint}")
    _check_absent(where, data_set, what, names, given)


def _check_absent(
    where: str, data_set: str, what: str, names: Sequence[str], given: Mapping[str, Any]
) -> None:
    """Checks that no name is absent; another that is nearly the same is hinted at."""
    absent = [name for name in names if name not in given]
    if not absent:
        return

    of_all = f"{len(absent)} of the {len(names)} {what}s of {data_set!r}"
    listed = ", ".join(map(repr, absent))
    others = [str(name) for name in given if name not in names]
    near = ((name, difflib.get_close_matches(name, others, n=1)) for name in absent)
    hints = [f"{found[0]!r} for {name!r}" for name, found in near if found]
    hint = f"did you mean {', '.join(hints)}?" if hints else "give an array for each"
    raise UserError(f"{where}: {of_all} are absent: {listed}; {hint}")


def _check_lengths(where: str, lengths: Mapping[str, int]) -> int:
    """Returns the rows of the slots, of which each must have as many."""
    first, num_rows = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != num_rows:
            found = f"slot {first!r} has {num_rows} rows, slot {name!r} {length}"
            raise UserError(f"{where}: {found}; give as many for each slot")
    return num_rows


def _check_one(array: Array, x: Any) -> None:
    """Checks dtype and shape of one feature."""
    wanted, raw = array.describe, "scorer.encode"
    where = f"features: slot {array.name!r}"
    found = f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if kind is None or kind in "OSUT":
        raise UserError(f"{where} is {found}, it must be an array {wanted}; {raw} takes raw values")
    if x.dtype != array.dtype:
        remedy = f"convert it, or give {raw} raw values"
        raise UserError(f"{where} is {found}, it must be {wanted}; {remedy}")
    if not x.ndim or x.shape[1:] != array.shape:
        fill = 0 if array.is_weight else -1
        filled = f": bags are filled up with {fill}, as {raw} does" if array.slot.is_bag else ""
        raise UserError(f"{where} has shape {x.shape}, it must be {wanted}{filled}; reshape it")
