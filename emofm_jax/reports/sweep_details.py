"""The sections of a sweep's report behind its results: sensitivity, types, cost, learning curves, calibration."""

import math

import numpy as np

from emofm_jax import axes, plots
from emofm_jax.reports import curves, findings, page, sweep_view
from emofm_jax.reports import sensitivity as sensitivity_lib
from emofm_jax.reports.page import Cell
from emofm_jax.reports.sweep_view import View

DIGITS = 5  # of an AUC or a logloss
MOST_ROWS = 40  # of a chart with a row per point
_WIDE = 20  # a larger ratio of values asks for a logarithmic axis


def sensitivity(v: View) -> list:
    """A chart per number that the sweep varies, and a table of slopes."""
    charts, rows = [], []
    truth = findings.matrix(v.sweep, lambda m: (m[v.split].get("bayes") or {}).get("auc"))
    # Where the points have other data, what is attainable differs too: its share is what can be compared.
    name = "share" if np.isfinite(truth).any() and np.nanstd(truth) > 1e-9 else v.metric
    label = {"share": "share of the attainable lift"}.get(name) or f"{v.split} {sweep_view.NAMES[name]}"
    for field, lines in sensitivity_lib.lines(v.sweep).items():
        for key, what in ((name, label), ("rows_per_s", "rows/s in training")):
            series = []
            for line in lines[: axes.NUM_STYLES]:
                values = v.figures[key][[v.sweep.points.index(point) for point in line.points]]
                found = [findings.spread(row) for row in values]
                known = [i for i, s in enumerate(found) if math.isfinite(s[0])]
                if len(known) < 3:
                    continue
                x = [line.x[i] for i in known]
                ends = [[None if found[i][2] is None else float(found[i][2][k]) for i in known] for k in (1, 2)]
                series.append(plots.Series(line.name or what, x, [found[i][0] for i in known], *ends))
                rows.append(_slope_row(line, what, x, values[known], as_factor=key == "rows_per_s" and min(x) > 0))
            if series:
                every = [value for one in series for value in one.x]
                wide = min(every) > 0 and max(every) / min(every) > _WIDE
                title = f"{what[0].upper()}{what[1:]} against {field}"
                charts.append(plots.lines(title, series, x=field, y=what, log_x=wide))
    if not rows:
        return []
    heads = ["field", "with", "of", "range", "points", "slope", "95% interval", "per"]
    text = (
        "Points that differ from each other in one number only. The slope is a least-squares fit for each seed, with a "
        "t interval over the seeds."
    )
    return [page.Text(text), page.compact(page.Table(heads, rows)), page.Charts(charts)]


def _slope_row(
    line: sensitivity_lib.Line, what: str, x: list[float], values: np.ndarray, as_factor: bool
) -> list[Cell]:
    """Slope per factor of ten of x, or per unit where x reaches 0; a cost is multiplied, anything else added to."""
    log = min(x) > 0
    slope, interval = sensitivity_lib.slope(x, np.log10(values) if as_factor else values, log)
    if as_factor:
        cells = [Cell(f"x {10**slope:.3f}", slope), Cell("-")]
        if interval is not None:
            cells[1] = Cell(f"x {10**interval.low:.3f} to {10**interval.high:.3f}", interval.low)
    else:
        cells = [page.number(slope, DIGITS, sign=True), page.ends(interval, DIGITS)]
    span = Cell(f"{axes.number(min(x))} to {axes.number(max(x))}")
    per = "per factor of ten" if log else "per unit"
    return [Cell(f"`{line.field}`"), Cell(line.name), Cell(what), span, Cell(str(len(x)), len(x)), *cells, Cell(per)]


def by_type(v: View) -> list:
    """AUC within the rows of each type, the type given to the model."""
    parts = {i: [run.metrics[v.split].get("types") or [] for run in v.sweep.done(v.sweep.points[i])] for i in v.order}
    types = list(dict.fromkeys(part["name"] for runs in parts.values() for run in runs for part in run))
    typed = [i for i in v.order if any(parts[i])]
    if not types:
        return []

    def of(i: int, name: str, value=lambda part: part["auc"]) -> np.ndarray:
        found = (value(part) for run in parts[i] for part in run if part["name"] == name)
        return np.array([x for x in found if x is not None], float)

    rows = [[Cell(f"`{v.sweep.points[i]}`"), *(_mean_sd(of(i, name)) for name in types)] for i in typed]
    bayes = [
        {round(float(x), 12) for i in typed for x in of(i, name, lambda part: (part.get("bayes") or {}).get("auc"))}
        for name in types
    ]
    if all(len(found) == 1 for found in bayes):
        rows.append([Cell("attainable"), *(page.number(min(found), DIGITS) for found in bayes)])
    text = "AUC within the rows of each type, the type given; of points that have predictors by type."
    shown = typed[: axes.NUM_STYLES]
    series = [
        plots.Series(v.sweep.points[i], (), [float(x.mean()) if len(x := of(i, name)) else None for name in types])
        for i in shown
    ]
    chart = plots.dots(
        f"{v.split.capitalize()} AUC by type, mean over seeds", types, series, unit="AUC, the type given"
    )
    return [page.Text(text), page.Table(["point", *types], rows), page.Charts([chart])]


def auxiliary(v: View) -> list:
    """How well the type is guessed, and what a perfect guess would bring."""
    rows = []
    for i in v.order:
        found = [run.metrics[v.split] for run in v.sweep.done(v.sweep.points[i]) if run.metrics[v.split].get("am")]
        if not found:
            continue
        gain = [f["true_am"]["auc"] - f["auc"] for f in found if f.get("true_am") and f["auc"] is not None]
        gain = findings.spread(np.array(gain))
        cells = [_mean_sd(np.array([f["am"][key] for f in found])) for key in ("accuracy", "majority", "logloss")]
        true = [f["am"].get("bayes_logloss") for f in found]
        cells.append(page.number(None if None in true else float(np.mean(true)), DIGITS))
        cells += [page.mean_sd(*gain[:2], DIGITS, sign=True), page.ends(gain[2], DIGITS)]
        rows.append([Cell(f"`{v.sweep.points[i]}`"), *cells])
    if not rows:
        return []
    heads = [
        "point",
        "accuracy",
        "majority type",
        "logloss (nats)",
        "of the true p(t|x)",
        "AUC gained by it",
        "95% interval",
    ]
    text = "How well the auxiliary model guesses the type, and what the AUC would gain if it knew the true p(t|x)."
    return [page.Text(text), page.compact(page.Table(heads, rows))]


def cost(v: View) -> list:
    name, charts = sweep_view.NAMES[v.metric], []
    if not v.compared:  # the metric has no value
        return []
    y = [v.mean(v.metric, i) for i in v.order]
    ends = [findings.spread(v.figures[v.metric][i])[2] for i in v.order]
    low, high = ([None if e is None else float(e[k]) for e in ends] for k in (1, 2))
    few = len(v.order) <= MOST_ROWS  # intervals of many points hide each other
    for key, label in (("parameters", "parameters (table and network)"), ("rows_per_s", "training speed (rows/s)")):
        x = [value if math.isfinite(value := v.mean(key, i)) else None for i in v.order]
        if len({value for value in x if value}) < 2:
            continue
        known = [value for value in x if value]
        points = plots.Series("", x, y, *((low, high) if few else ()))
        title = f"{v.split.capitalize()} {name} against {key.replace('rows_per_s', 'rows/s')}"
        wide = max(known) / min(known) > _WIDE
        charts.append(plots.scatter(title, v.names(), points, x=label, y=f"{v.split} {name}", log_x=wide))
    return [page.Charts(charts)] if charts else []


def _chosen(v: View) -> tuple[list, list]:
    """The reference and the best points by name, the rest without: (name, runs) and runs."""
    named = list(dict.fromkeys(p for p in (v.best(), v.sweep.reference, *v.names()) if v.sweep.done(p)))
    split = axes.NUM_STYLES
    return [(p, v.sweep.done(p)) for p in named[:split]], [v.sweep.done(p) for p in named[split:]]


def learning(v: View) -> list:
    named, others = _chosen(v)
    charts = []
    for key, unit in (("auc", "AUC"), ("logloss", "logloss (nats)")):
        series = curves.gather(lambda runs, name, key=key: curves.validation(runs, name, key), named, others)
        if series and max(len(s.x) for s in series) > 1:
            title = f"Validation {sweep_view.NAMES[key]} during training"
            charts.append(
                plots.lines(title, series, x="training steps", y=unit, marks=max(len(s.x) for s in series) < 12)
            )
    if series := curves.gather(lambda runs, name: curves.training(runs, name, "logloss"), named, others):
        title = "Training logloss of the last steps"
        charts.append(plots.lines(title, series, x="training steps", y="logloss (nats)", marks=False))
    if not charts:
        return []
    more, grey = "", min(len(others), curves.BEHIND)
    if others:
        which = f"the {grey} others" if grey == len(others) else f"{grey} of the {len(others)} others"
        more = f" The best points and the reference have names; {which} are grey."
    return [page.Text(f"Means over seeds.{more}"), page.Charts(charts)]


def calibration(v: View) -> list:
    named, others = _chosen(v)
    series = curves.gather(lambda runs, name: curves.calibration(runs, name, v.split), named, [])
    if not series:
        return []
    title = f"Calibration on the {v.split} split"
    more = " of the points named above" if others else ""
    text = f"Tenths of the rows by prediction, means over seeds{more}. On the dashed line predictions and rates agree."
    return [page.Text(text), page.Charts([plots.calibration(title, series), curves.ratio_chart(series)])]


def _mean_sd(values: np.ndarray) -> Cell:
    return page.mean_sd(*findings.spread(values)[:2], DIGITS)
