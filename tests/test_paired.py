"""Differences of two models on the same rows, against leave-one-cluster-out with scikit-learn's metrics and simulations."""

import itertools

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import log_loss, roc_auc_score

from emofm_jax.data.coded import Coded
from emofm_jax.errors import UserError
from emofm_jax.evaluation import comparison, contest, metrics, paired

pytestmark = pytest.mark.fast


def made(n=600, users=0, seed=0, shift=0.0):
    """Rows, of users whose clicks hang together if there are any, and logits of two models."""
    r = np.random.default_rng(seed)
    cluster = np.sort(r.integers(0, users, n)) if users else None
    of_user = r.normal(size=users)[cluster] if users else 0.0
    z = r.normal(size=n) + of_user
    label = (r.random(n) < special.expit(z - 1)).astype(np.int8)
    weight = r.integers(1, 4, n).astype(np.float32)
    logits = [(z - 1 + s * r.normal(size=n)).astype(np.float32) for s in (0.8, 0.8 + shift)]
    key = None if cluster is None else cluster + 1
    return paired.Rows(label, weight, key, cluster), logits


def sigmoid(z):
    return special.expit(z.astype(np.float64)).astype(np.float32)


def value(metric, label, logit, weight):
    p = sigmoid(logit)
    if metric == "auc":
        return roc_auc_score(label, logit, sample_weight=weight)
    if metric == "logloss":
        return log_loss(label, p.astype(np.float64), sample_weight=weight)
    return float(np.dot(weight, p) / np.dot(weight, label))


@pytest.mark.parametrize("users", [0, 40])
@pytest.mark.parametrize("metric", ["auc", "logloss", "pcoc"])
def test_errors_are_those_of_leaving_out_one_cluster_after_another(metric, users):
    rows, logits = made(300, users)
    found = [paired.estimates(rows, sigmoid(z), z)[metric] for z in logits]
    whole = [value(metric, rows.label, z, rows.weight) for z in logits]
    np.testing.assert_allclose([one.value for one in found], whole, rtol=1e-5)

    cluster = np.arange(300) if rows.cluster is None else rows.cluster
    kept = [cluster != c for c in np.unique(cluster)]
    left = np.array(
        [[value(metric, rows.label[k], z[k], rows.weight[k]) for z in logits] for k in kept]
    )
    g = len(kept)
    for interval, values in (
        (paired.difference(found[1], found[0]), left[:, 1] - left[:, 0]),
        (found[0].interval, left[:, 0]),
    ):
        jackknife = np.sqrt((g - 1) / g * np.sum(np.square(values - np.mean(values))))
        error = (interval.high - interval.low) / 2 / special.stdtrit(g - 1, 0.975)
        assert error == pytest.approx(jackknife, rel=0.06)
    difference = paired.difference(found[1], found[0])
    assert difference.mean == pytest.approx(whole[1] - whole[0], rel=1e-3)


def test_without_clusters_and_weights_it_is_delongs():
    rows, logits = made(4000)
    rows = paired.Rows(rows.label)
    ours, theirs = (paired.estimates(rows, sigmoid(z), z) for z in logits)
    parts = [comparison.row_parts("auc", rows.label, z) for z in logits]
    delong = comparison.over_rows(*parts)
    np.testing.assert_allclose(paired.difference(ours["auc"], theirs["auc"]), delong, rtol=2e-3)


def test_gauc_has_its_groups_as_clusters():
    rows, logits = made(900, users=60, seed=1)
    found = [paired.estimates(rows, sigmoid(z), z)["gauc"] for z in logits]
    values, masses = [], []
    for user in range(60):
        at = rows.key == user + 1
        if 0 < rows.label[at].sum() < at.sum():
            pairs = [
                roc_auc_score(rows.label[at], z[at], sample_weight=rows.weight[at]) for z in logits
            ]
            values.append(pairs[1] - pairs[0])
            masses.append(rows.weight[at].sum())
    values, shares = np.array(values), np.array(masses) / np.sum(masses)
    mean, g = shares @ values, len(values)
    error = np.sqrt(g / (g - 1) * np.sum((shares * (values - mean)) ** 2))
    interval = paired.difference(found[1], found[0])
    assert interval.mean == pytest.approx(mean, rel=1e-5)
    half = error * special.stdtrit(g - 1, 0.975)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=1e-5)
    for one, z in zip(found, logits):
        assert one.value == pytest.approx(metrics.gauc(rows.label, z, rows.key, rows.weight).value)


def simulated(r, n, users):
    """Scores of two models of normal errors; the true difference of their AUCs is known."""
    label = np.arange(n) % 3 == 0
    user = np.repeat(np.arange(users), n // users)
    hang = r.normal(size=users)[user]  # what the second model adds to the clicks of a user
    base = r.normal(size=n)
    first = base + 1.0 * label
    second = base + 0.6 * r.normal(size=n) + label * (1.0 + 0.8 * hang)
    true = [1 / np.sqrt(2), 1 / np.sqrt(2 * (1 + 0.36) + 0.64)]
    return label, user, [first, second], special.ndtr(true[1]) - special.ndtr(true[0])


def test_intervals_cover_the_true_difference():
    """Of 1,000 simulations; where the rows of a user hang together, intervals without clusters do not."""
    r, simulations = np.random.default_rng(4), 1000
    covered = {"alone": 0, "user": 0}
    for _ in range(simulations):
        label, user, scores, true = simulated(r, 600, 60)
        rows = paired.Rows(label, cluster=user)
        first, second = (paired.Estimate(*paired.auc(rows, z), user) for z in scores)
        for name, cluster in (("alone", None), ("user", user)):
            interval = paired.difference(second._replace(cluster=cluster), first)
            covered[name] += interval.low <= true <= interval.high
    assert 0.93 <= covered["user"] / simulations <= 0.97
    assert covered["alone"] / simulations < 0.90


def test_models_that_are_the_same_are_not_distinguishable():
    rows, logits = made(users=30)
    p = sigmoid(logits[0])
    found = contest.make(["a", "b"], [(p, logits[0])] * 2, rows, source="x")
    for difference in found.models[1].differences.values():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
        assert difference.verdict == "not distinguishable" and difference.p == 1


def test_a_model_that_knows_more_is_better_in_both_metrics():
    """The label's own logit against one of noise: AUC rises and log-loss falls."""
    random = np.random.default_rng(5)
    z, noise = random.normal(size=(2, 2000)).astype(np.float32)
    rows = paired.Rows((random.random(2000) < sigmoid(z)).astype(np.int8))
    scores = [(sigmoid(noise), noise), (sigmoid(z), z)]
    for pair, verdict in ((scores, "better"), (scores[::-1], "worse")):
        found = contest.make(["a", "b"], pair, rows, source="x").models[1].differences
        assert {found[metric].verdict for metric in ("auc", "logloss")} == {verdict}


def test_clusters_that_widen_intervals_are_said():
    rows, logits = made(2000, users=20, shift=0.5, seed=3)
    scores = [(sigmoid(z), z) for z in logits]
    found = contest.make(["a", "b"], scores, rows, cluster="user", source="x")
    own = paired.estimates(rows, *scores[1]), paired.estimates(rows, *scores[0])
    alone = [one["auc"]._replace(cluster=None) for one in own]
    times = [paired.difference(*pair) for pair in (alone, [one["auc"] for one in own])]
    ratio = (times[1].high - times[1].low) / (times[0].high - times[0].low)
    assert found.wider["auc"] == pytest.approx(ratio) and found.clusters == 20
    # Without clusters the keys of the GAUC tell, where they would widen anything.
    independent = paired.Rows(rows.label, rows.weight, rows.key)
    told = contest.make(["a", "b"], scores, independent, source="x")
    assert told.clusters == 0 and {m: x for m, x in found.wider.items() if x > 1.05} == told.wider


def test_one_class_has_no_auc_and_one_cluster_no_interval():
    rows = paired.Rows(np.zeros(5, np.int8), cluster=np.zeros(5, np.int64))
    z = np.linspace(-1, 1, 5).astype(np.float32)
    found = contest.make(["a", "b"], [(sigmoid(z), z), (sigmoid(2 * z), 2 * z)], rows, source="x")
    assert found.models[0].figures["auc"].value is None
    assert found.models[0].figures["pcoc"].value is None
    assert found.models[0].figures["logloss"].low is None and found.models[1].differences == {}
    assert not contest.conditions("auc >= -1")[0].holds(found.models[1])


def test_values_of_a_column_are_marked_where_all_of_the_table_is_right():
    r = np.random.default_rng(0)
    label = (r.random(3000) < 0.4).astype(np.int8)
    code = r.integers(0, 3, 3000).astype(np.int32)
    first = r.normal(size=3000).astype(np.float32)
    second = np.where(code == 1, first + 1.5 * label, first + 0.01 * r.normal(size=3000))
    scores = [(sigmoid(z), z) for z in (first, second.astype(np.float32))]
    groups = Coded("kind", code, ["a", "b", None])
    found = contest.make(["x", "y"], scores, paired.Rows(label), [groups], most=2, source="x")
    table = found.models[1].by[0]
    assert table.num_values == 3 and len(table.values) == 2
    counts = np.bincount(code)
    assert [v.rows for v in table.values] == sorted(counts, reverse=True)[:2]
    for one in table.values:
        at = code == ["a", "b", None].index(one.value)
        assert one.clicks == label[at].sum()
        before, after = (roc_auc_score(label[at], z[at]) for z in (first, second))
        assert one.figures["auc"] == pytest.approx((before, after), rel=1e-6)
        assert one.differences["auc"].value == pytest.approx(after - before, abs=1e-6)
        assert one.apart == (one.value == "b")


def test_conditions_are_read_and_refused():
    read = [
        (c.metric, c.part, c.sign, c.number)
        for c in contest.conditions("auc >= -0.0005,pcoc.high<1.1")
    ]
    assert read == [("auc", "difference", ">=", -0.0005), ("pcoc", "high", "<", 1.1)]
    assert contest.conditions("") == []
    for text, word in (
        ("auc", "not a condition"),
        ("acc > 1", "'acc' is no metric"),
        ("auc.mean > 1", "there is no auc.mean"),
        ("pcoc.difference > -1", "there is no pcoc.difference; write pcoc, or"),
        ("auc > x", "'x' is no number"),
        ("auc = 1", "not a condition"),
    ):
        with pytest.raises(UserError, match=word):
            contest.conditions(text)


def test_conditions_look_at_what_they_name():
    figure = {"auc": contest.Figure(0.7, 0.6, 0.8), "pcoc": contest.Figure(1.2, 1.1, 1.3)}
    difference = {"auc": contest.Difference(0.01, -0.02, 0.04, 0.5, "not distinguishable")}
    model = contest.OfModel(name="m", figures=figure, differences=difference)
    expected = {"auc": 0.01, "auc.low": -0.02, "auc.high": 0.04, "auc.value": 0.7}
    expected |= {"pcoc": 1.2, "pcoc.low": 1.1, "pcoc.high": 1.3, "pcoc.value": 1.2, "gauc": None}
    for name, number in expected.items():
        assert contest.conditions(f"{name} > 0")[0].value(model) == number
    signs = {">": False, ">=": True, "<": False, "<=": True}
    for sign, limit in itertools.product(signs, (0.01,)):
        assert contest.conditions(f"auc {sign} {limit}")[0].holds(model) == signs[sign]
