"""Figures: tidy data in, axes out; nothing is trained or computed here that a reader must trust.

Every method has one colour in the whole series, from a palette that colour-blind readers can tell
apart (after Okabe & Ito, darkened where a line on white would be too faint), and a marker of its
own. Baselines and cheats share one colour a family: what is drawn of them together differs by
marker or hatching, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from helpers import audit, grid, unlearning
from helpers.config import check, one_line
from helpers.report import COLUMNS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from helpers.data import Dataset

COLORS = {
    "original": "#000000",
    "retrain": "#0072B2",
    "finetune": "#CC79A7",
    "prune_finetune": "#96652D",
    "lora": "#0095FF",
    "prunelora": "#D55E00",
    "prunelora_channels": "#009E73",
}
_FAMILIES = {"baseline": "#523952", "cheat": "#8B0000"}  # more hues nobody could tell apart
CHANCE = "#767676"
COLORS |= {name: _FAMILIES.get(method.family, CHANCE) for name, method in unlearning.METHODS.items()
           if name not in COLORS}  # fmt: skip


def _markers() -> Iterator[Any]:
    """Yield markers that differ, as many as are asked for: matplotlib's own, then stars."""
    yield from "Xso^vDP<>hHpd8*1234x+"
    for points in itertools.count(6):
        yield from ((points, style, 0) for style in (1, 2))  # filled, or lines alone


def _hatch(place: int) -> str:
    """Return the hatching of a bar with so many of its colour before it: for each another one."""
    if place == 0:
        return HATCHES[0]
    denser, which = divmod(place - 1, len(HATCHES) - 1)
    return HATCHES[1 + which] * (1 + denser)


MARKERS = dict(zip(COLORS, _markers(), strict=False))
ORACLE, FORGET = COLORS["retrain"], "#D55E00"
# of what is no method, in this order; the same colours, since no others keep apart as well
GROUPS = [COLORS[name] for name in ("retrain", "prunelora", "prunelora_channels", "finetune",
                                    "lora", "prune_finetune", "original")]  # fmt: skip
STORED, LIVE = "#585858", COLORS["original"]  # the explorer's bars: no method there has these
_LINES, _DOTS = ["//", "\\\\", "||", "--", "++", "xx"], ["oo", "..", "**", "OO"]
HATCHES = ["", *_LINES, *_DOTS, *(lines + dots for lines in _LINES for dots in _DOTS)]
EDGE = grid.FAR  # half-widths of a band; what lies beyond is written at the edge
TINT = 0.4  # of the faintest cells: blue, vermillion, white and grey can be told apart
DASHES = ["-", "--", ":", "-."]
UNKNOWN = "#d9d9d9"  # cells without a measurement, or without anything to decide


def style() -> None:
    """Set the look of all figures: seaborn's white grid, sizes that fit a notebook.

    Source: this project.
    Lesson: 00_start_here, "The data".
    """
    sns.set_theme("notebook", "whitegrid", font_scale=0.9)
    plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 80, "figure.autolayout": True})


def _axes(ax: Axes | None, size: tuple[float, float] = (7, 3.5)) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=size)[1]


def _look(method: str) -> tuple[str, Any]:
    """Return colour and marker: of a composition its last part's, of a free label grey ones."""
    known = method.rpartition("+")[2]
    return COLORS.get(known, CHANCE), MARKERS.get(known, "|")


def power_law(
    points: Iterable[tuple[float, float]],
    law: Mapping[str, float],
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw what some work costs over its size, both on a logarithmic scale, with the fitted line.

    Args:
        points: (size, cost) pairs, both above 0.
        law: ``factor`` and ``exponent`` of cost = factor * size ** exponent, and the ``lowest`` and
            ``highest`` end of the exponent's interval.
        xlabel: What the size counts.
        ylabel: What the cost counts.
        ax: Where to draw.

    Returns:
        The axes.

    Source: ``benchmarks/images.py``.
    Lesson: 00_start_here, "What it costs".
    """
    ax = _axes(ax)
    x, y = np.array(sorted(points), float).T
    line = law["factor"] * x ** law["exponent"]
    ax.loglog(x, line, "-", color=GROUPS[0], label="fitted")
    ax.loglog(x, y, "o", color=GROUPS[1], alpha=0.7, label="measured")
    sizes = np.unique(x)
    ax.set_xticks(sizes, [f"{size:,g}" for size in sizes])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:,g}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    span = f"{law['lowest']:+.2f} to {law['highest']:+.2f}"
    title = f"exponent {law['exponent']:+.2f} ({span})"
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return ax


def sample_images(dataset: Dataset, per_class: int = 10, ax: Axes | None = None) -> Axes:
    """Show some training images of every class, one class a row.

    Args:
        dataset: The data.
        per_class: Images in a row.
        ax: Where to draw.

    Returns:
        The axes.

    Source: this project.
    Lesson: 00_start_here, "The data".
    """
    ax = _axes(ax, (6, 0.42 * len(dataset.classes) + 0.4))
    shape = dataset.train.images.shape[1:]
    side = shape[-1] + 1  # a line between the images
    picture = np.full((len(dataset.classes) * side, per_class * side, shape[0]), 255, np.uint8)
    for row in range(len(dataset.classes)):
        chosen = (dataset.train.labels == row).nonzero().flatten()[:per_class]
        images = dataset.train.images[chosen].cpu().permute(0, 2, 3, 1).numpy()
        for column, image in enumerate(images):
            top, left = row * side, column * side
            picture[top : top + side - 1, left : left + side - 1] = image
    ax.imshow(picture.squeeze(-1) if shape[0] == 1 else picture, cmap="gray", vmin=0, vmax=255)
    names = [literal(name) for name in dataset.classes]
    ax.set_yticks([side * (i + 0.5) for i in range(len(names))], names)
    title = f"{literal(dataset.name)}: {per_class} images of each class"
    ax.set(xticks=[], ylabel="class", title=title)
    ax.grid(False)
    return ax


def learning_curves(
    history: Sequence[Mapping[str, float]], keys: Mapping[str, str], ax: Axes | None = None
) -> Axes:
    """Draw accuracies over the epochs.

    Args:
        history: Rows with ``epoch`` and accuracies in [0, 1].
        keys: Column -> label in the legend.
        ax: Where to draw.

    Returns:
        The axes.

    Source: ``helpers.training.Fit.history``.
    Lesson: 01_baseline_training, "Train".
    """
    ax = _axes(ax)
    frame = pd.DataFrame(history)
    for i, (column, label) in enumerate(keys.items()):
        color = FORGET if "forget" in column else ORACLE
        ax.plot(frame["epoch"], frame[column], DASHES[i % 4], color=color, label=label)
    ax.set(xlabel="epoch", ylabel="accuracy", ylim=(-0.02, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend()
    return ax


def layer_sparsity(rows: Iterable[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw the share of zeros of every layer as bars.

    Args:
        rows: From :func:`helpers.pruning.layer_sparsity`, optionally with ``stage``.
        ax: Where to draw.

    Returns:
        The axes.

    Source: this project.
    Lesson: 02_pruning, "Sparsity of each layer".
    """
    frame = pd.DataFrame(rows)
    ax = _axes(ax, (7, 0.34 * frame["layer"].nunique() + 1.2))
    by_stage = "stage" in frame.columns
    palette = sns.color_palette(GROUPS, frame["stage"].nunique()) if by_stage else None
    sns.barplot(frame, x="sparsity", y="layer", hue="stage" if by_stage else None,
                palette=palette, color=None if by_stage else ORACLE, ax=ax)  # fmt: skip
    ax.set(xlim=(0, 1), xlabel="zeros among the weights", ylabel="")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    return ax


def ledger(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw what each stage of a ledger weighs and costs, as a share of the first one.

    Args:
        rows: From :func:`helpers.ledger.measure`; the first is the yardstick.
        ax: Where to draw.

    Returns:
        The axes.

    Source: this project.
    Lesson: 02_pruning, "The ledger".
    """
    names = {"parameters": "parameters", "macs": "multiply-\naccumulates", "file_bytes": "file",
             "latency_ms": "time of\na batch", "activations": "kept for\nbackward"}  # fmt: skip
    frame = pd.DataFrame([
        {"stage": row["stage"], "what": text, "share": row[key] / rows[0][key]}
        for row in rows for key, text in names.items()
    ])  # fmt: skip
    ax = _axes(ax, (8, 3.2))
    palette = sns.color_palette(GROUPS, frame["stage"].nunique())
    sns.barplot(frame, x="what", y="share", hue="stage", palette=palette, ax=ax)
    ax.axhline(1, color="black", lw=1, ls="--")
    ax.set(xlabel="", ylabel=f"share of “{rows[0]['stage']}”")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(title="", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax


def curves(
    table: pd.DataFrame, x: str, y: str, hue: str, *, labels: tuple[str, str],
    chance: float | None = None, log2: bool = False, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw one share against another, a line for each group, a band of ± one sd over repeats.

    Args:
        table: Tidy data with the columns x, y and hue.
        x: Column of the horizontal axis.
        y: Column of the vertical axis, a share in [0, 1]; shown in per cent.
        hue: Column of the groups.
        labels: Names of the axes, with units.
        chance: Draws the level of guessing, if given.
        log2: Whether the horizontal axis counts doublings.
        ax: Where to draw.

    Returns:
        The axes.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    ax = _axes(ax)
    names = list(dict.fromkeys(table[hue]))
    palette = dict(zip(names, sns.color_palette(GROUPS, len(names)), strict=True))
    palette |= {n: COLORS[n] for n in names if n in COLORS}
    sns.lineplot(table, x=x, y=y, hue=hue, style=hue, markers=True, errorbar="sd",
                 palette=palette, ax=ax)  # fmt: skip
    if chance is not None:
        ax.axhline(chance, color=CHANCE, ls=":", lw=1.2, label="guessing")
    if log2:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel=literal(labels[0]), ylabel=literal(labels[1]))
    ax.legend(title="")
    return ax


def roc(
    curves: Mapping[str, Sequence[Sequence[float]]], ax: Axes | None = None, *, log: bool = True
) -> Axes:
    """Draw how many hits an attack has at how many false alarms, a curve a method.

    Args:
        curves: Method -> (false positive rates, true positive rates), both ascending.
        ax: Where to draw.
        log: Whether the axes are logarithmic, from 0.1 % on, so that low rates can be seen.

    Returns:
        The axes, with the diagonal of chance.

    Source: the usual figure; logarithmic at low rates as in Carlini et al. 2021 (arXiv 2112.03570).
    Lesson: 05_evaluation, "Example by example".
    """
    ax = _axes(ax, (5.5, 4))
    low, high = (1e-3, 1.05) if log else (-0.02, 1.02)
    used = []
    for method, (false, true) in curves.items():
        first = max(int(np.searchsorted(false, low, side="right")) - 1, 0)  # the last at the edge
        x, y = (np.maximum(rates[first:], low) for rates in (false, true))
        color, marker = look = _look(method)
        ax.plot(x, y, DASHES[used.count(look) % 4], color=color, label=method, marker=marker,
                markevery=0.1, ms=6)  # fmt: skip
        used.append(look)
    ax.plot([max(low, 0), 1], [max(low, 0), 1], color=CHANCE, ls=":", lw=1.2, label="guessing")
    ax.set(xlabel="false positive rate", ylabel="true positive rate")
    if log:
        ax.set(xscale="log", yscale="log")
    else:
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlim=(low, 1 if log else high), ylim=(low, high))
    ax.legend(title="")
    return ax


def mark(ax: Axes, x: float, values: Sequence[float]) -> Axes:
    """Mark one position of a figure: a vertical line, and a ring around each value there. In place.

    Args:
        ax: The figure's axes.
        x: The position.
        values: What the curves are there.

    Returns:
        The axes.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    ax.axvline(x, color=COLORS["original"], lw=1, zorder=1)
    ax.plot([x] * len(values), values, "o", ms=11, mfc="none", mew=1.5, color=COLORS["original"])
    return ax


def filter_norms(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the norm of every filter, a row a layer: a dot where it stays, a cross where it goes.

    Where all that goes is weaker than all that stays, a short line stands at the cut.

    Args:
        table: One row a filter: ``layer``, ``norm`` and ``gone`` (bool).
        ax: Where to draw.

    Returns:
        The axes.

    Source: this project.
    Lesson: 02_pruning, "The idea".
    """
    names = list(dict.fromkeys(table["layer"]))
    ax = _axes(ax, (7, 0.26 * len(names) + 1.2))
    rows = table["layer"].map({name: row for row, name in enumerate(names)})
    for gone, marker, color, label in ((False, "o", ORACLE, "stays"), (True, "x", FORGET, "goes")):
        chosen = table["gone"] == gone
        ax.plot(table["norm"][chosen], rows[chosen], marker, color=color, ms=4, label=label)
    for row, name in enumerate(names):
        layer = table[table["layer"] == name]
        weak, strong = layer["norm"][layer["gone"]], layer["norm"][~layer["gone"]]
        if len(weak) and weak.max() <= strong.min():
            ax.plot([(weak.max() + strong.min()) / 2] * 2, [row - 0.4, row + 0.4], color="black")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="L2 norm of a filter", ylim=(len(names) - 0.4, -0.6))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return ax


def destinations(
    shares: Mapping[str, Sequence[float]], classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw which classes are predicted for the images of the forgotten one, a bar per method.

    Args:
        shares: Method -> (C,) shares that sum to 1, from :func:`helpers.outputs.label_histogram`.
        classes: Names of the classes.
        ax: Where to draw.

    Returns:
        The axes.

    Source: Unlearning Comparator.
    Lesson: 04_class_unlearning, "Where the forgotten class goes".
    """
    ax = _axes(ax, (8, 3.2))
    names = [literal(name) for name in classes]
    frame = pd.DataFrame(
        [(m, c, v) for m, row in shares.items() for c, v in zip(names, row, strict=True)],
        columns=["method", "class", "share"],
    )
    colors = {method: _look(method)[0] for method in shares}
    sns.barplot(frame, x="class", y="share", hue="method", palette=colors, ax=ax)
    _predicted(ax, classes)
    keys, used = ax.legend(title="").legend_handles, []
    for bars, key, color in zip(ax.containers, keys, colors.values(), strict=True):
        for bar in (*bars, key):
            bar.set(hatch=_hatch(used.count(color)), edgecolor="white")
        used.append(color)
    return ax


def _predicted(ax: Axes, classes: Sequence[str]) -> None:
    """Name the axes of shares of labels."""
    ax.set(xlabel="predicted class", ylabel="share of its test images", ylim=(0, 1))
    if max(map(len, classes)) > 4:  # names, not digits: side by side they would touch
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def comparison(
    table: pd.DataFrame, metrics: Sequence[str] = ("UA", "UA_test", "RA", "TA", "MIA", "Avg Gap")
) -> np.ndarray:
    """Draw the comparison table as a picture: one panel a metric, one line a method.

    Every seed is a small dot, the mean a marker; the band spans the retrained networks. A mean far
    from most would hide their differences: the panel ends before it, and it is written at the edge.
    Dots beyond the edges are left out.

    Args:
        table: From :func:`helpers.audit.compare`.
        metrics: Its columns to show.

    Returns:
        (len(metrics),) array of Axes.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    methods = list(dict.fromkeys(table["method"]))
    across = min(3, len(metrics))
    down = -(-len(metrics) // across)
    size = (3.1 * across, 0.24 * len(methods) * down + 0.9 * down)
    _, axes = plt.subplots(
        down, across, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, metric in zip(axes.flat, metrics, strict=False):
        values = {name: table.loc[table["method"] == name, metric].dropna() for name in methods}
        _panel(ax, values, band=metric != "Avg Gap")
        ax.set_yticks(range(len(methods)), methods)
        ax.set(title=COLUMNS[metric][0])
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    axes[0, 0].invert_yaxis()
    grey = {"color": CHANCE, "ls": ""}
    keys = [Line2D([], [], marker=".", label="a seed", **grey),
            Line2D([], [], marker="D", label="mean of the seeds", **grey),
            Line2D([], [], marker=r"$\leftarrow$", label="mean beyond the edge", **grey),
            Patch(color=ORACLE, alpha=0.25, label="range of the retrained seeds")]  # fmt: skip
    axes[0, 0].figure.legend(handles=keys, loc="outside upper center", ncols=4, frameon=False)
    for ax in axes.flat[len(metrics) :]:
        ax.remove()
    return axes.flatten()[: len(metrics)]


def _panel(ax: Axes, values: Mapping[str, pd.Series], band: bool) -> None:
    means = pd.Series({name: seeds.mean() for name, seeds in values.items()})
    low, high = _fences(means.drop("original", errors="ignore").dropna())
    if band and len(values.get("retrain", ())):
        oracle = values["retrain"]
        low, high = min(low, oracle.min()), max(high, oracle.max())
        ax.axvspan(oracle.min(), oracle.max(), color=ORACLE, alpha=0.25, lw=2)  # a line if equal
    shown = pd.concat([seeds for name, seeds in values.items() if low <= means[name] <= high])
    margin = max(0.12 * (shown.max() - shown.min()), 0.002)
    low, high = ax.set_xlim(shown.min() - margin, shown.max() + margin)
    for place, (name, seeds) in enumerate(values.items()):
        mean, (color, marker) = means[name], _look(name)
        seeds = seeds[seeds.between(low, high)]
        ax.plot(seeds, [place] * len(seeds), ".", color=color, alpha=0.5)
        if mean < low or mean > high:
            text = f"← {100 * mean:.1f}" if mean < low else f"{100 * mean:.1f} →"
            edge, side = (0.02, "left") if mean < low else (0.98, "right")
            ax.text(edge, place, text, transform=ax.get_yaxis_transform(), ha=side, va="baseline")
        else:
            ax.plot(mean, place, marker=marker, ls="", color=color)


def _fences(means: pd.Series) -> tuple[float, float]:
    """Return the limits beyond which a mean is far from most (Tukey's outer fences)."""
    if means.empty:
        return -np.inf, np.inf
    low, high = means.quantile([0.25, 0.75])
    reach = 3 * max(high - low, 0.005)
    return low - reach, high + reach


def literal(text: str) -> str:
    """Write a text so that figures can show it: two dollars would begin and end a formula.

    Args:
        text: Such as the name of a class.

    Returns:
        The text in one line that can be drawn, with its dollars escaped.

    Source: https://matplotlib.org/stable/users/explain/text/mathtext.html.
    Lesson: 01_baseline_training, "What the oracle answers instead".
    """
    return one_line(text).replace("$", r"\$")


def _scale(metric: Mapping[str, Any]) -> Callable[[float], float]:
    """Return what maps the band of a metric to [-1, 1]; a missing end is that of the oracles."""
    low, high = metric["band"]
    known = [v for v in (low, high, *metric["oracles"]) if v is not None] or [metric["value"]]
    low, high = min(known) if low is None else low, max(known) if high is None else high
    center, half = (low + high) / 2, (high - low) / 2

    def place(value: float) -> float:
        away = value - center
        if abs(away) <= half or abs(away) < 1e-12:
            return away / half if half > 0 else 0.0
        return away / half if half > 0 else float(np.copysign(np.inf, away))

    return place


def oracle_bands(
    metrics: Sequence[Mapping[str, Any]],
    ax: Axes | None = None,
    *,
    write: Callable[[str, float], str] = lambda name, value: f"{value:.3g}",
) -> Axes:
    """Draw where a network lies among networks that never saw the class, one row a metric.

    Every band is scaled to [-1, 1]; one without an end runs to the edge of the figure. A value
    that is more than six half-widths away is written at the edge.

    Args:
        metrics: Rows with ``title``, ``name``, ``value``, ``band`` (two ends, None for no bound),
            ``oracles``, ``original`` and ``inside``.
        ax: Where to draw.
        write: Metric's name and value -> how a value at the edge is written.

    Returns:
        The axes.

    Raises:
        InputError: If there are no metrics.

    Source: this project.
    Lesson: 05_evaluation, "The oracle band".
    """
    check("metrics", list(metrics), len(metrics) > 0, "at least one")
    ax = _axes(ax, (8, 0.3 * len(metrics) + 1.3))
    for row, metric in enumerate(metrics):
        place, (low, high) = _scale(metric), metric["band"]
        left = -2 * EDGE if low is None else place(low)
        right = 2 * EDGE if high is None else place(high)
        ax.barh(row, right - left, left=left, height=0.66, color=ORACLE, alpha=0.22,
                edgecolor=ORACLE, lw=1.5 if left == right else 0)  # fmt: skip
        oracles = [float(np.clip(place(v), -EDGE, EDGE)) for v in metric["oracles"]]
        ax.plot(oracles, [row] * len(oracles), ".", color=ORACLE, alpha=0.6, ms=5)
        color = ORACLE if metric["inside"] else FORGET
        drawn = np.clip([place(metric["value"]), place(metric["original"])], -EDGE, EDGE)
        shift = 0.2 if abs(drawn[0] - drawn[1]) < 0.6 else 0  # neither hides the other
        for value, marker, ink, up in (
            (metric["original"], "X", COLORS["original"], shift),
            (metric["value"], "D", color, -shift),
        ):
            text = literal(write(metric["name"], value))
            _mark(ax, place(value), row + up, marker, ink, text)
    ax.set_yticks(range(len(metrics)), [literal(m["title"]) for m in metrics])
    ax.set(xlim=(-EDGE - 2.2, EDGE + 2.2), ylim=(len(metrics) - 0.4, -0.6))
    ax.set_xticks(range(-6, 7, 2))
    ax.set_xlabel("half-widths of the oracles' band, from its middle")
    ax.grid(False, axis="y")
    _legend_of_bands(ax)
    return ax


def _mark(ax: Axes, x: float, y: float, marker: str, color: str, text: str) -> None:
    if abs(x) <= EDGE:
        ax.plot(x, y, marker, color=color, ms=7, markeredgecolor="white", markeredgewidth=0.7)
        return
    side = float(np.copysign(1, x))
    ax.plot(side * EDGE, y, marker, color=color, ms=6, markeredgecolor="white", markeredgewidth=0.7)
    ax.text(side * (EDGE + 0.25), y, f"{text} →" if side > 0 else f"← {text}", color=color,
            ha="left" if side > 0 else "right", va="center", size=7.5)  # fmt: skip


def _legend_of_bands(ax: Axes) -> None:
    looks = {"original": ("X", COLORS["original"]), "network, inside": ("D", ORACLE),
             "network, outside": ("D", FORGET), "oracles": (".", ORACLE)}  # fmt: skip
    handles = [Line2D([], [], marker=marker, color=ink, label=name, ls="", ms=7)
               for name, (marker, ink) in looks.items()]  # fmt: skip
    handles.append(Patch(facecolor=ORACLE, alpha=0.22, label="their band"))
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5,
              frameon=False, columnspacing=1.2, handletextpad=0.4)  # fmt: skip


def lie_detector(table: pd.DataFrame, ax: Axes | None = None, *, single: bool = False) -> Axes:
    """Draw which metric catches which method: blue inside the oracle band, vermillion outside.

    Args:
        table: One row a method and metric: ``method``, ``family``, ``metric``, ``title``,
            ``group``, ``inside`` (share of runs inside the band, in [0, 1], or NaN) and ``text``
            (the mean value, as it shall be read). Missing pairs are not measured.
        ax: Where to draw.
        single: Whether each row is one run and its own value; the key says so.

    Returns:
        The axes: methods down, metrics across.

    Raises:
        InputError: If a column is missing, a pair stands there twice, or a share is no share.

    Source: this project; the layout of Unlearning Comparator's matrices.
    Lesson: 05_evaluation, "The lie detector".
    """
    needed = ["method", "family", "metric", "title", "group", "inside", "text"]
    check("columns", list(table.columns), set(needed) <= set(table.columns), f"needs {needed}")
    pairs = table.duplicated(["method", "metric"]).sum() if len(table) else "no rows"
    check("table", f"{pairs} repeated", len(table) > 0 and pairs == 0, "one row a pair, at least 1")
    ok = bool((table["inside"].isna() | table["inside"].between(0, 1)).all())
    check("inside", table["inside"].tolist(), ok, "shares in [0, 1], or NaN")
    methods = table.drop_duplicates("method").set_index("method")["family"]
    metrics = table.drop_duplicates("metric").set_index("metric")
    groups = list(dict.fromkeys(metrics["group"]))
    metrics = metrics.loc[sorted(metrics.index, key=lambda m: groups.index(metrics["group"][m]))]
    rows = {(r.method, r.metric): r for r in table.itertuples()}
    ax = _axes(ax, (max(0.56 * len(metrics) + 3.2, 8), 0.3 * len(methods) + 2.6))
    colors = LinearSegmentedColormap.from_list("band", [FORGET, "#ffffff", ORACLE])
    picture = np.empty((len(methods), len(metrics), 3))
    for y, method in enumerate(methods.index):
        for x, metric in enumerate(metrics.index):
            cell = rows.get((method, metric))
            known = cell is not None and not pd.isna(cell.inside)
            picture[y, x] = colors(float(cell.inside))[:3] if known else to_rgb(UNKNOWN)
            text = "–" if cell is None else literal(str(cell.text))
            ax.text(x, y, text, ha="center", va="center", size=7, color=_ink(picture[y, x]))
    ax.imshow(picture, aspect="auto")
    _headings(ax, methods, metrics)
    keys = {"all runs inside the band": ORACLE, "half of them": "#ffffff", "none": FORGET,
            "nothing to decide": UNKNOWN, "number: the runs' mean": "none"}  # fmt: skip
    if single:
        keys = {"inside the band": ORACLE, "outside": FORGET, "nothing to decide": UNKNOWN,
                "number: of the seed": "none"}  # fmt: skip
    if not (picture == to_rgb(UNKNOWN)).all(2).any():
        keys.pop("nothing to decide")
    handles = [Patch(facecolor=c, edgecolor="none" if c == "none" else CHANCE, lw=0.6)
               for c in keys.values()]  # fmt: skip
    ax.legend(handles, list(keys), loc="lower left", ncols=5, frameon=False, fontsize=8,
              bbox_to_anchor=(0, 1, 1, 0.2), borderaxespad=2.2)  # fmt: skip
    return ax


def _ink(background: Sequence[float]) -> str:
    """Return black or white, whichever can be read better (WCAG 2.2, relative luminance)."""
    rgb = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], rgb))
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def _headings(ax: Axes, methods: pd.Series, metrics: pd.DataFrame) -> None:
    """Name rows and columns; draw a line where a family or a group begins."""
    ax.set_yticks(range(len(methods)), [literal(m) for m in methods.index], size=8)
    ax.set_xticks(range(len(metrics)), [literal(t) for t in metrics["title"]], size=8,
                  rotation=50, ha="right", rotation_mode="anchor")  # fmt: skip
    ax.grid(False)
    ax.set_xticks(np.arange(len(metrics) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(methods) + 1) - 0.5, minor=True)
    ax.grid(True, which="minor", color="white", lw=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    for start, name in _starts(metrics["group"]):
        ax.axvline(start - 0.5, color="black", lw=1.2 if start else 0)
        ax.text(start - 0.45, -0.62, literal(name), size=8, weight="bold", ha="left")
    for start, name in _starts(methods):
        ax.axhline(start - 0.5, color="black", lw=1.2 if start else 0)
        ax.text(len(metrics) - 0.4, start, literal(name), size=8, weight="bold", va="center")


def _starts(names: pd.Series) -> list[tuple[int, str]]:
    listed = list(names)
    return [(i, n) for i, n in enumerate(listed) if i == 0 or n != listed[i - 1]]


# ------------------------------------------------------------------------------------------------
# the grid of the explorer: what stands still, and what marks the chosen point on it


def _away_color(away: float) -> np.ndarray:
    """Blue inside the band, deepest at its centre; vermillion outside, deepest at ``EDGE``."""
    inside = grid.inside(away)
    depth = 1 - away if inside else (away - 1) / (EDGE - 1)
    ink = np.array(to_rgb(ORACLE if inside else FORGET))
    return 1 - (1 - ink) * (TINT + (1 - TINT) * np.clip(depth, 0, 1))


def mark_and_memory(table: pd.DataFrame) -> list[Axes]:
    """Draw in two steps what a method does: without having seen the class, and what that adds.

    Args:
        table: From :func:`helpers.study.marks`.

    Returns:
        The axes, one a metric.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    metrics, methods = ([*dict.fromkeys(table[name])] for name in ("metric", "method"))
    size = (2.2 * len(metrics) + 1.4, 0.55 * len(methods) + 1.5)
    figure, axes = plt.subplots(1, len(metrics), sharey=True, figsize=size, squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        view = table[table["metric"] == metric].set_index("method")
        ax.axvline(view["retrained"].iloc[0], color=ORACLE, linewidth=1.5)
        for place, method in enumerate(methods):
            row = view.loc[method]
            steps = (("retrained", "never", CHANCE, -0.15), ("never", "original", FORGET, 0.15))
            for start, end, color, up in steps:  # beside each other: one may lead back
                ax.annotate("", (row[end], place + up), (row[start], place + up),
                            arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2.2,
                                        "shrinkA": 0, "shrinkB": 0})  # fmt: skip
            ax.plot(row[["retrained", "never", "original"]], [place] * 3, " ")  # sets the limits
        known = audit.METRICS[metric]
        ax.set(title=known.title, yticks=range(len(methods)), ylim=(len(methods) - 0.5, -0.5))
        ax.set_yticklabels(methods)
        ax.margins(x=0.15)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        if known.unit == "%":
            ax.xaxis.set_major_formatter(PercentFormatter(1))
    keys = (("retrained networks", ORACLE), ("the method's mark", CHANCE),
            ("what having seen the class adds", FORGET))  # fmt: skip
    handles = [Line2D([], [], color=color, linewidth=2, label=label) for label, color in keys]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False)
    figure.set_layout_engine("tight", rect=(0, 0.12, 1, 1))
    return list(axes[0])


def surface(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw one metric over rank and sparsity, coloured by the distance to the oracles.

    Args:
        table: One row a point: ``rank`` and ``sparsity`` (missing where the method has none),
            ``away`` (in half-widths of the oracles' band; NaN, and its cell grey, where that is
            not known or decides nothing), ``text`` (the value, as it shall be read), ``front``
            (whether it is on the Pareto front).
        ax: Where to draw.

    Returns:
        The axes: ranks up, sparsities across; blue is inside the band, vermillion outside. A star
        marks the Pareto front.

    Source: this project.
    Lesson: 06_explorer, "The stored grid".
    """
    check("table", f"{len(table)} rows", len(table) > 0, "at least one point")
    ax = _axes(ax, (5, 3.4))
    ranks, sparsities = _surface_axes(table)
    picture = np.tile(to_rgb(UNKNOWN), (len(ranks), len(sparsities), 1))
    for row in table.itertuples():
        y, x = _cell(table, row.rank, row.sparsity)
        if not pd.isna(row.away):
            picture[y, x] = _away_color(row.away)
        text = f"★ {row.text}" if row.front else row.text
        ax.text(x, y, literal(text), ha="center", va="center", size=9, color=_ink(picture[y, x]))
    ax.imshow(picture, aspect="auto", origin="lower")
    ax.set_xticks(range(len(sparsities)), ["none" if s is None else f"{s:.0%}" for s in sparsities])
    ax.set_yticks(range(len(ranks)), ["none" if r is None else f"{r:g}" for r in ranks])
    ax.set(xlabel="sparsity", ylabel="rank")
    ax.grid(False)
    return ax


def _surface_axes(table: pd.DataFrame) -> tuple[list[float | None], list[float | None]]:
    """Return a surface's ranks and sparsities, ascending; ``[None]`` where it has no such axis."""
    known = (sorted(table[axis].dropna().unique()) for axis in ("rank", "sparsity"))
    ranks, sparsities = (list(values) or [None] for values in known)
    return ranks, sparsities


def _cell(table: pd.DataFrame, rank: float | None, sparsity: float | None) -> tuple[int, int]:
    ranks, sparsities = _surface_axes(table)
    return (0 if pd.isna(rank) else ranks.index(rank),
            0 if pd.isna(sparsity) else sparsities.index(sparsity))  # fmt: skip


def mark_surface(
    ax: Axes, table: pd.DataFrame, rank: float | None, sparsity: float | None
) -> list[Artist]:
    """Draw a frame around the chosen cell of a surface.

    Args:
        ax: From :func:`surface`.
        table: The same.
        rank: Of the chosen point.
        sparsity: Of the chosen point.

    Returns:
        What was added; empty if the grid has no such cell.

    Source: this project.
    Lesson: 06_explorer, "The stored grid".
    """
    ranks, sparsities = _surface_axes(table)
    if rank not in [*ranks, None] or sparsity not in [*sparsities, None]:
        return []
    y, x = _cell(table, rank, sparsity)
    frames = [Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, ec=ink, lw=width)
              for ink, width in (("white", 5), ("black", 2.5))]  # fmt: skip
    return [ax.add_patch(frame) for frame in frames]


def tradeoff(
    table: pd.DataFrame, cost: str, distance: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw cost against distance to the oracles, a marker a point, and the Pareto front.

    Args:
        table: From :meth:`helpers.grid.Grid.tradeoff`.
        cost: What the horizontal axis is, with its unit.
        distance: Whether it is a distance to the oracles, too.
        ax: Where to draw.

    Returns:
        The axes. What is further away than ``EDGE`` stands at the last tick, "≥ 6".

    Source: this project.
    Lesson: 06_explorer, "The stored grid".
    """
    ax = _axes(ax, (5, 3.4))
    ax.axhspan(-0.3, 1, color=ORACLE, alpha=0.15, lw=0)
    if distance:
        ax.axvspan(-0.3, 1, color=ORACLE, alpha=0.15, lw=0)
    front = table[table["front"]].sort_values("cost")
    ax.plot(front["cost"], _at_edge(front["away"]), "s-", color=CHANCE, lw=1.5, mfc="none", ms=11,
            label="Pareto front", zorder=1)  # fmt: skip
    for method, part in table.groupby("method", sort=False):
        color, marker = _look(method)
        edge = {"mec": "white", "mew": 0.5} if MarkerStyle(marker).is_filled() else {}
        ax.plot(part["cost"], _at_edge(part["away"]), marker=marker, ls="", color=color,
                label=method, ms=7, alpha=0.85, **edge)  # fmt: skip
    ax.set(xlabel=literal(cost), ylabel="distance to the oracles (half-widths)")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    for axis, column in (("y", "away"), ("x", "cost"))[: 1 + distance]:
        top = int(np.clip(np.ceil(table[column].max() if len(table) else 2), 2, EDGE))
        last = f"≥ {top}" if top == EDGE else str(top)
        ax.set(**{f"{axis}lim": (-0.3, top + 0.3), f"{axis}ticks": range(top + 1),
                  f"{axis}ticklabels": [*map(str, range(top)), last]})  # fmt: skip
    ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=3, frameon=False, fontsize=8,
              handletextpad=0.2, columnspacing=0.9)  # fmt: skip
    return ax


def _at_edge(away: Any) -> Any:
    return np.clip(away, 0, EDGE)


def mark_tradeoff(ax: Axes, cost: float, away: float, live: bool = False) -> list[Artist]:
    """Draw a ring around the chosen point, or a cross where it lies when it is trained now.

    Args:
        ax: From :func:`tradeoff`.
        cost: Of the point, in the unit of the axis.
        away: In half-widths of the oracles' band.
        live: Whether it was trained now.

    Returns:
        What was added; what lies outside the axes stands at their edge.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """
    looks = [{"marker": "o", "ms": 13, "mfc": "none", "mec": "black", "mew": 2}]
    if live:  # the colours are those of the methods
        looks = [{"marker": "x", "ms": size, "mec": ink, "mew": width, "clip_on": False}
                 for size, ink, width in ((12, "white", 5), (10, "black", 2.5))]  # fmt: skip
    x, y = np.clip(cost, *ax.get_xlim()), np.clip(_at_edge(away), *ax.get_ylim())
    still = {"scalex": False, "scaley": False, "zorder": 5}
    return [line for look in looks for line in ax.plot(x, y, **still, **look)]


def label_shares(classes: Sequence[str], ax: Axes | None = None, oracles: str = "oracles") -> Axes:
    """Prepare the axes for the shares of labels that the images of one class get.

    Args:
        classes: Names of the classes.
        ax: Where to draw.
        oracles: What the key calls those that never saw the class; ``one oracle`` where it is one.

    Returns:
        The axes, without bars.

    Source: Unlearning Comparator.
    Lesson: 06_explorer, "The stored grid".
    """
    ax = _axes(ax, (5, 3.4))
    ax.set_xticks(range(len(classes)), [literal(c) for c in classes])
    ax.set_xlim(-0.6, len(classes) - 0.4)
    _predicted(ax, classes)
    ax.grid(False, axis="x")
    names = {"stored": STORED, "live": LIVE, oracles: ORACLE}
    handles = [Patch(facecolor=ink, label=name, hatch=HATCHES[name == "live"], edgecolor="white")
               for name, ink in names.items()]  # fmt: skip
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False,
              fontsize=8)  # fmt: skip
    return ax


def mark_shares(ax: Axes, shares: Mapping[str, Sequence[float]]) -> list[Artist]:
    """Draw bars of labels side by side.

    Args:
        ax: From :func:`label_shares`.
        shares: ``stored``, ``live``, ``oracles`` or ``one oracle`` -> (C,) shares that sum to 1.

    Returns:
        What was added.

    Source: Unlearning Comparator.
    Lesson: 06_explorer, "The stored grid".
    """
    colors = {"stored": STORED, "live": LIVE, "oracles": ORACLE, "one oracle": ORACLE}
    width, found = 0.8 / max(1, len(shares)), []
    for place, (name, row) in enumerate(shares.items()):
        left = np.arange(len(row)) - 0.4 + (place + 0.5) * width
        found += ax.bar(left, row, width, color=colors[name], hatch=HATCHES[name == "live"],
                        edgecolor="white")  # fmt: skip
    return found
