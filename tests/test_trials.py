"""The best trial of a search, and experiments/winners.py."""

import types
from pathlib import Path

import pytest

from emofm_jax import config, points
from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.record import Header, Result, place

WINNERS = Path(__file__).parent.parent / "experiments" / "winners.py"


def write(workdir, figures, search="tpe", **changes):
    """A search whose trials reached {name: [(validation AUC, logloss) or None, a seed each]}."""
    seeds = range(3, 3 + max(map(len, figures.values())))
    workdir.mkdir(exist_ok=True)
    header = Header("x.py", "x", tuple(figures), tuple(seeds), "", search)
    files.write_json(workdir / "sweep.json", header.to_json())
    for i, (name, reached) in enumerate(figures.items()):
        for seed, found in zip(seeds, reached):
            c = points.apply(config.default(), {"model.dropout": i / 10, **changes}, name)
            c.seed, run = seed, workdir / place(name, seed)
            metrics = found and {"valid": dict(zip(("auc", "logloss"), found))}
            error = None if found else "it failed"
            result = Result(name, seed, {}, run, metrics, error, config=config.flatten(c))
            run.mkdir(parents=True, exist_ok=True)
            files.write_json(run / "config.json", c.to_dict())
            files.write_json(run / "result.json", result.to_json())


FIGURES = {
    "low": [(0.7, 0.2), (0.7, 0.2)],
    "lucky": [(0.9, 0.4), (0.6, 0.5)],
    "best": [(0.77, 0.3), (0.77, 0.3)],
    "failed": [(0.99, 0.1), None],
    "one_class": [(None, 0.1), (None, 0.1)],
}


@pytest.mark.parametrize(("watched", "dropout"), [("", 0.2), ("auc", 0.2), ("logloss", 0.4)])
def test_the_best_by_the_mean_over_seeds_of_what_training_watched(tmp_path, watched, dropout):
    write(tmp_path, FIGURES, **{"train.monitor": watched})
    found = points.best_trial(tmp_path)
    assert found.model.dropout == dropout and found.seed == config.default().seed


def test_a_search_that_has_not_ended_has_no_best_trial(tmp_path):
    write(tmp_path, FIGURES)
    (tmp_path / place("one_class", 4) / "result.json").unlink()
    why = r"has not ended \(no result of runs/one_class/seed-4\); run the search's command again"
    with pytest.raises(UserError, match=why):
        points.best_trial(tmp_path)


def test_winners_are_ours_first_and_all_searches_of_the_directory(tmp_path):
    for name, figures in (("dnn", FIGURES), ("emofmv2", {"low": FIGURES["low"]})):
        write(tmp_path / name, figures)
    (tmp_path / "notes").mkdir()
    base = points.load(WINNERS).get_config(str(tmp_path))
    found = points.read(WINNERS, str(tmp_path), base, {}, search=False)
    assert [(point.name, point.config.model.dropout) for point in found.points] == [
        ("emofmv2", 0.0),
        ("dnn", 0.2),
    ]
    assert found.reference == "emofmv2" and found.seeds == (0, 1, 2, 3, 4)


def test_what_is_no_search(tmp_path):
    with pytest.raises(UserError, match="no directory in it holds a search"):
        points.load(WINNERS).get_config(str(tmp_path))
    with pytest.raises(UserError, match=r"holds no search \(no sweep.json\); name the --workdir"):
        points.best_trial(tmp_path)
    write(tmp_path, FIGURES, search="")
    with pytest.raises(UserError, match="holds a sweep of declared points and no search"):
        points.best_trial(tmp_path)
    write(tmp_path, {"failed": [None]})
    with pytest.raises(UserError, match="no trial has validation figures with every seed"):
        points.best_trial(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json: damaged \("):
        points.best_trial(tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    write(tmp_path, FIGURES)
    (tmp_path / place("best", 3) / "result.json").write_text('{"line": 1, "config": {}}')
    with pytest.raises(UserError, match=r"best/seed-3/result.json: damaged \("):
        points.best_trial(tmp_path)


@pytest.mark.parametrize("test", [False, True])
def test_a_trial_has_no_test_figures_even_where_train_finished_it(tmp_path, monkeypatch, test):
    made = types.SimpleNamespace(to_json=lambda: {"valid": {}, "test": {}})
    asked = []
    monkeypatch.setattr(sweep_run.run_lib, "run", lambda *of: asked.append(of[-1]) or made)
    run = sweep_run.Run("a", 0, {}, config.default(), tmp_path / "runs/a/seed-0", test=test)
    run = sweep_run.Run.from_json(run.to_json())  # as a process of --jobs=2 gets it
    result = sweep_run.execute(run)
    assert asked == [test] and result.metrics.keys() == ({"valid", "test"} if test else {"valid"})
