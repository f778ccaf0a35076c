"""Measure what a sweep costs beyond its trainings, and what a second worker brings.

    python benchmarks/sweep.py [--quick] [SECTION ...]

Sections:

``overhead``: 1,000 points (digits, preset ``smoke``, PruneLoRA, one epoch, one worker), five blocks
of 200 in one process. *Beyond training* is the wall-clock time of the sweep less the seconds that
the records call training: planning, claims, building and checking networks, evaluation, saving,
hashing, the table. *Beyond a loop* compares with one, run in turn on 40 points of each block, that
trains and evaluates the same networks and keeps nothing; it also tells what evaluation takes. And:
the time to plan a point and to read one back, and what it takes on disk.

``workers``: points of the preset ``cpu`` (ten epochs) by one worker and by two, in turn, each time
in a new folder with the networks to start from already there; after one turn that does not count,
so that the workers' imports are paid, which are reported apart.

Every finished section is kept in ``results/sweep.json``, and the table of ``benchmarks/README.md``
is rendered from it; ``--quick`` takes few points and keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import call, refuse_unknown, retell

from helpers import audit, files, frozen, pages, report, runs, sweep, unlearning

RECORD = Path(__file__).parents[1] / "results" / "sweep.json"
TEXT = Path(__file__).with_name("README.md")
SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9)
FULL = {
    "overhead": {"ranks": (1, 2, 4, 8), "classes": tuple(range(10)), "blocks": 5, "plain": 40},
    "workers": {"ranks": (2, 8), "seeds": 4, "pairs": 3},
}
QUICK = {
    "overhead": {"ranks": (1, 2), "classes": (3, 5), "blocks": 2, "plain": 6},
    "workers": {"ranks": (2,), "seeds": 1, "pairs": 1},
}
POINTS = 100_000  # of the grid on paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="few points; only printed")
    arguments = parser.parse_args()
    refuse_unknown(parser, arguments.sections, SECTIONS)
    kept = files.read_json(RECORD) if RECORD.is_file() else {}
    for name in arguments.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as place:
            sizes = (QUICK if arguments.quick else FULL)[name]
            found = SECTIONS[name](Path(place), **sizes)
        kept[name] = {"sizes": sizes, **found, **runs.environment()}
        print(report.text_table([["measured", "value"], *rows(name, kept[name])]), flush=True)
        if not arguments.quick:
            files.write_json(RECORD, kept)
    if not arguments.quick:
        retell(TEXT, rendered, RECORD)


def overhead(place: Path, ranks: Any, classes: Any, blocks: int, plain: int) -> dict[str, Any]:
    found, loop, judged = [], [], []
    os.environ["HELPERS_HOME"] = str(place)
    grid = {"rank": ranks, "sparsity": SPARSITIES, "forget": classes, "epochs": [1]}
    warm = {"rank": [3], "epochs": [1], "seed": list(range(blocks))}
    sweep.run(warm, "smoke", progress=False)  # imports, and the networks to start from
    for seed in range(blocks):
        done = sweep.run({**grid, "seed": [seed]}, "smoke", progress=False)
        training = sum(_training(place, done.rows))
        found.append({"points": done.done, "wall": done.seconds, "training": training})
        whole, evaluation = _plain_loop({**grid, "seed": [seed]}, plain)
        loop.append(whole)
        judged.append(evaluation)
    whole = {**grid, "seed": list(range(blocks))}
    started = time.perf_counter()
    count = len(sweep.plan(whole, "smoke").points)
    planned = time.perf_counter() - started
    again = sweep.run(whole, "smoke", progress=False)
    assert (again.done, len(again.rows)) == (0, count)
    folders = [place / row["folder"] for row in again.rows]
    inside = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    table = sweep.save(again, place / "table")
    return {
        "points": count, "blocks": found, "plain_ms": loop, "evaluation_ms": judged,
        "plan_ms": 1e3 * planned / count, "read_ms": 1e3 * (again.seconds - planned) / count,
        "files": len(inside) / count, "bytes": sum(p.stat().st_size for p in inside) / count,
        "on_disk": sum(512 * p.stat().st_blocks for p in inside) / count,
        "table_bytes": [path.stat().st_size / count for path in table],
    }  # fmt: skip


def _training(place: Path, rows: list[dict[str, Any]]) -> list[float]:
    """Read the seconds of each training: pruning is done once for several points."""
    records = (files.read_json(place / row["folder"] / "run.json") for row in rows)
    return [record["training_seconds"] for record in records]


def _plain_loop(grid: dict[str, Any], number: int) -> tuple[float, float]:
    """Train and evaluate the first points of a grid, and keep nothing.

    Returns milliseconds a point, and those of them that the evaluation took.
    """
    points = sweep.plan(grid, "smoke", "plain").points[:number]
    dataset, _ = sweep._share(points[0].cfg, "plain")
    cache = frozen.Cache(points[0].cfg.cache_mb * 1_000_000)
    monitor = dataset.validation.sample(runs.MONITORED)
    started, evaluation = time.perf_counter(), 0.0
    original = runs.run(runs.before(points[0].cfg), dataset, False).model(dataset)
    for point in points:
        made = unlearning.unlearn(original, dataset, point.cfg, monitor=monitor, cache=cache)
        begun = time.perf_counter()
        audit.evaluate(made.model, dataset, point.cfg.forgotten, point.cfg.seed)
        evaluation += time.perf_counter() - begun
    return tuple(1e3 * s / len(points) for s in (time.perf_counter() - started, evaluation))


def workers(place: Path, ranks: Any, seeds: int, pairs: int) -> dict[str, Any]:
    grid = {"rank": ranks, "sparsity": SPARSITIES, "seed": list(range(seeds))}
    os.environ["HELPERS_HOME"] = str(place / "start")
    sweep.run({"method": ["original"], "seed": list(range(seeds))}, "cpu", progress=False)
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(pairs + 1):
        for count, found in times.items():
            home = place / f"{turn}-{count}"
            shutil.copytree(place / "start", home)
            os.environ["HELPERS_HOME"] = str(home)
            done = sweep.run(grid, "cpu", workers=count, progress=False)
            found.append(done.seconds)
            training = _training(home, done.rows)
            shutil.rmtree(home)
    (_, *one), (first, *two) = times.values()
    return {
        "points": len(training), "one": one, "two": two, "first_of_two": first,
        "training_s": statistics.mean(training),
        "times_as_fast": statistics.median(a / b for a, b in zip(one, two, strict=True)),
    }  # fmt: skip


def beyond(section: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Milliseconds a point of each block beyond training, and beyond the plain loop."""
    wall = [1e3 * b["wall"] / b["points"] for b in section["blocks"]]
    training = [1e3 * b["training"] / b["points"] for b in section["blocks"]]
    return ([a - b for a, b in zip(wall, training, strict=True)],
            [a - b for a, b in zip(wall, section["plain_ms"], strict=True)])  # fmt: skip


def _span(values: list[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.1f} {unit} ({low:.1f} – {high:.1f})"


def rows(name: str, section: dict[str, Any]) -> list[list[str]]:
    """Say what a section found, one line a number."""
    if name == "workers":
        ratios = [a / b for a, b in zip(section["one"], section["two"], strict=True)]
        late = section["first_of_two"] - statistics.median(section["two"])
        return [
            ["points, each training for", f"{section['points']}, {section['training_s']:.2f} s"],
            ["two workers against one, times as fast", _span(ratios, "x")],
            ["start of two workers, once", f"{late:.1f} s"],
        ]
    training, loop = beyond(section)
    return [
        ["points", f"{section['points']:,}"],
        ["a point, beyond its training", _span(training, "ms")],
        ["of it, evaluating the network", _span(section["evaluation_ms"], "ms")],
        ["a point, beyond a loop that trains and evaluates", _span(loop, "ms")],
        ["planning a point", f"{section['plan_ms']:.1f} ms"],
        ["reading a point back", f"{section['read_ms']:.1f} ms"],
        ["a point on disk", f"{section['files']:.0f} files, {section['on_disk'] / 1e3:.0f} kB"],
    ]


def on_paper(record: dict[str, Any]) -> list[list[str]]:
    """Compute what a large grid takes, from what was measured."""
    small, two = record["overhead"], record["workers"]
    more = statistics.median(beyond(small)[0]) / 1e3
    alone = POINTS * (small["plan_ms"] + small["read_ms"]) / 3.6e6
    found = [["a point trains for", "core hours", "1 core", "64 cores", "1,024 cores",
              "of it beyond training"]]  # fmt: skip
    for seconds in (two["training_s"], 60.0, 3600.0):
        hours = POINTS * (seconds + more) / 3600
        times = [f"{alone + hours / cores:,.1f} h" for cores in (1, 64, 1024)]
        found.append([f"{seconds:,.1f} s", f"{hours:,.0f}", *times,
                      f"{100 * more / (seconds + more):.1f} %"])  # fmt: skip
    return found


def storage(record: dict[str, Any]) -> str:
    """Say what that grid takes on disk and in the head of one process."""
    one = record["overhead"]
    csv, plain = (size * POINTS / 1e6 for size in one["table_bytes"])
    check, read = (one[name] * POINTS / 1e3 for name in ("plan_ms", "read_ms"))
    return (
        f"On disk {one['on_disk'] * POINTS / 1e9:,.0f} GB in {one['files'] * POINTS:,.0f} files "
        f"for the digits network of 78 k parameters ({one['on_disk'] / 1e3:.0f} kB a point; a "
        f"larger network in proportion); the table {csv:,.0f} MB as CSV and {plain:,.0f} MB as "
        f"JSON. The one process that plans and collects needs {check:,.0f} s to check all points, "
        f"and {read:,.0f} s to read all back when it is started again."
    )


def _provenance(record: dict[str, Any]) -> str:
    """Say where and when; of each section, if not all were measured on one day."""
    told = {name: report.provenance(record[name]) for name in SECTIONS if name in record}
    if len({*told.values()}) < 2:
        return next(iter(told.values()))
    return " ".join(f"{name.capitalize()}: {text}" for name, text in told.items())


def rendered(text: str, record: dict[str, Any]) -> str:
    """Put the measured tables between the marks of a text."""
    measured = [["measured", "value"], *(r for n in SECTIONS if n in record
                                         for r in rows(n, record[n]))]  # fmt: skip
    if not measured[1:]:
        return text
    parts = {"measured": f"{report.markdown_table(measured)}\n{_provenance(record)}\n"}
    if {*SECTIONS} <= {*record}:
        parts["paper"] = f"{report.markdown_table(on_paper(record))}\n{storage(record)}\n"
    return pages.filled(text, parts)


SECTIONS = {"overhead": overhead, "workers": workers}

if __name__ == "__main__":
    call(main)
