"""Adapting with LoRA: attach adapters, keep the zeros, merge.

peft does the work. This module decides what it is asked for: the layers come from the network's
own list, the classifier trains in full, and the state of every BatchNorm after the first adapter
belongs to the adapter, so that switching it off gives the old network back and saving it loses
nothing.

Without dropout the low-rank change is added to the weight, W + s B A, masked where the weight is
masked: the sums are the same, no second pair of convolutions runs over the images, and a mask of
any kind holds exactly. A layer with a forward pass or hooks of its own is called with that weight.
In wide layers, where a gradient for the whole weight costs more than that pair, the change is added
to the output, as peft does it, with the rows of B masked.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from helpers import models, turns
from helpers.config import ADAPTERS, InputError, check, choose
from helpers.models import max_rank
from helpers.pruning import AGREES, Masks, apply_masks

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."  # what peft puts before every name
# Measured on one CPU thread at rank 8, forward and backward: up to 128 channels the change of the
# weight is faster (at 16 more than twice), from 256 on that of the output (at 512 1.7 times).
WIDE = 128
THIN = 16  # ... as long as the rank is at most this fraction of the outputs


def check_rank(model: nn.Module, rank: int, names: Iterable[str]) -> None:
    """Refuse a rank that some layer cannot have.

    Args:
        model: The network.
        rank: The rank asked for.
        names: The layers to adapt.

    Raises:
        InputError: If the rank is below 1 or above the smallest of the layers' largest ranks.

    Source: linear algebra: a matrix has at most min(rows, columns) independent rows.
    Lesson: 03_lora_adaptation, "Rank".
    """
    most, name = min(((max_rank(model.get_submodule(n)), n) for n in names), default=(1, ""))
    ok = isinstance(rank, int) and 1 <= rank <= most
    check("rank", rank, ok, f"from 1 to {most}, the most that layer {name} admits")


def _refuse_unsupported(model: nn.Module, targets: Iterable[str]) -> None:
    """Refuse layers on which peft's adapters are wrong or have no effect.

    Source: measured: dilated layers crash, reflected padding differs by 5.8 after merging, grouped
    layers cannot be merged, ``nn.MultiheadAttention`` never calls its output layer, nor does
    ``nn.TransformerEncoderLayer`` any of its layers while it evaluates.
    """
    models.check_not_compiled("model", model)
    known = dict(model.named_modules())
    shared = models.several_names(model)
    targets = list(targets)
    for name in targets:
        layer = known.get(name)
        parent = known.get(name.rpartition(".")[0])
        reason = ""
        if layer is None:
            reason = f"no layer of {type(model).__name__}"
        elif isinstance(layer, nn.MultiheadAttention) or isinstance(parent, nn.MultiheadAttention):
            reason = "nn.MultiheadAttention reads weights without calling its layers, so that an "
            reason += "adapter there does nothing until it is merged; use separate linear layers"
        elif _is_at_once(parent):
            reason = "nn.TransformerEncoderLayer with batch_first = True reads weights without "
            reason += "calling its layers while it evaluates, so that an adapter there does "
            reason += "nothing until it is merged; use a block of separate layers"
        elif not isinstance(layer, nn.Conv2d | nn.Linear):
            reason = f"{type(layer).__name__} is neither Conv2d nor Linear"
        elif name in shared:
            reason = (
                "it is used in several places, and only one of them would be adapted: leave it out"
            )
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            reason = f"groups = {layer.groups}: peft cannot merge grouped convolutions"
        elif isinstance(layer, nn.Conv2d) and set(layer.dilation) != {1}:
            reason = f"dilation = {layer.dilation}: peft's adapter ignores it"
        elif isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            reason = f"padding_mode = {layer.padding_mode!r}: peft's adapter pads with zeros"
        if reason:
            raise InputError(f"target {name!r} is not allowed: {reason}")
    models.check_weights(model, targets)


def _is_at_once(block: nn.Module | None) -> bool:
    """Say whether a module is a block that PyTorch computes at once while it evaluates.

    Its conditions are those of ``nn.TransformerEncoderLayer.forward``.
    """
    if getattr(type(block), "forward", None) is not nn.TransformerEncoderLayer.forward:
        return False
    attention = block.self_attn
    fits = attention.batch_first and attention.num_heads % 2 == 0
    return fits and attention.in_proj_bias is not None and bool(block.activation_relu_or_gelu)


def _in_several_places(model: nn.Module) -> set[nn.Module]:
    count = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    return {module for module, places in count.items() if places > 1}


def _tied(model: nn.Module, layer: nn.Module) -> str:
    """Name a parameter of a layer that another layer has as well; empty if there is none."""
    every = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    inside = Counter(id(p) for _, p in layer.named_parameters(remove_duplicate=False))
    return next((n for n, p in layer.named_parameters() if every[id(p)] > inside[id(p)]), "")


def attach(
    model: nn.Module,
    rank: int,
    targets: Iterable[str],
    *,
    alpha: float,
    kind: str = "lora",
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    dropout: float = 0.0,
    train_in_full: Iterable[str] = (),
    masks: Masks | None = None,
    any_rank: Iterable[str] = (),
    seed: int = 0,
    audited: bool = True,
) -> PeftModel:
    """Put a LoRA adapter beside each target layer of a copy of the network.

    Args:
        model: The network; stays as it is.
        rank: Rank r of every adapter that ``ranks`` does not name.
        targets: Full names of the layers to adapt (Conv2d or Linear).
        alpha: The adapter's change is scaled by alpha / rank.
        kind: ``lora``; ``rslora`` (scaled by alpha / sqrt(rank)); or ``dora`` (the length of each
            filter is trained apart from its direction).
        ranks: Layer -> its own rank.
        alphas: Layer -> its own alpha.
        dropout: Share of the adapter's inputs dropped while training. Above 0 the change cannot be
            added to the weight, so peft's own layers act on the images, which costs time and memory
            and holds masks of whole filters only; not for layers whose forward pass is their own.
        train_in_full: Full names of layers of which the adapter keeps its own trained copy: the
            classifier, and every BatchNorm with its running statistics.
        masks: Name of layer -> mask of its weight, applied to the copy and held exactly while
            training and merging.
        any_rank: Targets whose rank may exceed what they admit, as for the classifier of the
            published transformer; the surplus adds nothing that they can express.
        seed: Of the adapters' initial weights; the global random state is left as it was.
        audited: Whether to compare the outputs with those of the (masked) ``model``, to run
            :func:`audit_adapters`, and to raise where they differ or an adapter is dead.

    Returns:
        The adapted copy in evaluation mode: same outputs as the (masked) ``model``, because B
        starts at 0.

    Raises:
        InputError: If a layer does not exist or peft handles it wrongly, one to train in full is
            a target, too, or shared or tied to another, the rank is not possible, a mask fits no
            layer, the outputs change, or an adapter takes no part in them.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4; rsLoRA (arXiv 2312.03732); DoRA
        (arXiv 2402.09353); SparsePEFT (EMNLP 2024) for the mask; peft's LoraConfig.
    Lesson: 03_lora_adaptation, "Adapters through peft".
    """
    from peft import LoraConfig, get_peft_model

    choose("adapter", kind, ADAPTERS)
    if audited:  # which passes images, and those are float32
        models.check_float32("model", model)
    for field, given in (("targets", targets), ("train_in_full", train_in_full)):
        check(field, given, not isinstance(given, str), "a list of names of layers")
    targets, train_in_full = list(targets), list(train_in_full)
    ranks, alphas, masks = dict(ranks or {}), dict(alphas or {}), dict(masks or {})
    _check_layers(model, targets, train_in_full, masks)
    for field, given in (("ranks", ranks), ("alphas", alphas)):
        check(field, sorted(given), given.keys() <= set(targets), "names of target layers")
    limited = [name for name in targets if name not in set(any_rank)]
    check_rank(model, rank, [name for name in limited if name not in ranks])
    for name in set(ranks) & set(limited):
        check_rank(model, ranks[name], [name])
    own = [name for name in targets if not _is_torchs(model.get_submodule(name))]
    _check_dropout(dropout, kind, masks, own)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout,
        target_modules="|".join(map(re.escape, targets)),  # as one pattern peft matches it whole
        rank_pattern=_exactly(ranks), alpha_pattern=_exactly(alphas),
        use_dora=kind == "dora", use_rslora=kind == "rslora",
    )  # fmt: skip
    if dropout == 0:
        config._register_custom_module(_weight_form())
    masked = models.copy_of(model)
    apply_masks(masked, masks)
    wanted = _answers(masked) if audited else None
    with turns.own_random_state(), _hidden(masked, "config"):
        torch.default_generator.manual_seed(seed)
        adapted = get_peft_model(masked, config)
    _train_in_full(adapted.get_base_model(), train_in_full)
    made = {name for name, _ in adapters(adapted)}
    check("targets", sorted(made), made == set(targets), f"peft did not adapt {sorted(targets)}")
    if dropout == 0:
        for name, layer in adapters(adapted):
            mask = masks.get(name)
            layer.mask = None if mask is None else mask.to(layer.weight.device)
            layer.filters = None if mask is None else _rows(layer.mask)
            layer.on_images = kind != "dora" and _is_wide(layer)
    adapted.eval()  # peft forgets the mode of what it wraps
    if audited:
        _check_outputs(adapted, wanted)
    return adapted


def _check_layers(
    model: nn.Module, targets: list[str], train_in_full: list[str], masks: Masks
) -> None:
    """Refuse layers that cannot be adapted, trained in full, or masked."""
    check("targets", targets, bool(targets), f"at least one layer of {type(model).__name__}")
    _refuse_unsupported(model, targets)
    known, shared = dict(model.named_modules()), _in_several_places(model)
    for name in train_in_full:
        check("train_in_full", name, name in known, f"no layer of {type(model).__name__}")
        check("train_in_full", f"{name}, used in several places", known[name] not in shared,
              "layers used once: only one of them would be the trained copy")  # fmt: skip
        tied = _tied(model, known[name])
        check("train_in_full", f"{name}, whose {tied} another layer has, too", not tied,
              "layers with parameters of their own: a trained copy is not tied")  # fmt: skip
        adapted = [target for target in targets if f"{target}.".startswith(f"{name}.")]
        check("train_in_full", name, not adapted, f"{', '.join(adapted)} in targets gets an "
              "adapter, which leaves its weight as it is; choose one of the two")  # fmt: skip
    _check_masks(known, masks)


def _check_outputs(adapted: PeftModel, wanted: Tensor) -> None:
    """Refuse adapters that change the outputs before they have learned, or take no part in them."""
    found = _answers(adapted.get_base_model())
    apart = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    check("outputs", f"{apart:.1e} of the largest apart from those without adapters",
          apart < AGREES, f"less than {AGREES}: a forward pass that takes an adapter for the "
          "layer that it replaces")  # fmt: skip
    dead = [row.layer for row in audit_adapters(adapted) if not row.alive]
    called = models.call_order(adapted.get_base_model()) if dead else []
    never = [name for name in dead if name not in called]
    why = f" (never called in evaluation: {', '.join(never)})" if never else ""
    check("targets", dead, not dead, "their adapters do not act on the output or get no gradient"
          f"{why}; leave them out of targets")  # fmt: skip


@contextlib.contextmanager
def _hidden(model: nn.Module, name: str) -> Iterator[None]:
    """Hide an attribute: peft takes a network's own ``config`` for one of transformers'.

    One of its class cannot be taken away without taking it from other networks: the class is
    exchanged for one whose property hides the network's own attribute, too.
    """
    kind = type(model)
    if name not in vars(model) and not hasattr(kind, name):
        yield
        return

    def missing(_: nn.Module) -> None:
        raise AttributeError(name)

    model.__class__ = type(kind.__name__, (kind,), {name: property(missing)})
    try:
        yield
    finally:
        model.__class__ = kind


def _train_in_full(model: nn.Module, names: Iterable[str]) -> None:
    """Let layers learn whole, beside a copy that stays. In place.

    As ``modules_to_save``, except that peft takes every layer whose name ends like one of these,
    and none of them can be a target then.
    """
    from peft.utils import ModulesToSaveWrapper

    for name in names:
        wrapper = ModulesToSaveWrapper(model.get_submodule(name), "default")
        wrapper.set_adapter("default")
        model.set_submodule(name, wrapper)


def _check_masks(known: Mapping[str, nn.Module], masks: Masks) -> None:
    weights = {name: getattr(layer, "weight", None) for name, layer in known.items()}
    wrong = [name for name, mask in masks.items()
             if weights.get(name) is None or weights[name].shape != mask.shape]  # fmt: skip
    check("masks", sorted(wrong), not wrong, "names of layers, with masks as large as the weights")


@torch.no_grad()
def _answers(model: nn.Module) -> Tensor:
    with models.evaluating(model):
        found = model(models.example(model, 8))
    check("answer", type(found).__name__, isinstance(found, Tensor), "a tensor, one logit a class; "
          "wrap the network where it returns more")  # fmt: skip
    return found


def _check_dropout(dropout: float, kind: str, masks: Masks, own: list[str]) -> None:
    if dropout > 0:
        check("dropout", dropout, not own, f"0, for {', '.join(own)}: an adapter beside a layer "
              "whose forward pass or hooks are its own cannot be merged")  # fmt: skip
        check("dropout", dropout, kind != "dora", "DoRA is used without dropout")
        whole = all(bool((m.flatten(1).all(1) == m.flatten(1).any(1)).all())
                    for m in masks.values())  # fmt: skip
        check("dropout", dropout, whole, "0, for masks of anything but whole filters")


def _exactly(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Make peft, which reads names as regular expressions, take them literally."""
    return {f"^{re.escape(name)}": value for name, value in pattern.items()}


def _is_torchs(layer: nn.Module) -> bool:
    """Say whether a layer computes what PyTorch's does, and calls nothing else."""
    own = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    methods = [name for name in ("forward", "_conv_forward") if hasattr(own, name)]
    same = all(getattr(getattr(layer, n), "__func__", None) is getattr(own, n) for n in methods)
    return same and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_wide(layer: nn.Module) -> bool:
    """Say whether the change is cheaper on the images, and whether mask and layer allow it."""
    outputs, inputs = layer.weight.shape[:2]
    thin = THIN * layer.r[layer.active_adapters[0]] <= outputs
    whole = layer.mask is None or bool((layer.mask == layer.filters).all())
    return min(outputs, inputs) > WIDE and thin and whole and _is_torchs(layer.get_base_layer())


def _rows(mask: Tensor) -> Tensor:
    """Return a mask of whole filters: True where any weight of the filter is kept."""
    return mask.flatten(1).any(1).view(-1, *[1] * (mask.dim() - 1))


@functools.cache
def _weight_form() -> dict[type[nn.Module], type[nn.Module]]:
    """Return peft's adapted layers with the change added to the weight; made late: peft is slow."""
    from peft.tuners.lora.layer import Conv2d, Linear

    class WeightForm:
        mask: Tensor | None = None
        filters: Tensor | None = None  # those of which the mask keeps anything
        on_images = False

        def _apply(self, *args: Any, **how: Any) -> WeightForm:
            super()._apply(*args, **how)
            for name in ("mask", "filters"):  # they are held anyway, and are no state of a network
                if (held := getattr(self, name)) is not None:
                    setattr(self, name, held.to(self.weight.device))
            return self

        def forward(self, x: Tensor, *args: Any, base_output: Tensor | None = None) -> Tensor:
            if self.disable_adapters or self.merged:
                return super().forward(x, *args)
            base = self.get_base_layer()
            if self.on_images:  # where the images do not change, what the base makes does neither
                base_output = base(x) if base_output is None else base_output
                return base_output + self.change_of_output(x)
            weight = effective_weight(self)
            if not _is_torchs(base):  # it may standardise its weight, or pad as TensorFlow does
                return functional_call(base, {"weight": weight}, (x, *args))
            if isinstance(base, nn.Linear):
                return nn.functional.linear(x, weight, base.bias)
            return base._conv_forward(x, weight, base.bias)

        def change_of_output(self, x: Tensor) -> Tensor:
            adapter = self.active_adapters[0]
            b = self.scaling[adapter] * self.lora_B[adapter].weight
            if self.filters is not None:
                b = b * self.filters
            thin = self.lora_A[adapter](x)
            if isinstance(self.get_base_layer(), nn.Linear):
                return nn.functional.linear(thin, b)
            return nn.functional.conv2d(thin, b)

        def get_delta_weight(self, adapter: str) -> Tensor:
            delta = super().get_delta_weight(adapter)
            return delta if self.mask is None else delta * self.mask

    class WeightConv2d(WeightForm, Conv2d):
        pass

    class WeightLinear(WeightForm, Linear):
        pass

    return {nn.Conv2d: WeightConv2d, nn.Linear: WeightLinear}


def effective_weight(layer: nn.Module) -> Tensor:
    """Compute the weight that an adapted layer amounts to.

    Args:
        layer: One of :func:`adapters`.

    Returns:
        W + s B A, both masked; for DoRA each filter scaled to its trained length. The shape of the
        layer's weight, with a gradient to A and B.

    Source: Hu et al. 2021, equation 3; DoRA (arXiv 2402.09353), equation 5 and section 4.3.
    Lesson: 03_lora_adaptation, "The change belongs to the weight".
    """
    adapter = layer.active_adapters[0]
    magnitude = None
    if adapter in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[adapter].weight
    return changed_weight(
        layer.get_base_layer().weight,
        layer.lora_A[adapter].weight.flatten(1),
        layer.lora_B[adapter].weight.flatten(1),
        layer.scaling[adapter],
        getattr(layer, "mask", None),
        magnitude,
    )


def changed_weight(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    mask: Tensor | None = None,
    magnitude: Tensor | None = None,
) -> Tensor:
    """Add a low-rank change to a weight: the one place where this is done.

    Args:
        weight: (out, in) or (out, in, kh, kw) float32.
        a: (r, in * kh * kw) float32.
        b: (out, r) float32.
        scale: Factor of the product.
        mask: Shape of ``weight``, bool, True where kept.
        magnitude: ``out`` numbers in any shape: DoRA's length of each filter.

    Returns:
        A new tensor of the shape of ``weight``.

    Source: Hu et al. 2021, equation 3; DoRA, equation 5; SparsePEFT for the mask.
    Lesson: 03_lora_adaptation, "The change belongs to the weight".
    """
    changed = weight + scale * (b @ a).view_as(weight)
    if mask is not None:
        changed = changed * mask
    if magnitude is not None:
        norm = changed.detach().flatten(1).norm(dim=1).clamp_min(1e-12)  # 0 for a masked filter
        factor = magnitude.flatten() / norm
        changed = changed * factor.view(-1, *[1] * (changed.dim() - 1))
    return changed


def adapters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the adapted layers.

    Args:
        model: A network with adapters.

    Returns:
        (name, layer) pairs, the name as in the network without adapters; each layer has ``lora_A``
        and ``lora_B`` by adapter name.

    Source: ``peft.tuners.lora.LoraLayer``.
    Lesson: 03_lora_adaptation, "Adapters through peft".
    """
    return [(n.removeprefix(PREFIX), m) for n, m in model.named_modules() if hasattr(m, "lora_A")]


@dataclass(frozen=True)
class AdapterAudit:
    """What one adapter does.

    Attributes:
        layer: Name of the adapted layer.
        effect: Largest change of a logit when B is filled with random numbers; 0 is a dead adapter.
        gradient: Largest entry of the gradient of B in one step.

    Source: the defect of the published transformer.
    Lesson: 03_lora_adaptation, "What trains".
    """

    layer: str
    effect: float
    gradient: float

    @property
    def alive(self) -> bool:
        """Whether the adapter takes part in the output and gets a gradient."""
        return self.effect > 0 and self.gradient > 0


def audit_adapters(adapted: PeftModel, images: Tensor | None = None) -> list[AdapterAudit]:
    """Run one step and report for every adapter whether it acts and learns.

    Args:
        adapted: The adapted network; its weights and gradients stay as they are.
        images: (B, C, H, W) float32, normalised; None takes random numbers.

    Returns:
        One row an adapter.

    Source: the check that the published transformer would have failed.
    Lesson: 03_lora_adaptation, "What trains".
    """
    plain = adapted.get_base_model()
    images = models.example(plain, 8) if images is None else images
    layers = adapters(adapted)
    tensors = {name: layer.lora_B[layer.active_adapters[0]].weight for name, layer in layers}
    generator = torch.Generator().manual_seed(0)
    before = {name: b.detach().clone() for name, b in tensors.items()}
    with models.evaluating(adapted), torch.no_grad():
        unchanged, effects = adapted(images), {}
        for name, b in tensors.items():
            b.copy_(torch.randn(b.shape, generator=generator))
            effects[name] = (adapted(images) - unchanged).abs().max().item()
            b.copy_(before[name])
    with models.evaluating(adapted), torch.enable_grad():
        labels = torch.arange(len(images), device=images.device) % unchanged.shape[1]
        loss = nn.functional.cross_entropy(adapted(images), labels)
        found = [None] * len(tensors)
        if loss.requires_grad:  # else no adapter takes part in it
            found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    sizes = [0.0 if g is None else g.abs().max().item() for g in found]
    return [AdapterAudit(n, effects[n], g) for n, g in zip(tensors, sizes, strict=True)]


def frozen_norms(adapted: PeftModel) -> list[nn.Module]:
    """List the layers with statistics, such as BatchNorm, that do not belong to the adapter.

    Training mode would move their statistics although their parameters are frozen; the training
    loop keeps them in evaluation mode.

    Args:
        adapted: The adapted network.

    Returns:
        The modules, for ``frozen`` of :func:`helpers.training.fit`.

    Source: measured: a reloaded adapter without the statistics fell from 84 to 78 per cent.
    Lesson: 03_lora_adaptation, "Off, on, saved, reloaded".
    """
    return [
        m for name, m in adapted.named_modules()
        if models.keeps_statistics(m) and not any(p.requires_grad for p in m.parameters())
        and ".modules_to_save." not in name  # one without parameters belongs to it, too
    ]  # fmt: skip


@torch.no_grad()
def hold_masks(model: nn.Module, masks: Masks) -> None:
    """Keep whole masked filters at zero in an adapted network. In place.

    Needed with dropout only, where peft's own layers act on the images: the change of an adapted
    weight is B A, and the rows of B are the filters, so where a row of B is zero, merging adds
    exactly nothing. Called after each optimiser step.

    Args:
        model: The adapted network.
        masks: Name of layer in the original network -> mask of whole filters.

    Source: the row view of B A in Hu et al. 2021; SparsePEFT (EMNLP 2024) for single weights.
    Lesson: 03_lora_adaptation, "The zeros survive the merge".
    """
    for name, layer in adapters(model):
        mask = masks.get(name)
        if mask is not None:
            dead = ~mask.flatten(1).any(1)
            for matrix in layer.lora_B.values():
                matrix.weight[dead.to(matrix.weight.device)] = 0


@torch.no_grad()
def merge(model: PeftModel, masks: Masks | None = None) -> nn.Module:
    """Add the adapters to the weights and return a plain network.

    Args:
        model: The adapted network; used up.
        masks: If given, the zeros that the merged network must still have.

    Returns:
        The network in evaluation mode, with the classifier and norms of the adapter.

    Raises:
        InputError: If a mask fits no layer, or the adapters would refill masked weights; merge
            without ``masks`` to let them.

    Source: Hu et al. 2021, section 4.1; the classifier and norms as peft's ``merge_and_unload``.
    Lesson: 03_lora_adaptation, "The zeros survive the merge".
    """
    from peft.utils import ModulesToSaveWrapper

    masks, weights, merged = masks or {}, {}, model.get_base_model()
    _check_masks(dict(merged.named_modules()), masks)
    for name, layer in adapters(model):
        weights[name] = effective_weight(layer)
        if name in masks:
            grown = int((weights[name] != 0)[~masks[name].to(layer.weight.device)].sum())
            allowed = "call hold_masks after each step, or merge without masks"
            check("adapters", f"{grown} weights under the mask of {name}", grown == 0, allowed)
    # peft's own merge_and_unload takes whatever has a ``base_layer``, as DLA has, for adapted
    for name, module in [*merged.named_modules()]:
        if name in weights:
            merged.set_submodule(name, module.get_base_layer())
            merged.get_submodule(name).weight.copy_(weights[name])
        elif isinstance(module, ModulesToSaveWrapper):
            merged.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    del merged.peft_config
    merged.eval()
    apply_masks(merged, masks)  # turns -0.0 into 0.0, and holds layers without an adapter
    return merged.requires_grad_(True)  # as any network that was just built


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors B, A of a given rank for a matrix.

    Args:
        matrix: (m, n) float32.
        rank: From 1 to min(m, n).

    Returns:
        B (m, rank) and A (rank, n), whose product has the least squared error of all of that rank.

    Raises:
        InputError: If the matrix has no such rank.

    Source: Eckart & Young 1936.
    Lesson: 03_lora_adaptation, "The idea".
    """
    check("rank", rank, 1 <= rank <= min(matrix.shape), f"from 1 to {min(matrix.shape)}")
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], v[:rank]
