"""Trains a run of a sweep, and knows from its workdir whether that is done: each leaves result.json there.

A run is a dict that JSON can hold: {"point", "seed", "overrides", "config", "workdir", "place", "keep"} (`workdir` from
where the program was started, `place` from the workdir of the sweep; `keep`: checkpoints stay). Its record, also in
result.json, is {"line": its line of results.jsonl, "config": {dotted field: value}}. What training prints goes to
train.log; attempt.json counts the deaths of processes, so that no run can hold up a sweep for ever.
"""

import contextlib
import json
import shutil
import sys
import time
import traceback
from pathlib import Path

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError
from emofm_jax.training import run as run_lib
from emofm_jax.training import workdir as workdir_lib

_DEATHS = 2  # of processes, at one step of a run, after which it has failed


def execute(run: dict) -> dict:
    """Trains a run, or goes on with it; returns its record. An error is part of the record: the next run can do better.

    Raises:
      SystemExit: after SIGTERM or SIGINT, with the state saved; there is no record then.
      OSError: the workdir cannot be written.
    """
    from emofm_jax.training import checkpoint  # loads jax

    workdir, start = Path(run["workdir"]), time.monotonic()
    if outdated(run):
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    step, metrics, error = checkpoint.latest(workdir / "checkpoints"), None, None
    alone = (
        step is None and "emofm_jax.training.loop" not in sys.modules
    )  # what its process holds is of it, whole
    before = _attempt(workdir)
    deaths = before["deaths"] if before["step"] == step else 0
    _write(
        workdir / "attempt.json", before | {"step": step, "deaths": deaths + 1}
    )  # unless the end below is reached
    with (
        open(workdir / "train.log", "a", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            if deaths == _DEATHS:
                raise UserError(
                    f"{workdir}: its process was killed {deaths} times after step {step or 0:,}, perhaps for want of "
                    "memory; choose a smaller model, or try again with --retry"
                )
            metrics = run_lib.run(_config(run), workdir)
        except UserError as mistake:
            error = str(mistake)
        except OSError:
            raise
        except Exception as bug:  # whatever it is, the other runs can go on
            traceback.print_exc()
            error = f"{type(bug).__name__}: {bug}"
        finally:
            seconds = before["seconds"] + time.monotonic() - start
            _write(workdir / "attempt.json", {"step": step, "deaths": deaths, "seconds": seconds})
        if error:
            print("error:", error)
    found = record(run, metrics, error, seconds, _peak_mib() if alone else None)
    if not error and not run["keep"]:
        shutil.rmtree(workdir / "checkpoints")
    return found


def record(
    run: dict,
    metrics: dict | None,
    error: str | None,
    seconds: float = 0.0,
    peak_mib: float | None = None,
) -> dict:
    """Makes the record of a run that has ended, and keeps it in the run's workdir.

    Args:
      run: see above.
      metrics: content of its metrics.json; None if it failed.
      error: why it failed; None if it did not.
      seconds: of all attempts, those apart whose process was killed.
      peak_mib: the most main memory that the process held; None where that is not known, or not of this run.
    """
    line = {
        "point": run["point"],
        "seed": run["seed"],
        "status": "ok" if error is None else "failed",
        "error": None if error is None else " ".join(error.split()),
        "overrides": run["overrides"],
        "metrics": metrics,
        "seconds": round(seconds, 3),
        "peak_memory_mib": peak_mib,
        "workdir": run["place"],
    }
    found = {"line": line, "config": as_json(run["config"])}
    workdir = Path(run["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / "attempt.json", _attempt(workdir) | {"deaths": 0})
    _write(workdir / "result.json", found)
    return found


def recorded(run: dict) -> dict | None:
    """The record of a run that has ended, if it was of this config, fields that change no number apart."""
    found = _result(Path(run["workdir"]))
    if found is None:
        return None
    theirs, ours = (
        as_json(config_lib.default()) | config_lib.renamed(found["config"]),
        as_json(run["config"]),
    )
    if {k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k)} - set(
        workdir_lib.FREE
    ):
        return None
    # Older records know of no memory; what the sweep's base is, and where the workdir lies, may have changed since.
    line = found["line"] | {
        "overrides": json.loads(json.dumps(run["overrides"])),
        "workdir": run["place"],
    }
    line.setdefault("peak_memory_mib", None)
    return {"line": line, "config": ours}


def outdated(run: dict) -> bool:
    """Whether the run's workdir holds one of another config that failed, to be begun anew.

    Raises:
      UserError: it holds one of another config that did not fail.
    """
    workdir = Path(run["workdir"])
    try:
        if (workdir / "config.json").exists():
            workdir_lib.check_same_run(_config(run), workdir)
    except UserError:
        found = _result(workdir)
        if found is None or found["line"]["status"] == "ok" or (workdir / "metrics.json").exists():
            raise
        return True
    return False


def _result(workdir: Path) -> dict | None:
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        if found["line"]["status"] not in ("ok", "failed") or "seed" not in found["config"]:
            raise ValueError("it is no record of a run")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error!r}); delete it, the run is then looked at again"
        ) from None
    return found


def as_json(config) -> dict:
    """{dotted field: value} as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(config_lib.flatten(config)))


def _config(run: dict):
    return config_lib.from_dict(json.loads(json.dumps(run["config"])))


def _attempt(workdir: Path) -> dict:
    """{"step": its checkpoint when a process last began, "deaths": of processes since it had that, "seconds"}."""
    path = workdir / "attempt.json"
    return (
        json.loads(path.read_text())
        if path.exists()
        else {"step": None, "deaths": 0, "seconds": 0.0}
    )


def _write(path: Path, content: dict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)


def _peak_mib() -> float | None:
    """The most main memory that this process has held; None where the system does not tell (it is not Linux)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peak = status.partition("VmHWM:")[2].split()
    return round(int(peak[0]) / 1024, 1) if peak else None
