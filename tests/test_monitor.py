"""What a monitor makes of an evaluation, and the step that a run keeps."""

import pytest

from emofm_jax.evaluation import monitor

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name, value", [("auc", 0.75), ("logloss", -0.25), ("auc - logloss", 0.5)])
def test_more_is_better_whatever_is_watched(name, value):
    assert monitor.value(name, 0.75, 0.25) == value


def test_a_number_that_is_not_defined_has_no_value():
    assert monitor.value("auc", None, 0.25) is None
    assert monitor.value("auc - logloss", None, 0.25) is None
    assert monitor.value("logloss", None, 0.25) == -0.25


@pytest.mark.parametrize(
    "name, best, kept", [("auc", 8, 8), ("auc", 0, 0), ("auc", -1, 16), ("", 8, 16)]
)
def test_the_best_step_is_kept_if_there_is_one(name, best, kept):
    assert monitor.kept_step(name, best, 16) == kept
