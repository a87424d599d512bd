"""EMOFMv2: against numpy, what pools, what its parts change; the auxiliary model's own columns."""

import jax
import numpy as np
import optax
import pytest

from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.nn import typewise
from emofm_jax.training import state as state_lib
from tests import model_cases as cases
from tests.reference import emofm, emofmv2


def _make(own=None, types=cases.TYPES, **changes):
    schema = cases.schema_of(types)
    options = cases.options_of("emofmv2", **{"stage2": (7, 5), **changes})
    options["emofmv2"] |= {"cross_rank": 3, "cross_layers": 2, "wide": True}
    options["emofmv2"] |= own or {}
    module = model_lib.make_model(schema, options)
    variables = cases.random_variables(module, schema)
    e = np.random.default_rng(0).normal(size=(6, 6, model_lib.table_width(module)))
    return module, variables, e.astype(np.float32)


def _float64(variables):
    return jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])


@pytest.mark.parametrize("drop_type", ["", "cart"])
def test_it_agrees_with_numpy(drop_type):
    module, variables, e = _make(drop_type=drop_type)
    ours = jax.jit(lambda v, e: model_lib.predict(module, v, e))(variables, e)

    params, e = _float64(variables), np.array(e, np.float64)
    index = cases.TYPES.index(drop_type) if drop_type else -1
    kept = [t for t in range(3) if t != index]
    of_network = e[:, :, : cases.DIM + 1 + len(kept)]
    parts = emofmv2.network(params["network"], of_network, cases.DIM, cases.SIZES, len(kept))
    p_type = emofm.auxiliary(params["auxiliary"], e[:, :, -8:])
    p_given_type = emofm.sigmoid(parts.mean(axis=0))
    if drop_type:
        p_given_type = np.insert(p_given_type, index, 0.0, axis=1)
    p, p_type = emofm.mixture(p_given_type, p_type, index)
    np.testing.assert_allclose(ours["p"], p, atol=1e-5)
    np.testing.assert_allclose(ours["p_type"], p_type, atol=1e-5)
    np.testing.assert_allclose(ours["p_given_type"][:, kept], p_given_type[:, kept], atol=1e-5)


def test_without_types_it_agrees_with_numpy():
    module, variables, e = _make(types=())
    assert _make(use_ftype=False)[0] == module
    ours = jax.jit(lambda v, e: model_lib.predict(module, v, e))(variables, e)
    parts = emofmv2.network(_float64(variables), np.array(e, np.float64), cases.DIM, cases.SIZES, 0)
    np.testing.assert_allclose(ours["logit"], parts.mean(axis=0)[:, 0], atol=1e-5)


def test_each_part_learns_by_its_own_loss():
    """The loss is the sum of the parts' cross entropies, of the row's type, or of the mixture."""
    module, variables, e = _make()
    label, ftype = np.array([0, 1, 1, 0, 1, 0], np.float32), np.array([0, 1, 2, -1, 1, -1])
    rows = (e, label, ftype.astype(np.int32), np.array([1, 2, 1, 1, 3, 1], np.float32))
    ours = jax.jit(lambda v, *rows: cases.loss_of(module, v, *rows, am_weight=0.0)[0])(
        variables, *rows
    )

    params, e = _float64(variables), np.array(e, np.float64)
    of_network = e[:, :, : cases.DIM + 4]
    parts = emofmv2.network(params["network"], of_network, cases.DIM, cases.SIZES, 3)
    p_type = emofm.auxiliary(params["auxiliary"], e[:, :, -8:])
    expected = sum(
        emofm.loss(emofm.sigmoid(part), p_type, label, ftype, rows[3], 0.0) for part in parts
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_predictors_start_alike_but_for_the_rates_of_their_types_and_pool():
    head = typewise.PooledHead((0.1, -0.2))
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    variables = jax.jit(head.init)(jax.random.key(0), x)
    first, second = jax.jit(head.apply)(variables, x)
    np.testing.assert_allclose(first - 0.1, second + 0.2, atol=1e-6)
    assert np.ptp(np.array(first)) > 0

    gradient = jax.jit(jax.grad(lambda v: head.apply(v, x)[1].sum()))(variables)["params"]
    assert np.abs(gradient["kernel"]).min() > 0  # rows of a type teach what all types read
    assert np.abs(gradient["own_kernel"]).max(axis=0).tolist()[0] == 0
    assert np.abs(gradient["own_kernel"][:, 1]).min() > 0


@pytest.mark.parametrize(
    "own", [{"towers": False}, {"cross_layers": 0}, {"wide": False}, {"pooled": False}]
)
def test_a_part_that_is_switched_off_has_no_parameters(own):
    whole, without = _make(), _make(own)
    names = [
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(made[1])}
        for made in (whole, without)
    ]
    if "wide" in own:
        assert model_lib.table_width(whole[0]) - model_lib.table_width(without[0]) == 4
        assert names[0] - names[1] == {"['params']['network']['wide_bias']"}
    else:
        assert names[0] - names[1]
    found = jax.eval_shape(lambda v, e: model_lib.predict(without[0], v, e), *without[1:])
    assert found["p"].shape == (6,)


def test_towers_and_cross_network_cannot_both_be_off():
    with pytest.raises(UserError, match="config.model.emofmv2.cross_layers: 0 .*towers"):
        _make({"towers": False, "cross_layers": 0})


@pytest.mark.parametrize("reads", ["embeddings", "own", "both"])
def test_the_auxiliary_model_moves_its_own_columns_and_no_others(reads):
    small = {"towers": False, "cross_layers": 1}
    module, variables, e = _make(small, am_reads=reads, am_columns=3)
    width = model_lib.table_width(module)
    label, ftype = np.zeros(6, np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)
    rows = (e, label, ftype, np.ones(6, np.float32))
    weighted = lambda am: np.array(cases.gradients(module, variables, *rows, am_weight=am)[1][1])
    moved = np.abs(weighted(1.0) - weighted(0.0)).max(axis=(0, 1)) > 1e-9
    own = 0 if reads == "embeddings" else 3
    assert moved.tolist() == [False] * (width - own) + [True] * own


def test_columns_of_first_order_weights_are_known():
    module, _, _ = _make(am_columns=3)
    expected = [False] * cases.DIM + [True] * 4 + [False] * 3
    assert model_lib.first_order(module).tolist() == expected
    lr = model_lib.make_model(
        cases.schema_of(), cases.options_of("deepfm", type_aware=True, am_reads="own", am_columns=2)
    )
    assert model_lib.first_order(lr).tolist() == [False] * cases.DIM + [True] * 3 + [False] * 2


def test_members_have_the_columns_of_one_each():
    module, _, _ = _make(am_columns=3, members=2)
    expected = 2 * ([False] * cases.DIM + [True] * 4 + [False] * 3)
    assert model_lib.first_order(module).tolist() == expected
    assert model_lib.starts_at_zero(module).tolist() == expected
    shared, _, _ = _make(am_columns=3, members=2, members_share="table")
    assert model_lib.starts_at_zero(shared).tolist() == expected[:11]


def test_first_order_weights_start_at_zero_and_nothing_else_does():
    module, _, _ = _make()
    optimizers = dict.fromkeys(state_lib.SECTIONS, optax.identity())
    init = state_lib.make_init(module, cases.schema_of(), optimizers, init_scale=0.5)
    table = np.array(init(jax.random.key(0)).params["embedding"])
    zero = (table == 0).all(axis=0)
    assert zero.tolist() == model_lib.starts_at_zero(module).tolist() and zero.sum() == 4
