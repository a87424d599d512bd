"""`evaluate` end to end: calibration, importance, unknown values; the user's mistakes."""

import os
import shutil
from pathlib import Path

import anew
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from emofm_jax import evaluate, predict, train
from emofm_jax.data import files, schema, shards
from emofm_jax.errors import UserError
from emofm_jax.evaluation import calibration, metrics
from emofm_jax.training import workdir as workdir_lib

TINY = Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with shards (`data`), the same with a validation split without clicks (`dull`), and a run."""
    home = tmp_path_factory.mktemp("home")
    before = os.getcwd()
    os.chdir(home)
    # Epochs enough to be too sure of itself, so that there is something to calibrate.
    flags = [f"--config={TINY}:dnn", "--config.train.epochs=8"]
    assert train.main(["train", *flags, "--workdir=run"]) == 0
    shutil.copytree("data", "dull")

    def without_clicks(table):
        place = table.column_names.index("label")
        return table.set_column(place, "label", pa.array(np.zeros(table.num_rows, np.int8)))

    anew.rewrite("dull", "valid", without_clicks)
    yield home
    os.chdir(before)


def run(*flags):
    return evaluate.main(["evaluate", "--workdir=run", *flags])


def scores(split):
    """(logit f64, label) of the prediction file."""
    table = pq.read_table(f"run/predictions/{split}.parquet")
    p = table["p"].to_numpy().astype(np.float64)
    return np.log(p / (1 - p)), table["label"].to_numpy()


@pytest.mark.parametrize("method", calibration.METHODS)
def test_calibration_is_fitted_on_valid_stored_and_shown_for_test(home, capsys, method):
    assert run("--split=valid") == 0 and run(f"--calibrate={method}") == 0
    out = capsys.readouterr().out
    plain = files.read_json(home / "run/metrics.json")["test"]
    report = files.read_json(home / "run/predictions/test.json")
    fit = report.pop("calibration_fit")
    assert report == plain, "the metrics are of the model as it is"
    assert (fit["method"], fit["split"], fit["rows"], fit["evaluated"]) == (
        method,
        "valid",
        1000,
        "test",
    )
    assert fit["reversed"] is False
    assert fit["before"] == {key: plain[key] for key in ("auc", "logloss", "pcoc", "ece")}
    # The same from the prediction files, by scikit-learn.
    (x, y), (x_test, y_test) = scores("valid"), scores("test")
    if method == "platt":
        p = (
            LogisticRegression(C=np.inf, tol=1e-10)
            .fit(x[:, None], y)
            .predict_proba(x_test[:, None])[:, 1]
        )
    else:
        p = IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(x_test).clip(1e-7, 1 - 1e-7)
    parts = [
        (p[c].mean(), y_test[c].mean()) for c in np.array_split(np.argsort(p, kind="stable"), 10)
    ]
    ece = np.mean([abs(a - b) for a, b in parts])
    assert fit["after"]["logloss"] == pytest.approx(metrics.logloss(y_test, p), abs=2e-5)
    assert fit["after"]["pcoc"] == pytest.approx(p.sum() / y_test.sum(), abs=1e-4)
    if method == "platt":  # isotonic p tie, so their parts are unequal
        assert fit["after"]["ece"] == pytest.approx(ece, abs=1e-5)
        assert fit["after"]["auc"] == pytest.approx(plain["auc"], abs=1e-9), "the order stays"
    assert (
        fit["after"]["logloss"] < fit["before"]["logloss"]
        and fit["after"]["ece"] < fit["before"]["ece"]
    )
    assert f"{method}, test split" in out and "fitted on 1,000 rows of the valid split" in out
    assert f"{fit['before']['ece']:.6f}" in out and f"{fit['after']['logloss']:.6f}" in out
    # The file beside the checkpoint gives these probabilities.
    kept = files.read_json(home / "run/metrics.json")["train"]["kept_step"]
    loaded = calibration.load(home / "run", kept)
    np.testing.assert_allclose(
        calibration.apply(loaded.arrays, x_test), p, atol=1e-3 if method == "isotonic" else 1e-5
    )
    assert files.read_json(home / "run/calibration.json")["fit"] == fit


def test_calibrating_the_split_that_it_is_fitted_on_says_so(home, capsys):
    assert run("--split=valid", "--calibrate=isotonic") == 0
    assert "fitted on 1,000 rows of the valid split, the same rows" in capsys.readouterr().out
    fit = files.read_json(home / "run/predictions/valid.json")["calibration_fit"]
    assert fit["after"]["pcoc"] == pytest.approx(1, abs=1e-6) and fit["after"][
        "ece"
    ] == pytest.approx(0, abs=1e-6)


def test_importance_as_table_file_and_chart(home, capsys):
    assert run("--importance", "--importance_rows=700") == 0
    out = capsys.readouterr().out
    found = files.read_json(home / "run/predictions/test.importance.json")
    assert (found["rows"], found["seed"], len(found["slots"])) == (
        700,
        0,
        len(schema.load(home / "run").slots),
    )
    drops = [slot["auc_drop"] for slot in found["slots"]]
    assert drops == sorted(drops, reverse=True) and drops[0] > 0.005
    table = out[out.index("slots by the AUC") :].splitlines()
    assert "permuted over 700 rows" in table[0]
    for slot, line in zip(found["slots"], table[2:]):
        expected = [
            slot["name"],
            slot["group"],
            f"{slot['auc_drop']:.6f}",
            f"{slot['logloss_rise']:.6f}",
        ]
        assert line.split() == expected
    svg = (home / "run/predictions/test.importance.svg").read_text()
    assert svg.startswith("<svg") and all(slot["name"] in svg for slot in found["slots"])
    assert "test.importance.json" in table[-1] and "test.importance.svg" in table[-1]
    first = (home / "run/predictions/test.importance.json").read_bytes()
    assert run("--importance", "--importance_rows=700") == 0
    assert (home / "run/predictions/test.importance.json").read_bytes() == first
    assert run("--importance") == 0, "all rows, since there are fewer than the default"
    every = files.read_json(home / "run/predictions/test.importance.json")
    plain = files.read_json(home / "run/metrics.json")["test"]
    assert every["rows"] == 1100
    assert (every["auc"], every["logloss"]) == pytest.approx(
        (plain["auc"], plain["logloss"]), abs=1e-6
    )


def test_the_share_of_unknown_values_is_that_of_the_shards(home, capsys):
    split = shards.open_split("data", "test")
    shares = {}
    for slot in split.schema.slots:
        cells = pa.concat_arrays(
            [
                c
                for f in split.files
                for c in pq.read_table(f, columns=[slot.name])[slot.name].chunks
            ]
        )
        if slot.kind == "multi":
            lists = [x[: slot.max_length] for x in cells.to_pylist() if x]
            shares[slot.name] = np.mean([i == 0 for x in lists for i in x])
        else:
            shares[slot.name] = np.mean(
                np.isnan(cells.to_numpy()) if slot.is_numeric else cells.to_numpy() == 0
            )
    assert {slot.kind for slot in split.schema.slots} > {"multi"} and sum(
        share > 0.001 for share in shares.values()
    ) > 1
    assert run() == 0
    report = files.read_json(home / "run/predictions/test.json")
    assert report["unknown"] == pytest.approx(shares, abs=1e-12)
    worst = max(shares, key=shares.get)
    assert f"unknown values: {worst} {shares[worst]:.1%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calibrate=beta"], "--calibrate: 'beta' is not known; choose one of platt, isotonic"),
        (["--calibrate="], "--calibrate: '' is not known; choose one of platt, isotonic"),
        (
            ["--data=dull", "--calibrate=platt"],
            "each of the 1,000 rows is no click; fit on rows of both classes",
        ),
        (["--importance", "--importance_rows=0"], "--importance_rows=0: it must be at least 1"),
        (["--importance", "--importance_rows=many"], "importance_rows"),
        (["--importance_rows=5"], "--importance_rows=5: no effect without --importance; add that"),
        (["--workdir=nowhere", "--calibrate=platt"], "nowhere: holds no run"),
        (["--workdir=nowhere", "--importance"], "nowhere: holds no run"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(home, capsys, flags, message):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_importance_where_no_row_is_a_click(home, capsys):
    assert run("--data=dull", "--split=valid", "--importance") == 2
    assert "--importance: the 1,000 rows have one class" in capsys.readouterr().err
    assert not (home / "run/predictions/valid@dull.json").exists(), "nothing is written"


def test_other_data_leave_the_runs_own_predictions_alone(home, capsys):
    own = (home / "run/predictions/test.parquet").read_bytes()
    assert run("--data=dull", "--split=test") == 0
    assert (
        "written: run/predictions/test@dull.parquet, run/predictions/test@dull.json"
        in capsys.readouterr().out
    )
    assert (home / "run/predictions/test.parquet").read_bytes() == own
    assert run("--data=./data") == 0
    assert "written: run/predictions/test.parquet" in capsys.readouterr().out


@pytest.fixture
def copy(home, tmp_path, monkeypatch):
    """A directory of its own with the run and its data; one starts in another beside them."""
    for name in ("run", "data"):
        shutil.copytree(name, tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_data_of_a_relative_name_are_found_from_anywhere(copy, capsys):
    flags = ["evaluate", "--workdir=../run", "--calibrate=platt"]
    assert evaluate.main(flags) == 0
    report = files.read_json(copy / "run/predictions/test.json")
    shutil.copytree(copy / "data", copy / "elsewhere/data")
    anew.reverse(copy / "elsewhere/data")  # of that name, but another preparation
    assert evaluate.main(flags) == 0
    assert files.read_json(copy / "run/predictions/test.json") == report
    assert "test@" not in capsys.readouterr().out

    (copy / "data").rename(copy / "moved")
    assert evaluate.main([*flags, "--data=../moved"]) == 0
    other = files.read_json(copy / "run/predictions/test@moved.json")
    fit = other["calibration_fit"] | {"evaluated": "test"}
    assert Path(other.pop("data")) == Path("../moved/test")
    assert Path(fit.pop("data")) == Path("../moved/valid")
    assert other | {"calibration_fit": fit} == report


def test_a_validation_split_that_other_data_lack_is_the_runs_own(copy, capsys):
    shutil.copytree(copy / "data", copy / "tomorrow", ignore=shutil.ignore_patterns("valid"))
    assert evaluate.main(["e", "--workdir=../run", "--data=../tomorrow", "--calibrate=platt"]) == 0
    assert "fitted on 1,000 rows of the valid split" in capsys.readouterr().out


def test_data_that_were_prepared_anew_are_other_data(copy, capsys):
    own = (copy / "run/predictions/test.parquet").read_bytes()
    anew.reverse(copy / "data", "valid")
    assert evaluate.main(["evaluate", "--workdir=../run"]) == 2
    error = capsys.readouterr().err
    assert "data: not the data of ../run: preparation " in error and error.count("\n") == 1
    assert "prepare the run's data again, or name others by --data" in error
    assert evaluate.main(["evaluate", "--workdir=../run", "--data=../data"]) == 0
    assert (copy / "run/predictions/test@data.parquet").exists()
    assert (copy / "run/predictions/test.parquet").read_bytes() == own

    anew.reverse(copy / "data", "valid")
    assert evaluate.main(["evaluate", "--workdir=../run"]) == 0
    shutil.rmtree(copy / "data")
    assert evaluate.main(["evaluate", "--workdir=../run"]) == 2
    assert "data: no prepared data, seen from here or from above the run" in capsys.readouterr().err


def test_a_checkpoint_of_other_data_is_not_taken(copy, capsys):
    anew.reverse(copy / "data")
    shutil.copy(copy / "data/schema.json", copy / "run")
    for program in (["evaluate"], ["predict", "--input=../data/test", "--output=x.csv"]):
        main = {"evaluate": evaluate.main, "predict": predict.main}[program[0]]
        assert main([*program, "--workdir=../run"]) == 2
        error = capsys.readouterr().err
        assert "schema.json: not the schema that" in error and "(preparation " in error


def test_no_evaluation_beside_a_training(copy, capsys):
    with workdir_lib.alone(copy / "run"):
        assert evaluate.main(["evaluate", "--workdir=../run"]) == 2
    assert "../run: another program trains there now; wait" in capsys.readouterr().err
    with workdir_lib.together(copy / "run"):
        assert evaluate.main(["evaluate", "--workdir=../run"]) == 0
        with pytest.raises(UserError, match="another program works there now"):
            workdir_lib.alone(copy / "run").__enter__()
