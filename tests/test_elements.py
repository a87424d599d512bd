"""Raw bags, weighted ids and vectors, in every carrier -> what a shard and a scorer hold."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emofm_jax import config
from emofm_jax.data import encode, features, formats, preparation, raw_files, recipe, shards
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast


def encoder(**options):
    """Of one slot `x` of ids 0 .. 97 and a recipe that declares it."""
    of_recipe = config.default().prepare.to_dict()
    of_recipe |= {"label": "label", "groups": (("g", ("x",)),)}
    if options.get("kind") != "vector":
        options = {"encoding": "identity", "rows": 99} | options
    of_recipe["slots"] = {"x": options}
    schema = Schema("test", recipe.slots(of_recipe), spelling=2, recipe=of_recipe)
    return encode.Encoder(schema, {})


def encoded(of, values):
    """Values in memory -> {name: nested lists}, without what fills bags up."""
    made = features.encode(of, {"x": values})
    ids = made["x"]
    if ids.dtype == np.float32:
        return [None if np.isnan(row).all() else row.tolist() for row in ids]
    if "x:weight" in made:
        pairs = zip(np.reshape(ids, (len(ids), -1)), np.reshape(made["x:weight"], (len(ids), -1)))
        return [[(int(i), float(w)) for i, w in zip(*row) if i >= 0] for row in pairs]
    return [[i for i in row if i >= 0] for row in ids.tolist()]


def of_file(of, table, path):
    """The column of a shard from rows of a Parquet file, the reasons of bad rows, and notes."""
    pq.write_table(table.append_column("label", pa.array([1] * len(table))), path)
    (chunk,) = formats.read(of.schema.recipe, [RawFile(path)])
    made, problems, notes = of.encode(chunk.columns)
    assert made.schema.equals(shards.arrow_schema(of.schema))
    return made["x"].to_pylist(), {row: reason for row, (_, reason) in problems.items()}, notes


# Bags of the ids 0 .. 97, of which each carrier holds all.
BAGS = [[7, 3, 7], [], None, [1], [5, 4, 3, 2, 1]]
IDS = [[8, 4, 8], [], [], [2], [6, 5, 4, 3, 2]]


def carriers_of_bags():
    kind, texts = pa.int64(), [None if bag is None else list(map(str, bag)) for bag in BAGS]
    join = lambda form: [None if bag is None else form(bag) for bag in BAGS]
    return {
        "lists": BAGS,
        "tuples": [None if bag is None else tuple(bag) for bag in BAGS],
        "texts": texts,
        "arrays": [None if bag is None else np.array(bag, np.int32) for bag in BAGS],
        "separated": ["7^3^7", None, None, "1", "5^4^3^2^1"],
        "blanks": [" 7 ^ 3^7", "[ ]", None, "1 ", "5^ 4^3^2 ^1"],
        "json": join(json.dumps),
        "python": join(lambda bag: str(list(map(str, bag)))),
        "numpy": join(lambda bag: str(np.array(bag))),
        "list": pa.array(BAGS, pa.list_(kind)),
        "large list": pa.array(BAGS, pa.large_list(kind)),
        "list view": pa.array(BAGS, pa.list_view(kind)),
        "large list view": pa.array(BAGS, pa.large_list_view(pa.float64())),
        "list of text views": pa.array(texts, pa.list_(pa.string_view())),
        "view of text views": pa.array(texts, pa.list_view(pa.string_view())),
        "bytes views": pa.array(texts, pa.large_list(pa.binary_view())),
        "dictionary inside": pa.array(texts, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "a slice": pa.array([[9], *BAGS], pa.large_list_view(kind)).slice(1),
        "chunks": pa.chunked_array([BAGS[:2], BAGS[2:]], pa.list_(kind)),
    }


@pytest.mark.parametrize("carrier", carriers_of_bags())
@pytest.mark.parametrize("keep", ["first", "last"])
def test_bags_of_every_carrier(carrier, keep):
    of = encoder(kind="multi", max_length=3, keep=keep)
    end = slice(3) if keep == "first" else slice(-3, None)
    assert encoded(of, carriers_of_bags()[carrier]) == [ids[end] for ids in IDS]


def test_lists_of_a_fixed_size_and_of_views(tmp_path):
    fixed = pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2))
    assert encoded(encoder(kind="multi"), fixed) == [[2, 3], [], [4, 0]]
    assert encoded(encoder(kind="multi"), fixed.slice(1)) == [[], [4, 0]]
    # Views may lie in any order, share elements, and hide some behind a null.
    view = pa.ListViewArray.from_arrays(
        pa.array([2, 0, 1], pa.int32()),
        pa.array([2, 3, 2], pa.int32()),
        pa.array([10, 11, 12, 13]),
        mask=pa.array([False, False, True]),
    )
    assert encoded(encoder(kind="multi"), view) == [[13, 14], [11, 12, 13], []]


PAIRS = [[(7, 0.5), (3, 2.0)], [], None, [(1, 1.0), (7, 0.25), (9, 0.0)]]
WEIGHTED = [[(8, 0.5), (4, 2.0)], [], [], [(2, 1.0), (8, 0.25), (10, 0.0)]]


def carriers_of_pairs():
    named = lambda i, w: {"item": i, "score": w}
    structs = [None if bag is None else [named(*pair) for pair in bag] for bag in PAIRS]
    kind = pa.struct([("item", pa.int32()), ("score", pa.float64())])
    of_text = pa.map_(pa.string(), pa.float32())
    as_text = [None if bag is None else [(str(i), w) for i, w in bag] for bag in PAIRS]
    return {
        "text": ["7:0.5^3:2", None, None, "1:1.0^7:.25 ^9:0"],
        "blanks": [" 7 : 0.5 ^ 3:2", "[]", None, "1:1.0^7:.25^ 9: 0"],
        "list of texts": [["7:0.5", "3:2"], [], None, ["1:1", "7:0.25", "9:0"]],
        "python": ["['7:0.5', '3:2']", "[]", None, '["1:1", "7:0.25", "9:0"]'],
        "json": [None if bag is None else json.dumps({str(i): w for i, w in bag}) for bag in PAIRS],
        "dict as text": [None if bag is None else str(dict(bag)) for bag in PAIRS],
        "dicts": [None if bag is None else dict(bag) for bag in PAIRS],
        "pairs": PAIRS,
        "named": structs,
        "map": pa.array(PAIRS, pa.map_(pa.int64(), pa.float64())),
        "map of texts": pa.array(as_text, of_text),
        "a slice of a map": pa.array([[("9", 9.0)], *as_text], of_text).slice(1),
        "structs": pa.array(structs, pa.list_(kind)),
        "large list of structs": pa.array(structs, pa.large_list(kind)),
        "view of structs": pa.array(structs, pa.list_view(kind)),
        "text views": pa.array(["7:0.5^3:2", None, None, "1:1^7:.25^9:0"], pa.string_view()),
        "structs of text views": pa.array(
            [bag and [(str(i), w) for i, w in bag] for bag in PAIRS],
            pa.list_(pa.struct([("item", pa.string_view()), ("score", pa.float32())])),
        ),
        "bytes": [bag if bag is None else [b"%d:%g" % pair for pair in bag] for bag in PAIRS],
    }


@pytest.mark.parametrize("carrier", carriers_of_pairs())
def test_weighted_bags_of_every_carrier(carrier, tmp_path):
    of = encoder(kind="multi", weighted=True)
    given = carriers_of_pairs()[carrier]
    assert encoded(of, given) == WEIGHTED
    if isinstance(given, pa.Array) and "view" not in carrier:  # which not every Parquet holds
        found, bad, _ = of_file(of, pa.table({"x": given}), tmp_path / "x.parquet")
        assert [[(e["id"], e["weight"]) for e in row] for row in found] == WEIGHTED and not bad


@pytest.mark.parametrize(
    "given",
    [
        ["7:0.5", None, "3:-2"],
        [b"7:0.5", None, b"3:-2"],
        [b"7:0.5", None, (b"3", -2)],
        [(7, 0.5), None, (3, -2)],
        pa.array([{"i": 7, "w": 0.5}, None, {"i": 3, "w": -2.0}]),
    ],
)
def test_one_id_with_a_weight(given):
    assert encoded(encoder(weighted=True), given) == [[(8, 0.5)], [(0, 1.0)], [(4, -2.0)]]


def test_weights_that_are_none(tmp_path):
    of = encoder(kind="multi", weighted=True)
    cells = ["7:0.5", "7", "7:x", "7:-1", "7:nan", "7:1e31", "7:1^", ":2", "7:-0", "7:inf", "98:1"]
    found, bad, _ = of_file(of, pa.table({"x": pa.array(cells)}), tmp_path / "x.parquet")
    assert [[(e["id"], e["weight"]) for e in row] for row in found] == [
        [(8, 0.5)],
        [(8, 1.0), (0, 0.0)],  # a missing element weighs nothing
        [(0, 2.0)],
        [(8, 0.0)],
    ]
    said = "between 0 and 1e+30, as pooling is mean"
    assert bad == {
        1: "'x' holds '7' without a weight, as in 'id:0.5'",
        2: "'x' has a weight that is no number: 'x'",
        3: f"'x' has the weight '-1'; it must be {said}",
        4: "'x' holds '7' without a weight, as in 'id:0.5'",
        5: f"'x' has the weight '1e31'; it must be {said}",
        9: "'x' has a weight that is no number: 'inf'",
        10: "slot 'x' holds '98'; its ids are 0 .. 97",
    }
    of_sum = encoder(kind="multi", weighted=True, pooling="sum")
    assert encoded(of_sum, ["7:-1^3:2"]) == [[(8, -1.0), (4, 2.0)]]
    with pytest.raises(UserError, match=r"data, row 1: 'x' holds '3' without a weight, as in"):
        features.encode(of, {"x": ["7:1", "3"]})
    with pytest.raises(UserError, match="has 3 fields"):
        features.encode(of, {"x": pa.array([[{"a": 1, "b": 2, "c": 3}]])})
    with pytest.raises(UserError, match=r"7.* is no pair of an id and its weight"):
        features.encode(of, {"x": [[(7, 1, 2)]]})


def test_pairs_where_no_weights_are_declared():
    pairs = pa.array([[{"i": 7, "w": 0.5}]])
    with pytest.raises(UserError, match="holds pairs of id and weight, .* set weighted=True"):
        features.encode(encoder(kind="multi"), {"x": pairs})
    with pytest.raises(UserError, match="holds one pair a row but is multi; make it categorical"):
        features.encode(encoder(kind="multi", weighted=True), {"x": pairs.flatten()})


@pytest.mark.parametrize("as_text", [False, True])
def test_padding_of_one_slot_is_left_out_before_a_bag_is_cut(as_text):
    given = [[0, 7, 0, 3, 0, 1], [0, 0], None, [5, None]]
    if as_text:
        given = ["0^7^0^3^0.0^1", "0^0", None, "5^"]
    for end, wanted in (("first", [8, 4]), ("last", [4, 2])):
        of = encoder(kind="multi", max_length=2, null_values=("0",), keep=end)
        assert encoded(of, given) == [wanted, [], [], [6, 0]]
    floats = pa.array([[0.0, 7.0], [-0.0]])
    assert encoded(encoder(kind="multi", null_values=("0",)), floats) == [[8], []]
    # "" leaves out what is missing, too.
    assert encoded(encoder(kind="multi", null_values=("", "0")), given)[3] == [6]
    pairs = encoder(kind="multi", weighted=True, null_values=["0"])
    assert encoded(pairs, [[(0, 1.0), (7, 2.0)]]) == [[(8, 2.0)]]


def test_missing_values_of_one_slot():
    of = encoder(null_values=("-1", "none"))
    for given in (["3", "-1", "none", "-1.0"], ["3", "-1", "none", None]):
        assert features.encode(of, {"x": given})["x"].tolist() == [4, 0, 0, 0]
    given = np.array([3, -1, -1.0, np.nan])
    assert features.encode(of, {"x": given})["x"].tolist() == [4, 0, 0, 0]
    number = encoder(kind="numeric", encoding="vocabulary", null_values=("-1", "none"))
    for given in (["3", "-1", "none", " -1.00"], np.array([3, -1, np.nan, -1])):
        found = features.encode(number, {"x": given})["x"]
        np.testing.assert_array_equal(found, np.float32([3, np.nan, np.nan, np.nan]))


VECTORS = [[1.5, -2.0, 0.25], None, [0.0, 0.0, 0.0]]


def carriers_of_vectors():
    floats, fixed = pa.list_(pa.float32()), pa.list_(pa.float64(), 3)
    return {
        "lists": VECTORS,
        "matrix": np.array([[1.5, -2, 0.25], [np.nan] * 3, [0, 0, 0]], np.float32),
        "arrays": [None if x is None else np.array(x) for x in VECTORS],
        "json": ["[1.5, -2, 2.5e-1]", None, "[0,0,0]"],
        "numpy": ["[ 1.5  -2.\n 0.25]", None, "[0. 0. 0.]"],
        "separated": ["1.5^-2.0^0.25", None, " 0^ 0 ^0.0"],
        "list": pa.array(VECTORS, floats),
        "float16": pa.array([x and np.float16(x) for x in VECTORS], pa.list_(pa.float16())),
        "fixed size": pa.array(VECTORS, fixed),
        "a slice": pa.array([[9, 9, 9], *VECTORS], fixed).slice(1),
        "view": pa.array(VECTORS, pa.list_view(pa.float32())),
        "missing numbers": pa.array([VECTORS[0], [None] * 3, VECTORS[2]], floats),
    }


@pytest.mark.parametrize("carrier", carriers_of_vectors())
def test_vectors_of_every_carrier(carrier, tmp_path):
    of, given = encoder(kind="vector", length=3), carriers_of_vectors()[carrier]
    assert encoded(of, given) == VECTORS
    if isinstance(given, pa.Array) and carrier != "view":
        wanted = VECTORS
        if pa.types.is_fixed_size_list(given.type) and int(pa.__version__.split(".")[0]) <= 21:
            given, wanted = given.drop_null(), [x for x in VECTORS if x]  # Arrow cannot write it
        found, bad, _ = of_file(of, pa.table({"x": given}), tmp_path / "x.parquet")
        assert found == wanted and not bad


def test_vectors_that_are_none(tmp_path):
    of = encoder(kind="vector", length=2)
    cells = ["1^2", "1", "1^2^3", "1^x", "1^", "[]", "1^1e40", "^", "[[1, 2]]", "3^4"]
    found, bad, _ = of_file(of, pa.table({"x": pa.array(cells)}), tmp_path / "x.parquet")
    assert found == [[1, 2], None, [3, 4]]
    said = "where a vector of 2 is expected (config.prepare.slot.length)"
    wrong = f"numbers {said}"
    assert bad == {
        1: f"'x' has the one value '1' {said}",
        2: f"'x' has 3 {wrong}",
        3: "'x' is a vector but holds 'x'",
        4: "number 2 of the vector 'x' is missing",
        5: f"'x' has 0 {wrong}",
        6: "'x' holds '1e40', which is too large for 32 bits",
        8: "slot 'x' holds '[[1, 2]]', which is no plain list",
    }
    padded = encoder(kind="vector", length=2, null_values=("0",))
    assert encoded(padded, [[0.0, 0.0], [0.0, 1.0]]) == [None, [0, 1]]
    with pytest.raises(UserError, match="'x' holds single numbers but is a vector; make it num"):
        features.encode(of, {"x": [1.0, 2.0]})


def test_lists_of_numbers_where_one_is_expected(tmp_path):
    said = "holds lists but is numeric; make it kind='vector', length=3; a bag of values is kind="
    of = encoder(kind="numeric", encoding="vocabulary")
    with pytest.raises(UserError, match="has one value a row"):
        features.encode(of, {"x": VECTORS})
    table = pa.table({"x": pa.array(VECTORS, pa.list_(pa.float32()))})
    with pytest.raises(UserError, match=said):
        of_file(of, table, tmp_path / "x.parquet")


def test_how_many_bags_were_cut_is_noted(tmp_path):
    of = encoder(kind="multi", max_length=2, keep="last", null_values=("0",))
    bags = pa.array([[1, 2, 3], [1, 2], None, [0, 1, 2, 0], [9] * 7])
    _, _, notes = of_file(of, pa.table({"x": bags}), tmp_path / "x.parquet")
    assert notes == {("x", "cut"): (2, "one of 3 of which the last 2 are kept")}


LIBSVM = b"1 user:a:1 item:p:0.5 tags:x:2 tags:y:1 price:0:3.5\n0 user:b:1 tags:x:0.25\n"


def libsvm(tmp_path, text, **changes):
    """(prepared directory, report) of rows of one training file."""
    (tmp_path / "train.txt").write_bytes(text)
    c = config.default()
    c.prepare.update({"format": "libsvm", "source": str(tmp_path), "label": "label"})
    c.prepare.files = {"train": "train.txt", "valid": changes.pop("valid", ""), "test": ""}
    c.prepare.groups = (("g", ("user", "item", "tags", "price")),)
    c.prepare.slots = {"tags": {"kind": "multi"}, "price": {"kind": "numeric"}}
    c.prepare.update(changes)
    c.data.dir = str(tmp_path / "out")
    return tmp_path / "out", preparation.prepare(c, progress=False)


@pytest.mark.parametrize("encoding", ["vocabulary", "hash"])
def test_values_of_libsvm_weigh_their_vectors(tmp_path, encoding):
    slot = config.default().prepare.slot.to_dict() | {"encoding": encoding, "rows": 50}
    out, report = libsvm(tmp_path, LIBSVM, slot=slot)
    schema = schema_lib.load(out)
    assert [slot.weighted for slot in schema.slots] == [False, True, True, False]
    rows = pq.read_table(out / "train" / "part-00000.parquet").to_pylist()
    assert [row["item"]["weight"] for row in rows] == [0.5, 1.0]
    assert rows[1]["item"]["id"] == 0
    assert [[e["weight"] for e in row["tags"]] for row in rows] == [[2, 1], [0.25]]
    assert rows[0]["tags"][0]["id"] == rows[1]["tags"][0]["id"] != rows[0]["tags"][1]["id"]
    tags = report.slots["tags"]
    assert (tags.min, tags.mean, tags.max) == (0.25, pytest.approx(3.25 / 3), 2.0)


def test_a_block_of_ones_in_a_slot_with_weights(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1.txt").write_bytes(b"1 user:a:1 item:p:1 tags:x:1\n")
    (tmp_path / "new" / "2.txt").write_bytes(b"1 user:a:1 item:p:0.5 tags:x:2 tags:y:1\n")
    out, _ = libsvm(tmp_path, LIBSVM)
    found = list(encode.read_encoded(schema_lib.load(out), out, tmp_path / "new", labelled=True))
    rows = [row for chunk in found for row in chunk.table.to_pylist()]
    assert [row["item"]["weight"] for row in rows] == [1, 0.5]
    assert [[e["weight"] for e in row["tags"]] for row in rows] == [[1], [2, 1]]


def test_what_cannot_be_read_is_no_file_that_cannot_be_written(tmp_path, monkeypatch):
    def fails(*_):
        raise pa.ArrowNotImplementedError("no kernel")

    monkeypatch.setattr(encode.Encoder, "slot", fails)
    with pytest.raises(UserError, match=r"train.txt: it cannot be read \(no kernel\); give plain"):
        libsvm(tmp_path, LIBSVM)
    with pytest.raises(UserError, match=r"data: slot 'x': it cannot be read \(no kernel\)"):
        features.encode(encoder(), {"x": [1]})


def test_values_that_are_1_are_no_weights(tmp_path):
    text = LIBSVM.replace(b":0.5", b":1").replace(b":2", b":1.0").replace(b":0.25", b":1.00")
    (tmp_path / "valid.txt").write_bytes(b"1 user:a:0.5 item:p:1\n0 user:a:1 item:p:1.000\n")
    out, report = libsvm(tmp_path, text, valid="valid.txt", max_rejected=1)
    assert not any(slot.weighted for slot in schema_lib.load(out).slots)
    assert report.splits["valid"].rejected == {"value": 1}
    reason = pq.read_table(out / "valid" / "rejected.parquet")["reason"][0].as_py()
    said = "where all are 1 in the training rows; weighted=True makes it a weight"
    assert reason == f"slot 'user' has the value '0.5', {said}"


def test_a_gauc_key_is_the_id_not_its_weight(tmp_path):
    text = LIBSVM.replace(b"user:b:1", b"user:a:0.5")
    out, _ = libsvm(tmp_path, text, gauc_key="user")
    keys = pq.read_table(out / "train" / "part-00000.parquet")["gauc_key"].to_pylist()
    assert keys[0] == keys[1] != 0


def test_a_gauc_key_of_directories_is_their_whole_value(tmp_path):
    # Of the first block some rows have an hour of their own, and a weight of it.
    for hour, name, text in (
        ("10%3A00", "0.txt", "1 x:1:1\n1 hour:9:2\n"),
        ("10%3A00", "1.txt", "1 x:1:1\n"),
        ("10%3A30", "0.txt", "1 x:1:1\n"),
    ):
        (tmp_path / f"hour={hour}").mkdir(exist_ok=True)
        (tmp_path / f"hour={hour}" / name).write_text(text)
    of = encoder(encoding="hash", rows=2**20)
    of_recipe = of.schema.recipe | {"format": "libsvm", "groups": (("g", ("hour", "x")),)}
    options = of.schema.recipe["slots"]["x"]
    of_recipe |= {"gauc_key": "hour", "slots": {"hour": options, "x": options}}
    # That its ids have weights is what preparation learns of the rows.
    slots = tuple(dataclasses.replace(slot, weighted=True) for slot in recipe.slots(of_recipe))
    schema = Schema("test", slots, recipe=of_recipe, spelling=2, has_gauc_key=True)
    of, files = encode.Encoder(schema, {}), raw_files.find(tmp_path)
    rows = [r for c in formats.read(of_recipe, files) for r in of.encode(c.columns)[0].to_pylist()]
    pairs = {(row["hour"]["id"], row["gauc_key"]) for row in rows}
    assert len(rows) == 4 and len(pairs) == len({key for _, key in pairs}) == 3


@pytest.mark.parametrize(
    "options, said",
    [
        ({"kind": "vector"}, "config.prepare.slot.length: slot 'x' has 0; say how many numbers"),
        ({"kind": "vector", "length": 2, "share": "y"}, "slot 'x' is vector; only slots of ids"),
        (
            {"kind": "vector", "length": 2, "transform": "log1p"},
            "slot 'x' has 'log1p', but is a vector",
        ),
        ({"kind": "numeric", "weighted": True}, "slot 'x' has True, but is numeric; only ids"),
        ({"keep": "end"}, "slot.keep: slot 'x' has 'end'; choose one of first, last"),
        ({"null_values": (0,)}, "slot 'x' has 0, which is no text; write it between quotes"),
        ({"null_values": "0"}, "slots.x.null_values: '0' must be of type tuple"),
    ],
)
def test_options_that_do_not_fit(options, said):
    with pytest.raises(UserError, match=said):
        encoder(**options)
