"""The scorer against the same models in PyTorch; how fast raw values are encoded, and files scored.

    python benchmarks/scorer.py [--models=hmm,dnn] [--batch_sizes=1,64,4096] [--turns=8]     needs torch==2.13.0
    python benchmarks/scorer.py --encode
    python benchmarks/scorer.py --predict --workdir=runs/quickstart --input=data/quickstart/train

The first compares, in turns in one process and with as many threads, `scorer(features)` (its checks included),
`jax.jit` of `scorer.fn`, and the model written by hand in PyTorch (scorer_torch.py), eager and compiled (inductor,
weights frozen), HMM with two forms of attention of which the faster counts. Both sides get encoded features, one array
a slot, on the host. Models: HMM with the quickstart's slots and sizes, DNN 400x3 with 26 slots; fresh weights and
random numbers on top, so that none is zero; all logits must agree to 1e-4. JAX runs with
`jax_cpu_enable_async_dispatch` off: the thread that asks does the work, as PyTorch's does (`--asynchronous` for JAX's
default). A time is the median over turns of a turn's median; the best turn tells of a disturbed machine.

The second encodes Arrow tables of 65,536 rows of the values of `benchmarks/prepare.py`. The third runs `predict` on a
split that was prepared and the scorer alone, in batches of the same size, on the same rows' features in memory; neither
time has the start of the process, loading and compilation in it.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa

from emofm_jax import config as config_lib
from emofm_jax import predict as predict_lib
from emofm_jax.data import features as features_lib
from emofm_jax.data import shards, synthetic
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.synthetic import population
from emofm_jax.models import build as model_lib
from emofm_jax.scoring import row_files
from emofm_jax.scoring import scorer as scorer_lib
from emofm_jax.training import checkpoint

TOLERANCE = 1e-4  # of logits
ENCODE_ROWS, ENCODE_CALLS = 65_536, 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="hmm,dnn")
    parser.add_argument("--batch_sizes", default="1,64,4096")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument(
        "--asynchronous", action="store_true", help="leave JAX's asynchronous dispatch on"
    )
    parser.add_argument("--encode", action="store_true")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--workdir", help="predict: a trained run")
    parser.add_argument("--input", help="predict: a split that was prepared for it")
    args = parser.parse_args()
    if args.encode:
        encode()
    elif args.predict:
        if not (args.workdir and args.input):
            parser.error("--predict needs --workdir and --input")
        predict(args.workdir, Path(args.input))
    else:
        if not importlib.util.find_spec("torch"):
            sys.exit("benchmarks/scorer.py: torch is not there; pip install torch==2.13.0")
        jax.config.update("jax_cpu_enable_async_dispatch", args.asynchronous)
        compare(args.models.split(","), [int(b) for b in args.batch_sizes.split(",")], args.turns)


# The comparison.


def compare(names: list[str], batch_sizes: list[int], turns: int) -> None:
    """Prints a table a model."""
    import scorer_torch
    import torch

    torch.set_num_threads(os.cpu_count())
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, {os.cpu_count()} threads each",
        flush=True,
    )
    for name in names:
        with tempfile.TemporaryDirectory() as workdir:
            write_run(name, Path(workdir))
            scorer = scorer_lib.load_scorer(workdir)
        print(
            f"{name}: {scorer.schema.num_slots} slots, {scorer.schema.num_rows:,} rows of the table"
        )
        for batch_size in batch_sizes:
            features = features_lib.example(scorer.schema, batch_size)
            calls = our_calls(scorer, features) | scorer_torch.calls(name, scorer, features)
            show(batch_size, measure(calls, turns, TOLERANCE))


def our_calls(scorer: scorer_lib.Scorer, features: dict) -> dict:
    fast = jax.jit(scorer.fn)
    return {
        "scorer(features)": lambda: scorer(features),
        "jit(scorer.fn)": lambda: fast(scorer.params, features),
    }


def measure(calls: dict, turns: int, tolerance: float) -> dict[str, list[float]]:
    """{name: the median seconds of each turn}, after comparing what the calls return."""
    expected = None
    for name, call in calls.items():
        logit = np.asarray(call()["logit"])
        expected = logit if expected is None else expected
        if (worst := np.abs(logit - expected).max()) > tolerance:
            raise AssertionError(f"{name}: a logit differs by {worst}")
    times = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            seconds, end = [], time.perf_counter() + 0.2
            while len(seconds) < 6 or time.perf_counter() < end:
                start = time.perf_counter()
                jax.block_until_ready(call())
                seconds.append(time.perf_counter() - start)
            times[name].append(
                statistics.median(seconds[2:])
            )  # the first ones wake threads and caches up
    return times


def show(batch_size: int, times: dict[str, list[float]]) -> None:
    """The table of one batch size: medians, best turns, and ratios of the first row to the faster form of each kind."""
    print(f"{'b':>6}  {'':24}{'us/call':>10}{'best turn':>11}{'rows/s':>11}")
    for name, turns in times.items():
        middle = statistics.median(turns)
        rate = batch_size / middle
        print(
            f"{batch_size:6,}  {name:24}{1e6 * middle:10,.0f}{1e6 * min(turns):11,.0f}{rate:11,.0f}"
        )
    ours = next(iter(times.values()))
    for kind in ("eager", "compiled"):
        theirs = [turns for name, turns in times.items() if name.startswith(kind)]
        middle = statistics.median(ours) / min(map(statistics.median, theirs))
        print(
            f"{batch_size:6,}  ours / {kind}: {middle:.2f} (best turns {min(ours) / min(map(min, theirs)):.2f})",
            flush=True,
        )


def write_run(name: str, workdir: Path) -> None:
    """A run that was never trained, as `load_scorer` reads it."""
    config = config_lib.default()
    config.model.name = name
    if name == "hmm":
        config.model.stage1 = (256,)
        schema = synthetic.make_schema(population.Dials(), "quickstart", {})
    else:
        config.model.hidden = (400, 400, 400)
        schema = flat_schema(75_000)
    module = model_lib.make_model(schema, config.model.to_dict())
    rng = np.random.default_rng(0)
    noise = lambda shape, scale: scale * rng.standard_normal(shape).astype(np.float32)
    network = model_lib.init(module, jax.random.key(0), schema)["params"]
    network = jax.tree.map(lambda x: np.asarray(x) + noise(x.shape, 0.02), network)
    params = {
        "embedding": noise((schema.num_rows, model_lib.table_width(module)), 0.3),
        "network": network,
    }
    info = {"best_step": -1, "schema": schema.fingerprint()}
    checkpoint.save(workdir / "checkpoints", 1, {"params": params, "stats": {}}, info)
    (workdir / "config.json").write_text(config.to_json())
    schema.save(workdir)


def flat_schema(num_rows: int) -> Schema:
    """26 hashed slots that have num_rows rows in all."""
    rows = np.diff(np.linspace(0, num_rows, 27).astype(int)).tolist()
    slots = tuple(Slot(f"C{i + 1}", "all", "categorical", "hash", n) for i, n in enumerate(rows))
    return Schema("flat", slots, recipe=config_lib.default().prepare.to_dict())


# Encoding.


def encode() -> None:
    """Prints rows/s of encoding raw strings; the median over calls, each of other rows."""
    edges = [np.cumsum(np.arange(1, n + 1) ** -1.05) for n in np.geomspace(10, 1e6, 26).astype(int)]
    rng, seconds = np.random.default_rng(0), []
    schema = flat_schema(26_000_000)
    scorer = scorer_lib.Scorer(schema, None, None, None, None, Path(), ())
    for _ in range(ENCODE_CALLS):
        columns = {}
        for i, edge in enumerate(edges):
            rank = np.searchsorted(edge, rng.random(ENCODE_ROWS) * edge[-1]).astype(np.uint64)
            value = (rank * np.uint64(2654435761) + np.uint64(i)) & np.uint64(0xFFFFFFFF)
            columns[f"C{i + 1}"] = pa.array([f"{x:08x}" for x in value.tolist()])
        table = pa.table(columns)
        start = time.perf_counter()
        scorer.encode(table)
        seconds.append(time.perf_counter() - start)
    rates = sorted(ENCODE_ROWS / s for s in seconds)
    print(f"{ENCODE_ROWS:,} rows of 26 hashed slots a call, {os.cpu_count()} threads")
    print(
        f"encode: {statistics.median(rates):,.0f} rows/s (of {ENCODE_CALLS} calls {rates[0]:,.0f} to {rates[-1]:,.0f})"
    )


# Files.


def predict(workdir: str, split: Path, turns: int = 3) -> None:
    """Prints rows/s of `predict` on a split, of the scorer alone, and their ratio."""
    scorer = scorer_lib.load_scorer(workdir)
    scorer_lib.load_scorer = lambda *args, **options: (
        scorer
    )  # predict gets it loaded and, after a first turn, compiled
    source = shards.open_split(split.parent, split.name, scorer.schema)
    names = [slot.name for slot in scorer.schema.slots]
    groups = range(len(source.row_groups))
    features = features_lib.from_table(
        pa.concat_tables(
            [source.read_row_group(group, names) for group in groups]
        ).combine_chunks(),
        scorer.schema,
    )
    num_rows, times = len(features[names[0]]), {"predict": [], "scorer alone": []}
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "scores.parquet"
        program = lambda: run_predict(
            [f"--workdir={workdir}", f"--input={split}", f"--output={output}"]
        )
        calls = {
            "predict": program,
            "scorer alone": lambda: scorer.start(features, row_files.BATCH_ROWS)(),
        }
        for turn in range(-1, turns):  # the first compiles
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn >= 0:
                    times[name].append(time.perf_counter() - start)
    rates = {name: num_rows / statistics.median(seconds) for name, seconds in times.items()}
    print(f"{num_rows:,} rows, batches of {row_files.BATCH_ROWS:,}, {turns} turns: {workdir}")
    for name, rate in rates.items():
        print(
            f"{name}: {rate:,.0f} rows/s (of turns {', '.join(f'{num_rows / s:,.0f}' for s in times[name])})"
        )
    print(f"predict / scorer alone: {rates['predict'] / rates['scorer alone']:.2f}")


def run_predict(argv: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        if predict_lib.main(["predict", *argv]):
            sys.exit("benchmarks/scorer.py: predict failed")


if __name__ == "__main__":
    main()
