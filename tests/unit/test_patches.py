"""Patches: exact, reversible, checked; and files from strangers, which never do harm."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import files, lora, models, patches, pruning, runs, training, unlearning
from helpers.config import KINDS, InputError, Recipe
from helpers.files import FileProblem
from tests.killed import Killed, Writer
from tests.networks import images, networks, train_a_little

MANY = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def unlearned(base, kind, sparsity, rank, adapter, seed=0):
    """Prune, adapt, train and merge a random network; return all that a patch is made of."""
    pruned = pruning.Pruned(copy.deepcopy(base))
    if kind is not None:
        pruned = pruning.prune(base, sparsity, kind, measured=False)
    layers = models.layers(pruned.model)
    adapted = lora.attach(
        pruned.model, rank, layers.adaptable, alpha=2 * rank, kind=adapter, masks=pruned.masks,
        train_in_full=(layers.head, *layers.norms), seed=seed, audited=False,
    )  # fmt: skip
    train_a_little(adapted)
    with torch.no_grad():
        outputs = adapted(images())
        with adapted.disable_adapter():
            off = adapted(images())
        assert torch.equal(off, pruned.model(images())), "switched off it is the old network"
    changes = patches.changes(adapted)
    merged = lora.merge(adapted, pruned.masks)
    return outputs, merged, patches.make(base, merged, changes, pruned.masks, pruned.kept)


@MANY
@given(
    base=networks,
    kind=st.sampled_from([None, *KINDS]),
    sparsity=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    rank=st.integers(1, 2),
    adapter=st.sampled_from(["lora", "dora", "rslora"]),
)
def test_any_network_any_pruning_any_adapter(base, kind, sparsity, rank, adapter, tmp_path_factory):
    """Merge equals unmerged, off is the old one, masks are exact, the patch gives it all back."""
    layers = models.layers(base)
    smallest = min(len(base.get_submodule(n).weight) for n in layers.adaptable)
    if kind == "channels" and smallest * (1 - sparsity) < 2 * rank:
        return  # no such rank there; refusing it is tested elsewhere
    multiples = [base.get_submodule(n).weight[0].numel() % 4 == 0 for n in layers.prunable]
    if kind == "mask_nm" and not any(multiples):
        with pytest.raises(InputError, match="mask_nm"):
            pruning.prune(base, sparsity, kind, measured=False)
        return
    before = copy.deepcopy(base.state_dict())
    outputs, merged, patch = unlearned(base, kind, sparsity, rank, adapter)
    assert all(torch.equal(base.state_dict()[k], v) for k, v in before.items()), "the base moved"
    with torch.no_grad():
        assert torch.allclose(merged(images()), outputs, atol=1e-5)
    for name, mask in patch.masks.items():
        weight = merged.get_submodule(name).weight
        assert not weight[~mask].any()
        assert not torch.signbit(weight[~mask]).any(), "-0.0 is not a zero that stays"
    folder = tmp_path_factory.mktemp("patch")
    loaded = patches.load_patch(patches.save_patch(patch, folder), base)
    again = patches.apply(base, loaded)
    assert list(again.state_dict()) == list(merged.state_dict())
    for key, tensor in merged.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    if kind != "channels":
        with patches.switched_on(base, loaded) as on, torch.no_grad():
            assert torch.equal(on(images()), merged(images()))
        assert all(torch.equal(base.state_dict()[k], v) for k, v in before.items()), "not undone"


@MANY
@given(base=networks, place=st.integers(0, 10_000), bit=st.integers(0, 31))
def test_a_patch_for_another_base_is_refused(base, place, bit, tmp_path_factory):
    """One flipped bit in one weight makes it another network."""
    _, merged, patch = unlearned(base, None, 0.0, 1, "lora")
    other = copy.deepcopy(base)
    weight = other.convs[0].weight.data.view(torch.int32).flatten()
    weight[place % len(weight)] ^= 1 << bit if bit < 31 else -(1 << 31)
    folder = patches.save_patch(patch, tmp_path_factory.mktemp("patch"))
    for use in (lambda: patches.load_patch(folder, other), lambda: patches.apply(other, patch)):
        with pytest.raises(InputError, match="this patch belongs to the network"):
            use()
    with pytest.raises(InputError, match="has been applied to this one already"):
        patches.apply(merged, patch)


def test_the_exception_in_a_switched_on_network_undoes_it_too(dataset, original):
    _, _, patch = unlearned_digits(original, dataset)
    state = copy.deepcopy(original.state_dict())

    def use():
        with patches.switched_on(original, patch):
            assert not torch.equal(original.fc.weight, state["fc.weight"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert all(torch.equal(original.state_dict()[k], v) for k, v in state.items())


def unlearned_digits(original, dataset, **changes):
    from helpers.config import get_config

    cfg = get_config("smoke", epochs=2, **changes)
    outcome = unlearning.unlearn(original, dataset, cfg)
    return cfg, outcome, outcome.patch


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_of_digits_is_small_and_complete(kind, original, dataset, tmp_path):
    _, outcome, patch = unlearned_digits(original, dataset, pruning=kind)
    folder = patches.save_patch(patch, tmp_path)
    size = sum(p.stat().st_size for p in folder.iterdir())
    whole = 4 * models.count_parameters(original)
    assert size < (0.35 if kind != "mask_unstructured" else 0.4) * whole
    again = patches.apply(original, patches.load_patch(folder, original))
    found = training.predict(again, dataset.test, dataset)
    assert torch.equal(found, training.predict(outcome.model, dataset.test, dataset))
    frozen = {"layer1.0.conv1.weight", "bn1.weight", "layer2.0.bn1.bias"}
    assert not frozen & patch.tensors.keys(), "what did not train is not in the patch"


def test_patches_on_top_of_each_other_and_combined(cfg, dataset, original):
    """One after another: each fits the result of the one before. Combined: both belong to the
    same base.
    """
    first = unlearning.unlearn(original, dataset, cfg.but(forget=3))
    then = unlearning.unlearn(first.model, dataset, cfg.but(forget=8, earlier=(3,)))
    step = patches.apply(original, first.patch)
    both = patches.apply(step, then.patch)
    assert models.fingerprint(both) == models.fingerprint(then.model)
    with pytest.raises(InputError, match="belongs to the network"):
        patches.apply(original, then.patch)
    other = unlearning.unlearn(original, dataset, cfg.but(forget=8))
    combined = patches.combine(original, [first.patch, other.patch])
    made = patches.apply(original, combined)
    names = models.layers(original).prunable
    assert pruning.sparsity(made, names) == 0.5
    assert combined.low_rank["layer3.0.conv1"].a.shape[0] == 2 * cfg.rank
    split = dataset.split((3, 8))
    wrong = training.predict(made, split.test_forget, dataset).argmax(1)
    assert (wrong != split.test_forget.labels.cpu()).float().mean() > 0.5
    alone = patches.combine(original, [first.patch])
    found = patches.apply(original, alone)
    close = zip(found.parameters(), first.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in close), "one alone is itself"


def test_combined_patches_share_the_statistics(original):
    """Changes of weights add up; of a mean that each of two moved the average is taken. A count
    stays as it was.
    """

    def moved(step):
        network = copy.deepcopy(original)
        network.bn1.running_mean += step
        network.bn1.num_batches_tracked += 5
        return patches.make(original, network, {})

    combined = patches.combine(original, [moved(1.0), moved(3.0)])
    made = patches.apply(original, combined)
    wanted = original.bn1.running_mean + 2
    assert torch.allclose(made.bn1.running_mean, wanted)
    assert made.bn1.num_batches_tracked == original.bn1.num_batches_tracked
    assert combined.result == models.fingerprint(made)


class Again(nn.Module):
    """Has a layer, or the weight of one, under a second name."""

    input_shape = (1, 8, 8)

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.second = nn.Conv2d(8, 8, 3) if tied else self.inner
        self.second.weight = self.inner.weight
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.second(self.inner(self.first(x)).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("tied", [False, True])
def test_what_has_two_names_is_masked_under_both(tied):
    model, made, kept = Again(tied), [], torch.ones(8, 8, 3, 3, dtype=torch.bool)
    for seed in (0, 1):
        pruned = copy.deepcopy(model)
        masks = pruning.mask_structured(pruned, 0.5, ["inner"], criterion="random", seed=seed)
        made.append(patches.make(model, pruned, {}, masks))
        kept &= masks["inner"]
    weight = patches.apply(model, patches.combine(model, made)).inner.weight
    assert torch.equal(weight, model.inner.weight * kept)


def test_a_patched_network_is_in_evaluation_mode_whatever_its_base_is_in(original):
    base = copy.deepcopy(original).train()
    made = patches.apply(base, patches.Patch(models.fingerprint(base)))
    assert not any(module.training for module in made.modules())
    assert all(module.training for module in base.modules())


@pytest.mark.parametrize("count", [1, 63])  # of a single number all filters would be made
def test_lengths_of_dora_that_do_not_fit_the_layer_are_refused(count, original):
    a, b = torch.zeros(1, 288), torch.zeros(64, 1)
    low_rank = {"layer3.0.conv1": patches.LowRank(a, b, 1.0, torch.ones(count))}
    patch = patches.Patch(models.fingerprint(original), low_rank=low_rank)
    told = f"^magnitude of layer3.0.conv1 = '{count} numbers' is not allowed: 64 numbers$"
    with pytest.raises(InputError, match=told):
        patches.apply(original, patch)


def test_what_cannot_be_combined_is_refused(cfg, dataset, original):
    one = unlearning.unlearn(original, dataset, cfg.but(epochs=1, adapter="dora")).patch
    with pytest.raises(InputError, match="lengths of filters do not add up"):
        patches.combine(original, [one, one])
    with pytest.raises(InputError, match="at least one"):
        patches.combine(original, [])
    small = cfg.but(epochs=1, pruning="channels")
    two = [unlearning.unlearn(original, dataset, small.but(sparsity=s)).patch for s in (0.25, 0.5)]
    with pytest.raises(InputError, match="remove the same channels"):
        patches.combine(original, two)
    with (
        pytest.raises(InputError, match="one that keeps the size"),
        patches.switched_on(original, two[0]),
    ):
        pass
    patches.apply(original, patches.combine(original, [two[1], two[1]]))


def test_a_run_keeps_its_patch(cfg, dataset, original_run, original):
    run = runs.run(cfg.but(epochs=1), dataset, progress=False)
    again = patches.apply(original, run.patch(original))
    assert models.fingerprint(again) == models.fingerprint(run.model(dataset))
    with pytest.raises(InputError, match="one that trains adapters"):
        original_run.patch(original)


# ------------------------------------------------------------------------------------------------
# files from strangers


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def safetensors(header: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def hostile(rng: random.Random, good: bytes, plain: bytes) -> tuple[bytes, bytes]:
    """Return a damaged or crafted pair of patch.safetensors and patch.json."""
    kind = rng.randrange(12)
    name = rng.choice(["tensor/fc.weight", "a/layer3.0.conv1", "mask/conv1", "kept0/fc.weight"])
    stated = json.loads(plain)
    if kind == 0:  # truncated
        return good[: rng.randrange(len(good))], plain
    if kind == 1:  # some bytes changed, anywhere
        data = bytearray(good)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] ^= rng.randint(1, 255)
        return bytes(data), plain
    if kind == 2:  # a header that lies about its length
        return struct.pack("<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1])) + good[8:], plain
    if kind == 3:  # an absurd shape
        size = rng.choice([2**20, 2**40, 2**62])
        entry = {"dtype": "F32", "shape": [size, size], "data_offsets": [0, 4]}
        return safetensors({name: entry}, b"\0" * 4), plain
    if kind == 4:  # a shape and offsets that agree with each other, but not with the network
        shape = [rng.randint(1, 70), rng.randint(1, 700)]
        size = 4 * shape[0] * shape[1]
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
        return safetensors({name: entry}, b"\0" * size), plain
    if kind == 5:  # names that are paths
        evil = rng.choice(["../../PWNED", "/etc/PWNED", "tensor/../PWNED", "kept0/..", "", "a/"])
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        return safetensors({evil: entry}, b"\0" * 4), plain
    if kind == 6:  # a pickle under another name
        return pickle.dumps(Evil()), plain
    if kind == 7:  # a pickle in place of the JSON
        return good, pickle.dumps(Evil())
    if kind == 8:  # damaged JSON
        data = bytearray(plain)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return good, bytes(data)
    if kind == 9:  # sound JSON, wrong content
        field = rng.choice(list(stated))
        stated[field] = rng.choice([None, 0, -1, "x", [], {}, {"conv1": 1}, 1e308, True])
        return good, json.dumps(stated).encode()
    if kind == 10:  # wrong masks and scales
        layer = rng.choice(list(stated["masks"]))
        stated["masks"][layer] = rng.choice(
            [{"shape": [2**40] * 4, "filters": False}, {"shape": [-1], "filters": True}, 7, {},
             {"shape": "ab", "filters": 1}]
        )  # fmt: skip
        stated["scales"][rng.choice(list(stated["scales"]))] = rng.choice([None, "2", 1e999, []])
        return good, json.dumps(stated).encode()
    depth = rng.choice([10, 100_000])  # nested beyond all reason
    return good, b"[" * depth


def test_a_thousand_hostile_patches_do_no_harm(original, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, patch = unlearned_digits(original, dataset)
    folder = patches.save_patch(patch, tmp_path / "patch")
    file, text = folder / "patch.safetensors", folder / "patch.json"
    good, plain = file.read_bytes(), text.read_bytes()
    patches.load_patch(folder, original)
    state, rng = models.fingerprint(original), random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        data, stated = hostile(rng, good, plain)
        if (data, stated) == (good, plain):
            continue
        file.write_bytes(data)
        text.write_bytes(stated)
        loaded, message = attempt(lambda: patches.load_patch(folder, original))
        assert "\n" not in message
        if loaded is not None:  # what is not checked by a hash is only said about the patch
            assert data == good, "damaged tensors were read"
            assert replace(loaded, about={}, result="").masks.keys() == patch.masks.keys()
            stated = json.loads(stated)
            same = {k: v for k, v in json.loads(plain).items() if k not in ("about", "result")}
            assert all(stated[k] == v for k, v in same.items()), "a changed patch was read"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1_000_000, f"{grown} kB more than before"
    assert models.fingerprint(original) == state
    assert not list(tmp_path.rglob("PWNED"))


def attempt(read):
    """Return what was read, or the message of one of our errors; any other error fails."""
    try:
        return read(), ""
    except (FileProblem, InputError) as error:
        return None, str(error)


def hostile_model(rng: random.Random, good: bytes, plain: bytes) -> tuple[bytes, bytes]:
    stated = json.loads(plain)
    name = rng.choice(list(stated["shapes"]))
    kind = rng.randrange(8)
    if kind == 0:
        return good[: rng.randrange(len(good))], plain
    if kind == 1:
        return struct.pack("<Q", rng.choice([0, 2**33, 2**64 - 1])) + good[8:], plain
    if kind == 2:
        return pickle.dumps(Evil()), plain
    if kind == 3:
        stated["shapes"][name] = rng.choice(
            [[2**40], [0], [-3, 3], [], "ab", None, [1.5], [10**9] * 4]
        )
    elif kind == 4:
        field = rng.choice(["name", "num_classes", "in_channels", "image_size"])
        stated["blueprint"][field] = rng.choice(
            [0, -1, 10**12, None, "x" * 99, 3.5, [], True, "vit"]
        )
    elif kind == 5:
        field = rng.choice(["blueprint", "shapes"])
        stated[field] = rng.choice([[], 3, "x", {}, {"../PWNED": [1]}])
    elif kind == 6:
        entry = {"dtype": rng.choice(["F32", "F64", "I8"]), "shape": [1], "data_offsets": [0, 4]}
        return safetensors({name: entry}, b"\0" * 4), plain
    else:
        return good, pickle.dumps(Evil())
    return good, json.dumps(stated).encode()


def test_hostile_models_do_no_harm(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = pruning.prune(original, 0.5, "channels", measured=False).model
    models.save(small, tmp_path / "m")
    file, text = tmp_path / "m" / "model.safetensors", tmp_path / "m" / "architecture.json"
    good, plain = file.read_bytes(), text.read_bytes()
    assert models.fingerprint(models.load(tmp_path / "m")) == models.fingerprint(small)
    for name in ("resnet50", "vit"):  # the largest of what a blueprint may ask for
        stated = json.loads(plain)
        stated["blueprint"] = {"name": name, "num_classes": 10_000, "in_channels": 64,
                               "image_size": 512}  # fmt: skip
        text.write_bytes(json.dumps(stated).encode())
        with pytest.raises(FileProblem, match="by the same names"):
            models.load(tmp_path / "m")
    rng = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for round_ in range(400):
        data, stated = hostile_model(rng, good, plain)
        file.write_bytes(data)
        text.write_bytes(stated)
        base = original if round_ % 2 else None
        found, message = attempt(lambda base=base: models.load(tmp_path / "m", base))
        assert "\n" not in message
        if found is not None:  # where a base is given, nothing is built from the blueprint
            assert base is not None
            assert json.loads(stated)["shapes"] == json.loads(plain)["shapes"]
            assert models.fingerprint(found) == models.fingerprint(small)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000
    assert not list(tmp_path.rglob("PWNED"))


def test_tensors_of_another_patch_of_the_same_base_are_noticed(original, tmp_path):
    def saved(step):
        network = copy.deepcopy(original)
        with torch.no_grad():
            network.fc.bias += step
        return patches.save_patch(patches.make(original, network, {}), tmp_path / str(step))

    one, other = saved(1), saved(2)
    (one / "patch.safetensors").write_bytes((other / "patch.safetensors").read_bytes())
    with pytest.raises(FileProblem, match="SHA-256"):
        patches.load_patch(one, original)


def test_loading_never_imports_pickle_modules(original, tmp_path):
    """A pickle renamed to .safetensors is refused by its format, in a process of its own."""
    models.save(original, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    code = (
        "import sys, pathlib; from helpers import models\n"
        "try: models.load(pathlib.Path('.'))\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "If this package wrote it, it is damaged" in done.stdout, done.stderr
    assert not (tmp_path / "PWNED").exists()


def test_a_network_of_ones_own_takes_the_whole_way(tmp_path):
    """What the README shows: prune, adapt, merge, patch, on a module this project never saw."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 12, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2),
        ),
        torch.nn.Flatten(), torch.nn.Linear(48, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4),
    ).eval()  # fmt: skip
    model.input_shape = (3, 8, 8)
    pruned = pruning.prune(model, 0.5, "channels")
    layers = models.layers(pruned.model)
    assert layers.head == "4"
    assert layers.stages == (("0.3",),), "the last convolution"
    assert [row["stage"] for row in pruned.ledger] == ["before", "pruned"]
    adapted = lora.attach(pruned.model, 2, layers.targets("last_stage"), alpha=4,
                          masks=pruned.masks, train_in_full=[layers.head])  # fmt: skip
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    torch.nn.functional.cross_entropy(
        adapted(models.example(model, 8)), torch.arange(8) % 4
    ).backward()
    optimizer.step()
    changes, merged = patches.changes(adapted), lora.merge(adapted, pruned.masks)
    patch = patches.make(model, merged, changes, pruned.masks, pruned.kept)
    patches.save_patch(patch, tmp_path)
    again = patches.apply(model, patches.load_patch(tmp_path, model))
    assert models.fingerprint(again) == models.fingerprint(merged)
    models.save(merged, tmp_path / "whole")
    loaded = models.load(tmp_path / "whole", model)
    assert models.fingerprint(loaded) == models.fingerprint(merged)
    with pytest.raises(FileProblem, match="blueprint"):
        models.load(tmp_path / "whole")
    del model.input_shape
    with pytest.raises(InputError, match=r"set model\.input_shape"):
        pruning.prune(model, 0.5, "channels")


KEPT = ["patch", "network", "network of another architecture"]


def save_one(kind, step, folder):
    """Write the first or the second of two patches or networks; returns which network it gives."""
    base = models.build_model("digits_resnet", 10, 1, 8)
    other = kind == KEPT[2] and step > 0
    made = models.build_model("vit_tiny", 10, 1, 8) if other else copy.deepcopy(base)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(step)
    if kind == "patch":
        patches.save_patch(patches.make(base, made, {}), folder)
    else:
        models.save(made, folder)
    return models.fingerprint(made)


def load_one(kind, folder):
    if kind != "patch":
        return models.fingerprint(models.load(folder))
    base = models.build_model("digits_resnet", 10, 1, 8)
    return models.fingerprint(patches.apply(base, patches.load_patch(folder, base)))


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_replaced_stays_if_there_is_no_room_for_both_new_files(kind, tmp_path, monkeypatch):
    old = save_one(kind, 0, tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(FileProblem, match=r"\.json: No space left.*nothing was left half"):
            save_one(kind, 1, tmp_path)
    assert load_one(kind, tmp_path) == old
    assert len(list(tmp_path.iterdir())) == 2
    assert save_one(kind, 1, tmp_path) == load_one(kind, tmp_path) != old


@pytest.mark.parametrize("kind", KEPT)
def test_wherever_saving_is_killed_no_old_file_is_beside_a_new_one(kind, tmp_path, monkeypatch):
    writer, found, done = Writer(monkeypatch), [], False
    while not done:
        writer.left, folder = 1000, tmp_path / str(len(found))
        old = save_one(kind, 0, folder)
        writer.left = len(found)
        with contextlib.suppress(Killed):
            save_one(kind, 1, folder)
            done = True
        whole = any(folder.glob("[!.]*.json"))
        found.append(("old" if load_one(kind, folder) == old else "new") if whole else "neither")
    assert (found[0], found[-1]) == ("old", "new")
    assert ("neither" in found) == (kind != "network"), "its description is the same as before"


@pytest.mark.parametrize("field", ["scales", "result", "about", "masks"])
def test_a_word_changed_in_the_json_is_noticed(field, original, dataset, tmp_path):
    _, _, patch = unlearned_digits(original, dataset)
    path = patches.save_patch(patch, tmp_path) / "patch.json"
    stated = json.loads(path.read_text())
    if field == "scales":
        stated["scales"] = {name: -50 * scale for name, scale in stated["scales"].items()}
    elif field == "masks":
        stated["masks"]["conv1"]["filters"] = False
    else:
        stated[field] = {"forgotten": [1]} if field == "about" else "0" * 64
    path.write_text(json.dumps(stated))
    with pytest.raises(FileProblem, match=r"digest|bits"):
        patches.load_patch(tmp_path, original)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tensor/fc.bias", lambda t: t * torch.nan, "nan or inf"),
        ("b/layer3.0.conv1", lambda t: t + torch.inf, "nan or inf"),
        ("mask2/fc", lambda _: torch.tensor(1.0), "part of mask2/fc = 'mask2'"),
        ("tensor/layer3.0.bn1.running_var", lambda t: t - 1e3, "a negative variance"),
        ("tensor/layer3.0.bn1.running_var", lambda t: t[:7].clone(), r"\(7,\).*\(64,\)"),
        ("tensor/layer3.0.bn2.weight", lambda t: t[:63].clone(), r"\(63,\).*\(64,\)"),
    ],
)
def test_digests_do_not_make_nonsense_a_patch(name, change, message, original, dataset, tmp_path):
    """Whoever changes the tensors can compute their digests, too."""
    _, _, patch = unlearned_digits(original, dataset)
    folder = patches.save_patch(patch, tmp_path)
    tensors, _ = files.load_tensors(folder / "patch.safetensors")
    tensors[name] = change(tensors.get(name))
    path = files.save_tensors(folder / "patch.safetensors", tensors)
    stated = json.loads((folder / "patch.json").read_text())
    stated["sha256"] = files.sha256(path)
    stated["digest"] = patches._digest(stated)
    (folder / "patch.json").write_text(json.dumps(stated))
    with pytest.raises(FileProblem, match=message):
        patches.load_patch(folder, original)


def test_a_product_that_overflows_is_no_patch(original, tmp_path):
    shape = original.get_submodule("layer3.0.conv1").weight.flatten(1).shape
    change = patches.LowRank(torch.full((1, shape[1]), 3e38), torch.full((shape[0], 1), 3e38), 1.0)
    patch = patches.Patch(models.fingerprint(original), low_rank={"layer3.0.conv1": change})
    with pytest.raises(FileProblem, match=r"conv1\.weight = 'nan or inf' is not allowed: finite"):
        patches.load_patch(patches.save_patch(patch, tmp_path), original)


def test_an_infinite_scale_is_refused(original, tmp_path):
    low_rank = {"fc": patches.LowRank(torch.ones(1, 64), torch.ones(10, 1), 1.0)}
    patch = patches.Patch(models.fingerprint(original), low_rank=low_rank)
    folder = patches.save_patch(patch, tmp_path)
    stated = json.loads((folder / "patch.json").read_text())
    stated["scales"]["fc"] = float("inf")
    stated["digest"] = patches._digest(stated)
    (folder / "patch.json").write_text(json.dumps(stated))
    with pytest.raises(FileProblem, match="scale = inf is not allowed: a finite number"):
        patches.load_patch(folder, original)


def test_a_channel_is_kept_once(tmp_path):
    torch.manual_seed(0)
    model, twice = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 10)), torch.tensor([0, 1, 1])
    model = nn.Sequential(nn.Flatten(), *model).eval()
    model.input_shape = (1, 8, 8)
    kept = {"1.weight": (twice, None), "1.bias": (twice,), "2.weight": (None, twice)}
    patch = patches.Patch(models.fingerprint(model), kept=kept)
    with pytest.raises(FileProblem, match="ascending, from 0 to 3"):
        patches.load_patch(patches.save_patch(patch, tmp_path), model)


def test_channels_that_one_layer_alone_lacks_are_no_patch(original, tmp_path):
    kept = {"fc.weight": (None, torch.arange(3))}  # the layers before it give more
    patch = patches.Patch(models.fingerprint(original), kept=kept)
    with pytest.raises(FileProblem, match="model cannot take images of"):
        patches.load_patch(patches.save_patch(patch, tmp_path), original)


@pytest.mark.parametrize("right", [True, False])
def test_a_patch_that_makes_another_network_than_it_says_is_told(
    right, original, tmp_path, caplog
):  # fmt: skip
    patch = patches.make(original, original, {})
    patch = patch if right else replace(patch, result="0" * 64)
    patches.load_patch(patches.save_patch(patch, tmp_path), original)
    assert ("not to the last bit the one that the patch was made from" in caplog.text) != right


def test_whole_weights_are_combined_and_masked_too(cfg, dataset, original):
    """Paper mode stores pruned layers whole; one of low rank and one whole add up as well."""
    names = models.layers(original).prunable
    made = []
    for share, seed in ((0.25, 0), (0.5, 1)):
        tuned = copy.deepcopy(original)
        masks = pruning.mask_structured(tuned, share, names, criterion="random", seed=seed)
        recipe = Recipe(epochs=1, lr=0.01)
        training.fit(tuned, dataset.split(3).retain, dataset, recipe, seed=seed,
                     after_step=lambda t=tuned, m=masks: pruning.apply_masks(t, m))  # fmt: skip
        made.append(patches.make(original, tuned, {}, masks))
    joint = patches.apply(original, patches.combine(original, made))
    for name in names:
        gone = ~(made[0].masks[name] & made[1].masks[name])
        assert not joint.get_submodule(name).weight[gone.to(cfg.device)].any()
    low = unlearning.unlearn(original, dataset, cfg.but(method="lora", epochs=1)).patch
    whole = patches.make(original, unlearning.unlearn(
        original, dataset, cfg.but(method="finetune", epochs=1)).model, {})  # fmt: skip
    name = "layer3.0.conv1"
    states = [patches.apply(original, p).get_submodule(name).weight for p in (low, whole)]
    old = original.get_submodule(name).weight
    wanted = states[0] + states[1] - old
    found = patches.apply(original, patches.combine(original, [low, whole]))
    assert torch.allclose(found.get_submodule(name).weight, wanted, atol=1e-6)
