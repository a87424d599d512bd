"""What a sweep found, as numbers: figures of its runs, comparisons and settings of its points."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from emofm_jax import options
from emofm_jax.evaluation import comparison
from emofm_jax.evaluation.comparison import Interval
from emofm_jax.reports import read

# Fields that follow from the point or the machine, and are no reason for a difference.
_IDLE = ("name", "seed", "data.dir")

# f64[seeds] of each point, NaN where a run is missing.
Figure: TypeAlias = dict[str, np.ndarray]


class Missing(enum.StrEnum):
    """Why two points cannot be compared row by row."""

    PREDICTIONS = "no predictions"
    CLASSES = "one class only"
    SAME_ROWS = "other test rows"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours - theirs, averaged over the seeds they share.

    Attributes:
      point: ours.
      metric: a key of `comparison.HIGHER_IS_BETTER`.
      num_seeds: that both have.
      seeds, rows, both: intervals of comparison.py, None where it is not possible.
      why: what is missing, in words.
    """

    point: str
    metric: str
    num_seeds: int
    seeds: Interval | None = None
    rows: Interval | None = None
    both: Interval | None = None
    why: str = ""

    @property
    def interval(self) -> Interval | None:
        """The one that the verdict comes from."""
        return self.both or self.seeds or self.rows

    @property
    def verdict(self) -> str:
        """One of `comparison.VERDICTS`; empty without an interval."""
        return self.verdict_of(self.interval) if self.interval else ""

    def verdict_of(self, interval: Interval) -> str:
        """What one of the intervals says."""
        return comparison.verdict(interval, comparison.HIGHER_IS_BETTER[self.metric])


def figure(sweep: read.Sweep, value: Callable[[read.Run], float | None]) -> Figure:
    """A value of each run that has metrics."""
    found = {}
    for point in sweep.points:
        of_seed = {run.seed: value(run) for run in sweep.done(point)}
        found[point] = np.array([of_seed.get(seed) for seed in sweep.seeds], np.float64)
    return found


def compare(
    sweep: read.Sweep,
    split: str,
    metric: str,
    values: Figure,
    points: Sequence[str],
    against: Sequence[str],
) -> dict[str, list[Comparison]]:
    """Each of some points against each point of `against`.

    Reads each run's predictions once. Rows are compared where both sides have predictions of the
    same labels; where the labels are other ones, nothing is compared.

    Args:
      split: whose rows the values are of.
      metric: a key of `comparison.HIGHER_IS_BETTER`.
      values: of the metric.
      points: that have runs and share their data.
      against: points that have runs.

    Returns:
      {theirs: [Comparison of every other point, in order]}.
    """
    seeds_of = {
        p: [s for s, v in zip(sweep.seeds, values[p]) if np.isfinite(v)]
        for p in {*points, *against}
    }

    @functools.lru_cache(maxsize=2 * len(against) + 2)
    def rows_of(point: str, seeds: tuple[int, ...]) -> "_Rows | Missing":
        return _rows(sweep, split, metric, point, seeds)

    def one(ours: str, theirs: str) -> Comparison:
        shared = tuple(s for s in seeds_of[ours] if s in seeds_of[theirs])
        a, b = (rows_of(point, shared or tuple(seeds_of[point])) for point in (ours, theirs))
        rows = _over_rows(a, b)
        if rows is Missing.SAME_ROWS:  # means of other rows differ for other reasons too
            return Comparison(ours, metric, len(shared), why=rows)

        missing = [rows] if isinstance(rows, Missing) else []
        over_rows = None if isinstance(rows, Missing) else rows
        if len(shared) < 2:
            why = "; ".join([*missing, f"{len(shared) or 'no'} seed in common"])
            return Comparison(ours, metric, len(shared), rows=over_rows, why=why)

        columns = [sweep.seeds.index(seed) for seed in shared]
        differences = values[ours][columns] - values[theirs][columns]
        seeds = comparison.t_interval(differences)
        both = comparison.together(differences, over_rows) if over_rows else None
        return Comparison(ours, metric, len(shared), seeds, over_rows, both, "".join(missing))

    found: dict[str, list[Comparison]] = {theirs: [] for theirs in against}
    for ours in points:
        for theirs, compared in found.items():
            if ours != theirs:
                compared.append(one(ours, theirs))
    return found


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Labels of a point's test rows, and `comparison.row_parts` averaged over its seeds."""

    label: np.ndarray
    parts: list[np.ndarray]
    weights: list[np.ndarray] | None  # of the rows of each part


def _rows(
    sweep: read.Sweep, split: str, metric: str, point: str, seeds: Sequence[int]
) -> _Rows | Missing:
    label: np.ndarray | None = None
    weight: np.ndarray | None = None
    total: list[np.ndarray] = []
    for seed in seeds:
        found = read.predictions(sweep.runs[point, seed], split)
        if found is None:
            return Missing.PREDICTIONS
        if label is not None and not np.array_equal(label, found[0]):
            return Missing.SAME_ROWS
        label = found[0]
        if metric == "auc" and not 0 < np.count_nonzero(label) < len(label):
            return Missing.CLASSES
        parts = comparison.row_parts(metric, *found)
        weight = found[2]
        total = [a + b for a, b in zip(total, parts)] if total else list(parts)

    if label is None:
        return Missing.PREDICTIONS
    weights = None
    if weight is not None:
        weights = [weight[label > 0], weight[label <= 0]] if metric == "auc" else [weight]
    return _Rows(label, [a / len(seeds) for a in total], weights)


def _over_rows(ours: _Rows | Missing, theirs: _Rows | Missing) -> Interval | Missing:
    if Missing.SAME_ROWS in (ours, theirs):
        return Missing.SAME_ROWS
    if isinstance(ours, Missing):
        return ours
    if isinstance(theirs, Missing):
        return theirs
    if not np.array_equal(ours.label, theirs.label):
        return Missing.SAME_ROWS
    return comparison.over_rows(ours.parts, theirs.parts, weights=ours.weights)


def settings(
    sweep: read.Sweep, points: Sequence[str], idle: Sequence[str] = _IDLE
) -> dict[str, dict[str, Any]]:
    """{point: {field: value}} of config.json if all points have one, else of the overrides."""
    runs = {point: sweep.ended(point) for point in points}
    found: dict[str, Mapping[str, Any]] = {}
    for point, of_point in runs.items():
        if fields := next(filter(None, map(read.fields, of_point)), None):
            found[point] = fields
    if len(found) < len(runs):
        found = {p: options.flatten(r[0].overrides) if r else {} for p, r in runs.items()}
    return {p: {k: v for k, v in f.items() if k not in idle} for p, f in found.items()}
