from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import lora, models, pruning, training
from helpers.config import InputError, Recipe

FIT = Recipe(epochs=1, lr=0.02)


@pytest.fixture
def layers(original):
    return models.layers(original)


def adapt(model, layers, rank=4, norms=True, **options):
    full = (layers.head, *(layers.norms if norms else ()))
    return lora.attach(model, rank, layers.adaptable, alpha=2 * rank, train_in_full=full,
                       **options)  # fmt: skip


def test_attaching_changes_no_output_and_not_the_original(original, layers, dataset):
    before = training.predict(original, dataset.test, dataset)
    state = copy.deepcopy(original.state_dict())
    adapted = adapt(original, layers)
    assert not adapted.training
    assert torch.allclose(training.predict(adapted, dataset.test, dataset), before, atol=1e-5)
    assert all(torch.equal(v, state[k]) for k, v in original.state_dict().items())
    assert all(p.requires_grad for p in original.parameters())


def test_what_trains_is_adapters_classifier_and_norms(original, layers):
    rank, adapted = 3, None
    adapted = adapt(original, layers, rank)
    known = dict(original.named_modules())
    shapes = [known[n].weight.shape for n in layers.adaptable]
    wanted = sum(rank * (i * h * w + o) for o, i, h, w in shapes)
    wanted += models.count_parameters(known[layers.head])
    wanted += sum(models.count_parameters(known[n]) for n in layers.norms)
    assert models.count_parameters(adapted, trainable=True) == wanted


@pytest.mark.parametrize("name", ["vit_tiny", "digits_resnet"])
def test_every_adapter_gets_a_gradient(name, cfg, dataset, split):
    model = models.build_model(name, 10, 1, 8).to(cfg.device)
    layers = models.layers(model)
    adapted = adapt(model, layers)
    x, y = dataset.normalise(split.retain.images[:32]), split.retain.labels[:32]
    training.cross_entropy(adapted.train(), x, y).backward()
    found = lora.adapters(adapted)
    assert len(found) == len(layers.adaptable)
    for _, layer in found:
        assert layer.lora_B["default"].weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["vit_tiny", "digits_resnet"])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_merged_equals_unmerged_and_keeps_the_mask(name, share, dropout, cfg, dataset, split):
    model = models.build_model(name, 10, 1, 8).to(cfg.device)
    layers = models.layers(model)
    masks = pruning.mask_structured(model, share, layers.prunable)
    adapted = adapt(model, layers, dropout=dropout, masks=masks)
    recipe = Recipe(epochs=1, lr=0.02, optimizer="adamw", weight_decay=0.1)
    hold = (lambda: lora.hold_masks(adapted, masks)) if dropout else None
    training.fit(adapted, split.retain, dataset, recipe, seed=0, after_step=hold)
    unmerged = training.predict(adapted, dataset.test, dataset)
    merged = lora.merge(adapted, masks)
    found = training.predict(merged, dataset.test, dataset)
    assert torch.allclose(found, unmerged, atol=1e-4 if dropout else 1e-5)
    assert pruning.sparsity(merged, layers.prunable) == pytest.approx(share, abs=1e-9)
    assert list(merged.state_dict()) == list(model.state_dict()), "a plain network again"


def test_a_merge_that_would_refill_the_mask_is_refused(original, layers, dataset, split):
    masks = pruning.mask_structured(original, 0.5, layers.prunable)
    adapted = adapt(original, layers)
    training.fit(adapted, split.retain, dataset, FIT, seed=0)
    with pytest.raises(InputError, match=r"weights under the mask.*hold_masks"):
        lora.merge(adapted, masks)
    held = lora.merge(copy.deepcopy(adapted), masks, refill="mask")
    assert pruning.sparsity(held, layers.prunable) == 0.5
    merged = lora.merge(adapted)
    assert pruning.sparsity(merged, layers.prunable) < 0.45


def test_switched_off_it_is_the_old_network_exactly(original, layers, dataset, split):
    before = training.predict(original, dataset.test, dataset)
    adapted = adapt(original, layers)
    training.fit(adapted, split.retain, dataset, FIT, seed=0)
    assert not torch.allclose(training.predict(adapted, dataset.test, dataset), before, atol=0.1)
    with adapted.disable_adapter():
        off = training.predict(adapted, dataset.test, dataset)
    assert torch.allclose(off, before, atol=1e-5)


def test_without_batchnorm_the_old_network_does_not_come_back(original, layers, dataset, split):
    """The defect that `train_in_full=norms` mends; fails if peft begins to save statistics."""
    before = training.predict(original, dataset.test, dataset)
    adapted = adapt(original, layers, norms=False)
    training.fit(adapted, split.retain, dataset, FIT, seed=0)
    with adapted.disable_adapter():
        off = training.predict(adapted, dataset.test, dataset)
    assert not torch.allclose(off, before, atol=1e-2)


def test_saved_and_reloaded_it_is_the_same_network(original, layers, dataset, split, tmp_path):
    from peft import PeftModel

    adapted = adapt(original, layers)
    training.fit(adapted, split.retain, dataset, FIT, seed=0)
    adapted.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")), "no pickle"
    again = PeftModel.from_pretrained(copy.deepcopy(original), tmp_path).eval()
    wanted = training.predict(adapted, dataset.test, dataset)
    assert torch.allclose(training.predict(again, dataset.test, dataset), wanted, atol=1e-5)


@pytest.mark.parametrize("rank", [0, -1, 17, 1000])
def test_an_impossible_rank_is_refused(original, layers, rank):
    with pytest.raises(InputError, match=rf"rank = {rank} .*from 1 to 16.*layer1\.0\.conv1"):
        adapt(original, layers, rank)


def test_unknown_layers_are_refused(original):
    with pytest.raises(InputError, match=r"layer9.*no layer of SmallResNet"):
        lora.attach(original, 2, ["layer9"], alpha=4)
    with pytest.raises(InputError, match="at least one layer"):
        lora.attach(original, 2, [], alpha=4)
    with pytest.raises(InputError, match="train_in_full = 'fcc'"):
        lora.attach(original, 2, ["layer1.0.conv1"], alpha=4, train_in_full=["fcc"])


def test_a_name_that_peft_would_match_by_its_end_is_noticed():
    model = nn.Sequential()
    model.add_module("conv", nn.Sequential(nn.Conv2d(1, 4, 1)))
    model.add_module("0", nn.Conv2d(4, 4, 1))
    model.input_shape = (1, 4, 4)
    with pytest.raises(InputError, match=r"attached to \['0', 'conv.0'\], not to \['0'\]"):
        lora.attach(model, 1, ["0"], alpha=2)


def test_the_seed_decides_the_adapters(original, layers):
    def first(seed):
        adapted = lora.attach(original, 4, layers.adaptable, alpha=8, seed=seed)
        return lora.adapters(adapted)[0][1].lora_A["default"].weight

    state = torch.get_rng_state()
    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_low_rank_has_the_least_error_of_its_rank(rows, columns, draw):
    rank = draw.draw(st.integers(1, min(rows, columns)))
    matrix = torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(rows * 13 + columns)
    )
    b, a = lora.low_rank(matrix, rank)
    assert (b.shape, a.shape) == ((rows, rank), (rank, columns))
    singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
    wanted = float((singular[rank:] ** 2).sum())
    assert ((matrix - b @ a) ** 2).sum().item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("rank", [0, 4])
def test_low_rank_refuses_other_ranks(rank):
    with pytest.raises(InputError, match="from 1 to 3"):
        lora.low_rank(torch.ones(3, 5), rank)
