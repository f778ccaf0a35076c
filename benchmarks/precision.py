"""Measure where mixed precision, the layout of images in memory and torch.compile help training.

    python benchmarks/precision.py [--quick] [--device cpu|cuda] [NETWORK ...]

For each network its training images per second, in eight ways: full or mixed precision (bfloat16,
float16 on older cards), images with their channels first or last in memory, compiled or not. All
run through the package's own loop on one CPU thread or one GPU. The ways take turns (A B C ... A B
C ...), after one turn that does not count, in which what is compiled is compiled; the first step of
each turn does not count either. Reported are medians over the turns, the lowest and the highest,
and how many times as fast as full precision, channels first, not compiled.

Images and labels are random numbers, and networks have fresh weights: time does not depend on what
they show. Finished networks are kept in ``results/precision.json``, each with its date and
hardware, and the table of ``benchmarks/README.md`` is rendered from it; ``--quick`` shrinks the
sizes, to see that everything works, and keeps nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import call, refuse_unknown, retell
from torch import Tensor, nn

from helpers import files, models, pages, report, runs, training, unlearning
from helpers.config import DEVICES, PRECISIONS, Recipe, get_config
from helpers.data import Dataset, ImageSet

RECORD = Path(__file__).parents[1] / "results" / "precision.json"
TEXT = Path(__file__).with_name("README.md")
CLASSES, TURNS = 10, 5
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
BASE = ("fp32", "channels first", False)


@dataclass(frozen=True)
class Network:
    """What is trained: channels and side of the images, batch, timed steps of a turn."""

    channels: int
    side: int
    batch: int
    steps: int


NETWORKS = {
    "cpu": {
        "digits_resnet": Network(1, 8, 128, 20), "resnet20": Network(3, 32, 128, 3),
        "resnet18": Network(3, 32, 128, 2), "vit": Network(3, 32, 8, 2),
    },
    "cuda": {
        "resnet18": Network(3, 32, 512, 20), "resnet50": Network(3, 32, 256, 10),
        "vit": Network(3, 32, 256, 10), "resnet20": Network(3, 32, 1024, 20),
    },
}  # fmt: skip


class Laid(Dataset):
    """A dataset whose batches are laid out in memory as asked for."""

    layout: torch.memory_format

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise as the package does, then lay out."""
        return super().normalise(images).contiguous(memory_format=self.layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="default: all")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes; only printed")
    arguments = parser.parse_args()
    cfg = get_config("cpu", device=arguments.device)
    known = NETWORKS[cfg.device]
    refuse_unknown(parser, arguments.networks, known)
    unlearning.set_threads(cfg)
    torch._dynamo.config.recompile_limit = 64  # every way of a network is a version of its own
    for name in arguments.networks or known:
        print(f"{name} ...", flush=True)
        chosen, turns = known[name], TURNS
        if arguments.quick:
            chosen, turns = Network(chosen.channels, chosen.side, 4, 1), 1
        rows = measure(name, chosen, turns, cfg.device)
        table(rows)
        if not arguments.quick:
            keep(name, chosen, rows, cfg.device)
            retell(TEXT, rendered, RECORD)


def measure(name: str, chosen: Network, turns: int, device: str) -> list[dict[str, Any]]:
    """Train one network in all ways, in turn."""
    ways = list(itertools.product(PRECISIONS[1:], LAYOUTS, (False, True)))
    built = {way: build(name, chosen, device) for way in ways}
    found: dict[tuple, list[float]] = {way: [] for way in ways}
    first: dict[tuple, float] = {}
    for turn in range(turns + 1):
        for way in ways:
            started = time.perf_counter()
            seconds = turn_of(built[way], chosen, device, *way)
            first.setdefault(way, time.perf_counter() - started)
            if turn:
                found[way].append(chosen.batch * chosen.steps / seconds)
    base = statistics.median(found[BASE])
    return [row(way, rates, base, first[way]) for way, rates in found.items()]


def build(name: str, chosen: Network, device: str) -> nn.Module:
    return models.build_model(name, CLASSES, chosen.channels, chosen.side).to(device)


def turn_of(
    model: nn.Module, chosen: Network, device: str, precision: str, layout: str, compile: bool
) -> float:
    """Return the seconds of all steps but the first of a short training."""
    dataset = random_dataset(chosen, device, LAYOUTS[layout])
    recipe = Recipe(epochs=1, lr=1e-4, optimizer="sgd", batch_size=chosen.batch)
    clock: list[float] = []

    def tick() -> None:
        if device == "cuda" and len(clock) in (0, chosen.steps):
            torch.cuda.synchronize()
        clock.append(time.perf_counter())

    training.fit(model, dataset.train, dataset, recipe, seed=0, after_step=tick,
                 precision=precision, compile=compile)  # fmt: skip
    return clock[-1] - clock[0]


def random_dataset(chosen: Network, device: str, layout: torch.memory_format) -> Laid:
    draw = torch.Generator().manual_seed(0)
    count = chosen.batch * (chosen.steps + 1)
    shape = (count, chosen.channels, chosen.side, chosen.side)
    images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    part = ImageSet(images, torch.randint(CLASSES, (count,), generator=draw)).to(device)
    flat = torch.full((chosen.channels,), 0.5, device=device)
    made = Laid("random", tuple(map(str, range(CLASSES))), part, part, part, flat, flat, "")
    object.__setattr__(made, "layout", layout)
    return made


def row(way: tuple, rates: list[float], base: float, first: float) -> dict[str, Any]:
    middle = statistics.median(rates)
    return {
        "precision": way[0], "layout": way[1], "compile": way[2], "images_per_second": middle,
        "lowest": min(rates), "highest": max(rates), "times_as_fast": middle / base,
        "first_turn_seconds": first, "n": len(rates),
    }  # fmt: skip


def keep(name: str, chosen: Network, rows: list[dict[str, Any]], device: str) -> None:
    """Merge a finished network into the record."""
    record = files.read_json(RECORD) if RECORD.exists() else {}
    dtype = training.half_precision(torch.device(device), "amp")
    found = {
        **vars(chosen), "rows": rows, "amp": str(dtype).removeprefix("torch."),
        **runs.environment(device),
    }  # fmt: skip
    if device == "cpu":
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
    devices = record.get("devices", {})
    devices[device] = {**devices.get(device, {}), name: found}
    about = "training images per second, medians over turns; random images, fresh weights"
    files.write_json(RECORD, {"about": about, "devices": devices})


def rendered(text: str, record: dict[str, Any]) -> str:
    """Put the tables of all devices between the marks of a text, a column a network."""
    made = ""
    for device, networks in record["devices"].items():
        shown = [[device, *(f"{name}, batch {found['batch']}" for name, found in networks.items())]]
        ways = {name: {(r["precision"], r["layout"], r["compile"]): r for r in found["rows"]}
                for name, found in networks.items()}  # fmt: skip
        base = {name: of[BASE]["images_per_second"] for name, of in ways.items()}
        shown.append([f"{words(*BASE)}, images per second", *(f"{r:,.0f}" for r in base.values())])
        for way in itertools.product(PRECISIONS[1:], LAYOUTS, (False, True)):
            if way != BASE:
                shown.append([words(*way), *(
                    f"{r['times_as_fast']:.2f} ({r['lowest'] / base[name]:.2f} – "
                    f"{r['highest'] / base[name]:.2f})"
                    for name, of in ways.items() for r in [of[way]]
                )])  # fmt: skip
        last = [*networks.values()][-1]
        made += (
            f"{report.markdown_table(shown)}\nMixed precision is {last['amp']}"
            f"{'; instructions ' + last['instructions'] if device == 'cpu' else ''}. "
            f"{report.provenance(last)}\n"
        )
    return pages.filled(text, {"precision": made})


def words(precision: str, layout: str, compile: bool) -> str:
    return f"{precision}, {layout}{', compiled' if compile else ''}"


def table(rows: list[dict[str, Any]]) -> None:
    print(f"{'':32}{'images/s':>10}{'lowest..highest':>20}{'times':>7}{'first turn s':>14}")
    for r in rows:
        way = words(r["precision"], r["layout"], r["compile"])
        span = f"{r['lowest']:.4g}..{r['highest']:.4g}"
        print(f"{way:32}{r['images_per_second']:>10.4g}{span:>20}{r['times_as_fast']:>7.2f}"
              f"{r['first_turn_seconds']:>14.1f}")  # fmt: skip


if __name__ == "__main__":
    call(main)
