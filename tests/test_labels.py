"""How labels may be spelled, one spelling at a time and by declaration; what is refused."""

import numpy as np
import pyarrow as pa
import pytest

from emofm_jax.data import labels
from emofm_jax.data.problems import Problems
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast


def read(values, positive=()):
    """(labels, rows that could not be read)."""
    problems = Problems()
    column = values if isinstance(values, pa.Array) else pa.array(values)
    return labels.Labels(positive).read(column, problems).tolist(), sorted(problems)


@pytest.mark.parametrize(
    ("click", "none"),
    [
        ("1", "0"),
        ("True", "False"),
        ("TRUE", "FALSE"),
        ("yes", "no"),
        ("Yes", "NO"),
        ("t", "f"),
        ("Y", "N"),
        ("1", "-1"),
        ("+1", "-1"),
        ("1.0", "0.0"),
        ("1.", "-1.0"),
        (" 1 ", "0 "),
        ("1e0", "-0"),
        (1, 0),
        (1, -1),
        (1.0, 0.0),
        (True, False),
    ],
)
def test_spellings(click, none):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 50).tolist()
    values = pa.array([click if y else none for y in truth])
    assert read(values) == (truth, [])
    assert read(values.slice(7, 20)) == (truth[7:27], [])


def test_what_is_no_label():
    values = ["1", "2", None, "", "maybe", "nan", "0.5", "inf", "0", "tr", "\u0661"]
    assert read(values) == ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 9, 10])
    assert read([1.0, None, float("nan"), 0.0]) == ([1, 0, 0, 0], [1, 2])
    problems = Problems()
    labels.Labels().read(pa.array(["2", None]), problems)
    assert problems[0][1].startswith("the label is '2'; it must be 0 or 1")
    assert problems[1][1].startswith("the label is missing; it must be 0 or 1")
    assert all("config.prepare.positive" in reason for _, reason in problems.values())


@pytest.mark.parametrize(
    ("positive", "values", "expected"),
    [
        (("click", "buy"), ["view", "click", "buy", "Click", "7"], [0, 1, 1, 0, 0]),
        ((4, 5), ["1", "4.0", "5", "45"], [0, 1, 1, 0]),
        ((4, 5), [1, 4, 5, 0], [0, 1, 1, 0]),
        (("4",), [1.0, 4.0, -4.0, 4.5], [0, 1, 0, 0]),
        ((0,), ["0", "-1", "1"], [1, 0, 0]),
        ((True,), [True, False, True], [1, 0, 1]),
        ((2**53 + 1,), ["9007199254740993", "9007199254740992", "9007199254740993.0"], [1, 0, 1]),
        ((2**53 + 1,), [2**53 + 1, 2**53, 1], [1, 0, 0]),
        ((10**20 + 1,), ["100000000000000000001", "1e20", "1e999999999"], [1, 0, 0]),
        ((1e20,), ["100000000000000000000", "1E+20", "99999999999999999999"], [1, 1, 0]),
        ((np.int64(2),), [2, 1], [1, 0]),
        (("购买",), ["购买", "浏览"], [1, 0]),
    ],
)
def test_declared(positive, values, expected):
    assert read(values, positive) == (expected, [])


def test_a_missing_label_is_never_a_zero():
    assert read(["view", None, "", "click"], ("click",)) == ([0, 0, 0, 1], [1, 2])


def test_minus_one_beside_zero_is_refused_wherever_they_stand():
    message = "the labels hold both 0 and -1, .* config.prepare.positive"
    with pytest.raises(UserError, match=message):
        read(["1", "0", "-1"])
    reader = labels.Labels()
    reader.read(pa.array([1, -1]), Problems())
    with pytest.raises(UserError, match=message):
        reader.read(pa.array(["0.0", "1"]), Problems())
    assert read(["1", "0", "-1"], (1,)) == ([1, 0, 0], [])
