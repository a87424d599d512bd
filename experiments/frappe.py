"""Frappe: which app a user opens in which context (288,609 rows, no types)."""

from emofm_jax import config


def get_config(arg=""):
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
    return c
