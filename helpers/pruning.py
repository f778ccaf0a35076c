"""Pruning: which weights or filters go, keeping them at zero, and really removing them.

A mask is a dict from the name of a layer to a bool tensor of the shape of its weight, True where
the weight is kept. Removed channels are described by the indices that are kept along each dimension
of each tensor, so that the smaller network can be cut out of the original again.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from helpers import ledger, models, turns
from helpers.config import CRITERIA, KINDS, SCOPES, InputError, check, choose, reason
from helpers.data import Dataset, ImageSet, at_most, batches
from helpers.training import recalibrate_batchnorm

log = logging.getLogger(__name__)

Masks = dict[str, Tensor]
Kept = dict[str, tuple[Tensor | None, ...]]  # tensor -> indices kept along each dimension
SCORED = 512  # images of which the criterion "taylor" takes the gradient
AGREES = 1e-2  # of the largest output, also at a GPU's rounding: with channels removed or zero


@dataclass
class Pruned:
    """A pruned network and its ledger.

    Attributes:
        model: The network in evaluation mode: masked, or smaller.
        masks: What must stay zero; empty for ``channels``.
        kept: What was cut out of the original; empty for masks.
        ledger: One row before and one after, from :func:`helpers.ledger.measure`.
        seconds: Time that it took, without the ledger.
        macs: Multiply-accumulates of the images that it looked at.

    Source: this project.
    Lesson: 02_pruning, "Four kinds of pruning".
    """

    model: nn.Module
    masks: Masks = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    ledger: list[ledger.Row] = field(default_factory=list)
    seconds: float = 0.0
    macs: int = 0


def prune(
    model: nn.Module,
    sparsity: float,
    kind: str = "mask_structured",
    *,
    criterion: str = "l2",
    scope: str = "global",
    part: ImageSet | None = None,
    dataset: Dataset | None = None,
    seed: int = 0,
    measured: bool = True,
) -> Pruned:
    """Prune a copy of a network, and measure its BatchNorm anew.

    Args:
        model: The network; stays as it is.
        sparsity: Share to prune, in [0, 1): of the filters of each layer (``mask_structured``), of
            the weights (``mask_unstructured``), of the weights in each group of four
            (``mask_nm``: 0.25, 0.5 or 0.75), of the channels of each layer (``channels``).
        kind: One of ``KINDS``. Masks leave the network its size; ``channels`` makes it smaller.
        criterion: What makes a weight or filter weak: its ``l2`` or ``l1`` norm, chance
            (``random``), or ``taylor``, the most that the loss on ``part`` can change to first
            order: the sum of the absolute values of weight times gradient.
        scope: Of ``mask_unstructured``: weights compete within their ``layer`` or ``global``ly.
        part: The images that may choose what is pruned and on which BatchNorm is measured anew: for
            unlearning those to retain, because a mask chosen with the forget set leaks it. None
            leaves BatchNorm as it was.
        dataset: Gives the normalisation of ``part``; needed with it.
        seed: Of ``random`` and of the choice of images.
        measured: Whether to fill the ledger.

    Returns:
        The pruned copy with its masks or kept indices and its ledger.

    Raises:
        InputError: If the sparsity is not one that the kind allows, or ``taylor`` has no images.

    Source: arXiv 2411.11907, section 3; Torch-Pruning (arXiv 2301.12900) for the removal.
    Lesson: 02_pruning, "Four kinds of pruning".
    """
    names = _check_request(model, sparsity, kind, part, dataset)
    started, made = time.perf_counter(), Pruned(models.copy_of(model).eval())
    looked: dict[nn.Module, int] = {}  # images passed forward, a backward pass counted as two
    if criterion == "taylor":
        check("criterion", criterion, part is not None, "needs images")
        frozen = [p for p in made.model.parameters() if not p.requires_grad]
        looked[model] = 3 * _gradients(made.model, part, dataset, seed)
        for parameter in frozen:
            parameter.requires_grad_(False)
    shared = {"criterion": criterion, "seed": seed}
    if kind == "mask_structured":
        made.masks = mask_structured(made.model, sparsity, names, **shared)
    elif kind == "mask_unstructured":
        made.masks = mask_unstructured(made.model, sparsity, names, scope=scope, **shared)
    elif kind == "mask_nm":
        made.masks = mask_nm(made.model, sparsity, names, **shared)
    else:
        made.kept = remove_channels(made.model, sparsity, **shared)
    made.model.zero_grad(set_to_none=True)
    if part is not None:
        looked[made.model] = recalibrate_batchnorm(made.model, part, dataset, seed=seed)
    made.seconds = ledger.since(started, made.model)
    for net, count in looked.items():
        few = dataset.normalise(part.images[:2])
        made.macs += count * ledger.macs(net, images=few) if count else 0
    if measured:
        rows = ("before", model), ("pruned", made.model)
        made.ledger = [ledger.measure(net, stage, names) for stage, net in rows]
    return made


def _check_request(
    model: nn.Module, sparsity: float, kind: str, part: ImageSet | None, dataset: Dataset | None
) -> list[str]:
    """Refuse what cannot be pruned so; return the layers that can be pruned."""
    choose("pruning", kind, KINDS)
    number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    check("sparsity", sparsity, number, "a share in [0, 1)")
    models.check_has_weights("model", model)
    models.check_float32("model", model)
    check("dataset", None, part is None or dataset is not None, "the one that part is of")
    names = list(models.layers(model).prunable)
    models.check_weights(model, names)
    if part is not None:
        models.check_head(model, len(dataset.classes))
        few = dataset.normalise(part.images[:2])
        models.check_answers("model", model, few, len(dataset.classes))
    models.say_if_little(model, names, "pruned")
    return names


def mask_structured(
    model: nn.Module,
    sparsity: float,
    names: Iterable[str],
    criterion: str = "l2",
    seed: int = 0,
) -> Masks:
    """Set the weakest filters of each named layer to zero. In place.

    Args:
        model: The network.
        sparsity: Share of the filters (output channels) of each layer, in [0, 1); rounded to whole
            filters, of which at least one stays.
        names: The layers, as in ``model.named_modules()``.
        criterion: As in :func:`prune`; for ``taylor`` the gradients must be there.
        seed: Of ``random``.

    Returns:
        The masks, for :func:`apply_masks`.

    Raises:
        InputError: If the sparsity is outside [0, 1) or the criterion unknown.

    Source: arXiv 2411.11907, section 3; ``torch.nn.utils.prune.LnStructured``.
    Lesson: 02_pruning, "The idea".
    """
    check("sparsity", sparsity, 0 <= sparsity < 1, "a share in [0, 1)")
    masks, generator = {}, torch.Generator().manual_seed(seed)
    firsts = _firsts(model, names)
    for name in dict.fromkeys(firsts.values()):
        scores = _scores(model, name, criterion, generator)
        mask = torch.ones_like(scores)
        amount = min(round(sparsity * len(scores)), len(scores) - 1)
        if amount:
            # only the choice is PyTorch's: its prune.remove would reorder the layer's parameters
            norm = 2 if criterion == "l2" else 1
            mask = torch_prune.LnStructured(amount, n=norm, dim=0).compute_mask(scores, mask)
        masks[name] = mask.bool()
    return _hold(model, masks, firsts)


def mask_unstructured(
    model: nn.Module,
    sparsity: float,
    names: Iterable[str],
    scope: str = "global",
    criterion: str = "l1",
    seed: int = 0,
) -> Masks:
    """Set the weakest single weights of the named layers to zero. In place.

    Args:
        model: The network.
        sparsity: Share of the weights, in [0, 1); rounded to whole weights, of which one stays.
        names: The layers.
        scope: ``global``: all weights compete; ``layer``: each layer loses the same share.
        criterion: As in :func:`prune`; for single weights ``l1`` and ``l2`` are the same.
        seed: Of ``random``.

    Returns:
        The masks, for :func:`apply_masks`.

    Raises:
        InputError: If the sparsity is outside [0, 1), or the scope or criterion is unknown.

    Source: Han et al. 2015 (arXiv 1506.02626); ``torch.nn.utils.prune.L1Unstructured``.
    Lesson: 02_pruning, "Four kinds of pruning".
    """
    check("sparsity", sparsity, 0 <= sparsity < 1, "a share in [0, 1)")
    choose("scope", scope, SCOPES)
    generator, firsts = torch.Generator().manual_seed(seed), _firsts(model, names)
    scores = {n: _scores(model, n, criterion, generator) for n in dict.fromkeys(firsts.values())}
    if scope == "global" and scores:
        flat = _weakest(torch.cat([s.flatten() for s in scores.values()]), sparsity)
        parts = flat.split([s.numel() for s in scores.values()])
        masks = {n: p.view_as(s) for (n, s), p in zip(scores.items(), parts, strict=True)}
    else:
        masks = {n: _weakest(s.flatten(), sparsity).view_as(s) for n, s in scores.items()}
    return _hold(model, masks, firsts)


def _weakest(scores: Tensor, sparsity: float) -> Tensor:
    """Return a mask that leaves out the weakest share of a vector of scores."""
    amount = min(round(sparsity * len(scores)), len(scores) - 1)
    mask = torch.ones_like(scores)
    if amount > 0:
        mask = torch_prune.L1Unstructured(amount).compute_mask(scores, mask)
    return mask.bool()


def mask_nm(
    model: nn.Module,
    sparsity: float,
    names: Iterable[str],
    criterion: str = "l1",
    seed: int = 0,
    group: int = 4,
) -> Masks:
    """Set the weakest N of every M neighbouring weights of a filter to zero. In place.

    Args:
        model: The network.
        sparsity: N / M: a multiple of 1 / ``group``, in [0, 1); 0.5 is the 2:4 of GPUs.
        names: The layers. One whose filters do not have a multiple of M weights gets no mask.
        criterion: As in :func:`prune`.
        seed: Of ``random``.
        group: M.

    Returns:
        The masks, for :func:`apply_masks`, of the layers to which the pattern applies.

    Raises:
        InputError: If the sparsity is not such a multiple, or the criterion is unknown.

    Source: Mishra et al. 2021 (arXiv 2104.08378).
    Lesson: 02_pruning, "Four kinds of pruning".
    """
    gone = sparsity * group
    ok = 0 <= sparsity < 1 and gone == int(gone)
    allowed = ", ".join(f"{i / group:g}" for i in range(group))
    check("sparsity", sparsity, ok, f"{allowed}: a number of weights in each group of {group}")
    masks, generator = {}, torch.Generator().manual_seed(seed)
    firsts = _firsts(model, names)
    for name in dict.fromkeys(firsts.values()):
        scores = _scores(model, name, criterion, generator)
        if scores[0].numel() % group == 0:
            order = scores.reshape(-1, group).abs().argsort(dim=1, stable=True)
            mask = torch.ones_like(order, dtype=torch.bool)
            masks[name] = mask.scatter_(1, order[:, : int(gone)], False).view_as(scores)
    check(
        "pruning", "mask_nm", bool(masks), f"no layer has filters of a multiple of {group} weights"
    )
    return _hold(model, masks, firsts)


def _firsts(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Map each layer to the first one with its weight: tied weights are scored once."""
    weights = {name: model.get_submodule(name).weight for name in names}
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(id(weight), name) for name, weight in weights.items()}


def _hold(model: nn.Module, masks: Masks, firsts: Mapping[str, str]) -> Masks:
    """Apply masks and return them, those of tied weights under each of their names. In place."""
    masks = {name: masks[first] for name, first in firsts.items() if first in masks}
    apply_masks(model, masks)
    return masks


def _scores(model: nn.Module, name: str, criterion: str, generator: torch.Generator) -> Tensor:
    """Return how strong each weight is; a filter's strength is the norm of its scores."""
    choose("criterion", criterion, CRITERIA)
    weight = model.get_submodule(name).weight
    if criterion == "random":
        return torch.rand(weight.shape, generator=generator).to(weight.device)
    if criterion == "taylor":
        check("criterion", criterion, weight.grad is not None, f"{name}.weight has no gradient, as "
              "where it takes no part in the output: use another criterion")  # fmt: skip
        return (weight * weight.grad).detach()
    return weight.detach()


@torch.enable_grad()
def _gradients(model: nn.Module, part: ImageSet, dataset: Dataset, seed: int) -> int:
    """Leave the mean gradient of the loss on some images in every parameter; how many. In place."""
    chosen = part.sample(SCORED, seed)
    model.eval().requires_grad_(True).zero_grad(set_to_none=True)
    for images, labels in batches(chosen, at_most(chosen.images, 128)):
        loss = F.cross_entropy(model(dataset.normalise(images)), labels, reduction="sum")
        (loss / len(chosen)).backward()
    return len(chosen)


def remove_channels(
    model: nn.Module, sparsity: float, criterion: str = "l2", seed: int = 0
) -> Kept:
    """Take the weakest channels out of a network, and all that is coupled to them. In place.

    What is added together must keep the same channels, so layers go in groups. The classifier keeps
    its outputs; a transformer keeps its width, and loses inner width of its heads and hidden units.

    Args:
        model: The network.
        sparsity: Share of the channels of each group, in [0, 1).
        criterion: As in :func:`prune`; for ``taylor`` the gradients must be there.
        seed: Of ``random``.

    Returns:
        Name of each tensor -> the indices kept along each dimension (None: all), for
        :func:`cut_out`.

    Raises:
        InputError: If the sparsity is outside [0, 1), the criterion is unknown, or channels cannot
            be removed from this network; it is then undefined.

    Source: Torch-Pruning: Fang et al. 2023 (arXiv 2301.12900).
    Lesson: 02_pruning, "Channels that are gone".
    """
    check("sparsity", sparsity, 0 <= sparsity < 1, "a share in [0, 1)")
    choose("criterion", criterion, CRITERIA)
    named = list(model.named_parameters(remove_duplicate=False))
    twice = sorted(n for n, p in named if sum(p is q for _, q in named) > 1)
    check("model", f"shared weights, {', '.join(twice)}", not twice,
          "one whose layers have weights of their own; or use a mask")  # fmt: skip
    requires = {n: p.requires_grad for n, p in model.named_parameters()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        models.check_weights(model, [models.layers(model).head])  # prune looks at the others
        zeroed = models.copy_of(model)
        with torch.no_grad():
            shape = model(models.example(model)).shape
        model.requires_grad_(True)  # Torch-Pruning traces with autograd
        _take_out(model, sparsity, criterion, seed)
        kept = {k: _places(v, before[k].shape) for k, v in model.state_dict().items()}
        kept = {k: places for k, places in kept.items() if any(p is not None for p in places)}
        whole = _left_whole(model, before, kept, sparsity)
        if whole and not kept:
            raise InputError(f"no outputs could be taken out of {', '.join(whole)}")
        smaller = cut_out(before, kept)
        for name, tensor in smaller.items():
            _set(model, name, tensor)
        models.resize(model, {name: tuple(tensor.shape) for name, tensor in smaller.items()})
        with torch.no_grad(), models.evaluating(model):
            after = model(models.example(model))
        check("outputs", tuple(after.shape), after.shape == shape, f"{tuple(shape)}, as before")
        _can_be_built(after, zeroed, smaller)
        _agrees(after, zeroed, before, kept)
    except Exception as error:  # tracing runs the network's own code, which may do anything
        why = reason(error)
        if not isinstance(error, InputError):
            why = f"to follow what is coupled in it, and narrow it, failed ({why})"
        raise InputError(
            f"channels cannot be removed from {type(model).__name__}: {why}; use a mask instead"
        ) from error
    if whole:
        named = ", ".join(whole)
        log.warning("%s: no outputs could be taken out of %s", type(model).__name__, named)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(requires[name])
    return kept


@torch.enable_grad()
def _take_out(model: nn.Module, sparsity: float, criterion: str, seed: int) -> None:
    """Let Torch-Pruning cut the weakest channels; each entry that is left says where it was.

    In place: the parameters and buffers hold their own places afterwards.
    """
    import torch_pruning as tp

    importance = {
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "random": tp.importance.RandomImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[criterion]()
    attention = [m for m in model.modules() if isinstance(m, models.Attention)]
    heads = {layer: a.heads for a in attention for layer in (a.query, a.key, a.value)}
    roots = [nn.Conv2d, nn.Linear]
    # of an InstanceNorm with statistics, too, which Torch-Pruning does not cut as a BatchNorm's
    instance = {type(m): tp.pruner.function.BatchnormPruner() for m in model.modules()
                if isinstance(m, nn.modules.instancenorm._InstanceNorm)
                and m.track_running_stats}  # fmt: skip

    def pruner(most: Mapping[nn.Module, float]) -> tp.pruner.BasePruner:
        return tp.pruner.BasePruner(
            model, models.example(model), importance=importance, pruning_ratio=sparsity,
            pruning_ratio_dict=most,
            ignored_layers=[model.get_submodule(n) for n in models.layers(model).fixed],
            num_heads=heads, prune_head_dims=True, root_module_types=roots,
            customized_pruners=instance,
            in_channel_groups={}, out_channel_groups={},  # its own hold each that it has seen
        )  # fmt: skip

    with turns.own_random_state(), warnings.catch_warnings(), _as_far_as_there_are_channels(model):
        # its answer to a graph that it cannot follow, over which it would sit for hours
        warnings.filterwarnings("error", "Maximum recursive depth")
        torch.default_generator.manual_seed(seed)
        plan = pruner({})
        # what is coupled and would lose all of its channels, or all in each group of a grouped
        # convolution, is left whole by Torch-Pruning: one stays instead
        sizes = {g[0].dep.target.module: len(g[0].idxs) / plan._get_channel_groups(g)
                 for g in plan.DG.get_all_groups(plan.ignored_layers, roots)}  # fmt: skip
        most = {m: 1 - 1.5 / n for m, n in sizes.items() if n * (1 - sparsity) < 1 < n}
        plan = pruner(most) if most else plan
        groups = list(plan.step(interactive=True))
    model.zero_grad(set_to_none=True)  # "taylor" has been read
    _number(model)  # each entry is replaced by its own place, to see later which are left
    norms = [norm for norm in model.modules() if isinstance(norm, nn.LayerNorm)]
    for (first, channels), *_ in groups:
        # followed anew: where outputs are concatenated, what was cut before has moved the rest
        plan.DG.get_pruning_group(first.target.module, first.handler, channels).prune()
        for entries in (entries for norm in norms for entries in norm.parameters()):
            entries.data = entries.data.sort().values  # which it leaves in the order of a set


@contextmanager
def _as_far_as_there_are_channels(model: nn.Module) -> Iterator[None]:
    """Stop Torch-Pruning where it finds more coupled channels than any layer has. In its turn.

    Where windows of an image become rows of a batch, it takes each for more channels, and these for
    more at every step on its way: it would go on until the memory is full.
    """
    import torch_pruning as tp

    most = max((size for tensor in model.parameters() for size in tensor.shape), default=1)
    add = tp.dependency.Group.add_dep

    def add_dep(group: tp.dependency.Group, dep: tp.dependency.Dependency, idxs: Sequence) -> None:
        if len(idxs) > most and len({place for place, _ in idxs}) > most:
            raise RuntimeError(f"more than {most} channels are coupled, which no layer has")
        add(group, dep, idxs)

    tp.dependency.Group.add_dep = add_dep
    try:
        yield
    finally:
        tp.dependency.Group.add_dep = add


def _left_whole(
    model: nn.Module, before: Mapping[str, Tensor], kept: Kept, sparsity: float
) -> list[str]:
    """List the layers that should have lost outputs, and lost none.

    Torch-Pruning does not see a layer whose weight is used by a function, as ``F.conv2d`` does.
    """
    layers = models.layers(model)
    return [name for name in layers.prunable if name not in layers.fixed
            and kept.get(f"{name}.weight", (None,))[0] is None
            and before[f"{name}.weight"].shape[0] * sparsity >= 1]  # fmt: skip


@torch.no_grad()
def _can_be_built(found: Tensor, whole: nn.Module, smaller: Mapping[str, Tensor]) -> None:
    """Refuse what could not be read back: shapes make a network again, and nothing is pickled."""
    built = models.copy_of(whole)
    models.resize(built, {name: tuple(tensor.shape) for name, tensor in smaller.items()})
    models.put_state(built, smaller)
    with models.evaluating(built):
        again = built(models.example(built))
    check("the smaller network", "another once built from the shapes of its tensors",
          torch.allclose(again, found, rtol=AGREES, atol=AGREES), "the same")  # fmt: skip


@torch.no_grad()
def _agrees(
    found: Tensor, zeroed: nn.Module, before: Mapping[str, Tensor],
    kept: Mapping[str, tuple[Tensor | None, ...]],
) -> None:  # fmt: skip
    """Refuse a smaller network that does not compute what the whole one does with zeros.

    Torch-Pruning does not follow every way in which channels are put together and mixed. Where a
    layer of other channels is normalised over them, the two may well differ, and nothing is said.
    """
    grouped = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
    normed = {n for n, m in zeroed.named_modules() if isinstance(m, grouped)}
    if any(name.rpartition(".")[0] in normed for name in kept):
        return
    state = {name: tensor.clone() for name, tensor in before.items()}
    for name, dims in kept.items():
        for dim, places in enumerate(dims):
            if places is not None and not name.endswith("running_var"):
                left = torch.zeros(state[name].shape[dim], dtype=torch.bool)
                left[places] = True
                gone = (~left).nonzero().flatten().to(state[name].device)
                state[name].index_fill_(dim, gone, 0)
    models.put_state(zeroed, state)
    with models.evaluating(zeroed):
        wanted = zeroed(models.example(zeroed))
    apart = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    check("outputs", f"{apart:.1e} of the largest apart from those with zeros in the place of the "
          "removed channels", apart < AGREES, f"less than {AGREES}")  # fmt: skip


@torch.no_grad()
def _number(model: nn.Module) -> None:
    """Replace each entry of each tensor by its place. In place: Torch-Pruning holds the objects."""
    stored = {t.data_ptr() for t in model.state_dict().values()}
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() and tensor.data_ptr() in stored:
            places = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device)
            tensor.data = places.view(tensor.shape)


def _places(numbered: Tensor, shape: torch.Size) -> tuple[Tensor | None, ...]:
    """Read from the numbers that are left which indices are left along each dimension."""
    kept: list[Tensor | None] = []
    for dim, size in enumerate(shape):
        if numbered.shape[dim] == size:
            kept.append(None)
            continue
        line = numbered.detach().transpose(0, dim).reshape(numbered.shape[dim], -1)[:, 0]
        places = (line.long() // shape[dim + 1 :].numel() % size).cpu()
        check("places", places.tolist(), bool((places.diff() > 0).all()), "in ascending order")
        kept.append(places)
    return tuple(kept)


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    prefix, _, last = name.rpartition(".")
    module = model.get_submodule(prefix)
    if last in module._parameters:
        required = module._parameters[last].requires_grad
        tensor = nn.Parameter(tensor, requires_grad=required)
    setattr(module, last, tensor)


def cut_out(state: dict[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """Take the kept channels out of the state of the original network.

    Args:
        state: Name -> tensor, of the original size.
        kept: Name -> indices kept along each dimension; names that are missing are kept whole.

    Returns:
        The state of the smaller network; the tensors are copies.

    Source: this project.
    Lesson: 02_pruning, "Channels that are gone".
    """
    smaller = {}
    for name, tensor in state.items():
        tensor = tensor.detach().clone()
        for dim, places in enumerate(kept.get(name, ())):
            if places is not None:
                tensor = tensor.index_select(dim, places.to(tensor.device))
        smaller[name] = tensor
    return smaller


def zeros_as_masks(model: nn.Module, names: Iterable[str]) -> Masks:
    """Take the zeros that a network has already as its masks.

    Args:
        model: A network that was pruned before.
        names: The layers.

    Returns:
        The masks, of the layers that have zeros.

    Source: this project.
    Lesson: 04_class_unlearning, "Several classes".
    """
    weights = {name: model.get_submodule(name).weight.detach() for name in names}
    return {name: w != 0 for name, w in weights.items() if bool((w == 0).any())}


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


def channels_gone(model: nn.Module, original: nn.Module, names: Iterable[str]) -> float:
    """Return the share of output channels that a smaller network has lost.

    Args:
        model: The network from which channels were removed.
        original: The network of the original size.
        names: The layers to count; those whose outputs keep their width are left out.

    Returns:
        A share in [0, 1).

    Source: this project.
    Lesson: 02_pruning, "Channels that are gone".
    """
    fixed = models.layers(original).fixed
    counted = [n for n in names if n not in fixed]
    left, all_ = (sum(len(m.get_submodule(n).weight) for n in counted) for m in (model, original))
    return 1 - left / max(1, all_)


def semi_structured(model: nn.Module) -> tuple[nn.Module, str]:
    """Move 2:4 sparse linear layers to the GPU's sparse matrix units, where there are any.

    Args:
        model: A network pruned by ``mask_nm`` with sparsity 0.5.

    Returns:
        A copy for inference in half precision and an empty reason; or the network itself and the
        reason why there is no fast path for it.

    Source: ``torch.sparse.to_sparse_semi_structured``; it has no convolutions.
    Lesson: 02_pruning, "Four kinds of pruning".
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return model, "not available: the 2:4 units are on CUDA devices only"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return model, f"not available: {torch.cuda.get_device_name(device)} has no 2:4 units"
    fast = models.copy_of(model).half().requires_grad_(False)
    moved = 0
    for layer in fast.modules():
        if isinstance(layer, nn.Linear) and _two_of_four(layer.weight):
            sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = nn.Parameter(sparse, requires_grad=False)
            moved += 1
    reason = "" if moved else "not available: no linear layer is 2:4 sparse and of a size it takes"
    return (fast, "") if moved else (model, reason)


def _two_of_four(weight: Tensor) -> bool:
    ok = weight.shape[0] % 32 == 0 and weight.shape[1] % 64 == 0  # the kernels' smallest blocks
    return ok and bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())
