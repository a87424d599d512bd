"""The scorer: the figures of `evaluate`, pure under every transformation, ensembles, calibration, explanations."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

import emofm_jax
from emofm_jax import evaluate
from emofm_jax.data import features as features_lib
from emofm_jax.data import files, shards
from emofm_jax.errors import UserError
from emofm_jax.evaluation import calibration
from emofm_jax.scoring import scorer as scorer_lib
from emofm_jax.training import checkpoint


@pytest.fixture(scope="module")
def dnn(runs):
    """A model that is compiled at once, for what no model decides."""
    return emofm_jax.load_scorer(runs / "dnn")


@pytest.fixture(scope="module")
def wm(runs):
    """A typed model."""
    return emofm_jax.load_scorer(runs / "wm")


@pytest.fixture(scope="module")
def features(runs):
    """Of the first 40 rows of the test split."""
    return rows_of(runs / "data", 40)


def rows_of(data, num_rows):
    split = shards.open_split(data, "test")
    table = split.read_row_group(0, [slot.name for slot in split.schema.slots]).slice(0, num_rows)
    return features_lib.from_table(table, split.schema)


def close(found, wanted, tolerance=1e-6):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("run, data", [("wm", "data"), ("dnn", "data"), ("mine", "mine_data")])
def test_scores_are_those_of_evaluate(runs, run, data):
    scorer = emofm_jax.load_scorer(runs / run)
    table = pq.read_table(runs / run / "predictions" / "test.parquet")
    scores = scorer(rows_of(runs / data, table.num_rows))
    for name in {"p", "p_type", "p_given_type"} & set(table.column_names):
        wanted = np.stack(table[name].to_numpy())
        np.testing.assert_allclose(scores[name], wanted, atol=1e-6, rtol=0)
    assert ("p_type" in scores) == (run == "wm") and len(scores["p"]) == table.num_rows > 30


def test_the_best_checkpoint_is_taken_if_there_is_a_monitor(runs, tmp_path):
    """A run whose best state is the one before the last."""
    shutil.copytree(runs / "dnn", tmp_path / "run")
    directory = tmp_path / "run" / "checkpoints"
    best, info = checkpoint.read_info(directory)
    arrays = safetensors.numpy.load_file(directory / f"step_{best}" / "state.safetensors")
    later = arrays | {"params/embedding": arrays["params/embedding"] + 1}
    checkpoint.save(directory, best + 1, later, info | {"best_step": best}, best_step=best)

    paths = (tmp_path / "run", directory / f"step_{best}", directory / f"step_{best + 1}")
    taken, same, last = (emofm_jax.load_scorer(path).params["embedding"] for path in paths)
    np.testing.assert_array_equal(taken, same)
    np.testing.assert_allclose(last, taken + 1, rtol=1e-6)


def test_batch_size_padding_and_order_change_nothing(dnn, features):
    scorer, whole = dnn, dnn(features)
    for rows in ([3], [0, 7, 39], list(range(39, -1, -1))):
        close(
            scorer({k: x[rows] for k, x in features.items()}),
            {k: x[np.array(rows)] for k, x in whole.items()},
        )
    for batch_rows in (1, 3, 64):
        close(scorer.start(features, batch_rows)(), whole)
    close(
        scorer.start({k: x[:0] for k, x in features.items()}, 3)(),
        {k: x[:0] for k, x in whole.items()},
    )
    empty = scorer({k: x[:0] for k, x in features.items()})
    assert {k: x.shape for k, x in empty.items()} == {
        k: (0, *x.shape[1:]) for k, x in whole.items()
    }


def test_it_is_pure_under_every_transformation(dnn, wm, features):
    """Jitted where one operation after the other would be compiled on its own."""
    split = {k: x.reshape(5, 8, *x.shape[1:]) for k, x in features.items()}
    flat = lambda scores: {k: x.reshape(40, *x.shape[2:]) for k, x in scores.items()}
    whole, score = wm(features), functools.partial(wm.fn, wm.params)
    close(score(features), whole)
    close(jax.jit(score)(features), whole)
    close(flat(jax.jit(jax.vmap(score))(split)), whole)
    close(jax.jit(lambda f: wm(f))(features), whole)  # checked as far as it can be while traced

    whole, score = dnn(features), functools.partial(dnn.fn, dnn.params)
    one_device = {k: x[None] for k, x in features.items()}
    close(flat(jax.pmap(dnn.fn, in_axes=(None, 0))(dnn.params, one_device)), whole)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    specs = dict(mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P("data"))
    close(jax.jit(jax.shard_map(dnn.fn, **specs))(dnn.params, features), whole)
    close(flat(jax.lax.map(score, {k: jnp.asarray(x) for k, x in split.items()})), whole)


def test_the_gradient_goes_through_the_auxiliary_model_too(wm, features):
    e = wm.embed(wm.params, features)
    close(jax.jit(wm.fn_from_embeddings)(wm.params, e), wm(features))
    total = lambda params: wm.fn(params, features)["logit"].sum()
    grads = jax.jit(jax.grad(total))(wm.params)
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(grads["network"]["auxiliary"]))
    share = lambda e: wm.fn_from_embeddings(wm.params, e)["p_type"][:, 0].sum()
    assert np.any(np.asarray(jax.jit(jax.grad(share))(e)))  # training may end it before these


def test_the_second_call_compiles_nothing(runs, features):
    scorer = emofm_jax.load_scorer(runs / "dnn")
    fast = jax.jit(lambda params, f: scorer.fn(params, f)["p"])
    few = {k: x[:5] for k, x in features.items()}
    programs = scorer._compiled.of_few, scorer._compiled.of_many
    compiled = lambda: [program._cache_size() for program in (fast, *programs)]
    for _ in range(2):
        for rows in (few, features):
            fast(scorer.params, rows), scorer({k: x[::-1].copy() for k, x in rows.items()})
        assert compiled() == [2, 1, 1]
    close(scorer(few), {k: x[:5] for k, x in scorer(features).items()})


def test_the_signature_is_what_goes_in_and_comes_out(wm, features):
    inputs, outputs = wm.signature["inputs"], wm.signature["outputs"]
    assert {k: (x.dtype.name, x.ndim) for k, x in features.items()} == {
        k: (v["dtype"], len(v["shape"])) for k, v in inputs.items()
    }
    scores = wm(features)
    assert {k: ["b", *x.shape[1:]] for k, x in scores.items()} == {
        k: v["shape"] for k, v in outputs.items()
    }


def test_an_id_out_of_range_is_an_error_and_nan_where_none_can_be_raised(wm, features):
    bad = features | {"gender": features["gender"].copy()}
    bad["gender"][3] = 99
    with pytest.raises(UserError, match="slot 'gender', row 3: the id 99 is out of range"):
        wm(bad)
    scores = jax.jit(wm.fn)(wm.params, bad)
    for name, x in wm(features).items():
        assert np.isnan(scores[name][3]).all()
        np.testing.assert_allclose(np.delete(scores[name], 3, 0), np.delete(x, 3, 0), atol=1e-6)


def test_a_mistake_is_named_while_tracing(wm, features):
    with pytest.raises(UserError, match="are absent: 'city'"):
        jax.jit(wm.fn)(wm.params, {k: x for k, x in features.items() if k != "city"})
    with pytest.raises(UserError, match="slot 'city' is float32"):
        jax.jit(wm.fn)(wm.params, features | {"city": features["city"].astype(np.float32)})


@pytest.mark.parametrize("combine", ["logit", "p"])
def test_an_ensemble_is_an_average_and_a_scorer(runs, wm, features, combine):
    """Of a run and of an earlier state of it."""
    earlier = min((runs / "wm/checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))
    members = emofm_jax.load_scorer(earlier), wm
    both = emofm_jax.load_scorer([earlier, runs / "wm"], combine=combine)
    one, two = ({k: np.asarray(x, np.float64) for k, x in m(features).items()} for m in members)
    assert np.abs(one["p"] - two["p"]).max() > 1e-3
    logit_of, p_of = lambda p: np.log(p / (1 - p)), lambda z: 1 / (1 + np.exp(-z))
    if combine == "logit":
        logit = (one["logit"] + two["logit"]) / 2
        wanted = {"p": p_of(logit), "logit": logit}
        given = p_of((logit_of(one["p_given_type"]) + logit_of(two["p_given_type"])) / 2)
    else:
        p = (one["p"] + two["p"]) / 2
        wanted = {"p": p, "logit": logit_of(p)}
        given = (one["p_given_type"] + two["p_given_type"]) / 2
    wanted |= {"p_type": (one["p_type"] + two["p_type"]) / 2, "p_given_type": given}
    close(both(features), wanted, 3e-6)
    e = both.embed(both.params, features)
    close(jax.jit(both.fn_from_embeddings)(both.params, e), wanted, 3e-6)


def test_an_ensemble_of_one_is_named_as_it(runs):
    assert emofm_jax.load_scorer([runs / "dnn"]).names == (str(runs / "dnn"),)


def test_an_ensemble_of_sure_types_is_finite(runs, features):
    """In float32 p is 1 where the logit is above 17."""
    both = emofm_jax.load_scorer([runs / "wm", runs / "wm"])
    sure = lambda p: dict(
        logit=jnp.zeros(1),
        p=jnp.full(1, 0.5),
        p_type=jnp.ones((1, 1)),
        p_given_type=jnp.full((1, 1), p),
    )
    members = [
        dataclasses.replace(both, fn=lambda _, f, p=p: sure(p), params=()) for p in (1.0, 0.0)
    ]
    scores = scorer_lib._join(members, "logit").fn(((), ()), features)
    assert np.isfinite(scores["p_given_type"]).all() and 0 <= scores["p_given_type"][0, 0] <= 1


@pytest.mark.parametrize("combine", ["logit", "p"])
def test_a_typed_and_an_untyped_run_have_the_click_in_common(runs, features, combine):
    both = emofm_jax.load_scorer([runs / "wm", runs / "dnn"], combine=combine)
    scores = both(features)
    assert scores.keys() == {"p", "logit"}
    if combine == "logit":
        return
    explained = both.explain(features)
    np.testing.assert_allclose(explained["logit"], scores["logit"], atol=1e-5)
    np.testing.assert_allclose(
        explained["attribution"].sum(axis=1),
        explained["logit"] - explained["reference_logit"],
        atol=1e-3,
    )


@pytest.mark.parametrize("method", calibration.METHODS)
def test_a_calibrated_scorer(runs, features, tmp_path, method, capsys):
    shutil.copytree(runs / "wm", tmp_path / "run")
    assert (
        evaluate.main(["evaluate", f"--workdir={tmp_path / 'run'}", f"--calibrate={method}"]) == 0
    )
    plain, calibrated = (
        emofm_jax.load_scorer(tmp_path / "run", calibrated=flag) for flag in (False, True)
    )
    fitted = files.read_json(tmp_path / "run" / "calibration.json")["arrays"]
    logit = np.asarray(plain(features)["logit"], np.float64)
    if method == "platt":
        p = 1 / (1 + np.exp(-(fitted["slope"] * logit + fitted["intercept"])))
    else:
        p = np.interp(logit, fitted["x"], fitted["y"]).clip(1e-7, 1 - 1e-7)  # never certain
    scores = calibrated(features)
    np.testing.assert_allclose(scores["p"], p, atol=1e-6)
    np.testing.assert_allclose(scores["logit"], np.log(p / (1 - p)), atol=1e-3)
    np.testing.assert_array_equal(scores["p_given_type"], plain(features)["p_given_type"])
    assert np.abs(p - np.asarray(plain(features)["p"])).max() > 1e-3


def test_attributions_are_a_path_integral(runs, features):
    """Against numpy: the MLP written out, its gradient at 20,000 places of the path."""
    scorer = emofm_jax.load_scorer(runs / "dnn")
    found = scorer.explain(features, tolerance=1e-4)
    np.testing.assert_allclose(
        found["attribution"].sum(1), found["logit"] - found["reference_logit"], atol=1.1e-4
    )
    network = jax.tree.map(lambda x: np.asarray(x, np.float64), scorer.params["network"])
    layers = [
        jax.tree.map(np.squeeze, x)
        for x in (network["mlp"]["hidden_0"], network["mlp"]["tower"]["hidden_1"])
    ]
    e = np.asarray(scorer.embed(scorer.params, features), np.float64)
    for row in (0, 5):
        x, total, places = e[row].reshape(-1), 0.0, (np.arange(20_000) + 0.5) / 20_000
        h, back = places[:, None] * x, []
        for layer in layers:
            z = h @ layer["kernel"] + layer["bias"]
            h, back = np.maximum(z, 0), [*back, z > 0]
        grad = np.broadcast_to(network["head"]["kernel"].reshape(-1), h.shape)
        for layer, on in zip(layers[::-1], back[::-1]):
            grad = (grad * on) @ layer["kernel"].T
        total = grad.mean(axis=0) * x
        np.testing.assert_allclose(
            found["attribution"][row], total.reshape(e.shape[1:]).sum(1), atol=2e-4
        )


def test_numbers_and_a_calibration_are_explained_without_compiling_again(runs, tmp_path):
    shutil.copytree(runs / "mine", tmp_path / "run")
    steps = {"x": np.array([-9.0, -1.5, -1.49, 9.0]), "y": np.array([0.0, 0.1, 0.7, 1.0])}
    step = int(next((runs / "mine" / "checkpoints").glob("step_*")).name[5:])
    calibration.save(tmp_path / "run", calibration.Calibration("isotonic", steps), step, {})
    scorer = emofm_jax.load_scorer(tmp_path / "run", calibrated=True)
    features = features_lib.example(scorer.schema, 20)
    found = scorer.explain(features)
    assert np.isnan(features["price"]).any() and np.abs(found["gap"]).max() <= 1e-3
    np.testing.assert_allclose(
        found["logit"], emofm_jax.load_scorer(runs / "mine")(features)["logit"], atol=1e-6
    )
    compiled = scorer._measure.segment.func._cache_size()
    scorer.explain(features)
    assert scorer._measure.segment.func._cache_size() == compiled == 1


def test_attributions_against_other_rows(wm, features):
    scorer = wm
    one, other = ({k: x[rows] for k, x in features.items()} for rows in ([0, 1, 2], [7]))
    found = scorer.explain(one, other)
    assert (
        found["attribution"].shape == (3, scorer.schema.num_slots)
        and np.abs(found["gap"]).max() <= 1e-3
    )
    np.testing.assert_allclose(
        found["reference_logit"], np.repeat(scorer(other)["logit"], 3), atol=1e-6
    )
    same = [
        i
        for i, s in enumerate(scorer.schema.slots)
        if np.array_equal(one[s.name][0], other[s.name][0])
    ]
    assert same and not found["attribution"][0, same].any()  # a slot that is alike says nothing
    assert scorer.explain({k: x[:0] for k, x in features.items()})["attribution"].shape == (
        0,
        scorer.schema.num_slots,
    )
    with pytest.raises(
        UserError, match="reference: it has 2 rows, the features have 3; give 1 or 3"
    ):
        scorer.explain(one, {k: x[:2] for k, x in features.items()})


def test_raw_values_to_scores(runs):
    scorer = emofm_jax.load_scorer(runs / "mine")
    raw = dict(
        user=["u004", "new"],
        age=["18-24", None],
        item=["i013", "i1"],
        brand=["Dune", "?"],
        price=[103.72, None],
    )
    features = scorer.encode(
        raw | dict(tags=["science", None], hour=[1, 30], device=["tablet", "phone"])
    )
    assert np.isfinite(scorer(features)["p"]).all()
    assert (
        scorer.unknown_share(features)["user"] == 0.5
        and scorer.unknown_share(features)["tags"] == 0
    )
    with pytest.raises(UserError, match="slot 'user' is list, it must be an array"):
        scorer.unknown_share(raw | dict(tags=["a", "b"], hour=[1, 30], device=["tablet", "phone"]))


def test_a_scorer_can_be_jitted_and_compared(wm, features):
    few = {name: x[:3] for name, x in features.items()}
    np.testing.assert_allclose(jax.jit(wm)(few)["p"], wm(few)["p"], rtol=1e-5)
    assert wm == wm and len({wm, wm}) == 1


def test_what_cannot_be_loaded(runs, tmp_path):
    with pytest.raises(UserError, match="nowhere: holds no run"):
        emofm_jax.load_scorer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="config.json: it is a file; name the directory"):
        emofm_jax.load_scorer(runs / "wm" / "config.json")
    with pytest.raises(UserError, match="the list of runs is empty"):
        emofm_jax.load_scorer([])
    with pytest.raises(UserError, match="combine: 'mean' is not known; choose one of logit, p"):
        emofm_jax.load_scorer(runs / "wm", combine="mean")
    with pytest.raises(
        UserError, match="calibration.json: no such file, the run has no calibration; run"
    ):
        emofm_jax.load_scorer(runs / "wm", calibrated=True)
    with pytest.raises(
        UserError, match="ensemble: .*wm and .*mine differ in their schemas .*name 'tiny' against"
    ):
        emofm_jax.load_scorer([runs / "wm", runs / "mine"])


def test_weights_and_schema_of_different_runs(runs, tmp_path):
    shutil.copytree(runs / "wm", tmp_path / "run")
    schema = files.read_json(tmp_path / "run" / "schema.json")
    schema["slots"][0]["seed"] = 7  # the same shapes, other ids
    (tmp_path / "run" / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(
        UserError, match=r"schema.json: not the schema that .*step_\d+ was trained on"
    ):
        emofm_jax.load_scorer(tmp_path / "run")
    shutil.copy(runs / "mine" / "schema.json", tmp_path / "run")
    with pytest.raises(UserError, match="its state .* is not of this model"):
        emofm_jax.load_scorer(tmp_path / "run")
