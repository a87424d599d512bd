"""What the input pipeline and the loop cost: the train program against the bare step on batches made before.

    python benchmarks/throughput.py --config=experiments/quickstart.py:hmm
    python benchmarks/throughput.py --config=experiments/frappe.py:dnn --output=throughput.json

Both run in this process, in turns, on the same compiled step and the same shards: the program reads, shuffles, sends,
logs and checkpoints; the bare loop steps over batches that already lie on the device. Prints rows/s of each turn and
ends with `ratio program/bare: x.xx` (medians).
"""

import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # before what takes time to load
    from emofm_jax.training import huge_pages

    huge_pages.use(__file__)

import jax
from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax.data import batches, shards
from emofm_jax.training import build, loop
from emofm_jax.training import state as state_lib


def main(flags: absl_flags.FlagValues) -> None:
    config = flags.config
    splits = {name: shards.open_split(config.data.dir, name) for name in ("train", "valid")}
    with config.unlocked():
        config.train.max_steps = flags.steps
        config.train.epochs = 1 + flags.steps * config.data.batch_size // splits["train"].num_rows
        config.train.eval_every_steps = (
            10**9
        )  # the last step evaluates all the same; not part of the rate
    parts = build.make_parts(config, splits["train"].schema, flags.steps)
    source = batches.read(
        splits["train"], config.data.batch_size, shuffle_rows=config.data.shuffle_rows
    )
    host = [b.batch for b in itertools.islice(source, 64) if b.num_rows == config.data.batch_size]
    made = [state_lib.put_planned(batch, parts.devices, parts.layout) for batch in host]
    figures = {"bare": [], "program": []}
    bare(parts, made, 3, config.data.batch_size)  # compiles
    for turn in range(flags.turns):
        figures["bare"].append(bare(parts, made, flags.steps, config.data.batch_size))
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
            training = loop.run(config, Path(workdir), splits, parts).training
        figures["program"].append(training.rows_per_s)
        print(
            f"turn {turn + 1}: bare step {figures['bare'][-1]:,.0f}, program {figures['program'][-1]:,.0f} rows/s "
            f"(waiting for input {training.input_wait:.1%})",
            flush=True,
        )
    ratio = statistics.median(figures["program"]) / statistics.median(figures["bare"])
    if flags.output:
        Path(flags.output).write_text(
            json.dumps({**figures, "ratio": ratio, "steps": flags.steps}) + "\n"
        )
    print(f"ratio program/bare: {ratio:.2f}")


def bare(parts: build.Parts, made: list, steps: int, batch_size: int) -> float:
    """Rows/s of the step alone, over batches on the device."""
    state = parts.begin()
    state, metrics = parts.train_step(state, made[-1])
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for number in range(steps):
        before = metrics
        state, metrics = parts.train_step(state, made[number % len(made)])
        jax.block_until_ready(before.scalars)
    jax.block_until_ready(metrics)
    return steps * batch_size / (time.perf_counter() - start)


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_config(flags, argv)
    absl_flags.DEFINE_integer("steps", 300, "Steps of a turn.", flag_values=flags)
    absl_flags.DEFINE_integer("turns", 3, "Turns of each of the two.", flag_values=flags)
    absl_flags.DEFINE_string("output", "", "JSON file for the figures.", flag_values=flags)


if __name__ == "__main__":
    sys.exit(cli.run(main, _define))
