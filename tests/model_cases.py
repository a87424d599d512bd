"""A small typed schema, options of narrow models, rows and gradients, for the tests of models."""

import functools

import jax
import numpy as np

from emofm_jax import config
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.models import build as model_lib
from emofm_jax.nn import losses

SHALLOW = dict(
    stage1=(8,), stage2=(7,), am_hidden=(6,)
)  # one layer and one mixer a stage: quick to compile
SIZES, DIM, ROWS, TYPES = (2, 1, 3), 4, 12, ("view", "cart", "buy")


def schema_of(types=TYPES, rows=(100, 50, 10, 40), clicks=(5, 10, 5, 2)):
    slots = [Slot(f"{g}{i}", g, rows=10) for g, size in zip("abc", SIZES) for i in range(size)]
    if not types:
        rows, clicks = (sum(rows),), (sum(clicks),)
    return Schema("shop", tuple(slots), tuple(types), rows_per_type=rows, clicks_per_type=clicks)


def options_of(name="hmm", **changes):
    """Small widths; a key `mixer_X` changes `mixer.X`."""
    options = config.default().model.to_dict()
    options |= dict(
        name=name, embedding_dim=DIM, hidden=(8, 6), stage1=(8, 6), stage2=(7, 5), am_hidden=(6, 4)
    )
    options["mixer"] |= dict(d_att=8, num_heads=2)
    for key, value in changes.items():
        section, key = (options["mixer"], key[6:]) if key.startswith("mixer_") else (options, key)
        assert key in section
        section[key] = value
    return options


def random_variables(module, schema, seed=1):
    """None of them zero, none of them as at the start."""
    leaves, structure = jax.tree.flatten(
        jax.eval_shape(lambda key: model_lib.init(module, key, schema), jax.random.key(0))
    )
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [rng.uniform(-0.8, 0.8, x.shape).astype(np.float32) for x in leaves]
    )


def random_rows(seed=0, rows=ROWS):
    """[e, label, ftype, weight]: every type and the unknown one, no row of weight 0."""
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(rows, sum(SIZES), DIM)).astype(np.float32)
    label = rng.integers(0, 2, rows).astype(np.float32)
    ftype = np.resize([0, 1, 2, -1], rows).astype(np.int32)
    return [e, label, ftype, rng.uniform(0.5, 2.0, rows).astype(np.float32)]


def loss_of(module, variables, e, label, ftype, weight, am_weight=1.0, axis_name=None):
    """(loss, (outputs, batch statistics))"""
    drop_type = getattr(module, "drop_type", -1)  # untyped models have none
    outputs, updated = module.apply(variables, e, weight, train=True, mutable=["batch_stats"])
    denominators = losses.denominators(label, ftype, weight, axis_name, drop_type=drop_type)
    loss, _ = losses.total(
        outputs,
        label,
        ftype,
        weight,
        am_weight=am_weight,
        drop_type=drop_type,
        denominators=denominators,
    )
    return loss, (outputs, updated)


@functools.partial(jax.jit, static_argnums=0)
def gradients(module, variables, e, label, ftype, weight, am_weight=1.0):
    """((loss, (outputs, statistics)), (gradient of the parameters, of e)); tests share what is compiled."""

    def of(params, e):
        return loss_of(module, {**variables, "params": params}, e, label, ftype, weight, am_weight)

    return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(variables["params"], e)
