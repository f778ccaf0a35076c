from __future__ import annotations

import dataclasses
import inspect
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from helpers import audit, pages, plots, report, runs, statistics, unlearning
from helpers.files import FileProblem


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    rows = [
        {"method": m, "seed": s, **{k: rng.uniform() for k in audit.CLASSIC}, "seconds": 1.5,
         "trainable": 1234, "memory_mb": 3.25, "sparsity": 0.5}
        for m in unlearning.METHODS for s in range(3)
    ]  # fmt: skip
    return audit.compare(rows)


def test_every_method_has_a_colour_and_a_marker_of_its_own():
    assert set(plots.COLORS) == set(plots.MARKERS) == set(unlearning.METHODS)
    assert len(set(plots.MARKERS.values())) == len(plots.MARKERS)
    assert len(set(PAPER.values())) == len(PAPER)
    assert len(set(ALL.values())) == len(PAPER) + 2, "baselines and cheats: one colour a family"


PAPER = {n: c for n, c in plots.COLORS.items()
         if unlearning.METHODS[n].family in ("reference", "paper")}  # fmt: skip
ALL = PAPER | {unlearning.METHODS[n].family: c for n, c in plots.COLORS.items() if n not in PAPER}


FREE = ["prunelora", "prunelora+scrub", "scrub", "prunelora, all blocks", "finetune@3"]


def test_compositions_and_free_labels_are_drawn_too(table):
    names = dict(zip(["lora", "prunelora+ssd", *FREE], unlearning.METHODS, strict=False))
    known = table.set_index("method")
    rows = [known.loc[[old]].reset_index().assign(method=new) for new, old in names.items()]
    (ax,) = plots.comparison(pd.concat(rows), ["UA"])
    markers = [line.get_marker() for line in ax.get_lines()[1::2]]
    assert markers[:3] == [plots.MARKERS[name] for name in ("lora", "ssd", "prunelora")]
    ax = plots.destinations({name: [0.25, 0.75] for name in FREE}, ["cat", "dog"])
    _all_differ([(p.get_facecolor(), p.get_hatch()) for p in ax.get_legend().get_patches()])
    ax = plots.roc({name: ([0.0, 1.0], [0.0, 1.0]) for name in FREE})
    lines = ax.get_lines()[: len(FREE)]
    _all_differ([(one.get_color(), one.get_marker(), one.get_linestyle()) for one in lines])
    assert lines[1].get_color() == lines[2].get_color() == plots.COLORS["scrub"]


def _all_differ(looks):
    assert len({*looks}) == len(looks) == len(FREE)


def test_the_comparison_draws_the_numbers_of_the_table(table):
    axes = plots.comparison(table)
    assert [ax.get_title() for ax in axes] == [
        "UA %", "UA test %", "RA %", "TA %", "MIA-Eff. %", "Avg Gap pp"
    ]  # fmt: skip
    means = table.groupby("method", sort=False)["UA"].mean()
    drawn = [line.get_xdata() for line in axes[0].get_lines()]
    assert [float(x[0]) for x in drawn[1::2]] == pytest.approx(means.tolist())
    assert [len(x) for x in drawn[0::2]] == [3] * len(means), "every seed is a dot"
    patch = axes[0].patches[0]  # a polygon in matplotlib 3.8, a rectangle since
    band = patch.get_path().get_extents(patch.get_patch_transform())
    oracle = table.loc[table.method == "retrain", "UA"]
    assert (band.x0, band.x1) == pytest.approx((oracle.min(), oracle.max()))


def test_a_method_far_from_most_does_not_hide_their_differences(table):
    far, methods = table.copy(), table["method"].unique()
    for i, name in enumerate(methods):
        far.loc[far.method == name, "TA"] = 0.98 + 0.001 * i + 0.001 * far["seed"]
    far.loc[far.method == methods[-1], "TA"] = 0.6 + 0.1 * far["seed"]
    (ax,) = plots.comparison(far, ["TA"])
    assert [t.get_text() for t in ax.texts] == ["← 70.0"]
    assert ax.get_xlim()[0] > 0.97
    labels = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert labels == ["a seed", "mean of the seeds", "mean beyond the edge",
                      "range of the retrained seeds"]  # fmt: skip


def test_whatever_lies_inside_the_panel_is_drawn_where_it_is(table):
    """The seeds of one method widen the panel; what is far from most can lie inside then."""
    far, methods = table.copy(), [*table["method"].unique()]
    for i, name in enumerate(methods):
        far.loc[far.method == name, "TA"] = 0.98 + 0.001 * i
    wide, inside, beyond = methods[-3:]
    for name, seeds in ((wide, (0.9, 0.99, 0.99)), (inside, (0.82, 0.96, 0.96)),
                        (beyond, (0.6, 0.6, 0.95))):  # fmt: skip
        far.loc[far.method == name, "TA"] = seeds
    (ax,) = plots.comparison(far, ["TA"])
    assert 0.82 < ax.get_xlim()[0] < 0.9
    (text,) = ax.texts
    assert (text.get_text(), text.get_position()[1]) == ("← 71.7", methods.index(beyond))
    drawn = {row: [] for row in range(len(methods))}
    for line in ax.get_lines():
        for x, y in line.get_xydata():
            drawn[int(y)].append(round(x, 4))
    mean = round((0.82 + 0.96 + 0.96) / 3, 4)
    assert drawn[methods.index(inside)] == [0.96, 0.96, mean]
    assert drawn[methods.index(beyond)] == [0.95]


@pytest.mark.parametrize(("most", "distance", "last"),
                         [(6.0, True, "≥ 6"), (3.2, True, "4"), (6.0, False, None)])  # fmt: skip
def test_what_is_cut_off_stands_at_a_tick_that_says_so(most, distance, last):
    points = pd.DataFrame({"method": "lora", "cost": [0.5, most], "away": [0.5, 8.0],
                           "front": [True, False]})  # fmt: skip
    ax = plots.tradeoff(points, "cost", distance)
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[-1] == last if distance else "≥ 6" not in labels
    assert ax.get_yticklabels()[-1].get_text() == "≥ 6"
    assert ax.get_xlim()[0] < 0.5 < most < ax.get_xlim()[1]


def test_two_methods_of_one_seed_can_be_compared(table):
    """The only mean that could say what is far away is missing."""
    few = table[table["method"].isin(["original", "retrain"]) & (table["seed"] == 0)]
    axes = plots.comparison(few.assign(**{"Avg Gap": [0.5, float("nan")]}))
    assert [t.get_text() for t in axes[-1].texts] == []
    assert axes[-1].get_lines()[0].get_xdata().tolist() == [0.5]


def test_an_original_far_away_is_written_at_the_edge(table):
    far = table.copy()
    far.loc[far.method != "original", "TA"] = 0.98 + 0.01 * far["seed"]
    far.loc[far.method == "original", "TA"] = 0.1
    (ax,) = plots.comparison(far, ["TA"])
    assert [t.get_text() for t in ax.texts] == ["← 10.0"]
    low, high = ax.get_xlim()
    assert 0.97 < low < 0.98 < 1.0 < high < 1.01


def test_curves_and_bars_draw_what_they_are_given():
    frame = pd.DataFrame({"x": [1, 2, 4], "y": [0.1, 0.5, 0.9], "of": ["a"] * 3})
    ax = plots.curves(frame, "x", "y", "of", labels=("rank", "share"), chance=0.1, log2=True)
    assert ax.get_lines()[0].get_ydata().tolist() == [0.1, 0.5, 0.9]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("rank", "share", "log")
    assert any(list(line.get_ydata()) == [0.1, 0.1] for line in ax.get_lines()), "chance"
    ax = plots.destinations({"retrain": [0.2, 0.8], "lora": [1.0, 0.0]}, ["cat", "dog"])
    assert sorted(round(p.get_height(), 6) for p in ax.patches if p.get_height()) == [0.2, 0.8, 1.0]
    rows = [{"layer": n, "sparsity": s} for n, s in (("a", 0.25), ("b", 0.75))]
    ax = plots.layer_sparsity(rows)
    assert [p.get_width() for p in ax.patches] == [0.25, 0.75]
    history = [{"epoch": e, "forget": 0.1 * e, "retain": 0.9} for e in (1, 2)]
    ax = plots.learning_curves(history, {"forget": "f", "retain": "r"})
    assert ax.get_lines()[0].get_ydata().tolist() == [0.1, 0.2]


def test_a_cut_is_drawn_only_where_it_separates():
    norms = pd.DataFrame({
        "layer": ["a"] * 3 + ["b"] * 3, "norm": [1.0, 2.0, 4.0, 1.0, 2.0, 4.0],
        "gone": [True, True, False, False, True, False],
    })  # fmt: skip
    ax = plots.filter_norms(norms)
    solid = [line.get_xydata().tolist() for line in ax.get_lines() if line.get_linestyle() == "-"]
    assert solid == [[[3.0, -0.4], [3.0, 0.4]]], "between 2 and 4, in the first row alone"


def test_a_position_is_marked_by_a_line_and_a_ring_at_each_value():
    ax = plots.mark(plt.subplots()[1], 0.5, [0.2, 0.8])
    line, rings = ax.get_lines()
    assert set(line.get_xdata()) == {0.5}
    assert rings.get_xydata().tolist() == [[0.5, 0.2], [0.5, 0.8]]


def test_a_roc_curve_keeps_its_points():
    rates = ([0.0, 0.0, 0.5, 1.0], [0.0, 0.25, 0.75, 1.0])
    ax = plots.roc({"lora": rates}, log=False)
    assert ax.get_lines()[0].get_xydata().tolist() == [list(p) for p in zip(*rates, strict=True)]
    assert ax.get_lines()[1].get_xydata().tolist() == [[0, 0], [1, 1]], "chance"
    ax = plots.roc({"lora": rates})
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_lines()[0].get_xdata().min() > 0, "a rate of 0 has no logarithm"


PLACED = [name for name, function in inspect.getmembers(plots, inspect.isfunction)
          if "ax" in inspect.signature(function).parameters
          and inspect.signature(function).parameters["ax"].default is None]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(dataset):
    """What each function that can be told where to draw takes besides."""
    frame = pd.DataFrame({"x": [1, 2], "y": [0.1, 0.5], "of": ["a"] * 2})
    norms = pd.DataFrame({"layer": ["a", "a"], "norm": [1.0, 2.0], "gone": [True, False]})
    band = {"name": "UA", "title": "UA", "value": 0.5, "band": [0.4, 0.6], "inside": True,
            "oracles": [0.5], "original": 0.5}  # fmt: skip
    cell = {"method": "lora", "family": "paper", "metric": "UA", "title": "UA", "group": "classic",
            "inside": 1.0, "text": "1"}  # fmt: skip
    point = {"method": "lora", "rank": 1, "sparsity": 0.5, "away": 0.5, "text": "1",
             "front": True, "cost": 1.0}  # fmt: skip
    law = {"factor": 1.0, "exponent": 1.0, "lowest": 1.0, "highest": 1.0}
    return {
        "curves": {"table": frame, "x": "x", "y": "y", "hue": "of", "labels": ("x", "y")},
        "destinations": {"shares": {"lora": [1.0]}, "classes": ["a"]},
        "filter_norms": {"table": norms},
        "label_shares": {"classes": ["a"]},
        "layer_sparsity": {"rows": [{"layer": "a", "sparsity": 1}]},
        "learning_curves": {"history": [{"epoch": 1, "forget": 0.5}], "keys": {"forget": "f"}},
        "ledger": {"rows": ledger_rows()},
        "lie_detector": {"table": pd.DataFrame([cell])},
        "oracle_bands": {"metrics": [band]},
        "power_law": {"points": [(1, 1), (2, 2)], "law": law, "xlabel": "x", "ylabel": "y"},
        "roc": {"curves": {"lora": ([0, 1], [0, 1])}, "log": False},
        "sample_images": {"dataset": dataset, "per_class": 3},
        "surface": {"table": pd.DataFrame([point])},
        "tradeoff": {"table": pd.DataFrame([point]), "cost": "seconds"},
    }


@pytest.mark.parametrize("name", PLACED)
def test_every_function_draws_where_it_is_told(name, arguments):
    draw, ax = getattr(plots, name), plt.subplots()[1]
    assert draw(**arguments[name], ax=ax) is ax
    assert plt.get_fignums() == [ax.figure.number], "it opened another figure"
    plt.close("all")
    assert isinstance(draw(**arguments[name]), Axes)


def test_sample_images_shows_one_class_a_row(dataset):
    picture = plots.sample_images(dataset, per_class=4).get_images()[0].get_array()
    assert picture.shape == (90, 36), "8 pixels and a line each"
    first = (dataset.train.labels == 7).nonzero()[0].item()
    assert np.array_equal(picture[63:71, :8], dataset.train.images[first, 0].cpu().numpy())


def test_names_with_dollars_are_no_formulas_and_any_name_is_drawn(dataset):
    coins = ("5_$_and_10_$", "US$", "caf\udce9", "a\nb\x1b", *dataset.classes[4:])
    shown = dataclasses.replace(dataset, name="a $_ price_$", classes=coins)
    frame = pd.DataFrame({"x": [1, 2], "y": [0.1, 0.5], "of": ["a"] * 2})
    shares = {"lora": [0.1] * len(coins)}
    for ax in (
        plots.sample_images(shown, 2),
        plots.destinations(shares, coins),
        plots.label_shares(coins),
        plots.curves(frame, "x", "y", "of", labels=("step", f"class {coins[0]} recognised")),
    ):
        ax.figure.canvas.draw()  # a formula that is none is an error, as is half a character
        plt.close(ax.figure)


def test_cells_show_mean_and_spread_in_per_cent():
    rows = [{"method": "retrain", "seed": s, "UA": 1.0, "RA": 1.0, "TA": t, "MIA": 1.0,
             "seconds": 2.0} for s, t in ((0, 0.97), (1, 0.99))]  # fmt: skip
    heading, row = report.cells(statistics.summary(audit.compare(rows)))
    found = dict(zip(heading, row, strict=True))
    assert found["method"] == "retrain"
    assert found["TA %"] == "98.0 ± 1.4"
    assert found["Avg Gap pp"] == "0.50 ± 0.00"
    assert found["seeds"] == "2"
    single = report.cells(statistics.summary(audit.compare(rows[:1])))[1]
    assert "–" in single, "a single oracle has no gap"
    assert not any("±" in cell or "nan" in cell for cell in single)


def test_tables_as_text_and_markdown():
    rows = [["method", "UA %"], ["original", "1.0"], ["retrain", "100.0"]]
    assert report.text_table(rows).splitlines() == [
        "method     UA %", "---------------", "original    1.0", "retrain   100.0",
    ]  # fmt: skip
    assert report.markdown_table(rows).splitlines() == [
        "| method | UA % |", "| --- | ---: |", "| original | 1.0 |", "| retrain | 100.0 |",
    ]  # fmt: skip


def test_metrics_beside_the_oracles_band_say_what_lies_outside():
    band = statistics.Band(0.125, 0.5, 0.25)
    above = statistics.Band(-math.inf, 0.25, 0.125)
    bands = {"UA": band, "TV": above, "JS": above}
    found = {"lora": {"UA": 0.25, "TV": 0.25, "JS": 0.75}, "theirs": {"TV": 0.5}}
    table = report.beside_bands(found, bands, "outputs")
    assert table.to_dict("index") == {
        "TV": {"oracles' band": " – 0.250", "lora": "0.250", "theirs": "0.500 ✗"},
        "JS": {"oracles' band": " – 0.250", "lora": "0.750 ✗", "theirs": ""},
    }
    (row,) = report.beside_bands(found, bands, "classic").to_dict("index").values()
    assert row == {"oracles' band": "12.5 % – 50.0 %", "lora": "25.0 %"}


def test_the_attacks_on_single_images_as_a_table():
    found = {"auc": 0.625, "auc_interval": [0.5, 0.75], "tpr": 0.1234, "tpr_interval": [0.05, 0.2],
             "klom": 1.25, "klom_oracles": 0.5}  # fmt: skip
    table = report.shadow_table({"networks": 32, "methods": {"lora": found}})
    assert table.columns.name == "32 networks a method"
    assert table.to_dict("index") == {"lora": {
        "U-LiRA AUC": "0.62 (0.50 – 0.75)", "hits at 1 % false alarms": "12.3 % (5 – 20 %)",
        "KLoM": "1.2", "oracles' own": "0.5",
    }}  # fmt: skip


def ledger_rows():
    row = {"zeros": 0, "weights": 8, "sparsity": 0.0, "channels": {"a": 4, "b": 2},
           "parameters": 1000, "macs": 2_500_000, "file_bytes": 4000, "latency_ms": 2.0,
           "activations": 6000, "memory": 9000, "batch": 32}  # fmt: skip
    half = {k: v / 2 if isinstance(v, int | float) and k != "batch" else v for k, v in row.items()}
    return [{"stage": "before", **row}, {**half, "stage": "after", "channels": {"a": 1, "b": 2}}]


def test_the_ledger_as_a_table_says_the_numbers_in_their_units():
    table = report.ledger_table(ledger_rows())
    assert list(table.index) == ["before", "after"]
    assert table.loc["before"].tolist() == [
        "0.0%", "6", "1,000", "2.50", "4", "2.00", "6", "9"
    ]  # fmt: skip
    assert "ms for 32 images" in table.columns
    assert table.loc["after", "channels"] == "3"


def test_the_ledger_as_a_picture_draws_shares_of_the_first_row():
    ax = plots.ledger(ledger_rows())
    heights = [round(bar.get_height(), 6) for bar in ax.patches if bar.get_height() > 0]
    assert sorted(heights) == [0.5] * 5 + [1.0] * 5


def test_the_savings_name_what_where_and_when():
    text = pages._savings()
    assert "channels / dense" in text
    assert "Measured 20" in text
    assert text.count("\n|") > 15
    assert "mask_structured" in text, "what masks do not save stands beside it"


def measured(**sections):
    return {
        "about": "the plain way", "sections": sections, "date": "2030-01-02T03:04:05",
        "versions": {"python": "3", "torch": "2", "peft": "1"},
        "hardware": {"cpu": "abacus", "threads": 1},
    }  # fmt: skip


def test_the_costs_on_images_are_those_of_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(pages.runs, "results_folder", lambda: tmp_path)
    assert pages._images() == "CPU: not measured yet. GPU: not measured yet.\n"
    ratio = {"measured": 0.125, "lowest": 0.1, "highest": 0.2}
    checks = [{"what": "ours", **ratio, "limit": "<= 0.18", "met": True}]
    law = {"exponent": 0.98, "lowest": 0.9, "highest": 1.06}
    shares = {"ratio": 0.5, "lowest": 0.4, "highest": 0.6}
    network = {"batch": 8, "flops_per_second": [1e9, 2e9, 9e9], "share": shares,
               "profile": {"convolution": 0.75, "data": 0.245, "other": 0.005}}  # fmt: skip
    record = measured(
        epoch={"checks": checks}, peak={"networks": {"vit": {"fp32": network}}},
        cost={"laws": {"images": {"seconds": law}}},
    )  # fmt: skip
    (tmp_path / "images-cpu.json").write_text(json.dumps(record))
    text = pages._images()
    assert "| ours | ≤ 0.18 | 0.125 (0.1 – 0.2) | not measured yet |" in text
    row = "| vit, fp32 | 8 | 2 | 0.50 (0.40 – 0.60) | convolution 75 %, data 24 % |"
    assert row in text
    record["sections"]["peak"]["networks"]["vit"]["fp32"]["busy"] = 0.25
    (tmp_path / "images-cpu.json").write_text(json.dumps(record))
    assert row.replace("24 % |", "24 %; nothing computes in 75 % of it |") in pages._images()
    assert "| images | 0.98 (0.90 – 1.06) |" in text
    assert "CPU: Measured 2030-01-02 on abacus" in text
    checks[0] |= {"met": False, "measured": 0.25}
    (tmp_path / "images-cuda.json").write_text(json.dumps(measured(epoch={"checks": checks})))
    assert "| 0.125 (0.1 – 0.2) | 0.25 (0.1 – 0.2) ✗ |" in pages._images()
    other = {**measured()["hardware"], "gpu": "loom"}
    sections = {"epoch": {"checks": [*checks, checks[0] | {"what": "TF32"}], "hardware": other},
                "peak": record["sections"]["peak"]}  # fmt: skip
    (tmp_path / "images-cuda.json").write_text(json.dumps(measured(**sections)))
    text = pages._images()
    assert "| TF32 | ≤ 0.18 | – | 0.25 (0.1 – 0.2) ✗ |" in text, "there is no TF32 on a CPU"
    assert "GPU, epoch: Measured 2030-01-02 on loom" in text
    assert "GPU, peak: Measured 2030-01-02 on abacus" in text
    (tmp_path / "images-cuda.json").write_text("{}")
    with pytest.raises(FileProblem, match="images-cuda"):
        pages._images()


def test_a_power_law_is_drawn_through_its_points():
    law = {"factor": 3.0, "exponent": 2.0, "lowest": 1.9, "highest": 2.1}
    ax = plots.power_law([(10, 300), (1, 3), (2, 12)], law, "images", "seconds")
    line, points = (drawn.get_xydata().tolist() for drawn in ax.lines)
    assert line == points == [[1, 3], [2, 12], [10, 300]]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "+2.00 (+1.90 to +2.10)" in ax.get_title()


def test_a_refusal_is_shown_and_nothing_else_is_swallowed():
    from helpers import exercises
    from helpers.config import InputError

    def refuse():
        raise InputError("rank = 0 is not allowed")

    assert exercises.message_of(refuse) == "rank = 0 is not allowed"
    assert exercises.message_of(lambda: None) == ""
    with pytest.raises(ZeroDivisionError):
        exercises.message_of(lambda: 1 / 0)


RESULTS = Path(__file__).parents[2] / "results"


def test_the_papers_numbers_are_called_the_papers(monkeypatch, tmp_path):
    text = pages._protocol()
    paper = json.loads((RESULTS / "paper.json").read_text())
    assert text.startswith("**The paper's numbers, none of them ours**")
    # worked out by hand: (0.22 + 2.32 + 0.06 + 1.52) / 4 and (0.02 + 2.11 + 0.02 + 1.29) / 4
    (line,) = [x for x in text.splitlines() if x.startswith("| prunelora | 99.78 / 99.98")]
    assert "| 1.03 / 0.86 |" in line
    (tmp_path / "paper.json").write_text(json.dumps(paper))
    monkeypatch.setattr(runs, "results_folder", lambda: tmp_path)
    assert "Not measured here yet" in pages._protocol()
    assert "the audit of resnet50 and vit." in pages._protocol()
    rows = [["prunelora, 5 epochs", 3, s, 1.0, 0.98, 0.95 + s / 100, 0.9, 0.012, 50.0, 5500.0]
            for s in (0, 2)]  # fmt: skip
    columns = ["method", "forget", "original_seed", "UA", "RA", "TA", "MIA", "Avg Gap", "seconds",
               "memory_mb"]  # fmt: skip
    band = {m: [0.9, 1.0, 0.99] for m in ("UA", "RA", "TA", "MIA")} | {"Avg Gap": [None, 1, 0.002]}
    model = {"rows": rows, "columns": columns, "bands": {"3": {"0": band}}, "oracles": 3,
             "classes": ["plane", "car", "bird", "cat"],
             "settings": {"prunelora, 5 epochs": {"epochs": 5}}}  # fmt: skip
    here = runs.environment("cpu") | {"models": {"resnet50": model}}
    (tmp_path / "protocol-cuda.json").write_text(json.dumps(here))
    text = pages._protocol()
    assert "the audit of vit." in text
    assert text.count("Ours, ") == 1, "the other network was not measured"
    (line,) = [x for x in text.splitlines() if x.startswith("| prunelora, 5 epochs")]
    wanted = "| prunelora, 5 epochs | cat | 100.00 ± 0.00 | 98.00 ± 0.00 | 96.00 ± 1.41 |"
    assert line.startswith(wanted)
    assert line.endswith("| 1.20 ± 0.00 | 10.0 | 5.5 | 2 |")
    assert "| retrain | cat | 99.00 | 99.00 | 99.00 | 99.00 | 0.20 | – | – | 3 oracles |" in text


def test_networks_at_the_papers_size_stand_beside_their_own_oracles(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "results_folder", lambda: tmp_path)
    (tmp_path / "paper.json").write_text((RESULTS / "paper.json").read_text())

    def row(label, mode, seed, value, forget=3):
        shares = dict.fromkeys(("UA", "RA", "TA", "MIA"), value)
        method = label.split(",")[0]
        return {"label": label, "mode": mode, "forget": forget, "method": method, "seed": seed,
                **shares, "accuracy": 0.875, "gmacs": 2e6, "memory_mb": 3500.0,
                "date": "2030-01-02T03:04:05"}  # fmt: skip

    rows = [row("original", "default", 0, 0.5), row("original", "default", 0, 0.5)]
    rows += [row("retrain", "default", s, v) for s, v in ((1000, 0.9), (1001, 0.94))]
    rows += [row("retrain", "paper", 1000, 0.8), row("lora, 5 epochs", "default", 0, 0.95),
             row("lora, as published, 5 epochs", "paper", 0, 0.7)]  # fmt: skip
    one = {"data": "set", "classes": ["plane", "car", "bird", "cat"], "train": {"epochs": 7}}
    here = runs.environment("cpu") | {"models": {}, "classic": {"resnet50": one | {"rows": rows}}}
    here["date"], rows[0]["date"] = "2030-01-02T20:00:00", "2030-01-01T03:04:05"
    (tmp_path / "protocol-cuda.json").write_text(json.dumps(here))
    text = pages._protocol()
    assert "resnet50 on set, trained for 7 epochs; test accuracy of the originals: 87.50 %." in text
    assert "Not measured on it yet: finetune, prune_finetune, prunelora.\n" in text
    assert "the audit of resnet50 and vit." in text
    assert "(the first of it 2030-01-01). Mean" in text
    # to the oracles of the same mode: 0.95 - 0.92 and 0.8 - 0.7
    assert "| lora, 5 epochs | cat | as here | 95.00 | 95.00 | 95.00 | 95.00 | 3.00 |" in text
    wanted = "| lora, as published, 5 epochs | cat | as published | 70.00 | 70.00 | 70.00 | 70.00 |"
    assert f"{wanted} 10.00 | 2,000 | 3.5 | 1 |" in text
    assert "| retrain | cat | as here | 92.00 ± 2.83 |" in text
    assert text.count("| original | cat |") == 1, "a network that is noted twice is shown once"
    rows += [row(name, "default", 0, 0.9) for name in ("finetune", "prune_finetune", "prunelora")]
    (tmp_path / "protocol-cuda.json").write_text(json.dumps(here))
    assert "Not measured on it yet" not in pages._protocol()


def test_marks_on_photographs_set_oracles_beside_originals_of_one_class(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "results_folder", lambda: tmp_path)
    metrics = ["TA", "RA", "head_refit", "inner_refit", "prototype_attack"]
    rows = [[m, c, s, s, 0, ta + s / 100, 0.9, 0.5, 0.4, 0.3]
            for m, ta in (("original", 0.8), ("lora", 0.7), ("salun", 0.1)) for s in (0, 2)
            for c in (0, 1)]  # fmt: skip
    rows[0][5] = 0.0  # the other class is not asked
    record = runs.environment("cpu") | {
        "preset": "cifar", "data": "d", "model": "m", "oracles": 3, "classes": ["dog", "cat"],
        "bands": {}, "rows": rows,
        "columns": ["method", "forget", "original_seed", "seed", "repetition", *metrics],
    }  # fmt: skip
    (tmp_path / "audit-cifar.json").write_text(json.dumps(record))
    never = [{"method": m, "seed": s} | dict.fromkeys(metrics, 0.6)
             for m in ("lora", "retrain") for s in (1000, 1001)]  # fmt: skip
    made = runs.environment("cpu") | {"class": "cat", "rows": never}
    (tmp_path / "controls-cifar.json").write_text(json.dumps(made))
    heading, _, *shown = pages._marks().splitlines()[:6]
    assert heading.startswith("| cat | TA % | RA % | head refit % | inner refit % |")
    same = " | ".join(["60.00 ± 0.00"] * 5)
    rest = "90.00 ± 0.00 | 50.00 ± 0.00 | 40.00 ± 0.00 | 30.00 ± 0.00 |"
    assert shown == [
        f"| oracles | {same} | 2 |", f"| `lora` of these | {same} | 2 |",
        f"| originals | 81.00 ± 1.41 | {rest} 2 |",
        f"| `lora` of these | 71.00 ± 1.41 | {rest} 2 |",
    ]  # fmt: skip


def test_the_audit_on_photographs_is_told_as_it_was_recorded(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "results_folder", lambda: tmp_path)
    assert pages.photographs() == "Not measured yet.\n"
    columns = ["method", "forget", "original_seed", "seed", "repetition", "UA", "RA", "TA", "MIA",
               "Avg Gap", "head_refit", "gmacs", "trainable", "file_bytes"]  # fmt: skip
    rows = [["lora", c, s, s, 0, 1.0, 0.9, 0.8 + s / 100, 1.0, 0.02, 0.5 * s, 12340, 5678, 91e3]
            for c, s in ((3, 0), (3, 2), (1, 0))]  # fmt: skip
    band = {m: [0.8, 0.81, 0.805] for m in ("UA", "RA", "TA", "MIA")}
    band |= {"head_refit": [0, 0.1, 0], "Avg Gap": [None, 0.01, 0.004]}
    training = [{"method": "original", "seconds": 1800, "accuracy": 0.9 + s} for s in (0, 0.01)]
    training.append({"method": "retrain", "seconds": 3600, "accuracy": 0.95})
    record = runs.environment("cpu") | {
        "preset": "cifar", "data": "CIFAR-10 (JPEG)", "model": "resnet20", "oracles": 3,
        "classes": ["plane", "car", "bird", "cat"],
        "settings": {"lora": {"epochs": 5}, "original": {"epochs": 40}},
        "training": training, "core_seconds": 9000.0,
        "bands": {"3": {"0": band, "2": band}, "1": {"0": band}}, "columns": columns, "rows": rows,
    }  # fmt: skip
    (tmp_path / "audit-cifar.json").write_text(json.dumps(record))
    text = pages.photographs()
    row = "| lora | cat | 100.00 ± 0.00 | 90.00 ± 0.00 | 81.00 ± 1.41 | 100.00 ± 0.00 |"
    assert f"{row} 2.00 ± 0.00 | 12.3 | 5,678 | 91 | 2 |" in text
    assert (
        "| retrain | cat | 80.50 | 80.50 | 80.50 | 80.50 | 0.40 | – | – | – | 3 oracles |" in text
    )
    assert "| lora | car | 100.00 | 90.00 | 80.00 | 100.00 | 2.00 | 12.3 | 5,678 | 91 | 1 |" in text
    # TA is inside in 2 of 3, UA, RA, MIA and Avg Gap nowhere: 2 / 15; the refitted head in 2 of 3
    assert "| lora | 13 | 67 |" in text
    assert "unlearned with each method: 3," in text
    assert "originals: 90.00 %, 91.00 %." in text
    longer = tmp_path / "longer-cifar.json"
    longer.write_text(json.dumps({"epochs": 160, "accuracy": 0.95, "seed": 0}))
    told = "originals: 90.00 %, 91.00 % after 40 epochs; of seed 0 trained for 160: 95.00 %."
    assert told in pages.photographs()
    longer.unlink()
    assert "training these and the oracles took 2.0 hours of a core" in text
    assert "its audits 2.5." in text
    (tmp_path / "audit-cifar.json").write_text("{}")
    with pytest.raises(FileProblem, match="audit-cifar"):
        pages.photographs()
