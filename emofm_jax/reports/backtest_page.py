"""The page of a backtest: figures over the days, what they cost, and which policy to choose.

Days are the units: of each day and policy there is the mean over the seeds, a policy is compared
with another by the differences of the days on which both have the figure, with a t interval.
"""

import collections
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.evaluation.comparison import Interval
from emofm_jax.reports import document, plots
from emofm_jax.reports.document import Block, Cell, Charts, Items, Table, Text
from emofm_jax.sweeping.backtest import Header, Line

_NAMES = {"auc": "AUC", "logloss": "logloss", "pcoc": "PCOC", "unknown": "unknown values"}
_UNITS = {"auc": "AUC", "logloss": "logloss (nats)", "pcoc": "predicted clicks / clicks"}
_UNITS |= {"unknown": "share of values that are unknown, mean of the slots"}
_FEW = 5  # days, below which no policy is named as the one to choose
_HOW = (
    "Each day was scored before any model was trained on it. Differences are of days, paired: a "
    "day counts once, as the mean of its seeds. Days follow each other and are alike, so the "
    "intervals are a guide, not a promise."
)


def report(header: Header, lines: Sequence[Line]) -> document.Report:
    """The whole report."""
    found = _Figures(header, [line for line in lines if line.error is None])
    first, *others = header.policies
    figures = _table(found)
    differences = {metric: _differences(found, metric) for metric in ("auc", "logloss")}
    tables = [("", figures)]
    tables += [
        (f"{_NAMES[m]} minus that of {first}", table) for m, table in differences.items() if others
    ]
    said = [*_verdicts(found), *_notes(header, lines)]
    over_days = [_chart(found, metric) for metric in _NAMES]
    sections: dict[str, Sequence[Block]] = {
        "Verdict": [Items(said), Text(_HOW)],
        "Policies": [figures],
        "Over the days": [Charts(over_days)],
    }
    compared: list[Block] = []
    for metric, table in differences.items():
        compared += [Text(f"**{_NAMES[metric]}** minus that of `{first}`"), table]

    if others:
        sections["Against the first policy"] = compared
    days = header.days
    lead = [f"`{header.experiment}`", f"{len(days)} days scored, {days[0]} to {days[-1]}"]
    lead.append(f"{len(header.seeds)} {'seed' if len(header.seeds) == 1 else 'seeds'}")
    return document.Report(f"Backtest: {header.name}", lead, sections, tables, said)


class _Figures:
    """Means over the seeds of every policy and day; NaN where there is no figure."""

    def __init__(self, header: Header, lines: Sequence[Line]):
        self.policies, self.days, self._lines = header.policies, header.days, lines

    def of(self, policy: str, get: Callable[[Line], float | None]) -> np.ndarray:
        """f64[days]."""
        found = []
        for day in self.days:
            mine = [line for line in self._lines if (line.policy, line.day) == (policy, day)]
            values = [value for line in mine if (value := get(line)) is not None]
            found.append(float(np.mean(values)) if values else np.nan)
        return np.array(found)

    def metric(self, policy: str, name: str) -> np.ndarray:
        """f64[days] of a figure of the lines."""
        return self.of(policy, lambda line: getattr(line, name))

    def difference(self, policy: str, other: str, name: str) -> Interval | None:
        """policy - other over the days that both have; None with fewer than two."""
        values = self.metric(policy, name) - self.metric(other, name)
        values = values[np.isfinite(values)]
        return comparison.t_interval(values) if len(values) > 1 else None

    def mean(self, policy: str, name: str) -> float | None:
        """Mean over the days."""
        values = self.metric(policy, name)
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else None

    def cost(self, policy: str) -> float:
        """Rows trained on, over all days, of a seed."""
        return float(np.nansum(self.metric(policy, "rows_trained")))

    def costs(self, policies: Sequence[str]) -> dict[str, float]:
        """Rows trained on, of a seed, over the days that all of the policies have."""
        rows = {policy: self.metric(policy, "rows_trained") for policy in policies}
        common = np.all([np.isfinite(of_days) for of_days in rows.values()], axis=0)
        return {policy: float(of_days[common].sum()) for policy, of_days in rows.items()}


def _table(found: _Figures) -> Table:
    rows = []
    for policy in found.policies:
        cells = [document.code(policy)]
        cells += [document.number(found.mean(policy, name), 4) for name in _NAMES]
        cells.append(document.number(found.cost(policy), 0))
        rows.append([*cells, document.number(float(np.nansum(found.metric(policy, "seconds"))), 0)])
    heads = ["policy", *_NAMES.values(), "rows trained on", "seconds"]
    return Table(heads, rows)


def _differences(found: _Figures, metric: str) -> Table:
    first, *others = found.policies
    rows = []
    for policy in others:
        interval = found.difference(policy, first, metric)
        mean = document.number(interval.mean if interval else None, 5, sign=True)
        word = comparison.verdict(interval, metric == "auc") if interval else "too few days"
        rows.append([document.code(policy), mean, document.ends(interval, 5), Cell(word)])
    return Table(["policy", "mean", "95% interval", "verdict"], rows)


def _verdicts(found: _Figures) -> list[str]:
    """Which policy to choose, by each of AUC and logloss, of those that have every day."""
    texts = []
    for metric in ("auc", "logloss"):
        of_policy = {policy: np.isfinite(found.metric(policy, metric)) for policy in found.policies}
        days = int(np.any(list(of_policy.values()), axis=0).sum())
        have = {policy: int(there.sum()) for policy, there in of_policy.items()}
        whole = [policy for policy, num in have.items() if num == days]
        short = ", ".join(
            f"`{p}` has {num} of {days} days" for p, num in have.items() if num < days
        )
        if not days:
            text = "no day has one, no policy can be chosen by it"
        elif not whole:
            text = f"no policy has it on every day, none can be chosen by it ({short})"
        else:
            text = f"{days} {'day' if days == 1 else 'days'}: {_choice(found, metric, whole, days)}"
            text += f"; not considered: {short}" if short else ""
        texts.append(f"{_NAMES[metric]}{',' if whole and days else ':'} {text}")
    return texts


def _choice(found: _Figures, metric: str, policies: Sequence[str], days: int) -> str:
    """The best of policies that have a metric on the same days, and the cheapest that is alike."""
    means = {p: mean for p in policies if (mean := found.mean(p, metric)) is not None}
    better = max if metric == "auc" else min
    best = better(means, key=lambda policy: means[policy])
    text = f"the best is `{best}` ({means[best]:.4f})"
    if days < _FEW:
        return f"{text}; fewer than {_FEW} days tell too little to choose by"

    if len(policies) == 1:
        return f"{text}, and there is no other to choose"
    alike = [best]
    for policy in (policy for policy in policies if policy != best):
        interval = found.difference(policy, best, metric)
        if interval and interval.low <= 0 <= interval.high:
            alike.append(policy)
    costs = found.costs(policies)
    cheapest = min(alike, key=lambda policy: costs[policy])  # the best one where it is among them
    if cheapest != best:
        text += f"; `{cheapest}` ({means[cheapest]:.4f}) is not distinguishable from it and trains "
        text += f"on {costs[cheapest]:,.0f} rows instead of {costs[best]:,.0f}: choose "
        return f"{text}`{cheapest}`"
    if len(alike) > 1:
        names = ", ".join(f"`{p}`" for p in sorted(alike) if p != best)
        return f"{text}, not distinguishable from {names}, and no dearer: choose it"
    return f"{text}, distinguishably: choose it"


def _notes(header: Header, lines: Sequence[Line]) -> list[str]:
    """Days without clicks, days that lack some of the seeds, and runs that failed."""
    without = sorted({line.day for line in lines if line.error is None and not line.clicks})
    notes = [f"{day} has no click: it has no AUC and no PCOC" for day in without]
    notes += _unlike(header, lines)
    seeds = len(header.seeds)
    for policy in header.policies:
        of_policy = [line for line in lines if line.policy == policy and line.error is None]
        have = collections.Counter(line.day for line in of_policy)
        short = [f"{day} ({have[day]})" for day in header.days if 0 < have[day] < seeds]
        if short:
            days = f"{len(short)} {'day' if len(short) == 1 else 'days'}"
            notes.append(f"`{policy}`: {days} with fewer than {seeds} seeds: {', '.join(short)}")

    notes += [
        f"failed: {line.policy}, {line.day}, seed {line.seed}: {line.error}"
        for line in lines
        if line.error is not None
    ]
    return notes


def _unlike(header: Header, lines: Sequence[Line]) -> list[str]:
    """Days of which policies were scored on other rows: what they differ by is of the rows, too."""
    notes = []
    for day in header.days:
        sizes: dict[tuple[int, int], str] = {}
        for line in (line for line in lines if line.day == day and line.error is None):
            sizes.setdefault((line.rows, line.clicks), line.policy)
        if len(sizes) > 1:
            of = [f"{n:,} rows, {k:,} clicks of `{p}`" for (n, k), p in sizes.items()]
            notes.append(f"{day}: policies were scored on other rows ({'; '.join(of)})")
    return notes


def _chart(found: _Figures, metric: str) -> str:
    """A figure over the days, a line a policy, with intervals over the rows of each day."""
    x: list[float | None] = [float(i) for i in range(1, len(found.days) + 1)]
    series = []
    for policy in found.policies:
        y = [None if value != value else float(value) for value in found.metric(policy, metric)]
        series.append(plots.Series(policy, x, y, _intervals(found, policy, metric, y)))
    title = f"{_NAMES[metric]} of each day, scored before it is trained on"
    level = 1.0 if metric == "pcoc" else None
    return plots.lines(title, series, x="day", y=_UNITS[metric], level=level)


def _intervals(
    found: _Figures, policy: str, metric: str, y: Sequence[float | None]
) -> list[Interval | None]:
    """Means over the seeds of the ends, of the first policy only: those of others are as wide."""
    if policy != found.policies[0] or metric == "unknown":
        return []

    def end(at: int) -> np.ndarray:
        get: Callable[[Line], float | None] = lambda line: _end(line.intervals, metric, at)
        return found.of(policy, get)

    pairs = zip(y, end(0).tolist(), end(1).tolist())
    return [None if v is None or a != a else Interval(v, a, b) for v, a, b in pairs]


def _end(intervals: Mapping[str, Sequence[float]], metric: str, at: int) -> float | None:
    return intervals[metric][at] if metric in intervals else None
