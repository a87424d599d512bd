"""What runs of one process share: steps of configs that differ in nothing but the seed."""

import dataclasses

import numpy as np
import pytest

from emofm_jax import config
from emofm_jax.training import build, checkpoint
from emofm_jax.training.progress import Progress
from tests.linear_model import make_schema

SCHEMA = make_schema(("click", "cart", "buy"))


def make(num_steps=10, schema=SCHEMA, **changes):
    c = config.default()
    c.update_from_flattened_dict(
        {"model.name": "wm", "model.hidden": (6,), "model.am_hidden": (), **changes}
    )
    return build.make_parts(c, schema, num_steps)


def test_seeds_share_the_steps_and_differ_in_their_key():
    one, other = make(), make(seed=1, num_steps=20)
    assert one.train_step is other.train_step and one.eval_step is other.eval_step
    states = one.init(), other.init()
    assert not np.array_equal(states[0].key, states[1].key)
    assert not np.array_equal(states[0].params["embedding"], states[1].params["embedding"])
    np.testing.assert_array_equal(states[0].params["embedding"], make().init().params["embedding"])


@pytest.mark.parametrize(
    ("changes", "evaluation"),
    [
        ({"optim.network.learning_rate": 0.5}, True),
        ({"optim.network.schedule": "cosine"}, True),
        ({"model.am_weight": 0.5}, False),
        ({"compute_dtype": "bfloat16"}, False),
        ({"schema": dataclasses.replace(SCHEMA, rows_per_type=(4, 3, 2, 1))}, False),
    ],
)
def test_what_decides_a_step_makes_another(changes, evaluation):
    one, other = make(), make(**changes)
    assert one.train_step is not other.train_step
    assert (one.eval_step is other.eval_step) == evaluation


def test_the_end_of_a_schedule_decides_a_step():
    cosine = {"optim.network.schedule": "cosine"}
    assert (
        make(**cosine).train_step
        is make(**cosine).train_step
        is not make(num_steps=20, **cosine).train_step
    )


def test_a_restored_state_has_the_key_of_its_seed(tmp_path):
    parts = make(seed=7)
    state, info = parts.init(), Progress(step=3).to_json()
    checkpoint.save(tmp_path / "checkpoints", 3, build.without_scratch(state), info)
    restored, progress = build.restore(tmp_path, parts)
    assert progress.step == 3
    np.testing.assert_array_equal(restored.key, state.key)
    np.testing.assert_array_equal(restored.params["embedding"], state.params["embedding"])
