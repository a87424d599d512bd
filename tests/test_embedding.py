"""The table's start, looking up, pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax.data import placing
from emofm_jax.nn import embedding
from tests.reference import emofm as reference


def test_row_0_of_each_slot_starts_at_zero_and_the_others_do_not():
    offsets = np.array([0, 500, 0, 1500])  # the third slot shares the rows of the first
    table = np.array(embedding.init_table(jax.random.key(3), offsets, 2000, 16, 0.02))
    zero = ~table.any(axis=1)
    assert np.flatnonzero(zero).tolist() == [0, 500, 1500]
    drawn = table[~zero]
    assert abs(drawn.std() / 0.02 - 1) < 4 / np.sqrt(2 * drawn.size)  # four standard errors
    assert abs(drawn.mean()) < 4 * 0.02 / np.sqrt(drawn.size)


@pytest.mark.parametrize("times", [0, 1, 7])
def test_lookup_gives_zero_out_of_range_and_the_last_row_right(times):
    """Few rows are copied one by one, many at once."""
    assert 6 <= embedding._FEW < 7 * 6
    table = jnp.arange(1.0, 13.0).reshape(6, 2)
    ids = jnp.array([[0, 5, 6], [2**31 - 1, 6, 3]] * times, jnp.int32).reshape(-1, 3)
    expected = np.array([[[1, 2], [11, 12], [0, 0]], [[0, 0], [0, 0], [7, 8]]] * times).reshape(
        -1, 3, 2
    )
    np.testing.assert_array_equal(embedding.lookup(table, ids), expected)
    compiled = embedding.lookup._cache_size()
    np.testing.assert_array_equal(embedding.lookup(table, ids[::-1]), expected[::-1])
    assert embedding.lookup._cache_size() == compiled
    np.testing.assert_array_equal(jax.vmap(embedding.lookup, (None, 0))(table, ids), expected)
    grad = jax.grad(lambda table: embedding.lookup(table, ids)[..., 1].sum())(table)
    np.testing.assert_array_equal(grad, times * np.array([[0, x] for x in (1, 0, 0, 1, 0, 1)]))


@pytest.mark.parametrize(
    "slot_widths", [(1, 1, 1), (3,), (1, 1, 4, 4, 1, 2), (2, 1, 1, 5), (4, 4, 4)]
)
@pytest.mark.parametrize("with_value", [True, False])
def test_pooling_agrees_with_a_loop(slot_widths, with_value):
    rng = np.random.default_rng(sum(slot_widths))
    num_columns, num_rows, batch = sum(slot_widths), 20, 5
    table = rng.normal(size=(num_rows, 3)).astype(np.float32)
    ids = rng.integers(0, num_rows + 1, (batch, num_columns)).astype(
        np.int32
    )  # num_rows is padding
    ids[0] = num_rows  # every bag of the first row is empty
    value = rng.normal(size=ids.shape).astype(np.float32)
    e = embedding.pool(
        embedding.lookup(jnp.array(table), ids),
        jnp.array(value) if with_value else None,
        slot_widths,
    )
    expected = reference.pool(table, ids, value if with_value else np.ones(ids.shape), slot_widths)
    np.testing.assert_allclose(e, expected, atol=1e-6)
    assert not np.array(e[0]).any()


def test_pooling_single_ids_without_values_is_the_identity_and_costs_nothing():
    occurrences = jnp.ones((2, 3, 4))
    assert embedding.pool(occurrences, None, (1, 1, 1)) is occurrences
    lowered = (
        jax.jit(lambda x: embedding.pool(x, None, (1, 1, 3))).lower(jnp.ones((2, 5, 4))).as_text()
    )
    assert "gather" not in lowered and "scatter" not in lowered


def test_the_gradient_of_an_occurrence_is_its_value_times_that_of_its_slot():
    value, widths = jnp.array([[2.0, 0.5, 0.25]]), (1, 2)
    weights = jnp.array([[[3.0], [8.0]]])
    grad = jax.grad(lambda x: jnp.sum(weights * embedding.pool(x, value, widths)))(
        jnp.ones((1, 3, 1))
    )
    np.testing.assert_allclose(grad[0, :, 0], [2.0 * 3, 0.5 * 8, 0.25 * 8])


def test_some_rows_are_drawn_as_all_are():
    """Offsets of slots that share rows, two vectors; places of storage beyond the table hold nothing."""
    key, size = jax.random.key(3), ([0, 0, 40, 1000], 2500, 5, 0.07, ((2, 41, 9), (11, 1000, 30)))
    table = np.concatenate([embedding.init_table(key, *size), np.zeros((1, 5))])
    rows = np.array(placing.rows_at(np.arange(4000), 2500), np.int32)
    found = jax.jit(lambda rows: embedding.init_rows(key, rows, *size))(rows)
    np.testing.assert_array_equal(found, table[np.minimum(rows, 2500)])
    assert sorted(rows[rows < 2500]) == list(range(2500))
