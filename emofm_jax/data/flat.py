"""Features as one array: a call on few rows costs what its arguments cost, and one array is the cheapest argument.

    flat i32[B * N] = the slots one after the other, each row by row; numbers by their bits

No jax here: `unflatten` takes apart what it is given, in a program too.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from emofm_jax.data.schema import Schema

_INFINITE = 0x7F800000  # the bits of inf, but for the sign


class Layout(NamedTuple):
    """Of the features of one schema and number of rows.

    Attributes:
      shapes, dtypes: of each slot's array.
      lowest, span: i32 and u32[B * N], the smallest id of each place and how many there are.
      numbers: bool[B * N], which places hold a number; None where none does.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    lowest: np.ndarray
    span: np.ndarray
    numbers: np.ndarray | None


def layout(schema: Schema, num_rows: int) -> Layout:
    """What features of `num_rows` rows look like."""
    bags = [slot.kind == "multi" for slot in schema.slots]
    shapes = tuple((num_rows, width) if bag else (num_rows,) for bag, width in zip(bags, schema.slot_widths))
    places = num_rows * np.array(schema.slot_widths)
    numeric = np.array([slot.is_numeric for slot in schema.slots])
    span = np.where(numeric, 2**32 - 1, np.array([slot.rows for slot in schema.slots]) + bags)
    return Layout(
        shapes,
        tuple(np.dtype(np.float32 if slot.is_numeric else np.int32) for slot in schema.slots),
        np.repeat(-np.array(bags, np.int32), places),
        np.repeat(span, places).astype(np.uint32),
        np.repeat(numeric, places) if numeric.any() else None,
    )


def flatten(features: Mapping, names: tuple[str, ...], layout: Layout) -> np.ndarray | None:
    """i32[B * N]; None where something does not fit: another name, dtype or shape, an id out of range, infinity.

    Args:
      features: numpy arrays.
      names: of the schema's slots.
      layout: of the schema and the number of rows.
    """
    if len(features) != len(names) or not all(name in features for name in names):
        return None
    arrays = [features[name] for name in names]
    for x, dtype, shape in zip(arrays, layout.dtypes, layout.shapes):
        if type(x) is not np.ndarray or x.dtype != dtype or x.shape != shape:
            return None
    flat = np.concatenate([x.view(np.int32) for x in arrays] if layout.numbers is not None else arrays, axis=None)
    if not ((flat - layout.lowest).view(np.uint32) < layout.span).all():  # below the lowest wraps to the largest
        return None
    if layout.numbers is not None and (layout.numbers & ((flat & 0x7FFFFFFF) == _INFINITE)).any():
        return None
    return flat


def unflatten(flat, schema: Schema, as_float: Callable) -> dict:
    """The features again; `as_float` takes i32[B] by its bits."""
    num_rows, start, features = flat.shape[0] // schema.num_columns, 0, {}
    for slot, width in zip(schema.slots, schema.slot_widths):
        x = flat[start : start + num_rows * width]
        start += num_rows * width
        x = as_float(x) if slot.is_numeric else x
        features[slot.name] = x.reshape(num_rows, width) if slot.kind == "multi" else x
    return features
