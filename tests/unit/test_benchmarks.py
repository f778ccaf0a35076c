"""What the scripts under ``benchmarks/`` compare and compute; what they time is not asserted."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys

import audit_cifar
import faults
import figures
import images
import matplotlib.pyplot as plt
import measure
import precision
import pytest
import sweep
import torch
import tune_cifar
import tune_digits
from PIL import Image

from helpers import audit, data, files, models, pages, recording, runs, study, training
from helpers.config import InputError, get_config
from helpers.data import Dataset


def test_the_plain_way_yields_the_same_pixels():
    part = images.dataset(12)
    loader = images.loader(part, 5)
    scaled = part.normalise(part.train.images)
    for index in range(12):
        image, label = loader.dataset[index]
        assert torch.allclose(image, scaled[index], atol=1e-6)
        assert label == part.train.labels[index]
    assert loader.num_workers == 2
    assert 0 not in part.train.labels, "all are retained: both sides train on all of them"


def test_ours_trains_on_the_images_of_the_plain_way_and_has_one_to_forget():
    part = images.dataset(12)
    split = measure.to_forget(part).split(0)
    assert len(split.forget) == 1
    assert torch.equal(split.retain.images, part.train.images)
    outcome = images.ours(part, 6, 1)
    assert (outcome.fit.steps, outcome.frozen_once) == (2, True)


def test_the_plain_network_has_zeroed_filters_and_peft_own_adapters():
    plain = images.plain_network(0)
    gone = [
        (m.weight.flatten(1) == 0).all(1).double().mean().item()
        for name, m in plain.named_modules()
        if isinstance(m, torch.nn.Conv2d) and "lora_" not in name
    ]
    assert gone == pytest.approx([0.5] * 20, abs=0.01)
    drops = {m.p for m in plain.modules() if isinstance(m, torch.nn.Dropout)}
    assert drops == {0.1}
    trained = models.count_parameters(plain, trainable=True)
    dense = models.layers(measure.build("resnet18"))
    assert trained > sum(8 * 64 * 2 for _ in dense.adaptable)
    assert trained < 0.03 * models.count_parameters(plain)


def test_a_power_law_is_found_with_its_interval():
    exact = images.power_law([1, 2, 4], [3, 12, 48])
    assert exact["exponent"] == pytest.approx(2)
    assert exact["factor"] == pytest.approx(3)
    assert exact["lowest"] == pytest.approx(exact["highest"])
    noisy = images.power_law([1, 2, 4, 8], [1, 3, 3, 9])
    assert noisy["lowest"] < 1 < noisy["highest"]
    still = images.power_law([1, 2, 4], [5, 5, 5])
    assert (still["exponent"], still["lowest"], still["highest"]) == (0, 0, 0), "a constant cost"
    assert still["factor"] == pytest.approx(5)


def test_ratios_are_taken_turn_by_turn_and_held_against_a_limit():
    found = measure.compare({"a": [1.0, 2.0, 9.0], "b": [2.0, 8.0, 9.0]}, "a", "b")
    assert (found["ratio"], found["lowest"], found["highest"]) == (0.5, 0.25, 1.0)
    assert measure.check("x", found, most=0.5)["met"] is True
    assert measure.check("x", found, least=0.6)["met"] is False
    assert measure.check("x", found)["met"] is None


def test_the_first_turn_does_not_count():
    turns = []
    times = measure.in_turn({n: lambda t, n=n: turns.append((n, t)) or float(t) for n in "ab"}, 2)
    assert turns == [(n, t) for t in (0, 0, 1) for n in "ab"]
    assert times == {"a": [0.0, 1.0], "b": [0.0, 1.0]}


def test_a_finished_section_joins_the_record(tmp_path):
    path, order = tmp_path / "record.json", ("first", "second")
    measure.keep(path, {"second": {"n": 2}}, order, "cpu", {"about": "x"})
    measure.keep(path, {"first": {"n": 1}}, order, "cpu", {"about": "x"})
    record = files.read_json(path, ("about", "hardware", "versions", "date"))
    assert list(record["sections"].items()) == [("first", {"n": 1}), ("second", {"n": 2})]


def test_the_tables_of_the_text_are_those_of_the_records():
    text, results = sweep.TEXT.read_text(encoding="utf-8"), sweep.RECORD.parent
    made = sweep.rendered(text, json.loads((results / "sweep.json").read_text()))
    made = faults.rendered(made, json.loads((results / "faults.json").read_text()))
    assert precision.rendered(made, json.loads((results / "precision.json").read_text())) == text


def drawn_from(path):
    with Image.open(path) as image:
        about = image.info.get("Description", "")
    return dict(entry.split(" ") for entry in about.split(", ") if entry)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_figures_show_the_records_as_they_are(name):
    shown = drawn_from(figures.RESULTS / name)
    assert shown, "it says from what it was drawn"
    now = {record: files.sha256(figures.RESULTS / record) for record in shown}
    assert shown == now, "draw it anew: python benchmarks/figures.py"


def test_a_figure_says_from_which_records_it_was_drawn(tmp_path):
    record = files.write_json(tmp_path / "a-record.json", {"rows": [1]})
    figure = plt.figure()
    pages.keep_figure(figure, tmp_path / "x.png", record)
    plt.close(figure)
    before = drawn_from(tmp_path / "x.png")
    assert before == {"a-record.json": hashlib.sha256(record.read_bytes()).hexdigest()}
    files.write_json(record, {"rows": [2]})
    assert drawn_from(tmp_path / "x.png") == before != {record.name: files.sha256(record)}


def test_tables_are_written_whatever_the_locale(tmp_path):
    text, record = tmp_path / "README.md", tmp_path / "record.json"
    text.write_text("1 – 2\n", encoding="utf-8")
    record.write_text('{"new": "3 – 4"}', encoding="utf-8")
    (tmp_path / "script.py").write_text(
        "import pathlib, sys\nfrom measure import call, retell\n"
        "def main():\n"
        "    retell(*map(pathlib.Path, sys.argv[1:2]), lambda t, r: t + r['new'],"
        " pathlib.Path(sys.argv[2]))\n"
        "    print(chr(0x2013))\n"
        "call(main)\n",
        encoding="utf-8",
    )
    paths = os.pathsep.join([str(sweep.TEXT.parent), *sys.path])
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": paths}
    words = [sys.executable, str(tmp_path / "script.py"), str(text), str(record)]
    done = subprocess.run(words, env={**os.environ, **plain}, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert text.read_text(encoding="utf-8") == "1 – 2\n3 – 4"


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        (images, ["--quick", "--data", "folder:/nowhere", "batches"], "/nowhere"),
        (images, ["--quick", "--data", "digits", "--device", "cpu", "memory"], "digits"),
        (audit_cifar, ["--data", "banana"], "data = 'banana'"),
        (audit_cifar, ["--workers", "0"], "--workers = 0"),
        (audit_cifar, ["--cells", "0"], "--cells = 0"),
        (tune_cifar, ["--workers", "0"], "--workers = 0"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(monkeypatch, script, words, told):
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    for name, value in (("DEVICE", "cpu"), ("SOURCE", "random")):
        monkeypatch.setattr(images, name, value)
    images.dataset.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        measure.call(script.main)
    line = str(stopped.value)
    assert line.startswith("error: ")
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("stopped", "line"),
    [(KeyboardInterrupt(), "stopped; what is done is kept"),
     (training.Interrupted("stopped after 3 of 6 steps"), "stopped after 3 of 6 steps")],
)  # fmt: skip
def test_a_script_that_is_stopped_says_so_in_one_line(stopped, line):
    def main():
        raise stopped

    with pytest.raises(SystemExit) as told:
        measure.call(main)
    assert told.value.code == line


def test_each_way_of_training_is_told_beside_the_first():
    rates = {way: 100.0 for way in itertools.product(("fp32", "amp"), precision.LAYOUTS, (0, 1))}
    rates |= {precision.BASE: 50.0, ("amp", "channels last", True): 200.0}
    rows = [precision.row(way, [0.9 * rate, rate, 1.1 * rate], 50.0, 1.0)
            for way, rate in rates.items()]  # fmt: skip
    found = {"batch": 8, "rows": rows, "amp": "bfloat16", "instructions": "AVX512"}
    record = {"devices": {"cpu": {"vit": found | runs.environment("cpu")}}}
    text = precision.rendered("<!-- precision -->\nold\n<!-- end precision -->\n", record)
    head, _, base, first, *_, last, empty, about = text.splitlines()[1:-1]
    assert head == "| cpu | vit, batch 8 |"
    assert "old" not in text
    assert base == "| fp32, channels first, images per second | 50 |"
    assert first == "| fp32, channels first, compiled | 2.00 (1.80 – 2.20) |"
    assert last == "| amp, channels last, compiled | 4.00 (3.60 – 4.40) |"
    assert len(text.splitlines()) == 14
    assert not empty
    assert about.startswith("Mixed precision is bfloat16; instructions AVX512. Measured ")


def test_images_are_laid_out_and_computed_as_was_fastest():
    networks = json.loads((sweep.RECORD.parent / "precision.json").read_text())["devices"]["cpu"]
    for name, found in networks.items():
        plain = {(r["precision"], r["layout"]): r for r in found["rows"] if not r["compile"]}
        best = max(plain, key=lambda way: plain[way]["images_per_second"])
        images = torch.zeros(1, found["channels"], 8, 8, dtype=torch.uint8)
        made = precision.random_dataset(
            precision.Network(found["channels"], 8, 1, 1), "cpu", torch.contiguous_format
        )
        laid = Dataset.normalise(made, images)
        if found["channels"] == 3:
            assert best == (get_config("cifar").precision, "channels last"), name
            assert laid.is_contiguous(memory_format=torch.channels_last)
        else:  # the two do not differ by more than their turns do
            first, last = (plain["amp", layout] for layout in precision.LAYOUTS)
            assert max(first["lowest"], last["lowest"]) < min(first["highest"], last["highest"])


def test_networks_that_come_with_the_project_are_finished_runs_of_the_preset(tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    cfg = get_config("cifar", device="cpu")  # where they were trained
    audit_cifar.take(cfg)
    found = sorted((tmp_path / "artifacts" / "cifar").iterdir())
    assert found
    blank = torch.zeros(2, 3, 32, 32)
    for folder in found:
        assert runs.is_kept(folder)
        record = files.read_json(folder / "run.json")
        known = record["identity"]
        forget = tuple(known.get("forgotten", (0,)))
        one = cfg.but(method=known["method"], seed=known["seed"], forget=forget)
        assert json.loads(json.dumps(runs.identity(one, known["data"]))) == known, "would be unused"
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        assert folder.name == digest[:16]
        assert record["weights_sha256"] == files.sha256(folder / "model.safetensors")
        assert record["config"]["data"].startswith("folder:data/"), "no path of somebody's machine"
        model = models.load(folder, models.build_model("resnet20", 10, 3, 32))
        assert model(blank).shape == (2, 10)


def test_a_network_whose_copying_was_cut_off_is_copied_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    cfg, source = get_config("cifar"), next(audit_cifar.NETWORKS.iterdir())
    cut = tmp_path / "artifacts" / "cifar" / source.name
    cut.mkdir(parents=True)
    (cut / "model.safetensors").write_bytes(b"half")
    audit_cifar.take(cfg)
    for name in ("model.safetensors", "architecture.json", "run.json"):
        assert (cut / name).read_bytes() == (source / name).read_bytes()
    (cut / "run.json").write_text("{}")  # a finished run is left as it is
    audit_cifar.take(cfg)
    assert (cut / "run.json").read_text() == "{}"


@pytest.fixture
def few_settings(tmp_path, monkeypatch):
    cheats = {name: {"method": name} for name in ("logit_mask", "prototype")}
    groups = ({"original": {"method": "original"}}, cheats)
    monkeypatch.setattr(audit_cifar, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(audit_cifar, "GROUPS", groups)
    monkeypatch.setattr(audit_cifar, "SETTINGS", groups[0] | groups[1])


def test_the_record_of_photographs_grows_over_calls_and_nothing_is_done_twice(
    tmp_path, monkeypatch, few_settings
):
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "first"))
    cfg = get_config("smoke")
    dataset = data.load_dataset(cfg)
    record = audit_cifar.record_of(dataset)
    assert record == tmp_path / "record-digits.json", "the other one is of other images"

    def lacking(*cells):
        return audit_cifar.lacking(cfg, cells, dataset)

    assert lacking((3, 0)) == [(3, 0)]
    audit_cifar.audits(cfg, [(3, 0)], 1, dataset, ["original", "prototype"])
    assert lacking((3, 0)) == [(3, 0)], "not all of it"
    named = json.loads(record.read_text())
    assert [row[0] for row in named["rows"]] == ["original", "prototype"]
    audit_cifar.audits(cfg, [(3, 0)], 1, dataset)
    first = json.loads(record.read_text())
    assert lacking((3, 0), (5, 0)) == [(5, 0)]
    assert [row[0] for row in first["rows"]] == ["original", "logit_mask", "prototype"]
    assert [first["rows"][0], first["rows"][2]] == named["rows"]
    assert len(first["training"]) == 1 + audit_cifar.ORACLES
    old = first | {
        "audit": audit.VERSION - 1,
        "rows": [[*row[:4], 0.123, *row[5:]] for row in first["rows"]],
    }
    record.write_text(json.dumps(old))  # measured in another way
    audit_cifar.audits(cfg, [(3, 0)], 1, dataset)
    assert json.loads(record.read_text())["rows"] == first["rows"]
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "elsewhere"))  # another machine
    audit_cifar.audits(cfg, [(3, 0)], 1, dataset)
    assert not (tmp_path / "elsewhere").exists(), "all of it was recorded"
    audit_cifar.audits(cfg, [(3, 0), (5, 0)], 1, dataset)
    second = json.loads(record.read_text())
    assert [row for row in second["rows"] if row[first["columns"].index("forget")] == 3] == first[
        "rows"
    ]
    assert second["bands"]["3"] == first["bands"]["3"]
    assert {c: [*one] for c, one in second["bands"].items()} == {"3": ["0"], "5": ["0"]}
    assert len(second["training"]) == 1 + 2 * audit_cifar.ORACLES, "the original counts once"


def test_audits_of_other_images_are_not_taken_for_done(tmp_path, monkeypatch, home, few_settings):
    cfg, cells = get_config("smoke"), [(3, 0)]
    dataset = data.load_dataset(cfg)
    audit_cifar.audits(cfg, cells, 1, dataset)
    kept = audit_cifar.record_of(dataset).read_bytes()
    other = dataclasses.replace(dataset, name="imgs")
    assert audit_cifar.lacking(cfg, cells, other) == cells
    assert audit_cifar.lacking(cfg, cells, dataset) == []
    same_name = dataclasses.replace(dataset, fingerprint="another")
    with pytest.raises(InputError, match=r"record-digits\.json is of other networks"):
        audit_cifar.audits(cfg, cells, 1, same_name)
    assert audit_cifar.record_of(dataset).read_bytes() == kept
    study_of = dataclasses.replace(dataset, name=audit_cifar.IMAGES)
    assert audit_cifar.record_of(study_of) == audit_cifar.RECORD


def test_the_record_of_photographs_is_of_the_networks_that_come_with_the_project():
    known = {folder.name for folder in audit_cifar.NETWORKS.iterdir()}
    record = files.read_json(audit_cifar.RECORD)
    assert record["data"] == audit_cifar.IMAGES
    assert {row["key"] for row in record["training"]} <= known
    prints = {files.read_json(path)["identity"]["data"]
              for path in audit_cifar.NETWORKS.glob("*/run.json")}  # fmt: skip
    cfg = get_config("cifar", device="cpu")
    part = measure.random_dataset(1)
    images = dataclasses.replace(part, name=audit_cifar.IMAGES, fingerprint=prints.pop())
    assert not prints
    assert audit_cifar.lacking(cfg, audit_cifar.CELLS, images) == []
    assert audit_cifar.lacking(cfg, audit_cifar.CELLS[:1], part) == [audit_cifar.CELLS[0]]


def test_trials_on_other_images_are_refused(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(tune_cifar, "RECORD", tmp_path / "tuning.json")
    assert tune_cifar.begun(dataset) == {"data": "digits"}
    files.write_json(tune_cifar.RECORD, {"data": "digits", "trials": {}})
    assert tune_cifar.begun(dataset)["data"] == "digits"
    with pytest.raises(InputError, match=r"tuning\.json are of digits"):
        tune_cifar.begun(dataclasses.replace(dataset, name="imgs"))
    files.write_json(tune_cifar.RECORD, {"trials": {}})  # written before records had the name
    with pytest.raises(InputError, match=r"are of CIFAR-10 \(JPEG\)"):
        tune_cifar.begun(dataset)
    photographs = dataclasses.replace(dataset, name=audit_cifar.IMAGES)
    assert tune_cifar.begun(photographs)["data"] == audit_cifar.IMAGES


def test_a_record_of_trials_keeps_its_date_unless_one_is_added(tmp_path, monkeypatch, dataset):
    kept = files.read_json(tune_cifar.RECORD)
    monkeypatch.setattr(tune_cifar, "RECORD", tmp_path / "cifar.json")
    files.write_json(tune_cifar.RECORD, kept)
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "home"))
    photographs = dataclasses.replace(dataset, name=audit_cifar.IMAGES)
    monkeypatch.setattr(tune_cifar, "load_dataset", lambda cfg: photographs)
    monkeypatch.setattr(tune_cifar, "take", lambda cfg: None)
    monkeypatch.setattr(sys, "argv", ["tune_cifar.py"])
    tune_cifar.main()
    assert files.read_json(tune_cifar.RECORD) == kept | {"data": audit_cifar.IMAGES}

    path = tmp_path / "digits.json"
    monkeypatch.setattr(tune_digits, "RECORD", path)
    recipe = tune_digits.TRAIN[0]
    files.write_json(path, {"trials": {}, "best": {}, "one_image": 0.01, "date": "then"})
    tune_digits.search("train", [recipe], lambda recipe: {"score": 0.5})
    record = files.read_json(path)
    assert record["date"] != "then"
    files.write_json(path, record | {"date": "then"})
    tune_digits.search("train", [recipe], lambda recipe: pytest.fail("it is known"))
    assert files.read_json(path)["date"] == "then"


def test_two_calls_of_a_search_lose_no_trial(tmp_path, monkeypatch):
    path = tmp_path / "digits.json"
    monkeypatch.setattr(tune_digits, "RECORD", path)
    files.write_json(path, {"one_image": 0.01})
    space = tune_digits.UNLEARN[:2]

    def score(recipe):
        """Score, while another call does the same recipe and another method."""
        for name in ("finetune", "lora"):
            tune_digits.search(name, [recipe], lambda _: {"score": 0.5, "retain": 0.0})
        return {"score": 0.25, "retain": 0.0}

    tune_digits.search("finetune", space, score)
    record = files.read_json(path)
    trials = {name: [trial["score"] for trial in done] for name, done in record["trials"].items()}
    assert trials == {"finetune": [0.5, 0.5], "lora": [0.5, 0.5]}
    assert record["best"].keys() == record["high"].keys() == {"finetune", "lora"}


@pytest.mark.parametrize(
    "content",
    [{"trials": []}, {"trials": {"train": [{}]}}, {"trials": {"train": 3}}, {"best": 3},
     {"trials": {"train": [{"recipe": {"lr": 0.1}}]}},
     {"trials": {"train": [{"recipe": {"speed": 1}, "score": 0.5}]}}],
)  # fmt: skip
def test_a_record_without_trials_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "record.json"
    files.write_json(path, content)
    with pytest.raises(
        files.FileProblem, match=r"record\.json: its trials have no .* score"
    ) as told:
        tune_digits.read(path)
    assert "\n" not in str(told.value)


def test_finished_audits_come_with_the_project_and_go_on_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_cifar, "AUDITS", tmp_path / "audits")
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "first"))
    cfg, cells = get_config("smoke", device="cpu"), [(3, 0), (5, 0)]
    dataset = data.load_dataset(cfg)
    audit_cifar.share_audits(cfg, cells, dataset)
    assert not (tmp_path / "audits").exists(), "nothing was audited yet"

    def kept(forget, folder=None):
        here = study.folder_of(cfg.but(forget=forget), dataset, audit_cifar.ORACLES)
        return (here if folder is None else folder / here.name) / "0-0.json"

    def put(path, *keys):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"key": key, "UA": 0.5} for key in keys]
        path.write_text(json.dumps({"rows": rows, "bands": {"UA": [0, 1, 0.5]}}))

    put(kept(3), "a", "b")
    audit_cifar.share_audits(cfg, cells, dataset)
    there = kept(3, tmp_path / "audits")
    assert json.loads(there.read_text()) == json.loads(kept(3).read_text())
    assert [*(tmp_path / "audits").rglob("*.*")] == [there], "and no lock"
    before = there.stat().st_mtime_ns
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path / "second"))
    put(kept(3), "b", "c")
    audit_cifar.share_audits(cfg, cells, dataset)
    for path in (kept(3), there):
        assert sorted(row["key"] for row in json.loads(path.read_text())["rows"]) == ["a", "b", "c"]
    assert there.stat().st_mtime_ns > before
    put(there, *"abc")
    before = there.stat().st_mtime_ns
    audit_cifar.share_audits(cfg, cells, dataset)
    assert there.stat().st_mtime_ns == before, "nothing new"
    there.write_text("{")
    with pytest.raises(files.FileProblem, match=r"0-0\.json"):
        audit_cifar.share_audits(cfg, cells, dataset)


def test_what_only_a_gpu_can_do_is_refused_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["images.py", "--quick", "graphs"])
    with pytest.raises(SystemExit):
        images.main()
    assert "only with --device cuda: graphs" in capsys.readouterr().err


def test_repeated_steps_are_timed_beside_plain_ones_and_compared(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda module, *_, **how: module)
    monkeypatch.setattr(recording, "possible", lambda device: True)
    monkeypatch.setattr(images, "DEVICE", "cpu")
    found = images.graphs({"digits_resnet": 8}, 8 * (recording.LEAST + 3), 1, 2)
    row = found["networks"]["digits_resnet"]
    assert row["apart"] == {"plain again": 0, "recorded": 0}
    assert [check["what"] for check in found["checks"]] == [
        "graphs, digits_resnet: seconds a step, recorded / plain"
    ]
    assert row["compared"]["n"] == 2
