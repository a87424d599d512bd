"""Raw values in memory: lists, numpy, jax or Arrow arrays, of one slot each -> Arrow columns."""

from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data.schema import Slot
from emofm_jax.errors import UserError


def as_arrow(slot: Slot, values: Any) -> pa.Array:
    """One column, however it was given.

    Raises:
      UserError: no list or array, values of several types, lists in a slot of single values.
    """
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
        reason = " ".join(str(error).split())
        raise UserError(f"{where} cannot be read ({reason}); give values of one type") from None
    if pa.types.is_list(column.type) and not slot.is_bag:
        problem = f"holds lists, it has one value a row (it is {slot.kind})"
        raise UserError(f"{where} {problem}; give single values")
    if pa.types.is_null(column.type):
        return column.cast(pa.list_(pa.string()) if slot.is_bag else pa.string())
    return column
