"""What the methods minimise: small functions of a batch, all used by the one training loop.

Most methods of the field see the forget set and the retain set in one batch; which image is which
is told by its label. Each builder takes a :class:`Task` and returns an objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import models, parallel
from helpers.config import InputError, check
from helpers.data import Dataset, ImageSet, at_most, batches
from helpers.training import Objective, cross_entropy

_SLOPES = 256_000_000  # bytes of gradients, one for each image of a batch


@dataclass(frozen=True)
class Task:
    """What an objective may know beside the batch.

    Attributes:
        original: The network before unlearning, in evaluation mode: a teacher; never changed. None
            where the objective does not ask it, see ``TEACHERS``.
        stranger: The same architecture with fresh weights, which knows nothing; or None.
        forgotten: Indices of the forgotten classes.
        classes: Number of classes.
        strength: Of the objective's own term; None means its default.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """

    original: nn.Module | None
    stranger: nn.Module | None
    forgotten: tuple[int, ...]
    classes: int
    strength: float | None = None

    def forget(self, labels: Tensor) -> Tensor:
        """Say which images of a batch are to be forgotten: (N,) bool."""
        return torch.isin(labels, torch.tensor(self.forgotten, device=labels.device))

    def weight(self, default: float) -> float:
        """Return the strength, or the default of the method."""
        return default if self.strength is None else self.strength


Builder = Callable[[Task], Objective]


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Average over the chosen images of a batch; 0 if there are none."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def _per_image(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _distance(logits: Tensor, teacher: nn.Module, images: Tensor) -> Tensor:
    """Return KL(teacher || network) of each image of a batch."""
    with torch.no_grad():
        wanted = teacher(images).log_softmax(1)
    found = logits.log_softmax(1)
    return F.kl_div(found, wanted, log_target=True, reduction="none").sum(1)


def gradient_ascent(task: Task) -> Objective:
    """Build the loss that pushes away from the labels of the forget set.

    Args:
        task: Unused; the images are those of the forget set alone.

    Returns:
        Minus the cross-entropy.

    Source: Golatkar et al. 2019 (arXiv 1911.04933), "NegGrad"; Thudi et al. 2021 (2109.13398).
    Lesson: 04_class_unlearning, "A table of methods".
    """

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float) -> Tensor:
        return -F.cross_entropy(model(images), labels)

    return objective


def neggrad_plus(task: Task) -> Objective:
    """Build the loss that descends on the retain set and ascends on the forget set.

    Args:
        task: ``strength`` weighs the forget set; 0.05 unless given.

    Returns:
        Cross-entropy of the retained images - strength * that of the forgotten ones.

    Source: Kurmanji et al. 2023 (arXiv 2302.09880), the baseline NegGrad+.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    weight = task.weight(0.05)

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float) -> Tensor:
        losses, mine = _per_image(model(images), labels), task.forget(labels)
        return _mean(losses, ~mine) - weight * _mean(losses, mine)

    return objective


def random_labels(task: Task) -> Objective:
    """Build the loss that teaches other labels, drawn anew for every batch, to the forget set.

    Args:
        task: ``strength`` weighs the forget set; 1 unless given.

    Returns:
        Cross-entropy of the retained images + strength * that of the forgotten ones, whose labels
        are drawn evenly from the retained classes.

    Source: Golatkar et al. 2019 (arXiv 1911.04933); with the retain set as in SalUn (2310.12508).
    Lesson: 04_class_unlearning, "A table of methods".
    """
    weight = task.weight(1.0)
    others = torch.tensor([c for c in range(task.classes) if c not in task.forgotten])

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float) -> Tensor:
        mine = task.forget(labels)
        # drawn on the CPU: the same on every device
        drawn = others[torch.randint(len(others), (len(labels),))].to(labels.device)
        losses = _per_image(model(images), torch.where(mine, drawn, labels))
        return _mean(losses, ~mine) + weight * _mean(losses, mine)

    return objective


def l1_sparse(task: Task) -> Objective:
    """Build the loss that also shrinks all weights, less and less until the end.

    Args:
        task: ``strength`` is gamma, the factor of the sum of absolute weights at the start; 1e-4
            unless given.

    Returns:
        Cross-entropy + gamma * (1 - share of the training done) * L1 norm of what trains.

    Source: Jia et al. 2023 (arXiv 2304.04934), section 4, with the linearly decaying gamma.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    gamma = task.weight(1e-4)

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float) -> Tensor:
        norm = sum(p.abs().sum() for p in model.parameters() if p.requires_grad)
        return F.cross_entropy(model(images), labels) + gamma * (1 - share) * norm

    return objective


def scrub(task: Task) -> Objective:
    """Build the loss of a student that obeys its teacher on the retain set only.

    Args:
        task: ``strength`` weighs the disobedience on the forget set; 0.5 unless given.

    Returns:
        KL to the original + cross-entropy on the retained images; in the first half of the training
        minus strength * KL to the original on the forgotten ones, afterwards the retained ones
        alone, which repair what the first half broke.

    Source: Kurmanji et al. 2023 (arXiv 2302.09880), equation 3, written from the paper; there the
        two parts take turns by epochs, here they share each batch.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    weight = task.weight(0.5)

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float) -> Tensor:
        logits, mine = model(images), task.forget(labels)
        distance = _distance(logits, task.original, images)
        loss = _mean(distance + _per_image(logits, labels), ~mine)
        return loss - weight * _mean(distance, mine) if share < 0.5 else loss

    return objective


def bad_teacher(task: Task) -> Objective:
    """Build the loss of a student with two teachers.

    Args:
        task: ``strength`` weighs the forget set; 1 unless given.

    Returns:
        KL to the original on the retained images + strength * KL to a network with fresh weights on
        the forgotten ones.

    Source: Chundawat et al. 2022 (arXiv 2205.08096), equation 1.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    weight = task.weight(1.0)

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float) -> Tensor:
        logits, mine = model(images), task.forget(labels)
        kept = _mean(_distance(logits, task.original, images), ~mine)
        return kept + weight * _mean(_distance(logits, task.stranger, images), mine)

    return objective


def boundary_shrink(task: Task) -> Objective:
    """Build the loss that gives each forgotten image the label across the nearest boundary.

    Args:
        task: ``strength`` is the length of the step in standard deviations of a pixel; 0.5 unless
            given. The images are those of the forget set alone.

    Returns:
        Cross-entropy to the class that the original sees, the forgotten ones left out, after one
        step along the sign of the gradient of its loss.

    Source: Chen et al. 2023, Boundary Unlearning (CVPR; arXiv 2303.11570), section 3.2.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    step = task.weight(0.5)
    forgotten = list(task.forgotten)

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float) -> Tensor:
        moved = images.detach().clone().requires_grad_(True)
        with torch.enable_grad():  # nothing of the teacher requires a gradient: only the images
            # their sum: of a mean, the small gradients of sure answers would vanish in float16
            F.cross_entropy(task.original(moved), labels, reduction="sum").backward()
        with torch.no_grad():
            seen = task.original(images + step * moved.grad.sign())
            seen[:, forgotten] = -torch.inf
        return F.cross_entropy(model(images), seen.argmax(1))

    return objective


OBJECTIVES: dict[str, Builder] = {
    "cross_entropy": lambda task: cross_entropy,
    "gradient_ascent": gradient_ascent,
    "neggrad_plus": neggrad_plus,
    "random_labels": random_labels,
    "l1_sparse": l1_sparse,
    "scrub": scrub,
    "bad_teacher": bad_teacher,
    "boundary_shrink": boundary_shrink,
}
# Which networks of a task an objective asks: they look at images, not at outputs that were kept.
TEACHERS: dict[str, tuple[str, ...]] = {
    "scrub": ("original",),
    "bad_teacher": ("original", "stranger"),
    "boundary_shrink": ("original",),
}


def saliency(
    model: nn.Module, forget: ImageSet, dataset: Dataset, share: float,
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[Callable[[], None], int]:  # fmt: skip
    """Choose the weights that the forget set's loss depends on most, and hold all the others.

    Args:
        model: The network, adapted or not; what requires a gradient is ranked.
        forget: Images of the forgotten classes.
        dataset: Gives the normalisation.
        share: Of the trainable parameters, masked weights left out, that may move; in (0, 1]. For
            SalUn it is the recipe's ``strength``, 0.5 unless given. Below 1, those that the loss
            does not depend on at all, such as weights behind a dead filter, never move.
        masks: Name of layer -> (shape of weight) bool, True where kept; what is masked is ranked
            last, however steep the loss is there.

    Returns:
        What puts the others back to where they are now, to be called after each step; and the bytes
        that it keeps for that.

    Raises:
        InputError: If the share is not allowed.

    Source: Fan et al. 2023, SalUn (arXiv 2310.12508), equation 3, with the median as threshold.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    check("strength", share, 0 < share <= 1, "the share of weights that may move, in (0, 1]")
    trained = [p for p in model.parameters() if p.requires_grad]
    slopes = [slope.abs() for slope in _gradients(model, trained, forget, dataset)]
    parallel.as_first(slopes)
    gone = {id(model.get_submodule(name).weight): ~mask for name, mask in (masks or {}).items()}
    for parameter, slope in zip(trained, slopes, strict=True):
        if (masked := gone.get(id(parameter))) is not None:
            slope.masked_fill_(masked.to(slope.device), -1)
    every = torch.cat([slope.flatten() for slope in slopes])
    count = max(1, round(share * int((every >= 0).sum())))
    threshold = every.kthvalue(len(every) - count + 1).values
    if share < 1:  # a threshold of zero would let all of these move, however many
        threshold = threshold.clamp(min=torch.finfo(threshold.dtype).tiny)
    held = [(p, slope < threshold, p.detach().clone())
            for p, slope in zip(trained, slopes, strict=True)]  # fmt: skip

    @torch.no_grad()
    def hold() -> None:
        for parameter, still, value in held:
            parameter.copy_(torch.where(still, value, parameter))

    return hold, sum(tensor.nbytes for _, *kept in held for tensor in kept)


def _gradients(
    model: nn.Module, parameters: list[nn.Parameter], part: ImageSet, dataset: Dataset
) -> list[Tensor]:
    """Return the gradient of the mean loss of some images, in evaluation mode."""
    total = [torch.zeros_like(p) for p in parameters]
    with models.evaluating(model), torch.enable_grad():
        for images, labels in batches(part, at_most(part.images, 256)):
            loss = F.cross_entropy(model(dataset.normalise(images)), labels, reduction="sum")
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            for sum_, slope in zip(total, found, strict=True):
                if slope is not None:
                    sum_ += slope / len(part)
    return total


def fisher(model: nn.Module, part: ImageSet, dataset: Dataset) -> dict[str, Tensor]:
    """Measure how much the loss of each image depends on each weight.

    Args:
        model: The network; stays as it is.
        part: N images.
        dataset: Gives the normalisation.

    Returns:
        Name -> mean over the images of the squared gradient, the diagonal of the Fisher information
        with the labels of the data.

    Raises:
        InputError: If there are no images, or the gradient of one alone cannot be had.

    Source: Foster et al. 2023, SSD (arXiv 2308.07707), section 4; one gradient an image, not one a
        batch as in the published code.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    check("images", len(part), len(part) > 0, "at least one")
    check("model", "nn.DataParallel", not isinstance(model, nn.DataParallel), "for ssd the network "
          "in it: hand over model.module")  # fmt: skip
    weights = {n: p.detach() for n, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), (image[None],))
        return F.cross_entropy(logits, label[None])

    slopes = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    total = {n: torch.zeros_like(p) for n, p in weights.items()}
    # a module of two names keeps what functional_call lent it: torch puts back the first alone
    held = [(m, n, p) for m in model.modules() for n, p in m._parameters.items()]
    one = sum(p.nbytes for p in weights.values())  # each image has a gradient of its own
    size = max(1, min(64, at_most(part.images, 64), _SLOPES // max(one, 1)))
    with models.evaluating(model):
        for images, labels in batches(part, size):
            try:
                found = slopes(weights, dataset.normalise(images), labels)
            except RuntimeError as error:
                raise InputError(
                    f"model = {type(model).__name__!r} is not allowed: the gradient of each image "
                    f"cannot be had ({error}); use another method than ssd"
                ) from error
            finally:
                for module, name, parameter in held:
                    module._parameters[name] = parameter
            for name, slope in found.items():
                total[name] += slope.square().sum(0) / len(part)
    return total
