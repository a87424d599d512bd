"""Every sweep of experiments/: its whole plan and its `tiny` are sound, and one of those runs end to end."""

import os
from pathlib import Path

import pytest

from emofm_jax import config, options, points, sweep
from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.sweeping import search
from emofm_jax.sweeping import sweep as sweep_lib

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
# Sweep -> points, seeds.
PLANS = {
    "claims": (34, 5),
    "mixers": (18, 5),
    "shift": (56, 3),
    "scaling": (21, 3),
    "frappe_baselines": (12, 3),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home, before = tmp_path_factory.mktemp("home"), os.getcwd()
    os.chdir(home)
    yield home
    os.chdir(before)


def plan(name, arg=None):
    path = EXPERIMENTS / f"{name}.py"
    return points.read(path, arg, points.load(path).get_config(), {}, search=False)


@pytest.mark.parametrize("name", PLANS)
def test_the_whole_plan_is_sound(home, name):
    found = plan(name)
    assert (len(found.points), len(found.seeds)) == PLANS[name]
    if name == "frappe_baselines":
        with pytest.raises(
            UserError, match="data/frappe: no prepared data; run `python -m emofm_jax.prepare"
        ):
            sweep_lib.check_points(found.points)
    else:
        sweep_lib.check_points(found.points)
    texts = [point.config.to_json() for point in found.points]
    assert len(set(texts)) == len(texts), "no two points are the same"
    tiny = plan(name, "tiny")
    sweep_lib.check_points(tiny.points)
    assert len(tiny.points) == 2 and tiny.reference in {point.name for point in tiny.points}


# The others train HMM beside it, as test_release_0_1.py does, and .ci/run with the quickstart.
@pytest.mark.parametrize("name", ["frappe_baselines"])
def test_tiny_runs_in_seconds(home, name):
    assert (
        sweep.main(["sweep", f"--config={EXPERIMENTS / name}.py:tiny", f"--workdir=runs/{name}"])
        == 0
    )
    lines = [
        files.from_json(line)
        for line in (home / f"runs/{name}/results.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 4
    assert all(line["metrics"]["test"]["bayes"]["auc"] > 0.5 for line in lines)


def test_factors_vary_alone():
    base = plan("mixers").points[0].config
    for point in plan("mixers").points[1:]:
        assert len(config.difference(point.config, base)) == 1
    of = {point.name: point.config for point in plan("shift").points}
    assert of["hmm"].prepare.synthetic.rows == (100_000, 50_000, 50_000)
    for name in of:
        model = name.split("_")[0]
        changed = config.difference(of[name], of[model]).keys() - {"data.dir"}
        assert len(changed) == (name != model), name


@pytest.mark.parametrize("name", PLANS)
def test_there_is_no_other_argument(home, capsys, name):
    assert (
        sweep.main(["sweep", f"--config={EXPERIMENTS / name}.py:tini", "--workdir=runs/tini"]) == 2
    )
    error = capsys.readouterr().err
    assert "'tini' is not known; give `tiny`, or no argument" in error and error.count("\n") == 1


@pytest.mark.parametrize("data", ["kuairand", "hillstrom", "quickstart", "cti", "frappe"])
def test_each_part_of_our_model_can_be_left_out(data):
    path = EXPERIMENTS / "ablation.py"
    found = points.read(path, data, points.load(path).get_config(data), {}, search=False)
    whole = found.points[0].config
    differ = [config.difference(point.config, whole) for point in found.points]
    changed = [tuple((field, ours) for field, (ours, _) in of.items()) for of in differ]
    assert changed[0] == () and len({*changed}) == len(changed) == 12 - 3 * (data == "frappe")
    fields = {tuple(of) for of in differ}  # of dropout there is none, and more
    assert len(fields) == 11 - 3 * (data == "frappe")


@pytest.mark.parametrize(("name", "arg"), [("ablation", "tiny"), ("equal_terms", "claims.dnn")])
def test_data_that_no_experiment_is_of(name, arg):
    with pytest.raises(UserError, match="; choose kuairand, hillstrom, quickstart, cti, frappe$"):
        points.load(EXPERIMENTS / f"{name}.py").get_config(arg)


def test_the_file_on_the_page_of_sweeps_is_sound(tmp_path):
    """Its points are of mixers, which the default model has not."""
    page = (EXPERIMENTS.parent / "docs" / "sweeps.md").read_text()
    path = tmp_path / "mine.py"
    path.write_text(page.partition("```python\n")[2].partition("```")[0])
    experiment = points.load(path)
    found = points.read(path, None, experiment.get_config(), {}, search=False)
    for name, of_point in [(point.name, point.config) for point in found.points]:
        changed = config.difference(of_point, found.points[0].config).keys()
        assert not changed & config.without_effect(of_point).keys(), name
    search.check(experiment.ranges, experiment.get_config())


@pytest.mark.parametrize(
    "arg", ["emofmv2", "dnn", "dnn_typed", "dcnv2", "lr", "hillstrom.fm", "quickstart.final_typed"]
)
def test_the_same_search_is_sound_for_every_model(arg):
    experiment = points.load(EXPERIMENTS / "equal_terms.py")
    ranges, base = experiment.ranges(arg), experiment.get_config(arg)
    data, _, model = arg.rpartition(".")
    assert base.data.dir == f"data/{data or 'kuairand'}"
    assert base.model.am_reads == "own"  # a typed baseline has as good an auxiliary model as ours
    search.check(ranges, base)
    assert search.next_trial(ranges, base, [], 0) == {f: options.get(base, f) for f in ranges}
    ends = {
        field: drawn[1] if drawn[0] == "choice" else drawn[1:] for field, drawn in ranges.items()
    }
    drawn = {field: values[-1] for field, values in ends.items()}
    assert base.model.name == model.partition("_")[0] and len(drawn) >= 2
    assert not drawn.keys() & config.without_effect(points.apply(base, drawn, "x")).keys()


def test_members_differ_from_one_in_nothing_else():
    found = plan("members", "").points
    of = {point.name: point.config for point in found}
    assert len(of) == 12 and of["one"].model.members == 1
    for point in found:
        assert not {*point.given} & config.without_effect(point.config).keys(), point.name
        changed = {*config.difference(point.config, of["one"])}
        is_wide = point.name.startswith("wide")
        wanted = {"model.stage1", "model.stage2"} if is_wide else {"model.members"}
        free = {"model.members_rows", "model.members_share"}
        assert point.name == "one" or wanted <= changed <= wanted | free, point.name
