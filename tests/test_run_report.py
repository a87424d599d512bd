"""metrics.json is of one state: whoever reads it knows another run's where that lies in its place."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from emofm_jax import verify
from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.evaluation.run_report import RunReport, Training, state_of
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.reports import read
from emofm_jax.scoring import origin
from emofm_jax.training import checkpoint

OTHER = "metrics.json: of another run: of its step 3 this one has another state; delete it, and"


def make(workdir: Path, number: int) -> Path:
    """A run as far as its report goes: a state of step 3, and figures of it."""
    checkpoint.save(workdir / "checkpoints", 3, {"x": np.arange(number)}, {})
    training = Training(1.0, 0.0, 3, 1, 1.0, 3, [])
    split = {"test": SplitReport(auc=number / 10, logloss=0.5)}
    RunReport(split, training, {"total": 1}, state_of(workdir, 3)).save(workdir)
    files.write_json(workdir / "config.json", {})
    return workdir


@pytest.fixture
def runs(tmp_path):
    return make(tmp_path / "one", 5), make(tmp_path / "other", 6)


def test_of_the_own_state_it_is_read(runs):
    for run, auc in zip(runs, (0.5, 0.6)):
        assert RunReport.load(run).splits["test"].auc == auc
        assert origin._metrics(run, 3)["test"]["auc"] == auc
        assert read.load(run).metrics["test"]["auc"] == auc


def test_of_another_run_it_is_refused_by_all_readers(runs, capsys):
    one, other = runs
    shutil.copy(other / "metrics.json", one / "metrics.json")
    for reader in (RunReport.load, lambda run: origin._metrics(run, 3), read.load):
        with pytest.raises(UserError, match=f"one/{OTHER}"):
            reader(one)
    assert verify.main(["verify", str(one)]) == 2
    assert f"DAMAGED  {one}/{OTHER}" in capsys.readouterr().out


def test_without_a_state_on_either_side_it_is_taken(runs):
    one, other = runs
    body = files.read_json(other / "metrics.json")
    files.write_json(one / "metrics.json", {k: v for k, v in body.items() if k != "state"})
    assert RunReport.load(one).state == "", "as of release 0.1"
    for damage in (
        lambda path: path.write_text("{"),
        lambda path: shutil.rmtree(path.parents[1]),  # by sweep --nocheckpoints
    ):
        shutil.copy(other / "metrics.json", one / "metrics.json")
        damage(one / "checkpoints" / "step_3" / "state.json")
        assert RunReport.load(one).splits["test"].auc == 0.6
