"""The sections of a sweep's report on what a number does, and on what other data do."""

import math
from typing import NamedTuple

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import axes, document, plots
from emofm_jax.reports.document import Block, Cell, Charts, Table, Text
from emofm_jax.reports.sweep import lines as lines_lib
from emofm_jax.reports.sweep import same_data
from emofm_jax.reports.sweep.view import DIGITS, View

_SHARE = "share of the attainable lift"
_COSTS = {"rows_per_s": "rows/s in training", "memory": "peak memory (MiB)"}
_MOVED = 1.2  # factor over the range from which a cost counts as following the number
_HEADS = ("field", "with", "of", "range", "points", "slope", "95% interval", "per")
_HOW = (
    "Points that differ from each other in one number only. The slope is a least-squares fit for "
    "each seed, with a t interval over the seeds; where the values span more than a factor of five "
    "it is per factor of ten, and the axis is logarithmic. Costs are shown where they follow the "
    "number."
)
_ACROSS = (
    "(AUC - 0.5) / (AUC of the truth - 0.5) of points that differ in nothing but their data: AUCs "
    "on other test rows cannot be compared, nor tested row by row; the share can be set side by "
    "side. It has no verdict."
)


class _Fit(NamedTuple):
    """A line of points, and the slope of a figure along it.

    Attributes:
      line: those of its points that have the figure.
      what: the figure, in words.
      series: for the chart.
      slope, interval: per factor of ten if `log`, else per unit.
      log: whether the values of x are factors.
      factor: whether the slope is of log10 of the figure.
    """

    line: lines_lib.Line
    what: str
    series: plots.Series
    slope: float
    interval: comparison.Interval | None
    log: bool
    factor: bool

    def follows(self) -> bool:
        """Whether a cost moves with the number: by enough, and more than with the seeds."""
        low, high = min(self.line.x), max(self.line.x)
        span = math.log10(high / low) if self.log else high - low
        clear = self.interval is None or self.interval.low * self.interval.high > 0
        return abs(self.slope) * span >= math.log10(_MOVED) and clear

    def row(self) -> list[Cell]:
        """Cells under `_HEADS`; a cost is multiplied, anything else added to."""
        slope, interval, x = self.slope, self.interval, self.line.x
        cells = [document.number(slope, DIGITS, sign=True), document.ends(interval, DIGITS)]
        if self.factor:
            cells = [Cell(f"x {10**slope:.3f}", slope), Cell("-")]
            if interval is not None:
                between = f"x {10**interval.low:.3f} to {10**interval.high:.3f}"
                cells[1] = Cell(between, interval.low)

        span = Cell(f"{axes.number(min(x))} to {axes.number(max(x))}")
        named = [document.code(self.line.field), Cell(self.line.name), Cell(self.what)]
        per = Cell("per factor of ten" if self.log else "per unit")
        return [*named, span, Cell(str(len(x)), len(x)), *cells, per]


def sensitivity(v: View) -> list[Block]:
    """A chart per number that the sweep varies, and a table of slopes."""
    charts, rows, notes = [], [], []
    home = {point: n for n, same in enumerate(v.data) for point in same.points}
    for field, lines in lines_lib.lines(v.sweep).items():
        lines, without_zero = lines_lib.without_sentinel(lines)
        if without_zero:
            off = "it usually switches something off, and is no small value of it"
            notes.append(f"`{field}` = 0 is left out: {off}.")

        # Where the data differ, what is attainable differs too.
        one_data = len({home.get(point) for line in lines for point in line.points}) == 1
        figure = v.metric if one_data else "share"
        label = f"{v.split} {v.name}" if one_data else _SHARE
        log = lines_lib.is_wide([x for line in lines for x in line.x])
        fitted = {}
        for key, what in {figure: label, **_COSTS}.items():
            fits = [_fit(v, line, key, what, log) for line in lines]
            fitted[key] = [fit for fit in fits if fit and (key == figure or fit.follows())]
            rows += [fit.row() for fit in fitted[key]]
            if series := [fit.series for fit in fitted[key][: axes.NUM_STYLES]]:
                title = f"{what[0].upper()}{what[1:]} against {field}"
                charts.append(plots.lines(title, series, x=field, y=what, log_x=log))

        if not fitted[figure] and not one_data:
            why = f"changes the data, whose truth is not known: no {v.name} is fitted"
            notes.append(f"`{field}` {why}.")
    if not rows:
        return [Text(" ".join(notes))] if notes else []
    return [Text(" ".join([_HOW, *notes])), Table(_HEADS, rows).compact(), Charts(charts)]


def across(v: View) -> list[Block]:
    """Share of the attainable lift of points that differ in nothing but the data, data by data."""
    if len(v.data) < 2 or not v.has("share"):
        return []
    columns = same_data.across(v.sweep, v.data)
    if not columns:
        return []
    spreads = {}
    for name, points in columns.items():
        spreads[name] = [v.spread(p, "share") if p else comparison.Spread() for p in points]

    shown = [n for n in range(len(v.data)) if any(points[n] for points in columns.values())]
    names, rows = [v.data[n].name for n in shown], []
    for n in shown:
        bayes = document.number(v.mean(v.data[n].points[0], "bayes_auc"), DIGITS)
        shares = [document.mean_sd(of_data[n], 4) for of_data in spreads.values()]
        rows.append([Cell(v.data[n].name), bayes, *shares])

    series = [plots.Series.of(name, (), [of[n] for n in shown]) for name, of in spreads.items()]
    chart = plots.dots(_SHARE.capitalize(), names, series[: axes.NUM_STYLES], unit=_SHARE)
    heads = ["data", "attainable AUC", *columns]
    return [Text(_ACROSS), Table(heads, rows).compact(), Charts([chart])]


def _fit(v: View, line: lines_lib.Line, key: str, what: str, log: bool) -> _Fit | None:
    """The slope of a figure along a line; None with fewer than three points."""
    known = [pair for pair in zip(line.points, line.x) if math.isfinite(v.mean(pair[0], key))]
    if len(known) < lines_lib.LEAST:
        return None
    line = line._replace(points=[point for point, _ in known], x=[x for _, x in known])
    spreads = [v.spread(point, key) for point in line.points]
    series = plots.Series.of(line.name or what, line.x, spreads)
    values = np.stack([v.figures[key][point] for point in line.points])

    factor = key in _COSTS
    x, y = np.log10(line.x) if log else line.x, np.log10(values) if factor else values
    return _Fit(line, what, series, *comparison.slope(x, y), log, factor)
