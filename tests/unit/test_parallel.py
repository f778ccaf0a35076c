"""One network trained by several processes, against the same by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import files, parallel, runs
from helpers.__main__ import main
from helpers.config import InputError
from tests import together

ROOT = Path(__file__).parents[2]


def launch(count, *words, home, status=0):
    """Start some processes as a user would."""
    variables = {**os.environ, "HELPERS_HOME": str(home), "OMP_NUM_THREADS": "1",
                 "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), *words],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode != 0) == bool(status), done.stderr
    return done


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """What three processes found, and how their launcher ended."""
    path = tmp_path_factory.mktemp("three") / "found.safetensors"
    done = launch(3, "-m", "tests.together", str(path), home=path.parent, status=1)
    assert path.exists(), done.stderr
    tensors, plain = files.load_tensors(path)
    return tensors, plain, done.stderr, path.parent


def compare(found, wanted, case):
    mine = {n.partition("|")[2]: t for n, t in found.items() if n.partition("|")[0] == case}
    assert mine.keys() == wanted.keys()
    assert mine.pop("macs") == wanted["macs"]
    for name, tensor in mine.items():
        assert torch.allclose(tensor.double(), wanted[name].double(), rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("case", together.CASES)
def test_three_processes_train_as_one_does(three, case):
    """Weights, BatchNorm's statistics, losses, monitored accuracies; batches that do not divide."""
    compare(three[0], together.trained(case, together.digits()), case)


def test_the_saliency_is_that_of_one_process(three):
    compare(three[0], together.salun(together.digits()), "salun")


def test_one_that_is_interrupted_stops_all_at_one_step_and_all_go_on(three):
    tensors, plain, _, folder = three
    assert plain["said"].startswith("stopped after 3 of 6 steps; kept in ")
    wanted = together.trained("digits_resnet", together.digits())
    compare(tensors, wanted, "resumed")
    copy = folder / "copy.safetensors"  # one process goes on with what three have begun
    resumed = together.trained("digits_resnet", together.digits(), checkpoint=copy)
    compare({f"alone|{name}": tensor for name, tensor in resumed.items()}, wanted, "alone")


def test_all_processes_end_with_the_same_bits(three):
    assert three[1]["same"]


def test_dropout_differs_from_share_to_share_and_later_draws_are_common(three):
    left = torch.tensor(three[1]["left"])
    assert left.shape == (9, 64)
    assert set(left.flatten().tolist()) == {0.0, 2.0}
    assert len({tuple(row) for row in left.tolist()}) == 9
    torch.default_generator.manual_seed(5)
    assert three[1]["drawn"] == torch.rand(1).item()


def test_all_take_the_numbers_of_the_first(three):
    assert three[1]["first"] == [[[0.0] * 2] * 3] * 3


def test_batch_norms_are_what_they_were_afterwards(three):
    assert three[1]["kinds"] == [True, "BatchNorm1d"]


def test_fewer_images_than_processes_are_computed_by_all(three):
    assert three[1]["few"] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_what_fails_in_the_first_is_heard_by_all(three):
    assert three[1]["told"] == ["the first one's reason"] * 2


def test_an_error_in_one_ends_all_with_one_message(three):
    said = [line for line in three[2].splitlines() if line.startswith("error: ")]
    assert said == ["error: only the second one fails"]
    assert "RuntimeError" not in three[2]


def test_a_run_of_two_processes_is_kept_and_read_back_by_one(tmp_path, monkeypatch, capsys):
    """In single precision: the tolerances here are those that the documentation states."""
    words = ("run", "--preset", "smoke", "--method", "prunelora", "--quiet", "--epochs", "3",
             "--train-limit", "20", "--device", "cpu")  # fmt: skip
    kept = {}
    launch(2, "-m", "helpers", *words, home=tmp_path / "two")
    for count in ("two", "one"):
        monkeypatch.setenv("HELPERS_HOME", str(tmp_path / count))
        assert main(list(words)) == 0
        folders = sorted((tmp_path / count / "artifacts" / "smoke").iterdir())
        records = {f.name: json.loads((f / "run.json").read_text()) for f in folders}
        kept[count] = records
        assert len(records) == 3
        assert not [*(tmp_path / count).rglob("*checkpoint*")]
        shown = capsys.readouterr().out.splitlines()[-1]
        assert shown.startswith("read back from" if count == "two" else "kept in")
    assert kept["two"].keys() == kept["one"].keys()
    for name, wanted in kept["one"].items():
        found = kept["two"][name]
        assert found["hardware"]["processes"] == 2
        assert "processes" not in wanted["hardware"]
        assert found["frozen_once"] == wanted["frozen_once"] == (found["patch_bytes"] > 0)
        assert found["history"][0]["loss"] == pytest.approx(wanted["history"][0]["loss"], rel=0.02)
        for view, metrics in wanted["metrics"].items():
            for metric in ("UA", "RA", "TA"):
                assert found["metrics"][view][metric] == pytest.approx(metrics[metric], abs=0.03)


def test_one_process_is_left_as_it_is(split, dataset, cfg):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64))
    assert parallel.shared(model) is model
    with parallel.whole_batch_norms(model):
        assert type(model[1]) is torch.nn.BatchNorm1d
    assert (parallel.size(), parallel.rank(), parallel._share(7)) == (1, 0, slice(0, 7))
    assert "processes" not in runs.environment()["hardware"]
    with parallel.joined():
        assert parallel.processes() == 1


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [8, 9, 64, 127])
def test_shares_are_those_of_torch(monkeypatch, count, rows):
    for place, wanted in enumerate(torch.arange(rows).tensor_split(count)):
        monkeypatch.setattr(parallel, "_GROUP", parallel._Group(place, count))
        assert torch.equal(torch.arange(rows)[parallel._share(rows)], wanted)
        with parallel.alone():
            assert parallel._share(rows) == slice(0, rows)


def test_a_launcher_that_tells_too_little_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"WORLD_SIZE = '2' is set, but .*torchrun"), (
        parallel.joined()
    ):  # fmt: skip
        pass


@pytest.mark.parametrize("text", ["", "1"])
def test_a_variable_that_says_nothing_starts_nothing(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    monkeypatch.setattr("torch.distributed.rendezvous", lambda _: pytest.fail("looked for others"))
    with parallel.joined():
        assert parallel.processes() == 1
    monkeypatch.setattr("helpers.__main__._stamp", lambda _: 0)
    assert main(["stamp"]) == 0


def test_other_commands_refuse_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "joined", lambda device: parallel.alone())
    monkeypatch.setattr(parallel, "_GROUP", parallel._Group(0, 2))
    assert main(["stamp", "--check"]) == 2
    assert "processes = 2 is not allowed: one, for this command" in capsys.readouterr().err
