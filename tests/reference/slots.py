"""The vector of a slot from its features, written from docs/data.md, one row at a time."""

import numpy as np


def weighted_bag(table, ids, weights, mean):
    """sum w e / sum w, or sum w e; `table` f64[rows, D], `ids` i32[B, L] with -1 behind a bag."""
    rows = []
    for row_ids, row_weights in zip(ids, weights):
        there = [(i, float(w)) for i, w in zip(row_ids, row_weights) if i >= 0]
        total = sum((w * table[i] for i, w in there), np.zeros(table.shape[1]))
        mass = sum(w for _, w in there)
        rows.append(total / mass if mean and mass > 0 else total)
    return np.array(rows)


def vector(table, numbers):
    """sum_i x_i row_{i+1}, or row 0 where all numbers are NaN; `numbers` f32[B, n]."""
    rows = []
    for x in numbers:
        known = [float(number) * table[1 + i] for i, number in enumerate(x)]
        rows.append(table[0] if np.isnan(x).all() else sum(known))
    return np.array(rows)
