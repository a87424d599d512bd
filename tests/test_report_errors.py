"""What report says of a wrong flag, a damaged file, a directory without results: one line that names the place."""

import dataclasses
import json
import shutil

import fake_sweep
import pytest

from emofm_jax import report
from emofm_jax.data import files
from emofm_jax.reports import read
from emofm_jax.sweeping import record, results

pytestmark = pytest.mark.fast

POINTS = {
    "hmm": (0.5, {}),
    "strong": (1.6, {"model.name": "wm"}),
    "weak": (0.05, {"model.name": "lr"}),
}


def run(workdir, *flags):
    return report.main(["report", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return fake_sweep.make(tmp_path_factory.mktemp("sweep") / "fake", POINTS, num_rows=200)


@pytest.fixture
def copy(sweep, tmp_path):
    return shutil.copytree(sweep, tmp_path / "copy")


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--reference=strnog"],
            "--reference=strnog: there is no such point; there are hmm, strong, weak; ",
        ),
        (["--reference=strnog"], "did you mean 'strong'?"),
        (["--metric=acc"], "--metric: 'acc' is not known; choose one of auc, logloss"),
    ],
)
def test_flags_that_are_wrong(sweep, capsys, flags, message):
    assert run(sweep, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def damage(name):
    """Changes a copy of a sweep."""

    def line_2(path, new):
        lines = (path / "results.jsonl").read_text().splitlines()
        (path / "results.jsonl").write_text("\n".join([lines[0], new(lines[1]), *lines[2:]]))

    return {
        "half a line": lambda path: line_2(path, lambda line: line[:100]),
        "no object": lambda path: line_2(path, lambda line: "[]"),
        "no seed": lambda path: line_2(path, lambda line: line.replace('"seed": 1', '"sed": 1')),
        "no metrics": lambda path: line_2(
            path, lambda line: json.dumps(files.from_json(line) | {"metrics": None})
        ),
        "plan": lambda path: (path / "sweep.json").write_text('{"name": "x"}'),
        "plan no JSON": lambda path: (path / "sweep.json").write_text("{"),
        "reference": lambda path: (path / "sweep.json").write_text(
            (path / "sweep.json").read_text().replace('"reference": "hmm"', '"reference": "gone"')
        ),
        "empty": lambda path: (path / "results.jsonl").write_text(""),
        "predictions": lambda path: (path / "runs/hmm/seed-0/predictions/test.parquet").write_bytes(
            b"PAR1"
        ),
        "log": lambda path: (path / "runs/hmm/seed-0/log.jsonl").write_text('{"event": "train"\n'),
    }[name]


@pytest.mark.parametrize(
    "name, message",
    [
        ("half a line", "results.jsonl:2: damaged line ("),
        ("no object", "results.jsonl:2: damaged line (list, not an object)"),
        ("no seed", "results.jsonl:2: it has no seed; delete the line and sweep again"),
        ("no metrics", "results.jsonl:2: status ok, but no metrics"),
        ("plan", "sweep.json: it has no experiment, points, seeds, reference"),
        ("plan no JSON", "sweep.json: damaged (Expecting"),
        ("reference", "sweep.json: reference 'gone': there is no such point"),
        ("empty", "none of its 9 runs is finished; let the sweep go on first"),
        ("predictions", "test.parquet: not readable as Parquet ("),
        ("log", "log.jsonl:1: damaged line ("),
    ],
)
def test_damaged_files_are_named(copy, capsys, name, message):
    damage(name)(copy)
    assert run(copy) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_directories_without_results(tmp_path, capsys, sweep):
    def message(path, *flags):
        assert run(path, *flags) == 2
        return capsys.readouterr().err

    assert "no such directory" in message(tmp_path / "gone")
    assert "holds no sweep (no sweep.json) and no run (no metrics.json); name" in message(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "its run is not finished" in message(tmp_path)
    (tmp_path / "result.json").write_text(
        json.dumps({"line": {"status": "failed", "error": "no memory"}})
    )
    assert "its run failed (no memory); mend that" in message(tmp_path)
    assert f"did you mean --workdir={sweep}?" in message(sweep.parent)
    every = [(point, seed) for point in POINTS for seed in range(3)]
    failed = fake_sweep.make(tmp_path / "failed", POINTS, fail=tuple(every))
    assert (
        "none of its 9 runs is finished, 9 failed, first hmm seed 0: step 12: the loss is not"
        in message(failed)
    )
    run_of_its_own = sweep / "runs/hmm/seed-0"
    assert (
        "--reference=wm: " in (error := message(run_of_its_own, "--reference=wm"))
        and "is a single run" in error
    )


def test_sweep_json_of_another_sweep_is_not_believed(copy, capsys):
    path, lines = copy / "sweep.json", copy / "results.jsonl"
    header = record.Header.from_json(files.read_json(path))
    made = results.Results(copy, header)
    made.add(read.load(copy).runs.values())
    assert all(f'"sweep": "{header.digest()}"' in line for line in lines.read_text().splitlines())
    assert run(copy) == 0  # sweep.json says no identity, as before there was one

    files.write_json(path, header.to_json())
    assert run(copy) == 0
    others = dataclasses.replace(header, reference="strong")
    files.write_json(path, others.to_json())
    capsys.readouterr()
    assert run(copy) == 2
    said = f"error: {path}: of another sweep than results.jsonl beside it; run the sweep's command"
    assert capsys.readouterr().err.startswith(said)
    files.write_json(path, header.to_json() | {"reference": "strong"})  # edited: yours
    assert run(copy) == 0
