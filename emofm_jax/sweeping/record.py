"""What a sweep leaves on disk, as dataclasses: `sweep` writes them, `report` reads them.

    sweep.json                       Header: what was to be run
    results.jsonl                    Result.line of every run that has ended; of which sweep it is
    runs/POINT/seed-S/result.json    Result.to_json: the line and the run's config
    runs/POINT/seed-S/attempt.json   Attempt: how often processes have died of the run

`from_json` raises ValueError that says what is wrong; the caller adds the file and what to do.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from emofm_jax.data import files

_LINE = ("point", "seed", "status", "error", "overrides", "metrics", "seconds", "peak_memory_mib")


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
      identity: digest of all that, as sweep.json has it; empty in those of before it was noted.
    """

    experiment: str
    name: str
    points: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str
    search: str = ""
    identity: str = ""

    def to_json(self) -> dict[str, Any]:
        """The content of sweep.json."""
        return dataclasses.asdict(self) | {"identity": self.digest()}

    def digest(self) -> str:
        """The identity that the sweep has; lines of results.jsonl say it, too."""
        body = dataclasses.asdict(self) | {"identity": ""}
        return files.digest(json.dumps(body))

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; raises ValueError if a key is missing."""
        _need(body, ("name", "experiment", "points", "seeds", "reference"))
        # Early sweeps wrote more of a point than its name.
        points = tuple(p["name"] if isinstance(p, dict) else p for p in body["points"])
        found = (body["experiment"], body["name"], points, tuple(body["seeds"]), body["reference"])
        return cls(*found, body.get("search", ""), body.get("identity", ""))

    def check(self, line: Mapping[str, Any]) -> None:
        """Raises ValueError where a line of results.jsonl is of another sweep, as both say."""
        if self.identity and line.get("sweep", self.identity) != self.identity:
            raise ValueError("of another sweep than results.jsonl beside it")


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
      config: {dotted field: value} of its config; empty if read from a line.
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
        body = vars(self) | {"status": "ok" if self.ok else "failed"}
        return {key: body[key] for key in _LINE} | {"workdir": str(self.workdir)}

    @classmethod
    def from_line(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of `line`; older lines lack time, memory and workdir.

        Raises:
          ValueError: a key is missing, or a run that did not fail has no metrics.
        """
        _need(body, ("point", "seed", "status", "overrides", "metrics"))
        point, seed, status = body["point"], body["seed"], body["status"]
        if status not in ("ok", "failed"):
            raise ValueError(f"status {status!r} is not known")
        metrics = body["metrics"] if status == "ok" else None
        if status == "ok" and not (metrics and ("test" in metrics or "valid" in metrics)):
            raise ValueError("status ok, but no metrics")

        workdir = Path(body.get("workdir") or place(point, seed))
        error = None if status == "ok" else str(body.get("error") or "it says no error")
        cost = (body.get("seconds") or 0.0, body.get("peak_memory_mib"))
        return cls(point, seed, body["overrides"], workdir, metrics, error, *cost)

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""
        return {"line": self.line(), "config": self.config}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
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
    def load(cls, workdir: Path) -> Self:
        """That of the run in the workdir; one without deaths if it was never tried."""
        path = workdir / "attempt.json"
        with files.undamaged(path, "delete it, the run then counts as never tried"):
            try:
                return cls(**files.read_json(path))
            except FileNotFoundError:
                return cls()

    def save(self, workdir: Path) -> None:
        """Writes attempt.json."""
        files.write_json(workdir / "attempt.json", dataclasses.asdict(self), indent=None)


def read(workdir: Path) -> Result | None:
    """The result that a run's workdir holds, with its config; None if it holds none.

    Raises:
      UserError: result.json is damaged.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    with files.undamaged(path, "delete it, the run is then looked at again"):
        found = Result.from_json(files.read_json(path))
        if "seed" not in found.config:
            raise ValueError("its config has no seed")
        return found


def place(point: str, seed: int) -> Path:
    """The workdir of a run, from that of its sweep."""
    return Path("runs") / point / f"seed-{seed}"


def _need(body: Any, keys: Sequence[str]) -> None:
    if not isinstance(body, Mapping):
        raise ValueError(f"{type(body).__name__}, not an object")
    if missing := [key for key in keys if key not in body]:
        raise ValueError(f"it has no {', '.join(missing)}")
