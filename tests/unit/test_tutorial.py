from __future__ import annotations

import contextlib
import copy
import html
import json
import pwd
import re
import signal
import subprocess
import sys
import time

import nbformat.v4 as v4
import psutil
import pytest
from traitlets.log import get_logger

from helpers import exercises, tutorial
from helpers.config import InputError
from helpers.files import FileProblem


def lesson(*cells):
    return v4.new_notebook(cells=list(cells))


def test_a_notebook_is_executed_in_its_folder_with_the_preset_and_measured(tmp_path):
    notebook = lesson(
        v4.new_code_cell(
            "import os; print(os.environ['HELPERS_PRESET'], os.path.basename(os.getcwd()))"
        ),
        v4.new_code_cell("ballast = bytearray(300_000_000)"),
    )
    path = tmp_path / "place" / "x.ipynb"
    tutorial.save(notebook, path)
    done, costs = tutorial.execute(path, "smoke")
    assert done.cells[0].outputs[0].text == "smoke place\n"
    assert costs["peak_mb"] > 300
    assert 0 < costs["seconds"] < 120


def test_a_failing_cell_and_a_missing_notebook_are_named(tmp_path):
    path = tmp_path / "x.ipynb"
    tutorial.save(lesson(v4.new_code_cell("assert 1 == 2, 'sums'")), path)
    with pytest.raises(InputError, match=r"(?s)x\.ipynb failed.*assert 1 == 2.*sums"):
        tutorial.execute(path, "smoke")
    with pytest.raises(InputError, match="does not exist"):
        tutorial.execute(tmp_path / "y.ipynb", "smoke")
    (tmp_path / "z.ipynb").write_text("garbage")
    with pytest.raises(InputError, match=r"z\.ipynb is not a notebook"):
        tutorial.execute(tmp_path / "z.ipynb", "smoke")


CELLS = '{"cells": %s, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
DAMAGED = {
    "empty object": "{}", "list": "[]", "null": "null", "number": "5", "text": '"a"', "nothing": "",
    "no cells": '{"metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    "cells are a number": CELLS % "5", "cell without content": CELLS % "[{}]",
    "cell is a number": CELLS % "[5]", "empty": CELLS % "[]",
    "source is a number": CELLS % '[{"cell_type": "markdown", "id": "a", "metadata": {}, '
    '"source": 5}]',
    "version is a list": '{"nbformat": [4]}', "unknown version": '{"nbformat": 99}',
    "too deep": "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_notebook_is_named_in_one_line(tmp_path, text, capfd):
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        tutorial.read(path)
    said = str(caught.value)
    assert str(path) in said
    assert "restore it, as with git checkout, or name another folder with --notebooks" in said
    assert "\n" not in said
    assert len(said) < 500
    assert capfd.readouterr() == ("", "")


def test_a_notebook_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"x\.ipynb is not a notebook.*restore it"):
        tutorial.read(path)


def _kernels(pid: int) -> list[psutil.Process]:
    """The children that are kernels: imports start short-lived ones, too, such as uname."""
    kernels = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended since it was listed
            if "ipykernel_launcher" in child.cmdline():
                kernels.append(child)
    return kernels


@pytest.mark.parametrize("moment", ["the kernel starts", "a cell is executed"])
def test_ctrl_c_is_one_line_and_leaves_no_kernel(tmp_path, moment):
    cell = "from pathlib import Path; Path('begun').touch(); import time; time.sleep(60)"
    path, begun = tmp_path / f"{tutorial.SERIES[0]}.ipynb", tmp_path / "begun"
    tutorial.save(lesson(v4.new_markdown_cell("# Title"), v4.new_code_cell(cell)), path)
    command = [sys.executable, "-m", "helpers", "tutorial", "--preset", "smoke",
               "--home", str(tmp_path), "--notebooks", str(tmp_path),
               "--html", str(tmp_path / "html")]  # fmt: skip
    # tests that run in the background ignore Ctrl-C, and what they start would, too
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not (kernels := _kernels(process.pid)) or (
        moment == "a cell is executed" and not begun.exists()
    ):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert printed == ""
    said = [line for line in error.splitlines() if line.strip() and "cell/s" not in line]
    assert said == ["stopped; finished runs are kept"]
    assert not any(kernel.is_running() for kernel in kernels)
    assert begun.exists() == (moment == "a cell is executed")


@pytest.mark.parametrize(
    ("kernelspec", "reason"),
    [
        (json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}), "Kernel died"),
        (
            json.dumps({"argv": ["/no/such/python"], "display_name": "x", "language": "python"}),
            "No such file or directory: '/no/such/python'",
        ),
        ("{", "Expecting"),
    ],
    ids=["ends at once", "python is gone", "damaged"],
)
def test_a_kernel_that_does_not_start_is_one_line(
    tmp_path, monkeypatch, capfd, caplog, kernelspec, reason
):
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(kernelspec)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    path = tmp_path / "x.ipynb"
    tutorial.save(lesson(v4.new_code_cell("1")), path)
    level = get_logger().level
    with pytest.raises(InputError, match="jupyter kernelspec list") as caught:
        tutorial.execute(path, "smoke")
    assert get_logger().level == level, "what others log is theirs"
    said = str(caught.value)
    assert said.startswith("x.ipynb failed: the kernel python3 does not start: ")
    assert reason in said
    assert "\n" not in said
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
    assert not caplog.records


def test_where_there_is_no_home_no_kernelspec_is_blamed(tmp_path, monkeypatch):
    """As in a container whose user has neither HOME nor an entry among the users."""

    def no_entry(_):
        raise KeyError("no such user")

    for name in ("HOME", "JUPYTER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    path = tmp_path / "x.ipynb"
    tutorial.save(lesson(v4.new_code_cell("1")), path)
    with pytest.raises(InputError) as caught:
        tutorial.execute(path, "smoke")
    assert str(caught.value) == (
        "x.ipynb failed: the kernel python3 does not start: RuntimeError: Could not determine home "
        "directory; set the environment variable HOME to the folder below which Jupyter finds it"
    )


@pytest.mark.parametrize(
    ("blocked", "write"),
    [("html", False), ("html/06_explorer.html/below", False), ("results", True),
     ("notebooks/solutions", True)],
)  # fmt: skip
def test_what_is_written_at_the_end_is_tried_before_the_first_notebook(
    cfg, tmp_path, monkeypatch, blocked, write
):
    (tmp_path / blocked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / blocked).write_text("a file")
    monkeypatch.setattr(tutorial, "execute", lambda *_: pytest.fail("executed"))
    with pytest.raises(FileProblem, match="cannot write"):
        tutorial.play(cfg, tmp_path / "notebooks", tmp_path / "html", write, say=print)


def test_a_cell_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(tutorial.CELL_SECONDS, "smoke", 1)
    path = tmp_path / "x.ipynb"
    tutorial.save(lesson(v4.new_code_cell("import time; time.sleep(60)")), path)
    with pytest.raises(InputError, match=r"x\.ipynb failed.*timed out"):
        tutorial.execute(path, "smoke")


def test_normalised_executions_are_the_same_byte_for_byte(tmp_path):
    source = lesson(
        v4.new_markdown_cell("# Title"),
        v4.new_code_cell("from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass\n7",
                         metadata={"tags": ["setup"], "editable": True}),
        v4.new_code_cell("import sys; print('bar', file=sys.stderr); print('kept')"),
    )  # fmt: skip
    path, texts = tmp_path / "x.ipynb", []
    tutorial.save(source, path)
    for run in range(2):
        done, _ = tutorial.execute(path, "smoke")
        out = tmp_path / f"{run}.ipynb"
        tutorial.save(tutorial.normalise(done), out)
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]
    first, second = (c for c in done.cells if c.cell_type == "code")
    assert [o.data["text/plain"] for o in first.outputs if "data" in o] == ["7"]
    assert first.metadata == {"tags": ["setup"]}
    assert [o.text for o in second.outputs] == ["kept\n"]
    assert (first.execution_count, second.execution_count) == (1, 2)
    assert set(done.metadata) == {"kernelspec", "language_info"}


TASK = """### Exercise 1 · Add (easy, 1 minute)

<details><summary>Hint</summary>

Use +.

</details>

<details><summary>Solution</summary>

```python
answer = base + 2
```

</details>"""


def test_solutions_are_made_from_the_folded_text():
    notebook = lesson(
        v4.new_markdown_cell("# 09 · Sums"),
        v4.new_code_cell("base = 40", metadata={"tags": ["setup"]}),
        v4.new_code_cell("left = 'out'"),
        v4.new_markdown_cell(TASK),
        v4.new_code_cell("answer = ..."),
        v4.new_code_cell(
            "exercises.verdict(answer, lambda a: a == 42, 'add')", metadata={"tags": ["check"]}
        ),
    )
    made = tutorial.solutions(notebook)
    assert [c.source.splitlines()[0] for c in made.cells] == [
        "# Solutions: 09 · Sums", "base = 40", "### Exercise 1 · Add (easy, 1 minute)",
        "answer = base + 2", "reply = exercises.verdict(answer, lambda a: a == 42, 'add')",
    ]  # fmt: skip
    namespace = {"exercises": exercises}
    for cell in made.cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
    assert namespace["reply"] == exercises.RIGHT


def test_pages_take_the_description_of_a_figure_as_its_alternative_text():
    picture = v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    made = lesson(
        v4.new_code_cell("draw()", outputs=[picture]),
        v4.new_markdown_cell('*Figure: a rising\nline, "y < 1".* It rises.'),
    )
    before = copy.deepcopy(made)
    ((_, text),) = re.findall(r"<img alt=(['\"])(.*?)\1", tutorial._page(made))
    assert html.unescape(text) == 'a rising line, "y < 1".'
    assert made == before, "what is written to the clone keeps its pictures"


def test_pages_have_the_figure_beside_a_slider_but_no_slider_that_cannot_answer():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "ab12", "version_major": 2,
                                                         "version_minor": 0},
            "text/plain": "VBox(children=())"}  # fmt: skip
    outputs = [v4.new_output("display_data", view),
               v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})]  # fmt: skip
    made = lesson(
        v4.new_code_cell("show()", outputs=outputs), v4.new_markdown_cell("*Figure: a line.*")
    )
    made.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {
        "state": {"ab12": {"model_name": "VBoxModel"}}, "version_major": 2, "version_minor": 0,
    }}  # fmt: skip
    page = tutorial._page(made)
    assert 'alt="a line."' in page
    assert "ab12" not in page
    assert "VBox(" not in page
    assert "ab12" in str(made), "the notebook itself keeps it"


def test_what_dresses_a_widget_goes_with_it_and_a_styled_table_stays():
    table = '<style type="text/css"></style><table><tr><td>1</td></tr></table>'
    dress = "<style>.a {}</style>\n<script>\nmend();\n</script>\n"
    outputs = [v4.new_output("display_data", {"text/html": text}) for text in (dress, table)]
    made = tutorial.normalise(lesson(v4.new_code_cell("cut", outputs=outputs)))
    assert [o.data["text/html"] for o in made.cells[-1].outputs] == [table]


def test_pages_link_to_pages():
    links = "[next](01_baseline_training.ipynb) [other](https://x.org/01_y.ipynb)"
    page = tutorial._page(lesson(v4.new_markdown_cell(links)))
    assert 'href="01_baseline_training.html"' in page
    assert 'href="https://x.org/01_y.ipynb"' in page


def test_verdicts_are_open_right_or_helpful():
    def is_even(n):
        return n % 2 == 0

    assert exercises.verdict(..., is_even, "hint") == exercises.verdict(None, is_even, "hint")
    assert exercises.verdict(..., is_even, "hint") == exercises.OPEN
    assert exercises.verdict(4, is_even, "hint") == exercises.RIGHT
    assert (
        exercises.verdict(3, is_even, "look at the last digit") == "Not yet: look at the last digit"
    )
    assert "TypeError" in exercises.verdict("x" * 2 + "y", lambda a: a % 2 == 0, "hint")
