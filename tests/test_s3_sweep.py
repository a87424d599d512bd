"""A sweep and a backtest whose workdir is at s3://: another machine goes on, with the numbers of a local one.

Each command begins without a copy, as on a machine of its own; the store is in memory.
"""

import json
import re

import pytest

from benchmarks import s3_server
from benchmarks.faulty import Faulty, Killed
from emofm_jax import backtest, prepare, report, sweep
from emofm_jax.data import files
from tests import test_backtest, test_s3_stages
from tests.test_s3 import PREPARE, all_of, arrays, names, put
from tests.test_s3_stages import another_machine
from tests.test_storage import use

store = test_s3_stages.store
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
