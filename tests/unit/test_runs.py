from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import tqdm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import audit, files, models, pruning, runs, training, unlearning
from helpers.config import KINDS
from helpers.files import FileProblem
from helpers.training import Interrupted

WHOLE = ["architecture.json", "model.safetensors"]


@pytest.fixture
def quick(cfg):
    return cfg.but(train=dataclasses.replace(cfg.train, epochs=1), epochs=1)


def test_a_run_is_done_once_and_read_back_the_same(quick, dataset, home, monkeypatch):
    first = runs.run(quick, dataset, progress=False)
    assert not first.from_disk
    assert sorted(p.name for p in first.folder.iterdir()) == [*WHOLE, "patch", "run.json"]
    assert first.folder.parent == home / "artifacts" / "smoke"
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = runs.run(quick, dataset, progress=False)
    assert again.from_disk
    assert again.row == first.row
    assert again.metrics == first.metrics


def test_the_record_says_what_was_done(quick, dataset, home):
    run = runs.run(quick, dataset, progress=False)
    record = json.loads((run.folder / "run.json").read_text())
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(quick)))
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert record["seconds"] >= record["training_seconds"] > 0
    assert record["sparsity"] == 0.5
    assert record["trainable"] < record["parameters"]
    assert [row["epoch"] for row in record["history"]] == [1]
    for name in ("UA", "UA_test", "RA", "TA", "MIA"):
        assert 0 <= run.metrics[name] <= 1


def test_the_reloaded_network_gives_the_same_logits(quick, dataset, home, original):
    outcome = unlearning.unlearn(original, dataset, quick)
    run = runs._write(quick, dataset, home / "x", outcome, {})
    wanted = training.predict(outcome.model, dataset.test, dataset)
    assert torch.equal(training.predict(run.model(dataset), dataset.test, dataset), wanted)


def test_the_same_seed_gives_the_same_numbers(quick, dataset, tmp_path, monkeypatch):
    found = []
    for name in "ab":
        monkeypatch.setenv("HELPERS_HOME", str(tmp_path / name))
        found.append(runs.run(quick, dataset, progress=False).metrics)
    for name in ("UA", "UA_test", "RA", "TA", "MIA"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-6)


FIELDS = {
    "forget": 5, "seed": 3, "sparsity": 0.25, "rank": 2, "alpha": 3.0, "dropout": 0.2, "epochs": 7,
    "lr": 0.7, "mode": "paper", "threads": 2, "model": "vit_tiny", "compile": True, "cache_mb": 0,
    "precision": "fp32" if torch.cuda.is_available() else "amp",  # not what "auto" takes
}  # fmt: skip
MATTERS = {
    "original": {"seed", "precision", "threads", "model", "compile"},
    "retrain": {"seed", "precision", "threads", "model", "compile", "forget"},
    "finetune": set(FIELDS) - {"sparsity", "rank", "alpha", "dropout", "cache_mb"},
    "prune_finetune": set(FIELDS) - {"rank", "alpha", "dropout", "cache_mb"},
    "lora": set(FIELDS) - {"sparsity"},
    "prunelora": set(FIELDS),
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(MATTERS)), st.sets(st.sampled_from(list(FIELDS)), min_size=1))
def test_the_identity_changes_with_what_matters_and_with_nothing_else(cfg, method, changed):
    one = cfg.but(method=method)
    two = one.but(**{name: FIELDS[name] for name in changed})
    same = runs.identity(one, "x") == runs.identity(two, "x")
    assert same == (not changed & MATTERS[method])
    assert runs.identity(one, "x") != runs.identity(one, "y"), "the data matter"


@pytest.mark.parametrize("method", [*unlearning.METHODS, "prunelora+scrub", "lora+neggrad_plus"])
def test_two_classes_are_two_runs_of_every_method_but_the_original(cfg, dataset, method):
    folders = {runs.folder_of(cfg.but(method=method, forget=c), dataset) for c in (3, 5, (3, 5))}
    assert len(folders) == (1 if method == "original" else 3)


def test_equal_settings_are_one_run(cfg):
    for same in ({"alpha": 16}, {"alpha": 16.0}, {"sparsity": 0.5, "epochs": None},
                 {"cache_mb": 64}):  # fmt: skip
        assert runs.identity(cfg, "x") == runs.identity(cfg.but(**same), "x"), same
    for field in ("compile", "cache"):
        assert field not in runs.identity(cfg, "x"), "runs made before there was the field"
    zero = [runs.identity(cfg.but(sparsity=z, lr=one), "x") for z, one in ((0, 1), (0.0, 1.0))]
    assert runs.json.dumps(zero[0]) == runs.json.dumps(zero[1])


def test_the_curves_of_an_original_follow_the_class_that_is_asked_for(quick, dataset, home):
    three, five = (
        runs.run(quick.but(method="original", forget=c), dataset, progress=False) for c in (3, 5)
    )
    (row,) = three.record["history"]
    assert three.history[0]["forget"] == row["3"]
    assert five.history[0]["forget"] == row["5"]
    others = [row[str(c)] for c in range(10) if c != 5]
    assert five.history[0]["retain"] == pytest.approx(sum(others) / 9)


def test_curves_begin_with_what_was_pruned(quick, dataset, home):
    run = runs.run(quick, dataset, progress=False)
    before = runs.run(quick.but(method="original"), dataset, progress=False).model(dataset)
    pruned = pruning.prune(before, quick.sparsity, part=dataset.split((3,)).retain,
                           dataset=dataset, seed=quick.seed).model  # fmt: skip
    followed = dataset.validation.sample(runs.MONITORED)
    right = training.predict(pruned, followed, dataset).argmax(1) == followed.labels
    assert quick.forget == 3
    mine = followed.labels == 3
    others = [right[followed.labels == c].double().mean() for c in range(10) if c != 3]
    assert run.start["epoch"] == 0
    assert run.start["forget"] == pytest.approx(float(right[mine].double().mean()))
    assert run.start["retain"] == pytest.approx(float(sum(others)) / 9)
    assert run.start["retain"] < 0.99, "or the damage would not be seen"


def test_runs_kept_before_anybody_looked_have_no_beginning(quick, dataset, home):
    run = runs.run(quick, dataset, progress=False)
    path = run.folder / "run.json"
    record = json.loads(path.read_text())
    del record["start"]
    path.write_text(json.dumps(record))
    again = runs.run(quick, dataset, progress=False)
    assert again.from_disk
    assert math.isnan(again.start["forget"])
    assert math.isnan(again.start["retain"])
    assert again.history == run.history


def test_one_original_serves_every_class(quick, dataset, home, monkeypatch):
    three = runs.run(quick.but(method="original"), dataset, progress=False)
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    five = runs.run(quick.but(method="original", forget=5), dataset, progress=False)
    assert five.folder == three.folder
    assert five.metrics["predicted"] != three.metrics["predicted"]
    again = runs.run(quick.but(method="original", forget=3), dataset, progress=False)
    assert again.metrics == three.metrics


def test_a_network_whose_numbers_were_measured_in_another_way_is_measured_again(
    quick, dataset, home, monkeypatch
):
    now = runs.run(quick, dataset, progress=False)
    path = now.folder / "run.json"
    record = json.loads(path.read_text())
    (view,) = record["metrics"]
    assert view.endswith(f", audit {audit.VERSION}")
    before = {**now.metrics, "MIA": 0.125}
    record["metrics"] = {view.replace(f"audit {audit.VERSION}", "audit 0"): before}
    path.write_text(json.dumps(record))
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = runs.run(quick, dataset, progress=False)
    assert again.from_disk
    assert again.metrics == now.metrics
    kept = json.loads(path.read_text())["metrics"]
    assert kept == record["metrics"] | {view: now.metrics}, "nothing is lost"


def test_paper_mode_evaluates_with_the_other_normalisation(quick, dataset, home):
    default = runs.run(quick.but(method="retrain"), dataset, progress=False)
    paper = runs.run(quick.but(method="retrain", mode="paper"), dataset, progress=False)
    assert paper.folder == default.folder, "the same network"
    assert paper.metrics["RA"] != default.metrics["RA"]
    assert pytest.approx([1.2215, 1.2212, 1.3015], abs=1e-4) == runs.PAPER_STD.tolist()


# ------------------------------------------------------------------------------------------------
# interruption and damage


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_interrupted_run_goes_on_and_ends_the_same(cfg, dataset, home, monkeypatch, tmp_path):
    two = cfg.but(epochs=2)
    runs.run(two.but(method="original"), dataset, progress=False)
    fit, count = training.fit, []

    def stopped_midway(*args, after_step=None, **kwargs):
        def step():
            if after_step is not None:
                after_step()
            count.append(1)
            if len(count) == 7:
                os.kill(os.getpid(), signal.SIGINT)

        return fit(*args, after_step=step, **kwargs)

    monkeypatch.setattr(training, "fit", stopped_midway)
    with pytest.raises(Interrupted, match=r"kept in .*checkpoint"):
        runs.run(two, dataset, progress=False)
    folder = runs.folder_of(two, dataset)
    assert not (folder / "run.json").exists()
    assert list(folder.glob("*checkpoint.safetensors"))
    found = runs.run(two, dataset, progress=False)
    assert len(count) == found.record["steps"], "no step was done twice"
    assert sorted(p.name for p in folder.iterdir()) == [*WHOLE, "patch", "run.json"]
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "other"))
    undisturbed = runs.run(two, dataset, progress=False)
    assert undisturbed.record["weights_sha256"] == found.record["weights_sha256"]


def test_a_run_without_its_last_file_is_not_read_as_whole(quick, dataset, home):
    first = runs.run(quick.but(method="original"), dataset, progress=False)
    for name in ("run.json", "model.safetensors"):
        (first.folder / name).unlink()
        again = runs.run(quick.but(method="original"), dataset, progress=False)
        assert not again.from_disk
        assert again.metrics == first.metrics


STAGE = {"stage": "pruned", "channels": {"conv": 4}, "macs": 9}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_text(p.read_text()[:50]), r"run\.json.*damaged.*delete"),
        (lambda p: p.write_text("{}"), r"run\.json.*has no 'identity'"),
        (lambda p: change(p, trainable="many"), r"run\.json holds values that no run has"),
        (lambda p: change(p, metrics=[]), r"run\.json holds values that no run has"),
        (lambda p: change(p, metrics={"default, class 3": 5}), "holds values that no run has"),
        (lambda p: change(p, metrics={"default, class 3": {"UA": 7}}), "values that no run has"),
        (lambda p: change(p, seconds=float("nan")), "holds values that no run has"),
        (lambda p: change(p, file_bytes=float("inf")), "holds values that no run has"),
        (lambda p: change(p, peak_memory=10**400), "holds values that no run has"),
        (lambda p: change(p, patch_bytes=None), "holds values that no run has"),
        (lambda p: change(p, hardware="a laptop"), "holds values that no run has"),
        (lambda p: change(p, seconds=True), "holds values that no run has"),
        (lambda p: change(p, history=["an epoch"]), "holds values that no run has"),
        (lambda p: change(p, history=[{"epoch": 1}]), "holds values that no run has"),
        (lambda p: change(p, history=[{"epoch": 1, "loss": "x"}]), "values that no run has"),
        (lambda p: change(p, history=[{"epoch": 1, "loss": 0, "3": 2}]), "values that no run has"),
        (lambda p: change(p, history=[{"epoch": 1, "loss": 0, "3": {}}]), "values that no run has"),
        (lambda p: change(p, start={"3": 2}), "holds values that no run has"),
        (lambda p: change(p, start=[0.5]), "holds values that no run has"),
        (lambda p: change(p, ledger=None), "holds values that no run has"),
        (lambda p: change(p, ledger=[5]), "holds values that no run has"),
        (lambda p: change(p, ledger=[{"stage": "pruned"}]), "holds values that no run has"),
        (lambda p: change(p, ledger=[STAGE | {"stage": 1}]), "holds values that no run has"),
        (lambda p: change(p, ledger=[STAGE | {"channels": 7}]), "holds values that no run has"),
        (lambda p: change(p, ledger=[STAGE | {"channels": {"a": "b"}}]), "values that no run has"),
        (lambda p: change(p, ledger=[STAGE | {"macs": None}]), "holds values that no run has"),
        (lambda p: p.write_text(p.read_text().replace('"date"', '"day"')), "has no 'date'"),
        (lambda p: p.write_text(p.read_text().replace('"seed": 0', '"seed": 4')), "another run"),
    ],
)
def test_a_damaged_record_is_named(quick, dataset, home, damage, message):
    run = runs.run(quick.but(method="original"), dataset, progress=False)
    damage(run.folder / "run.json")
    with pytest.raises(FileProblem, match=message):
        runs.run(quick.but(method="original"), dataset, progress=False)


def test_a_run_without_a_ledger_is_read_back_or_done_again_as_asked(quick, dataset, home):
    first = runs.run(quick, dataset, False, measured=False)
    assert first.record["ledger"] == []
    again = runs.run(quick, dataset, False, measured=None)
    assert again.from_disk
    whole = runs.run(quick, dataset, False)
    assert not whole.from_disk
    assert whole.record["ledger"]
    assert whole.record["weights_sha256"] == first.record["weights_sha256"]
    assert runs.run(quick.but(rank=2), dataset, False, measured=None).record["ledger"]


@contextlib.contextmanager
def no_room_for(name):
    write = files.write_together

    def full(writes):
        if any(path.name == name for path in writes):
            raise FileProblem(f"cannot write {name}: No space left on device")
        write(writes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_together", full)
        yield


@pytest.mark.parametrize("lost", ["model.safetensors", "patch.json", "run.json"])
def test_a_kept_run_stays_if_it_is_done_again_and_cannot_be_written(
    lost, quick, dataset, home, monkeypatch
):
    first = runs.run(quick, dataset, False, measured=False)
    with no_room_for(lost), pytest.raises(FileProblem, match="No space"):
        runs.run(quick, dataset, False)
    again = runs.run(quick, dataset, False, measured=None)
    assert again.from_disk
    assert again.record == json.loads(json.dumps(first.record))
    assert runs.run(quick, dataset, False).record["ledger"]
    assert sorted(p.name for p in first.folder.iterdir()) == [*WHOLE, "patch", "run.json"]


def test_what_a_killed_process_left_beside_a_kept_run_is_removed(quick, dataset, home):
    first = runs.run(quick, dataset, False, measured=False)
    record, whole = first.folder / "run.json", [*WHOLE, "patch", "run.json"]
    for name in (
        "checkpoint.safetensors", "tail-checkpoint.safetensors", "config.json", "lock",
        ".new/model.safetensors", ".run.json.0a.part", "patch/.patch.json.0a.part",
    ):  # fmt: skip
        (first.folder / name).parent.mkdir(exist_ok=True)
        (first.folder / name).write_text("x")
        os.utime(first.folder / name, ns=(0, record.stat().st_mtime_ns))
    left = sorted(first.folder.rglob("*"))
    with files.locked(first.folder / "lock"):  # as of one who adds metrics
        assert runs.run(quick, dataset, False, measured=None).from_disk
    assert sorted(first.folder.rglob("*")) == left
    assert runs.run(quick, dataset, False, measured=None).from_disk
    assert sorted(p.name for p in first.folder.iterdir()) == whole
    assert sorted(p.name for p in (first.folder / "patch").iterdir()) == [
        "patch.json", "patch.safetensors"
    ]  # fmt: skip
    # of a run that is done again for its ledger, and was interrupted
    (first.folder / "checkpoint.safetensors").write_text("x")
    later = record.stat().st_mtime_ns + 1_000_000
    os.utime(first.folder / "checkpoint.safetensors", ns=(0, later))
    assert runs.run(quick, dataset, False, measured=None).from_disk
    assert sorted(p.name for p in first.folder.iterdir()) == sorted(
        [*whole, "checkpoint.safetensors"]
    )


def test_what_was_left_where_nothing_can_be_written_does_not_keep_a_run_from_being_read(
    quick, dataset, home, monkeypatch
):
    first = runs.run(quick.but(method="original"), dataset, False)
    (first.folder / "config.json").write_text("x")

    @contextlib.contextmanager
    def denied(path, **_):
        raise FileProblem(f"cannot write {path}: Read-only file system")
        yield

    monkeypatch.setattr(files, "locked", denied)
    assert runs.run(quick.but(method="original"), dataset, False).from_disk
    assert (first.folder / "config.json").exists()


def test_the_lock_of_a_kept_run_has_never_two_holders(tmp_path, monkeypatch):
    """A is slow at removing the file, B waits for the lock meanwhile, C comes when A has left."""
    for name in ("run.json", "model.safetensors", "architecture.json"):
        files.write_json(tmp_path / name, {"views": []})
    inside, most = set(), []
    there = {name: threading.Event() for name in "ABC"}
    real = Path.unlink

    def slowly(path, *args, **kwargs):
        if path.name == "lock":
            there["B"].wait(0.5)
        return real(path, *args, **kwargs)

    def work(name, until=None):
        with runs._claim(tmp_path, wait=True):
            inside.add(name)
            most.append(len(inside))
            there[name].set()
            record = files.read_json(tmp_path / "run.json")
            if until:
                there[until].wait(0.5)
            time.sleep(0.2)  # for the next to begin to wait
            files.write_json(tmp_path / "run.json", {"views": [*record["views"], name]})
            inside.discard(name)

    monkeypatch.setattr(Path, "unlink", slowly)
    a, b, c = (threading.Thread(target=work, args=args) for args in ("A", "BC", "C"))
    a.start()
    there["A"].wait()
    b.start()
    a.join()
    c.start()
    b.join()
    c.join()
    assert max(most) == 1
    assert sorted(files.read_json(tmp_path / "run.json")["views"]) == ["A", "B", "C"]
    if os.name != "nt":
        assert not (tmp_path / "lock").exists()


def test_who_waits_for_another_process_can_be_stopped(tmp_path):
    stop, seen = threading.Event(), []

    def waits(whom):
        seen.append(whom)
        stop.set()

    with (
        files.locked(tmp_path / "lock"),
        training.watched(stop, waits=waits),
        pytest.raises(Interrupted, match="while waiting for another process"),
        runs._claim(tmp_path, wait=True),
    ):
        pytest.fail("it is held")
    assert seen == ["another process"]
    with runs._claim(tmp_path, wait=True):
        pass  # and nothing is held afterwards


def test_damaged_or_exchanged_weights_are_named(quick, dataset, home):
    one = runs.run(quick.but(method="original"), dataset, progress=False)
    two = runs.run(quick.but(method="retrain"), dataset, progress=False)
    shutil.copy(two.folder / "model.safetensors", one.folder / "model.safetensors")
    with pytest.raises(FileProblem, match=r"not the file that this run wrote.*delete the folder"):
        one.model(dataset)
    with pytest.raises(FileProblem, match="not the file"):  # a method that would start from it
        runs.run(quick, dataset, progress=False)
    path = two.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileProblem, match="not the file"):
        two.model(dataset)


def test_a_folder_that_cannot_be_written_stops_the_run_before_training(
    quick, dataset, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained for nothing"))
    with pytest.raises(FileProblem, match="HELPERS_HOME"):
        runs.run(quick.but(method="original"), dataset, progress=False)


def test_a_disk_that_fills_up_leaves_no_half_run(quick, dataset, home, monkeypatch):
    write = files.write_json

    def full(path, content):
        if path.name == "run.json":
            raise FileProblem(f"cannot write {path}: No space left on device")
        return write(path, content)

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(FileProblem, match="No space"):
        runs.run(quick.but(method="original"), dataset, progress=False)
    monkeypatch.setattr(files, "write_json", write)
    assert not runs.run(quick.but(method="original"), dataset, progress=False).from_disk


def test_a_long_training_is_not_lost_when_its_result_cannot_be_written(
    quick, dataset, home, monkeypatch
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)  # every training is a long one
    with no_room_for("model.safetensors"), pytest.raises(FileProblem, match="No space"):
        runs.run(quick.but(method="original"), dataset, progress=False)
    monkeypatch.setattr(training._Loop, "step", lambda *_: pytest.fail("trained again"))
    found = runs.run(quick.but(method="original"), dataset, progress=False)
    assert sorted(p.name for p in found.folder.iterdir()) == [*WHOLE, "run.json"]


def test_a_run_that_started_from_another_network_than_the_one_kept_now_is_named(
    quick, dataset, home, caplog
):
    request = quick.but(method="logit_mask", forget=5, earlier=(3,))
    first, other = (runs.run(quick.but(method="original", seed=s), dataset, False) for s in (0, 1))
    last = runs.run(request, dataset, False)
    middle = runs.run(runs.before(request), dataset, False)
    assert last.record["start_sha256"] == middle.record["weights_sha256"]
    assert middle.record["start_sha256"] == first.record["weights_sha256"]
    assert "start_sha256" not in first.record
    first.folder.rename(home / "away")
    assert runs.run(middle.config, dataset, False).from_disk
    assert not caplog.text, "there is none to compare it with"
    (home / "away").rename(first.folder)
    assert runs.run(middle.config, dataset, False).from_disk
    assert not caplog.text

    # as if made anew on another machine
    shutil.copy(other.folder / "model.safetensors", first.folder / "model.safetensors")
    change(first.folder / "run.json", weights_sha256=other.record["weights_sha256"])
    for one in (first, middle, last):
        assert runs.run(one.config, dataset, False).from_disk
    (told,) = caplog.messages
    assert told.startswith(f"{middle.folder} started from another network than the one that is kept"
                           f" now in {first.folder}, ")  # fmt: skip
    assert told.endswith(f"delete the folder {middle.folder} and run the same command again")
    caplog.clear()
    change(middle.folder / "run.json", start_sha256=None)
    assert runs.run(middle.config, dataset, False).from_disk
    change(middle.folder / "run.json", start_sha256=first.record["weights_sha256"])
    (first.folder / "run.json").write_text("{}")
    assert runs.run(middle.config, dataset, False).from_disk
    assert not caplog.text, "old records do not tell, and a damaged one is named by who reads it"


def test_many_runs_are_checked_before_the_first_is_trained(quick, dataset, home):
    from helpers.config import InputError

    with pytest.raises(InputError, match="rank"):
        runs.run_all(quick.but(rank=99), ["original", "prunelora"], [0], dataset, progress=False)
    assert not home.exists()
    with pytest.raises(InputError, match="at least one run"):
        runs.run_all(quick, [], [0], dataset, progress=False)
    found = runs.run_all(quick, ["original", "retrain"], [0, 1], dataset, progress=False)
    assert [(r.config.method, r.config.seed) for r in found] == [
        ("original", 0), ("original", 1), ("retrain", 0), ("retrain", 1)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------
# what is kept of every kind of pruning


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["prune_finetune", "prunelora"])
def test_the_sparsity_asked_for_survives_merge_save_and_reload(kind, method, quick, dataset, home):
    run = runs.run(quick.but(method=method, pruning=kind), dataset, progress=False)
    original = runs.run(quick.but(method="original"), dataset, progress=False).model(dataset)
    names = models.layers(original).prunable
    again = runs.run(quick.but(method=method, pruning=kind), dataset, progress=False)
    assert again.from_disk
    model = again.model(dataset)
    stages = [row["stage"] for row in run.record["ledger"]]
    trained = ["adapted", "merged"] if method == "prunelora" else ["trained"]
    assert stages == ["before", "pruned", *trained, "reloaded"]
    if kind == "channels":
        assert pruning.channels_gone(model, original, names) == pytest.approx(0.5, abs=1e-6)
        assert run.record["channels_gone"] == pytest.approx(0.5, abs=1e-6)
        left = [row["channels"] for row in run.record["ledger"][1:]]
        assert all(row == left[0] for row in left)
    else:
        counted = [n for n in names if kind != "mask_nm" or n != "conv1"]  # 9 weights: no fours
        assert pruning.sparsity(model, counted) == pytest.approx(0.5, abs=1e-6)
        assert len({row["zeros"] for row in run.record["ledger"][1:]}) == 1


def test_a_smaller_network_whose_shapes_were_changed_is_refused(quick, dataset, home):
    run = runs.run(quick.but(method="prunelora_channels"), dataset, progress=False)
    path = run.folder / "architecture.json"
    plain = json.loads(path.read_text())
    plain["shapes"]["fc.weight"] = [10, 31]
    path.write_text(json.dumps(plain))
    with pytest.raises(FileProblem, match=r"fc\.weight.*delete"):
        run.model(dataset)
    path.unlink()
    with pytest.raises(FileProblem, match="does not exist"):
        run.model(dataset)


def test_a_damaged_patch_is_refused_by_name(quick, dataset, home):
    run = runs.run(quick, dataset, progress=False)
    original = runs.run(quick.but(method="original"), dataset, progress=False).model(dataset)
    path = run.folder / "patch" / "patch.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FileProblem, match="SHA-256"):
        run.patch(original)


def test_a_patch_of_another_run_of_the_same_base_or_half_of_one_is_refused(quick, dataset, home):
    """Both belong to the original; so say their own files, which are whole."""
    one, other = (runs.run(quick.but(rank=r), dataset, progress=False) for r in (2, 3))
    original = runs.run(quick.but(method="original"), dataset, progress=False).model(dataset)
    assert one.patch(original).result == models.fingerprint(one.model(dataset))
    again = rf"delete the folder {re.escape(str(one.folder))} and run the same command again"
    shutil.copytree(other.folder / "patch", one.folder / "patch", dirs_exist_ok=True)
    with pytest.raises(FileProblem, match=rf"patch makes another network .*{again}"):
        one.patch(original)
    for name in ("patch.safetensors", "patch.json"):
        (one.folder / "patch" / name).unlink()
        with pytest.raises(FileProblem, match=rf"patch is not whole: {again}"):
            one.patch(original)


@pytest.fixture
def bars(monkeypatch):
    """Every bar that was shown: its text, its total, and what it was moved by."""
    shown = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"file": io.StringIO()})
            self.moves = []
            if not self.disable:
                shown.append(self)

        def update(self, n=1):
            self.moves.append(n)
            return super().update(n)

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    return shown


def test_several_runs_show_one_bar_above_with_all_epochs(quick, dataset, home, bars):
    cfg = quick.but(train=dataclasses.replace(quick.train, epochs=2))
    methods = ["retrain", "finetune", "logit_mask"]
    done = runs.run_all(cfg, methods, [0, 1], dataset)
    assert [run.from_disk for run in done] == [False] * 6
    whole = bars[0]  # with the two originals that finetune starts from
    assert (whole.desc, whole.total, whole.unit) == ("8 runs", 2 * (2 + 2 + 1 + 0), "epoch")
    assert whole.moves == [2, 2, 2, 1, 2, 1, 0, 0]
    assert whole.n == whole.total
    assert len(bars) == 1 + 6, "and one for each training"


@pytest.mark.parametrize("path", [None, "/dev/full"])
def test_a_bar_that_cannot_be_shown_ends_no_training(path, quick, dataset, home, monkeypatch):
    if path is not None and not os.path.exists(path):
        pytest.skip("there is no disk that is always full")
    monkeypatch.setattr(sys, "stderr", None if path is None else open(path, "w"))  # noqa: SIM115
    done = runs.run_all(quick, ["original", "retrain"], [0], dataset)
    assert [run.from_disk for run in done] == [False, False]


def test_what_is_read_back_shows_no_bar_and_is_not_counted(quick, dataset, home, bars):
    runs.run_all(quick, ["original", "retrain"], [0], dataset, progress=False)
    assert bars == []
    done = runs.run_all(quick, ["original", "retrain"], [0], dataset)
    assert [run.from_disk for run in done] == [True, True]
    assert bars == []
    runs.run_all(quick, ["original", "retrain", "finetune", "lora"], [0], dataset)
    assert (bars[0].desc, bars[0].total) == ("2 runs", 2)


def test_earlier_requests_are_among_the_runs_to_do(quick, dataset, home):
    last = quick.but(forget=5, earlier=(8, 1), original_seed=4)
    wanted = [last, quick.but(method="original", seed=4), last.but(forget=8, earlier=())]
    assert [(one.method, one.earlier, one.forget) for one in runs._missing(wanted, dataset)] == [
        ("original", (), 8), ("prunelora", (), 8), ("prunelora", (8,), 1), ("prunelora", (8, 1), 5),
    ]  # fmt: skip


def test_an_original_is_trained_before_any_request_whoever_asks_for_it_first(
    quick, dataset, tmp_path, monkeypatch
):
    short = quick.but(train=dataclasses.replace(quick.train, epochs=1))
    hashes = []
    for name, earlier in (("a", ()), ("b", (3,))):
        monkeypatch.setenv("HELPERS_HOME", str(tmp_path / name))
        one = short.but(forget=5, earlier=earlier)
        (done,) = runs.run_all(one, ["original"], [0], dataset, progress=False)
        hashes.append(done.record["weights_sha256"])
        seen = training.predict(done.model(dataset), dataset.train, dataset).argmax(1)
        assert (seen == 3).any(), "images of the earlier class were trained on"
    assert hashes[0] == hashes[1]


def test_a_class_that_no_image_follows_has_no_curve(quick, dataset, home):
    run = runs.run(quick, dataset, progress=False)
    for row in run.record["history"]:
        del row[str(quick.forget)]
    (row,) = run.history
    assert math.isnan(row["forget"])
    assert 0 <= row["retain"] <= 1
