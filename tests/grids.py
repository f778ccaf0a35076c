"""A made-up grid: few points, numbers that can be worked out by hand."""

from __future__ import annotations

import math

import pandas as pd

from helpers import study

NAN = math.nan
RANKS, SPARSITIES, CLASSES, SEEDS = (1, 8), (0.0, 0.5), (3, 8), (0, 1)
# removed channels admit no rank 8 at half of them
GONE = {"method": "prunelora_channels", "rank": 8, "sparsity": 0.5,
        "reason": "rank = 8 is not allowed: from 1 to 6"}  # fmt: skip
ABOUT = {"data": "digits", "classes": [str(c) for c in range(10)], "refused": [GONE]}
# low, high, centre
BAND = {
    "UA": (0.9, 1.0, 0.95), "RA": (0.9, 1.0, 0.95), "TA": (0.9, 1.0, 0.95),
    "MIA": (0.9, 1.0, 0.95), "Avg Gap": (-math.inf, 0.1, 0.05),
    "head_refit": (0.0, 0.6, 0.4), "relearn_steps": (8.0, math.inf, 10.0),
}  # fmt: skip
PLACES = [
    *(("prunelora", r, s) for r in RANKS for s in SPARSITIES),
    *(("prunelora_channels", r, s) for r in RANKS for s in SPARSITIES if (r, s) != (8, 0.5)),
    *(("lora", r, NAN) for r in RANKS),
    *(("prune_finetune", NAN, s) for s in SPARSITIES),
    ("finetune", NAN, NAN),
]


def row(method, rank, sparsity, forget, seed):
    """One audit; more rank costs more, more sparsity recognises less of the class."""
    r, s = (0 if math.isnan(v) else v for v in (rank, sparsity))
    counts = [0] * 10
    counts[5], counts[9] = 30, 10 + seed
    return {
        "method": method, "forget": forget, "original_seed": seed, "seed": seed, "repetition": 0,
        "rank": rank, "sparsity": sparsity, "UA": 1.0, "RA": 0.95, "TA": 0.92 + 0.02 * seed,
        "MIA": 0.95, "Avg Gap": 0.02, "head_refit": 0.8 - 0.4 * s, "relearn_steps": 4.0 + 4 * s,
        "predicted": counts, "seconds": 1.0 + seed, "gmacs": 1.0 + r, "memory_mb": 4.0,
        "trainable": 1000 * r, "parameters": 70_000, "zeros": s, "channels": 100.0,
        "macs": 2e6, "file_bytes": 3e5, "patch_bytes": 1e4 if r else NAN,
    }  # fmt: skip


def made(preset="smoke"):
    """A whole grid, but for the place that cannot be trained."""
    rows = [row(*place, c, seed) for c in CLASSES for seed in SEEDS for place in PLACES]
    bands = {c: {seed: dict(BAND) for seed in SEEDS} for c in CLASSES}
    return study.Study(pd.DataFrame(rows), bands, 5, ABOUT | {"preset": preset})
