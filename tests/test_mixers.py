"""What holds for every mixer, and cross-attention against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax.nn import mixers
from tests.reference import emofm as reference

KINDS = [kind for kind, mixer in mixers.MIXERS.items() if mixer is not None]
D_ATT, HEADS, WIDTH = 8, 2, 6


def _tokens(n, batch=5, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, WIDTH)), jnp.float32) for _ in range(n)]


def _random_params(module, tokens, seed=1):
    """None is zero: at the start `out` is, and a mixer does nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def _apply(module, params, tokens):
    return jax.jit(module.apply)(params, tokens)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixer_starts_as_the_identity(kind, n, norm):
    tokens, module = _tokens(n), mixers.MIXERS[kind](D_ATT, HEADS, norm)
    out = _apply(module, jax.jit(module.init)(jax.random.key(0), tokens), tokens)
    assert len(out) == n
    for a, b in zip(out, tokens):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_needs_no_parameters(kind):
    module = mixers.MIXERS[kind](D_ATT, HEADS)
    assert not jax.tree.leaves(module.init(jax.random.key(0), _tokens(1)))


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_moved_after_two_steps(kind, norm):
    tokens, target, module = _tokens(3), _tokens(3, seed=5), mixers.MIXERS[kind](D_ATT, HEADS, norm)
    start = jax.jit(module.init)(jax.random.key(0), tokens)
    loss = lambda p: sum(jnp.sum((a - b) ** 2) for a, b in zip(module.apply(p, tokens), target))
    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.01 * g, p, jax.grad(loss)(p)))
    params = step(step(start))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(params)):
        moved = np.array(b) - np.array(a)
        slices = np.split(moved, 3, axis=-1) if "query_key_value" in str(path) else [moved]
        assert all((np.abs(x).reshape(3, -1).max(axis=1) > 0).all() for x in slices), path  # of every token


@pytest.mark.parametrize("n,num_heads", [(2, 2), (3, 1), (3, 8), (5, 2)])
def test_cross_attention_agrees_with_numpy(n, num_heads):
    tokens, module = _tokens(n), mixers.CrossAttentionMixer(D_ATT, num_heads)
    params = _random_params(module, tokens)
    weights = {k: np.array(v, np.float64) for k, v in params["params"].items()}
    w_q, w_k, w_v = np.split(weights["query_key_value"], 3, axis=-1)
    stacked = np.stack([np.array(t, np.float64) for t in tokens], axis=1)
    expected = reference.mixer(stacked, w_q, w_k, w_v, weights["out"], num_heads)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.stack(_apply(module, params, tokens), axis=1) / scale, expected / scale, atol=1e-5)


def test_layer_norm_stands_before_the_products_and_not_on_the_residual():
    tokens = _tokens(3)
    module, plain = (mixers.CrossAttentionMixer(D_ATT, HEADS, norm) for norm in ("layer", "none"))
    params = _random_params(module, tokens)["params"]
    normed = [np.array(x) for x in tokens]
    normed = [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) for x in normed]
    normed = [x * s + b for x, s, b in zip(normed, *(np.array(params["norm"][k]) for k in ("scale", "bias")))]
    without = {"params": {k: v for k, v in params.items() if k != "norm"}}
    for x, u, a, b in zip(tokens, normed, _apply(plain, without, normed), _apply(module, {"params": params}, tokens)):
        np.testing.assert_allclose(b, np.array(x) + np.array(a) - u, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_tokens_together_with_their_weights_permutes_the_result(kind):
    tokens, module = _tokens(4), mixers.MIXERS[kind](D_ATT, HEADS)
    params, order = _random_params(module, tokens), [2, 0, 3, 1]
    out = _apply(module, params, tokens)
    permuted = _apply(module, jax.tree.map(lambda x: x[jnp.array(order)], params), [tokens[i] for i in order])
    for i, x in zip(order, permuted):
        np.testing.assert_allclose(x, out[i], rtol=1e-4, atol=1e-4)


def test_a_token_does_not_attend_to_itself():
    tokens, module = _tokens(3), mixers.CrossAttentionMixer(D_ATT, HEADS)
    params = _random_params(module, tokens)
    values = params["params"]["query_key_value"].at[0, :, D_ATT:].add(1.0)  # keys and values of token 0
    changed = _apply(module, {"params": params["params"] | {"query_key_value": values}}, tokens)
    same = [bool(jnp.allclose(a, b)) for a, b in zip(_apply(module, params, tokens), changed)]
    assert same == [True, False, False]


def test_large_scores_stay_finite():
    tokens, module = [1e3 * x for x in _tokens(3)], mixers.CrossAttentionMixer(D_ATT, HEADS)
    params = _random_params(module, tokens)
    grads = jax.jit(jax.grad(lambda p: sum(jnp.sum(x) for x in module.apply(p, tokens))))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads do not divide d_att = 8"):
        mixers.CrossAttentionMixer(8, 3).init(jax.random.key(0), _tokens(2))
