from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import features, models, runs, training
from helpers.config import InputError
from helpers.data import Dataset, ImageSet, per_pass
from helpers.features import HEAD_INPUT, LOGITS
from tests import erasing


def draw(seed):
    return torch.Generator().manual_seed(seed)


def clusters(distance, per_class=40, classes=4, width=6, seed=0):
    """Gaussian classes around corners of a simplex; training and test images."""
    centres = distance * torch.eye(classes, width)
    labels = torch.arange(classes).repeat_interleave(per_class)
    sets = [centres[labels] + torch.randn(len(labels), width, generator=draw(seed + i))
            for i in (0, 1)]  # fmt: skip
    return sets[0], labels, sets[1], labels


PROBES = {
    "linear": features.linear_probe, "refit": features.refit_head, "knn": features.knn_probe,
    "whitened": features.whitened_probe,
    "prototype": lambda x, y, t, u, c, **k: features.prototype_attack(
        x, y, torch.eye(4, x.shape[1]), None, t, u, c, **k),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------
# reading the inside


def test_what_is_collected_is_what_the_layers_compute(dataset, original):
    part = dataset.test.where(torch.arange(25))
    ends = features.points(original, dataset.normalise(part.images))
    names = (*reversed(ends), HEAD_INPUT)
    found = features.collect(original, part, dataset, names)
    with torch.no_grad():
        x = torch.relu(original.bn1(original.conv1(dataset.normalise(part.images))))
        x = original.layer2(original.layer1(x))
        last = original.layer3(x)
    assert list(found) == [*ends, HEAD_INPUT] == ["layer1", "layer2", "layer3", HEAD_INPUT]
    assert torch.allclose(found["layer2"], x.flatten(1).cpu(), atol=1e-5)
    assert torch.allclose(found["layer3"], last.flatten(1).cpu(), atol=1e-5)
    assert torch.allclose(found[HEAD_INPUT], last.mean((2, 3)).cpu(), atol=1e-5)
    assert torch.equal(features.penultimate(original, part, dataset), found[HEAD_INPUT])
    batched = features.collect(original, part, dataset, names, batch_size=7)
    assert all(torch.allclose(batched[n], found[n], atol=1e-5) for n in names)
    assert all(rows.dtype == torch.float32 and not rows.requires_grad for rows in found.values())


def test_collecting_leaves_no_trace(dataset, original):
    original.train()
    original.bn1.eval()
    before = models.fingerprint(original), [m.training for m in original.modules()]
    state = torch.random.get_rng_state()
    ends = features.points(original, dataset.normalise(dataset.test.images[:2]))
    features.collect(original, dataset.test, dataset, [*ends, HEAD_INPUT])
    with pytest.raises(InputError, match="names"):
        features.collect(original, dataset.test, dataset, [HEAD_INPUT, "layer9"])
    assert before == (models.fingerprint(original), [m.training for m in original.modules()])
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in original.modules())


def test_hooks_go_when_the_network_fails(dataset, original):
    original.layer2.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        features.penultimate(original, dataset.test, dataset)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in original.modules())


class Wrapper(nn.Module):
    """The stages registered in the wrong order, around a classifier with another name."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(1, 1, 1)
        self.late = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1))
        self.early = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1))
        self.pair = nn.ModuleDict({"out": nn.Linear(5, 10)})

    def forward(self, x):
        return self.pair["out"](torch.relu(self.late(torch.relu(self.early(x)))).mean((2, 3)))


def test_any_network_with_a_final_linear_layer(cfg, dataset, original):
    part, own = dataset.test.where(torch.arange(9)), Wrapper().to(cfg.device)
    few = dataset.normalise(part.images)
    assert features.points(own, few) == ("early", "late"), "in the order of the calls"
    assert features.penultimate(own, part, dataset).shape == (9, 5)
    inside = nn.ModuleDict({"net": original})
    inside.forward = original.forward
    assert features.points(inside, few) == ("net.layer1", "net.layer2", "net.layer3")
    expected = features.penultimate(original, part, dataset)
    assert torch.equal(features.penultimate(inside, part, dataset), expected)
    for name, why in (("spare", "that the network calls"), ("nowhere", "a module of the network")):
        with pytest.raises(InputError, match=why):
            features.collect(own, part, dataset, [name])
    with pytest.raises(InputError, match="at least one image"):
        features.penultimate(own, part.where(torch.arange(0)), dataset)


def test_a_stage_ends_behind_what_belongs_to_it():
    class Two(nn.Module):
        """Returns two things, so that one has to look inside of it."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)), x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.norm = (
                nn.Conv2d(1, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4),
            )
            self.two, self.plain, self.head = Two(), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(self.stem(x))))
            return self.head(torch.relu(self.plain(self.two(x)[0])).mean((2, 3)))

    images = torch.rand(2, 1, 4, 4)
    assert features.points(Net(), images) == ("norm", "two.norm", "plain")
    for name, wanted in (("resnet18", ("layer1", "layer2", "layer3", "layer4")),
                         ("vit_tiny", ("blocks.0", "blocks.1"))):  # fmt: skip
        net = models.build_model(name, 10, 3, 32)
        assert features.points(net, torch.rand(2, 3, 32, 32)) == wanted


def test_a_module_that_is_called_twice_ends_with_its_last_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.a(self.b(self.a(x.flatten(1)))))

    assert features._ends(Twice(), torch.rand(5, 1, 2, 2)) == ["b", "a", "head"]


@torch.no_grad()
def test_how_the_weights_are_written_does_not_change_what_is_seen(dataset, original):
    """BatchNorm undoes what is multiplied before it: the same network, and the same numbers."""
    part = dataset.test.where(torch.arange(40))
    ends = features.points(original, dataset.normalise(part.images))
    seen = features.collect(original, part, dataset, ends)
    for stage in (original.layer1, original.layer2, original.layer3):
        conv, norm = stage[-1].conv2, stage[-1].bn2
        factor = torch.logspace(-1, 1, len(conv.weight), device=conv.weight.device)
        conv.weight.mul_(factor.view(-1, 1, 1, 1))
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
    again = features.collect(original, part, dataset, ends)
    for name in ends:
        assert cka(seen[name], again[name]) == pytest.approx(1, abs=1e-3)
        assert torch.allclose(seen[name], again[name], atol=2e-2), name


def test_an_output_that_is_no_tensor_is_refused(cfg, dataset):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), Pair()).to(cfg.device)
    part = ImageSet(dataset.test.images[:3], dataset.test.labels[:3])
    with pytest.raises(InputError, match="one tensor with a row an image"):
        features.collect(net, part, dataset, ["2"])


# ------------------------------------------------------------------------------------------------
# new classifiers


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_classes_far_apart_are_found_and_hidden_ones_not(probe):
    assert probe(*clusters(30.0), 2) == 1
    x, y, t, u = clusters(30.0)
    for rows, labels in ((x, y), (t, u)):  # where class 2 is, class 3 is three times as often
        rows[labels == 2] = rows[labels == 3]
        rows += 1e-3 * torch.randn(rows.shape, generator=draw(5))
    x, y = torch.cat([x, x[y == 3], x[y == 3]]), torch.cat([y, y[y == 3], y[y == 3]])
    found = probe(x, y, t, u, 2)
    assert found < 0.5, "nothing tells the two classes apart"
    assert found == 0 or probe is not features.linear_probe, "and the majority wins"


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_only_the_forgotten_class_is_judged_and_nothing_is_left_to_chance(probe):
    x, y, t, u = clusters(2.0)
    value, state = probe(x, y, t, u, 1), torch.random.get_rng_state()
    assert 0 < value < 1, "or the test would say nothing"
    assert probe(x, y, t, u, 1) == value
    assert torch.equal(state, torch.random.get_rng_state())
    if probe is not PROBES["prototype"]:  # which sets its bias by the others
        assert probe(x, y, t[u == 1], u[u == 1], 1) == value
    both = probe(x, y, t, u, [1, 2])
    # in these the second class gets another row, or is not among the retained ones any more
    if probe not in (PROBES["prototype"], PROBES["whitened"]):
        assert both == pytest.approx((value + probe(x, y, t, u, 2)) / 2)


@pytest.mark.parametrize(("per_class", "width"), [(40, 6), (5, 60)])
def test_the_linear_probe_equals_scikit_learns_ridge(per_class, width):
    from sklearn.linear_model import Ridge

    x, y, t, u = clusters(2.0, per_class, width=width)
    mean, sd = x.double().mean(0), x.double().std(0, correction=0)
    ridge = Ridge(alpha=features.PENALTY * len(x), solver="svd")
    ridge.fit(((x - mean) / sd).numpy(), np.eye(4)[y])
    scores = ridge.predict(((t - mean) / sd).numpy())
    assert np.allclose(features._ridge(x.double(), y, t.double()).numpy(), scores, atol=1e-9)
    wanted = float((scores.argmax(1)[u == 1] == 1).mean())
    assert features.linear_probe(x, y, t, u, 1) == wanted
    assert features.linear_probe(x, y, t, u, np.int64(1)) == wanted


@settings(max_examples=25)
@given(st.integers(0, 99), st.floats(0.01, 100))
def test_the_linear_probe_does_not_depend_on_units_or_dead_features(seed, unit):
    x, y, t, u = clusters(2.0, seed=seed)
    value = features.linear_probe(x, y, t, u, 1)
    scale = torch.rand(x.shape[1], generator=draw(seed)) * unit + 0.01
    assert features.linear_probe(x * scale + 3, y, t * scale + 3, u, 1) == value
    dead, alive_in_test = torch.full((len(x), 1), 7.0), 1e6 * torch.randn(len(t), 1)
    wide = torch.cat([x, dead], 1), y, torch.cat([t, alive_in_test], 1), u
    assert features.linear_probe(*wide, 1) == value


def test_features_that_are_all_dead_know_nothing():
    x, y, t, u = clusters(9.0)
    assert features.linear_probe(x * 0, y, t, u, 2) == 0
    assert features.refit_head(x * 0, y, t, u, 2) == 0


def test_refitting_with_all_images_is_the_linear_probe():
    data = clusters(2.0)
    assert features.refit_head(*data, 1, share=1, draws=2) == features.linear_probe(*data, 1)


def test_few_images_are_drawn_from_every_class(monkeypatch):
    x, y, t, u = clusters(2.0, 100)
    seen = []
    ridge = features._ridge
    monkeypatch.setattr(features, "_ridge", lambda *a: seen.append(a[1].bincount()) or ridge(*a))
    features.refit_head(x, y, t, u, 1, draws=3)
    features.refit_head(x, y, t, u, 1, share=0.1, draws=1)
    assert [s.tolist() for s in seen] == [[2] * 4] * 3 + [[10] * 4]


def test_neighbours_by_hand():
    """Both features have mean 0 and the same deviation, so that angles stay as they are."""
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    y = torch.tensor([0, 2, 1, 2])
    t, u = torch.tensor([[3.0, 0.1], [0.1, 5]]), torch.tensor([1, 1])
    # nearest of the first: images 0, 2; of the second: 2, 0
    assert features.knn_probe(x, y, t, u, 1, k=1, per_class=None) == 0.5
    # a tie of one vote each: the nearer neighbour decides, not the lower index
    assert features.knn_probe(x, y, t, u, 1, k=2, per_class=None) == 0.5
    assert features.knn_probe(x * 5, y, t, u, 1, k=2, per_class=None) == 0.5
    scales = torch.tensor([16.0, 1])  # by feature: nearest by the angle would be others
    assert features.knn_probe(x * scales, y, t * scales, u, 1, k=1, per_class=None) == 0.5
    # the same place: the lower index
    same = torch.ones(4, 2), torch.tensor([1, 0, 0, 1]), torch.ones(1, 2)
    assert features.knn_probe(*same, torch.tensor([0]), 0, k=4, per_class=None) == 1
    assert features.knn_probe(*same, torch.tensor([1]), 1, k=4, per_class=None) == 0


def test_more_votes_win_however_far_away():
    near, far = torch.full((1, 4), 1.0), torch.full((1, 5), -1.0)
    votes = features._votes(torch.cat([near, far], 1), torch.tensor([0] * 4 + [1] * 5), 9)
    assert votes.argmax(1).item() == 1


def test_neighbours_equal_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    x, y, t, u = clusters(2.0, classes=2)  # two classes and an odd k: no ties
    mean, deviation = x.mean(0), x.std(0, correction=0)
    rows = ((z - mean).div(deviation).numpy() for z in (x, t[u == 1]))
    knn = KNeighborsClassifier(9, metric="cosine").fit(next(rows), y.numpy())
    wanted = float((knn.predict(next(rows)) == 1).mean())
    assert features.knn_probe(x, y, t, u, 1, k=9, per_class=None) == wanted


@pytest.mark.parametrize("row", [0.0, -1e4, float("nan"), 1e30])
def test_the_prototype_attack_never_reads_the_own_row(row):
    x, y, t, u = clusters(2.5)
    weight = torch.randn(4, 6, generator=draw(3))
    weight[:3] += 3 * torch.eye(3, 6)
    bias = torch.tensor([0.1, 0.2, -0.1, 0.3])
    value = features.prototype_attack(x, y, weight, bias, t, u, 2)
    assert 0 < value < 1
    other, level = weight.clone(), bias.clone()
    other[2], level[2] = row, row
    assert features.prototype_attack(x, y, other, level, t, u, 2) == value


def test_the_prototype_by_hand():
    """Divided by the deviations, 1 to 3, the row of class 2 is (0, 2/3) in the features as given.

    Of 100 retained images at (0, 0.03 j) one may be taken for the class, so its logit must be above
    2/3 * 2.94 where the others' are those at the origin, and 2 more where the first feature is 1.
    """
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 3], [0, 5]])
    y = torch.tensor([0, 1, 2, 2])
    weight, bias = torch.tensor([[2.0, 0], [-2, 0], [9, 9]]), torch.tensor([1.0, 1, 9])
    mine = torch.tensor([[0.0, 2.95], [0, 2.93], [1, 5.95], [-1, 5.93]])
    rest = torch.stack([torch.zeros(100), 0.03 * torch.arange(100)], 1)
    t, u = torch.cat([rest, mine]), torch.tensor([0] * 100 + [2] * 4)
    attack = features.prototype_attack
    for k in (1, 2):
        assert attack(x, y, weight, bias, t, u, 2, k=k) == 0.5
    assert attack(x, y, weight, None, t, u, 2) == 0.5
    scales = torch.tensor([1.0, 1000])
    assert attack(x * scales, y, weight / scales, bias, t * scales, u, 2) == 0.5
    by = torch.tensor([50.0, -8])
    assert attack(x + by, y, weight, bias - weight @ by, t + by, u, 2) == 0.5
    assert attack(x, y, weight, torch.tensor([5.0, -3, 0]), t, u, 2) == 0.75
    assert attack(x, y, weight, bias, t[1:], u[1:], 2) == 0, "of 99 images none is 1 %"


def test_of_several_classes_the_prototype_attack_says_each():
    x, y, t, u = clusters(6)
    t[u == 3] -= 6 * torch.eye(4, 6)[3]  # of test images alone
    head = torch.eye(4, 6), torch.zeros(4)
    each = features.prototype_attack_by_class(x, y, *head, t, u, [3, 2], seed=5)
    assert list(each) == [2, 3]
    assert each[2] > 0.9 > 0.5 > each[3] > 0
    images = u != 2  # another number of each
    images[:100] = True
    t, u = t[images], u[images]
    each = features.prototype_attack_by_class(x, y, *head, t, u, [2, 3], k=3, draws=4)
    mean = features.prototype_attack(x, y, *head, t, u, [2, 3], k=3, draws=4)
    assert mean == pytest.approx((20 * each[2] + 40 * each[3]) / 60, abs=1e-12)


@pytest.mark.parametrize("k", [3, 15])
def test_the_prototype_equals_its_definition(k):
    """Rows of different lengths, fewer images than the class has, others that it never reads."""
    x, y = torch.randn(60, 4, generator=draw(0)), torch.arange(60) % 4
    t, u = torch.randn(4000, 4, generator=draw(1)), torch.arange(4000) % 4
    for rows, labels in ((x, y), (t, u)):
        rows[labels == 2] += 2
        rows[labels == 3] -= 1
    weight, bias = (torch.randn(size, generator=draw(2)) for size in ((4, 4), (4,)))
    others = [0, 1, 3]
    few = features._few(y, {2: k}, 0, 1)[0]
    spread = x.double().std(0, correction=0)
    own = (x[few] / spread).mean(0) - (x[y != 2] / spread).mean(0)
    lengths = (weight[others] * spread).norm(dim=1)
    row = own / own.norm() * lengths.mean() / spread
    logits = t.double() @ weight.double().T + bias
    lead = t.double() @ row - logits[:, others].amax(1)
    wanted = float((lead[u == 2] > lead[u != 2].quantile(0.99)).double().mean())
    assert 0.01 < wanted < 0.99
    found = features.prototype_attack(x, y, weight, bias, t, u, 2, k=k, draws=1)
    assert found == pytest.approx(wanted, abs=5e-4)


def rewritten(rows, seed=0, faint=1e-2):
    """The same features in other axes: one direction faint, then turned and moved."""
    width = rows.shape[1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=draw(seed)).double())[0]
    faded = rows.double() @ torch.diag(torch.tensor([faint, *[1.0] * (width - 1)]).double()) @ turn
    return faded + 7


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), faint=st.sampled_from([1.0, 1e-2, 1e-3]))
def test_the_whitened_probe_sees_through_any_linear_map(seed, faint):
    x, y, unseen, truth = clusters(4, seed=seed)
    plain = features.whitened_probe(x, y, unseen, truth, 0)
    other = [rewritten(rows, seed, faint) for rows in (x, unseen)]
    assert features.whitened_probe(other[0], y, other[1], truth, 0) == pytest.approx(
        plain, abs=0.01
    )


def test_a_class_in_a_faint_direction_is_hidden_from_the_other_probes():
    x, y, unseen, truth = clusters(6)
    for rows in (x, unseen):  # but for direction 0 the first class is like the second
        rows[y == 0] += torch.tensor([0, 6, 0, 0, 0, 0])
    groups = [rewritten(rows) for rows in (x, unseen)]
    seen = {name: PROBES[name](groups[0], y, groups[1], truth, 0)
            for name in ("linear", "refit", "knn", "whitened")}  # fmt: skip
    assert seen["whitened"] > 0.9, seen
    assert max(seen[name] for name in ("linear", "refit", "knn")) < 0.7, seen


def test_the_whitened_probe_equals_its_definition():
    """Through the eigenvectors of the scatter within retained classes, one test image a time."""
    x, y, unseen, truth = clusters(1.5, per_class=30)
    x, unseen = (rows.double().numpy() for rows in (x, unseen))
    kept = y.numpy() > 0
    spread = sum(np.cov(x[y == c].T, bias=True) for c in (1, 2, 3)) / 3
    values, vectors = np.linalg.eigh(spread)
    centre, right = x[kept].mean(0), []
    for few in features._few(y, dict.fromkeys(range(4), 5), 3, 2):
        for row in unseen[truth == 0]:
            z = (row - centre) @ vectors / np.sqrt(values)
            cosines = []
            for c in range(4):
                whitened = (x[few[y[few] == c]] - centre) @ vectors / np.sqrt(values)
                mean = (whitened / np.linalg.norm(whitened, axis=1, keepdims=True)).mean(0)
                cosines.append(z @ mean / np.linalg.norm(mean))
            right.append(np.argmax(cosines) == 0)
    found = features.whitened_probe(
        torch.tensor(x), y, torch.tensor(unseen), truth, 0, seed=3, draws=2
    )
    assert found == pytest.approx(np.mean(right))
    assert 0.3 < found < 1, "or it would not be told from another definition"


def test_the_whitened_probe_needs_a_retained_class():
    x, y, unseen, truth = clusters(3, classes=2)
    with pytest.raises(InputError, match="some of retained ones too"):
        features.whitened_probe(x, y, unseen, truth, (0, 1))
    constant = torch.where(y[:, None] == 0, x, 1.0)  # nothing varies within what is retained
    assert 0 <= features.whitened_probe(constant, y, unseen, truth, 0) <= 1


@pytest.mark.parametrize("factor", [16.0, 2.0**24])
def test_multiplying_a_feature_hides_nothing(factor):
    """A network may multiply what it likes, and divide the weights behind it: the same function."""
    x, y, t, u = clusters(2.5)
    scales = torch.ones(6)
    scales[[0, 4]] = factor
    for probe in (features.linear_probe, features.refit_head, features.knn_probe):
        found = probe(x * scales, y, t * scales, u, 1)
        assert found == pytest.approx(probe(x, y, t, u, 1), abs=1e-9)
        assert found > 0.3
    sides = y == 1, u == 1
    told = [features.information(a, sides[0], b, sides[1])
            for a, b in ((x, t), (x * scales, t * scales))]  # fmt: skip
    assert told[0] == pytest.approx(told[1], abs=1e-5)
    assert told[0] > 0.1


def test_a_constant_feature_counts_for_nothing():
    x = torch.tensor([[1.0, 5, 0, 1e-20], [3, 5, 0, 3e-20]]).double()
    assert features.scale(x).tolist() == pytest.approx([1, 0, 0, 1e20])
    rounded = torch.tensor([[1.0], [1 + 1e-12]], dtype=torch.float64)
    assert features.scale(rounded).tolist() == [0], "what rounding left of a constant"


GOOD = clusters(2.0)


def broken(i, value):
    data = list(GOOD)
    data[i] = value
    return tuple(data)


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
@pytest.mark.parametrize(
    ("data", "forgotten", "why"),
    [
        (broken(0, GOOD[0] * float("nan")), 1, "train_features = 'nan or inf'"),
        (broken(2, GOOD[2] / 0), 1, "test_features = 'nan or inf'"),
        (broken(0, GOOD[0][:5]), 1, "a label a row"),
        (broken(2, GOOD[2][:, :3]), 1, "as many in training as in test"),
        (broken(2, GOOD[2][:0]), 1, "at least 1"),
        (broken(1, GOOD[1] * 0), 0, "at least two classes"),
        (GOOD, 7, "forget = .7. is not allowed"),
        (GOOD, [], "forget = .. is not allowed"),
        (broken(3, GOOD[3] * 0), 1, "with training and test images"),
    ],
)
def test_damaged_input_is_refused(probe, data, forgotten, why):
    with pytest.raises(InputError, match=why):
        probe(*data, forgotten)


def test_settings_out_of_range_are_refused():
    for call, why in (
        (lambda: features.refit_head(*GOOD, 1, share=0), "share = 0"),
        (lambda: features.refit_head(*GOOD, 1, draws=0), "draws = 0"),
        (lambda: features.knn_probe(*GOOD, 1, k=0), "k = 0"),
        (lambda: features.knn_probe(*GOOD, 1, k=41), "from 1 to 40 neighbours"),
        (lambda: features.knn_probe(*GOOD, 1, per_class=41), "from 1 to the 40 training images"),
        (lambda: PROBES["prototype"](*GOOD, 1, k=41), "from 1 to the 40 training images"),
        (lambda: PROBES["prototype"](*GOOD, range(4)), "at least one that is not forgotten"),
        (lambda: features.prototype_attack(
            *GOOD[:2], torch.eye(5, 6), None, *GOOD[2:], range(4)), "some of retained"),
        (lambda: PROBES["prototype"](*GOOD[:2], *(z[GOOD[3] == 1] for z in GOOD[2:]), 1),
         "test images = 'all of forgotten classes' is not allowed: some of retained"),
        (lambda: features.prototype_attack(*GOOD[:2], torch.eye(4), None, *GOOD[2:], 1),
         "classifier"),
        (lambda: features.prototype_attack(*GOOD[:2], torch.eye(3, 6), None, *GOOD[2:], 1),
         "C above label 3"),
        (lambda: features.prototype_attack(
            *GOOD[:2], torch.eye(4, 6) * float("inf"), None, *GOOD[2:], 1), "weight"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            call()


# ------------------------------------------------------------------------------------------------
# every module of the last stage


def test_inside_the_classifiers_input_counts_as_for_refit_head(dataset, original):
    train, test = dataset.train, dataset.test
    rows = (features.penultimate(original, part, dataset) for part in (train, test))
    groups = next(rows), train.labels, next(rows), test.labels
    inside = features.refit_inside(original, train, test, dataset, 3, seed=5)
    assert inside[HEAD_INPUT] == features.refit_head(*groups, 3, seed=5)
    ends = features._ends(original, dataset.normalise(train.images[:2]))
    assert [n for n in inside if n != HEAD_INPUT] == ends[ends.index("layer2") :]
    mine = test.where((test.labels == 3).nonzero().flatten())
    assert features.refit_inside(original, train, mine, dataset, 3, seed=5) == inside


def test_what_a_layer_erases_is_found_before_it(dataset, original):
    erased = erasing.erased(original, dataset, 3)
    whole, inside = (
        features.refit_inside(model, dataset.train, dataset.test, dataset, 3)
        for model in (original, erased)
    )
    assert inside["layer3.0"] == whole["layer3.0"] > 0.8
    assert inside[HEAD_INPUT] < whole[HEAD_INPUT] / 2


class Tokens(nn.Module):
    """Rows of the images as tokens, each through the same layer twice."""

    def __init__(self):
        super().__init__()
        self.enter, self.mix, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.mix(self.mix(self.enter(x.squeeze(1)))).mean(1))


def test_outputs_are_averaged_over_positions_and_told_apart_by_call(dataset):
    torch.manual_seed(0)
    model, part = Tokens().to(dataset.mean.device), dataset.test.sample(20)
    found = features._pooled(model, part, dataset, "enter")
    assert list(found) == ["enter", "mix", "mix, call 2", HEAD_INPUT, "fc"]
    with torch.no_grad():
        tokens = model.mix(model.enter(dataset.normalise(part.images).squeeze(1)))
        wanted = torch.cat([tokens[:, 0], tokens.mean(1)], 1).cpu()
        again = model.mix(tokens).mean(1).cpu()
    assert torch.allclose(found["mix"], wanted, atol=1e-6)
    assert torch.allclose(found[HEAD_INPUT], again, atol=1e-6)
    assert [*features._pooled(model, part, dataset, "mix")] == [*found][1:]
    square = torch.arange(24.0).view(2, 3, 2, 2)
    assert features._flat(square).tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]


# ------------------------------------------------------------------------------------------------
# the question itself


def inside(model, dataset):
    train, test = (features.penultimate(model, p, dataset) for p in (dataset.train, dataset.test))
    head = model.get_submodule(models.layers(model).head)
    data = train, dataset.train.labels, test, dataset.test.labels
    attack = features.prototype_attack(*data[:2], head.weight, head.bias, *data[2:], 3)
    probes = (features.linear_probe, features.refit_head, features.knn_probe)
    return torch.tensor([*(probe(*data, 3) for probe in probes), attack])


def test_a_masked_class_is_still_inside_and_an_oracles_is_not(cfg, dataset, original):
    masked = copy.deepcopy(original)
    with torch.no_grad():
        masked.fc.weight[3], masked.fc.bias[3] = 0, -1e4
    oracle = runs.run(cfg.but(method="retrain"), dataset, progress=False).model(dataset)
    known, hidden, unseen = (inside(m, dataset) for m in (original, masked, oracle))
    assert torch.equal(known, hidden)
    assert bool((hidden > unseen).all()), (hidden, unseen)
    assert known[3] - unseen[3] > 0.4, "the prototype attack separates the most"


# ------------------------------------------------------------------------------------------------
# similarity and information


def cka(one, other):
    return features.alignment(features.gram(one), features.gram(other))


def reference_cka(x, y):
    """By the centring matrix, as the paper writes it."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_cka_equals_its_definition_and_keeps_its_invariances(n, width, other, seed):
    x = torch.randn(n, width, generator=draw(seed)).double()
    y = torch.randn(n, other, generator=draw(seed + 1)).double()
    value = cka(x, y)
    assert value == pytest.approx(reference_cka(x.numpy(), y.numpy()), abs=1e-9)
    assert 0 <= value <= 1
    assert cka(y, x) == pytest.approx(value)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=draw(seed)).double()).Q
    assert cka(1e-6 * x @ rotation + 3, y) == pytest.approx(value, abs=1e-6)
    assert cka(x, x @ rotation * 1e8) == pytest.approx(1)


@settings(max_examples=30)
@given(st.integers(3, 12), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_alignment_is_cka_of_the_images_picked(n, width, other, seed):
    x = torch.randn(n, width, generator=draw(seed)).double()
    y = torch.randn(n, other, generator=draw(seed + 1)).double() * 1e5 + 7
    picks = torch.randint(n, (n,), generator=draw(seed))
    wanted = cka(x[picks], y[picks])
    grams = features.gram(x), features.gram(y)
    found = features.alignment(*(features.picked(g, picks) for g in grams))
    assert found == pytest.approx(wanted, abs=1e-9)
    again = torch.zeros(n, dtype=torch.long)
    assert not features.picked(grams[0], again).any(), "one image n times"


def test_cka_by_hand_and_of_dead_layers():
    x = torch.tensor([[1.0], [-1], [1], [-1]])
    assert cka(x, torch.tensor([[1.0], [1], [-1], [-1]])) == 0
    assert cka(x, torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])) == pytest.approx(
        1 / math.sqrt(2)
    )
    assert cka(x, torch.full((4, 3), 0.1)) == 0
    assert cka(x * 0, x * 0) == 0
    for rows, why in ((x * float("nan"), "rows = 'nan or inf'"), (x[:, 0], "rows")):
        with pytest.raises(InputError, match=why):
            features.gram(rows)


def sides(n, width, distance, seed, share=0.2):
    y = torch.arange(n) < share * n
    return torch.randn(n, width, generator=draw(seed)) + distance * y[:, None], y


@pytest.mark.parametrize("width", [1, 20, 500])
def test_information_between_nothing_and_log_2(width):
    apart = [features.information(*sides(400, width, 20.0, 0), *sides(300, width, 20.0, 1), seed)
             for seed in range(3)]  # fmt: skip
    nothing = [features.information(*sides(400, width, 0, 0), *sides(300, width, 0, 1), seed)
               for seed in range(3)]  # fmt: skip
    assert all(0.62 < value <= math.log(2) for value in apart)
    assert all(0 <= value < 0.03 for value in nothing), "what was learned by heart counts nothing"


def test_information_does_not_depend_on_where_the_features_lie():
    """Centred by all training images, though the critic sees a balanced few of them."""
    (x, y), (unseen, truth) = sides(400, 20, 1.0, 0), sides(300, 20, 1.0, 1)
    found, level = features.information(x, y, unseen, truth), torch.linspace(-50, 50, 20)
    assert 0.1 < found < 0.6
    moved = features.information(x + level, y, unseen + level, truth)
    assert moved == pytest.approx(found, abs=1e-3)
    mean, spread = x.double().mean(0), x.double().std(0, correction=0) * math.sqrt(20)
    rows, others = (((z.double() - mean) / spread).float() for z in (x, unseen))
    few = features._few(y.long(), {0: 50, 1: 50}, 0, 1)[0]
    wanted = features._bound(rows[few], y.long()[few], others, truth.long(), 0, 40)
    assert found == pytest.approx(wanted, abs=1e-4)


def test_information_of_a_known_channel():
    """One bit that is right with probability 0.9: log 2 less the entropy of 0.9."""
    y = torch.arange(4000) % 2
    noisy = [torch.where(torch.rand(4000, generator=draw(s)) < 0.9, y, 1 - y) for s in (0, 1)]
    z = [n[:, None].float() for n in noisy]
    wanted = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    found = features.information(z[0], y, z[1], y, per_side=2000)
    assert found == pytest.approx(wanted, abs=0.03)


def test_information_does_not_depend_on_how_rare_the_class_is():
    z, y = sides(500, 5, 1.0, 1)
    z[y] *= 3  # the two sides are not equally hard
    once = features.information(*sides(500, 5, 1.0, 0), z, y)
    more = torch.cat([z, z[~y], z[~y]]), torch.cat([y, y[~y], y[~y]])
    assert 0.1 < once < 0.65
    assert features.information(*sides(500, 5, 1.0, 0), *more) == pytest.approx(once, abs=1e-6)


def test_information_leaves_no_trace_and_takes_dead_features():
    z, y = sides(100, 5, 1.0, 0)
    state = torch.random.get_rng_state()
    value = features.information(z, y, z, y, seed=4)
    assert value == features.information(z, y.long(), z, y, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert features.information(z * 0, y, z, y) == pytest.approx(0, abs=1e-3)
    with torch.no_grad():
        assert features.information(z, y, z, y, seed=4) == value


def test_information_refuses_what_says_nothing():
    z, y = sides(20, 3, 1.0, 0)
    one = torch.arange(20) == 0
    for call, why in (
        (lambda: features.information(z, y & False, z, y), "train_y = '0 of the class and 20"),
        (lambda: features.information(z, one, z, y), "at least 2 of each"),
        (lambda: features.information(z, y, z, y | True), "test_y"),
        (lambda: features.information(z, y.long() + 1, z, y), "0 and 1 only"),
        (lambda: features.information(z / 0, y, z, y), "train_z"),
        (lambda: features.information(z, y, z[:, :2], y), "as many in training"),
        (lambda: features.information(z, y, z, y, per_side=1), "per_side = 1"),
        (lambda: features.information(z, y, z, y, steps=0), "steps = 0"),
    ):
        with pytest.raises(InputError, match=why):
            call()


def test_idi_by_hand():
    oracle, original = [0.1, 0.3, 0.2], [0.3, 0.2, 0.6]
    assert features.idi(oracle, oracle, original) == 0
    assert features.idi(original, oracle, original) == 1
    assert features.idi([0.2, 0.0, 0.4], oracle, original) == pytest.approx(0.3 / 0.6)
    assert features.idi([0.7, 0.3, 0.2], oracle, original) == pytest.approx(1)
    for infos, why in (
        ((oracle, original, original), "0.0000 nats more"),
        ((oracle, oracle, [0.105, 0.0, 0.0]), "0.0050 nats more than the oracle"),
        ((oracle[:2], oracle, original), "the same number"),
        (([], [], []), "at least one"),
        (([float("nan")] * 3, oracle, original), "every number must be finite"),
    ):
        with pytest.raises(InputError, match=why):
            features.idi(*infos)


def test_large_images_go_through_in_smaller_batches_with_the_same_outcome():
    images = torch.randint(0, 256, (300, 3, 32, 32), generator=draw(0), dtype=torch.uint8)
    assert per_pass(images) == 128
    assert per_pass(images[:, :1, :8, :8]) == per_pass(images.flatten(1)) == 1000
    assert per_pass(torch.zeros(1, 3, 512, 512, dtype=torch.uint8)) == 1
    part, half = ImageSet(images, torch.arange(300) % 10), torch.full((3,), 0.5)
    dataset = Dataset("", tuple("0123456789"), part, part, part, half, half, "")
    model = models.build_model("resnet20", 10, 3, 32)
    found = features.collect(model, part, dataset, [LOGITS, HEAD_INPUT])
    assert torch.allclose(found[LOGITS], model.fc(found[HEAD_INPUT]), atol=1e-5)
    assert torch.equal(found[LOGITS], training.predict(model, part, dataset))
    at_once = training.predict(model, part, dataset, 300)
    assert torch.allclose(found[LOGITS], at_once, atol=1e-4)
