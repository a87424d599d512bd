"""Evaluates a trained run on a split of its data, or on new labelled rows, and prints its table.

    python -m emofm_jax.evaluate --workdir=runs/quickstart
    python -m emofm_jax.evaluate --workdir=runs/quickstart --split=valid
    python -m emofm_jax.evaluate --workdir=runs/quickstart --calibrate=platt
    python -m emofm_jax.evaluate --workdir=runs/quickstart --importance
    python -m emofm_jax.evaluate --workdir=runs/mine --input=tomorrow.csv --by=device,country

Uses the best checkpoint if the run had a monitor, else the last. Writes predictions/SPLIT.parquet
(row, label, ftype, weight, gauc_key, logit, p, p_std, p_type, p_given_type, as far as there are
such) and predictions/SPLIT.json (the metrics) into the workdir. Of other data, --data=DIR, they are
SPLIT@NAME.parquet and .json, NAME being the last part of DIR: reports read those of the run's own.
The run's own data are those that it was trained on, prepared as they were then: seen from here, or
else from a directory above the run.

--input=FILE, a directory, or several with commas, are raw rows with labels, of the format and with
the columns that the run's data were prepared from; other columns are passed over. They go through
the run's own vocabularies. The files are input@NAME.parquet and .json, NAME being the first file's
without endings, and `row` is the position in the input. Rows that cannot be read are counted, and
input@NAME.rejected.parquet says why (row, reason).

--by=COLUMN,... adds a table for each column: the metrics of the rows of each of its values, the
worst calibrated first. Of raw rows it may be any column of theirs, of shards a slot or ftype.
--by_values says how many values are shown; the others are one line.

--calibrate fits p = f(logit) on the validation split of --data, if that has one, or else of the
run's own data, by logistic (platt) or isotonic regression, stores it in calibration.json for the
scorer and shows PCOC, expected calibration error and log-loss of the rows before and after. The
predictions stay as the model gives them. --importance shows what AUC and log-loss lose when a
slot's values are permuted over a sample of SPLIT's rows, and writes
predictions/SPLIT.importance.json and .svg.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emofm_jax.training import huge_pages

if __name__ == "__main__":  # before what takes time to load
    huge_pages.use(__file__)
else:
    huge_pages.use_in_command()

import numpy as np
import pyarrow as pa
from absl import flags as absl_flags
from ml_collections import ConfigDict

from emofm_jax import cli
from emofm_jax import config as config_lib
from emofm_jax.data import coded as coded_lib
from emofm_jax.data import encode, files, parquet, seen, shards, storage, unknown
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.raw_rows import RawRows
from emofm_jax.errors import UserError, check_choice
from emofm_jax.evaluation import by_value, calibration, summary
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.reports import plots
from emofm_jax.scoring import importance as importance_lib
from emofm_jax.training import run_data
from emofm_jax.training import workdir as workdir_lib
from emofm_jax.training.run_data import RunData


def _main(flags: absl_flags.FlagValues) -> None:
    _check(flags)
    workdir = storage.writing(flags.workdir, is_run=True)
    config_lib.load(workdir)  # before a directory that holds no run is locked
    with workdir_lib.together(workdir):
        _evaluate(flags, workdir)
        storage.publish(workdir)


def _evaluate(flags: absl_flags.FlagValues, workdir: Path) -> None:
    by = flags.by.split(",") if flags["by"].present else []
    config, schema = config_lib.load(workdir), schema_lib.load(workdir)
    data = RunData(workdir, config, schema)
    rows = _open(flags, data, by)
    split = rows if isinstance(rows, shards.Split) else None
    valid = data.open_valid(flags.data, split) if flags.calibrate else None
    from emofm_jax.training import build  # after the cheap checks
    from emofm_jax.training import predictions as predictions_lib

    config = build.for_evaluation(config)
    parts = build.make_parts(config, schema)
    state, progress = build.restore_kept(config, workdir, parts)
    score = lambda rows: predictions_lib.score(config, rows, parts, state)
    predictions, report = score(rows)
    stem, place = _named(rows, data)
    report = dataclasses.replace(report, data=place)
    if by or isinstance(rows, RawRows):
        tables = _by_value(rows, by, predictions, workdir, flags.by_values)
        report = dataclasses.replace(report, by=tables, step=progress.step)
    path = workdir / "predictions" / f"{stem}.parquet"
    written = [path, path.with_name(f"{stem}.json")]

    # Before anything is written: rows of one class have no importance and no calibration.
    importance = None
    if flags.importance and split is not None:
        again = functools.partial(predictions_lib.score_rows, parts, state)
        importance = _importance(again, split, config, flags.importance_rows)
    if valid is not None:
        on = predictions if split and split.path == valid.path else score(valid)[0]
        fitted, fit = _calibrate(flags.calibrate, on, predictions, report, stem)
        if not data.is_own(valid):
            fit["data"] = str(valid.path)
        report = dataclasses.replace(report, calibration_fit=fit)
        written.append(calibration.save(workdir, fitted, progress.step, fit))

    with workdir_lib.writing(workdir):
        before = _replaced(written[1], report)
        predictions_lib.write_predictions(path, predictions, rows)
        files.write_json(written[1], report.to_json())
    title = "new rows" if flags.input else f"{flags.split} split"
    _print(report, title, [*_unknown(rows, workdir, report), *_seen(rows, data)])
    if importance is not None:
        print(f"\n{summary.importance(importance)}")
        name = f"{config.name}, {title}: importance of the slots"
        written += _write_importance(importance, path, name)
    if isinstance(rows, RawRows):
        written += _write_rejected(rows, path)
    print(f"step {progress.step:,} of {workdir}; written: {', '.join(map(str, written))}{before}")


def _importance(
    score_rows: Callable, split: shards.Split, config: ConfigDict, num_rows: int
) -> dict:
    """Importance of the slots on a sample of a split; `score_rows` takes rows and a batch size."""
    sample = importance_lib.sample(split, num_rows, config.seed)
    score = lambda rows: score_rows(rows, config.data.eval_batch_size)
    bar = sys.stderr.isatty()
    return importance_lib.importance(score, sample, split.schema, config.seed, progress=bar)


def _replaced(path: Path, report: SplitReport) -> str:
    """A word on a file that goes, if it is of other data of the same name."""
    try:
        data = files.read_json(path).get("data", "") if path.exists() else report.data
    except (ValueError, AttributeError):
        data = "unknown"  # nobody can tell
    return "" if data == report.data else f"; {path.name} of {data or 'the own data'} is replaced"


def _print(report: SplitReport, title: str, warnings: list[str]) -> None:
    print(summary.table(report, title))
    for part in report.by:
        print(f"\n{summary.by_value(part)}")
    if report.calibration_fit is not None:
        print(f"\n{summary.calibration(report.calibration_fit, title)}")
    for words in warnings:
        print(f"warning: {words}")


def _unknown(rows: shards.Split | RawRows, workdir: Path, report: SplitReport) -> list[str]:
    """What is to be said of slots that training knew and that are all unknown in the rows."""
    unseen = rows.unseen if isinstance(rows, RawRows) else {}
    counts = {k: (report.rows, round(x * report.rows)) for k, x in report.unknown.items()}
    schema = schema_lib.load(workdir)  # that of other shards says what is usual there
    vocabularies = lambda: encode.load_vocabularies(schema, workdir)
    return unknown.said(schema, counts, unseen, vocabularies)


def _seen(rows: shards.Split | RawRows, data: RunData) -> list[str]:
    """What is to be said of days that the run was trained on, but of a split of its own data."""
    if isinstance(rows, shards.Split) and data.is_own(rows):
        return []
    words = seen.said(rows, run_data.trained_days(data.workdir, data.schema))
    return [f"the run was {words} to evaluate by"] if words else []


def _open(flags: absl_flags.FlagValues, data: RunData, by: list[str]) -> shards.Split | RawRows:
    """The rows that are to be evaluated, checked as far as that is cheap."""
    if flags.input:
        paths = [storage.reading(name) for name in cli.paths("input", flags.input, "file")]
        return RawRows(data.schema, data.workdir, paths, dict.fromkeys(by, "by"))
    coded_lib.check(data.schema, by, of_shards=True)
    return data.open(flags.split, flags.data)


def _named(rows: shards.Split | RawRows, data: RunData) -> tuple[str, str]:
    """What the files of the rows are called, and where the rows are, if not in the run's data."""
    if isinstance(rows, RawRows):
        return rows.stem, rows.name
    if data.is_own(rows):
        return rows.path.name, ""
    return f"{rows.path.name}@{rows.path.parent.resolve().name}", str(rows.path)


def _by_value(
    rows: shards.Split | RawRows, by: list[str], predictions: Any, workdir: Path, most: int
) -> list[by_value.ByValue]:
    """The tables of the columns."""
    if isinstance(rows, RawRows):
        found = rows.coded()
    else:
        found = [coded_lib.of_split(rows, workdir, column) for column in by]
    scored = predictions.label, predictions.p, predictions.logit, predictions.weight
    return [by_value.make(one, *scored, most) for one in found]


def _calibrate(
    method: str, on: Any, predictions: Any, report: SplitReport, stem: str
) -> tuple[calibration.Calibration, dict[str, Any]]:
    """The calibration that predictions `on` the validation split give, and what it changes."""
    fitted = calibration.fit(method, on.logit, on.label, on.weight)
    scored = predictions.label, predictions.logit, predictions.weight
    num_rows = len(on.label) if on.weight is None else np.count_nonzero(on.weight)
    fit = {"method": method, "split": "valid", "rows": int(num_rows), "evaluated": stem}
    return fitted, fit | calibration.before_and_after(fitted, report, *scored)


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    string = functools.partial(absl_flags.DEFINE_string, flag_values=flags)
    integer = functools.partial(absl_flags.DEFINE_integer, flag_values=flags)
    string("workdir", None, "Directory of the run.")
    string("split", "test", "Which split of the data: train, valid or test.")
    string("data", "", "Directory of the shards, if not the run's own.")
    raw = "Raw rows with labels in place of a split: a file, a directory, or several with commas."
    string("input", "", raw)
    string("by", "", "Columns, with commas, for each of whose values to show the metrics.")
    integer("by_values", by_value.MOST, "Values of a column that --by shows, the others in a line.")
    methods = " or ".join(calibration.METHODS)
    string("calibrate", "", f"Fit a calibration on the validation split of the data: {methods}.")

    importance = "Importance of each slot, by permutation."
    absl_flags.DEFINE_bool("importance", False, importance, flag_values=flags)
    rows = "Rows that --importance uses at most, drawn evenly from the split by config.seed."
    integer("importance_rows", 100_000, rows)


# Flags that say nothing without another.
_NEEDS = {"importance_rows": "importance", "by_values": "by"}
# Flags that cannot go with --input, and why.
_NOT_OF_INPUT = {
    "split": "raw rows have no splits",
    "importance": "it permutes the rows of a split",
}


def _check(flags: absl_flags.FlagValues) -> None:
    if flags["calibrate"].present:
        check_choice("--calibrate", flags.calibrate, calibration.METHODS)
    for name, needed in _NEEDS.items():
        given = f"--{name}={flags[name].value}"
        if flags[name].present and not flags[needed].value:
            raise UserError(f"{given}: no effect without --{needed}; add that")
        if int(flags[name].value or 0) < 1:
            what = name.partition("_")[2]
            raise UserError(f"{given}: it must be at least 1; give a number of {what}")

    for name, why in _NOT_OF_INPUT.items() if flags.input else ():
        if flags[name].present:
            raise UserError(f"--{name}: {why}; leave it out, or --input")
    if flags.input and flags["data"].present and not flags.calibrate:
        raise UserError("--data: raw rows are no shards; leave it out, or --input")


def _write_rejected(rows: RawRows, predictions: Path) -> list[Path]:
    """Writes the rows that could not be read beside the predictions; an older file goes."""
    path = predictions.with_name(f"{predictions.stem}.rejected.parquet")
    if not rows.rejected:
        files.remove(path)
        return []
    rejected = [(row, files.said(reason)) for row, reason in rows.rejected]
    table = pa.table([list(column) for column in zip(*rejected)], names=["row", "reason"])
    with files.whole(path) as temporary:
        parquet.write(table, temporary)
    return [path]


def _write_importance(found: dict[str, Any], predictions: Path, title: str) -> list[Path]:
    """Writes the importance of the slots, and its chart, beside the predictions."""
    paths = [predictions.with_suffix(f".importance.{end}") for end in ("json", "svg")]
    files.write_json(paths[0], found)
    names, drops = ([slot[key] for slot in found["slots"]] for key in ("name", "auc_drop"))
    files.write_text(paths[1], plots.bars(title, names, drops, unit="AUC lost when permuted"))
    return paths


def main(argv: list[str] | None = None) -> int:
    """Runs the program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
