"""Options: what is refused without data, and a config that comes back from its workdir as it was."""

import json

import pytest

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.hidden", ("a",), "config.model.hidden: its element 'a' must be a whole number"),
        ("model.stage1", (8, 1.5), "config.model.stage1: its element 1.5 must be a whole number"),
        ("model.mixer.stages", (3,), "may hold 1 and 2 only"),
        ("prepare.shares", ("a", 0.5, 0.5), "config.prepare.shares: its element 'a' must be a number"),
        ("prepare.shares", (0.5, 0.2, 0.1), "must be three shares that add up to 1"),
        ("prepare.types", (1, 2), "config.prepare.types: its element 1 must be text, between quotes"),
        ("prepare.columns", (None,), "config.prepare.columns: its element None"),
        ("prepare.day_length", -1, "config.prepare.day_length: -1 is out of range"),
        ("prepare.seed", -1, "config.prepare.seed: -1 is out of range"),
        ("train.monitor", "accuracy", "choose one of '', 'auc', 'logloss', 'auc - logloss'"),
    ],
)
def test_a_value_that_is_refused(field, value, message):
    config = config_lib.default()
    config_lib.validate(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert message in str(error.value)


def test_a_config_comes_back_as_it_was(tmp_path):
    config = config_lib.default()
    config.model.hidden = (7,)
    config.prepare.groups = (("user", ("a", "C1-C2")), ("item", "b"))
    config.prepare.slots = {"a": {"kind": "multi", "separator": "|"}}
    (tmp_path / "config.json").write_text(config.to_json())
    back = config_lib.load(tmp_path)
    assert not config_lib.difference(config, back)
    assert back.model.hidden == (7,) and back.prepare.slots.a.separator == "|"


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"prepare": {"slots": {}}, "zzz": 1}', '{"prepare": 3}'])
def test_a_file_that_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json: not a config of this version"):
        config_lib.load(tmp_path)
    body = json.loads(config_lib.default().to_json())
    body["model"]["nam"] = "wm"
    (tmp_path / "config.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match="nam"):
        config_lib.load(tmp_path)
