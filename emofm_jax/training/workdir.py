"""A run's directory: one program at a time, the same run on the same data or an error, its files.

config.json comes last: a directory with it is a run. Its schema.json holds the identity of the data
that it is of.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import emofm_jax
from emofm_jax import config as config_lib
from emofm_jax.data import directories, encode, files, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError

# What a kill may leave in a workdir that is not yet a run, whole or under a temporary name.
_BEFORE_CONFIG = {
    "writable",
    "vocabulary",
    "rare",
    "schema.json",
    "environment.json",
    "config.json",
}
_BEFORE_CONFIG |= {"parent.json", "train.log", "result.json", "attempt.json"}  # by a sweep

# What programs write to `predictions/`.
_PREDICTIONS = re.compile(
    r"((train|valid|test)|(train|valid|test|input)@.+)(\.importance|\.rejected)?\.(parquet|json|svg)"
)


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[int]:
    """Makes the workdir and refuses another program of this machine in it meanwhile.

    Yields:
      The descriptor that holds the lock: it lasts until every process that has it has ended.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # The directory itself is locked: nothing is left behind, even by a kill.
            directory = os.open(workdir, os.O_RDONLY)
            stack.callback(os.close, directory)
            files.lock(directory)
            files.check_writable(workdir)
            for part in ("", "vocabulary", "rare", "checkpoints", "predictions"):
                directories.clear(workdir / part)  # what kills have left
        except BlockingIOError:
            raise UserError(
                f"{workdir}: another program works there now; wait for it, or choose another"
            ) from None
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: not writable ({error.strerror}); choose another"
            ) from None
        yield directory


@contextlib.contextmanager
def together(workdir: Path) -> Iterator[None]:
    """Refuses a program that trains in the workdir meanwhile; any number may evaluate there."""
    with contextlib.ExitStack() as stack:
        try:
            directory = os.open(workdir, os.O_RDONLY)
            stack.callback(os.close, directory)
            files.lock(directory, shared=True)
        except BlockingIOError:
            remedy = "wait for it, or stop it: the same command then goes on"
            raise UserError(f"{workdir}: another program trains there now; {remedy}") from None
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: not readable ({error.strerror}); choose another"
            ) from None
        yield


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
    """Waits until no other evaluation writes to `predictions/`: its files are of one of them."""
    directory = workdir / "predictions"
    with files.named(directory):
        directory.mkdir(exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)

    try:
        files.lock(descriptor, wait=True)
        files.clear(directory)
        yield
    finally:
        os.close(descriptor)


def remove_predictions(workdir: Path) -> None:
    """Removes what programs have written to `predictions/`, and nothing else."""
    for path in (workdir / "predictions").glob("*"):
        if _PREDICTIONS.fullmatch(path.name):
            files.remove(path)


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if the run in the workdir is of another config, but for free fields."""
    free = config_lib.may_change(config)
    changed = config_lib.changed(config_lib.load(workdir), config)
    pairs = ((k, a, b) for k, (a, b) in changed.items() if k not in free)
    differ = [
        f"{k} {config_lib.spelled(a)} there, {config_lib.spelled(b)} now"
        for k, a, b in pairs
        if not files.is_said(a, b)
    ]
    if differ:
        raise UserError(
            f"{workdir}: holds a run of another config ({'; '.join(differ)}); delete it, or choose "
            "another --workdir"
        )


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if a directory holds another run, or something else."""
    if (workdir / "config.json").exists():
        check_same_run(config, workdir)
    elif _names(workdir) - _BEFORE_CONFIG:
        raise UserError(
            f"{workdir}: holds files but no run (no config.json); choose an empty --workdir"
        )


def _names(workdir: Path) -> set[str]:
    """Names of the files there, whole or under a temporary name."""
    return {directories.whole_name(file.name) for file in workdir.iterdir()}


def open_workdir(config: ConfigDict, workdir: Path, schema: schema_lib.Schema) -> None:
    """Makes the workdir, or checks that the run in it is this one, on the same data.

    Raises:
      UserError: it holds another run, or something else; the data were prepared anew since.
    """
    check(config, workdir)
    path = workdir / "config.json"
    if path.exists():
        ours = schema_lib.load(workdir)
        if changed := schema_lib.difference(ours, schema):
            other = f"its run was trained on another schema ({changed})"
            raise UserError(f"{workdir}: {other}; choose another --workdir")
        if differs := schema_lib.other_rows(ours, schema):
            other = f"its run is of other rows than {config.data.dir} has now: {differs}"
            remedy = "prepare those again, or choose another --workdir"
            raise UserError(f"{workdir}: {other}; {remedy}")
    else:
        data = storage.reading(config.data.dir)
        encode.copy_vocabularies(schema, data, workdir)
        encode.copy_rare(schema, data, workdir)
        schema.save(workdir)

    files.write_json(workdir / "environment.json", _environment())
    files.write_json(path, json.loads(config.to_json()))  # last: a workdir with it is a run
    storage.publish(workdir)


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers of a run."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "pyarrow")
    own = {"emofm_jax": emofm_jax.__version__}  # a checkout that is not installed has no metadata
    return own | {name: importlib.metadata.version(name) for name in packages}


def _git(*words: str) -> str:
    """What git says of the place of this file; empty without git, or outside of a repository."""
    if not shutil.which("git"):
        return ""
    # status would lock the index, on which a commit that is made meanwhile fails.
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _environment() -> dict[str, Any]:
    """Versions, devices, commit and command of this process."""
    import jax

    commit = _git("rev-parse", "HEAD") or None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.local_devices()],
        "git_commit": commit,
        "git_changes": bool(commit and _git("status", "--porcelain", "--untracked-files=no")),
        "command": sys.argv,
    }
