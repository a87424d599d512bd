"""A backtest under way: day by day, each scored by models that have not seen it.

    <workdir>/backtest.json                       Header: policies, days, seeds
    <workdir>/results.jsonl                       a Line of every day, policy and seed
    <workdir>/data/POLICY/DAY/                    shards: train = what is trained on, valid = DAY
    <workdir>/runs/POLICY/DAY/seed-S/             a workdir as train makes it; DAY scores

Vocabularies are of the train split, and so are ranges and means. No figure of the scored day may
choose a state (`check`). A run that failed ends its chain of warm starts, and the others go on.
"""

import contextlib
import dataclasses
import json
import math
import statistics
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.data import directories, files, parquet, preparation, shards, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError
from emofm_jax.evaluation import paired
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.options import flatten
from emofm_jax.sweeping import overrides, policies, processes
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.policies import Declared, Policy, Task
from emofm_jax.sweeping.record import Result
from emofm_jax.sweeping.run import Run
from emofm_jax.training import run as run_lib

FILE = "backtest.json"
_SCORED = "score.json"  # of a day that a model scored which was there already
# Fields that say what a scored row counts as: days are paired over the policies.
_OF_ROWS = tuple(f"prepare.{f}" for f in ("label", "positive", "weight", "keep_probability"))


@dataclasses.dataclass(frozen=True)
class Header:
    """The content of backtest.json.

    Attributes:
      experiment, name, policies, seeds: as of the last command.
      days: that are scored.
      before: days before the first of them; empty in files that do not say.
      configs: {policy: {dotted field: value}} of what decides results, of each that was lived here.
    """

    experiment: str
    name: str
    policies: tuple[str, ...]
    days: tuple[str, ...]
    seeds: tuple[int, ...]
    before: tuple[str, ...] = ()
    configs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads it; raises UserError on a damaged file."""
        with files.undamaged(path, "restore it, or choose another --workdir"):
            body = files.read_json(path)
            tuples = {k: tuple(body.get(k, ())) for k in ("policies", "days", "seeds", "before")}
            return cls(**body | tuples)

    def after(self, old: Self) -> Self:
        """This one, in the workdir of an older one.

        Raises:
          UserError: it lives other days, but for more at the end; or a policy is of another config.
        """
        remedy = "choose another --workdir"
        was, now = (*old.before, *old.days), (*self.before, *self.days)
        now = now if old.before else self.days
        if now[: len(was)] != was:
            late = [day for day in now if day not in was]
            gone = [f"{day} was lived there and is gone" for day in was if day not in now]
            what = [*gone, *(f"{day} is new, and not behind {was[-1]}" for day in late)]
            what = what[0] if what else "they stand in another order"
            raise UserError(f"days of the backtest: {what}; {remedy}")
        if old.before and len(old.before) != len(self.before):
            what = f"{len(old.before)} there, {len(self.before)} now"
            raise UserError(f"first_days: {what}; {remedy}")

        differ = dict[str, list[str]]()
        for policy in (policy for policy in self.policies if policy in old.configs):
            for field, (a, b) in _difference(old.configs[policy], self.configs[policy]).items():
                text = f"{field} {config_lib.spelled(a)} there, {config_lib.spelled(b)} now"
                differ.setdefault(text, []).append(policy)
        if differ:
            what = "; ".join(f"{text} ({', '.join(of)})" for text, of in differ.items())
            raise UserError(
                f"config of the backtest: another than in its workdir, {what}; {remedy}"
            )
        return dataclasses.replace(self, configs={**old.configs, **self.configs})


@dataclasses.dataclass(frozen=True)
class Line:
    """A day, scored under a policy before it was trained on.

    Attributes:
      policy, day, seed: which.
      rows, clicks: of the day.
      auc, logloss, pcoc: of the day; None where undefined.
      intervals: {metric: [low, high]} over the rows of the day.
      unknown: mean share over the slots of values that are missing or were never trained on.
      rows_trained: rows times epochs that were trained on for this day.
      seconds: that training took.
      error: why there is no score, in one line; None if there is one.
    """

    policy: str
    day: str
    seed: int
    rows: int = 0
    clicks: int = 0
    auc: float | None = None
    logloss: float | None = None
    pcoc: float | None = None
    intervals: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    unknown: float | None = None
    rows_trained: int = 0
    seconds: float = 0.0
    error: str | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """The line that its fields as JSON are; raises ValueError if they are none."""
        try:
            return cls(**body)
        except TypeError as error:
            raise ValueError(str(error)) from None

    def said(self) -> str:
        """The line in words."""
        head = f"{self.day}  {self.policy} seed {self.seed}"
        if self.error is not None:
            return f"{head}: failed: {self.error}"
        cell = lambda x, form: "-" if x is None else f"{x:{form}}"
        auc = f"AUC {cell(self.auc, '.4f')}, logloss {cell(self.logloss, '.4f')}"
        rows = f"{self.rows:,} rows, {self.rows_trained:,} trained on, {self.seconds:.0f} s"
        note = "" if self.clicks else " (a day without a click has no AUC)"
        return f"{head}: {auc}, PCOC {cell(self.pcoc, '.3f')}, {rows}{note}"


@dataclasses.dataclass(frozen=True)
class Backtest:
    """What all parts of a backtest need to know.

    Attributes:
      base: config of its experiment file.
      workdir: its own.
      declared: what the file says.
      days: all of the log that are lived, in order.
      seeds: of every policy.
      jobs: processes that train at a time.
      retry: runs that failed are tried again.
    """

    base: ConfigDict
    workdir: Path
    declared: Declared
    days: tuple[str, ...]
    seeds: tuple[int, ...]
    jobs: int
    retry: bool = False

    def run(self, lock: int) -> Iterator[Line]:
        """Yields a line of every day, policy and seed, in the order of the days.

        Args:
          lock: descriptor that holds the lock of the workdir.
        """
        first = self.declared.first_days
        for at in range(first, len(self.days)):
            tasks = [
                (policy, policy.task(self.days, first, at)) for policy in self.declared.policies
            ]
            groups, failed = [], []
            for policy, task in tasks:
                runs, lines = self._prepared(policy, task)
                failed += lines
                if runs and task.trains:
                    groups.append(runs)
                failed += [line for run in runs if not task.trains for line in [self._score(run)]]
            yield from failed
            ended = {run.workdir: result for run, result in self._train(groups, lock)}
            for run in (run for group in groups for run in group):
                yield self._line(run, ended[run.workdir])
            self._forget(at)

    def check(self) -> None:
        """Raises UserError, before anything is written, on a mistake in the config of a policy.

        Where a policy prepares rows in its own way, they are read once.
        """
        first, last = self.declared.first_days, len(self.days) - 1
        self._check_rows()
        for policy in self.declared.policies:
            config = self.config(policy, policy.task(self.days, first, last), self.seeds[0])
            config.train.init_from, config.train.init_moments = "", False
            with _named(f"policy {policy.name!r}"):
                check(config)
                run_lib.check(config)
                prepared = self.of_policy(policy)
                if prepared.prepare != self.base.prepare:
                    self._check_days(preparation.days(prepared))

    def _check_rows(self) -> None:
        first, *others = self.declared.policies
        there = flatten(self.of_policy(first))
        for policy in others:
            here = flatten(self.of_policy(policy))
            for field in (field for field in _OF_ROWS if here[field] != there[field]):
                what = (
                    f"{here[field]!r} of policy {policy.name!r}, {there[field]!r} of {first.name!r}"
                )
                remedy = "all policies are judged by the same rows, give them one"
                raise UserError(f"config.{field}: {what}; {remedy}")

    def _check_days(self, found: Sequence[str]) -> None:
        if gone := [day for day in self.days if day not in found]:
            what = f"no row is of {gone[0]}, which others have"
            raise UserError(f"config.prepare: {what}; give all policies the same days")

    def header(self, experiment: str) -> Header:
        """What backtest.json holds, after what it has held.

        Args:
          experiment: its file and argument.

        Raises:
          UserError: the workdir is of other days or of another config.
        """
        free = config_lib.free() | policies.DECIDED
        configs = {
            policy.name: {k: v for k, v in flatten(self.of_policy(policy)).items() if k not in free}
            for policy in self.declared.policies
        }
        first = self.declared.first_days
        before, days = self.days[:first], self.days[first:]
        of_command = (experiment, self.base.name, tuple(configs), days, self.seeds)
        found = Header(*of_command, before, configs)
        path, runs = self.workdir / FILE, self.workdir / "runs"
        if not path.exists():
            return found

        old = Header.load(path)
        # Days at the end without a run were not lived: preparing one of them failed.
        begun = [at for at, day in enumerate(old.days, 1) if any(runs.glob(f"*/{_quoted(day)}"))]
        if not begun:
            return found
        with _named(str(path)):
            return found.after(dataclasses.replace(old, days=old.days[: begun[-1]]))

    def place(self, policy: Policy, day: str, seed: int) -> Path:
        """The workdir of a run."""
        return _place(self.workdir, policy.name, day, seed)

    def data(self, policy: Policy, day: str) -> Path:
        """The shards of a policy and a day."""
        return self.workdir / "data" / policy.name / _quoted(day)

    def of_policy(self, policy: Policy) -> ConfigDict:
        """The base with the overrides of a policy, before the backtest sets its fields."""
        return overrides.apply(self.base, policy.overrides, f"policy {policy.name!r}")

    def config(self, policy: Policy, task: Task, seed: int) -> ConfigDict:
        """The config of a run."""
        fields: dict[str, Any] = {
            "prepare.train_days": task.train,
            "prepare.replay_days": task.replayed,
            "prepare.valid_days": (task.day,),
            "prepare.test_days": (),
            "data.dir": str(self.data(policy, task.day)),
        }
        found = self.of_policy(policy)
        moments = found.train.init_moments and bool(task.parent)
        fields |= {"train.init_moments": moments, "train.init_from": ""}

        if task.parent:
            fields["train.init_from"] = str(self.place(policy, task.parent, seed))
        found = overrides.apply(found, fields, f"policy {policy.name!r}")
        return config_lib.from_dict(json.loads(found.to_json()) | {"seed": seed})

    def _prepared(self, policy: Policy, task: Task) -> tuple[list[Run], list[Line]]:
        """The runs of a policy for a day, their data made, and lines of those that cannot be."""
        runs, lines = [], []
        for seed in self.seeds:
            config = self.config(policy, task, seed)
            parent = task.parent and self.place(policy, task.parent, seed)
            point = f"{policy.name}/{_quoted(task.day)}"
            run = Run(point, seed, {}, config, self.place(policy, task.day, seed))
            if parent and not (parent / "metrics.json").exists():
                error = f"the model of {task.parent}, which it starts from, is not there"
                lines.append(Line(policy.name, task.day, seed, error=error))
            elif parent and not _has_model(parent) and not (run.workdir / "metrics.json").exists():
                error = f"{parent}: its checkpoint, which it starts from, is gone; {_again(run)}"
                lines.append(Line(policy.name, task.day, seed, error=error))
            else:
                runs.append(run)

        if runs:
            base = self.data(policy, task.parent) if task.parent else None
            with _named(f"policy {policy.name!r}, day {task.day}"):
                identity = _prepare(runs[0].config, base)
            runs = [dataclasses.replace(run, identity=identity) for run in runs]
        return runs, lines

    def _train(self, groups: Sequence[Sequence[Run]], lock: int) -> Iterator[tuple[Run, Result]]:
        """Trains the runs that have no result yet; yields all of them with theirs."""
        todo = []
        for group in groups:
            found = [(run, sweep_run.ended(run)) for run in group]
            ended = {run.workdir: r for run, r in found if r and (r.ok or not self.retry)}
            yield from ((run, ended[run.workdir]) for run in group if run.workdir in ended)
            todo.append([run for run in group if run.workdir not in ended])

        todo = [group for group in todo if group]
        named = {(run.point, run.seed): run for group in todo for run in group}
        for run in named.values():  # other processes have what is here only
            for place in (run.workdir, run.config.data.dir, run.config.train.init_from):
                storage.need(Path(place))
        with contextlib.closing(processes.execute_all(todo, self.jobs, lock)) as found:
            for result in found:
                run = named.pop((result.point, result.seed))
                storage.publish(self.workdir, without=[other.workdir for other in named.values()])
                yield run, result

    def _line(self, run: Run, result: Result) -> Line:
        """The line of a run that has ended."""
        policy, day = run.workdir.parts[-3], run.config.prepare.valid_days[0]
        if result.metrics is None:
            return Line(policy, day, run.seed, error=result.error, seconds=result.seconds)
        train = schema_lib.load(Path(run.config.data.dir)).rows_per_type
        rows = sum(train) * result.metrics["train"]["epochs"]
        found = _line(run, SplitReport.from_json(result.metrics["valid"]))
        return dataclasses.replace(found, rows_trained=rows, seconds=result.seconds)

    def _score(self, run: Run) -> Line:
        """Lets the first model of a policy score a day."""
        from emofm_jax.training import build  # loads jax
        from emofm_jax.training import predictions as predictions_lib

        policy = run.workdir.parts[-3]
        first_day = self.days[self.declared.first_days]
        first = _place(self.workdir, policy, first_day, run.seed)
        day = run.config.prepare.valid_days[0]
        if not (first / "metrics.json").exists():
            return Line(policy, day, run.seed, error=f"its model, {first}, is not there")
        path, target = run.workdir / _SCORED, run.workdir / "predictions" / "valid.parquet"
        if not (path.exists() and target.exists()):
            if not _has_model(first):
                what = f"its checkpoint, which scores {day}, is gone; restore it, or {_again(run)}"
                raise UserError(f"{first}: {what}")
            schema = schema_lib.load(first)
            config = build.for_evaluation(config_lib.load(first))
            split = shards.open_split(Path(run.config.data.dir), "valid", schema)
            parts = build.make_parts(config, schema)
            state, _ = build.restore_kept(config, first, parts)
            predictions, report = predictions_lib.score(config, split, parts, state)
            predictions_lib.write_predictions(target, predictions)
            files.write_json(path, report.to_json())
        with files.undamaged(path, "restore it, or delete it: the day is scored again"):
            report = SplitReport.from_json(files.read_json(path))
        return _line(run, report)

    def _forget(self, at: int) -> None:
        """Removes the checkpoints that no day to come starts from, nor a day that failed."""
        if at == self.declared.first_days:
            return
        for policy in (policy for policy in self.declared.policies if policy.kind != "frozen"):
            for seed in self.seeds:
                yesterday, today = (self.place(policy, self.days[i], seed) for i in (at - 1, at))
                if policy.kind != "warm" or (today / "metrics.json").exists():
                    directories.remove(yesterday / "checkpoints")


def check(config: ConfigDict) -> None:
    """Raises UserError if rows have no days, or if the scored day would choose a state."""
    if config.prepare.split != "day":
        what = f"{config.prepare.split!r}: a backtest goes from day to day"
        raise UserError(f"config.prepare.split: {what}; set 'day' and prepare.day_column")
    if config.train.monitor:
        what = f"{config.train.monitor!r}: the day that is scored would choose the state"
        raise UserError(f"config.train.monitor: {what}; leave it empty, and say train.epochs")

    for key in config_lib.SECTIONS:
        if config.optim[key].schedule == "plateau":
            what = "'plateau': the day that is scored would choose the rate"
            raise UserError(f"config.optim.{key}.schedule: {what}; take constant or cosine")
    if config.train.init_from:
        what = f"{config.train.init_from!r}: policies say what a model starts from"
        raise UserError(f"config.train.init_from: {what}; leave it out")


def lived(declared: Declared, found: Sequence[str]) -> tuple[str, ...]:
    """The days that are lived, of those that the data have.

    Raises:
      UserError: one has no row, or there are too few.
    """
    if gone := [day for day in declared.days if day not in found]:
        raise UserError(f"days of the backtest: no row is of {gone[0]}; leave it out")
    days = tuple(day for day in found if not declared.days or day in declared.days)
    if len(days) <= declared.first_days:
        what = (
            f"{len(days)} days, of which {declared.first_days} come before the first that is scored"
        )
        raise UserError(f"days of the backtest: {what}; name more days, or lower first_days")
    return days


def check_line(workdir: Path, header: Header, line: Line) -> None:
    """Compares a line with the run that it is of, and that run with the header.

    Raises:
      UserError: they say other things, or the line's files are not there.
    """
    place = _place(workdir, line.policy, line.day, line.seed)
    lines = workdir / "results.jsonl"
    remedy = "restore it, or start the same backtest again"
    known = header.configs or {line.policy: {}}  # early ones have none
    if line.policy not in known or line.day not in header.days:
        what = f"policy {line.policy!r}, day {line.day}: not of this backtest"
        raise UserError(f"{lines}: {what}; {remedy}")
    if header.configs and (place / "config.json").exists():
        here = flatten(config_lib.load(place))
        with files.undamaged(workdir / FILE, remedy):
            differ = _difference(known[line.policy], here).keys()
        # The first day of a policy has no moments to start from.
        if differ := differ - {"train.init_moments"}:
            what = f"another {min(differ)} than {place / 'config.json'}"
            raise UserError(f"{workdir / FILE}: {what}; {remedy}")
    if line.error is not None:
        return

    there = (path for path in (place / "metrics.json", place / _SCORED) if path.exists())
    if (path := next(there, None)) is None:
        raise UserError(f"{place}: neither metrics.json nor {_SCORED}; {remedy}")
    with files.undamaged(path, remedy):
        body = files.read_json(path)
        found = SplitReport.from_json(body if path.name == _SCORED else body["valid"])
    for key in ("rows", "clicks", "auc", "logloss", "pcoc"):
        if getattr(found, key) != getattr(line, key):
            what = f"{key} {getattr(found, key)}, and {getattr(line, key)} in {lines}"
            raise UserError(f"{path}: {what}; {remedy}")


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple]:
    """{field: both values} where the config of a header differs in what decides results."""
    old = flatten(config_lib.default()) | config_lib.renamed(flatten(there))
    free = config_lib.free() | policies.DECIDED
    return {k: pair for k, pair in config_lib.changed(old, here).items() if k not in free}


def _place(workdir: Path, policy: str, day: str, seed: int) -> Path:
    """The workdir of a run of a backtest."""
    return workdir / "runs" / policy / _quoted(day) / f"seed-{seed}"


def save(workdir: Path, lines: Sequence[Line]) -> None:
    """Writes results.jsonl."""
    text = "".join(files.as_json(dataclasses.asdict(line)) + "\n" for line in lines)
    files.write_text(workdir / "results.jsonl", text)


def _prepare(config: ConfigDict, base: Path | None) -> str:
    """Prepares the data of runs, unless they are there; returns their identity."""
    directory = Path(config.data.dir)
    if (directory / "schema.json").exists():
        schema = schema_lib.load(directory)
        path = directory / "prepare.json"
        with files.undamaged(path, f"restore it, or delete {directory}: it is prepared again"):
            made_of = (files.read_json(path).get("base") or {}).get("identity")
        same = made_of == (schema_lib.load(base).identity if base else None)
        if same and not run_lib.stale(config, schema):
            return schema.identity
    preparation.prepare(config, progress=False, base=base)
    return schema_lib.load(directory).identity


def _line(run: Run, report: SplitReport) -> Line:
    """The figures of a day."""
    policy, day = run.workdir.parts[-3], run.config.prepare.valid_days[0]
    path = run.workdir / "predictions" / "valid.parquet"
    remedy = f"restore it, or {_again(run)}"
    if not path.exists():
        raise UserError(f"{path}: no such file; {remedy}")
    table = parquet.read(path, None, remedy)
    weight = table["weight"].to_numpy() if "weight" in table.column_names else None
    label, p, logit = (table[name].to_numpy() for name in ("label", "p", "logit"))
    found = paired.estimates(paired.Rows(label, weight), p, logit)
    nats = found["logloss"].value
    of_others = (nats is None) != (report.logloss is None)
    if nats is not None and report.logloss is not None:  # sums of the same f32, perhaps in turns
        of_others = not math.isclose(nats, report.logloss, rel_tol=1e-6)
    if of_others or len(label) != report.rows:
        raise UserError(f"{path}: not the scores that the figures of the day are of; {remedy}")

    intervals = {
        name: [float(one.interval.low), float(one.interval.high)]
        for name, one in found.items()
        if one.interval is not None
    }
    unknown = statistics.fmean(report.unknown.values()) if report.unknown else None
    of_rows = (report.rows, report.clicks, report.auc, report.logloss, report.pcoc)
    return Line(policy, day, run.seed, *of_rows, intervals, unknown)


def _has_model(workdir: Path) -> bool:
    """Whether a run has a checkpoint, of which a day that is over may have none."""
    return any((workdir / "checkpoints").glob("step_*"))


def _again(run: Run) -> str:
    """What helps where a run needs what is gone."""
    return f"delete {run.workdir.parents[1]} to live the policy again"


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Puts a place before the user's mistakes."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from None


def _quoted(day: str) -> str:
    """A day as the name of a directory, which is no way to another one: `..` is %2E%2E."""
    name = urllib.parse.quote(day, safe=" ")
    return name if name.strip(".") else name.replace(".", "%2E")
