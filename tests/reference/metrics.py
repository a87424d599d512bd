"""Weighted metrics in a few lines, for many draws: scikit-learn takes milliseconds for each, and tests hold these to it."""

import numpy as np


def auc(label, p, weight):
    """The share of pairs of a click and another row in which the click has the higher p; ties count half."""
    _, place = np.unique(p, return_inverse=True)
    clicks, others = (np.bincount(place, weight * (label == k)) for k in (1, 0))
    below = np.cumsum(others) - others / 2
    return (clicks * below).sum() / (clicks.sum() * others.sum())


def logloss(label, p, weight):
    return -np.average(np.log(np.where(label > 0, p, 1 - p.astype(np.float64))), weights=weight)
