"""docs/data.md: its experiment file and its commands are run as they stand, only with a tiny network."""

import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import emofm_jax
from emofm_jax import evaluate, export, predict, prepare, train
from emofm_jax.data import counts, files, shards
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.sweeping import experiment as experiment_lib

ROOT = Path(__file__).parents[1]
TEXT, SCORER, SWEEPS = (
    (ROOT / "docs" / f"{n}.md").read_text() for n in ("data", "scorer", "sweeps")
)


def experiment() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return found


def commands() -> list[str]:
    (found,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    return found.strip().splitlines()


TINY = [f"--config.model.{x}" for x in ("name=wm", "hidden=(8,)", "embedding_dim=4")] + [
    "--config.data.batch_size=64"
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A directory that looks like the repository to a reader of the page, after they typed the three commands."""
    path, before = tmp_path_factory.mktemp("checkout"), os.getcwd()
    shutil.copytree(ROOT / "data" / "examples", path / "data" / "examples")
    (path / "experiments").mkdir()
    (path / "experiments" / "mine.py").write_text(experiment())
    os.chdir(path)
    for program, line in zip((prepare, train, evaluate), commands()):
        assert program.main([*line.split()[2:], *(TINY if program is train else ())]) == 0
    yield path
    os.chdir(before)


def score(source, output="scores.parquet"):
    """The table that the page's last command writes for other rows."""
    (line,) = re.findall("^    python -m (emofm_jax.predict .*)$", TEXT, re.MULTILINE)
    line = line.replace("data/examples/clicks.csv", str(source)).replace("scores.csv", output)
    assert predict.main(line.split()) == 0
    return pq.read_table(output)


def test_ten_lines_and_three_commands():
    body = experiment().split("c = config.default()")[1].strip().splitlines()
    assert (
        len(experiment().strip().splitlines()) - experiment().count("\n\n") <= 10
        and body[-1].strip() == "return c"
    )
    assert [line.split()[2] for line in commands()] == [
        f"emofm_jax.{p}" for p in ("prepare", "train", "evaluate")
    ]


def test_the_csv_becomes_shards(checkout):
    schema = schema_lib.load("data/mine")
    assert schema.groups == ("user", "item", "context")
    assert {s.name: s.kind for s in schema.slots if s.kind != "categorical"} == {
        "tags": "multi",
        "price": "numeric",
    }
    rows = {split: shards.open_split("data/mine", split).num_rows for split in shards.SPLITS}
    assert sum(rows.values()) == 400 and min(rows.values()) > 15


def test_the_tables_are_what_prepare_prints(checkout):
    report = files.read_json(Path("data/mine/prepare.json"))
    assert counts.as_text(counts.Report.from_json(report)) in TEXT


def test_raw_rows_get_the_scores_of_their_shards(checkout):
    scores = score("data/examples/clicks.csv")
    assert scores["row_id"].to_pylist() == list(range(400)) and scores["reason"].null_count == 400
    schema = schema_lib.load("runs/mine")
    split = recipe_lib.split_of(schema.recipe, 0, np.arange(2, 402), None)
    expected = pq.read_table("runs/mine/predictions/test.parquet")["p"].to_numpy()
    np.testing.assert_allclose(scores["p"].to_numpy()[split == 2], expected, rtol=1e-6)
    assert np.ptp(expected) > 1e-4  # else any order would do


def test_new_labelled_rows_are_evaluated(checkout, capsys):
    (line,) = re.findall("^    python -m (emofm_jax.evaluate .*--input.*)$", TEXT, re.MULTILINE)
    assert evaluate.main(line.split()) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[-1] == "400" and "by device: 3 values" in out
    assert "predictions/input@clicks.json" in out


def test_rows_to_predict_come_as_they_like(checkout, tmp_path, capsys):
    expected = score("data/examples/clicks.csv")["p"].to_pylist()
    header, *rows = Path("data/examples/clicks.csv").read_text().splitlines(keepends=True)
    header, *rows = (line.split(",", 1)[1] for line in (header, *rows))  # without labels
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "1.csv").write_text(header + "".join(rows[:150]))
    (parts / "2.csv.gz").write_bytes(gzip.compress((header + "".join(rows[150:])).encode()))
    assert score(parts)["p"].to_pylist() == expected
    bad = [
        *rows[:10],
        "too,few\n",
        *rows[10:200],
        rows[0].replace("\n", ",more\n"),
        *rows[200:],
        'u,"18\n',
    ]
    (tmp_path / "bad.csv").write_text(header + "".join(bad))
    capsys.readouterr()
    scores = score(tmp_path / "bad.csv")
    assert (
        "400 rows scored" in (said := capsys.readouterr().out)
        and "3 of 403 could not be read" in said
    )
    found = scores["p"].to_pylist()
    assert [i for i, p in enumerate(found) if p is None] == [10, 201, 402] and scores["row_id"][
        402
    ].as_py() == 402
    assert [p for p in found if p is not None] == expected
    reasons = scores["reason"].to_pylist()
    assert (
        "bad.csv:12: 2 columns where 8 are expected" in reasons[10]
        and len([r for r in reasons if r]) == 3
    )
    (tmp_path / "new.csv").write_text(header + "nobody,never,i0,None,new|newer,,99,fridge\n")
    assert 0 < score(tmp_path / "new.csv")["p"][0].as_py() < 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data/mine", "it holds splits of shards; name one, as in --input=data/mine/test"),
        ("data/mine/test/part-00000.parquet", "it is a shard, not raw rows"),
        ("scores.parquet", "it is the input; name another file"),
    ],
)
def test_what_is_not_scored(checkout, capsys, source, message):
    score("data/examples/clicks.csv")
    before = Path("scores.parquet").read_bytes()
    capsys.readouterr()
    assert (
        predict.main(
            ["predict", "--workdir=runs/mine", f"--input={source}", "--output=scores.parquet"]
        )
        == 2
    )
    assert message in capsys.readouterr().err and Path("scores.parquet").read_bytes() == before


def test_the_rows_shown_are_those_of_the_file():
    lines = (ROOT / "data" / "examples" / "clicks.csv").read_text().splitlines()
    for line in lines[:3]:
        assert f"    {line}\n" in TEXT


def test_an_export_scores_the_csv_and_its_features(checkout, tmp_path, monkeypatch):
    """docs/scorer.md: features for score.py, columns of the scores."""
    expected = score("data/examples/clicks.csv")
    assert export.main(["export", "--workdir=runs/mine", f"--output={tmp_path / 'artefact'}"]) == 0
    shutil.copy("data/examples/clicks.csv", tmp_path / "new.csv")
    monkeypatch.chdir(tmp_path)
    assert score_lines(SCORER, "--workdir=artefact") == 0
    scores = pq.read_table("scores.parquet")
    assert scores.column_names == ["row_id", "p", "reason"] and scores.equals(expected)
    assert re.findall(r"^\| `(row_id|p|reason)` \|", SCORER, re.MULTILINE) == scores.column_names
    code = next(x for x in re.findall(r"```python\n(.*?)```", SCORER, re.DOTALL) if "savez" in x)
    exec(code, {})
    found = emofm_jax.load_scorer("artefact")(dict(np.load("features.npz")))
    np.testing.assert_allclose(found["p"], expected["p"].to_numpy(), rtol=1e-6)


def test_a_sweep_of_ones_own_experiment(checkout):
    """docs/sweeps.md: points around experiments/mine.py."""
    (code,) = (x for x in re.findall(r"```python\n(.*?)```", SWEEPS, re.DOTALL) if "mine.py" in x)
    path = Path("experiments/mine_sweep.py")
    path.write_text(code)
    base = experiment_lib.read_config(path, None)
    plan = experiment_lib.read(path, None, base, {}, False)
    assert [point.name for point in plan.points] == ["mine", "dropout=0.1", "embedding_dim=8"]
    assert plan.seeds == (0, 1, 2, 3, 4) and plan.points[1].config.data.dir == "data/mine"


def score_lines(text, flag):
    """Runs the page's predict command that has the flag; its exit code."""
    (line,) = re.findall(rf"^python -m (emofm_jax.predict {flag} [^#\n]*)", text, re.MULTILINE)
    return predict.main(line.split())
