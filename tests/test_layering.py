"""Imports point one way (WORKSPACE.md), and what must start fast loads no jax: facts, by reading every import."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import emofm_jax

pytestmark = pytest.mark.fast

PACKAGE = Path(emofm_jax.__file__).parent

# A room is a folder, or a module at the top; what else stands at the top is a program.
ROOMS = {
    # room: (rooms it may import, packages of others)
    "errors": ("", ""),
    "options": ("errors", ""),
    "config": ("errors options data models", "ml_collections yaml"),
    "data": ("errors options", "numpy pyarrow xxhash ml_collections tqdm ray"),
    "evaluation": ("errors data", "numpy scipy"),
    "nn": ("errors options", "numpy jax flax chex"),
    "models": ("errors options data nn", "numpy jax flax chex"),
    "training": (
        "errors options config data evaluation nn models",
        "numpy jax flax optax ml_collections pyarrow safetensors tensorboardX tqdm xxhash",
    ),
    "scoring": (
        "errors config data evaluation nn models training",
        "numpy jax flax safetensors pyarrow tqdm",
    ),
    "sweeping": ("errors options config data evaluation training", "ml_collections optuna"),
    "reports": ("errors options config data evaluation sweeping", "numpy"),
    "points": ("options sweeping", ""),
    "cli": ("errors config data training sweeping", "absl ml_collections"),
}
PACKAGE_ITSELF = ("errors", "")  # before all else it sees to Ctrl-C
PROGRAMS = ("everything above", "numpy pyarrow absl ml_collections tqdm")


def room(module: str) -> str:
    """`emofm_jax.data.formats.cti` is in `data`, `emofm_jax.train` in `programs`."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in ROOMS else "programs" if name else ""


def imports(tree: ast.AST) -> set[str]:
    """Full names of everything that is imported, anywhere in a file: `from a import b` is a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def read() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Of each module of the package: the modules of the package, and the packages of others, that it imports."""
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    modules = {".".join(p.parent.parts if p.name == "__init__" else p.parts): p for p in paths}
    ours, others = {}, {}
    for module, path in modules.items():
        names = imports(ast.parse((PACKAGE.parent / path).with_suffix(".py").read_text()))
        own = {name for name in names if name.split(".")[0] == "emofm_jax"}
        # A name is a module, or stands in one.
        ours[module] = {name if name in modules else name.rpartition(".")[0] for name in own}
        others[module] = {name.split(".")[0] for name in names - own} - sys.stdlib_module_names
    return ours, others


def test_imports_follow_the_table():
    ours, others = read()
    assert ours.keys() >= {f"emofm_jax.{room}" for room in ROOMS}
    wrong = []
    for module in ours:
        here = room(module)
        rooms, packages = (
            column.split() for column in ROOMS.get(here, PROGRAMS if here else PACKAGE_ITSELF)
        )
        rooms = {*ROOMS} if here == "programs" else {here, *rooms}
        rooms |= {""}  # the package itself, of which Python loads every module, has the version
        wrong += [f"{module} imports {name}" for name in ours[module] if room(name) not in rooms]
        wrong += [f"{module} imports {name}" for name in others[module] - {*packages}]
    assert not wrong


def test_nothing_imports_itself_in_a_circle():
    order = graphlib.TopologicalSorter({row: rooms.split() for row, (rooms, _) in ROOMS.items()})
    assert list(order.static_order())
    modules = list(graphlib.TopologicalSorter(read()[0]).static_order())
    assert modules.index("emofm_jax.errors") < modules.index("emofm_jax.train")


def test_only_the_step_knows_of_pmap():
    knowing = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {name.rpartition(".")[2] for name in imports(tree)}
        knowing |= {str(path.relative_to(PACKAGE))} if names & {"pmap", "shard_map"} else set()
    assert knowing == {"training/step.py"}


@pytest.mark.parametrize(
    "modules, never",
    [
        (
            "prepare report cli points data.features data.synthetic evaluation.calibration",
            "jax flax optax scipy.special scipy.optimize",
        ),
        (
            "config evaluation.metrics evaluation.comparison reports.plots",
            "jax flax pyarrow scipy.special",
        ),
        # Before jax is loaded the cache of what it compiles is switched on.
        ("train sweep backtest evaluate predict export compare verify", "jax flax optax"),
    ],
)
def test_what_must_start_fast_loads_no_jax(modules, never):
    names = [f"emofm_jax.{name}" for name in modules.split()]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {*names} <= {*loaded} and not {*never.split()} & {*loaded}


@pytest.mark.slow
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
