"""The table over several devices: the numbers of one device, whatever their number, optimizer and network.

`XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.test_spread` takes the steps of all cases and prints
what differs, as JSON; the suite takes those of a few.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import step as benchmark
from emofm_jax import config, evaluate, train
from emofm_jax.data import files, placing
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.nn import embedding
from emofm_jax.training import memory, optim
from emofm_jax.training import state as state_lib
from emofm_jax.training import step as step_lib
from tests import test_memory
from tests.linear_model import DIM, SECTION, Linear, make_batch, make_schema

ROOT = Path(__file__).parent.parent
SIZE, STEPS = 24, 20
MOMENTS = {"adam": {}, "adamw": {"weight_decay": 0.1}, "sgd": {"momentum": 0.9}, "adagrad": {}}
MOMENTS |= {"rowwise_adagrad": {}}
SECTIONS = {"eps": 0.1, "learning_rate": 0.05}
# case: (network, optimizer of the table, options of the step, numbers of devices); those without "!" in the suite
CASES = {
    "adam, lazy, L2": ("linear", "adam", {"embedding_l2": 0.01, "clip": "global"}, (3,)),
    "adamw, dense": ("linear", "adamw", {"updates": "dense", "clip": "global"}, (8,)),
    "! typed, batch norm, members": ("wm", "adam", {"average": 0.9}, (2, 3, 8)),
    "! adagrad, lazy, clipped": ("linear", "adagrad", {"clip": "group"}, (2, 3)),
}  # fmt: skip
for _name in MOMENTS:
    for _how in ({}, {"updates": "dense"}, {"embedding_l2": 0.01}):
        CASES[f"! {_name}, {_how}"] = ("linear", _name, _how, (2, 3, 8))


def network(name):
    if name == "linear":
        return Linear(), make_schema()
    schema = make_schema(("click", "cart", "buy"))
    changes = {"name": "wm", "embedding_dim": DIM, "hidden": (8,), "am_hidden": (), "norm": "batch"}
    options = config.default().model.to_dict() | changes | {"members": 2}
    return model_lib.make_model(schema, options), schema


def steps_of(case, count):
    """(state before, state after, metrics) of the steps of a case on so many devices."""
    of, name, options, _ = CASES[case]
    module, schema = network(of)
    section = {**SECTION, **SECTIONS, "name": name, **MOMENTS[name]}
    optimizers = {"embedding": optim.make_optimizer(section, STEPS)}
    optimizers["network"] = optim.make_optimizer({**SECTION, **SECTIONS}, STEPS)
    devices = jax.local_devices()[:count]
    layout = placing.Layout(schema, count) if count > 1 else None
    averaged = options.get("average", 0) > 0
    how = dict(init_scale=0.5, averaged=averaged, devices=devices, layout=layout)
    state = state_lib.make_init(module, schema, optimizers, **how)(jax.random.key(0))
    whole = lambda state: gathered(state_lib.fetch(state), layout)
    before, metrics = whole(state), []
    options = step_lib.Options(clip_norm=0.5, chunk=8, **options)
    step = step_lib.make_train_step(module, schema, optimizers, options, devices, layout=layout)
    for i in range(STEPS):
        real = 9 if i % 10 == 9 else SIZE  # the last devices get nothing
        batch = make_batch(i, SIZE, real, count, schema.num_types)
        state, found = step(state, state_lib.put_planned(batch, devices, layout))
        found = state_lib.fetch(found).as_dict()
        metrics.append({k: v.reshape(-1) if k == "p" else v[0] for k, v in found.items()})
    return before, whole(state), metrics


def gathered(state, layout):
    """A state of several devices with its table in the order of its rows."""
    if layout is None:
        return state
    at = placing.places(np.arange(layout.schema.num_rows), layout.schema.num_rows)
    whole = lambda x: x.reshape(-1, *x.shape[2:])[at]
    return state_lib.of_rows(whole, state, layout.num_devices)


def largest(one, other):
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    assert [np.shape(x) for x in one] == [np.shape(x) for x in other]
    return max(float(np.abs(np.float64(x) - y).max()) for x, y in zip(one, other) if np.size(x))


def main(home=""):
    found, kept = {}, [case for case in CASES if not home or not case.startswith("!")]
    for case in kept:
        before, after, metrics = steps_of(case, 1)
        for count in CASES[case][3]:
            theirs = steps_of(case, count)
            found[f"{case}: {count}"] = {
                "start": largest(before.replace(owner=()), theirs[0].replace(owner=())),
                "state": largest(after.replace(owner=()), theirs[1].replace(owner=())),
                "metrics": largest(metrics, theirs[2]),
                "moved": largest(after.params, before.params),
            }
    found["exchange"] = exchange()
    if home:
        found["codes"] = [train.main(arguments(home, "run"))]
        small = "--config.data.exchange_rows=2"
        found["codes"].append(train.main(arguments(home, "small", small)))
        found["codes"].append(train.main(arguments(home, "odd", "--config.data.batch_size=260")))
    print(json.dumps(found))


def exchange():
    """Bytes that a compiled step of a small DNN exchanges on all devices, and what is planned."""
    c, parts = test_memory.parts_of()
    planned = memory.plan(c, parts)
    made = benchmark.make_batches(parts.schema, "uniform", 1, test_memory.SIZE, parts.num_devices)
    placed = state_lib.put_planned(made[0], parts.devices, parts.layout)
    state = parts.begin()
    compiled = parts.train_step.lower(state, placed).compile()
    text, of = compiled.as_text(), compiled.memory_analysis()
    shards = (x for leaf in jax.tree.leaves(state) for x in leaf.addressable_shards)
    made_ahead = planned.batches * c.data.prefetch / (c.data.prefetch + 1)
    taken = of.argument_size_in_bytes + of.temp_size_in_bytes + made_ahead
    network = sum(x.size for x in jax.tree.leaves(state.params["network"]))
    return {
        "devices": planned.num_devices,
        "capacity": planned.capacity,
        "received": planned.received,
        "state": [planned.state, sum(x.data.nbytes for x in shards if not x.device.id)],
        "peak": planned.peak / taken,
        "network": network,
        **{name: operands(text, name) for name in ("all-to-all", "all-reduce", "all-gather")},
    }


def operands(text, name):
    """[type, numbers] of each array that the collectives of a name give, in the text of a program."""
    found = []
    for line in re.findall(rf"= (.*?) {name}(?:-start)?\(", text):
        for kind, shape in re.findall(r"([fsu]\d+|pred)\[([\d,]*)\]", line):
            found.append([kind, math.prod(int(size) for size in shape.split(",") if size)])
    return found


def arguments(home, name, *more):
    flags = [f"--config={ROOT / 'tests' / 'tiny.py'}:fm", f"--config.data.dir={home}/data"]
    return ["train", *flags, f"--workdir={home}/{name}", *more]


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """(what the program found, its stderr, its directory)."""
    home, environment = tmp_path_factory.mktemp("spread"), dict(os.environ)
    devices = "--xla_force_host_platform_device_count=8"
    environment |= {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.test_spread", str(home)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, home


@pytest.mark.parametrize("case", [f"{k}: {n}" for k in CASES if k[0] != "!" for n in CASES[k][3]])
def test_several_devices_do_what_one_does(spread, case):
    found = spread[0][case]
    assert found["start"] == 0 and found["moved"] > 0.1  # else agreement says nothing
    assert found["state"] < 1e-6 and found["metrics"] < 1e-5


def test_the_state_of_a_device_is_exact_and_the_peak_near_what_is_compiled(spread):
    found = spread[0]["exchange"]
    planned, real = found["state"]
    assert planned == real and 0.8 < found["peak"] < 1.2, found["peak"]


def test_a_compiled_step_exchanges_the_bytes_that_are_planned(spread):
    found = spread[0]["exchange"]
    count, rows = found["devices"], found["devices"] * found["capacity"]
    kinds = {kind: [n for k, n in found["all-to-all"] if k == kind] for kind in ("s32", "f32")}
    # What is asked for, the rows, and their gradients: of one another, and of a device itself.
    assert sum(kinds["s32"]) == rows and sum(kinds["f32"]) == 2 * rows * test_memory.DIM
    assert len(found["all-to-all"]) == len(kinds["s32"]) + len(kinds["f32"])
    exchanged = 4 * sum(n for _, n in found["all-to-all"]) * (count - 1) // count
    # The network's gradient in one sum; besides only what is one number each, of loss and norms.
    sums = sorted(n for _, n in found["all-reduce"])
    assert found["network"] <= sums[-1] < found["network"] + 8 and sum(sums[:-1]) < 16
    assert found["received"] == exchanged + 2 * 4 * found["network"] * (count - 1) // count
    assert found["all-gather"] == []


def test_a_run_on_eight_devices_is_read_by_one_and_goes_on_there(spread, capsys):
    found, _, home = spread
    assert found["codes"][0] == 0
    before = files.read_json(home / "run" / "metrics.json")
    assert evaluate.main(["evaluate", f"--workdir={home / 'run'}", "--split=test"]) == 0
    after = files.read_json(home / "run" / "metrics.json")
    assert after["test"]["logloss"] == pytest.approx(before["test"]["logloss"], abs=1e-6)
    rows = schema_lib.load(home / "run").num_rows  # FM: 4 columns and a first-order one
    assert before["parameters"]["embedding"] == rows * 5
    assert train.main(arguments(home, "run", "--config.train.epochs=2")) == 0
    assert "goes on from step 16 of 32" in capsys.readouterr().out


def test_mistakes_are_one_line(spread):
    found, err, _ = spread
    assert found["codes"][1:] == [2, 2]
    full, odd = [line for line in err.splitlines() if line.startswith("error: ")]
    assert full.startswith("error: config.data.exchange_rows: a device asks ")
    assert "rows of another one in a step, most of them of slot '" in full
    room, remedy = full.split("; set it to ")
    assert room.endswith("there is room for 2") and remedy.isdecimal()  # as a flag has it
    assert "260 rows do not divide over 8 devices; choose a multiple of 8" in odd


LAYOUTS = [(1, 2), (20, 8), (1024, 3), (5000, 2), (70_001, 8)]


def layout_of(num_rows, count, **more):
    slots = (Slot("a", "g", encoding="hash", rows=num_rows),)
    return placing.Layout(
        Schema("x", slots, rows_per_type=(1,), clicks_per_type=(1,)), count, **more
    )


@pytest.mark.parametrize("num_rows, count", LAYOUTS)
def test_every_row_has_one_place_and_comes_back(num_rows, count):
    layout, rows = layout_of(num_rows, count), np.arange(num_rows)
    table = np.random.default_rng(0).normal(size=(num_rows, 2))
    spread = layout.spread(table)
    assert spread.shape == (count, layout.rows, 2)
    for row in rows[:: max(num_rows // 50, 1)].tolist():  # the formula of the docstring
        s = 613 * row % 1024 * math.ceil(num_rows / 1024) + row // 1024
        np.testing.assert_array_equal(spread[s // layout.rows, s % layout.rows], table[row])
    at = placing.places(rows, num_rows)
    np.testing.assert_array_equal(spread.reshape(-1, 2)[at], table)
    np.testing.assert_array_equal(placing.rows_at(at, num_rows), rows)
    nowhere = np.setdiff1d(np.arange(placing.num_places(num_rows)), at)
    assert (placing.rows_at(nowhere, num_rows) >= num_rows).all()
    assert np.count_nonzero(spread) == np.count_nonzero(table)
    # The order of storage is the same for any number of devices, and neighbours are spread.
    flat = layout_of(num_rows, 5).spread(table).reshape(-1, 2)
    size = min(len(flat), count * layout.rows)
    np.testing.assert_array_equal(flat[:size], spread.reshape(-1, 2)[:size])
    first = at[: 10 * count] // layout.rows
    if num_rows >= 10 * count:
        assert np.bincount(first, minlength=count).max() <= 20


def test_a_plan_asks_each_row_once_of_the_device_that_has_it():
    layout, rng = layout_of(3000, 4), np.random.default_rng(1)
    table = rng.normal(size=(3000, 2))
    spread = np.concatenate([layout.spread(table), np.zeros((4, 1, 2))], axis=1)  # R: zeros
    ids = rng.integers(0, 3001, (4, 30, 5)).astype(np.int32)  # 3,000 is padding
    ids[:, :, 0] = 7  # of one slot, in every row
    plan = layout.plan(ids)
    capacity = layout.capacity(150)
    assert plan.send.shape == (4, 4, capacity) and plan.place.shape == (4, 150)
    padded = np.concatenate([table, np.zeros((1, 2))])
    for device in range(4):
        answers = [spread[owner, plan.send[device, owner]] for owner in range(4)]
        answers = np.concatenate([*answers, np.zeros((1, 2))])  # P * C: zeros
        found = answers[plan.place[device]].reshape(30, 5, 2)
        np.testing.assert_array_equal(found, padded[ids[device]])
        asked = (plan.send[device] < layout.rows).sum()
        assert asked == len(np.unique(ids[device][ids[device] < 3000]))


def test_occurrences_of_vectors_are_those_that_are_read():
    slots = (
        Slot("v", "g", kind="vector", encoding="identity", length=3, rows=4),
        Slot("a", "g", encoding="hash", rows=6),
    )
    schema = Schema("x", slots, rows_per_type=(1,), clicks_per_type=(1,))
    ids = np.array([[1, 2, 3, 4], [1, 2, 3, 9], [10, 10, 10, 5]], np.int32)
    rows, found = embedding.read(jax.numpy.ones((10, 2)), ids, schema.vectors)
    flat = placing.occurring(ids, schema.vectors)
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in rows]), flat)
    again = embedding.split(jax.numpy.ones((len(flat), 2)), ids, schema.vectors)
    assert [x.shape for x in again] == [x.shape for x in found]


def test_too_small_a_capacity_names_slot_count_and_option():
    layout = layout_of(3000, 2, exchange_rows=5)
    with pytest.raises(UserError, match="asks 6 rows of another one .* slot 'a', .* room for 5"):
        layout.plan(np.arange(20, dtype=np.int32).reshape(2, 10, 1)[:, ::1])
    assert layout_of(3000, 2, exchange_rows=7).plan(np.zeros((2, 9, 1), np.int32)) is not None


if __name__ == "__main__":
    main(*sys.argv[1:])
