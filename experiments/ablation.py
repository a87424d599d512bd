"""Each part of our model, and of its recipe, left out in turn, on five data sets.

    python -m emofm_jax.prepare --config=experiments/kuairand.py --config.prepare.source=DIR
    python -m emofm_jax.sweep --config=experiments/ablation.py:kuairand --workdir=runs/ablation_kuairand --nocheckpoints
    python -m emofm_jax.sweep --config=experiments/ablation.py:quickstart --workdir=runs/ablation_quickstart --nocheckpoints

The argument is an experiment of this directory: kuairand, hillstrom, quickstart, cti or frappe,
whose data and groups are taken; the recipe is `config.recommended()`.

Question: does each part earn its place?
"""

from pathlib import Path

from emofm_jax import config, points
from emofm_jax.errors import UserError

DATA = ("kuairand", "hillstrom", "quickstart", "cti", "frappe")
reference, seeds = "whole", (0, 1, 2)
TYPES = {
    "untyped": {"model.use_ftype": False},
    "not_pooled": {"model.emofmv2.pooled": False},
    "am_reads_embeddings": {"model.am_reads": "embeddings"},
}
PARTS = {
    "no_towers": {"model.emofmv2.towers": False},
    "no_cross": {"model.emofmv2.cross_layers": 0},
    "no_cross_to_head": {"model.emofmv2.cross_to_head": False},
    "wide": {"model.emofmv2.wide": True},
    "no_average": {"train.average_epochs": 0.0},
    "no_l2": {"optim.embedding.l2_rows": 0.0},
    "no_dropout": {"model.dropout": 0.0},
    "more_dropout": {"model.dropout": 0.3},
}


def get_config(arg: str = "quickstart"):
    name = arg or "quickstart"
    if name not in DATA:
        raise UserError(f"no experiment of its own has the data {name!r}; choose {', '.join(DATA)}")
    data = points.load(Path(__file__).with_name(f"{name}.py")).get_config()
    c = config.recommended()
    c.name = "ablation"
    c.prepare, c.data.dir = data.prepare, data.data.dir
    return c


def sweep(arg: str = "quickstart"):
    yield "whole", {}
    yield from ({} if arg == "frappe" else TYPES).items()  # Frappe has no types
    yield from PARTS.items()
