from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers import (
    __main__,
    audit,
    card,
    config,
    data,
    models,
    runs,
    study,
    sweep,
    tutorial,
    unlearning,
)
from helpers.__main__ import main
from tests.pictures import folder

RUN = ("run", "--preset", "smoke", "--quiet", "--epochs", "1")


def test_a_run_prints_its_row_and_then_the_same_again(home, capsys):
    assert main([*RUN, "--method", "lora", "--rank", "2"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in first[2:5]] == ["original", "retrain", "lora"]
    assert first[-1].startswith("kept in ")
    assert main([*RUN, "--method", "lora", "--rank", "2"]) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[:-1] == first[:-1]
    assert again[-1] == first[-1].replace("kept in", "read back from")


def test_a_run_says_how_right_it_is_on_validation_images(home, capsys):
    assert main([*RUN, "--method", "prunelora"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if "validation" in line)
    for kept in (json.loads(path.read_text()) for path in home.rglob("run.json")):
        shares = [kept["history"][-1][str(c)] for c in range(10)]
        mine, others = shares.pop(3), sum(shares) / 9
        method = kept["config"]["method"]
        assert f"{method} {100 * mine:.1f} % and {100 * others:.1f} %" in printed


def test_the_original_in_the_table_is_what_the_method_started_from(home, capsys):
    assert main([*RUN, "--method", "logit_mask", "--original-seed", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[2].split()
    kept = [json.loads(p.read_text()) for p in home.rglob("run.json")]
    (original,) = (one for one in kept if one["config"]["method"] == "original")
    assert original["config"]["seed"] == 1, "no other was trained"
    (metrics,) = original["metrics"].values()
    assert row[0] == "original"
    assert f"{100 * metrics['RA']:.1f}" in row


def test_a_run_names_its_class_and_the_options_that_its_method_does_not_use(home, capsys, caplog):
    assert main([*RUN, "--method", "logit_mask", "--rank", "2", "--forget", "5"]) == 0
    assert "class 5 '5' of 10\n" in capsys.readouterr().out
    (line,) = (r.getMessage() for r in caplog.records if "not used" in r.getMessage())
    unused = line.removeprefix("logit_mask on digits: not used: ").split(", ")
    assert sorted(unused) == ["--epochs", "--rank"]
    assert main([*RUN, "--method", "lora", "--rank", "2", "--sparsity", "0.9"]) == 0
    assert "lora on digits: not used: --sparsity" in caplog.text
    assert main([*RUN, "--method", "lora", "--image-size", "9"]) == 0
    assert "lora on digits: not used: --image-size" in caplog.text


def test_a_method_without_a_tuned_recipe_is_named(home, tmp_path, caplog):
    for method in ("scrub", "prunelora+scrub", "lora", "ssd", "retrain"):
        missing = ["--data", f"folder:{tmp_path / 'none'}", "--method", method]
        assert main(["run", "--preset", "cifar", *missing]) == 2
        said = f"{method}: not tuned for cifar, has the paper's recipe" in caplog.text
        assert said == ("scrub" in method)
        caplog.clear()
    assert main([*RUN, "--method", "scrub"]) == 0
    assert "not tuned" not in caplog.text


def test_a_sweep_names_the_options_that_none_of_its_methods_uses(home, tmp_path, caplog):
    out = ["--out", str(tmp_path / "table"), "--preset", "smoke", "--quiet", "--epochs", "1"]
    assert main(["sweep", *out, "--method", "finetune,lora", "--rank", "1,2"]) == 0
    assert "not used" not in caplog.text
    assert main(["sweep", *out, "--method", "finetune", "--rank", "1,2"]) == 0
    assert "finetune on digits: not used: --rank" in caplog.text


def test_an_audit_takes_as_many_threads_as_it_is_told(monkeypatch):
    taken = []
    monkeypatch.setattr(unlearning, "set_threads", lambda cfg: taken.append(cfg.threads))
    words = ["--model", "m", "--original", "o", "--oracle", "r", "--preset", "smoke"]
    assert main(["audit", *words, "--threads", "3"]) == 2, "there are no such files"
    assert taken == [3]


def test_a_damaged_network_is_not_read_back(home, capfd):
    assert main([*RUN, "--method", "logit_mask"]) == 0
    kept = {path.parent for path in home.rglob("run.json")}
    for folder_ in kept:
        (folder_ / "model.safetensors").write_bytes(b"something else")
    assert main([*RUN, "--method", "logit_mask"]) == 2
    assert "is not the file that this run wrote" in capfd.readouterr().err
    for folder_ in kept:
        (folder_ / "architecture.json").unlink()
    assert main([*RUN, "--method", "logit_mask"]) == 0, "lost files are made again"


def test_a_folder_of_images_runs_end_to_end(home, tmp_path, capsys):
    folder(tmp_path / "shop", {"a": 20, "b": 20, "ca": 20})
    options = ("--data", f"folder:{tmp_path / 'shop'}", "--image-size", "8", "--forget", "1")
    assert main([*RUN, *options, "--method", "prunelora", "--rank", "2"]) == 0
    assert "prunelora" in capsys.readouterr().out
    assert list((home / "data" / "cache").glob("shop-8px-*.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rank", "0"), "rank = 0 is not allowed"),
        (("--rank", "65"), "rank = 65 is not allowed: from 1 to 64"),
        (("--rank", "33", "--pruning", "channels"), "rank = 33 is not allowed: from 1 to 32"),
        (("--rank", "17", "--targets", "blocks"), "rank = 17 is not allowed: from 1 to 16"),
        (("--pruning", "magic"), "known are mask_structured, mask_unstructured, mask_nm, channels"),
        (("--pruning", "mask_nm", "--sparsity", "0.3"), "sparsity = 0.3 is not allowed: 0, 0.25"),
        (("--targets", "some"), "known are last_block, last_stage, blocks, all"),
        (("--forget", "3,x"), "forget = '3,x' is not allowed: class numbers"),
        (("--forget", "9" * 5000), "is not allowed: class numbers"),
        (("--forget", "3,3"), "forget = (3, 3) is not allowed: a class"),
        (("--forget", "0,1,2,3,4,5,6,7,8,9"), "one class must be retained"),
        (("--earlier", "3"), "earlier = (3,) is not allowed: 3 is forgotten only now"),
        (("--sparsity", "1"), "sparsity = 1.0 is not allowed: a share in [0, 1)"),
        (("--sparsity", "-0.5"), "sparsity = -0.5 is not allowed"),
        (("--forget", "10"), "forget = 10 is not allowed: the classes are"),
        (("--model", "alexnet"), "known are digits_resnet, resnet20"),
        (("--method", "erase"), "known are original, retrain, finetune"),
        (("--preset", "laptop"), "known are smoke, cpu, cifar, gpu, paper"),
        (("--preset", ""), "preset = '' is not allowed: known are smoke, cpu, cifar, gpu, paper"),
        (("--home", ""), "home = '' is not allowed: the name of a folder"),
        (("--train-epochs", "0"), "train_epochs = 0 is not allowed: at least 1"),
        (("--data", "mnist"), "known are digits, cifar10, folder:PATH"),
        (("--data", "folder:/no/such/place"), "there is no such folder"),
        (("--data", "folder:"), "data = 'folder:' is not allowed: known are digits, cifar10"),
        (("--home", "/proc/no-such-home"), "cannot write /proc/no-such-home"),
        (("--home", "~no-such-user/x"), "HELPERS_HOME = '~no-such-user/x' is not allowed"),
        (("--home", "n\udcff"), "n\\udcff' is not allowed: a folder whose path is UTF-8, or no"),
        (("--data", "folder:~no-such-user/x"), "data = 'folder:~no-such-user/x' is not allowed"),
        (("--rank", "9" * 400), "rank = a number of 1,329 bits is not allowed: a whole number"),
        (("--lr", "1e30"), "training diverged"),
        pytest.param(
            ("--device", "cuda"), "no CUDA device was found here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here"),
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(home, capfd, options, message, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(home))  # --home sets it: put it back afterwards
    assert main([*RUN, *options]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    if "diverged" not in message:
        assert not list(home.rglob("run.json")), "nothing was trained before"


@pytest.mark.parametrize(
    ("command", "option", "given"),
    [
        ("run", "--forgot", ["--forgot", "3"]),
        (
            "audit",
            "--mode",
            ["--model", "m", "--original", "o", "--oracle", "r", "--mode", "paper"],
        ),
        ("stamp", "--chec", ["--chec"]),
    ],
)
def test_an_option_that_a_command_does_not_have_is_shown_its_own(capsys, command, option, given):
    """None is taken for another that begins the same, as --mode for --model."""
    with pytest.raises(SystemExit, match="2"):
        main([command, *given])
    error = capsys.readouterr().err
    assert error.startswith(f"usage: python -m helpers {command} [-h]")
    assert f"unrecognized arguments: {option}" in error


@pytest.mark.parametrize(
    ("command", "package"),
    [("tutorial", name) for name in ("nbformat", "nbclient", "nbconvert", "psutil")]
    + [("stamp", "nbformat")],
)
def test_packages_of_notebooks_that_are_missing_are_named_at_once(
    monkeypatch, tmp_path, capfd, command, package
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(tutorial, "execute", lambda *_: pytest.fail("executed"))
    assert main([command, "--notebooks", str(Path(__file__).parents[2] / "notebooks")]) == 2
    error = capfd.readouterr().err
    assert f"error: {command}: the package {package} is not installed; pip install " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("report", *RUN[1:]), "--out"),
        (("sweep", *RUN[1:]), "--out"),
        (("audit", "--model", "m", "--original", "o", "--oracle", "r"), "--out"),
        (("tutorial",), "--notebooks"),
        (("tutorial",), "--html"),
        (("stamp",), "--notebooks"),
    ],
)
def test_an_empty_path_is_not_the_working_folder(
    home, tmp_path, monkeypatch, capfd, command, option, text
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*command, option, text]) == 2
    error = capfd.readouterr().err
    assert f"{option[2:]} = {text!r} is not allowed: the " in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing was written or trained before"


@pytest.mark.parametrize("command", [RUN, ("stamp",), ("tutorial", "--home", "state")])
def test_a_working_folder_that_was_deleted_is_said(tmp_path, monkeypatch, capfd, command):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.delenv("HELPERS_HOME")
    (tmp_path / "gone").rmdir()
    assert main([*command]) == 2
    error = capfd.readouterr().err
    assert error == (
        "error: the working folder does not exist any more; change to one that does, as with cd ~\n"
    )


def test_kernels_find_what_was_named_by_relative_paths(tmp_path, monkeypatch):
    seen = []

    def command(options):
        os.chdir(tmp_path / "notebooks")  # where a kernel works
        seen.extend([config.home(), config.get_config("smoke").data])
        return 0

    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELPERS_HOME", "other")
    monkeypatch.setenv("HELPERS_DATA", "folder:shop")
    monkeypatch.setattr(__main__, "_tutorial", command)
    assert main(["tutorial", "--home", "state"]) == 0
    assert seen == [tmp_path / "state", f"folder:{tmp_path / 'shop'}"]


def test_a_corrupt_image_is_named_and_may_be_skipped(home, tmp_path, capfd):
    folder(tmp_path / "shop", {"a": 20, "b": 60})
    (tmp_path / "shop" / "a" / "broken.png").write_bytes(b"nothing")
    options = ("--data", f"folder:{tmp_path / 'shop'}", "--image-size", "8", "--method", "retrain",
               "--forget", "0")  # fmt: skip
    assert main([*RUN, *options]) == 2
    assert "1 of 81 images" in capfd.readouterr().err
    assert main([*RUN, *options, "--on-corrupt", "skip"]) == 0


def test_help_gives_every_option_with_its_range(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for phrase in ("0 <= S < 1", "1 to what the layers admit", "0 to number of classes - 1",
                   "folder:PATH", "smoke, cpu, cifar, gpu, paper", "resnet50", "prunelora",
                   "default: $HELPERS_HOME, else the nearest folder"):  # fmt: skip
        assert phrase in text


@pytest.mark.parametrize(("registry", "option"), [("METHODS", "--method"), ("MODELS", "--model")])
def test_help_lists_every_method_and_model(registry, option, capsys):
    from helpers import models, unlearning

    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    shown = text.split(f"{option} ")[-1].split(" --")[0]
    for name in getattr(unlearning if registry == "METHODS" else models, registry):
        assert name in shown


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "helpers", "run", "--preset", "cpu", "--method", "retrain",
               "--home", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shown = b""
    while not re.search(rb"original, seed 0: +[1-9]", shown):  # some steps into the training
        piece = os.read(process.stderr.fileno(), 4096)
        assert piece, shown
        shown += piece
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    error = error.decode()
    assert "Traceback" not in error
    assert "Run the same again to go on" in error
    checkpoint = list(tmp_path.glob("artifacts/cpu/*/checkpoint.safetensors"))
    assert len(checkpoint) == 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    assert not checkpoint[0].exists()


def test_several_classes_and_earlier_requests_from_a_shell(home, capsys):
    assert main([*RUN, "--forget", "8,3", "--method", "lora"]) == 0
    assert main([*RUN, "--forget", "3", "--earlier", "8", "--method", "prunelora_channels"]) == 0
    kept = capsys.readouterr().out
    assert kept.count("kept in") == 2
    folders = {line.split("kept in ")[1] for line in kept.splitlines() if "kept in " in line}
    assert len(folders) == 2
    assert kept.count("prunelora_channels are those of the last request alone") == 1


# ------------------------------------------------------------------------------------------------
# report: one run, audited

REPORT = ["report.html", "report.json", "report.md"]


@pytest.fixture(scope="session")
def reported(cfg, dataset, tmp_path_factory):
    """The folder of a report on a cheat, and what the command printed."""
    folder, printed = tmp_path_factory.mktemp("report") / "card", io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["report", "--preset", "smoke", "--quiet", "--method", "logit_mask",
                       "--oracles", "3", "--out", str(folder)])  # fmt: skip
    assert status == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="session")
def weights(reported, cfg, dataset):
    """The plain files of weights behind that report: model, original, three oracles."""
    wanted = [cfg.but(method="logit_mask"), cfg.but(method="original")]
    wanted += [cfg.but(method="retrain", seed=study.ORACLE_SEED + i) for i in range(3)]
    return [runs.folder_of(one, dataset) / "model.safetensors" for one in wanted]


def test_a_report_is_printed_and_written_in_three_forms(reported):
    folder, printed = reported
    assert sorted(path.name for path in folder.iterdir()) == REPORT
    lines = printed.splitlines()
    assert lines[0].split() == ["metric", "value", "oracles'", "band", "original", "inside"]
    assert len(lines) == 2 + len(audit.METRICS) + 3
    assert sorted(lines[-3:]) == [str(folder / name) for name in REPORT]
    record = json.loads((folder / "report.json").read_text())
    assert record["how"]["method"] == "logit_mask"
    assert record["costs"]["trainable"] == 0
    assert len(record["networks"]["oracles"]) == 3
    told = {line.split("  ")[0]: line.split()[-1] for line in lines[2:-3]}
    assert told["UA"] == "yes"
    assert told["one-image recall"] == "NO"
    for row in record["metrics"]:
        assert told[row["title"]] == ("yes" if row["inside"] else "NO")
    html = (folder / "report.html").read_text()
    assert "logit_mask" in html
    assert "<script" not in html


@pytest.mark.parametrize("name", card.NAMES)
def test_the_files_of_a_card_are_tried_before_the_work(home, capfd, tmp_path, name):
    (tmp_path / name).mkdir()
    assert main(["report", *RUN[1:], "--out", str(tmp_path)]) == 2
    assert f"cannot write {tmp_path / name}: Is a directory" in capfd.readouterr().err
    assert not list(home.rglob("run.json"))


def test_networks_that_were_trained_here_have_their_order(reported, cfg, dataset, monkeypatch):
    """One that is bad is judged: its mistakes may look like labels that were exchanged."""
    names, check_one = [], audit.check_one

    class Enough(Exception):
        pass

    def stop(*_, **__):
        raise Enough

    def noted(name, *given, **how):
        names.append(name)
        return check_one(name, *given, **how)

    monkeypatch.setattr(audit, "_check_order", lambda *_: pytest.fail("doubted"))
    monkeypatch.setattr(audit, "check_one", noted)
    monkeypatch.setattr(audit, "look", stop)  # what follows the checks
    with pytest.raises(Enough):
        study.audit_run(cfg.but(method="logit_mask"), 3, dataset, progress=False)
    wanted = ["model", "original", "oracle 1", "oracle 2", "oracle 3"]
    assert names == wanted, "each once: a check takes every image"


def test_a_report_needs_three_oracles(home, capfd, tmp_path):
    assert main(["report", *RUN[1:], "--oracles", "2", "--out", str(tmp_path / "card")]) == 2
    assert "oracles = 2 is not allowed: at least 3" in capfd.readouterr().err
    assert not list(home.rglob("run.json"))
    assert not (tmp_path / "card").exists()


def test_no_oracle_may_be_the_network_that_is_judged(reported, capfd, tmp_path):
    """The seed of an oracle of its own."""
    options = ("--method", "retrain", "--seed", str(study.ORACLE_SEED), "--oracles", "3",
               "--original-seed", "0", "--out", str(tmp_path / "card"))  # fmt: skip
    assert main(["report", "--preset", "smoke", "--quiet", *options]) == 2
    assert "the same weights as model" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------
# audit: networks of somebody else


def asked(paths, *options, audit_options=("--preset", "smoke", "--quiet")):
    words = ["audit", *audit_options, "--model", str(paths[0]), "--original", str(paths[1])]
    for path in paths[2:]:
        words += ["--oracle", str(path)]
    return [*words, *options]


def test_plain_files_give_the_same_numbers_as_the_report(reported, weights, tmp_path, capsys):
    options = ("--architecture", "digits_resnet", "--out", str(tmp_path / "mine"))
    assert main(asked(weights, *options)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-3] == reported[1].splitlines()[:-3]
    mine, theirs = (
        json.loads((folder / "report.json").read_text())
        for folder in (tmp_path / "mine", reported[0])
    )  # fmt: skip
    for key in ("metrics", "networks", "about"):
        assert mine[key] == theirs[key], key
    assert (mine["how"], mine["costs"]) == (None, None)


@pytest.fixture
def heard(reported, monkeypatch):
    """What an audit is asked for; it answers with the report's record."""
    calls = []
    record = json.loads((reported[0] / "report.json").read_text())

    def answer(model, original, oracles, split, seed):
        calls.append(([model, original, *oracles], split, seed))
        return {key: record[key] for key in ("about", "networks", "metrics")}

    monkeypatch.setattr(audit, "audit", answer)
    return calls


MINE = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))

def needs(something):
    return network()

def nothing():
    return 3

def breaks():
    raise KeyError("boom")

def leaves():
    raise SystemExit(0)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's in the working folder, and five files of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    (tmp_path / "my_networks.py").write_text(MINE)
    scope = {}
    exec(MINE, scope)
    paths = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for path in paths:
        save_file(scope["network"]().state_dict(), path)
    yield paths
    sys.modules.pop("my_networks", None)


def test_networks_of_the_users_own_code(own_module, heard, capsys):
    before = list(sys.path)
    options = ("--architecture", "my_networks:network", "--mean", "0.25", "--std", "0.5",
               "--forget", "5", "--seed", "2")  # fmt: skip
    assert main(asked(own_module, *options)) == 0
    assert capsys.readouterr().out.startswith("metric")
    networks, split, seed = heard[0]
    assert [models.fingerprint(n) for n in networks] == [
        models.fingerprint(models.load(p, networks[0])) for p in own_module
    ]
    assert len({models.fingerprint(n) for n in networks}) == 5
    assert split.forgotten == (5,)
    assert seed == 2
    assert split.dataset.mean.tolist() == [0.25]
    assert split.dataset.std.tolist() == [0.5]
    assert sys.path == before


RUDE = {
    "it ends": "raise SystemExit(0)",
    "it reads the command line": "import argparse; argparse.ArgumentParser().parse_args()",
    "it changes the working folder": "import os; os.chdir('/')",
    "it changes the search path": "import os, sys; sys.path.remove(os.getcwd())",
}


@pytest.mark.parametrize("doing", RUDE)
def test_what_a_module_does_while_it_is_imported(own_module, heard, monkeypatch, capfd, doing):
    """Only one that gives no network ends the audit, and none with status 0."""
    here, words = os.getcwd(), ["helpers", "audit", "--model", "m.safetensors"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with open("my_networks.py", "a") as file:
        file.write(RUDE[doing])
    paths = [path.relative_to(here) for path in own_module]
    ends = doing == "it ends"
    assert main(asked(paths, "--architecture", "my_networks:network", "--out", "card")) == 2 * ends
    error = capfd.readouterr().err
    assert ("cannot be had: SystemExit: 0" in error) is ends
    assert error.count("\n") == ends
    assert len(heard) == (not ends)
    assert os.getcwd() == here
    assert sys.argv is words
    assert os.path.exists("card/report.json") is not ends
    assert here not in sys.path


def test_folders_of_this_package_need_no_architecture(weights, heard, dataset):
    assert main(asked([path.parent for path in weights])) == 0
    networks, split, _ = heard[0]
    assert models.fingerprint(networks[0]) != models.fingerprint(networks[1])
    assert split.dataset.mean.tolist() == dataset.mean.tolist()


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("run", ("--model", "alexnet"), "model = 'alexnet' is not allowed: known are"),
        ("report", ("--model", "alexnet"), "model = 'alexnet' is not allowed: known are"),
        ("report", ("--oracles", "2"), "oracles = 2 is not allowed: at least 3"),
        ("audit", (), "architecture = None is not allowed: a name, or MODULE:FUNCTION"),
        ("audit", ("--architecture", "alexnet"), "or MODULE:FUNCTION of your own"),
        ("audit", ("--architecture", "my_networks:other"), "architecture = 'my_networks:other' "),
        ("audit", ("--architecture", "resnet20", "--oracle", "no.safetensors"), "does not exist"),
        ("audit of 4", ("--architecture", "resnet20"), "oracles = 2 is not allowed: at least 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_any_images_is_said_before_they_are_loaded(
    own_module, home, monkeypatch, capfd, command, options, message
):
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: pytest.fail("loaded"))
    if command.startswith("audit"):
        words = asked(own_module[: 4 if command.endswith("4") else 5])
    else:
        words = [command, *RUN[1:]]
    assert main([*words, *options]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


RESNET = ("--architecture", "digits_resnet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "architecture = None is not allowed: a name, or MODULE:FUNCTION, for a plain file"),
        (("--architecture", "no_such_module:network"), "No module named 'no_such_module'"),
        (("--architecture", "my_networks:other"), "has no attribute 'other'; use MODULE:FUNCTION"),
        (("--architecture", "my_networks:needs"), "missing 1 required positional argument"),
        (("--architecture", "my_networks:nothing"), "architecture = 'int' is not allowed"),
        (("--architecture", "my_networks:"), "cannot be had"),
        (("--architecture", ":network"), "cannot be had"),
        (("--architecture", "my_networks:network"), "by the same names; it lacks '0.bias'"),
        (("--architecture", "my_networks:breaks"), "cannot be had: KeyError: 'boom'; use MODULE"),
        (("--architecture", "my_networks:leaves"), "cannot be had: SystemExit: 0; use MODULE"),
        ((*RESNET, "--mean", "0.5,0.5"), "mean = '0.5,0.5' is not allowed: 1 number(s)"),
        ((*RESNET, "--std", "0.5,0.5,0.5"), "std = '0.5,0.5,0.5' is not allowed: 1 number(s)"),
        ((*RESNET, "--std", "0"), "std = '0' is not allowed"),
        ((*RESNET, "--mean", "nan"), "mean = 'nan' is not allowed"),
        ((*RESNET, "--mean", "grey"), "mean = 'grey' is not allowed"),
        ((*RESNET, "--forget", "10"), "forget = 10 is not allowed"),
    ],
)
def test_an_audit_with_bad_options_is_one_line(weights, own_module, capfd, options, message):
    assert main(asked(weights, *options)) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_files_that_cannot_be_audited_are_named(weights, tmp_path, capfd):
    missing, pickled = tmp_path / "missing.safetensors", tmp_path / "pickled.safetensors"
    torch.save(models.build_model("digits_resnet", 10, 1, 8).state_dict(), pickled)
    for path, message in ((missing, "does not exist"), (pickled, "pickled.safetensors")):
        for options in (RESNET, ()) if path == missing else (RESNET,):
            assert main(asked([path, *weights[1:]], *options)) == 2
            error = capfd.readouterr().err
            assert message in error
            assert error.count("\n") == 1


def test_networks_that_cannot_be_compared_are_one_line(weights, capfd):
    for paths, message in (
        (weights[:4], "oracles = 2 is not allowed: at least 3"),
        ([*weights[:2], weights[2], weights[2], weights[3]], "the same weights as oracle 1"),
        ([weights[0], weights[4], *weights[2:]], "more than 20%, or there is nothing to forget"),
        ([*weights[:4], weights[0]], "the same weights as model"),
    ):
        assert main(asked(paths, *RESNET)) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("--compile",)], ids=["plain", "compiled"])
def test_compiling_is_an_option(words, monkeypatch):
    seen = []
    monkeypatch.setattr(
        __main__, "_run", lambda options: seen.append(__main__._config(options)) or 0
    )
    assert main([*RUN, *words]) == 0
    assert seen[0].compile is bool(words)


def test_the_epochs_of_the_training_are_an_option_and_the_rest_of_its_recipe_stays(monkeypatch):
    seen = []
    monkeypatch.setattr(
        __main__, "_run", lambda options: seen.append(__main__._config(options)) or 0
    )
    assert main([*RUN, "--train-epochs", "7"]) == 0
    assert main([*RUN]) == 0
    assert seen[0].train == dataclasses.replace(seen[1].train, epochs=7)
    assert seen[0].but(train=seen[1].train) == seen[1]


def test_the_epochs_of_the_training_hold_for_all_points_of_a_sweep(monkeypatch, tmp_path):
    class Enough(Exception):
        pass

    def stop(grid, preset, *_):
        points = sweep.plan(grid, preset).points
        assert [point.cfg.train.epochs for point in points] == [7, 7]
        raise Enough

    monkeypatch.setattr(sweep, "run", stop)
    with pytest.raises(Enough):
        main(["sweep", *RUN[1:], "--seed", "0,1", "--train-epochs", "7",
              "--out", str(tmp_path / "table")])  # fmt: skip


def test_what_cannot_be_printed_is_written_all_the_same(own_module, heard, tmp_path, monkeypatch):
    """A file of Windows may hold no Greek letters, and a pipe may be closed at its other end."""

    def fails(*words, **where):
        raise BrokenPipeError(32, "Broken pipe")

    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    words = asked(own_module, "--architecture", "my_networks:network", "--out")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", narrow)
        assert main([*words, "narrow"]) == 0
    narrow.flush()
    assert b"steps back" in narrow.buffer.getvalue()
    monkeypatch.setattr("builtins.print", fails)
    assert main([*words, "closed"]) == __main__.CLOSED
    for name in ("narrow", "closed"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == REPORT


def shell(*words, **streams):
    """Run a short command in the clone, in a process of its own."""
    clone = Path(__file__).parents[2]
    command = [sys.executable, "-m", "helpers", *words]
    return subprocess.run(command, cwd=clone, stderr=subprocess.PIPE, text=True, **streams)


def test_a_command_whose_output_nobody_reads_ends_without_a_word():
    """As ``head`` leaves a pipe, and also when Python writes the rest at its end."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = shell("stamp", "--check", stdout=closed)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_an_output_that_is_full_is_told_from_a_file_that_is():
    with open("/dev/full", "w") as full:
        done = shell("stamp", "--check", stdout=full)
    told = "error: the output cannot be printed: No space left on device; finished runs are kept"
    assert done.returncode == 2
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


# all that a command may tell, around work that is none
TELLS = """
import logging, sys, warnings
from helpers import __main__, bars

def work(options):
    for _ in bars.show(range(3), "bar"):
        logging.getLogger("helpers").info("a line")
        warnings.warn("a warning")
    print("kept")
    return 0

warnings.warn("before")
__main__._run = work
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "<&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status", "printed"),
    [("run", 0, "kept\n"), ("run --home ''", 2, ""), ("run --nonsense", 2, "")],
)
def test_no_result_is_lost_because_nothing_can_be_told_about_it(where, words, status, printed):
    line = f"exec '{sys.executable}' -c \"$TELLS\" {words} {where}"
    done = subprocess.run(["sh", "-c", line], cwd=Path(__file__).parents[2], text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "TELLS": TELLS})  # fmt: skip
    assert (done.returncode, done.stdout) == (status, printed)


def test_names_from_the_disk_do_not_move_the_cursor(home, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process of its own
    root = tmp_path / "a\nb\x1b[31m\u202ec  d"
    folder(root, {"a": 2})
    words = [*RUN, "--data", f"folder:{root}", "--image-size", "8"]
    assert main(words) == 2
    (error,) = capfd.readouterr().err.splitlines()
    shown = f"{tmp_path}/a b\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}c  d"
    assert error.startswith(f"error: {shown} has 1 class folders")
    folder(root, {"b": 2})
    (root / "a" / "x.\x1b[2J\r\n").write_text("no image")
    assert main(words) == 2
    warning, _ = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"{shown}: 1 files are not read: .\N{REPLACEMENT CHARACTER}[2j  (1)")


@pytest.mark.parametrize("given", ["folder:images", "folder:{}/images", "folder:unplugged"])
def test_images_that_are_not_there_are_named_as_they_were_given(
    home, tmp_path, monkeypatch, capfd, given
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(tmp_path / "unplugged")
    given = given.format(tmp_path)
    assert main([*RUN, "--data", given]) == 2
    error = capfd.readouterr().err
    assert f"data = {given!r} is not allowed: there is no such folder" in error
    assert error.endswith(f"; it leads to {tmp_path}/unplugged\n")


def test_too_few_images_are_refused_before_anything_is_trained(home, tmp_path, capfd):
    folder(tmp_path / "shop", {"a": 12, "b": 12})
    options = ("--data", f"folder:{tmp_path / 'shop'}", "--image-size", "8", "--forget", "0")
    assert main([*RUN, *options]) == 2
    assert "retained training images = 7 is not allowed: at least 10" in capfd.readouterr().err
    assert not list(home.rglob("config.json"))


@pytest.mark.parametrize("command", ["report", "audit"])
def test_help_of_the_other_commands(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    shared = ("folder:PATH", "--oracle", "report.html", "0 to number of classes - 1")
    own = {"report": ("--oracles N", "3 and up"), "audit": ("MODULE:FUNCTION", "three or more")}
    for phrase in (*shared, *own[command]):
        assert phrase in text


@pytest.mark.parametrize("lacking", ["--model", "--original", "--oracle"])
def test_an_audit_without_a_network_is_refused(lacking, weights, capsys):
    words = asked(weights, *RESNET)
    while lacking in words:
        place = words.index(lacking)
        del words[place : place + 2]
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert f"required: {lacking}" in capsys.readouterr().err
