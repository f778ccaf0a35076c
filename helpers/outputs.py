"""Predictions in, numbers out: what a network answers, and how far two networks' answers differ.

Nothing here knows how a network was made. The numbers say something about forgetting only beside
those of networks that never saw the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.config import check


def check_predictions(logits: Tensor, labels: Tensor) -> None:
    """Refuse predictions that do not fit their labels, that are none, or that are not finite.

    Args:
        logits: (N, C) floating point, unnormalised; N at least 1.
        labels: (N,) int64.

    Raises:
        InputError: If there are no images, the sizes differ, or a logit is not finite.

    Source: this project.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    sizes = tuple(logits.shape), tuple(labels.shape)
    ok = logits.ndim == 2 and len(logits) > 0 and sizes[1] == sizes[0][:1]
    check("logits and labels", sizes, ok, "(N, C) and (N,) with N at least 1")
    _check_logits("logits", logits)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is that of their label.

    Args:
        logits: (N, C) float32, unnormalised; N at least 1. Of equal largest ones the first counts,
            as everywhere: a network that answers the same for every class names the first.
        labels: (N,) int64.

    Returns:
        A share in [0, 1].

    Raises:
        InputError: If there are no images, the sizes differ, or a logit is not finite.

    Source: the usual definition.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    check_predictions(logits, labels)
    return (logits.argmax(1) == labels.to(logits.device)).double().mean().item()


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the softmax probability of each image's own label.

    Args:
        logits: (N, C) float32, unnormalised.
        labels: (N,) int64.

    Returns:
        (N,) float64 in [0, 1], on the CPU.

    Raises:
        InputError: As :func:`accuracy`.

    Source: the confidence score of OPTML's SVC_MIA.
    Lesson: 05_evaluation, "The membership attack".
    """
    check_predictions(logits, labels)
    chosen = labels.to(logits.device).view(-1, 1)
    return logits.double().softmax(1).gather(1, chosen).squeeze(1).cpu()


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image.

    Args:
        logits: (N, C) float32, unnormalised.
        labels: (N,) int64.

    Returns:
        (N,) float64, at least 0, in nats, on the CPU.

    Raises:
        InputError: As :func:`accuracy`.

    Source: the usual definition.
    Lesson: 05_evaluation, "The membership attack".
    """
    check_predictions(logits, labels)
    return F.cross_entropy(logits.double(), labels.to(logits.device), reduction="none").cpu()


def label_histogram(logits: Tensor) -> Tensor:
    """Return how often each class is predicted.

    Args:
        logits: (N, C) float32, unnormalised; N at least 1.

    Returns:
        (C,) float64 shares that sum to 1, on the CPU.

    Raises:
        InputError: If there are no predictions or a logit is not finite.

    Source: Unlearning Comparator; where a network sends the class that it does not know.
    Lesson: 04_class_unlearning, "Where the forgotten class goes".
    """
    check("logits", tuple(logits.shape), logits.ndim == 2 and len(logits) > 0, "(N, C), N ≥ 1")
    _check_logits("logits", logits)
    counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
    return counts.double().cpu() / len(logits)


def total_variation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the total variation distance of two distributions over the same classes.

    Args:
        one: (C,) shares that sum to 1.
        other: (C,) shares that sum to 1.

    Returns:
        Half the sum of the absolute differences: 0 for the same, 1 for disjoint ones.

    Raises:
        InputError: If the sizes differ or one is no distribution.

    Source: the usual definition; used for label histograms by the Unlearning Comparator.
    Lesson: 04_class_unlearning, "Where the forgotten class goes".
    """
    first, second = _distributions(one, other)
    return ((first - second).abs().sum() / 2).item()


def jensen_shannon(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the Jensen-Shannon divergence of two distributions over the same classes.

    It weighs a class that only one of them knows more than :func:`total_variation` does.

    Args:
        one: (C,) shares that sum to 1; zeros are allowed and contribute exactly nothing.
        other: (C,) shares that sum to 1.

    Returns:
        The divergence (not its square root) in bits: 0 for the same, 1 for disjoint ones.

    Raises:
        InputError: If the sizes differ or one is no distribution.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy", base 2.
    Lesson: 05_evaluation, "Where the answers go".
    """
    return _divergence(*_distributions(one, other)).item()


def activation_distance(logits: Tensor, oracle_logits: Tensor) -> float:
    """Return the mean distance between the softmax outputs of a network and of an oracle.

    Two oracles are some way apart too: that distance is the yardstick, not zero.

    Args:
        logits: (N, C) floating point, unnormalised, of the network; N at least 1.
        oracle_logits: (N, C), of a network retrained without the class, for the same images.

    Returns:
        The mean Euclidean distance over the images, in [0, sqrt 2].

    Raises:
        InputError: If the shapes differ, there are no images, or a logit is not finite.

    Source: Chundawat et al. 2022, "Can bad teaching induce forgetting?" (arXiv 2205.08096).
    Lesson: 05_evaluation, "Where the answers go".
    """
    first, second = _probabilities(logits, oracle_logits)
    return (first - second).norm(dim=1).mean().item()


def zrf(logits: Tensor, random_logits: Tensor) -> float:
    """Return how much a network answers like one that was never trained.

    The zero retrain forgetting score needs no oracle. Without one it cannot say which value is
    right: an oracle is no random network either, so compare with the oracles' own scores.

    Args:
        logits: (N, C) floating point, unnormalised, of the network, on the forget set; N ≥ 1.
        random_logits: (N, C), of a randomly initialised network, for the same images.

    Returns:
        1 - the mean Jensen-Shannon divergence (base 2), in [0, 1]; 1 where both always agree.

    Raises:
        InputError: If the shapes differ, there are no images, or a logit is not finite.

    Source: Chundawat et al. 2022, "Can bad teaching induce forgetting?" (arXiv 2205.08096).
    Lesson: 05_evaluation, "Where the answers go".
    """
    return 1 - _divergence(*_probabilities(logits, random_logits)).mean().item()


def _check_logits(field: str, logits: Tensor) -> None:
    check(field, "nan or inf", bool(logits.isfinite().all()), "every logit must be finite")


def _probabilities(logits: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float64 softmax outputs, on one device, of two networks for the same images."""
    shapes = tuple(logits.shape), tuple(others.shape)
    ok = logits.ndim == 2 and shapes[0] == shapes[1] and logits.numel() > 0
    check("shapes of the logits", shapes, ok, "twice the same (N, C), N ≥ 1: predict one set twice")
    _check_logits("logits", logits)
    _check_logits("the other network's logits", others)
    return logits.double().softmax(1), others.to(logits.device).double().softmax(1)


def _distributions(one: Sequence[float], other: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return both as float64 tensors on the CPU."""
    pair = [
        torch.tensor([float(s) for s in shares], dtype=torch.float64) for shares in (one, other)
    ]
    sums = [shares.sum().item() for shares in pair]
    ok = len(one) == len(other) and all(abs(total - 1) < 1e-6 for total in sums)
    ok = ok and all(bool((shares >= 0).all()) for shares in pair)
    allowed = "equal sizes, each summing to 1 without a negative share"
    check("distributions", [len(one), len(other), *sums], ok, allowed)
    return pair[0], pair[1]


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence along the last dimension, in bits."""
    entropy = torch.special.entr  # -p log p, and exactly 0 at 0
    gain = entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2
    return (gain.sum(-1) / math.log(2)).clamp(0, 1)  # rounding alone can leave [0, 1]
