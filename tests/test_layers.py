"""Layers over n tokens: against numpy, under padding, over devices, in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax.nn import layers, mixers


def _tokens(n, batch, width, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(3 * rng.normal(size=(batch, width)) + i, dtype) for i in range(n)]


def _random_like(tree, seed=1):
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in leaves]
    )


def _random_params(module, *inputs, **kwargs):
    return _random_like(
        jax.eval_shape(lambda key: module.init(key, *inputs, **kwargs), jax.random.key(0))
    )


def test_token_dense_gives_each_token_its_own_weights():
    tokens, module = _tokens(3, 5, 4), layers.TokenDense(2)
    params = _random_params(module, tokens)
    out = jax.jit(module.apply)(params, tokens)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    assert kernel.shape == (3, 4, 2)
    for i in range(3):
        np.testing.assert_allclose(
            out[i], np.array(tokens[i]) @ np.array(kernel[i]) + bias[i], rtol=1e-5, atol=1e-5
        )


def test_group_dense_lets_a_tower_see_its_group_only():
    module, e = (
        layers.GroupDense((2, 1, 3), 4),
        jnp.asarray(np.random.default_rng(0).normal(size=(5, 6, 2))),
    )
    params = _random_params(module, e)
    out = jax.jit(module.apply)(params, e)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    for g, (first, last) in enumerate([(0, 2), (2, 3), (3, 6)]):
        x = np.array(e[:, first:last]).reshape(5, -1)
        expected = x @ np.array(kernel)[2 * first : 2 * last] + np.array(bias[g])
        np.testing.assert_allclose(out[g], expected, rtol=1e-5, atol=1e-5)
    changed = jax.jit(module.apply)(params, e.at[:, 2].add(1.0))
    same = [bool(jnp.array_equal(a, b)) for a, b in zip(out, changed)]
    assert same == [True, False, True]


def test_group_dense_draws_each_group_for_its_own_fan_in():
    e, init = jnp.zeros((1, 101, 4)), jax.jit(layers.GroupDense((1, 100), 512).init)
    kernel = np.array(init(jax.random.key(0), e)["params"]["kernel"])
    np.testing.assert_allclose(
        [kernel[:4].std(), kernel[4:].std()], [4**-0.5, 400**-0.5], rtol=0.05
    )


def test_group_dense_refuses_groups_that_do_not_add_up():
    with pytest.raises(ValueError, match="do not add up to 6"):
        layers.GroupDense((2, 3), 4).init(jax.random.key(0), jnp.zeros((1, 6, 2)))


def _batch_norm(tokens, weight, variables=None, axis_name=None, train=True):
    module = layers.WeightedBatchNorm(axis_name)
    init = jax.jit(lambda key: module.init(key, tokens, weight, train=False))
    variables = variables or init(jax.random.key(0))
    apply = jax.jit(lambda *a: module.apply(*a, train=train, mutable=["batch_stats"]))
    return apply(variables, tokens, weight), variables


def test_batch_norm_is_the_weighted_formula_for_each_token():
    tokens, weight = _tokens(2, 7, 3), jnp.array([1.0, 2.0, 0.0, 0.5, 3.0, 1.0, 0.0])
    (_, _), variables = _batch_norm(tokens, weight)
    variables = {
        "params": _random_like(variables["params"]),
        "batch_stats": variables["batch_stats"],
    }
    (out, updated), _ = _batch_norm(tokens, weight, variables)
    for i, x in enumerate(np.array(t, np.float64) for t in tokens):
        mean = np.average(x, axis=0, weights=weight)
        var = np.average((x - mean) ** 2, axis=0, weights=weight)
        scale, bias = (np.array(variables["params"][k][i]) for k in ("scale", "bias"))
        np.testing.assert_allclose(
            out[i], (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            updated["batch_stats"]["mean"][i], 0.1 * mean, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(updated["batch_stats"]["var"][i], 0.9 + 0.1 * var, rtol=1e-4)


def test_batch_norm_ignores_padding_rows_whatever_they_hold():
    tokens, weight = _tokens(2, 6, 3), jnp.ones(6)
    padded = [jnp.concatenate([x, jnp.full((2, 3), jnp.nan)]) for x in tokens]
    (out, stats), _ = _batch_norm(tokens, weight)
    (out_padded, stats_padded), _ = _batch_norm(padded, jnp.append(weight, jnp.zeros(2)))
    for a, b in zip(out, out_padded):
        np.testing.assert_allclose(a, b[:6], rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stats, stats_padded)


@pytest.mark.parametrize("row", [0.0, 2.0])
def test_batch_norm_keeps_its_running_statistics_on_padding_and_on_a_single_row(row):
    tokens = _tokens(2, 4, 3)
    (out, stats), before = _batch_norm(tokens, jnp.array([0.0, 0.0, row, 0.0]))
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], before["batch_stats"])
    assert all(np.isfinite(x).all() for x in out)


def test_batch_norm_of_one_row_on_each_of_two_devices_is_of_two():
    tokens, weight = _tokens(2, 2, 3), jnp.array([0.5, 0.5])
    (_, stats), variables = _batch_norm(tokens, weight)
    one = lambda *a: _batch_norm(*a, variables, "data")[0][1]
    each = jax.vmap(one, axis_name="data")([x[:, None] for x in tokens], weight[:, None])
    assert np.abs(stats["batch_stats"]["mean"]).min() > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=1e-5), stats, each)


def test_batch_norm_over_two_devices_is_that_of_the_whole_batch_gradients_included():
    tokens, weight = _tokens(2, 8, 3), jnp.array([1.0, 2.0, 1.0, 0.0, 0.0, 0.0, 3.0, 0.0])
    target = _tokens(2, 8, 3, seed=9)
    (_, _), variables = _batch_norm(tokens, weight)

    def loss(tokens, weight, target, axis_name):
        (out, stats), _ = _batch_norm(tokens, weight, variables, axis_name)
        return sum(jnp.sum(weight[:, None] * x * t) for x, t in zip(out, target)), (out, stats)

    halves = lambda tree: jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), tree)
    whole_grad, (whole, whole_stats) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=3)(
        tokens, weight, target, None
    )
    split = jax.jit(jax.vmap(lambda *a: jax.grad(loss, has_aux=True)(*a, "data"), axis_name="data"))
    split_grad, (out, stats) = split(*halves((tokens, weight, target)))
    for a, b in zip(whole + whole_grad, out + split_grad):
        np.testing.assert_allclose(a, b.reshape(8, 3), rtol=2e-4, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-5), whole_stats, stats)


def test_batch_norm_predicts_with_its_running_statistics():
    tokens = _tokens(1, 4, 2)
    stats = {"mean": jnp.array([[1.0, -1.0]]), "var": jnp.array([[4.0, 9.0]])}
    variables = {
        "params": {"scale": jnp.ones((1, 2)), "bias": jnp.zeros((1, 2))},
        "batch_stats": stats,
    }
    (out, after), _ = _batch_norm(tokens, None, variables, train=False)
    np.testing.assert_allclose(
        out[0], (np.array(tokens[0]) - [1, -1]) / np.array([2, 3]), rtol=1e-4
    )
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], stats)


def test_layer_norm_agrees_with_numpy():
    tokens, module = _tokens(2, 4, 6), layers.TokenLayerNorm()
    params = _random_params(module, tokens)
    out = jax.jit(module.apply)(params, tokens)
    for i, x in enumerate(np.array(t) for t in tokens):
        z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        expected = z * np.array(params["params"]["scale"][i]) + np.array(
            params["params"]["bias"][i]
        )
        np.testing.assert_allclose(out[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate):
    x = jnp.full((999, 101), 2.0)  # an odd number of entries
    out = np.array(layers.drop(jax.random.key(0), [x, x], rate)[1])
    error = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((out == 0).mean() - rate) < 4 * error
    np.testing.assert_allclose(np.unique(out[out != 0]), [2 / (1 - rate)], rtol=1e-6)
    assert (
        abs((out[1:] == 0)[out[:-1] == 0].mean() - rate) < 6 * error
    )  # neighbours are independent


def test_a_tower_drops_in_training_only_and_each_token_apart():
    tokens, module = [jnp.ones((64, 8))] * 2, layers.Tower((), layers.Style(dropout=0.5))
    apply = jax.jit(
        lambda train, key: module.apply({}, tokens, None, train=train, rngs={"dropout": key}),
        static_argnums=0,
    )
    run = lambda train, seed: apply(train, jax.random.key(seed))
    a, b = run(True, 0)
    assert (a == 0).any() and not jnp.array_equal(a, b)
    assert not jnp.array_equal(a, run(True, 1)[0])
    np.testing.assert_array_equal(run(False, 0)[0], tokens[0])


def test_a_tower_goes_norm_activation_mixer_next_layer():
    tokens = _tokens(3, 4, 6)
    make = lambda name: mixers.CrossAttentionMixer(4, 2, name=name)
    module = layers.Tower((5,), layers.Style("tanh", "layer"), make)
    params = _random_params(module, tokens, None, train=False)["params"]
    out = jax.jit(lambda p: module.apply(p, tokens, None, train=False))({"params": params})

    def then(i, x):
        x = layers.TokenLayerNorm().apply({"params": params[f"norm_{i}"]}, x)
        return mixers.CrossAttentionMixer(4, 2).apply(
            {"params": params[f"mixer_{i}"]}, [jnp.tanh(t) for t in x]
        )

    hidden = {"params": params["hidden_1"]}
    expected = jax.jit(lambda tokens: then(1, layers.TokenDense(5).apply(hidden, then(0, tokens))))(
        tokens
    )
    for a, b in zip(out, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch,width,features", [(1, 3, 1), (33, 100, 64)])
def test_bfloat16_products_stay_near_float32_ones_and_parameters_are_float32(
    batch, width, features
):
    tokens = _tokens(2, batch, width)
    half, full = (layers.TokenDense(features, d) for d in (jnp.bfloat16, jnp.float32))
    params = jax.jit(half.init)(jax.random.key(0), tokens)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def squares(p, m):
        out = m.apply(p, tokens)
        return sum(jnp.sum(y.astype(jnp.float32) ** 2) for y in out), out

    grad = jax.jit(jax.grad(squares, has_aux=True), static_argnums=1)
    (slope, out), (slope_full, out_full) = (grad(params, m) for m in (half, full))
    for a, b in zip(out, out_full):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.array(a, np.float32), b, rtol=0.02, atol=0.02 * float(jnp.abs(b).max())
        )
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(slope_full)):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05 * float(jnp.abs(b).max()))
