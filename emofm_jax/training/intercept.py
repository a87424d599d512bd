"""The intercept of a trained model: with it the sum of p over train rows is that of the clicks.

    sum_i w_i sum_t p(t | x_i) sigmoid(logit_t(x_i) + b) = sum_i w_i y_i         for b

Training makes the mean of p right for the network as it swings from step to step. What is scored
is a moving average of its parameters, and sigmoid of a mean is below the mean of sigmoids where
clicks are rare. `b` undoes that, once, after the last step. It belongs to the state that is kept,
is written to metrics.json, and is added to the logits of all predictors wherever that state scores.

Where a share r of the rows without a click was kept and the loss undoes it in the logit, what
training makes right is the sum over the rows that were kept, of p / (p + r (1 - p)) and their own
weights (nn/losses.py). So `b` makes that sum the clicks', or it would undo the correction: of rows
that are trained on, those without a click are known too well, and weigh 1 / r.
"""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from emofm_jax.data.shards import Split
from emofm_jax.evaluation.run_report import Intercept
from emofm_jax.training import predictions, processes
from emofm_jax.training.build import Parts, keep_rate_of
from emofm_jax.training.state import TrainState

_STEPS, _LARGEST_STEP, _ENOUGH = 50, 1.0, 1e-9  # of Newton's method, in logits


def fit(config: ConfigDict, train: Split, parts: Parts, state: TrainState) -> Intercept:
    """Fits the intercept of a state on up to `config.train.intercept_rows` train rows.

    They are whole row groups, spread evenly over the split. Rows of a dropped type do not count.

    Args:
      config: of the run.
      train: the split.
      parts: of the run.
      state: with an intercept of 0 (`state.with_intercept`).

    Raises:
      UserError: a score is not finite; the data are not those that were opened.
    """
    rows = _some(train, config.train.intercept_rows)
    found = predictions.predict_split(parts, state, rows, config.data.eval_batch_size)
    weight = np.ones(len(found.label)) if found.weight is None else found.weight.astype(float)
    dropped = getattr(parts.module, "drop_type", -1)
    weight = np.where((found.ftype == dropped) & (found.ftype >= 0), 0.0, weight)
    p = found.p[:, None] if found.p_given_type is None else found.p_given_type
    share = np.ones_like(p) if found.p_type is None else found.p_type
    kept = keep_rate_of(config, train.schema)
    weight = np.where(found.label > 0, weight, weight * kept)
    value, pcoc = solve(found.p, p, share, found.label, weight, kept)
    # Processes on unlike machines may differ in the last digit.
    value, pcoc = processes.gather((value, pcoc))[0]
    return Intercept(value, len(found.label), pcoc, kept)


def num_rows(config: ConfigDict, train: Split) -> int:
    """The rows that `fit` takes of the train split; 0 where a run is to have no intercept."""
    wanted = config.train.intercept_rows
    return _some(train, wanted).num_rows if wanted else 0


def solve(
    scored: np.ndarray,
    p: np.ndarray,
    share: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    keep_rate: float = 1.0,
) -> tuple[float, float | None]:
    """Solves for the intercept by Newton's method.

    With members `p` and `share` are their means, whose mixture is not quite what is scored; the
    ratio of the two sums is taken to be the same with and without an intercept.

    Args:
      scored: f[n], of a click.
      p: f[n, T], of a click given each type; [n, 1] of an untyped model.
      share: f[n, T], of each type; 1 of an untyped model.
      label: [n], 0 or 1.
      weight: f[n]; of sampled rows their own.
      keep_rate: share of the rows without a click that were kept, where the logit undoes it.

    Returns:
      (b, sum of p / sum of clicks without it); (0, None) where the rows are of one class. Of
      sampled rows it is the sum of p of a click among the rows that were kept.
    """
    total, clicks = float(weight.sum()), float(weight @ label)
    if not 0 < clicks < total:
        return 0.0, None
    p, scored = (np.clip(x, 1e-12, 1 - 1e-7).astype(np.float64) for x in (p, scored))
    odds = p / (1 - p)
    pcoc, b = float(weight @ _of_kept(scored, keep_rate)[0]) / clicks, 0.0

    def sums(p):
        """The sum that is to be right, and its slope in b."""
        found, slope = _of_kept((share * p).sum(axis=1), keep_rate)
        return float(weight @ found), float(weight @ (slope * (share * p * (1 - p)).sum(axis=1)))

    wanted = sums(p)[0] / pcoc
    for _ in range(_STEPS):
        shifted = odds * np.exp(b)
        shifted /= 1 + shifted
        found, slope = sums(shifted)
        off = found - wanted
        step = float(np.clip(off / max(slope, 1e-300), -_LARGEST_STEP, _LARGEST_STEP))
        b -= step
        if abs(step) < _ENOUGH:
            break
    return b, pcoc


def _of_kept(p: np.ndarray, keep_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """f[n] twice: p of a click where such a share of the other rows is kept; its slope in p."""
    if keep_rate == 1:
        return p, np.ones_like(p)
    below = p + keep_rate * (1 - p)
    return p / below, keep_rate / below**2


def _some(split: Split, num_rows: int) -> Split:
    """Row groups of a split, evenly spread, with about so many rows or fewer; at least one."""
    if split.num_rows <= num_rows:
        return split
    count = max(1, int(len(split.row_groups) * num_rows / split.num_rows))
    chosen = np.linspace(0, len(split.row_groups) - 1, count).round().astype(int)
    groups = tuple(split.row_groups[i] for i in sorted({*chosen.tolist()}))
    return dataclasses.replace(split, row_groups=groups, num_rows=sum(g.rows for g in groups))
