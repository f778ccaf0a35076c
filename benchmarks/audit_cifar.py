"""Train, forget and audit on CIFAR-10 with ResNet-20, on any two cores, in a day.

    python benchmarks/audit_cifar.py --data folder:PATH [--workers 2] [--only networks|audit]
        [--cells 5] [--settings NAME ...]

``--data cifar10`` takes the original images. What is finished is kept in ``artifacts/``, training
in progress at least once a minute: stop it at will and run it again to go on. First the networks
(three originals, three oracles a class; those in ``benchmarks/networks/`` are trained already,
on CIFAR-10 (JPEG)), then, with recipes that ``tune_cifar.py`` found, every
method and its audit. A cell is a class and the training seed of an original; ``--cells 1`` takes
the first one alone. The record is ``results/audit-cifar.json``; it grows by half of a cell's
settings at a time. ``--settings`` takes those that are named alone: after a stop, what is done
enters at once. The figure beside it, the README's figure and the tables of ``benchmarks/README.md``
are made from it. Other images than CIFAR-10 (JPEG) have a record and a figure of their own,
``audit-cifar-NAME``, and networks of another kind, such as those that a GPU trained, are not added
to a record. One whose metrics were measured in another way (``helpers.audit.VERSION``) is begun
anew: the unlearned networks are kept, too, so that it takes no training. What is audited already,
of cells that are not finished, is kept in ``benchmarks/audits/``, to come with the project.

``--longer EPOCHS`` does none of this: it trains one original for that many epochs, compiled, to
tell what a longer schedule would bring, and keeps that in ``results/longer-cifar.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
from joblib import Parallel, delayed
from measure import call

from helpers import audit, data, files, pages, runs, study, training, unlearning
from helpers.config import RunConfig, check, get_config, home
from helpers.data import Dataset

RECORD = Path(__file__).parents[1] / "results" / "audit-cifar.json"
IMAGES = "CIFAR-10 (JPEG)"  # which it is of
NETWORKS = Path(__file__).with_name("networks")  # finished runs, as ``artifacts/`` has them
AUDITS = Path(__file__).with_name("audits")  # and finished audits
PAPER = ("finetune", "prune_finetune", "lora", "prunelora")
OTHERS = (
    "prunelora_channels", "finetune_sgd", "neggrad_plus", "salun", "logit_mask", "head_only",
    "prototype",
)  # fmt: skip
GROUPS: tuple[dict[str, dict[str, str]], ...] = (  # of each cell, each a job of its own
    {name: {"method": name} for name in ("original", *PAPER)}
    | {f"{name}, as published": {"method": name, "mode": "paper"} for name in PAPER},
    {name: {"method": name} for name in OTHERS},
)
SETTINGS = GROUPS[0] | GROUPS[1]
CELLS = ((3, 0), (3, 1), (3, 2), (9, 0), (8, 0))  # class, training seed of its original
SEED = CELLS[0][1]  # of the original that is trained for longer
LONGER = RECORD.with_name("longer-cifar.json")
PLACE = ("method", "forget", "original_seed")
ORACLES = 3  # retrained networks for each class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="cifar10, or folder:PATH")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cells", type=int, default=len(CELLS), help="how many, from the first")
    parser.add_argument("--only", choices=("networks", "audit"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME",
                        help=f"of {', '.join(map(repr, SETTINGS))}")  # fmt: skip
    parser.add_argument("--longer", type=int, metavar="EPOCHS",
                        help="train one original so long, and nothing else")  # fmt: skip
    options = parser.parse_args()
    check("--workers", options.workers, options.workers >= 1, "at least one")
    check("--cells", options.cells, 1 <= options.cells <= len(CELLS), f"1 to {len(CELLS)}")
    cfg, cells = get_config("cifar", data=options.data), CELLS[: options.cells]
    dataset = data.load_dataset(cfg)  # decoded once, before there are several workers
    if options.longer is not None:
        longer(cfg, options.longer, dataset)
        return
    record = record_of(dataset)
    recorded(cfg, dataset)  # refuses before hours of training, as does what follows
    for one in networks(cfg, cells):
        unlearning.validate(one, dataset)
    print(f"{dataset.name}: {record}", flush=True)
    take(cfg)
    if options.only != "audit":
        jobs = (delayed(runs.run)(one) for one in networks(cfg, cells))
        for done in Parallel(n_jobs=options.workers, return_as="generator_unordered")(jobs):
            give(done)
    if options.only != "networks":
        share_audits(cfg, lacking(cfg, cells, dataset), dataset)
        try:
            audits(cfg, cells, options.workers, dataset, options.settings)
        finally:
            share_audits(cfg, left := lacking(cfg, cells, dataset), dataset)
            for forget, seed in {*cells} - {*left}:  # what is recorded need not come twice
                _there(cfg, forget, seed, dataset).unlink(missing_ok=True)
        figures.lie_detector(record, record.with_suffix(".png"))
        if record == RECORD:
            figures.draw("lie-detector-cifar.png")
        pages.render(RECORD.parents[1])


def networks(cfg: RunConfig, cells: Sequence[tuple[int, int]]) -> list[RunConfig]:
    """List the originals and the oracles, each once, what is needed for the first cell first."""
    wanted = []
    for forget, seed in cells:
        wanted.append(cfg.but(method="original", seed=seed))
        wanted += [
            cfg.but(method="retrain", forget=forget, seed=study.ORACLE_SEED + i)
            for i in range(ORACLES)
        ]
    return list(dict.fromkeys(wanted))


def take(cfg: RunConfig) -> None:
    """Put the networks that come with the project among the finished runs, where they lack."""
    for kept in NETWORKS.glob("*/run.json"):
        _copy(kept.parent, home() / "artifacts" / cfg.preset / kept.parent.name)


def give(done: runs.Run) -> None:
    """Keep a network with the project; another data set's is another folder."""
    _copy(done.folder, NETWORKS / done.folder.name)


def record_of(dataset: Dataset) -> Path:
    """Name the record of some images: never are those of two data sets in one table."""
    return RECORD if dataset.name == IMAGES else RECORD.with_stem(f"{RECORD.stem}-{dataset.name}")


def recorded(cfg: RunConfig, dataset: Dataset) -> study.Study | None:
    """Read the record, if there is one and its metrics were measured as they are today.

    The names of its networks tell whether those that are asked for would be other ones: of other
    images with the same name, or trained on another device.
    """
    path = record_of(dataset)
    found = study.load(path) if path.exists() else None
    for row in found.about["training"] if found else ():
        forget = cfg.forget if row["forget"] is None else row["forget"]
        one = cfg.but(method=row["method"], seed=row["seed"], forget=forget)
        same = runs.folder_of(one, dataset).name == row["key"]
        check("--data", cfg.data, same, f"{path} is of other networks (other images or another "
              "device, say): give it another name to begin a new one")  # fmt: skip
    return found if found and found.about.get("audit") == audit.VERSION else None


def known(found: study.Study | None) -> set[tuple[Any, ...]]:
    """List the settings of each cell that a record has: name, class, training seed."""
    return set() if found is None else {*zip(*(found.table[c] for c in PLACE), strict=True)}


def lacking(
    cfg: RunConfig, cells: Sequence[tuple[int, int]], dataset: Dataset
) -> list[tuple[int, int]]:
    """List the cells of which the record lacks a setting."""
    there = known(recorded(cfg, dataset))
    return [cell for cell in cells if not {(name, *cell) for name in SETTINGS} <= there]


def share_audits(cfg: RunConfig, cells: Sequence[tuple[int, int]], dataset: Dataset) -> None:
    """Let the finished audits here and those that come with the project be the same ones."""
    for forget, seed in cells:
        there = _there(cfg, forget, seed, dataset)
        here = study.folder_of(cfg.but(forget=forget), dataset, ORACLES) / there.name
        with files.locked(here.with_suffix(".lock"), wait=True):
            found = [files.read_json(p, ("rows", "bands")) for p in (here, there) if p.is_file()]
            rows = {row["key"]: row for one in found for row in one["rows"]}
            for path in (here, there):
                if rows and not (
                    path.is_file() and len(files.read_json(path)["rows"]) == len(rows)
                ):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    files.write_json(path, {**found[0], "rows": [*rows.values()]})


def _there(cfg: RunConfig, forget: int, seed: int, dataset: Dataset) -> Path:
    """Name the file of a cell's finished audits among those that come with the project."""
    folder = study.folder_of(cfg.but(forget=forget), dataset, ORACLES)
    return AUDITS / folder.name / f"{seed}-{seed}.json"


def _copy(source: Path, target: Path) -> None:
    """Copy a finished run, unless it is there; its record last, so that it is whole or not done."""
    if not runs.is_kept(target):
        left_out = shutil.ignore_patterns("lock", "checkpoint.*", "run.json")
        shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)
        files.write_json(target / "run.json", files.read_json(source / "run.json"))


def audits(
    cfg: RunConfig, cells: Sequence[tuple[int, int]], workers: int, dataset: Dataset,
    wanted: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Do and audit what the record lacks; it grows by a group of settings at a time."""
    past = recorded(cfg, dataset)
    finished, there = [] if past is None else [past], known(past)
    trained = {one["key"]: one for past in finished for one in past.about["training"]}
    jobs = [
        (cell, missing) for cell in cells for group in GROUPS
        if (missing := {name: one for name, one in group.items()
                        if (name, *cell) not in there and name in (wanted or group)})
    ]  # fmt: skip
    how = {name: {**one, "epochs": epochs(cfg.but(**one))} for name, one in SETTINGS.items()}
    parts = Parallel(n_jobs=workers, return_as="generator")(
        delayed(study.run)(cfg, group, [forget], [seed], oracles=ORACLES, keep=True)
        for (forget, seed), group in jobs
    )
    for (cell, _), part in zip(jobs, parts, strict=True):
        finished.append(part)
        found = study.join(finished)
        order = found.table["method"].map(list(SETTINGS).index).argsort(kind="stable")
        for one in networks(cfg, [cell]):
            if (key := runs.folder_of(one, dataset).name) not in trained:
                trained[key] = {"key": key, **training_row(one, dataset)}
        seconds = float(found.table["wall"].sum())
        found.about.update(settings=how, training=[*trained.values()], core_seconds=seconds)
        study.save(dataclasses.replace(found, table=found.table.iloc[order]), record_of(dataset))


def epochs(cfg: RunConfig) -> int | None:
    """Say for how many epochs a method trains, if it does."""
    method = unlearning.method(cfg.method)
    if method.start == "scratch":
        return cfg.train.epochs
    return None if method.objective == "none" else cfg.unlearn.epochs


def training_row(cfg: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Say what training one of the networks took, and how often it is right on test images.

    An oracle is asked about the classes that it was taught.
    """
    done = runs.run(cfg, dataset, progress=False)
    forget = cfg.forget if cfg.method == "retrain" else None
    part = dataset.test if forget is None else dataset.split(forget).test_retain
    right = training.predict(done.model(dataset), part, dataset).argmax(1) == part.labels.cpu()
    return {
        "method": cfg.method, "seed": cfg.seed, "forget": forget,
        "seconds": done.record["seconds"], "accuracy": float(right.double().mean()),
    }  # fmt: skip


def longer(cfg: RunConfig, epochs: int, dataset: Dataset) -> None:
    """Train an original with the same recipe over more epochs, and record how it does."""
    recipe = dataclasses.replace(cfg.train, epochs=epochs)
    one = cfg.but(method="original", seed=SEED, train=recipe, compile=True, threads=1)
    row = training_row(one, dataset)  # trains, or reads back
    about = {"data": dataset.name, "model": cfg.model, "epochs": epochs}
    files.write_json(LONGER, {**about, **row, **runs.environment(cfg.device)})
    pages.render(RECORD.parents[1])


if __name__ == "__main__":
    call(main)
