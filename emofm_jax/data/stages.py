"""The two passes over raw rows, chunk by chunk, and as jobs of an engine (`engines`).

    learn     what training rows say of the slots: values, numbers, days
    encode    every row, and what is counted of it

A job reads some files and writes what it found to one file, `<results>/00012`, an item a chunk. The
items are those of one process that reads all files, so everything that is made of them is the same,
to the last bit, whoever did the jobs.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from tqdm import tqdm

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import (
    directories,
    formats,
    handover,
    numeric,
    sampling,
    shards,
    storage,
    vocabulary,
)
from emofm_jax.data import encode as encode_lib
from emofm_jax.data import files as files_lib
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.encode import Encoder
from emofm_jax.data.engines import Engine
from emofm_jax.data.formats.lines import Chunk
from emofm_jax.data.problems import Bad, Notes, Problems
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.source import Empty, Source
from emofm_jax.errors import UserError

_THREADS = 2  # that parse and encode in one process
_TOLD = 1 << 16  # bad rows of a chunk, at most, that are counted where they end the program
STAGE = "stage"  # file of what the jobs of a directory have in common
_JOB_BYTES = 1 << 25  # raw bytes of a job, unless one file has more
Run = Callable[[Callable[[Chunk], Any]], Iterator[Any]]


class Learned(NamedTuple):
    """What good training rows say of the slots."""

    values: list[tuple[str, pa.Array, np.ndarray]]  # of the owner of the table rows; their counts
    numbers: list[tuple[str, counts_lib.Summary | None]]  # of a slot and a chunk
    weighted: frozenset[str]  # slots of ids that have a value other than 1 in libsvm rows
    negative: frozenset[float]  # as `Labels` has it, of these rows and others before


class Part(NamedTuple):
    """What one split gets of a chunk: encoded rows, their counts, and bad rows."""

    split: str
    table: pa.Table
    counted: counts_lib.Counted
    notes: Notes
    bad: list[Bad]


class Encoded(NamedTuple):
    """The file of a chunk, and what each split gets of it."""

    file: str
    parts: list[Part]
    negative: frozenset[float]  # as of `Learned`


class Days(NamedTuple):
    """The days that the rows of a job, and perhaps others, are of (`Source.days`)."""

    days: frozenset[str]


class Job(NamedTuple):
    """Some files of a split ("" if the rows say theirs), and how many bytes they have."""

    split: str
    files: tuple[RawFile, ...]
    size: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the jobs of a pass have in common.

    Attributes:
      source: the raw files.
      schema: complete to encode rows; to learn from them, as it was declared.
      vocabularies: directory of those of a complete schema; None to learn.
      jobs: what each reads.
    """

    source: Source
    schema: Schema
    vocabularies: Path | None
    jobs: tuple[Job, ...]


class Runner:
    """Goes over raw files: in this process, or as jobs of an engine.

    Args:
      engine: that does the jobs; None, or a single job, for this process, with some threads.
      directory: within which the jobs write what they find, until it is read.
      progress: shows a progress bar.
    """

    def __init__(self, engine: Engine | None, directory: Path, progress: bool):
        self._engine, self._directory, self._progress = engine, directory, progress

    def items(
        self,
        source: Source,
        schema: Schema,
        vocabularies: Mapping[str, vocabulary.Vocabulary] | None,
        splits: Mapping[str, Sequence[RawFile]],
        what: str,
    ) -> Generator[tuple[str, Any], None, None]:
        """Yields `Encoded` or, without vocabularies, `Learned`, and files without a row, in order.

        Args:
          source: whose `days` are kept up to date.
          schema: as of a `Stage`.
          vocabularies: which the directory holds, too.
          splits: {split: files to read}.
          what: is done, for the progress bar.

        Yields:
          A split and what was found in some rows of it.
        Raises:
          UserError: rows that no worker should go on from.
        """
        size = sum(size_of(file) for files in splits.values() for file in files)
        hidden = not self._progress
        jobs = ()
        if self._engine is not None:
            jobs = jobs_of(source.recipe, splits, 4 * self._engine.num_workers)

        with tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=hidden) as bar:
            if self._engine is not None and len(jobs) > 1:
                place = None if vocabularies is None else self._directory
                stage = Stage(source, schema, place, jobs)
                for job, found in self._found(stage, self._engine):
                    bar.update(job.size)
                    yield from ((job.split, item) for item in found)
                return
            encoder = Encoder(schema, vocabularies)
            for split, files in splits.items():
                run = functools.partial(
                    source.run, files=files, progress=bar.update, num_threads=_THREADS
                )
                yield from ((split, item) for item in _pass(source, encoder, split, run))

    def _found(self, stage: Stage, engine: Engine) -> Iterator[tuple[Job, Iterator[Any]]]:
        """Each job of a stage, and what it found."""
        with directories.scratch(self._directory) as directory:
            write_stage(stage, directory)
            shown = files_lib.shown()
            tasks = [Named(directory, number, shown) for number in range(len(stage.jobs))]
            heard = Heard(stage)
            with contextlib.closing(engine.map(run, tasks)) as done:
                for number, _ in enumerate(done):
                    yield stage.jobs[number], heard.items(directory, number)
                    files_lib.remove(_result(directory, number))


class Heard:
    """What jobs have found, read in their order.

    Args:
      stage: of the jobs; the `days` of its source are kept up to date.
    """

    def __init__(self, stage: Stage):
        self._days, self._labels = stage.source.days, Encoder(stage.schema, None).labels

    def items(self, directory: Path, number: int) -> Iterator[Any]:
        """Yields `Encoded`, `Learned` or `Empty`, as the job found them.

        Raises:
          UserError: that the job ended with; labels that do not go with those before.
        """
        handover.take(_result(directory, number))
        for item in files_lib.read_scratch(_result(directory, number)):
            if isinstance(item, UserError):
                raise item
            if isinstance(item, Days):
                self._days.update(item.days)
                continue
            if not isinstance(item, Empty):
                self._labels.see(item.negative)
            yield item
        handover.drop(_result(directory, number))


def jobs_of(
    recipe: Mapping[str, Any], files: Mapping[str, Sequence[RawFile]], wanted: int
) -> tuple[Job, ...]:
    """About as many jobs as are wanted, or more, of consecutive files of a split, or of a part.

    A job has no more than 32 MiB, unless it is of a file that has no parts (`formats.parts`).
    """
    of_all = sum(size_of(file) for of_split in files.values() for file in of_split)
    largest, jobs = max(min(_JOB_BYTES, of_all // wanted), 1), []
    for split, of_split in files.items():
        some, size = [], 0
        for file in of_split:
            for part in formats.parts(recipe, file, largest):
                more = size_of(part)
                if some and size + more > largest:
                    jobs.append(Job(split, tuple(some), size))
                    some, size = [], 0
                some.append(part)
                size += more
        jobs.append(Job(split, tuple(some), size))
    return tuple(jobs)


def size_of(file: RawFile) -> int:
    """Bytes of a file or a part; 0 where it is not there, which its reader will say."""
    whole = file.path.stat().st_size if file.path.exists() else 0
    return whole if file.span is None else min(file.span.stop, whole) - file.span.begin.position


def write_stage(stage: Stage, directory: Path) -> None:
    """Writes what `run` reads."""
    files_lib.write_scratch(directory / STAGE, [stage])
    handover.leave(directory / STAGE)


def read_stage(directory: Path) -> Stage:
    """What `write_stage` wrote; raises UserError where nothing was."""
    handover.take(directory / STAGE)
    (stage,) = files_lib.read_scratch(directory / STAGE)
    return stage


class Named(NamedTuple):
    """A job, for a worker of this machine: its stage, and what paths of copies are called."""

    directory: Path
    number: int
    shown: Mapping[str, str]  # `files.shown()`


class There(NamedTuple):
    """A job, for a worker anywhere: the names of all that it needs, and what these must be."""

    place: str  # `handover`
    directory: str  # in it
    number: int
    reads: tuple[str, ...]  # places of what it reads
    about: tuple[tuple[str, int, str | int], ...]  # `storage.about` its raw files; () = any
    code: str  # `code()`


def run(job: Named) -> None:
    """Does a job: a function that engines map. The UserError that it ends with is in its result."""
    _write(job, _with_end)


def run_named(job: Named) -> Path:
    """Does a job as `run`; returns its result, or raises the UserError that it ends with."""
    _write(job, _with_days)
    return _result(job.directory, job.number)


def _write(job: Named, end: Callable[[Iterator[Any], set[str]], Iterator[Any]]) -> None:
    """Writes what a job finds, with its end."""
    files_lib.show_all(job.shown)
    found, days = _found(job.directory, job.number)
    files_lib.write_scratch(_result(job.directory, job.number), end(found, days))


def run_there(job: There) -> None:
    """Does a job with copies of what it reads, and leaves its result.

    Raises:
      UserError: as `run_named`; raw files are others by now; another package is installed here.
    """
    if job.code != code():
        what = "a worker has another version of emofm_jax, Python, numpy or pyarrow"
        raise UserError(f"--engine=ray: {what}; install the same everywhere")
    for name in job.reads:
        storage.reading(name, later=True)

    directory = handover.at(job.place) / job.directory
    files_lib.make_directory(directory)
    if job.about:
        paths = [file.path for file in read_stage(directory).jobs[job.number].files]
        for path, about in zip(paths, job.about):
            if not path.exists() or storage.about(path) != about:
                raise UserError(f"{path}: it has changed meanwhile; start this program again")
    handover.leave(run_named(Named(directory, job.number, {})))


@functools.lru_cache(maxsize=1)
def code() -> str:
    """A digest of what makes shards of rows: who reads what a job has left must be who wrote it."""
    own = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))]
    versions = f"{sys.version_info[:2]} {np.__version__} {pa.__version__}".encode()
    return xxhash.xxh3_64_hexdigest(b"".join(xxhash.xxh3_64_digest(x) for x in [versions, *own]))


def name_of(number: int) -> str:
    """The name of the file that a job writes."""
    return f"{number:05d}"


def _found(directory: Path, number: int) -> tuple[Iterator[Any], set[str]]:
    """What a job finds, and the days that are known when it has."""
    stage, vocabularies = _opened(directory)
    job, encoder = stage.jobs[number], Encoder(stage.schema, vocabularies)
    of_job = functools.partial(stage.source.run, files=job.files)
    found = _pass(stage.source, encoder, job.split, of_job)
    return _joined(found) if vocabularies is None else found, stage.source.days


def _with_end(items: Iterator[Any], days: set[str]) -> Iterator[Any]:
    """The items, then the days, or the error of the user that ends them."""
    try:
        yield from _with_days(items, days)
    except UserError as error:
        yield error


def _with_days(items: Iterator[Any], days: set[str]) -> Iterator[Any]:
    yield from items
    yield Days(frozenset(days))


@functools.lru_cache(maxsize=1)
def _opened(directory: Path) -> tuple[Stage, dict[str, vocabulary.Vocabulary] | None]:
    """A stage and its vocabularies, which the jobs of a process share."""
    stage = read_stage(directory)
    if stage.vocabularies is None:
        return stage, None
    return stage, encode_lib.load_vocabularies(stage.schema, stage.vocabularies)


def _result(directory: Path, number: int) -> Path:
    return directory / name_of(number)


def learned_slots(schema: Schema) -> tuple[list[Slot], list[Slot]]:
    """The slots whose values are counted, and those whose numbers are measured."""
    is_libsvm = schema.recipe["format"] == "libsvm"
    of_ids = [slot for slot in schema.slots if slot.holds_ids and slot.kind != "numeric"]
    counted = [slot for slot in of_ids if slot.encoding == "vocabulary" or is_libsvm]
    open_bucket = lambda slot: slot.transform == "bucket" and not slot.rows
    measured = [s for s in schema.slots if s.transform == "standardize" or open_bucket(s)]
    return counted, measured


def _pass(source: Source, encoder: Encoder, split: str, run: Run) -> Iterator[Any]:
    """Yields `Encoded` or, without vocabularies, `Learned` of some files, and `Empty` ones.

    Args:
      split: of the rows; empty if they say it.
      run: `source.run` of the files.
    """
    work = _learn if encoder.vocabularies is None else _encode
    return run(functools.partial(work, source, encoder, split))


def _joined(found: Iterable[Learned | Empty]) -> Iterator[Learned | Empty]:
    """What many chunks say, at once; also where an error ends them."""
    counters, numbers, weighted = defaultdict(vocabulary.Counter), [], set()
    negative = error = None
    try:
        for one in found:
            if isinstance(one, Empty):
                yield one
                continue
            for owner, values, counts in one.values:
                counters[owner].add(values, counts)
            numbers += one.numbers
            weighted |= one.weighted
            negative = one.negative
    except UserError as raised:
        error = raised  # behind what was found before it, which may be an error, too

    if negative is not None:
        tables = ((owner, counter.counts()) for owner, counter in counters.items())
        values = [(o, t["value"].combine_chunks(), t["count"].to_numpy()) for o, t in tables]
        yield Learned(values, numbers, frozenset(weighted), negative)
    if error is not None:
        raise error


def _learn(source: Source, encoder: Encoder, split: str, chunk: Chunk) -> Learned:
    """What the good training rows of one chunk say; those to be rejected say nothing."""
    counted, measured = learned_slots(encoder.schema)
    kept = encoder.judge(chunk.columns).good(len(chunk.lines))
    if not split:
        kept &= source.split_of(chunk) == 0
    if kept.all():
        filtered = lambda slot: chunk.columns[slot.name]
    else:
        filtered = lambda slot: chunk.columns[slot.name].filter(pa.array(kept))
    of_slot = lambda slot: counts_lib.summary(encoder.numbers(slot, filtered(slot), Problems()))
    numbers = [(slot.name, of_slot(slot)) for slot in measured]

    found, weighted = [], set()
    for slot in counted:
        _, weights, _, distinct = encoder.elements(slot, filtered(slot), Problems())
        if weights is not None and source.recipe["format"] == "libsvm":
            of_ids = numeric.parse(weights, slot.name, Problems())
            if ((of_ids != 1) & ~np.isnan(of_ids)).any():
                weighted.add(slot.name)
        if slot.encoding == "vocabulary":
            found.append((slot.owner, distinct.text, distinct.counts()))
    return Learned(found, numbers, frozenset(weighted), encoder.labels.negative)


def _in_splits(chunk: Chunk, index: np.ndarray) -> tuple[Chunk, np.ndarray, Notes]:
    """The rows that are in a split, or have no day, their index, and what is said of the others."""
    notes, over = Notes(), index == recipe_lib.PASSED_OVER
    if over.any():
        first = f"{chunk.file}:{chunk.lines[over][0]}"
        notes.add("", "other days", int(over.sum()), first)
        chunk, index = chunk.only(~over), index[~over]
    return chunk, np.where(index == recipe_lib.REPLAYED, 0, index), notes


def _encode(source: Source, encoder: Encoder, split: str, chunk: Chunk) -> Encoded:
    """What each split gets of a chunk; `split` is empty if the rows say it."""
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
    # One more than is tolerated ends the program: of millions the first ones will do.
    enough = max(source.recipe["max_rejected"], _TOLD) + 1
    unread = list(itertools.islice(chunk.bad, enough))
    bad = [*unread, *chunk.bad_rows(problems)]
    # Rows that no split could be found for count as training rows.
    index_of_bad = [0] * len(unread) + [index[row] for row in sorted(problems)]

    parts = []
    for i, name in enumerate(names):
        rows = table if split else table.filter(pa.array(index_of_good == i))
        bad_rows = sorted(b for b, own in zip(bad, index_of_bad) if own == i)
        of_first = notes if i == 0 else Notes()  # they are of the whole chunk
        parts.append(Part(name, rows, counts_lib.count(encoder.schema, rows), of_first, bad_rows))
    return Encoded(chunk.file, parts, encoder.labels.negative)


def _thin(
    source: Source,
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
