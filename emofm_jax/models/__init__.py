"""From a schema and options to a model, its parameters, and its predictions.

    module = models.make_model(schema, options)              # options: config.model as a plain dict
    variables = models.init(module, key, schema)
    models.predict(module, variables, e)["p"]                # f32[B], the type unknown

To add a model: a linen module whose fields are named as those of `config.model` (or `_derive` below), and one
line in `MODELS`.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.models.emofm import HM, HMM, WM
from emofm_jax.nn import layers, mixers, typewise

MODELS = {"wm": WM, "hm": HM, "hmm": HMM}


def make_model(
    schema: Schema, options: Mapping, *, compute_dtype: str = "float32", axis_name: str | None = None
) -> nn.Module:
    """Makes the model that `options` describe, for rows of `schema`.

    On untyped data, or with `use_ftype=False`, a model has one predictor and no auxiliary model.

    Args:
      schema: of the shards: slots, groups, types and the train split's counts per type.
      options: `config.model` as a dict, whole.
      compute_dtype: of the network's products, float32 or bfloat16 (parameters stay float32).
      axis_name: of the devices over which batch norm sums its statistics; None outside of pmap.

    Returns:
      A linen module: `module(e f32[B, S, D], weight f32[B] | None, *, train) -> losses.Outputs`.

    Raises:
      UserError: an unknown name of a model, mixer or activation; a `drop_type` that is no type of the schema or
        the only one; heads that do not divide d_att.
    """
    check(options)
    values = {key: value for key, value in options.items() if key != "mixer"}
    values |= {f"mixer_{key}": value for key, value in options["mixer"].items()}
    values |= _derive(schema, options) | {"dtype": jnp.dtype(compute_dtype), "axis_name": axis_name}
    model = MODELS[options["name"]]
    fields = {field.name for field in dataclasses.fields(model)} - {"name", "parent"}
    return model(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in fields})


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
    if name not in schema.types:
        known = ", ".join(map(repr, schema.types)) or "none, the data are untyped"
        raise UserError(f"config.model.drop_type: {name!r} is no type of {schema.name!r}; its types: {known}")
    if schema.num_types == 1:
        raise UserError(f"config.model.drop_type: {name!r} is the only type; leave drop_type empty")
    return schema.types.index(name)


def init(module: nn.Module, key: jax.Array, schema: Schema) -> dict:
    """Draws the network's variables: `params`, and `batch_stats` where the model has batch norm."""
    e = jnp.zeros((1, schema.num_slots, module.embedding_dim), jnp.float32)
    return jax.jit(lambda key: module.init(key, e))(key)


def predict(module: nn.Module, variables: Mapping, e: jax.Array) -> dict[str, jax.Array]:
    """The one forward that evaluation and scorer share; pure, without dropout, with running batch statistics.

    Args:
      module: of `make_model`.
      variables: of `init`, or trained: `{"params": ..., "batch_stats": ...}`.
      e: f32[B, S, D].

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
      UserError: a name that is not known, or heads that do not divide d_att.
    """
    mixer = options["mixer"]
    for field, value, known in (
        ("name", options["name"], MODELS),
        ("mixer.kind", mixer["kind"], mixers.MIXERS),
        ("activation", options["activation"], layers.ACTIVATIONS),
    ):
        if value not in known:
            raise UserError(f"config.model.{field}: {value!r} is not known; choose one of {', '.join(known)}")
    if mixer["d_att"] % mixer["num_heads"]:
        raise UserError(
            f"config.model.mixer.num_heads: {mixer['num_heads']} heads do not divide d_att = {mixer['d_att']}; "
            "choose a divisor"
        )


def unread(options: Mapping) -> dict[str, str]:
    """{field of `config.model`, as "mixer.kind": what it has no effect on, as the others are}."""
    fields = {field.name for field in dataclasses.fields(MODELS[options["name"]])}
    mixer = {f"mixer.{key}" for key in options["mixer"]}
    paths = {*options, *mixer} - {"name", "mixer", "use_ftype", "am_weight"}  # these two are read elsewhere
    found = {path: options["name"] for path in paths if path.replace(".", "_") not in fields}
    if options["mixer"]["kind"] == "none":
        found = dict.fromkeys(mixer - {"mixer.kind"}, "mixer.kind=none") | found
    if not options["use_ftype"]:
        found |= dict.fromkeys(("type_predictors", "am_hidden", "am_weight", "am_joint"), "use_ftype=False")
    return found


def _derive(schema: Schema, options: Mapping) -> dict:
    """Fields of a model that follow from the schema."""
    drop_type = dropped_type(schema, options)
    num_types = schema.num_types if options["use_ftype"] else 0
    rows = np.array(schema.rows_per_type or [0] * (schema.num_types + 1), np.float64)
    clicks = np.array(schema.clicks_per_type or [0] * (schema.num_types + 1), np.float64)
    rate = (clicks.sum() + 0.5) / (rows.sum() + 1)  # half a click and half a non-click: never 0 or 1
    if num_types and options["type_predictors"] == "per_type":
        starts = [_log_odds(clicks[t], rows[t], rate) for t in range(num_types) if t != drop_type]
    else:
        starts = [_log_odds(clicks.sum(), rows.sum(), rate)]
    shares = (rows[:num_types] + 1) / (rows[:num_types].sum() + max(num_types, 1))
    return {
        "group_sizes": schema.group_sizes,
        "num_types": num_types,
        "drop_type": drop_type,
        "head_bias": tuple(starts),
        "type_bias": tuple(float(x) for x in np.log(shares)),
    }


def _log_odds(clicks, rows, rate):
    """Of the smoothed rate (clicks + rate) / (rows + 1)."""
    p = (clicks + rate) / (rows + 1)
    return math.log(p / (1 - p))
