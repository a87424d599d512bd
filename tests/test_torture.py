"""A share of benchmarks/torture.py: killed, or with a disk that fails, `prepare` ends as if nothing had been."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[1] / "benchmarks" / "torture.py"


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("gcc"), reason="needs gcc and Linux"
)
def test_prepare_is_attacked(tmp_path):
    command = [
        sys.executable,
        str(TORTURE),
        "--kills=4",
        "--faults=4",
        "--fuzz=2",
        "--only=prepare*",
    ]
    done = subprocess.run(
        [*command, f"--keep={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" cases, 0 fell short\n")
