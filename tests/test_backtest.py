"""The backtest: what each policy trains on, that no day is seen before it is scored, stops, and mistakes."""

import dataclasses
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from scipy import stats

from emofm_jax import backtest, compare, evaluate, predict, verify
from emofm_jax import config as config_lib
from emofm_jax.data import files
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError
from emofm_jax.options import flatten
from emofm_jax.reports import backtest_page
from emofm_jax.sweeping import backtest as backtest_lib
from emofm_jax.sweeping import experiment, policies
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.backtest import Backtest, Header, Line, check, lived

DAYS = [f"2024-02-0{i}" for i in range(1, 6)]
POLICIES = ("frozen", "warm", "warm+1", "all")
# All slots are hashed, so that every run has the same shapes and one program serves them all.
EXPERIMENT = """
from emofm_jax import config

policies = {"frozen": {}, "warm": {}, "warm+1": {}, "all": {"train.epochs": 6}}
first_days = 2


def get_config(arg=""):
    c = config.default()
    c.name = "leak"
    c.prepare.source = "raw"
    c.prepare.split, c.prepare.day_column = "day", "day"
    c.prepare.groups = (("user", "user"), ("item", "hint"))
    c.prepare.slot.encoding, c.prepare.slot.rows = "hash", 4096
    c.data.batch_size = c.data.eval_batch_size = 50
    c.model.name, c.model.embedding_dim, c.model.hidden = "dnn", 4, (4,)
    c.optim.embedding.learning_rate = c.optim.network.learning_rate = 0.05
    c.train.epochs = 5
    return c
"""


def write(day, clicks=True, num_rows=200):
    """A day whose column `hint` tells the label of each row, to who has trained on the row."""
    rng = np.random.default_rng(int(day[-1]))
    label = rng.integers(0, 2, num_rows) * clicks
    rows = [f"{y},u{rng.integers(20)},{day}-{i},{day}" for i, y in enumerate(label)]
    Path(f"raw/{day}.csv").write_text("\n".join(["label,user,hint,day", *rows]) + "\n")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A directory with four days and an experiment."""
    home = tmp_path_factory.mktemp("backtest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        Path("raw").mkdir()
        for day in DAYS[:4]:
            write(day)
        Path("leak.py").write_text(EXPERIMENT)
        yield home


@pytest.fixture(scope="module")
def home(shop):
    """The same, lived in `lived`."""
    assert run("lived") == 0
    return shop


def run(workdir, *argv, config="leak.py"):
    return backtest.main(["backtest", f"--config={config}", f"--workdir={workdir}", *argv])


def lines(workdir):
    text = Path(workdir, "results.jsonl").read_text().splitlines()
    return [Line.from_json(files.from_json(line)) for line in text]


@pytest.mark.fast
@pytest.mark.parametrize(
    "name, expected",
    [
        ("frozen", [("abc", "", "", True), ("abc", "", "", False), ("abc", "", "", False)]),
        ("warm", [("abc", "", "", True), ("d", "", "d", True), ("e", "", "e", True)]),
        ("warm+2", [("abc", "", "", True), ("d", "bc", "d", True), ("e", "cd", "e", True)]),
        ("last-2", [("bc", "", "", True), ("cd", "", "", True), ("de", "", "", True)]),
        ("all", [("abc", "", "", True), ("abcd", "", "", True), ("abcde", "", "", True)]),
    ],
)
def test_days_of_a_policy(name, expected):
    policy = policies._policy(Path("x.py"), name, {})
    for at, (train, replayed, parent, trains) in enumerate(expected, 3):
        task = policy.task(list("abcdef"), 3, at)
        assert ("".join(task.train), "".join(task.replayed), task.parent) == (
            train,
            replayed,
            parent,
        )
        assert (task.day, task.trains) == ("abcdef"[at], trains)


def test_no_day_is_seen_before_it_is_scored(home):
    """The planted column tells the label of a day whose rows were trained on, and of no other."""
    found = lines("lived")
    order = [(line.day, line.policy) for line in found]
    assert sorted(order) == sorted((day, policy) for day in DAYS[2:4] for policy in POLICIES)
    for line in found:
        assert line.error is None and line.rows == 200
        assert abs(line.auc - 0.5) < 0.15, line
        recipe = schema_lib.load(Path("lived", "data", line.policy, line.day)).recipe
        seen = [*recipe["train_days"], *recipe["replay_days"]]
        assert seen and max(seen) < line.day and recipe["valid_days"] == [line.day]
    # The same models on a day that they have seen: nothing but the days keeps the column from them.
    for policy in POLICIES[1:]:
        place = f"lived/runs/{policy}/{DAYS[3]}/seed-0"
        assert evaluate.main(["evaluate", f"--workdir={place}", "--split=train"]) == 0
        report = files.read_json(Path(place, "predictions", "train.json"))
        assert report["auc"] > 0.85, policy


def test_a_model_that_was_trained_on_days_of_the_rows_is_named(home, capsys):
    def said(program, *argv):
        code = program.main(["", *argv])
        out, err = capsys.readouterr()
        return code, [x for x in (out + err).splitlines() if "trained on" in x or "error" in x]

    # frozen was trained on the first two days, warm on the first two and, from there, the third.
    frozen, warm = f"lived/runs/frozen/{DAYS[2]}/seed-0", f"lived/runs/warm/{DAYS[3]}/seed-0"
    models = f"--workdirs={frozen},{warm}"
    seen = "was trained on {} of the {} days of these rows ({}); name later rows to {} by"
    for days, of_frozen, of_warm in (
        ((3,), (), ()),
        ((2,), (), (1, 1, DAYS[2])),
        ((0, 2, 3), (1, 3, DAYS[0]), (2, 3, f"{DAYS[0]} to {DAYS[2]}")),
    ):
        rows = "--input=" + ",".join(f"raw/{DAYS[day]}.csv" for day in days)
        wanted = [(name, of) for name, of in ((frozen, of_frozen), (warm, of_warm)) if of]
        wanted = [f"warning: {name} {seen.format(*of, 'compare')}" for name, of in wanted]
        assert said(compare, models, rows) == (0, wanted)
    wanted = [f"warning: the run {seen.format(1, 1, DAYS[2], 'evaluate')}"]
    assert said(evaluate, f"--workdir={warm}", f"--input=raw/{DAYS[2]}.csv") == (0, wanted)
    assert said(evaluate, f"--workdir={warm}", "--split=train") == (0, [])

    # Of prepared rows the recipe says the days; rows without days, or of none, say nothing of them.
    data = [f"--data=lived/data/warm/{DAYS[2]}", "--split=valid"]
    assert said(evaluate, f"--workdir={frozen}", *data) == (0, [])
    assert said(evaluate, f"--workdir={warm}", *data) == (0, wanted)
    Path("later.csv").write_text("label,user,hint\n1,u1,a\n0,u2,b\n1,u3,a\n")
    assert said(compare, models, "--input=later.csv") == (0, [])
    lines = Path(f"raw/{DAYS[2]}.csv").read_text().splitlines()
    Path("twice.csv").write_text("".join(f"{x},{x.rpartition(',')[2]}\n" for x in lines))
    lists = [[x.rpartition(",")[2]] for x in lines[1:]]
    table = csv.read_csv(f"raw/{DAYS[2]}.csv").drop_columns(["day"])
    parquet.write_table(table.append_column("day", pa.array(lists)), "lists.parquet")
    for rows in ("twice.csv", "lists.parquet"):  # a day that nobody needs is no error
        assert said(evaluate, f"--workdir={warm}", f"--input={rows}") == (0, [])
        assert said(predict, f"--workdir={warm}", f"--input={rows}", "--output=p.csv") == (0, [])

    empty = f"lived/data/frozen/{DAYS[2]}"
    problem = f"error: {empty}/test: the split has no rows; name another (--split)"
    assert said(compare, models, f"--data={empty}") == (2, [problem])


def test_cost_and_chain(home):
    cost = {(line.policy, line.day): line.rows_trained for line in lines("lived")}
    assert [cost["frozen", day] for day in DAYS[2:4]] == [2000, 0]
    assert [cost["warm", day] for day in DAYS[2:4]] == [2000, 1000]
    assert [cost["warm+1", day] for day in DAYS[2:4]] == [2000, 2000]
    assert [cost["all", day] for day in DAYS[2:4]] == [2400, 3600]
    parent = files.read_json(Path("lived/runs/warm", DAYS[3], "seed-0/parent.json"))
    assert parent["place"].endswith(f"runs/warm/{DAYS[2]}/seed-0") and parent["days"] == DAYS[:2]
    assert (
        files.read_json(Path("lived/data/warm", DAYS[3], "prepare.json"))["base"]["days"]
        == DAYS[:2]
    )
    assert list(Path("lived/runs/frozen", DAYS[2], "seed-0/checkpoints").iterdir())
    assert not Path("lived/runs/warm", DAYS[2], "seed-0/checkpoints").exists()


def test_verify_knows_what_a_backtest_sets(home, tmp_path):
    """Early headers have no configs, and the first day of a policy no moments to start from."""
    path = Path("lived/backtest.json")
    whole, body = path.read_bytes(), files.read_json(path)
    for config in body["configs"].values():
        config["train.init_moments"] = True
    try:
        for changes in ({}, {"configs": {}, "before": []}):
            files.write_json(path, body | changes)
            assert verify.main(["verify", "lived"]) == 0
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("change", [{"policy": ["warm"]}, {"day": 5}])
def test_verify_names_lines_that_are_none(home, capsys, change):
    path = Path("lived/results.jsonl")
    whole = path.read_bytes()
    body = files.from_json(whole.decode().splitlines()[0]) | change
    try:
        path.write_text(files.as_json(body) + "\n")
        assert verify.main(["verify", "lived"]) == 2
        assert "lived/results.jsonl: damaged (" in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


def test_lines_of_a_command_before_do_not_stay(restored, capsys, monkeypatch):
    """Their runs may be gone, and the new ones take long."""
    shutil.rmtree("lived/runs/all")
    assert verify.main(["verify", "lived"]) == 2

    def dies(*_):
        raise UserError("the first day: it is stopped")
        yield

    monkeypatch.setattr(backtest_lib.Backtest, "run", dies)
    assert run("lived") == 2
    assert verify.main(["verify", "lived"]) == 0


@pytest.mark.parametrize(
    "name, change, said",
    [
        (f"runs/frozen/{DAYS[3]}/seed-0/score.json", {"auc": 0.25}, "score.json: auc 0.25, and"),
        (f"runs/warm/{DAYS[3]}/seed-0/metrics.json", {"rows": 1}, "metrics.json: rows 1, and"),
        ("backtest.json", {"configs": {"warm": 5}}, "not of this backtest"),
        ("backtest.json", {"hidden": [7]}, "lived/backtest.json: another model.hidden than"),
    ],
)
def test_verify_compares_what_was_swapped(home, capsys, name, change, said):
    """A whole file of another backtest has a good digest of its own."""
    path = Path("lived", name)
    whole = path.read_bytes()
    body = files.read_json(path)
    if "hidden" in change:
        for config in body["configs"].values():
            config["model.hidden"] = change["hidden"]
    else:
        body.get("valid", body).update(change)
    try:
        files.write_json(path, body)
        assert verify.main(["verify", "lived"]) == 2
        assert said in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


@pytest.fixture
def trained(monkeypatch):
    """The points that are trained from here on; none is, they fail."""
    found = []

    def execute(run):
        found.append(run.point)
        return sweep_run.end(run, error="a broken disk")

    monkeypatch.setattr(sweep_run, "execute", execute)
    return found


@pytest.fixture
def restored(home):
    """`lived`, which is as it was before for the tests that come."""
    shutil.copytree("lived", "before")
    yield home
    shutil.rmtree("lived")
    Path("before").rename("lived")


def test_scores_that_are_gone_are_made_again_or_named(home, capsys):
    before = Path("lived/results.jsonl").read_bytes()
    place = lambda policy: Path("lived/runs", policy, DAYS[3], "seed-0/predictions/valid.parquet")
    place("frozen").unlink()
    assert run("lived") == 0
    assert Path("lived/results.jsonl").read_bytes() == before and place("frozen").exists()
    scores = place("warm").read_bytes()
    place("warm").unlink()
    try:
        assert run("lived") == 2
        remedy = "no such file; restore it, or delete lived/runs/warm to live the policy again"
        assert f"error: {place('warm')}: {remedy}" in capsys.readouterr().err
    finally:
        place("warm").write_bytes(scores)
    assert run("lived") == 0 and Path("lived/results.jsonl").read_bytes() == before


def test_a_model_that_is_gone_is_named_with_what_helps(restored, capsys, trained):
    """`train it again` is no help in a backtest, which trains itself."""
    runs = Path("lived/runs")
    frozen, warm = (runs / policy / DAYS[2] / "seed-0" for policy in ("frozen", "warm"))
    shutil.rmtree(frozen / "checkpoints")
    assert run("lived") == 0  # its scores are there
    (runs / f"frozen/{DAYS[3]}/seed-0/score.json").unlink()
    capsys.readouterr()
    assert run("lived") == 2
    place = f"{frozen}: its checkpoint, which scores {DAYS[3]}"
    remedy = "is gone; restore it, or delete lived/runs/frozen to live the policy again"
    assert capsys.readouterr().err == f"error: {place}, {remedy}\n"

    shutil.copytree(f"before/runs/frozen/{DAYS[3]}", runs / f"frozen/{DAYS[3]}", dirs_exist_ok=True)
    shutil.rmtree(runs / "warm" / DAYS[3])
    assert run("lived") == 1 and not trained
    (failed,) = [line for line in lines("lived") if line.error]
    remedy = "is gone; delete lived/runs/warm to live the policy again"
    assert failed.error == f"{warm}: its checkpoint, which it starts from, {remedy}"


@pytest.mark.fast
@pytest.mark.parametrize("day", ["..", ".", "a/b", "/etc", "../..", "....", "a\\b", ".x"])
def test_a_day_is_no_path(day):
    name = backtest_lib._quoted(day)
    assert Path("x", name).resolve() == Path("x").resolve() / name != Path("x").resolve()
    assert urllib.parse.unquote(name) == day


def test_it_goes_on_and_trains_nothing_twice(restored, capsys, trained):
    before = Path("lived/results.jsonl").read_bytes()
    assert run("lived") == 0
    assert trained == [] and Path("lived/results.jsonl").read_bytes() == before
    page = Path("lived/report.html").read_text()
    assert "<svg" in page and "Backtest: leak" in page

    # Another day: only that is new. Frozen needs no training.
    write(DAYS[4])
    capsys.readouterr()
    assert run("lived") == 1
    assert trained == [f"{policy}/{DAYS[4]}" for policy in POLICIES[1:]]
    assert Path("lived/results.jsonl").read_bytes().startswith(before)
    last = {line.policy: line for line in lines("lived") if line.day == DAYS[4]}
    assert last["frozen"].error is None and last["all"].error == "a broken disk"
    said = capsys.readouterr().out
    assert f"failed: all, {DAYS[4]}, seed 0: a broken disk" in said and "--retry" in said
    # What the day that failed starts from is there still, for another try.
    assert Path("lived/runs/warm", DAYS[3], "seed-0/checkpoints").exists()
    assert run("lived") == 1 and len(trained) == 3
    assert run("lived", "--retry") == 1 and trained[3:] == trained[:3]
    Path(f"raw/{DAYS[4]}.csv").unlink()


def test_a_run_that_failed_ends_its_chain_only(home, trained):
    Path("chain.py").write_text(
        EXPERIMENT.replace("policies = {", 'policies = {"warm": {}, "all": {}}\nothers = {')
    )
    assert run("chain", config="chain.py") == 1
    found = {(line.policy, line.day): line.error for line in lines("chain")}
    assert trained == [f"{p}/{day}" for day in DAYS[2:4] for p in ("warm", "all")][:2] + [
        f"all/{DAYS[3]}"
    ]
    assert found["warm", DAYS[2]] == found["all", DAYS[3]] == "a broken disk"
    assert f"the model of {DAYS[2]}, which it starts from, is not there" in found["warm", DAYS[3]]


@pytest.mark.fast
def test_a_day_without_a_click_is_said():
    made = [
        Line("all", day, 0, 9, clicks, auc, 0.5, None)
        for day, clicks, auc in (("a", 3, 0.6), ("b", 0, None))
    ]
    report = backtest_page.report(Header("x.py", "x", ("all",), ("a", "b"), (0,)), made)
    assert "b has no click: it has no AUC and no PCOC" in report.said
    assert "(a day without a click has no AUC)" in made[1].said()
    assert report.results[0][1].rows[0][1].text == "0.6000"
    assert "`all` (0.6000); fewer than 5 days tell too little to choose by" in report.said[0]


@pytest.mark.fast
def test_verdicts_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    days, seeds = [f"d{i}" for i in range(8)], (0, 1)
    made = {}
    for name, shift, rows in (("warm", 0.0, 10), ("all", 0.003, 90), ("frozen", -0.05, 5)):
        for day, level in zip(days, np.linspace(0.7, 0.75, 8)):
            for seed in seeds:
                auc = level + shift + 0.01 * rng.standard_normal()
                made[name, day, seed] = Line(
                    name, day, seed, 100, 40, auc, 1 - auc, 1.0, {}, 0.1, rows
                )
    header = Header("x.py", "x", ("warm", "all", "frozen"), tuple(days), seeds)
    report = backtest_page.report(header, list(made.values()))
    mean = lambda name: np.array([np.mean([made[name, day, s].auc for s in seeds]) for day in days])
    (_, table) = report.results[1]
    for row, name in zip(table.rows, ("all", "frozen")):
        test = stats.ttest_rel(mean(name), mean("warm"))
        low, high = test.confidence_interval(0.95)
        assert row[1].key == pytest.approx(np.mean(mean(name) - mean("warm")))
        assert row[2].text == f"{low:+.5f} to {high:+.5f}"
        assert row[3].text == ("worse" if high < 0 else "not distinguishable")
    assert table.rows[1][3].text == "worse"
    assert "`all`" in report.said[0] and "rows instead of 720: choose `warm`" in report.said[0]


def verdicts(made):
    """The first lines of the page, from {policy: [(auc, rows trained on) or None of a run that failed]}."""
    num = max(map(len, made.values()))
    days = tuple(f"d{i}" for i in range(num))
    found = [
        Line(p, day, 0, error="a broken disk")
        if of_day is None
        else Line(p, day, 0, 9, 3 if of_day[0] else 0, of_day[0], 0.5, 1.0, rows_trained=of_day[1])
        for p, of_days in made.items()
        for day, of_day in zip(days, of_days)
    ]
    return backtest_page.report(Header("x.py", "x", tuple(made), days, (0,)), found).said


@pytest.mark.fast
def test_a_policy_that_failed_is_not_chosen():
    jitter = [0.0, 0.01, -0.01, 0.005, -0.005, 0.0]
    whole = [(0.7 + x, 100) for x in jitter]
    auc, logloss, *_ = verdicts({"all": whole, "warm": [(0.9, 1), *[None] * 5]})
    assert auc.startswith(
        "AUC, 6 days: the best is `all` (0.7000), and there is no other to choose"
    )
    assert auc.endswith("not considered: `warm` has 1 of 6 days")
    assert "`all`" in logloss and "choose `warm`" not in logloss
    # None has all days.
    auc, *_ = verdicts({"all": [*whole[:5], None], "warm": [None, *whole[1:]]})
    assert auc == (
        "AUC: no policy has it on every day, none can be chosen by it (`all` has 5 of 6 days, "
        "`warm` has 5 of 6 days)"
    )


@pytest.mark.fast
def test_costs_and_means_are_of_the_same_days():
    """A day without a click on which `warm`, which costs more, has failed."""
    aucs = [0.7, 0.71, 0.69, 0.705, 0.695]
    all_, warm = (
        [(x + s * d, rows) for x, s in zip(aucs, (1, -1, 1, -1, 1))]
        for d, rows in ((0.01, 10), (0.0, 11))
    )
    auc, *_ = verdicts({"all": [*all_, (None, 50)], "warm": [*warm, None]})
    assert (
        "5 days: the best is `all` (0.7020), not distinguishable from `warm`, and no dearer" in auc
    )


@pytest.mark.fast
@pytest.mark.parametrize("names", [("aa", "zz"), ("zz", "aa")])
def test_of_policies_that_cost_the_same_the_best_is_chosen(names):
    better, worse = names
    jitter = [0.03, -0.02, 0.02, -0.03, 0.01]
    auc, *_ = verdicts({worse: [(0.7, 9)] * 5, better: [(0.71 + x, 9) for x in jitter]})
    assert f"`{better}` (0.7120), not distinguishable from `{worse}`, and no dearer" in auc


@pytest.mark.fast
def test_days_of_other_rows_are_said():
    scored = [("all", "a", 9, 3), ("warm", "a", 9, 3), ("all", "b", 9, 3), ("warm", "b", 8, 3)]
    made = [Line(p, day, 0, rows, clicks, 0.6, 0.5, 1.0) for p, day, rows, clicks in scored]
    report = backtest_page.report(Header("x.py", "x", ("all", "warm"), ("a", "b"), (0,)), made)
    assert [text for text in report.said if "other rows" in text] == [
        "b: policies were scored on other rows (9 rows, 3 clicks of `all`; 8 rows, 3 clicks of `warm`)"
    ]


@pytest.mark.fast
def test_days_without_the_metric_do_not_count_for_a_choice():
    some = [(0.7, 5), (0.71, 5), (0.69, 5), (None, 5), (None, 5)]
    auc, logloss, *_ = verdicts({"all": some, "warm": some})
    assert "AUC, 3 days" in auc and "fewer than 5 days tell too little" in auc
    assert "logloss, 5 days" in logloss and "choose it" in logloss


@pytest.mark.fast
@pytest.mark.parametrize(
    "old, new, said",
    [
        ("policies = {", "others = {", "leak.py: it has no policies; write"),
        ('"frozen": {}', '"thawed": {}', "leak.py: policy 'thawed' is not known; choose of"),
        ('"frozen": {}', '"frozen": 3', "leak.py: policy 'frozen' has 3 for overrides"),
        ("first_days = 2", "first_days = 0", "leak.py: first_days = 0; it must be"),
        (
            "first_days = 2",
            "first_days = 4",
            "days of the backtest: 4 days, of which 4 come before",
        ),
        ("first_days = 2", "days = ('2024-02-01', '2024-03-01')", "no row is of 2024-03-01; leave"),
        ('"day", "day"', '"share", ""', "config.prepare.split: 'share': a backtest goes from day"),
        (
            "return c",
            "c.train.monitor = 'auc'\n    return c",
            "config.train.monitor: 'auc': the day",
        ),
        (
            "return c",
            "c.optim.network.schedule = 'plateau'\n    return c",
            "schedule: 'plateau': the day",
        ),
        (
            '"frozen": {}',
            '"frozen": {"train.monitor": "auc"}',
            "config.train.monitor: 'auc': the day",
        ),
        ('"frozen": {}', '"frozen": {"train.epoch": 1}', "policy 'frozen'"),
        (
            '"warm+1": {}',
            '"warm+1": {"prepare.groups": (("user", "user"), ("item", "gone"))}',
            "policy 'warm+1': raw/2024-02-01.csv: there is no column 'gone'",
        ),
        (
            '"warm": {}',
            '"warm": {"prepare.day_length": 7}',
            "policy 'warm': config.prepare: no row is of 2024-02-01, which others have",
        ),
        (
            '"frozen": {}',
            '"frozen": {"seed": 3}',
            "leak.py: policy 'frozen': seed = 3: the backtest decides it; leave it out",
        ),
        (
            '"warm": {}',
            '"warm": {"prepare": {"train_days": ("2024-02-01",)}}',
            "policy 'warm': prepare.train_days = ('2024-02-01',): the backtest decides it",
        ),
        (
            '"warm": {}',
            '"warm": {"prepare.positive": ("0",)}',
            "config.prepare.positive: ('0',) of policy 'warm', () of 'frozen'; all policies are",
        ),
        ('"warm": {}', '"warm": {"train.init_from": "x"}', "train.init_from = 'x': the backtest"),
        (
            '"frozen": {}',
            '"frozen": {"train.init_moments": True}',
            "policy 'frozen': train.init_moments = True: it starts from no model",
        ),
    ],
)
def test_mistakes_are_one_line(shop, capsys, old, new, said):
    Path("bad").mkdir(exist_ok=True)
    assert EXPERIMENT.count(old) == 1
    Path("bad/leak.py").write_text(EXPERIMENT.replace(old, new))
    assert run("mistake", config="bad/leak.py") == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not Path("mistake").exists()


@pytest.mark.fast
@pytest.mark.parametrize(
    "arg, scored", [("dnn", 11), ("hmm", 11), ("dnn_typed", 11), ("lr", 11), ("tiny", 3)]
)
def test_kuairands_plan_is_sound(arg, scored):
    path = Path(__file__).parents[1] / "experiments" / "kuairand_daily.py"
    declared = policies.read(path, arg)
    two_weeks = [f"202204{day}" for day in range(25, 31)] + [f"2022050{day}" for day in range(1, 9)]
    days = lived(declared, two_weeks)
    assert len(days) - declared.first_days == scored and len(declared.policies) == 5
    base = experiment.read_config(path, arg)
    check(base)
    assert base.model.type_aware == ("typed" in arg)
    assert base.optim.embedding.l2 == (1e-5 if arg == "lr" else 0.03 if arg == "hmm" else 0.1)
    plan = Backtest(base, Path("x"), declared, days, experiment.seeds(path, arg, base, {}), 1)
    for policy in declared.policies:
        config = plan.config(policy, policy.task(days, declared.first_days, len(days) - 1), 0)
        assert config.prepare.valid_days == (days[-1],)
        assert config.train.epochs == (1 if "warm" in policy.name or arg == "tiny" else 3)


def plan(workdir, days=tuple(DAYS), first=2, seeds=(0,), named=("frozen", "warm"), **overrides):
    """A backtest of `overrides` {policy: overrides}; nothing is read or written."""
    base = config_lib.default()
    base.prepare.split, base.prepare.day_column, base.train.epochs = "day", "day", 5
    found = [policies._policy(Path("x.py"), name, overrides.get(name, {})) for name in named]
    return Backtest(base, workdir, policies.Declared(tuple(found), first), days, seeds, 1)


def begun(workdir, **fields):
    """The header of a backtest that has trained something."""
    header = plan(workdir, **fields).header("x.py")
    for day in header.days:
        (workdir / "runs" / "warm" / day).mkdir(parents=True)
    files.write_json(workdir / "backtest.json", dataclasses.asdict(header))
    return header


@pytest.mark.fast
def test_a_workdir_takes_more_days_seeds_and_policies(tmp_path):
    old = begun(tmp_path, days=tuple(DAYS[:4]))
    new = plan(tmp_path, seeds=(0, 1), named=("warm", "all")).header("x.py")
    assert (new.before, new.days, new.seeds) == (tuple(DAYS[:2]), tuple(DAYS[2:]), (0, 1))
    assert new.policies == ("warm", "all") and set(new.configs) == {"frozen", "warm", "all"}
    assert flatten(new.configs["frozen"]) == flatten(old.configs["frozen"])
    moved = plan(tmp_path)
    moved.base.prepare.source, moved.base.name, moved.base.seed = "elsewhere", "y", 9
    assert moved.header("x.py").name == "y"


@pytest.mark.fast
@pytest.mark.parametrize(
    "fields, said",
    [
        ({"warm": {"train.epochs": 6}}, "workdir, train.epochs 5 there, 6 now (warm); choose"),
        (
            {"all_to": 6},
            "config of the backtest: another than in its workdir, train.epochs 5 there, 6 now "
            "(frozen, warm); choose another --workdir",
        ),
        (
            {"days": (*DAYS[:3], "2024-02-03b", *DAYS[3:])},
            "days of the backtest: 2024-02-03b is new, and not behind 2024-02-05; choose another",
        ),
        ({"days": ("2024-01-31", *DAYS)}, "2024-01-31 is new, and not behind 2024-02-05; choose"),
        ({"days": tuple(DAYS[:4])}, "2024-02-05 was lived there and is gone; choose another"),
        ({"days": tuple(DAYS[1:])}, "2024-02-01 was lived there and is gone; choose another"),
        ({"first": 3}, "first_days: 2 there, 3 now; choose another --workdir"),
    ],
)
def test_a_workdir_is_of_one_config_and_of_days_in_their_order(tmp_path, fields, said):
    begun(tmp_path)
    epochs = fields.pop("all_to", 5)
    found = plan(tmp_path, **fields)
    found.base.train.epochs = epochs
    with pytest.raises(UserError) as error:
        found.header("x.py")
    assert said in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'backtest.json'}: ")


@pytest.mark.fast
def test_days_without_a_run_may_go(tmp_path):
    """The last file was damaged, say, and is taken away until a whole one comes."""
    begun(tmp_path)
    (tmp_path / "runs" / "warm" / DAYS[4]).rmdir()
    assert plan(tmp_path, days=tuple(DAYS[:4])).header("x.py").days == tuple(DAYS[2:4])
    with pytest.raises(UserError, match=f"{DAYS[3]} was lived there and is gone"):
        plan(tmp_path, days=tuple(DAYS[:3])).header("x.py")
    for day in DAYS[2:4]:
        (tmp_path / "runs" / "warm" / day).rmdir()
    assert plan(tmp_path, first=1, warm={"train.epochs": 6}).header("x.py").before == (DAYS[0],)


@pytest.mark.fast
def test_a_workdir_of_before_has_days_only(tmp_path):
    body = dataclasses.asdict(begun(tmp_path))
    for new in ("before", "configs"):
        del body[new]
    files.write_json(tmp_path / "backtest.json", body)
    assert plan(tmp_path, warm={"train.epochs": 6}).header("x.py").configs["warm"]
    with pytest.raises(UserError, match="2024-02-05 was lived there and is gone"):
        plan(tmp_path, days=tuple(DAYS[:4])).header("x.py")
    files.write_json(tmp_path / "backtest.json", body | {"colour": 1})
    with pytest.raises(UserError, match="backtest.json: damaged"):
        plan(tmp_path).header("x.py")


@pytest.mark.fast
def test_another_config_is_refused_before_a_run_is_touched(shop, capsys, trained):
    begun_at = Path("other")
    assert run(begun_at) == 1
    Path("more.py").write_text(EXPERIMENT.replace("c.train.epochs = 5", "c.train.epochs = 7"))
    before = {path: path.read_bytes() for path in begun_at.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(begun_at, config="more.py") == 2
    error = capsys.readouterr().err
    assert "train.epochs 5 there, 7 now (frozen, warm, warm+1); choose another --workdir" in error
    assert before == {path: path.read_bytes() for path in begun_at.rglob("*") if path.is_file()}


@pytest.mark.fast
def test_a_mistake_of_a_later_day_says_policy_and_day(shop, capsys, trained, monkeypatch):
    def prepare(config, **_):
        raise UserError("config.prepare.x: it is wrong; correct it")

    monkeypatch.setattr(backtest_lib.preparation, "prepare", prepare)
    assert run("later") == 2
    said = f"policy 'frozen', day {DAYS[2]}: config.prepare.x: it is wrong; correct it"
    assert said in capsys.readouterr().err


@pytest.mark.fast
@pytest.mark.parametrize("of_base", [False, True])
def test_moments_are_a_policys_own(of_base):
    """On days that have a parent, and on no other."""
    found = plan(Path("x"), named=("warm",), warm={"train.init_moments": not of_base})
    found.base.train.init_moments = of_base
    (warm,) = found.declared.policies
    moments = [found.config(warm, warm.task(DAYS, 2, at), 0).train.init_moments for at in (2, 3)]
    assert moments == [False, not of_base]


@pytest.mark.fast
def test_another_directory_is_left_alone(shop, capsys):
    assert run("leak.py") == 2
    assert "--workdir=leak.py: it is a file; name a directory" in capsys.readouterr().err
    assert run("raw") == 2
    assert f"raw: holds {DAYS[0]}.csv but no backtest" in capsys.readouterr().err


def test_days_that_lack_a_seed_are_said():
    header = Header("leak.py", "leak", ("a", "b"), ("1", "2"), (0, 1))
    made = [Line(p, d, s, 9, 3, 0.6, 0.5, 1.0) for p in "ab" for d in "12" for s in (0, 1)]
    made[3] = Line("a", "2", 1, error="killed")
    text = backtest_page.report(header, made).as_text()
    assert "a: 1 day with fewer than 2 seeds: 2 (1)" in text and "b: 1 day" not in text


@pytest.mark.parametrize(
    "name, remedy",
    [
        (f"data/warm/{DAYS[3]}/prepare.json", f"delete lived/data/warm/{DAYS[3]}: it is prepared"),
        (f"runs/frozen/{DAYS[3]}/seed-0/score.json", "delete it: the day is scored again"),
    ],
)
def test_damaged_files_are_named(home, capsys, name, remedy):
    path = Path("lived", name)
    whole = path.read_bytes()
    try:
        for damaged in (whole[: len(whole) // 2], b"[]"):
            path.write_bytes(damaged)
            assert run("lived") == 2
            error = capsys.readouterr().err
            assert f"{path}: damaged (" in error and f"; restore it, or {remedy}" in error
        assert verify.main(["verify", "lived"]) == 2 and str(path) in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("policy", ["frozen", "warm"])
def test_scores_of_others_are_refused(home, capsys, policy):
    """Figures of a day would be of one model, and their intervals of another."""
    path, others = (
        Path("lived/runs", name, DAYS[3], "seed-0/predictions/valid.parquet")
        for name in (policy, "all")
    )
    whole = path.read_bytes()
    try:
        path.write_bytes(others.read_bytes())
        assert run("lived") == 2
        problem = "not the scores that the figures of the day are of; restore it, or delete"
        assert f"error: {path}: {problem} lived/runs/{policy}" in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


def test_verify_reads_all_of_a_backtest(home, capsys):
    assert verify.main(["verify", "lived"]) == 0
    out = capsys.readouterr().out
    for part in ("backtest.json", "results.jsonl", "checkpoints/step_", "predictions/", "schema"):
        assert "well     lived/" in out and part in out
    for policy in ("warm", "frozen"):  # frozen: of its first model
        path = sorted(Path("lived").glob(f"runs/{policy}/*/seed-0/predictions/*.parquet"))[-1]
        whole = path.read_bytes()
        try:
            path.write_bytes(whole[: len(whole) // 2])
            assert verify.main(["verify", "lived"]) == 2 and str(path) in capsys.readouterr().err
        finally:
            path.write_bytes(whole)
