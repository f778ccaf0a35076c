"""The methods: a table of compositions *prune? x edit? x adapt? x objective*, run by one loop."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers import (
    edits,
    frozen,
    ledger,
    lora,
    models,
    objectives,
    parallel,
    patches,
    pruning,
    store,
    training,
)
from helpers.config import InputError, Recipe, RunConfig, check, choose
from helpers.data import LEAST, ClassSplit, Dataset, ImageSet

log = logging.getLogger(__name__)
_CHOSEN = torch.get_num_threads()  # by torch: nothing in this package has set them yet


@dataclass(frozen=True)
class Method:
    """One way to a network that shall not know the forgotten class.

    Attributes:
        family: ``reference``, ``paper`` (the methods compared there, and PruneLoRA with channels
            removed), ``baseline`` (what the field compares with) or ``cheat`` (nothing is
            forgotten).
        start: ``scratch`` (fresh weights) or ``original`` (the trained network).
        data: The training images that it sees, and trains on if it trains: ``all``, those to
            ``retain``, those to ``forget``, or ``none``.
        prune: ``none``, or a kind of pruning; the configuration can name another kind.
        edit: Name of a change without training in ``helpers.edits.EDITS``, or ``none``.
        adapt: ``full`` (every weight trains), ``lora``, or ``head`` (the classifier alone).
        objective: Name of the loss in ``objectives.OBJECTIVES``; ``none`` does not train.
        salient: Whether only the weights that matter most to the forget set move.
        summary: One line for tables and ``--help``.

    Source: arXiv 2411.11907, section 3.
    Lesson: 04_class_unlearning, "A table of methods".
    """

    family: str = "paper"
    start: str = "original"
    data: str = "retain"
    prune: str = "none"
    edit: str = "none"
    adapt: str = "full"
    objective: str = "cross_entropy"
    salient: bool = False
    summary: str = ""


# the settings that adapters depend on
OF_ADAPTERS = ("rank", "lora_alpha", "lora_dropout", "adapter", "targets", "norms")

METHODS: dict[str, Method] = {
    "original": Method(
        "reference", "scratch", "all", summary="trained on all classes: nothing forgotten"
    ),
    "retrain": Method("reference", "scratch", summary="trained without the class: the oracle"),
    "finetune": Method(summary="every weight, retain set"),
    "prune_finetune": Method(
        prune="mask_structured", summary="weak filters masked, then every weight"
    ),
    "lora": Method(adapt="lora", summary="adapters only, retain set"),
    "prunelora": Method(
        prune="mask_structured", adapt="lora", summary="weak filters masked, then adapters"
    ),
    "prunelora_channels": Method(
        prune="channels", adapt="lora", summary="weak channels removed, then adapters"
    ),
    "finetune_sgd": Method("baseline", summary="every weight, SGD with augmentation and cosine"),
    "gradient_ascent": Method(
        "baseline", data="forget", objective="gradient_ascent", summary="away from the labels"
    ),
    "neggrad_plus": Method(
        "baseline", data="all", objective="neggrad_plus",
        summary="down the loss of the others, up that of the class",
    ),
    "random_labels": Method(
        "baseline", data="all", objective="random_labels",
        summary="random other labels for the class",
    ),
    "salun": Method(
        "baseline", data="all", objective="random_labels", salient=True,
        summary="random other labels, only in the weights that matter to the class",
    ),
    "l1_sparse": Method(
        "baseline", objective="l1_sparse", summary="every weight, with an L1 penalty that fades"
    ),
    "scrub": Method(
        "baseline", data="all", objective="scrub",
        summary="near the original on the others, away from it on the class",
    ),
    "bad_teacher": Method(
        "baseline", data="all", objective="bad_teacher",
        summary="like the original on the others, like a fresh network on the class",
    ),
    "ssd": Method(
        "baseline", data="all", edit="dampen", objective="none",
        summary="weights that matter more to the class than to the others shrink",
    ),
    "boundary_shrink": Method(
        "baseline", data="forget", objective="boundary_shrink",
        summary="the class's images relabelled with the nearest other class",
    ),
    "weight_negation": Method(
        "baseline", edit="negate", summary="first layer negated (NoT), then fine-tuning"
    ),
    "logit_mask": Method(
        "cheat", data="none", edit="logit_mask", objective="none", summary="one logit overwritten"
    ),
    "head_only": Method("cheat", adapt="head", summary="the classifier alone, retain set"),
    "prototype": Method(
        "cheat", data="forget", edit="prototype", objective="none",
        summary="the class's row of the classifier set against its mean feature",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """What a stage without a training loop took.

    Attributes:
        seconds: Time.
        macs: Multiply-accumulates of the images that it looked at.
        bytes: Memory that it goes on to hold while the network trains.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """

    seconds: float = 0.0
    macs: int = 0
    bytes: int = 0

    def __add__(self, other: Spent) -> Spent:
        """Add up two stages."""
        return Spent(self.seconds + other.seconds, self.macs + other.macs, self.bytes + other.bytes)


@dataclass
class Outcome:
    """What a method made.

    Attributes:
        model: The plain network, merged, in evaluation mode.
        fit: History and costs of the training stage; its memory includes what is held meanwhile.
        trainable: Parameters that trained.
        masks: The masks that hold in ``model``; empty without them, and in paper mode.
        ledger: One row a stage, from :func:`helpers.ledger.measure`; empty if not asked for.
        patch: What turns the network before into this one; None where every weight was trained.
        frozen_once: Whether the outputs of the frozen part were computed once and kept.
        before: What came before the training: pruning, edit, choice of the weights that may move.
        start: Accuracy on each class of the images followed, before the first step of the training.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """

    model: nn.Module
    fit: training.Fit
    trainable: int
    masks: pruning.Masks
    ledger: list[ledger.Row] = field(default_factory=list)
    patch: patches.Patch | None = None
    frozen_once: bool = False
    before: Spent = field(default_factory=Spent)
    start: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Time until the training ends; attaching and merging adapters is left out."""
        return self.before.seconds + self.fit.seconds

    @property
    def macs(self) -> int:
        """Multiply-accumulates before the training and of it, of all processes together."""
        return self.before.macs + self.fit.macs

    @property
    def costs(self) -> dict[str, float]:
        """What it cost, in the columns of a study: seconds, gmacs, memory_mb, trainable."""
        return {"seconds": self.seconds, "gmacs": self.macs / 1e9,
                "memory_mb": self.fit.peak_memory / 1e6, "trainable": self.trainable}  # fmt: skip


def method(name: str) -> Method:
    """Look a method up, or compose one of two.

    Args:
        name: One of ``METHODS``; or two of them, such as ``prunelora+scrub``: pruning and adapters
            of the first, everything else of the second.

    Returns:
        Its composition.

    Raises:
        InputError: If there is none of that name (the message lists the known ones), or the two
            cannot be composed.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    first, plus, second = name.partition("+")
    if not plus:
        choose("method", name, METHODS)
        return METHODS[name]
    frames = [n for n, m in METHODS.items() if m.family == "paper"]
    rests = [n for n, m in METHODS.items() if m.family in ("baseline", "cheat")]
    allowed = f"FIRST+SECOND with FIRST of {', '.join(frames)} and SECOND of {', '.join(rests)}"
    check("method", name, first in frames and second in rests, allowed)
    frame, rest = METHODS[first], METHODS[second]
    ok = rest.adapt == "full" or frame.adapt == "full"
    check("method", name, ok, f"{second} with a FIRST that has no adapters")
    # of an adapter B is zero at the start, and so are all slopes of A: nothing to rank them by
    ranked = not rest.salient or frame.adapt == "full"
    trains = ", ".join(n for n in frames if METHODS[n].adapt == "full")
    check("method", name, ranked, f"{second} with a FIRST that trains the weights: {trains}")
    adapt = rest.adapt if frame.adapt == "full" else frame.adapt
    stages = [frame.summary, rest.summary]
    if rest.objective == "none":  # nothing trains, and so no adapter is attached
        adapt, stages = "full", [] if frame.prune == "none" else [frame.summary.split(",")[0]]
        check("method", name, bool(stages), f"{second} with a FIRST that prunes; nothing trains")
        stages.append(rest.summary)
    return dataclasses.replace(rest, prune=frame.prune, adapt=adapt, summary="; ".join(stages))


def new_model(cfg: RunConfig, dataset: Dataset) -> nn.Module:
    """Build the network of a configuration with fresh weights.

    Args:
        cfg: Gives the architecture, the seed and the device.
        dataset: Gives the classes, channels and size.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: If the architecture is unknown or does not fit the images.

    Source: this project.
    Lesson: 01_baseline_training, "The network".
    """
    _, channels, _, side = dataset.train.images.shape
    model = models.build_model(cfg.model, len(dataset.classes), channels, side, cfg.seed)
    return model.to(cfg.device)


def validate(cfg: RunConfig, dataset: Dataset) -> None:
    """Refuse, before anything is trained, what would fail later.

    Args:
        cfg: The configuration.
        dataset: The data it is meant for.

    Raises:
        InputError: For an unknown method or architecture, a class that does not exist, or a rank
            that a layer cannot have.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    chosen, split = method(cfg.method), dataset.split(cfg.forgotten)
    retained, what = len(split.retain), ", ".join(map(str, split.forgotten))
    for name, number in (("training", retained), ("test", len(split.test_retain))):
        allowed = f"at least {LEAST}: an attack learns from them; add images, raise --train-limit, "
        check(f"retained {name} images", number, number >= LEAST,
              f"{allowed}or forget fewer classes")  # fmt: skip
    for name, part in (("training", split.forget), ("test", split.test_forget)):
        check(f"{name} images of class {what}", len(part), len(part) > 0, "at least one")
    for name in published_alone(cfg):
        allowed = [RunConfig.__dataclass_fields__[name].default]
        allowed += ["blocks"] if name == "targets" else []  # all of them, which is what it adapts
        check(name, getattr(cfg, name), getattr(cfg, name) in allowed,
              f"{' or '.join(map(repr, allowed))} in paper mode, which prunes and adapts as "
              "published")  # fmt: skip
    model = new_model(cfg, dataset)
    layers, kind = models.layers(model), pruning_of(cfg)
    if kind in ("channels", "mask_nm") and cfg.mode == "default":  # may refuse, or change the sizes
        model = pruning.prune(model, cfg.sparsity, kind, measured=False).model
    if chosen.adapt == "lora" and chosen.objective != "none":
        targets = _targets(layers, cfg)
        lora.check_rank(model, cfg.rank, [name for name in targets if name != layers.head])
        if cfg.lora_dropout and cfg.mode == "default":
            whole = cfg.adapter != "dora" and kind in ("none", "mask_structured", "channels")
            allowed = "0, for DoRA and for masks of anything but whole filters"
            check("dropout", cfg.lora_dropout, whole, allowed)


def _check_start(original: nn.Module, split: ClassSplit, dataset: Dataset) -> None:
    """Refuse a network whose classifier is another layer, and a class that has no images."""
    models.check_head(original, len(dataset.classes))
    models.check_weights(original, models.layers(original).prunable)
    images = dataset.normalise(dataset.train.images[:2])
    shape = tuple(images.shape[1:])
    stated = tuple(getattr(original, "input_shape", shape))
    check("input_shape of the network", stated, stated == shape, f"that of the images, {shape}")
    models.check_answers("original", original, images, len(dataset.classes))
    models.check_head_is_last(original, images)
    models.check_training("original", original, images, len(dataset.classes))
    count = len(split.forget)
    check("training images of the class to forget", count, count > 0, "at least one")


def published_alone(cfg: RunConfig) -> tuple[str, ...]:
    """List the settings that a run cannot choose, because paper mode does what was published.

    Args:
        cfg: The configuration.

    Returns:
        Names of fields; none in the default mode.

    Raises:
        InputError: If the method is unknown.

    Source: this project.
    Lesson: 00_start_here, "One configuration".
    """
    if cfg.mode != "paper":
        return ()
    chosen = method(cfg.method)
    pruned = ("criterion", "mask_data") if chosen.prune != "none" else ()
    return (*pruned, *(("adapter", "targets", "norms") if chosen.adapt == "lora" else ()))


def pruning_of(cfg: RunConfig) -> str:
    """Return the kind of pruning of a run.

    Args:
        cfg: The configuration.

    Returns:
        ``none``, or one of ``KINDS``: the configuration's own, if it names one; in paper mode
        always ``mask_structured``.

    Raises:
        InputError: If the method is unknown.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    kind = method(cfg.method).prune
    if kind == "none":
        return kind
    return "mask_structured" if cfg.mode == "paper" else cfg.pruning or kind


def settings_of_pruning(cfg: RunConfig) -> list[str]:
    """Name the settings that the pruning of a run depends on, beside its kind and the seed.

    Args:
        cfg: The configuration.

    Returns:
        Fields of :class:`helpers.config.RunConfig`; none if nothing is pruned.

    Raises:
        InputError: If the method is unknown.

    Source: this project.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    kind = pruning_of(cfg)
    fields = [] if kind == "none" else ["sparsity", "criterion", "mask_data"]
    return fields + (["scope"] if kind == "mask_unstructured" else [])


def _targets(layers: models.Layers, cfg: RunConfig) -> tuple[str, ...]:
    return layers.paper_adaptable if cfg.mode == "paper" else layers.targets(cfg.targets)


@training.in_turn()
def unlearn(
    original: nn.Module | None,
    dataset: Dataset,
    cfg: RunConfig,
    *,
    recipe: Recipe | None = None,
    monitor: ImageSet | None = None,
    checkpoint: Path | None = None,
    progress: str | None = None,
    cache: frozen.Cache | None = None,
    measured: bool = False,
) -> Outcome:
    """Run the method of a configuration: prune?, edit?, adapt?, train, merge.

    In the default mode a mask holds through training and merge, BatchNorm is measured anew after
    pruning, an adapter keeps its own classifier and BatchNorm state, and what lies before the first
    adapter is computed once, where images are not augmented. In paper mode the masks are dropped
    after pruning, as published, and the adapter keeps the classifier alone.

    A later request (``earlier``) prunes nothing new in the default mode, and a warning says so:
    what the first removed or set to zero stays so, and the zeros, as the weakest, would be chosen
    again. What remains is the training, at a learning rate tuned for networks that pruning has just
    damaged; much of the class may stay.

    Weights that their owner froze (``requires_grad`` off) are neither trained nor dampened nor
    negated. Pruning may set them to zero, adapters add to them, and the cheats write to the
    classifier.

    Args:
        original: The trained network to start from; stays as it is. Methods that start from scratch
            take its architecture alone, with fresh weights that all train; None stands for that of
            the configuration.
        dataset: The data, on the device of ``original``.
        cfg: The configuration.
        recipe: How the training stage is done; None takes the configuration's.
        monitor: Images of all classes whose accuracy is followed through the training.
        checkpoint: Where an interrupted training is kept, and taken up again; refused if it started
            from another network or by other settings. Where the frozen part is computed once, it is
            the file ``tail-NAME`` beside it: the rest of the network alone trains. It stays.
        progress: The text of a progress bar; None shows none.
        cache: Outputs of the frozen part kept from other runs on the same data; None keeps them for
            this run alone.
        measured: Whether to fill the ledger, which takes a few passes at each stage.

    Returns:
        The plain network and what it cost.

    Raises:
        InputError: If the configuration does not fit the data or the network.
        FileProblem: If the checkpoint cannot be read or written, or is of another training.
        Interrupted: After Ctrl-C or the kernel's stop button.

    Source: arXiv 2411.11907, section 3.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    chosen = method(cfg.method)
    every, split = _seen(dataset, cfg)
    model, recipe = _start(original, split, dataset, cfg, recipe)
    names, rows = models.layers(model).prunable, []

    def note(stage: str, network: nn.Module, **how: Any) -> None:
        if measured:
            rows.append(ledger.measure(network, stage, names, **how))

    note("before", model)
    pruned, cache = pruning.Pruned(model), cache or frozen.Cache(cfg.cache_mb * 1_000_000)
    if chosen.prune != "none":
        _remark(cfg)
        seen = split.retain if cfg.mask_data == "retain" else every
        pruned = cache.once(_pruning_key(model, seen, dataset, cfg),
                            partial(_prune, model, seen, dataset, cfg))  # fmt: skip
        note("pruned", pruned.model)
    before = Spent(pruned.seconds, pruned.macs)
    if chosen.edit != "none":
        pruned, spent = _edit(pruned, split, dataset, cfg, recipe)
        before += spent
        note("edited", pruned.model)
    _agree(pruned)
    if chosen.objective == "none":
        fit = training.Fit()
        return Outcome(pruned.model.eval(), fit, 0, pruned.masks, rows, before=before)
    objective, held = _objective(original, dataset, cfg, recipe)
    before += Spent(bytes=held)
    part = {"all": every, "retain": split.retain, "forget": split.forget}[chosen.data]
    stage = partial(
        training.fit, dataset=dataset, recipe=recipe, seed=cfg.seed, objective=objective,
        checkpoint=checkpoint, about=f"{cfg.method} {cfg.mode} {cfg.forgotten}",
        settings=_settings(cfg, original) if checkpoint else {},
        precision=cfg.precision, compile=cfg.compile, graphs=cfg.graphs, progress=progress,
    )  # fmt: skip
    learns = {name: p.requires_grad for name, p in pruned.model.named_parameters()}
    start = training.by_class(pruned.model, monitor, dataset)
    patch, once = None, False
    if chosen.adapt == "lora":
        adapted = _adapt(pruned, cfg)
        trainable = models.count_parameters(adapted, trainable=True)
        fit, once = _train_adapted(
            adapted, pruned, part, dataset, cfg, recipe, stage, monitor, cache
        )
        note("adapted", adapted, weight=_used_weight)
        changes = patches.changes(adapted)
        model = lora.merge(adapted, pruned.masks)
        _let_learn(model, learns)
        note("merged", model)
        about = {"method": cfg.method, "forgotten": list(cfg.forgotten), "seed": cfg.seed}
        patch = patches.make(original, model, changes, pruned.masks, pruned.kept, about)
    else:
        # a copy, where what was pruned is kept for other runs or is the caller's
        ours = chosen.start == "scratch" and chosen.prune == "none"
        model = pruned.model if ours else models.copy_of(pruned.model)
        fit, trainable, spent = _train_itself(
            model, pruned.masks, split.forget, part, dataset, cfg, recipe, stage, monitor
        )
        before += spent
        _let_learn(model, learns)
        note("trained", model)
    fit.peak_memory += before.bytes
    model = models.copy_of(model)  # without what it may keep of its last step
    return Outcome(model, fit, trainable, pruned.masks, rows, patch, once, before, start)


def _seen(dataset: Dataset, cfg: RunConfig) -> tuple[ImageSet, ClassSplit]:
    """Return the training images there are, and their split, at the time of the request."""
    split = dataset.split(cfg.forgotten)
    # whoever asked earlier has had the images deleted: the next request cannot use them
    # an original is trained before any request, and is everybody's
    earlier = cfg.earlier if method(cfg.method).start == "original" else ()
    every, forget = (_without(part, earlier) for part in (dataset.train, split.forget))
    return every, dataclasses.replace(split, forget=forget)


def _start(
    original: nn.Module | None, split: ClassSplit, dataset: Dataset, cfg: RunConfig,
    recipe: Recipe | None,
) -> tuple[nn.Module, Recipe]:  # fmt: skip
    """Return the network to start from, fresh or the original, and how to train it."""
    chosen = method(cfg.method)
    if chosen.start == "scratch":
        if original is not None:
            _check_start(original, split, dataset)
        return _untrained(original, dataset, cfg), recipe or cfg.train
    check("original", original, original is not None, f"{cfg.method} starts from a network")
    _check_start(original, split, dataset)
    ready = chosen.adapt != "full" or any(p.requires_grad for p in original.parameters())
    check("original", "no parameter that trains", ready, "model.requires_grad_(True) before")
    if chosen.adapt == "lora":  # which makes a patch
        models.check_state("original", original)
    return original, recipe or cfg.unlearn


def _settings(cfg: RunConfig, original: nn.Module | None) -> dict[str, Any]:
    """Collect what a training depends on that neither its recipe nor its images and shapes tell.

    Settings that a method does not use are left out: its runs share a folder, and a checkpoint.
    """
    chosen, fields = method(cfg.method), ["precision", "compile"]
    found: dict[str, Any] = {}
    if chosen.start == "original":
        found = {"original network": models.fingerprint(original)[:16],
                 "earlier": list(cfg.earlier)}  # fmt: skip
    if chosen.prune != "none":
        found["pruning"] = pruning_of(cfg)
    fields += settings_of_pruning(cfg)
    fields += OF_ADAPTERS if chosen.adapt == "lora" else ()
    return found | {name: getattr(cfg, name) for name in fields}


def _remark(cfg: RunConfig) -> None:
    """Say that a later request goes without the damage that made the first one forget."""
    trains = method(cfg.method).objective != "none"
    if not (cfg.earlier and cfg.mode == "default" and cfg.sparsity and trains):
        return
    newest = [c for c in cfg.forgotten if c not in cfg.earlier]
    classes = (", ".join(map(str, part)) for part in (newest, cfg.earlier))
    log.warning("%s, class %s after %s: nothing new is pruned, the first request did that, and "
                "more of the class may stay: look at UA (of all requests together); a larger lr "
                "forgets more, and lora does without pruning", cfg.method, *classes)  # fmt: skip


def _let_learn(model: nn.Module, learns: Mapping[str, bool]) -> None:
    """Leave frozen what the network's owner froze, and nothing else. In place."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns[name])


def _without(part: ImageSet, classes: tuple[int, ...]) -> ImageSet:
    if not classes:
        return part
    gone = torch.tensor(classes, device=part.labels.device)
    return part.where(~torch.isin(part.labels, gone))


def _objective(
    original: nn.Module | None, dataset: Dataset, cfg: RunConfig, recipe: Recipe
) -> tuple[training.Objective, int]:
    """Build the loss of a method, with the teachers that it asks; and the bytes of these."""
    chosen = method(cfg.method)
    name, builder = chosen.objective, objectives.OBJECTIVES[chosen.objective]
    if original is None or name == "cross_entropy":
        return builder(None), 0
    asked, teachers = objectives.TEACHERS.get(name, ()), dict.fromkeys(("original", "stranger"))
    if "original" in asked:
        teachers["original"] = models.copy_of(original).eval()
    if "stranger" in asked:
        teachers["stranger"] = _stranger(original, dataset, cfg)
    networks = [one.requires_grad_(False) for one in teachers.values() if one is not None]
    # the backward pass of boundary_shrink goes through its teacher: counted in the step
    held = 0 if name == "boundary_shrink" else sum(
        t.nbytes for one in networks for t in (*one.parameters(), *one.buffers())
    )  # fmt: skip
    shared = [None if one is None else parallel.shared(one) for one in teachers.values()]
    # SalUn's own number is how many weights may move; its losses are not weighed
    strength = None if chosen.salient else recipe.strength
    task = objectives.Task(*shared, cfg.forgotten, len(dataset.classes), strength)
    return builder(task), held


def _stranger(original: nn.Module, dataset: Dataset, cfg: RunConfig) -> nn.Module:
    """Build a network that is not what ``original`` started as, either."""
    return _untrained(original, dataset, cfg.but(seed=(cfg.seed + 1) % 2**31))


def _untrained(original: nn.Module | None, dataset: Dataset, cfg: RunConfig) -> nn.Module:
    """Build a network that knows nothing, of the architecture of another if there is one."""
    ours = getattr(original, "blueprint", None)
    if original is None or (ours is not None and ours.name == cfg.model):
        model = new_model(cfg, dataset)
        if original is None or models.alike(model, original):  # its owner may have changed it
            return model
    return models.fresh(original, cfg.seed).requires_grad_(True)


def _edit(
    pruned: pruning.Pruned, split: ClassSplit, dataset: Dataset, cfg: RunConfig, recipe: Recipe
) -> tuple[pruning.Pruned, Spent]:
    """Do what a method changes without training, and say what it cost."""
    model = models.copy_of(pruned.model)
    started = time.perf_counter()
    images = edits.EDITS[method(cfg.method).edit](model, split, dataset, recipe.strength)
    pruning.apply_masks(model, pruned.masks)
    seconds = ledger.since(started, model)
    return dataclasses.replace(pruned, model=model), Spent(seconds, _macs(model, images, dataset))


def _macs(model: nn.Module, images: int, dataset: Dataset) -> int:
    few = dataset.normalise(dataset.train.images[:2])
    return images * ledger.macs(model, images=few) if images else 0


def _agree(pruned: pruning.Pruned) -> None:
    """Let all processes start from the same network with the same masks. In place."""
    places = (places for kept in pruned.kept.values() for places in kept if places is not None)
    parallel.as_first([*pruned.model.state_dict().values(), *pruned.masks.values(), *places])


def _only_the_head(model: nn.Module) -> list[nn.Module]:
    """Let the classifier alone train; returns what must stay in evaluation mode."""
    layers = models.layers(model)
    model.requires_grad_(False)
    model.get_submodule(layers.head).requires_grad_(True)
    return [model.get_submodule(name) for name in layers.norms]


def _hold(
    model: nn.Module, first: Callable[[], None] | None, forget: ImageSet, dataset: Dataset,
    recipe: Recipe, masks: pruning.Masks,
) -> tuple[Callable[[], None], Spent]:  # fmt: skip
    """Choose the weights that may not move; join them to what has to be held after each step."""
    share, started = 0.5 if recipe.strength is None else recipe.strength, time.perf_counter()
    still, held = objectives.saliency(model, forget, dataset, share, masks)
    spent = Spent(ledger.since(started, model), _macs(model, 3 * len(forget), dataset), held)

    def both() -> None:
        still()
        if first is not None:
            first()

    return both, spent


def _used_weight(adapted: nn.Module, name: str) -> torch.Tensor:
    """Read the weight that a layer of an adapted network really uses."""
    for adapter, layer in lora.adapters(adapted):
        if adapter == name:
            return lora.effective_weight(layer).detach()
    return adapted.get_submodule(f"{lora.PREFIX}{name}").weight.detach()


def _prune(model: nn.Module, part: ImageSet, dataset: Dataset, cfg: RunConfig) -> pruning.Pruned:
    layers, kind, started = models.layers(model), pruning_of(cfg), time.perf_counter()
    if cfg.mode == "paper":  # prune.remove: the zeros are there, and nothing will hold them
        masked = models.copy_of(model)
        pruning.mask_structured(masked, cfg.sparsity, layers.paper_prunable)
        return pruning.Pruned(masked, seconds=ledger.since(started, masked))
    if cfg.earlier:  # pruned at the first request; what is gone stays gone
        again = models.copy_of(model)
        masks = {} if kind == "channels" else pruning.zeros_as_masks(again, layers.prunable)
        images = training.recalibrate_batchnorm(again, part, dataset, seed=cfg.seed)
        seconds = ledger.since(started, again)
        return pruning.Pruned(again, masks, seconds=seconds, macs=_macs(again, images, dataset))
    return pruning.prune(
        model, cfg.sparsity, kind, criterion=cfg.criterion, scope=cfg.scope, part=part,
        dataset=dataset, seed=cfg.seed, measured=False,
    )  # fmt: skip


def _pruning_key(
    model: nn.Module, part: ImageSet, dataset: Dataset, cfg: RunConfig
) -> tuple[object, ...]:
    """Collect everything that determines the pruned network."""
    fields = ("mode", "earlier", "seed", *settings_of_pruning(cfg))
    images = frozen.fingerprint(part, dataset)
    settings = (getattr(cfg, name) for name in fields)
    where = str(next(model.parameters()).device)
    # equal weights in another architecture are another network: what it computes tells
    with torch.no_grad(), models.evaluating(model):
        answers = model(models.example(model)).sum().item()
    frozen_by_owner = tuple(p.requires_grad for p in model.parameters())  # the copy has it, too
    which = models.fingerprint(model), answers, frozen_by_owner, where
    return *which, images, pruning_of(cfg), *settings


def _adapt(pruned: pruning.Pruned, cfg: RunConfig) -> nn.Module:
    layers = models.layers(pruned.model)
    targets = _targets(layers, cfg)
    if cfg.mode == "default":
        models.say_if_little(pruned.model, layers.adaptable, "adapted")
    in_full = () if layers.head in targets else (layers.head,)
    if cfg.mode == "default" and cfg.norms == "patch":
        in_full += _norms_from(pruned.model, targets, layers.norms)
    return lora.attach(
        pruned.model,
        cfg.rank,
        targets,
        alpha=cfg.lora_alpha,
        kind=cfg.adapter if cfg.mode == "default" else "lora",
        dropout=cfg.lora_dropout,
        train_in_full=in_full,
        masks=pruned.masks,
        any_rank=(layers.head,),
        seed=cfg.seed,
    )


def _norms_from(
    model: nn.Module, targets: Iterable[str], norms: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the layers of ``norms`` that are called after the first adapted layer.

    Those that the network's owner froze are not among them.
    """
    order, frozen = models.call_order(model), _frozen_norms(model)
    # where none is called, attach says so
    first = min((order.index(name) for name in targets if name in order), default=len(order))
    return tuple(name for name in norms
                 if name in order[first:] and model.get_submodule(name) not in frozen)  # fmt: skip


def _frozen_norms(model: nn.Module) -> list[nn.Module]:
    """List the layers with statistics and with parameters, none of which requires a gradient."""
    return [m for m in model.modules() if models.keeps_statistics(m)
            and m.affine and not any(p.requires_grad for p in m.parameters())]  # fmt: skip


def _train_itself(
    model: nn.Module, masks: pruning.Masks, forget: ImageSet, part: ImageSet, dataset: Dataset,
    cfg: RunConfig, recipe: Recipe, stage: partial, monitor: ImageSet | None,
) -> tuple[training.Fit, int, Spent]:  # fmt: skip
    """Train the weights of a network, or its classifier's, holding masks. In place.

    Returns the fit, how many parameters trained, and what the choice of them cost.
    """
    chosen, spent = method(cfg.method), Spent()
    still = _only_the_head(model) if chosen.adapt == "head" else _frozen_norms(model)
    trainable = models.count_parameters(model, trainable=True)
    hold = partial(pruning.apply_masks, model, masks) if masks else None
    if chosen.salient:
        hold, spent = _hold(model, hold, forget, dataset, recipe, masks)
    fit = stage(model, part, after_step=hold, frozen=still, monitor=monitor)
    return fit, trainable, spent


def _train_adapted(
    adapted: nn.Module, pruned: pruning.Pruned, part: ImageSet, dataset: Dataset, cfg: RunConfig,
    recipe: Recipe, stage: partial, monitor: ImageSet | None, cache: frozen.Cache,
) -> tuple[training.Fit, bool]:  # fmt: skip
    """Train the adapters, on kept outputs of the frozen part where that gives the same."""
    hold = None
    if cfg.lora_dropout and pruned.masks:
        hold = partial(lora.hold_masks, adapted, pruned.masks)
    if cfg.mode == "paper":  # the published code lets BatchNorm move
        return stage(adapted, part, after_step=hold, monitor=monitor), False
    still = lora.frozen_norms(adapted)
    stage = partial(stage, after_step=hold, frozen=still)
    cut = _cut(adapted, pruned.model, cfg, recipe)
    if cut is None or not cache.fits(cut, len(part)):
        return stage(adapted, part, monitor=monitor), False
    if monitor is not None and len(monitor):  # in full precision, as predictions are made
        monitor = cache.features(cut, monitor, dataset)
    started = time.perf_counter()
    features = cache.features(cut, part, dataset, cfg.precision, recipe.batch_size)
    features.images[:1].cpu()  # waits for the GPU
    seconds = time.perf_counter() - started
    # a checkpoint of the tail is not one of the whole network
    place = stage.keywords["checkpoint"]
    place = place and place.with_name(f"tail-{place.name}")
    fit = stage(cut.tail, features, monitor=monitor, checkpoint=place)
    fit.seconds += seconds
    fit.macs += len(part) * ledger.macs(cut.front)
    kept = {*adapted.parameters()} - {*cut.tail.parameters()}
    if isinstance(features.images, torch.Tensor) or part.labels.device.type == "cpu":
        # on CUDA the allocator has counted the batches that are read ahead
        fit.peak_memory += store.held(features.images, recipe.batch_size)
    fit.peak_memory += sum(p.nbytes for p in kept)
    return fit, True


def _cut(adapted: nn.Module, plain: nn.Module, cfg: RunConfig, recipe: Recipe) -> frozen.Cut | None:
    looks = method(cfg.method).objective in objectives.TEACHERS
    if not cfg.cache_mb or recipe.augment != "none" or recipe.mixup or looks:
        return None
    layers = models.layers(plain)
    targets = _targets(layers, cfg)
    trained = {*targets, layers.head}
    trained |= {*_norms_from(plain, targets, layers.norms)} if cfg.norms == "patch" else set()
    try:
        return frozen.cut(plain, adapted.get_base_model(), trained)
    except InputError as error:
        log.debug("the frozen part is computed at every step: %s", error)
        return None


def set_threads(cfg: RunConfig) -> None:
    """Set the CPU threads that a configuration asks for; small networks run best on one.

    Args:
        cfg: Uses ``threads``; 0 takes torch's choice, whatever was set meanwhile.

    Source: measured: two threads beside a busy neighbour were 60 times slower.
    Lesson: 00_start_here, "One configuration".
    """
    if cfg.threads or torch.get_num_threads() != _CHOSEN:
        torch.set_num_threads(cfg.threads or _CHOSEN)
