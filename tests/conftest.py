"""Compiling is most of a test's time: programs are kept on disk for the session, and compiled without optimizations."""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="emofm_jax_cache_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault(
    "JAX_DISABLE_MOST_OPTIMIZATIONS", "1"
)  # 0 tests what users run, in nearly twice the time

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Trained runs: `hmm` and `wm` (typed, on one made-up data set), `dnn` (without types); `mine` of docs/data.md.

    Beside them `data` (shards of the first three) and `mine_data`. Tests read them and write elsewhere.
    """
    from emofm_jax import prepare, train

    root, home = Path(__file__).parent, tmp_path_factory.mktemp("runs")
    for name, more in {
        "hmm": (),
        "wm": ("--config.seed=1",),
        "dnn": ("--config.train.monitor=auc",),
    }.items():
        flags = [f"--config={root / 'tiny.py'}:{name}", f"--config.data.dir={home / 'data'}", *more]
        assert train.main(["train", *flags, f"--workdir={home / name}"]) == 0
    text = (root.parent / "docs" / "data.md").read_text()
    experiment = (
        text.split("```python\n")[1].split("```")[0].replace("data/mine", str(home / "mine_data"))
    )
    source = root.parent / "data" / "examples" / "clicks.csv"
    (home / "mine.py").write_text(experiment.replace("data/examples/clicks.csv", str(source)))
    tiny = [
        f"--config.{x}"
        for x in (
            "model.name=wm",
            "model.hidden=(8,)",
            "model.embedding_dim=4",
            "data.batch_size=64",
        )
    ]
    assert prepare.main(["prepare", f"--config={home / 'mine.py'}"]) == 0
    assert (
        train.main(["train", f"--config={home / 'mine.py'}", f"--workdir={home / 'mine'}", *tiny])
        == 0
    )
    return home
