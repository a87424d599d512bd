"""Where a run stands, and how it is seen: the state of the loop, the window of steps of a log line, log.jsonl.

`Progress` is what must survive a stop beside the TrainState. The metrics of steps stay on the device until their
window is closed, so that the loop never waits for a number that nobody reads yet.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from emofm_jax.errors import UserError
from emofm_jax.evaluation import metrics
from emofm_jax.training import step as step_lib


@dataclasses.dataclass
class Progress:
    """Saved in every checkpoint.

    Attributes:
      step: steps taken.
      epoch: epochs completed.
      rows_done: rows of the current epoch that were stepped on.
      evaluations: one entry per evaluation: step, epoch, auc, logloss, gauc, pcoc of the validation split.
      report: of the validation split in the state that is kept so far.
      best_step, best_value: by the monitor; -1 before the first evaluation.
      stale: evaluations since the best.
      finished: whether there is nothing left to do.
      log_bytes: length of log.jsonl, which is cut back to it.
      rows, seconds, waited: rows stepped on, seconds of stepping (compilation apart) and of waiting for input.
      schema: fingerprint of the data that were trained on; empty in checkpoints of before it was noted.
    """

    step: int = 0
    epoch: int = 0
    rows_done: int = 0
    evaluations: list = dataclasses.field(default_factory=list)
    report: dict = dataclasses.field(default_factory=dict)
    best_step: int = -1
    best_value: float = -math.inf
    stale: int = 0
    finished: bool = False
    log_bytes: int = 0
    rows: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    schema: str = ""


class Log:
    """log.jsonl, a JSON line per event, and the same numbers for TensorBoard."""

    def __init__(self, workdir: Path, progress: Progress):
        self._file = open(workdir / "log.jsonl", "ab")  # noqa: SIM115
        self._file.truncate(progress.log_bytes)
        self._board = SummaryWriter(str(workdir), purge_step=progress.step + 1)

    def write(self, event: str, **values) -> None:
        """Writes one line; `values` has the step."""
        self._file.write((json.dumps({"event": event, **values}) + "\n").encode())
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def size(self) -> int:
        """Bytes of log.jsonl."""
        return self._file.tell()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._board.close()


class Window:
    """The steps since the last log line."""

    def __init__(self, log: Log, bar: tqdm, progress: Progress, epoch_rows: int):
        self._log, self._bar, self._progress, self._epoch_rows = log, bar, progress, epoch_rows
        self._compiled = False
        self.restart()

    def restart(self) -> None:
        """Forgets the steps and starts the clock."""
        self._steps, self._rows, self._waited = [], 0, 0.0
        self._started = time.perf_counter()

    def time(self, source: Iterator) -> Iterator:
        """Hands on the items, adding up the seconds of waiting for them."""
        while True:
            start = time.perf_counter()
            item = next(source, None)
            self._waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    def add(self, step_metrics: dict, rows: int) -> None:
        """Takes a step's metrics; waits for the step before it, so that the host is never far ahead."""
        if self._steps:
            jax.block_until_ready(self._steps[-1]["nonfinite"])
        self._steps.append(step_metrics)
        self._rows += rows
        self._bar.update(rows)
        if not self._compiled:  # the first step of a process is compilation: it counts in no rate
            jax.block_until_ready(step_metrics["nonfinite"])
            self._compiled, self._rows, self._waited = True, 0, 0.0
            self._started = time.perf_counter()

    def close(self) -> None:
        """Fetches the metrics, checks them and writes the line; starts a new window.

        Raises:
          UserError: a quantity of a step is not finite.
        """
        if not self._steps:
            return self.restart()
        steps = jax.device_get(self._steps)
        seconds = time.perf_counter() - self._started
        self._check_finite(steps)
        label, p, weight = (
            np.concatenate([s[k].reshape(-1) for s in steps]) for k in ("label", "p", "weight")
        )
        real = weight > 0
        label, p, weight = label[real], p[real], weight[real]
        line = {
            "step": self._progress.step,
            "epoch": self._progress.epoch + self._progress.rows_done / self._epoch_rows,
            "logloss": metrics.logloss(label, p, weight),
            "auc": metrics.auc(label, p, weight),
            "rows_per_s": self._rows / seconds,
            "input_wait": self._waited / seconds,
            "embedding_norm": float(np.mean([s["embedding_norm"][0] for s in steps])),
            "network_norm": float(np.mean([s["network_norm"][0] for s in steps])),
        }
        if "am_sum" in steps[0]:
            known = sum(float(s["am_weight_sum"][0]) for s in steps)
            line["am_logloss"] = (
                sum(float(s["am_sum"][0]) for s in steps) / known if known else None
            )
        self._log.write("train", **line)
        auc, logloss = (
            "-" if line[key] is None else f"{line[key]:.4f}" for key in ("auc", "logloss")
        )
        self._bar.set_postfix_str(f"logloss {logloss}, AUC {auc}, input {line['input_wait']:.0%}")
        self._progress.rows += self._rows
        self._progress.seconds += seconds
        self._progress.waited += self._waited
        return self.restart()

    def _check_finite(self, steps: list[dict]) -> None:
        for number, step in enumerate(steps, self._progress.step - len(steps) + 1):
            if code := int(step["nonfinite"][0]):
                raise UserError(
                    f"step {number}: the {step_lib.NONFINITE[code - 1]} is not finite; lower the learning rate, clip "
                    "the gradient (config.optim.clip), or look for extreme values in numeric slots"
                )
