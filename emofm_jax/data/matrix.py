"""Features as one array: a call on few rows costs what its arguments cost, and one array is the cheapest argument.

    matrix i32[B, N] = the slots' arrays side by side, numbers by their bits

No jax here: `to_features` takes apart what it is given, in a program too, where the compiler undoes it again.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from emofm_jax.data.schema import Schema

_INFINITE = 0x7F800000  # the bits of inf, but for the sign


class Layout(NamedTuple):
    """What the features of a schema look like.

    Attributes:
      names, dtypes, widths: of each slot; a width of 0 is an array without a second axis.
      lowest: i32[N], the smallest id of each column.
      span: u32[N], how many there are from there on; of a number all.
      numbers: bool[N], which columns hold numbers; None where none does.
    """

    names: tuple[str, ...]
    dtypes: tuple[np.dtype, ...]
    widths: tuple[int, ...]
    lowest: np.ndarray
    span: np.ndarray
    numbers: np.ndarray | None


def layout(schema: Schema) -> Layout:
    """The layout of a schema's features."""
    slots, columns = schema.slots, schema.column_slots
    bags, numeric = (np.array(x) for x in zip(*((slot.kind == "multi", slot.is_numeric) for slot in slots)))
    rows = np.array([slot.rows for slot in slots])
    return Layout(
        tuple(slot.name for slot in slots),
        tuple(np.dtype(np.float32 if slot.is_numeric else np.int32) for slot in slots),
        tuple(width if bag else 0 for width, bag in zip(schema.slot_widths, bags)),
        -bags.astype(np.int32)[columns],
        np.where(numeric, 2**32 - 1, rows + bags).astype(np.uint32)[columns],
        numeric[columns] if numeric.any() else None,
    )


def of_features(features: Mapping, layout: Layout) -> np.ndarray | None:
    """i32[B, N] of numpy arrays; None where a name, dtype, shape or id does not fit, or a number is infinite."""
    if len(features) != len(layout.names) or not all(name in features for name in layout.names):
        return None
    columns, num_rows = [], None
    for name, dtype, width in zip(layout.names, layout.dtypes, layout.widths):
        x = features[name]
        if type(x) is not np.ndarray or x.dtype != dtype or x.shape[1:] != ((width,) if width else ()) or not x.ndim:
            return None
        num_rows = len(x) if num_rows is None else num_rows
        if len(x) != num_rows:
            return None
        columns.append(x if width else x[:, None])
    if layout.numbers is not None:
        columns = [x.view(np.int32) for x in columns]
    matrix = np.concatenate(columns, axis=1)
    if not ((matrix - layout.lowest).view(np.uint32) < layout.span).all():  # below the lowest wraps to the largest
        return None
    if layout.numbers is not None and (layout.numbers & ((matrix & 0x7FFFFFFF) == _INFINITE)).any():
        return None
    return matrix


def to_features(matrix, layout: Layout, as_float: Callable) -> dict:
    """The features again; `as_float` takes i32[B] by its bits."""
    features, start = {}, 0
    for name, dtype, width in zip(layout.names, layout.dtypes, layout.widths):
        x = matrix[:, start : start + width] if width else matrix[:, start]
        features[name] = as_float(x) if dtype == np.float32 else x
        start += width or 1
    return features
