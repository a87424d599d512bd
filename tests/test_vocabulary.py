"""Vocabularies against collections.Counter, and what is saved against what is read."""

import collections

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from emofm_jax.data import growth, vocabulary
from emofm_jax.data import values as values_lib
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "é", "aa", None, "9", "10"]), max_size=30),
        max_size=5,
    )
)
def test_ids_follow_the_counts(pieces):
    counter = vocabulary.Counter()
    for piece in pieces:
        add(counter, pa.array(piece, pa.string()))
    expected = collections.Counter(v for piece in pieces for v in piece if v is not None)
    order = sorted(
        (v for v in expected if expected[v] >= 2), key=lambda v: (-expected[v], v.encode())
    )
    found = growth.grow(counter.counts(), 2, day=1).vocabulary
    assert found.values.to_pylist() == order
    assert found.counts.to_pylist() == [expected[v] for v in order]
    assert found.rows == len(order) + 1
    asked = ["a", "b", "c", "é", "aa", "9", "10", "never"]
    ids = found.ids(pa.array(asked))
    assert ids.tolist() == [order.index(v) + 1 if v in order else 0 for v in asked]


def add(counter, column):
    found = values_lib.distinct(column)
    counter.add(found.text, found.counts())


def test_pieces_merge_when_there_are_many(monkeypatch):
    monkeypatch.setattr(vocabulary, "_MERGE_ROWS", 10)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 50, (40, 30)).astype(str)
    counter = vocabulary.Counter()
    for row in draws:
        add(counter, pa.array(row.tolist()))
        assert counter._pending_rows <= 60  # bounded by the distinct values, not by the rows
    found = growth.grow(counter.counts(), 1, day=1).vocabulary
    assert dict(zip(found.values.to_pylist(), found.counts.to_pylist())) == collections.Counter(
        draws.ravel().tolist()
    )
    # The index and the digest are built in pieces of 10 too.
    assert found.ids(found.values).tolist() == list(range(1, 51))
    assert (
        len({found.digest(), vocabulary.Vocabulary(found.values[::-1], found.counts).digest()}) == 2
    )


def test_values_that_collide_are_parted(monkeypatch):
    real = vocabulary.hash_values

    def colliding(values, seed):
        return real(values, seed) % np.uint64(3) if seed < 2 else real(values, seed)

    monkeypatch.setattr(vocabulary, "hash_values", colliding)
    values = pa.array([f"v{i}" for i in range(20)])
    found = vocabulary.Vocabulary(values, pa.array([1] * 20))
    assert found.ids(pa.array(["v19", "x", "v0"])).tolist() == [20, 0, 1]


def test_an_equal_hash_is_not_an_equal_value(monkeypatch):
    monkeypatch.setattr(
        vocabulary, "hash_values", lambda values, seed: np.full(len(values), 7, np.uint64)
    )
    found = vocabulary.Vocabulary(pa.array(["known"]), pa.array([1]))
    assert found.ids(pa.array(["unknown", "known"])).tolist() == [0, 1]


def test_hash_is_xxh3_of_the_utf8_bytes():
    values = ["", "x", "ünï", "a" * 300]
    for seed in (0, 5):
        expected = [xxhash.xxh3_64(v.encode(), seed=seed).intdigest() for v in values]
        assert vocabulary.hash_values(pa.array(values), seed).tolist() == expected


def test_save_and_load(tmp_path):
    counter = vocabulary.Counter()
    add(counter, pa.array(["b", "a", "b"]))
    ours = growth.grow(counter.counts(), 1, day=1).vocabulary
    ours.save(tmp_path, "shop/city")  # a name that is no file name
    theirs = vocabulary.load(tmp_path, "shop/city")
    assert theirs.values.equals(ours.values) and theirs.counts.equals(ours.counts)
    assert theirs.digest() == ours.digest()
    empty = growth.grow(vocabulary.Counter().counts(), 1, day=1).vocabulary
    assert empty.rows == 1 and empty.ids(pa.array(["a"])).tolist() == [0]


def test_names_in_any_script_that_are_too_long_for_a_file(tmp_path):
    one = lambda text: vocabulary.Vocabulary(pa.array([text]), pa.array([1]))
    names = ["年" * 40, "年" * 40 + "龄", "x" * 300, "x" * 301, "x" * 200]
    for name in names:
        one(name).save(tmp_path, name)
    assert [vocabulary.load(tmp_path, name).values[0].as_py() for name in names] == names
    # Release 0.1 wrote names of up to 247 bytes as they are.
    one("y").save(tmp_path, "y")
    (tmp_path / "vocabulary/y.parquet").rename(tmp_path / f"vocabulary/{'z' * 240}.parquet")
    assert vocabulary.load(tmp_path, "z" * 240).values[0].as_py() == "y"


def test_digest_knows_where_values_end():
    one, two = (
        vocabulary.Vocabulary(pa.array(v), pa.array([1, 1])) for v in (["ab", "c"], ["a", "bc"])
    )
    assert one.digest() != two.digest()


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match="vocabulary of slot 'user' is missing"):
        vocabulary.load(tmp_path, "user")
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "user.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        vocabulary.load(tmp_path, "user")
