"""Rows of `label field:id:value ...`, or of `label id:value ...`.

    1 user:17:1 item:4:1 price:0:3.5            field names are the names of the slots; a field may repeat in a bag
    1 17:1 4012:1                               one slot named `features`, a bag of ids

The value of an id is 1; the id of a numeric slot means nothing. Labels are 0 and 1, or -1 and +1. A row to predict
may lack its label.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import lines as lines_lib
from emofm_jax.data.formats import tokens as tokens_lib
from emofm_jax.data.formats.lines import Chunk
from emofm_jax.data.schema import Slot
from emofm_jax.errors import UserError

FLAT_SLOT = "features"  # the slot of rows without field names
_NO_COLUMN = "\x1f"  # stands in no text, so that a row is one column


def tasks(
    recipe: Mapping, path: Path, labelled: bool, progress: Callable[[int], None] | None
) -> Iterator[Callable[[], Chunk]]:
    """Yields functions that each make the chunk of one block of the file (see `formats`)."""
    slots = recipe_lib.slots(recipe)
    tokens = lines_lib.first_row(path).decode(errors="replace").split()
    flat = any(token.count(":") == 1 for token in tokens)
    if flat and ([slot.name for slot in slots] != [FLAT_SLOT] or slots[0].kind != "multi"):
        raise UserError(
            f"{path}:1: rows of id:value need exactly one slot, a bag named {FLAT_SLOT!r}; declare it in "
            f"config.prepare.groups and set config.prepare.slots to {{{FLAT_SLOT!r}: {{'kind': 'multi'}}}}"
        )
    for first_line, block in lines_lib.blocks(path, progress=progress):
        yield functools.partial(_chunk, recipe, str(path), first_line, block, flat, labelled, slots)


def _chunk(
    recipe: Mapping,
    file: str,
    first_line: int,
    block: bytes,
    flat: bool,
    labelled: bool,
    slots: tuple[Slot, ...],
) -> Chunk:
    raw, lines, bad = lines_lib.parse(block, first_line, ["row"], ["row"], _NO_COLUMN, False, ())
    rows = pc.utf8_trim_whitespace(pc.replace_substring(raw["row"], "\t", " "))
    first = pc.list_element(pc.split_pattern(rows, " ", max_splits=1), 0)
    has_label = pc.invert(pc.match_substring(first, ":"))
    label = pc.if_else(has_label, first, pa.scalar(None, pa.string()))
    signed = {"+1": "1", "-1": "0"}
    for spelled, plain in signed.items():
        label = pc.if_else(pc.equal(label, spelled), pa.scalar(plain), label)
    features = pc.if_else(
        has_label, pc.utf8_ltrim_whitespace(pc.replace_substring_regex(rows, "^[^ ]*", "")), rows
    )
    if flat:
        features = pc.replace_substring_regex(features, "([^ ]+)", FLAT_SLOT + r":\1")
    columns, problems = tokens_lib.split_tokens(features, slots, recipe["ignore"], slot_first=True)
    if labelled:
        for row in pc.indices_nonzero(pc.is_null(label)).to_pylist():
            problems[row] = ("label", "it has no label; 0 or 1 must stand first")
    return tokens_lib.without(
        Chunk(file, lines, {**columns, "label": label}, bad), problems, recipe["gauc_key"]
    )
