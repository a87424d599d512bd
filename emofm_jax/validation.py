"""What the fields of a config may be: choices, ranges, elements of tuples, and what must go together."""

import math

from ml_collections import ConfigDict

from emofm_jax.errors import UserError

_CHOICES = {
    "compute_dtype": ("float32", "bfloat16"),
    "prepare.format": ("tabular", "libsvm", "cti", "synthetic"),
    "prepare.split": ("files", "share", "day"),
    "model.activation": ("relu", "gelu", "silu", "tanh", "none"),
    "model.norm": ("none", "layer", "batch"),
    "model.head_bias": ("rate", "zero"),
    "model.mixer.norm": ("none", "layer"),
    "model.type_predictors": ("per_type", "shared"),
    "optim.embedding.updates": ("lazy", "dense"),
    "optim.clip": ("none", "group", "global"),
    "train.monitor": ("", "auc", "logloss", "auc - logloss"),
    **{f"optim.{k}.schedule": ("constant", "cosine", "plateau") for k in ("embedding", "network")},
}
# Fields and their smallest and largest value; None = unbounded.
_RANGES = {
    "seed": (0, 2**32 - 1),
    "data.batch_size": (1, None),
    "data.eval_batch_size": (1, None),
    "data.shuffle_rows": (1, None),
    "data.prefetch": (1, None),
    "model.embedding_dim": (1, None),
    "model.init_scale": (0, None),
    "model.dropout": (0, 0.99),
    "model.mixer.d_att": (1, None),
    "model.mixer.num_heads": (1, None),
    "model.am_weight": (0, None),
    "model.dcnv2.num_layers": (1, None),
    "model.dcnv2.low_rank": (0, None),
    "model.dcnv2.num_experts": (1, None),
    "model.edcn.num_layers": (1, None),
    "model.edcn.temperature": (1e-6, None),
    "model.finalmlp.num_heads": (1, None),
    "model.destine.num_layers": (1, None),
    "model.destine.d_att": (1, None),
    "model.destine.num_heads": (1, None),
    "model.destine.attention_dropout": (0, 0.99),
    "prepare.max_rejected": (0, None),
    "prepare.day_length": (0, None),
    "prepare.seed": (0, 2**32 - 1),
    "train.epochs": (1, None),
    "train.max_steps": (0, None),
    "train.eval_every_steps": (0, None),
    "train.patience": (0, None),
    "train.min_delta": (0, None),
    "train.plateau_factor": (0, 1),
    "train.plateau_min": (0, 1),
    "train.log_every_steps": (1, None),
    "train.save_every_steps": (1, None),
    "optim.clip_norm": (1e-12, None),
    **{
        f"optim.{k}.{f}": bounds
        for k in ("embedding", "network")
        for f, bounds in {
            "learning_rate": (0, None),
            "warmup_steps": (0, None),
            "l2": (0, None),
            "weight_decay": (0, None),
            "beta1": (0, 1 - 1e-9),
            "beta2": (0, 1 - 1e-12),
            "eps": (1e-30, None),
            "momentum": (0, 1),
            "initial_accumulator": (0, None),
        }.items()
    },
}
# Widths of layers; those that may be empty are marked.
_WIDTHS = {
    **dict.fromkeys(
        ("hidden", "stage1", "stage2", "final.block1", "finalmlp.mlp1", "finalmlp.mlp2"), False
    ),
    **dict.fromkeys(("am_hidden", "final.block2", "finalmlp.gate_hidden"), True),
}
# Tuples, and what their elements must be.
_ELEMENTS = {
    **{f"model.{f}": (int, "a whole number") for f in (*_WIDTHS, "mixer.stages")},
    **{f"model.finalmlp.{f}": (str, "text, between quotes") for f in ("context1", "context2")},
    **{
        f"prepare.{f}": (str, "text, between quotes")
        for f in ("columns", "null_values", "types", "ignore")
    },
    "prepare.shares": (int | float, "a number"),
    "prepare.synthetic.rows": (int, "a whole number"),
    "prepare.synthetic.group_slots": (int, "a whole number"),
}


def validate(config: ConfigDict) -> None:
    """Checks what can be checked without data; names of models, mixers and optimizers where they are made.

    Raises:
      UserError: naming the field, its value and what it may be.
    """
    for path, known in _CHOICES.items():
        value = get(config, path)
        if value not in known:
            raise UserError(
                f"config.{path}: {value!r} is not known; choose one of {', '.join(map(repr, known))}"
            )
    for path, (low, high) in _RANGES.items():
        value = get(config, path)
        if (
            not math.isfinite(value)
            or (low is not None and value < low)
            or (high is not None and value > high)
        ):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise UserError(f"config.{path}: {value} is out of range; it must be {bounds}")
    for path, (kind, said) in _ELEMENTS.items():
        for element in get(config, path):
            if not isinstance(element, kind):
                raise UserError(f"config.{path}: its element {element!r} must be {said}")
    model, mixer = config.model, config.model.mixer
    for field, may_be_empty in _WIDTHS.items():
        widths = tuple(get(model, field))
        if any(width < 1 for width in widths) or not (widths or may_be_empty):
            raise UserError(f"config.model.{field}: {widths} must be positive widths")
    if not set(mixer.stages) <= {1, 2}:
        raise UserError(f"config.model.mixer.stages: {tuple(mixer.stages)} may hold 1 and 2 only")
    for key in ("embedding", "network"):
        section = config.optim[key]
        if section.weight_decay and section.name != "adamw":
            raise UserError(
                f"config.optim.{key}.weight_decay: {section.weight_decay} has no effect with {section.name}; "
                "choose name=adamw, or l2"
            )
    shares = config.prepare.shares
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(
            f"config.prepare.shares: {tuple(shares)} must be three shares that add up to 1"
        )
    if config.train.patience and not config.train.monitor:
        raise UserError(
            "config.train.patience: early stopping needs config.train.monitor; choose auc or logloss"
        )


def get(config: ConfigDict, path: str):
    """The value at a dotted path."""
    for part in path.split("."):
        config = config[part]
    return config
