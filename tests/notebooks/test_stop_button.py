"""The kernel's stop button, pressed while a cell trains."""

from __future__ import annotations

import queue
import time

import pytest
from jupyter_client.manager import start_new_kernel

SETUP = """
from helpers import data, runs
from helpers.config import get_config
cfg = get_config("cpu", method="retrain")
dataset = data.load_dataset(cfg)
"""
# Says so once it trains: the first optimiser step prints.
TRAIN = """
from helpers import training
step = training._Loop.step
def speaking(*args):
    step(*args)
    print("trained " + "a step", flush=True)
training._Loop.step = speaking
try:
    runs.run(cfg, dataset, progress=False)
finally:
    training._Loop.step = step
"""


@pytest.fixture
def kernel(home, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(home))
    manager, client = start_new_kernel(extra_arguments=["--log-level=ERROR"])
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_cell(client, source, until=None):
    """Execute and collect messages until the cell ends, or until a text was printed."""
    messages, identity = [], client.execute(source)
    return collect(client, identity, messages, until), identity


def collect(client, identity, messages, until=None):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=5)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") != identity:
            continue
        messages.append(message)
        content = message["content"]
        if content.get("execution_state") == "idle" or (until and until in str(content)):
            return messages
    raise TimeoutError(messages)


def errors(messages):
    return [m["content"] for m in messages if m["msg_type"] == "error"]


def test_the_stop_button_leaves_a_checkpoint_and_the_same_cell_goes_on(kernel, home):
    manager, client = kernel
    messages, _ = run_cell(client, SETUP)
    assert not errors(messages)
    messages, identity = run_cell(client, TRAIN, until="trained a step")
    manager.interrupt_kernel()
    (error,) = errors(collect(client, identity, messages))
    assert error["ename"] == "Interrupted", "\n".join(error["traceback"])
    assert "Run the same again to go on" in error["evalue"]
    assert len(list(home.glob("artifacts/cpu/*/checkpoint.safetensors"))) == 1
    messages, _ = run_cell(client, "done = runs.run(cfg, dataset, progress=False)\ndone.from_disk")
    assert not errors(messages)
    assert not list(home.glob("artifacts/cpu/*/checkpoint.safetensors"))
    messages, _ = run_cell(client, "done.record['steps']")
    (result,) = [m for m in messages if m["msg_type"] == "execute_result"]
    assert result["content"]["data"]["text/plain"] == "320", "20 epochs of 16 batches"
