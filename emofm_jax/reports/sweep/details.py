"""Sections behind a sweep's results: types, auxiliary model, cost, curves, reliability."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.evaluation.split_report import TypeFigures
from emofm_jax.reports import axes, curves, document, plots
from emofm_jax.reports.document import Block, Cell, Charts, Table, Text
from emofm_jax.reports.sweep import lines as lines_lib
from emofm_jax.reports.sweep import view as view_lib
from emofm_jax.reports.sweep.same_data import SameData
from emofm_jax.reports.sweep.view import DIGITS, View

FEWEST = 4  # points of the same data that get charts where there are several data
_MOST_ROWS = 40  # of a chart with a row per point
_CROWD = 4  # the fewest points for which others are left out of a chart
_SPOT = 5  # times the width of the crowd, in which it would shrink to a spot
_CLUMPED = 3  # a larger ratio of costs asks for factors: most points stand at its small end
_COSTS = {  # what a cost is called in a title, and on an axis
    "parameters": ("parameters", "parameters (table and network)"),
    "rows_per_s": ("rows/s", "training speed (rows/s)"),
    "memory": ("peak memory", "peak memory of the process (MiB)"),
}
_GUESSED = {"accuracy": "accuracy", "majority": "majority type", "logloss": "logloss (nats)"}


def drawn(v: View, same: SameData) -> list[str]:
    """The points that a chart with a row per point shows, the best first.

    Without those behind a gap so wide that the others would shrink to a spot.
    """
    spreads = [v.spread(point) for point in same.points]
    ends = [s.interval[1:3] if s.interval else (s.mean, s.mean) for s in spreads]
    width = lambda n: max(high for _, high in ends[:n]) - min(low for low, _ in ends[:n])
    for n in range(_CROWD, len(ends)):
        gap = abs(spreads[n].mean - spreads[n - 1].mean)
        if gap > width(n) and width(len(ends)) > _SPOT * width(n):
            return same.points[: min(n, _MOST_ROWS)]
    return same.points[:_MOST_ROWS]


def by_type(v: View) -> list[Block]:
    """AUC within the rows of each type, the type given to the model."""
    parts: dict[str, list[TypeFigures]] = {}
    for _, point in v.placed():
        reports = [run.splits[v.split] for run in v.sweep.done(point)]
        parts[point] = [part for report in reports for part in report.types]
    types = list(dict.fromkeys(part.name for found in parts.values() for part in found))
    if not types:
        return []

    def aucs(point: str, name: str) -> np.ndarray:
        found = [part.auc for part in parts[point] if part.name == name]
        return np.array(found, np.float64)

    rows: list[list[Cell]] = []
    shown: list[str] = []
    for same in v.data:
        typed = [point for point in same.points if parts[point]]
        shown = shown or typed[: axes.NUM_STYLES]
        for point in typed:
            spreads = [comparison.spread(aucs(point, name)) for name in types]
            cells = [document.mean_sd(spread, DIGITS) for spread in spreads]
            rows.append([Cell(same.name), document.code(point), *cells])

        attainable: list[float] = []  # of each type, if the runs agree
        for name in types:
            own = [part.bayes_auc for p in typed for part in parts[p] if part.name == name]
            values = {round(auc, 12) for auc in own if auc is not None}
            attainable += values if len(values) == 1 else []
        if len(attainable) == len(types):
            cells = [document.number(auc, DIGITS) for auc in attainable]
            rows.append([Cell(same.name), Cell("attainable"), *cells])

    series = []
    for point in shown:
        spreads = [comparison.Spread(comparison.spread(aucs(point, t)).mean) for t in types]
        series.append(plots.Series.of(point, (), spreads))
    title, unit = f"{v.split.capitalize()} AUC by type, mean over seeds", "AUC, the type given"
    text = (
        "AUC within the rows of each type, the type given; of points that have predictors by type."
    )
    chart = plots.dots(title, types, series, unit=unit)
    return [Text(text), Table(["data", "point", *types], rows).compact(), Charts([chart])]


def auxiliary(v: View) -> list[Block]:
    """How well the type is guessed, and what a perfect guess would bring."""
    rows = []
    for same, point in v.placed():
        reports = [run.splits[v.split] for run in v.sweep.done(point)]
        found = [(report, report.am) for report in reports if report.am]
        if not found:
            continue
        guesses = [am for _, am in found]
        cells = []
        for key in _GUESSED:
            values = np.array([getattr(am, key) for am in guesses])
            cells.append(document.mean_sd(comparison.spread(values), DIGITS))
        true = np.array([am.bayes_logloss for am in guesses], np.float64)  # NaN if one is unknown
        cells.append(document.number(float(np.mean(true)), DIGITS))

        pairs = [(report.true_am.auc, report.auc) for report, _ in found if report.true_am]
        gains = [ours - auc for ours, auc in pairs if ours is not None and auc is not None]
        gain = comparison.spread(np.array(gains))
        cells += [document.mean_sd(gain, DIGITS, sign=True), document.ends(gain.interval, DIGITS)]
        rows.append([Cell(same.name), document.code(point), *cells])
    if not rows:
        return []

    gained = ("of the true p(t|x)", "AUC gained by it", "95% interval")
    text = (
        "How well the auxiliary model guesses the type, and what the AUC would gain if it knew the "
        "true p(t|x)."
    )
    return [Text(text), Table(["data", "point", *_GUESSED.values(), *gained], rows).compact()]


def cost(v: View) -> list[Block]:
    """What parameters, speed and memory buy, on the data of the reference and others."""
    if not v.known:
        return []
    charts = []

    for same in v.data:
        if same is not v.data[0] and len(same.points) < FEWEST:
            continue
        of = f" ({same.name})" if same.name else ""
        for key, (short, label) in _COSTS.items():
            means = [v.mean(point, key) for point in same.points]
            x = [mean if math.isfinite(mean) else None for mean in means]
            known = [value for value in x if value]
            if len(set(known)) < 2:
                continue
            points = plots.Series.of("", x, [v.spread(point) for point in same.points])
            if len(same.points) > _MOST_ROWS:  # intervals of many points hide each other
                points = points._replace(intervals=())
            title, y = f"{v.measured} against {short}{of}", f"{v.split} {v.name}"
            log = lines_lib.is_wide(known, _CLUMPED)
            charts.append(plots.scatter(title, same.points, points, x=label, y=y, log_x=log))
    return [Charts(charts)] if charts else []


def learning(v: View) -> list[Block]:
    """Figures against the training step."""
    named, others = _chosen(v)

    def series(make: Callable, key: str) -> list[plots.Series]:
        return curves.gather(lambda runs, name: make(runs, name, key), named, others)

    charts = []
    for key, unit in (("auc", "AUC"), ("logloss", "logloss (nats)")):
        title = f"Validation {view_lib.NAMES[key]} during training"
        charts += curves.learning_chart(title, series(curves.validation, key), unit, 12)
    title = "Training logloss of the last steps"
    charts += curves.learning_chart(title, series(curves.training, "logloss"), "logloss (nats)", 0)
    if not charts:
        return []

    more = ""
    if others:
        some = f"{curves.BEHIND} of the {len(others)} others"
        which = some if len(others) > curves.BEHIND else f"the {len(others)} others"
        more = f" The best points and the reference have names; {which} are grey."
    return [Charts(charts, f"Means over seeds.{_of_data(v)}{more}")]


def reliability(v: View) -> list[Block]:
    """Click rates against predictions: of the best points, and of each data's reference."""

    def series(named: Sequence[tuple[str, curves.Runs]]) -> list[plots.Series]:
        return curves.gather(lambda runs, name: curves.reliability(runs, name, v.split), named)

    named, others = _chosen(v)
    first = series(named)
    if not first:
        return []
    above = " of the points named above" if others else ""
    text = (
        f"Tenths of the rows by prediction, means over seeds{above}. "
        "On the dashed line predictions and rates agree."
    )
    charts = curves.reliability_charts(f"Reliability on the {v.split} split", first)
    blocks: list[Block] = [Charts(charts, text + _of_data(v))]

    data = v.data[: axes.NUM_STYLES]
    partners = series([(same.name, v.sweep.done(same.partner)) for same in data])
    if len(partners) > 1:
        other = "and on other data the point that stands for it"
        charts = curves.reliability_charts("Reliability on other data", partners)
        blocks.append(Charts(charts, f"The reference `{v.sweep.reference}`, {other}."))
    return blocks


def _chosen(v: View) -> tuple[list[tuple[str, curves.Runs]], list[curves.Runs]]:
    """(name, runs) of the reference and the best points of the first data, and runs of the rest."""
    first = v.data[0]
    points = list(dict.fromkeys((first.points[0], first.partner, *first.points)))
    named, others = points[: axes.NUM_STYLES], points[axes.NUM_STYLES :]
    return [(p, v.sweep.done(p)) for p in named], [v.sweep.done(p) for p in others]


def _of_data(v: View) -> str:
    return f" Of the data of `{v.data[0].partner}`." if len(v.data) > 1 else ""
