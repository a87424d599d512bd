"""sweep end to end on tiny data: files, going on, failures, searches and the user's mistakes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import anew
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from emofm_jax import config, points, report, sweep, train
from emofm_jax.data import files
from emofm_jax.evaluation.run_report import RunReport
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping import sweep as sweep_lib
from emofm_jax.sweeping import trials
from emofm_jax.training import run as run_lib

SWEEP = Path(__file__).parent / "tiny_sweep.py"
TIMES = ("rows_per_s", "input_wait", "seconds", "peak_memory_mib")


def arguments(workdir, *more, arg=""):
    return ["sweep", f"--config={SWEEP}{f':{arg}' if arg else ''}", f"--workdir={workdir}", *more]


def results(workdir):
    """The lines of results.jsonl without what is measured."""
    lines = [
        files.from_json(line) for line in (Path(workdir) / "results.jsonl").read_text().splitlines()
    ]
    for line in lines:
        line.pop("seconds"), line.pop("peak_memory_mib")
        if line["metrics"]:
            line["metrics"]["train"] = {
                k: v for k, v in line["metrics"]["train"].items() if k not in TIMES
            }
    return lines


def table(workdir):
    """The rows of results.csv without what is measured."""
    with open(Path(workdir) / "results.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with data and a finished sweep, `done`."""
    home, before = tmp_path_factory.mktemp("home"), os.getcwd()
    os.chdir(home)
    assert sweep.main(arguments("done")) == 0
    yield home
    os.chdir(before)


def test_a_sweep_leaves_its_files(home):
    header = files.read_json(home / "done/sweep.json")
    assert header == {
        "experiment": str(SWEEP),
        "name": "tiny",
        "points": ["dnn", "lr"],
        "seeds": [0, 1],
        "reference": "dnn",
        "search": "",
        "identity": (identity := header["identity"]),
    }
    lines = [
        files.from_json(line) for line in (home / "done/results.jsonl").read_text().splitlines()
    ]
    assert [(line["point"], line["seed"]) for line in lines] == [
        ("dnn", 0),
        ("dnn", 1),
        ("lr", 0),
        ("lr", 1),
    ]
    assert {line["sweep"] for line in lines} == {identity} and len(identity) == 16
    assert [line["peak_memory_mib"] for line in lines[1:]] == [None] * 3  # not of these runs alone
    rows = list(csv.DictReader((home / "done/results.csv").read_text().splitlines()))
    for line, row in zip(lines, rows, strict=True):
        assert line["status"] == "ok" and line["error"] is None and line["seconds"] > 0
        assert row["peak_memory_mib"] == (
            "" if line["peak_memory_mib"] is None else str(line["peak_memory_mib"])
        )
        assert line["overrides"] == ({} if line["point"] == "dnn" else {"model.name": "lr"})
        assert line["workdir"] == f"runs/{line['point']}/seed-{line['seed']}"
        workdir = home / "done" / line["workdir"]
        assert line["metrics"] == files.read_json(workdir / "metrics.json")
        assert (
            config.load(workdir).seed == line["seed"]
            and config.load(workdir).model.name == line["point"]
        )
        test = line["metrics"]["test"]
        assert (
            float(row["test_auc"]) == test["auc"]
            and float(row["valid_logloss"]) == line["metrics"]["valid"]["logloss"]
        )
        assert float(row["share"]) == pytest.approx(
            (test["auc"] - 0.5) / (test["bayes"]["auc"] - 0.5)
        )
        assert row["model.name"] == line["point"] and row["error"] == ""
        assert int(row["parameters_network"]) == line["metrics"]["parameters"]["network"]
    assert lines[0]["metrics"]["test"]["auc"] != lines[1]["metrics"]["test"]["auc"], "seeds differ"


def test_the_same_command_starts_nothing_and_shows_the_table(home, monkeypatch, capsys):
    before = (home / "done/results.jsonl").read_bytes(), (home / "done/results.csv").read_bytes()
    monkeypatch.setattr(run_lib, "run", None)  # would fail
    assert sweep.main(arguments("done")) == 0
    out = capsys.readouterr().out
    aucs = [line["metrics"]["test"]["auc"] for line in results("done")[:2]]
    assert f"{sum(aucs) / 2:.6f} +/- {abs(aucs[0] - aucs[1]) / 2**0.5:.6f}" in out
    assert "(+/- is the standard deviation over seeds; share is that of the attainable lift" in out
    assert before == (
        (home / "done/results.jsonl").read_bytes(),
        (home / "done/results.csv").read_bytes(),
    )


def test_a_run_of_a_sweep_is_what_train_makes(home):
    command = [
        f"--config={Path(__file__).parent / 'tiny.py'}:dnn",
        "--workdir=single",
        "--config.seed=1",
    ]
    command += [
        "--config.prepare.synthetic.rows=(600,300,300)",
        "--config.prepare.synthetic.num_types=2",
        "--config.model.embedding_dim=2",
        "--config.model.hidden=(8,)",
        "--config.model.dropout=0.1",
    ]
    assert train.main(["train", *command]) == 0
    alone = files.read_json(home / "single/metrics.json")
    assert results("done")[1]["metrics"]["test"] == alone["test"]


def test_runs_of_one_shape_share_what_is_compiled(home):
    compilations = []
    listener = lambda event, seconds, **_: (
        compilations.append(event) if "backend_compile" in event else None
    )
    jax.monitoring.register_event_duration_secs_listener(listener)
    counts = []
    for seed in (5, 6, 7):
        before = len(compilations)
        c = points.apply(points.load(SWEEP).get_config(), {"seed": seed, "model.hidden": (5,)}, "")
        run_lib.run(c, home / f"shared-{seed}")
        counts.append(len(compilations) - before)
    assert counts[0] >= 3, "start, step, evaluation"
    assert counts[1:] == [0, 0]


# In the second run, in the middle of its epoch, after a checkpoint, which is written in a thread. Within one:
# test_checkpoint_damage.py.
KILLED = """
import dataclasses, os, signal, sys, time
from emofm_jax import sweep
from emofm_jax.training import build

make, count = build.make_parts, [0]
def dying(*args, **kwargs):
    parts = make(*args, **kwargs)
    def stepped(state, batch):
        count[0] += 1
        if count[0] < 6:
            return parts.train_step(state, batch)
        while not os.path.exists("killed/runs/dnn/seed-1/checkpoints/step_2"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return dataclasses.replace(parts, train_step=stepped)
build.make_parts = dying
sys.exit(sweep.main(["sweep", *sys.argv[1:]]))
"""


def test_a_killed_sweep_goes_on_to_the_same_results_with_the_same_bits(home, capsys):
    command = [sys.executable, "-c", KILLED, *arguments("killed")[1:]]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert [(line["point"], line["seed"]) for line in results("killed")] == [("dnn", 0)]
    run = home / "killed/runs/dnn/seed-1"
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_2"]
    assert files.read_json(run / "attempt.json")["deaths"] == 1
    assert sweep.main(arguments("killed")) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")][
        0
    ].startswith("[2/4] dnn seed 1")
    assert results("killed") == results("done") and table("killed") == table("done")
    assert "goes on from step 2" in (run / "train.log").read_text()
    one, other = (held(home / name / "runs/dnn/seed-1") for name in ("done", "killed"))
    assert one[1] == other[1] and one[0].keys() == other[0].keys()
    for name in one[0]:
        np.testing.assert_array_equal(one[0][name], other[0][name], err_msg=name)


def held(workdir):
    """(arrays of the last checkpoint, lines of the log without what is measured)."""
    lines = [files.from_json(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return load_file(workdir / "checkpoints/step_3/state.safetensors"), lines


def test_a_run_whose_process_dies_three_times_at_one_step_has_failed(home, monkeypatch, capsys):
    shutil.copytree("done", "deaths")
    for seed, step in ((0, 3), (1, 2)):  # the second has made a step since
        workdir = home / f"deaths/runs/lr/seed-{seed}"
        (workdir / "result.json").unlink()
        (workdir / "attempt.json").write_text(
            json.dumps({"step": step, "deaths": 3, "seconds": 100.0})
        )
    assert sweep.main(arguments("deaths")) == 1
    assert (
        "lr seed 0: failed: deaths/runs/lr/seed-0: its process was killed 3 times after"
        in capsys.readouterr().out
    )
    assert results("deaths")[3] == results("done")[3]
    assert (
        100
        < files.from_json((home / "deaths/results.jsonl").read_text().splitlines()[3])["seconds"]
        < 150
    )
    assert sweep.main(arguments("deaths", "--retry")) == 0
    assert results("deaths") == results("done")


def test_all_runs_of_a_sweep_are_of_one_preparation(home, tmp_path, monkeypatch, capsys):
    """Data that are prepared anew before the second run: it fails, and so do those behind it."""
    shutil.copytree("data", tmp_path / "data")
    wanted = results("done")
    monkeypatch.chdir(tmp_path)
    execute = sweep_run.execute

    def prepared_anew(run):
        if (run.point, run.seed) == ("dnn", 1):
            anew.reverse("data")
        return execute(run)

    monkeypatch.setattr(sweep_run, "execute", prepared_anew)
    assert sweep.main(arguments("ours")) == 1
    found = results("ours")
    assert found[0] == wanted[0] and [line["metrics"] for line in found[1:]] == [None] * 3
    assert "data: the data were prepared anew, or moved, while" in found[3]["error"]

    capsys.readouterr()
    monkeypatch.setattr(sweep_run, "execute", execute)
    assert sweep.main(arguments("ours", "--retry")) == 2
    error = capsys.readouterr().err
    assert re.search(r"data: of the preparation (\w+) of data, but ours/runs/dnn/seed-0 of ", error)
    assert "prepare that again, delete what is of another, or choose another --workdir" in error
    anew.reverse("data")
    assert sweep.main(arguments("ours", "--retry")) == 0
    assert results("ours") == wanted


def test_what_changes_no_number_starts_nothing_and_another_end_does(home, monkeypatch, capsys):
    shutil.copytree("done", "ends")
    for path in home.glob("ends/runs/*/*/result.json"):  # as an older version wrote it
        found = files.read_json(path)
        found["line"].pop("peak_memory_mib"), found["config"].pop("model.head_bias")
        found["config"]["optim.embedding.update"] = found["config"].pop("optim.embedding.updates")
        path.write_text(json.dumps(found))
        body = files.read_json(path.parent / "config.json")
        body["optim"]["embedding"]["update"] = body["optim"]["embedding"].pop("updates")
        (path.parent / "config.json").write_text(json.dumps(body))
    with monkeypatch.context() as patch:
        patch.setattr(run_lib, "run", None)
        assert (
            sweep.main(arguments("ends", "--config.train.log_every_steps=3", "--nocheckpoints"))
            == 0
        )
    assert results("ends") == results("done") and not list(home.glob("ends/runs/*/*/checkpoints"))
    shutil.copytree(home / "done/runs/dnn", "ends/runs/dnn", dirs_exist_ok=True)
    assert sweep.main(arguments("ends", "--config.train.max_steps=2")) == 1
    assert (
        "dnn seed 1: failed: ends/runs/dnn/seed-1: its run has taken 3 steps, and config.train"
        in capsys.readouterr().out
    )
    steps = [line["metrics"] and line["metrics"]["train"]["steps"] for line in results("ends")]
    assert steps == [None, None, 2, 2], "nothing is kept of lr, so that it is trained again"
    assert sweep.main(arguments("ends")) == 0, "and nothing is lost"
    assert results("ends")[:2] == results("done")[:2]


def test_two_processes_give_the_same_results(home, capfd):
    assert sweep.main(arguments("two", "--jobs=2", "--nocheckpoints")) == 0
    assert not capfd.readouterr().err
    assert (
        not list(home.glob("two/runs/*/*/checkpoints"))
        and len(list(home.glob("done/runs/*/*/checkpoints"))) == 4
    )
    assert results("two") == results("done") and table("two") == table("done")
    lines = [files.from_json(line) for line in Path("two/results.jsonl").read_text().splitlines()]
    memory = [line["peak_memory_mib"] for line in lines]
    firsts = [mib for mib in memory if mib is not None]  # later runs of a process are not alone
    if sys.platform == "linux":
        assert memory[0] and len(firsts) <= 2 and min(firsts) > 50
    else:
        assert not firsts


def test_what_fails_is_reported_and_the_rest_goes_on(home, capsys, monkeypatch):
    assert sweep.main(arguments("failing", "--config.train.max_steps=3", arg="failing")) == 1
    out = capsys.readouterr().out
    found = {(line["point"], line["seed"]): line for line in results("failing")}
    assert [point for point, _ in found] == [
        p for p in ("dnn", "nan", "huge", "drift", "lr") for _ in range(2)
    ]
    for point, error in (
        ("nan", "the loss is not finite"),
        ("huge", "choose a smaller model"),
        ("drift", "'t9'"),
    ):
        for seed in (0, 1):
            line = found[point, seed]
            assert line["status"] == "failed" and line["metrics"] is None and error in line["error"]
            assert f"] {point} seed {seed}: failed: {line['error']}\n" in out
    assert found["lr", 1]["status"] == found["dnn", 0]["status"] == "ok"
    assert [row["status"] for row in table("failing")].count("failed") == 6
    with monkeypatch.context() as patch:  # kept, unless they are asked for
        patch.setattr(run_lib, "run", None)
        assert sweep.main(arguments("failing", "--config.train.max_steps=3", arg="failing")) == 1
    shutil.copy(SWEEP.with_name("tiny.py"), "tiny.py")
    mend = lambda text, field, value: text.replace(
        f'"optim.{field}.learning_rate": 1e30', f'"model.{value}'
    )
    text = mend(SWEEP.read_text(), "network", 'activation": "relu"')
    Path(SWEEP.name).write_text(
        mend(text, "embedding", 'norm": "none"')
    )  # begins anew, as what dnn has compiled
    mended = [
        "sweep",
        f"--config={SWEEP.name}:failing",
        "--workdir=failing",
        "--config.train.max_steps=3",
    ]
    assert sweep.main(mended) == 1
    assert [line["point"] for line in results("failing") if line["status"] == "ok"] == [
        "dnn"
    ] * 2 + ["nan"] * 2 + ["lr"] * 2
    assert sweep.main(arguments("failing", "--config.train.max_steps=3", arg="failing")) == 2, (
        "it is a whole run now"
    )
    assert "failing/runs/nan/seed-0: holds a run of another config (" in capsys.readouterr().err
    metrics = results("done")[0]["metrics"] | {"train": {"rows_per_s": 1, "steps": 1}}
    report = types.SimpleNamespace(to_json=lambda: metrics)
    monkeypatch.setattr(run_lib, "run", lambda c, workdir, identity, test: report)
    monkeypatch.setattr(sweep_lib, "make_data", lambda runs: {})
    assert sweep.main([*mended, "--retry"]) == 0


def test_a_bug_fails_one_run_with_its_traceback_in_the_log(home, monkeypatch, capsys):
    single = RunReport.load(home / "done/runs/dnn/seed-0")
    monkeypatch.setattr(
        run_lib, "run", lambda c, workdir, identity, test: 1 / 0 if c.seed else single
    )
    assert sweep.main(arguments("bug")) == 1
    assert "dnn seed 1: failed: ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert "Traceback" in (home / "bug/runs/dnn/seed-1/train.log").read_text()


def test_points_come_and_go_with_the_file(home, capsys):
    shutil.copytree("done", "changed")
    shutil.copy(SWEEP.with_name("tiny.py"), "tiny.py")
    command, last = ["sweep", f"--config={SWEEP.name}", "--workdir=changed"], 'yield "lr", lr'
    Path(SWEEP.name).write_text(SWEEP.read_text().replace(last, f'{last}\n    yield "new", lr'))
    assert sweep.main(command) == 0
    started = [line[:12] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert started == ["[5/6] new se", "[6/6] new se"]
    assert [line["point"] for line in results("changed")] == [
        "dnn",
        "dnn",
        "lr",
        "lr",
        "new",
        "new",
    ]
    Path(SWEEP.name).write_text(SWEEP.read_text().replace(last, "").replace("(0, 1)", "(0,)"))
    assert sweep.main(command) == 0
    assert (
        "note: the sweep has no point lr, point new, seed 1 any more; the runs stay in"
        in capsys.readouterr().out
    )
    assert [(line["point"], line["seed"]) for line in results("changed")] == [("dnn", 0)]
    header = files.read_json(Path("changed/sweep.json"))  # of another sweep: no run is of its seed
    files.write_json(Path("changed/sweep.json"), header | {"points": ["dnn", "x"], "seeds": [0, 7]})
    assert sweep.main(command) == 0
    assert "any more" not in capsys.readouterr().out
    assert files.read_json(Path("changed/sweep.json")) == header
    assert sweep.main([*command, "--config.model.embedding_dim=3"]) == 2
    assert (
        "holds a run of another config (model.embedding_dim 2 there, 3 now)"
        in capsys.readouterr().err
    )


def test_a_search_is_reproducible_and_says_what_was_best(home, capsys, monkeypatch):
    assert sweep.main(arguments("search", "--search=tpe", "--trials=3")) == 1
    out = capsys.readouterr().out
    lines = results("search")
    assert [line["point"] for line in lines] == [
        f"trial-{i:03d}" for i in range(3) for _ in range(2)
    ]
    means = {}
    for line in lines:
        if line["status"] == "ok":
            means.setdefault(line["point"], []).append(line["metrics"]["valid"]["auc"])
    best = max(means, key=lambda name: sum(means[name]))
    assert (
        f"best: {best}, validation auc {sum(means[best]) / 2:.6f}: optim.network.learning_rate="
        in out
    )
    assert "test AUC" not in out, "test rows choose nothing, not even by eye"
    scored = {path.name for path in Path("search").rglob("predictions/*.parquet")}
    assert scored == {"valid.parquet"}
    for line in lines:
        if line["status"] == "ok":
            auc, of = line["metrics"]["valid"]["auc"], f"{line['point']} seed {line['seed']}"
            assert f"{of}: validation AUC {auc:.6f}, " in out and "test" not in line["metrics"]
    found = config.flatten(points.best_trial("search"))
    assert {**found, **next(x for x in lines if x["point"] == best)["overrides"]} == found
    shutil.rmtree("search/runs/trial-002")  # as if it had been stopped before its last trial
    (home / "search/results.jsonl").unlink()
    assert sweep.main(arguments("search", "--search=tpe", "--trials=3")) == 1
    assert results("search") == lines
    monkeypatch.setattr(trials.monitor, "value", lambda *_: None)  # as with one class
    assert sweep.main(arguments("search", "--search=tpe", "--trials=3")) == 1
    assert (
        "no trial has a validation auc with every seed: runs failed, or its"
        in capsys.readouterr().out
    )
    result = home / "search/runs/trial-000/seed-0/result.json"
    body, header = files.read_json(result), (home / "search/sweep.json").read_bytes()
    body["line"]["metrics"]["test"] = body["line"]["metrics"]["valid"]  # as of an older version
    result.write_text(json.dumps(body))
    assert sweep.main(arguments("search", "--search=tpe", "--trials=4")) == 2
    assert "holds a search of an older version, whose trials scored" in capsys.readouterr().err
    assert (home / "search/sweep.json").read_bytes() == header
    assert sweep.main(arguments("search")) == 2
    assert "(a search); choose another --workdir" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep.main(arguments("new", "--search=tpe", "--trials=3")) == 2
    assert (
        capsys.readouterr().err
        == "error: --search=tpe: Optuna is not installed; `pip install 'emofm_jax[search]'`\n"
    )


def test_a_damaged_plan_may_be_deleted(home, capsys, monkeypatch):
    shutil.copytree("done", "damaged")
    (home / "damaged/report.html").touch()
    (home / "damaged/sweep.json").write_text("{")
    assert sweep.main(arguments("damaged")) == 2
    assert "damaged/sweep.json: damaged (" in capsys.readouterr().err
    (home / "damaged/sweep.json").unlink()
    monkeypatch.setattr(run_lib, "run", None)
    assert sweep.main(arguments("damaged")) == 0 and results("damaged") == results("done")


def test_a_workdir_that_holds_something_else(home, capsys):
    for workdir, message in (
        (
            "done/runs",
            "done/runs: holds files but no sweep (no sweep.json); choose an empty --workdir",
        ),
        ("done", f"done: holds the sweep of {SWEEP}; choose another --workdir"),
    ):
        assert sweep.main(arguments(workdir, arg="failing")) == 2
        assert capsys.readouterr().err == f"error: {message}\n"


def test_ones_own_rows_have_no_share(home, runs, capsys):
    """Of rows whose truth nobody knows."""
    Path("mine_sweep.py").write_text(
        f"""
from emofm_jax import points
get_config = points.load({str(runs / "mine.py")!r}).get_config
small = {{"model.hidden": (8,), "model.embedding_dim": 4, "data.batch_size": 64}}
def sweep(arg=""):
    yield "dnn", small | {{"model.name": "dnn"}}
    yield "lr", {{"model.name": "lr"}}
"""
    )
    assert sweep.main(["sweep", "--config=mine_sweep.py", "--workdir=mine"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"\[2/2\] lr seed 0: (test|validation) AUC 0\.\d{6}, logloss 0\.\d{6}, [\d,]+ rows/s, \d+ s\n",
        out,
    )
    assert re.search(r"^lr +1 +0\.\d{6} +0\.\d{6} +[\d,]+$", out, re.M)
    assert re.search(r"logloss +rows/s$", out, re.M) and "share" not in out and "+/-" not in out
    assert [row["share"] for row in table("mine")] == ["", ""]
    rates = [
        row["rows_per_s"]
        for row in csv.DictReader((home / "mine/results.csv").read_text().splitlines())
    ]
    assert float(rates[0]) > 0 and float(rates[1]) > 0
    assert (
        sweep.main(
            ["sweep", "--config=mine_sweep.py", "--workdir=one", "--config.train.max_steps=1"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert re.search(
        r"\[2/2\] lr seed 0: (test|validation) AUC 0\.\d{6}, logloss 0\.\d{6}, \d+ s\n", out
    ), "one step has no rate"
    assert re.search(r"^lr +1 +0\.\d{6} +0\.\d{6}$", out, re.M)
    assert report.main(["report", "--workdir=mine"]) == 0
    assert "attainable" not in Path("mine/report.md").read_text()
