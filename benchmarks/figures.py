"""Draw the figures of the committed records anew, without measuring anything.

    python benchmarks/figures.py [NAME ...]

The scripts here that write records call it. Each file says inside which records it was drawn from,
as they were then; a test compares.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from measure import call

from helpers import audit, files, pages, plots, study
from helpers.config import choose

RESULTS = Path(__file__).parents[1] / "results"
SHORT = (  # what can be read at a glance
    "UA", "TA", "MIA", "Avg Gap", "TV", "linear_probe", "head_refit", "inner_refit",
    "CKA_forget", "IDI", "prototype_attack", "relearn_steps", "epsilon",
)  # fmt: skip
MARKED = ("finetune", "lora", "prunelora", "finetune@3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    draw(*(parser.parse_args().names or FIGURES))


def draw(*names: str) -> None:
    """Draw some of :data:`FIGURES`."""
    for name in names:
        choose("figure", name, FIGURES)
    for name in names:
        FIGURES[name](RESULTS / name)


def lie_detector(
    record: Path, path: Path, methods: Collection[str] = (), metrics: Collection[str] = ()
) -> None:
    """Draw the panel of an audit; of some methods and metrics, or of all."""
    plots.style()
    panel = study.panel(study.load(record))
    for column, chosen in (("method", methods), ("metric", metrics)):
        panel = panel[panel[column].isin(chosen)] if chosen else panel
    pages.keep_figure(plots.lie_detector(panel).figure, path, record)


def comparison(path: Path) -> None:
    """Draw the classic numbers of every method, as ``make results`` does."""
    plots.style()
    record = RESULTS / "comparison-cpu.json"
    table = audit.compare(files.read_json(record, ("rows",))["rows"])
    pages.keep_figure(plots.comparison(table)[0].figure, path, record)


def marks(path: Path) -> None:
    """Draw what a method's mark is, and what having seen the class adds."""
    plots.style()
    records = RESULTS / "audit-digits.json", RESULTS / "controls-digits.json"
    both = study.join([study.load(record) for record in records])
    table = study.marks(both, MARKED, ("TA", "head_refit", "IDI", "prototype_attack"))
    pages.keep_figure(plots.mark_and_memory(table)[0].figure, path, *records)


FIGURES: dict[str, Callable[[Path], None]] = {
    "comparison-cpu.png": comparison,
    "audit-digits.png": lambda path: lie_detector(RESULTS / "audit-digits.json", path),
    "lie-detector.png": lambda path: lie_detector(
        RESULTS / "audit-digits.json", path, pages.JUDGED, SHORT
    ),
    "marks-digits.png": marks,
    "audit-cifar.png": lambda path: lie_detector(RESULTS / "audit-cifar.json", path),
    "lie-detector-cifar.png": lambda path: lie_detector(
        RESULTS / "audit-cifar.json", path, metrics=SHORT
    ),
}

if __name__ == "__main__":
    call(main)
