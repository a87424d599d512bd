"""Cells of several values: which end of a bag is kept, lists in brackets, ids with weights."""

import json

import numpy as np
import pyarrow as pa
import pytest

from emofm_jax.data import bags, list_text

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("max_length", [1, 3, 9])
def test_either_end_of_a_bag_is_kept(keep, max_length):
    rng = np.random.default_rng(0)
    all_bags = [
        None if n == 5 else [str(x) for x in rng.integers(0, 99, n)] for n in rng.integers(0, 8, 99)
    ]
    column, ours = pa.array(all_bags).slice(2, 90), all_bags[2:92]
    kept, lengths = bags.cut(column, max_length, keep)
    end = slice(max_length) if keep == "first" else slice(-max_length, None)
    wanted = [(bag or [])[end] for bag in ours]
    assert lengths.tolist() == [len(bag) for bag in wanted]
    assert kept.to_pylist() == [x for bag in wanted for x in bag]


def test_a_null_bag_that_hides_elements_is_empty():
    values, offsets = pa.array(["a", "b", "c", "d"]), pa.array([0, 2, 4], pa.int32())
    column = pa.ListArray.from_arrays(offsets, values, mask=pa.array([True, False]))
    for keep, wanted in (("first", ["c"]), ("last", ["d"])):
        kept, lengths = bags.cut(column, 1, keep)
        assert kept.to_pylist() == wanted and lengths.tolist() == [0, 1]
    left = bags.without(column, np.array([True, False]))
    assert left.to_pylist() == [[], ["d"]]


# What a cell of text holds; None is a cell in brackets that is no list.
CELLS = [
    ("a^b", ["a", "b"]),
    (" a ^ b c ", ["a", "b c"]),
    ("", [""]),
    ("a^^b", ["a", "", "b"]),
    ("['t1', 't5']", ["t1", "t5"]),
    ('["a","b"]', ["a", "b"]),
    (" [1, 2]\n", ["1", "2"]),
    ("[1 2\n 3]", ["1", "2", "3"]),
    ("['a' 'b']", ["a", "b"]),
    ("[1. 2.5 3.e+00 -0.]", ["1", "2.5", "3e+00", "-0"]),
    ("[ True False None]", ["True", "False", None]),
    ("['x', \0 0 \0, \0]", ["x", "\0 0 \0", "\0"]),
    ("['x', \0000\0]", ["x", "\0000\0"]),
    ("[\0 0 \0]", ["\0 0 \0"]),
    ("[]", []),
    ("[ ]", []),
    ("[a^b]", ["a", "b"]),
    ("['a^b', 'c']", ["a^b", "c"]),
    ("['a, b', \"it's\", 'c']", ["a, b", "it's", "c"]),
    ("['[a]', 'b]']", ["[a]", "b]"]),
    ("[None, null, 'None', '']", [None, None, "None", ""]),
    ("[don't, can't]", ["don't", "can't"]),
    ("[new york]", ["new york"]),
    ("[a,,b]", ["a", "", "b"]),
    ("['a',]", ["a"]),
    (r"['it\'s', 'q\"x', '\\', '\xe9']", ["it's", 'q"x', "\\", "é"]),
    (r'["\u00e9", "a\"b", "\n"]', ["é", 'a"b', "\n"]),
    (str(["a", b"a", "é".encode(), b'it\'s "b"\\n\t']), ["a", "a", "é", 'it\'s "b"\\n\t']),
    (str([b"a", b"\xff"]), None),
    (str(np.array([b"t1", b"t2"])), ["t1", "t2"]),
    ("[b'day, c]", ["b'day", "c"]),
    ("[a]^[b]", ["[a]", "[b]"]),
    ("[REC] [2]", ["[REC] [2]"]),
    ("[a", ["[a"]),
    ("[", ["["]),
    ("a]", ["a]"]),
    ("{a}", ["{a}"]),
    ("[[1, 2], [3]]", None),
    ("['a' b, 'c']", None),
    ("['a, b]", None),
]


@pytest.mark.parametrize("repeat", [1, 3])
def test_a_cell_of_text_is_split(repeat):
    cells, wanted = zip(*(CELLS + [(None, None)]) * repeat)
    lists, bad = list_text.split(pa.array(cells, pa.string()).slice(1), "^")
    assert lists.to_pylist() == list(wanted[1:])
    assert bad.tolist() == [x is None and cell is not None for cell, x in zip(cells, wanted)][1:]


@pytest.mark.parametrize("separator", [", ", ",", "^", "|", " "])
def test_lists_of_python_and_json_need_no_separator(separator):
    cells = pa.array([str(["t1", "t 5"]), '["t1", "t 5"]', "['t1','t 5']"])
    lists, bad = list_text.split(cells, separator)
    assert lists.to_pylist() == [["t1", "t 5"]] * 3 and not bad.any()


def test_random_lists_come_back_from_their_text():
    rng, signs = np.random.default_rng(1), list("ab'\",[]{}:^\\ é\n\t")
    word = lambda: "".join(rng.choice(signs, rng.integers(0, 5)))
    wanted = [[word() for _ in range(rng.integers(0, 4))] for _ in range(2000)]
    for write in (json.dumps, lambda x: json.dumps(x, ensure_ascii=False), str):
        lists, bad = list_text.split(pa.array(list(map(write, wanted))), "^")
        assert lists.to_pylist() == wanted and not bad.any()


def test_ids_and_weights():
    text = pa.array(["a:0.5", "b : 2", "c", None, ":1", "http://x:3"])
    ids, weights = bags.pairs(text)
    assert ids.to_pylist() == ["a", "b", "c", None, "", "http://x"]
    assert weights.to_pylist() == ["0.5", "2", None, None, "1", "3"]
    named = pa.array([{"item": 7, "score": 0.5}, None, {"item": None, "score": 1.0}])
    ids, weights = bags.pairs(named)
    assert ids.to_pylist() == [7, None, None] and weights.to_pylist() == [0.5, None, 1.0]


def test_pairs_of_json_over_several_lines():
    wanted = {"a": 0.5, "b:c": 2.0, "d\n": 1.5}
    cells = [json.dumps(wanted, indent=4), json.dumps(wanted).replace(": ", ":\r\n  ")]
    cells.append("{'a'\n:\n0.5, \"b:c\":\n'2.0', 'd\\n'  :\t1.5\n}")
    lists, bad = list_text.split(pa.array(cells), "^", braces=True)
    ids, weights = bags.pairs(lists.flatten())
    assert not bad.any() and ids.to_pylist() == [*map(str.strip, wanted)] * 3
    assert [*map(float, weights.to_pylist())] == [*wanted.values()] * 3
    assert list_text.split(pa.array([r"{'a': b'\xff'}"]), "^", braces=True)[1].all()


def test_braces_hold_pairs():
    cells = ['{"a": 0.5, "b:c": 2}', "{'a':1}", "{}", "{a: 1, b: 2}", "a:1^b:2", "['a:1', 'b:2']"]
    lists, bad = list_text.split(pa.array(cells), "^", braces=True)
    ids, weights = bags.pairs(lists.flatten())
    assert not bad.any() and lists.to_pylist()[2] == []
    assert ids.to_pylist() == ["a", "b:c", "a", "a", "b", "a", "b", "a", "b"]
    assert weights.to_pylist() == ["0.5", "2", "1", "1", "2", "1", "2", "1", "2"]


@pytest.mark.parametrize("names", [("id", "weight"), ("weight", "id"), ("item", "score")])
def test_a_struct_is_an_id_and_its_weight_in_this_order_unless_its_fields_are_called_so(names):
    """Alphabetical order, which some writers have, puts `id` first, and others `weight`."""
    values = {"id": ["a", "b"], "weight": [0.5, 2.0], "item": ["a", "b"], "score": [0.5, 2.0]}
    column = pa.StructArray.from_arrays([pa.array(values[name]) for name in names], list(names))
    ids, weights = bags.pairs(column)
    assert (ids.to_pylist(), weights.to_pylist()) == (["a", "b"], [0.5, 2.0])
