"""Metrics against scikit-learn and numpy loops, their properties, and what they make of degenerate data."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from emofm_jax.evaluation import metrics, split_report

pytestmark = pytest.mark.fast

TOLERANCE = dict(rel=0, abs=1e-9)


def rows(seed: int, n: int, decimals: int = 1):
    """label, score with many ties, weight (a tenth of them 0), key; all the label's and score's own dtypes."""
    r = np.random.default_rng(seed)
    score = np.round(r.normal(size=n), decimals).astype(np.float32)
    label = (r.random(n) < 1 / (1 + np.exp(1 - score))).astype(np.float32)
    weight = (r.gamma(1.0, size=n) * (r.random(n) < 0.9)).astype(np.float32)
    return label, score, weight, r.integers(0, n // 8 + 1, n)


# Few distinct values, so that ties, equal keys and one-class groups are the rule.
examples = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


def arrays(example):
    label, score, weight, key = (np.array(column) for column in zip(*example))
    return (
        label.astype(np.float32),
        score.astype(np.float32) / 2,
        weight.astype(np.float32),
        key.astype(np.int64),
    )


def close(value):
    """For comparison with a number, None or a dict of these."""
    if isinstance(value, dict):
        return {k: close(v) for k, v in value.items()}
    return None if value is None else pytest.approx(value, **TOLERANCE)


def sigmoid(z):
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def gauc_by_loop(label, score, key, weight):
    """As one would with pandas: group by the key, which is 0 where there is none."""
    there = weight > 0
    no_key, there = np.count_nonzero(there & (key == 0)), there & (key != 0)
    total, mass, used = 0.0, 0.0, 0
    for k in np.unique(key[there]):
        y, s, w = (x[there & (key == k)].astype(np.float64) for x in (label, score, weight))
        if y.min() < y.max():
            area = roc_auc_score(y, s, sample_weight=w)
            total, mass, used = total + w.sum() * area, mass + w.sum(), used + 1
    value = total / mass if used else None
    return value, used, len(np.unique(key[there])) - used, no_key


@pytest.mark.parametrize("n", [2, 50, 20_000])
@pytest.mark.parametrize("decimals", [0, 1, 7])
def test_agrees_with_scikit_learn_with_ties_and_weights(n, decimals):
    label, score, weight, _ = rows(n + decimals, n, decimals)
    label[:2], weight[:2] = (0, 1), 1
    p = sigmoid(score)
    for w in (None, weight):
        assert metrics.auc(label, score, w) == pytest.approx(
            roc_auc_score(label, score, sample_weight=w), **TOLERANCE
        )
        expected = log_loss(label, p, sample_weight=w)
        assert metrics.logloss(label, p, w) == pytest.approx(expected, **TOLERANCE)
        assert metrics.logloss_from_logits(label, score, w) == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_certain_mistake_costs_what_its_dtype_can_tell(dtype):
    """15.9 nats in float32, as in scikit-learn; logits know no such bound."""
    p, label = np.array([0, 1, 0.5], dtype), np.array([1, 0, 1])
    assert metrics.logloss(label, p) == pytest.approx(log_loss(label, p), rel=1e-6)
    assert metrics.logloss(label[:1], p[:1]) == pytest.approx(-math.log(np.finfo(dtype).eps))
    assert metrics.logloss_from_logits(label[:1], np.array([-40], dtype)) == pytest.approx(40)


def test_auc_and_gauc_over_many_blocks(monkeypatch):
    label, score, weight, key = rows(3, 5_000)
    whole = [
        (metrics.auc(label, score, w), metrics.gauc(label, score, key, w)) for w in (None, weight)
    ]
    monkeypatch.setattr(metrics, "_BLOCK_ROWS", 7)
    for w, (auc, gauc) in zip((None, weight), whole):
        assert metrics.auc(label, score, w) == pytest.approx(auc, **TOLERANCE)
        found = metrics.gauc(label, score, key, w)
        assert found.value == pytest.approx(gauc.value, **TOLERANCE) and found[1:] == gauc[1:]
    assert whole[0][0] == pytest.approx(roc_auc_score(label, score), **TOLERANCE)


def test_auc_of_float32_scores_that_differ_in_the_last_bit():
    low = np.float32(0.1)
    score = np.array([low, np.nextafter(low, np.float32(1)), low, 1e-45, 0], np.float32)
    assert metrics.auc(np.array([0, 1, 0, 1, 0]), score) == 4 / 6


@settings(max_examples=60, deadline=None)
@given(examples)
def test_gauc_agrees_with_a_loop_over_groups(example):
    label, score, weight, key = arrays(example)
    for w in (weight, np.ones_like(weight)):
        expected, *counts = gauc_by_loop(label, score, key, w)
        found = metrics.gauc(label, score, key, None if w is not weight else w)
        assert [*found[1:]] == counts
        assert found.value == close(expected)


def test_rows_without_a_key_are_in_no_group_and_are_counted():
    """A third without a user, which as one group would pull the mean to its own AUC."""
    r = np.random.default_rng(4)
    key, score = r.integers(1, 60, 3_000), r.normal(size=3_000).astype(np.float32)
    label = (r.random(3_000) < sigmoid(score + key / 20 - 2)).astype(np.float32)
    key[r.random(3_000) < 1 / 3] = metrics.NO_KEY
    ones = np.ones_like(score)
    expected, used, one_class, without = gauc_by_loop(label, score, key, ones)
    assert metrics.gauc(label, score, key) == (close(expected), used, one_class, without)
    assert (
        metrics.gauc(label, score, key)[0]
        == metrics.gauc(label[key > 0], score[key > 0], key[key > 0])[0]
    )
    (note,) = split_report.figures(label, sigmoid(score), key=key).notes
    groups = f"GAUC of {used} groups; {one_class} have one class and are left out"
    assert note == f"{groups}; {without:,} rows have no key and are left out"
    nobody = split_report.figures(label[:1], sigmoid(score[:1]), key=np.zeros(1, np.int64))
    assert nobody.gauc is None and nobody.notes[-1].endswith("; 1 row has no key and is left out")


@settings(max_examples=60, deadline=None)
@given(examples)
def test_an_integer_weight_counts_like_that_many_rows(example):
    label, score, weight, key = arrays(example)
    again = np.repeat(np.arange(len(label)), weight.astype(int))
    p = sigmoid(score)
    one = split_report.figures(label, p, logit=score, weight=weight, key=key)
    other = split_report.figures(label[again], p[again], logit=score[again], key=key[again])
    for name in ("auc", "logloss", "gauc", "pcoc"):
        assert getattr(one, name) == close(getattr(other, name)), name
    constants = metrics.constant(label, weight), metrics.constant(label[again])
    assert vars(constants[0]) == close(vars(constants[1]))


@settings(max_examples=60, deadline=None)
@given(examples, st.randoms(use_true_random=False))
def test_the_order_of_rows_is_nothing(example, random):
    label, score, weight, key = arrays(example)
    order = list(range(len(label)))
    random.shuffle(order)
    p = sigmoid(score)
    one = split_report.make(label, p, weight=weight, key=key)
    other = split_report.make(label[order], p[order], weight=weight[order], key=key[order])
    for name in ("auc", "logloss", "gauc", "pcoc", "rows", "clicks", "notes"):
        expected = getattr(other, name)
        assert getattr(one, name) == (expected if name == "notes" else close(expected)), name
    assert sum(part.rows for part in one.reliability) == len(label)
    assert list(map(vars, one.reliability)) == [close(vars(part)) for part in other.reliability]


@settings(max_examples=60, deadline=None)
@given(examples)
def test_auc_is_the_share_of_pairs_won(example):
    label, score, weight, _ = arrays(example)
    pairs = weight[:, None] * weight[None, :] * (label[:, None] > label[None, :])
    won = (score[:, None] > score[None, :]) + 0.5 * (score[:, None] == score[None, :])
    expected = (pairs * won).sum() / pairs.sum() if pairs.sum() else None
    assert metrics.auc(label, score, weight) == close(expected)
    assert metrics.auc(1 - label, score, weight) == close(
        None if expected is None else 1 - expected
    )


def test_sums_of_two_halves_make_the_whole():
    label, score, weight, _ = rows(5, 3_000)
    p, half = sigmoid(score), slice(None, 1_100)
    rest = slice(1_100, None)
    mass = [weight[part].sum(dtype=np.float64) for part in (half, rest)]
    losses = [metrics.logloss(label[part], p[part], weight[part]) for part in (half, rest)]
    assert metrics.logloss(label, p, weight) == pytest.approx(
        np.dot(mass, losses) / sum(mass), **TOLERANCE
    )
    clicks = [np.dot(label[part], weight[part].astype(np.float64)) for part in (half, rest)]
    ratios = [metrics.pcoc(label[part], p[part], weight[part]) for part in (half, rest)]
    assert metrics.pcoc(label, p, weight) == pytest.approx(
        np.dot(clicks, ratios) / sum(clicks), **TOLERANCE
    )


def test_logloss_of_certain_predictions():
    label = np.array([0, 1, 1, 0], np.float32)
    for dtype, worst in ((np.float32, -math.log(2.0**-23)), (np.float64, -math.log(2.0**-52))):
        p = np.array([0, 1, 0, 1], dtype)
        assert metrics.logloss(label, p) == pytest.approx(worst / 2, rel=1e-6)
        assert metrics.logloss(label, p.astype(dtype)) == pytest.approx(
            log_loss(label, p), rel=1e-6
        )
    assert metrics.logloss_from_logits(label, np.array([-1e4, 1e4, -200, 300], np.float32)) == 125.0
    # A probability that f32 cannot tell from 1 is told by its logit.
    assert metrics.logloss_from_logits(np.zeros(1), np.full(1, 40, np.float32)) == pytest.approx(40)


def test_what_is_not_defined_is_none_and_noted():
    p = np.full(4, 0.25, np.float32)
    none = split_report.figures(np.zeros(4), p, key=1 + np.arange(4))
    assert (none.auc, none.gauc, none.pcoc) == (None, None, None)
    assert none.notes == [
        "one class only: no AUC and no PCOC",
        "GAUC of 0 groups; 4 have one class and are left out",
    ]
    assert none.logloss == pytest.approx(-math.log(0.75))
    every = split_report.figures(np.ones(4), p)
    assert (every.auc, every.pcoc, every.notes) == (None, 0.25, ["one class only: no AUC"])
    empty = split_report.make(np.zeros(0), p[:0], key=np.zeros(0, np.int64))
    assert (empty.auc, empty.logloss, empty.gauc, empty.pcoc) == (None,) * 4
    assert (empty.rows, empty.reliability, empty.ece, empty.notes[0]) == (0, [], None, "no rows")
    weightless = split_report.make(np.array([0.0, 1, 0, 1]), p, weight=np.zeros(4, np.float32))
    assert (weightless.auc, weightless.logloss, weightless.ece) == (None, None, None)
    assert weightless.notes == ["no row has a weight"]
    ones = metrics.constant(np.ones(3))
    assert ones.logloss == 0 and ones.auc is None
    assert metrics.constant(np.zeros(3)).pcoc is None


@pytest.mark.parametrize("label", [0, 1])
def test_a_nan_score_is_an_error_in_either_class(label):
    labels, score = np.array([0, 1, label]), np.array([1, 2, np.nan], np.float32)
    with pytest.raises(ValueError, match="NaN"):
        metrics.auc(labels, score)
    with pytest.raises(ValueError, match="NaN"):
        metrics.gauc(labels, score, np.zeros(3, np.int64))
    assert metrics.auc(labels, score, np.array([1, 1, 0], np.float32)) == 1.0


def test_reliability_cuts_sorted_predictions_into_tenths():
    label, score, weight, _ = rows(7, 4_000, decimals=7)
    p = sigmoid(score).astype(np.float32)
    parts = np.array_split(np.argsort(p), 10)
    found = metrics.reliability(label, p, weight)
    assert [part.rows for part in found] == [400] * 10
    for part, chosen in zip(found, parts):
        assert part.mean_p == pytest.approx(
            np.average(p[chosen].astype(float), weights=weight[chosen])
        )
        assert part.rate == pytest.approx(np.average(label[chosen], weights=weight[chosen]))


def test_reliability_keeps_equal_predictions_together():
    p = np.repeat(np.array([0.1, 0.2], np.float32), [97, 3])
    label = np.arange(100) % 2
    found = metrics.reliability(label, p)
    assert [(part.rows, round(part.mean_p, 6)) for part in found] == [(97, 0.1), (3, 0.2)]
    assert sum(part.rate * part.rows for part in found) == pytest.approx(50)


def test_expected_calibration_error_of_parts_of_equally_many_rows():
    label, score, weight, _ = rows(8, 4_000, decimals=7)
    p = np.sqrt(sigmoid(score)).astype(np.float32)
    for w in (None, weight):
        gaps = []
        for part in np.array_split(np.argsort(p), 10):
            own = None if w is None else w[part].astype(float)
            gaps.append(
                abs(
                    np.average(p[part].astype(float), weights=own)
                    - np.average(label[part], weights=own)
                )
            )
        found = metrics.expected_calibration_error(metrics.reliability(label, p, w))
        assert found == pytest.approx(np.mean(gaps), abs=1e-6)  # equal p are not cut apart
        assert found > 0.1, "the square root is far too sure"


def test_expected_calibration_error_counts_rows_and_leaves_out_what_has_no_weight():
    parts = [(60, 0.5, 0.3), (30, 0.5, 0.6), (10, None, None)]
    parts = [metrics.Bin(*part) for part in parts]
    assert metrics.expected_calibration_error(parts) == pytest.approx((60 * 0.2 + 30 * 0.1) / 90)
    assert metrics.expected_calibration_error(parts[2:]) is None
    assert metrics.expected_calibration_error([]) is None
    label = np.repeat([0, 1, 0, 1], [8, 2, 4, 6])
    p = np.repeat(np.array([0.2, 0.6], np.float32), 10)
    assert metrics.expected_calibration_error(metrics.reliability(label, p)) == pytest.approx(
        0, abs=1e-7
    )
    assert metrics.expected_calibration_error(metrics.reliability(label, 1 - p)) == pytest.approx(
        0.4
    )


@pytest.mark.slow
def test_memory_stays_as_documented():
    n = 1 << 20
    r = np.random.default_rng(0)
    label, score = (r.random(n) < 0.1).astype(np.float32), r.random(n, np.float32)
    weight, key = r.random(n, np.float32), r.integers(1, n // 20, n)
    some = np.where(np.arange(n) % 9, weight, 0)
    for call, most in (
        (lambda: metrics.auc(label, score), 6.5),
        (lambda: metrics.auc(label, score, weight), 33),
        (lambda: metrics.auc(label, score, some), 40),
        (lambda: metrics.gauc(label, score, key), 18),
        (lambda: metrics.gauc(label, score, key, some), 40),
        (lambda: metrics.gauc(label, score, key - 1), 18 + 17),
        (lambda: metrics.gauc(label, score, np.where(key % 9, key, 0), some), 40 + 17),
    ):
        original, metrics._BLOCK_ROWS = metrics._BLOCK_ROWS, 1 << 14
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            metrics._BLOCK_ROWS = original
        assert peak / n < most
