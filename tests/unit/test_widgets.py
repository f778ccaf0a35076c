"""The explorer, driven without a browser."""

from __future__ import annotations

import base64
import dataclasses
import gc
import io
import logging
import math
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as core
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image
from traitlets import TraitError

from helpers import audit, files, grid, panels, plots, runs, study, training, turns, widgets
from helpers.config import InputError
from helpers.files import FileProblem
from tests import grids

ROOT = Path(__file__).parents[2]


@pytest.fixture
def panel(cfg, dataset, original_run):
    return widgets.explorer(cfg, grids.made())


def test_where_no_widget_can_be_shown_a_sentence_stands_in_its_place(panel):
    assert repr(panel.widget) == "A panel of sliders: it needs a running kernel."


def says(panel):
    return re.sub(r"<[^>]+>", "", panel.panel.says.value).replace("&#x27;", "'")


def move(panel, **values):
    for name, value in values.items():
        panel.inputs[name].value = value


def test_it_opens_where_the_configuration_points(panel):
    assert panel.point == grid.Point("prunelora", 3, 8, 0.5)
    assert says(panel) == ("prunelora, class 3, rank 8, sparsity 50 %, seed 0: 6 of 7 metrics "
                           "inside the oracles' band; head refit 60.0 %.")  # fmt: skip


def test_a_move_changes_pictures_tables_and_at_last_the_line(panel):
    order = []
    before = [output.value for output in panel.panel.outputs]
    for place, output in enumerate(panel.panel.outputs):
        output.observe(lambda _, place=place: order.append(place), names="value")
    panel.panel.says.observe(lambda _: order.append("line"), names="value")
    move(panel, sparsity=0.0)
    assert order[-1] == "line"
    assert [o.value for o in panel.panel.outputs] != before
    assert "sparsity 0 %" in says(panel)
    assert "head refit 80.0 %" in says(panel)
    pictures, tables, ledger = (output.value for output in panel.panel.outputs)
    assert pictures.count('src="data:image/png;base64,') == pictures.count("alt=") == 3
    assert "framed: prunelora, class 3, rank 8, sparsity 0 %" in pictures
    assert tables.count("<table>") == 3
    assert "zeros among prunable weights" in ledger


def test_the_same_place_looks_the_same_again(panel):
    first = [output.value for output in panel.panel.outputs]
    move(panel, rank=1, method="lora", metric="TA", forget=8)
    move(panel, rank=8, method="prunelora", metric="head_refit", forget=3)
    assert [output.value for output in panel.panel.outputs] == first, "nothing was left behind"


def test_a_menu_that_was_walked_through_once_draws_nothing_anew(panel):
    assert 2 * len(audit.METRICS) + 1 <= widgets.SHEETS, "both pictures of every metric are kept"
    every = [value for _, value in panel.inputs["metric"].options]
    for metric in every:
        move(panel, metric=metric)
    drawn = panel._sheet.cache_info().misses
    for metric in every:
        move(panel, metric=metric)
    assert panel._sheet.cache_info().misses == drawn
    blank = widgets._canvas().figure.add_subplot()
    assert len(panel._easel.get_children()) == len(blank.get_children()), "nothing is left behind"
    assert not panel._easel.containers


def test_what_was_there_before_an_explorer_is_not_collected_again(panel):
    frozen = gc.get_freeze_count()
    assert frozen > 0
    widgets.explorer(panel.cfg, panel.grid.study)
    assert gc.get_freeze_count() <= frozen, "what an explorer holds is not kept for good"


def test_an_explorer_that_was_closed_is_collected(cfg, dataset, original_run):
    registry = core.widget._instances if hasattr(core.widget, "_instances") else core.Widget.widgets
    before = {*registry}
    one = widgets.explorer(cfg, grids.made())
    one.run.click()
    assert one.wait(120)
    one.pin.click()
    move(one, rank=1)
    one.close()
    assert {*registry} == before, "of a layout, too, nothing is left open"
    assert not one.lives
    assert one._sheet.cache_info().currsize == 0, "pictures take half a megabyte each"
    known = weakref.ref(one)
    del one
    gc.collect()
    assert known() is None


def test_to_close_an_explorer_ends_what_it_trains(panel, monkeypatch):
    real = training.fit
    monkeypatch.setattr(training, "fit", lambda *a, **k: (panel.close(), real(*a, **k))[1])
    panel.run.click()
    assert panel.wait(120)
    assert not panel.lives


def test_a_cell_that_is_run_again_closes_what_it_showed(cfg, dataset, original_run, monkeypatch):
    monkeypatch.setattr(widgets, "_SHOWN", {})
    a, b, c, d = (widgets.explorer(cfg, grids.made()) for _ in range(4))
    closed = []
    for name, one in {"a": a, "b": b, "c": c, "d": d}.items():
        monkeypatch.setattr(one, "close", lambda name=name: closed.append(name))

    def show(cell, run, *several):
        asked = {"metadata": {"cellId": cell} if cell else {}, "header": {"msg_id": run}}
        shell = SimpleNamespace(get_parent=lambda: asked)
        monkeypatch.setattr(widgets, "get_ipython", lambda: shell)
        monkeypatch.setattr(widgets, "display", lambda *_: None)
        for one in several:
            one._ipython_display_()

    show("first", "1", a, b)
    assert not closed, "two in one cell"
    show("second", "2", b)
    show("first", "3", c)
    assert closed == ["a"], "the other one is shown elsewhere"
    show("second", "4", b)
    assert closed == ["a"], "the same one again"
    show("second", "5", d)
    assert closed == ["a", "b"]
    show(None, "6", d)
    show(None, "7", a)
    assert closed == ["a", "b"], "nobody knows which cell"


def test_axes_that_a_method_lacks_are_switched_off(panel):
    without = {"lora": (False, True), "prune_finetune": (True, False), "finetune": (True, True),
               "prunelora": (False, False)}  # fmt: skip
    for method, expected in without.items():
        move(panel, method=method)
        assert tuple(panel.inputs[axis].disabled for axis in grid.AXES) == expected
        assert says(panel).startswith(method)


def test_every_offered_value_can_be_shown(panel):
    for name, control in panel.inputs.items():
        for _, value in control.options:
            move(panel, **{name: value})
            assert "alert" not in panel.panel.says.value


def test_a_point_that_does_not_exist_says_why(panel):
    move(panel, method="prunelora_channels")
    assert "not stored. rank = 8 is not allowed: from 1 to 6" in says(panel)
    committed = widgets.explorer(panel.cfg)
    gone = committed.grid.study.about["refused"]
    assert gone
    for one in gone:
        move(committed, **{name: one[name] for name in ("method", "rank", "sparsity")})
        assert committed.grid.rows(committed.point).empty
        assert says(committed).endswith(f", seed 0: not stored. {one['reason']}")
    move(committed, method="prunelora")
    assert "not stored" not in says(committed)


def test_a_network_that_could_not_be_judged_says_why(cfg, dataset, original_run):
    table = grids.made().table
    lost = table["method"] == "finetune"
    table.loc[lost, [*grids.BAND]] = math.nan
    table["problem"] = table["method"].where(~lost, "logits = nan or inf is not allowed")
    table.loc[~lost, "problem"] = None
    panel = widgets.explorer(cfg, record_of(table))
    move(panel, method="finetune")
    assert says(panel).endswith("seed 0: not stored. logits = nan or inf is not allowed")


def test_a_visitor_can_only_choose_among_offered_values(panel):
    """As a browser sends it: a place in the list of options."""
    for name, control in panel.inputs.items():
        before, shown = control.value, says(panel)
        for state in ({"index": 99}, {"index": -7}, {"index": "__import__('os')"}):
            with pytest.raises(TraitError):
                control.set_state(state)
        assert control.value == before, name
        assert says(panel) == shown
    with pytest.raises(TraitError):
        panel.inputs["rank"].value = 7


def test_what_goes_wrong_while_drawing_is_shown_and_raised(panel, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("broken <on purpose>")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(plots, "mark_surface", broken)
        with pytest.raises(RuntimeError):
            move(panel, rank=1)
    assert 'role="alert"' in panel.panel.says.value
    assert "broken &lt;on purpose&gt;" in panel.panel.says.value
    assert "on purpose" in caplog.text
    move(panel, rank=8)
    assert "alert" not in panel.panel.says.value


def test_drawing_leaves_figures_alone_that_a_cell_makes_meanwhile(panel, monkeypatch):
    drawn, made = panel.panel._draw, []

    def slowly(**values):
        made.append(plt.figure())  # of the reader, while a thread draws
        return drawn(**values)

    monkeypatch.setattr(panel.panel, "_draw", slowly)
    panel.panel.refresh()
    assert [figure.number for figure in made] == plt.get_fignums()
    plt.close("all")


def test_a_grid_without_an_axis_can_be_shown(cfg, dataset, original_run):
    found = grids.made()
    for alone, off in (("prune_finetune", "rank"), ("lora", "sparsity"), ("finetune", "rank")):
        table = found.table[found.table["method"] == alone].reset_index(drop=True)
        shown = widgets.explorer(cfg, study.Study(table, found.bands, 5, found.about))
        assert says(shown).startswith(f"{alone}, class 3")
        assert shown.inputs[off].disabled


def record_of(table=None, bands=None):
    found = grids.made()
    return study.Study(found.table if table is None else table,
                       found.bands if bands is None else bands, 5, found.about)  # fmt: skip


def test_a_method_that_was_measured_for_one_class_only_is_not_stored_of_another(
    cfg, dataset, original_run
):
    table = grids.made().table
    table = table[(table["method"] != "lora") | (table["forget"] == 3)].reset_index(drop=True)
    panel = widgets.explorer(cfg, record_of(table))
    move(panel, method="lora")
    known = picture_of(panel, 0)[0]
    move(panel, forget=8)
    assert says(panel) == "lora, class 8, rank 8, seed 0: not stored. It was not measured."
    assert "0 of 0 points inside" in picture_of(panel, 0)[2]
    assert picture_of(panel, 0)[0] != known
    panel.pin.click()
    assert "alert" not in panel.refused.value
    panel._keep(live_of(panel))
    panel.panel.refresh()
    assert "Trained now: 50.0 %" in says(panel)
    move(panel, forget=3)
    assert picture_of(panel, 0)[0] == known


def test_values_without_a_band_are_stored_all_the_same(cfg, dataset, original_run):
    bands = grids.made().bands
    panel = widgets.explorer(cfg, record_of(bands={3: {0: bands[3][0]}}))
    assert "6 of 7 metrics inside" in says(panel)
    for choice in ({"seed": 1}, {"forget": 8}):
        move(panel, **choice)
        assert "not stored" not in says(panel)
        assert "stored without a band of the oracles" in says(panel)
        assert "head refit 60.0 %." in says(panel)


def test_a_composition_has_the_colour_of_its_last_part(cfg, dataset, original_run):
    found = grids.made()
    table = found.table.replace({"method": {"prune_finetune": "prune_finetune+scrub"}})
    panel = widgets.explorer(cfg, study.Study(table, found.bands, 5, found.about))
    move(panel, method="prune_finetune+scrub")
    assert says(panel).startswith("prune_finetune+scrub")


def test_records_that_do_not_fit_are_refused(cfg, tmp_path):
    found = grids.made()
    photographs = {"data": "CIFAR-10", "classes": ["airplane", "automobile"]}
    for field, theirs in photographs.items():
        lacking = {k: v for k, v in found.about.items() if k != field}
        for about in (found.about | {field: theirs}, lacking):
            other = study.Study(found.table, found.bands, 5, about)
            with pytest.raises(InputError, match=f"{field} of the record = .*live networks"):
                widgets.explorer(cfg, other)
    table = found.table.replace({"forget": {8: 99}})
    with pytest.raises(InputError, match=r"forget of the record = \[3, 99\] .* from 0 to 9"):
        widgets.explorer(cfg, study.Study(table, found.bands, 5, found.about))
    with pytest.raises(FileProblem, match="does not exist"):
        widgets.explorer(cfg, tmp_path / "nothing.json")
    study.save(found, tmp_path / "grid.json")
    again = widgets.explorer(cfg, tmp_path / "grid.json")
    assert again.grid.points == grid.Grid(found).points, "missing ranks survive the file"


def cells_of(html):
    """Title -> column -> text, over all tables."""
    found = {}
    for table in html.split("</table>")[:-1]:
        columns = re.findall('<th scope="col"[^>]*>(.*?)</th>', table)[1:]
        for name, cells in re.findall('<th scope="row"[^>]*>(.*?)</th>(.*?)</tr>', table):
            texts = re.findall("<td[^>]*>(.*?)</td>", cells)
            found[name] = dict(zip(columns, texts, strict=True))
    return found


def test_the_tables_say_what_is_inside_and_where_the_band_is(panel):
    tables = panel.panel.outputs[1].value
    cells = cells_of(tables)
    assert cells["head refit"]["inside"] == "yes", "0.6, and the band ends there"
    assert cells["steps back"]["inside"] == "NO", "6, and the band begins at 8"
    assert cells["UA"]["band"] == "90.0 % to 100.0 %"
    assert cells["Avg Gap"]["band"].startswith("≤ ")
    assert cells["steps back"]["band"].startswith("≥ 8")
    assert tables.count("<table>") == tables.count('role="region"') == tables.count('tabindex="0"')
    ledger = widgets.ledger_table(panel.grid, panel.point, None)["of dense fine-tuning"]
    assert ledger["training (GMACs)"] == "900.0 %"


def test_frame_stars_and_words_are_those_of_the_point(panel, monkeypatch):
    real, drawn = plots.surface, []
    monkeypatch.setattr(plots, "surface", lambda *given: drawn.append(real(*given)) or drawn[-1])
    move(panel, cost="gmacs", method="prune_finetune")
    table = panel.grid.tradeoff(3, "head_refit", "gmacs")
    mine = table[table["method"] == "prune_finetune"]
    drawn = drawn[-1:]
    stars = [text.get_text() for text in drawn[0].texts if "★" in text.get_text()]
    assert 0 < len(stars) == mine["front"].sum() < len(mine)
    framed = set()
    for row in mine.itertuples():
        move(panel, sparsity=row.point.sparsity)
        framed.add(picture_of(panel, 0)[0])
        assert f"point is {'on' if row.front else 'not on'} the" in picture_of(panel, 1)[2]
    assert len(framed) == len(mine), "each has its frame"


def test_the_map_counts_as_inside_what_the_tables_do(panel):
    for method in panel.grid.methods:
        move(panel, method=method)
        for rank, sparsity in ((1, 0.0), (1, 0.5), (8, 0.0), (8, 0.5)):
            move(panel, rank=rank, sparsity=sparsity)
            for metric in panel.grid.study.metrics:
                move(panel, metric=metric)
                table = panel.grid.surface(method, 3, metric)
                wanted = sum(a <= 1 + 1e-9 for a in table["away"])
                alt = picture_of(panel, 0)[2]
                assert f"{wanted} of {len(table)} points inside the oracles" in alt
                assert "tells inside from outside" not in alt
                assert f"framed: {panel.point}" in alt
    move(panel, method="prunelora", metric="head_refit")
    table = panel.grid.surface("prunelora", 3, "head_refit")
    assert (table["away"] <= 1).sum() < 2, "0.8 - 0.4 * 0.5 is no exact 0.6"
    assert "2 of 4 points inside" in picture_of(panel, 0)[2]


def test_a_band_that_decides_nothing_is_said_and_the_numbers_stay(cfg, original_run, monkeypatch):
    bands, drawn, real = grids.made().bands, [], plots.surface
    monkeypatch.setattr(plots, "surface", lambda *given: drawn.append(real(*given)) or drawn[-1])
    for seed in grids.SEEDS:
        bands[3][seed]["head_refit"] = (0.0, 1.0, 0.5)
    panel = widgets.explorer(cfg, record_of(bands=bands))
    words = "no band of the oracles tells inside from outside"
    for place in (0, 1):
        _, caption, alt = picture_of(panel, place)
        assert words in caption
        assert words in alt
    assert "points inside" not in picture_of(panel, 0)[2]
    assert "the chosen point is not among them." in picture_of(panel, 1)[2]
    assert [t.get_text() for t in drawn[-1].texts] == ["80.0 %", "60.0 %"] * 2
    grey = plots.to_rgb(plots.UNKNOWN)
    assert (drawn[-1].get_images()[0].get_array() == grey).all()
    move(panel, forget=8)
    assert words not in "".join(picture_of(panel, 0) + picture_of(panel, 1))


def overtake(slow, quick, inside, go):
    """Let one thread come upon another that is still inside; wait for both."""
    slow.start()
    assert inside.wait(60)
    quick.start()
    quick.join(0.5)
    go.set()
    slow.join(60)
    quick.join(60)


def test_what_was_chosen_last_stays_when_two_threads_draw(panel, monkeypatch):
    inside, go, real = threading.Event(), threading.Event(), panel.panel._draw

    def drawn(**chosen):
        if threading.current_thread().name == "slow":
            inside.set()
            go.wait(60)
        return real(**chosen)

    monkeypatch.setattr(panel.panel, "_draw", drawn)
    slow = threading.Thread(target=panel.panel.refresh, name="slow")
    quick = threading.Thread(target=move, args=(panel,), kwargs={"rank": 1})
    overtake(slow, quick, inside, go)
    assert "rank 1," in says(panel)


def picture_of(panel, place):
    """A picture of the point that is chosen, its caption and its alternative text."""
    figure = panel.panel.outputs[0].value.split("</figure>")[place]
    caption = re.search("<figcaption>(.*?)</figcaption>", figure)[1]
    return re.search('src="([^"]+)"', figure)[1], caption, re.search('alt="([^"]+)"', figure)[1]


def live_of(panel, gmacs=3.0, head_refit=0.5):
    """A run at the chosen point that was not trained."""
    metrics = {"head_refit": head_refit, "TA": 0.92}
    return grid.Live(panel.point, panel.seed, metrics, {"gmacs": gmacs}, [0.1] * 10, 1.0)


def test_what_was_trained_now_is_drawn_where_it_lies_or_at_the_edge(panel):
    move(panel, cost="gmacs", method="lora")
    seen = [picture_of(panel, 1)]
    for gmacs, head_refit in ((3.0, 0.5), (5.0, 0.5), (50.0, 0.5), (3.0, 1.2)):
        panel._keep(live_of(panel, gmacs, head_refit))
        panel.panel.refresh()
        seen.append(picture_of(panel, 1))
    nothing, here, near, dear, far = seen
    assert len({picture for picture, _, _ in seen}) == 5, "a cross is always seen, at its place"
    for _, caption, alt in (nothing, here, near):
        assert "beyond the edge" not in caption + alt
    assert "Trained now" not in nothing[2]
    assert "Trained now: 3 against 0.50." in here[2]
    assert "(×: beyond the edge)" in dear[1]
    assert "Trained now: 50 against 0.50 (×: beyond the edge)." in dear[2]
    assert "Trained now: 3 against 4.00 (×: beyond the edge)." in far[2]
    move(panel, cost="utility")
    assert "Trained now: 0.6 against 4.00" in picture_of(panel, 1)[2], "0.92, 0.9 is the edge"


def test_the_cross_stands_at_the_cost_in_its_unit_and_the_band_of_its_seed(cfg, original_run):
    bands = grids.made().bands
    bands[3][1]["head_refit"] = (0.0, 0.2, 0.1)
    panel = widgets.explorer(cfg, record_of(bands=bands))
    live, costs = live_of(panel), {"parameters": 50_000, "macs": 3e6, "seconds": 2.0}
    live.costs = costs | {"gmacs": 3.0, "file_bytes": 2e5, "trainable": 4000}
    panel._keep(live)
    shown = {"parameters": "50", "macs": "3", "seconds": "2", "gmacs": "3", "file_bytes": "200",
             "trainable": "4"}  # fmt: skip
    for cost, text in shown.items():
        move(panel, cost=cost)
        assert f"Trained now: {text} against 0.50" in picture_of(panel, 1)[2], cost
    move(panel, seed=1, cost="gmacs")
    panel._keep(dataclasses.replace(live, seed=1))
    panel.panel.refresh()
    assert "Trained now: 3 against 4.00" in picture_of(panel, 1)[2], "0.4 beyond 0.1, of 0.1"


def test_the_ledger_is_written_in_the_units_of_its_titles(panel):
    table, live = grids.made().table, live_of(panel)
    table.loc[table["method"] == "finetune", "zeros"] = 0.1  # of zeros no ratio is told
    live.costs = {"gmacs": 3.0, "zeros": 0.25, "parameters": 50_000, "channels": 1234}
    ledger = widgets.ledger_table(grid.Grid(record_of(table)), panel.point, live)
    assert ledger.T.to_dict("list") == {
        "zeros among prunable weights": ["50.0 %", "–", "25.0 %"],
        "channels": ["100", "100.0 %", "1,234"],
        "training (GMACs)": ["9", "900.0 %", "3"],
        "training, fastest seed (seconds)": ["1", "100.0 %", "–"],
        "training memory (MB)": ["4", "100.0 %", "–"],
        "trainable parameters (thousand)": ["8", "–", "–"],
        "parameters (thousand)": ["70", "100.0 %", "50"],
        "one image (MMACs)": ["2", "100.0 %", "–"],
        "file (kB)": ["300", "100.0 %", "–"],
        "patch (kB)": ["10", "–", "–"],
    }


def test_a_mark_outside_the_axes_stands_at_their_edge():
    ax = plots.tradeoff(grid.Grid(grids.made()).tradeoff(3, "head_refit", "gmacs"), "GMACs")
    (left, right), (_, top) = ax.get_xlim(), ax.get_ylim()
    drawn = [plots.mark_tradeoff(ax, *place, live=True)[0].get_xydata()[0].tolist()
             for place in ((50.0, 0.5), (-9.0, 0.5), (3.0, 5.9), (3.0, 0.5))]  # fmt: skip
    assert drawn == [[right, 0.5], [left, 0.5], [3.0, top], [3.0, 0.5]]


def test_what_was_trained_now_has_the_colour_of_no_method():
    ax = plots.tradeoff(grid.Grid(grids.made()).tradeoff(3, "head_refit", "gmacs"), "GMACs")
    under, over = plots.mark_tradeoff(ax, 3.0, 0.5, live=True)
    assert (under.get_markeredgecolor(), over.get_markeredgecolor()) == ("white", "black")
    assert under.get_markeredgewidth() > over.get_markeredgewidth(), "it is seen on dark markers"
    assert "ring: the chosen point, its mean over seeds; ×: this seed" in widgets._WHY


def test_the_page_says_what_colours_and_the_last_tick_mean(panel):
    for word in ("the deeper the nearer", "the deeper the further", "grey: not stored", "≥ 6"):
        assert word in widgets._WHY
    assert f"; {grid.FAR:g} half-widths: as many or more;" in picture_of(panel, 1)[2]


CARS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_long_names_of_classes_stand_apart_and_inside_the_picture(panel):
    seen = []
    with plt.style.context("default"):  # whatever style another test has set
        digits, sheet = (
            widgets._Sheet(panel._easel, lambda ax, n=n: seen.append(plots.label_shares(n, ax)))
            for n in ([str(i) for i in range(10)], CARS)
        )
    labels = seen[1].get_xticklabels()
    assert [label.get_text() for label in labels] == CARS
    assert {label.get_rotation() for label in labels} == {30}
    (left, _), (right, _) = seen[1].transData.transform([(0, 0), (1, 0)])
    high = labels[0].get_fontsize() * seen[1].figure.dpi / 72
    assert (right - left) * math.sin(math.radians(30)) > high, "none touches the next"
    assert seen[1].get_tightbbox().y0 >= 0
    assert sheet.box.y0 > digits.box.y0 == pytest.approx(0.15), "digits need no more room"


# ------------------------------------------------------------------------------------------------
# trained now


@pytest.fixture
def trained(panel):
    panel.run.click()
    assert panel.wait(120)
    return panel


def test_a_live_run_is_drawn_onto_the_stored_point(trained):
    assert "trained and measured in" in trained.note.value
    assert not trained.run.disabled
    assert trained.halt.disabled
    assert trained.bar.value == trained.bar.max
    assert "Trained now:" in says(trained)
    tables = trained.panel.outputs[1].value
    assert "live - stored" in tables
    assert re.search(r"[+-]\d+\.\d pp", tables)
    assert "live mostly" in trained.panel.outputs[0].value
    assert "one oracle mostly" in picture_of(trained, 2)[2]
    assert "oracles mostly" not in picture_of(trained, 2)[2]
    move(trained, rank=1)
    assert "Trained now" not in says(trained), "another point was not trained"
    assert "live - stored" not in trained.panel.outputs[1].value
    move(trained, rank=8)
    assert "Trained now" in says(trained)


def test_the_bars_are_the_shares_of_those_they_name(panel, dataset, original_run, monkeypatch):
    real, drawn, keys = plots.mark_shares, [], []
    monkeypatch.setattr(plots, "mark_shares", lambda ax, s: drawn.append(s) or real(ax, s))
    made = plots.label_shares
    monkeypatch.setattr(plots, "label_shares", lambda *a: keys.append(made(*a)) or keys[-1])
    before, oracle = (original_run.model(dataset) for _ in range(2))
    with torch.no_grad():
        oracle.fc.bias[7] += 1e3  # it says 7 to everything
    live = live_of(panel)
    live.networks = {"before": before, "after": before, "oracle": oracle}
    panel._keep(live)
    panel.panel.refresh()
    seven = [0.0] * 7 + [1.0, 0.0, 0.0]
    assert drawn[-1] == {"stored": panel.grid.predicted(panel.point, 0), "live": [0.1] * 10,
                         "one oracle": seven}  # fmt: skip
    assert "one oracle mostly 7 (100%)" in picture_of(panel, 2)[2]
    assert [t.get_text() for t in keys[-1].get_legend().texts] == ["stored", "live", "one oracle"]
    found = grids.made()
    retrained = found.table[found.table["method"] == "finetune"].assign(method="retrain")
    table = pd.concat([found.table, retrained], ignore_index=True)
    other = widgets.explorer(panel.cfg, study.Study(table, found.bands, 5, found.about))
    other._keep(live)
    other.panel.refresh()
    assert list(drawn[-1]) == ["stored", "live", "oracles"]
    assert drawn[-1]["oracles"] == pytest.approx([0, 0, 0, 0, 0, 60 / 81, 0, 0, 0, 21 / 81])


def test_in_paper_mode_pictures_are_shown_as_the_metrics_were_measured(cfg, dataset, original_run):
    paper = cfg.but(mode="paper")
    found = widgets.explorer(paper, grids.made())
    live = SimpleNamespace(point=found.point, networks={"after": original_run.model(dataset)})
    images = dataset.split(3).test_forget.images[:4]
    shown = re.findall(r"\((\d+)%\)", found._answers(live, images, "caption"))
    fed = runs.as_evaluated(dataset, paper).normalise(images)
    with torch.no_grad():
        wanted = live.networks["after"](fed).double().softmax(1).max(1).values
    assert shown == [f"{100 * share:.0f}" for share in wanted.tolist()]
    assert " Stored with mode default, trained with paper" in found._otherwise(found.point)


def test_a_pinned_point_that_is_trained_is_compared_anew(panel, dataset, monkeypatch):
    panel.pin.click()
    before = panel.compared.value
    metrics = {"UA": 0.123}
    live = grid.Live(panel.point, panel.seed, metrics, {}, [0.1] * 10, 1.0)
    monkeypatch.setattr(grid, "train", lambda *_: live)
    monkeypatch.setattr(grid, "oracle", lambda *_: None)
    panel.start()
    assert panel.wait(60)
    assert panel.compared.value != before
    assert "12.3 %" in panel.compared.value


def test_another_preset_is_said(cfg, dataset, original_run):
    panel = widgets.explorer(cfg, grids.made("cpu"))
    panel.start()
    assert panel.wait(120)
    assert "Stored with preset cpu, trained with smoke" in panel.note.value


def test_another_network_or_recipe_is_said(cfg, dataset, original_run):
    made = grids.made()
    point = grid.Point("prunelora", 3, 8, 0.5)

    def why(changed, about=made.about, point=point):
        record = study.Study(made.table, made.bands, 5, about)
        return widgets.explorer(changed, record)._otherwise(point)

    assert why(cfg) == why(cfg, made.about | {"model": "digits_resnet"}) == ""
    assert why(cfg.but(cache_mb=0, rank=2, sparsity=0.1, seed=4, original_seed=1)) == ""
    narrow = cfg.but(model="resnet_tiny", epochs=1)
    assert why(narrow, made.about | {"model": "digits_resnet"}) == (
        " Stored with model digits_resnet, trained with resnet_tiny and epochs as in the preset, "
        "trained with 1: they differ for that reason."
    )
    assert "model digits_resnet, trained with resnet_tiny" in why(narrow), "that of the preset"
    assert why(narrow.but(epochs=None), made.about | {"model": "resnet_tiny"}) == ""
    longer = cfg.but(train=dataclasses.replace(cfg.train, epochs=13))
    assert "train as in the preset, trained with another recipe" in why(longer)
    assert why(cfg.but(adapter="dora"), point=grid.Point("finetune", 3)) == "", "it has none"


def test_stop_stops(panel, monkeypatch):
    real, seen = training.fit, []

    def fit(*args, **kwargs):
        seen.append("fit")
        panel.halt.click()  # as from the browser while the thread trains
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "fit", fit)
    panel.run.click()
    assert panel.wait(120)
    assert seen == ["fit"]
    assert re.search(r"stopped after 1 of \d+ steps", panel.note.value)
    assert not panel.lives
    assert not panel.run.disabled
    monkeypatch.undo()
    panel.run.click()
    assert panel.wait(120)
    assert len(panel.lives) == 1, "the next run is not stopped by the old button"


def test_stop_stops_what_waits_for_another_process(panel, dataset, home):
    own = panel.point.of(panel.cfg, panel.seed, panel.grid.seeds[panel.seed])
    first = own.but(method="original", seed=own.start_seed, original_seed=None)
    with files.locked(runs.folder_of(first, dataset) / "lock"):  # another one trains it
        panel.run.click()
        ends = time.monotonic() + 30
        while "waiting for another process" not in panel.note.value and time.monotonic() < ends:
            time.sleep(0.05)
        assert "training the network before: waiting for another process …" in panel.note.value
        panel.halt.click()
        assert panel.wait(10)
    assert "stopped while waiting for another process." in panel.note.value
    assert not panel.run.disabled
    assert not panel.lives


def test_stop_stops_what_waits_for_another_training_in_this_process(panel):
    with turns.taken():  # as a cell that trains
        panel.run.click()
        ends = time.monotonic() + 30
        while "waiting for another" not in panel.note.value and time.monotonic() < ends:
            time.sleep(0.05)
        assert "training: waiting for another training in this process …" in panel.note.value
        panel.halt.click()
        assert panel.wait(10)
    assert "stopped while waiting for another training in this process." in panel.note.value
    assert not panel.run.disabled
    assert not panel.lives


def test_what_is_done_is_said_at_once_and_its_steps_now_and_then(panel, monkeypatch):
    seen, now = [], [100.0]
    monkeypatch.setattr(widgets.time, "monotonic", lambda: now[0])
    for line in (panel.note, panel.steps):
        line.observe(lambda c: seen.append(re.sub("<[^>]+>", "", c["new"])), "value")
    for step in (1, 2, 3, 4):
        panel._say("this", "training", step, 4)
        now[0] += 0.04
    panel._say("this", "measuring", 0, 1)
    assert seen == ["this: training …", "step 1 of 4", "step 4 of 4", "this: measuring …", ""]
    panel._say("this", "an oracle", 1, 9)
    panel._say("this", "an oracle", 2, 9)
    now[0] += 0.2
    panel._say("this", "an oracle", 3, 9)
    assert seen[5:] == ["this: an oracle …", "step 1 of 9", "step 3 of 9"]


def test_every_phase_says_which_point_is_trained_whatever_the_sliders_show(panel, monkeypatch):
    said, live = [], live_of(panel)
    panel.note.observe(lambda change: said.append(change["new"]), names="value")

    def train(stored, point, seed, cfg, dataset, stop, say):
        for phase in ("training", "measuring"):
            say(phase, 0, 1)
            move(panel, rank=1, seed=1)
        return live

    def oracle(*given):
        given[-1]("an oracle", 0, 1)
        raise training.Interrupted("stopped after 1 of 9 steps")

    monkeypatch.setattr(grid, "train", train)
    monkeypatch.setattr(grid, "oracle", oracle)
    which = f"{panel.point}, seed 0: "
    panel.run.click()
    assert panel.wait(60)
    assert len(said) == 6
    assert all(which in line for line in said)
    move(panel, rank=8, seed=0)
    monkeypatch.setattr(grid, "train", oracle)
    panel.run.click()
    assert panel.wait(60)
    assert f"<p>{which}stopped after 1 of 9 steps.</p>" == panel.note.value


def test_stop_says_when_it_will_stop(panel, monkeypatch):
    seen, heard = [], threading.Event()

    def train(stored, point, seed, cfg, dataset, stop, say):
        say("training", 1, 9)
        heard.set()
        stop.wait(60)
        say("measuring", 0, 1)
        seen.append(panel.note.value)
        raise training.Interrupted("stopped after 2 of 9 steps; /a/folder")

    monkeypatch.setattr(grid, "train", train)
    panel.run.click()
    assert heard.wait(60)
    panel.halt.click()
    assert panel.wait(60)
    assert "Stopping after the current step" in seen[0]
    assert "stopped after 2 of 9 steps." in panel.note.value
    panel.stop()
    assert "stopped after 2 of 9 steps." in panel.note.value, "nothing trains"


def test_the_bar_begins_anew(panel, monkeypatch):
    seen = []
    monkeypatch.setattr(panel, "_work", lambda *_: seen.append(panel.bar.value))
    panel.bar.value = 70
    panel.start()
    assert panel.wait(60)
    assert seen == [0]


def test_a_run_done_again_is_the_latest(panel):
    first, other = live_of(panel), live_of(panel)
    other.seed = 1
    for live in (first, other, first):
        panel._keep(live)
    assert list(panel.lives) == [(panel.point, 1), (panel.point, 0)]
    move(panel, rank=1)
    assert panel._latest is first


def test_a_run_that_cannot_begin_can_be_tried_again(panel, monkeypatch):
    def full(*_):
        raise RuntimeError("can't start new thread")

    for owner, name in ((threading.Thread, "start"), (grid.Grid, "point")):
        panel.note.value = ""
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            panel.run.click()  # ipywidgets catches what is raised
        assert 'role="alert"' in panel.note.value
        assert "start new thread" in panel.note.value
        assert not panel.run.disabled
        assert panel.halt.disabled
    panel.run.click()
    assert panel.wait(120)
    assert panel.lives


def test_peft_is_loaded_by_the_live_run_that_needs_it(cfg, dataset, original_run, monkeypatch):
    """To open takes no seconds for it, and the training's clock stands while it is loaded."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)  # as if it could not be imported
        panel = widgets.explorer(cfg, grids.made())
        patch.setattr(grid, "train", lambda *_: live_of(panel))
        patch.setattr(grid, "oracle", lambda *_: None)
        panel.run.click()
        assert panel.wait(60)
        assert re.search('role="alert".*It could not be trained.*peft', panel.note.value)
        assert not panel.run.disabled
        move(panel, method="finetune")
        panel.run.click()
        assert panel.wait(60)
        assert "finetune" in panel.note.value
        assert "trained and measured" in panel.note.value
        move(panel, method="prunelora")
    panel.run.click()
    assert panel.wait(120)
    assert re.search("prunelora.*trained and measured", panel.note.value), "another try"


def test_two_runs_at_once_are_one(panel, monkeypatch):
    calls, real = [], grid.train
    monkeypatch.setattr(grid, "train", lambda *a: calls.append(1) or real(*a))
    panel.start()
    panel.start()
    assert panel.wait(120)
    assert len(calls) == 1


def test_phases_are_said_once_and_steps_beside_the_bar(panel):
    said = []
    panel.note.observe(lambda change: said.append(change["new"]), names="value")
    for done in (0, 50, 100):
        panel._say("this", "training", done, 100)
    assert panel.steps.value == "step 100 of 100"
    assert panel.bar.value == 100
    panel._say("this", "measuring", 0, 1)  # soon after the last one, and said all the same
    assert said == ["<p>this: training …</p>", "<p>this: measuring …</p>"]
    assert "says" not in str(panel.steps._dom_classes), "no live region"


@pytest.mark.parametrize("kind", [RuntimeError, InputError])
@pytest.mark.parametrize("what", ["train", "oracle"])
def test_an_error_in_the_thread_is_shown_and_logged(panel, monkeypatch, caplog, kind, what):
    def broken(*_):
        raise kind("broken on purpose")

    if what == "oracle":
        monkeypatch.setattr(grid, "train", lambda *_: live_of(panel))
    monkeypatch.setattr(grid, what, broken)
    with caplog.at_level(logging.INFO):
        panel.run.click()
        assert panel.wait(30)
    assert ('role="alert"' in panel.note.value) == (what == "train")
    assert f"{kind.__name__}: broken on purpose" in panel.note.value
    assert ("Traceback" in caplog.text) == (kind is RuntimeError), "no fault of the explorer"
    assert ("refused: broken on purpose" in caplog.text) == (kind is InputError)
    assert not panel.run.disabled


@pytest.mark.parametrize(
    ("error", "text"),
    [(RuntimeError("disk full"), "No oracle: RuntimeError: disk full"),
     (training.Interrupted("stopped after 1 of 9 steps; /a/folder"),
      "No oracle: stopped after 1 of 9 steps.")],
)  # fmt: skip
def test_without_an_oracle_the_point_is_shown_all_the_same(panel, monkeypatch, error, text):
    def fails(*_):
        raise error

    monkeypatch.setattr(grid, "oracle", fails)
    panel.run.click()
    assert panel.wait(120)
    assert re.search(rf"trained and measured in [\d.]+ s\. {text}", panel.note.value)
    assert "/a/folder" not in panel.note.value
    assert "alert" not in panel.note.value
    assert ">after</th>" in panel.seen.value
    assert ">oracle</th>" not in panel.seen.value
    assert not panel.run.disabled


def test_what_was_trained_but_cannot_be_drawn_is_not_called_untrained(panel, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(plots, "mark_shares", broken)
    panel.run.click()
    assert panel.wait(120)
    assert "trained and measured in" in panel.note.value
    assert "It could not be shown." in panel.note.value
    assert "broken on purpose" in panel.note.value


def test_a_point_that_cannot_be_trained_says_why(panel):
    panel.cfg = panel.cfg.but(targets="all")
    move(panel, rank=8, method="prunelora_channels")
    panel.cfg = panel.cfg.but(cache_mb=0, dropout=0.5, pruning="mask_nm", sparsity=0.5)
    panel.run.click()
    assert panel.wait(60)
    assert "InputError" in panel.note.value


# ------------------------------------------------------------------------------------------------
# side by side


def test_pins_stand_side_by_side_and_can_be_taken_along(trained):
    panel = trained
    panel.pin.click()
    move(panel, method="lora")
    panel.pin.click()
    panel.pin.click()
    assert list(panel.pinned.options) == list(panel.pins)
    assert len(panel.pins) == 2, "pinned twice is pinned once"
    table = panel.comparison()
    link = re.search(r'download="explorer.csv" href="data:text/csv;base64,([^"]+)"',
                     panel.compared.value)  # fmt: skip
    read = pd.read_csv(io.BytesIO(base64.b64decode(link[1])))
    assert list(read.columns) == list(table.columns)
    assert len(read) == len(table)
    known = read[(read["method"] == "prunelora") & (read["name"] == "TA")].iloc[0]
    assert known["value"] == pytest.approx(0.92)
    assert known["difference"] == pytest.approx(known["live"] - known["value"])
    assert read[read["method"] == "lora"]["live"].isna().all()
    png = re.search(r'download="explorer.png" href="data:image/png;base64,([^"]+)"',
                    panel.compared.value)  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(png[1]))) as image:
        assert image.width > 400
        least = re.search(r"min-width: (\d+)px; max-width: 100%", panel.compared.value)
        assert int(least[1]) > image.width / 2, "it scrolls before it is too small to be read"
    side = widgets.side_by_side(table)
    assert side.shape[1] == 2
    assert side.loc["steps back"].str.endswith("✗").all()
    panel.pinned.value = next(iter(panel.pins))
    panel.unpin.click()
    assert len(panel.pins) == 1
    panel.unpin.click()
    assert "No point is pinned" in panel.compared.value
    assert panel.unpin.disabled


def test_the_key_of_the_figure_is_that_of_one_seed(panel, monkeypatch):
    real, drawn = plots.lie_detector, []
    monkeypatch.setattr(
        plots, "lie_detector", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1]
    )
    panel.pin.click()
    key = [text.get_text() for text in drawn[-1].get_legend().texts]
    assert key == ["inside the band", "outside", "number: of the seed"]


def test_the_file_holds_the_numbers_of_the_grid(panel):
    move(panel, seed=1)
    panel._keep(live_of(panel, gmacs=3.0, head_refit=0.5))
    panel.pin.click()
    link = re.search(r'href="data:text/csv;base64,([^"]+)"', panel.compared.value)
    read = pd.read_csv(io.BytesIO(base64.b64decode(link[1])))
    assert read["pin"].unique().tolist() == ["prunelora, class 3, rank 8, sparsity 50 %, seed 1"]
    place = read[["method", "forget", "rank", "sparsity", "seed"]].drop_duplicates()
    assert place.to_numpy().tolist() == [["prunelora", 3, 8, 0.5, 1]]
    rows = read.set_index("name")
    wanted = {row["name"]: row for row in panel.grid.metrics(panel.point, 1)}
    assert [*wanted] == rows.index[rows["kind"] == "metric"].tolist()
    for name, row in wanted.items():
        found = rows.loc[name]
        for key, value in {
            "band_low": row["band"][0],
            "band_high": row["band"][1],
            **{k: row[k] for k in ("value", "mean", "low", "high")},
        }.items():
            assert found[key] == pytest.approx(math.nan if value is None else value, nan_ok=True)
        assert str(found["inside"]) == str(row["inside"])
    assert (rows.loc["TA", "band_low"], rows.loc["TA", "band_high"]) == (0.9, 1.0)
    assert rows.loc["head_refit", "difference"] == pytest.approx(0.5 - 0.6)
    costs = rows[rows["kind"] == "cost"]
    assert costs["value"].to_dict() == panel.grid.costs(panel.point)
    assert (costs.loc["seconds", "value"], costs.loc["seconds", "mean"]) == (1.0, 1.5), "1 and 2"
    others = costs.drop("seconds")
    assert others["mean"].tolist() == pytest.approx(others["value"].tolist())
    assert (costs.loc["gmacs", "live"], costs.loc["gmacs", "value"]) == (3.0, 9.0)
    assert costs.loc["gmacs", "difference"] == -6.0
    assert costs.drop("gmacs")[["live", "difference"]].isna().all(axis=None)


def test_too_many_pins_are_refused_where_the_visitor_sees_it(panel):
    places = [(m, r) for m in ("prunelora", "prunelora_channels", "lora") for r in (1, 8)]
    for method, rank in [*places, ("finetune", 8)]:
        move(panel, method=method, rank=rank)
        panel.pin.click()
    assert len(panel.pins) == widgets.MOST_PINS
    assert "at most 6; unpin one first" in panel.refused.value
    assert panel.refused in parts_of(panel.widget), "it is shown"
    assert "Trains exactly this point" in panel.note.value
    move(panel, method="lora", rank=8)  # which is pinned already
    panel.pin.click()
    assert not panel.refused.value
    assert len(panel.pins) == widgets.MOST_PINS
    panel.unpin.click()
    assert not panel.refused.value


def parts_of(widget):
    inside = [part for child in getattr(widget, "children", ()) for part in parts_of(child)]
    return [widget, *inside]


def test_a_point_may_be_pinned_while_another_thread_compares(panel, monkeypatch):
    panel.pin.click()
    real, first = panel.grid.metrics, panel.point

    def metrics(point, seed):  # meanwhile the visitor pins and unpins
        panel.pins["another"] = (first, 1)
        panel.pins.pop("another")
        panel.pins[f"one more {len(panel.pins)}"] = (first, 1)
        return real(point, seed)

    monkeypatch.setattr(grid.Grid, "metrics", lambda _, *asked: metrics(*asked))
    assert panel.comparison()["pin"].nunique() == 1


def test_pins_are_compared_by_one_thread_at_a_time_and_without_pyplot(panel, monkeypatch):
    panel.pin.click()
    inside, go, seen = threading.Event(), threading.Event(), []
    real = plots.lie_detector

    def drawn(table, ax, **how):
        seen.append(threading.current_thread().name)
        if seen == ["slow"]:
            inside.set()
            go.wait(60)
        seen.append(threading.current_thread().name)
        return real(table, ax, **how)

    monkeypatch.setattr(plots, "lie_detector", drawn)
    monkeypatch.setattr(plt, "subplots", None)
    slow, quick = (threading.Thread(target=panel._compare, name=n) for n in ("slow", "quick"))
    overtake(slow, quick, inside, go)
    assert seen == ["slow", "slow", "quick", "quick"]


def test_a_pinned_point_keeps_its_live_numbers_and_few_runs_their_networks(panel):
    first = live_of(panel)
    first.networks = {"before": None, "after": None}
    panel._keep(first)
    panel.pin.click()
    before = panel.comparison()
    assert before["live"].notna().any()
    for seed in range(widgets.MOST_LIVES):
        other = grid.Live(grid.Point("lora", 8, 1), seed, {}, {}, [0.1] * 10, 1.0, {"after": None})
        assert panel.lives[first.point, first.seed].networks
        panel._keep(other)
    pd.testing.assert_frame_equal(panel.comparison(), before)
    kept = [live for live in panel.lives.values() if live.networks]
    assert len(kept) == widgets.MOST_LIVES
    assert not panel.lives[first.point, first.seed].networks
    panel._show_networks()
    assert "no longer kept" in panel.seen.value
    assert "press “Run it live”" in panel.seen.value


# ------------------------------------------------------------------------------------------------
# pictures


def png(color=0):
    with io.BytesIO() as file:
        Image.new("L", (20, 20), color).save(file, "PNG")
        return file.getvalue()


def test_pictures_need_a_network_and_then_show_three(trained):
    value = trained.seen.value
    assert value.count('class="pixels"') == 8
    for name in ("before", "after", "oracle", "probability of 3, after"):
        assert f">{name}</th>" in value
    trained.which.value = "other classes, answers that changed"
    assert "answers that changed" in trained.seen.value


def test_before_a_live_run_the_panel_says_what_to_do(panel):
    assert "press “Run it live”" in panel.seen.value
    upload(panel, png())
    assert "press “Run it live”" in panel.own.value


def test_an_own_picture_is_answered_by_the_networks_that_are_shown(panel):
    upload(panel, png())
    panel.run.click()
    assert panel.wait(120)
    assert f"{panel.point}, seed 0: your picture" in panel.own.value
    assert ">oracle</th>" in panel.own.value
    first = {"seen": panel.seen.value, "own": panel.own.value}
    move(panel, seed=1)
    assert {"seen": panel.seen.value, "own": panel.own.value} == first, "no other was trained"
    panel.run.click()
    assert panel.wait(120)
    assert f"{panel.point}, seed 1: your picture" in panel.own.value
    assert f"{panel.point}, seed 1: forgotten" in panel.seen.value
    move(panel, seed=0)
    assert {"seen": panel.seen.value, "own": panel.own.value} == first, "the chosen one's"
    move(panel, rank=1)
    assert "seed 1: your picture" in panel.own.value, "the latest, where none was trained"


def test_pictures_that_cannot_be_shown_leave_none_of_another_choice(trained, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken <on purpose>")

    monkeypatch.setitem(widgets.LEAKS, "other classes, answers that changed", broken)
    with pytest.raises(RuntimeError):
        trained.which.value = "other classes, answers that changed"
    assert "broken &lt;on purpose&gt;" in trained.seen.value
    assert 'class="pixels"' not in trained.seen.value
    assert "trained and measured" in trained.note.value, "which belongs to the run"


def upload(panel, content, name="a.png"):
    """As a browser sends it to the installed ipywidgets."""
    about = {"name": name, "type": "image/png", "size": len(content)}
    if isinstance(panel.upload.value, dict):  # 7.7
        panel.upload.set_state({"metadata": [about | {"lastModified": 0}],
                                "data": [memoryview(content)],
                                "_counter": panel.upload._counter + 1})  # fmt: skip
        return
    about |= {"last_modified": 0, "content": memoryview(content)}
    panel.upload.set_state({"value": [about]})


def test_an_own_picture_is_shown_as_the_networks_get_it(trained):
    upload(trained, png())
    assert trained.own.value.count('class="pixels"') == 1
    assert '<th scope="col">oracle</th>' in trained.own.value
    dark = trained.own.value
    trained.invert.value = True
    assert trained.own.value != dark
    upload(trained, b"<script>alert(1)</script>", "<b>.png")
    assert 'role="alert"' in trained.own.value
    assert "InputError: &lt;b&gt;.png: " in trained.own.value
    assert "the picture cannot be read" in trained.own.value
    assert "<script>" not in trained.own.value


def test_pictures_are_shown_with_the_probability_after_and_inverted_whole(panel, dataset):
    class Sure(torch.nn.Module):
        def __init__(self, share):
            super().__init__()
            rest = torch.full((10,), (1 - share) / 10)
            self.answer = (rest + share * torch.eye(10)[3]).log()

        def forward(self, images):
            return self.answer.expand(len(images), 10)

    live = live_of(panel)
    live.networks = {"before": Sure(0.8), "after": Sure(0.2), "oracle": Sure(0.0)}
    panel._keep(live)
    upload(panel, png(10))
    cells = re.findall("<td>(.*?)</td>", panel.own.value)
    assert cells[:2] == ["3 (82%)", "3 (28%)"]
    assert cells[3] == "28.0%"

    def pixels():
        found = re.search('src="data:image/png;base64,([^"]+)"', panel.own.value)[1]
        with Image.open(io.BytesIO(base64.b64decode(found))) as image:
            return {*image.tobytes()}

    assert pixels() == {10}
    panel.invert.value = True
    assert pixels() == {245}


def test_an_answer_replaces_what_the_pages_script_wrote_even_by_the_same(panel):
    sent = {part: [] for part in (panel.own, panel.most)}
    for part, seen in sent.items():
        part.observe(lambda change, seen=seen: seen.append(change["new"]), names="value")
    for content in (b"none", b"none, too"):  # both have the same error
        for seen in sent.values():
            seen.clear()
        upload(panel, content)
        for part, seen in sent.items():
            assert seen[-1] == part.value
            assert len(seen) >= 1 + (part is panel.most)
    assert sent[panel.own][0] == ""
    assert "a.png: the picture cannot be read" in panel.own.value
    assert panel.most.value == panels.line("at most 10 MB")


def test_the_value_of_an_upload_field_in_both_versions():
    assert widgets.uploaded({}) is widgets.uploaded(()) is None
    assert widgets.uploaded({"a.png": {"metadata": {}, "content": b"12"}}) == ("a.png", b"12")
    assert widgets.uploaded(({"name": "a", "content": memoryview(b"12")},)) == ("a", b"12")
    for value in ("text", 5, (5,), {"a": 5}, ({"name": "a"},), {"a": {"content": "text"}}):
        with pytest.raises(InputError, match="upload"):
            widgets.uploaded(value)


def test_every_control_has_a_description(panel):
    assert all(control.description for control in panel.inputs.values())
    assert isinstance(panel.panel, panels.Panel)


OLD = """
import ipywidgets, pytest, sys
assert ipywidgets.__version__ == "7.7.1", ipywidgets.__version__
sys.exit(pytest.main(["-q", "-n0", "-p", "no:cacheprovider", sys.argv[1], "-k",
                      "(opens or visitor or pins or picture or live_run) and not colab"]))
"""


def test_the_explorer_works_with_the_ipywidgets_of_colab(colab_ipywidgets):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(colab_ipywidgets), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", OLD, __file__], env=environment, cwd=ROOT,
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize(
    ("name", "difference", "text"),
    [
        ("TA", -0.0123, "-1.2 pp"),
        ("TA", -0.0001, "+0.0 pp"),
        ("Avg Gap", 0.0123, "+1.23 pp"),
        ("relearn_steps", -2.26, "-2.3"),
        ("CKA_forget", 0.0126, "+0.013"),
        ("TV", -0.0001, "+0.000"),
        ("TV", None, "–"),
    ],
)
def test_a_difference_is_written_as_its_metric(name, difference, text):
    assert widgets.difference_text({"name": name, "difference": difference}) == text
