"""metrics.json: what a finished run reports of its splits, its training and its size."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.evaluation.split_report import SplitReport

FILE = "metrics.json"
_SPLITS = ("test", "valid")  # a run is judged by the first that it has


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


@dataclasses.dataclass(frozen=True)
class RunReport:
    """The content of metrics.json."""

    splits: dict[str, SplitReport]  # "valid", and "test" if the data have one
    training: Training
    parameters: dict[str, int]  # numbers of "embedding", "network" and "total"

    @property
    def shown(self) -> tuple[str, SplitReport]:
        """Name and report of the split that the run is judged by: test, else valid."""
        name = next(name for name in _SPLITS if name in self.splits)
        return name, self.splits[name]

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        splits = {name: report.to_json() for name, report in self.splits.items()}
        training = dataclasses.asdict(self.training)
        return {**splits, "train": training, "parameters": self.parameters}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Reads what `to_json` gave."""
        splits = {k: SplitReport.from_json(v) for k, v in body.items() if k in _SPLITS}
        history = [Evaluation(**entry) for entry in body["train"]["evaluations"]]
        training = Training(**{**body["train"], "evaluations": history})
        return cls(splits, training, body["parameters"])

    def save(self, workdir: Path) -> None:
        """Writes metrics.json."""
        files.write_json(workdir / FILE, self.to_json())

    @classmethod
    def load(cls, workdir: Path) -> Self:
        """Reads metrics.json; raises UserError if it is damaged."""
        path = workdir / FILE
        try:
            return cls.from_json(files.read_json(path))
        except (ValueError, KeyError, TypeError) as error:
            remedy = "delete it, and the same train command writes it again"
            raise UserError(f"{path}: damaged ({error}); {remedy}") from None
