"""What every notebook carries of the repository's address: the row of badges, the bootstrap cell.

A notebook that is opened alone, as in Colab, has nothing but itself, so it must know where the
package is. The address and the tag are written once, in ``pyproject.toml``, and stamped into the
notebooks from there.
"""

from __future__ import annotations

import copy
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import tutorial
from helpers.config import InputError, check, need

if TYPE_CHECKING:
    from nbformat import NotebookNode

# What a kernel may have loaded and other packages are compiled against; Colab ships all of them.
KEPT = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "ipywidgets", "scikit-learn")
GITHUB = "https://github.com/"  # the only place from which Colab opens notebooks by address
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
QUESTION = "**The question: "
# what the command writes: a line of the first cell, with what is empty after it, and a whole cell
_ROW = re.compile(rf"^({re.escape(BADGE)}|\[← previous: |\[next: ).*\n+", re.MULTILINE)
_BOOTSTRAP = re.compile(
    r'import importlib\.util\n.*?find_spec\("helpers"\).*?check=True\)', re.DOTALL
)


@dataclass(frozen=True)
class Origin:
    """Where the course comes from.

    Attributes:
        address: Of the repository; begins with ``https://`` or ``file://``.
        tag: Tag or branch of it that notebooks opened alone use.

    Source: ``pyproject.toml``.
    Lesson: 00_start_here, "You need".
    """

    address: str
    tag: str

    def __post_init__(self) -> None:
        """Refuse what could not stand in a link and in a cell; raises InputError."""
        plain = re.fullmatch(r"(https|file)://[\w./~%:+-]+", str(self.address))
        check("Repository", self.address, bool(plain), "https://… or file://…")
        plain = re.fullmatch(r"\w[\w./-]*", str(self.tag))
        check("tag", self.tag, bool(plain), "the name of a tag or branch")


def origin(project: Path) -> Origin:
    """Read where the course comes from.

    Args:
        project: The ``pyproject.toml``.

    Returns:
        ``Repository`` of ``[project.urls]`` and ``tag`` of ``[tool.course]``.

    Raises:
        InputError: If the file does not exist, cannot be read or does not say so.

    Source: ``pyproject.toml``.
    Lesson: 00_start_here, "You need".
    """
    try:
        settings = tomllib.loads(project.read_text(encoding="utf-8"))
        address, tag = settings["project"]["urls"]["Repository"], settings["tool"]["course"]["tag"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{project} does not say where the course comes from ({error!r}): it needs Repository "
            "in [project.urls] and tag in [tool.course]; run this in the clone"
        ) from error
    return Origin(address, tag)


def _badges(name: str, where: Origin) -> str:
    """Write the row below a lesson's title: the Colab badge, the lessons before and after.

    Without a badge unless the repository is on GitHub. Source: https://openincolab.com.
    """
    place, row = tutorial.SERIES.index(name), []
    if where.address.startswith(GITHUB):
        path = where.address.removeprefix(GITHUB).removesuffix(".git").strip("/")
        page = f"https://colab.research.google.com/github/{path}/blob/{where.tag}"
        row.append(f"{BADGE}({page}/notebooks/{name}.ipynb)")
    if place > 0:
        before = tutorial.SERIES[place - 1]
        row.append(f"[← previous: {before}]({before}.ipynb)")
    if place < len(tutorial.SERIES) - 1:
        after = tutorial.SERIES[place + 1]
        row.append(f"[next: {after} →]({after}.ipynb)")
    return " · ".join(row)


def _bootstrap(where: Origin) -> str:
    """Write the cell that installs the package where it is missing, and replaces nothing.

    pip is told to keep the installed version of every package in ``KEPT``: it then adds what is
    missing, or fails and says which versions do not go together. Source: pip's "VCS Support".
    """
    names = ", ".join(f'"{name}"' for name in KEPT)
    return f"""import importlib.util
import subprocess
import sys

found = importlib.util.find_spec("helpers")
if found is None or found.origin is None:  # as in Colab, or a mere folder; replaces nothing
    address = "git+{where.address}@{where.tag}"
    keep = [{names}]
    pip = [sys.executable, "-m", "pip"]
    there = subprocess.check_output([*pip, "list", "--format=freeze"], text=True).split()
    there = [line for line in there if line.split("==")[0] in keep]
    subprocess.run([*pip, "install", "-q", *there, address], check=True)"""


def stamp(notebook: NotebookNode, name: str, where: Origin) -> NotebookNode:
    """Bring the badges and the bootstrap cell of a notebook up to date.

    Args:
        notebook: A lesson, or its solutions, which have no badges; stays as it is.
        name: The lesson.
        where: The repository.

    Returns:
        A normalised copy; everything else and all outputs are as they were.

    Raises:
        InputError: If the title or the first code cell is not what a lesson has there.

    Source: this project.
    Lesson: 00_start_here, "You need".
    """
    notebook = copy.deepcopy(notebook)
    title = notebook.cells[0]
    if not title.source.startswith("# Solutions: "):
        heading, question, rest = title.source.partition(QUESTION)
        ok = bool(question and heading.strip())
        check(f"first cell of {name}", title.source[:40], ok, f"a title and {QUESTION!r}")
        first, _, between = heading.partition("\n")
        between = _ROW.sub("", between).lstrip("\n")
        title.source = f"{first}\n\n{_badges(name, where)}\n\n{between}{question}{rest}"
    cell = next((c for c in notebook.cells if c.cell_type == "code"), None)
    source = "" if cell is None else cell.source
    written = _BOOTSTRAP.search(source)
    ok = cell is not None and (not source.strip() or written is not None)
    check(f"first code cell of {name}", source[:40], ok, "the bootstrap, or empty to receive it")
    before, after = (source[: written.start()], source[written.end() :]) if written else ("", "")
    cell.source = before + _bootstrap(where) + after
    return tutorial.normalise(notebook)


def stamp_all(notebooks: Path, where: Origin, write: bool = True) -> list[Path]:
    """Stamp every lesson and its solutions.

    Args:
        notebooks: Folder of the notebooks.
        where: The repository.
        write: Whether to write what differs, or only to look.

    Returns:
        The files that differed, in the order of the series; empty if all were up to date.

    Raises:
        InputError: If a notebook is missing or is none; those before it are then written. Or if
            nbformat is not installed.
        FileProblem: If a file cannot be written.

    Source: this project.
    Lesson: 00_start_here, "You need".
    """
    nbformat = need("stamp", "nbformat", "pip install nbformat")
    differed = []
    for name in tutorial.SERIES:
        lesson = notebooks / f"{name}.ipynb"
        for path in (lesson, tutorial.solutions_path(lesson)):
            notebook = tutorial.read(path)
            stamped = stamp(notebook, name, where)
            if path.read_text(encoding="utf-8") != nbformat.writes(stamped) + "\n":
                differed.append(path)
                if write:
                    tutorial.save(stamped, path)
    return differed
