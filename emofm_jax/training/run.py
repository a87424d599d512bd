"""From a config to a trained run: checks, data, parts, memory, workdir, loop.

What `train` and `sweep` both call.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax import errors
from emofm_jax.data import batches, files, preparation, shards, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError
from emofm_jax.evaluation.run_report import RunReport
from emofm_jax.options import flatten
from emofm_jax.training import checkpoint, processes
from emofm_jax.training import workdir as workdir_lib

if TYPE_CHECKING:  # which load jax
    from emofm_jax.training.build import Parts
    from emofm_jax.training.start import Start


def check(config: ConfigDict) -> None:
    """Checks what needs no data; raises UserError on a name or option that does not fit."""
    if not config.data.dir:
        raise UserError("config.data.dir: it is empty; name the directory of the shards")
    if config.train.init_moments and not config.train.init_from:
        raise UserError(
            "config.train.init_moments: it has no effect without a run to start from; name it by "
            "config.train.init_from, or leave it out"
        )
    from emofm_jax.models import build

    build.check(config.model.to_dict())


def run(config: ConfigDict, workdir: Path, identity: str = "", test: bool = True) -> RunReport:
    """Trains in a workdir, from its last checkpoint if it has one, and says on stdout what it does.

    Args:
      config: validated and checked.
      workdir: of the run; made if missing.
      identity: of the preparation that the data must be of; empty if any will do.
      test: rows of the test split are scored at the end, if there are any.

    Returns:
      The content of metrics.json.

    Raises:
      UserError: no data, or other data than before; too little memory, a workdir that holds
        something else, a batch that does not divide over the devices, a loss that is not finite; a
        run to start from (`start`) that is gone, or of another model or schema.
      SystemExit: after SIGTERM or SIGINT, with the state saved.
    """
    from emofm_jax.training import build, loop, memory

    first = processes.is_first()
    missing = not (storage.reading(config.data.dir) / "schema.json").exists()
    if first and missing and workdir.exists():  # before data are made
        with workdir_lib.alone(workdir):
            workdir_lib.check(config, workdir)
    if first:
        _print_differences(config)
    splits = open_data(config)
    train = splits["train"]
    if identity and train.schema.identity != identity:
        raise UserError(f"{config.data.dir}: {shards.ANEW}")
    if not test:
        splits.pop("test", None)

    # What fails here leaves no workdir.
    _check_processes(config, workdir, train.schema)
    parts = build.make_parts(config, train.schema, loop.num_steps(config, train))
    needed = memory.check(config, parts)
    if first:
        print(f"memory of each device: up to about {needed}")
        _print_processes(config, train)
    parts, start = _started(config, workdir, parts)

    with workdir_lib.alone(workdir) if first else contextlib.nullcontext():
        if first:
            workdir_lib.open_workdir(config, workdir, train.schema)
        if first and start:
            start.save(workdir)
        processes.gather("opened")
        storage.follow(workdir)
        seen: dict[str, Any] = {"the run in the workdir": (workdir / "config.json").exists()}
        seen["its newest checkpoint"] = checkpoint.latest(workdir / "checkpoints")
        processes.check_same(seen, "give all the same directory, of a file system that they share")
        return loop.run(config, workdir, splits, parts)


def _started(config: ConfigDict, workdir: Path, parts: "Parts") -> "tuple[Parts, Start | None]":
    """The parts with the state of another run, if this one starts from it and has not begun."""
    from emofm_jax.training import start as start_lib

    begun = checkpoint.latest(workdir / "checkpoints") is not None
    if begun or not config.train.init_from:
        return parts, None
    start = start_lib.make(config, parts)
    if processes.is_first():
        print(start.said())
    return dataclasses.replace(parts, start=start.state), start


def _check_processes(config: ConfigDict, workdir: Path, schema: schema_lib.Schema) -> None:
    """Raises UserError in all processes if they are not about to do the same."""
    if processes.count() == 1:
        return
    places = {"name", "data.dir", "prepare.source"}  # may have other names on other machines
    facts = {f"config.{k}": v for k, v in flatten(config).items() if k not in places}
    facts |= {f"the version of {k}": v for k, v in workdir_lib.versions().items()}
    facts["the schema of the data"] = schema.fingerprint()
    facts["the preparation of the data"] = schema.identity
    facts["--workdir"] = files.said(str(workdir))
    remedy = "start all with the same command, data and environment"
    processes.check_same(facts, f"{remedy} (--num_processes=1: runs of their own)")


def _print_processes(config: ConfigDict, train: shards.Split) -> None:
    """How many steps an epoch takes, where the rows of several processes are not of one number."""
    if (count := processes.count()) == 1:
        return
    size, seed = config.data.batch_size, config.seed if config.data.shuffle else None
    steps = batches.num_steps(train, size, num_processes=count, seed=seed, epoch=0)
    least, groups = -(-train.num_rows // size), len(train.row_groups)
    shares = f"{train.num_rows:,} rows in {groups:,} row groups"
    print(f"{count} processes share {shares}: {steps:,} steps an epoch ({least:,} if evenly)")


def plan(config: ConfigDict, num_devices: int) -> list[str]:
    """Lines on memory and traffic of training on so many devices; 0: those that are here.

    Raises:
      UserError: no schema of prepared data; a batch that does not divide.
    """
    from emofm_jax.training import build, memory

    directory = storage.reading(config.data.dir)
    if not (directory / "schema.json").exists():
        remedy = "run `python -m emofm_jax.prepare --config=...` first"
        raise UserError(f"{directory}: a plan needs the schema of prepared data; {remedy}")
    parts = build.make_parts(config, schema_lib.load(directory), num_devices=num_devices)
    return memory.plan(config, parts).lines()


def open_data(config: ConfigDict) -> dict[str, shards.Split]:
    """Opens the splits of `config.data.dir`; makes synthetic data that is missing.

    Raises:
      UserError: other data are missing, were prepared with other options, or have no rows.
    """
    directory = storage.reading(config.data.dir)
    if not (directory / "schema.json").exists():
        if config.prepare.format != "synthetic":
            raise UserError(
                f"{directory}: no prepared data; run `python -m emofm_jax.prepare --config=...` "
                "with this config first"
            )
        if processes.is_first():
            print(f"{directory}: no shards yet, making the synthetic data")
            preparation.prepare_missing(config)

    processes.gather("data")
    directory = storage.reading(config.data.dir)  # which may have been made
    schema = schema_lib.load(directory)
    if differ := stale(config, schema):
        raise UserError(
            f"{directory}: prepared with other options ({'; '.join(differ)}); run "
            "`python -m emofm_jax.prepare` again, or set another config.data.dir"
        )
    splits = _open_all(directory)
    if any(split.schema.identity != schema.identity for split in splits.values()):
        raise UserError(f"{directory}: {shards.ANEW}")
    for name in ("train", "valid"):
        if name not in splits or not splits[name].num_rows:
            raise UserError(
                f"{directory / name}: no rows; training needs a train and a valid split: a later "
                "day, a file, or a share of the rows (config.prepare.split)"
            )
    return splits


def _open_all(directory: Path) -> dict[str, shards.Split]:
    """Opens the splits that are there, and are there still when all are open."""
    there = lambda: [name for name in shards.SPLITS if (directory / name).is_dir()]
    splits = {name: shards.open_split(directory, name) for name in there()}
    if list(splits) != there():
        raise UserError(f"{directory}: {shards.ANEW}")
    return splits


def stale(config: ConfigDict, schema: schema_lib.Schema) -> list[str]:
    """Options that the data were prepared with against those of the config, where they differ."""
    # Fields that were not yet when the data were prepared had what is their default now.
    usual = flatten({"prepare": config_lib.default().prepare})
    made = usual | flatten({"prepare": schema.recipe})
    wanted = flatten({"prepare": config.prepare})

    names = sorted((made.keys() | wanted.keys()) - config_lib.free())
    pairs = [(name, made.get(name), wanted.get(name)) for name in names]
    spelled = config_lib.spelled
    return [f"{name} {spelled(a)} against {spelled(b)}" for name, a, b in pairs if a != b]


def _print_differences(config: ConfigDict) -> None:
    """What differs from the defaults, since that is what the run is."""
    changed = config_lib.difference(config, config_lib.default())
    prepared = [path for path in changed if path.startswith("prepare.")]
    idle = config_lib.without_effect(config)

    print(f"{errors.printable(config.name)}: options that differ from the defaults")
    for path, (ours, _) in changed.items():
        if path not in prepared and path != "name":
            print(f"  {path} = {ours!r}{f'  (no effect on {idle[path]})' if path in idle else ''}")
    if prepared:
        print(f"  and {len(prepared)} of prepare.*, which made the data")
