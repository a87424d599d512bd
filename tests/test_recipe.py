"""Which slots a recipe declares, and which split a row is in."""

import types

import numpy as np
import pyarrow as pa
import pytest

from emofm_jax import config
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data import seen
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast


def test_rows_of_a_split_do_not_depend_on_the_chunks():
    c = config.default()
    c.prepare.split = "share"
    lines = np.arange(2, 500)
    whole = recipe_lib.split_of(c.prepare.to_dict(), 0, lines, None)
    parts = [
        recipe_lib.split_of(c.prepare.to_dict(), 0, part, None) for part in np.array_split(lines, 7)
    ]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert recipe_lib.split_of(c.prepare.to_dict(), 1, lines, None).tolist() != whole.tolist()


def test_members():
    assert recipe_lib.members(("a", "C1-C3", ("x-y", "7-9"))) == [
        "a",
        "C1",
        "C2",
        "C3",
        "x-y",
        "7",
        "8",
        "9",
    ]
    with pytest.raises(UserError, match="not a pair"):
        recipe_lib.slots({"groups": ("user",), "slots": {}, "slot": {}})
    with pytest.raises(UserError, match="5 is no name of a slot"):
        recipe_lib.members(("a", 5))


def test_files_of_a_split(tmp_path):
    c = config.default()
    c.prepare.source = str(tmp_path)
    for name in ("train.1.csv", "train.2.csv", "valid.csv", "test.csv"):
        (tmp_path / name).touch()
    found = recipe_lib.files(c.prepare.to_dict())
    assert {split: [f.path.name for f in paths] for split, paths in found.items()} == {
        "train": ["train.1.csv", "train.2.csv"],
        "valid": ["valid.csv"],
        "test": ["test.csv"],
    }
    (tmp_path / "test.csv.gz").touch()
    with pytest.raises(UserError, match="test.csv: it is there plain and compressed"):
        recipe_lib.files(c.prepare.to_dict())
    c.prepare.files.test = "/tmp/test.csv"
    with pytest.raises(
        UserError, match="config.prepare.files.test: '/tmp/test.csv' must be relative"
    ):
        recipe_lib.files(c.prepare.to_dict())


def test_no_file_counts_twice(tmp_path):
    for name in ("train.csv", "valid.csv", "test.csv"):
        (tmp_path / name).write_text("label,user\n1,u\n")
    recipe = config.default().prepare.to_dict() | {"source": str(tmp_path)}
    assert recipe_lib.files(recipe).keys() == {"train", "valid", "test"}
    everything = recipe | {"files": {"train": "*.csv", "valid": "valid.csv", "test": ""}}
    with pytest.raises(UserError, match=r"valid.csv: it is .*valid.csv, and would count twice"):
        recipe_lib.files(everything)
    (tmp_path / "more.csv").symlink_to(tmp_path / "test.csv")
    with pytest.raises(
        UserError, match="test.csv: it is .*more.csv, and would count twice; remove"
    ):
        recipe_lib.files(recipe | {"split": "share"})


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("a.csv", "a.csv.GZ", "a.csv: it is there plain and compressed"),
        ("a.csv", "a.csv.gzip", "a.csv: it is there plain and compressed"),
        ("a.csv.gz", "a.csv.zst", "a.csv: it is there in two compressions"),
        ("a.csv.gz", "a.csv.bz2", r"in two compressions \(a.csv.(bz2|gz), a.csv.(bz2|gz)\)"),
    ],
)
def test_a_file_in_two_forms_counts_once(tmp_path, one, other, said):
    recipe = config.default().prepare.to_dict() | {"source": str(tmp_path), "split": "share"}
    for name in (one, other):
        (tmp_path / name).write_text("label,user\n1,u\n")
    with pytest.raises(UserError, match=said):
        recipe_lib.files(recipe)
    (tmp_path / other).rename(tmp_path / f"b{other}")
    assert len(recipe_lib.files(recipe)[""]) == 2
    (tmp_path / "c.csv").hardlink_to(tmp_path / one)
    with pytest.raises(UserError, match="c.csv: it is .*, and would count twice; remove one"):
        recipe_lib.files(recipe)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1", "nan", "NaT", "a\0b", "-1", "", None, "2", "3"]),
        pa.array([b"1", b"\xff", b"nan", b"a\0b", b"-1", b"", None, b"2", b"3"]),
        pa.array([1.0, float("nan"), -1.0, -1.0, -1.0, -1.0, None, 2.0, 3.0]),
        pa.array([1, -1, -1, -1, -1, -1, None, 2, 3]),
        pa.array(["1", "nan", "NaT", "NaN", "-1", "", None, "2", "3"]).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("named", [(), ("1",)])
def test_what_is_no_day_is_of_no_split(column, named):
    recipe = {"split": "day", "day_length": 0, "null_values": ("", "-1"), "train_days": named}
    recipe |= {"replay_days": (), "valid_days": ("2",), "test_days": (3,)}
    days = recipe_lib.distinct_days(recipe, column)
    split = recipe_lib.split_of(recipe, 0, np.arange(9), days)
    assert split.tolist() == [0, *[recipe_lib.NO_DAY] * 6, 1, 2]
    assert {*recipe_lib.days_of(recipe, days)} - {None} == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"valid_days": ("2", "3"), "test_days": (3,)}, "test_days: '3' is one of valid_days, too"),
        ({"train_days": ("1", "2.0"), "valid_days": (2,)}, "valid_days: '2' is one of train_days"),
        ({"ftype": "t", "types": ("1.0", "2", "1")}, "types: '1' stands twice in"),
        ({"ftype": "t", "types": ("1", "NaN")}, "types: 'NaN' is what a missing value is called"),
    ],
)
def test_what_is_named_twice_or_can_never_be(fields, said):
    recipe = config.default().prepare.to_dict() | {"split": "day", "day_column": "d"}
    recipe |= {"label": "y", "groups": (("g", ("s",)),)}
    recipe_lib.check_roles(recipe)
    with pytest.raises(UserError, match=said):
        recipe_lib.check_roles(recipe | fields)


def test_shares_that_are_no_numbers():
    made = config.default()
    made.prepare.shares = (float("nan"), 0.5, 0.5)
    with pytest.raises(UserError, match="config.prepare.shares: "):
        config.validate(made)


@pytest.mark.parametrize(
    ("days", "trained", "words"),
    [
        ({"2024-01-01 01:00:00", "2024-01-01 02:00:00"}, ["2024-01-01"], "1 of the 1 days"),
        ({"2024010105", "2024010205"}, ["20240101"], "1 of the 2 days of these rows (20240101)"),
        ({"10", "11"}, ["1", "2"], ""),
        ({"2024-01-01", "2.1.2024"}, ["20240101"], "1 of the 2 days of these rows (2024-01-01)"),
        ({"2024-01-01 05:00:00", "2024-01-02"}, ["2024-1-1"], "1 of the 2 days"),
        ({"2024-01-02"}, ["2024-01-01"], ""),
        ({"2024-01-02"}, [""], ""),
    ],
)
def test_days_that_were_trained_on(days, trained, words):
    no_source = types.SimpleNamespace(recipe={})
    said = seen.said(types.SimpleNamespace(days=days, schema=no_source), trained)
    assert words in said if words else said == ""
