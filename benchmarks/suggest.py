"""Is what `prepare --suggest` writes right, and does it run? `python benchmarks/suggest.py --data=DIR`

For each data set: suggests an experiment file, compares what it says with what is known of the data, and runs the
file unchanged through `prepare` and a few steps of `train`, each a program of its own, in a temporary directory. What
is known: label, key of GAUC, split, whether there is a header, the separator, every slot's kind, columns that are
left out, and how many training rows and clicks there are. DIR holds frappe, kuairand_pure and hillstrom; the examples
are the repository's, and rows as those of Criteo and of libsvm are made. Prints a line a data set, and at last how
many are right; exit code 1 if not all are.
"""

import argparse
import dataclasses
import json
import random
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emofm_jax.data import schema as schema_lib

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "data" / "examples"
STEPS = 10


@dataclasses.dataclass(frozen=True)
class Known:
    """What is right of a data set.

    Attributes:
      make: returns the source; takes the directory of --data and one to write into.
      options: of `config.prepare`, as they must be.
      kinds: of the slots that are not categorical.
      slots: how many there are.
      rows, clicks: of the train split; None where they follow from a hash.
    """

    make: Callable[[Path, Path], Path]
    options: Mapping[str, Any]
    kinds: Mapping[str, str]
    slots: int
    rows: int | None = None
    clicks: int | None = None


def criteo(data: Path, directory: Path) -> Path:
    """Rows as Criteo's: no header, a label, 13 numbers, 26 hex strings, tabs; what is empty is missing."""
    r = random.Random(0)
    number = lambda i: (
        "" if r.random() < 0.05 * (i % 6) else str(int(r.expovariate(0.5**i)) - (i == 1))
    )
    text = lambda i: "" if r.random() < 0.04 * (i % 8) else f"{r.randrange(4 + i**3):08x}"
    rows = (
        [str(int(r.random() < 0.25)), *map(number, range(13)), *map(text, range(26))]
        for _ in range(3000)
    )
    path = directory / "day_0.txt"
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def libsvm(data: Path, directory: Path) -> Path:
    """Rows of a label and id:value."""
    r = random.Random(0)
    tokens = lambda: (f"{k}:{r.choice((1, 0.5))}" for k in sorted(r.sample(range(1, 500), 9)))
    path = directory / "rows.libsvm"
    path.write_text("".join(f"{i % 4 // 3} {' '.join(tokens())}\n" for i in range(2000)))
    return path


def libffm(data: Path, directory: Path) -> Path:
    """Rows of a label and field:id:value; a field stands once, or up to three times."""
    r = random.Random(0)
    tags = lambda: " ".join(f"tag:{k}:1" for k in r.sample(range(30), r.randint(1, 3)))
    row = lambda i: f"{i % 4 // 3} user:{r.randrange(90)}:1 item:{r.randrange(50)}:1 {tags()}\n"
    path = directory / "rows.ffm"
    path.write_text("".join(map(row, range(2000))))
    return path


def _of(name: str) -> Callable[[Path, Path], Path]:
    return lambda data, directory: data / name


_FILES = {"split": "files", "label": "label", "header": True, "separator": ","}
_NO_HEADER = {"label": "label", "header": False, "separator": "\t", "split": "share"}
SETS = {
    "frappe": Known(
        _of("frappe"), {**_FILES, "gauc_key": "user", "ignore": ()}, {}, 10, 202_027, 67_604
    ),
    "kuairand_pure": Known(
        _of("kuairand_pure"),
        {**_FILES, "gauc_key": "user_id", "ignore": ("date",)},
        {"tag": "multi", "duration_s": "numeric"},
        41,
        166_932,
        75_408,
    ),
    "hillstrom": Known(
        _of("hillstrom"),
        {**_FILES, "gauc_key": "", "ignore": ()},
        {"history": "numeric"},
        9,
        44_878,
        6_603,
    ),
    "cti": Known(
        lambda data, directory: EXAMPLES / "cti",
        {"format": "cti", "split": "files"},
        {"401": "multi", "402": "multi"},
        13,
    ),
    "clicks.csv": Known(
        lambda data, directory: EXAMPLES / "clicks.csv",
        {**_FILES, "split": "share", "label": "clicked", "gauc_key": "user", "ignore": ()},
        {"tags": "multi", "price": "numeric"},
        8,
    ),
    "criteo": Known(
        criteo,
        {**_NO_HEADER, "gauc_key": "", "ignore": ()},
        {f"I{i}": "numeric" for i in range(1, 14)},
        39,
    ),
    "libsvm": Known(libsvm, {"format": "libsvm", "split": "share"}, {"features": "multi"}, 1),
    "libffm": Known(libffm, {"format": "libsvm", "split": "share"}, {"tag": "multi"}, 3),
}


def _run(directory: Path, program: str, *flags: str) -> str:
    """What a program prints; raises RuntimeError with its error if it ends with one."""
    command = [sys.executable, "-m", f"emofm_jax.{program}", *flags]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _differences(known: Known, prepare: Any, schema: schema_lib.Schema) -> list[str]:
    """What is not as it is known to be."""
    found = {name: prepare[name] for name in known.options}
    wrong = [f"{k} {found[k]!r}, not {v!r}" for k, v in known.options.items() if found[k] != v]
    kinds = {slot.name: slot.kind for slot in schema.slots if slot.kind != "categorical"}
    if kinds != known.kinds:
        wrong.append(f"kinds {kinds}, not {known.kinds}")
    if len(schema.slots) != known.slots:
        wrong.append(f"{len(schema.slots)} slots, not {known.slots}")
    for name, right in (("rows", known.rows), ("clicks", known.clicks)):
        counted = sum(getattr(schema, f"{name}_per_type"))
        if right is not None and counted != right:
            wrong.append(f"{counted:,} {name}, not {right:,}")
    return wrong


def check(known: Known, data: Path, directory: Path) -> list[str]:
    """What is wrong with the file that is suggested for a data set: sentences.

    Raises:
      RuntimeError: a program ended with an error.
    """
    source = known.make(data, directory)
    if not source.exists():
        return [f"{source} is not there; give --data"]
    (directory / "mine.py").write_text(_run(directory, "prepare", f"--suggest={source}"))
    config = runpy.run_path(str(directory / "mine.py"))["get_config"]()
    _run(directory, "prepare", "--config=mine.py")
    wrong = _differences(known, config.prepare, schema_lib.load(directory / config.data.dir))
    _run(
        directory, "train", "--config=mine.py", "--workdir=run", f"--config.train.max_steps={STEPS}"
    )
    metrics = json.loads((directory / "run" / "metrics.json").read_text())
    return wrong + ["the run has no test rows"] * (not metrics["test"]["rows"])


def main() -> int:
    """Checks every data set; exit code 1 if one is not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path(), help="Directory of the real data sets."
    )
    parser.add_argument("--only", default=",".join(SETS), help="Data sets, with commas.")
    args = parser.parse_args()
    names, right = args.only.split(","), 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="emofm_jax_suggest_") as directory:
            try:
                wrong = check(SETS[name], args.data.resolve(), Path(directory))
            except RuntimeError as error:
                wrong = [str(error)]
        right += not wrong
        print(f"{name}: {'; '.join(wrong) or 'right'}", flush=True)
    print(f"{right} of {len(names)} right")
    return int(right < len(names))


if __name__ == "__main__":
    sys.exit(main())
