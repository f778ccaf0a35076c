"""How fast does a forgotten class come back? A few images, a few steps, the accuracy after each."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from helpers import features, models, outputs
from helpers.config import check
from helpers.data import Dataset, ImageSet, at_most, indices, per_pass

# The same for every network. Chosen on digits, classes 1 and 8, on their test images, so that
# originals are back clearly sooner than oracles; faster rates make some networks swing.
PER_CLASS, STEPS, RATE = 10, 30, 0.02
# Of the classifier alone, on centred features of mean squared length 1: for the original about as
# fast as that (6 to 8 steps on digits 1, 3 and 8); oracles are back after 10 to 14.
HEAD_RATE = 0.6
AT_ONCE = 256  # images in a step whose gradients are kept at the same time; the step is one
LONGEST = 20.0  # gradient: longer than any seen on digits, where deeper networks may blow up
SHARE = 0.8  # of the original's accuracy that counts as relearned
_ROUNDING = 1e-9  # less than one image; a share of a share can be a bit more than it should
SPREAD = 2.0  # standard deviation to which the retained logits of an image are brought


@dataclass(frozen=True)
class Curve:
    """How the accuracy on the forgotten classes grew.

    Attributes:
        accuracies: Shares in [0, 1]; the index is the number of steps done, from 0.

    Source: this project.
    Lesson: 05_evaluation, "How fast it comes back".
    """

    accuracies: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Return the number of steps that were done."""
        return len(self.accuracies) - 1


def relearn(
    model: nn.Module,
    part: ImageSet,
    test: ImageSet,
    dataset: Dataset,
    forgotten: int | Iterable[int],
    *,
    per_class: int = PER_CLASS,
    steps: int = STEPS,
    lr: float = RATE,
    seed: int = 0,
) -> Curve:
    """Fine-tune a copy on a few images of every class and watch the forgotten ones come back.

    It is done in two ways, and after each step the better one counts. In the first all weights
    learn. BatchNorm keeps its statistics: those of a few images would hide everything else. What a
    pruned network has as zero stays zero. Filters before a BatchNorm and the classifier are brought
    to a common scale first, but the same function can be written in other ways, whose weights
    change more slowly or blow up. So in the second the classifier learns alone, on features from
    which the mean of the retained images is taken and that are divided by their deviations:
    whatever moves or scales them does not matter. Both use SGD with momentum 0.9, all images at
    every step.

    Args:
        model: The network; stays as it is. Frozen parameters learn here too.
        part: Training images of all classes.
        test: Test images of the forgotten classes, M at least 1.
        dataset: Gives the normalisation.
        forgotten: Index of the forgotten class, or of several.
        per_class: Images of each class; at least 1, at most what the smallest class has.
        steps: At least 1.
        lr: Learning rate of the first way, above 0; that of the second is ``HEAD_RATE``.
        seed: Of the choice of images.

    Returns:
        The accuracy on ``test`` before the first and after every step, in the better way.

    Raises:
        InputError: If there are too few images, ``test`` holds other classes, or the network
            diverges.

    Source: the relearn time of Golatkar et al. 2020 (arXiv 1911.04933) and of Tarun et al. 2021
        (arXiv 2111.08947), with the classifier's row reset.
    Lesson: 05_evaluation, "How fast it comes back".
    """
    check("steps", steps, steps >= 1, "at least 1")
    check("lr", lr, 0 < lr < float("inf"), "a number above 0")
    gone = {*indices(forgotten)}
    _check_parts(part, test, gone, per_class)
    chosen = [part.where(part.labels == c).sample(per_class, seed) for c in part.labels.unique()]
    images = dataset.normalise(torch.cat([few.images[:] for few in chosen]))
    labels, unseen = torch.cat([few.labels for few in chosen]), dataset.normalise(test.images[:])
    student = _Bare(models.copy_of(model)).eval()
    _plain_head(student)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    retained = ~torch.isin(labels, torch.tensor([*gone], device=labels.device))
    _reset_head(student, images[retained], sorted(gone))
    alone = _head_alone(student, images, labels, retained, unseen, test.labels, steps)
    _unit_variance(student, images)
    kept = [(p, p != 0) for p in student.parameters() if p.ndim > 1 and not bool((p != 0).all())]
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9)
    accuracies = [_accuracy(student, unseen, test.labels)]
    for _ in range(steps):
        _step(student, optimizer, images, labels, kept)
        accuracies.append(_accuracy(student, unseen, test.labels))
    return Curve(tuple(map(max, accuracies, alone)))


def _head_alone(
    model: nn.Module, images: Tensor, labels: Tensor, retained: Tensor, unseen: Tensor,
    truth: Tensor, steps: int,
) -> list[float]:  # fmt: skip
    """Train the classifier alone, on features moved and scaled; return the accuracies.

    The network stays as it is.
    """
    head, caught = model.get_submodule(models.layers(model).head), []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].double()))
    with hook, torch.no_grad():
        model(images)
        few = caught.pop()
        for batch in unseen.split(per_pass(unseen)):
            model(batch)
    scale, centre = features.scale(few), few[retained].mean(0)
    few, rows = few - centre, torch.cat(caught) - centre
    scale = scale / (few * scale).square().sum(1).mean().sqrt().clamp_min(1e-300)
    few, rows, weight = few * scale, rows * scale, head.weight.detach().double()
    bias = weight @ centre + (0 if head.bias is None else head.bias.detach().double())
    weight = torch.where(scale > 0, weight / scale, 0.0)
    learning = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.SGD(learning, lr=HEAD_RATE, momentum=0.9)
    accuracies = [_recognised(rows @ weight.detach().T + bias.detach(), truth)]
    for _ in range(steps):
        with torch.enable_grad():
            optimizer.zero_grad()
            F.cross_entropy(few @ weight.T + bias, labels).backward()
        optimizer.step()
        accuracies.append(_recognised(rows @ weight.detach().T + bias.detach(), truth))
    return accuracies


class _Bare(nn.Module):
    """A network that says what its classifier says, whatever somebody does to that afterwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.said = model, None
        head = model.get_submodule(models.layers(model).head)
        head.register_forward_hook(lambda _, __, output: setattr(self, "said", output))

    def forward(self, images: Tensor) -> Tensor:
        given = self.model(images)
        said, self.said = self.said, None
        return said if said is not None and said.shape == given.shape else given


def _check_parts(part: ImageSet, test: ImageSet, gone: set[int], per_class: int) -> None:
    classes, counts = (values.tolist() for values in part.labels.unique(return_counts=True))
    ok = bool(gone) and gone < set(classes)
    check("forget", sorted(gone), ok, f"some, not all, of the classes of the images, {classes}")
    fewest = min(counts)
    check("per_class", per_class, 1 <= per_class <= fewest, f"from 1 to {fewest}, as many as the "
          "smallest class has")  # fmt: skip
    found = sorted(set(test.labels.tolist()))
    ok = bool(found) and set(found) <= gone
    check("test", f"images of {found}", ok, f"test images of {sorted(gone)} alone, at least one")


def _plain_head(model: nn.Module) -> None:
    """Give the classifier parameters of its own where they are computed from others. In place.

    What is written to a weight that ``weight_norm`` computes is gone at the next pass, and a row
    that was overwritten could not be reset.
    """
    name = models.layers(model).head
    head = model.get_submodule(name)
    for own in list(head.parametrizations) if is_parametrized(head) else ():
        remove_parametrizations(head, own, leave_parametrized=True)
    for key, hook in list(head._forward_pre_hooks.items()):
        if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
            hook.remove(head)
            del head._forward_pre_hooks[key]
    models.check_weights(model, [name])


@torch.no_grad()
def _unit_variance(model: nn.Module, images: Tensor) -> None:
    """Write every filter before a BatchNorm so that the variance it is divided by is 1. In place.

    What follows is the same, but small filters with small variances (after weight decay, an L1 term
    or a mask) learn many times as fast, or wreck the network at the first step.
    """
    wanted, before = model(images), copy.deepcopy(model.state_dict())
    for layer, norm in _pairs(model, images):
        scale = (norm.running_var + norm.eps).sqrt()
        layer.weight.div_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        for tensor in (layer.bias, norm.running_mean):
            if tensor is not None:
                tensor.div_(scale)
        norm.running_var.fill_(1 - norm.eps)
    if not torch.allclose(model(images), wanted, rtol=1e-3, atol=1e-3 * float(wanted.std())):
        model.load_state_dict(before)  # somebody else looks at the filters' outputs, too


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Find the layers whose output goes straight into a BatchNorm, each with that BatchNorm."""
    made, found = {}, []
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hooks.enter_context(module.register_forward_hook(
                    lambda m, _, output: made.__setitem__(id(output), (m, output))))  # fmt: skip
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                hooks.enter_context(module.register_forward_pre_hook(
                    lambda m, inputs: found.append((made.get(id(inputs[0])), m))))  # fmt: skip
        model(images[:2])
    pairs = [(made_by[0], norm) for made_by, norm in found if made_by is not None]
    users = [id(m) for pair in pairs for m in pair]
    return [pair for pair in pairs if all(users.count(id(m)) == 1 for m in pair)]


@torch.no_grad()
def _reset_head(model: nn.Module, retained: Tensor, gone: list[int]) -> None:
    """Give the forgotten classes the mean row of the others, and all rows a common scale. In place.

    A row that was overwritten, or a bias of -1e4, would cost hundreds of steps although everything
    else in the network still knows the class; with the mean row every network starts from the same
    ignorance. Larger weights mean the same answers but slower change, so that merely multiplying
    the classifier would look like forgetting: hence the scale. It is measured on retained images.
    """
    head = model.get_submodule(models.layers(model).head)
    others = [c for c in range(len(head.weight)) if c not in gone]
    for tensor in (head.weight, head.bias):
        if tensor is not None:
            tensor[gone] = tensor[others].mean(0)
    spread = model(retained)[:, others].std(1, correction=0).mean()
    check("logits", "nan or inf", bool(spread.isfinite()), "every logit must be finite")
    if spread > 0:
        for tensor in (head.weight, head.bias):
            if tensor is not None:
                tensor.mul_(SPREAD / spread)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor,
    kept: list[tuple[Tensor, Tensor]],
) -> None:  # fmt: skip
    with torch.enable_grad():
        optimizer.zero_grad()
        most = at_most(images, AT_ONCE)
        for some, answers in zip(images.split(most), labels.split(most), strict=True):
            (len(some) / len(images) * F.cross_entropy(model(some), answers)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), LONGEST)
    optimizer.step()
    with torch.no_grad():
        for parameter, alive in kept:
            parameter.mul_(alive)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    logits = torch.cat([model(few) for few in images.split(per_pass(images))])
    check("logits", "nan or inf", bool(logits.isfinite().all()),
          "the network diverged: use a smaller lr")  # fmt: skip
    return _recognised(logits, labels)


def _recognised(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose own logit is larger than every other.

    At the start rows of the classifier can be equal (:func:`_reset_head`), and the first of equal
    ones would win for its number.
    """
    outputs.check_predictions(logits, labels)
    own = logits.gather(1, labels.to(logits.device).view(-1, 1))
    return ((logits >= own).sum(1) == 1).double().mean().item()


def steps_to_regain(curve: Curve, accuracy: float, share: float = SHARE) -> int:
    """Count the steps until a network has regained a share of the original's accuracy.

    Args:
        curve: From :func:`relearn`.
        accuracy: Of the original on the test images of the forgotten classes, in (0, 1].
        share: Of it that must be reached, in (0, 1].

    Returns:
        0 to ``curve.steps``; ``curve.steps + 1`` if it was not reached: read it as "more than".

    Raises:
        InputError: If a share is not in (0, 1].

    Source: the relearn time of Chundawat et al. 2022 (arXiv 2201.05629), anamnesis index.
    Lesson: 05_evaluation, "How fast it comes back".
    """
    for name, value in (("accuracy", accuracy), ("share", share)):
        check(name, value, 0 < value <= 1, "in (0, 1]")
    level = share * accuracy - _ROUNDING
    return next((step for step, seen in enumerate(curve.accuracies) if seen >= level),
                curve.steps + 1)  # fmt: skip


def area(curve: Curve) -> float:
    """Average the accuracy over the steps: finer than a count of steps, and never censored.

    Args:
        curve: From :func:`relearn`.

    Returns:
        The mean of the accuracies after each step, the start left out, in [0, 1].

    Raises:
        InputError: If no step was done.

    Source: this project.
    Lesson: 05_evaluation, "How fast it comes back".
    """
    check("steps", curve.steps, curve.steps >= 1, "at least 1")
    return sum(curve.accuracies[1:]) / curve.steps
