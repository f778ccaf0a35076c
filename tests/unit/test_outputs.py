from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import distance

from helpers import outputs
from helpers.config import InputError

LABELS = torch.tensor([0, 1, 2, 1])
LOGITS = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 5, 0], [2, 1, 0]])
NAN, INF = float("nan"), float("inf")


def drawn(n, classes, seed, scale=3.0):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


@st.composite
def distributions(draw):
    """Two over the same classes, often with zeros."""
    classes = draw(st.integers(1, 8))
    parts = st.lists(st.integers(0, 20), min_size=classes, max_size=classes).filter(any)
    one, other = draw(parts), draw(parts)
    return [a / sum(one) for a in one], [b / sum(other) for b in other]


# ------------------------------------------------------------------------------------------------
# one network


def test_values_worked_out_by_hand():
    assert outputs.accuracy(LOGITS, LABELS) == 0.5
    e5, e2, e1 = math.exp(5), math.exp(2), math.exp(1)
    sure = e5 / (e5 + 2)
    wanted = [sure, sure, 1 / (e5 + 2), e1 / (e2 + e1 + 1)]
    assert outputs.confidence(LOGITS, LABELS).tolist() == pytest.approx(wanted, rel=1e-12)
    assert outputs.losses(LOGITS, LABELS).tolist() == pytest.approx([-math.log(p) for p in wanted])
    assert outputs.label_histogram(LOGITS).tolist() == [0.5, 0.5, 0.0]


def test_what_is_returned_is_float64_and_one_number_an_image_even_for_one():
    for found in (outputs.confidence(LOGITS[:1], LABELS[:1]),
                  outputs.losses(LOGITS[:1], LABELS[:1])):  # fmt: skip
        assert (found.shape, found.dtype) == ((1,), torch.float64)
    thirds = outputs.label_histogram(LOGITS[[0, 1, 2]])
    assert thirds.dtype == torch.float64
    assert thirds.tolist() == [1 / 3, 2 / 3, 0]


def test_perfect_constant_and_random_predictions():
    labels = torch.arange(1000) % 10
    perfect = torch.nn.functional.one_hot(labels, 10).float()
    constant = torch.zeros(1000, 10)
    constant[:, 7] = 1
    assert outputs.accuracy(perfect, labels) == 1
    assert outputs.accuracy(constant, labels) == 0.1
    assert 0.07 < outputs.accuracy(drawn(1000, 10, 0), labels) < 0.13
    assert outputs.label_histogram(constant).tolist() == [0] * 7 + [1, 0, 0]


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 99))
def test_confidence_and_loss_are_one_thing(classes, n, seed):
    logits, labels = drawn(n, classes, seed), torch.arange(n) % classes
    p = outputs.confidence(logits, labels)
    assert bool(((p >= 0) & (p <= 1)).all())
    assert torch.allclose(-p.log(), outputs.losses(logits, labels), atol=1e-9)
    assert outputs.label_histogram(logits).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(0, 3), torch.zeros(0).long()),
        (torch.zeros(3, 3), torch.zeros(2).long()),
        (torch.zeros(3, 3), torch.zeros(3, 1).long()),
        (torch.zeros(3), torch.zeros(3).long()),
        (torch.tensor([[0.0, NAN]]), torch.tensor([0])),
        (torch.tensor([[0.0, INF]]), torch.tensor([0])),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [outputs.accuracy, outputs.confidence, outputs.losses, outputs.check_predictions],
)
def test_predictions_that_make_no_sense_are_refused(metric, logits, labels):
    with pytest.raises(InputError, match=r"logits and labels = |logits = 'nan or inf'"):
        metric(logits, labels)


def test_a_histogram_of_nothing_or_of_nan_is_refused():
    for logits in (torch.zeros(0, 3), torch.zeros(3)):
        with pytest.raises(InputError, match="N ≥ 1"):
            outputs.label_histogram(logits)
    with pytest.raises(InputError, match="must be finite"):
        outputs.label_histogram(torch.tensor([[0.0, NAN]]))


# ------------------------------------------------------------------------------------------------
# two distributions over the classes


def test_total_variation_worked_out_by_hand():
    assert outputs.total_variation([0.5, 0.5, 0], [0, 0.5, 0.5]) == 0.5
    assert outputs.total_variation([1, 0], [0, 1]) == 1
    assert outputs.total_variation([0.3, 0.7], [0.3, 0.7]) == 0


def test_jensen_shannon_worked_out_by_hand():
    assert outputs.jensen_shannon([1, 0], [0, 1]) == 1
    assert outputs.jensen_shannon([0.3, 0.7, 0], [0.3, 0.7, 0]) == 0
    rounded = [1 + 5e-7, 0]  # such sums are allowed
    assert outputs.jensen_shannon(rounded, rounded[::-1]) == 1
    for share in (0.1, 0.3, 0.4):  # rounding alone would make some of these negative
        for other in (share + 1e-9, share + 1e-10):
            assert 0 <= outputs.jensen_shannon([share, 1 - share], [other, 1 - other]) < 1e-15
    # middle (3/4, 1/4): 1 * log2(4/3) / 2 + (1/2 * log2(2/3) + 1/2 * log2(2)) / 2
    wanted = 0.5 * math.log2(4 / 3) + 0.25 * math.log2(2 / 3) + 0.25
    assert outputs.jensen_shannon([1, 0], [0.5, 0.5]) == pytest.approx(wanted, rel=1e-12)
    # half of the mass is shared, half disjoint
    assert outputs.jensen_shannon([0.5, 0.5, 0], [0.5, 0, 0.5]) == pytest.approx(0.5, rel=1e-12)


@given(distributions())
def test_the_divergence_is_the_square_of_scipys_distance_and_bounded(pair):
    one, other = pair
    found = outputs.jensen_shannon(one, other)
    wanted = distance.jensenshannon(one, other, base=2)
    assert found == pytest.approx(0 if math.isnan(wanted) else wanted**2, abs=1e-12)
    assert 0 <= found <= 1
    assert found == pytest.approx(outputs.jensen_shannon(other, one), abs=1e-12)
    assert found <= outputs.total_variation(one, other) + 1e-12  # Lin 1991, theorem 3
    assert (found < 1e-12) == (outputs.total_variation(one, other) < 1e-12)


@pytest.mark.parametrize("metric", [outputs.total_variation, outputs.jensen_shannon])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0], [0.5, 0.5]),
        ([0.5, 0.4], [0.5, 0.5]),
        ([0.5, 0.500002], [0.5, 0.5]),
        ([0.5, 0.499998], [0.5, 0.5]),
        ([1.5, -0.5], [0.5, 0.5]),
        ([0.5, 0.5], [NAN, 0.5]),
        ([], []),
    ],
)
def test_what_is_no_distribution_is_refused(metric, one, other):
    for pair in ((one, other), (other, one)):
        with pytest.raises(InputError, match="equal sizes"):
            metric(*pair)


def test_histograms_go_in_as_tensors():
    shares = outputs.label_histogram(LOGITS)
    assert outputs.jensen_shannon(shares, torch.tensor([0.5, 0.0, 0.5])) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------
# two networks

SURE = torch.tensor([[800.0, 0], [0, 800]])  # softmax is exactly 1 and 0


def test_distances_of_two_networks_worked_out_by_hand():
    assert outputs.activation_distance(SURE, SURE.flip(1)) == pytest.approx(math.sqrt(2))
    assert outputs.activation_distance(SURE, SURE) == 0
    half = torch.zeros(2, 2)  # (1, 0) to (1/2, 1/2)
    assert outputs.activation_distance(SURE, half) == pytest.approx(math.sqrt(0.5))
    one_of_two = torch.stack([SURE[0], SURE[0]])
    assert outputs.activation_distance(SURE, one_of_two) == pytest.approx(math.sqrt(2) / 2)
    assert outputs.zrf(SURE, SURE) == 1
    assert outputs.zrf(SURE, SURE.flip(1)) == 0
    assert outputs.zrf(SURE, one_of_two) == 0.5
    assert outputs.zrf(SURE, half) == pytest.approx(1 - outputs.jensen_shannon([1, 0], [0.5, 0.5]))


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 999), st.floats(0.1, 300))
def test_distances_equal_a_loop_over_images(n, classes, seed, scale):
    one, other = drawn(n, classes, seed, scale), drawn(n, classes, seed + 1000)
    p, q = (
        np.exp(x - x.max(1, keepdims=True)) for x in (one.double().numpy(), other.double().numpy())
    )
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    far = np.mean([math.dist(a, b) for a, b in zip(p, q, strict=True)])
    apart = np.mean([
        outputs.jensen_shannon(a / a.sum(), b / b.sum()) for a, b in zip(p, q, strict=True)
    ])  # fmt: skip
    assert outputs.activation_distance(one, other) == pytest.approx(far, abs=1e-9)
    assert outputs.zrf(one, other) == pytest.approx(1 - apart, abs=1e-9)
    assert 0 <= outputs.activation_distance(one, other) <= math.sqrt(2) + 1e-12
    assert 0 <= outputs.zrf(one, other) <= 1


@given(st.integers(0, 99), st.floats(-50, 50))
def test_distances_ignore_what_softmax_ignores(seed, shift):
    one, other = drawn(6, 4, seed).double(), drawn(6, 4, seed + 100).double()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    for metric in (outputs.activation_distance, outputs.zrf):
        wanted = pytest.approx(metric(one, other), abs=1e-9)
        assert metric(one + shift, other) == wanted
        assert metric(other, one) == wanted
        assert metric(one[order], other[order]) == wanted


@pytest.mark.parametrize("metric", [outputs.activation_distance, outputs.zrf])
def test_networks_that_cannot_be_compared_are_refused(metric):
    good = torch.zeros(3, 4)
    for one, other in ((good, good[:2]), (good, good[:, :3]), (good[0], good[0]),
                       (good[:0], good[:0]), (good[:, :0], good[:, :0])):  # fmt: skip
        with pytest.raises(InputError, match="twice the same"):
            metric(one, other)
    for broken in (good + NAN, good - INF):
        with pytest.raises(InputError, match="must be finite"):
            metric(broken, good)
        with pytest.raises(InputError, match="the other network's logits"):
            metric(good, broken)


def test_a_trained_network_is_further_from_a_random_one_than_from_itself(
    original, cfg, dataset, split
):
    from helpers.training import predict

    with torch.random.fork_rng():
        torch.manual_seed(0)
        stranger = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10)).to(cfg.device)
        logits = predict(original, split.forget, dataset)
        random = predict(stranger, split.forget, dataset)
    assert outputs.zrf(logits, logits) == 1
    assert outputs.zrf(logits, random) < 0.9
    assert outputs.activation_distance(logits, random) > 0.3
