"""One training or building of a network at a time in a process.

The random state of PyTorch is the process's own, and so is what tracing puts in the place of
``nn.Module.__call__``: of two threads that train at once, such as the explorer's and that of a
notebook's cell, each would draw from the other's numbers. So a thread takes its turn for a whole
network. Whoever also needs the lock of a file takes the turn first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

ASKED_SECONDS = 0.1  # between two looks at whether whoever waits shall leave
_LOCK = threading.RLock()  # the thread that has it may take it again


def _renew() -> None:
    """Start a forked process free: a thread that had the turn is not part of it."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def taken(meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Train or build while no other thread of this process does; also decorates a function.

    Args:
        meanwhile: Called now and then while another thread has the turn; what it raises ends the
            waiting.

    Yields:
        Nothing.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """
    lock = _LOCK
    while not lock.acquire(timeout=ASKED_SECONDS):
        meanwhile()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def own_random_state(
    devices: Iterable[torch.device] = (), meanwhile: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Draw and seed while no other thread does, and leave the global random state as it was.

    Args:
        devices: GPUs whose random state is given back, too.
        meanwhile: As :func:`taken`.

    Yields:
        Nothing.

    Source: ``torch.random.fork_rng``, which any thread may disturb.
    Lesson: 06_explorer, "Run it live".
    """
    with taken(meanwhile), torch.random.fork_rng(list(devices)):
        yield
