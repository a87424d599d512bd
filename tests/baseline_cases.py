"""The baselines small, with their interesting options on, and rows as wide as they read."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from emofm_jax import config
from emofm_jax.models import build as model_lib
from tests import model_cases as cases

# Widths that compile quickly; tanh, so that no unit can be dead.
SMALL = {
    "embedding_dim": cases.DIM,
    "hidden": (6,),
    "am_hidden": (),
    "activation": "tanh",
    "dcnv2.num_layers": 1,
    "edcn.num_layers": 1,
    "final.block1": (4,),
    "final.block2": (4,),
    "finalmlp.mlp1": (4,),
    "finalmlp.mlp2": (6,),
    "finalmlp.gate_hidden": (5,),
    "destine.num_layers": 1,
    "destine.d_att": 6,
    "destine.attention_dropout": 0.0,
}
RICH = {
    "lr": {},
    "fm": {},
    "deepfm": {},
    "dnn": {},
    "dcnv2": {"dcnv2.structure": "both", "dcnv2.low_rank": 2, "dcnv2.num_experts": 2},
    "edcn": {"edcn.bridge": "attention"},
    "final": {"final.gate": True},
    "finalmlp": {
        "finalmlp.context1": ("a0",),
        "finalmlp.context2": ("b0", "c1"),
        "finalmlp.num_heads": 2,
    },
    "destine": {"destine.relu": True},
}
NORMED = tuple(
    name for name in RICH if name not in ("lr", "fm")
)  # that batch norm has an effect on


def options_of(name, changes=None):
    """`config.model` as a dict; `changes` by dotted path: {"dcnv2.low_rank": 2}."""
    c = config.default()
    c.model.update_from_flattened_dict({**SMALL, "name": name, **(changes or {})})
    return c.model.to_dict()


def make(name, changes=None, types=cases.TYPES, **more):
    return model_lib.make_model(cases.schema_of(types), options_of(name, changes), **more)


@functools.cache
def rich(name, typed=False, norm="batch", compute_dtype="float32"):
    """(module, variables) with the interesting options on; nothing is zero."""
    changes = RICH[name] | {"norm": norm, "type_aware": typed}
    module = make(name, changes, compute_dtype=compute_dtype)
    variables = cases.random_variables(module, cases.schema_of())
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return module, variables


def start(module):
    """The variables of `models.init`."""
    e = jnp.zeros((1, sum(cases.SIZES), model_lib.table_width(module)))
    return jax.jit(lambda key: module.init(key, e))(jax.random.key(0))


def rows_of(module, seed=0):
    """[e f32[B, S, table_width], label, ftype, weight], as of `cases.random_rows`."""
    rows = cases.random_rows(seed)
    rng, width = np.random.default_rng(seed + 100), model_lib.table_width(module)
    return [rng.normal(size=(*rows[0].shape[:2], width)).astype(np.float32), *rows[1:]]


gradients = cases.gradients


@functools.partial(jax.jit, static_argnums=0)
def forward(module, variables, e, weight=None, key=None):
    """(Outputs, updated statistics) of a training step's forward."""
    rngs = {} if key is None else {"dropout": key}
    return module.apply(variables, e, weight, train=True, rngs=rngs, mutable=["batch_stats"])


@functools.partial(jax.jit, static_argnums=0)
def predict(module, variables, e):
    return model_lib.predict(module, variables, e)


def traced(name, changes, train=True, types=()):
    """The text of start and forward, in training or as `predict` has it; nothing is lowered or compiled."""
    module = make(name, changes, types)
    e = jnp.zeros((cases.ROWS, sum(cases.SIZES), model_lib.table_width(module)))

    def of(key, e):
        return module.init_with_output({"params": key, "dropout": key}, e, train=train)

    return re.sub(
        "0x[0-9a-f]+", "", str(jax.make_jaxpr(of)(jax.random.key(0), e))
    )  # addresses of functions
