"""A compiled call from host arrays to scores that costs little beside its products, for one row as
for thousands.

    matrix i32[B, N] = the slots' arrays side by side, numbers by their bits

Features go in as this one matrix, checked while it is made: 28 arguments cost more than a small
  network. The program
takes the matrix apart again, at no cost: the compiler undoes both.

For few rows the network's parameters are constants of the program, so that XLA slices stacked
weights when it compiles instead of at each call (HMM: 0.45 of the time for one row, 0.8 for four).
Each number of rows then holds a copy of them.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emofm_jax.data.schema import Schema
from emofm_jax.training import compilation

_FEW = 8  # rows
_CONSTANT = 1 << 24  # numbers that all constants together may have
_INFINITE = 0x7F800000  # the bits of inf, but for the sign


class Compiled(NamedTuple):
    """A call, and the two programs in it.

    Attributes:
      call: features -> scores, or None where the features do not fit.
      of_few, of_many: the programs for up to 8 rows, and for more.
    """

    call: Callable[[Any], Any]
    of_few: Callable
    of_many: Callable


def make(schema: Schema, params: Any, fn: Callable) -> Compiled:
    """Makes the compiled call of `fn(params, features)`, which is pure."""
    layout = Layout.of(schema)
    arguments, unite = _partition(params)
    with_constants = lambda tables, matrix: fn(unite(tables), layout.unpack(matrix))
    of_few = compilation.jit(with_constants, few_rows=True)
    of_many = compilation.jit(lambda params, matrix: fn(params, layout.unpack(matrix)))

    def call(features):
        matrix = layout.pack(features) if isinstance(features, Mapping) else None
        if matrix is None:
            return None
        return of_few(arguments, matrix) if len(matrix) <= _FEW else of_many(params, matrix)

    return Compiled(call, of_few, of_many)


class Layout(NamedTuple):
    """What the features of a schema look like, side by side.

    Attributes:
      names, dtypes, widths: of each slot; a width is the shape of its array behind the rows.
      of_slots: takes features, returns their arrays in this order.
      lowest: i32[N], the smallest id of each column.
      span: u32[N], how many ids there are from there on; of a number all.
      numbers: bool[N], which columns hold numbers; None where none does.
    """

    names: tuple[str, ...]
    dtypes: list[np.dtype]
    widths: tuple[tuple[int, ...], ...]
    of_slots: Callable[[Mapping], tuple]
    lowest: np.ndarray
    span: np.ndarray
    numbers: np.ndarray | None

    @classmethod
    def of(cls, schema: Schema) -> "Layout":
        """Returns the layout of a schema's features."""
        names = tuple(slot.name for slot in schema.slots)
        bags = np.array([slot.kind == "multi" for slot in schema.slots])
        numeric = np.array([slot.is_numeric for slot in schema.slots])
        rows = np.array([slot.rows for slot in schema.slots])
        columns = schema.column_slots

        # itemgetter of one name returns the array itself.
        of_slots = operator.itemgetter(*names) if len(names) > 1 else lambda x: (x[names[0]],)
        span = np.where(numeric, 2**32 - 1, rows + bags)
        return cls(
            names=names,
            dtypes=[np.dtype(np.float32 if number else np.int32) for number in numeric],
            widths=tuple((n,) if bag else () for n, bag in zip(schema.slot_widths, bags)),
            of_slots=of_slots,
            lowest=-bags.astype(np.int32)[columns],
            span=span.astype(np.uint32)[columns],
            numbers=numeric[columns] if numeric.any() else None,
        )

    def pack(self, features: Mapping) -> np.ndarray | None:
        """Returns i32[B, N] of numpy arrays; None if a name, dtype, shape, id or number does not
        fit."""
        try:
            arrays = self.of_slots(features)
            num_rows = len(arrays[0])
            fits = len(features) == len(arrays) and [x.dtype for x in arrays] == self.dtypes
            fits = fits and [x.shape for x in arrays] == [(num_rows, *w) for w in self.widths]
            if not fits or not all(type(x) is np.ndarray for x in arrays):
                return None
        except (KeyError, TypeError, AttributeError):  # an absent slot, or no arrays
            return None

        if self.numbers is not None:
            arrays = tuple([x.view(np.int32) for x in arrays])
        if num_rows == 1:
            matrix = np.concatenate(arrays, axis=None)[None]
        else:
            columns = [x if width else x[:, None] for x, width in zip(arrays, self.widths)]
            matrix = np.concatenate(columns, axis=1)

        # As an unsigned number, what is below the lowest is above the span.
        if not ((matrix - self.lowest).view(np.uint32) < self.span).all():
            return None
        if self.numbers is not None and (self.numbers & ((matrix & 0x7FFFFFFF) == _INFINITE)).any():
            return None
        return matrix

    def unpack(self, matrix: jax.Array) -> dict[str, jax.Array]:
        """Returns the features again, in a program or outside."""
        features, start = {}, 0
        for name, dtype, width in zip(self.names, self.dtypes, self.widths):
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
        return structure.unflatten([next(rest) if own else x for x, own in zip(leaves, stays)])

    return [x for x, own in zip(leaves, stays) if own], unite
