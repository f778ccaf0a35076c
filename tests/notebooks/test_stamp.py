"""The notebooks carry the address of pyproject.toml, and nothing else does."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from helpers import stamp, tutorial
from helpers.__main__ import main
from helpers.config import InputError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADDRESS = PROJECT["project"]["urls"]["Repository"]
ELSEWHERE = stamp.Origin("https://github.com/somebody/else", "v1.2")
LESSONS = [FOLDER / f"{name}.ipynb" for name in tutorial.SERIES]
NOTEBOOKS = [*LESSONS, *map(tutorial.solutions_path, LESSONS)]


@pytest.fixture
def clone(tmp_path):
    """A copy of what the command works on."""
    for path in NOTEBOOKS:
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.ipynb")}


def test_the_notebooks_are_what_the_command_writes(clone):
    before = contents(clone)
    assert main(["stamp", "--notebooks", str(clone / "notebooks")]) == 0
    assert contents(clone) == before, "run python -m helpers stamp"


def test_another_address_changes_the_badge_and_the_bootstrap_alone(clone, capsys):
    project = clone / "pyproject.toml"
    text = project.read_text().replace(ADDRESS, ELSEWHERE.address)
    project.write_text(text.replace('tag = "main"', f'tag = "{ELSEWHERE.tag}"'))
    before, command = contents(clone), ["stamp", "--notebooks", str(clone / "notebooks")]
    assert main([*command, "--check"]) == 2
    assert "not up to date; run python -m helpers stamp" in capsys.readouterr().err
    assert contents(clone) == before, "to check is not to write"
    assert main(command) == 0
    after = contents(clone)
    assert main([*command, "--check"]) == 0
    for path, old in before.items():
        new = after[path].decode()
        lines = zip(old.decode().splitlines(), new.splitlines(), strict=True)
        changed = [line for one, line in lines if one != line]
        kinds = ["Open in Colab", "git+"] if "solutions" not in path.parts else ["git+"]
        assert len(changed) == len(kinds)
        assert all(kind in line for kind, line in zip(kinds, changed, strict=True))
        assert ADDRESS not in new
        assert "git+https://github.com/somebody/else@v1.2" in changed[-1]
    badge = nbformat.read(clone / "notebooks/02_pruning.ipynb", 4).cells[0].source.splitlines()[2]
    assert "/github/somebody/else/blob/v1.2/notebooks/02_pruning.ipynb)" in badge


def test_a_repository_that_colab_cannot_open_has_no_badge():
    row = stamp._badges("01_baseline_training", stamp.Origin("file:///somewhere", "main"))
    assert row == (
        "[← previous: 00_start_here](00_start_here.ipynb) · [next: 02_pruning →](02_pruning.ipynb)"
    )


def test_nothing_else_holds_the_address():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.splitlines()  # fmt: skip
    texts = {Path(name): (ROOT / name).read_bytes() for name in listed if (ROOT / name).is_file()}
    holding = {path for path, text in texts.items() if ADDRESS.encode() in text}
    slug = ADDRESS.removeprefix(stamp.GITHUB).encode()
    holding |= {path for path, text in texts.items() if slug in text}
    stamped = {path.relative_to(ROOT) for path in NOTEBOOKS}
    assert holding == {Path("pyproject.toml"), Path("README.md"), *stamped}
    for path in stamped:  # once in the badge, once in the bootstrap
        assert texts[path].count(slug) == (1 if "solutions" in path.parts else 2), path


def test_the_readme_clones_that_address():
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"git clone (\S+) && cd (\S+)", readme) == [
        (ADDRESS, ADDRESS.rsplit("/", 1)[1])
    ]


def test_what_is_kept_is_what_the_package_needs():
    needed = {re.split(r"[>=\[]", d)[0] for d in PROJECT["project"]["dependencies"]}
    assert set(stamp.KEPT) <= needed
    assert {"torch", "torchvision", "numpy"} <= set(stamp.KEPT)


def run_bootstrap(monkeypatch, installed):
    """Execute the cell with a pip that only says what it was asked for."""
    asked = []
    monkeypatch.setattr(subprocess, "check_output", lambda *a, **k: "\n".join(installed))
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    exec(stamp._bootstrap(ELSEWHERE), {})
    return asked


def test_the_bootstrap_does_nothing_where_the_package_is(monkeypatch):
    assert run_bootstrap(monkeypatch, ["torch==2.11.0"]) == []


def test_a_mere_folder_of_that_name_is_not_the_package(monkeypatch, tmp_path):
    (tmp_path / "helpers" / "results").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    for name in [n for n in sys.modules if n.partition(".")[0] == "helpers"]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.util.find_spec("helpers") is not None, "a namespace"
    (command,) = run_bootstrap(monkeypatch, ["torch==2.11.0"])
    assert command[-1].startswith("git+")


def test_the_bootstrap_pins_what_is_installed_in_colab_and_elsewhere(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    installed = [
        "numpy==2.1.3",
        "torch==2.11.0+cu128",
        "torch-pruning==1.6.1",
        "gpg===1.16-unknown",
    ]
    (command,) = run_bootstrap(monkeypatch, installed)
    assert command == [
        sys.executable, "-m", "pip", "install", "-q", "numpy==2.1.3", "torch==2.11.0+cu128",
        "git+https://github.com/somebody/else@v1.2",
    ]  # fmt: skip


def lesson(title="# 00 · Start here\n\n**The question: why?**", first="# find_spec"):
    cells = [nbformat.v4.new_markdown_cell(title), nbformat.v4.new_code_cell(first)]
    return nbformat.v4.new_notebook(cells=cells)


def test_a_new_lesson_is_stamped_and_a_cell_of_somebody_is_not_overwritten():
    made = stamp.stamp(lesson(first=""), "00_start_here", ELSEWHERE)
    assert made.cells[0].source.splitlines()[2] == stamp._badges("00_start_here", ELSEWHERE)
    assert made.cells[0].source.endswith("\n\n**The question: why?**")
    assert made.cells[1].source == stamp._bootstrap(ELSEWHERE)
    with pytest.raises(InputError, match="first code cell of 00_start_here"):
        stamp.stamp(lesson(first="answer = 42"), "00_start_here", ELSEWHERE)
    with pytest.raises(InputError, match="first cell of 00_start_here"):
        stamp.stamp(lesson(title="# 00 · Start here"), "00_start_here", ELSEWHERE)


@pytest.mark.parametrize("place", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "added", ["Words.", "[![A badge](of.svg)](somebody)", "- a list\n- of two"]
)
def test_what_an_author_adds_stays(place, added):
    name = "02_pruning"
    made = stamp.stamp(lesson("# 02 · Pruning\n\n**The question: why?**", ""), name, ELSEWHERE)
    lines = made.cells[0].source.splitlines()
    made.cells[0].source = "\n".join([*lines[: place - 1], "", added, "", *lines[place - 1 :]])
    code = made.cells[1].source
    made.cells[1].source = f"# before\n{code}\nanswer = 42"
    moved = stamp.Origin("https://github.com/another/one", "v2")
    stamped = stamp.stamp(made, name, moved)
    title, _, row, _, *rest = stamped.cells[0].source.split("\n")
    assert (title, row) == (lines[0], stamp._badges(name, moved))
    assert [line for line in rest if line] == [*added.split("\n"), "**The question: why?**"]
    assert "\n\n**The question" in stamped.cells[0].source
    assert stamped.cells[1].source == f"# before\n{stamp._bootstrap(moved)}\nanswer = 42"
    assert stamp.stamp(stamped, name, moved) == stamped, "and nothing is written twice"


@pytest.mark.parametrize("title", ["", "**The question: why?**", "\n**The question: why?**"])
def test_a_lesson_without_a_title_is_refused(title):
    with pytest.raises(InputError, match=r"first cell of 00_start_here = .* a title and"):
        stamp.stamp(lesson(title=title), "00_start_here", ELSEWHERE)


@pytest.mark.parametrize("command", ["stamp", "tutorial"])
@pytest.mark.parametrize("text", ["{}", "5", '{"cells": [], "metadata": {}, "nbformat": 4, '
                                  '"nbformat_minor": 5}'])  # fmt: skip
def test_a_damaged_lesson_is_one_line_and_status_2(clone, capfd, command, text):
    (clone / "notebooks" / "00_start_here.ipynb").write_text(text)
    words = [] if command == "stamp" else ["--html", str(clone / "html")]
    assert main([command, "--notebooks", str(clone / "notebooks"), *words]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert "00_start_here.ipynb" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "tag", "field"),
    [
        ("http://github.com/a/b", "main", "Repository"),
        ('https://github.com/a/b"; import os', "main", "Repository"),
        ("https://github.com/a/b", "", "tag"),
        ("https://github.com/a/b", "--upload-pack=x", "tag"),
        ("https://github.com/a/b", 'main"', "tag"),
    ],
)
def test_an_address_that_would_not_stay_in_its_place_is_refused(address, tag, field):
    with pytest.raises(InputError, match=field):
        stamp.Origin(address, tag)


def test_a_project_that_does_not_say_is_named(tmp_path):
    project = tmp_path / "pyproject.toml"
    with pytest.raises(InputError, match="run this in the clone"):
        stamp.origin(project)
    project.write_text('[project.urls]\nRepository = "https://github.com/a/b"\n')
    with pytest.raises(InputError, match=r"tag in \[tool.course\]"):
        stamp.origin(project)
    for text in ("project = 5", '[project]\nurls = ["x"]', "tool = []", "project"):
        project.write_text(text)
        with pytest.raises(InputError, match=r"it needs Repository in \[project.urls\]"):
            stamp.origin(project)
