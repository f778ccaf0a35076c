"""The driver of the GPU protocol, on tiny networks and the CPU."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from helpers import files, study
from helpers.config import get_config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "protocol.py"


def call(*options, home):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(SCRIPT), *options, "--home", str(home)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def protocol():
    spec = importlib.util.spec_from_file_location("protocol", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["protocol"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["protocol"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole protocol in small, and where its state was carried to."""
    home, carried = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("carry") / "s.tar.gz"
    return call("--quick", "--carry", str(carried), home=home), home, carried


def test_the_whole_protocol_runs_in_small(whole):
    done, home, _ = whole
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "everything is done"
    record = json.loads((home / "protocol" / "protocol-quick.json").read_text())
    assert {"date", "hardware", "versions"} <= {*record}
    for name in ("resnet50", "vit"):
        model = record["models"][name]
        found = study.load(home / "protocol" / f"{name}.json")
        assert {*found.methods} == {*model["settings"]}
        assert sum("as published" in method for method in found.methods) == 4
        assert "folder:" not in model["data"]
        assert found.table["Avg Gap"].notna().all()
        classic = record["classic"][name]["rows"]
        assert {row["label"] for row in classic} == {*model["settings"], "retrain"}
        oracles = [(r["mode"], r["seed"]) for r in classic if r["method"] == "retrain"]
        assert sorted(oracles) == [(m, 1000 + i) for m in ("default", "paper") for i in range(3)]
        audited = {row["method"]: row for row in found.table.to_dict("records")}
        for row in classic:  # the same networks, judged twice
            if row["label"] in audited and row["mode"] == _mode(row["label"]):
                assert row["TA"] == pytest.approx(audited[row["label"]]["TA"], abs=1e-6)
                wrong = row["accuracy"] - (0.9 * row["TA"] + 0.1 * (1 - row["UA_test"]))
                assert abs(wrong) < 0.01, "ten classes of about the same size"


def _mode(label):
    return "paper" if "as published" in label else "default"


def test_several_calls_at_once_lose_nothing(protocol, home):
    def note(name):
        for number in range(20):
            protocol.change(protocol.DONE, {f"{name} {number}": {"TA": number}})
            protocol.change(protocol.FAILED, {f"{name} {number}": "not finished"})
            protocol.change(protocol.FAILED, {}, [f"{name} {number}"])

    threads = [threading.Thread(target=note, args=(name,)) for name in "abcd"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    wanted = {f"{name} {number}" for name in "abcd" for number in range(20)}
    assert {*protocol.done_so_far()} == wanted
    assert protocol.files.read_json(protocol._kept(protocol.FAILED)) == {}


def test_what_is_done_is_not_done_again(whole):
    _, home, _ = whole
    again = call("--quick", home=home)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.splitlines() == ["everything is done"]


def test_a_bare_machine_goes_on_from_the_carried_file(whole, tmp_path):
    _, _, carried = whole
    with tarfile.open(carried) as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith("safetensors")], "no network travels"
    assert carried.stat().st_size < 1e6
    done = call("--quick", "--carry", str(carried), home=tmp_path / "bare")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["everything is done"]


def test_a_call_without_time_leaves_a_checkpoint_and_the_next_one_goes_on(tmp_path):
    only = ("--quick", "--only", "resnet50: original", "--minutes")
    first = call(*only, "0.001", home=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "Run the same again to go on" in first.stdout
    assert first.stdout.splitlines()[-1] == "about 6 minutes are left"
    assert list(tmp_path.rglob("checkpoint.safetensors"))
    second = call(*only, "9", home=tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert second.stdout.splitlines()[-1] == "everything is done"
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def test_the_list_of_steps_needs_no_gpu_and_each_fits_a_call(tmp_path):
    done = call("--dry-run", home=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    *listed, total = done.stdout.splitlines()
    minutes = [float(line.split()[1]) for line in listed]
    assert max(minutes) < 10
    assert total == f"about {sum(minutes):.0f} minutes are left"
    names = "\n".join(listed)
    for name in ("tests", "notebook: 05_evaluation", "resnet50: original, seed 2",
                 "vit: oracle, class 9, seed 1000", "audit, class 8, seed 1"):  # fmt: skip
        assert name in names
    first, second = "resnet50: run, class 9, seed 1, prunelora", "resnet50: original, seed 0"
    some = call("--dry-run", "--only", first, "--only", second, "--only", first, home=tmp_path)
    names = [line.split(" min  ")[1] for line in some.stdout.splitlines()[:-1]]
    assert names[-1] == second
    assert len(names) == len({*names}) > 2, "several have a name that begins so, each once"
    assert all(name.startswith(first) for name in names[:-1])
    wrong = call("--dry-run", "--only", "resnet99", home=tmp_path)
    assert wrong.returncode == 1
    assert "--dry-run lists them" in wrong.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--minutes", "inf"), "--minutes = inf"),
        (("--minutes", "nan"), "--minutes = nan"),
        (("--minutes", "0"), "--minutes = 0.0"),
        (("--device", "banana", "--dry-run"), "--device = 'banana'"),
        (("--carry", "."), "--carry = '.'"),
        (("--carry", "no/such/s.tar.gz"), "--carry = 'no/such/s.tar.gz'"),
    ],
)
def test_options_are_checked_before_anything_is_done(protocol, monkeypatch, options, told):
    monkeypatch.setattr(protocol, "steps", lambda options: pytest.fail("it was begun"))
    with pytest.raises(protocol.InputError, match=re.escape(told)):
        protocol.main(["--quick", *options])


def test_a_carried_file_that_cannot_be_written_is_told_first(protocol, tmp_path, monkeypatch):
    def refuse(**where):
        raise OSError(errno.EROFS, "Read-only file system", str(where["dir"]))

    monkeypatch.setattr(protocol, "steps", lambda options: pytest.fail("it was begun"))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(files.FileProblem, match=r"cannot write .*: Read-only file system"):
        protocol.main(["--quick", "--carry", str(tmp_path / "s.tar.gz")])
    monkeypatch.setattr(protocol, "steps", lambda options: [])
    with pytest.raises(protocol.InputError, match="--only"):  # a list takes no writing
        protocol.main(["--dry-run", "--carry", str(tmp_path / "s.tar.gz")])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "kept",
    [3, {"rows": 3}, {"rows": []}, {"rows": [3], "data": "digits", "classes": []}, {"folder": 3}],
)
def test_what_no_step_kept_is_told_in_one_line(protocol, home, tmp_path, kept):
    files.write_json(protocol._kept("done.json"), {"resnet50: original, seed 0": kept})
    with pytest.raises(files.FileProblem, match=r"done\.json: .* 'resnet50: original, seed 0'"):
        protocol.done_so_far()
    protocol.pack(tmp_path / "s.tar.gz", ())
    shutil.rmtree(home)
    with pytest.raises(files.FileProblem, match=r"s\.tar\.gz: done\.json in it is damaged"):
        protocol.unpack(tmp_path / "s.tar.gz", (), {})
    assert not [*home.iterdir()]


def test_images_that_cannot_be_had_are_told_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_DATA", f"folder:{tmp_path / 'nowhere'}")
    done = call("--quick", home=tmp_path / "bare")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert not done.stdout


def test_what_was_done_on_other_images_is_not_taken_for_done(protocol, home, tmp_path, monkeypatch):
    listed = [protocol.Step("tests: x", 1, lambda s: {}, images=False),
              protocol.Step("vit: y", 1, lambda s: {})]  # fmt: skip
    monkeypatch.setattr(protocol, "steps", lambda options: listed)
    here = {"data": "imgs", "fingerprint": "1"}
    monkeypatch.setattr(protocol, "images_of", lambda options: here)
    carried = tmp_path / "s.tar.gz"
    asked = ["--quick", "--home", str(home), "--carry", str(carried)]
    assert protocol.main(asked) == 0
    done = protocol.done_so_far()
    assert "data" not in done["tests: x"]
    assert done["vit: y"].items() >= here.items()
    for other in ({"data": "CIFAR-10", "fingerprint": "2"}, {**here, "fingerprint": "2"}):
        monkeypatch.setattr(protocol, "images_of", lambda options, other=other: other)
        with pytest.raises(protocol.InputError, match=r"other images \(imgs\).*another --home"):
            protocol.main(asked)
        with pytest.raises(protocol.InputError, match="another file for --carry"):
            protocol.main([*asked, "--home", str(tmp_path / "bare")])
        assert not protocol.done_so_far(), "nothing of it was taken"
        assert protocol.main([*asked, "--home", str(home), "--only", "tests"]) == 0
    with pytest.raises(protocol.InputError, match="other images"):  # of before they were told apart
        protocol.compare_images({"x": {"data": "imgs"}}, {"data": "CIFAR-10", "fingerprint": "2"})


def test_a_damaged_carried_file_is_told_in_one_line(tmp_path):
    (tmp_path / "s.tar.gz").write_bytes(b"no archive")
    done = call("--quick", "--carry", str(tmp_path / "s.tar.gz"), home=tmp_path / "bare")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "s.tar.gz" in done.stderr
    assert "safetensors" not in done.stderr, "no network was looked for"
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, -1])
def test_a_carried_file_that_was_cut_short_leaves_nothing(protocol, home, tmp_path, cut):
    done, texts = {"audit": {"audits": 5}}, random.Random(0)
    files.write_json(protocol._kept("done.json"), done)
    for name in ("a.json", "b.json", "z.log"):
        protocol._kept(name).write_text("".join(texts.choices("0123456789", k=40_000)))
    carried = tmp_path / "s.tar.gz"
    protocol.pack(carried, ())
    content = carried.read_bytes()
    shutil.rmtree(home)
    carried.write_bytes(content[: cut if cut < 0 else int(cut * len(content))])
    for _ in range(2):  # nor does the next call take it for whole
        with pytest.raises(files.FileProblem, match=r"cannot read .*s\.tar\.gz"):
            protocol.unpack(carried, (), {})
        assert not list(home.iterdir())
    carried.write_bytes(content)
    protocol.unpack(carried, (), {})
    assert protocol.done_so_far() == done
    assert {path.name for path in home.rglob("*")} == {"protocol", "done.json", "a.json", "b.json",
                                                       "z.log"}  # fmt: skip
    assert protocol._kept("z.log").stat().st_size == 40_000


def test_records_in_a_carried_file_go_to_the_clone(protocol, home, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "ROOT", tmp_path / "clone")
    record = tmp_path / "clone" / "results" / "x.json"
    files.write_json(record, {"old": 1})
    files.write_json(protocol._kept("done.json"), {})
    protocol.pack(tmp_path / "s.tar.gz", ["x.json"])
    shutil.rmtree(home)
    files.write_json(record, {"new": 1})
    protocol.unpack(tmp_path / "s.tar.gz", ["x.json"], {})
    assert files.read_json(record) == {"old": 1}
    assert [path.name for path in home.iterdir()] == ["protocol"]


WITH_WORKER = """
import subprocess, sys, time
hold = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
worker = subprocess.Popen([sys.executable, "-c", hold + "print('held', flush=True); time.sleep(60)",
                           sys.argv[1]], stdout=subprocess.PIPE)
worker.stdout.readline()
open(sys.argv[2], "w").close()
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends the script alone")
@pytest.mark.parametrize("stopped", [subprocess.TimeoutExpired("x", 60), KeyboardInterrupt()])
def test_a_script_that_is_stopped_leaves_no_workers(protocol, home, tmp_path, monkeypatch, stopped):
    (tmp_path / "script.py").write_text(WITH_WORKER)
    held, ready = tmp_path / "held", tmp_path / "ready"
    act = protocol.script("x", [str(tmp_path / "script.py"), str(held), str(ready)])

    def wait(process, timeout=None, real=subprocess.Popen.wait):
        if timeout is None:
            return real(process)
        while not ready.exists():  # the worker has begun
            assert process.poll() is None
            time.sleep(0.05)
        raise stopped

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises((protocol.NotDone, KeyboardInterrupt)) as found:
        act(60.0)
    assert isinstance(found.value, KeyboardInterrupt) or "after 60 s" in str(found.value)
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        with files.locked(held) as free:
            if free:
                return
        time.sleep(0.05)
    pytest.fail("a worker is still there")


def test_relative_paths_hold_where_scripts_and_kernels_work(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELPERS_HOME", "other")
    monkeypatch.setenv("HELPERS_DATA", "digits")
    options = protocol._options(["--data", "folder:shop", "--home", "state"])
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert options.data == f"folder:{tmp_path / 'shop'}"
    assert get_config("smoke").data == options.data
    assert protocol.home() == tmp_path / "state"


def test_a_failing_step_is_told_and_does_not_stop_the_others(protocol, home, capsys):
    def fail(seconds):
        raise protocol.InputError("broken")

    listed = [protocol.Step("first", 1, fail), protocol.Step("second", 1, lambda s: {"x": 1})]
    options = protocol._options(["--quick"])
    assert protocol.go(listed, options, float("inf"), {}) == ["first"]
    assert [*protocol.done_so_far()] == ["second"]
    assert "FAILED: broken" in capsys.readouterr().out


def test_what_failed_before_comes_last(protocol, home, capsys):
    began = []

    def act(name, error=None):
        def do(seconds):
            began.append(name)
            if error and began.count(name) == 1:
                raise error
            return {}

        return protocol.Step(name, 1, do)  # fmt: skip

    listed = [act("tests", RuntimeError("CUDA out of memory")), act("stopped", KeyboardInterrupt()),
              act("network"), act("audit")]  # fmt: skip
    options = protocol._options(["--quick"])
    with pytest.raises(KeyboardInterrupt):  # the process is ended
        protocol.go(listed, options, float("inf"), {})
    assert protocol.go(listed, options, float("inf"), {}) == []
    assert began == ["tests", "stopped", "network", "audit", "tests", "stopped"]
    assert protocol.files.read_json(protocol._kept("failed.json")) == {}
    assert "FAILED: CUDA out of memory" in capsys.readouterr().out


def test_a_lost_network_is_trained_again_while_an_audit_needs_it(protocol, home):
    step = protocol.Step("network", 1, lambda s: {}, serves=("a", "b"))
    lost, kept = {"folder": "artifacts/x"}, home / "artifacts" / "x" / "run.json"
    assert not protocol._needless(step, {})
    assert not protocol._needless(step, {"network": lost, "a": {}})
    assert protocol._needless(step, {"network": lost, "a": {}, "b": {}})
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert protocol._needless(step, {"network": lost})
