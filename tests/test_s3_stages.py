"""Stages of prepare, and a sweep, on machines that share nothing but a bucket: the bytes of local paths.

Each command begins without a copy, as on a machine of its own. The server is moto's, as in test_s3.py.
"""

import pytest

from benchmarks import s3_server
from emofm_jax import prepare
from emofm_jax.data import remote, storage
from tests import test_s3
from tests.test_s3 import PREPARE, all_of, kill, put, tree

pytest.importorskip("moto", reason="moto is not installed: pip install 'emofm_jax[test]'")
pytest.importorskip("flask", reason="flask is not installed: pip install 'emofm_jax[test]'")

server, bucket = test_s3.server, test_s3.bucket
CONFIG = PREPARE + '    p.negative_keep_rate, p.slot.min_count, c.data.dir = 0.9, 2, "?"\n'


@pytest.fixture
def shop(bucket, tmp_path, capsys):
    """Flags of prepare at a place, and the shards that one local process makes of the same rows."""
    (tmp_path / "mine.py").write_text(s3_server.EXPERIMENT.format(prepare=CONFIG.strip()))
    for base in (tmp_path, bucket):
        put(base)
    flags = [
        f"--config={tmp_path}/mine.py",
        f"--config.prepare.source={bucket}/raw",
        f"--config.data.dir={bucket}/data",
    ]
    local = [flag.replace(bucket, str(tmp_path)) for flag in flags]
    assert prepare.main(["prepare", *local]) == 0
    capsys.readouterr()
    return flags, tree(tmp_path / "data")


def run(*flags, code=0):
    """A command on a machine that has nothing yet."""
    storage.forget()
    assert prepare.main(["prepare", *flags]) == code


STAGES = [
    ("count", "--shard=2/2"),
    ("count", "--shard=1/2", "--workers=2"),
    ("merge",),
    ("encode", "--shard=1/3", "--workers=2"),
    ("encode", "--shard=3/3"),
    ("encode", "--shard=2/3"),
    ("publish",),
]


def test_stages_share_nothing_but_the_bucket(shop, bucket, tmp_path, capsys):
    flags, wanted = shop
    for name, *how in STAGES:
        run(*flags, f"--stage={name}", *how)
    printed = capsys.readouterr()
    assert str(tmp_path / "cache") not in printed.out + printed.err
    assert "jobs done: 1, of 2 in all" in printed.out

    storage.forget()
    assert tree(data := all_of(f"{bucket}/data")) == wanted
    for path in data.rglob("*"):
        assert path.is_dir() or b"/cache/" not in path.read_bytes(), path
    left = remote.names(remote.place(bucket))
    assert {name.split("/")[0] for name in left} == {"raw", "data"}
