"""Sliders and what they draw: the machinery, from core ipywidgets only (7.7 and 8).

What a panel draws is HTML: pictures with an alternative text, tables with headings. It looks the
same in JupyterLab, Colab and Voila, and can be read aloud. Nothing is computed here: a panel calls
a function that draws from numbers that are already there, so that it can follow every move.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import HTML, display

from helpers import files
from helpers.config import check, whole_reason

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SAYS = "panel-says"  # CSS class of the line that is written last
# What ipywidgets lacks for those who use the keys: a focus that can be seen (WCAG 2.2, criterion
# 2.4.7), edges where the system chooses the colours, and a value beside the slider that cannot be
# typed over, which moves nothing. And for those who listen: its sliders have no name, and say their
# place instead of their value (in 7.7 they have no role either) and not that they are switched off;
# a line is read aloud only if what holds it was there before it changed (technique ARIA22): what
# has a class that ends in "-says"; a tooltip that was not given is written as "null".
SCRIPT = """<style>
.jupyter-widgets select:focus-visible, .jupyter-widgets input:focus-visible,
.jupyter-widgets.jupyter-button:focus-visible, .widget-slider .noUi-handle:focus-visible,
.widget-slider .ui-slider-handle:focus-visible {outline-offset: 1px; outline:
  2px solid var(--colab-primary-text-color, var(--jp-ui-font-color1, currentColor)) !important}
@media (forced-colors: active) {
  .jupyter-widgets.jupyter-button, .widget-slider .noUi-target, .widget-slider .ui-slider,
  .jupyter-widgets .progress {border: 1px solid ButtonBorder}
  .jupyter-widgets .progress-bar {forced-color-adjust: none; background: Highlight}
}
</style><script>
if (!window.helpersAloud) {
  const set = (element, values) => {
    for (const [name, value] of Object.entries(values))
      if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const mend = () => {
    for (const slider of document.querySelectorAll('.widget-slider')) {
      const handle = slider.querySelector('[role=slider], .ui-slider-handle');
      const label = slider.querySelector('.widget-label');
      const shown = slider.querySelector('.widget-readout');
      if (!handle || !label || !shown) continue;
      const off = slider.querySelector('[disabled], .ui-slider-disabled') !== null;
      set(shown, {'contenteditable': 'false'});
      set(handle, {'aria-label': label.textContent, 'aria-valuetext': shown.textContent,
                   'aria-disabled': String(off), 'tabindex': off ? '-1' : '0'});
      if (!handle.matches('.ui-slider-handle')) continue;
      const place = Math.round(parseFloat(handle.style.left) || 0);
      set(handle, {'role': 'slider', 'aria-valuemin': '0', 'aria-valuemax': '100',
                   'aria-valuenow': String(place)});
    }
    for (const line of document.querySelectorAll('[class*="-says"] > .widget-html-content'))
      set(line, {'role': 'status', 'aria-live': 'polite'});
    for (const one of document.querySelectorAll('.jupyter-widgets [title=null]'))
      one.removeAttribute('title');
  };
  window.helpersAloud = new MutationObserver(mend);
  window.helpersAloud.observe(document, {subtree: true, childList: true, characterData: true,
                                         attributeFilter: ['class', 'title', 'disabled',
                                                           'contenteditable']});
  mend();
}
</script>"""
_log = logging.getLogger(__name__)


def percent(share: float) -> str:
    """Write a share as it shall be read.

    Args:
        share: In [0, 1].

    Returns:
        Per cent, with a decimal only where it is needed.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    return f"{100 * share:.4g} %"


def slider(
    description: str,
    values: Iterable[Any],
    value: Any = None,
    write: Callable[[Any], str] = str,
) -> widgets.SelectionSlider:
    """Make a slider over a few values. The arrow keys, Home and End move it.

    Args:
        description: Its label.
        values: What can be chosen, in order.
        value: Where it begins; None takes the first.
        write: Value -> how it is written beside the slider, with its unit.

    Returns:
        The slider; it follows every move.

    Raises:
        InputError: If there are no values, two are written alike, or ``value`` is not among them.

    Source: ipywidgets.
    Lesson: 02_pruning, "How much can go".
    """
    settings = _settings(description, values, value, write)
    return widgets.SelectionSlider(**settings, continuous_update=True)


def menu(
    description: str,
    values: Iterable[Any],
    value: Any = None,
    write: Callable[[Any], str] = str,
) -> widgets.Dropdown:
    """Make a menu of a few names.

    Args:
        description: Its label.
        values: What can be chosen.
        value: Where it begins; None takes the first.
        write: Value -> how it is written in the menu.

    Returns:
        The menu.

    Raises:
        InputError: If there are no values, two are written alike, or ``value`` is not among them.

    Source: ipywidgets.
    Lesson: 05_evaluation, "The membership attack".
    """
    return widgets.Dropdown(**_settings(description, values, value, write))


def _settings(
    description: str, values: Iterable[Any], value: Any, write: Callable[[Any], str]
) -> dict[str, Any]:
    options = [(write(v), v) for v in values]
    texts = [text for text, _ in options]
    ok = bool(texts) and len(set(texts)) == len(texts)  # the text finds the value
    check(f"values of {description!r}", texts, ok, "at least one, each written in its own way")
    start = options[0][1] if value is None else value
    ok = start in [v for _, v in options]
    check(description, start, ok, f"one of {', '.join(texts)}")
    whole = {"description_width": "initial"}  # a description is never cut off
    layout = widgets.Layout(width="24em")
    return {"description": description, "options": options, "value": start, "style": whole,
            "layout": layout}  # fmt: skip


def picture(figure: Figure, alt: str) -> str:
    """Turn a figure into an HTML image, and close it.

    Args:
        figure: From matplotlib.
        alt: What it shows, for those who cannot see it.

    Returns:
        An ``img`` element that holds the picture as PNG.

    Raises:
        InputError: If ``alt`` is empty.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """
    try:
        check("alt", alt, bool(alt.strip()), "a description of the figure")
        with io.BytesIO() as file:
            figure.savefig(file, format="png", facecolor="white")
            png = files.as_link(file.getvalue())
    finally:
        plt.close(figure)
    return f'<img alt="{escape(alt)}" style="max-width: 100%" src="{png}">'


def table(frame: pd.DataFrame, caption: str = "") -> str:
    """Write a small frame as an HTML table with headings for rows and columns.

    Args:
        frame: Its index names the rows; every cell is written by ``str`` and escaped.
        caption: What the table holds; empty for none.

    Returns:
        A ``table`` element.

    Source: WCAG 2.2, technique H63 (scope of headings).
    Lesson: 02_pruning, "How much can go".
    """
    corner, room = frame.index.name or "", "padding: 2px 8px"
    head = "".join(
        f'<th scope="col" style="{room}">{escape(str(c))}</th>' for c in (corner, *frame.columns)
    )
    body = "".join(
        f'<tr><th scope="row" style="{room}">{escape(str(name))}</th>'
        + "".join(f'<td style="{room}; text-align: right">{escape(str(c))}</td>' for c in cells)
        + "</tr>"
        for name, cells in zip(frame.index, frame.itertuples(index=False), strict=True)
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def line(text: str) -> str:
    """Write a line for a widget that is read aloud when it changes.

    Args:
        text: Plain.

    Returns:
        A ``p`` element; :data:`SCRIPT` makes what holds it a live region.

    Source: WCAG 2.2, technique ARIA22 (what holds a message is there before it).
    Lesson: 02_pruning, "How much can go".
    """
    return f"<p>{escape(text)}</p>"


class Whole(widgets.VBox):
    """All of what is shown, one part below the other.

    Where nothing can show it, as in a page made of the notebook, a sentence stands in its place
    instead of a list of what it is made of.

    Source: ipywidgets, which writes the ``repr`` beside every view.
    Lesson: 02_pruning, "How much can go".
    """

    def __repr__(self) -> str:
        """Say what stood here."""
        return "A panel of sliders: it needs a running kernel."


class Panel:
    """Controls, what they draw, and a line that says what is shown.

    The function that draws gets the controls' values by name. It returns HTML for each output and,
    last, a line of plain text, which is written after everything else and read aloud by screen
    readers. If it fails, its outputs are emptied, the line says why, the traceback is logged and
    the error raised again; the next move draws anew. Figures that it leaves open are closed.

    Attributes:
        inputs: Name -> control.
        outputs: One HTML widget for each part that is drawn; arrange them at will.
        says: HTML widget of the line, with the CSS class :data:`SAYS`.
        widget: All of it, one below the other; ``display`` of the panel shows it together with
            :data:`SCRIPT`.

    Source: this project.
    Lesson: 02_pruning, "How much can go".
    """

    def __init__(
        self, inputs: Mapping[str, widgets.Widget], draw: Callable[..., Sequence[str]]
    ) -> None:
        """Draw once, and again whenever a control moves; an error of the first time is raised."""
        for name, control in inputs.items():
            check(name, control, bool(control.description), "a control with a description")
        self.inputs = dict(inputs)
        self._draw = draw
        *parts, text = self._drawn()
        self.outputs = tuple(widgets.HTML(part) for part in parts)
        self.says = widgets.HTML(line(text))
        self.says.add_class(SAYS)
        row = widgets.HBox(list(self.inputs.values()), layout=widgets.Layout(flex_flow="row wrap"))
        self.widget = Whole([row, self.says, *self.outputs])
        for control in self.inputs.values():
            control.observe(self._update, names="value")

    def _ipython_display_(self) -> None:
        display(HTML(SCRIPT), self.widget)  # in Colab every output is a page of its own

    def _values(self) -> Sequence[str]:
        return self._draw(**{name: control.value for name, control in self.inputs.items()})

    def _drawn(self) -> Sequence[str]:
        before = set(plt.get_fignums())
        try:
            return self._values()
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)

    def _update(self, _: Any = None) -> None:
        try:
            *parts, text = self._drawn()
            for output, part in zip(self.outputs, parts, strict=True):
                output.value = part
        except Exception as error:  # of any kind: shown, logged and raised again
            for output in self.outputs:
                output.value = ""  # what stood there belongs to another position
            why = escape(whole_reason(error))
            self.says.value = f'<p role="alert"><b>Nothing could be drawn.</b> {why}</p>'
            _log.exception("a panel could not be drawn")
            raise
        self.says.value = line(text)
