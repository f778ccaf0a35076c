"""Colab, simulated: every notebook alone in an empty folder, with the versions that Colab ships.

    .venv/bin/python -m tests.colab.simulate FOLDER [NOTEBOOK ...] [--python PATH]

FOLDER receives an environment (about 6 GB, made once) and a clone of the last commit, which stands
for the repository: its ``file://`` address is stamped into a copy of each notebook. For every
notebook one line is printed; the status is 1 if one of them fails or has a package replaced.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import stamp, tutorial

ROOT = Path(__file__).parents[2]
VERSIONS = Path(__file__).with_name("versions.txt")
PYTHON = (3, 13)  # Colab's
TAG = "simulated"
# variables of this machine that no kernel in Colab has
FOREIGN = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "MPLBACKEND", "HELPERS_HOME", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Outcome:
    """What a notebook did: its error, if any, and what it changed in the environment."""

    error: str
    seconds: float
    added: dict[str, str]
    replaced: dict[str, str]

    @property
    def fine(self) -> bool:
        return not self.error and not self.replaced


def find_python() -> str:
    """Return a Python of Colab's version, or this one if the machine has none."""
    named = [shutil.which("python{}.{}".format(*PYTHON))]
    named += sorted(Path.home().glob(".pyenv/versions/{}.{}.*/bin/python".format(*PYTHON)))
    for candidate in filter(None, named):
        if version_of(candidate).startswith("{}.{}.".format(*PYTHON)):
            return str(candidate)
    return sys.executable


def version_of(python: str | Path) -> str:
    """Return the version of a Python, or nothing if it does not run."""
    show = "import platform; print(platform.python_version())"
    done = subprocess.run([python, "-c", show], capture_output=True, text=True)
    return done.stdout.strip()


def prepare(folder: Path, python: str | None = None) -> Path:
    """Make the environment, if it is not there, and a new clone; returns the Python inside."""
    folder.mkdir(parents=True, exist_ok=True)
    inside, ready = folder / "env" / "bin" / "python", folder / "versions.txt"
    if not ready.is_file() or ready.read_text() != VERSIONS.read_text():
        uv = [sys.executable, "-m", "uv"]
        base = ["--clear", "--seed", "--python", python or find_python(), folder / "env"]
        subprocess.run([*uv, "venv", "--quiet", *base], check=True)
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", inside, "-r", VERSIONS],
                       check=True)  # fmt: skip
        (site,) = (folder / "env").glob("lib/python*/site-packages")
        (site / "google" / "colab").mkdir(parents=True, exist_ok=True)
        (site / "google" / "colab" / "__init__.py").touch()
        startup = folder / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True, exist_ok=True)
        (startup / "00-colab.py").write_text("import google.colab\n")
        shutil.copyfile(VERSIONS, ready)
    shutil.rmtree(folder / "clone", ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "clone"], check=True)
    subprocess.run(["git", "tag", "--force", TAG], cwd=folder / "clone", check=True)
    return inside


def installed(python: Path) -> dict[str, str]:
    """Return name -> version of every package in an environment."""
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format=freeze"], text=True)
    return dict(line.split("==", 1) for line in listed.split())


def run(folder: Path, python: Path, name: str, tag: str = TAG) -> Outcome:
    """Execute one notebook alone, with a tag of the clone; take away what it installed."""
    before = installed(python)
    assert "prunelora-course" not in before, "the package has to be missing"
    notebook = tutorial.read(folder / "clone" / "notebooks" / f"{name}.ipynb")
    where = stamp.Origin(f"file://{folder / 'clone'}", tag)
    variables = {k: v for k, v in os.environ.items() if k not in FOREIGN}
    variables |= {"HELPERS_PRESET": "smoke", "COLAB_RELEASE_TAG": TAG, "OMP_NUM_THREADS": "1",
                  "IPYTHONDIR": str(folder / "ipython")}  # fmt: skip
    how = ["--to=notebook", "--execute", "--ExecutePreprocessor.timeout=600", "--output=done"]
    command = [python, "-m", "nbconvert", "--log-level=ERROR", *how, f"{name}.ipynb"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as alone:
        tutorial.save(stamp.stamp(notebook, name, where), Path(alone) / f"{name}.ipynb")
        done = subprocess.run(command, cwd=alone, env=variables, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, installed(python)
    added = {k: v for k, v in after.items() if k not in before}
    replaced = {k: f"{v} -> {after.get(k)}" for k, v in before.items() if after.get(k) != v}
    if added:
        take_away = [python, "-m", "pip", "uninstall", "--quiet", "--yes", *added]
        subprocess.run(take_away, check=True)
    return Outcome(done.stderr if done.returncode else "", seconds, added, replaced)


def main() -> int:
    """Simulate the notebooks named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("notebooks", nargs="*", default=tutorial.SERIES)
    parser.add_argument("--python", help="a Python of Colab's version; default: one is looked for")
    options = parser.parse_args()
    folder = options.folder.resolve()
    python = prepare(folder, options.python)
    found = installed(python)
    shown = ", ".join(f"{name} {found[name]}" for name in (*stamp.KEPT, "peft", "ipython"))
    print(f"Python {version_of(python)}, {shown}")
    fine = True
    for name in options.notebooks:
        outcome = run(folder, python, name)
        fine = fine and outcome.fine
        print(f"{name:<22} {'ok' if outcome.fine else 'FAILED':<7} {outcome.seconds:4.0f} s, added "
              f"{' '.join(outcome.added) or 'nothing'}, replaced "
              f"{outcome.replaced or 'nothing'}", flush=True)  # fmt: skip
        if outcome.error:
            print(outcome.error[-3000:])
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
