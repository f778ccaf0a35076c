"""The explorer: a stored grid under sliders, a point trained now, points side by side, pictures.

It looks numbers up in :mod:`helpers.grid` and draws them with :mod:`helpers.plots`; the controls
are those of :mod:`helpers.panels`. Whatever comes from a browser can only choose among offered
values; the one exception is a picture, which is decoded in memory and never kept.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import gc
import importlib
import io
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as core
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from helpers import (
    audit,
    data,
    files,
    grid,
    outputs,
    panels,
    plots,
    runs,
    study,
    training,
    unlearning,
)
from helpers.config import InputError, RunConfig, check, get_config, whole_reason

log = logging.getLogger(__name__)

RECORD = "explorer-digits.json"
SHOWN_FIRST = "head_refit"  # a metric that tells forgetting from answering otherwise
MOST_PINS, MOST_LIVES = 6, 8  # of live runs beyond it the numbers stay, not the networks
SIZE, DPI = (4.2, 3.1), 100
LEAST = 0.7  # of its width: a figure of many metrics that is made smaller cannot be read
SHEETS = 128  # kept, at half a megabyte; two for each metric are drawn of a method and class
LEAKS = {
    "forgotten class, what leaks most": grid.leaking,
    "other classes, answers that changed": grid.changed,
}
_NO_NETWORKS = "Stored points are numbers, not networks: press “Run it live” to see its pictures."
# settings that the controls choose, or that no number of a live run depends on
_NO_REASON = ("data", "method", "forget", "earlier", "seed", "original_seed", "rank", "sparsity",
              "cache_mb", "memory_mb", "seeds", "on_corrupt")  # fmt: skip
_WHY = (
    "Blue: inside the band of networks that never saw the class, the deeper the nearer to its "
    "centre or its good side; vermillion: outside, the deeper the further; grey: not stored, or "
    f"the band decides nothing. Further than {grid.FAR:g} half-widths is drawn at ≥ {grid.FAR:g}. "
    "★: on the Pareto front of all methods, on the means over seeds. Frame and ring: the chosen "
    "point, its mean over seeds; ×: this seed, trained now."
)
_PAGE = """<style>
.explorer table {border-collapse: collapse; margin: 0 1em 1em 0; font-size: 13px}
.explorer caption {font-weight: bold; text-align: left; padding: 4px 6px; white-space: nowrap}
.explorer th, .explorer td {padding: 2px 8px; border-bottom: 1px solid #bbb; text-align: right;
  line-height: 1.4}
.explorer td {white-space: nowrap}
.explorer thead th {max-width: 12em}
.explorer th[scope=row], .explorer th:first-child {text-align: left; font-weight: normal;
  position: sticky; left: 0;
  background: var(--colab-primary-surface-color, var(--jp-layout-color0, Canvas))}
.explorer .row {display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start}
.explorer .scroll {overflow-x: auto; max-width: 100%}
.explorer .row > *, .explorer .widget-html-content {min-width: 0; max-width: 100%}
.explorer figure {margin: 0; flex: 1 1 330px; max-width: 420px; min-width: 0}
.explorer figcaption {font-size: 13px; font-weight: bold}
.explorer h3 {margin: 12px 0 4px; font-size: 16px}
.explorer a {text-decoration: underline; color: var(--jp-content-link-color, #0b57d0)}
.explorer p {margin: 4px 0; line-height: 1.4; white-space: normal}
.explorer .pixels {image-rendering: pixelated; width: 56px; height: 56px}
</style>"""
# A file that is too large would close the connection to the kernel, and with it the button. The
# field for the file is not in the page: it is known when a click on the button presses it.
_UPLOADS = """<script>
if (!window.helpersUploads) {
  const press = HTMLInputElement.prototype.click;
  let button;
  const take = event => {
    const file = event.target.files[0];
    if (!file) return;
    const large = file.size > MOST_BYTES, key = `${file.name} ${file.size} ${file.lastModified}`;
    if (large) event.stopImmediatePropagation();
    else if (button.helpersSent === key) return;  // the kernel takes no note of the same again
    else button.helpersSent = key;
    const line = button.parentElement.querySelector('.upload-says p');
    line.textContent = large ? `${file.name} is too large: MOST_TEXT.` : `sending ${file.name} …`;
    button.closest('.explorer').querySelector('.own-says [role=alert]')?.remove();
  };
  document.addEventListener('click', event => {
    const pressed = event.target.closest('.explorer .widget-upload');
    if (!pressed) return;
    button = pressed;
    HTMLInputElement.prototype.click = function () {
      this.addEventListener('change', take, true);
      press.call(this);
    };
    setTimeout(() => { HTMLInputElement.prototype.click = press; });
  }, true);
  window.helpersUploads = true;
}
</script>"""
_MOST = f"at most {data.MOST_BYTES / 1e6:g} MB"
_UPLOADS = _UPLOADS.replace("MOST_BYTES", str(data.MOST_BYTES)).replace("MOST_TEXT", _MOST)


def explorer(cfg: RunConfig | None = None, record: study.Study | Path | None = None) -> Explorer:
    """Open the explorer on a stored grid.

    Args:
        cfg: What is trained live, and the data; None takes :func:`helpers.config.get_config`.
        record: The grid, or its file; None takes the committed one of the digits.

    Returns:
        The explorer; the last line of a cell shows it.

    Raises:
        InputError: If the record is no grid, or has other classes than the data.
        FileProblem: If the file is missing or damaged.

    Source: this project.
    Lesson: 06_explorer, "The explorer".
    """
    cfg = cfg or get_config()
    if not isinstance(record, study.Study):
        record = study.load(Path(record) if record else runs.results_folder() / RECORD)
    dataset = data.load_dataset(cfg, progress=False)
    _settle()
    return Explorer(grid.Grid(record), cfg, dataset)


@functools.cache  # once: what is frozen is never collected, and explorers shall be
def _settle() -> None:
    """Spare the collector the half million objects of the imports: a slider waits while it runs."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries report at the end what is still there


class _Sheet:
    """What of a picture stands still, drawn once; what moves is drawn on a copy of it."""

    def __init__(
        self, easel: Axes, draw: Callable[[Axes], Any], top: float = 0.97, left: float = 0.14
    ) -> None:
        """Draw, and keep only the pixels: axes of its own for each would be slow to collect."""
        canvas = _canvas()
        ax = canvas.figure.add_axes((left, 0.15, 0.97 - left, top - 0.15))
        draw(ax)
        lacks = -ax.get_tightbbox(canvas.get_renderer()).y0 / canvas.figure.bbox.height
        if lacks > 0:  # long names of classes stand below; half of the picture stays
            bottom = min(0.16 + lacks, 0.5)
            ax.set_position((left, bottom, 0.97 - left, top - bottom))
        canvas.draw()
        self.still = canvas.copy_from_bbox(canvas.figure.bbox)
        self.easel, self.box = easel, ax.get_position()
        self.limits = {"xlim": ax.get_xlim(), "ylim": ax.get_ylim()}

    @property
    def ax(self) -> Axes:
        """Where to draw what moves: the axes that all sheets share, set up for this one."""
        self.easel.set_position(self.box)
        self.easel.set(autoscale_on=False, **self.limits)
        return self.easel

    def picture(self, moving: Sequence[Artist], title: str, alt: str) -> str:
        canvas = self.easel.figure.canvas
        canvas.restore_region(self.still)
        for artist in moving:
            self.easel.draw_artist(artist)
            artist.remove()
        self.easel.containers.clear()  # hold the bars that were removed, more with every move
        image = _image(_drawn(canvas), alt)
        return f"<figure><figcaption>{escape(title)}</figcaption>{image}</figure>"


def _canvas() -> FigureCanvasAgg:
    """Open a figure that pyplot knows nothing of, so that a thread may draw on it."""
    return FigureCanvasAgg(Figure(figsize=SIZE, dpi=DPI, facecolor="white", layout="none"))


def _drawn(canvas: FigureCanvasAgg) -> str:
    return _png(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


def _image(png: str, alt: str, least: float = 0) -> str:
    style = f"min-width: {least:.0f}px; max-width: 100%"
    return f'<img alt="{escape(alt)}" style="{style}" src="{png}">'


def _png(image: Any) -> str:
    with io.BytesIO() as file:
        image.save(file, "PNG", compress_level=4)
        return files.as_link(file.getvalue())


class _Panel(panels.Panel):
    """A panel that two threads may draw: what was chosen last is what stays."""

    def __init__(self, *given: Any) -> None:
        self._one_at_a_time = threading.RLock()
        super().__init__(*given)

    def _update(self, _: Any = None) -> None:
        with self._one_at_a_time:
            super()._update()

    refresh = _update

    def _drawn(self) -> Sequence[str]:
        # a thread draws, and none of it in pyplot: the figures open there are somebody else's
        return self._values()


class Explorer:
    """The explorer; :func:`explorer` makes it.

    Attributes:
        grid: The stored points.
        cfg: What is trained live.
        dataset: Its data.
        inputs: Name -> control: method, forget, rank, sparsity, seed, metric, cost.
        lives: (point, seed) -> what was trained now, the latest last; the first ones of many have
            no networks any more.
        pins: Label -> (point, seed), the points of the comparison.
        widget: All of it, for ``display``.

    Source: this project.
    Lesson: 06_explorer, "The explorer".
    """

    def __init__(self, stored: grid.Grid, cfg: RunConfig, dataset: data.Dataset) -> None:
        """Build the controls and draw the first point."""
        about, here = stored.study.about, {"data": dataset.name, "classes": [*dataset.classes]}
        for field, mine in here.items():
            check(f"{field} of the record", about.get(field), about.get(field) == mine,
                  f"{mine}, which the live networks are trained on")  # fmt: skip
        known = {*range(len(dataset.classes))}
        check("forget of the record", stored.classes, {*stored.classes} <= known,
              f"from 0 to {max(known)}")  # fmt: skip
        self.grid, self.cfg, self.dataset = stored, cfg, dataset
        self.judged = runs.as_evaluated(dataset, cfg)  # what the networks are shown
        self.lives: dict[tuple[grid.Point, int], grid.Live] = {}
        self.pins: dict[str, tuple[grid.Point, int]] = {}
        self._thread: threading.Thread | None = None
        self._stop, self._last_word = threading.Event(), threading.Lock()
        self._said = 0.0  # when, by the clock
        self._lock = threading.RLock()  # of pins and pictures, which two threads show
        self._pictured: grid.Live | None = None  # the run whose pictures are shown
        self._easel = _canvas().figure.add_axes((0, 0, 1, 1))
        self._sheet = functools.lru_cache(maxsize=SHEETS)(self._new_sheet)
        self.inputs = self._controls()
        self._follow_method()
        self.inputs["method"].observe(self._follow_method, names="value")
        self.panel = _Panel(self.inputs, self._draw)
        self._live_controls()
        self._pin_controls()
        self._picture_controls()
        self.widget = self._arranged()

    def _ipython_display_(self) -> None:
        _replace_in_its_cell(self)
        display(HTML(_PAGE + panels.SCRIPT + _UPLOADS), self.widget)

    def close(self) -> None:
        """Take the explorer off the page, end what it trains, and let go of what it holds.

        ipywidgets keep what is open for as long as the kernel runs. A cell that is run again closes
        the explorer that it showed before, where the notebook's page says which cell that is.

        Source: this project.
        Lesson: 06_explorer, "The explorer".
        """
        self._stop.set()
        for part in {*_parts(self.widget), *_parts(self.panel.widget)}:
            part.unobserve_all()
            part.close()
        with self._lock:
            self.lives.clear()
            self.pins.clear()
            self._pictured = None
        self._sheet.cache_clear()

    # --------------------------------------------------------------------------------------------
    # the stored point

    def _controls(self) -> dict[str, core.Widget]:
        stored, cfg, classes = self.grid, self.cfg, self.dataset.classes
        metrics = stored.study.metrics
        costs = stored.prices
        first = {"method": "prunelora", "forget": cfg.forget, "metric": SHOWN_FIRST}
        first["cost"] = "utility"
        offered = {"method": stored.methods, "forget": stored.classes, "metric": metrics,
                   "cost": costs}  # fmt: skip
        first = {name: value if value in offered[name] else None for name, value in first.items()}
        ranks = stored.values("rank") or [cfg.rank]
        sparsities = stored.values("sparsity") or [cfg.sparsity]
        made = {
            "method": panels.menu("method", stored.methods, first["method"]),
            "forget": panels.menu(
                "forgotten class", stored.classes, first["forget"], classes.__getitem__
            ),
            "rank": panels.slider("rank", ranks, _nearest(ranks, cfg.rank)),
            "sparsity": panels.slider(
                "sparsity", sparsities, _nearest(sparsities, cfg.sparsity), panels.percent
            ),
            "seed": panels.menu("seed", stored.seeds),
            "metric": panels.menu(
                "map shows", metrics, first["metric"], lambda m: audit.METRICS[m].title
            ),
            "cost": panels.menu("against", costs, first["cost"], _cost_title),
        }
        for control in made.values():
            control.layout.width, control.style.description_width = "auto", "8.5em"
        return made

    def _follow_method(self, _: Any = None) -> None:
        for axis in grid.AXES:
            has = bool(self.grid.values(axis, self.inputs["method"].value))
            self.inputs[axis].disabled = not has

    @property
    def point(self) -> grid.Point:
        """The chosen point."""
        chosen = (self.inputs[name].value for name in ("method", "forget", *grid.AXES))
        return self.grid.point(*chosen)

    @property
    def seed(self) -> int:
        """The chosen seed."""
        return self.inputs["seed"].value

    def _draw(
        self, method: str, forget: int, rank: int, sparsity: float, seed: int, metric: str,
        cost: str,
    ) -> list[str]:  # fmt: skip
        point = self.grid.point(method, forget, rank, sparsity)
        live = self.lives.get((point, seed))
        rows = grid.differences(self.grid.metrics(point, seed), live.metrics if live else {})
        pictures = self._pictures(point, seed, metric, cost, live)
        tables = metric_tables(rows, seed, live is not None)
        ledger = ledger_table(self.grid, point, live)
        return [
            f'<div class="row">{pictures}</div><p>{_WHY}</p>',
            f'<div class="row">{tables}</div>',
            _scroll(panels.table(ledger, "Ledger"), "ledger"),
            self._sentence(point, seed, metric, rows),
        ]

    def _sentence(
        self, point: grid.Point, seed: int, metric: str, rows: Sequence[Mapping[str, Any]]
    ) -> str:
        known = [row for row in rows if row["inside"] is not None]
        row = next(row for row in rows if row["name"] == metric)
        text = f"{point}, seed {seed}: "
        if known:
            inside = sum(row["inside"] for row in known)
            text += f"{inside} of {len(known)} metrics inside the oracles' band"
            text += f"; {row['title']} {_shown(row, 'value')}."
        elif any(row["value"] is not None for row in rows):
            text += "stored without a band of the oracles that tells inside from outside; "
            text += f"{row['title']} {_shown(row, 'value')}."
        else:
            text += f"not stored. {self.grid.reason(point) or 'It was not measured.'}"
        if row["live"] is not None:
            text += f" Trained now: {_shown(row, 'live')}"
            text += "." if row["difference"] is None else f" ({difference_text(row)})."
        return text

    def _new_sheet(self, kind: str, *key: Any) -> tuple[_Sheet, pd.DataFrame | None]:
        if kind == "shares":
            classes, (oracles,) = self.dataset.classes, key
            return _Sheet(self._easel, lambda ax: plots.label_shares(classes, ax, oracles), 0.9,
                          0.19), None  # fmt: skip
        if kind == "tradeoff":
            forget, metric, cost = key
            table = self.grid.tradeoff(forget, metric, cost)
            name, two = _cost_title(cost), cost == "utility"
            return _Sheet(self._easel, lambda ax: plots.tradeoff(table, name, two, ax), 0.84), table
        method, forget, metric, cost = key
        table = self.grid.surface(method, forget, metric)
        front = self._sheet("tradeoff", forget, metric, cost)[1]
        table["front"] = table["point"].isin(front.loc[front["front"], "point"])
        table["text"] = ["–" if math.isnan(v) else audit.shown(metric, v) for v in table["mean"]]
        return _Sheet(self._easel, lambda ax: _surface(table, ax)), table

    def _pictures(
        self, point: grid.Point, seed: int, metric: str, cost: str, live: grid.Live | None
    ) -> str:
        title, where = audit.METRICS[metric].title, self.dataset.classes[point.forget]
        sheet, table = self._sheet("surface", point.method, point.forget, metric, cost)
        frame = []
        if len(table):
            frame = plots.mark_surface(sheet.ax, table, point.rank, point.sparsity)
        decided = table["away"].dropna()
        told = (
            f"{int(grid.inside(decided).sum())} of {len(decided)} points inside the oracles' band"
        )
        nothing = ""
        if not len(decided) and table["mean"].notna().any():
            told = "no band of the oracles tells inside from outside"
            nothing = f" ({told})"
        found = sheet.picture(
            frame, f"{title} of {point.method}, mean over seeds{nothing}",
            f"Heat map of {title} over rank and sparsity for {point.method}, class {where}: "
            f"{told}; framed: {point}.",
        )  # fmt: skip
        sheet, table = self._sheet("tradeoff", point.forget, metric, cost)
        marks, mine = [], table[table["point"] == point]
        for row in mine.itertuples():
            marks += plots.mark_tradeoff(sheet.ax, row.cost, row.away)
        outside, cross = "", ""
        if live is not None and metric in live.metrics:
            place = self._price(live, cost), self._away(live, metric)
            if not any(map(math.isnan, place)):
                marks += plots.mark_tradeoff(sheet.ax, *place, live=True)
                outside = " (×: beyond the edge)" if _outside(sheet.ax, *place) else ""
                cross = f" Trained now: {place[0]:.3g} against {place[1]:.2f}{outside}."
        stands = "on the Pareto front" if mine["front"].any() else "not on the Pareto front"
        if not len(mine):
            stands = "not among them"
        found += sheet.picture(
            marks, f"{title}, class {where}: distance to the oracles{nothing}{outside}",
            f"Scatter of all points of class {where}: {_cost_title(cost)} against distance to the "
            f"oracles{nothing}; {grid.FAR:g} half-widths: as many or more; the chosen point is "
            f"{stands}.{cross}",
        )  # fmt: skip
        return found + self._shares(point, seed, live)

    def _away(self, live: grid.Live, metric: str) -> float:
        start = self.grid.seeds[live.seed]
        band = self.grid.study.band(live.point.forget, metric, start)
        return math.nan if band is None else grid.away(metric, live.metrics[metric], band)

    def _price(self, live: grid.Live, cost: str) -> float:
        if cost == "utility":
            return self.grid.utility(live.point, live.metrics["TA"])
        return live.costs.get(cost, math.nan) * grid.COSTS[cost][2]

    def _shares(self, point: grid.Point, seed: int, live: grid.Live | None) -> str:
        shares = {"stored": self.grid.predicted(point, seed)}
        if live is not None:
            shares["live"] = live.predicted
        stored, one = self.grid.predicted(grid.Point("retrain", point.forget)), None
        if stored is None and live is not None:
            one = self._oracle_shares(live)
        shares |= {"oracles": stored, "one oracle": one}
        shares = {name: row for name, row in shares.items() if row is not None}
        sheet, _ = self._sheet("shares", "one oracle" if "one oracle" in shares else "oracles")
        marks = plots.mark_shares(sheet.ax, shares)
        tops = (f"{name} mostly {self.dataset.classes[row.index(max(row))]} ({max(row):.0%})"
                for name, row in shares.items())  # fmt: skip
        where = self.dataset.classes[point.forget]
        return sheet.picture(
            marks, f"Where class {where} goes, seed {seed}",
            f"Bars of the labels given to test images of class {where}: {', '.join(tops)}.",
        )  # fmt: skip

    def _oracle_shares(self, live: grid.Live) -> list[float] | None:
        network = live.networks.get("oracle")
        if network is None:
            return None
        part = self.judged.split(live.point.forget).test_forget
        logits = training.predict(network, part, self.judged)
        return outputs.label_histogram(logits).tolist()

    # --------------------------------------------------------------------------------------------
    # trained now

    def _live_controls(self) -> None:
        self.run = core.Button(description="Run it live", button_style="primary")
        self.halt = core.Button(description="Stop", disabled=True)
        self.bar = core.IntProgress(description="", max=100, layout=core.Layout(width="16em"))
        self.note = core.HTML(panels.line("Trains exactly this point now."))
        self.note.add_class("live-says")
        self.steps, self._phase = core.HTML(), ""  # steps are not read aloud, phases are
        self.steps.add_class("live-steps")
        self.run.on_click(self._shown_errors(self.start, self.note))
        self.halt.on_click(self._shown_errors(self.stop, self.note))

    def start(self) -> None:
        """Train the chosen point in a thread of its own; nothing happens while one trains.

        Source: this project.
        Lesson: 06_explorer, "Run it live".
        """
        if self._thread is not None and self._thread.is_alive():
            return
        asked = (self.point, self.seed, threading.Event())
        thread = threading.Thread(target=self._work, args=asked, daemon=True)
        self._stop = asked[2]
        self.note.value = panels.line(f"{asked[0]}, seed {asked[1]}: starting …")
        self.run.disabled, self.halt.disabled, self.bar.value = True, False, 0
        self._phase = ""
        try:
            thread.start()
        except Exception:  # as where there are too many threads; another try may do
            self.run.disabled, self.halt.disabled = False, True
            raise
        self._thread = thread

    def stop(self) -> None:
        """End what trains after its current step, or what waits for another process.

        Source: this project.
        Lesson: 06_explorer, "Run it live".
        """
        with self._last_word:
            if self.halt.disabled:
                return  # nothing trains, or it was told already
            self.note.value = panels.line("Stopping after the current step …")
            self.halt.disabled = True
            self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for what trains.

        Args:
            seconds: At most; None waits for good.

        Returns:
            Whether it has ended.

        Source: this project.
        Lesson: 06_explorer, "Run it live".
        """
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _work(self, point: grid.Point, seed: int, stop: threading.Event) -> None:
        said = last = ""
        say = functools.partial(self._say, f"{point}, seed {seed}")  # sliders may show another
        try:
            if unlearning.method(point.method).adapt == "lora":
                importlib.import_module("peft")  # takes seconds, which are none of the training's
            live = grid.train(self.grid, point, seed, self.cfg, self.dataset, stop, say)
            said = f"{point}, seed {seed}: trained and measured in {live.seconds:.1f} s."
            said += self._otherwise(point)
            self._keep(live)
            self.panel.refresh()
            if (point, seed) in list(self.pins.values()):
                self._compare()
            self.note.value = panels.line(f"{said} Now an oracle for the pictures …")
            said += self._without_oracle(live, stop, say)
            self.panel.refresh()
            self._show_networks()
            last = panels.line(said)
        except training.Interrupted as stopped:
            last = panels.line(f"{point}, seed {seed}: {_where(stopped)}.")
        except Exception as error:  # of any kind: shown and logged; nobody could catch it here
            _log("a live run of the explorer failed", error)
            last = _alert(f"{said} It could not be shown." if said else "It could not be trained.",
                          error)  # fmt: skip
        finally:
            with self._last_word:  # or what stop() says would stay
                self.note.value, self.steps.value = last, ""
                self.run.disabled, self.halt.disabled = False, True

    def _without_oracle(
        self, live: grid.Live, stop: threading.Event, say: Callable[[str, int, int], None]
    ) -> str:
        """Train the oracle of a live point; say what failed, for the point stays."""
        try:
            grid.oracle(live, self.grid, self.cfg, self.dataset, stop, say)
        except training.Interrupted as stopped:
            return f" No oracle: {_where(stopped)}."
        except Exception as error:  # of any kind: what was reached stays
            _log("an oracle of the explorer could not be trained", error)
            return f" No oracle: {whole_reason(error)}"
        self.bar.value = self.bar.max
        return ""

    def _otherwise(self, point: grid.Point) -> str:
        """Say in what the record was measured otherwise than a point is trained here.

        A record names its preset, network and mode; of other settings it is taken to have those of
        the preset.
        """
        own = self.cfg.but(method=point.method)
        plain = get_config(own.preset, data=own.data)
        usual = get_config(own.preset, data=own.data, model=own.model)  # paper trains a ViT its way
        known = {"preset": own.preset, "mode": "default", "model": plain.model}
        known |= {name: v for name, v in self.grid.study.about.items() if name in known}
        odd = [f"{name} {there}, trained with {getattr(own, name)}"
               for name, there in known.items() if there != getattr(own, name)]  # fmt: skip
        fields = [f.name for f in dataclasses.fields(own) if f.name not in {*known, *_NO_REASON}]
        for name in sorted({*fields} - {*runs.unused(own, fields)}, key=fields.index):
            if (mine := getattr(own, name)) != getattr(usual, name):
                mine = "another recipe" if dataclasses.is_dataclass(mine) else mine
                odd.append(f"{name} as in the preset, trained with {mine}")
        return f" Stored with {' and '.join(odd)}: they differ for that reason." if odd else ""

    def _keep(self, live: grid.Live) -> None:
        with self._lock:
            self.lives.pop((live.point, live.seed), None)  # the latest stands last
            self.lives[(live.point, live.seed)] = live
            for key, old in list(self.lives.items())[:-MOST_LIVES]:
                # numbers are small, and what is pinned shall not change in the files without a word
                self.lives[key] = dataclasses.replace(old, networks={})

    def _say(self, which: str, what: str, done: int, total: int) -> None:
        if self._stop.is_set():
            return
        new, now = what != self._phase, time.monotonic()
        if new:
            self._phase, self.note.value = what, panels.line(f"{which}: {what} …")
        if not new and now - self._said < 0.1 and done < total:
            return  # a browser needs no more
        self._said, self.bar.value = now, round(100 * done / max(1, total))
        self.steps.value = f"step {done} of {total}" if done else ""

    # --------------------------------------------------------------------------------------------
    # side by side

    def _pin_controls(self) -> None:
        self.pin = core.Button(description="Pin this point")
        wide = core.Layout(width="max-content", max_width="100%")  # no label is cut off
        self.pinned = core.Dropdown(description="pinned", options=[], disabled=True, layout=wide)
        self.unpin = core.Button(description="Unpin", disabled=True)
        self.compared = core.HTML(panels.line("No point is pinned yet."))
        self.refused = core.HTML()
        self.pin.on_click(self._shown_errors(self._pin, self.refused))
        self.unpin.on_click(self._shown_errors(self._unpin, self.refused))

    def _pin(self) -> None:
        label = f"{self.point}, seed {self.seed}"
        check("pins", len(self.pins) + 1, label in self.pins or len(self.pins) < MOST_PINS,
              f"at most {MOST_PINS}; unpin one first")  # fmt: skip
        with self._lock:
            self.pins[label] = (self.point, self.seed)
            self._show_pins()

    def _unpin(self) -> None:
        with self._lock:
            self.pins.pop(self.pinned.value, None)
            self._show_pins()

    def _show_pins(self) -> None:
        self.refused.value = ""
        if self.pinned.options:
            self.pinned.index = None  # a browser keeps an old place where it does not change
        self.pinned.options = list(self.pins)
        self.pinned.disabled = self.unpin.disabled = not self.pins
        if not self.pins:
            self.compared.value = panels.line("No point is pinned yet.")
            return
        self.pinned.value = next(reversed(self.pins))
        self._compare()

    def _compare(self) -> None:
        with self._lock:
            table = self.comparison()
            if not len(table):
                return  # unpinned meanwhile
            csv = files.as_link(table.to_csv(index=False).encode(), "text/csv")
            canvas = _compared(table)
            png = _drawn(canvas)
            links = " · ".join(
                f'<a download="explorer.{ending}" href="{link}">Download {what}</a>'
                for ending, link, what in (("csv", csv, "CSV"), ("png", png, "figure"))
            )
            side = side_by_side(table)
            side = panels.table(side, "Pinned points: seed's value, live in brackets")
            pinned = _scroll(side, "pinned points")
            alt = ("Table of the pinned points: metrics across; blue where a point lies inside the "
                   "oracles' band.")  # fmt: skip
            picture = _image(png, alt, LEAST * canvas.get_width_height()[0])
            pinned += _scroll(picture, "figure of the pinned points")
            self.compared.value = f"<p>{links}</p>{pinned}"

    def comparison(self) -> pd.DataFrame:
        """Lay the pinned points out, one row a number; this is what the CSV file holds.

        Returns:
            pin, method, forget, rank, sparsity, seed, kind (``metric`` or ``cost``), name, value
            (of the seed; of a cost the mean over seeds, and of seconds the fastest), mean over
            seeds, low, high, band_low, band_high, inside, live, difference (live - value).

        Source: this project.
        Lesson: 06_explorer, "Compare".
        """
        rows = []
        for label, (point, seed) in list(self.pins.items()):  # another thread may unpin one
            live = self.lives.get((point, seed))
            place = {"pin": label, "method": point.method, "forget": point.forget,
                     "rank": point.rank, "sparsity": point.sparsity, "seed": seed}  # fmt: skip
            found = grid.differences(self.grid.metrics(point, seed), live.metrics if live else {})
            for row in found:
                low, high = row["band"]
                kept = {k: row[k] for k in ("name", "value", "mean", "low", "high", "inside",
                                            "live", "difference")}  # fmt: skip
                rows.append(place | {"kind": "metric"} | kept
                            | {"band_low": low, "band_high": high})  # fmt: skip
            for name, value in self.grid.costs(point).items():
                now = live.costs.get(name) if live else None
                mean = float(self.grid.rows(point)[name].astype(float).mean())
                rows.append(place | {
                    "kind": "cost", "name": name, "value": value, "mean": mean, "live": now,
                    "difference": None if now is None else now - value,
                })  # fmt: skip
        columns = ["pin", "method", "forget", "rank", "sparsity", "seed", "kind", "name", "value",
                   "mean", "low", "high", "band_low", "band_high", "inside", "live",
                   "difference"]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    # --------------------------------------------------------------------------------------------
    # pictures

    def _picture_controls(self) -> None:
        self.which = panels.menu("test images", LEAKS)
        self.which.layout.width, self.which.layout.max_width = "32em", "100%"
        self.seen = core.HTML(_no_networks(None))
        self.upload = core.FileUpload(accept="image/*", multiple=False, description="Own picture",
                                      layout=core.Layout(width="12em"))  # fmt: skip
        self.most = core.HTML(panels.line(_MOST))
        self.most.add_class("upload-says")  # the page's script writes here
        self.invert = core.Checkbox(description="dark on light: invert", indent=False)
        self.own = core.HTML()
        self._show_seen = self._shown_errors(self._show_pictures, self.seen)
        self._show_own = self._shown_errors(self._show_upload, self.own)
        self.own.add_class("own-says")
        self.upload.observe(self._forget_file, names="value")
        self.which.observe(self._show_seen, names="value")
        for control in (self.upload, self.invert):
            control.observe(self._show_own, names="value")
        for name in ("method", "forget", *grid.AXES, "seed"):  # the panel has drawn before
            self.inputs[name].observe(self._follow_point, names="value")

    @property
    def _latest(self) -> grid.Live | None:
        """The run of the chosen point; where there is none, the last one."""
        with self._lock:
            chosen = self.lives.get((self.point, self.seed))
            return chosen or next(reversed(self.lives.values()), None)

    def _follow_point(self, _: Any = None) -> None:
        with self._lock:
            if self._latest is not self._pictured:
                self._show_networks()

    def _show_networks(self) -> None:
        with self._lock:
            self._pictured = self._latest
            self._show_seen()
            self._show_own()

    def _show_pictures(self) -> None:
        live = self._latest
        if live is None or not live.networks:
            self.seen.value = _no_networks(live)
            return
        images = LEAKS[self.which.value](live, self.judged)
        what = f"{live.point}, seed {live.seed}: {self.which.value}"
        if len(images):
            self.seen.value = self._answers(live, images, what)
        else:
            self.seen.value = panels.line(f"{what}: none.")

    def _answers(self, live: grid.Live, images: torch.Tensor, caption: str) -> str:
        rows = grid.answers(live.networks, images, live.point.forget, self.judged)
        gone = self.dataset.classes[live.point.forget]
        columns = [name for name in grid.NETWORKS if name in live.networks]
        head = "".join(f'<th scope="col">{name}</th>' for name in ("picture", *columns))
        head += f'<th scope="col">probability of {escape(gone)}, after</th>'
        body = ""
        for place, (image, row) in enumerate(zip(images, rows, strict=True), 1):
            cells = "".join(f"<td>{escape(row[n][0])} ({row[n][1]:.0%})</td>" for n in columns)
            picture = _pixels(image, f"picture {place}")
            body += f'<tr><th scope="row">{picture}</th>{cells}<td>{row["after"][2]:.1%}</td></tr>'
        table = (f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
                 f"<tbody>{body}</tbody></table>")  # fmt: skip
        return _scroll(table, "answers")

    def _forget_file(self, _: Any = None) -> None:
        # what the page's script wrote is not known here: only another value replaces it
        self.own.value, self.most.value = "", panels.line("")
        self.most.value = panels.line(_MOST)

    def _show_upload(self) -> None:
        file = uploaded(self.upload.value)
        if file is None:
            return
        name, content = file
        try:
            image, live = data.decode(content, self.dataset), self._latest
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        image = 255 - image if self.invert.value else image
        if live is None or not live.networks:
            self.own.value = _pixels(image[0], "your picture") + _no_networks(live)
            return
        what = f"{live.point}, seed {live.seed}: your picture, as the networks get it"
        self.own.value = self._answers(live, image, what)

    # --------------------------------------------------------------------------------------------

    @staticmethod
    def _shown_errors(call: Callable[[], None], where: core.HTML) -> Callable[..., None]:
        """Show what goes wrong in a callback; raise it again, unless it is the visitor's input."""

        def guarded(_: Any = None) -> None:
            try:
                call()
            except Exception as error:
                where.value = _alert("That did not work.", error)
                _log("a control of the explorer failed", error)
                if not isinstance(error, InputError):
                    raise

        return guarded

    def _arranged(self) -> panels.Whole:
        def row(*parts: core.Widget) -> core.HBox:
            return core.HBox(parts, layout=core.Layout(flex_flow="row wrap", align_items="center"))

        def part(title: str, *parts: core.Widget) -> core.VBox:
            return core.VBox([core.HTML(f"<h3>{title}</h3>"), *parts])

        pictures, tables, ledger = self.panel.outputs
        places = "repeat(auto-fit, minmax(min(26em, 100%), 1fr))"
        inputs = core.GridBox(
            list(self.inputs.values()),
            layout=core.Layout(grid_template_columns=places, grid_gap="0 12px", width="100%"),
        )
        meanings = "".join(
            f"<dt>{escape(audit.METRICS[n].title)}</dt><dd>{escape(audit.METRICS[n].what)}</dd>"
            for n in self.grid.study.metrics
        )
        words = core.HTML(f"<details><summary>What the metrics are</summary><dl>{meanings}</dl>"
                          f"</details>")  # fmt: skip
        whole = panels.Whole([
            inputs, self.panel.says, row(self.run, self.halt, self.bar, self.steps), self.note,
            pictures,
            part("Every metric", tables, words), ledger,
            part("Compare", row(self.pin, self.pinned, self.unpin), self.refused, self.compared),
            part("Pictures", self.which, self.seen, row(self.upload, self.most, self.invert),
                  self.own),
        ])  # fmt: skip
        whole.add_class("explorer")
        return whole


# ------------------------------------------------------------------------------------------------
# which explorers are shown

# cell -> the run of it that showed something last, and what
_SHOWN: dict[str, tuple[str, list[weakref.ref[Explorer]]]] = {}


def _replace_in_its_cell(shown: Explorer) -> None:
    """Close what an earlier run of the same cell showed, unless another cell shows it, too."""
    cell, run = _cell()
    if cell is None:
        return
    before, mine = _SHOWN.get(cell, (run, []))
    if before != run:
        old, mine = [one for known in mine if (one := known()) is not None], []
        _SHOWN[cell] = run, mine
        still = [known() for _, others in _SHOWN.values() for known in others]
        for one in old:
            if one is not shown and one not in still:
                one.close()
    _SHOWN[cell] = run, [*mine, weakref.ref(shown)]


def _cell() -> tuple[str | None, str]:
    """Return which cell runs, and a name of this run of it; None where the page does not say."""
    asked = getattr(get_ipython(), "get_parent", dict)()  # outside of a kernel there is none
    return asked.get("metadata", {}).get("cellId"), asked.get("header", {}).get("msg_id", "")


def _parts(widget: core.Widget) -> list[core.Widget]:
    """List a widget, what is in it, and its layouts and styles."""
    held = (getattr(widget, name) for name in widget.keys)
    inside = [v for h in held for v in (h if isinstance(h, list | tuple) else [h])]
    return [widget, *(p for v in inside if isinstance(v, core.Widget) for p in _parts(v))]


# ------------------------------------------------------------------------------------------------
# text and tables


def _surface(table: pd.DataFrame, ax: Axes) -> None:
    if len(table):
        plots.surface(table, ax)
        return
    ax.set_axis_off()  # of the method no point of this class was measured
    ax.text(0.5, 0.5, "not stored", ha="center", va="center", transform=ax.transAxes)


def _outside(ax: Axes, cost: float, away: float) -> bool:
    """Say whether a point lies outside; the highest tick already means "this much or more"."""
    low, high = ax.get_xlim()
    return not low <= cost <= high or min(away, plots.EDGE) > ax.get_ylim()[1]


def _nearest(values: Sequence[float], wanted: float) -> float:
    return min(values, key=lambda value: abs(value - wanted))


def _no_networks(live: grid.Live | None) -> str:
    gone = f"{live.point}, seed {live.seed}: its networks are no longer kept. " if live else ""
    return panels.line(gone + _NO_NETWORKS)


def _alert(text: str, error: Exception) -> str:
    return f'<p role="alert"><b>{escape(text)}</b> {escape(whole_reason(error))}</p>'


def _log(what: str, error: Exception) -> None:
    """Log a failure with its traceback; a choice that is not allowed is none, and takes a line."""
    if isinstance(error, InputError):
        log.info("refused: %s", error)
    else:
        log.error(what, exc_info=error)


def _where(stopped: training.Interrupted) -> str:
    return str(stopped).split(";")[0]  # what follows names folders


def _scroll(table: str, name: str) -> str:
    """Let a wide table scroll by itself, by keyboard too."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{table}</div>'
    )


def _cost_title(name: str) -> str:
    what, unit, _ = grid.COSTS[name]
    return f"{what} ({unit})"


def _shown(row: Mapping[str, Any], key: str) -> str:
    return audit.shown(row["name"], row[key])


def difference_text(row: Mapping[str, Any]) -> str:
    """Write the difference of a live run to the stored one.

    Args:
        row: From :func:`helpers.grid.differences`.

    Returns:
        Percentage points for shares and Avg Gap, else the number; as many decimals as the metric
        itself.

    Source: this project.
    Lesson: 06_explorer, "Run it live".
    """
    if row["difference"] is None:
        return "–"
    metric = audit.METRICS[row["name"]]
    scale, unit = (100, " pp") if metric.unit else (1, "")
    places = metric.decimals
    return f"{round(scale * row['difference'], places) + 0.0:+.{places}f}{unit}"  # never -0.0


def _ends(row: Mapping[str, Any], low: float | None, high: float | None) -> str:
    ends = [None if v is None else audit.shown(row["name"], v) for v in (low, high)]
    if ends == [None, None]:
        return "–"
    if None in ends:
        return f"≥ {ends[0]}" if ends[1] is None else f"≤ {ends[1]}"
    return f"{ends[0]} to {ends[1]}"


def metric_tables(rows: Sequence[Mapping[str, Any]], seed: int, live: bool) -> str:
    """Write every metric of a point as HTML, a table for each group.

    Args:
        rows: From :func:`helpers.grid.differences`.
        seed: Whose values they are.
        live: Whether to show what was trained now and the difference.

    Returns:
        Tables: value of the seed, mean over seeds and its interval, the oracles' band, inside.

    Source: this project.
    Lesson: 06_explorer, "The explorer".
    """
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        inside = {None: "–", True: "yes", False: "NO"}[row["inside"]]
        cells = {f"seed {seed}": _shown(row, "value"), "inside": inside}
        if live:
            cells |= {"live": _shown(row, "live"), "live - stored": difference_text(row)}
        cells |= {
            "band": _ends(row, *row["band"]), "mean": _shown(row, "mean"),
            "95 % interval": _ends(row, row["low"], row["high"]),
        }  # fmt: skip
        groups.setdefault(row["group"], {})[row["title"]] = cells
    return "".join(
        _scroll(panels.table(pd.DataFrame(cells).T.rename_axis("metric"), name), name)
        for name, cells in groups.items()
    )


def ledger_table(stored: grid.Grid, point: grid.Point, live: grid.Live | None) -> pd.DataFrame:
    """Lay out what a point weighs and costs.

    Args:
        stored: The grid.
        point: The point.
        live: What was trained now, if it was.

    Returns:
        One row a quantity, formatted: stored (see :meth:`helpers.grid.Grid.costs`), as a share of
        dense fine-tuning, live.

    Source: this project.
    Lesson: 06_explorer, "The explorer".
    """
    costs, dense = stored.costs(point), stored.costs(grid.Point("finetune", point.forget))
    now, rows = live.costs if live else {}, {}
    for name in ("zeros", "channels", *grid.COSTS):
        if name not in costs and name not in now:
            continue
        title = {"zeros": "zeros among prunable weights", "channels": "channels"}
        ratio = costs[name] / dense[name] if name in costs and dense.get(name) else None
        shown = {"stored": _amount(name, costs.get(name))}
        shown["of dense fine-tuning"] = (
            "–" if ratio is None or name == "zeros" else f"{100 * ratio:.1f} %"
        )
        if live:
            shown["live"] = _amount(name, now.get(name))
        rows[title.get(name) or _cost_title(name)] = shown
    return pd.DataFrame(rows).T.rename_axis("quantity")


def _amount(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "zeros":
        return f"{100 * value:.1f} %"
    if name == "channels":
        return f"{value:,.0f}"
    return f"{value * grid.COSTS[name][2]:,.3g}"


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Lay pinned points out beside each other.

    Args:
        table: From :meth:`Explorer.comparison`.

    Returns:
        One row a metric or cost, one column a pin, formatted; ✗ marks what lies outside the band.

    Source: this project.
    Lesson: 06_explorer, "Compare".
    """
    columns: dict[str, dict[str, str]] = {}
    for row in table.to_dict("records"):
        value, now = (None if pd.isna(row[k]) else row[k] for k in ("value", "live"))
        if row["kind"] == "metric":
            title = audit.METRICS[row["name"]].title
            write = functools.partial(audit.shown, row["name"])
        else:
            known = row["name"] in grid.COSTS
            title = _cost_title(row["name"]) if known else row["name"]
            write = functools.partial(_amount, row["name"])
        text = "–" if value is None else write(value)
        text += "" if now is None else f" ({write(now)})"
        outside = row["inside"] == 0  # False; missing where there is no band
        columns.setdefault(row["pin"], {})[title] = text + (" ✗" if outside else "")
    return pd.DataFrame(columns).fillna("–").rename_axis("number")


def _compared(table: pd.DataFrame) -> FigureCanvasAgg:
    rows = [
        {
            "method": row["pin"], "family": "", "metric": row["name"],
            "title": audit.METRICS[row["name"]].title, "group": audit.METRICS[row["name"]].group,
            "inside": math.nan if row["inside"] is None else float(row["inside"]),
            "text": "–" if pd.isna(row["value"]) else audit.shown(row["name"], row["value"]),
        }
        for row in table[table["kind"] == "metric"].to_dict("records")
    ]  # fmt: skip
    shown = pd.DataFrame(rows)
    canvas = _canvas()
    plots.lie_detector(shown, canvas.figure.add_subplot(), single=True)
    wide, high = 0.56 * shown["metric"].nunique() + 3.2, 0.3 * shown["method"].nunique() + 2.6
    canvas.figure.set(size_inches=(max(wide, 8), high), layout_engine="tight")
    canvas.draw()
    return canvas


def uploaded(value: Any) -> tuple[str, bytes] | None:
    """Read the file out of an upload field, whose value differs between ipywidgets 7 and 8.

    Args:
        value: Of the field: a mapping from names (7) or a sequence of mappings (8).

    Returns:
        Name and content; None if nothing was chosen.

    Raises:
        InputError: If the value has another form.

    Source: ipywidgets.
    Lesson: 06_explorer, "Real pictures".
    """
    check("upload", type(value).__name__, isinstance(value, Mapping | list | tuple), "one file")
    if not value:
        return None
    seven = isinstance(value, Mapping)
    name, entry = list(value.items())[-1] if seven else ("", value[-1])
    entry = entry if isinstance(entry, Mapping) else {}
    content = entry.get("content")
    ok = isinstance(content, bytes | bytearray | memoryview)
    check("upload", type(content).__name__, ok, "the content of one file")
    return str(name or entry.get("name")), bytes(content)


def _pixels(image: torch.Tensor, alt: str) -> str:
    array = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    return f'<img class="pixels" alt="{escape(alt)}" src="{_png(picture)}">'
