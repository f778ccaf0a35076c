"""Every notebook, opened alone in an empty home, runs from top to bottom on reduced data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tutorial

FOLDER = Path(__file__).parents[2] / "notebooks"
LESSONS = [FOLDER / f"{name}.ipynb" for name in tutorial.SERIES]
NOTEBOOKS = [*LESSONS, *map(tutorial.solutions_path, LESSONS)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs(path, tmp_path):
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env",
               "--nbval-cell-timeout=120", "-x", "-q", "-p", "no:cacheprovider",
               "-o", "addopts=", str(path)]  # fmt: skip
    environment = {k: v for k, v in os.environ.items()
                   if k not in ("MPLBACKEND", "PYTHONDONTWRITEBYTECODE")}  # fmt: skip
    environment |= {"HELPERS_PRESET": "smoke", "HELPERS_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
