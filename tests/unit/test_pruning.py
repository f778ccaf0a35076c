from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import models, pruning, training
from helpers.config import InputError, Recipe


def test_the_filters_with_the_smallest_norm_go():
    layer = nn.Conv2d(1, 4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, -1.0, 0.5, -4.0]).view(4, 1, 1, 1))
    masks = pruning.mask_structured(nn.Sequential(layer), 0.5, ["0"])
    assert layer.weight.flatten().tolist() == [3.0, 0.0, 0.0, -4.0]
    assert masks["0"].flatten().tolist() == [True, False, False, True]


def test_the_order_of_the_norm_matters():
    def layer():
        found = nn.Linear(4, 2, bias=False)
        with torch.no_grad():  # L1: 4 and 3.1; L2: 2 and 3.002
            found.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [3, 0.1, 0, 0]]))
        return nn.Sequential(found)

    one, two = layer(), layer()
    pruning.mask_structured(one, 0.5, ["0"], norm=1)
    pruning.mask_structured(two, 0.5, ["0"], norm=2)
    assert one[0].weight[0].tolist() == [1, 1, 1, 1]
    assert two[0].weight[0].tolist() == [0, 0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(
    filters=st.integers(1, 40),
    inputs=st.integers(1, 5),
    kernel=st.integers(1, 3),
    share=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 1000),
)
def test_any_layer_loses_the_weakest_share_and_keeps_one(filters, inputs, kernel, share, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(inputs, filters, kernel))
    norms = model[0].weight.detach().flatten(1).norm(dim=1)
    old = model[0].weight.detach().clone()
    masks = pruning.mask_structured(model, share, ["0"])
    (row,) = pruning.layer_sparsity(model, ["0"])
    gone = min(round(share * filters), filters - 1)
    assert row["zero_filters"] == gone
    assert row["zeros"] == gone * inputs * kernel**2
    assert pruning.sparsity(model, ["0"]) == pytest.approx(gone / filters)
    kept = masks["0"].flatten(1).any(1)
    if gone:
        assert norms[~kept].max() <= norms[kept].min()
    assert torch.equal(model[0].weight[kept], old[kept]), "what stays is not changed"
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias"], "nothing is left behind"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_held_mask_survives_momentum_and_weight_decay(original, dataset, split, optimizer):
    names = models.layers(original).prunable
    masks = pruning.mask_structured(original, 0.5, names)
    recipe = Recipe(epochs=2, lr=0.05, optimizer=optimizer, weight_decay=0.1)
    training.fit(original, split.retain, dataset, recipe, seed=0,
                 after_step=lambda: pruning.apply_masks(original, masks))  # fmt: skip
    assert pruning.sparsity(original, names) == 0.5
    for name, mask in masks.items():
        assert original.get_submodule(name).weight[~mask].abs().max() == 0


def test_without_holding_the_zeros_grow_back(original, dataset, split):
    names = models.layers(original).prunable
    pruning.mask_structured(original, 0.5, names)
    training.fit(original, split.retain, dataset, Recipe(epochs=1, lr=0.01), seed=0)
    assert pruning.sparsity(original, names) < 0.45


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_a_sparsity_out_of_range_is_refused(value, original):
    with pytest.raises(InputError, match=r"sparsity.*\[0, 1\)"):
        pruning.mask_structured(original, value, ["conv1"])


def test_recalibration_brings_accuracy_back(original, dataset, split):
    def right():
        logits = training.predict(original, split.validation_retain, dataset)
        return (logits.argmax(1) == split.validation_retain.labels.cpu()).float().mean()

    pruning.mask_structured(original, 0.25, models.layers(original).prunable)
    before = right()
    training.recalibrate_batchnorm(original, split.retain, dataset)
    assert right() > before + 0.2
