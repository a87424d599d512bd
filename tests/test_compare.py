"""`python -m emofm_jax.compare`: models on the same rows, raw and prepared, its gate, its page, its mistakes."""

import csv
import dataclasses
import json
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from emofm_jax import compare, evaluate, export, prepare, train
from emofm_jax.data import coded as coded_lib
from emofm_jax.data import files
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import seen as seen_lib
from emofm_jax.data.raw_rows import RawRows
from emofm_jax.evaluation import paired
from emofm_jax.scoring import labelled


@pytest.fixture(scope="module")
def home(runs, tmp_path_factory):
    """A directory with `mine`, a run of docs/data.md, `other`, another model of an own preparation, and raw rows."""
    home = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shutil.copytree(runs / "mine", "mine")
        text = (runs / "mine.py").read_text().replace(str(runs / "mine_data"), "other_data")
        Path("other.py").write_text(text)
        recipe = "--config.prepare.slot.encoding=hash", "--config.prepare.slot.rows=500"
        small = "--config.model.name=lr", "--config.data.batch_size=64"
        assert prepare.main(["prepare", "--config=other.py", *recipe]) == 0
        assert train.main(["train", "--config=other.py", "--workdir=other", *recipe, *small]) == 0
        shutil.copy(Path(__file__).parent.parent / "data" / "examples" / "clicks.csv", "rows.csv")
        yield home


@pytest.fixture(autouse=True)
def there(home, monkeypatch):
    monkeypatch.chdir(home)


def compared(*flags, models="mine,other"):
    return compare.main(["compare", f"--workdirs={models}", *flags])


def test_raw_rows_are_read_by_each_model_through_its_own_vocabularies(home, capsys):
    assert compared("--input=rows.csv", "--output=out", "--by=device") == 0
    out = capsys.readouterr().out
    found = files.read_json(Path("out/compare.json"))
    for model in found["models"]:
        evaluated = ["evaluate", f"--workdir={model['name']}", "--input=rows.csv"]
        assert evaluate.main(evaluated) == 0
        of_model = pq.read_table(f"{model['name']}/predictions/input@rows.parquet").to_pydict()
        p, label = (np.array(of_model[key]) for key in ("p", "label"))
        figures = {name: one["value"] for name, one in model["figures"].items()}
        assert figures["auc"] == pytest.approx(roc_auc_score(label, p), abs=2e-5)
        assert figures["logloss"] == pytest.approx(log_loss(label, p), rel=1e-4)
        assert figures["pcoc"] == pytest.approx(p.sum() / label.sum(), rel=1e-4)
    assert found["rows"] == len(label) and found["clicks"] == label.sum()

    first, other = found["models"]
    for metric, one in other["differences"].items():
        own = other["figures"][metric]["value"] - first["figures"][metric]["value"]
        assert one["value"] == pytest.approx(own) and one["low"] <= own <= one["high"]
    with open("rows.csv") as file:
        devices = [row["device"] for row in csv.DictReader(file)]
    (by,) = [table for table in other["by"] if table["column"] == "device"]
    counts = {value["value"]: value["rows"] for value in by["values"]}
    assert counts == {name or None: devices.count(name) for name in set(devices)}
    assert "differences from mine" in out and "written: out/compare.html" in out


def test_the_page_says_what_is_printed(home, capsys):
    assert compared("--input=rows.csv", "--output=page", "--require=auc >= -1") == 0
    said = capsys.readouterr().out
    page = Path("page/compare.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "")
    found = files.read_json(Path("page/compare.json"))
    for metric in found["models"][1]["differences"].values():
        for text in (f"{metric['value']:+.5f}", metric["verdict"]):
            assert text in page and text in said
    assert "<b>fails</b>" not in page and "holds" in said


def test_the_gate_decides_the_exit_code(home, capsys):
    assert compared("--input=rows.csv", "--require=auc.value > 0, logloss < 10") == 0
    assert compared("--input=rows.csv", "--require=auc.value > 0, logloss < -10") == 1
    out = capsys.readouterr().out
    assert (
        "require logloss < -10: other fails" in out and "require auc.value > 0: other holds" in out
    )


def test_a_model_and_its_export_are_not_distinguishable(home, capsys):
    assert export.main(["export", "--workdir=mine", "--output=exported"]) == 0
    assert compared("--input=rows.csv", "--output=same", models="mine,exported") == 0
    differences = files.read_json(Path("same/compare.json"))["models"][1]["differences"]
    assert {one["verdict"] for one in differences.values()} == {"not distinguishable"}
    assert all(abs(one["value"]) < 1e-6 for one in differences.values())


def test_rows_that_one_model_cannot_read_are_left_out_of_all_and_said(home, capsys):
    lines = Path("rows.csv").read_text().splitlines()
    assert lines[0].startswith("clicked,")
    lines[3] = f"maybe{lines[3][1:]}"
    Path("bad.csv").write_text("\n".join(lines) + "\n")
    assert compared("--input=bad.csv", "--output=bad") == 0
    found = files.read_json(Path("bad/compare.json"))
    assert found["rows"] == len(lines) - 2
    assert len(found["notes"]) == 1
    assert "note: 1 rows could not be read by mine and by other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("split", "path", "seen"),
    [
        ({"split": "share"}, "raw/train.csv", "80% of the rows of raw/train.csv"),
        ({"split": "files"}, "raw/train.csv", "100% of the rows of raw/train.csv"),
        ({"split": "files"}, "raw", "100% of the rows of raw/train.csv"),
        ({"split": "files"}, "raw/test.csv", ""),
        ({"split": "day"}, "raw/train.csv", ""),  # which days tell
        ({"split": "share", "source": "elsewhere"}, "raw/train.csv", ""),
        ({"split": "share", "source": "s3://bucket/raw"}, "raw/train.csv", ""),
    ],
)
def test_rows_of_the_files_that_a_model_was_trained_on_are_known(home, split, path, seen):
    Path("raw").mkdir(exist_ok=True)
    for name in ("train", "test"):
        shutil.copyfile("rows.csv", f"raw/{name}.csv")
        os.utime(f"raw/{name}.csv", (0, 0))
    schema = schema_lib.load(Path("mine"))
    files_of = {"train": "train.*", "valid": "", "test": "test.*"}
    ours = {"source": "raw", "files": files_of, "shares": [0.8, 0.1, 0.1]} | split
    schema = dataclasses.replace(schema, recipe={**schema.recipe, **ours})
    rows = RawRows(schema, Path("mine"), [Path(path)], {})
    expected = f"trained on {seen}, by its split; name other rows" if seen else ""
    assert seen_lib.said(rows, ()) == expected


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("raw/link.csv", True),  # of the source, though it lies elsewhere
        ("store/linked.csv", True),
        ("store/alone.csv", False),
        ("here/raw/link.csv", False),  # called as the source, seen from another directory
        ("raw/new.csv", None),  # written since, in its directory
    ],
)
def test_files_that_a_model_was_trained_on_are_known_by_more_than_their_names(
    home, monkeypatch, tmp_path, path, seen
):
    schema = schema_lib.load(Path("mine"))
    ours = {"source": "raw", "split": "share", "shares": [0.8, 0.1, 0.1]}
    schema = dataclasses.replace(schema, recipe={**schema.recipe, **ours})
    for file in ("store/linked.csv", "store/alone.csv", "here/raw/link.csv", "raw/new.csv"):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (0, 0))
    os.utime(tmp_path / "raw/new.csv")
    (tmp_path / "raw/link.csv").symlink_to("../store/linked.csv")
    run = tmp_path / "runs/mine"
    for directory in (run, tmp_path / "runs/raw"):  # another that is called as the source
        directory.mkdir(parents=True)
    (run / "schema.json").touch()
    os.utime(run / "schema.json", (1, 1))

    monkeypatch.chdir(tmp_path / "here")
    said = seen_lib.said(RawRows(schema, run, [tmp_path / path], {}), ())
    since = (
        f"perhaps trained on rows of {tmp_path / path}, which was written since: on 80% of what raw"
    )
    assert (f"trained on 80% of the rows of {tmp_path / path}, by" in said) == (seen is True)
    assert (since in said) == (seen is None) and bool(said) == (seen is not False)


@pytest.mark.parametrize(
    ("source", "run", "seen"),
    [
        ("{}/proj", "proj/runs/a", True),  # it holds the run
        ("proj", "proj/runs/a", True),
        ("proj", "proj/proj/a", False),  # which of the two? the nearest, and no file of it is these
        ("raw", "raw/runs/a", False),  # proj/raw is no directory above the run
        ("raw", "proj/runs/a", True),  # not the one that holds nothing, proj/runs/raw
        (".", "proj/runs/a", False),
    ],
)
def test_a_source_may_hold_the_run(home, tmp_path, source, run, seen):
    for directory in (run, "proj/raw", "proj/runs/raw"):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
    file = tmp_path / "proj/raw/train.csv"
    file.touch()
    os.utime(file, (0, 0))
    schema = schema_lib.load(Path("mine"))
    ours = {"source": source.format(tmp_path), "split": "share", "shares": [0.8, 0.1, 0.1]}
    schema = dataclasses.replace(schema, recipe={**schema.recipe, **ours})
    (tmp_path / run / "schema.json").touch()
    said = seen_lib.said(RawRows(schema, tmp_path / run, [file], {}), ())
    assert (f"trained on 80% of the rows of {file}" in said) == seen


def test_rows_of_models_that_read_others_are_put_side_by_side():
    def scored(position):
        position = np.array(position)
        none = dict(ftype=np.full(len(position), -1), weight=None, key=None, coded={})
        scores = dict(p=position / 10, logit=position / 1.0)
        return labelled.Labelled(position, np.zeros(len(position), np.int8), **none, **scores)

    (one, other), _ = compare._aligned("ab", [scored([0, 2, 3, 5]), scored([1, 2, 5, 6])])
    assert one.position.tolist() == other.position.tolist() == [2, 5]
    assert one.p.tolist() == other.p.tolist() == [0.2, 0.5]


def test_prepared_rows_of_one_data_set(runs):
    names = ",".join(str(runs / name) for name in ("dnn", "wm"))
    assert compared("--output=typed", "--cluster=user_id", models=names) == 0
    found = files.read_json(Path("typed/compare.json"))
    assert found["cluster"] == "user_id" and found["clusters"] > 1 and found["wider"]["auc"] > 0
    metrics = [json.loads((runs / name / "metrics.json").read_text()) for name in ("dnn", "wm")]
    for model, of_run in zip(found["models"], metrics):
        assert model["figures"]["auc"]["value"] == pytest.approx(of_run["test"]["auc"], abs=2e-5)
    (types,) = found["models"][1]["by"]
    assert types["column"] == "type" and sum(v["rows"] for v in types["values"]) == found["rows"]


@pytest.mark.parametrize(
    ("models", "flags", "line"),
    [
        ("mine", ["--input=rows.csv"], "a comparison needs two models"),
        ("mine,mine", ["--input=rows.csv"], "mine stands twice"),
        ("mine,other/../mine", ["--input=rows.csv"], "mine stands twice"),
        ("mine,other", ["--input=rows.csv", "--require=auc > nan"], "'nan' is no number"),
        ("mine,other", ["--input=rows.csv", "--require=auc > 0,"], "empty beside a comma"),
        ("mine,other", ["--input=rows.csv", "--require="], "--require: it is empty; fill it in"),
        ("mine,other", ["--input=rows.csv", "--cluster= "], "--cluster: it is empty; fill it in"),
        ("mine,gone", ["--input=rows.csv"], "gone"),
        ("mine,other", [], "other: its rows (other_data/test) are not those of mine"),
        ("mine,other", ["--input=gone.csv"], "--input=gone.csv: no such file"),
        ("mine,other", ["--input=rows.csv", "--split=test"], "--split: raw rows are no shards"),
        ("mine,other", ["--input=rows.csv", "--require=auc"], "--require=auc: not a condition"),
        ("mine,other", ["--input=rows.csv", "--cluster=tags"], "--cluster=tags"),
        ("mine,other", ["--input=rows.csv", "--cluster=usr"], "'usr' (--cluster=usr); the"),
        ("mine,other", ["--input=rows.csv", "--by=usr"], "'usr' (--by=usr); the file has"),
        ("mine,other", ["--input=rows.csv", "--output=rows.csv"], "it is a file"),
        ("mine,other", ["--input=rows.csv", "--by_values=0"], "it must be at least 1"),
    ],
)
def test_mistakes_are_one_line(models, flags, line, capsys):
    assert compared(*flags, models=models) == 2
    said = capsys.readouterr().err
    assert line in said and said.startswith("error: ") and said.count("\n") == 1


def test_models_must_agree_on_the_label(home, capsys):
    text = Path("other.py").read_text()
    recipe = ["--config.data.dir=turned_data", "--config.prepare.positive=('0',)"]
    Path("turned.py").write_text(text)
    small = ["--config.model.name=lr", "--config.data.batch_size=64", "--config.train.max_steps=2"]
    assert prepare.main(["prepare", "--config=turned.py", *recipe]) == 0
    assert train.main(["train", "--config=turned.py", "--workdir=turned", *recipe, *small]) == 0
    capsys.readouterr()
    assert compared("--input=rows.csv", models="mine,turned") == 2
    assert "turned: row 0 has another label than for mine" in capsys.readouterr().err


def test_a_run_of_weighted_rows_against_one_without_is_judged_by_the_first_ones_weights(
    home, capsys
):
    head, *rows = Path("rows.csv").read_text().splitlines()
    weighed = [f"{row},{1 + i % 3}" for i, row in enumerate(rows)]
    Path("weighed.csv").write_text("\n".join([f"{head},times", *weighed]) + "\n")
    recipe = ["--config.data.dir=weighed_data", "--config.prepare.source=weighed.csv"]
    recipe.append("--config.prepare.weight=times")
    small = ["--config.model.name=lr", "--config.data.batch_size=64", "--config.train.max_steps=2"]
    assert prepare.main(["prepare", "--config=other.py", *recipe]) == 0
    assert train.main(["train", "--config=other.py", "--workdir=weighed", *recipe, *small]) == 0
    auc = {}
    for names in ("mine,weighed", "weighed,mine", "mine,other"):
        capsys.readouterr()
        assert compared("--input=weighed.csv", "--output=weighed_out", models=names) == 0
        first, second = names.split(",")
        note = f"{second} gives row 1 another weight; all are judged by the weights of {first}"
        assert (note in capsys.readouterr().out) is (names != "mine,other")
        models = files.read_json(Path("weighed_out/compare.json"))["models"]
        auc[names] = {one["name"]: one["figures"]["auc"]["value"] for one in models}
    assert auc["mine,weighed"]["mine"] == auc["mine,other"]["mine"]
    assert auc["weighed,mine"]["mine"] != auc["mine,other"]["mine"]


def test_rows_of_unknown_values_are_no_clusters_of_their_own_in_silence():
    """Shards do not tell unknown values apart: the key of the GAUC does, else it is said."""
    code, n = np.array([0, 1, 1, 0, 2], np.int32), 5
    found = coded_lib.Coded("user", code, ["a", None, "b"], "missing or unknown")
    zeros = np.zeros(n, np.float32)
    key = np.array([5, 7, 8, 5, 0])
    rows = labelled.Labelled(np.arange(n), zeros, zeros, None, key, zeros, zeros, {"user": found})
    scorer = types.SimpleNamespace(schema=types.SimpleNamespace(recipe={"gauc_key": "user"}))
    cluster, notes = compare._clusters(rows, "user", scorer, False)
    np.testing.assert_array_equal(cluster, [5, 7, 8, 5, paired.ALONE])
    assert not notes
    scorer.schema.recipe["gauc_key"] = "item"
    cluster, notes = compare._clusters(rows, "user", scorer, False)
    np.testing.assert_array_equal(cluster, [0, paired.ALONE, paired.ALONE, 0, 2])
    assert "2 rows have no known user and count as independent" in notes[0]
    assert not compare._clusters(rows, "user", scorer, True)[1]
