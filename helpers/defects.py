"""The defects of the published code, each as a short experiment with its measured effect.

Every function makes one mistake on purpose, beside the correction that the default mode has, and
returns the numbers of both.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers import audit, edits, models, outputs, pruning, runs, training, turns, unlearning
from helpers.config import RunConfig
from helpers.data import Dataset

Experiment = Callable[[RunConfig, Dataset], "Defect"]


@dataclass(frozen=True)
class Defect:
    """One mistake and what it does.

    Attributes:
        mistake: What the published code does.
        values: Name -> number, measured here.
        effect: The numbers in a sentence.
        lesson: Notebook and section that treat it.

    Source: the published code of arXiv 2411.11907.
    Lesson: 04_class_unlearning, "Limits and pitfalls".
    """

    mistake: str
    values: dict[str, float]
    effect: str
    lesson: str


def measure(cfg: RunConfig, dataset: Dataset) -> list[Defect]:
    """Do all ten experiments.

    Args:
        cfg: Data, network and settings; the runs it needs are done or read back.
        dataset: Its data.

    Returns:
        Ten rows, numbered as they come.

    Source: the published code of arXiv 2411.11907.
    Lesson: 04_class_unlearning, "Limits and pitfalls".
    """
    return [experiment(cfg, dataset) for experiment in EXPERIMENTS]


def _network(cfg: RunConfig, dataset: Dataset, method: str = "original") -> nn.Module:
    return runs.run(cfg.but(method=method), dataset, progress=False).model(dataset)


def _accuracy(model: nn.Module, dataset: Dataset, classes: str, cfg: RunConfig) -> float:
    part = getattr(dataset.split(cfg.forgotten), classes)
    return outputs.accuracy(training.predict(model, part, dataset), part.labels)


def _two_normalisations(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Evaluate a network with another normalisation than it was trained with.

    Source: std .2023/.1994/.2010 in training, .2471/.2435/.2616 afterwards, in the published code.
    """
    model = _network(cfg, dataset)
    factor = runs.PAPER_STD if len(dataset.std) == 3 else runs.PAPER_STD.mean()
    right = _accuracy(model, dataset, "test_retain", cfg)
    wrong = _accuracy(model, dataset.with_std(factor), "test_retain", cfg)
    return Defect(
        "trains with one normalisation, evaluates with another",
        {"right": right, "wrong": wrong},
        f"test accuracy of the untouched original {right:.1%} → {wrong:.1%}",
        "01, Limits and pitfalls",
    )


def _dead_adapter(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Adapt the output layer of ``nn.MultiheadAttention``.

    Source: LoRA on ``out_proj`` in the published code.
    """
    from peft import LoraConfig, get_peft_model

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    with turns.own_random_state():
        torch.default_generator.manual_seed(0)
        block, tokens = Block(), torch.randn(2, 5, 8)
        targets = LoraConfig(r=2, target_modules=["out_proj"], init_lora_weights=False)
        adapted = get_peft_model(copy.deepcopy(block), targets)
    before = block(tokens)
    attached = (adapted(tokens) - before).abs().max().item()
    if (output := adapted(tokens).sum()).requires_grad:  # nothing of it does
        output.backward()
    learned = [p.grad for n, p in adapted.named_parameters() if "lora_B" in n]
    gradient = max((g.abs().max().item() for g in learned if g is not None), default=0.0)
    merged = (adapted.merge_and_unload()(tokens) - before).abs().max().item()
    return Defect(
        "LoRA on nn.MultiheadAttention.out_proj, which that module never calls",
        {"attached": attached, "gradient": gradient, "merged": merged},
        f"effect on the output {attached:.0e}, gradient {gradient:.0f}; once merged {merged:.1f}",
        "03, Limits and pitfalls",
    )


def _pruned_classifier(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Prune the classifier like any other layer.

    Source: ``ln_structured(heads.head, dim=0)`` in the published code.
    """
    model = _network(cfg, dataset)
    head = models.layers(model).head
    before = _right(model, dataset)
    masks = pruning.mask_structured(model, 0.5, [head])
    rows = int((~masks[head].any(1)).sum())
    after = _right(model, dataset)
    return Defect(
        "prunes the classifier by rows",
        {"rows": rows, "before": before, "after": after},
        f"{rows} of {len(dataset.classes)} classes cut; accuracy {before:.1%} → {after:.1%}",
        "02, Limits and pitfalls",
    )


def _right(model: nn.Module, dataset: Dataset) -> float:
    return outputs.accuracy(training.predict(model, dataset.test, dataset), dataset.test.labels)


def _dropped_masks(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Drop the masks after pruning, then train and merge.

    Source: ``prune.remove`` in the published code.
    """
    values = {}
    for name, method in (("finetune", "prune_finetune"), ("merge", "prunelora")):
        for mode in ("default", "paper"):
            # the same layers and learning rate in both modes
            lr = cfg.but(method=method, mode="default").unlearn.lr
            one = cfg.but(method=method, mode=mode, targets="blocks", lr=lr, pruning=None)
            model = _network(one, dataset, method)
            layers = models.layers(model)
            names = layers.prunable if method == "prune_finetune" else layers.paper_adaptable
            values[f"{name}, {mode}"] = pruning.sparsity(model, names)
    return Defect(
        "drops the masks before training and merging",
        values,
        f"sparsity {values['finetune, default']:.0%} → {values['finetune, paper']:.0%} by "
        f"fine-tuning, {values['merge, default']:.0%} → {values['merge, paper']:.0%} by the merge",
        "02, Zeros grow back; 04, The naive merge",
    )


def _zeros_cost_the_same(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Compare what zeroed and what removed channels save.

    Source: the cost claims of arXiv 2411.11907, table 1.
    """
    model = unlearning.new_model(cfg, dataset)
    values = {}
    for kind in ("mask_structured", "channels"):
        before, after = pruning.prune(model, 0.5, kind).ledger
        for name in ("macs", "activations"):
            values[f"{kind} {name}"] = after[name] / before[name]
    return Defect(
        "counts zeroed channels as saved",
        values,
        f"multiply-accumulates × {values['mask_structured macs']:.2f}, memory for the backward "
        f"pass × {values['mask_structured activations']:.2f}; removed: × "
        f"{values['channels macs']:.2f}, × {values['channels activations']:.2f}",
        "02, Channels that are gone",
    )


def _lost_statistics(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Let BatchNorm move while only the adapter is saved.

    Source: ``model.train()`` and ``save_pretrained`` in the published code; peft saves no buffers.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    model = _network(cfg, dataset)
    layers = models.layers(model)
    targets = LoraConfig(r=4, lora_alpha=8, target_modules=list(layers.adaptable),
                         modules_to_save=[layers.head])  # fmt: skip
    with turns.own_random_state():
        torch.default_generator.manual_seed(cfg.seed)
        adapted = get_peft_model(copy.deepcopy(model), targets)
    recipe = cfg.but(method="lora").unlearn
    retain = dataset.split(cfg.forgotten).retain
    training.fit(adapted, retain, dataset, recipe, seed=cfg.seed)
    trained = _accuracy(adapted, dataset, "test_retain", cfg)
    with adapted.disable_adapter():
        off = _accuracy(adapted, dataset, "test_retain", cfg)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        again = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    reloaded = _accuracy(again, dataset, "test_retain", cfg)
    original = _accuracy(model, dataset, "test_retain", cfg)
    values = {"original": original, "trained": trained, "reloaded": reloaded, "off": off}
    return Defect(
        "lets BatchNorm move and saves the adapter alone",
        values,
        f"accuracy {trained:.1%}, reloaded {reloaded:.1%}; switched off {off:.1%}, not the "
        f"original's {original:.1%}",
        "03, Off, on, saved, reloaded",
    )


def _unbalanced_attack(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Fit the membership attack on more members than non-members, and to a mixed slice.

    Source: ``LogisticRegression`` on 9,000 members and 5,000 non-members in the published code.
    """
    from sklearn.linear_model import LogisticRegression

    model, split = _network(cfg, dataset), dataset.split(cfg.forgotten)
    loss = {
        name: outputs.losses(training.predict(model, part, dataset), part.labels.cpu())
        for name, part in (("in", split.retain), ("out", split.test_retain), ("f", split.forget))
    }
    values = {}
    # any of them: data sets are stored class by class
    order = torch.randperm(len(loss["in"]), generator=torch.Generator().manual_seed(cfg.seed))
    as_many = loss["in"][order[: len(loss["out"])]]
    for name, members in (("unbalanced", loss["in"]), ("balanced", as_many)):
        x = torch.cat([members, loss["out"]]).view(-1, 1).numpy()
        y = [1] * len(members) + [0] * len(loss["out"])
        attack = LogisticRegression().fit(x, y)
        for part in ("f", "out"):
            called = attack.predict(loss[part].view(-1, 1).numpy()) == 0
            values[f"{name} {part}"] = float(called.mean())
    mixed = dataset.train.sample(len(split.forget), cfg.seed).labels.cpu()
    values["share"] = float(torch.isin(mixed, torch.tensor(cfg.forgotten)).float().mean())
    return Defect(
        "attacks with more members than non-members, on slices of a shuffled loader",
        values,
        f"of real non-members it finds {values['unbalanced out']:.0%} (equal groups: "
        f"{values['balanced out']:.0%}), of the original's forget set it calls "
        f"{values['unbalanced f']:.0%} unseen (equal: {values['balanced f']:.0%}); in the slice "
        f"used as forget set {values['share']:.0%} are of the class",
        "05, The membership attack",
    )


def _flipped_sign(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Print the forget accuracy under the name of unlearning accuracy.

    Source: the evaluation script of the published code.
    """
    run = runs.run(cfg.but(method="original"), dataset, progress=False)
    values = {"UA": run.metrics["UA"], "printed": 1 - run.metrics["UA"]}
    return Defect(
        "prints the forget accuracy as “unlearning accuracy”",
        values,
        f"an original that forgot nothing: UA {values['UA']:.0%}, printed {values['printed']:.0%}",
        "05, Four classic numbers",
    )


def _one_of_each(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Report one seed at one rank and one sparsity.

    Source: table 1 of arXiv 2411.11907.
    """
    grid = [cfg.but(method="prunelora", seed=seed) for seed in range(cfg.seeds)]
    grid += [grid[0].but(rank=rank) for rank in (1, 4)]
    grid += [grid[0].but(sparsity=share) for share in (0.25, 0.75)]
    found = [runs.run(one, dataset, progress=False).metrics for one in grid]
    values = {}
    for name in ("UA", "TA"):
        numbers = [metrics[name] for metrics in found]
        values |= {f"lowest {name}": min(numbers), f"highest {name}": max(numbers)}
    return Defect(
        "one class, one seed, one rank, one sparsity",
        values,
        f"class {cfg.forget}, {len(grid)} runs over {cfg.seeds} seeds, 3 ranks, 3 sparsities: UA "
        f"{values['lowest UA']:.1%} – {values['highest UA']:.1%}, TA {values['lowest TA']:.1%} – "
        f"{values['highest TA']:.1%}",
        "05, The comparison",
    )


def _masked_logit(cfg: RunConfig, dataset: Dataset) -> Defect:
    """Overwrite the forgotten class's logit of the untouched original.

    Source: the four metrics of arXiv 2411.11907 are all that it is judged by.
    """
    model = _network(cfg, dataset)
    edits.logit_mask(model, dataset.split(cfg.forgotten), dataset)
    found = audit.evaluate(model, dataset, cfg.forgotten)
    oracle = runs.run(cfg.but(method="retrain"), dataset, progress=False).metrics
    gap = audit.average_gap(found, oracle)
    values = {"UA": found["UA"], "MIA": found["MIA"], "gap": gap}
    return Defect(
        "judges by UA, MIA, RA and TA alone",
        values,
        f"one logit overwritten, nothing forgotten: UA {found['UA']:.0%}, MIA-Efficacy "
        f"{found['MIA']:.0%}, Avg Gap {100 * gap:.2f} pp",
        "05, Four classic numbers",
    )


EXPERIMENTS: tuple[Experiment, ...] = (
    _two_normalisations, _dead_adapter, _pruned_classifier, _dropped_masks, _zeros_cost_the_same,
    _lost_statistics, _unbalanced_attack, _flipped_sign, _one_of_each, _masked_logit,
)  # fmt: skip
