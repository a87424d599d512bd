"""The embedding table: start, look-up, pooling of bags into slots (docs/model.md, section 1).

    e[b, s] = sum over the columns c of slot s of value[b, c] * table[ids[b, c]]

An id that is out of range, as padding is, is the zero vector. A vector of n numbers, which has n
columns of the same n rows in all of a batch, is one product with these rows. For 256 numbers and
1,024 rows of a batch, forward and backward took 1 ms in place of 108, and 1 MB in place of 35.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

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
    vectors: Sequence[tuple[int, int, int]] = (),
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
      vectors: `schema.vectors`.

    Returns:
      f32[V, D].
    """
    zero_rows = jnp.asarray(np.unique(offsets), jnp.int32)
    return _init_table(key, zero_rows, num_rows, embedding_dim, init_scale, tuple(vectors))


@functools.partial(jax.jit, static_argnums=(2, 3, 5))
def _init_table(key, zero_rows, num_rows, embedding_dim, init_scale, vectors):
    table = init_scale * random.normal(key, (num_rows, embedding_dim))
    for _, first, length in vectors:
        table = table.at[first + 1 : first + 1 + length].multiply(length**-0.5)
    return table.at[zero_rows].set(0.0)


def init_rows(
    key: jax.Array,
    rows: jax.Array,
    offsets: Sequence[int] | np.ndarray,
    num_rows: int,
    embedding_dim: int,
    init_scale: float,
    vectors: Sequence[tuple[int, int, int]] = (),
) -> jax.Array:
    """Draws some rows of the table that `init_table` draws, i32[n] -> f32[n, D], and no others.

    Those that are out of range are zero.
    """
    numbers = rows.astype(jnp.uint32)[:, None] * jnp.uint32(embedding_dim)
    numbers += jnp.arange(embedding_dim, dtype=jnp.uint32)
    found = init_scale * random.normal_at(key, numbers)
    if vectors:  # else the compiler multiplies the factors first: other last bits
        found = jax.lax.optimization_barrier(found)

    for _, first, length in vectors:
        of_vector = (first < rows) & (rows <= first + length)
        found *= jnp.where(of_vector, length**-0.5, 1.0)[:, None]
    zero_rows = jnp.asarray(np.unique([*np.asarray(offsets), num_rows]), jnp.int32)
    is_zero = zero_rows[jnp.searchsorted(zero_rows, rows)] == rows
    return jnp.where((is_zero | (rows >= num_rows))[:, None], 0.0, found)


def read(table: jax.Array, ids: jax.Array, vectors: Sequence[tuple[int, int, int]]) -> Any:
    """Reads the rows of the table that a batch needs.

    Args:
      table: f32[V, D].
      ids: i32[B, N], padding is V.
      vectors: (first column, first row, length) of each slot that is a vector (`schema.vectors`).

    Returns:
      rows and occurrences, alike in structure: without vectors ids and f32[B, N, D]. Otherwise
      lists: of the other columns the same; of each vector i32[length + 1], its own rows, out of
      range where no row of the batch has them, and f32[length + 1, D].
    """
    if not vectors:
        return ids, lookup(table, ids)
    others = ids[:, _others(ids.shape[1], vectors)]
    rows, found = [others], [lookup(table, others)]

    for column, first, length in vectors:
        lead, own = ids[:, column], np.arange(length + 1, dtype=np.int32)
        occurs = jnp.where(own == 0, (lead == first).any(), (lead == first + 1).any())
        rows.append(jnp.where(occurs, first + own, np.iinfo(np.int32).max))
        found.append(table[first : first + length + 1])
    return rows, found


def split(flat: jax.Array, ids: jax.Array, vectors: Sequence[tuple[int, int, int]]) -> Any:
    """Occurrences as `read` has them, of f32[M, D] that stand one after the other.

    The order is that of `data.placing.occurring`.
    """
    width = flat.shape[1]
    if not vectors:
        return flat.reshape(*ids.shape, width)

    num_others = ids.shape[1] - sum(length for _, _, length in vectors)
    done = len(ids) * num_others
    found = [flat[:done].reshape(len(ids), num_others, width)]
    for _, _, length in vectors:
        found.append(flat[done : done + length + 1])
        done += length + 1
    return found


def embed(
    occurrences: Any,
    ids: jax.Array,
    value: jax.Array | None,
    slot_widths: Sequence[int],
    vectors: Sequence[tuple[int, int, int]],
) -> jax.Array:
    """The vectors e f32[B, S, D] of the slots of a batch, from what `read` found for its ids."""
    if not vectors:
        return pool(occurrences, value, slot_widths)
    assert value is not None
    starts = np.cumsum([0, *slot_widths]).tolist()
    blocks = dict(zip((column for column, _, _ in vectors), zip(vectors, occurrences[1:])))
    plain = [width for start, width in zip(starts, slot_widths) if start not in blocks]
    pooled = pool(occurrences[0], value[:, _others(ids.shape[1], vectors)], plain)

    pieces, done = [], 0
    for start in starts[:-1]:
        if start in blocks:
            pieces.append(_product(*blocks[start], ids, value)[:, None])
        else:
            pieces.append(pooled[:, done : done + 1])
            done += 1
    return jnp.concatenate(pieces, axis=1)


def _product(place: tuple[int, int, int], own: jax.Array, ids: jax.Array, value: jax.Array):
    """f32[B, D] of a vector: its numbers times its rows, or its row 0 where it is missing."""
    column, first, length = place
    lead = ids[:, column]
    known = (lead == first + 1)[:, None]
    numbers = jnp.where(known, value[:, column : column + length], 0.0)
    missing = jnp.where(lead == first, value[:, column], 0.0)
    return jnp.dot(numbers, own[1:], precision="highest") + missing[:, None] * own[0]


def _others(num_columns: int, vectors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Columns that are of no vector."""
    of_vectors = [np.arange(column, column + length) for column, _, length in vectors]
    return np.setdiff1d(np.arange(num_columns), np.concatenate(of_vectors))


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
