"""The report of a split: by interaction type, the auxiliary model, and beside the truth; against scikit-learn."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from emofm_jax.evaluation import metrics, split_report

pytestmark = pytest.mark.fast


def close(value):
    """For comparison with a number or a dict of numbers."""
    return pytest.approx(value, rel=0, abs=1e-9)


def typed(n: int = 3_000, num_types: int = 3, seed: int = 11):
    """A report's arguments, with a truth that the label and type are drawn from."""
    r = np.random.default_rng(seed)
    p_type = r.dirichlet(np.ones(num_types), n)
    given = r.beta(1, 6, (n, num_types))
    ftype = np.array([r.choice(num_types, p=row) for row in p_type], np.int32)
    label = (r.random(n) < given[np.arange(n), ftype]).astype(np.float32)
    truth = {"p": (p_type * given).sum(1), "p_type": p_type, "p_given_type": given}
    ours = r.dirichlet(np.ones(num_types), n).astype(np.float32)
    scores = np.clip(given + r.normal(0, 0.02, given.shape), 0.001, 0.99).astype(np.float32)
    ftype[::10] = -1
    return {
        "label": label,
        "p": (ours * scores).sum(1),
        "ftype": ftype,
        "p_type": ours,
        "p_given_type": scores,
        "type_names": ("a", "b", "c")[:num_types],
        "weight": (r.random(n) + 0.5).astype(np.float32),
        "key": r.integers(0, 100, n),
        "truth": truth,
    }


def test_split_report_by_type_and_of_the_auxiliary_model():
    a = typed()
    report = split_report.make(**a)
    truth, label, weight, ftype = a["truth"], a["label"], a["weight"], a["ftype"]
    assert report.auc == close(roc_auc_score(label, a["p"], sample_weight=weight))
    bayes = {
        "auc": roc_auc_score(label, truth["p"], sample_weight=weight),
        "logloss": log_loss(label, truth["p"], sample_weight=weight),
    }
    assert vars(report.bayes) == close(bayes)
    expected = np.dot(a["p"].astype(float), weight) / np.dot(truth["p"], weight)
    assert report.p_over_true == close(expected)
    p = sum(truth["p_type"][:, t] * a["p_given_type"][:, t].astype(np.float64) for t in range(3))
    perfect = {
        "auc": roc_auc_score(label, p, sample_weight=weight),
        "logloss": log_loss(label, p, sample_weight=weight),
    }
    assert vars(report.true_am) == close(perfect)
    assert report.logloss > report.true_am.logloss > report.bayes.logloss, (
        "random types, good heads"
    )
    cuts = np.array_split(np.argsort(a["p"]), 10)
    gaps = [abs(np.average(a["p"][c] - label[c], weights=weight[c])) for c in cuts]
    assert report.ece == pytest.approx(np.mean(gaps), abs=1e-6)
    for t, part in enumerate(report.types):
        own = ftype == t
        y, w, true = label[own], weight[own], truth["p_given_type"][own, t]
        score = a["p_given_type"][own, t].astype(np.float64)
        assert (part.name, part.rows, part.clicks) == ("abc"[t], own.sum(), y.sum())
        assert part.auc == close(roc_auc_score(y, score, sample_weight=w))
        assert part.logloss == close(log_loss(y, score, sample_weight=w))
        assert part.pcoc == close(np.dot(score, w) / np.dot(y, w.astype(float)))
        assert part.gauc == close(metrics.gauc(y, score, a["key"][own], w)[0])
        assert part.bayes.auc == close(roc_auc_score(y, true, sample_weight=w))
        assert part.bayes.logloss == close(log_loss(y, true, sample_weight=w))
    known = np.flatnonzero(ftype >= 0)
    t, w = ftype[known], weight[known].astype(np.float64)
    shares = np.array([w[t == i].sum() for i in range(3)]) / w.sum()
    expected = {
        "accuracy": np.average(a["p_type"][known].argmax(1) == t, weights=w),
        "majority": shares.max(),
        "logloss": np.average(-np.log(a["p_type"][known, t].astype(float)), weights=w),
        "marginal_entropy": -(shares * np.log(shares)).sum(),
        "bayes_logloss": log_loss(t, truth["p_type"][known], sample_weight=w, labels=range(3)),
    }
    assert vars(report.am) == close(expected)


def test_a_dropped_type_leaves_the_auxiliary_figures():
    a = typed()
    a["p_type"][:, 1] = 0
    a["p_type"] /= a["p_type"].sum(1, keepdims=True)
    report = split_report.make(**a)
    own = (a["ftype"] == 0) | (a["ftype"] == 2)
    y = a["ftype"][own] // 2
    for name, p in (("logloss", a["p_type"]), ("bayes_logloss", a["truth"]["p_type"])):
        q = p[own][:, [0, 2]].astype(np.float64)
        q /= q.sum(1, keepdims=True)
        assert getattr(report.am, name) == pytest.approx(
            log_loss(y, q, sample_weight=a["weight"][own]), abs=1e-6
        )
    assert any("'b' never has any p_type" in note for note in report.notes)
    assert report.types[1].rows == (a["ftype"] == 1).sum()


def test_types_without_rows_clicks_or_knowledge():
    a = typed()
    a["label"][a["ftype"] == 0] = 0
    a["ftype"][a["ftype"] == 2] = -1
    report = split_report.make(**a)
    no_click, some, no_rows = report.types
    assert (no_click.auc, no_click.pcoc, no_click.bayes.auc) == (None, None, None)
    assert no_click.notes[0] == "one class only: no AUC and no PCOC" and no_click.logloss > 0
    assert some.auc > 0.5
    assert (no_rows.rows, no_rows.auc, no_rows.logloss, no_rows.notes[0]) == (
        0,
        None,
        None,
        "no rows",
    )
    a["ftype"][:] = 1
    assert str(split_report.make(**a).am.marginal_entropy) == "0.0"
    a["ftype"][:] = -1
    report = split_report.make(**a)
    assert (
        report.am is None
        and "no row of known type: no figures of the auxiliary model" in report.notes
    )
    assert report.to_json()["am"] is None and "true_am" in report.to_json()
    no_truth = split_report.make(**{k: v for k, v in a.items() if k != "truth"})
    assert no_truth.true_am is None and no_truth.types and "true_am" not in no_truth.to_json()
    untyped = {
        k: v for k, v in a.items() if k in ("label", "p", "weight", "key", "ftype", "type_names")
    }
    body = split_report.make(**untyped).to_json()
    assert not {"am", "types", "bayes", "p_over_true", "true_am"} & body.keys()


def test_the_file_says_all_of_it():
    a = typed()
    fit = {"before": {"auc": 0.5}}
    for truth, types in ((a["truth"], True), (None, True), (a["truth"], False), (None, False)):
        chosen = {k: v for k, v in a.items() if types or not k.startswith("p_")}
        report = split_report.make(**chosen | {"truth": truth})
        body = report.to_json()
        assert split_report.SplitReport.from_json(json.loads(json.dumps(body))) == report
        assert set(body) >= {"auc", "logloss", "gauc", "pcoc", "rows", "clicks", "notes", "ece"}
        assert body["calibration"][0].keys() == {"rows", "mean_p", "rate"}
        assert body["constant"].keys() == {"p", "auc", "logloss", "gauc", "pcoc"}
        assert ("types" in body, "bayes" in body) == (types, truth is not None)
        whole = dataclasses.replace(report, unknown={"s": 0.5}, data="x", calibration_fit=fit)
        assert split_report.SplitReport.from_json(whole.to_json()) == whole
    later = body | {"key_of_a_later_version": 1}
    assert split_report.SplitReport.from_json(later) == report
    assert split_report.SplitReport.from_json({"auc": 0.75, "bayes": {"auc": 1.0}}).share == 0.5


def test_the_share_of_the_attainable_lift():
    report, reached = split_report.SplitReport(auc=0.6), split_report.Reached
    assert report.share is None and report.bayes_auc is None
    for best, share in ((0.9, 0.1 / 0.4), (0.5, None), (None, None)):
        known = dataclasses.replace(report, bayes=reached(best, 0.4))
        assert known.share == (None if share is None else close(share))
        assert dataclasses.replace(known, auc=None).share is None


def test_rows_that_are_left_out_are_counted():
    a = typed(60)
    a["weight"][:7], a["ftype"][:], a["ftype"][:5] = 0, 0, -1
    report = split_report.make(**a)
    assert "7 rows are of weight 0, and left out of every figure" in report.notes
    assert "5 rows are of no known type, and left out of the types' figures" in report.notes
    assert report.to_json()["notes"] == report.notes
    a["weight"][1:], a["ftype"][1:5] = 1, 0
    notes = split_report.make(**a).notes
    assert "1 row is of weight 0, and left out of every figure" in notes
    assert "1 row is of no known type, and left out of the types' figures" in notes
