"""An unlearned network as base + patch: small, checked, reversible.

A patch is plain data: which channels are kept, which weights are masked, the two thin matrices of
each adapted layer, and the few tensors that were trained in full. Applied to the base it gives the
unlearned network; the base itself never changes, or is restored bit for bit.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers import files, lora, models, pruning
from helpers.config import InputError, check, choose
from helpers.pruning import Kept, Masks

log = logging.getLogger(__name__)

FORMAT = 1
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class LowRank:
    """The change of one weight.

    Attributes:
        a: (r, in * kh * kw) float32.
        b: (out, r) float32.
        scale: Factor of the product.
        magnitude: (out,) float32, DoRA's length of each filter, or None.

    Source: Hu et al. 2021 (arXiv 2106.09685), equation 3.
    Lesson: 03_lora_adaptation, "Patches".
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Patch:
    """What turns a base into an unlearned network.

    Attributes:
        base: :func:`helpers.models.fingerprint` of the network that the patch belongs to.
        result: The same of the network that it makes.
        low_rank: Name of layer -> change of its weight.
        masks: Name of layer -> bool mask of its weight, True where kept.
        kept: Name of tensor -> indices kept along each dimension; empty if the size stays.
        tensors: Name -> tensor that replaces the base's: classifier, BatchNorm.
        about: Plain data for people: forgotten classes, method, settings.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """

    base: str
    result: str = ""
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def make(
    base: nn.Module,
    unlearned: nn.Module,
    low_rank: Mapping[str, LowRank],
    masks: Masks | None = None,
    kept: Kept | None = None,
    about: Mapping[str, Any] | None = None,
) -> Patch:
    """Describe an unlearned network as a patch of its base.

    Whatever channels, masks and low-rank changes do not explain is stored as whole tensors, so that
    applying the patch gives the unlearned network exactly.

    Args:
        base: The network before; stays as it is.
        unlearned: The plain network after, adapters merged.
        low_rank: Name of layer -> change of its weight, from :func:`changes`.
        masks: What was masked.
        kept: What was cut out.
        about: Plain data for people.

    Returns:
        The patch; all its tensors on the CPU.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """
    patch = Patch(
        models.fingerprint(base), models.fingerprint(unlearned), dict(low_rank),
        {n: m.cpu() for n, m in (masks or {}).items()}, dict(kept or {}), {}, dict(about or {}),
    )  # fmt: skip
    explained = _state(base, patch)
    found = {n: t.detach() for n, t in unlearned.state_dict().items()}
    rest = {n: t.cpu().clone() for n, t in found.items() if not _unchanged(t, explained[n])}
    return replace(patch, tensors=rest)


def _unchanged(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are equal; nan is where it is nan on both sides."""
    if torch.equal(one, other):
        return True
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def changes(adapted: nn.Module) -> dict[str, LowRank]:
    """Take the low-rank changes out of an adapted network.

    Args:
        adapted: The network with adapters, before it is merged.

    Returns:
        Name of layer -> its change, copied to the CPU.

    Source: peft's LoraLayer.
    Lesson: 03_lora_adaptation, "Patches".
    """
    found = {}
    for name, layer in lora.adapters(adapted):
        adapter = layer.active_adapters[0]
        a, b = (m[adapter].weight.detach().flatten(1) for m in (layer.lora_A, layer.lora_B))
        magnitude = None
        if adapter in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector[adapter].weight.detach().flatten().cpu().clone()
        scale = float(layer.scaling[adapter])
        found[name] = LowRank(a.cpu().clone(), b.cpu().clone(), scale, magnitude)
    return found


@torch.no_grad()
def _state(base: nn.Module, patch: Patch) -> dict[str, Tensor]:
    """Compute the state of the unlearned network, in the order of the base's."""
    state = pruning.cut_out(base.state_dict(), patch.kept)
    for name in {**patch.masks, **patch.low_rank}:
        key = f"{name}.weight"
        mask, change = patch.masks.get(name), patch.low_rank.get(name)
        weight = state[key]
        mask = mask if mask is None else mask.to(weight.device)
        if mask is not None:  # masked before the change is added, as in training
            weight = weight.masked_fill(~mask, 0)
        if change is not None:
            a, b = change.a.to(weight), change.b.to(weight)
            length = None if change.magnitude is None else change.magnitude.to(weight)
            count = len(weight) if length is None else len(length)
            allowed = f"{len(weight)} numbers"
            check(f"magnitude of {name}", f"{count} numbers", count == len(weight), allowed)
            weight = lora.changed_weight(weight, a, b, change.scale, mask, length)
        if mask is not None:
            weight = weight.masked_fill(~mask, 0)  # -0.0 becomes 0.0
        state[key] = weight
    for name, tensor in patch.tensors.items():
        check(name, tuple(tensor.shape), tensor.shape == state[name].shape,
              f"{tuple(state[name].shape)}, as in the network it is for")  # fmt: skip
        state[name] = tensor.to(state[name].device)
    return state


def _check_base(base: nn.Module, patch: Patch) -> None:
    """Refuse to use a patch on any network but its own."""
    own = models.fingerprint(base)
    allowed = f"this patch belongs to the network {patch.base[:12]}"
    if own == patch.result:
        allowed += "; it has been applied to this one already"
    check("base", own[:12], own == patch.base, allowed)


def apply(base: nn.Module, patch: Patch) -> nn.Module:
    """Build the unlearned network.

    Args:
        base: The network that the patch belongs to; stays as it is.
        patch: The patch.

    Returns:
        A new plain network in evaluation mode; smaller, if the patch removes channels.

    Raises:
        InputError: If the patch belongs to another network.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """
    _check_base(base, patch)
    made, state = models.copy_of(base), _state(base, patch)
    models.resize(made, {name: tuple(t.shape) for name, t in state.items()})
    models.put_state(made, state)
    return made.eval()


@contextmanager
def switched_on(model: nn.Module, patch: Patch) -> Iterator[nn.Module]:
    """Turn a network into the unlearned one for as long as the context lasts. In place.

    Args:
        model: The base. Afterwards it has every bit of its old weights again.
        patch: A patch of it that keeps its size.

    Yields:
        The same network, unlearned.

    Raises:
        InputError: If the patch belongs to another network, or removes channels.

    Source: this project.
    Lesson: 04_class_unlearning, "Undo".
    """
    check("patch", "with removed channels", not patch.kept, "one that keeps the size; use apply")
    _check_base(model, patch)
    old = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        models.put_state(model, _state(model, patch))
        yield model
    finally:
        models.put_state(model, old)


@torch.no_grad()
def combine(base: nn.Module, patches: Sequence[Patch]) -> Patch:
    """Add several patches of one base up: each forgets its own class, all of them together several.

    Low-rank changes are put side by side, what any of them masks is masked, whole tensors add their
    differences, and statistics of BatchNorm are averaged. Nothing is trained, so the result costs
    accuracy: measure it.

    Args:
        base: The network that all patches belong to.
        patches: At least one; those that remove channels must remove the same ones.

    Returns:
        One patch of the same base.

    Raises:
        InputError: If there is none, one belongs to another network, they remove different
            channels, or one is a DoRA patch, whose lengths do not add up.

    Source: task arithmetic: Ilharco et al. 2022 (arXiv 2212.04089).
    Lesson: 04_class_unlearning, "Several classes".
    """
    check("patches", len(patches), bool(patches), "at least one")
    for patch in patches:
        _check_base(base, patch)
        same = patch.kept.keys() == patches[0].kept.keys() and all(
            _same(a, b) for n in patch.kept
            for a, b in zip(patch.kept[n], patches[0].kept[n], strict=True)
        )  # fmt: skip
        check("patches", "different channels", same, "patches that remove the same channels")
        plain = all(change.magnitude is None for change in patch.low_rank.values())
        check("patches", "DoRA", plain, "lora or rslora: the lengths of filters do not add up")
    # a layer of which one patch stores the whole weight is added up as a whole
    whole = {n.removesuffix(".weight") for patch in patches for n in patch.tensors}
    names = {name for patch in patches for name in patch.low_rank} - whole
    low_rank = {}
    for name in sorted(names):
        found = [patch.low_rank[name] for patch in patches if name in patch.low_rank]
        b = torch.cat([change.scale * change.b for change in found], dim=1)
        low_rank[name] = LowRank(torch.cat([change.a for change in found]), b, 1.0)
    masks: Masks = {}
    for patch in patches:
        for name, mask in patch.masks.items():
            masks[name] = masks[name] & mask if name in masks else mask
    together = Patch(patches[0].base, "", low_rank, masks, patches[0].kept)
    start, tensors = _state(base, replace(together, low_rank={})), {}
    made, gone = [_state(base, patch) for patch in patches], _masked_tensors(base, masks)
    for name in sorted({name for patch in patches for name in patch.tensors}):
        old, mask = start[name].cpu(), gone.get(name)
        if not old.is_floating_point():
            tensors[name] = old
            continue
        old = old if mask is None else old.masked_fill(~mask, 0)
        total = sum((state[name].cpu() - old for state in made), torch.zeros_like(old))
        new = old + (total / len(patches) if name.endswith(_STATISTICS) else total)
        tensors[name] = new if mask is None else new * mask
    about = {"combined": [patch.about for patch in patches]}
    combined = replace(together, tensors=tensors, about=about)
    return replace(combined, result=models.fingerprint(apply(base, combined)))


def _masked_tensors(base: nn.Module, masks: Masks) -> Masks:
    """Return the masks by tensor, under each of its names: a layer or its weight may have two."""
    state, found = base.state_dict(keep_vars=True), {}
    for layer, mask in masks.items():
        weight = state[f"{layer}.weight"]
        for name in (name for name, tensor in state.items() if tensor is weight):
            found[name] = found[name] & mask if name in found else mask
    return found


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or torch.equal(a, b))


def size(patch: Patch) -> int:
    """Measure what a patch takes on disk.

    Args:
        patch: The patch.

    Returns:
        Bytes, of both its files.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """
    with tempfile.TemporaryDirectory() as folder:
        return sum(part.stat().st_size for part in save_patch(patch, Path(folder)).iterdir())


def save_patch(patch: Patch, folder: Path | str) -> Path:
    """Write a patch as ``patch.safetensors`` and ``patch.json``.

    Those of another patch that are there are replaced once both are whole.

    Args:
        patch: The patch.
        folder: Where to, as a path or its text; created if needed.

    Returns:
        The folder.

    Raises:
        FileProblem: If it cannot be written.

    Source: https://huggingface.co/docs/safetensors; masks take one bit a weight, or one a filter.
    Lesson: 03_lora_adaptation, "Patches".
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = {f"tensor/{n}": t for n, t in patch.tensors.items()}
    shapes, scales = {}, {}
    for name, change in patch.low_rank.items():
        scales[name] = change.scale
        tensors |= {f"a/{name}": change.a, f"b/{name}": change.b}
        if change.magnitude is not None:
            tensors[f"magnitude/{name}"] = change.magnitude
    for name, mask in patch.masks.items():
        filters = mask.flatten(1)
        whole = bool((filters.all(1) == filters.any(1)).all())
        bits = filters.all(1) if whole else mask.flatten()
        shapes[name] = {"shape": list(mask.shape), "filters": whole}
        tensors[f"mask/{name}"] = torch.from_numpy(np.packbits(bits.numpy()))
    for name, places in patch.kept.items():
        for dim, index in enumerate(places):
            if index is not None:
                tensors[f"kept{dim}/{name}"] = index.to(torch.int32)
    plain = {
        "format": FORMAT, "base": patch.base, "result": patch.result, "scales": scales,
        "masks": shapes, "about": patch.about,
    }  # fmt: skip
    path, about = folder / "patch.safetensors", folder / "patch.json"
    write = files.as_tensors(tensors)

    def write_tensors(part: Path) -> None:
        write(part)
        plain["sha256"] = files.sha256(part)
        plain["digest"] = _digest(plain)

    def write_about(part: Path) -> None:
        files.as_text(files.as_json(about, plain))(part)

    # the last one last: a folder with it is whole
    files.write_together({path: write_tensors, about: write_about})
    return folder


def load_patch(folder: Path | str, base: nn.Module) -> Patch:
    """Read a patch and check that it fits its base.

    The files are not trusted: nothing is unpickled, names are looked up in the base and never used
    as paths, and every shape is compared with the base's before a tensor is read.

    Args:
        folder: The folder that :func:`save_patch` wrote.
        base: The network that the patch belongs to.

    Returns:
        The patch.

    Raises:
        FileProblem: If a file is missing, damaged, or holds what no patch of such a network can.
        InputError: If the patch belongs to another network.

    Source: this project.
    Lesson: 03_lora_adaptation, "Patches".
    """
    path, data = Path(folder) / "patch.json", Path(folder) / "patch.safetensors"
    plain = files.read_json(path, tuple(_FIELDS))
    try:
        ok = plain["format"] == FORMAT and all(isinstance(plain[k], t) for k, t in _FIELDS.items())
        check("format", plain["format"], ok, f"a patch of format {FORMAT}")
        patch = Patch(plain["base"], plain["result"], about=plain["about"])
    except InputError as error:
        raise files.FileProblem(files.cannot_read(path, error)) from error
    _check_base(base, patch)
    try:
        _check_tensors(files.tensor_shapes(data), plain, base)
        ok = files.sha256(data) == plain["sha256"]
        check("SHA-256", "of the file", ok, "the one that patch.json states")
        check("digest", plain["digest"], plain["digest"] == _digest(plain), "that of patch.json")
        tensors, _ = files.load_tensors(data)
        patch = _unpack(tensors, plain, base, patch)
        made = apply(base, patch)
        _check_finite(base, made)
        models.check_fit(made)
    except (InputError, TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise files.FileProblem(files.cannot_read(folder, error)) from error
    if models.fingerprint(made) != patch.result:
        log.warning("%s: the network is not to the last bit the one that the patch was made from: "
                    "this machine rounds otherwise, or the patch was changed", folder)  # fmt: skip
    return patch


def _check_finite(base: nn.Module, made: nn.Module) -> None:
    """Refuse a product that overflows, though each of its factors is finite."""
    old = base.state_dict()
    for name, tensor in made.state_dict().items():
        ok = bool(tensor.isfinite().all()) or not bool(old[name].isfinite().all())
        check(name, "nan or inf", ok, "finite numbers, as in the base")


_FIELDS: dict[str, type] = {
    "format": int, "base": str, "result": str, "scales": dict, "masks": dict, "about": dict,
    "sha256": str, "digest": str,
}  # fmt: skip


def _digest(plain: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of everything that patch.json says, but itself."""
    content = {name: plain[name] for name in _FIELDS if name != "digest"}
    return files.digest_json(content)


def _check_tensors(
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype]], plain: dict[str, Any], base: nn.Module
) -> None:
    """Refuse names, types and shapes that no patch of the base has, before anything is read."""
    state = {n: (tuple(t.shape), t.dtype) for n, t in base.state_dict().items()}
    for key, (shape, dtype) in found.items():
        part, _, name = key.partition("/")
        tensor = name if part.startswith(("tensor", "kept")) else f"{name}.weight"
        check(key, shape, tensor in state, f"the tensors of {type(base).__name__}")
        most, wanted = state[tensor]
        columns = int(np.prod(most[1:], dtype=np.int64))
        limits: dict[str, tuple[int, ...]] = {
            "tensor": most, "a": (2**16, columns), "b": (most[0] if most else 0, 2**16),
            "magnitude": most[:1], "mask": (-(-most[0] * columns // 8) if most else 0,),
        } | {f"kept{dim}": (count,) for dim, count in enumerate(most)}  # fmt: skip
        choose(f"part of {key}", part, limits)
        if part == "mask":
            wanted = torch.uint8
        elif part.startswith("kept"):
            wanted = torch.int32
        ok = models.within(shape, limits[part]) and dtype == wanted
        check(key, f"{dtype} {shape}", ok, f"{wanted}, at most {limits[part]}")
    layers = {key.partition("/")[2] for key in found if key[:2] in ("a/", "b/")}
    ok = all({f"a/{n}", f"b/{n}"} <= found.keys() and n in plain["scales"] for n in layers)
    check("low-rank changes", sorted(layers)[:3], ok, "a, b and a scale for each layer")
    masked = {key[5:] for key in found if key.startswith("mask/")}
    check(
        "masks", sorted(masked)[:3], masked == plain["masks"].keys(), "those that patch.json names"
    )


def _unpack(
    tensors: dict[str, Tensor], plain: dict[str, Any], base: nn.Module, patch: Patch
) -> Patch:
    state, low_rank = base.state_dict(), {}
    for name, scale in plain["scales"].items():
        check("scale", scale, isinstance(scale, float) and np.isfinite(scale), "a finite number")
        a, b = tensors[f"a/{name}"], tensors[f"b/{name}"]
        check(name, (b.shape[1], a.shape[0]), b.shape[1] == a.shape[0], "one rank")
        low_rank[name] = LowRank(a, b, scale, tensors.get(f"magnitude/{name}"))
    masks = {}
    for name, stated in plain["masks"].items():
        shape, most = tuple(stated["shape"]), tuple(state[f"{name}.weight"].shape)
        check(f"mask of {name}", shape, models.within(shape, most), f"at most {most}")
        count = shape[0] if stated["filters"] is True else int(np.prod(shape, dtype=np.int64))
        packed = tensors[f"mask/{name}"].numpy()
        check(f"mask of {name}", len(packed), len(packed) == -(-count // 8), f"{count} bits")
        bits = torch.from_numpy(np.unpackbits(packed, count=count)).bool()
        if stated["filters"] is True:
            bits = bits.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        masks[name] = bits.reshape(shape).clone()
    kept: dict[str, list[Tensor | None]] = {}
    for key, index in tensors.items():
        if key.startswith("kept"):
            part, _, name = key.partition("/")
            size = state[name].shape[int(part[4:])]
            index = index.long()
            ok = bool((index.diff() > 0).all()) and int(index[0]) >= 0 and int(index[-1]) < size
            check(key, f"{len(index)} indices", ok, f"ascending, from 0 to {size - 1}")
            kept.setdefault(name, [None] * state[name].dim())[int(part[4:])] = index
    whole = {key[7:]: tensor for key, tensor in tensors.items() if key.startswith("tensor/")}
    channels = {name: tuple(places) for name, places in kept.items()}
    for name, tensor in whole.items():
        left = channels.get(name, (None,) * tensor.dim())
        wanted = tuple(n if p is None else len(p)
                       for n, p in zip(state[name].shape, left, strict=True))  # fmt: skip
        check(name, tuple(tensor.shape), tuple(tensor.shape) == wanted, f"{wanted}")
        ok = not name.endswith("running_var") or bool((tensor >= 0).all())
        check(name, "a negative variance", ok, "variances")
    for key, tensor in tensors.items():
        check(key, "nan or inf", bool(torch.isfinite(tensor).all()), "finite numbers")
    return replace(patch, low_rank=low_rank, masks=masks, kept=channels, tensors=whole)
