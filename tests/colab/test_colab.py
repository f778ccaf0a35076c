"""Every notebook opened alone, in an environment like Colab's; asked for by a variable."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from helpers import tutorial
from tests.colab import simulate


@pytest.fixture(scope="module")
def colab():
    """The folder of the simulation and the Python of its environment."""
    asked = os.environ.get("COLAB_SIMULATION")
    if not asked:
        pytest.skip("set COLAB_SIMULATION to a folder that may hold 6 GB to simulate Colab")
    folder = Path(asked).resolve()
    return folder, simulate.prepare(folder)


@pytest.mark.parametrize("name", tutorial.SERIES)
def test_the_notebook_runs_alone_and_replaces_nothing(colab, name):
    outcome = simulate.run(*colab, name)
    assert not outcome.error, outcome.error[-4000:]
    assert not outcome.replaced
    assert "prunelora-course" in outcome.added


def test_a_package_that_needs_another_numpy_is_refused_with_the_reason(colab):
    clone = colab[0] / "clone"
    project = clone / "pyproject.toml"
    project.write_text(project.read_text().replace('"numpy>=2.0"', '"numpy>=2.2"'))
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, "commit", "-aqm", "needs another numpy"], cwd=clone, check=True)
    subprocess.run(["git", "tag", "--force", "greedy"], cwd=clone, check=True)
    outcome = simulate.run(*colab, "00_start_here", "greedy")
    assert f"Cannot install numpy=={simulate.installed(colab[1])['numpy']}" in outcome.error
    assert not outcome.added
    assert not outcome.replaced
