"""What an experiment file declares: overrides and their names, ranges, and what a search draws from them."""

import json

import pytest

from emofm_jax import config, points
from emofm_jax.errors import UserError
from emofm_jax.sweeping import search

pytestmark = pytest.mark.fast

BASE = config.default()
BASE.data.dir, BASE.model.name = "data", "hmm"


@pytest.mark.slow
def test_a_search_finds_what_is_better_and_avoids_what_fails():
    base = BASE
    ranges = {
        "model.dropout": ("uniform", 0.0, 0.9),
        "model.embedding_dim": ("log", 2, 64),
        "model.mixer.stages": ("choice", [(1,), (2,), (1, 2)]),
    }
    search.check(ranges, base)
    late = []
    for seed in range(4):  # of one seed alone, and of another Optuna, it may stay where it began
        history = []
        for _ in range(50):
            drawn = search.next_trial(ranges, base, history, seed)
            width, stages = drawn["model.embedding_dim"], drawn["model.mixer.stages"]
            assert isinstance(width, int) and 2 <= width <= 64
            better = -abs(drawn["model.dropout"] - 0.3) - 0.2 * (stages != (2,))
            history.append((drawn, None if width > 32 else better))
        late += [drawn for drawn, _ in history[-20:]]
    # Drawn uniformly it would be 0.25 +- 0.02, and a third of the 80 +- 4.
    assert sum(abs(drawn["model.dropout"] - 0.3) for drawn in late) / len(late) < 0.2
    assert sum(drawn["model.mixer.stages"] == (2,) for drawn in late) > 35
    assert history[-1][0] == search.next_trial(ranges, base, history[:-1], seed)


def test_the_first_trial_is_where_the_search_begins():
    ranges = {
        "model.dropout": ("uniform", 0.0, 0.5),
        "model.embedding_dim": ("log", 32, 64),  # the base has 16
        "model.mixer.stages": ("choice", [[1], [1, 2]]),
    }
    for dropout in (0.0, 0.25, 0.5):
        base = points.apply(BASE, {"model.dropout": dropout, "model.mixer.stages": (1, 2)}, "")
        for seed in range(3):
            found = search.next_trial(ranges, base, [], seed)
            assert found["model.dropout"] == dropout
            assert tuple(found["model.mixer.stages"]) == (1, 2)
            assert 32 <= found["model.embedding_dim"] <= 64
        assert search.next_trial(ranges, base, [(found, 0.7)], 0)["model.dropout"] != dropout


def test_lists_within_a_choice_count_as_tuples():
    ranges = {"prepare.groups": ("choice", [[["a", ["x"]]], [["b", ["x"]]]])}
    base = points.apply(BASE, {"prepare.groups": (("b", ("x",)),)}, "")
    drawn = [search.next_trial(ranges, base, [], seed) for seed in range(3)]
    assert all(trial["prepare.groups"][0][0] == "b" for trial in drawn)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ({"model.x": ("log", 1, 2)}, "'model.x' is no field"),
        (
            {"model.dropout": ("normal", 0, 1)},
            "('normal', 0, 1) is not known; write (kind, ...), kind one of log",
        ),
        ({"model.dropout": ("log", 0, 1)}, "write ('log', low, high) with low < high, above 0"),
        ({"model.dropout": ("uniform", 1, 0)}, "write ('uniform', low, high) with low < high"),
        ({"model.name": ("choice", "wm")}, "write ('choice', [value, ...])"),
        ({"model.name": ("choice", 5)}, "write ('choice', [value, ...])"),
        ({"model.name": ("choice", ["wm", 5])}, "ranges: model.name = 5 is no str"),
        ({"model.name": ("uniform", 0, 1)}, "it is 'hmm', and only numbers have a range"),
        ({"model.dropout": 5}, "5 is not known; write (kind, ...)"),
        ({"model.dropout": ()}, "() is not known; write (kind, ...)"),
        ({"model.dropout": ("uniform", 0, float("inf"))}, "is no range of numbers"),
        ({"model.embedding_dim": ("log", 1.5, 8)}, "is no range of whole numbers"),
        ({"seed": ("uniform", 0, 9)}, "'seed': every trial has all seeds"),
        (
            {"model.mixer.d_att": ("log", 8, 64), "model.name": ("choice", ["wm", "hm"])},
            "d_att' has no effect on hm",
        ),
    ],
)
def test_ranges_are_checked(drawn, message):
    with pytest.raises(UserError) as error:
        search.check(drawn, BASE)
    assert message in str(error.value)


def test_a_range_may_have_its_effect_through_another():
    base = points.apply(BASE, {"model.name": "wm"}, "")
    ranges = {"model.mixer.d_att": ("log", 8, 64)}
    with pytest.raises(UserError, match="d_att' has no effect on wm"):
        search.check(ranges, base)
    ranges["model.name"] = ("choice", ["wm", "hmm"])
    search.check(ranges, base)
    before = [({"model.name": "wm", "model.mixer.d_att": 8}, None)]
    drawn = [search.next_trial(ranges, base, before, seed) for seed in range(12)]
    assert {trial["model.name"] for trial in drawn} == {"wm", "hmm"}
    assert all(8 <= trial["model.mixer.d_att"] <= 64 for trial in drawn)


def test_one_point_and_grids_have_names_that_tell_them_apart():
    assert list(
        points.grid({"model.mixer.kind": ["graph"], "model.mixer.stages": [(1, 2), ()]})
    ) == [
        ("kind=graph,stages=1+2", {"model.mixer.kind": "graph", "model.mixer.stages": (1, 2)}),
        ("kind=graph,stages=none", {"model.mixer.kind": "graph", "model.mixer.stages": ()}),
    ]
    both = points.one_at_a_time(
        {"optim.network.name": ["sgd"], "optim.embedding.name": ["adam", "sgd"]}
    )
    assert list(both) == [
        ("network.name=sgd", {"optim.network.name": "sgd"}),
        ("embedding.name=adam", {"optim.embedding.name": "adam"}),
        ("embedding.name=sgd", {"optim.embedding.name": "sgd"}),
    ]
    # One name ends in the other's: that is no field of the same name.
    ends = points.one_at_a_time({"model.dcnv2.low_rank": [2], "model.rank": [3]})
    assert [name for name, _ in ends] == ["low_rank=2", "rank=3"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.epochs": 0.5}, "w: train.epochs = 0.5 is no int"),
        ({"model": 3}, "w: model = 3 is no Section"),
        ({"model.dropout": 2.0}, "w: config.model.dropout: 2.0 is out of range"),
        ({"model.dropout.rate": 2.0}, "w: there is no field 'model.dropout.rate'"),
    ],
)
def test_overrides_are_checked(overrides, message):
    with pytest.raises(UserError) as error:
        points.apply(config.default(), overrides, "w")
    assert str(error.value).startswith(message)


def test_overrides_leave_the_base_and_may_name_sections():
    base = config.default()
    c = points.apply(
        base,
        {"model.mixer": {"kind": "graph", "stages": [1]}, "optim.network.learning_rate": 1},
        "w",
    )
    assert (c.model.mixer.kind, c.model.mixer.stages, base.model.mixer.kind) == (
        "graph",
        (1,),
        "cross_attention",
    )
    assert (
        isinstance(c.optim.network.learning_rate, float)
        and c.model.mixer.d_att == base.model.mixer.d_att
    )
    assert c.is_locked and c.model.is_locked


def test_values_of_numpy_and_days_make_points(tmp_path):
    """A grid of arrays, seeds of an array, a day: names as of plain values, and a config that JSON can hold."""
    file = tmp_path / "x.py"
    file.write_text(
        "import datetime, numpy as np\n"
        "from emofm_jax import config, points\n"
        "get_config = config.default\n"
        "seeds = np.arange(2)\n"
        "def sweep():\n"
        "    day = datetime.date(2024, 3, 5)\n"
        "    yield from points.grid({'model.embedding_dim': np.array([4, 8]), 'prepare.test_days': [(day,)]})\n"
        "    yield 'whole', {'model': {'hidden': np.array([3])}}\n"
    )
    plan = points.read(file, None, BASE, {}, search=False)
    names = ["embedding_dim=4,test_days=2024-03-05", "embedding_dim=8,test_days=2024-03-05"]
    assert [point.name for point in plan.points] == [*names, "whole"]
    assert plan.seeds == (0, 1) and {type(seed) for seed in plan.seeds} == {int}
    body = json.loads(plan.points[1].config.to_json())
    assert (body["model"]["embedding_dim"], body["prepare"]["test_days"]) == (8, ["2024-03-05"])
    assert json.dumps(plan.points[2].given) == '{"model.hidden": [3]}'


@pytest.mark.parametrize(
    ("watched", "reached", "said"),
    [
        ("logloss", (-0.5, -0.4, None), "best: b, validation logloss 0.400000: x=2\n"),
        ("auc", (0.7, 0.6, None), "best: a, validation auc 0.700000: x=1\n"),
        ("auc - logloss", (-0.1, 0.2, None), "best: b, validation auc - logloss 0.200000: x=2\n"),
        ("auc", (None,) * 3, "no trial has a validation auc with every seed: runs failed"),
    ],
)
def test_the_best_trial_is_said_with_its_figure(watched, reached, said):
    history = [({"x": n + 1}, value) for n, value in enumerate(reached)]
    assert search._best("abc", history, watched).startswith(said)
