"""KuaiRand-Pure, day by day: is a model that goes on as good as one that starts anew?

    python -m emofm_jax.backtest --config=experiments/kuairand_daily.py:dnn --workdir=runs/daily_dnn --config.prepare.source=DIR
    python -m emofm_jax.backtest --config=experiments/kuairand_daily.py:hmm --workdir=runs/daily_hmm --config.prepare.source=DIR
    python -m emofm_jax.backtest --config=experiments/kuairand_daily.py:tiny --workdir=runs/daily_tiny --config.prepare.source=DIR

The argument is any model of kuairand.py, or tiny: dnn, narrow, on five days, in a minute or two. DIR
holds train.csv.gz, valid.csv.gz and test.csv.gz of that experiment, and no other file: 14 days.

Question: each day is scored before it is trained on. Five policies, from a model that is never
trained again to one that is trained anew on all days.
"""

from pathlib import Path

from emofm_jax import config, points

_KUAIRAND = points.load(Path(__file__).with_name("kuairand.py"))
L2 = {"dnn": 0.1, "dcnv2": 0.1, "lr": 1e-5}  # lr's weights are logits

# Anew, a model takes three passes; a warm one has had its passes.
policies = {
    "frozen": {},
    "warm": {"train.epochs": 1},
    "warm+2": {"train.epochs": 1},
    "last-7": {},
    "all": {},
}


def seeds(arg=""):
    return (0,) if arg == "tiny" else (0, 1, 2)


def first_days(arg=""):
    return 2 if arg == "tiny" else 3


def days(arg=""):
    return [f"202204{day}" for day in range(25, 30)] if arg == "tiny" else ()


def get_config(arg: str = "dnn"):
    c = config.default()
    c.name = "kuairand_daily"
    c.data.dir = "data/kuairand"
    c.prepare = _KUAIRAND.get_config().prepare
    c.prepare.split, c.prepare.day_column = "day", "date"
    c.prepare.ignore = ("tab",)
    c.model.name = "dnn" if arg == "tiny" else arg.removesuffix("_typed")
    c.model.type_aware = arg.endswith("_typed")
    c.model.embedding_dim, c.model.hidden = 8, (128, 64)
    c.model.stage1 = c.model.stage2 = c.model.am_hidden = (64,)
    c.model.norm, c.model.dropout = "batch", 0.3
    c.model.dcnv2.low_rank, c.model.dcnv2.num_experts = 64, 1
    # Every row of the table moves, under L2 of the whole table; what is scored is an average.
    c.optim.embedding.updates = "dense"
    c.optim.embedding.l2 = L2.get(c.model.name, 0.03)
    c.optim.embedding.learning_rate = 0.01 if arg == "lr" else 1e-3
    c.optim.clip = "global"
    c.train.average_epochs = 0.5
    # No figure of the scored day may choose a state, a rate or an end.
    c.train.epochs = 3
    if arg == "tiny":
        c.model.embedding_dim, c.model.hidden = 4, (16,)
        c.data.batch_size, c.train.average_epochs = 512, 0.0
        c.train.epochs = 1
    return c
