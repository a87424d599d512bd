"""Rows of `label field:id:value ...`, or of `label id:value ...`.

    1 user:17:1 item:4:1 price:0:3.5    field names are names of slots; a field may repeat in a bag
    1 17:1 4012:1                       one slot named `features`, a bag of ids

The value of an id weighs its vector; a slot has weights if one of its values in the training rows
is not 1. The id of a numeric slot means nothing. Labels are those of `labels`. A row to predict may
lack its label.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import lines as lines_lib
from emofm_jax.data.formats import tokens as tokens_lib
from emofm_jax.data.formats.lines import Block, Chunk
from emofm_jax.data.raw_files import RawFile
from emofm_jax.errors import UserError

FLAT_SLOT = "features"  # the slot of rows without field names
# The separator stands in no text, so that a row is one column.
_DIALECT = lines_lib.Dialect(["row"], "\x1f")


def tasks(
    recipe: Mapping, file: RawFile, labelled: bool, progress: Callable[[int], None] | None
) -> Iterator[Callable[[], Chunk]]:
    """Yields functions that each make the chunk of one block of the file (see `formats`)."""
    path = file.path
    slots = recipe_lib.slots(recipe)
    if vectors := [slot.name for slot in slots if slot.is_vector]:
        problem = f"slot {vectors[0]!r} is a vector, but libsvm rows hold single numbers"
        raise UserError(f"config.prepare.slots: {problem}; make it numeric, or a weighted bag")
    tokens_lib.check_partitions(recipe, file, slots, labelled)
    flat = _is_flat(path)
    if flat and ([slot.name for slot in slots] != [FLAT_SLOT] or not slots[0].is_bag):
        raise UserError(
            f"{path}: rows of id:value need exactly one slot, a bag named {FLAT_SLOT!r}; declare "
            "it in config.prepare.groups and set config.prepare.slots to "
            f"{{{FLAT_SLOT!r}: {{'kind': 'multi'}}}}"
        )

    def parse(block: Block) -> Chunk:
        chunk = lines_lib.parse(block, _DIALECT, ["row"])
        label, features = _split_label(chunk.columns["row"])
        if flat:
            features = pc.replace_substring_regex(features, "([^ ]+)", FLAT_SLOT + r":\1")
        ignore = recipe["ignore"]
        columns, problems = tokens_lib.split_tokens(features, slots, ignore, slot_first=True)
        columns = tokens_lib.with_partitions(columns, recipe, file)
        for row in np.flatnonzero(pc.is_null(label)).tolist() if labelled else ():
            problems[row] = ("label", "it has no label; 0 or 1 must stand first")
        columns = tokens_lib.with_gauc_key(columns | {"label": label}, recipe, slots)
        return dataclasses.replace(chunk, columns=columns).without(problems)

    for block in lines_lib.blocks(path, progress=progress, span=file.span):
        yield functools.partial(parse, block)


def _is_flat(path: Path) -> bool:
    """Whether the first feature, which need not be in the first row, has no field."""
    for block in lines_lib.blocks(path, block_bytes=1 << 16):
        if (colon := block.data.find(b":")) >= 0:
            rest = block.data[colon + 1 : block.data.find(b"\n", colon) + 1 or None]
            return b":" not in (rest.split(None, 1) or [b""])[0]
    return False


def _split_label(rows: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The label of each row, null if it has none, and the row without it."""
    rows = pc.utf8_trim_whitespace(pc.replace_substring(rows, "\t", " "))
    first = pc.list_element(pc.split_pattern(rows, " ", max_splits=1), 0)
    has_label = pc.invert(pc.match_substring(first, ":"))
    label = pc.if_else(has_label, first, pa.scalar(None, pa.string()))
    rest = pc.utf8_ltrim_whitespace(pc.replace_substring_regex(rows, "^[^ ]*", ""))
    return label, pc.if_else(has_label, rest, rows)
