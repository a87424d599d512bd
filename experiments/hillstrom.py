"""Hillstrom's e-mail test: who visits the shop after an e-mail? Types drawn by lot: nothing to gain.

    python -m emofm_jax.prepare --config=experiments/hillstrom.py --config.prepare.source=DIR
    python -m emofm_jax.train --config=experiments/hillstrom.py --workdir=runs/hillstrom
    python -m emofm_jax.train --config=experiments/hillstrom.py --workdir=runs/untyped --config.model.use_ftype=False

The argument is any model's name. DIR holds train.csv.gz, valid.csv.gz and test.csv.gz (44,878, 6,331
and 12,791 customers). The recipe is `config.recommended()`.

Claim: where nothing can tell the type, a typed model loses nothing against its untyped twin. It
cannot be told from it. Test AUC / logloss, mean of seeds 0 to 4, November 2026:

    emofmv2             0.6134 / 0.4090
    emofmv2, untyped    0.6144 / 0.4100      typed minus untyped: AUC -0.0010 (-0.0047 to 0.0027),
    lr                  0.6166 / 0.4077      logloss -0.0010 (-0.0043 to 0.0023)
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
