"""Values to ids, against loops written from docs/data.md; rows to predict that keep their places."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from emofm_jax import config
from emofm_jax.data import encode, shards, vocabulary
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.problems import Problems
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast


def one(slot, values, vocabularies=None, labelled=True):
    """(encoded column, bad rows) of a schema with one slot."""
    schema = Schema("test", (slot,))
    columns = {slot.name: values, "label": pa.array(["1"] * len(values))}
    table, problems, _ = encode.Encoder(schema, vocabularies or {}).encode(columns, labelled)
    assert table.schema.equals(shards.arrow_schema(schema))
    return table[slot.name].to_pylist(), in_order(problems)


def in_order(problems):
    """(row, kind, reason) of the bad rows."""
    return [(row, *problems[row]) for row in sorted(problems)]


@pytest.mark.parametrize("seed", [0, 3])
def test_hash(seed):
    values = ["a", None, "ü", "a", "", "12"]
    slot = Slot("s", "g", encoding="hash", rows=11, seed=seed)
    ids, bad = one(slot, pa.array(values))
    expected = [1 + xxhash.xxh3_64_intdigest(v.encode(), seed) % 10 if v else 0 for v in values]
    assert ids == expected and not bad
    # Numbers of a Parquet file are their digits, and a dictionary is its values.
    assert one(slot, pa.array([12, None]))[0] == [ids[5], 0]
    assert one(slot, pa.array(values).dictionary_encode())[0] == expected


def test_hash_covers_every_row_but_the_first():
    ids, _ = one(Slot("s", "g", encoding="hash", rows=5), pa.array([str(i) for i in range(200)]))
    assert set(ids) == {1, 2, 3, 4}


def test_vocabulary_and_a_slot_that_shares_it():
    words = vocabulary.Vocabulary(pa.array(["b", "a"]), pa.array([2, 1]))
    slots = (Slot("x", "g", rows=3), Slot("y", "g", rows=3, kind="multi", max_length=2, share="x"))
    columns = {
        "x": pa.array(["a", "b", "new", None]),
        "y": pa.array([["b", "a", "a"], [], None, ["new", None]]),
        "label": pa.array([1, 0, 1, 0]),
    }
    table, bad, _ = encode.Encoder(Schema("test", slots), {"x": words}).encode(columns)
    assert not bad
    assert table["x"].to_pylist() == [2, 1, 0, 0]
    assert table["y"].to_pylist() == [[1, 2], [], [], [0, 0]]
    assert table["label"].to_pylist() == [1, 0, 1, 0]


def test_identity_and_the_ends_of_its_range():
    slot = Slot("s", "g", encoding="identity", rows=5)
    ids, bad = one(slot, pa.array(["0", "3", "4", "-1", "x", None, "003", "99999999999999999999"]))
    assert ids == [1, 4, 0, 4]
    assert [(row, kind) for row, kind, _ in bad] == [(i, "id out of range") for i in (2, 3, 4, 7)]
    assert "slot 's' holds '4'; its ids are 0 .. 3" in bad[0][2]
    bag = Slot("s", "g", kind="multi", max_length=2, encoding="identity", rows=5)
    ids, bad = one(bag, pa.array([["1"], None, ["0", "9"], ["2", "3", "9"]]))
    assert ids == [[2], [], [3, 4]] and [row for row, _, _ in bad] == [
        2
    ]  # the third of the last one is cut


@pytest.mark.parametrize("sliced", [False, True])
def test_bags_keep_the_first_elements(sliced):
    rng = np.random.default_rng(0)
    bags = [
        None if n == 7 else [str(v) for v in rng.integers(0, 50, n)]
        for n in rng.integers(0, 8, 200)
    ]
    values = pa.array(bags)
    if sliced:
        values, bags = values.slice(3, 150), bags[3:153]
    ids, _ = one(Slot("s", "g", kind="multi", max_length=4, encoding="identity", rows=51), values)
    assert ids == [[int(v) + 1 for v in bag[:4]] if bag else [] for bag in bags]


NUMBERS = [0.0, 2.0, 2.5, -0.5, 1e6, None, 1.5, 20.0]


def test_numbers_and_their_transforms():
    text = pa.array([None if x is None else f" {x} " for x in NUMBERS])
    for values in (text, pa.array(NUMBERS)):
        plain, bad = one(Slot("s", "g", kind="numeric", rows=2), values)
        assert plain == NUMBERS and not bad
        logs, _ = one(Slot("s", "g", kind="numeric", rows=2, transform="log1p"), values)
        scaled, _ = one(
            Slot("s", "g", kind="numeric", rows=2, transform="standardize", mean=3.0, std=2.0),
            values,
        )
        for x, log, z in zip(NUMBERS, logs, scaled):
            if x is None:
                assert log is None and z is None
            else:
                assert log == pytest.approx(math.copysign(math.log(1 + abs(x)), x), rel=1e-6)
                assert z == pytest.approx((x - 3) / 2, rel=1e-6)


def test_bucket():
    ids, _ = one(Slot("s", "g", kind="numeric", rows=12, transform="bucket"), pa.array(NUMBERS))
    expected = []
    for x in NUMBERS:
        if x is None:
            expected.append(0)
        elif x < 0:
            expected.append(11)
        else:
            expected.append(min(10, 2 + math.floor(math.log(x) ** 2)) if x > 2 else 1)
    assert ids == expected


def test_text_that_is_no_number():
    ids, bad = one(
        Slot("s", "g", kind="numeric", rows=2),
        pa.array(["1", "x", "+2.5e1", "1_0", "inf", "nan", "1e39", ".5", "-3."]),
    )
    assert ids == [1.0, 25.0, None, 0.5, -3.0]  # NaN is missing, however it is written
    assert [(row, kind) for row, kind, _ in bad] == [(i, "number") for i in (1, 3, 4, 6)]
    assert "holds 'x'" in bad[0][2]
    # The same cells are bad whatever else stands in the chunk.
    few = one(Slot("s", "g", kind="numeric", rows=2), pa.array(["nan", "1", "inf", "True"]))
    assert few[0] == [None, 1.0, 1.0] and [row for row, _, _ in few[1]] == [2]
    assert one(Slot("s", "g", kind="numeric", rows=2), pa.array([np.inf, np.nan, 1.0]))[0] == [
        None,
        1.0,
    ]


def test_label_type_weight_key_and_row_id():
    schema = Schema(
        "test",
        (Slot("s", "g", encoding="identity", rows=9),),
        types=("click", "buy"),
        has_weight=True,
        has_gauc_key=True,
        row_id="string",
    )
    columns = {
        "s": pa.array(["1"] * 8),
        "label": pa.array(["1", "0.0", "2", None, "x", "1", "1", "0"]),
        "ftype": pa.array(["click", "buy", "buy", "buy", "buy", "gift", None, "-"]),
        "weight": pa.array(["1", "0.5", "1", "1", "1", "1", "-1", "3"]),
        "gauc_key": pa.array(["u", "v", "u", "u", "u", "u", "u", None]),
        "row_id": pa.array([f"r{i}" for i in range(8)]),
    }
    encoder = encode.Encoder(schema, {})
    table, problems, _ = encoder.encode(columns)
    bad = in_order(problems)
    assert [(row, kind) for row, kind, _ in bad] == [
        (2, "label"),
        (3, "label"),
        (4, "label"),
        (5, "type"),
        (6, "weight"),
    ]
    assert "'gift' is not one of config.prepare.types (click, buy)" in bad[3][2]
    assert table["label"].to_pylist() == [1, 0, 0]
    assert table["ftype"].to_pylist() == [0, 1, None]
    assert table["weight"].to_pylist() == [1.0, 0.5, 3.0]
    assert table["row_id"].to_pylist() == ["r0", "r1", "r7"]
    signed = [int(np.uint64(xxhash.xxh3_64_intdigest(v, 0)).astype(np.int64)) for v in (b"u", b"v")]
    assert table["gauc_key"].to_pylist() == [*signed, 0]
    rows, none, _ = encoder.encode(columns, labelled=False)
    assert not none and rows.num_rows == 8
    rows, none, _ = encoder.encode({"s": columns["s"], "row_id": columns["row_id"]}, labelled=False)
    assert not none
    assert rows["label"].to_pylist() == [0] * 8 and rows["ftype"].null_count == 8


def csv_schema(**roles):
    """A schema with two slots, and its recipe."""
    c = config.default()
    c.prepare.groups = (("all", ("user", "age")),)
    with c.unlocked():
        for role, column in roles.items():
            c.prepare[role] = column
    slots = (Slot("user", "all", rows=3), Slot("age", "all", encoding="identity", rows=101))
    return Schema("test", slots, recipe=c.prepare.to_dict(), row_id="string" if roles else "")


def test_rows_to_predict_keep_their_places(tmp_path):
    words = vocabulary.Vocabulary(pa.array(["u1", "u2"]), pa.array([1, 1]))
    words.save(tmp_path, "user")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "1.csv").write_bytes(b"id,user,age\na,u2,7\nb,u1\nc,u1,200\nd,\xff,1\ne,new,9\n")
    (raw / "2.csv").write_bytes(b"age,id,user\n0,f,u1\n")
    first, second = encode.read_encoded(csv_schema(row_id="id"), tmp_path, raw)
    assert first.kept.tolist() == [True, False, False, False, True]
    assert first.table["user"].to_pylist() == [2, 0] and first.table["age"].to_pylist() == [8, 10]
    assert first.row_id.to_pylist() == ["a", None, "c", None, "e"]
    assert first.reasons[0] is None and first.reasons[4] is None
    assert first.reasons[1].endswith("1.csv:3: 2 columns where 3 are expected")
    assert "1.csv:4: slot 'age' holds '200'" in first.reasons[2]
    assert "1.csv:5: invalid UTF-8" in first.reasons[3]
    assert second.row_id.to_pylist() == ["f"] and second.table["user"].to_pylist() == [1]
    # Without a row id column it is the position, which goes on from file to file.
    ids = [chunk.row_id.to_pylist() for chunk in encode.read_encoded(csv_schema(), tmp_path, raw)]
    assert ids == [[0, 1, 2, 3, 4], [5]]


def test_a_row_id_of_any_spelling_comes_back_and_costs_no_score(tmp_path):
    vocabulary.Vocabulary(pa.array(["u"]), pa.array([1])).save(tmp_path, "user")
    (tmp_path / "a.csv").write_bytes(
        b"id,user,age\n7,u,1\n-12,u,1\nseven,u,1\n,u,1\n%d,u,1\n" % 10**19
    )
    schema = dataclasses.replace(csv_schema(row_id="id"), row_id="int64")
    (chunk,) = encode.read_encoded(schema, tmp_path, tmp_path / "a.csv")
    assert chunk.row_id.to_pylist() == ["7", "-12", "seven", None, str(10**19)]
    assert chunk.kept.all() and chunk.reasons == [None] * 5

    problems = Problems()
    column = pa.array(["7", "-12", "seven", None, "9" * 18, str(2**63 - 1), str(2**63)])
    found = encode.row_ids(column, "int64", problems)
    assert found.to_pylist() == [7, -12, None, None, 10**18 - 1, 2**63 - 1, None]
    assert problems[2][1] == (
        "the row id is 'seven'; it must be an integer of 64 bits, as in the first file"
    )
    assert sorted(problems) == [2, 6]


def test_rows_to_predict_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="vocabulary of slot 'user' is missing"):
        next(encode.read_encoded(csv_schema(), tmp_path, tmp_path))
    vocabulary.Vocabulary(pa.array(["u"]), pa.array([1])).save(tmp_path, "user")
    with pytest.raises(UserError, match="no such file or directory"):
        next(encode.read_encoded(csv_schema(), tmp_path, tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_bytes(b"user\nu\n")
    with pytest.raises(UserError, match="no column 'age'"):
        next(encode.read_encoded(csv_schema(), tmp_path, tmp_path / "a.csv"))


def test_a_schema_that_names_no_format_has_no_raw_rows(tmp_path):
    schema = Schema("x", (Slot("s", "g", rows=9),))
    with pytest.raises(UserError, match="rows.csv: such data has no raw rows; name a directory"):
        next(encode.read_encoded(schema, tmp_path, tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    "field, value",
    [
        ("groups", math.nan),
        ("row_id", None),
        ("header", 1),
        ("slots", {"s": "\x1b[31m"}),
        ("slot", {"separator": {}}),
    ],
)
def test_a_recipe_that_raw_rows_cannot_be_read_by_is_no_schema(tmp_path, field, value):
    recipe = config.default().prepare.to_dict() | {"format": "tabular"}
    assert not recipe_lib.check_whole(recipe, "x")
    recipe = {k: v for k, v in recipe.items() if k != field} | ({field: value} if value else {})
    schema = Schema("x", (Slot("s", "g", rows=9),), recipe=recipe)
    with pytest.raises(UserError, match=rf"schema.json: not a schema \(.*recipe.{field}.*\); prep"):
        next(encode.read_encoded(schema, tmp_path, tmp_path / "rows.csv"))
