"""WM, HM and HMM whole: against numpy, what learns from what, padding, devices, precisions, backends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax.models import build as model_lib
from emofm_jax.nn import losses
from tests import model_cases as cases
from tests.reference import emofm as reference


def _batch_normed(name="hmm", type_predictors="per_type", compute_dtype="float32"):
    """A model with everything that sees more than one row, and no unit that can be dead; (module, variables)."""
    options = cases.options_of(
        name,
        norm="batch",
        activation="tanh",
        type_predictors=type_predictors,
        hidden=(8,),
        **cases.SHALLOW,
    )
    module = model_lib.make_model(cases.schema_of(), options, compute_dtype=compute_dtype)
    variables = cases.random_variables(module, cases.schema_of())
    return module, {**variables, "batch_stats": jax.tree.map(np.abs, variables["batch_stats"])}


@pytest.mark.parametrize(
    "name,type_predictors,drop_type",
    [  # each pair of two values of these is there once at the least
        ("wm", "per_type", ""),
        ("wm", "shared", "cart"),
        ("hm", "per_type", "cart"),
        ("hm", "shared", ""),
        ("hmm", "per_type", ""),
        ("hmm", "shared", "cart"),
    ],
)
def test_typed_models_agree_with_numpy(name, type_predictors, drop_type):
    schema = cases.schema_of()
    module = model_lib.make_model(
        schema, cases.options_of(name, type_predictors=type_predictors, drop_type=drop_type)
    )
    variables, (e, *_) = cases.random_variables(module, schema), cases.random_rows()
    ours = jax.jit(lambda v, e: model_lib.predict(module, v, e))(variables, e)

    params = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
    e = np.array(e, np.float64)
    kept = reference.sigmoid(
        reference.network(params["network"], e, None if name == "wm" else cases.SIZES, num_heads=2)
    )
    index = cases.TYPES.index(drop_type) if drop_type else -1
    p_given_type = np.insert(kept, index, 0.0, axis=1) if drop_type else kept
    p, p_type = reference.mixture(p_given_type, reference.auxiliary(params["auxiliary"], e), index)
    if drop_type:
        p_given_type[:, index] = p
    expected = {
        "p": p,
        "logit": np.log(p / (1 - p)),
        "p_type": p_type,
        "p_given_type": p_given_type,
    }
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["wm", "hm", "hmm"])
def test_untyped_models_agree_with_numpy(name):
    schema = cases.schema_of(())
    module = model_lib.make_model(schema, cases.options_of(name))
    switched_off = cases.options_of(name, use_ftype=False)
    assert model_lib.make_model(cases.schema_of(), switched_off) == module
    variables, (e, *_) = cases.random_variables(module, schema), cases.random_rows()
    ours = jax.jit(lambda v, e: model_lib.predict(module, v, e))(variables, e)
    params = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
    logit = reference.network(
        params, np.array(e, np.float64), None if name == "wm" else cases.SIZES, num_heads=2
    )[:, 0]
    assert (
        ours.keys() == {"p", "logit"}
        and "auxiliary" not in params
        and "type_embedding" not in params["type_dense"]
    )
    np.testing.assert_allclose(ours["logit"], logit, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours["p"], reference.sigmoid(logit), atol=1e-5)


def test_hmm_is_hm_where_its_mixers_are_the_identity():
    schema, (e, *_) = cases.schema_of(), cases.random_rows()
    hm, hmm = (model_lib.make_model(schema, cases.options_of(name)) for name in ("hm", "hmm"))
    params = cases.random_variables(hmm, schema)["params"]
    without = {
        "params": params
        | {"network": {k: _without_mixers(v) for k, v in params["network"].items()}}
    }
    zero = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[-1].key == "out" else x, params
    )
    p = jax.jit(lambda v, e: model_lib.predict(hm, v, e)["p"])(without, e)
    mixed = jax.jit(lambda v, e: model_lib.predict(hmm, v, e)["p"])
    np.testing.assert_allclose(mixed({"params": zero}, e), p, rtol=1e-6)
    assert np.abs(np.array(mixed({"params": params}, e)) - np.array(p)).max() > 1e-3


def _without_mixers(params):
    return {k: v for k, v in params.items() if not k.startswith("mixer_")}


@pytest.mark.parametrize(
    "name,type_predictors", [("hmm", "per_type"), ("hm", "shared"), ("wm", "per_type")]
)
def test_every_parameter_has_moved_after_two_steps(name, type_predictors):
    rows, (module, variables) = cases.random_rows(), _batch_normed(name, type_predictors)
    start = jax.tree_util.tree_map_with_path(  # mixers start as the identity
        lambda path, x: 0 * x if path[-1].key == "out" else x, variables["params"]
    )
    params = start
    for _ in range(2):
        (_, _), (gradient, _) = cases.gradients(module, {**variables, "params": params}, *rows)
        params = jax.tree.map(lambda x, g: x - 0.1 * np.array(g), params, gradient)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(params)):
        # A batch norm takes out again what is the same for all rows: biases before it and, unless the predictors
        # share it, the type embedding.
        if path[-2].key in ("group_dense", "type_dense", "hidden_1") and path[-1].key == "bias":
            continue
        if path[-1].key == "type_embedding" and type_predictors == "per_type":
            continue
        moved = np.abs(b - a).reshape(a.shape[0], -1).max(axis=1)
        assert (moved > 0).all(), (jax.tree_util.keystr(path), moved)


@pytest.mark.parametrize("am_joint", [False, True])
def test_the_auxiliary_loss_moves_the_embeddings_only_if_joint(am_joint):
    schema, rows = cases.schema_of(), cases.random_rows()
    options = cases.options_of("wm", am_joint=am_joint, hidden=(8,), **cases.SHALLOW)
    module = model_lib.make_model(schema, options)
    variables = cases.random_variables(module, schema)
    (_, _), (params, e) = cases.gradients(module, variables, *rows, am_weight=3.0)
    (_, _), (params_without, e_without) = cases.gradients(module, variables, *rows, am_weight=0.0)
    assert np.array_equal(e, e_without) != am_joint
    auxiliary, auxiliary_without = params.pop("auxiliary"), params_without.pop("auxiliary")
    assert all(np.any(x) for x in jax.tree.leaves(auxiliary))
    assert not any(np.any(x) for x in jax.tree.leaves(auxiliary_without))
    jax.tree.map(np.testing.assert_array_equal, params, params_without)


@pytest.mark.parametrize("name,type_predictors", [("hmm", "per_type"), ("hm", "shared")])
def test_rows_of_weight_0_change_nothing_whatever_they_hold(name, type_predictors):
    (e, label, ftype, weight), (module, variables) = (
        cases.random_rows(),
        _batch_normed(name, type_predictors),
    )
    weight[-3:] = 0.0
    results = [cases.gradients(module, variables, e, label, ftype, weight)]
    e, label, ftype = e.copy(), label.copy(), ftype.copy()
    e[-3:], label[-3:], ftype[-3:] = 1e3, np.nan, [1, -1, 0]
    results.append(cases.gradients(module, variables, e, label, ftype, weight))
    for (_, _), (_, of_e) in results:
        assert not np.array(of_e)[-3:].any() and np.array(of_e)[:-3].any()
    (loss, (_, stats)), gradient = results[0]
    (loss_junk, (_, stats_junk)), gradient_junk = results[1]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, (loss, stats, gradient), (loss_junk, stats_junk, gradient_junk))


def test_the_order_of_rows_does_not_matter():
    rows, (module, variables) = cases.random_rows(), _batch_normed()
    order = np.random.default_rng(0).permutation(cases.ROWS)
    (loss, (outputs, stats)), (params, e) = cases.gradients(module, variables, *rows)
    permuted = cases.gradients(module, variables, *[x[order] for x in rows])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    outputs = losses.Outputs(np.array(outputs.logits)[order], np.array(outputs.type_logits)[order])
    expected = (loss, (outputs, stats)), (params, np.array(e)[order])
    jax.tree.map(close, expected, permuted)


def test_two_devices_agree_with_one():
    rows, (module, variables) = cases.random_rows(), _batch_normed("wm")
    rows[3][7:] = 0.0  # the second device has one real row
    many = model_lib.with_axis(module, "data")
    (loss, (_, stats)), (params, e) = cases.gradients(module, variables, *rows)

    def local(*rows):
        def of(params, e):
            return cases.loss_of(
                many, {**variables, "params": params}, e, *rows[1:], axis_name="data"
            )

        return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(variables["params"], rows[0])

    halves = [x.reshape(2, cases.ROWS // 2, *x.shape[1:]) for x in rows]
    (loss2, (_, stats2)), (params2, e2) = jax.jit(jax.vmap(local, axis_name="data"))(*halves)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    close(loss, np.sum(loss2))
    jax.tree.map(lambda a, b: close(a, np.array(b)[0]), stats, stats2)
    jax.tree.map(lambda a, b: close(a, np.sum(b, axis=0)), params, params2)
    close(e, np.reshape(e2, e.shape))


@pytest.mark.parametrize("name", ["hm", "hmm"])
def test_every_batch_norm_sums_over_devices(name):
    module, variables = _batch_normed(name)
    many = model_lib.with_axis(module, "data")
    e, weight = np.zeros((2, 1, sum(cases.SIZES), cases.DIM), np.float32), np.ones((2, 1))
    local = lambda e, w: many.apply(variables, e, w, train=True, mutable=["batch_stats"])
    sums = str(jax.make_jaxpr(jax.vmap(local, axis_name="data"))(e, weight)).count("psum")
    # Each sums weights, means and variances, and keeps the last two.
    assert 2 * sums == 3 * len(jax.tree.leaves(variables["batch_stats"])) > 0


def test_bfloat16_stays_near_float32():
    """Of mixers: test_mixers.py."""
    rows, (full, variables) = cases.random_rows(), _batch_normed("hm", "shared")
    half, _ = _batch_normed("hm", "shared", compute_dtype="bfloat16")
    made = jax.eval_shape(
        lambda key: model_lib.init(half, key, cases.schema_of()), jax.random.key(0)
    )
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    (loss, (outputs, _)), (params, _) = cases.gradients(full, variables, *rows)
    (loss_half, (outputs_half, _)), (params_half, _) = cases.gradients(half, variables, *rows)
    assert outputs_half.logits.dtype == jnp.float32 and not np.array_equal(
        outputs.logits, outputs_half.logits
    )
    np.testing.assert_allclose(loss_half, loss, rtol=0.02)
    flat, flat_half = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for p in (params, params_half)
    )
    assert np.linalg.norm(flat - flat_half) < 0.05 * np.linalg.norm(flat)


def test_models_lower_for_accelerators():
    schema, rows = cases.schema_of(), cases.random_rows()
    options = cases.options_of(norm="batch", **cases.SHALLOW)
    module = model_lib.make_model(schema, options, compute_dtype="bfloat16")
    variables = cases.random_variables(module, schema)
    step = jax.jit(jax.value_and_grad(lambda v: cases.loss_of(module, v, *rows)[0]))
    text = step.trace(variables).lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert "dot_general" in text and "bf16" in text
