"""make_model: where models start, that every option matters, and what a user's mistake is answered with."""

import functools

import jax
import numpy as np
import pytest

from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.nn import mixers
from tests import baseline_cases as baselines
from tests import model_cases as cases


def test_models_start_at_the_rates_of_the_train_split():
    schema = cases.schema_of()
    e = np.zeros((1, sum(cases.SIZES), cases.DIM), np.float32)  # biases alone speak

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def start(module, schema):
        variables = model_lib.init(module, jax.random.key(0), schema)
        return model_lib.predict(module, variables, e)

    module = model_lib.make_model(schema, cases.options_of("hm", init_scale=0.0, **cases.SHALLOW))
    out = start(module, schema)
    rate = (22 + 0.5) / (200 + 1)
    expected = [(c + rate) / (n + 1) for c, n in ((5, 100), (10, 50), (5, 10))]
    np.testing.assert_allclose(out["p_given_type"], [expected], rtol=1e-5)
    np.testing.assert_allclose(out["p_type"][0], np.array([101, 51, 11]) / 163, rtol=1e-5)
    untyped = model_lib.make_model(cases.schema_of(()), cases.options_of("wm", hidden=(8,)))
    out = start(untyped, cases.schema_of(()))
    np.testing.assert_allclose(out["p"], (22 + rate) / 201, rtol=1e-5)


@pytest.mark.parametrize("name", ["wm", "fm"])
def test_heads_may_start_at_even_odds(name):
    options = cases.options_of(name, head_bias="zero", type_aware=name == "fm")
    module = model_lib.make_model(cases.schema_of(), options)
    assert tuple(module.network.head_bias) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("clicks", [(0, 0, 0, 0), (100, 0, 10, 40)])
def test_rates_of_0_and_1_start_at_finite_logits(clicks):
    module = model_lib.make_model(
        cases.schema_of(rows=(100, 0, 10, 40), clicks=clicks), cases.options_of()
    )
    assert np.isfinite(module.network.head_bias).all() and np.isfinite(module.type_bias).all()
    assert (np.array(module.network.head_bias) > 0).all() == (clicks[0] > 0)


def test_a_type_that_training_never_showed_is_legal_and_loses_the_little_mass_it_has():
    schema = cases.schema_of(rows=(100, 0, 10, 40), clicks=(5, 0, 1, 2))
    module = model_lib.make_model(schema, cases.options_of("hm", **cases.SHALLOW))
    np.testing.assert_allclose(np.exp(module.type_bias), np.array([101, 1, 11]) / 113, rtol=1e-6)
    e, label, ftype, weight = cases.random_rows()
    weight[ftype == 1] = 0.0
    (_, _), (params, _) = cases.gradients(
        module, cases.random_variables(module, schema), e, label, ftype, weight
    )
    assert params["auxiliary"]["head"]["bias"][1] > 0  # descent takes mass from it


def test_a_schema_without_counts_starts_at_even_odds():
    module = model_lib.make_model(cases.schema_of(rows=(), clicks=()), cases.options_of("wm"))
    np.testing.assert_allclose(module.network.head_bias, [0.0] * 3, atol=1e-12)
    np.testing.assert_allclose(np.exp(module.type_bias), [1 / 3] * 3)


# A small model of each name, and what else than that changes it.
SHALLOW = {"mixer.d_att": 8, "mixer.num_heads": 2, "hidden": (8,), **cases.SHALLOW}


@pytest.mark.parametrize(
    "name,change",
    [
        ("wm", {"hidden": (8, 6)}),
        ("hm", {"stage1": (9,)}),
        ("hm", {"stage2": (7, 6)}),
        ("wm", {"am_hidden": (5,)}),
        ("hm", {"activation": "silu"}),
        ("hm", {"norm": "layer"}),
        ("hm", {"norm": "batch"}),
        ("hm", {"dropout": 0.3}),
        ("hmm", {"mixer.kind": "none"}),
        ("hmm", {"mixer.stages": (1,)}),
        ("hmm", {"mixer.stages": (2,)}),
        ("hmm", {"mixer.stages": ()}),
        ("hmm", {"mixer.d_att": 4}),
        ("hmm", {"mixer.num_heads": 4}),
        ("hmm", {"mixer.norm": "layer"}),
        ("wm", {"type_predictors": "shared"}),
        ("wm", {"use_ftype": False}),
        ("wm", {"drop_type": "cart"}),
    ],
)
def test_every_option_changes_the_model(name, change):
    assert _traced(name, SHALLOW, cases.TYPES) != _traced(name, SHALLOW | change, cases.TYPES)


# Option of a section -> another value, and what else must be set for it to have an effect.
OWN = {
    "dcnv2": {
        **{f"structure={value}": (value, {}) for value in ("cross", "stacked", "both")},
        "num_layers": (2, {}),
        "low_rank": (2, {}),
        "num_experts": (2, {"low_rank": 2}),
    },
    "edcn": {
        **{f"bridge={value}": (value, {}) for value in ("add", "concat", "attention")},
        "num_layers": (2, {}),
        "temperature": (2.0, {}),
        "residual": (False, {}),
    },
    "final": {
        "block1": ((6,), {}),
        "block2": ((6,), {}),
        "block2=()": ((), {}),
        "residual": ("sum", {}),
        "gate": (True, {}),
    },
    "finalmlp": {
        "mlp1": ((6,), {}),
        "mlp2": ((4,), {}),
        "num_heads": (2, {}),
        "selection": (False, {}),
        "gate_hidden": ((3,), {}),
        "context1": (("a0",), {}),
        "context2": (("a0",), {"context1": ("a0",)}),
    },
    "destine": {
        **{f"residual={value}": (value, {}) for value in ("last_layer", "none")},
        "num_layers": (2, {}),
        "d_att": (4, {}),
        "num_heads": (1, {}),
        "scale": (True, {}),
        "relu": (True, {}),
        "attention_dropout": (0.3, {}),
        "wide": (False, {}),
        "deep": (False, {}),
    },
}


@pytest.mark.parametrize("name", OWN)
def test_every_option_of_a_section_changes_its_model(name):
    for option, (value, needed) in OWN[name].items():
        base = {f"{name}.{key}": x for key, x in needed.items()}
        changed = base | {f"{name}.{option.split('=')[0]}": value}
        assert _traced(name, base) != _traced(name, changed), option
        if option == "attention_dropout":
            assert baselines.traced(name, base, train=False) == baselines.traced(
                name, changed, train=False
            )
    assert {option.split("=")[0] for option in OWN[name]} == set(baselines.options_of(name)[name])


def _traced(name, changes, types=()):
    return _traced_once(name, tuple(changes.items()), types)


@functools.cache
def _traced_once(name, changes, types):
    return baselines.traced(name, dict(changes), types=types)


def test_every_kind_of_mixer_and_type_awareness_change_the_model():
    kinds = tuple(mixers.MIXERS)
    texts = {_traced("hmm", SHALLOW | {"mixer.kind": kind}, cases.TYPES) for kind in kinds}
    assert len(texts) == len(kinds)
    one, typed = (
        baselines.traced("dnn", {"type_aware": value}, types=cases.TYPES) for value in (False, True)
    )
    assert one != typed


def test_init_scale_is_that_of_the_type_embedding():
    schema = cases.schema_of()
    options = cases.options_of("wm", hidden=(8,), am_hidden=(), init_scale=0.5)
    variables = model_lib.init(model_lib.make_model(schema, options), jax.random.key(0), schema)
    embedding = np.array(variables["params"]["network"]["type_dense"]["type_embedding"])
    assert 0.5 / 2 < np.sqrt((embedding**2).mean()) < 0.5 * 2


def test_options_may_hold_lists_as_a_config_read_back_does():
    from_json = cases.options_of(stage1=[8, 6], mixer_stages=[1])
    assert model_lib.make_model(cases.schema_of(), from_json) == model_lib.make_model(
        cases.schema_of(), cases.options_of(mixer_stages=(1,))
    )


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            dict(name="dmm"),
            "config.model.name: 'dmm' is not known; choose one of wm, hm, hmm, emofmv2, lr, fm, deepfm, dnn, dcnv2",
        ),
        (
            dict(mixer_kind="gnn"),
            "config.model.mixer.kind: 'gnn' is not known; choose one of cross_attention, self_attention",
        ),
        (
            dict(activation="selu"),
            "config.model.activation: 'selu' is not known; choose one of relu",
        ),
        (dict(mixer_num_heads=3), "3 heads do not divide d_att = 8; choose a divisor"),
        (dict(drop_type="sale"), "'sale' is no type of 'shop'; its types: 'view', 'cart', 'buy'"),
        (dict(drop_type="buy", use_ftype=False), "'buy' has no meaning with use_ftype=False"),
    ],
)
def test_a_users_mistake_gets_one_line(changes, message):
    with pytest.raises(UserError) as error:
        model_lib.make_model(cases.schema_of(), cases.options_of(**changes))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name,changes,message",
    [
        (
            "dcnv2",
            {"dcnv2.structure": "serial"},
            "config.model.dcnv2.structure: 'serial' is not known; choose one of",
        ),
        (
            "edcn",
            {"edcn.bridge": "sum"},
            "config.model.edcn.bridge: 'sum' is not known; choose one of hadamard, add",
        ),
        (
            "final",
            {"final.residual": "add"},
            "config.model.final.residual: 'add' is not known; choose one of concat",
        ),
        (
            "destine",
            {"destine.residual": "all"},
            "config.model.destine.residual: 'all' is not known; choose one of",
        ),
        (
            "destine",
            {"destine.num_heads": 4},
            "config.model.destine.num_heads: 4 heads do not divide d_att = 6",
        ),
        ("finalmlp", {"finalmlp.num_heads": 3}, "3 heads do not divide the last width of mlp1 = 4"),
        ("finalmlp", {"finalmlp.num_heads": 4}, "4 heads do not divide the last width of mlp2 = 6"),
        (
            "final",
            {"final.block1": (5,)},
            "config.model.final.block1: residual=concat halves every width, and 5 is odd",
        ),
        ("lr", {"type_aware": True}, "config.model.am_joint: lr reads no embeddings"),
        (
            "finalmlp",
            {"finalmlp.context1": ("a0", "a0")},
            "finalmlp.context1: ('a0', 'a0') names a slot twice; name it",
        ),
        (
            "final",
            {"final.block2": (4, 7)},
            "config.model.final.block2: residual=concat halves every width, and 7 is",
        ),
        (
            "finalmlp",
            {"finalmlp.context2": ("z",)},
            "config.model.finalmlp.context2: 'z' is no slot of 'shop'; its slo",
        ),
        (
            "dcnv2",
            {"drop_type": "buy"},
            "'buy' has no meaning for dcnv2 without types; set type_aware=True",
        ),
    ],
)
def test_a_mistake_in_a_baseline_gets_one_line(name, changes, message):
    with pytest.raises(UserError) as error:
        baselines.make(name, changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_destine_needs_two_slots():
    schema = Schema("one", (Slot("a", "a", rows=5),), ())
    with pytest.raises(
        UserError,
        match="'destine' attends from slot to slot, and 'one' has one slot; choose another",
    ):
        model_lib.make_model(schema, baselines.options_of("destine"))


def test_an_odd_width_of_final_is_no_mistake_where_nothing_is_halved():
    module = baselines.make("final", {"final.block1": (5,), "final.residual": "sum"})
    assert module.block1 == (5,) and module.residual == "sum"


@pytest.mark.parametrize("types,message", [((), "untyped"), (("buy",), "is the only type")])
def test_dropping_a_type_needs_two(types, message):
    with pytest.raises(UserError, match=message):
        model_lib.make_model(
            cases.schema_of(types, (10,) * (1 + len(types)), (1,) * (1 + len(types))),
            cases.options_of(drop_type="buy"),
        )


def test_types_are_asked_of_data_that_have_none():
    with pytest.raises(
        UserError, match="config.model.type_aware: 'shop' has no interaction types; leave it False"
    ):
        model_lib.make_model(cases.schema_of(()), cases.options_of("dnn", type_aware=True))


def test_sections_of_other_models_are_not_judged():
    options = cases.options_of("dnn", mixer_num_heads=3)
    options["destine"] |= dict(d_att=7, num_heads=2)
    made = model_lib.make_model(cases.schema_of(), options)
    assert made == model_lib.make_model(cases.schema_of(), cases.options_of("dnn"))
