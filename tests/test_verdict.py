"""The verdict: what was learnt, and the causes that it names, each from data that has it."""

import numpy as np

from emofm_jax.evaluation import split_report, verdict


def rows():
    """Labels drawn from the logit `score - 1`."""
    r = np.random.default_rng(1)
    score = r.normal(size=4_000)
    return (r.random(4_000) < sigmoid(score - 1)).astype(np.float32), score


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def prepared(**slots):
    names = {"encoding": "none", "unknown": {"valid": 0.1}}
    return {
        "slots": {name: names | slot for name, slot in slots.items()},
        "splits": {"train": {"rows": 10, "clicks": 3}},
    }


def test_verdict_of_what_was_learnt():
    label, score = rows()
    report = split_report.make(label, sigmoid(score - 1))
    line = verdict.line(
        report, prepared(bad={"unknown": {"valid": 0.9}}), {"embedding": 0.0, "network": 0.5}
    )
    gained = 1 - report["logloss"] / report["constant"]["logloss"]
    assert f"{gained:.0%} of its nats learnt" in line and f"AUC {report['auc']:.4f}" in line
    assert 0.03 < gained < 0.9 and "likely" not in line
    off = split_report.make(label, sigmoid(score + 3))
    assert "its rates are off (PCOC" in verdict.line(off, None, {"network": 1e-3})
    one_class = split_report.make(np.zeros(5), np.full(5, 0.1))
    assert "one class only" in verdict.line(one_class, None, {"network": 1e-3})


def test_verdict_names_the_likely_causes():
    label, score = rows()
    report = split_report.make(label, np.random.default_rng(2).random(4_000))
    found = prepared(
        user={"unknown": {"valid": 0.75}},
        fine={"unknown": {"valid": 0.5}},
        price={"unknown": {"train": 0.0}, "min": -5000.0, "max": 7.0},
        age={"unknown": {"train": 0.0}, "min": 1.0, "max": 99.0, "encoding": "log1p"},
    )
    line = verdict.line(report, found, {"embedding": 0.0, "network": 0.5})
    assert (
        line.startswith("verdict: no better than a constant predictor (logloss ")
        and "\n" not in line
    )
    for cause in (
        "75% of slot 'user'",
        "'price' reaches 5000",
        "embedding.learning_rate is 0",
        "network.learning_rate is 0.5",
    ):
        assert cause in line
    assert "fine" not in line and "age" not in line and "labels" not in line
    found["splits"]["train"]["clicks"] = 0
    assert "labels of the training split are all the same" in verdict.line(
        report, found, {"network": 1e-3}
    )
    assert "nothing unusual" in verdict.line(
        report, prepared(), {"embedding": 1e-3, "network": 0.1}
    )
