"""Files that are either whole or absent, and never execute anything.

Every file this package writes goes to a temporary name in the same folder and is then renamed, so
that a reader sees the old content or the new, never half of it. Tensors are stored as safetensors,
everything else as JSON: no file of this package is ever unpickled.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import filecmp
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


LARGEST_JSON = 128 * 2**20  # bytes; parsing takes a multiple of it
ASKED_SECONDS = 0.5  # how often whoever waits for a lock is asked whether to go on
_MARK = "sha256:"  # begins the metadata of files that have a digest, and no JSON
_WAITS = 10 if os.name == "nt" else 0  # of a tenth of a second, for whoever reads the old file
NEW = ".new"  # in a folder that is replaced: what is not whole yet
TRIES = 10  # of a folder that other processes make and remove at the same time


class FileProblem(OSError):
    """A file that cannot be read or written; the message names the file and the remedy."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Call ``write`` on a temporary name, then move the finished file to ``path``.

    Args:
        path: Where the file shall be; its folder is created if needed.
        write: Writes the whole content to the path it is given.

    Returns:
        ``path``; who may read and write it is what any new file there would have.

    Raises:
        FileProblem: If the folder cannot be written or the disk is full; nothing is left behind.

    Source: the rename of POSIX, atomic within one file system.
    Lesson: 00_start_here, "Where results are kept".
    """
    write_together({path: write})
    return path


def write_together(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files that belong together: those that are there afterwards are all old or all new.

    Args:
        writes: Where each shall be, and what writes its whole content to the path it is given. None
            takes its place before all are whole, and of several one that is the same as before is
            not touched. A process killed in between leaves some of them alone, but never an old one
            beside a new one; and the last one beside all others alone.

    Raises:
        FileProblem: As :func:`write_atomically`.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    parts: dict[Path, Path] = {}
    try:
        for path, write in writes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path] = part = _part(path)
            rights = stat.S_IMODE(part.stat().st_mode)
            write(part)
            part.chmod(rights)  # safetensors puts a file in its place that is the owner's alone
        new = {path: part for path, part in parts.items() if len(parts) == 1 or _differ(path, part)}
        for path in [*new][:0:-1]:  # the last one first; the first one is replaced at once
            _insist(partial(path.unlink, missing_ok=True))
        for path, part in new.items():
            _insist(partial(os.replace, part, path))
    except FileProblem:  # which says itself what is the matter
        raise
    except OSError as error:
        raise FileProblem(_cannot_write(path, error)) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced(folder: Path, last: str) -> Iterator[Path]:
    """Write the files of a folder anew: the old ones stay until all that are new are whole.

    Whoever does so must hold a lock of the folder, see :func:`locked`.

    Args:
        folder: The folder; created if needed. Files that are the same as before are not touched.
        last: The file that says that the folder is whole: it is never there beside half of the
            others, nor beside old and new ones.

    Yields:
        A folder in it, not there yet. What was written to it takes its place at the end; nothing
        does if that is not reached.

    Raises:
        FileProblem: As :func:`write_atomically`.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    new = folder / NEW
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    try:
        yield new
        made = sorted((p for p in new.rglob("*") if p.is_file()), key=lambda p: p == new / last)
        pairs = [(path, folder / path.relative_to(new)) for path in made]
        write_together({old: partial(os.replace, path) for path, old in pairs})
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _differ(path: Path, part: Path) -> bool:
    return not path.is_file() or not filecmp.cmp(path, part, shallow=False)


def _insist(change: Callable[[], object]) -> None:
    """Rename or remove. Windows refuses while a process reads the old file: wait until it has."""
    for _ in range(_WAITS):
        with contextlib.suppress(PermissionError):
            change()
            return
        time.sleep(0.1)
    change()


def _part(path: Path) -> Path:
    """Make the file that is renamed to ``path`` when it is whole."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    part.touch(exist_ok=False)  # with the rights that the umask, or the folder, gives
    return part


def try_folder(path: Path, *names: str) -> None:
    """Find out whether files can be written to a folder: before hours of work, not after.

    Args:
        path: The folder; one that is not there is made, and removed again.
        names: Of files that :func:`write_atomically` shall write there; those that are there stay
            as they are.

    Raises:
        FileProblem: If it cannot be made or written, or a file of such a name cannot.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    for left in reversed(range(TRIES)):
        tried, made = path, []
        try:
            made += [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
            for tried in (path / name for name in names):
                _part(tried).unlink()
                if tried.is_dir():  # which no file can replace
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return
        except (FileNotFoundError, FileExistsError) as error:
            # another process that tries the same folder may have removed it at this moment
            if not left:
                raise FileProblem(_cannot_write(tried, error)) from error
        except OSError as error:
            raise FileProblem(_cannot_write(tried, error)) from error
        finally:
            for folder in made:
                with contextlib.suppress(OSError):  # gone, or another process has begun to use it
                    folder.rmdir()


def _cannot_write(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return (
        f"cannot write {path}: {reason}; nothing was left half-written. Free some space, or choose "
        "another place; for artifacts/ and data/ with the environment variable HELPERS_HOME (or "
        "--home on the command line)"
    )


@contextlib.contextmanager
def locked(
    path: Path, wait: bool = False, meanwhile: Callable[[], object] | None = None
) -> Iterator[bool]:
    """Hold a lock that the operating system gives to one process, or thread, at a time.

    It ends with the context, and with the process, however that dies. On a network file system it
    holds between machines where the server takes part (NFS 4, Lustre mounted with ``flock``).

    Args:
        path: The file that stands for the lock; its folder is created if needed.
        wait: Whether to wait for the lock.
        meanwhile: Called about twice a second while it waits; what it raises ends the waiting.

    Yields:
        Whether the lock was got; always, if it was waited for.

    Raises:
        FileProblem: If the file cannot be written.

    Source: the package filelock: ``flock`` of POSIX systems, ``msvcrt.locking`` of Windows.
    Lesson: 00_start_here, "Where results are kept".
    """
    from filelock import FileLock, Timeout

    lock, seconds = FileLock(path), 0
    if wait:
        seconds = -1 if meanwhile is None else ASKED_SECONDS  # -1: for good
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=seconds)
            break
        except Timeout:
            pass
        except OSError as error:
            raise FileProblem(_cannot_write(path, error)) from error
        if not wait:
            yield False
            return
        if meanwhile is not None:
            meanwhile()
    try:
        yield True
    finally:
        lock.release()


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write ``content`` as indented JSON, atomically.

    Args:
        path: The file to write.
        content: Plain data: dicts with string keys, lists, strings, finite numbers, booleans, None.

    Returns:
        ``path``.

    Raises:
        FileProblem: If it cannot be written, or is larger than what :func:`read_json` reads.
        ValueError: If a number is not finite.
        TypeError: If a value is not plain data.

    Source: RFC 8259.
    Lesson: 00_start_here, "Where results are kept".
    """
    return write_atomically(path, as_text(as_json(path, content)))


def as_json(path: Path, content: Mapping[str, Any]) -> str:
    """Word ``content`` as :func:`write_json` writes it.

    Args:
        path: The file that it is meant for.
        content: As for :func:`write_json`.

    Returns:
        Indented JSON, ASCII alone.

    Raises:
        FileProblem: If it is larger than what :func:`read_json` reads.
        ValueError: If a number is not finite.
        TypeError: If a value is not plain data.

    Source: RFC 8259.
    Lesson: 00_start_here, "Where results are kept".
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if len(text) > LARGEST_JSON:  # a byte a character
        raise FileProblem(f"cannot write {path}: {len(text):,} bytes of JSON, more than the "
                          f"{LARGEST_JSON:,} that are read back: divide it")  # fmt: skip
    return text


def as_text(text: str) -> Callable[[Path], object]:
    """Prepare a file of text.

    Args:
        text: The whole of it, written as UTF-8 with the line breaks that it has.

    Returns:
        What writes it to the path it is given, as for :func:`write_together`.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    # else Windows breaks lines in its own way: the same text had other bytes, and another digest
    return lambda part: part.write_text(text, encoding="utf-8", newline="\n")


def as_link(content: bytes, kind: str = "image/png") -> str:
    """Word content as an address that holds it, for a page that needs no second file.

    Args:
        content: The whole of it.
        kind: Its media type.

    Returns:
        A ``data:`` address.

    Source: RFC 2397.
    Lesson: 00_start_here, "Where results are kept".
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def read_json(path: Path, requires: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a JSON object and check that it has the keys it must have.

    Args:
        path: The file to read.
        requires: Keys without which the file is not what it should be.

    Returns:
        The object.

    Raises:
        FileProblem: If the file is missing, damaged or a file of another kind.

    Source: RFC 8259.
    Lesson: 00_start_here, "Where results are kept".
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {path.stat().st_size} bytes, far more than any of ours")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileProblem(f"{path} does not exist") from error
    except PermissionError as error:
        raise FileProblem(forbidden(path)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise FileProblem(cannot_read(path, error)) from error
    missing = [k for k in requires if k not in content] if isinstance(content, dict) else ["{}"]
    if missing:
        raise FileProblem(cannot_read(path, f"it has no {', '.join(map(repr, missing))}"))
    return content


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Any = None) -> Path:
    """Write tensors, and optionally one piece of plain data, as one safetensors file, atomically.

    Args:
        path: The file to write.
        tensors: Name -> tensor, any dtype of safetensors, any device; views are copied.
        metadata: Plain data that JSON can hold; kept in the header of the file.

    Returns:
        ``path``.

    Raises:
        FileProblem: If it cannot be written, or safetensors has no such dtype.

    Source: https://huggingface.co/docs/safetensors.
    Lesson: 00_start_here, "Where results are kept".
    """
    return write_atomically(path, as_tensors(tensors, metadata))


def as_tensors(tensors: Mapping[str, Tensor], metadata: Any = None) -> Callable[[Path], None]:
    """Prepare what :func:`save_tensors` does, for a file that others belong to.

    Args:
        tensors: As for :func:`save_tensors`; copied at once.
        metadata: As for :func:`save_tensors`.

    Returns:
        What writes the whole file to the path it is given, for :func:`write_together`.

    Source: https://huggingface.co/docs/safetensors.
    Lesson: 00_start_here, "Where results are kept".
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(part: Path) -> None:
        try:
            save_file(plain, part, metadata=header)
        except KeyError as error:  # its answer to a dtype that it does not know
            kind = error.args[0]
            names = ", ".join(name for name, t in plain.items() if t.dtype == kind)
            raise OSError(f"safetensors cannot hold {kind} ({names})") from error
        except SafetensorError as error:  # its name for a full disk, among others
            raise OSError(str(error)) from error

    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(metadata, allow_nan=False)
    # in one entry: safetensors writes several in any order, and equal files shall be equal
    header = {"helpers": f"{_MARK}{_digest(plain, text)} {text}"}
    return write


def digest_json(plain: Any) -> str:
    """Compute what identifies plain data, in whatever order its keys stand.

    Args:
        plain: What can be written as JSON.

    Returns:
        SHA-256 (64 hexadecimal digits) of the JSON with sorted keys.

    Source: FIPS 180-4.
    Lesson: 00_start_here, "Where results are kept".
    """
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute what identifies tensors.

    Args:
        tensors: Name -> tensor, any dtype and device.

    Returns:
        SHA-256 (64 hexadecimal digits) over names, types, shapes and bytes.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{digest(tensors)} {text}".encode()).hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; say what is the matter where it, or what it holds, is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:  # so safetensors calls a file that may not be read, too
        there = path.exists()
        raise FileProblem(forbidden(path) if there else f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        hint = "; networks must be safetensors, not pickles (safetensors.torch.save_file)"
        raise FileProblem(cannot_read(path, error) + hint) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what :func:`save_tensors` wrote.

    Args:
        path: The file to read.

    Returns:
        The tensors, on the CPU, and the metadata (None where the file has none).

    Raises:
        FileProblem: If the file is missing, damaged or not a safetensors file. Pickled files are
            refused by their format; nothing in the file is executed. That bytes were changed is
            found in files that this package wrote; others have no digest.

    Source: https://huggingface.co/docs/safetensors.
    Lesson: 00_start_here, "Where results are kept".
    """
    with _opened(path) as file:
        header = file.metadata() or {}
        # copied: the library's own are the file itself, mapped, and change when it does
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text = header.get("helpers", "null")
        if text.startswith(_MARK):
            stated, _, text = text.removeprefix(_MARK).partition(" ")
            if stated != _digest(tensors, text):
                raise ValueError("it does not hold what was written")
        return tensors, json.loads(text)


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Read the names, shapes and types of the tensors in a file, without the tensors.

    Args:
        path: A file that :func:`save_tensors` wrote.

    Returns:
        Name -> (shape, dtype); dtype None for types that this package does not use.

    Raises:
        FileProblem: If the file is missing, damaged or not a safetensors file.

    Source: https://huggingface.co/docs/safetensors.
    Lesson: 02_pruning, "Channels that are gone".
    """
    import torch

    known = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
        "BOOL": torch.bool, "C64": torch.complex64,
    }  # fmt: skip
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {n: (tuple(s.get_shape()), known.get(s.get_dtype())) for n, s in slices.items()}


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileProblem: If it cannot be read.

    Source: FIPS 180-4.
    Lesson: 00_start_here, "Where results are kept".
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError as error:
        raise FileProblem(forbidden(path)) from error
    except OSError as error:
        raise FileProblem(cannot_read(path, error)) from error


def forbidden(path: Path | str) -> str:
    """Word the message for what may not be read.

    Args:
        path: The file or folder.

    Returns:
        One line with the file and the remedy.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    return f"{path} may not be read: give yourself the right to, or use another folder"


def cannot_read(path: Path, reason: object) -> str:
    """Word the message for a file that cannot be used.

    Args:
        path: The file or folder.
        reason: What is wrong with it.

    Returns:
        One line with the file, the reason and the remedy.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    return (
        f"cannot read {path}: {reason}. If this package wrote it, it is damaged or of another run: "
        "delete it (for a run, its whole folder) and run the same command again. If it is yours, "
        "keep it, and see what the reason asks for"
    )
