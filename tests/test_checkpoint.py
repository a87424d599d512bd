"""Checkpoints: what comes back, what a kill or a flipped byte does, and that saving disturbs nothing."""

import json
import threading

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from emofm_jax.errors import UserError
from emofm_jax.training import checkpoint


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: dict
    opt_state: dict
    owner: jax.Array
    done: bool
    epochs: int
    scale: float


def make_state(seed: int = 0, rows: int = 12) -> State:
    r = np.random.default_rng(seed)
    params = {
        "embedding": jnp.asarray(r.normal(size=(rows, 3)), jnp.float32),
        "network": {
            "head": {
                "kernel": jnp.asarray(r.normal(size=(2, 4)), jnp.bfloat16),
                "bias": jnp.zeros((0,)),
            }
        },
    }
    optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(1e-3))
    states = {key: optimizer.init(value) for key, value in params.items()}
    states = jax.tree.map(lambda x: x + jnp.asarray(r.integers(1, 5), x.dtype), states)
    return State(
        jnp.int32(seed),
        params,
        states,
        jnp.full(rows, 7, jnp.int32),
        bool(seed % 2),
        seed,
        seed / 3,
    )


def same(a, b) -> bool:
    """Whether two trees have one structure, and equal bits, shapes and dtypes of every leaf."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return all(
        np.asarray(x).dtype == np.asarray(y).dtype
        and np.shape(x) == np.shape(y)
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in pairs
    )


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_was_saved_comes_back(tmp_path):
    state = make_state(1)
    info = {
        "history": [{"auc": 0.1 + 0.2, "loss": float("inf")}],
        "position": [3, 2**40],
        "text": 'a, "xxh3": é',
    }
    checkpoint.save(tmp_path / "new" / "checkpoints", 1, state, info)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x,
        make_state(0),
    )
    back = checkpoint.restore(tmp_path / "new" / "checkpoints", abstract)
    assert back.info == info and back.step == 1 and same(back.state, state)
    like = make_state(2)
    back = checkpoint.restore(tmp_path / "new" / "checkpoints", like)
    assert same(back.state, state) and type(back.state.opt_state["embedding"]) is type(
        state.opt_state["embedding"]
    )
    assert [type(x) for x in (back.state.done, back.state.epochs, back.state.scale)] == [
        bool,
        int,
        float,
    ]
    assert back.state.scale == 1 / 3 and back.state.params["embedding"].flags.writeable


def test_the_file_is_plain_safetensors_under_flat_names(tmp_path):
    state = make_state(1)
    checkpoint.save(tmp_path, 5, state.replace(owner=()), {})
    tensors = safetensors.numpy.load_file(tmp_path / "step_5" / "state.safetensors")
    assert {"step", "params/embedding", "params/network/head/kernel", "scale"} < tensors.keys()
    assert "owner" not in tensors and "opt_state/embedding/1/inner_state/0/mu" in tensors
    np.testing.assert_array_equal(tensors["params/embedding"], state.params["embedding"])
    body = json.loads((tmp_path / "step_5" / "state.json").read_text())
    assert body["tree"]["params/network/head/kernel"] == ["bfloat16", [2, 4]] and body["step"] == 5


def test_a_part_is_read_alone(tmp_path):
    state = make_state(1)
    checkpoint.save(tmp_path, 1, state, {})
    like = {"params": make_state(2).params, "scale": 0.0}
    back = checkpoint.restore(tmp_path, like, only=("params", "scale")).state
    assert same(back, {"params": state.params, "scale": 1 / 3})
    with pytest.raises(UserError, match=r"\(\+\): - params/embedding float32\[12, 3\]"):
        checkpoint.restore(tmp_path, {"scale": 0.0}, only=("params", "scale"))


def test_a_name_that_begins_like_one_that_is_read_is_not(tmp_path):
    checkpoint.save(tmp_path, 1, {"owner": {"a": np.ones(1)}, "owners": np.full(2, 5.0)}, {})
    back = checkpoint.restore(tmp_path, {"owner": {"a": np.zeros(1)}}, only=("owner",)).state
    assert back == {"owner": {"a": np.ones(1)}}


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    state = {"x": np.zeros(3)}
    for step, best in ((2, 2), (10, 2), (100, 2), (110, 2)):
        checkpoint.save(tmp_path, step, state, {"step": step}, best_step=best)
    assert checkpoint.steps(tmp_path) == [2, 100, 110] and checkpoint.latest(tmp_path) == 110
    checkpoint.save(tmp_path, 120, state, {}, best_step=110)
    assert listing(tmp_path) == ["step_110", "step_120"]
    # A run that was taken back to an earlier step has no use for the later ones.
    checkpoint.save(tmp_path, 115, state, {}, best_step=110)
    assert listing(tmp_path) == ["step_110", "step_115"]
    # The best of what is yet to come is no exception.
    checkpoint.save(tmp_path, 105, state, {}, best_step=115)
    assert listing(tmp_path) == ["step_105"]


def test_the_same_step_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 7, {"x": np.full(3, value)}, {"value": value})
    back = checkpoint.restore(tmp_path, {"x": np.zeros(3)})
    assert back.info == {"value": 2.0} and back.state["x"].tolist() == [2.0] * 3
    assert listing(tmp_path) == ["step_7"]


def test_a_step_by_number_and_info_without_arrays(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": np.full(2, step)}, {"n": step})
    assert checkpoint.restore(tmp_path, {"x": np.zeros(2, int)}, step=1).state["x"].tolist() == [
        1,
        1,
    ]
    (tmp_path / "step_2" / "state.safetensors").unlink()
    assert checkpoint.read_info(tmp_path) == (2, {"n": 2}) and checkpoint.read_info(
        tmp_path, 1
    ) == (1, {"n": 1})
    with pytest.raises(UserError, match=r"no checkpoint of step 3; choose one of 1, 2"):
        checkpoint.restore(tmp_path, {"x": np.zeros(2)}, step=3)
    with pytest.raises(
        UserError, match=r"step_2: damaged checkpoint .*restore it, or move it away"
    ):
        checkpoint.restore(tmp_path, {"x": np.zeros(2, int)}, step=2)


def test_nothing_saved(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    with pytest.raises(UserError, match="no checkpoint; train first"):
        checkpoint.restore(tmp_path / "checkpoints", {})
    (tmp_path / "metrics.json").touch()
    with pytest.raises(
        UserError, match="no checkpoint; sweep --nocheckpoints keeps none; train it again"
    ):
        checkpoint.restore(tmp_path / "checkpoints", {})


def test_another_model_is_told_with_both_sides(tmp_path):
    checkpoint.save(
        tmp_path,
        1,
        {"same": np.zeros(2), "wide": np.zeros((2, 3), np.float32), "old": np.zeros(1)},
        {},
    )
    like = {
        "same": np.zeros(2),
        "wide": np.zeros((2, 4), np.float32),
        "new": {"a": np.zeros(1, np.int32)},
    }
    with pytest.raises(UserError) as caught:
        checkpoint.restore(tmp_path, like)
    message = str(caught.value)
    for part in (
        "- old float64[1]",
        "- wide float32[2, 3]",
        "+ wide float32[2, 4]",
        "+ new/a int32[1]",
    ):
        assert part in message
    assert "same" not in message and "\n" not in message


def test_two_leaves_of_one_name_are_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="same flat name"):
        checkpoint.save(tmp_path, 1, {"a": {"b": np.zeros(1)}, "a/b": np.zeros(1)}, {})


def test_saver_copies_before_the_state_is_donated(tmp_path):
    update = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    x = update(jnp.arange(1 << 16, dtype=jnp.float32))
    expected, address = np.array(x), x.unsafe_buffer_pointer()
    with jax.transfer_guard("disallow"), checkpoint.Saver(tmp_path) as saver:
        saver.save(1, {"x": x}, {})
        for _ in range(3):
            x = update(x)
        assert (
            x.unsafe_buffer_pointer() == address
        )  # donated in place: nothing holds a view of the buffer
        saver.wait()
    back = checkpoint.restore(tmp_path, {"x": np.zeros(1 << 16, np.float32)}).state["x"]
    np.testing.assert_array_equal(back, expected)
    assert not np.array_equal(np.asarray(x), expected)


def test_saver_keeps_the_info_of_the_moment(tmp_path, monkeypatch):
    gate, write = threading.Event(), checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda *a: (gate.wait(10), write(*a)))
    history, array = [1], np.ones(3)
    with checkpoint.Saver(tmp_path) as saver:
        saver.save(1, {"x": array}, {"history": history})
        history.append(2)
        array[:] = 5
        gate.set()
    back = checkpoint.restore(tmp_path, {"x": np.zeros(3)})
    assert back.info == {"history": [1]} and back.state["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("how", ["wait", "save", "exit"])
def test_saver_raises_at_the_next_call(tmp_path, how):
    (tmp_path / "file").write_text("")
    message = r"file/checkpoints/step_1: cannot be written \(Not a directory\)"
    with (
        pytest.raises(UserError, match=message),
        checkpoint.Saver(tmp_path / "file" / "checkpoints") as saver,
    ):
        saver.save(1, {"x": np.zeros(1)}, {})
        if how == "wait":
            saver.wait()
        elif how == "save":
            saver.save(2, {"x": np.zeros(1)}, {})


def test_saver_does_not_hide_what_failed_in_the_block(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ZeroDivisionError),
        checkpoint.Saver(tmp_path / "file" / "checkpoints") as saver,
    ):
        saver.save(1, {"x": np.zeros(1)}, {})
        raise ZeroDivisionError


def test_what_a_killed_save_had_yet_to_remove_can_be_removed_later(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, {"x": np.zeros(3)}, {}, best_step=10)
    assert checkpoint.steps(tmp_path) == [10, 20, 30]
    checkpoint.prune(tmp_path, 30, None)
    assert listing(tmp_path) == ["step_20", "step_30"]
