"""Frappe: which app a user opens in which context (288,609 rows, no types)."""

from emofm_jax import config


def get_config(arg: str = "wm"):
    c = config.default()
    c.name = "frappe"
    c.prepare.source = "data/raw/frappe"  # RecZoo's frappe_x1: train.csv, valid.csv, test.csv
    c.prepare.groups = (
        ("user", "user"),
        ("item", "item"),
        ("context", ("daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")),
    )
    c.prepare.gauc_key = "user"
    c.data.dir = "data/frappe"
    c.data.batch_size = 4096

    c.model.name = arg
    c.model.embedding_dim = 10
    c.model.hidden = (400, 400, 400)
    c.model.stage1 = (400,)
    c.model.stage2 = (400, 400)
    c.model.norm = "batch"
    c.model.dropout = 0.2

    # As the published Frappe runs of other libraries: every row of the table moves, under L2 of the whole table.
    c.optim.embedding.update = "dense"
    c.optim.embedding.l2 = 0.05
    c.optim.embedding.schedule = "plateau"
    c.optim.network.schedule = "plateau"
    c.optim.clip = "global"
    c.optim.clip_norm = 10.0

    c.train.epochs = 100
    c.train.monitor = "auc"
    c.train.patience = 2
    return c
