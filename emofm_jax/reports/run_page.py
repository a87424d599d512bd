"""The report of a single run (page.py): its figures, by type, learning curves, calibration, slots, configuration."""

from emofm_jax import config
from emofm_jax.reports import curves, document, plots, read
from emofm_jax.reports.document import Cell

_DIGITS = 5
_MOST_SLOTS = 40  # bars of a chart


def title(run: read.Run) -> str:
    """The name of its experiment and its model, as far as they are known."""
    fields = read.fields(run) or {}
    named = [str(fields[key]) for key in ("name", "model.name") if key in fields]
    typed = ", a copy a type" if fields.get("model.type_aware") else ""
    return f"{': '.join(named) or run.workdir.name}{typed}, seed {run.seed}"


def lead(run: read.Run) -> list[str]:
    """What was run, where and when."""
    facts, train = [read.machine(run), read.day(run)], run.metrics.get("train")
    if parameters := run.metrics.get("parameters"):
        facts.append(
            f"{parameters['embedding']:,} parameters in the embedding table, {parameters['network']:,} in the network"
        )
    if train:
        rate = (
            f"{train['rows_per_s']:,.0f} rows/s"
            if train["rows_per_s"]
            else "one step, too few for a rate"
        )
        facts.append(
            f"{train['steps']:,} step{'s' if train['steps'] != 1 else ''} in {train['seconds']:.0f} seconds, {rate}, "
            f"{train['input_wait']:.1%} of the time waiting for input"
        )
    return [fact for fact in facts if fact]


def sections(run: read.Run) -> list[document.Section]:
    """Of the whole report."""
    split = read.split_of([run])
    return [
        document.Section("Result", [document.Text(summary(run)), figures(run)]),
        document.Section("By type", _by_type(run, split)),
        document.Section("Learning curves", _learning(run)),
        document.Section("Calibration", _calibration(run, split)),
        document.Section("Importance of the slots", _importance(run, split)),
        document.Section("Configuration", _configuration(run)),
    ]


def summary(run: read.Run) -> str:
    """The result in a sentence or two."""
    split = read.split_of([run])
    part, constant = run.metrics[split], run.metrics[split].get("constant") or {}
    if part.get("auc") is None:
        return (
            f"The {split} split has no AUC: {'; '.join(part.get('notes') or ['one class only'])}."
        )
    text = f"AUC **{part['auc']:.5f}** on {part['rows']:,} rows of the {split} split"
    if (best := (part.get("bayes") or {}).get("auc")) not in (None, 0.5):
        text += f", {(part['auc'] - 0.5) / (best - 0.5):.1%} of the attainable lift (AUC of the true p: {best:.5f})"
    text += f"; logloss {part['logloss']:.5f}"
    if constant.get("logloss"):
        text += f" where a constant has {constant['logloss']:.5f}"
    if (pcoc := part.get("pcoc")) is not None:
        off = (
            "as many clicks as there are"
            if abs(pcoc - 1) < 0.02
            else f"{abs(pcoc - 1):.0%} too {'many' if pcoc > 1 else 'few'} clicks"
        )
        text += f". It predicts {off} (PCOC {pcoc:.3f})"
    return text + "."


def figures(run: read.Run) -> document.Table:
    """The model beside what is attainable and a constant, on every split that was evaluated."""
    rows = []
    for split in read.SPLITS:
        if (part := run.metrics.get(split)) is None:
            continue
        kinds = {
            "model": part,
            "true p(y|x)": part.get("bayes"),
            "model with the true p(t|x)": part.get("true_am"),
        }
        for name, found in (kinds | {"constant": part.get("constant")}).items():
            if found:
                cells = [
                    document.number(found.get(key), n)
                    for key, n in (
                        ("auc", _DIGITS),
                        ("logloss", _DIGITS),
                        ("pcoc", 3),
                        ("gauc", _DIGITS),
                    )
                ]
                rows.append(
                    [Cell(split), Cell(name), *cells, document.number(found.get("rows"), 0)]
                )
    heads = ["split", "predictor", "AUC", "logloss", "PCOC", "GAUC", "rows"]
    return document.compact(document.Table(heads, rows, 0))


def _by_type(run: read.Run, split: str) -> list:
    part = run.metrics[split]
    if not part.get("types"):
        return []
    rows = [
        [
            Cell(t["name"]),
            *(
                document.number(t.get(key), n)
                for key, n in (
                    ("auc", _DIGITS),
                    ("logloss", _DIGITS),
                    ("pcoc", 3),
                    ("rows", 0),
                    ("clicks", 0),
                )
            ),
            document.number((t.get("bayes") or {}).get("auc"), _DIGITS),
        ]
        for t in part["types"]
    ]
    heads = ["type", "AUC", "logloss", "PCOC", "rows", "clicks", "attainable AUC"]
    series = [plots.Series("model", (), [t["auc"] for t in part["types"]])]
    if any(t.get("bayes") for t in part["types"]):
        series.append(
            plots.Series(
                "attainable", (), [(t.get("bayes") or {}).get("auc") for t in part["types"]]
            )
        )
    chart = plots.dots(
        f"{split.capitalize()} AUC by type",
        [t["name"] for t in part["types"]],
        series,
        unit="AUC, the type given",
    )
    blocks = [
        document.Text("Within the rows of each type, the type given to the model."),
        document.compact(document.Table(heads, rows)),
        document.Charts([chart]),
    ]
    if am := part.get("am"):
        text = (
            f"The auxiliary model guesses the type with accuracy {am['accuracy']:.4f} (the majority type has "
            f"{am['majority']:.4f}) and logloss {am['logloss']:.4f} nats"
        )
        true = am.get("bayes_logloss")
        blocks.insert(
            1,
            document.Text(
                text + (f"; the true p(t|x) has {true:.4f}." if true is not None else ".")
            ),
        )
    return blocks


def _learning(run: read.Run) -> list:
    charts = []
    for key, unit in (("auc", "AUC"), ("logloss", "logloss (nats)")):
        found = [
            curves.training([run], "training, the last steps", key),
            curves.validation([run], "validation", key),
        ]
        series = [s for s in found if s]
        if series and max(len(s.x) for s in series) > 1:  # one evaluation is no curve
            charts.append(
                plots.lines(
                    f"{'AUC' if key == 'auc' else 'Logloss'} during training",
                    series,
                    x="training steps",
                    y=unit,
                    marks=max(len(s.x) for s in series) < 30,
                )
            )
    return [document.Charts(charts)] if charts else []


def _calibration(run: read.Run, split: str) -> list:
    series = curves.calibration([run], "model", split)
    if series is None:
        return []
    text = "Tenths of the rows by prediction, rates with 95% intervals (Wilson). On the dashed line both agree."
    rows = [
        [
            document.number(part["rows"], 0),
            document.number(part["mean_p"], 5),
            document.number(part["rate"], 5),
        ]
        for part in run.metrics[split]["calibration"]
    ]
    chart = plots.calibration(f"Calibration on the {split} split", [series])
    blocks = [document.Text(text), document.Charts([chart, curves.ratio_chart([series])])]
    return [*blocks, document.Table(["rows", "mean prediction", "click rate"], rows)]


def _importance(run: read.Run, split: str) -> list:
    found = read.importance(run, split)
    if not found:
        return []
    slots = sorted(found["slots"], key=lambda slot: -slot["auc_drop"])
    rows = [
        [
            Cell(s["name"]),
            document.number(s["auc_drop"], 6, True),
            document.number(s["logloss_rise"], 6, True),
        ]
        for s in slots
    ]
    text = f"What is lost when the values of a slot are dealt anew over {found['rows']:,} rows (seed {found['seed']})."
    if len(slots) > _MOST_SLOTS:
        text += f" The chart shows the first {_MOST_SLOTS} of {len(slots)} slots."
    shown = slots[:_MOST_SLOTS]
    chart = plots.bars(
        "Importance of the slots",
        [s["name"] for s in shown],
        [s["auc_drop"] for s in shown],
        unit="AUC lost when the slot is permuted",
    )
    return [
        document.Text(text),
        document.Charts([chart]),
        document.Table(["slot", "AUC lost", "logloss risen (nats)"], rows),
    ]


def _configuration(run: read.Run) -> list:
    fields = read.fields(run)
    if fields is None:
        return []
    changed = config.difference(fields, config.default())
    write = lambda value: "-" if value is ... else repr(value)
    rows = [[Cell(f"`{key}`"), Cell(write(a)), Cell(write(b))] for key, (a, b) in changed.items()]
    if not rows:
        return [document.Text("Every field has its default.")]
    return [
        document.Text("What differs from the defaults."),
        document.Table(["field", "this run", "default"], rows),
    ]
