"""Several processes that train one network, as if they were one.

Every process draws the same batches and computes its own rows of them; the outputs of all rows are
put together, so that each sees the loss of the whole batch, whatever the objective makes of it.
BatchNorm measures the whole batch too. The processes find each other through what ``torchrun`` and
``accelerate launch`` set in the environment; without that there is one, and nothing here acts.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from helpers import turns
from helpers.config import InputError, check, launched

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=1)  # the others wait while the first evaluates and writes
_BatchNorm = nn.modules.batchnorm._BatchNorm


class Ended(Exception):
    """This process ends because another one failed, which has said why.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """


@dataclass
class _Group:
    rank: int
    size: int
    alone: bool = False


_GROUP: _Group | None = None


def processes() -> int:
    """Return how many processes work on this run.

    Returns:
        1, unless this is inside of :func:`joined` and several were started.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """
    return 1 if _GROUP is None else _GROUP.size


def size() -> int:
    """Return among how many processes a batch is shared now.

    Returns:
        :func:`processes`; 1 inside of :func:`alone`.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """
    return 1 if _GROUP is None or _GROUP.alone else _GROUP.size


def rank() -> int:
    """Return the place of this process among all of them.

    Returns:
        0 for the first, which alone writes files and speaks.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """
    return 0 if _GROUP is None else _GROUP.rank


@contextmanager
def joined(device: str | None = None) -> Iterator[None]:
    """Belong, while the context lasts, to the processes that a launcher has started.

    Args:
        device: ``cpu`` or ``cuda``; None and ``auto`` take CUDA where there is one.

    Yields:
        Nothing.

    Raises:
        InputError: If the launcher's variables make no sense, or there are fewer GPUs than
            processes.
        Ended: In place of its own error, if another process failed before this one.

    Source: the variables of torchrun: WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
    Lesson: 01_baseline_training, "Train".
    """
    global _GROUP
    if not launched():
        yield
        return
    import torch.distributed as dist

    on_gpu = device != "cpu" and torch.cuda.is_available()
    try:
        store, place, count = next(dist.rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']!r} is set, but {error}; start several "
            "processes with torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from error
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store, rank=place, world_size=count, timeout=PATIENCE,
        )  # fmt: skip
        if on_gpu:
            _take_gpu()
        _GROUP = _Group(place, count)
        yield
        dist.destroy_process_group()
    except BaseException as error:
        if _failed_before(store):
            raise Ended from error
        raise
    finally:
        _GROUP = None


def _take_gpu() -> None:
    local, here = (int(os.environ.get(n, 0)) for n in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    there = torch.cuda.device_count()
    check("processes", here, here <= there, f"at most one for each of the {there} GPUs here")
    torch.cuda.set_device(local)


def _failed_before(store: Any) -> bool:
    """Say whether another process failed first; of several with the same message one speaks."""
    try:
        return store.add("failed", 1) > 1
    except RuntimeError:  # it took the store with it
        return True


@contextmanager
def alone() -> Iterator[None]:
    """Let this process compute by itself while the context lasts, whole batches and all.

    Yields:
        Nothing.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """
    if _GROUP is None:
        yield
        return
    before, _GROUP.alone = _GROUP.alone, True
    try:
        yield
    finally:
        _GROUP.alone = before


def first(make: Callable[[], T]) -> T:
    """Let the first process do something while the others wait, and tell them what came out.

    Args:
        make: Does it, in the first process alone.

    Returns:
        What ``make`` returned, in every process.

    Raises:
        BaseException: What ``make`` raised, in every process.

    Source: ``torch.distributed.broadcast_object_list``.
    Lesson: 01_baseline_training, "Train".
    """
    if size() == 1:
        return make()
    import torch.distributed as dist

    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            with alone():
                found[0] = make()
        except BaseException as error:  # raised below, here and in all others
            found[1] = error
    dist.broadcast_object_list(found, 0)
    if found[1] is not None:
        raise found[1]
    return found[0]


@contextmanager
def after_the_first() -> Iterator[None]:
    """Let the first process pass before the others, which then find what it has left on disk.

    Yields:
        Nothing.

    Raises:
        BaseException: What the first one raised, in every process.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """

    def fail() -> None:
        if problem is not None:
            raise problem

    problem: BaseException | None = None
    if rank() > 0:
        first(fail)
    try:
        yield
    except BaseException as error:
        problem = error
    if rank() == 0:
        first(fail)
    fail()


def agreed(wish: bool) -> bool:
    """Find out whether any process wants something, so that all do the same.

    Args:
        wish: Whether this one does.

    Returns:
        Whether at least one does.

    Source: ``torch.distributed.all_reduce``, on the CPU: no GPU is waited for.
    Lesson: 01_baseline_training, "Train".
    """
    if size() == 1:
        return wish
    import torch.distributed as dist

    flag = torch.tensor(int(wish))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


@torch.no_grad()
def as_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the numbers of the first. In place.

    What all of them computed from the same images may differ in the last digit on GPUs, and so may
    a choice that hangs on it.

    Args:
        tensors: In the same order and of the same shapes everywhere.

    Source: ``torch.distributed.broadcast``.
    Lesson: 01_baseline_training, "Train".
    """
    if size() == 1:
        return
    import torch.distributed as dist

    for tensor in tensors:
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every parameter the mean of all processes' gradients. In place.

    Args:
        parameters: The same ones everywhere; those without a gradient stay without.

    Source: the exchange of ``torch.nn.parallel.DistributedDataParallel``, in one message.
    Lesson: 01_baseline_training, "Train".
    """
    if size() == 1:
        return
    import torch.distributed as dist

    slopes = [p.grad for p in parameters if p.grad is not None]
    if not slopes:
        return
    flat = torch.cat([slope.flatten() for slope in slopes])
    dist.all_reduce(flat)
    parts = flat.div_(size()).split([slope.numel() for slope in slopes])
    for slope, part in zip(slopes, parts, strict=True):
        slope.copy_(part.view_as(slope))


def _share(count: int) -> slice:
    """Return which of the rows of a batch this process computes; shares differ by at most one.

    Source: :func:`torch.tensor_split`.
    """
    each, more = divmod(count, size())
    mine = 0 if size() == 1 else rank()
    start = mine * each + min(mine, more)
    return slice(start, start + each + (mine < more))


def shared(model: nn.Module) -> nn.Module:
    """Let the processes compute a network together, each its own rows of a batch.

    Args:
        model: (B, ...) -> (B, classes); of each row alone, but for BatchNorm.

    Returns:
        The network itself if there is one process; else a module of the same parameters that
        returns the outputs of the whole batch everywhere. The gradients that a loss of them leaves
        are made right by :func:`average_gradients`.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """
    return model if size() == 1 else _Shared(model)


class _Shared(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if len(images) < size():  # too few to share: all of them everywhere, gradients included
            with alone():
                return self.model(images)
        if size() == 1:
            return self.model(images)
        rows = _share(len(images))
        # dropout shall not repeat itself from share to share, and what an objective draws
        # afterwards shall be the same everywhere
        with turns.own_random_state([images.device] if images.is_cuda else []):
            if rank():
                # of a seed the CPU's generator takes the lowest 32 bits
                seed = torch.default_generator.initial_seed() + rank() * 0x9E3779B1
                torch.default_generator.manual_seed(seed)
                if images.is_cuda:
                    torch.cuda.manual_seed(seed)
            own = self.model(images[rows])
        return _Gather.apply(own, rows, len(images))


class _Gather(torch.autograd.Function):
    """The rows of all processes, put together.

    Every process computes the whole loss. Its gradient at the own rows goes back ``size`` times,
    because the mean over the processes follows; what a loss makes of the parameters themselves (an
    L1 norm) is the same everywhere, and the mean leaves it as it is.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: slice, count: int) -> Tensor:
        import torch.distributed as dist

        ctx.rows, ctx.size = rows, size()
        # adding zeros is exact, shares may be unequal, and the message is small
        whole = own.new_zeros(count, *own.shape[1:], dtype=_exact(own))
        whole[rows] = own
        dist.all_reduce(whole)
        return whole.to(own.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return slope[ctx.rows] * ctx.size, None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient is summed as well."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _summed(own)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _summed(slope)


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _summed(own: Tensor) -> Tensor:
    import torch.distributed as dist

    whole = own.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole)
    return whole


@contextmanager
def whole_batch_norms(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm measure the batches of all processes while the context lasts. In place.

    Args:
        model: The network; its modules stay the same objects, by the same names.

    Yields:
        Nothing.

    Source: ``torch.nn.SyncBatchNorm``; on the CPU, where that does not run, the same sums.
    Lesson: 01_baseline_training, "Train".
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if size() > 1 else []
    kinds = [type(norm) for norm in norms]
    try:
        for norm in norms:
            norm.__class__ = _WholeBatchNorm
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind


class _WholeBatchNorm(nn.SyncBatchNorm):
    process_group = None

    def forward(self, input: Tensor) -> Tensor:
        if size() == 1 or not self.training:
            return _BatchNorm.forward(self, input)
        return super().forward(input) if input.is_cuda else self._on_cpu(input)

    def _on_cpu(self, x: Tensor) -> Tensor:
        dims, shape = [d for d in range(x.dim()) if d != 1], (1, -1, *[1] * (x.dim() - 2))
        values = x.to(_exact(x))
        own = values.new_full((1,), x.numel() / x.shape[1])
        *_, count = total = _Sum.apply(torch.cat([values.sum(dims), own]))
        mean = total[:-1] / count
        centred = values - mean.view(shape)
        var = _Sum.apply(centred.square().sum(dims)) / count
        self._follow(mean.detach(), var.detach() * count / (count - 1))
        found = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            found = found * self.weight.view(shape) + self.bias.view(shape)
        return found.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            rate = self.momentum
            if rate is None:
                rate = 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(var, rate)
