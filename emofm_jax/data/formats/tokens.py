"""Rows that list their features: tokens `id:slot` or `slot:id:value` -> one column a slot."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data.formats.lines import Bad, Chunk
from emofm_jax.data.schema import Slot
from emofm_jax.errors import UserError


def split_tokens(
    features: pa.Array, slots: tuple[Slot, ...], ignore, slot_first: bool = False
) -> tuple[dict[str, pa.Array], dict[int, tuple[str, str]]]:
    """Rows of space-separated `id:slot` tokens (or `slot:id:value`) as one column a slot.

    Args:
      features: string[n].
      slots: of the schema; a bag becomes a list, in the order of the row, anything else one value or null.
      ignore: slots to leave out.
      slot_first: whether a token is slot:id:value, whose value must be 1, or is the number of a numeric slot.

    Returns:
      {slot: array[n]} and {row: (kind, reason)} of bad rows.
    """
    problems: dict[int, tuple[str, str]] = {}
    num_rows = len(features)
    lists = pc.split_pattern(features, " ")
    row_of = np.repeat(np.arange(num_rows), pc.list_value_length(lists).to_numpy())
    tokens = lists.flatten()
    parts = pc.split_pattern(tokens, ":")
    whole = pc.list_value_length(parts).to_numpy() == (3 if slot_first else 2)
    empty = pc.equal(tokens, "").to_numpy(zero_copy_only=False)
    form = "slot:id:value" if slot_first else "feature_id:slot_id"
    for i in np.flatnonzero(~whole & ~empty).tolist():
        problems.setdefault(int(row_of[i]), ("token", f"{tokens[i].as_py()!r} is not {form}"))
    keep = pa.array(whole & ~empty)
    parts, row_of = parts.filter(keep), row_of[whole & ~empty]
    ids = pc.list_element(parts, 1 if slot_first else 0)
    names = pc.list_element(parts, 0 if slot_first else 1).dictionary_encode()
    code = names.indices.to_numpy()
    known = names.dictionary.to_pylist()
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(len(known) + 1))
    by_name = {name: order[starts[i] : starts[i + 1]] for i, name in enumerate(known)}
    declared = {slot.name for slot in slots}
    for name in set(known) - declared - set(ignore):
        for row in row_of[by_name[name]].tolist():
            problems.setdefault(
                row, ("slot", f"slot {name!r} is in no group and not in config.prepare.ignore")
            )
    result = {}
    for slot in slots:
        at = by_name.get(slot.name, np.zeros(0, np.int64))
        values, rows = ids.take(pa.array(at)), row_of[at]
        if slot_first:
            numbers = pc.list_element(parts.take(pa.array(at)), 2)
            if slot.kind == "numeric":
                values = numbers
            else:
                for i in np.flatnonzero(
                    ~pc.is_in(numbers, pa.array(["1", "1.0"])).to_numpy(zero_copy_only=False)
                ):
                    what = f"slot {slot.name!r} is not numeric but has the value {numbers[int(i)].as_py()!r}, not 1"
                    problems.setdefault(int(rows[i]), ("value", what))
        if slot.kind == "multi":
            offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=num_rows)))
            result[slot.name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
            continue
        for row in np.unique(rows[1:][rows[1:] == rows[:-1]]).tolist():
            problems.setdefault(
                row, ("repeated slot", f"slot {slot.name!r} repeats, but is not of kind multi")
            )
        where = np.full(num_rows, -1)
        where[rows] = np.arange(len(rows))
        result[slot.name] = values.take(pa.array(where, mask=where < 0))
    return result, problems


def without(chunk: Chunk, problems: dict[int, tuple[str, str]], gauc_key: str) -> Chunk:
    """The chunk without its bad rows, which join `bad`; the GAUC key, where asked for, is a copy of its slot."""
    result = dict(chunk.columns)
    if gauc_key:
        if gauc_key not in result or pa.types.is_list(result[gauc_key].type):
            raise UserError(
                f"config.prepare.gauc_key: {gauc_key!r} must be a slot with one value; name another"
            )
        result["gauc_key"] = result[gauc_key]
    if not problems:
        return Chunk(chunk.file, chunk.lines, result, chunk.bad)
    good = np.ones(len(chunk.lines), bool)
    good[list(problems)] = False
    bad = [Bad(int(chunk.lines[row]), *problems[row]) for row in problems]
    keep = pa.array(good)
    kept = {name: column.filter(keep) for name, column in result.items()}
    return Chunk(
        chunk.file, chunk.lines[good], kept, tuple(sorted([*chunk.bad, *bad], key=lambda b: b.line))
    )
