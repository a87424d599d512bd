"""The loss against a loop over rows; padding, unknown and dropped types, devices."""

import functools

import jax
import numpy as np
import pytest

from emofm_jax.nn import losses
from tests.reference import emofm as reference

TYPES, ROWS = 3, 24


def _case(seed=0, rows=ROWS):
    """Typed outputs and rows: unknown types, padding, sample weights among them."""
    rng = np.random.default_rng(seed)
    outputs = losses.Outputs(
        *(2 * rng.normal(size=(rows, TYPES)).astype(np.float32) for _ in range(2))
    )
    label = rng.integers(0, 2, rows).astype(np.float32)
    ftype = rng.integers(-1, TYPES, rows).astype(np.int32)
    weight = rng.choice([0.0, 0.5, 1.0, 2.0], rows).astype(np.float32)
    assert set(ftype) == {-1, 0, 1, 2} and (weight == 0).any()
    return outputs, label, ftype, weight


@functools.partial(jax.jit, static_argnames=("am_weight", "drop_type", "axis_name", "keep_rate"))
def _total(
    outputs, label, ftype, weight, am_weight=0.7, drop_type=-1, axis_name=None, keep_rate=1.0
):
    rows, how = (label, ftype, weight), {"drop_type": drop_type, "keep_rate": keep_rate}
    denominators = losses.denominators(*rows, axis_name, **how)
    return losses.total(outputs, *rows, am_weight=am_weight, denominators=denominators, **how)


@functools.partial(jax.jit, static_argnames=("am_weight", "drop_type", "keep_rate"))
def _gradient(outputs, label, ftype, weight, am_weight=0.7, drop_type=-1, keep_rate=1.0):
    """(loss, gradient of the outputs); tests share what is compiled."""
    how = {"am_weight": am_weight, "drop_type": drop_type, "keep_rate": keep_rate}
    return jax.value_and_grad(lambda o: _total(o, label, ftype, weight, **how)[0])(outputs)


@pytest.mark.parametrize("drop_type", [-1, 0, 1])
@pytest.mark.parametrize("am_weight", [0.0, 0.7])
def test_the_loss_agrees_with_a_loop(drop_type, am_weight):
    outputs, label, ftype, weight = _case()
    p_given_type = reference.sigmoid(np.array(outputs.logits, np.float64))
    p_type = np.array([reference.softmax(x) for x in np.array(outputs.type_logits, np.float64)])
    expected = reference.loss(p_given_type, p_type, label, ftype, weight, am_weight, drop_type)
    loss, _ = _total(outputs, label, ftype, weight, am_weight, drop_type)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("drop_type", [-1, 1])
@pytest.mark.parametrize("keep_rate", [0.1, 0.9])
def test_sampled_rows_whose_logits_are_shifted_agree_with_a_loop(drop_type, keep_rate):
    """Predictors and mixture learn from rows as they were kept, the auxiliary model from weights."""
    outputs, label, ftype, weight = _case()
    p_given_type = reference.sigmoid(np.array(outputs.logits, np.float64))
    p_type = np.array([reference.softmax(x) for x in np.array(outputs.type_logits, np.float64)])
    expected = reference.loss(
        p_given_type, p_type, label, ftype, weight, 0.7, drop_type, keep_rate=keep_rate
    )
    loss, sums = _total(outputs, label, ftype, weight, drop_type=drop_type, keep_rate=keep_rate)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    _, as_weighted = _total(outputs, label, ftype, weight, drop_type=drop_type)
    for name in ("logloss_sum", "am_sum"):  # what is logged is of all rows, before the sampling
        np.testing.assert_array_equal(sums[name], as_weighted[name])


def test_the_parts_and_the_auxiliary_loss_of_sampled_rows():
    _, label, ftype, weight = _case()
    rng = np.random.default_rng(2)
    parts, aux_loss = rng.normal(size=(2, ROWS)), rng.uniform(size=ROWS)
    outputs = losses.Outputs(parts.mean(axis=0), aux_loss=aux_loss, parts=parts)
    loss, sums = _total(outputs, label, ftype, weight, keep_rate=0.1)
    p = reference.sigmoid(parts) / (reference.sigmoid(parts) + 0.1 * reference.sigmoid(-parts))
    own = np.where(label > 0, weight, 0.1 * weight)
    of_rows = -np.log(np.where(label > 0, p, 1 - p)).sum(axis=0) + aux_loss
    np.testing.assert_allclose(loss, np.average(of_rows, weights=own), rtol=1e-5)
    np.testing.assert_allclose(sums["aux_sum"], np.dot(own, aux_loss), rtol=1e-5)


def test_weights_and_shifted_logits_both_find_the_true_intercept():
    """A logistic regression on sampled rows, by Newton's method; shifted logits err by less."""
    truth, keep_rate = np.array([-2.5, 1.0, -1.0]), 0.1

    @functools.partial(jax.jit, static_argnums=3)
    def fit(x, label, weight, keep_rate):
        ftype = np.full(x.shape[0], -1)
        of = lambda b: _total(losses.Outputs(x @ b), label, ftype, weight, keep_rate=keep_rate)[0]
        move = lambda _, b: b - jax.numpy.linalg.solve(jax.hessian(of)(b), jax.grad(of)(b))
        return jax.lax.fori_loop(0, 12, move, np.array([-2, 0, 0], np.float32))

    errors = {1.0: [], keep_rate: []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = np.column_stack([np.ones(5_000), rng.normal(size=(5_000, 2))]).astype(np.float32)
        label = (rng.uniform(size=5_000) < reference.sigmoid(x @ truth)).astype(np.float32)
        kept = (label > 0) | (rng.uniform(size=5_000) < keep_rate)
        weight = np.where(label > 0, 1, kept / keep_rate).astype(np.float32)  # 0: padding
        for undone in errors:
            errors[undone].append(np.array(fit(x, label, weight, undone)) - truth)
    spread = {undone: np.std(e, axis=0) for undone, e in errors.items()}
    for undone, e in errors.items():
        assert np.all(np.abs(np.mean(e, axis=0)) < 4 * spread[undone] / np.sqrt(40))
    slopes = {undone: np.square(np.array(e)[:, 1:]).sum() for undone, e in errors.items()}
    assert slopes[keep_rate] < 0.8 * slopes[1.0]


def test_an_untyped_model_has_the_plain_logloss_whatever_the_types():
    _, label, ftype, weight = _case()
    logits = np.linspace(-3, 3, ROWS, dtype=np.float32)
    loss, parts = _total(losses.Outputs(logits), label, ftype, weight)
    p = reference.sigmoid(np.array(logits, np.float64))
    row_loss = -np.where(label == 1, np.log(p), np.log(1 - p))
    np.testing.assert_allclose(loss, np.average(row_loss, weights=weight), rtol=1e-5)
    assert set(parts) == {"logloss_sum"}


def test_the_parts_are_sums_that_make_up_the_loss():
    outputs, label, ftype, weight = _case()
    loss, parts = _total(outputs, label, ftype, weight)
    known = ftype >= 0
    expected = (
        float(parts["logloss_sum"]) / weight.sum()
        + 0.7 * float(parts["am_sum"]) / weight[known].sum()
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("drop_type", [-1, 1])
def test_padding_rows_do_not_matter_whatever_they_hold(drop_type):
    outputs, label, ftype, weight = _case()
    junk = np.array([np.nan, np.inf, -np.inf])
    pad = lambda x: np.concatenate([x, np.broadcast_to(junk[:, None], (3, TYPES))])
    padded = losses.Outputs(*map(pad, outputs[:2]))
    rows = (
        np.append(label, junk),
        np.append(ftype, np.array([0, -1, 2])),
        np.append(weight, np.zeros(3)),
    )
    loss, grads = _gradient(outputs, label, ftype, weight, drop_type=drop_type)
    loss_padded, grads_padded = _gradient(padded, *rows, drop_type=drop_type)
    np.testing.assert_allclose(loss, loss_padded, rtol=1e-6)
    for a, b in zip(grads[:2], grads_padded[:2]):
        np.testing.assert_allclose(a, np.array(b)[:ROWS], rtol=1e-5, atol=1e-8)
        assert not np.array(b)[ROWS:].any()


def test_a_batch_of_padding_has_no_loss_and_no_gradient():
    outputs, label, ftype, weight = _case()
    loss, grads = _gradient(outputs, label, ftype, 0 * weight)
    assert loss == 0 and not any(np.any(g) for g in grads[:2])


def test_rows_of_unknown_type_train_the_predictors_and_not_the_auxiliary_model():
    outputs, label, ftype, weight = _case()
    ftype, weight = np.full_like(ftype, -1), np.ones_like(weight)
    _, grads = _gradient(outputs, label, ftype, weight)
    assert np.all(grads.logits) and not np.any(grads.type_logits)


@pytest.mark.parametrize("drop_type", [-1, 2])
def test_a_row_of_known_type_trains_its_predictor_and_the_auxiliary_model(drop_type):
    outputs, label, ftype, weight = _case()
    ftype, weight = np.maximum(ftype, 0), np.ones_like(weight)
    _, grads = _gradient(outputs, label, ftype, weight, drop_type=drop_type)
    ours = (ftype[:, None] == np.arange(TYPES)) & (ftype != drop_type)[:, None]
    np.testing.assert_array_equal(np.array(grads.logits) != 0, ours)
    assert np.all(grads.type_logits)


@pytest.mark.parametrize("drop_type", [-1, 1])
def test_sums_over_devices_are_the_loss_of_the_whole_batch(drop_type):
    outputs, label, ftype, weight = _case()
    weight[ROWS // 2 : -1], weight[-1] = 0.0, 2.0  # halves of very different weight
    whole, grads = _gradient(outputs, label, ftype, weight, drop_type=drop_type)
    halves = jax.tree.map(
        lambda x: x.reshape(2, ROWS // 2, *x.shape[1:]), (outputs, label, ftype, weight)
    )
    local = lambda o, *rows: _total(o, *rows, drop_type=drop_type, axis_name="data")[0]
    loss, split = jax.jit(jax.vmap(jax.value_and_grad(local), axis_name="data"))(*halves)
    np.testing.assert_allclose(np.sum(loss), whole, rtol=1e-6)
    for a, b in zip(grads[:2], split[:2]):
        np.testing.assert_allclose(a, np.reshape(b, a.shape), rtol=1e-5, atol=1e-8)


def test_an_auxiliary_loss_is_that_of_the_rows_own_predictor():
    outputs, label, ftype, weight = _case()
    rng = np.random.default_rng(1)
    per_row, per_type = (rng.uniform(size=s).astype(np.float32) for s in ((ROWS,), (ROWS, TYPES)))
    base, _ = _total(outputs, label, ftype, weight, drop_type=1)
    scored = (ftype != 1) & (weight > 0)
    w = weight[scored]
    with_rows, _ = _total(outputs._replace(aux_loss=per_row), label, ftype, weight, drop_type=1)
    np.testing.assert_allclose(
        float(with_rows) - float(base), np.average(per_row[scored], weights=w), rtol=1e-4
    )

    padded = np.where((weight == 0)[:, None], np.nan, per_type)
    with_types, parts = _total(outputs._replace(aux_loss=padded), label, ftype, weight, drop_type=1)
    expected = []
    for b in np.flatnonzero(scored):
        p_type = reference.softmax(np.delete(np.array(outputs.type_logits[b], np.float64), 1))
        mixed = p_type @ np.delete(np.array(per_type[b]), 1)
        expected.append(mixed if ftype[b] < 0 else per_type[b, ftype[b]])
    np.testing.assert_allclose(
        float(with_types) - float(base), np.average(expected, weights=w), rtol=1e-4
    )
    np.testing.assert_allclose(parts["aux_sum"], np.dot(expected, w), rtol=1e-5)


def test_extreme_logits_have_a_finite_loss_and_gradient():
    outputs = losses.Outputs(np.array([[500.0, -500.0]] * 3), np.array([[-500.0, 500.0]] * 3))
    rows = (np.array([0.0, 1.0, 1.0]), np.array([0, 1, -1]), np.ones(3))
    loss, grads = _gradient(outputs, *rows)
    np.testing.assert_allclose(loss, (500 + 500 + 500) / 3 + 0.7 * 1000 / 2, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads[:2])


def test_denominators_count_what_is_scored_and_are_never_zero():
    ftype, weight = np.array([0, 1, -1, 1, 2]), np.array([1.0, 2.0, 4.0, 8.0, 0.0])
    denominators = jax.jit(
        losses.denominators, static_argnums=3, static_argnames=("drop_type", "keep_rate")
    )
    rows = (np.array([1.0, 0.0, 0.0, 1.0, 1.0]), ftype)
    assert denominators(*rows, weight, None, drop_type=-1) == (15.0, 11.0)
    assert denominators(*rows, weight, None, drop_type=1) == (5.0, 11.0)
    assert denominators(*rows, 0 * weight, None, drop_type=-1) == (1.0, 1.0)
    assert denominators(*rows, weight, None, drop_type=-1, keep_rate=0.5) == (12.0, 11.0)


@pytest.mark.parametrize(
    ("typed", "shape"), [(False, (6, 1)), (False, (3,)), (True, (6,)), (True, (2, 6))]
)
def test_logits_of_another_shape_are_named(typed, shape):
    types = np.zeros((6, 2), np.float32) if typed else None
    outputs = losses.Outputs(np.zeros(shape, np.float32), types)
    rows = np.zeros(6, np.float32), np.zeros(6, np.int32), np.ones(6, np.float32)
    ones = losses.Denominators(*np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"the model's logits are of shape .* for B = 6 rows"):
        losses.total(outputs, *rows, am_weight=1.0, drop_type=-1, denominators=ones)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type_logits": (6, 3)}, r"type_logits are of shape \(6, 3\) .* return f32\[6, 2\]"),
        ({"aux_loss": (6, 1)}, r"aux_loss are of shape \(6, 1\) .* return f32\[6, 2\] or f32\[6\]"),
        ({"parts": (3, 2, 6)}, r"parts are of shape \(3, 2, 6\) .* return f32\[3, 6, 2\]"),
    ],
)
def test_what_stands_beside_logits_has_their_rows(changes, message):
    shapes = {"logits": (6, 2), "type_logits": (6, 2), **changes}
    outputs = losses.Outputs(**{name: np.zeros(of, np.float32) for name, of in shapes.items()})
    rows = np.zeros(6, np.float32), np.zeros(6, np.int32), np.ones(6, np.float32)
    ones = losses.Denominators(*np.ones(2, np.float32))
    with pytest.raises(ValueError, match=message):
        losses.total(outputs, *rows, am_weight=1.0, drop_type=-1, denominators=ones)
