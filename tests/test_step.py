"""The train step: against a float64 loop, against plain optax on a whole table, and under its promises.

Run as a program (`python tests/test_step.py`), it compares one device with two simulated ones and prints JSON.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from emofm_jax import config, models
from emofm_jax.data.batches import Batch
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.nn.losses import Outputs
from emofm_jax.training import optim, sparse
from emofm_jax.training import step as step_lib
from tests.reference import sparse_step as reference

DIM = 4
SECTION = dict(
    name="adam",
    learning_rate=0.05,
    schedule="constant",
    warmup_steps=0,
    l2=0.0,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.99,
    eps=1e-6,
    momentum=0.0,
    initial_accumulator=0.1,
)


class Linear(nn.Module):
    """logit = bias + sum_s <kernel_s, dropout(e_s)>, plus what gives the gradients of `broken` a NaN."""

    embedding_dim: int = DIM
    dropout: float = 0.0
    broken: str = ""
    axis_name: str | None = None

    @nn.compact
    def __call__(self, e, weight=None, *, train=False):
        kernel = self.param("kernel", nn.initializers.normal(1.0), e.shape[1:])
        bias = self.param("bias", nn.initializers.zeros, ())
        logits = bias + (nn.Dropout(self.dropout, deterministic=not train)(e) * kernel).sum((1, 2))
        if self.broken:  # the root is 0, its derivative 0 * inf
            logits += jnp.sqrt((0.0 * {"e": e.sum((1, 2)), "kernel": kernel.sum()}[self.broken]) ** 2)
        return Outputs(logits=logits, type_logits=None, aux_loss=None)


def make_schema(types=()):
    slots = (
        Slot("user", "user", encoding="identity", rows=7),
        Slot("tags", "user", kind="multi", encoding="identity", rows=9, max_length=3),
        Slot("item", "item", encoding="identity", rows=7),
    )
    counts = dict(rows_per_type=(0,) * (len(types) + 1), clicks_per_type=(0,) * (len(types) + 1))
    return Schema("test", slots, tuple(types), **counts)


def make_batch(seed, num_rows=13, real_rows=None, num_devices=1, types=0):
    """Random rows: repeated ids, bags of 0 to 3 ids, the last row of the table; from `real_rows` on padding."""
    rng = np.random.default_rng(seed)
    schema = make_schema()
    real = num_rows if real_rows is None else real_rows
    local = rng.integers(0, [7, 9, 9, 9, 7], (num_rows, 5))
    ids = (local + schema.offsets[schema.column_slots]).astype(np.int32)
    length = rng.integers(0, 4, num_rows)
    value = np.ones((num_rows, 5), np.float32)
    value[:, 1:4] = (1 / np.maximum(length, 1))[:, None]
    ids[:, 1:4][np.arange(3) >= length[:, None]] = schema.num_rows
    ids[0, 4] = ids[1, 4] = schema.num_rows - 1
    weight = rng.uniform(0.5, 2, num_rows).astype(np.float32)
    label = rng.integers(0, 2, num_rows).astype(np.float32)
    ftype = rng.integers(-1, types, num_rows).astype(np.int32)
    ids[real:], value[real:], label[real:], ftype[real:], weight[real:] = schema.num_rows, 0, 0, -1, 0
    arrays = (ids, value, label, ftype, weight)
    return Batch(*(a.reshape(num_devices, num_rows // num_devices, *a.shape[1:]) for a in arrays))


BATCHES = [make_batch(0), make_batch(1, real_rows=6), make_batch(2), make_batch(3, real_rows=0), make_batch(4)]


def one_device():
    return jax.local_devices()[:1]


@functools.cache
def start_of(module):
    """Parameters at the start, on the host."""
    optimizers = dict.fromkeys(step_lib.SECTIONS, optax.identity())
    options = dict(embedding_dim=DIM, init_scale=0.5, devices=one_device())
    state = step_lib.init_state(jax.random.key(3), module, make_schema(), optimizers, **options)
    return step_lib.fetch(state.params)


STEPS = {}  # compiled steps, shared by the tests


def make(module=None, embedding=None, network=None, **options):
    """(state, step, optim config) on one device."""
    sections = {"embedding": {**SECTION, **(embedding or {})}, "network": {**SECTION, **(network or {})}}
    optimizers = {k: optim.make_optimizer(section, 10) for k, section in sections.items()}
    module = module or Linear()
    options = {"l2": {k: section["l2"] for k, section in sections.items()}, "chunk": 7, **options}
    key = repr((module, sections, options))
    if key not in STEPS:
        STEPS[key] = step_lib.make_train_step(module, make_schema(), optimizers, devices=one_device(), **options)
    params = start_of(module)
    state = step_lib.TrainState(
        step=np.int32(0),
        params=params,
        opt_state={k: optimizers[k].init(params[k]) for k in sections},
        stats={},
        owner=np.full(make_schema().num_rows, 12345, np.int32),  # as if stale
        lr_scale={k: np.float32(1) for k in sections},
    )
    return step_lib.put_state(state, one_device()), STEPS[key], sections


def run(state, step, batches):
    """(state, metrics of each step on the host)."""
    records = []
    for batch in batches:
        state, metrics = step(state, step_lib.put_batch(batch, one_device()))
        records.append(step_lib.fetch(metrics))
    return state, records


def as_rows(batch):
    return tuple(np.concatenate(a) for a in (batch.ids, batch.value, batch.label, batch.weight))


ADAGRAD = {"name": "adagrad", "eps": 1e-7}
CASES = {
    "adam": ({}, {}, {}),
    "adam, l2, clip group": ({"l2": 0.1}, {"l2": 0.1}, {"clip": "group", "clip_norm": 0.05}),
    "adam, clip global": ({}, {"l2": 0.1}, {"clip": "global", "clip_norm": 0.1}),
    "adamw, decay": ({"name": "adamw", "weight_decay": 0.1}, {"name": "adamw", "weight_decay": 0.2}, {}),
    "adagrad, chunk over all": (ADAGRAD, ADAGRAD, {"chunk": 1000}),
    "sgd, momentum": ({"name": "sgd", "momentum": 0.9, "l2": 0.05}, {"name": "sgd"}, {}),
    "two optimizers": (ADAGRAD, {"name": "sgd", "learning_rate": 0.2}, {"chunk": 1}),
}


@pytest.mark.parametrize(
    "case, update", [(case, "lazy") for case in CASES] + [("adam, l2, clip group", "dense"), ("sgd, momentum", "dense")]
)
def test_step_equals_a_loop(case, update):
    embedding, network, options = CASES[case]  # 65 occurrences: no multiple of the chunk
    state, step, optim_config = make(None, embedding, network, update=update, **options)
    start = step_lib.fetch(state.params)
    end, records = run(state, step, BATCHES)
    end = step_lib.fetch(end.params)
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
        assert record["loss"] == record["logloss_sum"] / max(record["weight_sum"], 1)
        for name in ("loss", "embedding_norm", "network_norm", "p"):
            np.testing.assert_allclose(record[name][0], theirs[name], atol=1e-6, rtol=0, err_msg=name)
        assert update == "dense" or record["num_rows"] == theirs["num_rows"]


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_dense_update_equals_optax_on_the_whole_table(name):
    section = {"name": name, "l2": 0.1}
    state, step, optim_config = make(None, section, section, update="dense", clip="global", clip_norm=0.2)
    params = step_lib.fetch(state.params)
    transform = optax.chain(
        optax.add_decayed_weights(0.1),
        optax.clip_by_global_norm(0.2),
        optim.make_optimizer(optim_config["embedding"], 10),
    )
    opt_state = transform.init(params)

    def loss_fn(params, ids, value, label, weight):
        e = jnp.where(ids[..., None] < len(params["embedding"]), params["embedding"][ids], 0) * value[..., None]
        e = jnp.stack([e[:, 0], e[:, 1:4].sum(1), e[:, 4]], axis=1)
        logits = params["network"]["bias"] + jnp.einsum("bsd,sd->b", e, params["network"]["kernel"])
        return (weight * optax.sigmoid_binary_cross_entropy(logits, label)).sum() / weight.sum()

    batches = BATCHES[:3]
    for batch in batches:
        updates, opt_state = transform.update(jax.grad(loss_fn)(params, *as_rows(batch)), opt_state, params)
        params = optax.apply_updates(params, updates)
    state, _ = run(state, step, batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step_lib.fetch(state.params), params)


def test_lazy_equals_dense_for_plain_sgd():
    ends = []
    for update in ("lazy", "dense"):
        state, step, _ = make(None, {"name": "sgd"}, {"name": "sgd"}, update=update)
        ends.append(step_lib.fetch(run(state, step, BATCHES)[0].params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)


def test_rows_outside_the_batch_do_not_move():
    state, step, _ = make(None, *CASES["adamw, decay"][:2])
    before = step_lib.fetch((state.params["embedding"], state.opt_state["embedding"]))
    batch = make_batch(5, real_rows=3)
    state, _ = run(state, step, [batch])
    after = step_lib.fetch((state.params["embedding"], state.opt_state["embedding"]))
    seen = np.isin(np.arange(make_schema().num_rows), batch.ids)
    assert 0 < seen.sum() < len(seen)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        if old.ndim:
            np.testing.assert_array_equal(old[~seen], new[~seen])
            assert (old[seen] != new[seen]).any(axis=1).all()


def test_a_batch_of_padding_moves_nothing_and_counts_a_step():
    state, step, _ = make()
    before = step_lib.fetch(state.params)
    state, records = run(state, step, [make_batch(0, real_rows=0)])
    jax.tree.map(np.testing.assert_array_equal, before, step_lib.fetch(state.params))
    counts = [leaf for leaf in jax.tree.leaves(step_lib.fetch(state.opt_state)) if leaf.dtype == np.int32]
    assert counts and all(count == 1 for count in counts)
    assert state.step == 1 and records[0]["num_rows"] == 0 and records[0]["nonfinite"] == 0


def test_equal_ids_are_summed_whatever_an_earlier_step_left():
    owner = jnp.full(10, 10**6, jnp.int32)  # as if stale
    ids = jnp.array([9, 3, 9, 10, 0, 3, 9], jnp.int32)
    grads = jnp.arange(14.0).reshape(7, 2)
    rows, summed, count, owner = sparse.sum_rows(ids, grads, owner, 4)
    assert rows.shape == (8,) and len(set(rows.tolist())) == 8 and count == 3
    sums = dict(zip(rows.tolist(), summed.tolist()))
    assert {r: sums[r] for r in (0, 3, 9)} == {0: [8, 9], 3: [12, 14], 9: [16, 19]}
    assert sorted(rows.tolist())[3:] == sorted(r for r in sums if r >= 10) and not np.any(np.asarray(summed[3:]))


def test_lr_scale_multiplies_the_updates():
    moved = {}
    for scale in (1.0, 0.25, 0.0):
        state, step, _ = make()
        start = step_lib.fetch(state.params)
        state = state.replace(lr_scale={"embedding": jnp.float32(scale), "network": jnp.float32(1.0)})
        end = step_lib.fetch(run(step_lib.put_state(state, one_device()), step, BATCHES[:1])[0].params)
        moved[scale] = jax.tree.map(np.subtract, end, start)
    np.testing.assert_allclose(moved[0.25]["embedding"], 0.25 * moved[1.0]["embedding"], atol=1e-7)
    np.testing.assert_array_equal(moved[0.0]["embedding"], 0)
    np.testing.assert_array_equal(moved[0.0]["network"]["kernel"], moved[1.0]["network"]["kernel"])
    assert np.abs(moved[1.0]["network"]["kernel"]).min() > 0.01


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


def test_state_is_donated_nothing_recompiles_and_nothing_is_sent_unasked():
    compilations = []
    listener = lambda event, seconds, **_: compilations.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    state, step, _ = make(chunk=9)  # of no other test
    placed = [step_lib.put_batch(batch, one_device()) for batch in BATCHES]
    before = len(compilations)
    with jax.transfer_guard("disallow"):
        for batch in placed:
            old, (state, metrics) = state, step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
            step_lib.fetch(metrics)
    assert len(compilations) - before == 1


def test_every_parameter_has_one_optimizer():
    state, _, _ = make()
    assert set(state.params) == set(state.opt_state) == set(state.lr_scale) == set(step_lib.SECTIONS)
    for key in step_lib.SECTIONS:
        moments = state.opt_state[key][0].mu
        assert jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, state.params[key])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("update", ["lazy", "dense"])
def test_step_lowers_for_accelerators(platform, update):
    state, step, _ = make(update=update)
    batch = step_lib.put_batch(BATCHES[0], one_device())
    text = jax.jit(step).trace(state, batch).lower(lowering_platforms=(platform,)).as_text()
    assert "scatter" in text and ("while" in text) == (update == "lazy")


def test_eval_step_scores_as_the_model_does():
    state, _, _ = make()
    predict = step_lib.make_eval_step(Linear(), make_schema(), devices=one_device())
    batch = BATCHES[1]
    with jax.transfer_guard("disallow"):
        scores = step_lib.fetch(predict(state.params, state.stats, step_lib.put_batch(batch, one_device())))
    params = step_lib.fetch(state.params)
    ids, value, label, weight = as_rows(batch)
    *_, p = reference.gradients(
        params["embedding"], params["network"]["kernel"], 0.0, ids, value, (1, 3, 1), label, weight
    )
    np.testing.assert_allclose(scores["p"][0], p, atol=1e-6)
    np.testing.assert_allclose(scores["logit"][0], np.log(p / (1 - p)), atol=1e-5)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="sparse"):
        make(update="sparse")
    with pytest.raises(ValueError, match="norm"):
        make(clip="norm")


def test_one_device_equals_two():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_step"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["moved"] > 0.01, name  # else agreement says nothing
        assert found["parameters"] < 1e-5, name
        assert found["metrics"] < 1e-4, name
        assert found["replicas_equal"], name


def compare_devices(module, schema, update):
    """20 steps of 1 and of 2 devices from the same state, ragged at the end: largest differences."""
    section = {**SECTION, "eps": 0.1, "learning_rate": 0.01}
    optimizers = dict.fromkeys(step_lib.SECTIONS, optim.make_optimizer(section, 20))
    start, ends, sums, equal = None, [], [], True
    for count in (1, 2):
        devices = jax.local_devices()[:count]
        arguments = dict(embedding_dim=DIM, init_scale=0.5, devices=devices)
        state = step_lib.init_state(jax.random.key(0), module, schema, optimizers, **arguments)
        start = step_lib.fetch(state.params)
        options = dict(update=update, clip="global", clip_norm=1.0, chunk=32, devices=devices)
        step = step_lib.make_train_step(module, schema, optimizers, **options)
        records = []
        for i in range(20):
            # The last batch leaves the second device almost nothing.
            real = 9 if i % 10 == 9 else 16
            batch = make_batch(i, 16, real, count, schema.num_types)
            state, metrics = step(state, step_lib.put_batch(batch, devices))
            records.append(step_lib.fetch(metrics))
        for leaf in jax.tree.leaves(state.replace(owner=())):
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            equal &= len(copies) == count and all(np.array_equal(copies[0], copy) for copy in copies)
        ends.append((step_lib.fetch(state.params), step_lib.fetch(state.stats)))
        rows = ("p", "label", "weight")
        sums.append([{k: v.reshape(-1) if k in rows else v[0] for k, v in r.items()} for r in records])
    largest = lambda a, b: max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    return {
        "moved": min(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(ends[0][0]), jax.tree.leaves(start))),
        "parameters": largest(*ends),
        "metrics": largest(*sums),
        "replicas_equal": equal,
    }


if __name__ == "__main__":
    typed = make_schema(("click", "cart", "buy"))
    options = config.default().model.to_dict() | {
        "embedding_dim": DIM,
        "stage1": (16,),
        "stage2": (16,),
        "am_hidden": (8,),
        "norm": "batch",
    }
    wm = models.make_model(typed, options)
    found = {"wm, lazy": compare_devices(wm, typed, "lazy"), "dense": compare_devices(Linear(), make_schema(), "dense")}
    print(json.dumps(found))
