"""What all parts of a sweep's report are made of, and the facts at its head."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import read
from emofm_jax.reports.sweep import findings, same_data
from emofm_jax.reports.sweep.same_data import SameData

NAMES = {"auc": "AUC", "logloss": "logloss"}
DIGITS = 5  # of an AUC or a logloss


class View(NamedTuple):
    """What all sections are made of.

    Attributes:
      sweep: the results.
      metric: that points are ordered and compared by.
      split: that was evaluated.
      figures: by name: auc, logloss, pcoc, share, bayes_auc, parameters, rows_per_s, memory.
      data: points by their data, those of the reference first.
      known: whether the metric has a value anywhere.
    """

    sweep: read.Sweep
    metric: str
    split: str
    figures: dict[str, findings.Figure]
    data: list[SameData]
    known: bool

    @property
    def name(self) -> str:
        """That of the metric."""
        return NAMES[self.metric]

    @property
    def measured(self) -> str:
        """The metric and its split, to begin a title with."""
        return f"{self.split.capitalize()} {self.name}"

    def spread(self, point: str, figure: str = "") -> comparison.Spread:
        """Of a figure, if not of the metric, over the seeds there are."""
        figure = figure or self.metric
        return comparison.spread(self.figures[figure][point], figure)

    def mean(self, point: str, figure: str = "") -> float:
        """Of the same; NaN without any seed."""
        return self.spread(point, figure).mean

    def has(self, figure: str) -> bool:
        """Whether a figure is known of any run."""
        return any(np.isfinite(values).any() for values in self.figures[figure].values())

    def placed(self) -> list[tuple[SameData, str]]:
        """Every point with its data, the best of each data first."""
        return [(same, point) for same in self.data for point in same.points]

    def rest(self) -> tuple[list[str], list[str]]:
        """The points without a finished run, and those without the metric where others have it."""
        placed = {point for _, point in self.placed()}
        rest = [point for point in self.sweep.points if point not in placed]
        unfinished = [point for point in rest if not self.sweep.done(point)]
        return unfinished, [point for point in rest if point not in unfinished]


def view(sweep: read.Sweep, metric: str, reference: str) -> View:
    """Reads and compares everything; `reference` replaces that of sweep.json."""
    sweep = dataclasses.replace(sweep, reference=reference)
    split = read.split_of(sweep.all_done())
    of_split = lambda key: lambda run: getattr(run.splits[split], key)
    keys = ("auc", "logloss", "pcoc", "share", "bayes_auc")
    values: dict[str, Callable[[read.Run], float | None]] = {key: of_split(key) for key in keys}
    values["parameters"] = lambda run: run.parameters.get("total")
    values["rows_per_s"] = lambda run: run.train.get("rows_per_s") or None  # 0: of one step only
    values["memory"] = lambda run: run.peak_memory_mib
    figures = {name: findings.figure(sweep, value) for name, value in values.items()}

    memory = figures["memory"]  # it is known of the first run of each process only
    if np.mean([np.isfinite(of_point).any() for of_point in memory.values()]) < 0.5:
        figures["memory"] = {point: np.full_like(v, np.nan) for point, v in memory.items()}
    found = same_data.split_by_data(sweep, split, metric, figures[metric])
    known = any(np.isfinite(of_point).any() for of_point in figures[metric].values())
    return View(sweep, metric, split, figures, found, known)


def title(v: View) -> str:
    """The experiment's name, and the workdir's where that is another."""
    name, workdir = v.sweep.name, v.sweep.workdir.resolve().name
    return f"Sweep: {name}{f' (in {workdir})' if workdir != name else ''}"


def lead(v: View) -> list[str]:
    """What was run, where and when."""
    sweep, runs = v.sweep, v.sweep.all_done()
    seeds = ", ".join(map(str, sweep.seeds))
    facts = [
        f"experiment `{sweep.experiment}`: {len(sweep.points)} points, seeds {seeds}, "
        f"reference `{sweep.reference}`"
    ]
    if machine := read.machine(runs[0]):
        facts.append(machine)
    if days := sorted(day for run in runs if (day := read.day(run))):
        seconds = sum(run.seconds for run in sweep.runs.values())
        between = " to ".join(dict.fromkeys((days[0], days[-1])))
        facts.append(f"{between}; {_time(seconds)} in all" if seconds else between)

    sizes = {(run.splits[v.split].rows, run.splits[v.split].clicks) for run in runs}
    if len(sizes) == 1:
        rows, clicks = sizes.pop()
        facts.append(f"{v.split} split: {rows:,} rows, {clicks:,} clicks")
    return facts


def _time(seconds: float) -> str:
    """Hours, minutes or seconds."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
