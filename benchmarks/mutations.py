"""Do the tests notice a mistake? Breaks the package, one line at a time, and runs the tests that should fail.

    python benchmarks/mutations.py [--only=GLOB] [--list] [--processes=N]

mutations.toml is the table: the file, the text to replace, the text in its place, and the tests that must notice. Each
mutation is applied to a copy of the repository in a temporary directory, never to the repository itself. First the
tests are run in a copy where nothing is broken, for a failure would say nothing there. A line a mutation, then

    124 of 124 caught

The exit code is 0 if all were caught, 1 if one survived, 2 if the table or a test run is wrong.
"""

import argparse
import concurrent.futures
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".toml")
SECONDS = 1800  # that one run of tests may take: a mutation may loop forever
LEFT_OUT = (".*", "*.egg-info", "build", "dist", "runs", "site")
CAUGHT, SURVIVED = 1, 0  # exit codes of pytest


class Mutation(NamedTuple):
    """A mistake, and who must notice.

    Attributes:
      name: what is wrong now, unique.
      file: the broken file, below emofm_jax/.
      old: a text that occurs once in it, within a line.
      new: what stands there instead.
      tests: files of tests, or single tests (`tests/test_x.py::test_y`).
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(path: Path = TABLE) -> list[Mutation]:
    """The table's mutations, in its order."""
    rows = tomllib.loads(path.read_text())["mutation"]
    return [Mutation(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def mistakes(mutation: Mutation, root: Path = ROOT) -> list[str]:
    """What is wrong with a row of the table: nothing, once it fits the files under `root`."""
    found = []
    path = root / "emofm_jax" / mutation.file
    count = path.read_text().count(mutation.old) if path.is_file() else None
    if count is None:
        found.append(f"emofm_jax/{mutation.file} is no file; name the one that the line is in now")
    elif count != 1:
        found.append(
            f"{mutation.old!r} occurs {count} times in {mutation.file}, not once; quote the line as it is now"
        )
    if mutation.old == mutation.new:
        found.append("old and new are the same")
    if not mutation.tests:
        found.append("no test is named")
    for test in mutation.tests:
        file, _, name = test.partition("::")
        path = root / file
        if not path.is_file():
            found.append(f"{file} is no file")
        elif name and f"def {name.split('[')[0]}(" not in path.read_text():
            found.append(f"{file} has no test {name}")
    return [f"{mutation.name}: {line}" for line in found]


def copy_tree(source: Path, target: Path) -> None:
    """Copies a repository without what was built or trained in it; compiled bytecode comes along."""
    of_top = shutil.ignore_patterns(*LEFT_OUT)

    def ignored(directory: str, names: list[str]) -> set[str]:
        return of_top(directory, names) if Path(directory) == source else set()

    shutil.copytree(source, target, ignore=ignored, symlinks=True)


def apply(mutation: Mutation, root: Path) -> None:
    """Breaks the package under `root`."""
    path = root / "emofm_jax" / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    # Bytecode is looked up by time and size of the source, and both may be equal by chance.
    for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        stale.unlink()


def run_tests(root: Path, tests: list[str], home: Path, *options: str) -> tuple[int | None, str]:
    """pytest's exit code (None: out of time) and output, run in the repository under `root`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "EMOFM_JAX_TEST_RUNS": str(home),  # trained where nothing is broken, once for all
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, f"not done after {SECONDS} seconds"
    return done.returncode, done.stdout + done.stderr


def judge(mutation: Mutation, whole: Path, home: Path) -> tuple[bool, str]:
    """(whether the tests noticed, in words); a run of tests that broke off in another way is a RuntimeError."""
    with tempfile.TemporaryDirectory(dir=home) as directory:
        root = Path(directory) / "copy"
        copy_tree(whole, root)
        apply(mutation, root)
        code, output = run_tests(root, list(mutation.tests), home, "-n", "0")
    if code not in (CAUGHT, SURVIVED):
        raise RuntimeError(f"{mutation.name}: the tests did not run (exit code {code}):\n{output}")
    return (
        code == CAUGHT,
        f"{'caught' if code else 'NOT CAUGHT':10}  {mutation.file}: {mutation.name}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="mutations whose file or name is like this")
    parser.add_argument("--list", action="store_true", help="print the table, run nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time")
    flags = parser.parse_args()

    chosen = [m for m in read() if any(fnmatch.fnmatch(x, flags.only) for x in (m.file, m.name))]
    wrong = [line for mutation in chosen for line in mistakes(mutation)]
    if wrong or not chosen:
        print(*(wrong or [f"error: no mutation is like {flags.only!r}"]), sep="\n", file=sys.stderr)
        return 2
    if flags.list:
        for m in chosen:
            print(f"{m.file}: {m.name}", f"  - {m.old}", f"  + {m.new}", *m.tests, sep="\n")
        return 0

    with tempfile.TemporaryDirectory(prefix="mutations_") as directory:
        home = Path(directory)
        whole = home / "whole"
        copy_tree(ROOT, whole)
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        code, output = run_tests(whole, tests, home, "-n", str(flags.processes))
        if code:
            print(f"error: tests fail where nothing is broken:\n{output}", file=sys.stderr)
            return 2

        caught = 0
        with concurrent.futures.ThreadPoolExecutor(flags.processes) as pool:
            for noticed, line in pool.map(lambda m: judge(m, whole, home), chosen):
                print(line, flush=True)
                caught += noticed
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
