"""Where a run stands, and how it is seen: the loop's state, the window of a log line, log.jsonl.

`Progress` is what must survive a stop beside the TrainState. The metrics of steps stay on the
device until their window is closed: the loop never waits for a number that nobody reads yet.
"""

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax.data import files
from emofm_jax.data.batches import Rows
from emofm_jax.errors import UserError
from emofm_jax.evaluation import metrics, monitor
from emofm_jax.evaluation.run_report import Evaluation, Training
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.training import step as step_lib
from emofm_jax.training.board import Board
from emofm_jax.training.step import StepMetrics

_T = TypeVar("_T")


@dataclasses.dataclass
class Progress:
    """Where a run stands; part of every checkpoint."""

    step: int = 0  # steps taken
    epoch: int = 0  # epochs completed
    rows_done: int = 0  # rows of the current epoch that were stepped on
    evaluations: list[Evaluation] = dataclasses.field(default_factory=list)
    report: dict = dataclasses.field(default_factory=dict)  # of the validation split, state kept
    best_step: int = -1  # by the monitor; -1 before it had a value
    best_value: float = -math.inf
    stale: int = 0  # evaluations since the best
    finished: bool = False  # nothing is left to do
    log_bytes: int = 0  # length of log.jsonl, which is cut back to it
    rows: int = 0  # rows stepped on, compilation apart
    seconds: float = 0.0  # of stepping, compilation apart
    waited: float = 0.0  # seconds of these that went by in waiting for input
    schema: str = ""  # fingerprint of the data; empty in checkpoints of before it was noted
    data: str = ""  # identity of their preparation, as far as it is known
    processes: int = 1  # that share the rows of an epoch

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds as its info."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, info: Mapping[str, Any]) -> Self:
        """Reads what `to_json` gave, now or in an earlier version."""
        return cls(**{**info, "evaluations": [Evaluation(**x) for x in info["evaluations"]]})

    def advance(self, rows_done: int, num_rows: int) -> None:
        """Counts a step that ends with so many rows of the epoch's `num_rows`."""
        self.step += 1
        at_end = rows_done == num_rows
        self.epoch, self.rows_done = (self.epoch + 1, 0) if at_end else (self.epoch, rows_done)

    def judge(self, report: SplitReport, train: ConfigDict) -> bool:
        """Takes the validation report of this step; returns whether it is a gain on the best."""
        # Without a monitor the plateau schedule watches the log-loss.
        value = monitor.value(train.monitor or "logloss", report.auc, report.logloss)
        if value is not None and value > self.best_value + train.min_delta:
            self.best_step, self.best_value, self.stale = self.step, value, 0
        else:
            self.stale += 1
        if self.stale == 0 or not train.monitor or self.best_step < 0:
            self.report = report.to_json()
        return self.stale == 0

    def is_done(self, train: ConfigDict, num_steps: int) -> bool:
        """Whether all steps are taken, or patience has ended."""
        out_of_patience = train.monitor and train.patience and self.stale >= train.patience
        return self.step >= num_steps or bool(out_of_patience)

    def kept_step(self, train: ConfigDict) -> int:
        """The step whose state is kept (evaluation/monitor.py)."""
        return monitor.kept_step(train.monitor, self.best_step, self.step)

    def ended(self, train: ConfigDict, num_steps: int) -> str:
        """Why a run that is done is done, in words."""
        if self.step < num_steps:
            gain = f"gain in validation {train.monitor}"
            times = "1 evaluation" if train.patience == 1 else f"{train.patience:,} evaluations"
            return f"{times} without {gain} (config.train.patience)"
        if self.epoch < train.epochs:
            return f"step {self.step:,} (config.train.max_steps)"

        last = "the last epoch" if train.epochs > 1 else "its epoch"
        gains = "; its validation was the best so far, so more may be better"
        gaining = train.epochs > 1 and train.monitor and self.best_step == self.step
        return f"{last} (config.train.epochs){gains if gaining else ''}"

    def training(self, kept_step: int, ended: str = "") -> Training:
        """The training's part of metrics.json."""
        seconds = max(self.seconds, 1e-9)
        return Training(
            rows_per_s=self.rows / seconds,
            input_wait=self.waited / seconds,
            steps=self.step,
            epochs=self.epoch,
            seconds=self.seconds,
            kept_step=kept_step,
            evaluations=self.evaluations,
            ended=ended,
        )


class Log:
    """log.jsonl, a JSON line per event, and the same numbers for TensorBoard.

    Where one of them cannot be written, that is said once on stderr and the run goes on.
    """

    def __init__(self, workdir: Path, progress: Progress, writes: bool = True):
        self._writes = writes  # of several processes one
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._later: concurrent.futures.Future | None = None  # a line that is being made
        if writes:
            self._lines = files.Appended(workdir / "log.jsonl", progress.log_bytes)
            self._board = Board(workdir, progress.step + 1)

    def write(self, event: str, **values) -> None:
        """Writes one line; `values` has the step."""
        self._settle()
        self._write(event, values)

    def write_later(self, event: str, make: Callable[[], dict[str, Any]]) -> None:
        """Writes the line that `make` returns, both in a thread; the next line waits for it."""
        self._settle()
        self._later = self._thread.submit(lambda: self._write(event, make()))

    def _settle(self) -> None:
        if self._later is not None:
            later, self._later = self._later, None
            later.result()

    def _write(self, event: str, values: dict[str, Any]) -> None:
        if not self._writes:
            return
        self._lines.write(files.as_json({"event": event, **values}) + "\n")
        scalars = {f"{event}/{k}": x for k, x in values.items() if isinstance(x, float)}
        self._board.write(scalars, values["step"])

    def size(self) -> int:
        """Bytes of log.jsonl."""
        self._settle()
        return self._lines.size if self._writes else 0

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        try:
            self._settle()
        finally:
            self._thread.shutdown()
            if self._writes:
                self._lines.close()
                self._board.close()


class Window:
    """The steps since the last log line."""

    def __init__(self, log: Log, bar: tqdm, progress: Progress, epoch_rows: int):
        self._log, self._bar, self._progress, self._epoch_rows = log, bar, progress, epoch_rows
        self._compiled = False
        self._before: StepMetrics | None = None  # of the last step
        self.asked_to_stop = False  # whether any process was, before the step before the last
        self.restart()

    def restart(self) -> None:
        """Forgets the steps and starts the clock."""
        self._steps: list[StepMetrics] = []
        self._labels: list[tuple[np.ndarray, np.ndarray]] = []  # and the weights, of each step
        self._rows, self._waited = 0, 0.0
        self._started = time.perf_counter()

    def time(self, source: Iterator[_T]) -> Iterator[_T]:
        """Hands on the items, adding up the seconds of waiting for them."""
        while True:
            start = time.perf_counter()
            item = next(source, None)
            self._waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    def add(self, step_metrics: StepMetrics, rows: Rows) -> None:
        """Takes a step's metrics; waits for the step before it: the host is never far ahead."""
        if self._before is not None:
            jax.block_until_ready(self._before.scalars)
            if "stop" in self._before.names:
                scalars = jax.device_get(self._before.scalars)  # and not p, which is as long as b
                self.asked_to_stop = bool(self._before.replace(scalars=scalars)["stop"].any())
        self._before = step_metrics
        self._steps.append(step_metrics)
        self._labels.append((rows.label, rows.weight))
        self._rows += len(rows.label)
        self._bar.update(len(rows.label))

        if not self._compiled:  # the first step of a process is compilation: it counts in no rate
            jax.block_until_ready(step_metrics.scalars)
            self._compiled, self._rows, self._waited = True, 0, 0.0
            self._started = time.perf_counter()

    def close(self) -> None:
        """Fetches the metrics, checks them and lets the line be written; starts a new window.

        Raises:
          UserError: a quantity of a step is not finite.
        """
        if not self._steps:
            return self.restart()
        steps = jax.device_get(self._steps)
        seconds = time.perf_counter() - self._started
        self._check_finite(steps)

        place, labels, bar = self._place(seconds), self._labels, self._bar
        self._log.write_later("train", lambda: _line(place, steps, labels, bar))

        self._progress.rows += self._rows
        self._progress.seconds += seconds
        self._progress.waited += self._waited
        return self.restart()

    def _place(self, seconds: float) -> dict[str, Any]:
        """What a line says of where the run stands and how fast it is."""
        return {
            "step": self._progress.step,
            "epoch": self._progress.epoch + self._progress.rows_done / self._epoch_rows,
            "rows_per_s": self._rows / seconds,
            "input_wait": self._waited / seconds,
        }

    def _check_finite(self, steps: list[StepMetrics]) -> None:
        for number, step in enumerate(steps, self._progress.step - len(steps) + 1):
            if code := int(step["nonfinite"][0]):
                raise UserError(
                    f"step {number}: the {step_lib.NONFINITE[code - 1]} is not finite; lower the "
                    "learning rate, clip the gradient (config.optim.clip), or look for extreme "
                    "values in numeric slots"
                )


def _line(place: dict[str, Any], steps: list[StepMetrics], labels: list, bar: tqdm) -> dict:
    """Figures of the steps, each row scored by the parameters before its step."""
    label, weight = (np.concatenate(arrays) for arrays in zip(*labels))
    counts = [len(of_step) for of_step, _ in labels]
    p = np.concatenate([s.p.reshape(-1)[:n] for s, n in zip(steps, counts)])
    real = weight > 0
    label, p, weight = label[real], p[real], weight[real]

    line = place | {
        "logloss": metrics.logloss(label, p, weight),
        "auc": metrics.auc(label, p, weight),
        "embedding_norm": float(np.mean([s["embedding_norm"][0] for s in steps])),
        "network_norm": float(np.mean([s["network_norm"][0] for s in steps])),
    }
    if "am_sum" in steps[0].names:
        nats, known = (sum(float(s[k][0]) for s in steps) for k in ("am_sum", "am_weight_sum"))
        line["am_logloss"] = nats / known if known else None
    auc, logloss = ("-" if x is None else f"{x:.4f}" for x in (line["auc"], line["logloss"]))
    bar.set_postfix_str(f"logloss {logloss}, AUC {auc}, input {line['input_wait']:.0%}")
    return line
