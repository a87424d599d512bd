"""Rows that a model was trained on, as far as days and files tell: their figures are too good."""

import os
from collections.abc import Collection
from pathlib import Path

from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data import storage
from emofm_jax.data.raw_rows import RawRows
from emofm_jax.data.shards import Split

_DATE = 8, 10  # characters of a date


def said(rows: Split | RawRows, trained: Collection[str]) -> str:
    """A sentence if rows are of days or files that a model was trained on; else an empty text.

    Args:
      rows: raw ones have been read.
      trained: the days of the model's training rows, and of those of the runs it started from.
    """
    days = _of_split(rows) if isinstance(rows, Split) else rows.days
    length = min((len(day) for day in trained if day), default=0)
    if length >= _DATE[0]:  # the rows may have hours of them
        days = {_cut(day, length) for day in days}
    days, known = recipe_lib.in_order(days), {*map(recipe_lib.moment, trained)}
    if not (seen := [day for day in days if recipe_lib.moment(day) in known]):
        return "" if isinstance(rows, Split) else _of_own_files(rows)
    ends = seen[0] if len(seen) == 1 else f"{seen[0]} to {seen[-1]}"
    return f"trained on {len(seen)} of the {len(days)} days of these rows ({ends}); name later rows"


def _of_own_files(rows: RawRows) -> str:
    """The sentence of raw files that training rows of the model's own data were taken from."""
    recipe = rows.schema.recipe or {}
    if not (where := recipe.get("source")) or recipe["split"] == "day" or storage.is_remote(where):
        return ""
    by_file, pattern = recipe["split"] == "files", recipe.get("files", {}).get("train")
    try:
        of_training = Path(where).glob(pattern) if by_file and pattern else [Path(where)]
        ours = {os.path.realpath(path) for path in of_training}
    except (ValueError, NotImplementedError):  # a pattern that only its own system knows
        return ""
    within = lambda path: ours & {path, *map(str, Path(path).parents)}
    seen = [file for file in rows.files if within(os.path.realpath(file))]
    if not seen:
        return ""
    share = 1.0 if by_file else recipe["shares"][0]
    return f"trained on {share:.0%} of the rows of {seen[0]}, by its split; name other rows"


def _cut(day: str, length: int) -> str:
    """A day, or an hour of it, of rows; as a date, if days of that length are dates."""
    at = recipe_lib.moment(day)
    if length <= _DATE[1] and isinstance(at, tuple):
        return day.removesuffix(at[3])
    return day[:length]


def _of_split(split: Split) -> set[str]:
    """The days of a split, as far as its recipe names them."""
    recipe, name = split.schema.recipe, split.path.name
    if not recipe or recipe["split"] != "day":
        return set()
    named = {*recipe_lib.named_days(recipe, f"{name}_days")}
    return named if named or name != "train" else {day for day in split.schema.days if day}
