"""Many audits at once: training seeds x unlearning seeds x classes x methods, and what they say.

Every class is a job of its own. What is finished is kept in a file for each class and training
seed, so that a study that was stopped goes on from there. Several processes share the classes; and
several studies of other methods may add to the same class at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import reprlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import (
    audit,
    bars,
    data,
    files,
    frozen,
    ledger,
    models,
    patches,
    pruning,
    runs,
    statistics,
    unlearning,
)
from helpers.config import InputError, RunConfig, at_home, check, home

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

log = logging.getLogger(__name__)

# how benchmarks/controls_digits.py names a method on networks that never saw the class, and one
# with the largest of the equally good learning rates
NEVER, HIGH, FROZEN = " of retrain", ", high lr", ", frozen BatchNorm"
ORACLE_SEED = 1000  # the oracles' seeds begin here, so that ``retrain`` is none of them
COSTS = ("seconds", "gmacs", "memory_mb", "trainable")
MOST_ORACLES = 1000  # each is a training
FAMILIES = ("reference", "paper", "baseline", "cheat", "setting")  # in the order of the panel
_DIGITS = 6  # significant digits of a record
Bands = dict[int, dict[int, dict[str, tuple[float, float, float]]]]


@dataclass(frozen=True)
class Study:
    """What many audits found.

    Attributes:
        table: One row an audit: method (or the label of a setting), forget, original_seed, seed,
            repetition (the same for every original seed), every metric, costs, what the network
            weighs; ``problem`` where a network could not be judged.
        bands: Class -> training seed of the original -> metric -> (low, high, centre) of the
            oracles; infinite where open. IDI and the steps back alone depend on the original.
        oracles: Networks behind each band.
        about: What was measured, where and when.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """

    table: pd.DataFrame
    bands: Bands
    oracles: int
    about: dict[str, Any]

    def band(
        self, forget: int, metric: str, original_seed: int | None = None
    ) -> tuple[float, float, float] | None:
        """Return what the oracles of a class span.

        Args:
            forget: The class.
            metric: Name of a metric.
            original_seed: Training seed of the network before; None averages over those measured.

        Returns:
            Low and high end and the centre; None if it was not measured.

        Source: this project.
        Lesson: 05_evaluation, "The oracle band".
        """
        every = self.bands.get(forget, {})
        chosen = every.values() if original_seed is None else [every.get(original_seed, {})]
        found = [limits[metric] for limits in chosen if metric in limits]
        if not found:
            return None
        low, high, center = (sum(ends) / len(found) for ends in zip(*found, strict=True))
        return low, high, center

    def limits(self, metric: str) -> pd.DataFrame:
        """Return the oracles' band of every audit.

        Args:
            metric: Name of a metric.

        Returns:
            ``low``, ``high`` and ``center`` with the index of ``table``; NaN where not measured.

        Source: this project.
        Lesson: 05_evaluation, "The lie detector".
        """
        import pandas as pd

        cells = [*zip(self.table["forget"], self.table["original_seed"], strict=True)]
        known = {cell: self.band(cell[0], metric, cell[1]) or [math.nan] * 3 for cell in {*cells}}
        columns = ["low", "high", "center"]
        return pd.DataFrame([known[cell] for cell in cells], self.table.index, columns, dtype=float)

    def inside(self) -> pd.DataFrame:
        """Say of every audit and metric whether it lies in the band of its class and original.

        A network that could not be judged is outside of every band.

        Returns:
            Booleans with the index of ``table``, one column a metric; missing where it was not
            measured, and where the band leaves nothing outside (:func:`helpers.audit.decides`).

        Source: this project.
        Lesson: 05_evaluation, "The lie detector".
        """
        import pandas as pd

        columns, nothing = {}, pd.Series(None, self.table.index, dtype=object)
        failed = self.table.get("problem", nothing).notna()
        for name in self.metrics:
            limits, values = self.limits(name), self.table[name].astype(float)
            known = (values.notna() | failed) & audit.decides(name, limits["low"], limits["high"])
            # as statistics.Band.holds
            slack = 1e-12 * values.abs().combine(limits["center"].abs(), max)
            inside = (values >= limits["low"] - slack) & (values <= limits["high"] + slack)
            columns[name] = inside.where(known)
        return pd.DataFrame(columns)

    @property
    def metrics(self) -> list[str]:
        """The metrics that were measured, in the order of the panel."""
        return [name for name in audit.METRICS if name in self.table.columns]

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of the table of methods."""
        return list(dict.fromkeys(self.table["method"]))


def run(
    cfg: RunConfig,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    classes: Sequence[int],
    original_seeds: Sequence[int],
    unlearning_seeds: int | Mapping[str, int] = 1,
    oracles: int = 5,
    workers: int = 1,
    progress: bool = True,
    keep: bool = False,
) -> Study:
    """Audit methods over training seeds, unlearning seeds and classes; go on where it was stopped.

    Args:
        cfg: Data, network, recipes, rank and sparsity.
        methods: Names of methods, ``original`` and ``retrain`` among them as any other; or label ->
            changes to the configuration, such as a method, a rank and a sparsity.
        classes: The classes, each forgotten alone.
        original_seeds: Seeds of the networks that the methods start from.
        unlearning_seeds: Repetitions of each method from the same network; or method -> number for
            those that have more than one.
        oracles: Retrained networks for each class; at least three.
        workers: Processes.
        progress: Whether to show a bar.
        keep: Whether every network is kept among the runs: a training that is stopped goes on where
            it was, and to audit it in another way takes no training. The disk has to hold them.

    Returns:
        All audits.

    Raises:
        InputError: If a configuration cannot be run; nothing is trained before all are checked. If
            the images change meanwhile.
        FileProblem: If a kept file is damaged or cannot be written.
        ChildProcessError: If a worker dies.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    from joblib import Parallel, delayed

    _check_oracles(oracles)
    check("workers", workers, workers >= 1, "at least one")
    check("earlier", cfg.earlier, not cfg.earlier, "(): each class is forgotten alone")
    asked = {"methods": methods, "classes": classes, "original_seeds": original_seeds}
    for field, values in asked.items():
        ok = 0 < len(values) == len(set(values))
        check(field, list(values), ok, "at least one, and each once")
    points = settings(cfg, methods)
    same = {*original_seeds} & {*range(ORACLE_SEED, ORACLE_SEED + oracles)}
    apart = not same or all(point.method != "retrain" for point in points.values())
    check("original_seeds", sorted(same), apart, "none of the oracles' seeds, "
          f"{ORACLE_SEED} and up: a retrained network would be compared with itself")  # fmt: skip
    times = _times(points, unlearning_seeds)
    unlearning.set_threads(cfg)  # as every worker does: the record says how many
    dataset = data.load_dataset(cfg, progress)
    for point in points.values():
        for c in classes:
            unlearning.validate(point.but(forget=c), dataset)
    audit.check_images(dataset)
    # (original's seed, seed) -> what is done with them; a repetition has another seed
    wanted = {
        (t, t + ORACLE_SEED * 10 * u): [name for name in points if times[name] > u]
        for t in original_seeds for u in range(max(times.values()))
    }  # fmt: skip
    jobs = (delayed(_job)(str(home()), cfg, points, wanted, c, oracles, keep, dataset.fingerprint)
            for c in classes)  # fmt: skip
    pool = Parallel(n_jobs=workers, return_as="generator_unordered")
    bar = bars.show(pool(jobs), "classes", total=len(classes), disable=not progress)
    with deaths_told():
        found = sorted(bar, key=lambda job: list(classes).index(job["forget"]))
    return _collect(found, list(points), oracles, runs.environment(cfg.device), cfg)


@contextlib.contextmanager
def deaths_told() -> Iterator[None]:
    """Say in one line that a worker of joblib died, which it tells by a long traceback.

    Raises:
        ChildProcessError: If one died.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    from joblib.externals.loky.process_executor import BrokenProcessPool

    try:
        yield
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker died: memory may be short, so use fewer --workers. What is finished is kept, "
            "and the same call goes on from there"
        ) from error


def settings(
    cfg: RunConfig, methods: Sequence[str] | Mapping[str, Mapping[str, Any]]
) -> dict[str, RunConfig]:
    """Name the configurations that are compared.

    Args:
        cfg: Data, network, recipes, rank and sparsity that all of them share.
        methods: Names of methods; or label -> changes to the configuration.

    Returns:
        Label -> configuration; classes and seeds are still those of ``cfg``.

    Raises:
        InputError: If a change is not allowed, or would make another comparison of it: the class,
            the seeds, the network, the data.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    if not isinstance(methods, Mapping):
        methods = {name: {"method": name} for name in methods}
    # the class and the seeds come later; images, network and what it starts from are everybody's
    later = {"forget", "earlier", "seed", "original_seed", "model", *data.FIELDS}
    for name, changes in methods.items():
        check(name, sorted(changes), not later & {*changes}, f"anything but {sorted(later)}")
    return {name: cfg.but(**changes) for name, changes in methods.items()}


def _times(points: Iterable[str], repetitions: int | Mapping[str, int]) -> dict[str, int]:
    if isinstance(repetitions, int):  # an original is not unlearned
        repetitions = {name: 1 if name == "original" else repetitions for name in points}
    check("unlearning_seeds", dict(repetitions), {*repetitions} <= {*points}, "methods asked for")
    times = dict.fromkeys(points, 1) | dict(repetitions)
    check("unlearning_seeds", times, min(times.values()) >= 1, "at least one of each")
    return times


def audit_run(
    cfg: RunConfig, oracles: int = 5, dataset: data.Dataset | None = None, progress: bool = True
) -> dict[str, Any]:
    """Do one run, or read it back, and audit it against networks retrained with other seeds.

    Args:
        cfg: The run; any method but ``original`` and ``retrain`` with the oracles' own seeds.
        oracles: Networks to retrain; at least three.
        dataset: Its data, if already loaded.
        progress: Whether to show bars.

    Returns:
        The record of :func:`helpers.audit.audit`, with how it was made, what it cost, and where.

    Raises:
        InputError: If the configuration cannot be run or audited.
        FileProblem: If a file of a run is damaged or cannot be written.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """
    _check_oracles(oracles)
    dataset = dataset or data.load_dataset(cfg, progress)
    audit.check_images(dataset)
    start = {"seed": cfg.start_seed, "original_seed": None, "earlier": ()}
    wanted = {"model": cfg, "original": cfg.but(method="original", **start)}
    wanted |= {
        f"oracle {i + 1}": cfg.but(method="retrain", seed=ORACLE_SEED + i, original_seed=None,
                                   earlier=(), forget=cfg.forgotten)
        for i in range(oracles)
    }  # fmt: skip
    split = runs.as_evaluated(dataset, cfg).split(cfg.forgotten)
    done, networks = [], []
    for name, one in wanted.items():
        done.append(runs.run(one, dataset, progress, measured=None))
        networks.append(done[-1].model(dataset))
        audit.check_one(name, networks[-1], split, ours=True)  # before hours of the next ones
    record = audit.audit(networks[0], networks[1], networks[2:], split, seed=cfg.seed, checked=True)
    kept = done[0].record
    method = unlearning.method(cfg.method)
    costs = {k: kept[k] for k in ("seconds", "macs", "peak_memory", "trainable", "file_bytes")}
    settings = _settings(cfg)
    how = {"method": cfg.method, "summary": method.summary, "config": settings}
    where = {k: kept[k] for k in runs.environment(cfg.device)}
    return {**record, "how": how, "costs": costs, **where}


def _settings(cfg: RunConfig) -> dict[str, Any]:
    """List what was really set: defaults resolved, recipes spelled out, nothing that is unset."""
    plain = {k: v for k, v in dataclasses.asdict(cfg).items() if not isinstance(v, dict)}
    plain = {k: v for k, v in plain.items() if k not in runs.unused(cfg, plain)}
    resolved = {"original_seed": cfg.start_seed, "alpha": cfg.lora_alpha,
                "dropout": cfg.lora_dropout, "pruning": unlearning.pruning_of(cfg)}  # fmt: skip
    plain |= {k: v for k, v in resolved.items() if k in plain}
    for stage, recipe in (("training", cfg.train), ("unlearning", cfg.unlearn)):
        plain |= {f"{stage}: {k}": v for k, v in dataclasses.asdict(recipe).items()}
    # the first two are part of the recipe; what is as published is told by the mode
    without = {"epochs", "lr", "seeds", *unlearning.published_alone(cfg)}
    without |= {"tuned"} if cfg.mode == "paper" else set()
    return {k: v for k, v in plain.items() if v is not None and k not in without}


def _job(place: str, *arguments: Any) -> dict[str, Any]:
    """Audit a class in a process of its own, or in the caller's."""
    with at_home(place):
        return _class(*arguments)


def _class(
    cfg: RunConfig, points: dict[str, RunConfig], wanted: dict[tuple[int, int], list[str]],
    forget: int, oracles: int, keep: bool, fingerprint: str,
) -> dict[str, Any]:  # fmt: skip
    """Audit everything of one class."""
    unlearning.set_threads(cfg)
    cfg = cfg.but(forget=forget)
    dataset = data.load_same(cfg, fingerprint)
    split = dataset.split(forget)
    folder = folder_of(cfg, dataset, oracles)
    # what could not be judged is tried again: what was wrong may have been mended
    rows = {pair: [row for row in _kept(path) if "problem" not in row]
            for pair, path in zip(wanted, _paths(folder, wanted), strict=True)}  # fmt: skip
    keys = {name: _key(point) for name, point in points.items()}
    missing = {
        pair: [name for name in names if _find(rows[pair], keys[name]) is None]
        for pair, names in wanted.items()
    }
    looks = []
    for pair, names in missing.items():
        if not names:
            continue
        start, seed = pair
        looks = looks or _oracles(cfg, dataset, split, oracles)
        first = cfg.but(method="original", seed=start)
        original = runs.run(first, dataset, progress=False).model(dataset)
        try:
            before = audit.look(original, split)
            limits = audit.bands(looks, before, split)
        except InputError as error:  # of which network?
            raise InputError(f"class {forget}, original of seed {start}: {error}") from error
        bands = {k: [_json(v) for v in (b.low, b.high, b.center)] for k, b in limits.items()}
        cache, path = frozen.Cache(cfg.cache_mb * 1_000_000), _paths(folder, [pair])[0]
        for name in names:
            one = points[name].but(forget=forget, seed=seed, original_seed=start)
            began = time.perf_counter()
            try:
                row = _row(one, original, before, looks, dataset, split, cache, keep)
            except InputError as error:  # one network that cannot be judged does not stop the rest
                log.warning("%s, class %s, seed %s: %s", name, forget, seed, error)
                row = _place(one) | {"problem": str(error)}
            wall = time.perf_counter() - began
            rows[pair] = _keep(path, row | {"wall": wall, "key": keys[name]}, bands)
    bands = {start: files.read_json(path, ("rows", "bands"))["bands"]
             for (start, _), path in zip(wanted, _paths(folder, wanted), strict=True)
             if path.is_file()}  # fmt: skip
    return {
        "forget": forget, "data": dataset.name, "classes": list(dataset.classes),
        "bands": bands,
        "rows": [{**_find(rows[pair], keys[name]), "method": name}
                 for pair, names in wanted.items() for name in names],
    }  # fmt: skip


def _check_oracles(number: int) -> None:
    ok, least = number >= audit.LEAST_ORACLES, f"at least {audit.LEAST_ORACLES}, better five"
    check("oracles", number, ok, least)
    check("oracles", number, number <= MOST_ORACLES, f"at most {MOST_ORACLES:,}")


def _oracles(
    cfg: RunConfig, dataset: data.Dataset, split: data.ClassSplit, number: int
) -> list[audit.Look]:
    seeds = range(ORACLE_SEED, ORACLE_SEED + number)
    every = (runs.run(cfg.but(method="retrain", seed=seed, original_seed=None), dataset, False)
             for seed in seeds)  # fmt: skip
    return [audit.look(one.model(dataset), split) for one in every]


def _kept(path: Path) -> list[dict[str, Any]]:
    """Read the audits that are done; FileProblem where they are no table of them."""
    if not path.is_file():
        return []
    plain = files.read_json(path, ("rows", "bands"))
    rows = plain["rows"]
    try:
        for row in rows:
            # of a network that could not be judged there is the reason, and no metric
            missing = (_PLACE if "problem" in row else _PLACE | _MEASURED) - {*row}
            if missing:
                raise ValueError(f"one of its rows lacks {sorted(missing)[0]!r}")
            _check_table([[*row.values()]], [*row])
        for band in plain["bands"].values():
            _opened(band)
    except (TypeError, ValueError, AttributeError) as error:
        raise files.FileProblem(files.cannot_read(path, error)) from error
    return rows


_PLACE = {"key", "method", "forget", "original_seed", "seed"}
_MEASURED = {*audit.METRICS} - {"IDI"}  # which not every original has


def _keep(path: Path, row: dict[str, Any], bands: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a row to those of its class and seed; another process may have added some meanwhile."""
    with files.locked(path.with_suffix(".lock"), wait=True):
        kept = [one for one in _kept(path) if one["key"] != row["key"] or "problem" not in one]
        kept += [row] if _find(kept, row["key"]) is None else []
        files.write_json(path, {"rows": kept, "bands": bands})
    return kept


def _find(rows: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    found = (row for row in rows if row.get("key") == key)
    return next(({k: v for k, v in row.items() if k != "key"} for row in found), None)


def _key(point: RunConfig) -> str:
    """Name a setting by everything that determines its network but the class and the seeds."""
    settings = runs.identity(point.but(forget=0, seed=0, original_seed=0), "")
    settings["cache"] = bool(point.cache_mb)
    if point.mode != "default":  # of those that start from scratch it changes what they are fed
        settings["mode"] = point.mode
    return files.digest_json(settings)[:16]


def folder_of(cfg: RunConfig, dataset: data.Dataset, oracles: int) -> Path:
    """Return the folder in which :func:`run` keeps the audits of a class.

    Args:
        cfg: Data, network, recipe of training, and the class.
        dataset: Its data.
        oracles: Retrained networks for each class.

    Returns:
        ``artifacts/audits/<hash>`` below :func:`helpers.config.home`, named by what determines the
        originals and the oracles, and by how metrics are measured: a file for each pair of seeds.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    first = cfg.but(method="original", seed=0, original_seed=None)
    oracle = first.but(method="retrain")
    plain = [runs.identity(one, dataset.fingerprint) for one in (first, oracle)]
    what = files.digest_json([*plain, oracles, audit.VERSION, *audit.METRICS])[:16]
    return home() / "artifacts" / "audits" / what


def _paths(folder: Path, seeds: Iterable[tuple[int, int]]) -> list[Path]:
    return [folder / f"{start}-{seed}.json" for start, seed in seeds]


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(
    cfg: RunConfig, original: Any, before: audit.Look, oracles: list[audit.Look],
    dataset: data.Dataset, split: data.ClassSplit, cache: frozen.Cache, keep: bool,
) -> dict[str, Any]:  # fmt: skip
    """Do one method and audit what came out.

    In paper mode the network trains and is judged with the published second normalisation; the
    oracles, which other methods are compared with too, keep the one that they were trained with.
    """
    judged = runs.as_evaluated(dataset, cfg)
    split = split if judged is dataset else judged.split(cfg.forgotten)
    if keep or cfg.method == "original":
        done = runs.run(cfg, dataset, progress=False, cache=cache, measured=False)
        model, size = done.model(dataset), done.record["patch_bytes"] or None
        costs = {name: done.row[name] for name in COSTS}
    else:
        scratch = unlearning.method(cfg.method).start == "scratch"
        outcome = unlearning.unlearn(
            None if scratch else original, runs.as_trained(dataset, cfg), cfg, cache=cache
        )
        model = outcome.model
        size = None if outcome.patch is None else patches.size(outcome.patch)
        costs = outcome.costs
    weighs = weight(model, models.layers(original).prunable)
    known = cfg.method == "original" and judged is dataset and cfg.seed == cfg.start_seed
    seen = before if known else audit.look(model, split)
    found = audit.against(seen, oracles, before)
    return {
        **_place(cfg), **found, **costs, **weighs, "patch_bytes": size,
        "predicted": seen.logits["test_forget"].argmax(1).bincount(
            minlength=len(dataset.classes)).tolist(),
    }  # fmt: skip


def of_retrained(
    cfg: RunConfig,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    oracles: int,
    dataset: data.Dataset,
) -> list[dict[str, Any]]:
    """Audit what methods make of networks that never saw the class; go on where it was stopped.

    Args:
        cfg: Data, network, recipes, and the class.
        methods: Names of methods that start from a trained network, or label -> changes to the
            configuration, as for :func:`settings`.
        seeds: Of the retrained networks, none of the oracles', and of the originals they stand for.
        oracles: Retrained networks to compare with.
        dataset: Its data.

    Returns:
        Rows as in :class:`Study`; ``method`` is the label with :data:`NEVER` behind it.

    Raises:
        InputError: If a configuration cannot be run, or a network cannot be judged.
        FileProblem: If a kept file is damaged or cannot be written.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    points = settings(cfg, methods)
    for name, point in points.items():
        start = unlearning.method(point.method).start
        check(name, point.method, start == "original", "methods that start from a trained network")
        unlearning.validate(point, dataset)
    split, looks, found = dataset.split(cfg.forgotten), [], []
    keys = {name: _key(point) for name, point in points.items()}
    folder = folder_of(cfg, dataset, oracles) / "of-retrain"
    for seed, path in zip(seeds, _paths(folder, [(seed, seed) for seed in seeds]), strict=True):
        rows = _kept(path)
        missing = [name for name in points if _find(rows, keys[name]) is None]
        if missing:
            looks = looks or _oracles(cfg, dataset, split, oracles)
            first, retrained = (
                runs.run(cfg.but(method=name, seed=seed), dataset, progress=False).model(dataset)
                for name in ("original", "retrain")
            )
            before, cache = audit.look(first, split), frozen.Cache(cfg.cache_mb * 1_000_000)
        for name in missing:
            one = points[name].but(seed=seed, original_seed=seed)
            row = _row(one, retrained, before, looks, dataset, split, cache, False)
            rows = _keep(path, row | {"key": keys[name]}, {})
        found += [{**_find(rows, keys[name]), "method": name + NEVER} for name in points]
    return found


def weight(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """Say what a finished network weighs, from the network itself.

    Args:
        model: The network.
        names: Of the layers whose zeros and channels count.

    Returns:
        zeros (share, in [0, 1]), channels, parameters, macs (of one image), file_bytes.

    Raises:
        InputError: If a parameter is of another floating-point type than float32.

    Source: :func:`helpers.ledger.measure`, but that nothing is timed.
    Lesson: 02_pruning, "The ledger".
    """
    models.check_float32("model", model)
    names = list(names)
    layers = pruning.layer_sparsity(model, names)
    return {"zeros": pruning.sparsity(model, names),
            "channels": sum(one["filters"] - one["zero_filters"] for one in layers),
            "parameters": models.count_parameters(model), "macs": ledger.macs(model),
            "file_bytes": ledger.file_bytes(model)}  # fmt: skip


def _place(cfg: RunConfig) -> dict[str, Any]:
    return {"method": cfg.method, "forget": cfg.forget, "original_seed": cfg.start_seed,
            "seed": cfg.seed}  # fmt: skip


def _collect(
    found: Sequence[Mapping[str, Any]], methods: list[str], oracles: int, where: dict[str, Any],
    cfg: RunConfig,
) -> Study:  # fmt: skip
    import pandas as pd

    table = pd.DataFrame([row for job in found for row in job["rows"]])
    # an unlearning seed means the same repetition whatever the original's seed
    table["repetition"] = table["seed"] - table["original_seed"]
    order = {name: place for place, name in enumerate(methods)}
    table = table.sort_values(
        ["method", "forget", "original_seed", "seed"],
        key=lambda column: column.map(order) if column.name == "method" else column,
    ).reset_index(drop=True)
    bands = {int(job["forget"]): {
        start: {k: _opened(b) for k, b in limits.items()} for start, limits in job["bands"].items()
    } for job in found}  # fmt: skip
    images = {name: found[0][name] for name in ("data", "classes")}
    about = {**where, "audit": audit.VERSION, "preset": cfg.preset, **images, "model": cfg.model}
    return Study(table, bands, oracles, about)


def _opened(band: Sequence[float | None]) -> tuple[float, float, float]:
    """Set the open ends; ValueError where a band is none."""
    low, high, center = band
    if center is None or not all(map(_is_number, band)):
        raise ValueError("a band is not made of numbers")
    return (-math.inf if low is None else low, math.inf if high is None else high, center)


def join(studies: Sequence[Study]) -> Study:
    """Put studies of the same networks together, such as one of each class.

    Args:
        studies: At least one; with the same data, network and number of oracles, without an audit
            that two of them have.

    Returns:
        One study; where and when is that of the last.

    Raises:
        InputError: If they do not fit together.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    import pandas as pd

    check("studies", len(studies), len(studies) > 0, "at least one")
    kinds = {(one.about["data"], one.about["model"], one.oracles, str(one.about.get("audit")))
             for one in studies}  # fmt: skip
    same = "the same data, network, oracles and version of the audit for all"
    check("studies", sorted(kinds), len(kinds) == 1, same)
    table = pd.concat([one.table for one in studies], ignore_index=True)
    place = ["method", "forget", "original_seed", "seed"]
    twice = table[table.duplicated(place)][place].to_dict("records")
    check("studies", twice, not twice, "each audit in one of them alone")
    bands: Bands = {}
    for one in studies:
        for c, limits in one.bands.items():
            bands.setdefault(c, {}).update(limits)
    return Study(table, bands, studies[-1].oracles, dict(studies[-1].about))


def save(study: Study, path: Path) -> None:
    """Write a study as one small JSON file.

    Args:
        study: The study.
        path: The file.

    Raises:
        FileProblem: If it cannot be written.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    columns = list(study.table.columns)
    rows = [[_short(value) for value in row] for row in study.table.itertuples(index=False)]
    bands = {
        c: {start: {k: [_short(_json(v)) for v in b] for k, b in limits.items()}
            for start, limits in seeds.items()}
        for c, seeds in study.bands.items()
    }  # fmt: skip
    files.write_json(path, {**study.about, "oracles": study.oracles, "bands": bands,
                            "columns": columns, "rows": rows})  # fmt: skip


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.{_DIGITS}g}")
    return value.item() if hasattr(value, "item") else value


def _check_table(rows: list[list[Any]], columns: list[str]) -> None:
    """Refuse a table that :func:`save` did not write, with a ValueError that names the column."""
    if not all(map(_is_text, columns)) or len({*columns}) < len(columns):
        raise ValueError("its columns have no names, or two of them the same")
    if not {"method", "forget"} <= {*columns} or any(len(r) != len(columns) for r in rows):
        raise ValueError("its rows and columns do not fit")
    for name, values in zip(columns, zip(*rows, strict=True), strict=False):  # or no rows at all
        for holds, what, names in _HOLDS:
            wrong = [v for v in values if not holds(v)] if name in names else []
            if wrong:
                raise ValueError(f"its column {name!r} holds {reprlib.repr(wrong[0])}, not {what}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31  # no bool


def _is_number(value: object) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < 1e300)


def _is_counts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_whole, value)) and any(value))


# what a column holds; all but the first two are empty where a network could not be judged
_HOLDS = (
    (_is_text, "text", {"method"}),
    (_is_whole, "a whole number from 0", {"forget", "original_seed", "seed", "repetition"}),
    (_is_counts, "whole numbers, not all of them 0, or nothing", {"predicted"}),
    (_is_number, "a finite number or nothing",
     {*audit.METRICS, *COSTS, "wall", "rank", "sparsity", "zeros", "channels", "parameters", "macs",
      "file_bytes", "patch_bytes"}),
)  # fmt: skip


def load(path: Path) -> Study:
    """Read what :func:`save` wrote.

    Args:
        path: The file.

    Returns:
        The study.

    Raises:
        FileProblem: If the file is missing, damaged or no study.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    import pandas as pd

    record = files.read_json(path, ("columns", "rows", "bands", "oracles"))
    try:
        rows, columns = record.pop("rows"), record.pop("columns")
        _check_table(rows, columns)
        table = pd.DataFrame(rows, columns=columns)
        numbers = [c for c in (*audit.METRICS, "rank", "sparsity") if c in columns]
        table = table.astype(dict.fromkeys(numbers, float))
        bands = {int(c): {int(start): {k: _opened(b) for k, b in limits.items()}
                          for start, limits in seeds.items()}
                 for c, seeds in record.pop("bands").items()}  # fmt: skip
        oracles = int(record.pop("oracles"))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise files.FileProblem(files.cannot_read(path, error)) from error
    return Study(table, bands, oracles, record)


def distances(study: Study, method: str, metric: str) -> Any:
    """Tell how far the networks of a method are from the oracles' centre, cell by cell.

    Args:
        study: The study.
        method: Name of a method.
        metric: Name of a metric.

    Returns:
        (training seeds, classes, unlearning seeds) array: |value - centre|. Where the value is a
        distance or a likeness to the oracles itself (:data:`helpers.audit.COMPARED`), how much
        larger, or less alike, it is than the oracles' own: negative if it is closer to them than
        they are to each other.

    Raises:
        InputError: If the method or the metric was not measured in every cell.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    check("method", method, method in study.methods, f"known are {', '.join(study.methods)}")
    check("metric", metric, metric in study.metrics, f"known are {', '.join(study.metrics)}")
    table = study.table[study.table["method"] == method].copy()
    away = table[metric] - study.limits(metric).loc[table.index, "center"]
    if metric not in audit.COMPARED:
        away = away.abs()
    elif audit.METRICS[metric].side == "lower":
        away = -away
    table["away"] = away
    return statistics.crossed(table, "away", "original_seed", "forget", "repetition")


def lead(study: Study, method: str, other: str, metric: str) -> statistics.Interval:
    """Compare the values of two methods themselves, such as an accuracy, cell by cell.

    Args:
        study: The study.
        method: Name of the first method.
        other: Name of the second.
        metric: Name of a metric.

    Returns:
        Mean of first - second with its interval over training seeds and classes, of the
        repetitions that both have; below zero the first has the smaller values.

    Raises:
        InputError: If one was not measured in every cell.

    Source: the pigeonhole bootstrap of :func:`helpers.statistics.bootstrap`.
    Lesson: 05_evaluation, "The comparison".
    """
    return statistics.bootstrap(apart(study, method, other, metric, values))


def marks(study: Study, methods: Iterable[str], metrics: Iterable[str]) -> pd.DataFrame:
    """Tell what methods do to networks that never saw the class, and to originals, on average.

    Args:
        study: With ``retrain``, the methods, and each with :data:`NEVER` behind its name.
        methods: Their names.
        metrics: Names of metrics.

    Returns:
        One row a method and metric: ``method``, ``metric`` and the means ``retrained`` (of
        retrained networks), ``never`` (of the method on these) and ``original`` (of the method on
        originals). The first step is the method's mark, the second what having seen the class adds.

    Raises:
        InputError: If one of them was not measured.

    Source: ``benchmarks/controls_digits.py``.
    Lesson: 05_evaluation, "The comparison".
    """
    import pandas as pd

    methods, metrics = list(methods), list(metrics)
    wanted = {"retrain", *methods, *(name + NEVER for name in methods)}
    check("methods", methods, wanted <= {*study.methods}, "those measured on retrained networks, "
          "too")  # fmt: skip
    check("metrics", metrics, {*metrics} <= {*study.metrics}, "those that were measured")
    # of the further seeds of unlearning none was tried on retrained networks
    first = study.table[study.table["repetition"] == 0]
    mean = first.groupby("method")[metrics].mean()
    rows = [{"method": method, "metric": metric, "retrained": mean[metric]["retrain"],
             "never": mean[metric][method + NEVER], "original": mean[metric][method]}
            for method in methods for metric in metrics]  # fmt: skip
    return pd.DataFrame(rows)


def apart(
    study: Study, method: str, other: str, metric: str, of: Callable[..., Any] = distances
) -> Any:
    """Subtract how far two methods are from the oracles, cell by cell.

    Args:
        study: The study.
        method: Name of the first method.
        other: Name of the second.
        metric: Name of a metric.
        of: What is compared: a function of study, method and metric, with cells as in
            :func:`distances`.

    Returns:
        (training seeds, classes, unlearning seeds) array, first - second, of the repetitions that
        both have.

    Raises:
        InputError: If one was not measured in every cell.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    values = [of(study, name, metric) for name in (method, other)]
    mine = [study.table[study.table["method"] == name] for name in (method, other)]
    times = [sorted({*one["repetition"]}) for one in mine]
    both = [t for t in times[0] if t in times[1]]
    cells = [{*one[["original_seed", "forget"]].itertuples(index=False, name=None)} for one in mine]
    check("cells", [len(one) for one in cells], bool(both) and cells[0] == cells[1],
          "the same networks, classes and repetitions for both methods")  # fmt: skip
    first, second = (value[:, :, [time.index(t) for t in both]]
                     for value, time in zip(values, times, strict=True))  # fmt: skip
    return first - second


def components(study: Study, method: str, metric: str) -> dict[str, Any]:
    """Divide the spread of a metric among training seed, class and unlearning seed.

    Args:
        study: The study; at least two training seeds and two classes.
        method: Name of a method.
        metric: Name of a metric.

    Returns:
        As :func:`helpers.statistics.variance_components`.

    Raises:
        InputError: If it was not measured in every cell.

    Source: :func:`helpers.statistics.variance_components`.
    Lesson: 05_evaluation, "The comparison".
    """
    return statistics.variance_components(values(study, method, metric))


def values(study: Study, method: str, metric: str) -> Any:
    """Arrange the values of a method cell by cell.

    Args:
        study: The study.
        method: Name of a method.
        metric: Name of a metric.

    Returns:
        (training seeds, classes, unlearning seeds) array of the values themselves.

    Raises:
        InputError: If the method is unknown, or was not measured in every cell.

    Source: :func:`helpers.statistics.crossed`.
    Lesson: 05_evaluation, "The comparison".
    """
    check("method", method, method in study.methods, f"known are {', '.join(study.methods)}")
    mine = study.table[study.table["method"] == method]
    return statistics.crossed(mine, metric, "original_seed", "forget", "repetition")


def panel(study: Study) -> pd.DataFrame:
    """Lay a study out for the lie-detector panel.

    Args:
        study: The study.

    Returns:
        One row a cell, family by family: method, family, metric, title, group, ``inside`` (share
        of the audits in the oracles' band) and ``text`` (the mean value).

    Source: this project.
    Lesson: 05_evaluation, "The lie detector".
    """
    import pandas as pd

    inside, rows = study.inside(), []
    for method, group in study.table.groupby("method", sort=False):
        for name in study.metrics:
            metric, values = audit.METRICS[name], group[name]
            share = inside.loc[group.index, name]
            text = "–" if values.isna().all() else audit.shown(name, values.mean())
            rows.append({
                "method": method, "family": _family(method), "metric": name,
                "title": metric.title, "group": metric.group,
                "inside": share.astype(float).mean(), "text": text,
            })  # fmt: skip
    place = {family: i for i, family in enumerate(FAMILIES)}
    return pd.DataFrame(rows).sort_values("family", key=lambda f: f.map(place), kind="stable")


def _family(label: str) -> str:
    """Return the family of a method; what has a label of its own comes last."""
    known = all(part in unlearning.METHODS for part in label.split("+"))
    return unlearning.method(label).family if known else FAMILIES[-1]
