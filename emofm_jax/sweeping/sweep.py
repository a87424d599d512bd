"""A sweep under way: from the points of an experiment file to runs, and from runs to results."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.data import directories, files, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError
from emofm_jax.sweeping import processes, record
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.experiment import Point
from emofm_jax.sweeping.results import Results
from emofm_jax.sweeping.run import Run
from emofm_jax.training import run as run_lib

# What may stand in the workdir of a sweep before its sweep.json.
_OF_SWEEP = {"writable", "sweep.json", "results.jsonl", "results.csv", "runs"}
_OF_SWEEP |= {"report.html", "report.md"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What all parts of a sweep need to know.

    Attributes:
      base: config of its experiment file, with the command line's overrides.
      workdir: its own.
      seeds: of every point.
      jobs: processes that train at a time.
      keep: checkpoints of runs that have ended stay.
      retry: runs that failed are tried again.
      test: rows of the test split are scored; by a search they are not.
      engine: what the processes are of.
      name: of the workdir, as it was typed.
      prepared: {data.dir: (identity of its preparation, who is of it)}, of all runs.
    """

    base: ConfigDict
    workdir: Path
    seeds: tuple[int, ...]
    jobs: int
    keep: bool
    retry: bool
    test: bool
    engine: str = "local"
    name: str = ""
    prepared: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def runs_of(self, point: Point) -> list[Run]:
        """Returns the runs of a point, one a seed.

        Raises:
          UserError: a workdir holds a run of another config, unless that failed.
        """
        changed = config_lib.difference(point.config, self.base)
        overrides = {k: None if ours is ... else ours for k, (ours, _) in changed.items()}
        overrides.pop("seed", None)

        text, runs = point.config.to_json(), []
        for seed in self.seeds:
            config = config_lib.from_dict(json.loads(text) | {"seed": seed})
            workdir = self.workdir / record.place(point.name, seed)
            run = Run(point.name, seed, overrides, config, workdir, self.keep, test=self.test)
            runs.append(run)
            sweep_run.outdated(run)
        return runs

    def name_of(self, run: Run) -> str:
        """The workdir of a run, as one types it."""
        if not storage.is_remote(self.name):
            return str(run.workdir)
        return storage.below(self.name, str(record.place(run.point, run.seed)))

    def train(self, runs: Sequence[Run], results: Results, lock: int) -> None:
        """Trains the runs that have no result yet, and prints a line for each.

        Args:
          runs: those of a point beside each other, since they share what is compiled.
          results: gains all of them.
          lock: descriptor that holds the lock of the workdir.

        Raises:
          UserError: the data were prepared anew since runs of the sweep were trained.
        """
        todo, old = [], []
        for run in runs:
            result = sweep_run.ended(run)
            if result is None or (self.retry and not result.ok):
                todo.append(run)
                continue
            old.append(result)
            if result.ok:
                self._check_prepared(run.config.data.dir, run.workdir)
            if result.ok and not self.keep:  # a kill may have left them
                directories.clear(run.workdir)
                directories.remove(run.workdir / "checkpoints")
        results.add(old)

        impossible, possible = make_data(todo), []
        for run in todo:
            if error := impossible.get(run.config.data.dir):
                results.end(sweep_run.end(run, error=error))
            else:
                directory = run.config.data.dir
                identity = self._check_prepared(directory, storage.reading(directory))
                possible.append(dataclasses.replace(run, identity=identity))
                if self.engine == "local":
                    storage.need(run.workdir)
        if self.engine != "local":  # each run goes on, elsewhere, from what is published of it
            storage.publish(self.workdir)

        groups = [list(group) for _, group in itertools.groupby(possible, lambda run: run.point)]
        how = (groups, self.jobs, lock, self.engine, self.name_of)
        with contextlib.closing(processes.execute_all(*how)) as found:
            waiting = {run.workdir for run in possible}
            for result in found:
                if self.engine != "local":
                    storage.take(self.workdir / result.workdir)
                results.end(result)
                waiting.remove(self.workdir / result.workdir)
                storage.publish(self.workdir, without=waiting)

    def _check_prepared(self, data: str, place: Path) -> str:
        """The identity of the preparation of `data` that a directory, or a run, is of.

        Raises:
          UserError: it is another than that of the runs before.
        """
        known = (place / "schema.json").exists()  # a run may have been moved away
        identity = schema_lib.load(place).identity if known else ""
        if not identity:
            return ""

        first, whose = self.prepared.setdefault(data, (identity, str(place)))
        if identity != first:
            both = f"of the preparation {identity} of {data}, but {whose} of {first}"
            remedy = "prepare that again, delete what is of another, or choose another --workdir"
            raise UserError(f"{place}: {both}; {remedy}")
        return identity


def make_data(runs: Sequence[Run]) -> dict[str, str]:
    """Makes the synthetic data that runs lack; returns {directory: error} where it cannot."""
    impossible = {}
    for directory, run in {run.config.data.dir: run for run in runs}.items():
        if not (storage.reading(directory) / "schema.json").exists():
            try:
                run_lib.open_data(run.config)
            except UserError as error:
                impossible[directory] = str(error)
    return impossible


def check_points(points: Sequence[Point]) -> None:
    """Checks models, options and data of all points, so that none stops a sweep under way.

    Raises:
      UserError: beginning with the point.
    """
    first: dict[str, Point] = {}
    for point in points:
        where, config = f"point {point.name!r}", point.config
        try:
            run_lib.check(config)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for field, what in config_lib.without_effect(config).items():
            if field in point.given:
                raise UserError(f"{where}: {field} has no effect on {what}; leave it out")

        made = first.setdefault(config.data.dir, point)
        for field, values in config_lib.difference(made.config.prepare, config.prepare).items():
            theirs, ours = values
            both = f"is {ours!r}, that of {made.name!r} {theirs!r}, and both have their data in "
            remedy = f"{config.data.dir}; give one of them another data.dir"
            raise UserError(f"{where}: prepare.{field} {both}{remedy}")
        if made is point:
            check_data(config)


def check_data(config: ConfigDict) -> None:
    """Opens data that are there, or that the sweep cannot make; raises UserError as that does."""
    if (
        storage.reading(config.data.dir) / "schema.json"
    ).exists() or config.prepare.format != "synthetic":
        run_lib.open_data(config)


def check_workdir(workdir: Path, header: record.Header) -> None:
    """Notes on stdout what the experiment has no more of what a workdir holds.

    Raises:
      UserError: it holds anything but this sweep.
    """
    path = workdir / "sweep.json"
    if not path.exists():
        found = [file.name for file in workdir.iterdir()] if workdir.is_dir() else []
        if not {directories.whole_name(name) for name in found} <= _OF_SWEEP:
            what = "holds files but no sweep (no sweep.json)"
            raise UserError(f"{workdir}: {what}; choose an empty --workdir")
        return

    with files.undamaged(path, "delete it, the runs stay as they are"):
        before = record.Header.from_json(files.read_json(path))

    file, search = Path(before.experiment).name, before.search
    if (file, search) != (Path(header.experiment).name, header.search):
        what = f"holds the sweep of {before.experiment}{' (a search)' if search else ''}"
        raise UserError(f"{workdir}: {what}; choose another --workdir")
    if search and _scored_test_rows(workdir):
        what = "holds a search of an older version, whose trials scored test rows"
        raise UserError(f"{workdir}: {what}; its results stay: choose another --workdir")

    # Where no run is, there is nothing to say; sweep.json is written anew in any case.
    runs = workdir / "runs"
    points = (p for p in before.points if p not in header.points and (runs / p).exists())
    seeds = (s for s in before.seeds if s not in header.seeds and any(runs.glob(f"*/seed-{s}")))
    gone = [f"point {name}" for name in points] + [f"seed {seed}" for seed in seeds]
    if gone:
        stay = f"the runs stay in {workdir}/runs, out of the results"
        print(f"note: the sweep has no {', '.join(gone)} any more; {stay}")


def _scored_test_rows(workdir: Path) -> bool:
    """Whether a run of the sweep has figures of test rows."""
    results = (record.read(run) for run in (workdir / "runs").glob("*/*"))
    return any("test" in result.metrics for result in results if result and result.metrics)
