"""The mixture in log space, the predictors' first and last layers, the auxiliary model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax.nn import typewise
from tests.reference import emofm as reference


def _random(*shapes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape in shapes]


def _random_params(module, *inputs, **kwargs):
    tree = jax.eval_shape(lambda key: module.init(key, *inputs, **kwargs), jax.random.key(0))[
        "params"
    ]
    leaves, structure = jax.tree.flatten(tree)
    return {"params": jax.tree.unflatten(structure, _random(*[x.shape for x in leaves], seed=7))}


def _softmax(x):
    return np.array([reference.softmax(row) for row in np.array(x, np.float64)])


@pytest.mark.parametrize("drop_type", [-1, 0, 2])
def test_the_mixture_is_the_weighted_sum_of_probabilities(drop_type):
    logits, type_logits = _random((50, 3), (50, 3), scale=3)
    mixture = jax.jit(typewise.mixture, static_argnums=2)(logits, type_logits, drop_type)
    p, p_type = reference.mixture(
        reference.sigmoid(np.array(logits, np.float64)), _softmax(type_logits), drop_type
    )
    np.testing.assert_allclose(np.exp(mixture.log_p), p, rtol=1e-5)
    np.testing.assert_allclose(np.exp(mixture.log_not_p), 1 - p, rtol=1e-5)
    np.testing.assert_allclose(mixture.logit, np.log(p / (1 - p)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(typewise.type_probs(type_logits, drop_type), p_type, rtol=1e-5)


def test_the_mixture_of_one_type_is_its_predictor():
    (logits,) = _random((20, 1), scale=5)
    np.testing.assert_allclose(
        typewise.mixture(logits, jnp.ones((20, 1))).logit, logits[:, 0], rtol=1e-5, atol=1e-6
    )


def test_the_mixture_stays_finite_and_exact_where_probabilities_underflow():
    logits, type_logits = (
        jnp.array([[-300.0, -310.0], [300.0, 310.0]]),
        jnp.array([[0.0, 0.0], [200.0, -200.0]]),
    )
    mixture = typewise.mixture(logits, type_logits)
    # log(e^-300 / 2 + e^-310 / 2); of the second row the second predictor has weight e^-400.
    np.testing.assert_allclose(
        mixture.logit, [-300 + np.log((1 + np.exp(-10)) / 2), 300], rtol=1e-6
    )
    grads = jax.jit(jax.grad(lambda a, b: typewise.mixture(a, b).logit.sum(), argnums=(0, 1)))(
        logits, type_logits
    )
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_allclose(grads[0].sum(axis=1), [1, 1], rtol=1e-5)


@pytest.mark.parametrize("drop_type", [0, 1, 2])
def test_the_column_of_a_dropped_type_is_the_mixture_of_the_others(drop_type):
    kept, type_logits = _random((9, 2), (9, 3))
    filled = jax.jit(typewise.fill_dropped, static_argnums=2)(kept, type_logits, drop_type)
    np.testing.assert_array_equal(np.delete(filled, drop_type, axis=1), kept)
    p_type = _softmax(np.delete(np.array(type_logits), drop_type, axis=1))
    p, _ = reference.mixture(reference.sigmoid(np.array(kept, np.float64)), p_type)
    np.testing.assert_allclose(reference.sigmoid(np.array(filled)[:, drop_type]), p, rtol=1e-5)
    # So the mixture over all types is that of the others, whatever the AM says of the dropped one.
    whole = jax.jit(typewise.mixture)(filled, type_logits)
    np.testing.assert_allclose(np.exp(whole.log_p), p, rtol=1e-5)


@pytest.mark.parametrize("drop_type", [0, 2])
def test_dropping_a_type_gives_finite_gradients_and_none_to_its_type_logit(drop_type):
    logits, type_logits = _random((9, 3), (9, 3))

    def p(logits, type_logits):
        return jnp.exp(typewise.mixture(logits, type_logits, drop_type).log_p).sum()

    grads = jax.jit(jax.grad(p, argnums=(0, 1)))(logits, type_logits)
    assert all(
        np.isfinite(g).all() and not np.array(g)[:, drop_type].any() and g.any() for g in grads
    )


@pytest.mark.parametrize("shared", [True, False])
def test_a_predictor_sees_its_type_embedding_beside_the_input(shared):
    (x,) = _random((4, 6))
    module = typewise.TypeDense(5, 3, shared, embedding_dim=2, init_scale=0.1)
    variables = _random_params(module, x)
    params = variables["params"]
    assert params["kernel"].shape == (1 if shared else 3, 6 + 2, 5) and params[
        "type_embedding"
    ].shape == (3, 2)
    out = jax.jit(module.apply)(variables, x)
    if shared:
        out = np.split(np.array(out[0]), 3)
    for t in range(3):
        w = 0 if shared else t
        beside = np.concatenate([x, np.tile(np.array(params["type_embedding"])[t], (4, 1))], axis=1)
        expected = beside @ np.array(params["kernel"][w]) + np.array(params["bias"][w])
        np.testing.assert_allclose(out[t], expected, rtol=1e-4, atol=1e-5)


def test_the_type_embedding_starts_at_its_scale():
    module = typewise.TypeDense(1, 50, True, embedding_dim=40, init_scale=0.03)
    embedding = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2)))["params"][
        "type_embedding"
    ]
    assert abs(embedding.std() / 0.03 - 1) < 4 / np.sqrt(2 * embedding.size)


def test_heads_start_near_their_bias_and_have_weights_of_their_own():
    tokens = _random((4, 6), (4, 6))
    module = typewise.TokenHead((-2.0, 1.0))
    zero = module.apply(module.init(jax.random.key(0), tokens), [0 * x for x in tokens])
    np.testing.assert_array_equal(zero, [[-2.0] * 4, [1.0] * 4])
    variables = _random_params(module, tokens)
    for i, (x, logits) in enumerate(zip(tokens, module.apply(variables, tokens))):
        expected = (
            np.array(x) @ np.array(variables["params"]["kernel"][i, :, 0])
            + variables["params"]["bias"][i]
        )
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_auxiliary_model_agrees_with_numpy():
    (e,) = _random((6, 3, 2))
    module = typewise.AuxiliaryModel((5, 4), (0.1, 0.2, 0.3))
    variables = _random_params(module, e.reshape(6, -1), train=False)
    params = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
    probs = typewise.type_probs(module.apply(variables, e.reshape(6, -1), train=False))
    np.testing.assert_allclose(
        probs, reference.auxiliary(params, np.array(e, np.float64)), atol=1e-5
    )


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_an_auxiliary_model_starts_at_its_bias(hidden):
    module, x = typewise.AuxiliaryModel(hidden, (-1.0, 0.5)), jnp.zeros((2, 4))
    start = module.apply(module.init(jax.random.key(0), x, train=False), x, train=False)
    np.testing.assert_allclose(start, [[-1.0, 0.5]] * 2)
