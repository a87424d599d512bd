"""Slots that training knew and that are unknown in what is scored: what is to be said of them.

Such a slot has likely another spelling, another type or other ids than in training; every score is
then one that knows nothing of it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.vocabulary import Vocabulary

_MOST = 0.95  # share of unknown values from which on they are all of them
_KNOWN = 0.5  # share up to which training knew the slot
_CHANCE = 1e-4  # that so many values are unknown as in training
_FEWEST = 8  # values, since those of a request are alike
_FEW_ROWS = 4  # of a slot: with so few values a single one may be all that there is
_JOINED = 0.2  # share of unknown values of a bag from which on its separator is looked at
_SEPARATORS = (",", ";", "|", "^", "/", ":", " ", "\t")
EXAMPLES = 2  # that are kept of a slot


@dataclasses.dataclass
class Watched:
    """A slot, its values so far, and those of them that were missing or unknown.

    Attributes:
      usual: share of these in the data of training.
      rows: that the values are of.
      trained_rows: whose values the vocabulary counts; 0 where it counts those of other slots, too.
    """

    slot: Slot
    usual: float
    values: int = 0
    unknown: int = 0
    rows: int = 0
    trained_rows: int = 0

    def is_settled(self) -> bool:
        """Whether there are enough values to judge."""
        chance = max(self.usual, 0.1) ** self.values
        return self.values >= _FEWEST and chance < _CHANCE

    def is_lost(self, examples: Sequence[str]) -> bool:
        """Whether nearly all values are unknown; one new value many times is only that."""
        several = len(examples) != 1 or self.slot.rows <= _FEW_ROWS
        return several and self.is_settled() and self.unknown >= _MOST * self.values

    def judged(self) -> "Watched":
        """As it is judged: a bag that is empty in every row has a missing value in each."""
        if not self.slot.is_bag or self.values:
            return self
        return dataclasses.replace(self, values=self.rows, unknown=self.rows)

    def was_filled(self, vocabulary: Vocabulary | None) -> bool:
        """Whether so many empty bags are too many, by the values that bags had in training."""
        if vocabulary is None or not self.trained_rows:
            return False
        mean = vocabulary.counts.to_numpy().sum() / self.trained_rows
        filled = min(mean / self.slot.max_length, 1)  # share of the bags, at least
        return (1 - filled) ** self.values < _CHANCE


def watch(schema: Schema) -> dict[str, Watched]:
    """The slots that training knew, by name."""
    found = {}
    owners = [slot.owner for slot in schema.slots]
    for i, slot in enumerate(schema.slots):
        if schema.unknown_per_slot:
            usual = schema.unknown_per_slot[i]
        else:  # of release 0.1, which did not say
            is_counted = slot.encoding == "vocabulary" and not slot.is_numeric and slot.rows > 1
            usual = 0.0 if is_counted else 1.0
        if usual <= _KNOWN:
            alone = owners.count(slot.owner) == 1
            found[slot.name] = Watched(slot, usual, trained_rows=alone * sum(schema.rows_per_type))
    return found


def said(
    schema: Schema,
    counts: Mapping[str, tuple[int, int]],
    examples: Mapping[str, Sequence[str]],
    vocabularies: Callable[[], Mapping[str, Vocabulary]],
    rows: int = 0,
) -> list[str]:
    """A sentence for each slot that training knew and that is lost now (`is_lost`).

    Args:
      schema: of the run.
      counts: {slot: (values, missing and unknown ones)}.
      examples: {slot: raw values that are unknown}, as `Encoder.unseen` has them.
      vocabularies: loads those of the run, by the slot that owns the rows.
      rows: that the values are of.
    """
    found = []
    for name, watched in watch(schema).items():
        watched.values, watched.unknown = counts[name]
        watched.rows = rows
        if is_lost(watched, examples.get(name, ()), vocabularies):
            found.append(sentence(watched, examples.get(name, ()), vocabularies()))
    return found


def is_lost(
    watched: Watched,
    examples: Sequence[str],
    vocabularies: Callable[[], Mapping[str, Vocabulary]],
) -> bool:
    """Whether nearly all values of a slot are unknown or missing, or bags taken for one value each.

    Args:
      watched: the slot, with its counts so far.
      examples: raw values of it that are unknown.
      vocabularies: loads those of the run, by the slot that owns the rows.
    """
    watched = watched.judged()
    if watched.is_lost(examples):
        is_empty = watched.slot.is_bag and watched.unknown == watched.values and not examples
        return not is_empty or watched.was_filled(vocabularies().get(watched.slot.owner))
    if not watched.slot.is_bag or not watched.is_settled():
        return False
    if watched.unknown < _JOINED * watched.values or watched.usual > _JOINED / 2:
        return False
    vocabulary = vocabularies().get(watched.slot.owner)
    return vocabulary is not None and any(_joined(text, vocabulary) for text in examples)


def sentence(
    watched: Watched, examples: Sequence[str], vocabularies: Mapping[str, Vocabulary]
) -> str:
    """What is to be said of a slot that is lost: an example, one of training, the likely cause."""
    watched = watched.judged()
    slot, share = watched.slot, watched.unknown / watched.values
    text = (
        f"slot {slot.name!r}: {share:.0%} of {watched.values:,} values are missing or unknown, "
        f"{watched.usual:.0%} were in training"
    )
    vocabulary = vocabularies.get(slot.owner)
    if vocabulary is None or not len(vocabulary.values):
        return f"{text}; check its column"

    known = vocabulary.values[0].as_py()
    if not examples:
        return f"{text}; check its column, which held {known!r} there"
    text = f"{text}: here {examples[0]!r}, there {known!r}"
    return f"{text}; {_likely(examples[0], known, vocabulary)}"


def _likely(example: str, known: str, vocabulary: Vocabulary) -> str:
    bare = example.strip().removesuffix(".0").lstrip("0")
    variants = {bare, *(change(example.strip()) for change in (str, str.lower, str.upper))}
    if parts := _joined(example, vocabulary):
        also = f"since training has {parts[0]!r} and {parts[1]!r}"
        return f"likely another separator (config.prepare.slots), {also}"

    variants |= {example.strip().title(), example.strip("'\"")}
    for variant in sorted(variants - {example, ""}):
        if vocabulary.ids(pa.array([variant]))[0]:
            return f"likely another spelling, since training has {variant!r}"
    if _is_number(example) != _is_number(known):
        return "likely another type, or other ids"
    return "likely other ids, or another spelling"


def _joined(text: str, vocabulary: Vocabulary) -> list[str]:
    """The values that a text lists between a usual separator, if training has them all."""
    for separator in _SEPARATORS:
        parts = [part.strip() for part in text.split(separator)]
        if len(parts) > 1 and vocabulary.ids(pa.array(parts)).all():
            return parts
    return []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
