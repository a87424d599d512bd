"""Raw values in memory: lists, numpy, jax, pandas or Arrow arrays, of one slot -> Arrow columns."""

import contextlib
import datetime
import functools
import itertools
import uuid
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data import values as values_lib
from emofm_jax.data.formats import release_0_1
from emofm_jax.data.schema import Slot
from emofm_jax.errors import UserError

_ROWS = (list, tuple, np.ndarray, set, frozenset)
_ARRAYS = ("__arrow_c_stream__", "__arrow_c_array__", "__arrow_array__")
# Types of which no value is missing, but None.
_NEVER_MISSING = frozenset((type(None), str, bytes, int, bool, list, tuple, dict))
_Spell = Callable[..., str | None]  # `values.one` as the slot has it
_LOST = (np.datetime64, np.timedelta64, uuid.UUID, datetime.time, datetime.datetime)


def as_arrow(
    slot: Slot, values: Any, spelling: int = values_lib.SPELLING, missing: tuple[str, ...] = ()
) -> pa.Array:
    """One column, however it was given.

    Args:
      slot: whose values they are.
      values: a list or an array.
      spelling: of the schema, as `values` (the module) has them.
      missing: what a missing value may be called (`Encoder.missing_of`).

    Raises:
      UserError: no list or array, values that are none, lists in a slot of single values.
    """
    where = f"data: slot {slot.name!r}"
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise UserError(f"{where} is {values!r}; give a list or an array, one entry a row")
    try:
        spell = functools.partial(
            values_lib.one, respell=slot.respell, spelling=spelling, missing=missing
        )
        column = _column(values, slot, spelling, spell)
        column = values_lib.unwrapped(column) if spelling != 1 else column
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


def _column(values: Any, slot: Slot, spelling: int, spell: _Spell) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, pa.ChunkedArray):
        return _whole(values)
    if spelling == 1 and (of_0_1 := release_0_1.column(values)) is not None:
        return of_0_1
    if str(getattr(values, "dtype", "")).lower() == "object":  # of numpy, pandas, polars
        is_masked = isinstance(values, np.ma.MaskedArray)
        return _of_objects(values.tolist() if is_masked else list(values), slot, spell)
    if any(hasattr(values, name) for name in _ARRAYS) or _is_of_pandas(values):
        with contextlib.suppress(pa.ArrowException):  # Arrow has no such type: say, of 128 bits
            found = pa.chunked_array(values) if hasattr(values, _ARRAYS[0]) else pa.array(values)
            return _whole(found) if isinstance(found, pa.ChunkedArray) else found
        return _of_objects(list(values), slot, spell)

    if hasattr(values, "__dlpack__") or hasattr(values, "__array__"):  # of jax, say
        values = np.asanyarray(values)
    if not isinstance(values, np.ndarray):
        return _of_objects(list(values), slot, spell)
    return _of_numpy(values, slot, spell)


def _is_of_pandas(values: Any) -> bool:
    """Whether Arrow knows the type as one of pandas: a Series, an Index, a Categorical."""
    return type(values).__module__.partition(".")[0] == "pandas"


def _of_numpy(values: np.ndarray, slot: Slot, spell: _Spell) -> pa.Array:
    """An array of numpy, masked or not, at the width that it has; rows of a matrix are lists."""
    if values.dtype.kind == "f" and values.dtype.itemsize > 8 or values.dtype.names:
        return _of_objects(list(values), slot, spell)  # Arrow has no such type
    if values.dtype.kind == "c":
        raise TypeError("complex numbers are no values")
    if str(values.dtype) == "bfloat16":
        values = values.astype(np.float32)

    mask = np.ma.getmaskarray(values).ravel() if isinstance(values, np.ma.MaskedArray) else None
    flat = np.asarray(values).ravel()
    if not flat.dtype.isnative:
        flat = flat.astype(flat.dtype.newbyteorder("="))
    if flat.dtype.kind in "mM":
        if mask is not None:
            flat = flat.copy()
            flat[mask] = "NaT"
        flat = values_lib.in_unit_of_arrow(flat)
    if values.ndim not in (1, 2):
        raise TypeError(f"an array of {values.ndim} axes")
    given = flat.astype(object) if _holds_nul(flat) else flat  # where Arrow would end the text
    column = pa.array(given, from_pandas=True, mask=mask)
    if values.ndim == 1:
        return column
    offsets = np.arange(len(values) + 1) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)


def _holds_nul(flat: np.ndarray) -> bool:
    """Whether a NUL stands before other characters of a text or of bytes."""
    if flat.dtype.kind not in "US" or not flat.size or not flat.dtype.itemsize:
        return False
    signs = flat.view(np.uint32 if flat.dtype.kind == "U" else np.uint8).reshape(len(flat), -1)
    return bool(((signs[:, :-1] == 0) & (signs[:, 1:] != 0)).any())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    chunks = column.unify_dictionaries().chunks
    return pa.concat_arrays(chunks) if chunks else pa.array([], column.type)


def _of_objects(values: list, slot: Slot, spell: _Spell) -> pa.Array:
    """Values of Python, numpy or pandas, or lists of these."""
    values = _items(values)
    if slot.weighted and not slot.is_bag:
        return _of_pairs(values, spell)
    kinds = set(map(type, values))
    several = {kind for kind in kinds if _is_several(kind, slot)}
    if not several:
        return _of_singles(values, spell)

    if not slot.weighted and kinds <= {list, tuple, type(None)}:
        with contextlib.suppress(pa.ArrowException, ValueError, TypeError):  # most are of text
            return pa.array(values, pa.list_(pa.string()))
    missing = _missing(values, kinds)
    rows = [() if gone else _elements(row, several) for row, gone in zip(values, missing)]
    offsets = np.cumsum([0, *map(len, rows)])
    of_elements = _of_pairs if slot.weighted else _of_singles
    flat = of_elements(_items(list(itertools.chain.from_iterable(rows))), spell)
    mask = pa.array(missing) if any(missing) else None
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=mask)


def _items(values: list) -> list:
    """The values with what is in arrays without axes, None where it is masked."""
    if not any(issubclass(kind, np.ndarray) for kind in set(map(type, values))):
        return values
    return [_item(value) for value in values]


def _item(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.ndim:
        return value
    return None if np.ma.is_masked(value) else value[()]


def _is_several(kind: type, slot: Slot) -> bool:
    """Whether a value of a type is a row of several: a list, an array of any library."""
    if issubclass(kind, _ROWS) or (slot.weighted and issubclass(kind, dict)):
        return True
    is_single = issubclass(kind, str | bytes | np.generic)
    return not is_single and all(hasattr(kind, name) for name in ("__array__", "__len__"))


def _elements(row: Any, several: Collection[type]) -> Collection:
    if isinstance(row, dict):  # {id: weight}
        return row.items()
    if type(row) in several:
        return row if isinstance(row, _ROWS) else list(row)
    raise TypeError(f"{row!r} stands among lists")


def _of_pairs(values: list, spell: _Spell) -> pa.Array:
    """Ids with weights: text `id:weight`, (id, weight), or a dict of these two."""
    if all(isinstance(value, str | bytes) or _is_missing(value) for value in values):
        return _of_singles(values, spell)
    ids, weights = zip(*map(_pair, values))
    of_weights = functools.partial(spell, missing=())
    columns = [_of_singles(list(ids), spell), _of_singles(list(weights), of_weights)]
    return pa.StructArray.from_arrays(columns, ["id", "weight"])


def _pair(value: Any) -> tuple[Any, Any]:
    if _is_missing(value):
        return None, None
    if isinstance(value, str | bytes):
        parts: Any = value.rpartition(":") if isinstance(value, str) else value.rpartition(b":")
        return (parts[0].strip(), parts[2].strip()) if parts[1] else (value, None)
    if isinstance(value, dict) and value.keys() == {"id", "weight"}:
        return value["id"], value["weight"]

    both = tuple(value.values()) if isinstance(value, dict) else value
    if isinstance(both, np.void):  # a record of numpy
        both = tuple(both[i] for i in range(len(both.dtype.names or ())))
    if not isinstance(both, _ROWS[:3]) or len(both) != 2:
        raise TypeError(f"{value!r} is no pair of an id and its weight")
    return both[0], both[1]


def _of_singles(values: list, spell: _Spell) -> pa.Array:
    """Single values. Those of one type keep it, if Arrow loses nothing; else each is spelled."""
    kinds = set(map(type, values))
    plain = values
    if not kinds <= _NEVER_MISSING:
        missing = _missing(values, kinds)
        plain = [None if gone else value for value, gone in zip(values, missing)]
        kinds = set(map(type, plain))

    kinds.discard(type(None))
    if len(kinds) < 2 and not any(map(_is_lost, kinds)):
        with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
            return pa.array(plain, from_pandas=True)  # some integers and decimals are too large
    spelled = [_spelled(value, spell) for value in values]
    is_text = not any(isinstance(value, bytes) for value in spelled)
    return pa.array(spelled, pa.string() if is_text else pa.binary())


def _spelled(value: Any, spell: _Spell) -> str | bytes | None:
    """The text of a value; bytes that are no text stay, so that their row is named."""
    try:
        return spell(value)
    except UnicodeDecodeError:
        return bytes(value)


def _missing(values: list, kinds: Collection[type]) -> list[bool]:
    """Which values are missing, of values of some types."""
    if _NEVER_MISSING.issuperset(kinds):
        return [value is None for value in values]
    of_others = lambda value: type(value) not in _NEVER_MISSING and _is_missing(value)
    return [value is None or of_others(value) for value in values]


def _is_missing(value: Any) -> bool:
    if isinstance(value, float | np.floating | np.datetime64 | np.timedelta64):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _is_lost(kind: type) -> bool:
    """Whether Arrow loses some of a value: a zone, nanoseconds of pandas, the value itself."""
    of_pandas = hasattr(kind, "to_datetime64") or hasattr(kind, "to_timedelta64")
    return of_pandas or issubclass(kind, _LOST)
