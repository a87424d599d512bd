"""Evaluates a trained run on a split of its data and prints the table that `train` ends with.

    python -m emofm_jax.evaluate --workdir=runs/quickstart
    python -m emofm_jax.evaluate --workdir=runs/quickstart --split=valid

Uses the best checkpoint if the run had a monitor, else the last. Writes predictions/SPLIT.parquet (row, label, ftype,
p, p_type, p_given_type) and predictions/SPLIT.json (the metrics) into the workdir.
"""

import json
import sys
from pathlib import Path

from absl import flags as absl_flags

from emofm_jax import cli, summary
from emofm_jax import config as config_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import shards


def _main(flags: absl_flags.FlagValues) -> None:
    workdir = Path(flags.workdir)
    config = config_lib.load(workdir)
    schema = schema_lib.load(workdir)
    split = shards.open_split(flags.data or config.data.dir, flags.split, schema)
    from emofm_jax.training import evaluation  # loads jax: after the cheap checks
    from emofm_jax.training import program as program_lib

    program = program_lib.make_program(config, schema, num_steps=1)
    state, progress = program_lib.restore_kept(config, workdir, program)
    predictions, report = program_lib.score(config, split, program, state)
    path = workdir / "predictions" / f"{flags.split}.parquet"
    evaluation.write_predictions(path, predictions)
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(summary.table({flags.split: report}, flags.split))
    print(f"step {progress.step:,} of {workdir}; written: {path}, {path.with_suffix('.json')}")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    absl_flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=flags)
    absl_flags.DEFINE_string("split", "test", "Which split of the data: train, valid or test.", flag_values=flags)
    absl_flags.DEFINE_string("data", "", "Directory of the shards, if not the run's own.", flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
