"""Recorded passes: which ones are repeated, that the steps stay the same, and what is refused."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from helpers import data, recording, training
from helpers.config import InputError, Recipe, get_config
from helpers.recording import Recorded

SIZE = 16
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout),
        nn.Flatten(), nn.Linear(36, 10),
    )  # fmt: skip


def batch(count=SIZE):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dataset():
    """On the CPU, also where there is a GPU: what stands in for a recording needs none."""
    return data.load_dataset(get_config("smoke", device="cpu"), progress=False)


@pytest.fixture(scope="module")
def split(dataset):
    return dataset.split(3)


@pytest.fixture
def repeated(monkeypatch):
    """What is repeated, where there is no GPU: the network is called, and the shapes are noted."""
    shapes = []

    def make(module, example, **how):
        class StandIn(nn.Module):
            def forward(self, images):
                assert images.shape == example[0].shape
                shapes.append(tuple(images.shape))
                return module(images)

        return StandIn()

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    monkeypatch.setattr(recording, "possible", lambda device: True)
    return shapes


def recorded(model, repeated):
    made = Recorded(model.train(), None)
    made.record(batch())
    repeated.clear()
    return made


def test_a_full_batch_is_repeated_once_a_step(repeated):
    made = recorded(network(), repeated)
    for _ in range(2):
        made.next_step()
        made(batch())
        assert len(repeated) == 1
        made(batch())  # the outputs of the first pass may still be needed
        assert len(repeated) == 1
        repeated.clear()
    made(batch())  # nobody said that another step begins
    assert not repeated


@pytest.mark.parametrize(
    "images",
    [batch(SIZE - 1), batch().double(), batch().requires_grad_(), batch().transpose(2, 3)],
    ids=["another size", "another type", "a gradient", "another layout"],
)
def test_what_does_not_fit_goes_through_the_network(repeated, images):
    model = network().to(images.dtype)
    made = Recorded(model.train(), None)
    made.record(batch().to(next(model.parameters())))
    if images.dtype == torch.float64:  # recorded in single precision
        made.example = batch()
    repeated.clear()
    made.next_step()
    assert made(images).shape == (len(images), 10)
    assert not repeated
    made.model.eval()
    made(batch().to(images.dtype))
    assert not repeated


def test_recording_moves_nothing(repeated):
    model = network(dropout=0.5).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    Recorded(model, None).record(batch())
    assert repeated, "it is compared with plain passes"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_a_network_that_draws_in_python_is_refused(repeated):
    class Drawing(nn.Module):
        turns = itertools.count()

        def forward(self, images):
            return images.flatten(1)[:, :10] + next(self.turns)

    with pytest.raises(InputError, match="this Drawing: a repeated pass answers otherwise") as seen:
        Recorded(Drawing().train(), None).record(batch())
    assert "\n" not in str(seen.value)


def test_repeated_passes_that_give_no_numbers_are_refused(repeated, monkeypatch):
    def make(module, example, **how):
        return lambda images: module(images) * torch.nan

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    with pytest.raises(InputError, match="answers otherwise than a plain one, by nan"):
        Recorded(network().train(), None).record(batch())


def test_one_that_cannot_be_recorded_is_refused_in_one_line(repeated, monkeypatch, dataset, split):
    def refuse(*arguments, **how):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    with pytest.raises(InputError, match=r"operation not permitted .*new process") as seen:
        trained(dataset, split, True)
    assert "\n" not in str(seen.value)
    assert "more of it" not in str(seen.value)


@pytest.mark.parametrize(("possible", "compiled"), [(False, False), (True, True)])
def test_graphs_are_refused_where_there_are_none(monkeypatch, dataset, split, possible, compiled):
    monkeypatch.setattr(recording, "possible", lambda device: possible)
    recipe = Recipe(epochs=1, lr=0.05)
    with pytest.raises(InputError, match="graphs = True is not allowed: False but on CUDA"):
        training.fit(network(), split.retain, dataset, recipe, seed=0, graphs=True,
                     compile=compiled)  # fmt: skip


def trained(dataset, split, graphs, device="cpu", precision="fp32", **how):
    model = network(dropout=0.2).to(device)
    part = split.retain.sample(SIZE * 40 + 5)  # and a last batch of another size
    recipe = Recipe(epochs=2, lr=0.05, optimizer="sgd", batch_size=SIZE, **how)
    fit = training.fit(model, part, dataset, recipe, seed=0, precision=precision, graphs=graphs)
    return model, fit


def states_equal(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_training_repeats_all_full_batches_but_the_first(repeated, dataset, split):
    plain, fit = trained(dataset, split, False)
    assert not repeated
    other, found = trained(dataset, split, True)
    compared, rest = 2, 2  # passes; last batches
    assert len(repeated) == found.steps - recording.EAGER - rest + compared
    assert states_equal(plain, other)
    assert [row["loss"] for row in found.history] == [row["loss"] for row in fit.history]
    assert found.macs == fit.macs
    assert plain.state_dict().keys() == other.state_dict().keys()


def test_a_short_training_is_not_recorded(repeated, dataset, split, monkeypatch):
    monkeypatch.setattr(recording, "LEAST", 1_000_000)
    _, fit = trained(dataset, split, True)
    assert not repeated
    left = fit.steps - recording.EAGER  # before the first one that could be repeated
    monkeypatch.setattr(recording, "LEAST", left + 1)
    trained(dataset, split, True)
    assert not repeated
    monkeypatch.setattr(recording, "LEAST", left)
    trained(dataset, split, True)
    assert repeated


@NO_GPU
@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_on_a_gpu_the_steps_are_those_of_plain_training(precision, monkeypatch):
    dataset = data.load_dataset(get_config("smoke", device="cuda"), progress=False)
    split, calls = dataset.split(3), []
    real = torch.cuda.make_graphed_callables

    def make(*arguments, **how):
        made = real(*arguments, **how)
        made.register_forward_hook(lambda *_: calls.append(1))
        return made

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    how = {"device": "cuda", "precision": precision, "augment": "crop+flip"}
    plain, fit = trained(dataset, split, False, **how)
    other, found = trained(dataset, split, True, **how)
    assert len(calls) == found.steps - recording.EAGER  # two compared, two last batches
    # the same kernels in the same order; their sums may round otherwise
    losses = [[row["loss"] for row in one.history] for one in (fit, found)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=0.02)
