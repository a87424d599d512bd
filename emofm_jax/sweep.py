"""Trains every point of an experiment file with every seed, and writes the results.

    python -m emofm_jax.sweep --config=experiments/mixers.py --workdir=runs/mixers --jobs=2
    python -m emofm_jax.sweep --config=FILE --workdir=runs/search --search=tpe --trials=30

The file defines get_config as for train, and sweep(), which yields named points, or for a search
`ranges` (emofm_jax/points.py has an example). A search tries the config itself first, and scores no
test rows. All points are checked before the first is trained. A run that fails is reported, and the
others go on. The same command again goes on where it stopped, each run bit for bit, and shows the
results. Points that the file has gained are run; those it has lost leave the results.

The workdir then holds sweep.json (points, seeds, reference), results.jsonl and results.csv (a line
per run), and runs/POINT/seed-S/, a workdir as train makes it; `report` makes a page of it. Exit
code: 0; 1 if a run failed; 2 for a mistake in the sweep itself.
"""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from emofm_jax.training import huge_pages

if __name__ == "__main__":  # before what takes time to load
    huge_pages.use(__file__)
else:
    huge_pages.use_in_command()

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax import config as config_lib
from emofm_jax.data import engines, files, storage
from emofm_jax.errors import UserError
from emofm_jax.sweeping import experiment, search
from emofm_jax.sweeping import sweep as sweep_lib
from emofm_jax.sweeping.record import Header
from emofm_jax.sweeping.results import Results
from emofm_jax.sweeping.run import Run
from emofm_jax.training import workdir as workdir_lib


def _sweep(flags: absl_flags.FlagValues) -> bool:
    """Runs it all; returns whether every run is well."""
    _check_flags(flags)
    base, workdir = flags.config, storage.writing(flags.workdir, has_runs=True)
    file, arg = cli.experiment(flags)
    named = str(file) if arg is None else f"{file}:{arg}"
    given, searched = cli.overrides(flags), bool(flags.search)
    plan = experiment.read(file, arg, base, given, searched)

    # Every mistake that can be seen now is, before anything is written.
    if searched:
        search.check(plan.ranges, base)
        if "data.dir" not in plan.ranges:
            sweep_lib.check_data(base)
    sweep_lib.check_points(plan.points)

    names = tuple(point.name for point in plan.points)
    names = names or tuple(f"trial-{number:03d}" for number in range(flags.trials))
    header = Header(named, base.name, names, plan.seeds, plan.reference or names[0], flags.search)
    sweep_lib.check_workdir(workdir, header)
    how = (flags.jobs, flags.checkpoints, flags.retry, not searched, flags.engine, flags.workdir)
    sweep = sweep_lib.Sweep(base, workdir, plan.seeds, *how)
    runs = [run for point in plan.points for run in sweep.runs_of(point)]
    if flags.list:
        print("\n".join(_command(named, given, run, sweep.name_of(run)) for run in runs))
        return True

    with workdir_lib.alone(workdir) as lock:
        files.write_json(workdir / "sweep.json", header.to_json())
        results = Results(workdir, header)
        try:
            if searched:
                last = search.run(sweep, plan.ranges, names, results, lock)
            else:
                sweep.train(runs, results, lock)
                last = "(--retry tries those that failed again)\n" if results.failed() else ""
        except (SystemExit, KeyboardInterrupt):
            storage.publish(workdir)
            state = "at their last checkpoints" if flags.engine == "ray" else "saved"
            saved = f"stopped, with the state of its runs {state}; the same command goes on"
            print(saved, file=sys.stderr)
            raise
        storage.publish(workdir)

    print(f"\n{results.as_text()}\n{last}written: {workdir}/ (results.csv, results.jsonl, runs/)")
    return not results.failed()


def _command(experiment: str, given: Mapping[str, Any], run: Run, workdir: str) -> str:
    """The command that trains a run in a workdir, where one types it.

    Raises:
      UserError: there is none, since a point sets what no flag can.
    """
    fields = {**given, **run.overrides, "seed": run.seed}
    flags = [f"--config={experiment}", *(f"--config.{k}={v}" for k, v in fields.items())]
    idle = config_lib.without_effect(run.config).keys() & fields.keys()
    try:
        differs = idle or config_lib.difference(cli.config_of(["train", *flags]), run.config)
    except UserError as error:
        differs = {str(error)}

    if differs:
        problem = f"train has no flag that sets what it does ({min(differs)})"
        raise UserError(f"--list: point {run.point!r}: {problem}; leave --list out")
    command = ["python", "-m", "emofm_jax.train", *flags, f"--workdir={workdir}"]
    return shlex.join(command)


def _check_flags(flags: absl_flags.FlagValues) -> None:
    searched = f"--search={flags.search}"
    cli.check_runs(flags)
    engines.check(flags.engine)
    if flags.engine != "local" and flags.search:
        problem = "a search trains one point after the other"
        raise UserError(f"--engine={flags.engine}: {problem}; leave one of them out")
    if flags.search not in ("", "tpe"):
        raise UserError(f"{searched}: it is not known; choose tpe")
    if flags.trials and not flags.search:
        trials = f"--trials={flags.trials}"
        raise UserError(f"{trials}: it has no meaning without a search; add --search=tpe")
    if flags.search and flags.trials < 1:
        raise UserError(f"{searched}: it needs --trials=N, how many points it may try")
    if flags.search and flags.list:
        raise UserError(f"--list: {searched} chooses runs by those before; leave one of them out")
    if flags.search and flags.retry:  # they would be drawn again, and all after them
        why = "trials of a search follow from those that failed"
        raise UserError(f"--retry: {why}; choose another --workdir instead")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_config(flags, argv)
    text, whole, yes = absl_flags.DEFINE_string, absl_flags.DEFINE_integer, absl_flags.DEFINE_bool
    text("workdir", None, "Directory of the sweep; made if missing.", flag_values=flags)
    cli.define_runs(flags)
    what = f"What trains: {', '.join(engines.NAMES)}, a cluster that sees the workdir and the data."
    text("engine", "local", what, flag_values=flags)
    kept = "Whether the checkpoints of finished runs stay; evaluate, predict and export need them."
    yes("checkpoints", True, kept, flag_values=flags)
    what = (
        "Prints the command of train for each run, to be started anywhere that sees the workdir; "
        "then the same command without --list takes their results."
    )
    yes("list", False, what, flag_values=flags)
    where = "tpe: points are drawn from the file's `ranges` by Optuna, for the best validation AUC"
    text("search", "", f"{where} (train.monitor).", flag_values=flags)
    whole("trials", 0, "Points that a search tries.", flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, 1 if a run failed, 2 after one line of error, 128 + its signal."""
    return cli.run(_sweep, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
