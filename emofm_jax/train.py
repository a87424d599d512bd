"""Trains a model on prepared shards, evaluates it and writes everything into a workdir.

    python -m emofm_jax.train --config=experiments/quickstart.py --workdir=runs/quickstart
    python -m emofm_jax.train --config=experiments/frappe.py:wm --workdir=runs/wm --config.seed=1

The same command again goes on where it stopped, or shows the result of a finished run. The workdir then holds
config.json, schema.json, vocabulary/, environment.json, log.jsonl, TensorBoard events, checkpoints/, metrics.json
and predictions/test.parquet (without a test split valid.parquet); evaluate, predict and other programs take
`--workdir` and find everything there.
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
import textwrap
from pathlib import Path

from absl import flags as absl_flags
from ml_collections import ConfigDict

from emofm_jax import cli, prepare, summary
from emofm_jax import config as config_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import shards
from emofm_jax.errors import UserError

# Fields that change no number of a run.
FREE = (
    "name",
    "data.dir",
    "data.prefetch",
    "prepare.source",
    "prepare.max_rejected",
    "train.log_every_steps",
    "train.save_every_steps",
)
# Where a run ends: it may go on to a later one, unless a schedule depends on the number of steps.
END = ("train.epochs", "train.max_steps")

# What a kill may leave in a workdir that is not yet a run.
_BEFORE_CONFIG = {".writable", "vocabulary", "schema.json", "environment.json", "config.json.tmp"}
_BEFORE_CONFIG |= {
    "train.log",
    *(f"{name}.json{end}" for name in ("result", "attempt") for end in ("", ".tmp")),
}  # what a sweep writes there


def _main(flags: absl_flags.FlagValues) -> None:
    config, workdir = flags.config, Path(flags.workdir)
    check(config)
    given = cli.overrides(flags)
    for path, what in without_effect(config).items():
        if path in given:
            raise UserError(f"--config.{path}={given[path]}: it has no effect on {what}; leave it out")
    metrics = run(config, workdir)
    print()
    print(summary.table(metrics, "test" if "test" in metrics else "valid"))
    print()
    print(summary.footer(metrics))
    print(f"written: {workdir}/ (metrics.json, predictions/, checkpoints/, log.jsonl, TensorBoard events)")


def check(config: ConfigDict) -> None:
    """Checks of a validated config what needs no data: raises UserError on a name or option that does not fit."""
    if not config.data.dir:
        raise UserError("config.data.dir: it is empty; name the directory of the shards")
    from emofm_jax.training import program as program_lib  # loads jax: after the cheap checks

    program_lib.check(config)


def run(config: ConfigDict, workdir: Path) -> dict:
    """Trains in a workdir, from its last checkpoint if it has one, and says on stdout what it does.

    Args:
      config: validated and checked.
      workdir: of the run; made if missing.

    Returns:
      The content of metrics.json.
    Raises:
      UserError: no data, too little memory, a workdir that holds something else, a loss that is not finite.
      SystemExit: after SIGTERM or SIGINT, with the state saved.
    """
    from emofm_jax.training import loop
    from emofm_jax.training import program as program_lib

    _print_differences(config)
    splits = open_data(config)
    schema = splits["train"].schema
    program = program_lib.make_program(config, schema, num_steps=1)  # fails here, before there is a workdir
    print(f"memory of each device: up to about {program_lib.check_memory(config, schema, program)}")
    with alone(workdir):
        _open_workdir(config, workdir, schema)
        return loop.run(config, workdir, splits)


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_config(flags, argv)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run; made if missing.", flag_values=flags)


def _describe_models() -> str:
    """What the files of models/ say of themselves, under the names of the models."""
    from emofm_jax import models

    names = {}
    for name, model in models.MODELS.items():
        names.setdefault(model.__module__, []).append(name)
    lines = ["Models (--config.model.name; docs/model.md: stated by the papers, and our choices):"]
    for module, of_module in names.items():
        lines += ["", f"  {', '.join(of_module)}", textwrap.indent(sys.modules[module].__doc__.strip(), "    ")]
    return "\n".join(lines)


def _print_differences(config: ConfigDict) -> None:
    """What differs from the defaults, since that is what the run is."""
    changed = config_lib.difference(config, config_lib.default())
    prepared = [path for path in changed if path.startswith("prepare.")]
    idle = without_effect(config)
    print(f"{config.name}: options that differ from the defaults")
    for path, (ours, _) in changed.items():
        if path not in prepared and path != "name":
            print(f"  {path} = {ours!r}{f'  (no effect on {idle[path]})' if path in idle else ''}")
    if prepared:
        print(f"  and {len(prepared)} of prepare.*, which made the data")


def without_effect(config: ConfigDict) -> dict[str, str]:
    """{field: what it has no effect on, as the other fields are}."""
    from emofm_jax import models
    from emofm_jax.training import optim

    found = {f"model.{path}": what for path, what in models.unread(config.model.to_dict()).items()}
    for key in ("embedding", "network"):
        name = config.optim[key].name
        found |= {f"optim.{key}.{field}": name for field in set().union(*optim.FIELDS.values()) - optim.FIELDS[name]}
    if config.optim.clip == "none":
        found["optim.clip_norm"] = "optim.clip=none"
    if not config.data.shuffle:
        found["data.shuffle_rows"] = "data.shuffle=False"
    if "plateau" not in (config.optim.embedding.schedule, config.optim.network.schedule):
        found |= dict.fromkeys(("train.plateau_factor", "train.plateau_min"), "a schedule that is not plateau")
        if not config.train.monitor:
            found["train.min_delta"] = "a run without train.monitor"
    return found


def open_data(config: ConfigDict) -> dict[str, shards.Split]:
    """The splits of `config.data.dir`; synthetic data is made if missing, other data must be prepared first."""
    directory = Path(config.data.dir)
    if not (directory / "schema.json").exists():
        if config.prepare.format != "synthetic":
            raise UserError(
                f"{directory}: no prepared data; run `python -m emofm_jax.prepare --config=...` with this config first"
            )
        print(f"{directory}: no shards yet, making the synthetic data")
        prepare.prepare(config)
    schema = schema_lib.load(directory)
    made = ConfigDict({"prepare": dict(schema.recipe)})
    wanted = ConfigDict({"prepare": config.prepare.to_dict()})
    usual = config_lib.flatten(config_lib.default())  # of fields that were not yet when the data were prepared
    stale = {k: (usual.get(k) if a is ... else a, b) for k, (a, b) in config_lib.difference(made, wanted).items()}
    stale = [f"{k} {a!r} against {b!r}" for k, (a, b) in stale.items() if k not in FREE and a != b]
    if stale:
        raise UserError(
            f"{directory}: prepared with other options ({'; '.join(stale)}); run `python -m emofm_jax.prepare` "
            "again, or set another config.data.dir"
        )
    splits = {name: shards.open_split(directory, name) for name in shards.SPLITS if (directory / name).is_dir()}
    for name in ("train", "valid"):
        if name not in splits or not splits[name].num_rows:
            raise UserError(f"{directory / name}: no rows; training needs a train and a valid split")
    return splits


@contextlib.contextmanager
def alone(workdir: Path):
    """Makes the workdir and refuses a second program of this machine in it while this one trains there.

    Yields:
      The descriptor that holds the lock: it lasts until every process that has it has ended.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            directory = os.open(workdir, os.O_RDONLY)  # locked itself: nothing is left behind, even by a kill
            stack.callback(os.close, directory)
            _lock(directory)
            (workdir / ".writable").touch()
            (workdir / ".writable").unlink()
        except BlockingIOError:
            raise UserError(f"{workdir}: another program trains there now; wait for it, or choose another") from None
        except OSError as error:
            raise UserError(f"--workdir={workdir}: not writable ({error.strerror}); choose another") from None
        yield directory


def _lock(directory: int) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a file system without locks: then none
            raise


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if the run in the workdir is of another config, fields that may change apart."""
    fixed = [key for key in ("embedding", "network") if config.optim[key].schedule == "cosine"]
    free = FREE + (() if fixed else END)
    differ = config_lib.difference(config_lib.load(workdir), config)
    differ = [f"{k} {a!r} there, {b!r} now" for k, (a, b) in differ.items() if k not in free]
    if differ:
        raise UserError(
            f"{workdir}: holds a run of another config ({'; '.join(differ)}); delete it, or choose another --workdir"
        )


def _open_workdir(config: ConfigDict, workdir: Path, schema: schema_lib.Schema) -> None:
    """Makes the workdir, or checks that the run in it is this one."""
    path = workdir / "config.json"
    if path.exists():
        check_same_run(config, workdir)
        if changed := schema_lib.difference(schema_lib.load(workdir), schema):
            raise UserError(f"{workdir}: its run was trained on another schema ({changed}); choose another --workdir")
    elif {file.name for file in workdir.iterdir()} - _BEFORE_CONFIG:
        raise UserError(f"{workdir}: holds files but no run (no config.json); choose an empty --workdir")
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
    git = shutil.which("git") and subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.local_devices()],
        "git_commit": git or None,
        "command": sys.argv,
    }


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv, more_help=_describe_models)


if __name__ == "__main__":
    sys.exit(main())
