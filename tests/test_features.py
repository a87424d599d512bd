"""What the scorer takes: raw values become it as the shards did, and what does not fit is named."""

import csv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from xxhash import xxh3_64_intdigest

from emofm_jax import config
from emofm_jax.data import batches, encode, features, shards
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.scoring.compiled import Layout

CLICKS = Path(__file__).parents[1] / "data" / "examples" / "clicks.csv"
SCHEMA = Schema(
    "shop",
    (
        Slot("user", "user", encoding="hash", rows=11, seed=3),
        Slot("tags", "item", "multi", "identity", rows=6, max_length=3),
        Slot(
            "words", "item", "multi", "identity", rows=6, max_length=2, pooling="sum", share="tags"
        ),
        Slot("price", "item", "numeric", rows=2, transform="log1p"),
        Slot("hour", "scene", encoding="identity", rows=25),
    ),
    recipe=config.default().prepare.to_dict()
    | {"null_values": ("", "NA", "-1"), "ignore": ("note",)},
)
RAW = {
    "user": ["a", None, "NA", "b"],
    "tags": [["0", "4"], [], None, ["1", "2", "3", "4"]],
    "words": ["1^2", "", "3", "0"],
    "price": [1.5, None, "-2", 0],
    "hour": [23, 0, None, 7],
}


def encoder():
    return encode.Encoder(SCHEMA, {})


def raw(**changes):
    return {**RAW, "price": [1.5, None, -2.0, 0.0]} | changes


def test_every_kind_of_slot():
    made = features.encode(encoder(), raw())
    assert made["user"].tolist() == [
        1 + xxh3_64_intdigest(b"a", 3) % 10,
        0,
        0,
        1 + xxh3_64_intdigest(b"b", 3) % 10,
    ]
    assert made["tags"].tolist() == [[1, 5, -1], [-1, -1, -1], [-1, -1, -1], [2, 3, 4]]
    assert made["words"].tolist() == [[2, 3], [-1, -1], [4, -1], [1, -1]]
    np.testing.assert_allclose(made["price"], [np.log(2.5), np.nan, -np.log(3), 0], rtol=1e-6)
    assert made["hour"].tolist() == [24, 1, 0, 8]
    assert {name: (x.dtype.name, x.ndim) for name, x in made.items()} == {
        slot.name: ("float32" if slot.is_numeric else "int32", 1 + (slot.kind == "multi"))
        for slot in SCHEMA.slots
    }
    features.check(SCHEMA, made)


@pytest.mark.parametrize(
    "form",
    [
        "numpy",
        "table",
        "batch",
        "chunked",
        "with roles",
        "dictionary",
        "large",
        "binary",
        "null number",
    ],
)
def test_every_form_of_raw_values_gives_the_same(form):
    columns = {name: pa.array(values) for name, values in raw().items()}
    given = {
        "numpy": lambda: raw(
            user=np.array(["a", None, "NA", "b"], object), price=np.array([1.5, np.nan, -2, 0])
        ),
        "table": lambda: pa.table(columns),
        "batch": lambda: pa.RecordBatch.from_pydict(columns),
        "chunked": lambda: pa.concat_tables(
            [pa.table(columns).slice(0, 1), pa.table(columns).slice(1)]
        ),
        "with roles": lambda: raw(label=[0, 1, 0, 1], note=[None] * 4),
        "dictionary": lambda: pa.table(columns | {"user": columns["user"].dictionary_encode()}),
        "large": lambda: pa.table(columns | {"user": columns["user"].cast(pa.large_string())}),
        "binary": lambda: pa.table(columns | {"user": columns["user"].cast(pa.binary())}),
        "null number": lambda: raw(hour=[23, 0, -1, 7], price=[1.5, -1.0, -2.0, 0.0]),
    }[form]()
    for name, wanted in features.encode(encoder(), raw()).items():
        np.testing.assert_array_equal(features.encode(encoder(), given)[name], wanted, err_msg=name)


def test_a_column_may_not_stand_twice():
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["hour", "hour"])
    with pytest.raises(UserError, match="data: column 'hour' stands twice"):
        features.encode(encoder(), twice)
    with pytest.raises(UserError, match="data: a list is no mapping"):
        features.encode(encoder(), [1])
    with pytest.raises(UserError, match="features: a NoneType is no mapping"):
        features.check(SCHEMA, None)


def test_arrays_of_jax_are_read_as_numpys():
    prices = np.array([1.5, np.nan, -2.0, 0.0], np.float32)
    ours, theirs = (
        features.encode(encoder(), raw(price=x))["price"] for x in (prices, jnp.asarray(prices))
    )
    np.testing.assert_array_equal(ours, theirs)


def test_threads_change_nothing():
    many = {
        name: values * 6000 for name, values in raw().items()
    }  # above the number of cells that is worth them
    made, once = features.encode(encoder(), many), features.encode(encoder(), raw())
    for name in made:
        np.testing.assert_array_equal(made[name], np.concatenate([once[name]] * 6000))


def test_raw_rows_become_what_their_shards_hold(runs):
    schema = schema_lib.load(runs / "mine")
    of_run = encode.Encoder(schema, encode.load_vocabularies(schema, runs / "mine"))
    rows = list(csv.DictReader(CLICKS.open()))
    made = features.encode(of_run, {name: [row[name] for row in rows] for name in rows[0]})
    chunks = [chunk.table for chunk in encode.read_encoded(schema, runs / "mine", CLICKS)]
    wanted = features.from_table(pa.concat_tables(chunks), schema)
    assert len(rows) == 400 and sum(len(np.unique(x)) for x in made.values()) > 100
    for name in wanted:
        np.testing.assert_array_equal(made[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("data", ["data", "mine_data"])
def test_packed_features_are_the_batch(runs, data):
    split = shards.open_split(runs / data, "test")
    table = split.read_row_group(0, [slot.name for slot in split.schema.slots])
    rows = batches.to_rows(table, split.schema)
    ids, value, valid = features.pack(split.schema, features.from_table(table, split.schema))
    np.testing.assert_array_equal(ids, rows.ids)
    assert valid.all() and ids.dtype == np.int32
    real = ids < split.schema.num_rows  # what stands beside padding is not read
    np.testing.assert_array_equal(np.where(real, value, 0), np.where(real, rows.value, 0))


def test_made_up_features_fit_and_cover_the_edges():
    made = features.example(SCHEMA, 500)
    features.check(SCHEMA, made)
    assert features.pack(SCHEMA, made)[2].all()
    assert made["hour"].max() == 24 and made["user"][0] == 0 and np.isnan(made["price"][0])
    assert set((made["tags"] >= 0).sum(axis=1)) == {0, 1, 2, 3}


def test_unknown_shares():
    made = features.encode(encoder(), raw(tags=[["0", None], [], None, ["", "2"]]))
    counter = features.UnknownCounter(SCHEMA)
    counter.add(made)
    counter.add(features.pad(made, SCHEMA, 4))
    assert counter.shares() == {"user": 0.5, "tags": 0.5, "words": 0.0, "price": 0.25, "hour": 0.25}
    empty = features.UnknownCounter(SCHEMA)
    assert empty.shares()["tags"] == 0
    empty.add({name: array[1:3] for name, array in made.items()})
    assert empty.shares()["tags"] == 1  # bags without a value know nothing


def test_padding_is_a_row_of_nothing():
    padded = features.pad(features.encode(encoder(), raw()), SCHEMA, 6)
    features.check(SCHEMA, padded)
    assert (
        padded["tags"][5].tolist() == [-1] * 3
        and padded["user"][5] == 0
        and len(padded["price"]) == 6
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hour": None}, r"1 of the 5 slots of 'shop' are absent: 'hour'"),
        ({"houre": [1] * 4, "hour": None}, r"absent: 'hour'; did you mean 'houre' for 'hour'\?"),
        ({"other": [1] * 4, "hour": None}, r"absent: 'hour'; give an array for each"),
        ({"hour": [1, 2]}, r"slot 'user' has 4 rows, slot 'hour' 2"),
        (
            {"hour": [1, 24, 3, 99]},
            r"row 1: slot 'hour' holds .*24.*; its ids are 0 .. 23 \(2 such rows\)",
        ),
        ({"price": ["x", "1", "2", "3"]}, r"row 0: 'price' is numeric but holds 'x'"),
        ({"user": ["a", {}, "b", 2]}, r"slot 'user' cannot be read \({} is a dict\)"),
        ({"user": "abcd"}, r"slot 'user' is 'abcd'; give a list"),
        ({"user": [["a"]] * 4}, r"slot 'user' holds lists"),
        ({"tags": [[["a"]]] * 4}, r"tags"),
    ],
)
def test_raw_values_that_do_not_fit_are_named(changes, message):
    given = {name: values for name, values in raw(**changes).items() if values is not None}
    with pytest.raises(UserError, match=message):
        features.encode(encoder(), given)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hour": None}, r"are absent: 'hour'"),
        ({"other": np.zeros(4)}, r"'other' is no slot"),
        ({"hour": np.zeros(4)}, r"slot 'hour' is float64\[4\], it must be i32\[b\]"),
        ({"hour": np.zeros(4, np.int64)}, r"slot 'hour' is int64\[4\], it must be i32\[b\]"),
        ({"price": np.zeros(4, np.int32)}, r"slot 'price' is int32\[4\], it must be f32\[b\]"),
        (
            {"user": np.array(list("abcd"))},
            r"slot 'user' is <U1\[4\], it must be an array i32\[b\]; .*encode",
        ),
        ({"tags": [[1], [1, 2], [], [3]]}, r"slot 'tags' is list, it must be an array i32\[b, 3\]"),
        ({"tags": np.array([[1], [1, 2], [], [3]], object)}, r"slot 'tags' is object\[4\]"),
        (
            {"tags": np.zeros((4, 2), np.int32)},
            r"slot 'tags' has shape \(4, 2\), it must be i32\[b, 3\]: .* with -1",
        ),
        ({"hour": np.zeros((4, 1), np.int32)}, r"slot 'hour' has shape \(4, 1\)"),
        ({"hour": np.zeros(3, np.int32)}, r"slot 'user' has 4 rows, slot 'hour' 3"),
    ],
)
def test_features_that_do_not_fit_are_named(changes, message):
    given = features.encode(encoder(), raw()) | changes
    with pytest.raises(UserError, match=message):
        features.check(SCHEMA, {name: x for name, x in given.items() if x is not None})


@pytest.mark.parametrize(
    "slot, place, bad, message",
    [
        ("hour", 2, 25, r"slot 'hour', row 2: the id 25 is out of range; its ids are 0 .. 24 \(0"),
        ("user", 0, -1, r"slot 'user', row 0: the id -1"),
        ("tags", (3, 1), 6, r"slot 'tags', row 3: the id 6 .* 0 .. 5, -1 for padding"),
        ("words", (1, 0), -2, r"slot 'words', row 1: the id -2"),
        ("price", 2, np.inf, r"slot 'price', row 2: inf is not finite; a missing number is NaN"),
    ],
)
def test_an_id_out_of_range_is_named(slot, place, bad, message):
    made = features.encode(encoder(), raw())
    features.check_ids(SCHEMA, made, features.pack(SCHEMA, made)[2])
    made[slot][place] = bad
    ids, _, valid = features.pack(SCHEMA, made)
    assert ids.min() >= 0 and ids.max() <= SCHEMA.num_rows  # never another slot's row
    with pytest.raises(UserError, match=message):
        features.check_ids(SCHEMA, made, valid)


@pytest.mark.parametrize("num_rows", [0, 1, 5, 9000])
def test_a_matrix_of_features_and_back_and_what_does_not_fit_is_refused(num_rows):
    made, layout = features.example(SCHEMA, num_rows), Layout(SCHEMA)
    packed = layout.pack(made)
    assert packed.shape == (num_rows, SCHEMA.num_columns) and packed.dtype == np.int32
    again = layout.unpack(packed)
    assert again.keys() == made.keys()
    for name in made:
        np.testing.assert_array_equal(again[name], made[name])
    wrong = [
        {k: x for k, x in made.items() if k != "user"},
        made | {"more": made["user"]},
        made | {"user": np.int32(1)},
    ]
    wrong += [made | {"hour": made["hour"].astype(np.int64)}, made | {"hour": list(made["hour"])}]
    wrong += [
        made | {"hour": np.zeros(num_rows + 1, np.int32)},
        made | {"tags": made["tags"][:, :2]},
    ]
    for slot, bad in (
        ("hour", 25),
        ("hour", -1),
        ("tags", 6),
        ("words", -2),
        ("price", np.inf),
        ("price", -np.inf),
    ):
        if num_rows:
            changed = made[slot].copy()
            changed[-1] = bad
            wrong.append(made | {slot: changed})
    assert all(layout.pack(x) is None for x in wrong)
