"""Metrics for each value of a column: against scikit-learn, scipy's exact test and DeLong by loops; their order."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from emofm_jax.data.coded import Coded
from emofm_jax.evaluation import by_value, summary
from tests.reference import delong

pytestmark = pytest.mark.fast


def close(value):
    return pytest.approx(value, rel=0, abs=1e-9)


def rows(n: int = 4_000, seed: int = 3):
    """Values of unlike numbers of rows, the last of them missing, whose p are right but for those of "high"; f64 p and logits."""
    r = np.random.default_rng(seed)
    values = ["a", "high", "b", None]
    code = r.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)
    logit = r.normal(-1, 1, n)
    logit = np.round(logit, 2)  # so that some tie
    p = 1 / (1 + np.exp(-logit))
    label = (r.random(n) < np.where(code == 1, p * 0.8, p)).astype(np.int8)
    return Coded("place", code, values), label, p, logit


@pytest.mark.parametrize("weighted", [False, True])
def test_the_figures_of_each_value(weighted):
    groups, label, p, logit = rows()
    weight = None
    if weighted:
        weight = np.random.default_rng(5).integers(0, 4, len(p)).astype(np.float32)
    found = by_value.make(groups, label, p, logit, weight)
    assert (found.column, found.num_values, found.others) == ("place", 4, None)
    assert {value.value for value in found.values} == {*groups.values}
    for value in found.values:
        own = groups.code == groups.values.index(value.value)
        y, q, w = (
            label[own],
            p[own],
            np.ones(own.sum()) if weight is None else weight[own].astype(float),
        )
        assert (value.rows, value.clicks) == (own.sum(), y.sum())
        assert value.rate == close(np.average(y, weights=w))
        assert value.mean_p == close(np.average(q, weights=w))
        assert value.pcoc == close((w * q).sum() / (w * y).sum())
        assert value.auc == close(roc_auc_score(y, q, sample_weight=w))
        assert value.logloss == close(log_loss(y, q, sample_weight=w))

        n = w.sum() ** 2 / np.square(w).sum()  # rows of equal weight that say as much
        k = value.rate * n
        low, high = stats.beta.ppf(0.025, k, n - k + 1), stats.beta.ppf(0.975, k + 1, n - k)
        assert value.pcoc_interval == close((value.mean_p / high, value.mean_p / low))
        tails = (
            stats.beta.cdf(value.mean_p, k, n - k + 1),
            stats.beta.sf(value.mean_p, k + 1, n - k),
        )
        assert value.chance == close(2 * min(tails))
        assert value.auc_interval[0] < value.auc < value.auc_interval[1]
    order = [value.chance for value in found.values]
    assert order == sorted(order)


def test_intervals_and_chance_of_a_click_rate_are_exact():
    groups, label, p, logit = rows()
    for value in by_value.make(groups, label, p, logit).values:
        test = stats.binomtest(value.clicks, value.rows, value.mean_p)
        low, high = test.proportion_ci(0.95, "exact")
        assert value.pcoc_interval == close((value.mean_p / high, value.mean_p / low))
        tails = [
            stats.binomtest(value.clicks, value.rows, value.mean_p, side).pvalue
            for side in ("less", "greater")
        ]
        assert value.chance == close(min(1, 2 * min(tails)))
        holds_one = value.pcoc_interval[0] <= 1 <= value.pcoc_interval[1]
        assert holds_one == (value.chance >= 0.05)


@pytest.mark.parametrize("clicks, n", [(0, 7), (7, 7), (1, 1), (0, 1), (3, 50)])
def test_no_click_and_nothing_but_clicks(clicks, n):
    test = stats.binomtest(clicks, n, 0.2)
    assert by_value.rate_interval(clicks, n) == close(tuple(test.proportion_ci(0.95, "exact")))
    tails = [stats.binomtest(clicks, n, 0.2, side).pvalue for side in ("less", "greater")]
    assert float(by_value.chance(clicks, n, 0.2)) == close(min(1, 2 * min(tails)))


def test_the_interval_of_an_auc_has_delongs_width_and_stays_within_0_and_1():
    groups, label, p, _ = rows()
    own = groups.code == 2
    y, q = label[own], p[own].astype(np.float32)
    above_half, variance = delong.difference(y, q, np.zeros_like(q))
    area = 0.5 + above_half
    low, high = by_value.auc_interval(y, q)
    assert low < area < high
    for end in (low, high):  # Wilson's: where the distance is z standard errors of a share `end`
        error = np.sqrt(end * (1 - end) * variance / (area * (1 - area)))
        assert abs(area - end) == pytest.approx(stats.norm.ppf(0.975) * error, rel=1e-9)

    # Weights that are whole numbers of one size change nothing; no weight is no row.
    same = np.full(len(y), 3, np.float32)
    assert by_value.auc_interval(y, q, same) == pytest.approx((low, high), abs=1e-9)
    padded = by_value.auc_interval(
        np.append(y, [0, 1]), np.append(q, [9, 9]).astype(np.float32), np.append(same, [0, 0])
    )
    assert padded == pytest.approx((low, high), abs=1e-9)

    perfect = by_value.auc_interval(np.array([0, 0, 1, 1]), np.arange(4.0))
    assert perfect[1] == close(1) and 0.3 < perfect[0] < 0.4, "two clicks say little"
    single = by_value.auc_interval(np.array([1] + [0] * 500), np.append(250.5, np.arange(500.0)))
    assert single[0] < 0.1 and single[1] > 0.9, "one click says nothing"
    assert by_value.auc_interval(np.ones(3), np.arange(3.0)) is None


def test_the_worst_calibrated_value_comes_first_and_few_rows_do_not():
    """Three rows that are all off are a matter of chance; thousands that are off by a fifth are not."""
    groups, label, p, logit = rows()
    for value, clicks in (("three", 1), ("one", 1), ("none", 0)):
        n = {"three": 3, "one": 1, "none": 400}[value]
        code = np.full(n, len(groups.values), np.int32)
        groups = Coded("place", np.append(groups.code, code), [*groups.values, value])
        q = {"three": 0.3, "one": 0.02, "none": 0.2}[value]
        label = np.append(label, np.full(n, clicks))
        p, logit = np.append(p, np.full(n, q)), np.append(logit, np.full(n, np.log(q / (1 - q))))
    found = by_value.make(groups, label, p, logit)
    order = [value.value for value in found.values]
    assert order[0] == "none", "80 clicks were predicted, and none came"
    assert order[1:3] == ["high", "one"] and order.index("three") == 3
    none, high, one, three = found.values[:4]
    assert none.pcoc is None and none.pcoc_interval[1] is None and none.pcoc_interval[0] > 1
    assert three.chance == close(2 * 0.3**3) and one.chance == close(2 * 0.02)
    assert [v.chance for v in found.values] == sorted(v.chance for v in found.values)
    assert found.off == 2, "a click that had 1 chance in 50 is one of seven values"


def test_values_beyond_the_first_are_one_line():
    groups, label, p, logit = rows()
    weight = np.where(groups.code == 2, 0, 1).astype(np.float32)
    found = by_value.make(groups, label, p, logit, weight, most=2)
    every = by_value.make(groups, label, p, logit, weight)
    assert found.values == every.values[:2] and found.num_values == 4
    rest = ~np.isin(groups.code, [groups.values.index(v.value) for v in found.values])
    assert found.others.rows == rest.sum()
    assert found.others.auc == close(
        roc_auc_score(label[rest], p[rest], sample_weight=weight[rest])
    )
    weightless = every.values[-1]
    assert (weightless.value, weightless.chance, weightless.pcoc) == ("b", None, None)
    assert weightless.rows == (groups.code == 2).sum()
    # A value whose rows have no weight tests nothing: the chance of 0.04 stands alone.
    two, p2 = Coded("place", np.array([0, 1]), ["one", "none"]), np.array([0.02, 0.5])
    weight2 = np.array([1, 0], np.float32)
    assert by_value.make(two, np.ones(2), p2, np.log(p2 / (1 - p2)), weight2).off == 1

    text = summary.by_value(found)
    lines = text.splitlines()
    assert lines[0].startswith("by place: 4 values, worst calibrated first; 2 are shown; 1 is off")
    assert lines[2].split()[:3] == [
        "high",
        f"{found.values[0].rows:,}",
        f"{found.values[0].clicks:,}",
    ]
    assert lines[-1].startswith("(2 others)") and len(lines) == 5
    assert any(line.startswith("(missing)") for line in summary.by_value(every).splitlines())


def test_the_file_says_all_of_it():
    groups, label, p, logit = rows()
    for most in (2, 20):
        found = by_value.make(groups, label, p, logit, most=most)
        body = json.loads(json.dumps(asdict(found)))
        again = by_value.ByValue.from_json(body)
        assert (
            json.loads(json.dumps(asdict(again))) == body and again.named[0][0] == found.named[0][0]
        )


def test_no_rows():
    empty = Coded("place", np.zeros(0, np.int32), [])
    nothing = np.zeros(0)
    found = by_value.make(empty, nothing, nothing, nothing)
    assert (found.num_values, found.values, found.others, found.off) == (0, [], None, 0)


def test_of_values_that_are_beyond_any_chance_the_furthest_is_first():
    n = 20_000
    label = np.concatenate([np.arange(n) % 10 > 0, np.ones(n)]).astype(np.int8)
    groups = Coded("place", np.repeat(np.int32([0, 1]), n), ["near", "far"])
    p = np.full(2 * n, 0.5)
    found = by_value.make(groups, label, p, np.zeros(2 * n))
    assert [value.chance for value in found.values] == [0, 0]
    assert [value.value for value in found.values] == ["far", "near"]
