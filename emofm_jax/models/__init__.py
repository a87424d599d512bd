"""From a schema and options to a model, its parameters, and its predictions.

    module = models.make_model(schema, options)              # options: config.model as a plain dict
    variables = models.init(module, key, schema)
    models.predict(module, variables, e)["p"]                # f32[B], the type unknown

To add a model: a linen module from e to `losses.Outputs` of one predictor, whose fields are named as those of
`config.model`, of its own section `config.model.NAME`, or of `_derive` below; and one line in `MODELS`. Columns that
it reads beside D it declares as `shared_columns` and `own_columns` (models/ensemble.py).
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
from emofm_jax.models import dcnv2, destine, edcn
from emofm_jax.models.dcnv2 import DCNv2
from emofm_jax.models.deepfm import DeepFM
from emofm_jax.models.destine import DESTINE
from emofm_jax.models.dnn import DNN
from emofm_jax.models.edcn import EDCN
from emofm_jax.models.emofm import HM, HMM, WM
from emofm_jax.models.ensemble import Copies, Typed, table_width, with_axis
from emofm_jax.models.final import FINAL
from emofm_jax.models.finalmlp import FinalMLP
from emofm_jax.models.fm import FM, LR
from emofm_jax.nn import layers, mixers, typewise

EMOFM = {"wm": WM, "hm": HM, "hmm": HMM}  # typed by nature; the baselines are if `type_aware`
__all__ = ["make_model", "init", "predict", "check", "unread", "dropped_type", "table_width", "with_axis", "MODELS"]
MODELS = EMOFM | {
    "lr": LR,
    "fm": FM,
    "deepfm": DeepFM,
    "dnn": DNN,
    "dcnv2": DCNv2,
    "edcn": EDCN,
    "final": FINAL,
    "finalmlp": FinalMLP,
    "destine": DESTINE,
}


def make_model(schema: Schema, options: Mapping, *, compute_dtype: str = "float32") -> nn.Module:
    """Makes the model that `options` describe, for rows of `schema`.

    On untyped data, or with `use_ftype=False`, a model has one predictor and no auxiliary model; so has a baseline
    unless `type_aware`, which makes it one copy a type (docs/model.md, choice 9).

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
    values = {key: value for key, value in options.items() if key not in _SECTIONS}
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
        raise UserError(f"config.model.drop_type: {name!r} is no type of {schema.name!r}; its types: {known}")
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
      UserError: a name that is not known, heads that do not divide a width, FINAL's odd width with residual=concat.
    """
    sections = {name: options[name] for name in _SECTIONS}
    for field, value, known in (
        ("name", options["name"], MODELS),
        ("mixer.kind", sections["mixer"]["kind"], mixers.MIXERS),
        ("activation", options["activation"], layers.ACTIVATIONS),
        ("dcnv2.structure", sections["dcnv2"]["structure"], dcnv2.STRUCTURES),
        ("edcn.bridge", sections["edcn"]["bridge"], edcn.BRIDGES),
        ("destine.residual", sections["destine"]["residual"], destine.RESIDUALS),
        ("final.residual", sections["final"]["residual"], ("concat", "sum")),
    ):
        if value not in known:
            raise UserError(f"config.model.{field}: {value!r} is not known; choose one of {', '.join(known)}")
    mixer, finalmlp = sections["mixer"], sections["finalmlp"]
    attends = "num_heads" in mixers.FIELDS[mixer["kind"]]
    for field, heads, width, of in (
        ("mixer.num_heads", mixer["num_heads"] if attends else 1, mixer["d_att"], "d_att"),
        ("destine.num_heads", sections["destine"]["num_heads"], sections["destine"]["d_att"], "d_att"),
        ("finalmlp.num_heads", finalmlp["num_heads"], finalmlp["mlp1"][-1], "the last width of mlp1"),
        ("finalmlp.num_heads", finalmlp["num_heads"], finalmlp["mlp2"][-1], "the last width of mlp2"),
    ):
        if width % heads:
            raise UserError(f"config.model.{field}: {heads} heads do not divide {of} = {width}; choose a divisor")
    for field in ("block1", "block2"):
        odd = [width for width in sections["final"][field] if width % 2]
        if odd and sections["final"]["residual"] == "concat":
            raise UserError(
                f"config.model.final.{field}: residual=concat halves every width, and {odd[0]} is odd; choose even ones"
            )


def unread(options: Mapping) -> dict[str, str]:
    """{field of `config.model`, as "mixer.kind": what it has no effect on, as the others are}."""
    name, typed = options["name"], _is_typed(options)
    fields = {field.name for field in dataclasses.fields(MODELS[name])}
    found = {}
    for key in options.keys() - {"name", "init_scale", "use_ftype", "type_aware", "am_weight", "drop_type"}:
        if key not in _SECTIONS:
            found |= {key: name} if key not in fields else {}
        elif key == "mixer":
            found |= {f"mixer.{k}": name for k in options[key] if f"mixer_{k}" not in fields}
        elif key != name:
            found |= {f"{key}.{k}": name for k in options[key]}
    if "mixer_kind" in fields:
        kind = options["mixer"]["kind"]
        idle = (
            {"d_att", "num_heads"} - set(mixers.FIELDS[kind]) if kind != "none" else options["mixer"].keys() - {"kind"}
        )
        found |= {f"mixer.{k}": f"mixer.kind={kind}" for k in idle}
    if typed:
        for key in ("am_hidden", "am_joint", "embedding_dim", "activation", "dropout"):
            found.pop(key, None)  # the AM's, or of the table that it reads
    else:
        why = name if options["use_ftype"] else "use_ftype=False"
        found |= dict.fromkeys(("type_predictors", "am_hidden", "am_weight", "am_joint"), why)
    if name in EMOFM:
        found["type_aware"] = f"{name}, which is type-aware by nature"
    elif not options["type_aware"]:
        found["use_ftype"] = f"{name} without type_aware"
    return found | _unread_of_its_own(options)


# Sections of `config.model`.
_SECTIONS = ("mixer", "dcnv2", "edcn", "final", "finalmlp", "destine")


def _unread_of_its_own(options):
    """Options of a model's own section that others of it switch off."""
    name, own = options["name"], options.get(options["name"], {})
    found = {}
    if name == "dcnv2":
        if not own["low_rank"]:
            found["dcnv2.num_experts"] = "dcnv2.low_rank=0"
        if own["structure"] == "cross":
            found |= dict.fromkeys(("hidden", "activation", "norm", "dropout"), "dcnv2.structure=cross")
    if name == "destine" and not own["deep"]:
        found |= dict.fromkeys(("hidden", "activation", "norm", "dropout"), "destine.deep=False")
    if name == "finalmlp" and not own["selection"]:
        found |= dict.fromkeys((f"finalmlp.{k}" for k in ("gate_hidden", "context1", "context2")), "selection=False")
    return found


def _construct(module, values):
    """The linen module with those of the values that are its fields."""
    fields = {field.name for field in dataclasses.fields(module)} - {"name", "parent"}
    return module(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in fields})


def _is_typed(options):
    return options["use_ftype"] and (options["name"] in EMOFM or options["type_aware"])


def _num_types(schema, options):
    return schema.num_types if _is_typed(options) else 0


def _derive(schema: Schema, options: Mapping, num_types: int) -> dict:
    """Fields of a model that follow from the schema."""
    drop_type = dropped_type(schema, options)
    rows = np.array(schema.rows_per_type or [0] * (schema.num_types + 1), np.float64)
    clicks = np.array(schema.clicks_per_type or [0] * (schema.num_types + 1), np.float64)
    rate = (clicks.sum() + 0.5) / (rows.sum() + 1)  # half a click and half a non-click: never 0 or 1
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
    if options["name"] == "finalmlp":
        derived |= {key: _slot_numbers(schema, key, options["finalmlp"][key]) for key in ("context1", "context2")}
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
    return tuple(known.index(name) for name in names)


def _log_odds(clicks, rows, rate):
    """Of the smoothed rate (clicks + rate) / (rows + 1)."""
    p = (clicks + rate) / (rows + 1)
    return math.log(p / (1 - p))
