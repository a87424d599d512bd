"""What `compare` prints and draws: models on the same rows, each against the first."""

from collections.abc import Sequence

from emofm_jax.evaluation import paired
from emofm_jax.evaluation.contest import Condition, Contest, Difference, OfColumn, OfModel
from emofm_jax.reports import document, plots
from emofm_jax.reports.document import Block, Cell, Charts, Table, Text

_NAMES = {"auc": "AUC", "logloss": "logloss", "gauc": "GAUC", "pcoc": "PCOC"}
_HOW = (
    "A difference is the model's figure minus the first one's, on the same rows. Intervals are of "
    "95%, each by itself."
)
_HOW_BY = "`*`: apart from 0 when all of the table shall be right with 95% (Holm)."


def report(found: Contest, gate: Sequence[Condition] = ()) -> document.Report:
    """The whole report; all of its tables are printed, too."""
    first, *others = found.models
    figures = _figures(found.models)
    differences = _differences(others)
    tables = [("", figures), (f"differences from {first.name}", differences)]
    sections: dict[str, list[Block]] = {
        "Figures": [figures],
        "Differences": [Text(_HOW), differences, Charts(_charts(others))],
    }
    by: list[Block] = []
    for model in others:
        for column in model.by:
            table = _by(column)
            title = _title(model, first, column)
            tables.append((title, table))
            by += [Text(title), table]
    if by:
        sections["By type and column"] = [*by, Text(_HOW_BY)]

    said = [*_said(found), *([_HOW_BY] if by else [])]
    if gate:
        lines = [_line(condition, model) for condition in gate for model in others]
        sections["Gate"] = [document.Items(lines)]
        said += lines
    sections["Rows"] = [document.Items([*_lead(found), *_said(found)])]
    title = f"{' and '.join(model.name for model in others)} against {first.name}"
    return document.Report(title, _lead(found), sections, tables, [*_lead(found), *said])


def _figures(models: Sequence[OfModel]) -> Table:
    rows = []
    for model in models:
        cells = [document.code(model.name)]
        for metric, digits in (("auc", 6), ("logloss", 6), ("gauc", 6), ("pcoc", 3)):
            one = model.figures.get(metric)
            cells.append(document.number(one.value if one else None, digits))
        pcoc = model.figures["pcoc"].interval
        rows.append([*cells, document.ends(pcoc, 3, sign=False)])
    return Table(["model", "AUC", "logloss", "GAUC", "PCOC", "its interval"], rows).compact()


def _differences(others: Sequence[OfModel]) -> Table:
    rows = []
    for model in others:
        for metric in paired.HIGHER_IS_BETTER:
            if metric in model.figures:
                one = model.differences.get(metric)
                names = [document.code(model.name), Cell(_NAMES[metric])]
                verdict = Cell(one.verdict if one else document.NOT_POSSIBLE)
                rows.append([*names, *_cells(one), verdict])
    return Table(["model", "metric", "difference", "its interval", "verdict"], rows)


def _by(column: OfColumn) -> Table:
    rows = []
    for value in column.values:
        sizes = document.number(value.rows, 0), document.number(value.clicks, 0)
        cells = []
        for metric in ("auc", "logloss"):
            before = document.number(value.figures[metric][0], 5)
            cells += [before, *_cells(value.differences.get(metric))]
        mark = Cell("*" if value.apart else "")
        rows.append([Cell(column.name(value)), *sizes, *cells, mark])

    heads = "rows, clicks, AUC of the first, difference, its interval, logloss of the first, "
    heads += "difference, its interval, apart"
    return Table([column.column, *heads.split(", ")], rows)


def _cells(difference: Difference | None) -> tuple[Cell, Cell]:
    if difference is None:
        return Cell("-"), Cell("-")
    value = document.number(difference.value, 5, sign=True)
    return value, document.ends(difference.interval, 5)


def _title(model: OfModel, first: OfModel, column: OfColumn) -> str:
    shown = len(column.values)
    more = "" if shown == column.num_values else f" (the {shown} most frequent)"
    values = f"{column.num_values:,} value{'s' if column.num_values != 1 else ''}{more}"
    return f"`{model.name}` from `{first.name}` by `{column.column}`: {values}"


def _charts(others: Sequence[OfModel]) -> list[str]:
    """The differences of each metric, a line a model."""
    charts = []
    for metric in paired.HIGHER_IS_BETTER:
        models = [model for model in others if metric in model.differences]
        if not models:
            continue
        values = [model.differences[metric].value for model in models]
        intervals = [model.differences[metric].interval for model in models]
        series = plots.Series("", [None] * len(models), values, intervals)
        unit = f"difference in {_NAMES[metric]}{' (nats)' if metric == 'logloss' else ''}"
        names = [model.name for model in models]
        title = f"{_NAMES[metric]} minus the first one's"
        charts.append(plots.dots(title, names, [series], unit=unit, line=0.0))
    return charts


def _lead(found: Contest) -> list[str]:
    rate = found.clicks / found.rows
    facts = [f"{found.rows:,} rows of {found.source}, {found.clicks:,} clicks ({rate:.2%})"]
    if found.cluster:
        wider = ", ".join(f"{_NAMES[m]} {times:.2f}" for m, times in found.wider.items())
        width = f"; times as wide as if rows were independent: {wider}" if wider else ""
        facts.append(
            f"rows of one `{found.cluster}` hang together: {found.clusters:,} values{width}"
        )
    return facts


def _said(found: Contest) -> list[str]:
    """Warnings, notes, and a word on intervals that are likely too narrow."""
    notes = [f"warning: {warning}" for warning in found.warnings]
    notes += [f"note: {note}" for note in found.notes]
    if found.wider and not found.cluster:
        wider = ", ".join(f"{_NAMES[m]} {times:.2f}" for m, times in found.wider.items())
        text = "rows of one key of the GAUC hang together, and intervals that take them as "
        text += f"independent are too narrow: with --cluster they are wider (times: {wider})"
        notes.append(f"note: {text}")
    return notes


def _line(condition: Condition, model: OfModel) -> str:
    value = condition.value(model)
    if value is None:
        return f"require {condition.text}: `{model.name}` **fails**: it is not defined there"
    verdict = "holds" if condition.holds(model) else "**fails**"
    return f"require {condition.text}: `{model.name}` {verdict} ({value:+.6f})"
