"""Measure PruneLoRA on colour images of 32 x 32 pixels against the way it is usually written.

    python benchmarks/images.py [--quick] [--device cpu|cuda] [--data folder:PATH] [SECTION ...]

The plain way is torchvision's dataset class with PIL transforms, its images in memory, read by a
``DataLoader`` with two workers; filters set to zero by ``torch.nn.utils.prune``; peft's adapters
with dropout 0.1 on every convolution of the blocks; fp32, on a GPU also with convolutions in TF32,
as PyTorch has them unless it is told. Network, images, batch and optimiser are the same on both
sides.

Sections: ``batches`` (images per second that reach the network, as they are and with a crop and a
flip for each), ``epoch`` (an epoch of PruneLoRA; ours as a fifth of a run of five, in which the
frozen part is computed once), ``memory`` (the most that a fresh process takes, above what it took
after its imports; on a GPU the most of PyTorch's allocator), ``peak`` (operations per second in
training as a share of those of a large matrix product, where the rest of the time goes, and for
how much of it a GPU computes anything),
``cost`` (seconds and memory against images, rank, sparsity and worker processes, with the exponent
of the power law and its 95 % interval), on a GPU also ``graphs`` (training steps that are repeated
from a recording against plain ones, and how far apart they end).

Ratios are ours / plain, but for ``batches``, where they say how many times faster;
``measure.py`` says how both sides are timed. On the CPU every process computes with one thread.
Images are random numbers, unless ``--data`` names a folder (for ``batches`` and ``epoch``; nothing
in the others depends on what images show), and networks have fresh weights. Class 0 is forgotten
and has no images, but for one on our side that is not trained on: both sides train on the same.

Every finished section is kept in ``results/images-DEVICE.json``, the picture of ``cost`` beside it;
``--quick`` shrinks the sizes, to see that everything works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import torch
from measure import (
    RANK,
    SEED,
    SIDE,
    SPARSITY,
    Section,
    build,
    call,
    check,
    clock,
    compare,
    config,
    in_turn,
    peft_own,
    random_dataset,
    refuse_unknown,
    sections,
    to_forget,
)
from scipy import stats
from torch import nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, VisionDataset

from helpers import data, ledger, models, plots, training, unlearning
from helpers.config import InputError, Recipe
from helpers.data import Dataset, ImageSet

RESULTS = Path(__file__).parents[1] / "results"
PICTURES = {"cpu": "images-cost.png", "cuda": "images-cost-cuda.png"}
ABOUT = {
    "about": "the plain way: torchvision's dataset class with PIL transforms in a DataLoader with "
    "two workers, filters set to zero, peft's adapters with dropout 0.1, fp32; fresh weights"
}
DEVICE, SOURCE = "cpu", "random"  # set once, by main
WORKERS = 2
PAD = SIDE // 8
LR = 1e-3
BATCH, CACHE_MB = 128, 4096  # of cost; all features are kept, so that one law can hold
METHODS, PRECISIONS = ("prunelora", "prunelora_channels"), ("fp32", "amp")
IMPORTED = ["torch", "torchvision", "peft", "torch_pruning", "helpers.unlearning", "measure"]
# what is the time spent on, by a part of the operation's name; the first that fits
KINDS = {
    "attention": ("attention",),
    "convolution and matrix product": ("conv", "mm", "linear"),
    "normalisation": ("batch_norm", "layer_norm"),
    "elementwise": ("relu", "threshold", "gelu", "add", "mul", "div", "sub", "sum", "mean"),
    "copies": ("copy", "clone", "fill", "zero", "empty", "contiguous"),
}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "batches": {"images": 20_480, "batch": 128, "pairs": 5},
        "epoch": {"images": 512, "batches": (128,), "epochs": 5, "pairs": 3},
        "memory": {"images": 512, "more": 2048, "batch": 128, "pairs": 2},
        "peak": {
            "networks": {"resnet20": 128, "resnet18": 64, "resnet50": 16, "vit": 32},
            "side": 2048, "steps": 2, "pairs": 3,
        },
        "cost": {
            "images": {1000: 3, 5000: 2, 10_000: 2, 50_000: 1}, "ranks": (1, 2, 4, 8, 16, 32, 64),
            "sparsities": (0.0, 0.25, 0.5, 0.75, 0.9), "few": 1000, "jobs": 4, "repeats": 2,
        },
    },
    "cuda": {
        "batches": {"images": 25_600, "batch": 128, "pairs": 5},
        "epoch": {"images": 12_800, "batches": (128,), "epochs": 5, "pairs": 3},
        "memory": {"images": 2560, "more": 12_800, "batch": 128, "pairs": 2},
        "peak": {
            "networks": {"resnet20": 1024, "resnet18": 512, "resnet50": 128, "vit": 256},
            "side": 8192, "steps": 10, "pairs": 5,
        },
        "graphs": {
            "networks": {"resnet20": 64, "resnet18": 512, "vit": 256},
            "images": 12_800, "epochs": 2, "pairs": 3,
        },
        "cost": {
            "images": {1000: 2, 5000: 2, 10_000: 2, 50_000: 2}, "ranks": (1, 2, 4, 8, 16, 32, 64),
            "sparsities": (0.0, 0.25, 0.5, 0.75, 0.9), "few": 5000, "jobs": 4, "repeats": 2,
        },
    },
}  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {
    "batches": {"images": 512, "batch": 64, "pairs": 1},
    "epoch": {"images": 16, "batches": (8, 4), "epochs": 2, "pairs": 1},
    "memory": {"images": 16, "more": 32, "batch": 8, "pairs": 1},
    "peak": {"networks": {"resnet20": 8, "vit": 2}, "side": 128, "steps": 1, "pairs": 1},
    "cost": {
        "images": {16: 2, 32: 1}, "ranks": (1, 2, 4), "sparsities": (0.0, 0.5, 0.75), "few": 16,
        "jobs": 2, "repeats": 2,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes; only printed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", default="random", help="folder:PATH; default: random numbers")
    arguments = parser.parse_args()
    refuse_unknown(parser, arguments.sections, SECTIONS)
    settle(arguments.device, arguments.data)
    record = None if arguments.quick else RESULTS / f"images-{DEVICE}.json"
    sizes = QUICK if arguments.quick else SIZES[DEVICE]
    asked = arguments.sections or [name for name in SECTIONS if name in sizes]
    if impossible := sorted({*asked} - {*sizes}):
        parser.error(f"only with --device cuda: {', '.join(impossible)}")
    made = sections(asked, SECTIONS, sizes, DEVICE, record, ABOUT)
    if "cost" in made:
        name = "images-cost-quick.png" if arguments.quick else PICTURES[DEVICE]
        draw(made["cost"], (Path(tempfile.gettempdir()) if arguments.quick else RESULTS) / name)


@functools.cache
def dataset(count: int) -> Dataset:
    """Make a dataset of so many images of nine classes, on the device."""
    made = random_dataset(count)
    if SOURCE != "random":
        real = data.load_dataset(config(device=DEVICE, data=SOURCE, image_size=SIDE))
        if real.train.images.shape[1:] != (3, SIDE, SIDE):
            raise InputError(f"{SOURCE} has no colour images of {SIDE} x {SIDE}, which are needed")
        part = real.train.where(real.train.labels != 0).sample(count)
        if len(part) < count:
            raise InputError(f"{SOURCE} has {len(part)} images to retain, and {count} are needed")
        made = dataclasses.replace(real, train=part, validation=part, test=part)
    parts = {n: getattr(made, n).to(DEVICE) for n in ("train", "validation", "test")}
    return dataclasses.replace(made, **parts, mean=made.mean.to(DEVICE), std=made.std.to(DEVICE))


# ------------------------------------------------------------------------------------------------
# the plain way


class InMemory(CIFAR10):
    """Our images as torchvision's own dataset holds them, and yields them: through PIL."""

    def __init__(self, part: ImageSet, transform: Callable[[Any], torch.Tensor]) -> None:
        """Keep the images as CIFAR10 does after it has read its archive."""
        VisionDataset.__init__(self, "", transform=transform)
        self.data = part.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = part.labels.tolist()


def loader(images: Dataset, batch: int, augmented: bool = False) -> DataLoader:
    steps = [transforms.RandomCrop(SIDE, PAD), transforms.RandomHorizontalFlip()]
    steps = steps if augmented else []
    scale = transforms.Normalize(images.mean.tolist(), images.std.tolist())
    transform = transforms.Compose([*steps, transforms.ToTensor(), scale])
    return DataLoader(
        InMemory(images.train, transform), batch, shuffle=True, num_workers=WORKERS,
        persistent_workers=True, pin_memory=DEVICE == "cuda",
    )  # fmt: skip


def on_device(source: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for images, labels in source:
        yield images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)


def plain_network(seed: int) -> nn.Module:
    """Set half of the filters to zero, and put peft's adapters beside all blocks' convolutions."""
    model = build("resnet18", seed)
    listed = models.layers(model)
    for name in listed.prunable:
        layer = model.get_submodule(name)
        prune.ln_structured(layer, "weight", SPARSITY, n=2, dim=0)
        prune.remove(layer, "weight")
    return peft_own(model, RANK, listed.adaptable, [listed.head], dropout=0.1).to(DEVICE)


def plain_epoch(model: nn.Module, source: DataLoader) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR)
    model.train()
    for images, labels in on_device(source):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def ours(
    images: Dataset, batch: int, epochs: int, seed: int = SEED, model: str = "resnet18", **how: Any
) -> unlearning.Outcome:
    """Unlearn with the default settings, but for what is named."""
    recipe = Recipe(epochs=epochs, lr=LR, batch_size=batch)
    cfg = config(model, DEVICE, seed=seed, **how)
    return unlearning.unlearn(build(model, seed).to(DEVICE), to_forget(images), cfg, recipe=recipe)


# ------------------------------------------------------------------------------------------------
# the sections


def batches(images: int, batch: int, pairs: int) -> dict[str, Any]:
    """Compare how many images per second come to the network."""
    part = dataset(images)
    times, checks, compared = {}, [], {}
    for what, augment, least in (("unaugmented", "none", 10), ("crop and flip", "crop+flip", 4)):
        source = loader(part, batch, augmented=augment != "none")

        def plain(turn: int, source: DataLoader = source) -> float:
            return clock(lambda: [None for _ in on_device(source)])

        def mine(turn: int, augment: str = augment) -> float:
            drawn = data.batches(part.train, batch, augment=augment, seed=(SEED, turn))
            return clock(lambda: [part.normalise(x) is None for x, _ in drawn])

        times[what] = in_turn({"plain": plain, "ours": mine}, pairs)
        del source
        compared[what] = compare(times[what], "plain", "ours")
        title = f"batches, {what}: images per second, ours / plain"
        checks.append(check(title, compared[what], least=least))
    per_second = {
        what: {"ours": images / row["plain_seconds"], "plain": images / row["ours_seconds"]}
        for what, row in compared.items()
    }
    return {
        "data": part.name, "seeds": list(range(pairs)), "n": pairs, "times": times,
        "compared": compared, "images_per_second": per_second, "checks": checks,
    }  # fmt: skip


def epoch(images: int, batches: tuple[int, ...], epochs: int, pairs: int) -> dict[str, Any]:
    """Compare an epoch of PruneLoRA, and a whole run of some epochs with all that belongs to it.

    With one batch or several: larger ones hide what it takes to start an operation.
    """
    part = dataset(images)
    found = {batch: _epoch(part, batch, epochs, pairs) for batch in batches}
    checks = []
    for batch, one in found.items():
        more = "" if batch == batches[0] else f", batch {batch}"
        checks += [row | {"what": row["what"] + more} for row in one.pop("checks")]
    return {
        "model": "resnet18", "data": part.name, "seeds": list(range(pairs)), "n": pairs,
        "batches": {str(batch): one for batch, one in found.items()}, "checks": checks,
    }  # fmt: skip


def _epoch(part: Dataset, batch: int, epochs: int, pairs: int) -> dict[str, Any]:
    source, whole = loader(part, batch), {}

    def plain(name: str, turn: int) -> float:
        torch.backends.cudnn.allow_tf32 = name != "plain"
        started = time.perf_counter()
        model = plain_network(turn)
        preparing = time.perf_counter() - started
        seconds = clock(lambda: plain_epoch(model, source))
        torch.backends.cudnn.allow_tf32 = False  # as our side has it
        whole.setdefault(name, []).append(preparing + epochs * seconds)
        return seconds

    def mine(method: str, precision: str, graphs: bool, turn: int) -> float:
        started = time.perf_counter()
        how = {"method": method, "precision": precision, "graphs": graphs, "cache_mb": CACHE_MB}
        outcome = ours(part, batch, epochs, turn, **how)
        name = ours_named(method, precision, graphs)
        whole.setdefault(name, []).append(time.perf_counter() - started)
        assert outcome.frozen_once
        return outcome.fit.seconds / epochs

    plains = {"plain": 0.18} if DEVICE == "cpu" else {"plain": 0.18, "plain, TF32": None}
    ways = itertools.product(METHODS, PRECISIONS, (False, True) if DEVICE == "cuda" else (False,))
    contenders = {name: functools.partial(plain, name) for name in plains} | {
        ours_named(*way): functools.partial(mine, *way) for way in ways
    }
    times = in_turn(contenders, pairs)
    whole = {name: seconds[-pairs:] for name, seconds in whole.items()}
    checks, compared = [], {"epoch": {}, "whole": {}}
    for other, name in itertools.product(plains, [n for n in times if n not in plains]):
        key = f"{name} / {other}"
        compared["epoch"][key] = row = compare(times, name, other)
        checks.append(check(f"epoch, {key}", row, plains[other]))
        compared["whole"][key] = row = compare(whole, name, other)
        checks.append(check(f"run of {epochs} epochs with all preparations, {key}", row))
    return {"times": times, "whole": whole, "compared": compared, "checks": checks}


def ours_named(method: str, precision: str, graphs: bool) -> str:
    return f"{method}, {precision}{', graphs' if graphs else ''}"


def memory(images: int, more: int, batch: int, pairs: int) -> dict[str, Any]:
    """Compare the most that fresh processes take; ours also with more images, or nothing kept."""
    contenders: dict[str, tuple[int, dict[str, Any]]] = {"plain": (images, {})} | {
        f"{m}, {p}": (images, {"method": m, "precision": p}) for m in METHODS for p in PRECISIONS
    }
    limited, default = [*contenders][1:], {"method": METHODS[0]}
    contenders[f"{METHODS[0]}, {more:,} images"] = more, default
    contenders[f"{METHODS[0]}, nothing kept"] = images, {**default, "cache_mb": 0}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(pairs):
        for name, (count, how) in contenders.items():
            rows[name].append(fresh(memory_of, count, batch, turn, how))
    took = {name: [row["peak"] - row["imported"] for row in mine] for name, mine in rows.items()}
    compared = {name: compare(took, name, "plain") for name in took if name != "plain"}
    for row in compared.values():  # bytes, in the table of seconds
        row["ours_bytes"], row["plain_bytes"] = row.pop("ours_seconds"), row.pop("plain_seconds")
    return {
        "model": "resnet18", "seeds": list(range(pairs)), "n": pairs, "bytes": rows,
        "compared": compared,
        "checks": [check(f"peak memory, {name} / plain", row, 0.45 if name in limited else None)
                   for name, row in compared.items()],
    }  # fmt: skip


def memory_of(images: int, batch: int, seed: int, how: dict[str, str]) -> dict[str, float]:
    """Do an epoch in this process: the plain way, or by a method of ours."""
    imported, part = peak_bytes(), dataset(images)
    if how:
        ours(part, batch, 1, seed, **how)
    else:
        plain_epoch(plain_network(seed), loader(part, batch))
    return {"imported": imported, "peak": peak_bytes()}


def peak_bytes() -> int:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fresh(run: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process of its own, which has imported everything and done nothing."""
    with processes(1) as pool:
        return pool.submit(run, *arguments).result()


def processes(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return ProcessPoolExecutor(count, context, initializer=settle, initargs=(DEVICE, SOURCE))


def settle(device: str, source: str) -> None:
    """Give a new process what main has set."""
    global DEVICE, SOURCE
    DEVICE, SOURCE = device, source
    unlearning.set_threads(config(device=device))


def peak(networks: dict[str, int], side: int, steps: int, pairs: int) -> dict[str, Any]:
    """Compare the operations per second of training with those of a large matrix product."""
    made: dict[str, Any] = {"seeds": [SEED], "n": pairs, "networks": {}, "product": {}}
    checks = []
    for precision in PRECISIONS:
        half = training.half_precision(torch.device(DEVICE), precision)
        runs = {name: trainer(name, batch, half) for name, batch in networks.items()}
        counts = {name: count_flops(run) for name, run in runs.items()}
        a, b = torch.randn(2, side, side, device=DEVICE, dtype=half or torch.float32)
        contenders = {"product": lambda turn, a=a, b=b: clock(lambda: a @ b)} | {
            name: lambda turn, run=run: clock(lambda: [run() for _ in range(steps)]) / steps
            for name, run in runs.items()
        }
        times = in_turn(contenders, pairs)
        product = [2 * side**3 / t for t in times["product"]]
        made["product"][precision] = {"side": side, "flops_per_second": product}
        for name, run in runs.items():
            rates = [counts[name] / t for t in times[name]]
            shares = {"share": rates, "product": product}
            row = compare(shares, "share", "product")
            spent = where_time_goes(run, steps)
            computing = sum(spent.values())
            made["networks"].setdefault(name, {})[precision] = {
                "batch": networks[name], "flops": counts[name], "flops_per_second": rates,
                "share": {k: row[k] for k in ("ratio", "lowest", "highest", "n")},
                "profile": {kind: took / computing for kind, took in spent.items()},
            } | ({"busy": computing / median(times[name])} if DEVICE == "cuda" else {})  # fmt: skip
            title = f"peak, {name}, {precision}: share of a matrix product"
            checks.append(check(title, row))
    return {**made, "checks": checks}


def graphs(networks: dict[str, int], images: int, epochs: int, pairs: int) -> dict[str, Any]:
    """Compare training whose steps are repeated from a recording with plain training."""
    made: dict[str, Any] = {"seeds": list(range(pairs)), "n": pairs, "networks": {}}
    checks, ways = [], ("plain", "plain again", "recorded")
    for name, batch in networks.items():
        recipe = Recipe(epochs, LR, optimizer="sgd", batch_size=batch, augment="crop+flip")
        ended: dict[str, nn.Module] = {}
        contenders = {
            way: functools.partial(_stepping, name, recipe, dataset(images), way, ended)
            for way in ways
        }
        times = in_turn(contenders, pairs)
        row = compare(times, "recorded", "plain")
        apart = {way: _distance(ended[way], ended["plain"]) for way in ways[1:]}
        made["networks"][name] = {"batch": batch, "times": times, "compared": row, "apart": apart}
        checks.append(check(f"graphs, {name}: seconds a step, recorded / plain", row))
        print(f"{name}: how far from plain training the last one ended: {apart}", flush=True)
    return {**made, "checks": checks}


def _stepping(
    name: str, recipe: Recipe, part: Dataset, way: str, ended: dict[str, nn.Module], turn: int
) -> float:
    ended[way] = model = build(name, turn).to(DEVICE)
    how = {"precision": "amp", "graphs": way == "recorded"}
    fit = training.fit(model, part.train, part, recipe, seed=turn, **how)
    return fit.seconds / fit.steps


def _distance(one: nn.Module, other: nn.Module) -> float:
    """Return the norm of the difference of all weights as a share of the norm of the second's."""
    a, b = (nn.utils.parameters_to_vector(model.parameters()).detach() for model in (one, other))
    return float((a - b).norm() / b.norm())


def trainer(name: str, batch: int, half: torch.dtype | None) -> Callable[[], None]:
    """Return a step of training as the package does it, on new images with crop and flip."""
    part, model = dataset(batch), build(name).to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, fused=True)

    def step() -> None:
        with record_function("data"):
            source = data.batches(part.train, batch, augment="crop+flip", seed=(SEED, 0))
            images, labels = next(source)
            images = part.normalise(images)
        with torch.autocast(DEVICE, half, enabled=half is not None):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        with record_function("optimiser"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def count_flops(step: Callable[[], None]) -> int:
    with ledger.counting() as counter:
        step()
    return counter.get_total_flops()


def where_time_goes(step: Callable[[], None], steps: int) -> dict[str, float]:
    """Divide the time of a step among kinds of work, in seconds; on a GPU that of its kernels."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (DEVICE == "cuda")]
    with profile(activities=activities) as found:
        for _ in range(steps):
            step()
    total: Counter[str] = Counter()
    for event in found.events():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel; what started it has its time, too
        own = event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total
        total[kind_of(event)] += own
    return {kind: spent / 1e6 / steps for kind, spent in total.most_common()}  # from microseconds


def kind_of(event: Any) -> str:
    above = event
    while above is not None:
        if above.name in ("data", "optimiser"):
            return above.name
        above = above.cpu_parent
    name = event.name.lower()
    found = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(found, "other")


def cost(
    images: dict[int, int], ranks: tuple[int, ...], sparsities: tuple[float, ...], few: int,
    jobs: int, repeats: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure seconds and memory against the size of the work, each time in a fresh process."""
    masks, gone = ({"method": method} for method in METHODS)
    points = {
        "images": [(n, n, masks) for n, times in images.items() for _ in range(times)],
        "rank": [(r, few, {**masks, "rank": r}) for r in ranks * repeats],
        "share of channels kept": [
            # the narrowest layer that is left at 0.9 has six channels, and admits no rank of eight
            (round(1 - s, 3), few, {**gone, "sparsity": s, "rank": 4})
            for s in sparsities * repeats
        ],
    }
    rows = {
        work: [{"x": x, **fresh(cost_of, count, seed, how)}
               for seed, (x, count, how) in enumerate(mine)]
        for work, mine in points.items()
    }  # fmt: skip
    counts = [*range(1, WORKERS + 1)] * (1 + repeats)
    rows["workers"] = [{"x": n, **shared_out(n, jobs, few)} for n in counts]
    laws = {
        work: {what: power_law([r["x"] for r in mine], [r[what] for r in mine])
               for what in ("seconds", "bytes", "counted_bytes") if what in mine[0]}
        for work, mine in rows.items()
    }  # fmt: skip
    made = {"model": "resnet20", "jobs": jobs, "few": few, "points": rows, "laws": laws}
    checks = [
        check(f"cost, {what} against {work}: exponent", {"ratio": law["exponent"], **law})
        for work, mine in laws.items() for what, law in mine.items()
    ]  # fmt: skip
    return {
        **made, "seeds": [*range(max(map(len, rows.values())))],
        "n": {work: len(mine) for work, mine in rows.items()}, "checks": checks,
    }  # fmt: skip


def cost_of(images: int, seed: int, how: dict[str, Any]) -> dict[str, float]:
    """Unlearn once in this process, one epoch; tell what it took and what the ledger counted."""
    imported, part = peak_bytes(), dataset(images)
    started = time.perf_counter()
    outcome = ours(part, BATCH, 1, seed, model="resnet20", cache_mb=CACHE_MB, **how)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds, "bytes": peak_bytes() - imported,
        "counted_bytes": outcome.fit.peak_memory, "process": os.getpid(),
    }  # fmt: skip


def shared_out(workers: int, jobs: int, images: int) -> dict[str, float]:
    """Do some independent runs in several processes, which are up and have computed before."""
    with processes(workers) as pool:
        wait(pool.submit(time.sleep, 0.5) for _ in range(workers))
        started = time.perf_counter()
        runs = [pool.submit(cost_of, images, seed, {"method": METHODS[0]}) for seed in range(jobs)]
        found = [run.result() for run in runs]
        seconds = time.perf_counter() - started
    peaks = {process: max(r["bytes"] for r in found if r["process"] == process)
             for process in {r["process"] for r in found}}  # fmt: skip
    return {"seconds": seconds, "bytes": sum(peaks.values())}


def power_law(x: list[float], y: list[float]) -> dict[str, float]:
    """Fit y = factor * x ** exponent, with the exponent's 95 % interval (Student's t)."""
    found = stats.linregress([math.log(v) for v in x], [math.log(v) for v in y])
    # where nothing differs scipy has no error to tell, and there is none
    error = found.stderr if len({*y}) > 1 else 0.0
    half = stats.t.ppf(0.975, len(x) - 2) * error
    return {
        "exponent": found.slope, "factor": math.exp(found.intercept),
        "lowest": found.slope - half, "highest": found.slope + half,
    }  # fmt: skip


def draw(section: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory against each kind of work."""
    plots.style()
    units = {"seconds": ("seconds", 1.0), "bytes": ("memory (MB)", 1e6)}
    figure, axes = plt.subplots(2, len(section["points"]), figsize=(13, 6), sharey="row")
    for row, (what, (label, unit)) in zip(axes, units.items(), strict=True):
        for ax, (work, points) in zip(row, section["points"].items(), strict=True):
            pairs = [(p["x"], p[what] / unit) for p in points]
            law = section["laws"][work][what]
            plots.power_law(pairs, {**law, "factor": law["factor"] / unit}, work, label, ax)
            ax.label_outer()
    figure.savefig(path, dpi=120)
    plt.close(figure)


SECTIONS: dict[str, Section] = {
    "batches": batches, "epoch": epoch, "memory": memory, "peak": peak, "graphs": graphs,
    "cost": cost,
}  # fmt: skip


if __name__ == "__main__":
    call(main)
