"""CIFAR-10 from wherever it can be had: a file put here by hand, a mirror, the original host.

What comes over the network is checked before it is read. The original files are pickled; their MD5
is compared first, and even then nothing but arrays is accepted from them. Every way gives the same
images in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import logging
import os
import pickle
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from helpers import bars, files
from helpers.config import InputError, check, reason

log = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 5000, "test": 1000}
MIRROR = "uoft-cs/cifar10"  # on the Hugging Face hub, or on what HF_ENDPOINT names
MIRROR_FILES = {part: f"plain_text/{part}-00000-of-00001.parquet" for part in PER_CLASS}
TIMEOUT = 20.0  # seconds without a byte, after which a connection counts as dead
TRIES = 4  # in a row that brought nothing new
WAIT = 1.0  # seconds before the second try; doubled before each further one
LARGEST = 2_000_000_000  # bytes of any download; a server could send for ever
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers after which it is worth trying again

Parts = dict[str, tuple[np.ndarray, np.ndarray]]  # (N, 3, 32, 32) uint8, (N,) int64


def cifar10(folder: Path, progress: bool = True) -> Parts:
    """Get CIFAR-10: what was put into the folder by hand, else the mirror, else the original host.

    Args:
        folder: Where downloads are kept. ``cifar-10-python.tar.gz``, or the unpacked
            ``cifar-10-batches-py/``, is used where it is found.
        progress: Whether to show bars with size, speed and time left.

    Returns:
        ``train`` and ``test`` -> (N, 3, 32, 32) uint8 images, (N,) int64 labels; by class, and
        within a class by the SHA-256 of the pixels: an order that does not depend on the way.

    Raises:
        InputError: If all ways fail; says why each did, and how to do it by hand.

    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    failed = []
    for name, get in (("files put there by hand", _by_hand), ("mirror", _mirror),
                      ("original host", _original)):  # fmt: skip
        try:
            parts = get(folder, progress)
            if parts is not None:
                return {part: _in_order(*_checked(part, *both)) for part, both in parts.items()}
        # the hub's client raises errors of requests, of httpx or of its own, by its version, and
        # pyarrow its own: they have no base in common. Each reason is in the message below.
        except Exception as error:
            log.warning("CIFAR-10, %s: %s", name, reason(error))
            failed.append(f"{name}: {reason(error)}")
    source = _torchvision()
    raise InputError(
        f"data = 'cifar10' cannot be had ({'; '.join(failed)}). By hand: download {source.url} on "
        f"any machine (170 MB, md5 {source.tgz_md5}) and put it into {folder}, then run the same "
        "again. Or use data = 'folder:PATH', with a folder or tar archive of images"
    )


def _torchvision() -> Any:
    """Return the class that knows the names and MD5s of the original files."""
    from torchvision.datasets import CIFAR10

    return CIFAR10


def _checked(part: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
    if counts != [PER_CLASS[part]] * len(CLASSES):
        raise files.FileProblem(f"{part} has {counts} images of the classes, not "
                                f"{PER_CLASS[part]} each")  # fmt: skip
    return images, labels


def _in_order(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort by class, then by a hash: the first n images of a class are a fair sample of it."""
    keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
    return images[order], labels[order].astype(np.int64)


# ------------------------------------------------------------------------------------------------
# the original files


def _by_hand(folder: Path, progress: bool) -> Parts | None:
    """Read the original files if they are there: the archive, or what is in it, unpacked."""
    source = _torchvision()
    unpacked = folder / source.base_folder
    names = [name for name, _ in (*source.train_list, *source.test_list)]
    if (folder / source.filename).is_file():
        return _read_archive(folder / source.filename)
    if all((unpacked / name).is_file() for name in names):
        return _batches({name: (unpacked / name).read_bytes() for name in names})
    return None


def _original(folder: Path, progress: bool) -> Parts:
    source = _torchvision()
    path = _fetch(source.url, folder / source.filename, source.tgz_md5, progress)
    return _read_archive(path)


def _read_archive(path: Path) -> Parts:
    source = _torchvision()
    found = _md5(path)
    if found != source.tgz_md5:
        raise files.FileProblem(f"{path} is damaged: its md5 is {found}, not {source.tgz_md5}. "
                                "Delete it, or download it again")  # fmt: skip
    content = {}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            if member.isreg():
                content[member.name.rpartition("/")[2]] = tar.extractfile(member).read()
    return _batches(content)


def _batches(content: dict[str, bytes]) -> Parts:
    """Read the pickled batches, each only if its MD5 is the known one."""
    source, parts = _torchvision(), {}
    for part, batches in (("train", source.train_list), ("test", source.test_list)):
        images, labels = [], []
        for name, known in batches:
            found = hashlib.md5(content[name], usedforsecurity=False).hexdigest()
            if found != known:
                raise files.FileProblem(f"{name} is damaged: its md5 is {found}, not {known}")
            batch = _Arrays(io.BytesIO(content[name]), encoding="latin1").load()
            images.append(batch["data"].reshape(-1, 3, 32, 32))
            labels.append(batch["labels"])
        parts[part] = np.concatenate(images), np.concatenate(labels)
    return parts


class _Arrays(pickle.Unpickler):
    """Plain data and NumPy arrays; anything else that a pickle may name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct  # NumPy 2 moved it
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


# ------------------------------------------------------------------------------------------------
# the mirror


def _mirror(folder: Path, progress: bool) -> Parts:
    parts = {}
    for part, name in MIRROR_FILES.items():
        path = _from_hub(name, folder / "hub", progress)
        parts[part] = _read_parquet(path, progress)
    return parts


def _from_hub(name: str, cache: Path, progress: bool) -> Path:
    """Download a file of the mirror; its SHA-256 must be the one that the hub states."""
    import huggingface_hub as hub

    endpoint = os.environ.get("HF_ENDPOINT")
    where = {"repo_id": MIRROR, "filename": name, "repo_type": "dataset", "endpoint": endpoint}
    # asked first, because this fails at once where the hub is out of reach; the download does not
    stated = hub.get_hf_file_metadata(hub.hf_hub_url(**where), timeout=TIMEOUT, token=False).etag
    for again in (False, True):
        with _bars(progress):
            path = Path(
                hub.hf_hub_download(**where, cache_dir=cache, token=False, force_download=again)
            )
        found = files.sha256(path)
        if found == stated or len(stated) != len(found):  # another server may state another hash
            return path
        log.warning("%s is damaged", path)
        path.resolve().unlink()  # what the link in the hub's cache points to
        path.unlink(missing_ok=True)
    raise files.FileProblem(f"{name} is damaged: its SHA-256 is {found}, not {stated}")


@contextlib.contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    from huggingface_hub import utils

    shown = not utils.are_progress_bars_disabled()
    if not wanted:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            utils.enable_progress_bars()


def _read_parquet(path: Path, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image
    from pyarrow import parquet

    images, labels = [], []
    with parquet.ParquetFile(path) as file:
        bar = bars.show(text="decoding images", total=file.metadata.num_rows,
                        disable=not progress, leave=False)  # fmt: skip
        for batch in file.iter_batches(1000, columns=["img", "label"]):
            labels += batch["label"].to_pylist()
            for content in batch["img"].field("bytes").to_pylist():
                with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                    if image.size != (32, 32):
                        raise files.FileProblem(f"{path} has an image of {image.size} pixels")
                    images.append(np.asarray(image.convert("RGB")))
                bar.update()
    bar.close()
    return np.stack(images).transpose(0, 3, 1, 2), np.asarray(labels)


# ------------------------------------------------------------------------------------------------
# one file over HTTP


def _fetch(url: str, path: Path, md5: str, progress: bool = True) -> Path:
    """Download a file whose MD5 is known, or go on where an earlier call was stopped.

    Until it is whole it is called ``NAME.part``. Source: RFC 9110, section 14 (range requests).
    """
    ok = url.lower().startswith(("http://", "https://"))
    check("url", url, ok, "an address that begins with http:// or https://")
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            _complete(url, part, progress)
            found = _md5(part)
            if found == md5:
                return part.replace(path)
            part.unlink()
            log.warning("%s: damaged, its md5 is %s, not %s", url, found, md5)
    except files.FileProblem:
        raise
    except OSError as error:
        raise files.FileProblem(f"cannot write {part}: {error.strerror or error}") from error
    raise files.FileProblem(f"{url} gave a damaged file twice: its md5 is {found}, not {md5}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _complete(url: str, part: Path, progress: bool) -> None:
    """Append to a file until it is whole, over as many connections as that takes."""
    barren = 0  # tries in a row that brought nothing
    with bars.show(text=url.rpartition("/")[2], unit="B", unit_scale=True,
                   disable=not progress, leave=False) as bar:  # fmt: skip
        while True:
            before = _size(part)
            try:
                if _append(url, part, bar):
                    return
                problem: object = "the connection was closed too early"
            except urllib.error.HTTPError as error:
                problem = f"HTTP status {error.code}"
                if error.code not in PASSING:
                    raise files.FileProblem(f"{url}: {problem}") from error
            except files.FileProblem:
                raise
            except (OSError, http.client.HTTPException) as error:
                problem = getattr(error, "reason", error)
            barren = 0 if _size(part) > before else barren + 1
            if barren == TRIES:
                raise files.FileProblem(f"{url}: {problem}, {TRIES} times")
            log.info("%s: %s; trying again from byte %d", url, problem, _size(part))
            time.sleep(WAIT * 2 ** max(0, barren - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, part: Path, bar: Any) -> bool:
    """Ask for what is missing; return whether the answer was whole."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing lies beyond what is here; the checksum decides
            return True
        raise
    with answer:
        # what is left of it; unknown if the header is missing or no number, as after a way by FTP
        length = getattr(answer, "length", None)
        if start and not (answer.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            if length is not None and length < start:  # a network's page to log in, for example
                raise files.FileProblem(f"{url} sends {length:,} bytes in all, fewer than the "
                                        f"{start:,} of {part}: log in to the network; if that file "
                                        "is wrong, delete it")  # fmt: skip
            start = 0  # the server cannot go on in the middle, and sends everything
        bar.reset(total=None if length is None else start + length)
        bar.n = bar.initial = start  # the speed is that of this connection
        for chunk in iter(lambda: answer.read(1 << 16), b""):
            _write(part, start, chunk)
            start += len(chunk)
            bar.update(len(chunk))
            if start > LARGEST:
                raise files.FileProblem(f"{url} sends more than {LARGEST:,} bytes")
        return length is None or start == bar.total


def _write(part: Path, start: int, chunk: bytes) -> None:
    """Put bytes at a place, and nothing behind them."""
    try:
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.write(chunk)
    except OSError as error:  # the disk's problem, which another try does not solve
        raise files.FileProblem(f"cannot write {part}: {error.strerror or error}") from error
