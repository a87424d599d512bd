"""Raw click logs -> shards: two passes over the files of `config.prepare` (docs/data.md).

    count    vocabularies, means and largest buckets, over the training rows, where a slot needs them
    encode   every row -> Parquet shards, schema.json, prepare.json

Nothing half-written is left behind: everything is made in a `.partial` directory beside and moved at the end.
"""

import json
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import encode, formats, shards, vocabulary
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import cti, tabular
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

_THREADS = 2
_WRITTEN = {*shards.SPLITS, "vocabulary", "schema.json", "prepare.json"}


def prepare(config: ConfigDict, progress: bool = True) -> dict:
    """Writes the shards that `config.prepare` describes to `config.data.dir`.

    Args:
      config: whole and validated.
      progress: shows a progress bar on stderr, if that is a terminal.

    Returns:
      The report that is also saved as `prepare.json` (see `tally.Tally.report`).
    Raises:
      UserError: bad raw data or options. The directory is then as it was before.
    """
    if not config.data.dir:
        raise UserError(
            "config.data.dir: it is empty; name the directory that the shards shall be written to"
        )
    target = Path(config.data.dir)
    _check_replaceable(target)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"config.data.dir: {target} cannot be written ({error.strerror}); name another"
        ) from None
    recipe = config.prepare.to_dict()
    show = progress and sys.stderr.isatty()
    try:
        if recipe["format"] == "synthetic":
            from emofm_jax.data.synthetic import write as synthetic

            synthetic.write(recipe, partial, config.name, show)
        else:
            _write(recipe, partial, config.name, show)
        report = json.loads((partial / "prepare.json").read_text())
        old = target.with_name(target.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return report


def _write(recipe: dict, directory: Path, name: str, show: bool) -> None:
    """Two passes: what the training rows say about the slots, where that is needed; then the shards."""
    recipe_lib.check_roles(recipe)
    files = recipe_lib.files(recipe)
    first = next(iter(files.values()))[0]
    slots = recipe_lib.slots(recipe)
    integer_row_id = (
        recipe["format"] == "tabular" and recipe["row_id"] and tabular.integer_row_id(recipe, first)
    )
    has_row_id = recipe["format"] == "cti" or recipe["row_id"]
    types = _types(recipe, first)
    schema_recipe, recipe = (
        recipe,
        recipe | {"types": types},
    )  # cti: every file must have the types of the first one
    slots, vocabularies = _learn(recipe, files, slots, directory, show)
    schema = Schema(
        name=name,
        slots=slots,
        types=types,
        has_weight=bool(recipe["weight"]),
        has_gauc_key=bool(recipe["gauc_key"]),
        row_id="int64" if integer_row_id else "string" if has_row_id else "",
        recipe=schema_recipe,
    )
    encoder = encode.Encoder(schema, vocabularies)
    tallies = counts_lib.Tally(schema)
    rejects = _Rejects(recipe["max_rejected"])

    def work(task: Callable[[], formats.Chunk]):
        chunk = task()
        table, bad = encoder.encode(chunk.columns)
        # Here, on a thread, if all rows of the table go to one split.
        return chunk, table, bad, None if "" in files else counts_lib.count_ids(schema, table)

    with ExitStack() as stack:
        writers = {s: stack.enter_context(shards.Writer(directory, s, schema)) for s in files if s}
        if not writers:
            writers = {
                s: stack.enter_context(shards.Writer(directory, s, schema)) for s in shards.SPLITS
            }
        for split, paths in files.items():
            for chunk, table, bad, ids in _ahead(
                recipe, paths, work, f"{split} rows".strip(), show
            ):
                good = np.ones(len(chunk.lines), bool)
                good[[row for row, _, _ in bad]] = False
                assigned = _assign(recipe, split, paths, chunk)
                _reject(rejects, writers, split, chunk, bad, assigned)
                for i, part in enumerate(shards.SPLITS) if not split else [(0, split)]:
                    rows = table if split else table.filter(pa.array(assigned[good] == i))
                    if rows.num_rows:
                        writers[part].write(rows)
                        tallies.add(part, rows, ids)
    tallies.rejected = {split: dict(writer.rejected) for split, writer in writers.items()}
    if not writers["train"].num_rows:
        raise UserError(
            f"{first}: the train split has no row; check config.prepare.split and the files"
        )
    for split in ("valid", "test") if recipe["split"] == "day" else ():
        if recipe[f"{split}_days"] and not writers[split].num_rows:
            raise UserError(
                f"config.prepare.{split}_days: no row is of {', '.join(map(str, recipe[f'{split}_days']))}; "
                "check config.prepare.day_column and day_length"
            )
    schema = tallies.with_counts(schema)
    counts_lib.save(tallies.report(schema), directory)
    schema.save(directory)


def _types(recipe: dict, first: Path) -> tuple[str, ...]:
    """Names of the types; those of cti data follow from its columns unless they are given."""
    if recipe["format"] == "cti":
        return tuple(recipe["types"]) or tuple(cti.columns(first)[1:-1])
    if recipe["ftype"] and not recipe["types"]:
        raise UserError(
            f"config.prepare.types: column {recipe['ftype']!r} holds the type; name its values here, in order"
        )
    return tuple(recipe["types"]) if recipe["ftype"] else ()


def _learn(
    recipe: dict, files: dict[str, list[Path]], slots: tuple[Slot, ...], directory: Path, show: bool
) -> tuple[tuple[Slot, ...], dict[str, vocabulary.Vocabulary]]:
    """Completes the slots from the training rows: vocabularies (saved), means and the largest bucket."""
    counted = [s for s in slots if s.encoding == "vocabulary" and s.kind != "numeric"]
    measured = [
        s for s in slots if s.transform == "standardize" or (s.transform == "bucket" and not s.rows)
    ]
    counters = {s.name: vocabulary.Counter() for s in counted if not s.share}
    moments = {s.name: counts_lib.Moments() for s in measured}
    if counted or measured:
        split = "train" if "train" in files else ""
        for chunk in _ahead(recipe, files[split], lambda task: task(), "counting", show):
            train = None
            if not split:
                train = pa.array(_assign(recipe, split, files[split], chunk) == 0)
            for slot in (*counted, *measured):
                column = chunk.columns[slot.name]
                column = column if train is None else column.filter(train)
                if slot.kind == "numeric":
                    moments[slot.name].add(encode.parse_numbers(column, slot.name, {}))
                    continue
                if slot.kind == "multi":
                    column = encode.cut_bags(column, slot.max_length)[0].flatten()
                counters[slot.share or slot.name].add(encode.as_values(column))
    vocabularies = {}
    for slot in counted:
        if not slot.share:
            found = counters[slot.name].vocabulary(slot.min_count)
            found.save(directory, slot.name)
            vocabularies[slot.name] = found
    complete = []
    for slot in slots:
        if slot in counted:
            found = vocabularies[slot.share or slot.name]
            slot = replace(slot, rows=found.rows, digest=found.digest())
        elif slot.transform == "standardize":
            mean, std = moments[slot.name].mean_and_std()
            slot = replace(slot, mean=mean, std=std)
        elif slot in measured:
            # Row 0, buckets 1 .. of the largest number, and the last row for negative numbers.
            largest = encode.bucket(np.array([moments[slot.name].largest]), 1 << 30)[0]
            slot = replace(slot, rows=int(max(largest, 1)) + 2)
        complete.append(slot)
    return tuple(complete), vocabularies


def _ahead(recipe: dict, paths: list[Path], work: Callable, what: str, show: bool) -> Iterator:
    """work(task) of every task of the files, in order, a few of them at once on threads."""
    size = sum(path.stat().st_size for path in paths if path.exists())
    pending: deque = deque()
    with tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=not show) as bar:
        pool = ThreadPoolExecutor(_THREADS)
        try:
            with closing(formats.tasks(recipe, paths, True, bar.update)) as tasks:
                for task in tasks:
                    pending.append(pool.submit(work, task))
                    if len(pending) > _THREADS:
                        yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _assign(recipe: dict, split: str, paths: list[Path], chunk: formats.Chunk) -> np.ndarray | None:
    """Which split each readable row of a chunk is in, where the files do not say."""
    if split:
        return None
    days = encode.as_values(chunk.columns["_day"]).to_pylist() if recipe["split"] == "day" else None
    return recipe_lib.split_of(
        recipe, [str(path) for path in paths].index(chunk.file), chunk.lines, days
    )


def _reject(
    rejects: "_Rejects", writers: dict, split: str, chunk: formats.Chunk, bad: list, assigned
) -> None:
    """Hands bad rows to their writers; rows that no split could be found for count as training rows."""
    found: dict[str, list] = {}
    for b in chunk.bad:
        found.setdefault(split or "train", []).append((b.line, b.kind, b.reason))
    for row, kind, reason in bad:
        part = split or shards.SPLITS[assigned[row]]
        found.setdefault(part, []).append((int(chunk.lines[row]), kind, reason))
    for part, rows in found.items():
        rows.sort()
        writers[part].reject(
            chunk.file, [r[0] for r in rows], [r[2] for r in rows], [r[1] for r in rows]
        )
        rejects.add(part, chunk.file, rows)


class _Rejects:
    """Counts the rejected rows of each split, and stops where there are more than are tolerated."""

    def __init__(self, tolerated: int):
        self.tolerated = tolerated
        self.kinds: dict[str, Counter] = {}
        self.first: dict[str, str] = {}

    def add(self, split: str, file: str, rows: list[tuple[int, str, str]]) -> None:
        kinds = self.kinds.setdefault(split, Counter())
        self.first.setdefault(split, f"{file}:{rows[0][0]}: {rows[0][2]}")
        kinds.update(kind for _, kind, _ in rows)
        if kinds.total() > self.tolerated:
            each = ", ".join(f"{kind}: {number}" for kind, number in kinds.most_common())
            raise UserError(
                f"{self.first[split]}; {kinds.total()} bad rows so far in {split} ({each}) where {self.tolerated} are "
                "tolerated: correct them or raise config.prepare.max_rejected"
            )


def _check_replaceable(target: Path) -> None:
    """Refuses to replace a directory that holds anything but shards."""
    if not target.exists():
        return
    found = {path.name for path in target.iterdir()} if target.is_dir() else {"a file"}
    if found and ("schema.json" not in found or found - _WRITTEN):
        strange = sorted(found - _WRITTEN)[:1] or ["no schema.json"]
        raise UserError(
            f"config.data.dir: {target} is not a directory of shards ({strange[0]}), and is not replaced; "
            "name another, or remove it"
        )
