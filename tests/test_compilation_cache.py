"""Compiled programs are kept between runs: where, when not, and with the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emofm_jax.training import compilation_cache

DIRECTORY, ENABLED = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
# Reads a config, whose options load jax, as a program does: the directory must be chosen before. Compiles a step as train does, ahead of
# its call and with compiler options; prints how often the disk had it, and the directory.
PROGRAM = """
from emofm_jax import backtest, cli, compare, evaluate, export, predict, sweep, train
cli.run(lambda flags: None, cli.define_config, ["x", "--config=quickstart"])
import jax, jax.numpy as jnp
from emofm_jax.training import compilation
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
step = jax.pmap(lambda state, x: state + jnp.sin(x @ x.T).sum(), devices=jax.local_devices()[:1])
step = compilation.pmapped(step, jax.local_devices()[:1])
print(sum(hits), float(step(jnp.ones(1), jnp.arange(64.0).reshape(1, 8, 8) / 7)[0]).hex(), sum(hits))
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The environment of a process that has not loaded JAX, whose user has set nothing; the cache's directory."""
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    environment = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    monkeypatch.setattr(os, "environ", environment)
    return tmp_path / "cache" / "emofm_jax"


def test_it_lies_in_the_users_cache_directory(fresh):
    compilation_cache.enable()
    directory = Path(os.environ[DIRECTORY])
    assert directory.parent == fresh and directory.is_dir() and fresh.stat().st_mode & 0o077 == 0
    del os.environ[DIRECTORY], os.environ["XDG_CACHE_HOME"]
    compilation_cache.enable()
    home = Path(os.environ["HOME"]) / ".cache" / "emofm_jax"
    assert Path(os.environ[DIRECTORY]) == home / directory.name


@pytest.mark.parametrize(
    ("name", "value"),
    [(DIRECTORY, "/mine"), (DIRECTORY, ""), (ENABLED, "0"), (ENABLED, "False")],
)
def test_the_user_comes_first(fresh, name, value):
    os.environ[name] = value
    compilation_cache.enable()
    assert os.environ.get(DIRECTORY) == (value if name == DIRECTORY else None)
    assert not fresh.exists()


def test_a_process_that_has_loaded_jax_keeps_its_settings(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    compilation_cache.enable()
    assert DIRECTORY not in os.environ


@pytest.mark.parametrize("home", ["~", "relative", "file/below"])
def test_without_a_place_there_is_no_cache(fresh, tmp_path, home):
    (tmp_path / "file").write_text("")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / home) if "/" in home else home
    compilation_cache.enable()
    assert DIRECTORY not in os.environ


def test_a_directory_that_cannot_be_written_is_none(fresh, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    compilation_cache.enable()
    assert DIRECTORY not in os.environ


def test_each_processor_has_its_own(fresh, monkeypatch):
    """A process of a sweep takes over its parent's environment, but may have other processors."""
    compilation_cache.enable()
    first = os.environ[DIRECTORY]
    compilation_cache.enable()
    assert os.environ[DIRECTORY] == first
    monkeypatch.setattr(compilation_cache, "_processor", lambda: "flags: avx512f")
    compilation_cache.enable()
    assert os.environ[DIRECTORY] != first and os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_what_was_used_longest_ago_goes_first(tmp_path):
    (tmp_path / "host").mkdir()
    for age, name in enumerate("cab"):
        path = tmp_path / "host" / f"{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1000 + age, 1000 + age))
    compilation_cache._prune(tmp_path, 20)
    assert sorted(path.name[0] for path in (tmp_path / "host").iterdir()) == ["a", "b"]

    os.utime(tmp_path / "host" / "a-cache", (5000, 10))  # written long ago, and used today
    compilation_cache._prune(tmp_path, 10)
    assert [path.name[0] for path in (tmp_path / "host").iterdir()] == ["a"]


def test_the_second_process_compiles_nothing(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in (DIRECTORY, ENABLED)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def said(place):
        own = environment | {"XDG_CACHE_HOME": str(place)}
        command = [sys.executable, "-c", PROGRAM]
        ran = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
        assert Path(ran.stdout.split()[3]).parent == place / "emofm_jax"
        return ran.stdout.split()

    first = said(tmp_path / "first")
    # As conftest.py moves programs from session to session: XLA's own caches would be part of their keys.
    (tmp_path / "first").rename(tmp_path / "second")
    second = said(tmp_path / "second")
    assert first[1] == second[1], "the same bits"
    assert int(first[2]) == 0 < int(second[2])
