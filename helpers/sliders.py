"""The sliders of the lessons: every position is computed once, moving one only draws.

Each function returns a :class:`View`: a table of all that can be drawn, and a panel whose figure,
numbers and line of text are made from the row of that table where the slider stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ipywidgets import Widget
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from helpers import (
    attacks,
    frozen,
    ledger,
    models,
    outputs,
    panels,
    plots,
    pruning,
    report,
    runs,
    unlearning,
)
from helpers.config import RunConfig, check, choose
from helpers.data import ClassSplit, Dataset
from helpers.panels import percent
from helpers.training import predict, recalibrate_batchnorm

SPARSITIES = tuple(round(0.1 * i, 1) for i in range(10))
ALL = "all together"  # the row of a table that sums up its layers
STEPS = 20  # between thresholds, each with equally many scores


class View(panels.Panel):
    """The slider of one lesson.

    Attributes:
        table: All that can be drawn, one row a position (or a position and a layer or epoch).
        detail: What the table sums up, where it is drawn too: filters, points of a curve.
        figure: Position, by name -> the figure there, still open; beside the panel it serves
            readers of a page that cannot run it.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """

    def __init__(
        self,
        inputs: Mapping[str, Widget],
        table: pd.DataFrame,
        figure: Callable[..., Figure],
        numbers: Callable[..., pd.DataFrame],
        says: Callable[..., str],
        shows: str,
        detail: pd.DataFrame | None = None,
    ) -> None:
        """Build the panel; ``shows`` describes the figure, ``says`` what it shows at a position."""
        self.table, self.detail, self.figure = table, detail, figure

        def draw(**position: Any) -> tuple[str, str, str]:
            text = says(**position)
            drawn = panels.picture(figure(**position), f"{shows} {text}")
            return drawn, panels.table(numbers(**position)), text

        super().__init__(inputs, draw)


def sparsity(
    model: nn.Module,
    dataset: Dataset,
    split: ClassSplit,
    kind: str = "mask_structured",
    values: Iterable[float] = SPARSITIES,
) -> View:
    """Show which filters go at a sparsity, what is left of the accuracy, and what is saved.

    Args:
        model: The network before.
        dataset: Its data.
        split: BatchNorm is measured again on ``retain``, accuracy on ``validation_retain``.
        kind: ``mask_structured`` or ``channels``.
        values: Sparsities, ascending, in [0, 1).

    Returns:
        The view, with a slider ``sparsity``. Its table has a row a sparsity ``asked`` for: the
        accuracies and the ledger. Its detail has a row a filter: layer, filter, norm, gone.

    Raises:
        InputError: If the kind is another one, there is no sparsity or one that is not allowed, or
            they do not ascend.

    Source: arXiv 2411.11907, section 3; :func:`helpers.pruning.prune`.
    Lesson: 02_pruning, "How much can go".
    """
    choose("kind", kind, ("mask_structured", "channels"))
    values = list(values)
    ok = bool(values) and values == sorted({*values})  # the first is what others stand beside
    check("values", values, ok, "at least one sparsity, each once, ascending")
    names, part, rows, filters = models.layers(model).prunable, split.validation_retain, [], []
    norms = {n: model.get_submodule(n).weight.detach().flatten(1).norm(dim=1).cpu() for n in names}
    for share in values:
        pruned = pruning.prune(model, share, kind, measured=False)
        row = {"asked": share, "old statistics": _accuracy(pruned.model, part, dataset)}
        recalibrate_batchnorm(pruned.model, split.retain, dataset)
        row["measured again"] = _accuracy(pruned.model, part, dataset)
        counted = ledger.measure(pruned.model, f"{percent(share)} pruned", names)
        rows.append(row | counted | {"channels": sum(counted["channels"].values())})
        for name, strength in norms.items():
            gone = _gone(pruned, name, len(strength))
            filters += [
                (share, name, i, float(strength[i]), bool(gone[i])) for i in range(len(gone))
            ]
    table = pd.DataFrame(rows)
    detail = pd.DataFrame(filters, columns=["asked", "layer", "filter", "norm", "gone"])
    return _sparsity_view(table, detail, chance=1 / len(dataset.classes))


def _accuracy(model: nn.Module, part: Any, dataset: Dataset) -> float:
    return outputs.accuracy(predict(model, part, dataset), part.labels)


def _gone(pruned: pruning.Pruned, name: str, count: int) -> Tensor:
    """Say which output channels of a layer a pruned network no longer has."""
    if name in pruned.masks:
        return ~pruned.masks[name].flatten(1).any(1).cpu()
    kept = pruned.kept.get(f"{name}.weight", (None,))[0]
    gone = torch.full((count,), kept is not None)
    if kept is not None:
        gone[kept] = False
    return gone


_WAYS = ("old statistics", "measured again")
_COUNTS = ["zeros", "channels", "parameters", "MACs (M)", "file (kB)"]


def _sparsity_view(table: pd.DataFrame, detail: pd.DataFrame, chance: float) -> View:
    rows, values = table.set_index("asked"), table["asked"].tolist()
    long = table.melt("asked", _WAYS, "BatchNorm", "accuracy")
    layers = detail["layer"].nunique()

    def figure(sparsity: float) -> Figure:
        drawn, (left, right) = plt.subplots(1, 2, figsize=(10, max(3.4, 0.26 * layers + 1.2)))
        plots.filter_norms(detail[detail["asked"] == sparsity], left)
        labels = ("sparsity", "validation accuracy")
        plots.curves(long, "asked", "accuracy", "BatchNorm", labels=labels, chance=chance, ax=right)
        right.xaxis.set_major_formatter(PercentFormatter(1))
        right.set_ylim(-0.02, 1.02)
        plots.mark(right, sparsity, rows.loc[sparsity, list(_WAYS)].tolist())
        return drawn

    def numbers(sparsity: float) -> pd.DataFrame:
        chosen = table[table["asked"].isin([values[0], sparsity])]
        shown = report.ledger_table(
            row | {"channels": {ALL: row["channels"]}} for row in chosen.to_dict("records")
        )[_COUNTS]
        for place, way in enumerate(_WAYS):
            shown.insert(place, f"accuracy, {way}", [f"{a:.1%}" for a in chosen[way]])
        return shown

    def says(sparsity: float) -> str:
        row, here = rows.loc[sparsity], detail[detail["asked"] == sparsity]
        return (
            f"At {percent(sparsity)}, {here['gone'].sum()} of {len(here)} filters go; accuracy on "
            f"the other classes: {row['old statistics']:.1%} with BatchNorm's old statistics, "
            f"{row['measured again']:.1%} with statistics measured again."
        )

    start = min(values, key=lambda v: abs(v - 0.5))
    inputs = {"sparsity": panels.slider("Sparsity", values, start, percent)}
    shows = "The norms of all filters, those that go crossed out; accuracy against sparsity."
    return View(inputs, table, figure, numbers, says, shows, detail)


def rank(changes: Mapping[str, Tensor]) -> View:
    """Show how much of a weight change adapters of a rank can express, and what they cost.

    Args:
        changes: Layer -> (out, in, ...) float32, weight after minus weight before.

    Returns:
        The view, with a slider ``rank`` from 1 to what the smallest layer admits. Its table has a
        row a rank and layer: parameters of the adapter, weights of the layer, share of the squared
        length kept, relative error; and one for all layers together.

    Raises:
        InputError: If there is no change, or one that is zero, not finite or no weight of a layer.

    Source: Eckart & Young 1936; the parameters as in Hu et al. 2021 (arXiv 2106.09685).
    Lesson: 03_lora_adaptation, "Rank".
    """
    ok = bool(changes) and ALL not in changes
    check("changes", list(changes), ok, f"at least one layer, and none called {ALL!r}")
    energy = {name: _energy(f"change of {name}", change) for name, change in changes.items()}
    rows, total = [], sum(float(e.sum()) for e in energy.values())
    for r in range(1, min(len(e) for e in energy.values()) + 1):
        for name, change in changes.items():
            out, *inner = change.shape
            kept = float(energy[name][:r].sum())
            whole = float(energy[name].sum())
            rows.append((r, name, r * (math.prod(inner) + out), change.numel(), kept, whole))
        layers = rows[-len(changes) :]
        sums = [sum(column) for column in list(zip(*layers, strict=True))[2:5]]
        rows.append((r, ALL, *sums, total))
    columns = ["rank", "layer", "parameters", "weights", "kept", "whole"]
    table = pd.DataFrame(rows, columns=columns)
    table["kept"] = (table["kept"] / table.pop("whole")).clip(upper=1.0)
    table["error"] = (1 - table["kept"]).clip(lower=0.0) ** 0.5
    return _rank_view(table)


def _energy(field: str, change: Tensor) -> Tensor:
    """Return the squared singular values of a weight change."""
    shape = tuple(change.shape)
    check(field, shape, len(shape) > 1 and change.numel() > 0, "(out, in, ...), of a layer")
    check(field, "nan or inf", bool(change.isfinite().all()), "every number must be finite")
    energy = torch.linalg.svdvals(change.detach().flatten(1).cpu().double()).square()
    check(field, 0.0, bool(energy.sum() > 0), "a change that is not zero")
    return energy


def _rank_view(table: pd.DataFrame) -> View:
    together = table[table["layer"] == ALL].set_index("rank")
    layers = {name: rows for name, rows in table.groupby("layer", sort=False) if name != ALL}
    costs = together["parameters"] / together["weights"]
    top = max(1.02, 1.02 * costs.max())

    def figure(rank: int) -> Figure:
        height = max(3.2, 0.24 * len(layers) + 1.2)
        drawn, (left, right) = plt.subplots(1, 2, figsize=(10, height))
        for place, rows in enumerate(layers.values()):
            left.plot(rows["rank"], rows["error"], color=plots.CHANCE, lw=1,
                      label=None if place else "each layer")  # fmt: skip
        left.plot(together.index, together["error"], color=plots.ORACLE, lw=2, label=ALL)
        left.plot(together.index, costs, "--", color=plots.FORGET, label="parameters / weights")
        plots.mark(left, rank, [together["error"][rank], costs[rank]])
        left.set(xlabel="rank", ylabel="relative error of ΔW, and cost", ylim=(-0.02, top))
        left.legend(fontsize=8)
        kept = [rows.set_index("rank")["kept"][rank] for rows in layers.values()]
        right.barh(list(layers), kept, color=plots.ORACLE)
        right.set(xlim=(0, 1), xlabel=f"share of ‖ΔW‖² that rank {rank} can express")
        right.invert_yaxis()
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (left.yaxis, right.xaxis):
            axis.set_major_formatter(PercentFormatter(1))
        return drawn

    def numbers(rank: int) -> pd.DataFrame:
        here = table[table["rank"] == rank].set_index("layer")
        return pd.DataFrame({
            "adapter": here["parameters"].map("{:,}".format),
            "weights": here["weights"].map("{:,}".format),
            "adapter / weights": (here["parameters"] / here["weights"]).map("{:.1%}".format),
            "relative error": here["error"].map("{:.1%}".format),
            "share kept": here["kept"].map("{:.1%}".format),
        })  # fmt: skip

    def says(rank: int) -> str:
        row = together.loc[rank]
        return (
            f"Rank {rank}: {row['parameters']:,.0f} parameters beside {row['weights']:,.0f} "
            f"weights ({costs[rank]:.1%}); relative error "
            f"{row['error']:.1%}, share of the squared length kept {row['kept']:.1%}."
        )

    ranks = together.index.tolist()
    inputs = {"rank": panels.slider("Rank", ranks, ranks[min(7, len(ranks) - 1)])}
    shows = "Relative error and cost of the best approximation against rank; share kept by layer."
    return View(inputs, table, figure, numbers, says, shows)


def both(
    cfg: RunConfig,
    dataset: Dataset,
    ranks: Sequence[int] = (1, 4, 16),
    sparsities: Sequence[float] = (0.0, 0.5, 0.75),
    rival: str = "finetune",
    progress: bool = True,
) -> View:
    """Show how a class is forgotten at a rank and a sparsity, beside a method that has neither.

    All combinations are trained now, or read back if they were trained before.

    Args:
        cfg: Everything else; its method is the one with rank and sparsity.
        dataset: The data.
        ranks: Ascending.
        sparsities: Ascending.
        rival: The other method.
        progress: Whether to show bars.

    Returns:
        The view, with sliders ``rank`` and ``sparsity``. Its table has a row a run and epoch:
        method, rank, sparsity (both empty for the rival), epoch, validation accuracies ``forget``
        and ``retain``, trainable parameters and zeros (a share) of the network.

    Raises:
        InputError: If the method has no rank and sparsity, there is no combination or one that
            cannot be run, or the values do not ascend; nothing is trained before all are checked.

    Source: arXiv 2411.11907; :func:`helpers.runs.run`.
    Lesson: 04_class_unlearning, "How it goes".
    """
    chosen = unlearning.method(cfg.method)
    ok = chosen.adapt == "lora" and chosen.prune != "none" and cfg.method != rival
    check("method", cfg.method, ok, "one that prunes and adapts, such as prunelora")
    for field, values in (("ranks", ranks), ("sparsities", sparsities)):
        ok = bool(values) and list(values) == sorted({*values})
        check(field, list(values), ok, "at least one, each once, ascending")
    grid = [cfg.but(rank=r, sparsity=s) for r in ranks for s in sparsities]
    for one in (wanted := [cfg.but(method=rival), *grid]):
        unlearning.validate(one, dataset)
    cache, rows = frozen.Cache(cfg.cache_mb * 1_000_000), []
    for one in wanted:
        run = runs.run(one, dataset, progress, cache)
        mine = one.method != rival
        about = {"method": one.method, "rank": one.rank if mine else None,
                 "sparsity": one.sparsity if mine else None}  # fmt: skip
        counts = {"trainable": run.record["trainable"], "zeros": run.record["sparsity"]}
        epochs = ({k: row[k] for k in ("epoch", *_PARTS)} for row in (run.start, *run.history))
        rows += [about | epoch | counts for epoch in epochs]
    table = pd.DataFrame(rows)
    return _both_view(table, list(ranks), list(sparsities), rival, 1 / len(dataset.classes))


_PARTS = {"forget": "the forgotten class", "retain": "the other classes"}


def _both_view(
    table: pd.DataFrame, ranks: list[int], sparsities: list[float], rival: str, chance: float
) -> View:
    def chosen(rank: int, sparsity: float) -> pd.DataFrame:
        here = (table["rank"] == rank) & (table["sparsity"] == sparsity)
        return table[here | (table["method"] == rival)]

    def last(rank: int, sparsity: float) -> pd.DataFrame:
        return chosen(rank, sparsity).groupby("method", sort=False).last()

    def figure(rank: int, sparsity: float) -> Figure:
        drawn, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
        labels = ("epoch of unlearning", "validation accuracy")
        for ax, (part, title) in zip(axes, _PARTS.items(), strict=True):
            plots.curves(chosen(rank, sparsity), "epoch", part, "method", labels=labels,
                         chance=chance, ax=ax)  # fmt: skip
            ax.set(title=title, ylim=(-0.02, 1.02))
        return drawn

    def numbers(rank: int, sparsity: float) -> pd.DataFrame:
        here = last(rank, sparsity)
        return pd.DataFrame({
            **{title: here[part].map("{:.1%}".format) for part, title in _PARTS.items()},
            "trainable parameters": here["trainable"].map("{:,}".format),
            "zeros": here["zeros"].map("{:.1%}".format),
        })  # fmt: skip

    def says(rank: int, sparsity: float) -> str:
        ends = ", ".join(
            f"{method} {row['forget']:.1%} and {row['retain']:.1%}"
            for method, row in last(rank, sparsity).iterrows()
        )
        return (
            f"Rank {rank}, sparsity {percent(sparsity)}: after the last epoch, accuracy on the "
            f"forgotten class and the others: {ends}."
        )

    inputs = {
        "rank": panels.slider("Rank", ranks, ranks[len(ranks) // 2]),
        "sparsity": panels.slider("Sparsity", sparsities, sparsities[len(sparsities) // 2],
                                    percent),
    }  # fmt: skip
    shows = "Accuracy on the forgotten class and on the others over the epochs, for two methods."
    return View(inputs, table, figure, numbers, says, shows)


def threshold(scores: Mapping[str, tuple[Tensor, Tensor]]) -> View:
    """Show what a membership attack finds, and whom it accuses wrongly, from a threshold upwards.

    Args:
        scores: Method -> scores of members (N,) and of non-members (M,), at least 10 each, such as
            :func:`helpers.attacks.attack_scores` returns; larger means "member".

    Returns:
        The view, with a menu ``network`` and a slider ``threshold``. Its table has a row a network
        and threshold: tp, fn, fp, tn (counts), tpr, fpr, the shares of members and of non-members
        from this threshold to the next, and the area under the curve with its 95 % interval (the
        same at every threshold). Its detail has the curves: network, fpr, tpr.

    Raises:
        InputError: If there is no method or an unknown one, a group is too small or a score is not
            finite.

    Source: the usual figure; ``sklearn.metrics.roc_curve``.
    Lesson: 05_evaluation, "The membership attack".
    """
    check("scores", [*scores], bool(scores), "at least one network")
    for name in scores:
        unlearning.method(name)
    pairs = {m: [group.detach().double().cpu() for group in pair] for m, pair in scores.items()}
    curves = {name: attacks.roc(*pair) for name, pair in pairs.items()}  # which are checked there
    steps = _steps(torch.cat([group for pair in pairs.values() for group in pair]))
    table = pd.concat([_counts(m, *pair, steps) for m, pair in pairs.items()], ignore_index=True)
    detail = pd.concat(
        [pd.DataFrame({"network": m, "fpr": c.fpr, "tpr": c.tpr}) for m, c in curves.items()]
    )
    return _threshold_view(table, detail)


def _steps(scores: Tensor) -> np.ndarray:
    """Return thresholds, as they are written, from "everyone" to "nobody".

    They lie halfway between neighbouring scores, and have so many digits that to write them moves
    few scores into another step.
    """
    levels = scores.quantile(torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)).numpy()
    scores = scores.sort().values.numpy()
    lowest, highest = np.floor(scores[[0, -1]] * 1e4)
    below = np.searchsorted(scores, levels[1:-1])  # how many scores a threshold leaves out
    below = below[below > 0]
    halves = (scores[below - 1] + scores[below]) / 2
    for digits in range(4, 18):  # with 17 every number is written as it is
        written = np.array([float(f"{half:.{digits}g}") for half in halves])
        moved = np.abs(np.searchsorted(scores, written) - below)
        if (moved <= len(scores) / STEPS / 20).all():
            break
    return np.unique([(lowest - 1) / 1e4, *written, (highest + 2) / 1e4])


def _counts(name: str, members: Tensor, others: Tensor, steps: np.ndarray) -> pd.DataFrame:
    tp, fp = (np.array([int((group >= t).sum()) for t in steps]) for group in (members, others))
    auc, (low, high) = attacks.roc(members, others).auc, attacks.auc_interval(members, others)
    return pd.DataFrame({
        "network": name, "threshold": steps, "tp": tp, "fn": len(members) - tp, "fp": fp,
        "tn": len(others) - fp, "tpr": tp / len(members), "fpr": fp / len(others),
        "members": -np.diff(tp, append=0) / len(members),
        "non-members": -np.diff(fp, append=0) / len(others),
        "auc": auc, "auc_low": low, "auc_high": high,
    })  # fmt: skip


def _threshold_view(table: pd.DataFrame, detail: pd.DataFrame) -> View:
    names, steps = table["network"].unique().tolist(), table["threshold"].unique().tolist()
    tables = {name: rows.set_index("threshold") for name, rows in table.groupby("network")}
    curves = {name: (rows["fpr"], rows["tpr"]) for name, rows in detail.groupby("network")}

    def figure(network: str, threshold: float) -> Figure:
        drawn, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(2, 3))
        row = tables[network].loc[threshold]
        plots.roc({network: curves[network]}, left, log=False)
        left.plot(row["fpr"], row["tpr"], "o", ms=11, mfc="none", mew=1.5, color="black")
        _draw_groups(right, tables[network].iloc[:-1], steps.index(threshold), steps)
        return drawn

    def numbers(network: str, threshold: float) -> pd.DataFrame:
        row = tables[network].loc[threshold]
        return pd.DataFrame(
            {
                "called member": [f"{row['tp']:.0f}", f"{row['fp']:.0f}"],
                "called non-member": [f"{row['fn']:.0f}", f"{row['tn']:.0f}"],
                "called member, rate": [f"{row['tpr']:.1%}", f"{row['fpr']:.1%}"],
            },
            index=["members (true positives)", "non-members (false positives)"],
        )

    def says(network: str, threshold: float) -> str:
        row = tables[network].loc[threshold]
        return (
            f"{network}, threshold {threshold}: true positive rate {row['tpr']:.1%}, false "
            f"positive rate {row['fpr']:.1%}. Area under the curve {row['auc']:.3f} "
            f"(95 %: {row['auc_low']:.3f} to {row['auc_high']:.3f}); chance is 0.5."
        )

    inputs = {
        "network": panels.menu("Network", names),
        "threshold": panels.slider("Threshold", steps, steps[len(steps) // 2]),
    }
    shows = "The ROC curve of the attack with a ring at the threshold; its scores as a histogram."
    return View(inputs, table, figure, numbers, says, shows, detail)


def _draw_groups(ax: Any, rows: pd.DataFrame, position: int, steps: list[float]) -> None:
    """Draw the shares of both groups between neighbouring thresholds, and the threshold."""
    places = np.arange(len(rows)) + 0.5
    for shift, group, color in (
        (-0.2, "members", plots.ORACLE),
        (0.2, "non-members", plots.CHANCE),
    ):
        ax.bar(places + shift, rows[group], width=0.4, color=color, label=group)
    ax.axvline(position, color="black", lw=1.5)
    side = "left" if position < 0.7 * len(rows) else "right"
    ax.text(position, 1.01, "called member →", transform=ax.get_xaxis_transform(), ha=side, size=9)
    marked = range(0, len(steps), 4)
    ax.set_xticks(list(marked), [str(steps[i]) for i in marked])
    ax.set(xlabel="score (each step: about equally many\nimages of all networks, but for ties)",
           ylabel="share of the group")  # fmt: skip
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="upper left")
