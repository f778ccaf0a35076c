"""Adapting with LoRA: attach adapters, keep the zeros, merge.

peft does the work. This module decides what it is asked for: the layers come from the network's
own list, the classifier trains in full, and the state of every BatchNorm belongs to the adapter,
so that switching it off gives the old network back and saving it loses nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from helpers.config import InputError, check
from helpers.models import max_rank
from helpers.pruning import Masks, apply_masks

if TYPE_CHECKING:
    from peft import PeftModel


def check_rank(model: nn.Module, rank: int, names: Iterable[str]) -> None:
    """Refuse a rank that some layer cannot have.

    Args:
        model: The network.
        rank: The rank asked for.
        names: The layers to adapt.

    Raises:
        InputError: If the rank is below 1 or above the smallest of the layers' largest ranks.

    Source: linear algebra: a matrix has at most min(rows, columns) independent rows.
    Lesson: 03_lora_adaptation, "Rank".
    """
    most, name = min(((max_rank(model.get_submodule(n)), n) for n in names), default=(1, ""))
    ok = isinstance(rank, int) and 1 <= rank <= most
    check("rank", rank, ok, f"from 1 to {most}, the most that layer {name} admits")


def attach(
    model: nn.Module,
    rank: int,
    targets: Iterable[str],
    *,
    alpha: float,
    dropout: float = 0.0,
    train_in_full: Iterable[str] = (),
    any_rank: Iterable[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Put a LoRA adapter beside each target layer of a copy of the network.

    Args:
        model: The network; stays as it is.
        rank: Rank r of every adapter.
        targets: Full names of the layers to adapt (Conv2d or Linear).
        alpha: The adapter's output is scaled by alpha / rank.
        dropout: Share of the adapter's inputs dropped while training.
        train_in_full: Full names of layers of which the adapter keeps its own trained copy: the
            classifier, and every BatchNorm with its running statistics.
        any_rank: Targets whose rank may exceed what they admit, as for the classifier of the
            published transformer; the surplus adds nothing that they can express.
        seed: Of the adapters' initial weights; the global random state is left as it was.

    Returns:
        The adapted copy in evaluation mode: same outputs as ``model``, because B starts at 0.

    Raises:
        InputError: If a layer does not exist or the rank is not possible.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4; peft's LoraConfig.
    Lesson: 03_lora_adaptation, "Adapters through peft".
    """
    from peft import LoraConfig, get_peft_model

    targets, train_in_full = list(targets), list(train_in_full)
    known = dict(model.named_modules())
    unknown = [name for name in (*targets, *train_in_full) if name not in known]
    if unknown or not targets:
        raise InputError(f"targets = {unknown or targets} are not layers of {type(model).__name__}")
    check_rank(model, rank, [name for name in targets if name not in set(any_rank)])
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets,
        modules_to_save=train_in_full or None,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        adapted = get_peft_model(copy.deepcopy(model), config)
    made = {name.removeprefix("base_model.model.") for name, _ in adapters(adapted)}
    if made != set(targets):  # peft matches names by their end; make sure that it meant ours
        raise InputError(f"adapters were attached to {sorted(made)}, not to {sorted(targets)}")
    return adapted.eval()  # peft forgets the mode of what it wraps


def adapters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the adapted layers.

    Args:
        model: A network with adapters.

    Returns:
        (name, layer) pairs; each layer has ``lora_A`` and ``lora_B`` by adapter name.

    Source: ``peft.tuners.lora.LoraLayer``.
    Lesson: 03_lora_adaptation, "Adapters through peft".
    """
    return [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]


@torch.no_grad()
def hold_masks(model: nn.Module, masks: Masks) -> None:
    """Keep whole masked filters at zero in an adapted network. In place.

    The change of an adapted weight is B A, and the rows of B are the filters: where a row of B is
    zero, merging adds exactly nothing. Called after each optimiser step.

    Args:
        model: The adapted network.
        masks: Name of layer in the original network -> mask of whole filters.

    Source: the row view of B A in Hu et al. 2021; SparsePEFT (EMNLP 2024) for single weights.
    Lesson: 03_lora_adaptation, "The zeros survive the merge".
    """
    for name, layer in adapters(model):
        mask = masks.get(name.removeprefix("base_model.model."))
        if mask is not None:
            dead = ~mask.flatten(1).any(1)
            for matrix in layer.lora_B.values():
                matrix.weight[dead.to(matrix.weight.device)] = 0


def merge(model: PeftModel, masks: Masks | None = None) -> nn.Module:
    """Add the adapters to the weights and return a plain network.

    Args:
        model: The adapted network; used up.
        masks: If given, the zeros that the merged network must still have.

    Returns:
        The network in evaluation mode, with the classifier and norms of the adapter.

    Raises:
        InputError: If the adapters would refill masked weights; merge without ``masks`` to let
            them.

    Source: Hu et al. 2021, section 4.1; peft's ``merge_and_unload``.
    Lesson: 03_lora_adaptation, "The zeros survive the merge".
    """
    if masks:
        grown = sum(
            int((layer.get_delta_weight("default") != 0)[~masks[name].to(device)].sum())
            for name, layer, device in _masked(model, masks)
        )
        check("adapters", f"{grown} weights under the mask", grown == 0, "call hold_masks first")
    merged = model.merge_and_unload().eval()
    if masks:
        apply_masks(merged, masks)  # turns -0.0 into 0.0 and nothing else
    return merged


def _masked(model: nn.Module, masks: Masks) -> list[tuple[str, nn.Module, torch.device]]:
    named = [(n.removeprefix("base_model.model."), m) for n, m in adapters(model)]
    return [(n, m, m.weight.device) for n, m in named if n in masks]


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors B, A of a given rank for a matrix.

    Args:
        matrix: (m, n) float32.
        rank: From 1 to min(m, n).

    Returns:
        B (m, rank) and A (rank, n), whose product has the least squared error of all of that rank.

    Source: Eckart & Young 1936.
    Lesson: 03_lora_adaptation, "The idea".
    """
    check("rank", rank, 1 <= rank <= min(matrix.shape), f"from 1 to {min(matrix.shape)}")
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], v[:rank]
