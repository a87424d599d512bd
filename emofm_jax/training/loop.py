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
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax.data import batches, files
from emofm_jax.data.shards import Split
from emofm_jax.errors import UserError
from emofm_jax.evaluation import leaks, summary
from emofm_jax.evaluation.run_report import FILE, Evaluation, RunReport
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.training import build, checkpoint
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


def num_steps(config: ConfigDict, num_rows: int) -> int:
    """Steps of a whole run on that many rows."""
    steps = config.train.epochs * math.ceil(num_rows / config.data.batch_size)
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
    train, last = config.train, parts.num_steps
    checkpoints = workdir / "checkpoints"
    if (workdir / FILE).exists() and checkpoint.latest(checkpoints) is not None:
        progress = Progress.from_json(checkpoint.read_info(checkpoints)[1])
        if progress.step <= last and progress.is_done(train, last):
            print(f"{workdir}: the run is finished ({progress.step:,} steps), this is its result")
            return RunReport.load(workdir)

    state, progress = build.restore_or_init(workdir, parts)
    if progress.step > last:
        raise UserError(
            f"{workdir}: its run has taken {progress.step:,} steps, and config.train.epochs and "
            f"max_steps end it at {last:,} now; let it end later, delete it, or choose another "
            "--workdir"
        )
    of_run = _Run(config, workdir, splits, parts, progress)
    if progress.step and progress.step == checkpoint.latest(checkpoints):  # killed before that
        checkpoint.prune(checkpoints, progress.step, _best(of_run))
    if not progress.is_done(train, last):
        if progress.step:
            print(f"{workdir}: goes on from step {progress.step:,} of {last:,}")
        progress.finished = False
        progress.schema, progress.data = parts.schema.fingerprint(), parts.schema.identity
        files.remove(workdir / FILE)  # of a run that was to end earlier
        state = _train(of_run, state)

    if train.monitor and progress.best_step < 0:
        unset = f"config.train.monitor: {train.monitor!r} never had a value here"
        print(f"{unset}, so the last state is kept")
    if (kept := progress.kept_step(train)) != progress.step:
        del state  # two tables at a time would not fit where one just does
        state, _ = build.restore(workdir, parts, kept)
    return _finish(of_run, state)


def _train(run: _Run, state: TrainState) -> TrainState:
    """Steps until the run is done or a signal stops it; returns the last state, which is saved."""
    progress, train = run.progress, run.config.train
    with (
        _progress_bar(run) as bar,
        _stop_signals() as stop,
        checkpoint.Saver(run.workdir / "checkpoints") as saver,
        Log(run.workdir, progress) as log,
        jax.transfer_guard("disallow"),
        contextlib.closing(_batches(run)) as placed,
    ):
        num_rows = run.splits["train"].num_rows
        window = Window(log, bar, progress, num_rows)
        for batch in window.time(placed):
            state, metrics = run.parts.train_step(state, batch.batch)
            progress.advance(batch.rows_done, num_rows)
            window.add(metrics, batch.num_rows)

            worth_saving = False
            if _is_evaluation_due(run):
                window.close()
                state, worth_saving = _evaluate(run, state, log)
                window.restart()

            progress.finished = progress.is_done(train, run.parts.num_steps)
            ends = progress.finished or stop.signal
            if ends or worth_saving or progress.step % train.save_every_steps == 0:
                window.close()
                progress.log_bytes = log.size()
                kept, info = build.without_scratch(state), progress.to_json()
                saver.save(progress.step, kept, info, best_step=_best(run))
                window.restart()
            elif progress.step % train.log_every_steps == 0:
                window.close()
            if ends:
                break

    if stop.signal:  # perhaps while the last checkpoint was written
        stopped = f"{run.workdir}: stopped by {signal.Signals(stop.signal).name}"
        saved = f"step {progress.step:,} is saved, the same command goes on"
        print(f"{stopped}; {saved}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    return state


def _best(run: _Run) -> int | None:
    """The step whose checkpoint is kept beside the newest."""
    return run.progress.best_step if run.config.train.monitor else None


def _progress_bar(run: _Run) -> tqdm:
    """The bar of a run's rows, on a terminal."""
    num_rows, batch_size = run.splits["train"].num_rows, run.config.data.batch_size
    epochs, steps = divmod(run.parts.num_steps, math.ceil(num_rows / batch_size))
    total = epochs * num_rows + steps * batch_size
    done = run.progress.epoch * num_rows + run.progress.rows_done
    options = {"unit": " rows", "unit_scale": True, "disable": not sys.stderr.isatty()}
    return tqdm(total=total, initial=done, **options)


def _batches(run: _Run) -> Generator[batches.HostBatch]:
    """The batches from where the run stands, epoch after epoch; made and sent in the background."""
    data, split, devices = run.config.data, run.splits["train"], run.parts.devices
    order = {"seed": run.config.seed, "shuffle_rows": data.shuffle_rows if data.shuffle else 0}

    def put(host: batches.HostBatch) -> batches.HostBatch:
        return host._replace(batch=state_lib.put_batch(host.batch, devices))

    while True:
        # The loop has moved on to the next epoch before it asks for a batch of it.
        place = {"epoch": run.progress.epoch, "skip_rows": run.progress.rows_done}
        source = batches.read(split, data.batch_size, num_devices=len(devices), **order, **place)
        with contextlib.closing(batches.prefetch(source, data.prefetch, put)) as ready:
            yield from ready


def _is_evaluation_due(run: _Run) -> bool:
    """Whether the validation split is evaluated after this step: always after the last."""
    step, every = run.progress.step, run.config.train.eval_every_steps
    at_end_of_epoch = run.progress.rows_done == 0
    return step == run.parts.num_steps or (step % every == 0 if every else at_end_of_epoch)


def _evaluate(run: _Run, state: TrainState, log: Log) -> tuple[TrainState, bool]:
    """Evaluates the validation split: (state, whether it is worth a checkpoint)."""
    config, progress = run.config, run.progress
    _, report = predictions_lib.score(config, run.splits["valid"], run.parts, state)
    place, figures = (progress.step, progress.epoch), (report.auc, report.logloss)
    entry = Evaluation(*place, *figures, report.gauc, report.pcoc)
    progress.evaluations.append(entry)
    log.write("evaluate", **dataclasses.asdict(entry))

    auc, logloss = ("-" if x is None else f"{x:.6f}" for x in figures)
    tqdm.write(f"step {progress.step:,}: validation AUC {auc}, logloss {logloss}")
    if len(progress.evaluations) == 1:
        tqdm.write(_verdict(run, report))

    if progress.judge(report, config.train):
        return state, bool(config.train.monitor)
    return _lower_rates(run, state, log), False


def _verdict(run: _Run, report: SplitReport) -> str:
    """The line after the first evaluation."""
    split, prepared = run.splits["train"], None
    path = split.path.parent / "prepare.json"
    with contextlib.suppress(FileNotFoundError):
        try:
            prepared = files.read_json(path)
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); prepare again") from None
    split.check()  # what was read is of these data
    rates = {key: run.config.optim[key].learning_rate for key in SECTIONS}
    alone = leaks.find(run.splits["train"], run.splits["valid"])
    return summary.verdict(report, prepared, rates, run.progress.step, alone)


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


def _finish(run: _Run, state: TrainState) -> RunReport:
    """Evaluates the kept state; writes metrics.json and the predictions of the split it shows."""
    config, workdir, splits, parts, progress = run
    kept, reports = progress.kept_step(config.train), {}
    shown = "test" if "test" in splits and splits["test"].num_rows else "valid"
    if kept in [entry.step for entry in progress.evaluations]:
        reports["valid"] = SplitReport.from_json(progress.report)
    elif shown == "test":  # max_steps was lowered
        _, reports["valid"] = predictions_lib.score(config, splits["valid"], parts, state)

    workdir_lib.remove_predictions(workdir)  # of earlier states, by evaluate
    predictions, reports[shown] = predictions_lib.score(config, splits[shown], parts, state)
    predictions_lib.write_predictions(workdir / "predictions" / f"{shown}.parquet", predictions)

    sizes = {key: sum(x.size for x in jax.tree.leaves(state.params[key])) for key in SECTIONS}
    sizes["total"] = sum(sizes.values())
    found = RunReport(reports, progress.training(kept), sizes)
    found.save(workdir)
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
