"""Every notebook runs from top to bottom on reduced digits, the lessons on colour images too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from helpers import models, plots, pruning, runs, tutorial
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


@pytest.mark.parametrize("sparsity", [0.02, 0.3])  # of 16 filters none, and 5
def test_what_is_said_of_zeros_holds_where_layers_round_them_differently(
    cfg, dataset, original, sparsity
):
    cfg = cfg.but(sparsity=sparsity)
    done = {
        method: runs.run(cfg.but(method=method), dataset, progress=False)
        for method in ("prunelora", "prunelora_channels")
    }
    names = {"cfg": cfg, "dataset": dataset, "done": done, "model": original, "models": models,
             "pd": pd, "plots": plots, "prunelora": done["prunelora"], "pruning": pruning,
             "runs": runs}  # fmt: skip
    cells = nbformat.read(FOLDER / "04_class_unlearning.ipynb", as_version=4).cells
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("same = cfg.but("))
    for cell in (cells[start], cells[start + 2]):
        exec(cell.source, names)
