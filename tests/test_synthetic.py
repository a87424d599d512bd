"""Synthetic data as it is written, its facts and the mistakes it names; tests/test_planted.py has the truth itself."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from sklearn.metrics import roc_auc_score

from emofm_jax import config
from emofm_jax.data import files, shards, synthetic
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.synthetic import facts as facts_lib
from emofm_jax.data.synthetic import truth as truth_lib
from emofm_jax.data.synthetic.population import Dials
from emofm_jax.errors import UserError

SMALL = (9_000, 300, 9_000)  # a chunk of 8192 rows and a part of one


def test_dials_are_those_of_the_configuration():
    ours = {
        k: tuple(v) if isinstance(v, tuple | list) else v
        for k, v in dataclasses.asdict(Dials()).items()
    }
    assert ours == config.default().prepare.synthetic.to_dict()


def test_facts_of_the_defaults():
    facts = facts_lib.measure(Dials(rows=(60_000, 1, 50_000)))
    assert 0.77 <= facts["bayes_auc"] <= 0.82
    assert 0.06 <= facts["click_rate"] <= 0.12
    assert facts["interactions"] >= 1 / 3
    assert facts["across_groups"] >= 1 / 2
    assert facts["known_type_auc"] - facts["bayes_auc"] >= 0.02
    assert facts["type_gap"] >= 0.15
    assert facts["distinct_ids"] >= 20_000
    shares, rates = ([facts[f"{key}_t{t}"] for t in range(1, 5)] for key in ("share", "rate"))
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1], atol=0.01)
    assert max(rates) > 1.5 * min(rates)
    assert np.dot(shares, rates) == pytest.approx(facts["click_rate"])


def test_noise_costs_auc_and_keeps_the_click_rate():
    quiet, noisy = (
        facts_lib.measure(Dials(rows=(1, 1, 20_000), noise=noise)) for noise in (0.0, 2.0)
    )
    assert noisy["bayes_auc"] < quiet["bayes_auc"] - 0.03
    assert noisy["click_rate"] == pytest.approx(quiet["click_rate"], abs=0.004)


def test_expected_auc_against_all_pairs():
    rng = np.random.default_rng(3)
    score, p = rng.standard_normal(60), rng.random(60)
    above = both = 0.0
    for i in range(60):
        for j in range(60):
            if i != j:
                both += p[i] * (1 - p[j])
                above += p[i] * (1 - p[j]) * (score[i] > score[j])
    assert facts_lib.expected_auc(score, p) == pytest.approx(above / both, abs=1e-12)


def _recipe(**dials):
    recipe = config.default().prepare.to_dict() | {"format": "synthetic"}
    recipe["synthetic"] |= {"rows": SMALL, **dials}
    return recipe


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(directory of the rows of `_recipe`, what writing them said)."""
    home = tmp_path_factory.mktemp("plain")
    return home, synthetic.write(_recipe(), home, "made", progress=False).to_json()


def test_written_shards_hold_the_rows_and_their_truth(plain):
    tmp_path, report = plain
    assert files.read_json(tmp_path / "prepare.json") == report
    schema = schema_lib.load(tmp_path)
    assert schema.groups == ("user", "scene", "ad", "session") and schema.num_slots >= 26
    assert sum(slot.kind == "multi" for slot in schema.slots) == 4
    assert {slot.encoding for slot in schema.slots} == {"identity"} and schema.row_id == ""
    for split, num_rows in zip(shards.SPLITS, SMALL):
        opened = shards.open_split(tmp_path, split, schema)
        table = opened.read_row_group(0, None)
        assert opened.num_rows == num_rows == report["splits"][split]["rows"]
        assert report["splits"][split]["clicks"] == sum(table["label"].to_pylist())
        if split == "train":
            assert not (tmp_path / split / "truth.parquet").exists()
            ftype, label = table["ftype"].to_numpy(), table["label"].to_numpy()
            assert schema.rows_per_type == (*(int((ftype == t).sum()) for t in range(4)), 0)
            assert schema.clicks_per_type == (*(int(label[ftype == t].sum()) for t in range(4)), 0)
            assert report["slots"]["user_id"]["distinct"] == len(
                np.unique(table["user_id"].to_numpy())
            )
    truth, start = pq.read_table(tmp_path / "test" / "truth.parquet"), 0
    assert truth.num_rows == table.num_rows == SMALL[2]
    for rows in truth_lib.make_rows(truth_lib.make_world(Dials(rows=SMALL)), "test"):
        part, true = (t.slice(start, len(rows.p)) for t in (table, truth))
        for name in ("p", "p_type", "p_given_type"):
            np.testing.assert_array_equal(np.array(true[name].to_pylist()), getattr(rows, name))
        for name in ("label", "ftype"):
            np.testing.assert_array_equal(part[name].to_numpy(), getattr(rows, name))
        for name, ids in rows.ids.items():
            if isinstance(ids, tuple):
                bags = [bag.tolist() for bag in np.split(ids[0], ids[1][1:-1])]
                assert part[name].to_pylist() == bags
            else:
                np.testing.assert_array_equal(part[name].to_numpy(), ids)
        start += len(rows.p)


def test_written_twice_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        dials = dict(seed=5, new_id_rate=0.1, rows=(9_000, 30, 30))
        synthetic.write(_recipe(**dials), tmp_path / name, "made", progress=False)
    for file in (
        "train/part-00000.parquet",
        "test/part-00000.parquet",
        "test/truth.parquet",
        "schema.json",
    ):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_untyped_data(tmp_path):
    recipe = _recipe(num_types=0, rows=(300, 30, 3_000)) | {"gauc_key": "user_id"}
    synthetic.write(recipe, tmp_path, "made", progress=False)
    schema = schema_lib.load(tmp_path)
    assert schema.types == () and len(schema.rows_per_type) == 1 == len(schema.clicks_per_type)
    table = shards.open_split(tmp_path, "test").read_row_group(0, None)
    assert "ftype" not in table.column_names
    np.testing.assert_array_equal(table["gauc_key"].to_numpy(), table["user_id"].to_numpy())
    truth = pq.read_table(tmp_path / "test" / "truth.parquet")
    assert truth.column_names == ["p"]
    assert roc_auc_score(table["label"].to_numpy(), truth["p"].to_numpy()) > 0.75


def test_progress_goes_to_stderr(tmp_path, capsys):
    synthetic.write(_recipe(rows=(10, 10, 10)), tmp_path, "made", progress=True)
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("synthetic: 30 of 30 rows\n")


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"rows": (10, 0, 10)}, "rows: (10, 0, 10) must be three positive numbers"),
        ({"rows": (10, 10)}, "rows: (10, 10) must be three positive numbers"),
        ({"num_types": -1}, "num_types: -1 must be between 0 and 127"),
        ({"type_strength": -0.5}, "type_strength: -0.5 is out of range"),
        ({"noise": float("nan")}, "noise: nan is out of range"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"new_id_rate": 1.5}, "new_id_rate: 1.5 is no share"),
        ({"hash_rows": 1}, "hash_rows: 1 must be at least 2"),
        (
            {"group_slots": (7, 7, 7)},
            "group_slots: (7, 7, 7) must be positive, of user, scene, ad, session",
        ),
        ({"group_slots": (7, 0, 7, 7)}, "group_slots: (7, 0, 7, 7) must be positive"),
        (
            {"unseen_type": "t9"},
            "unseen_type: 't9' cannot be left out of the types ['t1', 't2', 't3', 't4']",
        ),
        ({"unseen_type": "t1", "num_types": 1}, "unseen_type: 't1' cannot be left out"),
    ],
)
def test_mistakes_are_named(tmp_path, dials, message):
    with pytest.raises(UserError) as error:
        synthetic.write(_recipe(**dials), tmp_path / "made", "made", progress=False)
    assert str(error.value).startswith("config.prepare.synthetic." + message)
    assert "; " in str(error.value) or "must be" in str(error.value)
    assert not (tmp_path / "made").exists()


def test_gauc_key_must_be_a_slot_of_single_ids(tmp_path):
    with pytest.raises(
        UserError, match="gauc_key: 'clicked_items' is no slot of single ids; choose one"
    ):
        synthetic.write(
            _recipe() | {"gauc_key": "clicked_items"}, tmp_path / "made", "made", progress=False
        )


def test_what_is_written_of_the_same_rows(plain, tmp_path):
    """`group_slots` and `hash_rows` change columns, not labels or truth."""
    dials = {"group_slots": (1, 7, 9, 4), "hash_rows": 50}
    synthetic.write(_recipe(**dials), tmp_path, "made", progress=False)
    places = plain[0], tmp_path
    before, schema = (schema_lib.load(place) for place in places)
    assert schema.group_sizes == (1, 7, 9, 4) and schema.slots[0].name == "user_id"
    names = [slot.name for slot in schema.slots]
    assert names[8:17] == [s.name for s in before.slots[14:21]] + ["ad_noise_1", "ad_noise_2"]
    hashed = {slot.name for slot in schema.slots if slot.encoding == "hash"}
    assert hashed == {"user_id", "ad_id", "clicked_items"} and schema.slots[0].rows == 50
    for split in shards.SPLITS:
        a, b = (shards.open_split(place, split).read_row_group(0, None) for place in places)
        for name in ("label", "ftype", "page", "depth", "campaign"):
            assert a[name].equals(b[name])
        raw, rows = a["user_id"].to_numpy(), b["user_id"].to_numpy()
        digest = xxhash.xxh3_64_intdigest(str(int(raw[0]) - 1).encode(), schema.slots[0].seed)
        assert rows[0] == 1 + digest % 49
        assert (rows[raw == raw[0]] == rows[0]).all() and rows.min() >= 0 and rows.max() < 50
        bags = [t["clicked_items"].to_pylist() for t in (a, b)]
        assert [len(x) for x in bags[0]] == [len(x) for x in bags[1]] and bags[0] != bags[1]
        noise = b["ad_noise_1"].to_numpy()
        assert (
            noise.min() == 1
            and 100 < noise.max() <= 1000
            and not np.array_equal(noise, b["ad_noise_2"].to_numpy())
        )
        if split != "train":
            a, b = (pq.read_table(place / split / "truth.parquet") for place in places)
            assert a.equals(b)


def test_ids_of_noise_follow_zipf(tmp_path):
    dials = Dials(group_slots=(8, 7, 7, 7))
    schema = synthetic.make_schema(dials, "made", _recipe())
    ids = np.concatenate(
        [synthetic._noise(schema, dials, "train", c, 8192)["user_noise_1"] for c in range(10)]
    )
    expected = np.arange(1, 1001) ** -1.1 / (np.arange(1, 1001) ** -1.1).sum()
    found = np.bincount(ids, minlength=1001)[1:] / len(ids)
    assert np.abs(found - expected).max() < 0.006
