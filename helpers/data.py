"""Images: where they come from, how they are kept, and which of them are to be forgotten.

Whatever the source, the images end as one uint8 tensor per part (train, validation, test) on the
device; those that take more memory than they may stay in their file, and come from there a batch at
a time. Normalisation and augmentation happen on the device, with one mean and one standard
deviation per dataset: measured on its training part, used everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from helpers import download, files, folders, parallel, store
from helpers.config import (
    InputError,
    RunConfig,
    check,
    expand,
    home,
    one_line,
    short,
    whole_reason,
)
from helpers.store import Spilled, Stored

log = logging.getLogger(__name__)

LEAST = 10  # images of a group from which an attack learns; with fewer there is no number
UPLOADS = folders.IMAGE_FORMATS  # what a visitor may give
MOST_AT_ONCE = 1000
LARGE = 16 * 224 * 224  # pixels taken at once where gradients are kept
PIXELS_AT_ONCE = {"cpu": 128 * 32 * 32, "cuda": 1000 * 32 * 32}
MOST_BYTES, MOST_PIXELS = 10_000_000, 25_000_000
SHARES = {"validation": 0.15, "test": 0.25}  # of each class, where the source has no such part
MOST = 500  # images of a class in such a part; whatever else there is, training gets


@dataclass(frozen=True)
class ImageSet:
    """Some labelled images.

    Attributes:
        images: (N, C, H, W) uint8, raw pixels, as a tensor or still in their file; or (N, K)
            floating point, what a frozen part made of them.
        labels: (N,) int64, index of the class.

    Source: the array layout of KellerJordan/cifar10-airbench.
    Lesson: 01_baseline_training, "Images as one tensor".
    """

    images: Tensor | Stored | Spilled
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def where(self, chosen: Tensor) -> ImageSet:
        """Return the images that a (N,) bool mask or an int64 index chooses."""
        stored = isinstance(self.images, Stored)
        images = self.images.select(chosen) if stored else self.images[chosen]
        return ImageSet(images, self.labels[chosen])

    def sample(self, most: int, seed: int = 0) -> ImageSet:
        """Return at most so many of the images, chosen at random by a seed."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most]
        return self.where(chosen.to(self.labels.device))

    def to(self, device: str) -> ImageSet:
        """Return the same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def with_all(self, other: ImageSet) -> ImageSet:
        """Return these images, followed by others of the same dataset."""
        join = store.join if isinstance(self.images, Stored) else torch.cat
        return ImageSet(join([self.images, other.images]), torch.cat([self.labels, other.labels]))


@dataclass(frozen=True)
class ClassSplit:
    """The parts of a dataset as unlearning sees them, each divided at the forgotten classes.

    Attributes:
        forget: Training images of the forgotten classes (D_f).
        retain: Training images of all others (D_r).
        validation_forget: Validation images of the forgotten classes.
        validation_retain: Validation images of all others.
        test_forget: Test images of the forgotten classes (T_f).
        test_retain: Test images of all others (T_r).
        forgotten: Indices of the forgotten classes.
        dataset: What was divided; gives the classes and the normalisation.

    Source: arXiv 2411.11907, section 2; Unlearn-Sparse (arXiv 2304.04934).
    Lesson: 04_class_unlearning, "Forget set and retain set".
    """

    forget: ImageSet
    retain: ImageSet
    validation_forget: ImageSet
    validation_retain: ImageSet
    test_forget: ImageSet
    test_retain: ImageSet
    forgotten: tuple[int, ...]
    dataset: Dataset = field(repr=False)


@dataclass(frozen=True)
class Dataset:
    """A dataset, divided once, with the one normalisation that belongs to it.

    Attributes:
        name: For figures and records.
        classes: The names of the classes, in the order of the labels.
        train: Training images.
        validation: Validation images: the only ones on which choices are made.
        test: Test images: measured, never tuned on.
        mean: (C,) float32, of the training pixels in [0, 1].
        std: (C,) float32, likewise.
        fingerprint: SHA-256 over all pixels and labels, part of the identity of a run.
        skipped: Files that could not be read and were left out.
        taken: Parts that the source lacks, taken from its training images.

    Source: this project.
    Lesson: 01_baseline_training, "Images as one tensor".
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    mean: Tensor
    std: Tensor
    fingerprint: str
    skipped: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()

    def normalise(self, images: Tensor) -> Tensor:
        """Scale pixels to [0, 1], subtract the mean, divide by the standard deviation.

        Args:
            images: (N, C, H, W) uint8. Anything that is floating point already is no pixels but
                the cached outputs of a frozen part, and is returned as it is.

        Returns:
            (N, C, H, W) float32 on the device of ``images``; in colour with the channels last in
            memory, which convolutions take over and compute faster.

        Source: the usual input of torchvision's models.
        Lesson: 01_baseline_training, "Images as one tensor".
        """
        if images.is_floating_point():
            return images
        shape = (1, -1, 1, 1)
        layout = torch.channels_last if images.shape[1] > 1 else torch.contiguous_format
        pixels = images.to(torch.float32).div_(255)
        pixels = pixels.sub_(self.mean.view(shape)).div_(self.std.view(shape))
        return pixels.contiguous(memory_format=layout)  # last: by channel the sums are faster

    def split(self, forgotten: int | Iterable[int]) -> ClassSplit:
        """Divide every part at the classes to forget.

        Args:
            forgotten: Index of the class, or several; 0 to number of classes - 1.

        Returns:
            The six sets.

        Raises:
            InputError: If there is no such class, or no other class remains.

        Source: arXiv 2411.11907, section 2.
        Lesson: 04_class_unlearning, "Forget set and retain set".
        """
        names = short(", ".join(f"{i} {n}" for i, n in enumerate(self.classes)))
        chosen = indices(forgotten)
        check("classes", names, len(self.classes) > 1, "at least two; nothing would be retained")
        ok = bool(chosen) and all(0 <= c < len(self.classes) for c in chosen)
        shown = chosen[0] if len(chosen) == 1 else chosen
        check("forget", shown, ok, f"the classes are {names}")
        check("forget", shown, len(chosen) < len(self.classes), "one class must be retained")
        halves = []
        for part in (self.train, self.validation, self.test):
            mine = torch.isin(part.labels, torch.tensor(chosen, device=part.labels.device))
            halves += [part.where(mine), part.where(~mine)]
        return ClassSplit(*halves, chosen, self)

    def with_std(self, factor: Tensor) -> Dataset:
        """Return the same dataset with another normalisation, to show what a mismatch does.

        Args:
            factor: Scalar or (C,) float32, multiplies the standard deviation.

        Returns:
            The changed copy.

        Source: the published code trains with one and evaluates with another standard deviation.
        Lesson: 01_baseline_training, "Limits and pitfalls".
        """
        return replace(self, std=self.std * factor.to(self.std))


def indices(classes: int | Iterable[int]) -> tuple[int, ...]:
    """Read the index of a class, or of several.

    Args:
        classes: Whole numbers, of numpy or torch, too.

    Returns:
        Python's own whole numbers, each once and in ascending order.

    Source: :func:`operator.index`.
    Lesson: 04_class_unlearning, "Forget set and retain set".
    """
    try:
        return (operator.index(classes),)
    except TypeError:
        return tuple(sorted({operator.index(c) for c in classes}))


def batches(
    part: ImageSet, batch_size: int, *, augment: str = "none", seed: tuple[int, int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images in batches, in order or shuffled and augmented, on their device.

    Every image gets its own crop and flip: with the crop of a whole batch at once, as
    ``torchvision.transforms.v2`` draws it, an epoch sees far fewer variants.

    Args:
        part: The images.
        batch_size: Images per batch; a last batch of one image is dropped when shuffling, because
            BatchNorm cannot train on it.
        augment: ``none``, ``flip``, ``crop`` or ``crop+flip``.
        seed: (seed, epoch) of the order and the augmentation; None keeps the order and leaves the
            images as they are. The same pair gives the same batches on every device.

    Yields:
        (B, C, H, W) uint8 images and (B,) int64 labels.

    Source: He et al. 2015 (pad, crop, flip); per-image draws as in cifar10-airbench.
    Lesson: 01_baseline_training, "Augmentation on the device".
    """
    n, device = len(part), part.labels.device
    if seed is None:
        chosen = [slice(start, start + batch_size) for start in range(0, n, batch_size)]
        with contextlib.closing(store.gather(part.images, chosen)) as several:
            for index, images in zip(chosen, several, strict=True):
                yield images, part.labels[index]
        return
    draw = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    order = torch.randperm(n, generator=draw)
    order = order.to(device) if isinstance(part.images, Tensor) else order
    pad = max(1, part.images.shape[-1] // 8)  # 4 of 32 pixels, the usual choice; 1 of 8
    shift = torch.randint(0, 2 * pad + 1, (n, 2), generator=draw).to(device)
    flip = (torch.rand(n, generator=draw) < 0.5).to(device)
    chosen = [index for index in order.split(batch_size) if len(index) > 1 or n < 2]
    with contextlib.closing(store.gather(part.images, chosen)) as several:
        for index, images in zip(chosen, several, strict=True):
            index = index.to(device)
            if "crop" in augment:
                images = crop(images, shift[index], pad)
            if "flip" in augment:
                which = torch.arange(len(index), device=device) + len(index) * flip[index]
                images = torch.cat([images, images.flip(3)]).index_select(0, which)
            yield images, part.labels[index]


def per_pass(images: Tensor | Stored) -> int:
    """Tell how many images go through a network at once where nothing is trained.

    Args:
        images: (N, C, H, W), or (N, K) features.

    Returns:
        At most 1000, and of large images fewer, whose layers would not stay in the CPU's cache
        (ResNet-20 was twice as fast with 128 images of 32x32 pixels as with 1000) or in the memory
        of the GPU.

    Source: measured for this project.
    Lesson: 01_baseline_training, "Train".
    """
    if len(images.shape) < 4:
        return MOST_AT_ONCE
    most = PIXELS_AT_ONCE["cpu" if images.device.type == "cpu" else "cuda"]
    return max(1, min(MOST_AT_ONCE, most // math.prod(images.shape[2:])))


def at_most(images: Tensor | Stored, count: int) -> int:
    """Tell how many images to take at once where their number matters, or gradients are kept.

    Args:
        images: (N, C, H, W).
        count: As many as it should be.

    Returns:
        ``count``; of large images fewer, at least 2.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """
    return max(2, min(count, LARGE // math.prod(images.shape[2:])))


def crop(images: Tensor, shift: Tensor, pad: int) -> Tensor:
    """Pad each image with zeros and cut a window of the old size out of it, each at its own place.

    Args:
        images: (N, C, H, W), any dtype.
        shift: (N, 2) int64, row and column of the window's corner; 0 to 2 * pad.
        pad: Pixels added on each side.

    Returns:
        (N, C, H, W), same dtype.

    Source: He et al. 2015, section 4.2.
    Lesson: 01_baseline_training, "Augmentation on the device".
    """
    h, w = images.shape[2:]
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (N, C, rows, columns, H, W), nothing copied
    picture = torch.arange(len(images), device=images.device)
    return windows[picture, :, shift[:, 0], shift[:, 1]]


# the fields of a configuration that decide which images there are, and where
FIELDS = ("data", "image_size", "split_seed", "train_limit", "on_corrupt", "memory_mb", "device")


def load_dataset(cfg: RunConfig, progress: bool = True) -> Dataset:
    """Load the images that a configuration names, divide them and put them on its device.

    Args:
        cfg: Uses ``data``, ``image_size``, ``split_seed``, ``train_limit``, ``on_corrupt``,
            ``memory_mb`` and ``device``.
        progress: Whether to show bars while images are downloaded and decoded.

    Returns:
        The dataset; the same configuration and files always give the same one.

    Raises:
        InputError: If the source is unknown or cannot be had, or its images cannot be used.
        FileProblem: If a cache is damaged or cannot be written.

    Source: scikit-learn's digits (UCI ML hand-written digits), CIFAR-10, or the user's folder.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    with parallel.after_the_first():  # it alone downloads and decodes
        source = _source(cfg, progress and parallel.rank() == 0)
    parts = _divide(source.parts, source.classes, cfg.split_seed)
    if cfg.train_limit is not None:
        # a stream of its own, so that it does not repeat the draw of the division
        draw = torch.Generator().manual_seed(cfg.split_seed * 1_000_003 + 1)
        parts["train"] = _limit(parts["train"], cfg.train_limit, draw if source.by_name else None)
    size, most = sum(part.images.nbytes for part in parts.values()), cfg.memory_mb * 1_000_000
    if size <= most:
        parts = {n: ImageSet(part.images[:], part.labels) for n, part in parts.items()}
    elif isinstance(parts["train"].images, Stored):
        log.info("%.0f MB of images, more than memory_mb = %d: they stay in their file, and are "
                 "read a batch at a time", size / 1e6, cfg.memory_mb)  # fmt: skip
    mean, std = _normalisation(parts["train"].images)
    return Dataset(
        name=source.name,
        classes=source.classes,
        **{name: part.to(cfg.device) for name, part in parts.items()},
        mean=mean.to(cfg.device),
        std=std.to(cfg.device),
        fingerprint=_fingerprint(parts),
        skipped=source.skipped,
        taken=tuple(name for name in SHARES if name not in source.parts),
    )


def load_same(cfg: RunConfig, fingerprint: str) -> Dataset:
    """Load images once more, as each of several processes does, and refuse others than before.

    Args:
        cfg: As for :func:`load_dataset`.
        fingerprint: Of the dataset that the work was begun with.

    Returns:
        The dataset.

    Raises:
        InputError: As :func:`load_dataset`; or if files were changed since then: what was done
            before and what would come now could not be compared.

    Source: this project.
    Lesson: 00_start_here, "The data".
    """
    dataset = load_dataset(cfg, progress=False)
    if dataset.fingerprint != fingerprint:
        raise InputError(changed(cfg))
    return dataset


def changed(cfg: RunConfig) -> str:
    """Word the message for images that are no longer those that the work was begun with.

    Args:
        cfg: Tells where they come from.

    Returns:
        One line with the source and the remedy.

    Source: this project.
    Lesson: 00_start_here, "The data".
    """
    return (f"data = {cfg.data!r}: the images changed while they were being worked with; run the "
            "same again, and leave them as they are until it is done")  # fmt: skip


def _normalisation(images: Tensor | Stored) -> tuple[Tensor, Tensor]:
    """Measure the mean and standard deviation of every channel of pixels in [0, 1]."""
    # in float64 and by channel: exact, and small whatever the size of the dataset
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for some in store.pieces(images):
        for channel, count in enumerate(counts):
            count += torch.bincount(some[:, channel].flatten(), minlength=256)
    counts, value = counts.double(), torch.arange(256).double() / 255
    mean = (counts * value).sum(1) / counts.sum(1)
    var = (counts * (value - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return mean.float(), var.sqrt().clamp_min(1e-3).float()  # a constant channel has no deviation


def _fingerprint(parts: dict[str, ImageSet]) -> str:
    digest = hashlib.sha256()
    for part in parts.values():
        for some in store.pieces(part.images):
            digest.update(some.contiguous().numpy())
        digest.update(part.labels.contiguous().numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Source:
    """Images before they are divided: ``train``, and what else the source keeps apart.

    Those in the order of names lie beside their like (one breed, one day, one person): the first
    ones are no sample of their class. Those of the other sources are.
    """

    name: str
    classes: tuple[str, ...]
    parts: dict[str, ImageSet]
    skipped: tuple[str, ...] = ()
    by_name: bool = False


def _source(cfg: RunConfig, progress: bool) -> _Source:
    if cfg.data == "digits":
        return _digits()
    if cfg.data == "cifar10":
        return _cifar10(progress)
    path = cfg.data.removeprefix("folder:")
    root = expand("data", path, cfg.data)
    leads = "" if str(root) == path else f"; it leads to {root}"
    check("data", cfg.data, root.is_dir() or root.is_file(), "there is no such folder, and no such "
          f"archive (.tar, .tar.gz, .tar.xz){leads}")  # fmt: skip
    found = folders.read(root, cfg.image_size, cfg.on_corrupt, progress)
    parts = {name: ImageSet(*both) for name, both in found.parts.items()}
    name = root.name if root.is_dir() else root.name.partition(".tar")[0]
    copied = set(parts) == {"train", "test"} and found.classes == download.CLASSES
    if copied and found.form == ("JPEG", 32, 32):
        name = "CIFAR-10 (JPEG)"  # lossy: its numbers are not those of CIFAR-10
    classes = tuple(map(_printable, found.classes))
    return _Source(_printable(name), classes, parts, found.skipped, by_name=True)


def _printable(name: str) -> str:
    """Escape the bytes that are no UTF-8, by which names that differ stay different."""
    return one_line(name.encode("utf-8", "backslashreplace").decode())


def _digits() -> _Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)  # grey 0 to 16
    labels = torch.from_numpy(digits.target).long()
    return _Source("digits", tuple("0123456789"), {"train": ImageSet(images[:, None], labels)})


def _cifar10(progress: bool) -> _Source:
    """Take CIFAR-10 from its array; make that first, in one process at a time, if it is missing."""
    folder = home() / "data"
    cache = folder / "cache" / "cifar10.npy"
    if not store.exists(cache):
        with files.locked(folder / ".cifar10.lock", wait=True):
            if not store.exists(cache):
                _keep(cache, download.cifar10(folder, progress))
    found = store.read(cache, 32)
    parts = {name: ImageSet(*both) for name, both in found.parts.items()}
    return _Source("CIFAR-10", found.classes, parts)


def _keep(cache: Path, parts: download.Parts) -> None:
    def fill(put: store.Put) -> dict[str, object]:
        for row, image in enumerate(itertools.chain(*(images for images, _ in parts.values()))):
            put(row, image)
        return {"skipped": [], "form": None}

    counts = {name: {c: int((labels == i).sum()) for i, c in enumerate(download.CLASSES)}
              for name, (_, labels) in parts.items()}  # fmt: skip
    store.create(cache, counts, 32, fill)


def _divide(parts: dict[str, ImageSet], classes: tuple[str, ...], seed: int) -> dict[str, ImageSet]:
    """Take the parts that a source lacks from its training images, class by class."""
    missing = [name for name in SHARES if name not in parts]
    labels = parts["train"].labels
    taken = {name: [] for name in ("train", *missing)}
    draw = torch.Generator().manual_seed(seed)
    for index, name in enumerate(classes):
        mine = (labels == index).nonzero().flatten()
        needed = len(missing) + 1
        if len(mine) < needed:
            raise InputError(
                f"class {name!r} has {len(mine)} readable training images; at least {needed} are "
                f"needed, one each for {', '.join(['train', *missing])}"
            )
        mine = mine[torch.randperm(len(mine), generator=draw)]
        sizes = {part: min(MOST, max(1, round(SHARES[part] * len(mine)))) for part in missing}
        for part, size in sizes.items():
            taken[part].append(mine[:size])
            mine = mine[size:]
        taken["train"].append(mine)
    new = {name: parts["train"].where(torch.cat(index).sort().values)
           for name, index in taken.items()}  # fmt: skip
    return {name: new.get(name, parts.get(name)) for name in ("train", "validation", "test")}


def _limit(part: ImageSet, most: int, draw: torch.Generator | None) -> ImageSet:
    """Keep the first images of each class, or as many that are drawn, in the order they had."""
    kept = []
    for label in part.labels.unique():
        mine = (part.labels == label).nonzero().flatten()
        mine = mine if draw is None else mine[torch.randperm(len(mine), generator=draw)]
        kept.append(mine[:most])
    return part.where(torch.cat(kept).sort().values)


def decode(content: bytes, dataset: Dataset) -> Tensor:
    """Turn an image file that somebody gave into the input of the dataset's networks.

    Args:
        content: The file, at most 10 MB, of at most 25 million pixels; PNG, JPEG, GIF, BMP, WEBP,
            TIFF or PPM.
        dataset: Gives the channels and the size.

    Returns:
        (1, C, H, W) uint8 on the dataset's device, scaled and cut as the images of a folder are;
        grey where the dataset is.

    Raises:
        InputError: If it is too large or no image.

    Source: Pillow.
    Lesson: 06_explorer, "Real pictures".
    """
    import io

    import numpy as np
    from PIL import Image, UnidentifiedImageError

    check("picture", f"{len(content):,} bytes", 0 < len(content) <= MOST_BYTES,
          f"a file of 1 to {MOST_BYTES:,} bytes")  # fmt: skip
    _, channels, _, side = dataset.train.images.shape
    try:
        with Image.open(io.BytesIO(content), formats=UPLOADS) as file:
            pixels = file.width * file.height  # known before anything is decoded
            check("picture", f"{file.width} x {file.height} pixels", pixels <= MOST_PIXELS,
                  f"at most {MOST_PIXELS:,} pixels")  # fmt: skip
            image = folders.to_rgb(file, side)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"the picture cannot be read: allowed are {', '.join(UPLOADS)}") from error
    except Image.DecompressionBombError as error:  # Pillow looks before anybody else can
        raise InputError(
            f"picture = 'over {2 * Image.MAX_IMAGE_PIXELS:,} pixels' is not allowed: at most "
            f"{MOST_PIXELS:,} pixels"
        ) from error
    # Pillow's plugins raise nearly anything on damaged input; the reason is given, nothing is lost
    except Exception as error:
        raise InputError(
            f"the picture cannot be read ({whole_reason(error)}): save it anew, or choose another"
        ) from error
    array = np.array(image.convert("L") if channels == 1 else image, dtype=np.uint8)
    tensor = torch.from_numpy(array.reshape(side, side, channels)).permute(2, 0, 1)[None]
    return tensor.contiguous().to(dataset.train.images.device)
