"""Tune the unlearning recipes of the preset ``cifar`` on the validation part, six trials a method.

    python benchmarks/tune_cifar.py --data folder:PATH [--workers 2]

The score and the choice are those of ``tune_digits.py``, on one network (seed 0) and one class
(cat) beside the oracles of that class: with ResNet-20 a trial takes minutes, and the networks are
those that ``audit_cifar.py --only networks`` trained. A trial sees a quarter of the training
images. The test part is never looked at; but the class and the network are among those that are
reported, for every method alike.

Every finished trial is kept in ``results/tuning-cifar.json``; run again to go on. Trials on other
images are not added to it: give it another name first. Several calls may add to it at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

from audit_cifar import IMAGES, ORACLES, take
from joblib import Parallel, delayed
from measure import call
from tqdm import tqdm
from tune_digits import add, changed, choice, read, validation

from helpers import runs, study, unlearning
from helpers.config import InputError, Recipe, RunConfig, check, get_config
from helpers.data import Dataset, load_dataset

RECORD = Path(__file__).parents[1] / "results" / "tuning-cifar.json"
FORGET, SEED, SHARE, EPOCHS = 3, 0, 4, 5


def adam(lrs: tuple[float, ...], strengths: tuple[float | None, ...] = (None,)) -> list[Recipe]:
    schedules = ("constant", "cosine") if strengths == (None,) else ("cosine",)
    return [
        Recipe(epochs=EPOCHS, lr=lr, schedule=schedule, strength=strength)
        for lr, schedule, strength in itertools.product(lrs, schedules, strengths)
    ]


# learning rates: of all weights, of a few; of what has much to repair, three times as much
FULL, SMALL = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2)
PRUNED, PRUNED_SMALL = (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
SPACES = {
    "finetune": adam(FULL),
    "prune_finetune": adam(PRUNED),
    "lora": adam(SMALL),
    "prunelora": adam(PRUNED_SMALL),
    "prunelora_channels": adam(PRUNED_SMALL),
    "finetune_sgd": [
        Recipe(epochs=EPOCHS, lr=lr, optimizer="sgd", weight_decay=5e-4, schedule=schedule,
               augment="crop+flip")
        for lr, schedule in itertools.product((0.01, 0.03, 0.1), ("cosine", "onecycle"))
    ],
    "neggrad_plus": adam(FULL, (0.001, 0.01)),
    "salun": adam(FULL, (0.3, 0.5)),
    "head_only": adam(SMALL),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="cifar10, or folder:PATH")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    check("--workers", options.workers, options.workers >= 1, "at least one")
    cfg = get_config("cifar", data=options.data, forget=FORGET, seed=SEED)
    dataset = load_dataset(cfg)  # decoded once, before there are several workers
    begun(dataset)
    take(cfg)
    with changed(RECORD) as record:
        record |= begun(dataset)
        record |= {"seed": SEED, "class": FORGET, "share_of_images": 1 / SHARE}
        done = record.setdefault("trials", {})
        record.setdefault("best", {})
    missing = [
        (name, recipe) for name, space in SPACES.items() for recipe in space
        if dataclasses.asdict(recipe) not in [t["recipe"] for t in done.get(name, [])]
    ]  # fmt: skip
    jobs = (delayed(trial)(cfg.but(method=name), recipe) for name, recipe in missing)
    pool = Parallel(n_jobs=options.workers, return_as="generator_unordered")
    for name, found in tqdm(pool(jobs), "trials", total=len(missing)):
        one_image = 1 / found.pop("validation_images")
        with changed(RECORD) as record:
            add(record, name, found)
            record["one_image"] = one_image
            record |= runs.environment()
    with changed(RECORD) as record:
        done, one_image = record["trials"], record["one_image"]
        record["best"] |= {name: choice(done[name], one_image)["recipe"] for name in SPACES}


def begun(dataset: Dataset) -> dict[str, Any]:
    """Read the trials so far, which must be of the same images."""
    record = read(RECORD) or {"data": dataset.name}
    known = record.setdefault("data", IMAGES)  # without a name: written before they had one
    check("--data", dataset.name, dataset.name == known, f"the trials in {RECORD} are of {known}; "
          "give it another name to begin a new one")  # fmt: skip
    return record


@functools.cache
def start(cfg: RunConfig) -> tuple[Dataset, Any, tuple[float, float]]:
    """Load what all trials of a process share: the data, the original, and the oracles' answers."""
    dataset = load_dataset(cfg, progress=False)
    original = runs.run(cfg.but(method="original"), dataset, progress=False).model(dataset)
    oracles = [
        runs.run(cfg.but(method="retrain", seed=study.ORACLE_SEED + i), dataset, progress=False)
        for i in range(ORACLES)
    ]
    goal = validation(cfg, dataset, [one.model(dataset) for one in oracles])
    few = dataset.train.sample(len(dataset.train) // SHARE)
    return dataclasses.replace(dataset, train=few), original, goal


def trial(cfg: RunConfig, recipe: Recipe) -> tuple[str, dict[str, Any]]:
    unlearning.set_threads(cfg)
    dataset, original, goal = start(cfg.but(method="original"))
    found: dict[str, Any] = {"recipe": dataclasses.asdict(recipe)}
    found["validation_images"] = len(dataset.validation)
    try:
        model = unlearning.unlearn(original, dataset, cfg, recipe=recipe).model
        forget, retain = (
            abs(a - b) for a, b in zip(validation(cfg, dataset, [model]), goal, strict=True)
        )
    except InputError:  # diverged
        return cfg.method, {**found, "score": 1.0, "forget": 1.0, "retain": 1.0, "diverged": True}
    return cfg.method, {**found, "score": (forget + retain) / 2, "forget": forget, "retain": retain}


if __name__ == "__main__":
    import tune_cifar  # by its name: workers cannot be sent a cached function of ``__main__``

    call(tune_cifar.main)
