"""The stored grid of the explorer: one point at a time, its neighbours, and the best trade-offs.

A point is a method, a class, a rank and a sparsity; some methods lack one of the last two. What is
stored for it are audits over seeds. The same point can be trained now, and the two be compared.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from helpers import (
    audit,
    models,
    outputs,
    patches,
    runs,
    statistics,
    study,
    training,
    unlearning,
)
from helpers.config import RunConfig, check
from helpers.study import Study

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

    from helpers.data import Dataset

AXES = ("rank", "sparsity")
FAR = 6.0  # half-widths; what is further away counts as that far
_NEEDED = ("method", "forget", "original_seed", "seed", "predicted", *AXES)
# column -> (what it is, unit, factor from the record to the unit); MACs: multiply-accumulates
COSTS: dict[str, tuple[str, str, float]] = {
    "utility": ("gap in TA", "half-widths", 1.0),  # what the other classes pay
    "gmacs": ("training", "GMACs", 1.0),
    "seconds": ("training, fastest seed", "seconds", 1.0),
    "memory_mb": ("training memory", "MB", 1.0),
    "trainable": ("trainable parameters", "thousand", 1e-3),
    "parameters": ("parameters", "thousand", 1e-3),
    "macs": ("one image", "MMACs", 1e-6),
    "file_bytes": ("file", "kB", 1e-3),
    "patch_bytes": ("patch", "kB", 1e-3),
}


_GONE = {"method", *AXES, "reason"}


@dataclass(frozen=True)
class Point:
    """One place in the grid.

    Attributes:
        method: Name of the method.
        forget: The class.
        rank: Of the adapters; None for methods without.
        sparsity: Share to prune, in [0, 1); None for methods that do not prune.

    Source: this project.
    Lesson: 06_explorer, "The stored grid".
    """

    method: str
    forget: int
    rank: int | None = None
    sparsity: float | None = None

    def __str__(self) -> str:
        """Return the point as one short line."""
        parts = [self.method, f"class {self.forget}"]
        parts += [] if self.rank is None else [f"rank {self.rank}"]
        parts += [] if self.sparsity is None else [f"sparsity {100 * self.sparsity:.4g} %"]
        return ", ".join(parts)

    def of(self, cfg: RunConfig, seed: int, original_seed: int) -> RunConfig:
        """Return the configuration that trains this point.

        Args:
            cfg: Everything else.
            seed: Of the adapters and the order of batches.
            original_seed: Of the network that the method starts from.

        Returns:
            The changed, validated copy.

        Raises:
            InputError: If a value is not allowed.

        Source: this project.
        Lesson: 06_explorer, "Run it live".
        """
        own = {"rank": self.rank, "sparsity": self.sparsity}
        own = {name: value for name, value in own.items() if value is not None}
        return cfg.but(method=self.method, forget=self.forget, seed=seed,
                       original_seed=original_seed, **own)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A study over ranks and sparsities, as the explorer reads it.

    Attributes:
        study: The audits; its table has the columns ``rank`` and ``sparsity``, missing where a
            method has none. ``refused`` of its ``about`` lists the places that cannot be trained:
            method, rank, sparsity and reason.

    Source: this project.
    Lesson: 06_explorer, "The stored grid".
    """

    study: Study

    def __post_init__(self) -> None:
        """Refuse a study without the axes of a grid, with an InputError."""
        columns = list(self.study.table.columns)
        check("record", columns, {*_NEEDED} <= {*columns} and len(self.study.table) > 0,
              f"a study with at least one row and the columns {', '.join(_NEEDED)}")  # fmt: skip
        refused = self.study.about.get("refused", [])
        ok = isinstance(refused, list) and all(
            isinstance(r, dict) and {*r} == _GONE for r in refused
        )
        check("refused of the record", refused, ok, f"a list of {', '.join(sorted(_GONE))} each")

    @cached_property
    def _cells(self) -> dict[Point, Any]:
        """Point -> labels of its rows."""
        table, found = self.study.table, {}
        for row in table[["method", "forget", *AXES]].itertuples():
            rank = None if math.isnan(row.rank) else int(row.rank)
            sparsity = None if math.isnan(row.sparsity) else float(row.sparsity)
            point = Point(row.method, int(row.forget), rank, sparsity)
            found.setdefault(point, []).append(row.Index)
        return found

    @property
    def points(self) -> list[Point]:
        """Every stored point, in the order of the record."""
        return list(self._cells)

    @cached_property
    def methods(self) -> list[str]:
        """The methods that have points of their own: not the references."""
        family = {name: unlearning.method(name).family for name in self.study.methods}
        return [name for name in self.study.methods if family[name] != "reference"]

    @cached_property
    def classes(self) -> list[int]:
        """The classes, in ascending order."""
        return sorted({point.forget for point in self._cells})

    @cached_property
    def seeds(self) -> dict[int, int]:
        """Seed -> seed of the network that was started from."""
        pairs = self.study.table[["seed", "original_seed"]].drop_duplicates()
        return {int(seed): int(first) for seed, first in sorted(pairs.itertuples(index=False))}

    def values(self, axis: str, method: str | None = None) -> list[Any]:
        """Return the values of an axis that were measured.

        Args:
            axis: ``rank`` or ``sparsity``.
            method: For this method; None for all.

        Returns:
            The values in ascending order; empty if the method has no such axis.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        mine = (p for p in self._cells if method in (None, p.method))
        return sorted({v for p in mine if (v := getattr(p, axis)) is not None})

    def point(self, method: str, forget: int, rank: int | None, sparsity: float | None) -> Point:
        """Return the point for chosen values; an axis that the method lacks plays no role.

        Args:
            method: One of ``methods``.
            forget: One of ``classes``.
            rank: A measured rank.
            sparsity: A measured sparsity.

        Returns:
            The point, measured or not (a rank can be too large for a layer that was cut).

        Raises:
            InputError: If a value is not among the offered ones.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        offered = {"method": (method, self.methods), "forget": (forget, self.classes)}
        axes = {"rank": rank, "sparsity": sparsity}
        axes = {axis: value for axis, value in axes.items() if self.values(axis, method)}
        offered |= {axis: (value, self.values(axis)) for axis, value in axes.items()}
        for name, (value, known) in offered.items():
            check(name, value, value in known, f"offered are {', '.join(map(str, known))}")
        return Point(method, forget, **axes)

    def rows(self, point: Point) -> pd.DataFrame:
        """Return the audits of a point, one row a seed.

        Args:
            point: The point.

        Returns:
            Rows of the study; none if the point was not measured.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        return self.study.table.loc[self._cells.get(point, [])]

    def reason(self, point: Point) -> str | None:
        """Say why a point has no numbers.

        Args:
            point: The point.

        Returns:
            Why no class can have it, or why its network could not be judged; None where the record
            says neither.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        place = {"method": point.method, "rank": point.rank, "sparsity": point.sparsity}
        refused = self.study.about.get("refused", [])
        found = [one["reason"] for one in refused if place.items() <= one.items()]
        rows = self.rows(point)
        found += [*rows["problem"].dropna()] if "problem" in rows else []
        return str(found[0]) if found else None

    @cached_property
    def away(self) -> pd.DataFrame:
        """How far every audit is from the oracles, in half-widths of their band; 1 is its edge.

        Only the side that counts against a network is positive; on the good side of a one-sided
        band the number is negative.
        """
        import pandas as pd

        table, columns = self.study.table, {}
        for name in self.study.metrics:
            limits, values = self.study.limits(name), table[name].astype(float)
            ends = [limits[end] for end in ("low", "high", "center")]
            away = _away(audit.METRICS[name].side, values, *ends)
            columns[name] = away.where(audit.decides(name, *ends[:2]))
        return pd.DataFrame(columns, index=table.index)

    def metrics(self, point: Point, seed: int) -> list[dict[str, Any]]:
        """Return every metric of a point, beside the oracles' band.

        Args:
            point: The point.
            seed: Whose own value is shown; one of ``seeds``.

        Returns:
            One mapping a metric: name, title, group, what, ``value`` (of the seed), ``mean``, and
            the ``low`` and ``high`` end of its 95 % interval over seeds (None where one seed alone
            says nothing), ``band`` (two ends, None where open), ``away`` (of the seed) and
            ``inside``. Numbers that were not measured are None, and so are the last two where the
            band leaves no value outside (:func:`helpers.audit.decides`).

        Raises:
            InputError: If the seed is not offered.

        Source: :func:`helpers.statistics.bootstrap`.
        Lesson: 06_explorer, "The stored grid".
        """
        check("seed", seed, seed in self.seeds, f"offered are {', '.join(map(str, self.seeds))}")
        rows, start = self.rows(point), self.seeds[seed]
        mine = rows.index[rows["seed"] == seed]
        found = []
        for name in self.study.metrics:
            metric, values = audit.METRICS[name], rows[name].astype(float)
            away = self.away.loc[mine, name]
            row = {"name": name, "title": metric.title, "group": metric.group, "what": metric.what}
            row |= dict(zip(("mean", "low", "high"), interval(name, values), strict=True))
            row["value"] = _known(values.loc[mine].mean())
            row["away"] = _known(away.mean())
            row["inside"] = None if row["away"] is None else bool(inside(away.mean()))
            open_ = -math.inf, math.inf, 0.0
            low, high, _ = self.study.band(point.forget, name, start) or open_
            row["band"] = [v if math.isfinite(v) else None for v in (low, high)]
            found.append(row)
        return found

    @property
    def prices(self) -> list[str]:
        """Those of ``COSTS`` that were measured."""
        known = {*self.study.table.columns, *(["utility"] if "TA" in self.study.metrics else [])}
        return [name for name in COSTS if name in known]

    def utility(self, point: Point, value: float | None = None) -> float:
        """Tell how far the accuracy on the other classes is from the oracles'.

        Args:
            point: The point.
            value: The accuracy in [0, 1]; None takes the stored ones and averages the distances.

        Returns:
            In half-widths of the oracles' band, from 0 to ``FAR``; NaN if it was not measured.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        if value is None:
            found = self._means[1]["TA"].get(point, math.nan)
        else:
            band = self.study.band(point.forget, "TA")
            found = math.nan if band is None else away("TA", value, band)
        return found if math.isnan(found) else min(float(found), FAR)

    def costs(self, point: Point) -> dict[str, float]:
        """Return what a point weighs and costs: means over its seeds, seconds those of the fastest.

        Args:
            point: The point.

        Returns:
            Column -> number, for every column of the ledger and of the costs that was measured.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        if point not in self._cells:
            return {}
        values, _ = self._means
        names = [name for name in ("zeros", "channels", *COSTS) if name in values]
        means = values.loc[[point], names].iloc[0]
        return {name: float(value) for name, value in means.items() if not math.isnan(value)}

    @cached_property
    def _means(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Means over seeds, one row a point: of what was measured, and of the distances.

        Seconds are those of the fastest seed: what else a machine does can only add to them.
        """
        import pandas as pd

        table, points = self.study.table, list(self._cells)
        place = pd.Series({label: i for i, p in enumerate(points) for label in self._cells[p]})
        names = [*self.study.metrics, *("zeros", "channels", *COSTS)]
        values = table[[name for name in names if name in table]].astype(float)
        both = (frame.groupby(place).mean() for frame in (values, self.away))
        index = pd.Index(points, dtype=object)
        first, second = (frame.reindex(range(len(points))).set_axis(index) for frame in both)
        if "seconds" in values:
            fastest = values["seconds"].groupby(place).min()
            first["seconds"] = fastest.reindex(range(len(points))).to_numpy()
        return first, second

    def predicted(self, point: Point, seed: int | None = None) -> list[float] | None:
        """Return which labels a point gives to the test images of its class.

        Args:
            point: The point; of the methods or of the references.
            seed: Of this seed alone; None takes all seeds together.

        Returns:
            (C,) shares that sum to 1; None if the point was not measured, or given no label.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        rows = self.rows(point)
        rows = rows if seed is None else rows[rows["seed"] == seed]
        counts = [row for row in rows["predicted"] if isinstance(row, list | tuple)]
        if not counts:
            return None
        summed = [sum(column) for column in zip(*counts, strict=True)]
        total = sum(summed)
        return [count / total for count in summed] if total else None

    def surface(self, method: str, forget: int, metric: str) -> pd.DataFrame:
        """Lay a metric of one method and class out over rank and sparsity.

        Args:
            method: The method.
            forget: The class.
            metric: Name of a metric.

        Returns:
            One row a point: point, method, rank, sparsity; ``mean`` and ``away``, means over seeds.

        Raises:
            InputError: If the metric was not measured.

        Source: this project.
        Lesson: 06_explorer, "The stored grid".
        """
        known = self.study.metrics
        check("metric", metric, metric in known, f"measured are {', '.join(known)}")
        return self._laid_out([p for p in self._cells if (p.method, p.forget) == (method, forget)],
                              metric)  # fmt: skip

    def _laid_out(self, points: list[Point], metric: str) -> pd.DataFrame:
        import pandas as pd

        values, away_from = self._means
        return pd.DataFrame({
            "point": pd.Series(points, dtype=object), "method": [p.method for p in points],
            "rank": [p.rank for p in points], "sparsity": [p.sparsity for p in points],
            "mean": values.loc[points, metric].to_numpy(),
            "away": away_from.loc[points, metric].to_numpy(),
        })  # fmt: skip

    def tradeoff(self, forget: int, metric: str, cost: str) -> pd.DataFrame:
        """Set all points of a class by what they cost and how far from the oracles they are.

        Args:
            forget: The class.
            metric: Name of a metric.
            cost: One of ``prices``.

        Returns:
            One row a point that has both numbers: point, method, cost (in its unit), away, and
            ``front``: whether no other point is better in one and at least as good in the other,
            where the good side of a one-sided band counts as its centre. The numbers are means over
            seeds, but for seconds; a point can be on the front by chance.

        Raises:
            InputError: If the metric or the cost was not measured.

        Source: the usual definition of a Pareto front.
        Lesson: 06_explorer, "The stored grid".
        """
        check("cost", cost, cost in self.prices, f"measured are {', '.join(self.prices)}")
        known = self.study.metrics
        check("metric", metric, metric in known, f"measured are {', '.join(known)}")
        mine = [p for p in self._cells if p.forget == forget and p.method in self.methods]
        mine.sort(key=lambda p: self.methods.index(p.method))
        table, (values, away_from) = self._laid_out(mine, metric), self._means
        if cost == "utility":
            table["cost"] = away_from.loc[mine, "TA"].clip(upper=FAR).to_numpy()
        else:
            table["cost"] = COSTS[cost][2] * values.loc[mine, cost].to_numpy()
        table = table.dropna(subset=["cost", "away"]).reset_index(drop=True)
        table["front"] = pareto(table["cost"], table["away"].clip(lower=0))
        return table


def away(metric: str, value: float, band: tuple[float, float, float]) -> float:
    """Tell how far one value is from the oracles, in half-widths of their band; 1 is its edge.

    Args:
        metric: Its name; says which side counts.
        value: The value.
        band: Low end, high end and centre.

    Returns:
        As :attr:`Grid.away`.

    Source: this project.
    Lesson: 06_explorer, "The stored grid".
    """
    import pandas as pd

    if not audit.decides(metric, *band[:2]):
        return math.nan
    columns = (pd.Series([float(v)]) for v in (value, *band))
    return float(_away(audit.METRICS[metric].side, *columns).iloc[0])


def inside(away: Any) -> Any:
    """Say whether distances are within the oracles' band; its edge belongs to it.

    Args:
        away: From :func:`away` or :attr:`Grid.away`: a number, or a column or table of them.

    Returns:
        Whether, of the same shape; False where the distance is not known.

    Source: this project.
    Lesson: 06_explorer, "The stored grid".
    """
    return away <= 1 + 1e-9  # as decimals are written: 0.6 need not be the 0.6 of an edge


def _away(
    side: str, values: pd.Series, low: pd.Series, high: pd.Series, center: pd.Series
) -> pd.Series:
    upper, lower = _share(values - center, high - center), _share(center - values, center - low)
    return {"both": upper.where(values >= center, lower), "upper": upper, "lower": lower}[side]


def _share(distance: pd.Series, half: pd.Series) -> pd.Series:
    """Divide by the half-width; where that is 0, only the centre itself is inside."""
    import numpy as np

    exact = np.where(distance.abs() < 1e-12, 0.0, np.copysign(np.inf, distance))
    ratio = (distance / half.where(half > 0)).where(half > 0, exact)
    return ratio.where(distance.notna() & half.notna())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def interval(name: str, values: Iterable[float]) -> tuple[float | None, float | None, float | None]:
    """Bound the mean of a metric over seeds.

    Args:
        name: One of ``helpers.audit.METRICS``.
        values: One number a seed; missing ones are NaN.

    Returns:
        Mean, low and high end at 95 %; None for what is not known, as how far seeds scatter of
        which all have one value. No end leaves the range of the metric, which few seeds alone would
        allow.

    Source: :func:`helpers.statistics.bootstrap`.
    Lesson: 06_explorer, "The stored grid".
    """
    numbers = tuple(float(v) for v in values if not math.isnan(v))
    if not numbers:
        return None, None, None
    if len({*numbers}) == 1:
        return numbers[0], None, None
    found = _bootstrap(numbers)
    return found.mean, max(found.low, 0.0), min(found.high, audit.METRICS[name].most)


@lru_cache(maxsize=4096)
def _bootstrap(numbers: tuple[float, ...]) -> statistics.Interval:
    return statistics.bootstrap([[number] for number in numbers])


def pareto(costs: Sequence[float], losses: Sequence[float]) -> np.ndarray:
    """Find the points that no other point beats: cheaper or closer, and not worse in the other.

    Args:
        costs: (N,) finite numbers, less is better.
        losses: (N,) numbers, less is better.

    Returns:
        (N,) bool; of equal points all are on the front, or none.

    Source: the usual definition.
    Lesson: 06_explorer, "The stored grid".
    """
    import numpy as np

    x, y = (np.asarray(values, dtype=float) for values in (costs, losses))
    no_worse = (x[:, None] <= x) & (y[:, None] <= y)
    better = (x[:, None] < x) | (y[:, None] < y)
    return ~(no_worse & better).any(0)


def differences(
    rows: Iterable[Mapping[str, Any]], live: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Put the numbers of a live run beside the stored ones of the same seed.

    Args:
        rows: From :meth:`Grid.metrics`.
        live: Metric -> number; some may be missing.

    Returns:
        The rows with ``live`` and ``difference`` (live - stored), None where one is missing.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """
    found = []
    for row in rows:
        now, stored = live.get(row["name"]), row["value"]
        known = now is not None and stored is not None
        found.append({**row, "live": now, "difference": now - stored if known else None})
    return found


# ------------------------------------------------------------------------------------------------
# trained now


@dataclass
class Live:
    """A point that was trained now.

    Attributes:
        point: The point.
        seed: Its seed.
        metrics: Those that need no oracle's answers, and Avg Gap and ToW.
        costs: As :meth:`Grid.costs`.
        predicted: (C,) shares of labels given to the test images of the class.
        seconds: From the start to here, everything included but the wait for another training in
            this process.
        networks: ``before`` and ``after``, and ``oracle`` once it was asked for.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """

    point: Point
    seed: int
    metrics: dict[str, float]
    costs: dict[str, float]
    predicted: list[float]
    seconds: float
    networks: dict[str, nn.Module] = field(default_factory=dict, repr=False)


def train(
    grid: Grid,
    point: Point,
    seed: int,
    cfg: RunConfig,
    dataset: Dataset,
    stop: threading.Event,
    say: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> Live:
    """Train a point now and measure what can be measured without oracles.

    The network before is read from disk, or trained if it is not there. The metrics that compare
    with every oracle's answers would take the oracles too, and are left out. Trained and judged as
    :func:`helpers.runs.run` does: in paper mode with the published normalisation.

    Args:
        grid: Gives the oracles' means and the seed of the network before.
        point: The point; it need not have been measured.
        seed: One of the grid's.
        cfg: Everything else.
        dataset: The data of the configuration.
        stop: Ends the training at the next step once it is set.
        say: Called with what is done, and how many of how many steps; 0 of 0 while another training
            is waited for, in this process or in another.

    Returns:
        The trained point.

    Raises:
        InputError: If the point cannot be trained.
        Interrupted: If it was stopped.

    Source: :func:`helpers.unlearning.unlearn`.
    Lesson: 06_explorer, "Run it live".
    """
    check("seed", seed, seed in grid.seeds, f"offered are {', '.join(map(str, grid.seeds))}")
    check("earlier", cfg.earlier, not cfg.earlier, "(): a point forgets one class alone")
    own = point.of(cfg, seed, grid.seeds[seed])
    with _watched("training", stop, say), training.in_turn():
        started = time.perf_counter()
        unlearning.set_threads(own)
        unlearning.validate(own, dataset)
        before = _reference(own, "original", own.start_seed, dataset, stop, say)
        outcome = unlearning.unlearn(before, runs.as_trained(dataset, own), own)
    say("measuring", 0, 1)
    split = runs.as_evaluated(dataset, own).split(point.forget)
    seen, model = audit.look(outcome.model, split), outcome.model
    _leave_if(stop)
    part = split.test_forget
    known = outputs.accuracy(training.predict(before, part, split.dataset), part.labels)
    metrics = seen.own | {"relearn_steps": audit.steps_back(seen, known)}
    bands = {name: grid.study.band(point.forget, name) for name in audit.GAP_METRICS}
    if None not in bands.values():
        centers = {name: band[2] for name, band in bands.items()}
        metrics["Avg Gap"] = audit.average_gap(metrics, centers)
        metrics["ToW"] = audit.tow(metrics, centers)
    costs = study.weight(model, models.layers(model).prunable) | outcome.costs
    if outcome.patch is not None:
        costs["patch_bytes"] = patches.size(outcome.patch)
    shares = outputs.label_histogram(seen.logits["test_forget"]).tolist()
    _leave_if(stop)
    return Live(point, seed, metrics, costs, shares, time.perf_counter() - started,
                {"before": before, "after": model})  # fmt: skip


def oracle(
    live: Live,
    grid: Grid,
    cfg: RunConfig,
    dataset: Dataset,
    stop: threading.Event,
    say: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> nn.Module:
    """Train the network that never saw the class, or read it from disk, and keep it with a point.

    Args:
        live: The trained point; gets the network ``oracle``. In place.
        grid: Gives the seed.
        cfg: Everything else.
        dataset: The data.
        stop: As :func:`train`.
        say: As :func:`train`.

    Returns:
        The network.

    Raises:
        Interrupted: If it was stopped.

    Source: :func:`helpers.runs.run`.
    Lesson: 06_explorer, "Real pictures".
    """
    own = live.point.of(cfg, live.seed, grid.seeds[live.seed])
    live.networks["oracle"] = _reference(own, "retrain", own.start_seed, dataset, stop, say)
    return live.networks["oracle"]


def _reference(
    cfg: RunConfig, method: str, seed: int, dataset: Dataset, stop: threading.Event,
    say: Callable[[str, int, int], object],
) -> nn.Module:  # fmt: skip
    one = cfg.but(method=method, seed=seed, original_seed=None)
    name = {"original": "the network before", "retrain": "an oracle"}[method]
    with _watched(f"training {name}", stop, say), training.in_turn():
        return runs.run(one, dataset, progress=False).model(dataset)


def _watched(
    what: str, stop: threading.Event, say: Callable[[str, int, int], object]
) -> AbstractContextManager[None]:
    """Tell of the steps of a training, and of whom it waits for; stop it, if asked to."""
    return training.watched(stop, lambda done, total: say(what, done, total),
                            lambda whom: say(f"{what}: waiting for {whom}", 0, 0))  # fmt: skip


def _leave_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise training.Interrupted("stopped while measuring; nothing was kept")


# ------------------------------------------------------------------------------------------------
# what single images show

NETWORKS = ("before", "after", "oracle")


@torch.no_grad()
def answers(
    networks: Mapping[str, nn.Module], images: torch.Tensor, forget: int, dataset: Dataset
) -> list[dict[str, Any]]:
    """Ask several networks what they see.

    Args:
        networks: Name -> network.
        images: (N, C, H, W) uint8.
        forget: The forgotten class.
        dataset: Gives classes and normalisation.

    Returns:
        One mapping an image: network -> (name of the answer, its probability, the probability of
        the forgotten class).

    Source: this project.
    Lesson: 06_explorer, "Real pictures".
    """
    rows: list[dict[str, Any]] = [{} for _ in images]
    for name, network in networks.items():
        with models.evaluating(network):
            shares = network(dataset.normalise(images)).double().softmax(1).cpu()
        for row, share in zip(rows, shares, strict=True):
            top = int(share.argmax())
            row[name] = (dataset.classes[top], float(share[top]), float(share[forget]))
    return rows


def leaking(live: Live, dataset: Dataset, most: int = 8) -> torch.Tensor:
    """Choose the test images of the class on which a network still gives it the most probability.

    Args:
        live: The trained point.
        dataset: The data.
        most: Images to choose; at least 1.

    Returns:
        (N, C, H, W) uint8, the worst first.

    Source: this project.
    Lesson: 06_explorer, "Real pictures".
    """
    part = dataset.split(live.point.forget).test_forget
    sure = outputs.confidence(training.predict(live.networks["after"], part, dataset), part.labels)
    return part.images[sure.argsort(descending=True)[:most].to(part.images.device)]


def changed(live: Live, dataset: Dataset, most: int = 8) -> torch.Tensor:
    """Choose test images of the other classes on which the answer is another than before.

    Args:
        live: The trained point.
        dataset: The data.
        most: Images to choose at most.

    Returns:
        (N, C, H, W) uint8, those first that became wrong; N can be 0.

    Source: this project.
    Lesson: 06_explorer, "Real pictures".
    """
    part = dataset.split(live.point.forget).test_retain
    before, after = (
        training.predict(live.networks[name], part, dataset).argmax(1) for name in NETWORKS[:2]
    )
    moved = (before != after).nonzero().flatten()
    wrong = (after != part.labels.cpu())[moved]
    return part.images[moved[wrong.int().argsort(descending=True, stable=True)][:most]
                       .to(part.images.device)]  # fmt: skip
