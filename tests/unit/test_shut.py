"""Channels that let nothing through: found, whichever number shut them, and opened."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from helpers import features, models, outputs, pruning, shut, training
from helpers.unlearning import unlearn

HALF = slice(0, 40)  # of the 64 channels of the last stage


def by_bias(network, number=-1e3):
    network.layer3[-1].bn2.bias[HALF] = number


def by_factor(network):
    network.layer3[-1].bn2.weight[HALF] = 0
    network.layer3[-1].bn2.bias[HALF] = -1e3


def by_statistics(network):
    network.layer3[-1].bn2.running_var[HALF] = 1e30
    network.layer3[-1].bn2.running_mean[HALF] = 1e18


def scaled_down(network):
    network.layer3[-1].bn2.weight[HALF] *= 1e-12
    network.layer3[-1].bn2.bias[HALF] = -1e3


def far_away(network):
    """Not shut: too far from zero for any reader, and still in single precision."""
    network.layer3[-1].bn2.weight[HALF] *= 2**-4
    network.layer3[-1].bn2.bias[HALF] += 2**18


def by_mean(network):
    norm = network.layer3[-1].bn2
    norm.running_mean[HALF] += 1e3 * norm.running_var[HALF].sqrt()


WAYS = [
    *(pytest.param(functools.partial(by_bias, number=-n), id=f"bias of -{n:g}")
      for n in (1e3, 1e5, 1e6, 3e6, 1e7, 1e8, 1e10)),
    by_factor, by_statistics, by_mean, scaled_down, far_away,
]  # fmt: skip


def changed(network, how):
    found = copy.deepcopy(network)
    with torch.no_grad():
        how(found)
    return found


def recognised(network, dataset, split):
    """What a linear classifier on frozen features recognises of the class."""
    train = split.forget.with_all(split.retain)
    seen, unseen = (features.penultimate(network, p, dataset) for p in (train, split.test_forget))
    return features.linear_probe(seen, train.labels, unseen, split.test_forget.labels, 3)


def test_honest_networks_have_none(cfg, dataset, split, original):
    for method in ("retrain", "finetune", "lora", "prunelora", "prunelora_channels", "logit_mask"):
        network = unlearn(original, dataset, cfg.but(method=method)).model
        assert len(shut.find(network, dataset.train, dataset)) == 0, method
    assert len(shut.find(original, dataset.train, dataset)) == 0


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_pruned_filter_is_not_shut(dataset, original, share):
    for kind in ("mask_structured", "channels"):
        network = pruning.prune(original, share, kind, part=dataset.train, dataset=dataset).model
        assert len(shut.find(network, dataset.train, dataset)) == 0


@pytest.mark.parametrize("how", WAYS)
def test_what_is_shut_is_found_and_speaks_again_once_opened(how, dataset, split, original):
    network = changed(original, how)
    gates = shut.find(network, dataset.train, dataset)
    names = [n for n, m in original.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert "layer3.0.bn2" in names
    found = torch.zeros(64, dtype=torch.bool)
    for channels, *_ in gates.opens.values():
        assert len(channels) == 64, "another layer"
        found |= channels.cpu()
    assert found[HALF].all()
    assert not found[40:].any()
    closed, known = (recognised(n, dataset, split) for n in (network, original))
    with shut.opened(network, gates):
        opened = recognised(network, dataset, split)
    assert opened > known - 0.1
    if how is not far_away:  # that hides from the other probes, and from this one a smaller feature
        assert closed < opened
    assert recognised(network, dataset, split) == closed, "shut again afterwards"


def test_a_network_is_left_as_it_was(cfg, dataset, original):
    network = changed(original, by_bias).train()
    before = training.predict(network.eval(), dataset.test, dataset)
    hash_ = models.fingerprint(network)
    gates = shut.find(network, dataset.train, dataset)
    with shut.opened(network, gates):
        assert not torch.equal(training.predict(network, dataset.test, dataset), before)
    with pytest.raises(RuntimeError, match="channels"), shut.opened(network, gates):
        network(torch.zeros(1, 7, 8, 8, device=cfg.device))
    assert torch.equal(training.predict(network, dataset.test, dataset), before)
    assert models.fingerprint(network) == hash_
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_a_copy_made_meanwhile_is_open_and_trains_through_the_opened_channels(dataset, original):
    network = changed(original, by_bias)
    gates = shut.find(network, dataset.train, dataset)
    images = dataset.normalise(dataset.train.images[:8])
    for opened in (False, True):
        with shut.opened(network, gates if opened else shut.Gates()):
            twin = copy.deepcopy(network)
            twin(images).square().sum().backward()
        slopes = twin.layer3[-1].conv2.weight.grad[HALF]
        assert bool((slopes != 0).any()) == opened


def test_single_dead_channels_are_left_alone_unless_somebody_may_have_shut_them(dataset, original):
    def few(network):
        network.layer3[-1].bn2.bias[:16] = -1e3  # of 64, a quarter

    def more(network):
        network.layer3[-1].bn2.bias[:17] = -1e3

    def one(network):
        network.layer3[-1].bn2.bias[5] = -1e3

    found = [len(shut.find(changed(original, how), dataset.train, dataset)) for how in (few, more)]
    assert found == [0, 17]
    suspect = changed(original, one)
    ((found, *_),) = shut.find(suspect, dataset.train, dataset, many=0).opens.values()
    assert found.nonzero().flatten().tolist() == [5]


def test_other_calls_of_activations_are_no_part_of_the_network(dataset, original):
    network = changed(original, by_bias)
    gates = shut.find(network, dataset.train, dataset)
    values = torch.randn(5, 64)
    with shut.opened(network, gates):
        assert torch.equal(torch.relu(values), values.clamp(min=0))
        first = network(dataset.normalise(dataset.test.images[:4]))
        torch.relu(values)
        assert torch.equal(network(dataset.normalise(dataset.test.images[:4])), first)


def with_two_shut(*after):
    """Four features, two of which never pass their activation."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), *after, nn.Linear(4, 10)).eval()
    with torch.no_grad():
        network[1].bias[:] = torch.tensor([5.0, 5.0, -1e4, -1e4])
    return network


def test_behind_an_activation_that_writes_into_its_input_shut_channels_are_found(dataset):
    network = with_two_shut(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True))
    with torch.no_grad():
        network[3].weight.copy_(torch.eye(4))  # two see nothing but what is shut, and are shut
        network[3].bias.copy_(network[1].bias)
    gates = shut.find(network.to(dataset.mean.device), dataset.train, dataset)
    assert [shut_.tolist() for shut_, *_ in gates.opens.values()] == [[False] * 2 + [True] * 2] * 2


@pytest.mark.parametrize("kind", ["norm", "activation"])
def test_what_is_opened_varies_as_much_as_is_usual_there(dataset, kind):
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([3.0, 3.0, 0.0, 0.0]))
    network = with_two_shut(norm if kind == "norm" else nn.ReLU()).to(dataset.mean.device)
    part = dataset.train.sample(100)
    ((found, mean, factor),) = shut.find(network, part, dataset).opens.values()
    with torch.no_grad():
        given = network[:2](dataset.normalise(part.images)).double()
        told = network[:3](dataset.normalise(part.images)).double()
    usual = (told if kind == "norm" else given)[:, :2].std(0).median()
    assert found.tolist() == [False, False, True, True]
    assert torch.allclose(mean.double(), given.mean(0), rtol=1e-4)
    opened = factor[2:] * given[:, 2:].std(0)
    assert opened.tolist() == pytest.approx([usual.item()] * 2, rel=1e-3)
    assert factor[:2].tolist() == [1, 1]


def test_the_last_dimension_of_tokens_is_that_of_the_channels(dataset):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.fc = nn.Linear(8, 4), nn.Linear(4, 10)

        def forward(self, x):
            rows = self.enter(x.flatten(1, 2)) + 0.5  # a sum, so that no linear layer tells
            return self.fc(torch.relu(rows).mean(1))

    network = Tokens().eval().to(dataset.mean.device)
    with torch.no_grad():
        network.enter.bias[2:] = -1e4
    ((found, *_),) = shut.find(network, dataset.train, dataset).opens.values()
    assert found.tolist() == [False, False, True, True]


class ByKeyword(nn.Module):
    def forward(self, x):
        return torch.relu(input=x)


class Clamped(nn.Module):
    def forward(self, x):
        return x.clamp(min=0)


@pytest.mark.parametrize(
    "kind",
    [
        nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), ByKeyword(), Clamped(), nn.CELU(),
        nn.Softplus(), nn.Threshold(0, 0), nn.Tanh(),
    ],
    ids=str,
)  # fmt: skip
def test_however_an_activation_is_called_it_is_looked_into(kind, cfg, dataset):
    network = with_two_shut(kind).to(cfg.device)
    with torch.no_grad():
        network[1].bias[:2] = 1  # at 5 tanh lets hardly anything through, and is shut, too
    gates = shut.find(network, dataset.train.where(torch.arange(50)), dataset)
    assert len(gates) == 2


class Mixer(nn.Module):
    """A layer over channels that lie first or last, of maps or of tokens."""

    def __init__(self, layer, dims, act=None, norm=None):
        super().__init__()
        self.layer, self.act, self.norm = layer, act or nn.GELU(), norm or nn.Identity()
        self.dims, self.head = dims, nn.Linear(8, 10)

    def forward(self, x):
        x = x if isinstance(self.layer, nn.Conv2d) else x.expand(-1, 4, -1, -1)
        if self.dims == "NTC":
            x = x.flatten(2).transpose(1, 2)
        elif self.dims == "NHWC":
            x = x.permute(0, 2, 3, 1)
        x = self.act(self.norm(self.layer(x)))
        return self.head(x.mean((2, 3)) if self.dims == "NCHW" else x.flatten(1, -2).mean(1))


def shut_by_bias(network):
    network.layer.bias[:4] = -1e3


def shut_by_factor(network):
    network.norm.weight[:4] = 0


@pytest.mark.parametrize(
    ("build", "how"),
    [
        (lambda: Mixer(nn.Linear(4, 8), "NTC"), shut_by_bias),
        (lambda: Mixer(nn.Linear(4, 8), "NHWC"), shut_by_bias),
        (lambda: Mixer(nn.Linear(4, 8), "NTC", nn.Identity(), nn.LayerNorm(8)), shut_by_factor),
        (lambda: Mixer(nn.Conv2d(1, 8, 3), "NCHW", nn.ReLU(), nn.GroupNorm(2, 8)), shut_by_factor),
    ],
    ids=["tokens", "maps with channels last", "LayerNorm", "GroupNorm"],
)
def test_channels_are_found_wherever_they_lie(build, how, cfg, dataset):
    torch.manual_seed(0)
    network = build().eval().to(cfg.device)
    some = dataset.train.where(torch.arange(50))
    images = dataset.normalise(some.images)
    assert len(shut.find(network, some, dataset)) == 0
    shut_ = changed(network, how)
    gates = shut.find(shut_, some, dataset)
    assert len(gates) == 4
    ((channels, *_),) = gates.opens.values()
    assert channels[:4].all()
    seen = []
    shut_.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].std(0)[:4]))
    shut_(images)
    with shut.opened(shut_, gates):
        shut_(images)
    assert (seen[0] < 1e-4 * seen[1]).all()


def test_the_hidden_units_of_a_transformer_are_looked_at(cfg, dataset):
    network = models.build_model("vit_tiny", 10, 1, 8).to(cfg.device)
    assert len(shut.find(network, dataset.train, dataset)) == 0
    with torch.no_grad():
        network.blocks[0].mlp1.bias[:64] = -1e3
    assert len(shut.find(network, dataset.train, dataset)) == 64


def test_what_opens_a_batchnorm_is_plain_numbers(cfg, dataset):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    with torch.no_grad():
        network[2].weight[2:] = 0
    network = network.eval().to(cfg.device)
    gates = shut.find(network, dataset.train.where(torch.arange(50)), dataset)
    assert len(gates) == 2
    assert not any(t.requires_grad for found in gates.opens.values() for t in found)


def test_what_is_shut_behind_what_is_shut_is_found_too(cfg, dataset):
    network = with_two_shut(nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    with torch.no_grad():  # the last two hear of nobody but of the two shut before them
        network[3].weight[:] = torch.block_diag(torch.eye(2), torch.tensor([[1.0, 1], [1, -1]]))
        network[3].bias[:] = torch.tensor([1.0, 1, -1e4, -1e4])
    gates = shut.find(network.to(cfg.device), dataset.train.where(torch.arange(50)), dataset)
    assert sorted(gates.opens) == [0, 1]
    assert len(gates) == 4


def test_images_of_all_classes_are_looked_at(cfg, dataset, split, monkeypatch):
    """An audit passes the images of the forgotten class first."""
    monkeypatch.setattr(shut, "IMAGES", 20)
    part, seen = split.forget.with_all(split.retain), []
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().to(cfg.device)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    shut.find(network, part, dataset)
    (images,) = seen
    assert len(images) == 20
    forgotten = dataset.normalise(split.forget.images).flatten(1)
    among = (images.flatten(1)[:, None] == forgotten[None]).all(2).any(1)
    assert (~among).sum() > 0


def test_worked_out_by_hand(cfg, dataset):
    """Two of four channels are shut by a bias: they are centred and get the others' spread."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10)).eval()
    network.to(cfg.device)
    with torch.no_grad():
        network[1].bias[2:] = -1e4
        images = dataset.normalise(dataset.train.where(torch.arange(50)).images)
        seen = network[1](network[0](images)).double()
    gates = shut.find(network, dataset.train.where(torch.arange(50)), dataset)
    ((channels, mean, factor),) = gates.opens.values()
    assert channels.tolist() == [False, False, True, True]
    assert len(gates) == 2
    spread = seen.std(0)
    assert mean[2:].tolist() == pytest.approx(seen.mean(0)[2:].tolist(), rel=1e-5)
    wanted = spread[:2].median() / spread[2:]
    assert factor.tolist() == pytest.approx([1, 1, *wanted.tolist()], rel=1e-3)
    caught = []
    hook = network[3].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad(), shut.opened(network, gates):
        answers = network(images)
    hook.remove()
    expected = ((seen - seen.mean(0)) * factor)[:, 2:].clamp(min=0)
    assert torch.allclose(caught[0][:, 2:].double(), expected, atol=0.01)
    assert outputs.label_histogram(answers).sum() == pytest.approx(1)
