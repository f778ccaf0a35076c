from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import models, relearning, runs
from helpers.config import InputError
from helpers.relearning import Curve, relearn, steps_to_regain

SHARES = st.floats(0, 1)


def test_curves_by_hand():
    curve = Curve((0.0, 0.5, 0.72, 0.6, 1.0))
    assert curve.steps == 4
    assert [steps_to_regain(curve, level, 1) for level in (0.5, 0.51, 0.73, 1.0)] == [1, 2, 4, 4]
    assert steps_to_regain(curve, 0.9) == 2, "0.72 is enough, though 0.8 * 0.9 is a bit more here"
    assert steps_to_regain(curve, 0.901) == 4
    assert steps_to_regain(curve, 1.0, share=1) == 4
    assert steps_to_regain(Curve((0.0, 0.2, 0.3)), 0.9) == 3, "censored: one more than were done"
    assert relearning.area(curve) == pytest.approx((0.5 + 0.72 + 0.6 + 1) / 4)
    assert relearning.area(Curve((1.0, 0.0))) == 0, "the start does not count"


@given(st.lists(SHARES, min_size=2, max_size=30), st.floats(0.01, 1), st.floats(0.01, 1))
def test_more_is_regained_later(accuracies, low, high):
    curve, (low, high) = Curve(tuple(accuracies)), sorted((low, high))
    assert 0 <= steps_to_regain(curve, low, 1) <= steps_to_regain(curve, high, 1) <= curve.steps + 1
    assert min(accuracies) <= relearning.area(curve) + 1e-9
    better = Curve(tuple(min(1.0, a + 0.1) for a in accuracies))
    assert relearning.area(better) >= relearning.area(curve)
    assert steps_to_regain(better, high, 1) <= steps_to_regain(curve, high, 1)


def test_readings_out_of_range_are_refused():
    curve = Curve((0.0, 1.0))
    for call, why in (
        (lambda: steps_to_regain(curve, 1.1), "accuracy = 1.1"),
        (lambda: steps_to_regain(curve, 0.0), "accuracy = 0.0"),
        (lambda: steps_to_regain(curve, 1.0, 1.5), "share = 1.5"),
        (lambda: relearning.area(Curve((1.0,))), "steps = 0"),
    ):
        with pytest.raises(InputError, match=why):
            call()


def curve_of(model, dataset, split, **changes):
    return relearn(model, dataset.train, split.test_forget, dataset, 3, **{"steps": 8, **changes})


def test_relearning_leaves_the_network_as_it_was(dataset, split, original):
    original.train()
    original.conv1.weight.requires_grad_(False)
    original.fc.bias.grad = torch.ones_like(original.fc.bias)
    before, state = models.fingerprint(original), torch.random.get_rng_state()
    curve = curve_of(original, dataset, split, steps=3)
    assert len(curve.accuracies) == 4
    assert curve == curve_of(original, dataset, split, steps=3)
    assert models.fingerprint(original) == before
    assert all(m.training for m in original.modules())
    assert not original.conv1.weight.requires_grad
    assert original.conv1.weight.grad is None
    assert original.fc.bias.grad.tolist() == [1] * 10
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_network_that_comes_in_training_mode_relearns_as_it_answers(dataset, split, original):
    """PyTorch makes networks so; statistics of batches would make another curve."""
    wanted = curve_of(original, dataset, split)
    assert curve_of(copy.deepcopy(original).train(), dataset, split) == wanted


def test_biases_of_zero_learn_too(dataset, split, original, monkeypatch):
    """Weights of pruned filters are held at zero; a bias may well start there."""
    students, copied = [], copy.deepcopy

    def keep(thing, *memo):
        made = copied(thing, *memo)
        students.extend([made] if isinstance(made, type(original)) else [])
        return made

    monkeypatch.setattr(relearning.copy, "deepcopy", keep)
    with torch.no_grad():
        original.bn1.bias[::2] = 0
    curve_of(original, dataset, split, steps=2)
    assert bool((students[0].bn1.bias != 0).all())


def test_images_in_turns_make_the_same_step(dataset, split, original, monkeypatch):
    wanted = curve_of(original, dataset, split)
    monkeypatch.setattr(relearning, "AT_ONCE", 33)  # of a hundred
    found = curve_of(original, dataset, split)
    assert found.accuracies == pytest.approx(wanted.accuracies, abs=0.03)


def test_frozen_weights_learn_too(dataset, split, original):
    frozen = copy.deepcopy(original).requires_grad_(False)
    with torch.no_grad():
        assert curve_of(frozen, dataset, split) == curve_of(original, dataset, split)


@pytest.mark.parametrize("gone", [0, 1])
def test_of_two_classes_the_first_does_not_win_for_its_number(dataset, gone):
    """The forgotten row starts as the only other one: nobody recognises anything yet."""
    chosen = torch.isin(dataset.train.labels, torch.tensor([0, 1], device=dataset.mean.device))
    seen = torch.isin(dataset.test.labels, torch.tensor([gone], device=dataset.mean.device))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    model.input_shape = (1, 8, 8)
    model.to(dataset.mean.device)
    train, test = dataset.train.where(chosen), dataset.test.where(seen)
    curve = relearn(model, train, test, dataset, gone, steps=3)
    assert curve.accuracies[0] == 0


@pytest.mark.parametrize("row", ["masked", "loud", "not a number"])
def test_tricks_in_the_row_play_no_role(dataset, split, original, row):
    cheat = copy.deepcopy(original)
    weight, bias = {"masked": (0, -1e4), "loud": (50, 9), "not a number": (float("nan"),) * 2}[row]
    with torch.no_grad():
        cheat.fc.weight[3], cheat.fc.bias[3] = weight, bias
    assert curve_of(cheat, dataset, split) == curve_of(original, dataset, split)


def test_the_scale_of_the_rows_is_that_of_retained_images(dataset, original):
    images, labels = dataset.normalise(dataset.train.images[:100]), dataset.train.labels[:100]
    models_, mine = [copy.deepcopy(original) for _ in range(2)], (labels == 3).view(-1, 1, 1, 1)
    for model, seen in zip(models_, (images, torch.where(mine, 50 * images, images)), strict=True):
        relearning._reset_head(model, seen[labels != 3], [3])
    assert torch.equal(models_[0].fc.weight, models_[1].fc.weight)


@pytest.mark.parametrize("factor", [0.125, 64])
def test_a_louder_classifier_is_no_forgetting(dataset, split, original, factor):
    loud = copy.deepcopy(original)
    with torch.no_grad():
        loud.fc.weight *= factor
        loud.fc.bias *= factor
    found, wanted = (curve_of(m, dataset, split).accuracies for m in (loud, original))
    assert found == pytest.approx(wanted, abs=0.05)


def test_the_original_is_back_before_the_oracle(cfg, dataset, split, original):
    oracle = runs.run(cfg.but(method="retrain"), dataset, progress=False).model(dataset)
    known, unseen = (curve_of(m, dataset, split, steps=20) for m in (original, oracle))
    assert known.accuracies[0] < 0.3, "the reset row knows nothing of the class"
    assert steps_to_regain(known, 1.0) + 2 <= steps_to_regain(unseen, 1.0)
    assert relearning.area(known) > relearning.area(unseen) + 0.05


def pruned(model):
    """Half of the filters of every block gone, as masks leave them: zeros, and statistics of 0."""
    net = copy.deepcopy(model)
    with torch.no_grad():
        for name, conv in net.named_modules():
            if name.endswith(".conv1"):
                norm = net.get_submodule(name.replace("conv1", "bn1"))
                for tensor in (conv.weight, norm.weight, norm.running_mean, norm.running_var):
                    tensor[::2] = 0
                norm.weight[::2] = 1
    return net


def _kept(value, students):
    if isinstance(value, models.SmallResNet):
        students.append(value)
    return value


def test_what_was_pruned_stays_zero_and_does_not_wreck_the_rest(
    dataset, split, original, monkeypatch
):
    net, students, deepcopy = pruned(original), [], copy.deepcopy
    monkeypatch.setattr(
        relearning.copy, "deepcopy", lambda m, *memo: _kept(deepcopy(m, *memo), students)
    )
    curve = curve_of(net, dataset, split, steps=20)
    for name, before in net.named_parameters():
        after = students[0].get_parameter(name)
        if before.ndim == 4:
            assert bool((after[before == 0] == 0).all())
            assert not torch.equal(after, before), "the others learn"
        if "bn" in name:
            assert not torch.equal(after, before)
    norms = [m for m in students[0].modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.allclose(m.running_var.cpu() + m.eps, torch.ones(1)) for m in norms)
    assert max(curve.accuracies) > 0.5


def test_a_small_step_is_worked_out_by_hand(cfg, dataset, split):
    """Two images of one pixel: the logits after one step, by the rule of the gradient."""

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(64, 2, bias=False), nn.Linear(2, 10, bias=False)

        def forward(self, x):
            return self.head(self.body(x.flatten(1)))

    torch.manual_seed(0)
    net = Line().to(cfg.device)
    images = {"train": dataset.train, "test": split.test_forget}
    curve = relearn(net, *images.values(), dataset, 3, per_class=1, steps=1, lr=0.5, seed=2)
    chosen = [dataset.train.where(dataset.train.labels == c).sample(1, 2) for c in range(10)]
    x = dataset.normalise(torch.cat([c.images for c in chosen])).flatten(1)
    w, v = net.body.weight.detach().clone(), net.head.weight.detach().clone()
    others = [c for c in range(10) if c != 3]
    v[3] = v[others].mean(0)
    spread = (x[others] @ w.T @ v[others].T).std(1, correction=0).mean()
    v *= relearning.SPREAD / spread
    error = ((x @ w.T @ v.T).softmax(1) - torch.eye(10, device=cfg.device)) / 10
    w, v = w - 0.5 * v.T @ error.T @ x, v - 0.5 * error.T @ x @ w.T
    unseen = dataset.normalise(split.test_forget.images).flatten(1)
    wanted = float(((unseen @ w.T @ v.T).argmax(1) == 3).double().mean())
    assert curve.accuracies[1] == pytest.approx(wanted, abs=1e-6)


def test_steps_are_those_of_a_plain_loop_with_momentum(dataset, split, monkeypatch):
    monkeypatch.setattr(relearning, "_head_alone", lambda *_: [0.0] * 21)
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 12, bias=False), nn.Linear(12, 10, bias=False)
    net = nn.Sequential(*layers).to(dataset.mean.device)
    curve = relearn(net, dataset.train, split.test_forget, dataset, 3, steps=20, lr=0.05, seed=2)
    chosen = [dataset.train.where(dataset.train.labels == c).sample(10, 2) for c in range(10)]
    x, y = (torch.cat([getattr(c, name) for c in chosen]) for name in ("images", "labels"))
    x, others = dataset.normalise(x), [c for c in range(10) if c != 3]
    head = net[2].weight
    with torch.no_grad():
        head[3] = head[others].mean(0)
        head *= relearning.SPREAD / net(x[y != 3])[:, others].std(1, correction=0).mean()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    unseen, wanted = dataset.normalise(split.test_forget.images), []
    for _ in range(21):
        wanted.append((net(unseen).argmax(1) == 3).double().mean().item())
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert len(set(wanted)) > 5, "or the test would say nothing"
    assert curve.accuracies == pytest.approx(wanted, abs=0.03)


def test_the_classifier_alone_is_a_regression_on_features_of_length_one(dataset):
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)
    net, few = nn.Sequential(*layers).to(dataset.mean.device), dataset.train.sample(100)
    seen, unseen = (dataset.normalise(part.images) for part in (few, dataset.test))
    rest, truth = few.labels != 3, dataset.test.labels
    found = relearning._head_alone(net, seen, few.labels, rest, unseen, truth, 6)
    inside = [net[:3](images).detach().double() for images in (seen, unseen)]
    centre = inside[0][rest].mean(0)
    inside = [rows - centre for rows in inside]
    deviation = inside[0].std(0, correction=0)
    factor = torch.where(deviation > 1e-6, 1 / deviation, 0)
    factor /= (inside[0] * factor).square().sum(1).mean().sqrt()
    head = nn.Linear(20, 10).double().to(factor)
    with torch.no_grad():
        head.weight.copy_(torch.where(factor > 0, net[3].weight / factor, 0))
        head.bias.copy_(net[3].bias + net[3].weight @ centre.float())
    optimizer = torch.optim.SGD(head.parameters(), relearning.HEAD_RATE, momentum=0.9)
    wanted = []
    for _ in range(7):
        right = head(inside[1] * factor).argmax(1) == truth
        wanted.append(right.double().mean().item())
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(inside[0] * factor), few.labels).backward()
        optimizer.step()
    assert len(set(wanted)) > 5, "or the test would say nothing"
    assert found == pytest.approx(wanted, abs=1e-3)


def test_several_classes_and_a_wrapped_network(dataset, split, original):
    both = dataset.split([3, 5])
    curve = relearn(original, dataset.train, both.test_forget, dataset, [3, 5], steps=10)
    assert curve.accuracies[0] < 0.3 < curve.accuracies[-1]
    same = [np.int64(5), torch.tensor(3)]
    assert curve == relearn(original, dataset.train, both.test_forget, dataset, same, steps=10)
    test = split.test_forget
    one = [relearn(original, dataset.train, test, dataset, c, steps=1) for c in (3, np.int64(3))]
    assert one[0] == one[1]
    outer = nn.Sequential(original)
    assert curve_of(outer, dataset, split) == curve_of(original, dataset, split)


def test_a_wild_gradient_moves_the_network_no_further_than_a_long_one():
    moved = {}
    for size in (1.0, 1e6):
        network = torch.nn.Linear(4, 3)
        before = torch.cat([p.detach().flatten() for p in network.parameters()])
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
        images, labels = torch.full((6, 4), size), torch.arange(6) % 2
        relearning._step(network, optimizer, images, labels, [])
        after = torch.cat([p.detach().flatten() for p in network.parameters()])
        moved[size] = (after - before).norm().item()
    assert moved[1.0] < 0.02 * relearning.LONGEST / 5, "a usual one is not touched"
    assert moved[1e6] == pytest.approx(0.02 * relearning.LONGEST, rel=1e-3)


def test_damaged_input_is_refused(dataset, split, original):
    empty = split.test_forget.where(torch.arange(0))
    nan = copy.deepcopy(original)
    nan.conv1.weight.data[0] = float("nan")
    train, test = dataset.train, split.test_forget
    for args, changes, why in (
        ((original, train, test, dataset, 3), {"per_class": 10_000}, "the smallest class has"),
        ((original, train, test, dataset, 3), {"per_class": 0}, "per_class = 0"),
        ((original, train, test, dataset, 3), {"steps": 0}, "steps = 0"),
        ((original, train, test, dataset, 3), {"lr": 0}, "lr = 0"),
        ((original, train, test, dataset, 3), {"lr": 1e30, "steps": 9}, "the network diverged"),
        ((original, train, split.test_retain, dataset, 3), {}, r"test images of \[3\] alone"),
        ((original, train, empty, dataset, 3), {}, "at least one"),
        ((original, split.retain, test, dataset, 3), {}, "some, not all, of the classes"),
        ((original, train, test, dataset, range(10)), {}, "some, not all, of the classes"),
        ((nan, train, test, dataset, 3), {}, "every logit must be finite"),
    ):
        with pytest.raises(InputError, match=why):
            relearn(*args, **changes)


@pytest.mark.parametrize("factor", [0.01, 0.2, 30.0])
def test_the_same_function_written_otherwise_relearns_at_the_same_speed(
    factor, dataset, split, original
):
    """Smaller filters with a smaller variance behind them compute the same."""
    other = copy.deepcopy(original)
    with torch.no_grad():
        for conv, norm in ((other.layer1[0].conv1, other.layer1[0].bn1), (other.conv1, other.bn1)):
            variance = factor**2 * (norm.running_var + norm.eps) - norm.eps
            assert bool((variance >= 0).all())
            conv.weight.mul_(factor)
            norm.running_mean.mul_(factor)
            norm.running_var.copy_(variance)
    images = dataset.normalise(split.test_forget.images)
    assert torch.allclose(other(images), original(images), atol=1e-3)
    curves = [relearn(m, dataset.train, split.test_forget, dataset, 3, steps=8).accuracies
              for m in (original, other)]  # fmt: skip
    assert curves[0] == pytest.approx(curves[1], abs=0.05)


def test_a_filter_with_a_bias_of_its_own_is_written_otherwise_too(dataset, split):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    model = nn.Sequential(*layers).eval().to(dataset.mean.device)
    with torch.no_grad():
        model[0].bias.fill_(0.2)
        model[1].running_mean.fill_(0.1)
        model[1].running_var.fill_(0.01)
    images = dataset.normalise(split.retain.images[:50])
    wanted = model(images)
    relearning._unit_variance(model, images)
    assert torch.allclose(model(images), wanted, atol=1e-4)
    assert torch.allclose(model[1].running_var + model[1].eps, torch.ones(4).to(images))


def test_of_a_filter_used_twice_and_a_norm_without_statistics_nothing_is_changed(dataset, split):
    """What can be written otherwise still is."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.one, self.two = nn.Linear(64, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.bare, self.free = nn.Linear(64, 4), nn.BatchNorm1d(4, track_running_stats=False)
            self.once, self.norm = nn.Linear(64, 4), nn.BatchNorm1d(4)
            self.fc = nn.Linear(4, 10)

        def forward(self, x):
            x = x.flatten(1)
            twice = self.one(self.twice(x)) + self.two(self.twice(x))
            return self.fc(twice + self.free(self.bare(x)) + self.norm(self.once(x)))

    torch.manual_seed(0)
    model = Mixed().eval().to(dataset.mean.device)
    for norm in (model.one, model.two, model.norm):
        norm.running_var.fill_(0.01)
    before, images = copy.deepcopy(model.state_dict()), dataset.normalise(split.retain.images[:50])
    relearning._unit_variance(model, images)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"once.weight", "once.bias", "norm.running_var"}


def test_the_better_way_counts_after_each_step(dataset, split, original, monkeypatch):
    monkeypatch.setattr(relearning, "_head_alone", lambda *_: [0.0] * 9)
    whole = curve_of(original, dataset, split).accuracies
    alone = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    monkeypatch.setattr(relearning, "_head_alone", lambda *_: alone)
    assert curve_of(original, dataset, split).accuracies == tuple(map(max, whole, alone))


class Moved(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x):
        return x + self.by


@pytest.mark.parametrize("by", [0.0, 100.0])
def test_the_classifier_alone_learns_the_same_however_its_features_are_written(dataset, split, by):
    """Scaled, and moved by constants that its biases take back."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)
    model = nn.Sequential(*layers).to(dataset.mean.device)
    other, factors = copy.deepcopy(model), 2.0 ** torch.arange(-10, 10)
    with torch.no_grad():
        for tensor in (other[1].weight.T, other[1].bias, other[3].weight.reciprocal_()):
            tensor.mul_(factors.to(tensor))
        other[3].weight.reciprocal_()
    train, test = dataset.train.sample(200), split.test_forget
    images = [dataset.normalise(part.images) for part in (train, test)]
    far = by * torch.arange(20).to(factors) * factors
    with torch.no_grad():
        other[3].bias -= (other[3].weight.double() @ far.to(other[3].weight).double()).float()
    other.insert(3, Moved(far.to(other[3].weight)))
    curves = [
        relearning._head_alone(
            m, images[0], train.labels, train.labels != 3, images[1], test.labels, 20
        )
        for m in (model, other)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=0.03)
    assert curves[0][0] < 0.5 < curves[0][-1]


def test_a_filter_that_others_look_at_stays_as_it_is(dataset, split):
    """Scaling it would change what the network computes."""

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.fc = nn.Linear(8, 10)

        def forward(self, x):
            y = self.conv(x)
            return self.fc(torch.cat([y.mean((2, 3)), self.norm(y).mean((2, 3))], 1))

    model = Watched().eval().to(dataset.mean.device)
    model.norm.running_var.fill_(0.01)
    before, images = copy.deepcopy(model.state_dict()), dataset.normalise(split.retain.images[:50])
    relearning._unit_variance(model, images)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_logit_masked_after_the_classifier_plays_no_role(dataset, split, original):
    class Taped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            logits = self.model(x).clone()
            logits[:, 3] = -1e4
            return logits

    curves = [relearn(m, dataset.train, split.test_forget, dataset, 3, steps=10).accuracies
              for m in (original, Taped(original))]  # fmt: skip
    assert curves[0] == pytest.approx(curves[1], abs=0.03)
    assert curves[1][-1] > 0.8


def test_where_the_classifier_answers_for_each_place_the_network_is_asked():
    class Places(nn.Module):
        input_shape = (1, 8, 8)

        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.body(x[:, 0]).relu()).mean(1)

    model, images = Places(), torch.rand(5, 1, 8, 8)
    assert torch.equal(relearning._Bare(model)(images), model(images))


def _old_prune(head):
    nn.utils.prune.identity(head, "weight")


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm, _old_prune],
    ids=["parametrized", "by a hook", "pruned"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_row_of_a_computed_weight_is_reset_as_well(dataset, split, original, norm):
    with torch.no_grad():
        original.fc.weight[3] *= 1e-6
        original.fc.bias[3] = -1e4
    computed = copy.deepcopy(original)
    norm(computed.fc)
    names = [n for n, _ in computed.named_parameters()]
    wanted, found = (curve_of(m, dataset, split).accuracies for m in (original, computed))
    assert wanted[-1] > 0.5, "else nothing is seen"
    assert found == pytest.approx(wanted, abs=0.05)
    assert [n for n, _ in computed.named_parameters()] == names
