"""Progress bars, which never end the work whose progress they show."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any


class Heedless:
    """A stream that loses what cannot be written, and else is the one that it is made of.

    Args:
        stream: Of text; None, as Python has it where a shell closed standard error, loses all.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """

    def __init__(self, stream: Any) -> None:
        """Take the place of a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Give all that is not said here."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that is possible.

        Args:
            text: What to write.

        Returns:
            Its length, as if it had been.

        Source: :meth:`io.TextIOBase.write`.
        Lesson: 00_start_here, "The same from a shell".
        """
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible.

        Source: :meth:`io.IOBase.flush`.
        Lesson: 00_start_here, "The same from a shell".
        """
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.flush()


def show(items: Iterable[Any] | None = None, text: str | None = None, **settings: Any) -> Any:
    """Show a bar, in a terminal or a notebook; a full disk or a closed standard error stops none.

    Args:
        items: What it goes along; None for one that is moved by hand.
        text: Beside it.
        **settings: Of tqdm.

    Returns:
        The bar.

    Source: https://tqdm.github.io.
    Lesson: 00_start_here, "The same from a shell".
    """
    from tqdm.auto import tqdm

    # tqdm takes, keeps and at its start also flushes what is standard error now
    with contextlib.redirect_stderr(Heedless(sys.stderr)):
        return tqdm(items, text, **settings)
