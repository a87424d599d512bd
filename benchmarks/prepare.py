"""Speed and memory of `prepare` on csv: `python benchmarks/prepare.py --rows=2000000 --files=16 --workers=1,2`.

Makes a csv of a label and 26 columns of 8 hex digits, cardinalities from 10 to 1e6 in equal ratios, values drawn by
Zipf's law of exponent 1.05, in a temporary directory; prepares it with hashing in a process of its own; and prints
rows per second of the whole program, from its start to its end, the peak of the resident memory of its largest
process, and a digest of all that it wrote. --tree names other checkouts, such as that of an older commit, that are
measured in turn with this one; those that lack --workers get none.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xxhash

NUM_COLUMNS = 26
CHUNK_ROWS = 100_000
EXPONENT = 1.05

_EXPERIMENT = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.name = "benchmark"
    c.prepare.source = {source!r}
    c.prepare.files = {{"train": "train*.csv", "valid": "", "test": ""}}
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


def prepare(tree: Path, experiment: Path, target: Path, workers: str) -> None:
    """Prepares in a process of its own, and prints what that took."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "emofm_jax.prepare", f"--config={experiment}"]
    command += [f"--workers={workers}"] if workers else []
    environment = os.environ | {"PYTHONPATH": str(tree)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=tree, env=environment)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    digest = xxhash.xxh3_64()
    for path in sorted(target.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(target)).encode() + path.read_bytes())
    rows = sum(json.loads((target / "train/_SUCCESS").read_text())["files"])
    print(
        f"{tree.name}, workers {workers or '-'}: {rows / seconds:,.0f} rows/s, {seconds:.1f} s, of which the "
        f"processors worked {cpu:.1f} s, peak memory {usage.ru_maxrss / 1024:,.0f} MiB so far, "
        f"digest {digest.hexdigest()}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--files", type=int, default=1, help="that the rows are in")
    parser.add_argument("--workers", default="0", help="of prepare, one after another, as in 1,2")
    parser.add_argument("--tree", type=Path, action="append", default=[], help="another checkout")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--hash-rows", type=int, default=1_000_000, help="table rows of each slot")
    parser.add_argument("--encoding", default="hash", choices=("hash", "vocabulary"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "raw", Path(temporary) / "shards"
        source.mkdir()
        for i in range(args.files):
            write_csv(source / f"train-{i:03d}.csv", args.rows // args.files, seed=i)
        size = sum(path.stat().st_size for path in source.iterdir())
        print(f"{args.rows:,d} rows in {args.files} files, csv {size / 1e6:,.0f} MB", flush=True)
        fields = {
            "source": str(source),
            "target": str(target),
            "hash_rows": args.hash_rows,
            "encoding": args.encoding,
        }
        experiment = Path(temporary) / "experiment.py"
        experiment.write_text(_EXPERIMENT.format(**fields))
        for _ in range(args.rounds):
            for tree in args.tree:
                prepare(tree.resolve(), experiment, target, "")
            for workers in args.workers.split(","):
                prepare(Path(__file__).resolve().parents[1], experiment, target, workers)


if __name__ == "__main__":
    main()
