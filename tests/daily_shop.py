"""A small shop whose log grows from day to day: users, items and tags come and go."""

from pathlib import Path

import numpy as np

EXPERIMENT = """
from emofm_jax import config


def get_config(arg="dnn"):
    name, plain = arg.removesuffix("_plain"), arg.endswith("_plain")
    c = config.default()
    c.name = "shop"
    c.prepare.source = "raw"
    c.prepare.split, c.prepare.day_column = "day", "day"
    c.prepare.groups = (("user", ("user", "device")), ("item", ("item", "price", "tags", "size")))
    c.prepare.ignore = ("page",)
    c.prepare.slots = {
        "price": {"kind": "numeric", "transform": "standardize"},
        "size": {"kind": "numeric", "transform": "bucket"},
        "device": {"encoding": "hash", "rows": 16},
        "tags": {"kind": "multi"},
    }
    if plain:  # no slot whose meaning follows from all rows
        c.prepare.slots.price.transform = "log1p"
        c.prepare.slots.size = {"kind": "categorical"}
    c.prepare.slot.min_count = 1 if plain else 2
    if name == "wm":
        c.prepare.ftype, c.prepare.types, c.prepare.ignore = "page", ("home", "cart"), ()
    c.data.batch_size, c.data.eval_batch_size = 32, 32
    c.model.name, c.model.embedding_dim = name, 4
    c.model.hidden, c.model.am_hidden = (8,), (8,)
    c.model.norm = "batch"
    return c
"""
DAYS = ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]
HEAD = "label,user,device,item,price,tags,size,page,day\n"


def make_rows(day, num_rows=60):
    """csv rows of a day; later days have other users and items, too."""
    rng = np.random.default_rng(day)
    rows = []
    for _ in range(num_rows):
        user, item = rng.integers(4 * day, 4 * day + 12), rng.zipf(1.5)
        tags = "^".join(rng.choice(list("abcdefg")[: 3 + day], rng.integers(0, 3)))
        numbers = f"{rng.exponential(5 + day):.3f},{tags},{rng.integers(0, 4 ** (1 + day))}"
        start = f"{rng.integers(0, 2)},u{user},d{user % 5},i{item},{numbers}"
        rows.append(f"{start},{rng.choice(['home', 'cart'])},{DAYS[day]}")
    return rows


def write(directory, days=DAYS):
    """Writes raw/DAY.csv and shop.py."""
    raw = Path(directory) / "raw"
    raw.mkdir()
    for day, name in enumerate(days):
        (raw / f"{name}.csv").write_text(HEAD + "\n".join(make_rows(day)) + "\n")
    (Path(directory) / "shop.py").write_text(EXPERIMENT)
