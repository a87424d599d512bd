"""The table at the end of a run where a number is missing or nothing is attainable."""

import numpy as np

from emofm_jax import metrics, summary


def report(label, ftype, true_p, types):
    n = len(label)
    p_type = np.full((n, types), 1 / types, np.float32)
    truth = {"p": true_p, "p_type": p_type.astype(float), "p_given_type": np.tile(true_p[:, None], types)}
    return metrics.split_report(
        label,
        np.linspace(0.1, 0.3, n).astype(np.float32),
        ftype=ftype,
        p_type=p_type,
        p_given_type=np.full((n, types), 0.2, np.float32),
        type_names=[f"t{i}" for i in range(types)],
        truth=truth,
    )


def test_one_type_and_labels_that_nothing_explains():
    label, none = np.array([0, 1, 0, 1, 0]), np.zeros(5, int)
    text = summary.table({"test": report(label, none, np.full(5, 0.4), 1)})
    assert "Bayes-optimal                 0.500000" in text and "attainable lift" not in text
    assert "majority type 1.0000" in text and "of the gap closed" not in text


def test_the_shares_of_lift_and_gap():
    label, ftype = np.array([0, 0, 1, 0, 1, 1]), np.array([0, 1, 0, 1, 0, 1])
    found = report(label, ftype, np.where(label, 0.6, 0.4), 2)
    share = (found["auc"] - 0.5) / (found["bayes"]["auc"] - 0.5)
    assert 0 < share < 1 and f"Bayes AUC - 0.5): {share:.3f}" in summary.table({"test": found})


def test_one_class_has_a_note_and_no_auc():
    found = report(np.zeros(4, int), np.zeros(4, int), np.full(4, 0.1), 2)
    text = summary.table({"valid": found}, "valid")
    assert "note: one class only: no AUC and no PCOC" in text
    assert text.splitlines()[1].split()[:3] == ["model", "-", f"{found['logloss']:.6f}"]
