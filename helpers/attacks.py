"""Can an attacker still tell? Privacy metrics: predictions or scores in, numbers out.

Population attacks judge every image by one rule (the membership attack, epsilon); attacks example
by example (U-LiRA, KLoM) compare many unlearned networks with many that never saw the class. The
second kind finds what the first one misses, and costs tens of trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helpers import data, outputs
from helpers.config import check, choose

if TYPE_CHECKING:
    from sklearn.svm import SVC

SCORES = ("correctness", "confidence", "entropy", "m_entropy", "prob")
LEAST = data.LEAST  # examples or networks below which no number is returned
MOST = 5000  # images of the larger group that an attack learns from: its time grows with the square
DRAWS = 10  # of members, where the attack learns from few: which ones can decide about all others
LEAST_SHADOWS = 4  # for a mean and a variance
_ROUNDING = 1e-9  # a smaller decision value is what is left where the votes of two groups cancel
_LOG_ZERO = math.log(1e-30)  # what the published attacks put in place of log 0

Predictions = tuple[Tensor, Tensor]  # (N, C) logits and (N,) labels


def score(logits: Tensor, labels: Tensor, kind: str, compat: bool = False) -> Tensor:
    """Return what a membership attack looks at, for each image.

    ``m_entropy`` is -(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i), with logarithms of
    at least 1e-30. The code that most papers ran has two mistakes in it. Its assignment
    ``[:, labels]`` replaces p by 1 - p in the columns of *every* label of the batch, for all rows,
    and both its logarithms are log p. What it computes is -sum over c of q_c log p_c, where q_c is
    1 - p_c for each class c that occurs among the labels and p_c for the others. ``compat``
    reproduces that, with log 0 = log 1e-30 where single precision knows only 0. An image's score
    then depends on which labels stand beside it; published, a whole group is one batch, so pass
    a whole group. The images of one forgotten class have one label, and so their scores are on
    another scale than those of retained images. The other four kinds have no such mistake.

    Args:
        logits: (N, C) float, unnormalised; N at least 1, C at least 2.
        labels: (N,) int64 in [0, C).
        kind: One of :data:`SCORES`.
        compat: Whether ``m_entropy`` has the mistakes of the published code.

    Returns:
        (N,) float64, or (N, C) for ``"prob"``: 0 or 1 for correctness; in [0, 1] for confidence
        and prob; in [0, log C] nats for entropy; at least 0 nats for m_entropy.

    Raises:
        InputError: If the sizes differ, a logit is not finite, a label is no class or the kind is
            unknown.

    Source: Song & Mittal 2021 (arXiv 2003.10595), section 4; with ``compat`` the function
        ``m_entropy`` of evaluation/SVC_MIA.py, OPTML-Group/Unlearn-Sparse (the same in SalUn's).
    Lesson: 05_evaluation, "The membership attack".
    """
    choose("kind", kind, SCORES)
    logits, labels = _predictions(logits, labels)
    if kind == "confidence":
        return outputs.confidence(logits, labels)
    p = logits.softmax(1)
    if kind == "prob":
        return p
    if kind == "correctness":
        return (p.argmax(1) == labels).double()
    if kind == "entropy":
        return -torch.special.xlogy(p, p).sum(1)
    return _published_m_entropy(p, labels) if compat else _m_entropy(p, labels)


def _m_entropy(p: Tensor, labels: Tensor) -> Tensor:
    own = torch.zeros_like(p, dtype=torch.bool).scatter_(1, labels[:, None], True)
    weight, argument = torch.where(own, 1 - p, p), torch.where(own, p, 1 - p)
    return -(weight * argument.log().clamp(min=_LOG_ZERO)).sum(1)


def _published_m_entropy(p: Tensor, labels: Tensor) -> Tensor:
    weight = p.clone()
    present = labels.unique()  # the same columns as p[:, labels], each once
    weight[:, present] = 1 - p[:, present]
    known = p.float() > 0  # the published code works in single precision, where small ones are 0
    return -(weight * torch.where(known, p.log(), torch.full_like(p, _LOG_ZERO))).sum(1)


def membership(
    members: Predictions,
    non_members: Predictions,
    forget: Predictions,
    kind: str = "confidence",
    *,
    balanced: bool = True,
    compat: bool = False,
    seed: int = 0,
    draws: int | None = None,
) -> float:
    """Run one of the five membership attacks on a network's predictions.

    The published number is ``compat=True, balanced=False`` with as many members as non-members. The
    attack learns from at most :data:`MOST` images of the larger group, drawn in the proportions of
    the two, and judges all of the forget set; the shares of several draws are averaged.

    Args:
        members: Logits (N, C) and labels (N,) of retained training images; N at least 10.
        non_members: Logits (M, C) and labels (M,) of retained test images; M at least 10.
        forget: Logits (K, C) and labels (K,) of training images of the forgotten class.
        kind: One of :data:`SCORES`; report ``"confidence"``.
        balanced: Whether the larger group is cut to the size of the smaller one.
        compat: As in :func:`score`; each group is one batch.
        seed: Of the choice of the images that it learns from.
        draws: As in :func:`called_unseen`; the published number is of one.

    Returns:
        The share of forget images called non-members, in [0, 1]; 1 where all look unseen.

    Raises:
        InputError: As :func:`score` and :func:`called_unseen`.

    Source: ``SVC_MIA`` of OPTML-Group/Unlearn-Sparse (arXiv 2304.04934), section 3.
    Lesson: 05_evaluation, "The membership attack".
    """
    groups = [score(*group, kind, compat) for group in (members, non_members, forget)]
    votes = called_unseen(*groups, seed=seed, balanced=balanced, draws=draws)
    return votes.double().mean().item()


def called_unseen(
    members: Tensor,
    non_members: Tensor,
    forget: Tensor,
    seed: int = 0,
    balanced: bool = True,
    draws: int | None = None,
) -> Tensor:
    """Fit membership attacks and say which images of the forget set they call non-members.

    A support vector machine learns to tell members from non-members by their scores. Both groups
    are cut to the size of the smaller one: unbalanced, it may answer the same for everyone. Where
    it finds nothing to tell them by, such as one score for all, it calls nobody a non-member.

    Of a network that is sure of nearly every image, the few it is not sure of decide, and so does
    whether they are drawn: one attack calls the whole forget set unseen, the next nothing of it.
    Therefore the attack is fitted several times.

    Args:
        members: (N,) or (N, C) scores of retained training images; N at least 10.
        non_members: (M,) or (M, C) scores of retained test images; M at least 10.
        forget: (K,) or (K, C) scores of training images of the forgotten class; K at least 1.
        seed: Of the choices of the images that they learn from; another one makes all of them anew.
        balanced: Whether to cut the groups; PruneLoRA's own code uses 9,000 against 5,000.
        draws: How many attacks, each with other images; at least 1. By default :data:`DRAWS`, or
            fewer where these would take longer than one that learns from :data:`MOST` images, or
            one where all images are used.

    Returns:
        (draws, K) bool: one row an attack.

    Raises:
        InputError: If a group is too small, the widths differ, a score is not finite or there are
            no draws.

    Source: ``SVC_MIA`` of OPTML-Group/Unlearn-Sparse (C = 3, RBF, gamma "auto"), balanced.
    Lesson: 05_evaluation, "The membership attack".
    """
    named = {"members": members, "non_members": non_members, "forget": forget}
    groups = [_columns(name, scores) for name, scores in named.items()]
    widths = [group.shape[1] for group in groups]
    check("columns of scores", widths, len(set(widths)) == 1, "the same for all three groups")
    draws = _draws(*groups[:2], balanced) if draws is None else draws
    check("draws", draws, draws >= 1, "at least 1")
    learnt = (
        _fit(*_cut(*groups[:2], one) if balanced else groups[:2], one)
        for one in range(seed * draws, (seed + 1) * draws)
    )
    return torch.stack([_decisions(attack, groups[2]) < 0 for attack in learnt])


def _draws(members: Tensor, non_members: Tensor, balanced: bool) -> int:
    """Return over how many attacks to average: one, where there is no choice or each is long."""
    size = min(len(members), len(non_members))
    if not balanced or len(members) == len(non_members):
        return 1
    return max(1, min(DRAWS, (MOST // size) ** 2))


def attack_scores(
    members: Predictions,
    non_members: Predictions,
    kind: str = "confidence",
    *,
    compat: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Fit a membership attack on half of the images and judge the other half.

    An attack judged on the images that it was fitted on always looks strong. Give the result to
    :func:`roc` and :func:`auc_interval`: only where 0.5 lies outside of the interval does this
    score tell members from non-members at all.

    Args:
        members: Logits (N, C) and labels (N,) of retained training images; N at least 20.
        non_members: Logits (M, C) and labels (M,) of retained test images; M at least 20.
        kind: One of :data:`SCORES`.
        compat: As in :func:`score`.
        seed: Of the balancing and of the halves.

    Returns:
        The attack's decision values of held-out members and of as many held-out non-members, each
        (min(N, M) / 2 rounded up,) float64; larger means "member".

    Raises:
        InputError: As :func:`score`, or if a group is too small.

    Source: this project; the attack is that of :func:`called_unseen`.
    Lesson: 05_evaluation, "The membership attack".
    """
    named = {"members": members, "non_members": non_members}
    groups = [_columns(name, score(*g, kind, compat), 2 * LEAST) for name, g in named.items()]
    both = _cut(*groups, seed)
    half = len(both[0]) // 2
    attack = _fit(*(group[:half] for group in both), seed)
    return _decisions(attack, both[0][half:]), _decisions(attack, both[1][half:])


def _cut(members: Tensor, non_members: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw equally many of both, in random order: members first, then non-members."""
    draw = torch.Generator().manual_seed(seed)
    size = min(len(members), len(non_members))
    first = members[torch.randperm(len(members), generator=draw)[:size]]
    return first, non_members[torch.randperm(len(non_members), generator=draw)[:size]]


def _fit(members: Tensor, non_members: Tensor, seed: int) -> SVC:
    """Fit the attack; from large groups it learns from a sample in the same proportions."""
    from sklearn.svm import SVC

    share, draw = MOST / max(len(members), len(non_members)), torch.Generator().manual_seed(seed)
    groups = [
        group if share >= 1 else group[torch.randperm(len(group), generator=draw)[
            : max(LEAST, round(share * len(group)))]]
        for group in (members, non_members)
    ]  # fmt: skip
    truth = torch.cat([torch.ones(len(groups[0])), torch.zeros(len(groups[1]))]).long()
    # without a seed it takes a number from NumPy's global generator, though it has no use for one
    attack = SVC(C=3, kernel="rbf", gamma="auto", random_state=0)
    return attack.fit(torch.cat(groups).numpy(), truth.numpy())


def _decisions(attack: SVC, scores: Tensor) -> Tensor:
    """Return (N,) float64, above 0 for "member"; 0 where all that is left is rounding."""
    values = torch.from_numpy(attack.decision_function(scores.numpy())).double()
    return torch.where(values.abs() < _ROUNDING, 0.0, values)


# ------------------------------------------------------------------------------------------------
# how well two samples of one score can be told apart


@dataclass(frozen=True, eq=False)
class Roc:
    """The operating points of an attacker who answers "positive" from a threshold upwards.

    Attributes:
        fpr: (T,) float64 in [0, 1], ascending: shares of the negatives called positive.
        tpr: (T,) float64 in [0, 1], ascending: shares of the positives called positive.
        auc: Area under the curve in [0, 1]; 0.5 is chance.

    Source: the usual definition.
    Lesson: 05_evaluation, "Example by example".
    """

    fpr: Tensor
    tpr: Tensor
    auc: float

    def tpr_at(self, fpr: float = 0.01) -> float:
        """Return the best true positive rate that keeps to a false positive rate.

        Nothing is interpolated. With fewer than 1 / fpr negatives not a single false alarm is
        allowed, and the answer is the share of positives above every negative.

        Args:
            fpr: The false positive rate allowed, in [0, 1].

        Returns:
            A share in [0, 1]; about ``fpr`` by chance.

        Raises:
            InputError: If ``fpr`` is no share.

        Source: Carlini et al. 2022, LiRA (arXiv 2112.03570), section 3.
        Lesson: 05_evaluation, "Example by example".
        """
        check("fpr", fpr, 0 <= fpr <= 1, "a share in [0, 1]")
        return float(self.tpr[self.fpr <= fpr].max())


def roc(positive: Tensor, negative: Tensor) -> Roc:
    """Return the ROC curve of a score; equal scores are one step of it.

    Args:
        positive: (P,) scores that should be large, such as those of members; P at least 1.
        negative: (Q,) scores that should be small; Q at least 1.

    Returns:
        The curve from (0, 0) to (1, 1), and its area; 0.5 for a constant score.

    Raises:
        InputError: If a group is empty or a score is not finite.

    Source: ``sklearn.metrics.roc_curve``.
    Lesson: 05_evaluation, "Example by example".
    """
    from sklearn import metrics

    positive, negative = _floats("positive", positive, 1), _floats("negative", negative, 1)
    truth = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).long()
    scores = torch.cat([positive, negative])
    fpr, tpr, _ = metrics.roc_curve(truth.numpy(), scores.numpy(), drop_intermediate=False)
    return Roc(torch.from_numpy(fpr), torch.from_numpy(tpr), float(metrics.auc(fpr, tpr)))


def auc_interval(
    positive: Tensor, negative: Tensor, level: float = 0.95, repeats: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return a bootstrap interval of the area under the ROC curve.

    Both groups are drawn anew with replacement. It speaks for other images of this network, not
    for another network. Groups that do not overlap give (1, 1), however few they are.

    Args:
        positive: (P,) scores that should be large; P at least 10.
        negative: (Q,) scores that should be small; Q at least 10.
        level: Of confidence, in (0, 1).
        repeats: How often to draw, at least 100.
        seed: Of the draws.

    Returns:
        The ends of the percentile interval, in [0, 1].

    Raises:
        InputError: If a group is too small, a score is not finite or a setting is out of range.

    Source: Efron & Tibshirani 1993, chapter 13; the area by Mann and Whitney's statistic.
    Lesson: 05_evaluation, "Example by example".
    """
    positive, negative = _floats("positive", positive), _floats("negative", negative)
    check("level", level, 0 < level < 1, "above 0 and below 1")
    check("repeats", repeats, repeats >= 100, "at least 100")
    place = torch.cat([positive, negative]).unique(return_inverse=True)[1]
    groups, places = place.split([len(positive), len(negative)]), int(place.max()) + 1
    draw = torch.Generator().manual_seed(seed)
    areas = torch.empty(repeats, dtype=torch.float64)
    for turn in range(repeats):
        p, q = (_resampled(group, places, draw) for group in groups)
        areas[turn] = (p * (q.cumsum(0) - q / 2)).sum()  # below, and half of the equal ones
    areas /= len(positive) * len(negative)  # exact until here
    tail = (1 - level) / 2
    low, high = areas.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _resampled(places: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Draw with replacement; return the number at each place of the common order."""
    drawn = places[torch.randint(len(places), (len(places),), generator=draw)]
    return torch.bincount(drawn, minlength=size).double()


def worst_case_epsilon(model_scores: Tensor, oracle_scores: Tensor, delta: float = 1e-5) -> float:
    """Return epsilon of the best threshold that tells an unlearned network from an oracle.

    An attacker sees one score and says "unlearned" or "oracle". A threshold's epsilon is the
    smaller of log((1 - delta - FPR) / FNR) and log((1 - delta - FNR) / FPR); the largest over all
    thresholds, in both directions, counts, and at least 0. A rate of 0 means no more than "less
    than a sample of n resolves" and counts as 1 / (2n). This sets a ceiling: for n scores each,
    samples that do not overlap have epsilon log(2n (1 - delta) - 1), about log 2n. Compare only
    values from equally many scores. Two samples of one distribution are a little above 0.

    Args:
        model_scores: (N,) scores of forget images under the unlearned network; N at least 10.
        oracle_scores: (M,) scores of them under a network that never saw the class; M at least 10.
        delta: The probability with which the guarantee may fail, in [0, 1).

    Returns:
        Epsilon, at least 0, finite; 0 where no threshold helps. Exchanging the two samples, or an
        increasing function of all scores, does not change it.

    Raises:
        InputError: If a group is too small, a score is not finite or delta is out of range.

    Source: Triantafillou et al. 2024, NeurIPS 2023 challenge (arXiv 2406.09073), in the form of
        the Unlearning Comparator, which takes the smaller of the two bounds; the challenge takes
        the larger one, leaves out thresholds with a rate of 0, and is infinite where both are 0.
    Lesson: 05_evaluation, "The oracle band".
    """
    unlearned = _floats("model_scores", model_scores).sort().values
    oracles = _floats("oracle_scores", oracle_scores).sort().values
    check("delta", delta, 0 <= delta < 1, "at least 0 and below 1")
    n, m = len(unlearned), len(oracles)
    thresholds = torch.cat([unlearned, oracles]).unique()
    missed = torch.searchsorted(unlearned, thresholds).double() / n  # strictly below
    alarms = 1 - torch.searchsorted(oracles, thresholds).double() / m
    fnr = torch.cat([missed, 1 - missed]).clamp(min=1 / (2 * n))
    fpr = torch.cat([alarms, 1 - alarms]).clamp(min=1 / (2 * m))
    first = (1 - delta - fpr).clamp(min=1e-300).log() - fnr.log()
    second = (1 - delta - fnr).clamp(min=1e-300).log() - fpr.log()
    return max(0.0, float(torch.minimum(first, second).max()))


# ------------------------------------------------------------------------------------------------
# example by example


def scaled_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p_y / (1 - p_y)) of each image, the margin of its label.

    It is the label's logit minus the log-sum-exp of the others, so that it stays finite and keeps
    its order where p_y rounds to 0 or 1. LiRA's scaled logit and KLoM's margin are this number.

    Args:
        logits: (N, C) float, unnormalised; N at least 1, C at least 2.
        labels: (N,) int64 in [0, C).

    Returns:
        (N,) float64; positive where p_y is above one half.

    Raises:
        InputError: If the sizes differ, a logit is not finite or a label is no class.

    Source: Carlini et al. 2022, LiRA (arXiv 2112.03570), section 4.2; ``get_margin`` of
        RoyRin/data-unlearning-bench.
    Lesson: 05_evaluation, "Example by example".
    """
    logits, labels = _predictions(logits, labels)
    chosen = labels[:, None]
    others = logits.scatter(1, chosen, float("-inf")).logsumexp(1)
    return logits.gather(1, chosen).squeeze(1) - others


def u_lira(unlearned: Tensor, oracles: Tensor, target: Tensor, floor: float = 0.01) -> Tensor:
    """Return how much more likely each target's scores are for an unlearned network.

    For each example one normal distribution is fitted to the scores of networks that were trained
    on it and unlearned it, another to those of networks that never saw it. The target must be none
    of the networks fitted. Values of unlearned targets against those of held-out oracles give
    :func:`roc` its two groups.

    Args:
        unlearned: (S, N) :func:`scaled_logit` under S unlearned networks; S at least 4.
        oracles: (R, N) the same under R networks that never saw the class; R at least 4.
        target: (T, N) the same under the networks to judge; T at least 1.
        floor: Smallest standard deviation, above 0, in units of the scores: a few shadows that
            happen to agree are no proof.

    Returns:
        (T, N) float64: log N(target; unlearned) - log N(target; oracles), in nats; positive says
        "was trained on it".

    Raises:
        InputError: If there are too few networks, the N differ or a score is not finite.

    Source: Hayes et al. 2024 (arXiv 2403.01218), algorithm 1 (U-LiRA), with the unbiased variance,
        because shadows are few.
    Lesson: 05_evaluation, "Example by example".
    """
    named = {"unlearned": (unlearned, LEAST_SHADOWS), "oracles": (oracles, LEAST_SHADOWS)}
    unlearned, oracles, target = _tables(named | {"target": (target, 1)})
    check("floor", floor, math.isfinite(floor) and floor > 0, "a number above 0")
    kept, never = (
        torch.distributions.Normal(group.mean(0), group.std(0).clamp(min=floor))
        for group in (unlearned, oracles)
    )
    return kept.log_prob(target) - never.log_prob(target)


def klom(
    unlearned: Tensor, oracles: Tensor, bins: int = 20, clip: float = 100.0, floor: float = 1e-5
) -> Tensor:
    """Return, example by example, how far unlearned margins are from the oracles'.

    It is the Kullback-Leibler divergence KL(unlearned || oracles) of two histograms over the joint
    range of an example's margins. Where the oracles' bin is empty it counts as ``floor``: networks
    that agree on a margin that no oracle has cost log(1 / floor), about 11.5, the ceiling. With few
    networks most bins are empty, and even two sets of oracles are several nats apart: always
    compare with the value of one half of the oracles against the other, at equal numbers.

    Args:
        unlearned: (S, N) :func:`scaled_logit` under S unlearned networks; S at least 10.
        oracles: (R, N) the same under R networks that never saw the class; R at least 10.
        bins: Of the histograms, at least 2.
        clip: Margins are first clipped to [-clip, clip]; above 0.
        floor: Smallest share of the oracles where there is an unlearned network, in (0, 1).

    Returns:
        (N,) float64 in nats, at least 0 up to rounding.

    Raises:
        InputError: If there are too few networks, the N differ, a margin is not finite or a
            setting is out of range.

    Source: Georgiev et al. 2024 (arXiv 2410.23232), KLoM; ``compute_binned_KL_div`` of
        RoyRin/data-unlearning-bench, whose defaults these are, but its last bin leaves out the
        largest margin.
    Lesson: 05_evaluation, "Example by example".
    """
    pair = _tables({"unlearned": (unlearned, LEAST), "oracles": (oracles, LEAST)})
    check("bins", bins, bins >= 2, "at least 2")
    check("clip", clip, math.isfinite(clip) and clip > 0, "a number above 0")
    check("floor", floor, 0 < floor < 1, "above 0 and below 1")
    pair = [margins.clamp(-clip, clip) for margins in pair]
    low, high = torch.cat(pair).aminmax(dim=0)
    width = torch.where(high > low, high - low, torch.ones_like(low))
    p, q = (_shares((margins - low) / width, bins) for margins in pair)
    q = torch.where(p > 0, q.clamp(min=floor), q)
    q = (q / q.sum(0)).clamp(min=1e-300)  # only where p is 0, too
    return (torch.special.xlogy(p, p) - p * q.log()).sum(0)


def _shares(positions: Tensor, bins: int) -> Tensor:
    """Return each column's histogram (bins, N) of positions in [0, 1]."""
    index = (positions * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(bins, positions.shape[1], dtype=torch.float64)
    return counts.scatter_add_(0, index, torch.ones_like(positions)) / len(positions)


# ------------------------------------------------------------------------------------------------
# what is let in


def _predictions(logits: Tensor, labels: Tensor) -> Predictions:
    logits, labels = torch.as_tensor(logits), torch.as_tensor(labels)
    outputs.check_predictions(logits, labels)
    logits, classes = logits.detach().cpu().double(), logits.shape[1]
    check("logits", tuple(logits.shape), classes > 1, "(N, C) with C at least 2")
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    ok = whole and int(labels.min()) >= 0 and int(labels.max()) < classes
    check("labels", str(labels.dtype), ok, f"whole numbers from 0 to {classes - 1}")
    return logits, labels.cpu().long()


def _floats(
    field: str, values: Tensor | Sequence[float], least: int = LEAST, dims: tuple[int, ...] = (1,)
) -> Tensor:
    values = torch.as_tensor(values).detach().cpu().double()
    sizes = " or ".join(("(N,)", "(N, C)")[dim - 1] for dim in dims)
    check(field, tuple(values.shape), values.ndim in dims, sizes)
    ok = values.numel() > 0 and bool(values.isfinite().all())
    check(field, f"{len(values)} scores", ok, "at least one, all finite")
    check(field, f"{len(values)} scores", len(values) >= least, f"at least {least}; use more")
    return values


def _columns(field: str, scores: Tensor, least: int = LEAST) -> Tensor:
    """Return scores as a table; forget images are judged one by one, a single one will do."""
    scores = _floats(field, scores, 1 if field == "forget" else least, (1, 2))
    return scores.view(len(scores), -1)


def _tables(named: dict[str, tuple[Tensor, int]]) -> list[Tensor]:
    """Return each named table (networks, N), with at least so many networks and one N."""
    tables = [_floats(name, values, least, (2,)) for name, (values, least) in named.items()]
    sizes = [table.shape[1] for table in tables]
    check("examples", sizes, len(set(sizes)) == 1, f"equally many in {', '.join(named)}")
    return tables
