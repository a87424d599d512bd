"""docs/cookbook.md: its blocks are run as they stand, one after the other, on small runs; what they give is checked."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import emofm_jax

TEXT = (Path(__file__).parents[1] / "docs" / "cookbook.md").read_text()


@pytest.fixture(scope="module")
def names(runs):
    """What the blocks have defined."""
    checkpoints = sorted(
        (runs / "wm" / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:])
    )
    places = {
        "data/quickstart": runs / "data",
        "runs/quickstart-1": checkpoints[0],
        "runs/quickstart": runs / "wm",
        "runs/mine": runs / "mine",
    }
    names = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        for name, path in places.items():
            block = block.replace(f'"{name}', f'"{path}')
        exec(compile(block, "cookbook.md", "exec"), names)
        names |= {
            f"{key}_{names.get('_block', 0)}": names[key] for key in ("p", "scores") if key in names
        }
        names["_block"] = names.get("_block", 0) + 1
    return names


def test_the_slate_is_ranked(names):
    slate = {k: np.repeat(x, 50, axis=0) for k, x in names["request"].items()} | names["ads"]
    p = np.asarray(names["scorer"](slate)["p"])
    assert (np.diff(p[names["order"]]) <= 1e-7).all() and len(
        set(np.asarray(names["order"]).tolist())
    ) == 50


def test_the_diverse_slate_is_greedy(names):
    slate = {k: np.repeat(x, 50, axis=0) for k, x in names["request"].items()} | names["ads"]
    value, category, taken = (
        np.array(names["scorer"](slate)["p"]),
        np.asarray(names["ads"]["category"]),
        [],
    )
    for _ in range(5):
        best = int(np.argmax(value))
        taken.append(best)
        value[category == category[best]] -= 0.05
        value[best] = -np.inf
    assert np.asarray(names["slate"]).tolist() == taken


def test_no_price_nearby_earns_more(names):
    shop, items, price = names["shop"], names["items"], np.asarray(names["price"])
    assert ((price >= 6) & (price <= 100)).all()
    earn = lambda price: (
        np.asarray(shop(items | {"price": np.log1p(price).astype(np.float32)})["p"]) * (price - 5)
    )
    np.testing.assert_allclose(earn(price), names["profit"], rtol=1e-4)
    assert (earn(price) > earn(np.full(3, 20.0))).all()
    for other in (price * 0.9, price * 1.1):
        assert (earn(np.clip(other, 6, 100)) <= earn(price) + 1e-3).all()


def test_devices_change_nothing(names):
    wanted = names["scorer"](names["features"])["p"]
    assert names["devices"] == jax.local_device_count()
    np.testing.assert_allclose(names["scores_4"]["p"].reshape(-1), wanted, atol=1e-6)
    np.testing.assert_allclose(names["scores_5"]["p"], wanted, atol=1e-6)


def test_the_counterfactual_is_a_loop_over_ads(names):
    scorer, features, ads = names["scorer"], names["features"], names["ads"]
    for k in (0, 49):
        shown = features | {name: np.repeat(x[k : k + 1], 256, axis=0) for name, x in ads.items()}
        np.testing.assert_allclose(names["p_6"][k], scorer(shown)["p"], atol=1e-6)
    assert names["regret"].shape == (256,) and (np.asarray(names["regret"][:50]) >= -1e-6).all()


def test_each_row_is_scored_by_its_arm(names):
    first, second = (np.asarray(arm(names["features"])["p"]) for arm in names["arms"])
    np.testing.assert_allclose(names["p_7"], np.where(names["arm"] == 0, first, second), atol=1e-6)
    assert np.abs(first - second).max() > 1e-4 and isinstance(names["arms"][1], emofm_jax.Scorer)
