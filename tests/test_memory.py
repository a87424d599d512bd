"""The plan of a step: bytes of the state as arrays have them, the peak as the compiler finds it."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from benchmarks import step as benchmark
from emofm_jax import config as config_lib
from emofm_jax import train
from emofm_jax.errors import UserError
from emofm_jax.training import build, memory
from emofm_jax.training import state as state_lib

SLOTS, ROWS, SIZE, DIM = 6, 3000, 256, 8
KEPT = ("table", "moments of the table", "network and its moments")  # in a checkpoint


def parts_of(num_devices=0, model="dnn", size=SIZE, **changes):
    c = config_lib.default()
    c.update({"model": {"name": model, "embedding_dim": DIM, "hidden": (64, 32)}})
    c.data.update({"batch_size": size, "eval_batch_size": size})
    c.optim.embedding.update(changes)
    schema = benchmark.make_schema(ROWS, SLOTS)
    return c, build.make_parts(c, schema, num_devices=num_devices)


@pytest.mark.parametrize("changes", [{}, {"name": "sgd", "updates": "dense"}])
def test_state_is_exact_and_the_peak_near_what_is_compiled(changes):
    c, parts = parts_of(**changes)
    found, state = memory.plan(c, parts), parts.init()
    bytes_of = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert found.state == bytes_of(state)
    assert found.table == ROWS * DIM * 4 == bytes_of(state.params["embedding"])
    assert found.moments == bytes_of(state.opt_state["embedding"])
    assert found.scratch == ROWS * 4 and found.averages == 0

    assert 0.8 < found.peak / taken_by(c, parts, found) < 1.2


def taken_by(c, parts, found):
    """Bytes that the compiler finds for a step, and those of batches made ahead."""
    size = c.data.batch_size
    (batch,) = benchmark.make_batches(parts.schema, "uniform", 1, size, len(parts.devices))
    placed = state_lib.put_batch(batch, parts.devices)
    compiled = parts.train_step.lower(parts.init(), placed).compile().memory_analysis()
    made_ahead = found.batches * c.data.prefetch / (c.data.prefetch + 1)
    return compiled.argument_size_in_bytes + compiled.temp_size_in_bytes + made_ahead


@pytest.mark.parametrize("model", ["lr", "fm"])
def test_rows_of_a_large_batch_count_where_the_network_is_small(model):
    """Their sums come when the activations are gone: rows, gradients and sums at once."""
    c, parts = parts_of(model=model, size=4096)
    found = memory.plan(c, parts)
    assert found.occurrences > found.state
    assert 0.9 < found.peak / taken_by(c, parts, found) < 1.1


def test_devices_share_rows_and_receive_from_all_others():
    c, one = parts_of()
    alone, many = memory.plan(c, one), memory.plan(*parts_of(64))
    assert alone.received == 0 and alone.num_rows == SIZE and many.num_rows == SIZE // 64
    network = 4 * ((SLOTS * DIM + 1) * 64 + 65 * 32 + 33)
    # 4 rows of 6 ids: 24 / 64 of another one if even, and six deviations and 8 more, at most all 24.
    assert many.capacity == 13 and alone.capacity == 0
    # Of each other device: what it asks of this one, the rows asked of it, gradients of its own.
    assert many.received == 2 * network * 63 // 64 + 63 * 13 * (4 + 2 * 4 * DIM)
    # ceil(3,000 / 1,024) = 3 rows of each of 1,024 classes, of which a device has 16.
    assert many.device_rows == 48 and many.table == 48 * DIM * 4 and many.scratch == 48 * 4
    assert many.gradients == network and many.network == alone.network


def test_the_plan_is_printed_and_nothing_is_made(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [f"--config={train.__file__.replace('emofm_jax/train.py', 'tests/tiny.py')}:wm"]
    flags += ["--plan", "--num_devices=64"]
    assert train.main(["train", *flags, f"--config.data.dir={runs / 'data'}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "64 devices, 4 rows of a batch on each"
    rows = int(out[1].split()[2].replace(",", ""))
    shown = {line[2:32].strip(): line.split()[-2] for line in out[2:]}
    here = 1024 * -(-rows // 1024) // 64  # rows of a device
    assert shown["table"] == f"{here * 4 * 4:,}" and "in all" in shown and "averages" not in shown
    kept = [int(shown[name].replace(",", "")) for name in KEPT]
    assert shown["copied for a checkpoint"] == f"{sum(kept):,}"
    assert not [*tmp_path.iterdir()]

    assert train.main(["train", *flags, "--config.data.dir=none"]) == 2
    assert "none: a plan needs the schema of prepared data; run" in capsys.readouterr().err
    assert train.main(["train", *flags[:1], "--workdir=x", "--num_devices=2"]) == 2
    assert "--num_devices=2: it is for --plan" in capsys.readouterr().err


def test_too_little_memory_is_one_line_with_the_shares(monkeypatch):
    c, parts = parts_of()
    monkeypatch.setattr(memory, "_of_machine", lambda: 1 << 18)
    said = "table and moments 0.3 MiB, activations .*, a checkpoint's copy 0.3 MiB; --plan has all"
    with pytest.raises(UserError, match=said):
        memory.check(c, parts)

    # The step fits, and would be killed at the first checkpoint, which on a CPU is a copy.
    found = memory.plan(c, parts)
    monkeypatch.setattr(memory, "_of_machine", lambda: found.peak + found.copied - 1)
    with pytest.raises(UserError, match="a checkpoint's copy"):
        memory.check(c, parts)
    monkeypatch.setattr(memory, "_of_machine", lambda: found.peak + found.copied)
    assert memory.check(c, parts).endswith("MiB while a checkpoint is written)")

    # Devices of a CPU share its memory; the copy has the network once.
    c, parts = parts_of(2)
    parts = dataclasses.replace(parts, devices=2 * parts.devices)
    found = memory.plan(c, parts)
    both = 2 * (found.peak + found.copied) - found.network
    monkeypatch.setattr(memory, "_of_machine", lambda: both - 1)
    with pytest.raises(UserError, match="a checkpoint's copy"):
        memory.check(c, parts)
    monkeypatch.setattr(memory, "_of_machine", lambda: both)
    memory.check(c, parts)


class Listed(nn.Module):
    """A model of one's own, with a field that has no hash."""

    size: Any

    @nn.compact
    def __call__(self, e, types, train):
        return nn.Dense(int(self.size[0]))(e.reshape(len(e), -1)).sum(-1)


def test_a_model_is_traced_once_for_runs_of_one_shape(monkeypatch):
    traced, trace = [], jax.vjp
    monkeypatch.setattr(jax, "vjp", lambda *args: traced.append(args) or trace(*args))
    memory._residuals.cache_clear()
    c, parts = parts_of()
    assert memory.plan(c, parts) == memory.plan(c, parts) and len(traced) == 1
    assert memory.plan(*parts_of(64)).activations < memory.plan(c, parts).activations
    assert len(traced) == 2


def test_a_model_with_a_field_that_has_no_hash_is_planned(monkeypatch):
    c, parts = parts_of()
    monkeypatch.setattr(memory.model_lib, "table_width", lambda module: DIM)
    rows, kept = jax.ShapeDtypeStruct((SIZE, SLOTS, DIM), np.float32), []
    for module in (Listed((64,)), Listed(np.array([64]))):
        network = jax.eval_shape(module.init, jax.random.key(0), rows, None, False)["params"]
        state = jax.eval_shape(parts.init)
        state = state.replace(params=state.params | {"network": network}, stats={})
        kept.append(memory._kept(dataclasses.replace(parts, module=module), state, SIZE))
    with pytest.raises(TypeError, match="unhashable"):
        hash(module)
    assert kept[0] == kept[1] > 0


def test_each_value_is_kept_once():
    """And not what is moved, or a parameter; but what is scaled."""

    def kept(w, x, scale):
        twice = [jax.numpy.exp(x) for _ in range(2)]
        parts = jax.numpy.exp(x[:16] + 1), jax.numpy.exp(x[16:] + 1)  # of one, not equal
        return [*twice, x[:, 1:], x.T, (x - scale) * 2.0, w.T, x @ w, *parts]

    shapes = [(8, 16), (32, 8), (1, 8)]  # of a parameter, rows, a number a column
    traced = jax.make_jaxpr(kept)(*(jax.ShapeDtypeStruct(x, np.float32) for x in shapes)).jaxpr
    assert memory._num_distinct_bytes(traced, 1) == 4 * (4 * 32 * 8 + 32 * 16)
