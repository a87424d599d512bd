"""Learning curves and reliability of a point's runs, averaged over its seeds; their charts."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import plots, read

_MOST = 80  # points of a curve
_FURTHEST = 10  # times as many clicks as predicted, or as few
BEHIND = 24  # nameless curves behind the named ones

Runs: TypeAlias = Sequence[read.Run]


def training(runs: Runs, name: str, key: str) -> plots.Series | None:
    """A figure of log.jsonl (`logloss`, `auc`) against the step; None without lines."""
    return _mean([read.training_log(run) for run in runs], name, key)


def validation(runs: Runs, name: str, key: str) -> plots.Series | None:
    """A figure of the evaluations on the validation split against the step; None without any."""
    return _mean([run.train.get("evaluations") or [] for run in runs], name, key)


def learning_chart(
    title: str, series: Sequence[plots.Series], unit: str, most_marks: int
) -> list[str]:
    """The chart of learning curves, with marks if all have fewer than so many; none of points."""
    longest = max((len(one.x) for one in series), default=0)
    if longest <= 1:  # one evaluation is no curve
        return []
    marks = longest < most_marks
    return [plots.lines(title, series, x="training steps", y=unit, marks=marks)]


def reliability(runs: Runs, name: str, split: str) -> plots.Series | None:
    """Click rates against mean predictions: of one run with intervals, of several their means."""
    every = [run.splits[split].reliability for run in runs]
    bins = [of_run for of_run in every if all(part.rate is not None for part in of_run)]
    bins = [of_run for of_run in bins if len(of_run) == len(every[0])]
    if not bins or not bins[0]:
        return None

    figures = np.array([[(part.mean_p, part.rate) for part in of_run] for of_run in bins])
    p, rate = figures.mean(axis=0).T.tolist()
    if len(bins) > 1:
        return plots.Series(name, p, rate)
    rows = [part.rows for part in bins[0]]
    return plots.Series(name, p, rate, list(map(comparison.rate_interval, rate, rows)))


def reliability_charts(title: str, series: Sequence[plots.Series]) -> list[str]:
    """Click rates against predictions, and their ratio."""
    return [plots.reliability(title, series), ratio_chart(series)]


def ratio_chart(series: Sequence[plots.Series]) -> str:
    """Clicks over predicted clicks of each bin: where predictions are too low or high.

    Parts that are further off than `_FURTHEST` are left to the other chart, which is logarithmic.
    """
    ratios, left_out = [], False
    for one in series:
        points = list(zip(one.x, one.y, one.intervals or [None] * len(one.x)))
        near = [
            (p, rate, interval)
            for p, rate, interval in points
            if p and rate and 1 / _FURTHEST <= rate / p <= _FURTHEST
        ]
        left_out |= len(near) < len(points)
        x, y = [p for p, _, _ in near], [rate / p for p, rate, _ in near]
        ends = [i and i._replace(low=i.low / p, high=i.high / p) for p, _, i in near]
        ratios.append(plots.Series(one.name, x, y, ends))

    title = "Clicks over predicted clicks, part by part"
    title += f", up to {_FURTHEST} times off" if left_out else ""
    across, up = "mean prediction (probability)", "clicks / predicted clicks"
    return plots.lines(title, ratios, x=across, y=up, log_x=True, level=1.0)


def gather(
    make: Callable[[Runs, str], plots.Series | None],
    named: Sequence[tuple[str, Runs]],
    others: Sequence[Runs] = (),
) -> list[plots.Series]:
    """`make(runs, name)` of named points, then of some others without name, where it finds any."""
    every = [*named, *(("", runs) for runs in others[:BEHIND])]
    return [series for name, runs in every if (series := make(runs, name)) is not None]


def _mean(curves: Sequence[Sequence[dict]], name: str, key: str) -> plots.Series | None:
    """The mean of a figure over the runs at the steps that all of them have."""
    values = [{line["step"]: line[key] for line in of_run} for of_run in curves]
    steps = sorted(set.intersection(*map(set, values))) if values else []
    steps = [step for step in steps if all(of_run[step] is not None for of_run in values)]
    if not steps:
        return None
    if len(steps) > _MOST:
        kept = np.linspace(0, len(steps) - 1, _MOST).round().astype(int)
        steps = [steps[i] for i in kept]
    return plots.Series(name, steps, [float(np.mean([v[s] for v in values])) for s in steps])
