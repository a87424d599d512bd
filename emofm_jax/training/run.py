"""From a config to a trained run: checks, data, memory, workdir, loop. What `train` and `sweep` both call."""

from pathlib import Path

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.data import preparation, shards
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError
from emofm_jax.training import workdir as workdir_lib


def check(config: ConfigDict) -> None:
    """Checks of a validated config what needs no data: raises UserError on a name or option that does not fit."""
    if not config.data.dir:
        raise UserError("config.data.dir: it is empty; name the directory of the shards")
    from emofm_jax.training import build  # loads jax: after the cheap checks

    build.check(config)


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
    from emofm_jax.training import build, loop

    _print_differences(config)
    splits = open_data(config)
    schema = splits["train"].schema
    program = build.make_program(
        config, schema, num_steps=1
    )  # fails here, before there is a workdir
    print(f"memory of each device: up to about {build.check_memory(config, schema, program)}")
    with workdir_lib.alone(workdir):
        workdir_lib.open_workdir(config, workdir, schema)
        return loop.run(config, workdir, splits)


def open_data(config: ConfigDict) -> dict[str, shards.Split]:
    """The splits of `config.data.dir`; synthetic data is made if missing, other data must be prepared first."""
    directory = Path(config.data.dir)
    if not (directory / "schema.json").exists():
        if config.prepare.format != "synthetic":
            raise UserError(
                f"{directory}: no prepared data; run `python -m emofm_jax.prepare --config=...` with this config first"
            )
        print(f"{directory}: no shards yet, making the synthetic data")
        preparation.prepare(config)
    schema = schema_lib.load(directory)
    made = ConfigDict({"prepare": dict(schema.recipe)})
    wanted = ConfigDict({"prepare": config.prepare.to_dict()})
    usual = config_lib.flatten(
        config_lib.default()
    )  # of fields that were not yet when the data were prepared
    stale = {
        k: (usual.get(k) if a is ... else a, b)
        for k, (a, b) in config_lib.difference(made, wanted).items()
    }
    stale = [
        f"{k} {a!r} against {b!r}"
        for k, (a, b) in stale.items()
        if k not in config_lib.free() and a != b
    ]
    if stale:
        raise UserError(
            f"{directory}: prepared with other options ({'; '.join(stale)}); run `python -m emofm_jax.prepare` "
            "again, or set another config.data.dir"
        )
    splits = {
        name: shards.open_split(directory, name)
        for name in shards.SPLITS
        if (directory / name).is_dir()
    }
    for name in ("train", "valid"):
        if name not in splits or not splits[name].num_rows:
            raise UserError(
                f"{directory / name}: no rows; training needs a train and a valid split"
            )
    return splits


def _print_differences(config: ConfigDict) -> None:
    """What differs from the defaults, since that is what the run is."""
    changed = config_lib.difference(config, config_lib.default())
    prepared = [path for path in changed if path.startswith("prepare.")]
    idle = config_lib.without_effect(config)
    print(f"{config.name}: options that differ from the defaults")
    for path, (ours, _) in changed.items():
        if path not in prepared and path != "name":
            print(f"  {path} = {ours!r}{f'  (no effect on {idle[path]})' if path in idle else ''}")
    if prepared:
        print(f"  and {len(prepared)} of prepare.*, which made the data")
