"""Files that appear when they are whole."""

import json

import pytest

from emofm_jax.data import files

pytestmark = pytest.mark.fast


def test_a_file_is_replaced_when_the_new_one_is_whole_and_not_before(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1} and path.read_text().endswith("}\n")
    with pytest.raises(RuntimeError), files.whole(path) as temporary:
        temporary.write_text("half")
        assert json.loads(path.read_text()) == {"a": 1}
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert json.loads(path.read_text()) == {"a": 1}


def test_text_is_utf8_whatever_the_locale(tmp_path):
    files.write_text(tmp_path / "x", "π")
    assert (tmp_path / "x").read_bytes() == b"\xcf\x80"
