"""The architectures, by name, and the layers of each that may be pruned and adapted.

All of them take images of 8 to 512 pixels a side and any number of channels and classes. The
networks for 32x32 images keep their resolution at the start: a 3x3 stem with stride 1, no max-pool.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode

from helpers import files, turns
from helpers.config import TARGETS, InputError, check, choose, reason

log = logging.getLogger(__name__)
_LITTLE = 0.2  # of all weights: where fewer can be pruned, or adapted, that is said


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNet for CIFAR.

    Source: He et al. 2015 (arXiv 1512.03385), section 4.2.
    Lesson: 01_baseline_training, "The network".
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + shortcut(x))."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network of three stages: resnet20 with three blocks a stage, digits with one.

    Source: He et al. 2015 (arXiv 1512.03385), section 4.2, with projection shortcuts.
    Lesson: 01_baseline_training, "The network".
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        """Build the network: (N, in_channels, H, W) float32 -> (N, num_classes) logits."""
        super().__init__()
        widths = (16, 32, 64)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for stage, width in enumerate(widths):
            before = widths[max(stage - 1, 0)]
            first = ResidualBlock(before, width, 1 if stage == 0 else 2)
            rest = [ResidualBlock(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention whose q, k, v and output are separate linear layers.

    An adapter on ``nn.MultiheadAttention.out_proj`` never acts, because that module reads the
    weight directly; here every layer is called, so every adapter takes part.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.
    Lesson: 03_lora_adaptation, "Limits and pitfalls".
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build the layer: (N, T, width) -> (N, T, width); width divisible by heads."""
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5  # stays when the inner width is pruned
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return softmax(q k^T / sqrt(d)) v, projected."""
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, t, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block.

    Source: Dosovitskiy et al. 2020 (arXiv 2010.11929), equations 2 and 3.
    Lesson: 03_lora_adaptation, "Which layers".
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build the block: (N, T, width) -> (N, T, width)."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp1, self.mlp2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after attention and the two-layer perceptron."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer with fixed sine-cosine positions and mean-pooled tokens.

    Source: Beyer et al. 2022 (arXiv 2205.01580), the plain ViT baseline.
    Lesson: 03_lora_adaptation, "Which layers".
    """

    def __init__(
        self, depth: int, width: int, heads: int, patch: int,
        num_classes: int, in_channels: int, image_size: int,
    ) -> None:  # fmt: skip
        """Build the network: (N, in_channels, image_size, image_size) -> (N, num_classes)."""
        super().__init__()
        check("image_size", image_size, image_size % patch == 0, f"a multiple of {patch}")
        self.patch = nn.Conv2d(in_channels, width, patch, patch)
        positions = sincos_positions(image_size // patch, width)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def sincos_positions(side: int, width: int) -> Tensor:
    """Build two-dimensional sine-cosine position embeddings.

    Args:
        side: Patches per side.
        width: Channels of a token; a multiple of 4.

    Returns:
        (side * side, width) float32: a quarter each of sin x, cos x, sin y, cos y.

    Source: Beyer et al. 2022 (arXiv 2205.01580), appendix; MoCo v3.
    Lesson: 03_lora_adaptation, "Which layers".
    """
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    scale = 10_000 ** (-torch.arange(width // 4) / (width // 4 - 1))
    angles = [v.reshape(-1, 1) * scale for v in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def _torchvision_resnet(name: str) -> Callable[..., nn.Module]:
    def build(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        import torchvision.models

        return _for_small_images(
            getattr(torchvision.models, name)(num_classes=num_classes), in_channels
        )

    return build


def _for_small_images(model: nn.Module, in_channels: int) -> nn.Module:
    """Give a network of torchvision a 3x3 stem of stride 1, and no max-pool. In place."""
    model.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _narrow_resnet(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build a small ResNet of torchvision: a block a stage, an eighth of the channels."""
    from torchvision.models.resnet import BasicBlock, ResNet

    model = _for_small_images(ResNet(BasicBlock, [1, 1, 1, 1], num_classes), in_channels)
    wide = (64, 128, 256, 512)
    shapes = {
        name: tuple(n // 8 if n in wide else n for n in tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    resize(model, shapes | {"fc.weight": (num_classes, 64), "fc.bias": (num_classes,)})
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def _small_resnet(blocks: int) -> Callable[..., nn.Module]:
    return lambda num_classes, in_channels, image_size: SmallResNet(
        blocks, num_classes, in_channels
    )


def _vit(depth: int, width: int, heads: int, patch: int) -> Callable[..., nn.Module]:
    return lambda **shape: ViT(depth, width, heads, patch, **shape)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": _small_resnet(1),
    "resnet20": _small_resnet(3),
    "resnet18": _torchvision_resnet("resnet18"),
    "resnet50": _torchvision_resnet("resnet50"),
    "vit": _vit(12, 384, 6, 4),
    "vit_tiny": _vit(2, 32, 2, 2),
    "resnet_tiny": _narrow_resnet,
}


def build_model(
    name: str, num_classes: int, in_channels: int, image_size: int, seed: int = 0
) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        name: One of ``MODELS``.
        num_classes: Outputs of the classifier.
        in_channels: 1 for grey, 3 for colour.
        image_size: Side in pixels.
        seed: Of the initial weights; the global random state is left as it was.

    Returns:
        The network in evaluation mode, on the CPU: (N, C, H, W) float32 -> (N, classes) logits.

    Raises:
        InputError: If the name is unknown, or the size does not fit the patches of a ViT.

    Source: the papers named at each class; torchvision.models for resnet18 and resnet50.
    Lesson: 01_baseline_training, "The network".
    """
    choose("model", name, MODELS)
    with turns.own_random_state():
        torch.default_generator.manual_seed(seed)
        model = MODELS[name](
            num_classes=num_classes, in_channels=in_channels, image_size=image_size
        )
    model.blueprint = Blueprint(name, num_classes, in_channels, image_size)
    model.input_shape = (in_channels, image_size, image_size)
    return model.eval()


@dataclass(frozen=True)
class Blueprint:
    """What :func:`build_model` needs to build an architecture again; kept as ``model.blueprint``.

    Attributes:
        name: One of ``MODELS``.
        num_classes: Outputs of the classifier.
        in_channels: 1 for grey, 3 for colour.
        image_size: Side in pixels.

    Source: this project.
    Lesson: 02_pruning, "Channels that are gone".
    """

    name: str
    num_classes: int
    in_channels: int
    image_size: int


def example(model: nn.Module, count: int = 2) -> Tensor:
    """Make images of random numbers that a network can take, to trace, count and time it.

    Args:
        model: One of ours; or any network with an attribute ``input_shape`` = (C, H, W).
        count: How many.

    Returns:
        (count, C, H, W) float32, standard normal, always the same, on the network's device.

    Raises:
        InputError: If the network does not say what it takes.

    Source: this project.
    Lesson: 03_lora_adaptation, "Adapters through peft".
    """
    shape = getattr(model, "input_shape", None)
    hint = "the (channels, height, width) that the network takes: set model.input_shape"
    check("input_shape", shape, shape is not None, hint)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *shape, generator=generator, dtype=torch.float32)
    held = next(itertools.chain(model.parameters(), model.buffers()), images)
    return images.to(held.device)


@dataclass(frozen=True)
class Layers:
    """The named layers of a network on which the stages act.

    Attributes:
        head: The classifier; trained in full, never pruned (but see ``paper_prunable``).
        prunable: Layers whose weights may be pruned.
        stages: Layers of the blocks, by stage (or transformer block), in order; those that are not
            in ``shared`` may be adapted.
        blocks: The same by block.
        others: The stem and the 1x1 shortcuts, adapted only on request.
        norms: Layers that keep statistics of the images: BatchNorm, and InstanceNorm that does.
        fixed: Layers whose outputs keep their width when channels are removed.
        paper_prunable: What the published code prunes.
        paper_adaptable: What the published code adapts. The transformer's attention output is among
            them; there the published adapter had no effect, because ``nn.MultiheadAttention`` never
            called it, and here it has one.
        shared: Layers whose weight has several names, because they have, or other layers share it:
            an adapter would act in one place only.

    Source: arXiv 2411.11907 and its code for ``paper_prunable`` and ``paper_adaptable``.
    Lesson: 03_lora_adaptation, "Which layers".
    """

    head: str
    prunable: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]
    norms: tuple[str, ...]
    fixed: tuple[str, ...]
    paper_prunable: tuple[str, ...]
    paper_adaptable: tuple[str, ...]
    shared: frozenset[str] = frozenset()

    @property
    def adaptable(self) -> tuple[str, ...]:
        """Return the layers of all blocks that may be adapted, in order.

        Where none may, the others are taken; where those may not either, an adapter's refusal says
        what is wrong with the first.
        """
        every = tuple(name for stage in self.stages for name in stage)
        return self._own(every) or self._own(self.others) or every

    def _own(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self.shared)

    def _last(self, groups: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
        return next(filter(None, map(self._own, reversed(groups))), self.adaptable)

    def targets(self, scope: str) -> tuple[str, ...]:
        """List the layers that get an adapter.

        Args:
            scope: ``last_block``, ``last_stage``, ``blocks`` (all of them) or ``all`` (the stem and
                the shortcuts too).

        Returns:
            Full names.

        Raises:
            InputError: If the scope is unknown.

        Source: depth-limited adapters skip the backward pass through everything before them.
        Lesson: 03_lora_adaptation, "Which layers".
        """
        choose("targets", scope, TARGETS)
        every = self.adaptable
        return {
            "last_block": self._last(self.blocks), "last_stage": self._last(self.stages),
            "blocks": every, "all": tuple(dict.fromkeys(every + self._own(self.others))),
        }[scope]  # fmt: skip


def layers(model: nn.Module) -> Layers:
    """List the layers of a network that may be pruned and adapted.

    The classifier is the last linear layer that was registered. In a convolutional network every
    convolution may be pruned, and those of the blocks (neither the stem nor a 1x1 shortcut, nor
    what peft cannot adapt, nor what is used in several places) are adapted. In our transformers the
    linear layers of the blocks are both, and in a network without convolutions all before the
    classifier; of another transformer only its convolutions are listed, such as that which cuts the
    patches, and its linear layers have to be named.

    Args:
        model: One of ours, or any ``nn.Module`` built from Conv2d, Linear and BatchNorm2d.

    Returns:
        The names, in the order of ``model.named_modules()``.

    Raises:
        InputError: If the network has no linear layer to be its classifier, or nothing before it,
            or a part of it is compiled.

    Source: arXiv 2411.11907, section 3, and its code.
    Lesson: 03_lora_adaptation, "Which layers".
    """
    check_not_compiled("model", model)
    named = dict(model.named_modules())
    kind = type(model).__name__
    linears = [n for n, m in named.items() if isinstance(m, nn.Linear)]
    check("model", kind, bool(linears), "it needs a linear layer as classifier")
    head = linears[-1]
    norms = tuple(n for n, m in named.items() if keeps_statistics(m))
    shared = several_names(model)
    if isinstance(model, ViT):
        blocks = range(len(model.blocks))
        stages = tuple(tuple(n for n in linears if n.startswith(f"blocks.{i}.")) for i in blocks)
        wide = [f"blocks.{i}.{n}" for i in blocks for n in ("attention.out", "mlp2")]
        last = f"blocks.{len(model.blocks) - 1}.attention.out"
        inner = tuple(n for stage in stages for n in stage)
        fixed = ("patch", *wide, head)
        paper = (last, head)
        return Layers(head, inner, stages, stages, (), norms, fixed, paper, paper, shared)
    found = [n for n, m in named.items() if isinstance(m, nn.Conv2d)] or linears[:-1]
    check("model", kind, bool(found), "it needs layers before its classifier")
    plain = [n for n in found if _is_plain(named[n])]
    check("model", kind, bool(plain), "it needs a layer without groups and dilation")
    shortcuts = [n for n in plain if "shortcut" in n or "downsample" in n]
    blocks = tuple(n for n in plain[1:] if n not in shortcuts) or tuple(plain)
    others = tuple(n for n in plain if n not in blocks)
    made = Layers(
        head, tuple(found), _groups(blocks), _groups(blocks, 1), others, norms, (head,),
        tuple(found), blocks, shared,
    )  # fmt: skip
    return replace(made, paper_adaptable=made.adaptable)


def _is_plain(layer: nn.Module) -> bool:
    """Say whether a layer can be adapted: neither grouped nor dilated, padded with zeros."""
    if isinstance(layer, nn.Linear):
        return True
    return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"


def keeps_statistics(layer: nn.Module) -> bool:
    """Say whether a layer is one whose statistics of the images training mode moves.

    Args:
        layer: Any module.

    Returns:
        True for BatchNorm, and for InstanceNorm with ``track_running_stats``.

    Source: this project.
    Lesson: 03_lora_adaptation, "Off, on, saved, reloaded".
    """
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return layer.track_running_stats
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def several_names(model: nn.Module) -> frozenset[str]:
    """List the layers whose weight has several names in a network.

    Args:
        model: The network.

    Returns:
        Names, all those of a layer that has several itself, and of layers that share a weight.

    Source: this project.
    Lesson: 03_lora_adaptation, "Which layers".
    """
    count = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return frozenset(n for n, m in model.named_modules(remove_duplicate=False)
                     if count[id(m._parameters.get("weight"))] > 1)  # fmt: skip


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a network in evaluation mode while the context lasts.

    Args:
        model: The network; afterwards each of its modules is in the mode that it was in.

    Source: this project.
    Lesson: 02_pruning, "The ledger".
    """
    mode = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in mode.items():
            module.training = training


@contextmanager
def unmoved(model: nn.Module) -> Iterator[None]:
    """Put the buffers of a network back afterwards, such as the statistics of BatchNorm.

    Args:
        model: The network; its parameters are left alone, and a buffer made meanwhile stays.

    Source: this project.
    Lesson: 02_pruning, "The ledger".
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in before:  # by name: some networks put a new tensor in its place
                    buffer.copy_(before[name])


class _WithoutHistory(TorchFunctionMode):
    """Lets a copy take a tensor that a pass made, which torch does not copy, as plain numbers."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().clone())


def copy_of(model: nn.Module) -> nn.Module:
    """Copy a network, also one that keeps what its last pass made.

    Args:
        model: The network; stays as it is.

    Returns:
        The copy. What the network keeps of a pass, such as features in an attribute or a weight
        that the old ``weight_norm`` computed, has the same values in it, and no gradient.

    Source: :func:`copy.deepcopy`, which refuses tensors that are not leaves.
    Lesson: 05_evaluation, "Audit your own model".
    """
    with _WithoutHistory():
        return copy.deepcopy(model)


def check_float32(name: str, model: nn.Module) -> None:
    """Refuse weights of another type: images are float32, and torch's own message names neither.

    Args:
        name: What the network is called in the message.
        model: The network.

    Raises:
        InputError: If a parameter has another floating-point type.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    check(name, ", ".join(map(str, types)), types <= {torch.float32}, "float32: model.float()")


def check_not_compiled(name: str, model: nn.Module) -> None:
    """Refuse compiled parts: hooks do not reach into them, and their layers cannot be exchanged.

    Args:
        name: What the network is called in the message.
        model: The network.

    Raises:
        InputError: If the network or a part of it is one of ``torch.compile`` or ``torch.jit``,
            or was compiled in place.

    Source: this project.
    Lesson: 03_lora_adaptation, "Which layers".
    """
    compiled = [n or "as a whole" for n, m in model.named_modules()
                if isinstance(m, torch.jit.ScriptModule) or "_orig_mod" in m._modules
                or getattr(m, "_compiled_call_impl", None) is not None]  # fmt: skip
    check(name, f"{type(model).__name__}, compiled: {', '.join(compiled[:1])}", not compiled,
          "the network before torch.compile, torch.jit.script or torch.jit.trace")  # fmt: skip


def check_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers whose weight is computed from others: what is written to it would be lost.

    Args:
        model: The network.
        names: Of the layers.

    Raises:
        InputError: If the weight of one is no parameter of its own, as with ``weight_norm`` and
            ``torch.nn.utils.prune``.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    for name in names:
        plain = "weight" in model.get_submodule(name)._parameters
        check(f"{name}.weight", "computed from other parameters", plain, "a parameter of its own: "
              "torch.nn.utils.parametrize.remove_parametrizations, or torch.nn.utils.prune.remove, "
              "make it one")  # fmt: skip


def check_head(model: nn.Module, classes: int) -> None:
    """Refuse a network whose classifier is another layer than the one that is taken for it.

    Args:
        model: The network.
        classes: Number of classes.

    Raises:
        InputError: If the linear layer that is registered last has other outputs than classes.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    head = layers(model).head
    found = model.get_submodule(head).out_features
    check(f"outputs of {head}", found, found == classes,
          f"{classes}, one a class: the linear layer that is registered last is taken for the "
          "classifier")  # fmt: skip


@torch.no_grad()
def check_head_is_last(model: nn.Module, images: Tensor) -> None:
    """Refuse a network whose answer is not made by the layer that is taken for its classifier.

    Args:
        model: The network; stays as it is.
        images: (N, C, H, W) float, normalised: a few that it must take.

    Raises:
        InputError: If a forward pass does not call the layer, or orders the classes otherwise.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    name, made = layers(model).head, []
    hook = model.get_submodule(name).register_forward_hook(
        lambda _, inputs, found: made.append(found)
    )
    with hook, evaluating(model):
        answers = model(images)
    # what follows it may scale or normalise, which leaves the order of the classes
    same = bool(made) and (
        made[-1].shape != answers.shape or torch.equal(made[-1].argsort(1), answers.argsort(1))
    )
    check("classifier", name, same, "the layer that makes the answer: the linear layer that is "
          "registered last is taken for it")  # fmt: skip


def check_answers(name: str, model: nn.Module, images: Tensor, classes: int) -> None:
    """Refuse a network that does not turn images into one logit a class.

    Args:
        name: What the user called it.
        model: The network; stays as it is.
        images: (N, C, H, W) float, normalised: a few that it must take.
        classes: Number of classes.

    Raises:
        InputError: If it is of another type, cannot take the images, or returns anything else,
            such as probabilities.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """
    taken, wanted = f"images of {tuple(images.shape[1:])}", (len(images), classes)
    if images.dtype == torch.float32:
        check_float32(name, model)
    with evaluating(model):
        found = _pass(name, model, images)
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    allowed = f"a tensor {wanted}: one logit a class; wrap the network where it returns more"
    check(f"{name}'s answer to {len(images)} {taken}", got, got == wanted, allowed)
    shares = bool((found >= 0).all()) and bool(((found.sum(1) - 1).abs() < 1e-4).all())
    shares &= not torch.equal(found, found[:1].expand_as(found))  # a bias alone may add up to 1
    check(f"{name}'s answer", "probabilities, which add up to 1", not shares, "logits: if it ends "
          "in softmax, hand over the network up to there")  # fmt: skip
    # whole classes are shown at once: what is common to a batch, and taken off, is the class
    alone = (
        "the same answer to an image, with others and alone: BatchNorm with "
        "track_running_stats=True, any number of images, no chance in evaluation mode"
    )
    try:
        with evaluating(model), torch.no_grad():
            first = model(images[:1])
    except Exception as error:
        raise InputError(
            f"{name} cannot take an image alone ({reason(error)}); allowed: {alone}"
        ) from error
    apart, size = (found[:1] - first).abs().max().item(), found.abs().max().item()
    ok = not apart > 0.01 * size
    check(f"{name}'s answer to an image, with others and alone, differs by", f"{apart:.2g}", ok,
          alone)  # fmt: skip


def _refusal(name: str, images: Tensor, error: Exception) -> InputError:
    folders = " (those of a folder have three channels, grey ones too)"
    return InputError(
        f"{name} cannot take images of {tuple(images.shape[1:])}: {reason(error)}; give it the "
        f"images that it was trained for{folders if images.shape[1] == 3 else ''}"
    )


def check_training(name: str, model: nn.Module, images: Tensor, classes: int) -> None:
    """Refuse a network that answers otherwise while it trains: with a second head, say.

    Args:
        name: What the user called it.
        model: The network; stays as it is.
        images: (N, C, H, W) float, normalised: a few that it must take.
        classes: Number of classes.

    Raises:
        InputError: If it does not return one logit a class in training mode, or its forward pass
            keeps gradients from its weights.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    trial, cards = copy_of(model).train(), [images.device] if images.is_cuda else []
    for module in trial.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # it may not measure so few images
    try:
        for parameter in trial.parameters():  # adapters train where the owner froze everything
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad(), turns.own_random_state(cards):  # of its dropout
            found = trial(images)
    except Exception as error:  # the network's own code may raise anything
        raise InputError(f"{name} cannot train: {reason(error)}") from error
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    allowed = f"a tensor {(len(images), classes)}, as in evaluation; switch further heads off"
    check(f"{name}'s answer while it trains", got, got == (len(images), classes), allowed)
    check(
        f"{name}'s answer while it trains",
        "without a gradient",
        found.requires_grad,
        "one with a gradient: no torch.no_grad and no torch.inference_mode around its forward",
    )


def check_has_weights(name: str, model: nn.Module) -> None:
    """Refuse lazy layers that were never called: they have no weights yet.

    Args:
        name: What the network is called in the message.
        model: The network.

    Raises:
        InputError: If a parameter or buffer waits for the first images.

    Source: ``torch.nn.modules.lazy``.
    Lesson: 05_evaluation, "Audit your own model".
    """
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    lazy = [key for key, tensor in tensors if is_lazy(tensor)]
    check(name, f"lazy, without {', '.join(lazy[:1])}", not lazy, "one whose layers have their "
          "weights: call it once with images before")  # fmt: skip


def check_state(name: str, model: nn.Module) -> None:
    """Refuse a network whose state holds more than tensors, which no file and no patch can hold.

    Args:
        name: What the network is called in the message.
        model: The network.

    Raises:
        InputError: If an entry of its state is no tensor, as ``get_extra_state`` may make them, or
            a tensor is not there yet.

    Source: https://huggingface.co/docs/safetensors; nothing is pickled.
    Lesson: 03_lora_adaptation, "Patches".
    """
    check_has_weights(name, model)
    state = model.state_dict()
    other = [key for key, value in state.items() if not isinstance(value, Tensor)]
    check(f"state of {name}", ", ".join(other), not other, "tensors alone: none of another kind "
          "from get_extra_state")  # fmt: skip


def call_order(model: nn.Module) -> list[str]:
    """List the layers of a network in the order in which they are first called.

    Args:
        model: A network that :func:`example` has images for.

    Returns:
        Names; layers that are never called are missing.

    Source: forward hooks; the order of registration is a habit, not a rule.
    Lesson: 03_lora_adaptation, "Which layers".
    """
    order: list[str] = []
    with ExitStack() as hooks, torch.no_grad(), evaluating(model):
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(
                lambda _, __, name=name: order.append(name)))  # fmt: skip
        model(example(model))
    return list(dict.fromkeys(order))


def _groups(names: tuple[str, ...], more: int = 0) -> tuple[tuple[str, ...], ...]:
    """Group layers by the first part of their names in which they differ, and ``more`` parts."""
    parts, depth = [name.split(".") for name in names], 0
    most = min(len(part) for part in parts) - 1
    while depth < most and len({part[depth] for part in parts}) == 1:
        depth += 1
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, part in zip(names, parts, strict=True):
        groups.setdefault(tuple(part[: depth + 1 + more]), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Count the parameters of a network.

    Args:
        model: Any network.
        trainable: Count only those that require a gradient.

    Returns:
        The number of scalars.

    Source: the habit of LLMs-from-scratch, appendix E: count before and after.
    Lesson: 03_lora_adaptation, "What trains".
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def say_if_little(model: nn.Module, names: Iterable[str], what: str) -> None:
    """Warn of a network in which few of the weights are in the layers that can be changed.

    Args:
        model: Any network.
        names: The layers, each with a weight.
        what: What can be done with them: ``pruned`` or ``adapted``.

    Source: this project.
    Lesson: 03_lora_adaptation, "Which layers".
    """
    weights = sum(model.get_submodule(name).weight.numel() for name in names)
    share = weights / count_parameters(model)
    if share < _LITTLE:
        log.warning("%.1f %% of the weights of %s are in layers that can be %s", 100 * share,
                    type(model).__name__, what)  # fmt: skip


def max_rank(layer: nn.Module) -> int:
    """Return the largest rank that a layer's weight, seen as a matrix, can have.

    Args:
        layer: A Conv2d (out, in, kh, kw) or a Linear (out, in).

    Returns:
        min(out, in * kh * kw).

    Source: linear algebra; the layout of peft's convolution adapters.
    Lesson: 03_lora_adaptation, "Rank".
    """
    return min(layer.weight.shape[0], math.prod(layer.weight.shape[1:]))


def fingerprint(model: nn.Module) -> str:
    """Compute what identifies the weights of a network.

    Args:
        model: Any network.

    Returns:
        SHA-256 (64 hexadecimal digits) over names, types, shapes and bytes of its state.

    Raises:
        InputError: If its state holds more than tensors.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """
    check_state("model", model)
    return files.digest(model.state_dict())


def fresh(model: nn.Module, seed: int = 0) -> nn.Module:
    """Copy a network and give the copy fresh weights: one that knows nothing.

    Args:
        model: Any network; stays as it is. Layers draw their weights as they do when they are made;
            a parameter that no layer draws, such as a class token, or one whose layer cannot draw
            it without being told how, is drawn from a normal distribution of its own mean and
            deviation.
        seed: Of the weights; the global random state is left as it was.

    Returns:
        The copy, in evaluation mode, on the same device.

    Source: the random teacher of Chundawat et al. 2022 (arXiv 2205.08096).
    Lesson: 05_evaluation, "Where the answers go".
    """
    copied = copy_of(model).cpu()
    with turns.own_random_state():
        torch.default_generator.manual_seed(seed)
        drawn: set[int] = set()
        for module in copied.modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset is not None and _needs_nothing(reset):
                own = {id(p): (p._version, p.detach().clone())
                       for p in module.parameters(recurse=False)}  # fmt: skip
                reset()
                # weight_norm and the like let it write to a weight that is computed anew
                drawn |= {id(p) for p in module.parameters(recurse=False)
                          if id(p) not in own or _written(p, *own[id(p)])}  # fmt: skip
        with torch.no_grad():
            for parameter in copied.parameters():
                if id(parameter) not in drawn and parameter.numel() > 1:  # one is a scale
                    parameter.normal_(float(parameter.mean()), float(parameter.std()))
            _follow_norms(copied)
    return copied.to(next(model.parameters()).device).eval()


def _needs_nothing(function: Callable) -> bool:
    """Say whether a function can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _follow_norms(model: nn.Module) -> None:
    """Let ``spectral_norm``, which follows the norm of a weight step by step, find the new ones."""
    for module in model.train().modules():
        hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]
        for _ in range(_NORM_STEPS):
            for hook in hooks:
                hook(module, None)
            for name in module.parametrizations if is_parametrized(module) else ():
                getattr(module, name)


def _written(parameter: nn.Parameter, version: int, value: Tensor) -> bool:
    """Say whether a parameter was written to since; writes through ``.data`` have no version."""
    return parameter._version != version or not torch.equal(parameter, value)


_NORM_STEPS = 20  # of the power method, which takes one a training step


@torch.no_grad()
def resize(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the layers of a network other sizes; their weights are then undefined. In place.

    Args:
        model: The network, for example one just built by its name.
        shapes: Name of each tensor of ``model.state_dict()`` -> its new shape.

    Source: the shapes in a file of weights are the architecture; no module is ever pickled.
    Lesson: 02_pruning, "Channels that are gone".
    """
    for prefix, module in model.named_modules():
        own = {*module._parameters, *module._buffers} - module._non_persistent_buffers_set
        for name in own:
            tensor = getattr(module, name)
            shape = tuple(shapes.get(f"{prefix}.{name}" if prefix else name, ()))
            if tensor is None or tensor.shape == shape:
                continue
            new = tensor.new_empty(shape)
            if name in module._parameters:
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            setattr(module, name, new)
        _set_sizes(module)


_COUNT_FEATURES = nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm


def put_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network the tensors of a state, as of the version that its own state is of. In place.

    Args:
        model: The network.
        tensors: Name -> tensor, all that it has.

    Raises:
        RuntimeError: If they do not fit.

    Source: ``load_state_dict`` asks the state for versions, and a plain dictionary has none.
    Lesson: 03_lora_adaptation, "Patches".
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(model.state_dict(), "_metadata", {})
    model.load_state_dict(state)


def _set_sizes(module: nn.Module) -> None:
    """Make the sizes that a layer reports those that its weight has."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels == module.out_channels:  # depthwise
            module.groups = weight.shape[0]
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _COUNT_FEATURES):
        counted = module.running_mean if weight is None else weight
        module.num_features = module.num_features if counted is None else len(counted)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = len(weight)
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)


def save(model: nn.Module, folder: Path | str) -> Path:
    """Write a network as ``model.safetensors`` and its architecture as ``architecture.json``.

    Those of another network that are there are replaced once both are whole. The latter names the
    blueprint only if that, with the shapes, is the network: not of one that was changed after
    :func:`build_model` made it, other than by removing channels.

    Args:
        model: The network, of its original size or with channels removed.
        folder: Where to; created if needed.

    Returns:
        The file with the weights.

    Raises:
        FileProblem: If it cannot be written.
        InputError: If its state holds more than tensors.

    Source: https://huggingface.co/docs/safetensors; nothing is pickled.
    Lesson: 02_pruning, "Channels that are gone".
    """
    check_state("model", model)
    state = model.state_dict()
    plain = {
        "format": 1,
        "blueprint": dataclasses.asdict(model.blueprint) if _is_its_blueprint(model) else None,
        "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
    }
    path, about = (Path(folder) / name for name in ("model.safetensors", "architecture.json"))
    files.write_together({
        path: files.as_tensors(state),
        about: files.as_text(files.as_json(about, plain)),
    })  # fmt: skip
    return path


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two networks have the same layers of the same sizes, by the same names.

    Args:
        one: A network.
        other: Another one, on any device.

    Returns:
        Whether their modules describe themselves alike, and their states have the same shapes.

    Source: this project.
    Lesson: 02_pruning, "Channels that are gone".
    """
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (one, other)]
    return shapes[0] == shapes[1] and str(one) == str(other)


def _is_its_blueprint(model: nn.Module) -> bool:
    """Say whether its blueprint and its shapes are the network: its owner may have changed it."""
    blueprint = getattr(model, "blueprint", None)
    if blueprint is None:
        return False
    with torch.device("meta"):  # where nothing is drawn, so that no other training is waited for
        sizes = dataclasses.asdict(blueprint)
        outline = MODELS[sizes.pop("name")](**sizes)
    shapes, most = ({name: tuple(t.shape) for name, t in m.state_dict().items()}
                    for m in (model, outline))  # fmt: skip
    if shapes.keys() != most.keys() or not all(within(shapes[n], most[n]) for n in most):
        return False
    resize(outline, shapes)
    return alike(model, outline)


def load(folder: Path | str, base: nn.Module | None = None) -> nn.Module:
    """Read what :func:`save` wrote.

    The files are not trusted: every shape is compared with the architecture of the original size
    before anything is allocated, and the layers must fit each other.

    Args:
        folder: The folder that :func:`save` wrote; or a plain safetensors file, whose shapes are
            then taken from the file itself, and which may name tied weights once.
        base: A network of the original size and of the same architecture; it stays as it is. None
            builds one of ours from the stored blueprint, which a plain file does not have, nor a
            network that was changed after :func:`build_model` made it.

    Returns:
        The network in evaluation mode, on the device of ``base`` or the CPU.

    Raises:
        FileProblem: If a file is missing or damaged, or does not belong to the architecture.
        InputError: If a plain file comes without a network of its architecture.

    Source: https://huggingface.co/docs/safetensors; nothing is unpickled.
    Lesson: 02_pruning, "Channels that are gone".
    """
    folder = Path(folder)
    if folder.is_dir():
        path = folder / "model.safetensors"
        plain = files.read_json(folder / "architecture.json", ("blueprint", "shapes"))
    else:
        path, plain = folder, None
        files.tensor_shapes(folder)  # one that cannot be read is said first
        check("base", base, base is not None, "a network of the architecture, for a plain file")
    try:
        if base is None:
            with torch.device("meta"):  # shapes only: an absurd blueprint costs no memory
                outline = build_model(**_blueprint(plain["blueprint"]))
        else:
            outline = copy_of(base).to("meta")
        found = files.tensor_shapes(path)
        same = {} if base is None else _same_tensors(base, found)
        found |= {name: found[other] for name, other in same.items()}
        stated = {n: s for n, (s, _) in found.items()} if plain is None else plain["shapes"]
        shapes = {name: tuple(shape) for name, shape in stated.items()}
        _check_shapes(found, outline, shapes)
        resize(outline, shapes)
        check_float32("model", outline)
        tried = check_fit(outline)
        model = copy_of(base) if base is not None else build_model(**plain["blueprint"])
        resize(model, shapes)
        tensors, _ = files.load_tensors(path)
        put_state(model, tensors | {name: tensors[other] for name, other in same.items()})
        if not tried:
            _pass("model", model.eval(), example(model))
    except (InputError, TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise files.FileProblem(files.cannot_read(folder, error)) from error
    return model.eval()


def check_fit(model: nn.Module) -> bool:
    """Find out whether the layers of a network fit each other, without computing anything.

    Args:
        model: The network, on any device; stays as it is.

    Returns:
        Whether it could be found out; a network that looks at its numbers has to be run.

    Raises:
        InputError: If the outputs of one layer are not what the next one takes, or the network
            cannot take images of its ``input_shape``.

    Source: PyTorch's meta device.
    Lesson: 02_pruning, "Channels that are gone".
    """
    outline = copy_of(model).to("meta").eval()
    shape = getattr(model, "input_shape", None)
    check("input_shape", shape, shape is not None, "the (channels, height, width) that it takes")
    try:
        _pass("model", outline, torch.empty(2, *shape, device="meta"))
    except InputError as error:
        if "meta" not in str(error.__cause__).lower():
            raise
        return False
    return True


def _pass(name: str, model: nn.Module, images: Tensor) -> Tensor:
    """Pass images, and say in one line what the network's own code has against them."""
    try:
        with torch.no_grad():
            return model(images)
    except Exception as error:  # the network's own code may raise anything
        raise _refusal(name, images, error) from error


def _blueprint(plain: Any) -> dict[str, Any]:
    limits = {"num_classes": 10_000, "in_channels": 64, "image_size": 512}
    named = isinstance(plain, dict) and {"name", *limits} == {*plain}
    check("blueprint", plain, named, "a dict; without one give base, a network of the architecture")
    for field, most in limits.items():
        ok = type(plain[field]) is int and 1 <= plain[field] <= most
        check(field, plain[field], ok, f"from 1 to {most}")
    return plain


def _same_tensors(base: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Map names that a file lacks to one that it has, where both are one tensor of a network.

    ``safetensors.torch.save_model`` writes tied weights under one of their names.
    """
    state = base.state_dict(keep_vars=True)
    there = {id(state[name]): name for name in names if name in state}
    return {name: there[id(tensor)] for name, tensor in state.items()
            if id(tensor) in there and name not in there.values()}  # fmt: skip


def _check_shapes(
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    base: nn.Module,
    stated: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse stored tensors that no pruned version of a network can have.

    ``found`` is in the file, ``stated`` written beside it; ``base`` has the original size.
    """
    state = base.state_dict()
    strange = [*sorted(found.keys() ^ state.keys()), *sorted(stated.keys() ^ state.keys()), ""][0]
    where = "it lacks" if strange in state else "it has"
    same = found.keys() == state.keys() == stated.keys()
    allowed = f"the {len(state)} of {type(base).__name__}, by the same names"
    check("tensors", len(found), same, f"{allowed}; {where} {strange!r}")
    for name, (shape, dtype) in found.items():
        most = tuple(state[name].shape)
        ok = within(shape, most) and shape == stated[name] and dtype == state[name].dtype
        check(name, f"{dtype} {shape}", ok, f"{state[name].dtype}, as stated, at most {most}")


def within(shape: Sequence[int], most: Sequence[int]) -> bool:
    """Say whether a stored shape is one that a layer pruned from a known size can have.

    Args:
        shape: What a file states.
        most: The original's.

    Returns:
        Whether there are as many sizes, each a whole number from 1 to the original's, or like the
        original's 0.

    Source: this project.
    Lesson: 02_pruning, "Channels that are gone".
    """
    pairs = zip(shape, most, strict=False)
    return len(shape) == len(most) and all(
        type(n) is int and (1 <= n <= m or n == m == 0) for n, m in pairs
    )
