"""Cells of several values: bags, ids with weights, vectors of numbers (docs/data.md)."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import list_text, numeric, values
from emofm_jax.data.problems import Problems
from emofm_jax.data.schema import Slot

_NUMBERS = 1 << 20  # of vectors that are read at a time
MAX_WEIGHT = 1e30  # in size; the sum of larger ones may not be finite


def as_lists(column: pa.Array) -> pa.Array:
    """Lists of any type as list[n]; a map is a list of pairs (key, value).

    Raises:
      ArrowInvalid: no lists, or lists of lists.
    """
    column = values.without_views(column)
    kind = column.type
    if pa.types.is_list(kind) and pa.types.is_run_end_encoded(kind.value_type):
        elements = values.unwrapped(column.values)
        return pa.ListArray.from_arrays(column.offsets, elements, mask=column.is_null())
    if pa.types.is_list(kind):
        return column
    if pa.types.is_map(kind):
        pairs = pa.StructArray.from_arrays([column.keys, column.items], ["id", "weight"])
        return _gathered(pairs, column.offsets, np.diff(column.offsets), column.is_null())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        # pyarrow's own cast takes other elements where one of the lists is null.
        return _gathered(column.values, column.offsets, column.sizes, column.is_null())
    if not (pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise pa.ArrowInvalid("neither single values nor lists of these")
    element = kind.value_type
    return column.cast(pa.list_(pa.binary() if pa.types.is_fixed_size_binary(element) else element))


def _gathered(elements: pa.Array, first: pa.Array, sizes: pa.Array, null: pa.Array) -> pa.Array:
    """list[n] of which each has `sizes` elements from its first on."""
    sizes = np.where(np.asarray(null), 0, np.asarray(sizes))
    first = np.asarray(first)[: len(sizes)]
    ends = np.cumsum(sizes)
    index = np.repeat(first - (ends - sizes), sizes) + np.arange(sizes.sum())
    offsets = pa.array(np.append(0, ends), pa.int32())
    taken = values.without_views(elements).take(pa.array(index))
    return pa.ListArray.from_arrays(offsets, taken, mask=null)


def cut(column: pa.Array, max_length: int, keep: str) -> tuple[pa.Array, np.ndarray]:
    """One end of each bag: its elements, bag after bag, and i32[n]: how many are of each.

    Args:
      column: list[n]; null is an empty bag.
      max_length: elements that are kept.
      keep: `first` or `last`.
    """
    found = pc.list_value_length(column)
    lengths = (found.fill_null(0) if found.null_count else found).to_numpy()
    if lengths.max(initial=0) <= max_length:
        return column.flatten(), lengths
    kept = np.minimum(lengths, max_length)
    first = column.offsets.to_numpy()[:-1] + (lengths - kept if keep == "last" else 0)
    before = np.cumsum(kept) - kept
    index = np.repeat(first - before, kept) + np.arange(kept.sum())
    return column.values.take(pa.array(index)), kept


def without(column: pa.Array, gone: np.ndarray) -> pa.Array:
    """The bags list[n] without the elements that are gone, bool[elements of all]."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    row_of = np.repeat(np.arange(len(column)), lengths)
    left = np.bincount(row_of[~gone], minlength=len(column))
    offsets = pa.array(np.append(0, np.cumsum(left)), pa.int32())
    return pa.ListArray.from_arrays(offsets, column.flatten().filter(pa.array(~gone)))


def pairs(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Ids and weights of n elements: structs (id, weight), or text `id:weight`.

    Returns:
      ids, of the type of the struct's first field, or string[n]; weights, of its second, or
      string[n]; null where an element has none, and for bytes that are no UTF-8.
    """
    if pa.types.is_struct(column.type):
        names = [field.name for field in column.type]
        places = (1, 0) if names == ["weight", "id"] else (0, 1)
        first, second = (pc.struct_field(column, [i]) for i in places)
        return first, second

    column = values.spell(column, respell=False)
    parts = pc.split_pattern(column, ":", max_splits=1, reverse=True)
    both = pc.equal(pc.list_value_length(parts), 2)
    halves = pc.if_else(both, parts, pa.scalar([None, None], parts.type))
    ids = pc.if_else(both, pc.list_element(halves, 0), column)
    weights = pc.utf8_trim_whitespace(pc.list_element(halves, 1))
    weights = values.only(pc.invert(pc.is_in(weights, pa.array(list_text.NONE))), weights)
    return pc.utf8_trim_whitespace(ids), weights


def weighing(ids: pa.Array, weight: str) -> pa.Array:
    """Ids, or lists of these, as pairs (id, weight), each of the same weight; null stays null."""
    if pa.types.is_list(ids.type):
        pairs = weighing(ids.values, weight)
        return pa.ListArray.from_arrays(ids.offsets, pairs, mask=ids.is_null())
    weights = pa.repeat(pa.scalar(weight), len(ids))
    return pa.StructArray.from_arrays([ids, weights], ["id", "weight"], mask=ids.is_null())


def allowed_weights(slot: Slot) -> str:
    """What the weights of a slot may be, in words."""
    if slot.is_mean:
        return f"between 0 and {MAX_WEIGHT:.0e}, as pooling is mean"
    return f"between {-MAX_WEIGHT:.0e} and {MAX_WEIGHT:.0e}"


def weights(
    slot: Slot,
    ids: pa.Array,
    column: pa.Array,
    is_missing: np.ndarray,
    row_of: np.ndarray | None,
    problems: Problems,
) -> np.ndarray:
    """f32[n], the weight of each id.

    A missing id may lack its weight: it is 1, or 0 in a bag.

    Args:
      slot: the ids' slot; if it is not weighted, another weight than 1 is a problem.
      ids, column: what `pairs` returned.
      is_missing: bool[n], which ids are missing.
      row_of: i64[n], the row of each id; None: one a row.
    """
    what = "has a weight that is no number:"
    numbers = numeric.parse(column, slot.name, problems, row_of=row_of, what=what)
    absent = np.isnan(numbers)
    reason = lambda i: f"{slot.name!r} holds {values.said(ids, i)} without a weight, as in 'id:0.5'"
    problems.mark(absent & ~is_missing, "weight", reason, row_of)
    numbers = np.where(absent, 0.0 if slot.is_bag else 1.0, numbers)

    if not slot.weighted:
        said = "where all are 1 in the training rows; weighted=True makes it a weight"
        reason = lambda i: f"slot {slot.name!r} has the value {values.said(column, i)}, {said}"
        problems.mark(numbers != 1, "value", reason, row_of)
    else:
        wrong = ~(np.abs(numbers) <= MAX_WEIGHT) | (slot.is_mean & (numbers < 0))
        said = f"must be {allowed_weights(slot)}"
        reason = lambda i: f"{slot.name!r} has the weight {values.said(column, i)}; it {said}"
        problems.mark(wrong, "weight", reason, row_of)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def vectors(slot: Slot, column: pa.Array, problems: Problems) -> pa.Array:
    """The column of a shard of a vector, from list[n] of text or numbers; null is missing.

    A vector of which all numbers are missing, or are one of `null_values`, is missing.
    """
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy()
    said = f"where a vector of {slot.length} is expected (config.prepare.slot.length)"
    # Of one element it is likely the text of several, between another separator.
    one = lambda i: f"the one value {values.said(column.slice(i, 1).flatten(), 0):.80}"
    has = lambda i: one(i) if lengths[i] == 1 else f"{lengths[i]} numbers"
    reason = lambda i: f"{slot.name!r} has {has(i)} {said}"
    problems.mark((lengths >= 0) & (lengths != slot.length), "length", reason)

    rows = np.flatnonzero(lengths == slot.length)
    x = np.empty((len(rows), slot.length), np.float32)
    step = max(_NUMBERS // slot.length, 1)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        x[part] = _matrix(slot, column, rows[part], problems)

    known = ~np.isnan(x[:, 0])
    there = np.zeros(len(column), bool)
    there[rows[known]] = True
    offsets = pa.array(np.append(0, np.cumsum(there * slot.length)), pa.int32())
    kept = pa.array(x[known].reshape(-1))
    return pa.ListArray.from_arrays(offsets, kept, mask=pa.array(~there))


def _matrix(slot: Slot, column: pa.Array, rows: np.ndarray, problems: Problems) -> np.ndarray:
    """f32[rows, length] of the lists in these rows; a missing one is all NaN."""
    flat, row_of = column.take(pa.array(rows)).flatten(), np.repeat(rows, slot.length)
    what = "is a vector but holds"
    numbers = numeric.read(flat, slot.name, problems, (), row_of, what)
    padding = numeric.among(flat, numbers, slot.null_values).reshape(-1, slot.length)
    of_rows = np.asarray(padding.all(axis=1))
    finite = np.where(np.repeat(of_rows, slot.length), np.nan, numbers)
    numeric.mark_infinite(flat, finite, slot.name, problems, row_of)

    numbers = numbers.reshape(-1, slot.length)
    absent: np.ndarray = np.isnan(numbers) | of_rows[:, None]
    some = np.asarray(absent.any(axis=1))
    which = lambda i: int(absent[i].argmax()) + 1
    reason = lambda i: f"number {which(i)} of the vector {slot.name!r} is missing"
    problems.mark(some & ~absent.all(axis=1), "number", reason, rows)
    with np.errstate(over="ignore"):
        return np.where(some[:, None], np.nan, numbers).astype(np.float32)
