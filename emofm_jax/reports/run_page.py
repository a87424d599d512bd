"""The report of a single run: figures, types, curves, reliability, slots, configuration."""

from emofm_jax import config
from emofm_jax.evaluation import summary as summary_lib
from emofm_jax.evaluation.by_value import ByValue
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.reports import curves, document, plots, read
from emofm_jax.reports.document import Block, Cell, Charts, Table, Text

_MOST_SLOTS = 40  # bars of a chart
_HOW_BY = (
    "Intervals are of 95%. `chance`: how likely clicks at least as far from the predicted number "
    "are, if the predictions are right; the values stand by it."
)
# Heads of the columns and the decimals of their figures.
_FIGURES = {"auc": ("AUC", 5), "logloss": ("logloss", 5), "pcoc": ("PCOC", 3), "gauc": ("GAUC", 5)}


def report(run: read.Run) -> document.Report:
    """The whole report; what is printed are its figures and a sentence or two."""
    split = read.split_of([run])
    part, figures, said = run.splits[split], _figures(run), _summary(run.splits[split], split)
    sections: dict[str, list[Block]] = {
        "Result": [Text(said), figures],
        "By type": _by_type(part, split),
        "Learning curves": _learning(run),
        "Reliability": _reliability(run, split),
        "New rows and values of columns": _evaluations(run),
        "Importance of the slots": _importance(run, split),
        "Configuration": _configuration(run),
    }
    return document.Report(_title(run), _lead(run), sections, [("", figures)], [said])


def _title(run: read.Run) -> str:
    """The name of its experiment and its model, as far as they are known."""
    fields = read.fields(run) or {}
    named = [str(fields[key]) for key in ("name", "model.name") if key in fields]
    typed = ", a copy a type" if fields.get("model.type_aware") else ""
    return f"{': '.join(named) or run.workdir.name}{typed}, seed {run.seed}"


def _lead(run: read.Run) -> list[str]:
    """What was run, where and when."""
    facts, train, sizes = [read.machine(run), read.day(run)], run.train, run.parameters
    if sizes:
        table = f"{sizes['embedding']:,} parameters in the embedding table"
        facts.append(f"{table}, {sizes['network']:,} in the network")
    if train:
        steps = f"{train['steps']:,} step{'s' if train['steps'] != 1 else ''}"
        facts.append(
            f"{steps} in {train['seconds']:.0f} seconds, {summary_lib.rate(train)}, "
            f"{train['input_wait']:.1%} of the time waiting for input"
        )
    return [fact for fact in facts if fact]


def _summary(part: SplitReport, split: str) -> str:
    """The result in a sentence or two."""
    if part.auc is None:
        return f"The {split} split has no AUC: {'; '.join(part.notes or ['one class only'])}."
    text = f"AUC **{part.auc:.5f}** on {part.rows:,} rows of the {split} split"
    if part.share is not None:
        lift = f"{part.share:.1%} of the attainable lift"
        text += f", {lift} (AUC of the true p: {part.bayes_auc:.5f})"

    text += f"; logloss {part.logloss:.5f}"
    if part.constant and part.constant.logloss:
        text += f" where a constant has {part.constant.logloss:.5f}"
    if part.pcoc is not None:
        off = f"{abs(part.pcoc - 1):.0%} too {'many' if part.pcoc > 1 else 'few'} clicks"
        off = "as many clicks as there are" if abs(part.pcoc - 1) < 0.02 else off
        text += f". On these rows it predicts {off} (PCOC {part.pcoc:.3f})"
    return text + "."


def _cells(figures: object, *keys: str) -> list[Cell]:
    """Figures of a predictor, a dash for those that it does not have."""
    found = ((getattr(figures, key, None), *_FIGURES[key]) for key in keys)
    return [document.number(value, digits) for value, _, digits in found]


def _heads(*keys: str) -> list[str]:
    return [_FIGURES[key][0] for key in keys]


def _figures(run: read.Run) -> Table:
    """The model beside what is attainable and a constant, on every split that was evaluated."""
    rows = [line for split, part in run.splits.items() for line in _lines(split, part)]
    return Table(["split", "predictor", *_heads(*_FIGURES), "rows"], rows, 0).compact()


def _lines(name: str, part: SplitReport) -> list[list[Cell]]:
    """The figures of some rows, a line each predictor."""
    lines = []
    for predictor, found in (
        ("model", part),
        ("true p(y|x)", part.bayes),
        ("model with the true p(t|x)", part.true_am),
        ("constant", part.constant),
    ):
        if found:
            size = document.number(getattr(found, "rows", None), 0)
            lines.append([Cell(name), Cell(predictor), *_cells(found, *_FIGURES), size])
    return lines


def _by_type(part: SplitReport, split: str) -> list[Block]:
    if not part.types:
        return []
    keys, rows = ("auc", "logloss", "pcoc"), []
    for t in part.types:
        sizes = [document.number(size, 0) for size in (t.rows, t.clicks)]
        attainable = document.number(t.bayes_auc, 5)
        rows.append([Cell(t.name), *_cells(t, *keys), *sizes, attainable])
    heads = ["type", *_heads(*keys), "rows", "clicks", "attainable AUC"]

    series = [plots.Series("model", (), [t.auc for t in part.types])]
    if any(t.bayes for t in part.types):
        series.append(plots.Series("attainable", (), [t.bayes_auc for t in part.types]))
    title, names = f"{split.capitalize()} AUC by type", [t.name for t in part.types]
    chart = plots.dots(title, names, series, unit="AUC, the type given")

    blocks: list[Block] = [Text("Within the rows of each type, the type given to the model.")]
    if am := part.am:
        true = f"; the true p(t|x) has {am.bayes_logloss:.4f}" if am.bayes_logloss else ""
        text = (
            f"The auxiliary model guesses the type with accuracy {am.accuracy:.4f} (the majority "
            f"type has {am.majority:.4f}) and logloss {am.logloss:.4f} nats{true}."
        )
        blocks.append(Text(text))
    return [*blocks, Table(heads, rows).compact(), Charts([chart])]


def _learning(run: read.Run) -> list[Block]:
    charts = []
    for key, title, unit in (("auc", "AUC", "AUC"), ("logloss", "Logloss", "logloss (nats)")):
        found = (
            curves.training([run], "training, the last steps", key),
            curves.validation([run], "validation", key),
        )
        series = [one for one in found if one]
        charts += curves.learning_chart(f"{title} during training", series, unit, 30)
    return [Charts(charts)] if charts else []


def _reliability(run: read.Run, split: str) -> list[Block]:
    series = curves.reliability([run], "model", split)
    if series is None:
        return []

    text = "Tenths of the rows by prediction."
    about = "Rates have 95% intervals (Wilson). On the dashed line both agree."
    charts = curves.reliability_charts(f"Reliability on the {split} split", [series])
    rows = []
    for part in run.splits[split].reliability:
        sizes = (part.rows, 0), (part.mean_p, 5), (part.rate, 5)
        rows.append([document.number(*pair) for pair in sizes])
    table = Table(["rows", "mean prediction", "click rate"], rows)
    return [Text(text), Charts(charts, about), table]


def _evaluations(run: read.Run) -> list[Block]:
    """What `evaluate` has found on new rows, and by the values of columns."""
    found, stale = read.evaluations(run)
    blocks: list[Block] = []
    new = {name: part for name, part in found.items() if part.rejected is not None}
    if new:
        lines = [line for name, part in new.items() for line in _lines(name, part)]
        blocks.append(Table(["rows of", "predictor", *_heads(*_FIGURES), "rows"], lines).compact())
        blocks += [
            Text(f"`{name}`: {'; '.join([part.data, *part.notes])}.") for name, part in new.items()
        ]

    for name, part in found.items():
        for table in part.by:
            blocks += [Text(f"`{name}` by `{table.column}`: {table.said}."), _by_value(table)]
    if blocks:
        blocks.append(Text(_HOW_BY))
    if stale:
        which = ", ".join(f"`{name}`" for name in stale)
        blocks.append(Text(f"Left out, since they are of another step than the run's: {which}."))
    return blocks


def _by_value(table: ByValue) -> Table:
    rows = []
    for name, value in table.named:
        sizes = document.number(value.rows, 0), document.number(value.clicks, 0)
        rates = (document.number(x, 5) for x in (value.rate, value.mean_p))
        pcoc = document.number(value.pcoc, 3), _interval(value.pcoc_interval, 3)
        auc = document.number(value.auc, 5), _interval(value.auc_interval, 4)
        chance = Cell("-") if value.chance is None else Cell(f"{value.chance:.2g}", value.chance)
        logloss = document.number(value.logloss, 5)
        rows.append([Cell(name), *sizes, *rates, *pcoc, chance, *auc, logloss])

    heads = (
        "rows, clicks, click rate, mean p, PCOC, its interval, chance, AUC, its interval, logloss"
    )
    return Table([table.column, *heads.split(", ")], rows)


def _interval(ends: tuple[float, float | None] | None, digits: int) -> Cell:
    if ends is None:
        return Cell("-")
    low, high = ends
    return Cell(f"{low:.{digits}f} to {'inf' if high is None else f'{high:.{digits}f}'}", low)


def _importance(run: read.Run, split: str) -> list[Block]:
    found = read.importance(run, split)
    if not found:
        return []
    slots = sorted(found["slots"], key=lambda slot: -slot["auc_drop"])
    over = f"{found['rows']:,} rows (seed {found['seed']})"
    text = f"What is lost when the values of a slot are dealt anew over {over}."
    if len(slots) > _MOST_SLOTS:
        text += f" The chart shows the first {_MOST_SLOTS} of {len(slots)} slots."

    names, drops = ([slot[key] for slot in slots[:_MOST_SLOTS]] for key in ("name", "auc_drop"))
    unit = "AUC lost when the slot is permuted"
    chart = plots.bars("Importance of the slots", names, drops, unit=unit)
    rows = []
    for slot in slots:
        lost = [document.number(slot[key], 6, True) for key in ("auc_drop", "logloss_rise")]
        rows.append([Cell(slot["name"]), *lost])
    heads = ["slot", "AUC lost", "logloss risen (nats)"]
    return [Text(text), Charts([chart]), Table(heads, rows)]


def _configuration(run: read.Run) -> list[Block]:
    fields = read.fields(run)
    if fields is None:
        return []

    write = lambda value: Cell("-" if value is ... else repr(value))
    changed = config.difference(fields, config.default()).items()
    rows = [[document.code(key), write(ours), write(theirs)] for key, (ours, theirs) in changed]
    if not rows:
        return [Text("Every field has its default.")]
    heads = ["field", "this run", "default"]
    return [Text("What differs from the defaults."), Table(heads, rows)]
