"""The embedding table: start, look-up, pooling of bags into slots (docs/model.md, section 1).

    e[b, s] = sum over the columns c of slot s of value[b, c] * table[ids[b, c]]

An id that is out of range, as padding is, is the zero vector.
"""

import functools
import itertools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from emofm_jax.nn import random

# Rows that XLA:CPU copies in a loop sooner than it wakes its threads for a gather (26: 20 us sooner
# of 90).
_FEW = 32


def init_table(
    key: jax.Array,
    offsets: Sequence[int] | np.ndarray,
    num_rows: int,
    embedding_dim: int,
    init_scale: float,
    vectors: Sequence[tuple[int, int]] = (),
) -> jax.Array:
    """Draws the table from N(0, init_scale); row 0 of each slot, of unknown values, is zero.

    A vector of n numbers is a sum over n rows. These are drawn from N(0, init_scale / sqrt(n)), so
    that numbers of size 1 give it the size of any other slot.

    Args:
      key: of `jax.random`.
      offsets: i64[S], first row of each slot (`schema.offsets`; slots that share rows have the same
        one).
      num_rows: V (`schema.num_rows`).
      embedding_dim: D.
      init_scale: standard deviation.
      vectors: first row and length of each slot that is a vector (`schema.vectors`).

    Returns:
      f32[V, D].
    """
    zero_rows = jnp.asarray(np.unique(offsets), jnp.int32)
    return _init_table(key, zero_rows, num_rows, embedding_dim, init_scale, tuple(vectors))


@functools.partial(jax.jit, static_argnums=(2, 3, 5))
def _init_table(key, zero_rows, num_rows, embedding_dim, init_scale, vectors):
    table = init_scale * random.normal(key, (num_rows, embedding_dim))
    for first, length in vectors:
        table = table.at[first + 1 : first + 1 + length].multiply(length**-0.5)
    return table.at[zero_rows].set(0.0)


# Compiled, else each call outside of a program would compile its loop anew.
@functools.partial(jax.jit, inline=True)
def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Gathers rows; an id that is out of range, as padding is, gives the zero vector.

    Args:
      table: f32[V, D].
      ids: i32[..., N], rows of the table; padding is V (a negative id would count from the end).

    Returns:
      f32[..., N, D].
    """
    gather = lambda table, ids: table.at[ids].get(mode="fill", fill_value=0)
    # The size is a symbol in the program of an export.
    if not isinstance(ids.size, int) or not 0 < ids.size <= _FEW:
        return gather(table, ids)

    def one_by_one(table, ids):
        rows = jax.lax.map(lambda i: gather(table, i), ids.reshape(-1))
        return rows.reshape(*ids.shape, -1)

    return jax.lax.platform_dependent(table, ids, cpu=one_by_one, default=gather)


def pool(occurrences: jax.Array, value: jax.Array | None, slot_widths: Sequence[int]) -> jax.Array:
    """Sums the columns of each slot, weighted by their values.

    Mean pooling is a value of 1 / len, a numeric slot's value is its scaled number, a vector's are
    its numbers; an empty bag is the zero vector. When no slot is a bag and there are no values,
    this is the identity.

    Args:
      occurrences: f32[B, N, D], what `lookup` returned.
      value: f32[B, N], or None where every value is 1.
      slot_widths: columns of each slot, N in all (`schema.slot_widths`).

    Returns:
      f32[B, S, D].
    """
    chex.assert_shape(occurrences, (None, sum(slot_widths), None))
    if value is not None:
        occurrences = occurrences * value[..., None]
    if all(width == 1 for width in slot_widths):
        return occurrences
    batch, _, dim = occurrences.shape
    pieces, start = [], 0
    for width, run in itertools.groupby(slot_widths):  # neighbours of one width are one slice
        slots = len(list(run))
        piece = occurrences[:, start : start + slots * width]
        if width > 1:
            piece = piece.reshape(batch, slots, width, dim).sum(axis=2)
        pieces.append(piece)
        start += slots * width
    return jnp.concatenate(pieces, axis=1)
