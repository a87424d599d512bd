"""The table of mistakes fits the package, and the program that makes them tells caught from not caught."""

import pytest

from benchmarks import mutations

pytestmark = pytest.mark.fast


def test_every_mistake_can_still_be_made_and_its_tests_are_there():
    table = mutations.read()
    assert [line for mutation in table for line in mutations.mistakes(mutation)] == []
    assert len({mutation.name for mutation in table}) == len(table) >= 60


@pytest.fixture
def repository(tmp_path):
    """A package of one function, and one test of it."""
    root = tmp_path / "whole"
    for folder in ("emofm_jax", "tests", "runs"):
        (root / folder).mkdir(parents=True)
    (root / "setup.cfg").write_text("[tool:pytest]\npythonpath = .\n")
    (root / "emofm_jax" / "__init__.py").touch()
    (root / "emofm_jax" / "sums.py").write_text("def double(x):\n    return x + x\n")
    (root / "tests" / "test_sums.py").write_text(
        "from emofm_jax import sums\n\n\ndef test_double():\n    assert sums.double(2) == 4\n"
    )
    return root


def mutation(new, old="x + x", tests=("tests/test_sums.py::test_double",), file="sums.py"):
    return mutations.Mutation("a mistake", file, old, new, tests)


@pytest.mark.slow
def test_a_mistake_is_made_in_a_copy_and_caught_or_not(repository, tmp_path):
    before = (repository / "emofm_jax" / "sums.py").read_text()
    noticed, line = mutations.judge(mutation("x"), repository, tmp_path)
    assert noticed and line == "caught      sums.py: a mistake"
    noticed, line = mutations.judge(mutation("x * x"), repository, tmp_path)
    assert not noticed and line == "NOT CAUGHT  sums.py: a mistake"
    with pytest.raises(RuntimeError, match="the tests did not run"):  # that is not to notice
        mutations.judge(mutation("x +"), repository, tmp_path)
    assert (repository / "emofm_jax" / "sums.py").read_text() == before


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(old="x - x"), "'x - x' occurs 0 times in sums.py, not once; quote"),
        (dict(old="x"), "'x' occurs 3 times in sums.py"),
        (dict(file="sum.py"), "emofm_jax/sum.py is no file"),
        (dict(new="x + x"), "old and new are the same"),
        (dict(tests=()), "no test is named"),
        (dict(tests=("tests/test_sum.py",)), "tests/test_sum.py is no file"),
        (
            dict(tests=("tests/test_sums.py::test_triple",)),
            "tests/test_sums.py has no test test_tr",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(repository, given, message):
    assert mutations.mistakes(mutation("0"), repository) == []
    (line,) = mutations.mistakes(mutation(**{"new": "0", **given}), repository)
    assert line.startswith(f"a mistake: {message}")
