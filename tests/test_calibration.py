"""Calibrations against scikit-learn; their file; what cannot be calibrated."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.evaluation import calibration

GRID = np.concatenate([np.linspace(-9, 9, 1801), [-1e4, -50, 50, 1e4]])  # beyond every logit, too


def rows(seed, n, decimals=7):
    """Logits that are too sure of themselves, labels, weights (a tenth of them 0)."""
    r = np.random.default_rng(seed)
    logit = np.round(r.normal(-1, 1.5, n), decimals).astype(np.float32)
    label = (r.random(n) < 1 / (1 + np.exp(1.3 - 0.6 * logit))).astype(np.int8)
    label[:4], logit[:4] = (0, 1, 0, 1), (1, 0, -1, 2)  # both classes, and they overlap
    weight = (r.gamma(1.0, size=n) * (r.random(n) < 0.9)).astype(np.float32)
    weight[:4] = 1
    return logit, label, weight


def by_scikit_learn(method, logit, label, weight, at):
    logit = logit.astype(np.float64)  # of float32 it takes what lies within 1e-6 as equal
    if method == "isotonic":
        model = IsotonicRegression(out_of_bounds="clip").fit(logit, label, weight)
        return model.predict(at)
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    return model.fit(logit[:, None], label, weight).predict_proba(at[:, None])[:, 1]


@pytest.mark.parametrize("method", calibration.METHODS)
@pytest.mark.parametrize(
    ("n", "decimals"), [(8, 1), (300, 1), (3_000, 7), (50_000, 2), (50_000, 7)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn_with_ties_and_weights(method, n, decimals, weighted):
    logit, label, weight = rows(n + decimals, n, decimals)
    w = weight if weighted else None
    p = calibration.apply(calibration.fit(method, logit, label, w).arrays, GRID)
    expected = by_scikit_learn(method, logit, label, w, GRID)
    np.testing.assert_allclose(p, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", calibration.METHODS)
def test_the_calibrated_rates_are_those_of_the_rows(method):
    """Both fits leave no difference between predicted and counted clicks on their own rows, and keep the order."""
    logit, label, weight = rows(3, 5_000)
    p = calibration.apply(calibration.fit(method, logit, label, weight).arrays, logit)
    assert np.dot(weight, p) == pytest.approx(np.dot(weight.astype(float), label), rel=1e-6)
    assert (np.diff(p[np.argsort(logit)]) >= 0).all()


def test_a_weight_counts_like_that_many_rows():
    logit, label, _ = rows(4, 500, 1)
    times = np.random.default_rng(4).integers(0, 4, 500)
    times[:4] = 1
    for method in calibration.METHODS:
        one = calibration.fit(method, logit, label, times.astype(np.float32)).arrays
        other = calibration.fit(method, np.repeat(logit, times), np.repeat(label, times)).arrays
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-9, atol=1e-9)


def test_platt_of_logits_of_any_scale():
    """A logit that is multiplied and moved changes the parameters and no probability, nearly separable ones too."""
    logit, label, _ = rows(5, 2_000)
    base = calibration.fit("platt", logit, label).arrays
    moved = calibration.fit("platt", logit.astype(np.float64) * 1e4 + 1e6, label).arrays
    assert moved["slope"] * 1e4 == pytest.approx(base["slope"], rel=1e-6)
    x = np.concatenate([np.linspace(-1, -0.01, 500), np.linspace(0.01, 1, 500), [-0.02, 0.02]])
    y = np.concatenate([np.zeros(500), np.ones(500), [1, 0]])
    fitted = calibration.apply(calibration.fit("platt", x, y).arrays, x)
    assert fitted.sum() == pytest.approx(y.sum(), rel=1e-6) and np.dot(fitted, x) == pytest.approx(
        np.dot(y, x), rel=1e-6
    )


def test_platt_of_rows_on_which_whole_newton_steps_diverge():
    """The rate starts the fit far from its end: the first whole step overshoots, and the next ones run to infinity."""
    logit, label, weight = (
        np.array([-21.0, -8, -3, 19]),
        np.array([1, 0, 1, 0]),
        np.array([1000.0, 10, 10, 10]),
    )
    p = calibration.apply(calibration.fit("platt", logit, label, weight).arrays, logit)
    np.testing.assert_allclose(
        p, by_scikit_learn("platt", logit, label, weight, logit), rtol=0, atol=1e-6
    )
    residuals = weight / weight.sum() * (p - label)
    np.testing.assert_allclose(
        [residuals.sum(), residuals @ logit], 0, atol=1e-7
    )  # where the loss is least


@pytest.mark.parametrize("method", calibration.METHODS)
def test_apply_is_the_same_in_a_jax_program_and_never_certain(method):
    logit, label, _ = rows(6, 3_000)
    arrays = calibration.fit(method, logit, label).arrays
    grid = GRID.astype(np.float32)
    jitted = jax.jit(lambda arrays, logit: calibration.apply(arrays, logit, jnp))
    as_jax = jax.tree.map(jnp.asarray, arrays)
    p = np.asarray(jitted(as_jax, grid))
    np.testing.assert_allclose(p, calibration.apply(arrays, grid), rtol=0, atol=1e-6)
    assert p.dtype == np.float32 and p.min() > 0 and p.max() < 1
    assert np.isfinite(np.log(p) - np.log1p(-p)).all()
    slopes = jax.vmap(jax.grad(lambda x: jitted(as_jax, x)))(grid)
    assert (np.asarray(slopes) >= 0).all() and np.asarray(slopes).max() > 0
    extreme = {"slope": np.asarray(100.0), "intercept": np.asarray(0.0)}
    assert calibration.apply(extreme, np.array([-9.0, 9.0])) == pytest.approx(
        [1e-7, 1 - 1e-7], rel=1e-6
    )
    certain = {"x": np.array([-1.0, 1.0]), "y": np.array([0.0, 1.0])}
    assert calibration.apply(certain, np.array([-2.0, 0.0, 2.0])) == pytest.approx(
        [1e-7, 0.5, 1 - 1e-7]
    )


def test_isotonic_of_a_model_that_ranks_the_wrong_way_is_the_rate():
    r = np.random.default_rng(7)
    logit = r.normal(size=400)
    label = r.random(400) < 1 / (1 + np.exp(2 * logit))
    arrays = calibration.fit("isotonic", logit, label).arrays
    expected = by_scikit_learn("isotonic", logit, label, None, logit)
    np.testing.assert_allclose(calibration.apply(arrays, logit), expected, atol=1e-9)
    assert len(arrays["x"]) < 12, "few thresholds are kept"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_calibration_that_turns_the_order_round_is_told(sign):
    random = np.random.default_rng(3)
    logit = random.normal(size=2000).astype(np.float32)
    label = (random.random(2000) < 1 / (1 + np.exp(-sign * logit))).astype(np.float32)
    report = types.SimpleNamespace(auc=0.5, logloss=1.0, pcoc=1.0, ece=0.0)
    fitted = calibration.fit("platt", logit, label)
    assert calibration.before_and_after(fitted, report, label, logit, None)["reversed"] == (
        sign < 0
    )


@pytest.mark.parametrize("method", calibration.METHODS)
@pytest.mark.parametrize(
    ("logit", "label", "message"),
    [
        ([], [], "no rows to fit on"),
        ([0.0, 1.0], [0, 0], "each of the 2 rows is no click"),
        ([0.0, 1.0], [1, 1], "each of the 2 rows is a click"),
        ([0.0, np.nan, 1.0], [0, 1, 1], "the logit of row 1 is nan"),
        ([0.0, 1.0, -np.inf], [0, 1, 1], "the logit of row 2 is -inf"),
        (
            [0.0, 1.0, 2.0, 3.0],
            [0, 0, 1, 1],
            "the logits separate the clicks from the rest of the 4 rows",
        ),
        (
            [0.0, 1.0, 1.0, 3.0],
            [0, 0, 1, 1],
            "the logits separate the clicks from the rest of the 4 rows",
        ),
        ([0.0, 1.0, 2.0], [1, 0, 0], "the logits separate the clicks from the rest of the 3 rows"),
        ([0.5, 0.5, 0.5], [1, 0, 0], "each of the 3 rows has the logit 0.5"),
    ],
)
def test_what_cannot_be_calibrated_is_one_clear_error(method, logit, label, message):
    with pytest.raises(UserError, match=message):
        calibration.fit(method, np.array(logit, np.float32), np.array(label))
    overlapping = np.array([*logit, 0.0, 1.0, 1.0, 0.0], np.float32), np.array([*label, 0, 1, 0, 1])
    weight = np.array([1.0] * len(logit) + [0.0] * 4)
    with pytest.raises(UserError, match=message):  # rows without weight do not help
        calibration.fit(method, *overlapping, weight)


def test_an_unknown_method_is_named():
    with pytest.raises(
        UserError, match="--calibrate: 'beta' is not known; choose one of platt, isotonic"
    ):
        calibration.fit("beta", np.zeros(2), np.arange(2))


@pytest.fixture
def workdir(tmp_path):
    """Of a run with checkpoints of step 1 and 32."""
    for step in (1, 32):
        (tmp_path / "checkpoints" / f"step_{step}").mkdir(parents=True)
        write_state(tmp_path, step, f"hash of {step}")
    return tmp_path


def write_state(workdir, step, digest):
    path = workdir / "checkpoints" / f"step_{step}" / "state.json"
    path.write_text(json.dumps({"xxh3": {"state.safetensors": digest}}))


@pytest.mark.parametrize("method", calibration.METHODS)
def test_what_is_saved_is_loaded(method, workdir):
    fitted = calibration.fit(method, *rows(8, 1_000))
    path = calibration.save(workdir, fitted, 32, {"split": "valid"})
    again = calibration.load(workdir, 32)
    assert again.method == method and again.arrays.keys() == fitted.arrays.keys()
    for name in again.arrays:
        np.testing.assert_array_equal(again.arrays[name], fitted.arrays[name])
    assert files.read_json(path)["fit"] == {"split": "valid"}
    assert sorted(p.name for p in workdir.iterdir()) == [path.name, "checkpoints"]


def test_a_calibration_of_another_run_with_as_many_steps(workdir):
    calibration.save(workdir, calibration.fit("platt", *rows(8, 1_000)), 32, {})
    write_state(workdir, 32, "another hash")
    with pytest.raises(
        UserError, match="fitted for another state of step 32 than the run's; run `python"
    ):
        calibration.load(workdir, 32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda body: body.update(format_version=2), "format version 2, this program reads 1"),
        (
            lambda body: body.update(step=16),
            "fitted for step 16, the run's checkpoint is of step 32",
        ),
        (lambda body: body.pop("step"), "not a calibration .KeyError: 'step'."),
        (lambda body: body.update(method="beta"), "not a calibration .KeyError: 'beta'."),
        (lambda body: body["arrays"]["x"].pop(), "not a calibration .ValueError: .* unlike length"),
        (lambda body: body["arrays"].update(x=["a", "b"]), "not a calibration"),
        (lambda body: body["arrays"]["x"].reverse(), "thresholds do not ascend"),
        (lambda body: body["arrays"]["y"].reverse(), "thresholds do not ascend"),
        (lambda body: body["arrays"]["y"].__setitem__(-1, 1.5), "its probabilities are none"),
        (lambda body: body["arrays"]["y"].__setitem__(0, float("nan")), "not finite"),
    ],
)
def test_a_file_that_is_none_of_this_run(damage, message, workdir):
    path = calibration.save(workdir, calibration.fit("isotonic", *rows(9, 500)), 32, {})
    body = files.read_json(path)
    damage(body)
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=message) as error:
        calibration.load(workdir, 32)
    assert str(error.value).startswith(
        f"{path}: "
    ) and f"--workdir={workdir} --calibrate=platt" in str(error.value)


def test_a_missing_cut_or_foreign_file(workdir):
    with pytest.raises(
        UserError, match="the run has no calibration; run `python -m emofm_jax.evaluate --workdir="
    ):
        calibration.load(workdir, 1)
    path = calibration.save(workdir, calibration.fit("platt", *rows(10, 500)), 1, {})
    text = path.read_text()
    for other in (
        text[:50],
        "[]",
        "3",
        '{"format_version": 1, "step": 1, "method": "platt", "arrays": {"slope": [1]}}',
    ):
        path.write_text(other)
        with pytest.raises(UserError, match="not a calibration"):
            calibration.load(workdir, 1)
    path.write_text(text.replace('"intercept": ', '"intercept": [1], "was": '))
    with pytest.raises(UserError, match="not a calibration"):
        calibration.load(workdir, 1)
