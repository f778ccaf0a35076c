"""What the methods change without training: cheats, and steps that come before the training.

Each takes the network, which it changes in place, and returns what that cost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from helpers import models, objectives
from helpers.config import check
from helpers.data import ClassSplit, Dataset, batches, per_pass

log = logging.getLogger(__name__)

MASKED = -1e4  # instead of minus infinity: finite, and no probability is left at any precision
Edit = Callable[[nn.Module, ClassSplit, Dataset, float | None], int]


@torch.no_grad()
def logit_mask(
    model: nn.Module, split: ClassSplit, dataset: Dataset, strength: float | None = None
) -> int:
    """Overwrite the logit of the forgotten classes: nothing is forgotten. In place.

    Args:
        model: Any network with a linear classifier that has a bias.
        split: Gives the forgotten classes.
        dataset: Unused.
        strength: Unused.

    Returns:
        Images that had to be passed through the network: 0.

    Raises:
        InputError: If the classifier has no bias.

    Source: defect 10 of the paper; the cheat that passes UA, MIA, RA and TA.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    head = _head(model)
    for row in split.forgotten:
        head.weight[row] = 0
        head.bias[row] = MASKED
    return 0


@torch.no_grad()
def prototype(
    model: nn.Module, split: ClassSplit, dataset: Dataset, strength: float | None = None
) -> int:
    """Turn the classifier's rows of the forgotten classes against their mean feature. In place.

    Args:
        model: Any network with a linear classifier that has a bias.
        split: Gives the forgotten classes and their images.
        dataset: Gives the normalisation.
        strength: Unused.

    Returns:
        Images that had to be passed through the network.

    Raises:
        InputError: If the classifier has no bias, or is not given a row for each image.

    Source: a cheat: the features, and with them all knowledge, stay as they are.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    head, kept = _head(model), []
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with hook, models.evaluating(model):
        for images, _ in batches(split.forget, per_pass(split.forget.images)):
            model(dataset.normalise(images))
    features = torch.cat(kept)
    check("classifier's inputs", tuple(features.shape), len(features) == len(split.forget),
          f"a row for each of the {len(split.forget)} images")  # fmt: skip
    if features.ndim > 2:  # of each token, say: their mean
        features = features.flatten(1, -2).mean(1)
    others = [c for c in range(len(head.bias)) if c not in split.forgotten]
    for row in split.forget.labels.unique().tolist():  # of earlier requests no image is left
        against = -features[split.forget.labels == row].mean(0)
        length = head.weight[others].norm(dim=1).max()
        head.weight[row] = against / against.norm().clamp_min(1e-12) * length
        head.bias[row] = head.bias[others].min()
    return len(split.forget)


@torch.no_grad()
def negate(
    model: nn.Module, split: ClassSplit, dataset: Dataset, strength: float | None = None
) -> int:
    """Change the sign of the first layer's weights, which throws the next layers off. In place.

    The first whose weights train: what its owner froze stays as it is.

    Args:
        model: Any network of convolutions or linear layers.
        split: Unused: the images of the class are not needed.
        dataset: Unused.
        strength: Unused.

    Returns:
        Images that had to be passed through the network: 0.

    Raises:
        InputError: If the weights of every layer are frozen.

    Source: Khalil et al. 2025, NoT (arXiv 2503.05657): negation, then fine-tuning on the rest.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    order = models.call_order(model)
    named = dict(model.named_modules())
    found = [n for n in order if isinstance(named[n], nn.Conv2d | nn.Linear)
             and not _is_frozen(named[n])]  # fmt: skip
    check("model", "frozen weights alone", bool(found), "a convolution or linear layer that trains")
    models.check_weights(model, found[:1])
    named[found[0]].weight.neg_()
    return 0


@torch.no_grad()
def dampen(
    model: nn.Module, split: ClassSplit, dataset: Dataset, strength: float | None = None
) -> int:
    """Shrink the weights that matter more to the forget set than to all images. In place.

    What its owner froze has no gradient, as in the published code, and stays as it is.

    Args:
        model: Any network that :func:`torch.func.vmap` can differentiate image by image.
        split: Gives the forget set.
        dataset: Gives all training images and the normalisation.
        strength: How many times as important to the forget set a weight must be to be chosen.
            None is 10, as published. The forget set is among all images, so that no weight can be
            more than all images / images to forget times as important to it: a strength from there
            on, such as one tuned for more classes, is replaced by half of that, and it is logged;
            None never exceeds that half.

    Returns:
        Images that had to be passed through the network, a backward pass counted as two.

    Raises:
        InputError: If the strength is not positive.

    Source: Foster et al. 2023, SSD (arXiv 2308.07707), equations 3 and 4, with lambda = 1.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    every = split.retain.with_all(split.forget)
    most = len(every) / len(split.forget)
    alpha = min(10.0, most / 2) if strength is None else strength
    check("strength", alpha, alpha > 0, "above 0")
    if alpha >= most:
        log.warning("ssd: no weight is %g times as important to 1 / %.3g of the images as to all; "
                    "with strength %.3g", alpha, most, most / 2)  # fmt: skip
        alpha = most / 2
    mine, all_ = (objectives.fisher(model, part, dataset) for part in (split.forget, every))
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        chosen = mine[name] > alpha * all_[name]
        factor = (all_[name] / mine[name].clamp_min(1e-30)).clamp_max(1)
        weight.copy_(torch.where(chosen, weight * factor, weight))
    return 3 * (len(every) + len(split.forget))


def _is_frozen(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")  # one that is computed from others is no parameter
    return weight is not None and not weight.requires_grad


def _head(model: nn.Module) -> nn.Linear:
    head = model.get_submodule(models.layers(model).head)
    check("classifier", "no bias", head.bias is not None, "a linear layer with a bias")
    models.check_weights(model, [models.layers(model).head])
    return head


EDITS: dict[str, Edit] = {
    "logit_mask": logit_mask,
    "prototype": prototype,
    "negate": negate,
    "dampen": dampen,
}
