"""Pruning: which filters are set to zero, and keeping them there.

A mask is a dict from the name of a layer to a bool tensor of the shape of its weight, True where
the weight is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from helpers.config import check

Masks = dict[str, Tensor]


def mask_structured(
    model: nn.Module, sparsity: float, names: Iterable[str], norm: int = 2
) -> Masks:
    """Set the weakest filters of each named layer to zero. In place.

    Args:
        model: The network.
        sparsity: Share of the filters (output channels) of each layer, in [0, 1); rounded to whole
            filters, of which at least one stays.
        names: The layers, as in ``model.named_modules()``.
        norm: The order of the norm by which filters are ranked: 2 as in the paper, or 1.

    Returns:
        The masks, for :func:`apply_masks`.

    Raises:
        InputError: If the sparsity is outside [0, 1).

    Source: arXiv 2411.11907, section 3; ``torch.nn.utils.prune.LnStructured``.
    Lesson: 02_pruning, "The idea".
    """
    check("sparsity", sparsity, 0 <= sparsity < 1, "a share in [0, 1)")
    masks = {}
    for name in names:
        weight = model.get_submodule(name).weight.detach()
        mask = torch.ones_like(weight)
        amount = min(round(sparsity * len(weight)), len(weight) - 1)
        if amount:
            # only the choice is PyTorch's: prune.remove would reorder the layer's parameters
            mask = prune.LnStructured(amount, n=norm, dim=0).compute_mask(weight, mask)
        masks[name] = mask.bool()
    apply_masks(model, masks)
    return masks


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every masked weight to zero again. In place.

    Called after each optimiser step it holds the mask against gradients, momentum and weight
    decay alike.

    Args:
        model: The network the masks were made for.
        masks: Name of layer -> (shape of weight) bool, True where kept.

    Source: SalUn, issue 32 (weight decay moves masked weights); iterative magnitude pruning.
    Lesson: 02_pruning, "Zeros grow back".
    """
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        weight.masked_fill_(~mask.to(weight.device), 0)


def sparsity(model: nn.Module, names: Iterable[str]) -> float:
    """Return the share of zeros among the weights of the named layers.

    Args:
        model: The network.
        names: The prunable layers.

    Returns:
        A share in [0, 1]; 0 if there are no such layers.

    Source: the definition in Unlearn-Sparse (arXiv 2304.04934), section 3.
    Lesson: 02_pruning, "Sparsity of each layer".
    """
    rows = layer_sparsity(model, names)
    return sum(r["zeros"] for r in rows) / max(1, sum(r["weights"] for r in rows))


def layer_sparsity(model: nn.Module, names: Iterable[str]) -> list[dict[str, str | int | float]]:
    """Count zeros and whole zero filters in each named layer.

    Args:
        model: The network.
        names: The prunable layers.

    Returns:
        One row a layer: layer, weights, zeros, sparsity (zeros / weights), filters, zero_filters.

    Source: this project.
    Lesson: 02_pruning, "Sparsity of each layer".
    """
    rows = []
    for name in names:
        weight = model.get_submodule(name).weight.detach()
        zero = weight == 0
        rows.append({
            "layer": name,
            "weights": weight.numel(),
            "zeros": int(zero.sum()),
            "sparsity": float(zero.double().mean()),
            "filters": weight.shape[0],
            "zero_filters": int(zero.flatten(1).all(1).sum()),
        })  # fmt: skip
    return rows
