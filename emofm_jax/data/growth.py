"""Ids that stay from one preparation to the next: vocabularies that go on from a base.

    known     a value of the base: it keeps its id, its count goes on
    new       a value that the base has no id for
    appended  a new value that has now reached min_count: it gets the row of an expired one, or a
              row behind the others; the most frequent comes first
    expired   a value of the base that was not seen for `expire_days` days, and whose row a new one
              has taken, the longest unseen first: the table is no larger than it must be

What has not reached min_count is unknown, and its count is kept beside the vocabulary (`rare/`).
Days are numbered over all preparations (`Schema.days`). The values of a preparation count as seen
on its last day; a preparation whose split is not made of days is one day.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import encode, values
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import vocabulary as vocabulary_lib
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.vocabulary import Vocabulary
from emofm_jax.errors import UserError

# Fields of a slot that decide what the id of a value is, or what a number of it means.
_OF_IDS = ("kind", "encoding", "seed", "share", "transform", "length", "null_values", "respell")


class Growth(NamedTuple):
    """Values of a slot against those of the base."""

    known: int  # of the base, with their ids
    new: int  # in the training rows, without an id in the base
    appended: int  # that have an id now
    expired: int  # of the base, whose row another value has now


class Grown(NamedTuple):
    """A vocabulary, and what has no id yet."""

    vocabulary: Vocabulary
    rare: pa.Table  # value, count, seen
    growth: Growth


@dataclasses.dataclass(frozen=True)
class Base:
    """What a preparation goes on from.

    Attributes:
      place: the directory, as it was typed.
      schema: of its data.
      vocabularies: by the slot that owns the rows.
      rare: {slot: value, count, seen of what has no id}, None where it was not kept.
    """

    place: str
    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    rare: Mapping[str, pa.Table | None]

    @property
    def slots(self) -> dict[str, Slot]:
        """{name: slot}."""
        return {slot.name: slot for slot in self.schema.slots}

    def check(self, schema: Schema) -> None:
        """Raises UserError if values have other ids in a schema than here, in words."""
        ours, problems = self.slots, []
        if self.schema.spelling != schema.spelling:
            problems.append("its values are spelled as release 0.1 did")
        for field in ("null_values", "positive"):
            a, b = (
                _spelled(recipe.get(field, ())) for recipe in (self.schema.recipe, schema.recipe)
            )
            if a != b:
                problems.append(f"config.prepare.{field} {a} against {b}")
        before, types = self.schema.types, schema.types
        if types and types[: len(before)] != before:
            behind = (*before, *(name for name in types if name not in before))
            what = f"config.prepare.types {list(before)} against {list(types)}"
            problems.append(f"{what}; new types stand behind: {behind!r}")
        if not any(slot.name in ours for slot in schema.slots):
            problems.append(f"it has none of the slots, but {', '.join(ours)}")

        for slot in schema.slots:
            there = ours.get(slot.name, slot)
            fields = [*_OF_IDS, *(["rows"] if slot.rows and slot.holds_ids else [])]
            pairs = [(f, getattr(there, f), getattr(slot, f)) for f in fields]
            problems += [
                f"slot {slot.name!r} {f} {a!r} against {b!r}" for f, a, b in pairs if a != b
            ]
        if problems:
            remedy = "name a base of the same slots, or prepare without one"
            raise UserError(
                f"--base={self.place}: another schema ({'; '.join(problems)}); {remedy}"
            )

    def of(self, slot: str) -> tuple[Vocabulary, pa.Table | None] | None:
        """Vocabulary of a slot, and what of it has no id; None where the slot is new."""
        return (self.vocabularies[slot], self.rare[slot]) if slot in self.vocabularies else None

    def said(self, schema: Schema, grown: Mapping[str, Growth]) -> dict[str, Any]:
        """What `prepare.json` holds of the base (`counts.Report`)."""
        slots = {name: found._asdict() for name, found in grown.items()}
        of = {"place": self.place, "identity": self.schema.identity, "days": list(self.schema.days)}
        return of | {"slots": slots, "notes": self._notes(schema)}

    def _notes(self, schema: Schema) -> list[str]:
        """What is to be said of the slots of a schema, beside their growth."""
        ours, theirs = self.slots, {slot.name: slot for slot in schema.slots}
        lines = [
            f"slot {name!r} is not in the base and starts here"
            for name in theirs
            if name not in ours
        ]
        lines += [f"slot {name!r} of the base is left out" for name in ours if name not in theirs]
        if self.schema.types:
            new = schema.types[len(self.schema.types) :]
            lines += [
                f"type {name!r} is not in the base and comes behind its types" for name in new
            ]

        for name, slot in ours.items():
            if name not in theirs:
                continue
            if name in self.vocabularies and slot.min_count > 1 and self.rare[name] is None:
                lines.append(
                    f"slot {name!r}: the base did not keep counts of rarer values, they start at 0"
                )
            if slot.transform in ("standardize", "bucket"):
                lines.append(f"slot {name!r}: {slot.transform} is that of the base")
        return lines


def _spelled(given: Sequence[Any]) -> list[str]:
    """Values of an option as they are spelled in rows, in order."""
    return sorted({text for value in given if (text := values.one(value)) is not None})


def load(directory: Path) -> Base:
    """The base that a directory of shards, or a run, is.

    Raises:
      UserError: it is gone, damaged, or of made-up data.
    """
    place = f"--base={directory}"
    if not (Path(directory) / "schema.json").exists():
        problem = "no run or data there (no schema.json)"
        raise UserError(f"{place}: {problem}; name the --workdir of a run, or a config.data.dir")
    schema = schema_lib.load(directory)
    if schema.recipe.get("format") == "synthetic":
        raise UserError(f"{place}: its data are made up, and have no values; name another")

    found = encode.load_vocabularies(schema, directory)
    digests = {
        slot.name: slot.digest or found[slot.name].digest()
        for slot in schema.slots
        if slot.name in found
    }
    last = len(schema.days)
    found = {name: vocabulary.on_day(last) for name, vocabulary in found.items()}
    rare = {name: vocabulary_lib.load_rare(directory, name, d) for name, d in digests.items()}
    return Base(str(directory), schema, found, rare)


def grow(
    counted: pa.Table,
    min_count: int,
    day: int,
    base: tuple[Vocabulary, pa.Table | None] | None = None,
    expire_days: int = 0,
) -> Grown:
    """A vocabulary of the values of training rows, which goes on from another.

    Args:
      counted: columns value, count: the distinct values of the rows.
      min_count: occurrences, those of the base among them, below which a value has no id.
      day: number of the last day of the rows.
      base: a vocabulary with `seen`, and what of it has no id, if that was kept.
      expire_days: days after which a value that was not seen may lose its row; 0 = never.
    """
    today = pa.repeat(pa.scalar(day, pa.int32()), counted.num_rows)
    rows = vocabulary_lib.table(counted["value"], counted["count"], today)
    nothing = Vocabulary(pa.array([], pa.string()), pa.array([], pa.int64())).on_day(day)
    old, rare = base or (nothing, None)
    ids = old.ids(rows["value"].combine_chunks())
    counts, seen = np.array(old.counts), np.array(old.seen)
    there = ids > 0
    counts[ids[there] - 1] += rows["count"].to_numpy()[there]
    seen[ids[there] - 1] = day

    new = rows.filter(pa.array(~there))
    waiting = new if rare is None else _joined(rare, new)
    reached = pc.greater_equal(waiting["count"], min_count)
    chosen = waiting.filter(reached).sort_by([("count", "descending"), ("value", "ascending")])
    waiting = waiting.filter(pc.invert(reached)).sort_by("value")
    if expire_days:
        waiting = waiting.filter(pc.greater(waiting["seen"], day - expire_days))

    free = _expired(old, counts, seen, day - expire_days, chosen.num_rows) if expire_days else _NONE
    growth = Growth(len(counts) - len(free), new.num_rows, chosen.num_rows, len(free))
    vocabulary = _placed(old.values, counts, seen, chosen, free)
    if base is None:
        vocabulary = Vocabulary(vocabulary.values, vocabulary.counts)
    return Grown(vocabulary, waiting, growth)


_NONE = np.zeros(0, np.int64)


def _joined(rare: pa.Table, new: pa.Table) -> pa.Table:
    """Values of both, with the sum of their counts and the last day."""
    both = pa.concat_tables([rare.replace_schema_metadata(), new])
    sums = [("count", "sum"), ("seen", "max")]
    found = both.group_by("value", use_threads=False).aggregate(sums)
    return vocabulary_lib.table(found["value"], found["count_sum"], found["seen_max"])


def _expired(
    old: Vocabulary, counts: np.ndarray, seen: np.ndarray, last: int, wanted: int
) -> np.ndarray:
    """Places of values that were last seen on day `last` or before, ascending; at most `wanted`.

    Those unseen for longest go first, of these the rarest.
    """
    unseen = np.flatnonzero(seen <= last)
    by_value = unseen[pc.sort_indices(old.values.take(pa.array(unseen))).to_numpy()]
    order = by_value[np.lexsort((counts[by_value], seen[by_value]))]
    return np.sort(order[:wanted])


def _placed(
    values: pa.Array, counts: np.ndarray, seen: np.ndarray, chosen: pa.Table, free: np.ndarray
) -> Vocabulary:
    """The vocabulary with the chosen values in the free places, the rest of them at the end."""
    size, more = len(values), chosen.num_rows - len(free)
    places = np.concatenate([free, size + np.arange(more)])
    take = np.arange(size + more)
    take[places] = size + np.arange(chosen.num_rows)
    one = vocabulary_lib.table(values, pa.array(counts), pa.array(seen))
    rows = pa.concat_tables([one, chosen]).take(pa.array(take)).combine_chunks()
    return Vocabulary(*(rows[name].combine_chunks() for name in ("value", "count", "seen")))
