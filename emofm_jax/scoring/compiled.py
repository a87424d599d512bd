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

from emofm_jax.data import bags
from emofm_jax.data import features as features_lib
from emofm_jax.data.schema import Schema
from emofm_jax.training import compilation

_FEW = 8  # rows
_BLOCK = 4096  # rows that are packed and checked at a time: they stay in the cache
_CONSTANT = 1 << 24  # numbers that all constants together may have
_INFINITE = 0x7F800000  # the bits of inf, but for the sign
_MAX_WEIGHT = int(np.float32(bags.MAX_WEIGHT).view(np.int32))


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
        arrays = features_lib.arrays(schema)
        names = [array.name for array in arrays]
        widths = [array.shape[0] if array.shape else 1 for array in arrays]
        of_columns = lambda values: np.repeat(np.array(values), widths)

        # Of each array; a width is its shape behind the rows.
        self._names = names
        self._dtypes = [np.dtype(array.dtype) for array in arrays]
        self._widths = [array.shape for array in arrays]
        # From features to their arrays; itemgetter of one name returns the array itself.
        get = operator.itemgetter(*names)
        self._arrays_of = get if len(names) > 1 else lambda features: (get(features),)

        # Of each column: the smallest id, how many there are (of a number all, of a weight in a
        # mean the bits of all that it may be), what is a number, what is a weight.
        numbers = np.array([array.dtype == "float32" for array in arrays])
        of_bags = np.array([array.slot.is_bag for array in arrays]) & ~numbers
        means = np.array([array.is_weight and array.slot.is_mean for array in arrays])
        weights = np.array([array.is_weight for array in arrays])
        span = np.array([array.slot.rows for array in arrays]) + of_bags
        span = np.where(means, _MAX_WEIGHT + 1, np.where(numbers, 2**32 - 1, span))
        self._lowest = -of_columns(of_bags).astype(np.int32)
        self._span = of_columns(span).astype(np.uint32)
        self._numbers = of_columns(numbers) if numbers.any() else None
        self._weights = of_columns(weights) if weights.any() else None
        # The columns of each vector: NaN is all of it, or none.
        starts = np.cumsum([0, *widths]).tolist()
        vectors = [i for i, array in enumerate(arrays) if array.slot.is_vector]
        self._vectors = [slice(starts[i], starts[i + 1]) for i in vectors]

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
            return matrix if self._fits(matrix) else None
        columns = [x if width else x[:, None] for x, width in zip(arrays, self._widths)]
        if num_rows <= _BLOCK:
            matrix = np.concatenate(columns, axis=1)
            return matrix if self._fits(matrix) else None
        matrix = np.empty((num_rows, len(self._span)), np.int32)
        for start in range(0, num_rows, _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = np.concatenate([x[rows] for x in columns], axis=1, out=matrix[rows])
            if not self._fits(block):
                return None
        return matrix

    def _fits(self, matrix: np.ndarray) -> bool:
        """Whether all ids are in range, and all numbers are finite or missing."""
        # As an unsigned number, what is below the lowest is above the span.
        if not ((matrix - self._lowest).view(np.uint32) < self._span).all():
            return False
        if self._numbers is None:
            return True
        bits = matrix & 0x7FFFFFFF
        if (self._numbers & (bits == _INFINITE)).any():
            return False
        if self._weights is not None and (self._weights & (bits > _MAX_WEIGHT)).any():
            return False

        for columns in self._vectors:
            missing = bits[:, columns] > _INFINITE
            if (missing.any(axis=1) != missing.all(axis=1)).any():
                return False
        return True

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
