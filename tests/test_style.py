"""How the package reads (CONTRIBUTING.md, Style), as far as ruff does not see it."""

import ast
from pathlib import Path

import pytest

import emofm_jax

pytestmark = pytest.mark.fast

PACKAGE = Path(emofm_jax.__file__).parent
LONGEST = 50  # lines of a function, without its docstring
SHARE = 0.05  # of blank lines, at least, in functions of ten lines and more


def functions(tree, outermost=False):
    """Functions of a module, those within others too."""
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function:
            yield node
        if not (is_function and outermost):
            yield from functions(node, outermost)


def docstring(function) -> int:
    """Lines of its docstring."""
    first = function.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0


def read():
    """(file, its lines, its tree) of the whole package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text("utf-8")
        yield path.relative_to(PACKAGE), text.splitlines(), ast.parse(text)


def test_functions_are_short():
    long = []
    for path, _, tree in read():
        for function in functions(tree):
            num_lines = function.end_lineno - function.lineno + 1 - docstring(function)
            if num_lines > LONGEST:
                long.append(f"{path}: {function.name} has {num_lines} lines")
    assert not long


def test_functions_have_paragraphs():
    """Of their bodies, without docstrings."""
    blank = total = 0
    for _, lines, tree in read():
        for function in functions(tree, outermost=True):
            start = function.body[0].lineno - 1 + docstring(function)
            body = lines[start : function.end_lineno]
            if function.end_lineno - function.lineno + 1 >= 10:
                blank, total = blank + sum(not line.strip() for line in body), total + len(body)
    assert total > 10_000 and blank >= SHARE * total, f"{blank} of {total} lines are blank"
