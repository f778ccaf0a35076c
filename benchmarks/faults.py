"""Disturb a sweep in every way a machine can, and see whether it ends as if nothing had happened.

    python benchmarks/faults.py [--quick]

Faults: ``kill -9`` of the whole process at 20 moments spread over its work, after each of
which the same command is given again; a worker killed while the others go on; two processes on one
folder; a disk of a few megabytes that fills up and is then made larger; a folder that cannot be
written and then can. After each the weights (SHA-256), metrics and histories of all runs are
compared with those of a sweep that nobody disturbed. A disk and a folder need the right to mount a
file system; without it they are left out, and the record says so.

The record is ``results/faults.json``, from which the table of ``benchmarks/README.md`` is rendered;
``--quick`` tries three moments and keeps nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from measure import call, retell

from helpers import files, pages, report, runs

RECORD = Path(__file__).parents[1] / "results" / "faults.json"
TEXT = Path(__file__).with_name("README.md")
GRID = ("--preset", "smoke", "--method", "lora,prunelora", "--rank", "1,2", "--seed", "0..2",
        "--epochs", "2", "--quiet")  # fmt: skip
TITLES = {  # fault -> what happened, with the count
    "killed": "`kill -9` of the whole sweep, at {} moments one after another",
    "worker": "`kill -9` of {} of two workers",
    "two": "two processes on one folder; the slower one did {} of the points",
    "full disk": "a disk that was full after {} runs, then made larger",
    "read-only": "a folder that could not be written after {} runs, then could",
}
POINTS, STARTS = 12, 3  # of that grid, and the networks they start from
SAME = ("metrics", "history", "weights_sha256", "steps", "trainable", "macs", "peak_memory",
        "sparsity", "file_bytes", "patch_bytes", "identity")  # fmt: skip
SEED, LONGEST = 0, 600


def start(home: Path, *options: str) -> subprocess.Popen[str]:
    """Give the command; the table goes beside the artifacts."""
    words = [sys.executable, "-m", "helpers", "sweep", *GRID, "--home", str(home), "--out",
             str(home / "sweep"), *options]  # fmt: skip
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(home: Path, *options: str) -> tuple[int, str, str]:
    """Give the command and wait: status, what it printed, what it complained about."""
    process = start(home, *options)
    printed, error = process.communicate(timeout=LONGEST)
    return process.returncode, printed, error


def records(home: Path) -> dict[str, Any]:
    """Read what has to be the same, whatever happened, and check that each network is whole."""
    found = {}
    for path in sorted(home.glob("artifacts/*/*/run.json")):
        record = files.read_json(path)
        found[path.parent.name] = {name: record[name] for name in SAME}
        weights = (path.parent / "model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == record["weights_sha256"], path
    return found


def written(home: Path) -> int:
    top = home / "artifacts"  # of which runs are two folders deep
    # folders come and go meanwhile: to os.walk one that is gone is empty
    walked = ((Path(place), found) for place, _, found in os.walk(top))
    return sum(len(found) for place, found in walked if len(place.relative_to(top).parts) > 1)


def kill_after(home: Path, files_written: int, delay: float) -> bool:
    """Start the sweep and kill it once so many files are there; False if it had ended before.

    One of them at least is of this start: before, it would not have begun to work.
    """
    wanted = max(files_written, written(home) + 1)
    process = start(home)
    while process.poll() is None and written(home) < wanted:
        time.sleep(0.005)
    time.sleep(delay)
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    return not ended


def kill_at_random(home: Path, times: int, draw: random.Random, most: int) -> int:
    """Kill a sweep again and again, each time somewhat later in its work, then let it end.

    The moments are spread over the first nine tenths of the files that a whole sweep writes: one
    that has ended cannot be killed, and is not counted.
    """
    killed = 0
    for number in range(times):
        moment = 1 + int(0.9 * number * most / times)
        killed += kill_after(home, moment, draw.uniform(0, 0.1))
    status, _, error = finish(home)
    assert status == 0, error
    return killed


def kill_a_worker(home: Path) -> int:
    """Kill one of two workers while it works: the sweep itself has to go on."""
    process, killed = start(home, "--workers", "2"), 0
    while process.poll() is None and not killed:
        if written(home) > 8:
            workers = [p for p in psutil.Process(process.pid).children()
                       if any("loky" in word for word in p.cmdline())]  # fmt: skip
            busy = max(workers, key=lambda p: sum(p.cpu_times()[:2]), default=None)
            if busy is not None:
                os.kill(busy.pid, signal.SIGKILL)
                killed = 1
        time.sleep(0.02)
    _, error = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, error
    assert killed, "the sweep ended before a worker could be killed"
    assert "a worker process died" in error, error
    return killed


def two_at_once(home: Path) -> int:
    """Two processes on one folder: every run is trained by one of them, and each trains some."""
    both = [start(home) for _ in range(2)]
    said = [process.communicate(timeout=LONGEST) for process in both]
    assert [p.returncode for p in both] == [0, 0], said
    shares = [int(text.split(" done now")[0].split()[-1]) for text, _ in said]
    assert sum(shares) == POINTS, shares
    assert min(shares) > 0, shares
    return min(shares)


def mount(folder: Path, options: str) -> bool:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
                          capture_output=True)  # fmt: skip
    return done.returncode == 0


def full_disk(home: Path) -> int:
    """A disk that is full after some runs; then it is made larger."""
    if not mount(home, "size=2m"):
        return -1
    try:
        status, _, error = finish(home)
        assert status == 2, error
        assert error.startswith("error: cannot write"), error
        assert error.count("\n") == 1, error
        early = len(records(home))
        assert early < POINTS + STARTS
        subprocess.run(["mount", "-o", "remount,size=64m", str(home)], check=True)
        status, _, error = finish(home)
        assert status == 0, error
        keep(home)
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
    return early


def read_only(home: Path) -> int:
    """A folder that cannot be written after some runs; then it can."""
    if not mount(home, "size=64m"):
        return -1
    try:
        kill_after(home, 20, 0.0)
        early = len(records(home))
        subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
        status, _, error = finish(home)
        assert status == 2, error
        assert "Read-only file system" in error, error
        assert error.count("\n") == 1, error
        subprocess.run(["mount", "-o", "remount,rw", str(home)], check=True)
        status, _, error = finish(home)
        assert status == 0, error
        keep(home)
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
    return early


def keep(home: Path) -> None:
    """Copy what is to be compared out of a file system that is about to go."""
    kept = home.with_name(f"{home.name}-kept")
    subprocess.run(["cp", "-r", str(home), str(kept)], check=True)


def rendered(text: str, record: dict[str, Any]) -> str:
    """Put the table of faults between its marks."""
    words = {True: "the same", False: "other ones", None: "not tried: mounting is not allowed"}
    table = [["what happened", "records in the end"]]
    for row in record["faults"]:
        count = "some" if row["same"] is None else row["count"]
        table.append([TITLES[row["fault"]].format(count), words[row["same"]]])
    about = f"{record['runs']} runs each. {report.provenance(record)}"
    return pages.filled(text, {"faults": f"{report.markdown_table(table)}\n{about}\n"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="three moments; only printed")
    quick = parser.parse_args().quick
    times, draw = 3 if quick else 20, random.Random(SEED)
    found = []
    with tempfile.TemporaryDirectory() as place:
        calm = Path(place) / "calm"
        status, _, error = finish(calm)
        assert status == 0, error
        wanted = records(calm)
        assert len(wanted) == POINTS + STARTS
        faults: dict[str, tuple[str, Callable[[Path], int]]] = {
            "killed": ("moments", lambda home: kill_at_random(home, times, draw, written(calm))),
            "worker": ("workers killed", kill_a_worker),
            "two": ("points of the slower process", two_at_once),
            "full disk": ("runs kept before it was full", full_disk),
            "read-only": ("runs kept before", read_only),
        }
        for name, (what, disturb) in faults.items():
            home = Path(place) / name.replace(" ", "-")
            home.mkdir()
            began, count = time.perf_counter(), disturb(home)
            kept = home.with_name(f"{home.name}-kept")
            same = records(kept if kept.is_dir() else home) == wanted if count >= 0 else None
            took = time.perf_counter() - began
            found.append({"fault": name, "counted": what, "count": count, "same": same,
                          "seconds": round(took, 1)})  # fmt: skip
            state = "not tried: mounting is not allowed" if same is None else f"same: {same}"
            print(f"{name:10} {count:3} {what:30} {state} ({took:.0f} s)", flush=True)
    if not quick:
        record = {"grid": list(GRID), "runs": POINTS + STARTS, "faults": found, "seed": SEED}
        print(files.write_json(RECORD, {**record, **runs.environment()}))
        retell(TEXT, rendered, RECORD)
    if any(row["same"] is False for row in found):
        sys.exit("a disturbed sweep ended with other records")


if __name__ == "__main__":
    call(main)
