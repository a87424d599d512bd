"""Values that are none, or cannot be read: null spellings at any width, NULs, texts of a class."""

import datetime
import decimal
import enum
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emofm_jax import config
from emofm_jax.data import encode, features, formats, numeric, values, vocabulary
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import int96, memory, tabular
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast
RECIPE = config.default().prepare.to_dict()
ROWS = 2**30
BAG = Slot("s", "g", "multi", "hash", ROWS, max_length=3)
WEIGHTED = Slot("s", "g", "multi", "hash", ROWS, max_length=3, weighted=True)
ONE = Slot("s", "g", "categorical", "hash", ROWS)


def encoder(slot, nulls=(), **roles):
    recipe = RECIPE | {"null_values": nulls, **roles}
    has_key = bool(roles.get("gauc_key"))
    return encode.Encoder(Schema("x", (slot,), has_gauc_key=has_key, recipe=recipe, spelling=2), {})


def read(slot, given, nulls=()):
    """The column of a shard, and the problems of rows, of raw values in memory."""
    made, problems = encoder(slot, nulls), encode.Problems()
    raw = {"s": memory.as_arrow(slot, given, 2, made.missing_of(slot))}
    column = tabular.plain_columns("x", made.schema.recipe, raw, (slot,))["s"]
    return made.slot(slot, column, problems).to_pylist(), dict(problems)


# What a null spelling is at a width, by numpy: at 16 bits -9999999.9 and 99999 are infinite.
NULLS = ("-999.9", "-9999999.9", "99999", "16777217", "0.10000000000000000001", "1e-05")
WIDTHS = ("f2", "f4", "f8")


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("null", NULLS)
def test_a_null_spelling_is_one_at_the_width_that_carries_it(null, width):
    x = np.array([float(null), 2.5], width)
    scalars, frame = list(x), pa.array(x)
    carriers = {
        "numpy": x,
        "other order": x.astype(np.dtype(width).newbyteorder(">")),
        "arrow": frame,
        "scalars": scalars,
        "objects": np.array(scalars, object),
        "mixed": [scalars[0], "2.5"],
        "text": [null, "2.5"],
    }
    if width != "f2":  # of which Arrow has no dictionaries
        carriers["dictionary"] = frame.dictionary_encode()
    number = Slot("s", "g", "numeric")
    for name, given in carriers.items():
        ids, problems = read(ONE, given, (null,))
        assert ids[0] == 0 < ids[1] and not problems, name
        numbers, problems = read(number, given, (null,))
        assert numbers == [None, 2.5] and not problems, name
        own = read(Slot("s", "g", "numeric", null_values=(null,)), given)
        assert own == (numbers, {}), name


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("null", NULLS)
def test_in_bags_and_vectors_too(null, width):
    x = np.array([float(null), 2.5], width)
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(width)))
    two = pa.array([[value, value] for value in x], kind)
    known = read(BAG, ["2.5"])[0][0]
    padded = Slot("s", "g", "multi", "hash", ROWS, max_length=3, null_values=(null,))
    carriers = (two, np.stack([x, x], 1), [[value, value] for value in x])
    for given in (*carriers, [[x[0], null], ["2.5", x[1]]]):
        assert read(padded, given) == ([[], known * 2], {})
        assert read(BAG, given, (null,)) == ([[0, 0], known * 2], {})
    vector = Slot("s", "g", "vector", length=2, null_values=(null,))
    for given in carriers:
        assert read(vector, given) == ([None, [2.5, 2.5]], {})
    assert read(BAG, [[x[0]], [x[1]]], (null,)) == ([[], known], {})


def test_weights_are_no_null_spellings():
    summed = Slot("s", "g", "multi", "hash", ROWS, 3, pooling="sum", weighted=True)
    x = np.float16(-999.9)
    assert read(summed, [[("a", x), ("b", "1")]], ("-999.9",))[0][0][0]["weight"] == -1000


def test_a_number_beyond_its_width_is_a_bad_row_where_no_spelling_means_it():
    vector = Slot("s", "g", "vector", length=2, null_values=("-99999",))
    with np.errstate(over="ignore"):
        x = np.array([[99999, 1], [-99999, 1], [-99999, -99999]], np.float16)
    found, problems = read(vector, x)
    assert list(problems) == [0, 1] and found[2] is None
    assert problems[0][1] == "'s' holds inf, which is not finite"


def test_ids_are_what_they_are_where_no_null_spelling_is_near():
    given = np.array([-1000, -999.5], np.float16)
    assert 0 not in read(ONE, given, ("-999.0",))[0]
    # "1e5" and "007" are texts, which no float is called.
    assert 0 not in read(ONE, np.array([1e5, 7]), ("1e5", "007"))[0]


@pytest.mark.parametrize("kind", [pa.decimal32(5, 2), pa.decimal64(10, 2)])
def test_short_decimals_of_arrow(kind):
    numbers = [decimal.Decimal("1.50"), None, decimal.Decimal("-1")]
    column, nulls = pa.array(numbers, kind), ("-1",)
    assert read(ONE, column, nulls) == read(ONE, ["1.5", None, None])
    lists = pa.array([[x] for x in numbers], pa.list_(kind))
    assert read(BAG, lists, nulls) == read(BAG, ["1.5", "", ""])
    assert encode.row_names(column).to_pylist() == ["1.5", None, "-1"]


class Color(str, enum.Enum):  # noqa: UP042, whose str is its value
    RED = "red"
    ONE = "1.0"


class Loud(str):
    def __str__(self):
        return "loud"


def test_a_class_of_texts_is_called_as_its_text():
    wanted, _ = read(ONE, ["red", "1", "x", "5"])
    assert read(ONE, [Color.RED, Color.ONE, Loud("x"), 5])[0] == wanted
    assert read(ONE, [Color.RED])[0] == wanted[:1]
    assert read(ONE, [bytearray(b"red"), memoryview(b"1.0"), "x", 5])[0] == wanted
    bags = read(BAG, [[Color.RED, 5], [Loud("x"), None]])[0]
    assert bags == [[wanted[0], wanted[3]], [wanted[2], 0]]


PAIRS = pa.list_(pa.struct([("id", pa.string()), ("weight", pa.float64())]))
OF_TEXT = pa.list_(pa.struct([("id", pa.string()), ("weight", pa.string())]))


@pytest.mark.parametrize(
    "given",
    [
        [[("-1", None)]],
        [[("-1", float("nan"))]],
        [[(-1, np.float32("nan"))]],
        [{"-1": None}],
        ["-1:"],
        ["-1"],
        ["-1.0: nan "],
        ['{"-1": null}'],
        pa.array([[("-1", None)]], PAIRS),
        pa.array([[("-1", float("nan"))]], PAIRS),
        pa.array([[("-1", " ")]], OF_TEXT),
        pa.array([[(None, None)]], PAIRS),
        pa.array([[None]], PAIRS),
    ],
)
def test_a_missing_id_whose_weight_is_missing_is_a_missing_bag(given):
    assert read(WEIGHTED, given, ("-1",)) == ([[]], {})


def test_weights_in_quotes():
    wanted = read(WEIGHTED, [{"a": 0.5, "b": 2}])
    for text in ('{"a": "0.5", "b": "2"}', "{'a':'0.5', 'b' : '2.0'}"):
        assert read(WEIGHTED, [text]) == wanted
    for text in ('{"a": "1" "b"}', '{"a": "1": "b"}'):
        _, problems = read(WEIGHTED, [text])
        assert problems[0][1] == f"slot 's' holds {text!r}, which is no plain list"


def test_a_weight_that_is_no_number_is_a_bad_row_beside_a_missing_id_too():
    _, problems = read(WEIGHTED, ["-1:x", "-1:2"], ("-1",))
    assert list(problems) == [0] and "'x'" in problems[0][1]


@pytest.mark.parametrize(
    "slot, given",
    [
        (ONE, ["a\0b", "a"]),
        (ONE, [b"a\0b", b"a"]),
        (ONE, pa.array(["a\0b", "a"]).dictionary_encode()),
        (ONE, np.array(["a\0b", "a"])),
        (ONE, np.array([b"a\0b", b"a"])),
        (BAG, np.array([["a\0b", "c"], ["a", "c"]])),
        (ONE, pa.array([b"a\0", b"ab"], pa.binary(2))),
        (ONE, pa.array(["a\0b", "a"], pa.large_string())),
        (ONE, pa.array(["x\0", "a\0b", "a"]).slice(1)),
        (BAG, ["a\0b^c", "a"]),
        (BAG, [["c", "a\0b"], ["a"]]),
        (BAG, [json.dumps(["c", "a\0b"]), "a"]),
        (WEIGHTED, [[("a\0b", 1)], [("a", 1)]]),
        (WEIGHTED, ["a\0b:1", "a:1"]),
        (Slot("s", "g", "numeric"), ["1\0", "1"]),
    ],
)
def test_a_nul_is_a_bad_row_whatever_carries_it(slot, given):
    _, problems = read(slot, given)
    assert list(problems) == [0] and problems[0][0] == "nul"
    with pytest.raises(UserError, match=r"data, row 0: .*'s' holds .*\\x00.*NUL byte"):
        features.encode(encoder(slot), {"s": given})


def test_a_nul_that_is_in_no_value_is_none():
    assert read(ONE, pa.array(["a\0b", "a", "b\0"]).slice(1, 1))[1] == {}
    assert read(ONE, pa.array(["a", None]))[1] == {} == read(ONE, pa.array([], pa.string()))[1]


def test_a_nul_in_parquet_is_rejected_and_counted_as_in_csv(tmp_path):
    """In slots, types, keys and days; row ids come back as they came."""
    c = config.default().prepare
    c.label, c.gauc_key, c.row_id, c.groups = "y", "key", "id", (("g", ("s",)),)
    c.slots, c.split, c.day_column = {"s": {"encoding": "hash", "rows": 9}}, "day", "day"
    rows = {name: ["a", "a", "a", "a", "a"] for name in ("s", "key", "day", "id")} | {"y": [1] * 5}
    for row, name in enumerate(("s", "key", "day", "id")):
        rows[name] = [*rows[name][:row], "b\0", *rows[name][row + 1 :]]
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    slots = recipe_lib.slots(c.to_dict())
    schema = Schema("x", slots, has_gauc_key=True, row_id="string", recipe=c.to_dict(), spelling=2)
    (chunk,) = formats.read(schema.recipe, [RawFile(tmp_path / "rows.parquet")], True)
    made = encode.Encoder(schema, {})
    table, problems, _ = made.encode(chunk.columns)
    assert {row: kind for row, (kind, _) in problems.items()} == {0: "nul", 1: "nul"}
    assert table["row_id"].to_pylist() == ["a", "b\0", "a"]
    assert 0 in made.judge(chunk.columns)  # so that no vocabulary counts it
    assert values.distinct(chunk.columns["_day"]).column().to_pylist() == ["a", "a", None, "a", "a"]


def test_a_column_that_comes_along_has_what_cannot_be_read_as_values_of_their_own(tmp_path):
    given = pa.array([b"\xff", b"a\0", b"a", b"", None])
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"s": ["x"] * 5, "label": [1] * 5, "by": given}), path)
    made = encoder(ONE, groups=(("g", ("s",)),), slots={"s": {"encoding": "hash", "rows": ROWS}})
    (chunk,) = encode.read_encoded(made.schema, tmp_path, path, labelled=True, also={"by": "by"})
    assert chunk.also["by"].to_pylist() == ["\\xff", "a\\x00", "a", None, None]


def test_release_0_1_took_a_nul_as_any_character():
    recipe = RECIPE | {"spelling": 1}
    made = encode.Encoder(Schema("x", (ONE,), recipe=recipe, spelling=1), {})
    problems = encode.Problems()
    assert made.slot(ONE, pa.array(["a\0b"]), problems)[0].as_py() > 0 and not problems


def test_padding_of_nothing_drops_no_value_that_cannot_be_read():
    slot = Slot("s", "g", "multi", "hash", ROWS, max_length=3, null_values=("",))
    assert list(read(slot, [[b"\xff", b"a"], [b"", b"a"], [b"a\0"]])[1]) == [0, 2]


def test_row_ids_of_bytes_differ_from_those_of_text():
    given = pa.array([b"\xff\x00", None, b"ff00", b"ab"])
    assert encode.row_names(given).to_pylist() == ["\\xff\\x00", None, "ff00", "ab"]


@pytest.mark.parametrize(
    "given",
    [
        pa.array([" 5", "+5", "5.0", "005", "5e0", "-999.90", "x", None]),
        pa.array([5, 5, 5, 5, 5, -999.9, np.nan, None]),
        pa.array([5, 5, 5, 5, 5, -999.9, np.nan, None], pa.float32()),
    ],
)
def test_a_key_that_is_a_slot_of_numbers_is_the_number(given):
    number = Slot("s", "g", "numeric", null_values=("-999.9",))
    keys = encoder(number, gauc_key="s")._gauc_key(given, encode.Problems()).to_pylist()
    five = encoder(number, gauc_key="s")._gauc_key(pa.array([5]), encode.Problems())[0].as_py()
    assert keys[:6] == [five] * 5 + [0] and five != 0


@pytest.mark.parametrize("places", [0, 1, 6, 17])
def test_a_decimal_and_its_text_are_one_key(places):
    """Above 2^53 too, where floats of 64 bits do not tell whole numbers apart."""
    digits = [10**17 + 1, 10**17 + 2, (2**53 + 1) * 10**places, -(2**53 + 1) * 10**places, 5, 0]
    typed = [decimal.Decimal(x).scaleb(-places) for x in digits]
    number = encoder(Slot("s", "g", "numeric"), gauc_key="s")
    keys = lambda column: number._gauc_key(column, encode.Problems()).to_pylist()
    found = keys(pa.array(typed, pa.decimal128(38, places)))
    assert found == keys(pa.array([f"{x:f}" for x in typed]))
    assert found[2:4] == keys(pa.array([2**53 + 1, -(2**53) - 1])) and found[2] != found[3]


@pytest.mark.parametrize("transform", ["none", "log1p", "standardize"])
def test_zero_is_one_number_whatever_its_sign(transform):
    number = Slot("s", "g", "numeric", transform=transform, std=2.0)
    vector = Slot("s", "g", "vector", length=1, transform=transform)
    zeros = (0, "0", "-0", "-0.0", "-0e3", " -.0", -0.0, np.float32(-0.0))
    for zero in zeros:
        typed = [pa.array([zero])] if isinstance(zero, float) else []
        for given in ([zero], *typed, *(x.dictionary_encode() for x in typed)):
            assert np.float32(read(number, given)[0]).tobytes() == bytes(4), given
        assert np.float32(read(vector, [[zero]])[0]).tobytes() == bytes(4), zero


def test_numbers_as_they_are_called():
    given = [f"{2**53 + 1}", "1e-400", "1e999", "-0.0", "+.50", "nan", "1" + "0" * 400, "u"]
    wanted = [str(2**53 + 1), "0", "inf", "0", "0.5", "nan", "1" + "0" * 400, "u"]
    assert numeric.spelled(pa.array(given)).to_pylist() == wanted


def test_a_vector_between_another_separator_is_shown():
    _, problems = read(Slot("s", "g", "vector", length=2), ["1^2", "1,2", "1^2^3"])
    said = "where a vector of 2 is expected (config.prepare.slot.length)"
    assert problems[1][1] == f"'s' has the one value '1,2' {said}"
    assert problems[2][1] == f"'s' has 3 numbers {said}"


def test_a_value_in_a_message_is_what_the_user_gave():
    small = Slot("s", "g", "categorical", "identity", 9)
    assert read(small, np.float32([0.1]))[1][0][1].startswith("slot 's' holds 0.1; its ids are")
    nanosecond = pa.array([5], pa.timestamp("ns"))
    problems = encode.Problems()
    encode.row_ids(nanosecond, "int64", problems)
    assert problems[0][1].startswith("the row id is 1970-01-01 00:00:00.000000005;")


@pytest.mark.parametrize(
    "weight, said",
    [
        (pa.array([-999.9], pa.float32()), "missing (-999.9)"),
        (pa.array([None], pa.float32()), "missing"),
        (pa.array(["-2"]), "'-2'"),
        (pa.array([-0.1], pa.float32()), "-0.1"),
    ],
)
def test_a_weight_that_cannot_be_is_named_as_it_was_given(weight, said):
    problems = encode.Problems()
    encoder(ONE, ("-999.9",))._weight(weight, problems)
    assert problems[0][1] == f"the weight is {said}; it must be a number of at least 0"


def test_bytes_that_are_no_text_among_other_values_name_their_row():
    with pytest.raises(UserError, match=r"data, row 1: 's' holds b'\\xff', no text in UTF-8"):
        features.encode(encoder(ONE), {"s": ["a", b"\xff", 5]})


def test_arrays_in_lists_and_numbers_that_arrow_has_not():
    of = lambda slot, given: features.encode(encoder(slot), {"s": given})["s"].tolist()
    masked = np.ma.array([1, 2], mask=[0, 1])
    assert of(ONE, list(masked)) == of(ONE, ["1", None]) == of(ONE, [np.array(1), None])
    assert of(BAG, [list(masked), [np.array("b")]]) == of(BAG, ["1^", "b"])
    assert of(ONE, np.array([0.5, 0.25], np.longdouble)) == of(ONE, ["0.5", "0.25"])
    record = np.array([("a", 0.5)], [("id", "U1"), ("weight", "f4")])
    alone = Slot("s", "g", "categorical", "hash", ROWS, weighted=True)
    found = features.encode(encoder(alone), {"s": record})
    assert found["s"].tolist() == of(ONE, ["a"]) and found["s:weight"].tolist() == [0.5]


def test_a_weight_in_quotes_is_no_part_of_its_id():
    for cell in ('{"a": "12:30"}', "['a': '3:4']", '{"a": 10:30}'):
        _, problems = read(WEIGHTED, [cell])
        assert [kind for kind, _ in problems.values()] == ["list"], cell


def test_a_missing_number_is_no_key_whatever_blanks_are_around_it():
    texts = [" ", "nan", " nan ", " NA", " 5 ", "x "]
    assert numeric.spelled(pa.array(texts)).to_pylist() == ["", "nan", "nan", "NA", "5", "x"]


@pytest.mark.parametrize("shape", ["one", "list", "map"])
def test_times_of_96_bits_are_what_those_of_64_bits_are(tmp_path, shape):
    """As Spark writes them: 9999-12-31 is no day of 1816, where nanoseconds wrap."""
    # pyarrow 21 writes times before 1970 wrong, and reads them as they are.
    year = 1 if int(pa.__version__.split(".")[0]) > 21 else 1971
    days = [datetime.datetime(9999, 12, 31), datetime.datetime(year, 1, 1, 2, 3, 4, 5000)]
    days += [datetime.datetime(2024, 3, 5), None]
    column = pa.array(days, pa.timestamp("us"))
    if shape == "list":
        column = pa.ListArray.from_arrays(pa.array(range(5), pa.int32()), column)
    if shape == "map":
        column = pa.array([[(1, day)] for day in days], pa.map_(pa.int8(), pa.timestamp("us")))
    found = []
    for name, options in (("96", {"use_deprecated_int96_timestamps": True}), ("64", {})):
        pq.write_table(pa.table({"s": column}), tmp_path / name, **options)
        file = tabular.open_parquet(tmp_path / name)
        file = int96.fitting(file, tmp_path / name, ["s"])
        leaves = pa.concat_arrays(map(values.spell, flat(file.read()["s"])))
        found.append(leaves.drop_null().to_pylist())
    early = f"{year:04}-01-01 02:03:04.005"
    assert found[0] == found[1] == ["9999-12-31", early, "2024-03-05"]


def flat(column):
    """The leaves of a column of times."""
    for chunk in column.chunks:
        yield chunk.items if pa.types.is_map(chunk.type) else getattr(chunk, "values", chunk)


def test_times_of_96_bits_to_the_nanosecond(tmp_path):
    fine, far = 1_700_000_000_000_000_001, pa.scalar(253402214400, pa.timestamp("s"))
    pq.write_table(
        pa.table({"s": pa.array([fine], pa.timestamp("ns")), "d": pa.array([far])}),
        tmp_path / "a",
        use_deprecated_int96_timestamps=True,
    )
    file = tabular.open_parquet(tmp_path / "a")
    assert int96.fitting(file, tmp_path / "a", ["s"]) is file
    assert file.schema_arrow.field("s").type == pa.timestamp("ns")
    far = int96.fitting(file, tmp_path / "a", ["d", "x"])
    assert far.schema_arrow.field("d").type == pa.timestamp("us")
    with pytest.raises(UserError, match="before 1677 or after 2262, and some finer than a micro"):
        int96.fitting(file, tmp_path / "a", ["s", "d"])


def test_times_of_nanoseconds_that_nobody_knows_are_examples():
    """Python has no such time: pyarrow raises where one is printed."""
    for kind in (pa.time64("ns"), pa.timestamp("ns", "UTC")):
        slot = Slot("s", "g", "categorical", "vocabulary", 2)
        column = pa.array([101, 102], kind)
        known = vocabulary.Vocabulary(pa.array(["a"]), pa.array([1]))
        made = encode.Encoder(Schema("x", (slot,), recipe=RECIPE, spelling=2), {"s": known})
        assert made.slot(slot, column, encode.Problems()).to_pylist() == [0, 0]
        assert len(made.unseen["s"]) == 2 and all("0000001" in x for x in made.unseen["s"])
