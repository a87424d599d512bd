"""A run's directory: one program at a time, the same run or an error, and its first files.

config.json comes last: a directory with it is a run.
"""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError

# What a kill may leave in a workdir that is not yet a run.
_BEFORE_CONFIG = {".writable", "vocabulary", "schema.json", "environment.json", "config.json.tmp"}
_BEFORE_CONFIG |= {
    "train.log",
    *(f"{name}.json{end}" for name in ("result", "attempt") for end in ("", ".tmp")),
}  # what a sweep writes there


@contextlib.contextmanager
def alone(workdir: Path):
    """Makes the workdir and refuses a second program of this machine in it while this one trains there.

    Yields:
      The descriptor that holds the lock: it lasts until every process that has it has ended.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            directory = os.open(
                workdir, os.O_RDONLY
            )  # locked itself: nothing is left behind, even by a kill
            stack.callback(os.close, directory)
            _lock(directory)
            (workdir / ".writable").touch()
            (workdir / ".writable").unlink()
        except BlockingIOError:
            raise UserError(
                f"{workdir}: another program trains there now; wait for it, or choose another"
            ) from None
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: not writable ({error.strerror}); choose another"
            ) from None
        yield directory


def _lock(directory: int) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (
            errno.ENOSYS,
            errno.ENOTSUP,
            errno.ENOLCK,
        ):  # a file system without locks: then none
            raise


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if the run in the workdir is of another config, fields that may change apart."""
    free = config_lib.may_change(config)
    differ = config_lib.difference(config_lib.load(workdir), config)
    differ = [f"{k} {a!r} there, {b!r} now" for k, (a, b) in differ.items() if k not in free]
    if differ:
        raise UserError(
            f"{workdir}: holds a run of another config ({'; '.join(differ)}); delete it, or choose another --workdir"
        )


def open_workdir(config: ConfigDict, workdir: Path, schema: schema_lib.Schema) -> None:
    """Makes the workdir, or checks that the run in it is this one."""
    path = workdir / "config.json"
    if path.exists():
        check_same_run(config, workdir)
        if changed := schema_lib.difference(schema_lib.load(workdir), schema):
            raise UserError(
                f"{workdir}: its run was trained on another schema ({changed}); choose another --workdir"
            )
    elif {file.name for file in workdir.iterdir()} - _BEFORE_CONFIG:
        raise UserError(
            f"{workdir}: holds files but no run (no config.json); choose an empty --workdir"
        )
    vocabulary = Path(config.data.dir) / "vocabulary"
    if vocabulary.is_dir():
        shutil.copytree(vocabulary, workdir / "vocabulary", dirs_exist_ok=True)
    schema.save(workdir)
    (workdir / "environment.json").write_text(json.dumps(_environment(), indent=1) + "\n")
    (workdir / "config.json.tmp").write_text(config.to_json(indent=1) + "\n")
    (workdir / "config.json.tmp").replace(path)  # last: a workdir with it is a run


def _environment() -> dict:
    import jax

    packages = ("emofm_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pyarrow")
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    git = (
        shutil.which("git")
        and subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.local_devices()],
        "git_commit": git or None,
        "command": sys.argv,
    }
