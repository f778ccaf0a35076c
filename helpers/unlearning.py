"""The methods: a table of compositions *prune? x adapt? x objective*, run by one loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from helpers import lora, models, pruning, training
from helpers.config import Recipe, RunConfig, check, choose
from helpers.data import Dataset, ImageSet


@dataclass(frozen=True)
class Method:
    """One way to a network that shall not know the forgotten class.

    Attributes:
        start: ``scratch`` (fresh weights) or ``original`` (the trained network).
        data: ``all`` training images, or those to ``retain``.
        prune: ``none`` or ``mask``.
        adapt: ``full`` (every weight trains) or ``lora``.
        objective: Name of the loss in ``OBJECTIVES``.
        summary: One line for tables and ``--help``.

    Source: arXiv 2411.11907, section 3.
    Lesson: 04_class_unlearning, "A table of methods".
    """

    start: str = "original"
    data: str = "retain"
    prune: str = "none"
    adapt: str = "full"
    objective: str = "cross_entropy"
    summary: str = ""


OBJECTIVES: dict[str, training.Objective] = {"cross_entropy": training.cross_entropy}

METHODS: dict[str, Method] = {
    "original": Method("scratch", "all", summary="trained on all classes: nothing forgotten"),
    "retrain": Method("scratch", summary="trained without the class: the oracle"),
    "finetune": Method(summary="every weight, retain set"),
    "prune_finetune": Method(prune="mask", summary="weak filters masked, then every weight"),
    "lora": Method(adapt="lora", summary="adapters only, retain set"),
    "prunelora": Method(prune="mask", adapt="lora", summary="weak filters masked, then adapters"),
}


@dataclass
class Outcome:
    """What a method made.

    Attributes:
        model: The plain network, merged, in evaluation mode.
        fit: History and costs of the training stage.
        trainable: Parameters that trained.
        masks: The masks that hold in ``model``; empty without pruning, and in paper mode.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """

    model: nn.Module
    fit: training.Fit
    trainable: int
    masks: pruning.Masks


def method(name: str) -> Method:
    """Look a method up.

    Args:
        name: One of ``METHODS``.

    Returns:
        Its composition.

    Raises:
        InputError: If there is none of that name; the message lists the known ones.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    choose("method", name, METHODS)
    return METHODS[name]


def new_model(cfg: RunConfig, dataset: Dataset) -> nn.Module:
    """Build the network of a configuration with fresh weights.

    Args:
        cfg: Gives the architecture, the seed and the device.
        dataset: Gives the classes, channels and size.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: If the architecture is unknown or does not fit the images.

    Source: this project.
    Lesson: 01_baseline_training, "The network".
    """
    _, channels, _, side = dataset.train.images.shape
    model = models.build_model(cfg.model, len(dataset.classes), channels, side, cfg.seed)
    return model.to(cfg.device)


def validate(cfg: RunConfig, dataset: Dataset) -> None:
    """Refuse, before anything is trained, what would fail later.

    Args:
        cfg: The configuration.
        dataset: The data it is meant for.

    Raises:
        InputError: For an unknown method or architecture, a class that does not exist, or a rank
            that a layer cannot have.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    chosen = method(cfg.method)
    retained = len(dataset.split(cfg.forget).retain)
    check("retained training images", retained, retained > 1, "at least two, for BatchNorm")
    model = new_model(cfg, dataset)
    if chosen.adapt == "lora":
        layers = models.layers(model)
        targets = _targets(layers, cfg.mode)
        lora.check_rank(model, cfg.rank, [name for name in targets if name != layers.head])


def _targets(layers: models.Layers, mode: str) -> tuple[str, ...]:
    return layers.paper_adaptable if mode == "paper" else layers.adaptable


def unlearn(
    original: nn.Module | None,
    dataset: Dataset,
    cfg: RunConfig,
    *,
    recipe: Recipe | None = None,
    monitor: Mapping[str, ImageSet] | None = None,
    checkpoint: Path | None = None,
    progress: str | None = None,
) -> Outcome:
    """Run the method of a configuration: prune?, adapt?, train, merge.

    In the default mode a mask holds through training and merge, BatchNorm is measured anew after
    pruning, and an adapter keeps its own classifier and BatchNorm state. In paper mode the masks
    are dropped after pruning, as published, and the adapter keeps the classifier alone.

    Args:
        original: The trained network to start from; stays as it is. None for methods that start
            from scratch.
        dataset: The data, on the device of ``original``.
        cfg: The configuration.
        recipe: How the training stage is done; None takes the configuration's.
        monitor: Parts whose accuracy is followed through the training.
        checkpoint: Where an interrupted training is kept.
        progress: The text of a progress bar; None shows none.

    Returns:
        The plain network and what it cost.

    Raises:
        InputError: If the configuration does not fit the data or the network.
        Interrupted: After Ctrl-C or the kernel's stop button.

    Source: arXiv 2411.11907, section 3.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    chosen, split = method(cfg.method), dataset.split(cfg.forget)
    if chosen.start == "scratch":
        model, recipe = new_model(cfg, dataset), recipe or cfg.train
    else:
        check("original", original, original is not None, f"{cfg.method} starts from a network")
        model, recipe = copy.deepcopy(original), recipe or cfg.unlearn
    masks = _prune(model, split.retain, dataset, cfg) if chosen.prune == "mask" else {}
    hold = pruning.apply_masks
    if chosen.adapt == "lora":
        model, hold = _adapt(model, cfg), lora.hold_masks
    trainable = models.count_parameters(model, trainable=True)
    fit = training.fit(
        model,
        dataset.train if chosen.data == "all" else split.retain,
        dataset,
        recipe,
        seed=cfg.seed,
        objective=OBJECTIVES[chosen.objective],
        after_step=partial(hold, model, masks) if masks else None,
        monitor=monitor,
        checkpoint=checkpoint,
        precision=cfg.precision,
        progress=progress,
    )
    if chosen.adapt == "lora":
        model = lora.merge(model, masks)
    return Outcome(model, fit, trainable, masks)


def _prune(model: nn.Module, retain: ImageSet, dataset: Dataset, cfg: RunConfig) -> pruning.Masks:
    layers = models.layers(model)
    if cfg.mode == "paper":  # prune.remove: the zeros are there, and nothing will hold them
        pruning.mask_structured(model, cfg.sparsity, layers.paper_prunable)
        return {}
    masks = pruning.mask_structured(model, cfg.sparsity, layers.prunable)
    training.recalibrate_batchnorm(model, retain, dataset, seed=cfg.seed)
    return masks


def _adapt(model: nn.Module, cfg: RunConfig) -> nn.Module:
    layers = models.layers(model)
    targets = _targets(layers, cfg.mode)
    in_full = () if layers.head in targets else (layers.head,)
    return lora.attach(
        model,
        cfg.rank,
        targets,
        alpha=cfg.lora_alpha,
        dropout=cfg.lora_dropout,
        train_in_full=in_full + (layers.norms if cfg.mode == "default" else ()),
        any_rank=(layers.head,),
        seed=cfg.seed,
    )


def set_threads(cfg: RunConfig) -> None:
    """Set the CPU threads that a configuration asks for; small networks run best on one.

    Args:
        cfg: Uses ``threads``; 0 leaves torch's choice.

    Source: measured: two threads beside a busy neighbour were 60 times slower.
    Lesson: 00_start_here, "One configuration".
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
