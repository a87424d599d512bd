"""Is one model better than another? Intervals over seeds, over test rows, and over both.

    over seeds  t interval of the paired per-seed differences d_s: what training again would give
                on these test rows
    over rows   AUC: DeLong's interval; logloss: normal interval of the mean paired difference:
                what other test rows would give these very models
    together    variance var(d)/k + rows' variance, t with Satterthwaite's degrees of freedom, and
                never narrower than over seeds: training again AND other rows; the verdict comes
                from this one

A bootstrap over 3 to 5 seeds covers far less than it says, so seeds get the t interval. For rows,
DeLong's variance is what a bootstrap of an AUC converges to, exactly and in one sort. With several
seeds its components are averaged over them: the interval is then of the mean of the seeds' AUCs,
the number in the table, and not of an ensemble's, which a mean prediction would be. Rows count as
independent; where one user has many rows, intervals over rows are too narrow.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are used

from emofm_jax.evaluation import metrics

HIGHER_IS_BETTER = {"auc": True, "logloss": False}
LEVEL = 0.95  # of every interval
WITHIN = {"auc": (0.0, 1.0), "logloss": (0.0, math.inf)}  # ends that no interval of these passes
RISK = 0.05  # that `holm` takes
VERDICTS = ("better", "worse", "not distinguishable")


class Interval(NamedTuple):
    """An estimate (floats, or arrays of one shape), its interval, two-sided p-value of 0."""

    mean: float
    low: float
    high: float
    p: float = math.nan


class Spread(NamedTuple):
    """Mean, standard deviation and t interval of values; NaN and None where these are too few."""

    mean: float = math.nan
    sd: float = math.nan
    interval: Interval | None = None


def spread(values: np.ndarray, metric: str = "") -> Spread:
    """Spread of `values` [k] of a metric, those apart that are NaN; intervals end where it does."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Spread(float(values[0])) if len(values) else Spread()
    found = t_interval(values)
    if metric in WITHIN:
        low, high = np.clip([found.low, found.high], *WITHIN[metric]).tolist()
        found = found._replace(low=low, high=high)
    return Spread(float(values.mean()), float(values.std(ddof=1)), found)


def t_interval(values: np.ndarray) -> Interval:
    """t interval of the mean of `values` f64[..., k]; of paired differences, the paired t test.

    Raises:
      ValueError: fewer than two values.
    """
    values = np.asarray(values, np.float64)
    k = values.shape[-1]
    if k < 2:
        raise ValueError(f"{k} values have no spread; an interval needs two")
    return student(values.mean(axis=-1), values.std(axis=-1, ddof=1) / np.sqrt(k), k - 1.0)


def row_parts(
    metric: str, label: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """What each row adds to a metric: arrays whose averages over models `over_rows` compares.

    auc (DeLong's components): of each click the share of the rest it beats, and of each of the rest
    the share of clicks it loses to, a tie counting one half; the mean of either is the AUC.
    logloss: the nats of each row.

    Args:
      label: [n] of 0 and 1.
      p: f32[n].
      weight: f32[n] > 0, or None for all 1: the shares are then of weight.

    Returns:
      auc: (f64[clicks], f64[n - clicks]); logloss: (f64[n],).

    Raises:
      ValueError: auc of one class.
    """
    if metric == "logloss":
        return (metrics.nats(label, p),)
    clicked = np.asarray(label) > 0
    num_clicks = int(np.count_nonzero(clicked))
    if not 0 < num_clicks < len(clicked):
        raise ValueError("one class only: no AUC")

    # One sort, and counts along it: several times as fast as a search for each row.
    order = np.argsort(p)
    scores, is_click = p[order], clicked[order]
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))  # of runs of ties
    ends = np.append(starts[1:], len(scores))
    run = np.repeat(np.arange(len(starts)), ends - starts)
    parts = []
    mass = 1 if weight is None else weight[order].astype(np.float64)  # whole numbers stay exact
    for mine, others in ((is_click, ~is_click), (~is_click, is_click)):
        below = np.concatenate([[0], np.cumsum(others * mass)])
        share = np.empty(len(scores))
        share[order[mine]] = ((below[starts] + below[ends]) / (2.0 * below[-1]))[run[mine]]
        parts.append(share)
    return parts[0][clicked], 1.0 - parts[1][~clicked]


def over_rows(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    weights: Sequence[np.ndarray] | None = None,
) -> Interval:
    """Interval of ours - theirs over the rows that `row_parts` was given, the same for both.

    Args:
      ours, theirs: what `row_parts` returned of the two models.
      weights: f32[..] > 0 of the rows of each part; None for all 1.

    Raises:
      ValueError: the rows differ in number.
    """
    if [len(a) for a in ours] != [len(b) for b in theirs]:
        raise ValueError("not the same rows")
    strata = [np.asarray(a, np.float64) - b for a, b in zip(ours, theirs)]
    shares = [np.full(len(d), 1 / max(len(d), 1)) for d in strata]
    if weights is not None:
        shares = [np.asarray(w, np.float64) / np.sum(w, dtype=np.float64) for w in weights]
    means = [float(share @ d) for share, d in zip(shares, strata)]

    variance = 0.0
    for d, share, mean in zip(strata, shares, means):
        if len(d) > 1:
            variance += float(np.sum((share * (d - mean)) ** 2)) * len(d) / (len(d) - 1)
    return student(means[0], np.sqrt(variance), np.inf)


def together(differences: np.ndarray, rows: Interval) -> Interval:
    """Interval of the mean of paired per-seed differences f64[..., k], over seeds and rows.

    Satterthwaite's interval alone covers 0.88 with two seeds and 0.92 with three where the rows add
    a tenth to a third of the seeds' deviation, since it then trusts an estimate from one or two
    degrees of freedom. Not to be narrower than over seeds mends it: 0.943 to 0.954 with three and
    five seeds at any ratio (40,000 simulations each). With two seeds it errs on the wide side,
    0.951 to 0.977, most where rows and seeds add alike.

    Args:
      differences: of k >= 2 seeds.
      rows: from `over_rows`.
    """
    differences = np.asarray(differences, np.float64)
    k = differences.shape[-1]
    of_seeds = differences.var(axis=-1, ddof=1) / k
    quantile = scipy.special.ndtri((1 + LEVEL) / 2)
    of_rows = ((np.asarray(rows.high) - rows.low) / 2 / quantile) ** 2
    total = of_seeds + of_rows
    share = np.where(total > 0, of_seeds / np.where(total > 0, total, 1.0), 1.0)
    freedom = (k - 1) / np.maximum(share**2, 1e-9)
    both = student(differences.mean(axis=-1), np.sqrt(total), freedom)
    alone = t_interval(differences)
    low, high = np.minimum(both.low, alone.low)[()], np.maximum(both.high, alone.high)[()]
    return Interval(both.mean, low, high, np.maximum(both.p, alone.p)[()])


def verdict(interval: Interval, higher_is_better: bool) -> str:
    """One of VERDICTS on ours - theirs; not distinguishable if the interval holds 0."""
    if interval.low <= 0 <= interval.high:
        return VERDICTS[2]
    return VERDICTS[0 if (interval.mean > 0) == higher_is_better else 1]


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of many differences stay when all shall be right with probability 1 - RISK (Holm)."""
    order, kept = np.argsort(p_values, kind="stable"), [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > RISK / (len(order) - rank):
            break
        kept[i] = True
    return kept


def first_step_of_holm(num_seeds: int, num_comparisons: int) -> float:
    """Standard errors over seeds that the clearest of many differences needs to stay by `holm`."""
    return float(scipy.special.stdtrit(num_seeds - 1, 1 - RISK / num_comparisons / 2))


def slope(x: Sequence[float] | np.ndarray, y: np.ndarray) -> tuple[float, Interval | None]:
    """Least-squares slope of y f64[points, seeds] in x [points], and its t interval over the seeds.

    NaN marks a run that is missing. Seeds that have every point count; with fewer than two of them
    the slope is that of the points' means, without interval.

    Raises:
      ValueError: fewer than two different x.
    """
    centred, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    centred = centred - centred.mean()
    if not centred.any():
        raise ValueError("one x: no slope")
    whole = y[:, np.isfinite(y).all(axis=0)]
    if whole.shape[1] < 2:
        return float(centred @ np.nanmean(y, axis=1) / (centred @ centred)), None
    slopes = centred @ whole / (centred @ centred)
    return float(slopes.mean()), t_interval(slopes)


def rate_interval(rate: float, rows: float) -> Interval:
    """Wilson's interval of a share of `rows` rows."""
    z = float(scipy.special.ndtri((1 + LEVEL) / 2))
    middle = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows))
    return Interval(rate, float(middle - half), float(middle + half))


def student(mean, error, freedom) -> Interval:
    """Interval of a t variable of `freedom` degrees, infinite if normal; a point if error is 0."""
    degrees = np.minimum(freedom, 1e9)
    half = scipy.special.stdtrit(degrees, (1 + LEVEL) / 2) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = 2 * scipy.special.stdtr(degrees, -np.abs(mean / error))
    p = np.where(error > 0, beyond, np.where(mean == 0, 1.0, 0.0))
    found: list[Any] = [np.asarray(x)[()] for x in (mean, mean - half, mean + half, p)]
    return Interval(*found)
