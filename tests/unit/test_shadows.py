from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from helpers import attacks, data, files, runs, shadows, study, training, unlearning
from helpers.config import InputError
from helpers.files import FileProblem

NETWORKS, IMAGES, GROUPS = 60, 40, 3


def margins(seed, mean=0.0, own=0.0):
    """(networks, images) of random margins; ``own`` moves all images of a network together."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(NETWORKS, IMAGES, generator=draw, dtype=torch.float64)
    return values + mean + own * torch.randn(NETWORKS, 1, generator=draw, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------
# the judgement


def test_networks_like_the_oracles_cannot_be_told_from_them():
    found = shadows._judge(margins(0), margins(1), GROUPS)
    low, high = found["auc_interval"]
    assert low < 0.5 < high
    assert low <= found["auc"] <= high
    assert high - low < 0.2, "or the test would say nothing"
    assert found["tpr"] < 0.1
    assert found["klom"] == pytest.approx(found["klom_oracles"], rel=0.25)


def test_networks_far_from_the_oracles_are_always_found():
    found = shadows._judge(margins(0, mean=30), margins(1), GROUPS)
    assert (found["auc"], found["tpr"]) == (1, 1)
    assert found["auc_interval"] == pytest.approx([1, 1], abs=1e-12)
    assert found["klom"] > 3 * found["klom_oracles"]
    same = shadows._judge(margins(0), margins(1), GROUPS)
    assert found["klom_oracles"] == same["klom_oracles"], "it is about the oracles alone"


def test_the_further_the_easier():
    found = [shadows._judge(margins(0, mean=m), margins(1), GROUPS) for m in (0, 0.5, 1, 2)]
    for name in ("auc", "tpr", "klom"):
        values = [one[name] for one in found]
        assert values == sorted(values), name


def by_hand(one, oracles):
    """Scores of all networks, where nothing about a network may be known to its attacker."""
    scores = []
    for attacked in (one, oracles):
        rows = []
        for network in range(NETWORKS):
            others = [n for n in range(NETWORKS) if n % GROUPS != network % GROUPS]
            known = one[others], oracles[others]
            rows.append(attacks.u_lira(*known, attacked[network : network + 1]))
        scores.append(torch.cat(rows).flatten())
    return scores


def test_each_number_is_what_its_parts_give():
    one, oracles = margins(0, mean=1), margins(1)
    found = shadows._judge(one, oracles, GROUPS)
    curve = attacks.roc(*by_hand(one, oracles))
    assert found["auc"] == curve.auc
    assert found["tpr"] == curve.tpr_at(0.01)
    # halves of equal size, the second one of the oracles for both
    wanted = attacks.klom(one[:30], oracles[30:]).mean(), attacks.klom(oracles[:30], oracles[30:])
    assert found["klom"] == pytest.approx(wanted[0].item())
    assert found["klom_oracles"] == pytest.approx(wanted[1].mean().item())


def test_of_an_odd_number_of_networks_the_halves_are_of_one_size():
    one, oracles = margins(0, mean=1)[:25], margins(1)[:25]
    found = shadows._judge(one, oracles, GROUPS)
    wanted = [attacks.klom(some[:12], oracles[12:24]).mean().item() for some in (one, oracles)]
    assert [found["klom"], found["klom_oracles"]] == pytest.approx(wanted)


def test_an_interval_of_few_networks_stays_within_its_range():
    positive, negative = margins(0, mean=1)[:4, :3], margins(1)[:4, :3]
    found = shadows._intervals(positive, negative, attacks.roc(positive.flatten(),
                                                               negative.flatten()))  # fmt: skip
    assert found["auc_interval"][1] == 1
    assert found["tpr_interval"][0] == 0
    assert 0 < found["auc_interval"][0] < 1


def test_the_interval_is_that_of_the_draws_moved_away_from_the_network_s_own_value():
    one, oracles = margins(0, mean=0.7, own=1), margins(1, own=1)
    positive, negative = shadows._attacked(one, oracles, GROUPS)
    mine = attacks.roc(positive.flatten(), negative.flatten())
    found = shadows._intervals(positive, negative, mine, repeats=40)
    draw, drawn = torch.Generator().manual_seed(0), []
    for _ in range(40):
        picks = [torch.randint(NETWORKS, (NETWORKS,), generator=draw) for _ in range(2)]
        drawn += [attacks.roc(positive[picks[0]].flatten(), negative[picks[1]].flatten())]
    for name, values, value in (
        ("auc", [one.auc for one in drawn], mine.auc),
        ("tpr", [one.tpr_at(0.01) for one in drawn], mine.tpr_at(0.01)),
    ):
        ends = np.quantile(values, [0.025, 0.975])
        assert found[f"{name}_interval"] == pytest.approx(
            (value + shadows.WIDER * (ends - value)).clip(0, 1)
        )


def test_which_networks_stand_together_hardly_matters():
    """All are attacked: the answer does not hang on their order, as it would for the last ones."""
    one, oracles = margins(0, mean=0.7, own=1), margins(1, own=1)
    orders = slice(None), torch.arange(NETWORKS).flip(0)
    found = [shadows._judge(one[o], oracles[o], g)["tpr"] for o in orders for g in (3, 4, 12)]
    low, high = shadows._judge(one, oracles, GROUPS)["tpr_interval"]
    assert max(found) - min(found) < (high - low) / 3
    assert low <= min(found) <= max(found) <= high


def test_the_curve_is_short_rises_and_is_plain_data():
    found = shadows._judge(margins(0, mean=0.5), margins(1), GROUPS)
    false, true = found["roc"]
    assert len(false) == len(true) <= shadows.POINTS
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert false == sorted(false)
    assert true == sorted(true)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_interval_is_over_networks_not_images():
    """Where a network's images hang together, 60 networks are not 2,400 observations."""
    one, oracles = margins(0, own=3), margins(1, own=3)
    found = shadows._judge(one, oracles, GROUPS)
    low, high = attacks.auc_interval(*by_hand(one, oracles))
    assert found["auc_interval"][1] - found["auc_interval"][0] > 1.5 * (high - low)
    assert found["auc_interval"][0] < 0.5 < found["auc_interval"][1]


@pytest.mark.parametrize(("mean", "own"), [(0, 1), (0.8, 1), (1.5, 0.5)])
def test_how_often_the_interval_holds_what_other_networks_would_give(mean, own):
    """The attacker's networks are drawn again, too: what is right on average is known from all."""
    found = []
    for seed in range(60):
        one, oracles = margins(2 * seed, mean=mean, own=own), margins(2 * seed + 1, own=own)
        positive, negative = shadows._attacked(one, oracles, GROUPS)
        curve = attacks.roc(positive.flatten(), negative.flatten())
        ends = shadows._intervals(positive, negative, curve, repeats=60)["auc_interval"]
        found.append((curve.auc, *ends))
    auc, low, high = torch.tensor(found, dtype=torch.float64).T
    held = ((low <= auc.mean()) & (auc.mean() <= high)).double().mean()
    assert held > 0.85
    short = [auc + (end - auc) / shadows.WIDER for end in (low, high)]
    bare = ((short[0] <= auc.mean()) & (auc.mean() <= short[1])).double().mean()
    assert bare < held, "or it is wider for nothing"


@pytest.mark.parametrize(
    ("networks", "groups", "message"),
    [(18, 6, "oracles|unlearned"), (24, 1, "'0 scores' is not allowed: at least one")],
)
def test_a_judgement_on_too_few_networks_is_refused(networks, groups, message):
    with pytest.raises(InputError, match=message):
        shadows._judge(margins(0)[:networks], margins(1)[:networks], groups)


def test_a_margin_that_is_not_finite_is_refused():
    broken = margins(0)
    broken[3, 5] = float("nan")
    with pytest.raises(InputError, match="finite"):
        shadows._judge(broken, margins(1), GROUPS)


# ------------------------------------------------------------------------------------------------
# all networks


@pytest.fixture
def made_up(monkeypatch):
    """Margins without training: each method has a mean of its own."""
    asked, mean = [], {"retrain": 0.0, "original": 30.0, "lora": 0.0}

    def margin(cfg, fingerprint):
        asked.append((cfg.method, cfg.rank, cfg.seed))
        draw = torch.Generator().manual_seed(100 * cfg.seed + len(cfg.method))
        return torch.randn(30, generator=draw, dtype=torch.float64) + mean[cfg.method]

    monkeypatch.setattr(shadows, "_margin", margin)
    return asked


def test_every_method_gets_its_own_networks(cfg, made_up):
    record = shadows.run(cfg, ["original", "retrain"], 24, 10, progress=False)
    wanted = {(name, cfg.rank, seed) for name in ("original", "retrain") for seed in range(24)}
    wanted |= {("retrain", cfg.rank, study.ORACLE_SEED + seed) for seed in range(24)}
    assert sorted(made_up) == sorted(wanted)
    assert [*record["methods"]] == ["original", "retrain"]
    assert record["methods"]["original"]["auc"] == 1
    assert 0.3 < record["methods"]["retrain"]["auc"] < 0.7
    facts = {k: record[k] for k in ("forget", "networks", "groups", "images")}
    assert facts == {"forget": [3], "networks": 24, "groups": 10, "images": 30}
    assert record.keys() >= runs.environment().keys()
    json.dumps(record, allow_nan=False)


def test_afterwards_other_folders_have_homes_of_their_own(cfg, made_up, tmp_path, monkeypatch):
    monkeypatch.delenv("HELPERS_HOME")
    monkeypatch.chdir(tmp_path)
    shadows.run(cfg, ["lora"], 20, 5, progress=False)
    assert "HELPERS_HOME" not in os.environ


def test_a_method_can_be_attacked_in_several_settings(cfg, made_up):
    changes = {f"rank {r}": {"method": "lora", "rank": r} for r in (1, 2)}
    record = shadows.run(cfg, changes, 20, 5, progress=False)
    assert [*record["methods"]] == ["rank 1", "rank 2"]
    asked = {one for one in made_up if one[0] == "lora"}
    assert asked == {("lora", r, seed) for r in (1, 2) for seed in range(20)}
    with pytest.raises(InputError, match="seed"):
        shadows.run(cfg, {"one": {"method": "lora", "seed": 3}}, 20, 5, progress=False)


def test_one_original_for_all_networks_is_refused(cfg, made_up):
    """What originals differ in would be missing among the shadows."""
    with pytest.raises(InputError, match="original_seed = 0 is not allowed: none"):
        shadows.run(cfg.but(original_seed=0), ["lora"], 20, 5, progress=False)
    assert not made_up


@pytest.mark.parametrize(
    ("networks", "groups", "methods", "message"),
    [
        (19, 5, ["original"], "networks = 19 is not allowed: at least 20"),
        (20, 1, ["original"], "groups = 1 is not allowed: from 2 to 20"),
        (20, 21, ["original"], "groups = 21 is not allowed: from 2 to 20"),
        (1001, 5, ["original"], "networks = 1001 is not allowed: at most 1,000"),
        (20, 5, ["erase"], "known are original, retrain"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_training(
    cfg, made_up, networks, groups, methods, message
):
    with pytest.raises(InputError, match=message):
        shadows.run(cfg, methods, networks, groups, progress=False)
    assert not made_up


@pytest.fixture
def tiny(cfg):
    return cfg.but(train=dataclasses.replace(cfg.train, epochs=2), train_limit=30)


def margin(one):
    return shadows._margin(one, data.load_dataset(one).fingerprint)


def test_margins_are_kept_and_read_back(tiny, home, monkeypatch):
    asked = {name: tiny.but(method=name) for name in ("retrain", "original", "logit_mask")}
    asked["oracles"] = asked["retrain"].but(seed=study.ORACLE_SEED)
    found = {name: margin(one) for name, one in asked.items()}
    assert all(values.shape == (30,) for values in found.values())
    assert not torch.equal(found["oracles"], found["retrain"]), "two sets of networks"
    assert found["original"].mean() > found["oracles"].mean(), "it was trained on them"
    assert found["logit_mask"].max() < -1000
    kept = sorted((home / "artifacts" / "shadows").iterdir())
    assert len(kept) == len(asked)
    monkeypatch.setattr(unlearning, "unlearn", lambda *_, **__: pytest.fail("trained again"))
    for name, one in asked.items():
        assert torch.equal(margin(one), found[name])
    for path in kept:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FileProblem, match=r"\.safetensors"):
        margin(asked["oracles"])
    good = found["oracles"]
    others = (good[:3], good * torch.nan, good.float(), good[:, None])
    for wrong in ({"weights": good}, *({"margins": other} for other in others)):
        for path in kept:
            files.save_tensors(path, wrong)
        with pytest.raises(FileProblem, match="no margins of 30 images"):
            margin(asked["oracles"])


def test_one_network_has_margins_of_its_own_for_each_class(tiny, home, dataset):
    asked = [tiny.but(method="original", forget=forget) for forget in (3, 4)]
    first, other = (runs.identity(one, dataset.fingerprint) for one in asked)
    assert first == other, "the original of both"
    assert shadows._path(asked[0], dataset) != shadows._path(asked[1], dataset)


def test_paper_mode_judges_with_the_published_normalisation(tiny, home):
    paper = tiny.but(mode="paper")
    found = [margin(one.but(method="retrain")) for one in (tiny, paper)]
    dataset = data.load_dataset(tiny)
    fed = runs.as_evaluated(dataset, paper)
    model = unlearning.unlearn(None, dataset, tiny.but(method="retrain")).model
    for seen, images in zip(found, (dataset, fed), strict=True):
        part = images.split(3).forget
        wanted = attacks.scaled_logit(training.predict(model, part, images), part.labels)
        assert torch.allclose(seen, wanted, atol=1e-3)
    assert (found[0] - found[1]).abs().max() > 0.1, "one network, two normalisations"
    tuned = paper.but(method="finetune", epochs=1)  # which trains with the published one, too
    part, model = fed.split(3).forget, runs.run(tuned, dataset, progress=False).model(dataset)
    wanted = attacks.scaled_logit(training.predict(model, part, fed), part.labels)
    assert torch.allclose(margin(tuned), wanted, atol=1e-3)


def test_margins_are_those_of_the_network_that_the_configuration_starts_from(
    tiny, home, monkeypatch
):
    real, started = runs.run, []
    monkeypatch.setattr(runs, "run", lambda cfg, *rest, **how: started.append(cfg) or real(
        cfg, *rest, **how))  # fmt: skip
    margin(tiny.but(method="logit_mask", seed=5, original_seed=1))
    assert [(one.method, one.seed) for one in started] == [("original", 1)]
    started.clear()
    again = tiny.but(method="logit_mask", forget=5, seed=5, earlier=(8,), original_seed=1)
    margin(again)
    assert (started[0].method, started[0].forget, started[0].earlier) == ("logit_mask", 8, ())


def test_images_that_change_meanwhile_are_not_mixed_with_the_others(tiny, home, monkeypatch):
    monkeypatch.setattr(unlearning, "unlearn", lambda *_, **__: pytest.fail("trained"))
    first = data.load_dataset(tiny)
    loaded = iter([first, dataclasses.replace(first, fingerprint="of others")])
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: next(loaded))
    with pytest.raises(InputError, match=r"the images changed while .*; run the same again"):
        shadows.run(tiny, ["lora"], 40, progress=False)


def test_a_worker_that_dies_is_told_in_one_line(cfg, home, monkeypatch):
    monkeypatch.setattr(shadows, "_job", lambda *_: os._exit(1))
    with pytest.raises(ChildProcessError, match=r"a worker died: .* fewer --workers"):
        shadows.run(cfg, ["lora"], 40, workers=2, progress=False)
