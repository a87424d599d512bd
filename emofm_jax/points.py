"""What an experiment file uses to tell `sweep` its points, seeds, reference and ranges.

    def get_config(arg=""): ...               # as for train; the base of every point, here hmm
    def sweep(arg=""):                        # (name, overrides) or (name, a whole config)
        yield "hmm", {}
        yield from points.one_at_a_time({"model.mixer.kind": ["graph", "mlp"]})
    seeds = (0, 1, 2)                         # or a function of arg; else the one of the config
    reference = "hmm"                         # what the report compares with; else the first point
    ranges = {                                # or a function of arg: what --search=tpe draws from
        "optim.network.learning_rate": ("log", 1e-4, 1e-2),
        "model.dropout": ("uniform", 0.0, 0.5),
        "model.mixer.kind": ("choice", ["cross_attention", "graph"]),
    }

An override reaches the config as the flag `--config.FIELD=VALUE` would. The config that a search
found is `points.best_trial(workdir)`.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emofm_jax.options import plain
from emofm_jax.sweeping.experiment import load, read
from emofm_jax.sweeping.overrides import apply
from emofm_jax.sweeping.trials import best_trial

__all__ = ["apply", "best_trial", "grid", "load", "one_at_a_time", "read"]


def grid(fields: Mapping[str, Sequence]) -> Iterator[tuple[str, dict]]:
    """Yields every combination of the fields' values.

    `{"model.mixer.kind": ["graph"], "model.dropout": [0.1]}` gives the point
    ("kind=graph,dropout=0.1", {"model.mixer.kind": "graph", "model.dropout": 0.1}).
    """
    names = _short(list(fields))
    for values in itertools.product(*fields.values()):
        name = ",".join(f"{short}={_text(value)}" for short, value in zip(names, values))
        yield name, dict(zip(fields, values))


def one_at_a_time(fields: Mapping[str, Sequence]) -> Iterator[tuple[str, dict]]:
    """Yields each value of each field alone: ("kind=graph", {"model.mixer.kind": "graph"}), ..."""
    for short, (path, values) in zip(_short(list(fields)), fields.items()):
        for value in values:
            yield f"{short}={_text(value)}", {path: value}


def _short(paths: list[str]) -> list[str]:
    """The shortest ends of dotted paths that tell them apart."""
    short = []
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        alone = lambda end: sum(f".{p}".endswith(f".{end}") for p in paths) == 1
        short.append(next((end for end in ends if alone(end)), path))
    return short


def _text(value: Any) -> str:
    """A value as part of a directory's name: (1, 2) is 1+2."""
    value = plain(value)
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value)) or "none"
    return re.sub(r"[^A-Za-z0-9._+=,-]", "", str(value)) or "none"
