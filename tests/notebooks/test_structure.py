"""The skeleton and the rhythm that every lesson keeps."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import nbformat
import pytest

from helpers import tutorial

FOLDER = Path(__file__).parents[2] / "notebooks"
SKELETON = ["Goals", "You need", "What we saw", "Exercises", "Limits and pitfalls", "References",
            "Next"]  # fmt: skip


@pytest.fixture(params=tutorial.SERIES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def prose(notebook):
    return [c.source for c in notebook.cells if c.cell_type == "markdown"]


def test_the_folder_has_the_series_and_its_solutions():
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == sorted(tutorial.SERIES)
    assert sorted(p.stem for p in (FOLDER / "solutions").glob("*.ipynb")) == sorted(
        f"{n}_solutions" for n in tutorial.SERIES
    )


def test_the_sections_come_in_order(notebook):
    headings = [line[3:] for text in prose(notebook) for line in text.splitlines()
                if line.startswith("## ")]  # fmt: skip
    numbered = [h for h in headings if re.match(r"\d · ", h)]
    assert [h for h in headings if h not in numbered] == SKELETON
    assert [int(h[0]) for h in numbered] == list(range(1, len(numbered) + 1))
    assert 3 <= len(numbered) <= 7
    assert headings.index("You need") < headings.index(numbered[0])
    assert headings.index(numbered[-1]) < headings.index("What we saw")


def test_the_beginning(name, notebook):
    title = notebook.cells[0].source
    assert title.startswith(f"# {name[:2]} · ")
    assert "**The question: " in title
    assert f"notebooks/{name}.ipynb" in title, "the Colab badge opens this notebook"
    cells = [c.source for c in code(notebook)]
    assert 'importlib.util.find_spec("helpers")' in cells[0]
    assert cells[1].startswith("%matplotlib inline")
    assert "cfg = get_config()" in cells[2]
    for word in ("preset", "device", "data", "seed"):
        assert word in cells[2]
    assert any(f'report.budget("{name}")' in c for c in cells)
    goals = next(t for t in prose(notebook) if t.startswith("## Goals"))
    assert 3 <= goals.count("\n- ") <= 5
    assert sum("**Recap.**" in t for t in prose(notebook)) == 1


def test_the_bootstrap_is_short_and_the_same_everywhere():
    paths = [FOLDER / f"{n}.ipynb" for n in tutorial.SERIES]
    paths += [tutorial.solutions_path(path) for path in paths]
    (cell,) = {code(nbformat.read(path, 4))[0].source for path in paths}
    assert len(cell.splitlines()) <= 15
    assert "google.colab" not in cell, "what counts is whether the package is there"


def test_the_rhythm(notebook):
    lines = sorted(len(c.source.splitlines()) for c in code(notebook))
    assert statistics.median(lines) <= 6
    assert lines[int(0.9 * len(lines))] <= 20
    assert lines[-1] <= 40
    assert 1.2 <= len(prose(notebook)) / len(lines) <= 1.6
    assert len(notebook.cells) <= 60
    assert sum(len(text.split()) for text in prose(notebook)) <= 3500
    kinds = "".join(c.cell_type[0] for c in notebook.cells)
    assert "ccc" not in kinds, "three code cells in a row"


def test_predictions_asserts_and_described_figures(notebook):
    assert any("**Predict**" in text for text in prose(notebook))
    assert sum("assert " in c.source for c in code(notebook)) >= 3
    for cell, below in zip(notebook.cells, notebook.cells[1:], strict=False):
        pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if pictures:
            assert below.source.startswith("*Figure: "), cell.source


def test_the_exercises(notebook):
    tasks = [t for t in prose(notebook) if "### Exercise" in t]
    assert 3 <= len(tasks) <= 5
    for task in tasks:
        assert re.search(r"\((easy|medium|hard), \d+ minutes?\)", task)
        assert task.count("<details>") == task.count("</details>") == 2
    cells = [c.source for c in code(notebook)]
    assert sum(c.startswith("answer = ...") for c in cells) == len(tasks)
    checks = [c.source for c in code(notebook) if "check" in c.metadata.get("tags", [])]
    assert len(checks) == len(tasks)
    for check in checks:
        assert "assert " not in check.split("exercises.verdict(")[0], "it stops a right answer"


def test_no_seed_and_no_class_is_typed(notebook):
    """Once the settings have others, it would belong to other networks than the rest."""
    typed = r"\b(seeds?|forget|earlier)=[\[(]?\d|\"--(seed|forget)\",\s+\"\d"
    for cell in (*code(notebook), *code(tutorial.solutions(notebook))):
        assert not re.search(typed, cell.source), cell.source


def test_the_solutions_are_those_of_the_lesson(name, notebook):
    kept = nbformat.read(tutorial.solutions_path(FOLDER / f"{name}.ipynb"), as_version=4)
    made = tutorial.solutions(notebook)
    assert [(c.cell_type, c.source) for c in kept.cells] == [
        (c.cell_type, c.source) for c in made.cells
    ]


def test_it_is_committed_executed_and_normalised(name, notebook):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1.5e6
    counts = [c.execution_count for c in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for c in code(notebook) for o in c.outputs if o.output_type == "error"]
    assert any(c.outputs for c in code(notebook))
    text = path.read_text()
    assert text == nbformat.writes(tutorial.normalise(notebook)) + "\n"
    told = re.sub(r'"image/png": "[^"]*"', "", text)  # in base64 anything occurs by chance
    assert not re.search(r"/(tmp|home|root|Users)/", told), "a path of somebody's machine"


def test_what_we_saw_is_rendered_from_variables(notebook):
    place = next(i for i, c in enumerate(notebook.cells) if c.source.startswith("## What we saw"))
    cell = notebook.cells[place + 1]
    assert cell.cell_type == "code"
    assert 'Markdown(f"""' in cell.source
    outside = re.sub(r"\{[^{}]*\}", "", cell.source.split('"""')[1])
    assert not re.search(r"\d+(\.\d+)? ?%|\d+\.\d+", outside), "a number was typed"
