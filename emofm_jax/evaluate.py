"""Evaluates a trained run on a split of its data and prints the table that `train` ends with.

    python -m emofm_jax.evaluate --workdir=runs/quickstart
    python -m emofm_jax.evaluate --workdir=runs/quickstart --split=valid
    python -m emofm_jax.evaluate --workdir=runs/quickstart --calibrate=platt
    python -m emofm_jax.evaluate --workdir=runs/quickstart --importance

Uses the best checkpoint if the run had a monitor, else the last. Writes predictions/SPLIT.parquet
(row, label, ftype, p, p_type, p_given_type) and predictions/SPLIT.json (the metrics) into the
workdir. Of other data, --data=DIR, they are SPLIT@NAME.parquet and .json, NAME being the last part
of DIR: reports read those of the run's own.

--calibrate fits p = f(logit) on the validation split of the run's data, by logistic (platt) or
isotonic regression, stores it in calibration.json for the scorer and shows PCOC, expected
calibration error and log-loss of SPLIT before and after. The predictions stay as the model gives
them. --importance shows what AUC and log-loss lose when a slot's values are permuted over a sample
of SPLIT's rows, and writes predictions/SPLIT.importance.json and .svg.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax import config as config_lib
from emofm_jax.data import files, shards
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError, check_choice
from emofm_jax.evaluation import calibration, summary
from emofm_jax.reports import plots
from emofm_jax.scoring import importance as importance_lib


def _main(flags: absl_flags.FlagValues) -> None:
    _check(flags)
    workdir, name = Path(flags.workdir), flags.split
    config, schema = config_lib.load(workdir), schema_lib.load(workdir)
    split = shards.open_split(flags.data or config.data.dir, name, schema)
    valid = shards.open_split(config.data.dir, "valid", schema) if flags.calibrate else None
    from emofm_jax.training import build  # after the cheap checks
    from emofm_jax.training import predictions as predictions_lib

    parts = build.make_parts(config, schema)
    state, progress = build.restore_kept(config, workdir, parts)
    predictions, report = predictions_lib.score(config, split, parts, state)
    path, data = workdir / "predictions" / f"{name}.parquet", split.path.parent.resolve()
    if data != Path(config.data.dir).resolve():
        path = path.with_stem(f"{name}@{data.name}")
        report = dataclasses.replace(report, data=str(split.path))
    written = [path, path.with_suffix(".json")]

    # Before anything is written: rows of one class have no importance and no calibration.
    if flags.importance:
        rows = importance_lib.sample(split, flags.importance_rows, config.seed)
        size, bar = config.data.eval_batch_size, sys.stderr.isatty()
        score = lambda rows: predictions_lib.score_rows(parts, state, rows, size)
        importance = importance_lib.importance(score, rows, schema, config.seed, progress=bar)
    if valid is not None:
        on = predictions
        if valid.path != split.path:
            on, _ = predictions_lib.score(config, valid, parts, state)
        fitted = calibration.fit(flags.calibrate, on.logit, on.label, on.weight)
        rows = predictions.label, predictions.logit, predictions.weight
        fit = {"method": flags.calibrate, "split": "valid", "rows": len(on.label)}
        fit |= {"evaluated": name} | calibration.before_and_after(fitted, report, *rows)
        report = dataclasses.replace(report, calibration_fit=fit)
        written.append(calibration.save(workdir, fitted, progress.step, fit))

    predictions_lib.write_predictions(path, predictions)
    files.write_json(written[1], report.to_json())
    print(summary.table(report, name))
    if valid is not None:
        print(f"\n{summary.calibration(fit, name)}")
    if flags.importance:
        print(f"\n{summary.importance(importance)}")
        title = f"{config.name}, {name} split: importance of the slots"
        written += _write_importance(importance, path, title)
    print(f"step {progress.step:,} of {workdir}; written: {', '.join(map(str, written))}")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    string = functools.partial(absl_flags.DEFINE_string, flag_values=flags)
    string("workdir", None, "Directory of the run.")
    string("split", "test", "Which split of the data: train, valid or test.")
    string("data", "", "Directory of the shards, if not the run's own.")
    methods = " or ".join(calibration.METHODS)
    string("calibrate", "", f"Fit a calibration on the validation split: {methods}.")

    importance = "Importance of each slot, by permutation."
    absl_flags.DEFINE_bool("importance", False, importance, flag_values=flags)
    rows = "Rows that --importance uses at most, drawn evenly from the split by config.seed."
    absl_flags.DEFINE_integer("importance_rows", 100_000, rows, flag_values=flags)


def _check(flags: absl_flags.FlagValues) -> None:
    if flags["calibrate"].present:
        check_choice("--calibrate", flags.calibrate, calibration.METHODS)
    given = f"--importance_rows={flags.importance_rows}"
    if flags["importance_rows"].present and not flags.importance:
        raise UserError(f"{given}: no effect without --importance; add that")
    if flags.importance_rows < 1:
        raise UserError(f"{given}: it must be at least 1; give a number of rows")


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
