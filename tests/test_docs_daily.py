"""docs/daily.md: its experiment file and its commands are run as they stand."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from emofm_jax import backtest, compare, prepare, train
from emofm_jax.data import files
from emofm_jax.sweeping import policies

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "daily.md").read_text()
PROGRAMS = {"prepare": prepare, "train": train, "compare": compare, "backtest": backtest}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A directory that looks like the repository, with the page's experiment."""
    path, before = tmp_path_factory.mktemp("checkout"), os.getcwd()
    shutil.copytree(ROOT / "data" / "examples" / "days", path / "data" / "examples" / "days")
    (path / "experiments").mkdir()
    (experiment,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (path / "experiments" / "daily.py").write_text(experiment)
    os.chdir(path)
    yield path
    os.chdir(before)


def type_in(line):
    program = re.match(r"python -m emofm_jax\.(\w+) ", line)[1]
    return PROGRAMS[program].main(shlex.split(line)[2:])


def test_the_whole_day(checkout, capsys):
    days, backtested = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    said = {}
    for line in days.strip().splitlines():
        assert type_in(line) == 0, line
        said[line] = capsys.readouterr().out
    *_, grown, started, compared = said.values()
    (head,) = re.findall(r"^ +(slot +known .*)$", TEXT, re.MULTILINE)
    assert head.split() == ["slot", "known", "new", "appended", "expired"]
    assert re.search(r"^slot +known +new +appended +expired$", grown, re.MULTILINE)
    for line in re.findall(r"^ +((?:user|item) +\d.*)$", TEXT, re.MULTILINE):
        assert f"\n{line}\n" in grown
    assert "starts from runs/monday (step 25): " in started
    assert "differences from runs/monday" in compared or "AUC" in compared
    base = files.read_json(Path("data/2024-03-05/prepare.json"))["base"]["slots"]
    assert base["user"]["known"] and base["user"]["appended"] and not base["user"]["expired"]

    assert type_in(backtested.strip() + " --config.train.epochs=1") == 0
    out = capsys.readouterr().out
    assert out.count("\n2024-03-") + 1 == 6 and "the best is" in out
    assert {p.name for p in Path("runs/backtest").iterdir()} == {
        "backtest.json",
        "results.jsonl",
        "report.html",
        "report.md",
        "runs",
        "data",
    }


@pytest.mark.fast
def test_the_policies_of_the_page_are_those_there_are():
    names = re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)
    assert names == ["frozen", "warm", "warm+K", "last-W", "all"]
    for name in names:
        policies._policy(Path("x.py"), name.replace("K", "2").replace("W", "7"), {})
