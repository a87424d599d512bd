"""Intervals and verdicts: against scipy, scikit-learn and a bootstrap, and in simulations whose truth is known."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from emofm_jax.evaluation import comparison
from tests.reference import delong
from tests.reference import metrics as reference

pytestmark = pytest.mark.fast

REPETITIONS = 1000
FEW = 150  # of what is simulated row by row: 0.95 is then known to 0.018, and three times that is allowed


def covered(interval, truth):
    return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


def called_different(interval):
    return float(np.mean((interval.low > 0) | (interval.high < 0)))


@pytest.fixture(scope="module")
def rows():
    """Labels and the predictions of two related models, with ties."""
    rng = np.random.default_rng(0)
    label = (rng.random(600) < 0.2).astype(np.int8)
    signal = rng.normal(size=600) + label
    ours, theirs = (1 / (1 + np.exp(1.5 - signal - rng.normal(size=600) * s)) for s in (0.3, 1.0))
    return label, np.round(ours, 2).astype(np.float32), theirs.astype(np.float32)


def test_the_t_interval_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.3, 1.0, (7, 5))
    found = comparison.t_interval(values)
    for i, row in enumerate(values):
        wanted = stats.ttest_1samp(row, 0.0)
        np.testing.assert_allclose((found.low[i], found.high[i]), wanted.confidence_interval(0.95))
        np.testing.assert_allclose((found.mean[i], found.p[i]), (row.mean(), wanted.pvalue))
    with pytest.raises(ValueError, match="needs two"):
        comparison.t_interval([1.0])


def test_row_parts_average_to_the_metric(rows):
    label, ours, _ = rows
    for metric, wanted in (
        ("auc", sk.roc_auc_score(label, ours)),
        ("logloss", sk.log_loss(label, ours)),
    ):
        parts = comparison.row_parts(metric, label, ours)
        assert sum(map(len, parts)) == len(label)
        for part in parts:
            np.testing.assert_allclose(part.mean(), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="one class"):
        comparison.row_parts("auc", np.zeros(3), ours[:3])


def test_components_of_an_auc_are_those_of_a_loop_over_pairs(rows):
    label, ours, _ = rows
    label, ours = label[:80], ours[:80]
    clicks, rest = ours[label > 0], ours[label == 0]
    wins = np.array([[1.0 if c > r else 0.5 if c == r else 0.0 for r in rest] for c in clicks])
    of_clicks, of_rest = comparison.row_parts("auc", label, ours)
    np.testing.assert_allclose(of_clicks, wins.mean(axis=1))
    np.testing.assert_allclose(of_rest, wins.mean(axis=0))


def test_the_interval_of_a_difference_of_aucs_is_delongs(rows):
    label, ours, theirs = (a[:150] for a in rows)
    found = comparison.over_rows(*(comparison.row_parts("auc", label, p) for p in (ours, theirs)))
    difference, variance = delong.difference(label, ours, theirs)
    np.testing.assert_allclose(found.mean, difference, rtol=0, atol=1e-12)
    quantile = stats.t.ppf(0.975, 1e9)  # what the package takes for a normal one, 1e-9 apart
    np.testing.assert_allclose(
        ((found.high - found.low) / 2 / quantile) ** 2, variance, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        found.p, 2 * stats.norm.sf(abs(difference) / np.sqrt(variance)), rtol=1e-8
    )


METRICS = [
    ("auc", sk.roc_auc_score, reference.auc),
    ("logloss", sk.log_loss, reference.logloss),
]


@pytest.mark.parametrize("metric, compute, quickly", METRICS)
def test_the_interval_over_rows_is_what_a_paired_bootstrap_gives(rows, metric, compute, quickly):
    label, ours, theirs = rows
    found = comparison.over_rows(*(comparison.row_parts(metric, label, p) for p in (ours, theirs)))
    np.testing.assert_allclose(found.mean, compute(label, ours) - compute(label, theirs), rtol=1e-5)
    rng, draws, ones = np.random.default_rng(2), [], np.ones(len(label))
    np.testing.assert_allclose(quickly(label, ours, ones), compute(label, ours), rtol=1e-6)
    for _ in range(200):
        i = rng.integers(0, len(label), len(label))
        draws.append(quickly(label[i], ours[i], ones) - quickly(label[i], theirs[i], ones))
    # 200 draws know a standard deviation to 5%, and three times that is allowed.
    np.testing.assert_allclose(
        (found.high - found.low) / 2 / 1.96, np.std(draws, ddof=1), rtol=0.15
    )


def test_rows_of_different_number_cannot_be_paired():
    with pytest.raises(ValueError, match="not the same rows"):
        comparison.over_rows((np.zeros(3),), (np.zeros(4),))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_over_seeds_a_known_difference_is_covered_and_none_is_not_invented(seeds):
    """The AUCs of a pair of models share the seed's part (order of rows), and differ by 0.002 or not at all."""
    rng = np.random.default_rng(seeds)
    shared = rng.normal(0, 0.002, (REPETITIONS, seeds))
    a, b = (shared + rng.normal(0, 0.001, (REPETITIONS, seeds)) for _ in range(2))
    assert 0.93 <= covered(comparison.t_interval(a + 0.002 - b), 0.002) <= 0.97
    assert called_different(comparison.t_interval(a - b)) <= 0.07


def simulate(rng, difference, noise_of_rows, seeds=3, num_rows=1500):
    """Two models of equal Gaussian noise, ours with `difference` more signal: (labels, scores ours, theirs)."""
    label = (rng.random(num_rows) < 0.15).astype(np.int8)
    shared = rng.normal(size=num_rows)
    scores = [
        (1.2 + more) * label + shared + noise_of_rows * rng.normal(size=(seeds, num_rows))
        for more in (difference, 0.0)
    ]
    return label, *(s.astype(np.float32) for s in scores)


def auc_of(signal, noise_of_rows):
    return stats.norm.cdf(signal / np.sqrt(2 * (1 + noise_of_rows**2)))


@pytest.mark.parametrize("difference", [0.1, 0.0])
def test_over_rows_a_known_difference_is_covered_and_none_is_not_invented(difference):
    rng, noise, intervals = np.random.default_rng(5), 0.5, []
    for _ in range(FEW):
        label, ours, theirs = simulate(rng, difference, noise)
        parts = [
            [
                np.mean(part, axis=0)
                for part in zip(*(comparison.row_parts("auc", label, s) for s in model))
            ]
            for model in (ours, theirs)
        ]
        intervals.append(comparison.over_rows(*parts))
    interval = comparison.Interval(*np.array(intervals).T)
    truth = auc_of(1.2 + difference, noise) - auc_of(1.2, noise)
    assert covered(interval, truth) == pytest.approx(0.95, abs=3 * 0.018)
    if not difference:
        assert called_different(interval) <= 0.05 + 3 * 0.018


@pytest.mark.parametrize("more", [0.3, 0.0])
def test_over_rows_of_logloss_a_known_difference_is_covered_and_none_is_not_invented(more):
    """Two noisy guesses of the true rate, one of them too high: the expected nats follow from the rates alone."""
    rng = np.random.default_rng(6)

    def draw(shape):
        rate = rng.beta(1.0, 6.0, shape) * 0.9 + 0.01
        return rate, *(
            np.clip(rate * np.exp(0.2 * rng.normal(size=shape) + m), 0, 0.99) for m in (more, 0.0)
        )

    rate, ours, theirs = draw(400_000)
    nats = [-(rate * np.log(p) + (1 - rate) * np.log(1 - p)).mean() for p in (ours, theirs)]
    rate, ours, theirs = draw((FEW, 1500))
    label = rng.random(rate.shape) < rate
    parts = [zip(label, p) for p in (ours, theirs)]
    pairs = zip(*([comparison.row_parts("logloss", y, q) for y, q in model] for model in parts))
    interval = comparison.Interval(*np.array([comparison.over_rows(*pair) for pair in pairs]).T)
    assert covered(interval, nats[0] - nats[1]) == pytest.approx(0.95, abs=3 * 0.018)
    if not more:
        assert called_different(interval) <= 0.05 + 3 * 0.018


@pytest.mark.parametrize("values", [(0.3, 0.5), (0.1, 0.5, 0.2), (0.4, 0.1, 0.2, 0.3, 0.9)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 3.0])
def test_together_is_satterthwaites_interval_and_never_narrower_than_over_seeds(values, ratio):
    k, of_seeds = len(values), np.var(values, ddof=1) / len(values)
    of_rows, mean = ratio * of_seeds, np.mean(values)
    half = stats.norm.ppf(0.975) * np.sqrt(of_rows)
    found = comparison.together(
        np.array(values), comparison.Interval(mean, mean - half, mean + half, 0.5)
    )

    total = of_seeds + of_rows
    freedom = total**2 / (of_seeds**2 / (k - 1))
    both = stats.t(freedom, mean, np.sqrt(total))
    alone = stats.ttest_1samp(values, 0.0)
    wider = max(both.ppf(0.975), alone.confidence_interval(0.95).high)
    np.testing.assert_allclose((found.low, found.high), (2 * mean - wider, wider), rtol=1e-8)
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.p, max(2 * both.cdf(0.0), alone.pvalue), rtol=1e-6)


@pytest.mark.parametrize(
    "seeds, of_seeds, of_rows, most",
    [
        (2, 1.0, 0.1, 0.97),
        (2, 1.0, 1.0, 0.985),  # with two seeds, rows and seeds alike, it is conservative: 0.977
        (3, 1.0, 0.1, 0.97),
        (3, 1.0, 0.3, 0.97),
        (3, 1.0, 1.0, 0.97),
        (5, 1.0, 0.3, 0.97),
        (5, 0.3, 1.0, 0.97),
        (40, 6.0, 1.0, 0.97),
    ],
)
def test_together_covers_where_both_seeds_and_rows_move_the_difference(
    seeds, of_seeds, of_rows, most
):
    """The rows' part is shared by all seeds, so that neither interval alone would do."""
    rng = np.random.default_rng(7)
    shared = rng.normal(0, of_rows, REPETITIONS)
    differences = 0.7 + shared[:, None] + rng.normal(0, of_seeds, (REPETITIONS, seeds))
    mean = differences.mean(axis=1)
    rows = comparison.Interval(mean, mean - 1.959964 * of_rows, mean + 1.959964 * of_rows, mean)
    assert 0.93 <= covered(comparison.together(differences, rows), 0.7) <= most
    assert called_different(comparison.together(differences - 0.7, rows)) <= 0.07
    if seeds == 40:
        assert covered(comparison.t_interval(differences), 0.7) < 0.9 and covered(rows, 0.7) < 0.9


def test_verdicts_in_words():
    up, down, none = (comparison.Interval(m, m - 1, m + 1, 0.0) for m in (2.0, -2.0, 0.5))
    assert [comparison.verdict(i, True) for i in (up, down, none)] == [
        "better",
        "worse",
        "not distinguishable",
    ]
    assert [comparison.verdict(i, False) for i in (up, down, none)] == [
        "worse",
        "better",
        "not distinguishable",
    ]


def test_the_same_predictions_are_not_distinguishable(rows):
    label, ours, _ = rows
    same = comparison.over_rows(*[comparison.row_parts("auc", label, ours)] * 2)
    assert same == (0.0, 0.0, 0.0, 1.0)
    assert comparison.verdict(comparison.together(np.zeros(3), same), True) == "not distinguishable"
    assert comparison.together(np.full(3, 0.5), same)[:3] == (0.5, 0.5, 0.5)


def test_holm_is_stricter_than_each_alone():
    assert comparison.holm([0.04, 0.001, 0.02, 0.5]) == [False, True, False, False]
    assert comparison.holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert comparison.holm([]) == []


@pytest.mark.parametrize("seeds, number", [(2, 1), (3, 33), (5, 17)])
def test_what_holm_asks_of_the_clearest_difference(seeds, number):
    reach = comparison.first_step_of_holm(seeds, number)
    values = np.linspace(-1, 1, seeds)
    error = values.std(ddof=1) / np.sqrt(seeds)
    p = [comparison.t_interval(values + factor * reach * error).p for factor in (0.999, 1.001)]
    assert p[0] > 0.05 / number > p[1]
    assert [comparison.holm([one] + [1.0] * (number - 1))[0] for one in p] == [False, True]


def test_slopes():
    x = np.log10([1.0, 10.0, 100.0])
    y = 0.1 * x[:, None] + np.array([0.0, 5.0, 9.0]) + np.outer(x, [0.01, -0.01, 0.0])
    found, interval = comparison.slope(x, y)
    wanted = stats.ttest_1samp([0.11, 0.09, 0.1], 0.0)
    np.testing.assert_allclose(found, 0.1)
    np.testing.assert_allclose(interval[:2], (0.1, wanted.confidence_interval(0.95).low))
    y[1, :2] = np.nan  # one whole seed is left
    np.testing.assert_allclose(comparison.slope(x[:2], [[1.0], [3.0]])[0], 2.0)
    assert comparison.slope(x, y)[1] is None
    with pytest.raises(ValueError, match="no slope"):
        comparison.slope([1.0, 1.0], np.zeros((2, 2)))


@pytest.mark.parametrize("clicks, rows", [(0, 20), (3, 50), (400, 5000)])
def test_the_interval_of_a_rate_is_that_of_scipy(clicks, rows):
    wanted = stats.binomtest(clicks, rows).proportion_ci(0.95, method="wilson")
    mean, low, high, _ = comparison.rate_interval(clicks / rows, rows)
    np.testing.assert_allclose((low, high), wanted, atol=1e-15)
    assert mean == clicks / rows


def test_the_interval_of_a_mean_ends_where_its_metric_does():
    """Two seeds of a good AUC: Student's t alone would reach 1.05."""
    values = np.array([0.98, 0.99])
    plain, of_auc = comparison.spread(values), comparison.spread(values, "auc")
    assert plain.interval.high > 1.04 and of_auc.interval.high == 1
    assert (
        of_auc.interval.low
        == plain.interval.low
        == pytest.approx(0.985 - 12.7062 * 0.005, abs=1e-6)
    )
    of_nats = comparison.spread(np.array([0.01, 0.03, np.nan]), "logloss").interval
    assert of_nats.low == 0 and of_nats.high > 0.1
    assert comparison.spread(values - 1, "share").interval.low < 0


@pytest.mark.parametrize("metric, compute, quickly", METRICS)
def test_rows_of_weight_w_are_w_rows(rows, metric, compute, quickly):
    """The mean is the weighted metric's; the interval is what a paired bootstrap gives."""
    label, ours, theirs = (x[:1500] for x in rows)
    rng = np.random.default_rng(3)
    weight = rng.integers(1, 4, len(label)).astype(np.float32)
    parts = [comparison.row_parts(metric, label, p, weight) for p in (ours, theirs)]
    of_parts = [weight[label > 0], weight[label <= 0]] if metric == "auc" else [weight]
    found = comparison.over_rows(*parts, weights=of_parts)
    whole = [compute(label, p, sample_weight=weight) for p in (ours, theirs)]
    np.testing.assert_allclose(found.mean, -np.diff(whole)[0], rtol=1e-5)
    of = lambda i: [quickly(label[i], p[i], weight[i]) for p in (ours, theirs)]
    np.testing.assert_allclose(of(slice(None)), whole, rtol=1e-6)
    draws = [-np.diff(of(rng.integers(0, len(label), len(label))))[0] for _ in range(200)]
    half = (found.high - found.low) / 2 / 1.96
    np.testing.assert_allclose(half, np.std(draws, ddof=1), rtol=0.15)
    ones = [np.ones_like(w) for w in of_parts]
    plain = [comparison.row_parts(metric, label, p) for p in (ours, theirs)]
    assert comparison.over_rows(*plain, weights=ones) == pytest.approx(comparison.over_rows(*plain))
