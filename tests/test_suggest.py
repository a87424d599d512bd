"""`prepare --suggest`: what is guessed of files of every kind, and that the experiment file runs as it is."""

import os
import random
import runpy
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emofm_jax import prepare, train
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.suggest import columns, experiment
from emofm_jax.data.suggest.column import Seen
from emofm_jax.errors import UserError

EXAMPLES = Path(__file__).parent.parent / "data" / "examples"


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def suggested(source, capsys=None):
    """The config of the file that is suggested; `mine.py` is that file."""
    Path("mine.py").write_text(experiment.suggest(Path(source)))
    return runpy.run_path("mine.py")["get_config"]()


def prepared():
    """The schema after the file has gone through `prepare` as it is."""
    assert prepare.main(["prepare", "--config=mine.py"]) == 0
    directory = runpy.run_path("mine.py")["get_config"]().data.dir
    return schema_lib.load(Path(directory))


def write(name, header, rows, separator=","):
    lines = [separator.join(map(str, row)) for row in ([header] if header else []) + rows]
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def test_a_csv_runs_as_it_is(capsys):
    assert prepare.main(["prepare", f"--suggest={EXAMPLES / 'clicks.csv'}"]) == 0
    Path("mine.py").write_text(capsys.readouterr().out)
    assert "# Groups go by the names of the columns" in Path("mine.py").read_text()
    c = runpy.run_path("mine.py")["get_config"]()
    assert (c.prepare.label, c.prepare.gauc_key, c.prepare.split) == ("clicked", "user", "share")
    assert c.prepare.slots.to_dict() == {
        "tags": {"kind": "multi", "separator": "|", "max_length": 3},
        "price": {"kind": "numeric", "transform": "standardize"},
    }
    assert dict(c.prepare.groups) == {
        "user": ("user", "age"),
        "item": ("item", "brand", "tags", "price"),
        "context": ("hour", "device"),
    }
    slots = {slot.name: slot.kind for slot in prepared().slots}
    assert (
        slots["tags"] == "multi" and slots["price"] == "numeric" and slots["hour"] == "categorical"
    )
    small = [
        "--config.model.stage1=(8,)",
        "--config.model.stage2=(8,)",
        "--config.train.max_steps=2",
    ]
    assert train.main(["train", "--config=mine.py", "--workdir=run", *small]) == 0
    assert (Path("run") / "metrics.json").exists()


def criteo(n=400):
    """Rows without a header: a label, 13 numbers, 26 digests, and cells that are empty."""
    r, rows = random.Random(1), []
    for _ in range(n):
        numbers = [int(r.expovariate(0.1) * (k + 1) ** 2) - (k == 1) for k in range(13)]
        digests = [
            f"{random.Random(k * 99 + r.randrange(9)).getrandbits(32):08x}" for k in range(26)
        ]
        cells = [x if r.random() > 0.15 else "" for x in [*numbers, *digests]]
        rows.append([int(r.random() < 0.3), *cells])
    return rows


def test_criteos_rows_have_no_header():
    write("train.txt", None, criteo(), "\t")
    c = suggested("train.txt")
    assert (c.prepare.separator, c.prepare.header, c.prepare.label) == ("\t", False, "label")
    assert c.prepare.columns == (
        "label",
        *(f"I{i}" for i in range(1, 14)),
        *(f"C{i}" for i in range(1, 27)),
    )
    assert {*c.prepare.slots} == {f"I{i}" for i in range(1, 14)}
    assert {slot.kind for slot in c.prepare.slots.values()} == {"numeric"}
    kinds = [slot.kind for slot in prepared().slots]
    assert kinds == ["numeric"] * 13 + ["categorical"] * 26
    text = Path("mine.py").read_text()  # what was seen of each member of a range
    assert all(f"# {name}: " in text for name in c.prepare.columns[1:])


@pytest.mark.parametrize("source", [".", "..", "../log"])
def test_what_is_written_where_all_files_are_read_would_be_read(source, monkeypatch):
    write("log/log.csv", ["label", "tags"], [[i % 2, i % 7] for i in range(90)])
    monkeypatch.chdir("log")
    with pytest.raises(UserError, match="every file below it is read, .* start in a directory"):
        suggested(source)


def test_a_bag_that_is_cut_is_said():
    rows = [[i % 2, "a|b|c" if i == 7 else ("a", "b|a", "c|b")[i % 3]] for i in range(400)]
    write("log.csv", ["label", "tags"], rows)
    assert suggested("log.csv").prepare.slots["tags"]["max_length"] == 2
    said = "up to 3 values a cell, 2 or fewer in 99% of the cells"
    assert said in Path("mine.py").read_text()


def test_names_that_are_written_with_digits_are_no_amounts():
    rows = criteo()
    for i, row in enumerate(rows):
        row[-1], row[-2] = f"{i % 3:08d}", ("10293847", "56473829", "20391857", "11111111")[i % 4]
    write("train.txt", None, rows, "\t")
    c = suggested("train.txt")
    assert c.prepare.columns[-3:] == ("C24", "C25", "C26") and "C26" not in c.prepare.slots

    rows = [[i % 2, f"{i % 50:05d}", i % 50] for i in range(400)]
    write("log.csv", ["label", "cost_code", "cost_days"], rows)
    assert suggested("log.csv").prepare.slots.to_dict().keys() == {"cost_days"}


def test_files_that_are_splits_and_one_that_is_none():
    names = ["label", "user_id", "date", "duration_s", "music_id", "tab"]
    r = random.Random(0)
    for name, day in (("train", 10), ("valid", 20), ("test", 25)):
        rows = [
            [
                int(r.random() < 0.4),
                r.randrange(30),
                f"202204{day + i // 40}",
                f"{r.random() * 900:.1f}",
            ]
            + [10**9 + r.randrange(50), r.randrange(4)]
            for i in range(80)
        ]
        write(f"log/{name}.csv", names, rows)
    write("log/outcomes.csv", ["is_click", "play_time"], [[1, 2]])
    c = suggested("log")
    assert c.prepare.split == "files" and c.prepare.files.to_dict() == {
        name: f"{name}*" for name in ("train", "valid", "test")
    }
    assert c.prepare.ignore == ("date",) and c.prepare.slots["duration_s"]["kind"] == "numeric"
    assert "music_id" not in c.prepare.slots and c.prepare.gauc_key == "user_id"
    text = Path("mine.py").read_text()
    assert "what are outcomes.csv?" in text and "is 'tab' the type of an interaction" in text
    assert prepared().num_slots == 4


def test_days_of_one_file_are_a_split_by_day():
    r = random.Random(0)
    rows = [
        [
            f"2024-03-{1 + i // 50:02d}",
            r.choice(["yes", "no"]),
            r.randrange(9),
            f"id{i}",
            r.choice("ab"),
        ]
        for i in range(500)
    ]
    write("log.csv", ["day", "converted", "uid", "log_id", "kind"], rows, ";")
    c = suggested("log.csv")
    p = c.prepare
    assert (p.separator, p.label, p.gauc_key, p.row_id) == (";", "converted", "uid", "log_id")
    assert (p.split, p.day_column, p.day_length) == ("day", "day", 10)
    assert (p.valid_days, p.test_days) == (("2024-03-09",), ("2024-03-10",))
    assert prepared().num_slots == 2


@pytest.mark.parametrize("source", ["cti", "fields", "flat"])
def test_rows_of_tokens(source):
    r = random.Random(0)
    user, tag = (lambda: f"u:{r.randrange(9)}:1"), (lambda: f"tag:{r.randrange(5)}:1")
    if source == "cti":
        c = suggested(EXAMPLES / "cti")
        assert c.prepare.format == "cti" and c.prepare.slots["401"]["kind"] == "multi"
        assert [group for group, _ in c.prepare.groups] == ["of_1", "of_2", "of_3", "of_4"]
        assert dict(c.prepare.groups)["of_1"] == ("101-104",) and c.prepare.split == "files"
    elif source == "fields":
        Path("log").write_text("".join(f"{i % 2} {user()} {tag()} {tag()}\n" for i in range(300)))
        c = suggested("log")
        assert c.prepare.format == "libsvm" and dict(c.prepare.groups) == {"all": ("u", "tag")}
        assert c.prepare.slots.to_dict() == {"tag": {"kind": "multi", "max_length": 2}}
    else:
        lines = (f"{i % 2} {r.randrange(99)}:1 {r.randrange(99)}:1\n" for i in range(300))
        Path("log").write_text("".join(lines))
        c = suggested("log")
        assert dict(c.prepare.groups) == {"features": ("features",)}
        assert c.prepare.slots["features"]["kind"] == "multi"
    prepared()


def test_one_id_with_many_values_is_a_number():
    r = random.Random(0)
    rows = (f"{i % 2} u:{i % 9}:1 price:0:{r.expovariate(0.1):.2f} one:0:1\n" for i in range(300))
    Path("log").write_text("".join(rows))
    assert suggested("log").prepare.slots.to_dict().keys() == {"price"}
    assert "one id with numbers, 0" in Path("mine.py").read_text()
    assert {slot.name: slot.kind for slot in prepared().slots}["price"] == "numeric"


def test_parquet_with_lists_vectors_and_partitions():
    r = random.Random(0)
    for country in ("de", "fr"):
        table = pa.table(
            {
                "clicked": pa.array([r.random() < 0.5 for _ in range(100)]),
                "user": pa.array([r.randrange(9) for _ in range(100)]),
                "tags": pa.array([["a", "b"][: r.randrange(3)] for _ in range(100)]),
                "vec": pa.array([[0.5, float(i), 1.0] for i in range(100)], pa.list_(pa.float32())),
                "ctr": pa.array([r.random() for _ in range(100)]),
            }
        )
        Path(f"log/country={country}").mkdir(parents=True)
        pq.write_table(table, f"log/country={country}/part.parquet")
    c = suggested("log")
    assert c.prepare.label == "clicked" and c.prepare.slots["vec"].length == 3
    assert (
        c.prepare.slots["tags"]["kind"] == "multi" and c.prepare.slots["ctr"]["kind"] == "numeric"
    )
    assert "country" in dict(c.prepare.groups)["context"]
    assert prepared().num_slots == 5


def test_parquet_of_pairs_views_and_what_no_slot_can_hold():
    n, pair = 200, {"k": "a", "w": 0.5}
    writes_views = int(pa.__version__.split(".")[0]) > 21  # pyarrow 21 reads them only
    views = pa.list_view(pa.string_view()) if writes_views else pa.list_(pa.string())
    columns = {
        "is_click": pa.array([True, False, False, True] * 50),
        "deep": pa.array([[["a"]]] * n),
        "of_maps": pa.array([[[("a", 1)]]] * n, pa.list_(pa.map_(pa.string(), pa.int64()))),
        "three": pa.array([{"a": 1, "b": 2, "c": 3}] * n),
        "one": pa.array([pair, None] * (n // 2)),
        "several": pa.array([[pair, {"k": "b", "w": 2.0}], []] * (n // 2)),
        "map": pa.array([[("a", 1), ("b", 2)]] * n, pa.map_(pa.string(), pa.int64())),
        "views": pa.array([["a", "b"]] * n, views),
        "uuid": pa.array([uuid.UUID(int=i % 7).bytes for i in range(n)], pa.uuid()),
    }
    pq.write_table(pa.table(columns), "log.parquet")
    c = suggested("log.parquet")
    assert c.prepare.label == "is_click" and c.prepare.ignore == ("deep", "of_maps", "three")
    several = {"kind": "multi", "max_length": 2}
    wanted = {"one": {}, "several": several, "map": several}
    wanted = {name: {**slot, "weighted": True} for name, slot in wanted.items()}
    assert c.prepare.slots.to_dict() == {**wanted, "views": several}
    assert "values of type list<" in Path("mine.py").read_text()
    assert prepared().num_slots == 5


def test_values_that_never_stop_growing_are_hashed():
    seen = Seen("url", pa.array([f"u{i}" for i in range(30_000)]))
    found = columns.Guess()
    columns._slot(seen, found, True)
    assert found.slots["url"]["encoding"] == "hash" and found.slots["url"]["rows"] >= 4 * 30_000
    again = Seen("url", pa.array([f"u{i % 25_000}" for i in range(100_000)]))
    columns._slot(again, found, True)
    assert found.slots["url"] == {"min_count": 2}


def test_a_large_hashed_table_is_not_passed_over_in_every_step():
    rows = [[i % 2, f"u{i // 2 * 2 + i % 3 // 2}", "abc"[i % 3]] for i in range(50_000)]
    write("grows.csv", ["label", "url", "device"], rows)
    c = suggested("grows.csv")
    assert c.prepare.slots["url"]["encoding"] == "hash"
    assert (c.optim.embedding.updates, c.optim.embedding.l2_rows) == ("lazy", 0)
    assert (c.train.epochs, c.train.average_epochs) == (1, 0)


def test_spellings_of_missing_numbers_and_an_outcome_are_said():
    r = random.Random(0)
    rows = [
        [i % 2, int(i % 3 == 0), f"{r.random():.2f}" if i % 5 else "NULL", i % 7]
        for i in range(200)
    ]
    write("log.csv", ["click", "conversion", "price", "user"], rows)
    c = suggested("log.csv")
    assert c.prepare.null_values == ("", "NULL") and c.prepare.slots["price"]["kind"] == "numeric"
    assert "is 'conversion' an outcome, too?" in Path("mine.py").read_text()
    prepared()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "no such file or directory"),
        ("", "it holds no file with rows"),
        ("one\ntwo\n", "no columns are to be seen"),
        ("a,b\n1,5\n2,6\n3,7\n", "no column has two values that could be a click and none"),
        (
            "a,ok?\n" + "1,Yes\n2,No\n" * 9 + "3,unknown\n",
            "'ok?' is 'No' or 'Yes', but 1 of 19 rows have 'unknown' or the like there; take these",
        ),
        ("click,x\n1,\n0,\n", "no value in any row"),
        ("click,user,user\n0,a,b\n1,a,c\n", "its first line has 'user' twice; rename one"),
        ('{"click": 0}\n{"click": 1}\n', "it is JSON; write it as Parquet, or as text"),
        (
            "click,x\n" + "1,5\n0,6\n" * 3 + ",7\n",
            "'click' is '0' or '1', but 1 of 7 rows have nothing or the like there; take",
        ),
        (  # another column of two values is no label where one is called so
            "weekend,click\n" + "1,1\n0,0\n" * 9 + "1,?\n",
            "'click' is '0' or '1', but 1 of 19 rows have '?' or the like there; take",
        ),
        (  # `prepare` asks what -1 means beside 0
            "click,x\n" + "1,5\n0,6\n" * 99 + "-1,7\n",
            "'click' is '0' or '1', but 1 of 199 rows have '-1' or the like there; take",
        ),
        ("# of today\n" + "click,x,y\n" * 30, "no row of as many columns as its first line"),
    ],
)
def test_what_cannot_be_guessed_is_one_line(text, line, capsys):
    if text is not None:
        Path("log.csv").write_text(text)
    code = prepare.main(["prepare", "--suggest=log.csv"])
    said = capsys.readouterr()
    if "no value in any row" in line:
        line = "no column beside the label can be a slot"
    assert code == 2 and line in said.err and said.err.count("\n") == 1 and not said.out


def test_files_whose_columns_stand_in_another_order_and_names_that_are_ranges():
    rows = [[i % 2, f"u{i % 9}", i % 3] for i in range(60)]
    write("log/a.csv", ["click", "user", "18-24"], rows)
    write("log/b.csv", ["user", "18-24", "click"], [[u, x, y] for y, u, x in rows])
    c = suggested("log")
    assert c.prepare.label == "click" and dict(c.prepare.groups) == {"user": ("user",)}
    assert c.prepare.ignore == ("18-24",) and "reads as a range" in Path("mine.py").read_text()
    prepared()


def test_a_column_without_a_name_and_one_that_no_slot_may_be():
    rows = [[i, i % 2, f"u{i % 9}", "abc"[i % 3]] for i in range(60)]
    write("log.csv", ["", "click", "user", "weight"], rows)
    c = suggested("log.csv")
    assert c.prepare.label == "click" and c.prepare.ignore == ("", "weight")
    text = Path("mine.py").read_text()
    assert '# "": a column without a name' in text and "# weight: no slot may be called so" in text
    prepared()


def test_dates_beside_the_day_are_no_slots():
    days = [f"2024-03-{1 + i // 20:02d}" for i in range(100)]
    born = [f"19{80 + i % 9}-01-01" for i in range(100)]
    rows = [[d, i % 2, f"{d} 07:00", b] for i, (d, b) in enumerate(zip(days, born))]
    write("log.csv", ["day", "click", "seen", "born"], rows)
    c = suggested("log.csv")
    assert c.prepare.day_column == "day" and c.prepare.ignore == ("seen",)
    assert dict(c.prepare.groups) == {"other": ("born",)}
    prepared()


def test_rows_of_a_test_file_are_not_mixed_with_others_unasked():
    for name in ("train", "test"):
        write(f"log/{name}.csv", ["click", "user"], [[i % 2, f"u{i % 9}"] for i in range(60)])
    assert suggested("log").prepare.split == "share"
    assert "are test.csv for evaluation alone?" in Path("mine.py").read_text()
    Path("log/test.csv").rename("log/train2.csv")
    suggested("log")
    assert "for evaluation alone" not in Path("mine.py").read_text()


def test_amounts_that_differ_in_all_rows_are_no_names_and_weights_are_asked_about():
    rows = [[i % 2, 9000 + i * 37, f"u{i % 9}", i % 5] for i in range(60)]
    write("log.csv", ["click", "balance", "user", "weight"], rows)
    c = suggested("log.csv")
    assert not c.prepare.row_id and c.prepare.slots["balance"]["kind"] == "numeric"
    assert "does a row count 'weight' times?" in Path("mine.py").read_text()
    prepared()
    rows[7][-1] = ""  # `prepare` takes no row without one
    write("log.csv", ["click", "balance", "user", "weight"], rows)
    assert not suggested("log.csv").prepare.weight
    prepared()


@pytest.mark.parametrize("user", ["{0}|{1}", "{0},{1}", "{0}.{1}"])
def test_a_user_is_one_value(user):
    rows = [[i % 2, user.format(i % 9, i % 7), i % 5] for i in range(120)]
    write("log.csv", ["click", "uid", "hour"], rows, separator=";")
    c = suggested("log.csv")
    assert c.prepare.gauc_key == "uid" and not c.prepare.slots
    assert "numbers with a comma" not in Path("mine.py").read_text()
    prepared()


def test_rows_of_bad_labels_are_asked_about_and_rejected():
    rows = [[("yes", "no")[i % 2] if i != 70 else "?", f"u{i % 30}", i] for i in range(150)]
    write("log.csv", ["clicked", "user", "time"], rows)
    c = suggested("log.csv")
    assert (c.prepare.label, c.prepare.max_rejected) == ("clicked", 1)
    asked = " ".join(Path("mine.py").read_text().split())
    assert "is 'clicked' the label? 1 of 150 rows have '?' or the like there" in asked
    prepared()


def test_a_bad_label_makes_no_label_of_another_column(capsys):
    rows = [[i % 3 % 2, i % 2 if i != 70 else "", f"u{i % 30}", i % 4 % 2] for i in range(150)]
    rows[9][0] = "?"  # nor does it where others have bad values, too
    write("log.csv", ["weekend", " Label", "user", "is_mobile"], rows)
    c = suggested("log.csv")
    assert (c.prepare.label, c.prepare.max_rejected) == (" Label", 1)
    assert "is ' Label' the label? 1 of 150" in Path("mine.py").read_text()
    prepared()

    write("log.csv", ["weekend", "post_clicks", "user", "is_mobile"], rows[10:70])
    assert suggested("log.csv").prepare.label == "post_clicks"
    text = " ".join(Path("mine.py").read_text().split())
    assert "is 'post_clicks' the label? By its name" in text and "weekend, is_mobile have" in text

    write("log.csv", ["weekend", "user"], [row[::2] for row in rows[10:]])
    assert suggested("log.csv").prepare.label == "weekend"
    text = " ".join(Path("mine.py").read_text().split())
    assert "is 'weekend' the label? By its name it need not be; no other" in text


def test_a_label_of_several_values_is_named_where_another_column_has_two():
    write(
        "log.csv", ["weekend", "target", "user"], [[i % 2, i % 5, f"u{i % 9}"] for i in range(90)]
    )
    assert suggested("log.csv").prepare.label == "weekend"
    text = " ".join(Path("mine.py").read_text().split())
    assert "and 'target' has 5 values, as '0', '1', '2': config.prepare.positive reads" in text


def test_all_outcomes_are_asked_about_bad_values_or_not():
    rows = [[i % 2, i % 3 % 2, i % 4 % 2 if i % 9 else "n/a", i % 7] for i in range(90)]
    write("log.csv", ["click", "conversion", "purchased", "user"], rows)
    suggested("log.csv")
    text = " ".join(Path("mine.py").read_text().split())
    assert "are 'conversion', 'purchased' outcomes, too? What is known only" in text


def test_a_name_that_is_a_number_is_one_of_a_header():
    rows = [[i % 2, f"{i % 70}.5", i % 5, f"u{i % 9}"] for i in range(90)]
    write("log.csv", ["click", "price", "2024", "user"], rows)
    c = suggested("log.csv")
    assert c.prepare.header and c.prepare.label == "click" and not c.prepare.max_rejected
    assert c.prepare.slots["price"]["kind"] == "numeric"
    prepared()


def test_the_lines_of_a_type_stand_ready():
    rows = [[i % 2, f"u{i % 30}", ("home", "search")[i % 3 == 0]] for i in range(300)]
    write("log.csv", ["click", "user", "channel"], rows)
    suggested("log.csv")
    text = Path("mine.py").read_text()
    assert "is 'channel' the type of an interaction" in text
    taken_out = [x for x in text.splitlines() if not x.strip().startswith('"channel"')]
    Path("mine.py").write_text("\n".join(taken_out).replace("# c.prepare.", "c.prepare."))
    assert prepared().types == ("home", "search")


def test_days_that_have_no_order_and_decimals_with_a_comma_are_asked_about():
    paid = lambda i: "n/a" if i % 10 == 9 else f"{i % 7},{i % 9}5"
    rows = [[f"{1 + i // 20}.3.2024 07:00", i % 2, paid(i)] for i in range(100)]
    write("log.csv", ["Zeit", "click", "paid"], rows, separator=";")
    suggested("log.csv")
    text = " ".join(Path("mine.py").read_text().split())
    assert "is 'Zeit' the day of a row? Write it as 2024-03-10" in text
    assert "are the cells of 'paid' numbers with a comma?" in text
    prepared()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (lambda i: f"0,{i * 7919:06d}", "Write 0,000000 as 0.000000: they are taken for names"),
        (lambda i: ("1,99", "2,49", "3,90")[i % 3], "Write 1,99 as 1.99: they are taken for names"),
        (lambda i: f"{i % 7}.{i:03d},5", "Write 0.000,5 as 0000.5: they are taken for names"),
        (lambda i: f"{i % 7 + 1},{i:03d}.5", "Write 1,000.5 as 1000.5: they are taken for names"),
    ],
)
def test_numbers_with_a_comma_are_asked_about_however_many_there_are(cell, said):
    rows = [[i % 2, cell(i), cell(i + 1), f"u{i % 9}"] for i in range(90)]
    write("log.csv", ["click", "price", "bid", "user"], rows, separator=";")
    c = suggested("log.csv")
    assert c.prepare.separator == ";" and not c.prepare.row_id
    text = " ".join(Path("mine.py").read_text().split())
    assert f"are the cells of 'price' numbers with a comma? {said}" in text
    prepared()


@pytest.mark.parametrize("comma", [",", ", "])
def test_decimal_commas_do_not_separate_columns(comma):
    rows = [[f"{i % 7},{i % 9}5", f"{i % 5},{i % 8}1", i % 2] for i in range(90)]
    write("log.csv", ["price", "bid", "click"], rows, separator=";")
    assert suggested("log.csv").prepare.separator == ";"
    write(
        "log.csv", ["user", "item", "click"], [["a", f"b{i % 3}", i % 2] for i in range(90)], comma
    )
    assert suggested("log.csv").prepare.label.strip() == "click"
    prepared()


def test_dates_of_directories_are_the_days_whatever_they_are_called():
    for day in range(1, 6):
        rows = [[i % 2, f"u{i % 9}"] for i in range(40)]
        write(f"log/p_date=2024-03-0{day}/part.csv", ["click", "user"], rows)
    c = suggested("log")
    assert (c.prepare.split, c.prepare.day_column) == ("day", "p_date")
    assert "rows lie mixed" not in Path("mine.py").read_text()
    prepared()


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        (["2024.03.01", "2024.03.02"], "? Write it as 2024-03-10"),
        (["2024-3-1", "2024-3-12"], "? Write it as 2024-03-10"),
        (["Mar 1, 2024", "April 12, 2024 7:05"], "? Write it as 2024-03-10"),
        (["1 Mar 2024", "12-apr-24"], "? Write it as 2024-03-10"),
        (["2024-03-01", "2024-03-02"], ", though the rows lie mixed? c.prepare.split = 'day'"),
        (["2024-03-01", ""], ", though 50% of the rows have none? c.prepare.split = 'day'"),
        (["10.0.12", "9.4.24"], ""),  # of a version
    ],
)
def test_dates_that_no_split_goes_by_are_asked_about(dates, said):
    rows = [[dates[i % 2], i % 2, f"u{i % 9}"] for i in range(90)]
    write("log.csv", ["when", "click", "user"], rows, separator=";")
    suggested("log.csv")
    text = " ".join(Path("mine.py").read_text().split())
    assert f"is 'when' the day of a row{said}" in text if said else "the day of a row" not in text


def test_cells_of_several_lines_end_nowhere_in_the_rows_that_tell_the_kind():
    write("log.csv", ["click", "text", "user"], [])
    rows = [f'{i % 2},"a\nb",u{i % 9}\n' for i in range(400)]
    Path("log.csv").write_text("click,text,user\n" + "".join(rows))
    assert suggested("log.csv").prepare.quoting == "double"
    prepared()


def test_parquet_beside_text_is_refused(capsys):
    write("log/a.csv", ["click", "user"], [[i % 2, f"u{i % 9}"] for i in range(60)])
    pq.write_table(pa.table({"click": [0, 1], "user": ["a", "b"]}), "log/b.parquet")
    assert prepare.main(["prepare", "--suggest=log"]) == 2
    said = capsys.readouterr().err
    assert "log/b.parquet is Parquet, log/a.csv is text; name one kind" in said
    assert said.count("\n") == 1


def test_days_behind_the_rows_that_were_read_are_not_trained_on(monkeypatch):
    monkeypatch.setattr("emofm_jax.data.suggest.sample.ROWS", 400)
    rows = [[f"2024-03-{1 + i // 50:02d}", i % 2, f"u{i % 9}"] for i in range(500)]
    write("log.csv", ["day", "click", "user"], rows)
    c = suggested("log.csv")
    assert c.prepare.test_days == ("2024-03-08",) and c.prepare.train_days[-1] == "2024-03-06"
    prepared()


def test_rows_of_many_files_and_names_that_are_programs():
    names = ["label", "user", "hour"]
    for day in range(45):
        write(f"log/{day:02d}.csv", names, [[i % 2, f"u{i % 9}", day % 24] for i in range(40)])
    odd = 'log/"""\nraise SystemExit(1)\n""".csv'
    write(odd, names, [[i % 2, f"u{i % 9}", 1] for i in range(40)])
    suggested("log")
    text = Path("mine.py").read_text()
    assert "800 rows" in text and 'of 20 of 46 files: \\"\\"\\"' in text
    assert "44.csv." in text and "43.csv" not in text and "\nraise" not in text
    prepared()


def test_a_separator_of_lines_within_a_cell_ends_no_row():
    rows = [[i % 2, f"u\u2028{i % 9}", f"a\x0c{i % 3}"] for i in range(60)]
    write("log.csv", ["label", "user", "tab"], rows)
    assert "from 60 rows" in (suggested("log.csv"), Path("mine.py").read_text())[1]
    prepared()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_file_is_the_same_program_in_any_encoding(encoding):
    rows = [[i % 2, f"größe{i % 3}", "\u732b\U0001f600"] for i in range(60)]
    write("log.csv", ["click", "Maß\u732b\\", 'x"é'], rows)
    command = [sys.executable, "-m", "emofm_jax.prepare", "--suggest=log.csv"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    Path("mine.py").write_bytes(subprocess.check_output(command, env=environment))
    groups = runpy.run_path("mine.py")["get_config"]().prepare.groups
    assert dict(groups) == {"other": ("Maß\u732b\\", 'x"é')}
