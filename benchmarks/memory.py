"""Peak memory of prepare, train, evaluate and predict against the number of rows: it must not grow with them.

    python benchmarks/memory.py --rows=2000000,4000000

For each number of rows: a csv as in benchmarks/prepare.py, hashed into shards; an MLP trained on all of them for one
epoch; evaluated on the train split; the csv scored. Every program is a process of its own; its peak of resident
memory is what the system reports when it ends. The embedding table and its two moments (lazy Adam) are what memory
does depend on; their size is printed, and "without the table" takes it off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import prepare as prepare_benchmark

_EXPERIMENT = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.name = "memory"
    c.prepare.source = "raw"
    c.prepare.files = {"train": "train.csv", "valid": "valid.csv", "test": ""}
    c.prepare.groups = (("user", "C1-C13"), ("item", "C14-C26"))
    c.prepare.slot.encoding = "hash"
    c.prepare.slot.rows = 10_000
    c.data.dir = "shards"
    c.model.name = "wm"
    c.model.embedding_dim = 8
    c.model.hidden = (64,)
    c.data.batch_size = 4096
    return c
"""
_TABLE_MIB = 3 * 26 * 10_000 * 8 * 4 / 2**20


def measure(arguments: list[str], directory: Path) -> tuple[float, float]:
    """(seconds, MiB of peak resident memory) of a program."""
    start = time.perf_counter()
    command = [sys.executable, "-m", *arguments]
    with open(directory / "log", "ab") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} failed:\n{(directory / 'log').read_text()}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="2000000,4000000", help="numbers of rows, with commas")
    parser.add_argument("--output", default="", help="JSON file for the figures")
    args = parser.parse_args()
    figures = {}
    for rows in map(int, args.rows.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            (directory / "raw").mkdir()
            prepare_benchmark.write_csv(directory / "raw" / "train.csv", rows)
            prepare_benchmark.write_csv(directory / "raw" / "valid.csv", 10_000, seed=1)
            (directory / "experiment.py").write_text(_EXPERIMENT)
            for name, flags in {
                "prepare": ["--config=experiment.py"],
                "train": ["--config=experiment.py", "--workdir=run"],
                "evaluate": ["--workdir=run", "--split=train"],
                "predict": ["--workdir=run", "--input=raw/train.csv", "--output=scores.parquet"],
            }.items():
                seconds, peak = measure([f"emofm_jax.{name}", *flags], directory)
                figures.setdefault(name, {})[rows] = peak
                print(
                    f"{rows:>10,} rows  {name:9s} {seconds:7.1f} s  peak {peak:7,.0f} MiB",
                    flush=True,
                )
    print(f"table and moments: {_TABLE_MIB:.0f} MiB")
    for name, peaks in figures.items():
        first, last = list(peaks.values())[0], list(peaks.values())[-1]
        print(
            f"{name:9s} {last / first:.2f} times the memory for {max(peaks) / min(peaks):.0f} times the rows"
        )
    if args.output:
        Path(args.output).write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
