"""Audit a grid of ranks and sparsities on the digits: what the explorer shows at once.

    python benchmarks/explorer_digits.py [--workers 2]

Every class, two training seeds. What is finished is kept in ``artifacts/``; run again to go on. The
record is ``results/explorer-digits.json``: a study whose rows also say rank and sparsity (empty for
a method that has none).
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from measure import call

from helpers import data, study, unlearning
from helpers.config import InputError, get_config, home

RECORD = Path(__file__).parents[1] / "results" / "explorer-digits.json"
CFG = get_config("cpu", data="digits")
SEEDS, ORACLES = range(2), 10
RANKS, SPARSITIES = (1, 2, 4, 8, 16), (0.0, 0.25, 0.5, 0.75, 0.9)
GRIDS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "original": ((None,), (None,)),
    "retrain": ((None,), (None,)),
    "finetune": ((None,), (None,)),
    "prune_finetune": ((None,), SPARSITIES),
    "lora": (RANKS, (None,)),
    "prunelora": (RANKS, SPARSITIES),
    "prunelora_channels": (RANKS, SPARSITIES),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    settings, refused = possible()
    resumed, started = (home() / "artifacts" / "audits").exists(), time.perf_counter()
    found = study.run(CFG, settings, range(10), SEEDS, 1, ORACLES, workers)
    labels = found.table["method"]
    for column in ("rank", "sparsity"):
        values = {name: changes.get(column) for name, changes in settings.items()}
        found.table[column] = labels.map(values).astype(float)
    found.table["method"] = labels.map({n: changes["method"] for n, changes in settings.items()})
    wall = None if resumed else time.perf_counter() - started
    found.about.update(workers=workers, wall_seconds=wall, refused=refused,
                       core_seconds=float(found.table["wall"].sum()))  # fmt: skip
    study.save(found, RECORD)


def possible() -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return label -> changes of what can be run, and why the rest cannot."""
    dataset, settings, refused = data.load_dataset(CFG), {}, []
    for method, axes in GRIDS.items():
        for rank, sparsity in itertools.product(*axes):
            place = {"method": method, "rank": rank, "sparsity": sparsity}
            changes = {name: value for name, value in place.items() if value is not None}
            label = ", ".join(map(str, changes.values()))
            try:
                unlearning.validate(CFG.but(**changes), dataset)
            except InputError as error:
                refused.append(place | {"reason": str(error)})
                continue
            settings[label] = changes
    return settings, refused


if __name__ == "__main__":
    call(main)
