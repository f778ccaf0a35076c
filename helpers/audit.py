"""Did it forget? Every metric of a network, beside networks that never saw the class.

The classic numbers (UA, RA, TA, MIA-Efficacy, Avg Gap, ToW) see answers alone. :func:`audit` adds
what the features hold, how fast the class comes back and what attacks can tell, and sets each
beside the band that held-out oracles span. Closer to the oracles is better, not higher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers import attacks, features, models, outputs, pruning, relearning, shut, statistics
from helpers.config import InputError, check
from helpers.data import ClassSplit, Dataset, ImageSet
from helpers.training import predict

if TYPE_CHECKING:
    import pandas as pd

GAP_METRICS = ("UA", "RA", "TA", "MIA")  # what Avg Gap averages over
CLASSIC = ("UA", "UA_test", "RA", "TA", "MIA")
VERSION = 5  # of what the metrics measure: numbers of another one are not comparable
LEAST_ORACLES = 3
APART = 0.01  # of its norm: closer in every tensor, two networks are one and the same
ATTACKS = 5  # draws, at least, of the images that membership attacks learn from, for an interval
ENOUGH = f"at least {LEAST_ORACLES} retrained networks, better five; train more seeds"
PARTS = ("forget", "retain", "test_forget", "test_retain")
BY_CLASS = "prototype_attack"  # of several classes each by itself, too: "prototype_attack:3"
# Layers take much more room than images: of larger data a sample has to do, the same for everyone.
LAYER_PIXELS, LAYER_IMAGES = 2**18, 200  # in each part, at most so many, at least so many
LARGEST_GRAM = 512  # images whose likeness to each other is kept, for every layer


@dataclass(frozen=True)
class Metric:
    """How one number of an audit is called, grouped and judged.

    Attributes:
        group: ``classic``, ``outputs``, ``features``, ``relearning`` or ``privacy``.
        title: For tables.
        side: Which side of the oracles' band counts against a network: ``both``, ``upper`` or
            ``lower``.
        what: One sentence.
        part: The images that it is a share of; empty if it is no share.
        unit: How it is written: in per cent (``%``), in per cent points (``pp``), or, if empty, as
            the number that it is.
        decimals: How many are written.
        most: The largest number that it can be; the smallest is 0.

    Source: this project.
    Lesson: 05_evaluation, "The lie detector".
    """

    group: str
    title: str
    side: str
    what: str
    part: str = ""
    unit: str = "%"
    decimals: int = 1
    most: float = 1.0


_PLAIN: dict[str, Any] = {"unit": "", "decimals": 3}


METRICS: dict[str, Metric] = {
    "UA": Metric(
        "classic", "UA", "both", "unlearning accuracy: 1 - accuracy on the forget set", "forget"
    ),
    "UA_test": Metric(
        "classic", "UA test", "both", "1 - accuracy on test images of the class", "test_forget"
    ),
    "RA": Metric(
        "classic", "RA", "both", "remaining accuracy: accuracy on the retain set", "retain"
    ),
    "TA": Metric(
        "classic", "TA", "both", "test accuracy: accuracy on test images of the other classes",
        "test_retain",
    ),
    "MIA": Metric(
        "classic", "MIA-Eff.", "both",
        "efficacy of a membership inference attack: share of the forget set that balanced attacks "
        "on confidences call unseen, mean over the draws of what they learn from",
        "forget",
    ),
    "Avg Gap": Metric(
        "classic", "Avg Gap", "upper", "mean distance of UA, RA, TA and MIA-Eff. to the oracles",
        unit="pp", decimals=2,
    ),
    "ToW": Metric(
        "classic", "ToW", "lower", "tug of war: product of 1 - distance of UA, RA and TA",
        **_PLAIN,
    ),
    "TV": Metric(
        "outputs", "TV", "upper",
        "total variation between the labels given to the class's test images and the oracles'",
        **_PLAIN,
    ),
    "JS": Metric(
        "outputs", "JS", "upper", "Jensen-Shannon divergence of the same, in bits", **_PLAIN
    ),
    "activation": Metric(
        "outputs", "activation", "upper",
        "distance of the softmax outputs on the forget set to the oracles'",
        **_PLAIN, most=2**0.5,
    ),
    "ZRF": Metric(
        "outputs", "ZRF", "both",
        "zero retrain forgetting: likeness of the outputs on the forget set to random ones",
        **_PLAIN,
    ),
    "linear_probe": Metric(
        "features", "linear probe", "upper",
        "share of the class's test images that a linear classifier on frozen features recognises",
        "test_forget",
    ),
    "knn_probe": Metric(
        "features", "kNN probe", "upper", "the same by the nearest neighbours", "test_forget"
    ),
    "head_refit": Metric(
        "features", "head refit", "upper",
        "the same by a classifier fitted on 2 % of the training images", "test_forget",
    ),
    "inner_refit": Metric(
        "features", "inner refit", "upper",
        "the best that such a classifier does on the output of any module of the last stage",
        "test_forget",
    ),
    "whitened_probe": Metric(
        "features", "whitened probe", "upper",
        "the same by the nearest mean of a few images, where no axis or scale of the features "
        "counts",
        "test_forget",
    ),
    "CKA_forget": Metric(
        "features", "CKA forget", "lower",
        "centred kernel alignment: likeness of the layers to the oracles' on test images of the "
        "class",
        **_PLAIN,
    ),
    "CKA_retain": Metric(
        "features", "CKA retain", "lower", "the same on test images of the other classes", **_PLAIN
    ),
    "IDI": Metric(
        "features", "IDI", "upper",
        "information difference index: information on the class in the layers, 0 where none has "
        "more than the oracles', 1 as in the original; less in a layer counts as 0, so that single "
        "oracles lie above it",
        **_PLAIN, most=math.inf,
    ),
    "prototype_attack": Metric(
        "relearning", "one-image recall", "upper",
        "share recognised after the classifier's row was pointed at a single image, with the bias "
        "at which 1 % of the other classes' test images are taken for the class",
        "test_forget",
    ),
    "relearn_steps": Metric(
        "relearning", "steps back", "lower",
        "optimiser steps until the class is recognised again, on a few images of each class",
        unit="", most=math.inf,
    ),
    "relearn_area": Metric(
        "relearning", "relearned", "upper", "mean accuracy on the class over these steps",
        "test_forget",
    ),
    **{
        f"MIA_{kind}": Metric(
            "privacy", f"MIA {kind}", "both",
            f"share of the forget set that balanced attacks on {kind} call unseen", "forget",
        )
        for kind in attacks.SCORES if kind != "confidence"  # that is MIA
    },
    "epsilon": Metric(
        "privacy", "ε", "upper",
        "worst case over thresholds on the confidence, against the oracles, forget set; in nats, "
        "for n images at most about log 2n: compare within one data set",
        **_PLAIN, most=math.inf,
    ),
}  # fmt: skip
# distances or likenesses to the oracles by themselves; for every other metric one is computed
COMPARED = frozenset(
    ["Avg Gap", "ToW", "TV", "JS", "activation", "CKA_forget", "CKA_retain", "epsilon"]
)


@dataclass
class Look:
    """What is measured on one network alone, once, before it is compared with others.

    Attributes:
        own: Metrics that need no other network.
        logits: Part -> (N, C) float32.
        labels: Part -> (N,) int64.
        votes: Metric -> (draws, N) bool, which images of the forget set a membership attack takes
            for unseen.
        stranger: (N, C) logits of the same network with fresh weights, for the forget set.
        grams: ``forget`` and ``retain`` -> by point, a layer's (N, N) likeness of those test
            images: of at most ``LARGEST_GRAM``, the same for every network.
        information: Point -> what it tells about the class, in nats, one number a draw.
        curves: One relearning curve a draw.
        shut: How many channels were opened (:mod:`helpers.shut`); where there are any, probes,
            information and relearning are measured on both, and the worse counts.

    Source: this project.
    Lesson: 05_evaluation, "The oracle band".
    """

    own: dict[str, float]
    logits: dict[str, Tensor]
    labels: dict[str, Tensor]
    votes: dict[str, Tensor] = field(default_factory=dict)
    stranger: Tensor | None = None
    grams: dict[str, list[Tensor]] = field(default_factory=dict)
    information: dict[str, list[float]] = field(default_factory=dict)
    curves: list[relearning.Curve] = field(default_factory=list)
    shut: int = 0


def look(
    model: nn.Module, split: ClassSplit, seed: int = 0, draws: int = 1, many: float = shut.MANY
) -> Look:
    """Measure everything that can be measured on one network alone.

    Args:
        model: (N, C, H, W) float32 -> (N, classes) logits; on the device of the images; stays as it
            is. Its classifier is the linear layer that was registered last.
        split: The forget set, the retain set and their test images.
        seed: Of the attacks' samples, the few images of the probes and of relearning.
        draws: How many times relearning, and the estimate of information, are repeated, each time
            with other images.
        many: As for :func:`helpers.shut.find`.

    Returns:
        Metrics, predictions, features' likeness and information, relearning curves.

    Raises:
        InputError: If the outputs are not one finite number a class, there are too few images, or
            no draws.

    Source: the papers named at each metric.
    Lesson: 05_evaluation, "The oracle band".
    """
    check("draws", draws, draws >= 1, "at least 1")
    found, inputs = _predictions(model, split, inside=True)
    found.votes = _votes(found, seed)
    found.own = _shares(found)
    found.stranger = predict(models.fresh(model, seed), split.forget, split.dataset)
    found.own["ZRF"] = outputs.zrf(found.logits["forget"], found.stranger)
    seeds = range(seed, seed + draws)
    _probe(model, split, found, inputs, seeds)
    _relearn(model, split, found, seeds)
    gates = shut.find(model, split.forget.with_all(split.retain), split.dataset, many)
    found.shut = len(gates)
    if gates:
        with shut.opened(model, gates):
            again, inputs = _predictions(model, split, inside=True)
            _probe(model, split, again, inputs, seeds)
            _relearn(model, split, again, seeds)
        _take_worse(found, again)
    return found


def _take_worse(found: Look, again: Look) -> None:
    """Let what opened channels tell count where it is more."""
    for name, value in again.own.items():
        found.own[name] = max(found.own[name], value)
    for point, told in again.information.items():
        found.information[point] = [*map(max, found.information[point], told)]
    found.curves = [
        relearning.Curve(tuple(map(max, one.accuracies, other.accuracies)))
        for one, other in zip(found.curves, again.curves, strict=True)
    ]


def _sampled(part: ImageSet) -> ImageSet:
    """Return the images on which layers are looked at: all of them, if they are small and few."""
    most = max(LAYER_IMAGES, LAYER_PIXELS // part.images[:1].numel()) if len(part) else 0
    return part if len(part) <= most else part.sample(most)


@torch.no_grad()
def _probe(
    model: nn.Module, split: ClassSplit, found: Look, inputs: dict[str, Tensor], seeds: range
) -> None:
    """Measure what the layers and the classifier's input hold. Fills the look and its metrics."""
    dataset, seed, own = split.dataset, seeds[0], found.own
    few = dataset.normalise(split.forget.images[:2])
    names = *features.points(model, few), features.HEAD_INPUT
    gone, parts = torch.tensor(split.forgotten), [getattr(split, name) for name in PARTS]
    few = [_sampled(part) for part in parts]
    # in folders images lie class by class: the first ones would be of few classes
    few[2:] = [p.sample(len(p)) if len(p) > LARGEST_GRAM else p for p in few[2:]]
    first = len(few[2])
    alike = {"forget": slice(min(first, LARGEST_GRAM)),
             "retain": slice(first, first + LARGEST_GRAM)}  # fmt: skip
    few = [few[0].with_all(few[1]), few[2].with_all(few[3])]
    found.grams = {part: [] for part in alike}
    layers = [features.collect(model, part, dataset, names) for part in few]
    sides = [torch.isin(part.labels.cpu(), gone) for part in few]
    for place, name in enumerate(names):  # by place: a wrapped network has other names
        rows = [layer[name] for layer in layers]
        for part, images in alike.items():
            found.grams[part].append(features.gram(rows[1][images]))
        found.information[str(place)] = [
            features.information(rows[0], sides[0], rows[1], sides[1], one) for one in seeds
        ]
    labels = found.labels
    train, test = (
        [torch.cat([of[name] for name in names]) for of in (inputs, labels)]
        for names in (PARTS[:2], PARTS[2:])
    )
    known = *train, *test
    own["linear_probe"] = features.linear_probe(*known, split.forgotten)
    own["knn_probe"] = features.knn_probe(*known, split.forgotten, seed=seed)
    own["head_refit"] = features.refit_head(*known, split.forgotten, seed=seed)
    train_images = split.forget.with_all(split.retain)
    inner = features.refit_inside(
        model, train_images, split.test_forget, dataset, split.forgotten, seed=seed
    )
    own["inner_refit"] = max(inner.values())
    own["whitened_probe"] = features.whitened_probe(*known, split.forgotten, seed=seed)
    head = model.get_submodule(models.layers(model).head)
    known = *train, head.weight, head.bias, *test, split.forgotten
    own["prototype_attack"] = features.prototype_attack(*known, seed=seed)
    if len(split.forgotten) > 1:
        each = features.prototype_attack_by_class(*known, seed=seed)
        own.update({f"{BY_CLASS}:{c}": share for c, share in each.items()})


def _relearn(model: nn.Module, split: ClassSplit, found: Look, seeds: range) -> None:
    """Measure how soon the class comes back. Fills in the curves."""
    train = split.forget.with_all(split.retain)
    found.curves = [
        relearning.relearn(
            model, train, split.test_forget, split.dataset, split.forgotten, seed=one
        )
        for one in seeds
    ]
    found.own["relearn_area"] = _average(relearning.area(curve) for curve in found.curves)


def _predictions(
    model: nn.Module, split: ClassSplit, inside: bool = False
) -> tuple[Look, dict[str, Tensor]]:
    """Predict every part; in the same pass, keep what the classifier receives, if asked for."""
    found, inputs = Look({}, {}, {}), {}
    classes = len(split.dataset.classes)
    for name in PARTS:
        part = getattr(split, name)
        if inside:
            names = features.HEAD_INPUT, features.LOGITS
            seen = features.collect(model, part, split.dataset, names)
            inputs[name], logits = (seen[key] for key in names)
        else:
            logits = predict(model, part, split.dataset)
        check("outputs", tuple(logits.shape[1:]), logits.shape[1:] == (classes,),
              f"one for each of the {classes} classes, the forgotten ones included")  # fmt: skip
        outputs.check_predictions(logits, part.labels)
        found.logits[name], found.labels[name] = logits, part.labels.cpu()
    return found, inputs


def _votes(
    found: Look, seed: int, kinds: Iterable[str] = attacks.SCORES, draws: int | None = None
) -> dict[str, Tensor]:
    """Attack the answers by each score: metric -> (draws, N) bool."""
    named = {"MIA" if kind == "confidence" else f"MIA_{kind}": kind for kind in kinds}
    groups = [(found.logits[n], found.labels[n]) for n in ("retain", "test_retain", "forget")]
    return {
        name: attacks.called_unseen(
            *(attacks.score(*group, kind) for group in groups), seed, draws=draws
        )
        for name, kind in named.items() if name in METRICS
    }  # fmt: skip


def _shares(found: Look) -> dict[str, float]:
    right = {n: outputs.accuracy(found.logits[n], found.labels[n]) for n in PARTS}
    return {
        "UA": 1 - right["forget"], "UA_test": 1 - right["test_forget"], "RA": right["retain"],
        "TA": right["test_retain"],
        **{name: votes.double().mean().item() for name, votes in found.votes.items()},
    }  # fmt: skip


def evaluate(
    model: nn.Module, dataset: Dataset, forgotten: int | Iterable[int], seed: int = 0
) -> dict[str, Any]:
    """Measure the classic numbers of one network.

    Args:
        model: The network, on the device of the data.
        dataset: The data.
        forgotten: Index of the forgotten class, or of several.
        seed: Of the membership attack's samples.

    Returns:
        UA (1 - accuracy on the forget set), UA_test (the same on test images of the class), RA
        (retain set), TA (retained test images), MIA (the share of
        :func:`helpers.attacks.called_unseen` on confidences), all in [0, 1], and ``predicted``:
        :func:`helpers.outputs.label_histogram` of the class's test images.

    Raises:
        InputError: If the class does not exist or a prediction is not finite.

    Source: Unlearn-Sparse (arXiv 2304.04934), section 3; arXiv 2411.11907.
    Lesson: 05_evaluation, "Four classic numbers".
    """
    if dataset.mean.dtype == torch.float32:
        models.check_float32("model", model)
    found, _ = _predictions(model, dataset.split(forgotten))
    found.votes = _votes(found, seed, ["confidence"])
    shares = outputs.label_histogram(found.logits["test_forget"]).tolist()
    return {**_shares(found), "predicted": shares}


def against(found: Look, oracles: Sequence[Look], original: Look) -> dict[str, float]:
    """Compare one network with networks that never saw the class.

    Every distance is taken to each oracle and then averaged (Avg Gap and ToW: to the mean of the
    oracles), so that an oracle which is compared with the others is treated as the network is.

    Args:
        found: What was seen of the network.
        oracles: What was seen of the oracles; the network is none of them.
        original: What was seen of the network before unlearning.

    Returns:
        Every metric of ``METRICS``; IDI only if the layers of the original hold more information
        than those of the oracles. Of several forgotten classes, ``BY_CLASS`` of each as well.

    Source: the papers named at each metric.
    Lesson: 05_evaluation, "The oracle band".
    """
    rows = found.own | _answers(found, oracles)
    alike = similarity(found, oracles)
    rows |= {f"CKA_{part}": _average(layers) for part, layers in alike.items()}
    rows["relearn_steps"] = steps_back(found, 1 - original.own["UA_test"])
    told = [_told([found]), _told(oracles), _told([original])]
    excess = sum(max(0.0, most - least) for most, least in zip(told[2], told[1], strict=True))
    if excess >= features.LEAST_INFORMATION:
        rows["IDI"] = features.idi(*told)
    by_class = (name for name in rows if name.startswith(f"{BY_CLASS}:"))
    return {name: rows[name] for name in (*METRICS, *by_class) if name in rows}


def _answers(found: Look, oracles: Sequence[Look]) -> dict[str, float]:
    """Compute the metrics that are distances to the oracles' answers."""
    mean = {m: _average(o.own[m] for o in oracles) for m in GAP_METRICS}
    own, mine = found.own, _histogram(found)
    return {
        "Avg Gap": average_gap(own, mean),
        "ToW": tow(own, mean),
        "TV": _average(outputs.total_variation(mine, _histogram(o)) for o in oracles),
        "JS": _average(outputs.jensen_shannon(mine, _histogram(o)) for o in oracles),
        "activation": _average(
            outputs.activation_distance(found.logits["forget"], o.logits["forget"]) for o in oracles
        ),
        "epsilon": _average(attacks.worst_case_epsilon(_sure(found), _sure(o)) for o in oracles),
    }


def _told(looks: Sequence[Look]) -> list[float]:
    """Average what each layer tells about the class over draws and networks."""
    return [_average(v for one in looks for v in one.information[p]) for p in looks[0].information]


def similarity(found: Look, oracles: Sequence[Look]) -> dict[str, list[float]]:
    """Compare a network layer by layer with networks that never saw the class.

    Args:
        found: What was seen of the network.
        oracles: What was seen of the oracles; the network is none of them.

    Returns:
        ``forget`` and ``retain`` (test images of the class, and of the others) -> mean CKA over the
        oracles of each layer, in the order of :func:`helpers.features.points`, the classifier's
        input last.

    Source: Kornblith et al. 2019 (arXiv 1905.00414).
    Lesson: 05_evaluation, "What the features still know".
    """
    return {
        part: [
            _average(features.alignment(layer, o.grams[part][i]) for o in oracles)
            for i, layer in enumerate(layers)
        ]
        for part, layers in found.grams.items()
    }


def steps_back(found: Look, known: float) -> float:
    """Count the steps of relearning to what the network before knew of the class.

    Args:
        found: What was seen of the network.
        known: Accuracy of the network before on test images of the class.

    Returns:
        :func:`helpers.relearning.steps_to_regain`, averaged over the draws of images.

    Source: the relearn time of Chundawat et al. 2022 (arXiv 2201.05629), anamnesis index.
    Lesson: 05_evaluation, "How fast it comes back".
    """
    return _average(relearning.steps_to_regain(curve, known) for curve in found.curves)


def _average(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _histogram(found: Look) -> list[float]:
    return outputs.label_histogram(found.logits["test_forget"]).tolist()


def _sure(found: Look) -> Tensor:
    return attacks.scaled_logit(found.logits["forget"], found.labels["forget"])


def average_gap(metrics: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """Return the mean absolute distance to the oracle over UA, RA, TA and MIA.

    Args:
        metrics: Of the network, in [0, 1].
        oracle: Of the retrained one (or means over several), in [0, 1].

    Returns:
        A number in [0, 1]; 0 where all four agree.

    Source: the metrics of Unlearn-Sparse (arXiv 2304.04934), averaged as in SalUn
        (arXiv 2310.12508).
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


# ------------------------------------------------------------------------------------------------
# a whole audit


def bands(oracles: Sequence[Look], original: Look, split: ClassSplit) -> dict[str, statistics.Band]:
    """Find out within what limits networks that never saw the class lie.

    Args:
        oracles: What was seen of at least three of them.
        original: What was seen of the network before unlearning.
        split: Gives the number of images, which is how finely a share can be told.

    Returns:
        Metric -> the interval in which one more oracle is expected, from each oracle compared with
        the others.

    Raises:
        InputError: If there are too few oracles.

    Source: this project; leave one out.
    Lesson: 05_evaluation, "The oracle band".
    """
    return _limits(held_out(oracles, original), split)


def _limits(held: Sequence[Mapping[str, float]], split: ClassSplit) -> dict[str, statistics.Band]:
    limits = {}
    for name in held[0]:
        values = [row[name] for row in held if name in row]
        if len(values) == len(held):
            metric = form(name)
            resolution = 1 / _images(name, split) if metric.part else 0.0
            resolution = 1.0 if name == "relearn_steps" else resolution
            limit = statistics.band(values, resolution=resolution, side=metric.side)
            if metric.part:  # a share
                limit = replace(limit, low=max(limit.low, 0.0), high=min(limit.high, 1.0))
            limits[name] = limit
    return limits


def _images(name: str, split: ClassSplit) -> int:
    """Count the images that a metric is a share of."""
    part, (_, _, of) = getattr(split, form(name).part), name.partition(":")
    return int((part.labels == int(of)).sum()) if of else len(part)


def decides(name: str, low: Any, high: Any) -> Any:
    """Say whether a band leaves any value outside that its metric can take.

    All images or none is what an attack on easy images finds: a single oracle that differs from
    the others then makes a band from 0 to 1, and inside of that everything is.

    Args:
        name: Of the metric; or another one, as for :func:`form`.
        low: Lower end of the band, or many of them.
        high: Upper end, likewise.

    Returns:
        A truth value, or as many.

    Source: this project.
    Lesson: 05_evaluation, "The oracle band".
    """
    return (low > 0) | (high < form(name).most)


def held_out(oracles: Sequence[Look], original: Look) -> list[dict[str, float]]:
    """Compare each oracle with the others.

    Args:
        oracles: What was seen of at least three of them.
        original: What was seen of the network before unlearning.

    Returns:
        One mapping an oracle, as from :func:`against`.

    Raises:
        InputError: If there are too few.

    Source: this project; leave one out.
    Lesson: 05_evaluation, "The oracle band".
    """
    check("oracles", len(oracles), len(oracles) >= LEAST_ORACLES, ENOUGH)
    return [against(one, [o for o in oracles if o is not one], original) for one in oracles]


def audit(
    model: nn.Module,
    original: nn.Module,
    oracles: Sequence[nn.Module],
    split: ClassSplit,
    *,
    seed: int = 0,
    draws: int = 3,
    checked: bool = False,
) -> dict[str, Any]:
    """Find out whether a network forgot: every metric, beside the band of the oracles.

    Args:
        model: The network to judge; any ``nn.Module`` with a linear classifier, on the device of
            the images.
        original: The network before unlearning.
        oracles: At least three networks trained without the class, by the recipe of the original
            and with different seeds.
        split: The images, from :meth:`helpers.data.Dataset.split`.
        seed: Of the attacks' and probes' samples.
        draws: Repetitions of relearning and of the estimate of information.
        checked: Whether all networks have passed :func:`check_one`, which looks at every image.

    Returns:
        A record of plain data: ``about``, ``networks`` (with their hashes; of an oracle also how
            many bands it ``missed`` when the others judged it, None where they are too few) and
            ``metrics``, one mapping each with value, interval over images, band, the oracles'
            values, the original's, and whether it lies inside.

    Raises:
        InputError: If the networks cannot be judged: too few oracles, an oracle that knows the
            class or lacks another one, outputs in another order or not finite, too few images, or
            no draws.

    Source: the papers named at each metric; the band is this project's.
    Lesson: 05_evaluation, "Audit your own model".
    """
    oracles = list(oracles)
    _check_networks(model, original, oracles, split, checked)
    judged, before, *others = (
        look(one, split, seed, draws, many=0)  # whose networks these are is not known
        for one in (model, original, *oracles)
    )
    held = held_out(others, before)
    limits = _limits(held, split)
    found, known = against(judged, others, before), against(before, others, before)
    ends = _intervals(judged, others, before, split, seed)
    rows = []
    for name, limit in limits.items():
        if name not in found:
            continue
        metric, (_, _, of) = form(name), name.partition(":")
        of = f" of {split.dataset.classes[int(of)]}" if of else ""
        rows.append({
            "name": name, "title": metric.title + of, "group": metric.group, "what": metric.what,
            "value": found[name], "interval": ends[name],
            "band": [_finite(limit.low), _finite(limit.high)], "side": metric.side,
            "oracles": [row[name] for row in held], "original": known[name],
            "inside": limit.holds(found[name]), "original_inside": limit.holds(known[name]),
        })  # fmt: skip
    dataset = split.dataset
    about = {
        "forgotten": list(split.forgotten), "classes": list(dataset.classes),
        "data": dataset.name, "data_sha256": dataset.fingerprint,
        "images": {name: len(getattr(split, name)) for name in (*PARTS, "validation_forget")},
        "taken": list(dataset.taken), "seed": seed, "level": 0.95,
    }  # fmt: skip
    networks = {
        "model": _describe(model, judged), "original": _describe(original, before),
        "oracles": [
            _describe(one, seen) | {"missed": missed}
            for one, seen, missed in zip(
                oracles, others, _missed(others, before, split), strict=True
            )
        ],
    }  # fmt: skip
    return {"about": about, "networks": networks, "metrics": rows}


def _missed(oracles: Sequence[Look], original: Look, split: ClassSplit) -> list[int | None]:
    """Judge each oracle by the others, and count the bands that it lies outside of."""
    if len(oracles) <= LEAST_ORACLES:
        return [None] * len(oracles)
    counts = []
    for one in oracles:
        others = [o for o in oracles if o is not one]
        limits, found = bands(others, original, split), against(one, others, original)
        counts.append(sum(not limits[name].holds(found[name]) for name in limits if name in found))
    return counts


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def _describe(model: nn.Module, seen: Look) -> dict[str, Any]:
    names = models.layers(model).prunable
    return {
        "sha256": models.fingerprint(model), "architecture": type(model).__name__,
        "parameters": models.count_parameters(model), "zeros": pruning.sparsity(model, names),
        "shut": seen.shut,
    }  # fmt: skip


def _intervals(
    found: Look, oracles: Sequence[Look], original: Look, split: ClassSplit, seed: int
) -> dict[str, list[float]]:
    """Say how far each number would move with other images of the same kind.

    Shares of images have Wilson's interval; distances are computed again on images drawn with
    replacement, the same for the network and the oracles; what a draw of a few images decides
    (relearning, information) spans what the draws gave; what averages several draws (head refit,
    kNN, one-image recall) has Wilson's interval alone. Of membership attacks, and of Avg Gap, the
    attacks are drawn again with the images: where a score tells members from others hardly at all,
    what an attack learned from decides what it calls the rest, often all of them alike. Where a
    single one is the number, the interval reaches to what the others found.
    """
    value = against(found, oracles, original)
    ends = {}
    for name in value:
        if form(name).part:
            n = _images(name, split)
            interval = statistics.share_interval(round(value[name] * n), n)
            ends[name] = [interval.low, interval.high]
    single = len(found.votes["MIA"]) < ATTACKS
    for name, values in _over_images(found, oracles, seed).items():
        # images that repeat shift these numbers; how far they scatter is what is asked for
        reach = np.quantile(values, [0.025, 0.975])
        drawn = np.clip(value[name] + reach - np.mean(values), 0, METRICS[name].most).tolist()
        attacked = reach.tolist() if single and (name in found.votes or name == "Avg Gap") else []
        ends[name] = [*ends.get(name, []), *drawn, *attacked]
    draws = [
        against(replace(found, curves=[curve], information=dict(zip(
            found.information, ([v] for v in told), strict=True))), oracles, original)
        for curve, *told in zip(found.curves, *found.information.values(), strict=True)
    ]  # fmt: skip
    ends["relearn_area"] += [relearning.area(curve) for curve in found.curves]
    for name in ("relearn_steps", "IDI"):
        ends[name] = [row[name] for row in draws if name in row]
    return {
        name: [min([*ends[name], value[name]]), max([*ends[name], value[name]])] for name in value
    }


def _over_images(
    found: Look, oracles: Sequence[Look], seed: int, repeats: int = 100
) -> dict[str, list[float]]:
    """Compute what images decide for images, and attacks, drawn anew, several times."""
    draw = torch.Generator().manual_seed(seed)
    picks = [{name: torch.randint(len(labels), (len(labels),), generator=draw)
              for name, labels in found.labels.items()} for _ in range(repeats)]  # fmt: skip
    draws = len(found.votes["MIA"])  # that the number itself is the mean of
    if draws < ATTACKS:
        found = replace(found, votes=found.votes | _votes(found, seed, draws=ATTACKS))
    rows = []
    for one in picks:
        attacked = torch.rand(draws, generator=draw)
        mine, *others = (_resampled(look, one, attacked) for look in (found, *oracles))
        kept = {name: mine.own[name] for name in ("ZRF", *mine.votes)}
        rows.append(_answers(mine, others) | kept)
    values = {name: [row[name] for row in rows] for name in rows[0]}
    for part, layers in found.grams.items():
        n, name = len(layers[0]), f"CKA_{part}"
        values[name] = []
        for _ in range(repeats):
            chosen = torch.randint(n, (n,), generator=draw)
            mine = [features.picked(layer, chosen) for layer in layers]  # once for all oracles
            values[name].append(_average(
                features.alignment(layer, features.picked(theirs, chosen))
                for o in oracles for layer, theirs in zip(mine, o.grams[part], strict=True)
            ))  # fmt: skip
    return values


def _resampled(found: Look, picks: Mapping[str, Tensor], attacked: Tensor) -> Look:
    """Return what would have been seen of the answers to other images, those picked.

    Attacks are picked by numbers in [0, 1): of one network there may be more than of others.
    """
    mine = picks["forget"]
    one = replace(
        found,
        logits={name: found.logits[name][picks[name]] for name in PARTS},
        labels={name: found.labels[name][picks[name]] for name in PARTS},
        votes={name: votes[(attacked * len(votes)).long()][:, mine]
               for name, votes in found.votes.items()},
        stranger=found.stranger[mine],
    )  # fmt: skip
    zrf = outputs.zrf(one.logits["forget"], one.stranger)
    return replace(one, own=found.own | _shares(one) | {"ZRF": zrf})


def check_images(dataset: Dataset) -> None:
    """Refuse data that are too few for an audit, before anything is trained for it.

    Args:
        dataset: The data.

    Raises:
        InputError: If a class has too few training images for the metrics of features, of
            relearning or of privacy, or too few test images for those of features.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """
    parts = {
        "training": (dataset.train, max(relearning.PER_CLASS, attacks.LEAST)),
        "test": (dataset.test, 2),  # CKA compares images with each other
    }
    for part, (images, least) in parts.items():
        counts = images.labels.bincount(minlength=len(dataset.classes)).tolist()
        few = min(counts)
        name = dataset.classes[counts.index(few)]
        ok = few >= least
        check(f"{part} images of class {name!r}", few, ok, f"at least {least} for an audit")


def _check_networks(
    model: nn.Module,
    original: nn.Module,
    oracles: Sequence[nn.Module],
    split: ClassSplit,
    checked: bool = False,
) -> None:
    """Refuse networks whose comparison would mean nothing; ``checked`` as for :func:`audit`."""
    check("oracles", len(oracles), len(oracles) >= LEAST_ORACLES, ENOUGH)
    check_images(split.dataset)
    named = {"model": model, "original": original}
    named |= {f"oracle {i}": o for i, o in enumerate(oracles, 1)}
    seen: dict[str, nn.Module] = {}
    places: dict[str, int] = {}
    for name, network in named.items():
        device = next((p.device.type for p in network.parameters()), "no parameters")
        check(name, device, device == split.forget.images.device.type, "the device of the images")
        images = split.dataset.normalise(split.forget.images[:2])
        models.check_answers(name, network, images, len(split.dataset.classes))
        found = len(features.points(network, images))
        known = places.setdefault("model", found)
        check(f"places where layers of {name} are read", found, found == known,
              f"{known}, as in the model: one architecture, pruned or not")  # fmt: skip
        models.check_state(name, network)
        twin = next((other for other, one in seen.items() if _nearly_same(one, network)), None)
        check(name, f"the same weights as {twin} to within {APART:.0%}",
              twin is None or name == "original",
              "networks of their own, which differ by more in some tensor; another seed gives "
              "another oracle")  # fmt: skip
        seen[name] = network
        if not checked:
            check_one(name, network, split)


def _nearly_same(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two networks differ in no floating tensor by as much as ``APART`` of its norm.

    A frozen backbone may be common to them: then their classifiers differ.
    """
    mine, theirs = (
        [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        for network in (one, other)
    )
    return [tensor.shape for tensor in mine] == [tensor.shape for tensor in theirs] and all(
        a.device == b.device and bool((a.double() - b.double()).norm() <= APART * b.double().norm())
        for a, b in zip(mine, theirs, strict=True)
    )


def check_one(name: str, network: nn.Module, split: ClassSplit, ours: bool = False) -> None:
    """Refuse a network that is not what it is called.

    Args:
        name: ``model``, ``original``, or ``oracle`` and its number.
        network: The network.
        split: The images.
        ours: Whether it was trained on these labels by this package, so that it may be bad, but
            its outputs are in their order.

    Raises:
        InputError: If an oracle recognises the forgotten class or knows nothing of another, the
            original does not know the class, or the outputs are in another order than the labels or
            do not come from the last linear layer.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """
    try:
        found, _ = _predictions(network, split)
    except InputError as error:  # of which network?
        raise InputError(f"{name}: {error}") from error
    classes = split.dataset.classes
    if not ours:
        _check_order(name, found, classes)
    _check_head(name, network, split)
    right = _recall(found, "test_forget", len(classes)), _recall(found, "retain", len(classes))
    forgotten = [classes[c] for c in split.forgotten]
    remedy = "train it for longer, or on more images"
    if ours:
        remedy = ("train for longer (--train-epochs; in Python, train), on more or larger images, "
                  "or another model")  # fmt: skip
    share = _average(right[0][c] for c in split.forgotten)
    if name == "original":
        least = min(2 / len(classes), (1 + 1 / len(classes)) / 2)  # well above guessing
        check(name, f"{share:.0%} of {forgotten} recognised", share > least,
              f"more than {least:.0%}, or there is nothing to forget: {remedy}")  # fmt: skip
    if name.startswith("oracle"):
        check(name, f"{share:.0%} of {forgotten} recognised", share < 0.5,
              "a network that was trained without the class")  # fmt: skip
        for c, recall in right[1].items():
            check(name, f"{recall:.0%} of class {classes[c]!r} recognised", recall > 0.1,
                  f"a network that knows every class but the forgotten ones: {remedy}")  # fmt: skip


def _check_head(name: str, network: nn.Module, split: ClassSplit) -> None:
    """Refuse a network whose answers do not come from the layer that is taken for its classifier.

    Masked logits and monotone functions of them may follow it: the retained class that is largest
    must stay the same. And they must come from features that probes can read: what lies a million
    deviations away from zero counts as constant there.
    """
    head, part = models.layers(network).head, split.test_retain.sample(LAYER_IMAGES)
    names = features.HEAD_INPUT, head, features.LOGITS
    seen = features.collect(network, part, split.dataset, names)
    received, said, given = (seen[key] for key in names)
    retained = [c for c in range(len(split.dataset.classes)) if c not in split.forgotten]
    same = said.shape == given.shape
    share = (
        (said[:, retained].argmax(1) == given[:, retained].argmax(1)) if same else torch.zeros(1)
    )
    check(name, f"{share.double().mean():.0%} of its answers from {head}", bool(share.all()),
          "one whose classifier is the linear layer that it registers last")  # fmt: skip
    layer = network.get_submodule(head)
    still = torch.where(features.scale(received.double()) > 0, received, received.mean(0))
    answers = still @ layer.weight.detach().cpu().T
    answers += 0 if layer.bias is None else layer.bias.detach().cpu()
    other = answers[:, retained].argmax(1) != said[:, retained].argmax(1)
    check(name, f"{other.double().mean():.0%} of its answers by features that vary by less than a "
          "millionth of their size", other.double().mean() < 0.05,
          "features that single precision resolves: move them towards zero")  # fmt: skip


def _recall(found: Look, part: str, classes: int) -> dict[int, float]:
    """Return class -> share of its images that are recognised, for the classes that occur."""
    answers, labels = found.logits[part].argmax(1), found.labels[part]
    return {
        c: (answers[labels == c] == c).double().mean().item()
        for c in range(classes) if bool((labels == c).any())
    }  # fmt: skip


def _check_order(name: str, found: Look, classes: Sequence[str]) -> None:
    """Refuse outputs that fit the labels much better in another order."""
    from scipy.optimize import linear_sum_assignment

    answers, labels = found.logits["retain"].argmax(1), found.labels["retain"]
    size = len(classes)
    table = torch.bincount(labels * size + answers, minlength=size * size).view(size, size)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    given = table.sum(0)
    moved = [  # given rather there than where it belongs, and mostly there: not everywhere
        (r, c) for r, c in zip(rows, columns, strict=True)
        if table[r, c] > table[r, r] and 2 * table[r, c] > given[c]
    ]  # fmt: skip
    seen = sum(int(table[r].sum()) for r, _ in moved)
    elsewhere = sum(int(table[r, c]) for r, c in moved)  # a network that broke down has no order
    words = [f"{classes[c]!r} where {classes[r]!r} is meant" for r, c in moved]
    right = f"{table.diagonal().sum().item() / len(labels):.0%} right"
    check(name, right, len(moved) < 2 or elsewhere <= 0.5 * seen,
          f"the order of the labels; it seems to answer {', '.join(words[:3])}")  # fmt: skip


def shown(name: str, value: float | None) -> str:
    """Write a metric's number for a person.

    Args:
        name: One of ``METRICS``; another one is taken for a share.
        value: The number, or None for none.

    Returns:
        Shares in per cent, everything else in its unit and with its decimals; never a minus zero.
        A dash for none.

    Source: this project.
    Lesson: 05_evaluation, "The lie detector".
    """
    if value is None:
        return "–"
    metric = form(name)
    text = f"{100 * value if metric.unit else value:.{metric.decimals}f}"
    text = text.removeprefix("-") if not float(text) else text
    return f"{text} {metric.unit}".rstrip()


def form(name: str) -> Metric:
    """Return how a metric is written.

    Args:
        name: One of ``METRICS``, alone or with the class that it is of (``prototype_attack:3``);
            or another one, as the record of another version may have.

    Returns:
        The metric; for another name a share.

    Source: this project.
    Lesson: 05_evaluation, "The lie detector".
    """
    return METRICS.get(name.partition(":")[0], Metric("", name, "both", ""))
