"""Permutation importance: 0 for what a model does not read, all of it where the weights are; the sample of rows."""

import types

import jax
import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from emofm_jax import config as config_lib
from emofm_jax.data import batches, shards
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.scoring import importance as importance_lib
from emofm_jax.training import predictions as predictions_lib
from emofm_jax.training import step as step_lib

ROWS = 3_000
SCHEMA = Schema(
    "planted",
    (
        Slot("user", "user", encoding="identity", rows=7),
        Slot("age", "user", kind="numeric", rows=2),
        Slot("tags", "item", kind="multi", encoding="identity", rows=9, max_length=3),
        Slot("item", "item", encoding="identity", rows=7),
        Slot("last", "item", encoding="identity", rows=7, share="item"),
    ),
    has_weight=True,
    rows_per_type=(ROWS,),
    clicks_per_type=(ROWS // 2,),
)
USER, AGE, TAGS, ITEM, LAST = range(5)


def table(seed=0, n=ROWS):
    """Rows of a shard; a bag has 0 to 3 tags, a tenth of the ages is missing."""
    r = np.random.default_rng(seed)
    age = np.where(r.random(n) < 0.1, np.nan, r.normal(size=n)).astype(np.float32)
    bags = [r.integers(0, 9, r.integers(0, 4)).tolist() for _ in range(n)]
    columns = {slot: pa.array(r.integers(0, 7, n), pa.int32()) for slot in ("user", "item", "last")}
    columns |= {"age": pa.array(age), "tags": pa.array(bags, pa.list_(pa.int32()))}
    columns |= {
        "label": pa.array(r.integers(0, 2, n), pa.int8()),
        "weight": pa.array(r.random(n), pa.float32()),
    }
    return pa.table(columns)


def planted(slots, seed=1):
    """Weights f32[V, 1] of a logistic regression that reads these slots only."""
    weights = np.zeros((SCHEMA.num_rows, 1), np.float32)
    for s in slots:
        first = SCHEMA.offsets[s]
        rows = slice(first, first + SCHEMA.slots[s].rows)
        weights[rows, 0] = np.random.default_rng((seed, s)).normal(0, 2, SCHEMA.slots[s].rows)
    return weights


@pytest.fixture(scope="module")
def score():
    """`score(weights) -> rows -> scores`: the LR of the package with these weights, through the evaluation step."""
    options = config_lib.default().model.to_dict() | {"name": "lr"}
    module = model_lib.make_model(SCHEMA, options)
    variables = model_lib.init(module, jax.random.key(0), SCHEMA)
    step = step_lib.make_eval_step(module, SCHEMA)
    parts = types.SimpleNamespace(
        devices=jax.local_devices(), schema=SCHEMA, eval_step=step, scoring_layout=None
    )

    def of(weights):
        params = {"embedding": weights, "network": variables["params"]}
        state = types.SimpleNamespace(params=params, stats={}, scored=lambda: (params, {}))
        return lambda rows: predictions_lib.score_rows(parts, state, rows, 1024)

    return of


def rows_of(score, seed=2):
    """Rows whose labels are drawn from the scores."""
    rows = batches.to_rows(table(seed), SCHEMA)
    p = score(rows)["p"]
    return rows._replace(label=(np.random.default_rng(seed).random(len(p)) < p).astype(np.float32))


@pytest.mark.parametrize("slot", [USER, AGE, TAGS])
def test_only_the_slot_that_the_model_reads_matters(score, slot):
    model = score(planted([slot]))
    rows = rows_of(model)
    found = importance_lib.importance(model, rows, SCHEMA, 0)
    assert found["slots"][0]["name"] == SCHEMA.slots[slot].name
    assert found["slots"][0]["auc_drop"] == pytest.approx(found["auc"] - 0.5, abs=0.03), (
        "all that was known"
    )
    assert found["slots"][0]["logloss_rise"] > 0.1
    for other in found["slots"][1:]:
        assert (other["auc_drop"], other["logloss_rise"]) == (0.0, 0.0), other["name"]
    logit = model(rows)["logit"].astype(np.float64)
    assert found["auc"] == pytest.approx(
        roc_auc_score(rows.label, logit, sample_weight=rows.weight), abs=1e-9
    )
    expected = log_loss(rows.label, 1 / (1 + np.exp(-logit)), sample_weight=rows.weight)
    assert found["logloss"] == pytest.approx(expected, abs=1e-6)


def test_slots_that_share_their_rows_are_permuted_apart(score):
    weights = planted([ITEM])
    model = score(weights)
    rows = batches.to_rows(table(3), SCHEMA)
    for slot, other in ((ITEM, LAST), (LAST, ITEM)):
        column = int(np.flatnonzero(SCHEMA.column_slots == slot)[0])
        # The labels follow one slot; the other, of the same table, is noise that the model reads as well.
        label = (weights[rows.ids[:, column], 0] > 0).astype(np.float32)
        found = importance_lib.importance(model, rows._replace(label=label), SCHEMA, 0)
        drops = {s["name"]: s["auc_drop"] for s in found["slots"]}
        assert drops[SCHEMA.slots[slot].name] > 0.2 and abs(drops[SCHEMA.slots[other].name]) < 0.05


def test_the_order_is_by_what_is_lost_and_a_seed_is_repeatable(score):
    model = score(planted([USER, AGE, TAGS, ITEM]))
    rows = rows_of(model)
    found = importance_lib.importance(model, rows, SCHEMA, 5)
    drops = [slot["auc_drop"] for slot in found["slots"]]
    assert drops == sorted(drops, reverse=True) and drops[-1] > 0
    assert {s["name"]: s["group"] for s in found["slots"]} == {
        s.name: s.group for s in SCHEMA.slots
    }
    assert (found["rows"], found["seed"]) == (ROWS, 5)
    assert importance_lib.importance(model, rows, SCHEMA, 5) == found
    assert importance_lib.importance(model, rows, SCHEMA, 6)["slots"] != found["slots"]


def test_a_permuted_slot_moves_as_a_whole_and_nothing_else_moves():
    rows = batches.to_rows(table(4, 200), SCHEMA)
    before = [None if a is None else a.copy() for a in rows]
    moved = importance_lib.permuted(rows, SCHEMA, TAGS, 0)
    own = np.flatnonzero(SCHEMA.column_slots == TAGS)
    rest = np.flatnonzero(SCHEMA.column_slots != TAGS)
    for name in ("ids", "value"):
        np.testing.assert_array_equal(getattr(moved, name)[:, rest], getattr(rows, name)[:, rest])
    bags = [np.concatenate([r.ids[:, own], r.value[:, own]], axis=1) for r in (rows, moved)]
    assert (bags[0] != bags[1]).any()
    np.testing.assert_array_equal(*(bag[np.lexsort(bag.T)] for bag in bags))
    for name in ("label", "ftype", "weight"):
        assert getattr(moved, name) is getattr(rows, name)
    for array, old in zip(rows, before):
        np.testing.assert_array_equal(array, old)

    def order(slot):  # of equal ids of one slot, in the columns of another
        same = rows._replace(ids=np.arange(len(rows.label))[:, None] + 0 * rows.ids)
        return importance_lib.permuted(same, SCHEMA, slot, 0).ids[
            :, np.flatnonzero(SCHEMA.column_slots == slot)[0]
        ]

    assert (order(TAGS) != order(ITEM)).any(), "each slot has an order of its own"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    before, shards.ROW_GROUP_ROWS = shards.ROW_GROUP_ROWS, 700
    with shards.Writer(directory, "test", SCHEMA) as writer:
        writer.write(table(7))
    with shards.Writer(directory, "empty", SCHEMA):
        pass
    SCHEMA.save(directory)
    yield shards.open_split(directory, "test")
    shards.ROW_GROUP_ROWS = before


def test_a_sample_is_drawn_from_all_rows_in_their_order(split):
    assert len(split.row_groups) == 5
    every = importance_lib.sample(split, 10**9, 0)
    expected = batches.to_rows(table(7), SCHEMA)
    for name in ("ids", "value", "label", "ftype", "weight"):
        np.testing.assert_array_equal(getattr(every, name), getattr(expected, name))
    some = importance_lib.sample(split, 1_000, 3)
    place = {row.tobytes(): i for i, row in enumerate(expected.weight[:, None])}
    drawn = np.array([place[w.tobytes()] for w in some.weight[:, None]])
    assert len(drawn) == 1_000 and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(some.ids, expected.ids[drawn])
    np.testing.assert_allclose(np.histogram(drawn, 3, (0, ROWS))[0], 333, atol=60)
    np.testing.assert_array_equal(importance_lib.sample(split, 1_000, 3).ids, some.ids)
    assert (importance_lib.sample(split, 1_000, 4).ids != some.ids).any()


def test_rows_without_an_auc_are_an_error(score, split):
    rows = batches.to_rows(table(5), SCHEMA)
    with pytest.raises(UserError, match="--importance: the 3,000 rows have one class"):
        importance_lib.importance(
            score(planted([])), rows._replace(label=np.zeros_like(rows.label)), SCHEMA, 0
        )
    with pytest.raises(UserError, match="empty: it has no rows"):
        importance_lib.sample(shards.open_split(split.path.parent, "empty"), 10, 0)
