"""Trains every point of an experiment file with every seed, and writes one table of the results.

    python -m emofm_jax.sweep --config=experiments/mixers.py --workdir=runs/mixers
    python -m emofm_jax.sweep --config=experiments/mixers.py --workdir=runs/mixers --jobs=2     # two at a time
    python -m emofm_jax.sweep --config=experiments/mixers.py --workdir=runs/mixers --nocheckpoints       # less on disk
    python -m emofm_jax.sweep --config=FILE --workdir=runs/search --search=tpe --trials=30         # FILE has `ranges`

The file defines get_config as for train, and sweep(), which yields named points (emofm_jax/points.py has an example).
All points are checked before the first is trained. A point that fails is reported and the others go on. The same
command again goes on where it stopped, each run bit for bit; when all is done it starts nothing and shows the table.
Points that the file has since gained are run; those that it has lost stay in runs/ and leave the results.

The workdir then holds sweep.json (points, seeds, reference), results.jsonl and results.csv (a line per run), and
runs/POINT/seed-S/, a workdir as train makes it. `python -m emofm_jax.report --workdir=...` makes a page of it.
Exit code: 0; 1 if a run failed; 2 for a mistake in the sweep itself.
"""

import contextlib
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags as absl_flags
from ml_collections import ConfigDict

from emofm_jax import cli, points
from emofm_jax import config as config_lib
from emofm_jax.errors import UserError
from emofm_jax.sweeping import processes, search
from emofm_jax.sweeping import results as results_lib
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.training import run as run_lib
from emofm_jax.training import workdir as workdir_lib


def _sweep(flags: absl_flags.FlagValues) -> bool:
    """Runs it all; whether every run is well."""
    _check_flags(flags)
    experiment, base, workdir = flags["config"].config_filename, flags.config, Path(flags.workdir)
    file, colon, arg = experiment.partition(":")
    plan = points.read(
        file, arg if colon else None, base, cli.overrides(flags), search=bool(flags.search)
    )
    names = [point.name for point in plan.points] or [
        f"trial-{number:03d}" for number in range(flags.trials)
    ]
    if flags.search:
        search.check(plan.ranges, base)
        if "data.dir" not in plan.ranges:
            _check_data(base)
    _check_points(plan.points)
    header = {
        "experiment": experiment,
        "name": base.name,
        "points": names,
        "seeds": list(plan.seeds),
    }
    header |= {"reference": plan.reference or names[0], "search": flags.search}
    _check_workdir(workdir, header)
    groups = [_runs_of(point, plan.seeds, base, workdir) for point in plan.points]
    with workdir_lib.alone(workdir) as lock:
        (workdir / "sweep.json.tmp").write_text(json.dumps(header, indent=1) + "\n")
        (workdir / "sweep.json.tmp").replace(workdir / "sweep.json")
        results = results_lib.Table(workdir, names, plan.seeds)
        try:
            if flags.search:
                last = _search(flags, plan, base, workdir, names, results, lock)
            else:
                _run(groups, results, flags, lock)
                last = "(--retry tries those that failed again)\n" if results.failed() else ""
        except (SystemExit, KeyboardInterrupt):
            print(
                "stopped, with the state of its runs saved; the same command goes on",
                file=sys.stderr,
            )
            raise
    print(f"\n{results.as_text()}\n{last}written: {workdir}/ (results.csv, results.jsonl, runs/)")
    return not results.failed()


def _run(
    groups: Sequence[Sequence[dict]],
    results: results_lib.Table,
    flags: absl_flags.FlagValues,
    lock: int,
) -> None:
    """Trains what has no record yet, and prints a line per run; a group is a point's runs."""
    todo, old = [], []
    for run in [run | {"keep": flags.checkpoints} for group in groups for run in group]:
        found = sweep_run.recorded(run)
        again = found is not None and flags.retry and found["line"]["status"] != "ok"
        old += [found] if found and not again else []
        todo += [run] if not found or again else []
        if (
            found and found["line"]["status"] == "ok" and not flags.checkpoints
        ):  # a kill may have left them
            shutil.rmtree(Path(run["workdir"]) / "checkpoints", ignore_errors=True)
    results.add(old)
    impossible = _make_data(todo)
    for run in [run for run in todo if run["config"]["data"]["dir"] in impossible]:
        _end(results, sweep_run.record(run, None, impossible[run["config"]["data"]["dir"]]))
    todo = [run for run in todo if run["config"]["data"]["dir"] not in impossible]
    groups = [
        [run for run in todo if run["point"] == name]
        for name in dict.fromkeys(run["point"] for run in todo)
    ]
    with contextlib.closing(processes.execute_all(groups, flags.jobs, lock)) as records:
        for record in records:
            _end(results, record)


def _end(results: results_lib.Table, record: dict) -> None:
    results.add([record])
    print(results.said(record), flush=True)


def _search(
    flags,
    plan: points.Plan,
    base: ConfigDict,
    workdir: Path,
    names,
    results: results_lib.Table,
    lock: int,
) -> str:
    """Trial after trial, each drawn from the results of those before; says which was best."""
    monitor, history = base.train.monitor or "auc", []
    for name in names:
        values, refused = search.next_trial(plan.ranges, base, history, base.seed), ""
        try:
            config = points.apply(base, values, name)
            run_lib.check(config)
        except UserError as error:  # options that do not go together
            config, refused = base, str(error)
        group = _runs_of(points.Point(name, config, {}), plan.seeds, base, workdir)
        if refused:
            for run in group:
                _end(results, sweep_run.record(run | {"overrides": values}, None, refused))
        else:
            _run([group], results, flags, lock)
        ended = [line for line in results.lines() if line["point"] == name]
        reached = [
            _objective(line["metrics"]["valid"], monitor)
            for line in ended
            if line["status"] == "ok"
        ]
        whole = len(reached) == len(plan.seeds) and None not in reached
        history.append((values, statistics.fmean(reached) if whole else None))
    reached = {i: value for i, (_, value) in enumerate(history) if value is not None}
    if not reached:
        return f"no trial has a validation {monitor} with every seed: runs failed, or its rows are of one class\n"
    best = max(reached, key=reached.get)
    chosen = ", ".join(f"{field}={value!r}" for field, value in history[best][0].items())
    value = -reached[best] if monitor == "logloss" else reached[best]
    return f"best: {names[best]}, validation {monitor} {value:.6f}: {chosen}\n"


def _objective(report: dict, monitor: str) -> float | None:
    """What a monitor makes of a validation report, more being better; None if it has no value."""
    auc, logloss = report["auc"], report["logloss"]
    if (auc is None and "auc" in monitor) or (logloss is None and "logloss" in monitor):
        return None
    return {
        "auc": lambda: auc,
        "logloss": lambda: -logloss,
        "auc - logloss": lambda: auc - logloss,
    }[monitor]()


def _runs_of(
    point: points.Point, seeds: Sequence[int], base: ConfigDict, workdir: Path
) -> list[dict]:
    """The runs of a point (runs.py); raises UserError where a workdir holds one of another config, unless it failed."""
    found = []
    changed = config_lib.difference(point.config, base)
    overrides = {
        k: None if ours is ... else ours for k, (ours, _) in changed.items() if k != "seed"
    }
    for seed in seeds:
        config = points.apply(point.config, {"seed": seed}, f"point {point.name!r}")
        place = Path("runs") / point.name / f"seed-{seed}"
        run = {
            "point": point.name,
            "seed": seed,
            "overrides": overrides,
            "config": config.to_dict(),
        }
        found.append(run | {"workdir": str(workdir / place), "place": str(place)})
        sweep_run.outdated(found[-1])
    return found


def _check_flags(flags: absl_flags.FlagValues) -> None:
    if flags.jobs < 1:
        raise UserError(f"--jobs={flags.jobs}: it must be at least 1, the number of processes")
    if flags.search not in ("", "tpe"):
        raise UserError(f"--search={flags.search}: it is not known; choose tpe")
    if flags.trials and not flags.search:
        raise UserError(
            f"--trials={flags.trials}: it has no meaning without a search; add --search=tpe"
        )
    if flags.search and flags.trials < 1:
        raise UserError(f"--search={flags.search}: it needs --trials=N, how many points it may try")
    if flags.search and flags.retry:  # they would be drawn again, and all after them
        raise UserError(
            "--retry: trials of a search follow from those that failed; choose another --workdir instead"
        )


def _check_points(declared: Sequence[points.Point]) -> None:
    """Checks models, options and data of all points, so that none stops a sweep that is under way."""
    first: dict[str, points.Point] = {}
    for point in declared:
        where, config = f"point {point.name!r}", point.config
        try:
            run_lib.check(config)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for field, what in run_lib.without_effect(config).items():
            if field in point.given:
                raise UserError(f"{where}: {field} has no effect on {what}; leave it out")
        made, directory = first.setdefault(config.data.dir, point), Path(config.data.dir)
        differ = config_lib.difference(made.config.prepare, config.prepare)
        if differ:
            field, (theirs, ours) = next(iter(differ.items()))
            raise UserError(
                f"{where}: prepare.{field} is {ours!r}, that of {made.name!r} {theirs!r}, and both have their data in "
                f"{directory}; give one of them another data.dir"
            )
        if made is point:
            _check_data(config)


def _check_data(config: ConfigDict) -> None:
    """Opens data that are there, or that the sweep cannot make."""
    if (Path(config.data.dir) / "schema.json").exists() or config.prepare.format != "synthetic":
        run_lib.open_data(config)


def _check_workdir(workdir: Path, header: dict) -> None:
    """Raises UserError on a workdir that holds anything but this sweep; notes what has gone from the experiment."""
    path = workdir / "sweep.json"
    if not path.exists():
        found = [file.name for file in workdir.iterdir()] if workdir.is_dir() else []
        of_sweep = (".writable", "sweep.json.", "results.", "report.")
        if not all(name == "runs" or name.startswith(of_sweep) for name in found):
            raise UserError(
                f"{workdir}: holds files but no sweep (no sweep.json); choose an empty --workdir"
            )
        return
    try:
        before = json.loads(path.read_text())
        same = [(Path(x["experiment"]).name, x["search"]) for x in (before, header)]
        gone = [
            f"{key[:-1]} {x}"
            for key in ("points", "seeds")
            for x in before[key]
            if x not in header[key]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error!r}); delete it, the runs stay as they are"
        ) from None
    if same[0] != same[1]:
        kind = " (a search)" if before["search"] else ""
        raise UserError(
            f"{workdir}: holds the sweep of {before['experiment']}{kind}; choose another --workdir"
        )
    if gone:
        print(
            f"note: the sweep has no {', '.join(gone)} any more; the runs stay in {workdir}/runs, out of the results"
        )


def _make_data(todo: Sequence[dict]) -> dict[str, str]:
    """Makes the synthetic data that runs lack; {directory: error} of those that cannot be made."""
    impossible = {}
    for directory, run in {run["config"]["data"]["dir"]: run for run in todo}.items():
        if not (Path(directory) / "schema.json").exists():
            try:
                run_lib.open_data(config_lib.from_dict(json.loads(json.dumps(run["config"]))))
            except UserError as error:
                impossible[directory] = str(error)
    return impossible


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_config(flags, argv)
    absl_flags.DEFINE_string(
        "workdir", None, "Directory of the sweep; made if missing.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "jobs", 1, "Processes that train at a time, each a run.", flag_values=flags
    )
    kept = "Whether the checkpoints of finished runs stay; evaluate, predict and export need them."
    absl_flags.DEFINE_bool("checkpoints", True, kept, flag_values=flags)
    absl_flags.DEFINE_bool(
        "retry", False, "Whether runs that failed are tried again.", flag_values=flags
    )
    where = "tpe: points are drawn from the file's `ranges` by Optuna, for the best validation AUC (train.monitor)."
    absl_flags.DEFINE_string("search", "", where, flag_values=flags)
    absl_flags.DEFINE_integer("trials", 0, "Points that a search tries.", flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, 1 if a run failed, 2 after one line of error, 128 + the signal that stopped it."""
    well = []

    def program(flags):
        well.append(_sweep(flags))

    return cli.run(program, _define, argv) or int(well == [False])


if __name__ == "__main__":
    sys.exit(main())
