"""The best trial of a search, as a config: an experiment file trains more seeds of it."""

import statistics
from pathlib import Path

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.data import files, storage
from emofm_jax.errors import UserError
from emofm_jax.evaluation import monitor
from emofm_jax.sweeping import record

_AGAIN = "run the search's command again"


def best_trial(workdir: str | Path) -> ConfigDict:
    """The config of the trial that a search found to be the best, with the default seed.

    That is by the metric that training watched (`train.monitor`, else AUC) on validation rows, the
    mean over the seeds of a trial, as `sweep --search` says it.

    Args:
      workdir: of the search.

    Raises:
      UserError: no search, or one that is damaged or has not ended; no trial has that metric with
        every seed.
    """
    workdir = storage.reading(workdir)
    header = _header(workdir)
    reached = {}
    for name in header.points:
        found = [_reached(workdir, record.place(name, seed)) for seed in header.seeds]
        values = [value for value in found if value is not None]
        if len(values) == len(found):
            reached[name] = statistics.fmean(values)
    if not reached:
        raise UserError(f"{workdir}: no trial has validation figures with every seed; search anew")

    best = max(reached, key=reached.__getitem__)
    config = config_lib.load(workdir / record.place(best, header.seeds[0]))
    config.seed = config_lib.default().seed
    return config


def _header(workdir: Path) -> record.Header:
    path, remedy = workdir / "sweep.json", "name the --workdir of a `sweep --search=tpe`"
    if not path.exists():
        raise UserError(f"{workdir}: holds no search (no sweep.json); {remedy}")
    with files.undamaged(path, _AGAIN):
        header = record.Header.from_json(files.read_json(path))
    if not header.search:
        raise UserError(f"{workdir}: holds a sweep of declared points and no search; {remedy}")
    return header


def _reached(workdir: Path, run: Path) -> float | None:
    """What a run reached on validation rows, more being better; None if it failed."""
    path = workdir / run / "result.json"
    if not path.exists():
        raise UserError(f"{workdir}: the search has not ended (no result of {run}); {_AGAIN}")
    with files.undamaged(path, _AGAIN):
        result = record.Result.from_json(files.read_json(path))
        if not result.metrics:
            return None
        valid = result.metrics["valid"]
        watched = result.config["train.monitor"] or "auc"
        return monitor.value(watched, valid["auc"], valid["logloss"])
