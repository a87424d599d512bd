"""Lives the days of a log again: each day is scored before any model is trained on it.

    python -m emofm_jax.backtest --config=experiments/kuairand_daily.py --workdir=runs/backtest

The file defines get_config as for train, with prepare.split = "day", and

    policies = ("frozen", "warm", "warm+2", "last-7", "all")   # or {policy: overrides}
    first_days = 3                # days before the first that is scored; 1 if it is left out
    days = ("2022-04-25", ...)    # that are lived; all of the data if it is left out
    seeds = (0, 1, 2)             # else the one of the config

frozen: one model, of the first days. warm: yesterday's model goes on with yesterday's rows;
warm+K: and with those of the K days before it once more. last-W: a new model on the last W days.
all: a new model on all days. Ids stay from day to day under the warm policies (prepare --base), and
rows of the table go on by value (train --init_from). Vocabularies never see the scored day, and no
figure of it may choose a state: train.monitor and schedule=plateau are refused.

The same command again goes on where it stopped, with more days at the end or more seeds, too; with
--retry it tries runs that failed once more. Another config needs another workdir. Writes
results.jsonl, a line a day, policy and seed; report.html with AUC, logloss, PCOC and unknown values
over the days, rows trained on, and the policies against the first one, paired over the days. Exit
code: 0; 1 if a run failed; 2 for a mistake in the backtest itself.
"""

import dataclasses
import sys
from pathlib import Path

from emofm_jax.training import huge_pages

if __name__ == "__main__":  # before what takes time to load
    huge_pages.use(__file__)
else:
    huge_pages.use_in_command()

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax.data import directories, files, preparation, storage
from emofm_jax.errors import UserError
from emofm_jax.reports import backtest_page
from emofm_jax.sweeping import backtest, experiment, policies
from emofm_jax.sweeping.backtest import Backtest, Line
from emofm_jax.training import workdir as workdir_lib

_OURS = {"writable", backtest.FILE, "results.jsonl", "report.html", "report.md", "runs", "data"}


def _live(flags: absl_flags.FlagValues) -> bool:
    """Runs it all; returns whether every run is well."""
    cli.check_runs(flags)
    base, workdir = flags.config, storage.writing(flags.workdir, has_runs=True)
    path, arg = cli.experiment(flags)
    seeds = experiment.seeds(path, arg, base, cli.overrides(flags))
    declared = policies.read(path, arg)
    backtest.check(base)
    _check_workdir(workdir)
    days = backtest.lived(declared, preparation.days(base))
    found = Backtest(base, workdir, declared, days, seeds, flags.jobs, flags.retry)
    found.check()
    with workdir_lib.alone(workdir) as lock:
        named = str(path) if arg is None else f"{path}:{arg}"
        header = found.header(named)
        files.write_json(workdir / backtest.FILE, dataclasses.asdict(header))
        lines: list[Line] = []
        backtest.save(workdir, lines)  # those of a command before may be of runs that are gone
        try:
            for line in found.run(lock):
                lines.append(line)
                print(line.said(), flush=True)
                backtest.save(workdir, lines)
        except (SystemExit, KeyboardInterrupt):
            storage.publish(workdir)
            raise
        report = backtest_page.report(header, lines)
        files.write_text(workdir / "report.html", report.as_html())
        files.write_text(workdir / "report.md", report.as_markdown())
        storage.publish(workdir)

    well = all(line.error is None for line in lines)
    last = "" if well else "(--retry tries those that failed again)\n"
    print(f"\n{report.as_text()}\n{last}written: {workdir}/ (results.jsonl, report.html, runs/)")
    return well


def _check_workdir(workdir: Path) -> None:
    """Raises UserError if a directory holds anything but a backtest, or is none."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: it is a file; name a directory")
    if (workdir / backtest.FILE).exists() or not workdir.exists():
        return
    if strange := {directories.whole_name(path.name) for path in workdir.iterdir()} - _OURS:
        what = f"holds {min(strange)} but no backtest (no {backtest.FILE})"
        raise UserError(f"{workdir}: {what}; choose an empty --workdir")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_config(flags, argv)
    where = "Directory of the backtest; made if missing."
    absl_flags.DEFINE_string("workdir", None, where, flag_values=flags)
    cli.define_runs(flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, 1 if a run failed, 2 after one line of error, 128 + its signal."""
    return cli.run(_live, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
