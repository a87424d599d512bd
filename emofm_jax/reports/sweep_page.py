"""The sections of a sweep's report (page.py): tables and charts of a `sweep_view.View`."""

import numpy as np

from emofm_jax import comparison, plots
from emofm_jax.reports import findings, page, sweep_details, sweep_view
from emofm_jax.reports.page import Cell
from emofm_jax.reports.sweep_details import DIGITS, MOST_ROWS
from emofm_jax.reports.sweep_view import View

_HOW = (
    "**mean +/- sd** is over seeds; the **95% interval** of a mean is Student's t over the same seeds.",
    "**over seeds**: t interval of the paired differences, seed by seed: what other seeds would give on these rows.",
    "**over rows**: what other test rows would give these very models. AUC: DeLong's interval of the mean of the "
    "seeds' AUCs; logloss: of the mean paired difference. Rows count as independent, so where one user has many rows "
    "the interval is too narrow. Sample weights are not read.",
    "**together**: both at once, other seeds and other rows. The verdict comes from this one where there are two "
    "seeds or more, else from the rows alone.",
    "**not distinguishable** means that the interval holds 0: the difference may be either way, or none.",
    "**the best** was chosen for its result, which flatters it: of points that are alike the luckiest comes first.",
    "**share of lift**: (AUC - 0.5) / (AUC of the true probabilities - 0.5), for made-up data whose truth is known.",
    "**PCOC**: predicted clicks over clicks; 1 is calibrated. **logloss** in nats.",
)


def sections(v: View) -> list[page.Section]:
    """Of the whole report."""
    sweep = v.sweep
    total, state = len(sweep.points) * len(sweep.seeds), []
    if len(sweep.runs) < total:
        text = f"**Unfinished: {len(sweep.runs)} of {total} runs are in.** What follows is of these."
        state.append(page.Text(text, loud=True))
    if failed := sweep.failed():
        text = f"{len(failed)} of {len(sweep.runs)} runs failed; their errors stand below."
        state.append(page.Text(text, loud=True))
    if sweep.left_out:
        text = f"{sweep.left_out} lines of results.jsonl are left out: sweep.json no longer has their points or seeds."
        state.append(page.Text(text))
    errors = [[Cell(f"`{run.point}`"), Cell(str(run.seed), run.seed), Cell(run.error)] for run in failed]
    return [
        page.Section("Summary", [*state, *(page.Text(text) for text in sweep_view.summary(v))]),
        page.Section("Results", [results_table(v), *_results_chart(v)]),
        page.Section(f"Against {sweep.reference}", _against(v)),
        page.Section("Sensitivity", sweep_details.sensitivity(v)),
        page.Section("By type", sweep_details.by_type(v)),
        page.Section("Auxiliary model", sweep_details.auxiliary(v)),
        page.Section("Cost", sweep_details.cost(v)),
        page.Section("Learning curves", sweep_details.learning(v)),
        page.Section("Calibration", sweep_details.calibration(v)),
        page.Section("Configurations", _configurations(v)),
        page.Section("Failed runs", [page.Table(["point", "seed", "error"], errors)] if errors else []),
        page.Section("How to read this", [page.Items(_HOW)]),
    ]


def results_table(v: View) -> page.Table:
    """A row per point, the best first, those without a finished run last."""
    sweep, best = v.sweep, v.best()
    verdicts = {c.point: c.verdict or c.why for c in v.compared.get(best, [])} | {best: "best"}
    known = [name for name in ("share", "parameters", "rows_per_s") if np.isfinite(v.figures[name]).any()]
    heads = {"share": "share of lift", "parameters": "parameters", "rows_per_s": "rows/s"}
    rows = []
    for i in [*v.order, *(i for i in range(len(sweep.points)) if i not in v.order)]:
        point = sweep.points[i]
        failed = sum(1 for run in sweep.failed() if run.point == point)
        done = f"{len(sweep.done(point))} of {len(sweep.seeds)}{f', {failed} failed' if failed else ''}"
        auc = findings.spread(v.figures["auc"][i])
        cells = [Cell(f"`{point}`"), page.mean_sd(*auc[:2], DIGITS), page.ends(auc[2], DIGITS, sign=False)]
        cells += [
            page.mean_sd(*findings.spread(v.figures["logloss"][i])[:2], DIGITS),
            page.number(v.mean("pcoc", i), 3),
        ]
        cells += [page.number(v.mean(name, i), 3 if name == "share" else 0) for name in known]
        cells[0] = Cell(f"{cells[0].text} (reference)") if point == sweep.reference else cells[0]
        rows.append([*cells, Cell(done, len(sweep.done(point))), Cell(verdicts.get(point, ""))])
    columns = [f"{v.split} AUC", "95% interval", "logloss", "PCOC", *(heads[name] for name in known), "runs"]
    order = [*v.order, *(i for i in range(len(sweep.points)) if i not in v.order)]
    strong = order.index(sweep.points.index(sweep.reference))
    columns = ["point", *columns, f"against the best{'' if v.metric == 'auc' else ' logloss'}"]
    return page.compact(page.Table(columns, rows, strong))


def _results_chart(v: View) -> list:
    name, shown = sweep_view.NAMES[v.metric], v.order[:MOST_ROWS]
    found = [findings.spread(v.figures[v.metric][i]) for i in shown]
    if len(shown) < 2 or not v.compared:
        return []
    low, high = ([None if s[2] is None else float(s[2][k]) for s in found] for k in (1, 2))
    series = plots.Series("", (), [s[0] for s in found], low, high)
    few = "" if len(shown) == len(v.order) else f", the best {len(shown)} of {len(v.order)} points"
    title = f"{v.split.capitalize()} {name}{': mean and 95% interval over seeds' if any(low) else ''}{few}"
    unit = f"{name} ({'nats, lower' if v.metric == 'logloss' else 'higher'} is better)"
    return [page.Charts([plots.dots(title, [v.sweep.points[i] for i in shown], [series], unit=unit)])]


def _against(v: View) -> list:
    group = v.compared.get(v.sweep.reference)
    if not group:
        missing = not v.sweep.done(v.sweep.reference)
        return (
            [page.Text(f"`{v.sweep.reference}` has no finished run, so nothing is compared to it.")] if missing else []
        )
    rank = {v.sweep.points[i]: n for n, i in enumerate(v.order)}
    group = sorted(group, key=lambda c: rank.get(c.point, len(rank)))
    rows = []
    for c in group:
        mean = next((i.mean for i in (c.seeds, c.rows) if i is not None), None)
        cells = [page.number(mean, DIGITS, sign=True)]
        for interval in (c.seeds, c.rows, c.both):
            cells += [page.ends(interval, DIGITS), Cell(_verdict(v, interval) if interval else page.NOT_POSSIBLE)]
        rows.append([Cell(f"`{c.point}`"), *cells, Cell(c.why)])
    name = sweep_view.NAMES[v.metric]
    heads = ["point", f"{name} difference"]
    heads += [head for kind in ("over seeds", "over rows", "together") for head in (kind, "verdict")] + ["note"]
    better = "higher" if comparison.HIGHER_IS_BETTER[v.metric] else "lower"
    blocks = [
        page.Text(
            f"Each point minus `{v.sweep.reference}`, in {v.split} {name} ({better} is better), with 95% intervals."
        ),
        *_impossible(group),
        page.compact(page.Table(heads, rows)),
    ]
    shown = [c for c in group if c.seeds or c.rows][:MOST_ROWS]
    series = []
    for label, kind in (("over seeds", "seeds"), ("over rows", "rows"), ("together", "both")):
        found = [getattr(c, kind) for c in shown]
        if any(found):
            values = [[None if i is None else float(i[k]) for i in found] for k in range(3)]
            series.append(plots.Series(label, (), *values))
    if series:
        title = f"{v.split.capitalize()} {name} minus that of {v.sweep.reference}, with 95% intervals"
        unit = f"difference in {name}{' (nats)' if v.metric == 'logloss' else ''}"
        blocks.append(page.Charts([plots.dots(title, [c.point for c in shown], series, unit=unit, line=0.0)]))
    return blocks


def _impossible(group: list[findings.Comparison]) -> list[page.Text]:
    """Which kinds of interval no comparison has, and why."""
    texts = []
    if not any(c.seeds for c in group):
        texts.append("Over seeds it is not possible to compare: that takes two seeds that both points have.")
    if not any(c.rows for c in group):
        texts.append("Over rows it is not possible to compare: that takes predictions of the same test rows.")
    return [page.Text(text) for text in texts]


def _configurations(v: View) -> list:
    write = lambda value: "default" if value is ... else f"`{value}`"
    rows = []
    for point in v.sweep.points:
        fields = "; ".join(
            f"{key} = {write(ours)} ({write(theirs)})" for key, (ours, theirs) in v.changed[point].items()
        )
        rows.append(
            [Cell(f"`{point}`"), Cell(fields or ("reference" if point == v.sweep.reference else "no difference"))]
        )
    return [page.Table(["point", f"fields that differ from {v.sweep.reference} (its values)"], rows)]


def _verdict(v: View, interval: comparison.Interval) -> str:
    return comparison.verdict(interval, comparison.HIGHER_IS_BETTER[v.metric])
