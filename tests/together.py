"""Trainings that one process and several must do alike; as a program, what several of them do.

    python -m torch.distributed.run --nproc_per_node 3 -m tests.together FILE

In double precision, where rounding cannot grow into a difference: a ReLU that one rounding switches
on and another off moves a gradient in single precision by a thousandth.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers import __main__, data, files, objectives, parallel, training, unlearning
from helpers.config import InputError, Recipe, get_config

SGD = Recipe(epochs=2, lr=0.1, optimizer="sgd", weight_decay=1e-3, batch_size=64, schedule="cosine",
             augment="crop")  # fmt: skip
ADAM = Recipe(epochs=2, lr=1e-3, optimizer="adamw", batch_size=50, mixup=0.2)
ONE = Recipe(epochs=1, lr=0.05, optimizer="sgd", batch_size=33)
IMAGES = 130  # with SGD batches of 64, 64 and 2, which three processes cannot share


class Double(data.Dataset):
    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).double()


def digits() -> Double:
    found = data.load_dataset(get_config("smoke", device="cpu"), progress=False)
    return Double(**vars(found))


def trained(name: str, dataset: Double, **changes: Any) -> dict[str, Tensor]:
    """Train the network and objective of a case; return weights, statistics and losses."""
    kind, _, objective = name.partition(" ")
    cfg = get_config("smoke", device="cpu", model=kind)
    network = [unlearning.new_model(cfg.but(seed=s), dataset).double() for s in range(3)]
    recipe = {"vit_tiny": ADAM, "digits_resnet": ONE if objective else SGD}[kind]
    if objective:
        teachers = map(parallel.shared, network[1:])
        task = objectives.Task(*teachers, forgotten=(3, 5), classes=10)
        changes["objective"] = objectives.OBJECTIVES[objective](task)
    fit = training.fit(
        network[0], dataset.train.sample(IMAGES), dataset, recipe, seed=1, precision="fp32",
        monitor=dataset.validation, **changes,
    )  # fmt: skip
    rows = [[row["loss"], *(row[str(c)] for c in range(10))] for row in fit.history]
    numbers = {"history": torch.tensor(rows), "macs": torch.tensor(fit.macs)}
    return {**network[0].state_dict(), **numbers}


def salun(dataset: Double) -> dict[str, Tensor]:
    """Train only what matters to the forget set, through the table of methods."""
    cfg = get_config("smoke", device="cpu", method="salun", epochs=1)
    outcome = unlearning.unlearn(unlearning.new_model(cfg, dataset).double(), dataset, cfg)
    macs, loss = outcome.fit.macs, outcome.fit.history[0]["loss"]
    return {**outcome.model.state_dict(), "macs": torch.tensor(macs), "loss": torch.tensor(loss)}


OTHERS = [name for name in objectives.OBJECTIVES if name != "cross_entropy"]
CASES = ["digits_resnet", "vit_tiny", *(f"digits_resnet {name}" for name in OTHERS)]


def interrupted(dataset: Double, path: Path) -> dict[str, Any]:
    """Let the second process alone be stopped after three steps, then go on."""
    steps = []

    def stop() -> None:
        steps.append(1)
        if len(steps) == 3 and parallel.rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)

    said = ""
    try:
        trained("digits_resnet", dataset, checkpoint=path, after_step=stop)
    except training.Interrupted as error:
        said = str(error)
    if parallel.rank() == 0:
        shutil.copy(path, path.with_name("copy.safetensors"))
    return {"said": said, "weights": trained("digits_resnet", dataset, checkpoint=path)}


def dropped() -> dict[str, Any]:
    """Look at what dropout leaves of ones, and at what an objective would draw afterwards."""
    torch.default_generator.manual_seed(5)
    left = parallel.shared(nn.Dropout(0.5))(torch.ones(3 * parallel.size(), 64))
    return {"left": left.tolist(), "drawn": torch.rand(1).item()}


class Rows(nn.Module):
    """A network that cannot compute no image at all, as many cannot."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(len(images), -1)


def common() -> dict[str, Any]:
    """Try what keeps the processes alike, each on numbers of its own where they should not be."""
    import torch.distributed as dist

    number = torch.full((2, 3), float(parallel.rank())).T  # not contiguous
    parallel.as_first([number])
    every: list[Any] = [None] * parallel.size()
    dist.all_gather_object(every, number.tolist())
    norm = nn.BatchNorm1d(3)
    with parallel.whole_batch_norms(norm):
        kinds = [isinstance(norm, nn.SyncBatchNorm)]
    few = torch.arange(8.0).reshape(2, 2, 2)  # images, for more processes
    return {"first": every, "kinds": [*kinds, type(norm).__name__],
            "few": parallel.shared(Rows())(few).tolist()}  # fmt: skip


def fails(dataset: object = None) -> None:
    raise InputError("the first one's reason")


def told() -> list[str]:
    """Return what all but the first process hear of its error."""
    heard = []
    for place in (lambda: parallel.first(fails), _fail_before_the_others):
        try:
            place()
        except InputError as error:
            heard.append(str(error))
    return heard


def _fail_before_the_others() -> None:
    with parallel.after_the_first():
        if parallel.rank() == 0:
            fails()


def work(path: Path) -> int:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dataset = digits()
    found = {case: trained(case, dataset) for case in CASES}
    found["salun"] = salun(dataset)
    stopped = interrupted(dataset, path.with_name("checkpoint.safetensors"))
    found["resumed"] = stopped.pop("weights")
    mine = [torch.cat([t.double().flatten() for t in w.values()]) for w in found.values()]
    plain = {**stopped, **dropped(), **common(), "told": told(), "same": True}
    every: list[Any] = [None] * parallel.size()
    dist.all_gather_object(every, (mine, plain))
    for theirs, heard in every:
        plain["same"] &= heard == every[0][1]
        plain["same"] &= all(map(torch.equal, theirs, every[0][0]))
    if parallel.rank() == 0:
        flat = {f"{case}|{name}": t for case, w in found.items() for name, t in w.items()}
        files.save_tensors(path, flat, plain)
    if parallel.rank() == 1:
        raise InputError("only the second one fails")
    return int(parallel.agreed(False))


if __name__ == "__main__":
    __main__._run = lambda options: work(Path(sys.argv[1]))
    sys.exit(__main__.main(["run"]))
