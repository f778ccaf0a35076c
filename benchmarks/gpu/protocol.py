"""Do the experiments that need a GPU, in calls of a few minutes, and keep what they find.

    python benchmarks/gpu/protocol.py --data folder:PATH --home DIR [--minutes 9] [--carry FILE]
    python benchmarks/gpu/protocol.py --dry-run
    python benchmarks/gpu/protocol.py --quick

Each call goes on where the last one stopped, ends after ``--minutes`` and says what is left. A
training in progress leaves a checkpoint in ``--home``. On a machine that starts bare each time,
``--carry`` names one small file that is read at the start and written after every step: all that
was measured, and no network. README.md beside this file tells how, and what each step is for.

``results/protocol-cuda.json`` is written anew after every step, from all that was done so far, on
one data set: a call with other images than those of ``--home`` or ``--carry`` is refused.
Several calls may work on one ``--home`` at once, each on steps of its own (``--only``).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import data, files, runs, study, training, tutorial
from helpers.config import (
    MODES,
    InputError,
    Recipe,
    RunConfig,
    anchor,
    anchored,
    check,
    choose,
    get_config,
    home,
)

ROOT = Path(__file__).parents[2]
PAPER = ("finetune", "prune_finetune", "lora", "prunelora")
OURS = (*PAPER, "prunelora_channels")
ORACLES = 3
DONE, FAILED = "done.json", "failed.json"  # step -> what was kept of it, or why it failed
RECORDS = ("protocol-cuda.json", "images-cuda.json", "tutorial-gpu.json")
MARGIN = 30  # seconds; with less time left nothing new is begun
LONGEST = 10_080  # minutes of a call: a week
# Short schedules of today for what the paper trains for 200 and 90 epochs.
RESNET = Recipe(epochs=40, lr=0.2, optimizer="sgd", weight_decay=5e-4, batch_size=256,
                schedule="onecycle", augment="crop+flip")  # fmt: skip
VIT = Recipe(epochs=90, lr=1e-3, optimizer="adamw", weight_decay=0.1, batch_size=256,
             schedule="onecycle", augment="crop+flip", mixup=0.2)  # fmt: skip


class NotDone(Exception):
    """A step could not be finished in the time that was left."""


@dataclass(frozen=True)
class Experiment:
    """One network of the paper: what is trained, what is unlearned, and a guess of the minutes."""

    cfg: RunConfig
    classes: tuple[int, ...] = (3, 9, 8)  # cat, truck, ship
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: tuple[int, ...] = (5, 10)
    train_minutes: float = 6  # 8 s an epoch, and the evaluation

    def settings(self) -> dict[str, dict[str, dict[str, Any]]]:
        """List what is audited, in parts of some minutes: as published and as here, by epochs."""
        made: dict[str, dict[str, dict[str, Any]]] = {}
        for count in self.epochs:
            shared = {"epochs": count}
            made[f"as published, {count} epochs"] = {
                f"{m}, as published, {count} epochs": shared | {"method": m, "mode": "paper"}
                for m in PAPER
            }
            made[f"{count} epochs"] = {f"{m}, {count} epochs": shared | {"method": m} for m in OURS}
        first = f"{self.epochs[0]} epochs"
        made[first] = {"original": {"method": "original"}} | made[first]
        return made


@dataclass(frozen=True)
class Step:
    """One piece of work.

    Attributes:
        name: Under which it is kept as done.
        minutes: A guess, for a card such as the H100.
        act: Does it, in at most so many seconds, and returns what to keep of it.
        whole: Whether it has to start anew if it is stopped.
        serves: Steps that need it; once all of those are done it need not be done again.
        images: Whether it is done on the images of ``--data``.
    """

    name: str
    minutes: float
    act: Callable[[float], dict[str, Any]]
    whole: bool = False
    serves: tuple[str, ...] = ()
    images: bool = True


# ------------------------------------------------------------------------------------------------
# the steps


def experiments(options: argparse.Namespace) -> dict[str, Experiment]:
    """Return the networks to train; small ones on the digits for ``--quick``."""
    shared = {"mode": "default", "device": options.device, "cache_mb": 16_000}
    if options.quick:
        cfg = get_config("smoke", device=options.device, tuned="", rank=2, train_limit=30)
        short = dataclasses.replace(cfg.train, epochs=2)
        one = {"classes": (3,), "seeds": (0,), "epochs": (1,)}
        vit = cfg.but(
            model="vit_tiny", train=dataclasses.replace(VIT, epochs=12, lr=0.01, batch_size=32)
        )
        return {"resnet50": Experiment(cfg.but(train=short), **one), "vit": Experiment(vit, **one)}
    if options.data:
        shared["data"] = options.data
    resnet = get_config("paper", train=RESNET, **shared)
    vit = get_config("paper", model="vit", **shared).but(train=VIT)
    return {"resnet50": Experiment(resnet), "vit": Experiment(vit, train_minutes=9)}


def steps(options: argparse.Namespace) -> list[Step]:
    """List everything in order: what is short first, then class by class and seed by seed."""
    listed = [*_tests(options), *_benchmarks(options), *_notebooks(options)]
    for name, one in experiments(options).items():
        listed += _networks_and_audits(name, one)
    return listed


def _networks_and_audits(name: str, one: Experiment) -> list[Step]:
    cells = [(c, s) for c in one.classes for s in one.seeds]
    singles = {
        (c, s, label): f"{name}: run, class {c}, seed {s}, {label}"
        for c, s in cells for part in one.settings().values() for label in part
    }  # fmt: skip
    audits = {
        (c, s, part): f"{name}: audit, class {c}, seed {s}, {part}"
        for c, s in cells for part in one.settings()
    }  # fmt: skip
    both = singles | audits
    made: dict[str, Step] = {}

    def add(text: str, minutes: float, act: Callable[[float], dict[str, Any]], **how: Any) -> None:
        made.setdefault(text, Step(text, minutes, act, **how))

    def oracle(forget: int, seed: int) -> None:
        cfg = one.cfg.but(method="retrain", forget=forget, seed=seed)
        # its own numbers need no other network
        serves = tuple(text for (c, *_), text in audits.items() if c == forget)
        text = f"{name}: oracle, class {forget}, seed {seed}"
        add(text, one.train_minutes, _train(cfg, again=True), serves=serves)

    for forget, seed in cells:
        text = f"{name}: original, seed {seed}"
        act = _train(one.cfg.but(method="original", seed=seed), again=True)
        serves = tuple(text for (_, s, _), text in both.items() if s == seed)
        add(text, one.train_minutes, act, serves=serves)
        oracle(forget, study.ORACLE_SEED)
        for part in one.settings().values():
            for label, changes in part.items():
                cfg = one.cfg.but(forget=forget, seed=seed, **changes)
                add(singles[forget, seed, label], 1, _train(cfg, label))
        for number in range(1, ORACLES):
            oracle(forget, study.ORACLE_SEED + number)
        for part in one.settings():
            add(audits[forget, seed, part], 8, _audit(name, one, forget, seed, part))
    return list(made.values())


def _train(
    cfg: RunConfig, label: str = "", again: bool = False
) -> Callable[[float], dict[str, Any]]:
    """Train or unlearn one network, and keep its classic numbers in each mode it is judged in."""

    def act(seconds: float) -> dict[str, Any]:
        dataset = data.load_dataset(cfg)
        with stopped_after(seconds):
            done = runs.run(cfg, dataset, measured=False)
        rows, share = [], float((dataset.test.labels == cfg.forget).double().mean())
        # what starts from scratch is the same network in both modes, and judged differently
        for mode in MODES if again else (cfg.mode,):
            one = runs.run(cfg.but(mode=mode), dataset, measured=False)
            right = (1 - share) * one.metrics["TA"] + share * (1 - one.metrics["UA_test"])
            rows.append(
                {
                    "label": label or cfg.method,
                    "mode": mode,
                    "forget": cfg.forget,
                    **one.row,
                    "accuracy": right,
                    "date": done.record["date"],
                }
            )
        found = {"TA": rows[0]["TA"], "accuracy": rows[0]["accuracy"], "rows": rows,
                 "trained": done.record["seconds"], "data": dataset.name,
                 "classes": list(dataset.classes)}  # fmt: skip
        return found | ({"folder": done.folder.relative_to(home()).as_posix()} if again else {})

    return act


def _audit(
    name: str, one: Experiment, forget: int, seed: int, part: str
) -> Callable[[float], dict[str, Any]]:
    def act(seconds: float) -> dict[str, Any]:
        with stopped_after(seconds):
            found = study.run(one.cfg, one.settings()[part], [forget], [seed], oracles=ORACLES)
        number = list(one.settings()).index(part)
        study.save(found, _kept(f"{name}-{forget}-{seed}-{number}.json"))
        return {"audits": len(found.table)}

    return act


def _tests(options: argparse.Namespace) -> list[Step]:
    """Run the unit tests on the device, each file a step: all of them take longer than a call."""
    pattern = "test_files.py" if options.quick else "test_*.py"
    return [
        Step(f"tests: {path.stem}", 1, script(path.stem, [
            "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)
        ]), whole=True, images=False)
        for path in sorted((ROOT / "tests" / "unit").glob(pattern))
    ]  # fmt: skip


def _benchmarks(options: argparse.Namespace) -> list[Step]:
    """Time the package against the plain way: each section of ``benchmarks/images.py`` a step."""
    path = ROOT / "benchmarks" / "images.py"
    if not path.is_file():
        return []
    quick = ["--quick"] if options.quick else []
    minutes = {"graphs": 2, "batches": 1, "epoch": 2, "memory": 2, "peak": 2, "cost": 7}
    if options.device == "cpu":
        del minutes["graphs"]  # a CPU has none
    sections = ("batches",) if options.quick else (*minutes,)
    data = ["--data", options.data] if options.data else []
    return [
        Step(f"images: {s}", minutes[s], script(
            f"images-{s}", [str(path), *quick, "--device", options.device, *data, s]
        ), whole=True)
        for s in sections
    ]  # fmt: skip


def _notebooks(options: argparse.Namespace) -> list[Step]:
    """Execute the series under the preset of Colab's GPUs, each notebook a step."""
    preset, series = ("smoke", tutorial.SERIES[:1]) if options.quick else ("gpu", tutorial.SERIES)

    def play(name: str) -> Callable[[float], dict[str, Any]]:
        def act(seconds: float) -> dict[str, Any]:
            notebook = ROOT / "notebooks" / f"{name}.ipynb"
            with gpu_use(options.device) as used:
                _, costs = tutorial.execute(notebook, preset)
            return costs | used

        return act

    return [Step(f"notebook: {name}", 8, play(name), whole=True) for name in series]


def script(name: str, command: list[str]) -> Callable[[float], dict[str, Any]]:
    """Run a Python script, its output kept in a file of its own."""

    def act(seconds: float) -> dict[str, Any]:
        log = _kept(f"{name}.log")
        with log.open("w", encoding="utf-8") as output:
            begun = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = begun.wait(seconds)
            except subprocess.TimeoutExpired as error:
                _end(begun)
                raise NotDone(f"stopped after {seconds:.0f} s; see {log}") from error
            except BaseException:  # Ctrl-C, which does not reach another session
                _end(begun)
                raise
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        if code:
            raise InputError(f"exit code {code}, see {log}: {''.join(last)}")
        return {"says": "".join(last)}

    return act


def _end(begun: subprocess.Popen[bytes]) -> None:
    """End a process and those that it began: workers that stay would keep memory of the GPU."""
    if os.name == "nt":
        begun.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Let what trains meanwhile save its checkpoint and stop when the time is over."""
    stop, over = threading.Event(), threading.Event()

    def end() -> None:
        over.set()
        stop.set()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        with training.watched(stop):
            yield
    except training.Interrupted as stopped:
        if not over.is_set():  # Ctrl-C
            raise
        raise NotDone(str(stopped)) from stopped
    finally:
        timer.cancel()


@contextlib.contextmanager
def gpu_use(device: str) -> Iterator[dict[str, float]]:
    """Watch a GPU; afterwards tells gpu_mb, the most memory in use, and gpu_busy, by whomever.

    gpu_busy is the share of the time in which the GPU computed anything. Empty without a GPU, or
    without the package nvidia-ml-py.
    """
    import torch

    found: dict[str, float] = {}
    if device != "cuda" or importlib.util.find_spec("pynvml") is None:
        yield found
        return
    memory, busy, over = [], [], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):  # asks the driver, and takes no memory of the GPU itself
            memory.append(torch.cuda.device_memory_used(0))
            busy.append(torch.cuda.utilization(0))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        if busy:
            found.update(gpu_mb=max(memory) / 1e6, gpu_busy=sum(busy) / len(busy) / 100)


# ------------------------------------------------------------------------------------------------
# what is kept


def _kept(name: str) -> Path:
    folder = home() / "protocol"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def done_so_far(place: Path | None = None) -> dict[str, Any]:
    """Return step -> what was kept of it; place is the home, unless it is told."""
    path = (place or home()) / "protocol" / DONE
    done = files.read_json(path) if path.is_file() else {}
    for name, kept in done.items():
        ok = isinstance(kept, dict) and isinstance(kept.get("folder", ""), str | None)
        if ok and "rows" in kept:  # of a network, for the record
            parts = (kept["rows"], kept.get("data"), kept.get("classes"))
            ok = all(map(isinstance, parts, (list, str, list)))
            ok = ok and all(isinstance(row, dict) for row in kept["rows"])
        if not ok:
            raise files.FileProblem(files.cannot_read(path, f"what it holds of {name!r} is not "
                                                            "what a step keeps"))  # fmt: skip
    return done


def images_of(options: argparse.Namespace) -> dict[str, str]:
    """Tell the images of this call: their name, and what two data sets of one name differ in."""
    cfg = next(iter(experiments(options).values())).cfg
    dataset = data.load_dataset(cfg.but(device="cpu"))
    return {"data": dataset.name, "fingerprint": dataset.fingerprint}


def compare_images(done: Mapping[str, Any], images: Mapping[str, str]) -> None:
    """Refuse to go on from steps that were done on other images."""
    for name, kept in done.items():
        same = all(kept.get(key, value) == value for key, value in images.items())
        check("--data", images.get("data"), same, f"{name!r} was done on other images "
              f"({kept.get('data')}), and one record is of one data set: take another --home, and "
              "another file for --carry")  # fmt: skip


def change(name: str, new: dict[str, Any], gone: Iterable[str] = ()) -> None:
    """Merge something into a list that several calls at once may keep."""
    path = _kept(name)
    with files.locked(path.with_suffix(".lock"), wait=True):
        known = files.read_json(path) if path.is_file() else {}
        files.write_json(path, {k: v for k, v in (known | new).items() if k not in {*gone}})


def write_record(options: argparse.Namespace) -> None:
    """Write all audits so far, and the classic numbers of every network, as one record."""
    found, classic = {}, {}
    for name, one in experiments(options).items():
        steps = {
            k: v for k, v in done_so_far().items() if k.startswith(f"{name}: ") and "rows" in v
        }
        if steps:
            about = {k: next(iter(steps.values()))[k] for k in ("data", "classes")}
            recipe = {"train": dataclasses.asdict(one.cfg.train)}
            classic[name] = (
                about | recipe | {"rows": [row for step in steps.values() for row in step["rows"]]}
            )
        paths = sorted(_kept("").glob(f"{name}-*-*-*.json"))
        if not paths:
            continue
        whole = study.join([study.load(path) for path in paths])
        source = Path(str(whole.about["data"]).removeprefix("folder:")).name  # no path of anybody's
        whole.about.update(data=source, train=dataclasses.asdict(one.cfg.train))
        whole.about["settings"] = {
            k: v for part in one.settings().values() for k, v in part.items()
        }
        study.save(whole, _kept(f"{name}.json"))
        found[name] = files.read_json(_kept(f"{name}.json"))
    if found or classic:
        here = runs.environment(options.device)
        files.write_json(options.record, {**here, "classic": classic, "models": found})


def write_costs(options: argparse.Namespace, done: dict[str, Any]) -> None:
    """Write what the notebooks cost, once all were executed; the budget tables show it."""
    costs = {name: done.get(f"notebook: {name}") for name in tutorial.SERIES}
    if None not in costs.values():
        here = runs.environment(options.device)
        files.write_json(options.record.with_name("tutorial-gpu.json"), here | {"costs": costs})


def pack(path: Path, records: Iterable[str]) -> None:
    """Write all that was measured, but no network, as one file."""
    folders = [(home() / name, name) for name in ("protocol", "artifacts/audits")]
    folders += [(ROOT / "results" / name, f"results/{name}") for name in records]

    def write(part: Path) -> None:
        with tarfile.open(part, "w:gz") as archive:
            for source, name in folders:
                if source.exists():
                    archive.add(source, name)

    files.write_atomically(path, write)


def unpack(path: Path, records: Iterable[str], images: Mapping[str, str]) -> None:
    """Read what :func:`pack` wrote, if it is there, where nothing was measured yet.

    All of it or nothing: what was read by half would count as done, and be carried on. Nothing, if
    it is of other images.
    """
    if not path.is_file() or (home() / "protocol" / DONE).is_file():
        return
    try:
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), prefix=".carried-") as place:
            _extract(path, place)
            compare_images(done_so_far(Path(place)), images)
            _settle(Path(place), records)
    except files.FileProblem as error:  # in the archive, whose own name is of use
        raise files.FileProblem(files.cannot_read(path, f"{DONE} in it is damaged")) from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise files.FileProblem(files.cannot_read(path, error)) from error
    except OSError as error:
        raise files.FileProblem(
            f"cannot unpack {path} to {home()}: {error}; nothing of it counts as done. Free some "
            "space, or choose another --home"
        ) from error


def _extract(path: Path, place: str) -> None:
    with gzip.open(path) as packed:
        content = io.BytesIO(packed.read())  # to the end, where the checksum is
    with tarfile.open(fileobj=content) as archive:
        archive.extractall(place, filter="data")  # refuses what would leave the folder


def _settle(place: Path, records: Iterable[str]) -> None:
    """Move what was extracted to where it belongs, the list of what is done last."""
    own = {Path("results", name) for name in records}
    found = [part.relative_to(place) for part in place.rglob("*") if part.is_file()]
    for part in sorted(found, key=lambda one: one == Path("protocol", DONE)):
        target = (ROOT if part in own else home()) / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(place / part, target)


# ------------------------------------------------------------------------------------------------
# the calls


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    ends = time.monotonic() + 60 * options.minutes
    listed = _asked(options)
    check("--only", options.only, bool(listed),
          "the beginning of a step's name; --dry-run lists them")  # fmt: skip
    if options.dry_run:
        show(listed)
        return 0
    images = images_of(options) if any(step.images for step in listed) else {}
    if options.carry:
        unpack(options.carry, options.records, images)
    compare_images(done_so_far(), images)
    failed = go(listed, options, ends, images)
    show(listed, left_only=True)
    return 1 if failed else 0


def go(
    listed: list[Step], options: argparse.Namespace, ends: float, images: Mapping[str, str]
) -> list[str]:
    """Do one step after the other until the time is over; returns those that failed.

    What failed in an earlier call comes last, so that it does not take the time of the others. On
    which images a step was done is kept with it.
    """
    failed, fresh = [], True
    before = files.read_json(_kept(FAILED)) if _kept(FAILED).is_file() else {}
    for step in sorted(listed, key=lambda one: one.name in before):
        done, left = done_so_far(), ends - time.monotonic()
        if _needless(step, done):
            continue
        if left < MARGIN and not fresh:
            break
        if step.whole and not fresh and 60 * step.minutes > left:
            continue  # the next call has room for it
        fresh, started = False, time.monotonic()
        print(f"{step.name} ...", flush=True)
        change(FAILED, {step.name: "not finished"})  # should the whole process be ended meanwhile
        try:
            found = step.act(left)
        except NotDone as stopped:
            print(f"  {stopped}", flush=True)
            change(FAILED, {}, [step.name])  # it goes on where it was
        except Exception as error:  # out of memory, say: the others can go on; the exit code tells
            failed.append(step.name)
            change(FAILED, {step.name: f"{type(error).__name__}: {error}"})
            print(f"  FAILED: {error}", flush=True)
        else:
            change(FAILED, {}, [step.name])
            took = {"took": time.monotonic() - started}
            change(DONE, {step.name: {**found, **took, **(images if step.images else {})}})
            print(f"  {took['took']:.0f} s; {_told(found)}", flush=True)
            with files.locked(_kept("records.lock"), wait=True):  # the newest is written last
                write_costs(options, done_so_far())
                write_record(options)
        if options.carry:
            pack(options.carry, options.records)
    return failed


def _asked(options: argparse.Namespace) -> list[Step]:
    """List the steps to do, those of ``--only`` in its order."""
    every = steps(options)
    starts = options.only or [""]
    return list({s.name: s for start in starts for s in every if s.name.startswith(start)}.values())


def _needless(step: Step, done: dict[str, Any]) -> bool:
    """Say whether a step is done, or all that it serves.

    A network of a machine that is gone is trained again only while an audit still needs it.
    """
    if step.serves and all(name in done for name in step.serves):
        return True
    if step.name not in done:
        return False
    folder = done[step.name].get("folder")
    return folder is None or (home() / folder / "run.json").is_file()


def _told(found: dict[str, Any]) -> str:
    plain = {k: v for k, v in found.items() if isinstance(v, int | float | str)}
    return ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items()
    )


def show(listed: Iterable[Step], left_only: bool = False) -> None:
    """Print the steps, and the minutes that those which are left take."""
    done, minutes = done_so_far(), 0.0
    for step in listed:
        over = _needless(step, done)
        minutes += 0 if over else step.minutes
        if not (left_only and over):
            print(f"{'done' if over else 'left':5} {step.minutes:5.0f} min  {step.name}")
    print(f"about {minutes:.0f} minutes are left" if minutes else "everything is done")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--home", metavar="DIR", help="where networks and checkpoints are kept")
    add("--data", metavar="SOURCE", help="cifar10 (default), or folder:PATH")
    add("--minutes", type=float, default=9, help="time of this call; default 9")
    add("--carry", type=Path, metavar="FILE", help="all measurements as one small file: read if it "
        "is there and --home is empty, written after every step")  # fmt: skip
    add("--only", action="append", metavar="STEP", help="steps whose names begin so; repeatable, "
        "and done in this order")  # fmt: skip
    add("--device", default="cuda", help="cuda (default), or cpu")
    add("--dry-run", action="store_true", help="list the steps and their guessed minutes")
    add("--quick", action="store_true", help="tiny sizes on the CPU, to see that everything works")
    options = parser.parse_args(arguments)
    choose("--device", options.device, ("cuda", "cpu"))
    check("--minutes", options.minutes, 0 < options.minutes <= LONGEST,
          f"more than 0, at most {LONGEST:,}")  # fmt: skip
    if options.carry:
        carry = options.carry.absolute()
        check("--carry", str(options.carry), not carry.is_dir(), "a file, not a folder")
        check("--carry", str(options.carry), carry.parent.is_dir(), "a file in a folder that is "
              "there: make it, if the name is right")  # fmt: skip
        if not options.dry_run:
            files.try_folder(carry.parent, carry.name)
    if options.home:
        os.environ["HELPERS_HOME"] = options.home
    if options.data:
        options.data = anchored(options.data)  # the scripts work in the root
    if options.data and not options.quick:
        os.environ["HELPERS_DATA"] = options.data  # for notebooks
    anchor()
    options.record = ROOT / "results" / "protocol-cuda.json"
    options.records = RECORDS
    if options.quick:  # the committed records stay as they are
        options.device, options.record, options.records = "cpu", _kept("protocol-quick.json"), ()
    if options.dry_run:
        options.device = "auto"  # a list can be had anywhere
    return options


if __name__ == "__main__":
    for told in ("SIGTERM", "SIGHUP"):  # to leave by an exception, which ends the scripts as well
        if (number := getattr(signal, told, None)) and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main())
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(str(stopped) or "stopped; what is done is kept")
