"""Decoded images in one file that is mapped into memory, not read; and features in another.

A source of images is decoded once, into one uint8 array (``NAME.npy``) and a description of it
(``NAME.json``). The description is written last and holds the array's SHA-256, so a pair is whole
or absent. What fits into memory is copied out of the file; what does not is read from it a batch
at a time. Features of images, which take many times the room, are read from a file in the same way;
that one has no name and is gone with the process.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers import files
from helpers.config import check

VERSION = 1  # of the format; part of every description
AHEAD = 3  # batches that are read before they are asked for
PIECE = 16_000_000  # bytes that are held at once where all images are passed through
_SHORT = "it ends too early"

Put = Callable[[int, np.ndarray], None]


@dataclass(frozen=True, eq=False)
class Stored:
    """Images that stay in their file: as much of a tensor as batches need.

    Indexing reads the chosen images into a tensor on ``device``; :meth:`select` reads nothing.

    Attributes:
        path: A uint8 array of shape (M, C, H, W) in NumPy's format.
        rows: (N,) int64 on the CPU, which of the M images these are, in their order.
        device: Where a tensor of them goes.

    Source: :func:`numpy.lib.format.open_memmap`.
    Lesson: 01_baseline_training, "Images as one tensor".
    """

    path: Path
    rows: Tensor
    device: torch.device

    dtype = torch.uint8

    @cached_property
    def _array(self) -> np.memmap:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as a path, not as pixels."""
        return Stored, (self.path, self.rows, self.device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W), as of a tensor."""
        return torch.Size((len(self), *self._array.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes that a tensor of all of them would take."""
        return self.shape.numel()

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Read the images that a slice, a bool mask or an int64 index chooses."""
        rows = self.rows[chosen.cpu() if isinstance(chosen, Tensor) else chosen]
        images = torch.from_numpy(self._array[rows.numpy()])
        if self.device.type != "cuda":
            return images
        return images.pin_memory().to(self.device, non_blocking=True)  # while the GPU computes

    def select(self, chosen: Tensor) -> Stored:
        """Choose images by a bool mask or an int64 index, without reading them."""
        return Stored(self.path, self.rows[chosen.cpu()], self.device)

    def to(self, device: str | torch.device) -> Stored:
        """Return the same images, to be read to a device."""
        return Stored(self.path, self.rows, _this_gpu(torch.device(device)))


class Spilled:
    """Rows of numbers in a file without a name, which the system removes with the process.

    Indexing reads the chosen rows into a tensor on ``device``, bit for bit what was put in.

    Attributes:
        shape: (N, K), as of a tensor.
        dtype: Of the numbers.
        device: Where a tensor of them goes.
        mapped: Whether the file is mapped into memory to be read, as for a GPU. What is mapped
            counts as this process's memory, of which a training on the CPU is to take little.

    Source: :func:`tempfile.TemporaryFile`.
    Lesson: 03_lora_adaptation, "The frozen part, computed once".
    """

    def __init__(self, count: int, example: Tensor, folder: Path) -> None:
        """Make room for ``count`` rows like the one row, of shape (K,), in a file in ``folder``.

        Raises:
            FileProblem: If the file cannot be made.
        """
        self.shape, self.dtype = torch.Size((count, len(example))), example.dtype
        self.device, self.folder = example.device, folder
        self.mapped = self.device.type == "cuda"
        self._turn = threading.Lock()  # a file has one position
        with self._named():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows; they are not in memory."""
        return self.shape.numel() * self.dtype.itemsize

    def put(self, start: int, rows: Tensor) -> None:
        """Write rows from a place on.

        Args:
            start: Index of the first.
            rows: (B, K), of this ``dtype``.

        Raises:
            FileProblem: If they cannot be written, as on a full disk.

        Source: this project.
        Lesson: 03_lora_adaptation, "The frozen part, computed once".
        """
        left = memoryview(rows.cpu().contiguous().view(torch.uint8).numpy()).cast("B")
        with self._turn, self._named():
            self._file.seek(start * self.nbytes // len(self))
            while left:  # a file without a buffer may take less than it is given
                left = left[self._file.write(left) :]

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Read the rows that a slice, a bool mask or an int64 index chooses."""
        index = torch.arange(len(self))[chosen.cpu() if isinstance(chosen, Tensor) else chosen]
        on_gpu = self.device.type == "cuda"
        rows = torch.empty(len(index), self.shape[1], dtype=self.dtype, pin_memory=on_gpu)
        with self._turn, self._named():
            (self._copy if self.mapped else self._read)(index, rows.view(torch.uint8).numpy())
        return rows.to(self.device, non_blocking=True)  # while the GPU computes

    def _read(self, index: Tensor, rows: np.ndarray) -> None:
        for target, row in zip(rows, index.tolist(), strict=True):
            self._file.seek(row * len(target))
            if self._file.readinto(target) != len(target):
                raise OSError(_SHORT)

    def _copy(self, index: Tensor, rows: np.ndarray) -> None:
        """Copy all in one call, which does not hold up the thread that tells a GPU what to do."""
        if os.fstat(self._file.fileno()).st_size < self.nbytes:
            raise OSError(_SHORT)  # reading past the end of a map kills the process
        np.take(self._map, index.numpy(), axis=0, out=rows, mode="clip")  # else a copy of rows

    @cached_property
    def _map(self) -> np.memmap:
        return np.memmap(self._file, np.uint8, "r", shape=(len(self), self.nbytes // len(self)))

    def fill(self, several: Iterable[Tensor]) -> None:
        """Write all rows; what a GPU has computed, while it computes the next.

        Args:
            several: The rows in order, some at a time: (B, K) each, of this ``dtype``.

        Raises:
            FileProblem: As :meth:`put`.

        Source: this project.
        Lesson: 03_lora_adaptation, "The frozen part, computed once".
        """
        start, ahead = 0, deque()
        with ThreadPoolExecutor(1, "features") as writer:
            for rows in several:
                if self.device.type == "cuda":
                    ahead.append(writer.submit(self._put_later, start, *_on_the_way(rows)))
                else:
                    self.put(start, rows)
                if len(ahead) > AHEAD:
                    ahead.popleft().result()
                start += len(rows)
            for written in ahead:
                written.result()

    def _put_later(self, start: int, rows: Tensor, copied: torch.cuda.Event) -> None:
        copied.synchronize()
        self.put(start, rows)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise files.FileProblem(
                f"a file for {self.nbytes / 1e6:,.0f} MB of features in {self.folder} failed: "
                f"{error}; make room there, or set cache_mb = 0"
            ) from error


def _on_the_way(rows: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """Begin to copy rows from a GPU; the event tells when they are there."""
    here = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    here.copy_(rows, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return here, copied


def held(images: Tensor | Stored | Spilled, batch_size: int) -> int:
    """Count the bytes that are in memory while batches are taken.

    Args:
        images: What they are taken from.
        batch_size: Rows of a batch.

    Returns:
        All bytes of a tensor; of what is in a file, those of the batches that are read ahead.

    Source: this project.
    Lesson: 03_lora_adaptation, "The frozen part, computed once".
    """
    if isinstance(images, Tensor):
        return images.nbytes
    return min(len(images), (AHEAD + 1) * batch_size) * images.nbytes // max(1, len(images))


def join(several: Sequence[Stored]) -> Stored:
    """Put images of one file one after another, without reading them.

    Args:
        several: At least one, all of the same file.

    Returns:
        Those of the first, then those of the second, and so on.

    Raises:
        InputError: If they are not all of one file.

    Source: this project.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    first = several[0]
    check("images", [s.path for s in several], all(s.path == first.path for s in several),
          "those of one dataset")  # fmt: skip
    return Stored(first.path, torch.cat([s.rows for s in several]), first.device)


def pieces(images: Tensor | Stored) -> Iterator[Tensor]:
    """Pass through all images without holding more than some of them.

    Args:
        images: (N, C, H, W) uint8.

    Yields:
        Them in order, at most ``PIECE`` bytes at once, but at least one image.

    Source: this project.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    size = max(1, PIECE // max(1, images.shape[1:].numel()))
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _this_gpu(device: torch.device) -> torch.device:
    """Name the GPU that "cuda" means in this process, for threads of which it may mean another."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def gather(images: Tensor | Stored | Spilled, chosen: Iterable[slice | Tensor]) -> Iterator[Tensor]:
    """Take batch after batch; what is in a file is read by another thread, some batches ahead.

    Args:
        images: (N, C, H, W) uint8 or (N, K) features, in memory or in a file.
        chosen: What each batch consists of, as an index.

    Yields:
        (B, C, H, W) uint8 or (B, K) on the device of the images, in the order of ``chosen``.

    Source: this project; the prefetching of :class:`torch.utils.data.DataLoader`, by one thread,
        because reading a mapped array needs no worker process.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    if isinstance(images, Tensor):
        for index in chosen:  # index_select copies whole images, ``[index]`` pixel by pixel
            yield images[index] if isinstance(index, slice) else images.index_select(0, index)
        return
    rest = iter(chosen)
    # a thread has a GPU of its own, which is the first one unless it is told
    same = {"initializer": torch.cuda.set_device, "initargs": (images.device,)}
    same = same if images.device.type == "cuda" else {}
    with ThreadPoolExecutor(1, "images", **same) as reader:  # waits for it, also when abandoned
        ahead = deque(reader.submit(images.__getitem__, i) for i in itertools.islice(rest, AHEAD))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(reader.submit(images.__getitem__, i) for i in itertools.islice(rest, 1))
            yield batch


@dataclass(frozen=True)
class Content:
    """What an array holds.

    Attributes:
        classes: Their names, in the order of the labels.
        parts: ``train``, and ``test`` if the source has one -> images, class by class, and (N,)
            int64 labels.
        skipped: What could not be decoded, each with the reason.
        form: Format, width and height of the decoded files, if all have the same; else None.

    Source: this project.
    Lesson: 01_baseline_training, "Images as one tensor".
    """

    classes: tuple[str, ...]
    parts: dict[str, tuple[Stored, Tensor]]
    skipped: tuple[str, ...]
    form: tuple[str, int, int] | None


def create(
    path: Path,
    counts: Mapping[str, Mapping[str, int]],
    side: int,
    fill: Callable[[Put], Mapping[str, Any]],
) -> None:
    """Write an array image by image, and its description. Nothing is kept if ``fill`` raises.

    Args:
        path: Of the array, ending in ``.npy``; the description is beside it. No two processes may
            write it at once: what looks like the half of one is removed.
        counts: Part -> class -> number of images. The rows are in this order.
        side: Of the images, in pixels.
        fill: Is given a function that puts a (3, side, side) uint8 image into a row, in any order
            and more than once. Returns ``skipped``, pairs of the row and the reason for rows
            without an image, and ``form``, as in :class:`Content`.

    Raises:
        FileProblem: If it cannot be written; nothing is left behind.

    Source: the format of :mod:`numpy.lib.format`. Written like any file and not through the map,
        through which a full disk kills the process.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    total = sum(number for classes in counts.values() for number in classes.values())
    shape, about = (total, 3, side, side), {"version": VERSION, "counts": counts}

    def write(part: Path) -> None:
        with part.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            start, size = file.tell(), 3 * side * side
            file.truncate(start + total * size)

            def put(row: int, image: np.ndarray) -> None:
                if image.shape != shape[1:] or image.dtype != np.uint8:
                    raise ValueError(f"an image of {image.shape} {image.dtype}, not {shape[1:]}")
                file.seek(start + row * size)
                file.write(np.ascontiguousarray(image).data)

            about.update(fill(put))
        about["sha256"] = files.sha256(part)
        # it describes the old array, which can be used until the new one takes its place
        path.with_suffix(".json").unlink(missing_ok=True)

    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of processes now dead
        part.unlink(missing_ok=True)
    files.write_atomically(path, write)
    files.write_json(path.with_suffix(".json"), about)


def exists(path: Path) -> bool:
    """Say whether an array was written whole.

    Args:
        path: Of the array.

    Returns:
        Whether it is there, and its description, which is written last.

    Source: this project.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    return path.with_suffix(".json").is_file() and path.is_file()


def read(path: Path, side: int) -> Content:
    """Open what :func:`create` wrote, and check that it is that.

    Args:
        path: Of the array.
        side: Of the images, in pixels.

    Returns:
        The content, without the rows that have no image.

    Raises:
        FileProblem: If either file is missing, damaged or of another kind.

    Source: this project.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    wanted = ("version", "counts", "skipped", "form", "sha256")
    about = files.read_json(path.with_suffix(".json"), wanted)
    try:
        ok = about["version"] == VERSION and files.sha256(path) == about["sha256"]
        array = np.load(path, mmap_mode="r", allow_pickle=False) if ok else np.zeros(0)
        content = _content(path, about)
        rows = sum(map(len, _labels(about["counts"]).values()))
        ok = ok and array.dtype == np.uint8 and array.shape == (rows, 3, side, side)
    except files.FileProblem:
        raise
    except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError):
        ok = False
    if not ok:
        raise files.FileProblem(files.cannot_read(path, "it does not hold what was written"))
    return content


def _labels(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Tensor]:
    return {
        part: torch.arange(len(classes)).repeat_interleave(torch.tensor([*classes.values()]))
        for part, classes in counts.items()
    }


def _content(path: Path, about: Mapping[str, Any]) -> Content:
    labels, skipped = _labels(about["counts"]), dict(about["skipped"])
    form = None if about["form"] is None else tuple(about["form"])
    if not (
        all(type(row) is int and row >= 0 and type(text) is str for row, text in skipped.items())
        and (form is None or [type(part) for part in form] == [str, int, int])
    ):
        raise ValueError("not what create() writes")
    good = torch.ones(sum(map(len, labels.values())), dtype=torch.bool)
    good[list(skipped)] = False
    parts, start = {}, 0
    for part, mine in labels.items():
        rows = start + good[start : start + len(mine)].nonzero().flatten()
        parts[part] = Stored(path, rows, torch.device("cpu")), mine[rows - start]
        start += len(mine)
    return Content(tuple(about["counts"]["train"]), parts, tuple(skipped.values()), form)
