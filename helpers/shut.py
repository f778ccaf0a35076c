"""Channels that let nothing through, though what they would let through is still computed.

A number a channel is enough to hide a feature: a bias of -1000 before a ReLU, a BatchNorm that
multiplies by zero. Nothing is unlearned then, and neither a probe of what comes out nor a gradient
that would have to pass sees anything. Here such channels are found, whichever number shut them, and
opened: those shut by a BatchNorm, GroupNorm or LayerNorm, or before one of :data:`ACTIVATIONS`.
Others are not seen: those shut by arithmetic, such as ``x * (x > 0)`` or ``torch.maximum``, by the
weights of the next layer, or before an activation that only weighs channels, such as a sigmoid;
and where half of a layer's channels let a trace through, that is what is usual there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from helpers import models
from helpers.data import Dataset, ImageSet, at_most

IMAGES = 256  # looked at, at most; of large ones fewer
# of a layer's channels that vary; single ones die by themselves in many networks, by high learning
# rates above all, and nobody hid anything in these
MANY = 0.25
LEAST = 1e-3  # a channel that varies less than this share of what is usual in its layer is shut
FAR = 1e-4  # one that varies less than this share of its size is constant, only rounded
# not what only weighs channels, such as a sigmoid: at its ends it lets all or nothing through
ACTIVATIONS = {
    torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu6, F.hardtanh, F.elu, F.selu,
    F.gelu, F.silu, F.mish, F.hardswish, F.celu, F.softplus, F.threshold, F.leaky_relu, F.prelu,
    torch.tanh, Tensor.tanh, F.tanh, torch.clamp, Tensor.clamp, Tensor.clamp_, torch.clamp_min,
    Tensor.clamp_min, Tensor.clamp_min_,
}  # fmt: skip
NORMS = {F.batch_norm, F.group_norm, F.layer_norm}


@dataclass
class Gates:
    """What opens the shut channels of a network, call by call.

    Attributes:
        opens: Place of the call in a pass -> (shut channels (C,) bool, their means, what they are
            multiplied by), each of the latter two (C,) float32.

    Source: this project.
    Lesson: 05_evaluation, "Limits and pitfalls".
    """

    opens: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of shut channels."""
        return sum(int(shut.sum()) for shut, *_ in self.opens.values())


def find(model: nn.Module, part: ImageSet, dataset: Dataset, many: float = MANY) -> Gates:
    """Look for channels that vary with the image before a layer and not behind it.

    The layers are the :data:`NORMS` and :data:`ACTIVATIONS` of vectors (N, C), tokens (N, T, C) and
    maps (N, C, H, W), or (N, H, W, C) straight from a linear layer. A filter that was pruned varies
    nowhere, so it is not shut. What lies behind an opened channel is looked at with that channel
    open.

    Args:
        model: The network, in evaluation mode; stays as it is.
        part: Images; of many a sample is looked at.
        dataset: Gives the normalisation.
        many: Layers in which no larger share of what varies is shut are left as they are, in
            [0, 1). One channel is enough to hide a class: 0 for networks that may have been
            tampered with.

    Returns:
        What opens them; of length 0 if there are none.

    Raises:
        InputError: If a part of the network is compiled.

    Source: this project.
    Lesson: 05_evaluation, "Limits and pitfalls".
    """
    models.check_not_compiled("model", model)  # its calls could not be seen
    gates = Gates()
    few = part.sample(at_most(part.images, IMAGES))
    with models.evaluating(model), torch.no_grad(), _passing(model, _Finding(gates, many)):
        model(dataset.normalise(few.images[:]))
    return gates


@contextlib.contextmanager
def opened(model: nn.Module, gates: Gates) -> Iterator[None]:
    """Open the shut channels of a network, and of copies made meanwhile, as long as this lasts.

    Args:
        model: The network that was looked at.
        gates: From :func:`find`.

    Source: this project.
    Lesson: 05_evaluation, "Limits and pitfalls".
    """
    with _passing(model, _Opening(gates)):
        yield


@contextlib.contextmanager
def _passing(model: nn.Module, mode: _Passes) -> Iterator[None]:
    """Let a mode see the calls of a network's passes; a copy takes these hooks along."""
    begin = model.register_forward_pre_hook(lambda *_: mode.begin())
    with begin, model.register_forward_hook(lambda *_: mode.end(), always_call=True), mode:
        yield


class _Passes(TorchFunctionMode):
    """Counts the calls of norms and activations within a pass, and nothing outside of one."""

    def __init__(self, gates: Gates) -> None:
        super().__init__()
        self.gates, self.place = gates, None

    def begin(self) -> None:
        self.place = 0

    def end(self) -> None:
        self.place = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = dict(kwargs or {})
        if self.place is not None and func is F.linear:
            made = func(*args, **kwargs)
            made.channels_are_last = True  # of maps, too, whose shape does not tell
            return made
        if self.place is None or not (func in NORMS or func in ACTIVATIONS):
            return func(*args, **kwargs)
        args = args or (kwargs.pop("input"),)
        channels = _channels(func, args[0])
        if channels is None:
            return func(*args, **kwargs)
        place, self.place = self.place, self.place + 1
        return self.call(place, channels, func, args, kwargs)

    def call(
        self, place: int, channels: int, func: Callable[..., Any], args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        return func(*args, **kwargs)


def _channels(func: Callable[..., Any], images: Tensor) -> int | None:
    """Return the dimension of what a function is given along which its channels lie."""
    if images.ndim not in (2, 3, 4) or not images.is_floating_point():
        return None
    if func in NORMS:
        return images.ndim - 1 if func is F.layer_norm else 1
    last = images.ndim == 3 or getattr(images, "channels_are_last", False)
    return images.ndim - 1 if last else 1


class _Opening(_Passes):
    def call(
        self, place: int, channels: int, func: Callable[..., Any], args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        images, *rest = args
        if place not in self.gates.opens:
            return func(images, *rest, **kwargs)
        shape = [-1 if d == channels else 1 for d in range(images.ndim)]
        shut, mean, factor = (t.view(shape) for t in self.gates.opens[place])
        open_ = (images - mean) * factor
        if func in NORMS:
            return torch.where(shut, open_, func(images, *rest, **kwargs))
        return func(torch.where(shut, open_, images), *rest, **kwargs)


class _Finding(_Opening):
    def __init__(self, gates: Gates, many: float) -> None:
        super().__init__(gates)
        self.many = many

    def call(
        self, place: int, channels: int, func: Callable[..., Any], args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        images, *rest = args
        before = images.detach().clone()  # some activations write into it
        over = [d for d in range(before.ndim) if d != channels]
        given = func(images, *rest, **kwargs)
        varies, seen = before.double().std(over), given.double().std(over)
        sizes = before.double().abs().amax(over)
        # far from zero a feature is as good as constant to all that read it, whether rounded or not
        seen = torch.where(seen > FAR * given.double().abs().amax(over), seen, 0.0)
        alive = varies > 1e-6 * sizes
        usual = seen[alive & (seen > 0)].median() if bool((alive & (seen > 0)).any()) else None
        if usual is None:
            return given
        shut = alive & (seen < LEAST * usual)
        if shut.sum() <= self.many * alive.sum():
            return given
        like = usual if func in NORMS else varies[alive & ~shut].median()
        factor = torch.where(shut, like / varies.clamp_min(1e-300), 1.0)
        self.gates.opens[place] = shut, before.double().mean(over).float(), factor.float()
        return super().call(place, channels, func, (before, *rest), kwargs)
