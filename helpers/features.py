"""What do the features still know? Measurements that never ask the classifier's row of the class.

A network may answer as if it had never seen a class and still carry it inside: then a new
classifier brings it back. Everything here reads the inside, so that a row that was overwritten, or
a logit that was masked, changes nothing. Compare with oracles: their features know something too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import models
from helpers.config import InputError, check
from helpers.data import Dataset, ImageSet, batches, indices, per_pass

HEAD_INPUT = "features"  # the key of what the classifier receives, whatever the network calls it
LOGITS = "logits"  # the key of what the network returns
PENALTY = 1.0  # of the linear probe; a standardised feature has variance 1, see linear_probe
LEAST_INFORMATION = 0.01  # nats: below it the original and the oracle cannot be told apart
_FAINT = 1e-8  # of the variance of features: directions with less do not count, see whitened_probe
FALSE_ALARMS = 0.01  # share of the retained test images that an attack may take for the class
_DEAD = 1e-6  # a feature whose deviation is below this share of its own size is constant


# ------------------------------------------------------------------------------------------------
# reading the inside


@torch.no_grad()
def collect(
    model: nn.Module, part: ImageSet, dataset: Dataset, names: Iterable[str],
    batch_size: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Compute the outputs of some modules, and what the classifier receives.

    Args:
        model: The network; its mode is restored and its hooks are removed afterwards.
        part: N images, at least one.
        dataset: Gives the normalisation.
        names: Full names of modules; ``HEAD_INPUT`` stands for the input of the classifier,
            ``LOGITS`` for what the network returns.
        batch_size: Images per pass, at least 1; None takes :func:`helpers.data.per_pass`.

    Returns:
        Name -> (N, K) float32 on the CPU, flattened, in the order in which the modules are called.
        Of a module that is called twice the last output counts.

    Raises:
        InputError: If there are no images, a module does not exist or is never called, or its
            output is not one tensor with a row an image.

    Source: PyTorch's forward hooks.
    Lesson: 05_evaluation, "What the features still know".
    """
    names = tuple(dict.fromkeys(names))
    check("images", len(part), len(part) > 0, "at least one image")
    size = per_pass(part.images) if batch_size is None else batch_size
    check("batch_size", size, size >= 1, "at least 1")
    kept: dict[str, list[Tensor]] = {}
    with models.evaluating(model):
        for images, _ in batches(part, size):
            found = _outputs(model, dataset.normalise(images), names)
            for name, rows in found.items():
                kept.setdefault(name, []).append(rows)
    return {name: torch.cat(rows) for name, rows in kept.items()}


def _outputs(model: nn.Module, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Pass one batch through the network and catch what was asked for."""
    known, caught = dict(model.named_modules()), {}
    for name in names:
        hidden = name in (HEAD_INPUT, LOGITS)
        check("names", name, hidden or name in known, f"a module of the network or {HEAD_INPUT!r}")
    with ExitStack() as hooks:
        for name in names:
            if name == HEAD_INPUT:
                hooks.enter_context(known[models.layers(model).head].register_forward_pre_hook(
                    lambda _, inputs: caught.__setitem__(HEAD_INPUT, inputs[0])))  # fmt: skip
            elif name != LOGITS:
                hooks.enter_context(known[name].register_forward_hook(
                    lambda _, __, out, name=name: caught.__setitem__(name, out)))  # fmt: skip
        caught[LOGITS] = model(images)
    for name in names:
        check("names", name, name in caught, "a module that the network calls")
        ok = isinstance(caught[name], Tensor) and len(caught[name]) == len(images)
        check("names", name, ok, "a module that returns one tensor with a row an image")
    return {
        name: rows.detach().flatten(1).float().cpu()
        for name, rows in caught.items() if name in names
    }  # fmt: skip


@torch.no_grad()
def points(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """List the measuring points of a network: where each stage that can be adapted ends.

    That is the outermost module around the stage which has no layer of another one in it, so that
    BatchNorm, shortcut and activation are behind it. A layer that stands alone ends with the
    BatchNorm that is called next. Before BatchNorm a measurement would depend on how the weights
    are written: to scale a filter changes the output of a convolution, and BatchNorm undoes it.

    Args:
        model: One of ours, or any network that :func:`helpers.models.layers` can read.
        images: (N, C, H, W) float32, normalised: a few that the network takes.

    Returns:
        Names of modules that return one tensor with a row an image, in the order of the calls.
        Callers add ``HEAD_INPUT``.

    Raises:
        InputError: If the network has no classifier, nothing before it, or no such module.

    Source: the IDI paper measures at the ends of blocks (arXiv 2405.17878).
    Lesson: 05_evaluation, "What the features still know".
    """
    kinds, named = models.layers(model), dict(model.named_modules())
    ends = _ends(model, images)
    every = [kinds.head, *(n for stage in kinds.stages for n in stage)]
    elsewhere = [{n for n in every if n not in stage} for stage in kinds.stages]
    found = []
    for stage, others in zip(kinds.stages, elsewhere, strict=True):
        parts = stage[-1].split(".")
        around = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        name = next((name for name in around if name in ends
                     and not any(n.startswith(f"{name}.") for n in others)), None)  # fmt: skip
        if name == stage[-1]:
            after = ends[ends.index(name) + 1 :]
            if after and isinstance(named[after[0]], nn.modules.batchnorm._BatchNorm):
                name = after[0]
        found += [] if name is None else [name]
    check("model", type(model).__name__, bool(found), "one with layers that return one tensor")
    return tuple(sorted({*found}, key=ends.index))


def _ends(model: nn.Module, images: Tensor) -> list[str]:
    """List the modules that return a tensor with a row an image, in the order in which they end."""
    order: list[str] = []

    def note(out: object, name: str) -> None:
        if isinstance(out, Tensor) and out.ndim > 1 and len(out) == len(images):
            order.append(name)

    with ExitStack() as hooks, models.evaluating(model):
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(
                    lambda _, __, out, name=name: note(out, name)))  # fmt: skip
        model(images)
    return list(dict.fromkeys(reversed(order)))[::-1]  # of a module called twice the last counts


def penultimate(model: nn.Module, part: ImageSet, dataset: Dataset) -> Tensor:
    """Compute what the classifier receives.

    Args:
        model: The network; stays as it is.
        part: N images, at least one.
        dataset: Gives the normalisation.

    Returns:
        (N, K) float32 on the CPU.

    Raises:
        InputError: As :func:`collect`.

    Source: the usual "features" of a probe.
    Lesson: 05_evaluation, "What the features still know".
    """
    return collect(model, part, dataset, [HEAD_INPUT])[HEAD_INPUT]


# ------------------------------------------------------------------------------------------------
# new classifiers on frozen features


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forgotten: int | Iterable[int],
) -> float:
    """Fit a linear classifier on frozen features and measure it on the forgotten class.

    Ridge regression on one column a class, with standardised features: one small linear system,
    the same answer everywhere. The penalty is as large as the variance of a feature. With a weak
    one the classifier puts any class together from faint directions, which every network has: on
    digits the oracle then reaches what the original does.

    Args:
        train_features: (N, K) float, of training images of all classes.
        train_labels: (N,) int64.
        test_features: (M, K) float, of test images; retained classes may be among them.
        test_labels: (M,) int64.
        forgotten: Index of the forgotten class, or of several.

    Returns:
        The share of the forgotten classes' test images that it gets right, in [0, 1].

    Raises:
        InputError: If sizes do not fit, a feature is not finite, there is one class only, or the
            forgotten class has no training or no test images.

    Source: Alain & Bengio 2016 (arXiv 1610.01644); ridge in place of logistic regression.
    Lesson: 05_evaluation, "What the features still know".
    """
    groups = train_features, train_labels, test_features, test_labels
    train, labels, test, truth = _checked(*groups, forgotten)
    return _right(_ridge(train, labels, test), truth)


def refit_head(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forgotten: int | Iterable[int],
    share: float = 0.02,
    seed: int = 0,
    draws: int = 5,
) -> float:
    """Fit a new classifier on very few images and measure it on the forgotten class.

    Args:
        train_features: (N, K) float, of training images of all classes.
        train_labels: (N,) int64.
        test_features: (M, K) float, of test images.
        test_labels: (M,) int64.
        forgotten: Index of the forgotten class, or of several.
        share: Of each class's training images that are used, in (0, 1]; never fewer than two.
        seed: Of the choice of images.
        draws: Over how many choices the result is averaged; at least 1.

    Returns:
        The share of the forgotten classes' test images that it gets right, in [0, 1].

    Raises:
        InputError: As :func:`linear_probe`; if a class has only one training image.

    Source: Jeon et al., IDI (arXiv 2405.17878): above 82 % for head-only unlearning, 41 % for the
        oracle; with the ridge classifier of :func:`linear_probe`.
    Lesson: 05_evaluation, "What the features still know".
    """
    groups = train_features, train_labels, test_features, test_labels
    train, labels, test, truth = _checked(*groups, forgotten)
    found = [
        _right(_ridge(train[few], labels[few], test), truth)
        for few in _very_few(labels, share, seed, draws)
    ]
    return sum(found) / len(found)


def refit_inside(
    model: nn.Module,
    train: ImageSet,
    test: ImageSet,
    dataset: Dataset,
    forgotten: int | Iterable[int],
    share: float = 0.02,
    seed: int = 0,
    draws: int = 5,
) -> dict[str, float]:
    """Fit new classifiers, as :func:`refit_head` does, on the output of every module near the end.

    What one layer erases before the classifier is still there before that layer. The modules are
    the last but one of :func:`points` and all that end after it: further in front, what tells some
    classes apart is there in every network. Where an output has positions, its mean over them
    counts; of tokens the first one, too.

    Args:
        model: The network; stays as it is.
        train: Training images of all classes.
        test: Test images of the forgotten classes; others may be among them.
        dataset: Gives the normalisation.
        forgotten: Index of the forgotten class, or of several.
        share: As for :func:`refit_head`.
        seed: Of the choice of images; the same ones as by :func:`refit_head`.
        draws: As for :func:`refit_head`.

    Returns:
        Name of a module -> the share of the forgotten classes' test images that the classifier on
        its output gets right, in [0, 1], in the order in which the modules end. ``HEAD_INPUT``
        stands where the classifier is called. From its second call on, a module has entries with
        the number of the call.

    Raises:
        InputError: As :func:`refit_head` and :func:`points`.

    Source: this project, after the probes of Alain & Bengio 2016 (arXiv 1610.01644).
    Lesson: 05_evaluation, "What the features still know".
    """
    first = points(model, dataset.normalise(train.images[:2]))[-2:][0]
    drawn = _very_few(train.labels.cpu(), share, seed, draws)
    chosen = torch.cat(drawn).unique()
    few = train.where(chosen)
    seen, unseen = (_pooled(model, part, dataset, first) for part in (few, test))
    places, found = [torch.searchsorted(chosen, picks) for picks in drawn], {}
    for name, rows in seen.items():
        groups = rows, few.labels, unseen[name], test.labels
        rows, labels, others, truth = _checked(*groups, forgotten)
        rights = [_right(_ridge(rows[some], labels[some], others), truth) for some in places]
        found[name] = sum(rights) / len(rights)
    return found


@torch.no_grad()
def _pooled(model: nn.Module, part: ImageSet, dataset: Dataset, first: str) -> dict[str, Tensor]:
    """Compute the outputs of a module and of all that end after it, averaged over positions."""
    kept: dict[str, list[Tensor]] = {}
    caught: dict[str, Tensor] = {}  # of one batch
    calls: Counter[str] = Counter()

    def keep(name: str, out: object) -> None:
        calls[name] += 1
        if isinstance(out, Tensor) and out.ndim > 1 and len(out) == len(images) and out.numel():
            caught[name if calls[name] == 1 else f"{name}, call {calls[name]}"] = _flat(out)

    with ExitStack() as hooks, models.evaluating(model):
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(
                    lambda _, __, out, name=name: keep(name, out)))  # fmt: skip
        hooks.enter_context(model.get_submodule(models.layers(model).head).register_forward_pre_hook(
            lambda _, inputs: keep(HEAD_INPUT, inputs[0])))  # fmt: skip
        for images, _ in batches(part, per_pass(part.images)):
            model(dataset.normalise(images))
            for name in [*caught][[*caught].index(first) :]:
                kept.setdefault(name, []).append(caught[name])
            caught.clear()
            calls.clear()
    return {name: torch.cat(rows) for name, rows in kept.items()}


def _flat(out: Tensor) -> Tensor:
    """Average over positions; (N, K) float32 on the CPU."""
    if out.ndim == 3:  # tokens: the first one is often the one that is read
        out = torch.cat([out[:, 0], out.mean(1)], 1)
    return out.flatten(2).mean(2).float().cpu() if out.ndim > 3 else out.float().cpu()


def knn_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forgotten: int | Iterable[int],
    k: int = 10,
    per_class: int | None = 10,
    seed: int = 0,
    draws: int = 5,
) -> float:
    """Let the nearest training images vote, and measure it on the forgotten class.

    Nearest by the cosine of standardised features, so that no feature counts for more because the
    network multiplies it. Equal votes go to the class whose neighbours are nearer, then to the
    lower index. With all training images a neighbour of the own class is always near on digits,
    whatever the network knows; with few a class must lie together to win.

    Args:
        train_features: (N, K) float, of training images of all classes.
        train_labels: (N,) int64.
        test_features: (M, K) float, of test images.
        test_labels: (M,) int64.
        forgotten: Index of the forgotten class, or of several.
        k: How many neighbours vote; from 1 to the number of images to choose from.
        per_class: Training images of each class to choose from; None takes all of them, once.
        seed: Of the choice of images.
        draws: Over how many choices the result is averaged; at least 1.

    Returns:
        The share of the forgotten classes' test images that it gets right, in [0, 1].

    Raises:
        InputError: As :func:`linear_probe`; if a class has too few images, or k is too large.

    Source: the weighted vote of Wu et al. 2018 (arXiv 1805.01978), without weights.
    Lesson: 05_evaluation, "What the features still know".
    """
    groups = train_features, train_labels, test_features, test_labels
    train, labels, test, truth = _checked(*groups, forgotten)
    sizes = _counts(labels)
    if per_class is not None:
        sizes = dict.fromkeys(sizes, per_class)
    check("k", k, 1 <= k <= sum(sizes.values()), f"from 1 to {sum(sizes.values())} neighbours")
    chosen = _few(labels, sizes, seed, 1 if per_class is None else draws)
    mean, factor = train.mean(0), scale(train)
    train, test = (train - mean) * factor, (test - mean) * factor
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    found = [_right(_votes(test @ train[few].T, labels[few], k), truth) for few in chosen]
    return sum(found) / len(found)


def whitened_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forgotten: int | Iterable[int],
    per_class: int = 5,
    seed: int = 0,
    draws: int = 10,
) -> float:
    """Recognise the forgotten class by the means of a few images, however the features are written.

    The other probes compare features one by one, so a class can be hidden from them: turn the
    features, make the directions that tell the class faint and let the classifier multiply them
    back. Here images are compared in coordinates in which the retained classes scatter equally in
    all directions. There is no axis, scale or shift left: any invertible linear map of the features
    (undone by the classifier) gives the same answer, as far as single precision carries it.

    Args:
        train_features: (N, K) float, of training images of all classes.
        train_labels: (N,) int64.
        test_features: (M, K) float, of test images.
        test_labels: (M,) int64.
        forgotten: Index of the forgotten class, or of several.
        per_class: Training images of each class whose mean stands for it; at least 1.
        seed: Of the choice of images.
        draws: Over how many choices the result is averaged; at least 1.

    Returns:
        The share of the forgotten classes' test images whose nearest mean, by the cosine, is their
        class's, in [0, 1].

    Raises:
        InputError: As :func:`linear_probe`; if a class has too few images, or none is retained.

    Source: this project; linear discriminant analysis, Fisher 1936, with its scatter within
        classes taken from the retained ones.
    Lesson: 05_evaluation, "What the features still know".
    """
    groups = train_features, train_labels, test_features, test_labels
    train, labels, test, truth = _checked(*groups, forgotten)
    retained = ~torch.isin(labels, torch.tensor(indices(forgotten)))
    check("images", "all of forgotten classes", bool(retained.any()), "some of retained ones too")
    chosen = _few(labels, dict.fromkeys(_counts(labels), per_class), seed, draws)
    centre, factor = train[retained].mean(0), scale(train)
    train, test = (train - centre) * factor, (test - centre) * factor
    within = [train[labels == c] for c in labels[retained].unique()]
    within = torch.cat([rows - rows.mean(0) for rows in within])
    scatter = within.T @ within / len(within)
    size = scatter.diagonal().mean().item() or 1.0  # 0 where no retained class varies
    root = torch.linalg.cholesky(scatter + _FAINT * size * torch.eye(len(scatter)).double())
    train, test = (torch.linalg.solve_triangular(root, x.T, upper=False).T for x in (train, test))
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    classes = labels.unique()
    found = []
    for few in chosen:
        means = torch.stack([train[few[labels[few] == c]].mean(0) for c in classes])
        nearest = (test @ F.normalize(means, dim=1).T).argmax(1)
        found.append((classes[nearest] == truth).double().mean().item())
    return sum(found) / len(found)


def _votes(similarity: Tensor, labels: Tensor, k: int) -> Tensor:
    nearest = similarity.sort(dim=1, descending=True, stable=True)  # topk leaves ties open
    near, whose = nearest.values[:, :k], labels[nearest.indices[:, :k]]
    votes = F.one_hot(whose, int(labels.max()) + 1).double()
    return 4 * k * votes.sum(1) + (votes * near.unsqueeze(2)).sum(1)  # |second term| ≤ k


def _ridge(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Fit one column a class by least squares with a penalty; return scores of the test images."""
    mean, factor = train.mean(0), scale(train)
    x, unseen = (train - mean) * factor, (test - mean) * factor
    classes, column = labels.unique(return_inverse=True)
    share = F.one_hot(column).double()
    prior = share.mean(0)
    n, width = x.shape
    if width <= n:
        gram = x.T @ x + PENALTY * n * torch.eye(width, dtype=x.dtype)
        weight = torch.linalg.solve(gram, x.T @ (share - prior))
    else:  # the same solution, through a system as large as the number of images
        gram = x @ x.T + PENALTY * n * torch.eye(n, dtype=x.dtype)
        weight = x.T @ torch.linalg.solve(gram, share - prior)
    scores = torch.full((len(test), int(classes.max()) + 1), -math.inf, dtype=x.dtype)
    scores[:, classes] = unseen @ weight + prior
    return scores


def scale(features: Tensor) -> Tensor:
    """Return what each feature is multiplied with to have the deviation 1; 0 where it is constant.

    A constant one would otherwise turn rounding errors, or the first test image on which it is not
    constant, into the largest number of all. Each is compared with itself: beside the largest of
    all, one that somebody multiplied (and its weights divided) would make the others look constant.

    Args:
        features: (N, K) float.

    Returns:
        (K,) of the same type.

    Source: this project.
    Lesson: 05_evaluation, "What the features still know".
    """
    deviation = features.std(0, correction=0)
    alive = deviation > _DEAD * features.abs().amax(0)
    return torch.where(alive, 1 / deviation.clamp_min(torch.finfo(deviation.dtype).tiny), 0.0)


def prototype_attack(
    train_features: Tensor,
    train_labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    test_features: Tensor,
    test_labels: Tensor,
    forgotten: int | Iterable[int],
    k: int = 1,
    draws: int = 20,
    seed: int = 0,
) -> float:
    """Point the classifier's row at a single image, or at a few, and measure the class.

    Nothing is trained. The row points from the mean of the retained images to the mean of k images
    of the class, and has the mean length of the other rows. Its bias is the one at which a share of
    ``FALSE_ALARMS`` of the retained test images is taken for the class: any recall could be had for
    a larger one, and a fixed one, such as the mean of the others, favours whichever network happens
    to have low logits there, or constants in its features. Every feature is divided by its
    deviation first, and its column of the classifier multiplied, so that it does not matter how the
    network scales it. The class's own row is never read. Public code of the attack mixes the
    uncentred mean with the old row, and tunes the mixture: a masked row would then stay masked.

    One image is enough where training has drawn the class together, as in the original. With five,
    features that never saw the class tell some digits apart as well as the original's do.

    Args:
        train_features: (N, K) float, of training images, the forgotten class's among them.
        train_labels: (N,) int64.
        weight: (C, K) float, of the classifier: ``model.get_submodule(layers(model).head).weight``.
        bias: (C,) float, or None if the classifier has none.
        test_features: (M, K) float, of test images of all classes.
        test_labels: (M,) int64.
        forgotten: Index of the forgotten class, or of several (each gets its row).
        k: Images of each forgotten class; at least 1.
        draws: Over how many choices of images the result is averaged; at least 1.
        seed: Of the choice of images.

    Returns:
        The share of the forgotten classes' test images that are then recognised, in [0, 1].

    Raises:
        InputError: As :func:`linear_probe`; if the classifier does not fit the features, or there
            are too few images, or none of retained classes.

    Source: Ha et al., Spotter, ICML 2026 (arXiv 2506.01318), with the changes above; rows along
        centred class means: Papyan et al. 2020 (arXiv 2008.08186), neural collapse.
    Lesson: 05_evaluation, "What the features still know".
    """
    groups = train_features, train_labels, weight, bias, test_features, test_labels
    found, _ = _recalled(*groups, forgotten, k, draws, seed)
    return sum(one.double().mean().item() for one in found) / len(found)


def prototype_attack_by_class(
    train_features: Tensor,
    train_labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    test_features: Tensor,
    test_labels: Tensor,
    forgotten: Iterable[int],
    k: int = 1,
    draws: int = 20,
    seed: int = 0,
) -> dict[int, float]:
    """Say of each of several classes what :func:`prototype_attack` averages over them.

    A mean hides it if one class of six was kept and the others are gone.

    Args:
        train_features: As for :func:`prototype_attack`, like the others.
        train_labels: (N,) int64.
        weight: (C, K) float.
        bias: (C,) float, or None.
        test_features: (M, K) float.
        test_labels: (M,) int64.
        forgotten: Indices of the forgotten classes.
        k: Images of each of them.
        draws: Over how many choices of images the results are averaged.
        seed: Of the choice of images.

    Returns:
        Class -> the share of its test images that are recognised, in [0, 1].

    Raises:
        InputError: As :func:`prototype_attack`.

    Source: as :func:`prototype_attack`.
    Lesson: 05_evaluation, "What the features still know".
    """
    groups = train_features, train_labels, weight, bias, test_features, test_labels
    found, truth = _recalled(*groups, forgotten, k, draws, seed)
    shares = torch.stack(found).double().mean(0)
    return {c: shares[truth == c].mean().item() for c in sorted(indices(forgotten))}


def _recalled(
    train_features: Tensor, train_labels: Tensor, weight: Tensor, bias: Tensor | None,
    test_features: Tensor, test_labels: Tensor, forgotten: int | Iterable[int],
    k: int, draws: int, seed: int,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Tell which test images of the classes are found, a draw at a time, and their labels."""
    groups = train_features, train_labels, test_features, test_labels
    train, labels, test, truth = _checked(*groups, forgotten)
    weight = weight.detach().double().cpu()
    bias = torch.zeros(len(weight)).double() if bias is None else bias.detach().double().cpu()
    _check_head(weight, bias, train, labels)
    gone = sorted(indices(forgotten))
    others = [c for c in range(len(weight)) if c not in gone]
    check("classes", len(weight), bool(others), "at least one that is not forgotten")
    _check_finite("weight", weight[others])  # the class's own row may hold anything
    _check_finite("bias", bias[others])
    retained, spared = (~torch.isin(y.cpu(), torch.tensor(gone)) for y in (labels, test_labels))
    for name, some in (("images", retained), ("test images", spared)):
        check(name, "all of forgotten classes", bool(some.any()), "some of retained ones too")
    rest = test_features.detach().double().cpu()[spared]
    factor = scale(train)
    centre = train[retained].mean(0)
    train, test, rest = ((rows - centre) * factor for rows in (train, test, rest))
    bias = (bias + weight @ centre)[others]
    weight = torch.where(factor > 0, weight / factor, 0.0)[others]
    length = weight.norm(dim=1).mean()
    beaten, best = ((rows @ weight.T + bias).amax(1) for rows in (test, rest))
    found = []
    for few in _few(labels, dict.fromkeys(gone, k), seed, draws):
        over = torch.empty(len(test), len(gone), dtype=torch.float64)
        for place, c in enumerate(gone):
            row = F.normalize(train[few[labels[few] == c]].mean(0), dim=0) * length
            alarms = (rest @ row - best).sort(descending=True).values
            over[:, place] = test @ row - beaten - alarms[int(FALSE_ALARMS * len(alarms))]
        own = over.argmax(1) == torch.searchsorted(torch.tensor(gone), truth)
        found.append(own & (over.amax(1) > 0))
    return found, truth


def _check_head(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> None:
    ok = (
        weight.ndim == 2 and weight.shape[1] == features.shape[1] and bias.shape == weight.shape[:1]
    )
    ok = ok and int(labels.max()) < len(weight)
    fit = f"weight (C, {features.shape[1]}) and bias (C,), C above label {int(labels.max())}"
    check("classifier", [tuple(weight.shape), tuple(bias.shape)], ok, fit)


def _counts(labels: Tensor) -> dict[int, int]:
    classes, counts = labels.unique(return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def _very_few(labels: Tensor, share: float, seed: int, draws: int) -> list[Tensor]:
    check("share", share, 0 < share <= 1, "a share in (0, 1]")
    sizes = {c: max(2, round(share * n)) for c, n in _counts(labels).items()}
    return _few(labels, sizes, seed, draws)


def _few(labels: Tensor, sizes: dict[int, int], seed: int, draws: int) -> list[Tensor]:
    """Draw images of each class, several times; a (n,) int64 index for each time."""
    check("draws", draws, draws >= 1, "at least 1")
    mine = {c: (labels == c).nonzero().flatten() for c in sizes}
    for c, size in sizes.items():
        allowed = f"from 1 to the {len(mine[c])} training images of class {c}: use fewer"
        check("images", size, 1 <= size <= len(mine[c]), allowed)
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.cat([mine[c][torch.randperm(len(mine[c]), generator=draw)[:size]]
                   for c, size in sizes.items()])
        for _ in range(draws)
    ]  # fmt: skip


def _checked(
    train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, forgotten: int | Iterable[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check what the probes get; return it as float64 on the CPU, tested on the class alone."""
    for name, rows, own in (("train_features", train, labels), ("test_features", test, truth)):
        _check_rows(name, rows, own)
    ok = train.shape[1] == test.shape[1]
    check("features", [train.shape[1], test.shape[1]], ok, "as many in training as in test images")
    labels, truth, gone = labels.cpu(), truth.cpu(), {*indices(forgotten)}
    present = sorted(set(labels.tolist()))
    check("labels", present, len(present) > 1, "at least two classes among the training images")
    ok = bool(gone) and gone <= set(present) & set(truth.tolist())
    check("forget", sorted(gone), ok, f"with training and test images; trained are {present}")
    mine = torch.isin(truth, torch.tensor(sorted(gone)))
    return train.detach().double().cpu(), labels, test.detach().double().cpu()[mine], truth[mine]


def _check_rows(name: str, rows: Tensor, labels: Tensor | None = None) -> None:
    ok = rows.ndim == 2 and 0 not in rows.shape
    ok = ok and (labels is None or labels.shape == rows.shape[:1])
    check(name, tuple(rows.shape), ok, "(N, K) with N and K at least 1, and a label a row")
    _check_finite(name, rows)


def _check_finite(name: str, values: Tensor) -> None:
    check(name, "nan or inf", bool(values.isfinite().all()), "every number must be finite")


def _right(scores: Tensor, truth: Tensor) -> float:
    return (scores.argmax(1) == truth).double().mean().item()


# ------------------------------------------------------------------------------------------------
# similarity and information


def gram(rows: Tensor) -> Tensor:
    """Compute the likeness of every image to every other, from features.

    Args:
        rows: (N, K) float.

    Returns:
        (N, N) float64, inner products of the centred features, of a common scale.

    Raises:
        InputError: If the size does not fit or a feature is not finite.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), section 3.
    Lesson: 05_evaluation, "What the features still know".
    """
    _check_rows("rows", rows)
    x = _centred(rows.detach().double().cpu())
    return x @ x.T


def picked(likeness: Tensor, picks: Tensor) -> Tensor:
    """Return the likeness of some images to each other, centred on them, from that of all.

    Args:
        likeness: (N, N) float64, from :func:`gram`.
        picks: (M,) int64 indices of images, which may repeat.

    Returns:
        (M, M) float64, as :func:`gram` of the features of these images, up to a common scale; zeros
        where their features are all the same.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), section 3: the centring matrix.
    Lesson: 05_evaluation, "What the features still know".
    """
    g = likeness.index_select(0, picks).index_select(1, picks)
    mean = g.mean(0, keepdim=True)
    centred = g - mean - mean.T + mean.mean()
    return centred if centred.abs().max() > 1e-12 * g.abs().max() else torch.zeros_like(g)


def alignment(one: Tensor, other: Tensor) -> float:
    """Compute the linear centred kernel alignment (CKA) of two sets of features of the same images.

    It does not change when either set is rotated, shifted or multiplied by a number. From the
    images' grams it is quick for many networks or choices of images. Of few images it says too
    much (it is the estimator with a bias): of two, any sets agree; of some dozens, unrelated ones
    by a tenth or two. Compare it with that of oracles, for the same images, and with nothing else.

    Args:
        one: (N, N) float64, from :func:`gram` or :func:`picked`.
        other: (N, N) float64, of the same images.

    Returns:
        A number in [0, 1]; 1 for the same features up to rotation, shift and scale. 0 where a set
        is constant: a dead layer tells nothing about the images, so it has nothing in common with
        a living one.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), equations 1 and 3, with linear kernels.
    Lesson: 05_evaluation, "What the features still know".
    """
    sizes = one.norm() * other.norm()
    return min(1.0, ((one * other).sum() / sizes).item()) if sizes > 0 else 0.0


def _centred(rows: Tensor) -> Tensor:
    """Subtract the mean and divide by the size, so that nothing under- or overflows."""
    centred = rows - rows.mean(0)
    size, before = centred.abs().max(), rows.abs().max()
    return centred / size if size > 1e-12 * before else torch.zeros_like(centred)


def information(
    train_z: Tensor,
    train_y: Tensor,
    test_z: Tensor,
    test_y: Tensor,
    seed: int = 0,
    per_side: int = 50,
    steps: int = 40,
) -> float:
    """Estimate the mutual information of features and of belonging to the forgotten class.

    A critic f(z)·g(y) is fitted by InfoNCE: f has one hidden layer, g is one vector for each of the
    two answers. It sees as many images of the class as others, so that the two answers in a batch
    are equally frequent and the bound becomes log 2 less the cross-entropy of the two. It is read
    off held-out images, weighted in the same way: what a critic learned by heart counts for
    nothing. The f of the paper is a copy of the network's remaining layers.

    Args:
        train_z: (N, K) float, features of training images.
        train_y: (N,) bool, or 0 and 1: whether the image shows the forgotten class.
        test_z: (M, K) float, features of images that the critic does not see.
        test_y: (M,) likewise.
        seed: Of the choice of images and of the critic's first weights.
        per_side: Training images of each side, at most; at least 2.
        steps: Of the critic's optimiser; at least 1.

    Returns:
        A number in [0, log 2], in nats: a lower bound, up to the noise of the held-out images. Near
        log 2 where the class can be told apart by a wide margin, 0 where not at all.

    Raises:
        InputError: If sizes do not fit, a feature is not finite, or a side has no images (in
            training: fewer than two).

    Source: van den Oord et al. 2018 (arXiv 1807.03748), InfoNCE; Jeon et al. (arXiv 2405.17878).
    Lesson: 05_evaluation, "What the features still know".
    """
    check("per_side", per_side, per_side >= 2, "at least 2")
    check("steps", steps, steps >= 1, "at least 1")
    for name, z, y, least in (("train", train_z, train_y, 2), ("test", test_z, test_y, 1)):
        _check_rows(f"{name}_z", z, y)
        sides = torch.bincount(y.long().clamp(-1, 2).cpu() + 1, minlength=4)
        ok = sides[[0, 3]].sum() == 0 and min(sides[1:3]) >= least
        shown = f"{sides[2]} of the class and {sides[1]} others"
        check(f"{name}_y", shown, bool(ok), f"0 and 1 only, at least {least} of each")
    check("features", [train_z.shape[1], test_z.shape[1]], train_z.shape[1] == test_z.shape[1],
          "as many in training as in test images")  # fmt: skip
    train_y, test_y = train_y.long().cpu(), test_y.long().cpu()
    size = min(per_side, int(torch.bincount(train_y).min()))
    few = _few(train_y, {0: size, 1: size}, seed, 1)[0]
    z = train_z.detach().float().cpu()
    mean, factor = z.double().mean(0), scale(z.double())
    z, unseen = (
        ((rows.double() - mean) * factor / math.sqrt(z.shape[1])).float()
        for rows in (z[few], test_z.detach().cpu())
    )
    return _bound(z, train_y[few], unseen, test_y, seed, steps)


def _bound(z: Tensor, y: Tensor, unseen: Tensor, truth: Tensor, seed: int, steps: int) -> float:
    """Fit the critic on balanced images and return InfoNCE on others, not below 0."""
    draw, hidden = torch.Generator().manual_seed(seed), 16
    enter = torch.randn(z.shape[1], hidden, generator=draw)
    labels = torch.randn(hidden, 2, generator=draw) / math.sqrt(hidden)  # g(0) and g(1)
    critic = [enter, torch.zeros(hidden), labels]
    for parameter in critic:
        parameter.requires_grad_()

    def scores(rows: Tensor) -> Tensor:
        return torch.relu(rows @ critic[0] + critic[1]) @ critic[2]

    # Without the penalty the critic gets so sure that on digits every layer ends near log 2.
    optimizer = torch.optim.Adam(critic, lr=0.03, weight_decay=0.01)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(scores(z), y).backward()
            optimizer.step()
    with torch.no_grad():
        loss = F.cross_entropy(scores(unseen).double(), truth, reduction="none")
    halves = [loss[truth == side].mean().item() for side in (0, 1)]
    return max(0.0, math.log(2) - sum(halves) / 2)


def idi(
    model_info: Sequence[float], oracle_info: Sequence[float], original_info: Sequence[float]
) -> float:
    """Compute the Information Difference Index: which share of what should go is still there.

    Args:
        model_info: :func:`information` of the network, layer by layer, in nats.
        oracle_info: Of a retrained one, or means over several, at the same layers.
        original_info: Of the original, or means over several, at the same layers.

    Returns:
        0 where no layer knows more than the oracle's, 1 where all is still there; above 1 where a
        network knows more than the original does.

    Raises:
        InputError: If the numbers of layers differ, one is not finite, or the original knows less
            than 0.01 nats more than the oracle over all layers: there is then nothing to compare.

    Source: Jeon et al., IDI (arXiv 2405.17878).
    Lesson: 05_evaluation, "What the features still know".
    """
    layers = [list(map(float, info)) for info in (model_info, oracle_info, original_info)]
    sizes = [len(info) for info in layers]
    check("layers", sizes, min(sizes) == max(sizes) > 0, "the same number, at least one")
    ok = all(math.isfinite(value) for info in layers for value in info)
    check("information", "nan or inf", ok, "every number must be finite")

    def above(info: Sequence[float]) -> float:
        return sum(max(0.0, a - b) for a, b in zip(info, layers[1], strict=True))

    excess = above(layers[2])
    if excess < LEAST_INFORMATION:
        raise InputError(
            f"the original holds {excess:.4f} nats more than the oracle, over all layers: at least "
            f"{LEAST_INFORMATION} are needed. These layers cannot tell the two apart: measure at "
            "others, or average over more seeds"
        )
    return above(layers[0]) / excess
