"""Rows of the CTI competition (EMOFM, data section): one type a row, features as id:slot.

    log_id \\t t1 \\t t2 \\t t3 \\t feature_id:slot_id feature_id:slot_id ...

Exactly one of t1..t3 is 0 or 1, which is the label; which one is filled is the interaction type.
The number of types follows from the columns. Ids are whole numbers of up to 64 bits. A slot may
repeat, if it is a bag.
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
from emofm_jax.data.formats import tokens
from emofm_jax.data.formats.lines import Block, Chunk
from emofm_jax.data.problems import Problems
from emofm_jax.data.raw_files import RawFile
from emofm_jax.errors import UserError

_ROW = "a row is log_id, one column a type, features, between tabs"


def tasks(
    recipe: Mapping, file: RawFile, labelled: bool, progress: Callable[[int], None] | None
) -> Iterator[Callable[[], Chunk]]:
    """Yields functions that each make the chunk of one block of the file (see `formats`)."""
    path = file.path
    slots = recipe_lib.slots(recipe)
    for slot in slots:
        if slot.weighted or slot.kind in ("numeric", "vector"):
            what = "weighted" if slot.weighted else slot.kind
            problem = f"slot {slot.name!r} is {what}, but cti rows hold ids only"
            raise UserError(f"config.prepare.slots: {problem}; change it")
    names = columns(path)
    of_types = names[1:-1]
    types = list(recipe["types"]) or of_types
    if of_types and len(types) != len(of_types):
        raise UserError(
            f"{path}:1: {len(of_types)} columns of types, but the data has {len(types)} types "
            f"({', '.join(types)}); the first row must be log_id, one column a type, features"
        )
    if labelled and not of_types:
        raise UserError(f"{path}:1: no column of types; {_ROW}")

    tokens.check_partitions(recipe, file, slots, labelled)
    dialect = lines_lib.Dialect(names, "\t")

    def parse(block: Block) -> Chunk:
        chunk = lines_lib.parse(block, dialect, names)
        raw = chunk.columns
        found, problems = tokens.split_tokens(raw["features"], slots, recipe["ignore"])
        found = tokens.with_partitions(found, recipe, file)
        cells = [raw[name] for name in of_types]
        label, ftype, of_label = _label(cells, types, len(chunk.lines), labelled)
        found |= {"label": label, "ftype": ftype, "row_id": raw["log_id"]}
        if recipe["split"] == "day" or recipe.get("knows_day"):
            found["_day"] = raw["log_id"]
        found = tokens.with_gauc_key(found, recipe, slots)
        problems.update(of_label)
        return dataclasses.replace(chunk, columns=found).without(problems)

    for block in lines_lib.blocks(path, progress=progress, span=file.span):
        if block.line == 1 and block.data.startswith(b"log_id\t"):
            block = block.behind_first_row()
        if block.data:
            yield functools.partial(parse, block)


def columns(path: Path) -> list[str]:
    """Names of the columns: log_id, one a type (t1, t2, ...), features."""
    first = lines_lib.first_row(path).split(b"\t")
    if len(first) < 2:
        raise UserError(f"{path}:1: {len(first)} columns; {_ROW}")
    return ["log_id", *(f"t{i}" for i in range(1, len(first) - 1)), "features"]


def _label(
    cells: list[pa.Array], types: list[str], num_rows: int, labelled: bool
) -> tuple[pa.Array, pa.Array, Problems]:
    """The label and type of each row, and the problems of rows that have not exactly one."""
    spelled = np.array([[-1] * num_rows] + [_spelling(cell) for cell in cells])  # [1 + T, n]
    filled = spelled >= 0
    label, which = spelled.max(axis=0, initial=-1), filled.argmax(axis=0)
    num_filled = filled.sum(axis=0)
    known = num_filled == 1

    problems = Problems()
    if labelled:
        odd = spelled == -2
        text = lambda row: cells[odd[:, row].argmax() - 1][row].as_py()
        reason = lambda row: f"{text(row)!r} is no label; 0, 1 or '-' is"
        problems.mark(odd.any(axis=0), "label", reason)

        said = lambda n: "all '-'" if n == 0 else f"{n} of them filled"
        allowed = " and ".join([", ".join(types[:-1]), types[-1]]) if len(types) > 1 else types[0]
        reason = lambda row: f"{allowed} are {said(num_filled[row])}; exactly one must be 0 or 1"
        problems.mark(~known, "types", reason)

    names = [types[i - 1] if ok and i else None for i, ok in zip(which, known)]
    label = pa.array(np.where(known, label, 0), mask=~known)
    return label, pa.array(names, pa.string()), problems


def _spelling(cell: pa.Array) -> np.ndarray:
    """i64[n]: 0 and 1 as they are, -1 for "-", -2 for anything else."""
    index = pc.index_in(cell, pa.array(["-", "0", "1"])).fill_null(-1).to_numpy()
    return np.where(index < 0, -2, index - 1)
