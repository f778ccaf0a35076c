"""Executing the series: notebooks in order, as HTML, with what they cost."""

from __future__ import annotations

import asyncio
import copy
import html
import itertools
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import audit, bars, files, pages, plots, report, runs, statistics
from helpers.config import InputError, RunConfig, at_home, need, reason, whole_reason

if TYPE_CHECKING:
    import pandas as pd
    from nbclient import NotebookClient
    from nbformat import NotebookNode

SERIES = (
    "00_start_here",
    "01_baseline_training",
    "02_pruning",
    "03_lora_adaptation",
    "04_class_unlearning",
    "05_evaluation",
    "06_explorer",
)
CELL_SECONDS = {
    "smoke": 120,
    "smoke_gpu": 120,
    "cpu": 600,
}  # a cell that takes longer has hung; others may be long
_NEEDED = ("nbformat", "nbclient", "nbconvert", "psutil")  # come with the extra dev
_REMEDY = "restore it, as with git checkout, or name another folder with --notebooks"
_SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)


def play(
    cfg: RunConfig, notebooks: Path, pages: Path, write: bool, say: Callable[[str], object]
) -> None:
    """Execute the series in order, write the pages, and say what came out.

    Args:
        cfg: Gives the preset, the same for all notebooks.
        notebooks: Folder of the notebooks.
        pages: Folder for the HTML pages.
        write: Also write the outputs into the notebooks, and the measured costs and the comparison
            into ``results/`` and the Markdown pages. Everything is then trained anew, in an empty
            folder, so that the costs are those of a first run.
        say: Called with each line to show.

    Raises:
        InputError: If a package for notebooks is not installed, a notebook is missing, its kernel
            does not start or one of its cells fails.
        FileProblem: If a file cannot be written; a folder that cannot is found at once.

    Source: nbclient and nbconvert.
    Lesson: 00_start_here, "What it costs".
    """
    for package in _NEEDED:
        need("tutorial", package, f"pip install ipykernel {' '.join(_NEEDED)}")
    root = notebooks.resolve().parent
    files.try_folder(pages, *(f"{name}.html" for name in SERIES))
    for folder in (root, root / "results", notebooks, notebooks / "solutions") if write else ():
        files.try_folder(folder)
    costs, done = {}, {}
    with tempfile.TemporaryDirectory() as fresh, at_home(fresh) if write else nullcontext():
        for name in SERIES:
            path = notebooks / f"{name}.ipynb"
            notebook, costs[name] = execute(path, cfg.preset)
            files.write_atomically(pages / f"{name}.html", files.as_text(_page(notebook)))
            say(f"{name}: {costs[name]['seconds']:.0f} s, {costs[name]['peak_mb']:.0f} MB")
            done[path] = notebook
        say("")
        every = runs.run_all(cfg, progress=False)
    table = audit.compare(run.row for run in every)
    say(report.text_table(report.cells(statistics.summary(table))) + f"\n\n{report.NOTE}\n")
    if write:
        _keep(cfg, root, costs, table)
        for path, notebook in done.items():
            save(_with_costs(normalise(notebook)), path)
            save(solutions(notebook), solutions_path(path))
    kept = "" if write else f"    Records: {every[0].folder.parent}/*/run.json"
    say(f"Pages: {pages}/*.html{kept}")


def _keep(cfg: RunConfig, root: Path, costs: dict[str, Any], table: pd.DataFrame) -> None:
    """Write the records of a measured series, and what is rendered from them."""
    here, folder = runs.environment(cfg.device), root / "results"
    rows = table.drop(columns=["Avg Gap", "ToW"]).to_dict("records")
    files.write_json(folder / f"tutorial-{cfg.preset}.json", here | {"costs": costs})
    files.write_json(folder / f"comparison-{cfg.preset}.json", here | {"rows": rows})
    plots.style()
    figure = plots.comparison(table)[0].figure
    record = folder / f"comparison-{cfg.preset}.json"
    pages.keep_figure(figure, record.with_suffix(".png"), record)
    pages.render(root)


def _with_costs(notebook: NotebookNode) -> NotebookNode:
    """Show the costs of the run that has just ended, which its cells could not know yet."""
    for cell in notebook.cells:
        if shown := re.search(r'report\.budget\("(\w+)"\)', cell.source):
            for output in cell.outputs:
                output.data["text/markdown"] = report.budget(shown[1])
    return notebook


def execute(path: Path, preset: str) -> tuple[NotebookNode, dict[str, float]]:
    """Execute one notebook in its own kernel and folder.

    Args:
        path: The notebook; stays as it is.
        preset: Passed to the kernel as HELPERS_PRESET.

    Returns:
        The executed notebook, and its costs: seconds, and peak_mb, the largest resident memory of
        this process and the kernel together in megabytes (1e6 bytes).

    Raises:
        InputError: If it does not exist, its kernel does not start or a cell fails; the message
            shows the cell and the error.
        RuntimeError: If an event loop runs in this thread, as in a notebook.
        KeyboardInterrupt: After Ctrl-C; the kernel has then ended.

    Source: https://nbclient.readthedocs.io.
    Lesson: 00_start_here, "What it costs".
    """
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read(path)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    environment = {k: v for k, v in os.environ.items()
                   if k not in ("MPLBACKEND", "PYTHONDONTWRITEBYTECODE")}  # fmt: skip
    environment["HELPERS_PRESET"] = preset
    started = time.perf_counter()
    with (
        bars.show(text=path.stem, total=cells, unit="cell", leave=False) as bar,
        _memory() as peak,
        _quiet(),
    ):
        client = _client(
            notebook, timeout=CELL_SECONDS.get(preset), kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],  # not that loopback TCP is unencrypted
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_executed=lambda **_: bar.update(),
        )  # fmt: skip
        try:
            asyncio.run(client.async_execute(env=environment))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise InputError(f"{path.name} failed: {error}") from error
    return notebook, {"seconds": time.perf_counter() - started, "peak_mb": peak[0] / 1e6}


def _client(notebook: NotebookNode, **settings: Any) -> NotebookClient:
    """Make a client that can be stopped by Ctrl-C, for which ``asyncio.run`` cancels it."""
    from jupyter_core.paths import jupyter_data_dir
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    class Client(NotebookClient):
        @asynccontextmanager
        async def async_setup_kernel(self, **kwargs: Any) -> AsyncIterator[None]:
            """Start and end the kernel. nbclient's own answers Ctrl-C itself, and ends it twice."""
            manager, stopped = self.create_kernel_manager(), asyncio.current_task().cancelling
            try:
                await self._start(kwargs)
                yield
            except BaseException:
                if stopped():  # nbclient takes being cancelled for the death of the kernel
                    raise asyncio.CancelledError from None
                raise
            finally:
                try:
                    if not stopped() and await manager.is_alive():
                        await manager.shutdown_kernel()
                finally:
                    if manager.has_kernel:  # stopped: one that is asked to end shows a traceback
                        await manager.provisioner.kill()
                        await manager.provisioner.wait()
                    if self.kc is not None:
                        self.kc.stop_channels()
                    await manager.cleanup_resources()

        async def _start(self, kwargs: dict[str, Any]) -> None:
            advice = "set the environment variable HOME to the folder below which Jupyter finds it"
            try:
                jupyter_data_dir()  # fails without a home, as jupyter kernelspec list would
                advice = ("see where its kernelspec is with jupyter kernelspec list, and repair or "
                          "remove it")  # fmt: skip
                await self.async_start_new_kernel(**kwargs)
                await self.async_start_new_kernel_client()
            except Exception as error:  # a kernelspec may be broken in any way
                why = whole_reason(error).removesuffix(".")
                raise DeadKernelError(
                    f"the kernel {self.kernel_name} does not start: {why}; {advice}"
                ) from error

    return Client(notebook, **settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the screen what nbclient and jupyter_client say there: they raise it as well."""
    from traitlets.log import get_logger

    log = get_logger()
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _memory() -> Iterator[list[int]]:
    """Watch the resident memory of this process and its children."""
    import psutil

    peak, done, me = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.1):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # ended since it was listed, or not ours to look at
                    continue
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _page(notebook: NotebookNode) -> str:
    """Convert to HTML; figures get their description as alternative text, links lead to pages.

    Sliders are left out, since nothing would answer them; the figure beside them stays.
    """
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _stays(output)]
    for cell, below in itertools.pairwise(notebook.cells):
        if below.source.startswith("*Figure: "):
            description = below.source.removeprefix("*Figure: ").split("*")[0]
            words = html.escape(" ".join(description.split()))
            for output in cell.outputs:
                if png := output.get("data", {}).get("image/png"):
                    image = f'<img alt="{words}" src="data:image/png;base64,{png.strip()}">'
                    output.data = {"text/html": image}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.html)", cell.source)
    return HTMLExporter(template_name="lab").from_notebook_node(notebook)[0]


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Drop from a notebook what differs from one execution or machine to the next. In place.

    Args:
        notebook: Any notebook of format 4.

    Returns:
        The same notebook: kernel ``python3``, counts 1 to n, tags as the only cell metadata, cell
        names by position, no widget state, no progress bars, no timestamps.

    Source: this project.
    Lesson: 00_start_here, "What it costs".
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    count = 0
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        cell.id = f"cell-{index:02d}"
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [o for o in cell.outputs if _stays(o)]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    notebook.nbformat_minor = 5
    return notebook


_FOR_WIDGETS = re.compile(r"(<(style|script)>.*?</\2>\s*)+", re.DOTALL)


def _stays(output: Any) -> bool:
    data = output.get("data", {})
    widget = "application/vnd.jupyter.widget-view+json" in data  # and what dresses it
    widget = widget or _FOR_WIDGETS.fullmatch("".join(data.get("text/html", "")).strip())
    return not widget and output.get("name") != "stderr"  # bars and log lines


def solutions(notebook: NotebookNode) -> NotebookNode:
    """Build the notebook of solutions from the folded solutions of a lesson.

    Args:
        notebook: A lesson. Its cells tagged ``setup`` are taken over; after each folded solution
            in the text, the next cell tagged ``check`` follows.

    Returns:
        A notebook without outputs, in which every check must answer "Right.".

    Source: this project.
    Lesson: 00_start_here, "Exercises".
    """
    import nbformat.v4 as v4

    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    cells = [v4.new_markdown_cell(f"# Solutions: {title}\n\nMade from the lesson's folded text.")]
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "setup" in tags:
            cells.append(v4.new_code_cell(cell.source))
        elif cell.cell_type == "code" and "check" in tags:
            judged = cell.source.replace("exercises.verdict(", "reply = exercises.verdict(", 1)
            cells.append(v4.new_code_cell(f"{judged}\nassert reply == exercises.RIGHT, reply"))
        elif cell.cell_type == "markdown" and (found := _SOLUTION.search(cell.source)):
            heading = next(line for line in cell.source.splitlines() if line.startswith("###"))
            cells += [v4.new_markdown_cell(heading), v4.new_code_cell(found[1].rstrip())]
    made = v4.new_notebook(cells=copy.deepcopy(cells))
    return normalise(made)


def solutions_path(path: Path) -> Path:
    """Return where the solutions of a lesson are kept."""
    return path.parent / "solutions" / f"{path.stem}_solutions.ipynb"


def read(path: Path) -> NotebookNode:
    """Read a notebook.

    Args:
        path: The file.

    Returns:
        The notebook, in format 4.

    Raises:
        InputError: If it does not exist, is not a notebook or has no cells.

    Source: nbformat.
    Lesson: 00_start_here, "What it costs".
    """
    import nbformat

    if not path.is_file():
        raise InputError(
            f"notebook {path} does not exist: run this in the clone, or name --notebooks"
        )
    try:
        notebook = nbformat.convert(nbformat.reader.reads(path.read_text(encoding="utf-8")), 4)
        nbformat.validate(notebook)  # nbformat.read only logs what it finds
    except OSError:
        raise
    except Exception as error:  # nbformat raises whatever its parts meet in a damaged file
        raise InputError(f"{path} is not a notebook: {reason(error)[:200]}; {_REMEDY}") from error
    if not notebook.cells:
        raise InputError(f"{path} has no cells, and a lesson begins with its title; {_REMEDY}")
    return notebook


def save(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook, atomically, with a line break at the end.

    Args:
        notebook: Any notebook of format 4.
        path: The file.

    Raises:
        FileProblem: If it cannot be written.

    Source: nbformat.
    Lesson: 00_start_here, "What it costs".
    """
    import nbformat

    files.write_atomically(path, files.as_text(nbformat.writes(notebook) + "\n"))
