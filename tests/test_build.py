"""What runs of one process share: steps of configs that differ in nothing but the seed."""

import dataclasses

import numpy as np
import pytest

from emofm_jax import config
from emofm_jax.data.placing import Layout
from emofm_jax.training import build, checkpoint, state
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


def test_a_run_is_evaluated_on_devices_that_its_batches_do_not_suit(monkeypatch):
    """Another machine has others than the run was trained on, and `evaluate` takes no options."""
    c = config.default()
    c.model.update({"members": 4, "members_rows": "split"})
    c.data.update({"batch_size": 256, "eval_batch_size": 512, "exchange_rows": 40})
    monkeypatch.setattr(state.jax, "device_count", lambda: 7)
    here = build.for_evaluation(c)
    assert (here.data.batch_size, here.data.eval_batch_size) == (259, 518)
    assert here.model.members_rows == "all"  # a split batch has its own needs
    # 40 rows were enough on more devices, each of which asked less of more of them.
    layout = Layout(SCHEMA, 7, here.data.exchange_rows).scaled(518, 259)
    assert layout.capacity(500) == min(500, layout.rows)
    c.data.exchange_rows = 0
    assert build.for_evaluation(c).data.exchange_rows == 0


def test_a_larger_batch_of_evaluation_may_ask_for_more(monkeypatch):
    monkeypatch.setattr(state.jax, "device_count", lambda: 2)
    sizes = {"data.batch_size": 64, "data.exchange_rows": 3}
    for size, expected in ((32, 3), (64, 3), (100, 5), (512, 24)):
        parts = make(**sizes, **{"data.eval_batch_size": size})
        assert parts.layout.exchange_rows == 3
        assert parts.scoring_layout.exchange_rows == expected
    assert make(**{"data.eval_batch_size": 512}).scoring_layout.exchange_rows == 0
