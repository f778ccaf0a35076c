"""Every position of every slider: what is drawn, read off the figure and the page."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from helpers import (
    attacks,
    lora,
    models,
    outputs,
    panels,
    plots,
    pruning,
    runs,
    sliders,
    training,
)
from helpers.config import InputError
from tests.seen import Page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(original_run, dataset):
    return original_run.model(dataset)


@pytest.fixture(params=["mask_structured", "channels"])
def pruned_view(request, trained, dataset, split):
    return sliders.sparsity(trained, dataset, split, request.param)


def changes():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 3, 3, 3), "b": (6, 4, 3, 3), "c": (5, 7)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def groups(names=("original", "prunelora")):
    draw = torch.Generator().manual_seed(0)
    return {n: (torch.randn(60, generator=draw) + i, torch.randn(40, generator=draw))
            for i, n in enumerate(names)}  # fmt: skip


@pytest.fixture(scope="module")
def grid(cfg, dataset):
    start = cfg.but(method="prunelora", epochs=2)
    return sliders.both(start, dataset, (1, 4), (0.0, 0.5), progress=False)


@pytest.fixture
def drive(monkeypatch):
    """Put a view to every position, and yield what was drawn there."""
    figures, picture = [], panels.picture
    monkeypatch.setattr(
        panels, "picture", lambda figure, alt: (figures.append(figure), picture(figure, alt))[1]
    )

    def positions(view):
        options = {name: [value for _, value in control.options]
                   for name, control in view.inputs.items()}  # fmt: skip
        for control, values in zip(view.inputs.values(), options.values(), strict=True):
            control.value = values[-1]  # so that the first position is a move, too
        for chosen in itertools.product(*options.values()):
            figures.clear()
            for control, value in zip(view.inputs.values(), chosen, strict=True):
                control.value = value
            assert plt.get_fignums() == [], "a figure was left open"
            assert "alert" not in view.says.value
            assert figures, "nothing was drawn"
            yield dict(zip(options, chosen, strict=True)), figures[-1].axes, page(view)

    return positions


def page(view):
    image, table = (output.value for output in view.outputs)
    text = view.says.value.split(">")[1].split("<")[0]
    assert text in image.split('alt="')[1].split('"')[0], "the picture's text says what it shows"
    ((head, *rows),) = Page(table).tables.values()
    return pd.DataFrame(rows, columns=head).set_index(head[0]), text


def rings(ax):
    """Points marked by a ring."""
    return [(float(x), float(y)) for line in ax.get_lines()
            if line.get_marker() == "o" and line.get_markerfacecolor() == "none"
            for x, y in zip(*line.get_data(), strict=True)]  # fmt: skip


def guessing(ax):
    """Height of the line that is labelled so."""
    (line,) = [line for line in ax.get_lines() if line.get_label() == "guessing"]
    return list(line.get_ydata())


def test_the_sliders_begin_in_the_middle(pruned_view, grid):
    assert pruned_view.inputs["sparsity"].value == 0.5
    assert {name: control.value for name, control in grid.inputs.items()} == {
        "rank": 4, "sparsity": 0.5,
    }  # fmt: skip
    assert sliders.rank({"a": torch.eye(9)}).inputs["rank"].value == 8
    assert sliders.rank(changes()).inputs["rank"].value == 4, "the most that there is"
    steps = sliders.threshold(groups()).inputs["threshold"]
    assert steps.index == len(steps.options) // 2


def test_sparsity_draws_its_table(pruned_view, drive, dataset):
    view, seen = pruned_view, 0
    for at, (left, right), (numbers, text) in drive(view):
        seen += 1
        row = view.table[view.table["asked"] == at["sparsity"]].iloc[0]
        here = view.detail[view.detail["asked"] == at["sparsity"]]
        layers = [t.get_text() for t in left.get_yticklabels()]
        for marker, gone in (("o", False), ("x", True)):
            (line,) = [drawn for drawn in left.get_lines() if drawn.get_marker() == marker]
            points = [(layers[int(y)], x) for x, y in zip(*line.get_data(), strict=True)]
            chosen = here[here["gone"] == gone]
            assert points == list(zip(chosen["layer"], chosen["norm"], strict=True))
        accuracies = [row["old statistics"], row["measured again"]]
        assert rings(right) == [(at["sparsity"], a) for a in accuracies]
        curves = [line for line in right.get_lines() if line.get_marker() in ("o", "X")]
        assert curves[0].get_ydata().tolist() == view.table["old statistics"].tolist()
        assert numbers.iloc[-1].tolist() == [
            *(f"{a:.1%}" for a in accuracies), f"{row['zeros'] / row['weights']:.1%}",
            f"{row['channels']:,}", f"{row['parameters']:,}", f"{row['macs'] / 1e6:,.2f}",
            f"{row['file_bytes'] / 1e3:,.0f}",
        ]  # fmt: skip
        assert f"{here['gone'].sum()} of {len(here)} filters go" in text
        assert f"{accuracies[0]:.1%} with BatchNorm&#x27;s old statistics" in text
        assert f"{accuracies[1]:.1%} with statistics measured again" in text
        assert guessing(right) == [0.1] * 2, "ten classes"
    assert seen == len(sliders.SPARSITIES) == 10


@pytest.mark.parametrize("kind", ["mask_structured", "channels"])
def test_the_table_of_sparsities_is_what_pruning_makes(kind, trained, dataset, split):
    view = sliders.sparsity(trained, dataset, split, kind, (0.0, 0.5))
    part = split.validation_retain
    pruned = pruning.prune(trained, 0.5, kind, part=split.retain, dataset=dataset)
    row, before = view.table.iloc[1], pruned.ledger[1]
    right = outputs.accuracy(training.predict(pruned.model, part, dataset), part.labels)
    assert row["measured again"] == pytest.approx(right)
    for name in ("zeros", "parameters", "macs", "file_bytes"):
        assert row[name] == before[name]
    assert row["channels"] == sum(before["channels"].values())
    gone = view.detail[view.detail["asked"] == 0.5].groupby("layer")["gone"].sum()
    for name in models.layers(trained).prunable:
        assert gone[name] == len(trained.get_submodule(name).weight) - before["channels"][name]
    assert not view.detail[view.detail["asked"] == 0]["gone"].any()


def test_masked_filters_are_the_weakest_of_their_layer_and_stand_left_of_the_cut(
    trained, dataset, split
):
    view = sliders.sparsity(trained, dataset, split, values=(0.0, 0.5))
    here = view.detail[view.detail["asked"] == 0.5]
    ax = view.figure(sparsity=0.5).axes[0]
    solid = [line.get_xydata() for line in ax.get_lines() if line.get_linestyle() == "-"]
    cuts = {y + 0.4: x for (x, y), _ in solid}
    for place, (_, layer) in enumerate(here.groupby("layer", sort=False)):
        weak, strong = layer["norm"][layer["gone"]], layer["norm"][~layer["gone"]]
        assert len(weak) == len(strong) == len(layer) / 2
        assert weak.max() <= cuts[place] <= strong.min()


def test_a_kind_that_does_not_take_filters_is_refused(trained, dataset, split):
    with pytest.raises(InputError, match="mask_structured, channels"):
        sliders.sparsity(trained, dataset, split, "mask_nm")
    with pytest.raises(InputError, match="at least one sparsity"):
        sliders.sparsity(trained, dataset, split, values=[])
    with pytest.raises(InputError, match=r"\[0.5, 0.0\] is not allowed: .* ascending"):
        sliders.sparsity(trained, dataset, split, values=(0.5, 0.0))  # 50 % would be the reference


def test_rank_draws_its_table(drive):
    view, seen = sliders.rank(changes()), 0
    for at, (left, right), (numbers, text) in drive(view):
        seen += 1
        here = view.table[view.table["rank"] == at["rank"]].set_index("layer")
        together = here.loc[sliders.ALL]
        cost = together["parameters"] / together["weights"]
        assert rings(left) == [(at["rank"], together["error"]), (at["rank"], cost)]
        lines = {line.get_label(): line for line in left.get_lines()}
        every = view.table[view.table["layer"] == sliders.ALL]
        assert lines[sliders.ALL].get_ydata().tolist() == every["error"].tolist()
        wanted = (every["parameters"] / every["weights"]).tolist()
        assert lines["parameters / weights"].get_ydata().tolist() == wanted
        layers = [t.get_text() for t in right.get_yticklabels()]
        bars = {name: bar.get_width() for name, bar in zip(layers, right.patches, strict=True)}
        assert bars == here["kept"].drop(sliders.ALL).to_dict()
        assert numbers.loc[sliders.ALL].tolist() == [
            f"{together['parameters']:,.0f}", f"{together['weights']:,.0f}", f"{cost:.1%}",
            f"{together['error']:.1%}", f"{together['kept']:.1%}",
        ]  # fmt: skip
        assert list(numbers.index) == list(here.index)
        assert text == (
            f"Rank {at['rank']}: {together['parameters']:,.0f} parameters beside "
            f"{together['weights']:,.0f} weights ({cost:.1%}); relative error "
            f"{together['error']:.1%}, share of the squared length kept {together['kept']:.1%}."
        )
    assert seen == 4, "the smallest layer has four rows"


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_the_table_of_ranks_is_the_best_approximation(rank):
    table = sliders.rank(changes()).table
    here = table[table["rank"] == rank].set_index("layer")
    lost = 0.0
    for name, change in changes().items():
        b, a = lora.low_rank(change.flatten(1), rank)
        error = float((change.flatten(1) - b @ a).norm())
        lost += error**2
        assert here["error"][name] == pytest.approx(error / float(change.norm()), abs=1e-5)
        assert here["kept"][name] == pytest.approx(1 - here["error"][name] ** 2)
        assert here["parameters"][name] == b.numel() + a.numel()
        assert here["weights"][name] == change.numel()
    total = sum(float(c.square().sum()) for c in changes().values())
    assert here["error"][sliders.ALL] == pytest.approx(math.sqrt(lost / total), abs=1e-5)
    assert here["parameters"][sliders.ALL] == here["parameters"][:-1].sum()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one layer"),
        ({"a": torch.zeros(3, 3)}, "change of a = 0.0 .* not zero"),
        ({"b": torch.eye(3), "a": torch.full((3, 3), math.nan)}, "change of a .* finite"),
        ({"a": torch.full((3, 3), math.inf)}, "change of a .* finite"),
        ({"a": torch.ones(3)}, r"change of a = \(3,\) .* \(out, in, \.\.\.\)"),
        ({"a": torch.ones(0, 3)}, r"change of a = \(0, 3\) .* \(out, in, \.\.\.\)"),
        ({sliders.ALL: torch.eye(3)}, "none called 'all together'"),
    ],
)
def test_rank_refuses_what_is_no_change(given, message, capfd):
    with pytest.raises(InputError, match=message):
        sliders.rank(given)
    assert capfd.readouterr() == ("", ""), "the library complained, too"


def test_both_draws_its_table(grid, drive):
    seen = 0
    for at, axes, (numbers, text) in drive(grid):
        seen += 1
        mine = (grid.table["rank"] == at["rank"]) & (grid.table["sparsity"] == at["sparsity"])
        rows = {"prunelora": grid.table[mine],
                "finetune": grid.table[grid.table["method"] == "finetune"]}  # fmt: skip
        for ax, part in zip(axes, ("forget", "retain"), strict=True):
            for method, frame in rows.items():
                color = plots.COLORS[method].lower()
                lines = [line for line in ax.get_lines() if to_hex(line.get_color()) == color]
                (line,) = [line for line in lines if len(line.get_xdata()) > 1]
                assert line.get_xdata().tolist() == frame["epoch"].tolist()
                assert line.get_ydata() == pytest.approx(frame[part].tolist())
        for method, frame in rows.items():
            end = frame.iloc[-1]
            assert numbers.loc[method].tolist() == [
                f"{end['forget']:.1%}", f"{end['retain']:.1%}", f"{end['trainable']:,}",
                f"{end['zeros']:.1%}",
            ]  # fmt: skip
        ends = ", ".join(
            f"{method} {rows[method].iloc[-1]['forget']:.1%} and "
            f"{rows[method].iloc[-1]['retain']:.1%}"
            for method in ("finetune", "prunelora")
        )
        place = f"Rank {at['rank']}, sparsity {panels.percent(at['sparsity'])}:"
        assert text == (f"{place} after the last epoch, accuracy on the forgotten class and the "
                        f"others: {ends}.")  # fmt: skip
        assert [guessing(ax) for ax in axes] == [[0.1] * 2] * 2
        assert [ax.get_title() for ax in axes] == ["the forgotten class", "the other classes"]
    assert seen == 4


def test_the_table_of_both_is_that_of_the_runs(grid, cfg, dataset, original_run):
    dense = grid.table[(grid.table["method"] == "finetune") & (grid.table["epoch"] == 0)]
    assert dense["retain"].tolist() == [original_run.history[-1]["retain"]]
    one = runs.run(cfg.but(method="prunelora", epochs=2, rank=4, sparsity=0.5), dataset)
    assert one.from_disk, "the very run that the slider did"
    mine = grid.table[(grid.table["rank"] == 4) & (grid.table["sparsity"] == 0.5)]
    assert mine["epoch"].tolist() == [0, 1, 2]
    for part in ("forget", "retain"):
        expected = [row[part] for row in (one.start, *one.history)]
        assert mine[part].tolist() == expected
    assert mine["zeros"].unique().tolist() == [0.5]
    assert mine["trainable"].unique().tolist() == [one.record["trainable"]]


def test_both_refuses_methods_without_rank_and_sparsity(cfg, dataset):
    for method in ("lora", "prune_finetune"):
        with pytest.raises(InputError, match="prunes and adapts"):
            sliders.both(cfg.but(method=method), dataset)


@pytest.mark.parametrize(
    ("field", "values"), [("ranks", ()), ("sparsities", (0.5, 0.5)), ("ranks", (4, 1))]
)
def test_both_refuses_positions_out_of_order_before_training(cfg, dataset, home, field, values):
    with pytest.raises(InputError, match=f"{field} = .* at least one, each once, ascending"):
        sliders.both(cfg.but(method="prunelora"), dataset, **{field: values})
    assert not home.exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"ranks": (1, 999)}, "rank = 999"), ({"rival": "erase"}, "method = 'erase'"),
     ({"sparsities": (0.0, 0.9), "ranks": (1, 16)}, "rank = 16 .* from 1 to")],
)  # fmt: skip
def test_both_refuses_what_cannot_be_run_before_training(cfg, dataset, home, asked, message):
    with pytest.raises(InputError, match=message):
        sliders.both(cfg.but(method="prunelora_channels"), dataset, progress=False, **asked)
    assert not home.exists()


def test_threshold_draws_its_table(drive):
    view, seen = sliders.threshold(groups()), 0
    for at, (left, right), (numbers, text) in drive(view):
        seen += 1
        mine = view.table[view.table["network"] == at["network"]]
        row = mine[mine["threshold"] == at["threshold"]].iloc[0]
        assert rings(left) == [(row["fpr"], row["tpr"])]
        curve = view.detail[view.detail["network"] == at["network"]]
        drawn = left.get_lines()[0]
        assert drawn.get_xdata().tolist() == curve["fpr"].tolist()
        assert drawn.get_ydata().tolist() == curve["tpr"].tolist()
        for container, group in zip(right.containers, ("members", "non-members"), strict=True):
            heights = [bar.get_height() for bar in container]
            assert heights == mine[group].tolist()[:-1]
        (line,) = right.get_lines()
        assert line.get_xdata()[0] == mine["threshold"].tolist().index(at["threshold"])
        counts = numbers.iloc[:, :2].astype(int).to_numpy().tolist()
        assert counts == [[row["tp"], row["fn"]], [row["fp"], row["tn"]]]
        assert f"true positive rate {row['tpr']:.1%}, false positive rate {row['fpr']:.1%}" in text
        members, others = groups()[at["network"]]
        auc = float((members[:, None] > others).double().mean())  # no two scores are alike
        low, high = attacks.auc_interval(members.double(), others.double())
        assert f"under the curve {auc:.3f} (95 %: {low:.3f} to {high:.3f}); chance" in text
        assert low < auc < high
        rate = numbers.iloc[:, 2].tolist()
        assert rate == [f"{row['tpr']:.1%}", f"{row['fpr']:.1%}"]
        marked = [tick.get_text() for tick in right.get_xticklabels()]
        assert marked == [str(t) for t in mine["threshold"]][::4]
    assert seen == 2 * len(view.inputs["threshold"].options)


def test_the_figure_of_thresholds_holds_all_its_text():
    view = sliders.threshold(groups())
    with plt.rc_context():
        plots.style()
        for end in (0, -1):
            value = view.inputs["threshold"].options[end][1]
            figure = view.figure(network="prunelora", threshold=value)
            figure.canvas.draw()
            for ax in figure.axes:
                for text in (ax.xaxis.label, ax.yaxis.label, *ax.texts):
                    box = text.get_window_extent()
                    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
                    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    plt.close("all")


def test_the_table_of_thresholds_counts_the_scores():
    given = groups()
    view = sliders.threshold(given)
    for row in view.table.itertuples():
        members, others = (g.double() for g in given[row.network])
        assert row.tp == int((members >= row.threshold).sum()) == 60 - row.fn
        assert row.fp == int((others >= row.threshold).sum()) == 40 - row.tn
        curve = view.detail[view.detail["network"] == row.network]
        near = np.hypot(curve["fpr"] - row.fpr, curve["tpr"] - row.tpr).min()
        assert near < 1e-9, "the ring lies on the curve"
    for _, mine in view.table.groupby("network"):
        ends = mine[["tpr", "fpr"]].to_numpy()
        assert ends[0].tolist() == [1, 1], "the lowest threshold calls everyone a member"
        assert ends[-1].tolist() == [0, 0], "the highest nobody"
        assert mine["members"].sum() == pytest.approx(1)
        assert mine["non-members"].sum() == pytest.approx(1)


def test_thresholds_of_scores_that_hardly_differ_stay_apart():
    same = torch.full((20,), 0.5)
    view = sliders.threshold({"original": (same, same + 1e-6)})
    thresholds = [value for _, value in view.inputs["threshold"].options]
    assert thresholds == sorted(set(thresholds))
    assert len(thresholds) >= 2


def rare(power, count=240):
    """Numbers in [0, 1), the larger the power the more of them near 0."""
    drawn = torch.rand(2, count // 2, generator=torch.Generator().manual_seed(0))
    return drawn.double() ** power


@pytest.mark.parametrize(
    "scores",
    [1e6 * rare(1), 0.5 + 1e-4 * rare(1), rare(1) - 0.5, rare(4), rare(40), 1 - rare(4),
     1 - rare(9)],
)  # fmt: skip
def test_each_step_of_thresholds_holds_about_equally_many_scores(scores):
    view = sliders.threshold({"original": (scores[0], scores[1])})
    held = -np.diff(view.table["tp"] + view.table["fp"])
    assert len(held) == 20
    assert held.sum() == scores.numel()
    assert np.abs(held - scores.numel() / 20).max() <= 2
    for text, value in view.inputs["threshold"].options:
        assert float(text) == value, "what is written is what is used"


def test_equal_scores_are_never_divided():
    scores = torch.arange(60).double().div(7).floor() / 3
    view = sliders.threshold({"original": (scores, scores)})
    held = -np.diff(view.table["tp"])
    assert sorted(held) == [4, *[7] * 8]


def test_threshold_takes_compositions(drive):
    view = sliders.threshold(groups(("prunelora+scrub",)))
    color = to_hex(next(drive(view))[1][0].get_lines()[0].get_color())
    assert color == plots.COLORS["scrub"].lower()


def test_threshold_refuses_unknown_networks_and_broken_scores():
    with pytest.raises(InputError, match=r"method = 'mine' .* known are original, "):
        sliders.threshold(groups(("mine",)))
    broken = (torch.tensor([0.0] * 19 + [float("nan")]), torch.zeros(20))
    with pytest.raises(InputError, match="finite"):
        sliders.threshold({"original": broken})
    with pytest.raises(InputError, match="at least one network"):
        sliders.threshold({})
    with pytest.raises(InputError, match="at least one, all finite"):
        sliders.threshold({"original": (torch.zeros(0), torch.zeros(0))})


def test_the_static_figure_is_the_one_of_the_panel(drive):
    view = sliders.rank(changes())
    for at, axes, _ in drive(view):
        still = view.figure(**at).axes
        assert rings(still[0]) == rings(axes[0])
        assert plt.get_fignums(), "left open, so that a notebook shows it"
        plt.close("all")


def test_every_control_is_core_labelled_and_moved_by_keys(grid):
    core = (widgets.SelectionSlider, widgets.Dropdown)  # both take the arrow keys by themselves
    for view in (grid, sliders.rank(changes()), sliders.threshold(groups())):
        for control in view.inputs.values():
            assert type(control) in core
            assert control.description
            assert not control.disabled
            if isinstance(control, widgets.SelectionSlider):
                assert control.continuous_update
                assert control.readout
    assert [text for text, _ in grid.inputs["sparsity"].options] == ["0 %", "50 %"]


OLD = """
import ipywidgets, torch
assert ipywidgets.__version__ == "7.7.1", ipywidgets.__version__
import matplotlib
matplotlib.use("agg")
from helpers import sliders
from tests.unit.test_sliders import changes, groups
moves = 0
for view in (sliders.rank(changes()), sliders.threshold(groups())):
    for control in view.inputs.values():
        for _, value in control.options:
            control.value = value
            moves += "alert" not in view.says.value
    assert view.says._dom_classes == ("panel-says",)
print("moves", moves)
"""


def test_the_sliders_move_with_the_ipywidgets_of_colab(colab_ipywidgets):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(colab_ipywidgets), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", OLD], env=environment, cwd=ROOT,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    steps = len(sliders.threshold(groups()).inputs["threshold"].options)
    assert done.stdout.split() == ["moves", str(4 + 2 + steps)]
