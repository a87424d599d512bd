"""The baselines: against numpy, what learns, padding, order, devices, precisions, backends. Parity: test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax import models
from emofm_jax.models import build as model_lib
from emofm_jax.models import final as final_lib
from emofm_jax.nn import embedding
from tests import baseline_cases as baselines
from tests import model_cases as cases
from tests.reference import baselines as reference
from tests.reference import emofm as reference_emofm

close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
OWN_PRODUCTS = ("dcnv2", "edcn", "final", "finalmlp", "destine")  # beside those of an MLP


def test_every_baseline_has_settings_here():
    assert baselines.RICH.keys() == models.MODELS.keys() - models.EMOFM.keys()


def _double(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def _logits(module, variables, e):
    return np.array(baselines.predict(module, variables, e)["logit"])


def _with_numeric_slot():
    """(what `pool` makes of rows of which slot 2 is numeric, the same in numpy: its value times its row)."""
    rng, slots, width = np.random.default_rng(5), sum(cases.SIZES), cases.DIM + 1
    table = rng.normal(size=(20, width)).astype(np.float32)
    ids = rng.integers(0, 20, (cases.ROWS, slots)).astype(np.int32)
    value = np.ones((cases.ROWS, slots), np.float32)
    value[:, 2] = rng.normal(size=cases.ROWS)
    ours = embedding.pool(embedding.lookup(jnp.asarray(table), ids), value, (1,) * slots)
    return ours, reference_emofm.pool(_double(table), ids, _double(value), (1,) * slots)


def test_lr_and_fm_agree_with_loops_over_slots_and_pairs():
    ours, e = _with_numeric_slot()
    fm, lr = baselines.make("fm"), baselines.make("lr")
    assert (model_lib.table_width(lr), model_lib.table_width(fm)) == (1, cases.DIM + 1)
    bias = {"params": {"bias": np.float32(0.3)}}
    close(_logits(fm, bias, ours), reference.fm(e[..., :-1], e[..., -1], 0.3))
    close(_logits(lr, bias, ours[..., -1:]), reference.fm(0 * e[..., :-1], e[..., -1], 0.3))


@pytest.mark.parametrize("residual,scale,relu", [("each_layer", True, True), ("last_layer", False, False),
                                                 ("none", True, False)])  # fmt: skip
def test_destine_agrees_with_loops_over_rows_heads_and_slots(residual, scale, relu):
    own = dict(residual=residual, scale=scale, relu=relu)
    changes = own | {"num_layers": 2, "attention_dropout": 0.5}  # dropout: of training only
    module = baselines.make(
        "destine", {"activation": "relu", **{f"destine.{k}": v for k, v in changes.items()}}
    )
    variables, (ours, e) = cases.random_variables(module, cases.schema_of()), _with_numeric_slot()
    params = _double(variables["params"])
    expected = reference.destine(params, e[..., :-1], e[..., -1], num_layers=2, num_heads=2, **own)
    close(_logits(module, variables, ours), expected)


@pytest.mark.parametrize(
    "bridge,residual", [("attention", True), ("hadamard", True), ("add", False)]
)
def test_edcn_agrees_with_loops_over_rows_and_slots(bridge, residual):
    own = dict(num_layers=2, bridge=bridge, residual=residual, temperature=0.5)
    module = baselines.make(
        "edcn", {"activation": "relu", **{f"edcn.{k}": v for k, v in own.items()}}
    )
    variables, (e, *_) = (
        cases.random_variables(module, cases.schema_of()),
        baselines.rows_of(module),
    )
    close(
        _logits(module, variables, e),
        reference.edcn(_double(variables["params"]), _double(e), **own),
    )


def test_attention_dropout_of_destine_is_drawn_anew_each_step():
    changes = {"deep": False, "attention_dropout": 0.5}
    module = baselines.make("destine", {f"destine.{k}": v for k, v in changes.items()})
    variables, (e, *_) = (
        cases.random_variables(module, cases.schema_of()),
        baselines.rows_of(module),
    )
    one, other, again = (
        baselines.forward(module, variables, e, key=jax.random.key(k))[0].logits for k in (0, 1, 0)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


# Parameters that a step leaves where they are, since the batch norm after them takes out what is the same for all rows:
# of a new model its failing test says which.
STILL = {
    "deepfm": {"mlp/hidden_0/bias"},
    "dnn": {"mlp/hidden_0/bias"},
    "dcnv2": {"stacked/hidden_0/bias", "parallel/hidden_0/bias"},
    "finalmlp": {"mlp1/hidden_0/bias", "mlp2/hidden_0/bias"},
    "destine": {"mlp/hidden_0/bias"},
}


def _unmoved(module, start, rows):
    """Paths of the parameters that are where they were after two steps, but for rounding."""
    params = start["params"]
    for _ in range(2):
        _, (gradient, _) = baselines.gradients(module, {**start, "params": params}, *rows)
        params = jax.tree.map(lambda x, g: x - 0.1 * np.array(g), params, gradient)
    moved = jax.tree_util.tree_map_with_path(
        lambda _, a, b: np.abs(a - b).max(), start["params"], params
    )
    paths = jax.tree_util.tree_leaves_with_path(moved)
    return {"/".join(key.key for key in path) for path, distance in paths if distance < 1e-6}


def _norm(name):
    return (
        "layer" if name == "edcn" else "batch"
    )  # EDCN's batch norms follow its gates and undo them


@pytest.mark.parametrize("name", baselines.RICH)
def test_every_parameter_has_moved_after_two_steps(name):
    module, _ = baselines.rich(name, norm=_norm(name))
    assert _unmoved(module, baselines.start(module), baselines.rows_of(module)) == STILL.get(
        name, set()
    )


def test_gates_of_finalmlp_without_context_learn_a_vector():
    module = baselines.make("finalmlp")
    variables = cases.random_variables(module, cases.schema_of())
    assert not _unmoved(module, variables, baselines.rows_of(module))
    contexts = [baselines.start(module)["params"][f"gate{i}_context"] for i in (1, 2)]
    assert all(
        np.abs(x).max() > 0.1 for x in contexts
    )  # at zero the ReLU after it would be at its corner, and stay


@pytest.mark.parametrize("name", baselines.RICH)
def test_rows_of_weight_0_and_the_order_of_rows_change_nothing(name):
    module, variables = baselines.rich(name, norm=_norm(name))
    e, label, ftype, weight = baselines.rows_of(module)
    weight[-3:] = 0.0
    (loss, (outputs, stats)), (params, of_e) = baselines.gradients(
        module, variables, e, label, ftype, weight
    )
    assert not np.array(of_e)[-3:].any() and np.array(of_e)[:-3].any()
    junk, labels = e.copy(), label.copy()
    junk[-3:], labels[-3:] = 1e3, np.nan
    (loss2, (_, stats2)), gradients2 = baselines.gradients(
        module, variables, junk, labels, ftype, weight
    )
    jax.tree.map(close, (loss, stats, (params, of_e)), (loss2, stats2, gradients2))
    order = np.random.default_rng(0).permutation(cases.ROWS)
    permuted = baselines.gradients(
        module, variables, *[x[order] for x in (e, label, ftype, weight)]
    )
    outputs = jax.tree.map(lambda x: np.array(x)[order], outputs)
    jax.tree.map(close, ((loss, (outputs, stats)), (params, np.array(of_e)[order])), permuted)


def test_two_devices_agree_with_one_whatever_stands_in_padding():
    """Of the model with the most places for a norm; the others: below, typed ones: test_emofm.py."""
    module, variables = baselines.rich("final")
    e, _, _, weight = baselines.rows_of(module)
    weight[7:] = 0.0  # the second device has one real row
    outputs, stats = baselines.forward(module, variables, e, weight)
    many = model_lib.with_axis(module, "data")
    local = lambda e, weight: many.apply(variables, e, weight, train=True, mutable=["batch_stats"])
    e[7:] = 1e3
    halves = [x.reshape(2, cases.ROWS // 2, *x.shape[1:]) for x in (e, weight)]
    outputs2, stats2 = jax.jit(jax.vmap(local, axis_name="data"))(*halves)
    jax.tree.map(lambda a, b: close(a[:7], np.array(b).reshape(a.shape)[:7]), outputs, outputs2)
    assert jax.tree.leaves(stats)
    jax.tree.map(lambda a, b: close(np.stack([a, a]), b), stats, stats2)


def test_every_batch_norm_sums_over_devices():
    for name in baselines.NORMED:
        module, variables = baselines.rich(name)
        many = model_lib.with_axis(module, "data")
        local = lambda e, w, m=many, v=variables: m.apply(
            v, e, w, train=True, mutable=["batch_stats"]
        )
        e = jnp.zeros((2, 1, sum(cases.SIZES), model_lib.table_width(module)))
        text = str(jax.make_jaxpr(jax.vmap(local, axis_name="data"))(e, jnp.ones((2, 1))))
        sums, stats = text.count("psum"), jax.tree.leaves(variables["batch_stats"])
        assert 2 * sums == 3 * len(stats) > 0, (
            name
        )  # weight, mean and variance, of which two are kept


@pytest.mark.parametrize("name", OWN_PRODUCTS)
def test_bfloat16_stays_near_float32(name):
    module, variables = baselines.rich(name, norm=_norm(name))
    half, _ = baselines.rich(name, norm=_norm(name), compute_dtype="bfloat16")
    rows = baselines.rows_of(module)
    made = jax.eval_shape(
        lambda key: model_lib.init(half, key, cases.schema_of()), jax.random.key(0)
    )
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    _, (full, _) = baselines.gradients(module, variables, *rows)[0]
    low, _ = baselines.forward(half, variables, rows[0], rows[3])
    assert low.logits.dtype == jnp.float32 and not np.array_equal(low.logits, full.logits)
    assert np.linalg.norm(low.logits - full.logits) < 0.05 * np.linalg.norm(full.logits)


def test_baselines_lower_for_accelerators():
    for name in ("fm", *OWN_PRODUCTS):
        module = baselines.make(name, baselines.RICH[name], compute_dtype="bfloat16")
        variables = jax.eval_shape(
            lambda key, m=module: model_lib.init(m, key, cases.schema_of()), jax.random.key(0)
        )
        apply = jax.jit(lambda v, e, m=module: m.apply(v, e, train=True, mutable=["batch_stats"]))
        e, *_ = baselines.rows_of(module)
        text = apply.trace(variables, e).lower(lowering_platforms=("cuda", "tpu")).as_text()
        assert ("bf16" in text) == (name in baselines.NORMED), name


def _heads_of_final(module, variables, e, weight):
    heads = ("block1_head", "block2_head")

    def apply(variables, e, weight):
        return module.apply(variables, e, weight, train=True, mutable=["batch_stats", "intermediates"],
                            capture_intermediates=lambda layer, _: layer.name in heads)[1]  # fmt: skip

    seen = jax.jit(apply)(variables, e, weight)["intermediates"]
    return [_double(seen[head]["__call__"][0]) for head in heads]


def test_the_blocks_of_final_teach_each_other_in_training_only():
    module, variables = baselines.rich("final")
    e, label, ftype, weight = baselines.rows_of(module)
    weight[-4:] = 0.0
    (loss, (outputs, _)), _ = baselines.gradients(module, variables, e, label, ftype, weight)
    assert jax.eval_shape(module.apply, variables, e).aux_loss is None
    y1, y2 = _heads_of_final(module, variables, e, weight)
    p = reference_emofm.sigmoid((y1 + y2) / 2)
    entropy = lambda p, y: (
        -p * np.log(reference_emofm.sigmoid(y)) - (1 - p) * np.log(1 - reference_emofm.sigmoid(y))
    )
    taught = entropy(p, y1) + entropy(p, y2)
    close(outputs.logits, (y1 + y2) / 2)
    close(outputs.aux_loss, taught)
    close(loss, np.sum((entropy(label, (y1 + y2) / 2) + taught) * weight) / weight.sum())
    slope = jax.jit(jax.grad(lambda y1, y2: final_lib.distill(y1, y2).sum()))(
        np.float32(y1), np.float32(y2)
    )
    close(slope, reference_emofm.sigmoid(y1) - p)  # p teaches and does not learn
