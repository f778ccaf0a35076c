from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import lora, models, pruning, training, unlearning
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


def test_whatever_comes_in_what_goes_out_is_in_evaluation_mode(original, layers):
    original.train()
    original.conv1.weight.requires_grad_(False)
    adapted = adapt(original, layers)
    assert not any(m.training for m in adapted.modules())
    merged = lora.merge(adapted.train())
    assert not any(m.training for m in merged.modules())
    assert all(p.requires_grad for p in merged.parameters()), "as of any network just built"


def test_a_mask_of_a_layer_without_an_adapter_holds_in_the_merged_network(original, layers):
    mask = torch.rand(original.conv1.weight.shape) < 0.5
    adapted = lora.attach(original, 2, layers.adaptable[-1:], alpha=4)
    assert "conv1" not in {name for name, _ in lora.adapters(adapted)}
    merged = lora.merge(adapted, {"conv1": mask.to(original.conv1.weight.device)})
    assert torch.equal(merged.conv1.weight.cpu() != 0, mask)


def test_the_change_that_peft_merges_by_itself_is_masked_too(original, layers):
    masks = pruning.mask_unstructured(original, 0.5, layers.adaptable)
    adapted = lora.attach(original, 2, layers.adaptable, alpha=4, masks=masks)
    for _, layer in lora.adapters(adapted):
        nn.init.normal_(layer.lora_B["default"].weight)
    adapted.merge_adapter()
    for name, layer in lora.adapters(adapted):
        assert torch.equal(layer.get_base_layer().weight != 0, masks[name])


def test_the_length_of_a_filter_is_a_constant_to_the_gradient():
    """Section 4.3 of DoRA: the slope of one filter (3, 4) of length 5, brought to length 10."""
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0]], requires_grad=True)
    found = lora.changed_weight(torch.tensor([[0.0, 4.0]]), a, b, 1.0, magnitude=torch.tensor(10.0))
    assert found.tolist() == [[6, 8]]
    found.sum().backward()
    assert b.grad.item() == pytest.approx(10 / 5 * 3)


def test_an_adapter_lives_that_acts_and_learns():
    alive = [lora.AdapterAudit("one", *both).alive for both in ((1, 1), (0, 1), (1, 0), (0, 0))]
    assert alive == [True, False, False, False]


def test_a_norm_without_parameters_that_the_adapter_keeps_is_not_frozen(cfg):
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, affine=False)
    body = nn.Conv2d(1, 4, 3), norms[0], nn.Conv2d(4, 4, 3), norms[1], norms[2]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 10)).to(cfg.device)
    model.input_shape = (1, 8, 8)
    adapted = lora.attach(model, 1, ["2"], alpha=2, train_in_full=["3", "6"])
    named = {m: name for name, m in adapted.get_base_model().named_modules()}
    frozen = {named[m] for m in lora.frozen_norms(adapted)}
    assert frozen == {"1", "3.original_module", "4"}


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
    with pytest.raises(InputError, match=r"weights under the mask.*merge without masks"):
        lora.merge(adapted, masks)
    merged = lora.merge(adapted)
    assert pruning.sparsity(merged, layers.prunable) < 0.45


def test_weights_below_zero_refill_the_mask_too(original, layers):
    masks = pruning.mask_structured(original, 0.5, layers.prunable)
    adapted = adapt(original, layers)
    for _, layer in lora.adapters(adapted):
        nn.init.constant_(layer.lora_A["default"].weight, 1)
        nn.init.constant_(layer.lora_B["default"].weight, -1)
    with pytest.raises(InputError, match="weights under the mask"):
        lora.merge(adapted, masks)


def test_switched_off_it_is_the_old_network_exactly(original, layers, dataset, split):
    before = training.predict(original, dataset.test, dataset)
    adapted = adapt(original, layers)
    training.fit(adapted, split.retain, dataset, FIT, seed=0)
    assert not torch.allclose(training.predict(adapted, dataset.test, dataset), before, atol=0.1)
    with adapted.disable_adapter():
        off = training.predict(adapted, dataset.test, dataset)
    assert torch.equal(off, before)


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


@pytest.mark.parametrize("name", ["fc", "layer1", "layer1.0.conv1"])
def test_a_layer_is_adapted_or_trained_in_full_not_both(original, name):
    targets = ["fc", "layer1.0.conv1", "layer2.0.conv1"]
    own = "fc" if name == "fc" else "layer1.0.conv1"
    with pytest.raises(InputError, match=rf"train_in_full = '{name}' .*: {own} in targets"):
        lora.attach(original, 2, targets, alpha=4, train_in_full=["bn1", name])


@pytest.mark.parametrize("field", ["targets", "train_in_full"])
def test_a_bare_name_is_not_taken_for_a_list_of_letters(original, field):
    given = {"targets": ["layer1.0.conv1"], field: "fc"}
    with pytest.raises(InputError, match=f"{field} = 'fc' is not allowed: a list of names"):
        lora.attach(original, 2, alpha=4, **given)


def test_a_name_that_ends_like_another_is_not_touched():
    """peft compares the ends of names; ours are meant in full."""
    model = nn.Sequential()
    model.add_module("conv", nn.Sequential(nn.Conv2d(1, 4, 1)))
    model.add_module("0", nn.Conv2d(4, 4, 1))
    made = lora.attach(model, 1, ["0"], alpha=2, audited=False)
    assert [name for name, _ in lora.adapters(made)] == ["0"]

    class Squeeze(nn.Module):
        input_shape = (2, 4, 4)

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1)
            self.gate = nn.ModuleDict({"fc": nn.Linear(8, 8)})
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            x = self.b(self.a(x)).mean((2, 3))
            return self.fc(x * self.gate["fc"](x).sigmoid())

    model = Squeeze()
    made = lora.attach(model, 1, ["b"], alpha=2, train_in_full=["fc"])
    trained = {n for n, p in made.named_parameters() if p.requires_grad}
    assert not any("gate" in name for name in trained)
    assert any(".fc.modules_to_save" in name for name in trained)
    x = models.example(model)
    assert torch.equal(lora.merge(made)(x), model(x))


@pytest.mark.parametrize("last", ["fc", "xfc"])
def test_a_target_may_be_called_as_the_classifier_is(last, dataset, cfg):
    """Nor does it learn whole, for the sake of its name's end."""
    torch.manual_seed(0)
    block = nn.Sequential()
    block.add_module("a", nn.Linear(64, 12))
    block.add_module("relu", nn.ReLU())
    block.add_module(last, nn.Linear(12, 12))
    model = nn.Sequential()
    model.add_module("flat", nn.Flatten())
    model.add_module("block", block)
    model.add_module("relu", nn.ReLU())
    model.add_module("fc", nn.Linear(12, 10))
    model.input_shape = (1, 8, 8)
    model.to(dataset.mean.device).eval()
    made = lora.attach(model, 1, [f"block.{last}"], alpha=2, train_in_full=["fc"])
    assert [name for name, _ in lora.adapters(made)] == [f"block.{last}"]
    trained = {n for n, p in made.named_parameters() if p.requires_grad}
    assert len(trained) == 4, "A, B, and the classifier's weight and bias"
    x = models.example(model)
    with made.disable_adapter():
        assert torch.equal(made(x), model(x))
    assert torch.allclose(lora.merge(made)(x), model(x), atol=1e-6)
    for method in ("lora", "prunelora", "prunelora_channels"):
        short = cfg.but(method=method, rank=1, epochs=1, targets="all")
        found = unlearning.unlearn(model, dataset, short)
        assert not torch.equal(found.model.get_submodule("fc").weight, model.fc.weight), method


def test_a_layer_that_is_used_twice_is_refused():
    model = Odd()
    model.unused = model.plain
    with pytest.raises(InputError, match=r"'plain' is not allowed: it is used in several places"):
        lora.attach(model, 1, ["plain"], alpha=2)


def test_masks_go_where_the_network_goes(original, layers, dataset, split):
    pruned = pruning.prune(original, 0.5, part=split.retain, dataset=dataset)
    adapted = adapt(pruned.model, layers, masks=pruned.masks)
    held = [(layer.mask, layer.filters) for _, layer in lora.adapters(adapted)]
    names = [*adapted.state_dict()]
    adapted.to("meta")  # a device that every machine has
    for _, layer in lora.adapters(adapted):
        assert {layer.mask.device.type, layer.filters.device.type} == {"meta"}
        assert layer.mask.dtype == layer.filters.dtype == torch.bool
    assert [*adapted.state_dict()] == names
    again = adapt(pruned.model, layers, masks=pruned.masks).double()
    for (mask, filters), (_, layer) in zip(held, lora.adapters(again), strict=True):
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.filters, filters)
        assert torch.equal(filters.flatten(), mask.flatten(1).any(1))


def test_masks_are_applied_where_they_are_attached(original, layers):
    fresh = copy.deepcopy(original)
    masks = pruning.mask_structured(copy.deepcopy(original), 0.5, layers.prunable)
    made = lora.attach(fresh, 2, layers.adaptable, alpha=4, masks=masks)
    assert pruning.sparsity(lora.merge(made, masks), layers.prunable) == 0.5
    assert pruning.sparsity(fresh, layers.prunable) == 0, "the network itself stays"


def test_the_seed_decides_the_adapters(original, layers):
    def first(seed):
        adapted = lora.attach(original, 4, layers.adaptable, alpha=8, seed=seed)
        return lora.adapters(adapted)[0][1].lora_A["default"].weight

    state = torch.get_rng_state()
    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=40)
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


# ------------------------------------------------------------------------------------------------
# what peft does wrongly, what every adapter does, forms and kinds


class Odd(nn.Module):
    """A network with layers that peft cannot adapt."""

    input_shape = (4, 6, 6)

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.plain(self.reflected(self.dilated(self.grouped(x))))
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("grouped", r"groups = 2: peft cannot merge"),
        ("dilated", r"dilation = \(2, 2\): peft's adapter ignores it"),
        ("reflected", r"padding_mode = 'reflect': peft's adapter pads with zeros"),
        ("attention.out_proj", r"nn.MultiheadAttention reads weights without calling"),
        ("attention", r"nn.MultiheadAttention reads weights without calling"),
        ("nowhere", r"no layer of Odd"),
    ],
)
def test_layers_that_peft_handles_wrongly_are_refused_with_the_reason(name, reason):
    with pytest.raises(InputError, match=rf"target '{name}' is not allowed: {reason}"):
        lora.attach(Odd(), 2, ["plain", name], alpha=4)


class OwnWay(nn.TransformerEncoderLayer):
    def forward(self, src, **how):
        return self.norm2(src + self._ff_block(src))


class Tokens(nn.Module):
    input_shape = (4, 12, 1)

    def __init__(self, kind=nn.TransformerEncoderLayer, heads=2, **how):
        super().__init__()
        self.block = kind(12, heads, 16, **({"batch_first": True, "dropout": 0.0} | how))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.block(x.flatten(2)).mean(1))


@pytest.mark.parametrize(
    "how",
    [
        {"heads": 3},
        {"batch_first": False},
        {"bias": False},
        {"activation": nn.functional.silu},
        {"kind": OwnWay},
    ],
    ids=lambda how: next(iter(how)),
)
def test_a_block_that_is_computed_at_once_is_refused_and_no_other(how):
    targets = ["block.linear1", "block.linear2"]
    line = "target 'block.linear1' is not allowed: nn.TransformerEncoderLayer .*while it evaluates"
    for audited in (True, False):
        with pytest.raises(InputError, match=line):
            lora.attach(Tokens(), 2, targets, alpha=4, audited=audited)
    made = lora.attach(Tokens(**how).eval(), 2, targets, alpha=4)
    assert all(row.alive for row in lora.audit_adapters(made))


def test_an_adapter_that_takes_no_part_is_refused():
    line = (
        r"targets = \['unused'\].*do not act .*never called in evaluation: unused\); leave them out"
    )
    for targets in (["plain", "unused"], ["unused"]):
        with pytest.raises(InputError, match=line):
            lora.attach(Odd(), 2, targets, alpha=4)
    made = lora.attach(Odd(), 2, ["plain", "unused"], alpha=4, audited=False)
    found = {row.layer: row for row in lora.audit_adapters(made)}
    assert found["plain"].alive
    assert (found["unused"].effect, found["unused"].gradient) == (0, 0)


def test_the_audit_changes_nothing(original, layers):
    made = adapt(original, layers).train()
    state = copy.deepcopy(made.state_dict())
    rows = lora.audit_adapters(made)
    assert [row.layer for row in rows] == list(layers.adaptable)
    assert all(row.alive for row in rows)
    assert all(torch.equal(made.state_dict()[k], v) for k, v in state.items())
    assert all(p.grad is None for p in made.parameters())
    assert made.training


def test_rank_and_alpha_of_single_layers(original, layers):
    first, second = layers.adaptable[:2]
    made = lora.attach(original, 2, layers.adaptable, alpha=4, ranks={first: 5}, alphas={second: 9})
    found = dict(lora.adapters(made))
    assert found[first].r["default"] == 5
    assert found[first].scaling["default"] == 4 / 5
    assert found[second].r["default"] == 2
    assert found[second].scaling["default"] == 9 / 2
    assert {layer.r["default"] for n, layer in found.items() if n != first} == {2}
    with pytest.raises(InputError, match=r"ranks = \['conv1'\] is not allowed"):
        lora.attach(original, 2, layers.adaptable, alpha=4, ranks={"conv1": 1})
    with pytest.raises(InputError, match=r"rank = 17 .*from 1 to 16"):
        lora.attach(original, 2, layers.adaptable, alpha=4, ranks={first: 17})


def test_a_rank_is_that_of_the_layer_with_the_whole_name():
    """`fc` must not give its rank to `block.fc`, whose name ends alike."""
    block = nn.ModuleDict({"fc": nn.Linear(8, 8)})
    model = nn.ModuleDict({"fc": nn.Linear(8, 8), "block": block})
    made = lora.attach(model, 4, ["fc", "block.fc"], alpha=8, ranks={"fc": 2}, audited=False)
    assert {n: layer.r["default"] for n, layer in lora.adapters(made)} == {"fc": 2, "block.fc": 4}


def test_masks_that_fit_no_layer_are_refused(original, layers):
    first = layers.adaptable[0]
    for name, mask in (("nowhere", torch.ones(2).bool()), (first, torch.ones(2).bool()),
                       ("", torch.ones(2).bool())):  # fmt: skip
        message = rf"masks = \['{name}'\] is not allowed: names of layers"
        with pytest.raises(InputError, match=message):
            lora.attach(original, 2, [first], alpha=4, masks={name: mask}, dropout=0.5)
        adapted = lora.attach(original, 2, [first], alpha=4)
        with pytest.raises(InputError, match=message):
            lora.merge(adapted, {name: mask})
        assert [*lora.adapters(adapted)], "it is not used up"


def test_a_name_is_not_read_as_a_pattern():
    """`a.b` must not give its rank to `axb`."""
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(8, 8)}), "axb": nn.Linear(8, 8)})
    made = lora.attach(model, 1, ["a.b", "axb"], alpha=2, ranks={"a.b": 4}, audited=False)
    assert [layer.r["default"] for _, layer in lora.adapters(made)] == [4, 1]


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("name", ["digits_resnet", "vit_tiny"])
def test_the_weight_form_computes_what_peft_computes(kind, name, cfg, dataset, split, monkeypatch):
    model = models.build_model(name, 10, 1, 8).to(cfg.device)
    layers = models.layers(model)

    def losses(form):
        with monkeypatch.context() as patched:
            if not form:
                patched.setattr(lora, "_weight_form", dict)
            made = adapt(model, layers, kind=kind, audited=False, norms=False)
        recipe = Recipe(epochs=3, lr=0.01, optimizer="sgd")
        done = training.fit(made, split.retain, dataset, recipe, seed=0, precision="fp32",
                            frozen=lora.frozen_norms(made))  # fmt: skip
        kinds = {type(layer).__name__ for _, layer in lora.adapters(made)}
        return [row["loss"] for row in done.history], kinds

    ours, peft = losses(True), losses(False)
    assert ours[0] == pytest.approx(peft[0], abs=2e-4)
    assert not ours[1] & peft[1], "two different forms"


class Wide(nn.Module):
    input_shape = (2, 4, 4)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 144, 1), nn.Conv2d(144, 160, 3, padding=1)
        self.third, self.head = nn.Linear(160, 144), nn.Linear(144, 3)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu().mean((2, 3))
        return self.head(self.third(x).relu())


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_wide_layers_are_adapted_on_the_images_with_the_same_numbers(share, monkeypatch):
    torch.manual_seed(0)
    model, names = Wide(), ["second", "third"]
    masks = pruning.mask_structured(model, share, names) if share else None
    x = torch.randn(8, 2, 4, 4)

    def trained(wide):
        monkeypatch.setattr(lora, "WIDE", wide)
        made = lora.attach(model, 4, names, alpha=8, masks=masks)
        assert {layer.on_images for _, layer in lora.adapters(made)} == {wide == 128}
        optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x), torch.arange(8) % 3).backward()
            optimizer.step()
        outputs = made(x).detach()
        merged = lora.merge(made, masks)
        assert torch.allclose(merged(x), outputs, atol=1e-5)
        assert pruning.sparsity(merged, names) == share
        return outputs

    assert torch.allclose(trained(128), trained(10_000), atol=1e-4)


class Standardised(nn.Conv2d):
    """Uses another weight than it has, as timm's StdConv2d does."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.std(), self.bias, padding=1)


class Padded(nn.Conv2d):
    """Pads what it gets itself, as timm's Conv2dSame does."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, [0, 2, 0, 2]))


class Inner(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


def with_layer(name, layer):
    def change(model):
        setattr(model, name, layer())

    return name, change


def with_hook(name, register, hook):
    return name, lambda model: getattr(getattr(model, name), register)(hook)


OWN_FORWARD = {
    "another weight": with_layer("second", lambda: Standardised(144, 160, 3, padding=1)),
    "another padding": with_layer("second", lambda: Padded(144, 160, 3)),
    "another inner forward": with_layer("second", lambda: Inner(144, 160, 3, padding=1)),
    "another input": with_layer("third", lambda: Doubled(160, 144)),
    "hook": with_hook("second", "register_forward_hook", lambda _, __, made: 3 * made),
    "hook before": with_hook("third", "register_forward_pre_hook", lambda _, given: 2 * given[0]),
}


@pytest.mark.parametrize("wide", [128, 10_000])
@pytest.mark.parametrize("case", OWN_FORWARD)
def test_the_forward_pass_of_a_layer_is_its_own_while_adapted_too(case, wide, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(lora, "WIDE", wide)
    model, (name, change) = Wide(), OWN_FORWARD[case]
    change(model)
    x = models.example(model, 8)
    wanted = model(x)
    adapted = lora.attach(model, 4, ["second", "third"], alpha=8)
    assert torch.allclose(adapted(x), wanted, atol=1e-5)
    for _, layer in lora.adapters(adapted):
        nn.init.normal_(layer.lora_B["default"].weight)
    found = adapted(x)
    assert not torch.allclose(found, wanted, atol=1e-2)
    assert torch.allclose(lora.merge(adapted)(x), found, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match=rf"dropout = 0\.1 is not allowed: 0, for {name}: "):
        lora.attach(model, 4, ["second", "third"], alpha=8, dropout=0.1)


def test_a_network_that_takes_an_adapter_for_something_else_is_refused():
    class Asking(Wide):
        def forward(self, x):
            return super().forward(x) * (1 if type(self.third) is nn.Linear else 2)

    with pytest.raises(InputError, match="of the largest apart from those without adapters"):
        lora.attach(Asking(), 4, ["third"], alpha=8)


def test_what_needs_the_weight_form_gets_it():
    model = Wide()

    def forms(rank, **options):
        made = lora.attach(model, rank, ["second", "third"], alpha=8, audited=False, **options)
        return [layer.on_images for _, layer in lora.adapters(made)]

    assert forms(4) == [True, True]
    assert forms(10) == [True, False], "a rank of more than a sixteenth of the outputs"
    assert forms(4, kind="dora") == [False, False]
    single = pruning.mask_unstructured(copy.deepcopy(model), 0.5, ["second"])
    assert forms(4, masks=single) == [False, True], "only the weight can hold single zeros"


def test_scales_by_name(original, layers):
    def scale(kind):
        made = lora.attach(original, 4, layers.adaptable, alpha=8, kind=kind)
        return lora.adapters(made)[0][1].scaling["default"]

    assert (scale("lora"), scale("rslora"), scale("dora")) == (2, 4, 2)
    with pytest.raises(InputError, match="known are lora, dora, rslora"):
        scale("qlora")


def test_dropout_is_refused_where_a_mask_could_not_hold(original, layers):
    masks = pruning.mask_unstructured(original, 0.5, layers.prunable)
    with pytest.raises(InputError, match=r"dropout = 0\.1 .*whole filters"):
        adapt(original, layers, masks=masks, dropout=0.1)
    with pytest.raises(InputError, match=r"dropout = 0\.1 .*DoRA"):
        adapt(original, layers, kind="dora", dropout=0.1)


def test_the_effective_weight_is_the_merged_one(original, layers, dataset, split):
    masks = pruning.mask_unstructured(original, 0.9, layers.prunable)
    made = adapt(original, layers, masks=masks)
    training.fit(made, split.retain, dataset, FIT, seed=0)
    weights = {n: lora.effective_weight(layer).detach() for n, layer in lora.adapters(made)}
    merged = lora.merge(made, masks)
    assert all(torch.equal(merged.get_submodule(n).weight, w) for n, w in weights.items())
    assert pruning.sparsity(merged, layers.prunable) == pytest.approx(0.9, abs=1e-5)


def test_a_masked_dora_filter_divides_nothing_by_zero(original, layers, dataset, split):
    masks = pruning.mask_structured(original, 0.5, layers.prunable)
    made = adapt(original, layers, masks=masks, kind="dora")
    training.fit(made, split.retain, dataset, FIT, seed=0)
    merged = lora.merge(made, masks)
    assert all(torch.isfinite(p).all() for p in merged.parameters())
    assert pruning.sparsity(merged, layers.prunable) == 0.5
