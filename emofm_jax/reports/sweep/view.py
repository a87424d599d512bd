"""What all parts of a sweep's report are made of, and the facts at its head."""

from typing import NamedTuple

import numpy as np

from emofm_jax.reports import read
from emofm_jax.reports.sweep import findings, same_data
from emofm_jax.reports.sweep.same_data import Group

NAMES = {"auc": "AUC", "logloss": "logloss"}


class View(NamedTuple):
    """What all sections are made of.

    Attributes:
      sweep: the results.
      metric: that points are ordered and compared by.
      split: that was evaluated.
      figures: {name: matrix}: auc, logloss, pcoc, share, bayes (the truth's AUC), parameters, rows_per_s, memory.
      groups: points of the same data, that of the reference first; in each the best first.
      changed: from `findings.differences`.
      known: whether the metric has a value anywhere.
    """

    sweep: read.Sweep
    metric: str
    split: str
    figures: dict[str, np.ndarray]
    groups: list[Group]
    changed: dict
    known: bool

    def mean(self, name: str, point: int) -> float:
        """Over the seeds there are; NaN without any."""
        return findings.spread(self.figures[name][point])[0]

    def names(self, group: Group) -> list[str]:
        """Of its points, the best first."""
        return [self.sweep.points[i] for i in group.order]

    def rest(self) -> tuple[list[int], list[int]]:
        """Indices of the points without a finished run, and of those without the metric where others have it."""
        grouped = {i for group in self.groups for i in group.order}
        rest = [i for i in range(len(self.sweep.points)) if i not in grouped]
        done = [i for i in rest if self.sweep.done(self.sweep.points[i])]
        return [i for i in rest if i not in done], done

    def placed(self) -> list[tuple[Group, int]]:
        """(group, index of a point), group by group, the best of each first."""
        return [(group, i) for group in self.groups for i in group.order]


def view(sweep: read.Sweep, metric: str, reference: str) -> View:
    """Reads and compares everything; `reference` replaces that of sweep.json."""
    sweep = sweep._replace(reference=reference)
    split = read.split_of(sweep.all_done())
    values = {
        key: lambda run, key=key: run.metrics[split].get(key) for key in ("auc", "logloss", "pcoc")
    }
    values |= {
        "share": lambda run: findings.share(run.metrics[split]),
        "bayes": lambda run: (run.metrics[split].get("bayes") or {}).get("auc"),
        "parameters": lambda run: (run.metrics.get("parameters") or {}).get("total"),
        "rows_per_s": lambda run: (
            (run.metrics.get("train") or {}).get("rows_per_s") or None
        ),  # 0: of one step only
        "memory": lambda run: run.memory,
    }
    figures = {name: findings.matrix(sweep, value) for name, value in values.items()}
    if (
        np.isfinite(figures["memory"]).any(axis=1).mean() < 0.5
    ):  # it is known of the first run of each process only
        figures["memory"][:] = np.nan
    known = bool(np.isfinite(figures[metric]).any())
    found = same_data.groups(sweep, split, metric, figures[metric])
    return View(sweep, metric, split, figures, found, findings.differences(sweep), known)


def lead(v: View) -> list[str]:
    """What was run, where and when."""
    sweep, runs = v.sweep, v.sweep.all_done()
    facts = [
        f"experiment `{sweep.experiment}`: {len(sweep.points)} points, seeds {', '.join(map(str, sweep.seeds))}, "
        f"reference `{sweep.reference}`"
    ]
    if machine := read.machine(runs[0]):
        facts.append(machine)
    if days := sorted(day for run in runs if (day := read.day(run))):
        seconds = sum(run.seconds or 0 for run in sweep.runs.values())
        facts.append(
            " to ".join(dict.fromkeys((days[0], days[-1])))
            + (f"; {_time(seconds)} in all" if seconds else "")
        )
    rows = {(run.metrics[v.split].get("rows"), run.metrics[v.split].get("clicks")) for run in runs}
    if len(rows) == 1 and None not in (only := rows.pop()):
        facts.append(f"{v.split} split: {only[0]:,} rows, {only[1]:,} clicks")
    return facts


def _time(seconds: float) -> str:
    """Hours, minutes or seconds."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
