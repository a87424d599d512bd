"""Two models on the same rows: what each metric differs by, with rows that may hang together.

To first order a metric is its value plus a sum over rows; what a row adds is its influence:

    AUC      of a click w (the share of the rest that it beats - AUC) / clicks' weight; of the rest
             w (the share of clicks that it loses to - AUC) / the rest's weight (DeLong)
    logloss  w (nats - logloss) / weight
    PCOC     w (p - PCOC label) / weight of clicks
    GAUC     of a group n (its AUC - GAUC) / rows of all groups

The variance of a metric, and of the difference of two, is G / (G - 1) times the sum over G clusters
of the square of what their rows add together; each row is a cluster where none are given. For the
AUC this is Obuchowski's variance (Biometrics 53, 1997), without clusters DeLong's up to
(n - 1) / n. Intervals are t with G - 1 degrees of freedom. A GAUC's own groups are its clusters.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from emofm_jax.evaluation import comparison, metrics
from emofm_jax.evaluation.comparison import Interval

HIGHER_IS_BETTER = {"auc": True, "logloss": False, "gauc": True}  # metrics that are compared
METRICS = (*HIGHER_IS_BETTER, "pcoc")
ALONE = -1  # the cluster of a row that belongs to none


@dataclasses.dataclass(frozen=True)
class Rows:
    """What models are compared on; n rows.

    Attributes:
      label: [n] of 0 and 1.
      weight: f32[n] > 0; None for all 1.
      key: i64[n], of the GAUC, `metrics.NO_KEY` for a row of no group; None: no GAUC.
      cluster: i64[n], equal for rows that hang together, `ALONE` for a row that does not; None:
        rows are independent.
    """

    label: np.ndarray
    weight: np.ndarray | None = None
    key: np.ndarray | None = None
    cluster: np.ndarray | None = None

    def take(self, index: np.ndarray) -> "Rows":
        """Some of the rows."""
        some = lambda array: None if array is None else array[index]
        return Rows(self.label[index], some(self.weight), some(self.key), some(self.cluster))


class Estimate(NamedTuple):
    """A metric of a model; value None, and no influence, where it is not defined.

    Attributes:
      value: of the metric.
      influence: f64[n] of rows, or of groups.
      cluster: i64[n] of the rows, or None.
    """

    value: float | None
    influence: np.ndarray
    cluster: np.ndarray | None

    @property
    def interval(self) -> Interval | None:
        """Of the value."""
        return _interval(self.value, self.influence, self.cluster)


def estimates(rows: Rows, p: np.ndarray, logit: np.ndarray) -> dict[str, Estimate]:
    """Every metric of a model.

    Args:
      rows: n of them.
      p, logit: f32[n].

    Returns:
      {one of METRICS: its estimate}; "gauc" only where rows have keys.
    """
    w = np.ones(len(p)) if rows.weight is None else rows.weight.astype(np.float64)
    found = {
        "auc": Estimate(*auc(rows, logit), rows.cluster),
        "logloss": Estimate(*_logloss(rows, logit, w), rows.cluster),
        "pcoc": Estimate(*_pcoc(rows, p, w), rows.cluster),
    }
    if rows.key is not None:
        found["gauc"] = Estimate(*_gauc(rows, logit), None)
    return found


def auc(rows: Rows, score: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The AUC of scores f32[n], and its influence."""
    clicked, influence = rows.label > 0, np.zeros(len(score))
    if not clicked.any() or clicked.all():
        return None, influence

    parts = comparison.row_parts("auc", rows.label, score, rows.weight)
    values = []
    for part, of_class in zip(parts, (clicked, ~clicked)):
        w = np.ones(len(part)) if rows.weight is None else rows.weight[of_class].astype(np.float64)
        values.append(np.dot(w, part) / w.sum())
        influence[of_class] = w * (part - values[0]) / w.sum()
    return float(values[0]), influence


def difference(ours: Estimate, theirs: Estimate) -> Interval | None:
    """ours - theirs with its interval; None where either is not defined, or rows are too few."""
    if ours.value is None or theirs.value is None:
        return None
    influence = ours.influence - theirs.influence
    return _interval(ours.value - theirs.value, influence, ours.cluster)


def widened(ours: Estimate, theirs: Estimate, cluster: np.ndarray) -> float | None:
    """How many times as wide the interval of a difference is by other clusters than its own."""
    own = difference(ours, theirs)
    other = difference(ours._replace(cluster=cluster), theirs)
    if own is None or other is None or not own.high > own.low:
        return None
    return float((other.high - other.low) / (own.high - own.low))


def of_key(key: np.ndarray) -> np.ndarray:
    """i64[n], the clusters that keys of a GAUC make."""
    return np.where(key == metrics.NO_KEY, ALONE, key)


def count(cluster: np.ndarray) -> int:
    """How many clusters there are, rows that are alone included."""
    alone = cluster == ALONE
    return len(np.unique(cluster[~alone])) + int(np.count_nonzero(alone))


def _interval(value: float | None, influence: np.ndarray, cluster: np.ndarray | None) -> Any:
    """t interval over the clusters; None where there is nothing to say."""
    if value is None:
        return None
    sums = _sums(influence, cluster)
    if len(sums) < 2:
        return None
    freedom = len(sums) - 1.0
    error = np.sqrt(len(sums) / freedom * np.dot(sums, sums))
    return comparison.student(value, error, freedom)


def _sums(influence: np.ndarray, cluster: np.ndarray | None) -> np.ndarray:
    """What each cluster adds."""
    if cluster is None:
        return influence
    alone = cluster == ALONE
    _, code = np.unique(cluster[~alone], return_inverse=True)
    return np.concatenate([np.bincount(code, influence[~alone]), influence[alone]])


def _logloss(rows: Rows, logit: np.ndarray, w: np.ndarray) -> tuple[float | None, np.ndarray]:
    nats = metrics.nats_of_logits(rows.label, logit)
    if not len(nats):
        return None, nats
    value = float(np.dot(w, nats) / w.sum())
    return value, w * (nats - value) / w.sum()


def _pcoc(rows: Rows, p: np.ndarray, w: np.ndarray) -> tuple[float | None, np.ndarray]:
    clicked = (rows.label > 0).astype(np.float64)
    clicks = float(np.dot(w, clicked))
    if not clicks:
        return None, clicked
    value = float(np.dot(w, p.astype(np.float64)) / clicks)
    return value, w * (p - value * clicked) / clicks


def _gauc(rows: Rows, score: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The influence is of the groups that count: the same ones for every model of the rows."""
    assert rows.key is not None
    _, aucs, masses = metrics.group_aucs(rows.label, score, rows.key, rows.weight)
    if not len(aucs):
        return None, aucs
    value = float(np.dot(masses, aucs) / masses.sum())
    return value, masses * (aucs - value) / masses.sum()
