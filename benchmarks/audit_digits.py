"""Audit every method on the digits: training seeds x classes, and image by image for one class.

    python benchmarks/audit_digits.py [--workers 2]

What is finished is kept in ``artifacts/``; run again to go on. The records are
``results/audit-digits.json`` (from which notebook 05, the README and the report are rendered) and
``results/shadows-digits.json``. ``wall_seconds`` is what one call took that began with nothing,
``core_seconds`` what all audits took together, the oracles' training left out.

Equal epochs are not equal cost: fine-tuning and retraining are audited a second time with as many
epochs as PruneLoRA's multiply-accumulates pay for, and with recipes tuned for that many. And
PruneLoRA is audited a second time by the same recipe with adapters in every block, where BatchNorm
then trains, too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import figures
from measure import call

from helpers import files, pages, shadows, study, unlearning
from helpers.config import TUNED, InputError, get_config, home

RESULTS = Path(__file__).parents[1] / "results"
SEEDS, ORACLES = range(5), 10
CFG = get_config("cpu", data="digits")
METHODS = [*unlearning.METHODS, "prunelora+scrub"]
SETTINGS = {name: {"method": name} for name in METHODS} | {
    "finetune@3": {"method": "finetune", "epochs": 3},
    "finetune_sgd@3": {"method": "finetune_sgd", "epochs": 3},
    "retrain@3": {"method": "retrain", "train": TUNED["digits"]["retrain@3"]},
    "prunelora, all blocks": {"method": "prunelora", "targets": "blocks"},
}
REPEATED = {"prunelora": 3, "finetune_sgd": 3}  # to tell unlearning seeds from the rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=("audit", "shadows"))
    options = parser.parse_args()
    if options.only != "shadows":
        resumed, started = (home() / "artifacts" / "audits").exists(), time.perf_counter()
        found = study.run(CFG, SETTINGS, range(10), SEEDS, REPEATED, ORACLES, options.workers)
        wall = None if resumed else time.perf_counter() - started
        about = {"workers": options.workers, "wall_seconds": wall}
        found.about.update(about, core_seconds=float(found.table["wall"].sum()))
        study.save(found, RESULTS / "audit-digits.json")
        figures.draw("audit-digits.png", "lie-detector.png")
        try:
            pages.render(RESULTS.parent)
        except InputError as error:  # the pages compare it with the controls
            print(f"the pages are as they were ({error}); run controls_digits.py next")
    if options.only != "audit":
        resumed, started = (home() / "artifacts" / "shadows").exists(), time.perf_counter()
        record = shadows.run(CFG, SETTINGS, workers=options.workers)
        wall = None if resumed else time.perf_counter() - started
        about = {"workers": options.workers, "wall_seconds": wall}
        files.write_json(RESULTS / "shadows-digits.json", record | about)


if __name__ == "__main__":
    call(main)
