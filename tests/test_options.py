"""No option is lost on the way from a config to the program: changing it changes what is traced.

What an option then does is tested beside its code, those of the network in test_emofm.py.
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from emofm_jax import config
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.training import build
from emofm_jax.training.state import SECTIONS
from tests.linear_model import make_batch, make_schema

SCHEMA = dataclasses.replace(
    make_schema(("click", "cart", "buy")), rows_per_type=(9, 8, 7, 0), clicks_per_type=(2, 2, 2, 0)
)
# A model that is traced at once, for what it does not decide; and two that read more.
SMALL = {
    "model.name": "lr",
    "model.use_ftype": False,
    "data.batch_size": 13,
    "data.eval_batch_size": 13,
}
DNN = {"model.name": "dnn", "model.hidden": (6,)}
TYPED = {
    "model.name": "wm",
    "model.use_ftype": True,
    "model.am_hidden": (),
    "model.hidden": (6,),
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
    "compute_dtype": ("bfloat16", DNN),
    "model.embedding_dim": (5, DNN),
    "model.init_scale": (0.5, {}),
    "model.am_weight": (0.5, TYPED),
    "model.am_joint": (True, TYPED),
    "model.am_reads": ("own", TYPED),
    "model.am_columns": (3, {**TYPED, "model.am_reads": "own"}),
    "optim.clip": ("group", {}),
    "optim.clip_norm": (0.5, {"optim.clip": "global"}),
    "optim.embedding.updates": ("dense", {}),
    "optim.embedding.first_order_l2": (0.5, {}),
    "optim.embedding.l2_rows": (50.0, {"optim.embedding.updates": "dense"}),
    "train.average_epochs": (0.5, {}),
    **{
        f"optim.{section}.{field}": (value, {f"optim.{section}.{k}": v for k, v in more.items()})
        for section in SECTIONS
        for field, (value, more) in OPTIMIZER.items()
    },
}
# Fields that only the start depends on.
START = {
    "seed",
    "model.init_scale",
    *(f"optim.{section}.initial_accumulator" for section in SECTIONS),
}


def make(changes):
    c = config.default()
    c.update_from_flattened_dict({**SMALL, **changes})
    config.validate(c)
    return c


@functools.cache
def traced(changes, start, schema=SCHEMA):
    """(text, constants) of the start, or of the step, of a config; nothing is lowered."""
    parts = build.make_parts(make(dict(changes)), schema, num_steps=10)
    if start:
        program = jax.make_jaxpr(parts.init)()
    else:
        state = jax.eval_shape(parts.init)
        program = jax.make_jaxpr(parts.train_step)(state, make_batch(0, types=3))
    text = re.sub("0x[0-9a-f]+", "", str(program))  # addresses of functions
    return text, [bits(constant) for constant in program.consts]


def bits(constant):
    """Numbers of an array, of a random key, too."""
    if jax.numpy.issubdtype(constant.dtype, jax.dtypes.prng_key):
        constant = jax.random.key_data(constant)
    return np.asarray(constant).tolist()


@pytest.mark.parametrize("field", OPTIONS)
def test_an_option_changes_the_program(field):
    value, needed = OPTIONS[field]
    base = tuple(needed.items())
    assert traced(base, field in START) != traced((*base, (field, value)), field in START)


def test_l2_rows_is_l2_over_the_rows_of_the_train_split():
    rows = sum(SCHEMA.rows_per_type)
    dense = ("optim.embedding.updates", "dense")
    of_rows = (dense, ("optim.embedding.l2", 0.25), ("optim.embedding.l2_rows", 0.5 * rows))
    assert traced(of_rows, False) == traced((dense, ("optim.embedding.l2", 0.75)), False)

    unknown = dataclasses.replace(SCHEMA, rows_per_type=(), clicks_per_type=())
    with pytest.raises(UserError, match="config.optim.embedding.l2_rows: 9.0 needs the number of"):
        build.make_parts(make(dict([dense, ("optim.embedding.l2_rows", 9.0)])), unknown, 10)


def test_sampling_correction_changes_the_program_where_rows_were_left_out_alone():
    sampled = dataclasses.replace(SCHEMA, recipe={"negative_keep_rate": 0.2})
    weight = ("train.sampling_correction", "weight")
    assert traced((weight,), False) == traced((), False)
    assert traced((weight,), False, sampled) == traced((), False)  # the weights are in the rows
    assert traced((), False, sampled) != traced((), False)


def test_no_option_of_optim_is_without_a_test():
    assert {f for f in config.flatten(config.default()) if f.startswith("optim.")} <= set(OPTIONS)


@pytest.mark.parametrize(
    ("changes", "unread", "read"),
    [
        (
            {"name": "emofmv2"},
            {"am_joint": "am_reads=own"},
            ("am_reads", "am_columns", "am_weight"),
        ),
        (
            {"name": "emofmv2", "am_reads": "both"},
            {"hidden": "emofmv2"},
            ("am_joint", "am_reads", "am_columns"),
        ),
        (
            {"name": "wm"},
            {"am_columns": "am_reads=embeddings"},
            ("am_hidden", "am_reads", "am_joint"),
        ),
        (
            {"name": "hm"},
            {"hidden": "hm", "mixer.d_att": "hm", "edcn.bridge": "hm"},
            ("stage1", "am_hidden"),
        ),
        (
            {"name": "hm"},
            {"type_aware": "hm, which is type-aware by nature"},
            ("use_ftype", "type_predictors"),
        ),
        (
            {"name": "hmm", "mixer.kind": "none"},
            {"mixer.d_att": "mixer.kind=none"},
            ("mixer.kind",),
        ),
        (
            {"name": "hmm", "mixer.kind": "mlp"},
            {"mixer.num_heads": "mixer.kind=mlp"},
            ("mixer.kind", "mixer.norm"),
        ),
        ({"name": "hm", "use_ftype": False}, {"am_weight": "use_ftype=False"}, ("stage2",)),
        (
            {"name": "lr"},
            {"hidden": "lr", "embedding_dim": "lr", "dropout": "lr"},
            ("init_scale", "type_aware"),
        ),
        (
            {"name": "lr", "type_aware": True},
            {"hidden": "lr"},
            ("embedding_dim", "dropout", "am_joint", "use_ftype"),
        ),
        ({"name": "fm"}, {"hidden": "fm", "norm": "fm", "am_hidden": "fm"}, ("embedding_dim",)),
        (
            {"name": "deepfm"},
            {"stage1": "deepfm", "use_ftype": "deepfm without type_aware"},
            ("hidden", "norm"),
        ),
        (
            {"name": "dcnv2"},
            {"dcnv2.num_experts": "dcnv2.low_rank=0", "mixer.kind": "dcnv2"},
            ("hidden",),
        ),
        (
            {"name": "dcnv2", "dcnv2.low_rank": 2},
            {"final.gate": "dcnv2"},
            ("dcnv2.num_experts", "dcnv2.low_rank"),
        ),
        (
            {"name": "dcnv2", "dcnv2.structure": "cross"},
            {"hidden": "dcnv2.structure=cross"},
            ("dcnv2.num_layers",),
        ),
        (
            {"name": "edcn"},
            {"hidden": "edcn", "dcnv2.low_rank": "edcn"},
            ("edcn.temperature", "activation", "norm"),
        ),
        (
            {"name": "final"},
            {"hidden": "final", "type_predictors": "final"},
            ("final.block2", "dropout"),
        ),
        (
            {"name": "finalmlp"},
            {"hidden": "finalmlp"},
            ("finalmlp.context1", "finalmlp.gate_hidden"),
        ),
        (
            {"name": "finalmlp", "finalmlp.selection": False},
            {"finalmlp.context2": "finalmlp.selection=False"},
            ("norm",),
        ),
        (
            {"name": "destine", "destine.deep": False},
            {"norm": "destine.deep=False"},
            ("destine.wide",),
        ),
        (
            {"name": "destine"},
            {"mixer.num_heads": "destine", "am_joint": "destine"},
            ("destine.num_heads", "hidden"),
        ),
        (
            {"name": "dcnv2", "type_aware": True, "dcnv2.structure": "cross"},
            {"hidden": "dcnv2.structure=cross"},
            ("activation", "dropout"),
        ),
        (
            {"name": "fm", "type_aware": True, "use_ftype": False},
            {"type_aware": "use_ftype=False"},
            ("embedding_dim",),
        ),
        ({"name": "hmm", "mixer.stages": ()}, {"mixer.kind": "mixer.stages=()"}, ("mixer.stages",)),
        (
            {"name": "hmm", "mixer.stages": (2,), "use_ftype": False},
            {"mixer.d_att": "mixer.stages=(2,), where one predictor is alone"},
            ("mixer.stages",),
        ),
    ],
)
def test_unread_fields_are_named_with_what_they_need(changes, unread, read):
    changes = {f"model.{key}": value for key, value in changes.items()}
    found = model_lib.unread(make({"model.use_ftype": True, **changes}).model.to_dict())
    assert unread.items() <= found.items()
    assert not found.keys() & {*read, "name"}
    assert found.keys() <= {
        path.removeprefix("model.") for path in config.flatten(config.default())
    }


def test_without_mixers_their_stages_switch_nothing_off():
    idle = model_lib.unread(
        make(
            {"model.name": "hmm", "model.mixer.kind": "none", "model.mixer.stages": ()}
        ).model.to_dict()
    )
    assert "mixer.kind" not in idle and idle["mixer.d_att"] == "mixer.kind=none"


def test_unread_fields_of_an_optimizer_are_named():
    assert config.without_effect(make({}))["optim.network.momentum"] == "optim.network.name=adam"
    idle = config.without_effect(make({}))
    both = "optim.embedding.schedule=constant and optim.network.schedule=constant"
    assert idle["train.plateau_min"] == both
    assert idle["train.min_delta"] == f"train.monitor='' and {both}"
