"""A sweep and a backtest whose workdir is at s3://: another machine goes on, with the numbers of a local one.

Each command begins without a copy, as on a machine of its own; the store is in memory, but for a cluster's.
"""

import contextlib
import json
import re
import shlex

import pytest

from benchmarks import s3_server
from benchmarks.faulty import Faulty, Killed
from emofm_jax import backtest, evaluate, predict, prepare, report, sweep, train, verify
from emofm_jax.data import engines, files, remote, storage
from tests import test_backtest, test_s3_stages
from tests.test_s3 import PREPARE, all_of, arrays, names, put
from tests.test_s3_stages import another_machine
from tests.test_storage import use

store, server, bucket = test_s3_stages.store, test_s3_stages.server, test_s3_stages.bucket
_WHAT = ("point", "seed", "status", "error", "policy", "day", "rows", "auc", "logloss")
POINTS = """

def sweep(arg=""):
    yield "one", {}
    yield "other", {"optim.network.learning_rate": 0.1}
"""


def run(program, *flags):
    """A command on a machine of its own."""
    another_machine()
    assert program.main([program.__name__, *flags]) == 0


class Ending(Faulty):
    """A store whose program ends as it puts the first, or n-th, object of such a name."""

    def __init__(self, system, name, number=1):
        super().__init__(system, killed=True)
        self.name, self.left = name, number

    def open_output_stream(self, key, **options):
        self.left -= self.name in key
        if not self.left and not self.at:
            self.at = self.calls + 1
        return super().open_output_stream(key, **options)


def killed(store, monkeypatch, ending, program, *flags):
    """A command that ends as it puts an object."""
    use(Ending(store, *ending), monkeypatch)
    with pytest.raises(Killed):
        run(program, *flags)
    use(store, monkeypatch)


def results(path):
    """Lines of results.jsonl, but for times."""
    found = map(json.loads, (path / "results.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k in _WHAT} for line in found]


@pytest.fixture
def shop(store, tmp_path, capsys):
    """Flags of a sweep of two runs, and the directory in which it was run locally."""
    return made(tmp_path)


def made(tmp_path):
    """What `shop` gives."""
    text = s3_server.EXPERIMENT.format(prepare=PREPARE.strip())
    (tmp_path / "mine.py").write_text(text + POINTS)
    put(tmp_path)
    flags = [f"--config={tmp_path}/mine.py", f"--config.data.dir={tmp_path}/data"]
    assert prepare.main(["prepare", *flags, f"--config.prepare.source={tmp_path}/raw"]) == 0
    assert sweep.main(["sweep", *flags, f"--workdir={tmp_path}/sweep"]) == 0
    return flags, tmp_path / "sweep"


def check(there, local, more):
    """The numbers are those of local paths, and no name is of a copy."""
    assert arrays(there) == arrays(local) and results(there) == results(local)
    assert names(there) == names(local) | more
    for path in there.rglob("*"):
        assert path.is_dir() or b"/cache/" not in path.read_bytes(), path


def test_a_sweep_goes_on_where_a_machine_has_left_it(shop, store, monkeypatch, capsys):
    flags, local = shop
    at = "s3://bucket/x/sweep"
    command = sweep, *flags, f"--workdir={at}"
    # Of two runs at a time one has ended, and nothing is there of the other.
    killed(store, monkeypatch, ("metrics.json", 2), *command, "--jobs=2")
    (first,) = all_of(at).glob("runs/*/seed-0")
    ended, name = files.read_json(first / "result.json"), first.parent.name
    (other,) = {"one", "other"} - {name}
    killed(store, monkeypatch, (f"{other}/seed-0/checkpoints/step_4",), *command)
    path = all_of(at) / f"runs/{other}/seed-0"
    assert (path / "checkpoints/step_2").exists() and not (path / "result.json").exists()

    run(*command, "--jobs=2")
    run(report, f"--workdir={at}")
    another_machine()
    check(there := all_of(at), local, {"report.html", "report.md"})
    assert files.read_json(there / f"runs/{name}/seed-0/result.json") == ended

    run(*command[:-1], "--config.name=new", f"--workdir={at}")  # which trains nothing
    assert files.read_json(all_of(at) / "sweep.json")["name"] == "new"


def commands(capsys, *command):
    """What `sweep --list` prints, as arguments of train."""
    capsys.readouterr()
    run(*command, "--list")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("python -m emofm_jax.train --config=") for line in lines)
    return [shlex.split(line)[3:] for line in lines]


def test_the_runs_of_a_list_are_trained_anywhere_and_taken_in(shop, store, monkeypatch, capsys):
    flags, local = shop
    command = sweep, *flags, "--workdir=s3://bucket/x/sweep"
    one, other = commands(capsys, *command)
    assert other[-1] == "--workdir=s3://bucket/x/sweep/runs/other/seed-0"
    assert not [name for name in store.objects if name.startswith("bucket/x/")]
    run(train, *one)
    killed(store, monkeypatch, ("checkpoints/step_4",), train, *other)
    assert commands(capsys, *command) == [one, other]

    # It goes on with that one. Whichever operation is the last of the sweep that takes them in, nothing is lost.
    before = dict(store.objects)
    system = Faulty(store)
    use(system, monkeypatch)
    run(*command)
    for at in [*system.changing[:-10:30], *system.changing[-10:]]:
        store.objects.clear()
        store.objects.update(before)
        use(Faulty(store, at, killed=True), monkeypatch)
        with contextlib.suppress(Killed):  # training has threads: it may have ended before
            run(*command)
        use(store, monkeypatch)
        run(*command)
        another_machine()
        check(all_of("s3://bucket/x/sweep"), local, set())
        nested = [name for name in store.objects if name.endswith("seed-0/published.json")]
        assert not nested, at


def test_a_run_of_a_sweep_is_evaluated_and_goes_on_alone(shop, store, capsys):
    flags, local = shop
    at = "s3://bucket/x/sweep"
    command = sweep, *flags, f"--workdir={at}"
    run(*command)
    swept = store.objects["bucket/x/sweep/published.json"]
    one = f"{at}/runs/one/seed-0"
    run(evaluate, f"--workdir={one}", "--calibrate=platt")
    assert store.objects["bucket/x/sweep/published.json"] == swept
    for place in (one, at):  # the run alone, and who reads the sweep
        another_machine()
        path = all_of(place) / ("" if place == one else "runs/one/seed-0")
        assert (path / "calibration.json").exists()
    rows, scores = local.parent / "data" / "test", local.parent / "scores.parquet"
    run(predict, f"--workdir={one}", f"--input={rows}", f"--output={scores}")
    run(verify, at)
    run(report, f"--workdir={at}")
    run(train, *flags, f"--workdir={one}", "--config.train.epochs=3")
    run(report, f"--workdir={one}")

    run(*command[:-1], "--config.train.epochs=3", f"--workdir={at}")
    another_machine()
    there = all_of(at)
    found = [files.read_json(path)["train"] for path in there.rglob("metrics.json")]
    assert len(found) == 2 and found[0]["steps"] == found[1]["steps"] > 4
    assert (there / "runs/one/seed-0/report.html").exists()
    assert not [name for name in store.objects if name.endswith("seed-0/published.json")]


def test_a_point_may_be_called_runs(store, tmp_path, capsys):
    """And the sweep may lie in a directory of that name."""
    text = s3_server.EXPERIMENT.format(prepare=PREPARE.strip())
    (tmp_path / "mine.py").write_text(text + POINTS.replace("one", "runs"))
    put(tmp_path)
    flags = [f"--config={tmp_path}/mine.py", f"--config.data.dir={tmp_path}/data"]
    assert prepare.main(["prepare", *flags, f"--config.prepare.source={tmp_path}/raw"]) == 0
    at = "s3://bucket/x/runs/sweep"
    command = sweep, *flags, f"--workdir={at}"
    run(*command)
    run(evaluate, f"--workdir={at}/runs/runs/seed-0", "--calibrate=platt")
    assert "bucket/x/runs/sweep/runs/runs/seed-0/published.json" in store.objects
    run(*command)
    another_machine()
    assert (all_of(at) / "runs/runs/seed-0/calibration.json").exists()
    assert not [name for name in store.objects if name.endswith("seed-0/published.json")]


class Cluster:
    """What stands for engines.Ray: each run on a machine of its own, the last one first."""

    def __init__(self, jobs):
        pass

    def each(self, function, jobs):
        for number, job in enumerate(reversed(jobs)):
            known = {name: dict(getattr(storage, name)) for name in ("_copies", "_locks")}
            above = storage._above()
            for name in known:
                getattr(storage, name).clear()
            with pytest.MonkeyPatch.context() as patch:
                own = above / f"worker {number}"
                patch.setattr(storage, "_above", lambda own=own: own)
                answer = function(job)
            for name, content in known.items():
                getattr(storage, name).update(content)
            yield answer

    def close(self):
        pass


def test_a_cluster_trains_runs_that_the_sweep_takes_in(shop, store, monkeypatch, capsys):
    flags, local = shop
    monkeypatch.setattr(engines, "check", lambda name: None)
    monkeypatch.setattr(engines, "Ray", Cluster)
    command = sweep, *flags, "--workdir=s3://bucket/x/sweep"
    # One run has begun; the sweep was killed as it published the other one's result.
    killed(store, monkeypatch, ("one/seed-0/checkpoints/step_4",), *command)
    killed(store, monkeypatch, ("sweep/published.json", 2), *command, "--engine=ray")
    run(*command, "--engine=ray")
    another_machine()
    check(all_of("s3://bucket/x/sweep"), local, set())
    assert not [name for name in store.objects if name.endswith("seed-0/published.json")]


def test_ray_trains_the_runs_of_a_bucket(bucket, tmp_path, monkeypatch, capsys):
    """Not part of a usual run: Ray is an extra, and takes 15 seconds to start."""
    pytest.importorskip("ray")
    test_s3_stages.on_machines(tmp_path, monkeypatch)
    flags, local = made(tmp_path)
    command = sweep, *flags, f"--workdir={bucket}/sweep"
    run(train, *commands(capsys, *command)[0])
    run(*command, "--engine=ray", "--jobs=2")
    run(evaluate, f"--workdir={bucket}/sweep/runs/other/seed-0", "--calibrate=platt")
    run(*command)
    another_machine()
    there = all_of(f"{bucket}/sweep")
    assert arrays(there) == arrays(local) and results(there) == results(local)
    assert (there / "runs/other/seed-0/calibration.json").exists()
    left = remote.names(remote.place(f"{bucket}/sweep/runs"))
    assert not [name for name in left if name.endswith("published.json")]


DAYS = [f"2024-02-0{i}" for i in range(1, 5)]


def test_a_backtest_goes_on_where_a_machine_has_left_it(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    for day in DAYS:
        test_backtest.write(day, num_rows=100)
    chosen = 'policies = ("frozen", "warm")'
    text = re.sub("policies = .*", chosen, test_backtest.EXPERIMENT).replace(
        "epochs = 5", "epochs = 2"
    )
    (tmp_path / "leak.py").write_text(text)
    command = backtest, "--config=leak.py"
    assert backtest.main(["backtest", *command[1:], "--workdir=lived"]) == 0

    at = "s3://bucket/x/lived"
    last = f"runs/warm/{DAYS[-1]}/seed-0/checkpoints"
    killed(store, monkeypatch, (last,), *command, f"--workdir={at}")
    ended = files.read_json(all_of(at) / f"runs/warm/{DAYS[2]}/seed-0/result.json")
    run(*command, f"--workdir={at}", "--jobs=2")
    another_machine()
    check(there := all_of(at), tmp_path / "lived", set())
    assert files.read_json(there / f"runs/warm/{DAYS[2]}/seed-0/result.json") == ended

    results = {p.relative_to(there): p.read_bytes() for p in there.rglob("result.json")}
    run(*command, f"--workdir={at}")
    assert all((all_of(at) / name).read_bytes() == body for name, body in results.items())
