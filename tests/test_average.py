"""The moving average of all parameters: its numbers, who scores with it, and a run that goes on."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from emofm_jax import config, load_scorer, train
from emofm_jax.errors import UserError
from emofm_jax.training import build, checkpoint
from emofm_jax.training import state as state_lib
from tests import test_step as steps
from tests.linear_model import make_schema

FLAGS = (f"--config={Path(__file__).parent / 'tiny.py'}:dnn", "--config.model.norm=batch")


@pytest.mark.parametrize("updates", ["lazy", "dense"])
def test_it_follows_the_parameters_by_its_decay(updates):
    state, step, _ = steps.make(updates=updates, average=0.8)
    average = {"params": steps.start(), "stats": {}}
    state = state.replace(average=state_lib.put_state(average, steps.one_device()))
    for t, batch in enumerate(steps.BATCHES, start=1):
        state, _ = step(state, state_lib.put_batch(batch, steps.one_device()))
        kept = min(0.8, t / (t + 9))
        now = {"params": state_lib.fetch(state.params), "stats": {}}
        average = jax.tree.map(lambda a, x, m=kept: m * a + (1 - m) * x, average, now)
    for ours, expected in zip(
        jax.tree.leaves(state_lib.fetch(state.average)), jax.tree.leaves(average)
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert state.scored()[0] is state.average["params"]


def test_its_length_is_in_epochs():
    c = config.default()
    c.train.average_epochs, c.data.batch_size = 0.5, 100
    schema = make_schema(("click",))
    with pytest.raises(UserError, match="config.train.average_epochs: 0.5 needs the number of tr"):
        build._average_decay(c, schema)
    of_rows = dataclasses.replace(schema, rows_per_type=(1000, 0))
    # After half an epoch, 5 steps of 10, a start counts for 1/e.
    assert build._average_decay(c, of_rows) ** 5 == pytest.approx(np.exp(-1))


def test_a_run_scores_with_it_and_goes_on_with_the_same_bits(runs, tmp_path):
    data = f"--config.data.dir={runs / 'data'}"
    command = lambda name, *more: train.main(
        ["train", *FLAGS, data, f"--workdir={tmp_path / name}", *more]
    )
    average = "--config.train.average_epochs=0.5"
    assert command("whole", average) == 0
    assert command("parts", average, "--config.train.max_steps=7") == 0
    assert command("parts", average) == 0
    last = checkpoint.latest(tmp_path / "whole/checkpoints")
    whole, parts = (
        (tmp_path / name / f"checkpoints/step_{last}/state.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts

    scorer = load_scorer(tmp_path / "whole")
    c = config.load(tmp_path / "whole")
    state, _ = build.restore(tmp_path / "whole", build.make_parts(c, scorer.schema))
    kept, plain = state_lib.fetch((state.average["params"], state.params))
    np.testing.assert_array_equal(scorer.params["embedding"], kept["embedding"])
    assert np.abs(kept["embedding"] - plain["embedding"]).max() > 1e-4
    for a, b in zip(jax.tree.leaves(scorer.params["network"]), jax.tree.leaves(kept["network"])):
        np.testing.assert_array_equal(a, b)
