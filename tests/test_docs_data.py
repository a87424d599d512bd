"""docs/data.md: its experiment file and its first command are run as they stand."""

import re
import shutil
from pathlib import Path

from emofm_jax import prepare
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import shards

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "data.md").read_text()


def experiment() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return found


def commands() -> list[str]:
    (found,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    return found.strip().splitlines()


def make_checkout(tmp_path, monkeypatch):
    """A directory that looks like the repository to a reader of the page, with their file in it."""
    shutil.copytree(ROOT / "data" / "examples", tmp_path / "data" / "examples")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.py").write_text(experiment())
    monkeypatch.chdir(tmp_path)


def test_ten_lines_and_three_commands():
    body = experiment().split("c = config.default()")[1].strip().splitlines()
    assert len(experiment().strip().splitlines()) - experiment().count("\n\n") <= 10 and body[-1].strip() == "return c"
    assert [line.split()[2] for line in commands()] == [f"emofm_jax.{p}" for p in ("prepare", "train", "evaluate")]


def test_the_csv_becomes_shards(tmp_path, monkeypatch, capsys):
    make_checkout(tmp_path, monkeypatch)
    assert prepare.main(commands()[0].split()[2:]) == 0
    assert capsys.readouterr().out.endswith("The shards are in data/mine\n")
    schema = schema_lib.load(tmp_path / "data" / "mine")
    assert schema.groups == ("user", "item", "context")
    assert {s.name: s.kind for s in schema.slots if s.kind != "categorical"} == {"tags": "multi", "price": "numeric"}
    rows = {split: shards.open_split(tmp_path / "data" / "mine", split).num_rows for split in shards.SPLITS}
    assert sum(rows.values()) == 400 and min(rows.values()) > 15


def test_the_rows_shown_are_those_of_the_file():
    lines = (ROOT / "data" / "examples" / "clicks.csv").read_text().splitlines()
    for line in lines[:3]:
        assert f"    {line}\n" in TEXT
