"""The ledger: what a network weighs and costs, counted or measured after each stage.

Every row is taken from the network itself, never from what was asked for: zeros are zeros of the
weight that is really used, adapters included; channels are those that are not wholly zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import models, turns
from helpers.config import check

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

Row = dict[str, Any]
BATCH = 32  # images of the timed batch
REPEATS = 5


def measure(
    model: nn.Module,
    stage: str,
    names: Iterable[str],
    weight: Callable[[nn.Module, str], Tensor] | None = None,
    batch: int = BATCH,
) -> Row:
    """Count and measure one network.

    Args:
        model: The network; its mode, weights and gradients stay as they are.
        stage: What to call the row: ``before``, ``pruned``, ``adapted``, ``merged``, ``reloaded``.
        names: The prunable layers.
        weight: (model, name) -> the weight that the layer uses; None takes ``layer.weight``.
        batch: Images of the timed batch, random numbers.

    Returns:
        stage; weights and zeros (of the named layers), sparsity (their ratio); channels (layer ->
        filters that are not wholly zero); parameters; macs (multiply-accumulates of one image,
        forward); file_bytes (size as safetensors); latency_ms (median, forward pass of the batch in
        evaluation mode); activations (bytes kept for the backward pass of the batch); memory
        (bytes: activations + parameters + buffers + gradients of what trains); batch.

    Raises:
        InputError: If a parameter is of another floating-point type than float32, or the network
            answers with more than one tensor while it trains.

    Source: FlopCounterMode and saved_tensors_hooks of PyTorch.
    Lesson: 02_pruning, "The ledger".
    """
    models.check_float32("model", model)
    read = weight or (lambda net, name: net.get_submodule(name).weight.detach())
    weights = {name: read(model, name) for name in names}
    zero = {name: w == 0 for name, w in weights.items()}
    count, zeros = (
        sum(w.numel() for w in weights.values()),
        sum(int(z.sum()) for z in zero.values()),
    )
    activations = saved_bytes(model, models.example(model, batch))
    kept = [*model.parameters(), *model.buffers()]
    kept += [p for p in model.parameters() if p.requires_grad]
    return {
        "stage": stage, "weights": count, "zeros": zeros, "sparsity": zeros / max(1, count),
        "channels": {n: int((~z.flatten(1).all(1)).sum()) for n, z in zero.items()},
        "parameters": models.count_parameters(model), "macs": macs(model, batch),
        "file_bytes": file_bytes(model), "latency_ms": latency(model, batch),
        "activations": activations,
        "memory": activations + sum(t.nbytes for t in kept), "batch": batch,
    }  # fmt: skip


def macs(model: nn.Module, batch: int = BATCH, images: Tensor | None = None) -> int:
    """Count the multiply-accumulates of one image, forward.

    Args:
        model: The network.
        batch: Images of a batch, over which what is done once a batch is shared out.
        images: (B, C, H, W) float32, that batch; None takes :func:`helpers.models.example`.

    Returns:
        Half of what PyTorch's counter finds: it counts multiplications and additions.

    Source: ``torch.utils.flop_counter.FlopCounterMode``.
    Lesson: 02_pruning, "The ledger".
    """
    images = models.example(model, batch) if images is None else images
    with models.evaluating(model), torch.no_grad(), counting() as counter:
        model(images)
    return counter.get_total_flops() // (2 * len(images))


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count, while the context lasts, multiplications and additions, those of attention too.

    Yields:
        The counter of PyTorch, which does not know recurrent layers: ``nn.LSTM`` and ``nn.GRU``
        count as nothing.

    Source: ``torch.utils.flop_counter.FlopCounterMode``.
    Lesson: 02_pruning, "The ledger".
    """
    from torch.utils.flop_counter import FlopCounterMode

    # fused attention is not counted, nor a fused block, those of the plain formula are
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with plain, FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def file_bytes(model: nn.Module) -> int:
    """Compute the size of a network's state as a safetensors file.

    Args:
        model: The network.

    Returns:
        Bytes, the names and shapes in its header included; the file of :func:`helpers.models.save`
        holds a digest besides.

    Source: https://huggingface.co/docs/safetensors.
    Lesson: 02_pruning, "The ledger".
    """
    from safetensors.torch import save

    return len(
        save({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()})
    )


def latency(model: nn.Module, batch: int = BATCH, repeats: int = REPEATS) -> float:
    """Time the forward pass of a batch in evaluation mode.

    Args:
        model: The network.
        batch: Images.
        repeats: Timed passes, after one that is not.

    Returns:
        Milliseconds, the median.

    Source: the habit of KellerJordan/cifar10-airbench.
    Lesson: 02_pruning, "The ledger".
    """
    images, times = models.example(model, batch), []
    with models.evaluating(model), torch.no_grad():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            model(images).cpu()  # waits for the result
            times.append(1e3 * (time.perf_counter() - started))
    return median(times[1:])


def since(started: float, model: nn.Module) -> float:
    """Compute the seconds that a stage took, all that it asked of the network's device included.

    Args:
        started: What ``time.perf_counter()`` said when it began.
        model: The network that it made.

    Returns:
        Seconds.

    Source: kernels of CUDA run on after the call that asked for them.
    Lesson: 02_pruning, "The ledger".
    """
    next(model.parameters()).flatten()[:1].cpu()  # waits for the GPU
    return time.perf_counter() - started


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Count the bytes that a training step keeps between its forward and its backward pass.

    Args:
        model: The network, in training mode during the count.
        images: (B, C, H, W) float32.

    Returns:
        Bytes, each storage once, parameters left out.

    Raises:
        InputError: If the network answers with more than one tensor while it trains.

    Source: ``torch.autograd.graph.saved_tensors_hooks``.
    Lesson: 02_pruning, "The ledger".
    """
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    cuda = [images.device] if images.device.type == "cuda" else []
    with models.evaluating(model), models.unmoved(model):  # which put everything back
        model.train()
        with turns.own_random_state(cuda), count_saved(model) as total, torch.enable_grad():
            found = model(images)
            check("answer while training", type(found).__name__, isinstance(found, Tensor),
                  "a tensor, as in evaluation; switch further heads off")  # fmt: skip
            F.cross_entropy(found, labels)
    return total[0]


@contextmanager
def count_saved(model: nn.Module) -> Iterator[list[int]]:
    """Count, while the context lasts, the bytes that autograd keeps for the backward pass.

    Args:
        model: Its parameters are not counted.

    Yields:
        A list whose only element grows.

    Source: ``torch.autograd.graph.saved_tensors_hooks``.
    Lesson: 02_pruning, "The ledger".
    """
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, total = [], [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(storage)  # a freed address could be given to another tensor
            total[0] += storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
