"""A browser, and the servers whose pages it opens.

Without Chromium these tests are skipped, and say so; with ``HELPERS_BROWSER=required`` they fail.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "test-results"
AXE = "axe-core@4.10.3"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-dev-shm-usage", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
# The largest rank cannot be drawn, and seed 1 trains so long that somebody can press Stop.
TRAPS = """
from helpers import grid, plots

def mark(*args, real=plots.mark_surface):
    if args[2] == max(stored.values("rank")):
        raise RuntimeError("broken on purpose")
    return real(*args)

def train(stored, point, seed, cfg, *rest, real=grid.train):
    return real(stored, point, seed, cfg.but(epochs=5000) if seed == 1 else cfg, *rest)

plots.mark_surface, grid.train = mark, train
"""


def missing(reason: str) -> None:
    """Skip, or fail where a browser is required."""
    if os.environ.get("HELPERS_BROWSER") == "required":
        pytest.fail(f"HELPERS_BROWSER=required, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        missing("no Chromium was found; install it, for example with apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """The text of axe-core, from npm."""
    place = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        missing("npm was not found, from which axe-core comes")
    archive = f"{AXE.replace('@', '-')}.tgz"
    for command in (["npm", "pack", "--silent", AXE], ["tar", "xzf", archive]):
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
        if done.returncode:
            missing(f"axe-core could not be had: {done.stderr.strip()[-300:]}")
    return (place / "package" / "axe.min.js").read_text(encoding="utf-8")


class Server:
    """A server in a process group of its own, with settings of its own."""

    def __init__(self, command: list[str], folder: Path, before: Path | None = None) -> None:
        """Start it; the packages in the folder ``before`` go before the installed ones."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
                  "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
                  "HELPERS_HOME")  # fmt: skip
        own = ("MPLBACKEND", "PYTHONDONTWRITEBYTECODE", "JUPYTER_TOKEN")
        environment = {k: v for k, v in os.environ.items() if k not in own}
        environment |= {name: str(folder / name.lower()) for name in places}
        environment |= {"HELPERS_PRESET": "smoke", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if before is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(before), str(ROOT)])
            environment["JUPYTER_PATH"] = str(before / "share" / "jupyter")
        self.log = folder / "server.log"
        self.log.touch()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={self.port}"], cwd=folder, env=environment,
            stdout=self.log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def address(self) -> str:
        """Wait for the line that the user sees, and return the address in it."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(rf"http://127\.0\.0\.1:{self.port}/\S*token=\w+",
                                  self.log.read_text()):  # fmt: skip
                return found[0]
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def notebook(folder: Path) -> Path:
    """Copy the lesson, because Lab saves it, and set the traps in the page's last cell."""
    lesson = nbformat.read(ROOT / "notebooks" / "06_explorer.ipynb", as_version=4)
    trap = nbformat.v4.new_code_cell(TRAPS, metadata={"tags": ["app"]})
    lesson.cells.append(trap)
    path = folder / "06_explorer.ipynb"
    nbformat.write(lesson, path)
    return path


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    notebook(folder)
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    quiet = folder / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    server = Server(["jupyterlab", "--no-browser", "--ip=127.0.0.1", *root], folder)
    yield server
    server.end()


@pytest.fixture(scope="session")
def voila(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voila")
    path = notebook(folder)
    config = ROOT / "notebooks" / "app"
    server = Server(["voila", f"--Voila.config_file_paths={config}", str(path)], folder)
    yield server
    server.end()


@pytest.fixture(scope="session")
def voila_colab(tmp_path_factory, colab_ipywidgets):
    folder = tmp_path_factory.mktemp("voila_colab")
    path = notebook(folder)
    config = ROOT / "notebooks" / "app"
    command = ["voila", f"--Voila.config_file_paths={config}", str(path)]
    server = Server(command, folder, colab_ipywidgets)
    yield server
    server.end()


LESSON = """
import ipywidgets, torch
from helpers import sliders

draw = torch.Generator().manual_seed(0)
print("ipywidgets", ipywidgets.__version__)
sliders.rank({name: torch.randn((8, 4, 3, 3), generator=draw) for name in ("one", "other")})
"""


@pytest.fixture(scope="session", params=["installed", "7.7.1"])
def lesson(request, browser, tmp_path_factory):
    """The page of a lesson's slider, with the installed ipywidgets and with Colab's."""
    before = None if request.param == "installed" else request.getfixturevalue("colab_ipywidgets")
    folder = tmp_path_factory.mktemp("lesson")
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3",
                                    "display_name": "Python 3"}})  # fmt: skip
    made.cells.append(nbformat.v4.new_markdown_cell("# Rank", metadata={"tags": ["app"]}))
    made.cells.append(nbformat.v4.new_code_cell(LESSON, metadata={"tags": ["app"]}))
    nbformat.write(made, folder / "lesson.ipynb")
    config = ROOT / "notebooks" / "app"
    command = ["voila", f"--Voila.config_file_paths={config}", "lesson.ipynb"]
    server = Server(command, folder, before)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(server.address(), timeout=120_000)
    page.locator(".panel-says p").wait_for(timeout=120_000)
    if before is not None:
        page.get_by_text("ipywidgets 7.7.1").wait_for()
    yield page
    page.close()
    server.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    page = getattr(item.module, "PAGES", {}).get(item.callspec.params.get("kind")) if hasattr(
        item, "callspec") else None  # fmt: skip
    if report.when == "call" and report.failed and page is not None:
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"\W+", "-", item.name)
        page.screenshot(path=RESULTS / f"failed-{name}.png")
        errors = page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
        report.sections.append(("what the page shows", page.locator("body").inner_text()[-3000:]))
        report.sections.append(("errors on the page", "\n".join(errors)[-3000:]))
    return report
