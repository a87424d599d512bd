"""Imports point one way (WORKSPACE.md), and what must start fast loads no jax: facts, by reading every import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import emofm_jax

PACKAGE = Path(emofm_jax.__file__).parent
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
BASE = {"emofm_jax.errors"}
NETWORK = BASE | {"emofm_jax.data.schema", "emofm_jax.nn"}
LAYERS = {
    # layer: (own modules, or beginnings of them, that it may import; packages of others)
    "base": (
        BASE | {"emofm_jax.validation", "emofm_jax.evaluation.metrics"},
        {"numpy", "scipy", "ml_collections"},
    ),
    "data": (BASE | {"emofm_jax.data"}, {"numpy", "pyarrow", "xxhash"}),
    "nn": (NETWORK, {"numpy", "jax", "flax", "chex", "optax"}),
    "models": (NETWORK | {"emofm_jax.models"}, {"numpy", "jax", "flax", "chex", "optax"}),
    "training": (
        NETWORK
        | {
            f"emofm_jax.{name}"
            for name in ("data", "models", "metrics", "split_report", "verdict", "training")
        },
        {
            "numpy",
            "jax",
            "flax",
            "chex",
            "optax",
            "pyarrow",
            "tqdm",
            "tensorboardX",
            "safetensors",
            "xxhash",
        },
    ),
    # Charts and statistics: anybody may use them.
    "charts": (BASE | {"emofm_jax.reports.axes"}, {"numpy", "scipy"}),
    # What report.py is made of: read, compare, lay out.
    "reports": (
        BASE
        | {f"emofm_jax.{name}" for name in ("config", "axes", "plots", "comparison", "reports")},
        {"numpy", "pyarrow"},
    ),
    "scorer": (
        NETWORK
        | {
            f"emofm_jax.{name}"
            for name in (
                "data",
                "models",
                "config",
                "calibration",
                "artefact",
                "attribution",
                "host_call",
            )
        }
        | {
            "emofm_jax.scoring.score",
            "emofm_jax.scorer.Scorer",
            "emofm_jax.training.checkpoint",
            "emofm_jax.training.compilation",
        },
        {"numpy", "jax", "safetensors"},
    ),
    "stand-alone": (set(), {"numpy", "jax"}),  # copied into every export
    # The two files below the programs that take a config.
    "loop": ({"emofm_jax"}, {"numpy", "jax", "ml_collections", "tqdm"}),
    "programs": (
        {"emofm_jax"},
        {"numpy", "jax", "pyarrow", "absl", "ml_collections", "tqdm", "optuna"},
    ),
}
BASE_FILES = {
    "errors.py",
    "config.py",
    "validation.py",
    "metrics.py",
    "split_report.py",
    "verdict.py",
    "summary.py",
}
BASE_FILES |= {"table.py", "calibration.py"}
CHART_FILES = {"axes.py", "plots.py", "comparison.py"}
PROGRAMS = {
    "prepare.py",
    "train.py",
    "evaluate.py",
    "predict.py",
    "sweep.py",
    "report.py",
    "export.py",
}


SCORER_FILES = {"scorer.py", "host_call.py", "artefact.py", "attribution.py"}


def layer(file: str) -> str:
    if file in SCORER_FILES:
        return "scorer"
    if file == "score.py":
        return "stand-alone"
    if file in BASE_FILES:
        return "base"
    if file in CHART_FILES:
        return "charts"
    if file in ("training/loop.py", "training/build.py"):
        return "loop"
    if "/" in file:
        return file.split("/")[0]
    return "programs"


def imports(file: str) -> set[str]:
    """Full names of everything the file imports, anywhere in it: `from a import b` is a.b."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_layer_may(file):
    own, others = LAYERS[layer(file)]
    bad = set()
    for name in imports(file):
        top = name.split(".")[0]
        if top == "emofm_jax":
            bad |= set() if within(name, own) else {name}
        elif top not in sys.stdlib_module_names:
            bad |= set() if top in others else {name}
    assert not bad


@pytest.mark.parametrize("file", FILES)
def test_programs_do_not_import_each_other(file):
    programs = {f"emofm_jax.{name[:-3]}" for name in PROGRAMS | {"cli.py"}}
    allowed = {"emofm_jax.cli"} if file in PROGRAMS else set()
    # train makes synthetic data that is missing.
    allowed |= {
        **dict.fromkeys(("sweep.py", "runs.py", "search.py"), {"emofm_jax.train"}),
        "train.py": {"emofm_jax.prepare"},
    }.get(file, set())
    assert not {
        name for name in imports(file) if within(name, programs) and not within(name, allowed)
    }


@pytest.mark.parametrize("file", [f for f in FILES if f != "training/step.py"])
def test_only_the_step_knows_of_pmap(file):
    tree = ast.parse((PACKAGE / file).read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"pmap", "shard_map"} and "jax.pmap" not in imports(file)


def test_every_folder_is_a_layer_and_the_reader_finds_imports():
    assert {file.split("/")[0] for file in FILES if "/" in file} == {
        "data",
        "nn",
        "models",
        "training",
        "reports",
    }
    assert {"jax", "emofm_jax.errors.UserError"} <= imports("training/checkpoint.py")
    assert not within("emofm_jax.database", {"emofm_jax.data"}) and within(
        "emofm_jax.data.x", {"emofm_jax.data"}
    )


@pytest.mark.parametrize(
    "modules, never",
    [
        (("data.schema", "data.shards", "data.batches"), {"jax", "flax", "optax", "absl"}),
        (
            ("data.vocabulary", "data.synthetic", "data.formats", "data.formats.tabular"),
            {"jax", "flax", "optax", "absl"},
        ),
        (
            ("config", "metrics", "split_report", "verdict", "summary", "calibration"),
            {"jax", "flax", "optax", "pyarrow"},
        ),
        (("prepare", "cli"), {"jax", "flax", "optax"}),
        (("plots", "axes", "comparison"), {"jax", "flax", "optax", "pyarrow"}),
        (("report", "reports.sweep_page", "reports.run_page"), {"jax", "flax", "optax"}),
    ],
)
def test_what_must_start_fast_loads_no_jax(modules, never):
    code = f"import sys, {', '.join(f'emofm_jax.{name}' for name in modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert f"emofm_jax.{modules[0]}" in loaded
    assert not never & set(loaded)


def test_the_package_resolves_its_names_when_they_are_used():
    code = (
        "import sys, emofm_jax; assert 'jax' not in sys.modules; emofm_jax.Schema; assert 'jax' not in sys.modules; "
        "emofm_jax.make_model; assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    from emofm_jax.data import schema
    from emofm_jax.models import build as model_lib

    assert emofm_jax.Schema is schema.Schema and emofm_jax.make_model is model_lib.make_model
    assert set(emofm_jax.__all__) <= set(dir(emofm_jax))
    with pytest.raises(AttributeError, match="no attribute 'Scheme'"):
        emofm_jax.Scheme  # noqa: B018
