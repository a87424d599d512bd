"""Features: what the scorer takes, one array per slot, and how raw values become them (docs/scorer.md).

    categorical  i32[B]       0 = missing or unknown, else 1 .. rows - 1
    multi        i32[B, L]    L = max_length: the first ids of the bag, then -1
    numeric      f32[B]       transformed as in training; NaN = missing

Ids are local to their slot, as in a shard. No jax here: `pack` computes with whichever numpy it is given.
"""

import concurrent.futures
import difflib
import os
from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np
import pyarrow as pa

from emofm_jax.data import batches
from emofm_jax.data.encode import Encoder
from emofm_jax.data.formats import tabular
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

_THREAD_CELLS = 1 << 16  # fewer cells than this are not worth threads
# Columns of raw rows that are no slots and are passed over.
_ROLES = ("label", "ftype", "row_id", "weight", "gauc_key", "day_column")


def signature(schema: Schema) -> dict[str, dict]:
    """{slot: {"dtype", "shape", "kind", "rows", "missing"}}; the axis "b" of a shape is any number of rows."""
    return {slot.name: _describe(slot) for slot in schema.slots}


def encode(
    encoder: Encoder, data: Mapping[str, Sequence] | pa.Table | pa.RecordBatch
) -> dict[str, np.ndarray]:
    """Encodes raw values with the code that made the shards.

    Args:
      encoder: of the run.
      data: a column for every slot: lists (None = missing), numpy or Arrow arrays, of B entries. An entry of a bag is
        a list of values, or a text with the slot's separators. Columns with a role in `config.prepare` (the label,
        say) are passed over.

    Returns:
      Features.

    Raises:
      UserError: a slot that is absent, a column that is none, columns of unlike lengths, a cell that cannot be read:
        no number, an id that is no integer below the rows of the slot.
    """
    schema = encoder.schema
    if isinstance(data, pa.Table | pa.RecordBatch):
        names = data.schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"data: column {twice[0]!r} stands twice; leave one out")
        data = dict(zip(names, data.columns))
    named = _as_mapping("data", data)
    _check_names("data", schema, named, _known_columns(schema.recipe))
    columns = {slot.name: _as_arrow(slot, named[slot.name]) for slot in schema.slots}
    _check_lengths("data", {name: len(column) for name, column in columns.items()})
    bad: dict[int, tuple[str, str]] = {}

    def one(slot: Slot) -> np.ndarray:
        raw = {slot.name: columns[slot.name]}
        column = tabular.plain_columns("data", schema.recipe, raw, schema.slots)[slot.name]
        return _as_feature(encoder.slot(slot, column, bad), slot)

    if sum(len(column) for column in columns.values()) < _THREAD_CELLS:
        encoded = [one(slot) for slot in schema.slots]
    else:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            encoded = list(pool.map(one, schema.slots))
    if bad:
        row = min(bad)
        more = f" ({len(bad):,} such rows)" if len(bad) > 1 else ""
        raise UserError(
            f"data, row {row}: {bad[row][1]}{more}; correct it, or give None for a missing value"
        )
    return dict(zip(columns, encoded))


def from_table(table: pa.Table, schema: Schema) -> dict[str, np.ndarray]:
    """The features of rows of a shard."""
    return {slot.name: _as_feature(table[slot.name], slot) for slot in schema.slots}


def check(schema: Schema, features: Mapping) -> int:
    """Checks names, dtypes and shapes of features, which may be traced; returns B.

    Raises:
      UserError: an absent slot or one too many, another dtype or shape than `signature` has.
    """
    _check_names("features", schema, _as_mapping("features", features), ())
    for slot in schema.slots:
        x, wanted = features[slot.name], _in_words(slot)
        kind = getattr(getattr(x, "dtype", None), "kind", None)
        where = f"features: slot {slot.name!r}"
        if kind is None or kind in "OSUT":
            raise UserError(
                f"{where} is {_type_of(x)}, it must be an array {wanted}; scorer.encode takes raw values"
            )
        if x.dtype != (np.float32 if slot.is_numeric else np.int32):
            raise UserError(
                f"{where} is {_type_of(x)}, it must be {wanted}; convert it, or give scorer.encode raw values"
            )
        if x.ndim != (2 if slot.kind == "multi" else 1) or (
            slot.kind == "multi" and x.shape[1] != slot.max_length
        ):
            filled = (
                ": bags are filled up with -1, as scorer.encode does"
                if slot.kind == "multi"
                else ""
            )
            raise UserError(f"{where} has shape {x.shape}, it must be {wanted}{filled}; reshape it")
    return _check_lengths(
        "features", {slot.name: features[slot.name].shape[0] for slot in schema.slots}
    )


def check_ids(schema: Schema, features: Mapping, valid: np.ndarray) -> None:
    """Raises a UserError that names the first id out of range or infinite number, by what `pack` found."""
    if valid.all():
        return
    row, column = (int(x) for x in np.argwhere(~valid)[0])
    slot = schema.slots[schema.column_slots[column]]
    found = np.ravel(features[slot.name][row])[
        column - int(np.sum(schema.column_slots < schema.column_slots[column]))
    ]
    if slot.is_numeric:
        raise UserError(
            f"features: slot {slot.name!r}, row {row}: {found} is not finite; a missing number is NaN"
        )
    padding = ", -1 for padding" if slot.kind == "multi" else ""
    raise UserError(
        f"features: slot {slot.name!r}, row {row}: the id {found} is out of range; its ids are 0 .. {slot.rows - 1}"
        f"{padding} (0 = unknown)"
    )


def pack(schema: Schema, features: Mapping, xp: ModuleType = np) -> tuple:
    """Features -> the arrays of a Batch.

    Args:
      schema: of the run.
      features: checked (`check`).
      xp: numpy, or jax.numpy inside a program.

    Returns:
      ids i32[B, N], global rows of the table, V = padding or out of range; value f32[B, N], or None if the schema needs
      none; valid bool[B, N], False where an id is out of its slot's range, or a number infinite.
    """
    columns = [_columns(slot, features[slot.name], xp) for slot in schema.slots]
    local = columns[0] if len(columns) == 1 else xp.concatenate(columns, axis=1)
    slots = schema.column_slots
    rows = np.array([slot.rows for slot in schema.slots], np.int32)[slots]
    lowest = np.array([-1 if slot.kind == "multi" else 0 for slot in schema.slots], np.int32)[slots]
    inside = (local >= 0) & (local < rows)
    ids = xp.where(inside, local + schema.offsets[slots].astype(np.int32), schema.num_rows).astype(
        np.int32
    )
    value = None
    if schema.has_values:
        value = xp.concatenate(
            [_values(slot, features[slot.name], xp) for slot in schema.slots], axis=1
        )
    return ids, value, inside | (local == lowest)


class UnknownCounter:
    """Counts the values of each slot (of a bag: its elements) and those that are missing or unknown."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.values, self.unknown = np.zeros((2, schema.num_slots), np.int64)

    def add(self, features: Mapping[str, np.ndarray]) -> None:
        for i, slot in enumerate(self.schema.slots):
            x = np.asarray(features[slot.name])
            self.unknown[i] += np.count_nonzero(np.isnan(x) if slot.is_numeric else x == 0)
            self.values[i] += x.size if slot.kind != "multi" else np.count_nonzero(x >= 0)

    def shares(self) -> dict[str, float]:
        """{slot: share of its values that are missing or unknown}; 0 without values."""
        shares = self.unknown / np.maximum(self.values, 1)
        return {slot.name: float(share) for slot, share in zip(self.schema.slots, shares)}


def pad(features: Mapping[str, np.ndarray], schema: Schema, num_rows: int) -> dict[str, np.ndarray]:
    """The features with rows of nothing known behind them, `num_rows` in all."""
    short = num_rows - len(features[schema.slots[0].name])
    if not short:
        return dict(features)
    fill = lambda slot, x: np.full(
        (short, *x.shape[1:]), -1 if slot.kind == "multi" else 0, x.dtype
    )
    return {
        s.name: np.concatenate([features[s.name], fill(s, features[s.name])]) for s in schema.slots
    }


def example(schema: Schema, num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Made-up features: ids drawn evenly, bags of every length, numbers from N(0, 1); row 0 has nothing known."""
    rng, made = np.random.default_rng(seed), {}
    for slot, width in zip(schema.slots, schema.slot_widths):
        if slot.is_numeric:
            made[slot.name] = rng.standard_normal(num_rows).astype(np.float32)
            made[slot.name][:1] = np.nan
            continue
        ids = rng.integers(0, slot.rows, (num_rows, width), dtype=np.int32)
        if slot.kind == "multi":
            length = rng.integers(0, width + 1, num_rows)
            length[:1] = 0
            made[slot.name] = np.where(np.arange(width) < length[:, None], ids, -1).astype(np.int32)
        else:
            ids[:1] = 0
            made[slot.name] = ids[:, 0]
    return made


def _columns(slot, x, xp):
    """Local ids [B, columns of the slot]; of a number 0 if it is missing, -2 if it is infinite, else 1."""
    if slot.is_numeric:
        return xp.where(xp.isnan(x), 0, xp.where(xp.isinf(x), -2, 1)).astype(np.int32)[:, None]
    return x if slot.kind == "multi" else x[:, None]


def _values(slot, x, xp):
    """f32[B, columns of the slot]."""
    if slot.is_numeric:
        return xp.where(xp.isnan(x), 1.0, x).astype(np.float32)[:, None]
    if slot.kind != "multi":
        return xp.ones((x.shape[0], 1), np.float32)
    length = xp.maximum((x >= 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    return xp.broadcast_to(
        1.0 / length if slot.pooling == "mean" else xp.ones_like(length), x.shape
    )


def _as_feature(encoded: pa.Array | pa.ChunkedArray, slot: Slot) -> np.ndarray:
    if slot.kind == "multi":
        return batches.pad_bags(encoded, slot.max_length, 0, -1)[0]
    if slot.is_numeric:
        return np.array(encoded.to_numpy(zero_copy_only=False), np.float32)  # null becomes NaN
    return np.array(encoded, np.int32)


def _as_arrow(slot: Slot, values) -> pa.Array:
    """One column, however it was given."""
    where = f"data: slot {slot.name!r}"
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise UserError(f"{where} is {values!r}; give a list or an array, one entry a row")
    if hasattr(values, "__dlpack__"):  # an array of jax, say
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = list(values)  # rows of a matrix are bags
    try:
        column = pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{where} cannot be read ({' '.join(str(error).split())}); give values of one type"
        ) from None
    if pa.types.is_list(column.type) and slot.kind != "multi":
        raise UserError(
            f"{where} holds lists, it has one value a row (it is {slot.kind}); give single values"
        )
    if pa.types.is_null(column.type):
        return column.cast(pa.list_(pa.string()) if slot.kind == "multi" else pa.string())
    return column


def _as_mapping(where: str, given) -> Mapping:
    if not isinstance(given, Mapping):
        raise UserError(
            f"{where}: a {type(given).__name__} is no mapping; give an array for each slot, by its name"
        )
    return given


def _check_names(where: str, schema: Schema, given: Mapping, passed_over: Sequence[str]) -> None:
    names = [slot.name for slot in schema.slots]
    extra = [str(name) for name in given if name not in names and name not in passed_over]
    if extra:
        near = difflib.get_close_matches(
            extra[0], [name for name in names if name not in given], n=1
        )
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        raise UserError(
            f"{where}: {', '.join(map(repr, extra))} is no slot of {schema.name!r}; {hint}"
        )
    if absent := [name for name in names if name not in given]:
        raise UserError(
            f"{where}: {len(absent)} of the {len(names)} slots of {schema.name!r} are absent: "
            f"{', '.join(map(repr, absent))}; give an array for each"
        )


def _check_lengths(where: str, lengths: dict[str, int]) -> int:
    first, num_rows = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != num_rows:
            raise UserError(
                f"{where}: slot {first!r} has {num_rows} rows, slot {name!r} {length}; give as many for each slot"
            )
    return num_rows


def _known_columns(recipe: Mapping) -> set[str]:
    return {recipe.get(role) for role in _ROLES} | set(recipe.get("ignore", ()))


def _describe(slot: Slot) -> dict:
    dtype, shape, missing = "int32", ["b"], 0
    if slot.is_numeric:
        dtype, missing = "float32", "NaN"
    elif slot.kind == "multi":
        shape, missing = (
            ["b", slot.max_length],
            "-1 from the end of the bag on; 0 = unknown element",
        )
    return {
        "dtype": dtype,
        "shape": shape,
        "kind": slot.kind,
        "rows": slot.rows,
        "missing": missing,
    }


def _in_words(slot: Slot) -> str:
    if slot.is_numeric:
        return "f32[b]"
    return f"i32[b, {slot.max_length}]" if slot.kind == "multi" else "i32[b]"


def _type_of(x) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
