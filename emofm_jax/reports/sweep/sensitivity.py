"""The sections of a sweep's report on what a number does, and on what other data do."""

import math

import numpy as np

from emofm_jax.reports import axes, document, plots
from emofm_jax.reports.document import Cell
from emofm_jax.reports.sweep import findings, same_data
from emofm_jax.reports.sweep import lines as lines_lib
from emofm_jax.reports.sweep import view as view_lib
from emofm_jax.reports.sweep.view import View

DIGITS = 5  # of an AUC or a logloss
_SHARE = "share of the attainable lift"
_COSTS = {"rows_per_s": "rows/s in training", "memory": "peak memory (MiB)"}
_MOVED = 1.2  # factor over the range from which a cost counts as following the number


def sensitivity(v: View) -> list:
    """A chart per number that the sweep varies, and a table of slopes."""
    charts, rows, notes = [], [], []
    home = {v.sweep.points[i]: n for n, group in enumerate(v.groups) for i in group.order}
    for field, lines in lines_lib.lines(v.sweep).items():
        lines, without_zero = lines_lib.without_sentinel(lines)
        if without_zero:
            notes.append(
                f"`{field}` = 0 is left out: it usually switches something off, and is no small value of it."
            )
        log = lines_lib.is_wide([x for line in lines for x in line.x])
        one_data = len({home.get(point) for line in lines for point in line.points}) == 1
        name = (
            v.metric if one_data else "share"
        )  # where the data differ, what is attainable differs too
        label = f"{v.split} {view_lib.NAMES[name]}" if one_data else _SHARE
        known = False
        for key, what in {name: label, **_COSTS}.items():
            series, cells = [], []
            for line in lines:
                found = _series(v, line, key, what)
                if found is None:
                    continue
                one, values = found
                fit = lines_lib.slope(one.x, np.log10(values) if key in _COSTS else values, log)
                if key in _COSTS and not _follows(one.x, fit, log):
                    continue
                series.append(one)
                cells.append(_slope_row(line, what, one.x, fit, key in _COSTS, log))
            known |= key == name and bool(series)
            rows += cells
            if series:
                title = f"{what[0].upper()}{what[1:]} against {field}"
                charts.append(
                    plots.lines(title, series[: axes.NUM_STYLES], x=field, y=what, log_x=log)
                )
        if not known and not one_data:
            notes.append(
                f"`{field}` changes the data, whose truth is not known: no {view_lib.NAMES[v.metric]} is fitted."
            )
    if not rows:
        return [document.Text(" ".join(notes))] if notes else []
    heads = ["field", "with", "of", "range", "points", "slope", "95% interval", "per"]
    text = (
        "Points that differ from each other in one number only. The slope is a least-squares fit for each seed, with a "
        "t interval over the seeds; where the values span more than a factor of five it is per factor of ten, and the "
        "axis is logarithmic. Costs are shown where they follow the number."
    )
    return [
        document.Text(" ".join([text, *notes])),
        document.compact(document.Table(heads, rows)),
        document.Charts(charts),
    ]


def across(v: View) -> list:
    """Share of the attainable lift of points that differ in nothing but the data: a row per data."""
    if len(v.groups) < 2 or not np.isfinite(v.figures["share"]).any():
        return []
    columns = same_data.across(v.sweep, v.groups)
    if not columns:
        return []
    place = v.sweep.points.index
    found = {
        name: [None if p is None else findings.spread(v.figures["share"][place(p)]) for p in points]
        for name, points in columns.items()
    }
    at = [n for n in range(len(v.groups)) if any(points[n] for points in columns.values())]
    rows = []
    for n in at:
        bayes = [v.mean("bayes", i) for i in v.groups[n].order]
        cells = [document.mean_sd(*(s[n] or (math.nan, math.nan))[:2], 4) for s in found.values()]
        rows.append([Cell(v.groups[n].name), document.number(bayes[0], DIGITS), *cells])
    series = []
    for name, values in list(found.items())[: axes.NUM_STYLES]:
        parts = [[None if s is None or s[0] != s[0] else s[0] for s in (values[n] for n in at)]]
        ends = [None if s is None else s[2] for s in (values[n] for n in at)]
        parts += [[None if e is None else float(e[k]) for e in ends] for k in (1, 2)]
        series.append(plots.Series(name, (), *parts))
    text = (
        "(AUC - 0.5) / (AUC of the truth - 0.5) of points that differ in nothing but their data: AUCs on other test "
        "rows cannot be compared, nor tested row by row; the share can be set side by side. It has no verdict."
    )
    chart = plots.dots(
        "Share of the attainable lift", [v.groups[n].name for n in at], series, unit=_SHARE
    )
    return [
        document.Text(text),
        document.compact(document.Table(["data", "attainable AUC", *columns], rows)),
        document.Charts([chart]),
    ]


def _series(v: View, line: lines_lib.Line, key: str, what: str):
    """A line of a figure and its matrix f64[points, seeds]; None with fewer than three points."""
    values = v.figures[key][[v.sweep.points.index(point) for point in line.points]]
    found = [findings.spread(row) for row in values]
    known = [i for i, s in enumerate(found) if math.isfinite(s[0])]
    if len(known) < lines_lib.LEAST:
        return None
    ends = [[None if found[i][2] is None else float(found[i][2][k]) for i in known] for k in (1, 2)]
    x = [line.x[i] for i in known]
    return plots.Series(line.name or what, x, [found[i][0] for i in known], *ends), values[known]


def _follows(x: list[float], fit: tuple, log: bool) -> bool:
    """Whether a cost moves with the number: by enough over its range, and more than the seeds do."""
    slope, interval = fit
    span = math.log10(max(x) / min(x)) if log else max(x) - min(x)
    return abs(slope) * span >= math.log10(_MOVED) and (
        interval is None or interval.low * interval.high > 0
    )


def _slope_row(
    line: lines_lib.Line, what: str, x: list[float], fit: tuple, as_factor: bool, log: bool
) -> list:
    """Slope per factor of ten of x, or per unit; a cost is multiplied, anything else added to."""
    slope, interval = fit
    if as_factor:
        cells = [Cell(f"x {10**slope:.3f}", slope), Cell("-")]
        if interval is not None:
            cells[1] = Cell(f"x {10**interval.low:.3f} to {10**interval.high:.3f}", interval.low)
    else:
        cells = [document.number(slope, DIGITS, sign=True), document.ends(interval, DIGITS)]
    span = Cell(f"{axes.number(min(x))} to {axes.number(max(x))}")
    per = "per factor of ten" if log else "per unit"
    return [
        Cell(f"`{line.field}`"),
        Cell(line.name),
        Cell(what),
        span,
        Cell(str(len(x)), len(x)),
        *cells,
        Cell(per),
    ]
