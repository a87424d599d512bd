"""Calibration: a monotone function of the logit, fitted on rows that the model did not learn from.

    platt      p = sigmoid(slope * logit + intercept): logistic regression of the label on the
               logit, without penalty
    isotonic   p = the non-decreasing function of the logit nearest to the labels in squares; linear
               between its thresholds, constant outside them

Both agree with scikit-learn (LogisticRegression without penalty, IsotonicRegression with
out_of_bounds="clip"). A calibration maps the logit of the mixture, of p(y | x) with the type
unknown; p(y | x, t) stays as it is, and after isotonic regression rows of unlike logits may have
equal p. It is stored in WORKDIR/calibration.json with the step of the checkpoint that it was fitted
for. numpy and scipy only; `apply` runs in a jax program too.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are used

from emofm_jax.data import files
from emofm_jax.errors import UserError, check_choice
from emofm_jax.evaluation import metrics, run_report
from emofm_jax.evaluation.split_report import SplitReport

METHODS = ("platt", "isotonic")
FORMAT_VERSION = 1
_SMALLEST = 1e-7  # of p and 1 - p, so that the logit of a calibrated p is finite, in float32 too
_LARGEST_LOGIT = float(np.log1p(-_SMALLEST) - np.log(_SMALLEST))
_ARRAYS = {"platt": ("slope", "intercept"), "isotonic": ("x", "y")}
_NEWTON_STEPS = 200


class Calibration(NamedTuple):
    """A fitted calibration.

    Attributes:
      method: `platt` or `isotonic`.
      arrays: platt {"slope": f64[], "intercept": f64[]}; isotonic {"x": f64[k], "y": f64[k]},
        thresholds of the logit, ascending, and the probabilities there.
    """

    method: str
    arrays: dict[str, np.ndarray]


def fit(
    method: str, logit: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None
) -> Calibration:
    """Fits a calibration.

    Args:
      method: `platt` or `isotonic`.
      logit: f32[n].
      label: [n] of 0 and 1, any dtype.
      weight: f32[n] >= 0, or None for all 1; a row of weight 0 counts nowhere.

    Raises:
      UserError: an unknown method; no rows, a logit that is not finite, one class only, equal
        logits, logits that separate the classes.
    """
    check_choice("--calibrate", method, METHODS)
    x, y = np.asarray(logit, np.float64), (np.asarray(label) > 0).astype(np.float64)
    w = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    if (w == 0).any():
        x, y, w = (a[w > 0] for a in (x, y, w))
    if problem := _problem(x, y):
        raise UserError(f"calibration: {problem}")
    return Calibration(method, _platt(x, y, w) if method == "platt" else _isotonic(x, y, w))


def apply(arrays: Mapping[str, Any], logit: Any, xp: ModuleType = np) -> Any:
    """Calibrated probabilities, between 1e-7 and 1 - 1e-7.

    Args:
      arrays: `Calibration.arrays`, numpy or jax, in any floating dtype.
      logit: [...], of the mixture.
      xp: numpy, or jax.numpy inside a program: pure, any shape, differentiable.

    Returns:
      p [...].
    """
    if "x" in arrays:
        return xp.clip(xp.interp(logit, arrays["x"], arrays["y"]), _SMALLEST, 1 - _SMALLEST)
    z = xp.clip(arrays["slope"] * logit + arrays["intercept"], -_LARGEST_LOGIT, _LARGEST_LOGIT)
    return 1 / (1 + xp.exp(-z))


def before_and_after(
    fitted: Calibration,
    report: SplitReport,
    label: np.ndarray,
    logit: np.ndarray,
    weight: np.ndarray | None,
) -> dict[str, Any]:
    """Figures of the rows of a report, as the model gives them and calibrated.

    Returns:
      {"before": {"auc", "logloss", "pcoc", "ece"}, "after": the same, "reversed": whether the
      higher logit gets the lower p}.
    """
    p = apply(fitted.arrays, logit.astype(np.float64))
    bins = metrics.reliability(label, p, weight)
    after = {
        "auc": metrics.auc(label, p, weight),
        "logloss": metrics.logloss(label, p, weight),
        "pcoc": metrics.pcoc(label, p, weight),
        "ece": metrics.expected_calibration_error(bins),
    }
    turned = bool(fitted.arrays.get("slope", 1) < 0)
    return {
        "before": {key: getattr(report, key) for key in after},
        "after": after,
        "reversed": turned,
    }


def save(workdir: Path, calibration: Calibration, step: int, fit: Mapping[str, Any]) -> Path:
    """Writes WORKDIR/calibration.json and returns its path.

    Args:
      workdir: of the run.
      calibration: fitted.
      step: of the checkpoint whose logits it was fitted on.
      fit: what is worth knowing of it: the split and rows that it was fitted on, figures before and
        after.
    """
    path = Path(workdir) / "calibration.json"
    arrays = {name: array.tolist() for name, array in calibration.arrays.items()}
    body = {"format_version": FORMAT_VERSION, "method": calibration.method, "step": step}
    files.write_json(path, body | {"arrays": arrays, "fit": fit, "state": _state(workdir, step)})
    return path


def load(workdir: Path, step: int) -> Calibration:
    """Reads WORKDIR/calibration.json.

    Args:
      workdir: of the run.
      step: of the checkpoint whose logits are to be calibrated.

    Raises:
      UserError: there is none, it is damaged, of a newer format, or fitted for another step.
    """
    path = Path(workdir) / "calibration.json"
    again = f"run `python -m emofm_jax.evaluate --workdir={workdir} --calibrate=platt`"
    try:
        body = files.read_json(path)
        version, fitted_for, state = body["format_version"], body["step"], body.get("state")
        if version != FORMAT_VERSION:
            why = f"format version {version}, this program reads {FORMAT_VERSION}"
            raise UserError(f"{path}: {why}; {again} again")
        names = _ARRAYS[body["method"]]
        arrays = {name: np.asarray(body["arrays"][name], np.float64) for name in names}
        _check_arrays(arrays)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, the run has no calibration; {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        why = f"not a calibration ({type(error).__name__}: {error})"
        raise UserError(f"{path}: {why}; {again} again") from None

    if fitted_for != step:
        why = f"fitted for step {fitted_for}, the run's checkpoint is of step {step}"
        raise UserError(f"{path}: {why}; {again} again")
    if state != _state(workdir, step):
        why = f"fitted for another state of step {step} than the run's"
        raise UserError(f"{path}: {why}; {again} again")
    return Calibration(body["method"], arrays)


def _state(workdir: Path, step: int) -> str:
    """What logits are of: digests of a checkpoint (two runs have one step), and the intercept."""
    try:
        state = run_report.state_of(workdir, step)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; train the run again") from None
    intercept = run_report.intercept_of(workdir, step, fitted=False)
    return state if intercept is None else f"{state} intercept {intercept!r}"


def _problem(x: np.ndarray, y: np.ndarray) -> str:
    """What keeps a calibration from being fitted, and what to do; empty if nothing does."""
    if not len(x):
        return "there are no rows to fit on; choose a split that has some, with weight"
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x))[0])
        return f"the logit of row {row} is {x[row]}; the run has diverged, train again"

    clicks, rest, each = x[y > 0], x[y == 0], f"each of the {len(x):,} rows"
    if not len(clicks) or not len(rest):
        return f"{each} is {'a' if len(clicks) else 'no'} click; fit on rows of both classes"
    if x.min() == x.max():
        return f"{each} has the logit {x[0]:g}; train a model that ranks rows"
    if clicks.min() >= rest.max() or rest.min() >= clicks.max():
        separate = f"the logits separate the clicks from the rest of the {len(x):,} rows"
        return f"{separate}, so every probability would be 0 or 1; fit on more rows"
    return ""


def _platt(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    """Newton's method on the mean log-loss of standardised x; steps are halved until it falls."""
    mass = w.sum()
    mean = np.dot(w, x) / mass
    std = np.sqrt(np.dot(w, np.square(x - mean)) / mass)
    design = np.stack([(x - mean) / std, np.ones_like(x)])  # [2, n]
    w = w / mass
    rate = np.dot(w, y)
    beta = np.array([0.0, np.log(rate / (1 - rate))])  # the best constant

    def loss(beta: np.ndarray) -> float:
        z = beta @ design
        return np.dot(w, np.logaddexp(0.0, z) - y * z)

    value = loss(beta)
    for _ in range(_NEWTON_STEPS):
        p = 0.5 * (1 + np.tanh(0.5 * (beta @ design)))  # a sigmoid that cannot overflow
        gradient = design @ (w * (p - y))
        step = np.linalg.solve((design * (w * p * (1 - p))) @ design.T, gradient)
        if gradient @ step < 1e-24:  # twice the loss that is left to gain
            break

        size = 1.0
        while (new := loss(beta - size * step)) > value and size > 1e-9:
            size /= 2
        if size <= 1e-9:  # nothing to gain in float64
            break
        beta, value = beta - size * step, new

    slope = beta[0] / std
    return {"slope": np.asarray(slope), "intercept": np.asarray(beta[1] - slope * mean)}


def _isotonic(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    """Pools rows of equal x, then adjacent violators; keeps the ends of each run of equal p."""
    thresholds, of_row = np.unique(x, return_inverse=True)
    mass = np.bincount(of_row, w)
    means = np.bincount(of_row, w * y) / mass
    p = scipy.optimize.isotonic_regression(means, weights=mass).x
    p = p.clip(0, 1)  # a mean of ones may round up

    kept = np.ones(len(p), bool)
    kept[1:-1] = (p[1:-1] != p[:-2]) | (p[1:-1] != p[2:])
    return {"x": thresholds[kept], "y": p[kept]}


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a ValueError on arrays that no fit has made."""
    shapes = {array.shape for array in arrays.values()}
    if not all(np.isfinite(array).all() for array in arrays.values()) or len(shapes) > 1:
        raise ValueError("its numbers are not finite, or of unlike length")
    if "x" not in arrays:
        if shapes != {()}:
            raise ValueError("slope and intercept are no numbers")
        return

    x, y = arrays["x"], arrays["y"]
    ascending = x.ndim == 1 and len(x) >= 2 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
    if not ascending or y[0] < 0 or y[-1] > 1:
        raise ValueError("its thresholds do not ascend, or its probabilities are none")
