"""Members: each sharing against numpy, gradients, equal members, a step, the scorer's p_std, bad inputs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from flax import linen as nn

import emofm_jax
from emofm_jax import config as config_lib
from emofm_jax.errors import UserError
from emofm_jax.evaluation import calibration
from emofm_jax.models import build as model_lib
from emofm_jax.models.members import SHARES, Members
from emofm_jax.nn import averaging, losses
from emofm_jax.scoring import row_files, write_artefact
from emofm_jax.scoring.network import Network
from emofm_jax.training import build, checkpoint
from tests import baseline_cases as baselines
from tests import model_cases as cases
from tests.reference import members as reference

K, D = 3, cases.DIM
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def make(share, name="dnn", of_types=(), **changes):
    """A small model with members and random variables of it."""
    small = {"activation": "relu", "members": K, "members_share": share, **changes}
    module = baselines.make(name, small, of_types)
    variables = cases.random_variables(module, cases.schema_of(of_types))
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return module, variables


def member(tree, m):
    return jax.tree.map(lambda x: np.asarray(x[m], np.float64), tree)


def logits_of(params, e, share):
    """[k, B] by the formulas."""
    found = []
    for m in range(K):
        own = member(params["members"], m)
        x = e[..., m * D : (m + 1) * D] if share == "none" else e
        if share == "factors":
            ours, kernel = own["own"], params["shared"]["mlp"]["hidden_0"]["kernel"]
            r, s = (own[key]["mlp"]["hidden_0"]["kernel"][0] for key in ("input", "output"))
        else:
            ours, r, s = own, 1.0, 1.0
            kernel = own["mlp"]["hidden_0"]["kernel"]
        layer = (np.asarray(kernel, np.float64)[0], ours["mlp"]["hidden_0"]["bias"][0], r, s)
        head = ours["head"]["kernel"], ours["head"]["bias"]
        found.append(reference.mlp([layer], head, x.reshape(len(x), -1).astype(np.float64)))
    return np.stack(found)


@pytest.mark.parametrize("share", SHARES)
def test_each_sharing_is_what_its_formula_says(share):
    module, variables = make(share)
    assert model_lib.table_width(module) == (K * D if share == "none" else D)
    e, *_ = baselines.rows_of(module)
    scores = baselines.predict(module, variables, e)
    p, logit, p_std = reference.averaged(logits_of(variables["params"], e, share))
    assert scores.keys() == {"p", "logit", "p_std"}
    close(scores["p"], p)
    close(scores["logit"], logit)
    close(scores["p_std"], p_std)
    assert p_std.min() > 1e-3


def test_members_start_apart():
    for share in SHARES:
        module = baselines.make("dnn", {"members": K, "members_share": share}, ())
        params = baselines.start(module)["params"]
        for leaf in jax.tree.leaves(params["members"]):
            alike = [np.array_equal(leaf[0], leaf[m]) for m in range(1, K)]
            assert not any(alike) or np.isin(leaf, (0.0, 1.0)).all() or leaf.ndim == 1
        if share == "factors":
            signs = params["members"]["input"]["mlp"]["hidden_0"]["kernel"]
            assert set(np.unique(signs)) == {-1.0, 1.0}


@pytest.mark.parametrize("share", SHARES)
def test_a_typed_model_mixes_types_within_a_member(share):
    module, variables = make(share, "wm", cases.TYPES, drop_type="cart", norm="batch")
    assert module.drop_type == 1
    e, _, _, weight = baselines.rows_of(module)
    scores = baselines.predict(module, variables, e)
    alone, normed = [], share == "factors"  # statistics: of one sharing, all have them alike
    stats = baselines.forward(module, variables, e, weight)[1] if normed else None
    for m in range(K):
        own = {"batch_stats": member(variables["batch_stats"]["members"], m)}
        own["params"] = alone_params(variables["params"], m, share)
        own = jax.tree.map(np.float32, own)
        x = e[..., m * D : (m + 1) * D] if share == "none" else e
        alone.append(baselines.predict(module.network, own, x))
        if not normed:
            continue
        updated = baselines.forward(module.network, own, x, weight)[1]["batch_stats"]
        jax.tree.map(close, member(stats["batch_stats"]["members"], m), updated)
    p, logit, p_std = reference.averaged(np.stack([np.float64(a["logit"]) for a in alone]))
    for name, wanted in (("p", p), ("logit", logit), ("p_std", p_std)):
        close(scores[name], wanted)
    close(scores["p_type"], np.mean([a["p_type"] for a in alone], axis=0))
    assert np.all(scores["p_type"][:, 1] == 0)


def alone_params(params, m, share):
    """Parameters of one member's network, kernels with its factors."""
    own = member(params["members"], m)
    if share != "factors":
        return own

    def join(shared, r, s):
        return np.asarray(shared, np.float64) * r[..., :, None] * s[..., None, :]

    kernels = jax.tree.map(join, params["shared"], own["input"], own["output"])

    def merged(a, b):
        if not isinstance(a, dict):
            return a
        both = {k: merged(a[k], b[k]) for k in a.keys() & b.keys()}
        return {**a, **b, **both}

    return merged(own["own"], kernels)


def test_one_member_is_the_network_itself():
    for name, of in (("dnn", ()), ("wm", cases.TYPES)):
        changes = {"members": 1, "members_share": "table"}
        ours, plain = baselines.make(name, changes, of), baselines.make(name, {}, of)
        assert type(ours) is type(plain) and not isinstance(ours, Members)
        assert baselines.traced(name, changes, types=of) == baselines.traced(name, {}, types=of)


@pytest.mark.parametrize("share", SHARES)
def test_equal_members_are_one_network_and_agree(share):
    module, variables = make(share)
    params = variables["params"]
    params["members"] = jax.tree.map(lambda x: np.stack([x[0]] * K), params["members"])
    e = np.tile(baselines.rows_of(module)[0][..., :D], K if share == "none" else 1)
    scores = baselines.predict(module, variables, e)
    assert np.all(scores["p_std"] == 0)
    alone = {"params": jax.tree.map(np.float32, alone_params(params, 0, share))}
    close(scores["p"], baselines.predict(module.network, alone, e[..., :D])["p"])


@pytest.mark.parametrize("share", SHARES)
def test_gradients_are_the_mean_of_what_is_shared_and_each_ones_own(share):
    module, variables = make(share)
    e, label, ftype, weight = baselines.rows_of(module)
    (loss, _), (params, of_e) = baselines.gradients(module, variables, e, label, ftype, weight)
    alone = []
    for m in range(K):
        own = {"params": jax.tree.map(np.float32, alone_params(variables["params"], m, share))}
        x = e[..., m * D : (m + 1) * D] if share == "none" else e
        alone.append(baselines.gradients(module.network, own, x, label, ftype, weight))
    close(loss, np.mean([a[0][0] for a in alone]))
    of_members = [a[1][1] for a in alone]
    if share == "none":
        close(of_e, np.concatenate(of_members, axis=-1))
    else:
        close(of_e, np.mean(of_members, axis=0))
    heads = params["members"]["own"] if share == "factors" else params["members"]
    for m in range(K):
        close(heads["head"]["kernel"][m], alone[m][1][0]["head"]["kernel"])
    if share == "factors":
        of_kernel = []
        for m in range(K):
            own = member(variables["params"]["members"], m)
            r, s = (own[key]["mlp"]["hidden_0"]["kernel"] for key in ("input", "output"))
            gradient = alone[m][1][0]["mlp"]["hidden_0"]["kernel"]
            of_kernel.append(gradient * r[..., :, None] * s[..., None, :])
        close(params["shared"]["mlp"]["hidden_0"]["kernel"], np.mean(of_kernel, axis=0))


SPLIT = {"members_rows": "split"}


@pytest.mark.parametrize("share", SHARES)
def test_of_a_split_batch_each_row_is_of_one_member(share):
    """Row i of member i mod k: the loss is of all rows, a member's own gradient of its rows alone, k times."""
    module, variables = make(share, **SPLIT)
    e, label, ftype, weight = baselines.rows_of(module)
    (loss, _), (params, of_e) = baselines.gradients(module, variables, e, label, ftype, weight)
    of_each, shared_kernel = [], 0.0
    for m in range(K):
        own = {"params": jax.tree.map(np.float32, alone_params(variables["params"], m, share))}
        columns = slice(m * D, (m + 1) * D) if share == "none" else slice(None)
        rows = [e[m::K, :, columns], *(x[m::K] for x in (label, ftype, weight))]
        of_its_rows = weight[m::K].sum() / weight.sum()
        (of_one, _), (of_params, of_x) = baselines.gradients(module.network, own, *rows)
        of_each.append(of_its_rows * of_one)
        times = of_its_rows * (K if share == "none" else 1)
        close(of_e[m::K, :, columns], times * of_x)
        heads = params["members"]["own"] if share == "factors" else params["members"]
        close(heads["head"]["kernel"][m], K * of_its_rows * of_params["head"]["kernel"])
        if share == "factors":
            r, s = (
                member(variables["params"]["members"], m)[key]["mlp"]["hidden_0"]["kernel"]
                for key in ("input", "output")
            )
            of_kernel = of_params["mlp"]["hidden_0"]["kernel"]
            shared_kernel += of_its_rows * of_kernel * r[..., :, None] * s[..., None, :]
    close(loss, np.sum(of_each))
    if share == "none":
        assert np.all(of_e[0::K, :, D:] == 0)
    if share == "factors":
        close(params["shared"]["mlp"]["hidden_0"]["kernel"], shared_kernel)


@pytest.mark.parametrize("name, of_types", [("wm", cases.TYPES), ("final", ()), ("emofmv2", ())])
def test_a_split_batch_comes_out_in_its_order(name, of_types):
    """Of any network: typed, with a loss of its own, with parts; batch norm sees a member's rows."""
    small = {"stage1": (4,), "stage2": (4,), "norm": "batch"}
    small |= {"emofmv2.wide": True} if name == "emofmv2" else {}
    module, variables = make("table", name, of_types, **small, **SPLIT)
    e, _, _, weight = baselines.rows_of(module)
    outputs, updated = baselines.forward(module, variables, e, weight)
    for m in range(K):
        own = {key: member(tree["members"], m) for key, tree in variables.items()}
        alone, stats = baselines.forward(
            module.network, jax.tree.map(np.float32, own), e[m::K], weight[m::K]
        )
        of_rows = [
            x if x is None else x[:, m::K] if i == 3 else x[m::K] for i, x in enumerate(outputs)
        ]
        jax.tree.map(close, of_rows, list(alone))
        jax.tree.map(close, member(updated["batch_stats"]["members"], m), stats["batch_stats"])


@pytest.mark.parametrize("wrong", [{"parts": (6, 2)}, {"aux_loss": ()}])
def test_outputs_of_another_shape_are_told_before_a_split_batch_is_joined(wrong):
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, e, weight=None, *, train=False):
            bias = self.param("bias", nn.initializers.zeros, ())
            given = {name: jnp.zeros(shape) for name, shape in wrong.items()}
            return losses.Outputs(bias + e.sum((1, 2)), **given)

    module = Members(Wrong(), 2, "table", "split")
    variables = {"params": {"members": {"bias": jnp.zeros(2)}}}
    with pytest.raises(ValueError, match=f"the model's {min(wrong)} are of shape .* return f32"):
        module.apply(variables, jnp.zeros((12, 2, D)), train=True)


def test_every_member_scores_every_row_however_it_was_trained():
    module, variables = make("factors", **SPLIT)
    e, *_ = baselines.rows_of(module)
    found = baselines.predict(module, variables, e)
    wanted = baselines.predict(make("factors")[0], variables, e)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "name, share", [("final", "none"), ("destine", "factors"), ("hmm", "factors")]
)
def test_any_network_may_have_members(name, share):
    """With losses of their own, other names of kernels, mixers: it starts, and its loss is finite."""
    mixer = {"mixer.d_att": 4, "mixer.num_heads": 1}
    changes = {"members": 2, "stage1": (4,), "stage2": (4,), **mixer}
    module, variables = make(share, name, cases.TYPES if name == "hmm" else (), **changes)
    e, label, ftype, weight = baselines.rows_of(module)
    (loss, _), (params, _) = baselines.gradients(module, variables, e, label, ftype, weight)
    assert np.isfinite(loss)
    moved = [np.any(x) for x in jax.tree.leaves(params["members"])]
    assert np.mean(moved) > 0.9


def test_dropout_differs_between_members():
    module, variables = make("table", dropout=0.5)
    variables["params"]["members"] = jax.tree.map(
        lambda x: np.stack([x[0]] * K), variables["params"]["members"]
    )
    e, *_ = baselines.rows_of(module)
    logits = np.array(baselines.forward(module, variables, e, key=jax.random.key(0))[0].logits)
    assert logits.shape == (K, cases.ROWS)
    assert min(np.abs(logits[a] - logits[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_spread_of_averages_and_its_gradient():
    """Of averages of averages it is that of all; at equal p its gradient is no NaN."""
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(2, 3, 5))
    parts = [{"p": x.mean(0), "p_std": x.std(0)} for x in p]
    np.testing.assert_allclose(jax.jit(averaging.spread)(parts), p.reshape(6, 5).std(0), rtol=1e-5)
    equal = lambda x: averaging.spread([{"p": x}, {"p": x}]).sum()
    assert np.all(jax.jit(jax.grad(equal))(jnp.ones(3)) == 0)


def test_a_calibration_is_of_the_average_and_each_member_goes_through_it():
    schema = cases.schema_of(())
    options = baselines.options_of("dnn", {"activation": "relu", "members": K})
    network = Network(schema, options, "float32")
    variables = cases.random_variables(network.module, schema)
    logit = np.random.default_rng(0).normal(size=400)
    label = (np.random.default_rng(1).uniform(size=400) < 1 / (1 + np.exp(-2 * logit - 1))) * 1.0
    fitted = calibration.fit("platt", logit, label, np.ones(400))
    params = {"network": variables["params"], "stats": {}, "calibration": fitted.arrays}
    e, *_ = baselines.rows_of(network.module)
    scores = jax.jit(network.fn_from_embeddings)(params, e)
    logits = logits_of(variables["params"], e, "none")
    close(scores["p"], calibration.apply(fitted.arrays, logits.mean(0), np))
    of_members = np.stack([calibration.apply(fitted.arrays, z, np) for z in logits])
    np.testing.assert_allclose(scores["p_std"], of_members.std(0), rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """Of a typed run that was never trained, its variables random."""
    workdir = tmp_path_factory.mktemp("run")
    config, schema = config_lib.default(), cases.schema_of()
    options = baselines.options_of("wm", {"members": 2, "norm": "batch"})
    config.model.update(options)
    module = model_lib.make_model(schema, options)
    variables = cases.random_variables(module, schema)
    rng, shape = np.random.default_rng(0), (schema.num_rows, 2 * D)
    assert shape[1] == model_lib.table_width(module)
    table = rng.normal(size=shape).astype(np.float32)
    state = {"params": {"embedding": table, "network": variables["params"]}}
    state["stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    info = {"best_step": -1, "schema": schema.fingerprint()}
    checkpoint.save(workdir / "checkpoints", 1, state, info)
    (workdir / "config.json").write_text(config.to_json())
    schema.save(workdir)
    return emofm_jax.load_scorer(workdir)


def some_features(scorer, rows=5):
    rng = np.random.default_rng(2)
    names = [slot.name for slot in scorer.schema.slots]
    return {name: rng.integers(0, 10, rows).astype(np.int32) for name in names}


def test_an_export_scores_as_the_run_and_has_gradients(scorer, tmp_path):
    features = some_features(scorer)
    wanted = scorer(features)
    assert scorer.signature["outputs"]["p_std"] == {"dtype": "float32", "shape": ["b"]}
    write_artefact.write(scorer, tmp_path / "export")
    loaded = emofm_jax.load_scorer(tmp_path / "export")
    found = loaded(features)
    assert found.keys() == wanted.keys() and wanted["p_std"].min() > 1e-3
    for name, x in wanted.items():
        close(found[name], x)
    gradient = jax.grad(lambda params: loaded.fn(params, features)["p_std"].sum())(loaded.params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_an_explanation_is_complete_over_the_columns_of_all_members(scorer):
    features = some_features(scorer)
    found = scorer.explain(features)
    assert found["attribution"].shape == (5, scorer.schema.num_slots)
    total = found["logit"] - found["reference_logit"]
    np.testing.assert_allclose(found["attribution"].sum(axis=1), total, atol=2e-3)


def test_a_file_of_scores_has_p_std(scorer):
    scores = {k: np.asarray(x) for k, x in scorer(some_features(scorer)).items()}
    chunk = types.SimpleNamespace(
        kept=np.array([True, True, False, True, True, True]),
        reasons=[None, None, "bad", None, None, None],
        row_id=pa.array(range(6)),
    )
    table = row_files._table(chunk, scores, as_csv=False)
    assert table.column_names == ["row_id", "p", "p_std", "p_type", "p_given_type", "reason"]
    assert table["p_std"].to_pylist()[2] is None
    close(np.delete(table["p_std"].to_numpy(), 2), scores["p_std"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"members": 0}, "config.model.members: 0 is out of range; it must be at least 1"),
        ({"members": 2, "members_share": "half"}, "'half' is not known; choose one of none, table"),
        ({"members": 2, "members_rows": "half"}, "'half' is not known; choose one of all, split"),
        (
            {"name": "lr", "members": 2, "members_share": "table"},
            "'table' makes all members of lr alike, whose weights are all in the table; set "
            "members_share='none'",
        ),
        ({"name": "fm", "members": 2, "members_share": "factors"}, "makes all members of fm alike"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        model_lib.check(baselines.options_of("dnn", changes))


def test_what_members_share_needs_members():
    options = baselines.options_of("dnn", {"members_share": "table", **SPLIT})
    for field in ("members_share", "members_rows"):
        assert model_lib.unread(options)[field] == "members=1"
        assert field not in model_lib.unread(options | {"members": 2})


def test_a_split_batch_has_a_row_for_each_member():
    c = config_lib.default()
    c.model.update(baselines.options_of("dnn", {"members": 8, **SPLIT}))
    c.data.batch_size = 4
    message = (
        "config.model.members_rows: 'split' gives each of 8 members a share of a device's rows"
    )
    with pytest.raises(UserError, match=message):
        build.make_parts(c, cases.schema_of(()))
