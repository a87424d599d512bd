"""Learning curves and calibration of a point's runs, averaged over its seeds and thinned, as series for plots.py."""

from collections.abc import Callable, Sequence

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import plots, read

_MOST = 80  # points of a curve
_FURTHEST = 10  # times as many clicks as predicted, or as few
BEHIND = 24  # nameless curves behind the named ones


def training(runs: Sequence[read.Run], name: str, key: str) -> plots.Series | None:
    """A figure of log.jsonl (`logloss`, `auc`) against the step; None without lines."""
    return _mean(
        [{line["step"]: line[key] for line in read.training_log(run)} for run in runs], name
    )


def validation(runs: Sequence[read.Run], name: str, key: str) -> plots.Series | None:
    """A figure of the evaluations on the validation split against the step; None without any."""
    evaluations = ((run.metrics.get("train") or {}).get("evaluations") or [] for run in runs)
    return _mean([{line["step"]: line[key] for line in of_run} for of_run in evaluations], name)


def calibration(runs: Sequence[read.Run], name: str, split: str) -> plots.Series | None:
    """Click rates against mean predictions: of one run with their intervals, of several their means part by part."""
    parts = [run.metrics[split].get("calibration") or [] for run in runs]
    parts = [
        p
        for p in parts
        if len(p) == len(parts[0]) and None not in [v for part in p for v in part.values()]
    ]
    if not parts or not parts[0]:
        return None
    p, rate = (
        [float(np.mean([part[i][k] for part in parts])) for i in range(len(parts[0]))]
        for k in ("mean_p", "rate")
    )
    if len(parts) > 1:
        return plots.Series(name, p, rate)
    ends = [comparison.rate_interval(part["rate"], part["rows"]) for part in parts[0]]
    return plots.Series(name, p, rate, [low for low, _ in ends], [high for _, high in ends])


def ratio_chart(series: Sequence[plots.Series]) -> str:
    """Clicks over predicted clicks of each part of `calibration`'s series: where predictions are too low or high.

    Parts that are further off than `_FURTHEST` are left to the other chart, which is logarithmic.
    """
    ratios, near = [], lambda rate, p: p > 0 and 1 / _FURTHEST <= rate / p <= _FURTHEST
    for one in series:
        kept = [i for i, (rate, p) in enumerate(zip(one.y, one.x)) if near(rate, p)]
        parts = [[values[i] / one.x[i] for i in kept] for values in one[2:] if values]
        ratios.append(plots.Series(one.name, [one.x[i] for i in kept], *parts))
    left_out = any(len(one.x) < len(all_of.x) for one, all_of in zip(ratios, series))
    title = f"Clicks over predicted clicks, part by part{f', up to {_FURTHEST} times off' if left_out else ''}"
    x = "mean prediction (probability)"
    return plots.lines(title, ratios, x=x, y="clicks / predicted clicks", log_x=True, level=1.0)


def gather(
    make: Callable, named: Sequence[tuple[str, list]], others: Sequence[list]
) -> list[plots.Series]:
    """`make(runs, name)` of the named points, then of some others without their names; those without data left out."""
    series = [found for name, runs in named if (found := make(runs, name)) is not None]
    return series + [found for runs in others[:BEHIND] if (found := make(runs, "")) is not None]


def _mean(curves: list[dict[int, float | None]], name: str) -> plots.Series | None:
    """The mean over the runs at the steps that all of them have."""
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    steps = [s for s in steps if all(curve[s] is not None for curve in curves)]
    if len(steps) > _MOST:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, _MOST).round().astype(int)]
    return (
        plots.Series(name, steps, [float(np.mean([c[s] for c in curves])) for s in steps])
        if steps
        else None
    )
