"""Which numbers a sweep varies while all else stays: lines of points, to see how much x matters.

Points whose configs are equal but for one number lie on a line of that number; a sweep of several
models over the same values gives a line per model. Fields that always change together count as one,
as do the entries of a tuple: if one entry varies it is that entry, else their sum (widths of
layers, slots of groups).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from emofm_jax.reports import read
from emofm_jax.reports.sweep import findings

LEAST = 3  # values that make a line
_WIDE = 5  # a larger ratio of values asks for factors: a logarithmic axis, a slope per tenfold


class Line(NamedTuple):
    """Points that differ in one number only.

    Attributes:
      field: dotted path of the number.
      name: what tells this line from the field's others; empty if it is the only one.
      points: by rising x.
      x: values of the field.
    """

    field: str
    name: str
    points: list[str]
    x: list[float]


class _Alike(NamedTuple):
    """Points that are alike but for a number: the other fields that vary, and their numbers."""

    others: dict[str, Any]
    x: dict[str, float]


def lines(sweep: read.Sweep) -> dict[str, list[Line]]:
    """{field: its lines, that of the reference first}."""
    settings = findings.settings(sweep, [point for point in sweep.points if sweep.done(point)])
    fields = _varied(settings)
    found: dict[str, list[_Alike]] = {}

    for field, values in fields.items():
        others = [f for f in fields if f != field]
        alike: dict[tuple, list[str]] = {}
        for point in settings:
            alike.setdefault(tuple(fields[f][point] for f in others), []).append(point)
        for same, points in alike.items():
            label, x = _numbers(field, {point: values[point] for point in points})
            if len(set(x.values())) >= LEAST:
                found.setdefault(label, []).append(_Alike(dict(zip(others, same)), x))
    return {label: _named(label, alike, sweep.reference) for label, alike in found.items()}


def is_wide(x: Sequence[float], factor: float = _WIDE) -> bool:
    """Whether the values are to be read as factors."""
    return bool(x) and min(x) > 0 and max(x) / min(x) > factor


def without_sentinel(found: Sequence[Line]) -> tuple[list[Line], bool]:
    """The lines of a field without x = 0 where its other values span factors; whether any had it.

    There 0 is seldom a number like the others (`hash_rows` = 0 hashes nothing), and has no place
    among factors.
    """
    every = [x for line in found for x in line.x]
    if all(every) or not is_wide([x for x in every if x]):
        return list(found), False
    kept = []
    for line in found:
        points = [point for point, x in zip(line.points, line.x) if x]
        kept.append(line._replace(points=points, x=[x for x in line.x if x]))
    return [line for line in kept if len(line.x) >= LEAST], True


def _varied(settings: Mapping[str, Mapping]) -> dict[str, dict[str, Any]]:
    """{field: {point: value}} of what varies; of fields that change together, the first."""
    fields, seen = {}, set()
    for field in sorted(set().union(*settings.values())):
        values = {point: of_point.get(field, ...) for point, of_point in settings.items()}
        alike = tuple(map(repr, values.values()))
        if len(set(alike)) > 1 and alike not in seen:
            seen.add(alike)
            fields[field] = values
    return fields


def _numbers(field: str, values: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """What the number is called, and {point: number} of the points that have one."""
    if not all(isinstance(v, tuple) for v in values.values()):
        return field, {point: float(v) for point, v in values.items() if _is_number(v)}
    lengths = {len(v) for v in values.values() if v}
    values = {point: v for point, v in values.items() if v and all(map(_is_number, v))}
    if len(lengths) != 1:
        return field, {}

    at = [i for i, column in enumerate(zip(*values.values())) if len(set(column)) > 1]
    if len(at) == 1:
        return f"{field}[{at[0]}]", {point: float(v[at[0]]) for point, v in values.items()}
    return f"sum of {field}", {point: float(sum(v)) for point, v in values.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(label: str, alike: Sequence[_Alike], reference: str) -> list[Line]:
    """Names lines by the fields in which they differ."""

    def apart(fields: Sequence[str]) -> int:
        return len({tuple(repr(one.others[f]) for f in fields) for one in alike})

    # The model first; a field that follows from those before it tells nothing.
    telling: list[str] = []
    for field in sorted(alike[0].others, key=lambda field: field != "model.name"):
        if apart([*telling, field]) > apart(telling):
            telling.append(field)

    found = []
    for others, x in alike:
        told = (others[field] for field in telling)
        name = ", ".join("default" if value is ... else str(value) for value in told)
        points = sorted({value: point for point, value in reversed(x.items())}.items())
        found.append(Line(label, name, [p for _, p in points], [value for value, _ in points]))
    return sorted(found, key=lambda line: reference not in line.points)
