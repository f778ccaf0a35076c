"""Every notebook opened alone, in an environment like Colab's; asked for by a variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers import tutorial
from tests.colab import simulate

FOLDER = os.environ.get("COLAB_SIMULATION")


@pytest.fixture(scope="module")
def python():
    if not FOLDER:
        pytest.skip("set COLAB_SIMULATION to a folder that may hold 6 GB to simulate Colab")
    return simulate.prepare(Path(FOLDER).resolve())


@pytest.mark.parametrize("name", tutorial.SERIES)
def test_the_notebook_runs_alone_and_replaces_nothing(python, name):
    outcome = simulate.run(Path(FOLDER).resolve(), python, name)
    assert not outcome.error, outcome.error[-4000:]
    assert not outcome.replaced
    assert "prunelora-course" in outcome.added
