from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers import attacks, outputs
from helpers.config import InputError


def made(n, seed=0, classes=5, scale=2.0, shift=0.0):
    """Random predictions; ``shift`` raises the logit of the right class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=draw)
    logits = scale * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    return logits + shift * torch.nn.functional.one_hot(labels, classes), labels


def normal(mean, n, seed, sd=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, sd, n))


# ------------------------------------------------------------------------------------------------
# the five scores

P = [[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]
BY_HAND = (torch.tensor(P, dtype=torch.float64).log(), torch.tensor([0, 1, 2]))


def test_scores_worked_out_by_hand():
    log = math.log
    wanted = {
        "correctness": [1, 0, 1],
        "confidence": [0.7, 0.2, 0.5],
        "entropy": [-0.7 * log(0.7) - 0.2 * log(0.2) - 0.1 * log(0.1)] * 2 + [1.5 * log(2)],
        "m_entropy": [
            -0.3 * log(0.7) - 0.2 * log(0.8) - 0.1 * log(0.9),
            -0.8 * log(0.2) - 0.7 * log(0.3) - 0.1 * log(0.9),
            -0.5 * log(0.5) - 2 * 0.25 * log(0.75),
        ],
    }
    for kind, values in wanted.items():
        found = attacks.score(*BY_HAND, kind)
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx(values, rel=1e-12), kind
    assert torch.allclose(attacks.score(*BY_HAND, "prob"), torch.tensor(P, dtype=torch.float64))


def test_the_mistake_of_the_published_code_worked_out_by_hand():
    """Labels 0 and 1 occur, so columns 0 and 1 are turned in every row, and column 2 in none."""
    log, (logits, _) = math.log, BY_HAND
    found = attacks.score(logits[:2], torch.tensor([0, 1]), "m_entropy", compat=True)
    wanted = -0.3 * log(0.7) - 0.8 * log(0.2) - 0.1 * log(0.1)
    assert found.tolist() == pytest.approx([wanted] * 2, rel=1e-12)
    alone = attacks.score(logits[:1], torch.tensor([0]), "m_entropy", compat=True)
    assert alone.item() == pytest.approx(-0.3 * log(0.7) - 0.2 * log(0.2) - 0.1 * log(0.1))


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def plain_log(p):
    """The logarithm of the published code: log 1e-30 for what is 0 in single precision."""
    seen = p.astype(np.float32) > 0
    return np.where(seen, np.log(np.where(seen, p, 1)), math.log(1e-30))


def published(logits, labels, kind):
    """The published definition in numpy, line by line."""
    p, labels = softmax(logits.numpy()), labels.numpy()
    if kind == "correctness":
        return (p.argmax(1) == labels).astype(float)
    if kind == "confidence":
        return p[np.arange(len(p)), labels]
    if kind == "entropy":
        return -np.where(p > 0, p * plain_log(p), 0).sum(1)
    if kind == "prob":
        return p
    weights, logs = p.copy(), plain_log(p)
    weights[:, labels] = (1 - p)[:, labels]
    logs[:, labels] = plain_log(p)[:, labels]
    return -(weights * logs).sum(1)


def intended(logits, labels, kind):
    """The same with the formula of Song and Mittal, image by image."""
    if kind != "m_entropy":
        return published(logits, labels, kind)
    rows = []
    for p, y in zip(softmax(logits.numpy()), labels.tolist(), strict=True):
        total = -(1 - p[y]) * math.log(max(p[y], 1e-30))
        for i in range(len(p)):
            total -= p[i] * math.log(max(1 - p[i], 1e-30)) if i != y else 0
        rows.append(total)
    return np.array(rows)


@pytest.mark.parametrize(("compat", "definition"), [(True, published), (False, intended)])
@pytest.mark.parametrize("kind", attacks.SCORES)
def test_score_and_share_equal_an_independent_implementation(kind, compat, definition):
    from sklearn.svm import SVC

    members, strangers, forget = made(90, 0, shift=2), made(70, 1), made(50, 2, shift=1)
    forget = forget[0], forget[1] * 0 + 3  # one class, as in class unlearning
    groups = [definition(*group, kind) for group in (members, strangers, forget)]
    for group, wanted in zip((members, strangers, forget), groups, strict=True):
        assert np.abs(attacks.score(*group, kind, compat).numpy() - wanted).max() < 1e-9
    columns = [group.reshape(len(group), -1) for group in groups]
    machine = SVC(C=3, gamma="auto", kernel="rbf")
    machine.fit(np.concatenate(columns[:2]), np.concatenate([np.ones(90), np.zeros(70)]))
    wanted = 1 - machine.predict(columns[2]).mean()
    found = attacks.membership(members, strangers, forget, kind, balanced=False, compat=compat)
    assert found == pytest.approx(wanted, abs=1e-9)


def test_the_published_mistake_changes_the_score_but_only_of_one_kind():
    group = made(60)
    for kind in attacks.SCORES:
        same = torch.equal(attacks.score(*group, kind), attacks.score(*group, kind, compat=True))
        assert same == (kind != "m_entropy")


def test_saturated_predictions_stay_finite():
    logits, labels = torch.tensor([[800.0, 0, -800], [0, 800, 0]]), torch.tensor([0, 0])
    for kind in attacks.SCORES:
        for compat in (False, True):
            assert bool(attacks.score(logits, labels, kind, compat).isfinite().all())
    assert attacks.score(logits, labels, "m_entropy").tolist() == pytest.approx(
        [0, 60 * math.log(10)]
    )
    found = attacks.score(logits, labels, "m_entropy", compat=True).tolist()
    assert found == pytest.approx([0, 30 * math.log(10)])  # column 0 turned: (1 - p_0) log p_0
    assert attacks.scaled_logit(logits, labels).tolist() == [800, -800]
    small = torch.tensor([[0.0, 200]])  # e^-200 is 0 in single precision, as published, not in ours
    found = attacks.score(small, torch.tensor([0]), "m_entropy", compat=True).item()
    assert found == pytest.approx(30 * math.log(10))


predictions = st.builds(
    made,
    n=st.integers(1, 30),
    seed=st.integers(0, 999),
    classes=st.integers(2, 7),
    scale=st.floats(0, 3),
)


@given(predictions, st.floats(-50, 50), st.sampled_from(attacks.SCORES), st.booleans())
def test_a_constant_added_to_a_row_changes_nothing(group, constant, kind, compat):
    logits, labels = group
    moved = logits + constant * torch.arange(len(logits))[:, None] / len(logits)
    one, other = (attacks.score(x, labels, kind, compat) for x in (logits, moved))
    assert torch.allclose(one, other, atol=1e-9) or kind == "correctness"  # but for ties
    assert torch.allclose(
        attacks.scaled_logit(logits, labels), attacks.scaled_logit(moved, labels), atol=1e-9
    )


@given(predictions)
def test_scores_keep_to_their_ranges(group):
    found = {kind: attacks.score(*group, kind) for kind in attacks.SCORES}
    classes = group[0].shape[1]
    assert bool((found["entropy"] > -1e-12).all())
    assert bool((found["entropy"] < math.log(classes) + 1e-12).all())
    assert bool((found["m_entropy"] > -1e-12).all())
    assert torch.allclose(found["prob"].sum(1), torch.ones(len(group[0]), dtype=torch.float64))
    assert set(found["correctness"].tolist()) <= {0.0, 1.0}
    odds = attacks.scaled_logit(*group)
    assert torch.allclose(odds.sigmoid(), found["confidence"], atol=1e-12)


@given(predictions, st.sampled_from(attacks.SCORES), st.integers(0, 99))
def test_exchanging_images_exchanges_their_scores(group, kind, seed):
    logits, labels = group
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    found = attacks.score(logits[order], labels[order], kind)
    assert torch.allclose(found, attacks.score(logits, labels, kind)[order], atol=1e-12)
    pairs = zip(logits.split(1), labels.split(1), strict=True)
    one_by_one = [attacks.score(*pair, kind) for pair in pairs]
    assert torch.allclose(torch.cat(one_by_one), attacks.score(logits, labels, kind), atol=1e-12)


def test_with_the_mistake_a_score_depends_on_the_other_labels():
    logits, labels = made(1)
    beside = torch.cat([logits, logits]), torch.cat([labels, (labels + 1) % 5])
    alone = attacks.score(logits, labels, "m_entropy", compat=True)
    assert not torch.allclose(attacks.score(*beside, "m_entropy", compat=True)[:1], alone)
    assert torch.allclose(attacks.score(*beside, "m_entropy")[:1], attacks.score(logits, labels,
                          "m_entropy"))  # fmt: skip


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0).long(), "N at least 1"),
        (torch.zeros(3, 3), torch.zeros(2).long(), "logits and labels"),
        (torch.zeros(3, 3), torch.zeros(3, 1).long(), "logits and labels"),
        (torch.zeros(3), torch.zeros(3).long(), "logits and labels"),
        (torch.zeros(3, 1), torch.zeros(3).long(), "C at least 2"),
        (torch.tensor([[0.0, float("nan")]]), torch.tensor([0]), "every logit must be finite"),
        (torch.tensor([[0.0, float("inf")]]), torch.tensor([0]), "every logit must be finite"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "whole numbers from 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "whole numbers from 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "whole numbers from 0 to 2"),
    ],
)
def test_predictions_that_make_no_sense_are_refused(logits, labels, message):
    for kind in attacks.SCORES:
        with pytest.raises(InputError, match=message):
            attacks.score(logits, labels, kind)
    with pytest.raises(InputError, match=message):
        attacks.scaled_logit(logits, labels)


def test_an_unknown_score_is_refused():
    with pytest.raises(InputError, match="known are correctness, confidence, entropy"):
        attacks.score(*BY_HAND, "loss")


# ------------------------------------------------------------------------------------------------
# the membership attack


@pytest.mark.parametrize("kind", attacks.SCORES)
@pytest.mark.parametrize("compat", [False, True])
def test_shuffled_membership_is_not_better_than_chance(kind, compat):
    group = made(800, 7, shift=1)
    halves = [(group[0][part], group[1][part]) for part in (slice(400), slice(400, 800))]
    scores = attacks.attack_scores(*halves, kind, compat=compat)
    assert [len(s) for s in scores] == [200, 200]
    low, high = attacks.auc_interval(*scores, level=0.99)
    assert low < 0.5 < high
    assert low < attacks.roc(*scores).auc < high
    assert high - low < 0.2, "or the test would say nothing"


def test_without_a_word_the_mistakes_of_the_published_code_are_not_made():
    groups = made(100, 0, shift=1), made(100, 1), made(30, 2)
    kept = {c: attacks.attack_scores(*groups[:2], "m_entropy", compat=c) for c in (False, True)}
    plain = attacks.attack_scores(*groups[:2], "m_entropy")
    assert all(map(torch.equal, plain, kept[False]))
    assert not torch.equal(plain[0], kept[True][0])
    found = attacks.membership(*groups, "m_entropy")
    assert found == attacks.membership(*groups, "m_entropy", compat=False)


@pytest.mark.parametrize("kind", attacks.SCORES)
def test_members_that_stand_out_are_found(kind):
    curve = attacks.roc(*attacks.attack_scores(made(400, 0, shift=8), made(300, 1), kind))
    assert curve.auc > 0.75
    sure = [made(200, seed, shift=shift) for seed, shift in ((2, 8), (3, 8), (4, 0))]
    unseen = attacks.membership(sure[0], sure[2], made(100, 5), kind)
    assert unseen > attacks.membership(sure[0], sure[2], sure[1], kind) + 0.3


def confidences(mean, n, seed):
    """Confidences around a mean, with a spread of 0.02."""
    return normal(mean, n, seed, 0.02).clamp(0, 1)


def share_unseen(*groups, **how):
    return attacks.called_unseen(*groups, **how).double().mean().item()


def test_the_classic_attack_equals_its_definition():
    from sklearn.svm import SVC

    members, strangers, forget = (
        confidences(0.8, 40, 0),
        confidences(0.78, 40, 1),
        confidences(0.79, 60, 2),
    )
    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(torch.cat([members, strangers])[:, None].numpy(), [1] * 40 + [0] * 40)
    wanted = float(np.mean(attack.predict(forget[:, None].numpy()) == 0))
    assert share_unseen(members, strangers, forget) == wanted, "equal sizes: all are used"
    assert 0 < wanted < 1, "or the test would say nothing"


def test_the_classic_attack_on_groups_that_can_be_told_apart_and_others():
    members, strangers = confidences(0.95, 300, 0), confidences(0.5, 200, 1)
    assert share_unseen(members, strangers, confidences(0.95, 50, 2)) == 0
    assert share_unseen(members, strangers, confidences(0.5, 50, 3)) == 1
    shares = []
    for seed in range(20):
        everyone = confidences(0.7, 900, seed)
        groups = everyone[:400], everyone[400:800], everyone[800:]
        shares.append(share_unseen(*groups, seed))
    assert abs(np.mean(shares) - 0.5) < 3 * np.std(shares) / math.sqrt(len(shares)) + 0.02


def test_the_balanced_attack_is_the_one_of_the_classic_numbers():
    groups = [
        made(n, seed, shift=shift) for n, seed, shift in ((200, 0, 1), (80, 1, 0), (60, 2, 0))
    ]
    wanted = share_unseen(*(outputs.confidence(*group) for group in groups), 3)
    assert attacks.membership(*groups, seed=3) == wanted
    assert 0 < wanted < 1, "or the test would say nothing"


def test_balanced_cuts_the_groups_and_unbalanced_does_not(monkeypatch):
    import sklearn.svm

    seen = []

    class Spy(sklearn.svm.SVC):
        def fit(self, x, y):
            seen.append((np.bincount(y).tolist(), x.shape[1]))
            return super().fit(x, y)

    monkeypatch.setattr(sklearn.svm, "SVC", Spy)
    for kind in ("confidence", "prob"):
        for balanced in (True, False):
            attacks.membership(made(50), made(30), made(1), kind, balanced=balanced)
    several = attacks.DRAWS * [[30, 30]]
    assert [groups for groups, _ in seen] == 2 * [*several, [30, 50]]
    assert [columns for _, columns in seen] == [1] * (len(seen) // 2) + [5] * (len(seen) // 2)


def test_one_image_decides_about_all_others_and_so_several_attacks_are_averaged():
    """Where the only doubtful member is drawn, certainty is the mark of strangers; else of nobody.

    Of 100 members it is among the 50 drawn half of the time.
    """
    members, strangers, forget = torch.ones(100), torch.ones(50), torch.ones(30)
    members[17] = 0
    with_it = [bool((attacks._cut(members, strangers, one)[0] == 0).any()) for one in range(400)]
    assert abs(np.mean(with_it) - 0.5) < 0.1
    votes = attacks.called_unseen(members, strangers, forget, 3, draws=40)
    assert votes.shape == (40, 30)
    assert votes.all(1).tolist() == votes.any(1).tolist() == with_it[120:160]
    assert {*with_it[120:160]} == {True, False}, "or the test would say nothing"


def test_each_attack_has_a_seed_of_its_own():
    groups = [confidences(mean, n, n) for mean, n in ((0.72, 300), (0.7, 60), (0.71, 50))]
    votes = attacks.called_unseen(*groups, seed=5)
    assert len(votes) == attacks.DRAWS > 1
    for row, one in enumerate(votes):
        alone = attacks.called_unseen(*groups, 5 * attacks.DRAWS + row, draws=1)[0]
        assert torch.equal(one, alone), "so that neighbouring seeds have no attack in common"
    assert votes.any(0).sum() > votes.all(0).sum(), "or the seeds would be one"


@pytest.mark.parametrize(
    ("sizes", "balanced", "wanted"),
    [
        ((30, 20), True, attacks.DRAWS), ((20, 30), True, attacks.DRAWS), ((30, 30), True, 1),
        ((30, 20), False, 1),
        # nine of a third of the images cost as much as one of all; four of a half
        ((60, 33), True, 9), ((60, 50), True, 4), ((60, 51), True, 1), ((300, 120), True, 1),
    ],
)  # fmt: skip
def test_attacks_are_as_many_as_cost_no_more_than_a_large_one(sizes, balanced, wanted, monkeypatch):
    monkeypatch.setattr(attacks, "MOST", 100)
    groups = [normal(0, n, n) for n in (*sizes, 10)]
    assert len(attacks.called_unseen(*groups, balanced=balanced)) == wanted
    assert len(attacks.called_unseen(*groups, balanced=balanced, draws=2)) == 2


def test_the_attack_leaves_the_global_random_state_alone():
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    groups = made(40, 0), made(30, 1)
    first = attacks.membership(*groups, made(9, 2), seed=1)
    interval = attacks.auc_interval(*attacks.attack_scores(*groups, seed=1), seed=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002
    assert first == attacks.membership(*groups, made(9, 2), seed=1)
    assert interval == attacks.auc_interval(*attacks.attack_scores(*groups, seed=1), seed=1)


def test_the_attack_refuses_too_few_and_broken_scores():
    good = normal(0, 10, 0)
    for groups in ((good[:0], good, good), (good, good[:0], good), (good, good, good[:0]),
                   (good, good * float("nan"), good)):  # fmt: skip
        with pytest.raises(InputError, match="at least one, all finite"):
            share_unseen(*groups)
    for groups in ((good[:9], good, good), (good, good[:9], good)):
        with pytest.raises(InputError, match="'9 scores' is not allowed: at least 10"):
            share_unseen(*groups)
    with pytest.raises(InputError, match="the same for all three groups"):
        share_unseen(good.view(5, 2).repeat(2, 1), good, good)
    with pytest.raises(InputError, match=r"^draws = 0 is not allowed: at least 1$"):
        attacks.called_unseen(good, good, good, draws=0)
    with pytest.raises(InputError, match="non_members = '9 scores'"):
        attacks.membership(made(10), made(9), made(10))
    with pytest.raises(InputError, match="logits and labels"):
        attacks.membership(made(10), made(10), made(0))
    with pytest.raises(InputError, match="at least 20"):
        attacks.attack_scores(made(19), made(20))


@pytest.mark.parametrize("wrong", [0, 1, 5])
@pytest.mark.parametrize("size", [50, 317])
def test_where_nothing_tells_the_groups_apart_nobody_is_called_unseen(size, wrong):
    # the same shares of both scores: every image votes, and the votes cancel up to rounding
    group = torch.ones(size).double()
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        members, strangers = group.clone(), group.clone()
        for some in (members, strangers):
            some[torch.randperm(size, generator=draw)[:wrong]] = 0
        assert share_unseen(members, strangers, torch.tensor([0.0, 1, 0.5])) == 0


def test_the_seed_chooses_what_the_published_attack_learns_from(monkeypatch):
    monkeypatch.setattr(attacks, "MOST", 60)
    groups = [normal(shift, size, [1, size]) for shift, size in ((1, 90), (0, 50), (0.5, 400))]
    found = [share_unseen(*groups, seed, balanced=False) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len({*found}) > 1


def test_an_attack_that_learned_nothing_is_at_chance():
    logits = torch.tensor([[5.0, 0], [0, 5]]).repeat(100, 1)
    group = logits, torch.tensor([0, 0]).repeat(100)  # half of the answers are right
    for seed in range(20):
        members, strangers = attacks.attack_scores(group, group, "correctness", seed=seed)
        assert len(members) == len(strangers) == 100
        assert attacks.roc(members, strangers).auc == pytest.approx(0.5, abs=0.12)
    right = logits, torch.tensor([0, 1]).repeat(100)
    members, strangers = attacks.attack_scores(right, right, "correctness")
    assert members.tolist() == strangers.tolist() == [0] * 100


# ------------------------------------------------------------------------------------------------
# ROC


def test_a_curve_worked_out_by_hand():
    curve = attacks.roc(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([0.8, 0.3]))
    assert curve.fpr.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.tpr.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert curve.auc == pytest.approx((1 + 0.75 + 0.5) / 3)  # 0.9 wins 2, 0.8 wins 1.5, 0.4 wins 1
    assert [curve.tpr_at(x) for x in (0, 0.01, 0.5, 1)] == pytest.approx([1 / 3, 1 / 3, 1, 1])


def test_no_operating_point_is_left_out():
    curve = attacks.roc(torch.tensor([3.0, 2, 1]), torch.tensor([3.0, 2, 1]))
    assert [curve.tpr_at(x) for x in (0.3, 0.4, 0.7)] == pytest.approx([0, 1 / 3, 2 / 3])


def test_constant_perfect_and_reversed_scores():
    one, zero = torch.ones(30), torch.zeros(20)
    assert attacks.roc(one, torch.ones(20)).auc == 0.5
    assert attacks.roc(one, torch.ones(20)).tpr_at(0.01) == 0
    assert attacks.auc_interval(one, torch.ones(20)) == (0.5, 0.5)
    assert attacks.roc(one, zero).auc == 1
    assert attacks.auc_interval(one, zero) == (1, 1)
    for n in (49, 60, 115):
        assert attacks.auc_interval(torch.arange(n) + n, torch.arange(n)) == (1, 1)
    assert attacks.roc(zero, one).auc == 0


@given(st.integers(1, 25), st.integers(1, 25), st.integers(0, 99), st.integers(1, 9))
def test_the_area_is_mann_and_whitneys_statistic(p, q, seed, levels):
    draw = np.random.default_rng(seed)
    positive, negative = (torch.from_numpy(draw.integers(0, levels, n) / 1.0) for n in (p, q))
    wanted = stats.mannwhitneyu(positive, negative).statistic / (p * q)
    curve = attacks.roc(positive, negative)
    assert curve.auc == pytest.approx(wanted)
    assert attacks.roc(negative, positive).auc == pytest.approx(1 - wanted)
    assert bool((curve.fpr.diff() >= 0).all() and (curve.tpr.diff() >= 0).all())
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = float(stats.norm.cdf(1 / math.sqrt(2)))  # P(N(1, 1) > N(0, 1))
    hits, turns = 0, 200
    for seed in range(turns):
        pair = normal(1, 50, [1, seed]), normal(0, 60, [2, seed])
        low, high = attacks.auc_interval(*pair, level=0.9, repeats=200, seed=seed)
        hits += low < truth < high
    assert 0.83 < hits / turns < 0.95


def test_curves_of_broken_groups_are_refused():
    good = normal(0, 10, 0)
    for call in (attacks.roc, attacks.auc_interval):
        with pytest.raises(InputError, match=r"negative = '0 scores'.*at least one, all finite"):
            call(good, good[:0])
        with pytest.raises(InputError, match=r"positive = '10 scores'.*all finite"):
            call(good / 0, good)
        with pytest.raises(InputError, match=r"positive = \(5, 2\)"):
            call(good.view(5, 2), good)
    with pytest.raises(InputError, match="at least 10"):
        attacks.auc_interval(good[:9], good)
    with pytest.raises(InputError, match="level = 1"):
        attacks.auc_interval(good, good, level=1)
    with pytest.raises(InputError, match="repeats = 99"):
        attacks.auc_interval(good, good, repeats=99)
    with pytest.raises(InputError, match=r"fpr = 1\.5"):
        attacks.roc(good, good).tpr_at(1.5)


# ------------------------------------------------------------------------------------------------
# epsilon


def test_epsilon_worked_out_by_hand():
    """Best threshold: 9 of 10 unlearned at 1, 2 of 10 oracles: FNR 0.1, FPR 0.2."""
    model, oracle = torch.tensor([0.0] + [1.0] * 9), torch.tensor([0.0] * 8 + [1.0] * 2)
    wanted = min(math.log(0.8 / 0.1), math.log(0.9 / 0.2))
    assert attacks.worst_case_epsilon(model, oracle, delta=0) == pytest.approx(wanted)
    wanted = min(math.log(0.7 / 0.1), math.log(0.8 / 0.2))
    assert attacks.worst_case_epsilon(model, oracle, delta=0.1) == pytest.approx(wanted)


@pytest.mark.parametrize("n", [10, 115, 500])
def test_epsilon_of_the_same_and_of_disjoint_samples(n):
    sample = normal(0, n, 0)
    assert attacks.worst_case_epsilon(sample, sample) == 0
    assert attacks.worst_case_epsilon(sample, sample, delta=0) == pytest.approx(0, abs=1e-12)
    assert attacks.worst_case_epsilon(torch.ones(n), torch.ones(n)) == 0
    ceiling = math.log(2 * n * (1 - 1e-5) - 1)
    for shift in (-100, 100):
        found = attacks.worst_case_epsilon(sample + shift, sample)
        assert found == pytest.approx(ceiling, rel=1e-9)


def test_epsilon_of_unequally_many_disjoint_scores():
    found = attacks.worst_case_epsilon(torch.zeros(10), torch.ones(40), delta=0)
    assert found == pytest.approx(min(math.log((1 - 1 / 80) * 20), math.log((1 - 1 / 20) * 80)))


def test_epsilon_grows_with_the_distance():
    model, oracle = normal(0, 400, 0), normal(0, 400, 1)
    found = [attacks.worst_case_epsilon(model + shift, oracle) for shift in (0, 0.5, 1, 2, 4, 20)]
    assert found == sorted(found)
    assert found[0] < 0.4 < 1 < found[3] < found[-1]


@given(st.integers(10, 30), st.integers(10, 30), st.integers(0, 999), st.floats(0, 3))
def test_epsilon_has_two_directions_and_knows_only_the_order(n, m, seed, shift):
    one, other = normal(shift, n, seed).round(decimals=1), normal(0, m, seed + 1).round(decimals=1)
    found = attacks.worst_case_epsilon(one, other)
    assert 0 <= found < math.log(2 * max(n, m))
    for pair in ((other, one), (-one, -other), (one.exp(), other.exp())):
        assert attacks.worst_case_epsilon(*pair) == pytest.approx(found, abs=1e-9)
    brute = 0.0
    for t in torch.cat([one, other]).tolist():
        for flip in (False, True):
            fnr, fpr = float((one < t).double().mean()), float((other >= t).double().mean())
            fnr, fpr = (1 - fnr, 1 - fpr) if flip else (fnr, fpr)
            fnr, fpr = max(fnr, 0.5 / n), max(fpr, 0.5 / m)
            tops = 1 - 1e-5 - fpr, 1 - 1e-5 - fnr
            if min(tops) > 0:
                brute = max(brute, min(math.log(tops[0] / fnr), math.log(tops[1] / fpr)))
    assert found == pytest.approx(brute, abs=1e-9)


def test_epsilon_and_its_quality_refuse_what_makes_no_sense():
    good = normal(0, 10, 0)
    with pytest.raises(InputError, match=r"model_scores = '9 scores'.*at least 10"):
        attacks.worst_case_epsilon(good[:9], good)
    with pytest.raises(InputError, match=r"oracle_scores = '10 scores'.*all finite"):
        attacks.worst_case_epsilon(good, good * float("nan"))
    with pytest.raises(InputError, match="delta = 1"):
        attacks.worst_case_epsilon(good, good, delta=1)


# ------------------------------------------------------------------------------------------------
# example by example


def test_the_scaled_logit_worked_out_by_hand():
    wanted = [math.log(0.7 / 0.3), math.log(0.2 / 0.8), 0]
    assert attacks.scaled_logit(*BY_HAND).tolist() == pytest.approx(wanted, abs=1e-12)
    far = torch.tensor([[1e30, 0, 0], [0, 1e30, 0]])
    assert attacks.scaled_logit(far, torch.tensor([0, 0])).tolist() == pytest.approx([1e30, -1e30])


def shadows(networks, examples, mean, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 1.5, (networks, examples)))


def test_u_lira_equals_scipy():
    kept, never, target = shadows(6, 9, 1, 0), shadows(5, 9, 0, 1), shadows(3, 9, 0, 2)
    wanted = stats.norm(kept.mean(0), np.std(kept.numpy(), axis=0, ddof=1)).logpdf(target)
    wanted -= stats.norm(never.mean(0), np.std(never.numpy(), axis=0, ddof=1)).logpdf(target)
    found = attacks.u_lira(kept, never, target)
    assert found.shape == (3, 9)
    assert found.dtype == torch.float64
    assert np.abs(found.numpy() - wanted).max() < 1e-9
    assert torch.allclose(attacks.u_lira(never, kept, target), -found)
    assert torch.allclose(attacks.u_lira(kept + 5, never + 5, target + 5), found)


def test_u_lira_finds_what_was_kept_and_nothing_where_there_is_nothing():
    kept, never = shadows(20, 50, 3, 0), shadows(20, 50, 0, 1)
    found = attacks.u_lira(kept, never, torch.cat([shadows(8, 50, 3, 2), shadows(8, 50, 0, 3)]))
    assert attacks.roc(found[:8].flatten(), found[8:].flatten()).auc > 0.9
    same = shadows(20, 50, 0, 4)
    found = attacks.u_lira(same, never, torch.cat([shadows(8, 50, 0, 5), shadows(8, 50, 0, 3)]))
    low, high = attacks.auc_interval(found[:8].flatten(), found[8:].flatten(), level=0.99)
    assert low < 0.5 < high


def test_u_lira_of_equal_shadows_is_finite():
    kept, never = torch.ones(4, 2), torch.zeros(4, 2)
    found = attacks.u_lira(kept, never, torch.tensor([[1.0, 0.0]]))
    assert found.tolist() == [pytest.approx([0.5e4, -0.5e4])]  # one, in floors of 0.01, squared
    assert attacks.u_lira(kept, kept, kept).tolist() == [[0, 0]] * 4


def plain_klom(unlearned, oracles):
    """The definition with numpy and scipy, example by example."""
    found = []
    for p, q in zip(unlearned.T.numpy(), oracles.T.numpy(), strict=True):
        p, q = np.clip(p, -100, 100), np.clip(q, -100, 100)
        edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), 21)
        p, q = (np.histogram(x, edges)[0] / len(x) for x in (p, q))
        found.append(stats.entropy(p, np.where(p > 0, np.maximum(q, 1e-5), q)))
    return found


def test_klom_equals_an_independent_implementation():
    for networks, mean in ((10, 0), (40, 2), (100, 300)):
        pair = shadows(networks, 30, mean, 0), shadows(networks + 5, 30, 0, 1)
        found = attacks.klom(*pair)
        assert found.shape == (30,)
        assert found.tolist() == pytest.approx(plain_klom(*pair), abs=1e-9)


def test_klom_worked_out_by_hand():
    """Two bins: half of the unlearned in each, all oracles in the lower one."""
    unlearned = torch.tensor([0.0] * 5 + [1.0] * 5)[:, None]
    found = attacks.klom(unlearned, torch.zeros(10, 1), bins=2, floor=1e-3).item()
    wanted = 0.5 * math.log(0.5 / (1 / 1.001)) + 0.5 * math.log(0.5 / (1e-3 / 1.001))
    assert found == pytest.approx(wanted)


def test_klom_between_the_same_and_the_ceiling():
    same = shadows(2000, 20, 0, 0)
    assert attacks.klom(same, same).abs().max() < 1e-12
    assert attacks.klom(torch.ones(10, 3), torch.ones(12, 3)).abs().max() < 1e-12
    assert attacks.klom(same, shadows(2000, 20, 0, 1)).mean() < 0.1
    ceiling = math.log(1e5)
    near = 0.1 * shadows(50, 20, 0, 2)  # each group within one bin
    found = attacks.klom(near + 50, near - 50)
    assert found.tolist() == pytest.approx([ceiling] * 20, abs=1e-4)
    beyond = attacks.klom(torch.full((10, 1), 1e9), torch.full((10, 1), 1e8))
    assert beyond.item() == pytest.approx(0, abs=1e-12), "both are clipped to the same margin"


def test_klom_of_a_few_networks_needs_a_band():
    """Two small samples of one distribution: far from 0, and less so with more networks."""
    found = [
        attacks.klom(shadows(n, 100, 0, 0), shadows(n, 100, 0, 1)).mean().item()
        for n in (10, 40, 400)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2


def test_example_by_example_refuses_what_makes_no_sense():
    good = shadows(10, 5, 0, 0)
    bad = good.clone()
    bad[0, 0] = math.nan
    with pytest.raises(InputError, match=r"unlearned = '3 scores'.*at least 4"):
        attacks.u_lira(good[:3], good, good)
    with pytest.raises(InputError, match=r"oracles = '3 scores'.*at least 4"):
        attacks.u_lira(good, good[:3], good)
    with pytest.raises(InputError, match="target = '0 scores'"):
        attacks.u_lira(good, good, good[:0])
    with pytest.raises(InputError, match=r"oracles = '9 scores'.*at least 10"):
        attacks.klom(good, good[:9])
    for call in (lambda x: attacks.u_lira(good, x, good), lambda x: attacks.klom(good, x)):
        with pytest.raises(InputError, match="all finite"):
            call(bad)
        with pytest.raises(InputError, match="equally many in unlearned, oracles"):
            call(good[:, :4])
        with pytest.raises(InputError, match=r"oracles = \(10,\) is not allowed: \(N, C\)"):
            call(good[:, 0])
    with pytest.raises(InputError, match="floor = 0"):
        attacks.u_lira(good, good, good, floor=0)
    for setting in ({"bins": 1}, {"clip": 0.0}, {"floor": 0.0}):
        with pytest.raises(InputError, match=next(iter(setting))):
            attacks.klom(good, good, **setting)


@pytest.mark.parametrize("balanced", [True, False])
def test_large_groups_are_sampled_in_their_proportions(monkeypatch, balanced):
    from sklearn.svm import SVC

    fitted, fit = [], SVC.fit

    def watched(self, scores, truth):
        fitted.append((int((truth == 1).sum()), int((truth == 0).sum())))
        return fit(self, scores, truth)

    draw = torch.Generator().manual_seed(0)
    members, others = (torch.rand(n, generator=draw) ** k for n, k in ((8000, 0.5), (4000, 2)))
    forget = torch.linspace(0, 1, 500)
    whole = share_unseen(members[:5000], others[:2500], forget, balanced=balanced)
    monkeypatch.setattr(attacks, "MOST", 2000)
    monkeypatch.setattr(SVC, "fit", watched)
    sampled = share_unseen(members, others, forget, balanced=balanced)
    assert fitted == [(2000, 2000 if balanced else 1000)], "one attack: it is long enough"
    assert abs(whole - sampled) < 0.05
    share_unseen(members[:1900], others[:30], forget, balanced=False)
    assert fitted[-1] == (1900, 30), "small groups are used whole"
    share_unseen(members, others[:20], forget, balanced=False)
    assert fitted[-1] == (2000, attacks.LEAST), "not five of 20"
