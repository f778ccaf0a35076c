from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from helpers import ledger, models, pruning, unlearning


class Two(nn.Module):
    input_shape = (1, 4, 4)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.fc = nn.Linear(48, 2)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


def test_every_number_by_hand():
    model = Two()
    with torch.no_grad():
        model.conv.weight[1] = 0
        model.conv.weight[2, 0, 0, 0] = 0
    row = ledger.measure(model, "before", ["conv"], batch=4)
    assert (row["weights"], row["zeros"], row["sparsity"]) == (27, 10, 10 / 27)
    assert row["channels"] == {"conv": 2}
    assert row["parameters"] == 27 + 96 + 2
    assert row["macs"] == 16 * 27 + 96
    # kept for the way back: the images, the output of ReLU (which the linear layer shares), the
    # log-probabilities, the labels and the total weight of the loss
    images, hidden, logits, labels = 4 * 4 * 16, 4 * 4 * 48, 4 * 4 * 2, 8 * 4
    assert row["activations"] == images + hidden + logits + labels + 4
    assert row["memory"] == row["activations"] + 2 * 4 * row["parameters"]
    assert row["latency_ms"] > 0
    assert row["file_bytes"] > 4 * row["parameters"]


def test_the_size_is_that_of_tensors_names_and_shapes(tmp_path):
    model = Two()
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    assert ledger.file_bytes(model) == (tmp_path / "plain.safetensors").stat().st_size
    with_digest = models.save(model, tmp_path).stat().st_size
    assert ledger.file_bytes(model) < with_digest < ledger.file_bytes(model) + 200


def test_measuring_changes_nothing(original):
    before = copy.deepcopy(original.state_dict())
    original.train()
    original.bn1.eval()
    ledger.measure(original, "before", models.layers(original).prunable)
    assert original.training
    assert not original.bn1.training
    assert all(torch.equal(original.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None for p in original.parameters())


def test_memory_holds_buffers_and_no_gradient_of_what_is_frozen():
    model = Two()
    model.register_buffer("extra", torch.zeros(10))
    model.fc.requires_grad_(False)
    row = ledger.measure(model, "before", ["conv"], batch=4)
    assert row["memory"] == row["activations"] + 4 * (row["parameters"] + 10 + 27)


def test_what_is_kept_for_the_way_back_is_that_of_training():
    images, layers = torch.zeros(2, 1, 4, 4), [nn.Flatten(), nn.Linear(16, 2)]
    plain, dropping = nn.Sequential(*layers).eval(), nn.Sequential(*layers, nn.Dropout()).eval()
    before = torch.get_rng_state()
    assert ledger.saved_bytes(dropping, images) > ledger.saved_bytes(plain, images), "its mask"
    assert torch.equal(torch.get_rng_state(), before)
    kept = ledger.saved_bytes(plain, images)
    with torch.no_grad():
        assert ledger.saved_bytes(plain, images) == kept > 0


def test_latency_is_the_median_of_passes_in_evaluation_mode_after_one_that_is_not_timed(
    monkeypatch,
):
    ends = iter([0, 9, 10, 10.001, 20, 20.005, 30, 30.002])
    monkeypatch.setattr(ledger, "time", SimpleNamespace(perf_counter=lambda: next(ends)))
    model, modes = Two().train(), []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    assert ledger.latency(model, 2, repeats=3) == pytest.approx(2)
    assert modes == [False] * 4


def test_a_stage_took_what_the_clock_says(monkeypatch):
    monkeypatch.setattr(ledger, "time", SimpleNamespace(perf_counter=lambda: 7.0))
    assert ledger.since(3.0, Two()) == 4


def test_a_transformer_counts_its_attention():
    model = models.build_model("vit_tiny", 10, 1, 8)  # 16 tokens of width 32, two blocks
    linear = 4 * 16 * 32 * 32 + 2 * 16 * 32 * 128
    attention = 2 * 16 * 16 * 32
    assert ledger.macs(model) == 2 * (linear + attention) + 16 * 32 * 4 + 320


class Blocks(nn.Module):
    """Four tokens of width 8 through what PyTorch computes at once while it evaluates."""

    input_shape = (4, 8, 1)

    def __init__(self, block):
        super().__init__()
        self.block, self.head = block, nn.Linear(8, 2)

    def forward(self, x):
        tokens = x.flatten(2)
        if isinstance(self.block, nn.MultiheadAttention):
            return self.head(self.block(tokens, tokens, tokens)[0].mean(1))
        return self.head(self.block(tokens).mean(1))


ATTENDS = 4 * 4 * 8 * 8 + 2 * 4 * 4 * 8  # queries, keys, values and outputs; two products


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), ATTENDS),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ATTENDS + 2 * 4 * 8 * 16),
    ],
    ids=["attention", "block"],
)
def test_a_block_that_is_computed_at_once_is_counted_as_its_formula(block, wanted):
    assert ledger.macs(Blocks(block).eval()) == wanted + 8 * 2


@pytest.mark.parametrize("fused", [True, False])
def test_counting_leaves_pytorchs_ways_of_attention_as_they_were(fused):
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        with contextlib.suppress(ZeroDivisionError), ledger.counting():
            assert not torch.backends.mha.get_fastpath_enabled()
            raise ZeroDivisionError
        assert torch.backends.mha.get_fastpath_enabled() is fused
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_attention_is_counted_on_the_way_back_too():
    q = torch.randn(1, 2, 4, 8, requires_grad=True)  # two heads, four tokens
    with ledger.counting() as counter:
        assert not torch.backends.cuda.flash_sdp_enabled(), "by the plain formula"
        F.scaled_dot_product_attention(q, q, q).sum().backward()
    once = 2 * 2 * (4 * 4 * 8)  # heads, products, and the size of each
    assert counter.get_total_flops() == 3 * 2 * once, "forward, and twice as much back"


@pytest.mark.parametrize(
    ("kind", "stages"),
    [
        ("mask_structured", ["before", "pruned", "adapted", "merged"]),
        ("channels", ["before", "pruned", "adapted", "merged"]),
    ],
)
def test_the_ledger_of_a_method(kind, stages, cfg, dataset, original):
    one = cfg.but(epochs=1, pruning=kind)
    rows = unlearning.unlearn(original, dataset, one, measured=True).ledger
    assert [row["stage"] for row in rows] == stages
    before, pruned, adapted, merged = rows
    if kind == "channels":
        assert merged["parameters"] < 0.3 * before["parameters"]
        assert merged["macs"] < 0.3 * before["macs"]
        assert merged["activations"] < 0.55 * before["activations"]
        assert merged["file_bytes"] < 0.3 * before["file_bytes"]
        assert pruned["channels"]["layer3.0.conv2"] == 32
    else:
        assert [row["sparsity"] for row in rows] == [0, 0.5, 0.5, 0.5]
        for name in ("parameters", "macs", "activations", "file_bytes"):
            assert merged[name] == before[name], "a mask saves nothing"
    assert adapted["parameters"] > pruned["parameters"], "adapters come on top"


def test_the_naive_merge_destroys_what_ours_keeps(cfg, dataset, original):
    held = unlearning.unlearn(original, dataset, cfg.but(targets="blocks"))
    naive = unlearning.unlearn(original, dataset, cfg.but(mode="paper", lr=0.01))
    names = models.layers(original).adaptable
    assert pruning.sparsity(held.model, names) == 0.5
    assert pruning.sparsity(naive.model, names) < 0.35
