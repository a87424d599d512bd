"""Rows that list their features: tokens `id:slot` or `slot:id:value` -> one column a slot."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import bags
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.problems import Problems
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Slot
from emofm_jax.errors import UserError

_ONE = pa.array(["1", "1.0"])


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Tokens in the order of their rows: row_of i64[m], ids string[m], values string[m] or None."""

    row_of: np.ndarray
    ids: pa.Array
    values: pa.Array | None

    def take(self, index: np.ndarray) -> "_Tokens":
        at = pa.array(index)
        values = None if self.values is None else self.values.take(at)
        return _Tokens(self.row_of[index], self.ids.take(at), values)


def split_tokens(
    features: pa.Array, slots: tuple[Slot, ...], ignore: Collection[str], slot_first: bool = False
) -> tuple[dict[str, pa.Array], Problems]:
    """Rows of space-separated `id:slot` tokens (or `slot:id:value`) as one column a slot.

    Args:
      features: string[n].
      slots: of the schema; a bag becomes a list in the order of the row, others a value or null. If
        a value other than 1 stands beside an id of the slot, all are structs (id, value).
      ignore: slots to leave out.
      slot_first: True if a token is slot:id:value; the value is a numeric slot's number, and a
        weight of any other's id.

    Returns:
      {slot: array[n]} and the problems of rows.
    """
    problems = Problems()
    names, tokens = _split(features, slot_first, problems)
    allowed = pa.array([*(slot.name for slot in slots), *ignore], pa.string())
    said = "is in no group and not in config.prepare.ignore"
    reason = lambda i: f"slot {names[i].as_py()!r} {said}"
    problems.mark(pc.invert(pc.is_in(names, allowed)), "slot", reason, tokens.row_of)

    # The tokens of each slot, in the order of their rows.
    coded = names.dictionary_encode()
    code, known = coded.indices.to_numpy(), coded.dictionary.to_pylist()
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(len(known) + 1))
    by_name = {name: order[starts[i] : starts[i + 1]] for i, name in enumerate(known)}
    columns = {}
    for slot in slots:
        own = tokens.take(by_name.get(slot.name, np.zeros(0, np.int64)))
        columns[slot.name] = _column(slot, own, len(features), problems)
    return columns, problems


def check_partitions(recipe: Mapping, file: RawFile, slots: Sequence[Slot], labelled: bool) -> None:
    """Raises a UserError if the directories of a file say something that is no slot, or a bag."""
    several = [slot.name for slot in slots if slot.width > 1 or slot.weighted]
    for name in file.partitions:
        if name in several:
            problem = f"{name!r} is a column of the directories, but a slot of several values"
            raise UserError(f"{file.path}: {problem}; make it categorical or numeric")
        if labelled and name not in (*(slot.name for slot in slots), *recipe["ignore"]):
            remedy = "name it in config.prepare.groups or config.prepare.ignore"
            raise UserError(f"{file.path}: column {name!r} is a slot in no group; {remedy}")


def with_partitions(
    columns: Mapping[str, pa.Array], recipe: Mapping, file: RawFile
) -> dict[str, pa.Array]:
    """The columns, with the values that directories name where a row has none of its own."""
    found = dict(columns)
    for name, value in (file.above | file.partitions).items():
        if name not in found or pa.types.is_list(found[name].type):
            continue
        own, value = found[name], None if value in recipe["null_values"] else value
        of_file = pa.repeat(pa.scalar(value, pa.string()), len(own))
        if pa.types.is_struct(own.type):  # of ids with values, one of which is not 1
            of_file = bags.weighing(of_file, "1")
        found[name] = pc.if_else(own.is_valid(), own, of_file)
    return found


def with_gauc_key(
    columns: dict[str, pa.Array], recipe: Mapping, slots: Sequence[Slot]
) -> dict[str, pa.Array]:
    """The columns and, where `gauc_key` names a slot, a copy of it.

    Raises:
      UserError: it names no slot of single values.
    """
    if not recipe["gauc_key"]:
        return columns
    slot = recipe_lib.key_slot(recipe, slots)
    if slot is None:
        problem = f"{recipe['gauc_key']!r} must be a slot with one value"
        raise UserError(f"config.prepare.gauc_key: {problem}; name another")
    return columns | {"gauc_key": columns[slot.name]}


def _split(features: pa.Array, slot_first: bool, problems: Problems) -> tuple[pa.Array, _Tokens]:
    """The tokens of string[n] that are whole, after the slot of each."""
    lists = pc.split_pattern(features, " ")
    row_of = np.repeat(np.arange(len(features)), pc.list_value_length(lists).to_numpy())
    tokens = lists.flatten()
    parts = pc.split_pattern(tokens, ":")
    whole = pc.list_value_length(parts).to_numpy() == (3 if slot_first else 2)
    form = "slot:id:value" if slot_first else "feature_id:slot_id"
    reason = lambda i: f"{tokens[i].as_py()!r} is not {form}"
    problems.mark(~whole & np.asarray(pc.not_equal(tokens, "")), "token", reason, row_of)

    parts, row_of = parts.filter(pa.array(whole)), row_of[whole]
    first, second = pc.list_element(parts, 0), pc.list_element(parts, 1)
    if slot_first:
        return first, _Tokens(row_of, second, pc.list_element(parts, 2))
    return second, _Tokens(row_of, first, None)


def _all_one(values: pa.Array) -> bool:
    return pc.all(pc.is_in(values, _ONE), min_count=0).as_py()


def _column(slot: Slot, tokens: _Tokens, num_rows: int, problems: Problems) -> pa.Array:
    """The column of one slot from its tokens."""
    rows, values = tokens.row_of, tokens.ids
    if tokens.values is not None and slot.kind == "numeric":
        values = tokens.values
    elif tokens.values is not None and not _all_one(tokens.values):
        values = pa.StructArray.from_arrays([values, tokens.values], ["id", "weight"])

    if slot.is_bag:
        offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=num_rows)))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    repeats = f"slot {slot.name!r} repeats, but is not of kind multi"
    problems.mark(rows[1:] == rows[:-1], "repeated slot", lambda _: repeats, rows)
    where = np.full(num_rows, -1)
    where[rows] = np.arange(len(rows))
    return values.take(pa.array(where, mask=where < 0))
