"""One run of a sweep: trained in its workdir, which then knows how it ended.

    to do    execute                                              ->  trains
    trains   it ends                                              ->  ok
             an error, or its process dies while the sweep lives  ->  failed
             told to stop: its state is saved                     ->  to do
             killed with the sweep                                ->  to do
             killed with it three times, at the same checkpoint   ->  failed
    failed   --retry, or another config                           ->  to do
    ok       a later end (train.epochs, train.max_steps)          ->  to do

result.json says how it ended, attempt.json counts the deaths, so that no run can hold up a sweep
for ever; what training prints goes to train.log.
"""

import contextlib
import dataclasses
import io
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.data import directories, files
from emofm_jax.errors import FileError, UserError
from emofm_jax.options import flatten
from emofm_jax.sweeping import record
from emofm_jax.sweeping.record import Attempt, Result
from emofm_jax.training import run as run_lib
from emofm_jax.training import workdir as workdir_lib

_DEATHS = 3  # of processes, at one checkpoint of a run, after which it has failed


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is to be trained.

    Attributes:
      point, seed, overrides: as of its Result.
      workdir: its own, from where the program was started.
      keep: its checkpoints stay when it has ended.
      identity: of the preparation that it is to be trained on; empty if any will do.
      test: rows of the test split are scored at its end.
    """

    point: str
    seed: int
    overrides: Mapping[str, Any]
    config: ConfigDict
    workdir: Path
    keep: bool = True
    identity: str = ""
    test: bool = True

    def to_json(self) -> dict[str, Any]:
        """What a process of the sweep is told."""
        return vars(self) | {"config": self.config.to_dict(), "workdir": str(self.workdir)}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Run":
        """The inverse of `to_json`."""
        config = config_lib.from_dict(body["config"])
        return cls(**body | {"config": config, "workdir": Path(body["workdir"])})


def execute(run: Run) -> Result:
    """Trains a run, or goes on with it. An error is part of the result: the next run can do better.

    Raises:
      SystemExit: after SIGTERM or SIGINT, with the state saved; there is no result then.
      FileError, OSError: the workdir cannot be written.
    """
    from emofm_jax.training import checkpoint  # loads jax

    start, checkpoints = time.monotonic(), run.workdir / "checkpoints"
    directories.clear(run.workdir.parent)
    if outdated(run):
        directories.remove(run.workdir)
    files.make_directory(run.workdir)
    step = checkpoint.latest(checkpoints)
    # What the process holds is the run's if nothing was trained in it before.
    alone = step is None and "emofm_jax.training.loop" not in sys.modules

    before = Attempt.load(run.workdir)
    deaths = before.deaths if before.step == step else 0
    Attempt(step, deaths + 1, before.seconds).save(run.workdir)  # stays if the process dies
    try:
        metrics, error = _train(run, step, deaths)
    finally:
        seconds = before.seconds + time.monotonic() - start
        Attempt(step, deaths, seconds).save(run.workdir)

    result = end(run, metrics, error, seconds, _peak_mib() if alone else None)
    if result.ok and not run.keep:
        directories.remove(checkpoints)
    return result


def _train(run: Run, step: int | None, deaths: int) -> tuple[dict | None, str | None]:
    """The content of metrics.json, or the error."""
    with (
        _Printed(run.workdir / "train.log") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            if deaths == _DEATHS:
                what = f"killed {deaths} times after step {step or 0:,}, perhaps for want of memory"
                remedy = "choose a smaller model, or try again with --retry"
                raise UserError(f"{run.workdir}: its process was {what}; {remedy}")
            metrics = run_lib.run(run.config, run.workdir, run.identity, run.test).to_json()
            if not run.test:  # `train` may have finished it
                metrics.pop("test", None)
            return metrics, None
        except (FileError, OSError):  # the disk's, not the run's
            raise
        except UserError as mistake:
            error = str(mistake)
        except Exception as bug:  # whatever it is, the other runs can go on
            traceback.print_exc()
            error = f"{type(bug).__name__}: {bug}"
        print("error:", error)
    return None, error


class _Printed(io.TextIOBase):
    """What a run prints, at the end of a file; one that is full keeps no run from going on."""

    def __init__(self, path: Path):
        self._file = files.Appended(path)

    def write(self, text: str) -> int:
        """Appends text."""
        self._file.write(files.said(text))
        return len(text)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def end(
    run: Run,
    metrics: dict | None = None,
    error: str | None = None,
    seconds: float = 0.0,
    peak_memory_mib: float | None = None,
) -> Result:
    """Makes the result of a run from its fields, and keeps it in the run's workdir."""
    what = (run.point, run.seed, run.overrides, record.place(run.point, run.seed))
    error = None if error is None else " ".join(error.split())
    how = (metrics, error, round(seconds, 3), peak_memory_mib)
    result = Result(*what, *how, flatten(run.config))

    files.make_directory(run.workdir)
    Attempt(None, 0, Attempt.load(run.workdir).seconds).save(run.workdir)
    files.write_json(run.workdir / "result.json", result.to_json(), indent=None)
    return result


def ended(run: Run) -> Result | None:
    """The result that the workdir holds, if it is of the run's config.

    Fields that change no number may differ, and those that had their default before they existed.
    """
    found = record.read(run.workdir)
    if found is None:
        return None

    was = flatten(config_lib.default()) | config_lib.renamed(dict(found.config))
    differ, free = config_lib.changed(was, run.config), config_lib.free()
    if any(k not in free and not files.is_said(*pair) for k, pair in differ.items()):
        return None

    # What the sweep's base is, and where the sweep lies, may have changed since.
    place, now = record.place(run.point, run.seed), flatten(run.config)
    return dataclasses.replace(found, overrides=run.overrides, workdir=place, config=now)


def outdated(run: Run) -> bool:
    """Tells whether the workdir holds a run of another config that failed: it is begun anew.

    Raises:
      UserError: it holds one of another config that did not fail.
    """
    try:
        if (run.workdir / "config.json").exists():
            workdir_lib.check_same_run(run.config, run.workdir)
    except UserError:
        found = record.read(run.workdir)
        if found is None or found.ok or (run.workdir / "metrics.json").exists():
            raise
        return True
    return False


def _peak_mib() -> float | None:
    """The most main memory that this process has held; None where the system is not Linux."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peak = status.partition("VmHWM:")[2].split()
    return round(int(peak[0]) / 1024, 1) if peak else None
