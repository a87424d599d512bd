"""The train step against a float64 loop, against plain optax on a whole table, and at its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from emofm_jax.nn import losses
from emofm_jax.training import optim, sparse
from emofm_jax.training import state as state_lib
from emofm_jax.training import step as step_lib
from tests.linear_model import DIM, SECTION, Linear, make_batch, make_schema
from tests.reference import emofm as formulas
from tests.reference import sparse_step as reference

BATCHES = [
    make_batch(0),
    make_batch(1, real_rows=6),
    make_batch(2),
    make_batch(3, real_rows=0),
    make_batch(4),
]


def one_device():
    return jax.local_devices()[:1]


@functools.cache
def start():
    """Parameters of `Linear` at the start, on the host."""
    optimizers = dict.fromkeys(state_lib.SECTIONS, optax.identity())
    options = dict(init_scale=0.5, devices=one_device())
    state = state_lib.make_init(Linear(), make_schema(), optimizers, **options)(jax.random.key(3))
    return state_lib.fetch(state.params)


STEPS = {}  # compiled steps, shared by the tests


def make(module=None, embedding=None, network=None, seed=0, **options):
    """(state, step, optim config) on one device."""
    sections = {
        "embedding": {**SECTION, **(embedding or {})},
        "network": {**SECTION, **(network or {})},
    }
    optimizers = {k: optim.make_optimizer(section, 10) for k, section in sections.items()}
    module = module or Linear()
    l2 = {f"{k}_l2": section["l2"] for k, section in sections.items()}
    options = step_lib.Options(**{"chunk": 7, **l2, **options})
    key = repr((module, sections, options))
    if key not in STEPS:
        arguments = (module, make_schema(), optimizers, options, one_device())
        STEPS[key] = step_lib.make_train_step(*arguments)
    params = start()
    state = state_lib.TrainState(
        step=np.int32(0),
        params=params,
        opt_state={k: optimizers[k].init(params[k]) for k in sections},
        stats={},
        owner=np.full(make_schema().num_rows, 12345, np.int32),  # as if stale
        lr_scale={k: np.float32(1) for k in sections},
        key=jax.random.key_data(jax.random.key(seed)),
    )
    return state_lib.put_state(state, one_device()), STEPS[key], sections


def run(state, step, batches):
    """(state, metrics of each step on the host)."""
    records = []
    for batch in batches:
        state, metrics = step(state, state_lib.put_batch(batch, one_device()))
        records.append(state_lib.fetch(metrics).as_dict())
    return state, records


def as_rows(batch):
    return tuple(np.concatenate(a) for a in (batch.ids, batch.value, batch.label, batch.weight))


ADAGRAD = {"name": "adagrad", "eps": 1e-7}
CASES = {
    "adam": ({}, {}, {}),
    "adam, l2, clip group": ({"l2": 0.1}, {"l2": 0.1}, {"clip": "group", "clip_norm": 0.05}),
    "adam, clip global": ({}, {"l2": 0.1}, {"clip": "global", "clip_norm": 0.1}),
    "adamw, decay": (
        {"name": "adamw", "weight_decay": 0.1},
        {"name": "adamw", "weight_decay": 0.2},
        {},
    ),
    "adagrad, chunk over all": (ADAGRAD, ADAGRAD, {"chunk": 1000}),
    "adam, one pass, l2": ({"l2": 0.1}, {"l2": 0.1}, {"chunk": 0}),
    "sgd, momentum, one pass": ({"name": "sgd", "momentum": 0.9}, {"name": "sgd"}, {"chunk": 0}),
    "sgd, momentum": ({"name": "sgd", "momentum": 0.9, "l2": 0.05}, {"name": "sgd"}, {}),
    "two optimizers": (ADAGRAD, {"name": "sgd", "learning_rate": 0.2}, {"chunk": 1}),
}


@pytest.mark.parametrize(
    "case, update",
    [(case, "lazy") for case in CASES]
    + [("adam, l2, clip group", "dense"), ("sgd, momentum", "dense")],
)
def test_step_equals_a_loop(case, update):
    embedding, network, options = CASES[case]  # 65 occurrences: no multiple of the chunk
    state, step, optim_config = make(None, embedding, network, updates=update, **options)
    start = state_lib.fetch(state.params)
    end, records = run(state, step, BATCHES)
    end = state_lib.fetch(end.params)
    clipping = {k: options[k] for k in ("clip", "clip_norm") if k in options}
    table, kernel, bias, expected = reference.train(
        start["embedding"],
        start["network"]["kernel"],
        float(start["network"]["bias"]),
        [as_rows(batch) for batch in BATCHES],
        make_schema().slot_widths,
        optim_config,
        dense=update == "dense",
        **clipping,
    )
    np.testing.assert_allclose(end["embedding"], table, atol=1e-6, rtol=0)
    np.testing.assert_allclose(end["network"]["kernel"], kernel, atol=1e-6, rtol=0)
    np.testing.assert_allclose(end["network"]["bias"], bias, atol=1e-6, rtol=0)
    if options.get("clip") == "group":  # the case is one
        assert records[0]["embedding_norm"] > options["clip_norm"] < records[0]["network_norm"]
    for record, theirs in zip(records, expected):
        assert record["nonfinite"] == 0
        mean = record["logloss_sum"] / max(record["weight_sum"], 1)
        np.testing.assert_allclose(record["loss"], mean, rtol=1e-6)
        for name in ("loss", "embedding_norm", "network_norm", "p"):
            np.testing.assert_allclose(
                record[name][0], theirs[name], atol=1e-6, rtol=0, err_msg=name
            )
        assert update == "dense" or record["num_rows"] == theirs["num_rows"]


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_dense_update_equals_optax_on_the_whole_table(name):
    section = {"name": name, "l2": 0.1}
    state, step, optim_config = make(
        None, section, section, updates="dense", clip="global", clip_norm=0.2
    )
    params = state_lib.fetch(state.params)
    transform = optax.chain(
        optax.add_decayed_weights(0.1),
        optax.clip_by_global_norm(0.2),
        optim.make_optimizer(optim_config["embedding"], 10),
    )
    opt_state = transform.init(params)

    def loss_fn(params, ids, value, label, weight):
        e = (
            jnp.where(ids[..., None] < len(params["embedding"]), params["embedding"][ids], 0)
            * value[..., None]
        )
        e = jnp.stack([e[:, 0], e[:, 1:4].sum(1), e[:, 4]], axis=1)
        logits = params["network"]["bias"] + jnp.einsum("bsd,sd->b", e, params["network"]["kernel"])
        return (weight * optax.sigmoid_binary_cross_entropy(logits, label)).sum() / weight.sum()

    @jax.jit
    def move(params, opt_state, rows):
        updates, opt_state = transform.update(jax.grad(loss_fn)(params, *rows), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in BATCHES[:3]:
        params, opt_state = move(params, opt_state, as_rows(batch))
    state, _ = run(state, step, BATCHES[:3])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        state_lib.fetch(state.params),
        params,
    )


def test_lazy_equals_dense_for_plain_sgd():
    ends = []
    for update in ("lazy", "dense"):
        state, step, _ = make(None, {"name": "sgd"}, {"name": "sgd"}, updates=update)
        ends.append(state_lib.fetch(run(state, step, BATCHES)[0].params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)


def test_rows_outside_the_batch_do_not_move():
    state, step, _ = make(None, *CASES["adamw, decay"][:2])
    before = state_lib.fetch((state.params["embedding"], state.opt_state["embedding"]))
    batch = make_batch(5, real_rows=3)
    state, _ = run(state, step, [batch])
    after = state_lib.fetch((state.params["embedding"], state.opt_state["embedding"]))
    seen = np.isin(np.arange(make_schema().num_rows), batch.ids)
    assert 0 < seen.sum() < len(seen)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        if old.ndim:
            np.testing.assert_array_equal(old[~seen], new[~seen])
            assert (old[seen] != new[seen]).any(axis=1).all()


def test_a_batch_of_padding_moves_nothing_and_counts_a_step():
    state, step, _ = make()
    before = state_lib.fetch(state.params)
    state, records = run(state, step, [make_batch(0, real_rows=0)])
    jax.tree.map(np.testing.assert_array_equal, before, state_lib.fetch(state.params))
    counts = [
        leaf for leaf in jax.tree.leaves(state_lib.fetch(state.opt_state)) if leaf.dtype == np.int32
    ]
    assert counts and all(count == 1 for count in counts)
    assert state.step == 1 and records[0]["num_rows"] == 0 and records[0]["nonfinite"] == 0


def test_equal_ids_are_summed_whatever_an_earlier_step_left():
    owner = jnp.full(10, 10**6, jnp.int32)  # as if stale
    ids = jnp.array([9, 3, 9, 10, 0, 3, 9], jnp.int32)
    grads = jnp.arange(14.0).reshape(7, 2)
    rows, summed, count, _ = sparse.sum_rows(ids, grads, owner, 4)
    assert rows.shape == (8,) and len(set(rows.tolist())) == 8 and count == 3
    sums = dict(zip(rows.tolist(), summed.tolist()))
    assert {r: sums[r] for r in (0, 3, 9)} == {0: [8, 9], 3: [12, 14], 9: [16, 19]}
    assert sorted(rows.tolist())[3:] == sorted(r for r in sums if r >= 10) and not np.any(
        np.asarray(summed[3:])
    )


@pytest.mark.parametrize("chunk", [0, 1, 4, 10, 99])
def test_every_row_is_updated_once_when_all_ids_differ(chunk):
    """10 occurrences of 10 rows: the last chunk of 4 reaches past the end of what was asked for."""
    ids = jnp.array([11, 0, 5, 7, 3, 2, 9, 8, 1, 6], jnp.int32)
    table, optimizer = jnp.arange(24.0).reshape(12, 2), optax.sgd(1.0, momentum=0.5)
    found = sparse.sum_rows(ids, jnp.ones((10, 2)), jnp.zeros(12, jnp.int32), chunk)
    options = dict(clip_factor=jnp.float32(0.5), lr_scale=jnp.float32(1), l2=0.0, chunk=chunk)
    new, state = sparse.update_rows(optimizer, table, optimizer.init(table), found, **options)
    moved = np.isin(np.arange(12), ids)[:, None]
    np.testing.assert_array_equal(table - new, np.where(moved, 0.5, 0) * np.ones((1, 2)))
    np.testing.assert_array_equal(state[0].trace, table - new)


def test_in_one_pass_a_row_stands_where_one_of_its_occurrences_does():
    ids = jnp.array([9, 3, 9, 10, 0, 3, 9], jnp.int32)  # 10: padding
    grads = jnp.arange(14.0).reshape(7, 2)
    rows, summed, count, _ = sparse.sum_rows(ids, grads, jnp.full(10, 10**6, jnp.int32), 0)
    assert count == 3 and len(set(rows.tolist())) == 7
    stands = rows < 10
    assert rows[stands].tolist() == ids[stands].tolist() and not np.any(np.asarray(summed[~stands]))
    sums = dict(zip(rows[stands].tolist(), summed[stands].tolist()))
    assert sums == {0: [8, 9], 3: [12, 14], 9: [16, 19]}


def test_lr_scale_multiplies_the_updates_of_its_section():
    moved = {}
    for scales in ((1.0, 1.0), (0.25, 0.5), (0.0, 1.0)):
        state, step, _ = make()
        first = state_lib.fetch(state.params)
        state = state.replace(
            lr_scale={k: jnp.float32(x) for k, x in zip(state_lib.SECTIONS, scales)}
        )
        last = state_lib.fetch(
            run(state_lib.put_state(state, one_device()), step, BATCHES[:1])[0].params
        )
        difference = jax.tree.map(np.subtract, last, first)
        moved[scales] = difference["embedding"], difference["network"]["kernel"]
    whole, part, frozen = moved.values()
    assert np.abs(whole[0]).max() > 0.01 < np.abs(whole[1]).min()
    for i, scale in enumerate((0.25, 0.5)):
        np.testing.assert_allclose(part[i], scale * whole[i], atol=1e-6)
    np.testing.assert_array_equal(frozen[0], 0)


class Typed(nn.Module):
    """A linear predictor for each of three types, and a linear auxiliary model."""

    embedding_dim: int = DIM
    axis_name: str | None = None

    @nn.compact
    def __call__(self, e, weight=None, *, train=False):
        kernels = [
            self.param(name, nn.initializers.normal(1.0), (e.shape[1] * e.shape[2], 3))
            for name in ("predictors", "auxiliary")
        ]
        logits, type_logits = (e.reshape(len(e), -1) @ kernel for kernel in kernels)
        return losses.Outputs(logits, type_logits)


@pytest.mark.parametrize("drop_type", [-1, 1])
def test_the_sums_of_a_step_are_those_of_its_rows(drop_type):
    schema, devices = make_schema(("view", "cart", "buy")), one_device()
    optimizers = dict.fromkeys(state_lib.SECTIONS, optax.sgd(0.1))
    init = state_lib.make_init(Typed(), schema, optimizers, init_scale=0.5, devices=devices)
    state = init(jax.random.key(0))
    params = state_lib.fetch(state.params)
    batch = make_batch(0, 24, 20, types=3)
    ids, value, label, weight = as_rows(batch)
    ftype = batch.ftype[0]
    assert set(ftype[:20]) == {-1, 0, 1, 2}
    options = step_lib.Options(am_weight=0.5, drop_type=drop_type)
    step = step_lib.make_train_step(Typed(), schema, optimizers, options, devices)
    record = state_lib.fetch(step(state, state_lib.put_batch(batch, devices))[1]).as_dict()

    e = formulas.pool(params["embedding"], ids, value, schema.slot_widths).reshape(24, -1)
    p_given_type = formulas.sigmoid(e @ params["network"]["predictors"])
    p_type = np.array([formulas.softmax(x) for x in e @ params["network"]["auxiliary"]])
    p = formulas.mixture(p_given_type, p_type, drop_type)[0]
    p = np.where(ftype < 0, p, p_given_type[np.arange(24), ftype])
    np.testing.assert_allclose(record["p"][0][weight > 0], p[weight > 0], atol=1e-6)
    expected = formulas.loss(p_given_type, p_type, label, ftype, weight, 0.5, drop_type)
    np.testing.assert_allclose(record["loss"][0], expected, rtol=1e-5)
    scored, known = (ftype < 0) | (ftype != drop_type), ftype >= 0
    nats = -np.log(np.where(label == 1, p, 1 - p))
    np.testing.assert_allclose(record["weight_sum"][0], weight[scored].sum(), rtol=1e-6)
    np.testing.assert_allclose(record["am_weight_sum"][0], weight[known].sum(), rtol=1e-6)
    np.testing.assert_allclose(record["logloss_sum"][0], (weight * nats)[scored].sum(), rtol=1e-5)


def test_dropout_follows_seed_and_step():
    frozen = {"name": "sgd", "learning_rate": 0.0}

    def masks(seed):
        state, step, _ = make(Linear(dropout=0.5), frozen, frozen, seed=seed)
        return [record["p"] for record in run(state, step, BATCHES[:1] * 2)[1]]

    a, again, other = masks(0), masks(0), masks(1)
    np.testing.assert_array_equal(a, again)
    assert not np.array_equal(a[0], a[1]) and not np.array_equal(a[0], other[0])


@pytest.mark.parametrize("quantity", range(3))
def test_what_is_not_finite_is_named(quantity):
    module, batch = Linear(broken=("", "e", "kernel")[quantity]), BATCHES[0]
    if quantity == 0:
        batch = batch._replace(value=np.full_like(batch.value, np.inf))
    state, step, _ = make(module)
    _, records = run(state, step, [batch])
    assert records[0]["nonfinite"] == 1 + quantity
    assert ("loss", "table", "network")[quantity] in step_lib.NONFINITE[quantity]


def test_every_parameter_has_one_optimizer():
    state, _, _ = make()
    assert (
        set(state.params) == set(state.opt_state) == set(state.lr_scale) == set(state_lib.SECTIONS)
    )
    for key in state_lib.SECTIONS:
        moments = state.opt_state[key][0].mu
        assert jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, state.params[key])


def test_eval_step_scores_as_the_model_does():
    state, _, _ = make()
    predict = step_lib.make_eval_step(Linear(), make_schema(), devices=one_device())
    batch = BATCHES[1]
    with jax.transfer_guard("disallow"):
        scores = state_lib.fetch(
            predict(state.params, state.stats, state_lib.put_batch(batch, one_device()))
        )
    params = state_lib.fetch(state.params)
    ids, value, label, weight = as_rows(batch)
    *_, p = reference.gradients(
        params["embedding"], params["network"]["kernel"], 0.0, ids, value, (1, 3, 1), label, weight
    )
    np.testing.assert_allclose(scores["p"][0], p, atol=1e-6)
    np.testing.assert_allclose(scores["logit"][0], np.log(p / (1 - p)), atol=1e-5)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="sparse"):
        make(updates="sparse")
    with pytest.raises(ValueError, match="norm"):
        make(clip="norm")
