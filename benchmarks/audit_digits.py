"""Audit every method on the digits: training seeds x classes, and image by image for one class.

    python benchmarks/audit_digits.py [--workers 2] [--repetitions 1]

What is finished is kept in ``artifacts/``; run again to go on. The records are
``results/audit-digits.json`` (from which notebook 05, the README and the report are rendered) and
``results/shadows-digits.json``. ``wall_seconds`` is what the last call took, ``core_seconds`` what
all audits took together, the oracles' training left out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from helpers import files, plots, report, shadows, study, unlearning
from helpers.config import get_config

RESULTS = Path(__file__).parents[1] / "results"
SEEDS, ORACLES = range(5), 10
METHODS = [*unlearning.METHODS, "prunelora+salun", "prunelora+scrub"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=1, help="unlearning seeds")
    parser.add_argument("--only", choices=("audit", "shadows"))
    options = parser.parse_args()
    cfg = get_config("cpu")
    if options.only != "shadows":
        started = time.perf_counter()
        found = study.run(
            cfg, METHODS, range(10), SEEDS, options.repetitions, ORACLES, options.workers
        )
        about = {"workers": options.workers, "wall_seconds": time.perf_counter() - started}
        found.about.update(about, core_seconds=float(found.table["wall"].sum()))
        study.save(found, RESULTS / "audit-digits.json")
        plots.style()
        figure = plots.lie_detector(study.panel(found)).figure
        figure.savefig(RESULTS / "audit-digits.png", dpi=110)
        report.render_readme(RESULTS.parent / "README.md")
    if options.only != "audit":
        started = time.perf_counter()
        methods = [m for m in unlearning.METHODS if m not in ("original", "retrain")]
        record = shadows.run(cfg, ["original", "retrain", *methods], workers=options.workers)
        about = {"workers": options.workers, "wall_seconds": time.perf_counter() - started}
        files.write_json(RESULTS / "shadows-digits.json", record | about)


if __name__ == "__main__":
    main()
