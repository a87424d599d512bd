"""Raw columns as release 0.1 took them, for data and runs with its spelling (`values`, spelling 1).

What 0.1 refused is None here, and read as it is now. Null spellings are of whole cells: of text as
it stands, of any other value as a number of 64 bits. What is neither number nor list is then text.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def column(values: Any) -> pa.Array | None:
    """Values in memory, of one slot, as a column."""
    if hasattr(values, "__dlpack__"):  # an array of jax, say
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = list(values)
    try:
        found = pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def plain(given: pa.Array, null_values: Sequence[str]) -> pa.Array | None:
    """A column as numbers, text or lists of these; null where a cell is a spelling of null."""
    try:
        found = given.cast(_plain(given.type))
        if pa.types.is_list(found.type):
            return found
        if pa.types.is_string(found.type):
            missing = pc.is_in(found, pa.array(null_values, pa.string()))
        else:
            numbers = [float(text) for text in null_values if _NUMBER.fullmatch(text)]
            as_numbers = found.cast(pa.float64(), safe=False)
            missing = pc.is_in(as_numbers, pa.array(numbers, pa.float64()))
        return pc.if_else(missing, pa.scalar(None, found.type), found)
    except pa.ArrowException:
        return None


def _plain(kind: pa.DataType) -> pa.DataType:
    """Integers, floats and lists stay, truth values become 0 and 1, anything else becomes text."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return kind
    if pa.types.is_boolean(kind):
        return pa.int8()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        nested = pa.types.is_nested(kind.value_type)
        return pa.list_(pa.string() if nested else _plain(kind.value_type))
    return pa.string()
