"""The project as a whole: style, documentation, what belongs together in several files."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import helpers
from helpers import audit, pages, tutorial
from helpers.config import InputError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(m.name for m in pkgutil.iter_modules(helpers.__path__))
PAGES = ["README.md", "CONTRIBUTING.md", "helpers/README.md", "benchmarks/README.md",
         "benchmarks/gpu/README.md", "data/README.md"]  # fmt: skip
ROOMS = ["files", "config", "bars", "turns", "parallel", "store", "download", "folders", "data",
         "models", "ledger", "recording", "training", "frozen", "pruning", "lora", "patches",
         "objectives", "edits", "unlearning", "outputs", "attacks", "shut", "features",
         "relearning", "statistics", "audit", "runs", "study", "sweep", "grid", "shadows",
         "defects", "report", "pages", "plots", "panels", "sliders", "card", "widgets",
         "exercises", "tutorial", "stamp", "__main__"]  # fmt: skip


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_the_linter_finds_nothing(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_room_imports_a_later_one():
    assert sorted(ROOMS) == MODULES
    for place, name in enumerate(ROOMS):
        tree = ast.parse((ROOT / "helpers" / f"{name}.py").read_text())
        used = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
                parts = node.module.split(".")
                used |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        later = used & set(ROOMS[place:])
        assert not later, f"{name} imports {later}"


def public():
    for name in MODULES:
        module = importlib.import_module(f"helpers.{name}")
        for key, value in vars(module).items():
            if key.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if inspect.isfunction(value):
                yield f"{name}.{key}", value
            elif inspect.isclass(value):
                yield f"{name}.{key}", value
                for method, function in vars(value).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{name}.{key}.{method}", function


PUBLIC = dict(public())
# methods whose one line says all, and exceptions
SHORT = {
    "data.ImageSet.where",
    "data.ImageSet.sample",
    "data.ImageSet.to",
    "data.ImageSet.with_all",
    "store.Stored.select",
    "store.Stored.to",
    "config.InputError",
    "files.FileProblem",
    "objectives.Task.forget",
    "objectives.Task.weight",
    "training.Interrupted",
    "tutorial.solutions_path",
}
HEADINGS = {
    name: {line.lstrip("# ").split(" · ")[-1].strip() for cell in nbformat.read(path, 4).cells
           if cell.cell_type == "markdown" for line in cell.source.splitlines()
           if line.startswith("#")}
    for name in tutorial.SERIES for path in [ROOT / "notebooks" / f"{name}.ipynb"]
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_everything_public_is_documented(name):
    thing = PUBLIC[name]
    text = inspect.getdoc(thing)
    assert text, "no docstring"
    assert text.splitlines()[0].endswith((".", "``"))
    if name in SHORT or name.endswith(".forward"):
        return
    assert "Source:" in text
    lesson = re.search(r'Lesson: (\w+), "([^"]+)"', text)
    assert lesson, "no lesson"
    notebook, section = lesson.groups()
    assert section in HEADINGS[notebook], f"{notebook} has no section {section!r}"
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        named = [p for p in signature.parameters if p not in ("self",)]
        missing = [p for p in named if not re.search(rf"^ +\*{{0,2}}{p}: ", text, re.MULTILINE)]
        assert not missing, f"undocumented arguments {missing}"
        assert signature.return_annotation is not inspect.Signature.empty
        untyped = [p for p in named
                   if signature.parameters[p].annotation is inspect.Parameter.empty]  # fmt: skip
        assert not untyped


def test_the_conda_environment_agrees_with_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert python == f"python{PROJECT['project']['requires-python']}"
    assert pip == "pip"
    assert extra == {"pip": ["-r constraints.txt", "-e ."]}, "as without conda"
    assert "pytorch" not in environment["channels"], "that channel ended with torch 2.5"


def test_the_tested_versions_cover_every_dependency_and_name_no_address():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    pinned = {re.split(r"[=;\[ ]", line)[0] for line in text.splitlines() if line[:1].isalnum()}
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    assert {re.split(r"[>=\[]", d)[0] for d in wanted} <= pinned


DISTRIBUTIONS = {"IPython": "ipython", "PIL": "pillow", "markdown_it": "markdown-it-py",
                 "sklearn": "scikit-learn", "yaml": "pyyaml"}  # fmt: skip
DEV_ROOMS = {"tutorial", "stamp"}  # of helpers, whose imports come with the extra dev


def imported(path):
    """The top names of all packages that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", ["helpers", "benchmarks", "tests"])
def test_what_is_imported_is_a_declared_dependency(folder):
    project = PROJECT["project"]
    needed, dev = (
        {re.split(r"[>=\[]", line)[0] for line in lines}
        for lines in (project["dependencies"], project["optional-dependencies"]["dev"])
    )
    here = {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}  # they import each other
    here |= {*sys.stdlib_module_names, "helpers", "tests"}
    for path in (ROOT / folder).rglob("*.py"):
        used = {
            DISTRIBUTIONS.get(name, name.replace("_", "-"))
            for name in imported(path) if name not in here
        }  # fmt: skip
        declared = needed if folder == "helpers" and path.stem not in DEV_ROOMS else needed | dev
        assert used <= declared, f"{path.relative_to(ROOT)}: {used - declared}"


def test_the_commands_of_the_readme_exist():
    readme, makefile = ((ROOT / name).read_text() for name in ("README.md", "Makefile"))
    for target in ("tutorial", "test", "lab"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "test.yml").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    for link, part in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        if part:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert part in anchors, (link, part)


def test_the_tables_of_the_pages_are_those_of_the_records(tmp_path):
    for page in pages.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
    pages.render(tmp_path)
    for page in pages.PAGES:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()


def test_a_page_without_its_markers_changes_no_page(tmp_path):
    for page in pages.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text().replace("| `prunelora` |", "| ? |"))
    broken = tmp_path / [*pages.PAGES][-1]
    broken.write_text("no marker")
    before = {page: (tmp_path / page).read_text() for page in pages.PAGES}
    assert "| ? |" in before["README.md"]
    with pytest.raises(InputError, match="needs <!-- "):
        pages.render(tmp_path)
    assert {page: (tmp_path / page).read_text() for page in pages.PAGES} == before


def test_the_manual_names_every_module():
    named = re.findall(
        r"`(\w+)`", (ROOT / "helpers" / "README.md").read_text().split("## Files")[1]
    )
    assert named == [name for name in ROOMS if name != "__main__"]


def test_by_avg_gap_the_cheats_are_no_further_than_retrained_networks_are_from_each_other():
    record = json.loads((ROOT / "results" / "comparison-cpu.json").read_text())
    gaps = audit.compare(record["rows"]).groupby("method")["Avg Gap"].mean()
    assert (gaps[["logit_mask", "head_only", "prototype"]] <= gaps["retrain"]).all()


def test_the_committed_comparison_keeps_the_promises():
    """On digits with the cpu preset, over all its seeds."""
    record = json.loads((ROOT / "results" / "comparison-cpu.json").read_text())
    rows = {m: [r for r in record["rows"] if r["method"] == m] for m in ("retrain", "prunelora")}
    mean = {m: {k: sum(r[k] for r in v) / len(v) for k in ("UA", "TA")} for m, v in rows.items()}
    assert [len(v) for v in rows.values()] == [5, 5]
    assert mean["retrain"]["TA"] >= 0.98
    assert mean["prunelora"]["UA"] >= 0.99
    assert abs(mean["prunelora"]["TA"] - mean["retrain"]["TA"]) <= 0.02
    assert {"date", "versions", "hardware"} <= set(record)
