"""What `metrics.json` says of a split: its metrics, by interaction type too, beside a constant and the truth."""

from collections.abc import Mapping, Sequence

import numpy as np

from emofm_jax.evaluation import metrics


def make(
    label: np.ndarray,
    p: np.ndarray,
    *,
    logit: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    key: np.ndarray | None = None,
    ftype: np.ndarray | None = None,
    p_type: np.ndarray | None = None,
    p_given_type: np.ndarray | None = None,
    type_names: Sequence[str] = (),
    truth: Mapping[str, np.ndarray] | None = None,
) -> dict:
    """A split's part of metrics.json.

    Args:
      label, p, logit, weight, key: as for `metrics.summary`.
      ftype: i32[n], -1 unknown.
      p_type, p_given_type: f32[n, T], None for a model without types.
      type_names: of the T types.
      truth: of made-up data: "p" [n] and, if typed, "p_type" and "p_given_type" [n, T].

    Returns:
      `metrics.summary`, with "constant", "calibration" and its "ece". Where the model has types: "am" of
      `metrics.auxiliary`, and "types", the `summary` of p_given_type[:, t] over the rows of each type t, with its
      "name". Where the truth is known: "p_over_true" and, there and in each type, "bayes" {"auc", "logloss"} of the
      true p; for a model with types also "true_am" {"auc", "logloss"} of p = sum_t true p(t | x) p_given_type[:, t],
      what it would reach beside a perfect auxiliary model.
    """
    report = metrics.summary(label, p, logit=logit, weight=weight, key=key)
    parts = metrics.calibration(label, p, weight)
    report |= {"constant": metrics.constant(label, weight), "calibration": parts}
    report["ece"] = metrics.expected_calibration_error(parts)
    if truth is not None:
        report["p_over_true"] = metrics.pcoc(truth["p"], p, weight)
        report["bayes"] = _figures(label, truth["p"], weight)
    if p_given_type is None or ftype is None:
        return report
    true_p_type = None if truth is None else truth["p_type"]
    if truth is not None:
        report["true_am"] = _figures(
            label, np.einsum("nt,nt->n", true_p_type, p_given_type), weight
        )
    report["am"] = metrics.auxiliary(
        ftype, p_type, weight, type_names, true_p_type, report["notes"]
    )
    report["types"] = []
    for t, name in enumerate(type_names):
        rows = np.flatnonzero(ftype == t)
        w, k = (None if x is None else x[rows] for x in (weight, key))
        part = {"name": name} | metrics.summary(label[rows], p_given_type[rows, t], weight=w, key=k)
        if truth is not None:
            part["bayes"] = _figures(label[rows], truth["p_given_type"][rows, t], w)
        report["types"].append(part)
    return report


def _figures(label, p, weight) -> dict:
    return {"auc": metrics.auc(label, p, weight), "logloss": metrics.logloss(label, p, weight)}
