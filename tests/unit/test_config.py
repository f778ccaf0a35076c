from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import config
from helpers.config import InputError, Recipe, RunConfig, get_config

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("rank", 0, "from 1 to 2147483647"),
        ("rank", -3, "from 1 to 2147483647"),
        ("rank", 2**31, "from 1 to 2147483647"),
        ("rank", 2.5, "whole number"),
        ("rank", True, "whole number"),
        ("sparsity", 1.0, "[0, 1)"),
        ("sparsity", -0.1, "[0, 1)"),
        ("sparsity", float("nan"), "[0, 1)"),
        ("sparsity", "half", "[0, 1)"),
        ("forget", -1, "≥ 0"),
        ("seed", None, "from 0 to"),
        ("forget", None, "≥ 0"),
        ("data", None, "folder:PATH"),
        ("train", 5, "a Recipe"),
        ("seed", -1, "from 0 to"),
        ("seed", 2**31, "from 0 to"),
        ("epochs", 0, "from 1 to 1000000"),
        ("epochs", 1_000_001, "from 1 to 1000000"),
        ("epochs", 10**20, "from 1 to 1000000"),
        ("lr", 0.0, "a finite number above 0"),
        ("lr", float("inf"), "a finite number above 0"),
        ("alpha", -1.0, "a number from 1e-06 to 1e+06"),
        ("alpha", float("inf"), "a number from 1e-06 to 1e+06"),
        ("alpha", 1e300, "from 1e-06 to 1e+06"),
        ("dropout", 1.0, "[0, 1)"),
        ("image_size", 4, "from 8 to 512"),
        ("train_limit", 1, "from 2 to 2147483647"),
        ("method", None, "the name of a method"),
        ("method", ["lora"], "the name of a method"),
        ("model", None, "the name of a model"),
        ("model", 18, "the name of a model"),
        ("mode", "fast", "default, paper"),
        ("precision", "fp8", "auto, fp32, amp"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("compile", 1, "True or False"),
        ("graphs", 1, "True or False"),
        ("on_corrupt", "ignore", "stop, skip"),
        ("data", "mnist", "digits, cifar10, folder:PATH"),
        ("tuned", "imagenet", "digits"),
    ],
)
def test_a_value_outside_its_range_is_refused_with_field_value_and_range(field, value, allowed):
    with pytest.raises(InputError) as caught:
        get_config("cpu", **{field: value})
    message = str(caught.value)
    assert field in message
    assert repr(value) in message
    assert allowed in message
    assert "\n" not in message


NUMBERS = ("sparsity", "alpha", "dropout", "lr", "rank", "cache_mb", "memory_mb", "train_limit",
           "seed", "epochs")  # fmt: skip
OF_A_RECIPE = ("epochs", "lr", "momentum", "weight_decay", "batch_size", "mixup", "strength")


@pytest.mark.parametrize(("message", "first", "whole"), [
    ("it broke", "it broke", "KeyboardInterrupt: it broke"),
    ("\n \n it broke:\n\tthe disk\r\n", "it broke:", "KeyboardInterrupt: it broke: the disk"),
    ("", "KeyboardInterrupt", "KeyboardInterrupt"),
    (" \n", "KeyboardInterrupt", "KeyboardInterrupt"),
])  # fmt: skip
def test_the_reason_of_an_error_is_never_empty(message, first, whole):
    error = KeyboardInterrupt(message)
    assert (config.reason(error), config.whole_reason(error)) == (first, whole)


@pytest.mark.parametrize("number", [10**400, -(10**5000)], ids=["400 digits", "5000 digits"])
def test_a_number_of_hundreds_of_digits_is_refused_in_one_short_line(number):
    start = {RunConfig: {}, Recipe: {"epochs": 1, "lr": 0.1}}
    for make, fields in ((RunConfig, NUMBERS), (Recipe, OF_A_RECIPE)):
        for field in fields:
            told = rf"^{field} = a number of [\d,]+ bits is not allowed: a"
            with pytest.raises(InputError, match=told):
                make(**{**start[make], field: number})


def test_numbers_that_cannot_be_written_are_refused_all_the_same():
    with pytest.raises(InputError, match="forget = a tuple of numbers too long to write is not"):
        RunConfig(forget=(3, -(10**5000)))


@given(st.floats(allow_nan=True))
def test_sparsity_is_accepted_exactly_on_its_interval(value):
    if 0 <= value < 1:
        assert RunConfig(sparsity=value, device="cpu").sparsity == value
    else:
        with pytest.raises(InputError, match="sparsity"):
            RunConfig(sparsity=value, device="cpu")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"epochs": 0}, "epochs = 0 .* a whole number from 1 to 1000000$"),
        ({"epochs": 1_000_001}, "epochs = 1000001 .* a whole number from 1 to 1000000$"),
        ({"lr": -1.0}, "lr = -1.0 .* a finite number above 0$"),
        ({"lr": float("inf")}, "lr = inf .* a finite number above 0$"),
        ({"strength": float("inf")}, "strength = inf .* a finite number ≥ 0, or None$"),
        ({"optimizer": "lion"}, "sgd, adam, adamw"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": "a"}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": float("inf")}, "weight_decay = inf .* a finite number ≥ 0$"),
        ({"batch_size": 1}, "batch_size"),
        ({"schedule": "step"}, "constant, cosine"),
        ({"augment": "mirror"}, "crop[+]flip"),
        ({"mixup": float("nan")}, "mixup = nan .* a finite number ≥ 0$"),
    ],
)
def test_a_recipe_is_validated(change, word):
    with pytest.raises(InputError, match=word):
        Recipe(**{"epochs": 1, "lr": 0.1, **change})


def test_as_many_epochs_as_are_allowed_can_be_asked_for():
    assert get_config("cpu", epochs=10**6).unlearn.epochs == Recipe(10**6, 0.1).epochs == 10**6


def test_unknown_preset_and_field_list_the_known_ones():
    with pytest.raises(InputError, match="smoke, cpu, cifar, gpu, paper"):
        get_config("laptop")
    with pytest.raises(InputError, match="sparsity, pruning"):
        get_config("cpu", sparcity=0.5)
    with pytest.raises(InputError, match="sparsity, pruning"):
        get_config("cpu").but(sparcity=0.5)


def test_the_environment_chooses_the_preset(monkeypatch):
    monkeypatch.delenv("HELPERS_PRESET")
    assert get_config().preset == "cpu"
    monkeypatch.setenv("HELPERS_PRESET", "smoke")
    assert get_config().preset == "smoke"
    assert get_config("cpu").preset == "cpu"


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be another machine."""

    def pretend(colab, cuda, asked_for=None):
        for name in ("HELPERS_PRESET", "COLAB_RELEASE_TAG"):
            monkeypatch.delenv(name, raising=False)
        if asked_for:
            monkeypatch.setenv("HELPERS_PRESET", asked_for)
        if colab == "notebook":
            monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
        elif colab == "command":
            monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    return pretend


@pytest.mark.parametrize("colab", ["notebook", "command"])
def test_colab_with_a_gpu_gets_the_gpu_preset(machine, colab, monkeypatch):
    machine(colab, cuda=True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as PyTorch has it
    cfg = get_config()
    assert not torch.backends.cudnn.allow_tf32, "full precision means all bits"
    assert (cfg.preset, cfg.data, cfg.model) == ("gpu", "cifar10", "resnet18")
    assert (cfg.device, cfg.precision) == ("cuda", "amp")
    assert get_config("cpu").data == "digits"


@pytest.mark.parametrize(
    ("colab", "cuda", "asked_for", "preset"),
    [
        ("notebook", False, None, "cpu"),
        (None, True, None, "cpu"),  # a laptop with a GPU: no download that nobody asked for
        (None, True, "gpu", "gpu"),
        ("notebook", True, "smoke", "smoke"),
    ],
)
def test_everything_else_gets_what_it_asks_for_or_cpu(machine, colab, cuda, asked_for, preset):
    machine(colab, cuda, asked_for)
    assert get_config().preset == preset


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(InputError, match="no CUDA device was found"):
        get_config("cpu", device="cuda")
    assert get_config("cpu", device="auto").device == "cpu"


def test_every_preset_is_valid():
    for name in config.PRESETS:
        assert get_config(name).preset == name


def test_images_on_the_machine_take_the_place_of_the_presets(monkeypatch):
    before = get_config("gpu")
    monkeypatch.setenv("HELPERS_DATA", "folder:somewhere")
    after = get_config("gpu")
    assert (before.data, after.data) == ("cifar10", "folder:somewhere")
    assert after.but(data="cifar10") == before, "and nothing else changes"
    assert get_config("gpu", data="digits").data == "digits", "what is asked for comes first"
    monkeypatch.setenv("HELPERS_DATA", "somewhere")
    with pytest.raises(InputError, match="data = 'somewhere' is not allowed"):
        get_config("gpu")


def test_the_small_gpu_preset_differs_in_size_alone():
    small, large = get_config("smoke_gpu"), get_config("gpu")
    assert (small.data, small.tuned, small.mode) == (large.data, large.tuned, large.mode)
    assert (small.train.augment, small.train.schedule) == ("crop+flip", "cosine")


def test_the_copy_changes_and_the_original_does_not():
    cfg = get_config("cpu")
    assert cfg.but(rank=2).rank == 2
    assert cfg.rank == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.rank = 3


@pytest.mark.parametrize(
    ("forget", "earlier", "hint"),
    [
        (5, (3, 3), "several different ones"),
        ((5, 7), (3, 1, 3), "several different ones"),
        (3, (3,), "3 is forgotten only now"),
        ((5, 7), (1, 7), r"\(5, 7\) is forgotten only now"),
    ],
)
def test_an_earlier_request_is_neither_repeated_nor_the_newest(forget, earlier, hint):
    with pytest.raises(InputError, match=f"^earlier = .* is not allowed: .*{hint}"):
        get_config("cpu", forget=forget, earlier=earlier)
    assert get_config("cpu", forget=forget, earlier=(1, 0)).earlier == (1, 0)


def test_paper_mode_has_the_published_settings():
    cfg = get_config("cpu", mode="paper")
    wanted = Recipe(epochs=10, lr=1e-3, optimizer="adam", batch_size=128, schedule="constant")
    assert cfg.unlearn == wanted
    assert (cfg.rank, cfg.lora_alpha, cfg.lora_dropout, cfg.sparsity) == (8, 16, 0.1, 0.5)
    paper = get_config("paper")
    assert (paper.train.epochs, paper.train.lr, paper.train.schedule) == (200, 0.1, "cosine")
    vit = get_config("paper", model="vit")
    assert (vit.train.optimizer, vit.train.weight_decay, vit.train.mixup) == ("adamw", 0.1, 0.2)
    assert (vit.rank, vit.lora_alpha) == (16, 32)


def test_overrides_reach_the_unlearning_recipe_only():
    cfg = get_config("cpu", epochs=3, lr=0.5)
    assert (cfg.unlearn.epochs, cfg.unlearn.lr) == (3, 0.5)
    assert cfg.train == get_config("cpu").train


def test_the_tuned_recipes_are_those_of_the_search():
    record = json.loads((RESULTS / "tuning-digits.json").read_text())
    best = {name: Recipe(**recipe) for name, recipe in record["best"].items()}
    assert best.pop("train") == get_config("cpu").train
    assert best == config.TUNED["digits"]
    high = {name: Recipe(**recipe) for name, recipe in record["high"].items()}
    judged = ("finetune", "prune_finetune", "lora", "prunelora", "prunelora_channels",
              "finetune@3", "retrain@3")  # fmt: skip
    assert config.TUNED["digits_high"] == best | {name: high[name] for name in judged}
    assert all(high[name].lr > best[name].lr for name in judged)
    counts = {name: len(trials) for name, trials in record["trials"].items()}
    assert len(set(counts.values())) == 1, f"unequal numbers of trials: {counts}"
    assert not set(record["seeds"]) & set(range(get_config("cpu").seeds))
    assert get_config("cpu").forget not in record["classes"]


def test_the_recipes_for_photographs_are_those_of_their_search():
    record = json.loads((RESULTS / "tuning-cifar.json").read_text())
    best = {name: Recipe(**recipe) for name, recipe in record["best"].items()}
    assert best == config.TUNED["cifar"]
    counts = {name: len(trials) for name, trials in record["trials"].items()}
    assert counts == dict.fromkeys(best, 6)
    for name, recipe in best.items():
        cfg = get_config("cifar", method=name)
        assert cfg.unlearn == recipe
        assert cfg.unlearn.epochs == cfg.epochs, "tuned for another number of epochs"
        assert cfg.but(mode="paper").unlearn.lr == config.PAPER_UNLEARN.lr


def best_of(trials, record):
    """The rule of ``benchmarks/tune_digits.py``, written again: sort by score, cut, sort again."""
    useful = [t for t in trials if t.get("retain", 0) <= 0.05] or trials
    by_score = sorted(useful, key=lambda t: t["score"])
    slack = record["one_image"] / (2 if "retain" in by_score[0] else 1)
    equal = [t for t in by_score if t["score"] - by_score[0]["score"] <= slack]
    return sorted(equal, key=lambda t: t["recipe"]["lr"])[0]["recipe"]


@pytest.mark.parametrize("name", ["digits", "cifar"])
def test_the_best_of_each_search_follows_from_its_trials(name):
    record = json.loads((RESULTS / f"tuning-{name}.json").read_text())
    for method, trials in record["trials"].items():
        for trial in (t for t in trials if "forget" in t):
            assert trial["score"] == pytest.approx((trial["forget"] + trial["retain"]) / 2)
        assert record["best"][method] == best_of(trials, record), method


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("digits", {"salun", "random_labels", "scrub", "neggrad_plus", "l1_sparse",
                    "boundary_shrink", "head_only"}),
        ("cifar", {"lora", "neggrad_plus", "salun", "head_only"}),
    ],
)  # fmt: skip
def test_recipes_at_an_edge_of_what_was_tried_are_those_that_the_texts_name(name, named):
    record, found = json.loads((RESULTS / f"tuning-{name}.json").read_text()), set()
    for method, trials in record["trials"].items():
        for field in ("lr", "strength"):
            tried = {t["recipe"][field] for t in trials}
            if len(tried) > 1 and record["best"][method][field] in (min(tried), max(tried)):
                found.add(method)
    assert found == named


def test_the_largest_of_equally_good_rates_is_for_some_the_largest_that_was_tried():
    record = json.loads((RESULTS / "tuning-digits.json").read_text())
    both = ("finetune", "prune_finetune", "lora", "prunelora", "prunelora_channels", "finetune@3",
            "retrain@3")  # fmt: skip
    edge = {method for method in both if record["high"][method]["lr"]
            == max(t["recipe"]["lr"] for t in record["trials"][method])}  # fmt: skip
    assert edge == {"finetune", "prune_finetune", "lora", "retrain@3"}


def test_a_recipe_tuned_for_so_few_epochs_is_taken():
    cfg = get_config("cpu", method="finetune_sgd")
    assert cfg.but(epochs=3).unlearn == config.TUNED["digits"]["finetune_sgd@3"]
    assert cfg.but(epochs=4).unlearn == dataclasses.replace(cfg.unlearn, epochs=4)
    assert cfg.but(epochs=3, lr=0.1).unlearn.lr == 0.1
    assert cfg.but(epochs=3, mode="paper").unlearn == dataclasses.replace(
        config.PAPER_UNLEARN, epochs=3
    )


def test_home_is_found_from_a_subfolder(tmp_path, monkeypatch):
    monkeypatch.delenv("HELPERS_HOME")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "solutions")
    assert config.home() == tmp_path
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "else"))
    assert config.home() == tmp_path / "else"


@pytest.mark.parametrize("before", ["x", None])
def test_another_home_lasts_as_long_as_its_context(tmp_path, monkeypatch, before):
    monkeypatch.delenv("HELPERS_HOME")
    if before is not None:
        monkeypatch.setenv("HELPERS_HOME", before)
    with contextlib.suppress(KeyError), config.at_home(str(tmp_path)):
        assert config.home() == tmp_path
        raise KeyError
    assert os.environ.get("HELPERS_HOME") == before


def test_paths_of_users_who_do_not_exist_are_refused(monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", " ")
    with pytest.raises(InputError, match="HELPERS_HOME = ' ' is not allowed: the name of a folder"):
        config.home()
    monkeypatch.setenv("HELPERS_HOME", "~no-such-user/x")
    with pytest.raises(InputError, match="HELPERS_HOME"):
        config.home()


def test_a_part_of_the_recipe_of_training_is_changed_by_name():
    own = get_config("cifar").train
    assert get_config("cifar", train={"epochs": 7}).train == dataclasses.replace(own, epochs=7)
    with pytest.raises(InputError, match="train = 'epoch' is not allowed: known are epochs, lr"):
        get_config("cifar", train={"epoch": 7})


@pytest.mark.parametrize("named", [True, False])
def test_a_home_from_which_no_network_can_be_read_back_is_refused(tmp_path, monkeypatch, named):
    folder = tmp_path / "n\udcff"  # a byte that is no UTF-8
    monkeypatch.setenv("HELPERS_HOME", str(folder) if named else "")
    monkeypatch.setattr(Path, "cwd", lambda: folder)
    with pytest.raises(InputError, match=r"n\\udcff' is not allowed: a folder whose path is UTF-8"):
        config.home()


def test_where_names_are_read_as_ascii_it_is_said_how_python_reads_them_as_utf_8(tmp_path):
    code = (
        "import sys; from helpers import config; print(sys.getfilesystemencoding())\n"
        "try: print(ascii(config.home()))\nexcept config.InputError as error: print(error)"
    )
    found = {}
    for utf8 in "01":
        ours = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
        ours["HELPERS_HOME"] = str(tmp_path / "n\xe9")
        found[utf8] = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | ours, capture_output=True, text=True,
            check=True,
        ).stdout.splitlines()  # fmt: skip
    if found["0"][0] == "utf-8":
        pytest.skip("Python reads names as UTF-8 here, whatever the locale")
    assert found["0"][1].endswith(
        f"n\\udcc3\\udca9' is not allowed: its path is UTF-8, but Python reads names as "
        f"{found['0'][0]} here; set the environment variable PYTHONUTF8=1"
    )
    assert found["1"] == ["utf-8", ascii(tmp_path / "n\xe9")]


@pytest.mark.parametrize("data", ["digits", "cifar10", "nonsense", "folder:", "folder:/a/../b"])
def test_a_source_without_a_relative_path_stays_as_it_is(data):
    assert config.anchored(data) == data


def test_relative_paths_hold_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELPERS_HOME", "state")
    monkeypatch.setenv("HELPERS_DATA", "folder:a,b.tar")
    config.anchor()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert config.home() == tmp_path / "state"
    assert get_config("gpu").data == f"folder:{tmp_path / 'a,b.tar'}"
    assert config.anchored("folder:~/x") == f"folder:{Path('~/x').expanduser().resolve()}"
    with pytest.raises(InputError, match="data = 'folder:~no-such-user/x' is not allowed"):
        config.anchored("folder:~no-such-user/x")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, helpers, helpers.config, helpers.files, helpers.__main__;"
        "print(sorted({'torch','numpy','pandas','peft','sklearn','matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"compile": True}], ids=str)
def test_graphs_are_refused_where_nothing_can_be_recorded(monkeypatch, change):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = get_config("cpu", device="cuda")
    assert cfg.but(graphs=True).graphs
    with pytest.raises(InputError, match="graphs = True is not allowed: False but on CUDA"):
        cfg.but(**change).but(graphs=True)
