"""The frozen part of a network, computed once.

Where only the last layers train, everything before them gives the same numbers at every step. The
network is cut in two: what no trained layer can influence, and the rest. The outputs of the first
part are kept, and the second part trains on them.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from helpers import files, models, turns
from helpers.config import InputError, check, home, reason
from helpers.data import Dataset, ImageSet, batches
from helpers.store import Spilled, Stored
from helpers.training import half_precision

T = TypeVar("T")
IN_MEMORY = 32_000_000  # bytes of features; more of them are read from a file


class _Tracer(fx.Tracer):
    """Look into modules that hold a trained layer, and take all others whole."""

    def __init__(self, trained: Iterable[str]) -> None:
        super().__init__()
        names = [name.split(".") for name in trained]
        self.thread = threading.get_ident()
        self.opened = {".".join(n[:i]) for n in names for i in range(1, len(n))}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name not in self.opened

    # What follows is called for every network that any thread calls while one is traced.

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class Tail(nn.Module):
    """The part of a network that trains, fed with the outputs of the frozen part.

    Its modules are those of the network it was cut from, not copies.

    Attributes:
        dtypes: What the frozen part computed in; features come back to it under autocast.
        layouts: How the frozen part laid its outputs out in memory; features come back to that too.

    Source: torch.fx.
    Lesson: 03_lora_adaptation, "The frozen part, computed once".
    """

    def __init__(self, graph: fx.GraphModule, shapes: list[torch.Size]) -> None:
        """Take the traced part and the shapes of its inputs, without the batch."""
        super().__init__()
        self.graph, self.shapes = graph, shapes
        self.dtypes: tuple[torch.dtype, ...] = (torch.float32,) * len(shapes)
        self.layouts: tuple[torch.memory_format, ...] = (torch.contiguous_format,) * len(shapes)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits from (N, K) features, as :class:`Cut` packs them."""
        parts = features.split([shape.numel() for shape in self.shapes], dim=1)
        # in one piece, because sums over strided tensors round otherwise
        inputs = [
            p.contiguous().view(-1, *shape).contiguous(memory_format=layout)
            for p, shape, layout in zip(parts, self.shapes, self.layouts, strict=True)
        ]
        mixed = torch.is_autocast_enabled(features.device.type)
        kinds = self.dtypes if mixed else (torch.float32,) * len(inputs)
        inputs = [x.to(kind) for x, kind in zip(inputs, kinds, strict=True)]
        return self.graph(*inputs)


@dataclass(frozen=True)
class Cut:
    """A network cut in two.

    Attributes:
        front: Images -> tuple of the tensors that the tail needs; nothing in it trains.
        tail: (N, K) features -> logits; everything that trains is in it.

    Source: torch.fx.
    Lesson: 03_lora_adaptation, "The frozen part, computed once".
    """

    front: nn.Module
    tail: Tail

    @property
    def width(self) -> int:
        """Numbers that are kept of each image."""
        return sum(shape.numel() for shape in self.tail.shapes)


def cut(plain: nn.Module, adapted: nn.Module, trained: Iterable[str]) -> Cut:
    """Cut an adapted network before the first layers that train.

    Args:
        plain: The network without adapters, whose forward pass is traced.
        adapted: The same network with adapters, whose modules both parts use.
        trained: Names, in ``plain``, of every layer that trains.

    Returns:
        Both parts, sharing their modules with ``adapted``.

    Raises:
        InputError: If the forward pass cannot be traced, or nothing lies before the trained layers.

    Source: torch.fx; the adapters may be attached after tracing, names stay as they are.
    Lesson: 03_lora_adaptation, "The frozen part, computed once".
    """
    trained, kind = list(trained), type(plain).__name__
    images = models.example(plain, 3)
    own = {*vars(plain)}
    # a forward pass in training mode would move BatchNorm
    with turns.taken(), models.evaluating(plain), _as_it_was(plain):
        try:
            graph = _Tracer(trained).trace(plain)
            _refuse_dropout(graph)
            moving = _depends_on(graph, set(trained)) | _not_per_image(plain, graph, images)
        except Exception as error:  # tracing runs the network's own code, which may do anything
            raise InputError(f"{kind} cannot be cut in two: {reason(error)}") from error
        made = {n: v for n, v in vars(plain).items() if n not in own}
    with _as_it_was(adapted):
        vars(adapted).update(made)  # the forward pass makes them; both parts take them over
        return _two_parts(graph, moving, plain, adapted, images)


def _two_parts(
    graph: fx.Graph, moving: set[fx.Node], plain: nn.Module, adapted: nn.Module, images: Tensor
) -> Cut:
    """Build both parts of a traced network, and refuse them if they compute something else."""
    kind = type(plain).__name__
    _split_first_adapters(graph, moving, adapted)
    crossing = [n for n in graph.nodes if n not in moving and any(u in moving for u in n.users)]
    if not crossing or any(n.op == "placeholder" for n in crossing):
        raise InputError(f"nothing of {kind} lies before the layers that train")
    front = fx.GraphModule(adapted, _part(graph, [], crossing)).eval()
    front.input_shape = plain.input_shape
    random = [n for n, m in front.named_modules() if _is_random(m)]
    check("frozen part", random, not random, "layers that give the same at every step")
    with torch.no_grad():
        shapes = [t.shape[1:] for t in front(images)]
    tail = fx.GraphModule(adapted, _part(graph, crossing, None))
    alike = _trains_alike(adapted, front, tail, images)
    check("frozen part", "another in training", alike, "layers that give the same at every step")
    return Cut(front, Tail(tail, shapes))


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Take away what is hung on a network meanwhile, such as the tensors that tracing finds.

    What its own code notes on it (``self.last = x``) is then what it was, too.
    """
    before = {module: dict(vars(module)) for module in network.modules()}
    try:
        yield
    finally:
        for module, names in before.items():
            for name in vars(module).keys() - names.keys():
                del vars(module)[name]
            vars(module).update(names)


@torch.no_grad()
def _trains_alike(
    adapted: nn.Module, front: fx.GraphModule, tail: fx.GraphModule, images: Tensor
) -> bool:
    """Say whether the whole network, while it trains, computes and notes what its two parts do.

    Tracing sees one path: noise, or a branch, that is there in training alone would be lost.
    """
    outputs, buffers, cards = [], [], [images.device] if images.is_cuda else []
    with models.evaluating(adapted), turns.own_random_state(cards):
        for module in adapted.modules():
            module.training = not models.keeps_statistics(module)
        # the front as its features are made: what it draws or normalises in training is missed
        for network in (adapted, lambda x: tail(*front.eval()(x))):
            torch.default_generator.manual_seed(0)
            for card in cards:  # dropout of the adapters draws there
                with torch.cuda.device(card):
                    torch.cuda.manual_seed(0)
            with models.unmoved(adapted):  # each begins with the same buffers
                outputs.append(network(images))
                buffers.append(files.digest(dict(adapted.named_buffers())))
    size = outputs[0].abs().max()
    near = bool((outputs[0] - outputs[1]).abs().max() <= 1e-3 * size + 1e-6)
    return near and buffers[0] == buffers[1]  # a mean that the network keeps, or a count of steps


def _split_first_adapters(graph: fx.Graph, moving: set[fx.Node], adapted: nn.Module) -> None:
    """Let the frozen part compute what a first adapted layer's own weight makes. In place.

    An adapter that acts on the output adds its change to it; where its input is frozen, so is what
    it adds to.
    """
    modules = dict(adapted.named_modules())
    for node in [n for n in graph.nodes if n.op == "call_module" and n in moving]:
        first = not any(n in moving for n in node.all_input_nodes)
        if first and getattr(modules[node.target], "on_images", False):
            with graph.inserting_before(node):
                base = graph.create_node("call_module", f"{node.target}.base_layer", node.args)
            node.kwargs = {"base_output": base}


def _depends_on(graph: fx.Graph, trained: set[str]) -> set[fx.Node]:
    """Find everything that changes while the layers named train."""
    moving: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op == "call_module" and node.target in trained
        own = own or (node.op == "get_attr" and node.target.rpartition(".")[0] in trained)
        if own or node.op == "output" or any(n in moving for n in node.all_input_nodes):
            moving.add(node)
    return moving


def _is_random(module: nn.Module) -> bool:
    name = type(module).__name__
    return "Dropout" in name or "StochasticDepth" in name or "DropPath" in name


def _refuse_dropout(graph: fx.Graph) -> None:
    """Refuse dropout that is written as a function: tracing fixes whether it is switched on."""
    for node in graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_function" and ("dropout" in name or "stochastic_depth" in name):
            raise InputError(f"{name} is called as a function; use a module")


def _not_per_image(plain: nn.Module, graph: fx.Graph, images: Tensor) -> set[fx.Node]:
    """Find what is computed but cannot be kept for each image: shapes, and what needs no image."""
    found = {n for n in graph.nodes if n.op != "placeholder"}
    for node in graph.nodes:  # in the order of execution
        if node.op == "placeholder" or any(n not in found for n in node.all_input_nodes):
            found.discard(node)

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            value = super().run_node(node)
            if not isinstance(value, Tensor) or value.shape[:1] != images.shape[:1]:
                found.add(node)
            return value

    with torch.no_grad():
        Watch(fx.GraphModule(plain, graph)).run(images)
    return found


def _part(graph: fx.Graph, inputs: list[fx.Node], outputs: list[fx.Node] | None) -> fx.Graph:
    """Copy what lies between some nodes (the network's own inputs and outputs, if none)."""
    part, new = fx.Graph(), {}
    ends = outputs or [node for node in graph.nodes if node.op == "output"]
    needed, queue = set(), [n for n in ends if n not in inputs]
    while queue:
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue += [n for n in node.all_input_nodes if n not in inputs]
    for node in inputs:
        new[node] = part.placeholder(node.name)
    for node in graph.nodes:
        if node in needed:
            new[node] = part.node_copy(node, new.__getitem__)
    if outputs:
        part.output(tuple(new[node] for node in outputs))
    return part


@dataclass
class Cache:
    """What is the same in many runs, kept from one to the next.

    A grid over ranks, seeds and objectives asks for the same pruned network and the same features
    again and again: these depend on the images and on the frozen part alone. Features take many
    times the room of their images: those of more than a few are in a file, and read batch by batch.

    Attributes:
        limit: Bytes that all features together may take, in memory and in files; what does not fit
            is not kept.

    Source: this project.
    Lesson: 03_lora_adaptation, "The frozen part, computed once".
    """

    limit: int
    _kept: dict[tuple[str, str], tuple[ImageSet, tuple]] = field(default_factory=dict)
    _made: dict[str, tuple[tuple[Any, ...], Any]] = field(default_factory=dict)

    def once(self, key: tuple[Any, ...], make: Callable[[], T], kind: str = "pruned") -> T:
        """Make something, such as a pruned network, or return the one made last if it is the same.

        Args:
            key: Everything that determines it.
            make: Makes it; the result must not be changed.
            kind: What it is: of each kind one is kept.

        Returns:
            What ``make`` returned, now or before.

        Source: this project.
        Lesson: 03_lora_adaptation, "The frozen part, computed once".
        """
        if kind not in self._made or self._made[kind][0] != key:
            self._made.pop(kind, None)  # networks are large: only one is kept
            self._made[kind] = key, make()
        return self._made[kind][1]

    def fits(self, cut: Cut, count: int) -> bool:
        """Say whether the features of so many images are within the limit.

        Args:
            cut: The network, cut in two.
            count: How many images.

        Returns:
            Whether 4 bytes for each number of each image, the most they may take, are at most the
            limit.

        Source: this project.
        Lesson: 03_lora_adaptation, "The frozen part, computed once".
        """
        return 4 * cut.width * count <= self.limit

    def _size(self) -> int:
        return sum(part.images.nbytes for part, _ in self._kept.values())

    @torch.no_grad()
    def features(
        self, cut: Cut, part: ImageSet, dataset: Dataset, precision: str = "fp32",
        batch_size: int = 128,
    ) -> ImageSet:  # fmt: skip
        """Compute the features of some images, or look them up.

        Args:
            cut: The network, cut in two.
            part: N images.
            dataset: Gives the normalisation.
            precision: As in :func:`helpers.training.fit`, so that both parts compute alike.
            batch_size: That of the training: batches of another size round otherwise.

        Returns:
            (N, K) features with the labels, on the device of the images: float32, or the half
            precision in which all of them were computed.

        Raises:
            InputError: If there are no images.
            FileProblem: If there is no room for a file of them.

        Source: this project.
        Lesson: 03_lora_adaptation, "The frozen part, computed once".
        """
        # what no tensor of its state holds, such as a factor in its code, shows in what it gives
        gives = [t.sum().item() for t in cut.front.eval()(models.example(cut.front))]
        how = f"{precision} {batch_size} {part.images.device} {cut.front.code} {cut.front} {gives}"
        key = models.fingerprint(cut.front), fingerprint(part, dataset) + how
        if key in self._kept:
            made, (cut.tail.dtypes, cut.tail.layouts) = self._kept[key]
            return made
        check("images", len(part), len(part) > 0, "at least one image to compute features of")
        front, device = cut.front.eval(), part.images.device
        half = half_precision(device, precision)

        def rows() -> Iterator[Tensor]:
            for images, _ in batches(part, batch_size):
                outputs = front(dataset.normalise(images))
                cut.tail.dtypes = tuple(t.dtype for t in outputs)
                cut.tail.layouts = tuple(_layout(t) for t in outputs)
                yield _side_by_side(outputs)

        with torch.autocast(device.type, half, enabled=half is not None):
            kept = _gathered(len(part), rows())
        made = ImageSet(kept, part.labels)
        size = made.images.nbytes
        while self._kept and size + self._size() > self.limit:
            self._kept.pop(next(iter(self._kept)))  # the oldest goes first
        if size <= self.limit:
            self._kept[key] = made, (cut.tail.dtypes, cut.tail.layouts)
        return made


def _gathered(count: int, several: Iterator[Tensor]) -> Tensor | Spilled:
    """Put rows that come batch by batch together: in memory if they are few, else in a file."""
    first = next(several)
    several = itertools.chain([first], several)
    if count * first[0].nbytes > IN_MEMORY:
        file = Spilled(count, first[0], home() / "artifacts")
        file.fill(several)
        return file
    made, done = first.new_empty(count, *first.shape[1:]), 0  # joining takes the memory twice
    for rows in several:
        made[done : done + len(rows)] = rows
        done += len(rows)
    return made


def _side_by_side(outputs: tuple[Tensor, ...]) -> Tensor:
    """Lay the outputs of a frozen part out as one row an image, without rounding any."""
    kinds = {t.dtype for t in outputs}
    kind = kinds.pop() if kinds in ({torch.bfloat16}, {torch.float16}) else torch.float32
    return torch.cat([t.to(kind).flatten(1) for t in outputs], dim=1)


def _layout(features: Tensor) -> torch.memory_format:
    images = features.dim() == 4 and not features.is_contiguous()
    last = images and features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def fingerprint(part: ImageSet, dataset: Dataset) -> str:
    """Compute what identifies some images together with their normalisation.

    Args:
        part: The images.
        dataset: Gives the normalisation.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Source: this project.
    Lesson: 03_lora_adaptation, "The frozen part, computed once".
    """
    images = part.images
    box = {"labels": part.labels, "mean": dataset.mean, "std": dataset.std}
    if isinstance(images, Stored):  # which file and which of its rows say as much as the pixels
        box["file"], images = torch.tensor(list(os.fsencode(images.path))), images.rows
    return files.digest(box | {"images": images})
