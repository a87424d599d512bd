"""The raw rows of the CTI competition (EMOFM, data section): one conversion type a row, features as id:slot.

    log_id \\t t1 \\t t2 \\t t3 \\t feature_id:slot_id feature_id:slot_id ...

Exactly one of t1..t3 is 0 or 1, which is the label; which one is filled is the interaction type. The number of
types follows from the columns. Ids are whole numbers of up to 64 bits. A slot may repeat, if it is a bag.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import lines as lines_lib
from emofm_jax.data.formats import tokens
from emofm_jax.data.formats.lines import Chunk
from emofm_jax.errors import UserError


def tasks(
    recipe: Mapping, path: Path, labelled: bool, progress: Callable[[int], None] | None
) -> Iterator[Callable[[], Chunk]]:
    """Yields functions that each make the chunk of one block of the file (see `formats`)."""
    slots = recipe_lib.slots(recipe)
    numeric = [slot.name for slot in slots if slot.kind == "numeric"]
    if numeric:
        raise UserError(
            f"config.prepare.slots: slot {numeric[0]!r} is numeric, but cti rows hold ids only; change it"
        )
    names = columns(path)
    types = list(recipe["types"]) or names[1:-1]
    if names[1:-1] and len(types) != len(names) - 2:
        raise UserError(
            f"{path}:1: {len(names) - 2} columns of types, but the data has {len(types)} types "
            f"({', '.join(types)}); the first row must be log_id, one column a type, features"
        )
    if labelled and not names[1:-1]:
        raise UserError(
            f"{path}:1: no column of types; a row is log_id, one column a type, features, between tabs"
        )
    for first_line, block in lines_lib.blocks(path, progress=progress):
        if first_line == 1 and block.startswith(b"log_id\t"):
            first_line, block = 2, block[block.find(b"\n") + 1 :]
        if block:
            yield functools.partial(
                _chunk, recipe, str(path), first_line, block, names, types, labelled, slots
            )


def columns(path: Path) -> list[str]:
    """Names of the columns: log_id, one a type (t1, t2, ...), features."""
    first = lines_lib.first_row(path).split(b"\t")
    if len(first) < 2:
        raise UserError(
            f"{path}:1: {len(first)} columns; a row is log_id, one column a type, features, between tabs"
        )
    return ["log_id", *(f"t{i}" for i in range(1, len(first) - 1)), "features"]


def _chunk(recipe, file, first_line, block, names, types, labelled, slots) -> Chunk:
    raw, lines, bad = lines_lib.parse(block, first_line, names, names, "\t", False, ())
    label, ftype, problems = _label(
        [raw[name] for name in names[1:-1]], types, len(lines), labelled
    )
    found, more = tokens.split_tokens(raw["features"], slots, recipe["ignore"])
    result = {**found, "label": label, "ftype": ftype, "row_id": raw["log_id"]}
    if recipe["split"] == "day":
        result["_day"] = raw["log_id"]
    return tokens.without(Chunk(file, lines, result, bad), more | problems, recipe["gauc_key"])


def _label(
    cells: list[pa.Array], types: list[str], num_rows: int, labelled: bool
) -> tuple[pa.Array, pa.Array, dict[int, tuple[str, str]]]:
    """The label and type of each row, and {row: (kind, reason)} of the rows that have not exactly one."""
    spelled = np.array([[-1] * num_rows] + [_spelling(cell) for cell in cells])  # [1 + T, n]
    filled = spelled >= 0
    label, which = spelled.max(axis=0, initial=-1), filled.argmax(axis=0)
    known = filled.sum(axis=0) == 1
    problems = {}
    if labelled:
        allowed = " and ".join([", ".join(types[:-1]), types[-1]]) if len(types) > 1 else types[0]
        for row in np.flatnonzero((spelled == -2).any(axis=0)).tolist():
            text = next(
                cell[row].as_py() for cell in cells if _spelling(cell.slice(row, 1))[0] == -2
            )
            problems[row] = ("label", f"{text!r} is no label; 0, 1 or '-' is")
        for row in np.flatnonzero(~known & ~(spelled == -2).any(axis=0)).tolist():
            number = int(filled[:, row].sum())
            said = "all '-'" if number == 0 else f"{number} of them filled"
            problems[row] = ("types", f"{allowed} are {said}; exactly one must be 0 or 1")
    names = pa.array(
        [types[i - 1] if ok and i else None for i, ok in zip(which, known)], pa.string()
    )
    return pa.array(np.where(known, label, 0), mask=~known), names, problems


def _spelling(cell: pa.Array) -> np.ndarray:
    """i64[n]: 0 and 1 as they are, -1 for "-", -2 for anything else."""
    index = pc.index_in(cell, pa.array(["-", "0", "1"])).fill_null(-1).to_numpy()
    return np.where(index < 0, -2, index - 1)
