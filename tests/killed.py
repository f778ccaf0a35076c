"""A process that is killed while it writes, at a moment that a test chooses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


class Killed(BaseException):
    """What ends it; a dead process does not tidy up, either."""


class Writer:
    """Lives for ``left`` more changes of the disk: renames and deletions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for owner, name in ((os, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return function(*args, **kwargs)

        return call
