"""What one run is: a frozen, validated configuration, and the presets that fill it in.

A preset fixes the data, the network and the training schedule for one kind of machine. A
:class:`RunConfig` adds the method, the forgotten class, rank, sparsity and seed; every value has
one home here, and everything that influences a result can be read off it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "onecycle")
AUGMENTATIONS = ("none", "flip", "crop", "crop+flip")
MODES = ("default", "paper")
PRECISIONS = ("auto", "fp32", "amp")
DEVICES = ("auto", "cpu", "cuda")
KINDS = ("mask_structured", "mask_unstructured", "mask_nm", "channels")
CRITERIA = ("l2", "l1", "random", "taylor")
SCOPES = ("global", "layer")
ADAPTERS = ("lora", "dora", "rslora")
TARGETS = ("last_block", "last_stage", "blocks", "all")
NORMS = ("patch", "frozen")
MOST_EPOCHS = 1_000_000  # far more than any stage needs: a slip of the finger is refused
MOST = 2**31 - 1  # of any other whole number
_LONGEST = 256  # bits of a whole number that is repeated to whoever gave it


class InputError(ValueError):
    """A value from outside that cannot be used: says what was received and what is allowed."""


def check(field: str, value: object, ok: bool, allowed: str) -> None:
    """Refuse a value that is not allowed.

    Args:
        field: What the user called it.
        value: What was received.
        ok: Whether it is allowed.
        allowed: The allowed range or names, for the message.

    Raises:
        InputError: If ``ok`` is false.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    if not ok:
        raise InputError(f"{field} = {_written(value)} is not allowed: {allowed}")


def _written(value: object) -> str:
    """Repeat a value; of a huge number its size, as Python need not write all its digits."""
    if isinstance(value, int) and value.bit_length() > _LONGEST:
        return f"a number of {value.bit_length():,} bits"
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} of numbers too long to write"


def choose(field: str, value: str, known: Any) -> None:
    """Refuse a name that is not among the known ones, and list those.

    Args:
        field: What the user called it.
        value: The name received.
        known: The allowed names (any iterable of str).

    Raises:
        InputError: If ``value`` is not among them.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    check(field, value, value in tuple(known), f"known are {', '.join(known)}")


# control characters, lone surrogates, and marks that turn the direction of text around
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def one_line(text: str) -> str:
    """Make text fit to be shown, in which names of files and classes may hold anything.

    Args:
        text: Any text.

    Returns:
        One line: line breaks and tabs are spaces; control characters, with which a terminal can be
        told what to do, and marks of direction are replaced.

    Source: ECMA-48; Unicode Standard Annex 9.
    Lesson: 00_start_here, "The same from a shell".
    """
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"[^\S ]+", " ", text))


def reason(error: BaseException) -> str:
    """Say in one line why something failed, for a message of our own.

    Args:
        error: What others' code raised.

    Returns:
        The first line of its message that holds something, else the name of its kind.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    lines = map(str.strip, str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def whole_reason(error: BaseException) -> str:
    """Say in one line what failed and why, where nothing may be left out.

    Args:
        error: What others' code raised.

    Returns:
        Its kind and its message, whose lines are joined.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def short(text: str) -> str:
    """Make text fit into one line of a message: a name, or many of them.

    Args:
        text: Any text.

    Returns:
        The text; of more than 200 characters its beginning and its end.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    return text if len(text) <= 200 else f"{text[:60]}...{text[-60:]}"


def need(what: str, package: str, remedy: str) -> ModuleType:
    """Import a package that comes with an extra only.

    Args:
        what: What needs it, as the user called it.
        package: Its name.
        remedy: How to install it, or to do without.

    Returns:
        The package.

    Raises:
        InputError: If it is not installed.

    Source: the extras in ``pyproject.toml``.
    Lesson: 00_start_here, "The same from a shell".
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{what}: the package {package} is not installed; {remedy}") from error


def launched() -> bool:
    """Say whether a launcher has started several processes.

    Returns:
        Whether WORLD_SIZE is set, and not to 1 or nothing.

    Source: the variables of torchrun.
    Lesson: 01_baseline_training, "Train".
    """
    return os.environ.get("WORLD_SIZE", "") not in ("", "1")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) <= sys.float_info.max  # a whole number may be larger


def _as_classes(configuration: RunConfig) -> None:
    """Bring ``forget`` and ``earlier`` into their one form: 3, or (3, 5) in ascending order."""
    for field in ("forget", "earlier"):
        value = getattr(configuration, field)
        several = tuple(value) if isinstance(value, list | tuple) else (value,)
        ok = all(_whole(c) and c >= 0 for c in several) and len(set(several)) == len(several)
        ok = ok and (bool(several) or field == "earlier")
        check(field, value, ok, "a class, a whole number ≥ 0, or several different ones")
        if field == "forget":
            several = several[0] if len(several) == 1 else tuple(sorted(several))
        object.__setattr__(configuration, field, several)
    newest = configuration.forget
    ok = {*(newest if isinstance(newest, tuple) else [newest])}.isdisjoint(configuration.earlier)
    check("earlier", configuration.earlier, ok, f"{configuration.forget} is forgotten only now")


def _as_floats(configuration: object, *fields: str) -> None:
    for field in fields:
        value = getattr(configuration, field)
        object.__setattr__(configuration, field, None if value is None else float(value))


def expand(field: str, path: str, given: str | None = None) -> Path:
    """Make a path that a user gave absolute.

    Args:
        field: What the user called it.
        path: May begin with ``~`` or be relative to the working folder.
        given: What the user gave, if the path is a part of it.

    Returns:
        The absolute path; it need not exist.

    Raises:
        InputError: If it begins with the home of a user who does not exist.

    Source: :meth:`pathlib.Path.expanduser`.
    Lesson: 00_start_here, "Where results are kept".
    """
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{field} = {given or path!r} is not allowed: {error}") from error


def home() -> Path:
    """Return the folder that holds ``artifacts/`` and ``data/``.

    Returns:
        ``HELPERS_HOME`` if that variable is set; else the nearest folder at or above the working
        folder that has a ``pyproject.toml``; else the working folder.

    Raises:
        InputError: If the variable holds nothing but spaces, or a path that cannot be; or if the
            path is not UTF-8, or Python reads names as ASCII and it is not that: safetensors writes
            to it, but does not read from it.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    if named := os.environ.get("HELPERS_HOME"):
        check("HELPERS_HOME", named, bool(named.strip()), "the name of a folder")
        found = expand("HELPERS_HOME", named)
    else:
        here = Path.cwd()
        above = (p for p in (here, *here.parents) if (p / "pyproject.toml").is_file())
        found = next(above, here)
    ok = str(found).encode("utf-8", "ignore").decode() == str(found)
    allowed = ("a folder whose path is UTF-8, or no network can be read back; name one with the "
               "environment variable HELPERS_HOME or --home")  # fmt: skip
    if not ok:
        with contextlib.suppress(UnicodeError):  # the folder may be right, and Python misled
            os.fsencode(found).decode("utf-8")
            allowed = ("its path is UTF-8, but Python reads names as "
                       f"{sys.getfilesystemencoding()} here; set the environment variable "
                       "PYTHONUTF8=1")  # fmt: skip
    check("home", str(found), ok, allowed)
    return found


@contextlib.contextmanager
def at_home(folder: str) -> Iterator[None]:
    """Let another folder hold ``artifacts/`` and ``data/`` while the context lasts.

    Args:
        folder: What HELPERS_HOME is meanwhile; afterwards it is what it was.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    before = os.environ.get("HELPERS_HOME")
    os.environ["HELPERS_HOME"] = folder
    try:
        yield
    finally:
        os.environ.pop("HELPERS_HOME")
        if before is not None:
            os.environ["HELPERS_HOME"] = before


def anchored(data: str) -> str:
    """Make the path in a source of images absolute, for processes that work in other folders.

    Args:
        data: As the field of :class:`RunConfig`.

    Returns:
        The same, if it has no path or an absolute one; else ``folder:`` and the absolute path.

    Raises:
        InputError: If the path begins with the home of a user who does not exist.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    kind, _, path = data.partition(":")
    if kind != "folder" or not path or Path(path).is_absolute():
        return data
    return f"folder:{expand('data', path, data)}"


def anchor() -> None:
    """Make the paths in HELPERS_HOME and HELPERS_DATA absolute: kernels work in another folder.

    Raises:
        InputError: As :func:`expand`.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    os.environ["HELPERS_HOME"] = str(home())
    if os.environ.get("HELPERS_DATA"):
        os.environ["HELPERS_DATA"] = anchored(os.environ["HELPERS_DATA"])


@dataclass(frozen=True)
class Recipe:
    """How one stage of optimisation is done; every method uses the same loop with one of these.

    Attributes:
        epochs: Passes over the images of the stage; 1 to 1,000,000.
        lr: Peak learning rate; above 0.
        optimizer: ``sgd`` (with momentum), ``adam`` or ``adamw``.
        momentum: Of SGD; in [0, 1).
        weight_decay: At least 0; coupled for ``sgd`` and ``adam``, decoupled for ``adamw``.
        batch_size: Images per step; 2 (BatchNorm needs two) to 2,147,483,647, as any whole number.
        schedule: ``constant``; ``cosine`` down to zero over the stage; or ``onecycle``: up to the
            peak along a cosine in the first fifth, then down to zero along another.
        augment: ``none``, ``flip``, ``crop`` or ``crop+flip``, drawn anew for every image.
        mixup: Parameter of the Beta distribution of MixUp; 0 switches it off.
        strength: Of the method's own term, at least 0; None takes the method's default. What it
            means is said by each of ``helpers.objectives`` and ``helpers.edits``.

    Source: the paper's settings and those of the field (Unlearn-Sparse, airbench).
    Lesson: 01_baseline_training, "The training recipe".
    """

    epochs: int
    lr: float
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 128
    schedule: str = "constant"
    augment: str = "none"
    mixup: float = 0.0
    strength: float | None = None

    def __post_init__(self) -> None:
        """Validate; raises InputError."""
        ok = _whole(self.epochs) and 1 <= self.epochs <= MOST_EPOCHS
        check("epochs", self.epochs, ok, f"a whole number from 1 to {MOST_EPOCHS}")
        check("lr", self.lr, _finite(self.lr) and self.lr > 0, "a finite number above 0")
        choose("optimizer", self.optimizer, OPTIMIZERS)
        ok = _finite(self.weight_decay) and self.weight_decay >= 0
        check("weight_decay", self.weight_decay, ok, "a finite number ≥ 0")
        ok = _finite(self.momentum) and 0 <= self.momentum < 1
        check("momentum", self.momentum, ok, "a number in [0, 1)")
        ok = _whole(self.batch_size) and 2 <= self.batch_size <= MOST
        check("batch_size", self.batch_size, ok, f"a whole number from 2 to {MOST}")
        choose("schedule", self.schedule, SCHEDULES)
        choose("augment", self.augment, AUGMENTATIONS)
        ok = _finite(self.mixup) and self.mixup >= 0
        check("mixup", self.mixup, ok, "a finite number ≥ 0")
        ok = self.strength is None or (_finite(self.strength) and self.strength >= 0)
        check("strength", self.strength, ok, "a finite number ≥ 0, or None")
        _as_floats(self, "lr", "momentum", "weight_decay", "mixup", "strength")


# The paper's unlearning stage, the same for every method (arXiv 2411.11907, section 3 and code).
PAPER_UNLEARN = Recipe(epochs=10, lr=1e-3, optimizer="adam")

# Tuned on the validation part with the same trials for every method by benchmarks/tune_digits.py
# and tune_cifar.py; tests compare them with the records, results/tuning-*.json.
TUNED = {
    "digits": {
        "finetune": Recipe(epochs=10, lr=0.01, schedule="cosine"),
        "prune_finetune": Recipe(epochs=10, lr=0.01),
        "lora": Recipe(epochs=10, lr=0.04, schedule="cosine"),
        "prunelora": Recipe(epochs=10, lr=0.01),
        "prunelora_channels": Recipe(epochs=10, lr=0.02, schedule="cosine"),
        "finetune_sgd": Recipe(
            epochs=10,
            lr=0.2,
            optimizer="sgd",
            weight_decay=1e-4,
            batch_size=64,
            schedule="cosine",
            augment="crop",
        ),
        "gradient_ascent": Recipe(epochs=10, lr=0.002, schedule="cosine"),
        "neggrad_plus": Recipe(epochs=10, lr=0.003, schedule="cosine", strength=0.001),
        "random_labels": Recipe(epochs=10, lr=0.003, schedule="cosine", strength=0.3),
        "salun": Recipe(epochs=10, lr=0.003, schedule="cosine", strength=0.8),
        "l1_sparse": Recipe(epochs=10, lr=0.01, schedule="cosine", strength=0.003),
        "scrub": Recipe(epochs=10, lr=0.003, schedule="cosine", strength=0.1),
        "bad_teacher": Recipe(epochs=10, lr=0.01, schedule="cosine", strength=1.0),
        "ssd": Recipe(epochs=10, lr=1.0, schedule="cosine", strength=3.5),  # does not train
        "boundary_shrink": Recipe(epochs=10, lr=0.003, schedule="cosine", strength=0.3),
        "weight_negation": Recipe(epochs=10, lr=0.01),
        "head_only": Recipe(epochs=10, lr=0.08),
        # at the cost of PruneLoRA's ten epochs, in about as many steps
        "finetune@3": Recipe(epochs=3, lr=0.01, batch_size=32, schedule="cosine"),
        "finetune_sgd@3": Recipe(
            epochs=3,
            lr=0.2,
            optimizer="sgd",
            weight_decay=1e-4,
            batch_size=32,
            schedule="cosine",
            augment="crop",
        ),
        "retrain@3": Recipe(
            epochs=3,
            lr=0.1,
            optimizer="sgd",
            weight_decay=2e-3,
            batch_size=32,
            schedule="cosine",
            augment="crop",
        ),
    },
    "cifar": {
        "finetune": Recipe(epochs=5, lr=0.001, schedule="cosine"),
        "prune_finetune": Recipe(epochs=5, lr=0.003, schedule="cosine"),
        "lora": Recipe(epochs=5, lr=0.001),
        "prunelora": Recipe(epochs=5, lr=0.01, schedule="cosine"),
        "prunelora_channels": Recipe(epochs=5, lr=0.01, schedule="cosine"),
        "finetune_sgd": Recipe(
            epochs=5,
            lr=0.03,
            optimizer="sgd",
            weight_decay=0.0005,
            schedule="onecycle",
            augment="crop+flip",
        ),
        "neggrad_plus": Recipe(epochs=5, lr=0.001, schedule="cosine", strength=0.001),
        "salun": Recipe(epochs=5, lr=0.001, schedule="cosine", strength=0.5),
        "head_only": Recipe(epochs=5, lr=0.01),
    },
}
# the largest of the learning rates that validation images cannot tell from the best, in place of
# the smallest: what the methods judged in words look like at the other end
TUNED["digits_high"] = TUNED["digits"] | {
    "finetune": Recipe(epochs=10, lr=0.08),
    "prune_finetune": Recipe(epochs=10, lr=0.08, schedule="cosine"),
    "lora": Recipe(epochs=10, lr=0.08),
    "prunelora": Recipe(epochs=10, lr=0.04, schedule="cosine"),
    "prunelora_channels": Recipe(epochs=10, lr=0.04, schedule="cosine"),
    "finetune@3": Recipe(epochs=3, lr=0.04, batch_size=32, schedule="cosine"),
    "retrain@3": dataclasses.replace(TUNED["digits"]["retrain@3"], lr=0.3, weight_decay=5e-4),
}

_DIGITS = Recipe(epochs=20, lr=0.1, optimizer="sgd", weight_decay=1e-4, batch_size=64,
                 schedule="cosine", augment="crop")  # fmt: skip
_CIFAR = Recipe(epochs=200, lr=0.1, optimizer="sgd", weight_decay=5e-4, schedule="cosine",
                augment="crop+flip")  # fmt: skip
# The paper names neither the learning rate nor the schedule of its ViT; these are common choices.
_CIFAR_VIT = Recipe(epochs=90, lr=1e-3, optimizer="adamw", weight_decay=0.1, schedule="cosine",
                    augment="flip", mixup=0.2)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # reduced data, one seed: what the tests run
    "smoke": {"train": dataclasses.replace(_DIGITS, epochs=12), "train_limit": 60, "seeds": 1},
    # a laptop: minutes
    "cpu": {"train": _DIGITS},
    # photographs on any two cores: a day, in as many calls as one likes. Mixed precision is
    # fast where the processor has bfloat16 (AVX-512 BF16, AMX); elsewhere take precision="fp32".
    "cifar": {
        "data": "cifar10", "model": "resnet20", "precision": "amp", "tuned": "cifar",
        # small batches: in so few epochs the number of steps decides
        "train": Recipe(epochs=40, lr=0.1, optimizer="sgd", weight_decay=5e-4, batch_size=64,
                        schedule="onecycle", augment="crop+flip"),
        "epochs": 5, "seeds": 3, "cache_mb": 4096,
    },
    # Colab or any CUDA card (not tuned: learning rates as in the paper). Images, epochs and seeds
    # are counted for the series in 45 minutes of a T4: 10e15 operations in mixed precision for
    # training and 3e15 in full precision for evaluation. Counted, not measured.
    "gpu": {
        "data": "cifar10", "model": "resnet18", "tuned": "", "threads": 0,
        "train": dataclasses.replace(_CIFAR, epochs=8), "epochs": 5, "train_limit": 2000,
        "seeds": 2, "cache_mb": 4096,
    },
    # the published experiment: hours on a GPU
    "paper": {
        "data": "cifar10", "model": "resnet50", "tuned": "", "threads": 0, "mode": "paper",
        "train": _CIFAR,
    },
    # ``gpu`` in small, for tests: colour, the names and stages of torchvision's networks. The data
    # is what HELPERS_DATA names
    "smoke_gpu": {
        "data": "cifar10", "image_size": 16, "model": "resnet_tiny", "tuned": "", "lr": 0.01,
        "train": dataclasses.replace(_CIFAR, epochs=12, batch_size=32), "epochs": 12,
        "train_limit": 60, "seeds": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines one run.

    Attributes:
        preset: The preset that filled in the rest, one of ``PRESETS``.
        data: ``digits`` (embedded), ``cifar10`` (downloaded), or ``folder:PATH``: a folder or a
            tar archive of one.
        image_size: Side in pixels to which the images of a folder are resized; 8 to 512.
        model: Name of the architecture, one of ``helpers.models.MODELS``.
        method: Name of the method, one of ``helpers.unlearning.METHODS``.
        mode: ``default`` (the corrected method) or ``paper`` (the published settings and code).
        forget: Index of the class to forget, 0 and up; or several indices, forgotten at once.
        earlier: Classes that were forgotten before, one request after another in this order, by
            the same method with the same settings; ``forget`` is the newest request. In the default
            mode only the first of them prunes.
        seed: Of the initial weights, the order of batches and the adapters.
        original_seed: Seed of the network that the method starts from; None means ``seed``.
        sparsity: Share to prune, of whatever the kind of pruning counts; in [0, 1).
        pruning: Kind of pruning, one of ``KINDS``; None takes the method's own.
        criterion: What makes a weight or filter weak: ``l2``, ``l1``, ``random`` or ``taylor``.
        scope: Of ``mask_unstructured``: weights compete within their ``layer`` or ``global``ly.
        mask_data: Images that may choose the mask and measure BatchNorm: those to ``retain``, or
            ``all`` (which leaks the forget set into the mask).
        rank: Rank r of the adapters; from 1 to what the smallest adapted layer admits.
        adapter: ``lora``, ``dora`` or ``rslora``.
        targets: Layers that get an adapter: those of the ``last_block``, of the ``last_stage`` (in
            a transformer the same), of all ``blocks``, or ``all``, the stem and the 1x1 shortcuts
            included.
        norms: State of the BatchNorm layers from the first adapter on: part of the ``patch``, or
            ``frozen``. Those before it are always frozen.
        alpha: LoRA's scale is alpha / rank, rsLoRA's alpha / sqrt(rank); None means 2 * rank, and 8
            for rsLoRA, whose point is one alpha for every rank.
        dropout: In the adapters' input, in [0, 1); None means 0, and 0.1 in paper mode.
        epochs: Overrides the epochs of the unlearning stage; None keeps the recipe's.
        lr: Overrides the learning rate of the unlearning stage; None keeps the recipe's.
        device: ``auto``, ``cpu`` or ``cuda``; stored resolved, never as ``auto``.
        precision: ``auto`` (mixed on CUDA), ``fp32`` or ``amp``; stored resolved.
        compile: Whether ``torch.compile`` makes the training steps faster, after a while.
        graphs: Whether a GPU repeats training steps from a recording, see :mod:`helpers.recording`;
            not together with ``compile``. Not part of a run's identity: the steps are the same.
        cache_mb: MB that the outputs of the frozen part may take, few of them in memory and many in
            a file in ``artifacts/``; 0 computes them anew at every step, which is a run of its own:
            the network is the same, its costs are not.
        memory_mb: Memory in MB that the images may take; those of a larger dataset stay in a file
            and are read a batch at a time. Not part of a run's identity: the results are the same.
        threads: CPU threads of torch; 0 takes the library's choice.
        train_limit: Keep at most this many training images of each class, of a folder drawn at
            random; None keeps all.
        split_seed: Of the division into train, validation and test, and of that draw.
        on_corrupt: ``stop`` at images of a folder that cannot be read, or ``skip`` them.
        train: The recipe of ``original`` and ``retrain``.
        tuned: Which set of tuned unlearning recipes applies; empty for the paper's settings.
        seeds: How many seeds the notebooks run, from 0; not part of a run's identity.

    Source: arXiv 2411.11907 for the experiment's parts.
    Lesson: 00_start_here, "One configuration".
    """

    preset: str = "cpu"
    data: str = "digits"
    image_size: int = 32
    model: str = "digits_resnet"
    method: str = "prunelora"
    mode: str = "default"
    forget: int | tuple[int, ...] = 3
    earlier: tuple[int, ...] = ()
    seed: int = 0
    original_seed: int | None = None
    sparsity: float = 0.5
    pruning: str | None = None
    criterion: str = "l2"
    scope: str = "global"
    mask_data: str = "retain"
    rank: int = 8
    adapter: str = "lora"
    targets: str = "last_stage"
    norms: str = "patch"
    alpha: float | None = None
    dropout: float | None = None
    epochs: int | None = None
    lr: float | None = None
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    graphs: bool = False
    cache_mb: int = 1024
    memory_mb: int = 4096
    threads: int = 1
    train_limit: int | None = None
    split_seed: int = 0
    on_corrupt: str = "stop"
    train: Recipe = _DIGITS
    tuned: str = "digits"
    seeds: int = 5

    def __post_init__(self) -> None:
        """Validate and resolve the device; raises InputError."""
        choose("preset", self.preset, PRESETS)
        kind, _, path = str(self.data).partition(":")
        known = self.data in ("digits", "cifar10") or (kind == "folder" and path != "")
        ok = isinstance(self.data, str) and known
        check("data", self.data, ok, "known are digits, cifar10, folder:PATH")
        check("train", self.train, isinstance(self.train, Recipe), "a Recipe")
        _as_classes(self)
        for field, (low, high) in WHOLE_NUMBERS.items():
            value = getattr(self, field)
            ok = _whole(value) and low <= value <= high
            ok = ok or (value is None and field in ("epochs", "train_limit", "original_seed"))
            check(field, value, ok, f"a whole number from {low} to {high}")
        ok = _finite(self.sparsity) and 0 <= self.sparsity < 1
        check("sparsity", self.sparsity, ok, "a share in [0, 1)")
        ok = self.alpha is None or (_finite(self.alpha) and 1e-6 <= self.alpha <= 1e6)
        check("alpha", self.alpha, ok, "a number from 1e-06 to 1e+06")
        ok = self.lr is None or (_finite(self.lr) and self.lr > 0)
        check("lr", self.lr, ok, "a finite number above 0")
        ok = self.dropout is None or (_finite(self.dropout) and 0 <= self.dropout < 1)
        check("dropout", self.dropout, ok, "a share in [0, 1)")
        for field in ("model", "method"):  # which there are is known later
            value = getattr(self, field)
            check(field, value, isinstance(value, str), f"the name of a {field}")
        for field in ("compile", "graphs"):
            value = getattr(self, field)
            check(field, value, isinstance(value, bool), "True or False")
        if self.pruning is not None:
            choose("pruning", self.pruning, KINDS)
        for field, known_names in _NAMES:
            choose(field, getattr(self, field), known_names)
        _as_floats(self, *FLOATS)  # 1 and 1.0 are one configuration
        object.__setattr__(self, "device", _resolve_device(self.device))
        ok = not self.graphs or (self.device == "cuda" and not self.compile)
        check("graphs", self.graphs, ok, "False but on CUDA and without compile")
        if self.precision == "auto":
            object.__setattr__(self, "precision", "amp" if self.device == "cuda" else "fp32")

    def but(self, **changes: Any) -> RunConfig:
        """Return a copy with some fields changed.

        Args:
            **changes: Field names and new values.

        Returns:
            The changed, validated copy; this one stays as it is.

        Raises:
            InputError: If a field is unknown or a value not allowed.

        Source: :func:`dataclasses.replace`.
        Lesson: 00_start_here, "One configuration".
        """
        _check_fields("field", RunConfig, changes)
        return dataclasses.replace(self, **changes)

    @property
    def forgotten(self) -> tuple[int, ...]:
        """Every class that the network shall not know at the end, in ascending order."""
        newest = (self.forget,) if isinstance(self.forget, int) else self.forget
        return tuple(sorted({*self.earlier, *newest}))

    @property
    def start_seed(self) -> int:
        """The seed of the network that the method starts from."""
        return self.seed if self.original_seed is None else self.original_seed

    @property
    def unlearn(self) -> Recipe:
        """The recipe of the unlearning stage: tuned or the paper's, with the overrides applied."""
        changes = {"epochs": self.epochs, "lr": self.lr}
        return dataclasses.replace(
            self.tuned_recipe or PAPER_UNLEARN,
            **{k: v for k, v in changes.items() if v is not None},
        )

    @property
    def tuned_recipe(self) -> Recipe | None:
        """The recipe that was tuned for this method, before overrides; None has the paper's."""
        if self.mode != "default" or not self.tuned:
            return None
        known, own = TUNED[self.tuned], self.method.rpartition("+")[2]
        # tuned for so few epochs, for all; of prunelora+scrub, if it has none itself, that of scrub
        return known.get(f"{self.method}@{self.epochs}", known.get(self.method, known.get(own)))

    @property
    def lora_alpha(self) -> float:
        """LoRA's alpha, with the default resolved: twice the rank; 8 for rsLoRA, at every rank."""
        if self.alpha is not None:
            return self.alpha
        return 8.0 if self.adapter == "rslora" else 2.0 * self.rank

    @property
    def lora_dropout(self) -> float:
        """LoRA's dropout, with the mode's default resolved."""
        return self.dropout if self.dropout is not None else 0.1 * (self.mode == "paper")


_NAMES = (
    ("mode", MODES), ("criterion", CRITERIA), ("scope", SCOPES), ("mask_data", ("retain", "all")),
    ("adapter", ADAPTERS), ("targets", TARGETS), ("norms", NORMS), ("precision", PRECISIONS),
    ("on_corrupt", ("stop", "skip")), ("tuned", ("", *TUNED)),
)  # fmt: skip
WHOLE_NUMBERS = {
    "image_size": (8, 512), "cache_mb": (0, MOST), "memory_mb": (0, MOST), "seed": (0, MOST),
    "original_seed": (0, MOST), "rank": (1, MOST), "epochs": (1, MOST_EPOCHS),
    "threads": (0, 1024), "train_limit": (2, MOST), "split_seed": (0, MOST), "seeds": (1, 1000),
}  # fmt: skip
FLOATS = ("sparsity", "alpha", "dropout", "lr")


def _check_fields(name: str, kind: type, changes: Iterable[str]) -> None:
    known = tuple(f.name for f in dataclasses.fields(kind))
    for field in changes:
        choose(name, field, known)


def _resolve_device(device: str) -> str:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device that exists.

    Convolutions on CUDA keep all bits of float32 from then on (no TF32).
    """
    choose("device", device, DEVICES)
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        # else full precision would mean 10 bits in convolutions, and two forms of one network
        # would differ by more than the checks of relearning and of patches allow
        torch.backends.cudnn.allow_tf32 = False
        return "cuda"
    check("device", device, device == "auto", "no CUDA device was found here; use auto or cpu")
    return "cpu"


def _in_colab() -> bool:
    """Say whether this process runs in Google Colab.

    A notebook there has ``google.colab`` loaded; a command that it starts inherits the variable.
    """
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def get_config(preset: str | None = None, **changes: Any) -> RunConfig:
    """Build the configuration of a run from a preset and some changes.

    Args:
        preset: Name of the preset; None takes the environment variable HELPERS_PRESET, else ``gpu``
            in Colab with a GPU, else ``cpu``: on a machine of your own nothing is downloaded unless
            you ask for it, GPU or not.
        **changes: Fields of :class:`RunConfig` to set differently. Unless ``data`` is among them,
            the environment variable HELPERS_DATA, if set, takes the place of the preset's data: for
            notebooks on a machine that has the images but not the network. ``train`` may be a dict
            of what is different in the preset's own recipe.

    Returns:
        The validated configuration.

    Raises:
        InputError: If the preset or a field is unknown, or a value is not allowed.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    name = os.environ.get("HELPERS_PRESET") if preset is None else preset
    if not name and preset is None:
        name = "gpu" if _in_colab() and _resolve_device("auto") == "cuda" else "cpu"
    choose("preset", name, PRESETS)
    settings = {"preset": name, **PRESETS[name]}
    if os.environ.get("HELPERS_DATA"):
        settings["data"] = os.environ["HELPERS_DATA"]
    if name == "paper" and str(changes.get("model", "")).startswith("vit"):
        settings |= {"train": _CIFAR_VIT, "rank": 16}
    _check_fields("field", RunConfig, changes)
    if isinstance(train := changes.get("train"), dict):
        _check_fields("train", Recipe, train)
        own = settings.get("train", RunConfig.train)
        changes["train"] = dataclasses.replace(own, **train)
    return RunConfig(**{**settings, **changes})
