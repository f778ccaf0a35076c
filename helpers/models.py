"""The architectures, by name, and the layers of each that may be pruned and adapted.

All of them take images of 8 to 512 pixels a side and any number of channels and classes. The
networks for 32x32 images keep their resolution at the start: a 3x3 stem with stride 1, no max-pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.config import check, choose


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
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return softmax(q k^T / sqrt(d)) v, projected."""
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, t, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
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

        model = getattr(torchvision.models, name)(num_classes=num_classes)
        model.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        return model

    return build


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
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model = MODELS[name](
            num_classes=num_classes, in_channels=in_channels, image_size=image_size
        )
    return model.eval()


@dataclass(frozen=True)
class Layers:
    """The named layers of a network on which the stages act.

    Attributes:
        head: The classifier; trained in full, never pruned (but see ``paper_prunable``).
        prunable: Layers whose filters may be masked.
        adaptable: Layers that get a LoRA adapter.
        norms: BatchNorm layers, whose state belongs to an adapter.
        paper_prunable: What the published code prunes.
        paper_adaptable: What the published code adapts. The transformer's attention output is among
            them; there the published adapter had no effect, because ``nn.MultiheadAttention`` never
            called it, and here it has one.

    Source: arXiv 2411.11907 and its code for the last two.
    Lesson: 03_lora_adaptation, "Which layers".
    """

    head: str
    prunable: tuple[str, ...]
    adaptable: tuple[str, ...]
    norms: tuple[str, ...]
    paper_prunable: tuple[str, ...]
    paper_adaptable: tuple[str, ...]


def layers(model: nn.Module) -> Layers:
    """List the layers of a network that may be pruned and adapted.

    The classifier is the last linear layer. In a convolutional network every convolution may be
    pruned, and those of the blocks (neither the stem nor a 1x1 shortcut) are adapted. In a
    transformer the linear layers of the blocks are both.

    Args:
        model: One of ours, or any ``nn.Module`` built from Conv2d, Linear and BatchNorm2d.

    Returns:
        The names, in the order of ``model.named_modules()``.

    Raises:
        InputError: If the network has no linear layer to be its classifier.

    Source: arXiv 2411.11907, section 3, and its code.
    Lesson: 03_lora_adaptation, "Which layers".
    """
    named = dict(model.named_modules())
    linears = [n for n, m in named.items() if isinstance(m, nn.Linear)]
    check("model", type(model).__name__, bool(linears), "it needs a linear layer as classifier")
    head = linears[-1]
    norms = tuple(n for n, m in named.items() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    convolutions = [n for n, m in named.items() if isinstance(m, nn.Conv2d)]
    if isinstance(model, ViT):
        inner = tuple(n for n in linears if n != head)
        last = f"blocks.{len(model.blocks) - 1}.attention.out"
        return Layers(head, inner, inner, norms, (last, head), (last, head))
    blocks = tuple(
        n for n in convolutions[1:] if not any(s in n for s in ("shortcut", "downsample"))
    )
    return Layers(head, tuple(convolutions), blocks, norms, tuple(convolutions), blocks)


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
