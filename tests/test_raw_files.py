"""Files as others write them, from prepare to predict: what is read, and what is said."""

import bz2
import gzip
import io
import lzma
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv as pa_csv

from emofm_jax import prepare
from emofm_jax.data import encode, files, raw_files, shards, stages
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.formats import lines as lines_lib
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast

EXPERIMENT = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.data.dir = {target!r}
    c.prepare.groups = (("user", "user"), ("item", "item"))
    c.update_from_flattened_dict({fields!r})
    return c
"""


@pytest.fixture
def shop(tmp_path, capsys):
    """A function (fields of prepare) -> (exit code, what is printed) that prepares `raw`."""
    (tmp_path / "raw").mkdir()

    def run(**fields):
        fields = {"source": str(tmp_path / "raw"), "split": "share"} | fields
        fields = {f"prepare.{name}": value for name, value in fields.items()}
        text = EXPERIMENT.format(target=str(tmp_path / "out"), fields=fields)
        (tmp_path / "shop.py").write_text(text)
        capsys.readouterr()
        code = prepare.main(["prepare", f"--config={tmp_path / 'shop.py'}"])
        printed = capsys.readouterr()
        assert printed.err.count("\n") == (code != 0)  # one line, if any
        return code, printed.out + printed.err

    return run


def count(directory):
    """{split: rows}."""
    return {split: shards.open_split(directory, split).num_rows for split in shards.SPLITS}


def predicted(directory, path):
    """(rows that keep a score, reasons of the others) of raw rows, as predict reads them."""
    schema = schema_lib.load(directory)
    chunks = list(encode.read_encoded(schema, directory, path))
    return sum(int(c.kept.sum()) for c in chunks), [r for c in chunks for r in c.reasons if r]


def test_queries_that_begin_with_a_quote(shop, tmp_path, monkeypatch):
    """Texts of searches, which the source never quotes: `"cheap flights`, and later `7"`."""
    rows = [f"{i % 2}\tu{i}\ttext {i}" for i in range(120)]
    for i in (10, 40, 70):
        rows[i] = f'{i % 2}\tu{i}\t"cheap flights'
        rows[i + 3] = f'{i % 2}\tu{i}\ttablet 7"'
    path = tmp_path / "raw" / "a.tsv"
    path.write_text("\n".join(["label\tuser\titem", *rows]) + "\n")

    code, said = shop(separator="\t")
    assert code == 2 and f"{path}:12: a cell in quotes joins lines 12 to 15" in said
    assert "config.prepare.quoting to 'none'" in said and "(quote: 12)" in said

    monkeypatch.setattr(stages, "_TOLD", 2)  # of millions the first ones will do
    assert "; 3 bad rows so far in train (quote: 3)" in shop(separator="\t")[1]
    code, said = shop(separator="\t", max_rejected=12)
    assert code == 0 and sum(count(tmp_path / "out").values()) == 108
    assert said.count("rejected for its quote: 12") == 1
    kept, reasons = predicted(tmp_path / "out", path)
    assert (kept, len(reasons)) == (108, 12)

    code, said = shop(separator="\t", quoting="none")
    assert code == 0 and sum(count(tmp_path / "out").values()) == 120
    assert "rejected for" not in said and "line ends" not in said
    assert predicted(tmp_path / "out", path) == (120, [])


def test_texts_of_several_lines_and_blank_lines_are_counted(shop, tmp_path):
    path = tmp_path / "raw" / "a.csv"
    rows = [f'{i % 2},u{i},"a\n\nb"' if i % 10 == 5 else f"{i % 2},u{i},i" for i in range(50)]
    path.write_text("label,user,item\n" + "\n".join([*rows[:30], "", *rows[30:]]) + "\n\n")
    code, said = shop()
    assert code == 0 and sum(count(tmp_path / "out").values()) == 50
    assert f"2 blank lines are no rows, the first is {path}:38\n" in said
    assert f"5 rows run over line ends in cells in quotes, the first at {path}:7; if" in said
    report = files.read_json(tmp_path / "out" / "prepare.json")
    assert report["notes"] == {
        "blank lines": [2, f"{path}:38"],
        "rows over lines": [5, f"{path}:7"],
    }


def rows(num_rows, start=0):
    """Rows of label, user, item; each fifth user is new."""
    numbers = range(start, start + num_rows)
    return {
        "label": [i % 2 for i in numbers],
        "user": [f"u{i % 5}" for i in numbers],
        "item": [f"i{i % 3}" for i in numbers],
    }


def text(columns):
    """As csv."""
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]
    return "\n".join(lines) + "\n"


def test_directories_of_spark(shop, tmp_path):
    raw = tmp_path / "raw"
    for split, n in (("train", 40), ("valid", 10), ("test", 8)):
        part = raw / f"{split}.parquet"
        part.mkdir()
        for name in ("_SUCCESS", ".part-00000.crc", "_committed_1", ".hidden.parquet"):
            (part / name).write_bytes(b"")
        half = n // 2
        pq.write_table(pa.table(rows(half)), part / "part-00000-1b2c.snappy.parquet")
        pq.write_table(pa.table(rows(n - half, half)), part / "part-00001-1b2c.snappy.parquet")
        pq.write_table(pa.table(rows(1)).slice(0, 0), part / "part-00002-1b2c.snappy.parquet")
    code, said = shop(split="files")
    empty = raw / "train.parquet" / "part-00002-1b2c.snappy.parquet"
    assert code == 0 and f"3 files hold no row and are passed over, the first is {empty}" in said
    assert count(tmp_path / "out") == {"train": 40, "valid": 10, "test": 8}
    assert predicted(tmp_path / "out", raw / "test.parquet") == (8, [])
    assert not shards.is_split(raw / "test.parquet") and shards.is_split(tmp_path / "out" / "test")
    assert shop(split="files", **{"files.valid": "valid.parquet/*", "files.test": ""})[0] == 0


def test_hive_partitions_are_columns(shop, tmp_path):
    raw, days = tmp_path / "raw", ("2024-03-01", "2024-03-02", "2024-03-03")
    for i, day in enumerate(days):
        for city in ("s%C3%A3o paulo", "a%2Fb", "__HIVE_DEFAULT_PARTITION__"):
            part = raw / f"dt={day}" / f"city={city}"
            part.mkdir(parents=True)
            columns = rows(10, i)
            (part / "part-0.csv").write_text(text(columns))
            pq.write_table(pa.table(columns), part / "part-1.parquet")
    by_day = {"split": "day", "day_column": "dt", "valid_days": days[1:2], "test_days": days[2:]}
    groups = (("user", "user"), ("item", ("item", "city")))
    code, said = shop(**by_day, groups=groups)
    assert code == 0, said
    out = tmp_path / "out"
    assert count(out) == {"train": 60, "valid": 60, "test": 60}
    words = pq.read_table(out / "vocabulary" / "city.parquet")
    assert words.to_pydict() == {"value": ["a/b", "são paulo"], "count": [20, 20]}
    ids = shards.open_split(out, "test").read_row_group(0, ["city"])["city"].to_pylist()
    # The order of paths: __HIVE.., a%2Fb, s..
    assert ids == [0] * 20 + [1] * 20 + [2] * 20

    # One partition alone, and one file of it.
    part = raw / f"dt={days[0]}" / "city=a%2Fb"
    assert predicted(out, part) == (20, []) and predicted(out, part / "part-0.csv") == (10, [])
    # A column that appears nowhere is an error, a directory above the source is none.
    code, said = shop(**by_day)
    assert code == 2 and "column 'city' is a slot in no group" in said
    assert shop(**by_day, ignore=("city",))[0] == 0
    assert shop(source=str(part))[0] == 0
    code, said = shop(**by_day, groups=groups, gauc_key="city", ftype="city", types=("a/b",))
    assert code == 2 and "the type 'são paulo' is not one of config.prepare.types" in said


def test_a_column_of_the_file_is_not_one_of_its_directory(shop, tmp_path):
    part = tmp_path / "raw" / "user=elsewhere"
    part.mkdir()
    (part / "item=1.csv").write_text(text(rows(20)))
    (part / "page=1.csv").write_text(text(rows(20, 20)))  # a file's own name says nothing
    assert shop()[0] == 0
    words = pq.read_table(tmp_path / "out" / "vocabulary" / "user.parquet")["value"].to_pylist()
    assert sorted(words) == [f"u{i}" for i in range(5)]


def test_files_without_rows(shop, tmp_path):
    raw = tmp_path / "raw"
    (raw / "a.csv").write_text("")
    (raw / "b.csv").write_text("label,user,item\n")
    (raw / "c.csv").write_text("\n\n")
    (raw / "d.csv.gz").write_bytes(gzip.compress(b""))
    (raw / "e.csv").write_bytes(b"\xef\xbb\xbf")
    (raw / "f.csv").write_text(text(rows(40)))
    (raw / "g.csv").write_text("")
    code, said = shop()
    assert (
        code == 0 and f"6 files hold no row and are passed over, the first is {raw}/a.csv" in said
    )
    assert predicted(tmp_path / "out", raw) == (40, [])
    report = files.read_json(tmp_path / "out" / "prepare.json")
    assert report["notes"] == {"empty files": [6, f"{raw}/a.csv"]}
    (raw / "f.csv").write_text("")
    for name in ("b.csv", "c.csv"):
        (raw / name).unlink()
    code, said = shop()
    assert code == 2 and "the file is empty; remove it or name another; so are all of the 5" in said
    code, said = shop(source=str(raw / "a.csv"))
    assert code == 2 and f"{raw}/a.csv: the file is empty; remove it or name another\n" in said


def test_many_small_files(shop, tmp_path):
    """Their rows stand together in one shard, and each row in one split."""
    for i in range(150):
        part = tmp_path / "raw" / f"h={i % 7}"
        part.mkdir(exist_ok=True)
        (part / f"{i}.csv").write_text(text(rows(2, i)))
    code, _ = shop(ignore=("h",))
    assert code == 0 and sum(count(tmp_path / "out").values()) == 300
    assert len(list((tmp_path / "out" / "train").glob("part-*"))) == 1


def by_arrow(codec):
    def compress(data):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


def as_parquet(data):
    sink = pa.BufferOutputStream()
    pq.write_table(pa_csv.read_csv(io.BytesIO(data)), sink)
    return sink.getvalue().to_pybytes()


SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0size"  # a frame that says how long the next one is
CONTENTS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "bz2 with an empty member": lambda data: bz2.compress(b"") + bz2.compress(data),
    "bz2, empty inside": lambda data: b"".join(map(bz2.compress, (data[:99], b"", data[99:]))),
    "xz": lzma.compress,
    "zstd": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
    "zstd by pzstd": lambda data: SKIPPED + by_arrow("zstd")(data),
    "parquet": as_parquet,
}


def test_directories_of_one_key_below_each_other(tmp_path):
    path = tmp_path / "dt=1" / "city=a" / "dt=2" / "p.csv"
    path.parent.mkdir(parents=True)
    path.write_text("a\n1\n")
    with pytest.raises(UserError, match=r"p\.csv: dt= stands twice in its path; rename"):
        raw_files.find(tmp_path)
    (found,) = raw_files.find(tmp_path / "dt=1")  # what is above serves where nothing else does
    assert (found.partitions, found.above) == ({"city": "a", "dt": "2"}, {"dt": "1"})


@pytest.mark.parametrize("name", ["clicks", "clicks.csv", "clicks.gz", "clicks.parquet"])
def test_content_says_what_is_compressed(shop, tmp_path, name):
    data = text(rows(40)).encode()
    for content, compress in CONTENTS.items():
        (tmp_path / "raw" / name).write_bytes(compress(data))
        code, said = shop()
        assert code == 0 and sum(count(tmp_path / "out").values()) == 40, (content, said)
        # pyarrow writes none in frames of zstd and lz4.
        silent = "1 compressed files carry no checksum" in " ".join(said.split())
        assert silent == (content[:4] in ("zstd", "lz4")), (content, said)


@pytest.mark.parametrize(
    "frame, unchecked",
    [  # as the programs zstd and lz4 write them, with their options
        ("28b52ffd2408410000612c620a312c320a35e7cace", False),  # --check
        ("28b52ffd2008410000612c620a312c320a", True),  # --no-check
        ("04224d186440a708000080612c620a312c320a000000000ed97998", False),
        ("04224d187040ad08000080612c620a312c320a0ed9799800000000", False),  # of blocks
        ("04224d1860408208000080612c620a312c320a00000000", True),  # --no-frame-crc
        ("28b52ffd", False),  # cut: an error elsewhere
        ("", False),
    ],
)
def test_frames_without_a_checksum_are_known(tmp_path, frame, unchecked):
    (tmp_path / "a").write_bytes(bytes.fromhex(frame))
    assert raw_files.is_unchecked(tmp_path / "a") == unchecked


def test_words_that_look_like_the_first_bytes_of_a_format(shop, tmp_path):
    for name in ("PAR1x", "BZh1", "ORC"):
        columns = {name: ["x"] * 40} | rows(40)
        (tmp_path / "raw" / "a.csv").write_text(text(columns))
        code, said = shop(ignore=(name,))
        assert code == 0, said


def test_tables_whose_files_hold_removed_rows_are_refused(shop, tmp_path):
    (tmp_path / "raw" / "a.csv").write_text(text(rows(40)))
    for name, table in (("_delta_log", "Delta"), (".hoodie", "Hudi")):
        (tmp_path / "raw" / name).mkdir()
        code, said = shop()
        assert code == 2 and f"it is a {table} table, whose files hold removed rows" in said
        (tmp_path / "raw" / name).rmdir()


def test_links_are_followed_but_in_no_circle(shop, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.csv").write_text(text(rows(40)))
    (tmp_path / "raw" / "link").symlink_to(elsewhere)
    assert shop()[0] == 0
    (elsewhere / "back").symlink_to(tmp_path / "raw")
    code, said = shop()
    assert code == 2 and "the link leads back to a directory above it; remove it" in said


def test_what_is_no_file_is_named_instead_of_passed_over(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="gone: it is a link to nothing; remove it"):
        raw_files.find(tmp_path)
    (tmp_path / "gone").unlink()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="pipe: it is (no file; remove it|a pipe or a device)"):
            raw_files.find(path)


@pytest.mark.parametrize("as_file", [str.encode, lambda t: as_parquet(t.encode())])
def test_columns_that_stand_twice(shop, tmp_path, as_file):
    """One that is read is an error; one that is left out on purpose is not."""
    lines = text(rows(40)).splitlines()
    twice = lambda name: "\n".join([f"{lines[0]},{name},{name}", *(f"{x},9,8" for x in lines[1:])])
    (tmp_path / "raw" / "a").write_bytes(as_file(twice("note")))
    assert shop(ignore=("note",))[0] == 0
    assert predicted(tmp_path / "out", tmp_path / "raw" / "a") == (40, [])
    (tmp_path / "raw" / "a").write_bytes(as_file(twice("user")))
    code, said = shop()
    assert code == 2 and "column 'user' stands twice; rename one of the two" in said


def test_rows_without_a_day_are_bad_rows(shop, tmp_path):
    columns = rows(40) | {"day": ["2024-03-01", "2024-03-02", "2024-03-03", "NA"] * 10}
    (tmp_path / "raw" / "a.csv").write_text(text(columns))
    fields = {"split": "day", "day_column": "day", "null_values": ("", "NA")}
    days = {"valid_days": ("2024-03-02",), "test_days": ("2024-03-03",)}
    code, said = shop(**fields, **days)
    assert code == 2 and "a.csv:5: it has no day (column 'day'), so that it is in no split" in said
    code, said = shop(**fields, **days, max_rejected=10)
    assert code == 0 and "rejected for its day: 10" in said
    assert count(tmp_path / "out") == {"train": 10, "valid": 10, "test": 10}
    words = pq.read_table(tmp_path / "out" / "vocabulary" / "user.parquet")
    assert sum(words["count"].to_pylist()) == 10  # of the training rows only


def test_rows_without_a_type_or_a_gauc_key_are_counted(shop, tmp_path):
    columns = rows(40)
    columns["kind"] = ["unknown", "", "-", "buy"] * 10
    columns["who"] = ["", "a", "b", "c", "d"] * 8
    (tmp_path / "raw" / "train.csv").write_text(text(columns))
    fields = {"split": "files", "files.valid": "", "files.test": "", "null_values": ("",)}
    fields |= {"ftype": "kind", "types": ("buy", "unknown"), "gauc_key": "who"}
    code, said = shop(**fields)
    assert code == 0, said
    assert "  without a type, in no figures of a type: 20\n" in said
    assert "  without a GAUC key, left out of GAUC: 8\n" in said
    split = files.read_json(tmp_path / "out" / "prepare.json")["splits"]["train"]
    assert split["without"] == {"type": 20, "gauc_key": 8}
    found = {name: counts["rows"] for name, counts in split["types"].items()}
    assert found == {"buy": 10, "unknown": 10, "no type": 20}
    table = shards.open_split(tmp_path / "out", "train").read_row_group(0, ["ftype", "gauc_key"])
    assert table["gauc_key"].to_pylist().count(0) == 8 and table["ftype"].null_count == 20


def test_a_training_split_of_bad_rows_alone_says_why(shop, tmp_path):
    (tmp_path / "raw" / "a.csv").write_text("label,user,item\n" + "?,u,i\n" * 40)
    code, said = shop(max_rejected=100, positive=())
    assert code == 2 and "a.csv:2: the label is '?'" in said
    assert "rows of the train split are bad: correct them" in said and "has no row" not in said


@pytest.mark.parametrize("kind", ["bz2", "xz"])
@pytest.mark.parametrize("where", ["magic", "middle", "behind", "cut"])
def test_a_member_that_is_damaged_does_not_end_a_file(kind, where, tmp_path):
    """Rows behind a member that cannot be read were passed over in silence."""
    compress = {"bz2": bz2.compress, "xz": lzma.compress}[kind]
    r = np.random.default_rng(0)
    members = [
        compress(r.integers(48, 58, 9000).astype(np.uint8).tobytes() + b"\n") for _ in range(3)
    ]
    second = bytearray(members[1])
    if where != "behind":
        second[{"magic": 1, "middle": len(second) // 2, "cut": 0}[where]] ^= (
            64 if where != "cut" else 0
        )
    whole = b"".join(members)
    damaged = members[0] + bytes(second) + members[2]
    damaged = {"behind": whole + b"1,2,3\n", "cut": whole[:-20]}.get(where, damaged)
    path = tmp_path / "rows"
    path.write_bytes(whole)
    assert sum(len(block.data) for block in lines_lib.blocks(path)) == 3 * 9001
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="it cannot be read to its end"):
        list(lines_lib.blocks(path))


def test_members_of_xz_may_have_padding_between_them(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(lzma.compress(b"a\n") + bytes(8) + lzma.compress(b"b\n") + bytes(4))
    assert b"".join(block.data for block in lines_lib.blocks(path)) == b"a\nb\n"
