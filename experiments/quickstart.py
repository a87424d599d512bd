"""Quickstart: EMOFM on CTI-like synthetic data whose truth is known.

    python -m emofm_jax.train --config=experiments/quickstart.py --workdir=runs/quickstart
    python -m emofm_jax.train --config=experiments/quickstart.py:wm --workdir=runs/wm      # wm, hm, hmm, dnn

Claim: typed predictors and mixers come close to what is attainable when the type is hidden at test time.
"""

from emofm_jax import config


def get_config(arg: str = "hmm"):
    c = config.default()
    c.name = "quickstart"
    c.data.dir = "data/quickstart"
    c.data.batch_size = 512

    c.prepare.format = "synthetic"

    c.model.name = "wm" if arg == "dnn" else arg
    c.model.use_ftype = arg != "dnn"
    c.model.stage1 = (256,)

    c.optim.embedding.learning_rate = 0.02
    c.optim.embedding.schedule = "cosine"
    c.optim.network.learning_rate = 1e-3 if arg == "dnn" else 2e-3
    c.optim.network.schedule = "cosine"
    return c
