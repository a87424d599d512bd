"""`predict` by way of the scorer: runs, exports and ensembles, several devices, a kill; test_train.py has its files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import emofm_jax
from emofm_jax import export, predict
from emofm_jax.data import features as features_lib
from emofm_jax.data import shards


def run(*flags):
    return predict.main(["predict", *map(str, flags)])


@pytest.fixture(scope="module")
def wanted(runs):
    """The scores of the test split by wm and by an ensemble."""
    split = shards.open_split(runs / "data", "test")
    table = split.read_row_group(0, [slot.name for slot in split.schema.slots])
    features = features_lib.from_table(table, split.schema)
    one = emofm_jax.load_scorer(runs / "wm")(features)
    both = emofm_jax.load_scorer([runs / "dnn", runs / "wm"], combine="p")(features)
    return {"one": np.asarray(one["p"]), "both": np.asarray(both["p"])}


def test_an_ensemble_and_an_export(runs, wanted, tmp_path, capsys):
    source = f"--input={runs / 'data' / 'test'}"
    both = f"--workdir={runs / 'dnn'},{runs / 'wm'}"
    assert run(both, "--combine=p", source, f"--output={tmp_path / 'both.parquet'}") == 0
    assert "dnn + " in capsys.readouterr().out
    np.testing.assert_allclose(
        pq.read_table(tmp_path / "both.parquet")["p"].to_numpy(), wanted["both"], atol=1e-6
    )
    assert (
        export.main(["export", f"--workdir={runs / 'wm'}", f"--output={tmp_path / 'exported'}"])
        == 0
    )
    assert (
        run(f"--workdir={tmp_path / 'exported'}", source, f"--output={tmp_path / 'one.csv'}") == 0
    )
    np.testing.assert_allclose(
        pa.csv.read_csv(tmp_path / "one.csv")["p"].to_numpy(), wanted["one"], atol=1e-6
    )


def test_several_devices_score_the_same(runs, wanted, tmp_path):
    command = [sys.executable, "-m", "emofm_jax.predict", f"--workdir={runs / 'wm'}"]
    command += [f"--input={runs / 'data' / 'test'}", f"--output={tmp_path / 'out.parquet'}"]
    # 4,096 rows do not divide over three.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True)
    np.testing.assert_allclose(
        pq.read_table(tmp_path / "out.parquet")["p"].to_numpy(), wanted["one"], atol=1e-6
    )


def test_a_killed_run_leaves_no_output_and_starts_over(runs, wanted, tmp_path):
    """Killed while it writes: many copies of the rows, as raw files, take it a while."""
    (tmp_path / "raw").mkdir()
    text = (
        (runs / "mine.py")
        .read_text()
        .split('.prepare.source, c.prepare.split, c.data.dir = "')[1]
        .split('"')[0]
    )
    header, *rows = Path(text).read_text().splitlines()
    for i in range(6):
        (tmp_path / "raw" / f"{i}.csv").write_text("\n".join([header, *rows * 100]) + "\n")
    flags = [f"--workdir={runs / 'mine'}", f"--input={tmp_path / 'raw'}"]
    flags += [f"--output={tmp_path / 'out.parquet'}"]
    partial = lambda: list(tmp_path.glob(".out.parquet.*.partial"))
    process = subprocess.Popen([sys.executable, "-m", "emofm_jax.predict", *flags])
    while process.poll() is None and not any(file.stat().st_size for file in partial()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (
        process.returncode == -signal.SIGKILL
        and partial()
        and not (tmp_path / "out.parquet").exists()
    )
    for i in range(1, 6):  # one will do
        (tmp_path / "raw" / f"{i}.csv").unlink()
    assert run(*flags) == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 100 * len(rows) and not partial()


def test_rows_of_which_none_can_be_read_are_no_success(runs, tmp_path, capsys):
    source, output = tmp_path / "bad.csv", tmp_path / "out.parquet"
    source.write_text("user,age,item,brand,tags,price,hour,device\n" + "u,1,i,b,t,dear,1,d\n" * 2)
    assert run(f"--workdir={runs / 'mine'}", f"--input={source}", f"--output={output}") == 2
    said = capsys.readouterr().err
    assert "2 rows, of which none could be read; the first: " in said and said.count("\n") == 1
    found = pq.read_table(output)
    assert found["p"].null_count == 2 and "'price' is numeric" in found["reason"][1].as_py()


def test_mistakes(runs, tmp_path, capsys):
    source, output = f"--input={runs / 'data' / 'test'}", f"--output={tmp_path / 'x.parquet'}"
    for flags, message in (
        ([f"--workdir={runs / 'wm'},{runs / 'mine'}"], "differ in their schemas"),
        ([f"--workdir={runs / 'wm'}", "--calibrated"], "the run has no calibration; run"),
        (
            [f"--workdir={runs / 'dnn'},{runs / 'wm'}", "--combine=max"],
            "'max' is not known; choose one of logit, p",
        ),
        ([f"--workdir={runs / 'mine'}"], "schema"),
    ):
        assert run(*flags, source, output) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "made.parquet").mkdir()
    where = f"--output={tmp_path / 'made.parquet'}"
    assert run(f"--workdir={runs / 'wm'}", source, where) == 2
    assert "made.parquet: it is a directory; name a file" in capsys.readouterr().err


def test_a_link_as_output_stays_one(runs, tmp_path):
    (tmp_path / "disk").mkdir()
    link, there = tmp_path / "scores.csv", tmp_path / "disk" / "there.csv"
    link.symlink_to("disk/there.csv")
    for _ in range(2):
        flags = [f"--workdir={runs / 'wm'}", f"--input={runs / 'data' / 'test'}"]
        assert run(*flags, f"--output={link}") == 0
        assert link.is_symlink() and there.is_file() and not there.is_symlink()
        assert [file.name for file in there.parent.iterdir()] == ["there.csv"]
