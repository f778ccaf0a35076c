"""Shared fixtures: one reduced dataset, one set of trained networks, and a home of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # its scripts import each other

# Before anything reads them: results of tests go to an empty folder, never into the clone.
_HOME = tempfile.TemporaryDirectory(prefix="helpers-tests-")
os.environ["HELPERS_HOME"] = _HOME.name
os.environ["HELPERS_PRESET"] = "smoke"
os.environ.pop("MPLBACKEND", None)
os.environ.pop("HELPERS_DATA", None)
mpl.use("agg")
# Tests compare results bit by bit; on a GPU gradients of convolutions else differ in the last ones.
torch.backends.cudnn.deterministic = True
settings.register_profile("course", deadline=None)  # how long a draw takes depends on neighbours
settings.load_profile("course")

from helpers import data, runs, unlearning  # noqa: E402
from helpers.config import get_config  # noqa: E402


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home for one test."""
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def cfg():
    chosen = get_config("smoke")
    unlearning.set_threads(chosen)
    return chosen


@pytest.fixture(scope="session")
def dataset(cfg):
    return data.load_dataset(cfg)


@pytest.fixture(scope="session")
def split(cfg, dataset):
    return dataset.split(cfg.forget)


@pytest.fixture(scope="session")
def original_run(cfg, dataset):
    return runs.run(cfg.but(method="original"), dataset, progress=False)


@pytest.fixture
def original(original_run, dataset):
    """A fresh copy of the trained network."""
    return original_run.model(dataset)


@pytest.fixture(scope="session")
def colab_ipywidgets(tmp_path_factory):
    """A folder with the ipywidgets of Colab, to go before the installed one."""
    folder = tmp_path_factory.mktemp("ipywidgets")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--retries", "0", "--timeout", "15", "--target", folder]
    old = ["ipywidgets==7.7.1", "ipython_genutils", "jupyterlab_widgets==1.1.1"]
    installed = subprocess.run([*command, *old], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"ipywidgets 7.7.1 cannot be installed here: {installed.stderr[-300:]}")
    return folder


@pytest.fixture(autouse=True)
def _no_figure_left_open():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
