from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from helpers import frozen, lora, models, pruning, training, unlearning
from helpers.config import InputError, Recipe


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
    one = cfg.but(method=method, model=model, epochs=2, rank=2)
    original = unlearning.new_model(one, dataset)
    monitor = {"5": dataset.validation.sample(50)}
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


def test_augmented_images_are_not_kept(cfg, dataset, original):
    recipe = Recipe(epochs=1, lr=0.01, augment="crop")
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
    lottery = unlearning.Method("scratch", prune="mask_structured")
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
    kept = [len(s) for s in cache._kept.values()]
    assert kept == [20], "the oldest went first"
    again = cache.features(cut, parts[2], dataset)
    assert again is next(iter(cache._kept.values()))
    other = dataclasses.replace(parts[2], labels=parts[2].labels.flip(0))
    assert cache.features(cut, other, dataset) is not again, "other labels are another set"
    changed = copy.deepcopy(dataset).with_std(torch.tensor(2.0))
    assert not torch.equal(cache.features(cut, parts[2], changed).images, again.images)


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
