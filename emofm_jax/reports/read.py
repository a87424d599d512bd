"""Reads what a sweep or a run has left in its workdir, as far as it has come (for report.py).

A sweep's workdir holds sweep.json (what was to be run), results.jsonl (a line per run that has
ended) and runs/<point>/seed-<S>/, ordinary workdirs of train. Whatever a run's workdir lacks, since
files were moved or the run failed, comes back as None: the report is made of what is there.
"""

import dataclasses
import datetime
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emofm_jax import config, options
from emofm_jax.data import files, parquet
from emofm_jax.errors import UserError
from emofm_jax.evaluation import run_report
from emofm_jax.evaluation.run_report import SPLITS
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.sweeping import record


@dataclasses.dataclass(frozen=True)
class Run(record.Result):
    """A run that has ended; `workdir` is its own, `point` is empty for a run of no sweep."""

    @functools.cached_property
    def splits(self) -> dict[str, SplitReport]:
        """The report of each split; empty if the run failed."""
        found = self.metrics or {}
        return {name: SplitReport.from_json(found[name]) for name in SPLITS if found.get(name)}

    @property
    def train(self) -> dict[str, Any]:
        """Steps, speed and evaluations of its metrics.json."""
        return (self.metrics or {}).get("train") or {}

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of parameters of its metrics.json."""
        return (self.metrics or {}).get("parameters") or {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(record.Header):
    """What was to be run, and what has ended.

    Attributes:
      runs: {(point, seed): Run}, failed ones too.
      left_out: lines of results.jsonl whose point or seed sweep.json no longer has.
    """

    workdir: Path
    runs: Mapping[tuple[str, int], Run]
    left_out: int = 0

    @property
    def num_runs(self) -> int:
        """Runs that the sweep is to have."""
        return len(self.points) * len(self.seeds)

    def ended(self, point: str) -> list[Run]:
        """The point's runs that have ended, in the order of the seeds."""
        return [self.runs[point, seed] for seed in self.seeds if (point, seed) in self.runs]

    def done(self, point: str) -> list[Run]:
        """The point's runs that have metrics."""
        return [run for run in self.ended(point) if run.ok]

    def all_done(self) -> list[Run]:
        """Every run that has metrics."""
        return [run for point in self.points for run in self.done(point)]

    def failed(self) -> list[Run]:
        """Every run that failed."""
        return [run for point in self.points for run in self.ended(point) if not run.ok]


def load(workdir: Path) -> Sweep | Run:
    """What the directory holds.

    Raises:
      UserError: neither a sweep nor a run, nothing of it finished, or a file that is damaged or of
        another run.
    """
    if not workdir.is_dir():
        hint = "name the --workdir of a sweep or of a trained run"
        raise UserError(f"--workdir={workdir}: no such directory; {hint}")
    if (workdir / "sweep.json").exists():
        return _sweep(workdir)
    if (workdir / "metrics.json").exists():
        run = Run("", 0, {}, workdir, _json(workdir / "metrics.json"))
        run_report.check(workdir, run.metrics or {})
        return dataclasses.replace(run, seed=(fields(run) or {}).get("seed", 0))

    if (workdir / "config.json").exists():
        result = workdir / "result.json"
        ended = _json(result) if result.exists() else {}
        if error := (ended.get("line") or {}).get("error"):
            hint = "mend that, and `sweep --retry` tries it again"
            raise UserError(f"{workdir}: its run failed ({error}); {hint}")
        hint = "the same train command goes on with it"
        raise UserError(f"{workdir}: its run is not finished (no metrics.json); {hint}")

    found = (p for p in workdir.glob("*/*.json") if p.name in ("sweep.json", "metrics.json"))
    inside = sorted(str(path.parent) for path in found)
    hint = (
        f"did you mean --workdir={inside[0]}?" if inside else "name the --workdir of sweep or train"
    )
    nothing = "holds no sweep (no sweep.json) and no run (no metrics.json)"
    raise UserError(f"{workdir}: {nothing}; {hint}")


def split_of(runs: Sequence[Run]) -> str:
    """The split that all of the runs were evaluated on: test, else valid."""
    return next((s for s in SPLITS if all(s in run.splits for run in runs)), SPLITS[-1])


def fields(run: Run) -> dict | None:
    """{dotted path: value} of the run's config."""
    path = run.workdir / "config.json"
    return config.renamed(options.flatten(_json(path))) if path.exists() else None


def machine(run: Run) -> str:
    """Devices, platform and versions in a line, from environment.json; empty without one."""
    path = run.workdir / "environment.json"
    if not path.exists():
        return ""

    body = _json(path)
    named = [(d.split(":")[0], d.split(" ", 1)[-1]) for d in body["devices"]]
    kinds = [" ".join(dict.fromkeys(names)) for names in named]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    versions = ", ".join(f"{name} {body['packages'][name]}" for name in ("emofm_jax", "jax"))
    commit = f", commit {body['git_commit'][:7]}" if body.get("git_commit") else ""
    commit += " and changes" * bool(body.get("git_changes"))
    return f"{devices}, {body['platform']}; {versions}{commit}"


def day(run: Run) -> str | None:
    """The day on which the run ended, as in 2026-11-25; None where its metrics.json is gone."""
    path = run.workdir / "metrics.json"
    return datetime.date.fromtimestamp(path.stat().st_mtime).isoformat() if path.exists() else None


def training_log(run: Run) -> list[dict]:
    """The lines of log.jsonl of the event `train`, in order."""
    lines = _lines(run.workdir / "log.jsonl")
    return [event for _, event in lines if event.get("event") == "train"]


def predictions(run: Run, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Label i8[n], p f32[n] and weight f32[n] of the rows of a split that count.

    The weight is None where all are 1; everything is None where no predictions were kept.
    """
    path = run.workdir / "predictions" / f"{split}.parquet"
    if not path.exists():
        return None

    table = parquet.read(path, ("label", "p", "weight"), "evaluate the run again")
    label, p = table["label"].to_numpy(), table["p"].to_numpy()
    if "weight" not in table.column_names:
        return label, p, None
    weight = table["weight"].to_numpy()
    counts = weight > 0
    return label[counts], p[counts], weight[counts]


def importance(run: Run, split: str) -> dict | None:
    """Content of predictions/SPLIT.importance.json, by `evaluate --importance`."""
    path = run.workdir / "predictions" / f"{split}.importance.json"
    return _json(path) if path.exists() else None


def evaluations(run: Run) -> tuple[dict[str, SplitReport], list[str]]:
    """What `evaluate --input` and `evaluate --by` have left of the state that the run keeps.

    Returns:
      {name of the file: its report}, and the names of those of another state.
    """
    found, stale = {}, []
    for path in sorted((run.workdir / "predictions").glob("*.json")):
        if path.name.endswith(".importance.json"):
            continue
        part = SplitReport.from_json(_json(path))
        if part.step is None:  # neither new rows nor by values
            continue
        if part.step == run.train.get("kept_step"):
            found[path.stem] = part
        else:
            stale.append(path.stem)
    return found, stale


def _sweep(workdir: Path) -> Sweep:
    path = workdir / "sweep.json"
    try:
        header = record.Header.from_json(_json(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}; run the sweep's command again") from None

    runs, left_out = {}, 0
    for where, body in _lines(workdir / "results.jsonl"):
        try:
            run = Run.from_line(body)
        except ValueError as error:
            raise UserError(f"{where}: {error}; delete the line and sweep again") from None
        try:
            header.check(body)
        except ValueError as error:
            raise UserError(f"{path}: {error}; run the sweep's command again") from None
        if run.point in header.points and run.seed in header.seeds:
            place = workdir / run.workdir
            runs[run.point, run.seed] = dataclasses.replace(run, workdir=place)
        else:
            left_out += 1

    sweep = Sweep(**vars(header), workdir=workdir, runs=runs, left_out=left_out)
    if not sweep.all_done():
        what = f"none of its {sweep.num_runs} runs is finished"
        if failed := sweep.failed():
            first = f"first {failed[0].point} seed {failed[0].seed}: {failed[0].error}"
            what += f", {len(failed)} failed, {first}"
        raise UserError(f"{workdir}: {what}; let the sweep go on first")
    return sweep


def _json(path: Path) -> dict:
    with files.undamaged(path, "run its program again"):
        return files.read_json(path)


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Place and content of the lines of a file, if there is one."""
    with files.named(path, what="read"):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            body = files.from_json(line)
        except ValueError as error:
            what = f"damaged line ({error}); delete it and run its program again"
            raise UserError(f"{path}:{number}: {what}") from None
        yield f"{path}:{number}", body
