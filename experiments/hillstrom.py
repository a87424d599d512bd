"""Hillstrom's e-mail test: who visits the shop after an e-mail? Types drawn by lot: nothing to gain.

    python -m emofm_jax.prepare --config=experiments/hillstrom.py --config.prepare.source=DIR
    python -m emofm_jax.train --config=experiments/hillstrom.py --workdir=runs/hillstrom
    python -m emofm_jax.train --config=experiments/hillstrom.py --workdir=runs/untyped --config.model.use_ftype=False

The argument is any model's name. DIR holds train.csv.gz, valid.csv.gz and test.csv.gz (44,878, 6,331
and 12,791 customers). The recipe is `config.recommended()`.

Claim: where nothing can tell the type, a typed model loses nothing against its untyped twin. It
holds. Test AUC / logloss, mean of seeds 0 to 4, November 2026:

    emofmv2             0.6153 / 0.4095
    emofmv2, untyped    0.6147 / 0.4103      typed minus untyped: AUC 0.0006 (-0.0016 to 0.0028),
    lr                  0.6166 / 0.4077      logloss -0.0009 (-0.0030 to 0.0012)
"""

from emofm_jax import config


def get_config(arg: str = "emofmv2"):
    c = config.recommended()
    c.name = "hillstrom"
    c.prepare.source = "data/raw/hillstrom"
    c.prepare.ftype = "segment"
    c.prepare.types = ("Mens E-Mail", "Womens E-Mail", "No E-Mail")
    c.prepare.groups = (
        ("past", ("recency", "history_segment", "history", "mens", "womens")),
        ("customer", ("zip_code", "newbie", "channel")),
    )
    c.prepare.slots = {"history": {"kind": "numeric", "transform": "bucket"}}
    c.data.dir = "data/hillstrom"

    c.model.name = arg
    if arg == "lr":  # its weights are logits, whose L2 is of another size
        c.optim.embedding.l2_rows = 2.8
    return c
