"""README and docs/: links and named files exist, commands name programs, the picture is current."""

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
# The README's two commands; `.ci/run` and its readers type them as they stand.
QUICKSTART = (
    "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python -m emofm_jax.train "
    "--config=experiments/quickstart.py --workdir=runs/quickstart"
)
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# A path of this repository in a text, as in `emofm_jax/data/encode.py`; names in capitals or with braces are examples.
PATH = re.compile(r"`((?:emofm_jax|experiments|tests|benchmarks|docs|data)/[a-z0-9_/.]*\.[a-z]+)`")
EXAMPLES = {  # a reader writes them
    "experiments/mine.py",
    "experiments/mine_sweep.py",
    "experiments/daily.py",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", outside, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{name(path)} links to {target}"
        if anchor:
            assert anchor in anchors(page.read_text()), f"{name(path)} links to {target}"
        if path.is_relative_to(ROOT / "docs"):
            assert page.is_relative_to(ROOT / "docs"), (
                f"{name(path)}: {target} leaves docs/, which the site cannot show"
            )


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_that_are_named_exist(path):
    missing = {found for found in PATH.findall(path.read_text()) if not (ROOT / found).exists()}
    assert missing <= EXAMPLES


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_name_programs(path):
    text = path.read_text()
    for program in re.findall(r"python -m emofm_jax\.([a-z_]+)", text):
        assert (ROOT / "emofm_jax" / f"{program}.py").exists()
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).exists()


def test_the_first_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert QUICKSTART in lines[:15], "the first command comes first"
    assert TEST in lines
    assert len(re.findall(r"!\[", "\n".join(lines))) == 1, "one picture"
    assert sum(bool(re.match(r"\|[ -]*-[ -]*\|", line)) for line in lines) == 1, "one table"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    linked = {
        (ROOT / "docs" / target.split("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", index)
    }
    pages = {
        page
        for page in ROOT.glob("docs/**/*.md")
        if page.name != "index.md" or page.parent.name == "results"
    }
    assert pages <= linked


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    docs = ROOT / "docs"
    assert [
        str(p.relative_to(docs)) for p in docs.rglob("*.md") if str(p.relative_to(docs)) not in site
    ] == []


def test_the_picture_is_what_its_program_draws():
    spec = importlib.util.spec_from_file_location(
        "readme_picture", ROOT / "benchmarks" / "readme_picture.py"
    )
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.PICTURE.read_text(encoding="utf-8") == program.picture()
    assert f"]({name(program.PICTURE)})" in (ROOT / "README.md").read_text()
