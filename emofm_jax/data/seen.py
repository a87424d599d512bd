"""Rows that a model was trained on, as far as days and files tell: their figures are too good."""

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from emofm_jax.data import raw_files, storage
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.raw_rows import RawRows
from emofm_jax.data.shards import Split
from emofm_jax.errors import UserError

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
    if not recipe.get("source") or recipe["split"] == "day" or storage.is_remote(recipe["source"]):
        return ""
    by_file = recipe["split"] == "files"
    ours = _training_files(recipe, rows.directory)
    seen = [file for file in rows.files if os.path.realpath(file) in ours]
    if not seen:
        return ""
    share = f"{1.0 if by_file else recipe['shares'][0]:.0%}"
    began = (rows.directory / "schema.json").stat().st_mtime  # the run, once all was prepared
    if old := [file for file in seen if file.stat().st_mtime <= began]:
        return f"trained on {share} of the rows of {old[0]}, by its split; name other rows"
    held = f"on {share} of what {recipe['source']} held then, by its split"
    since = f"{seen[0]}, which was written since"
    return f"perhaps trained on rows of {since}: {held}; name other rows"


def _training_files(recipe: Mapping, workdir: Path) -> set[str]:
    """The files, without links, that training rows may have been taken from; what is gone is not.

    A relative source is seen from the directories above the run, in any of which something else may
    be called so, too; if there is none, from here.
    """
    source, run = Path(recipe["source"]), workdir.resolve()
    above = [] if source.is_absolute() else [parent / source for parent in run.parents]
    found = [place for place in above if place.exists()]
    # One that holds the run is its source only if no other is: `.` is all of them.
    beside = [place for place in found if not run.is_relative_to(place.resolve())]
    places = beside or found[:1] or [source]
    pattern = recipe.get("files", {}).get("train") if recipe["split"] == "files" else ""
    of_training: set[str] = set()
    for where in places:
        # A pattern may be one that only its own system knows, a directory may have changed.
        with contextlib.suppress(ValueError, NotImplementedError, OSError, UserError):
            given = where.glob(pattern) if pattern else [where]
            files = [file.path for path in given for file in raw_files.find(path, where)]
            of_training |= {os.path.realpath(path) for path in files}
    return of_training


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
