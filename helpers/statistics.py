"""How sure can one be: bands of oracles, intervals, and where the variation comes from.

Runs are crossed: every training seed meets every forgotten class, and in each such cell there are
one or several unlearning seeds. Treating those runs as independent makes intervals too short.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.config import InputError, check, choose

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SIDES = ("both", "upper", "lower")


@dataclass(frozen=True)
class Band:
    """Where one more oracle would land, seen from the oracles at hand.

    Attributes:
        low: Lower end; -inf where only large values are bad.
        high: Upper end; inf where only small values are bad.
        center: Mean of the oracles.

    Source: from :func:`band`.
    Lesson: 05_evaluation, "The oracle band".
    """

    low: float
    high: float
    center: float

    def holds(self, value: float) -> bool:
        """Return whether a network's value lies in the band, its ends included.

        Args:
            value: A finite number, measured as those of the oracles were.

        Returns:
            Whether the value could be that of one more oracle.

        Raises:
            InputError: If the value is not finite.

        Source: the definition of a prediction interval.
        Lesson: 05_evaluation, "The oracle band".
        """
        check("value", value, math.isfinite(value), "a finite number")
        slack = 1e-12 * max(abs(value), abs(self.center))  # 0.98 + 0.01 is not quite 0.99
        return bool(self.low - slack <= value <= self.high + slack)


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval.

    Attributes:
        mean: Over the values at hand.
        low: Lower end, at most the mean; -inf if nothing can be said.
        high: Upper end, at least the mean; inf if nothing can be said.

    Source: from :func:`bootstrap` or :func:`share_interval`.
    Lesson: 05_evaluation, "The comparison".
    """

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse ends that do not enclose the mean."""
        ok = self.low <= self.mean <= self.high
        check("interval", (self.low, self.mean, self.high), ok, "low ≤ mean ≤ high")


def band(
    values: Sequence[float], *, level: float = 0.95, resolution: float = 0.0, side: str = "both"
) -> Band:
    """Predict from several oracles where one more would land.

    This is no confidence interval of their mean: that one shrinks to a point with more oracles,
    and would then call a further oracle different.

    Args:
        values: One number an oracle, at least 3.
        level: Chance that a further normally distributed oracle lies inside, in (0, 1).
        resolution: The band reaches at least this far from the center, for example 1/N for a share
            of N images: less cannot be told apart. At least 0.
        side: ``upper`` where only large values are bad (a distance; no lower end), ``lower`` where
            only small ones are (a score; no upper end), else ``both``.

    Returns:
        Mean ± Student's t quantile (n - 1 degrees of freedom) * sd * sqrt(1 + 1/n), widened where
        needed to the resolution and to the values themselves. The last makes it hold more than the
        level asks for where that is low or the oracles are many (20 and more for 95 %). Values that
        are each an oracle's mean distance to the others depend on each other, and it holds less:
        84 to 90 % with three, 91 to 94 % with ten (simulated, in one dimension and in twenty).

    Raises:
        InputError: If there are fewer than 3 oracles or a value is not finite.

    Source: the prediction interval of a normal sample; Hahn & Meeker 1991, "Statistical intervals".
    Lesson: 05_evaluation, "The oracle band".
    """
    from scipy import stats

    choose("side", side, SIDES)
    _check_level(level)
    check("resolution", resolution, 0 <= resolution < math.inf, "a finite number ≥ 0")
    n = len(values)
    check("oracles", n, n >= 3, f"a band needs at least 3: train {3 - n} more without the class")
    oracles = _numbers("values", values, dims=(1,))
    center, below = float(oracles.mean()), (1 + level) / 2 if side == "both" else level
    half = float(stats.t.ppf(below, n - 1) * oracles.std(ddof=1) * math.sqrt(1 + 1 / n))
    half = max(half, resolution)
    low, high = min(center - half, float(oracles.min())), max(center + half, float(oracles.max()))
    return Band(
        low=-math.inf if side == "upper" else low,
        high=math.inf if side == "lower" else high,
        center=center,
    )


def bootstrap(
    values: np.ndarray | Sequence[Any],
    level: float = 0.95,
    repeats: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bound a mean over crossed runs by drawing training seeds and classes anew.

    Rows and columns are drawn independently, with replacement; unlearning seeds anew in each cell.
    A factor with one value alone is not drawn: the interval then holds for that one only. That
    gives the interval its shape; five seeds make it too short, and what is in single cells too
    long, so its width is that of the analysis of variance, with Student's t, and at least that to
    each side. With two or three training seeds it is still too short: it misses the mean about
    twice as often as it says.

    Args:
        values: (T, C) or (T, C, U) finite numbers, training seed x class x unlearning seed, such
            as the differences of two methods.
        level: Of confidence, in (0, 1).
        repeats: Number of draws, at least 100.
        seed: Of the draws.

    Returns:
        The mean and its interval, infinite for a single value. Where all values are the same it
        is that one: how far others would scatter, such values do not tell.

    Raises:
        InputError: If the values have other dimensions or one is not finite.

    Source: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2); the percentile
        ends are moved in the spirit of Hesterberg 2015 (arXiv 1411.5279), to the width of two
        crossed random factors, with Satterthwaite's degrees of freedom.
    Lesson: 05_evaluation, "The comparison".
    """
    _check_draws(level, repeats)
    cube, means = _redrawn(values, repeats, seed)
    if cube.size == 1:
        return Interval(float(cube.mean()), -math.inf, math.inf)
    return _interval(cube, means, level)


def p_value(
    values: np.ndarray | Sequence[Any],
    repeats: int = 2000,
    seed: int = 0,
) -> float:
    """Find the largest level of confidence at which :func:`bootstrap` leaves zero out.

    Args:
        values: As there, such as the differences of two methods.
        repeats: Number of draws, at least 100.
        seed: Of the draws.

    Returns:
        1 - that level, in [1e-12, 1]; 1 for a single value and for a mean of zero.

    Raises:
        InputError: As there.

    Source: the duality of intervals and tests.
    Lesson: 05_evaluation, "The comparison".
    """
    _check_draws(0.5, repeats)
    cube, means = _redrawn(values, repeats, seed)
    if cube.size == 1:
        return 1.0
    without, within = 0.0, 1.0
    for _ in range(40):
        level = (without + within) / 2
        found = _interval(cube, means, level)
        if found.low > 0 or found.high < 0:
            without = level
        else:
            within = level
    return max(1 - without, 1e-12)


def share_interval(hits: int, n: int, level: float = 0.95) -> Interval:
    """Bound a share of images, such as an accuracy on the test set, by Wilson's interval.

    It says how the number would move with other images, nothing about other seeds.

    Args:
        hits: Images that count, from 0 to ``n``.
        n: Images, at least 1.
        level: Of confidence, in (0, 1).

    Returns:
        The share and its interval.

    Raises:
        InputError: If there are no images, or more hits than images.

    Source: Wilson 1927; ``scipy.stats.binomtest``.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    from scipy import stats

    _check_level(level)
    check("n", n, n >= 1, "at least 1")
    check("hits", hits, 0 <= hits <= n, f"from 0 to {n}")
    ends = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    return _between(hits / n, ends.low, ends.high)


def variance_components(values: np.ndarray | Sequence[Any]) -> dict[str, Any]:
    """Split the variance of crossed runs into training seed, class and unlearning seed.

    Args:
        values: (T, C, U) finite numbers, training seed x class x unlearning seed; T and C at
            least 2. See :func:`crossed`.

    Returns:
        ``components``: variances of ``training``, ``class``, ``training x class`` and
        ``unlearning``, the last two as one, ``training x class + unlearning``, if U is 1: they
        cannot be told apart then. ``negative``: names of those whose estimate was below 0 and was
        set to 0, which means "too small to be seen with this many runs". ``shares``: of their sum,
        in [0, 1], summing to 1; all NaN where no value differs from another.

    Raises:
        InputError: If T or C is 1, there are not three dimensions, or a value is not finite.

    Source: balanced analysis of variance, method of moments; Searle, Casella & McCulloch 1992,
        "Variance components".
    Lesson: 05_evaluation, "The comparison".
    """
    cube = _numbers("values", values, dims=(3,))
    t, c, u = cube.shape
    check("values", cube.shape, min(t, c) > 1, "at least 2 training seeds and 2 classes")
    rows, columns, cell, within = _mean_squares(cube - cube[0, 0, 0])  # equal ones are exactly 0
    found = {"training": (rows - cell) / (c * u), "class": (columns - cell) / (t * u)}
    if u == 1:
        found["training x class + unlearning"] = cell
    else:
        found |= {"training x class": (cell - within) / u, "unlearning": within}
    tiny = 1e-12 * float(cube.var())  # rounding
    components = {name: v if v > tiny else 0.0 for name, v in found.items()}
    total = sum(components.values())
    return {
        "components": components,
        "shares": {name: v / total if total else math.nan for name, v in components.items()},
        "negative": tuple(name for name, v in found.items() if v < -tiny),
    }


def crossed(table: pd.DataFrame, value: str, rows: str, columns: str, inner: str) -> np.ndarray:
    """Bring a tidy table of one method's runs into a balanced array.

    Args:
        table: One row a run; several forgotten classes are one tuple.
        value: Column with the numbers.
        rows: Column with the training seeds.
        columns: Column with the forgotten classes.
        inner: Column with the unlearning seeds, the same ones in every cell.

    Returns:
        (T, C, U) float64; every dimension in ascending order of its column.

    Raises:
        InputError: If a column or a run is missing (all missing ones are listed), a run occurs
            twice, or a number is not finite.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    import numpy as np

    names = (rows, columns, inner)
    absent = [name for name in (*names, value) if name not in table.columns]
    check(
        "missing columns", absent, not absent, f"the table has {', '.join(map(str, table.columns))}"
    )
    check("table", "no runs", len(table) > 0, "at least one run")
    keys = [*table[list(names)].itertuples(index=False, name=None)]
    twice = sorted({str(key) for key, n in Counter(keys).items() if n > 1})
    check("runs that occur twice", twice, not twice, f"one row for each {names}, of one method")
    cells = dict(zip(keys, table[value].astype(float), strict=True))
    axes = [sorted({key[axis] for key in keys}) for axis in range(3)]
    wanted = list(itertools.product(*axes))
    missing = [key for key in wanted if not math.isfinite(cells.get(key, math.nan))]
    check(f"missing {names}", missing, not missing, f"run these too, with a finite {value}")
    return np.array([cells[key] for key in wanted]).reshape([len(axis) for axis in axes])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Average a table of runs over the seeds of each method.

    Args:
        table: One row a run, with ``method``, ``seed`` and numeric columns.

    Returns:
        One row a method, in the order of first appearance: for every numeric column its mean and
        its standard deviation (columns ``(name, "mean")`` and ``(name, "sd")``, the latter NaN for
        a single seed) and the number of runs that have numbers, ``("n", "")``.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    numeric = [c for c in table.columns if c != "seed" and table[c].dtype.kind in "fi"]
    groups = table.groupby("method", sort=False)[numeric]
    result = groups.agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
    result[("n", "")] = groups.count().max(axis=1)  # none of a run that failed
    return result


def _check_level(level: float) -> None:
    check("level", level, 0 < level < 1, "a share between 0 and 1, such as 0.95")


def _check_draws(level: float, repeats: int) -> None:
    _check_level(level)
    check("repeats", repeats, repeats >= 100, "at least 100 draws")


def _numbers(field: str, values: Any, dims: tuple[int, ...]) -> np.ndarray:
    """Return finite float64 numbers with one of the given numbers of dimensions."""
    import numpy as np

    values = values.detach().cpu() if hasattr(values, "detach") else values
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{field}: {error}; allowed are numbers in rows of equal length"
        ) from error
    wanted = " or ".join(map(str, dims))
    ok = numbers.ndim in dims and numbers.size > 0
    check(f"shape of {field}", numbers.shape, ok, f"{wanted} dimension(s), none of them empty")
    bad = int((~np.isfinite(numbers)).sum())
    check(field, f"{bad} of {numbers.size} nan or inf", not bad, "every number must be finite")
    return numbers


def _redrawn(values: Any, repeats: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return crossed numbers as (T, C, U), and their means with rows and columns drawn anew."""
    import numpy as np

    cube = _numbers("values", values, dims=(2, 3))
    cube = cube.reshape(*cube.shape[:2], -1)
    draw, (t, c, u) = np.random.default_rng(seed), cube.shape
    rows = draw.integers(t, size=(repeats, t, 1, 1))
    columns = draw.integers(c, size=(repeats, 1, c, 1))
    inner = draw.integers(u, size=(repeats, t, c, u))
    return cube, cube[rows, columns, inner].mean((1, 2, 3))


def _interval(cube: np.ndarray, means: np.ndarray, level: float) -> Interval:
    """Return the percentile interval of redrawn means, as wide as it has to be.

    Drawn from few rows and columns, means spread too little; and too much by what is in single
    cells, whose variance the draws count three times (Owen 2007, section 3). So the draws give
    the interval its shape, and the analysis of variance its width, with Student's t for the normal
    quantile. The shape of tails that the draws do not reach is that of the last that they do.
    Neither end is nearer than Student's own: where few cells are not zero, half of the draws can be
    zero, and a shorter interval would leave out a zero that nothing speaks against.
    """
    import numpy as np
    from scipy import stats

    mean, spread, shape = float(cube.mean()), float(means.std()), min(level, 1 - 10 / len(means))
    ends = np.quantile(means, [(1 - shape) / 2, (1 + shape) / 2]) - mean
    variance, freedom = _variance_of_the_mean(cube)
    if variance and spread:
        far = stats.t.ppf((1 + level) / 2, freedom)
        ends *= far / stats.norm.ppf((1 + shape) / 2) * math.sqrt(variance) / spread
        half = far * math.sqrt(variance)
        ends = np.array([min(ends[0], -half), max(ends[1], half)])
    return _between(mean, *(mean + ends))


def _between(mean: float, low: float, high: float) -> Interval:
    """Return an interval that encloses its mean, whatever rounding did."""
    return Interval(mean, min(float(low), mean), max(float(high), mean))


def _variance_of_the_mean(cube: np.ndarray) -> tuple[float, float]:
    """Return how far the mean of crossed numbers spreads, and how well that is known.

    Mean squares of rows and columns count if they exceed that of single cells, which is then in
    both of them; a factor with one value is none. Degrees of freedom are Satterthwaite's.
    """
    t, c, _ = cube.shape
    if min(t, c) == 1:
        values = cube.mean(2).ravel() if max(t, c) > 1 else cube.ravel()
        return float(values.var(ddof=1)) / len(values), len(values) - 1
    rows, columns, cells, _ = _mean_squares(cube)
    counted = [(rows, t - 1), (columns, c - 1)]
    # by more than rounding: with one cell that is not zero all three are equal
    counted = [(1, square, df) for square, df in counted if square > cells * (1 + 1e-9)]
    counted.append((1 - len(counted), cells, (t - 1) * (c - 1)))
    total = sum(times * square for times, square, _ in counted)
    if not total:
        return 0.0, 1.0
    freedom = total**2 / sum((times * square) ** 2 / df for times, square, df in counted)
    return total / cube.size, freedom


def _mean_squares(cube: np.ndarray) -> tuple[float, float, float, float]:
    """Return the mean squares of rows, columns, their interaction and within cells."""
    t, c, u = cube.shape
    cells, grand = cube.mean(2), cube.mean()
    row, column = cells.mean(1), cells.mean(0)
    rest = cells - row[:, None] - column[None] + grand
    rows = c * u * row.var(ddof=1)
    columns = t * u * column.var(ddof=1)
    interaction = u * (rest**2).sum() / ((t - 1) * (c - 1))
    within = ((cube - cells[:, :, None]) ** 2).sum() / (t * c * (u - 1)) if u > 1 else 0.0
    return float(rows), float(columns), float(interaction), float(within)
