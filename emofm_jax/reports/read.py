"""Reads what a sweep or a run has left in its workdir, as far as it has come (for report.py).

A sweep's workdir holds sweep.json (what was to be run), results.jsonl (a line per run that has ended) and
runs/<point>/seed-<S>/, ordinary workdirs of train. Whatever a run's workdir lacks, since files were moved or the run
failed, comes back as None: the report is made of what is there.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError

SPLITS = ("test", "valid")  # the first one there is, is reported


class Run(NamedTuple):
    """A run that has ended.

    Attributes:
      point, seed: of the sweep; ("", the config's seed) for a run of its own.
      workdir: of the run.
      metrics: content of metrics.json, None if it failed.
      error: why it failed; empty if it did not.
      overrides: {dotted field: value} of the point.
      seconds: of the whole run, None if unknown.
      memory: the most that its process held, in MiB, None if unknown.
    """

    point: str
    seed: int
    workdir: Path
    metrics: dict | None
    error: str = ""
    overrides: dict = {}
    seconds: float | None = None
    memory: float | None = None


class Sweep(NamedTuple):
    """What was to be run, and what has ended.

    Attributes:
      points, seeds: in the order of sweep.json.
      reference: a point.
      runs: {(point, seed): Run}, failed ones too.
      left_out: lines of results.jsonl whose point or seed sweep.json no longer has.
    """

    workdir: Path
    name: str
    experiment: str
    points: Sequence[str]
    seeds: Sequence[int]
    reference: str
    runs: dict
    left_out: int = 0

    def done(self, point: str) -> list[Run]:
        """The point's runs that have metrics, in the order of the seeds."""
        found = (self.runs.get((point, seed)) for seed in self.seeds)
        return [run for run in found if run is not None and run.metrics is not None]

    def all_done(self) -> list[Run]:
        """Every run that has metrics."""
        return [run for point in self.points for run in self.done(point)]

    def failed(self) -> list[Run]:
        """Every run that failed."""
        return [
            run
            for point in self.points
            for seed in self.seeds
            if (run := self.runs.get((point, seed))) and run.error
        ]


def load(workdir: Path) -> Sweep | Run:
    """What the directory holds.

    Raises:
      UserError: neither a sweep nor a run, nothing of it finished, or a damaged file.
    """
    if not workdir.is_dir():
        raise UserError(
            f"--workdir={workdir}: no such directory; name the --workdir of a sweep or of a trained run"
        )
    if (workdir / "sweep.json").exists():
        return _sweep(workdir)
    if (workdir / "metrics.json").exists():
        return Run("", _seed(workdir), workdir, _json(workdir / "metrics.json"))
    if (workdir / "config.json").exists():
        record = _json(workdir / "result.json") if (workdir / "result.json").exists() else {}
        if error := (record.get("line") or {}).get("error"):
            raise UserError(
                f"{workdir}: its run failed ({error}); mend that, and `sweep --retry` tries it again"
            )
        raise UserError(
            f"{workdir}: its run is not finished (no metrics.json); the same train command goes on with it"
        )
    inside = sorted(
        str(p.parent) for p in workdir.glob("*/*.json") if p.name in ("sweep.json", "metrics.json")
    )
    hint = (
        f"did you mean --workdir={inside[0]}?" if inside else "name the --workdir of sweep or train"
    )
    raise UserError(
        f"{workdir}: holds no sweep (no sweep.json) and no run (no metrics.json); {hint}"
    )


def split_of(runs: Sequence[Run]) -> str:
    """The split that all of the runs were evaluated on: test, else valid."""
    return next(
        (split for split in SPLITS if all(split in run.metrics for run in runs)), SPLITS[-1]
    )


def fields(run: Run) -> dict | None:
    """{dotted path: value} of the run's config."""
    path = run.workdir / "config.json"
    return config_lib.renamed(config_lib.flatten(_json(path))) if path.exists() else None


def machine(run: Run) -> str:
    """Devices, platform and versions in a line, from environment.json; empty where there is none."""
    path = run.workdir / "environment.json"
    if not path.exists():
        return ""
    body = _json(path)
    kinds = [
        " ".join(dict.fromkeys((d.split(":")[0], d.split(" ", 1)[-1]))) for d in body["devices"]
    ]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    versions = ", ".join(f"{name} {body['packages'][name]}" for name in ("emofm_jax", "jax"))
    commit = f", commit {body['git_commit'][:7]}" if body.get("git_commit") else ""
    return f"{devices}, {body['platform']}; {versions}{commit}"


def day(run: Run) -> str | None:
    """The day on which the run ended, as in 2026-11-25; None where its metrics.json is gone."""
    path = run.workdir / "metrics.json"
    return datetime.date.fromtimestamp(path.stat().st_mtime).isoformat() if path.exists() else None


def training_log(run: Run) -> list[dict]:
    """The lines of log.jsonl of the event `train`, in order."""
    path, lines = run.workdir / "log.jsonl", []
    if not path.exists():
        return lines
    for number, line in enumerate(path.read_text().splitlines(), 1):
        event = _parse(line, f"{path}:{number}")
        if event.get("event") == "train":
            lines.append(event)
    return lines


def predictions(run: Run, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Label i8[n] and p f32[n] of a split; None where none were kept."""
    path = run.workdir / "predictions" / f"{split}.parquet"
    if not path.exists():
        return None
    try:
        table = pq.read_table(path, columns=["label", "p"], use_threads=False, memory_map=True)
    except pa.ArrowException as error:
        raise UserError(
            f"{path}: not readable as Parquet ({error}); evaluate the run again"
        ) from None
    return table["label"].to_numpy(), table["p"].to_numpy()


def importance(run: Run, split: str) -> dict | None:
    """Content of predictions/SPLIT.importance.json, by `evaluate --importance`."""
    path = run.workdir / "predictions" / f"{split}.importance.json"
    return _json(path) if path.exists() else None


def _sweep(workdir: Path) -> Sweep:
    plan = _json(workdir / "sweep.json")
    missing = [
        key for key in ("name", "experiment", "points", "seeds", "reference") if key not in plan
    ]
    if missing:
        raise UserError(
            f"{workdir / 'sweep.json'}: it has no {', '.join(missing)}; run the sweep's command again"
        )
    points = [point["name"] if isinstance(point, dict) else point for point in plan["points"]]
    runs, left_out, path = {}, 0, workdir / "results.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        body = _parse(line, f"{path}:{number}")
        if missing := [
            key for key in ("point", "seed", "status", "overrides", "metrics") if key not in body
        ]:
            raise UserError(
                f"{path}:{number}: it has no {', '.join(missing)}; delete the line and sweep again"
            )
        if body["status"] == "ok" and not any(split in (body["metrics"] or {}) for split in SPLITS):
            raise UserError(
                f"{path}:{number}: status ok, but no metrics; delete the line and sweep again"
            )
        if body["point"] not in points or body["seed"] not in plan["seeds"]:
            left_out += 1
            continue
        place = workdir / (body.get("workdir") or f"runs/{body['point']}/seed-{body['seed']}")
        ok = body["status"] == "ok"
        error = "" if ok else str(body.get("error") or "it says no error")
        figures = body["metrics"] if ok else None
        cost = (body.get("seconds"), body.get("peak_memory_mib"))
        run = Run(body["point"], body["seed"], place, figures, error, body["overrides"], *cost)
        runs[run.point, run.seed] = run
    sweep = Sweep(
        workdir,
        plan["name"],
        plan["experiment"],
        points,
        plan["seeds"],
        plan["reference"],
        runs,
        left_out,
    )
    if not sweep.all_done():
        failed = sweep.failed()
        first = (
            f", {len(failed)} failed, first {failed[0].point} seed {failed[0].seed}: {failed[0].error}"
            if failed
            else ""
        )
        total = len(points) * len(plan["seeds"])
        raise UserError(
            f"{workdir}: none of its {total} runs is finished{first}; let the sweep go on first"
        )
    return sweep


def _seed(workdir: Path) -> int:
    path = workdir / "config.json"
    return _json(path)["seed"] if path.exists() else 0


def _json(path: Path) -> dict:
    try:
        body = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run its program again") from None
    if not isinstance(body, dict):
        raise UserError(
            f"{path}: holds {type(body).__name__}, not an object; run its program again"
        )
    return body


def _parse(line: str, where: str) -> dict:
    try:
        body = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{where}: damaged line ({error}); delete it and run its program again"
        ) from None
    if not isinstance(body, dict):
        raise UserError(
            f"{where}: damaged line (no JSON object); delete it and run its program again"
        )
    return body
