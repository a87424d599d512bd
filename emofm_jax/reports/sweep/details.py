"""The sections of a sweep's report behind its results: types, auxiliary model, cost, learning curves, calibration."""

import math

import numpy as np

from emofm_jax.reports import axes, curves, document, plots
from emofm_jax.reports.document import Cell
from emofm_jax.reports.sweep import findings
from emofm_jax.reports.sweep import lines as lines_lib
from emofm_jax.reports.sweep import view as view_lib
from emofm_jax.reports.sweep.same_data import Group
from emofm_jax.reports.sweep.sensitivity import DIGITS
from emofm_jax.reports.sweep.view import View

_MOST_ROWS = 40  # of a chart with a row per point
_CROWD = 4  # the fewest points for which others are left out of a chart
_SPOT = 5  # times the width of the crowd, in which it would shrink to a spot
_CLUMPED = (
    3  # a larger ratio of costs asks for a logarithmic axis: most points stand at its small end
)
_FEWEST = 4  # points of a group that get a chart of their own


def drawn(v: View, group: Group) -> list[int]:
    """The points of a group that a chart with a row per point shows, the best first.

    Without those behind a gap so wide that the others, with their intervals, would shrink to a spot.
    """
    found = [findings.spread(v.figures[v.metric][i]) for i in group.order]
    ends = [(mean, mean) if interval is None else interval[1:3] for mean, _, interval in found]
    width = lambda n: max(high for _, high in ends[:n]) - min(low for low, _ in ends[:n])
    for n in range(_CROWD, len(ends)):
        if abs(found[n][0] - found[n - 1][0]) > width(n) and width(len(ends)) > _SPOT * width(n):
            return group.order[: min(n, _MOST_ROWS)]
    return group.order[:_MOST_ROWS]


def by_type(v: View) -> list:
    """AUC within the rows of each type, the type given to the model."""
    parts = {
        i: [run.metrics[v.split].get("types") or [] for run in v.sweep.done(v.sweep.points[i])]
        for _, i in v.placed()
    }
    types = list(
        dict.fromkeys(part["name"] for runs in parts.values() for run in runs for part in run)
    )
    if not types:
        return []

    def of(i: int, name: str, value=lambda part: part["auc"]) -> np.ndarray:
        found = (value(part) for run in parts[i] for part in run if part["name"] == name)
        return np.array([x for x in found if x is not None], float)

    rows, shown = [], []
    for group in v.groups:
        typed = [i for i in group.order if any(parts[i])]
        shown = shown or typed[: axes.NUM_STYLES]
        data = Cell(group.name)
        rows += [
            [data, Cell(f"`{v.sweep.points[i]}`"), *(_mean_sd(of(i, name)) for name in types)]
            for i in typed
        ]
        bayes = [
            {
                round(float(x), 12)
                for i in typed
                for x in of(i, name, lambda part: (part.get("bayes") or {}).get("auc"))
            }
            for name in types
        ]
        if typed and all(len(found) == 1 for found in bayes):
            rows.append(
                [
                    data,
                    Cell("attainable"),
                    *(document.number(min(found), DIGITS) for found in bayes),
                ]
            )
    text = (
        "AUC within the rows of each type, the type given; of points that have predictors by type."
    )
    series = [
        plots.Series(
            v.sweep.points[i],
            (),
            [float(x.mean()) if len(x := of(i, name)) else None for name in types],
        )
        for i in shown
    ]
    chart = plots.dots(
        f"{v.split.capitalize()} AUC by type, mean over seeds",
        types,
        series,
        unit="AUC, the type given",
    )
    return [
        document.Text(text),
        document.compact(document.Table(["data", "point", *types], rows)),
        document.Charts([chart]),
    ]


def auxiliary(v: View) -> list:
    """How well the type is guessed, and what a perfect guess would bring."""
    rows = []
    for group, i in v.placed():
        found = [
            run.metrics[v.split]
            for run in v.sweep.done(v.sweep.points[i])
            if run.metrics[v.split].get("am")
        ]
        if not found:
            continue
        gain = [
            f["true_am"]["auc"] - f["auc"]
            for f in found
            if f.get("true_am") and f["auc"] is not None
        ]
        gain = findings.spread(np.array(gain))
        cells = [
            _mean_sd(np.array([f["am"][key] for f in found]))
            for key in ("accuracy", "majority", "logloss")
        ]
        true = [f["am"].get("bayes_logloss") for f in found]
        cells.append(document.number(None if None in true else float(np.mean(true)), DIGITS))
        cells += [document.mean_sd(*gain[:2], DIGITS, sign=True), document.ends(gain[2], DIGITS)]
        rows.append([Cell(group.name), Cell(f"`{v.sweep.points[i]}`"), *cells])
    if not rows:
        return []
    heads = [
        "data",
        "point",
        "accuracy",
        "majority type",
        "logloss (nats)",
        "of the true p(t|x)",
        "AUC gained by it",
        "95% interval",
    ]
    text = "How well the auxiliary model guesses the type, and what the AUC would gain if it knew the true p(t|x)."
    return [document.Text(text), document.compact(document.Table(heads, rows))]


def cost(v: View) -> list:
    """What parameters, speed and memory buy: of each group of some size, and of that of the reference."""
    name, charts = view_lib.NAMES[v.metric], []
    costs = {
        "parameters": ("parameters", "parameters (table and network)"),
        "rows_per_s": ("rows/s", "training speed (rows/s)"),
        "memory": ("peak memory", "peak memory of the process (MiB)"),
    }
    if not v.known:
        return []
    for n, group in enumerate(v.groups):
        if n and len(group.order) < _FEWEST:
            continue
        y = [v.mean(v.metric, i) for i in group.order]
        ends = [findings.spread(v.figures[v.metric][i])[2] for i in group.order]
        low, high = ([None if e is None else float(e[k]) for e in ends] for k in (1, 2))
        few = len(group.order) <= _MOST_ROWS  # intervals of many points hide each other
        for key, (short, label) in costs.items():
            x = [value if math.isfinite(value := v.mean(key, i)) else None for i in group.order]
            known = [value for value in x if value]
            if len(set(known)) < 2:
                continue
            points = plots.Series("", x, y, *((low, high) if few else ()))
            of = f" ({group.name})" if group.name else ""
            charts.append(
                plots.scatter(
                    f"{v.split.capitalize()} {name} against {short}{of}",
                    v.names(group),
                    points,
                    x=label,
                    y=f"{v.split} {name}",
                    log_x=lines_lib.is_wide(known, _CLUMPED),
                )
            )
    return [document.Charts(charts)] if charts else []


def _chosen(v: View) -> tuple[list, list]:
    """On the first data, the reference and the best points by name, the rest without: (name, runs) and runs."""
    names = v.names(v.groups[0])
    named = list(dict.fromkeys((names[0], v.groups[0].partner, *names)))
    split = axes.NUM_STYLES
    return [(p, v.sweep.done(p)) for p in named[:split]], [v.sweep.done(p) for p in named[split:]]


def _of_data(v: View) -> str:
    return f" Of the data of `{v.groups[0].partner}`." if len(v.groups) > 1 else ""


def learning(v: View) -> list:
    named, others = _chosen(v)
    charts = []
    for key, unit in (("auc", "AUC"), ("logloss", "logloss (nats)")):
        series = curves.gather(
            lambda runs, name, key=key: curves.validation(runs, name, key), named, others
        )
        if series and max(len(s.x) for s in series) > 1:
            title = f"Validation {view_lib.NAMES[key]} during training"
            charts.append(
                plots.lines(
                    title,
                    series,
                    x="training steps",
                    y=unit,
                    marks=max(len(s.x) for s in series) < 12,
                )
            )
    series = curves.gather(lambda runs, name: curves.training(runs, name, "logloss"), named, others)
    if series and max(len(s.x) for s in series) > 1:
        title = "Training logloss of the last steps"
        charts.append(
            plots.lines(title, series, x="training steps", y="logloss (nats)", marks=False)
        )
    if not charts:
        return []
    more, grey = "", min(len(others), curves.BEHIND)
    if others:
        which = (
            f"the {grey} others" if grey == len(others) else f"{grey} of the {len(others)} others"
        )
        more = f" The best points and the reference have names; {which} are grey."
    return [document.Text(f"Means over seeds.{_of_data(v)}{more}"), document.Charts(charts)]


def calibration(v: View) -> list:
    named, others = _chosen(v)
    series = curves.gather(lambda runs, name: curves.calibration(runs, name, v.split), named, [])
    if not series:
        return []
    title = f"Calibration on the {v.split} split"
    more = " of the points named above" if others else ""
    text = f"Tenths of the rows by prediction, means over seeds{more}. On the dashed line predictions and rates agree."
    blocks = [
        document.Text(text + _of_data(v)),
        document.Charts([plots.calibration(title, series), curves.ratio_chart(series)]),
    ]
    partners = [(group.name, v.sweep.done(group.partner)) for group in v.groups[: axes.NUM_STYLES]]
    series = curves.gather(lambda runs, name: curves.calibration(runs, name, v.split), partners, [])
    if len(series) > 1:
        text = (
            f"The reference `{v.sweep.reference}`, and on other data the point that stands for it."
        )
        charts = [
            plots.calibration("Calibration on other data", series),
            curves.ratio_chart(series),
        ]
        blocks += [document.Text(text), document.Charts(charts)]
    return blocks


def _mean_sd(values: np.ndarray) -> Cell:
    return document.mean_sd(*findings.spread(values)[:2], DIGITS)
