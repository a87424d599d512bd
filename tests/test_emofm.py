"""WM, HM and HMM whole: against numpy, what learns from what, padding, options, devices to compile for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emofm_jax import config, models
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.nn import losses
from tests.reference import emofm as reference

SHALLOW = dict(stage1=(8,), stage2=(7,), am_hidden=(6,))  # one layer and one mixer a stage: quick to compile
SIZES, DIM, ROWS, TYPES = (2, 1, 3), 4, 12, ("view", "cart", "buy")


def _schema(types=TYPES, rows=(100, 50, 10, 40), clicks=(5, 10, 5, 2)):
    slots = [Slot(f"{g}{i}", g, rows=10) for g, size in zip("abc", SIZES) for i in range(size)]
    if not types:
        rows, clicks = (sum(rows),), (sum(clicks),)
    return Schema("shop", tuple(slots), tuple(types), rows_per_type=rows, clicks_per_type=clicks)


def _options(name="hmm", **changes):
    """Small widths; a key `mixer_X` changes `mixer.X`."""
    options = config.default().model.to_dict()
    options |= dict(name=name, embedding_dim=DIM, hidden=(8, 6), stage1=(8, 6), stage2=(7, 5), am_hidden=(6, 4))
    options["mixer"] |= dict(d_att=8, num_heads=2)
    for key, value in changes.items():
        section, key = (options["mixer"], key[6:]) if key.startswith("mixer_") else (options, key)
        assert key in section
        section[key] = value
    return options


def _variables(module, schema, seed=1):
    """None of them zero, none of them as at the start."""
    leaves, structure = jax.tree.flatten(
        jax.eval_shape(lambda key: models.init(module, key, schema), jax.random.key(0))
    )
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.uniform(-0.8, 0.8, x.shape), jnp.float32) for x in leaves])


def _rows(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    e = jnp.asarray(rng.normal(size=(rows, sum(SIZES), DIM)), jnp.float32)
    label = jnp.asarray(rng.integers(0, 2, rows), jnp.float32)
    ftype = jnp.asarray(np.resize([0, 1, 2, -1], rows), jnp.int32)
    return e, label, ftype, jnp.asarray(rng.uniform(0.5, 2.0, rows), jnp.float32)


def _loss(module, variables, e, label, ftype, weight, am_weight=1.0, axis_name=None):
    """(loss, (outputs, batch statistics))"""
    drop_type = module.drop_type
    outputs, updated = module.apply(variables, e, weight, train=True, mutable=["batch_stats"])
    denominators = losses.denominators(ftype, weight, axis_name, drop_type=drop_type)
    loss, _ = losses.total(
        outputs, label, ftype, weight, am_weight=am_weight, drop_type=drop_type, denominators=denominators
    )
    return loss, (outputs, updated)


@functools.partial(jax.jit, static_argnums=0)
def _gradients(module, variables, e, label, ftype, weight, am_weight=1.0):
    """((loss, (outputs, statistics)), (gradient of the parameters, of e)); tests share what is compiled."""

    def of(params, e):
        return _loss(module, {**variables, "params": params}, e, label, ftype, weight, am_weight)

    return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(variables["params"], e)


def _batch_normed():
    """HMM with everything that sees more than one row, one type dropped; (module, variables)."""
    module = models.make_model(_schema(), _options(norm="batch", drop_type="cart", **SHALLOW))
    variables = _variables(module, _schema())
    return module, {**variables, "batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}


@pytest.mark.parametrize("drop_type", ["", "view", "cart"])
@pytest.mark.parametrize("type_predictors", ["per_type", "shared"])
@pytest.mark.parametrize("name", ["wm", "hm", "hmm"])
def test_typed_models_agree_with_numpy(name, type_predictors, drop_type):
    schema = _schema()
    module = models.make_model(schema, _options(name, type_predictors=type_predictors, drop_type=drop_type))
    variables, (e, *_) = _variables(module, schema), _rows()
    ours = jax.jit(lambda v, e: models.predict(module, v, e))(variables, e)

    params = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
    e = np.array(e, np.float64)
    kept = reference.sigmoid(reference.network(params, e, None if name == "wm" else SIZES, num_heads=2))
    index = TYPES.index(drop_type) if drop_type else -1
    p_given_type = np.insert(kept, index, 0.0, axis=1) if drop_type else kept
    p, p_type = reference.mixture(p_given_type, reference.auxiliary(params["auxiliary"], e), index)
    if drop_type:
        p_given_type[:, index] = p
    expected = {"p": p, "logit": np.log(p / (1 - p)), "p_type": p_type, "p_given_type": p_given_type}
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("types", [TYPES, ()])
@pytest.mark.parametrize("name", ["wm", "hm", "hmm"])
def test_untyped_models_agree_with_numpy(name, types):
    schema = _schema(types)
    module = models.make_model(schema, _options(name, use_ftype=not types))  # typed data: switched off
    variables, (e, *_) = _variables(module, schema), _rows()
    ours = jax.jit(lambda v, e: models.predict(module, v, e))(variables, e)
    params = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
    logit = reference.network(params, np.array(e, np.float64), None if name == "wm" else SIZES, num_heads=2)[:, 0]
    assert ours.keys() == {"p", "logit"} and not {"auxiliary", "type_embedding"} & set(variables["params"])
    np.testing.assert_allclose(ours["logit"], logit, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours["p"], reference.sigmoid(logit), atol=1e-5)


def test_hmm_is_hm_where_its_mixers_are_the_identity():
    schema, (e, *_) = _schema(), _rows()
    hm, hmm = (models.make_model(schema, _options(name)) for name in ("hm", "hmm"))
    params = _variables(hmm, schema)["params"]
    without = {"params": {k: _without_mixers(v) for k, v in params.items()}}
    zero = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if path[-1].key == "out" else x, params)
    p = jax.jit(lambda v, e: models.predict(hm, v, e)["p"])(without, e)
    mixed = jax.jit(lambda v, e: models.predict(hmm, v, e)["p"])
    np.testing.assert_allclose(mixed({"params": zero}, e), p, rtol=1e-6)
    assert np.abs(mixed({"params": params}, e) - p).max() > 1e-3


def _without_mixers(params):
    return {k: v for k, v in params.items() if not k.startswith("mixer_")}


@pytest.mark.parametrize(
    "name,norm,type_predictors", [("hmm", "batch", "per_type"), ("hm", "layer", "shared"), ("wm", "none", "per_type")]
)
def test_every_parameter_has_moved_after_two_steps(name, norm, type_predictors):
    schema, rows = _schema(), _rows(rows=64)
    # tanh, so that no unit can be dead.
    module = models.make_model(
        schema, _options(name, norm=norm, type_predictors=type_predictors, activation="tanh", **SHALLOW)
    )
    variables = models.init(module, jax.random.key(0), schema)
    optimizer = optax.sgd(0.1)

    @jax.jit
    def step(variables):
        def of(params):
            return _loss(module, {**variables, "params": params}, *rows)[0]

        updates, _ = optimizer.update(jax.grad(of)(variables["params"]), optimizer.init(variables["params"]))
        return {**variables, "params": optax.apply_updates(variables["params"], updates)}

    after = step(step(variables))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(variables["params"]), jax.tree.leaves(after["params"])):
        # A dense bias before a batch norm is taken out again, so only rounding moves it.
        moved = jnp.abs(b - a).reshape(a.shape[0], -1).max(axis=1)
        assert (moved > 0).all(), (jax.tree_util.keystr(path), moved)


@pytest.mark.parametrize("am_joint", [False, True])
def test_the_auxiliary_loss_moves_the_embeddings_only_if_joint(am_joint):
    schema, rows = _schema(), _rows()
    module = models.make_model(schema, _options("hm", am_joint=am_joint, **SHALLOW))
    variables = _variables(module, schema)
    (_, _), (params, e) = _gradients(module, variables, *rows, am_weight=3.0)
    (_, _), (params_without, e_without) = _gradients(module, variables, *rows, am_weight=0.0)
    assert np.array_equal(e, e_without) != am_joint
    auxiliary, auxiliary_without = params.pop("auxiliary"), params_without.pop("auxiliary")
    assert all(x.any() for x in jax.tree.leaves(auxiliary))
    assert not any(x.any() for x in jax.tree.leaves(auxiliary_without))
    jax.tree.map(np.testing.assert_array_equal, params, params_without)


def test_padding_rows_change_nothing():
    rows, (module, variables) = _rows(), _batch_normed()
    junk = (1e3 * _rows(seed=5, rows=3)[0], jnp.full(3, jnp.nan), jnp.array([0, -1, 1]), jnp.zeros(3))
    padded = [jnp.concatenate(pair) for pair in zip(rows, junk)]
    (loss, (_, stats)), (params, e) = _gradients(module, variables, *rows)
    (loss_padded, (_, stats_padded)), (params_padded, e_padded) = _gradients(module, variables, *padded)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    close(loss, loss_padded)
    jax.tree.map(close, (params, stats, e), (params_padded, stats_padded, e_padded[:ROWS]))
    assert not e_padded[ROWS:].any()


def test_the_order_of_rows_does_not_matter():
    rows, (module, variables) = _rows(), _batch_normed()
    order = np.random.default_rng(0).permutation(ROWS)
    (loss, (outputs, stats)), (params, e) = _gradients(module, variables, *rows)
    permuted = _gradients(module, variables, *[x[order] for x in rows])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    expected = (loss, (losses.Outputs(outputs.logits[order], outputs.type_logits[order]), stats)), (params, e[order])
    jax.tree.map(close, expected, permuted)


def test_two_devices_agree_with_one():
    rows, (module, variables) = _rows(), _batch_normed()
    rows = (*rows[:3], rows[3].at[7:].set(0.0))  # the second device has one real row
    many = module.clone(axis_name="data")
    (loss, (_, stats)), (params, e) = _gradients(module, variables, *rows)

    def local(*rows):
        def of(params, e):
            return _loss(many, {**variables, "params": params}, e, *rows[1:], axis_name="data")

        return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(variables["params"], rows[0])

    halves = [x.reshape(2, ROWS // 2, *x.shape[1:]) for x in rows]
    (loss2, (_, stats2)), (params2, e2) = jax.jit(jax.vmap(local, axis_name="data"))(*halves)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    close(loss, loss2.sum())
    jax.tree.map(lambda a, b: close(a, b[0]), stats, stats2)
    jax.tree.map(lambda a, b: close(a, b.sum(axis=0)), params, params2)
    close(e, e2.reshape(e.shape))


def test_models_start_at_the_rates_of_the_train_split():
    schema, e = _schema(), jnp.zeros((1, sum(SIZES), DIM))  # so that biases alone speak
    module = models.make_model(schema, _options("hm", init_scale=0.0, **SHALLOW))
    out = models.predict(module, models.init(module, jax.random.key(0), schema), e)
    rate = (22 + 0.5) / (200 + 1)
    expected = [(c + rate) / (n + 1) for c, n in ((5, 100), (10, 50), (5, 10))]
    np.testing.assert_allclose(out["p_given_type"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(out["p_type"][0], np.array([101, 51, 11]) / 163, rtol=1e-5)
    untyped = models.make_model(_schema(()), _options("wm"))
    out = models.predict(untyped, models.init(untyped, jax.random.key(0), _schema(())), e)
    np.testing.assert_allclose(out["p"], (22 + rate) / 201, rtol=1e-5)


@pytest.mark.parametrize("clicks", [(0, 0, 0, 0), (100, 0, 10, 40)])
def test_rates_of_0_and_1_start_at_finite_logits(clicks):
    module = models.make_model(_schema(rows=(100, 0, 10, 40), clicks=clicks), _options())
    assert np.isfinite(module.head_bias).all() and np.isfinite(module.type_bias).all()
    assert (np.array(module.head_bias) > 0).all() == (clicks[0] > 0)


def test_a_type_that_training_never_showed_is_legal_and_loses_the_little_mass_it_has():
    schema = _schema(rows=(100, 0, 10, 40), clicks=(5, 0, 1, 2))
    module = models.make_model(schema, _options("hm", **SHALLOW))
    np.testing.assert_allclose(np.exp(module.type_bias), np.array([101, 1, 11]) / 113, rtol=1e-6)
    e, label, ftype, weight = _rows()
    weight = jnp.where(ftype == 1, 0.0, weight)
    (_, _), (params, _) = _gradients(module, _variables(module, schema), e, label, ftype, weight)
    assert (params["auxiliary"]["head"]["bias"][1] > 0).all()  # descent takes mass from it


def test_a_schema_without_counts_starts_at_even_odds():
    module = models.make_model(_schema(rows=(), clicks=()), _options("wm"))
    np.testing.assert_allclose(module.head_bias, [0.0] * 3, atol=1e-12)
    np.testing.assert_allclose(np.exp(module.type_bias), [1 / 3] * 3)


@pytest.mark.parametrize(
    "name,change",
    [
        ("wm", dict(hidden=(8, 7))),
        ("hm", dict(stage1=(8,))),
        ("hm", dict(stage2=(7, 6))),
        ("wm", dict(am_hidden=(5,))),
        ("hm", dict(activation="silu")),
        ("hmm", dict(norm="layer")),
        ("hmm", dict(norm="batch")),
        ("hmm", dict(dropout=0.3)),
        ("hmm", dict(mixer_kind="none")),
        ("hmm", dict(mixer_stages=(1,))),
        ("hmm", dict(mixer_stages=(2,))),
        ("hmm", dict(mixer_stages=())),
        ("hmm", dict(mixer_d_att=4)),
        ("hmm", dict(mixer_num_heads=4)),
        ("hmm", dict(mixer_norm="layer")),
        ("wm", dict(type_predictors="shared")),
        ("wm", dict(use_ftype=False)),
        ("wm", dict(drop_type="cart")),
    ],
)
def test_every_option_changes_the_predictions(name, change):
    base, changed = _predictions(name), _predictions(name, **change)
    assert any(a.shape != b.shape or np.abs(a - b).max() > 1e-6 for a, b in zip(base, changed))


@functools.cache
def _predictions(name, **change):
    schema, (e, *_) = _schema(), _rows()
    module = models.make_model(schema, _options(name, **change))
    variables, rngs = _variables(module, schema), {"dropout": jax.random.key(0)}
    apply = jax.jit(lambda v, e: module.apply(v, e, train=True, rngs=rngs, mutable=["batch_stats"])[0])
    return [np.array(x) for x in apply(variables, e) if x is not None]


def test_init_scale_is_that_of_the_type_embedding():
    schema = _schema()
    starts = []
    for init_scale in (0.01, 0.5):
        module = models.make_model(schema, _options("wm", hidden=(8,), am_hidden=(), init_scale=init_scale))
        variables = models.init(module, jax.random.key(0), schema)
        starts.append(variables["params"]["type_dense"]["type_embedding"])
    np.testing.assert_allclose(50 * starts[0], starts[1], rtol=1e-5)


def test_options_may_hold_lists_as_a_config_read_back_does():
    from_json = _options(stage1=[8, 6], mixer_stages=[1])
    assert models.make_model(_schema(), from_json) == models.make_model(_schema(), _options(mixer_stages=(1,)))


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(name="dmm"), "config.model.name: 'dmm' is not known; choose one of wm, hm, hmm"),
        (dict(mixer_kind="gnn"), "config.model.mixer.kind: 'gnn' is not known; choose one of cross_attention, none"),
        (dict(activation="selu"), "config.model.activation: 'selu' is not known; choose one of relu"),
        (dict(mixer_num_heads=3), "3 heads do not divide d_att = 8; choose a divisor"),
        (dict(drop_type="sale"), "'sale' is no type of 'shop'; its types: 'view', 'cart', 'buy'"),
        (dict(drop_type="buy", use_ftype=False), "'buy' has no meaning with use_ftype=False"),
    ],
)
def test_a_users_mistake_gets_one_line(changes, message):
    with pytest.raises(UserError) as error:
        models.make_model(_schema(), _options(**changes))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("types,message", [((), "untyped"), (("buy",), "is the only type")])
def test_dropping_a_type_needs_two(types, message):
    with pytest.raises(UserError, match=message):
        models.make_model(_schema(types, (10,) * (1 + len(types)), (1,) * (1 + len(types))), _options(drop_type="buy"))


def test_bfloat16_stays_near_float32():
    rows, (full, variables) = _rows(), _batch_normed()
    half = models.make_model(_schema(), _options(norm="batch", drop_type="cart", **SHALLOW), compute_dtype="bfloat16")
    made = jax.eval_shape(lambda key: models.init(half, key, _schema()), jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    (loss, (outputs, _)), (params, _) = _gradients(full, variables, *rows)
    (loss_half, (outputs_half, _)), (params_half, _) = _gradients(half, variables, *rows)
    assert outputs_half.logits.dtype == jnp.float32 and not np.array_equal(outputs.logits, outputs_half.logits)
    np.testing.assert_allclose(loss_half, loss, rtol=0.02)
    flat, flat_half = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for p in (params, params_half))
    assert np.linalg.norm(flat - flat_half) < 0.05 * np.linalg.norm(flat)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_models_lower_for_accelerators(platform, compute_dtype):
    schema, rows = _schema(), _rows()
    module = models.make_model(schema, _options(norm="batch"), compute_dtype=compute_dtype)
    variables = _variables(module, schema)
    step = jax.jit(jax.value_and_grad(lambda v: _loss(module, v, *rows)[0]))
    text = step.trace(variables).lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in text and ("bf16" in text) == (compute_dtype == "bfloat16")
