"""Scores rows with a trained run: raw files of the run's format, labels or not, or prepared shards.

    python -m emofm_jax.predict --workdir=runs/mine --input=new.csv --output=scores.parquet
    python -m emofm_jax.predict --workdir=runs/quickstart --input=data/quickstart/test \\
        --output=scores.csv
    python -m emofm_jax.predict --workdir=runs/a,runs/b --calibrated --input=new.parquet \\
        --output=scores.parquet

The workdir may be a run, one of its checkpoints, what `export` wrote, or several of these with
commas: an ensemble. Output: one row per row of the input, in its order: `row_id` (the run's row id
column, or the row's position), `p` (click probability, the type unknown), `p_std` (the standard
deviation of p over `model.members`, if there are several), for typed models `p_type` and
`p_given_type` (a list, one entry per type), and `reason`: null, or why the row could not be read;
it then has no scores. If no row at all could be read, the output says why, and the program ends as
after a mistake. Memory does not grow with the input. The output appears when it is whole: after a
kill the same command starts over.
"""

import sys

from emofm_jax.training import huge_pages

if __name__ == "__main__":  # before what takes time to load
    huge_pages.use(__file__)
else:
    huge_pages.use_in_command()

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax.data import counts, storage
from emofm_jax.evaluation import summary
from emofm_jax.scoring import row_files


def _main(flags: absl_flags.FlagValues) -> None:
    source = storage.reading(flags.input)
    with storage.file(flags.output) as output:
        row_files.check(source, output)
        from emofm_jax.scoring import scorer as scorer_lib  # after the cheap checks

        runs = cli.workdirs(flags)
        scorer = scorer_lib.load_scorer(runs, calibrated=flags.calibrated, combine=flags.combine)
        done = row_files.score(scorer, source, output, progress=sys.stderr.isatty())

    for words in counts.said_of_all(done.notes):
        print(words)
    if unknown := summary.unknown(done.unknown):
        print(unknown)
    for words in done.warnings:
        print(f"warning: {words}")
    scored = f"{done.num_rows - done.num_bad:,} rows scored with {' + '.join(scorer.names)}"
    if done.num_bad:
        scored += f"; {done.num_bad:,} of {done.num_rows:,} could not be read (column `reason`)"
    print(f"{scored}; written: {output}")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_scorer(flags)
    source = "Raw file, directory of raw files, or a split of shards."
    absl_flags.DEFINE_string("input", None, source, flag_values=flags)
    output = "File to write, .parquet or .csv."
    absl_flags.DEFINE_string("output", None, output, flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """Runs the program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
