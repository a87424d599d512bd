"""metrics.json: what a finished run reports of its splits, its training and its size.

It says which state it is of, by the digests of that state's checkpoint: steps of two runs have one
number.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.evaluation.split_report import SplitReport

FILE = "metrics.json"
REMEDY = "delete it, and the same train command writes it again"
SPLITS = ("test", "valid")  # a run is judged by the first that it has


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation of the validation split gave while training; None where undefined."""

    step: int
    epoch: int  # epochs completed
    auc: float | None
    logloss: float | None
    gauc: float | None
    pcoc: float | None


@dataclasses.dataclass(frozen=True)
class Training:
    """How the training went."""

    rows_per_s: float  # 0 after a single step, which is compilation
    input_wait: float  # share of the time that went by in waiting for input
    steps: int
    epochs: int  # completed
    seconds: float  # of stepping, compilation apart
    kept_step: int  # whose state the splits were evaluated in
    evaluations: list[Evaluation]
    ended: str = ""  # why, in words; empty in files of before it was said


@dataclasses.dataclass(frozen=True)
class Intercept:
    """What is added to the logits of the kept state (training/intercept.py)."""

    value: float
    rows: int  # of the train split, that it was fitted on
    pcoc: float | None  # sum of p / sum of clicks of these without it; None: they are of one class
    keep_rate: float = 1.0  # of rows without a click; below 1 these p are those of the loss


@dataclasses.dataclass(frozen=True)
class RunReport:
    """The content of metrics.json."""

    splits: dict[str, SplitReport]  # "valid", and "test" if the data have one
    training: Training
    parameters: dict[str, int]  # numbers of "embedding", "network" and "total"
    state: str = ""  # digests of the kept state; empty in files of before they were noted
    intercept: Intercept | None = None

    @property
    def shown(self) -> tuple[str, SplitReport]:
        """Name and report of the split that the run is judged by: test, else valid."""
        name = next(name for name in SPLITS if name in self.splits)
        return name, self.splits[name]

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        splits = {name: report.to_json() for name, report in self.splits.items()}
        training = dataclasses.asdict(self.training)
        body: dict[str, Any] = {**splits, "train": training, "parameters": self.parameters}
        if self.intercept is not None:
            body["intercept"] = dataclasses.asdict(self.intercept)
        return body | ({"state": self.state} if self.state else {})

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Reads what `to_json` gave."""
        splits = {k: SplitReport.from_json(v) for k, v in body.items() if k in SPLITS}
        history = [Evaluation(**entry) for entry in body["train"]["evaluations"]]
        training = Training(**{**body["train"], "evaluations": history})
        intercept = _intercept(body["intercept"]) if "intercept" in body else None
        return cls(splits, training, body["parameters"], body.get("state", ""), intercept)

    def save(self, workdir: Path) -> None:
        """Writes metrics.json."""
        files.write_json(workdir / FILE, self.to_json())

    @classmethod
    def load(cls, workdir: Path, kept: int | None = None) -> Self:
        """Reads metrics.json.

        Args:
          workdir: of the run.
          kept: the step whose state it must be of; None: of any.

        Raises:
          UserError: it is damaged, or of another run.
        """
        path = workdir / FILE
        with files.undamaged(path, REMEDY):
            body = files.read_json(path)
            found = cls.from_json(body)
        check(workdir, body)
        if kept is not None and (step := found.training.kept_step) != kept:
            what = f"of another run: of step {step:,}, this one keeps that of {kept:,}"
            raise UserError(f"{path}: {what}; {REMEDY}")
        return found


def _intercept(body: Mapping[str, Any]) -> Intercept:
    """Raises TypeError or ValueError if nothing can be added to a logit."""
    found = Intercept(**body)
    if isinstance(found.value, str | bool) or not math.isfinite(found.value):
        raise ValueError(f"an intercept of {found.value!r}")
    return found


def intercept_of(workdir: Path, step: int, fitted: bool) -> float | None:
    """The intercept of a state of a run; None if none was fitted for it.

    Args:
      workdir: of the run.
      step: of the state.
      fitted: whether one must have been: the run is finished, and keeps this state.

    Raises:
      UserError: metrics.json is damaged, or of another run; it is gone, or has no intercept, and
        one was fitted.
    """
    path = workdir / FILE
    if not path.exists():
        if fitted:
            gone = "gone, and with it the intercept of the run; the same train command writes it"
            raise UserError(f"{path}: {gone} again")
        return None

    found = RunReport.load(workdir, step if fitted else None)
    if found.intercept is None or found.training.kept_step != step:
        if fitted:
            what = "it has no intercept, which config.train.intercept_rows asks for"
            raise UserError(f"{path}: {what}; the same train command fits it")
        return None
    return found.intercept.value


def check(workdir: Path, body: Mapping[str, Any]) -> None:
    """Compares the state that a metrics.json is of with the run's checkpoint, where both are known.

    Args:
      workdir: of the run.
      body: content of its metrics.json, of this version or an earlier one.

    Raises:
      UserError: it is of another run.
    """
    if not (state := body.get("state")):
        return
    step = body["train"]["kept_step"]
    try:
        own = state_of(workdir, step)
    except (UserError, FileNotFoundError):
        return  # without that checkpoint, or with a damaged one, nobody can tell

    if own != state:
        what = f"of another run: of its step {step:,} this one has another state"
        raise UserError(f"{workdir / FILE}: {what}; {REMEDY}")


def state_of(workdir: Path, step: int) -> str:
    """Digests of a checkpoint's arrays, as the checkpoint says them.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      UserError: it is damaged.
    """
    path = Path(workdir) / "checkpoints" / f"step_{step}" / "state.json"
    try:
        digests = files.read_json(path)["xxh3"]
        own = [digests[name] for name in sorted(digests) if name != "state.json"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged checkpoint ({error}); restore it") from None
    return " ".join(own)
