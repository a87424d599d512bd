"""The list of models, and what a model must have.

A model is a linen module in a file of its own, from embeddings to the logit of one predictor:

    module(e f32[B, S, D + columns], weight f32[B] | None, *, train: bool) -> losses.Outputs
    rng stream `dropout`; collection `batch_stats`; weight None is 1 in every row

It takes what it needs as fields, by name:

    embedding_dim                             D
    head_bias                                 logits at the start; of a baseline one number
    hidden, stage1, stage2, init_scale, ..    options that models have in common, below
    style                                     activation, norm, dropout, dtype (nn/layers.py)
    group_sizes, num_predictors               of the schema
    x: int = option(3, "meaning", low=1)      an option of its own: `config.model.NAME.x`
                                              (choices, needs, ..: options.py)

and may have

    shared_columns, own_columns   columns of the table that it reads behind D (models/typed.py)
    weights_start_at_zero         True: of own_columns, which are first-order weights
    am_reads                      what `model.am_reads=auto` means for it
    only_table                    True: all its weights are in the table
    switches_off                  {"x=0": options in common that are not read then}
    check(own)                    static: raises UserError for own options that do not fit
    derive(schema, own)           static: fields that follow from both

and one line in `MODELS`. Checks, `--help`, docs/options.md, sweeps and the typed networks then know
it.
"""

from emofm_jax.models import (
    dcnv2,
    deepfm,
    destine,
    dnn,
    edcn,
    emofm,
    emofmv2,
    final,
    finalmlp,
    fm,
    members,
)
from emofm_jax.nn.layers import Style
from emofm_jax.nn.mixers import Mixing
from emofm_jax.options import Option, options_of, widths

EMOFM = {
    "wm": emofm.WM,
    "hm": emofm.HM,
    "hmm": emofm.HMM,
    "emofmv2": emofmv2.EMOFMv2,
}  # typed by nature; the baselines are if `type_aware`
MODELS = EMOFM | {
    "lr": fm.LR,
    "fm": fm.FM,
    "deepfm": deepfm.DeepFM,
    "dnn": dnn.DNN,
    "dcnv2": dcnv2.DCNv2,
    "edcn": edcn.EDCN,
    "final": final.FINAL,
    "finalmlp": finalmlp.FinalMLP,
    "destine": destine.DESTINE,
}

_HEAD_BIAS = "logit at the start: log-odds of the train split's click rate, of each type; or 0"
_MEMBERS_SHARE = (
    "what members have in common: nothing; the table; the table and all kernels but for factors"
)
_MEMBERS_ROWS = "rows of a batch that a member learns: all; or every k-th, as fast as one network"
COMMON = {
    "name": Option("emofmv2", "which model", tuple(MODELS)),
    "embedding_dim": Option(16, "D, width of a row of the embedding table", low=1),
    "init_scale": Option(0.01, "standard deviation of the embedding table at the start", low=0),
    "head_bias": Option("rate", _HEAD_BIAS, ("rate", "zero")),
    "hidden": widths((512, 256, 128), "of an MLP over all slots", empty=False),
    "stage1": widths((256, 128), "of the tower of each group", empty=False),
    "stage2": widths((256, 128), "of the tower of each type", empty=False),
    "am_hidden": widths((128, 64), "of the auxiliary model"),
    **options_of(Style),
    "type_predictors": Option(
        "per_type", "predictors of wm, hm, hmm: one a type, or one", ("per_type", "shared")
    ),
    "use_ftype": Option(True, "False removes every use of the interaction type"),
    "type_aware": Option(False, "a baseline gets a copy a type and the auxiliary model, as EMOFM"),
    "drop_type": Option("", "name of a type that gets no predictor"),
    "am_weight": Option(1.0, "weight of the auxiliary model's loss", low=0),
    "am_joint": Option(False, "True: that loss moves the embeddings too"),
    "members": Option(1, "k networks in one program, each with a loss of its own, averaged", low=1),
    "members_share": Option("none", _MEMBERS_SHARE, members.SHARES),
    "members_rows": Option("all", _MEMBERS_ROWS, members.ROWS),
    "am_reads": Option(
        "auto",
        "what the auxiliary model reads: the network's embeddings, columns of its own, both; auto: "
        "emofmv2 own, others embeddings",
        ("auto", "embeddings", "own", "both"),
    ),
    "am_columns": Option(8, "columns of the table of the auxiliary model's own", low=1),
    **{f"mixer.{name}": option for name, option in options_of(Mixing).items()},
}


def options() -> dict[str, Option]:
    """{path within `config.model`: option}: those in common, then each model's own."""
    own = {name: options_of(model) for name, model in MODELS.items()}
    return COMMON | {f"{name}.{f}": option for name in own for f, option in own[name].items()}
