"""The loop: batches -> steps -> log, evaluation, checkpoint; stops and goes on at any step with the same numbers.

`run` reads top-down: build, restore, train epoch by epoch, evaluate the state that is kept, write the results.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax.data import batches, shards
from emofm_jax.errors import UserError
from emofm_jax.evaluation import summary
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.training import build, checkpoint
from emofm_jax.training import predictions as predictions_lib
from emofm_jax.training import step as step_lib
from emofm_jax.training.progress import Log, Progress, Window

# What a monitor makes of a validation report; more is better.
MONITORS: dict[str, Callable[[SplitReport], float]] = {
    "auc": lambda report: report.auc,
    "logloss": lambda report: -report.logloss,
    "auc - logloss": lambda report: report.auc - report.logloss,
}


def run(config: ConfigDict, workdir: Path, splits: dict[str, shards.Split]) -> dict:
    """Trains until done, from the last checkpoint if there is one, then evaluates; writes metrics.json.

    Args:
      config: validated.
      workdir: of this run.
      splits: `train`, `valid` and perhaps `test`, of one schema.

    Returns:
      The content of metrics.json.

    Raises:
      UserError: the batch does not divide over the devices, the run has passed its end, the loss is not
        finite, the disk fails.
      SystemExit: 128 + the signal after SIGTERM or SIGINT, with the state saved.
    """
    num_steps = config.train.epochs * math.ceil(splits["train"].num_rows / config.data.batch_size)
    num_steps = min(num_steps, config.train.max_steps or num_steps)
    program = build.make_program(config, splits["train"].schema, num_steps)
    result = workdir / "metrics.json"
    if result.exists() and checkpoint.latest(workdir / "checkpoints") is not None:
        progress = Progress(**checkpoint.read_info(workdir / "checkpoints")[1])
        if progress.step <= num_steps and _is_done(config, progress, num_steps):
            print(f"{workdir}: the run is finished ({progress.step:,} steps), this is its result")
            return json.loads(result.read_text())
    state, progress = build.restore_or_init(workdir, program)
    if progress.step > num_steps:
        raise UserError(
            f"{workdir}: its run has taken {progress.step:,} steps, and config.train.epochs and max_steps end it at "
            f"{num_steps:,} now; let it end later, delete it, or choose another --workdir"
        )
    if not _is_done(config, progress, num_steps):
        if progress.step:
            print(f"{workdir}: goes on from step {progress.step:,} of {num_steps:,}")
        progress.finished, progress.schema = False, splits["train"].schema.fingerprint()
        result.unlink(missing_ok=True)  # of a run that was to end earlier
        state = _train(config, workdir, splits, program, state, progress, num_steps)
    if config.train.monitor and progress.best_step < 0:
        print(
            f"config.train.monitor: {config.train.monitor!r} never had a value here, so the last state is kept"
        )
    if (kept := build.kept_step(config, progress)) != progress.step:
        del state  # two tables at a time would not fit where one just does
        state, _ = build.restore(workdir, program, kept)
    return _finish(config, workdir, splits, program, state, progress)


def _train(config, workdir, splits, program, state, progress, num_steps) -> step_lib.TrainState:
    """Steps until the last one or until patience ends; returns the last state, which is saved."""
    train, batch_size, num_rows = config.train, config.data.batch_size, splits["train"].num_rows
    epochs, steps = divmod(num_steps, math.ceil(num_rows / batch_size))
    total, done = (
        epochs * num_rows + steps * batch_size,
        progress.epoch * num_rows + progress.rows_done,
    )
    bar = tqdm(
        total=total, initial=done, unit=" rows", unit_scale=True, disable=not sys.stderr.isatty()
    )
    with (
        bar,
        _stop_signals() as stop,
        checkpoint.Saver(workdir / "checkpoints") as saver,
        Log(workdir, progress) as log,
        jax.transfer_guard("disallow"),
    ):
        window, stopping = Window(log, bar, progress, num_rows), 0
        while not (progress.finished or stopping):
            epoch = progress.epoch
            source = batches.read(
                splits["train"],
                batch_size,
                num_devices=len(program.devices),
                shuffle_rows=config.data.shuffle_rows if config.data.shuffle else 0,
                seed=config.seed,
                epoch=epoch,
                skip_rows=progress.rows_done,
            )
            put = lambda host: (
                host.num_rows,
                host.rows_done,
                step_lib.put_batch(host.batch, program.devices),
            )
            with contextlib.closing(batches.prefetch(source, config.data.prefetch, put)) as source:
                for rows, rows_done, batch in window.time(source):
                    state, step_metrics = program.train_step(state, batch)
                    progress.step += 1
                    end_of_epoch = rows_done == num_rows
                    progress.epoch, progress.rows_done = (
                        (epoch + 1, 0) if end_of_epoch else (epoch, rows_done)
                    )
                    window.add(step_metrics, rows)
                    last, worth_saving = progress.step == num_steps, False
                    every = train.eval_every_steps
                    if last or (progress.step % every == 0 if every else end_of_epoch):
                        window.close()
                        state, worth_saving = _evaluate(
                            config, splits["valid"], program, state, progress, log
                        )
                        window.restart()
                    progress.finished = last or _out_of_patience(config, progress)
                    due, stopping = progress.step % train.save_every_steps == 0, stop.signal
                    if worth_saving or progress.finished or due or stopping:
                        window.close()
                        progress.log_bytes = log.size()
                        best = progress.best_step if train.monitor else None
                        saver.save(
                            progress.step,
                            state,
                            dataclasses.asdict(progress),
                            best_step=best,
                            exclude=build.EXCLUDED,
                        )
                        window.restart()
                    elif progress.step % train.log_every_steps == 0:
                        window.close()
                    if progress.finished or stopping:
                        break
    if stop.signal:  # perhaps while the last checkpoint was written
        name = signal.Signals(stop.signal).name
        text = f"{workdir}: stopped by {name}; step {progress.step:,} is saved, the same command goes on"
        print(text, file=sys.stderr)
        sys.exit(128 + stop.signal)
    return state


def _evaluate(config, split, program, state, progress, log) -> tuple[step_lib.TrainState, bool]:
    """Evaluates the validation split; keeps history, best step and plateau. Returns the state, and whether to save."""
    report = build.score(config, split, program, state)[1]
    entry = {key: getattr(report, key) for key in ("auc", "logloss", "gauc", "pcoc")}
    entry = {"step": progress.step, "epoch": progress.epoch, **entry}
    progress.evaluations.append(entry)
    log.write("evaluate", **entry)
    auc, logloss = ("-" if x is None else f"{x:.6f}" for x in (report.auc, report.logloss))
    tqdm.write(f"step {progress.step:,}: validation AUC {auc}, logloss {logloss}")
    if len(progress.evaluations) == 1:
        path = Path(config.data.dir) / "prepare.json"
        prepared = json.loads(path.read_text()) if path.exists() else None
        rates = {key: config.optim[key].learning_rate for key in step_lib.SECTIONS}
        tqdm.write(summary.verdict(report, prepared, rates))
    # Without a monitor the plateau schedule watches the log-loss.
    monitor = config.train.monitor or "logloss"
    undefined = any(entry[key] is None and key in monitor for key in ("auc", "logloss"))
    value = -math.inf if undefined else MONITORS[monitor](report)
    better = value > progress.best_value + config.train.min_delta
    if better or not config.train.monitor or progress.best_step < 0:
        progress.report = report.to_json()
    if better:
        progress.best_step, progress.best_value, progress.stale = progress.step, value, 0
        return state, bool(config.train.monitor)
    progress.stale += 1
    scale = dict(state.lr_scale)
    for key in step_lib.SECTIONS:
        if config.optim[key].schedule == "plateau":
            factor = max(
                float(jax.device_get(scale[key])) * config.train.plateau_factor,
                config.train.plateau_min,
            )
            scale[key] = step_lib.put_state(np.float32(factor), program.devices)
            log.write("plateau", step=progress.step, section=key, lr_scale=factor)
    return state.replace(lr_scale=scale), False


def _finish(config, workdir, splits, program, state, progress) -> dict:
    """Evaluates the kept state; writes metrics.json, and the predictions of the test split, else of the validation."""
    kept, result = build.kept_step(config, progress), {"valid": progress.report}
    split = "test" if "test" in splits and splits["test"].num_rows else "valid"
    if split == "test" and kept not in [
        entry["step"] for entry in progress.evaluations
    ]:  # max_steps was lowered
        result["valid"] = build.score(config, splits["valid"], program, state)[1].to_json()
    shutil.rmtree(workdir / "predictions", ignore_errors=True)  # of earlier states, by evaluate
    predictions, report = build.score(config, splits[split], program, state)
    result[split] = report.to_json()
    predictions_lib.write_predictions(workdir / "predictions" / f"{split}.parquet", predictions)
    seconds = max(progress.seconds, 1e-9)
    result["train"] = {
        "rows_per_s": progress.rows / seconds,
        "input_wait": progress.waited / seconds,
        "steps": progress.step,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        "kept_step": kept,
        "evaluations": progress.evaluations,
    }
    sizes = {
        key: sum(x.size for x in jax.tree.leaves(state.params[key])) for key in step_lib.SECTIONS
    }
    result["parameters"] = {**sizes, "total": sum(sizes.values())}
    temporary = workdir / "metrics.json.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(workdir / "metrics.json")
    return result


def _is_done(config: ConfigDict, progress: Progress, num_steps: int) -> bool:
    return progress.step >= num_steps or _out_of_patience(config, progress)


def _out_of_patience(config: ConfigDict, progress: Progress) -> bool:
    return bool(
        config.train.monitor and config.train.patience and progress.stale >= config.train.patience
    )


class _Stop:
    signal = 0


@contextlib.contextmanager
def _stop_signals():
    """SIGTERM and SIGINT ask the loop to save and stop after the current step; a second one acts as usual."""
    stop, before = _Stop(), {}

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
            if signal.getsignal(number) in (
                ask,
                handler,
            ):  # else one that was called has put another in its place
                signal.signal(number, handler)
