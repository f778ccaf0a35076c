"""Attacks on single images: many networks that forgot, many that never saw the class.

U-LiRA and KLoM ask of each image of the forget set how its margin is distributed over networks.
That takes tens of networks for each method, so it is done on small networks and one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import attacks, bars, data, files, frozen, runs, study, unlearning
from helpers.config import RunConfig, at_home, check, home
from helpers.training import predict

POINTS = 60  # of a ROC curve that are kept
FALSE = 0.01  # rate of false alarms at which hits are counted
WIDER = 1.6  # what makes the intervals hold as often as they say, in simulations


def run(
    cfg: RunConfig,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    networks: int = 32,
    groups: int = 8,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Attack the networks of several methods image by image; go on where it was stopped.

    Args:
        cfg: Gives the class, the data, the network and the recipes.
        methods: Names of methods, ``retrain`` for the reference; or label -> changes to the
            configuration, as :func:`helpers.study.settings` takes them.
        networks: Trained for each method, every one from an original of its own; and as many
            oracles.
        groups: All networks are attacked, in so many groups, each with those of the others as the
            attacker's shadows.
        workers: Processes.
        progress: Whether to show a bar.

    Returns:
        A record of plain data: for each method the area under the ROC curve and the true positive
        rate at 1 % false positives, each with its interval, points of the curve, and KLoM with half
        of the networks; ``retrain`` gives what a further set of oracles has in their place.

    Raises:
        InputError: If there are too few networks, a configuration cannot be run, or the images
            change meanwhile.
        FileProblem: If a kept file is damaged or cannot be written.
        ChildProcessError: If a worker dies.

    Source: Hayes et al. 2024 (arXiv 2403.01218), U-LiRA; Georgiev et al. 2024 (arXiv 2410.23232),
        KLoM.
    Lesson: 05_evaluation, "Example by example".
    """
    from joblib import Parallel, delayed

    least = 2 * attacks.LEAST  # before anything is trained: KLoM compares halves
    check("networks", networks, networks >= least, f"at least {least}")
    check("networks", networks, networks <= study.ORACLE_SEED, f"at most {study.ORACLE_SEED:,}")
    check("groups", groups, 2 <= groups <= networks, f"from 2 to {networks}")
    own = cfg.original_seed is None
    check("original_seed", cfg.original_seed, own, "none: each network has an original of its own")
    unlearning.set_threads(cfg)  # as every worker does: the record says how many
    dataset = data.load_dataset(cfg, progress)
    points = study.settings(cfg, methods)
    for point in points.values():
        unlearning.validate(point, dataset)
    # "retrain" among the methods is another set of networks that never saw the class
    wanted = [
        one for s in range(networks)
        for one in (cfg.but(method="retrain", seed=study.ORACLE_SEED + s),
                    *(point.but(seed=s) for point in points.values()))
    ]  # fmt: skip
    each = 1 + len(points)
    jobs = [delayed(_job)(str(home()), one, dataset.fingerprint) for one in wanted]
    pool = Parallel(n_jobs=workers, return_as="generator", batch_size=each)
    with study.deaths_told():
        every = list(bars.show(pool(jobs), "networks", total=len(jobs), disable=not progress))
    oracles, *margins = (torch.stack(every[i::each]) for i in range(each))
    found = {name: _judge(one, oracles, groups) for name, one in zip(points, margins, strict=True)}
    return {
        "forget": list(cfg.forgotten), "networks": networks, "groups": groups,
        "images": oracles.shape[1], "methods": found, **runs.environment(cfg.device),
    }  # fmt: skip


def _job(place: str, cfg: RunConfig, fingerprint: str) -> Tensor:
    """Do one network in a process of its own, or in the caller's."""
    with at_home(place):
        return _margin(cfg, fingerprint)


def _margin(cfg: RunConfig, fingerprint: str) -> Tensor:
    """Train one network, or read its margins back: (images of the forget set,) float64."""
    unlearning.set_threads(cfg)
    dataset = data.load_same(cfg, fingerprint)
    path = _path(cfg, dataset)
    if path.is_file():
        kept, images = files.load_tensors(path)[0], len(dataset.split(cfg.forgotten).forget)
        found = kept.get("margins", torch.empty(0))
        ok = (found.shape, found.dtype) == ((images,), torch.float64)
        if not (ok and bool(found.isfinite().all())):
            lack = f"it holds no margins of {images:,} images, finite numbers of 64 bits"
            raise files.FileProblem(files.cannot_read(path, lack))
        return found
    original = None
    if (first := runs.before(cfg)) is not None:
        original = runs.run(first, dataset, progress=False).model(dataset)
    cache = frozen.Cache(cfg.cache_mb * 1_000_000)
    model = unlearning.unlearn(original, runs.as_trained(dataset, cfg), cfg, cache=cache).model
    dataset = runs.as_evaluated(dataset, cfg)
    forget = dataset.split(cfg.forgotten).forget
    margins = attacks.scaled_logit(predict(model, forget, dataset), forget.labels)
    files.save_tensors(path, {"margins": margins})
    return margins


def _path(cfg: RunConfig, dataset: data.Dataset) -> Path:
    # what starts from scratch is the same network in both modes, and judged otherwise
    plain = [runs.identity(cfg, dataset.fingerprint), list(cfg.forgotten), cfg.mode]
    key = files.digest_json(plain)[:16]
    return home() / "artifacts" / "shadows" / f"{key}.safetensors"


def _judge(margins: Tensor, oracles: Tensor, groups: int) -> dict[str, Any]:
    """Attack all networks of two sets, group by group, with the help of the other groups.

    Where a few of them alone are attacked the answer hangs on which ones these are. ``klom``
    takes half as many networks of each set: as many as ``klom_oracles`` has on each side.

    Source: Hayes et al. 2024 (arXiv 2403.01218); Georgiev et al. 2024 (arXiv 2410.23232).
    """
    half = len(oracles) // 2
    positive, negative = _attacked(margins, oracles, groups)
    curve = attacks.roc(positive.flatten(), negative.flatten())
    places = torch.linspace(0, len(curve.fpr) - 1, min(POINTS, len(curve.fpr))).long()
    return {
        "auc": curve.auc, "tpr": curve.tpr_at(FALSE), **_intervals(positive, negative, curve),
        "roc": [[round(v, 4) for v in rates[places].tolist()] for rates in (curve.fpr, curve.tpr)],
        "klom": attacks.klom(margins[:half], oracles[half : 2 * half]).mean().item(),
        "klom_oracles": attacks.klom(oracles[:half], oracles[half : 2 * half]).mean().item(),
    }  # fmt: skip


def _attacked(margins: Tensor, oracles: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Score every network by an attack that knows none of its group."""
    sets = margins, oracles
    scores = torch.empty_like(margins), torch.empty_like(oracles)
    for group in range(groups):
        own = [torch.arange(len(s)) % groups == group for s in sets]
        known = [s[~mine] for s, mine in zip(sets, own, strict=True)]
        for of, s, mine in zip(scores, sets, own, strict=True):
            of[mine] = attacks.u_lira(*known, s[mine])
    return scores


def _intervals(
    positive: Tensor, negative: Tensor, curve: attacks.Roc, repeats: int = 500
) -> dict[str, list[float]]:
    """Bootstrap over the networks attacked, not over the images, which hang together.

    What the attacker learned stays as it is, though other networks would have taught him something
    else: by itself that holds the truth in seven to nine of ten cases, so the ends are moved away.
    """
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(repeats):
        chosen = (torch.randint(len(g), (len(g),), generator=draw) for g in (positive, negative))
        one, other = (g[c].flatten() for g, c in zip((positive, negative), chosen, strict=True))
        drawn = attacks.roc(one, other)
        found.append([drawn.auc, drawn.tpr_at(FALSE)])
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    ends = torch.tensor(found, dtype=torch.float64).quantile(tails, dim=0)
    mine = torch.tensor([curve.auc, curve.tpr_at(FALSE)], dtype=torch.float64)
    ends = (mine + WIDER * (ends - mine)).clamp(0, 1)
    return {"auc_interval": ends[:, 0].tolist(), "tpr_interval": ends[:, 1].tolist()}
