"""Checking an answer to an exercise, with a message that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from helpers.config import InputError

OPEN = "Not answered yet."
RIGHT = "Right."


def verdict(answer: Any, right: Callable[[Any], bool], otherwise: str) -> str:
    """Say whether an answer is right.

    Args:
        answer: The reader's; None or ``...`` means that it is still open.
        right: Says whether an answer is right.
        otherwise: What to look at if it is not.

    Returns:
        One line: ``Right.``, ``Not answered yet.``, or why not and what to look at.

    Source: the habit of ARENA: checks that explain what went wrong.
    Lesson: 00_start_here, "Exercises".
    """
    if answer is None or answer is ...:
        return OPEN
    try:
        ok = bool(right(answer))
    except Exception as error:  # an answer of any type may come in; its error is part of the reply
        return f"Not yet: {otherwise} (the check stopped with {type(error).__name__}: {error})"
    return RIGHT if ok else f"Not yet: {otherwise}"


def message_of(call: Callable[[], Any]) -> str:
    """Call something that is expected to be refused, and return the reason.

    Args:
        call: Without arguments.

    Returns:
        The message of the :class:`helpers.config.InputError`; empty if nothing was refused.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


def computed(call: Callable[[], Any]) -> set[tuple[int, ...]]:
    """Call something and list the shapes of the tensors that it computed.

    Args:
        call: Without arguments; what it returns is dropped.

    Returns:
        The shape of the tensor that each function of torch gave back. What only turns or copies an
        argument does not count: it computes nothing. What numpy computes is not seen.

    Source: this project.
    Lesson: 03_lora_adaptation, "Exercises".
    """
    with _Computed() as seen:
        call()
    return seen.shapes


class _Computed(TorchFunctionMode):
    """Notes what functions of torch give back."""

    COPYING = ("clone", "contiguous", "to", "float", "double")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and getattr(func, "__name__", "") not in self.COPYING:
            given = [x for x in args if isinstance(x, Tensor)]
            memory = {x.untyped_storage().data_ptr() for x in given}
            view = result.untyped_storage().data_ptr() in memory
            if not view or any(result is x for x in given):  # which is written into
                self.shapes.add(tuple(result.shape))
        return result
