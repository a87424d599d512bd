"""Raw files by hand, with a bad row of every kind: what is read, what is rejected, and on which line."""

import csv
import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emofm_jax import config
from emofm_jax.data import formats, preparation, raw_files, shards
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import lines
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast


def recipe(**fields) -> dict:
    c = config.default()
    c.prepare.groups = (("all", ("user", "item")),)
    with c.unlocked():
        for name, value in fields.items():
            c.prepare[name] = value
    return c.prepare.to_dict()


def read(path, labelled=True, **fields):
    """({column: values}, lines, {line: kind}) of a whole file."""
    columns, at, bad = {}, [], {}
    for chunk in formats.read(recipe(**fields), [RawFile(path)], labelled):
        for name, values in chunk.columns.items():
            columns[name] = columns.get(name, []) + values.to_pylist()
        assert all(len(values) == len(chunk.lines) for values in chunk.columns.values())
        at += chunk.lines.tolist()
        bad |= {b.line: b.kind for b in chunk.bad}
    return columns, at, bad


def write(path, data: bytes):
    path.write_bytes(data)
    return path


GOOD = b"label,user,item\n1,u1,i1\n0,u2,\n"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    "data", [GOOD, b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD[:-1]]
)
def test_tabular_reads_plain_compressed_bom_crlf_and_no_last_line_end(tmp_path, suffix, data):
    path = tmp_path / f"train.csv{suffix}"
    if suffix == ".gz":
        data = gzip.compress(data[:20]) + gzip.compress(
            data[20:]
        )  # two members, as `cat a.gz b.gz` makes
    elif suffix:
        data = pa.Codec("zstd").compress(data, asbytes=True)
    columns, at, bad = read(write(path, data))
    assert columns == {"user": ["u1", "u2"], "item": ["i1", None], "label": ["1", "0"]}
    assert at == [2, 3] and not bad


def test_every_kind_of_bad_row_has_its_line(tmp_path):
    rows = [
        b"label,user,item",
        b"1,u1,i1",
        b"1,u2",  # 3: too few
        b"1,u3,i3,x",  # 4: too many
        b"",  # blank: no row
        b"1,u\x005,i",  # 6: NUL
        b"1,\xff,i",  # 7: no UTF-8
        b"1,u\r8,i",  # 8: carriage return
        b'1,"u9"x,i',  # 9: quotes
        b'0,"a,\n""b""",i',  # 10, 11: fine, over two lines
        b'0,5" pipe,i',  # 12: fine, a quote inside a plain cell
        b'1,"open,i',  # 13: never closed
        b"0,last,",
    ]
    columns, at, bad = read(write(tmp_path / "a.csv", b"\n".join(rows)))
    assert bad == {
        3: "columns",
        4: "columns",
        6: "nul",
        7: "encoding",
        8: "line end",
        9: "quote",
        13: "quote",
    }
    assert at == [2, 10, 12, 14]
    assert columns["user"] == ["u1", 'a,\n"b"', '5" pipe', "last"]


@pytest.mark.parametrize("block_bytes", [17, 40, 64, 1 << 20])
def test_blocks_cut_only_between_rows(tmp_path, monkeypatch, block_bytes):
    rng = np.random.default_rng(1)
    alphabet = ["x", ",", '"', "\n", "\r\n", "é", "y"]
    want = [["1", "".join(rng.choice(alphabet, rng.integers(1, 7))), "i"] for _ in range(60)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["label", "user", "item"], *want])
    path = write(tmp_path / "a.csv", text.getvalue().encode())
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    columns, at, bad = read(path, quoting="multiline")
    assert not bad
    assert columns["user"] == [user for _, user, _ in want]
    starts = np.cumsum([2] + [1 + user.count("\n") for _, user, _ in want])[:-1]
    assert at == starts.tolist()


def test_bad_rows_cost_only_themselves_across_blocks(tmp_path, monkeypatch):
    rows = ["label,user,item"] + [
        f"1,u{i},i{i}" + (",extra" if i % 7 == 0 else "") for i in range(300)
    ]
    monkeypatch.setattr(lines, "BLOCK_BYTES", 500)
    columns, at, bad = read(write(tmp_path / "a.csv", "\n".join(rows).encode()))
    assert columns["user"] == [f"u{i}" for i in range(300) if i % 7]
    assert sorted(at + list(bad)) == list(range(2, 302))
    assert [i - 2 for i in bad] == list(range(0, 300, 7))


def test_stray_quote_does_not_swallow_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 18)
    body = b"".join(b"1,u%d,i\n" % i for i in range(200_000))
    columns, _, bad = read(write(tmp_path / "a.csv", b'label,user,item\n1,"u,i\n' + body))
    assert bad == {2: "quote"} and len(columns["user"]) == 200_000


def test_tsv_header_order_null_values_and_ignored_columns(tmp_path):
    path = write(tmp_path / "a.tsv", b"item\tnote\tlabel\tuser\nNA\tn\t1\t,\n")
    columns, _, _ = read(path, separator="\t", null_values=("", "NA"), ignore=("note",))
    assert columns == {"user": [","], "item": [None], "label": ["1"]}


def test_without_header(tmp_path):
    fields = {"header": False, "columns": ("label", "user", "item")}
    path = write(tmp_path / "a.csv", b"1,u1,i1\n0,u2,i2\n")
    assert read(path, **fields)[0]["item"] == ["i1", "i2"]
    unlabelled = write(tmp_path / "b.csv", b"u1,i1\nu2,i2\n")
    columns, at, _ = read(unlabelled, labelled=False, **fields)
    assert columns == {"user": ["u1", "u2"], "item": ["i1", "i2"]} and at == [1, 2]
    fields |= {
        "columns": ("user", "w", "kind", "label", "item"),
        "ftype": "kind",
        "types": ("a",),
        "weight": "w",
    }
    for row in (b"u,2,a,1,i\n", b"u,2,a,i\n", b"u,2,i\n", b"u,i\n"):
        columns, _, bad = read(write(tmp_path / "c.csv", row), labelled=False, **fields)
        assert columns["user"] == ["u"] and columns["item"] == ["i"] and not bad
        assert len(columns) == row.count(b",") + 1 and columns.get("weight", ["2"]) == ["2"]
    assert read(write(tmp_path / "d.csv", b"u\nu,2,a,1,i\n"), labelled=False, **fields)[2] == {
        1: "columns"
    }


def test_new_rows_without_their_keep_probability_are_told_what_to_write(tmp_path):
    """Those of a log that nobody sampled."""
    new = recipe_lib.to_evaluate(recipe(keep_probability="keep"), {})
    with pytest.raises(UserError, match="column 'keep' .* add it, 1 in each row where none was"):
        list(formats.read(new, [RawFile(write(tmp_path / "a.csv", GOOD))], True))


def test_rows_behind_a_block_of_blank_lines_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 8)
    fields = {"header": False, "columns": ("label", "user", "item")}
    columns, at, bad = read(write(tmp_path / "a.csv", b"\r\n" * 9 + b"1,u1,i1\n"), **fields)
    assert columns["user"] == ["u1"] and at == [10] and not bad
    path = write(tmp_path / "b.csv", b"\n" * 20 + GOOD)
    with pytest.raises(UserError, match="b.csv:1: the first line is empty, where the names"):
        read(path)


def test_list_cells_split_and_parquet_lists_stay(tmp_path):
    fields = {"slots": {"item": {"kind": "multi", "separator": "|"}}}
    text = read(write(tmp_path / "a.csv", b"label,user,item\n1,u,a|b\n1,u,\n1,u,c\n"), **fields)[0]
    assert text["item"] == ["a|b", None, "c"]  # the encoder splits it
    table = {"label": [1, 0], "user": [7, None], "item": [["a", "b"], None]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    columns, at, _ = read(tmp_path / "a.parquet", **fields)
    assert columns == table and at == [1, 2]


def test_parquet_types(tmp_path):
    columns = {
        "label": pa.array([True, False]),
        "user": pa.array([b"a", None]),
        "item": pa.array([[b"x"], []], pa.large_list(pa.binary())),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", slots={"item": {"kind": "multi"}})[0] == {
        "label": [True, False],
        "user": [b"a", None],
        "item": [[b"x"], []],
    }
    with pytest.raises(UserError, match="slot 'item' holds lists but is categorical"):
        read(tmp_path / "a.parquet")
    pq.write_table(pa.table(columns | {"label": pa.array([[1], [0]])}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="config.prepare.label: its column holds lists"):
        read(tmp_path / "c.parquet", slots={"item": {"kind": "multi"}})
    pq.write_table(pa.table(columns | {"item": pa.array([[["a"]], None])}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match="column 'item' of type list<.*> cannot be used"):
        read(tmp_path / "d.parquet", slots={"item": {"kind": "multi"}})


def test_a_shard_is_not_taken_for_raw_rows(tmp_path):
    schema = Schema("test", (Slot("user", "all", rows=9), Slot("item", "all", rows=9)))
    rows = pa.table({"user": [1, 2], "item": [3, 4], "label": [0, 1]})
    with shards.Writer(tmp_path, "test", schema) as writer:
        writer.write(rows)
    with pytest.raises(UserError, match="part-00000.parquet: it is a shard, not raw rows"):
        read(tmp_path / "test" / "part-00000.parquet")


@pytest.mark.parametrize(
    "data, fields, message",
    [
        (b"", {}, "the file is empty"),
        (
            b"label,user\n1,u\n",
            {},
            r"no column 'item' \(a slot of config.prepare.groups\); the file has label, user",
        ),
        (b"label, user, item\n", {}, "no column 'user' .* has ' user', with other blanks"),
        (b"label;user;item\n", {}, "has label;user;item; is config.prepare.separator ';'"),
        (b"label,user,item\r1,u,i\r", {}, "its lines end in carriage returns"),
        (
            b"label,_day,user\n1,a,b\n",
            {"groups": (("g", ("_day",)),), "split": "day", "day_column": "user"},
            "a slot may not be called '_day' here",
        ),
        (b"user,item\nu,i\n", {}, r"no column 'label' \(config.prepare.label\)"),
        (b"label,user,item,age\n1,u,i,3\n", {}, "column 'age' is a slot in no group"),
        (b"label,user,item,user\n1,u,i,3\n", {}, "column 'user' stands twice"),
        (b"\xfe\n", {}, "the first row cannot be read"),
        ("label,user".encode("utf-16"), {}, "it is text in UTF-16; write it as Parquet, or as"),
        (b"PK\x03\x04", {}, "it is a zip archive or a workbook; write it as"),
        (GOOD, {"separator": ",,"}, "must be one character"),
        (GOOD, {"header": False}, "config.prepare.columns"),
        (GOOD, {"format": "csv"}, "choose one of tabular, libsvm, cti"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, data, fields, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "a.csv", data), **fields)


def test_damaged_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.csv")
    rng = np.random.default_rng(0)
    body = b"label,user,item\n" + b"".join(b"1,%d,i\n" % i for i in rng.integers(0, 1 << 60, 5000))
    with pytest.raises(UserError, match="cannot be read to its end"):
        read(write(tmp_path / "a.csv.zst", pa.Codec("zstd").compress(body, asbytes=True)[:-9]))
    with pytest.raises(UserError, match="cannot be read to its end"):
        read(write(tmp_path / "a.csv.gz", gzip.compress(body)[:-3000]))
    with pytest.raises(UserError, match="not a complete Parquet file"):
        read(write(tmp_path / "a.parquet", b"PAR1...."))


CTI = {
    "format": "cti",
    "groups": (("user", "1-2"), ("session", "7")),
    "slots": {"7": {"kind": "multi"}},
    "ignore": ("99",),
    "gauc_key": "1",
}


def test_cti_rows(tmp_path):
    rows = [
        "100\t1\t-\t-\t18446744073709551615:1 22:2 33:7 44:7 5:99",
        "101\t-\t-\t0\t11:1",  # no slot 2, an empty bag
        "102\t-\t-\t-\t11:1",  # 3: no type
        "103\t1\t0\t-\t11:1",  # 4: two types
        "104\t2\t-\t-\t11:1",  # 5: no label
        "105\t1\t-\t-\t11:1 12:1",  # 6: a single slot repeats
        "106\t1\t-\t-\t11:1 12:5",  # 7: slot in no group
        "107\t1\t-\t-\t11",  # 8: no token
        "108\t1\t-\t11:1",  # 9: too few columns
        "109\t-\t0\t-\t",  # no feature at all
    ]
    columns, at, bad = read(write(tmp_path / "a.tsv", "\n".join(rows).encode()), **CTI)
    kinds = ["types", "types", "label", "repeated slot", "slot", "token", "columns"]
    assert bad == dict(zip(range(3, 10), kinds))
    assert at == [1, 2, 10]
    assert columns == {
        "1": ["18446744073709551615", "11", None],
        "2": ["22", None, None],
        "7": [["33", "44"], [], []],
        "label": [1, 0, 0],
        "ftype": ["t1", "t3", "t2"],
        "row_id": ["100", "101", "109"],
        "gauc_key": ["18446744073709551615", "11", None],
    }


def test_cti_number_of_types_follows_from_the_columns(tmp_path):
    path = write(tmp_path / "a.tsv", b"log_id\tclick\tbuy\tfeatures\n1\t-\t1\t5:1\n")
    columns, at, _ = read(path, **CTI | {"types": ("click", "buy")})
    assert columns["ftype"] == ["buy"] and at == [2]
    with pytest.raises(UserError, match="2 columns of types, but the data has 3 types"):
        read(path, **CTI | {"types": ("a", "b", "c")})
    with pytest.raises(UserError, match="1 columns; a row is log_id"):
        read(write(tmp_path / "b.tsv", b"1 0 - 5:1\n"), **CTI)


def test_cti_rows_to_predict_need_no_type(tmp_path):
    for rows in (b"9\t-\t-\t-\t5:1\n", b"9\t5:1\n"):
        columns, _, bad = read(write(tmp_path / "a.tsv", rows), labelled=False, **CTI)
        assert (
            not bad
            and columns["1"] == ["5"]
            and columns["ftype"] == [None]
            and columns["row_id"] == ["9"]
        )
    with pytest.raises(UserError, match="no column of types"):
        read(tmp_path / "a.tsv", **CTI)


def test_libsvm_with_field_names(tmp_path):
    rows = [
        "1 user:7:1 item:3:1 item:4:1.0 x:0:2.5",
        "-1\titem:3:1",
        "+1 user:7:2",
        "user:1:1",
        "1 user:7",
        "1 y:1:1",
    ]
    fields = {
        "format": "libsvm",
        "groups": (("u", "user"), ("i", ("item", "x"))),
        "slots": {"item": {"kind": "multi"}, "x": {"kind": "numeric"}},
    }
    path = write(tmp_path / "a.svm", "\n".join(rows).encode())
    columns, at, bad = read(path, **fields)
    assert columns == {
        "user": [{"id": "7", "weight": "1"}, None, {"id": "7", "weight": "2"}],
        "item": [["3", "4"], ["3"], []],
        "x": ["2.5", None, None],
        "label": ["1", "-1", "+1"],
    }
    assert at == [1, 2, 3] and bad == {4: "label", 5: "token", 6: "slot"}
    columns, _, bad = read(path, labelled=False, **fields)
    assert columns["label"] == ["1", "-1", "+1", None] and columns["user"][3]["id"] == "1"


def test_libsvm_without_field_names_is_one_bag(tmp_path):
    path = write(tmp_path / "a.svm", b"1 17:1 4012:1\n0  5:1 \n0\n")
    fields = {
        "format": "libsvm",
        "groups": (("all", "features"),),
        "slots": {"features": {"kind": "multi"}},
    }
    columns, _, bad = read(path, **fields)
    assert not bad and columns == {
        "features": [["17", "4012"], ["5"], []],
        "label": ["1", "0", "0"],
    }
    with pytest.raises(UserError, match="exactly one slot, a bag named 'features'"):
        read(path, format="libsvm")


@pytest.mark.parametrize("rows", [b"1\n0 5:1\n", b"1\n\n0\t5:1 6:1\n", b"0 5:1\n1\n"])
def test_flat_libsvm_whose_first_row_is_a_label_alone(tmp_path, rows):
    fields = {
        "format": "libsvm",
        "groups": (("all", "features"),),
        "slots": {"features": {"kind": "multi"}},
    }
    columns, _, bad = read(write(tmp_path / "a.svm", rows), **fields)
    assert not bad and sorted(map(len, columns["features"])) == [0, rows.count(b":")]
    named = b"1\n0 features:5:1\n"
    columns, _, bad = read(write(tmp_path / "b.svm", named), **fields)
    assert not bad and columns["features"] == [[], ["5"]]


@pytest.mark.parametrize("source", ["libsvm", "cti"])
def test_partitions_of_rows_that_list_their_features(tmp_path, source):
    """A directory's value is that of every row that has none of its own."""
    part = tmp_path / "city=s%C3%A3o" / "hour=7"
    part.mkdir(parents=True)
    rows = {"libsvm": b"1 u:1:1\n0 u:2:1 city:x:1\n", "cti": b"a\t1\t1:u\nb\t0\t2:u 9:city\n"}
    write(part / "a.txt", rows[source])
    groups = (("g", ("u", "city", "hour")),)
    fields = {"format": source, "groups": groups, "slots": {"hour": {"kind": "numeric"}}}
    if source == "cti":  # whose rows hold no numbers
        fields["slots"] = {}
    recipe = config.default().prepare.to_dict() | fields
    chunk = lambda recipe: next(formats.read(recipe, raw_files.find(tmp_path)))
    columns = chunk(recipe).columns
    assert columns["city"].to_pylist() == ["são", {"libsvm": "x", "cti": "9"}[source]]
    assert columns["hour"].to_pylist() == ["7", "7"] and columns["u"].to_pylist() == ["1", "2"]
    # A file that has none at all, or one with a weight, is no other.
    write(part / "a.txt", {"libsvm": b"1 u:1:1\n", "cti": b"a\t1\t1:u\n"}[source])
    key = chunk(recipe | {"gauc_key": "city"}).columns
    assert key["city"].to_pylist() == key["gauc_key"].to_pylist() == ["são"]
    if source == "libsvm":
        write(part / "a.txt", b"1 u:1:1\n0 u:2:1 city:x:0.5\n")
        pairs = [{"id": "são", "weight": "1"}, {"id": "x", "weight": "0.5"}]
        assert chunk(recipe).columns["city"].to_pylist() == pairs
    write(part / "a.txt", rows[source])

    with pytest.raises(UserError, match="column 'hour' is a slot in no group"):
        chunk(recipe | {"groups": (("g", ("u", "city")),), "slots": {}})
    left = recipe | {"groups": (("g", ("u", "city")),), "slots": {}, "ignore": ("hour",)}
    assert "hour" not in chunk(left).columns
    with pytest.raises(UserError, match="'city' is a column of the directories, but a slot of sev"):
        chunk(recipe | {"slots": {"city": {"kind": "multi"}}})


@pytest.mark.parametrize("blank", [b" ", b"\t", b" \t "])
def test_rows_without_fields_between_any_blanks(tmp_path, blank):
    path = write(tmp_path / "a.svm", b"1 17:1 4012:1\n0 18:1\r\n".replace(b" ", blank))
    bag = {"features": {"kind": "multi"}}
    columns, _, bad = read(
        path, format="libsvm", groups=(("g", ("features",)),), slots=bag, label="label"
    )
    assert columns["features"] == [["17", "4012"], ["18"]] and not bad


@pytest.mark.parametrize("source", ["tabular", "libsvm"])
def test_a_gauc_key_of_several_values_is_refused_in_every_format(tmp_path, source):
    path = write(tmp_path / "a", b"label,user\n1,a^b\n" if source == "tabular" else b"1 user:a:1\n")
    fields = {"groups": (("g", ("user",)),), "slots": {"user": {"kind": "multi"}}}
    with pytest.raises(UserError, match="gauc_key: 'user' must be a slot with one value; name an"):
        read(path, format=source, gauc_key="user", **fields)


def pipes(recipe, file, labelled, progress):
    """A format as somebody adds it: label|user|item."""
    dialect = lines.Dialect(["label", "user", "item"], "|")
    for block in lines.blocks(file.path, progress=progress, span=file.span):
        yield lambda block=block: lines.parse(block, dialect, dialect.names)


def test_a_format_is_a_function_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "pipes", pipes)
    for split in shards.SPLITS:
        write(tmp_path / f"{split}.txt", b"1|u1|i1\n0|u2|i1\n1|u1\n")
    c = config.default()
    c.prepare.update(format="pipes", source=str(tmp_path), max_rejected=1)
    c.prepare.groups = (("all", ("user", "item")),)
    c.data.dir = str(tmp_path / "shards")
    report = preparation.prepare(c, progress=False)
    counts = {
        name: (s.rows, sum(s.rejected.values()), s.clicks) for name, s in report.splits.items()
    }
    assert counts == dict.fromkeys(shards.SPLITS, (2, 1, 1))


def test_the_choices_of_the_option_are_the_formats():
    choices = config.options()["prepare.format"].choices
    assert {*choices} == {*formats.FORMATS, "synthetic"}
