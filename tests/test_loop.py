"""The loop's decisions without training: what an evaluation keeps, lowers and ends; lines without a number."""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emofm_jax import config
from emofm_jax.data import files
from emofm_jax.evaluation import metrics
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.training import loop, progress, step


class Log:
    """Keeps what is written."""

    def __init__(self):
        self.lines = []

    def write(self, event, **values):
        self.lines.append({"event": event, **values})


def evaluate(monkeypatch, reports, **train):
    """(progress, saved steps, lr_scale of the network, step kept, whether patience ended).

    After evaluations that find (auc, logloss) `reports`.
    """
    c = config.default()
    c.optim.network.schedule = "plateau"
    c.train.update(train)
    found, saved = progress.Progress(), []
    ones = {key: jax.numpy.float32(1) for key in ("embedding", "network")}
    state = types.SimpleNamespace(lr_scale=ones)
    state.replace = lambda lr_scale: types.SimpleNamespace(lr_scale=lr_scale, replace=state.replace)
    parts = types.SimpleNamespace(devices=jax.local_devices()[:1])
    run = loop._Run(c, None, {"valid": None}, parts, found)
    monkeypatch.setattr(loop, "_verdict", lambda *_: "verdict")  # it reads what prepare left

    for auc, logloss in reports:
        found.step += 10
        constant = metrics.Constant(p=0.5, auc=0.5, logloss=0.7, gauc=None, pcoc=1.0)
        figures = {"auc": auc, "logloss": logloss, "pcoc": 1.0, "rows": found.step, "clicks": 5}
        report = SplitReport(**figures, notes=["one class"], constant=constant)
        monkeypatch.setattr(loop.predictions_lib, "score", lambda *_, r=report: (None, r))
        state, worth_saving = loop._evaluate(run, state, Log())
        saved += [found.step] * worth_saving
    done = found.is_done(c.train, 1000)
    return found, saved, float(state.lr_scale["network"]), found.kept_step(c.train), done


REPORTS = [(0.6, 0.5), (0.7, 0.7), (0.65, 0.4), (0.7005, 0.6)]


@pytest.mark.parametrize(
    ("monitor", "best", "saved"),
    [
        ("auc", 40, [10, 20, 40]),
        ("logloss", 30, [10, 30]),
        ("auc - logloss", 30, [10, 30]),
        ("", 30, []),
    ],
)
def test_each_monitor_keeps_its_own_best(monkeypatch, monitor, best, saved):
    found, steps, _, kept, _ = evaluate(monkeypatch, REPORTS, monitor=monitor)
    assert (found.best_step, steps) == (best, saved)
    assert kept == (best if monitor else 40)
    assert found.report["rows"] == kept, "the report is of the state that is kept"


def test_a_gain_is_more_than_min_delta(monkeypatch):
    assert evaluate(monkeypatch, REPORTS, monitor="auc", min_delta=0.001)[0].best_step == 20


def test_plateau_lowers_the_rate_by_its_factor_down_to_its_smallest(monkeypatch):
    stale = [(0.6, 0.5)] * 4
    assert evaluate(monkeypatch, stale)[2] == pytest.approx(1e-3)
    assert evaluate(monkeypatch, stale, plateau_factor=0.5)[2] == pytest.approx(0.125)
    assert evaluate(monkeypatch, stale, plateau_min=0.05)[2] == pytest.approx(0.05)
    assert evaluate(monkeypatch, REPORTS[::-1])[2] == pytest.approx(0.01), (
        "0.6, 0.4, 0.7, 0.5: two without gain"
    )


def test_patience_counts_evaluations_since_the_best(monkeypatch):
    for patience, ends in ((1, True), (2, True), (3, False), (0, False)):
        found = evaluate(
            monkeypatch, [REPORTS[0], (0.5, 0.5), (0.5, 0.5)], monitor="auc", patience=patience
        )
        assert found[0].stale == 2 and found[-1] == ends


@pytest.mark.parametrize(
    ("train", "standing", "said"),
    [
        (
            {"monitor": "auc", "patience": 3, "epochs": 40},
            {"step": 90, "epoch": 9, "best_step": 60, "stale": 3},
            "3 evaluations without gain in validation auc (config.train.patience)",
        ),
        (
            {"monitor": "logloss", "patience": 1, "epochs": 40},
            {"step": 90, "epoch": 9, "best_step": 80, "stale": 1},
            "1 evaluation without gain in validation logloss (config.train.patience)",
        ),
        ({"epochs": 1}, {"step": 100, "epoch": 1}, "its epoch (config.train.epochs)"),
        (
            {"monitor": "auc", "patience": 3, "epochs": 10},
            {"step": 100, "epoch": 10, "best_step": 80, "stale": 3},
            "the last epoch (config.train.epochs)",
        ),
        (
            {"monitor": "auc", "patience": 3, "epochs": 10},
            {"step": 100, "epoch": 10, "best_step": 100},
            "the last epoch (config.train.epochs); its validation was the best so far, so more may "
            "be better",
        ),
        (
            {"max_steps": 100, "epochs": 40},
            {"step": 100, "epoch": 9},
            "step 100 (config.train.max_steps)",
        ),
    ],
)
def test_why_a_run_has_ended_is_said(train, standing, said):
    c = config.default()
    c.train.update(train)
    found = progress.Progress(**standing)
    assert found.is_done(c.train, 100) and found.ended(c.train, 100) == said


@pytest.mark.parametrize(
    ("monitor", "report"), [("auc", (None, 0.5)), ("logloss", (None, None)), ("", (None, None))]
)
def test_a_monitor_that_never_has_a_value_keeps_the_last_state(
    monkeypatch, capsys, monitor, report
):
    found, saved, *_, kept, _ = evaluate(monkeypatch, [report] * 3, monitor=monitor)
    assert (kept, saved, found.report["rows"]) == (30, [], 30)
    assert "validation AUC -" in capsys.readouterr().out


def test_one_class_has_a_logloss_to_watch(monkeypatch):
    found, saved, *_ = evaluate(
        monkeypatch, [(None, 0.5), (None, 0.4), (None, 0.6)], monitor="logloss"
    )
    assert (found.best_step, saved) == (20, [10, 20])


def test_a_window_of_rows_without_weight_is_logged(tmp_path):
    found = progress.Progress(step=1)
    bar = types.SimpleNamespace(update=lambda rows: None, set_postfix_str=lambda text: None)
    names = ("embedding_norm", "network_norm", "nonfinite")
    arrays = jnp.ones((1, 4)), jnp.zeros((1, len(names)))
    with progress.Log(tmp_path, found) as log:
        window = progress.Window(log, bar, found, 4)
        rows = types.SimpleNamespace(label=np.ones(4, np.float32), weight=np.zeros(4, np.float32))
        window.add(step.StepMetrics(*arrays, names), rows)
        window.close()
    line = files.read_json(tmp_path / "log.jsonl")
    assert line["logloss"] is None and line["auc"] is None and line["step"] == 1


def test_a_log_is_cut_back_and_goes_on(tmp_path):
    found = progress.Progress()
    with progress.Log(tmp_path, found) as log:
        log.write("train", step=1, loss=0.5)
        found.log_bytes, found.step = log.size(), 1
        log.write("train", step=2, loss=0.4)
    with progress.Log(tmp_path, found) as log:
        log.write("train", step=2, loss=0.3)
        found.log_bytes = log.size()
    lines = (tmp_path / "log.jsonl").read_text()
    assert [files.from_json(line)["loss"] for line in lines.splitlines()] == [0.5, 0.3]
    assert found.log_bytes == len(lines)


def test_a_line_that_takes_its_time_is_waited_for(tmp_path):
    found = progress.Progress()

    def slow(loss):
        time.sleep(0.05)
        return {"step": 1, "loss": loss}

    with progress.Log(tmp_path, found) as log:
        log.write_later("train", lambda: slow(0.5))
        log.write("evaluate", step=1, auc=0.5)
        log.write_later("train", lambda: slow(0.4))
        assert log.size() == len((tmp_path / "log.jsonl").read_text())
        log.write_later("train", lambda: slow(0.3))
    lines = [files.from_json(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.get("loss") for line in lines] == [0.5, None, 0.4, 0.3]
    with pytest.raises(ZeroDivisionError), progress.Log(tmp_path, found) as log:
        log.write_later("train", lambda: {"step": 1 // 0})


def test_a_run_of_other_numbers_of_processes_ends_where_its_epochs_do(monkeypatch):
    """Its first epoch took one process 8 steps; two of them take 10 or 12 for one."""
    groups = [types.SimpleNamespace(rows=rows) for rows in (1500, 1500, 1000)]
    split = types.SimpleNamespace(num_rows=4000, row_groups=groups)
    c = config.default()
    c.data.batch_size, c.train.epochs = 512, 3
    assert loop.num_steps(c, split) == 24
    monkeypatch.setattr(loop.processes, "count", lambda: 2)
    done = progress.Progress(step=8, epoch=1)
    last = loop.num_steps(c, split, done)

    order = {"seed": c.seed, "num_processes": 2}
    of_epochs = [loop.batches.num_steps(split, 512, epoch=epoch, **order) for epoch in (1, 2)]
    assert last == 8 + sum(of_epochs)
    done.advance(512, 4000)
    assert loop.num_steps(c, split, done) == last, "also where it stands within an epoch"
    c.train.epochs = 1
    assert loop.num_steps(c, split, done) < done.step, "it has passed its end"
