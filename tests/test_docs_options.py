"""docs/options.md is what `python -m emofm_jax.config` prints."""

from pathlib import Path

from emofm_jax import config


def test_the_page_of_options_is_true():
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text()
    assert page == f"{config._page()}\n", "python -m emofm_jax.config > docs/options.md"
