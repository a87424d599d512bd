"""A server of S3 as raw rows, shards, workdir and export: the numbers of local paths.

The server is moto's, on localhost; without it (`pip install 'emofm_jax[test]'`) this is skipped.
"""

import gzip
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import emofm_jax
from benchmarks import s3_server
from benchmarks.faulty import Faulty, Killed
from emofm_jax import compare, evaluate, export, predict, prepare, report, train, verify
from emofm_jax.data import files, remote, schema, storage

pytest.importorskip("moto", reason="moto is not installed: pip install 'emofm_jax[test]'")
pytest.importorskip("flask", reason="flask is not installed: pip install 'emofm_jax[test]'")

PREPARE = """
    p.max_rejected, p.ignore = 2, ("dt",)
    p.groups = (("user", ("user_id", "age")), ("item", ("item_id",)))
    p.slots = {"age": {"kind": "numeric"}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server.serve(tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """A directory of the bucket that nothing is in; each test has a cache of its own."""
    monkeypatch.setattr(storage, "_above", lambda: tmp_path / "cache")
    yield f"s3://bucket/{tmp_path.name}"
    storage.forget()
    remote.place.cache_clear()


def rows(number, seed):
    rng = np.random.default_rng(seed)
    lines = ["user_id,age,item_id,click"]
    for user, age, item in zip(*(rng.integers(0, n, number) for n in (9, 60, 7))):
        lines.append(f"u{user},{age},i{item},{int(rng.random() < 0.2 + 0.08 * item)}")
    return ("\n".join([*lines, "u1,2,i3,what"]) + "\n").encode()


RAW = {"dt=1/a.csv": rows(150, 0), "dt=2/b.csv.gz": gzip.compress(rows(100, 1), mtime=0)}


def put(base):
    """Puts the raw rows to a place, or a local directory."""
    for name, body in RAW.items():
        if storage.is_remote(base):
            at = remote.place(f"{base}/raw/{name}")
            remote.put(at, "", at.name, [body])
        else:
            path = Path(base, "raw", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)


def run(program, *arguments):
    return program.main([program.__name__, *map(str, arguments)])


def all_of(name):
    """A local path with everything that there is at a place."""
    storage.need(path := storage.reading(name))
    return path


def tree(directory):
    """Contents of shards by name, but for the names of raw files that are in them."""
    found = {}
    for path in sorted(p for p in Path(directory).rglob("*") if p.is_file()):
        name = path.relative_to(directory).as_posix()
        if path.name == "rejected.parquet":
            found[name] = pq.read_table(path, columns=["line", "reason"]).to_pydict()
        elif path.name == "schema.json":
            found[name] = schema.load(Path(directory)).digests
        elif path.name != "prepare.json":
            found[name] = path.read_bytes()
    return found


def names(directory):
    """Names of all files, but for TensorBoard's, which have the time in them."""
    found = (p for p in Path(directory).rglob("*") if "tfevents" not in p.name)
    return {p.relative_to(directory).as_posix() for p in found}


def arrays(directory):
    """Arrays of the checkpoints, and tables of predictions: the numbers of a run."""
    both = [
        *Path(directory).rglob("*.safetensors"),
        *Path(directory).rglob("predictions/*.parquet"),
    ]
    found = (p for p in both if "rejected" not in p.name)  # which names raw files
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in found}


def kill(at, program, *arguments):
    """Ends a program at an operation on the store; what comes next is on another machine."""
    system, found = remote.system, Faulty(remote.system("s3://bucket")[0], at, killed=True)
    remote.system = lambda name: (found, system(name)[1])
    remote.place.cache_clear()
    try:
        with pytest.raises(Killed):
            run(program, *arguments)
    finally:
        remote.system = system
        remote.place.cache_clear()
        storage.forget()


def commands(base, tmp_path):
    """Programs that read and write at a place, those with numbers first."""
    config = [f"--config={tmp_path / 'mine.py'}", f"--config.data.dir={base}/data"]
    config.append(f"--config.prepare.source={base}/raw")
    workdir = f"--workdir={base}/run"
    yield prepare, *config
    yield train, *config, workdir
    yield evaluate, workdir, "--split=valid", "--calibrate=platt"
    yield predict, workdir, f"--input={base}/data/test", f"--output={base}/scores.parquet"
    yield evaluate, workdir, f"--input={base}/raw/dt=1/a.csv"
    if storage.is_remote(base):
        yield export, workdir, f"--output={base}/art"
        yield report, workdir
        yield compare, f"--workdirs={base}/run,{base}/art", f"--data={base}/data"
        for name in ("data", "run", "art"):
            yield verify, f"{base}/{name}"


def test_a_run_from_raw_rows_to_an_export_has_the_numbers_of_a_local_one(bucket, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(s3_server.EXPERIMENT.format(prepare=PREPARE.strip()))
    printed = {}
    for base in (str(tmp_path), bucket):
        put(base)
        for program, *arguments in commands(base, tmp_path):
            if storage.is_remote(base) and program is train:
                kill(80, program, *arguments)
                at = storage.reading(f"{base}/run")
                assert (at / "checkpoints").exists() and not (at / "metrics.json").exists()
            assert run(program, *arguments) == 0
        printed[base] = capsys.readouterr()
    cache = str(tmp_path / "cache")
    assert cache not in "".join(printed[bucket])
    assert f"{bucket}/data" in printed[bucket].out

    storage.forget()  # another machine: nothing is here
    data, at = all_of(f"{bucket}/data"), all_of(f"{bucket}/run")
    assert tree(data) == tree(tmp_path / "data")
    assert arrays(at) == arrays(tmp_path / "run")
    assert names(at) == names(tmp_path / "run") | {"report.html", "report.md"}
    ours, theirs = (files.read_json(path / "metrics.json") for path in (at, tmp_path / "run"))
    assert ours.keys() == theirs.keys()
    assert all(ours[split] == theirs[split] for split in ("valid", "test"))
    assert (
        all_of(f"{bucket}/scores.parquet").read_bytes()
        == (tmp_path / "scores.parquet").read_bytes()
    )
    for path in [*at.rglob("*"), *data.rglob("*"), *all_of(f"{bucket}/art").rglob("*")]:
        assert path.is_dir() or cache.encode() not in path.read_bytes(), path

    local = emofm_jax.load_scorer(tmp_path / "run")
    features = local.encode({"user_id": ["u1"], "age": [3.0], "item_id": ["i2"]})
    for name in ("art", "run"):
        scorer = emofm_jax.load_scorer(f"{bucket}/{name}")
        assert scorer.names == (f"{bucket}/{name}",)
        found = scorer(features)["logit"]
        assert float(found[0]) == pytest.approx(float(local(features)["logit"][0]), abs=1e-6)


def test_without_rights_it_is_one_line(bucket, server, capsys):
    def ask(text):
        """Lets the server ask for rights after so many requests."""
        kind = {"Content-Type": "text/plain"}
        asked = urllib.request.Request(f"{server}/moto-api/reset-auth", text, kind)
        urllib.request.urlopen(asked).read()

    ask(b"0")
    try:
        code = run(report, f"--workdir={bucket}/x")
    finally:
        ask(b"inf")
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert error.startswith(f"error: {bucket}/x/published.json: cannot be read (")
    assert "give this user the right (AWS_PROFILE or AWS_ACCESS_KEY_ID" in error
