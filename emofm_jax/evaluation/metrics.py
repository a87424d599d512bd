"""Metrics of click prediction, exact and weighted: numpy only, tens of millions of rows.

    AUC      share of (click, no click) pairs in which the click has the higher score, a tie
             counting one half
    logloss  mean of -log p(label), in nats
    GAUC     mean of the groups' AUCs weighted by their rows; groups of one class are left out, and
             so are rows without a group
    PCOC     sum of p / sum of labels: predicted clicks over clicks
    ECE      mean distance of prediction and click rate over parts of equally many rows, by rising p
    am       accuracy and log-loss of p(type | x), over the rows of known type

Every `label` is [n] of 0 and 1 (any dtype), every `weight` f32[n] >= 0 or None for all 1; a row of
weight 0 counts nowhere but in `rows`, and an integer weight counts like that many rows. What is not
defined (one class only, no clicks, no rows) is None, never 0.5 or NaN. Sums are taken in float64
over blocks, so that the largest temporaries are those of a sort: at the peak 6 bytes a row for an
AUC of f32 scores, 17 for a GAUC, 32 where there are weights (40 where some are 0), and up to 17
more for a GAUC where rows have no key.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

_BLOCK_ROWS = 1 << 20
_BINS = 10  # of the reliability curve
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")  # of equal scores
NO_KEY = 0  # the GAUC key of a row that has none


@dataclasses.dataclass(frozen=True)
class Bin:
    """A bin of the reliability curve: mean prediction and click rate, None without weight."""

    rows: int
    mean_p: float | None
    rate: float | None


class Gauc(NamedTuple):
    """A GAUC, None where no group has both classes, and what it stands on."""

    value: float | None
    groups: int  # that it is the mean of
    one_class: int  # groups that are left out
    no_key: int  # rows that are in no group


@dataclasses.dataclass(frozen=True)
class Constant:
    """What a constant `p`, the click rate, reaches; None where a figure is not defined."""

    p: float | None = None
    auc: float | None = None
    logloss: float | None = None
    gauc: float | None = None
    pcoc: float | None = None


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """How well p(type | x) tells the type.

    Attributes:
      accuracy: of its likeliest type.
      majority: accuracy of always naming the most frequent type.
      logloss, marginal_entropy: nats; the second is the log-loss of the types' frequencies.
      bayes_logloss: nats of the true p(type | x); None where the truth is not known.
    """

    accuracy: float
    majority: float
    logloss: float
    marginal_entropy: float
    bayes_logloss: float | None = None


def auc(label: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    """Area under the ROC curve, as scikit-learn's `roc_auc_score`: ties and weights are exact.

    `score` is whatever orders the rows, p or logits. None if only one class has weight; ValueError
    on a NaN score.
    """
    weight, score, label = _weighted(weight, score, label)
    clicked = label > 0
    if not clicked.any() or clicked.all():
        return None

    if weight is None:  # whole numbers: exact
        positive, negative, won = score[clicked], score[~clicked], 0
        positive.sort()  # neighbouring searches meet the same cache lines
        negative.sort()
        for rows in _blocks(len(positive)):
            for side in _SIDES:
                won += int(np.searchsorted(negative, positive[rows], side).sum())
        return won / (2 * len(positive) * len(negative))

    positive, mass = _sorted(score[clicked], weight[clicked])
    negative, below = _sorted(score[~clicked], weight[~clicked])
    below, pairs = np.concatenate([[0.0], np.cumsum(below)]), 0.0
    for rows in _blocks(len(positive)):
        left, right = (below[np.searchsorted(negative, positive[rows], side)] for side in _SIDES)
        pairs += float(np.dot(mass[rows], left + right))
    return pairs / float(2 * below[-1] * mass.sum())


def nats(label: np.ndarray, p: np.ndarray) -> np.ndarray:
    """-log p(label) of each row, f64[n].

    `p` is clipped to [eps, 1 - eps] with the eps of its dtype, as scikit-learn does: in float32
    1.2e-7, so a row costs at most 15.9 nats.
    """
    eps = np.finfo(p.dtype).eps
    q = np.clip(p.astype(np.float64), eps, 1 - eps)
    return -np.log(np.where(label > 0, q, 1 - q))


def logloss(label: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    """Mean of -log p(label) in nats, as scikit-learn's `log_loss`; None without rows.

    `p` is clipped (see `nats`); `logloss_from_logits` needs no clipping.
    """
    return _mean(lambda rows: nats(label[rows], p[rows]), len(p), weight)


def nats_of_logits(label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """-log of the probability that sigmoid(z) gives the label of each row, f64[n]."""
    z = logit.astype(np.float64)
    return np.logaddexp(0.0, np.where(label > 0, -z, z))


def logloss_from_logits(
    label: np.ndarray, logit: np.ndarray, weight: np.ndarray | None = None
) -> float | None:
    """`logloss` of sigmoid(z), exact at any size: log(1 + exp(-z)), of no click log(1 + exp(z))."""

    return _mean(lambda rows: nats_of_logits(label[rows], logit[rows]), len(logit), weight)


def gauc(
    label: np.ndarray, score: np.ndarray, key: np.ndarray, weight: np.ndarray | None = None
) -> Gauc:
    """AUC within each group, averaged with the groups' weight (their impressions).

    `key`, i64[n], is equal within a group, and `NO_KEY` for a row of no group; label, score, weight
    and errors as for `auc`.
    """
    weight, score, label, key, no_key = _keyed(label, score, key, weight)
    total, mass, used, groups = 0.0, 0.0, 0, 0
    for part in _groups(label, score, key, weight):
        total, mass = total + float(np.sum(part.mass * part.auc)), mass + float(part.mass.sum())
        used, groups = used + len(part.auc), groups + part.groups
    value = total / mass if used else None
    return Gauc(value, used, groups - used, no_key)


def group_aucs(
    label: np.ndarray, score: np.ndarray, key: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `gauc` averages: (key i64[g], AUC f64[g], weight f64[g]) of groups of both classes.

    Arguments and errors as for `gauc`; keys ascend.
    """
    weight, score, label, key, _ = _keyed(label, score, key, weight)
    parts = [(part.key, part.auc, part.mass) for part in _groups(label, score, key, weight)]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    keys, aucs, masses = (np.concatenate(columns) for columns in zip(*parts))
    return keys, aucs, masses


def pcoc(label: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    """Predicted clicks over clicks; None without clicks."""
    return _ratio(_sum(p, weight), _sum(label, weight))


def reliability(label: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None) -> list[Bin]:
    """Mean prediction beside click rate in ten parts of (nearly) equally many rows, by ascending p.

    Rows of equal p stay together, so fewer parts may come back. Weights enter the two means only.
    """
    if not len(p):
        return []
    cuts = [max(len(p) * i // _BINS - 1, 0) for i in range(1, _BINS)]
    edges = np.partition(p, cuts)[cuts]  # the last rows of the parts

    sums = np.zeros((4, _BINS))
    for rows in _blocks(len(p)):
        part = np.searchsorted(edges, p[rows], "left")
        w = _weights(weight, rows)
        for i, values in enumerate((np.ones(len(part)), w, w * p[rows], w * (label[rows] > 0))):
            sums[i] += np.bincount(part, values, _BINS)

    found = (part for part in sums.T.tolist() if part[0])
    return [Bin(int(n), _ratio(p, w), _ratio(clicks, w)) for n, w, p, clicks in found]


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """sum_k (rows_k / rows) |mean p - click rate| over the bins k of `reliability`.

    Bins without weight, whose means are None, are left out of both sums of rows; None if there is
    no other.
    """
    gaps = [
        (part.rows, abs(part.mean_p - part.rate))
        for part in bins
        if part.mean_p is not None and part.rate is not None
    ]
    return _ratio(math.fsum(rows * gap for rows, gap in gaps), sum(rows for rows, _ in gaps))


def constant(label: np.ndarray, weight: np.ndarray | None = None) -> Constant:
    """The best constant predictor: the click rate of these very rows."""
    rate = _ratio(_sum(label, weight), _sum(np.ones_like(label), weight))
    if rate is None:
        return Constant()
    nats = math.fsum(-q * math.log(q) for q in (rate, 1 - rate) if q)
    return Constant(rate, 0.5 if 0 < rate < 1 else None, nats, pcoc=1.0 if rate else None)


def auxiliary(
    ftype: np.ndarray,
    p_type: np.ndarray,
    weight: np.ndarray | None,
    type_names: Sequence[str],
    true_p_type: np.ndarray | None,
) -> tuple[Auxiliary | None, list[str]]:
    """Figures of p(type | x), f32[n, T], over rows of known type, `ftype` i32[n] >= 0; and notes.

    A type whose p_type is always 0 has been dropped, and its rows are left out. `true_p_type` is
    f64[n, T]. The figures are None, and a note says so, if no type is known.
    """
    kept = p_type.max(axis=0, initial=0) > 0 if len(ftype) else np.ones(p_type.shape[1], bool)
    dropped = [type_names[t] for t in np.flatnonzero(~kept).tolist()]
    notes = [f"type {t!r} never has any p_type: its rows are left out of am" for t in dropped]

    masses, sums = np.zeros(len(kept)), np.zeros(3)
    for rows in _blocks(len(ftype)):
        chosen = (ftype[rows] >= 0) & kept[ftype[rows]]
        t, q, w = ftype[rows][chosen], p_type[rows][chosen], _weights(weight, rows)[chosen]
        masses += np.bincount(t, w, len(kept))
        own = np.maximum(q[np.arange(len(t)), t].astype(np.float64), np.finfo(q.dtype).eps)
        sums[:2] += np.dot(w, q.argmax(axis=1) == t), np.dot(w, -np.log(own))
        if true_p_type is not None:
            true = true_p_type[rows][chosen]
            of_kept, of_own = true[:, kept].sum(axis=1), true[np.arange(len(t)), t]
            sums[2] += np.dot(w, np.log(of_kept / np.maximum(of_own, 1e-300)))
    if not masses.sum():
        return None, [*notes, "no row of known type: no figures of the auxiliary model"]

    accuracy, nats, true_nats = (float(x) for x in sums / masses.sum())
    shares = masses[masses > 0] / masses.sum()
    entropy = float(-np.dot(shares, np.log(shares)) + 0.0)  # of a single type 0, not -0
    true = None if true_p_type is None else true_nats
    return Auxiliary(accuracy, float(shares.max()), nats, entropy, true), notes


def _weighted(weight: np.ndarray | None, score: np.ndarray, *others: np.ndarray) -> list[Any]:
    """The arrays of the rows that have a weight, whose scores must be numbers."""
    arrays: list[Any] = [weight, score, *others]
    if weight is not None and not (kept := weight > 0).all():
        arrays = [array[kept] for array in arrays]
    if np.isnan(arrays[1]).any():
        raise ValueError("a score is NaN")
    return arrays


def _sorted(score: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(score)
    return score[order], weight[order].astype(np.float64)


class _Groups(NamedTuple):
    """Groups of both classes, [g] each, and how many groups they were found among."""

    key: np.ndarray
    auc: np.ndarray
    mass: np.ndarray
    groups: int


def _keyed(
    label: np.ndarray, score: np.ndarray, key: np.ndarray, weight: np.ndarray | None
) -> tuple:
    """(weight, score, label, key) of the rows that have weight and key; rows without a key."""
    weight, score, label, key = _weighted(weight, score, label, key)
    num_rows = len(key)
    if not (keyed := key != NO_KEY).all():
        score, label, key = score[keyed], label[keyed], key[keyed]
        weight = None if weight is None else weight[keyed]
    return weight, score, label, key, num_rows - len(key)


def _groups(
    label: np.ndarray, score: np.ndarray, key: np.ndarray, weight: np.ndarray | None
) -> Iterator[_Groups]:
    """The groups, by ascending key, in blocks of whole groups."""
    if not len(key):
        return
    order = np.lexsort((score, key))
    ordered = key[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    del ordered

    # Cut where a group starts after each multiple of the block's rows.
    cuts = starts[np.unique(np.searchsorted(starts, np.arange(0, starts[-1] + 1, _BLOCK_ROWS)))]
    for first, last in zip(cuts, [*cuts[1:], len(order)]):
        rows = order[first:last]
        own = None if weight is None else weight[rows]
        yield _two_class(label[rows] > 0, score[rows], key[rows], own)


def _two_class(
    clicked: np.ndarray, score: np.ndarray, key: np.ndarray, weight: np.ndarray | None
) -> _Groups:
    """The groups of rows that are sorted by key, then score."""
    new_group = np.concatenate([[True], key[1:] != key[:-1]])
    new_score = np.concatenate([[True], score[1:] != score[:-1]])
    runs = np.flatnonzero(new_group | new_score)  # of equal scores
    mass = 1 if weight is None else weight.astype(np.float64)  # whole numbers stay exact
    positive = np.add.reduceat(np.where(clicked, mass, 0), runs)
    negative = np.add.reduceat(np.where(clicked, 0, mass), runs)

    # Negatives of the group before each run, and from these the pairs that its positives win.
    first = np.flatnonzero(new_group[runs])
    before = np.cumsum(negative) - negative
    before -= np.repeat(before[first], np.diff(np.append(first, len(runs))))
    won = np.add.reduceat(positive * (2 * before + negative), first)

    positive, negative = np.add.reduceat(positive, first), np.add.reduceat(negative, first)
    used = (positive > 0) & (negative > 0)
    won, positive, negative = won[used], positive[used], negative[used]
    auc = won / (2.0 * positive * negative)
    keys = key[runs[first]][used]
    return _Groups(keys, auc, positive + negative, len(first))


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK_ROWS, n)) for start in range(0, n, _BLOCK_ROWS))


def _weights(weight: np.ndarray | None, rows: slice) -> np.ndarray:
    """f64 weights of a block."""
    return np.ones(rows.stop - rows.start) if weight is None else weight[rows].astype(np.float64)


def _sum(x: np.ndarray, weight: np.ndarray | None) -> float:
    dot = lambda rows: np.dot(x[rows].astype(np.float64), _weights(weight, rows))
    return math.fsum(map(dot, _blocks(len(x))))


def _mean(terms: Callable[[slice], np.ndarray], n: int, weight: np.ndarray | None) -> float | None:
    """Weighted mean of the f64 terms of each block of rows; None if there is no weight."""
    total = mass = 0.0
    for rows in _blocks(n):
        w = _weights(weight, rows)
        total += float(np.dot(np.where(w > 0, terms(rows), 0), w))
        mass += float(w.sum())
    return _ratio(total, mass)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
