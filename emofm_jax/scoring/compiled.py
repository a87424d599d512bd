"""A compiled call from host arrays to scores that costs little beside its products.

    matrix i32[B, N] = the slots' arrays side by side, numbers by their bits

Features go in as this one matrix, checked while it is made: 28 arguments cost more than a small
network. The program takes the matrix apart again, which the compiler undoes at no cost.

For few rows the network's parameters are constants of the program, so that XLA slices stacked
weights when it compiles instead of at each call (HMM: 0.45 of the time for one row, 0.8 for four).
Each number of rows then holds a copy of them.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emofm_jax.data.schema import Schema
from emofm_jax.training import compilation

_FEW = 8  # rows
_CONSTANT = 1 << 24  # numbers that all constants together may have
_INFINITE = 0x7F800000  # the bits of inf, but for the sign


class Compiled:
    """The compiled call of a pure `fn(params, features)`.

    Attributes:
      of_few, of_many: the programs for up to 8 rows, and for more.
    """

    def __init__(self, schema: Schema, params: Any, fn: Callable):
        self._layout, self._params = Layout(schema), params
        self._arguments, unite = _partition(params)
        unpack = self._layout.unpack
        self.of_few = compilation.jit(lambda x, m: fn(unite(x), unpack(m)), few_rows=True)
        self.of_many = compilation.jit(lambda params, matrix: fn(params, unpack(matrix)))

    def __call__(self, features: Any) -> Any:
        """Returns the scores, or None where the features do not fit."""
        matrix = self._layout.pack(features) if isinstance(features, Mapping) else None
        if matrix is None:
            return None
        if len(matrix) <= _FEW:
            return self.of_few(self._arguments, matrix)
        return self.of_many(self._params, matrix)


class Layout:
    """What the features of a schema look like, side by side."""

    def __init__(self, schema: Schema):
        names = [slot.name for slot in schema.slots]
        bags = np.array([slot.kind == "multi" for slot in schema.slots])
        numeric = np.array([slot.is_numeric for slot in schema.slots])
        rows = np.array([slot.rows for slot in schema.slots])
        columns = schema.column_slots

        # Of each slot; a width is the shape of its array behind the rows.
        self._names = names
        self._dtypes = [np.dtype(np.float32 if number else np.int32) for number in numeric]
        self._widths = [(n,) if bag else () for n, bag in zip(schema.slot_widths, bags)]
        # From features to their arrays; itemgetter of one name returns the array itself.
        get = operator.itemgetter(*names)
        self._arrays_of = get if len(names) > 1 else lambda features: (get(features),)

        # Of each column: the smallest id, how many there are (of a number all), what is a number.
        self._lowest = -bags.astype(np.int32)[columns]
        self._span = np.where(numeric, 2**32 - 1, rows + bags).astype(np.uint32)[columns]
        self._numbers = numeric[columns] if numeric.any() else None

    def pack(self, features: Mapping) -> np.ndarray | None:
        """Returns i32[B, N]; None if a name, type, shape or id does not fit, or a number is inf."""
        try:
            arrays = self._arrays_of(features)
            num_rows = len(arrays[0])
            fits = len(features) == len(arrays) and [x.dtype for x in arrays] == self._dtypes
            fits = fits and [x.shape for x in arrays] == [(num_rows, *w) for w in self._widths]
            if not fits or not all(type(x) is np.ndarray for x in arrays):
                return None
        except (KeyError, TypeError, AttributeError):  # an absent slot, or no arrays
            return None

        if self._numbers is not None:
            arrays = tuple([x.view(np.int32) for x in arrays])
        if num_rows == 1:
            matrix = np.concatenate(arrays, axis=None)[None]
        else:
            columns = [x if width else x[:, None] for x, width in zip(arrays, self._widths)]
            matrix = np.concatenate(columns, axis=1)

        # As an unsigned number, what is below the lowest is above the span.
        if not ((matrix - self._lowest).view(np.uint32) < self._span).all():
            return None
        if self._numbers is None:
            return matrix
        infinite = self._numbers & ((matrix & 0x7FFFFFFF) == _INFINITE)
        return None if infinite.any() else matrix

    def unpack(self, matrix: jax.Array) -> dict[str, jax.Array]:
        """Returns the features again, in a program or outside."""
        features, start = {}, 0
        for name, dtype, width in zip(self._names, self._dtypes, self._widths):
            x = matrix[:, start : start + width[0]] if width else matrix[:, start]
            is_number = dtype == np.float32
            features[name] = jax.lax.bitcast_convert_type(x, jnp.float32) if is_number else x
            start += width[0] if width else 1
        return features


def _partition(params: Any) -> tuple[list[jax.Array], Callable[[list], Any]]:
    """Returns the parameters that stay arguments, and the function from these to all of them.

    These are the tables; all of the parameters where the others are too many to be constants.
    """
    found, structure = jax.tree.flatten_with_path(params)
    is_table = [any(getattr(key, "key", None) == "embedding" for key in path) for path, _ in found]
    leaves = [x for _, x in found]
    many = sum(x.size for x, table in zip(leaves, is_table) if not table) > _CONSTANT
    stays = [many or table for table in is_table]

    def unite(arguments):
        rest = iter(arguments)
        joined = [next(rest) if own else x for x, own in zip(leaves, stays)]
        return jax.tree.unflatten(structure, joined)

    return [x for x, own in zip(leaves, stays) if own], unite
