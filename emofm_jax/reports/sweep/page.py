"""The sections of a sweep's report (page.py): tables and charts of a `sweep_view.View`."""

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import document, plots
from emofm_jax.reports.document import Cell
from emofm_jax.reports.sweep import details, findings, sensitivity
from emofm_jax.reports.sweep import summary as sweep_summary
from emofm_jax.reports.sweep import view as view_lib
from emofm_jax.reports.sweep.same_data import Group
from emofm_jax.reports.sweep.sensitivity import DIGITS
from emofm_jax.reports.sweep.view import View

_FIGURES = {  # of the table of results, and their heads
    "share": "share of lift",
    "parameters": "parameters",
    "rows_per_s": "rows/s",
    "memory": "peak memory (MiB)",
}
_FEWEST = 4  # points of the same data that get charts where there are several data
_NOT = Cell(document.NOT_POSSIBLE)
_HOW = (
    "**mean +/- sd** is over seeds; the **95% interval** of a mean is Student's t over the same seeds.",
    "**over seeds**: t interval of the paired differences, seed by seed: what other seeds would give on these rows.",
    "**over rows**: what other test rows would give these very models. AUC: DeLong's interval of the mean of the "
    "seeds' AUCs; logloss: of the mean paired difference. Rows count as independent, so where one user has many rows "
    "the interval is too narrow. Sample weights are not read.",
    "**together**: both at once, other seeds and other rows. The verdict comes from this one where there are two "
    "seeds or more, else from the rows alone. With two seeds it is rather too wide (it covers 95 to 98%).",
    "**not distinguishable** means that the interval holds 0: the difference may be either way, or none.",
    "**the best** was chosen for its result, which flatters it: of points that are alike the luckiest comes first.",
    "**share of lift**: (AUC - 0.5) / (AUC of the true probabilities - 0.5), for made-up data whose truth is known.",
    "**data**: points are of the same data if `prepare.*`, `data.dir` and the test rows are the same. Only these are "
    "ranked and compared: an AUC says as much about the rows as about the model.",
    "**PCOC**: predicted clicks over clicks; 1 is calibrated. **logloss** in nats.",
)


def sections(v: View) -> list[document.Section]:
    """Of the whole report."""
    sweep = v.sweep
    total, state = len(sweep.points) * len(sweep.seeds), []
    if len(sweep.runs) < total:
        text = (
            f"**Unfinished: {len(sweep.runs)} of {total} runs are in.** What follows is of these."
        )
        state.append(document.Text(text, loud=True))
    if failed := sweep.failed():
        text = f"{len(failed)} of {len(sweep.runs)} runs failed; their errors stand below."
        state.append(document.Text(text, loud=True))
    if sweep.left_out:
        text = f"{sweep.left_out} lines of results.jsonl are left out: sweep.json no longer has their points or seeds."
        state.append(document.Text(text))
    errors = [
        [Cell(f"`{run.point}`"), Cell(str(run.seed), run.seed), Cell(run.error)] for run in failed
    ]
    return [
        document.Section("Summary", [*state, *_summary(v)]),
        document.Section("Results", _results(v)),
        document.Section("Across data", sensitivity.across(v)),
        document.Section(
            f"Against {v.groups[0].partner}" if len(v.groups) == 1 else "Comparisons",
            _comparisons(v),
        ),
        document.Section("Sensitivity", sensitivity.sensitivity(v)),
        document.Section("By type", details.by_type(v)),
        document.Section("Auxiliary model", details.auxiliary(v)),
        document.Section("Cost", details.cost(v)),
        document.Section("Learning curves", details.learning(v)),
        document.Section("Calibration", details.calibration(v)),
        document.Section("Configurations", _configurations(v)),
        document.Section(
            "Failed runs", [document.Table(["point", "seed", "error"], errors)] if errors else []
        ),
        document.Section("How to read this", [document.Items(_HOW)]),
    ]


def results_tables(v: View) -> list[tuple[str, document.Table]]:
    """(which data, its table): a row per point, the best first; without other data, those not finished last."""
    found = []
    for group in v.groups:
        points = [*group.order, *(v.rest()[0] if len(v.groups) == 1 else [])]
        found.append((group.name, _results_table(v, group, points)))
    return found


def _results_table(v: View, group: Group, points: list[int]) -> document.Table:
    sweep, best = v.sweep, v.sweep.points[group.order[0]]
    verdicts = {c.point: sweep_summary.told(v, c) for c in group.rivals}
    if group.rivals:
        verdicts[best] = "best"
    known = [name for name in _FIGURES if np.isfinite(v.figures[name]).any()]
    rows = []
    for i in points:
        point = sweep.points[i]
        failed = sum(1 for run in sweep.failed() if run.point == point)
        done = f"{len(sweep.done(point))} of {len(sweep.seeds)}{f', {failed} failed' if failed else ''}"
        auc = findings.spread(v.figures["auc"][i])
        mark = (
            " (reference)"
            if point == sweep.reference
            else " (compared to)"
            if point == group.partner
            else ""
        )
        cells = [
            Cell(f"`{point}`{mark if group.compared else ''}"),
            document.mean_sd(*auc[:2], DIGITS),
            document.ends(auc[2], DIGITS, sign=False),
            document.mean_sd(*findings.spread(v.figures["logloss"][i])[:2], DIGITS),
            document.number(v.mean("pcoc", i), 3),
        ]
        cells += [document.number(v.mean(name, i), 3 if name == "share" else 0) for name in known]
        rows.append([*cells, Cell(done, len(sweep.done(point))), Cell(verdicts.get(point, ""))])
    strong = points.index(sweep.points.index(group.partner))
    columns = [
        "point",
        f"{v.split} AUC",
        "95% interval",
        "logloss",
        "PCOC",
        *(_FIGURES[name] for name in known),
        "runs",
    ]
    columns.append(f"against the best{'' if v.metric == 'auc' else ' logloss'}")
    return document.compact(document.Table(columns, rows, strong))


def _summary(v: View) -> list:
    others = sweep_summary.by_data(v)
    blocks = [document.Text(text) for text in sweep_summary.summary(v)]
    return (
        [*blocks, document.Text("On the other data:"), document.Items(others)] if others else blocks
    )


def _results(v: View) -> list:
    blocks = []
    for group, (name, table) in zip(v.groups, results_tables(v)):
        if name:
            why = f"; the point compared to is {group.why}" if group.why and group.compared else ""
            blocks.append(document.Text(f"**{name}**{why}"))
        blocks += [table, *_results_chart(v, group)]
    unfinished, without = ([v.sweep.points[i] for i in found] for found in v.rest())
    if unfinished and len(v.groups) > 1:
        blocks.append(document.Text(f"Without a finished run: {findings.listed(unfinished)}."))
    if without:
        why = f"their {v.split} rows are of one class, or have no weight"
        blocks.append(
            document.Text(
                f"Without a value of {view_lib.NAMES[v.metric]}: {findings.listed(without)}; {why}."
            )
        )
    return blocks


def _results_chart(v: View, group: Group) -> list:
    name, shown = view_lib.NAMES[v.metric], details.drawn(v, group)
    found = [findings.spread(v.figures[v.metric][i]) for i in shown]
    if len(shown) < (2 if len(v.groups) == 1 else _FEWEST) or not v.known:
        return []
    low, high = ([None if s[2] is None else float(s[2][k]) for s in found] for k in (1, 2))
    series = plots.Series("", (), [s[0] for s in found], low, high)
    few = (
        ""
        if len(shown) == len(group.order)
        else f", the best {len(shown)} of {len(group.order)} points"
    )
    of = f" ({group.name})" if group.name else ""
    title = f"{v.split.capitalize()} {name}{': mean and 95% interval over seeds' if any(low) else ''}{few}{of}"
    unit = f"{name} ({'nats, lower' if v.metric == 'logloss' else 'higher'} is better)"
    return [
        document.Charts(
            [plots.dots(title, [v.sweep.points[i] for i in shown], [series], unit=unit)]
        )
    ]


def _comparisons(v: View) -> list:
    """Every group against its partner."""
    blocks = []
    if v.known and not v.sweep.done(v.sweep.reference):
        blocks.append(
            document.Text(
                f"`{v.sweep.reference}` has no finished run: the points are compared to another one."
            )
        )
    every = [c for group in v.groups for c in group.compared]
    blocks += _impossible(every) if every else []
    large = [g for g in v.groups if g.compared and (g is v.groups[0] or len(g.order) >= _FEWEST)]
    for group in large:
        blocks += _against(v, group)
    if small := [group for group in v.groups if group.compared and group not in large]:
        whys = list(dict.fromkeys(group.why for group in small))
        text = f"**On other data**, each point minus the one that stands for the reference, in {_measure(v)}."
        if len(whys) == 1:
            text += f" What is subtracted is {whys[0]}."
        rows = [
            [
                Cell(group.name),
                row[0],
                Cell(f"`{group.partner}`"),
                *row[1:],
                Cell(group.why if len(whys) > 1 else ""),
            ]
            for group in small
            for row in _rows(v, group, short=True)
        ]
        heads = ["data", "point", "minus", *_heads(v, short=True)[1:], "what is subtracted"]
        blocks += [document.Text(text), document.compact(document.Table(heads, rows))]
    return blocks


def _heads(v: View, short: bool = False) -> list[str]:
    """Of `_rows`."""
    kinds = [("over seeds", "verdict"), ("over rows", "verdict"), ("together", "verdict")]
    kinds = [head for kind in kinds for head in kind[: 1 if short else 2]] + ["verdict"] * short
    return ["point", f"{view_lib.NAMES[v.metric]} difference", *kinds, "note"]


def _rows(v: View, group: Group, short: bool = False) -> list[list[Cell]]:
    """A row per comparison with the group's partner, the best first; if short, with the last verdict only."""
    rank, rows = {v.sweep.points[i]: n for n, i in enumerate(group.order)}, []
    for c in sorted(group.compared, key=lambda c: rank.get(c.point, len(rank))):
        mean = next((i.mean for i in (c.seeds, c.rows) if i is not None), None)
        cells = [document.number(mean, DIGITS, sign=True)]
        for kind in ("seeds", "rows", "both"):
            interval = getattr(c, kind)
            cells += [document.ends(interval, DIGITS)]
            cells += [] if short else [_verdict(v, c, interval, kind) if interval else _NOT]
        if short:
            cells.append(Cell(sweep_summary.told(v, c) if c.verdict else ""))
        rows.append([Cell(f"`{c.point}`"), *cells, Cell(c.why)])
    return rows


def _measure(v: View) -> str:
    better = "higher" if comparison.HIGHER_IS_BETTER[v.metric] else "lower"
    return f"{v.split} {view_lib.NAMES[v.metric]} ({better} is better), with 95% intervals"


def _against(v: View, group: Group) -> list:
    """Of one group: words, table, chart."""
    text = f"Each point minus `{group.partner}`, in {_measure(v)}."
    if group.why:
        text += f" `{group.partner}` is {group.why}."
    text = f"**{group.name}**: {text[0].lower()}{text[1:]}" if group.name else text
    blocks = [document.Text(text), document.compact(document.Table(_heads(v), _rows(v, group)))]
    compared, series = {c.point: c for c in group.compared if c.seeds or c.rows}, []
    shown = [compared[p] for i in details.drawn(v, group) if (p := v.sweep.points[i]) in compared]
    for label, kind in (("over seeds", "seeds"), ("over rows", "rows"), ("together", "both")):
        found = [getattr(c, kind) for c in shown]
        if any(found):
            values = [[None if i is None else float(i[k]) for i in found] for k in range(3)]
            series.append(plots.Series(label, (), *values))
    if series:
        name = view_lib.NAMES[v.metric]
        few = "" if len(shown) == len(compared) else f", {len(shown)} of {len(compared)} points"
        title = (
            f"{v.split.capitalize()} {name} minus that of {group.partner}, with 95% intervals{few}"
        )
        unit = f"difference in {name}{' (nats)' if v.metric == 'logloss' else ''}"
        blocks.append(
            document.Charts(
                [plots.dots(title, [c.point for c in shown], series, unit=unit, line=0.0)]
            )
        )
    return blocks


def _impossible(group: list[findings.Comparison]) -> list[document.Text]:
    """Which kinds of interval no comparison has, and why."""
    texts = []
    if not any(c.seeds for c in group):
        texts.append(
            "Over seeds it is not possible to compare: that takes two seeds that both points have."
        )
    if not any(c.rows for c in group):
        texts.append(
            "Over rows it is not possible to compare: that takes predictions of the same test rows."
        )
    return [document.Text(text) for text in texts]


def _configurations(v: View) -> list:
    write = lambda value: "default" if value is ... else f"`{value}`"
    rows = []
    for point in v.sweep.points:
        said = "; ".join(
            f"{key} = {write(ours)} ({write(theirs)})"
            for key, (ours, theirs) in v.changed[point].items()
        )
        if point == v.sweep.reference:
            said = "reference"
        elif not any((point, seed) in v.sweep.runs for seed in v.sweep.seeds):
            said = "no run yet"
        rows.append([Cell(f"`{point}`"), Cell(said or "no difference")])
    return [
        document.Table(["point", f"fields that differ from {v.sweep.reference} (its values)"], rows)
    ]


def _verdict(v: View, c: findings.Comparison, interval: comparison.Interval, kind: str) -> Cell:
    """In words; with the seeds that it stands on, where the point lacks some."""
    said = comparison.verdict(interval, comparison.HIGHER_IS_BETTER[v.metric])
    return Cell(said if kind == "rows" else sweep_summary.told(v, c._replace(verdict=said)))
