"""What the scripts share: how they are called, what is timed, how, and held against a limit.

Two sides are timed in one process, one after the other in turn (A B A B ...), after one turn that
does not count; reported are the median of each side, the median of the ratios of the pairs, and the
lowest and highest of them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from helpers import files, models, runs
from helpers.config import InputError, RunConfig, get_config
from helpers.data import Dataset, ImageSet

SEED, CLASSES, SIDE, SPARSITY, RANK = 0, 10, 32, 0.5, 8
Times = dict[str, list[float]]  # who -> seconds, one each turn
Check = dict[str, Any]  # one row of the table
Section = Callable[..., dict[str, Any]]


def call(main: Callable[[], None]) -> None:
    """Run a script; tell in one line what is wrong with its input or files, or that it stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the locale C, say, has no dash
            stream.reconfigure(errors="replace")
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:  # where a training was, its message tells
        sys.exit(str(stopped) or "stopped; what is done is kept")


def refuse_unknown(
    parser: argparse.ArgumentParser, asked: Iterable[str], known: Iterable[str]
) -> None:
    """End a script that is asked for what there is not, as the parser ends it."""
    known = tuple(known)
    if unknown := sorted({*asked} - {*known}):
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")


def retell(text: Path, rendered: Callable[[str, Any], str], record: Path) -> None:
    """Write the tables of a record into the text that shows them."""
    new = rendered(text.read_text(encoding="utf-8"), files.read_json(record))
    files.write_atomically(text, files.as_text(new))


def sections(
    wanted: Iterable[str], known: Mapping[str, Section], sizes: Mapping[str, dict[str, Any]],
    device: str, record: Path | None, about: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Measure some sections, keep each in the record when it is done, and print all limits."""
    made = {}
    for name in wanted:
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        section = known[name](**sizes[name])
        seconds = time.perf_counter() - started
        made[name] = {
            "sizes": sizes[name], "took": seconds, **section, **runs.environment(device)
        }  # fmt: skip
        if record is not None:
            keep(record, {name: made[name]}, known, device, about)
    table([row for section in made.values() for row in section["checks"]])
    return made


def keep(
    path: Path, new: Mapping[str, Any], order: Iterable[str], device: str, about: Mapping[str, Any]
) -> None:
    """Merge finished sections into a record."""
    record = files.read_json(path) if path.exists() else {}
    kept = {**record.get("sections", {}), **new}
    record = {
        **about, "image": [3, SIDE, SIDE], "classes": CLASSES, "sparsity": SPARSITY, "rank": RANK,
        "sections": {n: kept[n] for n in order if n in kept}, **runs.environment(device),
    }  # fmt: skip
    files.write_json(path, record)


def table(rows: list[Check]) -> None:
    """Print what was measured, its limit, and whether it was met."""
    width = max((len(row["what"]) for row in rows), default=0)
    print(f"\n{'what':{width}}  {'measured':>10}  {'lowest..highest':>19}  {'limit':>9}")
    for row in rows:
        span = "" if "lowest" not in row else f"{row['lowest']:.4g}..{row['highest']:.4g}"
        met = {True: "met", False: "NOT MET", None: ""}[row["met"]]
        limit = row["limit"] or "none"
        print(f"{row['what']:{width}}  {row['measured']:>10.4g}  {span:>19}  {limit:>9}  {met}")


def check(
    what: str, measured: float | dict[str, Any], most: float | None = None,
    least: float | None = None,
) -> Check:  # fmt: skip
    """Hold a number, or the ratio of two timings, against its limit."""
    row = measured if isinstance(measured, dict) else {}
    value = row["ratio"] if row else measured
    limit, met = "", None
    if most is not None:
        limit, met = f"<= {most:g}", value <= most
    if least is not None:
        limit, met = f">= {least:g}", value >= least
    span = {key: row[key] for key in ("lowest", "highest") if key in row}
    return {"what": what, "measured": value, **span, "limit": limit, "met": met}


def config(model: str = "resnet18", device: str = "cpu", **changes: Any) -> RunConfig:
    return get_config("cpu", **{
        "model": model, "device": device, "threads": 1, "tuned": "", "forget": 0,
        "sparsity": SPARSITY, "rank": RANK, "seed": SEED, **changes,
    })  # fmt: skip


def random_dataset(count: int) -> Dataset:
    """Make a dataset of random numbers; its other parts are its training images once more."""
    draw = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    part = ImageSet(images, torch.randint(1, CLASSES, (count,), generator=draw))
    mean, std = torch.full((3,), 0.5), torch.full((3,), 12**-0.5)  # of uniform numbers
    return Dataset("random", tuple(map(str, range(CLASSES))), part, part, part, mean, std, "")


def to_forget(retained: Dataset) -> Dataset:
    """Add one image of the class to forget, without which there would be nothing to unlearn."""
    one = ImageSet(retained.train.images[:1], torch.zeros_like(retained.train.labels[:1]))
    return dataclasses.replace(retained, train=retained.train.with_all(one))


def build(model: str, seed: int = SEED) -> nn.Module:
    return models.build_model(model, CLASSES, 3, SIDE, seed)


def in_turn(contenders: dict[str, Callable[[int], float]], count: int, warm: bool = True) -> Times:
    """Time the contenders one after the other, again and again; the first turn does not count.

    Each is called with the number of the turn, which serves as a seed, and returns its seconds.
    """
    times: Times = {name: [] for name in contenders}
    for turn in [*([0] if warm else []), *range(count)]:
        for name, run in contenders.items():
            times[name].append(run(turn))
    return {name: seconds[-count:] for name, seconds in times.items()}


def compare(times: Times, ours: str, plain: str) -> dict[str, Any]:
    """Divide the numbers of two contenders, turn by turn."""
    ratios = [a / b for a, b in zip(times[ours], times[plain], strict=True)]
    return {
        "ours": ours, "plain": plain, "ours_seconds": statistics.median(times[ours]),
        "plain_seconds": statistics.median(times[plain]), "ratio": statistics.median(ratios),
        "lowest": min(ratios), "highest": max(ratios), "n": len(ratios),
    }  # fmt: skip


def clock(run: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peft_own(
    model: nn.Module, rank: int, targets: Iterable[str], in_full: Iterable[str],
    dropout: float = 0.0,
) -> Any:  # fmt: skip
    """Adapt a copy of a network with peft's own layers, which act on the images."""
    own = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=list(targets),
        modules_to_save=list(in_full),
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(SEED)
        return get_peft_model(copy.deepcopy(model), own)
