"""Anyone's images: a folder with one subfolder a class, or a tar archive of such a folder.

Both are listed first, in one order, then decoded into one array on disk (:mod:`helpers.store`). An
archive is read from its beginning to its end, twice; nothing of it is unpacked.
"""

from __future__ import annotations

import bisect
import bz2
import errno
import gzip
import hashlib
import io
import itertools
import logging
import lzma
import os
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from helpers import bars, files, store
from helpers.config import InputError, home, short

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # the formats that Pillow reads everywhere  # fmt: skip
# what such files may hold, in Pillow's words; it goes by the content, and other formats that it
# knows start programs (EPS: Ghostscript)
IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
LARGEST_MEMBER = 200_000_000  # bytes of one image of an archive; it is read into memory
LARGEST_RECORD = 1_000_000  # bytes of a long name and the like, which are read into memory, too
LARGEST_SKIPPED = 100_000_000_000  # of any member; at a size made up tarfile reads on without end
MOST_MEMBERS = 10_000_000  # of an archive; their names are held in memory
LONGEST_NAME = 4096  # bytes of a member's name; longer ones have no place on a Linux system
LARGEST_NAMES = 500_000_000  # bytes of all of them together
NOWHERE = "a link to nothing that can be read"  # in the place of a file's stamp
LINKS, HIDDEN = "links to folders", "hidden folders"  # in the place of an ending
RECORDS = {  # the types of headers that say more of members, and are no members
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
}  # fmt: skip
PACKED = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open}  # by first bytes

Listing = dict[str, dict[str, list[str]]]  # part -> class -> images, as paths below the root


def read(root: Path, size: int, on_corrupt: str = "stop", progress: bool = True) -> store.Content:
    """Decode the images of a folder or archive, or take what was decoded before.

    Args:
        root: A folder or archive that is there, with ``CLASS/*``, or ``train/CLASS/*`` (and
            ``test/CLASS/*``).
        size: Side in pixels to which they are scaled and cut.
        on_corrupt: ``stop`` at files that cannot be read, or ``skip`` them.
        progress: Whether to show bars.

    Returns:
        The images; the same files always give the same ones, packed or not.

    Raises:
        InputError: If its images cannot be used.
        FileProblem: If a cache is damaged or cannot be written.

    Source: this project.
    Lesson: 01_baseline_training, "Images as one tensor".
    """
    names: dict[str, str] = {}
    if root.is_dir():
        listing, names = _list_folder(root)
    cache = home() / "data" / "cache" / f"{root.name[:40]}-{size}px-{_key(root, size, names)}.npy"
    if not store.exists(cache):
        with files.locked(cache.with_suffix(".lock"), wait=True):
            if not store.exists(cache):  # another process may have decoded them meanwhile
                inside = ""
                if not root.is_dir():
                    listing, inside = _list_archive(root, progress)
                lost = {name: why for name, why in names.items() if why.startswith(NOWHERE)}
                _decode(root, listing, lost, inside, size, on_corrupt, cache, progress)
    content = store.read(cache, size)
    bad = content.skipped
    listed = len(bad) + sum(len(labels) for _, labels in content.parts.values())
    if bad and on_corrupt == "stop":  # decoded when they might be skipped
        raise InputError(_unreadable(bad, listed, root))
    if bad:
        log.warning("%s", _unreadable(bad, listed, root, stop=False))
    for part, (_, labels) in content.parts.items():
        for label, name in enumerate(content.classes):
            if not bool((labels == label).any()):
                raise InputError(f"{root}: no {part} image of class {name!r} can be read")
    return content


def _key(root: Path, size: int, stamps: Mapping[str, str]) -> str:
    """Name the exact files and the way in which they are decoded."""
    import PIL

    lines = [f"5|{PIL.__version__}|{size}", os.fspath(root)]  # 5: how to_rgb decodes
    lines += [f"{name}|{stamp}" for name, stamp in stamps.items()] or [_stamp(root.stat())]
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]


def _stamp(stat: os.stat_result) -> str:
    """Say what a change changes: size and date can be set, and are alike in many a set of images.

    Nobody can set the time of the last change of an entry, which a new name changes, too. Inodes
    would tell as much, but some network folders number them anew at every mount.
    """
    return f"{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"


def _stamp_of_folder(path: Path) -> str:
    """Say what tells that a folder, or a link to one, took the place of another one."""
    return f"{path.stat().st_ctime_ns}|{path.lstat().st_ctime_ns}"


# ------------------------------------------------------------------------------------------------
# listing


def _list_folder(root: Path) -> tuple[Listing, dict[str, str]]:
    """List the images of a folder, and what tells whether one of them, or its class, changed."""
    stamps, others, links = {}, Counter(), []
    try:
        found, loose = {}, {}
        found[""], loose[""] = _split(root)
        for part in ("train", "test"):
            if part in found[""]:
                found[part], loose[part] = _split(root, part)
        if any(map(_visible, found.get("train", ()))):
            _say_beside(found.pop(""), root)
        else:  # of classes one may be called train
            found, loose = {"": found[""]}, {"": loose[""]}
        folders = {*found, *itertools.chain(*found.values())}
        classes = [*filter(_visible, itertools.chain(*found.values()))]
        apart = _check_apart(root, classes)
        # with the parts: a folder that is renamed takes its files along as they are
        places = {name: _stamp_of_folder(root / name) for name in (*filter(None, found), *classes)}
        for below in classes:
            stamps |= _walk(root, below, others, places, links)
        _check_links(root, apart, links)
    except OSError as error:
        where = short(str(error.filename or root))
        raise InputError(
            f"{root}: {where} cannot be listed: {error.strerror}; repair or remove it, or give "
            "yourself the right to read it"
        ) from error
    listing = _arrange(stamps, folders, root, itertools.chain(*loose.values()))
    _say_left_out(others, root)
    return listing, stamps | places


def _split(root: Path, part: str = "") -> tuple[list[str], list[str]]:
    """List the folders in a folder; and the images and broken links, which are of no class."""
    folders, loose = [], []
    with os.scandir(root / part) as entries:
        for entry in entries:
            name = f"{part}/{entry.name}".lstrip("/")
            if entry.is_dir():
                folders.append(name)
            elif _visible(name) and (
                _is_image(name) or (entry.is_symlink() and not entry.is_file())
            ):
                loose.append(name)
    return sorted(folders), loose


def _check_apart(root: Path, classes: Iterable[str]) -> list[tuple[str, str]]:
    """Refuse links by which one class would have the images of another, or of all.

    Returns where each class really lies, in this order; none lies in another.
    """

    def place(name: str) -> str:  # with its last separator it begins what lies in it, and no other
        return os.path.join(os.path.realpath(root / name), "")

    places = sorted((place(name), name) for name in classes)
    for where, name in places:
        if place("").startswith(where):
            raise InputError(f"{root}: the class folder {name} is a link to {where}, in which all "
                             "of them lie: remove it")  # fmt: skip
    for (where, name), (deeper, other) in itertools.pairwise(places):
        if deeper.startswith(where):
            raise InputError(f"{root}: the class folders {name} and {other} hold the same images, "
                             "as one is a link to the other, or into it: remove it")  # fmt: skip
    return places


def _check_links(root: Path, apart: Sequence[tuple[str, str]], links: Iterable[str]) -> None:
    """Refuse links to files of another class, or of the same one in the other part."""
    shared = []
    for name in links:
        target = os.path.realpath(root / name)
        where, other = apart[bisect.bisect(apart, (target,)) - 1]  # the only one it can lie in
        if target.startswith(where) and not name.startswith(f"{other}/"):
            shared.append(f"{name} into {other}")
    if shared:
        raise InputError(f"{root}: {len(shared):,} images are links into the folder of another "
                         f"class or part ({short(shared[0])}), which would share them: remove "
                         "these links")  # fmt: skip


def _walk(
    root: Path, below: str, others: Counter[str], places: dict[str, str], links: list[str]
) -> Iterator[tuple[str, str]]:
    """List the images below a folder, and count the others by the endings of their names.

    Links to files are listed, and join the links; those to folders and hidden folders are counted
    with the others; what tells whether a folder in it changed joins the places.
    """
    left = _entries(root, below)  # a stack: folders may lie deeper in each other than calls may
    while left:
        name, entry = left.pop()
        if entry.is_dir(follow_symlinks=False):
            if not _visible(name):  # copies, as a rule: .thumbnails, .ipynb_checkpoints
                others[HIDDEN] += 1
                continue
            places[name] = str(entry.stat().st_ctime_ns)
            left += _entries(root, name)
        elif _visible(name):
            if (stamp := _stamp_of_file(entry)) is None:
                others[LINKS if entry.is_dir() else "pipes and the like"] += 1
            elif _is_image(name):
                if entry.is_symlink():
                    links.append(name)
                yield name, stamp
            else:
                others[_ending(name)] += 1


def _entries(root: Path, below: str) -> list[tuple[str, os.DirEntry[str]]]:
    """List a folder with the last one first, as a stack gives them."""
    with os.scandir(root / below) as entries:
        found = sorted(entries, key=lambda e: e.name, reverse=True)
    return [(f"{below}/{entry.name}", entry) for entry in found]


def _stamp_of_file(entry: os.DirEntry[str]) -> str | None:
    """Say what a change of the file changes; None if it is no file (a pipe, a link to a folder)."""
    try:
        found = entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise
        # as git-annex leaves them where nothing was fetched; none may be missing without a word
        return f"{NOWHERE}: {error.strerror}"
    return _stamp(found) if S_ISREG(found.st_mode) else None


def _list_archive(path: Path, progress: bool) -> tuple[Listing, str]:
    """List what an archive holds, and the folder in it that holds everything, if there is one."""
    folders, hidden, others = set(), set(), Counter()
    images = {}  # a dict, because an archive may hold a file twice
    for count, (name, member, _) in enumerate(_members(path, (), f"listing {path.name}", progress)):
        if count == MOST_MEMBERS:
            raise InputError(f"{path} has more than {MOST_MEMBERS:,} files; use a folder")
        above = name if member.isdir() else name.rpartition("/")[0]
        where, dot, rest = f"/{above}".partition("/.")
        if dot:
            hidden.add((where, rest.partition("/")[0]))
        elif member.isdir():
            folders.add(name)
        elif _is_image(name):
            if not member.isreg():
                raise InputError(f"{path}: {name} is a link or a device; allowed are plain files")
            images[name] = None
        elif _visible(name) and (member.issym() or "/" in name):
            others[_ending(name) if member.isreg() else "links"] += 1
    for name in images:
        above = name.split("/")[:-1]
        # three at most: the folder that holds everything, the part, the class
        folders.update("/".join(above[: deep + 1]) for deep in range(min(3, len(above))))
    tops = {name.partition("/")[0] for name in (*images, *folders) if _visible(name)}
    inside = f"{tops.pop()}/" if len(tops) == 1 and tops != {"train"} else ""
    below = [[n.removeprefix(inside) for n in names if n.startswith(inside)]
             for names in (images, folders)]  # fmt: skip
    listing = _arrange(*below, path)
    # those at the top are no more told of than files there
    others += Counter({HIDDEN: sum(f"{where}/" != f"/{inside}" for where, _ in hidden)})
    _say_left_out(others, path)
    return listing, inside


def _ending(name: str) -> str:
    return short(os.path.splitext(name)[1].lower() or "no ending")


def _say_left_out(others: Counter[str], root: Path) -> None:
    """Say which files were taken for no images: a format that is not read may be among them."""
    if others:
        most = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
        shown = ", ".join(f"{ending} ({n:,})" for ending, n in most)
        shown += ", ..." if len(others) > 5 else ""
        log.warning("%s: %s files are not read: %s; read are %s", root, f"{others.total():,}",
                    shown, _suffixes())  # fmt: skip


def _say_beside(tops: Iterable[str], root: Path) -> None:
    """Say which folders beside train/ are not read: images to validate with may be in them."""
    if beside := sorted({name for name in tops if _visible(name)} - {"train", "test"}):
        log.warning("%s: read are train/ and test/ alone, not %s", root, short(", ".join(beside)))


def _arrange(
    images: Iterable[str], folders: Collection[str], root: Path, loose: Iterable[str] = ()
) -> Listing:
    """Sort images into parts and classes; what lies elsewhere is none of them, and is said."""
    apart = any(name.startswith("train/") for name in folders)
    listing: Listing = {"train": {}}
    if apart and "test" in folders:
        listing["test"] = {}
    for folder in sorted(folders):
        part, _, name = folder.partition("/") if apart else ("train", "", folder)
        if part in listing and name and "/" not in name and _visible(name):
            listing[part][name] = []
    elsewhere = [*loose]
    for image in images:
        part, _, rest = image.partition("/") if apart else ("train", "", image)
        listing.get(part, {}).get(rest.partition("/")[0], elsewhere).append(image)
    for classes in listing.values():
        for found in classes.values():
            found.sort(key=lambda name: name.replace("/", "\0"))  # folder by folder
    _check_listing(listing, root)
    if elsewhere:
        shown = ", ".join(sorted(elsewhere)[:5]) + (", ..." if len(elsewhere) > 5 else "")
        log.warning("%s: %s files lie in no class folder and are not read: %s", root,
                    f"{len(elsewhere):,}", short(shown))  # fmt: skip
    return listing


def _check_listing(listing: Listing, root: Path) -> None:
    train, test = listing["train"], listing.get("test", listing["train"])
    if train and {name.lower() for name in train} <= _PARTS:
        raise InputError(
            f"{root}: {', '.join(train)} are parts, not classes; name those with the training and "
            "the test images train and test, in small letters"
        )
    if train.keys() != test.keys():
        odd = sorted(train.keys() ^ test.keys())
        raise InputError(f"{root}: {len(odd)} classes are in only one of train/ and test/: "
                         f"{short(', '.join(odd))}")  # fmt: skip
    for part, classes in listing.items():
        for name, found in classes.items():
            if not found:
                where = f"{part}/{name}" if "test" in listing else name
                raise InputError(f"{root}: the class folder {where} has no images ({_suffixes()})")
    if len(train) < 2:
        raise InputError(
            f"{root} has {len(train)} class folders; at least two are needed, one subfolder of "
            f"images ({_suffixes()}) per class, directly or under train/ and test/"
        )


def _visible(name: str) -> bool:
    return "/." not in f"/{name}"


def _is_image(name: str) -> bool:
    return _visible(name) and name.lower().endswith(IMAGE_SUFFIXES)


def _suffixes() -> str:
    return ", ".join(IMAGE_SUFFIXES)


# ------------------------------------------------------------------------------------------------
# archives


class _Header(tarfile.TarInfo):
    """A header that is damaged or missing is an error: tarfile takes it for the archive's end.

    What it notes belongs to one archive: each is read with a subclass of its own.
    """

    ended = False  # whether the mark that ends an archive was seen
    lasting = 0  # bytes of the records that hold for all members to come
    before = 0  # bytes of these and of those that stand before the next member

    @classmethod
    def frombuf(cls, *args: Any, **kwargs: Any) -> tarfile.TarInfo:
        return cls._checked(super().frombuf, *args, **kwargs)

    @classmethod
    def _frombuf(cls, *args: Any, **kwargs: Any) -> tarfile.TarInfo:
        """Newer versions of Python call this one, and older ones do not have it."""
        return cls._checked(super()._frombuf, *args, **kwargs)

    @classmethod
    def _checked(
        cls, parse: Callable[..., tarfile.TarInfo], buf: bytes, *args: Any, **kwargs: Any
    ) -> tarfile.TarInfo:
        try:
            header = parse(buf, *args, **kwargs)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                cls.ended = True
                raise
            raise tarfile.ReadError(f"it is cut off or damaged ({error})") from error
        if header.type not in RECORDS:
            cls.before = cls.lasting
            return header
        cls.before += abs(header.size)
        if header.type == tarfile.XGLTYPE:
            cls.lasting += abs(header.size)
        if cls.before > LARGEST_RECORD:
            raise tarfile.ReadError(f"{header.name} and what belongs to it have {cls.before:,} "
                                    f"bytes, more than {LARGEST_RECORD:,}")  # fmt: skip
        return header

    def _proc_sparse(self, *_: Any) -> tarfile.TarInfo:
        """Refuse what tarfile reads without limit: a list of what such a file holds, and where."""
        raise tarfile.ReadError("it holds sparse files, which are not read: pack it anew without "
                                "--sparse")  # fmt: skip

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_sparse


def _members(
    path: Path, wanted: Collection[str], text: str, progress: bool
) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """Read an archive from beginning to end: name, header, and the content where it is wanted."""

    class Header(_Header):
        """Those of this archive."""

    bar = bars.show(text=text, unit=" files", disable=not progress, leave=False)
    names = 0  # bytes of them
    try:
        with (
            bar,
            _unpacked(path) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=Header) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # it keeps them all
                length = len(os.fsencode(member.name))
                names += length
                if length > LONGEST_NAME:
                    raise tarfile.ReadError(f"the name {short(member.name)} has {length:,} bytes, "
                                            f"more than {LONGEST_NAME:,}")  # fmt: skip
                if names > LARGEST_NAMES:
                    raise tarfile.ReadError("the names of its files have more than "
                                            f"{LARGEST_NAMES:,} bytes")  # fmt: skip
                if tar.offset - member.offset_data > LARGEST_SKIPPED:
                    raise tarfile.ReadError(f"{member.name} has more than {LARGEST_SKIPPED:,} "
                                            "bytes")  # fmt: skip
                name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
                here = member.isreg() and name in wanted
                if here and member.size > LARGEST_MEMBER:
                    raise tarfile.ReadError(f"{name} has {member.size:,} bytes, more than "
                                            f"{LARGEST_MEMBER:,}")  # fmt: skip
                if ".." in name.split("/"):
                    raise tarfile.ReadError(f"{name} lies outside of it")
                yield name, member, tar.extractfile(member).read() if here else b""
                bar.update()
            if not Header.ended:  # should a tarfile parse headers in yet another way
                raise tarfile.ReadError("it is cut off, or this version of Python reads archives "
                                        "in a way that does not tell")  # fmt: skip
            while stream.read(1 << 20):
                pass  # to the end: where the checksums are
    # the last three: what tarfile raises at numbers that are none, and at records without end
    except (
        tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError,
        IndexError, RecursionError, ValueError,
    ) as error:  # fmt: skip
        if isinstance(error, PermissionError):
            raise InputError(files.forbidden(path)) from error
        raise InputError(
            f"{path} cannot be read as a tar archive: {error}. Fetch or pack it again, or give a "
            "folder of images or another tar archive of one"
        ) from error


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    return next((o for mark, o in PACKED.items() if start.startswith(mark)), open)(path, "rb")


# ------------------------------------------------------------------------------------------------
# decoding


def _decode(
    root: Path, listing: Listing, lost: Mapping[str, str], inside: str, size: int, on_corrupt: str,
    cache: Path, progress: bool,
) -> None:  # fmt: skip
    """Decode every image into its row of a new array; of the lost ones the reason is known."""
    names = itertools.chain(*(mine for classes in listing.values() for mine in classes.values()))
    rows = {name: row for row, name in enumerate(names)}
    bad = dict(lost)
    forms: set[tuple[str, int, int]] = set()
    guessed: list[str] = []

    def fill(put: store.Put) -> dict[str, Any]:
        seen = set(lost)
        there = [name for name in rows if name not in lost]
        for name, file in _contents(root, there, inside, progress):
            seen.add(name)
            try:
                pixels, form, guess = _pixels(file, size)
            except MemoryError as error:  # no fault of the image, which may fit another time
                about = f" ({error})" if str(error) else ""
                raise InputError(
                    f"{root}: there is not enough memory now for {name}{about}; end other "
                    "programs, or make it smaller or remove it, and run the same again"
                ) from error
            # Pillow's plugins raise nearly anything on damaged input (OSError, SyntaxError, ...);
            # none of it is lost: each file is named with its reason, and the caller stops or goes
            # on
            except Exception as error:
                # a damaged image may send its reader to where no file can be read (EINVAL)
                if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                    # the disk, or a right that lacks: it is no fault of the image, which may well
                    # be read another time
                    raise InputError(
                        f"{root}: {name} cannot be read now: {error.strerror}; give yourself the "
                        "right to, or look after the disk, and run the same again"
                    ) from error
                where = repr(os.fspath(file) if isinstance(file, Path) else file)
                bad[name] = f"{type(error).__name__}: {str(error).replace(where, repr(name))}"
                continue
            bad.pop(name, None)  # of a file that is twice in an archive the last one counts
            put(rows[name], pixels)
            if guess:
                guessed.append(name)
            if len(forms) < 2:
                forms.add(form)
        if len(seen) < len(rows):
            raise InputError(f"{root} changed while it was read; run the same again")
        if guessed:
            log.warning("%s: how bright %s images are is a guess by the largest number in each, as "
                        "floats and 32 bits have no white of their own (%s); if some come out too "
                        "dark or too bright, save them all with 16 bits", root,
                        f"{len(guessed):,}", short(", ".join(guessed)))  # fmt: skip
        found = [(rows[name], f"{name} ({why})") for name, why in bad.items()]
        if bad and on_corrupt == "stop":
            raise InputError(_unreadable([text for _, text in sorted(found)], len(rows), root))
        return {"skipped": sorted(found), "form": forms.pop() if len(forms) == 1 else None}

    counts = {part: {name: len(mine) for name, mine in classes.items()}
              for part, classes in listing.items()}  # fmt: skip
    store.create(cache, counts, size, fill)


def _unreadable(bad: Sequence[str], listed: int, root: Path, stop: bool = True) -> str:
    shown = "; ".join(bad[:5]) + ("; ..." if len(bad) > 5 else "")
    advice = "They were left out."
    if stop:
        advice = "Repair or remove them, or use on_corrupt='skip' (--on-corrupt skip)"
    return f"{len(bad)} of {listed} images in {root} cannot be read: {shown}. {advice}"


def _contents(
    root: Path, names: Iterable[str], inside: str, progress: bool
) -> Iterator[tuple[str, Path | IO[bytes]]]:
    """Give every image and something to read it from; those of an archive in its own order."""
    if root.is_dir():
        bar = bars.show(names, "decoding images", disable=not progress, leave=False)
        yield from ((name, root / name) for name in bar)
        return
    wanted = {inside + name for name in names}
    for name, member, content in _members(root, wanted, "decoding images", progress):
        if name in wanted and member.isreg():
            yield name.removeprefix(inside), io.BytesIO(content)


def _pixels(file: Path | IO[bytes], size: int) -> tuple[np.ndarray, tuple[str, int, int], bool]:
    """Decode an image to (3, size, size) uint8; say what the file was, and if white is a guess."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            form = str(image.format), image.width, image.height
            guess = _deep(image) and not _sixteen_bits(image)
            try:
                return np.asarray(to_rgb(image, size)).transpose(2, 0, 1), form, guess
            except MemoryError as error:
                raise MemoryError(f"{form[1]} x {form[2]} pixels") from error


def to_rgb(image: Image, size: int) -> Image:
    """Turn any image into a square one of 8-bit colours.

    Args:
        image: As Pillow opened it.
        size: Side in pixels.

    Returns:
        Upright, RGB, transparent parts on white, scaled to cover the square and cut to it.

    Raises:
        ValueError: If some of its numbers are none.

    Source: Pillow; Resize and CenterCrop of torchvision.
    Lesson: 06_explorer, "Real pictures".
    """
    from PIL import Image

    # before: what Pillow turns has no format any more
    sixteen_bits, key = _sixteen_bits(image), _transparent(image)
    image = _upright(image)
    if key is not None:
        image.info["transparency"] = key
    if _deep(image):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():  # one of them would make all pixels black
            raise ValueError("it holds nan or inf")
        top = 65535
        if not sixteen_bits:  # a guess; floats go beyond their white where they were resampled
            whites = {1: 2, 255: 510} if image.mode == "F" else {255: 255}
            top = next((white for white, most in whites.items() if values.max() <= most), top)
        if isinstance(image.info.get("transparency"), int):  # the level that is transparent
            values = np.where(values == image.info["transparency"], top, values)
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _square(image.convert("RGB"), size)


def _transparent(image: Image) -> Any:
    """Bring the colour that is transparent to 8 bits where Pillow does this to pixels alone.

    None where there is none, or its bits are those of the pixels. Source: the chunk tRNS of PNG.
    """
    key = image.info.get("transparency")
    bits = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    if key is None or bits not in ("L;2", "L;4", "RGB;16B"):
        return None
    if bits == "RGB;16B":
        return tuple(part >> 8 for part in key)
    most = 2 ** int(bits[2:]) - 1
    return (key & most) * (255 // most)


def _upright(image: Image) -> Image:
    """Turn an image as its EXIF data say; where these are damaged it is taken as it lies.

    ``ImageOps.exif_transpose`` writes all others anew, too, and fails if one of them is damaged.
    """
    from PIL import Image

    image.load()
    turn = Image.Transpose
    turns = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM,
             5: turn.TRANSPOSE, 6: turn.ROTATE_270, 7: turn.TRANSVERSE,
             8: turn.ROTATE_90}  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = turns.get(image.getexif().get(274))
    except Exception:  # damaged ones raise nearly anything, and the pixels are sound without them
        method = None
    return image.copy() if method is None else image.transpose(method)


def _deep(image: Image) -> bool:
    """Say whether an image is grey with more than 8 bits, which Pillow would clip."""
    return image.mode.startswith("I") or image.mode == "F"


def _sixteen_bits(image: Image) -> bool:
    """Say whether white is 65,535: Pillow scales to it what PPM has, and has mode I for that."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _square(image: Image, size: int) -> Image:
    """Scale the shorter side to the size, and cut the longer one to it at whole pixels.

    ``ImageOps.fit`` cuts before it scales, and at half a pixel blurs what needs no scaling.
    """
    from PIL import Image

    corner, end = [], []
    for side in image.size:
        scaled = size * side // min(image.size)
        start = round((scaled - size) / 2)
        # where that window lies in the image: what is cut off is never made, however long it is
        corner.append(start * side / scaled)
        end.append((start + size) * side / scaled)
    return image.resize((size, size), Image.Resampling.BILINEAR, (*corner, *end))
