"""Speed and memory of `prepare` on a csv: `python benchmarks/prepare.py --rows=2000000`.

Makes a csv of a label and 26 columns of 8 hex digits, cardinalities from 10 to 1e6 in equal ratios, values drawn by
Zipf's law of exponent 1.05, in a temporary directory; prepares it with hashing in a process of its own; and prints
rows per second of the whole program, from its start to its end, and the peak of its resident memory.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_COLUMNS = 26
CHUNK_ROWS = 100_000
EXPONENT = 1.05

_EXPERIMENT = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.name = "benchmark"
    c.prepare.source = {source!r}
    c.prepare.files = {{"train": "train.csv", "valid": "", "test": ""}}
    c.prepare.groups = (("user", "C1-C13"), ("item", "C14-C26"))
    c.prepare.slot.encoding = {encoding!r}
    c.prepare.slot.rows = {hash_rows}
    c.data.dir = {target!r}
    return c
"""


def write_csv(path: Path, num_rows: int, seed: int = 0) -> None:
    """Writes the csv, `CHUNK_ROWS` rows at a time."""
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(10, 1e6, NUM_COLUMNS).astype(int)
    edges = []
    for size in sizes:
        weights = np.arange(1, size + 1) ** -EXPONENT
        edges.append(np.cumsum(weights) / weights.sum())
    with open(path, "wb") as file:
        file.write(",".join(["label", *(f"C{i + 1}" for i in range(NUM_COLUMNS))]).encode() + b"\n")
        for start in range(0, num_rows, CHUNK_ROWS):
            n = min(CHUNK_ROWS, num_rows - start)
            text = np.full((n, 2 + 9 * NUM_COLUMNS), ord(","), np.uint8)
            text[:, 0] = ord("0") + (rng.random(n) < 0.25)
            for i, edge in enumerate(edges):
                rank = np.minimum(np.searchsorted(edge, rng.random(n)), len(edge) - 1).astype(
                    np.uint64
                )
                value = (rank * np.uint64(2654435761) + np.uint64(i)) & np.uint64(0xFFFFFFFF)
                digits = (value[:, None] >> np.arange(28, -4, -4, dtype=np.uint64)) & np.uint64(15)
                text[:, 2 + 9 * i : 10 + 9 * i] = np.frombuffer(b"0123456789abcdef", np.uint8)[
                    digits
                ]
            text[:, -1:] = ord("\n")
            file.write(text.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--hash-rows", type=int, default=1_000_000, help="table rows of each slot")
    parser.add_argument("--encoding", default="hash", choices=("hash", "vocabulary"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "raw", Path(temporary) / "shards"
        source.mkdir()
        write_csv(source / "train.csv", args.rows)
        size = (source / "train.csv").stat().st_size
        fields = {
            "source": str(source),
            "target": str(target),
            "hash_rows": args.hash_rows,
            "encoding": args.encoding,
        }
        experiment = Path(temporary) / "experiment.py"
        experiment.write_text(_EXPERIMENT.format(**fields))
        start = time.perf_counter()
        command = [sys.executable, "-m", "emofm_jax.prepare", f"--config={experiment}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(f"{args.rows:,d} rows, csv {size / 1e6:,.0f} MB, shards {written / 1e6:,.0f} MB")
    print(f"{seconds:.1f} s, of which the processors worked {cpu:.1f} s")
    print(f"prepare: {args.rows / seconds:,.0f} rows/s, peak memory {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
