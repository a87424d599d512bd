"""Evaluates a trained run on a split of its data and prints the table that `train` ends with.

    python -m emofm_jax.evaluate --workdir=runs/quickstart
    python -m emofm_jax.evaluate --workdir=runs/quickstart --split=valid
    python -m emofm_jax.evaluate --workdir=runs/quickstart --calibrate=platt
    python -m emofm_jax.evaluate --workdir=runs/quickstart --importance

Uses the best checkpoint if the run had a monitor, else the last. Writes predictions/SPLIT.parquet (row, label, ftype,
p, p_type, p_given_type) and predictions/SPLIT.json (the metrics) into the workdir; of other data, --data=DIR, they are
SPLIT@NAME.parquet and .json, NAME being the last part of DIR: reports read those of the run's own.

--calibrate fits p = f(logit) on the validation split of the run's data, by logistic (platt) or isotonic regression,
stores it in calibration.json for the scorer and shows PCOC, expected calibration error and log-loss of SPLIT before and
after; the predictions stay as the model gives them. --importance shows what AUC and log-loss lose when a slot's values
are permuted over a sample of SPLIT's rows, and writes predictions/SPLIT.importance.json and .svg.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax import config as config_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import shards
from emofm_jax.errors import UserError, check_choice
from emofm_jax.evaluation import calibration, metrics, summary
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.reports import plots
from emofm_jax.scoring import importance as importance_lib


def _main(flags: absl_flags.FlagValues) -> None:
    workdir = Path(flags.workdir)
    _check(flags)
    config = config_lib.load(workdir)
    schema = schema_lib.load(workdir)
    split = shards.open_split(flags.data or config.data.dir, flags.split, schema)
    valid = shards.open_split(config.data.dir, "valid", schema) if flags.calibrate else None
    from emofm_jax.training import build  # loads jax: after the cheap checks
    from emofm_jax.training import predictions as predictions_lib

    parts = build.make_parts(config, schema)
    state, progress = build.restore_kept(config, workdir, parts)
    predictions, report = predictions_lib.score(config, split, parts, state)
    path, directory = (
        workdir / "predictions" / f"{flags.split}.parquet",
        split.path.parent.resolve(),
    )
    if directory != Path(config.data.dir).resolve():
        path = path.with_stem(f"{flags.split}@{directory.name}")
        report = dataclasses.replace(report, data=str(split.path))
    written = [path, path.with_suffix(".json")]
    if flags.importance:  # before anything is written: one class has none

        def score(rows) -> dict:
            return predictions_lib.score_rows(parts, state, rows, config.data.eval_batch_size)

        rows = importance_lib.sample(split, flags.importance_rows, config.seed)
        found = importance_lib.importance(
            score, rows, schema, config.seed, progress=sys.stderr.isatty()
        )
    if valid is not None:
        fitted_on = predictions
        if valid.path != split.path:
            fitted_on, _ = predictions_lib.score(config, valid, parts, state)
        fitted = calibration.fit(
            flags.calibrate, fitted_on.logit, fitted_on.label, fitted_on.weight
        )
        facts = {
            "method": flags.calibrate,
            "split": "valid",
            "rows": len(fitted_on.label),
            "evaluated": flags.split,
        }
        facts |= _before_and_after(report, predictions, fitted)
        report = dataclasses.replace(report, calibration_fit=facts)
        written.append(calibration.save(workdir, fitted, progress.step, facts))
    predictions_lib.write_predictions(path, predictions)
    _write(written[1], json.dumps(report.to_json(), indent=1) + "\n")
    print(summary.table(report, flags.split))
    if valid is not None:
        print(f"\n{summary.calibration(facts, flags.split)}")
    if flags.importance:
        print(
            f"\nslots by the AUC that is lost when their values are permuted over {found['rows']:,} rows"
        )
        print(summary.importance(found))
        written += _write_importance(
            found, path, f"{config.name}, {split.path.name} split: importance of the slots"
        )
    print(f"step {progress.step:,} of {workdir}; written: {', '.join(map(str, written))}")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    absl_flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=flags)
    absl_flags.DEFINE_string(
        "split", "test", "Which split of the data: train, valid or test.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "data", "", "Directory of the shards, if not the run's own.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "calibrate",
        "",
        f"Fit a calibration on the validation split: {' or '.join(calibration.METHODS)}.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "importance", False, "Importance of each slot, by permutation.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "importance_rows",
        100_000,
        "Rows that --importance uses at most, drawn evenly from the split by config.seed.",
        flag_values=flags,
    )


def _check(flags: absl_flags.FlagValues) -> None:
    if flags["calibrate"].present:
        check_choice("--calibrate", flags.calibrate, calibration.METHODS)
    if flags["importance_rows"].present and not flags.importance:
        raise UserError(
            f"--importance_rows={flags.importance_rows}: no effect without --importance; add that"
        )
    if flags.importance_rows < 1:
        raise UserError(
            f"--importance_rows={flags.importance_rows}: it must be at least 1; give a number of rows"
        )


def _before_and_after(report: SplitReport, predictions, fitted: calibration.Calibration) -> dict:
    """The figures of a split without and with calibration."""
    p = calibration.apply(fitted.arrays, predictions.logit.astype(np.float64))
    label, weight = predictions.label, predictions.weight
    after = {
        "auc": metrics.auc(label, p, weight),
        "logloss": metrics.logloss(label, p, weight),
        "pcoc": metrics.pcoc(label, p, weight),
        "ece": metrics.expected_calibration_error(metrics.reliability(label, p, weight)),
    }
    return {"before": {key: getattr(report, key) for key in after}, "after": after}


def _write_importance(found: dict, predictions: Path, title: str) -> list[Path]:
    """Writes the importance of the slots, and its chart, beside the predictions; returns the files."""
    paths = [
        predictions.with_suffix(".importance.json"),
        predictions.with_suffix(".importance.svg"),
    ]
    _write(paths[0], json.dumps(found, indent=1) + "\n")
    names, drops = ([slot[key] for slot in found["slots"]] for key in ("name", "auc_drop"))
    _write(paths[1], plots.bars(title, names, drops, unit="AUC lost when permuted"))
    return paths


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
