"""Which points lie on a line of one number: by model, entries of tuples, fields that change together."""

from pathlib import Path

import pytest

from emofm_jax.reports import read
from emofm_jax.reports.sweep import lines as lines_lib

pytestmark = pytest.mark.fast


def lines(points, reference="a"):
    """{(field, name): (points, x)} of a sweep of {point: overrides}, whose runs left no config.json."""
    gone = Path("gone")
    runs = {(p, 0): read.Run(p, 0, o, gone) for p, o in points.items()}
    sweep = read.Sweep("x", "x.py", tuple(points), (0,), reference, workdir=gone, runs=runs)
    found = lines_lib.lines(sweep)
    return {
        (f, line.name): (line.points, line.x) for f, of_field in found.items() for line in of_field
    }


def test_a_line_for_each_model_that_of_the_reference_first():
    points = {
        f"{model}{drift}": {
            "model.name": model,
            "data.batch_size": 128 * len(model),
            "optim.network.learning_rate": len(model) / 1e3,
            "prepare.synthetic.drift": drift,
            "data.dir": f"data/{drift}",
        }
        for model in ("mlp4", "hmm")
        for drift in (2.0, 0.0, 1.0)
    }
    found = lines(points | {"hmm_deep": points["hmm0.0"] | {"x": 3}}, "hmm1.0")
    assert found == {
        ("prepare.synthetic.drift", "hmm"): (["hmm0.0", "hmm1.0", "hmm2.0"], [0.0, 1.0, 2.0]),
        ("prepare.synthetic.drift", "mlp4"): (["mlp40.0", "mlp41.0", "mlp42.0"], [0.0, 1.0, 2.0]),
    }
    assert list(found)[0] == ("prepare.synthetic.drift", "hmm")


def test_an_entry_of_a_tuple_or_the_sum_of_what_changes_in_it():
    rows = {f"r{n}": {"prepare.synthetic.rows": [n, 500, 500]} for n in (1000, 10, 100)}
    assert lines(rows) == {
        ("prepare.synthetic.rows[0]", ""): (["r10", "r100", "r1000"], [10.0, 100.0, 1000.0])
    }
    slots = {"a": {"group_slots": ()}} | {f"s{n}": {"group_slots": (n, 2 * n)} for n in (1, 4, 2)}
    assert lines(slots) == {("sum of group_slots", ""): (["s1", "s2", "s4"], [3.0, 6.0, 12.0])}


def test_zero_is_no_number_among_factors():
    line = lines_lib.Line("hash_rows", "", ["none", "a", "b", "c"], [0.0, 1e3, 1e4, 1e6])
    (kept,), left_out = lines_lib.without_sentinel([line])
    assert left_out and kept.points == ["a", "b", "c"] and kept.x == [1e3, 1e4, 1e6]
    drift = lines_lib.Line("drift", "", ["a", "b", "c"], [0.0, 0.5, 2.0])
    assert lines_lib.without_sentinel([drift]) == ([drift], False)
    short = line._replace(points=line.points[:3], x=line.x[:3])
    assert lines_lib.without_sentinel([short]) == ([], True)  # two values are no line
    assert [lines_lib.is_wide(x) for x in ([4, 64], [1, 5], [0, 64], [])] == [
        True,
        False,
        False,
        False,
    ]


def test_fields_that_always_change_together_are_one():
    points = {
        f"p{n}": {"prepare.slots": {s: {"rows": n} for s in ("ad", "user")}}
        for n in (10, 1000, 100)
    }
    assert lines(points) == {
        ("prepare.slots.ad.rows", ""): (["p10", "p100", "p1000"], [10.0, 100.0, 1000.0])
    }


def test_no_line_of_two_values_of_words_or_of_switches():
    assert not lines({"a": {"x": 1}, "b": {"x": 2}})
    assert not lines({"a": {"x": "u"}, "b": {"x": "v"}, "c": {"x": "w"}})
    assert not lines({"a": {"x": True}, "b": {"x": False}, "c": {}})
    assert not lines({"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 2.5}, "c": {"x": 3, "y": 1}})
    assert not lines({"a": {}, "b": {}, "c": {}})
