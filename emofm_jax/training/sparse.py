"""The table's part of a step: equal rows summed, an optimizer applied to them (docs/model.md).

    g_r = sum over occurrences m with ids_m = r of dL/de_m
    (table_r, moments_r) <- optimizer(g_r, ...)               for those r alone

No pass over the table or its moments: with the state donated, time follows the M occurrences.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def chunk_for(platform: str) -> int:
    """Rows that are updated at a time on a platform; 0: all occurrences in one pass.

    On a CPU a slab of rows and its moments stay in the cache. On an accelerator each turn of the
    loop costs the host a wait, and rows that are none cost nothing: an H200 took 2.1 ms for a step
    with the loop and 0.7 without (docs/performance.md).
    """
    return 8192 if platform == "cpu" else 0


class RowGradients(NamedTuple):
    """Gradient of the table, equal rows summed."""

    rows: (
        jax.Array | None
    )  # i32[Mc], the U distinct ones, all others out of range; None: all V in order
    grads: jax.Array  # f32[Mc, D], zeros where the row is none; f32[V, D] of all rows
    num_rows: jax.Array  # i32[], U; 0 where `rows` is None
    owner: jax.Array  # i32[V], scratch for the next step


def add_l2(grads: Any, params: Any, l2: float | tuple[float, ...]) -> Any:
    """Returns grads + l2 * params of a tree, or of an array with an l2 a column; `grads` if 0."""
    if not l2:
        return grads
    factor = jnp.asarray(l2, jnp.float32) if isinstance(l2, tuple) else l2
    return jax.tree.map(lambda g, p: g + factor * p, grads, params)


def sum_rows(ids: jax.Array, grads: jax.Array, owner: jax.Array, chunk: int) -> RowGradients:
    """Sums the gradients of equal ids, in time that follows M and not V.

    Args:
      ids: i32[M], table rows; V and above = padding.
      grads: f32[M, D], of each occurrence.
      owner: i32[V], scratch, donated: which occurrence speaks for a row. What it holds is not read.
      chunk: the U rows come first, and M is rounded up to a multiple of min(chunk, M), giving Mc.
        0: each row stands where the occurrence stands that speaks for it, and Mc = M.
    """
    size, num_rows = ids.shape[0], owner.shape[0]
    part = min(chunk or size, size)
    padded = -(-size // part) * part

    # One occurrence speaks for each row: the last that wrote its number.
    number = jnp.arange(size, dtype=jnp.int32)
    owner = owner.at[ids].set(number, mode="drop")
    speaker = owner.at[ids].get(mode="fill", fill_value=-1)
    live = speaker == number

    if chunk:  # the speakers' rows move to the front
        place = jnp.where(live, jnp.cumsum(live) - 1, padded)
        rows = (num_rows + jnp.arange(padded, dtype=jnp.int32)).at[place].set(ids, mode="drop")
    else:
        place, rows = number, jnp.where(live, ids, num_rows + number)

    # Padding has speaker -1, which would wrap to the last place: it is sent out of range instead.
    target = jnp.where(speaker >= 0, place[speaker], padded)
    summed = jnp.zeros((padded, grads.shape[1]), grads.dtype).at[target].add(grads, mode="drop")
    return RowGradients(rows, summed, jnp.sum(live, dtype=jnp.int32), owner)


def update_rows(
    optimizer: optax.GradientTransformation,
    table: jax.Array,
    opt_state: optax.OptState,
    found: RowGradients,
    *,
    clip_factor: jax.Array,
    lr_scale: jax.Array,
    l2: float | tuple[float, ...],
    chunk: int,
) -> tuple[jax.Array, optax.OptState]:
    """Applies a row-wise optimizer to the rows that were found, in place, a chunk at a time.

    Leaves of the optimizer's state with V rows are gathered and scattered as the table is. All
    others (counts) enter each chunk as they were before the step, and advance once.

    Args:
      optimizer: row-wise (training/optim.py).
      table: f32[V, D].
      opt_state: of the optimizer.
      found: from `sum_rows`, Mc a multiple of the chunk.
      clip_factor: f32[], on the gradients, before l2 * row is added.
      lr_scale: f32[], on the updates.
      l2: l2 * row is added to the gradient of a row that occurs.
      chunk: rows; 0: all in one pass.

    Returns:
      The table and the optimizer's state.
    """
    assert found.rows is not None
    rows, grads = found.rows, found.grads
    size = min(chunk or rows.shape[0], rows.shape[0])
    leaves, structure = jax.tree.flatten(opt_state)
    by_row = [leaf.ndim > 0 and leaf.shape[0] == table.shape[0] for leaf in leaves]

    def merged(others, arrays):
        """The optimizer's state: leaves by row from `arrays`, all others from `others`."""
        arrays = iter(arrays)
        chosen = [next(arrays) if r else leaf for leaf, r in zip(others, by_row)]
        return jax.tree.unflatten(structure, chosen)

    def slab(arrays, at):
        """The state for the rows `at` alone."""
        return merged(leaves, [_take(array, at) for array in arrays])

    def body(carry):
        start, table, arrays = carry
        at = jax.lax.dynamic_slice(rows, (start,), (size,))
        g = jax.lax.dynamic_slice(grads, (start, 0), (size, grads.shape[1]))
        old = _take(table, at)

        updates, new = optimizer.update(add_l2(clip_factor * g, old, l2), slab(arrays, at), old)
        new = [leaf for leaf, r in zip(jax.tree.leaves(new), by_row) if r]
        arrays = [_put(array, at, values) for array, values in zip(arrays, new)]
        return start + size, _put(table, at, old + lr_scale * updates), arrays

    # One row out of range tells how everything that is not a row advances.
    arrays = [leaf for leaf, r in zip(leaves, by_row) if r]
    nowhere = jnp.full(1, table.shape[0], jnp.int32)
    row = _take(table, nowhere)
    _, advanced = optimizer.update(row, slab(arrays, nowhere), row)

    loop = lambda carry: jax.lax.while_loop(lambda c: c[0] < found.num_rows, body, carry)
    _, table, arrays = (loop if chunk else body)((jnp.zeros((), jnp.int32), table, arrays))
    return table, merged(jax.tree.leaves(advanced), arrays)


def _take(array: jax.Array, rows: jax.Array) -> jax.Array:
    return array.at[rows].get(mode="fill", fill_value=0, unique_indices=True)


def _put(array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return array.at[rows].set(values, mode="drop", unique_indices=True)
