"""Metrics for each value of a column, the worst calibrated value first.

    PCOC      sum of p / clicks. Its interval is the mean p over the ends of Clopper and Pearson's
              exact interval of the click rate
    chance    how likely clicks at least as far from sum p are, on either side, where each row is a
              click with the mean p: twice the smaller tail of the binomial. It is below 0.05 just
              where the interval of PCOC does not hold 1, and it ranks the values: three rows that
              are all off come after thousands that are off by a tenth
    AUC       DeLong's variance V, as the interval that Wilson gives a share A of A (1 - A) / V
              rows: it stays within 0 and 1

The binomial is wider than the sum of the rows' own clicks (Hoeffding), so intervals are on the safe
side where p varies. With weights the rows count as (sum w)^2 / sum w^2 (Kish). Rows count as
independent.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy  # its parts are loaded when they are used

from emofm_jax.evaluation import comparison, metrics

if TYPE_CHECKING:  # which loads pyarrow
    from emofm_jax.data.coded import Coded

MOST = 20  # values that are shown, by default
_RISK = 1 - comparison.LEVEL


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueFigures:
    """Figures of the rows of one value; None where one is not defined.

    Attributes:
      value: as text; None for rows that have none.
      rows, clicks: counted without weights.
      rate: clicks over rows.
      mean_p, pcoc, auc, logloss: see metrics.py.
      pcoc_interval, auc_interval: [low, high], with 95%; the high end of a PCOC without clicks is
        None, as is that PCOC.
      chance: of clicks so far from sum p, if the p are right.
    """

    value: str | None
    rows: int
    clicks: int
    rate: float | None = None
    mean_p: float | None = None
    pcoc: float | None = None
    pcoc_interval: tuple[float, float | None] | None = None
    auc: float | None = None
    auc_interval: tuple[float, float] | None = None
    logloss: float | None = None
    chance: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByValue:
    """Figures by the values of a column.

    Attributes:
      column: its name.
      missing: what the value None means, in words.
      num_values: of the column, None included.
      off: values whose PCOC differs from 1, all of them with probability 0.95 (Holm).
      values: the worst calibrated ones, in order.
      others: the rows of all the other values together; None if there is none.
    """

    column: str
    missing: str
    num_values: int
    off: int
    values: list[ValueFigures]
    others: ValueFigures | None

    @property
    def named(self) -> list[tuple[str, ValueFigures]]:
        """(what a line is called, its figures), the others last."""
        lines = [(self.missing if v.value is None else v.value, v) for v in self.values]
        lines = [(f"({name})" if v.value is None else name, v) for name, v in lines]
        if self.others is not None:
            more = self.num_values - len(self.values)
            lines.append((f"({more:,} other{'s' if more > 1 else ''})", self.others))
        return lines

    @property
    def said(self) -> str:
        """What the table shows, in a sentence."""
        shown, total = len(self.values), self.num_values
        count = f"{total:,} value{'s' if total != 1 else ''}, worst calibrated first"
        first = "" if shown == total else f"; {shown} are shown"
        off = f"{self.off or 'none'} {'is' if self.off == 1 else 'are'}"
        return f"{count}{first}; {off} off beyond chance (Holm, 5%)"

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` gave, by way of JSON."""
        read = lambda part: part and ValueFigures(**part)
        values = [read(part) for part in body["values"]]
        return cls(**{**body, "values": values, "others": read(body["others"])})


def make(
    coded: "Coded",
    label: np.ndarray,
    p: np.ndarray,
    logit: np.ndarray,
    weight: np.ndarray | None = None,
    most: int = MOST,
) -> ByValue:
    """Computes the figures.

    Args:
      coded: of the n rows.
      label, p, logit, weight: as for `split_report.figures`.
      most: values that are shown.
    """
    chance, distance = _chances(coded, label, p, weight)
    order = np.lexsort((np.arange(len(chance)), -distance, chance))
    shown = order[:most]

    def figures(value: str | None, rows: np.ndarray) -> ValueFigures:
        own = None if weight is None else weight[rows]
        return _figures(value, label[rows], p[rows], logit[rows], own)

    at = lambda code: np.flatnonzero(coded.code == code)
    values = [figures(coded.values[code], at(code)) for code in shown.tolist()]
    rest = np.flatnonzero(~np.isin(coded.code, shown)) if len(order) > most else None
    known = chance[chance <= 1]
    return ByValue(
        column=coded.column,
        missing=coded.missing,
        num_values=len(coded.values),
        off=sum(comparison.holm(known)),  # type: ignore[arg-type]
        values=values,
        others=None if rest is None else figures(None, rest),
    )


def chance(clicks: Any, rows: Any, p: Any) -> np.ndarray:
    """Two-sided p-value of clicks f[...] among rows f[...], of which each is one with p f[...]."""
    clicks, rows, p = (np.asarray(x, np.float64) for x in (clicks, rows, p))
    clicks, rest = np.minimum(clicks, rows), np.maximum(rows - clicks, 0.0)
    at_least = np.where(
        clicks > 0, scipy.special.betainc(np.maximum(clicks, 1e-300), rest + 1, p), 1.0
    )
    at_most = np.where(
        rest > 0, scipy.special.betaincc(clicks + 1, np.maximum(rest, 1e-300), p), 1.0
    )
    return np.minimum(1.0, 2 * np.minimum(at_least, at_most))


def rate_interval(clicks: float, rows: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a click rate; clicks and rows need not be whole."""
    rest = rows - clicks
    low = float(scipy.special.betaincinv(clicks, rest + 1, _RISK / 2)) if clicks > 0 else 0.0
    high = float(scipy.special.betaincinv(clicks + 1, rest, 1 - _RISK / 2)) if rest > 0 else 1.0
    return low, high


def auc_interval(
    label: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> tuple[float, float] | None:
    """The interval of an AUC; None if only one class has weight.

    Where V says nothing, with a single row of a class or all pairs won, the rows are those of the
    smaller class.
    """
    if weight is not None and not (weight > 0).all():
        label, score, weight = (x[weight > 0] for x in (label, score, weight))
    clicked = np.asarray(label) > 0
    if not clicked.any() or clicked.all():
        return None

    w = np.ones(len(score)) if weight is None else weight.astype(np.float64)
    masses = w[clicked], w[~clicked]
    parts = comparison.row_parts("auc", label, score, weight)
    area = float(np.average(parts[0], weights=masses[0]))
    fewest = min(_effective(mass) for mass in masses)
    variance = 0.0
    for part, mass in zip(parts, masses):
        freedom = len(part) / max(len(part) - 1, 1)
        squares = np.dot(np.square(mass), np.square(part - area))
        variance += freedom * float(squares) / float(mass.sum()) ** 2
    rows = fewest if fewest <= 1 or variance <= 0 else area * (1 - area) / variance
    interval = comparison.rate_interval(area, rows)
    return interval.low, interval.high


def _figures(
    value: str | None,
    label: np.ndarray,
    p: np.ndarray,
    logit: np.ndarray,
    weight: np.ndarray | None,
) -> ValueFigures:
    clicked = (label > 0).astype(np.float64)
    found: dict[str, Any] = {"rows": len(label), "clicks": int(clicked.sum())}
    w = np.ones(len(label)) if weight is None else weight.astype(np.float64)
    if not w.sum():
        return ValueFigures(value=value, **found)

    rate, mean_p = (float(np.average(x, weights=w)) for x in (clicked, p.astype(np.float64)))
    rows = _effective(w)
    low, high = rate_interval(rate * rows, rows)
    return ValueFigures(
        value=value,
        rate=rate,
        mean_p=mean_p,
        pcoc=metrics.pcoc(label, p, weight),
        pcoc_interval=(mean_p / high, mean_p / low if low > 0 else None),
        auc=metrics.auc(label, logit, weight),
        auc_interval=auc_interval(label, logit, weight),
        logloss=metrics.logloss_from_logits(label, logit, weight),
        chance=float(chance(rate * rows, rows, mean_p)),
        **found,
    )


def _chances(
    coded: "Coded", label: np.ndarray, p: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of each value its `chance`, 2 where no row has weight, and |z|, which breaks ties at 0."""
    n = len(coded.values)
    w = np.ones(len(label)) if weight is None else weight.astype(np.float64)
    total = lambda x: np.bincount(coded.code, x, n)
    mass = total(w)

    with np.errstate(divide="ignore", invalid="ignore"):
        rows = mass**2 / total(w * w)
        rate, mean_p = total(w * (label > 0)) / mass, total(w * p) / mass
        distance = np.abs(rate - mean_p) * np.sqrt(rows / (mean_p * (1 - mean_p)))
        found = chance(rate * rows, rows, mean_p)
    known = mass > 0
    return np.where(known, found, 2.0), np.where(np.isnan(distance), 0.0, distance)


def _effective(w: np.ndarray) -> float:
    """Rows of equal weight that say as much (Kish)."""
    return float(w.sum() ** 2 / np.square(w).sum())
