"""Checking an answer to an exercise, with a message that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.config import InputError

OPEN = "Not answered yet."
RIGHT = "Right."


def verdict(answer: Any, right: Callable[[Any], bool | str], otherwise: str) -> str:
    """Say whether an answer is right.

    Args:
        answer: The reader's; None or ``...`` means that it is still open.
        right: Says whether an answer is right; a text says what to look at in place of
            ``otherwise``.
        otherwise: What to look at if it is not.

    Returns:
        One line: ``Right.``, ``Not answered yet.``, or why not and what to look at.

    Source: the habit of ARENA: checks that explain what went wrong.
    Lesson: 00_start_here, "Exercises".
    """
    if answer is None or answer is ...:
        return OPEN
    try:
        said = right(answer)
        wrong = said if isinstance(said, str) else "" if said else otherwise
    except Exception as error:  # an answer of any type may come in; its error is part of the reply
        return f"Not yet: {otherwise} (the check stopped with {type(error).__name__}: {error})"
    return f"Not yet: {wrong}" if wrong else RIGHT


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
        The shape, without its ones, of each tensor that torch computed on the way, also between the
        steps of a function such as ``einsum``. What only turns or copies an argument does not
        count: it computes nothing. What numpy computes is not seen.

    Source: this project.
    Lesson: 03_lora_adaptation, "Exercises".
    """
    with _Computed() as seen:
        call()
    return seen.shapes


class _Computed(TorchDispatchMode):
    """Notes what the operations give back that functions of torch are made of."""

    COPYING = ("aten::clone", "aten::_to_copy")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode functions come here whole
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        if func._schema.name not in self.COPYING:
            given = [x for x in args if isinstance(x, Tensor)]
            memory = {x.untyped_storage().data_ptr() for x in given}
            for one in result if isinstance(result, tuple | list) else [result]:
                if isinstance(one, Tensor) and (
                    one.untyped_storage().data_ptr() not in memory
                    or any(one is x for x in given)  # which is written into
                ):
                    self.shapes.add(tuple(n for n in one.shape if n > 1))
        return result
