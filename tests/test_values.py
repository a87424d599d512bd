"""One value, one text, whatever carries it: the table of docs/data.md, by property."""

import datetime
import decimal
import json
import random
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emofm_jax import config
from emofm_jax.data import bags, encode, features, formats, values
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import memory, tabular
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast
N = 2_000
RANDOM = random.Random(0)
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def whole(bits):
    return [
        RANDOM.randint(-(2**bits) + 1, 2**bits - 1) >> RANDOM.randint(0, bits) for _ in range(N)
    ]


def wholes():
    """(the texts, {carrier: column}): integers, of which each carrier holds all exactly."""
    given = whole(23)
    text = [str(x) for x in given]
    yield (
        text,
        {
            **{f"int{bits}": pa.array(given, getattr(pa, f"int{bits}")()) for bits in (32, 64)},
            "float32": pa.array(np.array(given, np.float32)),
            "float64": pa.array(np.array(given, np.float64)),
            "decimal32": pa.array(list(map(decimal.Decimal, given)), pa.decimal32(9, 1)),
            "decimal64": pa.array(list(map(decimal.Decimal, given)), pa.decimal64(9, 1)),
            "decimal": pa.array([decimal.Decimal(x) for x in given], pa.decimal128(20, 4)),
            "decimal256": pa.array([decimal.Decimal(x) for x in given], pa.decimal256(60, 0)),
            **{
                f"text {end!r}": pa.array([f"{x}{end}" for x in given])
                for end in ("", ".0", ".000")
            },
            "C": pa.array([f"{float(x):.7e}" for x in given]),
            "Java": pa.array(
                [f"{float(x):.7e}".replace("e+0", "E").replace("e", "E") for x in given]
            ),
            "large text": pa.array(text, pa.large_string()),
            "text view": pa.array(text, pa.string_view()),
            "bytes": pa.array([x.encode() for x in text]),
            "dictionary": pa.array(given).dictionary_encode(),
            "runs": pa.compute.run_end_encode(pa.array(given)),
            "list": memory.as_arrow(SLOT, given),
            "list of floats": memory.as_arrow(SLOT, [float(x) for x in given]),
            "mixed list": memory.as_arrow(
                SLOT, [x if i % 2 else f"{x}.0" for i, x in enumerate(given)]
            ),
            "numpy": memory.as_arrow(SLOT, np.array(given, np.int32)),
            "objects": memory.as_arrow(SLOT, np.array([np.int64(x) for x in given], object)),
        },
    )
    given = [abs(x) % 256 for x in whole(30)]
    yield (
        [str(x) for x in given],
        {
            **{
                f"uint{bits}": pa.array(given, getattr(pa, f"uint{bits}")())
                for bits in (8, 16, 32, 64)
            },
            "float16": pa.array(np.array(given, np.float16)),
        },
    )
    given = [abs(x) for x in whole(64)]
    yield (
        [str(x) for x in given],
        {
            "uint64": pa.array(given, pa.uint64()),
            "decimal": pa.array([decimal.Decimal(x) for x in given], pa.decimal128(38, 0)),
            "text": pa.array([str(x) for x in given]),
            "list": memory.as_arrow(SLOT, given),
        },
    )


def fractions():
    """Numbers of up to 6 significant digits, which floats of 32 bits tell apart."""
    digits = [RANDOM.randint(1, 10**6 - 1) for _ in range(N)]
    places = [RANDOM.randint(1, 6) for _ in range(N)]
    exact = [decimal.Decimal(d).scaleb(-p) for d, p in zip(digits, places)]
    text = []
    for d, p in zip(digits, places):  # spelled by hand
        before, after = divmod(d, 10**p)
        text.append(f"{before}.{after:0{p}d}".rstrip("0").rstrip("."))
    yield (
        text,
        {
            "float32": pa.array(np.array(exact, np.float32)),
            "float64": pa.array([float(x) for x in exact]),
            "decimal": pa.array(exact, pa.decimal128(20, 6)),
            "text": pa.array([f"{x:f}" for x in exact]),
            "text of six places": pa.array([f"{x:.6f}" for x in exact]),
            "repr": pa.array([repr(float(x)) for x in exact]),
            "list of decimals": memory.as_arrow(SLOT, exact),
            "objects": memory.as_arrow(SLOT, np.array([np.float32(x) for x in exact], object)),
        },
    )


def truths():
    given = [RANDOM.random() < 0.5 for _ in range(N)]
    names = lambda yes, no: pa.array([yes if x else no for x in given])
    yield (
        ["1" if x else "0" for x in given],
        {
            "bool": pa.array(given),
            "int8": pa.array(given).cast(pa.int8()),
            **{
                yes: names(yes, no)
                for yes, no in (("True", "False"), ("true", "false"), ("TRUE", "FALSE"))
            },
            "list": memory.as_arrow(SLOT, given),
            "numpy": memory.as_arrow(SLOT, np.array(given)),
            "mixed": memory.as_arrow(
                SLOT, [np.bool_(x) if i % 2 else int(x) for i, x in enumerate(given)]
            ),
        },
    )


def days():
    given = [
        datetime.date(1900, 1, 1) + datetime.timedelta(RANDOM.randrange(100_000)) for _ in range(N)
    ]
    text = [x.isoformat() for x in given]
    yield (
        text,
        {
            "date32": pa.array(given),
            "date64": pa.array(given, pa.date64()),
            **{u: pa.array(given).cast(pa.timestamp("s")).cast(pa.timestamp(u)) for u in UNITS},
            "text": pa.array(text),
            "pandas": pa.array([f"{x} 00:00:00" for x in text]),
            "polars": pa.array([f"{x}T00:00:00.000000" for x in text]),
            "list": memory.as_arrow(SLOT, given),
            "numpy": memory.as_arrow(SLOT, np.array(given, "datetime64[D]")),
        },
    )


def instants():
    ticks = [
        RANDOM.randrange(4 * 10**15) * 1000 + RANDOM.choice((0, 250_000_000)) for _ in range(N)
    ]
    ticks = [x // 10**6 * 10**6 for x in ticks]  # whole milliseconds, in ns
    epoch = datetime.datetime(1970, 1, 1)
    time = [epoch + datetime.timedelta(microseconds=x // 1000) for x in ticks]
    text = []
    for t in time:
        said = f"{t:%Y-%m-%d %H:%M:%S}" + (
            f".{t.microsecond:06d}".rstrip("0") if t.microsecond else ""
        )
        text.append(said.removesuffix(" 00:00:00"))
    zone = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))
    aware = [t.replace(tzinfo=datetime.UTC).astimezone(zone) for t in time]
    yield (
        text,
        {
            **{
                u: pa.array([x // (10**9 // UNITS[u]) for x in ticks], pa.timestamp(u))
                for u in ("ms", "us", "ns")
            },
            "zone": pa.array(ticks, pa.timestamp("ns", tz="Asia/Kolkata")),
            "text": pa.array([t.isoformat(" ") for t in time]),
            "T": pa.array([t.isoformat() + "Z" for t in time]),
            "offset": pa.array([t.isoformat() for t in aware]),
            "list": memory.as_arrow(SLOT, time),
            "list with a zone": memory.as_arrow(SLOT, aware),
            "numpy": memory.as_arrow(SLOT, np.array(time, "datetime64[us]")),
        },
    )


SLOT = Slot("s", "g", encoding="hash", rows=2**30)
KINDS = {"whole": wholes, "fraction": fractions, "truth": truths, "day": days, "instant": instants}


@pytest.mark.parametrize("kind", KINDS)
def test_every_carrier_gives_the_same_text_and_the_same_ids(kind):
    for text, carriers in KINDS[kind]():
        ids = lambda column: encode.Encoder(SCHEMA, {}).slot(SLOT, column, {}).to_pylist()
        expected = ids(pa.array(text))
        for carrier, column in carriers.items():
            found = values.distinct(column)
            spelled = found.column().to_pylist()
            differ = [(a, b) for a, b in zip(text, spelled, strict=True) if a != b]
            assert not differ, (carrier, len(differ), differ[:3])
            assert ids(column) == expected, carrier


SCHEMA = Schema("test", (SLOT,), spelling=values.SPELLING)


@pytest.mark.parametrize("role", ["slot", "bag", "ftype", "gauc_key", "_day"])
def test_csv_and_parquet_and_memory_agree_in_every_role(tmp_path, role):
    """The same rows as csv (written by pyarrow) and as Parquet, and the values of each alone."""
    typed = {
        "int": pa.array([3, 17, None, 3], pa.int16()),
        "float": pa.array([3.0, 17.0, None, 0.25]),
        "bool": pa.array([True, False, None, True]),
        "date": pa.array([datetime.date(2024, 3, 5), None, datetime.date(2024, 3, 6), None]),
        "instant": pa.array(
            [1709632800, None, 1709596800, 1], pa.timestamp("s", tz="Europe/Berlin")
        ),
        "decimal": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("3.00"), None]),
        "dictionary": pa.array(["a", "17.0", None, "b"]).dictionary_encode(),
    }
    for name, column in typed.items():
        table = pa.table({"label": [1, 0, 1, 0], "x": column})
        pq.write_table(table, tmp_path / "x.parquet")
        plain = (
            table.set_column(1, "x", column.dictionary_decode()) if name == "dictionary" else table
        )
        pyarrow.csv.write_csv(plain, tmp_path / "x.csv")
        found = [ids(role, tmp_path / file) for file in ("x.csv", "x.parquet")]
        if role in ("slot", "bag"):
            kind = dict(kind="multi", max_length=3) if role == "bag" else {}
            slot = Slot("x", "g", encoding="hash", rows=2**30, **kind)
            given = [[x] if x is not None else None for x in column.to_pylist()]
            raw = memory.as_arrow(slot, given if role == "bag" else column.to_pylist())
            found.append(encoder(slot).slot(slot, raw, encode.Problems()).to_pylist())
        assert all(other == found[0] for other in found), (name, found)
        unknown = (None, []) if role == "ftype" else (None, 0, [], [0])
        present = [x for x in found[0] if x not in unknown]
        assert len(set(map(json.dumps, present))) == len(set(column.drop_null().to_pylist()))


def encoder(slot, **roles):
    recipe = config.default().prepare.to_dict() | {"null_values": ["", "-9"]}
    return encode.Encoder(Schema("t", (slot,), recipe=recipe, spelling=2, **roles), {})


def ids(role, path):
    """What the rows of a file become in a role."""
    recipe = config.default().prepare.to_dict()
    in_slot = role in ("slot", "bag")
    recipe["groups"] = (("g", ("x",)),)
    recipe["slots"] = {
        "x": {"encoding": "hash", "rows": 2**30} | ({"kind": "multi"} if role == "bag" else {})
    }
    if role == "_day":
        recipe |= {"split": "day", "day_column": "x"}
    elif not in_slot:
        recipe[role] = "x"
    (chunk,) = formats.read(recipe, [RawFile(path)])
    column = chunk.columns["x" if in_slot else role]
    if role == "_day":
        found = values.distinct(column, values.missing(recipe["null_values"]))
        return found.column().to_pylist()
    if in_slot:
        slot = Slot(
            "x", "g", "multi" if role == "bag" else "categorical", "hash", 2**30, max_length=3
        )
        return encoder(slot).slot(slot, column, encode.Problems()).to_pylist()
    types = ("3", "17", "0.25", "1", "0", "2024-03-05", "2024-03-06", "2024-03-05 10:00:00")
    types += ("2024-03-05 00:00", "1970-01-01 00:00:01", "1.5", "a", "b")
    made = encoder(SLOT, types=types, has_gauc_key=True)
    problems = encode.Problems()
    found = (made._ftype if role == "ftype" else made._gauc_key)(column, problems).to_pylist()
    assert not problems
    return found


@pytest.mark.parametrize(
    "column",
    [
        pa.array([None, "", "nan", "NaN", "NaT", "-9", "-9.0"]),
        pa.array([None, float("nan"), -9.0]),
        pa.array([-9, None], pa.int64()),
        pa.array([None, decimal.Decimal("-9.00")]),
        pa.array([None], pa.timestamp("ns")),
        pa.nulls(2),
        memory.as_arrow(SLOT, [None, float("nan"), np.datetime64("NaT"), "", -9]),
        memory.as_arrow(SLOT, np.array([np.datetime64("NaT")])),
    ],
)
def test_missing_is_missing_in_every_carrier(column):
    found = values.distinct(column, values.missing(("", "-9")))
    assert found.text.null_count == len(found.text)
    assert not any(encoder(SLOT).slot(SLOT, column, {}).to_pylist())


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=12) | st.from_regex(values._RESPELLED))
def test_spelling_twice_is_spelling_once(text):
    once = values.spell(pa.array([text])).to_pylist()
    assert values.spell(pa.array(once, pa.string())).to_pylist() == once
    assert values.spell(pa.array([text]), respell=False).to_pylist() == [text or None]


STAY = [
    "007",
    "1e5",
    "12E4",
    "+1",
    "1.2.0",
    ".5",
    "5.",
    "1_0",
    "t",
    "TrUe",
    " 17.0",
    "2024-13-05 00:00:00",
]
STAY += ["2024-03-05x", "0x10", "1.0e5", "--1.0", "٣.٠", "10:00", "inf", "00.0", "2024-3-5 1:00"]


@pytest.mark.parametrize("text", STAY)
def test_other_text_stays_as_it_is(text):
    assert values.spell(pa.array([text])).to_pylist() == [text] == [values.one(text)]


@settings(deadline=None, derandomize=True)
@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(-290, 270))
def test_a_decimal_and_its_text_with_an_exponent_are_one_value(number, exponent):
    """As far as the text can tell: one of 16 or 17 digits may be of a float, and is taken as that."""
    number = number.scaleb(exponent - number.adjusted())
    digits, text = number.as_tuple().digits, str(number)
    if "E" in text and not 15 < len(digits) < 18:
        assert values.one(text) == values.one(number)
        assert values.spell(pa.array([text])).to_pylist() == [values.one(number)]


@settings(deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(14, 16))
def test_a_float_and_its_text_with_an_exponent_are_one_value(number, digits):
    number = float(f"{number:.{digits}e}")
    for text in (f"{number:.{digits}e}", f"{number:.{digits}E}", repr(number)):
        assert "e" not in text.lower() or values.one(text) == values.one(number), text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.2345678901234567890E+25", "12345678901234567890000000"),
        ("1.2345678901234567E+25", "12345678901234567000000000"),
        ("1E+25", "1" + "0" * 25),
        ("1.5E+7", "15000000"),
        ("1E-7", "0.0000001"),
        ("1.5e-7", "0.00000015"),
        ("1e+21", "1" + "0" * 21),
        ("1.0000000000000001e-05", "0.00001"),  # as C writes a float with 17 digits
    ],
)
def test_numbers_with_an_exponent(text, wanted):
    assert values.one(text) == wanted == values.spell(pa.array([text]))[0].as_py()


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text("arul-.", max_size=3)), st.integers(0, 2))
def test_pieces_of_text_are_found_anywhere(texts, start):
    signs = (b"ru", b"al", b".")
    wanted = any(s in "".join(texts[start:]).encode() for s in signs)
    assert values.holds(pa.array(texts, pa.string()).slice(start), signs) == wanted


def test_release_0_1_spelled_otherwise():
    spell = lambda column: values.spell(column, spelling=1).to_pylist()
    assert spell(pa.array(["17.0", "True", "nan", ""])) == ["17.0", "True", "nan", None]
    assert spell(pa.array([True])) == ["1"] and spell(pa.array([17.0, 0.5])) == ["17", "0.5"]
    assert Schema("t", (SLOT,)).fingerprint() != SCHEMA.fingerprint()


def test_text_that_is_respelled_is_counted_and_may_be_kept_apart():
    column, notes = pa.array(["4.1", "4.10", "4.10", "17.0", "u"]), encode.Notes()
    found = encoder(SLOT).slot(SLOT, column, {}, notes).to_pylist()
    assert found[0] == found[1] == found[2]
    assert notes == {("s", "respelled"): (3, "'4.10', which is 4.1")}
    apart = Slot("s", "g", encoding="hash", rows=2**30, respell=False)
    found = encoder(apart).slot(apart, column, {}, notes).to_pylist()
    assert found[0] != found[1] == found[2] and len(notes) == 1


def test_bytes_that_are_no_text_are_bad_rows():
    problems = encode.Problems()
    column = pa.array([b"a", b"\xff", None, b"\xff"])
    assert encoder(SLOT).slot(SLOT, column, problems).to_pylist()[1:] == [0, 0, 0]
    assert problems == {row: ("encoding", "'s' holds b'\\xff', no text in UTF-8") for row in (1, 3)}


@pytest.mark.parametrize(
    "typed, text",
    [
        (
            pa.array([2**60 + 1, -(2**62), None]),
            ["1152921504606846977", "-4611686018427387904", ""],
        ),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([decimal.Decimal("1.50"), None]), ["1.50", ""]),
        (pa.array([True, False, None]), ["True", "false", "NaN"]),
        (pa.array(np.array([0.5, np.nan], np.float16)), ["0.5", "nan"]),
        (pa.array([3, -9]).dictionary_encode(), ["3", "-9.0"]),
        (pa.array([b"2.5", b""]), [" 2.5", ""]),
    ],
)
def test_a_numeric_slot_reads_the_same_number_from_every_carrier(typed, text):
    slot = Slot("s", "g", "numeric", "identity", 2, transform="log1p")
    problems = encode.Problems()
    read = lambda column: encoder(slot).slot(slot, column, problems).to_pylist()
    assert read(typed) == read(pa.array(text)) and not problems
    assert any(x is not None for x in read(typed))


def test_a_time_is_no_number():
    slot = Slot("s", "g", "numeric", "identity", 2)
    with pytest.raises(
        UserError,
        match=r"config.prepare: column 's' must hold numbers, but its type is timestamp\[s\]",
    ):
        encoder(slot).slot(slot, pa.array([1], pa.timestamp("s")), {})


@pytest.mark.parametrize(
    "given, text",
    [
        (np.ma.array([1.0, 2.0], mask=[0, 1]), ["1", None]),
        (np.ma.array(["a", "b"], mask=[1, 0]), [None, "b"]),
        (np.ma.array(np.array([0, 1], "datetime64[D]"), mask=[0, 1]), ["1970-01-01", None]),
        ([uuid.UUID(int=1), None], ["00000000-0000-0000-0000-000000000001", None]),
        (np.array([2.0**20, 12345679000.0], np.float32), ["1048576", "12345679000"]),
        (["1e+400", "9e-999", "0e-10", "1.0E999"], ["1e+400", "9e-999", "0", "1.0E999"]),
    ],
)
def test_odd_carriers(given, text):
    found = values.distinct(memory.as_arrow(SLOT, given))
    assert found.column().to_pylist() == text


def test_masked_rows_of_a_bag_and_weights_by_name():
    bag = Slot("s", "g", "multi", "hash", 2**30, max_length=3)
    masked = np.ma.array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]])
    assert memory.as_arrow(bag, masked).to_pylist() == [[1, None], [3, 4]]
    weighted = Slot("s", "g", "multi", "hash", 2**30, max_length=3, weighted=True)
    found = memory.as_arrow(weighted, [[{"weight": 2.0, "id": 17}]])
    assert found.to_pylist() == [[{"id": 17, "weight": 2.0}]]


@pytest.mark.parametrize("kind", ["categorical", "multi", "vector", "numeric"])
def test_a_cell_of_bytes_that_are_no_text_is_a_bad_row(kind):
    slot = Slot("s", "g", kind, "hash", 3, max_length=2, length=2 if kind == "vector" else 0)
    problems, column = encode.Problems(), pa.array([b"1^2", b"\xff^b"])
    encoder(slot).slot(slot, column, problems)
    assert problems[1][0] == "encoding"


def test_cells_of_bags_that_hold_nothing():
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=3)
    read = lambda column: encoder(slot).slot(slot, column, encode.Problems()).to_pylist()
    assert read(pa.array(["nan", "  ", "", None])) == [[], [], [], []]
    recipe = config.default().prepare.to_dict() | {"null_values": ("", "NA")}
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ):
        column = pa.array(["a^b", "NA"]).cast(kind)
        plain = tabular.plain_columns("x", recipe, {"s": column}, [slot])["s"]
        assert read(plain) == [read(pa.array(["a^b"]))[0], []], kind


def test_hours_of_the_day_begin_at_midnight():
    recipe = config.default().prepare.to_dict()
    recipe |= {"split": "day", "day_length": 13, "valid_days": ("2024-03-05 00",)}
    days = pa.array(["2024-03-05 00:00:00", "2024-03-05 00:00:01", "2024-03-05 01:00:00"])
    found = recipe_lib.split_of(recipe, 0, np.arange(3), values.distinct(days))
    assert found.tolist() == [1, 1, 0]


def test_bytes_that_are_no_text_among_ids_with_weights():
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=3, weighted=True)
    problems, column = encode.Problems(), pa.array([[b"a:1"], [b"b:2", b"\xff:2"]])
    found = encoder(slot).slot(slot, column, problems)
    assert list(problems) == [1] and "holds b'\\xff:2', no text in UTF-8" in problems[1][1]
    text = encoder(slot).slot(slot, pa.array([["a:1"]]), problems)
    assert found[0].as_py() == text[0].as_py()

    single = Slot("s", "g", "categorical", "hash", 2**30, weighted=True)
    problems = encode.Problems()
    encoder(single).slot(single, pa.array([b"\xff:2", b"b:2"]), problems)
    assert list(problems) == [0] and problems[0][0] == "encoding"


@pytest.mark.parametrize("shape", ["list", "large list", "list of fixed size", "map"])
def test_uuids_in_pairs(shape, tmp_path):
    """From Parquet, with rows filtered: the ids are those of their text."""
    uuids = [uuid.UUID(int=7 * i) for i in range(4)]
    ids = pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([x.bytes for x in uuids], pa.binary(16))
    )
    weights, offsets = pa.array([0.5, 1.0, 1.5, 2.0]), [0, 2, 4]
    pairs = pa.StructArray.from_arrays([ids, weights], ["id", "weight"])
    made = {
        "list": lambda: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pairs),
        "large list": lambda: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pairs),
        "list of fixed size": lambda: pa.FixedSizeListArray.from_arrays(pairs, 2),
        "map": lambda: pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), ids, weights),
    }
    pq.write_table(pa.table({"label": ["1", "0"], "s": made[shape]()}), tmp_path / "a.parquet")
    recipe = config.default().prepare.to_dict() | {"groups": (("g", ("s",)),)}
    recipe["slots"] = {"s": {"kind": "multi", "weighted": True}}
    (chunk,) = formats.read(recipe, [RawFile(tmp_path / "a.parquet")])
    bad = encode.Problems()
    bad.mark([True, False], "label", lambda i: "")
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=3, weighted=True)
    found = encoder(slot).slot(slot, chunk.without(bad).columns["s"], bad)
    text = encoder(slot).slot(slot, pa.array([[f"{uuids[2]}:1.5", f"{uuids[3]}:2"]]), bad)
    assert found.to_pylist() == text.to_pylist()


@pytest.mark.parametrize("respell", [True, False])
def test_a_gauc_key_is_spelled_as_its_slot(respell):
    """Rows of one id have one key, and those of a missing value none."""
    slot = Slot("s", "g", "categorical", "hash", 2**30, null_values=("-1",), respell=respell)
    recipe = {"null_values": (), "gauc_key": "s"}
    schema = Schema("x", (slot,), has_gauc_key=True, recipe=recipe, spelling=2)
    column = pa.array(["7", "7.0", "-1", "-1.0", None, "8"])
    columns = {"s": column, "gauc_key": column, "label": pa.array(["1"] * 6)}
    found = encode.Encoder(schema, {}).encode(columns)[0]
    ids, keys = found["s"].to_pylist(), found["gauc_key"].to_pylist()
    assert [x == 0 for x in ids] == [key == 0 for key in keys] and keys[2] == keys[4] == 0
    same = lambda x: [[a == b for a in x] for b in x]
    assert same(ids) == same(keys) and (keys[0] == keys[1]) == respell


def test_mixed_lists_of_a_run_of_release_0_1():
    """Each value is called what release 0.1 called it in a list of its own kind."""
    given = [1e20, "1e20", 17.5, "17.50", True, np.float32(0.5), datetime.date(2024, 3, 5), None]
    alone = [
        None if x is None else values.spell(memory.as_arrow(SLOT, [x]), spelling=1)[0].as_py()
        for x in given
    ]
    mixed = memory.as_arrow(SLOT, given, 1).to_pylist()
    assert mixed == alone
    assert mixed[:5] == ["1e+20", "1e20", "17.5", "17.50", "1"]
    assert memory.as_arrow(SLOT, given).to_pylist()[3] == "17.5"


DAYS = np.array([["2024-03-05", "2024-03-06"], ["NaT", "2024-03-07"]], "datetime64[D]")


@pytest.mark.parametrize(
    "given, text",
    [
        (np.array([1, 256], ">i4"), ["1", "256"]),
        (np.array([0.5, np.nan], ">f8"), ["0.5", None]),
        (np.array(["2024-03-05"], ">M8[D]"), ["2024-03-05"]),
        (np.array([5, 7], "m8[m]"), ["300", "420"]),
        (np.array([1500], "m8[ms]"), ["1.5"]),
        ([np.timedelta64(5, "m"), "x", np.timedelta64("NaT")], ["300", "x", None]),
        ([np.timedelta64(1, "D"), datetime.timedelta(seconds=90)], ["86400", "90"]),
        (np.array([2000], "M8[ps]"), ["1970-01-01 00:00:00.000000002"]),
    ],
)
def test_arrays_of_numpy_of_any_unit_and_byte_order(given, text):
    assert values.distinct(memory.as_arrow(SLOT, given)).column().to_pylist() == text


@pytest.mark.parametrize("given", [DAYS, DAYS.astype(">M8[D]"), DAYS.astype("M8[ns]")])
def test_a_matrix_of_days_is_bags(given):
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=3)
    read = lambda column: encoder(slot).slot(slot, column, encode.Problems()).to_pylist()
    text = pa.array([["2024-03-05", "2024-03-06"], [None, "2024-03-07"]])
    assert read(memory.as_arrow(slot, given)) == read(text)
    numbers = memory.as_arrow(slot, np.array([[1, 2]], ">i8"))
    assert read(numbers) == read(pa.array([["1", "2"]]))


@pytest.mark.parametrize(
    "given, said",
    [
        (np.array([1500], "M8[ps]"), "times in ps that are no whole nanoseconds"),
        ([np.datetime64(1500, "ps"), "x"], "times in ps that are no whole nanoseconds"),
        (np.array([1], "m8[Y]"), "durations in months or years have no length"),
        (np.array([1], "m8"), "generic timedelta64"),
        (np.array([1j]), "complex numbers"),
    ],
)
def test_what_has_no_spelling_is_one_line(given, said):
    with pytest.raises(UserError, match=said):
        memory.as_arrow(SLOT, given)


FLOATS = np.array([0.1, -999.9, 2.5])
NULL = ("-999.9",)


@pytest.mark.parametrize(
    "given",
    [
        *(FLOATS.astype(kind) for kind in ("f2", "f4", "f8", ">f4")),
        np.ma.array(FLOATS.astype("f4"), mask=False),
        pa.array([decimal.Decimal(str(x)) for x in FLOATS], pa.decimal128(6, 1)),
        pa.array([decimal.Decimal(str(x)) for x in FLOATS], pa.decimal256(50, 3)),
        list(map(str, FLOATS)),
        list(FLOATS.astype("f4")),
    ],
    ids=lambda given: getattr(given, "type", None) or getattr(given, "dtype", "list"),
)
def test_a_null_spelling_with_a_fraction_is_one_at_any_width(given):
    """In slots of numbers, of ids and in a vector alike."""
    of = {"null_values": NULL, "rows": 2**30}
    number = Slot("s", "g", "numeric", **of)
    one = Slot("s", "g", "categorical", "hash", **of)
    vector = Slot("s", "g", "vector", length=3, **of)
    column = memory.as_arrow(number, given)
    read = lambda slot, column: encoder(slot).slot(slot, column, encode.Problems()).to_pylist()
    assert [x is None for x in read(number, column)] == [False, True, False]
    assert [x == 0 for x in read(one, column)] == [False, True, False]
    offsets = pa.array([0, 3], pa.int32())
    padded = pa.ListArray.from_arrays(offsets, column.take(pa.array([1, 1, 1])))
    assert read(vector, padded) == [None]
    kept = pa.ListArray.from_arrays(offsets, column)
    assert read(vector, kept)[0][1] == pytest.approx(-999.9, rel=1e-3)


def test_decimals_are_the_numbers_that_their_digits_say():
    exact = [decimal.Decimal("-999.9"), decimal.Decimal("0.7")]
    column = pa.array(exact, pa.decimal128(6, 1))
    found = encoder(SLOT).numbers(SLOT, column, encode.Problems())
    assert found.tolist() == [-999.9, 0.7]


ZONE = datetime.timezone(datetime.timedelta(hours=1, seconds=30))
AWARE = datetime.datetime(2024, 3, 5, 11, 0, 30, tzinfo=ZONE)


@pytest.mark.parametrize(
    "given, text",
    [
        (np.ma.array(np.array([0.1, 7], "f4"), mask=[0, 1]), ["0.1", None]),
        (np.ma.array(np.array([5 * 10**9, 7], "m8[ns]"), mask=[0, 1]), ["5", None]),
        ([AWARE], ["2024-03-05 10:00:00"]),
        ([AWARE.isoformat(), AWARE, 1], ["2024-03-05 10:00:00"] * 2 + ["1"]),
        ([datetime.time(10, tzinfo=ZONE)], ["10:00:00+01:00:30"]),
        ([datetime.time(10, tzinfo=ZONE), 1], ["10:00:00+01:00:30", "1"]),
        ([decimal.Decimal("-Infinity"), None], ["-inf", None]),
        ([decimal.Decimal("NaN"), "x", float("inf")], [None, "x", "inf"]),
        ([decimal.Decimal("1E+80")], ["1" + "0" * 80]),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([5, 0], pa.int8())), ["1", "0"]),
        (pa.compute.run_end_encode(pa.array([1.5, 1.5, 2])), ["1.5", "1.5", "2"]),
        (pa.array(["a", None, "7.0"], pa.string_view()), ["a", None, "7"]),
    ],
)
def test_no_way_into_arrow_loses_or_refuses_a_value(given, text):
    assert values.distinct(memory.as_arrow(SLOT, given)).column().to_pylist() == text


def test_series_of_pandas_keep_their_width_and_their_nanoseconds():
    pandas = pytest.importorskip("pandas")
    spell = lambda given: values.distinct(memory.as_arrow(SLOT, given)).column().to_pylist()
    time = pandas.Timestamp("2024-03-05 10:00:00.000000001", tz="Europe/Berlin")
    length = pandas.Timedelta(1_500_000_001, "ns")
    wanted = ["2024-03-05 09:00:00.000000001"]
    for times in ([time], [time, "x"], pandas.Series([time]), pandas.Index([time])):
        assert spell(times)[:1] == wanted
    for lengths in ([length], [length, "x"], pandas.Series([length])):
        assert spell(lengths)[0] == "1.500000001"
    for kind in ("float32", "Float32", "category"):
        assert spell(pandas.Series(np.float32([0.1])).astype(kind)) == ["0.1"]
    assert spell(pandas.Series(pandas.arrays.SparseArray(np.float32([0.1, 0])))) == ["0.1", "0"]
    with pytest.raises(UserError, match="have no text"):
        memory.as_arrow(SLOT, pandas.Series(pandas.period_range("2024", periods=2, freq="D")))


def test_frames_of_polars_with_objects_and_views():
    polars = pytest.importorskip("polars")
    bag = Slot("s", "g", "multi", "hash", 2**30, max_length=1, null_values=("0",))
    read = lambda given: features.encode(encoder(bag), {"s": given})["s"].tolist()
    assert read(polars.Series([["0", "a", "b"], None])) == read([["a"], None])
    one = polars.Series("s", [uuid.UUID(int=7), "-9"], dtype=polars.Object)
    frame = features.encode(encoder(SLOT), polars.DataFrame([one]))["s"].tolist()
    assert frame == features.encode(encoder(SLOT), {"s": [uuid.UUID(int=7), None]})["s"].tolist()


def test_row_ids_of_bytes_are_no_integers_where_they_are_no_text():
    problems = encode.Problems()
    encode.row_ids(pa.array([b"\xff", b"12"]), "int64", problems)
    assert list(problems) == [0] and "b'\\xff'" in problems[0][1]


def test_a_gauc_key_that_is_a_slot_with_weights_is_its_id():
    slot = Slot("s", "g", "categorical", "hash", 2**30, weighted=True)
    recipe = {"null_values": (), "gauc_key": "s"}
    schema = Schema("x", (slot,), has_gauc_key=True, recipe=recipe, spelling=2)
    for column in (
        pa.array(["u:0.5", "u:1", "v:2", ":1"]),
        pa.array([{"i": x, "w": 0.5 * i} for i, x in enumerate(["u", "u", "v", None])]),
    ):
        columns = {"s": column, "gauc_key": column, "label": pa.array(["1"] * 4)}
        keys = encode.Encoder(schema, {}).encode(columns)[0]["gauc_key"].to_pylist()
        assert keys[0] == keys[1] != keys[2] and keys[3] == 0 not in keys[:3]


def test_one_id_of_bytes_with_a_weight_is_a_bad_row_where_it_is_no_text():
    slot = Slot("s", "g", "categorical", "hash", 2**30, weighted=True)
    problems = encode.Problems()
    column = pa.array([{"i": b"\xff", "w": 1.0}, {"i": b"a", "w": 1.0}])
    encoder(slot).slot(slot, column, problems)
    assert list(problems) == [0] and problems[0][0] == "encoding"


@pytest.mark.parametrize("weighted", [False, True])
def test_a_bag_of_one_element_that_is_no_text_is_a_bad_row(weighted):
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=4, weighted=weighted)
    named = lambda value: {"i": value, "w": None} if weighted else value
    bags = [[named(b"\xff")], [named(b"a")], [named(b"\xff"), named(b"a")], [named(None)]]
    kind = pa.struct([("i", pa.binary()), ("w", pa.float64())]) if weighted else pa.binary()
    problems = encode.Problems()
    encoder(slot).slot(slot, pa.array(bags, pa.list_(kind)), problems)
    of_bytes = [row for row, (what, _) in problems.items() if what == "encoding"]
    assert of_bytes == [0, 2]
    assert problems[0][1].endswith("holds b'\\xff', no text in UTF-8")


def test_each_distinct_element_of_bags_is_looked_up_once(monkeypatch):
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=4, null_values=("-1",))
    made, looked_up = encoder(slot), []
    of_elements = made.distinct

    def distinct(slot, column):
        looked_up.append(len(column))
        return of_elements(slot, column)

    monkeypatch.setattr(made, "distinct", distinct)
    bags = [["-1.0"], ["a", ""], ["a"], [""], [None], None]
    found = made.slot(slot, pa.array(bags), encode.Problems())
    ids = encoder(slot).slot(slot, pa.array([["a"]]), encode.Problems())[0].as_py()
    assert found.to_pylist() == [[], [*ids, 0], ids, [], [], []] and len(looked_up) == 1


@pytest.mark.parametrize("kind", ["multi", "vector"])
def test_a_gauc_key_that_is_a_bag_was_the_whole_text_in_release_0_1(kind):
    rows = {"length": 2} if kind == "vector" else {"max_length": 4}
    slot = Slot("s", "g", kind, "identity", 3, **rows)
    recipe = {"null_values": (), "gauc_key": "s"}
    schema = Schema("x", (slot,), has_gauc_key=True, recipe=recipe, spelling=1)
    column = pa.array(["1^2", "1^2", "1", None])
    keys = encode.Encoder(schema, {})._gauc_key(column, encode.Problems()).to_pylist()
    assert keys[0] == keys[1] != keys[2] and keys[3] == 0 not in keys[:3]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        ["-9"],
        ["-9.0"],
        [-9],
        pa.array([[-9]]),
        [["-9.0"]],
        ["[-9]"],
        np.array([-9.0]),
        [None],
        [[None]],
    ],
)
def test_a_bag_of_one_null_spelling_is_a_missing_bag(given, weighted):
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=3, weighted=weighted)
    made = encoder(slot)
    raw = {"s": memory.as_arrow(slot, given)}
    plain = tabular.plain_columns("x", made.schema.recipe, raw, (slot,))["s"]
    problems = encode.Problems()
    assert made.slot(slot, plain, problems).to_pylist() == [[]] and not problems


def test_a_bag_of_several_keeps_its_null_spellings():
    slot = Slot("s", "g", "multi", "hash", 2**30, max_length=1)
    made = encoder(slot)
    assert made.slot(slot, pa.array([["-9", "a"]]), encode.Problems()).to_pylist() == [[0]]


# (column, null_values, kind of the slot, what release 0.1 made of it, as text): noted at d3cc484.
OF_0_1 = [
    (pa.array(["", "a^"]), ("x",), "multi", [[None], ["a", None]]),
    (pa.array([-1, 5]), ("-1",), "multi", [[], ["5"]]),
    (pa.array([np.nan, 5.0]), ("-1",), "multi", [["nan"], ["5"]]),
    (pa.array(["-1", "-1.0"]), ("-1",), "multi", [[], ["-1.0"]]),
    (pa.array([[-1]]), ("-1",), "multi", [["-1"]]),
    (pa.array(np.array([0.1], np.float16)), (), "categorical", ["0.0999755859375"]),
    (np.array(["2024-03-05"], "M8[D]"), (), "categorical", ["2024-03-05"]),
    (pa.array([0], pa.timestamp("s")), (), "categorical", ["1970-01-01 00:00:00"]),
    (pa.array(["-1", "-1.0"]), ("-1",), "numeric", [None, -1.0]),
    (pa.array([decimal.Decimal("-999.9")], pa.decimal128(6, 1)), NULL, "numeric", [None]),
    (pa.array([-999.9], pa.float32()), NULL, "numeric", [pytest.approx(-999.9)]),
]


@pytest.mark.parametrize("given, nulls, kind, wanted", OF_0_1)
def test_data_of_release_0_1_mean_what_they_meant(given, nulls, kind, wanted):
    slot = Slot("s", "g", kind, "hash", 2**30, max_length=3)
    recipe = config.default().prepare.to_dict() | {"null_values": nulls, "spelling": 1}
    made = encode.Encoder(Schema("x", (slot,), recipe=recipe, spelling=1), {})
    raw = {"s": memory.as_arrow(slot, given, 1)}
    column = tabular.plain_columns("x", recipe, raw, (slot,))["s"]
    found = made.slot(slot, column, encode.Problems()).to_pylist()
    of_text = pa.array(wanted if kind != "numeric" else [])
    ids = made.slot(slot, of_text, encode.Problems()).to_pylist()
    assert found == (wanted if kind == "numeric" else ids)


@pytest.mark.parametrize(
    "runs",
    [
        pa.array(["a", None, "1.0"]),
        pa.array(["a", None, "1.0"], pa.string_view()),
        pa.array(["a", None, "1.0"]).dictionary_encode(),
    ],
)
def test_runs_of_any_type_are_their_values(runs):
    column = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3, 5], pa.int16()), runs)
    wanted = ["a", "a", None, "1", "1"]
    assert values.distinct(column).column().to_pylist() == wanted
    assert values.distinct(column.slice(1, 3)).column().to_pylist() == wanted[1:4]
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 5], pa.int32()), column)
    found = [values.spell(x).to_pylist() for x in bags.cut(bags.as_lists(lists), 2, "last")[:1]]
    assert found == [["a", "a", "1", "1"]]
