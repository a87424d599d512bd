"""Raw click logs -> shards: two passes over the files of `config.prepare` (docs/data.md, `passes`).

Nothing half-written is left behind: the directory appears when it is whole (`directories`), and two
programs never prepare in the same place. Who reads the old shards is told at the next read
(`shards`).
"""

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import directories, engines, growth, passes, shards, stages, storage, synthetic
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.source import Gaps
from emofm_jax.errors import UserError

_WORKER_BYTES = 1 << 26  # raw bytes that are worth starting another process
# What `prepare` writes: names that it may replace.
_OURS = re.compile(
    r"schema\.json|prepare\.json|(vocabulary|rare)(/[^/]+\.parquet)?|(train|valid|test)"
    r"(/_SUCCESS|/(part-\d{5,}|rejected|truth)\.parquet)?"
)


def prepare(
    config: ConfigDict,
    progress: bool = True,
    base: Path | None = None,
    engine: str = "local",
    workers: int = 0,
) -> counts_lib.Report:
    """Writes the shards that `config.prepare` describes to `config.data.dir`.

    Args:
      config: whole and validated.
      progress: shows a progress bar on stderr, if that is a terminal.
      base: a directory of shards, or a run, whose ids stay (`growth`).
      engine: that does the work (`engines`); what is written is the same for all.
      workers: of the engine; 0 = as many as there are cores, if they and the files are many.

    Returns:
      The report, which is also saved as `prepare.json`.

    Raises:
      UserError: bad raw data or options, a base that is gone, of another schema, or that has days
        of the rows already; another program that prepares there. The directory is then as it was
        before.
    """
    return _prepare(config, progress, lambda: None, base, engine, workers)


def days(config: ConfigDict) -> tuple[str, ...]:
    """The days of the raw rows that `config.prepare` describes, in order: one pass over them.

    Raises:
      UserError: bad options; no row has a day.
    """
    source = passes.plan(config).source
    files, recipe = source.files[""], source.recipe
    for _ in Gaps(len(files)).out_of(source.run(source.split_of, files)):
        pass
    if not source.days:
        where = f"config.prepare.day_column: {recipe['day_column']!r}"
        raise UserError(f"{where}: no row has a day; name the column that holds it")
    return tuple(recipe_lib.in_order(source.days, strict=True))


def prepare_missing(config: ConfigDict) -> None:
    """Does what `prepare` does, unless there are shards by now."""

    def check() -> None:
        if (storage.reading(config.data.dir) / "schema.json").exists():
            raise directories.Unneeded

    _prepare(config, progress=True, check=check)


def publish(
    config: ConfigDict,
    write: Callable[[Path], counts_lib.Report],
    check: Callable[[], None] = lambda: None,
) -> counts_lib.Report:
    """Puts what `write` writes to a directory in the place of `config.data.dir`.

    Args:
      config: whole and validated.
      write: fills a directory.
      check: is called when nobody else can prepare there.

    Raises:
      UserError: another program prepares there, something else than shards lies there; as `write`.
    """
    target, report = storage.writing(config.data.dir), None
    with directories.whole(target, "prepares", f"config.data.dir: {target}") as new:
        check()
        _check_replaceable(target)
        report = write(new)
        for split in report.splits:  # all is there, and as it was written
            shards.open_split(new, split)
    storage.publish(target)
    return report


def base_of(config: ConfigDict, directory: Path | None) -> growth.Base | None:
    """What `--base` names, checked as far as that needs no rows.

    Raises:
      UserError: no directory to write to; a base that is gone, or is replaced.
    """
    if not config.data.dir:
        remedy = "name the directory that the shards shall be written to"
        raise UserError(f"config.data.dir: it is empty; {remedy}")
    if directory is None:
        return None

    where = f"--base={directory}"
    if config.prepare.format == "synthetic":
        raise UserError(f"{where}: made-up data go on from nothing; leave it out")
    if directory.resolve() == storage.reading(config.data.dir, later=True).resolve():
        problem = "it is config.data.dir, which is replaced"
        raise UserError(f"{where}: {problem}; write the new data beside it (config.data.dir)")
    return growth.load(directory)


def _prepare(
    config: ConfigDict,
    progress: bool,
    check: Callable[[], None],
    base: Path | None = None,
    engine: str = "local",
    workers: int = 0,
) -> counts_lib.Report:
    found, progress = base_of(config, base), progress and sys.stderr.isatty()

    def write(directory: Path) -> counts_lib.Report:
        plan = passes.plan(config, found)
        with (
            passes.unchanged(plan.source),
            contextlib.closing(_engine(engine, workers, plan.source.files)) as workers_of,
        ):
            several = None if engine == "local" and workers_of.num_workers == 1 else workers_of
            runner = stages.Runner(several, directory, progress)
            return passes.finish(runner, plan, passes.learn(runner, plan, directory), directory)

    if config.prepare.format == "synthetic":
        if workers or engine != "local":
            problem = "made-up data are made in one process"
            raise UserError(f"--engine={engine} --workers={workers}: {problem}; leave both out")
        recipe = config.prepare.to_dict()
        write = lambda directory: synthetic.write(recipe, directory, config.name, progress)
    return publish(config, write, check)


def _engine(name: str, workers: int, files: dict[str, list[RawFile]]) -> engines.Engine:
    """The engine of a name, with as many workers as are asked for or worth it."""
    if name == "local" and not workers:
        size = sum(stages.size_of(file) for of_split in files.values() for file in of_split)
        workers = min(engines.num_cores(), size // _WORKER_BYTES)
        # This process alone, with its threads, is as fast as two others.
        workers = workers if workers > 2 else 1
    return engines.make(name, workers)


def check_target(config: ConfigDict) -> None:
    """Raises UserError, before any work, if shards could not be put to `config.data.dir`."""
    if not storage.is_remote(config.data.dir):
        _check_replaceable(Path(config.data.dir))
        return
    there = storage.names_for_writing(config.data.dir)
    _refuse(config.data.dir, [name for name in there if not _OURS.fullmatch(name)])


def _check_replaceable(target: Path) -> None:
    """Refuses to replace a directory that holds anything but shards, where `whole` writes it."""
    place = directories.place(target)
    if not place.exists():
        return
    there = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    strange = [name for name in there if not _OURS.fullmatch(name)]
    if not place.is_dir():
        strange = ["a file"]
    elif there and not _is_prepared(place):
        strange = strange or ["no schema.json"]
    _refuse(target, strange)


def _refuse(target: str | Path, strange: list[str]) -> None:
    if strange:
        problem = f"{target} is not a directory of shards ({strange[0]}), and is not replaced"
        raise UserError(f"config.data.dir: {problem}; name another, or remove it")


def _is_prepared(directory: Path) -> bool:
    """Whether some file is one that only `prepare` writes, damaged as it may be."""
    try:
        text = (directory / "schema.json").read_bytes()
    except OSError:
        text = b""
    return (
        b'"format_version"' in text or b'"slots"' in text or (directory / "prepare.json").exists()
    )
