"""Figures: tidy data in, axes out; nothing is trained or computed here that a reader must trust.

Every method has one colour in the whole series, from a palette that colour-blind readers can tell
apart (Okabe & Ito), and a marker of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.report import COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from helpers.data import Dataset

COLORS = {
    "original": "#000000",
    "retrain": "#0072B2",
    "finetune": "#E69F00",
    "prune_finetune": "#CC79A7",
    "lora": "#56B4E9",
    "prunelora": "#D55E00",
    "prunelora_channels": "#009E73",
}
MARKERS = dict(zip(COLORS, "Xso^vDP", strict=True))
ORACLE, FORGET, CHANCE = COLORS["retrain"], "#D55E00", "#767676"


def style() -> None:
    """Set the look of all figures: seaborn's white grid, sizes that fit a notebook.

    Source: this project.
    Lesson: 00_start_here, "The data".
    """
    sns.set_theme("notebook", "whitegrid", font_scale=0.9)
    plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 80, "figure.autolayout": True})


def _axes(ax: Axes | None, size: tuple[float, float] = (7, 3.5)) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=size)[1]


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
    ax.set_yticks([side * (i + 0.5) for i in range(len(dataset.classes))], dataset.classes)
    ax.set(xticks=[], ylabel="class", title=f"{dataset.name}: {per_class} images of each class")
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
    dashes = ["-", "--", ":", "-."]
    for i, (column, label) in enumerate(keys.items()):
        color = FORGET if "forget" in column else ORACLE
        ax.plot(frame["epoch"], frame[column], dashes[i % 4], color=color, label=label)
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
    palette = sns.color_palette("colorblind", frame["stage"].nunique()) if by_stage else None
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
    palette = sns.color_palette("colorblind", frame["stage"].nunique())
    sns.barplot(frame, x="what", y="share", hue="stage", palette=palette, ax=ax)
    ax.axhline(1, color="black", lw=1, ls="--")
    ax.set(xlabel="", ylabel=f"share of “{rows[0]['stage']}”")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(title="", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax


def curves(
    table: pd.DataFrame, x: str, y: str, hue: str, *, labels: tuple[str, str],
    chance: float | None = None, log2: bool = False, percent: bool = True, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw one quantity against another, a line for each group, a band of ± one sd over repeats.

    Args:
        table: Tidy data with the columns x, y and hue.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        hue: Column of the groups.
        labels: Names of the axes, with units.
        chance: Draws the level of guessing, if given.
        log2: Whether the horizontal axis counts doublings.
        percent: Whether y is a share in [0, 1], shown in per cent.
        ax: Where to draw.

    Returns:
        The axes.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    ax = _axes(ax)
    names = list(dict.fromkeys(table[hue]))
    palette = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    palette |= {n: COLORS[n] for n in names if n in COLORS}
    sns.lineplot(table, x=x, y=y, hue=hue, style=hue, markers=True, errorbar="sd",
                 palette=palette, ax=ax)  # fmt: skip
    if chance is not None:
        ax.axhline(chance, color=CHANCE, ls=":", lw=1.2, label="chance")
    if log2:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend(title="")
    return ax


def destinations(
    shares: Mapping[str, Sequence[float]], classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw which classes are predicted for the images of the forgotten one, a bar per method.

    Args:
        shares: Method -> (C,) shares that sum to 1, from :func:`helpers.audit.label_histogram`.
        classes: Names of the classes.
        ax: Where to draw.

    Returns:
        The axes.

    Source: Unlearning Comparator.
    Lesson: 04_class_unlearning, "Where the forgotten class goes".
    """
    ax = _axes(ax, (8, 3.2))
    frame = pd.DataFrame(
        [(m, c, v) for m, row in shares.items() for c, v in zip(classes, row, strict=True)],
        columns=["method", "class", "share"],
    )
    sns.barplot(frame, x="class", y="share", hue="method",
                palette={m: COLORS[m] for m in shares}, ax=ax)  # fmt: skip
    ax.set(xlabel="predicted class", ylabel="share of its test images", ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(title="")
    return ax


def loss_histogram(losses: Mapping[str, Sequence[float]], ax: Axes | None = None) -> Axes:
    """Draw the distribution of losses of several groups of images, on a logarithmic axis.

    Args:
        losses: Group -> cross-entropies in nats; the forget set's name starts with "forget".
        ax: Where to draw.

    Returns:
        The axes.

    Source: the idea behind loss-based membership attacks (Yeom et al. 2018).
    Lesson: 05_evaluation, "The membership attack".
    """
    ax = _axes(ax)
    names = list(losses)
    others = iter([ORACLE, "#009E73", CHANCE])
    palette = {n: FORGET if n.startswith("forget") else next(others) for n in names}
    frame = pd.DataFrame(
        [(n, max(float(v), 1e-9)) for n in names for v in losses[n]], columns=["images", "loss"]
    )
    sns.histplot(frame, x="loss", hue="images", stat="probability", common_norm=False, bins=40,
                 log_scale=True, element="step", alpha=0.2, palette=palette, ax=ax)  # fmt: skip
    ax.set(xlabel="cross-entropy of an image (nats)", ylabel="share of the group")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return ax


def comparison(
    table: pd.DataFrame, metrics: Sequence[str] = ("UA", "UA_test", "RA", "TA", "MIA", "Avg Gap")
) -> np.ndarray:
    """Draw the comparison table as a picture: one panel a metric, one line a method.

    Every seed is a small dot, the mean a marker; the band spans the retrained networks. Where the
    original is far from all others it would hide their differences: it is then written at the edge.

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
    size = (3.1 * across, 0.36 * len(methods) * down + 0.9 * down)
    _, grid = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False)
    for ax, metric in zip(grid.flat, metrics, strict=False):
        values = {name: table.loc[table["method"] == name, metric].dropna() for name in methods}
        _panel(ax, values, band=metric != "Avg Gap")
        ax.set_yticks(range(len(methods)), methods)
        ax.set(title=COLUMNS[metric][0])
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    grid[0, 0].invert_yaxis()
    for ax in grid.flat[len(metrics) :]:
        ax.remove()
    return grid.flatten()[: len(metrics)]


def _panel(ax: Axes, values: Mapping[str, pd.Series], band: bool) -> None:
    others = pd.concat([v for name, v in values.items() if name != "original"])
    low, high = others.min(), others.max()
    margin = max(0.12 * (high - low), 0.002)
    if band and len(values.get("retrain", ())):
        oracle = values["retrain"]
        ax.axvspan(oracle.min(), oracle.max(), color=ORACLE, alpha=0.25, lw=2)  # a line if equal
    for place, (name, seeds) in enumerate(values.items()):
        mean = seeds.mean()
        away = mean < low - 4 * (high - low + margin) or mean > high + 4 * (high - low + margin)
        if name == "original" and away:
            left = mean < low
            text = f"◂ {100 * mean:.1f}" if left else f"{100 * mean:.1f} ▸"
            edge, side = (0.02, "left") if left else (0.98, "right")
            ax.text(edge, place, text, transform=ax.get_yaxis_transform(), ha=side, va="center")
            continue
        ax.plot(seeds, [place] * len(seeds), ".", color=COLORS[name], alpha=0.5)
        ax.plot(mean, place, MARKERS[name], color=COLORS[name])
        low, high = min(low, seeds.min()), max(high, seeds.max())
    ax.set_xlim(low - margin, high + margin)
