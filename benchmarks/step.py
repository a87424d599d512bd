"""Does a training step cost the batch, or the table? One step at two table sizes, interleaved in one run.

    python benchmarks/step.py [--output=F.json]
    python benchmarks/step.py --devices            the table over 8 simulated devices, all on one core

An MLP (400, 400, 400) on 26 slots of width 16, B = 4096, lazy Adam, under pmap on the local devices. Ids of a slot are
Zipf(1.05), their ranks scattered over all its rows; uniform ids stand beside them as the worst case. Each state sees
its own pre-made batches in turn, the four cases take turns step by step, and a time is the median over steps from
call to finished state. The last line is the ratio that docs/performance.md quotes:

    ratio V=1e7/V=1e5: x.xx

On several devices each has its share of the table, and the host's plan is made before:

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python benchmarks/step.py

With --devices the network is a sum, so that the step is the table's part; the same 4,096 rows are those of one device,
or of several. Times are seconds of the processor, the least of several steps, taken in turn. The last line:

    ratio P=8/P=1: x.xx
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # before what takes time to load
    from emofm_jax.training import huge_pages

    huge_pages.use(__file__)

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags
from flax import linen as nn

from emofm_jax import cli, config
from emofm_jax.data.batches import Batch
from emofm_jax.data.placing import Layout
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.models import build as model_lib
from emofm_jax.nn import losses
from emofm_jax.training import optim, state, step

EXPONENT = 1.05
HIDDEN = (400, 400, 400)
# rows of the two tables, B, S, D, batches made ahead, timed steps of each case
SIZES = {
    "full": ((10**5, 10**7), 4096, 26, 16, 8, 60),
    "tiny": ((10**3, 10**4), 64, 4, 8, 2, 3),
}


def define(flags: absl_flags.FlagValues, argv) -> None:
    absl_flags.DEFINE_enum(
        "size", "full", list(SIZES), "full, or tiny to see that it runs", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "steps", 0, "timed steps of each case; 0 = as `size` has it", flag_values=flags
    )
    absl_flags.DEFINE_string("output", "", "JSON file for the figures", flag_values=flags)
    absl_flags.DEFINE_bool("devices", False, "the table over several devices", flag_values=flags)


def make_schema(num_rows: int, num_slots: int) -> Schema:
    """num_slots slots that share num_rows table rows evenly."""
    bounds = np.linspace(0, num_rows, num_slots + 1).astype(int)
    slots = (
        Slot(f"C{i}", "all", encoding="hash", rows=int(n)) for i, n in enumerate(np.diff(bounds))
    )
    return Schema(f"{num_rows} rows", tuple(slots), rows_per_type=(1000,), clicks_per_type=(100,))


def make_batches(
    schema: Schema, kind: str, count: int, batch_size: int, num_devices: int
) -> list[Batch]:
    """Random batches whose ids follow `kind`, zipf or uniform."""
    rng = np.random.default_rng(0)
    ids = np.empty((count, batch_size, schema.num_slots), np.int32)
    for column, (slot, offset) in enumerate(zip(schema.slots, schema.offsets)):
        rows = slot.rows
        if kind == "zipf":
            cumulative = np.cumsum(np.arange(1, rows + 1) ** -EXPONENT)
            rank = np.searchsorted(cumulative, rng.random((count, batch_size)) * cumulative[-1])
            ids[:, :, column] = rng.permutation(rows)[rank] + offset
        else:
            ids[:, :, column] = rng.integers(0, rows, (count, batch_size)) + offset
    label = (rng.random((count, batch_size)) < 0.1).astype(np.float32)

    def split(array):
        return array.reshape(num_devices, -1, *array.shape[1:])

    unknown, ones = np.full(batch_size, -1, np.int32), np.ones(batch_size, np.float32)
    return [
        Batch(split(ids[i]), None, split(label[i]), split(unknown.copy()), split(ones.copy()))
        for i in range(count)
    ]


def gemm(size: int):
    """A function that times one f32 product of [size, size] matrices, in GFLOP/s."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.dot)
    product(a, a).block_until_ready()

    def run() -> float:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        return 2e-9 * size**3 / (time.perf_counter() - start)

    return run


def make_step(schema: Schema, embedding_dim: int, layout: Layout | None):
    """(state, train step) of the MLP with lazy Adam."""
    defaults = config.default()
    options = {
        **defaults.model.to_dict(),
        "name": "wm",
        "embedding_dim": embedding_dim,
        "hidden": HIDDEN,
    }
    module = model_lib.make_model(schema, options)
    optimizers = {k: optim.make_optimizer(defaults.optim[k].to_dict(), 1) for k in state.SECTIONS}
    init = state.make_init(module, schema, optimizers, init_scale=0.01, layout=layout)
    return init(jax.random.key(0)), step.make_train_step(module, schema, optimizers, layout=layout)


def measure(sizes, batch_size, num_slots, embedding_dim, num_batches, num_steps) -> dict:
    """Times num_steps steps of every (table, kind of ids), in turn; see the keys it returns."""
    local = jax.local_devices()
    num_devices = len(local)
    batch_size -= batch_size % num_devices
    states, steps, batches = {}, {}, {}
    for rows in sizes:
        schema = make_schema(rows, num_slots)
        layout = Layout(schema, num_devices) if num_devices > 1 else None
        states[rows], steps[rows] = make_step(schema, embedding_dim, layout)
        for kind in ("zipf", "uniform"):
            made = make_batches(schema, kind, num_batches, batch_size, num_devices)
            place = lambda batch, layout=layout: state.put_planned(batch, local, layout)
            batches[rows, kind] = [place(batch) for batch in made]
    product = gemm(2048 if batch_size > 1000 else 256)
    times, distinct, peak = {case: [] for case in batches}, {case: [] for case in batches}, []
    for turn in range(-2, num_steps):  # the first turns compile and touch the memory
        for rows, kind in batches:
            batch = batches[rows, kind][turn % num_batches]
            start = time.perf_counter()
            states[rows], metrics = jax.block_until_ready(steps[rows](states[rows], batch))
            if turn >= 0:
                times[rows, kind].append(time.perf_counter() - start)
                distinct[rows, kind].append(int(state.fetch(metrics["num_rows"])[0]))
        peak.append(product())
    widths = [num_slots * embedding_dim, *HIDDEN, 1]
    # Forward, gradient of the input and of the weights: two operations a multiplication and addition, each.
    flops = 6.0 * batch_size * sum(a * b for a, b in zip(widths, widths[1:]))
    best = float(np.max(peak))
    cases = []
    for (rows, kind), seconds in times.items():
        median = float(np.median(seconds))
        cases.append(
            {
                "table_rows": rows,
                "ids": kind,
                "ms": 1e3 * median,
                "ms_quartiles": [1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.75))],
                "rows_per_s": batch_size / median,
                "distinct_rows": float(np.mean(distinct[rows, kind])),
                "share_of_gemm_peak": 1e-9 * flops / median / best,
            }
        )
    small, large = sizes
    ratio = {
        k: float(np.median(times[large, k]) / np.median(times[small, k]))
        for k in ("zipf", "uniform")
    }
    return {
        "device": f"{num_devices} x {jax.local_devices()[0].device_kind}",
        "jax": jax.__version__,
        "batch_size": batch_size,
        "steps": num_steps,
        "gemm_gflops": best,
        "cases": cases,
        "ratio": ratio,
    }


class Sum(nn.Module):
    """logit = bias + the sum of e: no network to speak of."""

    embedding_dim: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, e, weight=None, *, train=False):
        bias = self.param("bias", nn.initializers.zeros, ())
        return losses.Outputs(logits=bias + e.sum((1, 2)), type_logits=None, aux_loss=None)


def measure_devices(num_rows, size, num_slots, dim, num_steps, counts=(1, 2, 4, 8)) -> dict:
    """{P: {"ms": .., "plan_ms": ..}} of the table's part of a step, `size` rows over P devices."""
    schema, cases = make_schema(num_rows, num_slots), {}
    defaults = config.default().optim
    optimizers = {k: optim.make_optimizer(defaults[k].to_dict(), 1) for k in state.SECTIONS}
    network = Sum(dim)
    for count in counts:
        devices, layout = jax.local_devices()[:count], Layout(schema, count) if count > 1 else None
        how = {"init_scale": 0.01, "devices": devices, "layout": layout}
        begun = state.make_init(network, schema, optimizers, **how)(jax.random.key(0))
        moves = step.make_train_step(network, schema, optimizers, devices=devices, layout=layout)
        batch = make_batches(schema, "zipf", 1, size, count)[0]
        cases[count] = [begun, moves, state.put_planned(batch, devices, layout), batch, layout]
    times = {count: {"ms": [], "plan_ms": []} for count in counts}
    for turn in range(num_steps + 2):  # the first turns compile and touch the memory
        for count, case in cases.items():
            begun, moves, placed, batch, layout = case
            start = time.process_time()
            case[0], metrics = jax.block_until_ready(moves(begun, placed))
            moved = time.process_time()
            if layout is not None:
                layout.plan(batch.ids)
            if turn > 1:
                times[count]["ms"].append(1e3 * (moved - start))
                times[count]["plan_ms"].append(1e3 * (time.process_time() - moved))
    return {count: {k: min(v) for k, v in of.items()} for count, of in times.items()}


def main_devices(flags) -> None:
    if jax.local_device_count() < 8:  # simulated ones must be asked for before jax starts
        simulated = "--xla_force_host_platform_device_count=8"
        flag = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {simulated}".strip()}
        sys.stdout.flush()
        command = [sys.executable, __file__, "--devices", f"--size={flags.size}"]
        command += [f"--steps={flags.steps}"] + [f"--output={flags.output}"] * bool(flags.output)
        sys.exit(
            subprocess.run(command, env=os.environ | flag | {"JAX_PLATFORMS": "cpu"}).returncode
        )
    (rows, _), size, slots, dim, _, steps = SIZES[flags.size]
    found = measure_devices(rows, size, slots, dim, flags.steps or min(steps, 20))
    print(f"{slots} slots, V = {rows:,}, D = {dim}, {size:,} rows over P devices")
    for count, of in found.items():
        print(f"P = {count}: {of['ms']:8.1f} ms a step, plan {of['plan_ms']:6.1f} ms on the host")
    if flags.output:
        Path(flags.output).write_text(json.dumps(found, indent=1) + "\n")
    print(f"ratio P=8/P=1: {found[8]['ms'] / found[1]['ms']:.2f}")


def main(flags) -> None:
    if flags.devices:
        main_devices(flags)
        return
    sizes, *shape, num_steps = SIZES[flags.size]
    found = measure(sizes, *shape, flags.steps or num_steps)
    print(
        f"{found['device']}, jax {found['jax']}, B={found['batch_size']}, {found['steps']} steps of each case"
    )
    print(f"f32 GEMM peak in this run: {found['gemm_gflops']:.0f} GFLOP/s")
    print(
        f"{'table rows':>10}  {'ids':8}{'ms/step':>8}{'quartiles':>14}{'rows/s':>10}{'distinct':>10}{'of peak':>9}"
    )
    for case in found["cases"]:
        quartiles = "-".join(f"{q:.1f}" for q in case["ms_quartiles"])
        print(
            f"{case['table_rows']:10.0e}  {case['ids']:8}{case['ms']:8.1f}{quartiles:>14}{case['rows_per_s']:10,.0f}"
            f"{case['distinct_rows']:10,.0f}{case['share_of_gemm_peak']:9.0%}"
        )
    if flags.output:
        Path(flags.output).write_text(json.dumps(found, indent=1) + "\n")
    small, large = (f"{rows:.0e}".replace("e+0", "e") for rows in sizes)
    print(f"uniform ids: ratio {found['ratio']['uniform']:.2f}")
    print(f"ratio V={large}/V={small}: {found['ratio']['zipf']:.2f}")


if __name__ == "__main__":
    sys.exit(cli.run(main, define))
