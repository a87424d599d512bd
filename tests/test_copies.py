"""Baselines made type-aware: copies that are what separate networks would be, and what a row of a type reaches."""

import jax
import numpy as np
import pytest

from emofm_jax.models import build as model_lib
from emofm_jax.nn import losses
from tests import baseline_cases as baselines
from tests import model_cases as cases
from tests.reference import emofm as reference

close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
D, T = cases.DIM, len(cases.TYPES)
# With first-order columns, with an aux_loss, with shared columns; all have batch norm.
NAMES = ("deepfm", "final", "finalmlp")


def _columns(name, e, t, kept=T):
    """What copy t of `kept` reads: D, the contexts, its own first-order weight."""
    shared, own = {"deepfm": (0, 1), "final": (0, 0), "finalmlp": (2 * D, 0)}[name]
    assert e.shape[-1] == D + shared + kept * own
    return np.concatenate(
        [e[..., : D + shared], e[..., D + shared :][..., t * own : (t + 1) * own]], axis=-1
    )


def _slice(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_separate_networks(name):
    module, variables = baselines.rich(name, True)
    e, _, _, weight = baselines.rows_of(module)
    outputs, stats = baselines.forward(module, variables, e, weight)
    assert outputs.logits.shape == (cases.ROWS, T) and (outputs.aux_loss is None) == (
        name != "final"
    )
    for t in range(T):
        alone = {key: _slice(tree["network"]["copies"], t) for key, tree in variables.items()}
        output, updated = baselines.forward(
            module.network.network, alone, _columns(name, e, t), weight
        )
        close(outputs.logits[:, t], output.logits)
        if name == "final":
            close(outputs.aux_loss[:, t], output.aux_loss)
        jax.tree.map(
            close, _slice(stats["batch_stats"]["network"]["copies"], t), updated["batch_stats"]
        )


def test_a_row_of_a_type_teaches_its_copy_only():
    module, variables = baselines.rich("deepfm", True)
    e, label, ftype, weight = baselines.rows_of(module)
    for only in (*range(T), -1):
        (_, _), (params, of_e) = baselines.gradients(
            module, variables, e, label, ftype, weight * (ftype == only)
        )
        for t in range(T):
            reached = [np.any(x) for x in jax.tree.leaves(_slice(params["network"]["copies"], t))]
            assert any(reached) == (only in (t, -1))  # of unknown type: all of them
            assert np.any(of_e[..., D + t]) == (
                only in (t, -1)
            )  # first-order weights are the copy's own
    # Statistics are over the rows of every type.
    _, stats = baselines.forward(module, variables, e, weight * (ftype == 0))
    moved = jax.tree.map(
        lambda a, b: np.any(a != b, axis=-1), variables["batch_stats"], stats["batch_stats"]
    )
    assert all(np.all(x) for x in jax.tree.leaves(moved))


def test_first_order_columns_and_the_auxiliary_model_read_their_own():
    module, variables = baselines.rich("deepfm", True)
    e, *_ = baselines.rows_of(module)
    base = baselines.predict(module, variables, e)
    for t in range(T):
        changed = e.copy()
        changed[..., D + t] += 1.0
        other = baselines.predict(module, variables, changed)
        differ = np.abs(base["p_given_type"] - other["p_given_type"]).max(axis=0) > 1e-3
        assert list(np.flatnonzero(differ)) == [t]
        np.testing.assert_array_equal(base["p_type"], other["p_type"])
    e[..., 0] += 1.0
    assert np.abs(base["p_type"] - baselines.predict(module, variables, e)["p_type"]).max() > 1e-3


def test_a_dropped_type_has_no_copy_and_no_column():
    changes = {"type_aware": True, "drop_type": "cart"}
    module = baselines.make("deepfm", changes)
    variables = cases.random_variables(module, cases.schema_of())
    assert model_lib.table_width(module) == D + T - 1
    assert {x.shape[0] for x in jax.tree.leaves(variables["params"]["network"]["copies"])} == {
        T - 1
    }
    e, *_ = baselines.rows_of(module)
    ours = baselines.predict(module, variables, e)
    logits = np.zeros((cases.ROWS, T))
    for copy, t in enumerate((0, 2)):
        alone = {"params": _slice(variables["params"]["network"]["copies"], copy)}
        own = _columns("deepfm", e, copy, kept=T - 1)
        logits[:, t] = baselines.forward(module.network.network, alone, own)[0].logits
    params = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"]["auxiliary"])
    scores = (
        e[..., :D].reshape(cases.ROWS, -1).astype(np.float64) @ params["head"]["kernel"]
        + params["head"]["bias"]
    )
    p_type = np.array([reference.softmax(row) for row in scores])
    p, p_type = reference.mixture(reference.sigmoid(logits), p_type, 1)
    close(ours["p"], p)
    close(ours["p_type"], p_type)


def test_a_row_is_charged_the_aux_loss_of_its_type():
    module, variables = baselines.rich("final", True)
    e, label, ftype, weight = baselines.rows_of(module)
    outputs, _ = baselines.forward(module, variables, e, weight)

    @jax.jit
    def loss(outputs):
        of_all = losses.denominators(label, ftype, weight, None, drop_type=-1)
        return losses.total(
            outputs, label, ftype, weight, am_weight=1.0, drop_type=-1, denominators=of_all
        )[0]

    p_type = np.array([reference.softmax(row) for row in np.array(outputs.type_logits, np.float64)])
    p_given_type = reference.sigmoid(np.array(outputs.logits, np.float64))
    expected = reference.loss(p_given_type, p_type, label, ftype, weight, am_weight=1.0)
    aux_loss = np.array(outputs.aux_loss, np.float64)
    for b in range(cases.ROWS):
        charged = aux_loss[b, ftype[b]] if ftype[b] >= 0 else p_type[b] @ aux_loss[b]
        expected += weight[b] * charged / weight.sum()
    close(loss(outputs), expected)


def test_dropout_differs_between_copies():
    module = baselines.make("dnn", {"type_aware": True, "dropout": 0.5})
    variables = cases.random_variables(module, cases.schema_of())
    copies = variables["params"]["network"]["copies"]
    variables["params"]["network"]["copies"] = jax.tree.map(
        lambda x: np.stack([x[0]] * T), copies
    )  # one network
    e, *_ = baselines.rows_of(module)
    logits = np.array(baselines.forward(module, variables, e, key=jax.random.key(0))[0].logits)
    assert (
        min(np.abs(logits[:, t] - logits[:, u]).max() for t, u in ((0, 1), (0, 2), (1, 2))) > 1e-3
    )


def test_copies_of_a_network_without_batch_norm_have_no_statistics():
    changes = {
        "type_aware": True,
        "norm": "batch",
        "dcnv2.structure": "cross",
    }  # no MLP, so nothing is normed
    module = baselines.make("dcnv2", changes)
    assert jax.eval_shape(
        lambda key: model_lib.init(module, key, cases.schema_of()), jax.random.key(0)
    ).keys() == {"params"}
