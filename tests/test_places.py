"""Data that nobody may write to, no home, and what the programs say of new rows: end to end."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emofm_jax import evaluate, export, predict, prepare, report, train
from emofm_jax.data import raw_files

SHOP = """
from emofm_jax import config

def get_config():
    c = config.default()
    c.name, c.data.dir = "shop", "data"
    p = c.prepare
    p.source, p.split, p.label, p.weight = "raw", "share", "clicked", "w"
    p.groups = (("user", ("user",)), ("item", ("item",)))
    c.model.name, c.model.hidden, c.model.embedding_dim = "dnn", (8,), 4
    c.data.batch_size = c.data.eval_batch_size = 64
    return c
"""


def write(path, n, user="u", seed=0):
    """Rows of which every third has the weight 0."""
    r = np.random.default_rng(seed)
    lines = [
        f"{int(r.random() < 0.3)},{user}{r.integers(9)},i{r.integers(9)},{i % 3}" for i in range(n)
    ]
    path.write_text("\n".join(["clicked,user,item,w", *lines]) + "\n")


def tree(*directories):
    """{path: (when and how it was written, its bytes)} of directories and all in them."""
    paths = [path for d in directories for path in (Path(d), *Path(d).rglob("*"))]
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in paths}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The directory of a trained run; raw rows and shards are read-only, and there is no home."""
    home = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, "/dev/null")
        Path("raw").mkdir()
        write(Path("raw/log.csv"), 600)
        Path("shop.py").write_text(SHOP)
        close("raw")
        before = tree("raw")
        assert prepare.main(["prepare", "--config=shop.py"]) == 0
        assert tree("raw") == before
        close("data")
        assert train.main(["train", "--config=shop.py", "--workdir=run"]) == 0
        yield home
        for path in tree("raw", "data"):
            path.chmod(0o755)


def close(directory):
    """Takes the right to write away."""
    for path in tree(directory):
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_every_program_leaves_the_data_alone_and_needs_no_home(shop, capfd):
    before = tree("raw", "data")
    assert train.main(["train", "--config=shop.py", "--workdir=run"]) == 0  # finished
    assert evaluate.main(["evaluate", "--workdir=run"]) == 0
    assert evaluate.main(["evaluate", "--workdir=run", "--input=raw"]) == 0
    flags = ["--workdir=run", "--input=raw/log.csv", "--output=scores.csv"]
    assert predict.main(["predict", *flags]) == 0
    assert export.main(["export", "--workdir=run", "--output=exported"]) == 0
    assert report.main(["report", "--workdir=run"]) == 0
    assert tree("raw", "data") == before
    assert "Traceback" not in capfd.readouterr().err


def test_calibration_counts_the_rows_that_it_was_fitted_on(shop, capsys):
    assert evaluate.main(["evaluate", "--workdir=run", "--calibrate=platt"]) == 0
    fit = json.loads(Path("run/calibration.json").read_text())["fit"]
    rows = json.loads(Path("data/prepare.json").read_text())["splits"]["valid"]["rows"]
    weighted = pq.read_table("data/valid")["weight"].to_numpy() > 0
    assert fit["rows"] == weighted.sum() < rows
    assert f"fitted on {fit['rows']} rows of the valid split" in capsys.readouterr().out


@pytest.mark.parametrize("program", ["predict", "evaluate"])
def test_a_slot_that_is_spelled_otherwise_is_a_warning(shop, capsys, program):
    main = {"predict": predict.main, "evaluate": evaluate.main}[program]
    more = ["--output=new_scores.csv"] if program == "predict" else []
    capsys.readouterr()
    for user, warned in (("U", True), ("u", False)):
        write(Path("new.csv"), 60, user, seed=1)
        assert main([program, "--workdir=run", "--input=new.csv", *more]) == 0
        said = "".join(capsys.readouterr())
        assert ("warning: slot 'user': 100% of 60 values are missing or unknown" in said) == warned
        assert ("likely another spelling, since training has 'u" in said) == warned
        assert "slot 'item'" not in said


def test_a_directory_of_new_rows_is_listed_once(shop, monkeypatch):
    listed, find = [], raw_files.find
    count = lambda path, root=None: listed.append(path) or find(path, root)
    monkeypatch.setattr(raw_files, "find", count)
    assert evaluate.main(["evaluate", "--workdir=run", "--input=raw"]) == 0
    own = Path.cwd() / "raw"  # the run's own raw rows, for the warning of rows that it has seen
    assert listed == [Path("raw"), own]
