"""The planted truth against loops from its formula, the dials one by one, ids that hang together."""

import functools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from emofm_jax.data.synthetic import facts as facts_lib
from emofm_jax.data.synthetic import truth as truth_lib
from emofm_jax.data.synthetic.population import SLOTS, Dials

SMALL = (9_000, 300, 9_000)  # a chunk of 8192 rows and a part of one


@functools.cache
def _world(**dials):
    return truth_lib.make_world(Dials(**{"rows": SMALL, **dials}))


def _rows(split, **dials):
    """All rows of a split: ids (lists for bags) and the arrays of `planted.Rows`, joined over the chunks."""
    ids, chunks = {slot.name: [] for slot in SLOTS}, []
    for chunk in truth_lib.make_rows(_world(**dials), split):
        chunks.append(chunk)
        for name, value in chunk.ids.items():
            bags = isinstance(value, tuple)
            ids[name] += np.split(value[0], value[1][1:-1]) if bags else [value]
    ids = {
        slot.name: ids[slot.name] if slot.bag else np.concatenate(ids[slot.name]) for slot in SLOTS
    }
    joined = [
        np.concatenate([getattr(c, field) for c in chunks]) for field in truth_lib.Rows._fields[1:6]
    ]
    parts = tuple(np.concatenate(part) for part in zip(*(c.parts for c in chunks)))
    return truth_lib.Rows(ids, *joined, parts)


@pytest.fixture(scope="module")
def world():
    return _world()


@pytest.fixture(scope="module")
def rows():
    return _rows("test")


def test_interactions_stay_when_main_effects_are_fitted_away(world, rows):
    # By least squares on an indicator of every id of the slots that interact: what is left no sum of effects explains.
    names = {name for pair in truth_lib._WITHIN + truth_lib._ACROSS for name in pair}
    columns = [np.ones((len(rows.p), 1))]
    for slot in SLOTS:
        if slot.name in names:
            bags = rows.ids[slot.name] if slot.bag else [[k] for k in rows.ids[slot.name]]
            columns.append(
                np.stack([np.bincount(b, minlength=slot.size + 1) / max(len(b), 1) for b in bags])
            )
    design = np.concatenate(columns, 1)
    interactions, logit = rows.parts[1] + rows.parts[2], sum(rows.parts) + world.label.bias
    rest = interactions - design @ np.linalg.lstsq(design, interactions, rcond=None)[0]
    assert (rest.var(0) / logit.var(0) > 1 / 3).all()


def test_truth_follows_the_formula(world, rows):
    position = {slot.name: i for i, slot in enumerate(SLOTS)}
    chosen = [
        *range(12),
        8190,
        8191,
        8192,
        8999,
        next(i for i, b in enumerate(rows.ids["clicked_items"]) if not len(b)),
    ]
    for i in chosen:
        h = []
        for slot in SLOTS:
            table, value = world.latents[slot.name], rows.ids[slot.name][i]
            bag = list(value) if slot.bag else [value]
            h.append([sum(table[k][a] for k in bag) / max(len(bag), 1) for a in range(3)])

        def score(main, crosses, t, h=h):
            total = sum(main[s][a][t] * h[s][a] for s in range(len(SLOTS)) for a in range(3))
            for pairs, weights in crosses:
                for (left, right), matrix in zip(pairs, weights):
                    for a in range(3):
                        for b in range(3):
                            total += h[position[left]][a] * matrix[a][b][t] * h[position[right]][b]
            return total

        label, types = world.label, world.types
        crosses = [(truth_lib._WITHIN, label.within), (truth_lib._ACROSS, label.across)]
        given = [1 / (1 + np.exp(-score(label.main, crosses, t) - label.bias[t])) for t in range(4)]
        weight = [
            np.exp(score(types.main, [(truth_lib._TYPE_CROSSES, types.pairs)], t) + types.bias[t])
            for t in range(4)
        ]
        np.testing.assert_allclose(rows.p_given_type[i], given, rtol=1e-9)
        np.testing.assert_allclose(rows.p_type[i], np.array(weight) / sum(weight), rtol=1e-9)
        np.testing.assert_allclose(rows.p[i], np.dot(weight, given) / sum(weight), rtol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_labels_and_types_are_drawn_from_the_truth(noise):
    drawn = _rows("test", rows=(1, 1, 40_000), noise=noise)
    row_p = drawn.p_given_type[np.arange(40_000), drawn.ftype]
    for p in (drawn.p, row_p):  # deciles of the truth against clicks, within 4 standard deviations
        for part in np.array_split(np.argsort(p), 10):
            deviation = np.sqrt((p[part] * (1 - p[part])).sum())
            assert abs(drawn.label[part].sum() - p[part].sum()) < 4 * deviation
    for t in range(4):
        for part in np.array_split(np.argsort(drawn.p_type[:, t]), 5):
            p = drawn.p_type[part, t]
            assert abs((drawn.ftype[part] == t).sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    # 3,800 clicks: the standard deviation of the AUC is about 0.004.
    assert roc_auc_score(drawn.label, drawn.p) == pytest.approx(
        facts_lib.expected_auc(drawn.p, drawn.p), abs=0.016
    )


def test_noise_is_averaged_over():
    logits, noise = np.array([-6.0, -2.0, 0.0, 3.0]), 1.5
    grid = np.linspace(-12, 12, 20_001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    for logit, ours in zip(logits, truth_lib.expected_sigmoid(logits, noise)):
        assert ours == pytest.approx(
            np.trapezoid(density / (1 + np.exp(-logit - noise * grid)), grid), abs=1e-7
        )


def test_type_strength_zero_makes_types_alike():
    alike = _rows("test", type_strength=0.0)
    np.testing.assert_allclose(
        alike.p_given_type, alike.p_given_type[:, :1].repeat(4, 1), rtol=1e-9
    )
    assert alike.p_type.std(0).min() > 0.05


def test_type_strength_drives_types_apart(rows):
    strong = _rows("test", type_strength=3.0)
    agreement = [np.corrcoef(sum(r.parts).T)[np.triu_indices(4, 1)].mean() for r in (rows, strong)]
    assert agreement[1] < agreement[0] - 0.2


def test_cross_strength_scales_interactions_across_groups_only(rows):
    for strength in (0.0, 2.0):
        other = _rows("test", cross_strength=strength)
        np.testing.assert_array_equal(other.ids["user_id"], rows.ids["user_id"])
        np.testing.assert_allclose(other.parts[2], strength * rows.parts[2], atol=1e-12)
        np.testing.assert_allclose(other.parts[1], rows.parts[1], atol=1e-12)
    pairs = {
        kind: [tuple(_group(n) for n in pair) for pair in getattr(truth_lib, kind)]
        for kind in ("_WITHIN", "_ACROSS")
    }
    assert all(a == b for a, b in pairs["_WITHIN"]) and all(a != b for a, b in pairs["_ACROSS"])


def _group(name):
    return next(slot.group for slot in SLOTS if slot.name == name)


def test_drift_moves_the_test_rows_only(rows):
    for split in ("train", "valid"):
        still = _rows(split)
        np.testing.assert_array_equal(_rows(split, drift=0.5).p, still.p)
    test = _rows("test", drift=0.5)
    np.testing.assert_array_equal(test.p_type, rows.p_type)
    for new, old in zip(test.parts, rows.parts):
        np.testing.assert_allclose((new - old).std(0) / old.std(0), 0.5, rtol=0.15)
        assert all(abs(np.corrcoef((new - old)[:, t], old[:, t])[0, 1]) < 0.8 for t in range(4))


def test_new_ids_are_in_test_only_and_as_often_as_asked(rows):
    growing = [slot for slot in SLOTS if slot.grows]
    assert {slot.name for slot in growing} == {"user_id", "ad_id", "clicked_items", "search_terms"}
    for split, rate in (("train", 0.0), ("valid", 0.0), ("test", 0.2)):
        found = _rows(split, new_id_rate=0.2)
        for slot in SLOTS:
            ids = np.concatenate(found.ids[slot.name]) if slot.bag else found.ids[slot.name]
            expected = rate if slot.grows else 0.0
            assert (ids > slot.size).mean() == pytest.approx(expected, abs=0.02)
            assert ids.max() < len(_world(new_id_rate=0.2).latents[slot.name])
    np.testing.assert_array_equal(
        found.ids["campaign"], rows.ids["campaign"]
    )  # a new ad keeps its campaign


def test_unseen_type_is_in_test_only(rows):
    for split in ("train", "valid"):
        found = _rows(split, unseen_type="t2")
        assert set(found.ftype) == {0, 2, 3}
        assert (found.p_type[:, 1] == 0).all()
        np.testing.assert_allclose(found.p_type.sum(1), 1)
        np.testing.assert_allclose((found.p_type * found.p_given_type).sum(1), found.p)
    np.testing.assert_array_equal(_rows("test", unseen_type="t2").ftype, rows.ftype)


def test_rows_do_not_depend_on_how_many_are_asked_for(rows):
    few = _rows("test", rows=(1, 1, 8_195))
    for field in ("label", "ftype", "p", "p_given_type"):
        np.testing.assert_array_equal(getattr(few, field), getattr(rows, field)[:8_195])
    for slot in SLOTS:
        ours, theirs = few.ids[slot.name], rows.ids[slot.name][:8_195]
        if slot.bag:
            assert [len(bag) for bag in ours] == [len(bag) for bag in theirs]
            ours, theirs = np.concatenate(ours), np.concatenate(theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_seeds_and_splits_differ(rows):
    other = _rows("test", seed=1)
    assert (other.ids["user_id"] == rows.ids["user_id"]).mean() < 0.5
    assert not np.array_equal(_rows("valid").ids["hour"], rows.ids["hour"][:300])


def test_large_slots_are_zipf():
    drawn = _rows("train", rows=(60_000, 1, 1)).ids
    for name in ("user_id", "ad_id", "search_terms", "page", "device"):
        slot = next(s for s in SLOTS if s.name == name)
        counts = np.bincount(np.concatenate(drawn[name]) if slot.bag else drawn[name])[1:]
        rank = np.arange(3, 60)
        slope = np.polyfit(np.log(rank), np.log(np.sort(counts)[::-1][rank - 1]), 1)[0]
        assert 1.05 <= slot.zipf <= 1.2
        assert -slope == pytest.approx(slot.zipf, abs=0.06), name
    large = [slot for slot in SLOTS if slot.size >= 3_000]
    assert len(large) == 4 and all(1.05 <= slot.zipf <= 1.2 for slot in large)


def test_slots_hang_together(rows):
    ids = rows.ids
    for child, parent in (
        ("campaign", "ad_id"),
        ("advertiser", "campaign"),
        ("category", "advertiser"),
        ("os", "device"),
    ):
        known = {}
        for a, b in zip(ids[parent], ids[child]):
            assert parent == "device" and (a == 0 or b == 0) or known.setdefault(a, b) == b
    lengths = np.array([len(bag) for bag in ids["clicked_items"]])
    assert list(lengths) == [len(bag) for bag in ids["clicked_categories"]]
    assert lengths.min() == 0 and lengths.max() == 10 and 0.05 < (lengths == 0).mean() < 0.3
    assert (lengths != [len(bag) for bag in ids["search_terms"]]).mean() > 0.3
    np.testing.assert_array_equal(ids["last_category"] == 0, lengths == 0)
    for slot in SLOTS:
        if slot.missing:
            assert (ids[slot.name] == 0).mean() == pytest.approx(slot.missing, abs=0.02)
        elif not slot.bag and slot.name != "last_category":
            assert ids[slot.name].min() >= 1
    # The session tells of the user: chi squared of segment against clicked category, about 1 if independent.
    observed = np.zeros((24, 30))
    np.add.at(
        observed,
        (np.repeat(ids["segment"], lengths) - 1, np.concatenate(ids["clicked_categories"]) - 1),
        1,
    )
    observed = observed[:, observed.sum(0) > 0]
    expected = observed.sum(1, keepdims=True) * observed.sum(0) / observed.sum()
    assert ((observed - expected) ** 2 / expected).mean() > 3
