"""Quickstart: EMOFM on CTI-like synthetic data whose truth is known.

    python -m emofm_jax.train --config=experiments/quickstart.py --workdir=runs/quickstart
    python -m emofm_jax.train --config=experiments/quickstart.py:wm --workdir=runs/wm
    python -m emofm_jax.train --config=experiments/quickstart.py:dcnv2_typed --workdir=runs/typed

The argument is any model's name. With `_typed` a baseline gets a copy per type.

Claim: typed predictors come close to what is attainable when the type is hidden at test time, and
mixers make up for the split into groups.

Expected on the test split, share of the attainable AUC lift, mean +/- sd of seeds 0 to 4 (emofmv2),
or 0, 1, 2:

    emofmv2          0.958 +/- 0.001
    hmm              0.899 +/- 0.008
    wm               0.897 +/- 0.005
    hm               0.879 +/- 0.003
    dnn (no types)   0.873 +/- 0.004

emofmv2 takes 1.1 minutes on two cores (AMD EPYC), and hmm 1.5 (on older ones), November 2026.
emofmv2 follows `config.recommended()`, eight epochs or so; the others train one epoch, as the paper
does. Rates and widths were tuned on the validation split, dnn's rates apart.
docs/results/baselines.md has every model, typed and untyped.
"""

from emofm_jax import config

TYPED = ("wm", "hm", "hmm")  # by nature


def get_config(arg: str = "emofmv2"):
    name, typed = arg.removesuffix("_typed"), arg.endswith("_typed")
    c = config.recommended() if name == "emofmv2" else _one_epoch(name, typed)
    c.name = "quickstart"
    c.data.dir = "data/quickstart"
    c.prepare.format = "synthetic"
    return c


def _one_epoch(name, typed):
    """The paper's models and the baselines, as the paper trains: one epoch."""
    c = config.default()
    c.data.batch_size = 512

    c.model.name = name
    c.model.type_aware = typed
    # LR reads no embeddings, so nothing else would train those of the auxiliary model.
    c.model.am_joint = name == "lr" and typed
    c.model.stage1 = (256,)
    c.model.final.block1 = c.model.final.block2 = (512, 256, 128)
    c.model.finalmlp.mlp1 = c.model.finalmlp.mlp2 = (512, 256, 128)

    # Without it EDCN's products of small embeddings never grow.
    c.model.norm = "layer" if name == "edcn" else "none"

    # FM's sum over all pairs of slots and DESTINE's attention ask for smaller steps. All rates were
    # tuned on validation.
    rates = {"fm": 0.005, "deepfm": 0.002, "destine": 0.005}
    c.optim.embedding.learning_rate = rates.get(name, 0.02)
    c.optim.embedding.schedule = "cosine"
    c.optim.network.learning_rate = 2e-3 if typed or name in TYPED else 1e-3
    c.optim.network.schedule = "cosine"
    return c
