"""Seconds and megabytes of the report of a large sweep, made up of scores that are drawn (tests/fake_sweep.py).

    python benchmarks/report.py --points=200 --seeds=3 --rows=50000

Makes the sweep in a temporary directory (minutes), then times `emofm_jax.report` as a process of its own. Measured at
these sizes on 2 cores (AMD EPYC) that other work kept busy, November 2026: 4 to 6 seconds, 0.6 MB, 150 MB of memory.
"""

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags as absl_flags

from emofm_jax import cli


def _main(flags: absl_flags.FlagValues) -> None:
    path = Path(__file__).parents[1] / "tests" / "fake_sweep.py"
    spec = importlib.util.spec_from_file_location("fake_sweep", path)
    fake_sweep = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake_sweep)
    with tempfile.TemporaryDirectory(prefix="emofm_jax_report_") as directory:
        workdir = fake_sweep.many(Path(directory) / "sweep", flags.points, flags.seeds, flags.rows)
        start = time.perf_counter()
        command = [sys.executable, "-m", "emofm_jax.report", f"--workdir={workdir}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        size = (workdir / "report.html").stat().st_size / 1e6
    print(
        f"{flags.points} points, {flags.seeds} seeds, {flags.rows:,} rows: {seconds:.1f} seconds, {size:.2f} MB"
    )


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    absl_flags.DEFINE_integer("points", 200, "Points of the sweep.", flag_values=flags)
    absl_flags.DEFINE_integer("seeds", 3, "Seeds of a point.", flag_values=flags)
    absl_flags.DEFINE_integer("rows", 50_000, "Rows of the test split.", flag_values=flags)


if __name__ == "__main__":
    sys.exit(cli.run(_main, _define))
