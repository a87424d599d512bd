"""Turns raw click logs into shards: `python -m emofm_jax.prepare --config=experiments/frappe.py`.

Reads what `config.prepare` describes, counts vocabularies over the training rows where a slot needs
one, encodes every row, and writes Parquet shards, schema.json and prepare.json to
`config.data.dir`, replacing what an earlier run left there. Prints, for each split, rows, rejected
rows and click rates, and for each slot its distinct values, the share of values that training never
saw, and the share of the most frequent one. docs/data.md explains the formats, with a walk from a
csv to a trained model.

With `--base=RUN_OR_DATA` the ids of a run, or of the data of the day before, stay: values that
reach min_count are appended, and counts go on. Prints for each slot known, new, appended and
expired values.

`--suggest=FILE_OR_DIRECTORY`, without `--config`, reads up to 100,000 raw rows of any format and
prints a first experiment file: `python -m emofm_jax.prepare --suggest=log.csv > mine.py`. It runs
as it is. Comments say what was seen, and what could not be decided stands on top as questions.

Large raw files are read by all cores. Machines that do a `--stage` each, or work for
`--engine=ray`, share a file system, or places at s3://. Shards appear when all of them are whole.
"""

import codecs
import sys
from pathlib import Path

from emofm_jax.data import engines

if __name__ == "__main__" or Path(sys.argv[0]).name == "emofm-prepare":
    engines.begin(sys.argv[1:], "emofm_jax.data.stages")  # before what takes time to load

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax.data import by_hand, preparation, shards, storage
from emofm_jax.data import counts as counts_lib
from emofm_jax.data.suggest import experiment as suggest
from emofm_jax.errors import UserError
from emofm_jax.evaluation import leaks


def _main(flags: absl_flags.FlagValues) -> None:
    if "config" not in flags:
        text = suggest.suggest(storage.reading(flags.suggest))
        if codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8":  # as Python's files are
            text = text.encode("ascii", "backslashreplace").decode()
        print(text, end="")
        return
    directory = flags.config.data.dir
    replaces = flags.stage in ("", "publish")
    there = lambda: storage.reading(directory, later=True) / "schema.json"
    if replaces and directory and there().exists():
        print(f"{directory} holds shards already; they are replaced when the new ones are whole")

    base = storage.reading(flags.base) if flags.base else None
    report: counts_lib.Report | str
    if flags.stage:
        report = _stage(flags, base)
    elif flags.shard:
        raise UserError(f"--shard={flags.shard}: it is a share of a stage; name it in --stage")
    elif _by_cluster(flags):
        report = by_hand.whole(flags.config, base, flags.engine, flags.workers)
    else:
        report = preparation.prepare(
            flags.config, base=base, engine=flags.engine, workers=flags.workers
        )
    if isinstance(report, str):
        print(report)
        return
    print(counts_lib.as_text(report))
    if all(n in report.splits and report.splits[n].rows for n in ("train", "valid")):
        splits = (shards.open_split(directory, name) for name in ("train", "valid"))
        if leak := leaks.said(leaks.find(*splits)):
            print(leak)
    print(f"The shards are in {directory}")


def _by_cluster(flags: absl_flags.FlagValues) -> bool:
    """Whether other machines do the work on what lies at s3://."""
    places = flags.config.prepare.source, flags.config.data.dir
    is_made_up = flags.config.prepare.format == "synthetic"
    return flags.engine == "ray" and not is_made_up and any(map(storage.is_remote, places))


def _stage(flags: absl_flags.FlagValues, base: Path | None) -> counts_lib.Report | str:
    """Does one stage; the report of the last one, or what was done."""
    if flags.engine != "local":
        problem = "a stage is done by processes of its machine"
        raise UserError(f"--engine={flags.engine}: {problem}; leave it out with --stage")
    return by_hand.run(flags.config, flags.stage, flags.shard, base, flags.workers)


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    raw = "Raw rows to print a first experiment file for; stands alone."
    absl_flags.DEFINE_string("suggest", "", raw, flag_values=flags)
    if cli.is_given(argv, "suggest"):
        return

    cli.define_config(flags, argv, but_for="--suggest")
    what = "Directory of shards, or a run, whose ids stay; new values are appended."
    absl_flags.DEFINE_string("base", "", what, flag_values=flags)
    what = f"What does the work: {', '.join(engines.NAMES)}; the shards are the same for each."
    absl_flags.DEFINE_string("engine", "local", what, flag_values=flags)
    what = "Workers of the engine; 0 = all cores, or fewer where the files are small."
    absl_flags.DEFINE_integer("workers", 0, what, flag_values=flags, lower_bound=0)
    what = f"Does one stage only: {', '.join(by_hand.NAMES)}, in this order (docs/scaling.md)."
    absl_flags.DEFINE_string("stage", "", what, flag_values=flags)
    what = "Share of --stage=count or encode that this command does, as in 3/16."
    absl_flags.DEFINE_string("shard", "", what, flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
