"""What k members cost against one network: a training step and calls of the scorer, in turns, in one run.

    python benchmarks/members.py [--members=4] [--hidden=400,400,400] [--members_hidden=200,200,200] [--turns=8]

A DNN on 26 slots of width 16 of a table of 1e5 rows (ids Zipf(1.05)), B = 4096, lazy Adam; each of `members_share`
beside one network, and each with `members_rows=split`. `members_hidden` are the widths of the members where they
differ from the one's. Times are CPU seconds of the process, all threads together, which other programs disturb
least: medians over turns, and best turns; then medians by the clock.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags as absl_flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import step as step_benchmark
from emofm_jax import cli, config
from emofm_jax.data import features as features_lib
from emofm_jax.models.members import SHARES
from emofm_jax.scoring import compiled
from emofm_jax.scoring.network import Network
from emofm_jax.training import optim, state, step

# rows of the table, B, S, D, batches made ahead, rows of the scorer's calls
SIZES = {
    "full": (10**5, 4096, 26, 16, 4, (1, 512)),
    "tiny": (10**3, 64, 4, 8, 2, (1, 16)),
}


def define(flags: absl_flags.FlagValues, argv) -> None:
    of = {"flag_values": flags}
    absl_flags.DEFINE_enum("size", "full", list(SIZES), "full, or tiny to see that it runs", **of)
    absl_flags.DEFINE_integer("members", 4, "k", lower_bound=2, **of)
    absl_flags.DEFINE_integer("turns", 8, "timed steps and calls of each case", lower_bound=1, **of)
    absl_flags.DEFINE_list("hidden", ["400", "400", "400"], "widths of the MLP", **of)
    absl_flags.DEFINE_list("members_hidden", [], "widths of each member; empty = hidden", **of)


def make_case(options: dict, schema, batches: list) -> dict[str, Callable]:
    """{what is timed: a function that does it once}."""
    network = Network(schema, options, "float32")
    section = config.default().optim.embedding.to_dict()
    optimizers = {key: optim.make_optimizer(section, 1) for key in state.SECTIONS}
    init = state.make_init(network.module, schema, optimizers, init_scale=0.01)
    train_step = step.make_train_step(network.module, schema, optimizers)
    held = {"state": init(jax.random.key(0)), "turn": 0}

    def train():
        held["turn"] += 1
        batch = batches[held["turn"] % len(batches)]
        held["state"], _ = train_step(held["state"], batch)
        jax.block_until_ready(held["state"].step)

    params = held["state"].params | {"stats": held["state"].stats}
    params = jax.tree.map(lambda x: x.copy(), params)
    return {"step": train, "call": compiled.Compiled(schema, params, network.fn)}


def measure(flags) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Seconds of each (case, what is timed), one a turn: of the processors, and by the clock."""
    rows, batch_size, num_slots, dim, num_batches, calls = SIZES[flags.size]
    schema = step_benchmark.make_schema(rows, num_slots)
    made = step_benchmark.make_batches(schema, "zipf", num_batches, batch_size, 1)
    batches = [state.put_batch(batch, jax.local_devices()[:1]) for batch in made]
    base = config.default().model.to_dict()
    base |= {"name": "dnn", "embedding_dim": dim, "hidden": tuple(map(int, flags.hidden))}
    several = base | {"members": flags.members}
    several |= {"hidden": tuple(map(int, flags.members_hidden or flags.hidden))}
    cases = {"one": base} | {share: several | {"members_share": share} for share in SHARES}
    split = {"members_rows": "split"}
    cases |= {f"{share}, split": cases[share] | split for share in SHARES}
    cases = {name: make_case(options, schema, batches) for name, options in cases.items()}
    features = {n: features_lib.example(schema, n) for n in calls}

    found: dict = {}
    for turn in range(-2, flags.turns):  # the first turns compile
        for name, case in cases.items():
            timed = {"step": (case["step"], 1)}
            for n in () if name.endswith("split") else calls:  # it scores as it does without
                call = lambda n=n, case=case: jax.block_until_ready(case["call"](features[n]))
                timed[f"scorer, {n}"] = call, 20
            for what, (function, repeats) in timed.items():
                start = time.process_time(), time.perf_counter()
                for _ in range(repeats):
                    function()
                end = time.process_time(), time.perf_counter()
                if turn >= 0:
                    taken = tuple((b - a) / repeats for a, b in zip(start, end))
                    found.setdefault((name, what), []).append(taken)
    return found


def main(flags) -> None:
    found = measure(flags)
    of = {case: [*zip(*times)] for case, times in found.items()}
    middle, clock = ({case: statistics.median(x[i]) for case, x in of.items()} for i in (0, 1))
    best = {case: min(x[0]) for case, x in of.items()}
    for (name, what), seconds in middle.items():
        ratios = [x[name, what] / x["one", what] for x in (middle, best, clock)]
        print(
            f"{name:14} {what:12} {1e3 * seconds:9.3f} ms {ratios[0]:6.2f} of one's; best "
            f"{ratios[1]:6.2f}; by the clock {ratios[2]:6.2f}"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, define))
