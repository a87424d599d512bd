"""One run, one data set: programs at work in a directory in which `prepare` runs again and again.

    python benchmarks/mixing.py --rounds=200

A process of its own prepares two sets of raw rows in turns into one directory. They differ in labels and hashed
values, so that their schemas are equal and only their rows are not. Meanwhile, each round, this process trains, trains
in two halves (stop, go on), evaluates, predicts and sweeps on that directory. A program ends

    right     its figures are, bit for bit, those that it gives on one of the two when nobody prepares
    refused   it says in one line why not, with exit code 2 (a sweep: in the line of a run, with exit code 1)
    mixed     anything else: there must be none

Prints how often each did what, and the most frequent lines; exit code 1 if anything was mixed.
"""

import argparse
import collections
import contextlib
import io
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from emofm_jax import evaluate, predict, prepare, sweep, train
from emofm_jax.data import files, shards
from emofm_jax.data import schema as schema_lib

NAMES = ("one", "two")  # the two sets of raw rows
ROW_GROUP_ROWS = 256  # so that reading goes on as long as training does
TIMES = ("rows_per_s", "input_wait", "seconds", "peak_memory_mib")
EXPERIMENT = """
from emofm_jax import config

seeds = (0, 1)


def get_config(arg=""):
    c = config.default()
    c.name, c.data.dir = "mixing", "data"
    c.prepare.source, c.prepare.split, c.prepare.shares = "raw/rows.csv", "share", (0.7, 0.15, 0.15)
    c.prepare.groups = (("user", ("user",)), ("item", ("item",)))
    c.prepare.slots = {"user": {"encoding": "hash", "rows": 1000}}
    c.model.name, c.model.hidden, c.model.embedding_dim = "dnn", (8,), 4
    c.data.batch_size, c.data.eval_batch_size, c.data.shuffle_rows = 128, 512, 512
    c.train.epochs = 2
    return c


def sweep(arg=""):
    yield "only", {}
"""
CONFIG = "--config=mixing.py"


def write_raw(directory: Path, num_rows: int = 4000) -> None:
    """Writes one.csv and two.csv: the same items, other labels and users."""
    directory.mkdir()
    items = np.random.default_rng(0).zipf(1.5, num_rows) % 50
    for seed, name in enumerate(NAMES, 1):
        rng = np.random.default_rng(seed)
        users, clicks = rng.zipf(1.3, num_rows) % 500, rng.integers(2, size=num_rows)
        rows = [f"{c},u{u},i{i}\n" for c, u, i in zip(clicks, users, items)]
        (directory / f"{name}.csv").write_text("label,user,item\n" + "".join(rows))


def prepare_one(name: str) -> None:
    """Prepares one of the two sets into data/."""
    shards.ROW_GROUP_ROWS = ROW_GROUP_ROWS
    shutil.copy(f"raw/{name}.csv", "raw/rows.csv")
    with contextlib.redirect_stdout(io.StringIO()):
        assert prepare.main(["prepare", CONFIG]) == 0


def prepare_in_turns(pause: float) -> None:
    """Prepares one and the other, with pauses of `pause` seconds on average, until stdin ends."""
    os.set_blocking(0, False)
    rng = random.Random(0)
    for name in itertools.cycle(NAMES):
        prepare_one(name)
        time.sleep(rng.uniform(0, 2 * pause))
        if sys.stdin.buffer.read() == b"":
            return


def without_times(found):
    """A tree of JSON without what a clock measured."""
    if isinstance(found, dict):
        return {k: without_times(v) for k, v in found.items() if k not in TIMES}
    return [without_times(x) for x in found] if isinstance(found, list) else found


def figures(workdir: Path):
    """What a run reports of its splits, and its predictions."""
    metrics = without_times(files.read_json(workdir / "metrics.json"))
    del metrics["train"]  # a run that was stopped has one evaluation more
    return metrics, pq.read_table(workdir / "predictions/test.parquet").to_pydict()


class Refused(Exception):
    """A program that has said in one line why it did not."""


def run(program, *flags: str) -> None:
    """Runs a program; raises Refused, or AssertionError if it ends in any other way than it may."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.main([program.__name__.rpartition(".")[2], *flags])
    if code == 0:
        return
    said = err.getvalue()
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (code, said)
    raise Refused(said)


def trained(workdir: Path):
    """Trains."""
    run(train, CONFIG, f"--workdir={workdir}")
    return figures(workdir)


def trained_in_halves(workdir: Path):
    """Trains, stops and goes on: the figures are those of a run that never stopped."""
    run(train, CONFIG, f"--workdir={workdir}", "--config.train.max_steps=20")
    return trained(workdir)


def evaluated(workdir: Path):
    """Evaluates the run of the first set of rows."""
    run(evaluate, "--workdir=kept", "--split=valid")
    return without_times(files.read_json(Path("kept/predictions/valid.json")))


def predicted(workdir: Path):
    """Scores the test split with the run of the first set of rows."""
    output = workdir.with_suffix(".parquet")
    run(predict, "--workdir=kept", "--input=data/test", f"--output={output}")
    return pq.read_table(output).to_pydict()


def swept(workdir: Path):
    """Two runs: both of one preparation, or those that are not have failed with a line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = sweep.main(["sweep", CONFIG, f"--workdir={workdir}"])
    if code == 2:
        raise Refused(err.getvalue())
    lines = [files.from_json(x) for x in (workdir / "results.jsonl").read_text().splitlines()]
    good = {x["seed"]: without_times(x["metrics"]) for x in lines if x["metrics"]}
    errors = [x["error"] for x in lines if x["error"]]
    assert code == bool(errors) and len(good) + len(errors) == 2, (code, err.getvalue())
    if errors:  # a run that is good beside it is one of the two, or the sweep mixes
        assert not good or any(good.items() <= full.items() for full in REFERENCES[swept])
        raise Refused(f"error: {errors[0]}")
    return good


PROGRAMS = (trained, trained_in_halves, evaluated, predicted, swept)
REFERENCES: dict = {}  # {program: what it gives on each of the two sets of rows}


def make_references(programs: Sequence) -> None:
    """What each program gives on each of the two sets of rows when nobody prepares."""
    for program in programs:
        REFERENCES[program] = []
    for name in NAMES:
        prepare_one(name)
        if name == NAMES[0]:
            run(train, CONFIG, "--workdir=kept")
        for program in programs:
            with contextlib.suppress(Refused):  # evaluating a run of other rows
                REFERENCES[program].append(program(Path(f"{program.__name__}_{name}")))
    for program in programs:
        one, *other = REFERENCES[program]
        assert [one] != other and len(other) == (program is not evaluated)


def outcome(program, workdir: Path, lines: collections.Counter) -> str:
    """right, refused or mixed; counts the line that was said."""
    try:
        if program(workdir) in REFERENCES[program]:
            return "right"
        print(f"{workdir}: its figures are of neither", file=sys.stderr)
        return "mixed"
    except Refused as said:
        lines[re.sub(r"[0-9a-f]{16}|\d+(?=,|:| of)", "#", str(said).strip())[:150]] += 1
        return "refused"
    except Exception as error:  # whatever it is, it is no line
        print(f"{workdir}: {type(error).__name__}: {error}", file=sys.stderr)
        return "mixed"


def measure(
    rounds: int, pause: float, programs: Sequence = PROGRAMS
) -> tuple[dict, collections.Counter]:
    """{program: Counter of outcomes} of all rounds, and the lines that were said."""
    Path("mixing.py").write_text(EXPERIMENT)
    write_raw(Path("raw"))
    make_references(programs)
    found = {program: collections.Counter() for program in programs}
    lines: collections.Counter = collections.Counter()
    command = [sys.executable, __file__, f"--prepare={pause}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as loop:
        for number in range(rounds):
            for program in programs:
                workdir = Path(f"{program.__name__}_{number}")
                found[program][outcome(program, workdir, lines)] += 1
                if found[program]["mixed"] == 0:
                    shutil.rmtree(workdir, ignore_errors=True)
                    workdir.with_suffix(".parquet").unlink(missing_ok=True)
        assert loop.poll() is None, "it has ended before its time"
        loop.stdin.close()
    assert schema_lib.load(Path("data")).identity
    return found, lines


def as_text(found: dict, lines: collections.Counter) -> str:
    """The outcomes as a table, and the lines that were said most often."""
    head = f"{'program':18s} {'right':>8s} {'refused':>8s} {'mixed':>8s}"
    rows = [
        f"{program.__name__:18s}" + "".join(f" {n[k]:8d}" for k in ("right", "refused", "mixed"))
        for program, n in found.items()
    ]
    said = [f"{number:6d}  {line}" for line, number in lines.most_common(12)]
    return "\n".join([head, *rows, "", "lines", *said])


def main() -> int:
    """0 if nothing was mixed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two preparations")
    parser.add_argument("--prepare", type=float, help="used by itself: the process that prepares")
    flags = parser.parse_args()
    if flags.prepare is not None:
        prepare_in_turns(flags.prepare)
        return 0
    with tempfile.TemporaryDirectory(prefix="mixing_") as home, contextlib.chdir(home):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{home}/cache")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        found, lines = measure(flags.rounds, flags.pause)
    print(as_text(found, lines))
    return int(any(counted["mixed"] for counted in found.values()))


if __name__ == "__main__":
    sys.exit(main())
