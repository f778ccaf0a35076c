"""Measure whether the savings of PruneLoRA are real, each against a plain baseline of the same run.

    python benchmarks/savings.py [--quick] [SECTION ...]

Sections: ``removal`` (channels that are gone against zeros that are kept), ``epoch`` (an epoch of
PruneLoRA against one of plain fine-tuning), ``grid`` (ten ranks in the default form against the
dense network with peft's ordinary adapters), ``forms`` (the low-rank change added to the weight
against peft's own layers), ``cached`` (the frozen part computed once against every time).

Every ratio is ours / plain, but for ``cached``, where it says how many times faster; for the grid,
in which each turn has its own rank, it is that of the total seconds. ``measure.py`` says how both
sides are timed, here on one thread. Counts and memory come from the ledger.

Images and labels are random numbers, and networks have fresh weights: time does not depend on what
they show. Labels leave out class 0, which is the one to forget, so that all images are retained and
both sides train on all of them.

Every finished section is kept in ``results/savings.json``; ``--quick`` shrinks the sizes, to see
that everything works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import (
    CLASSES,
    RANK,
    SEED,
    SPARSITY,
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
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers import frozen, ledger, lora, models, objectives, pruning, training, unlearning
from helpers.config import Recipe
from helpers.data import Dataset

RECORD = Path(__file__).parents[1] / "results" / "savings.json"
CACHE = 2**30  # bytes
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
FULL = {
    "removal": {"batch": 32, "pairs": 9},
    "epoch": {"images": 256, "batch": 64, "pairs": 5},
    "grid": {"images": 512, "batch": 64, "epochs": 2, "ranks": RANKS},
    "forms": {"images": 512, "batch": 64, "pairs": 7, "steps": 20},
    "cached": {"images": (256, 64), "batches": (128, 32), "epochs": 5, "pairs": 3},
}
QUICK = {
    "removal": {"batch": 4, "pairs": 2},
    "epoch": {"images": 16, "batch": 8, "pairs": 1},
    "grid": {"images": 16, "batch": 8, "epochs": 2, "ranks": (1, 2)},
    "forms": {"images": 16, "batch": 8, "pairs": 1, "steps": 4},
    "cached": {"images": (16, 8), "batches": (16, 8), "epochs": 2, "pairs": 1},
}
ABOUT = {
    "about": "ours / plain, both timed in turn in one process; random images and labels, fresh "
    "weights"
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes; only printed")
    arguments = parser.parse_args()
    refuse_unknown(parser, arguments.sections, SECTIONS)
    unlearning.set_threads(config())
    sections(
        arguments.sections or SECTIONS, SECTIONS, QUICK if arguments.quick else FULL, "cpu",
        None if arguments.quick else RECORD, ABOUT,
    )  # fmt: skip


@contextlib.contextmanager
def watch_optimizer() -> Iterator[list[int]]:
    """Collect, while the context lasts, the bytes of the tensors that each optimiser keeps."""
    found: dict[int, int] = {}
    sizes: list[int] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if id(optimizer) not in found:
            states = optimizer.state.values()
            tensors = [t for state in states for t in state.values() if torch.is_tensor(t)]
            found[id(optimizer)] = sum(t.nbytes for t in tensors)
            sizes.append(found[id(optimizer)])

    handle = register_optimizer_step_post_hook(note)
    try:
        yield sizes
    finally:
        handle.remove()


def recorded(losses: list[float]) -> training.Objective:
    """Build the cross-entropy that notes the loss of every step."""

    def objective(
        model: nn.Module, images: torch.Tensor, labels: torch.Tensor, share: float
    ) -> torch.Tensor:
        loss = training.cross_entropy(model, images, labels)
        losses.append(loss.item())
        return loss

    return objective


# ------------------------------------------------------------------------------------------------
# the sections


def removal(batch: int, pairs: int) -> dict[str, Any]:
    """Compare channels that are gone, and zeros that are kept, with the dense network."""
    dense, data = build("resnet18"), random_dataset(max(batch, 64))
    networks = {"dense": dense}
    for kind in ("mask_structured", "channels"):
        made = pruning.prune(dense, SPARSITY, kind, part=data.train, dataset=data, measured=False)
        networks[kind] = made.model
    images, labels = models.example(dense, batch), torch.arange(batch) % CLASSES

    def step(model: nn.Module, turn: int) -> float:
        model.train().zero_grad(set_to_none=True)
        return clock(lambda: F.cross_entropy(model(images), labels).backward())

    @torch.no_grad()
    def infer(model: nn.Module, turn: int) -> float:
        model.eval()
        return clock(lambda: model(images))

    counts = {
        name: {
            "macs": ledger.macs(model, batch),
            "activations": ledger.saved_bytes(model, images),
            "file_bytes": ledger.file_bytes(model),
            "parameters": models.count_parameters(model),
        }
        for name, model in networks.items()
    }
    timed = {
        what: in_turn({n: functools.partial(act, m) for n, m in networks.items()}, pairs)
        for what, act in (("forward and backward", step), ("inference", infer))
    }
    limits = {
        "macs": 0.26, "forward and backward": 0.32, "inference": 0.35, "activations": 0.55,
        "file_bytes": 0.27,
    }  # fmt: skip
    checks, compared = [], {}
    for kind in ("channels", "mask_structured"):  # a mask is expected to save nothing: no limit
        compared[kind] = {what: compare(times, kind, "dense") for what, times in timed.items()}
        for key, most in limits.items():
            found = compared[kind].get(key) or counts[kind][key] / counts["dense"][key]
            title = f"removal, {kind} / dense: {key.replace('_', ' ')}"
            checks.append(check(title, found, most if kind == "channels" else None))
    return {
        "model": "resnet18", "seeds": [SEED], "n": pairs, "counts": counts, "times": timed,
        "compared": compared, "checks": checks,
    }  # fmt: skip


def epoch(images: int, batch: int, pairs: int) -> dict[str, Any]:
    """Compare an epoch of PruneLoRA, channels removed, with one of plain fine-tuning."""
    data, recipe = random_dataset(images), Recipe(epochs=1, lr=1e-3, batch_size=batch)
    found: dict[str, dict[str, int]] = {}

    def run(method: str, turn: int) -> float:
        cfg = config(method=method, targets="blocks", cache_mb=0).but(seed=turn)
        with watch_optimizer() as state:
            outcome = unlearning.unlearn(
                build("resnet18", turn), to_forget(data), cfg, recipe=recipe
            )
        found[method] = {
            "trainable": outcome.trainable, "optimizer_bytes": state[0],
            "peak_memory": outcome.fit.peak_memory,
        }  # fmt: skip
        return outcome.fit.seconds

    ours, plain = "prunelora_channels", "finetune"
    times = in_turn({m: functools.partial(run, m) for m in (ours, plain)}, pairs)
    compared = compare(times, ours, plain)
    ratio = {key: found[ours][key] / found[plain][key] for key in found[plain]}
    title = f"epoch, {ours} / {plain}: "
    return {
        "model": "resnet18", "seeds": list(range(pairs)), "n": pairs, "counts": found,
        "times": times, "compared": compared,
        "checks": [
            check(f"{title}seconds", compared, 0.32),
            check(f"{title}trainable parameters", ratio["trainable"], 0.015),
            check(f"{title}optimiser state", ratio["optimizer_bytes"], 0.02),
            check(f"{title}peak memory of training", ratio["peak_memory"]),
        ],
    }  # fmt: skip


def grid(images: int, batch: int, epochs: int, ranks: tuple[int, ...]) -> dict[str, Any]:
    """Compare ten ranks in the default form with ten of peft's adapters on the dense network."""
    data, model = random_dataset(images), build("resnet18")
    recipe = Recipe(epochs=epochs, lr=1e-3, batch_size=batch)
    listed = models.layers(model)

    def plain(rank: int, part: Dataset = data) -> None:
        adapted = peft_own(model, rank, listed.adaptable, [listed.head])
        training.fit(adapted, part.train, part, recipe, seed=SEED)
        adapted.merge_and_unload()

    def default(rank: int, cache: frozen.Cache, part: Dataset = data) -> None:
        cfg = config(method="prunelora_channels").but(rank=rank)
        unlearning.unlearn(model, to_forget(part), cfg, recipe=recipe, cache=cache)

    few, cache = random_dataset(4), frozen.Cache(CACHE)
    plain(1, few), default(1, frozen.Cache(CACHE), few)  # warms up without filling the cache
    times = in_turn({
        "default form": lambda turn: clock(lambda: default(ranks[turn], cache)),
        "plain": lambda turn: clock(lambda: plain(ranks[turn])),
    }, len(ranks), warm=False)  # fmt: skip
    total = {name: sum(seconds) for name, seconds in times.items()}
    compared = {
        name: {**compare(times, name, "plain"), "total": total[name] / total["plain"]}
        for name in times if name != "plain"
    }  # fmt: skip
    checks = []
    for name, row in compared.items():
        whole = {"ratio": row["total"], "lowest": row["lowest"], "highest": row["highest"]}
        checks.append(check(f"grid of ten ranks, {name} / plain: seconds", whole, 0.10))
    return {
        "model": "resnet18", "seeds": [SEED], "n": len(ranks), "times": times,
        "total_seconds": total, "compared": compared, "checks": checks,
    }  # fmt: skip


def forms(images: int, batch: int, pairs: int, steps: int) -> dict[str, Any]:
    """Compare adapters in the weight and beside it with fine-tuning, and with each other."""
    data, recipe = random_dataset(images), Recipe(epochs=1, lr=1e-3, batch_size=batch)
    listed = models.layers(build("resnet20"))
    in_full = (listed.head, *listed.norms[1:])  # all but the stem's, which no adapter precedes

    def adapt(form: str, seed: int, full: Iterable[str]) -> nn.Module:
        model = build("resnet20", seed)
        training.recalibrate_batchnorm(model, data.train, data)
        if form == "all weights":
            return model
        if form == "weight form":
            alpha = 2.0 * RANK
            return lora.attach(model, RANK, listed.adaptable, alpha=alpha, train_in_full=full)
        return peft_own(model, RANK, listed.adaptable, full)

    def run(form: str, turn: int) -> float:
        model = adapt(form, turn, in_full)
        still = [] if form == "all weights" else lora.frozen_norms(model)
        return training.fit(model, data.train, data, recipe, seed=turn, frozen=still).seconds

    names = ("weight form", "peft's own form", "all weights")
    times = in_turn({form: functools.partial(run, form) for form in names}, pairs)
    compared = {form: compare(times, form, "all weights") for form in names[:2]}
    pair = (adapt(form, SEED, [listed.head]) for form in names[:2])
    same = same_numbers(*pair, data, batch, steps)
    title = "forms, epoch / all weights: "
    return {
        "model": "resnet20", "seeds": list(range(pairs)), "n": pairs, "times": times,
        "compared": compared, "same_numbers": same,
        "checks": [
            check(f"{title}weight form", compared["weight form"], 1.1),
            check(f"{title}peft's own form", compared["peft's own form"]),
            check(f"forms, same_numbers: largest difference of {steps} losses", same["most"], 1e-4),
        ],
    }  # fmt: skip


def same_numbers(
    ours: nn.Module, own: nn.Module, data: Dataset, batch: int, steps: int
) -> dict[str, Any]:
    """Train both forms from the same adapters, BatchNorm standing still, and compare the losses."""
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():  # B starts at zero; here each adapter acts from the first step on
        for _, layer in lora.adapters(ours):
            for matrix in layer.lora_B.values():
                matrix.weight.copy_(0.01 * torch.randn(matrix.weight.shape, generator=draw))
    own.load_state_dict(ours.state_dict())
    epochs = -(-steps // -(-len(data.train) // batch))
    recipe = Recipe(epochs=epochs, lr=0.01, optimizer="sgd", momentum=0.0, batch_size=batch)
    found = []
    for model in (ours, own):
        losses: list[float] = []
        training.fit(
            model, data.train, data, recipe, seed=SEED, objective=recorded(losses),
            frozen=lora.frozen_norms(model),
        )  # fmt: skip
        found.append(losses[:steps])
    most = max(abs(a - b) for a, b in zip(*found, strict=True))
    return {"most": most, "steps": len(found[0]), "losses": found}


def cached(
    images: tuple[int, int], batches: tuple[int, int], epochs: int, pairs: int
) -> dict[str, Any]:
    """Compare training on the kept outputs of the frozen part with computing them every time.

    The larger batch is the default of every recipe; the smaller one shows that the gain depends on
    it, because the early layers are slower for images that do not fit the processor's cache.
    """
    made: dict[str, Any] = {"seeds": list(range(pairs)), "n": pairs, "models": {}, "checks": []}
    (many, few), (large, small) = images, batches
    limits = {
        ("resnet18", "last_stage", many, large): (2.0, 3.2),
        ("resnet18", "last_stage", many, small): (None, None),
        ("resnet18", "last_block", many, large): (2.0, 3.2),
        ("vit", "last_block", few, small): (2.4, 4.0),
    }
    for (name, targets, count, batch), (first, later) in limits.items():
        recipe = Recipe(epochs=epochs, lr=1e-3, batch_size=batch)
        whole, caches = to_forget(random_dataset(count)), {}
        losses: dict[str, list[list[float]]] = {}

        def run(
            form: str, turn: int, name: str = name, targets: str = targets, whole: Dataset = whole,
            caches: dict = caches, losses: dict = losses, recipe: Recipe = recipe,
        ) -> float:  # fmt: skip
            cfg = config(name, method="recorded").but(seed=turn, targets=targets)
            if form == "uncached":
                cfg = cfg.but(cache_mb=0)
            elif form == "cached":
                caches[turn] = frozen.Cache(CACHE)
            steps: list[float] = []
            with recording(steps):
                outcome = unlearning.unlearn(
                    build(name, turn), whole, cfg, recipe=recipe, cache=caches.get(turn)
                )
            assert outcome.frozen_once == (form != "uncached")
            losses.setdefault(form, []).append(steps)
            return outcome.fit.seconds

        forms = ("uncached", "cached", "cached before")
        times = in_turn({form: functools.partial(run, form) for form in forms}, pairs)
        compared = {form: compare(times, "uncached", form) for form in forms[1:]}
        most = max(
            abs(a - b)
            for form in forms[1:]
            for plain, ours in zip(losses["uncached"], losses[form], strict=True)
            for a, b in zip(plain, ours, strict=True)
        )
        step = {
            form: macs_of_a_step(name, targets, mb)
            for form, mb in (("uncached", 0), ("cached", 1024))
        }
        made["models"][f"{name}, {targets}, batch {batch}"] = {
            "images": count, "times": times, "compared": compared, "most": most,
            "macs_of_a_step": step,
            "losses": {form: rows[-1] for form, rows in losses.items()},
        }  # fmt: skip
        title = f"cached, {name}, {targets}, batch {batch}: "
        made["checks"] += [
            check(f"{title}uncached / cached, caching pass", compared["cached"], least=first),
            check(f"{title}uncached / cached, later run", compared["cached before"], least=later),
            check(f"{title}uncached / cached, macs of a step", step["uncached"] / step["cached"]),
            check(f"{title}largest difference of losses", most, 1e-4),
        ]
    return made


def macs_of_a_step(name: str, targets: str, cache_mb: int, batch: int = 8) -> int:
    """Count the multiply-accumulates of a training step: what two epochs take more than one."""
    data, cfg, counts = random_dataset(batch), config(name, method="lora"), []
    cfg = cfg.but(targets=targets, cache_mb=cache_mb)
    for epochs in (1, 2):
        recipe = Recipe(epochs=epochs, lr=1e-3, batch_size=batch)
        with ledger.counting() as counter:
            unlearning.unlearn(build(name), to_forget(data), cfg, recipe=recipe)
        counts.append(counter.get_total_flops() // 2)
    return counts[1] - counts[0]


@contextlib.contextmanager
def recording(losses: list[float]) -> Iterator[None]:
    """Let the method ``recorded``, which is ``lora``, note the loss of every step."""
    objectives.OBJECTIVES["recorded"] = lambda task: recorded(losses)
    unlearning.METHODS["recorded"] = unlearning.Method(adapt="lora", objective="recorded")
    try:
        yield
    finally:
        del objectives.OBJECTIVES["recorded"], unlearning.METHODS["recorded"]


SECTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "removal": removal, "epoch": epoch, "grid": grid, "forms": forms, "cached": cached,
}  # fmt: skip


if __name__ == "__main__":
    call(main)
