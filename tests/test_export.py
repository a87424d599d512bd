"""The exported artefact: complete without this package, checked on loading, and what it cannot do is said."""

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import emofm_jax
from emofm_jax import evaluate, export
from emofm_jax.data import features as features_lib
from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.evaluation import calibration
from emofm_jax.scoring import artefact as artefact_lib
from emofm_jax.scoring import origin as origin_lib
from emofm_jax.scoring import score

BATCHES = (0, 1, 4096)
# Runs where nothing but jax, numpy, flatbuffers and what these need can be imported.
ALONE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

THERE = {"jax", "jaxlib", "numpy", "flatbuffers", "scipy", "ml_dtypes", "opt_einsum", "score", *sys.stdlib_module_names}

class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.split(".")[0] in THERE or name.startswith("_")  # parts of Python's own
        return super().find_spec(name, path, target) if known else None

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Only]
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from score import load
score, found = load(sys.argv[1]), {}
for n in map(int, sys.argv[4:]):
    given = {k: x[:n] for k, x in np.load(sys.argv[2]).items()}
    found |= {f"{n}/{k}": np.asarray(x) for k, x in score(given).items()}
grad = jax.jit(jax.grad(lambda weights: score.call(weights, given)["logit"].sum()))(score.weights)
np.savez(sys.argv[3], grad=grad["embedding"], **found)
import runpy
sys.argv = [sys.argv[1] + "/score.py", sys.argv[2], sys.argv[3][:-4] + "_of_script.npz"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def artefact(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "wm"
    assert export.main(["export", f"--workdir={runs / 'wm'}", f"--output={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def scorer(runs):
    return emofm_jax.load_scorer(runs / "wm")


@pytest.fixture(scope="module")
def features(scorer):
    return features_lib.example(scorer.schema, max(BATCHES), seed=1)


def test_it_scores_without_this_package(artefact, scorer, features, tmp_path, monkeypatch):
    np.savez(tmp_path / "in.npz", **features)
    command = [
        sys.executable,
        "-c",
        ALONE,
        artefact,
        tmp_path / "in.npz",
        tmp_path / "out.npz",
        *map(str, BATCHES),
    ]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    found = np.load(tmp_path / "out.npz")
    for n in BATCHES:
        for name, wanted in scorer({k: x[:n] for k, x in features.items()}).items():
            assert found[f"{n}/{name}"].shape == wanted.shape
            np.testing.assert_allclose(found[f"{n}/{name}"], wanted, atol=1e-6, rtol=0)
    slope = jax.jit(jax.grad(lambda params: scorer.fn(params, features)["logit"].sum()))
    grad = slope(scorer.params)
    np.testing.assert_allclose(found["grad"], grad["embedding"], atol=1e-5)
    assert done.stdout.startswith("4,096 rows scored")
    assert np.load(tmp_path / "out_of_script.npz")["p"].shape == (4096,)
    np.savez(tmp_path / "less.npz", gender=np.zeros(3, np.int32))
    script = str(artefact / "score.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "less.npz"), "x.npz"])
    with pytest.raises(SystemExit, match="^error: features: slots that are absent"):
        runpy.run_path(script, run_name="__main__")


def test_the_package_loads_it_too(artefact, scorer, features):
    loaded = emofm_jax.load_scorer(artefact)
    for n in BATCHES:
        some = {k: x[:n] for k, x in features.items()}
        for name, wanted in scorer(some).items():
            np.testing.assert_allclose(loaded(some)[name], wanted, atol=1e-6, rtol=0)
    assert loaded.signature == scorer.signature
    raw = {slot.name: [None, None] for slot in scorer.schema.slots}
    np.testing.assert_array_equal(loaded.encode(raw)["gender"], [0, 0])
    both = emofm_jax.load_scorer([artefact, artefact])
    np.testing.assert_allclose(both(features)["p"], scorer(features)["p"], atol=1e-6)


def test_it_tells_where_it_came_from_without_paths_of_the_machine(artefact, scorer, runs):
    (origin,) = emofm_jax.load_scorer(artefact).origins
    assert origin == json.loads(json.dumps(scorer.origins[0]))
    metrics = json.loads((runs / "wm" / "metrics.json").read_text())
    assert origin["run"] == "wm" and origin["model"] == "wm" and "parent" not in origin
    assert origin["data"] == scorer.schema.identity and origin["step"] > 0
    for split in ("valid", "test"):
        for name in ("auc", "logloss", "rows"):
            assert origin["metrics"][split][name] == metrics[split][name]
    assert f"test AUC {metrics['test']['auc']:.4f}" in (artefact / "README.md").read_text()
    holds = [path for path in artefact.rglob("*") if path.is_file()]
    assert not [path for path in holds if str(runs).encode() in path.read_bytes()]


def test_a_parent_and_a_calibration_are_part_of_the_origin(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "wm", run)
    parent = {"place": "/data/runs/monday", "step": 7, "identity": "ab", "days": ["1"]}
    (run / "parent.json").write_text(json.dumps(parent))
    flags = [f"--workdir={run}", f"--data={runs / 'data'}", "--calibrate=platt"]
    assert evaluate.main(["evaluate", *flags]) == 0
    (origin,) = emofm_jax.load_scorer(run, calibrated=True).origins
    assert origin["calibration"] == "platt"
    assert origin["parent"] == {"run": "monday", "step": 7, "data": "ab", "days": ["1"]}
    other = [
        path
        for path in (run / "checkpoints").glob("step_*")
        if path.name != f"step_{origin['step']}"
    ]
    for path in other:
        assert "metrics" not in emofm_jax.load_scorer(path).origins[0]


def test_days_are_said_where_the_data_have_some():
    """Data whose split is not made of days are of one, which has no name."""
    origin = {"run": "r", "experiment": "e", "step": 3, "days": [""]}
    assert origin_lib.said(origin) == "r (experiment e, step 3), data unknown"
    assert origin_lib.said(origin | {"days": ["1", "2"]}).endswith("; days 1 to 2")


def test_a_damaged_file_of_the_origin_is_named(tmp_path):
    for name, read in (("metrics.json", origin_lib._metrics), ("parent.json", origin_lib._parent)):
        for text in ('{"train": 3', '{"train": 3}', "[]", ""):
            (tmp_path / name).write_text(text)
            with pytest.raises(UserError, match=f"{name}: damaged .*; (delete|restore) it"):
                read(tmp_path, *([1] if name == "metrics.json" else []))


def test_what_an_exported_program_cannot_do_is_said(artefact, features):
    loaded = emofm_jax.load_scorer(artefact)
    stacked = {k: x.reshape(4, 1024, *x.shape[1:]) for k, x in features.items()}
    with pytest.raises(
        UserError,
        match="an exported program has no vmap and no jvp; give it a batch, or use jax.grad",
    ):
        jax.vmap(loaded.fn, (None, 0))(loaded.params, stacked)
    with pytest.raises(UserError, match="no vmap and no jvp"):
        jax.jvp(
            lambda weights: loaded.fn(weights, features)["logit"],
            (loaded.params,),
            (loaded.params,),
        )
    with pytest.raises(UserError, match="takes features only, not embeddings; load the run itself"):
        loaded.explain(features)
    with pytest.raises(UserError, match=r"export --calibrated"):
        emofm_jax.load_scorer(artefact, calibrated=True)


def test_the_table_is_mapped_and_first(artefact, scorer):
    with open(artefact / "weights.safetensors", "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    assert (8 + size) % 64 == 0 and header["embedding"]["data_offsets"][0] == 0
    arrays = safetensors.numpy.load_file(artefact / "weights.safetensors")  # still what others read
    np.testing.assert_array_equal(arrays["embedding"], scorer.params["embedding"])


def test_an_ensemble_and_a_calibrated_run_are_exported(runs, features, tmp_path):
    for name, slope in (("dnn", 0.5), ("wm", 2.0)):
        shutil.copytree(runs / name, tmp_path / name)
        platt = calibration.Calibration(
            "platt", {"slope": np.array(slope), "intercept": np.array(-1.0)}
        )
        calibration.save(tmp_path / name, platt, 16, {})
    flags = [
        f"--workdir={tmp_path / 'dnn'},{tmp_path / 'wm'}",
        "--calibrated",
        f"--output={tmp_path / 'out'}",
    ]
    assert export.main(["export", *flags]) == 0
    one, two = (
        np.asarray(emofm_jax.load_scorer(runs / n)(features)["logit"], np.float64)
        for n in ("dnn", "wm")
    )
    p = 1 / (1 + np.exp(-((0.5 * one - 1) + (2 * two - 1)) / 2))
    np.testing.assert_allclose(emofm_jax.load_scorer(tmp_path / "out")(features)["p"], p, atol=1e-6)


def test_bags_and_numbers_of_an_untyped_run_and_an_export_of_an_export(runs, tmp_path):
    """The second one holds the program of the first."""
    scorer = emofm_jax.load_scorer(runs / "mine")
    features = features_lib.example(scorer.schema, 9)
    for source, output in (("mine", "once"), (tmp_path / "once", "twice")):
        assert (
            export.main(["export", f"--workdir={runs / source}", f"--output={tmp_path / output}"])
            == 0
        )
        loaded = emofm_jax.load_scorer(tmp_path / output)
        np.testing.assert_allclose(loaded(features)["p"], scorer(features)["p"], atol=1e-6)
    raw = {slot.name: [None] for slot in scorer.schema.slots} | {
        "price": [3.5],
        "tags": ["film|news"],
    }
    np.testing.assert_array_equal(loaded.encode(raw)["tags"], scorer.encode(raw)["tags"])


def test_the_readme_and_the_checksums(artefact):
    text = (artefact / "README.md").read_text()
    assert "pip install jax numpy flatbuffers" in text and "wm" in text
    assert len((artefact / "score.py").read_text().splitlines()) < 110
    done = subprocess.run(
        ["sha256sum", "-c", "checksums.sha256"], cwd=artefact, capture_output=True, text=True
    )
    assert (
        done.returncode == 0
        and "model.stablehlo: OK" in done.stdout
        and "schema.json: OK" in done.stdout
    )


def flip(path, place=-5, bit=1):
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def edit(path, without="", **changes):
    body = files.read_json(path) | changes
    path.write_text(json.dumps({name: x for name, x in body.items() if name != without}))


def scalar_example(path):
    """One number in place of a slot's values."""
    body = files.read_json(path)
    slot = min(body["example"]["features"])
    body["example"]["features"][slot] = 0
    path.write_text(json.dumps(body))


def unchecked(path):
    """Writes the checksums again, as one does who edits an artefact."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != "checksums.sha256")
    lines = [
        f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(path)}\n" for f in files
    ]
    (path / "checksums.sha256").write_text("".join(lines))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda p: flip(p / "weights.safetensors"),
            "weights.safetensors: not the file that was exported",
        ),
        (lambda p: flip(p / "model.stablehlo"), "model.stablehlo: not the file that was exported"),
        (lambda p: flip(p / "schema.json"), "schema.json: not the file that was exported"),
        (
            lambda p: edit(p / "signature.json", format_version=2),
            "format version 2, this loader reads 1",
        ),
        (lambda p: (p / "weights.safetensors").unlink(), "weights.safetensors: no such file"),
        (
            lambda p: (edit(p / "signature.json", export="x"), unchecked(p)),
            "of two exports; copy both",
        ),
        (
            lambda p: (edit(p / "signature.json", schema="x"), unchecked(p)),
            "schema.json is not of the run",
        ),
        (
            lambda p: (edit(p / "signature.json", without="schema"), unchecked(p)),
            "schema.json is not of the run",
        ),
        (
            lambda p: (edit(p / "signature.json", origins=0), unchecked(p)),
            "signature.json: not readable",
        ),
        (
            lambda p: (edit(p / "signature.json", origins=[{"run": 1}]), unchecked(p)),
            "signature.json: not readable",
        ),
        (
            lambda p: (scalar_example(p / "signature.json"), unchecked(p)),
            "damaged \\(",
        ),
        (
            lambda p: (flip(p / "weights.safetensors", -1, 64), unchecked(p)),
            "its worked example gives another",
        ),
        (lambda p: (p / "signature.json").write_text("{"), "signature.json: not readable"),
        (lambda p: (p / "signature.json").write_bytes(b"\xff"), "signature.json: not readable"),
        (
            lambda p: (p / "weights.safetensors").write_bytes(b""),
            "weights.safetensors: not the file that",
        ),
        (
            lambda p: (p / "checksums.sha256").write_text(""),
            "model.stablehlo: not the file that was exported",
        ),
    ],
)
def test_a_damaged_artefact_is_refused(artefact, tmp_path, damage, message):
    shutil.copytree(artefact, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(UserError, match=message):
        emofm_jax.load_scorer(tmp_path / "copy")


def test_the_command_line(runs, artefact, tmp_path, capsys):
    assert (
        export.main(["export", f"--workdir={runs / 'nothing'}", f"--output={tmp_path / 'x'}"]) == 2
    )
    assert "holds no run" in capsys.readouterr().err and not (tmp_path / "x").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert (
        export.main(["export", f"--workdir={runs / 'dnn'}", f"--output={tmp_path / 'mine'}"]) == 2
    )
    assert (
        "it holds thesis.tex, which is of no export; choose an empty or a new"
        in capsys.readouterr().err
    )
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]  # nothing half-written
    shutil.copytree(artefact, tmp_path / "again")
    assert (
        export.main(["export", f"--workdir={runs / 'dnn'}", f"--output={tmp_path / 'again'}"]) == 0
    )
    (tmp_path / "again" / "notes.txt").write_text("mine")
    for output, message in (
        ("again", "it holds notes.txt"),
        ("mine/thesis.tex", "it is a file; name a directory"),
    ):
        assert (
            export.main(["export", f"--workdir={runs / 'dnn'}", f"--output={tmp_path / output}"])
            == 2
        )
        assert message in capsys.readouterr().err
    assert export.main(["export", "--workdir=a,", f"--output={tmp_path / 'x'}"]) == 2
    assert "--workdir=a,: it names no run" in capsys.readouterr().err


def test_two_programs_do_not_export_to_one_place(runs, tmp_path, capsys):
    descriptor = files.make_locked(tmp_path / ".made.partial")  # as the first one does
    command = ["export", f"--workdir={runs / 'dnn'}", f"--output={tmp_path / 'made'}"]
    assert export.main(command) == 2
    error = capsys.readouterr().err
    assert "made: another program exports there now; wait for it" in error
    assert error.count("\n") == 1 and not (tmp_path / "made").exists()
    os.close(descriptor)
    assert export.main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_disk_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def fail(directory):
        raise OSError(5, "x")

    monkeypatch.setattr(score, "load", fail)
    with pytest.raises(
        UserError, match=f"{tmp_path}: cannot be read .Input/output error.; look at"
    ):
        artefact_lib.load(tmp_path)


def test_a_disk_that_fails_under_the_program_names_it(artefact, monkeypatch):
    real = Path.read_bytes

    def failing(path):
        if path.name == "model.stablehlo" and loaded:
            raise OSError(5, "Input/output error")
        return real(path)

    loaded, load = [], score.load
    monkeypatch.setattr(score, "load", lambda path: (load(path), loaded.append(path))[0])
    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(UserError, match=r"model.stablehlo: cannot be read \(Input/output error"):
        emofm_jax.load_scorer(artefact)
