"""From a schema and options to a model, its parameters, and its predictions.

module = model_lib.make_model(schema, options)              # options: config.model as a plain dict
variables = model_lib.init(module, key, schema)
model_lib.predict(module, variables, e)["p"]                # f32[B], the type unknown
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError, check_choice, check_heads
from emofm_jax.models import CHECKS, EMOFM, MODELS, UNREAD
from emofm_jax.models.typed import Copies, Typed, table_width, with_axis
from emofm_jax.nn import layers, mixers, typewise

__all__ = [
    "make_model",
    "init",
    "predict",
    "check",
    "unread",
    "dropped_type",
    "table_width",
    "with_axis",
]


def make_model(schema: Schema, options: Mapping, *, compute_dtype: str = "float32") -> nn.Module:
    """Makes the model that `options` describe, for rows of `schema`.

    On untyped data, or with `use_ftype=False`, a model has one predictor and no auxiliary model; so has a baseline
    unless `type_aware`, which makes it one copy a type (docs/model.md, section 8).

    Args:
      schema: of the shards: slots, groups, types and the train split's counts per type.
      options: `config.model` as a dict, whole.
      compute_dtype: of the network's products, float32 or bfloat16 (parameters stay float32).

    Returns:
      A linen module: `module(e f32[B, S, table_width(module)], weight f32[B] | None, *, train) -> losses.Outputs`.

    Raises:
      UserError: an unknown name, an option that does not fit (`check`); a `drop_type` that is no type of the schema
        or the only one; a context that is no slot of the schema; DESTINE on one slot.
    """
    check(options)
    num_types = _num_types(schema, options)
    values = {key: value for key, value in options.items() if not isinstance(value, Mapping)}
    values |= {f"mixer_{key}": value for key, value in options["mixer"].items()}
    values |= options.get(options["name"], {}) | _derive(schema, options, num_types)
    values["dtype"] = jnp.dtype(compute_dtype)
    network = _construct(MODELS[options["name"]], values)
    if not num_types:
        return network
    if options["name"] not in EMOFM:
        network = _construct(Copies, values | {"network": network})
    return _construct(Typed, values | {"network": network})


def dropped_type(schema: Schema, options: Mapping) -> int:
    """The index of the type that gets no predictor, -1 for none; the loss asks for it.

    Raises:
      UserError: `drop_type` is no type of the schema, the only one, or goes with `use_ftype=False`.
    """
    name = options["drop_type"]
    if not name:
        return -1
    if not options["use_ftype"]:
        raise UserError(
            f"config.model.drop_type: {name!r} has no meaning with use_ftype=False, which knows no types; drop one"
        )
    if not _is_typed(options):
        raise UserError(
            f"config.model.drop_type: {name!r} has no meaning for {options['name']} without types; "
            "set type_aware=True, or leave drop_type empty"
        )
    if name not in schema.types:
        known = ", ".join(map(repr, schema.types)) or "none, the data are untyped"
        raise UserError(
            f"config.model.drop_type: {name!r} is no type of {schema.name!r}; its types: {known}"
        )
    if schema.num_types == 1:
        raise UserError(f"config.model.drop_type: {name!r} is the only type; leave drop_type empty")
    return schema.types.index(name)


def init(module: nn.Module, key: jax.Array, schema: Schema) -> dict:
    """Draws the network's variables: `params`, and `batch_stats` where the model has batch norm."""
    e = jnp.zeros((1, schema.num_slots, table_width(module)), jnp.float32)
    return jax.jit(lambda key: module.init(key, e))(key)


def predict(module: nn.Module, variables: Mapping, e: jax.Array) -> dict[str, jax.Array]:
    """The one forward that evaluation and scorer share; pure, without dropout, with running batch statistics.

    Args:
      module: of `make_model`.
      variables: of `init`, or trained: `{"params": ..., "batch_stats": ...}`.
      e: f32[B, S, table_width(module)].

    Returns:
      `p` f32[B], the probability of a click with the type unknown, and `logit` f32[B], its log-odds. Typed models
      also `p_type` f32[B, T], the AM's distribution over types (a dropped type: 0), and `p_given_type` f32[B, T]
      (a dropped type: that of the mixture).
    """
    outputs = module.apply(variables, e)
    if outputs.type_logits is None:
        return {"p": jax.nn.sigmoid(outputs.logits), "logit": outputs.logits}
    mixture = typewise.mixture(outputs.logits, outputs.type_logits, module.drop_type)
    return {
        "p": jnp.exp(mixture.log_p),
        "logit": mixture.logit,
        "p_type": typewise.type_probs(outputs.type_logits, module.drop_type),
        "p_given_type": jax.nn.sigmoid(outputs.logits),
    }


def check(options: Mapping) -> None:
    """Checks what needs no schema, so that a program can fail before it touches data.

    Raises:
      UserError: a name that is not known, an option of the model that does not fit.
    """
    name = options["name"]
    check_choice("config.model.name", name, MODELS)
    check_choice("config.model.activation", options["activation"], layers.ACTIVATIONS)
    if "mixer_kind" in _fields(MODELS[name]):
        mixer = options["mixer"]
        check_choice("config.model.mixer.kind", mixer["kind"], mixers.MIXERS)
        if "num_heads" in mixers.FIELDS[mixer["kind"]]:
            check_heads("config.model.mixer.num_heads", mixer["num_heads"], mixer["d_att"], "d_att")
    if name in CHECKS:
        CHECKS[name](options[name])
    if name == "lr" and _is_typed(options) and not options["am_joint"]:
        raise UserError(
            "config.model.am_joint: lr reads no embeddings, so only the auxiliary model can train those that it needs "
            "for type_aware=True; set am_joint=True"
        )


def unread(options: Mapping) -> dict[str, str]:
    """{field of `config.model`, as "mixer.kind": what it has no effect on, as the others are}."""
    name, typed, fields = options["name"], _is_typed(options), _fields(MODELS[options["name"]])
    found = {}
    for key in options.keys() - {
        "name",
        "init_scale",
        "use_ftype",
        "type_aware",
        "am_weight",
        "drop_type",
    }:
        if key == "mixer":
            found |= {f"mixer.{k}": name for k in options[key] if f"mixer_{k}" not in fields}
        elif isinstance(options[key], Mapping):  # a model's own section
            found |= {f"{key}.{k}": name for k in options[key] if key != name}
        elif key not in fields:
            found[key] = name
    if name in UNREAD:
        found |= UNREAD[name](options[name])
    if "mixer_kind" in fields:
        found |= _unread_of_mixers(options)
    if typed:
        for key in ("am_hidden", "am_joint", "embedding_dim", "activation", "dropout"):
            found.pop(key, None)  # the AM's, or of the table that it reads
    else:
        why = name if options["use_ftype"] else "use_ftype=False"
        found |= dict.fromkeys(("type_predictors", "am_hidden", "am_weight", "am_joint"), why)
    if name in EMOFM:
        found["type_aware"] = f"{name}, which is type-aware by nature"
    elif not options["use_ftype"]:
        found["type_aware"] = "use_ftype=False"
    elif not options["type_aware"]:
        found["use_ftype"] = f"{name} without type_aware"
    return found


def _unread_of_mixers(options):
    mixer = options["mixer"]
    one_type = not options["use_ftype"] or options["type_predictors"] == "shared"
    if mixer["kind"] == "none":
        return {f"mixer.{k}": "mixer.kind=none" for k in mixer if k != "kind"}
    if not mixer["stages"] or (one_type and set(mixer["stages"]) == {2}):
        why = f"mixer.stages={tuple(mixer['stages'])}" + ", where one predictor is alone" * bool(
            mixer["stages"]
        )
        return {f"mixer.{k}": why for k in mixer if k != "stages"}
    idle = {"d_att", "num_heads"} - set(mixers.FIELDS[mixer["kind"]])
    return {f"mixer.{k}": f"mixer.kind={mixer['kind']}" for k in idle}


def _fields(module):
    return {field.name for field in dataclasses.fields(module)} - {"name", "parent"}


def _construct(module, values):
    """The linen module with those of the values that are its fields."""
    fields = _fields(module)
    return module(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in fields}
    )


def _is_typed(options):
    return options["use_ftype"] and (options["name"] in EMOFM or options["type_aware"])


def _num_types(schema, options):
    if (
        options["type_aware"]
        and options["use_ftype"]
        and options["name"] not in EMOFM
        and not schema.num_types
    ):
        raise UserError(
            f"config.model.type_aware: {schema.name!r} has no interaction types; leave it False"
        )
    return schema.num_types if _is_typed(options) else 0


def _derive(schema: Schema, options: Mapping, num_types: int) -> dict:
    """Fields of a model that follow from the schema."""
    drop_type = dropped_type(schema, options)
    rows = np.array(schema.rows_per_type or [0] * (schema.num_types + 1), np.float64)
    clicks = np.array(schema.clicks_per_type or [0] * (schema.num_types + 1), np.float64)
    rate = (clicks.sum() + 0.5) / (
        rows.sum() + 1
    )  # half a click and half a non-click: never 0 or 1
    if num_types and (options["type_predictors"] == "per_type" or options["name"] not in EMOFM):
        starts = [_log_odds(clicks[t], rows[t], rate) for t in range(num_types) if t != drop_type]
    else:
        starts = [_log_odds(clicks.sum(), rows.sum(), rate)]
    if options["head_bias"] == "zero":
        starts = [0.0] * len(starts)
    shares = (rows[:num_types] + 1) / (rows[:num_types].sum() + max(num_types, 1))
    derived = {
        "group_sizes": schema.group_sizes,
        "num_predictors": num_types - (drop_type >= 0),
        "drop_type": drop_type,
        "head_bias": tuple(starts),
        "type_bias": tuple(float(x) for x in np.log(shares)),
    }
    if options["name"] == "finalmlp" and options["finalmlp"]["selection"]:
        derived |= {
            key: _slot_numbers(schema, key, options["finalmlp"][key])
            for key in ("context1", "context2")
        }
    if options["name"] == "destine" and schema.num_slots == 1:
        raise UserError(
            f"config.model.name: 'destine' attends from slot to slot, and {schema.name!r} has one slot; choose another"
        )
    return derived


def _slot_numbers(schema, field, names):
    known = [slot.name for slot in schema.slots]
    for name in names:
        if name not in known:
            raise UserError(
                f"config.model.finalmlp.{field}: {name!r} is no slot of {schema.name!r}; its slots: {', '.join(known)}"
            )
    if len(set(names)) < len(names):
        raise UserError(
            f"config.model.finalmlp.{field}: {tuple(names)} names a slot twice; name it once"
        )
    return tuple(known.index(name) for name in names)


def _log_odds(clicks, rows, rate):
    """Of the smoothed rate (clicks + rate) / (rows + 1)."""
    p = (clicks + rate) / (rows + 1)
    return math.log(p / (1 - p))
