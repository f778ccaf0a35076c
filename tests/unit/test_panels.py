"""Sliders and panels, driven without a browser."""

from __future__ import annotations

import base64
import logging

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers import panels
from helpers.config import InputError
from tests.seen import Page


def test_a_picture_is_a_png_with_its_description_and_the_figure_is_closed():
    figure, ax = plt.subplots(figsize=(2, 1), dpi=50)
    ax.plot([0, 1])
    html = panels.picture(figure, 'a "line" <rising> & more')
    page = Page(html)
    attributes = {key: value for _, key, value in page.attributes}
    assert (page.tags, attributes["alt"]) == (["img"], 'a "line" <rising> & more')
    kind, _, data = attributes["src"].partition(",")
    assert kind == "data:image/png;base64"
    png = base64.b64decode(data)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    size = [int.from_bytes(png[start : start + 4], "big") for start in (16, 20)]
    assert size == [100, 50]
    assert plt.get_fignums() == []


def test_a_picture_without_description_is_refused_and_its_figure_closed():
    with pytest.raises(InputError, match="a description"):
        panels.picture(plt.figure(), "  ")
    assert plt.get_fignums() == []


def test_a_table_has_headings_and_escapes_every_text():
    frame = pd.DataFrame({"<b>": ["1 & 2", "<script>"]}, index=pd.Index(["x", "<i>"], name="row"))
    html = panels.table(frame, caption="a < b")
    page = Page(html)
    assert not {"b", "i", "script"} & set(page.tags)
    assert page.tables == {"a < b": [["row", "<b>"], ["x", "1 & 2"], ["<i>", "<script>"]]}
    assert page.texts == []
    scopes = [value for tag, key, value in page.attributes if (tag, key) == ("th", "scope")]
    assert scopes == ["col", "col", "row", "row"]
    cells = [v for tag, key, v in page.attributes if tag in ("th", "td") and key == "style"]
    assert len(cells) == 6
    assert all("padding: 2px 8px" in style for style in cells), "lessons have no style of their own"


def test_controls_have_labels_units_and_follow_every_move():
    one = panels.slider("Sparsity", [0, 0.125, 0.5], 0.125, panels.percent)
    assert one.options == (("0 %", 0), ("12.5 %", 0.125), ("50 %", 0.5))
    assert (one.description, one.value, one.continuous_update) == ("Sparsity", 0.125, True)
    assert one.style.description_width == "initial"
    other = panels.menu("Method", ["a", "b"])
    assert (other.description, other.value) == ("Method", "a")
    for make in (panels.slider, panels.menu):
        with pytest.raises(InputError, match="at least one"):
            make("Rank", [])
        with pytest.raises(InputError, match="one of 1, 2"):
            make("Rank", [1, 2], 3)
        with pytest.raises(InputError, match="in its own way"):
            make("Rank", [0.991, 0.992], write="{:.2f}".format)


@pytest.fixture
def panel():
    """A panel whose position 0 cannot be drawn."""

    def draw(rank, unit):
        figure = plt.figure(figsize=(1, 1))
        text = f"<{10 // rank}> {unit}"
        return panels.picture(figure, text), f"<p>{10 // rank}</p>", text

    inputs = {
        "rank": panels.slider("Rank", [2, 0, 5]),
        "unit": panels.menu("Unit", ["kB", "MB"]),
    }
    return panels.Panel(inputs, draw)


def test_a_panel_draws_at_once_and_at_every_move(panel):
    assert panel.outputs[1].value == "<p>5</p>"
    assert plt.get_fignums() == []
    panel.inputs["rank"].value = 5
    assert panel.outputs[1].value == "<p>2</p>"
    panel.inputs["unit"].value = "MB"
    said = Page(panel.says.value)
    assert (said.tags, said.attributes) == (["p"], []), "what holds it is the live region"
    assert said.texts == ["<2> MB"], "plain text, escaped"
    assert panel.says._dom_classes == (panels.SAYS,)
    assert plt.get_fignums() == []


def test_what_is_displayed_is_the_script_and_the_widget(panel, monkeypatch):
    shown = []
    monkeypatch.setattr(panels, "display", lambda *parts: shown.extend(parts))
    panel._ipython_display_()
    script, widget = shown
    assert script.data == panels.SCRIPT
    assert widget is panel.widget


def test_where_no_widget_can_be_shown_a_sentence_stands_in_its_place(panel):
    assert repr(panel.widget) == "A panel of sliders: it needs a running kernel."


def test_the_line_is_written_last(panel):
    order = []
    for name, part in (("picture", panel.outputs[0]), ("number", panel.outputs[1]),
                       ("line", panel.says)):  # fmt: skip
        part.observe(lambda change, name=name: order.append(name), names="value")
    panel.inputs["rank"].value = 5
    assert order == ["picture", "number", "line"]


def test_an_error_is_shown_logged_and_raised_and_the_next_move_draws_again(panel, caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        panel.inputs["rank"].value = 0
    assert [o.value for o in panel.outputs] == ["", ""], "nothing of the last position stays"
    found = Page(panel.says.value)
    assert (found.tags[0], found.attributes) == ("p", [("p", "role", "alert")])
    assert "ZeroDivisionError: " in "".join(found.texts)
    assert "\n" not in panel.says.value
    assert caplog.records[-1].exc_info[0] is ZeroDivisionError
    assert plt.get_fignums() == [], "the figure that was begun is closed"
    panel.inputs["rank"].value = 5
    assert panel.outputs[1].value == "<p>2</p>"
    assert "alert" not in panel.says.value


def test_the_reason_of_an_error_is_escaped():
    def draw(rank):
        if rank:
            raise InputError("<img src=x>\nsecond line")
        return ("",)

    panel = panels.Panel({"rank": panels.slider("Rank", [0, 1])}, draw)
    with pytest.raises(InputError):
        panel.inputs["rank"].value = 1
    assert "InputError: &lt;img src=x&gt; second line" in panel.says.value


def test_a_panel_needs_labels_and_shows_an_error_of_the_first_drawing_at_once():
    with pytest.raises(InputError, match="a description"):
        panels.Panel({"rank": widgets.IntSlider()}, lambda rank: ("",))
    with pytest.raises(ZeroDivisionError):
        panels.Panel({"rank": panels.slider("Rank", [0])}, lambda rank: (str(1 // rank),))


def test_figures_that_were_open_before_stay_open(panel):
    mine = plt.figure()
    panel.inputs["rank"].value = 5
    assert plt.get_fignums() == [mine.number]
