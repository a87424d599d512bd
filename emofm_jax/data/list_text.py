"""Bags as text: cells that list several values (docs/data.md).

a^b, " a ^ b "                   a, b          between separators, without the blanks around
['a', "b", b'c'], [1, 2], [1 2]  a, b, c; 1, 2 as Python, JSON and numpy write a list
a:0.5^b:2, {"a": 0.5, "b": 2}    a:0.5, b:2    elements with weights, which `bags` takes apart
"""

import contextlib
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import values

_BROKEN = object()  # what stands for a cell in brackets that is no list
NONE = ("None", "null")  # of Python and JSON, where no quotes are around
_ENDS = {"[": "]", "{": "}"}
_PLACE = "{0}(\\d+){0}(?:\\s*(:.*))?"  # of a quoted text, and the weight behind it, in lines
_QUOTED = r"""b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""  # bytes too, as Python writes them
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|(.))", re.S)  # one byte
_SIGNS = {"n": "\n", "r": "\r", "t": "\t"}
_MARKS = ("\0", *map(chr, range(0xE000, 0xF900)))  # one that the text has not, for private use
_PLAIN = re.compile(r"(?:[-+.\deEnaNinf\s]|True|False|None)*")  # that numpy writes without commas
_POINT = re.compile(r"(-?\d+)\.((?:[eE][-+]?\d+)?)")  # "3." is how numpy writes 3.0


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
    elements = lists.flatten()
    if (trimmed := values.trimmed(elements)) is not elements:
        offsets = np.append(0, np.cumsum(pc.list_value_length(lists).fill_null(0)))
        offsets = pa.array(offsets, pa.int32())
        lists = pa.ListArray.from_arrays(offsets, trimmed, mask=text.is_null())
    bad = np.zeros(len(text), bool)
    if not values.holds(text, (b"[", b"{") if braces else (b"[",)):
        return lists, bad
    starts = r"^\s*[\[{]" if braces else r"^\s*\["
    enclosed = pc.match_substring_regex(text, starts).fill_null(False)
    if not enclosed.true_count:
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
    quoted: list[str | None] = []
    mark = next(mark for mark in _MARKS if mark not in cell)

    def put_aside(found: re.Match) -> str:
        quoted.append(_unquoted(found[0]))
        return f"{mark}{len(quoted) - 1}{mark}"

    # A quote opens behind a blank, a bracket or what stands between elements.
    opens = rf"(?<![^\s,\[{{:{re.escape(separator[-1])}])"
    bare = re.sub(opens + _QUOTED, put_aside, cell, flags=re.S)
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
    elif quoted or _PLAIN.fullmatch(bare):
        parts = bare.split() if ":" not in bare else [bare]
    else:
        parts = [bare]
    found = [_element(part.strip(), quoted, mark) for part in parts]
    return _BROKEN if any(map(_is_broken, found)) else found


def _closes_early(bare: str) -> bool:
    """Whether the bracket around a text was closed within it."""
    depth = 0
    for sign in re.findall(r"[\[\]{}]", bare):
        depth += 1 if sign in "[{" else -1
        if depth < 0:
            return True
    return False


def _element(part: str, quoted: list[str | None], mark: str) -> Any:
    """One element of a list, or `_BROKEN`; `mark` stands around the places of quoted texts."""
    if part in NONE:
        return None
    if found := re.fullmatch(_PLACE.format(mark), part, re.S):
        text, weight = quoted[int(found[1])], found[2] or ""
        if in_quotes := re.fullmatch(f":\\s*{mark}(\\d+){mark}", weight):
            own = quoted[int(in_quotes[1])]
            weight = mark if own is None else f":{own}"
        broken = mark in weight or ":" in weight[1:]  # which would count as part of the id
        return _BROKEN if broken or text is None else text + weight
    if found := _POINT.fullmatch(part):
        return found[1] + found[2]

    # "..." is what numpy writes for what it leaves out; of tuples, a part is no element.
    broken = mark in part or part == "..." or part.count("(") != part.count(")")
    return _BROKEN if broken or part[:1] in ("'", '"') else part


def _unquoted(text: str) -> str | None:
    """The text of a literal of Python or JSON; None of bytes that are no UTF-8."""
    if text[0] == "b":
        one_byte = lambda sign: chr(int(sign[1], 16)) if sign[1] else _SIGNS.get(sign[2], sign[2])
        with contextlib.suppress(UnicodeError):
            return _ESCAPED.sub(one_byte, text[2:-1]).encode("latin-1").decode()
        return None
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
