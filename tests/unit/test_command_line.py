from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from helpers.__main__ import main
from tests.unit.test_data import folder

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


def test_a_folder_of_images_runs_end_to_end(home, tmp_path, capsys):
    folder(tmp_path / "shop", {"a": 20, "b": 20, "ca": 20})
    options = ("--data", f"folder:{tmp_path / 'shop'}", "--image-size", "8", "--forget", "1")
    assert main([*RUN, *options, "--method", "prunelora", "--rank", "2"]) == 0
    assert "prunelora" in capsys.readouterr().out
    assert list((home / "data" / "cache").glob("shop-8px-*.safetensors"))


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
        (("--forget", "3,3"), "forget = (3, 3) is not allowed: a class"),
        (("--forget", "0,1,2,3,4,5,6,7,8,9"), "one class must be retained"),
        (("--earlier", "3"), "earlier = (3,) is not allowed: 3 is forgotten only now"),
        (("--sparsity", "1"), "sparsity = 1.0 is not allowed: a share in [0, 1)"),
        (("--sparsity", "-0.5"), "sparsity = -0.5 is not allowed"),
        (("--forget", "10"), "forget = 10 is not allowed: the classes are"),
        (("--model", "alexnet"), "known are digits_resnet, resnet20"),
        (("--method", "erase"), "known are original, retrain, finetune"),
        (("--preset", "laptop"), "known are smoke, cpu, gpu, paper"),
        (("--data", "mnist"), "known are digits, cifar10, folder:PATH"),
        (("--data", "folder:/no/such/place"), "there is no such folder"),
        (("--home", "/proc/no-such-home"), "cannot write /proc/no-such-home"),
        (("--home", "~no-such-user/x"), "HELPERS_HOME = '~no-such-user/x' is not allowed"),
        (("--data", "folder:~no-such-user/x"), "data = '~no-such-user/x' is not allowed"),
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


def test_a_corrupt_image_is_named_and_may_be_skipped(home, tmp_path, capfd):
    folder(tmp_path / "shop", {"a": 20, "b": 20})
    (tmp_path / "shop" / "a" / "broken.png").write_bytes(b"nothing")
    options = ("--data", f"folder:{tmp_path / 'shop'}", "--image-size", "8", "--method", "retrain",
               "--forget", "0")  # fmt: skip
    assert main([*RUN, *options]) == 2
    assert "1 of 41 images" in capfd.readouterr().err
    assert main([*RUN, *options, "--on-corrupt", "skip"]) == 0


def test_help_gives_every_option_with_its_range(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for phrase in ("0 <= S < 1", "1 to what the layers admit", "0 to number of classes - 1",
                   "folder:PATH", "smoke, cpu, gpu, paper", "resnet50", "prunelora"):  # fmt: skip
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
