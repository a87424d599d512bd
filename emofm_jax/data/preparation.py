"""Raw click logs -> shards: two passes over the files of `config.prepare` (docs/data.md).

    count    vocabularies, means and largest buckets, over the training rows, if a slot needs them
    encode   every row -> Parquet shards, schema.json, prepare.json

Nothing half-written is left behind: the directory appears when it is whole (`directories`), and two
programs never prepare in the same place. Who reads the old shards is told at the next read
(`shards`).
"""

import dataclasses
import functools
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import (
    directories,
    encode,
    formats,
    growth,
    numeric,
    sampling,
    shards,
    synthetic,
    values,
    vocabulary,
)
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import cti, tabular
from emofm_jax.data.formats.lines import Chunk
from emofm_jax.data.problems import Bad, Notes, Problems
from emofm_jax.data.raw_files import RawFile, first_full
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

T = TypeVar("T")
Vocabularies = dict[str, vocabulary.Vocabulary]
Counters = dict[str, vocabulary.Counter]
_THREADS = 2
# What `prepare` writes: names that it may replace.
_OURS = re.compile(
    r"schema\.json|prepare\.json|(vocabulary|rare)(/[^/]+\.parquet)?|(train|valid|test)"
    r"(/_SUCCESS|/(part-\d{5,}|rejected|truth)\.parquet)?"
)


def prepare(
    config: ConfigDict, progress: bool = True, base: Path | None = None
) -> counts_lib.Report:
    """Writes the shards that `config.prepare` describes to `config.data.dir`.

    Args:
      config: whole and validated.
      progress: shows a progress bar on stderr, if that is a terminal.
      base: a directory of shards, or a run, whose ids stay (`growth`).

    Returns:
      The report, which is also saved as `prepare.json`.

    Raises:
      UserError: bad raw data or options, a base that is gone, of another schema, or that has days
        of the rows already; another program that prepares there. The directory is then as it was
        before.
    """
    return _prepare(config, progress, lambda: None, base)


def days(config: ConfigDict) -> tuple[str, ...]:
    """The days of the raw rows that `config.prepare` describes, in order: one pass over them.

    Raises:
      UserError: bad options; no row has a day.
    """
    recipe = config.prepare.to_dict()
    recipe_lib.check_roles(recipe)
    raw = recipe_lib.files(recipe)
    schema = _declared(recipe, config.name, next(iter(raw.values())))
    source = _Source(recipe | {"types": schema.types}, raw, progress=False)
    for _ in source.run(source.split_of, "", "days"):
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

    _prepare(config, progress=True, check=check, base=None)


def _prepare(
    config: ConfigDict, progress: bool, check: Callable[[], None], base: Path | None
) -> counts_lib.Report:
    if not config.data.dir:
        remedy = "name the directory that the shards shall be written to"
        raise UserError(f"config.data.dir: it is empty; {remedy}")
    target, recipe = Path(config.data.dir), config.prepare.to_dict()
    found = None if base is None else _base(base, target, recipe)
    write = functools.partial(_write, base=found)
    if recipe["format"] == "synthetic":
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


@dataclasses.dataclass(frozen=True)
class _Source:
    """The raw files, and how they are read."""

    recipe: Mapping[str, Any]  # `config.prepare`, with the types of cti data
    files: dict[str, list[RawFile]]  # of each split; under "" alone when the rows say their split
    progress: bool  # shows a progress bar
    days: set[str] = dataclasses.field(default_factory=set)  # that rows were found of

    def run(self, work: Callable[[Chunk], T], split: str, what: str) -> Iterator[T]:
        """Yields work(chunk) of every chunk of a split, in order, a few at once on threads."""
        files = self.files[split]
        size = sum(file.path.stat().st_size for file in files if file.path.exists())
        pending: deque = deque()

        def of_task(task: Callable[[], Chunk]) -> T:
            chunk = task()
            with formats.naming(chunk.file):
                return work(chunk)

        hidden = not self.progress
        with tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=hidden) as bar:
            pool = ThreadPoolExecutor(_THREADS)
            try:
                for task in formats.tasks(self.recipe, files, True, bar.update):
                    pending.append(pool.submit(of_task, task))
                    if len(pending) > _THREADS:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def split_of(self, chunk: Chunk) -> np.ndarray:
        """i8[n] of each readable row, if the rows say their split: see `recipe.split_of`."""
        days = None
        if self.recipe["split"] == "day":
            missing = values.missing(self.recipe["null_values"])
            days = values.distinct(chunk.columns["_day"], missing)
            self.days.update(recipe_lib.days_of(self.recipe, days))
        return recipe_lib.split_of(self.recipe, self._places[chunk.file], chunk.lines, days)

    def history(self, base: growth.Base | None) -> tuple[str, ...]:
        """The days of the base and of the train split (`Schema.days`), as far as rows were read.

        Raises:
          UserError: both have a day.
        """
        before, new = base.schema.days if base else (), [""]
        if self.recipe["split"] == "day":
            named = lambda name: set(recipe_lib.named_days(self.recipe, name))
            new = named("train_days") or self.days - named("valid_days") - named("test_days")
            new = new & self.days - named("replay_days")
            new = recipe_lib.in_order(new, strict=base is not None)
            if base:
                self._check_days(base, new)
        return (*before, *new)

    def _check_days(self, base: growth.Base, new: list[str]) -> None:
        """Raises UserError on days that a base does not go with."""
        where, before = f"--base={base.place}", base.schema.days
        if both := [day for day in new if day in before]:
            remedy = "name the new days in config.prepare.train_days, or these in replay_days"
            what = f"it has the rows of {', '.join(both)} already"
            raise UserError(f"{where}: {what}; {remedy}")
        for name in ("valid_days", "test_days"):
            days = recipe_lib.named_days(self.recipe, name)
            if seen := [day for day in days if day in before]:
                what = f"it was trained on {seen[0]}, which config.prepare.{name} has"
                raise UserError(f"{where}: {what}; name later days")
        replayed = recipe_lib.named_days(self.recipe, "replay_days")
        if never := [day for day in replayed if day not in before]:
            what = f"it has no rows of {never[0]}, which config.prepare.replay_days has"
            raise UserError(f"{where}: {what}; name days of its own, or put it in train_days")

    def place(self, chunk: Chunk) -> int:
        """The place of a chunk's file among those of its split, or all."""
        return self._places[chunk.file]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        """{file: its place} among the training files, or all where the rows say their split."""
        files = self.files.get("", self.files.get("train", []))
        return {str(file.path): i for i, file in enumerate(files)}


class _Part(NamedTuple):
    """What one split gets of a chunk: encoded rows, their counts, and bad rows."""

    split: str
    table: pa.Table
    counted: counts_lib.Counted
    notes: Notes
    bad: list[Bad]


def _write(
    recipe: dict[str, Any],
    directory: Path,
    name: str,
    progress: bool,
    base: growth.Base | None = None,
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
    source = _Source(recipe | {"types": schema.types}, files, progress)
    if base:
        base.check(schema)
    schema, vocabularies, grown = _learn(source, schema, directory, base)

    encoder = encode.Encoder(schema, vocabularies)
    tally = counts_lib.Tally(schema)
    with ExitStack() as stack:
        splits = shards.SPLITS if "" in files else files
        writers = {s: stack.enter_context(shards.Writer(directory, s, schema)) for s in splits}
        for split in files:
            parts_of = functools.partial(_encode, source, encoder, split)
            for file, parts in source.run(parts_of, split, f"{split} rows".strip()):
                for part in parts:
                    _reject(writers[part.split], file, part.bad, recipe["max_rejected"])
                    if part.table.num_rows:
                        writers[part.split].write(part.table)
                        tally.add(part.split, part.counted)
                    tally.note(part.notes)
    _check_rows(source, some[0].path, writers)
    rejected = {split: writer.rejected for split, writer in writers.items()}
    days, said = source.history(base), base.said(schema, grown) if base else None
    report = tally.save(directory, rejected, days, said)
    if recipe["positive"] and not report.splits["train"].clicks:
        problem = f"no label of the train split is one of {recipe['positive']}"
        raise UserError(f"config.prepare.positive: {problem}; name the values that mean a click")
    return report


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
    source: _Source, schema: Schema, directory: Path, base: growth.Base | None
) -> tuple[Schema, Vocabularies, dict[str, growth.Growth]]:
    """Completes the slots from the training rows and the base, and saves the vocabularies."""
    counters, moments, weighted = _count(source, encode.Encoder(schema, None))
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
    source: _Source, encoder: encode.Encoder
) -> tuple[Counters, dict[str, counts_lib.Moments], set[str]]:
    """What the training rows say of the slots; rows that will be rejected say nothing.

    Returns:
      The values by the slot that owns the table rows; the numbers by slot; the slots of ids that
      have a value other than 1 in libsvm rows.
    """
    schema, is_libsvm = encoder.schema, source.recipe["format"] == "libsvm"
    of_ids = [slot for slot in schema.slots if slot.holds_ids and slot.kind != "numeric"]
    counted = [slot for slot in of_ids if slot.encoding == "vocabulary" or is_libsvm]
    open_bucket = lambda slot: slot.transform == "bucket" and not slot.rows
    measured = [s for s in schema.slots if s.transform == "standardize" or open_bucket(s)]
    counters = {s.owner: vocabulary.Counter() for s in counted if s.encoding == "vocabulary"}
    moments = {slot.name: counts_lib.Moments() for slot in measured}
    weighted: set[str] = set()
    if not counted and not measured:
        return counters, moments, weighted

    split = "train" if "train" in source.files else ""
    learn = functools.partial(_learnt, source, encoder, split, counted, measured)
    for found, numbers, of_chunk in source.run(learn, split, "counting"):
        for owner, values_of_owner in found:
            counters[owner].add(values_of_owner.text, values_of_owner.counts())
        for name, x in numbers.items():
            moments[name].add(x)
        weighted |= of_chunk
    return counters, moments, weighted


def _learnt(
    source: _Source,
    encoder: encode.Encoder,
    split: str,
    counted: list[Slot],
    measured: list[Slot],
    chunk: Chunk,
) -> tuple[list[tuple[str, values.Distinct]], dict[str, np.ndarray], set[str]]:
    """What `_count` adds up, of the good training rows of one chunk."""
    kept = encoder.judge(chunk.columns).good(len(chunk.lines))
    if not split:
        kept &= source.split_of(chunk) == 0
    if kept.all():
        filtered = lambda slot: chunk.columns[slot.name]
    else:
        filtered = lambda slot: chunk.columns[slot.name].filter(pa.array(kept))
    numbers = {s.name: encoder.numbers(s, filtered(s), Problems()) for s in measured}

    found, weighted = [], set()
    for slot in counted:
        _, weights, _, of_slot = encoder.elements(slot, filtered(slot), Problems())
        if weights is not None and source.recipe["format"] == "libsvm":
            of_ids = numeric.parse(weights, slot.name, Problems())
            if ((of_ids != 1) & ~np.isnan(of_ids)).any():
                weighted.add(slot.name)
        if slot.encoding == "vocabulary":
            found.append((slot.owner, of_slot))
    return found, numbers, weighted


def _in_splits(chunk: Chunk, index: np.ndarray) -> tuple[Chunk, np.ndarray, Notes]:
    """The rows that are in a split, or have no day, their index, and what is said of the others."""
    notes, over = Notes(), index == recipe_lib.PASSED_OVER
    if over.any():
        first = f"{chunk.file}:{chunk.lines[over][0]}"
        notes.add("", "other days", int(over.sum()), first)
        chunk, index = chunk.only(~over), index[~over]
    return chunk, np.where(index == recipe_lib.REPLAYED, 0, index), notes


def _encode(
    source: _Source, encoder: encode.Encoder, split: str, chunk: Chunk
) -> tuple[str, list[_Part]]:
    """The file of a chunk, and what each split gets of it; `split` is empty if the rows say it."""
    index = np.zeros(len(chunk.lines), np.int8) if split else source.split_of(chunk)
    chunk, index, passed_over = _in_splits(chunk, index)
    without_day = Problems()
    said = f"it has no day (column {source.recipe['day_column']!r}), so that it is in no split"
    without_day.mark(index < 0, "day", lambda _: said)
    chunk, index = chunk.without(without_day), index[index >= 0]
    table, problems, notes = encoder.encode(chunk.columns)
    notes.join(chunk.notes)
    notes.join(passed_over)
    names = (split,) if split else shards.SPLITS
    good = problems.good(len(index))
    index_of_good = index[good]
    if recipe_lib.later(source.recipe, "negative_keep_rate") < 1 and split in ("", "train"):
        table, index_of_good = _thin(source, chunk, good, table, index_of_good, notes)
    bad = [*chunk.bad, *chunk.bad_rows(problems)]
    # Rows that no split could be found for count as training rows.
    index_of_bad = [0] * len(chunk.bad) + [index[row] for row in sorted(problems)]

    parts = []
    for i, name in enumerate(names):
        rows = table if split else table.filter(pa.array(index_of_good == i))
        bad_rows = sorted(b for b, own in zip(bad, index_of_bad) if own == i)
        of_first = notes if i == 0 else Notes()  # they are of the whole chunk
        parts.append(_Part(name, rows, counts_lib.count(encoder.schema, rows), of_first, bad_rows))
    return chunk.file, parts


def _thin(
    source: _Source,
    chunk: Chunk,
    good: np.ndarray,
    table: pa.Table,
    index: np.ndarray,
    notes: Notes,
) -> tuple[pa.Table, np.ndarray]:
    """Leaves training rows without a click out; those that stay weigh more (negative_keep_rate).

    Args:
      good: bool[m], which rows of the chunk the table has.
      table: n encoded rows.
      index: i8[n], their split.

    Returns:
      The rows that stay, and their splits.
    """
    lines = np.asarray(chunk.lines)[good]
    kept, table = sampling.thin(source.recipe, source.place(chunk), lines, table, index == 0)
    if out := int(np.count_nonzero(~kept)):
        notes.add("", "sampled", out, f"{chunk.file}:{lines[~kept][0]}")
    return table, index[kept]


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


def _check_rows(source: _Source, first: Path, writers: dict[str, shards.Writer]) -> None:
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
