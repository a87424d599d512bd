"""`evaluate --input` and `--by`: labelled raw rows through a run's own recipe, by the values of columns too."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from emofm_jax import evaluate, prepare, report, train
from emofm_jax.data import files

COLUMNS = "id,clicked,user,device,price,tags,kind,w,campaign"
FIGURES = {"auc": 5, "logloss": 5, "pcoc": 3, "gauc": 5}  # and the decimals of a page
FILE = """
from emofm_jax import config

def get_config():
    c = config.default()
    c.name, c.data.dir, c.seed = "shop", "data", 3
    p = c.prepare
    p.source, p.split, p.label, p.gauc_key, p.row_id = "raw", "files", "clicked", "user", "id"
    p.ftype, p.types, p.weight, p.ignore = "kind", ("view", "buy"), "w", ("campaign",)
    p.files.train, p.files.valid, p.files.test = "train.csv", "valid.csv", "test.csv"
    p.groups = (("user", ("user",)), ("item", ("device", "price", "tags")))
    p.slots = {"price": {"kind": "numeric", "transform": "log1p"}, "tags": {"kind": "multi"},
               "device": {"encoding": "hash", "rows": 50}}
    c.model.name, c.model.hidden, c.model.embedding_dim = "wm", (8,), 4
    c.model.stage1 = c.model.stage2 = c.model.am_hidden = (8,)
    c.data.batch_size = c.data.eval_batch_size = 64
    c.optim.embedding.learning_rate = c.optim.network.learning_rate = 0.02
    return c
"""


def made(n: int, seed: int) -> list[list[str]]:
    """Rows of COLUMNS: a tenth without a user, some without a device or campaign; "tv" is never in training."""
    r = np.random.default_rng(seed)
    devices = ["pc", "phone", "", *(["tv"] if seed > 1 else [])]
    lines = []
    for i in range(n):
        user, device = int(r.integers(12)), str(r.choice(devices))
        rate = 0.15 + 0.05 * (user % 5) + 0.3 * (device == "pc")
        lines.append(
            [
                f"r{seed}-{i}",
                str(int(r.random() < rate)),
                f"u{user}" if r.random() < 0.9 else "",
                device,
                f"{r.gamma(2) * 10:.2f}",
                "^".join(f"t{t}" for t in r.integers(0, 9, r.integers(0, 4))),
                str(r.choice(["view", "buy", "-"])),
                str(int(r.integers(1, 4))),
                str(r.choice(["spring", "autumn", ""])),
            ]
        )
    return lines


def write(path: Path, rows: list[list[str]], columns: str = COLUMNS) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run on raw files of its own."""
    home = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        Path("raw").mkdir()
        for seed, (split, n) in enumerate({"train": 600, "valid": 200, "test": 300}.items()):
            write(Path("raw") / f"{split}.csv", made(n, min(seed, 1)))
        Path("shop.py").write_text(FILE)
        assert prepare.main(["prepare", "--config=shop.py"]) == 0
        assert train.main(["train", "--config=shop.py", "--workdir=run"]) == 0
        yield home


def evaluated(*flags) -> int:
    return evaluate.main(["evaluate", "--workdir=run", *flags])


def said(name: str) -> dict:
    return files.read_json(Path(f"run/predictions/{name}.json"))


def close(value):
    return None if value is None else pytest.approx(value, rel=0, abs=1e-9)


def test_the_raw_test_file_gives_what_its_split_gave(run, capsys):
    """To the bit: recipe, vocabularies, types, weights and keys are those of training."""
    own = Path("run/predictions/test.parquet").read_bytes()
    assert evaluated("--input=raw/test.csv") == 0
    found, split = said("input@test"), files.read_json(Path("run/metrics.json"))["test"]
    assert (found.pop("data"), found.pop("rejected")) == ("raw/test.csv", 0)
    assert found.pop("step") == files.read_json(Path("run/metrics.json"))["train"]["kept_step"]
    assert found == split and split["gauc"] and len(split["types"]) == 2 and split["calibration"]

    out = capsys.readouterr().out
    assert out.startswith("new rows   ") and "unknown values: " in out
    assert "rows have no key and are left out" in out
    assert "written: run/predictions/input@test.parquet, run/predictions/input@test.json" in out
    assert Path("run/predictions/test.parquet").read_bytes() == own, "that of the split stays"
    assert not Path("run/predictions/input@test.rejected.parquet").exists()
    table, before = (pq.read_table(f"run/predictions/{n}.parquet") for n in ("input@test", "test"))
    assert table.drop_columns("row_id").equals(before)
    assert table["row_id"].to_pylist() == [row[0] for row in made(300, 1)]


def test_every_figure_is_that_of_scikit_learn_on_the_written_rows(run):
    """Rows of another order of columns, with one more, half of them compressed; bad ones are left out."""
    rows = [[*row, "x"] for row in made(500, 2)]
    order = [8, 2, 1, 0, 3, 4, 5, 6, 7, 9]
    head = [*COLUMNS.split(","), "new"]
    rows[7][1], rows[20][1], rows[30][4], rows[40][6] = "maybe", "", "cheap", "rent"
    bad = [7, 20, 30, 40]
    mixed = [[row[i] for i in order] for row in rows]
    columns = ",".join(head[i] for i in order)
    write(Path("a,1.csv"), mixed[:250], columns)
    write(Path("b.csv"), mixed[250:], columns)
    Path("tomorrow").mkdir()
    Path("tomorrow/b.csv.gz").write_bytes(gzip.compress(Path("b.csv").read_bytes()))
    assert (
        evaluated("--input=a,1.csv,tomorrow", "--by=device,campaign,user,kind", "--by_values=7")
        == 0
    )

    body, table = said("input@a,1+1"), pq.read_table("run/predictions/input@a,1+1.parquet")
    kept = [row for i, row in enumerate(rows) if i not in bad]
    assert table["row"].to_pylist() == [i for i in range(500) if i not in bad]
    assert table["row_id"].to_pylist() == [row[0] for row in kept]
    cell = lambda name: [row[head.index(name)] for row in kept]
    y, w = np.array(cell("clicked"), int), np.array(cell("w"), float)
    assert table["weight"].to_pylist() == w.tolist() and table["label"].to_pylist() == y.tolist()
    assert [key == 0 for key in table["gauc_key"].to_pylist()] == [not u for u in cell("user")]
    z = table["logit"].to_numpy().astype(np.float64)
    p, p_z = table["p"].to_numpy().astype(np.float64), 1 / (1 + np.exp(-z))

    def figures(own, y=y, score=z, p=p, q=p_z):
        own = np.asarray(own)
        return {
            "auc": close(roc_auc_score(y[own], score[own], sample_weight=w[own])),
            "logloss": close(log_loss(y[own], q[own], sample_weight=w[own])),
            "pcoc": close((w * p)[own].sum() / (w * y)[own].sum()),
            "rows": int(own.sum()),
            "clicks": int(y[own].sum()),
        }

    assert body | figures(np.ones(len(y), bool)) == body
    users, total, mass = np.array(cell("user")), 0.0, 0.0
    for user in sorted({*users} - {""}):
        own = users == user
        total += w[own].sum() * roc_auc_score(y[own], z[own], sample_weight=w[own])
        mass += w[own].sum()
    assert body["gauc"] == close(total / mass)
    assert (
        f"; {np.count_nonzero(users == '')} rows have no key and are left out" in body["notes"][1]
    )
    given = np.stack(table["p_given_type"].to_pylist()).astype(np.float64)
    for t, part in enumerate(body["types"]):
        q = given[:, t]
        assert part | figures(np.array(cell("kind")) == part["name"], y, q, q, q) == part

    assert [part["column"] for part in body["by"]] == ["device", "campaign", "user", "kind"]
    for part in body["by"]:
        values = np.array(cell(part["column"]))
        assert part["num_values"] == len({*values}) and len(part["values"]) == min(
            7, len({*values})
        )
        for value in part["values"]:
            own = values == (value["value"] or "")
            expected = figures(own) | {"mean_p": close(np.average(p[own], weights=w[own]))}
            assert value | expected == value
        others = ~np.isin(values, [v["value"] or "" for v in part["values"]])
        assert (part["others"] is None) == (not others.any())
        if part["others"]:
            assert part["others"] | figures(others) == part["others"]
    assert [v["value"] for v in body["by"][1]["values"]].count(None) == 1, "no campaign"
    assert {v["value"] for v in body["by"][0]["values"]} == {"pc", "phone", None, "tv"}


def test_rows_that_cannot_be_read_are_counted_named_and_written(run, capsys):
    rows = made(40, 2)
    rows[3][1], rows[9], rows[20][8] = "maybe", rows[9][:4], "spr\ning"
    write(Path("c.csv"), rows)
    assert evaluated("--input=c.csv") == 0
    first = "c.csv:5: the label is 'maybe'; it must be 0 or 1"
    out = capsys.readouterr().out
    assert f"note: 2 of 40 rows could not be read and are left out; the first: {first}" in out
    assert "1 rows run over line ends" in out and "c.csv:22" in out, (
        "what prepare says of such a file, too"
    )
    left_out = pq.read_table("run/predictions/input@c.rejected.parquet").to_pydict()
    assert left_out["row"] == [3, 9] and left_out["reason"][0].startswith(first)
    assert said("input@c")["rejected"] == 2 and said("input@c")["rows"] == 38
    Path("later").mkdir()
    write(Path("later/c.csv"), made(40, 2))
    assert "is replaced" not in out
    assert evaluated("--input=later/c.csv") == 0
    assert "; input@c.json of c.csv is replaced" in capsys.readouterr().out
    assert not Path("run/predictions/input@c.rejected.parquet").exists(), "it was of other rows"


def test_parquet_and_calibration_of_new_rows(run, capsys):
    rows = made(200, 2)
    cells = dict(zip(COLUMNS.split(","), zip(*rows)))
    table = {name: pa.array(column).cast(pa.string()) for name, column in cells.items()}
    table["clicked"], table["price"] = (
        table[n].cast(t) for n, t in (("clicked", pa.int64()), ("price", pa.float64()))
    )
    table["tags"] = pa.array([[t for t in text.split("^") if t] for text in cells["tags"]])
    table["hour"] = pa.array(np.arange(200) % 3)
    pq.write_table(pa.table(table), "new.parquet")
    write(Path("new.csv"), rows)
    assert evaluated("--input=new.csv") == 0
    from_csv = said("input@new")
    assert evaluated("--input=new.parquet", "--by=hour,clicked", "--calibrate=platt") == 0
    found = said("input@new")
    fit, by = found.pop("calibration_fit"), found.pop("by")
    assert found == from_csv | {"data": "new.parquet"}
    assert (fit["split"], fit["rows"], fit["evaluated"]) == ("valid", 200, "input@new")
    assert sorted(v["value"] for v in by[0]["values"]) == ["0", "1", "2"]
    assert [v["auc"] for v in by[1]["values"]] == [None, None]
    assert "platt, new rows" in capsys.readouterr().out
    shutil.copytree("data", "moved")
    assert evaluated("--input=new.parquet", "--calibrate=platt", "--data=moved") == 0
    again = said("input@new")["calibration_fit"]
    assert again == fit | {"data": "moved/valid"}, "fitted on the shards of --data"


def test_a_split_by_its_slots_and_types(run, capsys):
    """Values of a vocabulary, rows of a hash, types; the same figures as of the raw rows."""
    assert evaluated("--by=user,device,ftype") == 0
    out, split = capsys.readouterr().out, said("test")
    assert "by user: " in out and "(missing or unknown)" in out and "(of unknown type)" in out
    assert evaluated("--input=raw/test.csv", "--by=user,device,ftype") == 0
    raw = said("input@test")
    for ours, theirs in zip(split["by"], raw["by"]):
        assert [v | {"value": ""} for v in ours["values"]] == [
            v | {"value": ""} for v in theirs["values"]
        ]
    names = lambda part: {v["value"] for v in part["values"]}
    assert names(split["by"][0]) == names(raw["by"][0]) and "u3" in names(split["by"][0])
    assert {str(name).split()[0] for name in names(split["by"][1])} == {"hash", "None"}
    assert names(split["by"][2]) == {"view", "buy", None} and names(raw["by"][2]) == {
        "view",
        "buy",
        "-",
    }
    assert split["step"] == raw["step"]


def test_the_page_of_the_run_has_new_rows_and_values(run, capsys):
    assert evaluated("--input=raw/test.csv", "--by=campaign", "--by_values=2") == 0
    assert evaluated("--split=valid", "--by=device") == 0
    Path("run/predictions/other.json").write_text(json.dumps(said("valid") | {"step": 1}))
    assert report.main(["report", "--workdir=run"]) == 0
    text = Path("run/report.md").read_text()
    found, worst = said("input@test"), said("input@test")["by"][0]["values"][0]
    cells = lambda text: [[c.strip() for c in x.split("|")[1:-1]] for x in text.splitlines()]
    lines = cells(text)
    model = next(line for line in lines if line[:2] == ["input@test", "model"])
    assert model[2:] == [*(f"{found[k]:.{d}f}" for k, d in FIGURES.items()), "300"]
    head = "`input@test` by `campaign`: 3 values, worst calibrated first; 2 are shown"
    lines = cells(text.split(head)[1])
    line = next(line for line in lines if line[:1] == [worst["value"] or "(missing)"])
    assert line[1:3] == [str(worst["rows"]), str(worst["clicks"])]
    assert line[5] == f"{worst['pcoc']:.3f}" and line[6].startswith(
        f"{worst['pcoc_interval'][0]:.3f} to "
    )
    assert "`valid` by `device`" in text and "(1 other)" in text
    assert "Left out, since they are of another step than the run's: `other`." in text
    assert text.count("`other`") == 1
    Path("run/predictions/other.json").unlink()
    assert "campaign" in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=none.csv"], "--input=none.csv: no such file or directory"),
        (
            ["--input=data"],
            "--input=data: it holds shards, not raw rows; write --data=data --split=test",
        ),
        (["--input=data/test"], "--input=data/test: it holds shards, not raw rows; write --data="),
        (["--input=bare.csv"], "bare.csv: there is no column 'clicked' (config.prepare.label)"),
        (
            ["--input=dash.csv"],
            "none of its 3 rows can be read as a labelled row; the first: dash.csv:2: ",
        ),
        (
            ["--input=raw,raw/test.csv"],
            "raw/test.csv: it is raw/test.csv, and would count twice; remove one",
        ),
        (["--input=raw/test.csv,"], "--input=raw/test.csv,: it names no file beside a comma"),
        (["--input=raw/test.csv", "--split=test"], "--split: raw rows have no splits"),
        (["--input=raw/test.csv", "--data=data"], "--data: raw rows are no shards"),
        (["--input=raw/test.csv", "--importance"], "--importance: it permutes the rows of a split"),
        (
            ["--input=raw/test.csv", "--by=colour"],
            "there is no column 'colour' (--by=colour); the file has",
        ),
        (
            ["--input=raw/test.csv", "--by=tags"],
            "--by=tags: its values have weights, or are several a row",
        ),
        (["--by=price"], "--by=price: shards hold a transformed number"),
        (["--by=campaign"], "--by=campaign: shards have no such column (user, device, ftype)"),
        (["--by=user,user"], "--by=user: it stands twice"),
        (["--by="], "--by=: a name is empty"),
        (
            ["--by=user", "--by_values=0"],
            "--by_values=0: it must be at least 1; give a number of values",
        ),
        (["--by_values=3"], "--by_values=3: no effect without --by; add that"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(run, capsys, flags, message):
    columns = [name for name in COLUMNS.split(",") if name != "clicked"]
    write(Path("bare.csv"), [row[:1] + row[2:] for row in made(3, 1)], ",".join(columns))
    write(Path("dash.csv"), [[row[0], "-", *row[2:]] for row in made(3, 1)])
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    capsys.readouterr()
    assert evaluated(*flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


def test_rows_without_the_column_of_types_are_told_to_have_one(run, tmp_path, capsys):
    copy = shutil.copytree("run", tmp_path / "typed")
    schema = files.read_json(copy / "schema.json")
    schema["recipe"] |= {"ftype": "gone"}
    (copy / "schema.json").write_text(json.dumps(schema))
    assert evaluate.main(["evaluate", f"--workdir={copy}", "--input=raw/test.csv"]) == 2
    error = capsys.readouterr().err
    assert "there is no column 'gone' (config.prepare.ftype); the file has" in error
    assert error.endswith("; add it, empty where the type is not known\n")


def test_a_split_by_days_needs_no_day_of_new_rows(run, tmp_path):
    copy = shutil.copytree("run", tmp_path / "by_day")
    schema = files.read_json(copy / "schema.json")
    schema["recipe"] |= {"split": "day", "day_column": "dt"}
    (copy / "schema.json").write_text(json.dumps(schema))
    assert evaluate.main(["evaluate", f"--workdir={copy}", "--input=raw/test.csv"]) == 0


def test_made_up_data_have_no_raw_rows(run, capsys, monkeypatch):
    recipe = files.read_json(Path("run/schema.json"))
    recipe["recipe"]["format"] = "synthetic"
    Path("made_up").mkdir()
    Path("made_up/schema.json").write_text(json.dumps(recipe))
    Path("made_up/config.json").write_text(Path("run/config.json").read_text())
    assert evaluate.main(["evaluate", "--workdir=made_up", "--input=raw/test.csv"]) == 2
    assert "the run's data are made up, and have no raw rows" in capsys.readouterr().err
