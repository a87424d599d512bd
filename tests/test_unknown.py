"""A slot that training knew and that is all unknown now: when it is said, what, and to whom."""

import warnings

import numpy as np
import pyarrow as pa
import pytest

from emofm_jax.data import unknown
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.vocabulary import Vocabulary
from emofm_jax.errors import UnknownValues
from emofm_jax.scoring import scorer as scorer_lib

pytestmark = pytest.mark.fast

USER = Slot("user", "g", rows=101)
FLAG = Slot("flag", "g", rows=3)
PRICE = Slot("price", "g", kind="numeric", encoding="identity", rows=2)
VOCABULARIES = {
    "user": Vocabulary(
        pa.array([str(i) for i in range(17, 117)]), pa.array(np.ones(100, np.int64))
    ),
    "flag": Vocabulary(pa.array(["yes", "no"]), pa.array([2, 1])),
}


def said(counts, examples=None, usual=(0.01, 0.0, 0.2)):
    schema = Schema("shop", (USER, FLAG, PRICE), unknown_per_slot=usual)
    counts = {"user": (100, 0), "flag": (100, 0), "price": (100, 0)} | counts
    return unknown.said(schema, counts, examples or {}, lambda: VOCABULARIES)


@pytest.mark.parametrize(
    "examples, likely",
    [
        (
            ["17.0", "18.0"],
            "here '17.0', there '17'; likely another spelling, since training has '17'",
        ),
        (["0018", "9"], "likely another spelling, since training has '18'"),
        ([" 19 ", "9"], "likely another spelling, since training has '19'"),
        (["u1", "u2"], "here 'u1', there '17'; likely another type, or other ids"),
        (["5001", "5002"], "likely other ids, or another spelling"),
        ([], "check its column, which held '17' there"),
    ],
)
def test_the_sentence_has_an_example_of_each_and_the_likely_cause(examples, likely):
    (found,) = said({"user": (100, 97)}, {"user": examples})
    start = "slot 'user': 97% of 100 values are missing or unknown, 1% were in training"
    assert found.startswith(start) and found.endswith(likely)


def test_when_there_is_nothing_to_say():
    assert said({"user": (100, 94)}, {"user": ["a", "b"]}) == []
    assert said({"user": (7, 7)}, {"user": ["a", "b"]}) == []  # a request of seven rows
    assert said({"user": (100, 100)}, {"user": ["a"]}) == []  # one new user, many items
    assert said({"user": (100, 100)}, {"user": ["a", "b"]}, usual=(0.6, 0, 0)) == []
    # Half were unknown before: twelve of them are no surprise, fourteen are.
    assert said({"user": (13, 13)}, {"user": ["a", "b"]}, usual=(0.5, 0, 0)) == []
    assert len(said({"user": (14, 14)}, {"user": ["a", "b"]}, usual=(0.5, 0, 0))) == 1


def test_a_slot_of_two_values_and_one_of_numbers():
    (flag, price) = said({"flag": (100, 100), "price": (100, 100)}, {"flag": ["Yes"]})
    assert flag.endswith(
        "here 'Yes', there 'yes'; likely another spelling, since training has 'yes'"
    )
    assert price == (
        "slot 'price': 100% of 100 values are missing or unknown, 20% were in training; check its column"
    )


def test_bags_between_another_separator():
    tags = Slot("tags", "g", "multi", rows=101, max_length=4)
    schema = Schema("shop", (tags,), unknown_per_slot=(0.01,))
    of = lambda unknowns, *examples: unknown.said(
        schema,
        {"tags": (100, unknowns)},
        {"tags": examples},
        lambda: {"tags": VOCABULARIES["user"]},
    )
    (found,) = of(40, "none, of these", "17, 18,17")
    assert found.startswith("slot 'tags': 40% of 100 values are missing or unknown")
    (found,) = of(40, "17;18")
    assert found.endswith(
        "likely another separator (config.prepare.slots), since training has '17' and '18'"
    )
    assert of(40, "17;3", "17") == [] == of(19, "17;18") == of(40)


def test_bags_that_are_all_empty():
    """Of 100 values in 50 training rows at least half of the bags had one, if a bag has 4 at most."""
    tags = Slot("tags", "g", "multi", rows=101, max_length=4)

    def of(rows, trained, slots=(tags,), counts=(0, 0)):
        schema = Schema(
            "shop", slots, unknown_per_slot=(0.01,) * len(slots), rows_per_type=(trained,)
        )
        found = dict.fromkeys((slot.name for slot in slots), counts)
        return unknown.said(schema, found, {}, lambda: {"tags": VOCABULARIES["user"]}, rows)

    (found,) = of(14, 50)
    assert found == (
        "slot 'tags': 100% of 14 values are missing or unknown, 1% were in training; "
        "check its column, which held '17' there"
    )
    assert of(13, 50) == []  # 0.5 ** 13 is more than a chance of 1 in 10,000
    assert of(300, 1000) == []  # perhaps all of the values were in 25 of 1,000 bags
    assert len(of(400, 1000)) == 1
    # As `evaluate` has them, of shares.
    assert len(of(0, 50, counts=(14, 14))) == 1 and of(0, 1000, counts=(14, 14)) == []
    more = Slot("more", "g", "multi", rows=101, max_length=4, share="tags")
    assert of(400, 50, (tags, more)) == []  # nobody knows whose values the vocabulary counts


def test_data_of_release_0_1_do_not_say_what_was_usual():
    (found,) = said({"user": (100, 100), "price": (100, 100)}, {"user": ["a", "b"]}, usual=())
    assert found.startswith("slot 'user'")


class _Encoder:
    """Encodes nothing; what it has not seen."""

    def __init__(self, schema):
        self.schema, self.vocabularies, self.unseen = schema, VOCABULARIES, {"user": ["u1", "u2"]}


@pytest.fixture
def scorer(monkeypatch):
    """A scorer whose features are what is given to `encode`."""
    schema = Schema("shop", (USER,), unknown_per_slot=(0.01,))
    monkeypatch.setattr(
        scorer_lib.features_lib, "encode", lambda _, ids: {"user": np.array(ids, np.int32)}
    )
    made = scorer_lib.Scorer(schema, {}, None, None, None, None, ())
    made.__dict__["_encoder"] = _Encoder(schema)
    return made


def test_encode_warns_once_when_there_is_enough_to_judge_by(scorer):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(20):
            scorer.encode([0, 0, 0])
            assert len(found) == (_ >= 2)  # nine values
    assert found[0].category is UnknownValues and found[0].filename == __file__
    assert "slot 'user': 100% of 9 values" in str(found[0].message)


def test_encode_watches_no_longer_what_is_well(scorer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            scorer.encode([0, 5, 0])
        assert scorer._watched == {}
        scorer.encode([0] * 100)
