"""Options: what is refused without data, and a config that comes back from its workdir as it was."""

import datetime
import decimal
import enum
import functools
import json
import math
import pathlib
import uuid

import numpy as np
import pytest
from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax import options as options_lib
from emofm_jax.data import files
from emofm_jax.errors import UserError
from emofm_jax.sweeping import overrides
from emofm_jax.training import workdir as workdir_lib

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", 1 << 63, f"config.seed: {1 << 63} is out of range; it must be "),
        ("optim.embedding.warmup_steps", 10**400, "(401 digits) is out of range; it must be at"),
        (
            "model.hidden",
            (10**400,),
            "(401 digits) is out of range; it must be at least 1, and a n",
        ),
        ("model.hidden", (True,), "config.model.hidden: its element True must be a whole number"),
        (
            "optim.network.learning_rate",
            math.inf,
            "inf is out of range; it must be at least 0, and fi",
        ),
        ("model.hidden", (), "config.model.hidden: () is empty; give it an element or more"),
        ("model.hidden", ("a",), "config.model.hidden: its element 'a' must be a whole number"),
        ("model.stage1", (8, 1.5), "config.model.stage1: its element 1.5 must be a whole number"),
        ("model.mixer.stages", (3,), "may hold 1 and 2 only"),
        (
            "prepare.shares",
            ("a", 0.5, 0.5),
            "config.prepare.shares: its element 'a' must be a number",
        ),
        ("prepare.shares", (0.5, 0.2, 0.1), "must be three shares that add up to 1"),
        (
            "prepare.types",
            (1, 2),
            "config.prepare.types: its element 1 must be text, between quotes",
        ),
        ("prepare.columns", (None,), "config.prepare.columns: its element None"),
        ("prepare.day_length", -1, "config.prepare.day_length: -1 is out of range"),
        ("prepare.seed", -1, "config.prepare.seed: -1 is out of range"),
        *(
            (f"model.{field}", 0, f"config.model.{field}: 0 is out of range; it must be at least 1")
            for field in (
                "dcnv2.num_layers",
                "dcnv2.num_experts",
                "edcn.num_layers",
                "destine.num_layers",
                "destine.d_att",
                "destine.num_heads",
                "finalmlp.num_heads",
            )
        ),
        ("model.dcnv2.low_rank", -1, "config.model.dcnv2.low_rank: -1 is out of range"),
        ("model.edcn.temperature", 0.0, "config.model.edcn.temperature: 0.0 is out of range"),
        (
            "model.destine.attention_dropout",
            1.0,
            "config.model.destine.attention_dropout: 1.0 is out of range",
        ),
        ("model.final.block1", (), "config.model.final.block1: () is empty"),
        ("model.final.block2", (4, 0), "config.model.final.block2: its element 0 is out of range"),
        ("model.finalmlp.mlp2", (), "config.model.finalmlp.mlp2: () is empty"),
        (
            "model.finalmlp.context1",
            (3,),
            "config.model.finalmlp.context1: its element 3 must be text, between quotes",
        ),
        ("train.monitor", "accuracy", "choose one of '', auc, logloss, 'auc - logloss'"),
    ],
)
def test_a_value_that_is_refused(field, value, message):
    config = config_lib.default()
    config_lib.validate(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert message in str(error.value)


def test_every_field_can_be_set_by_a_flag():
    """A flag of a name that a ConfigDict has as a method finds the method."""
    names = {
        name for field in config_lib.flatten(config_lib.default()) for name in field.split(".")
    }
    assert not [name for name in names if hasattr(ConfigDict, name)]


def test_a_config_comes_back_as_it_was(tmp_path):
    config = config_lib.default()
    config.model.hidden = (7,)
    config.prepare.groups = (("user", ("a", "C1-C2")), ("item", "b"))
    config.prepare.slots = ConfigDict({"a": {"kind": "multi", "separator": "|"}})
    (tmp_path / "config.json").write_text(config.to_json())
    back = config_lib.load(tmp_path)
    assert not config_lib.difference(config, back)
    assert back.model.hidden == (7,) and back.prepare.slots.a.separator == "|"


@pytest.mark.parametrize(("name", "reads"), [("emofmv2", False), ("dnn", True)])
def test_a_run_of_before_cross_to_head_keeps_its_network(name, reads):
    """Its head has no columns for it; of other models' runs nothing changes."""
    config = config_lib.default()
    config.model.name = name
    body = json.loads(config.to_json())
    del body["model"]["emofmv2"]["cross_to_head"], body["optim"]["embedding"]["l2_rows"]
    found = config_lib.from_dict(body)
    assert found.model.emofmv2.cross_to_head is reads
    assert found.optim.embedding.l2_rows == 0
    assert config_lib.from_dict(json.loads(config.to_json())).model.emofmv2.cross_to_head


@pytest.mark.parametrize(("rate", "means"), [(0.1, "weight"), (1.0, "logit"), (None, "logit")])
def test_a_run_of_before_sampling_correction_means_weights(rate, means):
    """Where no row was left out it has the default, as the same command has now: nothing differs."""
    config = config_lib.default()
    body = json.loads(config.to_json())
    del body["train"]["sampling_correction"]
    if rate is None:  # release 0.1
        del body["prepare"]["negative_keep_rate"]
    else:
        body["prepare"]["negative_keep_rate"] = rate
    assert config_lib.from_dict(body).train.sampling_correction == means


def test_a_name_of_a_slot_may_hold_dots_blanks_and_any_script(tmp_path):
    names = ("item.price", "item.price.net", "größe in cm", "物品", "a/b", "x[0]", "..")
    config = config_lib.default()
    config.prepare.slots = {name: {"kind": "numeric"} for name in names}
    config.prepare.slots["item.price"].transform = "log1p"
    (tmp_path / "config.json").write_text(config.to_json())
    back = config_lib.load(tmp_path)
    assert not config_lib.difference(config, back)
    assert back.prepare.to_dict()["slots"] == config.prepare.to_dict()["slots"]
    assert set(back.prepare.slots) == set(names)

    field = "prepare.slots.item.price.net.kind"
    changed = overrides.put(back, {field: "multi"}, "sweep")
    assert config_lib.difference(changed, back) == {field: ("multi", "numeric")}
    assert config_lib.get(changed, field) == "multi"
    with pytest.raises(UserError, match="sweep: there is no field 'prepare.slots.item.kind'"):
        overrides.put(back, {"prepare.slots.item.kind": "multi"}, "sweep")


@pytest.mark.parametrize(
    "text", ["{", "[1]", "{}", '{"prepare": {"slots": {}}, "zzz": 1}', '{"prepare": 3}']
)
def test_a_file_that_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json: not a config of this version"):
        config_lib.load(tmp_path)
    body = json.loads(config_lib.default().to_json())
    body["model"]["nam"] = "wm"
    (tmp_path / "config.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match="nam"):
        config_lib.load(tmp_path)


@pytest.mark.parametrize(
    "field, value, wanted",
    [
        ("model.embedding_dim", np.int64(8), 8),
        ("model.embedding_dim", np.array(8), 8),
        ("optim.network.learning_rate", np.float32(0.5), 0.5),
        ("data.shuffle", np.bool_(False), False),
        ("name", np.str_("x"), "x"),
        ("data.dir", pathlib.PurePosixPath("a") / "b", "a/b"),
        ("model.hidden", np.array([16, 8]), (16, 8)),
        ("model.hidden", [np.int32(16), 8], (16, 8)),
        ("model.stage1", range(3, 5), (3, 4)),
        ("prepare.valid_days", (datetime.date(2024, 3, 5), np.int64(7)), ("2024-03-05", 7)),
        ("prepare.valid_days", [np.datetime64("2024-03-05")], ("2024-03-05",)),
        (
            "prepare.valid_days",
            (datetime.timedelta(seconds=3), np.timedelta64(5, "ms")),
            ("3", "0.005"),
        ),
        (
            "prepare.positive",
            (decimal.Decimal("0.10"), uuid.UUID(int=1)),
            ("0.10", f"{0:08}-0000-0000-0000-{1:012}"),
        ),
        ("prepare.groups", (("user", np.array(["a", "b"])),), (("user", ("a", "b")),)),
        ("prepare.slots", {"a": {"rows": np.int64(9)}}, {"a": {"rows": 9}}),
    ],
)
def test_values_of_numpy_and_dates_are_plain_ones(field, value, wanted):
    """Set in a file, by an override of a sweep, or of a section."""
    config = config_lib.default()
    *parents, name = field.split(".")
    section = functools.reduce(getattr, parents, config)
    section[name] = value
    section, leaf = field.rpartition(".")[::2]
    nested = {section: {leaf: value}} if section else {field: value}
    for made in (
        config,
        overrides.apply(config_lib.default(), {field: value}, "x"),
        overrides.apply(config_lib.default(), nested, "x"),
    ):
        body = json.loads(made.to_json())
        again = config_lib.from_dict(body)
        found = options_lib.get(again, field)
        found = found.to_dict() if isinstance(found, ConfigDict) else found
        assert found == wanted and type(found) is type(wanted)
    config_lib.validate(config)


class Kind(str, enum.Enum):  # noqa: UP042, as programs for older Pythons write it
    BUY = "buy"


def test_members_of_an_enum_are_their_values():
    """Before a file of JSON makes texts of them, too."""
    config = config_lib.default()
    config.prepare.positive = (Kind.BUY, 2)
    config.prepare.slots = {Kind.BUY: {"kind": Kind.BUY}}
    (name, options), *_ = config.prepare.slots.items()
    assert {type(x) for x in (name, options.kind, config.prepare.positive[0])} == {str}
    assert config.prepare.positive == ("buy", 2) and name == options.kind == "buy"


def test_a_value_of_another_type_is_still_refused():
    with pytest.raises(TypeError, match="embedding_dim = 8.0 is no int, as 16 is"):
        config_lib.default().model.embedding_dim = np.float64(8)
    for value in (b"x", {"x"}, object()):
        with pytest.raises(TypeError, match=f"test_days: .* of type {type(value).__name__}; give"):
            config_lib.default().prepare.test_days = ("a", ("b", value))


def test_a_config_is_printed_as_any_other_one_by_the_quick_writer(monkeypatch):
    c = config_lib.default()
    c.prepare.slots = {
        "ä.b": {"rows": 5, "null_values": ("x" * 120 + " y" * 40, "", "null", "a: #")}
    }
    assert str(c) == ConfigDict.__str__(c) and "!!python/tuple" in str(c)
    monkeypatch.setattr(ConfigDict, "__str__", lambda self: "in 9 ms")
    assert str(c).startswith("compute_dtype:")


def test_what_is_recommended_is_in_range_and_has_an_effect():
    config = config_lib.recommended()
    config_lib.validate(config)
    changed = config_lib.difference(config, config_lib.default())
    assert changed.keys() == config_lib._RECOMMENDED.keys()
    assert not changed.keys() & config_lib.without_effect(config).keys()


@pytest.mark.parametrize(
    ("model", "same"),
    [
        ({"name": "emofmv2"}, True),
        ({"name": "dnn"}, True),  # it has no auxiliary model
        ({"name": "wm", "use_ftype": False}, True),
        ({"name": "wm"}, False),
        ({"name": "dnn", "type_aware": True}, False),
    ],
)
def test_a_run_goes_on_where_auto_is_what_is_now_said(tmp_path, model, same):
    """`recommended()` said nothing of `am_reads` before; its runs are as they were, but for those of other models with types."""
    config = config_lib.recommended()
    config.model.update(model)
    before = config.copy_and_resolve_references()
    before.model.am_reads = "auto"
    files.write_json(tmp_path / "config.json", before.to_dict())
    assert config_lib.difference(before, config) == {"model.am_reads": ("auto", "own")}
    if same:
        workdir_lib.check_same_run(config, tmp_path)
        assert not config_lib.changed(before, config_lib.flatten(config))
        assert config_lib.changed(before, config_lib.default())  # the rest is compared
        return
    with pytest.raises(UserError, match="model.am_reads 'auto' there, 'own' now"):
        workdir_lib.check_same_run(config, tmp_path)


def test_what_a_model_that_is_gone_read_is_told_as_it_was_said():
    now = config_lib.flatten(config_lib.default())
    before = now | {"model.name": "gone", "model.am_reads": "own"}
    assert {*config_lib.changed(before, now)} == {"model.name", "model.am_reads"}


@pytest.mark.parametrize(
    ("made", "value", "message"),
    [
        ((2, "power", {"choices": (1, 2, 4)}), 3, "x: 3 is not known; choose one of 1, 2, 4"),
        (((0.5,), "cuts", {"of": float, "low": 0, "high": 1}), (2.0,), "between 0 and 1"),
        (((True,), "switches", {"of": bool}), (3,), "x: its element 3 must be True or False"),
        ((0.5, "rate", {"high": 1}), 2.0, "x: 2.0 is out of range; it must be at most 1"),
    ],
)
def test_an_option_of_any_kind_is_checked_described_and_kept(made, value, message):
    default, meaning, details = made
    option = options_lib.Option(default, meaning, **details)
    option.check("x", default)
    with pytest.raises(UserError) as error:
        option.check("x", value)
    assert message in str(error.value)
    body = json.loads(json.dumps(options_lib.to_json({"x": option})))
    assert options_lib.from_json(body) == {"x": option}


def test_what_an_option_needs_is_said_in_its_own_line_of_help():
    said = {path: option.describe() for path, option in config_lib.options().items()}
    assert said["model.hidden"].endswith("; each at least 1")
    assert said["model.finalmlp.gate_hidden"].endswith("; needs selection = True")
    assert said["model.dcnv2.num_experts"].endswith("; needs low_rank = a number of at least 1")
    sampled = "; needs prepare.negative_keep_rate = a number below 1.0"
    assert said["train.sampling_correction"].endswith(sampled)


@pytest.mark.parametrize("key", ["embedding", "network"])
def test_the_end_of_a_run_may_change_unless_any_cosine_ends_there(key):
    config = config_lib.default()
    assert {"train.epochs", "train.max_steps"} <= config_lib.may_change(config)
    config.optim[key].schedule = "cosine"
    found = config_lib.may_change(config)
    assert "train.epochs" not in found and "data.dir" in found and "seed" not in found
