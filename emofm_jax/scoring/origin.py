"""What a scorer came from: its run, data, days, parent and figures, as far as they are known.

Names of places are those that were typed, or of an absolute path the last part: an export carries
no path of the machine that made it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emofm_jax import errors
from emofm_jax.data import files
from emofm_jax.data.schema import Schema
from emofm_jax.evaluation import run_report
from emofm_jax.training import run_data

_FIGURES = ("rows", "clicks", "auc", "logloss", "gauc", "pcoc")
_SPLITS = ("valid", "test")


def read(workdir: Path, step: int, config: Any, schema: Schema) -> dict[str, Any]:
    """What is to be told of a run.

    Args:
      workdir: of the run.
      step: of the state that scores.
      config, schema: of the run; the first a ConfigDict.

    Returns:
      {"run", "experiment", "model", "step", "data": identity of the preparation, "days": of its
      training rows, "metrics": {split: figures}, "parent": {"run", "step", "data", "days"}}; what
      is not known is left out, as are metrics of another step.

    Raises:
      UserError: metrics.json or parent.json is damaged, or the first of another run.
    """
    found: dict[str, Any] = {
        "run": place(workdir),
        "experiment": config.name,
        "model": config.model.name,
        "step": step,
        "data": schema.identity,
        "days": list(schema.days),
        "metrics": _metrics(workdir, step),
        "parent": _parent(workdir),
    }
    return {key: value for key, value in found.items() if value not in ("", [], {})}


def place(path: Path) -> str:
    """A path as it may travel."""
    return path.name if path.is_absolute() else path.as_posix()


def trained_days(origin: Mapping[str, Any]) -> list[str]:
    """The days of the training rows of a run and of those that it started from, as far as known."""
    return [*origin.get("parent", {}).get("days", ()), *origin.get("days", ())]


def said(origin: Mapping[str, Any]) -> str:
    """An origin in a line."""
    of = f"{origin['run']} (experiment {origin['experiment']}, step {origin['step']:,})"
    parts = [f"{of}, data {origin.get('data') or 'unknown'}"]
    if days := [day for day in origin.get("days", ()) if day]:  # "" is of rows without days
        parts.append(f"days {days[0]} to {days[-1]}")
    if parent := origin.get("parent"):
        parts.append(f"from {parent['run']} (step {parent['step']:,})")

    for split, figures in origin.get("metrics", {}).items():
        if figures.get("auc") is not None:
            parts.append(f"{split} AUC {figures['auc']:.4f}, logloss {figures['logloss']:.4f}")
    return errors.printable("; ".join(parts))


def _metrics(workdir: Path, step: int) -> dict[str, dict[str, Any]]:
    """Figures of the state that metrics.json is of, if it is this one."""
    path = workdir / "metrics.json"
    if not path.exists():
        return {}

    with files.undamaged(path, run_report.REMEDY):
        body = files.read_json(path)
        if body["train"].get("kept_step", step) != step:
            return {}
        run_report.check(workdir, body)
        parts = {split: body[split] for split in _SPLITS if body.get(split)}
        return {split: {key: part.get(key) for key in _FIGURES} for split, part in parts.items()}


def _parent(workdir: Path) -> dict[str, Any]:
    """The run that this one started from (`--init_from`), if it did."""
    path = workdir / run_data.PARENT
    if not path.exists():
        return {}
    with files.undamaged(path, "restore it"):
        body = files.read_json(path)
        found = {"step": body["step"], "data": body["identity"], "days": body["days"]}
        known = {key: value for key, value in found.items() if value not in ("", [])}
        return {"run": place(Path(body["place"]))} | known
