"""Raw click logs -> shards: two passes over the files of `config.prepare` (docs/data.md).

    count    vocabularies, means and largest buckets, over the training rows, if a slot needs them
    encode   every row -> Parquet shards, schema.json, prepare.json

Nothing half-written is left behind: the directory appears when it is whole (`directories`), and two
programs never prepare in the same place. Who reads the old shards is told at the next read
(`shards`).
"""

import contextlib
import dataclasses
import functools
import itertools
import operator
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from emofm_jax import engines
from emofm_jax.data import counts as counts_lib
from emofm_jax.data import (
    directories,
    growth,
    numeric,
    shards,
    stages,
    synthetic,
    values,
    vocabulary,
)
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import cti, tabular
from emofm_jax.data.problems import Bad
from emofm_jax.data.raw_files import RawFile, first_full
from emofm_jax.data.schema import Schema
from emofm_jax.data.source import Gaps, Source
from emofm_jax.errors import UserError

Vocabularies = dict[str, vocabulary.Vocabulary]
Counters = dict[str, vocabulary.Counter]
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
      workers: of the engine; 0 = as many as there are cores, and as the files are worth.

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
    recipe = config.prepare.to_dict()
    recipe_lib.check_roles(recipe)
    raw = recipe_lib.files(recipe)
    schema = _declared(recipe, config.name, next(iter(raw.values())))
    source, files = Source(recipe | {"types": schema.types}, raw), raw[""]
    for _ in Gaps(len(files)).out_of(source.run(source.split_of, files)):
        pass
    if not source.days:
        where = f"config.prepare.day_column: {recipe['day_column']!r}"
        raise UserError(f"{where}: no row has a day; name the column that holds it")
    return tuple(recipe_lib.in_order(source.days, strict=True))


def prepare_missing(config: ConfigDict) -> None:
    """Does what `prepare` does, unless there are shards by now."""

    def check() -> None:
        if (Path(config.data.dir) / "schema.json").exists():
            raise directories.Unneeded

    _prepare(config, progress=True, check=check)


def _prepare(
    config: ConfigDict,
    progress: bool,
    check: Callable[[], None],
    base: Path | None = None,
    engine: str = "local",
    workers: int = 0,
) -> counts_lib.Report:
    if not config.data.dir:
        remedy = "name the directory that the shards shall be written to"
        raise UserError(f"config.data.dir: it is empty; {remedy}")
    target, recipe = Path(config.data.dir), config.prepare.to_dict()
    found = None if base is None else _base(base, target, recipe)
    write = functools.partial(_write, base=found, engine=engine, workers=workers)
    if recipe["format"] == "synthetic":
        if workers or engine != "local":
            problem = "made-up data are made in one process"
            raise UserError(f"--engine={engine} --workers={workers}: {problem}; leave both out")
        write = synthetic.write
    report: Any = None
    with directories.whole(target, "prepares", f"config.data.dir: {target}") as new:
        check()
        _check_replaceable(target)
        report = write(recipe, new, config.name, progress and sys.stderr.isatty())
        for split in report.splits:  # all is there, and as it was written
            shards.open_split(new, split)
    return report


def _base(directory: Path, target: Path, recipe: Mapping[str, Any]) -> growth.Base:
    """What `--base` names, checked as far as that needs no rows."""
    where = f"--base={directory}"
    if recipe["format"] == "synthetic":
        raise UserError(f"{where}: made-up data go on from nothing; leave it out")
    if directory.resolve() == target.resolve():
        problem = "it is config.data.dir, which is replaced"
        raise UserError(f"{where}: {problem}; write the new data beside it (config.data.dir)")
    return growth.load(directory)


def _write(
    recipe: dict[str, Any],
    directory: Path,
    name: str,
    progress: bool,
    base: growth.Base | None = None,
    engine: str = "local",
    workers: int = 0,
) -> counts_lib.Report:
    """Two passes: what the training rows say about the slots; then the shards."""
    recipe_lib.check_roles(recipe)
    if recipe["replay_days"] and base is None:
        remedy = "without --base these are train days like others; leave it out"
        raise UserError(f"config.prepare.replay_days: {recipe['replay_days']}; {remedy}")
    files = recipe_lib.files(recipe)
    some = next(iter(files.values()))
    schema = _declared(recipe, name, some)
    # Every file of cti data must have the types of the first one.
    source = Source(recipe | {"types": schema.types}, files)
    if base:
        base.check(schema)
    with contextlib.closing(_engine(engine, workers, files)) as found:
        runner = stages.Runner(found if found.num_workers > 1 else None, directory, progress)
        schema, vocabularies, grown = _learn(runner, source, schema, directory, base)
        tally, rejected = _encode(runner, source, schema, vocabularies, directory)
    days, said = source.history(base), base.said(schema, grown) if base else None
    report = tally.save(directory, rejected, days, said)
    if recipe["positive"] and not report.splits["train"].clicks:
        problem = f"no label of the train split is one of {recipe['positive']}"
        raise UserError(f"config.prepare.positive: {problem}; name the values that mean a click")
    return report


def _engine(name: str, workers: int, files: dict[str, list[RawFile]]) -> engines.Engine:
    """The engine of a name, with as many workers as are asked for or worth it."""
    if name == "local" and not workers:
        sizes = [stages.size_of(file) for of_split in files.values() for file in of_split]
        workers = max(1, min(engines.num_cores(), len(sizes), sum(sizes) // _WORKER_BYTES))
    return engines.make(name, workers)


def _encode(
    runner: stages.Runner,
    source: Source,
    schema: Schema,
    vocabularies: Vocabularies,
    directory: Path,
) -> tuple[counts_lib.Tally, dict[str, Mapping[str, int]]]:
    """Writes the shards; returns what was counted, and {split: {kind: rejected rows}}."""
    tally, files = counts_lib.Tally(schema), source.files
    tolerated = source.recipe["max_rejected"]
    with ExitStack() as stack:
        splits = shards.SPLITS if "" in files else files
        writers = {s: stack.enter_context(shards.Writer(directory, s, schema)) for s in splits}
        items = runner.items(source, schema, vocabularies, files, "rows")
        stack.enter_context(contextlib.closing(items))
        for split, found in itertools.groupby(items, key=operator.itemgetter(0)):
            gaps = Gaps(len(files[split]))
            for encoded in gaps.out_of(item for _, item in found):
                for part in encoded.parts:
                    _reject(writers[part.split], encoded.file, part.bad, tolerated)
                    if part.table.num_rows:
                        writers[part.split].write(part.table)
                        tally.add(part.split, part.counted)
                    tally.note(part.notes)
            tally.note(gaps.notes)
    _check_rows(source, next(iter(files.values()))[0].path, writers)
    return tally, {split: writer.rejected for split, writer in writers.items()}


def _declared(recipe: dict[str, Any], name: str, files: list[RawFile]) -> Schema:
    """The schema as far as it is known before the rows are counted, from the files of a split."""
    slots = recipe_lib.slots(recipe)
    is_cti, types = recipe["format"] == "cti", tuple(recipe["types"])
    row_id = "string" if is_cti or recipe["row_id"] else ""
    if recipe["format"] == "tabular" and tabular.integer_row_id(recipe, files):
        row_id = "int64"
    if is_cti and not types:
        types = tuple(cti.columns(first_full(files).path)[1:-1])
    if recipe["ftype"] and not types:
        problem = f"column {recipe['ftype']!r} holds the type"
        raise UserError(f"config.prepare.types: {problem}; name its values here, in order")
    return Schema(
        name=name,
        slots=slots,
        types=types,
        has_weight=recipe_lib.is_weighted(recipe),
        has_gauc_key=bool(recipe["gauc_key"]),
        row_id=row_id,
        spelling=values.SPELLING,
        recipe=recipe,
    )


def _learn(
    runner: stages.Runner,
    source: Source,
    schema: Schema,
    directory: Path,
    base: growth.Base | None,
) -> tuple[Schema, Vocabularies, dict[str, growth.Growth]]:
    """Completes the slots from the training rows and the base, and saves the vocabularies."""
    counters, moments, weighted = _count(runner, source, schema)
    day, expire_days = len(source.history(base)), source.recipe["expire_days"]
    vocabularies, grown = {}, {}
    for slot in (slot for slot in schema.slots if slot.name in counters):
        name, counted = slot.name, counters[slot.name].counts()
        before = base.of(name) if base else None
        found = growth.grow(counted, slot.min_count, day, before, expire_days)
        vocabularies[name], grown[name] = found.vocabulary, found.growth
        found.vocabulary.save(directory, name)
        if slot.min_count > 1:
            vocabulary.save_rare(directory, name, found.rare, found.vocabulary.digest())

    slots, of_base = [], base.slots if base else {}
    for slot in schema.slots:
        slot = dataclasses.replace(slot, weighted=slot.weighted or slot.name in weighted)
        there = of_base.get(slot.name)
        if there and slot.weighted != there.weighted:
            problem = f"slot {slot.name!r} has weights in one of the two, the base or these rows"
            raise UserError(f"--base={base.place if base else ''}: {problem}; prepare without it")
        if found := vocabularies.get(slot.owner):
            slot = dataclasses.replace(slot, rows=found.rows, digest=found.digest())
        elif there:
            slot = dataclasses.replace(slot, mean=there.mean, std=there.std, rows=there.rows)
        elif slot.transform == "standardize":
            mean, std = moments[slot.name].mean_and_std()
            slot = dataclasses.replace(slot, mean=mean, std=std)
        elif slot.name in moments:
            # Row 0, buckets 1 .. of the largest number, and the last row for negative numbers.
            largest = numeric.bucket(np.array([max(moments[slot.name].largest, 0.0)]), 1 << 30)[0]
            slot = dataclasses.replace(slot, rows=int(largest) + 2)
        slots.append(slot)
    return dataclasses.replace(schema, slots=tuple(slots)), vocabularies, grown


def _count(
    runner: stages.Runner, source: Source, schema: Schema
) -> tuple[Counters, dict[str, counts_lib.Moments], set[str]]:
    """What the training rows say of the slots.

    Returns:
      The values by the slot that owns the table rows; the numbers by slot; the slots of ids that
      have a value other than 1 in libsvm rows.
    """
    counted, measured = stages.learned_slots(schema)
    counters = {s.owner: vocabulary.Counter() for s in counted if s.encoding == "vocabulary"}
    moments = {slot.name: counts_lib.Moments() for slot in measured}
    weighted: set[str] = set()
    if not counted and not measured:
        return counters, moments, weighted

    split = "train" if "train" in source.files else ""
    files = source.files[split]
    items = runner.items(source, schema, None, {split: files}, "counting")
    with contextlib.closing(items):
        for learned in Gaps(len(files)).out_of(item for _, item in items):
            for owner, values_of_owner, counts in learned.values:
                counters[owner].add(values_of_owner, counts)
            for name, some in learned.numbers:
                moments[name].add(some)
            weighted |= learned.weighted
    return counters, moments, weighted


def _reject(writer: shards.Writer, file: str, bad: list[Bad], tolerated: int) -> None:
    """Hands bad rows to the writer of their split; stops if there are more than are tolerated."""
    if not bad:
        return
    writer.reject(file, bad)
    total = writer.rejected.total()
    if total > tolerated:
        each = ", ".join(f"{kind}: {number}" for kind, number in writer.rejected.most_common())
        found = f"{total} bad rows so far in {writer.path.name} ({each})"
        raise UserError(
            f"{writer.first_rejected}; {found} where {tolerated} are tolerated: correct them or "
            "raise config.prepare.max_rejected"
        )


def _check_rows(source: Source, first: Path, writers: dict[str, shards.Writer]) -> None:
    """Raises UserError if the train split, a split of given days or a train day has no row."""
    recipe, train = source.recipe, writers["train"]
    for name in ("train_days", "replay_days"):
        if gone := [d for d in recipe_lib.named_days(recipe, name) if d not in source.days]:
            remedy = "check it, config.prepare.day_column and day_length"
            raise UserError(f"config.prepare.{name}: no row is of {gone[0]}; {remedy}")
    if not train.num_rows and train.rejected:
        gone = f"all {train.rejected.total():,} rows of the train split are bad"
        raise UserError(f"{train.first_rejected}; {gone}: correct them, or the options of prepare")
    if not train.num_rows:
        remedy = "check config.prepare.split and the files"
        raise UserError(f"{first}: the train split has no row; {remedy}")
    for split in ("valid", "test") if recipe["split"] == "day" else ():
        days = ", ".join(map(str, recipe[f"{split}_days"]))
        if days and not writers[split].num_rows:
            remedy = "check config.prepare.day_column and day_length"
            raise UserError(f"config.prepare.{split}_days: no row is of {days}; {remedy}")


def _check_replaceable(target: Path) -> None:
    """Refuses to replace a directory that holds anything but shards."""
    if not target.exists():
        return
    there = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    strange = [name for name in there if not _OURS.fullmatch(name)]
    if not target.is_dir():
        strange = ["a file"]
    elif there and not _is_prepared(target):
        strange = strange or ["no schema.json"]
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
