"""Passes that a GPU repeats from a recording, instead of being told every operation anew.

A small network keeps a fast GPU waiting: the CPU takes longer to start an operation than the GPU
to do it. A CUDA graph holds all operations of a pass, and is started as one.
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from helpers import models, turns
from helpers.config import InputError, reason

EAGER = 2  # steps before the recording: the optimiser has its memory then, and a peak was seen
LEAST = 50  # steps that must be left for it to pay
CLOSE = 0.05  # of the largest logit: how far a repeated pass may lie from a plain one


def possible(device: torch.device) -> bool:
    """Say whether passes can be recorded.

    Args:
        device: Where the network is.

    Returns:
        True on CUDA.

    Source: ``torch.cuda.CUDAGraph``.
    Lesson: 01_baseline_training, "Train".
    """
    return device.type == "cuda"


class Recorded(nn.Module):
    """A network whose forward and backward passes over batches of one shape are repeated.

    It is called in the network's place and has the network's parameters. What does not fit the
    recording goes through the network itself: a batch of another shape, evaluation mode, images
    that need a gradient, and each call but the first after :meth:`next_step`, since a recording
    has memory for the outputs of one pass. It has one for the gradients, too, where those of the
    parameters may lie until the next step: they must be dropped before (``zero_grad``), not added
    to.

    Args:
        model: (B, C, H, W) -> (B, classes) logits, on a GPU. From :meth:`record` on, none of its
            parameters and buffers may be replaced; to change their values in place is fine.
        dtype: Of mixed precision; None computes in full precision.

    Source: ``torch.cuda.make_graphed_callables``.
    Lesson: 01_baseline_training, "Train".
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        """Record nothing yet."""
        super().__init__()
        self.model, self.dtype = model, dtype
        self.free = False
        self.passes: _Passes | None = None
        self.example: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits, from the recording where it fits."""
        if self.free and self.fits(images):
            self.free = False
            return self.passes(images)
        return self.model(images)

    def fits(self, images: Tensor) -> bool:
        """Say whether these images go through the recording.

        Args:
            images: A batch.

        Returns:
            False without a recording.

        Source: this project.
        Lesson: 01_baseline_training, "Train".
        """
        if self.example is None or not self.model.training or images.requires_grad:
            return False
        mine = self.example
        return (images.shape, images.dtype, images.stride()) == (
            mine.shape, mine.dtype, mine.stride(),
        )  # fmt: skip

    def next_step(self) -> None:
        """Give the memory of the recording to the next pass: the last one is no longer needed.

        Source: this project.
        Lesson: 01_baseline_training, "Train".
        """
        self.free = self.example is not None

    def record(self, images: Tensor) -> None:
        """Record both passes of a network in training mode; whatever that moves is put back.

        Args:
            images: (B, C, H, W), as all batches will be; what they show does not matter.

        Raises:
            InputError: If the network cannot be recorded, because it waits for the CPU, or answers
                otherwise from the recording, because it draws numbers in Python. After the first,
                PyTorch up to 2.12 still believes that it records, and frees no memory on the GPU
                (its issue 180395): begin with a new process.

        Source: this project.
        Lesson: 01_baseline_training, "Train".
        """
        half, device = self.dtype is not None, images.device
        amp = torch.autocast(device.type, self.dtype, enabled=half, cache_enabled=False)
        random = turns.own_random_state([device] if device.type == "cuda" else [])
        _warn_of_streams(False)
        with models.unmoved(self.model), random, amp:
            torch.cuda.empty_cache()  # what the plain steps took is taken by the recording
            example = images.clone()
            try:
                passes = torch.cuda.make_graphed_callables(
                    _Passes(self.model), (example,), allow_unused_input=True
                )
            except (RuntimeError, AssertionError) as error:
                raise InputError(
                    f"graphs = True is not allowed for this {type(self.model).__name__}: its "
                    f"passes cannot be recorded ({reason(error)}); leave graphs out, in a new "
                    "process"
                ) from error
            self._compare(passes, images)
        self.passes, self.example = passes, example

    def release(self) -> None:
        """Give the memory of the recording back; the network is called as before.

        Source: this project.
        Lesson: 01_baseline_training, "Train".
        """
        if self.passes is not None:
            self.passes = self.example = None
            gc.collect()  # graphs and the functions that start them hold one another
        _warn_of_streams(True)

    def _compare(self, passes: nn.Module, images: Tensor) -> None:
        """Refuse passes that answer otherwise than plain ones."""
        for turn, batch in enumerate((images, images.flip(0))):
            found = []
            for called in (passes, self.model):
                with models.unmoved(self.model):
                    torch.manual_seed(turn)
                    found.append(called(batch).detach().float().clone())
            away = float((found[0] - found[1]).abs().max())
            if not away <= CLOSE * float(found[1].abs().max()):  # nan, too
                raise InputError(
                    f"graphs = True is not allowed for this {type(self.model).__name__}: a "
                    f"repeated pass answers otherwise than a plain one, by {away:.2g}, as with "
                    "numbers drawn in Python; leave graphs out"
                )


class _Passes(nn.Module):
    """What is recorded: the network, called under a name of its own that takes the recording."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def _warn_of_streams(wanted: bool) -> None:
    """Let PyTorch 2.10 and later say, or not, that gradients wait for the recording's stream.

    They do, and to change where they are summed up ends the recording.
    """
    switch = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if switch is not None:
        switch(wanted)
