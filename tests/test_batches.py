"""Batches: every row once, in an order that seed and epoch decide, found again after any number of rows."""

import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from emofm_jax.data import batches, shards
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast

SCHEMA = Schema(
    name="test",
    slots=(
        Slot("user", "user", rows=1000, encoding="identity"),
        Slot("tags", "item", kind="multi", rows=50, max_length=3, pooling="mean"),
        Slot("words", "item", kind="multi", rows=20, max_length=2, pooling="sum"),
        Slot("price", "item", kind="numeric", rows=2),
        Slot("owner", "item", rows=1000, encoding="identity", share="user"),
    ),
    types=("a", "b"),
    has_weight=True,
    has_gauc_key=True,
)


def write(directory, num_rows, row_group=None, monkeypatch=None):
    """`num_rows` rows; user = owner = the row's number."""
    if row_group:
        monkeypatch.setattr(shards, "ROW_GROUP_ROWS", row_group)
    tags = [[7] * (i % 5) if i % 7 else None for i in range(num_rows)]
    table = pa.table(
        {
            "user": np.arange(num_rows, dtype=np.int32) % 1000,
            "tags": pa.array(tags, pa.list_(pa.int32())),
            "words": pa.array([[1, 2, 3]] * num_rows, pa.list_(pa.int32())),
            "price": pa.array(
                [None if i % 3 == 0 else i / 2 for i in range(num_rows)], pa.float32()
            ),
            "owner": np.arange(num_rows, dtype=np.int32) % 1000,
            "label": np.arange(num_rows) % 2,
            "ftype": pa.array([None if i % 4 == 0 else i % 2 for i in range(num_rows)], pa.int8()),
            "weight": np.arange(num_rows) / 10,
            "gauc_key": np.arange(num_rows) + 10**15,
        }
    )
    with shards.Writer(directory, "train", SCHEMA) as writer:
        for start in range(0, num_rows, 13):
            writer.write(table.slice(start, 13))
    SCHEMA.save(directory)
    return shards.open_split(directory, "train")


def test_a_row_becomes_ids_and_values(tmp_path):
    (batch,) = batches.read(write(tmp_path, 6), 8)
    ids, value = batch.batch.ids[0], batch.batch.value[0]
    v, tags, words, price = 1000 + 50 + 20 + 2, 1000, 1050, 1070
    assert SCHEMA.num_rows == v and SCHEMA.num_columns == 1 + 3 + 2 + 1 + 1
    np.testing.assert_array_equal(
        ids[2], [2, tags + 7, tags + 7, v, words + 1, words + 2, price + 1, 2]
    )
    np.testing.assert_allclose(value[2], [1, 0.5, 0.5, 0.5, 1, 1, 1, 1])
    np.testing.assert_array_equal(ids[4, 1:4], [tags + 7] * 3)  # four tags, cut to three
    np.testing.assert_array_equal(ids[0, 1:4], [v] * 3)  # null bag
    np.testing.assert_array_equal(ids[5, 1:4], [v] * 3)  # empty bag
    assert ids[3, 6] == price and value[3, 6] == 1  # a missing number is row 0
    assert ids[1, 6] == price + 1 and value[1, 6] == 0.5
    np.testing.assert_array_equal(batch.batch.ftype[0], [-1, 1, 0, 1, -1, 1, -1, -1])
    np.testing.assert_array_equal(batch.batch.label[0], [0, 1, 0, 1, 0, 1, 0, 0])
    np.testing.assert_allclose(batch.batch.weight[0], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(ids[6:], v)
    assert batch.num_rows == 6 and batch.rows_done == 6
    np.testing.assert_array_equal(batch.rows.gauc_key, np.arange(6) + 10**15)


def users(host_batches):
    return np.concatenate([b.batch.ids.reshape(-1, 8)[: b.num_rows, 0] for b in host_batches])


@pytest.mark.parametrize("shuffle_rows", [0, 1, 100, 10_000])
@pytest.mark.parametrize("batch_size", [7, 64, 512])
def test_every_row_once(tmp_path, monkeypatch, shuffle_rows, batch_size):
    split = write(tmp_path, 500, 64, monkeypatch)
    assert len(split.row_groups) == 8
    got = list(batches.read(split, batch_size, shuffle_rows=shuffle_rows, seed=1))
    seen = users(got)
    np.testing.assert_array_equal(np.sort(seen), np.arange(500))
    assert all(b.num_rows == batch_size for b in got[:-1])
    assert [b.rows_done for b in got] == np.cumsum([b.num_rows for b in got]).tolist()
    assert (seen == np.arange(500)).all() == (shuffle_rows == 0)


def test_order_depends_on_seed_and_epoch_only(tmp_path, monkeypatch):
    split = write(tmp_path, 500, 64, monkeypatch)
    orders = {
        (seed, epoch): users(
            batches.read(split, 32, shuffle_rows=200, seed=seed, epoch=epoch)
        ).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    assert (
        users(batches.read(split, 32, shuffle_rows=200, seed=1, epoch=1)).tolist() == orders[1, 1]
    )
    assert (
        users(batches.read(split, 50, shuffle_rows=200, seed=1, epoch=1)).tolist() == orders[1, 1]
    )


def test_rows_of_a_window_stand_in_another_order_in_every_epoch(tmp_path):
    """One row group, so that only the order within the window can differ."""
    split = write(tmp_path, 300)
    assert len(split.row_groups) == 1
    orders = [
        users(batches.read(split, 32, shuffle_rows=1000, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 0))
    ]
    assert len(set(map(tuple, orders))) == 4


def test_row_groups_come_in_another_order_in_every_epoch(tmp_path, monkeypatch):
    """Windows of one row group: the first row of each tells which."""
    split = write(tmp_path, 500, 10, monkeypatch)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 0)):
        seen = users(batches.read(split, 10, shuffle_rows=1, seed=seed, epoch=epoch)) // 10
        np.testing.assert_array_equal(seen.reshape(50, 10), np.repeat(seen[::10, None], 10, axis=1))
        orders.append(seen[::10].tolist())
    assert len(set(map(tuple, orders))) == 4


def test_windows_of_an_epoch_do_not_share_their_order(tmp_path, monkeypatch):
    split = write(tmp_path, 500, 50, monkeypatch)
    within = users(batches.read(split, 50, shuffle_rows=1)).reshape(10, 50) % 50
    assert len(set(map(tuple, within.tolist()))) == 10


@pytest.mark.parametrize("shuffle_rows", [0, 130])
def test_goes_on_after_any_batch(tmp_path, monkeypatch, shuffle_rows):
    split = write(tmp_path, 500, 64, monkeypatch)
    whole = list(batches.read(split, 30, shuffle_rows=shuffle_rows, seed=3))
    for i, batch in enumerate(whole):
        rest = list(
            batches.read(split, 30, shuffle_rows=shuffle_rows, seed=3, skip_rows=batch.rows_done)
        )
        assert len(rest) == len(whole) - i - 1
        for a, b in zip(whole[i + 1 :], rest):
            assert a.rows_done == b.rows_done and a.num_rows == b.num_rows
            for x, y in zip(a.batch, b.batch):
                np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
@pytest.mark.parametrize("shuffle_rows", [0, 130])
def test_epochs_in_one_go_are_those_read_one_by_one(tmp_path, monkeypatch, shuffle_rows, process):
    """From the middle of one on, decoded in several threads."""
    monkeypatch.setattr(batches.engines, "num_cores", lambda: 8)
    split = write(tmp_path, 500, 64, monkeypatch)
    how = dict(shuffle_rows=shuffle_rows, window_rows=100, seed=3, process=process)
    done = list(batches.read(split, 30, epoch=1, **how))[2].rows_done
    apart = list(batches.read(split, 30, epoch=1, skip_rows=done, **how))
    apart += [x for epoch in (2, 3) for x in batches.read(split, 30, epoch=epoch, **how)]
    whole = list(batches.read(split, 30, epoch=1, num_epochs=3, skip_rows=done, **how))
    assert [x.rows_done for x in whole] == [x.rows_done for x in apart]
    for a, b in zip(whole, apart, strict=True):
        for x, y in zip(a.batch, b.batch):
            np.testing.assert_array_equal(x, y)


def test_devices_split_the_rows(tmp_path):
    split = write(tmp_path, 10)
    (one,), (four,) = batches.read(split, 12), batches.read(split, 12, num_devices=4)
    for a, b in zip(one.batch[:5], four.batch[:5]):
        assert b.shape[:2] == (4, 3)
        np.testing.assert_array_equal(a.reshape(b.shape), b)


@pytest.mark.parametrize("count, shuffle_rows", [(2, 130), (3, 130), (3, 0), (12, 1)])
def test_processes_share_the_rows_of_an_epoch(tmp_path, monkeypatch, count, shuffle_rows):
    """Uneven row groups, more processes than row groups: as many steps for all, each row once."""
    split = write(tmp_path, 300, 29, monkeypatch)  # ten groups of 29 rows, one of 10
    assert len(split.row_groups) == 11
    orders = set()
    for epoch in (0, 1):
        how = dict(shuffle_rows=shuffle_rows, seed=3, epoch=epoch)
        read = lambda i, how=how, **more: list(
            batches.read(split, 4 * count, process=(i, count), **how, **more)
        )
        of_all = [read(i) for i in range(count)]
        seed = 3 if shuffle_rows else None
        (steps,) = {len(of_one) for of_one in of_all}
        assert steps == batches.num_steps(
            split, 4 * count, num_processes=count, seed=seed, epoch=epoch
        )
        seen = np.concatenate([users(of_one) for of_one in of_all])
        assert sorted(seen) == list(range(300))
        orders.add(tuple(seen))
        done = [batch.rows_done for batch in of_all[0]]
        rows = np.array([[batch.num_rows for batch in of_one] for of_one in of_all])
        assert done == np.cumsum(rows.sum(axis=0)).tolist() and done[-1] == 300
        # Padding has weight 0, and any step is found again by each.
        assert all(b.batch.weight[0, b.num_rows :].sum() == 0 for of_one in of_all for b in of_one)
        for i, of_one in enumerate(of_all):
            rest = read(i, skip_rows=done[2])
            assert [users([b]).tolist() for b in rest] == [users([b]).tolist() for b in of_one[3:]]
    assert len(orders) == (2 if shuffle_rows else 1)


def test_prefetch_keeps_order_raises_and_ends():
    assert list(batches.prefetch(iter(range(100)), 3, lambda x: x * 2)) == list(range(0, 200, 2))

    def broken():
        yield 1
        raise ValueError("row 2")

    items = batches.prefetch(broken(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="row 2"):
        next(items)

    made = []
    items = batches.prefetch((made.append(i) or i for i in range(10**9)), 2)
    assert next(items) == 0
    items.close()
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 5
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_any_name_of_a_slot_and_a_damaged_count(tmp_path):
    schema = Schema(
        "test", (Slot("user.id", "u", rows=9), Slot("a/b é", "u", "multi", rows=5, max_length=2))
    )
    with shards.Writer(tmp_path, "train", schema) as writer:
        writer.write(pa.table({"user.id": [8, 0], "a/b é": [[4], None], "label": [0, 1]}))
    schema.save(tmp_path)
    (batch,) = batches.read(shards.open_split(tmp_path, "train"), 2)
    assert batch.batch.ids[0].tolist() == [[8, 13, 14], [0, 14, 14]]
    for text in ("{", "[1]", "{}"):
        (tmp_path / "train" / "_SUCCESS").write_text(text)
        with pytest.raises(UserError, match="_SUCCESS: not readable; prepare again"):
            shards.open_split(tmp_path, "train")
