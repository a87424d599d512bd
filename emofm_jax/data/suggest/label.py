"""Which column is the label, and which ones are further outcomes."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data.suggest.column import Seen, by_name
from emofm_jax.errors import UserError

_BAD = 0.01  # share of the rows that may be bad ones
_FEW_OTHERS = 0.2  # share of the rows where a label is neither a click nor none
_LABELS = ("label", "click", "clicked", "is_click", "clk", "target", "y", "is_clicked", "action")
_LABELS += ("conversion", "converted", "is_conversion", "buy", "purchase", "purchased", "response")
_PAIRS = ({"0", "1"}, {"0.0", "1.0"}, {"-1", "1"}, {"true", "false"}, {"yes", "no"})
_PAIRS += ({"t", "f"}, {"y", "n"})  # none and a click, in any case
# Words of the name of a label, or of another outcome.
_OUTCOMES = {"label", "target", "click", "clicks", "clicked", "clk", "conversion", "conversions"}
_OUTCOMES |= {"converted", "buy", "purchase", "purchases", "purchased", "response"}


class _Binary(NamedTuple):
    """A column of two values but for some rows: what it was, it without them, and their number."""

    whole: Seen
    kept: Seen
    others: int

    @property
    def is_named(self) -> bool:
        """Whether it is called as labels are."""
        return self.whole.name.strip().lower() in _LABELS

    def say_others(self) -> str:
        """How many rows it is without, and what they have."""
        some = (x for x in self.whole.distinct if x not in self.kept.distinct)
        has = next(map(repr, some), "nothing")
        return f"{self.others:,} of {len(self.whole.text):,} rows have {has} or the like"


class Label(NamedTuple):
    """A label, how many rows are rejected for theirs, and what is to be asked."""

    column: Seen
    max_rejected: int
    questions: list[str]


def find(source: Path, seen: Sequence[Seen]) -> Label:
    """Finds the label, by its values and then by its name.

    A few rows may hold neither of its two values: they are bad ones, and are left out of it.

    Args:
      source: of the rows.
      seen: the columns.

    Raises:
      UserError: none can be the label, or one that is called so has too many bad rows.
    """
    binary = [one for one in map(_binary, seen) if one]
    pairs = {one.kept.name: one for one in binary if one.others <= _BAD * len(one.whole.text)}
    both = [name for name, one in pairs.items() if {"0", "-1"} <= {*one.whole.distinct}]
    for name in both:  # -1 may mean that none is known: `prepare` takes no such label
        del pairs[name]
    of = sorted((one.kept for one in pairs.values()), key=lambda one: pairs[one.name].others > 0)

    label = by_name(of, _LABELS) or next((one for one in of if one.words & _OUTCOMES), None)
    bad = [one for one in binary if one.others and (one.is_named or not of)]
    if not label and bad:
        two = " or ".join(map(repr, sorted(bad[0].kept.distinct)))
        said = f"{bad[0].kept.name!r} is {two}, but {bad[0].say_others()} there; take these out"
        raise UserError(f"--suggest={source}: no column can be the label: {said}")
    if not of:
        what = "no column has two values that could be a click and none"
        remedy = "write the experiment file, with config.prepare.positive if the label has others"
        raise UserError(f"--suggest={source}: {what}; {remedy}")
    label = label or of[0]
    chosen = pairs[label.name]
    return Label(label, chosen.others, [*_questions(label, chosen, binary, seen)])


def _questions(
    label: Seen, chosen: _Binary, binary: Sequence[_Binary], seen: Sequence[Seen]
) -> Iterator[str]:
    """Whether it is the label, and what of other columns that may be outcomes."""
    name, others = label.name, [one.kept for one in binary if one.kept.name != label.name]
    if chosen.others:
        said = f"{chosen.say_others()} there: they are rejected (max_rejected)"
        yield f"is {name!r} the label? {said}"
    rest = [one.name for one in others]
    if not chosen.is_named:
        have = "has" if len(rest) == 1 else "have"
        too = f"{', '.join(rest[:5])} {have} two values, too" if rest else "no other has two values"
        if called := [one for one in seen if one.name.strip().lower() in _LABELS]:
            values = f"{len(called[0].distinct):,} values, as {called[0].examples}"
            too += f", and {called[0].name!r} has {values}: config.prepare.positive reads such"
        yield f"is {name!r} the label? By its name it need not be; {too}"
    outcomes = [repr(one.name) for one in others if one.words & _OUTCOMES]
    if len(outcomes) == 1:
        outcome = "If it is known only after the click, it must be in c.prepare.ignore"
        yield f"is {outcomes[0]} an outcome, too? {outcome}"
    elif outcomes:
        each = "What is known only after the click must be in c.prepare.ignore"
        yield f"are {', '.join(outcomes)} outcomes, too? {each}"


def _binary(one: Seen) -> _Binary | None:
    """A column as one of two values, if it is nearly that."""
    if len(one.distinct) > 2 + _FEW_OTHERS * len(one.text):
        return None
    counts = {x["values"]: x["counts"] for x in pc.value_counts(one.text.drop_null()).to_pylist()}
    pair = sorted(counts, key=lambda x: counts[x])[-2:]
    if _is_binary(one):  # in several spellings, perhaps
        pair = one.distinct
    text = one.text.filter(pc.is_in(one.text, pa.array(pair, pa.string())))
    kept, others = dataclasses.replace(one, text=text), len(one.text) - len(text)
    is_nearly = _is_binary(kept) and others < _FEW_OTHERS * len(one.text)
    return _Binary(one, kept, others) if is_nearly else None


def _is_binary(one: Seen) -> bool:
    values = {x.strip().lower() for x in one.distinct}
    return values in _PAIRS and not (one.lists or one.weighted or one.missing)
