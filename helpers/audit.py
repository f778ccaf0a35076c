"""Did it forget? The classic numbers, each beside networks that never saw the class.

Every function takes predictions and returns numbers. Closer to the oracle (a network retrained
without the class) is better, not higher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.config import InputError, check
from helpers.data import Dataset
from helpers.training import predict

if TYPE_CHECKING:
    import pandas as pd

GAP_METRICS = ("UA", "RA", "TA", "MIA")  # what Avg Gap averages over
METRICS = ("UA", "UA_test", "RA", "TA", "MIA")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is that of their label.

    Args:
        logits: (N, C) float32, unnormalised; N at least 1.
        labels: (N,) int64.

    Returns:
        A share in [0, 1].

    Raises:
        InputError: If there are no images, the sizes differ, or a logit is not finite.

    Source: the usual definition.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    _check_predictions(logits, labels)
    return (logits.argmax(1) == labels.to(logits.device)).double().mean().item()


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the softmax probability of each image's own label.

    Args:
        logits: (N, C) float32, unnormalised.
        labels: (N,) int64.

    Returns:
        (N,) float64 in [0, 1].

    Raises:
        InputError: As :func:`accuracy`.

    Source: the confidence score of OPTML's SVC_MIA.
    Lesson: 05_evaluation, "The membership attack".
    """
    _check_predictions(logits, labels)
    chosen = labels.to(logits.device).view(-1, 1)
    return logits.double().softmax(1).gather(1, chosen).squeeze(1)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image.

    Args:
        logits: (N, C) float32, unnormalised.
        labels: (N,) int64.

    Returns:
        (N,) float64, at least 0, in nats.

    Raises:
        InputError: As :func:`accuracy`.

    Source: the usual definition.
    Lesson: 05_evaluation, "The membership attack".
    """
    _check_predictions(logits, labels)
    return F.cross_entropy(logits.double(), labels.to(logits.device), reduction="none")


def _check_predictions(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        raise InputError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit: allowed "
            "are (N, C) and (N,) with N at least 1"
        )
    check("logits", "nan or inf", bool(logits.isfinite().all()), "every logit must be finite")


def mia_efficacy(members: Tensor, non_members: Tensor, forget: Tensor, seed: int = 0) -> float:
    """Fit a membership attack and return the share of the forget set that it calls non-members.

    A support vector machine learns to tell members from non-members by one score. Both groups are
    cut to the size of the smaller one: unbalanced, it may answer the same for everyone.

    Args:
        members: (N,) scores of retained training images.
        non_members: (M,) scores of retained test images.
        forget: (K,) scores of training images of the forgotten class.
        seed: Of the choice of the larger group's images.

    Returns:
        A share in [0, 1]; 1 where every forgotten image looks unseen.

    Raises:
        InputError: If a group is empty or a score is not finite.

    Source: ``SVC_MIA`` of OPTML-Group/Unlearn-Sparse (C = 3, RBF, gamma "auto"), balanced.
    Lesson: 05_evaluation, "The membership attack".
    """
    from sklearn.svm import SVC

    groups = {"members": members, "non_members": non_members, "forget": forget}
    for name, scores in groups.items():
        ok = bool(len(scores)) and bool(torch.as_tensor(scores).isfinite().all())
        check(name, f"{len(scores)} scores", ok, "at least one, all finite")
    draw = torch.Generator().manual_seed(seed)
    size = min(len(members), len(non_members))
    scores = torch.cat([
        group[torch.randperm(len(group), generator=draw)[:size]] for group in (members, non_members)
    ])  # fmt: skip
    truth = torch.cat([torch.ones(size), torch.zeros(size)]).long()
    attack = SVC(C=3, kernel="rbf", gamma="auto").fit(scores.view(-1, 1).numpy(), truth.numpy())
    return float((attack.predict(forget.view(-1, 1).numpy()) == 0).mean())


def label_histogram(logits: Tensor) -> Tensor:
    """Return how often each class is predicted.

    Args:
        logits: (N, C) float32, unnormalised; N at least 1.

    Returns:
        (C,) float64 shares that sum to 1.

    Raises:
        InputError: If there are no predictions.

    Source: Unlearning Comparator; where a network sends the class that it does not know.
    Lesson: 04_class_unlearning, "Where the forgotten class goes".
    """
    check("logits", tuple(logits.shape), logits.ndim == 2 and len(logits) > 0, "(N, C), N ≥ 1")
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]).double() / len(logits)


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
    sums = sum(one), sum(other)
    ok = len(one) == len(other) and max(abs(total - 1) for total in sums) < 1e-6
    check("distributions", [len(one), len(other), *sums], ok, "equal sizes, each summing to 1")
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2


def evaluate(
    model: nn.Module, dataset: Dataset, forgotten: int | Iterable[int], seed: int = 0
) -> dict[str, Any]:
    """Measure the classic numbers of one network.

    Args:
        model: The network, on the device of the data.
        dataset: The data.
        forgotten: Index of the forgotten class, or of several.
        seed: Of the membership attack's sample.

    Returns:
        UA (1 - accuracy on the forget set), UA_test (the same on test images of the class), RA
        (retain set), TA (retained test images), MIA (:func:`mia_efficacy` on confidences), all in
        [0, 1], and ``predicted``: :func:`label_histogram` of the class's test images.

    Raises:
        InputError: If the class does not exist or a prediction is not finite.

    Source: Unlearn-Sparse (arXiv 2304.04934), section 3; arXiv 2411.11907.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    split = dataset.split(forgotten)
    logits, labels = {}, {}
    for name in ("forget", "retain", "test_forget", "test_retain"):
        part = getattr(split, name)
        logits[name], labels[name] = predict(model, part, dataset), part.labels.cpu()
    scores = {name: confidence(logits[name], labels[name]) for name in logits}
    return {
        "UA": 1 - accuracy(logits["forget"], labels["forget"]),
        "UA_test": 1 - accuracy(logits["test_forget"], labels["test_forget"]),
        "RA": accuracy(logits["retain"], labels["retain"]),
        "TA": accuracy(logits["test_retain"], labels["test_retain"]),
        "MIA": mia_efficacy(scores["retain"], scores["test_retain"], scores["forget"], seed),
        "predicted": label_histogram(logits["test_forget"]).tolist(),
    }


def average_gap(metrics: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """Return the mean absolute distance to the oracle over UA, RA, TA and MIA.

    Args:
        metrics: Of the network, in [0, 1].
        oracle: Of the retrained one (or means over several), in [0, 1].

    Returns:
        A number in [0, 1]; 0 where all four agree.

    Source: Unlearn-Sparse (arXiv 2304.04934), section 5.
    Lesson: 05_evaluation, "One number that hides four".
    """
    return sum(abs(metrics[m] - oracle[m]) for m in GAP_METRICS) / len(GAP_METRICS)


def tow(metrics: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """Return ToW, the product of one minus the three accuracy differences to the oracle.

    Args:
        metrics: Of the network, in [0, 1].
        oracle: Of the retrained one (or means over several), in [0, 1].

    Returns:
        A number in [0, 1]; 1 where forget, retain and test accuracy all agree.

    Source: Zhao et al. 2024, RUM (arXiv 2406.01257), "tug of war".
    Lesson: 05_evaluation, "One number that hides four".
    """
    product = 1.0
    for name in ("UA", "RA", "TA"):  # |UA - UA'| is the difference of the forget accuracies
        product *= 1 - abs(metrics[name] - oracle[name])
    return product


def compare(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Set every run beside the retrained networks.

    The oracle of a run is the mean over the networks retrained with other seeds, so that the gap of
    a retrained network, measured by the same yardstick, shows how far two oracles are apart. With
    one retrained network alone that one is the oracle, and has itself no gap (NaN).

    Args:
        rows: One mapping a run, with ``method``, ``seed`` and the metrics.

    Returns:
        One row a run: the given columns, Avg Gap and ToW.

    Raises:
        InputError: If no run is a retrained one.

    Source: Unlearn-Sparse (arXiv 2304.04934); leaving the own seed out is this project's.
    Lesson: 05_evaluation, "The comparison".
    """
    import pandas as pd

    rows = [dict(row) for row in rows]
    retrained = [row for row in rows if row["method"] == "retrain"]
    check("methods", sorted({r["method"] for r in rows}), bool(retrained), "one must be retrain")
    for row in rows:
        others = [r for r in retrained if r["seed"] != row["seed"]]
        others = others or [r for r in retrained if r is not row]
        if others:
            oracle = {m: sum(r[m] for r in others) / len(others) for m in GAP_METRICS}
            row["Avg Gap"], row["ToW"] = average_gap(row, oracle), tow(row, oracle)
        else:
            row["Avg Gap"] = row["ToW"] = float("nan")
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Average a table of runs over the seeds of each method.

    Args:
        table: From :func:`compare`.

    Returns:
        One row a method, in the order of first appearance: for every numeric column its mean and
        its standard deviation (columns ``(name, "mean")`` and ``(name, "sd")``, the latter NaN for
        a single seed) and the number of runs, ``("n", "")``.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    numeric = [c for c in table.columns if c != "seed" and table[c].dtype.kind in "fi"]
    groups = table.groupby("method", sort=False)[numeric]
    result = groups.agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
    result[("n", "")] = groups.size()
    return result


def paired_difference(
    table: pd.DataFrame, method: str, other: str, metric: str = "Avg Gap", level: float = 0.95
) -> tuple[float, float, float]:
    """Compare two methods that started from the same networks, seed by seed.

    Args:
        table: From :func:`compare`.
        method: Name of the first method.
        other: Name of the second.
        metric: A column of the table.
        level: Of confidence, in (0, 1).

    Returns:
        The mean of first - second over their common seeds, and the ends of its confidence
        interval by Student's t; infinite for a single seed.

    Raises:
        InputError: If they have no seed in common.

    Source: the paired t interval; ``scipy.stats.t``.
    Lesson: 05_evaluation, "The comparison".
    """
    from scipy import stats

    values = table.pivot(index="seed", columns="method", values=metric)
    known = {method, other} <= set(values.columns)
    difference = (values[method] - values[other]).dropna() if known else []
    check("methods", (method, other), len(difference) > 0, "two methods with a common seed")
    n, mean = len(difference), float(difference.mean())
    if n == 1:
        return mean, float("-inf"), float("inf")
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * difference.std() / n**0.5)
    return mean, mean - half, mean + half
