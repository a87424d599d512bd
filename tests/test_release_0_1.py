"""Runs, exports and experiment files of release 0.1 (tests/fixtures/release_0_1) load, score and go on as they did."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import emofm_jax
from emofm_jax import config, evaluate, points, predict, prepare, report, sweep, train
from emofm_jax.data import files

RELEASE = Path(__file__).parent / "fixtures" / "release_0_1"
SAID = json.loads((RELEASE / "said.json").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of the release's directory, as the place where programs are started."""
    shutil.copytree(RELEASE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(program, *flags):
    assert program.main([program.__name__, *flags]) == 0


def metrics(workdir):
    return files.read_json(Path(workdir) / "metrics.json")


def flat(tree, without, prefix=""):
    """{path: leaf} of nested dicts and lists."""
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    if not pairs and tree not in ({}, []):
        return {prefix: tree}
    return {
        k: v
        for key, x in pairs
        if key not in without
        for k, v in flat(x, without, f"{prefix}/{key}").items()
    }


def assert_close(found, expected, rtol, atol=1e-9, without=()):
    """Its keys, with the same texts and counts, and perhaps new ones; numbers within a share of themselves, which the processor decides."""
    without = {*without, "rows_per_s", "input_wait", "seconds"}  # what a clock measured
    found, expected = flat(found, without), flat(expected, without)
    assert found.keys() >= expected.keys()
    for path, value in expected.items():
        if isinstance(value, float):
            assert found[path] == pytest.approx(value, rel=rtol, abs=atol, nan_ok=True), path
        else:
            assert found[path] == value, path


def assert_trained_alike(found, expected):
    """As above, where a score that moves in its last digit may change its place in a ranking or its bin."""
    bins = {"calibration"}
    assert_close(found, expected, rtol=1e-3, atol=0.02, without=bins)
    for split in expected.keys() - {"train", "parameters"}:
        assert found[split]["logloss"] == pytest.approx(expected[split]["logloss"], rel=1e-4)
        assert found[split].keys() == expected[split].keys()
        assert found[split]["calibration"][0].keys() == expected[split]["calibration"][0].keys()


@pytest.mark.parametrize("name", SAID["config"])
def test_a_config_means_the_same(here, name):
    now = config.flatten(config.load(here / "runs" / name))
    then = {k: tuple(v) if isinstance(v, list) else v for k, v in SAID["config"][name].items()}
    as_text = lambda value: json.dumps(value)  # tuples within tuples
    assert {k: as_text(now[k]) for k in then} == {k: as_text(v) for k, v in then.items()}


def test_a_config_of_before_the_rename(here):
    then = config.load(here / "before_rename")
    assert then.optim.embedding.updates == "dense" and "update" not in then.optim.embedding
    assert list(config.difference(then, config.load(here / "runs" / "hmm"))) == [
        "optim.embedding.updates"
    ]


def test_raw_rows_become_the_same_features(here):
    features = emofm_jax.load_scorer("runs/hmm").encode(SAID["raw"])
    assert features.keys() == SAID["features"].keys()
    for slot, values in SAID["features"].items():
        np.testing.assert_array_equal(
            features[slot], np.asarray(values, features[slot].dtype), err_msg=slot
        )


@pytest.mark.parametrize("name", SAID["scores"])
def test_scores(here, name):
    said = SAID["scores"][name]
    scorer = emofm_jax.load_scorer(said["path"], calibrated=said["calibrated"])
    scores = scorer(scorer.encode(SAID["raw"]))
    assert scores.keys() == said.keys() - {"path", "calibrated"}
    for output, array in scores.items():
        np.testing.assert_allclose(
            np.asarray(array), said[output], rtol=1e-6, atol=1e-6, err_msg=output
        )


def lines(path):
    """The results of a sweep, without the digests that lines have since, of themselves and the sweep."""
    found = [files.from_json(line) for line in Path(path).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "sweep"} for line in found]


def test_raw_data_become_the_same_shards(here):
    paths = [path for path in sorted(Path("data/shop").rglob("*")) if path.is_file()]
    read = lambda path: pq.read_table(path) if path.suffix == ".parquet" else files.read_json(path)
    before = [read(path) for path in paths]
    run(prepare, "--config=shop.py")
    now = [path for path in sorted(Path("data/shop").rglob("*")) if path.is_file()]
    assert paths == [path for path in now if path.parent.name != "rare"]  # which came later
    for path, then in zip(paths, before):
        if path.suffix == ".parquet":
            assert read(path).equals(then), path
        else:
            # A later release may say more; what release 0.1 said, it says too.
            found, said = flat(read(path), ()), flat(then, ())
            assert_close({k: v for k, v in found.items() if k in said}, said, rtol=1e-12)


def test_a_finished_run_is_finished(here, capsys):
    said = metrics("runs/hmm")
    run(train, "--config=shop.py", "--workdir=runs/hmm", "--config.train.epochs=2")
    assert "the run is finished (8 steps)" in capsys.readouterr().out
    assert metrics("runs/hmm") == said


def test_a_run_goes_on(here, capsys):
    run(train, "--config=shop.py", "--workdir=runs/hmm", "--config.train.epochs=3")
    assert "goes on from step 8 of 12" in capsys.readouterr().out
    assert_trained_alike(metrics("runs/hmm"), SAID["one epoch more"])


@pytest.mark.parametrize("model", ["hmm", "dnn"])
def test_an_experiment_file_trains_the_same_run(here, model):
    said = metrics(f"runs/{model}")
    run(train, f"--config=shop.py:{model}", "--workdir=again", "--config.train.epochs=2")
    assert_trained_alike(metrics("again"), said)


def test_evaluate(here):
    said = files.read_json(Path("runs/hmm/predictions/valid.json"))
    run(evaluate, "--workdir=runs/hmm", "--split=valid", "--calibrate=platt")
    assert_close(files.read_json(Path("runs/hmm/predictions/valid.json")), said, rtol=1e-5)


def test_evaluate_on_raw_rows(here):
    """Those that a split was made of get its scores, and every row is one of the two."""
    run(evaluate, "--workdir=runs/hmm", "--split=valid")
    run(evaluate, "--workdir=runs/hmm", "--input=log.csv", "--by=brand")
    said = files.read_json(Path("runs/hmm/predictions/input@log.json"))
    assert (said["rows"], said["rejected"], said["by"][0]["column"]) == (199, 1, "brand")
    raw, split = (
        pq.read_table(f"runs/hmm/predictions/{name}.parquet")["logit"].to_numpy()
        for name in ("input@log", "valid")
    )
    nearest = np.abs(raw[None] - split[:, None]).min(axis=1)
    np.testing.assert_allclose(nearest, 0, atol=1e-6)


def test_predict(here):
    run(predict, "--workdir=runs/hmm", "--input=log.csv", "--output=scores.csv")
    lines = Path("scores.csv").read_text().splitlines()
    assert lines[0].replace('"', "").split(",") == [
        "row_id",
        "p",
        "p_type",
        "p_given_type",
        "reason",
    ]
    cells = lambda line: [
        cell for part in line.split(",") for cell in part.replace('"', "").split("^")
    ]
    for found, said in zip(lines[115:126], SAID["predicted"], strict=True):
        for ours, theirs in zip(cells(found), cells(said), strict=True):
            number = theirs[:2] == "0."
            assert (
                float(ours) == pytest.approx(float(theirs), rel=1e-6) if number else ours == theirs
            )


def test_a_finished_sweep_starts_nothing(here, capsys):
    stamps = {
        path: path.stat().st_mtime_ns
        for path in Path("runs/sweep/runs").rglob("*")
        if path.is_file()
    }
    said = lines("runs/sweep/results.jsonl")
    run(sweep, "--config=shop_sweep.py", "--workdir=runs/sweep", "--nocheckpoints")
    assert {
        path: path.stat().st_mtime_ns
        for path in Path("runs/sweep/runs").rglob("*")
        if path.is_file()
    } == stamps
    assert lines("runs/sweep/results.jsonl") == said
    assert "[1/2]" not in capsys.readouterr().out


def test_a_sweep_of_before_the_rename_starts_nothing(here):
    for name in ("config.json", "result.json"):
        for path in Path("runs/sweep/runs").rglob(name):
            text = path.read_text()
            assert '"updates":' in text or '"optim.embedding.updates":' in text
            path.write_text(text.replace('updates":', 'update":'))
    said = lines("runs/sweep/results.jsonl")
    run(sweep, "--config=shop_sweep.py", "--workdir=runs/sweep", "--nocheckpoints")
    assert lines("runs/sweep/results.jsonl") == said


def test_a_sweep_is_planned_alike(here):
    plan = points.read(
        "shop_sweep.py", None, points.load("shop_sweep.py").get_config(), {}, search=False
    )
    found = {
        "points": [point.name for point in plan.points],
        "seeds": list(plan.seeds),
        "reference": plan.reference,
    }
    assert found == SAID["plan"]


def test_report(here):
    run(report, "--workdir=runs/sweep")
    run(report, "--workdir=runs/hmm")
    text = Path("runs/sweep/report.md").read_text()
    assert len(SAID["report"]) >= 7 and not [
        number for number in SAID["report"] if number not in text
    ]
    assert f"{metrics('runs/hmm')['test']['auc']:.5f}" in Path("runs/hmm/report.md").read_text()


def test_data_prepared_again_are_not_the_run_s_and_what_helps_is_said(here, capsys):
    run(prepare, "--config=shop.py")
    capsys.readouterr()
    for flags in ((), ("--data=data/shop",)):
        assert evaluate.main(["evaluate", "--workdir=runs/hmm", *flags]) == 2
        said = capsys.readouterr().err
        assert "spelling 1 against 2" in said and "prepare again" not in said
        assert "evaluate the raw rows (--input), or train again in another --workdir" in said
    run(evaluate, "--workdir=runs/hmm", "--input=log.csv")
