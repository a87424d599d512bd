"""KuaiRand-Pure on equal terms: the same search for every model, then five seeds of each winner.

    python -m emofm_jax.sweep --config=experiments/equal_terms.py:dnn --workdir=runs/search_dnn --search=tpe --trials=20 --config.prepare.source=DIR
    python -m emofm_jax.sweep --config=experiments/equal_terms.py --workdir=runs/equal_terms --config.prepare.source=DIR

The argument is a model of `MODELS`; a search draws from its `ranges`, by validation AUC of seed 0.
Without an argument the points are the winners. Data, groups and the recipe to begin with are those of
kuairand.py.

Question: is our model ahead of the others once all were tuned alike?
"""

from pathlib import Path

from emofm_jax import points

kuairand = points.load(Path(__file__).with_name("kuairand.py"))
reference = "emofmv2"
MODELS = ("emofmv2", "dnn", "dnn_typed", "dcnv2", "lr")
# What each model's search found.
WINNERS: dict[str, dict] = {}


def get_config(arg: str = ""):
    c = kuairand.get_config(arg or reference)
    c.name = "equal_terms"
    return c


def ranges(arg: str = ""):
    found = {
        "optim.embedding.l2_rows": ("log", 100.0, 20_000.0),
        "optim.embedding.learning_rate": ("log", 5e-4, 3e-2),
    }
    if arg == "lr":  # its weights are logits
        return found | {"optim.embedding.l2_rows": ("log", 0.1, 1_000.0)}
    found |= {
        "optim.network.learning_rate": ("log", 5e-4, 1e-2),
        "model.dropout": ("uniform", 0.0, 0.5),
        "model.embedding_dim": ("choice", [8, 16]),
    }
    return found | ({"model.emofmv2.wide": ("choice", [False, True])} if arg == "emofmv2" else {})


def seeds(arg: str = ""):
    return (0,) if arg else range(5)


def sweep(arg: str = ""):
    for name in MODELS:
        yield name, points.apply(get_config(name), WINNERS[name], f"equal_terms: {name}")
