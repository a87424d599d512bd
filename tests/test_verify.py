"""`verify` reads everything: what is well is said to be, and a flipped bit anywhere is found."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emofm_jax import config as config_lib
from emofm_jax import prepare, verify
from emofm_jax.data import files, parquet, shards
from emofm_jax.data import schema as schema_lib
from emofm_jax.sweeping import record
from emofm_jax.training import checkpoint

RELEASE = Path(__file__).parent / "fixtures" / "release_0_1"
EXPERIMENT = """
from emofm_jax import config
def get_config():
    c = config.default()
    c.prepare.format, c.prepare.label = "tabular", "label"
    c.prepare.source, c.data.dir = "{0}/raw", "{0}/data"
    c.prepare.files.train, c.prepare.files.valid = "train.csv", "valid.csv"
    c.prepare.files.test = ""
    c.prepare.groups = (("user", ("user",)),)
    return c
"""


def check(*words):
    return verify.main(["verify", *map(str, words)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards in `data`, and beside them a run and a sweep as far as their files go."""
    made = tmp_path_factory.mktemp("made")
    (made / "raw").mkdir()
    rows = [f"{i % 2},u{i % 7}" for i in range(90)]
    for name in ("train.csv", "valid.csv"):
        (made / "raw" / name).write_text("\n".join(["label,user", *rows]) + "\n")
    (made / "x.py").write_text(EXPERIMENT.format(made))
    assert prepare.main(["prepare", f"--config={made / 'x.py'}"]) == 0

    run = made / "swept" / "runs" / "a" / "seed-0"
    run.mkdir(parents=True)
    files.write_json(run / "config.json", json.loads(config_lib.default().to_json()))
    shutil.copytree(made / "data" / "vocabulary", run / "vocabulary")
    schema_lib.load(made / "data").save(run)
    files.write_json(run / "metrics.json", {"test": {"auc": 0.5}})
    log = files.Appended(run / "log.jsonl")
    log.write(files.as_json({"event": "train", "step": 1}) + "\n")
    checkpoint.save(run / "checkpoints", 3, {"x": np.arange(3)}, {})
    header = record.Header("x.py", "a sweep of a test", ("a",), (0,), "a")
    files.write_json(made / "swept" / "sweep.json", header.to_json())
    results = files.Appended(made / "swept" / "results.jsonl")
    results.write(files.as_json({"point": "a", "sweep": header.digest()}) + "\n")
    return made


def copy(made, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(made, place)
    return place


def test_what_is_well_is_said_to_be(made, capsys):
    assert check(made / "data") == 0
    out = capsys.readouterr().out
    assert f"well     {made}/data/train (90 rows)\n" in out and "no digest" not in out
    assert out.endswith(f"all 5 parts of {made}/data are well\n")
    assert check(made / "swept") == 0
    out = capsys.readouterr().out
    for part in (
        "sweep.json",
        "metrics.json",
        "log.jsonl (1 lines)",
        "step_3 (1 arrays)",
        "(1 of them)",
    ):
        assert part in out


def test_sweep_json_of_another_sweep_is_found(made, tmp_path, capsys):
    place = copy(made, tmp_path) / "swept"
    others = record.Header("x.py", "another", ("a",), (0,), "a")
    files.write_json(place / "sweep.json", others.to_json())
    assert check(place) == 2
    said = "sweep.json: of another sweep than results.jsonl beside it; restore it"
    assert said in capsys.readouterr().err


def _result(place, **changes):
    """A run's result.json and the line of it, which differ in `changes`."""
    run = record.place("a", 0)
    result = record.Result("a", 0, {}, run, files.read_json(place / run / "metrics.json"))
    files.write_json(place / run / "result.json", result.to_json())
    line = result.line() | {
        "sweep": record.Header.from_json(files.read_json(place / "sweep.json")).digest()
    }
    files.write_text(place / "results.jsonl", files.as_json(line | changes) + "\n")
    return result


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, ""),
        ({"overrides": {"model.hidden": [8]}}, ""),  # the base of the sweep has changed
        ({"went_on": 7}, ""),
        ({"point": 5}, "result.json: damaged ("),
        ({"xxh3": "0"}, "metrics.json: damaged ("),
        ({"metrics": {"test": {"auc": 0.7}}}, "another result than its line of results.jsonl"),
        ({"seed": 1}, "of point 'a', seed 1, not of its place"),
        ({"auc": 0.7}, "other figures than"),
    ],
)
def test_a_result_is_what_its_run_and_its_line_say(made, tmp_path, capsys, changes, said):
    place = copy(made, tmp_path) / "swept"
    of_line = changes if changes.keys() & {"metrics", "overrides"} else {}
    result = _result(place, **of_line)
    path = place / result.workdir / "result.json"
    if "went_on" in changes:
        body = result.to_json() | {"config": {"train.epochs": changes["went_on"]}}
        files.write_json(path, body)
        files.write_json(path.with_name("metrics.json"), {"test": {"auc": 0.7}})
    if "point" in changes:
        files.write_json(path, dataclasses.replace(result, point=5).to_json())
    if "xxh3" in changes:
        path.with_name("metrics.json").write_text('{"test": {"auc": 0.5}, "xxh3": "0"}')
    if "seed" in changes:
        files.write_json(path, dataclasses.replace(result, seed=1).to_json())
    if "auc" in changes:
        files.write_json(path.with_name("metrics.json"), {"test": {"auc": changes["auc"]}})
    assert check(place) == (2 if said else 0)
    assert said in capsys.readouterr().err


def test_a_log_that_was_cut_is_found(made, tmp_path, capsys):
    place = copy(made, tmp_path) / "swept" / "runs" / "a" / "seed-0"
    log = place / "log.jsonl"
    size = log.stat().st_size
    checkpoint.save(place / "checkpoints", 4, {"x": np.arange(3)}, {"log_bytes": size})
    assert check(place) == 0
    log.write_text("")
    assert check(place) == 2
    said = f"{log}: 0 bytes, and {size} when the checkpoint of step 4 was saved"
    assert said in capsys.readouterr().err


def test_a_flipped_bit_in_any_file_is_found(made, tmp_path, capsys):
    place = copy(made, tmp_path)
    written = [
        p for part in ("data", "swept") for p in sorted((place / part).rglob("*")) if p.is_file()
    ]
    assert len(written) >= 13
    for path in written:
        good = path.read_bytes()
        damaged = bytearray(good)
        # A Parquet file is a page's header and its rows, later statistics, which may be as they like.
        damaged[50 if path.suffix == ".parquet" else len(good) // 2] ^= 4
        path.write_bytes(damaged)
        part = place / path.relative_to(place).parts[0]
        assert check(part) == 2, path
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        path.write_bytes(good)
    assert check(place / "data") == 0 and check(place / "swept") == 0


def test_other_rows_under_right_checksums_are_found(made, tmp_path, capsys):
    place = copy(made, tmp_path) / "data"
    path = place / "train" / "part-00000.parquet"
    with parquet.open_file(path) as file:
        table, digest = file.read(), file.metadata.metadata[shards.DIGEST]
    with parquet.Writer(path, table.schema) as writer:
        writer.write(table.take(np.arange(90)[::-1]))
        writer.note({shards.DIGEST: digest})
    assert check(place) == 2
    captured = capsys.readouterr()
    assert f"DAMAGED  {path}: its rows have the digest " in captured.out
    assert "data: 1 of 5 parts are damaged, the first is" in captured.err


def test_what_release_0_1_wrote_is_read_without_digests(capsys):
    assert check(RELEASE / "artefact") == 0
    assert "well     " in capsys.readouterr().out
    assert check(next((RELEASE / "runs").glob("*/config.json")).parent) == 0
    assert "(no digest)" in capsys.readouterr().out


def test_a_directory_of_something_else(tmp_path, capsys):
    assert check(tmp_path) == 2
    assert "it holds no shards, run, sweep, backtest or export" in capsys.readouterr().err
