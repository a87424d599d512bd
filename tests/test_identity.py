"""One run, one data set: shards know which preparation they are of, and nobody mixes two."""

import dataclasses
import errno
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emofm_jax import config as config_lib
from emofm_jax.data import batches, directories, encode, files, parquet, preparation, shards
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import FileError, UserError
from emofm_jax.training import predictions

pytestmark = pytest.mark.fast

SCHEMA = Schema(
    "test",
    (
        Slot("user", "user", encoding="hash", rows=100),
        Slot("tags", "item", kind="multi", encoding="hash", rows=100, max_length=3),
        Slot("price", "item", kind="numeric", rows=2),
        Slot("liked", "item", "multi", "hash", rows=9, max_length=3, weighted=True),
        Slot("vector", "item", kind="vector", rows=3, length=2),
    ),
    types=("a", "b"),
    row_id="string",
)
ROWS = {
    "user": [1, 2, 3, 4],
    "tags": [[1, 2], [], [3], None],
    "price": [0.5, None, 1.0, 2.0],
    "liked": [[{"id": 1, "weight": 0.5}, {"id": 2, "weight": 1.0}], [], None, []],
    "vector": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]],
    "label": [0, 1, 0, 1],
    "ftype": [0, None, 1, 0],
    "row_id": ["a", "bc", None, "d"],
}
OTHERS = {  # a value more, less or elsewhere: every one is another digest
    "user": [1, 2, 3, 5],
    "tags": [[1], [2], [3], None],
    "price": [0.5, 0.0, 1.0, 2.0],
    "liked": [[{"id": 1, "weight": 0.5}, {"id": 2, "weight": 1.5}], [], None, []],
    "vector": [[1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]],
    "label": [0, 1, 1, 1],
    "ftype": [0, 0, 1, None],
    "row_id": ["ab", "c", None, "d"],
}


def table(rows):
    return pa.table(rows, schema=shards.arrow_schema(SCHEMA).remove_metadata())


def write(directory, *tables, split="train"):
    with shards.Writer(directory, split, SCHEMA) as writer:
        for part in tables:
            writer.write(part)
    SCHEMA.save(directory)
    return shards.open_split(directory, split)


def test_a_digest_is_of_the_values_however_they_lie_in_memory(tmp_path):
    whole = table(ROWS)
    same = write(tmp_path / "a", whole).digest
    assert (
        len(same) == 16 and write(tmp_path / "b", whole[:1], whole[1:3], whole[3:]).digest == same
    )
    shifted = pa.concat_tables([whole, whole]).combine_chunks()[2:6]
    halves = write(tmp_path / "c", whole[2:], whole[:2]).digest
    assert write(tmp_path / "d", shifted).digest == halves != same

    # What lies under a null is nobody's value.
    under = pa.array(
        np.array([0.5, 7, 1, 2], np.float32), mask=np.array([False, True, False, False])
    )
    place = whole.column_names.index("price")
    assert write(tmp_path / "e", whole.set_column(place, "price", under)).digest == same


@pytest.mark.parametrize("column", ROWS)
def test_any_other_value_is_another_digest(tmp_path, column):
    one, other = (
        write(tmp_path / "a", table(ROWS)),
        write(tmp_path / "b", table(ROWS | {column: OTHERS[column]})),
    )
    assert one.digest != other.digest and one.schema.fingerprint() == other.schema.fingerprint()


def test_rows_are_read_of_the_files_that_were_opened_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 2)
    whole = table(ROWS)
    split = write(tmp_path / "data", whole)
    write(tmp_path / "same", whole)
    write(tmp_path / "other", table(ROWS | {"label": [1, 1, 1, 1]}))
    source = batches.read(split, 2, window_rows=2)
    next(source)
    put(tmp_path / "same", tmp_path / "data")
    assert split.read_row_group(1, ["label"])["label"].to_pylist() == [0, 1]
    split.check()

    put(tmp_path / "other", tmp_path / "data")
    for read in (lambda: split.read_row_group(1, None), split.check):
        with pytest.raises(UserError, match="prepared anew, or moved, while this program reads"):
            read()
    shutil.rmtree(tmp_path / "data")
    for read in (lambda: split.read_row_group(1, None), split.check):
        with pytest.raises(UserError, match="prepared anew, or moved, while this program reads"):
            read()


def put(source, target):
    shutil.rmtree(target)
    shutil.copytree(source, target)


def test_data_of_release_0_1_are_read_until_they_are_prepared_anew(tmp_path):
    new = write(tmp_path / "new", table(ROWS))
    write(tmp_path / "old", table(ROWS))
    path = tmp_path / "old" / "train"
    pq.write_table(table(ROWS).cast(shards.arrow_schema(SCHEMA)), path / "part-00000.parquet")
    counts = files.read_json(path / "_SUCCESS")
    del counts["digests"]
    (path / "_SUCCESS").write_text(json.dumps(counts))
    split = shards.open_split(tmp_path / "old", "train")
    assert split.digest == "" and split.read_row_group(0, None).num_rows == 4

    put(tmp_path / "new", tmp_path / "old")
    with pytest.raises(UserError, match="another file than before"):
        split.read_row_group(0, None)
    assert shards.open_split(tmp_path / "old", "train").digest == new.digest


def test_a_split_of_another_preparation_is_not_opened(tmp_path):
    write(tmp_path / "data", table(ROWS))
    digests = {"train": "0" * 16}
    dataclasses.replace(SCHEMA, digests=digests).save(tmp_path / "data")
    with pytest.raises(UserError, match="data/train: not of the preparation of its schema.json"):
        shards.open_split(tmp_path / "data", "train")

    SCHEMA.save(tmp_path / "data")
    other = write(tmp_path / "other", table(ROWS | {"user": OTHERS["user"]}))
    shutil.copy(other.files[0], tmp_path / "data" / "train")
    with pytest.raises(UserError, match="part-00000.parquet: its digest is .* where _SUCCESS has"):
        shards.open_split(tmp_path / "data", "train")


def make(directory, seed=0, rows=50, encoding="vocabulary"):
    """Prepares a csv whose values are drawn by a seed."""
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    drawn = [f"{rng.integers(2)},u{rng.integers(9)},{i}\n" for i in range(rows)]
    (directory / "rows.csv").write_text("label,user,note\n" + "".join(drawn))
    c = config_lib.default()
    c.prepare.source, c.prepare.split = str(directory / "rows.csv"), "share"
    c.prepare.groups, c.prepare.ignore = (("user", ("user",)),), ("note",)
    c.prepare.slots = {
        "user": {"encoding": encoding} | ({"rows": 50} if encoding == "hash" else {})
    }
    c.data.dir = str(directory / "data")
    preparation.prepare(c)
    return schema_lib.load(directory / "data")


def test_the_identity_of_a_preparation_is_that_of_its_rows(tmp_path):
    one = make(tmp_path / "a", encoding="hash")
    assert set(one.digests) == {"train", "valid", "test"} and len(one.identity) == 16
    assert one.fingerprint() is one.fingerprint()  # made once: opening data asks for it often
    assert make(tmp_path / "b", encoding="hash").identity == one.identity
    other = make(tmp_path / "c", seed=1, encoding="hash")
    assert other.fingerprint() == one.fingerprint() and other.identity != one.identity
    assert schema_lib.other_rows(one, one) == "" and other.identity in schema_lib.other_rows(
        one, other
    )
    assert "digests" not in schema_lib.difference(one, other)

    old, counts = dataclasses.replace(one, digests={}), {"rows_per_type": (1,)}
    assert schema_lib.other_rows(old, one) == "" and old.fingerprint() == one.fingerprint()
    assert "rows_per_type" in schema_lib.other_rows(dataclasses.replace(old, **counts), one)


def test_a_vocabulary_of_another_preparation_is_not_taken(tmp_path):
    schema = make(tmp_path / "a")
    assert encode.load_vocabularies(schema, tmp_path / "a" / "data")["user"].rows == 10
    make(tmp_path / "b", seed=1)
    put(tmp_path / "b/data/vocabulary", tmp_path / "a/data/vocabulary")
    with pytest.raises(UserError, match=r"user.parquet: its values have the digest .* start again"):
        encode.load_vocabularies(schema, tmp_path / "a" / "data")


def test_the_truth_is_of_the_rows(tmp_path):
    for seed in (0, 1):
        c = config_lib.default()
        c.prepare.format, c.data.dir = "synthetic", str(tmp_path / f"{seed}")
        c.prepare.synthetic.rows, c.prepare.synthetic.seed = (300, 100, 100), seed
        preparation.prepare(c)
    split = shards.open_split(tmp_path / "0", "test")
    truth = predictions.read_truth(split)
    assert truth is not None and len(truth["p"]) == 100

    path = tmp_path / "0" / "test" / "truth.parquet"
    shutil.copy(tmp_path / "1" / "test" / "truth.parquet", path)
    with pytest.raises(UserError, match="truth.parquet: not of the rows that were scored"):
        predictions.read_truth(split)
    path.unlink()
    assert predictions.read_truth(split) is None
    put(tmp_path / "1" / "test", tmp_path / "0" / "test")
    path.unlink()
    with pytest.raises(UserError, match="test: not as it was when it was opened"):
        predictions.read_truth(split)


def test_a_disk_that_cannot_be_read_is_not_called_damage(tmp_path, monkeypatch):
    """It is no mistake of a sweep's run, which would have failed, nor mended by another prepare."""
    schema = make(tmp_path / "a")
    split = shards.open_split(tmp_path / "a" / "data", "train")
    parquet.write(table(ROWS), split.path / "truth.parquet")

    def refuse(*_, **__):
        raise OSError("Error reading bytes from file. Detail: [errno 5] Input/output error")

    monkeypatch.setattr(parquet, "open_file", refuse)
    for name, read in (
        ("part-00000", lambda: split.read_row_group(0, None)),
        ("part-00000", lambda: shards.open_split(split.path.parent, "train")),
        ("truth", lambda: predictions.read_truth(split)),
        ("truth", lambda: parquet.read(split.path / "truth.parquet", None, "prepare again")),
        ("user", lambda: encode.load_vocabularies(schema, split.path.parent)),
    ):
        with pytest.raises(FileError, match=f"{name}.parquet: cannot be read .Input.*look at the"):
            read()


def test_shards_that_another_program_has_made_meanwhile_are_kept(tmp_path):
    c = config_lib.default()
    c.prepare.format, c.data.dir = "synthetic", str(tmp_path / "data")
    c.prepare.synthetic.rows = (300, 100, 100)
    preparation.prepare_missing(c)
    made = (tmp_path / "data" / "schema.json").stat().st_ino
    preparation.prepare_missing(c)
    assert (tmp_path / "data" / "schema.json").stat().st_ino == made
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_split_that_was_not_prepared_with_the_others_is_not_opened(tmp_path):
    schema = dataclasses.replace(SCHEMA, digests={})
    for name in ("train", "valid", "test"):
        write(tmp_path, table(ROWS), split=name)
    kept = shards.digests(tmp_path)
    without_test = {name: kept[name] for name in ("train", "valid")}
    dataclasses.replace(schema, digests=without_test).save(tmp_path)
    assert shards.open_split(tmp_path, "valid").num_rows == 4
    with pytest.raises(UserError, match="test: not of the preparation of its schema.json"):
        shards.open_split(tmp_path, "test")


def test_a_link_to_the_data_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with directories.whole(tmp_path / "link") as new:
        (new / "x").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "x").exists()


OTHER = [("digests", None), ("name", 1), ("recipe", []), ("has_weight", 0), ("types", [1])]
OTHER += [("rows_per_type", ["1"]), ("clicks_per_type", [1, 2]), ("days", [20240101])]
OTHER += [("unknown_per_slot", [{}]), ("unknown_per_slot", [0.1, 0.2]), ("rows_per_type", [-1])]


@pytest.mark.parametrize("field, value", OTHER)
def test_a_schema_of_other_types_is_none(tmp_path, field, value):
    body = Schema("x", (Slot("s", "g", rows=9),)).to_json()
    files.write_json(tmp_path / "schema.json", body | {field: value})
    with pytest.raises(UserError, match=f"schema.json: not a schema .{field} is .*; prepare again"):
        schema_lib.load(tmp_path)
    counts = {"rows_per_type": [1], "clicks_per_type": [2]}
    files.write_json(tmp_path / "schema.json", body | counts)
    with pytest.raises(UserError, match="schema.json: not a schema .a type has more clicks"):
        schema_lib.load(tmp_path)
    files.write_json(tmp_path / "schema.json", body | {"slots": []})
    with pytest.raises(UserError, match="schema.json: not a schema .schema 'x': it has no slot"):
        schema_lib.load(tmp_path)
    slots = [body["slots"][0] | {"rows": "9"}]
    files.write_json(tmp_path / "schema.json", body | {"slots": slots})
    with pytest.raises(UserError, match="not a schema .rows is '9'"):
        schema_lib.load(tmp_path)


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_a_full_disk_at_a_row_group_is_one_line(tmp_path, monkeypatch, num_groups):
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 4)

    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 100:  # behind the first bytes of the file
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(parquet, "open", lambda *_, **__: Full(), raising=False)
    with (
        pytest.raises(FileError, match="part-00000.parquet: cannot be written .No space left"),
        shards.Writer(tmp_path, "train", SCHEMA) as writer,
    ):
        for _ in range(num_groups):
            writer.write(table(ROWS))
    assert not (tmp_path / "train" / "_SUCCESS").exists()


@pytest.mark.parametrize("of_block", [False, True])
def test_a_row_group_that_cannot_be_written_ends_the_split(tmp_path, monkeypatch, of_block):
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 2)
    write_one = parquet.Writer.write

    def write_two(self, rows, *args):
        if self._rows >= 4:
            raise FileError("the disk is full")
        write_one(self, rows, *args)

    monkeypatch.setattr(parquet.Writer, "write", write_two)
    error = KeyError if of_block else FileError  # what the block raised comes first
    with pytest.raises(error), shards.Writer(tmp_path, "train", SCHEMA) as writer:
        writer.write(table(ROWS))
        writer.write(table(ROWS).slice(0, 2))
        if of_block:
            raise KeyError
    assert writer.num_rows == 4 and not (tmp_path / "train" / "_SUCCESS").exists()
