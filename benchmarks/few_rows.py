"""A made-up log of few typed rows that tell much, to see what early stopping does to its p.

    python benchmarks/few_rows.py --out=data/raw/few
    python -m emofm_jax.prepare --config=data/raw/few/few.py
    python -m emofm_jax.sweep --config=data/raw/few/few.py --workdir=runs/few

Writes train, valid and test.csv (3,200, 400 and 20,000 rows), and few.py: the recommended recipe,
which keeps the state of the best validation AUC, beside the one of the best logloss, seeds 0 to 2.
`--seed` draws another world. docs/data.md has what came out.
"""

import csv
from pathlib import Path

import numpy as np
from absl import app, flags

_OUT = flags.DEFINE_string("out", None, "Directory to make.", required=True)
_SEED = flags.DEFINE_integer("seed", 1, "Of the world and its rows.")

ROWS = {"train": 3_200, "valid": 400, "test": 20_000}
TYPES, CITIES, CATEGORIES = 3, 12, 8
SIZES = {"user": 300, "age": 5, "city": CITIES, "item": 80, "brand": 10, "category": CATEGORIES}
SIZES |= {"hour": 24, "device": 3, "position": 8}
EXPERIMENT = '''"""Few rows: the best validation AUC against the best validation logloss."""

from emofm_jax import config


def get_config(arg=""):
    c = config.recommended()
    c.name = "few"
    c.prepare.source = {source!r}
    c.prepare.label, c.prepare.ftype = "clicked", "kind"
    c.prepare.types = ("k0", "k1", "k2")
    c.prepare.groups = (
        ("user", ("user", "age", "city")),
        ("item", ("item", "brand", "category")),
        ("context", ("hour", "device", "position")),
    )
    c.data.dir, c.data.batch_size = {shards!r}, 256
    return c


def sweep(arg=""):
    yield "auc", {{}}
    yield "logloss", {{"train.monitor": "logloss"}}


seeds = (0, 1, 2)
'''


def rows(rng, number):
    """Cells of each row: label and type, then an id of each slot."""
    ids = {slot: rng.integers(0, size, number) for slot, size in SIZES.items()}
    ids["age"], ids["city"] = ids["user"] % SIZES["age"], ids["user"] % CITIES
    ids["brand"] = ids["item"] % SIZES["brand"]
    kind = rng.integers(0, TYPES, number)

    logit = np.linspace(-2.4, -1.3, TYPES)[kind]
    for slot, size in SIZES.items():
        logit += rng.normal(0, 0.7, size)[ids[slot]]
    logit += rng.normal(0, 0.6, (TYPES, SIZES["item"]))[kind, ids["item"]]
    logit += rng.normal(0, 0.7, (CITIES, CATEGORIES))[ids["city"], ids["category"]]
    label = (rng.random(number) < 1 / (1 + np.exp(-logit))).astype(int)
    return zip(label, [f"k{k}" for k in kind], *ids.values())


def main(_):
    """Writes it all."""
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    drawn = rows(np.random.default_rng(_SEED.value), sum(ROWS.values()))
    for split, number in ROWS.items():
        with (out / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clicked", "kind", *SIZES])
            writer.writerows(row for _, row in zip(range(number), drawn))
    text = EXPERIMENT.format(source=str(out), shards=f"{out}_shards")
    (out / "few.py").write_text(text)


if __name__ == "__main__":
    app.run(main)
