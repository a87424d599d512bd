"""Several models on the same rows, each against the first: figures, differences, verdicts, gates.

`paired` has the formulas; here they become records, which compare.json holds.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from emofm_jax.errors import UserError
from emofm_jax.evaluation import by_value, comparison, paired
from emofm_jax.evaluation.comparison import Interval

if TYPE_CHECKING:  # which loads pyarrow
    from emofm_jax.data.coded import Coded

_WIDER = 1.05  # from which on it is said that rows of one key hang together
_TESTED = ("auc", "logloss")  # within the rows of a value

_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_CONDITION = re.compile(r"\s*(\w+)(?:\.(\w+))?\s*(>=|<=|>|<)\s*(\S+)\s*")
_PARTS = ("difference", "low", "high", "value")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A metric with its interval of 95%; None where it is not defined."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, estimate: paired.Estimate) -> "Figure":
        """Of a model's estimate."""
        found = estimate.interval
        if estimate.value is None or found is None:
            return cls(estimate.value)
        return cls(estimate.value, float(found.low), float(found.high))

    @property
    def interval(self) -> Interval | None:
        """As `comparison` has it."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return Interval(self.value, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of a model minus the first one's.

    Attributes:
      value, low, high, p: the difference, the ends of its interval, its two-sided p-value of 0.
      verdict: one of `comparison.VERDICTS`, on the model.
    """

    value: float
    low: float
    high: float
    p: float
    verdict: str

    @property
    def interval(self) -> Interval:
        """As `comparison` has it."""
        return Interval(self.value, self.low, self.high, self.p)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfValue:
    """The rows of one value of a column.

    Attributes:
      value: as text; None for rows that have none.
      rows, clicks: counted without weights.
      figures: {metric: the first model's, the model's}.
      differences: {metric: that of the two}, as far as they are defined.
      apart: whether a difference stays when all of the table shall be right (Holm, 5%).
    """

    value: str | None
    rows: int
    clicks: int
    figures: dict[str, tuple[float | None, float | None]]
    differences: dict[str, Difference]
    apart: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfColumn:
    """A model against the first by the values of a column, the most frequent ones first."""

    column: str
    missing: str
    num_values: int
    values: list[OfValue]

    def name(self, value: OfValue) -> str:
        """What the line of a value is called."""
        return f"({self.missing})" if value.value is None else value.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfModel:
    """A model: its figures, and against the first one (of that: nothing) its differences."""

    name: str
    figures: dict[str, Figure]
    differences: dict[str, Difference] = dataclasses.field(default_factory=dict)
    by: list[OfColumn] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contest:
    """What came of it.

    Attributes:
      source: of the rows, in words.
      rows, clicks: counted without weights.
      models: the first one first.
      cluster: the column that rows hang together by; empty: rows count as independent.
      clusters: how many there are.
      wider: {metric: how many times as wide clusters make the interval of a difference}.
      warnings, notes: sentences.
    """

    source: str
    rows: int
    clicks: int
    models: list[OfModel]
    cluster: str = ""
    clusters: int = 0
    wider: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a gate asks of every model but the first: `part` of `metric` compared with `number`."""

    text: str
    metric: str
    part: str
    sign: str
    number: float

    def value(self, model: OfModel) -> float | None:
        """What is compared; None where it is not defined."""
        own = model.figures.get(self.metric)
        if self.part == "value" or self.metric == "pcoc":
            name = "value" if self.part == "difference" else self.part
            return None if own is None else getattr(own, name)
        found = model.differences.get(self.metric)
        name = "value" if self.part == "difference" else self.part
        return None if found is None else getattr(found, name)

    def holds(self, model: OfModel) -> bool:
        """Whether it does; not if the value is not defined."""
        value = self.value(model)
        return value is not None and bool(_OPERATORS[self.sign](value, self.number))


def conditions(text: str) -> list[Condition]:
    """Reads `auc >= -0.0005, pcoc <= 1.05`, with commas between.

    Raises:
      UserError: a metric, part, sign or number that is not known.
    """
    found = []
    for part in text.split(",") if text else ():
        where = f"--require={part.strip()}"
        if not part.strip():
            raise UserError(f"--require={text}: a condition is empty beside a comma; leave it out")
        if not (match := _CONDITION.fullmatch(part)):
            raise UserError(f"{where}: not a condition; write it as in 'auc >= -0.0005'")
        metric, of, sign, number = match.groups()
        if metric not in paired.METRICS:
            known = ", ".join(paired.METRICS)
            raise UserError(f"{where}: {metric!r} is no metric; choose one of {known}")
        if of is not None and of not in _PARTS[1:]:
            known = ", ".join(f"{metric}.{name}" for name in _PARTS[1:])
            raise UserError(f"{where}: there is no {metric}.{of}; write {metric}, or {known}")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if math.isnan(limit):
            raise UserError(f"{where}: {number!r} is no number; write one")
        found.append(Condition(part.strip(), metric, of or _PARTS[0], sign, limit))
    return found


def make(
    names: Sequence[str],
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    rows: paired.Rows,
    by: Sequence["Coded"] = (),
    *,
    most: int = by_value.MOST,
    **about: Any,
) -> Contest:
    """Compares models.

    Args:
      names: of the models, the first one first.
      scores: of each model p and logit, f32[n].
      rows: n of them.
      by: coded of the rows.
      most: values of a column that are shown.
      **about: source, cluster, warnings and notes of a `Contest`.
    """
    found = [paired.estimates(rows, *one) for one in scores]
    models = []
    for i, name in enumerate(names):
        figures = {metric: Figure.of(one) for metric, one in found[i].items()}
        if not i:
            models.append(OfModel(name=name, figures=figures))
            continue
        columns = [_of_column(coded, rows, scores[0], scores[i], most) for coded in by]
        differences = _differences(found[i], found[0])
        models.append(OfModel(name=name, figures=figures, differences=differences, by=columns))

    clicks = int(np.count_nonzero(rows.label > 0))
    wider, notes = _wider(rows, found), list(about.pop("notes", ()))
    clusters = 0 if rows.cluster is None else paired.count(rows.cluster)
    about |= {"rows": len(rows.label), "clicks": clicks, "clusters": clusters}
    return Contest(models=models, wider=wider, notes=notes, **about)


def _differences(
    ours: Mapping[str, paired.Estimate], theirs: Mapping[str, paired.Estimate]
) -> dict[str, Difference]:
    """Those that are defined."""
    found = {}
    for metric, higher in paired.HIGHER_IS_BETTER.items():
        if metric not in ours or metric not in theirs:
            continue
        if (one := paired.difference(ours[metric], theirs[metric])) is not None:
            mean, low, high, p = (float(x) for x in one)
            found[metric] = Difference(mean, low, high, p, comparison.verdict(one, higher))
    return found


def _wider(rows: paired.Rows, found: Sequence[Mapping[str, paired.Estimate]]) -> dict[str, float]:
    """How many times as wide the clusters, or else the keys of the GAUC, make intervals."""
    cluster = rows.cluster
    if cluster is None and rows.key is not None:
        cluster = paired.of_key(rows.key)
    if cluster is None or len(found) < 2:
        return {}

    wider = {}
    for metric in _TESTED:
        ours, theirs = (one[metric]._replace(cluster=None) for one in (found[1], found[0]))
        times = paired.widened(ours, theirs, cluster)
        if times is not None and (rows.cluster is not None or times > _WIDER):
            wider[metric] = times
    return wider


def _of_column(
    coded: "Coded",
    rows: paired.Rows,
    first: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    most: int,
) -> OfColumn:
    counts = np.bincount(coded.code, minlength=len(coded.values))
    shown = np.argsort(-counts, kind="stable")[:most]
    values = []
    for code in shown[counts[shown] > 0].tolist():
        index = np.flatnonzero(coded.code == code)
        part = rows.take(index)
        ours, theirs = (paired.estimates(part, *(x[index] for x in s)) for s in (other, first))
        figures = {m: (theirs[m].value, ours[m].value) for m in _TESTED}
        differences = {m: d for m, d in _differences(ours, theirs).items() if m in _TESTED}
        clicks = int(np.count_nonzero(part.label > 0))
        sizes: dict[str, Any] = {"rows": len(index), "clicks": clicks}
        named = coded.values[code]
        values.append(OfValue(value=named, figures=figures, differences=differences, **sizes))

    num_values = int(np.count_nonzero(counts))
    return OfColumn(
        column=coded.column,
        missing=coded.missing,
        num_values=num_values,
        values=_apart(values),
    )


def _apart(values: Sequence[OfValue]) -> list[OfValue]:
    """The values, marked where a difference stays by Holm's procedure over the whole table."""
    tests = [(i, d.p) for i, value in enumerate(values) for d in value.differences.values()]
    kept = comparison.holm([p for _, p in tests])
    marked = {i for (i, _), stays in zip(tests, kept) if stays}
    return [dataclasses.replace(value, apart=i in marked) for i, value in enumerate(values)]
