"""One run from configuration to record: done once, kept whole, read back.

A run lives in ``artifacts/<preset>/<hash>/``, where the hash covers everything that was asked for:
the version of this package, the pixels and labels, and those fields of the configuration that its
method uses. Another processor or another version of torch gives a somewhat other network; the
record names both, and the weights that the run started from, which are compared with those kept now
when it is read back. ``model.safetensors``, ``architecture.json`` and, where adapters were trained,
``patch/`` are written first and ``run.json`` last, so a folder with a ``run.json`` is whole. While
a run is being done its folder is claimed by a lock of the operating system, which ends with the
process: others wait, or go on to other runs, and none is ever done twice at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import helpers
from helpers import (
    audit,
    bars,
    data,
    files,
    frozen,
    ledger,
    models,
    objectives,
    parallel,
    patches,
    pruning,
    training,
    unlearning,
)
from helpers.config import RunConfig, check, home

log = logging.getLogger(__name__)

# The published code trains with the standard deviations of the second row and unlearns and
# evaluates with those of the first (paper mode does the same; grey images take the mean).
PAPER_STD = torch.tensor([0.2471, 0.2435, 0.2616]) / torch.tensor([0.2023, 0.1994, 0.2010])
MONITORED = 2000  # validation images, of all classes, that are followed through the training
_VERSIONS = (
    "torch", "torchvision", "peft", "torch-pruning", "numpy", "scikit-learn", "safetensors",
)  # fmt: skip
_NUMBERS = (
    "seconds", "trainable", "peak_memory", "macs", "sparsity", "file_bytes", "patch_bytes",
)  # fmt: skip
_REQUIRED = ("identity", "config", "metrics", "history", "ledger", "weights_sha256", "date",
             "versions", "hardware", *_NUMBERS)  # fmt: skip
_KEPT = ("run.json", "model.safetensors", "architecture.json")
_PATCH = ("patch.json", "patch.safetensors")
_UNTIL_KEPT = ("config.json", "checkpoint.safetensors", "tail-checkpoint.safetensors")
_LARGEST = 1e300  # of a number in a record


class Claimed(Exception):
    """Another process does this run at this moment; the message names its folder.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: What was asked for.
        folder: Where it is kept.
        record: The content of ``run.json``.
        from_disk: Whether it was read back and not trained now.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """

    config: RunConfig
    folder: Path
    record: dict[str, Any]
    from_disk: bool

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers of :func:`helpers.audit.evaluate` for the configuration's class."""
        return self.record["metrics"][_view(self.config)]

    @property
    def history(self) -> list[dict[str, float]]:
        """One row an epoch: epoch, loss, and the validation accuracies ``forget`` and ``retain``.

        Both are means over their classes; NaN where no image of them was followed.
        """
        return [self._parts(row) for row in self.record["history"]]

    @property
    def start(self) -> dict[str, float]:
        """What :attr:`history` begins with: epoch 0, and the two accuracies before the first step.

        Of what was pruned it is the pruned network. NaN in runs kept by versions that did not look.
        """
        return self._parts({"epoch": 0, **self.record.get("start", {})})

    def _parts(self, row: Mapping[str, float]) -> dict[str, float]:
        classes = {k: v for k, v in row.items() if k.isdigit()}
        mine = [classes.pop(str(c), math.nan) for c in self.config.forgotten]
        forget = sum(mine) / len(mine)
        retain = sum(classes.values()) / len(classes) if classes else math.nan
        kept = {k: v for k, v in row.items() if not k.isdigit()}
        return {**kept, "forget": forget, "retain": retain}

    @property
    def row(self) -> dict[str, Any]:
        """The run as one row of a table: method, seed, metrics in [0, 1], costs."""
        return {
            "method": self.config.method, "seed": self.config.seed,
            **{m: self.metrics[m] for m in audit.CLASSIC},
            "seconds": self.record["seconds"], "trainable": self.record["trainable"],
            "memory_mb": self.record["peak_memory"] / 1e6, "gmacs": self.record["macs"] / 1e9,
            "file_kb": self.record["file_bytes"] / 1e3, "sparsity": self.record["sparsity"],
        }  # fmt: skip

    def model(self, dataset: data.Dataset) -> nn.Module:
        """Load the network of the run.

        Args:
            dataset: The data of the run.

        Returns:
            The plain network in evaluation mode on the configuration's device.

        Raises:
            FileProblem: If the file is missing, damaged, or not the one that was written.

        Source: this project.
        Lesson: 00_start_here, "Where results are kept".
        """
        _check_weights(self.folder, self.record)
        return models.load(self.folder, unlearning.new_model(self.config, dataset))

    def patch(self, base: nn.Module) -> patches.Patch:
        """Load the patch of a run that trained adapters.

        Args:
            base: The network that the run started from.

        Returns:
            The patch, checked against the base and the network of the run.

        Raises:
            InputError: If the run trained every weight, or started from another network.
            FileProblem: If the patch is missing, damaged, or of another run.

        Source: this project.
        Lesson: 03_lora_adaptation, "Patches".
        """
        method = self.config.method
        has = unlearning.method(method).adapt == "lora"
        check("method", method, has, "one that trains adapters; this one changes every weight")
        place = self.folder / "patch"
        if not all((place / name).is_file() for name in _PATCH):
            raise files.FileProblem(f"{place} is not whole: {_remedy(self.folder)}")
        found = patches.load_patch(place, base)
        _check_weights(self.folder, self.record)
        weights, _ = files.load_tensors(self.folder / "model.safetensors")
        if found.result != files.digest(weights):
            raise files.FileProblem(
                f"{place} makes another network than the one of this run ({found.about}): "
                f"{_remedy(self.folder)}"
            )
        return found


def _view(cfg: RunConfig) -> str:
    """Name what metrics depend on beside the network: original serves every class and mode.

    Those that were measured in another way stay in the record, and the network is measured again.
    """
    return f"{cfg.mode}, class {', '.join(map(str, cfg.forgotten))}, audit {audit.VERSION}"


def identity(cfg: RunConfig, fingerprint: str) -> dict[str, Any]:
    """Collect what was asked for that determines the network of a run, and of a recipe the whole.

    Other settings that a method does not use are left out.

    Args:
        cfg: The configuration.
        fingerprint: Of the dataset.

    Returns:
        Plain data; two configurations with the same identity give the same network on one machine.

    Raises:
        InputError: If the method is unknown.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    method = unlearning.method(cfg.method)
    fields = ["model", "method", "seed", "device", "precision", "threads"]
    fields += ["compile"] if cfg.compile else []
    recipes = {"train": dataclasses.asdict(cfg.train)}
    if method.start == "original" or method.data == "retain":  # all but original know the class
        fields += ["forgotten"]
    if method.salient:
        recipes["forget_weight"] = 1.0  # earlier networks have the share of weights in its place
        if method.prune != "none":
            recipes["ranked"] = "what is kept"  # in networks made before, masked weights as well
    if method.start == "original":
        if cfg.earlier and (method.data in ("all", "forget") or method.salient):
            recipes["of_earlier"] = "no image"  # networks made before had them again
        fields += ["mode", "earlier", "start_seed"]
        recipes["unlearn"] = dataclasses.asdict(cfg.unlearn)
    if method.prune != "none":
        fields += unlearning.settings_of_pruning(cfg)
        recipes["pruning"] = unlearning.pruning_of(cfg)
    if method.prune != "none" or method.salient or method.objective in objectives.TEACHERS:
        recipes["costs"] = "of all stages"  # earlier records have those of the training alone
    if method.adapt == "lora":
        fields += unlearning.OF_ADAPTERS
        if not cfg.cache_mb:
            recipes["cache"] = False  # the same network, at other costs
    chosen = {name: getattr(cfg, name) for name in fields}
    return {"version": helpers.__version__, "data": fingerprint, **chosen, **recipes}


def unused(cfg: RunConfig, fields: Iterable[str]) -> list[str]:
    """Name those of some settings that a method, or the data, do not use.

    Args:
        cfg: The configuration.
        fields: Names of settings; those that have nothing to do with either are never named.

    Returns:
        The names of what the network does not depend on.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    used = {*identity(cfg, "")}
    method = unlearning.method(cfg.method)
    trained = method.start == "original" and method.objective != "none"
    of_a_folder = ("image_size", "on_corrupt")
    return [
        f for f in fields
        if (f in of_a_folder and not cfg.data.startswith("folder:")) or (
            f in IN_IDENTITY
            and (not trained if f in ("epochs", "lr") else IN_IDENTITY[f] not in used)
        )
    ]  # fmt: skip


# setting of a method -> its name in an identity
IN_IDENTITY = {
    "original_seed": "start_seed", "sparsity": "sparsity",
    "pruning": "pruning", "criterion": "criterion", "scope": "scope", "mask_data": "mask_data",
    "rank": "rank", "adapter": "adapter", "targets": "targets", "norms": "norms",
    "alpha": "lora_alpha", "dropout": "lora_dropout", "epochs": "unlearn", "lr": "unlearn",
}  # fmt: skip


def folder_of(cfg: RunConfig, dataset: data.Dataset) -> Path:
    """Return the folder in which a run is or will be kept.

    Args:
        cfg: The configuration.
        dataset: Its data.

    Returns:
        ``artifacts/<preset>/<hash>`` below :func:`helpers.config.home`.

    Raises:
        InputError: If the method is unknown.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    key = files.digest_json(identity(cfg, dataset.fingerprint))[:16]
    return home() / "artifacts" / cfg.preset / key


@training.in_turn()
def run(
    cfg: RunConfig,
    dataset: data.Dataset | None = None,
    progress: bool = True,
    cache: frozen.Cache | None = None,
    *,
    wait: bool = True,
    measured: bool | None = True,
    validated: bool = False,
) -> Run:
    """Do a run, or read it back if it was done before.

    A method that starts from the original network runs ``original`` first, with the same seed; one
    with earlier requests runs those first, one after another. Several processes, see
    :mod:`helpers.parallel`, train it together; the first writes it, and all must see its folder.
    Of several threads of a process one trains at a time, the others wait, see :mod:`helpers.turns`.

    Args:
        cfg: The configuration.
        dataset: Its data, if already loaded.
        progress: Whether to show bars.
        cache: Outputs of the frozen part, and the network to start from, kept from other runs.
        wait: Whether to wait while another process does this run.
        measured: Whether to fill the ledger of stages, which takes some dozens of passes; a run
            that was kept without is then done again. None fills it, and takes that one as it is.
        validated: Whether the configuration is known to fit the data, and need not be checked.

    Returns:
        The finished run.

    Raises:
        InputError: If the configuration cannot be run.
        FileProblem: If a file of the run is damaged or cannot be written.
        Interrupted: After Ctrl-C or the kernel's stop button; the same call goes on from there.
            Also while another process, or another training in this one, is waited for, where
            :func:`helpers.training.watched` stops.
        Claimed: If another process does this run, or one that it starts from, and ``wait`` is off.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    unlearning.set_threads(cfg)
    progress = progress and parallel.rank() == 0
    dataset = dataset or data.load_dataset(cfg, progress)
    if not validated:
        unlearning.validate(cfg, dataset)
    folder = folder_of(cfg, dataset)
    keep = partial(_kept, cfg, dataset, folder, wait, measured)
    if found := parallel.first(keep):
        return found
    how = {"wait": wait, "measured": measured, "validated": True}
    earlier, original, begun = before(cfg), None, {}
    if earlier is not None:
        start = run(earlier, dataset, progress, cache, **how)
        begun = {"start_sha256": start.record["weights_sha256"]}
        key = start.folder, start.record["weights_sha256"]
        load = partial(start.model, dataset)
        original = cache.once(key, load, "original") if cache else load()
    with _claim(folder, wait):
        if found := parallel.first(partial(keep, claimed=True)):  # somebody else did it meanwhile
            return found
        plain = dataclasses.asdict(cfg)
        parallel.first(partial(files.write_json, folder / "config.json", plain))  # fails early
        method = unlearning.method(cfg.method)
        outcome = unlearning.unlearn(
            original, as_trained(dataset, cfg), cfg,
            monitor=dataset.validation.sample(MONITORED),
            checkpoint=folder / "checkpoint.safetensors",
            progress=f"{cfg.method}, seed {cfg.seed}" if progress else None,
            cache=cache, measured=measured is not False and method.start == "original",
        )  # fmt: skip
        return parallel.first(partial(_write, cfg, dataset, folder, outcome, begun))


def _kept(
    cfg: RunConfig, dataset: data.Dataset, folder: Path, wait: bool, measured: bool | None,
    claimed: bool = False,
) -> Run | None:  # fmt: skip
    """Read a run back; None if it was not finished, or its ledger is wanted and was left out."""
    if not is_kept(folder):
        return None
    found = _read(cfg, dataset, folder, wait, claimed)
    wanted = measured and unlearning.method(cfg.method).start == "original"
    if wanted and not found.record["ledger"]:
        return None
    if not claimed and any(map(_is_left_over, os.listdir(folder))):
        # whoever holds the claim needs them, or removes them; and what cannot be written is read
        with contextlib.suppress(Claimed, OSError), _claim(folder, wait=False):
            _tidy(folder)
    _compare_start(found, dataset)
    return found


def _compare_start(found: Run, dataset: data.Dataset) -> None:
    """Warn where a run started from another network than the one that is kept now."""
    earlier, begun = before(found.config), found.record.get("start_sha256")
    if earlier is None or begun is None:  # records of earlier versions do not tell
        return
    folder = folder_of(earlier, dataset)
    # where none is kept there is nothing to pair with; one that is damaged is named when it is read
    with contextlib.suppress(files.FileProblem):
        if files.read_json(folder / "run.json", ("weights_sha256",))["weights_sha256"] != begun:
            log.warning("%s started from another network than the one that is kept now in %s, which"
                        " was made anew: do not compare them; %s", found.folder, folder,
                        _remedy(found.folder))  # fmt: skip


@contextlib.contextmanager
def _claim(folder: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder; its file is removed with its purpose, once the run is kept.

    It is removed while it is held. A process that had opened it before finds, once it gets the
    lock, that the file has lost its name, and begins anew; so that never two hold it at once
    (filelock looks since 3.25; before, a moment is left in which two may).
    """
    if parallel.rank():  # the first process claims it for all
        yield
        return
    path = folder / "lock"
    with contextlib.ExitStack() as held:
        if not held.enter_context(files.locked(path)):
            if not wait:
                raise Claimed(f"{folder} is being worked on by another process")
            log.info("%s is being worked on by another process: waiting for it", folder)
            held.enter_context(files.locked(path, wait=True, meanwhile=training.waiting))
        yield
        if is_kept(folder):
            with contextlib.suppress(PermissionError):  # of Windows, where a held file stays
                path.unlink(missing_ok=True)


def is_kept(folder: Path) -> bool:
    """Say whether a run was finished.

    Args:
        folder: From :func:`folder_of`.

    Returns:
        Whether its record, which is written last, and both files of its network are there.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    return all((folder / name).exists() for name in _KEPT)


def before(cfg: RunConfig) -> RunConfig | None:
    """Return the run that a run starts from.

    Args:
        cfg: The configuration of a run.

    Returns:
        That of the request before it, or of ``original``; None for methods that start from scratch.

    Raises:
        InputError: If the method is unknown.

    Source: this project.
    Lesson: 00_start_here, "Where results are kept".
    """
    if unlearning.method(cfg.method).start != "original":
        return None
    *others, last = cfg.earlier or (None,)
    if last is not None:
        return cfg.but(forget=last, earlier=tuple(others))
    return cfg.but(method="original", seed=cfg.start_seed, original_seed=None, earlier=())


def as_evaluated(dataset: data.Dataset, cfg: RunConfig) -> data.Dataset:
    """Return the data as a mode evaluates it: paper mode with the published second normalisation.

    Args:
        dataset: As loaded.
        cfg: Gives the mode.

    Returns:
        The same dataset, or a copy with other standard deviations.

    Source: defect 1 of the published code.
    Lesson: 01_baseline_training, "Limits and pitfalls".
    """
    if cfg.mode == "default":
        return dataset
    return dataset.with_std(PAPER_STD if len(dataset.std) == 3 else PAPER_STD.mean())


def as_trained(dataset: data.Dataset, cfg: RunConfig) -> data.Dataset:
    """Return the data as a run trains on it: paper mode unlearns with what it evaluates with.

    Args:
        dataset: As loaded.
        cfg: Gives the method and the mode.

    Returns:
        The same dataset for methods that start from scratch, else as :func:`as_evaluated`.

    Source: defect 1 of the published code.
    Lesson: 01_baseline_training, "Limits and pitfalls".
    """
    return (
        dataset if unlearning.method(cfg.method).start == "scratch" else as_evaluated(dataset, cfg)
    )


def _write(
    cfg: RunConfig, dataset: data.Dataset, folder: Path, outcome: unlearning.Outcome,
    begun: Mapping[str, str],
) -> Run:  # fmt: skip
    with files.replaced(folder, "run.json") as new:  # one without a ledger may be there, and stays
        record = _write_files(cfg, dataset, new, outcome, begun)
    _tidy(folder)
    return Run(cfg, folder, record, from_disk=False)


def _write_files(
    cfg: RunConfig, dataset: data.Dataset, folder: Path, outcome: unlearning.Outcome,
    begun: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    model, fit = outcome.model, outcome.fit
    path, rows, size = models.save(model, folder), outcome.ledger, 0
    weights = files.sha256(path)
    dense = unlearning.new_model(cfg, dataset)
    names = models.layers(dense).prunable
    if outcome.patch is not None:
        place = patches.save_patch(outcome.patch, folder / "patch")
        size = sum((place / name).stat().st_size for name in _PATCH)
    if rows:
        again = models.load(folder, dense)
        rows = [*rows, ledger.measure(again, "reloaded", names)]
    metrics = audit.evaluate(model, as_evaluated(dataset, cfg), cfg.forgotten)
    record = {
        "identity": identity(cfg, dataset.fingerprint),
        "config": dataclasses.asdict(cfg),
        "metrics": {_view(cfg): metrics},
        "seconds": outcome.seconds, "training_seconds": fit.seconds,
        "steps": fit.steps, "start": outcome.start, "history": fit.history,
        "trainable": outcome.trainable, "parameters": models.count_parameters(model),
        "peak_memory": fit.peak_memory, "macs": outcome.macs,
        "sparsity": pruning.sparsity(model, names), "file_bytes": path.stat().st_size,
        "channels_gone": pruning.channels_gone(model, dense, names),
        "patch_bytes": size, "ledger": rows, "frozen_once": outcome.frozen_once,
        "weights_sha256": weights, **begun,
        "skipped": list(dataset.skipped),
        **environment(cfg.device),
    }  # fmt: skip
    files.write_json(folder / "run.json", record)
    return record


def _is_left_over(name: str) -> bool:
    """Say whether a file beside a record is there because a process was killed, or is at work."""
    return name in (*_UNTIL_KEPT, files.NEW, "lock") or name.endswith(".part")


def _tidy(folder: Path) -> None:
    """Remove what was needed until a run was kept, and what killed processes left half-written."""
    kept = (folder / "run.json").stat().st_mtime_ns
    for path in (folder / name for name in _UNTIL_KEPT):
        # a later one is of a run without a ledger that is being done again
        if path.exists() and path.stat().st_mtime_ns <= kept:
            path.unlink(missing_ok=True)
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)
    shutil.rmtree(folder / files.NEW, ignore_errors=True)


def _read(
    cfg: RunConfig, dataset: data.Dataset, folder: Path, wait: bool = True, claimed: bool = False
) -> Run:
    path = folder / "run.json"
    record = files.read_json(path, _REQUIRED)
    if record["identity"] != json.loads(json.dumps(identity(cfg, dataset.fingerprint))):
        raise files.FileProblem(
            f"{path} belongs to another run than its folder says: {_remedy(folder)}"
        )
    found = Run(cfg, folder, record, from_disk=True)
    if not _sound(record):
        raise files.FileProblem(f"{path} holds values that no run has: {_remedy(folder)}")
    _check_weights(folder, record)
    if _view(cfg) not in record["metrics"]:  # another class or mode, or measured in another way
        if not claimed:
            with _claim(folder, wait):  # the record must not lose what another process adds
                return _read(cfg, dataset, folder, claimed=True)
        seen = as_evaluated(dataset, cfg)
        metrics = audit.evaluate(found.model(dataset), seen, cfg.forgotten)
        record["metrics"][_view(cfg)] = metrics
        files.write_json(path, record)
    return found


def _check_weights(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "model.safetensors"
    if path.is_file() and files.sha256(path) != record["weights_sha256"]:
        raise files.FileProblem(
            f"{path} is not the file that this run wrote (its SHA-256 differs from the one in "
            f"run.json): {_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and run the same command again"


def _sound(record: dict[str, Any]) -> bool:
    """Say whether the numbers of a record are numbers, and the shares between 0 and 1."""

    def within(value: object, most: float, least: float = 0) -> bool:
        # True is an int, too
        return type(value) in (int, float) and least <= value <= most

    def rows(table: Any, needed: Collection[str], ok: Callable[[str, Any], bool]) -> bool:
        return isinstance(table, list) and all(
            isinstance(row, dict)
            and row.keys() >= {*needed}
            and all(ok(*pair) for pair in row.items())
            for row in table
        )

    def of_an_epoch(name: str, value: Any) -> bool:  # a loss that is ascended lies below zero
        return within(value, 1) if name.isdigit() else within(value, _LARGEST, -_LARGEST)

    def of_a_stage(name: str, value: Any) -> bool:
        if name == "channels":
            return isinstance(value, dict) and all(within(n, _LARGEST) for n in value.values())
        return isinstance(value, str) if name == "stage" else within(value, _LARGEST)

    views = record["metrics"].values() if isinstance(record["metrics"], dict) else [None]
    shares = [v.get(m) if isinstance(v, dict) else None for v in views for m in audit.CLASSIC]
    return (
        all(within(share, 1) for share in shares)
        and all(within(record[name], _LARGEST) for name in _NUMBERS)
        and rows(record["history"], ("epoch", "loss"), of_an_epoch)
        and rows([record.get("start", {})], (), of_an_epoch)
        and rows(record["ledger"], ("stage", "channels"), of_a_stage)
        and isinstance(record["date"], str)
        and all(isinstance(record[name], dict) for name in ("versions", "hardware"))
    )


def environment(device: str = "cpu") -> dict[str, Any]:
    """Describe where a measurement was made.

    Args:
        device: ``cpu`` or ``cuda``.

    Returns:
        Plain data: date (UTC), versions, hardware.

    Source: every number stands beside its hardware, as in cifar10-airbench.
    Lesson: 00_start_here, "Where results are kept".
    """
    hardware = {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.system()}
    hardware |= {"threads": torch.get_num_threads(), "device": device}
    if parallel.processes() > 1:
        hardware["processes"] = parallel.processes()
    if device == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "helpers": helpers.__version__,
            **_versions(),
        },
        "hardware": hardware,
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _VERSIONS}


@functools.cache
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def run_all(
    cfg: RunConfig,
    methods: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    dataset: data.Dataset | None = None,
    progress: bool = True,
    measured: bool | None = True,
) -> list[Run]:
    """Do the runs of several methods and seeds, one after another; finished ones are read back.

    Args:
        cfg: Everything else.
        methods: Names of methods; None takes all, in the order of the table.
        seeds: The seeds; None takes 0 to ``cfg.seeds`` - 1.
        dataset: The data, if already loaded.
        progress: Whether to show bars: one for each training and, where several are to be done,
            one above them, of all their epochs, with the time left. It counts an epoch of a method
            that trains little like any other, so it rather promises too long.
        measured: As for :func:`run`.

    Returns:
        The runs, method by method.

    Raises:
        InputError: If a configuration cannot be run; nothing is trained before all are checked.
        FileProblem: If a file of a run is damaged or cannot be written.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    methods = list(unlearning.METHODS) if methods is None else list(methods)
    seeds = range(cfg.seeds) if seeds is None else seeds
    progress = progress and parallel.rank() == 0
    wanted = [cfg.but(method=m, seed=s) for m in methods for s in seeds]
    check("methods x seeds", len(wanted), bool(wanted), "at least one run")
    dataset = dataset or data.load_dataset(cfg, progress)
    for one in wanted:
        unlearning.validate(one, dataset)
    cache = frozen.Cache(cfg.cache_mb * 1_000_000)
    missing = parallel.first(partial(_missing, wanted, dataset))
    done: dict[RunConfig, Run] = {}
    with _bar(missing, progress) as bar:
        for one in missing:
            done[one] = run(one, dataset, progress, cache, measured=measured)
            bar.update(_epochs(one))
    return [done.get(one) or run(one, dataset, progress, cache, measured=measured)
            for one in wanted]  # fmt: skip


def _missing(wanted: Iterable[RunConfig], dataset: data.Dataset) -> list[RunConfig]:
    """List what has to be done for some runs, each once, and what a run starts from before it."""
    missing: dict[Path, RunConfig] = {}
    for one in wanted:
        chain: dict[Path, RunConfig] = {}
        while one is not None and not is_kept(folder := folder_of(one, dataset)):
            chain[folder], one = one, before(one)
        missing |= {folder: chain[folder] for folder in reversed(chain) if folder not in missing}
    return list(missing.values())


def _epochs(cfg: RunConfig) -> int:
    method = unlearning.method(cfg.method)
    if method.objective == "none":
        return 0
    return (cfg.train if method.start == "scratch" else cfg.unlearn).epochs


def _bar(missing: list[RunConfig], progress: bool) -> Any:
    return bars.show(
        text=f"{len(missing)} runs", total=sum(map(_epochs, missing)), unit="epoch", leave=False,
        smoothing=0, disable=not progress or len(missing) < 2,
    )  # fmt: skip


def results_folder() -> Path:
    """Return the folder of committed measurements.

    Returns:
        ``results/`` of a clone, or the copy inside an installed package.

    Raises:
        FileProblem: If the installation has neither.

    Source: this project.
    Lesson: 00_start_here, "What it costs".
    """
    package = Path(helpers.__file__).parent
    for folder in (package / "results", package.parent / "results"):
        if folder.is_dir():
            return folder
    raise files.FileProblem(f"no results in {package} or beside it: install the package again")
