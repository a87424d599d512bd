"""A weighted bag, a vector and the last elements of a bag, from raw rows to an export."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import emofm_jax
from emofm_jax import evaluate, export, predict, prepare, train
from emofm_jax.data import features as features_lib
from emofm_jax.data import files, shards
from emofm_jax.scoring import score
from tests.reference import slots as reference

EXPERIMENT = """
from emofm_jax import config


def get_config(arg=""):
    c = config.default()
    c.prepare.source, c.prepare.split, c.data.dir = "raw", "files", "data"
    c.prepare.groups = (("user", ("user", "seen")), ("item", ("likes", "image", "price")))
    c.prepare.slots = {
        "seen": {"kind": "multi", "keep": "last", "max_length": 3, "null_values": ("0",)},
        "likes": {"kind": "multi", "weighted": True, "max_length": 4, "encoding": "hash", "rows": 40},
        "image": {"kind": "vector", "length": 5},
        "price": {"kind": "numeric"},
    }
    c.model.name, c.model.hidden, c.model.embedding_dim = "dnn", (8,), 4
    c.data.batch_size = c.data.eval_batch_size = 64
    c.optim.embedding.learning_rate = c.optim.network.learning_rate = 0.05
    c.train.epochs = 12
    return c
"""
DIM, SLOTS = 4, ("user", "seen", "likes", "image", "price")


def make_rows(num_rows, seed):
    """Rows whose click follows the last item that was seen, the weights of the likes, and the image."""
    rng = np.random.default_rng(seed)
    seen = [rng.integers(1, 9, rng.integers(1, 9)).tolist() for _ in range(num_rows)]
    padded = [bag + [0] * (9 - len(bag)) for bag in seen]
    likes = [dict(zip("abc", rng.random(rng.integers(0, 4)).tolist())) for _ in range(num_rows)]
    image = rng.normal(size=(num_rows, 5)).astype(np.float32)
    last = np.array([bag[-1] > 4 for bag in seen])
    a = np.array([bag.get("a", 0) / (sum(bag.values()) or 1) for bag in likes])
    logit = 1.5 * (2 * last - 1) + 3 * (a - 0.3) + 1.5 * image[:, 1]
    table = {
        "label": (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
        "user": rng.integers(0, 30, num_rows),
        "seen": padded,
        "likes": pa.array([list(bag.items()) for bag in likes], pa.map_(pa.string(), pa.float64())),
        "image": pa.array([None if i % 9 == 0 else list(x) for i, x in enumerate(image)]),
        "price": rng.exponential(size=num_rows),
    }
    return pa.table(table)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Raw rows, and the run that was trained on them."""
    home = tmp_path_factory.mktemp("slots")
    (home / "raw").mkdir()
    for i, (split, num_rows) in enumerate((("train", 900), ("valid", 100), ("test", 400))):
        pq.write_table(make_rows(num_rows, i), home / "raw" / f"{split}.parquet")
    (home / "mine.py").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert prepare.main(["prepare", "--config=mine.py"]) == 0
        assert train.main(["train", "--config=mine.py", "--workdir=run"]) == 0
    return home


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def test_prepare_counts_them(here):
    slots = files.read_json(here / "data" / "prepare.json")["slots"]
    every = [
        pq.read_table(here / "raw" / f"{s}.parquet")["seen"] for s in ("train", "valid", "test")
    ]
    lengths = [sum(x > 0 for x in bag) for column in every for bag in column.to_pylist()]
    assert slots["seen"]["cut"] == pytest.approx(np.mean(np.array(lengths) > 3))
    assert slots["seen"]["notes"]["cut"][0] == np.count_nonzero(np.array(lengths) > 3)
    assert slots["image"]["unknown"]["train"] == pytest.approx(100 / 900)
    likes = pq.read_table(here / "raw" / "train.parquet")["likes"].to_pylist()
    weights = [w for bag in likes for _, w in bag]
    assert slots["likes"]["mean"] == pytest.approx(np.mean(weights))
    assert slots["seen"]["rows"] == 9 and slots["image"]["rows"] == 6  # 0 is no item


def test_what_is_read_from_the_shards_is_what_stands_in_the_rows(here):
    schema = emofm_jax.load_scorer("run").schema
    split = shards.open_split(here / "data", "test")
    table = pa.concat_tables([split.read_row_group(i, None) for i in range(len(split.row_groups))])
    features = features_lib.from_table(table, schema)
    raw = pq.read_table("raw/test.parquet").to_pylist()
    words = pq.read_table("data/vocabulary/seen.parquet")["value"].to_pylist()
    for i, row in enumerate(raw):
        last = [x for x in row["seen"] if x][-3:]
        assert [int(words[j - 1]) for j in features["seen"][i] if j >= 0] == last
        weights = [w for j, w in zip(features["likes"][i], features["likes:weight"][i]) if j >= 0]
        np.testing.assert_array_equal(weights, np.float32([w for _, w in row["likes"]]))
        image = [np.nan] * 5 if row["image"] is None else row["image"]
        np.testing.assert_array_equal(features["image"][i], np.float32(image))


def test_the_model_learns_from_them(here):
    report = files.read_json(here / "run" / "metrics.json")
    assert report["test"]["auc"] > 0.8
    assert evaluate.main(["evaluate", "--workdir=run", "--split=test", "--importance"]) == 0
    found = files.read_json(here / "run" / "predictions" / "test.importance.json")
    drops = {slot["name"]: slot["auc_drop"] for slot in found["slots"]}
    assert min(drops["seen"], drops["likes"], drops["image"]) > 0.02


def test_embeddings_are_those_of_the_reference(here):
    scorer = emofm_jax.load_scorer("run")
    features = scorer.encode(pq.read_table("raw/test.parquet").drop(["label"]))
    e = np.asarray(scorer.embed(scorer.params, features))
    table = np.asarray(scorer.params["embedding"], float)[:, :DIM]
    own = {
        slot.name: table[first : first + slot.rows]
        for slot, first in zip(scorer.schema.slots, scorer.schema.offsets)
    }
    ones = np.ones(features["seen"].shape)
    wanted = {
        "user": own["user"][features["user"]],
        "seen": reference.weighted_bag(own["seen"], features["seen"], ones, True),
        "likes": reference.weighted_bag(
            own["likes"], features["likes"], features["likes:weight"], True
        ),
        "image": reference.vector(own["image"], features["image"]),
        "price": reference.vector(own["price"], features["price"][:, None]),
    }
    for s, name in enumerate(SLOTS):
        np.testing.assert_allclose(e[:, s], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(own["image"]).min() > 0  # every row was trained, that of missing vectors too


def test_every_way_to_a_score_gives_the_same(here):
    assert evaluate.main(["evaluate", "--workdir=run", "--split=test"]) == 0
    wanted = pq.read_table("run/predictions/test.parquet")["p"].to_numpy()
    scorer = emofm_jax.load_scorer("run")
    raw = pq.read_table("raw/test.parquet").drop(["label"])
    features = scorer.encode(raw)
    same = lambda p: np.testing.assert_allclose(np.asarray(p), wanted, rtol=0, atol=1e-6)
    same(scorer(features)["p"])
    same(scorer.start(features, 64)()["p"])
    same(scorer.fn(scorer.params, features)["p"])
    same(
        [float(scorer({k: x[i : i + 1] for k, x in features.items()})["p"][0]) for i in range(400)]
    )

    for source in ("raw/test.parquet", "data/test"):
        flags = ["--workdir=run", f"--input={source}", "--output=scores.parquet"]
        assert predict.main(["predict", *flags]) == 0
        same(pq.read_table("scores.parquet")["p"])

    assert export.main(["export", "--workdir=run", "--output=artefact"]) == 0
    alone, loaded = score.load("artefact"), emofm_jax.load_scorer("artefact")
    same(alone(features)["p"])
    same(loaded(loaded.encode(raw))["p"])
    assert set(alone.signature["inputs"]) == {*SLOTS, "likes:weight"}


def test_attributions_add_up(here):
    scorer = emofm_jax.load_scorer("run")
    features = scorer.encode(pq.read_table("raw/test.parquet").drop(["label"]).slice(0, 20))
    found = scorer.explain(features)
    total = found["logit"] - found["reference_logit"]
    np.testing.assert_allclose(found["attribution"].sum(axis=1), total, atol=2e-3)
