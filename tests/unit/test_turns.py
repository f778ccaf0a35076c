"""Several threads that train in one process."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import helpers
from helpers import frozen, models, runs, training, turns, unlearning


def together(*calls):
    """Let every call run in a thread of its own; returns what they gave, in order."""
    found = [None] * len(calls)

    def work(place, call):
        try:
            found[place] = call()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def meet(barrier):
    """Wait a little for another thread, if it can come here at all."""
    try:
        barrier.wait(0.5)
    except threading.BrokenBarrierError:
        return False
    return True


class Held:
    """Somebody else who has the turn while the context lasts."""

    def __enter__(self):
        self.go, ready = threading.Event(), threading.Event()

        def hold():
            with turns.taken():
                ready.set()
                self.go.wait(60)

        self.thread = threading.Thread(target=hold)
        self.thread.start()
        assert ready.wait(60)

    def __exit__(self, *_):
        self.go.set()
        self.thread.join(60)


def test_the_random_state_is_taken_in_one_place_alone():
    for path in Path(helpers.__file__).parent.glob("*.py"):
        assert ("fork_rng(" in path.read_text()) == (path.stem == "turns"), path.name


def test_a_thread_may_take_its_turn_twice():
    def is_free():
        got = turns._LOCK.acquire(blocking=False)
        if got:
            turns._LOCK.release()
        return got

    with turns.taken(), turns.taken(), turns.own_random_state():
        assert together(is_free) == [False]
    assert together(is_free) == [True]


def test_networks_built_at_once_are_those_built_one_after_another(monkeypatch):
    wanted = [
        models.fingerprint(models.build_model("digits_resnet", 10, 1, 8, seed)) for seed in (0, 1)
    ]
    both, real = threading.Barrier(2), models.MODELS["digits_resnet"]

    def slowly(**shape):
        meet(both)  # each has set its seed
        return real(**shape)

    monkeypatch.setitem(models.MODELS, "digits_resnet", slowly)
    found = together(
        *(lambda s=s: models.build_model("digits_resnet", 10, 1, 8, s) for s in (0, 1))
    )
    assert [models.fingerprint(model) for model in found] == wanted


def test_of_two_trainings_one_waits(cfg, dataset, split):
    recipe, both, met = cfg.but(epochs=1).unlearn, threading.Barrier(2), []

    def objective(model, images, labels, share):
        met.append(not met and meet(both))
        return nn.functional.cross_entropy(model(images), labels)

    def fit(model, **how):
        training.fit(model, split.retain, dataset, recipe, seed=1, **how)
        return models.fingerprint(model)

    one = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    two, three = copy.deepcopy(one), copy.deepcopy(one)
    alone = fit(one)
    calls = (lambda model=model: fit(model, objective=objective) for model in (two, three))
    assert together(*calls) == [alone, alone]
    assert not any(met)


def test_a_whole_network_is_made_in_one_turn(cfg, dataset, home, monkeypatch):
    both, met, real = threading.Barrier(2), [], runs._write

    def write(*given):
        met.append(not met and meet(both))
        return real(*given)

    monkeypatch.setattr(runs, "_write", write)
    short = cfg.but(method="original")
    made = together(*(lambda s=s: runs.run(short.but(seed=s), dataset, False) for s in (3, 4)))
    assert [run.from_disk for run in made] == [False, False]
    assert met == [False, False]


@pytest.mark.parametrize("stopped", ["fit", "unlearn", "run"])
def test_who_waits_for_its_turn_can_be_stopped(cfg, dataset, split, original, home, stopped):
    stop, whom = threading.Event(), []

    def waits(text):
        whom.append(text)
        stop.set()

    calls = {
        "fit": lambda: training.fit(original, split.retain, dataset, cfg.unlearn, seed=0),
        "unlearn": lambda: unlearning.unlearn(original, dataset, cfg.but(method="finetune")),
        "run": lambda: runs.run(cfg.but(method="original"), dataset, False),
    }
    with (
        Held(),
        training.watched(stop, waits=waits),
        pytest.raises(training.Interrupted, match="while waiting for another training in"),
    ):
        calls[stopped]()
    assert whom == ["another training in this process"]
    assert not home.exists()
    with turns.taken():
        pass  # nothing is held afterwards


def test_a_network_that_is_traced_leaves_the_others_alone(monkeypatch):
    """Tracing puts something else in the place of what calls any network."""

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.input_shape = (4,)

        def forward(self, x):
            found.extend(together(lambda: other(images)))
            return self.head(self.first(x))

    other, images, found = nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 3), []
    wanted, network = other(images), Slow().eval()
    graph = frozen._Tracer(["head"]).trace(network)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["first", "head"]
    assert torch.equal(found[0], wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not(tmp_path):
    code = """
import os, threading
from helpers import turns

ready = threading.Event()

def hold():
    with turns.taken():
        ready.set()
        threading.Event().wait(60)

threading.Thread(target=hold, daemon=True).start()
assert ready.wait(60)
asked = []

def meanwhile():
    asked.append(1)
    if len(asked) > 3:
        os._exit(3)

if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with turns.taken(meanwhile):
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120)
    assert done.returncode == 0
