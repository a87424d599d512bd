"""Features as one array: a call on few rows costs what its arguments cost, and one array is the cheapest argument.

    matrix i32[B, N] = the slots' arrays side by side, numbers by their bits

No jax here: `to_features` takes apart what it is given, in a program too, where the compiler undoes it again.
"""

import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from emofm_jax.data.schema import Schema

_INFINITE = 0x7F800000  # the bits of inf, but for the sign


class Layout(NamedTuple):
    """What the features of a schema look like.

    Attributes:
      names, dtypes, widths: of each slot; a width is the shape of its array behind the rows.
      of_slots: from features to their arrays in this order.
      lowest: i32[N], the smallest id of each column.
      span: u32[N], how many there are from there on; of a number all.
      numbers: bool[N], which columns hold numbers; None where none does.
    """

    names: tuple[str, ...]
    dtypes: list[np.dtype]
    widths: tuple[tuple[int, ...], ...]
    of_slots: Callable[[Mapping], tuple]
    lowest: np.ndarray
    span: np.ndarray
    numbers: np.ndarray | None


def layout(schema: Schema) -> Layout:
    """The layout of a schema's features."""
    slots, columns = schema.slots, schema.column_slots
    bags, numeric = (
        np.array(x) for x in zip(*((slot.kind == "multi", slot.is_numeric) for slot in slots))
    )
    rows = np.array([slot.rows for slot in slots])
    names = tuple(slot.name for slot in slots)
    return Layout(
        names,
        [np.dtype(np.float32 if slot.is_numeric else np.int32) for slot in slots],
        tuple((width,) if bag else () for width, bag in zip(schema.slot_widths, bags)),
        operator.itemgetter(*names) if len(names) > 1 else lambda features: (features[names[0]],),
        -bags.astype(np.int32)[columns],
        np.where(numeric, 2**32 - 1, rows + bags).astype(np.uint32)[columns],
        numeric[columns] if numeric.any() else None,
    )


def of_features(features: Mapping, layout: Layout) -> np.ndarray | None:
    """i32[B, N] of numpy arrays; None where a name, dtype, shape or id does not fit, or a number is infinite."""
    try:
        arrays = layout.of_slots(features)
        num_rows = len(arrays[0])
        fits = len(features) == len(arrays) and [x.dtype for x in arrays] == layout.dtypes
        fits = fits and [x.shape for x in arrays] == [(num_rows, *width) for width in layout.widths]
        if not fits or not all(type(x) is np.ndarray for x in arrays):
            return None
    except (KeyError, TypeError, AttributeError):  # an absent slot, or no arrays
        return None
    if layout.numbers is not None:
        arrays = [x.view(np.int32) for x in arrays]
    if num_rows == 1:
        matrix = np.concatenate(arrays, axis=None)[None]
    else:
        matrix = np.concatenate(
            [x if width else x[:, None] for x, width in zip(arrays, layout.widths)], axis=1
        )
    if not (
        (matrix - layout.lowest).view(np.uint32) < layout.span
    ).all():  # below the lowest wraps to the largest
        return None
    if layout.numbers is not None and (layout.numbers & ((matrix & 0x7FFFFFFF) == _INFINITE)).any():
        return None
    return matrix


def to_features(matrix, layout: Layout, as_float: Callable) -> dict:
    """The features again; `as_float` takes i32[B] by its bits."""
    features, start = {}, 0
    for name, dtype, width in zip(layout.names, layout.dtypes, layout.widths):
        x = matrix[:, start : start + width[0]] if width else matrix[:, start]
        features[name] = as_float(x) if dtype == np.float32 else x
        start += width[0] if width else 1
    return features
