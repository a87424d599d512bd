"""Schedules against their formulas, optimizers against float64 loops, and row-wise: a slab moves as the whole does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emofm_jax import config
from emofm_jax.errors import UserError
from emofm_jax.training import optim
from tests.reference import sparse_step as reference


def section(**changes):
    return {**config.default().optim.network.to_dict(), **changes}


def rates(num_steps, **changes):
    schedule = optim.make_schedule(section(learning_rate=0.5, **changes), num_steps)
    return np.array([schedule(jnp.int32(t)) for t in range(num_steps + 1)])


def test_constant_and_plateau_stay():
    np.testing.assert_array_equal(rates(5), 0.5)
    np.testing.assert_array_equal(rates(5, schedule="plateau"), 0.5)


def test_cosine_falls_to_zero_at_the_end():
    expected = [0.25 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
    np.testing.assert_allclose(rates(8, schedule="cosine"), expected, atol=1e-7)


def test_warm_up_rises_on_a_line_and_then_the_schedule_starts():
    rise = [0.5 * (t + 1) / 5 for t in range(4)]
    np.testing.assert_allclose(rates(10, warmup_steps=4), rise + [0.5] * 7, rtol=1e-6)
    cosine = [0.25 * (1 + np.cos(np.pi * t / 6)) for t in range(7)]
    np.testing.assert_allclose(
        rates(10, warmup_steps=4, schedule="cosine"), rise + cosine, atol=1e-7
    )


def test_a_run_shorter_than_its_warm_up_only_rises():
    np.testing.assert_allclose(
        rates(3, warmup_steps=9, schedule="cosine"), np.arange(1, 5) * 0.05, rtol=1e-6
    )


# 1 - 0.999 has 5 good digits in float32, 1 - 0.95 has 6: beta2 is not the default here.
OPTIMIZERS = [
    dict(name="adam", beta1=0.8, beta2=0.95, eps=1e-3),
    dict(name="adamw", beta2=0.9, weight_decay=0.3),
    dict(name="adagrad", initial_accumulator=0.2, eps=0.05),
    dict(name="rowwise_adagrad", initial_accumulator=0.2, eps=0.05),
    dict(name="sgd"),
    dict(name="sgd", momentum=0.7),
]


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda c: "-".join(map(str, c.values())))
def test_optimizers_follow_their_formulas_with_every_field(changes):
    ours = section(learning_rate=0.1, **changes)
    optimizer = optim.make_optimizer(ours, 10)
    rng = np.random.default_rng(0)
    parameter, memory = rng.normal(size=(6, 3)), {}
    params = jnp.asarray(parameter, jnp.float32)
    state = optimizer.init(params)
    slab, slab_state = params[2:4], optimizer.init(params[2:4])
    for t in range(4):
        gradient = rng.normal(size=(6, 3)).astype(np.float32)
        parameter = reference.move(ours, parameter, gradient, memory, t)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        updates, slab_state = optimizer.update(gradient[2:4], slab_state, slab)
        slab = optax.apply_updates(slab, updates)
    np.testing.assert_allclose(params, parameter, atol=2e-6)
    np.testing.assert_allclose(slab, params[2:4], atol=1e-7)


def test_the_schedule_reaches_the_updates():
    optimizer = optim.make_optimizer(section(name="sgd", learning_rate=1.0, schedule="cosine"), 4)
    state, moved = optimizer.init(jnp.zeros(())), []
    for _ in range(5):
        update, state = optimizer.update(jnp.ones(()), state)
        moved.append(float(update))
    np.testing.assert_allclose(
        moved, [-0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(5)], atol=1e-6
    )


def test_only_counts_and_rows_are_in_the_state():
    """The sparse step gathers leaves of V rows and lets the others be: there may be nothing in between."""
    for name in {changes["name"] for changes in OPTIMIZERS}:
        state = optim.make_optimizer(section(name=name, momentum=0.9), 10).init(jnp.zeros((5, 2)))
        assert {leaf.shape for leaf in jax.tree.leaves(state)} <= {(), (5,), (5, 2)}


@pytest.mark.parametrize(
    "field, value, known",
    [
        ("name", "lamb", "adam, adamw, adagrad, rowwise_adagrad, sgd"),
        ("schedule", "step", "constant, cosine, plateau"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(field, value, known):
    c = config.default()
    c.optim.network[field] = value
    with pytest.raises(UserError, match=rf"'{value}' is not known; choose one of {known}"):
        config.validate(c)


def test_every_optimizer_that_a_config_may_name_is_here():
    known = config.options()["optim.network.name"].choices
    assert set(known) == {changes["name"] for changes in OPTIMIZERS}
    with pytest.raises(ValueError, match="'lamb' is not known"):
        optim.make_optimizer(section(name="lamb"), 10)
