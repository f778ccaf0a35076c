"""The one training loop, used by every method, and prediction.

Everything random in an epoch is drawn from its own (seed, epoch, step), so a run that was stopped
in the middle and resumed ends with the same numbers as one that was not. Several processes, see
:mod:`helpers.parallel`, run the same loop on their shares of the same batches.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import bars, files, models, parallel, recording, turns
from helpers.config import InputError, Recipe, check
from helpers.data import Dataset, ImageSet, at_most, batches, per_pass
from helpers.ledger import count_saved, counting

log = logging.getLogger(__name__)

# (model, images, labels, share of the training that is done) -> loss
Objective = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
WARM_UP = 0.2  # share of a onecycle schedule in which the learning rate rises
COUNTED, FEW = 2**20, 8  # numbers in a batch whose operations are counted whole; images of others
CHECKPOINT_SECONDS = 60  # at most about this much work is lost when a process is killed


class Interrupted(KeyboardInterrupt):
    """Training was stopped by the user; the message says where it can be taken up again."""


@dataclass(frozen=True)
class _Watch:
    stop: threading.Event
    step: Callable[[int, int], object]
    waits: Callable[[str], object]


_WATCH: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar("watch", default=None)


@contextlib.contextmanager
def watched(
    stop: threading.Event, step: Callable[[int, int], object] = lambda done, total: None,
    waits: Callable[[str], object] = lambda whom: None,
) -> Iterator[None]:  # fmt: skip
    """Follow and stop, from another thread, what trains while the context lasts.

    Signals reach the main thread only; a training in a thread of its own needs another way.

    Args:
        stop: Once it is set, the training saves its checkpoint, if it has one, and ends after the
            current step with :class:`Interrupted`.
        step: Called after each step with the steps that are done, and their total.
        waits: Called with what is waited for, while another process or another thread trains.

    Yields:
        Nothing.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """
    token = _WATCH.set(_Watch(stop, step, waits))
    try:
        yield
    finally:
        _WATCH.reset(token)


def waiting(whom: str = "another process") -> None:
    """Tell whoever watches that somebody else is waited for; leave, if they want it.

    Args:
        whom: Who is waited for.

    Raises:
        Interrupted: If :func:`watched` was told to stop.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """
    watch = _WATCH.get()
    if watch is None:
        return
    if watch.stop.is_set():
        raise Interrupted(f"stopped while waiting for {whom}; nothing was begun")
    watch.waits(whom)


def in_turn() -> contextlib.AbstractContextManager[None]:
    """Train while no other thread of this process does, see :mod:`helpers.turns`.

    Returns:
        A context, or a decorator; while it waits, :func:`waiting` is called now and then.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """
    return turns.taken(_waiting_for_a_turn)


def _waiting_for_a_turn() -> None:
    waiting("another training in this process")


@dataclass
class Fit:
    """What one call of :func:`fit` did.

    Attributes:
        history: One row an epoch: epoch, steps, loss (mean over the epoch), lr (at its end), and
            under the index of each class, as text, the accuracy in [0, 1] on its monitored images.
        seconds: Time spent training, without the monitoring.
        steps: Optimiser steps.
        peak_memory: Bytes, of one process; on CUDA the peak of its allocator, on the CPU parameters
            + gradients + optimiser state + tensors saved for the backward pass.
        macs: Multiply-accumulates of all forward and backward passes, counted for one batch; of all
            processes together.

    Source: this project.
    Lesson: 01_baseline_training, "Train".
    """

    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    peak_memory: int = 0
    macs: int = 0


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor, share: float = 0.0) -> Tensor:
    """Return the mean cross-entropy; on the retain set this is the paper's unlearning objective.

    Args:
        model: (B, C, H, W) float32 -> (B, classes) logits.
        images: A batch, normalised.
        labels: (B,) int64.
        share: Of the training that is done, in [0, 1); unused here.

    Returns:
        A scalar.

    Source: arXiv 2411.11907, section 2.
    Lesson: 04_class_unlearning, "The idea".
    """
    return F.cross_entropy(model(images), labels)


def mixup(concentration: float) -> Objective:
    """Build the cross-entropy of images blended in pairs.

    Args:
        concentration: Both parameters of the Beta distribution of the blend; above 0.

    Returns:
        An objective.

    Source: Zhang et al. 2017 (arXiv 1710.09412); used for the paper's ViT.
    Lesson: 01_baseline_training, "The training recipe".
    """

    def objective(model: nn.Module, images: Tensor, labels: Tensor, share: float = 0.0) -> Tensor:
        blend = torch.distributions.Beta(concentration, concentration).sample().item()
        other = torch.randperm(len(labels)).to(labels.device)
        logits = model(blend * images + (1 - blend) * images[other])
        losses = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels[other])
        return blend * losses[0] + (1 - blend) * losses[1]

    return objective


def fit(
    model: nn.Module,
    part: ImageSet,
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    objective: Objective = cross_entropy,
    after_step: Callable[[], None] | None = None,
    frozen: Iterable[nn.Module] = (),
    monitor: ImageSet | None = None,
    checkpoint: Path | None = None,
    about: str = "",
    settings: Mapping[str, Any] = MappingProxyType({}),
    precision: str = "auto",
    compile: bool = False,
    graphs: bool = False,
    progress: str | None = None,
) -> Fit:
    """Train a network on some images by a recipe. In place.

    Inside of :func:`helpers.parallel.joined` several processes do it together: the recipe's batch
    is that of all of them, and what comes out is that of one process but for rounding, and for
    dropout, which each draws for itself.

    Args:
        model: (B, C, H, W) float32 -> logits; on the device of the images. Only parameters that
            require a gradient move. Left in evaluation mode.
        part: The images to train on, or the features of a frozen part.
        dataset: Gives the normalisation.
        recipe: Optimiser, schedule, epochs, batch, augmentation.
        seed: Of the order, the augmentation and dropout.
        objective: The loss of a batch; MixUp where the recipe says so and none is given.
        after_step: Called after each optimiser step, for example to hold a mask.
        frozen: Modules that stay in evaluation mode, such as a BatchNorm whose statistics must not
            move.
        monitor: Images, or features of a frozen part, on which the accuracy of each class is
            measured after each epoch, outside the measured time.
        checkpoint: Where to leave the state when interrupted, and once a minute; taken up from
            there if it exists, and refused if it is of another recipe, seed, network (its shapes)
            or of other images (their labels), or of another ``about`` or other ``settings``. It
            stays: remove it when the result is safe.
        about: What the training is for, where the images do not tell: a method that sees all
            images, and the classes that it forgets.
        settings: What else a checkpoint must agree on, by name: which network was there before, and
            how it was prepared. Plain values, which JSON keeps as they are.
        precision: ``fp32``, ``amp`` (mixed), or ``auto``: mixed on CUDA.
        compile: Whether ``torch.compile`` makes the training steps faster; the first ones wait for
            it, which counts as training. Numbers round otherwise.
        graphs: Whether a GPU repeats the passes from a recording (a CUDA graph) after some steps,
            see :mod:`helpers.recording`: the same steps, sooner. Only for a network whose passes
            are alike but for the numbers drawn by torch; not with ``compile`` or several processes.
        progress: The text of a progress bar; None shows none.

    Returns:
        The history and the costs.

    Raises:
        Interrupted: After Ctrl-C or the kernel's stop button; also while another thread of this
            process trains, where :func:`watched` stops.
        FileProblem: If a checkpoint cannot be read or written.
        InputError: If there are no images, training diverges to a loss that is not finite, or the
            network cannot be compiled or recorded.

    Source: this project; mixed precision as in the PyTorch AMP recipe.
    Lesson: 01_baseline_training, "Train".
    """
    if objective is cross_entropy and recipe.mixup:
        objective = mixup(recipe.mixup)
    size, n = recipe.batch_size, len(part)
    check("images", n, n > 0, "at least one image to train on")
    per_epoch = -(-n // size) - (n % size == 1 and n > 1)
    frozen = tuple(frozen)
    flat = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d) and m not in frozen]
    check("images", n, n > 1 or not flat, "at least two: BatchNorm1d needs a variance")
    watch = _WATCH.get()
    # the random state that dropout and MixUp use is set anew for every step, then given back
    random = turns.own_random_state(_cuda_devices(model), _waiting_for_a_turn)
    stack = contextlib.ExitStack()
    with random, _stop_requested() as stop, parallel.whole_batch_norms(model), stack:
        stack.enter_context(torch.enable_grad())  # the caller may have switched it off
        parallel.as_first([*model.parameters(), *model.buffers()])
        device = str(part.images.device)
        loop = _Loop(model, recipe, device, precision, frozen, compile, graphs)
        stack.callback(loop.release)
        if checkpoint is not None:
            loop.origin, loop.settings = _origin(model, part, seed, about), dict(settings)
        if checkpoint is not None and parallel.first(checkpoint.exists):
            loop.restore(checkpoint)
        bar = bars.show(text=progress, total=recipe.epochs * per_epoch, initial=loop.fit.steps,
                        disable=progress is None, leave=False)  # fmt: skip
        for epoch in range(len(loop.fit.history), recipe.epochs):
            loop.start_epoch()
            source = batches(part, size, augment=recipe.augment, seed=(seed, epoch))
            with contextlib.closing(source):  # also where what is raised keeps it
                for images, labels in itertools.islice(source, loop.steps_in_epoch, None):
                    images = dataset.normalise(images)
                    if len(labels) == size:
                        loop.record(images, left=recipe.epochs * per_epoch - loop.fit.steps)
                    loop.seed(seed * 1_000_003 + loop.fit.steps)
                    share = loop.fit.steps / (recipe.epochs * per_epoch)
                    loop.step(objective, images, labels, share, after_step)
                    bar.update()
                    if watch is not None:
                        watch.step(loop.fit.steps, bar.total)
                    loop.pause(stop, checkpoint, bar)
            loop.end_epoch(parallel.shared(model), dataset, monitor)
            loop.pause(stop, checkpoint, bar)
        bar.close()
        loop.release()
        if not loop.fit.macs:
            batch = next(batches(part, size, augment=recipe.augment, seed=(seed, 0)))
            images, labels = (tensor[: -(-len(tensor) // parallel.size())] for tensor in batch)
            with parallel.alone():
                counted = loop.count_macs(objective, images, labels, dataset)
            loop.fit.macs = counted * loop.fit.steps * n // (per_epoch * len(labels))
        if parallel.agreed(stop.is_set()):  # meanwhile
            loop.started = time.perf_counter()
            loop.pause(stop, checkpoint, bar)
    model.eval()
    return loop.fit


def _take_workspaces(device: torch.device) -> None:
    """Let the matrix library take the memory on a GPU that it keeps until the process ends.

    Else the first training of a process seems to need it: some tens of MB more than the next.
    """
    numbers = torch.ones(2, 2, device=device, requires_grad=True)
    nn.functional.linear(numbers, numbers, numbers[0]).sum().backward()  # both directions have one


class _Loop:
    """The state of a training run that must survive an interruption."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, device: str, precision: str,
        frozen: tuple[nn.Module, ...], compile: bool, graphs: bool,
    ) -> None:  # fmt: skip
        self.model, self.recipe, self.device = model, recipe, torch.device(device)
        self.frozen, self.compiled = frozen, compile
        # called in the model's place; its parameters are the model's
        self.called = parallel.shared(torch.compile(model) if compile else model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.parameters, recipe)
        self.dtype = half_precision(self.device, precision)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.dtype == torch.float16, init_scale=2.0**16
        )
        self.recorded: recording.Recorded | None = None
        if graphs:
            ok = recording.possible(self.device) and not compile and parallel.size() == 1
            check("graphs", graphs, ok, "False but on CUDA, in one process and without compile")
            self.called = self.recorded = recording.Recorded(model, self.dtype)
        self.fit, self.lr = Fit(), recipe.lr
        self.steps_here = 0  # by this process, since it took the training up
        self.steps_in_epoch, self.images, self.loss_sum = 0, 0, 0.0
        self.saved_at, self.origin = time.monotonic(), ""
        self.settings: dict[str, Any] = {}
        self.others = 0  # bytes on the GPU that do not belong to this training
        if self.device.type == "cuda":
            _take_workspaces(self.device)
            kept = [*model.parameters(), *model.buffers()]
            own = sum(t.numel() * t.element_size() for t in kept)
            self.others = torch.cuda.memory_allocated(self.device) - own

    def seed(self, value: int) -> None:
        # not torch.manual_seed: where CUDA is not in use it formats the call stack every time
        torch.default_generator.manual_seed(value)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(value)

    def record(self, images: Tensor, left: int) -> None:
        """Have the steps to come repeated, where that pays."""
        if self.recorded is None or self.recorded.example is not None:
            return
        if self.steps_here >= recording.EAGER and left >= recording.LEAST:
            self.recorded.record(images)

    def release(self) -> None:
        if self.recorded is not None:
            self.recorded.release()

    def start_epoch(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.started = time.perf_counter()

    def step(
        self, objective: Objective, images: Tensor, labels: Tensor, share: float,
        after_step: Callable[[], None] | None,
    ) -> None:  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr = self.recipe.lr * schedule(self.recipe.schedule, share)
        self.optimizer.zero_grad(set_to_none=True)
        if self.recorded is not None:
            self.recorded.next_step()
        measured = self.fit.peak_memory == 0 and self.device.type == "cpu"
        amp = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
        counting = count_saved(self.model) if measured else contextlib.nullcontext([0])
        with _compiler_named() if self.compiled else contextlib.nullcontext():
            with counting as saved, amp:
                loss = objective(self.called, images, labels, share)
            self.scaler.scale(loss).backward()
        parallel.average_gradients(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if after_step is not None:
            after_step()
        if measured:
            self.fit.peak_memory = saved[0] + self._resident_bytes()
        self.loss_sum += loss.detach() * len(labels)  # stays on the device: no wait for the GPU
        self.images += len(labels)
        self.fit.steps += 1
        self.steps_in_epoch += 1
        self.steps_here += 1

    def count_macs(
        self, objective: Objective, images: Tensor, labels: Tensor, dataset: Dataset
    ) -> int:
        """Count one step, outside the clock; what it moves is put back.

        The count is made in float32 and by the plain form of attention, which can take far more
        memory than the step did. So of large images it is made of few, twice: what grows with
        their number, and what does not, follow.
        """
        if images.numel() <= COUNTED or len(images) <= 2 * FEW:
            return self._count(objective, dataset.normalise(images), labels)
        one, two = (
            self._count(objective, dataset.normalise(images[:n]), labels[:n])
            for n in (FEW, 2 * FEW)
        )
        return one + (two - one) * (len(images) - FEW) // FEW

    def _count(self, objective: Objective, images: Tensor, labels: Tensor) -> int:
        self.model.train()
        for module in self.frozen:
            module.eval()
        with models.unmoved(self.model), counting() as counter:
            objective(self.model, images, labels, 0.0).backward()
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops() // 2

    def end_epoch(self, model: nn.Module, dataset: Dataset, monitor: ImageSet | None) -> None:
        loss = float(self.loss_sum) / self.images  # waits for the GPU
        self._refuse_divergence()
        self._stop_clock()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) - self.others
            self.fit.peak_memory = max(self.fit.peak_memory, peak)
        row = {"epoch": len(self.fit.history) + 1, "steps": self.fit.steps, "loss": loss,
               "lr": self.lr}  # fmt: skip
        self.fit.history.append(row | by_class(model, monitor, dataset))
        self.started = time.perf_counter()  # monitoring is not training
        self.steps_in_epoch, self.images, self.loss_sum = 0, 0, 0.0

    def _stop_clock(self) -> None:
        self.fit.seconds += time.perf_counter() - self.started
        self.started = time.perf_counter()

    def _resident_bytes(self) -> int:
        state = [v for s in self.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        kept = [*self.model.parameters(), *self.model.buffers(), *self.parameters, *state]
        return sum(t.numel() * t.element_size() for t in kept)  # parameters again: gradients

    def _refuse_divergence(self) -> None:
        if not math.isfinite(total := float(self.loss_sum)):
            raise InputError(
                f"training diverged: the loss of epoch {len(self.fit.history) + 1} is {total}; use "
                f"a smaller learning rate than lr = {self.recipe.lr}"
            )

    def pause(self, stop: threading.Event, checkpoint: Path | None, bar: Any) -> None:
        """Save if it is time, and leave if the user asked for it."""
        if parallel.agreed(stop.is_set()):
            self._stop_clock()
            bar.close()
            where = f"stopped after {self.fit.steps} of {bar.total} steps"
            if checkpoint is None:
                raise Interrupted(f"{where}; nothing was kept: no checkpoint was asked for")
            parallel.first(lambda: self.save(checkpoint))
            raise Interrupted(f"{where}; kept in {checkpoint}. Run the same again to go on")
        due = time.monotonic() - self.saved_at > CHECKPOINT_SECONDS
        if checkpoint is not None and due and parallel.rank() == 0:
            self._stop_clock()
            self.save(checkpoint)
            self.started = time.perf_counter()

    def save(self, path: Path) -> None:
        self._refuse_divergence()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            values = {k: v for k, v in state.items() if torch.is_tensor(v)}
            tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
        plain = {
            "steps_in_epoch": self.steps_in_epoch, "images": self.images, "lr": self.lr,
            "loss_sum": float(self.loss_sum), "scaler": self.scaler.state_dict(),
            "fit": vars(self.fit), "recipe": vars(self.recipe), "origin": self.origin,
            "settings": self.settings,
        }  # fmt: skip
        files.save_tensors(path, tensors, plain)
        self.saved_at = time.monotonic()

    def restore(self, path: Path) -> None:
        tensors, plain = files.load_tensors(path)
        try:
            if plain["recipe"] != vars(self.recipe):
                raise KeyError("the same recipe")
            if plain["origin"] != self.origin:
                raise ValueError("it is of another seed, of other images, of another network, or "
                                 "for something else")  # fmt: skip
            found = plain.get("settings", self.settings)  # earlier versions did not keep them
            for name in sorted(found.keys() | self.settings.keys()):
                was, wanted = found.get(name), self.settings.get(name)
                if was != wanted:
                    raise ValueError(f"{name} was {was!r} and is {wanted!r}")
            own = self.model.state_dict()
            found = {k: tensors[f"model.{k}"].to(v) for k, v in own.items()}
            models.put_state(self.model, found)
            states: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".")
                    states.setdefault(int(index), {})[key] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self._check_state(states)
            self.optimizer.load_state_dict({"state": states, "param_groups": groups})
            self.fit = Fit(**plain["fit"])
            self.steps_in_epoch, self.images = plain["steps_in_epoch"], plain["images"]
            self.loss_sum, self.lr = plain["loss_sum"], plain["lr"]
            self.scaler.load_state_dict(plain["scaler"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise files.FileProblem(
                f"{path} is not a checkpoint of this run ({error}): delete it and run again"
            ) from error
        log.info("going on from %s: %d steps are done", path, self.fit.steps)

    def _check_state(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Refuse a state that is no parameter's: the fused step does not look at sizes."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        kinds = {"momentum_buffer"}
        if self.recipe.optimizer != "sgd":
            kinds = {"step", "exp_avg", "exp_avg_sq"}
        # a new SGD has one for each parameter, a new Adam none: some may never get a gradient
        missing = self.optimizer.state_dict()["state"].keys() - states.keys()
        if missing or any(state.keys() != kinds for state in states.values()):
            raise ValueError("the state of its optimiser is not whole")
        for index, state in states.items():
            parameter = parameters[index]
            for key, value in state.items():
                same = (value.shape, value.dtype) == (parameter.shape, parameter.dtype)
                if not same and key != "step":
                    raise ValueError(f"{key} of parameter {index} has another size or type")


def _origin(model: nn.Module, part: ImageSet, seed: int, about: str) -> str:
    """Name what is trained on what, so that no other training goes on from its checkpoint.

    Not by the weights: on a GPU what pruning measured may differ in the last bit.
    """
    labels = hashlib.sha256(part.labels.cpu().contiguous().numpy().tobytes()).hexdigest()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return hashlib.sha256(f"{seed} {labels} {shapes} {about}".encode()).hexdigest()


def schedule(name: str, share: float) -> float:
    """Compute the learning rate of a step as a share of the peak.

    Args:
        name: ``constant``, ``cosine`` or ``onecycle``.
        share: Of the training that is done, in [0, 1).

    Returns:
        In [0, 1]; above 0 but for the first step of ``onecycle``.

    Source: Loshchilov and Hutter 2016 (arXiv 1608.03983); Smith and Topin 2017 (arXiv 1708.07120),
        as in :class:`torch.optim.lr_scheduler.OneCycleLR`, without its momentum.
    Lesson: 01_baseline_training, "The training recipe".
    """
    if name == "constant":
        return 1.0
    if name == "onecycle":
        if share < WARM_UP:
            return (1 - math.cos(math.pi * share / WARM_UP)) / 2
        share = (share - WARM_UP) / (1 - WARM_UP)
    return (1 + math.cos(math.pi * share)) / 2


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    shared = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        found = torch.optim.SGD(parameters, momentum=recipe.momentum, **shared)
        if recipe.momentum:  # else the fused step takes empty memory, and where the first gradients
            for parameter in parameters:  # overflow (float16) it goes on from what lies there
                found.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return found
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **shared)


def half_precision(device: torch.device, precision: str) -> torch.dtype | None:
    """Choose the type of mixed precision.

    Args:
        device: Where the network is.
        precision: ``fp32``, ``amp``, or ``auto``: mixed on CUDA.

    Returns:
        bfloat16 where it is native, float16 on older CUDA cards; None without mixed precision.

    Source: the PyTorch AMP recipe.
    Lesson: 01_baseline_training, "Train".
    """
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


@contextlib.contextmanager
def _compiler_named() -> Iterator[None]:
    """Say what ``torch.compile`` needs, where it fails."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(
            lines[: 2 if lines[0].endswith(":") else 1]
        )  # "backend raised:", and what
        needs = "a C++ compiler (on CUDA a C compiler and Triton)"
        if "setuptools" in reason:  # which torch does not bring everywhere
            needs = "setuptools"
        raise InputError(
            f"compile = True is not allowed: {reason}; torch.compile needs {needs}: install it, or "
            "leave compile out"
        ) from error


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]


@contextlib.contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Turn the first interrupt into a flag, so that it never falls into the middle of a step."""
    watch = _WATCH.get()
    stop = threading.Event() if watch is None else watch.stop
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # the second one does not wait
        stop.set()

    before = signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def by_class(model: nn.Module, monitor: ImageSet | None, dataset: Dataset) -> dict[str, float]:
    """Return the accuracy on each class of some images.

    Args:
        model: (B, C, H, W) float32 -> logits.
        monitor: The images, or features of a frozen part; None or none at all gives no class.
        dataset: Gives the normalisation.

    Returns:
        Number of the class, as text, -> accuracy in [0, 1].

    Source: this project.
    Lesson: 04_class_unlearning, "How it goes".
    """
    if monitor is None or not len(monitor):
        return {}
    labels = monitor.labels.cpu()
    right = (predict(model, monitor, dataset).argmax(1) == labels).double()
    return {str(c): float(right[labels == c].mean()) for c in labels.unique().tolist()}


@torch.no_grad()
def predict(
    model: nn.Module, part: ImageSet, dataset: Dataset, batch_size: int | None = None
) -> Tensor:
    """Compute the logits of some images, in order, without augmentation, in evaluation mode.

    Args:
        model: The network; its mode is restored afterwards.
        part: N images.
        dataset: Gives the normalisation.
        batch_size: Images per pass; None takes :func:`helpers.data.per_pass`.

    Returns:
        (N, classes) float32 on the CPU, unnormalised.

    Source: the evaluation that the published code gets wrong, see :mod:`helpers.defects`.
    Lesson: 01_baseline_training, "Train".
    """
    size = batch_size or per_pass(part.images)
    with models.evaluating(model):
        logits = [model(dataset.normalise(x)).float().cpu() for x, _ in batches(part, size)]
    return torch.cat(logits) if logits else torch.zeros(0, len(dataset.classes))


@torch.no_grad()
def recalibrate_batchnorm(
    model: nn.Module, part: ImageSet, dataset: Dataset, limit: int = 2048, seed: int = 0
) -> int:
    """Measure the running statistics of every BatchNorm anew, without training. In place.

    Pruning changes what flows through a network, and the old statistics no longer describe it.

    Args:
        model: The network; its parameters and mode stay as they are.
        part: Images to measure on; for unlearning, retained ones.
        dataset: Gives the normalisation.
        limit: At most this many images.
        seed: Of the choice of images.

    Returns:
        Images that were passed through the network; 0 if it has no BatchNorm.

    Raises:
        InputError: If there are fewer than two images.

    Source: Li et al. 2020, EagleEye (arXiv 2007.02491).
    Lesson: 02_pruning, "BatchNorm must be measured again".
    """
    check("images", len(part), len(part) > 1, "at least two, to have a variance")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    chosen = part.sample(limit, seed).images[:]
    parts = -(-len(chosen) // at_most(chosen, 256))
    batched = chosen.chunk(parts)
    if 2 * len(batched[-1]) < len(batched[0]):  # a short rest would count as much as the others
        batched = chosen.tensor_split(parts)
    try:
        with models.evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over the batches
                norm.train()
            for images in batched:
                model(dataset.normalise(images))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(chosen)
