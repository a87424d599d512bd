"""The intercept that is fitted after the last step: its value, who scores with it, and what is said of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.optimize
import scipy.special

from emofm_jax import config, evaluate, export, load_scorer, predict, train
from emofm_jax.data import shards
from emofm_jax.errors import UserError
from emofm_jax.models.build import INTERCEPT
from emofm_jax.training import intercept

FLAGS = (f"--config={Path(__file__).parent / 'tiny.py'}:hm", "--config.train.epochs=2")


def draw(num_rows, num_types, seed=0):
    rng = np.random.default_rng(seed)
    p = scipy.special.expit(rng.normal(-3, 1, (num_rows, num_types)))
    share = rng.dirichlet(np.ones(num_types), num_rows)
    return p, share, (rng.random(num_rows) < 0.2).astype(np.int8), rng.uniform(0, 3, num_rows)


@pytest.mark.fast
@pytest.mark.parametrize("num_types", [1, 3])
@pytest.mark.parametrize("factor", [1.0, 50.0])
def test_it_makes_the_sum_of_p_that_of_the_clicks(num_types, factor):
    p, share, label, weight = draw(500, num_types)
    weight = np.where(label == 0, weight * factor, weight)
    logit = scipy.special.logit(p)

    def off(b):
        mixture = (share * scipy.special.expit(logit + b)).sum(axis=1)
        return weight @ mixture - weight @ label

    b, pcoc = intercept.solve((share * p).sum(axis=1), p, share, label, weight)
    assert b == pytest.approx(scipy.optimize.brentq(off, -20, 20, xtol=1e-12), abs=1e-7)
    assert pcoc == pytest.approx(weight @ (share * p).sum(axis=1) / (weight @ label))


@pytest.mark.fast
@pytest.mark.parametrize("num_types", [1, 3])
def test_of_sampled_rows_it_makes_right_what_the_shifted_loss_does(num_types):
    """The sum over the rows that were kept of the p of a click among them."""
    p, share, label, weight = draw(500, num_types)
    logit, keep_rate = scipy.special.logit(p), 0.1

    def off(b):
        mixture = scipy.special.logit((share * scipy.special.expit(logit + b)).sum(axis=1))
        return weight @ scipy.special.expit(mixture + np.log(1 / keep_rate)) - weight @ label

    b, pcoc = intercept.solve((share * p).sum(axis=1), p, share, label, weight, keep_rate)
    assert b == pytest.approx(scipy.optimize.brentq(off, -20, 20, xtol=1e-12), abs=1e-7)
    assert pcoc == pytest.approx(off(0) / (weight @ label) + 1)


@pytest.mark.fast
def test_extreme_scores_and_one_class():
    share, weight = np.ones((4, 1)), np.ones(4)
    far = np.full((4, 1), 1e-11)
    b, _ = intercept.solve(far[:, 0], far, share, np.array([0, 1, 0, 1]), weight)
    assert b == pytest.approx(-scipy.special.logit(1e-11), abs=1e-6)
    for label in (np.zeros(4), np.ones(4)):
        assert intercept.solve(far[:, 0], far, share, label, weight) == (0.0, None)


@pytest.mark.fast
def test_members_are_scored_by_the_mean_of_their_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(-2, 1, (2000, 4)) + rng.normal(0, 0.3, (3, 2000, 4))
    shares = rng.dirichlet(np.ones(4), (3, 2000))
    label = (rng.random(2000) < 0.12).astype(np.int8)

    def scored(b):
        mixtures = (shares * scipy.special.expit(logits + b)).sum(axis=-1)
        return scipy.special.expit(scipy.special.logit(mixtures).mean(axis=0))

    p, share = scipy.special.expit(logits.mean(axis=0)), shares.mean(axis=0)
    assert abs((share * p).sum() / scored(0).sum() - 1) > 0.01
    b, pcoc = intercept.solve(scored(0), p, share, label, np.ones(2000))
    assert pcoc == pytest.approx(scored(0).sum() / label.sum())
    assert abs(pcoc - 1) > 0.05
    assert scored(b).sum() == pytest.approx(label.sum(), rel=3e-3)


@pytest.mark.fast
def test_row_groups_are_spread_over_the_split():
    groups = tuple(shards.RowGroup(0, i, 10) for i in range(20))
    split = shards.Split(Path("train"), None, (), groups, 200, ())
    assert intercept._some(split, 200) is split
    some = intercept._some(split, 55)
    assert [group.group for group in some.row_groups] == [0, 5, 10, 14, 19]
    assert some.num_rows == 50
    assert intercept._some(split, 3).num_rows == 10


@pytest.fixture(scope="module")
def run(runs, tmp_path_factory):
    """A run of which half the train rows gave the intercept."""
    workdir = tmp_path_factory.mktemp("intercept") / "run"
    data = f"--config.data.dir={runs / 'data'}"
    rows = "--config.train.intercept_rows=4000"
    assert train.main(["train", *FLAGS, data, rows, f"--workdir={workdir}"]) == 0
    return workdir


def test_whoever_scores_a_run_adds_it(run, runs, tmp_path, capsys):
    metrics = json.loads((run / "metrics.json").read_text())
    found = metrics["intercept"]
    assert found["rows"] == 4000 and abs(found["value"]) > 1e-3
    scorer = load_scorer(run)
    assert float(scorer.params["stats"][INTERCEPT]) == np.float32(found["value"])

    split = shards.open_split(runs / "data", "train")
    label = np.concatenate(
        [split.read_row_group(i, ["label"])["label"] for i in range(len(split.row_groups))]
    )
    name = ["evaluate", f"--workdir={run}"]
    assert evaluate.main([*name, "--split=train"]) == 0
    table = pq.read_table(run / "predictions/train.parquet")
    p = table["p"].to_numpy().astype(float)
    assert p.sum() == pytest.approx(label.sum(), rel=1e-5)
    of_types = lambda kind: np.stack(table[kind].to_numpy())
    mixture = (of_types("p_type") * of_types("p_given_type")).sum(axis=1)
    np.testing.assert_allclose(mixture, p, rtol=1e-4)

    assert evaluate.main(name) == 0
    again = json.loads((run / "predictions/test.json").read_text())
    assert again["logloss"] == metrics["test"]["logloss"]
    assert evaluate.main([*name, "--split=valid"]) == 0
    again = json.loads((run / "predictions/valid.json").read_text())
    assert again["logloss"] == metrics["valid"]["logloss"]

    assert export.main(["export", f"--workdir={run}", f"--output={tmp_path / 'artefact'}"]) == 0
    scores = {}
    for place in (run, tmp_path / "artefact"):
        output = tmp_path / f"{place.name}.parquet"
        rows = f"--input={runs / 'data' / 'test'}"
        assert predict.main(["predict", f"--workdir={place}", rows, f"--output={output}"]) == 0
        scores[place.name] = pq.read_table(output)["p"].to_numpy()
    np.testing.assert_allclose(scores["artefact"], scores["run"], rtol=1e-6)
    kept = pq.read_table(run / "predictions/test.parquet")["p"].to_numpy()
    np.testing.assert_allclose(scores["run"], kept, rtol=1e-6)


def test_without_it_p_is_what_the_network_says(run, runs, tmp_path, capsys):
    workdir = tmp_path / "none"
    data = f"--config.data.dir={runs / 'data'}"
    assert train.main(["train", *FLAGS, data, f"--workdir={workdir}"]) == 0
    assert "intercept:" not in capsys.readouterr().out
    plain, with_it = (json.loads((w / "metrics.json").read_text()) for w in (workdir, run))
    assert "intercept" not in plain
    given = [
        np.stack(pq.read_table(w / "predictions/test.parquet")["p_given_type"].to_numpy())
        for w in (run, workdir)
    ]
    moved = np.subtract(*(scipy.special.logit(p.astype(float)) for p in given))
    np.testing.assert_allclose(moved, with_it["intercept"]["value"], atol=1e-4)
    assert with_it["intercept"]["pcoc"] != 1
    assert plain["train"]["evaluations"] == with_it["train"]["evaluations"]


def test_it_is_never_left_out_in_silence(run, tmp_path, capsys):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    (moved / "metrics.json").unlink()  # as if killed before it was written
    output = f"--output={tmp_path / 'p.csv'}"
    rows = f"--input={config.load(run).data.dir}/test"
    for program, argv in ((predict, [rows, output]), (evaluate, [])):
        name = program.__name__.rpartition(".")[2]
        assert program.main([name, f"--workdir={moved}", *argv]) == 2
        error = capsys.readouterr().err
        assert f"{moved}/metrics.json: gone, and with it the intercept of the run" in error
        assert error.count("\n") == 1
    with pytest.raises(UserError, match="gone, and with it the intercept"):
        load_scorer(moved / "checkpoints" / "step_32")  # the one that is kept


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda body: body["intercept"].update(value=None), "damaged"),
        (lambda body: body["intercept"].update(value="x"), r"damaged \(an intercept of 'x'\)"),
        (lambda body: body["intercept"].update(value=float("nan")), "damaged"),
        (
            lambda body: body.pop("intercept"),
            "no intercept, which config.train.intercept_rows asks",
        ),
        (lambda body: body["train"].update(kept_step=5), "of step 5, this one keeps that of 32"),
    ],
)
def test_one_that_is_damaged_or_of_another_run_is_an_error(run, tmp_path, change, said):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    body = json.loads((moved / "metrics.json").read_text())
    change(body)
    del body["xxh3"]
    (moved / "metrics.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match=said):
        load_scorer(moved)


def test_a_finished_run_takes_another_one_or_none(run, runs, tmp_path, capsys):
    """Before, metrics.json stayed what it was, and scores no longer agreed with it."""
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    name = ["train", *FLAGS, f"--config.data.dir={runs / 'data'}", f"--workdir={moved}"]
    before = json.loads((moved / "metrics.json").read_text())
    for rows in (0, 4000):
        assert train.main([*name, f"--config.train.intercept_rows={rows}"]) == 0
        found = json.loads((moved / "metrics.json").read_text())
        assert found.get("intercept", {"rows": 0})["rows"] == rows
        assert (INTERCEPT in load_scorer(moved).params["stats"]) == (rows > 0)
        assert (found["test"]["logloss"] == before["test"]["logloss"]) == (rows > 0)
    assert found == before
    assert "the run is finished" not in capsys.readouterr().out


def test_a_calibration_is_of_logits_with_the_intercept_that_there_is(run, tmp_path, capsys):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    assert evaluate.main(["evaluate", f"--workdir={moved}", "--calibrate=platt"]) == 0
    load_scorer(moved, calibrated=True)
    metrics = json.loads((moved / "metrics.json").read_text())
    metrics["intercept"]["value"] = 0.0
    del metrics["xxh3"]
    (moved / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="fitted for another state of step"):
        load_scorer(moved, calibrated=True)
