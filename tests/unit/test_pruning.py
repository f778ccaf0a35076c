from __future__ import annotations

import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import ledger, models, pruning, training
from helpers.config import CRITERIA, KINDS, InputError, Recipe


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
    pruning.mask_structured(one, 0.5, ["0"], criterion="l1")
    pruning.mask_structured(two, 0.5, ["0"], criterion="l2")
    assert one[0].weight[0].tolist() == [1, 1, 1, 1]
    assert two[0].weight[0].tolist() == [0, 0, 0, 0]


@settings(max_examples=60)
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


# ------------------------------------------------------------------------------------------------
# four kinds behind one function


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_kind_with_every_criterion(kind, criterion, dataset, split, original):
    before = copy.deepcopy(original.state_dict())
    names = models.layers(original).prunable
    made = pruning.prune(original, 0.5, kind, criterion=criterion, part=split.retain,
                         dataset=dataset, measured=False)  # fmt: skip
    assert all(torch.equal(original.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None and p.requires_grad for p in made.model.parameters())
    if kind == "channels":
        assert pruning.channels_gone(made.model, original, names) == 0.5
        assert made.model.fc.out_features == 10
    else:
        assert pruning.sparsity(made.model, made.masks) == pytest.approx(0.5, abs=1e-6)
        assert made.masks.keys() <= set(names)
        kept = sum(int(m.sum()) for m in made.masks.values())
        assert kept == sum(m.numel() for m in made.masks.values()) / 2


@pytest.mark.parametrize("kind", ["mask_structured", "mask_unstructured", "mask_nm", "channels"])
def test_which_images_choose_is_explicit(kind, dataset, split, original):
    """Other images of the forgotten class: nothing changes unless they are asked for."""
    noise = dataset.train.images.clone()
    mine = dataset.train.labels == 3
    noise[mine] = torch.randint_like(noise[mine], 0, 256)
    other = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=noise))

    def state(source, part):
        made = pruning.prune(original, 0.5, kind, criterion="taylor", part=part(source),
                             dataset=dataset, measured=False)  # fmt: skip
        return made.model.state_dict()

    retained = [state(d, lambda d: d.split(3).retain) for d in (dataset, other)]
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, retained), strict=True))
    everything = [state(d, lambda d: d.train) for d in (dataset, other)]
    assert not all(torch.equal(a, b) for a, b in zip(*map(dict.values, everything), strict=True))


def test_single_weights_compete_globally_or_within_their_layer():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -0.2, 0.3, 0.4]]))
        model[1].weight.copy_(torch.tensor([[5.0, -6, 7, 8]]))
    overall, each = copy.deepcopy(model), copy.deepcopy(model)
    pruning.mask_unstructured(overall, 0.5, ["0", "1"])
    pruning.mask_unstructured(each, 0.5, ["0", "1"], scope="layer")
    assert [layer.weight.tolist() for layer in overall] == [[[0, 0, 0, 0]], [[5, -6, 7, 8]]]
    assert each[0].weight.flatten().tolist() == pytest.approx([0, 0, 0.3, 0.4])
    assert each[1].weight.flatten().tolist() == [0, 0, 7, 8]
    pruning.mask_unstructured(overall, 0.9999999, ["0", "1"])
    pruning.mask_unstructured(each, 0.9999999, ["0", "1"], scope="layer")
    assert [int(layer.weight.count_nonzero()) for layer in (*overall, *each)] == [0, 1, 1, 1]


def test_groups_never_reach_from_one_filter_into_the_next():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))  # 24 weights, but 6 a filter
    assert [*pruning.mask_nm(model, 0.5, ["0", "1"])] == ["1"]


def test_a_layer_is_two_of_four_in_every_group_or_not():
    weight = torch.ones(32, 64)
    weight[:, ::2] = 0
    assert pruning._two_of_four(weight)
    weight[5, 8] = 1
    assert not pruning._two_of_four(weight), "three in one group"
    assert not pruning._two_of_four(torch.zeros(32, 32)), "smaller than a block"


def test_two_of_four_by_hand():
    model = nn.Sequential(nn.Linear(8, 1, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -4, 3, 2, 0.1, 0.1, 9, -9]]))
    masks = pruning.mask_nm(model, 0.5, ["0", "1"])
    assert model[0].weight.flatten().tolist() == [0, -4, 3, 0, 0, 0, 9, -9]
    assert masks.keys() == {"0"}, "three weights have no group of four"


@settings(max_examples=40)
@given(
    filters=st.integers(1, 9), groups=st.integers(1, 6), gone=st.integers(0, 3),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_n_of_m_leaves_exactly_so_many_in_every_group(filters, groups, gone, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4 * groups, filters))
    old = model[0].weight.detach().abs().reshape(-1, 4)
    pruning.mask_nm(model, gone / 4, ["0"])
    left = model[0].weight.detach().reshape(-1, 4)
    assert ((left == 0).sum(1) == gone).all()
    wanted = old.sort(dim=1, descending=True).values[:, : 4 - gone].sum(1)
    assert torch.allclose(left.abs().sum(1), wanted)


@pytest.mark.parametrize("value", [0.3, 0.51, 1.0, -0.25])
def test_n_of_m_refuses_what_is_no_number_of_weights(value, original):
    with pytest.raises(InputError, match=r"sparsity.*0, 0\.25, 0\.5, 0\.75"):
        pruning.mask_nm(original, value, ["layer1.0.conv1"])


@pytest.mark.parametrize("name", ["digits_resnet", "resnet18", "resnet50", "vit_tiny", "vit"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_channels_are_really_gone_and_come_back_from_disk(name, share, tmp_path):
    model = models.build_model(name, 10, 3, 32)
    made = pruning.prune(model, share, "channels", measured=False)
    assert models.count_parameters(made.model) < (1 - share * 0.8) * models.count_parameters(model)
    small = pruning.cut_out(model.state_dict(), made.kept)
    assert all(torch.equal(small[k], v) for k, v in made.model.state_dict().items())
    images = models.example(model, 3)
    with torch.no_grad():
        wanted = made.model(images)
        models.save(made.model, tmp_path)
        assert not any(p.suffix in (".pt", ".pth", ".bin", ".pkl") for p in tmp_path.iterdir())
        assert torch.equal(models.load(tmp_path)(images), wanted)
        assert torch.equal(models.load(tmp_path, model)(images), wanted)
    if name.startswith("vit"):
        attention, original = made.model.blocks[0].attention, model.blocks[0].attention
        assert attention.query.out_features == round(original.query.out_features * (1 - share))
        inner = original.query.out_features // original.heads
        places = made.kept["blocks.0.attention.query.weight"][0]
        counts = (places // inner).bincount(minlength=original.heads)
        assert len(set(counts.tolist())) == 1, "every head keeps the same width"
        assert attention.out.out_features == original.out.out_features


def test_removing_is_the_same_as_zeroing_what_is_removed(original, dataset):
    """An independent check: the dense network with the same channels silenced says the same."""
    made = pruning.prune(original, 0.5, "channels", measured=False)
    silent = copy.deepcopy(original)
    for name, places in made.kept.items():
        if places and places[0] is not None and not name.startswith("fc"):
            tensor = silent.state_dict()[name]
            gone = torch.ones(len(tensor), dtype=torch.bool)
            gone[places[0]] = False
            tensor[gone] = 1 if name.endswith("running_var") else 0  # BatchNorm gives 0 for 0
    wanted = training.predict(silent, dataset.test, dataset)
    assert torch.allclose(training.predict(made.model, dataset.test, dataset), wanted, atol=1e-4)


def test_what_was_frozen_stays_frozen_and_chance_is_given_back(original):
    original.layer2[0].conv1.weight.requires_grad_(False)
    before = torch.get_rng_state()
    made = pruning.prune(original, 0.5, "channels", criterion="random", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    frozen = [name for name, p in made.model.named_parameters() if not p.requires_grad]
    assert frozen == ["layer2.0.conv1.weight"]


def test_what_is_cut_out_of_a_state_is_a_copy():
    state = {"whole": torch.arange(3.0), "part": torch.arange(4.0)}
    smaller = pruning.cut_out(state, {"part": (torch.tensor([1, 3]),)})
    assert [t.tolist() for t in smaller.values()] == [[0, 1, 2], [1, 3]]
    smaller["whole"][0] = 9
    assert state["whole"][0] == 0


def test_layers_that_keep_their_outputs_do_not_count_as_channels(original):
    layers = models.layers(original)
    made = pruning.prune(original, 0.5, "channels").model
    every = [*dict.fromkeys((*layers.prunable, *layers.fixed))]
    gone = pruning.channels_gone(made, original, every)
    assert gone == pruning.channels_gone(made, original, layers.prunable)
    assert gone == pytest.approx(0.5, abs=0.01)


def test_layers_without_zeros_have_no_mask(original):
    with torch.no_grad():
        original.conv1.weight[0, 0, 0, 0] = 0
    names = models.layers(original).prunable
    masks = pruning.zeros_as_masks(original, ["conv1", *names])
    assert [*masks] == ["conv1"]
    assert int((~masks["conv1"]).sum()) == 1


def test_a_smaller_network_trains_adapts_and_reloads(cfg, dataset, split, original, tmp_path):
    from helpers import lora

    made = pruning.prune(original, 0.5, "channels", part=split.retain, dataset=dataset)
    layers = models.layers(made.model)
    adapted = lora.attach(made.model, 4, layers.adaptable, alpha=8, train_in_full=[layers.head])
    training.fit(adapted, split.retain, dataset, Recipe(epochs=1, lr=0.02), seed=0)
    merged = lora.merge(adapted)
    models.save(merged, tmp_path)
    wanted = training.predict(merged, dataset.test, dataset)
    again = models.load(tmp_path).to(cfg.device)
    assert torch.equal(training.predict(again, dataset.test, dataset), wanted)


def test_the_fast_path_says_why_there_is_none(original):
    made = pruning.prune(original, 0.5, "mask_nm", measured=False).model
    fast, reason = pruning.semi_structured(made)
    if not torch.cuda.is_available():
        assert fast is made
        assert "CUDA devices only" in reason


@pytest.mark.parametrize(("share", "gone"), [(0.55, 3), (0.45, 2), (0.05, 0), (0.95, 4)])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_single_weights_are_rounded_and_one_stays(scope, share, gone):
    model = nn.Sequential(nn.Linear(5, 1))
    mask = pruning.mask_unstructured(model, share, ["0"], scope=scope)["0"]
    assert int((~mask).sum()) == gone


def test_what_taylor_looked_at_is_part_of_the_cost(original, dataset, split):
    part, n = split.retain.sample(60), 60
    made = pruning.prune(original, 0.5, "channels", criterion="taylor", part=part, dataset=dataset)
    whole, smaller = (ledger.macs(net, 2) for net in (original, made.model))
    assert smaller < whole / 2
    assert made.macs == 3 * n * whole + n * smaller, "back counts twice, then BatchNorm"


def test_taylor_by_hand():
    """The sum of |weight x gradient|: 2.4 against 2.21, though the squares say 2.9 against 4.8."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    network[0].weight.data = torch.tensor([[1.0, 1.0], [0.1, 10.0]])
    network[0].weight.grad = torch.tensor([[1.2, 1.2], [22.0, 0.001]])
    masks = pruning.mask_structured(network, 0.5, ["0"], criterion="taylor")
    assert masks["0"][:, 0].tolist() == [True, False]
    network[0].weight.data = torch.tensor([[5.0, 0.1], [1.0, 1.0]])
    network[0].weight.grad = torch.tensor([[0.1, 1.0], [1.0, 1.0]])  # neither factor alone decides
    masks = pruning.mask_unstructured(network, 0.25, ["0"], criterion="taylor")
    assert masks["0"].tolist() == [[True, False], [True, True]]


def test_the_gradient_of_taylor_is_that_of_the_network_as_it_answers(dataset, split, original):
    part, network = split.retain.sample(80), copy.deepcopy(original).train()
    assert pruning._gradients(network, part, dataset, 0) == 80
    answers = original.eval()(dataset.normalise(part.images))
    nn.functional.cross_entropy(answers, part.labels).backward()
    assert torch.allclose(network.conv1.weight.grad, original.conv1.weight.grad, atol=1e-5)


def test_the_seed_chooses_images_statistics_and_random_channels(
    dataset, split, original, monkeypatch
):
    monkeypatch.setattr(pruning, "SCORED", 20)
    measure, seeds = pruning.recalibrate_batchnorm, []
    monkeypatch.setattr(
        pruning,
        "recalibrate_batchnorm",
        lambda *given, seed: seeds.append(seed) or measure(*given, seed=seed),
    )
    masks = [
        pruning.prune(original, 0.5, "mask_unstructured", criterion="taylor", part=split.retain,
                      dataset=dataset, seed=seed, measured=False).masks
        for seed in (0, 0, 1)
    ]  # fmt: skip
    same = [all(torch.equal(masks[0][n], other[n]) for n in other) for other in masks[1:]]
    assert seeds == [0, 0, 1]
    assert same == [True, False]
    kept = [
        pruning.prune(original, 0.5, "channels", criterion="random", seed=seed).kept
        for seed in (0, 0, 1)
    ]
    assert [str(kept[0]) == str(other) for other in kept[1:]] == [True, False]


def test_images_without_their_data_set_are_refused(original, split):
    with pytest.raises(InputError, match="dataset"):
        pruning.prune(original, 0.5, part=split.retain)


def test_taylor_needs_images(original):
    with pytest.raises(InputError, match="criterion = 'taylor' is not allowed: needs images"):
        pruning.prune(original, 0.5, criterion="taylor")


@pytest.mark.parametrize(
    "wrong", [{"kind": "hope"}, {"criterion": "luck"}, {"kind": "mask_unstructured", "scope": "x"}]
)
def test_unknown_names_list_the_known_ones(wrong, original):
    with pytest.raises(InputError, match="known are"):
        pruning.prune(original, 0.5, **wrong)


def test_depthwise_networks_lose_channels_and_come_back(tmp_path):
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=4).eval()
    model.input_shape = (3, 32, 32)
    made = pruning.prune(model, 0.5, "channels", measured=False)
    assert models.count_parameters(made.model) < 0.5 * models.count_parameters(model)
    models.save(made.model, tmp_path)
    again = models.load(tmp_path, model)
    images = models.example(model, 2)
    with torch.no_grad():
        assert torch.equal(again(images), made.model(images))


def test_a_parameter_outside_of_any_layer_loses_the_same_channels():
    class Gain(nn.Module):
        input_shape = (3, 8, 8)

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.c1, self.c2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.gain = nn.Parameter(torch.linspace(10, 17, 8).view(1, 8, 1, 1))
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.c2((self.c1(x) * self.gain).relu()).mean((2, 3)))

    made = pruning.prune(Gain(), 0.5, "channels", measured=False)
    places = made.kept["c1.weight"][0]
    if "gain" in made.kept:
        assert torch.equal(made.kept["gain"][1], places)
    assert torch.equal(made.model.gain.flatten(), torch.linspace(10, 17, 8)[places])


def test_a_network_that_cannot_be_followed_is_refused_in_one_line():
    class Flat(nn.Module):
        input_shape = (3, 8, 8)

        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 2)

        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 8 * 64))

    with pytest.raises(InputError, match="channels cannot be removed from Flat") as refused:
        pruning.prune(Flat(), 0.5, "channels", measured=False)
    assert "\n" not in str(refused.value)
    assert "use a mask instead" in str(refused.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda tv: tv.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=4),
        lambda tv: tv.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=4),
        lambda tv: tv.SwinTransformer(
            [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=4,
            block=tv.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=tv.swin_transformer.PatchMergingV2,
        ),
        lambda tv: tv.MaxVit((32, 32), 16, 4, [16, 32], [1, 1], 16, 0.0, num_classes=4),
        lambda tv: tv.shufflenet_v2_x0_5(num_classes=4),
    ],
    ids=["VisionTransformer", "SwinTransformer", "SwinTransformerV2", "MaxVit", "ShuffleNetV2"],
)  # fmt: skip
def test_what_cannot_be_followed_in_networks_of_torchvision_is_said_in_one_line(build):
    model = build(pytest.importorskip("torchvision").models).eval()
    model.input_shape = (3, 32, 32)
    name = type(model).__name__
    with pytest.raises(InputError, match=f"removed from {name}: to follow what is coupled") as no:
        pruning.prune(model, 0.5, "channels", measured=False)
    assert "\n" not in str(no.value)
    assert str(no.value).endswith("use a mask instead")


def test_shared_weights_are_refused_where_channels_go(original):
    original.layer1[0].conv2.weight = original.layer1[0].conv1.weight
    with pytest.raises(InputError, match=r"shared weights, layer1\.0\.conv1\.weight, layer1"):
        pruning.prune(original, 0.5, "channels", measured=False)
    assert pruning.prune(original, 0.5, measured=False).masks, "a mask can be had"


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("kind", ["mask_structured", "mask_unstructured", "mask_nm"])
def test_a_weight_of_two_layers_is_scored_once(kind, scope, original):
    one, other, last = names = ["layer1.0.conv1", "layer1.0.conv2", "layer3.0.conv2"]
    original.layer1[0].conv2.weight = original.layer1[0].conv1.weight
    how = {"criterion": "random"} | ({"scope": scope} if kind == "mask_unstructured" else {})
    masks = getattr(pruning, kind)(original, 0.5, names, **how)
    assert [*masks] == names
    assert torch.equal(masks[one], masks[other])
    assert pruning.sparsity(original, [one, last]) == 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_than_float32_are_refused_in_one_line(dtype, original):
    with pytest.raises(InputError, match=r"torch\.float\d\d.*float32: model\.float\(\)"):
        pruning.prune(original.to(dtype), 0.5)


def test_it_is_said_where_little_can_be_pruned(caplog):
    class Mixed(nn.Module):
        input_shape = (3, 8, 8)

        def __init__(self):
            super().__init__()
            self.conv, self.hidden, self.fc = (
                nn.Conv2d(3, 4, 8),
                nn.Linear(4, 400),
                nn.Linear(400, 9),
            )

        def forward(self, x):
            return self.fc(self.hidden(self.conv(x).flatten(1)))

    pruning.prune(Mixed(), 0.5, measured=False)
    assert "12.0 % of the weights of Mixed are in layers that can be pruned" in caplog.text


def test_a_sparsity_that_is_no_number_is_refused(original):
    with pytest.raises(InputError, match="sparsity = 'x'"):
        pruning.prune(original, "x")


def test_nothing_removed_is_nothing_kept_apart(original):
    assert pruning.prune(original, 0.0, "channels", measured=False).kept == {}


def test_taylor_works_on_a_frozen_network(original, dataset, split):
    original.requires_grad_(False)
    made = pruning.prune(original, 0.5, criterion="taylor", part=split.retain, dataset=dataset,
                         measured=False)  # fmt: skip
    assert not any(p.requires_grad for p in made.model.parameters())


# ------------------------------------------------------------------------------------------------
# what the removal of channels must not do silently


@pytest.mark.parametrize("name", ["digits_resnet", "resnet20", "vit_tiny"])
def test_more_sparsity_never_leaves_a_larger_network(name):
    shape = (10, 1, 8) if name == "digits_resnet" else (10, 3, 32)
    model = models.build_model(name, *shape)
    sizes = [
        models.count_parameters(pruning.prune(model, s, "channels", measured=False).model)
        for s in (0.5, 0.9, 0.94, 0.97, 0.999)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1 * models.count_parameters(model)


def test_channels_that_are_put_together_in_a_way_that_is_not_followed_are_refused():
    class Turned(nn.Module):
        input_shape = (3, 32, 32)

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            return self.head(self.second(self.first(x).relu().flip(1)).relu().mean((2, 3)))

    torch.manual_seed(0)
    model = Turned().eval()
    with pytest.raises(
        InputError, match=r"channels cannot be removed from Turned: outputs .* mask"
    ):
        pruning.prune(model, 0.5, "channels", measured=False)
    kept = pruning.prune(model, 0.5, "mask_structured", measured=False)
    assert kept.masks


def test_a_densenet_loses_channels():
    from torchvision.models import DenseNet

    torch.manual_seed(0)
    model = DenseNet(8, (2, 2, 2), 16, num_classes=10).eval()
    model.input_shape = (3, 32, 32)
    made = pruning.prune(model, 0.5, "channels", measured=False).model
    assert models.count_parameters(made) < 0.3 * models.count_parameters(model)


def test_a_network_that_cannot_be_traced_is_refused_at_once():
    """Torch-Pruning loses its way in shifted windows, and would sit over them for hours."""
    from torchvision.models import swin_t

    net = swin_t(num_classes=10)
    net.input_shape = (3, 64, 64)
    with pytest.raises(InputError, match=r"SwinTransformer: to follow .*depth.*use a mask"):
        pruning.prune(net, 0.5, "channels")


def test_channels_that_are_reached_on_two_ways_are_not_more_than_there_are(caplog):
    """Torch-Pruning counts a channel again for each pixel on its way there and back."""

    class Unflattened(nn.Module):
        input_shape = (3, 4, 4)

        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(48, 512), nn.BatchNorm2d(32)
            self.b, self.fc = nn.Linear(512, 64), nn.Linear(64, 5)

        def forward(self, x):
            x = self.norm(self.a(x.flatten(1)).unflatten(1, (32, 4, 4))).relu()
            return self.fc(self.b(x.flatten(1)).relu())

    torch.manual_seed(0)
    made = pruning.prune(Unflattened().eval(), 0.5, "channels", measured=False)
    assert made.model.b.weight.shape == (32, 512)
    assert "no outputs could be taken out of a" in caplog.text


def _stack(*layers):
    torch.manual_seed(0)
    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
    model = nn.Sequential(*layers, *tail).eval()
    model.input_shape = (3, 8, 8)
    return model


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        (lambda: (nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 32, 3)),
         {0.5: (16, 16), 0.9: (8, 3), 0.999: (8, 1)}),
        (lambda: (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=4)),
         {0.5: (16, 16), 0.9: (4, 4), 0.999: (4, 4)}),
    ],
    ids=["GroupNorm", "grouped convolution"],
)  # fmt: skip
def test_one_channel_stays_in_each_group(layers, left, caplog):
    model = _stack(*layers())
    for share, widths in left.items():
        made = pruning.prune(model, share, "channels", measured=False).model
        assert (len(made[0].weight), len(made[3].weight)) == widths
        assert not caplog.text


@pytest.mark.parametrize("share", [0.7, 0.9])
def test_norms_keep_the_channels_of_what_they_normalise(share):
    """Torch-Pruning leaves those of a LayerNorm in the order of a set."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
    model = ConvNeXt(blocks, num_classes=10).eval()
    model.input_shape = (3, 32, 32)
    made = pruning.prune(model, share, "channels", measured=False)
    for conv, norm in [("features.0.0", "features.0.1"), ("features.2.1", "classifier.0")]:
        (places, *_), (of_norm,) = (made.kept[f"{name}.weight"] for name in (conv, norm))
        assert torch.equal(of_norm, places)


def test_a_norm_that_is_narrowed_twice_keeps_the_right_channels():
    class Joined(nn.Module):
        input_shape = (3, 2, 2)

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 99), nn.Linear(12, 99)
            self.norm, self.c, self.fc = nn.LayerNorm(198), nn.Linear(198, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = x.flatten(1)
            return self.fc(self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1))).relu())

    torch.manual_seed(0)
    kept = pruning.prune(Joined().eval(), 0.9, "channels", measured=False).kept
    both = torch.cat([kept["a.weight"][0], kept["b.weight"][0] + 99])
    assert torch.equal(kept["norm.weight"][0], both)
    assert torch.equal(kept["c.weight"][1], both)


def test_layers_that_lose_inputs_alone_are_named(caplog):
    class Cosine(nn.Module):
        input_shape = (3, 8, 8)

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
            self.fc = nn.Linear(16, 10, bias=False)

        def forward(self, x):
            x = self.b(self.a(x).relu()).relu().mean((2, 3))
            return F.linear(F.normalize(x), F.normalize(self.fc.weight))

    torch.manual_seed(0)
    made = pruning.prune(Cosine().eval(), 0.9, "channels", measured=False)
    assert made.model.b.weight.shape == (16, 1, 3, 3)
    assert "no outputs could be taken out of b" in caplog.text


def test_a_layer_with_groups_can_be_forgotten():
    made = pruning.prune(
        _stack(nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32)), 0.5, "channels", measured=False
    )
    held = weakref.ref(made.model[1])
    del made
    gc.collect()
    assert held() is None
