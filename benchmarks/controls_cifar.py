"""Apply methods to networks that never saw cat: what they do to these is their mark, no memory.

    python benchmarks/controls_cifar.py --data folder:PATH [--workers 2]

As ``controls_digits.py``, with the networks of ``audit_cifar.py``: each oracle of the class is what
a method starts from, and is measured before and after. Its metrics are those that need no other
network; three pairs are too few for intervals. What is finished is kept in ``artifacts/``.
The record is ``results/controls-cifar.json``, and ``benchmarks/README.md`` is rendered from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from audit_cifar import ORACLES, take
from joblib import Parallel, delayed
from measure import call

from helpers import audit, data, files, pages, runs, study, unlearning
from helpers.config import RunConfig, at_home, get_config, home

RECORD = Path(__file__).parents[1] / "results" / "controls-cifar.json"
FORGET = 3
METHODS = ("finetune", "prunelora", "lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="cifar10, or folder:PATH")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    cfg = get_config("cifar", data=options.data, forget=FORGET)
    dataset = data.load_dataset(cfg)  # decoded once, before there are several workers
    take(cfg)
    seeds = range(study.ORACLE_SEED, study.ORACLE_SEED + ORACLES)
    jobs = [delayed(measured)(str(home()), cfg, seed, name, dataset.fingerprint)
            for name in (*METHODS, "retrain") for seed in seeds]  # fmt: skip
    with study.deaths_told():
        rows = Parallel(n_jobs=options.workers)(jobs)
    about = {"data": dataset.name, "model": cfg.model, "class": dataset.classes[FORGET],
             "audit": audit.VERSION}  # fmt: skip
    files.write_json(RECORD, {**about, "rows": rows, **runs.environment(cfg.device)})
    pages.render(RECORD.parents[1])


def measured(place: str, cfg: RunConfig, seed: int, method: str, images: str) -> dict[str, Any]:
    """Measure an oracle, or what a method makes of it."""
    with at_home(place):
        unlearning.set_threads(cfg)
        dataset = data.load_same(cfg, images)
        oracle = cfg.but(method="retrain", seed=seed)
        one = cfg.but(method=method, seed=seed)
        # what a network is, and how it is measured
        key = [runs.identity(one, images), runs.identity(oracle, images), audit.VERSION]
        path = home() / "artifacts" / "controls" / f"{files.digest_json(key)[:16]}.json"
        if not path.is_file():
            model = runs.run(oracle, dataset, progress=False).model(dataset)
            if method != "retrain":
                model = unlearning.unlearn(model, dataset, one).model
            own = audit.look(model, dataset.split(FORGET)).own
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"method": method, "seed": seed, **own})
        return files.read_json(path, ("method", "seed"))


if __name__ == "__main__":
    call(main)
