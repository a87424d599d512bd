"""What a sweep found, as numbers and in words (for report.py): means, comparisons, sensitivity, the summary.

A matrix has a row per point and a column per seed, NaN where a run is missing.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from emofm_jax import config
from emofm_jax.evaluation import comparison
from emofm_jax.reports import read

# Fields that follow from the point or the machine, and are no reason for a difference.
_IDLE = ("name", "seed", "data.dir")
_OTHER_ROWS = "other test rows"
_NAMED = 8  # points that a sentence lists at most


class Comparison(NamedTuple):
    """Of ours - theirs, averaged over the seeds they share.

    Attributes:
      point: ours.
      num_seeds: that both have.
      seeds, rows, both: intervals of comparison.py, None where it is not possible.
      basis: which interval the verdict comes from: "seeds and rows", "rows", "seeds" or "".
      verdict: of `comparison.VERDICTS`; empty without an interval.
      why: what is missing, in words.
    """

    point: str
    num_seeds: int
    seeds: comparison.Interval | None
    rows: comparison.Interval | None
    both: comparison.Interval | None
    basis: str
    verdict: str
    why: str

    def best_interval(self) -> comparison.Interval | None:
        """The one that the verdict comes from."""
        return {"seeds and rows": self.both, "rows": self.rows, "seeds": self.seeds}.get(self.basis)


def share(part: dict) -> float | None:
    """(AUC - 0.5) / (Bayes AUC - 0.5) of a split's metrics, where the truth is known."""
    best = (part.get("bayes") or {}).get("auc")
    return (
        None
        if part.get("auc") is None or best in (None, 0.5)
        else (part["auc"] - 0.5) / (best - 0.5)
    )


def matrix(sweep: read.Sweep, value: Callable[[read.Run], float | None]) -> np.ndarray:
    """f64[points, seeds] of a value of each run that has metrics."""
    found = np.full((len(sweep.points), len(sweep.seeds)), np.nan)
    for i, point in enumerate(sweep.points):
        for j, seed in enumerate(sweep.seeds):
            run = sweep.runs.get((point, seed))
            if run is not None and run.metrics is not None and (number := value(run)) is not None:
                found[i, j] = number
    return found


def spread(values: np.ndarray) -> tuple[float, float, comparison.Interval | None]:
    """Mean, standard deviation and t interval of one point's seeds; NaN and None where there are too few."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return (float(values[0]) if len(values) else math.nan), math.nan, None
    return float(values.mean()), float(values.std(ddof=1)), comparison.t_interval(values)


def compare(
    sweep: read.Sweep,
    split: str,
    metric: str,
    figures: np.ndarray,
    points: Sequence[str],
    against: Sequence[str],
) -> dict[str, list[Comparison]]:
    """Each of some points against each point of `against`.

    Reads each run's predictions once. Rows are compared where both sides have predictions of the same labels; where
    the labels are other ones, nothing is compared.

    Args:
      split: whose rows the figures are of.
      metric: a key of `comparison.HIGHER_IS_BETTER`.
      figures: its matrix.
      points: that have runs and share their data.
      against: points that have runs.

    Returns:
      {theirs: [Comparison of every other point, in order]}.
    """

    @functools.lru_cache(maxsize=2 * len(against) + 2)
    def parts(point: str, seeds: tuple[int, ...]):
        return _parts(sweep, split, metric, point, seeds)

    finished = {
        p: [s for s, v in zip(sweep.seeds, row) if np.isfinite(v)]
        for p, row in zip(sweep.points, figures)
    }
    found = {theirs: [] for theirs in against}
    for ours in points:
        for theirs in found:
            if ours == theirs:
                continue
            shared = tuple(s for s in finished[ours] if s in finished[theirs])
            found[theirs].append(
                _compare(sweep, metric, figures, ours, theirs, shared, finished, parts)
            )
    return found


def _compare(sweep, metric, figures, ours, theirs, shared, finished, parts) -> Comparison:
    nothing = Comparison(ours, len(shared), None, None, None, "", "", "")
    a, b = (parts(point, shared or tuple(finished[point])) for point in (ours, theirs))
    if _OTHER_ROWS in (a, b) or not (
        isinstance(a, str) or isinstance(b, str) or np.array_equal(a[0], b[0])
    ):
        return nothing._replace(why=_OTHER_ROWS)  # means of other rows differ for other reasons too
    rows, why = None, ""
    if isinstance(a, str) or isinstance(b, str):
        why = a if isinstance(a, str) else b
    else:
        rows = comparison.over_rows(a[1], b[1])
    higher = comparison.HIGHER_IS_BETTER[metric]
    if len(shared) < 2:
        why = "; ".join(filter(None, [why, f"{len(shared) or 'no'} seed in common"]))
        if rows is None:
            return nothing._replace(why=why)
        return nothing._replace(
            rows=rows, basis="rows", verdict=comparison.verdict(rows, higher), why=why
        )
    columns = [sweep.seeds.index(seed) for seed in shared]
    differences = (
        figures[sweep.points.index(ours), columns] - figures[sweep.points.index(theirs), columns]
    )
    seeds = comparison.t_interval(differences)
    both = comparison.together(differences, rows) if rows else None
    verdict = comparison.verdict(both or seeds, higher)
    basis = "seeds and rows" if both else "seeds"
    return nothing._replace(
        seeds=seeds, rows=rows, both=both, basis=basis, verdict=verdict, why=why
    )


def _parts(sweep, split, metric, point, seeds):
    """(labels, row parts averaged over the seeds), or why there are none."""
    label, total = None, None
    for seed in seeds:
        found = read.predictions(sweep.runs[point, seed], split)
        if found is None:
            return "no predictions"
        if label is not None and not np.array_equal(label, found[0]):
            return _OTHER_ROWS
        label = found[0]
        if metric == "auc" and not 0 < np.count_nonzero(label) < len(label):
            return "one class only"
        part = comparison.row_parts(metric, *found)
        total = part if total is None else [a + b for a, b in zip(total, part)]
    return label, [a / len(seeds) for a in total]


def differences(sweep: read.Sweep) -> dict[str, dict[str, tuple]]:
    """{point: {field: (its value, the reference's)}}, of config.json, or where one has none, of the overrides.

    `...` stands for a field that a side does not set.
    """
    found = {}
    for point in sweep.points:
        ours, theirs = (
            settings(sweep, (point, sweep.reference)).values()
            if point != sweep.reference
            else ({}, {})
        )
        found[point] = config.difference(ours, theirs)
    return found


def settings(
    sweep: read.Sweep, points: Sequence[str], idle: Sequence[str] = _IDLE
) -> dict[str, dict]:
    """{point: {field: value}} of config.json, if all of the points have one, else of the overrides; without `idle`."""
    runs = {
        p: [sweep.runs[p, seed] for seed in sweep.seeds if (p, seed) in sweep.runs] for p in points
    }
    found = {
        p: next((f for run in of_point if (f := read.fields(run)) is not None), None)
        for p, of_point in runs.items()
    }
    if None in found.values():
        found = {
            p: config.flatten(of_point[0].overrides) if of_point else {}
            for p, of_point in runs.items()
        }
    return {p: {k: v for k, v in fields.items() if k not in idle} for p, fields in found.items()}


def listed(names: Sequence[str]) -> str:
    """`a`, `b` and `c`; the first few of many."""
    names = [f"`{name}`" for name in names]
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1] if names else ""]))
