"""Hillstrom's e-mail test: who visits the shop after an e-mail? Types drawn by lot: nothing to gain.

python -m emofm_jax.prepare --config=experiments/hillstrom.py --config.prepare.source=DIR
python -m emofm_jax.train --config=experiments/hillstrom.py --workdir=runs/hillstrom
"""

from pathlib import Path

from emofm_jax import config, points

kuairand = points.load(Path(__file__).with_name("kuairand.py"))


def get_config(arg: str = "emofmv2"):
    c = kuairand.get_config(arg)
    c.name = "hillstrom"
    c.prepare = config.default().prepare
    c.prepare.source = "data/raw/hillstrom"
    c.prepare.ftype = "segment"
    c.prepare.types = ("Mens E-Mail", "Womens E-Mail", "No E-Mail")
    c.prepare.groups = (
        ("past", ("recency", "history_segment", "history", "mens", "womens")),
        ("customer", ("zip_code", "newbie", "channel")),
    )
    c.prepare.slots = {"history": {"kind": "numeric", "transform": "bucket"}}
    c.data.dir = "data/hillstrom"
    return c
