from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from helpers import plots
from helpers.config import InputError
from tests.seen import contrast

BLUE, VERMILLION, BLACK = plots.ORACLE.lower(), plots.FORGET.lower(), "#000000"


def metric(value, band=(0.4, 0.6), original=0.5, oracles=(0.45, 0.5, 0.55), title="a metric"):
    low, high = band
    inside = (low is None or value >= low) and (high is None or value <= high)
    return {"name": title, "title": title, "value": value, "band": list(band), "inside": inside,
            "oracles": list(oracles), "original": original}  # fmt: skip


def drawn(ax, marker):
    """Points of a kind, in data coordinates, with their colours; the legend's are elsewhere."""
    lines = [line for line in ax.get_lines() if line.get_marker() == marker]
    return [(float(x), float(y), to_hex(line.get_color()))
            for line in lines for x, y in zip(*line.get_data(), strict=True)]  # fmt: skip


def bands(ax):
    return [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches if isinstance(p, Rectangle)]


# ------------------------------------------------------------------------------------ oracle bands


def test_every_band_has_the_same_width_and_values_lie_where_they_lie_in_it():
    rows = [metric(0.55, original=0.8), metric(7.0, (10.0, 30.0), 25.0, (12.0, 20.0), "another")]
    ax = plots.oracle_bands(rows)
    assert bands(ax) == [pytest.approx((-1, 1)), pytest.approx((-1, 1))]
    # (0.55 - 0.5) / 0.1 and (7 - 20) / 10
    assert [(round(x, 9), c) for x, _, c in drawn(ax, "D")] == [(0.5, BLUE), (-1.3, VERMILLION)]
    assert [(round(x, 9), c) for x, _, c in drawn(ax, "X")] == [(3.0, BLACK), (0.5, BLACK)]
    assert [(round(x, 9), c) for x, _, c in drawn(ax, ".")] == [
        (-0.5, BLUE), (0.0, BLUE), (0.5, BLUE), (-0.8, BLUE), (0.0, BLUE),
    ]  # fmt: skip
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a metric", "another"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first row is on top"
    assert not ax.texts


def test_what_lies_far_away_is_written_at_the_edge():
    rows = [metric(0.0, original=1.2), metric(0.5, original=-5.0)]
    ax = plots.oracle_bands(rows, write=lambda name, value: f"{value:+.2f}")
    assert [t.get_text() for t in ax.texts] == ["+1.20 →", "← -5.00"]
    assert [x for x, _, _ in drawn(ax, "X")] == [6, -6]
    assert [round(x, 9) for x, _, _ in drawn(ax, "D")] == [-5, 0]
    assert [t.get_color() for t in ax.texts] == [BLACK, BLACK]
    left, right = ax.get_xlim()
    assert left < -6 < 6 < right


def test_the_mark_at_six_half_widths_is_still_in_its_place():
    ax = plots.oracle_bands([metric(8.0, (-1.0, 1.0), original=8.25, oracles=())])
    assert [t.get_text() for t in ax.texts] == ["8.25 →", "8 →"]
    ax = plots.oracle_bands([metric(6.0, (-1.0, 1.0), original=-6.0, oracles=())])
    assert not ax.texts


def test_two_values_in_one_place_do_not_hide_each_other():
    ax = plots.oracle_bands([metric(0.5), metric(9.0, original=8.0), metric(0.4, original=0.6)])
    heights = [abs(d[1] - x[1]) for d, x in zip(drawn(ax, "D"), drawn(ax, "X"), strict=True)]
    assert heights == [pytest.approx(0.4), pytest.approx(0.4), 0]
    texts = {t.get_text(): t.get_position()[1] for t in ax.texts}
    assert abs(texts["9 →"] - texts["8 →"]) == pytest.approx(0.4)


def test_a_band_without_width_is_a_line_and_every_other_value_is_outside_of_it():
    ax = plots.oracle_bands([metric(1.0, (1.0, 1.0), 0.98, (1.0, 1.0))])
    assert bands(ax) == [(0, 0)]
    assert ax.patches[0].get_linewidth() > 0, "it can be seen"
    assert drawn(ax, "D")[0][0] == 0
    assert drawn(ax, "X")[0][0] == -6
    assert [t.get_text() for t in ax.texts] == ["← 0.98"]


def test_a_band_with_one_end_runs_to_the_edge_on_the_other_side():
    rows = [
        metric(0.0, (None, 0.6), 0.9, (0.2, 0.3)),
        metric(0.9, (0.4, None), 0.1, (0.6, 0.8)),
        metric(0.9, (None, None), 0.9, (0.6, 0.8)),
        metric(0.5, (None, None), 0.7, ()),
    ]
    ax = plots.oracle_bands(rows)
    left, right = ax.get_xlim()
    (a, b), (c, d), (e, f), (g, h) = bands(ax)
    assert (a < left, b) == (True, pytest.approx(1))
    assert (c, d > right) == (pytest.approx(-1), True)
    assert max(e, g) < left < right < min(f, h)
    # the middle of 0.2 and 0.6 is 0.4, half their distance 0.2; of 0.4 and 0.8: 0.6 and 0.2
    assert [round(x, 9) for x, _, _ in drawn(ax, "D")][:2] == [-2.0, 1.5]
    assert {c for _, _, c in drawn(ax, "D")} == {BLUE}
    assert [round(x, 9) for x, _, _ in drawn(ax, "X")][:2] == [2.5, -2.5]


def test_a_title_with_a_dollar_is_no_formula_and_no_metrics_are_refused():
    ax = plots.oracle_bands([metric(0.5, title="a $x^ price of $")])
    ax.figure.canvas.draw()
    with pytest.raises(InputError, match=r"metrics = \[\] is not allowed: at least one"):
        plots.oracle_bands([])


# ---------------------------------------------------------------------------------- lie detector


def table(methods=4, metrics=3, shares=(1.0, 0.0, 0.5, 0.25)):
    rows = [
        {"method": f"m{i}", "family": "reference" if i < 2 else "cheat", "metric": f"k{j}",
         "title": f"metric {j}", "group": "first" if j < 2 else "second",
         "inside": shares[(i + j) % len(shares)], "text": f"{i}.{j} %"}
        for i in range(methods) for j in range(metrics)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def cells(ax):
    """Text by place, of the cells alone: names of groups and families lie outside."""
    height, width = ax.get_images()[0].get_array().shape[:2]
    found = {t.get_position(): t for t in ax.texts}
    return {(x, y): t for (x, y), t in found.items()
            if x in range(width) and y in range(height)}  # fmt: skip


def picture(ax):
    return np.asarray(ax.get_images()[0].get_array())


def test_the_panel_has_a_cell_for_every_pair_with_its_text():
    ax = plots.lie_detector(table())
    assert picture(ax).shape == (4, 3, 3)
    assert {(x, y): t.get_text() for (x, y), t in cells(ax).items()} == {
        (j, i): f"{i}.{j} %" for i in range(4) for j in range(3)
    }
    assert [t.get_text() for t in ax.get_yticklabels()] == ["m0", "m1", "m2", "m3"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["metric 0", "metric 1", "metric 2"]


def test_blue_is_inside_white_the_middle_and_vermillion_outside():
    seen = picture(plots.lie_detector(table()))
    assert seen[0, 0] == pytest.approx(to_rgb(plots.ORACLE), abs=0.01)
    assert seen[0, 1] == pytest.approx(to_rgb(plots.FORGET), abs=0.01)
    assert seen[0, 2] == pytest.approx((1, 1, 1), abs=0.01)
    between = (np.array(to_rgb(plots.FORGET)) + 1) / 2
    assert seen[1, 2] == pytest.approx(between, abs=0.01), "a quarter is halfway to white"


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_what_decides_nothing_is_grey_with_its_number_and_a_dash_if_it_has_none():
    lacking = table()
    assert "nothing to decide" not in legend(plots.lie_detector(lacking))
    lacking.loc[0, "inside"] = np.nan
    number = lacking.loc[0, "text"]
    lacking = lacking.drop(index=5)  # m1, k2: no row at all
    ax = plots.lie_detector(lacking)
    assert "nothing to decide" in legend(ax)
    grey = to_rgb(plots.UNKNOWN)
    for (x, y), text in {(0, 0): number, (2, 1): "–"}.items():
        assert cells(ax)[x, y].get_text() == text
        assert picture(ax)[y, x] == pytest.approx(grey)
    assert sum(t.get_text() == "–" for t in ax.texts) == 1
    assert (np.abs(picture(ax) - grey).sum(-1) < 0.01).sum() == 2, "no colour of a share is grey"


def test_the_key_says_whether_a_row_is_one_run_or_several():
    one = table(shares=(1.0, 0.0, np.nan))
    assert legend(plots.lie_detector(one, single=True)) == [
        "inside the band", "outside", "nothing to decide", "number: of the seed",
    ]  # fmt: skip
    assert legend(plots.lie_detector(one))[-1] == "number: the runs' mean"


def test_the_text_of_every_cell_can_be_read():
    shares = (*np.linspace(0, 1, 41), float("nan"))
    ax = plots.lie_detector(table(42, 1, shares))
    contrasts = [contrast(picture(ax)[y, x], text.get_color())
                 for (x, y), text in cells(ax).items()]  # fmt: skip
    assert len(contrasts) == 42
    assert min(contrasts) >= 4.5


def test_lines_stand_between_families_and_groups_and_these_are_named():
    ax = plots.lie_detector(table())
    visible = [line for line in ax.get_lines() if line.get_linewidth() > 0]
    lines = [(set(line.get_xdata()), set(line.get_ydata())) for line in visible]
    assert ({1.5}, {0, 1}) in lines, "between the groups, from top to bottom"
    assert ({0, 1}, {1.5}) in lines, "between the families, from left to right"
    assert len(lines) == 2
    outside = [t.get_text() for t in ax.texts if t not in cells(ax).values()]
    assert outside == ["first", "second", "reference", "cheat"]


def test_methods_keep_their_order_and_metrics_are_gathered_by_group():
    mixed = table()
    mixed.loc[mixed.metric == "k1", "group"] = "second"
    mixed.loc[mixed.metric == "k2", "group"] = "first"
    mixed = pd.concat([mixed[mixed.method == "m3"], mixed[mixed.method != "m3"]])
    ax = plots.lie_detector(mixed)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["m3", "m0", "m1", "m2"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["metric 0", "metric 2", "metric 1"]
    assert cells(ax)[1, 0].get_text() == "3.2 %"


def test_a_large_panel_fits_its_texts_into_their_cells():
    large = table(24, 24)
    large["text"] = "100.0 %"
    plots.style()
    ax = plots.lie_detector(large)
    ax.figure.canvas.draw()
    width, height = ax.transData.transform((1, 0)) - ax.transData.transform((0, 1))
    for text in cells(ax).values():
        box = text.get_window_extent()
        assert box.width < abs(width)
        assert box.height < abs(height)
    labels = [t.get_window_extent() for t in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(labels))
    frame = ax.figure.bbox
    everything = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.get_legend()]
    for thing in everything:
        box = thing.get_window_extent()
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.drop(columns="family"), "columns = .* needs .*'family'"),
    (lambda t: pd.concat([t, t.iloc[:1]]), "table = '1 repeated' is not allowed"),
    (lambda t: t.iloc[:0], "table = 'no rows repeated' is not allowed"),
    (lambda t: t.assign(inside=1.01), r"inside = .* shares in \[0, 1\], or NaN"),
    (lambda t: t.assign(inside=-np.inf), r"inside = .* shares in \[0, 1\], or NaN"),
])  # fmt: skip
def test_a_damaged_table_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        plots.lie_detector(change(table()))


# --------------------------------------------------------------------------------- mark and memory


def test_two_arrows_lead_from_retrained_networks_by_way_of_the_mark():
    steps = {"lora": (0.5, 0.6, 0.9), "prunelora": (0.5, 0.2, 0.5)}
    rows = [{"method": m, "metric": metric, "retrained": a, "never": b, "original": c}
            for m, (a, b, c) in steps.items() for metric in ("TA", "IDI")]  # fmt: skip
    left, right = plots.mark_and_memory(pd.DataFrame(rows))
    assert [ax.get_title() for ax in (left, right)] == ["TA", "IDI"]
    assert [text.get_text() for text in left.get_yticklabels()] == ["lora", "prunelora"]
    arrows = [(one.xyann, one.xy, to_hex(one.arrow_patch.get_edgecolor())) for one in right.texts]
    colors = [plots.CHANCE.lower(), VERMILLION]
    for place, (start, never, end) in enumerate(steps.values()):
        mark, memory = arrows[2 * place : 2 * place + 2]
        assert (mark[0][0], mark[1][0], memory[0][0], memory[1][0]) == (start, never, never, end)
        assert [mark[2], memory[2]] == colors
        assert mark[0][1] < place < memory[0][1], "beside each other, in the row of the method"
    low, high = right.get_xlim()
    assert low < 0.2 < 0.9 < high


def test_the_ticks_of_small_steps_say_where_they_are():
    row = {"method": "lora", "metric": "TA", "retrained": 0.99, "never": 0.982, "original": 0.9815}
    (ax,) = plots.mark_and_memory(pd.DataFrame([row]))
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    labels = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    told = {tick: text.get_text() for tick, text in labels if low <= tick <= high}
    assert len(told) >= 2
    for tick, text in told.items():
        assert float(text.rstrip("%")) == pytest.approx(100 * tick, abs=0.06)
