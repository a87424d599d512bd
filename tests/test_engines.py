"""Engines: results in order, deaths of processes; and that what prepare writes is the same whoever does the jobs."""

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv

import emofm_jax
from emofm_jax import prepare
from emofm_jax.data import engines
from emofm_jax.data.formats import lines
from emofm_jax.errors import FileError, LostError, UserError
from tests import jobs

pytestmark = pytest.mark.fast

ROOT, MAKE = Path(__file__).parents[1], engines.make


def test_results_come_in_order_and_a_process_that_dies_is_replaced(tmp_path):
    with contextlib.closing(engines.make("local", 2)) as engine:
        assert list(engine.map(jobs.square, range(9))) == [i * i for i in range(9)]
        assert list(engine.map(jobs.die_once, [str(tmp_path / "died")] * 3)) == ["alive"] * 3
        # A map that is left early leaves nothing behind for the next one.
        assert next(engine.map(jobs.square, range(9))) == 0
        found = engine.map(jobs.refuse, range(4))
        assert [next(found), next(found)] == [-1 / 3, -1 / 2]
        with pytest.raises(UserError, match="^a: it is 2; change it$"):
            next(found)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            list(engine.map(jobs.refuse, [3]))
        with pytest.raises(FileError, match="^raw.csv: cannot be read or written .Perm.*; make it"):
            list(engine.map(jobs.refuse, [4]))
        with pytest.raises(LostError, match="3 times at one job, with exit code -9") as error:
            list(engine.map(jobs.die, [0]))
    assert error.value.exit_code == 75


def test_a_process_has_the_package_of_the_program_wherever_it_is_started(tmp_path, monkeypatch):
    (tmp_path / "emofm_jax").mkdir()
    for name in ("emofm_jax/__init__.py", "queue.py"):
        (tmp_path / name).write_text("raise ValueError('another one')")
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(engines.make("local", 1)) as engine:
        assert list(engine.map(jobs.where, [0])) == [emofm_jax.__file__]


def test_processes_that_are_named_begin_before_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(engines, "num_cores", lambda: 2)
    none = ["--workers=1"], ["--workers=x"], ["--workers"], ["--config=a"]
    for argv in (*none, ["--workers=2", "--engine=ray"]):
        engines.begin(argv, "")
        assert not engines._early
    for stream in ("stdin", "stdout", "stderr"):  # a pipe would get its number
        with monkeypatch.context() as closed:
            closed.setattr(sys, stream, None)
            engines.begin(["--workers=2"], "")
        assert not engines._early
    engines.begin(["--engine=local", "--workers", "9"], "tests.jobs")
    early = {process.pid for process in engines._early}
    with contextlib.closing(engines.make("local", 3)) as engine:
        assert early < set(engine.map(jobs.process, range(9)))  # and one more
    assert len(early) == 2 and not engines._early
    engines.begin(["--workers=2"], "")
    left = list(engines._early)
    engines._end_early()
    assert [process.returncode for process in left] == [-9, -9]


def test_an_interrupt_that_all_processes_get_is_for_the_program():
    with contextlib.closing(engines.make("local", 1)) as engine:
        assert list(engine.map(jobs.interrupt, [0])) == [None]


def test_a_process_ends_with_the_program_that_started_it():
    worker = engines._Worker()
    worker.give(engines._Task(0, time.sleep, 1000))
    worker._process.stdin.close()  # as the system does when the program is killed
    assert worker._process.wait(timeout=60) == 0


class Backwards:
    """An engine that does its jobs in this process, the last one first."""

    num_workers = 3

    def map(self, function, jobs):
        tasks = [pickle.dumps((function, job)) for job in reversed(jobs)]
        done = [of(job) for of, job in map(pickle.loads, tasks)]
        yield from reversed(done)

    def close(self):
        pass


SHOP = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.name = "shop"
    c.prepare.source = "raw"
    c.prepare.files = {"train": "train*", "valid": "valid*", "test": ""}
    c.prepare.groups = (("user", ("user", "age")), ("item", ("item", "near", "tags", "price", "seen", "site")))
    c.prepare.slots = {
        "age": {"kind": "numeric", "transform": "bucket"},
        "item": {"min_count": 2},
        "near": {"share": "item"},
        "tags": {"kind": "multi", "max_length": 2, "weighted": True},
        "price": {"kind": "numeric", "transform": "standardize"},
        "seen": {"encoding": "hash", "rows": 50},
        "site": {"encoding": "identity", "rows": 9},
    }
    c.prepare.gauc_key, c.prepare.weight, c.prepare.row_id = "user", "weight", "id"
    c.prepare.null_values = ("-",)
    c.prepare.ignore = ("day",)
    c.prepare.max_rejected = 50
    c.data.dir = "out"
    return c
"""
LIBSVM = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.prepare.source, c.prepare.format, c.prepare.split = "raw", "libsvm", "share"
    c.prepare.groups = (("user", ("user", "tags", "price")),)
    c.prepare.slots = {"tags": {"kind": "multi"}, "price": {"kind": "numeric", "transform": "standardize"}}
    c.prepare.max_rejected, c.data.dir = 50, "out"
    return c
"""
HEADER = "id,label,user,age,item,near,tags,price,seen,site,weight,day"


def rows(num_rows, seed):
    """Rows of the shop, about one in twenty of them bad."""
    rng, made = np.random.default_rng(seed), []
    for i in range(num_rows):
        tags = "^".join(f"t{rng.integers(5)}:{rng.random():.2f}" for _ in range(rng.integers(4)))
        label = rng.choice(["0", "1", "yes", ""], p=[0.6, 0.3, 0.07, 0.03])
        price = rng.choice([f"{rng.exponential(5):.5f}", "-", "x"], p=[0.9, 0.08, 0.02])
        item, near = (f"i{rng.zipf(1.4)}" for _ in range(2))
        ends = f"{rng.random():.3f},2024-01-0{rng.integers(1, 6)}"
        if rng.random() < 0.2:  # a row of two lines
            near = f'"{near},\n{item}"'
        middle = f"{item},{near},{tags},{price},s{rng.integers(99)},{rng.integers(8)}"
        made.append(f"r{seed}-{i},{label},u{rng.zipf(1.5)}.0,{rng.integers(90)},{middle},{ends}")
    return "\n".join([HEADER, *made, ""])


def libsvm_row(rng, weighs):
    weight = f"{rng.random():.2f}" if weighs else "1"
    tokens = f"user:{rng.zipf(2)}:1 tags:{rng.zipf(2)}:{weight} price:0:{rng.random():.4f}"
    return f"{rng.integers(2)} {tokens}"


def write_shop(place):
    """Seven training files, one empty, one without a row, one compressed, one with a BOM; and two to validate."""
    (place / "raw").mkdir()
    (place / "shop.py").write_text(SHOP)
    for i in range(5):
        (place / f"raw/train-{i}.csv").write_text(rows(30 + 15 * i, i))
    (place / "raw/train-2.csv").write_text("\ufeff" + rows(60, 2).removesuffix("\n"))
    (place / "raw/train-1.csv").write_bytes(gzip.compress(rows(45, 1).encode()))
    (place / "raw/train-5.csv").write_text("")
    (place / "raw/train-6.csv").write_text(HEADER + "\n")
    for i in range(2):
        (place / f"raw/valid-{i}.csv").write_text(rows(25, 10 + i))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with the raw rows of the shop, in which one is; blocks are so small that a file has several."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(
        engines, "make", lambda name, n: Backwards() if n == 3 else engines.Local(n)
    )
    write_shop(tmp_path)
    return tmp_path


def content(directory):
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def both(home, *flags, code=0):
    """What this process alone writes, or says, after it is compared with what jobs do."""
    found = []
    for workers in (1, 3):
        out = io.StringIO()
        with contextlib.redirect_stderr(out):
            assert prepare.main(["p", *flags, f"--workers={workers}"]) == code
        found.append(out.getvalue() if code else content(home / "out"))
        assert not [p.name for p in home.iterdir() if p.name.startswith(".")]
    assert found[0] == found[1] and found[0]
    return found[0]


@pytest.mark.slow
def test_jobs_give_the_same_bytes(home, capsys):
    shop = "--config=shop.py"
    found = both(home, shop)
    said = json.loads(found["prepare.json"])
    assert said["notes"]["empty files"] == [2, "raw/train-5.csv"]
    read = {
        name: split["rows"] + sum(split["rejected"].values())
        for name, split in said["splits"].items()
    }
    assert read == {"train": 300, "valid": 50}  # 30 + 45 + 60 + 75 + 90
    assert said["splits"]["train"]["rejected"].keys() == {"label", "number"}
    assert {
        "vocabulary/item.parquet",
        "rare/item.parquet",
        "train/rejected.parquet",
    } <= found.keys()

    one = ("--config.prepare.split=share", "--config.prepare.negative_keep_rate=0.5")
    assert json.loads(both(home, shop, *one)["prepare.json"])["notes"].keys() == {
        "empty files",
        "sampled",
        "rows over lines",
    }

    by_day = (
        "--config.prepare.split=day",
        "--config.prepare.day_column=day",
        "--config.prepare.ignore=()",
    )
    days = (
        "--config.prepare.train_days=('2024-01-01','2024-01-02')",
        "--config.prepare.valid_days=('2024-01-04',)",
    )
    assert prepare.main(["p", shop, *by_day, *days, "--config.data.dir=first"]) == 0
    days = (
        "--config.prepare.train_days=('2024-01-03',)",
        "--config.prepare.replay_days=('2024-01-01',)",
    )
    found = both(home, shop, *by_day, *days, "--config.prepare.expire_days=1", "--base=first")
    assert json.loads(found["schema.json"])["days"] == ["2024-01-01", "2024-01-02", "2024-01-03"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a,b\n", '"x\ny",c\n', '"q""\n",1\r\n', "\n", '"stray\n', "longer,2\n"])
    ),
    st.integers(3, 30),
    st.integers(1, 60),
    st.sampled_from([("", ","), ("\ufeff", ","), ("", "")]),
)
def test_parts_of_a_file_have_its_blocks(rows, block, size, first_and_separator):
    first, separator = first_and_separator
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        path = Path(directory) / "a.csv"
        path.write_text(f"{first}label,b\n{''.join(rows)}end")
        patch.setattr(lines, "BLOCK_BYTES", block)
        spans = lines.spans(path, separator, size)
        found = [b for span in spans for b in lines.blocks(path, separator=separator, span=span)]
        assert found == list(lines.blocks(path, separator=separator))


@pytest.mark.slow
def test_jobs_on_other_formats_give_the_same_bytes(home, capsys):
    shutil.rmtree("raw")
    Path("raw").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):  # that ids have weights is seen in the last file only
        made = [libsvm_row(rng, i == 3) for _ in range(150)]
        Path(f"raw/{i}.txt").write_text("\n".join(made) + "\n1 user:1:x\n")
    Path("libsvm.py").write_text(LIBSVM)
    slots = {
        slot["name"]: slot
        for slot in json.loads(both(home, "--config=libsvm.py")["schema.json"])["slots"]
    }
    assert slots["tags"]["weighted"] and not slots["user"]["weighted"]

    shutil.copytree(ROOT / "data/examples/cti", "cti")
    both(
        home,
        f"--config={ROOT}/experiments/cti.py",
        "--config.prepare.source=cti",
        "--config.data.dir=out",
    )

    shutil.rmtree("raw")
    Path("raw").mkdir()
    for i, name in enumerate(["train-a", "train-b", "valid"]):
        table = csv.read_csv(pa.BufferReader(rows(70, i).encode()))
        pq.write_table(table, f"raw/{name}.parquet", row_group_size=30)
    both(home, "--config=shop.py")


@pytest.mark.slow
def test_jobs_end_with_the_same_line(home, capsys):
    shop = "--config=shop.py"
    assert "bad rows so far in train" in both(home, shop, "--config.prepare.max_rejected=3", code=2)
    both(home, shop, "--config.prepare.max_rejected=10", code=2)

    lone = (shop, "--config.prepare.max_rejected=1000")
    (home / "raw/train-3.csv").write_text(rows(50, 3).replace(",near,", ",far,"))
    assert "train-3.csv: there is no column 'near'" in both(home, *lone, code=2)
    signs = rows(50, 3).replace(",0,", ",-1,").replace(",1,", ",-1,")
    (home / "raw/train-3.csv").write_text(signs)
    assert "the labels hold both 0 and -1" in both(home, *lone, code=2)
    more = (
        "    c.prepare.slots = {'tags': {'kind': 'multi'}}\n    c.prepare.slot.encoding = 'hash'\n"
    )
    (home / "hashed.py").write_text(
        (home / "shop.py").read_text().replace("    return c", f"{more}    return c")
    )
    hashed = ("--config=hashed.py", lone[1], "--config.prepare.slot.rows=9")
    both(home, *hashed, code=2)  # no pass counts
    for path in (home / "raw").glob("train*"):
        path.write_text("")
    assert "so are all of the 7 files" in both(home, *lone, code=2)


@pytest.mark.slow
def test_stages_by_hand_give_the_same_bytes(home, capsys):
    def run(*flags, code=0):
        assert prepare.main(["p", "--config=shop.py", "--workers=1", *flags]) == code
        out, error = capsys.readouterr()
        assert error.count("\n") == (code > 0)
        return error if code else out

    run()
    expected = content(home / "out")
    assert "--stage=count: no shard was run for this configuration" in run("--stage=merge", code=2)
    assert "--stage=merge: nothing was merged" in run("--stage=publish", code=2)
    assert run("--stage=count", "--shard=1/2").endswith("1/2: jobs done: 2, of 3 in all\n")
    said = run("--stage=merge", code=2)
    assert "1 of 2 shards are not done (2); run --stage=count --shard=2/2" in said
    # What is counted of other files, or for another configuration, is not taken.
    run("--stage=count", "--shard=1/1", "--config.prepare.null_values=('-','u1.0')")
    assert "jobs done: 1, of 3" in run("--stage=count", "--shard=2/2")
    assert "no job was left" in run("--stage=count", "--shard=2/2")
    assert "--stage=merge: 3 vocabularies are made" in run("--stage=merge")
    for shard in "31":
        run("--stage=encode", f"--shard={shard}/3")
    said = run("--stage=publish", code=2)
    assert "--stage=encode: 1 of 3 shards are not done (2)" in said
    assert content(home / "out") == expected
    run("--stage=encode", "--shard=2/3")
    shutil.rmtree("out")
    assert run("--stage=publish").endswith("The shards are in out\n")
    assert content(home / "out") == expected
    assert not [path.name for path in home.iterdir() if path.name.startswith(".")]

    (home / "raw/train-3.csv").write_text("id,label\n")
    for flags, said in (
        (("--stage=count", "--shard=4/9"), "train-3.csv: there is no column 'user'"),
        (("--stage=count",), "--shard='': no share of --stage=count; name the share"),
        (("--stage=encode", "--shard=3/2"), "--shard='3/2': no share of --stage=encode"),
        (("--stage=merge", "--shard=1/2"), "--shard=1/2: --stage=merge is one command"),
        (("--stage=cut",), "--stage=cut: it is not known; choose one of count, merge, encode, pub"),
        (("--shard=1/2",), "--shard=1/2: it is a share of a stage; name it in --stage"),
        (("--stage=merge", "--engine=ray"), "--engine=ray: a stage is done by processes of its"),
        (("--stage=merge", "--config.prepare.format=synthetic"), "made-up data are made at once"),
    ):
        assert said in run(*flags, code=2)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_though_one_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    assert prepare.main(["p", "--config=shop.py", "--workers=1"]) == 0
    expected, give, killed = content(tmp_path / "out"), engines._Worker.give, []

    def give_and_kill(self, task):
        give(self, task)
        if task.number == len(killed) + 1:  # at job 1 of the first pass, then at job 2
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(engines._Worker, "give", give_and_kill)
    assert prepare.main(["p", "--config=shop.py", "--workers=2"]) == 0
    assert len(killed) >= 2 and content(tmp_path / "out") == expected


def test_ray_gives_the_same_bytes(tmp_path, monkeypatch, capsys):
    """Not part of a usual run: Ray is an extra, and takes 15 seconds to start."""
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    assert prepare.main(["p", "--config=shop.py", "--workers=1"]) == 0
    expected = content(tmp_path / "out")
    assert prepare.main(["p", "--config=shop.py", "--engine=ray", "--workers=2"]) == 0
    assert content(tmp_path / "out") == expected
    with contextlib.closing(engines.make("ray", 1)) as engine:
        assert list(engine.map(jobs.die_once, [str(tmp_path / "died")] * 2)) == ["alive"] * 2
        with pytest.raises(UserError, match="^a: it is 2; change it$"):
            list(engine.map(jobs.refuse, [2]))
        with pytest.raises(LostError, match="a job was lost"):
            list(engine.map(jobs.die, [0]))


def test_a_cluster_that_nobody_started_is_one_line_at_once(monkeypatch):
    """Ray would wait for minutes; here it is not asked."""
    ray = types.ModuleType("ray")
    ray.is_initialized = lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match="--engine=ray: nobody answers at .*; start it there"):
            engines.make("ray", 1)


def test_mistakes_are_one_line(home, monkeypatch, capsys):
    monkeypatch.setattr(engines, "make", MAKE)
    monkeypatch.setitem(sys.modules, "ray", None)
    made_up = ("--config=quickstart", "--config.data.dir=out", "--workers=2")
    for flags, said in (
        (
            ("--config=shop.py", "--engine=spark"),
            "--engine=spark: it is not known; choose one of local, ray",
        ),
        (
            ("--config=shop.py", "--engine=ray"),
            "Ray is not installed; pip install 'emofm_jax[ray]', or leave --engine out",
        ),
        (("--config=shop.py", "--workers=-1"), "-1 is not a non-negative integer"),
        (
            made_up,
            "--engine=local --workers=2: made-up data are made in one process; leave both out",
        ),
    ):
        assert prepare.main(["p", *flags]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (home / "out").exists()
