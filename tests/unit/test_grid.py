from __future__ import annotations

import contextlib
import math
import threading

import pytest
import torch

from helpers import audit, data, grid, models, runs, statistics, study, training, unlearning
from helpers.config import InputError
from helpers.files import FileProblem
from helpers.grid import Point
from tests import grids


@pytest.fixture(scope="module")
def stored():
    return grid.Grid(grids.made())


POINT = Point("prunelora", 3, 8, 0.5)


# ------------------------------------------------------------------------------------------------
# looking up


def test_what_is_offered_is_what_was_measured(stored):
    assert stored.methods == ["prunelora", "prunelora_channels", "lora", "prune_finetune",
                              "finetune"]  # fmt: skip
    assert stored.classes == [3, 8]
    assert stored.seeds == {0: 0, 1: 1}
    assert stored.values("rank") == [1, 8]
    assert stored.values("sparsity", "lora") == []
    assert stored.values("rank", "prune_finetune") == []
    assert len(stored.points) == 2 * len(grids.PLACES)


def test_an_axis_that_a_method_lacks_plays_no_role(stored):
    assert stored.point("prunelora", 3, 8, 0.5) == POINT
    assert stored.point("lora", 3, 8, 0.5) == stored.point("lora", 3, 8, 0.0) == Point("lora", 3, 8)
    assert stored.point("finetune", 8, 1, 0.5) == Point("finetune", 8)
    assert len(stored.rows(Point("lora", 3, 8))) == 2
    assert str(POINT) == "prunelora, class 3, rank 8, sparsity 50 %"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("erase", 3, 8, 0.5), "method = 'erase' is not allowed: offered are prunelora"),
        (("original", 3, 8, 0.5), "method = 'original'"),
        (("prunelora", 4, 8, 0.5), "forget = 4 is not allowed: offered are 3, 8"),
        (("prunelora", 3, 2, 0.5), "rank = 2 is not allowed: offered are 1, 8"),
        (("prunelora", 3, 8, 0.25), r"sparsity = 0.25 is not allowed: offered are 0.0, 0.5"),
        (("prunelora", 3, "8", 0.5), "rank = '8'"),
    ],
)
def test_what_is_not_offered_is_refused(stored, values, message):
    with pytest.raises(InputError, match=message):
        stored.point(*values)


def test_a_study_without_a_grid_is_refused():
    whole = grids.made()
    for table in (whole.table.drop(columns="rank"), whole.table.iloc[:0]):
        with pytest.raises(InputError, match="a study with at least one row and the columns"):
            grid.Grid(study.Study(table, whole.bands, 5, {}))


@pytest.mark.parametrize("name", grid.AXES)
def test_text_in_the_place_of_a_rank_is_refused_where_the_record_is_read(name, tmp_path):
    whole = grids.made()
    table = whole.table.assign(**{name: "8.0"})
    study.save(study.Study(table, whole.bands, 5, {}), tmp_path / "grid.json")
    with pytest.raises(FileProblem, match=f"its column '{name}' holds '8.0', not a finite number"):
        study.load(tmp_path / "grid.json")


@pytest.mark.parametrize(
    "refused", ["prunelora", ["prunelora, 8: too large"], [{"method": "lora"}]]
)
def test_places_that_cannot_be_trained_are_listed_as_a_table(refused):
    whole = grids.made()
    with pytest.raises(
        InputError, match=r"refused of the record = .*: a list of method, rank, rea"
    ):
        grid.Grid(study.Study(whole.table, whole.bands, 5, {"refused": refused}))


def test_no_labels_at_all_are_no_shares():
    whole = grids.made()
    table = whole.table.assign(predicted=[[0] * 10] * len(whole.table))
    assert grid.Grid(study.Study(table, whole.bands, 5, {})).predicted(POINT) is None


def test_the_metrics_of_a_point_worked_out_by_hand(stored):
    rows = {row["name"]: row for row in stored.metrics(POINT, 1)}
    assert list(rows) == [name for name in audit.METRICS if name in grids.BAND]
    found = rows["TA"]
    assert found["value"] == pytest.approx(0.94)
    assert found["mean"] == pytest.approx(0.93)
    known = statistics.bootstrap([[0.92], [0.94]])
    assert found["low"] == pytest.approx(max(0, known.low))
    assert found["high"] == pytest.approx(min(1, known.high))
    assert (found["band"], found["inside"]) == ([0.9, 1.0], True)
    assert found["away"] == pytest.approx(0.2)  # 0.01 of 0.05 from the centre
    assert rows["head_refit"]["value"] == pytest.approx(0.6)
    assert rows["head_refit"]["inside"], "the edge belongs to the band"
    assert rows["relearn_steps"]["value"] == 6
    assert rows["relearn_steps"]["band"] == [8.0, None]
    assert rows["relearn_steps"]["inside"] is False
    assert rows["relearn_steps"]["away"] == pytest.approx(2)
    with pytest.raises(InputError, match="seed = 7 is not allowed: offered are 0, 1"):
        stored.metrics(POINT, 7)


def test_a_value_stands_beside_the_band_of_its_original():
    whole, wider = grids.made(), grids.BAND | {"TA": (0.5, 1.0, 0.75)}
    bands = {c: {0: grids.BAND, 1: wider} for c in grids.CLASSES}
    several = grid.Grid(study.Study(whole.table, bands, 5, whole.about))
    found = [{row["name"]: row["band"] for row in several.metrics(POINT, seed)} for seed in (0, 1)]
    assert [one["TA"] for one in found] == [[0.9, 1.0], [0.5, 1.0]]


def test_inside_agrees_with_the_study(stored):
    told = stored.study.inside()
    for point in stored.points:
        for seed in stored.seeds:
            rows = stored.rows(point)
            label = rows.index[rows["seed"] == seed][0]
            for row in stored.metrics(point, seed):
                value = told.loc[label, row["name"]]
                known = row["value"] is not None and value == value
                assert row["inside"] == (value if known else None)


def test_a_band_of_all_shares_decides_nothing():
    assert math.isnan(grid.away("UA", 0.5, (0.0, 1.0, 0.5)))
    assert grid.away("UA", 0.5, (0.0, 0.9, 0.5)) == 0
    assert math.isnan(grid.away("TV", 0.5, (-math.inf, 1.0, 0.0))), "of which 1 is the largest"
    assert grid.away("epsilon", 0.5, (-math.inf, 1.0, 0.0)) == 0.5, "which has no largest"


def test_a_point_that_does_not_exist_has_no_numbers(stored):
    gone = stored.point("prunelora_channels", 3, 8, 0.5)
    assert all(row["value"] is row["inside"] is row["mean"] is None
               for row in stored.metrics(gone, 0))  # fmt: skip
    assert stored.predicted(gone) is None
    assert stored.reason(gone) == "rank = 8 is not allowed: from 1 to 6"
    assert stored.reason(POINT) is None
    assert stored.reason(Point("prunelora_channels", 3, 1, 0.5)) is None, "of another rank"
    never = Point("lora", 3, 99)
    assert stored.rows(never).empty
    assert stored.predicted(never) is None
    assert stored.costs(never) == {}


def test_the_distance_counts_on_the_bad_side_alone():
    both, upper, lower = (0.0, 0.99, 0.4), (-math.inf, 0.6, 0.4), (8, math.inf, 10)
    assert grid.away("UA", 0.695, both) == pytest.approx(0.5)
    assert grid.away("UA", 0.2, both) == pytest.approx(0.5)
    assert grid.away("head_refit", 0.8, upper) == pytest.approx(2)
    assert grid.away("head_refit", 0.2, upper) == pytest.approx(-1)
    assert grid.away("relearn_steps", 4, lower) == pytest.approx(3)
    assert grid.away("UA", 1.0, (1.0, 1.0, 1.0)) == 0
    assert grid.away("UA", 0.99, (1.0, 1.0, 1.0)) == math.inf
    alike = (10.0, math.inf, 10.0)  # of oracles that all come back at the same step
    assert [grid.away("relearn_steps", n, alike) for n in (9, 10, 11)] == [math.inf, 0, -math.inf]


def test_one_seed_has_no_interval():
    assert grid.interval("TA", [0.9]) == (0.9, None, None)
    assert grid.interval("TA", [0.9, 0.9]) == (0.9, None, None), (
        "nothing tells how far they scatter"
    )
    assert grid.interval("TA", [math.nan]) == (None, None, None)
    mean, low, high = grid.interval("TA", [0.5, 1.0])
    assert (mean, low, high) == (0.75, 0.0, 1.0), "a share stays between 0 and 1"
    assert grid.interval("ZRF", [0.5, 1.0])[1:] == (0.0, 1.0)
    assert grid.interval("epsilon", [0.5, 1.0])[2] > 1


def test_labels_and_costs_are_means_over_seeds(stored):
    assert stored.predicted(POINT, 0)[5] == 30 / 40
    assert stored.predicted(POINT)[5] == 60 / 81
    assert sum(stored.predicted(POINT)) == pytest.approx(1)
    costs = stored.costs(POINT)
    assert costs["seconds"] == 1.0, "of the faster seed: other programs can only add to them"
    assert costs["zeros"] == 0.5
    assert "patch_bytes" not in stored.costs(Point("finetune", 3))


# ------------------------------------------------------------------------------------------------
# neighbours and fronts


@pytest.mark.parametrize(
    ("costs", "losses", "front"),
    [
        ([1, 2, 3, 4], [4, 2, 3, 1], [1, 1, 0, 1]),
        ([1, 1], [1, 1], [1, 1]),
        ([1, 1], [1, 2], [1, 0]),
        ([2, 1], [1, 1], [0, 1]),
        ([1], [math.inf], [1]),
        ([], [], []),
    ],
)
def test_the_pareto_front_worked_out_by_hand(costs, losses, front):
    assert grid.pareto(costs, losses).tolist() == [bool(f) for f in front]


def test_no_point_of_a_front_beats_another_and_every_other_is_beaten():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 12, (2, 60), generator=draw).tolist()
    front = grid.pareto(x, y)

    def beats(i, j):
        return x[i] <= x[j] and y[i] <= y[j] and (x[i], y[i]) != (x[j], y[j])

    for j in range(60):
        assert front[j] != any(beats(i, j) for i in range(60))


def test_the_surface_holds_the_points_of_one_method_and_class(stored):
    found = stored.surface("prunelora", 8, "head_refit")
    assert found[["rank", "sparsity"]].to_numpy().tolist() == [[1, 0], [1, 0.5], [8, 0], [8, 0.5]]
    assert found["mean"].tolist() == pytest.approx([0.8, 0.6, 0.8, 0.6])
    assert found["away"].tolist() == pytest.approx([2, 1, 2, 1])
    with pytest.raises(InputError, match="metric = 'IDI' is not allowed: measured are"):
        stored.surface("prunelora", 8, "IDI")


def test_the_tradeoff_knows_the_front(stored):
    table = stored.tradeoff(3, "head_refit", "gmacs")
    missing = stored.point("prunelora_channels", 3, 8, 0.5)
    assert {*table["point"]} == {p for p in stored.points if p.forget == 3} - {missing}
    front = {str(p) for p in table.loc[table["front"], "point"]}
    assert front == {"prune_finetune, class 3, sparsity 50 %"}, "cheapest and closest"
    assert stored.tradeoff(3, "head_refit", "macs")["cost"].unique().tolist() == [2.0], "millions"
    with pytest.raises(InputError, match="cost = 'joules' is not allowed: measured are utility, g"):
        stored.tradeoff(3, "head_refit", "joules")


def test_better_than_the_oracles_centre_is_no_reason_to_be_on_the_front():
    whole = grids.made()
    table = whole.table.assign(head_refit=0.3 - 0.01 * whole.table["rank"].fillna(0))
    found = grid.Grid(study.Study(table, whole.bands, 5, whole.about))
    shown = found.tradeoff(3, "head_refit", "gmacs")
    assert (shown["away"] < 0).all()
    assert shown["front"].tolist() == (shown["cost"] == shown["cost"].min()).tolist()


def test_what_the_other_classes_pay_is_a_distance_as_well(stored):
    assert stored.utility(POINT) == pytest.approx((0.6 + 0.2) / 2)  # 0.03 and 0.01 of 0.05
    assert stored.utility(POINT, 0.85) == pytest.approx(2)
    assert stored.utility(POINT, 0.0) == grid.FAR
    assert math.isnan(stored.utility(Point("lora", 3, 99)))
    table = stored.tradeoff(3, "head_refit", "utility")
    assert table["cost"].tolist() == pytest.approx([0.4] * len(table))
    assert table.loc[table["front"], "away"].unique().tolist() == pytest.approx([1.0])
    whole = grids.made()
    far = grid.Grid(study.Study(whole.table.assign(TA=0.0), whole.bands, 5, whole.about))
    assert {*far.tradeoff(3, "head_refit", "utility")["cost"]} == {grid.FAR}


def test_differences_are_live_minus_stored(stored):
    rows = grid.differences(stored.metrics(POINT, 0), {"TA": 0.90, "IDI": 1.0})
    found = {row["name"]: row for row in rows}
    assert found["TA"]["difference"] == pytest.approx(-0.02)
    assert found["TA"]["live"] == 0.90
    assert found["UA"]["live"] is found["UA"]["difference"] is None
    gone = stored.metrics(stored.point("prunelora_channels", 3, 8, 0.5), 0)
    only = next(row for row in grid.differences(gone, {"TA": 0.9}) if row["name"] == "TA")
    assert (only["live"], only["difference"]) == (0.9, None)


# ------------------------------------------------------------------------------------------------
# trained now


@pytest.fixture(scope="module")
def live(stored, cfg, dataset, original_run):
    said = []
    found = grid.train(stored, POINT, 0, cfg, dataset, threading.Event(),
                       lambda *what: said.append(what))  # fmt: skip
    return found, said


def test_a_live_point_is_what_the_method_makes(live, cfg, dataset, original_run):
    found, said = live
    own = cfg.but(method="prunelora", forget=3, rank=8, sparsity=0.5, seed=0)
    known = unlearning.unlearn(original_run.model(dataset), dataset, own)
    images = dataset.normalise(dataset.test.images)
    with torch.no_grad():
        assert torch.equal(found.networks["after"](images), known.model(images))
    assert found.metrics["UA"] == audit.evaluate(known.model, dataset, 3)["UA"]
    means = {name: grids.BAND[name][2] for name in audit.GAP_METRICS}
    assert found.metrics["Avg Gap"] == audit.average_gap(found.metrics, means)
    seen = [audit.look(network, dataset.split(3)) for network in
            (known.model, original_run.model(dataset))]  # fmt: skip
    judged = audit.against(seen[0], seen[:1], seen[1])
    alone = {
        "Avg Gap",
        "ToW",
        "TV",
        "JS",
        "activation",
        "CKA_forget",
        "CKA_retain",
        "IDI",
        "epsilon",
    }
    assert found.metrics.keys() == {*audit.METRICS} - alone | {"Avg Gap", "ToW"}
    for name in {*audit.METRICS} - alone:
        assert found.metrics[name] == pytest.approx(judged[name]), name
    assert found.costs["zeros"] == pytest.approx(0.5, abs=0.02)
    assert found.costs["trainable"] == known.trainable
    assert found.costs["patch_bytes"] > 0
    assert sum(found.predicted) == pytest.approx(1)
    steps = [(done, total) for what, done, total in said if what == "training"]
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1)), "every step is told"


def test_a_live_run_stops_after_the_step_and_keeps_nothing(stored, cfg, dataset, original_run):
    stop, steps = threading.Event(), []

    def say(what, done, total):
        steps.append(done)
        if what == "training" and done == 3:
            stop.set()

    with pytest.raises(training.Interrupted, match="stopped after 3 of"):
        grid.train(stored, POINT, 0, cfg, dataset, stop, say)
    assert steps[-1] == 3


def test_a_live_run_can_be_stopped_while_it_measures(stored, cfg, dataset, original_run):
    stop = threading.Event()

    def say(what, done, total):
        if what == "measuring":
            stop.set()

    with pytest.raises(training.Interrupted, match="while measuring"):
        grid.train(stored, POINT, 0, cfg, dataset, stop, say)


def test_a_live_point_in_paper_mode_is_what_a_run_makes(stored, cfg, dataset, original_run):
    paper = cfg.but(mode="paper")
    live = grid.train(stored, POINT, 0, paper, dataset, threading.Event())
    run = runs.run(POINT.of(paper, 0, 0), dataset, progress=False)
    assert models.fingerprint(live.networks["after"]) == models.fingerprint(run.model(dataset))
    assert {m: live.metrics[m] for m in audit.CLASSIC} == {m: run.metrics[m] for m in audit.CLASSIC}


def test_what_cannot_be_trained_is_refused_at_once(stored, cfg, dataset, original_run):
    with pytest.raises(InputError, match=r"earlier = \(8,\) is not allowed: \(\): a point"):
        grid.train(stored, POINT, 0, cfg.but(earlier=(8,)), dataset, threading.Event())
    with pytest.raises(InputError, match="rank = 999"):
        grid.train(stored, Point("lora", 3, 999), 0, cfg, dataset, threading.Event())
    with pytest.raises(InputError, match="seed = 5 is not allowed: offered are 0, 1"):
        grid.train(stored, POINT, 5, cfg, dataset, threading.Event())


def test_the_pictures_that_leak_most_come_first(live, dataset):
    found, _ = live
    worst = grid.leaking(found, dataset, 4)
    every = dataset.split(3).test_forget.images
    after = {"after": found.networks["after"]}
    shares = [row["after"][2] for row in grid.answers(after, every, 3, dataset)]
    mine = [row["after"][2] for row in grid.answers(after, worst, 3, dataset)]
    assert mine == pytest.approx(sorted(shares, reverse=True)[:4], rel=1e-5)
    for answer, top, _ in (row["after"] for row in grid.answers(after, worst, 3, dataset)):
        assert answer in dataset.classes
        assert 0 < top <= 1


def test_pictures_whose_answer_changed(live, dataset):
    found, _ = live
    moved = grid.changed(found, dataset)
    networks = {name: found.networks[name] for name in ("before", "after")}
    for row in grid.answers(networks, moved, 3, dataset):
        assert row["before"][0] != row["after"][0]
    same = grid.Live(POINT, 0, {}, {}, [], 0.0, dict.fromkeys(networks, networks["before"]))
    assert len(grid.changed(same, dataset)) == 0


def test_pictures_that_became_wrong_come_first(dataset, monkeypatch):
    part = dataset.split(3).test_retain
    before, after = part.labels.clone(), part.labels.clone()
    before[[2, 5]] = (part.labels[[2, 5]] + 1) % 10  # these become right
    after[[7, 9]] = (part.labels[[7, 9]] + 1) % 10
    answers = {"before": before, "after": after}
    monkeypatch.setattr(training, "predict", lambda network, *_: torch.eye(10)[answers[network]])
    live = grid.Live(POINT, 0, {}, {}, [], 0.0, {name: name for name in answers})
    for most in (8, 3, 1):
        assert torch.equal(grid.changed(live, dataset, most), part.images[[7, 9, 2, 5][:most]])


def test_a_live_run_starts_from_the_network_of_its_seed(cfg, dataset, monkeypatch):
    found, asked = grids.made(), []
    table = found.table.assign(original_seed=found.table["original_seed"] + 4)
    stored = grid.Grid(study.Study(table, found.bands, 5, found.about))

    def noted(one, method, seed, *_):
        asked.append((method, seed))
        if method == "original":
            raise training.Interrupted("that is all")

    monkeypatch.setattr(grid, "_reference", noted)
    with pytest.raises(training.Interrupted, match="that is all"):
        grid.train(stored, POINT, 1, cfg, dataset, threading.Event())
    live = grid.Live(POINT, 1, {}, {}, [], 0.0)
    grid.oracle(live, stored, cfg, dataset, threading.Event())
    assert asked == [("original", 5), ("retrain", 5)]


def test_the_wait_for_a_turn_is_not_counted(stored, cfg, dataset, monkeypatch):
    now, asked = [0.0], []

    @contextlib.contextmanager
    def late():
        now[0] += 100
        yield

    def reached(*_):
        raise training.Interrupted("that is all")

    monkeypatch.setattr(training, "in_turn", late)
    monkeypatch.setattr(grid.time, "perf_counter", lambda: asked.append(now[0]) or now[0])
    monkeypatch.setattr(grid, "_reference", reached)
    with pytest.raises(training.Interrupted):
        grid.train(stored, POINT, 0, cfg, dataset, threading.Event())
    assert asked[0] == 100


def test_without_bands_a_live_run_has_no_gap_to_them(cfg, dataset, original_run, monkeypatch):
    monkeypatch.setattr(audit, "steps_back", lambda seen, known: 100 * known)
    found = grids.made()
    stored = grid.Grid(study.Study(found.table, {}, 5, found.about))
    live = grid.train(stored, POINT, 0, cfg.but(epochs=1), dataset, threading.Event())
    assert {"TA", "head_refit"} < live.metrics.keys()
    assert not {"Avg Gap", "ToW"} & live.metrics.keys()
    part = dataset.split(3).test_forget
    logits = training.predict(original_run.model(dataset), part, dataset)
    right = float((logits.argmax(1) == part.labels).double().mean())
    assert live.metrics["relearn_steps"] == pytest.approx(100 * right)
    assert right > 0.5


def test_the_oracle_never_saw_the_class(live, stored, cfg, dataset):
    found, _ = live
    network = grid.oracle(found, stored, cfg, dataset, threading.Event())
    assert found.networks["oracle"] is network
    assert audit.evaluate(network, dataset, 3)["UA_test"] > 0.9


# ------------------------------------------------------------------------------------------------
# training in a thread


def test_a_training_is_watched_in_its_own_context_alone(cfg, dataset, split, original):
    stop, seen = threading.Event(), []
    recipe = cfg.but(epochs=1).unlearn
    with training.watched(stop, lambda done, total: seen.append((done, total))):
        training.fit(original, split.retain, dataset, recipe, seed=0)
    assert seen[-1][0] == seen[-1][1] == len(seen)
    stop.set()
    training.fit(original, split.retain, dataset, recipe, seed=0)  # outside: nobody stops it
    with training.watched(stop), pytest.raises(training.Interrupted, match="after 1 of"):
        training.fit(original, split.retain, dataset, recipe, seed=0)


# ------------------------------------------------------------------------------------------------
# pictures from outside


def encoded(image, kind="PNG"):
    import io

    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()


def test_a_picture_becomes_the_input_of_the_network(dataset):
    from PIL import Image

    side = dataset.train.images.shape[-1]
    white = Image.new("RGB", (40, 20), "white")
    for kind in ("PNG", "JPEG", "BMP"):
        found = data.decode(encoded(white, kind), dataset)
        assert found.shape == (1, *dataset.train.images.shape[1:])
        assert found.dtype == torch.uint8
        assert found.min() >= 254
    half = Image.new("L", (2 * side, 2 * side), 0)
    half.paste(255, (side, 0, 2 * side, 2 * side))
    pixels = data.decode(encoded(half), dataset)[0, 0]
    assert pixels[:, 0].tolist() == [0] * side
    assert pixels[:, -1].tolist() == [255] * side
    clear = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    assert data.decode(encoded(clear), dataset).min() == 255, "transparent is white"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken", b"%!PS-Adobe"])
def test_what_is_no_picture_is_refused_in_one_line(dataset, content):
    with pytest.raises(InputError, match=r"picture") as caught:
        data.decode(content, dataset)
    assert "\n" not in str(caught.value)


def test_pictures_that_are_too_large_are_refused(dataset, monkeypatch):
    from PIL import Image

    with pytest.raises(InputError, match="a file of 1 to 10,000,000 bytes"):
        data.decode(b"x" * 10_000_001, dataset)
    content = encoded(Image.new("1", (6000, 5000)))
    with pytest.raises(InputError, match=r"6000 x 5000 pixels.*at most 25,000,000 pixels"):
        data.decode(content, dataset)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)  # Pillow refuses twice as many
    with pytest.raises(InputError, match=r"over 20,000,000 pixels.*at most 25,000,000 pixels$"):
        data.decode(content, dataset)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_is_cut_off_is_not_told_about_formats(dataset, kind):
    from PIL import Image

    whole = encoded(Image.effect_noise((64, 64), 40), kind)
    with pytest.raises(InputError, match=r"cannot be read \(OSError: .*truncated.*\): ") as caught:
        data.decode(whole[: len(whole) // 2], dataset)
    assert "PNG" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read: allowed are PNG, JPEG"):
        data.decode(b"no image", dataset)
