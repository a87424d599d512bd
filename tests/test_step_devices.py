"""The train step and its devices: donation, memory, lowering, and two devices that do what one does.

Run as a program (`python -m tests.test_step_devices`) under two devices, it compares them with one and prints JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import step as benchmark
from emofm_jax import cli, config
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.models import build as model_lib
from emofm_jax.training import optim
from emofm_jax.training import state as state_lib
from emofm_jax.training import step as step_lib
from tests.linear_model import DIM, SECTION, Linear, make_batch, make_schema

OPTIMIZERS = dict.fromkeys(state_lib.SECTIONS, optim.make_optimizer(SECTION, 10))


def one_device():
    return jax.local_devices()[:1]


def make(update="lazy"):
    options = dict(init_scale=0.5, devices=one_device())
    state = state_lib.make_init(Linear(), make_schema(), OPTIMIZERS, **options)(jax.random.key(0))
    options = step_lib.Options(updates=update)
    arguments = (Linear(), make_schema(), OPTIMIZERS, options, one_device())
    return state, step_lib.make_train_step(*arguments)


def test_state_is_donated_nothing_recompiles_and_nothing_is_sent_unasked():
    compilations = []
    listener = lambda event, seconds, **_: (
        compilations.append(event) if "backend_compile" in event else None
    )
    jax.monitoring.register_event_duration_secs_listener(listener)
    state, step = make()
    placed = [state_lib.put_batch(make_batch(seed), one_device()) for seed in range(4)]
    before = len(compilations)
    with jax.transfer_guard("disallow"):
        for batch in placed:
            old, (state, metrics) = state, step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
            state_lib.fetch(metrics)
    assert len(compilations) - before == 1


def test_memory_of_a_step_does_not_follow_the_table():
    """A copy of the table, or a dense gradient, would be among the temporaries; the state itself is aliased."""
    rows, batch = 200_000, state_lib.put_batch(make_batch(0), one_device())
    slots = (*make_schema().slots[:2], Slot("item", "item", encoding="identity", rows=rows))
    schema = Schema("large", slots, rows_per_type=(0,), clicks_per_type=(0,))
    options = dict(init_scale=0.1, devices=one_device())
    init = state_lib.make_init(Linear(), schema, OPTIMIZERS, **options)
    state = jax.eval_shape(init, jax.random.key(0))
    for update, smaller in (("lazy", True), ("dense", False)):
        options = step_lib.Options(updates=update)
        step = step_lib.make_train_step(Linear(), schema, OPTIMIZERS, options, one_device())
        memory = step.lower(state, batch).compile().memory_analysis()
        assert (memory.temp_size_in_bytes < 4 * rows) == smaller
        assert memory.alias_size_in_bytes > 3 * 4 * DIM * rows


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("update", ["lazy", "dense"])
def test_step_lowers_for_accelerators(platform, update):
    state, step = make(update)
    batch = state_lib.put_batch(make_batch(0), one_device())
    text = jax.jit(step).trace(state, batch).lower(lowering_platforms=(platform,)).as_text()
    assert "scatter" in text and ("while" in text) == (update == "lazy")


def test_benchmark_runs_and_ends_with_its_ratio(tmp_path, capsys):
    arguments = ["step.py", "--size=tiny", f"--output={tmp_path}/step.json"]
    assert cli.run(benchmark.main, benchmark.define, arguments) == 0
    found = json.loads((tmp_path / "step.json").read_text())
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"ratio V=1e4/V=1e3: {found['ratio']['zipf']:.2f}"
    )
    distinct = {(case["table_rows"], case["ids"]): case["distinct_rows"] for case in found["cases"]}
    made = benchmark.make_batches(benchmark.make_schema(10**4, 4), "zipf", 2, 64, 1)
    counts = [len(np.unique(made[turn % 2].ids)) for turn in range(3)]
    np.testing.assert_allclose(distinct[10**4, "zipf"], np.mean(counts))
    assert distinct[10**4, "zipf"] < distinct[10**4, "uniform"]


@pytest.fixture(scope="module")
def two_devices():
    """What `main` finds under two devices, by name."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_step_devices"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["wm, lazy", "members", "members, split", "dense"])
def test_one_device_equals_two(two_devices, case):
    found = two_devices[case]
    assert found["moved"] > 0.01  # else agreement says nothing
    assert found["parameters"] < 1e-5
    assert found["metrics"] < 1e-4
    assert found["replicas_equal"]


def test_two_devices_drop_different_units(two_devices):
    """Both are given the same rows, so that their scores differ by what is dropped."""
    first, second = two_devices["p without dropout"]
    assert first == second
    first, second = two_devices["p with dropout"]
    assert all(a != b for a, b in zip(first, second))


def compare_devices(module, schema, update):
    """20 steps of 1 and of 2 devices from the same state, ragged at the end: largest differences."""
    section = {**SECTION, "eps": 0.1, "learning_rate": 0.01}
    optimizers = dict.fromkeys(state_lib.SECTIONS, optim.make_optimizer(section, 20))
    both = jax.local_devices()
    init = state_lib.make_init(module, schema, optimizers, init_scale=0.5, devices=both)
    first = init(jax.random.key(0))
    first, ends, sums, equal = state_lib.fetch(first), [], [], True
    for devices in (both[:1], both):
        state, count = state_lib.put_state(first, devices), len(devices)
        options = step_lib.Options(updates=update, clip="global", clip_norm=1.0, chunk=32)
        step = step_lib.make_train_step(module, schema, optimizers, options, devices)
        records = []
        for i in range(20):
            # The last batch leaves the second device almost nothing.
            real = 9 if i % 10 == 9 else 16
            batch = make_batch(i, 16, real, count, schema.num_types)
            state, metrics = step(state, state_lib.put_batch(batch, devices))
            records.append(state_lib.fetch(metrics).as_dict())
        for leaf in jax.tree.leaves(state.replace(owner=())):
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            equal &= len(copies) == count and all(
                np.array_equal(copies[0], copy) for copy in copies
            )
        ends.append((state_lib.fetch(state.params), state_lib.fetch(state.stats)))
        sums.append(
            [{k: v.reshape(-1) if k == "p" else v[0] for k, v in r.items()} for r in records]
        )
    largest = lambda a, b: max(
        float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )
    return {
        "moved": float(np.abs(ends[0][0]["embedding"] - first.params["embedding"]).max()),
        "parameters": largest(*ends),
        "metrics": largest(*sums),
        "replicas_equal": equal,
    }


def scores_of_equal_rows(dropout):
    """p of one step, a list for each of two devices that have the same rows."""
    optimizers = dict.fromkeys(state_lib.SECTIONS, optim.make_optimizer(SECTION, 10))
    module, devices = Linear(dropout=dropout), jax.local_devices()
    init = state_lib.make_init(module, make_schema(), optimizers, init_scale=0.5, devices=devices)
    step = step_lib.make_train_step(module, make_schema(), optimizers, devices=devices)
    batch = jax.tree.map(lambda array: np.repeat(array, 2, axis=0), make_batch(0))
    _, metrics = step(init(jax.random.key(0)), state_lib.put_batch(batch, devices))
    return state_lib.fetch(metrics).p.tolist()


def main():
    typed = make_schema(("click", "cart", "buy"))
    changes = {"name": "wm", "embedding_dim": DIM, "hidden": (8,), "am_hidden": (), "norm": "batch"}
    wm = model_lib.make_model(typed, config.default().model.to_dict() | changes)
    changes |= {"members": 2}
    members = model_lib.make_model(typed, config.default().model.to_dict() | changes)
    changes |= {"members_rows": "split"}  # 8 rows of a device divide over two members
    split = model_lib.make_model(typed, config.default().model.to_dict() | changes)
    found = {
        "wm, lazy": compare_devices(wm, typed, "lazy"),
        "members": compare_devices(members, typed, "lazy"),
        "members, split": compare_devices(split, typed, "lazy"),
        "dense": compare_devices(Linear(), make_schema(), "dense"),
    }
    found |= {
        "p without dropout": scores_of_equal_rows(0.0),
        "p with dropout": scores_of_equal_rows(0.5),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
