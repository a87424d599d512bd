"""The two passes over the raw files of `config.prepare`, whoever does the work (`stages`).

learn     vocabularies, means and largest buckets, over the training rows, if a slot needs them
finish    every row -> Parquet shards, schema.json, prepare.json
"""

import contextlib
import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import growth, numeric, shards, stages, storage, values, vocabulary
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import cti, tabular
from emofm_jax.data.problems import Bad, Notes
from emofm_jax.data.raw_files import RawFile, first_full, is_hidden, is_unchecked
from emofm_jax.data.schema import Schema
from emofm_jax.data.source import Gaps, Source
from emofm_jax.errors import UserError

Vocabularies = dict[str, vocabulary.Vocabulary]
Counters = dict[str, vocabulary.Counter]


class Plan(NamedTuple):
    """What is to be prepared: the raw files, the schema as far as it is declared, and the base."""

    source: Source
    schema: Schema
    base: growth.Base | None


class Slots(NamedTuple):
    """What the training rows say of the slots: a complete schema, and the values of its ids."""

    schema: Schema
    vocabularies: Vocabularies
    grown: dict[str, growth.Growth]  # against those of the base


def plan(config: ConfigDict, base: growth.Base | None = None, later: bool = False) -> Plan:
    """What a configuration asks for; `later` is of `recipe.files`.

    Raises:
      UserError: bad options; raw files that are not there; a base of another schema.
    """
    recipe = config.prepare.to_dict()
    recipe_lib.check_roles(recipe)
    files = recipe_lib.files(recipe, later)
    _check_apart(recipe, config.data.dir)
    schema = _declared(recipe, config.name, next(iter(files.values())))
    if base:
        base.check(schema)
    # Every file of cti data must have the types of the first one.
    return Plan(Source(recipe | {"types": schema.types}, files), schema, base)


@contextlib.contextmanager
def unchanged(source: Source) -> Iterator[None]:
    """Raises UserError behind a block in which raw files changed: its passes read other rows."""
    paths = [file.path for of_split in source.files.values() for file in of_split]
    about = lambda path: storage.about(path) if path.exists() else None
    before = list(map(about, paths))
    yield
    for path, then in zip(paths, before):
        if then is not None and about(path) != then:
            remedy = "start the same command again when it is whole"
            raise UserError(f"{path}: it has changed while it was read; {remedy}")


def learn(runner: stages.Runner, plan: Plan, directory: Path) -> Slots:
    """Completes the slots from the training rows and the base, and saves the vocabularies.

    Args:
      runner: that reads the rows.
      plan: what to prepare.
      directory: of the vocabularies.

    Raises:
      UserError: bad rows or files, days or weights that the base does not go with.
    """
    source, schema, base = plan
    if (days := source.recipe["replay_days"]) and base is None:
        remedy = "without --base these are train days like others; leave it out"
        raise UserError(f"config.prepare.replay_days: {days}; {remedy}")
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
    return Slots(dataclasses.replace(schema, slots=tuple(slots)), vocabularies, grown)


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

    of_training = source.of_training
    (files,) = of_training.values()
    items = runner.items(source, schema, None, of_training, "counting")
    with contextlib.closing(items):
        for learned in Gaps(len(files)).out_of(item for _, item in items):
            for owner, values_of_owner, counts in learned.values:
                counters[owner].add(values_of_owner, counts)
            for name, some in learned.numbers:
                moments[name].add(some)
            weighted |= learned.weighted
    return counters, moments, weighted


def finish(runner: stages.Runner, plan: Plan, slots: Slots, directory: Path) -> counts_lib.Report:
    """Writes the shards, `schema.json` and `prepare.json`.

    Args:
      runner: that reads the rows.
      plan: what to prepare.
      slots: that `learn` gave.
      directory: of the shards, which has the vocabularies.

    Raises:
      UserError: bad rows or files, more than are tolerated; a split without a row.
    """
    source, schema, base = plan.source, slots.schema, plan.base
    tally, rejected = _encode(runner, source, schema, slots.vocabularies, directory)
    tally.note(_unchecked(source))
    days, said = source.history(base), base.said(schema, slots.grown) if base else None
    report = tally.save(directory, rejected, days, said)
    positive = source.recipe["positive"]
    if positive and not report.splits["train"].clicks:
        problem = f"no label of the train split is one of {positive}"
        raise UserError(f"config.prepare.positive: {problem}; name the values that mean a click")
    return report


def _check_apart(recipe: Mapping[str, Any], directory: str) -> None:
    """Raises UserError if shards would be raw files of the next preparation."""
    if not directory or storage.is_remote(directory) or storage.is_remote(recipe["source"]):
        return
    target = Path(directory).resolve()
    for path in recipe_lib.searched(recipe, Path(recipe["source"])):
        inside = target.relative_to(there) if (there := path.resolve()) in target.parents else None
        if inside and not any(map(is_hidden, inside.parts)):
            problem = f"{directory} lies in {path}, of which every file is read"
            raise UserError(f"config.data.dir: {problem}; name a directory beside it")


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


def _unchecked(source: Source) -> Notes:
    """What is said of raw files whose damage nobody can see."""
    paths = [file.path for files in source.files.values() for file in files]
    found, notes = [path for path in paths if is_unchecked(path)], Notes()
    if found:
        notes.add("", "no checksum", len(found), str(found[0]))
    return notes


def _reject(writer: shards.Writer, file: str, bad: list[Bad], tolerated: int) -> None:
    """Hands bad rows to the writer of their split; stops if there are more than are tolerated."""
    if not bad:
        return
    writer.reject(file, bad)
    total = writer.rejected.total()
    if total > tolerated:
        each = ", ".join(f"{kind}: {number}" for kind, number in writer.rejected.most_common())
        found = f"{total} bad row{'s' * (total != 1)} so far in {writer.path.name} ({each})"
        raise UserError(
            f"{writer.first_rejected}; {found} where {tolerated} are tolerated: correct them or "
            "raise config.prepare.max_rejected"
        )


def _check_rows(source: Source, first: Path, writers: dict[str, shards.Writer]) -> None:
    """Raises UserError if the train split, a split of given days or a train day has no row."""
    recipe, train = source.recipe, writers["train"]
    for name in ("train_days", "replay_days", "valid_days", "test_days"):
        if recipe["split"] != "day":
            break
        if gone := [d for d in recipe_lib.named_days(recipe, name) if d not in source.days]:
            days = recipe_lib.in_order(source.days)
            has = f" (the rows have {days[0]!r} to {days[-1]!r})" if days else ""
            remedy = f"check it, config.prepare.day_column and day_length{has}"
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
