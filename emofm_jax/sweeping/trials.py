"""What trials of a search reached, and the best as a config, of which a file trains more seeds."""

import statistics
from collections.abc import Iterable
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
    figures = {}
    for name in header.points:
        runs = [record.place(name, seed) for seed in header.seeds]
        results = [record.read(workdir / run) for run in runs]
        ended = [result for result in results if result]
        if len(ended) < len(runs):
            to_come = runs[results.index(None)]
            raise UserError(
                f"{workdir}: the search has not ended (no result of {to_come}); {_AGAIN}"
            )
        watched = ended[0].config["train.monitor"] or "auc"
        if (figure := reached(ended, watched, len(runs))) is not None:
            figures[name] = figure
    if not figures:
        raise UserError(f"{workdir}: no trial has validation figures with every seed; search anew")

    best = max(figures, key=figures.__getitem__)
    config = config_lib.load(workdir / record.place(best, header.seeds[0]))
    config.seed = config_lib.default().seed
    return config


def reached(results: Iterable[record.Result], watched: str, num_seeds: int) -> float | None:
    """What a trial reached on validation rows, the mean over its seeds, more being better.

    Args:
      results: of the runs of the trial that have ended.
      watched: the monitor.
      num_seeds: of every trial.

    Returns:
      None if a seed failed or is to come, or lacks a figure that the monitor needs.
    """
    reports = [result.metrics.get("valid", {}) for result in results if result.metrics]
    found = (monitor.value(watched, of.get("auc"), of.get("logloss")) for of in reports)
    values = [value for value in found if value is not None]
    return statistics.fmean(values) if len(values) == num_seeds else None


def _header(workdir: Path) -> record.Header:
    path, remedy = workdir / "sweep.json", "name the --workdir of a `sweep --search=tpe`"
    if not path.exists():
        raise UserError(f"{workdir}: holds no search (no sweep.json); {remedy}")
    with files.undamaged(path, _AGAIN):
        header = record.Header.from_json(files.read_json(path))
    if not header.search:
        raise UserError(f"{workdir}: holds a sweep of declared points and no search; {remedy}")
    return header
