"""The report of a sweep: its sections, their tables and charts."""

from collections.abc import Sequence

from emofm_jax import config
from emofm_jax.evaluation import comparison
from emofm_jax.reports import document, plots
from emofm_jax.reports.document import Block, Cell, Charts, Items, Table, Text
from emofm_jax.reports.sweep import details, findings, sensitivity
from emofm_jax.reports.sweep import summary as summary_lib
from emofm_jax.reports.sweep import view as view_lib
from emofm_jax.reports.sweep.same_data import SameData
from emofm_jax.reports.sweep.summary import listed
from emofm_jax.reports.sweep.view import DIGITS, View

_FIGURES = {  # of the results, and their heads
    "share": "share of lift",
    "parameters": "parameters",
    "rows_per_s": "rows/s",
    "memory": "peak memory (MiB)",
}
_KINDS = {"seeds": "over seeds", "rows": "over rows", "both": "together"}  # of intervals
_NOT = Cell(document.NOT_POSSIBLE)
_HOW = (
    "**mean +/- sd** is over seeds; the **95% interval** of a mean is Student's t over the same "
    "seeds.",
    "**over seeds**: t interval of the paired differences, seed by seed: what other seeds would "
    "give on these rows.",
    "**over rows**: what other test rows would give these very models. AUC: DeLong's interval of"
    " the mean of the seeds' AUCs; logloss: of the mean paired difference. Rows count as "
    "independent, so where one user has many rows the interval is too narrow.",
    "**together**: both at once, other seeds and other rows. The verdict comes from this one "
    "where there are two seeds or more, else from the rows alone. With two seeds it is rather "
    "too wide (it covers 95 to 98%). It is never narrower than over seeds, so both may be the "
    "same.",
    "**not distinguishable** means that the interval holds 0: the difference may be either way, "
    "or none.",
    "**the best** was chosen for its result, which flatters it: of points that are alike the "
    "luckiest comes first.",
    "**share of lift**: (AUC - 0.5) / (AUC of the true probabilities - 0.5), for made-up data "
    "whose truth is known.",
    "**data**: points are of the same data if `prepare.*`, `data.dir` and the test rows are the "
    "same. Only these are ranked and compared: an AUC says as much about the rows as about the "
    "model.",
    "**peak memory** is known of the first run of each process only.",
    "**PCOC**: predicted clicks over clicks; 1 is calibrated. **logloss** in nats.",
)


def report(v: View) -> document.Report:
    """The whole report; what is printed are its results and its summary."""
    results = [(same.name, _results_table(v, same)) for same in v.data]
    comparisons = f"Against {v.data[0].partner}" if len(v.data) == 1 else "Comparisons"
    sections: dict[str, list[Block]] = {
        "Summary": _summary(v),
        "Results": _results(v, results),
        "Across data": sensitivity.across(v),
        comparisons: _comparisons(v),
        "Sensitivity": sensitivity.sensitivity(v),
        "By type": details.by_type(v),
        "Auxiliary model": details.auxiliary(v),
        "Cost": details.cost(v),
        "Learning curves": details.learning(v),
        "Reliability": details.reliability(v),
        "Configurations": _configurations(v),
        "Failed runs": _failed(v),
        "How to read this": [Items(_HOW)],
    }
    said = [*_unfinished(v), *summary_lib.summary(v), *summary_lib.by_data(v)]
    return document.Report(view_lib.title(v), view_lib.lead(v), sections, results, said)


def _unfinished(v: View) -> list[str]:
    done, total = len(v.sweep.runs), v.sweep.num_runs
    return [f"Unfinished: {done} of {total} runs are in."] if done < total else []


def _summary(v: View) -> list[Block]:
    """What is missing, the summary, and a line per other data."""
    blocks: list[Block] = []
    for text in _unfinished(v):
        blocks.append(Text(f"**{text}** What follows is of these.", loud=True))
    if failed := len(v.sweep.failed()):
        text = f"{failed} of {len(v.sweep.runs)} runs failed; their errors stand below."
        blocks.append(Text(text, loud=True))
    if v.sweep.left_out:
        why = "sweep.json no longer has their points or seeds"
        blocks.append(Text(f"{v.sweep.left_out} lines of results.jsonl are left out: {why}."))

    blocks += [Text(text) for text in summary_lib.summary(v)]
    if others := summary_lib.by_data(v):
        blocks += [Text("On the other data:"), Items(others)]
    return blocks


def _results(v: View, results: Sequence[tuple[str, Table]]) -> list[Block]:
    blocks: list[Block] = []
    for same, (name, table) in zip(v.data, results):
        if name:
            why = f"; the point compared to is {same.why}" if same.why and same.compared else ""
            blocks.append(Text(f"**{name}**{why}"))
        blocks += [table, *_results_chart(v, same)]

    if summary_lib.two_seeds(v):
        blocks.append(Text(summary_lib.OF_TWO))
    unfinished, without = v.rest()
    if unfinished and len(v.data) > 1:
        blocks.append(Text(f"Without a finished run: {listed(unfinished)}."))
    if without:
        why = f"their {v.split} rows are of one class, or have no weight"
        blocks.append(Text(f"Without a value of {v.name}: {listed(without)}; {why}."))
    return blocks


def _results_table(v: View, same: SameData) -> Table:
    """A row per point, the best first; without other data, those not finished last."""
    sweep, failed = v.sweep, [run.point for run in v.sweep.failed()]
    verdicts = {c.point: summary_lib.told(v, c) for c in same.rivals}
    if same.rivals:
        verdicts[same.points[0]] = "best"
    costs = [name for name in _FIGURES if v.has(name)]

    rows, points = [], [*same.points, *(v.rest()[0] if len(v.data) == 1 else [])]
    for point in points:
        mark = " (compared to)" if point == same.partner else ""
        mark = " (reference)" if point == sweep.reference else mark
        auc = v.spread(point, "auc")
        cells = [
            Cell(f"`{point}`{mark if same.compared else ''}"),
            document.mean_sd(auc, DIGITS),
            document.ends(auc.interval, DIGITS, sign=False),
            document.mean_sd(v.spread(point, "logloss"), DIGITS),
            document.number(v.mean(point, "pcoc"), 3),
        ]
        cells += [document.number(v.mean(point, c), 3 if c == "share" else 0) for c in costs]
        lost = f", {failed.count(point)} failed" if point in failed else ""
        done = len(sweep.done(point))
        runs = Cell(f"{done} of {len(sweep.seeds)}{lost}", done)
        rows.append([*cells, runs, Cell(verdicts.get(point, ""))])

    heads = ["point", f"{v.split} AUC", "95% interval", "logloss", "PCOC"]
    heads += [_FIGURES[name] for name in costs]
    by = "" if v.metric == "auc" else " logloss"
    table = Table([*heads, "runs", f"against the best{by}"], rows, points.index(same.partner))
    return table.compact()


def _results_chart(v: View, same: SameData) -> list[Block]:
    shown = details.drawn(v, same)
    if len(shown) < (2 if len(v.data) == 1 else details.FEWEST) or not v.known:
        return []

    series = plots.Series.of("", (), [v.spread(point) for point in shown])
    mean = ": mean and 95% interval over seeds" if any(series.intervals) else ""
    few = f", the best {len(shown)} of {len(same.points)} points"
    few = "" if len(shown) == len(same.points) else few
    of = f" ({same.name})" if same.name else ""
    unit = f"{v.name} ({'nats, lower' if v.metric == 'logloss' else 'higher'} is better)"
    return [Charts([plots.dots(f"{v.measured}{mean}{few}{of}", shown, [series], unit=unit)])]


def _comparisons(v: View) -> list[Block]:
    """Every point against the partner of its data."""
    blocks: list[Block] = []
    if v.known and not v.sweep.done(v.sweep.reference):
        text = "has no finished run: the points are compared to another one."
        blocks.append(Text(f"`{v.sweep.reference}` {text}"))

    compared = [same for same in v.data if same.compared]
    every = [c for same in compared for c in same.compared]
    for kind, needed in (
        ("seeds", "two seeds that both points have"),
        ("rows", "predictions of the same test rows"),
    ):
        if every and not any(getattr(c, kind) for c in every):
            head = f"{_KINDS[kind].capitalize()} it is not possible to compare"
            blocks.append(Text(f"{head}: that takes {needed}."))

    large = [s for s in compared if s is v.data[0] or len(s.points) >= details.FEWEST]
    for same in large:
        blocks += _against(v, same)
    small = [same for same in compared if same not in large]
    return [*blocks, *(_on_other_data(v, small) if small else [])]


def _against(v: View, same: SameData) -> list[Block]:
    """Words, table and chart of the points of the same data."""
    head = f"**{same.name}**: each" if same.name else "Each"
    text = f"{head} point minus `{same.partner}`, in {_measure(v)}."
    if same.why:
        text += f" `{same.partner}` is {same.why}."
    text += " The verdict that counts is **bold**."
    heads = ["point", f"{v.name} difference"]
    for kind in _KINDS.values():
        heads += [kind, f"verdict {kind}"]
    rows = []
    for c in _ranked(same):
        cells = [document.code(c.point), _difference(c)]
        for kind in _KINDS:
            interval = getattr(c, kind)
            cells += [document.ends(interval, DIGITS), _verdict(v, c, kind) if interval else _NOT]
        rows.append([*cells, Cell(c.why)])
    blocks: list[Block] = [Text(text), Table([*heads, "note"], rows).compact()]

    found = {c.point: c for c in same.compared if c.seeds or c.rows}
    shown = [found[point] for point in details.drawn(v, same) if point in found]
    series = []
    for kind, label in _KINDS.items():
        intervals = [getattr(c, kind) for c in shown]
        if any(intervals):
            means = [interval and interval.mean for interval in intervals]
            series.append(plots.Series(label, (), means, intervals))
    if series:
        few = "" if len(shown) == len(found) else f", {len(shown)} of {len(found)} points"
        title = f"{v.measured} minus that of {same.partner}, with 95% intervals{few}"
        unit = f"difference in {v.name}{' (nats)' if v.metric == 'logloss' else ''}"
        points = [c.point for c in shown]
        blocks.append(Charts([plots.dots(title, points, series, unit=unit, line=0.0)]))
    return blocks


def _on_other_data(v: View, small: Sequence[SameData]) -> list[Block]:
    """Words and a table of data with few points."""
    whys = list(dict.fromkeys(same.why for same in small))
    text = "**On other data**, each point minus the one that stands for the reference"
    text += f", in {_measure(v)}."
    if len(whys) == 1:
        text += f" What is subtracted is {whys[0]}."

    rows = []
    for same in small:
        why = Cell(same.why if len(whys) > 1 else "")
        for c in _ranked(same):
            cells = [Cell(same.name), document.code(c.point), document.code(same.partner)]
            cells += [_difference(c), *(document.ends(getattr(c, k), DIGITS) for k in _KINDS)]
            verdict = Cell(summary_lib.told(v, c) if c.verdict else "")
            rows.append([*cells, verdict, Cell(c.why), why])
    heads = ["data", "point", "minus", f"{v.name} difference", *_KINDS.values()]
    heads += ["verdict", "note", "what is subtracted"]
    return [Text(text), Table(heads, rows).compact()]


def _ranked(same: SameData) -> list[findings.Comparison]:
    """The comparisons with the partner, the best point first."""
    rank = {point: n for n, point in enumerate(same.points)}
    return sorted(same.compared, key=lambda c: rank[c.point])


def _difference(c: findings.Comparison) -> Cell:
    first = c.seeds or c.rows
    return document.number(first.mean if first else None, DIGITS, sign=True)


def _verdict(v: View, c: findings.Comparison, kind: str) -> Cell:
    """In words, bold if it counts; with its seeds, where the point lacks some."""
    interval = getattr(c, kind)
    said = c.verdict_of(interval)
    said = said if kind == "rows" else summary_lib.told(v, c, said)
    return Cell(f"**{said}**" if interval is c.interval else said)


def _measure(v: View) -> str:
    better = "higher" if comparison.HIGHER_IS_BETTER[v.metric] else "lower"
    return f"{v.split} {v.name} ({better} is better), with 95% intervals"


def _configurations(v: View) -> list[Block]:
    write = lambda value: "default" if value is ... else f"`{value}`"
    reference, rows = v.sweep.reference, []
    for point in v.sweep.points:
        said = "reference" if point == reference else "no difference"
        if point != reference and not v.sweep.ended(point):
            said = "no run yet"
        elif point != reference:
            ours, theirs = findings.settings(v.sweep, (point, reference)).values()
            changed = config.difference(ours, theirs).items()
            texts = [f"{field} = {write(a)} ({write(b)})" for field, (a, b) in changed]
            said = "; ".join(texts) or said
        rows.append([document.code(point), Cell(said)])
    return [Table(["point", f"fields that differ from {reference} (its values)"], rows)]


def _failed(v: View) -> list[Block]:
    rows = []
    for run in v.sweep.failed():
        rows.append(
            [document.code(run.point), Cell(str(run.seed), run.seed), Cell(run.error or "")]
        )
    return [Table(["point", "seed", "error"], rows)] if rows else []
