"""The loop: batches -> steps -> log, evaluation, checkpoint.

A run stops and goes on at any step with the same numbers. `run` reads top-down: restore, train,
evaluate the state that is kept, write the results.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import types
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax.data import batches, files, storage
from emofm_jax.data.shards import Split
from emofm_jax.errors import UserError
from emofm_jax.evaluation import leaks, run_report, summary
from emofm_jax.evaluation.run_report import FILE, Evaluation, RunReport
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.training import build, checkpoint, intercept, processes
from emofm_jax.training import predictions as predictions_lib
from emofm_jax.training import state as state_lib
from emofm_jax.training import workdir as workdir_lib
from emofm_jax.training.build import Parts
from emofm_jax.training.progress import Log, Progress, Window
from emofm_jax.training.state import SECTIONS, TrainState


class _Run(NamedTuple):
    """What a run is made of, and where it stands."""

    config: ConfigDict
    workdir: Path
    splits: dict[str, Split]
    parts: Parts
    progress: Progress


def num_steps(config: ConfigDict, train: Split, done: Progress | None = None) -> int:
    """Steps of a whole run on a split, from where it stands on with the processes there are."""
    done = done or Progress()
    size, epochs = config.data.batch_size, range(done.epoch, config.train.epochs)
    if done.epoch > config.train.epochs or (done.rows_done and not epochs):  # it has passed its end
        return min(num_steps(config, train), done.step - 1)

    left = 0
    for epoch in epochs:
        rows_done = done.rows_done if epoch == done.epoch else 0
        if (count := processes.count()) == 1:
            left += math.ceil((train.num_rows - rows_done) / size)
            continue
        order: dict[str, Any] = {"seed": config.seed if config.data.shuffle else None}
        place = {"epoch": epoch, "rows_done": rows_done}
        left += batches.num_steps(train, size, num_processes=count, **order, **place)
    steps = done.step + left
    return min(steps, config.train.max_steps or steps)


@jax.enable_x64(False)  # whatever the program around has switched on: a run has its numbers
def run(config: ConfigDict, workdir: Path, splits: dict[str, Split], parts: Parts) -> RunReport:
    """Trains until done, from the last checkpoint if there is one, evaluates, writes the results.

    Args:
      config: validated.
      workdir: of this run.
      splits: `train`, `valid` and perhaps `test`, of one schema.
      parts: of this config and `num_steps`.

    Raises:
      UserError: the run has passed its end, the loss is not finite, the disk fails.
      SystemExit: 128 + the signal after SIGTERM or SIGINT, with the state saved.
    """
    train, checkpoints = config.train, workdir / "checkpoints"
    if finished := _finished(config, workdir, splits["train"]):
        return finished

    state, progress = build.restore_or_init(workdir, parts)
    if progress.processes != processes.count():
        _check_end_of_epoch(workdir, progress)
    # An epoch may have had another number of steps, with another number of processes.
    last = num_steps(config, splits["train"], progress)
    parts, progress.processes = dataclasses.replace(parts, num_steps=last), processes.count()
    if progress.step > last:
        raise UserError(
            f"{workdir}: its run has taken {progress.step:,} steps, and config.train.epochs and "
            f"max_steps end it at {last:,} now; let it end later, delete it, or choose another "
            "--workdir"
        )
    of_run = _Run(config, workdir, splits, parts, progress)
    newest = checkpoint.latest(checkpoints) if processes.is_first() else None
    if progress.step and progress.step == newest:  # killed before that
        checkpoint.prune(checkpoints, progress.step, _best(of_run))
    if processes.is_first():
        files.remove(workdir / FILE)  # of a run that was to end otherwise
    if not progress.is_done(train, last):
        if progress.step and processes.is_first():
            print(f"{workdir}: goes on from step {progress.step:,} of {last:,}")
        progress.finished = False
        progress.schema, progress.data = parts.schema.fingerprint(), parts.schema.identity
        state = _train(of_run, state)

    if train.monitor and progress.best_step < 0 and processes.is_first():
        unset = f"config.train.monitor: {train.monitor!r} never had a value here"
        print(f"{unset}, so the last state is kept")
    if (kept := progress.kept_step(train)) != progress.step:
        del state  # two tables at a time would not fit where one just does
        state, _ = build.restore(workdir, parts, kept)
    return _finish(of_run, state)


def _finished(config: ConfigDict, workdir: Path, train: Split) -> RunReport | None:
    """The result of a run that is done, which is said; None of any other."""
    checkpoints = workdir / "checkpoints"
    if not (workdir / FILE).exists() or checkpoint.latest(checkpoints) is None:
        return None
    progress = Progress.from_json(checkpoint.read_info(checkpoints)[1])
    last = num_steps(config, train, progress)
    if progress.step > last or not progress.is_done(config.train, last):
        return None

    found = RunReport.load(workdir, progress.kept_step(config.train))
    if (found.intercept.rows if found.intercept else 0) != intercept.num_rows(config, train):
        return None  # it is to have another intercept, or none
    if processes.is_first():
        print(f"{workdir}: the run is finished ({progress.step:,} steps), this is its result")
    return found


def _check_end_of_epoch(workdir: Path, progress: Progress) -> None:
    """Raises UserError if a run is in the middle of an epoch of another number of processes."""
    if progress.rows_done:
        before, now = progress.processes, processes.count()
        raise UserError(
            f"{workdir}: its run is in the middle of an epoch that {before} processes share, and "
            f"there are {now} now; their number may change at the end of an epoch: start {before}"
        )


def _train(run: _Run, state: TrainState) -> TrainState:
    """Steps until the run is done or a signal stops it; returns the last state, which is saved."""
    progress, train = run.progress, run.config.train
    with (
        _progress_bar(run) as bar,
        _stop_signals() as stop,
        checkpoint.Saver(run.workdir / "checkpoints") as saver,
        Log(run.workdir, progress, processes.is_first()) as log,
        jax.transfer_guard("disallow"),
        contextlib.closing(_batches(run)) as placed,
    ):
        num_rows = run.splits["train"].num_rows
        window = Window(log, bar, progress, num_rows)
        flags = _stop_flags(run)
        for batch in window.time(placed):
            asked = batch.batch._replace(stop=flags[bool(stop.signal)])
            state, metrics = run.parts.train_step(state, asked)
            progress.advance(batch.rows_done, num_rows)
            window.add(metrics, batch.rows)
            # A step later all processes know of a signal that one has got.
            stops = window.asked_to_stop if flags[1] is not None else stop.signal

            worth_saving = False
            if _is_evaluation_due(run):
                window.close()
                state, worth_saving = _evaluate(run, state, log)
                window.restart()

            progress.finished = progress.is_done(train, run.parts.num_steps)
            ends = progress.finished or stops
            if ends or worth_saving or progress.step % train.save_every_steps == 0:
                window.close()
                progress.log_bytes = log.size()
                kept, info = build.saved(state, run.parts), progress.to_json()
                saver.save(progress.step, kept, info, best_step=_best(run))
                window.restart()
            elif progress.step % train.log_every_steps == 0:
                window.close()
            if ends:
                break

    # Perhaps while the last checkpoint was written, which is there now, for all processes.
    number = max(processes.gather(stop.signal))
    storage.follow(run.workdir)
    if number:
        stopped = f"{run.workdir}: stopped by {signal.Signals(number).name}"
        saved = f"step {progress.step:,} is saved, the same command goes on"
        if processes.is_first():
            print(f"{stopped}; {saved}", file=sys.stderr)
        sys.exit(128 + number)
    return state


def _stop_flags(run: _Run) -> list[Any]:
    """What a batch carries to say that nobody, or this process, was asked to stop."""
    if processes.count() == 1:
        return [None, None]
    devices = run.parts.devices
    flags = (np.full(len(devices), flag, np.int32) for flag in (0, 1))
    return [state_lib.put_batch(flag, devices) for flag in flags]


def _best(run: _Run) -> int | None:
    """The step whose checkpoint is kept beside the newest."""
    return run.progress.best_step if run.config.train.monitor else None


def _progress_bar(run: _Run) -> tqdm:
    """The bar of a run's rows, on a terminal."""
    num_rows, batch_size = run.splits["train"].num_rows, run.config.data.batch_size
    epochs, steps = divmod(run.parts.num_steps, math.ceil(num_rows / batch_size))
    total = epochs * num_rows + steps * batch_size
    done = run.progress.epoch * num_rows + run.progress.rows_done
    hidden = not sys.stderr.isatty() or not processes.is_first()
    options = {"unit": " rows", "unit_scale": True, "disable": hidden}
    return tqdm(total=total, initial=done, **options)


def _batches(run: _Run) -> Generator[batches.HostBatch]:
    """The batches from where the run stands, epoch after epoch; made and sent in the background."""
    data, split, devices = run.config.data, run.splits["train"], run.parts.devices
    order = {"seed": run.config.seed, "shuffle_rows": data.shuffle_rows if data.shuffle else 0}
    place: dict[str, Any] = {"epoch": run.progress.epoch, "skip_rows": run.progress.rows_done}
    place["num_epochs"] = run.config.train.epochs - run.progress.epoch
    place["process"] = (processes.index(), processes.count())

    def put(host: batches.HostBatch) -> batches.HostBatch:
        placed = state_lib.put_planned(host.batch, devices, run.parts.layout)
        return host._replace(batch=placed)

    source = batches.read(split, data.batch_size, num_devices=len(devices), **order, **place)
    return batches.prefetch(source, data.prefetch, put)


def _is_evaluation_due(run: _Run) -> bool:
    """Whether the validation split is evaluated after this step: always after the last."""
    step, every = run.progress.step, run.config.train.eval_every_steps
    at_end_of_epoch = run.progress.rows_done == 0
    return step == run.parts.num_steps or (step % every == 0 if every else at_end_of_epoch)


def _evaluate(run: _Run, state: TrainState, log: Log) -> tuple[TrainState, bool]:
    """Evaluates the validation split: (state, whether it is worth a checkpoint)."""
    config, progress = run.config, run.progress
    scored = _with_intercept(run, state)
    _, report = predictions_lib.score(config, run.splits["valid"], run.parts, scored)
    place, figures = (progress.step, progress.epoch), (report.auc, report.logloss)
    entry = Evaluation(*place, *figures, report.gauc, report.pcoc)
    progress.evaluations.append(entry)
    log.write("evaluate", **dataclasses.asdict(entry))

    if processes.is_first():
        auc, logloss = ("-" if x is None else f"{x:.6f}" for x in figures)
        tqdm.write(f"step {progress.step:,}: validation AUC {auc}, logloss {logloss}")
        if len(progress.evaluations) == 1:
            tqdm.write(_verdict(run, report))

    if progress.judge(report, config.train):
        return state, bool(config.train.monitor)
    return _lower_rates(run, state, log), False


def _verdict(run: _Run, report: SplitReport) -> str:
    """The line after the first evaluation."""
    split, in_data = run.splits["train"], []
    path = split.path.parent / "prepare.json"
    with contextlib.suppress(FileNotFoundError), files.undamaged(path, "prepare again"):
        in_data = summary.causes_in(files.read_json(path))
    split.check()  # what was read is of these data
    rates = {key: run.config.optim[key].learning_rate for key in SECTIONS}
    alone = leaks.find(run.splits["train"], run.splits["valid"])
    return summary.verdict(report, in_data, rates, run.progress.step, alone)


def _lower_rates(run: _Run, state: TrainState, log: Log) -> TrainState:
    """The state after an evaluation without gain: sections with a plateau schedule go on slower."""
    train, scale = run.config.train, dict(state.lr_scale)
    for key in SECTIONS:
        if run.config.optim[key].schedule == "plateau":
            lowered = float(jax.device_get(scale[key])) * train.plateau_factor
            factor = max(lowered, train.plateau_min)
            scale[key] = state_lib.put_state(np.float32(factor), run.parts.devices)
            log.write("plateau", step=run.progress.step, section=key, lr_scale=factor)
    return state.replace(lr_scale=scale)


def _with_intercept(run: _Run, state: TrainState) -> TrainState:
    """A state that scores with an intercept of 0, where a run gets one: one step for all."""
    if not run.config.train.intercept_rows:
        return state
    return state.with_intercept(0.0, run.parts.devices)


def _finish(run: _Run, state: TrainState) -> RunReport:
    """Evaluates the kept state; writes metrics.json and the predictions of the split it shows."""
    config, workdir, splits, parts, progress = run
    kept, reports, fitted = progress.kept_step(config.train), {}, None
    if config.train.intercept_rows:
        fitted = intercept.fit(config, splits["train"], parts, _with_intercept(run, state))
        state = state.with_intercept(fitted.value, parts.devices)
    shown = "test" if "test" in splits and splits["test"].num_rows else "valid"
    if fitted is None and kept in [entry.step for entry in progress.evaluations]:
        reports["valid"] = SplitReport.from_json(progress.report)
    elif shown == "test":  # it has an intercept now, or max_steps was lowered
        _, reports["valid"] = predictions_lib.score(config, splits["valid"], parts, state)

    predictions, reports[shown] = predictions_lib.score(config, splits[shown], parts, state)
    width = state.params["embedding"].shape[-1]
    sizes = {"embedding": parts.schema.num_rows * width}
    sizes["network"] = sum(x.size for x in jax.tree.leaves(state.params["network"]))
    sizes["total"] = sum(sizes.values())
    training = progress.training(kept, progress.ended(config.train, parts.num_steps))
    of_state = run_report.state_of(workdir, kept)
    found = RunReport(reports, training, sizes, of_state, fitted)
    if processes.is_first():
        workdir_lib.remove_predictions(workdir)  # of earlier states, by evaluate
        file = workdir / "predictions" / f"{shown}.parquet"
        predictions_lib.write_predictions(file, predictions)
        found.save(workdir)
        storage.publish(workdir)
    processes.gather("written")
    return found


@contextlib.contextmanager
def _stop_signals() -> Iterator[types.SimpleNamespace]:
    """`signal`, 0 before SIGTERM or SIGINT asks to save and stop; a second one acts as usual."""
    stop, before = types.SimpleNamespace(signal=0), {}

    def ask(number, frame):
        stop.signal = number
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # Any other handler was put there by what the block called.
            if signal.getsignal(number) in (ask, handler):
                signal.signal(number, handler)
