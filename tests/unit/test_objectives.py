from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import edits, features, models, objectives, pruning, runs, training, unlearning
from helpers.config import InputError, Recipe
from helpers.objectives import OBJECTIVES, Task
from helpers.unlearning import METHODS, unlearn

LOGITS = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 0]])
LABELS = torch.tensor([0, 1, 2, 2])  # class 2 is to be forgotten
BASELINES = [n for n, m in METHODS.items() if m.family == "baseline"]
CHEATS = [n for n, m in METHODS.items() if m.family == "cheat"]


class Says(nn.Module):
    """Answers the same whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, images):
        return self.logits[: len(images)] + 0 * images.flatten(1).sum(1, keepdim=True)


def task(original=LOGITS, stranger=0 * LOGITS, strength=None):
    return Task(Says(original), Says(stranger), (2,), 3, strength)


def loss(name, share=0.0, logits=LOGITS, labels=LABELS, **known):
    model = Says(logits)
    return OBJECTIVES[name](task(**known))(model, torch.zeros(len(labels), 1), labels, share).item()


def ce(logits, labels):
    return F.cross_entropy(logits, labels).item()


def kl(wanted, found):
    p, q = wanted.softmax(1), found.softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean().item()


def test_each_loss_worked_out_by_hand():
    mine, others = ce(LOGITS[2:], LABELS[2:]), ce(LOGITS[:2], LABELS[:2])
    every = ce(LOGITS, LABELS)
    assert loss("cross_entropy") == pytest.approx(every)
    assert loss("gradient_ascent") == pytest.approx(-every)
    assert loss("neggrad_plus", strength=0.2) == pytest.approx(others - 0.2 * mine)
    assert loss("l1_sparse", strength=0.1) == pytest.approx(every + 0.1 * 8)
    assert loss("l1_sparse", share=0.75, strength=0.1) == pytest.approx(every + 0.1 * 8 / 4)


def test_random_labels_weigh_the_two_sides():
    """Of the images of class 2 both other classes are as likely: the label does not matter."""
    mine, others = ce(LOGITS[2:], torch.tensor([0, 1])), ce(LOGITS[:2], LABELS[:2])
    assert loss("random_labels", strength=3) == pytest.approx(others + 3 * mine)


@pytest.mark.parametrize(
    ("name", "default"),
    [("neggrad_plus", 0.05), ("random_labels", 1), ("l1_sparse", 1e-4), ("scrub", 0.5),
     ("bad_teacher", 1)],
)  # fmt: skip
def test_strengths_have_the_defaults_that_are_written(name, default):
    known = {"original": LOGITS.flip(0), "stranger": LOGITS.flip(1)}
    found, wanted, other = (loss(name, strength=s, **known) for s in (None, default, 2 * default))
    assert found == wanted != other


def test_what_is_frozen_adds_nothing_to_the_norm():
    model = Says(LOGITS)
    model.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
    norm = OBJECTIVES["l1_sparse"](task(strength=0.1))
    found = norm(model, torch.zeros(4, 1), LABELS, 0.0).item()
    assert found == pytest.approx(ce(LOGITS, LABELS) + 0.1 * 8)


def test_the_mean_over_a_single_image_is_its_own_loss():
    labels = torch.tensor([0, 1, 1, 2])
    found = loss("neggrad_plus", labels=labels, strength=1)
    assert found == pytest.approx(ce(LOGITS[:3], labels[:3]) - ce(LOGITS[3:], labels[3:]))


def test_the_teachers_worked_out_by_hand():
    teacher, stranger = torch.tensor([[1.0, 0, 0]]).expand(4, 3), torch.randn(4, 3)
    known = {"original": teacher, "stranger": stranger}
    kept = kl(teacher[:2], LOGITS[:2])
    assert loss("bad_teacher", strength=3, **known) == pytest.approx(
        kept + 3 * kl(stranger[2:], LOGITS[2:]), rel=1e-5
    )
    right = ce(LOGITS[:2], LABELS[:2])
    assert loss("scrub", share=0.5, strength=3, **known) == pytest.approx(kept + right)
    assert loss("scrub", share=0.4, strength=3, **known) == pytest.approx(
        kept + right - 3 * kl(teacher[2:], LOGITS[2:])
    )
    same = {"original": LOGITS, "stranger": LOGITS}
    assert loss("bad_teacher", **same) == pytest.approx(0, abs=1e-6), "both teachers are obeyed"


@given(st.integers(0, 99))
def test_random_labels_are_never_the_forgotten_class_and_change(seed):
    torch.manual_seed(seed)
    logits = torch.zeros(64, 3)
    logits[:, 2] = -50  # a label of class 2 would cost 50
    labels = torch.full((64,), 2)
    original = torch.zeros(64, 3)
    found = loss("random_labels", logits=logits, labels=labels, original=original)
    assert found == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-4)
    logits[:, 0] = 1
    first, second = (loss("random_labels", logits=logits, labels=labels) for _ in range(2))
    assert min(first, second) > 0.3
    assert max(first, second) < 1.4


@pytest.mark.parametrize("name", ["neggrad_plus", "random_labels", "scrub", "bad_teacher"])
@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [2, 2, 2, 2]], ids=["none", "all"])
def test_a_batch_of_one_kind_is_no_division_by_zero(name, labels):
    labels = torch.tensor(labels)
    assert torch.isfinite(torch.tensor(loss(name, labels=labels)))


def test_boundary_shrink_finds_the_class_across_the_nearest_boundary():
    """One pixel: class 2 lies between 0 on the left and 1 on the right."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-4.0], [4.0], [0.0]]))
        net[1].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    student, seen = Says(torch.tensor([[0.0, 9, 0], [9.0, 0, 0]])), []
    images = torch.tensor([0.05, -0.05]).view(2, 1, 1, 1)
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for strength, step in ((0.1, 0.1), (None, 0.5)):
        known = Task(net, net, (2,), 3, strength)
        found = OBJECTIVES["boundary_shrink"](known)(student, images, torch.tensor([2, 2]), 0.0)
        assert (seen[-1] - images).flatten().tolist() == pytest.approx([step, -step])
        assert found.item() == pytest.approx(ce(torch.tensor([[0.0, 9, 0]]), torch.tensor([1])))


def test_teachers_never_change(cfg, dataset, original):
    before = copy.deepcopy(original.state_dict())
    for name in ("scrub", "bad_teacher", "boundary_shrink"):
        unlearn(original, dataset, cfg.but(method=name, epochs=1))
    assert all(torch.equal(before[k], v) for k, v in original.state_dict().items())
    assert all(p.grad is None for p in original.parameters())


# ------------------------------------------------------------------------------------------------
# importance


def test_fisher_equals_one_backward_pass_an_image(dataset, split, original):
    part = split.forget.where(torch.arange(7))
    found = objectives.fisher(original, part, dataset)
    wanted = {n: torch.zeros_like(p) for n, p in original.named_parameters()}
    for i in range(7):
        one = part.where(torch.tensor([i]))
        original.zero_grad()
        F.cross_entropy(original(dataset.normalise(one.images)), one.labels).backward()
        for name, parameter in original.named_parameters():
            wanted[name] += parameter.grad.square() / 7
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-3, atol=1e-9) for n in wanted)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_only_the_most_important_weights_move(share, cfg, dataset, split, original):
    recipe = Recipe(epochs=2, lr=0.01, strength=share)
    one = cfg.but(method="salun")
    outcome = unlearn(original, dataset, one, recipe=recipe)
    slopes, moved = [], []
    F.cross_entropy(
        original(dataset.normalise(split.forget.images)), split.forget.labels
    ).backward()
    for before, after in zip(original.parameters(), outcome.model.parameters(), strict=True):
        slopes.append(before.grad.abs().flatten())
        moved.append((before != after).flatten())
    slopes, moved = torch.cat(slopes), torch.cat(moved)
    assert moved.double().mean().item() == pytest.approx(share, abs=0.01)
    assert slopes[moved].min() >= slopes[~moved].max() * 0.99


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_weights_that_the_loss_does_not_depend_on_never_move(share, dataset, split, original):
    with torch.no_grad():  # half of the filters are dead
        original.conv1.weight[:] = -original.conv1.weight.abs()
        original.layer1[0].conv1.weight[::2] = 0
        original.layer1[0].bn1.weight[::2] = original.layer1[0].bn1.bias[::2] = 0
    before = [p.detach().clone() for p in original.parameters()]
    slopes = objectives._gradients(original, [*original.parameters()], split.forget, dataset)
    hold, _ = objectives.saliency(original, split.forget, dataset, share)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(1)
    hold()
    moved = [new != old for new, old in zip(original.parameters(), before, strict=True)]
    flat = [torch.cat([t.flatten() for t in group]) for group in (moved, slopes)]
    assert (flat[1] == 0).double().mean() > 1 - share, "or nothing is tried here"
    assert torch.equal(flat[0], flat[1] != 0)


def test_the_share_that_may_move_is_no_weight_of_the_loss(cfg, dataset, original, monkeypatch):
    seen = []
    monkeypatch.setitem(OBJECTIVES, "random_labels", lambda task: seen.append(task.strength))
    recipe = Recipe(epochs=1, lr=0.01, strength=0.3)
    unlearning._objective(original, dataset, cfg.but(method="salun"), recipe)
    assert seen == [None]


def test_gradients_are_those_of_one_batch_and_of_the_network_as_it_answers(
    dataset, split, original, monkeypatch
):
    parameters = [*original.parameters()]
    wanted = objectives._gradients(original, parameters, split.forget, dataset)
    training_, before = copy.deepcopy(original).train(), models.fingerprint(original)
    monkeypatch.setattr(objectives, "at_most", lambda *_: len(split.forget) // 2 + 1)
    found = objectives._gradients(training_, [*training_.parameters()], split.forget, dataset)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, found, strict=True))
    assert models.fingerprint(training_) == before, "statistics of BatchNorm, too"


def test_importance_is_that_of_the_network_as_it_answers(dataset, split):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    model.to(dataset.mean.device)
    part = split.retain.sample(16)
    wanted = objectives.fisher(model.eval(), part, dataset)
    found = objectives.fisher(model.train(), part, dataset)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("share", [0.3, 1e-9])
def test_exactly_the_share_of_weights_may_move(share, dataset, split, original):
    every = [*original.parameters()]
    before = [p.detach().clone() for p in every]
    slopes = objectives._gradients(original, every, split.forget, dataset)
    kinds = torch.cat([s.flatten().abs() for s in slopes])
    hold, _ = objectives.saliency(original, split.forget, dataset, share)
    with torch.no_grad():
        for parameter in every:
            parameter.add_(1)
    hold()
    moved = sum(int((new != old).sum()) for new, old in zip(every, before, strict=True))
    wanted = max(1, round(share * len(kinds)))
    last = kinds.sort(descending=True).values[wanted - 1]
    assert moved == int((kinds >= last).sum()), "ties move together"
    assert moved - wanted < 5, "or all are ties"


def test_of_each_weight_a_value_and_whether_it_stays_are_kept(dataset, split, original):
    _, kept = objectives.saliency(original, split.forget, dataset, 0.5)
    assert kept == 5 * models.count_parameters(original)  # float32 and bool


def test_teachers_answer_as_in_evaluation_and_never_learn(cfg, dataset, original, monkeypatch):
    tasks = []
    monkeypatch.setitem(OBJECTIVES, "bad_teacher", tasks.append)
    unlearning._objective(original.train(), dataset, cfg.but(method="bad_teacher"), Recipe(1, 0.1))
    for teacher in (tasks[0].original, tasks[0].stranger):
        assert not any(module.training for module in teacher.modules())
        assert not any(p.requires_grad for p in teacher.parameters())
    assert original.training
    assert all(p.requires_grad for p in original.parameters())


def test_the_bad_teacher_is_not_what_the_network_started_as(cfg, dataset, original):
    """A network trained with the run's own seed is no stranger to its initial weights."""
    start = unlearning.new_model(cfg, dataset)
    stranger = unlearning._stranger(original, dataset, cfg)
    assert not torch.equal(stranger.conv1.weight, start.conv1.weight)


def test_salun_composes_with_masks_and_not_with_adapters(cfg, dataset, original):
    names = models.layers(original).prunable
    recipe = Recipe(epochs=2, lr=0.01, strength=0.3)
    one = cfg.but(method="prune_finetune+salun")
    outcome = unlearn(original, dataset, one, recipe=recipe)
    assert pruning.sparsity(outcome.model, names) == 0.5
    pairs = zip(original.parameters(), outcome.model.parameters(), strict=True)
    moved = torch.cat([((old != new) & (new != 0)).flatten() for old, new in pairs])
    # the share counts what is not masked
    kept = torch.cat([(new != 0).flatten() for new in outcome.model.parameters()])
    assert moved.sum().item() == pytest.approx(0.3 * kept.sum().item(), rel=0.02)
    # every slope of an adapter's first matrix is zero at the start, and so would be the threshold
    for name in ("lora+salun", "prunelora+salun"):
        with pytest.raises(InputError, match="FIRST that trains the weights: finetune, prune_fin"):
            unlearn(original, dataset, cfg.but(method=name))


def test_without_training_there_is_no_adapter(cfg, dataset, original):
    assert unlearning.method("prunelora+ssd").adapt == "full"
    assert "adapter" not in unlearning.method("prunelora+ssd").summary
    names = {"prunelora+ssd": ("rank", False), "prunelora": ("rank", True)}
    for name, (field, used) in names.items():
        assert (field in runs.identity(cfg.but(method=name), dataset.fingerprint)) == used
    with pytest.raises(InputError, match="a FIRST that prunes; nothing trains"):
        unlearning.method("lora+ssd")


@pytest.mark.parametrize(
    "name",
    ["neggrad_plus", "gradient_ascent", "salun", "prototype", "ssd", "prunelora, all images"],
)
def test_what_an_earlier_request_deleted_is_never_seen_again(name, cfg, dataset, original):
    """Other images in the place of the deleted ones change nothing."""
    name, _, images = name.partition(", ")
    one = cfg.but(method=name, forget=3, earlier=(8,), epochs=1)
    if images:  # those of the class too, but not of the one before
        one = one.but(mask_data="all")
    gone = (dataset.train.labels == 8).view(-1, 1, 1, 1)
    blank = dataclasses.replace(dataset.train, images=dataset.train.images.where(~gone, 0))
    other = dataclasses.replace(dataset, train=blank)
    models_of = [unlearn(original, one_of, one).model for one_of in (dataset, other)]
    assert models.fingerprint(models_of[0]) == models.fingerprint(models_of[1])
    assert models.fingerprint(models_of[0]) != models.fingerprint(original)
    assert all(bool(p.isfinite().all()) for p in models_of[0].parameters())


def test_a_share_that_makes_no_sense_is_refused(cfg, dataset, original):
    with pytest.raises(InputError, match=r"strength = 0\.0.*the share of weights that may move"):
        unlearn(original, dataset, cfg.but(method="salun"), recipe=Recipe(1, 0.1, strength=0))
    with pytest.raises(InputError, match=r"strength = -1.*a finite number ≥ 0"):
        Recipe(1, 0.1, strength=-1)


# ------------------------------------------------------------------------------------------------
# edits


def test_a_masked_logit_changes_nothing_else(cfg, dataset, original):
    outcome = unlearn(original, dataset, cfg.but(method="logit_mask"))
    before, after = (training.predict(m, dataset.test, dataset) for m in (original, outcome.model))
    rest = [c for c in range(10) if c != cfg.forget]
    assert torch.equal(before[:, rest], after[:, rest])
    assert bool((after[:, cfg.forget] == edits.MASKED).all())
    assert bool((after.softmax(1)[:, cfg.forget] == 0).all())


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_names_the_class_no_more_and_keeps_every_feature(name, cfg, dataset, original):
    run = runs.run(cfg.but(method=name), dataset, progress=False)
    cheat = run.model(dataset)
    assert run.metrics["UA"] > 0.9
    assert run.metrics["TA"] > 0.9
    kept = (features.penultimate(m, dataset.test, dataset) for m in (original, cheat))
    assert torch.equal(*kept)


def test_the_prototype_of_each_class_is_its_own(dataset, original):
    network, gone = copy.deepcopy(original), (3, 5)
    edits.prototype(network, dataset.split(gone), dataset)
    for c in gone:
        mean = features.penultimate(original, dataset.split(c).forget, dataset).mean(0)
        row = network.fc.weight[c].cpu()  # where the features are
        assert torch.cosine_similarity(row, -mean, dim=0) > 0.9999


def test_the_row_of_the_prototype_worked_out_by_hand(dataset, original):
    network, split = copy.deepcopy(original), dataset.split((3, 5))
    with torch.no_grad():
        network.fc.bias.copy_(torch.arange(1.0, 11.0))
        network.fc.weight[3], network.fc.bias[5] = 100, -100  # what is there does not count
    network.train()  # as PyTorch makes it
    assert edits.prototype(network, split, dataset) == len(split.forget)
    others = [c for c in range(10) if c not in (3, 5)]
    mean = features.penultimate(original, dataset.split(3).forget, dataset).mean(0)
    wanted = -mean / mean.norm() * original.fc.weight[others].norm(dim=1).max().cpu()
    assert torch.allclose(network.fc.weight[3].cpu(), wanted, atol=1e-5)
    assert network.fc.bias[3] == network.fc.bias[5] == 1
    pairs = zip(original.buffers(), network.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "statistics of BatchNorm, too"


def test_dampening_never_makes_a_weight_larger(dataset, split, original):
    network = copy.deepcopy(original)
    edits.dampen(network, split, dataset, 0.5)
    pairs = [*zip(network.parameters(), original.parameters(), strict=True)]
    assert all(bool((new.abs() <= old.abs() * (1 + 1e-6)).all()) for new, old in pairs)
    assert any(bool((new != old).any()) for new, old in pairs)


def test_a_classifier_without_bias_cannot_be_taped(dataset, split):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10, bias=False))
    for edit in (edits.logit_mask, edits.prototype):
        with pytest.raises(InputError, match="a linear layer with a bias"):
            edit(model, split, dataset)


def test_negation_twice_is_nothing_and_once_is_the_first_layer(dataset, split, original):
    before = copy.deepcopy(original.state_dict())
    edits.negate(original, split, dataset)
    after = original.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == ["conv1.weight"]
    assert torch.equal(after["conv1.weight"], -before["conv1.weight"])
    edits.negate(original, split, dataset)
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())


def test_dampening_follows_its_definition(dataset, split, original):
    every = dataset.train
    mine, all_ = (objectives.fisher(original, part, dataset) for part in (split.forget, every))
    before = {n: p.detach().clone() for n, p in original.named_parameters()}
    passes = edits.dampen(original, split, dataset, 4.0)
    assert passes == 3 * (len(every) + len(split.forget))
    changed = 0
    for name, weight in original.named_parameters():
        chosen = mine[name] > 4 * all_[name]
        assert torch.equal(weight[~chosen], before[name][~chosen])
        wanted = before[name] * all_[name] / mine[name]
        assert torch.allclose(weight[chosen], wanted[chosen], rtol=1e-3, atol=1e-8)
        changed += int(chosen.sum())
    assert 0 < changed < models.count_parameters(original)


def test_dampening_by_itself_changes_weights_however_large_the_class(dataset, original):
    ten = dataset.split(3)
    half = dataclasses.replace(ten, retain=ten.retain.sample(1))
    for split in (ten, half):  # a tenth of all images, most of them
        network = copy.deepcopy(original)
        edits.dampen(network, split, dataset)
        pairs = zip(network.parameters(), original.parameters(), strict=True)
        assert any(bool((new != old).any()) for new, old in pairs)


def test_dampening_by_more_than_any_weight_can_have_is_by_half_of_that(
    dataset, split, original, caplog
):
    most, networks = len(dataset.train) / len(split.forget), {}
    for strength in (most / 2, most * 0.999, most, 100):
        networks[strength] = copy.deepcopy(original)
        edits.dampen(networks[strength], split, dataset, strength)
        assert ("no weight is" in caplog.text) == (strength >= most)
    half, below, *impossible = (list(n.parameters()) for n in networks.values())
    assert not all(map(torch.equal, half, below))
    assert all(all(map(torch.equal, half, one)) for one in impossible)
    with pytest.raises(InputError, match=r"strength = 0 is not allowed.*above 0"):
        edits.dampen(original, split, dataset, 0)


# ------------------------------------------------------------------------------------------------
# in the table of methods


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_leaves_the_original_and_forgets_something(name, cfg, dataset, original_run):
    run = runs.run(cfg.but(method=name), dataset, progress=False)
    assert run.metrics["UA"] > original_run.metrics["UA"] + 0.3
    assert run.record["macs"] > 0
    again = runs.run(cfg.but(method=name), dataset, progress=False)
    assert again.from_disk
    assert again.row == run.row


FRAMES = ["prune_finetune", "lora", "prunelora", "prunelora_channels"]
COMPOSED = [(frame, name) for frame in FRAMES for name in BASELINES
            if not (METHODS[frame].adapt == "lora" and METHODS[name].salient)
            and (frame, name) != ("lora", "ssd")]  # fmt: skip


@pytest.mark.parametrize(("frame", "name"), COMPOSED)
def test_every_baseline_composes(frame, name, cfg, dataset, original):
    one = cfg.but(method=f"{frame}+{name}", epochs=1)
    unlearning.validate(one, dataset)
    outcome = unlearn(original, dataset, one)
    names = models.layers(original).prunable
    assert training.predict(outcome.model, dataset.test, dataset).isfinite().all()
    if frame in ("prune_finetune", "prunelora"):
        assert pruning.sparsity(outcome.model, names) == pytest.approx(0.5, abs=1e-6)
    trains = METHODS[name].objective != "none"
    assert (outcome.patch is not None) == ("lora" in frame and trains)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prunelora+magic", r"method = 'prunelora\+magic' .* SECOND of finetune_sgd, "),
        ("+scrub", r"method = '\+scrub' .* FIRST of finetune, "),
        ("scrub+prunelora", "FIRST.SECOND with FIRST of finetune, .*lora, prunelora"),
        ("prunelora+retrain", "SECOND of finetune_sgd, "),
        ("prunelora+head_only", "head_only with a FIRST that has no adapters"),
        ("lora+scrub+ssd", r"method = 'lora\+scrub\+ssd' .* SECOND of finetune_sgd, "),
    ],
)
def test_impossible_compositions_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        unlearning.method(name)


def test_a_composition_takes_the_recipe_of_its_objective(cfg):
    assert cfg.but(method="prunelora+scrub").unlearn == cfg.but(method="scrub").unlearn


def test_another_original_is_another_run(cfg, dataset):
    """Training seed and unlearning seed are two things."""
    one, other = cfg.but(method="finetune"), cfg.but(method="finetune", original_seed=1)
    assert runs.folder_of(one, dataset) != runs.folder_of(other, dataset)
    assert runs.folder_of(one, dataset) == runs.folder_of(one.but(original_seed=0), dataset)
    start = runs.run(cfg.but(method="original", seed=1), dataset, progress=False).model(dataset)
    wanted = unlearn(start, dataset, one).model
    found = runs.run(other, dataset, progress=False).model(dataset)
    assert all(
        torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True)
    )
