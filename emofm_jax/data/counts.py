"""What prepare counted: rows and clicks per split and type, ids and numbers of each slot.

Memory is 4 bytes per table row of a slot and split, as far as the rows are used, whatever the
number of rows of data.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax import errors
from emofm_jax.data import files, shards
from emofm_jax.data.problems import Notes
from emofm_jax.data.schema import Schema, Slot

# What is said of the values of a slot, and of rows and files, by the kind of the note.
_NOTES = {
    "empty files": "{number:,} files hold no row and are passed over, the first is {example}",
    "no checksum": "{number:,} compressed files carry no checksum, so that damage in them cannot "
    "be seen, the first is {example}; zstd --check and lz4 write one",
    "blank lines": "{number:,} blank lines are no rows, the first is {example}",
    "rows over lines": "{number:,} rows run over line ends in cells in quotes, the first at "
    "{example}; if the file never quotes, set config.prepare.quoting to 'none'",
    "respelled": "{number:,} values are text in another spelling, such as {example}; "
    "respell=False keeps them apart",
    "other days": "{number:,} rows are of days that are in no split and are passed over, the first "
    "is {example}",
    "sampled": "{number:,} rows without a click are left out of the train split "
    "(negative_keep_rate), the first is {example}; those that stay weigh as many more",
    "cut": "{number:,} bags ({share:.2%}) are longer than max_length, such as {example}; "
    "config.prepare.slot.keep says which end",
}
# What is said of rows that lack a role.
_WITHOUT = {
    "type": "without a type, in no figures of a type",
    "gauc_key": "without a GAUC key, left out of GAUC",
}


class Summary(NamedTuple):
    """What `Moments` needs to know of some numbers, of which there is at least one."""

    number: int
    mean: float
    squares: float  # sum of squared differences from the mean
    smallest: float
    largest: float


def summary(numbers: np.ndarray) -> Summary | None:
    """The summary of f[n]; NaN and infinity are left out. None where nothing is left."""
    numbers = numbers[np.isfinite(numbers)].astype(np.float64)
    if not len(numbers):
        return None
    mean = numbers.mean()
    squares = ((numbers - mean) ** 2).sum()
    return Summary(len(numbers), mean, squares, numbers.min(), numbers.max())


class Moments:
    """Count, mean, standard deviation, smallest and largest of numbers that arrive in pieces."""

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, 0.0, 0.0
        self.smallest, self.largest = np.inf, -np.inf

    def add(self, some: Summary | None) -> None:
        """Adds the numbers of a summary; the order of the pieces decides on the last bits."""
        if some is None:
            return
        total = self.count + some.number
        # Chan's update: squares around the mean do not cancel as sums of raw squares do.
        between = (some.mean - self._mean) ** 2 * self.count * some.number / total
        self._squares += some.squares + between
        self._mean += (some.mean - self._mean) * some.number / total
        self.count = total
        self.smallest = min(self.smallest, some.smallest)
        self.largest = max(self.largest, some.largest)

    def mean_and_std(self) -> tuple[float, float]:
        """The mean and the population's standard deviation; 1 in place of a deviation of 0."""
        std = float(np.sqrt(self._squares / max(self.count, 1)))
        return float(self._mean), std if std > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class SlotCounts:
    """A slot as it was prepared: its encoded values in the train split, unless said otherwise."""

    kind: str
    encoding: str  # of ids; of a number its transform
    rows: int  # of the table
    distinct: int | None  # ids that occur; None for a number, as is top_share
    # {split: share of ids that are 0 or, without a base, not in train; of missing numbers}
    unknown: dict[str, float]
    top_share: float | None  # share of the most frequent id
    min: float | None = None  # of the numbers, or of the weights of ids, as are mean and max
    mean: float | None = None
    max: float | None = None
    cut: float = 0.0  # share of all rows whose bag was longer than what is kept of it
    # {what: (values of all splits of which it is to be said, an example)}: a key of _NOTES.
    notes: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """Rows and clicks of a split."""

    rows: int
    rejected: dict[str, int]  # {kind: rows}
    clicks: int
    types: dict[str, dict[str, int]]  # {type: {"rows", "clicks"}}
    without: dict[str, int] = dataclasses.field(default_factory=dict)  # {role: rows that lack it}


@dataclasses.dataclass(frozen=True)
class Report:
    """What `prepare.json` holds: every slot, and every split that rows were read of."""

    slots: dict[str, SlotCounts]
    splits: dict[str, SplitCounts]
    # Of rows and files, as those of a slot.
    notes: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    # What it goes on from: place, identity, days of it, {slot: growth} of slots, sentences notes.
    base: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of prepare.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Report":
        """The report that `to_json` gave."""
        slots = {name: SlotCounts(**slot) for name, slot in body["slots"].items()}
        splits = {name: SplitCounts(**split) for name, split in body["splits"].items()}
        return cls(slots, splits, body.get("notes", {}), body.get("base", {}))


class Counted(NamedTuple):
    """Counts of the rows of one table: what `Tally.add` sums up."""

    ids: dict[str, tuple[np.ndarray, np.ndarray]]  # {slot: (distinct ids, occurrences of each)}
    # {slot: summary}, None where all are missing; all numbers of a vector, the weights of ids.
    numbers: dict[str, Summary | None]
    types: np.ndarray  # i64[2, T + 1]: rows and clicks of each type, last those of unknown type
    without_key: int  # rows without a GAUC key


def count(schema: Schema, table: pa.Table) -> Counted:
    """Counts encoded rows; several threads may do so at once."""
    ids, numbers = {}, {}
    for slot in schema.slots:
        column = table[slot.name].combine_chunks()
        if not slot.holds_ids:
            column = column.flatten() if slot.is_vector else column
            known = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
            numbers[slot.name] = summary(known)
        else:
            column = column.flatten() if slot.is_bag else column
            if slot.weighted:
                numbers[slot.name] = summary(pc.struct_field(column, "weight").to_numpy())
                column = pc.struct_field(column, "id")
            found = pc.value_counts(column)
            ids[slot.name] = found.field(0).to_numpy(), found.field(1).to_numpy()

    clicked = table["label"].to_numpy() == 1
    which = np.zeros(table.num_rows, np.int64)
    if schema.types:
        which = table["ftype"].fill_null(schema.num_types).to_numpy()
    by_type = lambda rows: np.bincount(rows, minlength=schema.num_types + 1)
    types = np.stack([by_type(which), by_type(which[clicked])])
    without_key = np.sum(table["gauc_key"].to_numpy() == 0) if schema.has_gauc_key else 0
    return Counted(ids, numbers, types, int(without_key))


class Tally:
    """Sums of counts over tables: `add` each, then `save`."""

    def __init__(self, schema: Schema):
        self._schema = schema
        self._ids: dict[tuple[str, str], np.ndarray] = {}
        has_numbers = lambda slot: slot.weighted or not slot.holds_ids
        self._numbers = {slot.name: Moments() for slot in schema.slots if has_numbers(slot)}
        self._types: dict[str, np.ndarray] = {}
        self._without_key: Counter[str] = Counter()
        self._notes = Notes()

    def add(self, split: str, counted: Counted) -> None:
        """Adds the counts of some rows of a split."""
        for slot in self._schema.slots:
            if split == "train" and slot.name in self._numbers:
                self._numbers[slot.name].add(counted.numbers[slot.name])
            if not slot.holds_ids:
                continue
            if (split, slot.name) not in self._ids:
                self._ids[split, slot.name] = np.zeros(slot.rows, np.int32)
            # One access per distinct id: np.add.at over the rows took 4 times as long.
            values, counts = counted.ids[slot.name]
            self._ids[split, slot.name][values] += counts.astype(np.int32)
        self._types[split] = self._types.get(split, 0) + counted.types
        self._without_key[split] += counted.without_key

    def note(self, notes: Notes) -> None:
        """Adds what is to be said of some rows and their values."""
        self._notes.join(notes)

    def save(
        self,
        directory: Path,
        rejected: Mapping[str, Mapping[str, int]],
        days: Sequence[str] = (),
        base: Mapping[str, Any] | None = None,
    ) -> Report:
        """Writes `prepare.json`, and `schema.json` with what of it the rows say.

        Args:
          directory: of the shards.
          rejected: {split: {kind: rows that were left out}}.
          days: as `Schema.days`.
          base: as `Report.base`.
        """
        there = [s for s in shards.SPLITS if s in self._types or rejected.get(s)]
        splits = {split: self._split(split, dict(rejected.get(split, {}))) for split in there}
        rows = sum(s.rows + sum(s.rejected.values()) for s in splits.values())
        of = lambda slot: self._described(slot.name, self._slot(slot, bool(base)), rows)
        slots = {slot.name: of(slot) for slot in self._schema.slots}
        report = Report(slots, splits, self._notes.of(""), dict(base or {}))
        files.write_json(Path(directory) / "prepare.json", report.to_json())
        rows, clicks = (tuple(counts) for counts in self._types["train"].tolist())
        known: dict[str, Any] = {"rows_per_type": rows, "clicks_per_type": clicks}
        known["days"] = tuple(days)
        most = lambda shares: max(shares.get(split, 0.0) for split in ("train", "valid"))
        known["unknown_per_slot"] = tuple(most(slot.unknown) for slot in slots.values())
        schema = dataclasses.replace(self._schema, digests=shards.digests(directory), **known)
        schema.save(directory)
        return report

    def _described(self, name: str, counts: SlotCounts, rows: int) -> SlotCounts:
        notes = self._notes.of(name)
        cut = notes["cut"][0] / rows if "cut" in notes else 0.0
        counts = dataclasses.replace(counts, notes=notes, cut=cut)
        moments = self._numbers.get(name)
        if moments is None or not moments.count:
            return counts

        smallest, largest = float(moments.smallest), float(moments.largest)
        return dataclasses.replace(
            counts, min=smallest, mean=moments.mean_and_std()[0], max=largest
        )

    def _slot(self, slot: Slot, has_base: bool) -> SlotCounts:
        if not slot.holds_ids:
            rows = int(self._types["train"][0].sum()) * slot.width
            unknown = {"train": 1 - self._numbers[slot.name].count / max(rows, 1)}
            return SlotCounts(slot.kind, slot.transform, slot.rows, None, unknown, None)

        train = self._ids["train", slot.name]
        total = lambda counts: counts.sum(dtype=np.int64)
        unknown = {}
        for split in shards.SPLITS:
            counts = self._ids.get((split, slot.name))
            if counts is not None:
                # With a base the vocabulary knows more than the training rows show.
                in_train = has_base and slot.encoding == "vocabulary"
                new = counts[0] + (0 if in_train else total(counts[1:][train[1:] == 0]))
                unknown[split] = float(new / max(total(counts), 1))
        distinct = int(np.count_nonzero(train[1:]))
        top = float(train[1:].max(initial=0) / max(total(train), 1))
        return SlotCounts(slot.kind, slot.encoding, slot.rows, distinct, unknown, top)

    def _split(self, split: str, rejected: dict[str, int]) -> SplitCounts:
        if split not in self._types:  # every row was rejected
            return SplitCounts(0, rejected, 0, {})
        rows, clicks = self._types[split].tolist()
        known = self._schema.types
        names = [*known, "no type" if "unknown" in known else "unknown"] if known else []
        types = {name: {"rows": r, "clicks": c} for name, r, c in zip(names, rows, clicks)}
        without = {"type": rows[-1] if known else 0, "gauc_key": self._without_key[split]}
        without = {role: number for role, number in without.items() if number}
        return SplitCounts(sum(rows), rejected, sum(clicks), types, without)


def as_text(report: Report) -> str:
    """The report as two tables, and what is to be said of rows and slots."""
    lines = [*_split_lines(report), "", *_slot_lines(report), *_note_lines(report)]
    return "\n".join([*lines, *_base_lines(report)])


def said(notes: Mapping[str, tuple[int, str]], cut: float = 0.0) -> list[str]:
    """Notes of one slot, or of rows and files, in words; `cut` is the share of bags that were."""
    words = lambda kind, n, example: _NOTES[kind].format(number=n, example=example, share=cut)
    return [words(kind, *found) for kind, found in notes.items()]


def said_of_all(notes: Notes) -> list[str]:
    """Notes on the rows, files and bags that a program reads, in words."""
    cut = [(slot, number) for (slot, kind), (number, _) in notes.items() if kind == "cut"]
    of_bags = [f"slot {slot!r}: {number:,} bags were longer, and were cut" for slot, number in cut]
    return [*said(notes.of("")), *of_bags]


def _base_lines(report: Report) -> list[str]:
    """The growth of each slot against the base."""
    if not (base := report.base):
        return []
    slots = base["slots"]
    width = max(len(errors.printable(name)) for name in [*slots, "slot"])
    names = ("known", "new", "appended", "expired")
    heads = "".join(f"{name:>11s}" for name in names)
    lines = ["", f"goes on from {base['place']}", f"{'slot':{width}s}{heads}"]

    for name, found in slots.items():
        start = f"{errors.printable(name):{width}s}"
        lines.append(start + "".join(f"{found[key]:11,d}" for key in names))
    return [*lines, *base["notes"]]


def _note_lines(report: Report) -> list[str]:
    lines = said(report.notes)
    if report.splits["train"].rows and not report.splits["train"].clicks:
        lines.append(
            "no row of the train split is a click: a model learns nothing but that from it"
        )

    lines += _types_without_a_row(report)
    for name, slot in report.slots.items():
        if slot.distinct is not None and slot.min is not None:
            weights = f"min {slot.min:.6g}, mean {slot.mean:.6g}, max {slot.max:.6g}"
            lines.append(f"slot {name!r}: its ids have weights ({weights})")
        lines += [f"slot {name!r}: {words}" for words in said(slot.notes, slot.cut)]
    return ["", *lines] if lines else []


def _types_without_a_row(report: Report) -> list[str]:
    """A line for each type that is known, and that no row of the train split has."""
    learns = "nothing of its own is learnt" + (" from these rows" if report.base else "")
    types = [*report.splits["train"].types.items()][:-1]  # the last are rows without a type
    where = "no row of the train split has it"
    return [f"type {name!r}: {where}; {learns}" for name, counts in types if not counts["rows"]]


def _split_lines(report: Report) -> list[str]:
    lines = [f"{'split':12s} {'rows':>11s} {'rejected':>9s} {'clicks':>10s} {'click rate':>10s}"]

    def line(name: str, rows: int, rejected: str, clicks: int) -> str:
        rate = clicks / max(rows, 1)
        return f"{name:12s} {rows:11,d} {rejected:>9s} {clicks:10,d} {rate:10.4f}"

    for split, found in report.splits.items():
        lines.append(line(split, found.rows, f"{sum(found.rejected.values()):,d}", found.clicks))
        for name, counts in found.types.items():
            if counts["rows"]:
                name = f"  {errors.printable(name)}"
                lines.append(line(name, counts["rows"], "", counts["clicks"]))
        for kind, number in found.rejected.items():
            lines.append(f"  rejected for its {kind}: {number:,d}")
        for role, number in found.without.items():
            lines.append(f"  {_WITHOUT[role]}: {number:,d}")
    return lines


def _slot_lines(report: Report) -> list[str]:
    width = max(len(errors.printable(name)) for name in [*report.slots, "slot"])
    others = [name for name, found in report.splits.items() if name != "train" and found.rows]
    new = "".join(f"{'new in ' + split:>14s}" for split in others)
    start = f"{'slot':{width}s} {'kind':11s} {'encoding':11s} {'rows':>10s}"
    lines = [f"{start} {'distinct':>10s} {'top value':>9s}{new}"]

    for name, slot in report.slots.items():
        start = f"{errors.printable(name):{width}s} {slot.kind:11s}"
        start += f" {slot.encoding:11s} {slot.rows:10,d}"
        if slot.distinct is None:
            said = "no number"
            if slot.min is not None:
                said = f"min {slot.min:.6g}, mean {slot.mean:.6g}, max {slot.max:.6g}"
            lines.append(f"{start} {said}, missing {slot.unknown['train']:.2%}")
            continue
        new = "".join(f"{x:14.2%}" for split, x in slot.unknown.items() if split != "train")
        lines.append(f"{start} {slot.distinct:10,d} {slot.top_share:9.2%}{new}")
    return lines
