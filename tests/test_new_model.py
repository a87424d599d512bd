"""A model with options of its own is one file and one line in `MODELS`; every program knows it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    slope: float = option(0.5, "how steep it is", low=0)
    shape: str = option("abs", "of the hinge", choices=("abs", "relu"))
    switches_off = {"shape=relu": ("hinge.slope",)}

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
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "emofm_jax", home / "emofm_jax", ignore=ignore)
    (home / "emofm_jax/models/hinge.py").write_text(MODEL)
    listed = home / "emofm_jax/models/__init__.py"
    text = listed.read_text().replace(
        '    "lr": fm.LR,\n', '    "lr": fm.LR,\n    "hinge": hinge.Hinge,\n'
    )
    listed.write_text(text.replace("finalmlp, fm\n", "finalmlp, fm, hinge\n"))
    (home / "mine.py").write_text(EXPERIMENT)
    return home


def run(home, program, *flags, code=0):
    """What a program prints, in a process of its own that has the copy."""
    command = [sys.executable, "-m", f"emofm_jax.{program}", *flags]
    environment = os.environ | {"PYTHONPATH": str(home)}
    ran = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout + ran.stderr


def test_it_is_documented_checked_trained_swept_and_exported(home):
    text = run(home, "train", "--helpfull")
    assert "model.hinge.slope = 0.5\n      how steep it is; at least 0\n" in text
    assert "logit(x) = slope * sum |w . e| + b" in text

    flags = ["--config=mine.py", "--workdir=run"]
    for value, message in (("-1", "slope: -1.0 is out of range"), ("steep", "could not convert")):
        assert message in run(home, "train", *flags, f"--config.model.hinge.slope={value}", code=2)
    flat = [*flags, "--config.model.hinge.shape=relu", "--config.model.hinge.slope=2"]
    assert "it has no effect on hinge.shape=relu" in run(home, "train", *flat, code=2)
    assert "no effect on hinge" in run(home, "train", *flags, "--config.model.hidden=(3,)", code=2)

    run(home, "train", *flags, "--config.model.hinge.slope=2")
    assert json.loads((home / "run/config.json").read_text())["model"]["hinge"]["slope"] == 2.0
    run(home, "sweep", "--config=mine.py", "--workdir=sweep", "--nocheckpoints")
    lines = [json.loads(line) for line in (home / "sweep/results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["ok", "ok"]
    run(home, "export", "--workdir=run", "--output=artefact")
    assert (home / "artefact/score.py").exists()
