"""The program from raw files to shards: what it writes, prints, refuses, and leaves behind."""

import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from emofm_jax import prepare
from emofm_jax.data import counts as counts_lib
from emofm_jax.data import files, passes, shards
from emofm_jax.data import schema as schema_lib

pytestmark = pytest.mark.fast

HEADER = "label,user,item,tags,price,day"
EXPERIMENT = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.name = "shop"
    c.prepare.source = {source!r}
    c.prepare.groups = (("user", "user"), ("item", ("item", "tags", "price")))
    c.prepare.slots = {{"tags": {{"kind": "multi"}}, "price": {{"kind": "numeric", "transform": "standardize"}}}}
    c.prepare.ignore = ("day",)
    c.data.dir = {target!r}
    return c
"""


def make_rows(num_rows, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        tags = "^".join(rng.choice(["a", "b", "c"], rng.integers(0, 4)))
        price = "" if rng.random() < 0.1 else f"{rng.exponential(5):.3f}"
        day = f"2024-01-0{rng.integers(1, 6)} 10:00"
        rows.append(f"{rng.integers(0, 2)},u{rng.zipf(1.5)},i{rng.zipf(1.3)},{tags},{price},{day}")
    return rows


@pytest.fixture
def shop(tmp_path):
    """A function (argv...) -> exit code that prepares a small csv shop."""
    source = tmp_path / "raw"
    source.mkdir()
    for i, (split, num_rows) in enumerate((("train", 300), ("valid", 40), ("test", 40))):
        (source / f"{split}.csv").write_text("\n".join([HEADER, *make_rows(num_rows, i)]) + "\n")
    experiment = tmp_path / "shop.py"
    experiment.write_text(EXPERIMENT.format(source=str(source), target=str(tmp_path / "out")))

    def run(*argv):
        return prepare.main(["prepare", f"--config={experiment}", *argv])

    return run


def shard(directory, split):
    return pa.concat_tables(
        [pq.ParquetFile(f).read() for f in sorted((directory / split).glob("part-*.parquet"))]
    )


def raw_column(path, index):
    return [line.split(",")[index] for line in path.read_text().splitlines()[1:]]


def test_shards_hold_what_the_files_say(shop, tmp_path, capsys):
    assert shop() == 0
    out = tmp_path / "out"
    train = shard(out, "train")
    users = raw_column(tmp_path / "raw" / "train.csv", 1)
    order = sorted(set(users), key=lambda u: (-users.count(u), u))
    assert train["user"].to_pylist() == [order.index(u) + 1 for u in users]
    test_users = raw_column(tmp_path / "raw" / "test.csv", 1)
    test_ids = [order.index(u) + 1 if u in order else 0 for u in test_users]
    assert shard(out, "test")["user"].to_pylist() == test_ids
    prices = [float(p) if p else None for p in raw_column(tmp_path / "raw" / "train.csv", 4)]
    known = np.array([p for p in prices if p is not None])
    slot = {s.name: s for s in schema_lib.load(out).slots}
    assert slot["price"].mean == pytest.approx(known.mean()) and slot["price"].std == pytest.approx(
        known.std()
    )
    for p, z in zip(prices, train["price"].to_pylist()):
        assert (
            z is None
            if p is None
            else z == pytest.approx((p - known.mean()) / known.std(), abs=1e-5)
        )
    labels = list(map(int, raw_column(tmp_path / "raw" / "train.csv", 0)))
    assert train["label"].to_pylist() == labels
    schema = schema_lib.load(out)
    assert schema.rows_per_type == (300,) and schema.clicks_per_type == (sum(labels),)
    report = files.read_json(out / "prepare.json")
    assert report["splits"]["train"] == {
        "rows": 300,
        "rejected": {},
        "clicks": sum(labels),
        "types": {},
        "without": {},
    }
    found = report["slots"]["user"]
    assert found["distinct"] == len(order)
    assert found["unknown"]["test"] == pytest.approx(test_ids.count(0) / 40)
    assert found["top_share"] == pytest.approx(users.count(order[0]) / 300)
    assert report["slots"]["price"]["max"] == pytest.approx(
        (known.max() - known.mean()) / known.std(), abs=1e-5
    )
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(f"The shards are in {out}")
    assert f"{sum(labels) / 300:.4f}" in printed and f"{found['top_share']:.2%}" in printed
    assert shards.open_split(out, "valid").num_rows == 40


def test_prepared_again_it_replaces_and_says_so(shop, tmp_path, capsys):
    assert shop() == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (tmp_path / "out" / "train" / "part-00001.parquet").write_text("left over")
    assert shop() == 0
    assert "holds shards already; they are replaced when" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw", "shop.py"]


def test_a_slot_that_shares_its_vocabulary(shop, tmp_path):
    experiment = tmp_path / "shop.py"
    text = experiment.read_text().replace('{"tags"', '{"item": {"share": "user"}, "tags"')
    experiment.write_text(text)
    assert shop() == 0
    values = raw_column(tmp_path / "raw" / "train.csv", 1) + raw_column(
        tmp_path / "raw" / "train.csv", 2
    )
    user, item = schema_lib.load(tmp_path / "out").slots[:2]
    assert user.rows == item.rows == len(set(values)) + 1 and user.digest == item.digest
    counts = pq.read_table(tmp_path / "out" / "vocabulary" / "user.parquet")
    assert dict(zip(counts["value"].to_pylist(), counts["count"].to_pylist())) == {
        v: values.count(v) for v in values
    }


def test_min_count_and_max_length_change_the_result(shop, tmp_path):
    assert shop("--config.prepare.slot.min_count=3", "--config.prepare.slot.max_length=1") == 0
    users = raw_column(tmp_path / "raw" / "train.csv", 1)
    user, _, tags, _ = schema_lib.load(tmp_path / "out").slots
    assert user.rows == 1 + sum(users.count(u) >= 3 for u in set(users))
    lengths = [
        min(1, len(list(filter(None, t.split("^")))))
        for t in raw_column(tmp_path / "raw" / "train.csv", 3)
    ]
    assert [len(bag) for bag in shard(tmp_path / "out", "train")["tags"].to_pylist()] == lengths


def test_hash_seed_changes_the_ids(shop, tmp_path):
    flags = ("--config.prepare.slot.encoding=hash", "--config.prepare.slot.rows=1000")
    users = raw_column(tmp_path / "raw" / "train.csv", 1)
    for seed in (0, 9):
        assert shop(*flags, f"--config.prepare.seed={seed}") == 0
        expected = [1 + xxhash.xxh3_64_intdigest(u.encode(), seed) % 999 for u in users]
        assert shard(tmp_path / "out", "train")["user"].to_pylist() == expected
    assert not (tmp_path / "out" / "vocabulary").exists()


def test_split_by_share(shop, tmp_path):
    source = tmp_path / "raw" / "train.csv"
    flags = (
        f"--config.prepare.source={source}",
        "--config.prepare.split=share",
        "--config.prepare.row_id=user",
    )
    source.write_text("\n".join([HEADER, *[f"1,u{i},i,a,1,d" for i in range(4000)]]))
    experiment = tmp_path / "shop.py"
    experiment.write_text(
        experiment.read_text().replace(
            '"price": {', '"user": {"encoding": "hash", "rows": 9}, "price": {'
        )
    )
    found = {}
    for seed in (0, 1):
        assert (
            shop(*flags, f"--config.prepare.seed={seed}", "--config.prepare.shares=(0.5,0.3,0.2)")
            == 0
        )
        for split, share in zip(shards.SPLITS, (0.5, 0.3, 0.2)):
            found[seed, split] = set(shard(tmp_path / "out", split)["row_id"].to_pylist())
            expected_sd = math.sqrt(4000 * share * (1 - share))
            assert abs(len(found[seed, split]) - 4000 * share) < 4 * expected_sd
        assert len(set.union(*(found[seed, split] for split in shards.SPLITS))) == 4000
    assert found[0, "test"] != found[1, "test"]


def test_split_by_day(shop, tmp_path):
    source = tmp_path / "raw" / "train.csv"
    flags = (
        "--config.prepare.split=day",
        "--config.prepare.day_column=day",
        "--config.prepare.day_length=10",
    )
    days = (
        "--config.prepare.valid_days=('2024-01-04',)",
        "--config.prepare.test_days=('2024-01-05',)",
    )
    assert shop(f"--config.prepare.source={source}", *flags, *days) == 0
    day, users = ([v[:10] for v in raw_column(source, 5)], raw_column(source, 1))
    out = tmp_path / "out"
    assert shards.open_split(out, "test").num_rows == day.count("2024-01-05")
    train_users = [u for u, d in zip(users, day) if d < "2024-01-04"]
    vocabulary = pq.read_table(out / "vocabulary" / "user.parquet")
    assert sum(vocabulary["count"].to_pylist()) == len(
        train_users
    )  # counted over the train rows only
    assert set(vocabulary["value"].to_pylist()) == set(train_users)


def test_bad_rows_are_tolerated_counted_and_kept(shop, tmp_path, capsys):
    path = tmp_path / "raw" / "train.csv"
    path.write_text(path.read_text() + "2,u,i,a,1,d\n1,u\n1,u,i,a,cheap,d\n")
    assert shop() == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: {path}:302: the label is '2'; it must be 0 or 1 (or true/false, yes/no,"
    )
    assert "config.prepare.positive; 3 bad rows so far in train (" in error
    assert "label: 1" in error and "columns: 1" in error and "number: 1" in error
    assert "config.prepare.max_rejected" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()
    assert shop("--config.prepare.max_rejected=3") == 0
    counted = files.read_json(tmp_path / "out" / "train" / "_SUCCESS")
    assert counted["rejected"] == {"label": 1, "columns": 1, "number": 1}
    rejected = pq.read_table(tmp_path / "out" / "train" / "rejected.parquet").to_pylist()
    assert [row["line"] for row in rejected] == [302, 303, 304]
    assert "'price' is numeric but holds 'cheap'" in rejected[2]["reason"]
    assert "rejected for its label: 1" in capsys.readouterr().out
    assert shop("--config.prepare.max_rejected=2") == 2


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("train.csv", b"", "train.csv: the file is empty"),
        ("train.csv", HEADER.encode() + b"\n", "the train split has no row"),
        (
            "train.csv",
            HEADER.encode() + b"\n1,u,i\n",
            "train.csv:2: 3 columns where 6 are expected",
        ),
        (
            "valid.csv",
            HEADER.encode() + b"\n1,u,i,a,1,d,x\n",
            "valid.csv:2: 7 columns where 6 are expected",
        ),
        (
            "test.csv",
            HEADER.encode() + b"\nmaybe,u,i,a,1,d\n",
            "test.csv:2: the label is 'maybe'; it must be 0 or 1",
        ),
        ("test.csv", HEADER.encode() + b"\n1,u\0,i,a,1,d\n", "test.csv:2: a NUL byte"),
        ("test.csv", HEADER.encode() + b"\n1,\xc3(,i,a,1,d\n", "test.csv:2: invalid UTF-8"),
        (
            "train.csv",
            HEADER.encode() + b",age\n1,u,i,a,1,d,9\n",
            "column 'age' is a slot in no group",
        ),
    ],
)
def test_bad_files_are_one_line_and_leave_nothing(shop, tmp_path, capsys, name, data, message):
    (tmp_path / "raw" / name).write_bytes(data)
    assert shop() == 2
    captured = capsys.readouterr()
    assert (
        captured.err.startswith("error: ")
        and message in captured.err
        and captured.err.count("\n") == 1
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "shop.py"]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("source=nowhere", "config.prepare.source: 'nowhere' does not exist"),
        ("source=", "config.prepare.source: it is empty"),
        (
            "files.test=best.*",
            "best.*: no such file (the directory holds test.csv, train.csv, valid.csv)",
        ),
        ("files.train=", "config.prepare.files.train: it is empty"),
        ("label=", "config.prepare.label: it is empty"),
        ("row_id=shop", "there is no column 'shop' (config.prepare.row_id)"),
        ("split=day", "config.prepare.day_column: it is empty"),
        ("types=('a', 'b')", "they have no effect without config.prepare.ftype"),
        ("groups=()", "config.prepare.groups: there is no group"),
        ("groups=(('g', 'C9-C1'),)", "the range 'C9-C1' is empty"),
        ("groups=(('user', 'user'),)", "is a slot in no group"),
        ("slot.kind=word", "'word' is not known; choose one of categorical, multi, numeric"),
        ("slot.min_count=0", "config.prepare.slot.min_count"),
        ("slot.encoding=hash", "has hash encoding and 0 rows; set at least 2"),
        ("slots.tags.kind=set", "slot 'tags' has 'set'"),
        ("ftype=day", "config.prepare.types: column 'day' holds the type"),
        ("format=xml", "config.prepare.format: 'xml' is not known"),
        ("gauc_key=shop", "there is no column 'shop' (config.prepare.gauc_key)"),
        ("max_rejected=-1", "config.prepare.max_rejected"),
    ],
)
def test_bad_options(shop, tmp_path, capsys, flag, message):
    assert shop(f"--config.prepare.{flag}") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_a_type_outside_the_schema(shop, tmp_path, capsys):
    flags = ("--config.prepare.ftype=day", "--config.prepare.ignore=()")
    types = sorted(set(raw_column(tmp_path / "raw" / "train.csv", 5)))
    assert shop(*flags, f"--config.prepare.types={tuple(types)}") == 0
    found = shard(tmp_path / "out", "train")["ftype"].to_pylist()
    assert found == [types.index(day) for day in raw_column(tmp_path / "raw" / "train.csv", 5)]
    schema = schema_lib.load(tmp_path / "out")
    assert schema.rows_per_type == (*[found.count(t) for t in range(len(types))], 0)
    assert "no row of the train split has it" not in capsys.readouterr().out
    assert shop(*flags, f"--config.prepare.types={(*types[1:], 'never')}") == 2
    assert f"the type '{types[0]}' is not one of config.prepare.types" in capsys.readouterr().err
    assert schema_lib.load(tmp_path / "out").types == tuple(types)  # the shards from before stay
    assert shop(*flags, f"--config.prepare.types={('never', *types)}") == 0
    out = capsys.readouterr().out
    assert "type 'never': no row of the train split has it; nothing of its own is learnt\n" in out
    assert out.count("no row of the train split has it") == 1
    assert schema_lib.load(tmp_path / "out").rows_per_type[0] == 0


def test_only_shards_are_replaced(shop, tmp_path, capsys):
    assert shop(f"--config.data.dir={tmp_path / 'raw'}") == 2
    assert "is not a directory of shards" in capsys.readouterr().err
    assert len(list((tmp_path / "raw").iterdir())) == 3
    assert shop("--config.data.dir=") == 2
    assert "config.data.dir: it is empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert shop(f"--config.data.dir={tmp_path}/file/out") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_shards_are_not_put_where_they_would_be_raw_files(shop, tmp_path, capsys):
    inside = f"--config.data.dir={tmp_path}/raw/out"
    assert shop("--config.prepare.split=share", inside) == 2
    assert f"{tmp_path}/raw/out lies in {tmp_path}/raw, of which" in capsys.readouterr().err
    assert shop(inside) == 0 == shop(inside)  # the split is by files, which have other names
    shutil.rmtree(tmp_path / "raw" / "out")
    hidden = f"--config.data.dir={tmp_path}/raw/_out"
    assert shop("--config.prepare.split=share", hidden) == 0
    assert shop("--config.prepare.split=share", hidden) == 0


def test_a_raw_file_that_changes_between_the_passes_is_a_line(shop, tmp_path, capsys, monkeypatch):
    learn, valid = passes.learn, tmp_path / "raw" / "valid.csv"

    def change(*args):
        found = learn(*args)
        valid.write_text(valid.read_text() + "1,u1,i1,,,\n")
        return found

    monkeypatch.setattr(passes, "learn", change)
    assert shop() == 2
    assert f"{valid}: it has changed while it was read; start" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_places_that_are_none(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    no_shell = "no shell has replaced ~ here; write $HOME in its place"
    for flag, message in (
        ("--config.data.dir=~/x", f"config.data.dir=~/x: {no_shell}"),
        ("--base=~", f"--base=~: {no_shell}"),
        ("--config.data.dir=/", "/: it stands in no directory; name another"),
        ("--config.data.dir=none/..", "none/..: no such directory; name another"),
        ("--config.data.dir=a\0b", "config.data.dir: it has a NUL in it; name a path"),
    ):
        assert shop(flag) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    (tmp_path / "~").mkdir()  # who has such a directory may mean it
    monkeypatch.setenv("HOME", "/nowhere")
    assert shop("--config.data.dir=~/x") == 0
    assert shop("--config.data.dir=~/y", "--base=~/x") == 0


@pytest.mark.parametrize("name", ["none/..", "link", "."])
def test_what_a_path_leads_to_is_not_replaced_either(shop, tmp_path, capsys, monkeypatch, name):
    (tmp_path / "work" / "notes").mkdir(parents=True)
    (tmp_path / "work" / "link").symlink_to("none/..")
    monkeypatch.chdir(tmp_path / "work")
    assert shop(f"--config.data.dir={name}") == 2
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["link", "notes"]
    assert name in capsys.readouterr().err


def test_an_interrupt_leaves_what_was_there(shop, tmp_path, monkeypatch):
    assert shop() == 0
    before = (tmp_path / "out" / "schema.json").stat().st_mtime_ns

    def interrupt(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(counts_lib.Tally, "add", interrupt)
    assert shop() == 130
    assert (tmp_path / "out" / "schema.json").stat().st_mtime_ns == before
    assert not (tmp_path / ".out.partial").exists()


def test_what_a_kill_left_is_no_hindrance(shop, tmp_path):
    assert shop() == 0
    for name in ("emofm_jax.new/train", "emofm_jax.old"):
        (tmp_path / ".out.partial" / name).mkdir(parents=True)
    assert shop() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw", "shop.py"]


def test_a_kill_between_the_two_moves_loses_nothing(shop, tmp_path):
    assert shop() == 0
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / "out").rename(tmp_path / ".out.partial" / "emofm_jax.old")
    assert shop("--config.prepare.source=nowhere") == 2
    assert shards.open_split(tmp_path / "out", "train").num_rows == 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw", "shop.py"]


def test_two_programs_do_not_prepare_in_one_place(shop, tmp_path, capsys, monkeypatch):
    """The second begins while the first encodes, and a third after both."""
    add, codes = counts_lib.Tally.add, []

    def slow(self, *args):
        monkeypatch.setattr(counts_lib.Tally, "add", add)
        codes.append(shop())
        return add(self, *args)

    monkeypatch.setattr(counts_lib.Tally, "add", slow)
    assert shop() == 0 and codes == [2]
    error = capsys.readouterr().err
    assert "out: another program prepares there now; wait for it" in error
    assert error.count("\n") == 1 and shards.open_split(tmp_path / "out", "train").num_rows == 300
    assert shop() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw", "shop.py"]


def test_a_parquet_source_gives_the_same_shards_as_its_csv(shop, tmp_path):
    assert shop() == 0
    from_csv = {split: shard(tmp_path / "out", split) for split in shards.SPLITS}
    for split in shards.SPLITS:
        path = tmp_path / "raw" / f"{split}.csv"
        columns = {name: raw_column(path, i) for i, name in enumerate(HEADER.split(","))}
        columns["label"] = list(map(int, columns["label"]))
        columns["price"] = [float(p) if p else None for p in columns["price"]]
        columns["tags"] = [t.split("^") if t else [] for t in columns["tags"]]
        pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
        path.unlink()
    assert shop() == 0
    for split in shards.SPLITS:
        assert shard(tmp_path / "out", split).equals(from_csv[split])


def test_what_is_rejected_teaches_nothing(shop, tmp_path):
    """The mean, the vocabularies and the largest bucket are those of the rows that are kept."""
    slots = lambda: schema_lib.load(out).slots
    learnt = lambda: [(slot.mean, slot.std, slot.rows, slot.digest) for slot in slots()]
    out, train = tmp_path / "out", tmp_path / "raw" / "train.csv"
    for transform in ("standardize", "bucket"):
        flags = [f"--config.prepare.slots.price.transform={transform}"]
        before = train.read_text()
        assert shop(*flags) == 0
        clean = learnt()
        bad = ["1,only_here,i1,a,1e39,2024-01-01 10:00", "2,here_too,i1,q^r,9e30,2024-01-01 10:00"]
        train.write_text(before + "\n".join(bad) + "\n")
        assert shop(*flags, "--config.prepare.max_rejected=2") == 0
        assert learnt() == clean
        train.write_text(before)


@pytest.mark.parametrize("price", ["", "-3"])
def test_a_bucket_of_nothing_or_of_negative_numbers_is_small(shop, tmp_path, price):
    raw = tmp_path / "raw" / "train.csv"
    rows = [line.rsplit(",", 2) for line in raw.read_text().splitlines()[1:]]
    raw.write_text(
        "\n".join([HEADER, *(f"{start},{price},{day}" for start, _, day in rows)]) + "\n"
    )
    assert shop("--config.prepare.slots.price.transform=bucket") == 0
    assert {s.name: s.rows for s in schema_lib.load(tmp_path / "out").slots}["price"] == 3


def test_a_split_of_which_every_row_was_rejected_is_counted(shop, tmp_path, capsys):
    path = tmp_path / "raw" / "valid.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *["2" + row[1:] for row in rows]]) + "\n")
    assert shop("--config.prepare.max_rejected=1000") == 0
    found = files.read_json(tmp_path / "out" / "prepare.json")["splits"]["valid"]
    assert found["rows"] == 0 and found["rejected"] == {"label": len(rows)}
    assert f"rejected for its label: {len(rows)}" in capsys.readouterr().out


def test_more_types_than_a_shard_has_numbers_for(shop, capsys):
    types = tuple(f"t{i}" for i in range(128))
    flags = ("--config.prepare.ftype=day", "--config.prepare.ignore=()")
    assert shop(*flags, f"--config.prepare.types={types}") == 2
    assert "128 types; at most 127 fit a shard" in capsys.readouterr().err


def test_only_files_that_prepare_has_written_are_replaced(shop, tmp_path, capsys):
    assert shop() == 0
    (tmp_path / "out" / "train" / "notes.txt").write_text("mine")
    assert shop() == 2
    assert "is not a directory of shards (train/notes.txt)" in capsys.readouterr().err
    (tmp_path / "out" / "train" / "notes.txt").unlink()
    (tmp_path / "out" / "schema.json").write_text("{")  # damaged: prepare again
    (tmp_path / "out.partial").mkdir()
    assert shop() == 0 and (tmp_path / "out.partial").exists()
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "schema.json").write_text('{"a": "stranger\'s"}')
    assert shop(f"--config.data.dir={tmp_path / 'other'}") == 2
    assert "is not a directory of shards (no schema.json)" in capsys.readouterr().err
