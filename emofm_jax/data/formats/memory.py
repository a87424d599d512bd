"""Raw values in memory: lists, numpy, jax, pandas or Arrow arrays, of one slot -> Arrow columns."""

import uuid
from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data import values as values_lib
from emofm_jax.data.schema import Slot
from emofm_jax.errors import UserError

_ROWS = (list, tuple, np.ndarray, set, frozenset)
_ARRAYS = ("__arrow_c_stream__", "__arrow_c_array__", "__arrow_array__")


def as_arrow(slot: Slot, values: Any, spelling: int = values_lib.SPELLING) -> pa.Array:
    """One column, however it was given.

    Args:
      slot: whose values they are.
      values: a list or an array.
      spelling: of the schema, as `values` (the module) has them.

    Raises:
      UserError: no list or array, values that are none, lists in a slot of single values.
    """
    where = f"data: slot {slot.name!r}"
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise UserError(f"{where} is {values!r}; give a list or an array, one entry a row")
    try:
        column = _column(values, slot, spelling)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} cannot be read ({reason}); give plain values") from None
    is_pair = slot.weighted and pa.types.is_struct(column.type)
    if pa.types.is_nested(column.type) and not (slot.is_bag or slot.is_vector or is_pair):
        problem = f"holds lists, it has one value a row (it is {slot.kind})"
        raise UserError(f"{where} {problem}; give single values")
    if pa.types.is_null(column.type):
        is_list = slot.is_bag or slot.is_vector
        return column.cast(pa.list_(pa.string()) if is_list else pa.string())
    return column


def _column(values: Any, slot: Slot, spelling: int) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, pa.ChunkedArray):
        return _whole(values)
    if isinstance(values, np.ma.MaskedArray):
        values = _without_masked(values)
    if str(getattr(values, "dtype", "")) == "object":
        return _of_objects(list(values), slot, spelling)
    if any(hasattr(values, name) for name in _ARRAYS):
        found = pa.chunked_array(values) if hasattr(values, _ARRAYS[0]) else pa.array(values)
        return _whole(found) if isinstance(found, pa.ChunkedArray) else found
    if hasattr(values, "__dlpack__"):  # an array of jax, say
        values = np.asarray(values)
    if not isinstance(values, np.ndarray):
        return _of_objects(list(values), slot, spelling)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind in "mM":
        values = values_lib.in_unit_of_arrow(values)
    if values.ndim > 1:  # rows of a matrix are bags
        return pa.array(list(values))
    return pa.array(values, from_pandas=True)


def _without_masked(values: Any) -> Any:
    """A masked array with missing values where it is masked."""
    if values.dtype.kind == "M":
        return values.filled(np.datetime64("NaT"))
    return values.tolist()  # None where it is masked


def _whole(column: pa.ChunkedArray) -> pa.Array:
    chunks = column.unify_dictionaries().chunks
    return pa.concat_arrays(chunks) if chunks else pa.array([], column.type)


def _of_objects(values: list, slot: Slot, spelling: int) -> pa.Array:
    """Values of Python, numpy or pandas, or lists of these."""
    if slot.weighted and not slot.is_bag:
        return _of_pairs(values, slot, spelling)
    kinds = (*_ROWS, dict) if slot.weighted else _ROWS
    if not any(isinstance(value, kinds) for value in values):
        return _of_singles(values, slot, spelling)
    rows = [[] if _is_missing(row) else _elements(row) for row in values]
    offsets = np.append(0, np.cumsum([len(row) for row in rows]))
    of_elements = _of_pairs if slot.weighted else _of_singles
    flat = of_elements([element for row in rows for element in row], slot, spelling)
    missing = pa.array([_is_missing(row) for row in values])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=missing)


def _elements(row: Any) -> list:
    if isinstance(row, dict):  # {id: weight}
        return list(row.items())
    if isinstance(row, _ROWS):
        return list(row)
    raise TypeError(f"{row!r} stands among lists")


def _of_pairs(values: list, slot: Slot, spelling: int) -> pa.Array:
    """Ids with weights: text `id:weight`, (id, weight), or a dict of these two."""
    if all(isinstance(value, str) or _is_missing(value) for value in values):
        return _of_singles(values, slot, spelling)
    ids, weights = zip(*map(_pair, values))
    columns = [_of_singles(list(part), slot, spelling) for part in (ids, weights)]
    return pa.StructArray.from_arrays(columns, ["id", "weight"])


def _pair(value: Any) -> tuple[Any, Any]:
    if _is_missing(value):
        return None, None
    if isinstance(value, str):
        name, found, weight = value.rpartition(":")
        return (name.strip(), weight.strip()) if found else (value, None)
    if isinstance(value, dict) and value.keys() == {"id", "weight"}:
        return value["id"], value["weight"]
    both = tuple(value.values()) if isinstance(value, dict) else value
    if not isinstance(both, _ROWS[:3]) or len(both) != 2:
        raise TypeError(f"{value!r} is no pair of an id and its weight")
    return both[0], both[1]


def _of_singles(values: list, slot: Slot, spelling: int) -> pa.Array:
    """Single values. Those of one type keep it; of several, each is spelled for itself."""
    kinds = {type(value) for value in values if not _is_missing(value)}
    of_one_type = len(kinds) < 2 and not kinds & {np.datetime64, np.timedelta64, uuid.UUID}
    if not of_one_type or any(map(_is_large, values)):
        spelled = [values_lib.one(value, slot.respell, spelling) for value in values]
        return pa.array(spelled, pa.string())
    return pa.array([None if _is_missing(value) else value for value in values], from_pandas=True)


def _is_missing(value: Any) -> bool:
    if isinstance(value, float | np.floating | np.datetime64 | np.timedelta64):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _is_large(value: Any) -> bool:
    """Whether an integer of Python is too large for Arrow's."""
    return isinstance(value, int) and not -(2**63) <= value < 2**63
