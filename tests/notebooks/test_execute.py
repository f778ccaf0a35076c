"""Every notebook runs from top to bottom on reduced digits, the lessons on colour images too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tutorial
from tests import pictures

FOLDER = Path(__file__).parents[2] / "notebooks"
LESSONS = [FOLDER / f"{name}.ipynb" for name in tutorial.SERIES]
NOTEBOOKS = [*LESSONS, *map(tutorial.solutions_path, LESSONS)]


def run(path, preset, home, **more):
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env",
               "--nbval-cell-timeout=120", "-x", "-q", "-p", "no:cacheprovider",
               "-o", "addopts=", str(path)]  # fmt: skip
    environment = {k: v for k, v in os.environ.items()
                   if k not in ("MPLBACKEND", "PYTHONDONTWRITEBYTECODE")}  # fmt: skip
    environment |= {"HELPERS_PRESET": preset, "HELPERS_HOME": str(home), **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_alone_in_an_empty_home(path, tmp_path):
    run(path, "smoke", tmp_path)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A home that the lessons share, with images of ten classes that have names, one a hard one."""
    home = tmp_path_factory.mktemp("colour")
    pictures.write_folder(home / "pictures")
    cat = home / "pictures" / "cat"  # the class to forget; two dollars would be a formula
    cat.rename(cat.with_name("cat (5_$ or 6^$)"))
    return home


@pytest.mark.parametrize("path", LESSONS[1:], ids=lambda p: p.stem)  # those with networks
def test_the_notebook_runs_on_colour_images_and_a_network_of_torchvision(path, colour):
    """As the preset ``gpu`` does at full size: other layers, shapes, class names and recipes."""
    run(path, "smoke_gpu", colour, HELPERS_DATA=f"folder:{colour / 'pictures'}")
