from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import faults
import psutil
import pytest
import sweep as measuring
from hypothesis import given
from hypothesis import strategies as st

from helpers import files, models, pruning, report, runs, statistics, sweep, unlearning
from helpers.__main__ import main
from helpers.config import InputError, get_config
from helpers.files import FileProblem
from tests.pictures import folder

# ------------------------------------------------------------------------------------------------
# what is asked for


@pytest.mark.parametrize(
    ("field", "text", "wanted"),
    [
        ("rank", "1,2,4", [1, 2, 4]),
        ("seed", "0..4", [0, 1, 2, 3, 4]),
        ("seed", "7, 0..1", [7, 0, 1]),
        ("sparsity", "0,.25,0.5", [0.0, 0.25, 0.5]),
        ("lr", "1e-3", [0.001]),
        ("forget", "all", ["all"]),
        ("forget", "3,5", [(3,), (5,)]),
        ("forget", "3+5,0..1", [(3, 5), (0,), (1,)]),
        ("earlier", "8+1", [(8, 1)]),
        ("method", "lora,prunelora+scrub", ["lora", "prunelora+scrub"]),
        ("data", "folder:/a,b,digits", ["folder:/a,b", "digits"]),
        ("data", "folder:/x,digits/img", ["folder:/x,digits/img"]),
        ("data", "digits, cifar10 ,folder:/a", ["digits", "cifar10", "folder:/a"]),
    ],
)
def test_values_are_read(field, text, wanted):
    found = sweep.values(field, text)
    assert found == wanted
    assert [type(v) for v in found] == [type(v) for v in wanted]


@pytest.mark.parametrize(
    ("field", "text"),
    [("rank", "1,x"), ("rank", "4..1"), ("rank", "1.."), ("rank", "0..99999999"), ("rank", ""),
     ("sparsity", "0,,1"), ("sparsity", "0..1"), ("forget", "3+"), ("forget", "cat"),
     ("earlier", "all"), ("method", "lora,")],
)  # fmt: skip
def test_values_that_cannot_be_read_are_named(field, text):
    with pytest.raises(InputError, match=f"{field} = '.*' is not allowed: "):
        sweep.values(field, text)


def test_settings_that_a_method_does_not_use_make_no_points():
    grid = {"method": ["finetune", "lora", "retrain"], "rank": [1, 2], "sparsity": [0.0, 0.5],
            "original_seed": [0, 1], "forget": [3]}  # fmt: skip
    found = sweep.plan(grid, "smoke").points
    told = [(p.settings["method"], p.settings["original_seed"], p.settings["rank"]) for p in found]
    assert sorted(told, key=str) == sorted(
        [("finetune", s, None) for s in (0, 1)]
        + [("lora", s, r) for s in (0, 1) for r in (1, 2)] + [("retrain", None, None)], key=str
    )  # fmt: skip
    assert all(p.settings["sparsity"] is None for p in found)
    assert len({p.folder for p in found}) == len(found)


def test_what_one_network_is_judged_by_is_shown_of_all(home):
    """In paper mode an original answers otherwise; a class forgotten earlier is missing, too."""
    grid = {"method": ["original", "retrain"], "mode": ["default", "paper"], "earlier": [(), (8,)],
            "forget": [3]}  # fmt: skip
    points = sweep.plan(grid, "smoke").points
    shown = {(p.settings["method"], p.settings["mode"], p.settings["earlier"]) for p in points}
    assert len(points) == len(shown) == 8
    done = sweep.run({**grid, "earlier": [()]}, "smoke", progress=False)
    labels = {*sweep.table(done)["method"]}
    assert labels == {f"{m}, mode {mode}" for m in grid["method"] for mode in grid["mode"]}


def test_paper_mode_refuses_what_it_would_not_do():
    for field, value in (("adapter", "dora"), ("targets", "all"), ("norms", "frozen"),
                         ("criterion", "l1"), ("mask_data", "all")):  # fmt: skip
        grid = {"method": ["prunelora"], "mode": ["default", "paper"], field: [value]}
        plan = sweep.plan(grid, "smoke")
        assert [point.cfg.mode for point in plan.points] == ["default"]
        ((_, reason),) = plan.impossible
        assert reason.startswith(f"{field} = {value!r} is not allowed: ")
        assert reason.endswith("in paper mode, which prunes and adapts as published")
    one = sweep.plan({"method": ["finetune"], "mode": ["paper"], "adapter": ["dora"]}, "smoke")
    assert not one.impossible, "it has no adapter"


def test_memory_changes_no_network_and_is_no_setting():
    grid = {"method": ["original"], "memory_mb": [100, 200], "graphs": [False, True]}
    found = sweep.plan(grid, "smoke")
    assert len(found.points) == 1
    assert found.varied == ()
    assert not {"memory_mb", "graphs"} & found.points[0].settings.keys()


@pytest.mark.parametrize(
    ("several", "varied", "shown"),
    [({"rank": [2, 2, 2]}, (), [2]), ({"image_size": [8, 16]}, ("image_size",), [None]),
     ({"on_corrupt": ["stop", "skip"]}, ("on_corrupt",), [None]),
     ({"train_limit": [60, 1000, 2000]}, ("train_limit",), [60, 1000]),
     ({"lr": [0.1, 0.2]}, ("lr",), [0.1, 0.2])],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_makes_no_difference_makes_no_point_and_is_counted(several, varied, shown):
    ((field, values),) = several.items()
    found = sweep.plan({"method": ["lora"], **several}, "smoke")
    assert found.varied == varied
    assert [p.settings[field] for p in found.points] == shown
    assert found.same == len(values) - len(shown)
    rows = [{**p.settings, "seed": 0} for p in found.points]
    labels = sweep.table(sweep.Sweep(rows, [], found.varied, 0, 0, 1.0, "cpu"))["method"]
    named = field in varied and shown != [None]
    assert [*labels] == [f"lora, {field} {v}" if named else "lora" for v in shown]


def test_without_kept_outputs_adapters_cost_something_else_and_are_points_of_their_own(home):
    grid = {"method": ["finetune", "lora"], "cache_mb": [0, 64], "epochs": [2], "train": [TRAIN],
            "device": ["cpu"]}  # fmt: skip
    asked = sweep.plan(grid, "smoke")
    found = [(p.settings["method"], p.settings["cache_mb"]) for p in asked.points]
    assert found == [("finetune", None), ("lora", 0), ("lora", 64)]
    anew, kept = sweep.run({**grid, "method": ["lora"]}, "smoke", progress=False).rows
    assert anew["weights_sha256"] == kept["weights_sha256"]
    assert anew["gmacs"] > kept["gmacs"]
    once = [files.read_json(home / row["folder"] / "run.json")["frozen_once"]
            for row in (anew, kept)]  # fmt: skip
    assert once == [False, True]


def test_images_that_cannot_be_loaded_are_tried_once(tmp_path, monkeypatch):
    tried, load = [], sweep.data.load_dataset
    monkeypatch.setattr(
        sweep.data, "load_dataset", lambda *a, **k: tried.append(a) or load(*a, **k)
    )
    grid = {"data": [f"folder:{tmp_path / 'none'}"], "seed": [0, 1, 2], "rank": [1, 2]}
    found = sweep.plan(grid, "smoke", "once")
    assert len(found.impossible) == 6
    assert len(tried) == 1


def test_all_classes_of_images_that_are_not_there_are_left_out():
    grid = {"method": ["original"], "forget": ["all"], "data": ["digits", "folder:/nonexist"]}
    plan = sweep.plan(grid, "smoke")
    assert len(plan.points) == 10
    ((which, reason),) = plan.impossible
    assert which == "data folder:/nonexist"
    assert reason.startswith("data = 'folder:/nonexist' is not allowed")


def test_a_summary_keeps_settings_apart_that_agree_to_six_digits():
    close = (0.00123456781, 0.00123456782)
    rows = [{"method": "finetune", "lr": lr, "seed": 0} for lr in close]
    found = sweep.table(sweep.Sweep(rows, [], ("lr",), 2, 0, 1.0, "cpu"))
    assert found["method"].nunique() == 2


def test_every_class_alone_and_one_network_for_all(dataset):
    found = sweep.plan({"method": ["original"], "forget": ["all", (3, 5)], "seed": [0]}, "smoke")
    assert [p.settings["forget"] for p in found.points] == [*range(10), "3+5"]
    assert len({p.folder for p in found.points}) == 1
    assert found.before == []


def test_what_points_start_from_comes_first_and_is_shared():
    grid = {"method": ["lora", "prunelora"], "rank": [1, 2], "seed": [0, 1, 2],
            "earlier": [(), (8,)]}  # fmt: skip
    found = sweep.plan(grid, "smoke")
    assert [len(level) for level in found.before] == [3, 2 * 2 * 3]
    assert {p.cfg.method for p in found.before[0]} == {"original"}
    starts = [p.start for p in found.points]
    assert len(set(starts)) == 3 + 2 * 2 * 3
    assert sum(a != b for a, b in itertools.pairwise(starts)) == len(set(starts)) - 1
    assert {p.folder for level in found.before for p in level} == set(starts)
    plain = [p for p in found.points if not p.cfg.earlier]
    groups = [sweep._group(p) for p in plain]
    assert len(set(groups)) == 2 * 3, "ranks share what is pruned"
    assert sum(a != b for a, b in itertools.pairwise(groups)) == len(set(groups)) - 1


def test_what_ranks_share_is_made_once(home, monkeypatch):
    made, real = [], pruning.prune
    monkeypatch.setattr(pruning, "prune", lambda *a, **k: (made.append(a), real(*a, **k))[1])
    loaded, load = [], runs.Run.model
    shared = {"forget": [(3,), (5,)], "seed": [0, 1], "train": [TRAIN]}
    sweep.run({**shared, "method": ["original"]}, "smoke", progress=False)
    monkeypatch.setattr(runs.Run, "model", lambda *a: (loaded.append(a), load(*a))[1])
    grid = {**shared, "rank": [1, 2], "epochs": [1]}
    assert sweep.run(grid, "smoke", progress=False).done == 8
    assert len(made) == 4
    assert len(loaded) == 2


def test_points_that_cannot_be_run_are_all_found_before_anything_is_trained(home):
    grid = {"rank": [1, 99], "forget": [(3,), (10,)], "seed": [0, 1]}
    found = sweep.plan(grid, "smoke")
    assert [p.settings["seed"] for p in found.points] == [0, 1]
    assert len(found.impossible) == 6
    assert found.impossible[0][0] == "rank 1, forget 10, seed 0"
    with pytest.raises(InputError, match=r"forget = 10 .*6 of 8 points .*--skip-impossible"):
        sweep.run(grid, "smoke", progress=False)
    assert not list(home.rglob("run.json"))
    with pytest.raises(InputError, match=r"none of the 2 points can be run; seed 0: rank = 99"):
        sweep.run({"rank": [99], "seed": [0, 1]}, "smoke", skip_impossible=True)


def test_the_table_names_the_images_as_they_were_asked_for(tmp_path):
    place = f"folder:{folder(tmp_path / 'shop', {'a': 60, 'b': 60})}"
    grid = {"data": ["digits", place], "image_size": [8], "method": ["original"], "forget": [0]}
    found = sweep.plan(grid, "smoke")
    assert [point.settings["data"] for point in found.points] == ["digits", place]


def test_no_machine_has_so_many_workers():
    with pytest.raises(InputError, match=r"workers = 1000000 .*1 to 1,024"):
        sweep.run({"seed": [0]}, "smoke", workers=1_000_000)


def test_a_point_is_validated_once_for_all_its_seeds(monkeypatch):
    calls, real = [], unlearning.validate
    monkeypatch.setattr(unlearning, "validate", lambda *a: (calls.append(a), real(*a)))
    found = sweep.plan({"rank": [1, 2], "seed": list(range(5)), "lr": [0.1, 0.2]}, "smoke")
    assert len(found.points) == 20
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("grid", "message"),
    [({"colour": [1]}, "colour"), ({"rank": []}, "at least one value"),
     ({"rank": range(1, 2000), "seed": range(1000)}, "points = 1999000 .*at most 300,000")],
)  # fmt: skip
def test_a_grid_that_makes_no_sense_is_refused(grid, message):
    with pytest.raises(InputError, match=message):
        sweep.plan(grid, "smoke")


def test_each_class_alone_counts_among_the_points(monkeypatch):
    monkeypatch.setattr(sweep, "MOST", 20)
    grid = {"method": ["retrain"], "forget": ["all"], "seed": [0, 1]}
    assert len(sweep.plan(grid, "smoke").points) == 20
    with pytest.raises(InputError, match=r"points = .* at most 20 in one sweep"):
        sweep.plan({**grid, "seed": [0, 1, 2]}, "smoke")


@given(st.lists(st.integers(0, 3), max_size=200), st.integers(1, 9))
def test_pieces_cover_everything_once_and_stay_within_groups(groups, workers):
    missing = dict(enumerate(sorted(groups)))
    before = sweep._group
    try:
        sweep._group = lambda point: point
        pieces = sweep._pieces(missing, workers)
    finally:
        sweep._group = before
    assert [n for piece in pieces for n in piece] == list(missing)
    assert all(len({missing[n] for n in piece}) == 1 for piece in pieces)
    most = max(1, len(missing) // (sweep.PIECES * workers))
    assert all(len(piece) <= most for piece in pieces)


# ------------------------------------------------------------------------------------------------
# doing it

TRAIN = dataclasses.replace(get_config("smoke").train, epochs=1)
# on the CPU, where the same run gives the same to the last bit
GRID = {"method": ["lora", "prunelora"], "rank": [1, 2], "seed": [0, 1], "epochs": [1],
        "train": [TRAIN], "device": ["cpu"]}  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Records of an undisturbed sweep, and its rows."""
    before, place = os.environ["HELPERS_HOME"], tmp_path_factory.mktemp("calm")
    os.environ["HELPERS_HOME"] = str(place)
    try:
        found = sweep.run(GRID, "smoke", progress=False)
    finally:
        os.environ["HELPERS_HOME"] = before
    assert (found.done, found.made, len(found.rows)) == (8, 2, 8)
    return faults.records(place), found


def same(row, other):
    free = ("seconds", "training_seconds", "date")  # what a clock says
    return {k: v for k, v in row.items() if k not in free} == {
        k: v for k, v in other.items() if k not in free
    }


def test_a_sweep_gives_what_single_runs_give(calm, home):
    _, found = calm
    for row in found.rows[::3]:
        cfg = get_config("smoke", train=TRAIN, epochs=1, method=row["method"], rank=row["rank"],
                         seed=row["seed"], device="cpu")  # fmt: skip
        one = runs.run(cfg, progress=False)
        assert one.record["weights_sha256"] == row["weights_sha256"]
        assert {k: row[k] for k in ("UA", "TA", "MIA")} == {
            k: one.metrics[k] for k in ("UA", "TA", "MIA")
        }
        assert one.record["ledger"]
        assert row["folder"] == one.folder.relative_to(home).as_posix()


def test_the_sparsity_that_was_asked_for_stands_beside_the_zeros_that_are_there(home):
    """In paper mode the masks are dropped, and the zeros grow back."""
    grid = {**GRID, "method": ["original", "prunelora"], "rank": [1], "seed": [0],
            "mode": ["paper"], "sparsity": [0.5]}  # fmt: skip
    original, pruned = sweep.run(grid, "smoke", progress=False).rows
    assert (original["sparsity"], original["zeros"]) == (None, 0)
    assert pruned["sparsity"] == 0.5
    assert 0.1 < pruned["zeros"] < 0.4


def test_afterwards_other_folders_have_homes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.delenv("HELPERS_HOME")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        sweep.run(GRID | {"method": ["original"]}, "smoke", progress=False)
        assert (tmp_path / name / "artifacts").is_dir()


def test_two_workers_give_the_same_and_nothing_is_done_twice(calm, home):
    records, found = calm
    again = sweep.run(GRID, "smoke", workers=2, progress=False)
    assert (again.done, again.made) == (8, 2)
    assert faults.records(home) == records
    assert all(same(a, b) for a, b in zip(again.rows, found.rows, strict=True))
    third = sweep.run(GRID, "smoke", progress=False)
    assert (third.done, third.made) == (0, 0)
    assert third.rows == again.rows


def test_a_claimed_run_is_left_to_others(home, dataset):
    cfg = get_config("smoke", train=TRAIN, method="original")
    folder = runs.folder_of(cfg, dataset)
    with files.locked(folder / "lock") as mine:
        assert mine
        with files.locked(folder / "lock") as second:
            assert not second
        with pytest.raises(runs.Claimed, match=str(folder)):
            runs.run(cfg, dataset, progress=False, wait=False)
    done = runs.run(cfg, dataset, progress=False, wait=False)
    assert not done.from_disk
    assert not (folder / "lock").exists()
    with files.locked(folder / "lock"):  # what is finished is read whoever holds what
        assert runs.run(cfg, dataset, progress=False, wait=False).from_disk
        with pytest.raises(runs.Claimed):  # but another class adds to the record
            runs.run(cfg.but(forget=5), dataset, progress=False, wait=False)


def test_a_run_waits_for_whoever_is_doing_it(home, dataset, caplog):
    cfg = get_config("smoke", train=TRAIN, method="original")
    folder, found, ready = runs.folder_of(cfg, dataset), [], threading.Event()
    # another process would be: a thread takes its turn to build before it takes the lock
    model = models.build_model("digits_resnet", 10, 1, 8)

    def other():
        with files.locked(folder / "lock"):
            ready.set()
            time.sleep(0.5)
            found.append(models.save(model, folder))
            (folder / "run.json").write_text('{"identity": 1}')

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    with caplog.at_level("INFO"), pytest.raises(FileProblem, match=r"run\.json"):
        runs.run(cfg, dataset, progress=False)  # the other's record, which is none, is read
    thread.join()
    assert "waiting for it" in caplog.text


def test_claimed_points_come_last(calm, home, monkeypatch):
    """Other points are done while one is claimed, and that one when it is free."""
    records, _ = calm
    monkeypatch.setattr(sweep, "POLL", 0.05)
    claimed = sweep.plan(GRID, "smoke").points[0].folder
    held, done = threading.Event(), threading.Event()

    def other():
        with files.locked(claimed / "lock"):
            held.set()
            while len(list(home.glob("artifacts/*/*/run.json"))) < 9:
                time.sleep(0.02)
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    found = sweep.run(GRID, "smoke", progress=False)
    thread.join()
    assert done.is_set()
    assert found.done == 8
    assert faults.records(home) == records


def test_it_is_said_once_what_other_processes_are_waited_for(home, monkeypatch, caplog):
    monkeypatch.setattr(sweep, "POLL", 0.05)
    grid = {"method": ["original"], "seed": [0, 1], "train": [TRAIN], "device": ["cpu"]}
    claimed = sweep.plan(grid, "smoke").points[0].folder
    held = threading.Event()

    def other():
        with files.locked(claimed / "lock"):
            held.set()
            late = time.monotonic() + 30
            while "waiting for them" not in caplog.text and time.monotonic() < late:
                time.sleep(0.02)
            time.sleep(5 * sweep.POLL)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with caplog.at_level("INFO", logger="helpers"):
        assert sweep.run(grid, "smoke", progress=False).done == 2
    thread.join()
    said = [r.getMessage() for r in caplog.records if "waiting for them" in r.getMessage()]
    assert said == [f"points that other processes are working on: 1, one of them in {claimed}: "
                    "waiting for them"]  # fmt: skip


def test_a_training_that_fails_does_not_stop_the_others(home):
    grid = {"method": ["finetune"], "lr": [0.01, 1e30], "epochs": [1], "train": [TRAIN]}
    found = sweep.run(grid, "smoke", progress=False)
    assert [bool(row["problem"]) for row in found.rows] == [False, True]
    assert "diverged" in found.rows[1]["problem"]
    summary = statistics.summary(sweep.table(found))
    assert list(summary.index) == ["finetune, lr 0.01", "finetune, lr 1e+30"]
    assert [row[1] for row in report.cells(summary)][2] == "–"


def test_the_table_is_written_as_csv_and_json(calm, tmp_path):
    _, found = calm
    paths = sweep.save(found, tmp_path / "new" / "grid")
    assert [p.name for p in paths] == ["grid.csv", "grid.json"]
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["weights_sha256"] for row in rows] == [r["weights_sha256"] for r in found.rows]
    assert [float(row["TA"]) for row in rows] == [r["TA"] for r in found.rows]
    record = json.loads(paths[1].read_text())
    assert [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]] == found.rows
    assert {"date", "versions", "hardware", "varied"} <= {*record}


def test_the_two_files_of_a_table_are_both_new_or_both_old(calm, tmp_path, monkeypatch):
    _, found = calm
    paths = sweep.save(found, tmp_path / "grid")
    old = [path.read_bytes() for path in paths]
    monkeypatch.setattr(files, "LARGEST_JSON", len(old[1]))
    longer = dataclasses.replace(found, rows=[*found.rows, *found.rows])
    with pytest.raises(FileProblem, match=r"grid\.json: .* bytes of JSON, more than"):
        sweep.save(longer, tmp_path / "grid")
    assert [path.read_bytes() for path in paths] == old
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_table_of_as_many_points_as_there_may_be_can_be_written(calm, tmp_path):
    _, found = calm
    one, two = (
        sweep.save(dataclasses.replace(found, rows=times * found.rows), tmp_path / "grid")[1]
        .stat().st_size for times in (1, 2)
    )  # fmt: skip
    of_a_row = (two - one) / len(found.rows)
    assert sweep.MOST * of_a_row < files.LARGEST_JSON


def test_the_table_holds_a_folder_whose_name_is_not_utf_8(calm, tmp_path):
    _, found = calm
    data = f"folder:{os.fsdecode(b'/n' + bytes([0xE9]))}"
    rows = [row | {"data": data} for row in found.rows]
    found = dataclasses.replace(found, varied=("data", "seed"), rows=rows)
    paths = sweep.save(found, tmp_path / "grid")
    with paths[0].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["data"] for row in rows} == {r"folder:/n\udce9"}
    labels = sweep.table(found)["method"]
    assert all(label.endswith(r", data folder:/n\udce9") for label in labels)
    assert [row["weights_sha256"] for row in rows] == [r["weights_sha256"] for r in found.rows]
    record = json.loads(paths[1].read_text())
    assert [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]] == found.rows


# ------------------------------------------------------------------------------------------------
# faults


@pytest.mark.parametrize("every", [1, 6])
def test_a_full_disk_is_one_error_and_the_sweep_goes_on_from_there(
    calm, home, monkeypatch, every
):  # fmt: skip
    """Writes fail, each time at the next of a few; every time the same command is given again."""
    records, count, real = calm[0], itertools.count(1), os.replace

    def replace(source, target):
        if broken and next(count) % every == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    broken, before = True, -1
    for _ in range(4):
        with pytest.raises(FileProblem, match=r"cannot write .*: No space left on device"):
            sweep.run(GRID, "smoke", progress=False)
        kept = len(faults.records(home))
        assert kept >= before
        before = kept
    broken = False
    sweep.run(GRID, "smoke", progress=False)
    assert faults.records(home) == records


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if not faults.mount(place, "size=1m"):
        pytest.skip("mounting a file system is not allowed here")
    yield place
    faults.subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_real_full_disk_and_a_read_only_one(calm, disk, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(disk))
    for options, message in (("size=1m", "No space left"), ("ro", "Read-only file system")):
        faults.subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)
        with pytest.raises(FileProblem, match=rf"cannot write .*{message}"):
            sweep.run(GRID, "smoke", progress=False)
    faults.subprocess.run(["mount", "-o", "remount,rw,size=64m", str(disk)], check=True)
    sweep.run(GRID, "smoke", progress=False)
    assert faults.records(disk) == calm[0]


def test_killed_at_random_moments_it_ends_with_the_same_records(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert faults.finish(calm)[0] == 0
    assert faults.kill_at_random(killed, 2, random.Random(1), faults.written(calm)) == 2
    assert ended_as(faults.records(killed), faults.records(calm))
    assert not list(killed.rglob("*.part"))


SLOW = """
import pathlib, sys, time
time.sleep(0.5)
pathlib.Path(sys.argv[1], "artifacts", "smoke", "0", "new").touch()
time.sleep(60)
"""


def in_place_of_sweeps(monkeypatch, *programs):
    """Let faults happen to other programs, one for each sweep that is started."""
    left = iter(programs)

    def start(home, *_):
        return subprocess.Popen([sys.executable, "-c", next(left), home], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    monkeypatch.setattr(faults, "start", start)


def test_a_sweep_is_killed_when_it_works_and_not_before(tmp_path, monkeypatch):
    run = tmp_path / "artifacts" / "smoke" / "0"
    run.mkdir(parents=True)
    for name in "abc":  # of those that were killed before
        (run / name).touch()
    in_place_of_sweeps(monkeypatch, SLOW)
    assert faults.kill_after(tmp_path, 1, 0)
    assert (run / "new").exists()


@pytest.mark.parametrize(
    ("disturb", "programs"),
    [(faults.kill_a_worker, ["pass"]),
     (faults.two_at_once, [f"print('{count} done now')" for count in (faults.POINTS, 0)])],
)  # fmt: skip
def test_a_fault_that_did_not_happen_is_no_proof(tmp_path, monkeypatch, disturb, programs):
    in_place_of_sweeps(monkeypatch, *programs)
    with pytest.raises(AssertionError):
        disturb(tmp_path)


def ended_as(found, wanted):
    """Say whether records are the same; on a GPU two trainings may differ in the last bits."""
    if get_config("smoke").device == "cpu":
        return found == wanted
    steps = ({key: one["steps"] for key, one in some.items()} for some in (found, wanted))
    return next(steps) == next(steps)


def test_two_processes_on_one_folder_share_the_work(tmp_path):
    faults.two_at_once(tmp_path)  # asserts that each point is done once
    assert len(faults.records(tmp_path)) == faults.POINTS + faults.STARTS
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert len(record["rows"]) == faults.POINTS


@contextlib.contextmanager
def killing_one(name, seconds):
    """Kill the first worker that has worked for some time; yields a list of what was killed."""
    killed = []

    def hunt():
        while not stop.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                try:
                    busy = sum(child.cpu_times()[:2]) > seconds
                    if busy and name in " ".join(child.cmdline()):
                        child.send_signal(signal.SIGKILL)
                        killed.append(child.pid)
                        return
                except psutil.Error:
                    continue

    stop, thread = threading.Event(), threading.Thread(target=hunt)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_images_that_change_meanwhile_end_the_sweep(tmp_path, home, monkeypatch):
    """A worker loads them by itself: here by emptying what this process remembers."""
    shop = folder(tmp_path / "shop", dict.fromkeys("abc", 60))

    def change(*_):
        folder(shop, {"a": 61})
        sweep._shared.cache_clear()

    monkeypatch.setattr(sweep, "_refuse", change)
    monkeypatch.setattr(runs, "run", lambda *_, **__: pytest.fail("trained"))
    asked = {"data": f"folder:{shop}", "model": "resnet_tiny", "method": "retrain",
             "forget": 0}  # fmt: skip
    grid = {field: [value] for field, value in asked.items()}
    with pytest.raises(InputError, match=r"the images changed while .*; run the same again"):
        sweep.run(grid, "smoke", progress=False)


def test_a_dying_worker_does_not_end_the_sweep(calm, home, caplog):
    with killing_one("loky", 2.0) as killed:
        sweep.run(GRID, "smoke", workers=2, progress=False)
    assert killed
    assert "a worker process died; what it was doing is done again" in caplog.text
    assert faults.records(home) == calm[0]


def test_workers_that_always_die_are_given_up(home, monkeypatch):
    class Engine:
        workers, rounds, boss = 1, 0, None

        def do(self, pieces):
            Engine.rounds += 1
            raise sweep._Died("out of memory")
            yield

    work = sweep._Work(Engine(), "")
    with pytest.raises(ChildProcessError, match=r"workers died 3 times .* 8 points are left"):
        work.do(sweep.plan(GRID, "smoke").points, False)
    assert Engine.rounds == sweep.TRIES


def test_workers_that_die_but_finish_something_in_between_are_not_given_up(home):
    class Engine:
        workers, rounds, boss = 1, 0, None

        def do(self, pieces):
            Engine.rounds += 1
            if Engine.rounds % sweep.TRIES == 0:
                number = pieces[0][0][0][0]
                yield {number: {"row": {"number": number}, "from_disk": False}}
            raise sweep._Died("out of memory")

    work = sweep._Work(Engine(), "")
    found = work.do(sweep.plan(GRID, "smoke").points, False)
    assert [row["number"] for row in found] == [*range(8)]
    assert (work.done, Engine.rounds) == (8, 8 * sweep.TRIES)


@pytest.mark.skipif(os.name == "nt", reason="there a worker cannot tell")
def test_a_worker_whose_sweep_was_killed_does_no_more(home, monkeypatch):
    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sweep, "_outcome", lambda *_: {})
    for boss in (os.getpid(), os.getppid(), None):
        assert sweep._piece([(7, None, "")], "", str(home), boss, False) == {7: {}}
    with pytest.raises(SystemExit):
        sweep._piece([(7, None, "")], "", str(home), -1, False)


def test_on_ray_a_dying_worker_is_retried(calm, home):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray[default]")
    with killing_one("ray::_piece", 3.0) as killed:
        again = sweep.run(GRID, "smoke", workers=2, ray="local", progress=False)
    assert killed
    assert faults.records(home) == calm[0]
    assert all(same(a, b) for a, b in zip(again.rows, calm[1].rows, strict=True))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_line(home, address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray[default]")
    with pytest.raises(InputError, match="ray = "):
        sweep.run({"seed": [0]}, "smoke", ray=address, progress=False)


@pytest.mark.parametrize("address", ["a..b:80", "no-such-host.invalid:80", "127.0.0.1:1"])
def test_an_address_that_is_none_is_one_line(address):
    with pytest.raises(InputError, match=f"ray = '{address}' cannot be used: ") as refused:
        sweep._reach(address)
    assert "\n" not in str(refused.value)


def test_without_ray_it_is_said_how_to_install_it(home, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"ray = 'local': .* pip install \"ray\[default\]\""):
        sweep.run({"seed": [0]}, "smoke", ray="local", progress=False)


# ------------------------------------------------------------------------------------------------
# the command


def test_the_command_prints_a_summary_and_names_its_files(home, tmp_path, capsys):
    words = ["sweep", "--preset", "smoke", "--quiet", "--epochs", "1", "--rank", "1,99",
             "--forget", "3,5", "--out", str(tmp_path / "grid"), "--skip-impossible"]  # fmt: skip
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "method"
    assert lines[0].split()[-1] == "points"
    assert lines[2].startswith("prunelora, rank 1 ")
    assert lines[2].split()[-1] == "2"
    assert sum(line.startswith("left out: forget ") for line in lines) == 2
    assert "2 points in" in lines[-3]
    assert "2 done now, 0 kept, 0 failed" in lines[-3]
    assert not any("same as another" in line for line in lines)
    assert lines[-2:] == [str(tmp_path / "grid.csv"), str(tmp_path / "grid.json")]
    assert main(words) == 0
    assert "0 done now, 2 kept, 0 failed" in capsys.readouterr().out


def test_the_command_names_points_that_failed_and_does_not_count_them(home, tmp_path, capsys):
    words = ["sweep", "--preset", "smoke", "--quiet", "--epochs", "1", "--method", "finetune",
             "--lr", "0.01,1e30", "--sparsity", "0.5,0.9",
             "--out", str(tmp_path / "grid")]  # fmt: skip
    assert main(words) == 2
    lines = capsys.readouterr().out.splitlines()
    points = {line.split("  ")[0]: line.split()[-1] for line in lines if line.startswith("fine")}
    assert points == {"finetune, lr 0.01": "1", "finetune, lr 1e+30": "0"}
    assert "combinations of settings that come to the same as another: 2" in lines
    (failed,) = (line for line in lines if line.startswith("failed: "))
    assert failed.startswith("failed: finetune, forget 3, seed 0, lr 1e+30: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--rank", "1,x"), "whole numbers, or ranges such as 0..4"), (("--rank", "0"), "from 1 to"),
     (("--forget", "cat"), "3+5 for both at once"), (("--workers", "0"), "1 to 1,024"),
     (("--method", "lora,nope"), "known are original"), (("--rank", "1,99"), "1 of 2 points"),
     (("--out", ""), "the path of a file"), (("--out", "/proc/no/where"), "cannot write /proc/no"),
     (("--out", ".."), "out = '..' is not allowed"), (("--out", "sub/"), "out = 'sub/' is not"),
     (("--out", "sub/."), "out = 'sub/.' is not allowed: the path of a file, without its ending"),
     (("--out", "x" * 245), "File name too long"),
     (("--out", "taken"), "taken.csv: Is a directory"), (("--out", "old"), "old.json: Is a dir")],
)  # fmt: skip
def test_bad_options_are_one_line(home, tmp_path, monkeypatch, capfd, options, message):
    for name in ("taken.csv", "old.json"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--preset", "smoke", "--quiet", *options]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(home.rglob("run.json"))


# ------------------------------------------------------------------------------------------------
# the measurements

MEASURED = {
    "overhead": {
        "points": 40, "plan_ms": 3.6, "read_ms": 1.8, "files": 5.0, "bytes": 3e5, "on_disk": 4e5,
        "blocks": [{"points": 20, "wall": 2.0, "training": 1.0},
                   {"points": 20, "wall": 2.2, "training": 1.0}],
        "plain_ms": [95.0, 95.0], "evaluation_ms": [20.0, 30.0], "table_bytes": [300.0, 600.0],
    },
    "workers": {"points": 5, "one": [10.0, 12.0], "two": [5.0, 6.0], "first_of_two": 9.5,
                "training_s": 1.745},
}  # fmt: skip


def test_overhead_is_what_remains_of_the_clock():
    training, loop = measuring.beyond(MEASURED["overhead"])
    assert training == pytest.approx([50.0, 60.0])
    assert loop == pytest.approx([5.0, 15.0])
    told = dict(measuring.rows("overhead", MEASURED["overhead"]))
    assert told["a point, beyond its training"] == "55.0 ms (50.0 – 60.0)"
    told = dict(measuring.rows("workers", MEASURED["workers"]))
    assert told["two workers against one, times as fast"] == "2.0 x (2.0 – 2.0)"
    assert told["start of two workers, once"] == "4.0 s"


def test_a_grid_on_paper_is_computed_from_the_record():
    rows = measuring.on_paper(MEASURED)
    # 100,000 x (1.745 + 0.055) s = 50 hours of one core; planning and reading 0.15 h of one process
    assert rows[1] == ["1.7 s", "50", "50.1 h", "0.9 h", "0.2 h", "3.1 %"]
    assert "40 GB in 500,000 files" in measuring.storage(MEASURED)


def test_the_committed_text_is_that_of_the_record():
    text = measuring.TEXT.read_text()
    record = files.read_json(measuring.RECORD) if measuring.RECORD.is_file() else {}
    if record:
        assert measuring.rendered(text, record) == text
    where = runs.environment()
    made = measuring.rendered(text, {k: v | where for k, v in MEASURED.items()} | where)
    assert "| a point, beyond its training | 55.0 ms (50.0 – 60.0) |" in made
    assert measuring.rendered(made, {k: v | where for k, v in MEASURED.items()} | where) == made


def test_images_and_features_are_not_held_after_a_sweep(home):
    grid = {"method": ["original"], "seed": [0], "train_limit": [20]}
    sweep.run(grid, "smoke", progress=False)
    assert sweep._shared.cache_info().currsize == 0
