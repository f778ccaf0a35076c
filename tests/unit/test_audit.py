from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers import attacks, audit, outputs, statistics
from helpers.config import InputError

LABELS = torch.tensor([0, 1, 2, 1])
LOGITS = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 5, 0], [2, 1, 0]])


def test_values_worked_out_by_hand():
    assert outputs.accuracy(LOGITS, LABELS) == 0.5
    e5, e2, e1 = math.exp(5), math.exp(2), math.exp(1)
    sure = e5 / (e5 + 2)
    wanted = [sure, sure, 1 / (e5 + 2), e1 / (e2 + e1 + 1)]
    assert outputs.confidence(LOGITS, LABELS).tolist() == pytest.approx(wanted, rel=1e-12)
    assert outputs.losses(LOGITS, LABELS).tolist() == pytest.approx([-math.log(p) for p in wanted])
    assert outputs.label_histogram(LOGITS).tolist() == [0.5, 0.5, 0.0]


def test_perfect_constant_and_random_predictions():
    labels = torch.arange(1000) % 10
    perfect = torch.nn.functional.one_hot(labels, 10).float()
    constant = torch.zeros(1000, 10)
    constant[:, 7] = 1
    random = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    assert outputs.accuracy(perfect, labels) == 1
    assert outputs.accuracy(constant, labels) == 0.1
    assert 0.07 < outputs.accuracy(random, labels) < 0.13
    assert outputs.label_histogram(constant).tolist() == [0] * 7 + [1, 0, 0]


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 99))
def test_confidence_and_loss_are_one_thing(classes, n, seed):
    draw = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, classes, generator=draw), torch.arange(n) % classes
    p = outputs.confidence(logits, labels)
    assert bool(((p >= 0) & (p <= 1)).all())
    assert torch.allclose(-p.log(), outputs.losses(logits, labels), atol=1e-9)
    assert outputs.label_histogram(logits).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(0, 3), torch.zeros(0).long()),
        (torch.zeros(3, 3), torch.zeros(2).long()),
        (torch.zeros(3), torch.zeros(3).long()),
        (torch.tensor([[0.0, float("nan")]]), torch.tensor([0])),
        (torch.tensor([[0.0, float("inf")]]), torch.tensor([0])),
    ],
)
@pytest.mark.parametrize("metric", [outputs.accuracy, outputs.confidence, outputs.losses])
def test_predictions_that_make_no_sense_are_refused(metric, logits, labels):
    with pytest.raises(InputError, match="logits"):
        metric(logits, labels)


# ------------------------------------------------------------------------------------------------
# the membership attack


def scores(mean, n, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 0.02, n)).clamp(0, 1)


def test_the_attack_on_groups_that_can_be_told_apart():
    members, strangers = scores(0.95, 300, 0), scores(0.5, 200, 1)
    assert attacks.mia_efficacy(members, strangers, scores(0.95, 50, 2)) == 0
    assert attacks.mia_efficacy(members, strangers, scores(0.5, 50, 3)) == 1


def test_the_attack_equals_its_definition(monkeypatch):
    from sklearn.svm import SVC

    members, strangers, forget = scores(0.8, 40, 0), scores(0.78, 40, 1), scores(0.79, 60, 2)
    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(torch.cat([members, strangers])[:, None].numpy(), [1] * 40 + [0] * 40)
    wanted = float(np.mean(attack.predict(forget[:, None].numpy()) == 0))
    found = attacks.mia_efficacy(members, strangers, forget)  # equal sizes: all are used
    assert found == wanted
    assert 0 < wanted < 1, "or the test would say nothing"


def test_the_attack_is_balanced(monkeypatch):
    import sklearn.svm

    seen = {}

    class Spy(sklearn.svm.SVC):
        def fit(self, x, y):
            seen["truth"] = np.asarray(y)
            return super().fit(x, y)

    monkeypatch.setattr(sklearn.svm, "SVC", Spy)
    attacks.mia_efficacy(scores(0.9, 500, 0), scores(0.9, 70, 1), scores(0.9, 5, 2))
    assert np.bincount(seen["truth"]).tolist() == [70, 70]


def test_shuffled_membership_gives_no_more_than_chance():
    draws = []
    for seed in range(20):
        everyone = scores(0.7, 900, seed)
        draws.append(attacks.mia_efficacy(everyone[:400], everyone[400:800], everyone[800:], seed))
    assert abs(np.mean(draws) - 0.5) < 3 * np.std(draws) / math.sqrt(len(draws)) + 0.02


def test_the_attack_refuses_empty_groups_and_broken_scores():
    good = scores(0.5, 10, 0)
    for groups in ((good[:0], good, good), (good, good[:0], good), (good, good, good[:0]),
                   (good, good * float("nan"), good)):  # fmt: skip
        with pytest.raises(InputError, match="at least one, all finite"):
            attacks.mia_efficacy(*groups)


# ------------------------------------------------------------------------------------------------
# comparison with the oracle

ORACLE = {"UA": 1.0, "RA": 0.98, "TA": 0.96, "MIA": 1.0}


def test_gap_and_tow_worked_out_by_hand():
    found = {"UA": 0.9, "RA": 0.99, "TA": 0.94, "MIA": 0.8}
    assert audit.average_gap(found, ORACLE) == pytest.approx((0.1 + 0.01 + 0.02 + 0.2) / 4)
    assert audit.tow(found, ORACLE) == pytest.approx(0.9 * 0.99 * 0.98)
    assert audit.average_gap(ORACLE, ORACLE) == 0
    assert audit.tow(ORACLE, ORACLE) == 1


def test_the_gaps_of_the_paper_are_found_again():
    """ResNet-50, 5 epochs: arXiv 2411.11907, table 1."""
    retrain = {"UA": 1.0, "MIA": 1.0, "RA": 0.9802, "TA": 0.9670}
    prunelora = {"UA": 0.9978, "MIA": 0.9768, "RA": 0.9796, "TA": 0.9518}
    finetune = {"UA": 1.0, "MIA": 1.0, "RA": 0.9252, "TA": 0.8829}
    assert 100 * audit.average_gap(prunelora, retrain) == pytest.approx(1.03, abs=0.01)
    assert 100 * audit.average_gap(finetune, retrain) == pytest.approx(3.48, abs=0.01)


def test_total_variation_worked_out_by_hand():
    assert outputs.total_variation([0.5, 0.5, 0], [0, 0.5, 0.5]) == 0.5
    assert outputs.total_variation([1, 0], [0, 1]) == 1
    assert outputs.total_variation([0.3, 0.7], [0.3, 0.7]) == 0
    for one, other in (([1.0], [0.5, 0.5]), ([0.5, 0.4], [0.5, 0.5])):
        with pytest.raises(InputError, match="equal sizes"):
            outputs.total_variation(one, other)


def row(method, seed, ua, ta=0.9):
    return {"method": method, "seed": seed, "UA": ua, "RA": 1.0, "TA": ta, "MIA": 1.0}


def test_every_run_is_compared_with_the_oracles_of_other_seeds():
    rows = [
        row("retrain", 0, 1.0, 0.90),
        row("retrain", 1, 1.0, 0.94),
        row("finetune", 0, 0.9, 0.92),
    ]
    table = audit.compare(rows)
    assert table["Avg Gap"].tolist() == pytest.approx([0.01, 0.01, (0.1 + 0.02) / 4])
    assert table["ToW"].tolist() == pytest.approx([0.96, 0.96, 0.9 * 0.98])


def test_a_single_oracle_has_no_gap_and_none_is_an_error():
    table = audit.compare([row("retrain", 0, 1.0), row("finetune", 0, 0.9)])
    assert math.isnan(table["Avg Gap"][0])
    assert table["Avg Gap"][1] == pytest.approx(0.025)
    with pytest.raises(InputError, match="one must be retrain"):
        audit.compare([row("finetune", 0, 0.9)])


def test_the_summary_has_mean_and_sample_deviation():
    table = audit.compare(
        [row("retrain", s, 1.0) for s in (0, 1)]
        + [row("finetune", s, u) for s, u in ((0, 0.8), (1, 0.9), (2, 1.0))]
    )
    found = statistics.summary(table)
    assert list(found.index) == ["retrain", "finetune"]
    assert found.loc["finetune", ("UA", "mean")] == pytest.approx(0.9)
    assert found.loc["finetune", ("UA", "sd")] == pytest.approx(0.1)
    assert found[("n", "")].tolist() == [2, 3]


def test_paired_differences_equal_scipys_interval():
    values = {"a": [0.1, 0.3, 0.2, 0.5], "b": [0.2, 0.25, 0.1, 0.3]}
    rows = [(m, s, v) for m, column in values.items() for s, v in enumerate(column)]
    table = pd.DataFrame(rows, columns=["method", "seed", "Avg Gap"])
    wanted = stats.ttest_rel(values["a"], values["b"]).confidence_interval(0.9)
    mean, low, high = statistics.paired_difference(table, "a", "b", level=0.9)
    assert mean == pytest.approx(0.0625)
    assert (low, high) == pytest.approx((wanted.low, wanted.high))
    one = table[table.seed == 0]
    assert statistics.paired_difference(one, "a", "b") == (pytest.approx(-0.1), -math.inf, math.inf)
    with pytest.raises(InputError, match="common seed"):
        statistics.paired_difference(table, "a", "c")


def test_evaluation_measures_each_part_once_and_the_right_one(dataset, split, original):
    """A network that answers 3 for everything."""

    class Three(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), 3), 10).float().to(x.device)

    found = audit.evaluate(Three(), dataset, 3)
    assert (found["UA"], found["UA_test"], found["RA"], found["TA"]) == (0, 0, 0, 0)
    assert found["predicted"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    other = audit.evaluate(Three(), dataset, 4)
    share = float((split.retain.labels == 3).double().mean())
    assert share == 0
    kept = dataset.split(4).retain.labels
    assert (other["UA"], other["RA"]) == (1, pytest.approx(float((kept == 3).double().mean())))
