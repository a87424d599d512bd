"""From a schema and options to a model, its parameters, and its predictions.

module = model_lib.make_model(schema, options)              # options: config.model as a plain dict
variables = model_lib.init(module, key, schema)
model_lib.predict(module, variables, e)["p"]                # f32[B], the type unknown
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax import models
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.models import EMOFM, MODELS
from emofm_jax.models.members import Members
from emofm_jax.models.members import columns as columns
from emofm_jax.models.members import first_order as first_order
from emofm_jax.models.members import starts_at_zero as starts_at_zero
from emofm_jax.models.members import table_width as table_width
from emofm_jax.models.members import with_axis as with_axis
from emofm_jax.models.typed import Copies, Typed
from emofm_jax.nn import averaging, layers, losses, mixers, typewise
from emofm_jax.options import flatten, options_of, without_effect

# Options that every model reads; `head_bias` is a field of each.
_ALWAYS = {"name", "init_scale", "use_ftype", "type_aware", "am_weight", "drop_type"}
_ALWAYS |= {"members", "members_share", "members_rows"}
INTERCEPT = "intercept"  # of the variables, beside batch statistics: f32[], see `predict`
_OF_AM = ("am_hidden", "am_weight", "am_joint", "am_reads", "am_columns")


def make_model(schema: Schema, options: Mapping, *, compute_dtype: str = "float32") -> nn.Module:
    """Makes the model that `options` describe, for rows of `schema`.

    On untyped data, or with `use_ftype=False`, a model has one predictor and no auxiliary model; so
    has a baseline unless `type_aware`, which makes it one copy a type (docs/model.md, section 8).

    Args:
      schema: of the shards: slots, groups, types and the train split's counts per type.
      options: `config.model` as a dict, whole.
      compute_dtype: of the network's products, float32 or bfloat16 (parameters stay float32).

    Returns:
      A linen module: `module(e f32[B, S, table_width(module)], weight f32[B] | None, *, train) ->
        losses.Outputs`.

    Raises:
      UserError: an unknown name, an option that does not fit (`check`); a `drop_type` that is no
        type of the schema or the only one; a context that is no slot of the schema; DESTINE on one
        slot.
    """
    check(options)
    num_types = _num_types(schema, options)
    values = dict(options) | dict(options.get(options["name"], {}))
    values["style"] = _part(layers.Style, options, dtype=jnp.dtype(compute_dtype))
    values["mixer"] = _part(mixers.Mixing, options["mixer"])
    values |= _derive(schema, options, num_types)
    network = _construct(MODELS[options["name"]], values)

    if num_types and options["name"] not in EMOFM:
        network = _construct(Copies, values | {"network": network})
    if num_types:
        network = _construct(Typed, values | {"network": network})
    if options["members"] == 1:
        return network
    return Members(network, options["members"], options["members_share"], options["members_rows"])


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
            f"config.model.drop_type: {name!r} has no meaning with use_ftype=False, which knows no "
            "types; drop one"
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
    with jax.enable_x64(False):  # whatever the program around has switched on
        return jax.jit(lambda key: module.init(key, e))(key)


@jax.enable_x64(False)  # weights are f32, and so are scores
def predict(
    module: nn.Module, variables: Mapping, e: jax.Array, calibrate: Callable | None = None
) -> dict[str, jax.Array]:
    """The forward that evaluation and scorer share: no dropout, running batch statistics.

    Args:
      module: of `make_model`.
      variables: of `init`, or trained: `{"params": ..., "batch_stats": ...}`. `INTERCEPT` among the
        batch statistics is added to the logits of all predictors (training/intercept.py).
      e: f32[B, S, table_width(module)].
      calibrate: maps a logit f32[B] to calibrated `p` and `logit`; None = as they are.

    Returns:
      `p` f32[B], the probability of a click with the type unknown, and `logit` f32[B], its
      log-odds. Typed models also `p_type` f32[B, T], the AM's distribution over types (a dropped
      type: 0), and `p_given_type` f32[B, T] (a dropped type: that of the mixture). With members
      these are averages (nn/averaging.py), and `p_std` f32[B] is the standard deviation of the
      members' p. A calibration is of the average; each member's p goes through it for `p_std`.
    """
    stats = dict(variables.get("batch_stats", {}))
    intercept = stats.pop(INTERCEPT, None)
    outputs = cast(losses.Outputs, module.apply({**variables, "batch_stats": stats}, e))
    if intercept is not None:
        outputs = outputs._replace(logits=outputs.logits + intercept)

    drop_type = getattr(module, "drop_type", -1)
    found = [_scores(of_one, drop_type) for of_one in losses.members(outputs)]
    scores = averaging.of_members(found)
    if calibrate is None:
        return scores
    if len(found) > 1:
        scores["p_std"] = averaging.spread([calibrate(member["logit"]) for member in found])
    return scores | calibrate(scores["logit"])


def _scores(outputs: losses.Outputs, drop_type: int) -> dict[str, jax.Array]:
    """`predict` of one network."""
    if outputs.type_logits is None:
        return {"p": jax.nn.sigmoid(outputs.logits), "logit": outputs.logits}
    mixture = typewise.mixture(outputs.logits, outputs.type_logits, drop_type)
    return {
        "p": jnp.exp(mixture.log_p),
        "logit": mixture.logit,
        "p_type": typewise.type_probs(outputs.type_logits, drop_type),
        "p_given_type": jax.nn.sigmoid(outputs.logits),
    }


def check(options: Mapping) -> None:
    """Checks what needs no schema, so that a program can fail before it touches data.

    Raises:
      UserError: a name that is not known, an option of the model that does not fit.
    """
    name, values = options["name"], flatten(options)
    for path, option in models.options().items():
        option.check(f"config.model.{path}", values[path])

    model = MODELS[name]
    if "mixer" in _fields(model):
        _part(mixers.Mixing, options["mixer"]).check()
    if hasattr(model, "check"):
        model.check(options[name])
    share = options["members_share"]
    if options["members"] > 1 and share != "none" and getattr(model, "only_table", False):
        raise UserError(
            f"config.model.members_share: {share!r} makes all members of {name} alike, whose "
            "weights are all in the table; set members_share='none'"
        )
    frozen = _reads(options) == "embeddings" and not options["am_joint"]
    if name == "lr" and _is_typed(options) and frozen:
        raise UserError(
            "config.model.am_joint: lr reads no embeddings, so only the auxiliary model can train "
            "those that it needs for type_aware=True; set am_joint=True, or am_reads=own"
        )


def unread(options: Mapping) -> dict[str, str]:
    """{field of `config.model`, as "mixer.kind": what it has no effect on, as the others are}."""
    name, typed, values = options["name"], _is_typed(options), flatten(options)
    model = MODELS[name]
    read = _paths_read(model, name)
    own = {path: option for path, option in models.options().items() if path in read}
    found = {path: name for path in models.options() if path not in read}
    found |= without_effect(own, values)
    if options["members"] == 1:
        found |= dict.fromkeys(("members_share", "members_rows"), "members=1")
    for condition, paths in getattr(model, "switches_off", {}).items():
        field, _, value = condition.partition("=")
        if str(values[f"{name}.{field}"]) == value:
            found |= dict.fromkeys(paths, f"{name}.{condition}")

    if "mixer.kind" in read:
        found |= _unread_of_stages(options)
    if typed:
        for path in (*_OF_AM, "embedding_dim", "activation", "dropout"):
            found.pop(path, None)  # the AM's, or of the table that it reads
        reads = _reads(options)
        if reads == "embeddings":
            found["am_columns"] = "am_reads=embeddings"
        elif reads == "own":
            found["am_joint"] = "am_reads=own"
    else:
        why = name if options["use_ftype"] else "use_ftype=False"
        found |= dict.fromkeys(("type_predictors", *_OF_AM), why)
    return found | _unread_of_types(options)


def am_reads(options: Mapping) -> str | None:
    """What the auxiliary model reads, of `am_reads`; None of a model without one."""
    return _reads(options) if _is_typed(options) else None


def readers(path: str) -> str:
    """Models that read an option which models have in common, in words; empty if all do."""
    if path in (*_OF_AM, "drop_type", "use_ftype"):
        return ", ".join(EMOFM) + ", a baseline with type_aware"
    if path == "type_predictors":
        return ", ".join(name for name in EMOFM if path in _fields(MODELS[name]))
    if path == "type_aware":
        return "all but " + ", ".join(EMOFM)

    others = [name for name, model in MODELS.items() if path not in _paths_read(model, name)]
    if len(others) > len(MODELS) / 2:
        return ", ".join(name for name in MODELS if name not in others)
    return "all but " + ", ".join(others) if others else ""


def _paths_read(model, name):
    """Options that a model reads, whatever the others say."""
    fields = _fields(model)
    read = _ALWAYS | (fields & models.COMMON.keys()) | {f"{name}.{f}" for f in options_of(model)}
    if "style" in fields:
        read |= options_of(layers.Style).keys()
    if "mixer" in fields:
        read |= {f"mixer.{field}" for field in options_of(mixers.Mixing)}
    return read


def _unread_of_types(options):
    name = options["name"]
    if name in EMOFM:
        return {"type_aware": f"{name}, which is type-aware by nature"}
    if not options["use_ftype"]:
        return {"type_aware": "use_ftype=False"}
    return {} if options["type_aware"] else {"use_ftype": f"{name} without type_aware"}


def _unread_of_stages(options):
    stages = options["mixer"]["stages"]
    one_type = not options["use_ftype"] or options["type_predictors"] == "shared"
    if options["mixer"]["kind"] == "none" or (stages and not (one_type and set(stages) == {2})):
        return {}
    why = f"mixer.stages={tuple(stages)}" + ", where one predictor is alone" * bool(stages)
    return {f"mixer.{field}": why for field in options["mixer"] if field != "stages"}


def _part(owner, options, **more):
    """The dataclass of options (`Style`, `Mixing`) that a section describes."""
    return owner(**_tuples({name: options[name] for name in options_of(owner)}), **more)


def _fields(module):
    return {field.name for field in dataclasses.fields(module)} - {"name", "parent"}


def _construct(module, values):
    """The linen module with those of the values that are its fields."""
    fields = _fields(module)
    return module(**_tuples({k: v for k, v in values.items() if k in fields}))


def _tuples(values):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _is_typed(options):
    return options["use_ftype"] and (options["name"] in EMOFM or options["type_aware"])


def _num_types(schema, options):
    typed = _is_typed(options)
    if typed and options["name"] not in EMOFM and not schema.num_types:
        raise UserError(
            f"config.model.type_aware: {schema.name!r} has no interaction types; leave it False"
        )
    return schema.num_types if typed else 0


def _derive(schema: Schema, options: Mapping, num_types: int) -> dict:
    """Fields of a model that follow from the schema."""
    drop_type = dropped_type(schema, options)
    rows = np.array(schema.rows_per_type or [0] * (schema.num_types + 1), np.float64)
    clicks = np.array(schema.clicks_per_type or [0] * (schema.num_types + 1), np.float64)
    rows = clicks + (rows - clicks) / schema.keep_rate  # as many as there were
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
    reads = _reads(options)
    derived = {
        "am_reads": reads,
        "am_columns": 0 if reads == "embeddings" else options["am_columns"],
        "group_sizes": schema.group_sizes,
        "num_predictors": num_types - (drop_type >= 0),
        "drop_type": drop_type,
        "head_bias": tuple(starts),
        "type_bias": tuple(float(x) for x in np.log(shares)),
    }
    model = MODELS[options["name"]]
    if hasattr(model, "derive"):
        derived |= model.derive(schema, options[options["name"]])
    return derived


def _reads(options):
    """What the auxiliary model reads; unless it is said, the model knows."""
    said = options["am_reads"]
    return getattr(MODELS[options["name"]], "am_reads", "embeddings") if said == "auto" else said


def _log_odds(clicks, rows, rate):
    """Of the smoothed rate (clicks + rate) / (rows + 1)."""
    p = (clicks + rate) / (rows + 1)
    return math.log(p / (1 - p))
