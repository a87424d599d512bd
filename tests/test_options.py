"""No option is lost on the way from a config to the program: changing it changes what is lowered.

What an option then does is tested beside its code, those of the network in test_emofm.py.
"""

import functools

import jax
import pytest

from emofm_jax import config, models, train
from emofm_jax.training import program as program_lib
from emofm_jax.training import step as step_lib
from tests.linear_model import make_batch, make_schema

SCHEMA = make_schema(("click", "cart", "buy"))
SMALL = {
    "model.name": "wm",
    "model.hidden": (6,),
    "model.am_hidden": (),
    "data.batch_size": 13,
    "data.eval_batch_size": 13,
}
ADAMW, ADAGRAD, SGD = ({"name": name} for name in ("adamw", "adagrad", "sgd"))
# Field of a section of `optim` -> another value, and what else of the section must be set for it to have an effect.
OPTIMIZER = {
    "name": ("sgd", {}),
    "learning_rate": (0.5, {}),
    "schedule": ("cosine", {}),
    "warmup_steps": (3, {}),
    "l2": (0.1, {}),
    "weight_decay": (0.1, ADAMW),
    "beta1": (0.5, {}),
    "beta2": (0.5, {}),
    "eps": (0.1, {}),
    "momentum": (0.5, SGD),
    "initial_accumulator": (0.5, ADAGRAD),
}
# Field -> another value, and what else must be set.
OPTIONS = {
    "seed": (1, {}),
    "compute_dtype": ("bfloat16", {}),
    "model.embedding_dim": (5, {}),
    "model.init_scale": (0.5, {}),
    "model.am_weight": (0.5, {}),
    "model.am_joint": (True, {}),
    "optim.clip": ("group", {}),
    "optim.clip_norm": (0.5, {"optim.clip": "global"}),
    "optim.embedding.update": ("dense", {}),
    **{
        f"optim.{section}.{field}": (value, {f"optim.{section}.{k}": v for k, v in more.items()})
        for section in step_lib.SECTIONS
        for field, (value, more) in OPTIMIZER.items()
    },
}
# Fields that only the start depends on.
START = {"seed", "model.init_scale", *(f"optim.{section}.initial_accumulator" for section in step_lib.SECTIONS)}


def make(changes):
    c = config.default()
    c.update_from_flattened_dict({**SMALL, **changes})
    config.validate(c)
    return c


@functools.cache
def lowered(changes, start):
    """The text of the start, or of the step, of a config; nothing is compiled."""
    program = program_lib.make_program(make(dict(changes)), SCHEMA, num_steps=10)
    if start:
        return jax.jit(program.init).lower().as_text()
    return program.train_step.lower(jax.eval_shape(program.init), make_batch(0, types=3)).as_text()


@pytest.mark.parametrize("field", OPTIONS)
def test_an_option_changes_the_program(field):
    value, needed = OPTIONS[field]
    base = tuple(needed.items())
    assert lowered(base, field in START) != lowered((*base, (field, value)), field in START)


def test_no_option_of_optim_is_without_a_test():
    assert {f for f in config.flatten(config.default()) if f.startswith("optim.")} <= set(OPTIONS)


def test_unread_fields_are_named_with_what_they_need():
    unread = models.unread(make({"model.name": "hm"}).model.to_dict())
    assert unread["hidden"] == unread["mixer.d_att"] == "hm" and "stage1" not in unread
    assert (
        models.unread(make({"model.name": "hmm", "model.mixer.kind": "none"}).model.to_dict())["mixer.d_att"]
        == "mixer.kind=none"
    )
    assert train._without_effect(make({}))["optim.network.momentum"] == "adam"
