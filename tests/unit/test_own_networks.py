"""Networks as other people write them, through every stage: the result, or one line."""

from __future__ import annotations

import copy
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from helpers import (
    audit,
    files,
    frozen,
    ledger,
    lora,
    models,
    patches,
    pruning,
    shut,
    training,
    unlearning,
)
from helpers.config import InputError
from helpers.files import FileProblem


@pytest.fixture
def short(cfg):
    return cfg.but(method="lora", rank=2, epochs=1)


def network(*middle):
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
    made.input_shape = (1, 8, 8)
    return made


def moved_to(model, dataset):
    return model.to(dataset.mean.device)


def test_an_instance_norm_gets_the_size_that_is_left(short, dataset, tmp_path):
    model = moved_to(network(nn.InstanceNorm2d(16, affine=True)), dataset)
    made = unlearning.unlearn(model, dataset, short.but(method="prunelora_channels", rank=1))
    assert made.model[1].num_features == 8
    patch = patches.load_patch(patches.save_patch(made.patch, tmp_path / "patch"), model)
    images = models.example(model)
    assert torch.equal(patches.apply(model, patch)(images), made.model(images))
    models.save(made.model, tmp_path / "whole")
    assert torch.equal(models.load(tmp_path / "whole", model)(images), made.model(images))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, nn.BatchNorm2d])
@pytest.mark.filterwarnings("error:input's size at dim=1")
def test_statistics_of_removed_channels_go_with_them(dataset, kind, affine):
    norm = kind(16, affine=affine, track_running_stats=True)
    norm.running_mean.copy_(torch.arange(16.0))
    smaller = pruning.prune(moved_to(network(norm), dataset), 0.5, "channels")
    (left,) = smaller.kept["1.running_mean"]
    assert torch.equal(left, smaller.kept["0.weight"][0])
    assert smaller.model[1].running_mean.tolist() == left.tolist()
    again = network(kind(16, affine=affine, track_running_stats=True))
    models.resize(again, {n: t.shape for n, t in smaller.model.state_dict().items()})
    assert again[1].num_features == len(left) == 8


def test_channels_of_a_network_with_a_computed_classifier_are_refused_in_words(dataset):
    model = network()
    nn.utils.parametrizations.weight_norm(model[-1])
    told = r"6\.weight = 'computed from other parameters'.*remove_parametrizations.*use a mask"
    with pytest.raises(InputError, match=told):
        pruning.prune(moved_to(model, dataset), 0.5, "channels")


class Encoder(nn.Module):
    """Attention of PyTorch's own, whose size is no tensor's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 32, 2, 2)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.head = nn.Linear(32, 10)
        self.input_shape = (1, 8, 8)

    def forward(self, x):
        return self.head(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def test_what_could_not_be_read_back_is_refused_before_it_trains(short, dataset):
    model = moved_to(Encoder().eval(), dataset)
    with pytest.raises(InputError, match=r"channels cannot be removed from Encoder: .*use a mask"):
        unlearning.unlearn(model, dataset, short.but(method="prunelora_channels", rank=1))
    made = unlearning.unlearn(model, dataset, short.but(method="prunelora"))
    images = models.example(model)
    assert torch.equal(patches.apply(model, made.patch)(images), made.model(images))


def test_that_little_can_be_adapted_is_said(short, dataset, caplog):
    unlearning.unlearn(moved_to(network(), dataset), dataset, short)
    assert "can be adapted" not in caplog.text
    unlearning.unlearn(moved_to(Encoder().eval(), dataset), dataset, short)
    assert "1.4 % of the weights of Encoder are in layers that can be adapted" in caplog.text


def test_nothing_with_weights_needs_to_lie_before_the_first_adapter(short, dataset):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model.input_shape = (1, 8, 8)
    moved_to(model, dataset)
    made = [unlearning.unlearn(model, dataset, short.but(cache_mb=mb)) for mb in (1024, 0)]
    kept, computed = (one.model.state_dict() for one in made)
    assert all(torch.allclose(kept[name], computed[name], atol=1e-6) for name in kept)
    assert made[0].fit.macs == made[1].fit.macs


class Versioned(nn.Module):
    """Asks what it loads for the version that it was saved by, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.layers, self.input_shape = network(), (1, 8, 8)

    def forward(self, x):
        return self.layers(x)

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *others)


def test_a_network_that_asks_for_its_version_gets_it(short, dataset, tmp_path):
    model = moved_to(Versioned().eval(), dataset)
    images = models.example(model)
    made = unlearning.unlearn(model, dataset, short)
    assert torch.equal(patches.apply(model, made.patch)(images), made.model(images))
    before = models.fingerprint(model)
    with patches.switched_on(model, made.patch):
        assert torch.equal(model(images), made.model(images))
    assert models.fingerprint(model) == before
    models.save(made.model, tmp_path)
    assert torch.equal(models.load(tmp_path, model)(images), made.model(images))
    smaller = copy.deepcopy(model)
    pruning.remove_channels(smaller, 0.5)
    assert smaller.layers[0].out_channels == 8


def test_a_training_of_such_a_network_goes_on(short, dataset, tmp_path):
    model, place = moved_to(Versioned().eval(), dataset), tmp_path / "checkpoint.safetensors"
    cfg, stop = short.but(method="finetune", epochs=2), threading.Event()
    with (
        pytest.raises(training.Interrupted, match="go on"),
        training.watched(stop, lambda done, total: stop.set()),
    ):
        unlearning.unlearn(model, dataset, cfg, checkpoint=place)
    found = unlearning.unlearn(model, dataset, cfg, checkpoint=place).model
    wanted = unlearning.unlearn(model, dataset, cfg).model
    assert models.fingerprint(found) == models.fingerprint(wanted)


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_parameters_belongs_to_the_patch_as_well(short, dataset, affine):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16, affine=affine), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()  # fmt: skip
    model.input_shape = (1, 8, 8)
    moved_to(model, dataset)
    made = {n: unlearning.unlearn(model, dataset, short.but(norms=n)) for n in ("patch", "frozen")}
    counted = {name: int(one.model[3].num_batches_tracked) for name, one in made.items()}
    assert counted == {"patch": made["patch"].fit.steps, "frozen": 0}
    patched = patches.apply(model, made["patch"].patch)
    assert torch.equal(patched[3].running_mean, made["patch"].model[3].running_mean)


class Scale(nn.Module):
    """A number that is in no state."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_features_of_a_network_are_not_those_of_another_with_its_weights(short, dataset):
    def scaled(factor):
        model = nn.Sequential(Scale(factor), *network()).eval()
        model.input_shape = (1, 8, 8)
        return moved_to(model, dataset)

    cache = frozen.Cache(10**9)
    unlearning.unlearn(scaled(1.0), dataset, short, cache=cache)
    shared = unlearning.unlearn(scaled(3.0), dataset, short, cache=cache)
    alone = unlearning.unlearn(scaled(3.0), dataset, short)
    assert shared.frozen_once
    assert models.fingerprint(shared.model) == models.fingerprint(alone.model)


@pytest.mark.parametrize("config", [SimpleNamespace(width=16), {"width": 16}, "wide", 3, None])
def test_a_config_of_ones_own_is_no_config_of_pefts(short, dataset, config):
    model = moved_to(network(), dataset)
    model.config = config
    adapted = lora.attach(model, 2, ["2"], alpha=4)
    assert model.config is config
    assert adapted.base_model.model.config == config
    unlearning.unlearn(model, dataset, short)


@pytest.mark.parametrize(
    "own", [SimpleNamespace(width=16), property(lambda network: SimpleNamespace(width=16))]
)
def test_nor_is_one_of_the_class(short, dataset, own):
    class Configured(Versioned):
        config = own

    model = moved_to(Configured().eval(), dataset)
    made = unlearning.unlearn(model, dataset, short)
    assert type(made.model) is type(model) is Configured
    assert made.model.config.width == 16


class Based(nn.Module):
    """Calls a part of it as peft calls what it adapts, as DLA does."""

    input_shape = (1, 8, 8)

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return self.base_layer(x)


def test_a_part_may_have_the_name_that_peft_gives_to_what_it_adapts(short, dataset):
    model = moved_to(Based(network(Based(nn.Conv2d(16, 16, 1)), nn.BatchNorm2d(16))), dataset)
    made = unlearning.unlearn(model.eval(), dataset, short.but(targets="blocks"))
    assert set(made.patch.low_rank) == {"base_layer.1.base_layer", "base_layer.4"}
    assert [*made.model.state_dict()] == [*model.state_dict()]
    assert vars(made.model).keys() == vars(model).keys()
    images = models.example(model)
    assert torch.equal(patches.apply(model, made.patch)(images), made.model(images))


class Cosine(nn.Module):
    """Has a learned temperature, a number and the first of its parameters, as CLIP has."""

    def __init__(self):
        super().__init__()
        self.scale, self.layers = nn.Parameter(torch.tensor(2.0)), network()
        self.input_shape = (1, 8, 8)

    def forward(self, x):
        return self.scale.exp() * self.layers(x)


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        ("prunelora", "default"),
        ("prunelora", "paper"),
        ("prunelora_channels", "default"),
        ("salun", "default"),
        ("ssd", "default"),
    ],
)
def test_a_parameter_may_be_a_single_number(short, dataset, method, mode):
    model = moved_to(Cosine().eval(), dataset)
    made = unlearning.unlearn(model, dataset, short.but(method=method, rank=1, mode=mode))
    assert made.seconds > 0
    assert made.model.scale.shape == ()


class TwoHeads(nn.Module):
    """A second answer while it trains, as in torchvision's GoogLeNet and Inception."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.other, self.head = nn.Linear(16, 10), nn.Linear(16, 10)
        self.input_shape = (1, 8, 8)

    def forward(self, x):
        h = torch.relu(self.first(x))
        answer = self.head(torch.relu(self.second(h)).mean((2, 3)))
        return (answer, self.other(h.mean((2, 3)))) if self.training else answer


@pytest.mark.parametrize("method", ["lora", "finetune", "prunelora_channels"])
def test_a_second_head_in_training_is_refused_before_anything_is_done(short, dataset, method):
    with pytest.raises(InputError, match=r"^original's answer while it trains = 'tuple'"):
        unlearning.unlearn(moved_to(TwoHeads().eval(), dataset), dataset, short.but(method=method))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["lora", "finetune"])
def test_a_forward_pass_without_gradients_is_refused(short, dataset, around, method):
    class Deployed(Versioned):
        forward = around()(Versioned.forward)

    model = moved_to(Deployed().eval(), dataset)
    with pytest.raises(
        InputError, match=r"'without a gradient' is not allowed: .*no torch\.no_grad"
    ):
        unlearning.unlearn(model, dataset, short.but(method=method))


def test_adapters_train_where_everything_is_frozen(short, dataset):
    model = moved_to(network(), dataset).requires_grad_(False)
    made = unlearning.unlearn(model, dataset, short)
    assert models.fingerprint(made.model) != models.fingerprint(model)


@pytest.mark.parametrize("method", ["lora", "prunelora", "prunelora_channels", "prune_finetune"])
def test_a_state_of_more_than_tensors_is_refused(short, dataset, method, tmp_path, monkeypatch):
    class Noting(Versioned):
        def get_extra_state(self):
            return {"made": "yesterday"}

        def set_extra_state(self, state):
            pass

    model = moved_to(Noting().eval(), dataset)
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it trains"))
    line = r"state of .* = '_extra_state' is not allowed: tensors alone"
    with pytest.raises(InputError, match=line):
        unlearning.unlearn(model, dataset, short.but(method=method, rank=1))
    with pytest.raises(InputError, match=line):
        models.save(model, tmp_path)


def test_another_precision_is_refused_where_images_would_be_passed(dataset):
    model = moved_to(network().double(), dataset)
    for act in (
        lambda: lora.attach(model, 2, ["2"], alpha=4),
        lambda: audit.evaluate(model, dataset, 3),
        lambda: ledger.measure(model, "before", ["2"]),
    ):
        with pytest.raises(InputError, match=r"torch\.float64.*float32: model\.float\(\)"):
            act()
    lora.attach(model, 2, ["2"], alpha=4, audited=False)


@pytest.mark.parametrize(
    "buffer",
    [torch.tensor([1, 2, 3], dtype=t) for t in (torch.int16, torch.int8, torch.complex64)]
    + [torch.empty(0), torch.full((3,), float("nan"))],
    ids=lambda tensor: f"{tensor.dtype} {tensor.tolist()}",
)
def test_buffers_of_every_kind_are_read_back(short, dataset, tmp_path, buffer):
    model = network()
    model.register_buffer("held", buffer)
    models.save(model, tmp_path / "whole")
    again = models.load(tmp_path / "whole", model)
    assert again.held.dtype == buffer.dtype
    assert torch.equal(again.held.nan_to_num(), buffer.nan_to_num())
    moved_to(model, dataset)
    patch = unlearning.unlearn(model, dataset, short).patch
    assert "held" not in patch.tensors, "it did not change"
    patches.load_patch(patches.save_patch(patch, tmp_path / "patch"), model)


@pytest.mark.parametrize("method", ["finetune", "prune_finetune", "lora", "prunelora", "head_only"])
def test_a_batchnorm_that_its_owner_froze_stays_as_it_is(short, dataset, method):
    """But for pruning, after which statistics of other activations would be wrong."""
    model = moved_to(network(nn.BatchNorm2d(16)), dataset)
    norm = model[1]
    with torch.no_grad():
        norm.running_mean.uniform_(-0.1, 0.1)
    norm.requires_grad_(False)
    found = unlearning.unlearn(model, dataset, short.but(method=method, targets="all")).model
    assert all(p.requires_grad for name, p in found.named_parameters() if name[:2] != "1.")
    made = found[1]
    assert torch.equal(made.weight, norm.weight)
    assert torch.equal(made.bias, norm.bias)
    if "prune" not in method:
        assert torch.equal(made.running_mean, norm.running_mean)
        assert torch.equal(made.running_var, norm.running_var)
    assert not made.weight.requires_grad


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("method", ["finetune", "lora", "prunelora", "head_only"])
def test_statistics_of_instances_stay_where_those_of_batches_do(short, dataset, method, affine):
    norm = nn.InstanceNorm2d(16, affine=affine, track_running_stats=True)
    model = moved_to(network(norm), dataset)
    if method == "finetune":
        norm.requires_grad_(False)
    made = unlearning.unlearn(model, dataset, short.but(method=method)).model[1]
    stays = affine or method != "finetune"  # nobody froze one without parameters
    assert torch.equal(made.running_mean, norm.running_mean) is stays
    assert torch.equal(made.running_var, norm.running_var) is stays


def test_statistics_of_instances_behind_an_adapter_belong_to_the_patch(short, dataset):
    model = moved_to(network(), dataset)
    model[3] = moved_to(nn.InstanceNorm2d(16, track_running_stats=True), dataset)
    made = {n: unlearning.unlearn(model, dataset, short.but(norms=n)) for n in ("patch", "frozen")}
    assert torch.equal(made["frozen"].model[3].running_mean, model[3].running_mean)
    assert not torch.equal(made["patch"].model[3].running_mean, model[3].running_mean)
    patched = patches.apply(model, made["patch"].patch)
    assert torch.equal(patched[3].running_mean, made["patch"].model[3].running_mean)


def test_answers_that_depend_on_the_rest_of_the_batch_are_refused(short, dataset):
    """A part of one class would be told from itself, and seem to be forgotten."""
    model = moved_to(network(nn.BatchNorm2d(16, track_running_stats=False)), dataset)
    with pytest.raises(InputError, match="to an image, with others and alone, differs by"):
        unlearning.unlearn(model, dataset, short)
    model = moved_to(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(
        10, track_running_stats=False)).eval(), dataset)  # fmt: skip
    with pytest.raises(InputError, match=r"cannot take an image alone .* track_running_stats=True"):
        models.check_answers("model", model, dataset.normalise(dataset.train.images[:2]), 10)
    models.check_answers("model", moved_to(network(nn.BatchNorm2d(16)), dataset),
                         dataset.normalise(dataset.train.images[:2]), 10)  # fmt: skip


class Functional(nn.Module):
    """Convolutions that are never called as modules."""

    input_shape = (1, 8, 8)

    def __init__(self, called):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.fc, self.called = nn.Linear(16, 10), called

    def forward(self, x):
        x = nn.functional.conv2d(x, self.a.weight, self.a.bias).relu()
        x = self.b(x) if self.called else nn.functional.conv2d(x, self.b.weight, self.b.bias)
        return self.fc(x.relu().mean((2, 3)))


def test_channels_that_cannot_be_found_are_not_left_without_a_word(dataset, caplog):
    part = dataset.split(3).retain
    model = moved_to(Functional(called=False), dataset)
    with pytest.raises(InputError, match="no outputs could be taken out of a, b; use a mask"):
        pruning.prune(model, 0.5, "channels", part=part, dataset=dataset)
    model = moved_to(Functional(called=True), dataset)
    made = pruning.prune(model, 0.5, "channels", part=part, dataset=dataset)
    assert made.model.b.weight.shape == (8, 16, 3, 3)
    assert "no outputs could be taken out of a" in caplog.text


@pytest.mark.parametrize("parts", ["all", "one"])
@pytest.mark.parametrize(
    "by",
    [
        torch.jit.script,
        lambda part: torch.jit.trace(part, torch.ones(2, 1, 8, 8)),
        lambda part: torch.compile(part, backend="eager"),
        lambda part: (part, part.compile(backend="eager"))[0],
    ],
    ids=["script", "trace", "compile", "in place"],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_what_is_compiled_is_refused(dataset, by, parts):
    model = network()
    if parts == "all":
        model = by(model)
        model.input_shape = (1, 8, 8)
    else:
        model[0] = by(model[0])
    moved_to(model, dataset)
    for act in (
        lambda: models.layers(model),
        lambda: pruning.prune(model, 0.5),
        lambda: lora.attach(model, 2, ["2"], alpha=4),
        lambda: shut.find(model, dataset.test, dataset),
    ):
        with pytest.raises(InputError, match=r"compiled: .* the network before torch\.compile"):
            act()


def test_answers_of_another_kind_get_no_adapter():
    class Named(nn.Sequential):
        def forward(self, x):
            return {"logits": super().forward(x)}

    model = Named(*network())
    model.input_shape = (1, 8, 8)
    with pytest.raises(InputError, match="answer = 'dict' is not allowed: a tensor"):
        lora.attach(model, 2, ["2"], alpha=4)


def test_a_layer_that_is_never_called_is_named(short, dataset):
    with pytest.raises(InputError, match=r"targets = \['b'\] is not allowed: .*do not act"):
        unlearning.unlearn(moved_to(Functional(called=False), dataset), dataset, short)
    model = Functional(called=True)
    model.unused = nn.Conv2d(16, 16, 1)
    with pytest.raises(InputError, match=r"'taylor' is not allowed: unused\.weight has no grad"):
        pruning.prune(moved_to(model, dataset), 0.5, criterion="taylor", dataset=dataset,
                      part=dataset.split(3).retain)  # fmt: skip


class Dense(nn.Module):
    """Each layer reads all that were before it, as in DenseNet."""

    input_shape = (1, 8, 8)

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (1, 8, 16))
        self.norm, self.head = norm(24), nn.Linear(24, 10)

    def forward(self, x):
        a = self.a(x).relu()
        b = self.b(a).relu()
        c = self.c(torch.cat([a, b], 1)).relu()
        return self.head(self.norm(torch.cat([a, b, c], 1)).relu().mean((2, 3)))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: nn.GroupNorm(1, n)])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_of_what_is_concatenated_the_same_channels_stay_as_of_its_parts(dataset, norm, share):
    model = moved_to(Dense(norm).eval(), dataset)
    kept = pruning.prune(model, share, "channels", measured=False).kept
    parts = [kept[f"{name}.weight"][0].tolist() for name in "abc"]
    assert all(len(part) == 8 * (1 - share) for part in parts)
    behind = [8 * place + channel for place, part in enumerate(parts) for channel in part]
    assert kept["norm.weight"][0].tolist() == kept["head.weight"][1].tolist() == behind
    assert kept["c.weight"][1].tolist() == behind[: len(behind) * 2 // 3]


def test_a_layer_of_two_names_is_itself_after_ssd(short, dataset):
    shared = nn.PReLU()
    model = network(shared, nn.Conv2d(16, 16, 1), shared)
    model = moved_to(model, dataset)
    was = copy.deepcopy(model.state_dict())
    unlearning.unlearn(model, dataset, short.but(method="ssd"))
    assert isinstance(shared.weight, nn.Parameter)
    assert all(torch.equal(v, was[k]) for k, v in copy.deepcopy(model).state_dict().items())


def test_a_norm_in_two_places_is_no_part_of_a_patch(short, dataset):
    norm = nn.BatchNorm2d(16)
    model = moved_to(network(norm, nn.ReLU(), nn.Conv2d(16, 16, 1), norm), dataset)
    with pytest.raises(
        InputError, match="used in several places' is not allowed: layers used once"
    ):
        unlearning.unlearn(model, dataset, short.but(targets="all"))


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_used_in_several_places_is_left_out(short, dataset, tied):
    shared = nn.Conv2d(16, 16, 1)
    model = network(shared, nn.ReLU(), nn.Conv2d(16, 16, 1) if tied else shared)
    if tied:
        model[3].weight = shared.weight
    model = moved_to(model, dataset)
    for method in ("lora", "prunelora"):
        made = unlearning.unlearn(model, dataset, short.but(method=method, targets="all"))
        assert set(made.patch.low_rank) == {"0", "5"}
        images = models.example(model)
        assert torch.equal(patches.apply(model, made.patch)(images), made.model(images))


class TiedClassifier(nn.Module):
    """Guesses first, and guesses again with the same weights."""

    input_shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.guess = nn.Linear(64, 32), nn.Linear(32, 10)
        self.back, self.more = nn.Linear(10, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)
        self.head.weight = self.guess.weight

    def forward(self, x):
        x = self.body(x.flatten(1)).relu()
        x = self.more(x + self.back(self.guess(x).softmax(1))).relu()
        return self.head(x)


def test_a_classifier_with_the_weights_of_another_layer_is_refused(short, dataset, monkeypatch):
    model = moved_to(TiedClassifier().eval(), dataset)
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(InputError, match="head, whose weight another layer has, too' is not"):
        unlearning.unlearn(model, dataset, short)


def test_a_norm_with_the_weights_of_another_is_refused(short, dataset, monkeypatch):
    model = network(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
    model[1].bias = model[4].bias
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(InputError, match="4, whose bias another layer has, too' is not allowed"):
        unlearning.unlearn(moved_to(model, dataset), dataset, short.but(targets="blocks"))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8), (1, 4, 16)])
def test_another_shape_than_that_of_the_images_is_refused(short, dataset, shape):
    model = moved_to(network(), dataset)
    model.input_shape = shape
    with pytest.raises(
        InputError, match=r"input_shape .* allowed: that of the images, \(1, 8, 8\)"
    ):
        unlearning.unlearn(model, dataset, short)


class Aside(nn.Module):
    """The second of two classifiers does not answer, or not as the first does."""

    input_shape = (1, 8, 8)

    def __init__(self, called):
        super().__init__()
        torch.manual_seed(0)
        self.called, self.body = called, nn.Conv2d(1, 8, 3, padding=1)
        self.head, self.other = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x):
        x = self.body(x).relu().mean((2, 3))
        if self.called:
            self.other(x)
        return self.head(x).log_softmax(1)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("method", ["lora", "logit_mask", "head_only", "finetune"])
def test_a_classifier_that_does_not_answer_is_not_taken_for_one(short, dataset, method, called):
    model = moved_to(Aside(called), dataset)
    with pytest.raises(InputError, match="classifier = 'other' is not allowed: the layer that"):
        unlearning.unlearn(model, dataset, short.but(method=method))


def test_an_answer_that_is_normalised_is_the_classifiers(short, dataset):
    model = Aside(False)
    del model.other
    made = unlearning.unlearn(moved_to(model, dataset), dataset, short.but(method="head_only"))
    assert not torch.equal(made.model.head.weight, model.head.weight)


def test_the_teacher_who_knows_nothing_is_of_the_same_architecture(short, dataset, monkeypatch):
    teachers, build = [], unlearning.objectives.Task
    monkeypatch.setattr(unlearning.objectives, "Task", lambda *given: teachers.append(
        given[1]) or build(*given))  # fmt: skip
    model = moved_to(network(), dataset)
    unlearning.unlearn(model, dataset, short.but(method="bad_teacher"))
    (stranger,) = teachers
    assert [*stranger.state_dict()] == [*model.state_dict()]
    assert not torch.equal(stranger[0].weight, model[0].weight)


@pytest.mark.parametrize("method", ["retrain", "original"])
def test_from_scratch_means_its_own_architecture(short, dataset, method, monkeypatch):
    started, fit = [], training.fit
    monkeypatch.setattr(training, "fit", lambda model, *given, **how: started.append(
        copy.deepcopy(model)) or fit(model, *given, **how))  # fmt: skip
    model = moved_to(network(), dataset)
    model[0].requires_grad_(False)
    was = models.fingerprint(model)
    made = unlearning.unlearn(model, dataset, short.but(method=method, seed=1))
    assert models.fingerprint(model) == was
    assert [*made.model.state_dict()] == [*model.state_dict()]
    assert made.trainable == models.count_parameters(model)
    again = unlearning.unlearn(model, dataset, short.but(method=method, seed=2))
    assert again.model.input_shape == (1, 8, 8)
    firsts = [one[0].weight for one in (*started, model)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(firsts, 2))
    model.input_shape = (3, 8, 8)
    with pytest.raises(InputError, match=r"input_shape .* allowed: that of the images"):
        unlearning.unlearn(model, dataset, short.but(method=method))


def test_of_the_architecture_of_the_configuration_nothing_else_is_made(short, dataset):
    one = short.but(method="retrain")
    ours = unlearning.new_model(one.but(seed=5), dataset)
    made = [unlearning.unlearn(start, dataset, one).model for start in (None, ours)]
    assert models.fingerprint(made[0]) == models.fingerprint(made[1])


def with_another_head(network):
    network.fc = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def with_another_activation(network):
    network.layer3.append(nn.Hardtanh())


def with_fewer_channels(network):
    pruning.remove_channels(network, 0.5)


@pytest.mark.parametrize(
    "change", [with_another_head, with_another_activation, with_fewer_channels]
)
def test_what_was_changed_in_a_network_of_ours_is_trained_anew_as_well(short, dataset, change):
    one = short.but(method="retrain", model="digits_resnet")
    ours = unlearning.new_model(one, dataset)
    change(ours)
    made = unlearning.unlearn(moved_to(ours, dataset), dataset, one).model
    assert str(made) == str(ours)
    assert models.count_parameters(made) == models.count_parameters(ours)
    assert not torch.equal(made.conv1.weight, ours.conv1.weight)


@pytest.mark.parametrize("method", ["finetune", "lora", "prunelora"])
def test_what_a_method_made_of_a_network_of_ours_is_one_of_ours(short, dataset, method):
    ours = unlearning.new_model(short, dataset)
    made = unlearning.unlearn(ours, dataset, short.but(method=method)).model
    assert models.alike(made, ours)


@pytest.mark.parametrize("method", ["ssd", "weight_negation", "finetune", "salun"])
def test_weights_that_their_owner_froze_stay_as_they_are(short, dataset, method):
    model = moved_to(network(), dataset)
    model[0].requires_grad_(False)
    settings = short.but(method=method, lr=0.1)
    made = unlearning.unlearn(model, dataset, settings, recipe=settings.unlearn).model
    assert models.fingerprint(made[0]) == models.fingerprint(model[0])
    assert not torch.equal(made[2].weight, model[2].weight)


def test_where_every_weight_is_frozen_none_is_negated(short, dataset):
    model = moved_to(network(nn.BatchNorm2d(16)), dataset).requires_grad_(False)
    model[1].requires_grad_(True)
    with pytest.raises(InputError, match="a convolution or linear layer that trains"):
        unlearning.unlearn(model, dataset, short.but(method="weight_negation"))


def test_a_shared_cache_leaves_frozen_what_was_frozen_since(short, dataset):
    model, cache = moved_to(network(), dataset), frozen.Cache(10**8)
    one = short.but(method="prune_finetune")
    unlearning.unlearn(model, dataset, one, cache=cache)
    model[0].requires_grad_(False)
    made = [unlearning.unlearn(model, dataset, one, cache=kept) for kept in (cache, None)]
    assert made[0].trainable == made[1].trainable < models.count_parameters(model)
    assert models.fingerprint(made[0].model) == models.fingerprint(made[1].model)


def test_answers_that_are_no_logits_are_refused(short, dataset):
    model = moved_to(nn.Sequential(network(), nn.Softmax(1)), dataset)
    model.input_shape = (1, 8, 8)
    with pytest.raises(InputError, match="if it ends in softmax, hand over the network up to"):
        unlearning.unlearn(model, dataset, short.but(method="finetune"))
    model[1] = nn.LogSoftmax(1)
    unlearning.unlearn(model, dataset, short.but(method="finetune"))


def stopped(model, dataset, cfg, place):
    stop = threading.Event()
    with (
        pytest.raises(training.Interrupted, match="go on"),
        training.watched(stop, lambda done, total: stop.set()),
    ):
        unlearning.unlearn(model, dataset, cfg, checkpoint=place)


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("prune_finetune", {"sparsity": 0.25}, "sparsity was 0.5 and is 0.25"),
        ("prune_finetune", {"criterion": "l1"}, "criterion was 'l2' and is 'l1'"),
        ("prunelora", {"sparsity": 0.25}, "sparsity was 0.5 and is 0.25"),
        ("prunelora", {"pruning": "mask_nm"}, "pruning was 'mask_structured' and is 'mask_nm'"),
        ("prunelora", {"mask_data": "all"}, "mask_data was 'retain' and is 'all'"),
        ("lora", {"adapter": "rslora", "alpha": 4.0}, "adapter was 'lora' and is 'rslora'"),
        ("lora", {"alpha": 1.0}, "lora_alpha was 4.0 and is 1.0"),
        ("prune_finetune", {"earlier": (5,), "forget": 8}, r"earlier was \[\] and is \[5\]"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(short, dataset, tmp_path, method, changes, said):
    model, place = moved_to(network(), dataset), tmp_path / "checkpoint.safetensors"
    one = short.but(method=method, forget=(5, 8))
    stopped(model, dataset, one, place)
    with pytest.raises(FileProblem, match=rf"not a checkpoint of this run \({said}"):
        unlearning.unlearn(model, dataset, one.but(**changes), checkpoint=place)


@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_a_checkpoint_of_another_network_of_that_size_is_refused(short, dataset, tmp_path, method):
    model, place = moved_to(network(), dataset), tmp_path / "checkpoint.safetensors"
    one = short.but(method=method)
    stopped(model, dataset, one, place)
    other = models.fresh(model, 5)
    with pytest.raises(FileProblem, match=r"this run \(original network was '\w+' and is '\w+'\)"):
        unlearning.unlearn(other, dataset, one, checkpoint=place)


@pytest.mark.parametrize("kept", [True, False], ids=["", "of an earlier version"])
@pytest.mark.parametrize(
    ("method", "unused"),
    [("finetune", {"sparsity": 0.25, "adapter": "dora"}), ("prunelora", {"scope": "layer"})],
)
def test_a_checkpoint_goes_on_whatever_is_not_used(short, dataset, tmp_path, method, unused, kept):
    model, place = moved_to(network(), dataset), tmp_path / "checkpoint.safetensors"
    one = short.but(method=method)
    stopped(model, dataset, one, place)
    (left,) = tmp_path.iterdir()
    assert left.name == ("tail-" * (method == "prunelora")) + place.name
    if not kept:
        tensors, plain = files.load_tensors(left)
        del plain["settings"]
        files.save_tensors(left, tensors, plain)
    found = unlearning.unlearn(model, dataset, one.but(**unused), checkpoint=place)
    wanted = unlearning.unlearn(model, dataset, one)
    assert models.fingerprint(found.model) == models.fingerprint(wanted.model)


def test_weights_that_are_computed_are_not_written_to(short, dataset):
    head, layer = network(), network()
    for module in (head[-1], layer[2]):
        torch.nn.utils.parametrizations.weight_norm(module)
    head, layer = moved_to(head, dataset), moved_to(layer, dataset)
    with pytest.raises(InputError, match="computed from other parameters"):
        unlearning.unlearn(head, dataset, short.but(method="prototype"))
    with pytest.raises(InputError, match="computed from other parameters"):
        lora.attach(layer, 2, ["2"], alpha=4)


def test_images_come_with_the_dataset_that_they_are_of(dataset):
    part = dataset.split(3).retain
    with pytest.raises(InputError, match="dataset = None is not allowed: the one that part is of"):
        pruning.prune(moved_to(network(), dataset), 0.5, part=part)


def test_a_ledger_of_a_network_with_two_answers_says_so(dataset):
    with pytest.raises(InputError, match="answer while training = 'tuple' is not allowed"):
        pruning.prune(moved_to(TwoHeads().eval(), dataset), 0.5)


def test_a_class_may_be_a_number_of_numpy_or_torch(dataset):
    for three in (np.int64(3), torch.tensor(3), [np.int64(3)], (3,), {3}):
        assert dataset.split(three).forgotten == (3,)
    assert dataset.split(np.array([8, 3])).forgotten == (3, 8)


def test_folders_may_be_text(short, dataset, tmp_path):
    model = moved_to(network(), dataset)
    made = unlearning.unlearn(model, dataset, short)
    models.save(made.model, f"{tmp_path}/whole")
    again = models.load(f"{tmp_path}/whole", model)
    patches.save_patch(made.patch, f"{tmp_path}/patch")
    patched = patches.apply(model, patches.load_patch(f"{tmp_path}/patch", model))
    images = models.example(model)
    assert torch.equal(again(images), patched(images))


class Keeping(nn.Module):
    """A network that holds what its last pass made, as some do to show it."""

    def __init__(self, training):
        super().__init__()
        self.body, self.head = network()[:-1], nn.Linear(16, 10)
        self.input_shape, self.only, self.kept = (1, 8, 8), training, {}

    def forward(self, x):
        x = self.body(x)
        if self.training or not self.only:
            self.kept["last"] = [x]
        return self.head(x)


def old_weight_norm():
    made = network()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(made[-1])
    return made


@pytest.mark.parametrize(
    "make", [lambda: Keeping(False), lambda: Keeping(True), old_weight_norm],
    ids=["kept", "kept in training", "weight_norm"],
)  # fmt: skip
def test_a_network_that_holds_what_a_pass_made_is_copied(short, dataset, make):
    model = moved_to(make(), dataset)
    images = models.example(model)
    wanted = model.train()(images).detach()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    copied = models.copy_of(model)
    assert torch.equal(copied(images), wanted)
    assert not {id(t) for t in copied.parameters()} & {id(t) for t in model.parameters()}
    pruning.prune(model, 0.5)
    lora.attach(model, 2, ["body.2" if hasattr(model, "body") else "2"], alpha=4)
    for method in ("finetune", "lora"):
        made = unlearning.unlearn(model, dataset, short.but(method=method, rank=1)).model
        with torch.no_grad():
            assert torch.equal(models.copy_of(made)(images), made(images))


@pytest.mark.parametrize("method", ["finetune", "lora", "prunelora", "scrub", "retrain"])
@pytest.mark.parametrize("training", [True, False])
def test_an_outcome_can_be_copied_by_everybody(short, dataset, method, training):
    model = moved_to(Keeping(training), dataset)
    made = unlearning.unlearn(model, dataset, short.but(method=method, rank=1)).model
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(made)(models.example(model)), made(models.example(model)))


class Tokens(nn.Module):
    """A network that classifies each token, and averages the answers."""

    def __init__(self, turned=False):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 10)
        self.input_shape, self.turned = (1, 8, 8), turned

    def forward(self, x):
        tokens = self.body(x).relu().flatten(2)
        if self.turned:
            return self.head(tokens.permute(2, 0, 1)).mean(0)
        return self.head(tokens.transpose(1, 2)).mean(1)


def test_the_mean_feature_of_tokens_is_that_of_images(short, dataset, split):
    model = moved_to(Tokens(), dataset)
    made = unlearning.unlearn(model, dataset, short.but(method="prototype")).model
    with torch.no_grad():
        images = dataset.normalise(split.forget.images[:])
        mean = model.body(images).relu().mean((0, 2, 3))
    row = made.head.weight[3]
    assert torch.allclose(row / row.norm(), -mean / mean.norm(), atol=1e-5)
    told = r"classifier's inputs = .* is not allowed: a row for each of the"
    with pytest.raises(InputError, match=told):
        unlearning.unlearn(Tokens(True), dataset, short.but(method="prototype"))


@pytest.mark.parametrize(
    "method", ["finetune", "prunelora", "prunelora_channels", "boundary_shrink", "salun", "ssd"]
)
def test_gradients_are_taken_where_the_caller_switched_them_off(short, dataset, method):
    model, chosen = moved_to(network(), dataset), short.but(method=method, rank=1)
    if method.startswith("prunelora"):
        chosen = chosen.but(criterion="taylor")
    wanted = unlearning.unlearn(model, dataset, chosen).model
    with torch.no_grad():
        found = unlearning.unlearn(model, dataset, chosen).model
    assert models.fingerprint(found) == models.fingerprint(wanted)


def test_lazy_layers_are_refused_until_they_have_weights(dataset):
    model = network()
    model[-1] = nn.LazyLinear(10)
    moved_to(model, dataset)
    for act in (lambda: pruning.prune(model, 0.5), lambda: models.fingerprint(model)):
        with pytest.raises(InputError, match=r"lazy, without 6\.weight.*call it once"):
            act()
    model(models.example(model))
    assert len(models.fingerprint(pruning.prune(model, 0.5).model)) == 64


def test_ssd_says_what_to_hand_over(short, dataset):
    model = nn.DataParallel(moved_to(network(), dataset))
    model.input_shape = (1, 8, 8)
    with pytest.raises(InputError, match=r"hand over model\.module"):
        unlearning.unlearn(model, dataset, short.but(method="ssd"))
