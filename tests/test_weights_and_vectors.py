"""Weighted ids and vectors as features, in batches and as embeddings, against loops in numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from emofm_jax.data import batches, features, shards
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.nn import embedding
from emofm_jax.scoring.compiled import Layout
from tests.reference import slots as reference

SCHEMA = Schema(
    "test",
    (
        Slot("user", "g", encoding="identity", rows=5, weighted=True),
        Slot("mean", "g", "multi", "identity", rows=6, max_length=3, weighted=True),
        Slot("sum", "g", "multi", "identity", 6, max_length=2, weighted=True, pooling="sum"),
        Slot("plain", "g", "multi", "identity", rows=6, max_length=2),
        Slot("image", "h", "vector", "identity", rows=5, length=4),
        Slot("price", "h", "numeric", "identity", rows=2),
        Slot("one", "h", "vector", "identity", rows=2, length=1),
    ),
)
NAN, F32, I32 = np.nan, np.float32, np.int32
FEATURES = {
    "user": np.array([0, 4, 1, 2], I32),
    "user:weight": np.array([1, 0.5, -2, 0], F32),
    "mean": np.array([[1, 5, 1], [0, 3, -1], [-1, -1, -1], [2, 4, -1]], I32),
    "mean:weight": np.array([[0.5, 2, 1], [1e30, 1e30, 0], [0, 0, 0], [0, 0, 0]], F32),
    "sum": np.array([[1, 2], [5, -1], [-1, -1], [3, 3]], I32),
    "sum:weight": np.array([[-1, 0.25], [2, 0], [0, 0], [1, -1]], F32),
    "plain": np.array([[1, 2], [3, -1], [-1, -1], [0, 5]], I32),
    "image": np.array([[1, -2, 0.5, 0], [NAN] * 4, [0] * 4, [3, 3, 3, 3]], F32),
    "price": np.array([1.5, NAN, 0, -2], F32),
    "one": np.array([[1.5], [NAN], [0], [-2]], F32),
}
# The table of a shard that holds them.
TABLE = {
    "user": [(0, 1), (4, 0.5), (1, -2), (2, 0)],
    "mean": [[(1, 0.5), (5, 2), (1, 1)], [(0, 1e30), (3, 1e30)], [], [(2, 0), (4, 0)]],
    "sum": [[(1, -1), (2, 0.25)], [(5, 2)], [], [(3, 1), (3, -1)]],
    "plain": [[1, 2], [3], [], [0, 5]],
    "image": [[1, -2, 0.5, 0], None, [0] * 4, [3, 3, 3, 3]],
    "price": [1.5, None, 0, -2],
    "one": [[1.5], None, [0], [-2]],
    "label": [0, 1, 0, 1],
}


@jax.jit
def compiled_valid(given):
    """Which of the values fit, as a program finds it."""
    return features.pack(SCHEMA, given, jnp)[2]


def embed(schema, given, table):
    ids, value, _ = features.pack(schema, given, jnp)
    rows, found = embedding.read(table, ids, schema.vectors)
    assert jax.tree.structure(rows) == jax.tree.structure(found)
    return embedding.embed(found, ids, value, schema.slot_widths, schema.vectors)


def test_the_vectors_of_slots_are_those_of_the_reference():
    table = np.random.default_rng(0).normal(size=(SCHEMA.num_rows, 3)).astype(F32)
    pairs = zip(SCHEMA.slots, SCHEMA.offsets)
    own = {slot.name: table[first : first + slot.rows].astype(float) for slot, first in pairs}
    bag = lambda name, mean: reference.weighted_bag(
        own[name], FEATURES[name], FEATURES[f"{name}:weight"], mean
    )
    ones = np.ones((4, 2))
    wanted = [
        own["user"][FEATURES["user"]] * FEATURES["user:weight"][:, None],
        bag("mean", True),
        bag("sum", False),
        reference.weighted_bag(own["plain"], FEATURES["plain"], ones, True),
        *(reference.vector(own[name], FEATURES[name]) for name in ("image", "one")),
    ]
    number = reference.vector(own["price"], FEATURES["price"][:, None])
    wanted = np.stack([*wanted[:5], number, wanted[5]], axis=1)
    found = jax.jit(lambda f: embed(SCHEMA, f, table))(FEATURES)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


def test_shards_hold_them_and_batches_are_packed_features():
    columns = shards.columns(SCHEMA)
    of_slot = {name: pa.array(TABLE[name], kind) for name, kind in columns.items()}
    table = pa.table(of_slot, schema=shards.arrow_schema(SCHEMA))
    for each in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        found = features.from_table(each, SCHEMA)
        assert list(found) == [array.name for array in features.arrays(SCHEMA)] == list(FEATURES)
        for name, x in FEATURES.items():
            np.testing.assert_array_equal(found[name], x, err_msg=name)
            assert found[name].dtype == x.dtype
    rows = batches.to_rows(table, SCHEMA)
    ids, value, valid = features.pack(SCHEMA, FEATURES)
    assert valid.all()
    np.testing.assert_array_equal(rows.ids, ids)
    np.testing.assert_array_equal(rows.value[ids < SCHEMA.num_rows], value[ids < SCHEMA.num_rows])
    assert np.isfinite(rows.value).all()


def test_equal_weights_are_as_no_weights():
    bag = dataclasses.replace(SCHEMA.slots[1], max_length=7)
    plain = dataclasses.replace(bag, weighted=False)
    ids = features.example(Schema("x", (plain,)), 50)["mean"]
    for weight in (1, 0.3, 1e30):
        given = {"mean": ids, "mean:weight": np.full(ids.shape, weight, F32)}
        packed = features.pack(Schema("x", (bag,)), given)[1]
        there = ids >= 0
        expected = features.pack(Schema("x", (plain,)), {"mean": ids})[1]
        np.testing.assert_allclose(packed[there], expected[there], rtol=2e-7)


def test_a_vector_of_one_number_is_a_number():
    table = np.random.default_rng(1).normal(size=(SCHEMA.num_rows, 3)).astype(F32)
    first, second = SCHEMA.offsets[-2:]
    table[second : second + 2] = table[first : first + 2]
    e = jax.jit(lambda f: embed(SCHEMA, f, table))(FEATURES)
    np.testing.assert_array_equal(e[:, -1], e[:, -2])


# A feature that does not fit, the row of the mistake, and what is said of it.
MISTAKES = [
    (
        "user:weight",
        1,
        np.inf,
        "slot 'user', row 1: the weight inf must be between -1e\\+30 and 1e\\+30; ",
    ),
    ("user:weight", 0, NAN, "slot 'user', row 0: the weight nan must be between -1e"),
    (
        "mean:weight",
        (2, 1),
        -1.0,
        "the weight -1.0 must be between 0 and 1e.30, as pooling is mean",
    ),
    ("mean:weight", (0, 1), NAN, "slot 'mean', row 0: the weight nan must be between 0 and"),
    ("mean:weight", (1, 1), 1.1e30, "slot 'mean', row 1: the weight 1.1.* must be between 0 and"),
    ("sum:weight", (3, 0), -1.1e30, "slot 'sum', row 3: the weight -1.1.* must be between -1e"),
    ("mean", (0, 1), 6, r"slot 'mean', row 0: the id 6 is out of range; its ids are 0 .. 5, -1"),
    ("image", (0, 3), NAN, "slot 'image', row 0: nan is not finite; its numbers must be finite,"),
    ("image", (3, 1), np.inf, "slot 'image', row 3: inf is not finite"),
    ("one", (0, 0), np.inf, "slot 'one', row 0: inf is not finite"),
]


@pytest.mark.parametrize("name, place, value, said", MISTAKES)
def test_what_does_not_fit_is_named_by_every_way_in(name, place, value, said):
    given = {k: x.copy() for k, x in FEATURES.items()}
    given[name][place] = value
    valid = features.pack(SCHEMA, given)[2]
    row = place if isinstance(place, int) else place[0]
    assert valid.all(axis=1).tolist() == [i != row for i in range(4)]
    np.testing.assert_array_equal(valid, compiled_valid(given))
    with pytest.raises(UserError, match=said):
        features.check_ids(SCHEMA, given, valid)
    layout = Layout(SCHEMA)
    assert layout.pack(given) is None
    kept = {k: np.delete(x, row, axis=0) for k, x in given.items()}
    assert layout.pack(kept) is not None


def test_one_matrix_holds_the_features():
    layout = Layout(SCHEMA)
    for given in (FEATURES, {k: x[:1] for k, x in FEATURES.items()}):
        back = layout.unpack(layout.pack(given))
        for name, x in given.items():
            np.testing.assert_array_equal(back[name], x, err_msg=name)
    examples = features.example(SCHEMA, 300)
    assert features.check(SCHEMA, examples) == 300 and layout.pack(examples) is not None
    assert features.pack(SCHEMA, examples)[2].all()


def test_names_dtypes_and_shapes_are_checked():
    features.check(SCHEMA, FEATURES)
    without = {k: x for k, x in FEATURES.items() if k != "mean:weight"}
    with pytest.raises(UserError, match="1 of the 10 arrays of 'test' are absent: 'mean:weight'"):
        features.check(SCHEMA, without)
    short = FEATURES | {"mean:weight": FEATURES["mean:weight"][:, :2]}
    said = r"slot 'mean:weight' has shape \(4, 2\), it must be f32\[b, 3\]: .* filled up with 0"
    with pytest.raises(UserError, match=said):
        features.check(SCHEMA, short)
    assert Layout(SCHEMA).pack(short) is None
    with pytest.raises(UserError, match=r"'image' is float64\[4, 4\], it must be f32\[b, 4\]"):
        features.check(SCHEMA, FEATURES | {"image": FEATURES["image"].astype(float)})
    signature = features.signature(SCHEMA)
    assert list(signature) == list(FEATURES)
    assert signature["mean:weight"] == {
        "dtype": "float32",
        "shape": ["b", 3],
        "kind": "weight",
        "rows": 6,
        "missing": "0 from the end of the bag on",
    }
    assert (signature["image"]["shape"], signature["image"]["missing"]) == (["b", 4], "NaN")


def test_padding_and_unknown_values():
    padded = features.pad(FEATURES, SCHEMA, 6)
    assert features.check(SCHEMA, padded) == 6 and features.pack(SCHEMA, padded)[2].all()
    by_features, by_ids = features.UnknownCounter(SCHEMA), features.UnknownCounter(SCHEMA)
    by_features.add(FEATURES)
    by_ids.add_ids(features.pack(SCHEMA, FEATURES)[0][None])
    assert by_features.shares() == by_ids.shares()
    assert by_ids.shares()["image"] == by_ids.shares()["price"] == 0.25
    assert by_ids.shares()["mean"] == 1 / 7


def test_a_vector_starts_at_the_size_of_any_other_slot():
    length, dim = 400, 64
    slots = (
        Slot("user", "g", encoding="identity", rows=3000),
        Slot("image", "g", "vector", "identity", rows=length + 1, length=length),
    )
    schema = Schema("test", slots)
    make = lambda vectors: embedding.init_table(
        jax.random.key(0), schema.offsets, schema.num_rows, dim, 0.02, vectors
    )
    table, before = np.array(make(schema.vectors)), np.array(make(()))
    assert schema.vectors == ((1, 3000, length),)
    np.testing.assert_array_equal(table[:3000], before[:3000])
    np.testing.assert_allclose(table[3000:], before[3000:] / np.sqrt(length), rtol=1e-6)
    given = np.random.default_rng(0).normal(size=(500, length)).astype(F32)
    assert reference.vector(table[3000:], given).std() == pytest.approx(0.02, rel=0.05)
    assert not table[[0, 3000]].any()


def test_a_product_with_a_vectors_rows_is_their_look_up():
    """The same embeddings, gradients of the rows and rows that occur, whatever the batch misses."""
    table = np.random.default_rng(2).normal(size=(SCHEMA.num_rows, 3)).astype(F32)
    weights = np.random.default_rng(3).normal(size=(4, 7, 3)).astype(F32)
    ids, value, _ = features.pack(SCHEMA, FEATURES)
    padding = np.full_like(ids, SCHEMA.num_rows)  # as behind the last rows of a split

    def summed(rows, grads):
        """(gradient of the table, rows that occur)."""
        total, occurs = np.zeros_like(table), set()
        for row, grad in zip(jax.tree.leaves(rows), jax.tree.leaves(grads)):
            row, grad = np.ravel(row), np.reshape(grad, (-1, 3))
            there = row < SCHEMA.num_rows
            np.add.at(total, row[there], grad[there])
            occurs |= set(row[there].tolist())
        return total, occurs

    @functools.partial(jax.jit, static_argnums=1)
    def sloped(given, vectors):
        """e, the rows that it is made of, and their slopes."""
        rows, occurrences = embedding.read(table, given, vectors)
        e = lambda x: embedding.embed(x, given, value, SCHEMA.slot_widths, vectors)
        slope = jax.grad(lambda x: (weights * e(x)).sum())(occurrences)
        return e(occurrences), rows, slope

    def both(given, vectors):
        """e, and what is summed of its slopes."""
        e, rows, slope = sloped(given, vectors)
        return e, *summed(rows, slope)

    for given in (ids, ids[[0, 2, 3, 0]], ids[[1] * 4], padding):
        ours, looked_up = both(given, SCHEMA.vectors), both(given, ())
        np.testing.assert_allclose(ours[0], looked_up[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours[1], looked_up[1], rtol=1e-5, atol=1e-6)
        assert ours[2] == looked_up[2]


def test_what_a_schema_cannot_be():
    slot = lambda **fields: Slot("x", "g", rows=5, **fields)
    for fields, said in (
        ({"kind": "vector"}, "slot 'x' is a vector of length 0; say how many numbers it has"),
        ({"kind": "numeric", "weighted": True}, "slot 'x' is numeric, and has no ids that could"),
        ({"keep": "middle"}, "slot 'x' has keep 'middle'; known: first, last"),
    ):
        with pytest.raises(UserError, match=said):
            Schema("test", (slot(**fields),))
    with pytest.raises(UserError, match="slot 'x:weight' has the name of another's weights"):
        Schema("test", (slot(weighted=True), Slot("x:weight", "g", rows=5)))


def test_fields_that_came_later_leave_the_fingerprint_alone():
    old = Schema("test", (Slot("x", "g", "multi", rows=5, max_length=3),))
    changes = {"keep": "last", "weighted": True, "null_values": ("0",)}
    prints = {old.fingerprint()}
    for field, value in changes.items():
        changed = dataclasses.replace(old.slots[0], **{field: value})
        schema = dataclasses.replace(old, slots=(changed,))
        assert Schema.from_json(schema.to_json()) == schema
        prints.add(schema.fingerprint())
    assert len(prints) == 4
    body = old.to_json()
    for field in (*changes, "length"):
        del body["slots"][0][field]
    assert Schema.from_json(body).fingerprint() == old.fingerprint()
