"""Rows/s of the training step of several models, in turns, in one run.

    python benchmarks/models.py --experiment=experiments/frappe.py --models=dnn,dcnv2,destine
    python benchmarks/models.py --experiment=experiments/quickstart.py --mixers --batch_sizes=512,4096

The first takes the named arguments of an experiment file; its shards must be there. The second compares HMM with its
defaults (four groups, four types) to a WM of the same depth and as many multiply-adds, whose widths it computes, and to
the other mixers. Prints, for each, multiply-adds of a row, milliseconds of a step (median), rows/s, and the share of
this machine's own matrix-product rate (measured beside it) that the products alone would account for.
"""

import bisect
import importlib.util
import itertools
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # before what takes time to load
    from emofm_jax.training import huge_pages

    huge_pages.use(__file__)

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags
from ml_collections import ConfigDict

from emofm_jax import cli
from emofm_jax.data import batches, shards
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.nn.mixers import MIXERS
from emofm_jax.training import build
from emofm_jax.training import state as state_lib

NUM_BATCHES = 8


def main(flags: absl_flags.FlagValues) -> None:
    path = flags.experiment
    if flags.mixers == bool(flags.models):
        raise UserError("--models, --mixers: give one of them")
    if not all(size.isdigit() and int(size) for size in flags.batch_sizes):
        raise UserError(f"--batch_sizes={','.join(flags.batch_sizes)}: they must be whole numbers")
    configs = _mixers(path) if flags.mixers else {name: _load(path, name) for name in flags.models}
    for batch_size in [int(size) for size in flags.batch_sizes] or [None]:
        for config in configs.values():
            with config.unlocked():
                config.data.batch_size = batch_size or config.data.batch_size
        compare(configs, flags.turns)


def compare(configs: dict[str, ConfigDict], turns: int) -> None:
    """Prints the table of one batch size."""
    cases = {name: Case(config) for name, config in configs.items()}
    peak, times = [], {name: [] for name in cases}
    for _ in range(turns):
        peak.append(matrix_rate())
        for name, case in cases.items():
            times[name] += case.run()
    rate = statistics.median(peak)
    first = next(iter(cases.values()))
    print(f"B = {first.batch_size:,}; matrix product on this machine {rate / 1e9:.0f} GFLOP/s")
    print(
        f"{'model':>16}  {'multiply-adds':>13}  {'ms/step':>8}  {'rows/s':>8}  {'of peak':>7}  {'against first':>13}"
    )
    base = statistics.median(next(iter(times.values())))
    for name, case in cases.items():
        seconds = statistics.median(times[name])
        share = (
            6 * case.multiply_adds * case.batch_size / seconds / rate
        )  # forward and twice backward, two FLOP each
        print(
            f"{name:>16}  {case.multiply_adds:13,}  {seconds * 1e3:8.1f}  {case.batch_size / seconds:8,.0f}  "
            f"{share:7.0%}  {base / seconds:13.2f}",
            flush=True,
        )


class Case:
    """A compiled step with its state and batches on the device."""

    def __init__(self, config: ConfigDict):
        split = shards.open_split(Path(config.data.dir), "train")
        self.batch_size = config.data.batch_size
        self.parts = build.make_parts(config, split.schema, 1000)
        source = batches.read(split, self.batch_size, shuffle_rows=config.data.shuffle_rows, seed=0)
        host = itertools.islice(
            (b.batch for b in source if b.num_rows == self.batch_size), NUM_BATCHES
        )
        self.batches = [
            state_lib.put_planned(batch, self.parts.devices, self.parts.layout) for batch in host
        ]
        if not self.batches:
            raise UserError(
                f"{config.data.dir}: fewer rows than a batch of {self.batch_size}; take a smaller one"
            )
        self.state = self.parts.begin()
        module = model_lib.make_model(split.schema, config.model.to_dict())
        variables = {"params": self.state.params["network"], "batch_stats": self.state.stats}
        self.multiply_adds = multiply_adds(module, variables, split.schema.num_slots)
        self.run()  # compiles

    def run(self) -> list[float]:
        """Seconds of each of the steps over the batches."""
        seconds = []
        for batch in self.batches:
            start = time.perf_counter()
            self.state, _ = self.parts.train_step(self.state, batch)
            jax.block_until_ready(self.state.step)
            seconds.append(time.perf_counter() - start)
        return seconds


def multiply_adds(module, variables, num_slots: int) -> int:
    """Of a row: what a second row adds, so that products made once a batch are left out."""
    rows = [
        jax.ShapeDtypeStruct((n, num_slots, model_lib.table_width(module)), np.float32)
        for n in (1, 2)
    ]
    one, two = (count_multiply_adds(jax.make_jaxpr(module.apply)(variables, e).jaxpr) for e in rows)
    return two - one


def count_multiply_adds(jaxpr) -> int:
    """Of the matrix products of a program; elementwise work is not counted."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            count += equation.outvars[0].aval.size * int(
                np.prod([shape[axis] for axis in contracted])
            )
        count += sum(
            count_multiply_adds(inner)
            for inner in jax.extend.core.jaxprs_in_params(equation.params)
        )
    return count


def matrix_rate() -> float:
    """FLOP/s of float32 products [4096, 512] [512, 512]."""
    x, kernel = (
        jnp.asarray(np.random.default_rng(0).normal(size=(n, 512)), jnp.float32)
        for n in (4096, 512)
    )
    product = jax.jit(jnp.matmul)
    product(x, kernel).block_until_ready()
    start = time.perf_counter()
    for _ in range(20):
        y = product(x, kernel)
    y.block_until_ready()
    return 20 * 2 * 4096 * 512 * 512 / (time.perf_counter() - start)


def _load(path: str, argument: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def _mixers(path: str) -> dict[str, ConfigDict]:
    """WM of as many multiply-adds and layers as HMM; HMM with the model's default sizes and each mixer; HM."""
    configs = {}
    for kind in MIXERS:
        config = _load(path, "hmm")
        config.model.stage1 = config.model.stage2 = (256, 128)
        config.model.mixer.kind = kind
        configs[f"hmm {kind}"] = config
    hmm = configs["hmm cross_attention"]
    schema = shards.open_split(Path(hmm.data.dir), "train").schema
    wm = _load(path, "wm")
    target = _multiply_adds(schema, hmm.model.to_dict())
    enough = lambda width: (
        _multiply_adds(schema, wm.model.to_dict() | {"hidden": (width,) * 4}) >= target
    )
    width = bisect.bisect_left(range(4096), True, key=enough)
    wm.model.hidden = (width,) * 4
    return {f"wm 4 x {width}": wm} | configs


def _multiply_adds(schema, options) -> int:
    module = model_lib.make_model(schema, options)
    variables = jax.eval_shape(lambda key: model_lib.init(module, key, schema), jax.random.key(0))
    return multiply_adds(module, variables, schema.num_slots)


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    absl_flags.DEFINE_string("experiment", None, "Experiment file.", flag_values=flags)
    absl_flags.DEFINE_list("models", [], "Its arguments, one a model.", flag_values=flags)
    absl_flags.DEFINE_bool("mixers", False, "Compare mixers and WM instead.", flag_values=flags)
    absl_flags.DEFINE_list("batch_sizes", [], "Instead of the experiment's.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "turns", 3, f"Turns of {NUM_BATCHES} steps of each.", flag_values=flags
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, _define))
