"""Whatever anybody reads later is written by the functions of data/files.py, directories.py and parquet.py."""

import ast
from pathlib import Path

import pytest

import emofm_jax

pytestmark = pytest.mark.fast

PACKAGE = Path(emofm_jax.__file__).parent
THE_WAY = {"data/files.py", "data/directories.py", "data/parquet.py"}
# Methods of paths and functions of modules that make, change, move or remove files.
METHODS = {
    "write_text",
    "write_bytes",
    "mkdir",
    "rename",
    "unlink",
    "touch",
    "rmdir",
    "symlink_to",
    "hardlink_to",
}
METHODS |= {
    "write_table",
    "ParquetWriter",
    "save_file",
    "savez",
    "SummaryWriter",
    "NamedTemporaryFile",
    "mkstemp",
    "open_output_stream",
}
OF_OS = {
    "rename",
    "replace",
    "remove",
    "unlink",
    "mkdir",
    "makedirs",
    "rmdir",
    "truncate",
    "link",
    "symlink",
}
# Within `files.whole`; files of the cache of compiled programs, and of copies of remote places; what stands alone in
# an export.
ALLOWED = {
    ("training/checkpoint_files.py", "save_file"),
    ("scoring/write_artefact.py", "save_file"),
    ("scoring/write_artefact.py", "open"),
    ("scoring/write_artefact.py", "unlink"),
    ("scoring/write_artefact.py", "shutil.copyfileobj"),
    ("scoring/score.py", "savez"),
    ("scoring/row_files.py", "open"),
    ("training/compilation_cache.py", "mkdir"),
    ("training/compilation_cache.py", "unlink"),
    ("training/workdir.py", "mkdir"),
    ("cli.py", "open"),
    ("data/remote.py", "open_output_stream"),
    ("data/storage.py", "mkdir"),
    ("data/storage.py", "open"),
    ("data/storage.py", "shutil.copytree"),
    ("data/storage.py", "shutil.rmtree"),
}


def writes(tree: ast.AST) -> set[str]:
    """Calls that may write, by what they are called."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, of = called(node.func)
        modes = [*node.args[:2], *(k.value for k in node.keywords if k.arg == "mode")]
        texts = [x.value for x in modes if isinstance(x, ast.Constant) and isinstance(x.value, str)]
        if (
            name == "open"
            and of in ("", "io")
            and (unclear(node) or any(set("wax+") & set(t) for t in texts[-1:]))
        ):
            found.add("open")
        if (of == "os" and name in OF_OS) or (
            of == "shutil" and name not in ("which", "get_terminal_size")
        ):
            found.add(f"{of}.{name}")
        elif name in METHODS and of not in ("files", "directories", "files_lib", "parquet"):
            found.add(name)
    return found


def called(function: ast.expr) -> tuple[str, str]:
    """`replace` and `os` of os.replace."""
    if isinstance(function, ast.Name):
        return function.id, ""
    if isinstance(function, ast.Attribute):
        return function.attr, function.value.id if isinstance(function.value, ast.Name) else "?"
    return "", ""


def unclear(node: ast.Call) -> bool:
    """Whether the mode of `open` is no text that can be read here."""
    return len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)


def test_nothing_is_written_in_another_way():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if place not in THE_WAY and not place.startswith("experiments/"):
            found |= {(place, call) for call in writes(ast.parse(path.read_text()))}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "code, call",
    [
        ("open(path, 'wb')", "open"),
        ("open(path, mode)", "open"),
        ("open(path, mode='a')", "open"),
        ("open(path)", None),
        ("open(path, 'rb')", None),
        ("Path(x).write_text('')", "write_text"),
        ("path.unlink()", "unlink"),
        ("text.replace('a', 'b')", None),
        ("os.replace(a, b)", "os.replace"),
        ("shutil.rmtree(a)", "shutil.rmtree"),
        ("pq.write_table(t, p)", "write_table"),
        ("files.write_text(p, t)", None),
    ],
)
def test_what_counts_as_writing(code, call):
    assert writes(ast.parse(code)) == ({call} - {None})
