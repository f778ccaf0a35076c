"""Ask of the audit on the digits what else could have made its verdicts.

    python benchmarks/controls_digits.py [--workers 2]

Three controls, with the classes, seeds and oracles of ``benchmarks/audit_digits.py``:

``METHOD of retrain``: the method is applied to a network that never saw the class. Whatever sets
the result apart from the oracles is the mark of the method, and no memory of the class.

``METHOD, high lr``: the tuning takes the smallest of the learning rates that validation images
cannot tell apart; here the method has the largest of them. What turns round with it was decided by
that rule. These are attacked image by image, too.

``METHOD, frozen BatchNorm``: PruneLoRA with BatchNorm as pruning left it. With adapters in every
block BatchNorm trains in every block, too; this tells what each of the two is worth.

What is finished is kept in ``artifacts/``; run again to go on. The record is
``results/controls-digits.json``; a figure and ``benchmarks/README.md`` are rendered from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import figures
import pandas as pd
from audit_digits import CFG, ORACLES, SEEDS, SETTINGS
from joblib import Parallel, delayed
from measure import call
from tqdm import tqdm

from helpers import data, pages, shadows, study, unlearning
from helpers.config import TUNED, RunConfig, at_home, home

RESULTS = Path(__file__).parents[1] / "results"
CLASSES = range(10)
ON_ORACLES = {
    "finetune": {"method": "finetune"},
    "lora": {"method": "lora"},
    "prunelora": {"method": "prunelora"},
    "finetune@3": {"method": "finetune", "epochs": 3},
}
HIGH = {
    f"{name}{study.HIGH}": {"method": name.partition("@")[0], "tuned": "digits_high"} | changes
    for name, changes in {
        "finetune": {}, "prune_finetune": {}, "lora": {}, "prunelora": {},
        "prunelora_channels": {}, "finetune@3": {"epochs": 3},
        "retrain@3": {"train": TUNED["digits_high"]["retrain@3"]},
    }.items()
}  # fmt: skip

FROZEN = {
    f"{name}{study.FROZEN}": SETTINGS[name] | {"norms": "frozen"}
    for name in ("prunelora", "prunelora, all blocks")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    high, frozen = (
        study.run(CFG, settings, CLASSES, SEEDS, oracles=ORACLES, workers=options.workers)
        for settings in (HIGH, FROZEN)
    )
    attacked = shadows.run(CFG, HIGH, workers=options.workers)
    images = data.load_dataset(CFG).fingerprint
    jobs = [delayed(on_oracles)(str(home()), CFG.but(forget=c), images) for c in CLASSES]
    pool = Parallel(n_jobs=options.workers, return_as="generator")
    with study.deaths_told():
        rows = [row for done in tqdm(pool(jobs), "classes", len(jobs)) for row in done]
    table = pd.DataFrame(rows)
    table["repetition"] = table["seed"] - table["original_seed"]
    never = study.Study(table, high.bands, high.oracles, high.about)
    found = study.join([never, frozen, high])
    about = ("forget", "networks", "groups", "methods")
    found.about["shadows"] = {name: attacked[name] for name in about}
    study.save(found, RESULTS / "controls-digits.json")
    figures.draw("marks-digits.png")
    pages.render(RESULTS.parent)


def on_oracles(place: str, cfg: RunConfig, images: str) -> list[dict[str, Any]]:
    """Apply the methods to networks that never saw the class, and audit what comes out."""
    with at_home(place):
        unlearning.set_threads(cfg)
        dataset = data.load_same(cfg, images)
        return study.of_retrained(cfg, ON_ORACLES, SEEDS, ORACLES, dataset)


if __name__ == "__main__":
    call(main)
