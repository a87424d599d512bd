"""docs/options.md is what `python -m emofm_jax.config` prints."""

import subprocess
import sys
from pathlib import Path


def test_the_page_of_options_is_true():
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text()
    command = [sys.executable, "-m", "emofm_jax.config"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert page == printed, "python -m emofm_jax.config > docs/options.md"
