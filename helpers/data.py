"""Images: where they come from, how they are kept, and which of them are to be forgotten.

Whatever the source, the images end as one uint8 tensor per part (train, validation, test) on the
device. Normalisation and augmentation happen there, a batch at a time, with one mean and one
standard deviation per dataset: measured on its training part, used everywhere.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helpers import files, parallel
from helpers.config import InputError, RunConfig, check, expand, home

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)  # the formats that Pillow reads everywhere
UPLOADS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # what a visitor may give
MOST_AT_ONCE, PIXELS_AT_ONCE = 1000, 128 * 32 * 32
MOST_BYTES, MOST_PIXELS = 10_000_000, 25_000_000
SHARES = {"validation": 0.15, "test": 0.25}  # of each class, where the source has no such part


@dataclass(frozen=True)
class ImageSet:
    """Some labelled images.

    Attributes:
        images: (N, C, H, W) uint8, raw pixels; or (N, K) float32, what a frozen part made of them.
        labels: (N,) int64, index of the class.

    Source: the array layout of KellerJordan/cifar10-airbench.
    Lesson: 01_baseline_training, "Images as one tensor".
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def where(self, chosen: Tensor) -> ImageSet:
        """Return the images that a (N,) bool mask or an int64 index chooses."""
        return ImageSet(self.images[chosen], self.labels[chosen])

    def sample(self, most: int, seed: int = 0) -> ImageSet:
        """Return at most so many of the images, chosen at random by a seed."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most]
        return self.where(chosen.to(self.labels.device))

    def to(self, device: str) -> ImageSet:
        """Return the same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


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
        pixels = images.to(torch.float32, memory_format=layout).div_(255)
        return pixels.sub_(self.mean.view(shape)).div_(self.std.view(shape))

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
        names = ", ".join(f"{i} {n}" for i, n in enumerate(self.classes))
        chosen = (forgotten,) if isinstance(forgotten, int) else tuple(sorted(set(forgotten)))
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
        for start in range(0, n, batch_size):
            yield part.images[start : start + batch_size], part.labels[start : start + batch_size]
        return
    draw = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    order = torch.randperm(n, generator=draw).to(device)
    pad = max(1, part.images.shape[-1] // 8)  # 4 of 32 pixels, the usual choice; 1 of 8
    shift = torch.randint(0, 2 * pad + 1, (n, 2), generator=draw).to(device)
    flip = (torch.rand(n, generator=draw) < 0.5).to(device)
    for start in range(0, n, batch_size):
        index = order[start : start + batch_size]
        if len(index) < 2 <= n:
            return
        images = part.images[index]
        if "crop" in augment:
            images = crop(images, shift[index], pad)
        if "flip" in augment:
            images = torch.where(flip[index].view(-1, 1, 1, 1), images.flip(3), images)
        yield images, part.labels[index]


def per_pass(images: Tensor) -> int:
    """Tell how many images go through a network at once where nothing is trained.

    Args:
        images: (N, C, H, W), or (N, K) features.

    Returns:
        At most 1000; on the CPU fewer of large images, whose layers would not stay in its cache:
        ResNet-20 was twice as fast with 128 images of 32x32 pixels as with 1000.

    Source: measured for this project.
    Lesson: 01_baseline_training, "Train".
    """
    if images.dim() < 4 or images.device.type != "cpu":
        return MOST_AT_ONCE
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // math.prod(images.shape[2:])))


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
    n, c, h, w = images.shape
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    rows = shift[:, 0, None] + torch.arange(h, device=images.device)
    columns = shift[:, 1, None] + torch.arange(w, device=images.device)
    picture = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=images.device).view(1, c, 1, 1)
    return padded[picture, channel, rows.view(n, 1, h, 1), columns.view(n, 1, 1, w)]


def load_dataset(cfg: RunConfig, progress: bool = True) -> Dataset:
    """Load the images that a configuration names, divide them and put them on its device.

    Args:
        cfg: Uses ``data``, ``image_size``, ``split_seed``, ``train_limit``, ``on_corrupt`` and
            ``device``.
        progress: Whether to show a bar while a folder is decoded.

    Returns:
        The dataset; the same configuration and files always give the same one.

    Raises:
        InputError: If the source is unknown or its images cannot be used.

    Source: scikit-learn's digits (UCI ML hand-written digits), CIFAR-10, or the user's folder.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    with parallel.after_the_first():  # it alone downloads and decodes
        classes, parts, skipped = _source(cfg, progress and parallel.rank() == 0)
    parts = _divide(parts, classes, cfg.split_seed)
    if cfg.train_limit is not None:
        parts["train"] = _limit(parts["train"], cfg.train_limit)
    train = parts["train"].images
    # in float64 and by channel: exact, and small whatever the size of the dataset
    counts = torch.stack([torch.bincount(train[:, c].flatten(), minlength=256)
                          for c in range(train.shape[1])]).double()  # fmt: skip
    value = torch.arange(256).double() / 255
    mean = (counts * value).sum(1) / counts.sum(1)
    var = (counts * (value - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    digest = hashlib.sha256()
    for part in parts.values():
        digest.update(part.images.contiguous().numpy())
        digest.update(part.labels.contiguous().numpy())
    return Dataset(
        name=cfg.data if cfg.data in ("digits", "cifar10") else Path(cfg.data[7:]).name,
        classes=classes,
        **{name: part.to(cfg.device) for name, part in parts.items()},
        mean=mean.float().to(cfg.device),
        std=var.sqrt().clamp_min(1e-3).float().to(cfg.device),  # a constant channel has none
        fingerprint=digest.hexdigest(),
        skipped=skipped,
    )


Source = tuple[tuple[str, ...], dict[str, ImageSet], tuple[str, ...]]  # classes, parts, skipped


def _source(cfg: RunConfig, progress: bool) -> Source:
    if cfg.data == "digits":
        return _digits()
    if cfg.data == "cifar10":
        return _cifar10()
    root = expand("data", cfg.data.removeprefix("folder:"))
    return _folder(root, cfg.image_size, cfg.on_corrupt, progress)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)  # grey 0 to 16
    labels = torch.from_numpy(digits.target).long()
    return tuple("0123456789"), {"train": ImageSet(images[:, None], labels)}, ()


def _cifar10() -> Source:
    from torchvision.datasets import CIFAR10

    parts, folder = {}, home() / "data"
    for name, is_train in (("train", True), ("test", False)):
        try:  # torchvision checks the md5 of the archive before it unpacks and of what it reads
            source = CIFAR10(folder, train=is_train, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"data = 'cifar10' cannot be had: {error}. Put cifar-10-python.tar.gz into "
                f"{folder} by hand, or use data = 'folder:PATH'"
            ) from error
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        parts[name] = ImageSet(images, torch.tensor(source.targets))
    return tuple(source.classes), parts, ()


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
        sizes = {part: max(1, round(SHARES[part] * len(mine))) for part in missing}
        for part, size in sizes.items():
            taken[part].append(mine[:size])
            mine = mine[size:]
        taken["train"].append(mine)
    new = {name: parts["train"].where(torch.cat(index).sort().values)
           for name, index in taken.items()}  # fmt: skip
    return {name: new.get(name, parts.get(name)) for name in ("train", "validation", "test")}


def _limit(part: ImageSet, most: int) -> ImageSet:
    index = [(part.labels == c).nonzero().flatten()[:most] for c in part.labels.unique()]
    return part.where(torch.cat(index).sort().values)


# ------------------------------------------------------------------------------------------------
# a folder of images


def _folder(root: Path, size: int, on_corrupt: str, progress: bool) -> Source:
    """Read ``root/CLASS/*`` or ``root/train/CLASS/*`` (and ``root/test/CLASS/*``), once."""
    import PIL

    listing, classes = _list_folder(root)
    key = hashlib.sha256(f"1|{PIL.__version__}|{size}\n".encode())  # 1: how _to_rgb decodes
    for part, path, _ in listing:
        stat = path.stat()
        key.update(os.fsencode(path) + f"|{part}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    name = f"{root.name[:40]}-{size}px-{key.hexdigest()[:16]}.safetensors"
    cache = home() / "data" / "cache" / name
    if cache.exists():
        tensors, skipped = files.load_tensors(cache)
        _check_cache(cache, tensors, skipped, size, len(classes))
    else:
        tensors, skipped = _decode(listing, root, size, progress)
        if not (skipped and on_corrupt == "stop"):
            files.save_tensors(cache, tensors, skipped)
    if skipped:
        shown = "; ".join(skipped[:5]) + ("; ..." if len(skipped) > 5 else "")
        found = f"{len(skipped)} of {len(listing)} images in {root} cannot be read: {shown}"
        if on_corrupt == "stop":
            raise InputError(f"{found}. Repair or remove them, or use on_corrupt='skip'")
        log.warning("%s. They were left out.", found)
    for part, label in dict.fromkeys((part, label) for part, _, label in listing):
        if label not in tensors.get(f"{part}.labels", ()):
            raise InputError(f"{root}: no {part} image of class {classes[label]!r} can be read")
    names = dict.fromkeys(part for part, _, _ in listing)
    parts = {n: ImageSet(tensors[f"{n}.images"], tensors[f"{n}.labels"]) for n in names}
    return classes, parts, tuple(skipped)


def _check_cache(
    path: Path, tensors: dict[str, Tensor], skipped: object, size: int, classes: int
) -> None:
    """Refuse a readable file that is not what :func:`_decode` makes."""
    ok = isinstance(skipped, list) and "train.images" in tensors
    for part in {name.split(".")[0] for name in tensors}:
        images, labels = (tensors.get(f"{part}.{kind}") for kind in ("images", "labels"))
        ok = ok and images is not None and labels is not None and len(images) == len(labels) > 0
        ok = ok and images.dtype == torch.uint8 and images.shape[1:] == (3, size, size)
        ok = ok and labels.dtype == torch.int64 and int(labels.min()) >= 0
        ok = ok and int(labels.max()) < classes
    if not ok:
        raise files.FileProblem(f"{path} does not hold decoded images: delete it and run again")


def _list_folder(root: Path) -> tuple[list[tuple[str, Path, int]], tuple[str, ...]]:
    """List (part, file, label) for every image, and the classes."""
    if not root.is_dir():
        raise InputError(f"data = 'folder:{root}' is not allowed: there is no such folder")
    places = {"train": root / "train" if (root / "train").is_dir() else root}
    if places["train"] != root and (root / "test").is_dir():
        places["test"] = root / "test"
    classes: tuple[str, ...] = ()
    listing = []
    for part, place in places.items():
        found = tuple(sorted(p.name for p in place.iterdir() if _visible(p) and p.is_dir()))
        if part == "test" and found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise InputError(f"{root}: classes in only one of train/ and test/: {', '.join(odd)}")
        classes = found
        for label, name in enumerate(classes):
            images = sorted(p for p in (place / name).rglob("*") if _is_image(p))
            if not images:
                raise InputError(f"the class folder {place / name} has no images ({_suffixes()})")
            listing += [(part, path, label) for path in images]
    if len(classes) < 2:
        raise InputError(
            f"{root} has {len(classes)} class folders; at least two are needed, one subfolder of "
            f"images ({_suffixes()}) per class, directly or under train/ and test/"
        )
    return listing, classes


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _is_image(path: Path) -> bool:
    return _visible(path) and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _decode(
    listing: list[tuple[str, Path, int]], root: Path, size: int, progress: bool
) -> tuple[dict[str, Tensor], list[str]]:
    import numpy as np
    from PIL import Image
    from tqdm.auto import tqdm

    images: dict[str, list] = {}
    labels: dict[str, list[int]] = {}
    skipped = []
    for part, path, label in tqdm(listing, "decoding images", disable=not progress, leave=False):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as file:
                    pixels = np.asarray(_to_rgb(file, size))
        # Pillow's plugins raise nearly anything on damaged input (OSError, SyntaxError, ...);
        # none of it is lost: each file is named with its reason, and the caller stops or goes on
        except Exception as error:
            skipped.append(f"{path.relative_to(root)} ({type(error).__name__}: {error})")
            continue
        images.setdefault(part, []).append(pixels)
        labels.setdefault(part, []).append(label)
    tensors = {}
    for part in images:
        stacked = torch.from_numpy(np.stack(images[part]))
        tensors[f"{part}.images"] = stacked.permute(0, 3, 1, 2).contiguous()
        tensors[f"{part}.labels"] = torch.tensor(labels[part])
    return tensors, skipped


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
    from PIL import Image

    check("picture", f"{len(content):,} bytes", 0 < len(content) <= MOST_BYTES,
          f"a file of 1 to {MOST_BYTES:,} bytes")  # fmt: skip
    _, channels, _, side = dataset.train.images.shape
    try:
        with Image.open(io.BytesIO(content), formats=UPLOADS) as file:
            pixels = file.width * file.height  # known before anything is decoded
            check("picture", f"{file.width} x {file.height} pixels", pixels <= MOST_PIXELS,
                  f"at most {MOST_PIXELS:,} pixels")  # fmt: skip
            image = _to_rgb(file, side)
    except InputError:
        raise
    # Pillow's plugins raise nearly anything on damaged input; the reason is given, nothing is lost
    except Exception as error:
        raise InputError(
            f"the picture cannot be read ({type(error).__name__}): allowed are {', '.join(UPLOADS)}"
        ) from error
    array = np.array(image.convert("L") if channels == 1 else image, dtype=np.uint8)
    tensor = torch.from_numpy(array.reshape(side, side, channels)).permute(2, 0, 1)[None]
    return tensor.contiguous().to(dataset.train.images.device)


def _to_rgb(image: Image, size: int) -> Image:
    """Upright, 8 bits, transparent parts on white, scaled to cover the square and cut to it."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: Pillow would clip it
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if values.max() > 255 else 1 if image.mode == "F" and values.max() <= 1 else 255
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
