"""The ten defects: each fails here when a library changes the behaviour that it rests on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import nbformat
import pytest

from helpers import defects, runs, tutorial

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="module")
def found(cfg, dataset):
    rows = defects.measure(cfg, dataset)
    assert len(rows) == 10
    names = [experiment.__name__ for experiment in defects.EXPERIMENTS]
    return {name: row.values for name, row in zip(names, rows, strict=True)}


def test_each_names_a_section_that_is_there(cfg, dataset, found):
    headings = {
        name[:2]: {line.lstrip("# ").split(" · ")[-1] for cell in nbformat.read(path, 4).cells
                   for line in cell.source.splitlines() if line.startswith("#")}
        for name in tutorial.SERIES for path in [NOTEBOOKS / f"{name}.ipynb"]
    }  # fmt: skip
    for defect in defects.measure(cfg, dataset):
        for where in defect.lesson.split("; "):
            notebook, heading = re.fullmatch(r"(\d\d), (.+)", where).groups()
            assert heading in headings[notebook], where


def test_1_another_normalisation_costs_accuracy(found):
    values = found["two_normalisations"]
    assert values["wrong"] < values["right"] - 0.05


def test_2_the_adapter_inside_attention_acts_only_when_merged(found):
    values = found["dead_adapter"]
    assert values["attached"] < 1e-5, "nn.MultiheadAttention now calls its output layer"
    assert values["gradient"] == 0
    assert values["merged"] > 0.1


def test_3_pruning_the_classifier_cuts_half_of_the_classes(found):
    values = found["pruned_classifier"]
    assert values["rows"] == 5
    assert values["after"] < 0.65 < values["before"]


def test_4_dropped_masks_are_refilled(found):
    values = found["dropped_masks"]
    assert values["finetune, default"] == values["merge, default"] == 0.5
    assert values["finetune, paper"] < 0.45
    assert values["merge, paper"] < 0.35


def test_5_zeros_save_nothing_and_removal_does(found):
    values = found["zeros_cost_the_same"]
    assert values["mask_structured macs"] == values["mask_structured activations"] == 1
    assert values["channels macs"] < 0.27
    assert values["channels activations"] < 0.55


def test_6_peft_saves_no_statistics(found):
    values = found["lost_statistics"]
    assert values["reloaded"] < values["trained"] - 0.1, "peft saves BatchNorm's buffers now"
    assert values["off"] < values["original"] - 0.1


def test_7_the_balanced_attack_takes_members_of_every_class(cfg, dataset, monkeypatch):
    """Data sets are stored class by class: the first members would be of one or two classes."""
    order = dataset.train.labels.argsort(stable=True)
    ordered = dataclasses.replace(dataset, train=dataset.train.where(order))
    assert ordered.train.labels.diff().min() >= 0
    network = runs.run(cfg.but(method="original"), dataset, progress=False).model(dataset)
    monkeypatch.setattr(defects, "_network", lambda cfg, dataset: network)
    mixed, sorted_ = (defects.unbalanced_attack(cfg, one).values for one in (dataset, ordered))
    assert sorted_["unbalanced out"] == pytest.approx(mixed["unbalanced out"], abs=0.01)
    assert sorted_["balanced out"] == pytest.approx(mixed["balanced out"], abs=0.1)


def test_7_more_members_make_a_constant_attack(found):
    values = found["unbalanced_attack"]
    assert values["unbalanced out"] <= values["balanced out"]
    assert values["share"] < 0.3, "a slice of a shuffled loader is no class"


def test_8_the_sign_is_flipped(found):
    values = found["flipped_sign"]
    assert values["UA"] < 0.1
    assert values["printed"] == 1 - values["UA"]


def test_9_a_single_setting_hides_the_spread(found):
    values = found["one_of_each"]
    assert values["lowest TA"] < values["highest TA"]


def test_10_overwriting_a_logit_passes_all_four_metrics(found):
    values = found["masked_logit"]
    assert values["UA"] == 1
    assert values["MIA"] > 0.95
    assert values["gap"] < 0.01
