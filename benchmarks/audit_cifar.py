"""Train, forget and audit on CIFAR-10 with ResNet-20, on any two cores, in some hours.

    python benchmarks/audit_cifar.py --data folder:PATH [--workers 2] [--only networks|audit]

``--data cifar10`` takes the original images. What is finished is kept in ``artifacts/``, training
in progress at least once a minute: stop it at will and run it again to go on. First the networks
(three originals, three oracles a class), then, with recipes that ``tune_cifar.py`` found, every
method and its audit. The record is ``results/audit-cifar.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from joblib import Parallel, delayed

from helpers import data, runs, study
from helpers.config import RunConfig, get_config

RECORD = Path(__file__).parents[1] / "results" / "audit-cifar.json"
PAPER = ("finetune", "prune_finetune", "lora", "prunelora")
METHODS = (
    "original", *PAPER, "prunelora_channels", "finetune_sgd", "neggrad_plus", "salun", "logit_mask",
    "head_only", "prototype",
)  # fmt: skip
SETTINGS = {name: {"method": name} for name in METHODS} | {
    f"{name}, as published": {"method": name, "mode": "paper"} for name in PAPER
}
FORGET = {3: (0, 1, 2), 9: (0,), 8: (0,)}  # class -> training seeds of its originals
ORACLES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="cifar10, or folder:PATH")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=("networks", "audit"))
    options = parser.parse_args()
    cfg = get_config("cifar", data=options.data)
    if options.only != "audit":
        data.load_dataset(cfg)  # decoded once, before there are several workers
        Parallel(n_jobs=options.workers)(delayed(runs.run)(one) for one in networks(cfg))
    if options.only != "networks":
        study.save(audits(cfg, options.workers), RECORD)


def audits(cfg: RunConfig, workers: int) -> study.Study:
    """Do and audit every method, each class and training seed a job of its own."""
    cells = [([forget], [seed]) for forget, seeds in FORGET.items() for seed in seeds]
    jobs = (delayed(study.run)(cfg, SETTINGS, *cell, oracles=ORACLES) for cell in cells)
    return study.join(Parallel(n_jobs=workers)(jobs))


def networks(cfg: RunConfig) -> list[RunConfig]:
    """List the originals and the oracles, what is needed for the first class first."""
    seeds = sorted({seed for several in FORGET.values() for seed in several})
    originals = [cfg.but(method="original", seed=seed) for seed in seeds]
    oracles = [
        cfg.but(method="retrain", forget=forget, seed=study.ORACLE_SEED + i)
        for forget in FORGET for i in range(ORACLES)
    ]  # fmt: skip
    return [originals[0], *oracles[:ORACLES], *originals[1:], *oracles[ORACLES:]]


if __name__ == "__main__":
    main()
