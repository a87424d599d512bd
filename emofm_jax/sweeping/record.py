"""What a sweep leaves on disk, as dataclasses: `sweep` writes them, `report` reads them.

    sweep.json                         Header: what was to be run
    results.jsonl                      Result.line of every run that has ended
    runs/POINT/seed-S/result.json      Result.to_json: the line and the run's config
    runs/POINT/seed-S/attempt.json     Attempt: how often processes have died of the run

Reading raises ValueError that says what is wrong; the caller adds the file and what to do.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emofm_jax import files

_ENDS = ("ok", "failed")


@dataclasses.dataclass(frozen=True)
class Header:
    """What a sweep was to run.

    Attributes:
      experiment: value of --config.
      name: of its config.
      points: names, in order; of a search, its trials.
      seeds: of every point.
      reference: the point that the report compares with.
      search: value of --search, empty for a sweep of declared points.
    """

    experiment: str
    name: str
    points: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str
    search: str = ""

    def to_json(self) -> dict[str, Any]:
        """The content of sweep.json."""
        return dataclasses.asdict(self) | {"points": list(self.points), "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Header":
        """The inverse of `to_json`; raises ValueError if a key is missing."""
        _need(body, ("name", "experiment", "points", "seeds", "reference"))
        # Early sweeps wrote more of a point than its name.
        points = (p["name"] if isinstance(p, dict) else p for p in body["points"])
        return cls(
            body["experiment"],
            body["name"],
            tuple(points),
            tuple(body["seeds"]),
            body["reference"],
            body.get("search", ""),
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """A run that has ended.

    Attributes:
      point, seed: which run of the sweep it is.
      overrides: {dotted field: value} in which its config differs from the sweep's base.
      workdir: of the run, from that of the sweep.
      metrics: content of its metrics.json; None if it failed.
      error: why it failed, in one line; None if it did not.
      seconds: of all attempts, those apart whose process was killed.
      peak_memory_mib: the most main memory that its process held; None where that is not known,
        or not of this run alone.
      config: {dotted field: value} of its config, lists for tuples; empty if read from a line.
    """

    point: str
    seed: int
    overrides: Mapping[str, Any]
    workdir: Path
    metrics: dict[str, Any] | None = None
    error: str | None = None
    seconds: float = 0.0
    peak_memory_mib: float | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it has metrics."""
        return self.error is None

    def line(self) -> dict[str, Any]:
        """Its line of results.jsonl."""
        return {
            "point": self.point,
            "seed": self.seed,
            "status": "ok" if self.ok else "failed",
            "error": self.error,
            "overrides": self.overrides,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "peak_memory_mib": self.peak_memory_mib,
            "workdir": str(self.workdir),
        }

    @classmethod
    def from_line(cls, body: Mapping[str, Any]) -> "Result":
        """The inverse of `line`; older lines lack time, memory and workdir.

        Raises:
          ValueError: a key is missing, or a run that did not fail has no metrics.
        """
        _need(body, ("point", "seed", "status", "overrides", "metrics"))
        ok, metrics = body["status"] == "ok", body["metrics"]
        if body["status"] not in _ENDS:
            raise ValueError(f"status {body['status']!r} is not known")
        if ok and not (metrics and ("test" in metrics or "valid" in metrics)):
            raise ValueError("status ok, but no metrics")
        return cls(
            body["point"],
            body["seed"],
            body["overrides"],
            Path(body.get("workdir") or place(body["point"], body["seed"])),
            metrics if ok else None,
            None if ok else str(body.get("error") or "it says no error"),
            body.get("seconds") or 0.0,
            body.get("peak_memory_mib"),
        )

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""
        return {"line": self.line(), "config": self.config}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`; raises ValueError as `from_line` does."""
        _need(body, ("line", "config"))
        return dataclasses.replace(cls.from_line(body["line"]), config=body["config"])


@dataclasses.dataclass(frozen=True)
class Attempt:
    """How far the processes came that tried a run.

    Attributes:
      step: of its checkpoint when a process last began; None without one.
      deaths: of processes since it had that; one that trains now counts as dead until it ends.
      seconds: of the attempts that ended.
    """

    step: int | None = None
    deaths: int = 0
    seconds: float = 0.0

    @classmethod
    def load(cls, workdir: Path) -> "Attempt":
        """Of the run in the workdir; a run that was never tried has none."""
        path = workdir / "attempt.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, workdir: Path) -> None:
        """Writes attempt.json."""
        files.write_json(workdir / "attempt.json", dataclasses.asdict(self), indent=None)


def place(point: str, seed: int) -> Path:
    """The workdir of a run, from that of its sweep."""
    return Path("runs") / point / f"seed-{seed}"


def _need(body: Any, keys: Sequence[str]) -> None:
    if not isinstance(body, Mapping):
        raise ValueError(f"{type(body).__name__}, not an object")
    if missing := [key for key in keys if key not in body]:
        raise ValueError(f"it has no {', '.join(missing)}")
