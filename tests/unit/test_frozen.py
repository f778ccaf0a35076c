from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import frozen, lora, models, pruning, store, training, unlearning
from helpers.config import InputError, Recipe
from helpers.data import ImageSet


def adapted(model, scope="last_stage"):
    layers = models.layers(model)
    targets = layers.targets(scope)
    names = [n for n, _ in model.named_modules()]
    norms = [n for n in layers.norms if names.index(n) > names.index(targets[0])]
    made = lora.attach(model, 2, targets, alpha=4, train_in_full=(layers.head, *norms))
    return made, {*targets, layers.head, *norms}


@pytest.mark.parametrize("scope", ["last_block", "last_stage", "blocks"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits_resnet", (1, 8)), ("resnet20", (3, 32)), ("resnet18", (3, 32)), ("vit_tiny", (1, 8))],
)
def test_the_two_parts_are_the_network(name, shape, scope):
    model = models.build_model(name, 10, *shape)
    made, trained = adapted(model, scope)
    cut = frozen.cut(model, made.get_base_model(), trained)
    images = models.example(model, 5)
    with torch.no_grad():
        packed = torch.cat([t.flatten(1) for t in cut.front(images)], dim=1)
        assert packed.shape == (5, cut.width)
        assert torch.equal(cut.tail(packed), made(images))
    trains = {id(p) for p in made.parameters() if p.requires_grad}
    assert trains <= {id(p) for p in cut.tail.parameters()}, "everything that trains is in the tail"
    assert not trains & {id(p) for p in cut.front.parameters()}


def test_a_network_that_trains_from_its_first_layer_cannot_be_cut():
    model = models.build_model("digits_resnet", 10, 1, 8)
    made, trained = adapted(model, "all")
    with pytest.raises(InputError, match="nothing of SmallResNet lies before"):
        frozen.cut(model, made.get_base_model(), trained)


def test_a_weight_that_trains_is_in_the_tail_wherever_it_is_read():
    class Reads(nn.Module):
        input_shape = (1, 4, 4)

        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            x = self.first(x.flatten(1))
            return self.head(nn.functional.linear(x, self.second.weight))

    model = Reads()
    cut = frozen.cut(model, model, ["second", "head"])
    assert any(p is model.second.weight for p in cut.tail.parameters())
    assert not any(p is model.second.weight for p in cut.front.parameters())


def test_a_network_with_its_own_control_flow_is_refused_in_words():
    class Moody(nn.Module):
        input_shape = (1, 4, 4)

        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, x):
            x = self.a(x.flatten(1))
            return self.head(x if x.sum() > 0 else -x)

    model = Moody()
    with pytest.raises(InputError, match="Moody cannot be cut in two"):
        frozen.cut(model, model, ["head"])


@pytest.mark.parametrize("method", ["lora", "prunelora", "prunelora_channels"])
@pytest.mark.parametrize("model", ["digits_resnet", "vit_tiny"])
def test_the_same_losses_and_weights_with_and_without_the_cache(method, model, cfg, dataset):
    one = cfg.but(method=method, model=model, epochs=2, rank=2, precision="fp32")
    original = unlearning.new_model(one, dataset)
    monitor = dataset.validation
    kept = unlearning.unlearn(original, dataset, one, monitor=monitor)
    anew = unlearning.unlearn(original, dataset, one.but(cache_mb=0), monitor=monitor)
    assert kept.frozen_once
    assert not anew.frozen_once
    apart = 0 if cfg.device == "cpu" else 1e-4  # on the CPU the same to the last bit
    for a, b in zip(kept.fit.history, anew.fit.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=apart)
        assert a["5"] == pytest.approx(b["5"], abs=0.03)
    for (name, a), b in zip(
        kept.model.state_dict().items(), anew.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(a.float(), b.float(), atol=1e-3), name


@pytest.fixture
def colour(cfg, dataset):
    """Random images of three channels, which are laid out channels last."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (256, 3, 16, 16), generator=draw, dtype=torch.uint8)
    labels = torch.arange(256) % 10
    part = ImageSet(images.to(cfg.device), labels.to(cfg.device))
    half = torch.full((3,), 0.5, device=cfg.device)
    made = dataclasses.replace(
        dataset, train=part, validation=part, test=part, mean=half, std=half, fingerprint="colour"
    )
    assert made.normalise(part.images).is_contiguous(memory_format=torch.channels_last)
    return made


def assert_same(one, other, cfg):
    """On the CPU two trainings give the same to the last bit; on CUDA nearly."""
    losses = [[row["loss"] for row in outcome.fit.history] for outcome in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=0 if cfg.device == "cpu" else 1e-3)
    if cfg.device == "cpu":
        assert models.fingerprint(one.model) == models.fingerprint(other.model)


@pytest.mark.parametrize("method", ["lora", "prunelora_channels"])
def test_colour_images_keep_their_channels_last_through_the_cache(method, cfg, colour):
    one = cfg.but(method=method, model="resnet20", epochs=1, rank=2)
    original = unlearning.new_model(one, colour)
    kept, anew = (unlearning.unlearn(original, colour, one.but(cache_mb=size)) for size in (100, 0))
    assert kept.frozen_once
    assert not anew.frozen_once
    assert_same(kept, anew, cfg)


def test_features_come_back_laid_out_as_the_frozen_part_made_them(cfg, colour):
    original, seen = unlearning.new_model(cfg.but(model="resnet20"), colour), []
    made, trained = adapted(original)
    cache, few = frozen.Cache(10**9), colour.train.sample(20, seed=0)
    for _ in range(2):  # made, and found again
        cut = frozen.cut(original, made.get_base_model(), trained)
        features = cache.features(cut, few, colour)
        with cut.tail.graph.register_forward_pre_hook(lambda _, given: seen.append(given)):
            cut.tail(features.images)
    with torch.no_grad():
        wanted = cut.front(colour.normalise(few.images))
    assert len(cache._kept) == 1
    for given in seen:
        assert [x.stride() for x in given] == [x.stride() for x in wanted]
        for a, b in zip(given, wanted, strict=True):
            assert torch.allclose(a, b, atol=0 if cfg.device == "cpu" else 1e-4)


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_features_found_again_are_as_those_just_made(precision, cfg, colour):
    one = cfg.but(method="lora", model="resnet20", epochs=1, precision=precision)
    original, cache = unlearning.new_model(one, colour), frozen.Cache(10**9)
    unlearning.unlearn(original, colour, one.but(rank=1), cache=cache)
    again = unlearning.unlearn(original, colour, one.but(rank=2), cache=cache)
    assert again.frozen_once
    assert len(cache._kept) == 1, "found again"
    assert_same(again, unlearning.unlearn(original, colour, one.but(rank=2)), cfg)


def test_features_are_those_of_their_precision_and_batch_size(cfg, colour):
    one = cfg.but(method="lora", model="resnet20", epochs=1, rank=2)
    original, cache = unlearning.new_model(one, colour), frozen.Cache(10**9)
    for precision, size, count in (
        ("fp32", 64, 1),
        ("amp", 64, 2),
        ("fp32", 30, 3),
        ("fp32", 64, 3),
    ):
        how = one.but(precision=precision)
        recipe = dataclasses.replace(how.unlearn, batch_size=size)
        shared = unlearning.unlearn(original, colour, how, recipe=recipe, cache=cache)
        assert len(cache._kept) == count
        assert_same(shared, unlearning.unlearn(original, colour, how, recipe=recipe), cfg)


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_features_in_a_file_give_the_same_losses(precision, cfg, dataset, original, monkeypatch):
    one = cfg.but(method="prunelora", epochs=2, precision=precision)
    monitor = dataset.validation
    caches = [frozen.Cache(10**9) for _ in range(2)]
    memory = unlearning.unlearn(original, dataset, one, cache=caches[0], monitor=monitor)
    monkeypatch.setattr(frozen, "IN_MEMORY", 0)
    file = unlearning.unlearn(original, dataset, one, cache=caches[1], monitor=monitor)
    assert memory.fit.history == file.fit.history
    (a, b), (c, d) = ([part.images for part, _ in cache._kept.values()] for cache in caches)
    assert isinstance(a, torch.Tensor)
    assert isinstance(d, store.Spilled)
    assert torch.equal(a, c[:])
    assert torch.equal(b, d[:])
    assert b.dtype == d.dtype
    saved = b.nbytes - 4 * one.unlearn.batch_size * b[0].nbytes  # four batches are read ahead
    assert saved > 0
    if cfg.device == "cpu":  # on CUDA the allocator counts, and it rounds
        assert memory.fit.peak_memory - file.fit.peak_memory == saved
    again = unlearning.unlearn(original, dataset, one.but(rank=2), cache=caches[1])
    assert again.frozen_once
    assert len(caches[1]._kept) == 2, "found again"


def test_statistics_before_the_first_adapter_do_not_move(cfg, dataset, original):
    for mb in (0, 100):
        state = unlearning.unlearn(original, dataset, cfg.but(epochs=1, method="lora", cache_mb=mb))
        old = original.state_dict()
        for name, tensor in state.model.state_dict().items():
            if "running" in name:
                still = not name.startswith("layer3")
                assert torch.equal(tensor, old[name]) == still, name


def test_frozen_norms_leave_no_trace_of_training(cfg, dataset, original):
    one = cfg.but(epochs=1, method="lora", norms="frozen")
    outcome = unlearning.unlearn(original, dataset, one)
    old = original.state_dict()
    norms = [k for k in old if ".bn" in k or k.startswith("bn") or "shortcut.1" in k]
    assert all(torch.equal(outcome.model.state_dict()[k], old[k]) for k in norms)
    assert not {k for k in outcome.patch.tensors if k in norms}


@pytest.mark.parametrize(
    "why", [{"cache_mb": 0}, {"targets": "all"}, {"mode": "paper"}], ids=lambda d: next(iter(d))
)
def test_where_it_cannot_be_it_is_not(why, cfg, dataset, original):
    assert not unlearning.unlearn(original, dataset, cfg.but(epochs=1, **why)).frozen_once


@pytest.mark.parametrize("how", [{"augment": "crop"}, {"mixup": 0.2}], ids=lambda d: next(iter(d)))
def test_augmented_images_are_not_kept(how, cfg, dataset, original):
    recipe = Recipe(epochs=1, lr=0.01, **how)
    assert not unlearning.unlearn(original, dataset, cfg, recipe=recipe).frozen_once


def test_a_grid_computes_the_frozen_part_once(cfg, dataset, original, monkeypatch):
    passes, batches, pruned = [], frozen.batches, []
    prune = pruning.prune
    monkeypatch.setattr(pruning, "prune", lambda *a, **k: pruned.append(1) or prune(*a, **k))

    def counted(part, size):
        passes.append(len(part))
        return batches(part, size)

    monkeypatch.setattr(frozen, "batches", counted)
    cache = frozen.Cache(100_000_000)
    for rank, seed in ((1, 0), (2, 0), (3, 0)):
        one = cfg.but(rank=rank, seed=seed, epochs=1)
        assert unlearning.unlearn(original, dataset, one, cache=cache).frozen_once
    assert passes == [len(dataset.split(cfg.forget).retain)]
    assert len(pruned) == 1
    for change in ({"sparsity": 0.25}, {"pruning": "channels"}, {"forget": 5}):
        unlearning.unlearn(original, dataset, cfg.but(epochs=1, **change), cache=cache)
    assert len(pruned) == 4, "another network, other settings or other images are pruned anew"


def test_a_kept_pruned_network_is_never_trained(cfg, dataset, monkeypatch):
    """Two runs of a method that prunes fresh weights begin with the same ones."""
    lottery = unlearning.Method(start="scratch", prune="mask_structured")
    monkeypatch.setitem(unlearning.METHODS, "lottery", lottery)
    cache, one = frozen.Cache(100_000_000), cfg.but(method="lottery")
    recipe = Recipe(epochs=1, lr=0.01)
    runs = [unlearning.unlearn(None, dataset, one, recipe=recipe, cache=cache) for _ in range(2)]
    assert runs[0].model is not runs[1].model
    assert runs[0].fit.history == runs[1].fit.history


def test_the_cache_keeps_to_its_limit(cfg, dataset, original):
    made, trained = adapted(original)
    cut = frozen.cut(original, made.get_base_model(), trained)
    bytes_each = 4 * cut.width
    cache = frozen.Cache(limit=30 * bytes_each)
    assert cache.fits(cut, 30)
    assert not cache.fits(cut, 31)
    parts = [dataset.validation.sample(n, seed=n) for n in (10, 15, 20)]
    for part in parts:
        cache.features(cut, part, dataset)
    kept = [len(s) for s, _ in cache._kept.values()]
    assert kept == [20], "the oldest went first"
    again = cache.features(cut, parts[2], dataset)
    assert again is next(iter(cache._kept.values()))[0]
    other = dataclasses.replace(parts[2], labels=parts[2].labels.flip(0))
    assert cache.features(cut, other, dataset) is not again, "other labels are another set"
    changed = copy.deepcopy(dataset).with_std(torch.tensor(2.0))
    assert not torch.equal(cache.features(cut, parts[2], changed).images, again.images)
    cache.features(cut, dataset.validation.sample(31), dataset)
    assert not cache._kept, "larger than the limit"


def test_what_is_kept_is_given_up_before_another_is_made():
    cache, left = frozen.Cache(0), []
    before = weakref.ref(cache.once((1,), lambda: nn.Linear(1, 1)))
    cache.once((2,), lambda: left.append(before()))
    assert left == [None], "networks are large"


def test_features_are_not_normalised_again(dataset):
    features = torch.randn(3, 7)
    assert dataset.normalise(features) is features


def test_frozen_modules_stay_in_evaluation_mode(dataset, split, original):
    seen = []
    original.bn1.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    before = original.bn1.running_mean.clone()
    training.fit(original, split.retain, dataset, Recipe(epochs=1, lr=0.01), seed=0,
                 frozen=[original.bn1])  # fmt: skip
    assert seen
    assert not any(seen)
    assert torch.equal(original.bn1.running_mean, before)
    assert pruning.sparsity(original, ["conv1"]) == 0


# ------------------------------------------------------------------------------------------------
# networks that this project did not write


class Noise(nn.Module):
    """Draws while it trains, under a name that does not tell."""

    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Own(nn.Module):
    """Two convolutions and a classifier, with a switch for each thing that may go wrong."""

    input_shape = (1, 8, 8)

    def __init__(self, trick=""):
        super().__init__()
        torch.manual_seed(0)
        self.trick = trick
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])  # before the layers
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5) if trick == "dropout module" else nn.Identity()
        odd = {"noise module": Noise(), "instance statistics": nn.InstanceNorm2d(
            6, track_running_stats=True)}  # fmt: skip
        self.odd = odd.get(trick, nn.Identity())
        self.pair = nn.Parameter(torch.ones(3, 1, 1, 1))
        self.register_buffer("centre", torch.zeros(1, 6, 1, 1))
        self.register_buffer("seen", torch.tensor(0))
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        if self.trick == "assert":
            assert isinstance(x, torch.Tensor)
        x = self.drop(self.norms[0](self.first(x)).relu())
        if self.trick == "dropout function":
            x = nn.functional.dropout(x, 0.5, self.training)
        if self.trick == "noise" and self.training:
            x = x + torch.randn_like(x)
        x = self.odd(x)
        if self.trick == "tensor made":
            x = x / torch.tensor(2.0)
        if self.trick == "noted":
            self.last = x.detach()
        x = self.norms[1](self.second(x)) + self.pair.mean()
        x = torch.tanh(x) if self.trick == "tanh" else x.relu()
        if self.trick == "mean kept" and self.training:
            mean = x.detach().mean((0, 2, 3), keepdim=True)
            self.centre.lerp_(mean.float(), 0.1)  # in mixed precision it is not float
        if self.trick == "count" and self.training:
            self.seen.add_(len(x))
        x = x - self.centre
        x = x + torch.tensor(0.5) if self.trick == "tensor made" else x
        return self.head(x.mean((2, 3)))


def trained(dataset, cfg, model, cache=None, **changes):
    one = cfg.but(epochs=1, rank=1, targets="last_block", **changes)
    return unlearning.unlearn(model.to(cfg.device), dataset, one, cache=cache)


@pytest.mark.parametrize(
    ("trick", "once"),
    [
        ("", True),
        ("assert", True),
        ("dropout module", False),
        ("dropout function", False),
        ("noise", False),
        ("noise module", False),
        ("instance statistics", True),
        ("mean kept", False),
        ("count", False),
        ("tensor made", True),
        ("noted", True),
    ],
)
def test_what_cannot_be_kept_is_computed_anew_with_the_same_result(trick, once, cfg, dataset):
    if trick == "assert":
        once = False  # a traced value is no tensor: the network refuses to be traced
    model = Own(trick)
    kept = trained(dataset, cfg, model, method="lora")
    anew = trained(dataset, cfg, model, method="lora", cache_mb=0)
    assert kept.frozen_once == once
    assert kept.fit.history[0]["loss"] == pytest.approx(anew.fit.history[0]["loss"], abs=1e-6)
    assert kept.patch.tensors.keys() == anew.patch.tensors.keys()
    buffers = dict(anew.model.named_buffers())
    for name, buffer in kept.model.named_buffers():
        assert torch.allclose(buffer.float(), buffers[name].float(), atol=1e-5), name


@pytest.mark.parametrize("trick", ["tensor made", "noted", "assert"])
def test_tracing_leaves_nothing_on_a_network(trick, cfg, dataset):
    model = Own(trick).eval()
    before = {module: dict(vars(module)) for module in model.modules()}
    made = lora.attach(model, 1, ["second"], alpha=1, train_in_full=["head"]).get_base_model()
    inside = {module: {*vars(module)} for module in made.modules()}
    with contextlib.suppress(InputError):
        frozen.cut(model, made, ["second", "head"])
    assert {module: dict(vars(module)) for module in model.modules()} == before
    assert {module: {*vars(module)} for module in made.modules()} == inside


def test_norms_are_found_by_the_order_of_calls(cfg, dataset):
    outcome = trained(dataset, cfg, Own(), method="lora")
    moved = {n for n in outcome.patch.tensors if n.startswith("norms")}
    assert moved
    assert all(n.startswith("norms.1") for n in moved)


def test_a_network_in_training_mode_is_not_changed(cfg, dataset, original):
    for method in ("lora", "prunelora", "prunelora_channels"):
        before = models.fingerprint(original)
        original.train()
        outcome = unlearning.unlearn(original, dataset, cfg.but(method=method, epochs=1))
        assert models.fingerprint(original) == before == outcome.patch.base
        assert not outcome.model.training
    assert not pruning.prune(original, 0.5, measured=False).model.training


def test_equal_weights_in_another_network_are_not_mistaken(cfg, dataset):
    cache = frozen.Cache(100_000_000)
    for method in ("prunelora", "lora"):
        one, two = (trained(dataset, cfg, Own(t), cache, method=method) for t in ("", "tanh"))
        assert two.model.trick == "tanh"
        assert one.fit.history != two.fit.history
        alone = trained(dataset, cfg, Own("tanh"), method=method)
        assert two.fit.history == alone.fit.history


def test_mixed_precision_computes_alike_with_and_without_the_cache(cfg, dataset, original):
    one = cfg.but(method="lora", epochs=2, precision="amp")
    cache = frozen.Cache(10**9)
    kept = unlearning.unlearn(original, dataset, one, cache=cache)
    anew = unlearning.unlearn(original, dataset, one.but(cache_mb=0))
    assert kept.frozen_once
    bytes_kept = [part.images.element_size() for part, _ in cache._kept.values()]
    assert bytes_kept == [2], "half the memory, and nothing rounded"
    apart = 0 if cfg.device == "cpu" else 1e-3
    for a, b in zip(kept.fit.history, anew.fit.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=apart)


def test_checkpoints_with_and_without_a_cache_do_not_meet(
    cfg, dataset, original, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)  # one after every step
    place = tmp_path / "checkpoint.safetensors"
    one = cfg.but(method="lora", epochs=1, precision="fp32")
    ends = [
        unlearning.unlearn(original, dataset, one.but(cache_mb=mb), checkpoint=place).fit.history
        for mb in (100, 0)
    ]
    assert len(list(tmp_path.glob("*checkpoint.safetensors"))) == 2, "one of each network"
    apart = 0 if cfg.device == "cpu" else 1e-4
    for a, b in zip(*ends, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=apart)


def test_kept_features_keep_their_names_from_one_version_to_the_next(dataset):
    part = ImageSet(torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2), torch.tensor([3, 1]))
    scaled = dataclasses.replace(dataset, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))
    filed = store.Stored(Path("images.npy"), torch.tensor([1, 0]), torch.device("cpu"))
    found = [frozen.fingerprint(ImageSet(images, part.labels), scaled)[:16]
             for images in (part.images, filed)]  # fmt: skip
    assert found == ["bf8bec0984eb3280", "e8726feb8374d2ea"]
