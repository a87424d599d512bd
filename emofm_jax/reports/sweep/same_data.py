"""Which points of a sweep may be ranked and compared: those trained and tested on the same data.

An AUC depends on the test rows as much as on the model, and a comparison of models asks for equal training rows. So
points of equal `prepare.*` and `data.dir` make a group, if their test rows are the same ones (labels, or where no
predictions are kept, number of rows, clicks and the AUC of the truth). Each group has a point that its others are
compared to: the reference, where it belongs to the group; else the point that differs from the reference in nothing
but the data; else one of the same `model.*`; else the first.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import read
from emofm_jax.reports.sweep import findings

_MOST_FIELDS = 3  # of a group's name


class Group(NamedTuple):
    """Points of the same data.

    Attributes:
      name: which data, as in "rows[0] = 100,000"; empty if the sweep has one group only.
      order: indices of its points, the best first.
      partner: the point that the others are compared to.
      why: why it is that one; empty for the reference.
      compared: Comparison of every other point with the partner.
      rivals: Comparison of every other point with the best.
    """

    name: str
    order: list[int]
    partner: str
    why: str
    compared: list
    rivals: list


def groups(sweep: read.Sweep, split: str, metric: str, figures: np.ndarray) -> list[Group]:
    """Every group, that of the reference first, with its comparisons.

    Args:
      split: whose rows the figures are of.
      metric: a key of `comparison.HIGHER_IS_BETTER`.
      figures: its matrix. If it is all NaN, nothing is compared.
    """
    means = np.array([findings.spread(row)[0] for row in figures])
    known = bool(np.isfinite(means).any())
    points = [
        p
        for p, mean in zip(sweep.points, means)
        if (np.isfinite(mean) or not known) and sweep.done(p)
    ]
    seen = [
        p for p in (sweep.reference,) if any(point == p for point, _ in sweep.runs)
    ]  # it may have failed
    settings = findings.settings(
        sweep, list(dict.fromkeys([*points, *seen])), idle=("name", "seed")
    )
    members: dict[tuple, list[str]] = {}
    for key, of_data in _by(points, lambda p: _data(settings[p])).items():
        for rows, same in _by_rows(sweep, split, of_data).items():
            members[key, rows] = same
    keys = sorted(
        members, key=lambda key: sweep.reference not in members[key]
    )  # stable: else in the sweep's order
    names = _names([dict(data) for data, _ in keys], [rows for _, rows in keys])
    found = []
    for key, name in zip(keys, names):
        order = [sweep.points.index(p) for p in members[key]]
        if known:
            order.sort(key=lambda i: -means[i] if comparison.HIGHER_IS_BETTER[metric] else means[i])
        partner, why = _partner(members[key], settings, sweep.reference)
        group = Group(name, order, partner, why, [], [])
        if known:
            best = sweep.points[order[0]]
            pairs = findings.compare(sweep, split, metric, figures, members[key], (partner, best))
            group = group._replace(compared=pairs[partner], rivals=pairs[best])
        found.append(group)
    return found


def across(sweep: read.Sweep, found: Sequence[Group]) -> dict[str, list[str | None]]:
    """{name: its point in each group, or None}: points that differ from each other in nothing but the data.

    Those that at least two groups have; named by their model, or where this does not tell them apart, by a point.
    """
    points = [sweep.points[i] for group in found for i in group.order]
    settings = findings.settings(sweep, points)
    alike = _by(points, lambda p: _rest(settings[p]))
    home = {sweep.points[i]: n for n, group in enumerate(found) for i in group.order}
    alike = [same for same in alike.values() if len({home[p] for p in same}) > 1]
    models = [str(settings[same[0]].get("model.name", "")) for same in alike]
    plain = len(set(models)) == len(models) and all(models)
    named = {}
    for model, same in zip(models, alike):
        named[model if plain else same[0]] = [
            next((p for p in same if home[p] == n), None) for n in range(len(found))
        ]
    return named


def _by(points: Sequence[str], key) -> dict[tuple, list[str]]:
    found: dict[tuple, list[str]] = {}
    for point in points:
        found.setdefault(key(point), []).append(point)
    return found


def _is_data(field: str) -> bool:
    return field == "data.dir" or field.startswith("prepare.")


def _data(fields: dict) -> tuple:
    return tuple(sorted((k, v) for k, v in fields.items() if _is_data(k)))


def _rest(fields: dict) -> tuple:
    return tuple(sorted((k, repr(v)) for k, v in fields.items() if not _is_data(k)))


def _by_rows(sweep: read.Sweep, split: str, points: list[str]) -> dict[tuple, list[str]]:
    """The points by their test rows: by the labels, if all of them have predictions."""
    kept = {p: read.predictions(sweep.done(p)[0], split) for p in points}
    if None not in kept.values():
        labels = {p: np.ascontiguousarray(found[0]) for p, found in kept.items()}
        keys = {
            p: (len(y), int(np.count_nonzero(y)), hashlib.sha256(y).hexdigest())
            for p, y in labels.items()
        }
    else:
        parts = {p: sweep.done(p)[0].metrics[split] for p in points}
        keys = {
            p: (m.get("rows"), m.get("clicks"), (m.get("bayes") or {}).get("auc"))
            for p, m in parts.items()
        }
    return _by(points, keys.__getitem__)


def _partner(points: list[str], settings: dict, reference: str) -> tuple[str, str]:
    """Of a group's points the one that the others are compared to, and why."""
    if reference in points:
        return reference, ""
    if reference not in settings:
        return points[0], f"the first point of these data: the reference `{reference}` has no run"
    wanted, model = (
        settings[reference],
        lambda fields: {k: v for k, v in fields.items() if k.startswith("model.")},
    )
    tests = (
        (lambda f: _rest(f) == _rest(wanted), f"as the reference `{reference}`, but for the data"),
        (lambda f: model(f) == model(wanted), f"the model of the reference `{reference}`"),
    )
    for alike, why in tests:
        if same := [p for p in points if alike(settings[p])]:
            return same[0], why
    return points[
        0
    ], f"the first point of these data, none of which has the model of the reference `{reference}`"


def _names(data: list[dict], rows: list[tuple]) -> list[str]:
    """What tells each group's data from the others': all of a few fields, else what differs from the first group."""
    if len(data) < 2:
        return [""]
    fields = sorted({k for one in data for k in one})
    telling = {f: [one.get(f, ...) for one in data] for f in fields}
    telling = {f: values for f, values in telling.items() if len(set(map(repr, values))) > 1}
    if any(f != "data.dir" for f in telling):
        where = telling.pop("data.dir", None)
    else:
        where = None
    last = [f.rsplit(".", 1)[-1] for f in telling]
    parts = [[] for _ in data]
    for field, short in zip(telling, last):
        label = short if last.count(short) == 1 else field
        label, written = _written(label, telling[field])
        for i, value in enumerate(written):
            if len(telling) <= 2 or value != written[0]:
                parts[i].append(f"{label} = {value}")
    names = [
        ", ".join(
            [*p[:_MOST_FIELDS], *([f"{len(p) - _MOST_FIELDS} more"] if p[_MOST_FIELDS:] else [])]
        )
        for p in parts
    ]
    names = [name or ("data of the reference" if telling else "") for name in names]
    for more in (
        where,
        [f"{r[0]} rows, {r[1]} clicks" for r in rows],
        [f"data {i + 1}" for i in range(len(data))],
    ):
        if more and len(set(names)) < len(names):
            names = [
                f"{n}{', ' if n else ''}{m}" if names.count(n) > 1 else n
                for n, m in zip(names, more)
            ]
    return names


def _written(label: str, values: list) -> tuple[str, list[str]]:
    """The field and its values as they are shown: of tuples in which one entry differs, that entry."""
    if all(isinstance(v, tuple) and v for v in values) and len({len(v) for v in values}) == 1:
        at = [i for i, column in enumerate(zip(*values)) if len(set(map(repr, column))) > 1]
        if len(at) == 1:
            label, values = f"{label}[{at[0]}]", [v[at[0]] for v in values]
    plain = lambda v: (
        f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v) or "none"
    )
    return label, ["default" if v is ... else plain(v) for v in values]
