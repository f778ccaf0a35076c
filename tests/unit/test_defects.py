"""The ten defects: each fails here when a library changes the behaviour that it rests on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

from helpers import defects, models, outputs, pruning, runs, training, tutorial

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# the numbers in each sentence, in their order
TOLD = {
    "two_normalisations": "{right:.1%} {wrong:.1%}",
    "dead_adapter": "{attached:.0e} {gradient:.0f} {merged:.1f}",
    "pruned_classifier": "{rows} 10 {before:.1%} {after:.1%}",
    "dropped_masks": "{finetune, default:.0%} {finetune, paper:.0%} {merge, default:.0%} "
                     "{merge, paper:.0%}",
    "zeros_cost_the_same": "{mask_structured macs:.2f} {mask_structured activations:.2f} "
                           "{channels macs:.2f} {channels activations:.2f}",
    "lost_statistics": "{trained:.1%} {reloaded:.1%} {off:.1%} {original:.1%}",
    "unbalanced_attack": "{unbalanced out:.0%} {balanced out:.0%} {unbalanced f:.0%} "
                         "{balanced f:.0%} {share:.0%}",
    "flipped_sign": "{UA:.0%} {printed:.0%}",
    "one_of_each": "3 5 1 3 3 {lowest UA:.1%} {highest UA:.1%} {lowest TA:.1%} {highest TA:.1%}",
    "masked_logit": "{UA:.0%} {MIA:.0%} {points:.2f}",
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(cfg, dataset):
    rows = defects.measure(cfg, dataset)
    names = [experiment.__name__.removeprefix("_") for experiment in defects.EXPERIMENTS]
    return dict(zip(names, rows, strict=True))


@pytest.fixture(scope="module")
def found(measured):
    return {name: row.values for name, row in measured.items()}


@pytest.mark.parametrize("name", TOLD)
def test_each_sentence_tells_the_numbers_that_were_measured(name, measured):
    values, effect = measured[name].values, measured[name].effect
    wanted = TOLD[name].format_map(values | {"points": 100 * values.get("gap", 0)})
    assert re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?%?", effect) == wanted.split()


def test_each_names_a_section_that_is_there(measured):
    headings = {
        name[:2]: {line.lstrip("# ").split(" · ")[-1] for cell in nbformat.read(path, 4).cells
                   for line in cell.source.splitlines() if line.startswith("#")}
        for name in tutorial.SERIES for path in [NOTEBOOKS / f"{name}.ipynb"]
    }  # fmt: skip
    assert measured.keys() == TOLD.keys()
    for defect in measured.values():
        for where in defect.lesson.split("; "):
            notebook, heading = re.fullmatch(r"(\d\d), (.+)", where).groups()
            assert heading in headings[notebook], where


def test_1_another_normalisation_costs_accuracy(found, original, dataset, split):
    values, part = found["two_normalisations"], split.test_retain
    assert values["wrong"] < values["right"] - 0.05
    once = sum(a / b for a, b in ((2471, 2023), (2435, 1994), (2616, 2010))) / 3  # one channel
    for name, factor in (("right", 1.0), ("wrong", once)):
        logits = training.predict(original, part, dataset.with_std(torch.tensor(factor)))
        assert values[name] == outputs.accuracy(logits, part.labels)


def test_2_the_adapter_inside_attention_acts_only_when_merged(found):
    values = found["dead_adapter"]
    assert values["attached"] < 1e-5, "nn.MultiheadAttention now calls its output layer"
    assert values["gradient"] == 0
    assert values["merged"] > 0.1


def test_3_pruning_the_classifier_cuts_half_of_the_classes(found):
    values = found["pruned_classifier"]
    assert values["rows"] == 5
    assert values["after"] < 0.65 < values["before"]


def test_4_dropped_masks_are_refilled(cfg, dataset, found):
    values = found["dropped_masks"]
    assert values["finetune, default"] == values["merge, default"] == 0.5
    assert values["finetune, paper"] < 0.45
    assert values["merge, paper"] < 0.35
    one = cfg.but(method="prunelora", targets="blocks")
    one = one.but(mode="paper", lr=one.unlearn.lr)
    model = runs.run(one, dataset, progress=False).model(dataset)
    adapted = models.layers(model).paper_adaptable  # what is not adapted keeps its zeros
    assert values["merge, paper"] == pruning.sparsity(model, adapted)


def test_5_zeros_save_nothing_and_removal_does(found):
    values = found["zeros_cost_the_same"]
    assert values["mask_structured macs"] == values["mask_structured activations"] == 1
    assert values["channels macs"] < 0.27
    assert values["channels activations"] < 0.55


def test_6_looks_at_retained_test_images_alone(cfg, dataset, split, monkeypatch):
    parts, predict = [], training.predict
    monkeypatch.setattr(training, "predict", lambda *a: (parts.append(a[1]), predict(*a))[1])
    defects._lost_statistics(cfg, dataset)
    assert [len(part) for part in parts] == [len(split.test_retain)] * 4 != [len(split.retain)] * 4


def test_6_peft_saves_no_statistics(found):
    values = found["lost_statistics"]
    assert values["original"] == found["two_normalisations"]["right"]
    assert values["reloaded"] < values["trained"] - 0.1, "peft saves BatchNorm's buffers now"
    assert values["off"] < values["original"] - 0.1


def test_7_the_balanced_attack_takes_members_of_every_class(cfg, dataset, monkeypatch):
    """Data sets are stored class by class: the first members would be of one or two classes."""
    order = dataset.train.labels.argsort(stable=True)
    ordered = dataclasses.replace(dataset, train=dataset.train.where(order))
    assert ordered.train.labels.diff().min() >= 0
    network = runs.run(cfg.but(method="original"), dataset, progress=False).model(dataset)
    monkeypatch.setattr(defects, "_network", lambda cfg, dataset: network)
    mixed, sorted_ = (defects._unbalanced_attack(cfg, one).values for one in (dataset, ordered))
    assert sorted_["unbalanced out"] == pytest.approx(mixed["unbalanced out"], abs=0.01)
    assert sorted_["balanced out"] == pytest.approx(mixed["balanced out"], abs=0.1)


def test_7_more_members_make_a_constant_attack(found):
    values = found["unbalanced_attack"]
    assert values["unbalanced out"] <= values["balanced out"]
    assert values["share"] < 0.3, "a slice of a shuffled loader is no class"


def test_8_the_sign_is_flipped(found, original_run):
    values = found["flipped_sign"]
    assert values["UA"] == original_run.metrics["UA"]
    assert values["UA"] < 0.1
    assert values["printed"] == 1 - values["UA"]


def test_9_a_single_setting_hides_the_spread(found):
    values = found["one_of_each"]
    assert values["lowest TA"] < values["highest TA"]


def test_9_covers_every_seed_three_ranks_and_three_sparsities(cfg, dataset, monkeypatch):
    asked = []

    def run(one, dataset, progress):
        asked.append((one.method, one.seed, one.rank, one.sparsity))
        n = len(asked)
        return SimpleNamespace(metrics={"UA": n / 10, "UA_test": 0, "TA": (50 - n) / 50, "RA": 0})

    monkeypatch.setattr(defects.runs, "run", run)
    values = defects._one_of_each(cfg.but(seeds=3), dataset).values
    settings = [(0, 8, 0.5), (1, 8, 0.5), (2, 8, 0.5), (0, 1, 0.5), (0, 4, 0.5), (0, 8, 0.25),
                (0, 8, 0.75)]  # fmt: skip
    assert asked == [("prunelora", *setting) for setting in settings]
    assert values == {"lowest UA": 0.1, "highest UA": 0.7, "lowest TA": 0.86, "highest TA": 0.98}


def test_10_overwriting_a_logit_passes_all_four_metrics(found):
    values = found["masked_logit"]
    assert values["UA"] == 1
    assert values["MIA"] > 0.95
    assert values["gap"] < 0.01
