"""Stages of prepare, and a sweep, on machines that share nothing but a bucket: the bytes of local paths.

Each command begins without a copy, as on a machine of its own. The server is moto's, as in test_s3.py.
"""

import gc
import itertools

import pyarrow.parquet as pq
import pytest

from benchmarks import faulty, s3_server
from benchmarks.faulty import Faulty, Killed
from benchmarks.object_store import Store
from emofm_jax import prepare
from emofm_jax.data import engines, files, remote, stages, storage
from tests import test_s3
from tests.test_s3 import PREPARE, all_of, put, tree
from tests.test_storage import use

pytest.importorskip("moto", reason="moto is not installed: pip install 'emofm_jax[test]'")
pytest.importorskip("flask", reason="flask is not installed: pip install 'emofm_jax[test]'")

_machine = []  # numbers of machines to come, and of this one
server, bucket = test_s3.server, test_s3.bucket
CONFIG = PREPARE + '    p.negative_keep_rate, p.slot.min_count, c.data.dir = 0.9, 2, "?"\n'


def made(bucket, tmp_path):
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
    return flags, tree(tmp_path / "data")


@pytest.fixture
def shop(bucket, tmp_path, monkeypatch, capsys):
    """What `made` makes, on the server."""
    on_machines(tmp_path, monkeypatch)
    found = made(bucket, tmp_path)
    capsys.readouterr()
    return found


def on_machines(tmp_path, monkeypatch):
    """Has `another_machine` begin with an empty cache, at a path of its own."""
    numbers = itertools.count()
    monkeypatch.setattr(storage, "_above", lambda: tmp_path / "cache" / str(_machine[-1]))
    _machine[:] = numbers, next(numbers)


def another_machine():
    """Lets the next command begin on a machine that has nothing yet."""
    storage.forget()
    _machine[-1] = next(_machine[0])


def run(*flags):
    """A command on a machine of its own."""
    another_machine()
    assert prepare.main(["prepare", *flags]) == 0


STAGES = [
    ("count", "--shard=1/1", "--workers=2"),
    ("merge",),
    ("encode", "--shard=1/3"),
    ("encode", "--shard=3/3"),
    ("encode", "--shard=2/3"),
    ("publish",),
]


def check(bucket, wanted, capsys):
    """The shards are those of the local process, whose names are of places, and nothing is left."""
    printed = capsys.readouterr()
    storage.forget()
    assert tree(data := all_of(f"{bucket}/data")) == wanted
    assert "/cache" not in printed.out + printed.err
    for path in data.rglob("*"):
        assert path.is_dir() or b"/cache/" not in path.read_bytes(), path
    rejected = pq.read_table(data / "train" / "rejected.parquet")["file"].to_pylist()
    assert rejected and {*rejected} <= {f"{bucket}/raw/{name}" for name in test_s3.RAW}
    left = remote.names(remote.place(bucket))
    assert {name.split("/")[0] for name in left} == {"raw", "data"}


def test_stages_share_nothing_but_the_bucket(shop, bucket, monkeypatch, capsys):
    flags, wanted = shop
    monkeypatch.setattr(stages, "_JOB_BYTES", 1)  # a job a file: two processes have one each
    for name, *how in STAGES:
        run(*flags, f"--stage={name}", *how)
        if name == "encode":
            run(*flags, f"--stage={name}", *how)
            assert "no job was left" in capsys.readouterr().out
    check(bucket, wanted, capsys)


def test_stages_go_on_from_a_base_in_the_bucket(store, tmp_path, capsys):
    flags, _ = made("s3://bucket/x", tmp_path)
    run(*flags)
    data, more = "s3://bucket/x/data", f"--config.data.dir={tmp_path}/more"
    local = [f"--config={tmp_path}/mine.py", f"--config.prepare.source={tmp_path}/raw"]
    run(*local, more, f"--base={tmp_path}/data")
    for name, *how in STAGES:
        run(
            *flags,
            "--config.data.dir=s3://bucket/x/more",
            f"--base={data}",
            f"--stage={name}",
            *how,
        )
    another_machine()
    at = all_of("s3://bucket/x/more")
    assert tree(at) == tree(tmp_path / "more")
    assert files.read_json(at / "prepare.json")["base"]["place"] == data


def test_the_shards_may_lie_within_the_source(store, tmp_path, capsys):
    """As split=files lets them: what stages leave is no raw file."""
    (tmp_path / "mine.py").write_text(s3_server.EXPERIMENT.format(prepare=CONFIG.strip()))
    at = "s3://bucket/x"
    for i, name in enumerate(("train", "valid")):
        remote.put(remote.place(at), f"{name}.csv", at, [test_s3.rows(100, i)])
    options = ("split=files", "files.train=train.csv", "files.valid=valid.csv", "files.test=")
    options += ("ignore=()", f"source={at}")
    flags = [f"--config={tmp_path}/mine.py", *(f"--config.prepare.{x}" for x in options)]
    run(*flags, "--config.data.dir=s3://bucket/y/data")
    for name, *how in STAGES:
        run(*flags, f"--config.data.dir={at}/data", f"--stage={name}", *how)
    another_machine()
    assert tree(all_of(f"{at}/data")) == tree(all_of("s3://bucket/y/data"))


def test_a_cluster_shares_nothing_but_the_bucket(shop, bucket, monkeypatch, capsys):
    """Processes that know no copy of the program stand for it; Ray has a test of its own."""
    flags, wanted = shop
    make = engines.make
    monkeypatch.setattr(engines, "make", lambda name, workers: make("local", workers))
    run(*flags, "--engine=ray", "--workers=2")
    check(bucket, wanted, capsys)


class Cluster:
    """An engine whose worker is another machine, and before whose n-th job something happens."""

    num_workers = 2

    def __init__(self, number, happens):
        self.left, self.happens = number, happens

    def map(self, function, jobs):
        for job in jobs:
            self.left -= 1
            if not self.left:
                self.happens()
            yield function(job)

    def close(self):
        pass


def test_a_cluster_takes_no_other_rows_than_the_program_saw(store, tmp_path, monkeypatch, capsys):
    flags, _ = made("s3://bucket/x", tmp_path)
    monkeypatch.setattr(stages, "_JOB_BYTES", 1)
    name = "bucket/x/raw/dt=1/a.csv"
    new = test_s3.rows(150, 7)

    def code():
        monkeypatch.setattr(stages, "code", lambda: "another")

    for happens, line in [
        (lambda: store.objects.update({name: new}), f"s3://{name}: it has changed meanwhile; st"),
        (lambda: store.objects.pop(name), f"s3://{name}: it has changed meanwhile; start this"),
        (code, "--engine=ray: a worker has another version of emofm_jax, Python, numpy or pyarr"),
    ]:
        before = dict(store.objects)
        monkeypatch.setattr(engines, "make", lambda *_, now=happens: Cluster(3, now))
        another_machine()
        capsys.readouterr()
        assert prepare.main(["prepare", *flags, "--engine=ray"]) == 2  # the third job encodes
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and line in error
        assert "bucket/x/data/published.json" not in store.objects
        store.objects.clear()
        store.objects.update(before)


def test_ray_shares_nothing_but_the_bucket(shop, bucket, capsys):
    """Not part of a usual run: Ray is an extra, and takes 15 seconds to start."""
    pytest.importorskip("ray")
    flags, wanted = shop
    run(*flags, "--engine=ray", "--workers=2")
    check(bucket, wanted, capsys)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in memory, whose operations come one after another."""
    on_machines(tmp_path, monkeypatch)
    monkeypatch.setattr(storage, "_THREADS", 1)
    monkeypatch.setattr(files, "_flush", lambda descriptor: None)  # nobody pulls a plug
    use(found := Store(), monkeypatch)
    yield found
    storage.forget()
    monkeypatch.undo()
    remote.place.cache_clear()


@pytest.mark.usefixtures("few_objects")
def test_a_kill_at_an_operation_changes_nothing(store, tmp_path, monkeypatch, capsys):
    """The same command goes on, on another machine."""
    monkeypatch.setattr(faulty, "CHANGING", ("close", "delete_dir"))  # an object appears, or goes
    flags, wanted = made("s3://bucket/x", tmp_path)
    kills = 0
    for name in ("count", "merge", "encode", "publish"):
        shard = ["--shard=1/1", "--workers=1"] if name in ("count", "encode") else []
        kills += kill_at_each(store, [*flags, f"--stage={name}", *shard], monkeypatch)
        if name == "publish":
            check("s3://bucket/x", wanted, capsys)
    assert kills > 30


def kill_at_each(store, flags, monkeypatch):
    """Kills a command at each operation that changes the store; returns how many there are."""
    before = dict(store.objects)
    use(system := Faulty(store), monkeypatch)
    run(*flags)
    wanted = names_of(store)
    for at in system.changing:
        store.objects.clear()
        store.objects.update(before)
        use(Faulty(store, at, killed=True), monkeypatch)
        with pytest.raises(Killed):
            run(*flags)
        gc.collect()
        use(store, monkeypatch)
        run(*flags)
        assert names_of(store) == wanted
    return len(system.changing)


def names_of(store):
    """Names of all objects, but for those that published.json names."""
    return {name for name in store.objects if ".published/" not in name}


def test_what_was_left_and_is_damaged_is_one_line_and_made_again(store, tmp_path, capsys):
    flags, wanted = made("s3://bucket/x", tmp_path)
    count = ("--stage=count", "--shard=1/1", "--workers=1")
    run(*flags, *count)
    (name,) = [name for name in store.objects if name.endswith("count-1/00000")]
    whole = store.objects[name]
    store.objects[name.replace("count-1/", "count-1.bak/")] = whole  # nobody's stage
    for damaged in (b"", whole[:-3], b"garbage" * 20, whole[:40] + b"-" + whole[41:]):
        store.objects[name] = damaged
        capsys.readouterr()
        another_machine()
        assert prepare.main(["prepare", *flags, "--stage=merge"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: s3://{name}: damaged (") and error.count("\n") == 1
        del store.objects[name]
    run(*flags, *count)
    for stage in ("--stage=merge", "--stage=encode --shard=1/1 --workers=1", "--stage=publish"):
        run(*flags, *stage.split())
    check("s3://bucket/x", wanted, capsys)


def test_no_work_is_done_for_a_directory_that_shards_cannot_replace(store, tmp_path, capsys):
    flags, _ = made("s3://bucket/x", tmp_path)
    run(*flags)
    at = storage.writing("s3://bucket/run")
    (at / "config.json").write_text("{}")
    storage.publish(at)
    capsys.readouterr()
    for at, line in [
        ("s3://bucket/x/data/sub", "it lies within s3://bucket/x/data, which is published"),
        ("s3://bucket/run", "s3://bucket/run is not a directory of shards (config.json), and is"),
        ("s3://bucket/x/raw", "s3://bucket/x/raw: it holds objects of others (dt=1/a.csv)"),
    ]:
        before = dict(store.objects)
        for stage in ("--stage=count", "--stage=merge", "--stage=publish", ""):
            shard = ["--shard=1/1"] if stage == "--stage=count" else []
            another_machine()
            stages_of = [stage, *shard] if stage else ["--engine=ray"]
            command = ["prepare", *flags, f"--config.data.dir={at}", *stages_of]
            assert prepare.main(command) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and line in error
        assert store.objects == before


def test_objects_of_others_are_not_fetched_to_find_out(store, tmp_path, monkeypatch, capsys):
    flags, _ = made("s3://bucket/x", tmp_path)
    monkeypatch.setattr(storage, "_receive", None)
    for stage in ([], ["--stage=publish"]):
        another_machine()
        assert prepare.main(["prepare", *flags, "--config.data.dir=s3://bucket/x/raw", *stage]) == 2
        assert "it holds objects of others (dt=1/a.csv)" in capsys.readouterr().err


def test_a_shard_fetches_the_raw_rows_of_its_jobs_only(store, tmp_path, monkeypatch, capsys):
    flags, _ = made("s3://bucket/x", tmp_path)
    read, fetched = storage._receive, []

    def receive(stream, shown, path):
        fetched.append(shown)
        return read(stream, shown, path)

    monkeypatch.setattr(storage, "_receive", receive)
    for number, name in enumerate(test_s3.RAW, 1):
        fetched.clear()
        run(*flags, "--stage=count", f"--shard={number}/2", "--workers=1")
        assert [x for x in fetched if "/raw/" in x] == [f"s3://bucket/x/raw/{name}"]
