"""What holds for every mixer, each against numpy, and what is special to one of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax.nn import mixers
from emofm_jax.options import options_of
from tests.reference import mixers as reference

KINDS = [kind for kind, mixer in mixers.MIXERS.items() if mixer is not None]
D_ATT, HEADS, WIDTH = 8, 2, 6
# Parameters without a leading axis of tokens.
SHARED = {"edge", "message_bias", "gru", "hidden_bias"}
# Arrays that hold several parameters side by side: how many.
FUSED = {"query_key_value": 3, "message": 3, "gates": 2, "bias": 3, "edge": 2}


def _make(kind, norm="none", dtype=jnp.float32, **options):
    sizes = {"d_att": D_ATT, "num_heads": HEADS}
    return mixers.Mixing(kind, norm=norm, **sizes | options).make(None, dtype)


def _tokens(n, batch=5, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, WIDTH)), jnp.float32) for _ in range(n)]


def _random_params(module, tokens, seed=1):
    """None is zero: at the start `out` is, and a mixer does nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


@functools.cache
def _start(kind):
    return jax.jit(_make(kind, "layer").init)(jax.random.key(0), _tokens(3))


@functools.cache
def _compiled(module):
    return jax.jit(module.apply)


@functools.cache
def _compiled_gradients(module):
    def loss(params, tokens, target):
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(module.apply(params, tokens), target))

    return jax.jit(jax.grad(loss, (0, 1)))


def _apply(module, params, tokens):
    return _compiled(module)(params, tokens)


def _without_norm(params):
    return {"params": {k: v for k, v in params["params"].items() if k != "norm"}}


def _names(path):
    return [key.key for key in path]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixer_starts_as_the_identity(kind):
    tokens = _tokens(3)
    for module, params in (
        (_make(kind, "layer"), _start(kind)),
        (_make(kind), _without_norm(_start(kind))),
    ):
        out = _apply(module, params, tokens)
        assert len(out) == 3
        for a, b in zip(out, tokens):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_token_needs_no_parameters(kind, norm):
    module, tokens = _make(kind, norm), _tokens(1)
    variables = module.init(jax.random.key(0), tokens)
    assert not jax.tree.leaves(variables)
    (out,) = module.apply(variables, tokens)
    np.testing.assert_array_equal(out, tokens[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_every_token_has_moved_after_two_steps(kind):
    tokens, target, gradients = (
        _tokens(3),
        _tokens(3, seed=5),
        _compiled_gradients(_make(kind, "layer")),
    )
    params = start = _start(kind)
    for _ in range(2):
        params = jax.tree.map(
            lambda x, g: x - 0.1 * np.array(g), params, gradients(params, tokens, target)[0]
        )
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(params)):
        _, *owners, name = _names(path)
        moved = np.array(b) - np.array(a)
        axis = 0 if name == "edge" else -1
        parts = (
            np.split(moved, FUSED[name], axis)
            if name in FUSED and (name != "bias" or "gru" in owners)
            else [moved]
        )
        shared = SHARED & {*owners, name}
        for part in parts:
            rows = [part] if shared and name != "hidden_bias" else part.reshape(len(part), -1)
            assert all(np.abs(row).max() > 0 for row in rows), (path, moved)
        if name in ("hidden", "out"):  # of every hidden unit, every token
            assert (moved != 0).all(), (path, moved)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixer_agrees_with_numpy(kind, norm):
    _check_against_numpy(kind, _make(kind, norm), 3, HEADS)


@pytest.mark.parametrize(
    "kind,n,num_heads",
    [("cross_attention", 5, 2), ("cross_attention", 3, 8), ("self_attention", 2, 1)],
)
def test_attention_agrees_with_numpy_for_other_numbers_of_tokens_and_heads(kind, n, num_heads):
    _check_against_numpy(kind, _make(kind, num_heads=num_heads), n, num_heads)


def test_fields_that_are_no_options_agree_with_numpy():
    _check_against_numpy("graph", mixers.GraphMixer(D_ATT, num_steps=1), 4, num_steps=1)
    _check_against_numpy("mlp", mixers.MLPMixer(token_expansion=3), 4)


def _check_against_numpy(kind, module, n, num_heads=HEADS, **options):
    tokens = _tokens(n)
    params = _random_params(module, tokens)
    weights = jax.tree.map(lambda x: np.array(x, np.float64), params["params"])
    u = np.stack([np.array(x, np.float64) for x in tokens], axis=1)
    inputs = reference.layer_norm(u, _stacked(weights["norm"])) if "norm" in weights else u
    options |= {"num_heads": num_heads} if hasattr(module, "num_heads") else {}
    expected = (
        u + getattr(reference, kind)(inputs, weights, **options) - inputs
    )  # the residual is not normalised
    scale = np.abs(expected).max()
    assert np.abs(expected - u).max() > 0.1 * scale
    np.testing.assert_allclose(
        np.stack(_apply(module, params, tokens), axis=1) / scale, expected / scale, atol=1e-5
    )


def _stacked(norm):
    return {k: v[None] for k, v in norm.items()}  # [1, n, d]


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_tokens_together_with_their_weights_permutes_the_result(kind):
    tokens, module, order = _tokens(3), _make(kind, "layer"), [2, 0, 1]
    params = _random_params(module, tokens)
    permute = lambda path, x: x if SHARED & {*_names(path)} else x[jnp.array(order)]
    permuted = _apply(
        module, jax.tree_util.tree_map_with_path(permute, params), [tokens[i] for i in order]
    )
    out = _apply(module, params, tokens)
    for i, x in zip(order, permuted):
        np.testing.assert_allclose(x, out[i], rtol=1e-4, atol=1e-4)
    assert np.abs(np.array(permuted[0]) - np.array(out[0])).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_large_inputs_and_their_gradients_stay_finite(kind):
    module, tokens = _make(kind, "layer"), [1e3 * x for x in _tokens(3)]
    params = _random_params(module, tokens)
    params["params"]["norm"] = jax.tree.map(lambda x: 1e3 * x, params["params"]["norm"])
    out = _apply(module, params, tokens)
    assert max(float(jnp.abs(x).max()) for x in out) > 1e3
    gradients = _compiled_gradients(module)(params, tokens, _tokens(3, seed=5))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, gradients)))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rounds_the_products_and_keeps_the_tokens_type(kind):
    tokens = _tokens(3)
    params = jax.tree.map(lambda x: 0.3 * x, _random_params(_make(kind), tokens))
    exact = np.stack(_apply(_make(kind), params, tokens))
    module = _make(kind, dtype=jnp.bfloat16)
    for dtype in (jnp.float32, jnp.bfloat16):
        out = jax.eval_shape(module.apply, params, [x.astype(dtype) for x in tokens])
        assert [(x.shape, x.dtype) for x in out] == [(x.shape, dtype) for x in tokens]
    error = np.abs(np.stack(_apply(module, params, tokens)) - exact)
    assert 1e-4 < error.max() < 0.03 * np.abs(exact).max()  # bfloat16 has eight bits


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_needs_the_kinds_that_read_it(kind):
    def program(**changes):
        module, tokens = _make(kind, **changes), _tokens(2)
        params = jax.eval_shape(module.init, jax.random.key(0), tokens)
        return str(jax.make_jaxpr(module.apply)(params, tokens))

    options = options_of(mixers.Mixing)
    needs = {name: option.needs["kind"] for name, option in options.items() if option.needs}
    others = {  # of each option a value that is not the usual one: a choice, or 4
        name: next((x for x in options[name].choices or () if x != options[name].default), 4)
        for name in needs.keys() - {"stages"}
    }
    read = {name for name, other in others.items() if program(**{name: other}) != program()}
    assert read == {name for name in others if kind in needs[name]}
    assert kind in needs["norm"] and "none" not in needs["norm"]


@pytest.mark.parametrize("kind,own", [("cross_attention", False), ("self_attention", True)])
def test_only_self_attention_lets_a_token_see_itself(kind, own):
    tokens, module = _tokens(3), _make(kind)
    params = _random_params(module, tokens)
    values = (
        params["params"]["query_key_value"].at[0, :, D_ATT:].add(1.0)
    )  # keys and values of token 0
    changed = _apply(module, {"params": params["params"] | {"query_key_value": values}}, tokens)
    same = [bool(jnp.allclose(a, b)) for a, b in zip(_apply(module, params, tokens), changed)]
    assert same == [not own, False, False]


def test_self_attention_differs_from_cross_attention():
    tokens = _tokens(3)
    params = _random_params(_make("cross_attention"), tokens)
    for a, b in zip(
        *(_apply(_make(kind), params, tokens) for kind in ("cross_attention", "self_attention"))
    ):
        assert np.abs(np.array(a) - np.array(b)).max() > 0.1


@pytest.mark.parametrize("n", [2, 3])
def test_with_two_tokens_the_graph_has_one_edge_each_and_its_weight_is_one(n):
    tokens, module = _tokens(n), _make("graph")
    params = _random_params(module, tokens)
    turned = {"params": params["params"] | {"edge": -params["params"]["edge"]}}
    same = [
        np.array_equal(a, b)
        for a, b in zip(_apply(module, params, tokens), _apply(module, turned, tokens))
    ]
    assert same == [n == 2] * n


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads do not divide d_att = 8"):
        mixers.CrossAttentionMixer(8, 3).init(jax.random.key(0), _tokens(2))
