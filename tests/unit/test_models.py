from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from helpers import models, pruning
from helpers.config import InputError
from helpers.files import FileProblem

SHAPES = {
    "digits_resnet": (10, 1, 8), "resnet20": (10, 3, 32), "resnet18": (10, 3, 32),
    "resnet50": (10, 3, 32), "vit": (10, 3, 32), "vit_tiny": (10, 1, 8),
    "resnet_tiny": (10, 3, 16),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(models.MODELS))
def named(request):
    name = request.param
    return name, models.build_model(name, *SHAPES[name])


def test_every_network_returns_logits_in_evaluation_mode(named):
    name, model = named
    _, channels, side = SHAPES[name]
    assert not model.training
    with torch.no_grad():
        assert model(torch.randn(2, channels, side, side)).shape == (2, 10)


def test_the_lists_name_layers_and_spare_the_classifier(named):
    name, model = named
    layers = models.layers(model)
    known = dict(model.named_modules())
    assert isinstance(known[layers.head], nn.Linear)
    assert known[layers.head].out_features == 10
    for listed in (layers.prunable, layers.adaptable):
        assert listed
        assert len(set(listed)) == len(listed)
        assert layers.head not in listed
        assert all(isinstance(known[n], nn.Conv2d | nn.Linear) for n in listed)
    assert set(layers.adaptable) <= set(layers.prunable)
    assert not any("shortcut" in n or "downsample" in n for n in layers.adaptable)
    if not name.startswith("vit"):
        assert "conv1" in layers.prunable
        assert "conv1" not in layers.adaptable
        assert set(layers.norms) == {n for n, m in known.items() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # conv 3x3 of all blocks + stem, BatchNorm (2 per channel), 1x1 shortcuts, classifier
        ("resnet20", 267_696 + 1_376 + 2_560 + 192 + 650),
        # torchvision's 11,689,512 with 10 instead of 1000 classes and a 3x3 instead of a 7x7 stem
        ("resnet18", 11_689_512 - 990 * 513 - 64 * 3 * (49 - 9)),
        ("resnet50", 25_557_032 - 990 * 2049 - 64 * 3 * (49 - 9)),
        # 12 blocks of 4 w^2 + 8 w^2 weights, 9 w biases and 4 w norms; patches, last norm, head
        ("vit", 12 * (12 * 384**2 + 13 * 384) + 49 * 384 + 2 * 384 + 3850),
    ],
)
def test_parameter_counts_worked_out_by_hand(name, parameters):
    assert models.count_parameters(models.build_model(name, *SHAPES[name])) == parameters


def test_the_narrow_network_has_the_names_and_an_eighth_of_the_channels_of_resnet18():
    narrow, wide = (
        {k: tuple(v.shape) for k, v in models.build_model(n, *SHAPES[n]).state_dict().items()}
        for n in ("resnet_tiny", "resnet18")
    )
    assert {*narrow} == {name for name in wide if ".1.conv" not in name and ".1.bn" not in name}
    for name, shape in narrow.items():
        assert shape == tuple(n // 8 if n >= 64 else n for n in wide[name]), name


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20", "resnet_tiny"])
def test_networks_for_small_images_keep_their_resolution(name):
    model = models.build_model(name, *SHAPES[name])
    seen = {}
    model.layer1.register_forward_hook(lambda m, x, y: seen.update(first=y.shape[-1]))
    model.layer3.register_forward_hook(lambda m, x, y: seen.update(third=y.shape[-1]))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert seen == {"first": 32, "third": 8}


def test_attention_equals_that_of_pytorch():
    torch.manual_seed(0)
    ours, theirs = models.Attention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(2, 5, 24)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = models.sincos_positions(3, 16)
    assert found.shape == (9, 16)
    scale = [10_000 ** (-k / 3) for k in range(4)]
    row, column = 2, 1
    wanted = [f(v * s) for v in (column, row) for f in (math.sin, math.cos) for s in scale]
    assert torch.allclose(found[3 * row + column], torch.tensor(wanted), atol=1e-6)


def test_the_seed_decides_the_weights_and_nothing_else():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (models.build_model("digits_resnet", 10, 1, 8, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.fc.weight, same.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(InputError, match=r"resnet99.*digits_resnet, resnet20, resnet18"):
        models.build_model("resnet99", 10, 3, 32)
    with pytest.raises(InputError, match="a multiple of 4"):
        models.build_model("vit", 10, 3, 30)
    with pytest.raises(InputError, match="linear layer"):
        models.layers(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_max_rank_of_a_layer():
    assert models.max_rank(nn.Conv2d(2, 64, 3)) == 18
    assert models.max_rank(nn.Conv2d(64, 16, 3)) == 16
    assert models.max_rank(nn.Linear(5, 7)) == 5


@pytest.mark.parametrize(
    ("name", "block", "stage", "every"),
    [
        ("digits_resnet", ["layer3.0.conv1", "layer3.0.conv2"], 2, 6),
        ("resnet20", ["layer3.2.conv1", "layer3.2.conv2"], 6, 18),
        ("resnet18", ["layer4.1.conv1", "layer4.1.conv2"], 4, 16),
        ("resnet50", ["layer4.2.conv1", "layer4.2.conv2", "layer4.2.conv3"], 9, 48),
        ("vit_tiny", [f"blocks.1.{n}" for n in ("attention.query", "attention.key",
                      "attention.value", "attention.out", "mlp1", "mlp2")], 6, 12),
    ],
)  # fmt: skip
def test_the_scopes_of_targets(name, block, stage, every):
    layers = models.layers(models.build_model(name, *SHAPES[name]))
    assert list(layers.targets("last_block")) == block
    assert len(layers.targets("last_stage")) == stage
    assert len(layers.targets("blocks")) == every
    assert set(layers.targets("all")) == set(layers.prunable)
    with pytest.raises(InputError, match="known are last_block, last_stage, blocks, all"):
        layers.targets("first")


def test_stages_of_a_network_that_is_a_plain_list():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)),
                          nn.Flatten(), nn.Linear(2, 2))  # fmt: skip
    layers = models.layers(model)
    assert layers.stages == layers.blocks == (("0.1",), ("0.2",)), "all but the stem"
    assert layers.others == ("0.0",)


def repeated(places, tied):
    """Five convolutions, of which those at some places are one, or have one weight."""
    convs = [nn.Conv2d(1, 4, 1), *(nn.Conv2d(4, 4, 1) for _ in range(4))]
    for place in places[1:]:
        convs[place].weight = convs[places[0]].weight
        convs[place] = convs[place] if tied else convs[places[0]]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(256, 10))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("places", "last", "blocks", "every"),
    [
        ((3, 4), "2", "12", "120"),
        ((1, 3), "4", "24", "240"),
        ((0, 4), "3", "123", "123"),
        ((1, 2, 3, 4), "0", "0", "0"),
    ],
)
def test_what_is_used_in_several_places_is_no_target(places, last, blocks, every, tied):
    layers = models.layers(repeated(places, tied))
    found = [layers.targets(s) for s in ("last_block", "last_stage", "blocks", "all")]
    assert found == [tuple(last), tuple(last), tuple(blocks), tuple(every)]
    assert layers.paper_adaptable == layers.adaptable == tuple(blocks)


# ------------------------------------------------------------------------------------------------
# a copy that knows nothing


def test_fresh_weights_and_nothing_else_is_touched(original):
    kept, chance = models.fingerprint(original), torch.get_rng_state()
    original.train()
    one, same, other = (models.fresh(original, seed) for seed in (0, 0, 1))
    assert original.training
    assert models.fingerprint(original) == kept
    assert torch.equal(torch.get_rng_state(), chance)
    assert models.fingerprint(one) == models.fingerprint(same)
    assert len({kept, models.fingerprint(one), models.fingerprint(other)}) == 3
    assert not one.training
    for name, tensor in one.state_dict().items():
        assert tensor.shape == original.state_dict()[name].shape
        if tensor.ndim > 1:
            assert not torch.equal(tensor, original.state_dict()[name]), name
    assert one.bn1.running_mean.tolist() == [0] * 16
    assert one.bn1.running_var.tolist() == [1] * 16


def test_fresh_weights_of_what_no_layer_of_convolutions_has():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.attention = nn.MultiheadAttention(8, 2)
            self.scale = nn.Parameter(torch.tensor(3.0))

    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    made = dict(models.fresh(model).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(made[name], parameter) == (name == "scale"), name


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "computed",
    [
        torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm,
        lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "weight_norm, new", "spectral_norm, new", "prune"],
)  # fmt: skip
def test_fresh_weights_of_layers_whose_weight_is_computed(computed):
    model = nn.Sequential(computed(nn.Conv2d(1, 8, 3)), nn.Flatten(), computed(nn.Linear(288, 10)))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.train()(images)
        before = model.eval()(images)
        made = models.fresh(model, 5)
        after = made(images)
    for name, parameter in made.named_parameters():
        assert not torch.equal(parameter, model.get_parameter(name)), name
    assert not made.training
    assert 0.1 < after.std() / before.std() < 10, "a norm of the weights that were there before"


def test_a_fresh_copy_has_the_channels_that_are_left(original, split, dataset):
    smaller = pruning.prune(original, 0.5, "channels", part=split.retain, dataset=dataset).model
    copied = models.fresh(smaller)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (copied, smaller)]
    assert shapes[0] == shapes[1]
    with torch.no_grad():
        assert copied(models.example(smaller)).shape == (2, 10)


# ------------------------------------------------------------------------------------------------
# plain files of weights, which somebody else wrote


def other_head(network):
    network.fc = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def other_step(network):
    network.layer3[0].conv1.stride = (1, 1)  # and every shape stays as it is
    network.layer3[0].shortcut[0].stride = (1, 1)


def wider(network):
    network.fc = nn.Linear(64, 11)


@pytest.mark.parametrize("change", [other_head, other_step, wider])
def test_a_blueprint_that_is_no_longer_the_networks_is_not_written(original, tmp_path, change):
    network = copy.deepcopy(original)
    change(network)
    models.save(network, tmp_path)
    again = models.load(tmp_path, network)
    assert models.fingerprint(again) == models.fingerprint(network)
    with pytest.raises(FileProblem, match="without one give base, a network of the architecture"):
        models.load(tmp_path)


@pytest.mark.parametrize("name", ["digits_resnet", "vit_tiny", "resnet_tiny"])
@pytest.mark.parametrize("kind", ["channels", "mask_structured"])
def test_a_pruned_network_is_read_by_its_blueprint(name, kind, tmp_path):
    smaller = pruning.prune(models.build_model(name, 10, 1, 8), 0.5, kind, measured=False).model
    models.save(smaller, tmp_path)
    assert models.fingerprint(models.load(tmp_path)) == models.fingerprint(smaller)


def test_a_plain_file_is_read_with_a_network_of_its_architecture(original, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(original.state_dict(), path)
    base = models.build_model("digits_resnet", 10, 1, 8, seed=5)
    kept = models.fingerprint(base)
    found = models.load(path, base)
    assert models.fingerprint(found) == models.fingerprint(original)
    assert models.fingerprint(base) == kept
    assert not found.training
    with pytest.raises(InputError, match=r"base = None.*a network of the architecture, for a"):
        models.load(path)


def test_a_plain_file_with_fewer_channels_says_so_itself(original, split, dataset, tmp_path):
    smaller = pruning.prune(original, 0.5, "channels", part=split.retain, dataset=dataset).model
    path = tmp_path / "small.safetensors"
    save_file({n: t.contiguous() for n, t in smaller.state_dict().items()}, path)
    found = models.load(path, models.build_model("digits_resnet", 10, 1, 8))
    found.to(split.retain.images.device)
    assert models.fingerprint(found) == models.fingerprint(smaller)
    assert models.count_parameters(found) < models.count_parameters(original)
    images = models.example(smaller)
    with torch.no_grad():
        assert torch.equal(found(images), smaller(images))


def _tied(seed):
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 10),
    ).eval()  # fmt: skip
    made[2].weight, made.input_shape = made[1].weight, (1, 8, 8)
    return made


def test_a_plain_file_may_name_tied_weights_once(tmp_path):
    model, path = _tied(0), tmp_path / "tied.safetensors"
    save_model(model, str(path))
    found = models.load(path, _tied(1))
    assert models.fingerprint(found) == models.fingerprint(model)
    assert found[2].weight is found[1].weight
    state = {n: t.clone() for n, t in model.state_dict().items() if n not in ("1.bias", "1.weight")}
    save_file(state, path)
    with pytest.raises(FileProblem, match=r"by the same names; it lacks '1\.bias'"):
        models.load(path, _tied(1))


def _raises(error):
    def forward(images):
        raise error

    return forward


def test_plain_files_that_do_not_fit_are_refused(original, tmp_path):
    base, path = models.build_model("digits_resnet", 10, 1, 8), tmp_path / "x.safetensors"
    state = original.state_dict()
    damaged = {
        "by the same names": {n: t for n, t in state.items() if n != "fc.bias"},
        "at most": state | {"fc.weight": torch.zeros(11, 64)},
        "float32": state | {"fc.weight": state["fc.weight"].double()},
        "7": state | {"conv1.weight": torch.zeros(7, 1, 3, 3)},  # the others still have 16
    }
    for message, tensors in damaged.items():
        save_file(tensors, path)
        with pytest.raises(FileProblem, match=message):
            models.load(path, base)
    torch.save(state, path)
    with pytest.raises(FileProblem, match=r"x\.safetensors"):
        models.load(path, base)
    save_file({n: t for n, t in state.items()}, path)
    for error in (AssertionError("wrong height"), IndexError("wrong height"), ZeroDivisionError(),
                  ValueError("\n  \nwrong height\n")):  # fmt: skip
        picky = copy.deepcopy(base)
        picky.forward = _raises(error)
        told = r"model cannot take images of \(1, 8, 8\): (wrong height|ZeroDivisionError); give"
        with pytest.raises(FileProblem, match=told):
            models.load(path, picky)
    save_file({n: t.half() if t.is_floating_point() else t for n, t in state.items()}, path)
    with pytest.raises(FileProblem, match=r"float32: model\.float"):
        models.load(path, copy.deepcopy(base).half())
    with pytest.raises(FileProblem, match="does not exist"):
        models.load(tmp_path / "nothing.safetensors", base)


def test_buffers_are_put_back_those_that_a_network_replaces_too():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.register_buffer("mean", torch.zeros(()))
            self.register_buffer("last", None)

        def forward(self, images):
            self.mean, self.last = 0.5 * self.mean + images.mean(), images
            return self.norm(images)

    model, images = Average().train(), torch.ones(2, 1, 2, 2)
    with models.unmoved(model):
        model(images)
        assert model.mean == model.norm.num_batches_tracked == 1
    assert model.mean == model.norm.num_batches_tracked == model.norm.running_mean.sum() == 0
    assert model.last is images, "it was not there before"


def test_examples_are_float32_whatever_is_made_by_default():
    model = models.build_model("digits_resnet", 10, 1, 8)
    wanted = models.example(model)
    torch.set_default_dtype(torch.float64)
    try:
        found = models.example(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


class Gain(nn.Module):
    """A layer that has to be told how to draw its weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(64.0))

    def reset_parameters(self, scale):
        nn.init.constant_(self.weight, scale)


def test_a_layer_that_has_to_be_told_how_is_drawn_like_what_no_layer_draws():
    model = nn.Sequential(nn.Linear(4, 64), Gain())
    gain = models.fresh(model, 1)[1].weight.detach()
    assert not torch.equal(gain, model[1].weight)
    assert abs(float(gain.mean()) - 31.5) < 10
    assert torch.equal(gain, models.fresh(model, 1)[1].weight)


def test_of_three_channels_it_is_said_that_folders_have_them(dataset):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 10))  # fmt: skip
    told = "those of a folder have three channels, grey ones too"
    with pytest.raises(InputError, match=told):
        models.check_answers("original", model, torch.zeros(2, 3, 8, 8), 10)
    with pytest.raises(InputError, match=r"trained for$"):
        models.check_answers("original", model, torch.zeros(2, 2, 8, 8), 10)
