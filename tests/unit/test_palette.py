"""Can every reader see the colours, and tell apart what is drawn together?"""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from helpers import plots, unlearning
from tests.seen import contrast, linear

CONTRAST = 3.0  # WCAG 2.2, criterion 1.4.11: graphics against what lies beside them
APART = 15.0  # CIE Lab (1976); a difference of 2.3 can just be noticed, and thin lines need more

# Machado, Oliveira & Fernandes 2009, "A physiologically-based model for simulation of color vision
# deficiency", severity 1.0, on linear RGB
SEEN = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
# linear sRGB -> XYZ (IEC 61966-2-1, white D65)
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip

ONE_A_FAMILY = {
    unlearning.METHODS[name].family if unlearning.METHODS[name].family in ("baseline", "cheat")
    else name: color for name, color in plots.COLORS.items()
}  # fmt: skip


def lab(rgb):
    t = (XYZ @ rgb) / XYZ.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one, other, vision):
    seen = [lab((np.array(SEEN[vision]) @ linear(c)).clip(0, 1)) for c in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def test_the_measures_give_the_known_values():
    assert contrast("#000000", "white") == pytest.approx(21)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01), (
        "the grey that just passes AA"
    )
    assert lab(linear("#ffffff")) == pytest.approx([100, 0, 0], abs=0.01)
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert distance("#ff0000", "#008000", "normal") > 100
    assert distance("#a0522d", "#6b8e23", "deuteranopia") < APART, "a brown and a green"
    for vision in SEEN:
        assert distance("#888888", "#888888", vision) == 0
        assert np.array(SEEN[vision]).sum(1) == pytest.approx(1, abs=1e-5), "grey stays grey"


@pytest.mark.parametrize("name", sorted({*ONE_A_FAMILY, "FORGET", "CHANCE"}))
def test_every_colour_can_be_seen_on_white(name):
    color = getattr(plots, name) if name.isupper() else ONE_A_FAMILY[name]
    assert contrast(color, "white") >= CONTRAST


@pytest.mark.parametrize("vision", SEEN)
def test_colours_of_one_figure_keep_apart(vision):
    pairs = {(a, b): distance(ONE_A_FAMILY[a], ONE_A_FAMILY[b], vision)
             for a, b in itertools.combinations(ONE_A_FAMILY, 2)}  # fmt: skip
    closest = min(pairs, key=pairs.get)
    assert pairs[closest] >= APART, closest
    named = plots.GROUPS
    assert min(distance(a, b, vision) for a, b in itertools.combinations(named, 2)) >= APART
    assert all(contrast(color, "white") >= CONTRAST for color in named)


@pytest.mark.parametrize("vision", SEEN)
def test_what_the_sliders_draw_beside_each_other_keeps_apart(vision):
    for pair in ((plots.ORACLE, plots.FORGET), (plots.ORACLE, plots.CHANCE)):
        assert distance(*pair, vision) >= APART


@pytest.mark.parametrize("vision", SEEN)
def test_the_map_shows_on_which_side_of_the_edge_a_cell_is(vision):
    edge, beyond = plots._away_color(1.0), plots._away_color(1.001)
    pairs = [(edge, beyond), *itertools.product((edge, beyond), ("#ffffff", plots.UNKNOWN))]
    assert min(distance(*pair, vision) for pair in pairs) >= APART


def test_the_map_is_the_deeper_the_further_from_the_edge():
    sides = np.linspace(1, 0, 21), np.linspace(1.001, plots.EDGE, 51)
    for aways, most in zip(sides, (plots.ORACLE, plots.FORGET), strict=True):
        depths = [contrast(plots._away_color(away), "white") for away in aways]
        assert (np.diff(depths) > 0).all()
        assert to_hex(plots._away_color(aways[-1])) == to_hex(most)
        inks = [contrast(plots._ink(plots._away_color(away)), "white") for away in aways]
        pairs = [(max(p) / min(p)) for p in zip(depths, inks, strict=True)]
        assert min(pairs) >= 4.5, "the text of every cell can be read"
    assert to_hex(plots._away_color(1 + 1e-12)) == to_hex(plots._away_color(1.0)), "as decimals"
    assert to_hex(plots._away_color(-3.0)) == to_hex(plots.ORACLE), "the good side"
    assert to_hex(plots._away_color(99.0)) == to_hex(plots.FORGET)


@pytest.mark.parametrize("vision", SEEN)
def test_bars_of_the_explorer_have_colours_of_their_own(vision):
    bars = (plots.STORED, plots.LIVE, plots.ORACLE)
    assert min(distance(*pair, vision) for pair in itertools.combinations(bars, 2)) >= APART
    others = [plots.FORGET, *(plots.COLORS[name] for name, method in unlearning.METHODS.items()
                              if method.family == "paper")]  # fmt: skip
    for bar, other in itertools.product(bars[:2], others):
        assert distance(bar, other, vision) >= APART


def test_methods_of_one_colour_differ_by_marker_or_hatching():
    names = list(unlearning.METHODS)
    frame = pd.DataFrame([(m, x, 0.5) for m in names for x in (1, 2)], columns=["m", "x", "y"])
    ax = plots.curves(frame, "x", "y", "m", labels=("x", "y"))
    looks = {(line.get_color(), str(line.get_marker())) for line in ax.get_lines()[: len(names)]}
    assert len(looks) == len(names)
    ax = plots.roc({m: ([0, 0.5, 1], [0, 0.6, 1]) for m in names})
    looks = {(line.get_color(), line.get_marker()) for line in ax.get_lines()[:-1]}
    assert len(looks) == len(names)
    ax = plots.destinations({m: [0.5, 0.5] for m in names}, ["cat", "dog"])
    for bars in (zip(*ax.containers, strict=True), [ax.get_legend().legend_handles]):
        for group in bars:
            looks = {(to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in group}
            assert len(looks) == len(names), "bars, and their keys in the legend"
    plt.close("all")


def test_any_number_of_methods_can_be_told_apart():
    """What the present ones look like stays: a new method takes the next marker and hatching."""
    markers = [*itertools.islice(plots._markers(), 60)]
    assert "".join(markers[:21]) == "Xso^vDP<>hHpd8*1234x+"
    assert len({*markers}) == 60
    ax = plt.gca()
    for marker in markers:
        ax.plot([0], [0], marker=marker)
    hatches = [plots._hatch(place) for place in range(150)]
    assert hatches[:11] == ["", "//", "\\\\", "||", "--", "++", "xx", "oo", "..", "**", "OO"]
    assert len({"".join(sorted(one)) for one in hatches}) == 150
    ax.bar(range(150), 1, hatch=hatches)
    ax.figure.canvas.draw()


def test_groups_of_images_differ_by_more_than_colour_where_they_overlap():
    detail = pd.DataFrame({"layer": ["a"] * 4, "norm": [1, 2, 3, 4],
                           "gone": [True, True, False, False]})  # fmt: skip
    ax = plots.filter_norms(detail)
    markers = {line.get_label(): line.get_marker() for line in ax.get_lines()}
    assert (markers["stays"], markers["goes"]) == ("o", "x")
