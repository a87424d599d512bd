"""What a sweep found, as numbers and in words (for report.py): means, comparisons, sensitivity, the summary.

A matrix has a row per point and a column per seed, NaN where a run is missing.
"""

import functools
import math
import os.path
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from emofm_jax import comparison, config
from emofm_jax.reports import results

# Fields that follow from the point or the machine, and are no reason for a difference.
_IDLE = ("name", "seed", "data.dir")
_NAMED = 8  # points that a sentence lists at most


class Comparison(NamedTuple):
    """Of ours - theirs, averaged over the seeds they share.

    Attributes:
      point: ours.
      seeds, rows, both: intervals of comparison.py, None where it is not possible.
      basis: which interval the verdict comes from: "seeds and rows", "rows", "seeds" or "".
      verdict: of `comparison.VERDICTS`; empty without an interval.
      why: what is missing, in words.
    """

    point: str
    seeds: comparison.Interval | None
    rows: comparison.Interval | None
    both: comparison.Interval | None
    basis: str
    verdict: str
    why: str

    def best_interval(self) -> comparison.Interval | None:
        """The one that the verdict comes from."""
        return {"seeds and rows": self.both, "rows": self.rows, "seeds": self.seeds}.get(self.basis)


class Line(NamedTuple):
    """Points that differ from the reference in one number only.

    Attributes:
      field: dotted path, with an index if one entry of a tuple varies.
      points: by rising x, the reference among them.
      x: its values.
    """

    field: str
    points: list[str]
    x: list[float]


def share(part: dict) -> float | None:
    """(AUC - 0.5) / (Bayes AUC - 0.5) of a split's metrics, where the truth is known."""
    best = (part.get("bayes") or {}).get("auc")
    return None if part.get("auc") is None or best in (None, 0.5) else (part["auc"] - 0.5) / (best - 0.5)


def matrix(sweep: results.Sweep, value: Callable[[dict], float | None]) -> np.ndarray:
    """f64[points, seeds] of a value of metrics.json."""
    found = np.full((len(sweep.points), len(sweep.seeds)), np.nan)
    for i, point in enumerate(sweep.points):
        for j, seed in enumerate(sweep.seeds):
            run = sweep.runs.get((point, seed))
            if run is not None and run.metrics is not None and (number := value(run.metrics)) is not None:
                found[i, j] = number
    return found


def spread(values: np.ndarray) -> tuple[float, float, comparison.Interval | None]:
    """Mean, standard deviation and t interval of one point's seeds; NaN and None where there are too few."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return (float(values[0]) if len(values) else math.nan), math.nan, None
    return float(values.mean()), float(values.std(ddof=1)), comparison.t_interval(values)


def best(means: np.ndarray, metric: str) -> int:
    """Index of the best mean."""
    return int(np.nanargmax(means) if comparison.HIGHER_IS_BETTER[metric] else np.nanargmin(means))


def compare(sweep: results.Sweep, metric: str, figures: np.ndarray, against: Sequence[str]) -> dict:
    """Every point against each point of `against`.

    Reads each run's predictions once. Rows are compared where both sides have predictions of the same labels.

    Args:
      metric: a key of `comparison.HIGHER_IS_BETTER`.
      figures: its matrix.
      against: points that have runs.

    Returns:
      {theirs: [Comparison of every other point, in order]}.
    """

    @functools.lru_cache(maxsize=2 * len(against) + 2)
    def parts(point: str, seeds: tuple[int, ...]):
        return _parts(sweep, metric, point, seeds)

    finished = {p: [s for s, v in zip(sweep.seeds, row) if np.isfinite(v)] for p, row in zip(sweep.points, figures)}
    found = {theirs: [] for theirs in against}
    for ours in sweep.points:
        for theirs in against:
            if ours == theirs:
                continue
            shared = tuple(s for s in finished[ours] if s in finished[theirs])
            found[theirs].append(_compare(sweep, metric, figures, ours, theirs, shared, finished, parts))
    return found


def _compare(sweep, metric, figures, ours, theirs, shared, finished, parts) -> Comparison:
    if not finished[ours]:
        return Comparison(ours, None, None, None, "", "", "no run is finished")
    a, b = (parts(point, shared or tuple(finished[point])) for point in (ours, theirs))
    rows, why = None, ""
    if isinstance(a, str) or isinstance(b, str):
        why = a if isinstance(a, str) else b
    elif not np.array_equal(a[0], b[0]):
        why = "other test rows"
    else:
        rows = comparison.over_rows(a[1], b[1])
    if len(shared) < 2:
        why = "; ".join(filter(None, [why, f"{len(shared) or 'no'} seed in common"]))
        basis = "rows" if rows else ""
        verdict = comparison.verdict(rows, comparison.HIGHER_IS_BETTER[metric]) if rows else ""
        return Comparison(ours, None, rows, None, basis, verdict, why)
    columns = [sweep.seeds.index(seed) for seed in shared]
    differences = figures[sweep.points.index(ours), columns] - figures[sweep.points.index(theirs), columns]
    seeds = comparison.t_interval(differences)
    both = comparison.together(differences, rows) if rows else None
    verdict = comparison.verdict(both or seeds, comparison.HIGHER_IS_BETTER[metric])
    return Comparison(ours, seeds, rows, both, "seeds and rows" if both else "seeds", verdict, why)


def _parts(sweep, metric, point, seeds):
    """(labels, row parts averaged over the seeds), or why there are none."""
    label, total = None, None
    for seed in seeds:
        found = results.predictions(sweep.runs[point, seed])
        if found is None:
            return "no predictions"
        if label is not None and not np.array_equal(label, found[0]):
            return "seeds have other test rows"
        label = found[0]
        if metric == "auc" and not 0 < np.count_nonzero(label) < len(label):
            return "one class only"
        part = comparison.row_parts(metric, *found)
        total = part if total is None else [a + b for a, b in zip(total, part)]
    return label, [a / len(seeds) for a in total]


def differences(sweep: results.Sweep) -> dict[str, dict[str, tuple]]:
    """{point: {field: (its value, the reference's)}}, of config.json, or where one has none, of the overrides.

    `...` stands for a field that a side does not set.
    """
    settings = {point: _settings(sweep, point) for point in sweep.points}
    found, theirs = {}, settings[sweep.reference]
    for point, ours in settings.items():
        kind = 0 if ours[0] and theirs[0] else 1
        found[point] = {k: v for k, v in config.difference(ours[kind], theirs[kind]).items() if k not in _IDLE}
    return found


def sensitivity(sweep: results.Sweep, changed: dict[str, dict[str, tuple]]) -> list[Line]:
    """The numeric fields that take at least three values in points which differ from the reference in nothing else.

    Several fields that are set to one number together (the rows of every slot, say) count as one.

    Args:
      changed: from `differences`.
    """
    varied = set().union(*(config.flatten(run.overrides) for run in sweep.runs.values()))
    lines: dict[str, dict[str, float]] = {}
    for point in sweep.points:
        # What the sweep did not set itself follows from what it set.
        pairs = {k: v for k, v in changed[point].items() if k in varied} or changed[point]
        numbers = {_number(key, *pair) for key, pair in pairs.items()}
        fields = sorted(n[0] for n in numbers if n)
        same = len({n[1:] for n in numbers if n}) == 1 and None not in numbers
        if same and sweep.done(point) and len({field.rsplit(".", 1)[-1] for field in fields}) == 1:
            field = fields[0] if len(fields) == 1 else f"{_common(fields)}*.{fields[0].rsplit('.', 1)[-1]}"
            _, ours, theirs = next(iter(numbers))
            lines.setdefault(field, {sweep.reference: theirs} if sweep.done(sweep.reference) else {})[point] = ours
    found = []
    for field, values in lines.items():
        if len(set(values.values())) > 2:
            points = sorted(values, key=values.get)
            found.append(Line(field, points, [float(values[p]) for p in points]))
    return found


def slope(x: Sequence[float], y: np.ndarray, per_decade: bool) -> tuple[float, comparison.Interval | None]:
    """Slope of y f64[points, seeds] per factor of ten of x, or per unit of it; `comparison.slope`."""
    return comparison.slope(np.log10(x) if per_decade else x, y)


def _settings(sweep, point) -> tuple[dict | None, dict]:
    """(fields of the first config.json of the point's runs, its overrides)."""
    runs = [sweep.runs[point, seed] for seed in sweep.seeds if (point, seed) in sweep.runs]
    fields = next((found for run in runs if (found := results.fields(run)) is not None), None)
    return fields, config.flatten(runs[0].overrides) if runs else {}


def _number(key: str, ours, theirs) -> tuple[str, float, float] | None:
    """(field, our number, their number) if one number is all that differs."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        (i, *more) = (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b)
        return None if more else _number(f"{key}[{i}]", ours[i], theirs[i])
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (ours, theirs))
    return (key, ours, theirs) if numeric else None


def _common(fields: list[str]) -> str:
    """The sections that all of the fields begin with."""
    start = os.path.commonprefix(fields)
    return start[: start.rfind(".") + 1]


def listed(names: Sequence[str]) -> str:
    """`a`, `b` and `c`; the first few of many."""
    names = [f"`{name}`" for name in names]
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1] if names else ""]))
