"""Files as others write them, from prepare to predict: what is read, and what is said."""

import json

import pytest

from emofm_jax import prepare
from emofm_jax.data import encode, shards
from emofm_jax.data import schema as schema_lib

pytestmark = pytest.mark.fast

EXPERIMENT = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.data.dir = {target!r}
    c.prepare.groups = (("user", "user"), ("item", "item"))
    c.update_from_flattened_dict({fields!r})
    return c
"""


@pytest.fixture
def shop(tmp_path, capsys):
    """A function (fields of prepare) -> (exit code, what is printed) that prepares `raw`."""
    (tmp_path / "raw").mkdir()

    def run(**fields):
        fields = {"source": str(tmp_path / "raw"), "split": "share"} | fields
        fields = {f"prepare.{name}": value for name, value in fields.items()}
        text = EXPERIMENT.format(target=str(tmp_path / "out"), fields=fields)
        (tmp_path / "shop.py").write_text(text)
        capsys.readouterr()
        code = prepare.main(["prepare", f"--config={tmp_path / 'shop.py'}"])
        printed = capsys.readouterr()
        assert printed.err.count("\n") == (code != 0)  # one line, if any
        return code, printed.out + printed.err

    return run


def count(directory):
    """{split: rows}."""
    return {split: shards.open_split(directory, split).num_rows for split in shards.SPLITS}


def predicted(directory, path):
    """(rows that keep a score, reasons of the others) of raw rows, as predict reads them."""
    schema = schema_lib.load(directory)
    chunks = list(encode.read_encoded(schema, directory, path))
    return sum(int(c.kept.sum()) for c in chunks), [r for c in chunks for r in c.reasons if r]


def test_queries_that_begin_with_a_quote(shop, tmp_path):
    """Texts of searches, which the source never quotes: `"cheap flights`, and later `7"`."""
    rows = [f"{i % 2}\tu{i}\ttext {i}" for i in range(120)]
    for i in (10, 40, 70):
        rows[i] = f'{i % 2}\tu{i}\t"cheap flights'
        rows[i + 3] = f'{i % 2}\tu{i}\ttablet 7"'
    path = tmp_path / "raw" / "a.tsv"
    path.write_text("\n".join(["label\tuser\titem", *rows]) + "\n")

    code, said = shop(separator="\t")
    assert code == 2 and f"{path}:12: a cell in quotes joins lines 12 to 15" in said
    assert "config.prepare.quoting to 'none'" in said and "(quote: 12)" in said

    code, said = shop(separator="\t", max_rejected=12)
    assert code == 0 and sum(count(tmp_path / "out").values()) == 108
    assert said.count("rejected for its quote: 12") == 1
    kept, reasons = predicted(tmp_path / "out", path)
    assert (kept, len(reasons)) == (108, 12)

    code, said = shop(separator="\t", quoting="none")
    assert code == 0 and sum(count(tmp_path / "out").values()) == 120
    assert "rejected for" not in said and "line ends" not in said
    assert predicted(tmp_path / "out", path) == (120, [])


def test_texts_of_several_lines_and_blank_lines_are_counted(shop, tmp_path):
    path = tmp_path / "raw" / "a.csv"
    rows = [f'{i % 2},u{i},"a\n\nb"' if i % 10 == 5 else f"{i % 2},u{i},i" for i in range(50)]
    path.write_text("label,user,item\n" + "\n".join([*rows[:30], "", *rows[30:]]) + "\n\n")
    code, said = shop()
    assert code == 0 and sum(count(tmp_path / "out").values()) == 50
    assert f"2 blank lines are no rows, the first is {path}:38\n" in said
    assert f"5 rows run over line ends in cells in quotes, the first at {path}:7; if" in said
    report = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert report["notes"] == {
        "blank lines": [2, f"{path}:38"],
        "rows over lines": [5, f"{path}:7"],
    }
