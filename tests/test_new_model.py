"""A model with options of its own is one file, its import and its line in `MODELS`; every program knows it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emofm_jax.data import files

ROOT = Path(__file__).parents[1]
MODEL = '''"""Hinge: a logit of absolute values, for a test.

    logit(x) = slope * sum |w . e| + b
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses
from emofm_jax.options import option


class Hinge(nn.Module):
    """A logit of absolute values."""

    embedding_dim: int
    head_bias: Sequence[float]
    style: layers.Style
    slope: float = option(0.5, "how steep it is", low=0, needs={"shape": ("abs",)})
    shape: str = option("abs", "of the hinge", choices=("abs", "relu"))

    @nn.compact
    def __call__(self, e, weight=None, *, train=False):
        """f32[B, S, D] -> Outputs."""
        x = layers.Dense(4, name="dense")(e.reshape(e.shape[0], -1))
        bent = jnp.abs(x) * self.slope if self.shape == "abs" else jax.nn.relu(x)
        return losses.Outputs(layers.Head(self.head_bias[0], name="head")(bent))
'''
EXPERIMENT = """from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.prepare.format = "synthetic"
    c.prepare.synthetic.rows = (600, 300, 300)
    c.prepare.synthetic.num_types = 2
    c.data.dir = "data"
    c.data.batch_size = 256
    c.model.name = "hinge"
    c.model.embedding_dim = 2
    c.model.am_hidden = ()
    return c


def sweep(arg=""):
    yield "shallow", {"model.hinge.slope": 0.1}
    yield "typed", {"model.type_aware": True}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of the package with one more file and one more line, and an experiment beside it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "emofm_jax", home / "emofm_jax")  # with its bytecode
    (home / "emofm_jax/models/hinge.py").write_text(MODEL)
    listed = home / "emofm_jax/models/__init__.py"
    text = listed.read_text().replace(
        '    "lr": fm.LR,\n', '    "lr": fm.LR,\n    "hinge": hinge.Hinge,\n'
    )
    listed.write_text(text.replace("    fm,\n", "    fm,\n    hinge,\n", 1))
    (home / "mine.py").write_text(EXPERIMENT)
    return home


# Runs programs one after the other: "program code flags.." a line, between tabs. What they print, behind a line each.
PROGRAMS = """
import importlib, sys
for line in sys.stdin.read().splitlines():
    name, code, *flags = line.split("\t")
    print("\f", flush=True)
    main = importlib.import_module(f"emofm_jax.{name}").main
    assert main([name, *flags]) == int(code), line
"""


def run(home, *commands):
    """What each program prints, in a process that has the copy: `commands` are (program, exit code, flags)."""
    lines = ["\t".join([name, str(code), *flags]) for name, code, flags in commands]
    environment = os.environ | {"PYTHONPATH": str(home)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-u", "-c", PROGRAMS]
    ran = subprocess.run(
        command, input="\n".join(lines), cwd=home, env=environment, check=False, **pipes
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout.split("\f\n")[1:]


def test_it_is_documented_checked_trained_swept_and_exported(home):
    flags = ["--config=mine.py", "--workdir=run"]
    set_to = lambda *fields: [*flags, *(f"--config.model.{field}" for field in fields)]
    text, low, steep, flat, hidden, *_ = run(
        home,
        ("train", 0, ["--helpfull"]),
        ("train", 2, set_to("hinge.slope=-1")),
        ("train", 2, set_to("hinge.slope=steep")),
        ("train", 2, set_to("hinge.shape=relu", "hinge.slope=2")),
        ("train", 2, set_to("hidden=(3,)")),
        ("sweep", 0, ["--config=mine.py", "--workdir=sweep"]),
        ("export", 0, ["--workdir=sweep/runs/shallow/seed-0", "--output=artefact"]),
    )
    assert "model.hinge.slope = 0.5\n      how steep it is; at least 0; needs shape = abs\n" in text
    assert "logit(x) = slope * sum |w . e| + b" in text
    assert "slope: -1.0 is out of range" in low and "could not convert" in steep
    assert "it has no effect on hinge.shape=relu" in flat and "no effect on hinge" in hidden
    shallow = files.read_json(home / "sweep/runs/shallow/seed-0/config.json")
    assert shallow["model"]["hinge"] == {"slope": 0.1, "shape": "abs"}
    lines = [
        files.from_json(line) for line in (home / "sweep/results.jsonl").read_text().splitlines()
    ]
    assert [line["status"] for line in lines] == ["ok", "ok"]
    assert not (home / "run").exists() and (home / "artefact/score.py").exists()
