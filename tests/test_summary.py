"""What programs print: the table where a number is missing or nothing is attainable; the verdict and the causes that
it names, each from data that has it.
"""

import dataclasses

import numpy as np
import pytest

from emofm_jax.evaluation import split_report, summary

pytestmark = pytest.mark.fast


def report(label, ftype, true_p, types):
    n = len(label)
    p_type = np.full((n, types), 1 / types, np.float32)
    truth = {
        "p": true_p,
        "p_type": p_type.astype(float),
        "p_given_type": np.tile(true_p[:, None], types),
    }
    return split_report.make(
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
    text = summary.table(report(label, none, np.full(5, 0.4), 1), "test")
    assert "Bayes-optimal                 0.500000" in text and "attainable lift" not in text
    assert "majority type 1.0000" in text and "of the gap closed" not in text


def test_the_shares_of_lift_and_gap():
    label, ftype = np.array([0, 0, 1, 0, 1, 1]), np.array([0, 1, 0, 1, 0, 1])
    found = report(label, ftype, np.where(label, 0.6, 0.4), 2)
    share = (found.auc - 0.5) / (found.bayes.auc - 0.5)
    assert 0 < share < 1 and f"Bayes AUC - 0.5): {share:.3f}" in summary.table(found, "test")


def test_one_class_has_a_note_and_no_auc():
    found = report(np.zeros(4, int), np.zeros(4, int), np.full(4, 0.1), 2)
    text = summary.table(found, "valid")
    assert "note: one class only: no AUC and no PCOC" in text
    assert text.splitlines()[1].split()[:3] == ["model", "-", f"{found.logloss:.6f}"]


def test_a_perfect_auxiliary_model_stands_under_the_bayes_optimum():
    label, ftype = np.array([0, 0, 1, 0, 1, 1]), np.array([0, 1, 0, 1, 0, 1])
    found = report(label, ftype, np.where(label, 0.6, 0.4), 2)
    lines = summary.table(found, "test").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("model, true p(type | x)"))
    assert lines[at - 1].startswith("Bayes-optimal") and lines[at + 1].startswith(
        "constant predictor"
    )
    assert lines[at].split()[-4:] == [
        f"{found.true_am.auc:.6f}",
        f"{found.true_am.logloss:.6f}",
        "-",
        "-",
    ]
    assert len(lines[at]) == len(lines[at - 1])
    found = dataclasses.replace(found, true_am=None)
    assert "true p(type" not in summary.table(found, "test")


def test_unknown_values_name_at_most_five_slots():
    shares = {"a": 0.0, "city": 0.004, "item": 0.031, "b": 0.0002}
    assert summary.unknown(shares) == "unknown values: item 3.1%, city 0.4% (others under 0.1%)"
    many = {f"s{i}": 0.01 * i for i in range(1, 8)}
    assert summary.unknown(many) == (
        "unknown values: s7 7.0%, s6 6.0%, s5 5.0%, s4 4.0%, s3 3.0% (others up to 2.0%)"
    )
    assert summary.unknown({"only": 1.0}) == "unknown values: only 100.0%"
    assert summary.unknown({"a": 0.0009}) == "" and summary.unknown({}) == ""
    found = report(np.array([0, 1]), np.zeros(2, int), np.full(2, 0.4), 1)
    assert "unknown values" not in summary.table(found, "test")
    found = dataclasses.replace(found, unknown={"item": 0.5})
    assert "\nunknown values: item 50.0%" in summary.table(found, "test")


def test_the_tables_of_calibration_and_importance():
    before = {"auc": 0.7, "logloss": 0.5, "pcoc": 1.25, "ece": 0.04}
    fit = {
        "method": "platt",
        "split": "valid",
        "rows": 1000,
        "evaluated": "test",
        "before": before,
        "after": before | {"pcoc": None},
    }
    lines = summary.calibration(fit, "test split").splitlines()
    assert lines[0].split() == ["platt,", "test", "split", "AUC", "logloss", "PCOC", "ECE"]
    assert lines[1].split() == ["before", "0.700000", "0.500000", "1.250", "0.040000"]
    assert lines[2].split() == ["after", "0.700000", "0.500000", "-", "0.040000"]
    assert lines[3].strip() == "fitted on 1,000 rows of the valid split"
    same = summary.calibration(fit | {"evaluated": "valid"}, "valid split")
    assert same.endswith("of the valid split, the same rows")
    assert "turns the order" not in same
    assert "warning: the calibration turns" in summary.calibration(fit | {"reversed": True}, "test")
    slots = [{"name": "item", "group": "ad", "auc_drop": 0.125, "logloss_rise": -0.25}]
    head, _, line = summary.importance({"slots": slots, "rows": 7000}).splitlines()
    assert head.endswith("when their values are permuted over 7,000 rows")
    assert line.split() == ["item", "ad", "0.125000", "-0.250000"]


def test_one_step_has_no_rate():
    parameters = {"embedding": 2000, "network": 30}
    train = {"rows_per_s": 0.0, "input_wait": 0.0, "steps": 1, "epochs": 1, "seconds": 0.0}
    assert (
        "training: one step, too few for a rate, 0.0% of the time waiting for input; 1 step, 1 epoch, "
        in summary.footer({"parameters": parameters, "train": train})
    )
    assert "training: 5 rows/s, " in summary.footer(
        {"parameters": parameters, "train": train | {"rows_per_s": 5.0}}
    )
    longer = {"parameters": parameters, "train": train | {"steps": 90, "kept_step": 60}}
    assert summary.footer(longer).endswith("0 seconds; the state of step 60 was the best")
    longer["train"]["kept_step"] = 90
    assert summary.footer(longer).endswith("0 seconds")
    longer["train"]["ended"] = "step 90 (config.train.max_steps)"
    assert summary.footer(longer).endswith("0 seconds\nended by step 90 (config.train.max_steps)")


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
        "splits": {"train": {"rows": 1000, "clicks": 300}},
    }


def causes(**slots):
    return summary.causes_in(prepared(**slots))


def test_verdict_of_what_was_learnt():
    label, score = rows()
    report = split_report.make(label, sigmoid(score - 1))
    line = summary.verdict(
        report, causes(bad={"unknown": {"valid": 0.9}}), {"embedding": 0.0, "network": 0.5}, 500
    )
    gained = 1 - report.logloss / report.constant.logloss
    assert f"{gained:.0%} of its nats learnt" in line and f"AUC {report.auc:.4f}" in line
    assert 0.03 < gained < 0.9 and "likely" not in line
    off = split_report.make(label, sigmoid(score + 3))
    assert "its rates are off (PCOC" in summary.verdict(off, (), {"network": 1e-3}, 500)
    one_class = split_report.make(np.zeros(5), np.full(5, 0.1))
    assert "one class only" in summary.verdict(one_class, (), {"network": 1e-3}, 500)


def test_verdict_names_the_likely_causes():
    label, score = rows()
    report = split_report.make(label, np.random.default_rng(2).random(4_000))
    found = prepared(
        user={"unknown": {"valid": 0.75}},
        fine={"unknown": {"valid": 0.5}},
        price={"unknown": {"train": 0.0}, "min": -5000.0, "max": 7.0},
        age={"unknown": {"train": 0.0}, "min": 1.0, "max": 99.0, "encoding": "log1p"},
    )
    line = summary.verdict(
        report, summary.causes_in(found), {"embedding": 0.0, "network": 0.5}, 500
    )
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
    assert "labels of the training split are all the same" in summary.verdict(
        report, summary.causes_in(found), {"network": 1e-3}, 500
    )
    few, rates = prepared(), {"embedding": 1e-3, "network": 0.1}
    few["splits"]["train"] |= {"rows": 999}
    line = summary.verdict(report, summary.causes_in(few), rates, 99)
    assert "the training split has 999 rows only; 99 steps only so far (later" in line
    assert "nothing unusual" in summary.verdict(
        report, causes(), {"embedding": 1e-3, "network": 0.1}, 100
    )


@pytest.mark.parametrize(("errors", "learnt"), [(2.9, False), (3.1, True)])
def test_an_auc_within_three_standard_errors_of_chance_is_no_learning(errors, learnt):
    """Of 30 clicks among 100 rows: sqrt((n + m + 1) / (12 n m)), as Wilcoxon's rank sum has it."""
    found = split_report.make(np.repeat([0, 1], [70, 30]), np.full(100, 0.3))
    auc = 0.5 + errors * np.sqrt(101 / (12 * 30 * 70))
    found = dataclasses.replace(found, auc=auc, logloss=found.constant.logloss - 0.01)
    line = summary.verdict(found, (), {"network": 1e-3}, 500)
    assert ("of its nats learnt" in line) == learnt
    assert ("not distinguishable from a constant predictor" in line) != learnt
    worse = dataclasses.replace(found, logloss=found.constant.logloss + 0.01)
    line = summary.verdict(worse, (), {"network": 1e-3}, 500)
    assert line.startswith("verdict: no better than a constant predictor") != learnt
