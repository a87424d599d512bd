"""Which programs are compiled with the options for CPUs, and that a jaxlib without these options does not mind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax.training import compilation

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)


FUNCTIONS = {
    "a product": (lambda weights, rows: rows @ weights[0], False),
    "a batched product of weights": (
        lambda weights, rows: rows @ jnp.einsum("tij,tkj->ik", weights, weights),
        False,
    ),
    "of rows": (lambda weights, rows: jnp.einsum("bi,bi->b", rows, rows) * weights[0, 0, 0], True),
    "of rows in an inner program": (
        lambda weights, rows: jax.jit(lambda x: jax.vmap(jnp.dot)(x, x))(rows),
        True,
    ),
    "of what rows became": (
        lambda weights, rows: jax.vmap(jnp.dot)(rows @ weights[0], rows @ weights[1]),
        True,
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_batched_products_of_rows_go_without_the_options(name, monkeypatch):
    function, is_batched = FUNCTIONS[name]
    options, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **given: options.append(given) or jit(f, **given))
    found = compilation.jit(function)
    for num_rows in (7, 1):
        np.testing.assert_allclose(
            found(WEIGHTS, ROWS[:num_rows]), function(WEIGHTS, ROWS[:num_rows]), rtol=1e-5
        )
    assert ({"compiler_options": compilation.CPU_OPTIONS} in options) == (not is_batched)
    assert found._cache_size() == 2


def test_a_jaxlib_that_does_not_know_the_options_compiles_without_them(monkeypatch):
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_no_such_option": ""})
    compilation._knows_options.cache_clear()
    try:
        np.testing.assert_allclose(compilation.jit(jnp.add)(ROWS, ROWS), 2 * ROWS)
    finally:
        compilation._knows_options.cache_clear()
