"""Grids of runs, on one machine or on many, that may be stopped or killed at any moment.

A grid is a list of values for some fields of the configuration; each combination is a point, and
each point a run of :func:`helpers.runs.run`, kept on disk when it is finished and claimed by a lock
while it is being done. So nothing has to be remembered beside the runs themselves: a sweep that is
started again, or beside another on the same folder, does what is missing and nothing twice.

Points that share what they start from go to one worker, one after another. First comes what points
start from, so that no two of them wait for the same network.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import itertools
import logging
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from helpers import audit, bars, data, files, frozen, runs, unlearning
from helpers.config import (
    FLOATS,
    WHOLE_NUMBERS,
    InputError,
    RunConfig,
    at_home,
    check,
    choose,
    get_config,
    home,
    need,
    reason,
)

log = logging.getLogger(__name__)

MOST = 300_000  # points of one sweep, whose table then stays below files.LARGEST_JSON
PIECES = 8  # a worker's share is cut into at least so many pieces, for the balance at the end
MOST_WORKERS = 1024
TRIES = 3  # rounds in which workers died and no point was finished, until it is given up
POLL = 0.5  # seconds between two looks at points that other processes are doing
RAY_RETRIES = 3  # of a piece whose worker died, by Ray itself
ALL = "all"  # of forget: each class alone

_ASIDE = ("memory_mb", "graphs")  # change no network, and so make no points
_LOADED = (*data.FIELDS, "cache_mb")  # what is loaded depends on them, and what is kept of it
_JUDGED = ("mode", "earlier")  # a network that does not depend on them is judged otherwise
_SHOWN = ("method", "forget", "seed", "rank", "sparsity")


@dataclass(frozen=True)
class Point:
    """One point of a grid.

    Attributes:
        cfg: Its configuration.
        folder: Where its run is or will be kept.
        settings: The fields that vary, and the usual ones: None where the method does not use one.
        start: Where the run that it starts from is kept; None if it starts from scratch.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """

    cfg: RunConfig
    folder: Path
    settings: dict[str, Any]
    start: Path | None


@dataclass(frozen=True)
class Plan:
    """What a sweep will do.

    Attributes:
        points: Every point once, in the order in which they are done.
        before: Runs that points start from, level by level; a level needs the one before it.
        impossible: (point, why it cannot be run).
        varied: Fields with several different values.
        same: Combinations of values that came to a point that another had come to.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """

    points: list[Point]
    before: list[list[Point]]
    impossible: list[tuple[str, str]]
    varied: tuple[str, ...]
    same: int


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        rows: One row a point: its settings, metrics in [0, 1], costs of the training, the SHA-256
            of its weights, its folder and date; ``problem`` where the training failed.
        impossible: (point, why it was left out).
        varied: Fields with several different values.
        done: Points that this process and its workers trained; the others were read back.
        made: Runs that points start from, of which the same holds.
        seconds: Wall-clock time.
        device: ``cuda`` if any point asks for it, else ``cpu``.
        same: Combinations of values that came to a point that another had come to.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """

    rows: list[dict[str, Any]]
    impossible: list[tuple[str, str]]
    varied: tuple[str, ...]
    done: int
    made: int
    seconds: float
    device: str
    same: int = 0


def values(field: str, text: str) -> list[Any]:
    """Read the values of one option: a list, ranges included.

    Args:
        field: A field of :class:`helpers.config.RunConfig`.
        text: Values separated by commas. Whole numbers may be ranges, both ends included, as in
            ``0..4``. A request to forget several classes at once is written ``3+5``, earlier
            requests one after another ``8+1``, and ``all`` means each class alone.

    Returns:
        The values, of the field's type.

    Raises:
        InputError: If a value cannot be read.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    # a path may hold commas
    several = r",(?=\s*(?:(?:digits|cifar10)\s*(?:,|$)|folder:))" if field == "data" else ","
    parts = re.split(several, text)
    return [value for part in parts for value in _value(field, part.strip(), text)]


def _value(field: str, part: str, text: str) -> Iterable[Any]:
    classes = field in ("forget", "earlier")
    if field == "forget" and part == ALL:
        return [ALL]
    ends = re.fullmatch(r"(\d{1,10})\.\.(\d{1,10})", part)
    if ends and (classes or field in WHOLE_NUMBERS):
        low, high = map(int, ends.groups())
        check(field, text, low <= high < low + MOST, f"ranges such as 0..4, of up to {MOST:,}")
        return [(c,) for c in range(low, high + 1)] if classes else range(low, high + 1)
    kinds = (
        "whole numbers, or ranges such as 0..4"
        if field in WHOLE_NUMBERS
        else "numbers, with commas between"
    )
    kinds = "class numbers: 3, 3+5 for both at once, 0..4, or all" if classes else kinds
    try:
        if classes:
            return [tuple(int(c) for c in part.split("+"))]
        if field in WHOLE_NUMBERS:
            return [int(part)]
        if field in FLOATS:
            return [float(part)]
    except ValueError as error:
        raise InputError(f"{field} = {text!r} is not allowed: {kinds}") from error
    check(field, text, part != "", "names separated by commas")
    return [part]


@functools.lru_cache(maxsize=1)
def _shared(images: RunConfig, sweep: str) -> tuple[data.Dataset, frozen.Cache]:
    """Load what points share, once a process; ``sweep`` because files may change until the next."""
    return data.load_dataset(images, progress=False), frozen.Cache(images.cache_mb * 1_000_000)


def _share(cfg: RunConfig, sweep: str) -> tuple[data.Dataset, frozen.Cache]:
    kept = {name: getattr(cfg, name) for name in _LOADED}
    return _shared(get_config(cfg.preset, **kept), sweep)


def plan(grid: Mapping[str, Sequence[Any]], preset: str | None = None, sweep: str = "") -> Plan:
    """List the points of a grid, check each, and put them in order.

    Args:
        grid: Field -> its values; fields that are not named keep those of the preset. ``forget``
            may hold ``"all"``.
        preset: Name of the preset; None takes the usual one.
        sweep: Names the sweep, so that images that were loaded for another are not taken.

    Returns:
        The plan. Settings that a method does not use make no points of their own; those of a recipe
        (rate, epochs and the like) do, for each method that is unlearned.

    Raises:
        InputError: If a field is unknown, has no value, or there are too many points.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    known = [f.name for f in dataclasses.fields(RunConfig) if f.name not in ("preset", "seeds")]
    for field, several in grid.items():
        choose("field", field, known)
        check(field, list(several), len(several) > 0, "at least one value")
    preset = get_config(preset).preset
    combined = list(itertools.islice(_combinations(grid, preset, sweep), MOST + 1))
    count = max(len(combined), math.prod(map(len, grid.values())))  # all counts as one value there
    check("points", count, count <= MOST, f"at most {MOST:,} in one sweep")
    found: dict[Any, Point] = {}
    impossible, tried = [], {}
    varied = {
        field for field, several in grid.items()
        if field not in _ASIDE and (ALL in several or any(v != several[0] for v in several))
    }  # fmt: skip
    for changes in combined:
        try:
            cfg = get_config(preset, **changes)
            dataset = _try(cfg, sweep, tried)
        except InputError as error:
            name = ", ".join(f"{k} {_plain(v)}" for k, v in changes.items() if k in varied)
            impossible.append((name or "the only point", str(error)))
            continue
        folder = runs.folder_of(cfg, dataset)
        earlier = runs.before(cfg)
        start = earlier and runs.folder_of(earlier, dataset)
        point = Point(cfg, folder, _settings(cfg, {*varied}, dataset), start)
        found.setdefault((folder, cfg.mode, cfg.forgotten), point)
    points = _in_order(list(found.values()))
    same = len(combined) - len(points) - len(impossible)
    asked = tuple(field for field in grid if field in varied)
    return Plan(points, _before(points, sweep), impossible, asked, same)


def _combinations(
    grid: Mapping[str, Sequence[Any]], preset: str, sweep: str
) -> Iterator[dict[str, Any]]:
    """Combine all values; those that tell the images vary slowest, so that each are loaded once."""
    fields = sorted(grid, key=lambda field: field not in _LOADED)
    for chosen in itertools.product(*(grid[field] for field in fields)):
        changes = dict(zip(fields, chosen, strict=True))
        if changes.get("forget") != ALL:
            yield changes
            continue
        own = {k: v for k, v in changes.items() if k in _LOADED}
        try:
            dataset, _ = _share(get_config(preset, **own), sweep)
        except InputError:  # found again, and told, where the point is tried
            yield {k: v for k, v in changes.items() if k != "forget"}
        else:
            yield from ({**changes, "forget": c} for c in range(len(dataset.classes)))


def _try(cfg: RunConfig, sweep: str, tried: dict[Any, str | None]) -> data.Dataset:
    """Load the images and validate a point, or remember what was found for one like it.

    Points that differ in seeds and steps alone are alike; of images that cannot be loaded all are.
    """
    images = tuple(getattr(cfg, name) for name in data.FIELDS)
    _once(images, tried, lambda: _share(cfg, sweep))
    dataset, _ = _share(cfg, sweep)
    like = cfg.but(seed=0, original_seed=None, lr=None, epochs=None, alpha=None)
    _once(like, tried, lambda: unlearning.validate(cfg, dataset))
    return dataset


def _once(key: Any, tried: dict[Any, str | None], attempt: Callable[[], object]) -> None:
    if key not in tried:
        try:
            attempt()
            tried[key] = None
        except InputError as error:
            tried[key] = str(error)
    if tried[key] is not None:
        raise InputError(tried[key])


def _plain(value: Any) -> Any:
    """Write what a cell of a table cannot hold: 3+5 for several classes."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else value


def _settings(cfg: RunConfig, varied: set[str], dataset: data.Dataset) -> dict[str, Any]:
    """Tell the settings of a point as they came out; None for what its method does not use."""
    used = runs.identity(cfg, dataset.fingerprint)
    every = runs.identity(cfg.but(method="prunelora", mode="default",
                                  pruning="mask_unstructured"), "")  # fmt: skip
    names, row = dict.fromkeys([*_SHOWN, *sorted(varied)]), {}
    unused = runs.unused(cfg, names)
    for name in names:
        at = runs.IN_IDENTITY.get(name, name)
        where = "rank" if name == "cache_mb" else at  # no identity names it; adapters alone use it
        idle = where in every or name in unused  # such as the size of images that have their own
        shown = where in used or name in _JUDGED or not idle
        value = used.get(at, getattr(cfg, name)) if shown else None
        if isinstance(value, dict):
            value = value.get(name)
        row[name] = _plain(value)
    if "data" in row:  # the identity names images by their fingerprint
        row["data"] = cfg.data
    return row


def _in_order(points: list[Point]) -> list[Point]:
    """Put points together that start from the same network, and are pruned alike."""
    groups: dict[Any, dict[Any, list[Point]]] = {}
    for point in points:
        groups.setdefault(point.start, {}).setdefault(_group(point), []).append(point)
    return [p for within in groups.values() for group in within.values() for p in group]


def _group(point: Point) -> tuple[Any, ...]:
    """Name what points share: the network that they start from, pruned, and the images."""
    cfg = point.cfg
    pruned, fields = unlearning.pruning_of(cfg), unlearning.settings_of_pruning(cfg)
    fields += ["seed"] if pruned != "none" else []
    return (point.start, cfg.mode, cfg.forgotten, pruned, *(getattr(cfg, f) for f in fields))


def _before(points: Iterable[Point], sweep: str) -> list[list[Point]]:
    """List the runs that points start from, each once, the first requests first."""
    levels: list[dict[Path, Point]] = []
    for point in {point.start: point for point in points if point.start}.values():
        dataset, _ = _share(point.cfg, sweep)
        chain = [runs.before(point.cfg)]
        while (start := runs.before(chain[-1])) is not None:
            chain.append(start)
        folders = [*(runs.folder_of(one, dataset) for one in chain), None]
        made = [Point(cfg, folders[i], {}, folders[i + 1]) for i, cfg in enumerate(chain)]
        levels += [{} for _ in made[len(levels) :]]
        for level, one in zip(levels, reversed(made), strict=False):  # chains differ in length
            level.setdefault(one.folder, one)
    return [list(level.values()) for level in levels]


# ------------------------------------------------------------------------------------------------
# doing it


def run(
    grid: Mapping[str, Sequence[Any]],
    preset: str | None = None,
    workers: int = 1,
    ray: str | None = None,
    skip_impossible: bool = False,
    progress: bool = True,
) -> Sweep:
    """Do every point of a grid that is not done yet.

    Args:
        grid: Field -> its values, as for :func:`plan`.
        preset: Name of the preset; None takes the usual one.
        workers: Processes; 1 does everything in this one. With Ray: of the engine that ``local``
            starts; on a cluster all of its CPUs are used.
        ray: None for joblib on this machine; for Ray ``local``, or the address of a cluster that
            runs: ``auto`` or ``HOST:PORT``. Its machines must see one and the same folder.
        skip_impossible: Whether to leave out points that cannot be run instead of refusing all.
        progress: Whether to show a bar of points, with the time left.

    Returns:
        All points, those that were done before included.

    Raises:
        InputError: If a point cannot be run (nothing is trained), Ray is not installed or not
            reached, or the images change meanwhile.
        FileProblem: If a file of a run is damaged or cannot be written.
        ChildProcessError: If workers die again and again.

    Source: this project; joblib and Ray do the work.
    Lesson: 00_start_here, "The same from a shell".
    """
    ok = isinstance(workers, int) and 1 <= workers <= MOST_WORKERS
    check("workers", workers, ok, f"a whole number, 1 to {MOST_WORKERS:,}")
    started, name = time.perf_counter(), uuid.uuid4().hex
    asked = plan(grid, preset, name)
    _refuse(asked, skip_impossible)
    threads = max(point.cfg.threads for point in asked.points)
    cuda = any(point.cfg.device == "cuda" for point in asked.points)
    try:
        with _engine(ray, workers, threads, cuda) as engine:
            work = _Work(engine, name)
            for level in asked.before:
                work.do(level, progress and "networks to start from")
            made, work.done = work.done, 0
            found = work.do(asked.points, progress and "points")
    finally:
        _shared.cache_clear()  # images and features, which the next sweep would load anew
    rows = [{**point.settings, **row} for point, row in zip(asked.points, found, strict=True)]
    seconds = time.perf_counter() - started
    device = "cuda" if cuda else "cpu"
    return Sweep(rows, asked.impossible, asked.varied, work.done, made, seconds, device, asked.same)


def _refuse(asked: Plan, skip: bool) -> None:
    if asked.impossible and not skip:
        name, reason = asked.impossible[0]
        others = len(asked.impossible) - 1
        raise InputError(
            f"{name}: {reason} ({1 + others} of {1 + others + len(asked.points)} points cannot be "
            "run; --skip-impossible leaves them out)"
        )
    if not asked.points:
        name, reason = asked.impossible[0]
        raise InputError(f"none of the {len(asked.impossible)} points can be run; {name}: {reason}")


def _outcome(point: RunConfig, planned: str, sweep: str) -> dict[str, Any]:
    """Do one point, or read it back; what is kept of it in the table."""
    dataset, cache = _share(point, sweep)
    if runs.folder_of(point, dataset).name != planned:  # whose hash tells the images, too
        raise InputError(data.changed(point))
    try:
        run = runs.run(point, dataset, False, cache, wait=False, measured=False, validated=True)
    except InputError as error:  # such as a training that diverges: the others can be done
        return {"problem": str(error)}
    record, row = run.record, run.row
    del row["method"], row["seed"]
    row["zeros"] = row.pop("sparsity")
    row |= {"patch_kb": record["patch_bytes"] / 1e3, "weights_sha256": record["weights_sha256"],
            "folder": run.folder.relative_to(home()).as_posix(), "date": record["date"],
            "problem": ""}  # fmt: skip
    return {"row": row, "from_disk": run.from_disk}


def _piece(
    points: Sequence[tuple[int, RunConfig, str]],
    sweep: str,
    place: str,
    boss: int | None,
    whole: bool,
) -> dict[int, dict[str, Any]]:
    """Do the points of a piece one after another, in a worker; those that others do are left out.

    Args:
        points: (place in the list, configuration, name of the run's folder).
        sweep: Names the sweep.
        place: The folder that holds ``artifacts/``.
        boss: Of the engine.
        whole: Whether to leave the piece to whoever is doing one of its points.
    """
    done = {}
    for number, cfg, planned in points:
        if boss is not None and os.name != "nt" and boss not in (os.getpid(), os.getppid()):
            os._exit(1)  # killed, and nobody will ask for the rest
        try:
            with at_home(place):
                done[number] = _outcome(cfg, planned, sweep)
        except runs.Claimed:
            if whole:
                break
    return done


class _Died(Exception):
    """A worker died, and with it what it was doing."""


@dataclass
class _Work:
    """Rounds over what is not done yet, until everything is."""

    engine: _Engine
    sweep: str
    done: int = 0  # by this process and its workers

    def do(self, points: Sequence[Point], text: str | bool) -> list[dict[str, Any]]:
        """Do points, or read them back; rows in the order of the points."""
        found: dict[int, dict[str, Any]] = {}
        missing, quiet, first, told = dict(enumerate(points)), 0, True, False
        with _bar(len(points), sum(runs.is_kept(p.folder) for p in points), text) as bar:
            while True:
                before = len(missing)
                self._take(self._read(missing), missing, found, bar if not first else None)
                if not missing:
                    return [found[number] for number in range(len(points))]
                died = self._round(missing, found, bar, first)
                quiet = quiet + 1 if len(missing) == before else 0
                if died and quiet >= TRIES:
                    raise ChildProcessError(
                        f"workers died {quiet} times and finished nothing, {len(missing)} points "
                        "are left: memory may be short, so use fewer --workers. What is finished "
                        "is kept, and the same command goes on from there"
                    )
                if quiet and not died:  # the rest is being done by other processes
                    if not (first or told):  # at first whole pieces are left to them
                        log.info("points that other processes are working on: %d, one of them in "
                                 "%s: waiting for them", len(missing),
                                 next(iter(missing.values())).folder)  # fmt: skip
                        told = True
                    time.sleep(POLL)
                first = False

    def _read(self, missing: Mapping[int, Point]) -> dict[int, dict[str, Any]]:
        kept = [(n, p.cfg, p.folder.name) for n, p in missing.items() if runs.is_kept(p.folder)]
        return _piece(kept, self.sweep, str(home()), None, False) if kept else {}

    def _round(
        self, missing: dict[int, Point], found: dict[int, dict[str, Any]], bar: Any, first: bool
    ) -> bool:
        """Give out everything that is missing once; says whether a worker died."""
        pieces = [
            (
                [(n, missing[n].cfg, missing[n].folder.name) for n in piece],
                self.sweep, str(home()), self.engine.boss, first,
            )
            for piece in _pieces(missing, self.engine.workers)
        ]  # fmt: skip
        try:
            for answer in self.engine.do(pieces):
                self._take(answer, missing, found, bar)
        except _Died as error:
            log.warning("%s; what it was doing is done again", error)
            return True
        return False

    def _take(
        self, answer: Mapping[int, dict[str, Any]], missing: dict[int, Point],
        found: dict[int, dict[str, Any]], bar: Any,
    ) -> None:  # fmt: skip
        for number, outcome in answer.items():
            del missing[number]
            found[number] = outcome.get("row", outcome)
            self.done += not outcome.get("from_disk", True)
        if bar is not None:
            bar.update(len(answer))


def _pieces(missing: Mapping[int, Point], workers: int) -> list[list[int]]:
    """Cut what is missing where the group changes, and into pieces small enough for a balance."""
    most = max(1, len(missing) // (PIECES * workers))
    groups = itertools.groupby(missing, key=lambda number: _group(missing[number]))
    return [list(piece) for _, group in groups for piece in _batched(group, most)]


def _batched(items: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    items = iter(items)  # itertools.batched comes with Python 3.12
    while piece := tuple(itertools.islice(items, size)):
        yield piece


def _bar(total: int, kept: int, text: str | bool) -> Any:
    hidden = not text or kept == total
    return bars.show(text=text or None, total=total, initial=kept, unit="point", smoothing=0,
                     disable=hidden, leave=False)  # fmt: skip


# ------------------------------------------------------------------------------------------------
# engines


class _Engine(Protocol):
    """Does pieces: the arguments of :func:`_piece`, which it yields the answers of, in any order.

    ``boss`` is the process to work for, without which workers end; None if they are ended anyway.
    """

    workers: int
    boss: int | None

    def do(self, pieces: Sequence[tuple[Any, ...]]) -> Iterator[dict[int, dict[str, Any]]]: ...


@contextlib.contextmanager
def _engine(ray: str | None, workers: int, threads: int, cuda: bool) -> Iterator[_Engine]:
    if ray is None:
        yield _Joblib(workers, threads)
        return
    engine = _Ray(ray, workers, threads, cuda)
    try:
        yield engine
    finally:
        engine.close()


@dataclass
class _Joblib:
    """Processes on this machine, each with its own number of threads."""

    workers: int
    threads: int
    boss: int = dataclasses.field(default_factory=os.getpid)

    def do(self, pieces: Sequence[tuple[Any, ...]]) -> Iterator[dict[int, dict[str, Any]]]:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import BrokenProcessPool

        if self.workers == 1:
            yield from (_piece(*piece) for piece in pieces)
            return
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)
        with parallel_config("loky", inner_max_num_threads=threads):
            pool = Parallel(self.workers, return_as="generator_unordered", batch_size=1)
        try:
            yield from pool(delayed(_piece)(*piece) for piece in pieces)
        except BrokenProcessPool as error:
            raise _Died("a worker process died") from error


def _reach(address: str) -> None:
    """Refuse an address at which nothing listens; Ray would try for many minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d{1,5})", address)
    ok = found or address in ("local", "auto")
    check("ray", address, bool(ok), "local, auto, or the HOST:PORT of a cluster that runs")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"ray = {address!r} cannot be used: {error}; start a cluster there "
            "(ray start --head), or give local or auto"
        ) from error


class _Ray:
    """Tasks on a Ray cluster: a piece whose worker or machine dies is retried elsewhere."""

    boss = None

    def __init__(self, address: str, workers: int, threads: int, cuda: bool) -> None:
        remedy = 'pip install "ray[default]" on every machine, or leave --ray out'
        ray = self.ray = need(f"ray = {address!r}", "ray", remedy)
        _reach(address)
        where: dict[str, Any] = {"address": address}
        if address == "local":
            where |= {"num_cpus": workers * max(1, threads), "include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises whatever its parts raise, Exception itself included
            raise InputError(
                f"ray = {address!r} cannot be used: {reason(error)}; give local, auto or the "
                "HOST:PORT of a cluster that runs (ray start --head)"
            ) from error
        found = ray.cluster_resources()
        each = 1 if cuda else max(1, threads)
        self.workers = max(1, int(found.get("GPU" if cuda else "CPU", 1)) // each)
        self.task = ray.remote(_piece).options(
            num_cpus=max(1, threads), num_gpus=int(cuda), max_retries=RAY_RETRIES
        )

    def do(self, pieces: Sequence[tuple[Any, ...]]) -> Iterator[dict[int, dict[str, Any]]]:
        ray, died, left, waiting = self.ray, None, iter(pieces), []
        lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError,
                ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError)  # fmt: skip
        while True:
            # a cluster's memory of tasks is not for a hundred thousand of them
            room = 2 * self.workers - len(waiting)
            waiting += [self.task.remote(*piece) for piece in itertools.islice(left, room)]
            if not waiting:
                break
            (ready, *_), waiting = ray.wait(waiting)
            try:
                yield ray.get(ready)
            except lost as error:
                died = error
        if died is not None:
            raise _Died(f"a worker died {RAY_RETRIES + 1} times") from died

    def close(self) -> None:
        self.ray.shutdown()


# ------------------------------------------------------------------------------------------------
# the table


def paths(out: Path) -> list[Path]:
    """Return the two files of a table, CSV and JSON.

    Args:
        out: Path without ending.

    Returns:
        The same with each ending, which is added to what looks like one.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    return [out.with_name(f"{out.name}.{ending}") for ending in ("csv", "json")]


def save(sweep: Sweep, out: Path) -> list[Path]:
    """Write the table of a sweep as CSV and as JSON.

    Args:
        sweep: The sweep.
        out: Path without ending.

    Returns:
        The two files.

    Raises:
        FileProblem: If they cannot be written; an old one never stands beside a new one.

    Source: RFC 4180 and RFC 8259.
    Lesson: 00_start_here, "The same from a shell".
    """
    columns = list(dict.fromkeys(name for row in sweep.rows for name in row))
    table = [[row.get(name) for name in columns] for row in sweep.rows]
    record = {
        "varied": list(sweep.varied), "impossible": [list(one) for one in sweep.impossible],
        "columns": columns, "rows": table, **runs.environment(sweep.device),
    }  # fmt: skip

    def write(part: Path) -> None:
        # the name of a folder need not be UTF-8; a table that is not could hardly be read
        with part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([columns, *table])

    plain, whole = paths(out)
    files.write_together({plain: write, whole: files.as_text(files.as_json(whole, record))})
    return [plain, whole]


def table(sweep: Sweep) -> Any:
    """Lay a sweep out for :func:`helpers.statistics.summary`: a label for each setting.

    Args:
        sweep: The sweep.

    Returns:
        A data frame, one row a point; ``method`` is the method and every setting that varies but
        the class and the seed, so that a summary averages over these.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    import pandas as pd

    names = [name for name in sweep.varied if name not in ("method", "forget", "seed")]
    rows = []
    for row in sweep.rows:
        parts = [f"{n} {row[n]}" for n in names if row[n] is not None]  # floats with every digit
        numbers = {k: row.get(k) for k in (*audit.CLASSIC, "seconds", "trainable", "memory_mb",
                                           "gmacs", "file_kb")}  # fmt: skip
        # pandas takes no text that is not UTF-8, as the name of a folder may be
        label = ", ".join([row["method"], *parts]).encode("utf-8", "backslashreplace").decode()
        rows.append({"method": label, "seed": row["seed"], **numbers, "sparsity": row.get("zeros")})
    frame = pd.DataFrame(rows)
    numeric = [name for name in frame.columns if name not in ("method", "seed")]
    return frame.astype(dict.fromkeys(numeric, float))
