"""The programs end to end on tiny data: train, evaluate, predict; stops and goes on; the user's mistakes.

Kills: test_sweep.py.
"""

import dataclasses
import os
import re
import shutil
import signal
import sys
import types
from pathlib import Path

import anew
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from emofm_jax import config as config_lib
from emofm_jax import evaluate, predict, prepare, train
from emofm_jax.data import files, shards
from emofm_jax.errors import UserError
from emofm_jax.evaluation import metrics
from emofm_jax.training import loop
from emofm_jax.training import run as run_lib
from emofm_jax.training import workdir as workdir_lib

TINY = Path(__file__).parent / "tiny.py"
MIXED = f"--config={TINY}:hmm"
FRAPPE = Path(__file__).parent.parent / "experiments" / "frappe.py"
STEPS = 2 * 16  # two epochs of ceil(4000 / 256)


def arguments(workdir, *more):
    """Of a run of WM, which compiles in half the time of HMM; `runs` (conftest.py) has HMM."""
    config = [] if any(flag.startswith("--config=") for flag in more) else [f"--config={TINY}:wm"]
    return ["train", *config, f"--workdir={workdir}", "--config.train.epochs=2", *more]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with prepared shards (`data`) and a finished run (`run`)."""
    home = tmp_path_factory.mktemp("home")
    before = os.getcwd()
    os.chdir(home)
    assert train.main(arguments("run")) == 0
    yield home
    os.chdir(before)


def held(workdir):
    """What must not differ between two runs: arrays of the last checkpoint, metrics, log without times."""
    info = files.read_json(workdir / "metrics.json")
    steps = sorted((workdir / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))
    times = ("rows_per_s", "input_wait")
    lines = [files.from_json(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in times} for line in lines]
    return (
        load_file(steps[-1] / "state.safetensors"),
        {k: info[k] for k in ("valid", "test", "parameters")},
        lines,
    )


def assert_same_run(one, other):
    (arrays, results, lines), (arrays2, results2, lines2) = held(one), held(other)
    assert results == results2
    assert lines == lines2
    assert arrays.keys() == arrays2.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], arrays2[name], err_msg=name)


def test_train_leaves_a_complete_workdir(home, capsys):
    run = home / "run"
    names = {p.name for p in run.iterdir()}
    assert {
        "config.json",
        "schema.json",
        "environment.json",
        "log.jsonl",
        "metrics.json",
        "checkpoints",
    } <= names
    assert any(name.startswith("events.out") for name in names)
    result = files.read_json(run / "metrics.json")
    assert result["train"]["steps"] == STEPS and result["train"]["epochs"] == 2
    assert result["valid"]["rows"] == 1000 and result["test"]["rows"] == 1100
    for split in ("valid", "test"):
        report = result[split]
        assert {
            "auc",
            "logloss",
            "gauc",
            "pcoc",
            "types",
            "am",
            "constant",
            "calibration",
            "ece",
            "true_am",
            "unknown",
            "p_over_true",
            "bayes",
        } <= set(report)
        assert 0.55 < report["auc"] < report["bayes"]["auc"], (
            "learnt something, and not more than can be known"
        )
        assert report["logloss"] < report["constant"]["logloss"]
    table = pq.read_table(run / "predictions" / "test.parquet")
    roles = ["row", "label", "ftype", "gauc_key", "logit"]
    assert table.column_names == [*roles, "p", "p_type", "p_given_type"]
    label, p = table["label"].to_numpy(), table["p"].to_numpy()
    assert metrics.auc(label, p) == pytest.approx(
        result["test"]["auc"], abs=1e-4
    )  # p has ties that logits have not
    mixed = np.stack(table["p_type"].to_numpy()) * np.stack(table["p_given_type"].to_numpy())
    np.testing.assert_allclose(mixed.sum(1), p, rtol=1e-5)
    lines = [files.from_json(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "evaluate"] == [16, 32]
    assert sum(line["event"] == "train" for line in lines) >= STEPS // 5


def test_typed_again_it_is_finished(home, capsys, monkeypatch):
    before = (home / "run" / "metrics.json").read_bytes()
    monkeypatch.setattr(loop, "_train", None)  # would fail
    assert train.main(arguments("run")) == 0
    out = capsys.readouterr().out
    assert "finished" in out and "Bayes-optimal" in out and "share of the attainable lift" in out
    assert (home / "run" / "metrics.json").read_bytes() == before
    body = files.read_json(home / "run" / "metrics.json")
    body["train"]["kept_step"] -= 1  # of another run, whose state this one does not have
    files.write_json(home / "run" / "metrics.json", body)
    assert train.main(arguments("run")) == 2
    (home / "run" / "metrics.json").write_bytes(before)
    error = capsys.readouterr().err
    assert "metrics.json: of another run: of step 31, this one keeps that of 32; delete it" in error


def test_evaluate_gives_the_numbers_of_train(home, capsys):
    result = files.read_json(home / "run" / "metrics.json")
    for split in ("test", "valid"):
        assert evaluate.main(["evaluate", "--workdir=run", f"--split={split}"]) == 0
        assert files.read_json(home / "run" / "predictions" / f"{split}.json") == result[split]
    assert f"{result['valid']['auc']:.6f}" in capsys.readouterr().out


def test_predict_scores_shards_as_evaluate_does(home, capsys):
    assert (
        predict.main(["predict", "--workdir=run", "--input=data/test", "--output=scores.parquet"])
        == 0
    )
    scores, expected = (
        pq.read_table("scores.parquet"),
        pq.read_table("run/predictions/test.parquet"),
    )
    assert scores.column_names == ["row_id", "p", "p_type", "p_given_type", "reason"]
    np.testing.assert_array_equal(scores["row_id"].to_numpy(), np.arange(1100))
    np.testing.assert_allclose(scores["p"].to_numpy(), expected["p"].to_numpy(), rtol=1e-6)
    assert scores["reason"].null_count == 1100
    assert "1,100 rows" in capsys.readouterr().out
    assert (
        predict.main(["predict", "--workdir=run", "--input=data/test", "--output=scores.csv"]) == 0
    )
    as_text = pa.csv.read_csv("scores.csv")
    np.testing.assert_allclose(as_text["p"].to_numpy(), scores["p"].to_numpy(), rtol=1e-6)
    first = [float(x) for x in as_text["p_type"][0].as_py().split("^")]
    np.testing.assert_allclose(first, scores["p_type"][0].as_py(), rtol=1e-6)


def test_a_stop_saves_and_the_same_command_goes_on(home, monkeypatch, capsys):
    make = loop.build.make_parts

    def stopping(*args, **kwargs):
        parts, count = make(*args, **kwargs), [0]

        def stepped(state, batch):
            count[0] += 1
            if count[0] == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return parts.train_step(state, batch)

        return dataclasses.replace(parts, train_step=stepped)

    monkeypatch.setattr(loop.build, "make_parts", stopping)
    for seen in (8, 16, 24, STEPS):  # in the middle of an epoch, at its end, and in the last step
        with pytest.raises(SystemExit) as stop:
            train.main(arguments("stopped"))
        assert stop.value.code == 143
        said = capsys.readouterr()
        assert f"step {seen} is saved" in said.err and (
            f"goes on from step {seen - 8}" in said.out
        ) == (seen > 8)
    monkeypatch.undo()
    assert not (home / "stopped" / "metrics.json").exists()
    assert train.main(arguments("stopped")) == 0
    one, other = held(home / "run"), held(home / "stopped")
    assert one[1] == other[1]
    for name in one[0]:
        np.testing.assert_array_equal(one[0][name], other[0][name], err_msg=name)


@pytest.mark.parametrize("place", ["log", "checkpoint"])
def test_a_stop_outside_of_a_step_is_not_lost(home, monkeypatch, capsys, place):
    owner, name = {
        "log": (loop.Window, "close"),
        "checkpoint": (loop.checkpoint.Saver, "__exit__"),
    }[place]
    real, calls = getattr(owner, name), []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(owner, name, stopping)
    workdir = home / f"stopped_at_{place}"
    with pytest.raises(SystemExit) as stop:
        train.main(arguments(workdir.name))
    step = int(re.search(r"step (\d+) is saved", capsys.readouterr().err)[1])
    assert stop.value.code == 143 and (step == STEPS) == (place == "checkpoint")
    assert (workdir / "checkpoints" / f"step_{step}").is_dir() and not (
        workdir / "metrics.json"
    ).exists()


def test_without_a_test_split_the_predictions_are_of_the_validation(home, tmp_path):
    shutil.copytree("data", tmp_path / "data", ignore=shutil.ignore_patterns("test"))
    assert train.main(arguments(tmp_path / "run", f"--config.data.dir={tmp_path / 'data'}")) == 0
    result = files.read_json(tmp_path / "run/metrics.json")
    assert (
        "test" not in result
        and result["valid"] == files.read_json(home / "run/metrics.json")["valid"]
    )
    (path,) = (tmp_path / "run/predictions").iterdir()
    assert path.name == "valid.parquet"
    table = pq.read_table(path)
    assert metrics.auc(table["label"].to_numpy(), table["p"].to_numpy()) == pytest.approx(
        result["valid"]["auc"]
    )


def test_a_run_goes_on_with_the_data_that_it_began_with(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments("run", "--config.train.max_steps=8")) == 0
    anew.reverse("data")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for more in ([], ["--config.train.max_steps=8"]):  # one that goes on, one that is finished
        capsys.readouterr()
        assert train.main(arguments("run", *more)) == 2
        error = capsys.readouterr().err
        assert "run: its run is of other rows than data has now: preparation " in error
        assert "prepare those again, or choose another --workdir" in error
        assert error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in before}

    anew.reverse("data")
    assert train.main(arguments("run")) == 0
    assert held(home / "run")[1] == held(Path("run"))[1]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_data_that_change_under_a_run_end_it(home, tmp_path, monkeypatch, capsys, split):
    shutil.copytree(home / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    judged = loop.summary.verdict  # called in the first evaluation, when an epoch is done

    def prepared_anew(*args):
        anew.reverse("data", split)
        return judged(*args)

    monkeypatch.setattr(loop.summary, "verdict", prepared_anew)
    # The next epochs' first rows have been read by then, and are those of before.
    assert train.main(arguments("run", "--config.train.epochs=4")) == 2
    error = capsys.readouterr().err
    assert f"data/{split}/part-00000.parquet: another file than before; the data were" in error
    assert error.count("\n") == 1 and not Path("run/metrics.json").exists()


def test_a_report_of_prepare_that_is_none_is_one_line(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    files.write_json("data/prepare.json", files.read_json("data/prepare.json") | {"splits": "x"})
    assert train.main(arguments("run", "--config.train.max_steps=1")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data/prepare.json: damaged (") and error.count("\n") == 1


def test_a_run_of_a_sweep_takes_no_other_preparation(home, monkeypatch, tmp_path):
    config = config_lib.default()
    config.prepare.format, config.data.dir = "synthetic", str(home / "data")
    monkeypatch.setattr(run_lib, "stale", lambda *_: [])
    with pytest.raises(UserError, match="prepared anew, or moved, while this program reads"):
        run_lib.run(config, tmp_path / "run", "0" * 16)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_goes_on_when_it_is_given_more_steps(home, monkeypatch, capsys):
    assert train.main(arguments("longer", "--config.train.max_steps=20")) == 0
    assert files.read_json(home / "longer/metrics.json")["train"]["steps"] == 20
    with monkeypatch.context() as patch:  # killed between the last checkpoint and the result
        patch.setattr(loop, "_finish", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            train.main(arguments("longer"))
    assert "goes on from step 20 of 32" in capsys.readouterr().out
    assert not (home / "longer/metrics.json").exists(), "that of 20 steps"
    assert train.main(arguments("longer")) == 0
    one, other = held(home / "run"), held(home / "longer")
    assert one[1] == other[1]
    for name in one[0]:
        np.testing.assert_array_equal(one[0][name], other[0][name], err_msg=name)


def test_a_run_may_end_where_it_stands_but_not_before(home, monkeypatch, capsys):
    with monkeypatch.context() as patch:  # a run that has saved and not yet evaluated
        patch.setattr(loop, "_evaluate", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            train.main(arguments("fewer"))
    for done in (False, True):
        assert train.main(arguments("fewer", "--config.train.max_steps=2")) == 2, done
        assert (
            "fewer: its run has taken 12 steps, and config.train.epochs and max_steps end"
            in capsys.readouterr().err
        )
        assert train.main(arguments("fewer", "--config.train.max_steps=12")) == 0
    result = files.read_json(home / "fewer/metrics.json")
    assert result["train"]["steps"] == 12 and result["valid"]["rows"] == 1000


def test_a_kill_before_the_first_step_is_no_obstacle(home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(workdir_lib, "_environment", lambda: sys.exit(9))
        with pytest.raises(SystemExit):
            train.main(arguments("early"))
    assert [p.name for p in (home / "early").iterdir()] == ["schema.json"]
    monkeypatch.setattr(loop, "run", lambda *_: sys.exit(0))
    with pytest.raises(SystemExit):
        train.main(arguments("early"))
    assert (home / "early/config.json").exists()
    (home / "early/config.json").write_text("{")
    assert train.main(arguments("early")) == 2


def test_a_workdir_takes_one_program_at_a_time(home, capsys):
    with workdir_lib.alone(home / "run"):
        assert train.main(arguments("run")) == 2
    assert "run: another program works there now" in capsys.readouterr().err
    assert train.main(arguments("run")) == 0


def test_a_machine_without_git_trains(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = workdir_lib._environment()
    assert found["git_commit"] is None and not found["git_changes"]


def test_a_commit_with_changes_is_said(monkeypatch):
    said = {"rev-parse": "0123456789\n", "status": " M a.py\n"}

    def run(command, **_):
        assert command[1] == "--no-optional-locks"  # a commit of the user's may be under way
        return types.SimpleNamespace(stdout=said[command[4]])

    monkeypatch.setattr(workdir_lib, "subprocess", types.SimpleNamespace(run=run))
    monkeypatch.setattr(workdir_lib.shutil, "which", lambda _: "git")
    found = workdir_lib._environment()
    assert found["git_commit"] == "0123456789" and found["git_changes"]
    said["status"] = "\n"
    assert not workdir_lib._environment()["git_changes"]


def test_patience_plateau_and_the_best_state(home):
    more = [
        f"--config={TINY}:dnn",
        "--config.train.eval_every_steps=4",
        "--config.train.monitor=logloss",
        "--config.train.patience=3",
    ]
    more += [
        "--config.optim.network.schedule=plateau",
        "--config.optim.embedding.learning_rate=0.2",
    ]
    more += ["--config.train.epochs=6"]
    assert train.main(arguments("best", *more)) == 0
    result = files.read_json(home / "best" / "metrics.json")
    history = result["train"]["evaluations"]
    losses = [e["logloss"] for e in history]
    kept = result["train"]["kept_step"]
    assert len(history) == int(np.argmin(losses)) + 1 + 3, "stops three evaluations after the best"
    assert history[int(np.argmin(losses))]["step"] == kept < result["train"]["steps"]
    assert result["valid"]["logloss"] == min(losses)
    lines = [
        files.from_json(line) for line in (home / "best" / "log.jsonl").read_text().splitlines()
    ]
    scales = [
        line["lr_scale"]
        for line in lines
        if line["event"] == "plateau" and line["section"] == "network"
    ]
    np.testing.assert_allclose(
        scales[-3:], [s for s in 0.1 ** np.arange(1, 4)][-len(scales[-3:]) :], rtol=1e-5
    )
    assert not [
        line for line in lines if line["event"] == "plateau" and line["section"] == "embedding"
    ]
    assert evaluate.main(["evaluate", "--workdir=best", "--split=valid"]) == 0
    assert files.read_json(home / "best/predictions/valid.json") == result["valid"]
    for steps in (
        ["--config.train.max_steps=4"],
        [],
    ):  # the second goes on, and then goes back to the best state
        assert train.main(arguments("best_of_two", *more, *steps)) == 0
        assert not (home / "best_of_two/predictions/valid.parquet").exists(), (
            "it was of an earlier state"
        )
        assert evaluate.main(["evaluate", "--workdir=best_of_two", "--split=valid"]) == 0
    assert_same_run(home / "best", home / "best_of_two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--config.model.name=wmm"],
            "config.model.name: 'wmm' is not known; choose one of wm, hm, hmm",
        ),
        (
            [MIXED, "--config.model.mixer.kind=attention"],
            "config.model.mixer.kind: 'attention' is not known",
        ),
        ([MIXED, "--config.model.mixer.num_heads=3"], "3 heads do not divide d_att = 8"),
        (["--config.model.drop_type=t9"], "'t9' is no type of 'tiny'"),
        (["--config.optim.network.name=adamm"], "'adamm'"),
        (
            ["--config.optim.network.learning_rate=-1"],
            "config.optim.network.learning_rate: -1.0 is out of range",
        ),
        (
            ["--config.optim.network.learning_rate=fast"],
            "could not convert string to float: 'fast'",
        ),
        (["--config.optim.network.lr=0.1"], "lr"),
        (["--config.model.hidden=()"], "config.model.hidden: () is empty; give it an element"),
        (["--config.seed=-1"], "config.seed: -1 is out of range"),
        (["--config.model.dropout=1"], "config.model.dropout: 1.0 is out of range"),
        (["--config.train.patience=2"], "early stopping needs config.train.monitor"),
        (["--config.data.dir="], "config.data.dir: it is empty"),
        (["--config.prepare.synthetic.drift=0.5"], "prepare.synthetic.drift 0.0 against 0.5"),
        (["--config.seed=1"], "run: holds a run of another config (seed 0 there, 1 now)"),
        (["--config.prepare.slots={'s': {'rows': 9}}"], "slots.s.rows not set"),
        (
            ["--config.model.name=dcnv2", "--config.model.mixer.kind=graph"],
            "error: --config.model.mixer.kind=graph: it has no effect on dcnv2, only on hmm; leave it out",
        ),
        (
            ["--config.model.name=edcn", "--config.model.drop_type=t1"],
            "no meaning for edcn without types",
        ),
        (
            ["--config.optim.network.learning_rate=inf"],
            "config.optim.network.learning_rate: inf is out of range",
        ),
    ],
)
def test_a_mistake_is_one_line(home, capsys, changes, message):
    before = sorted(home.rglob("*"))
    workdir = "run" if "holds a run" in message else "new"
    assert train.main([*arguments(workdir), *changes]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sorted(home.rglob("*")) == before, "nothing is left behind"


def test_a_model_without_types_on_typed_data(home, capsys):
    more = ["--config.model.use_ftype=False", "--config.train.epochs=1"]
    assert train.main(arguments("untyped", *more)) == 0
    result = files.read_json(home / "untyped" / "metrics.json")
    assert "types" not in result["test"] and "am" not in result["test"]
    assert 0.55 < result["test"]["auc"] < result["test"]["bayes"]["auc"]
    assert pq.read_schema(home / "untyped/predictions/test.parquet").names == [
        "row",
        "label",
        "ftype",
        "gauc_key",
        "logit",
        "p",
    ]


def test_a_baseline_of_all_types_trains_and_is_evaluated(home):
    assert train.main(arguments("fm", f"--config={TINY}:fm", "--config.model.type_aware=True")) == 0
    arrays, results, _ = held(home / "fm")
    assert arrays["params/embedding"].shape[1] == 4 + 4, "D, and a first-order weight a type"
    assert "types" in results["test"] and "am" in results["test"]
    assert 0.55 < results["test"]["auc"] < results["test"]["bayes"]["auc"]
    assert evaluate.main(["evaluate", "--workdir=fm", "--split=test"]) == 0
    assert files.read_json(home / "fm/predictions/test.json") == results["test"]


def test_a_model_that_does_not_fit_is_told_what_there_is(home, capsys):
    flags = ["--config.model.name=dnn", "--config.model.hidden=(2000000,2000000)"]
    assert train.main(arguments("huge", *flags)) == 2
    error = capsys.readouterr().err
    said = re.search(
        r"takes up to about ([\d.]+) GiB .*, this machine has ([\d.]+) GiB; choose", error
    )
    needed, there = said.groups()
    # Four times (parameter, two moments, gradient) the kernel of the second layer, at the least.
    assert float(needed) > 4 * 4 * 2e6**2 / 2**30 > float(there) > 0
    assert not (home / "huge").exists()


def test_a_loss_that_is_not_finite_stops_the_run(home, capsys):
    bad = ["--config.optim.network.learning_rate=1e30", "--config.optim.network.name=sgd"]
    assert train.main(arguments("diverged", f"--config={TINY}:dnn", *bad)) == 2
    error = capsys.readouterr().err
    assert "step 2: the loss is not finite; lower the learning rate" in error
    assert not list((home / "diverged").glob("checkpoints/step_*"))


def test_broken_data_are_named(home, capsys, tmp_path):
    def run():
        code = train.main(arguments(tmp_path / "run", f"--config.data.dir={tmp_path / 'data'}"))
        assert code == 2
        return capsys.readouterr().err

    def fresh():
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        shutil.copytree(home / "data", tmp_path / "data")
        return tmp_path / "data"

    data = fresh()
    (data / "train" / "_SUCCESS").unlink()
    assert "no _SUCCESS file, so the split is not complete; prepare again" in run()
    shard = fresh() / "train" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "part-00000.parquet: not a complete Parquet file" in run()
    shard = fresh() / "train" / "part-00000.parquet"
    table = pq.read_table(shard)
    worst = table.set_column(
        0, table.column_names[0], pa.array(np.full(table.num_rows, 10**8, np.int32))
    )
    digest = {shards.DIGEST: files.read_json(data / "train" / "_SUCCESS")["digests"][0]}
    keep = lambda names: table.schema.with_metadata({**names, **digest})
    pq.write_table(worst.cast(keep(table.schema.metadata)), shard)
    assert "slot 'user_id' holds the id 100000000" in run()
    data = fresh()
    other = table.cast(keep({b"emofm_jax.fingerprint": b"0" * 16}))
    pq.write_table(other, data / "train" / "part-00000.parquet")
    assert "shards of different schemas cannot be mixed" in run()
    shutil.rmtree(fresh() / "valid")
    assert "training needs a train and a valid split" in run()
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_used(home, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert train.main(arguments(tmp_path / "file" / "run")) == 2
    assert "not writable" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    assert train.main(arguments(tmp_path / "other")) == 2
    assert "holds files but no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        (evaluate, ["--workdir=nowhere"], "nowhere: holds no run"),
        (evaluate, ["--workdir=run", "--split=tests"], "choose one of test, train, valid"),
        (evaluate, [], "--workdir: it is required"),
        (evaluate, ["--wrokdir=run"], "did you mean --workdir?"),
        (
            predict,
            ["--workdir=run", "--input=nowhere", "--output=x.csv"],
            "--input=nowhere: no such file or directory",
        ),
        (
            predict,
            ["--workdir=run", "--input=data/test", "--output=x.txt"],
            "the ending must be .parquet or .csv",
        ),
        (
            predict,
            ["--workdir=run", "--input=data/test", "--output=no/x.csv"],
            "--output=no/x.csv: there is no directory no; make",
        ),
        (
            train,
            [f"--config={FRAPPE}:dcn", "--workdir=x"],
            "'dcn' is not known; choose one of lr, fm, deepfm, dnn, dcnv2",
        ),
        (prepare, ["--config=nope.py"], "--config=nope.py: no such file"),
    ],
)
def test_mistakes_of_the_other_programs(home, capsys, program, flags, message):
    before = sorted(home.rglob("*"))
    assert program.main([program.__name__, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sorted(home.rglob("*")) == before


def test_help_of_the_programs(capsys):
    for program in (train, evaluate, predict, prepare):
        assert program.main(["x", "--help"]) == 0
        assert "Flags:" in capsys.readouterr().out
    train.main(["x", "--helpfull"])
    out = capsys.readouterr().out
    assert "optim.embedding.updates = 'lazy'" in out and "HMM(x) = HM with a mixer" in out


def test_split_of_a_whole_run_is_complete(home):
    split = shards.open_split(home / "data", "train")
    assert split.num_rows == 4000
