"""Bags as text: cells that list several values (docs/data.md).

a^b, " a ^ b "                   a, b          between separators, without the blanks around
['a', "b"], [1, 2], [1 2]        a, b; 1, 2    as Python, JSON and numpy write a list
a:0.5^b:2, {"a": 0.5, "b": 2}    a:0.5, b:2    elements with weights, which `bags` takes apart
"""

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BROKEN = "\0"  # what stands for a cell in brackets that is no list; no text has a NUL
_NONE = ("None", "null")  # of Python and JSON, where no quotes are around
_ENDS = {"[": "]", "{": "}"}
_PLACE = re.compile(r"\0(\d+)\0(?:\s*(:.*))?")  # of a quoted text, and the weight behind it
_NUMBERS = re.compile(r"[-+.\deEnaNinf\s]*")


def split(text: pa.Array, separator: str, braces: bool = False) -> tuple[pa.Array, np.ndarray]:
    """Text cells as lists.

    Args:
      text: string[n].
      separator: between the elements of a cell without brackets.
      braces: whether a cell in braces is a list of pairs.

    Returns:
      list<string>[n], and bool[n]: which cells stand in brackets and are no list (null here).
    """
    lists = pc.split_pattern(text, separator)
    offsets = np.append(0, np.cumsum(pc.list_value_length(lists).fill_null(0)))
    trimmed = pc.utf8_trim_whitespace(lists.flatten())
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), trimmed, mask=text.is_null())
    starts = r"^\s*[\[{]" if braces else r"^\s*\["
    enclosed = pc.match_substring_regex(text, starts).fill_null(False)
    bad = np.zeros(len(text), bool)
    if not pc.any(enclosed).as_py():
        return lists, bad

    coded = text.filter(enclosed).dictionary_encode()
    found = [_parse(cell, separator) for cell in coded.dictionary.to_pylist()]
    is_list, broken = (np.array([kind(x) for x in found]) for kind in (_is_list, _is_broken))
    own = pa.array([x if _is_list(x) else None for x in found], pa.list_(pa.string()))

    # The others, and behind them the distinct ones in brackets: each row takes its own.
    which, where = coded.indices.to_numpy(), np.flatnonzero(np.asarray(enclosed))
    bad[where] = broken[which]
    taken = is_list | broken
    index = np.arange(len(text))
    index[where[taken[which]]] = len(text) + which[taken[which]]
    return pa.concat_arrays([lists, own]).take(pa.array(index)), bad


def _is_list(found: Any) -> bool:
    return isinstance(found, list)


def _is_broken(found: Any) -> bool:
    return found is _BROKEN


def _parse(cell: str, separator: str) -> Any:
    """The elements of a cell in brackets; None where it is no such cell, or `_BROKEN`."""
    cell = cell.strip()
    quoted: list[str] = []

    def put_aside(found: re.Match) -> str:
        quoted.append(_unquoted(found[0]))
        return f"\0{len(quoted) - 1}\0"

    # A quote opens behind a blank, a bracket or what stands between elements.
    opens = rf"(?<![^\s,\[{{:{re.escape(separator[-1])}])"
    bare = re.sub(
        opens + r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", put_aside, cell, flags=re.S
    )
    if bare[-1] != _ENDS[bare[0]] or len(bare) < 2:
        return None
    bare = bare[1:-1].strip()
    if _closes_early(bare):
        return None  # as in "[REC] [2]"
    if re.search(r"[\[\]{}]", bare):
        return _BROKEN

    if not bare:
        return []
    if separator.strip() and separator in bare:
        parts = bare.split(separator)
    elif "," in bare:
        parts = bare.removesuffix(",").split(",")
    elif quoted or _NUMBERS.fullmatch(bare):
        parts = bare.split() if ":" not in bare else [bare]
    else:
        parts = [bare]
    found = [_element(part.strip(), quoted) for part in parts]
    return _BROKEN if _BROKEN in found else found


def _closes_early(bare: str) -> bool:
    """Whether the bracket around a text was closed within it."""
    depth = 0
    for sign in re.findall(r"[\[\]{}]", bare):
        depth += 1 if sign in "[{" else -1
        if depth < 0:
            return True
    return False


def _element(part: str, quoted: list[str]) -> str | None:
    """One element of a list, or `_BROKEN`."""
    if part in _NONE:
        return None
    if found := _PLACE.fullmatch(part):
        return quoted[int(found[1])] + (found[2] or "")
    # "..." is what numpy writes for what it leaves out; of tuples, a part is no element.
    broken = "\0" in part or part == "..." or part.count("(") != part.count(")")
    return _BROKEN if broken or part[:1] in ("'", '"') else part


def _unquoted(text: str) -> str:
    """The text of a literal of Python or JSON."""
    body = text[1:-1]
    if "\\" not in body:
        return body
    as_json = {"\\'": "'", '"': '\\"', "\\x": "\\u00"}
    body = re.sub(r'\\.|"', lambda sign: as_json.get(sign[0], sign[0]), body)
    try:
        found = json.loads(f'"{body}"', strict=False)
        found.encode()  # half a pair of surrogates is no text
        return found
    except (json.JSONDecodeError, UnicodeEncodeError):
        return text[1:-1]
