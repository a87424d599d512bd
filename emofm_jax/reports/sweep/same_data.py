"""Which points of a sweep may be ranked and compared: those trained and tested on the same data.

An AUC depends on the test rows as much as on the model, and a comparison of models asks for equal
training rows. So points of equal `prepare.*` and `data.dir` stand together, if their test rows are
the same ones (labels, or where no predictions are kept, number of rows, clicks and the AUC of the
truth). On each data there is a point that the others are compared to: the reference, where it is of
these data; else the point that differs from the reference in nothing but the data; else one of the
same `model.*`; else the first.
"""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import read
from emofm_jax.reports.sweep import findings

_MOST_FIELDS = 3  # of a name

_Key = TypeVar("_Key", bound=Hashable)


class SameData(NamedTuple):
    """Points of the same data.

    Attributes:
      name: which data, as in "rows[0] = 100,000"; empty if the sweep has no others.
      points: the best first.
      partner: the point that the others are compared to.
      why: why it is that one; empty for the reference.
      compared: comparison of every other point with the partner.
      rivals: comparison of every other point with the best.
    """

    name: str
    points: list[str]
    partner: str
    why: str
    compared: Sequence[findings.Comparison] = ()
    rivals: Sequence[findings.Comparison] = ()


def split_by_data(
    sweep: read.Sweep, split: str, metric: str, values: findings.Figure
) -> list[SameData]:
    """Points that have runs, by their data, those of the reference first; compares them.

    Args:
      split: whose rows the values are of.
      metric: a key of `comparison.HIGHER_IS_BETTER`.
      values: of the metric. If they are all NaN, nothing is compared.
    """
    means = {point: comparison.spread(of_point).mean for point, of_point in values.items()}
    known = any(map(np.isfinite, means.values()))
    points = [p for p in sweep.points if sweep.done(p) and (np.isfinite(means[p]) or not known)]
    tried = [p for p in (sweep.reference,) if sweep.ended(p)]  # it may have failed
    every = list(dict.fromkeys([*points, *tried]))
    settings = findings.settings(sweep, every, idle=("name", "seed"))

    members = []  # (fields of the data, facts of the rows, points)
    for fields, of_fields in _by(points, lambda point: _data(settings[point])).items():
        for rows, of_rows in _by_rows(sweep, split, of_fields).items():
            members.append((dict(fields), rows, of_rows))
    members.sort(key=lambda member: sweep.reference not in member[2])

    found = []
    names = _names([fields for fields, _, _ in members], [rows for _, rows, _ in members])
    sign = -1 if comparison.HIGHER_IS_BETTER[metric] else 1
    for name, (_, _, of_data) in zip(names, members):
        partner, why = _partner(of_data, settings, sweep.reference)
        if not known:
            found.append(SameData(name, of_data, partner, why))
            continue
        ranked = sorted(of_data, key=lambda point: sign * means[point])
        against = (partner, ranked[0])
        pairs = findings.compare(sweep, split, metric, values, of_data, against)
        found.append(SameData(name, ranked, partner, why, *(pairs[point] for point in against)))
    return found


def across(sweep: read.Sweep, found: Sequence[SameData]) -> dict[str, list[str | None]]:
    """{name: its point on each data, or None} of points that differ in nothing but the data.

    Those that at least two data have, named by their model, or if these are alike by a point.
    """
    home = {point: n for n, same in enumerate(found) for point in same.points}
    settings = findings.settings(sweep, list(home))
    alike = list(_by(list(home), lambda point: _rest(settings[point])).values())
    alike = [points for points in alike if len({home[point] for point in points}) > 1]
    models = [str(settings[points[0]].get("model.name", "")) for points in alike]
    if len(set(models)) < len(models) or not all(models):
        models = [points[0] for points in alike]
    first = lambda points, n: next((point for point in points if home[point] == n), None)
    return {m: [first(points, n) for n in range(len(found))] for m, points in zip(models, alike)}


def _by(points: Sequence[str], key: Callable[[str], _Key]) -> dict[_Key, list[str]]:
    found: dict[_Key, list[str]] = {}
    for point in points:
        found.setdefault(key(point), []).append(point)
    return found


def _is_data(field: str) -> bool:
    return field == "data.dir" or field.startswith("prepare.")


def _data(fields: dict[str, Any]) -> tuple:
    return tuple(sorted((k, v) for k, v in fields.items() if _is_data(k)))


def _rest(fields: dict[str, Any]) -> tuple:
    return tuple(sorted((k, repr(v)) for k, v in fields.items() if not _is_data(k)))


def _by_rows(sweep: read.Sweep, split: str, points: Sequence[str]) -> dict[tuple, list[str]]:
    """The points by their test rows: by the labels, if all of them have predictions."""
    keys: dict[str, tuple] = {}
    for point in points:
        if (found := read.predictions(sweep.done(point)[0], split)) is None:
            break
        clicks = int(np.count_nonzero(found[0]))
        keys[point] = len(found[0]), clicks, hashlib.sha256(found[0].tobytes()).hexdigest()

    if len(keys) < len(points):
        reports = {point: sweep.done(point)[0].splits[split] for point in points}
        keys = {point: (r.rows, r.clicks, r.bayes_auc) for point, r in reports.items()}
    return _by(points, keys.__getitem__)


def _partner(points: Sequence[str], settings: dict[str, dict], reference: str) -> tuple[str, str]:
    """Of points of the same data the one that the others are compared to, and why."""
    if reference in points:
        return reference, ""
    first = "the first point of these data"
    if reference not in settings:
        return points[0], f"{first}: the reference `{reference}` has no run"

    model = lambda fields: {k: v for k, v in fields.items() if k.startswith("model.")}
    for part, why in (
        (_rest, f"as the reference `{reference}`, but for the data"),
        (model, f"the model of the reference `{reference}`"),
    ):
        for point in points:
            if part(settings[point]) == part(settings[reference]):
                return point, why
    return points[0], f"{first}, none of which has the model of the reference `{reference}`"


def _names(data: Sequence[dict], rows: Sequence[tuple]) -> list[str]:
    """What tells the data apart: all of a few fields, else what differs from the first."""
    if len(data) < 2:
        return [""]
    telling = {}
    for field in sorted({key for fields in data for key in fields}):
        values = [fields.get(field, ...) for fields in data]
        if len(set(map(repr, values))) > 1:
            telling[field] = values
    directories = telling.pop("data.dir", []) if len(telling) > 1 else []

    last = [field.rsplit(".", 1)[-1] for field in telling]
    parts: list[list[str]] = [[] for _ in data]
    for (field, values), short in zip(telling.items(), last):
        label, written = _written(short if last.count(short) == 1 else field, values)
        for part, value in zip(parts, written):
            if len(telling) <= 2 or value != written[0]:
                part.append(f"{label} = {value}")

    names = []
    for part in parts:
        more = [f"{len(part) - _MOST_FIELDS} more"] if len(part) > _MOST_FIELDS else []
        name = ", ".join([*part[:_MOST_FIELDS], *more])
        names.append(name or ("data of the reference" if telling else ""))
    # What the fields leave alike is told apart by directories, by rows, by numbers.
    facts = [f"{number} rows, {clicks} clicks" for number, clicks, *_ in rows]
    for more in (directories, facts, [f"data {i + 1}" for i in range(len(data))]):
        if more and len(set(names)) < len(names):
            twice = [names.count(name) > 1 for name in names]
            longer = [", ".join(filter(None, pair)) for pair in zip(names, map(str, more))]
            names = [b if again else a for a, b, again in zip(names, longer, twice)]
    return names


def _written(label: str, values: list) -> tuple[str, list[str]]:
    """The field and its values as shown: of tuples in which one entry differs, that entry."""
    if all(isinstance(v, tuple) and v for v in values) and len({len(v) for v in values}) == 1:
        at = [i for i, column in enumerate(zip(*values)) if len(set(map(repr, column))) > 1]
        if len(at) == 1:
            label, values = f"{label}[{at[0]}]", [v[at[0]] for v in values]
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool)
    plain = lambda v: f"{v:,}" if whole(v) else str(v) or "none"
    return label, ["default" if v is ... else plain(v) for v in values]
