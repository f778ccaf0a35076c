"""Records as text: tables for a terminal, a notebook or a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from helpers import audit, files, runs, statistics, study

Format = Callable[[float], str]

# column -> (heading, how one number is printed)
COLUMNS: dict[str, tuple[str, Format]] = {
    "UA": ("UA %", lambda v: f"{100 * v:.1f}"),
    "UA_test": ("UA test %", lambda v: f"{100 * v:.1f}"),
    "RA": ("RA %", lambda v: f"{100 * v:.1f}"),
    "TA": ("TA %", lambda v: f"{100 * v:.1f}"),
    "MIA": ("MIA-Eff. %", lambda v: f"{100 * v:.1f}"),
    "Avg Gap": ("Avg Gap pp", lambda v: f"{100 * v:.2f}"),
    "ToW": ("ToW", lambda v: f"{v:.3f}"),
    "seconds": ("seconds", lambda v: f"{v:.2f}"),
    "trainable": ("trainable", lambda v: f"{v:,.0f}"),
    "memory_mb": ("memory MB", lambda v: f"{v:.1f}" if v else "–"),
    "gmacs": ("GMACs", lambda v: f"{v:.1f}"),
    "file_kb": ("file kB", lambda v: f"{v:.0f}"),
    "sparsity": ("sparsity %", lambda v: f"{100 * v:.1f}"),
}

# with what PruneLoRA is compared: at equal cost, and at the others' full cost
OPPONENTS = ("finetune@3", "finetune_sgd@3", "retrain@3", "finetune", "finetune_sgd", "retrain")
RANKED = ("finetune", "prune_finetune", "lora")  # by Avg Gap, in the paper

NOTE = (
    "UA, UA test: 1 - accuracy on training and test images of the forgotten class; RA, TA: "
    "accuracy on the other classes, training and test images; MIA-Eff.: share of the forget set "
    "that membership attacks call unseen. Closer to retrain is better, not higher. Avg Gap "
    "(percentage points) and ToW compare with the mean of the networks retrained with other seeds. "
    "Seconds and GMACs are those of pruning, edits and training, without attaching and merging "
    "adapters; memory is the peak of the training, with teachers and held copies; a dash stands "
    "where nothing was measured. "
    "Original and retrain have a recipe of their own, so compare these columns among the other "
    "methods. File: the final network's. Sparsity: zeros among the convolutions' weights; "
    "prunelora_channels has none: what others set to zero is gone."
)


def cells(summary: pd.DataFrame) -> list[list[str]]:
    """Format a summary of runs, mean ± standard deviation over seeds.

    Args:
        summary: From :func:`helpers.statistics.summary`.

    Returns:
        Rows of text; the first one is the heading.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    shown = {name: how for name, how in COLUMNS.items() if (name, "mean") in summary.columns}
    rows = [["method", *(heading for heading, _ in shown.values()), "seeds"]]
    for method, values in summary.iterrows():
        row = [str(method)]
        for name, (_, how) in shown.items():
            mean, sd = values[(name, "mean")], values[(name, "sd")]
            text = "–" if math.isnan(mean) else how(mean)
            if not math.isnan(sd) and name not in ("trainable", "memory_mb", "file_kb"):
                text += f" ± {how(sd)}"
            row.append(text)
        rows.append([*row, str(int(values[("n", "")]))])
    return rows


def audit_cells(record: Mapping[str, Any]) -> list[list[str]]:
    """Format an audit, one row a metric.

    Args:
        record: From :func:`helpers.audit.audit`.

    Returns:
        Rows of text; the first one is the heading.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """
    rows = [["metric", "value", "oracles' band", "original", "inside"]]
    for metric in record["metrics"]:
        name, (low, high) = metric["name"], metric["band"]
        ends = [audit.shown(name, v) if v is not None else "" for v in (low, high)]
        rows.append([
            metric["title"], audit.shown(name, metric["value"]), " – ".join(ends),
            audit.shown(name, metric["original"]), "yes" if metric["inside"] else "NO",
        ])  # fmt: skip
    return rows


def glossary() -> str:
    """Say in a line what each metric of an audit is, and which side of the band counts against it.

    Returns:
        Markdown, one row a metric of ``helpers.audit.METRICS``.

    Source: :mod:`helpers.audit`.
    Lesson: 05_evaluation, "The lie detector".
    """
    against = {"both": "both sides", "upper": "above", "lower": "below"}
    rows = [[m.group, m.title, m.what, against[m.side]] for m in audit.METRICS.values()]
    return markdown_table([["group", "metric", "what it is", "against it"], *rows], right=False)


def beside_bands(
    found: Mapping[str, Mapping[str, float]], bands: Mapping[str, statistics.Band], group: str
) -> pd.DataFrame:
    """Lay out the metrics of one group for several networks, each beside the oracles' band.

    Args:
        found: Network -> metric -> value, from :func:`helpers.audit.against`.
        bands: From :func:`helpers.audit.bands`.
        group: One of the groups of ``helpers.audit.METRICS``.

    Returns:
        One row a metric, formatted; ✗ marks what lies outside the band.

    Source: this project.
    Lesson: 05_evaluation, "What the features still know".
    """
    rows = {}
    for name, band in bands.items():
        if audit.METRICS[name].group != group:
            continue
        ends = [audit.shown(name, v) if math.isfinite(v) else "" for v in (band.low, band.high)]
        rows[audit.METRICS[name].title] = {"oracles' band": " – ".join(ends)} | {
            network: audit.shown(name, values[name]) + ("" if band.holds(values[name]) else " ✗")
            for network, values in found.items() if name in values
        }  # fmt: skip
    return pd.DataFrame(rows).T.fillna("")


def layer_table(
    seen: Mapping[str, audit.Look], oracles: Sequence[audit.Look], part: str = "forget"
) -> pd.DataFrame:
    """Lay out how alike the layers of several networks and of the oracles are.

    Args:
        seen: Network -> what was seen of it.
        oracles: What was seen of the oracles.
        part: ``forget`` or ``retain``: test images of the class, or of the others.

    Returns:
        One row a layer, from the first stage to the classifier's input: the lower end of the band
        that the oracles span among themselves, and the mean CKA of each network to them; ✗ marks
        what lies below the band.

    Source: :func:`helpers.audit.similarity`.
    Lesson: 05_evaluation, "What the features still know".
    """
    among = [audit.similarity(one, [o for o in oracles if o is not one])[part] for one in oracles]
    bands = [statistics.band(layer, side="lower") for layer in zip(*among, strict=True)]
    columns = {"oracles' band": [f"{band.low:.2f} –" for band in bands]}
    for name, one in seen.items():
        values = audit.similarity(one, oracles)[part]
        columns[name] = [f"{value:.2f}" + ("" if band.holds(value) else " ✗")
                         for value, band in zip(values, bands, strict=True)]  # fmt: skip
    stages = [f"stage {i}" for i in range(1, len(bands))]
    return pd.DataFrame(columns, index=[*stages, "features"]).rename_axis(f"CKA, {part}")


def standing(
    found: study.Study, method: str, others: Iterable[str], metrics: Iterable[str]
) -> pd.DataFrame:
    """Say metric by metric whether a method is closer to the oracles than others are.

    Args:
        found: The study.
        method: Name of the method.
        others: Names of the methods, or labels of the settings, to compare it with.
        metrics: Names of metrics.

    Returns:
        One column for each of the others. The first row is what it costs, in multiply-accumulates
        and as a multiple of the method's; then a row for each metric: the mean difference of the
        distances and its 95 % interval, and ``closer`` or ``further`` instead of ``undecided`` only
        where that holds among all comparisons of the table: at most 5 % of those that are decided
        are expected to be wrong, as long as comparisons that depend on each other go together.

    Raises:
        InputError: If one was not measured in every cell.

    Source: :func:`helpers.study.apart`; Benjamini & Hochberg 1995, the false discovery rate.
    Lesson: 05_evaluation, "The comparison".
    """
    from scipy.stats import false_discovery_control

    spent = found.table.groupby("method")["gmacs"].mean()
    cells = {(other, metric): study.apart(found, method, other, metric)
             for other in others for metric in metrics}  # fmt: skip
    chances = false_discovery_control([statistics.p_value(values) for values in cells.values()])
    columns = {other: {"cost": f"{spent[other] / spent[method]:.2f} x"} for other, _ in cells}
    for ((other, metric), values), chance in zip(cells.items(), chances, strict=True):
        d = statistics.bootstrap(values)
        word = "undecided" if chance > 0.05 else "closer" if d.mean < 0 else "further"
        columns[other][audit.METRICS[metric].title] = (
            f"{word} {d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f})"
        )
    return pd.DataFrame(columns).rename_axis(f"{method} is", axis="columns")


def mark(found: study.Study, method: str) -> pd.DataFrame:
    """Set a method on networks that never saw the class beside the same method on the originals.

    Args:
        found: A study with ``retrain``, the method, and it with :data:`helpers.study.NEVER` behind
            its name.
        method: Name of the method.

    Returns:
        One row a metric, formatted: the mean of retrained networks; what the method does to these,
        which is its mark and no memory; what it adds to that to have seen the class; and the mean
        of the method on originals, the sum of the three. Differences have 95 % intervals over
        seeds and classes, and ``*`` where zero lies outside.

    Raises:
        InputError: If one was not measured in every cell.

    Source: ``benchmarks/controls_digits.py``.
    Lesson: 05_evaluation, "The comparison".
    """
    never = method + study.NEVER
    first = found.table[found.table["repetition"] == 0]  # all that the differences are of
    means = first.groupby("method")[found.metrics].mean()
    rows = {}
    for name in found.metrics:
        mark, adds = (study.lead(found, *pair, name)
                      for pair in ((never, "retrain"), (method, never)))  # fmt: skip
        rows[audit.METRICS[name].title] = {
            "retrained": audit.shown(name, means[name]["retrain"]),
            "its mark": _signed(mark), "the class adds": _signed(adds),
            "in all": audit.shown(name, means[name][method]),
        }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis(method, axis="columns")


def _signed(d: statistics.Interval) -> str:
    return f"{d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f}){' *' * (d.low > 0 or d.high < 0)}"


def rates(found: study.Study, attacked: Mapping[str, Any]) -> pd.DataFrame:
    """Set the smallest of the equally good learning rates beside the largest.

    Args:
        found: A study with methods, and some of them with :data:`helpers.study.HIGH` behind the
            name.
        attacked: Method -> what U-LiRA found, for the same names.

    Returns:
        One row a method, formatted: means of some metrics, and hits of U-LiRA at 1 % false alarms,
        of either rate.

    Source: ``benchmarks/controls_digits.py``, ``tune_digits.py``.
    Lesson: 05_evaluation, "The comparison".
    """
    shown = _beside(found, study.HIGH)
    shown["U-LiRA hits"] = [
        f"{100 * attacked[one]['tpr']:.1f} % → {100 * attacked[one + study.HIGH]['tpr']:.1f} %"
        for one in shown.index
    ]
    return shown.rename_axis("smallest → largest rate", axis="columns")


def frozen(found: study.Study) -> pd.DataFrame:
    """Set PruneLoRA with BatchNorm that trains beside the same with BatchNorm as pruning left it.

    Args:
        found: A study with methods, and some of them with :data:`helpers.study.FROZEN` behind the
            name.

    Returns:
        One row a method, formatted: means of some metrics of either form.

    Source: ``benchmarks/controls_digits.py``.
    Lesson: 05_evaluation, "The comparison".
    """
    shown = _beside(found, study.FROZEN)
    return shown.rename_axis("BatchNorm trains → frozen", axis="columns")


def _beside(found: study.Study, suffix: str) -> pd.DataFrame:
    """Set methods beside those with something behind the name: means of some metrics."""
    metrics = ("TA", "activation", "CKA_forget", "linear_probe", "head_refit", "IDI",
               "prototype_attack", "epsilon")  # fmt: skip
    means, rows = found.table.groupby("method")[list(metrics)].mean(), {}
    for label in (one for one in found.methods if one.endswith(suffix)):
        both = label.removesuffix(suffix), label
        rows[both[0]] = {
            audit.METRICS[m].title: " → ".join(audit.shown(m, means[m][one]) for one in both)
            for m in metrics
        }
    return pd.DataFrame(rows).T


def finding(found: study.Study) -> str:
    """Sum up where PruneLoRA stands, and whether the paper's ranking holds here.

    Args:
        found: A study with PruneLoRA, those of ``OPPONENTS`` and those of ``RANKED``.

    Returns:
        Markdown: a list of sentences with the counts of verdicts, and those of the ranking with
        their intervals.

    Raises:
        InputError: If one was not measured in every cell.

    Source: arXiv 2411.11907, whose tables put PruneLoRA first by Avg Gap.
    Lesson: 05_evaluation, "The comparison".
    """
    table, lines = standing(found, "prunelora", OPPONENTS, found.metrics), []
    for other, column in table.items():
        count = {word: sum(text.startswith(word) for text in column.iloc[1:])
                 for word in ("closer", "further", "undecided")}  # fmt: skip
        lines.append(
            f"- compared with `{other}` ({column.iloc[0]} the cost): closer in {count['closer']}, "
            f"further in {count['further']}, undecided in {count['undecided']} of "
            f"{len(found.metrics)} metrics;"
        )
    ranks = standing(found, "prunelora", RANKED, ["Avg Gap"]).loc["Avg Gap"]
    word = "confirmed" if all(text.startswith("closer") for text in ranks) else "not confirmed"
    told = "; ".join(f"`{other}` {text}" for other, text in ranks.items())
    lines.append(
        f"- the paper's ranking, PruneLoRA first by Avg Gap, is {word} here: beside {told}."
    )
    return "Distance to the oracles, PruneLoRA\n\n" + "\n".join(lines) + "\n"


def shadow_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out how well single images can be attacked.

    Args:
        record: From :func:`helpers.shadows.run`.

    Returns:
        One row a method, formatted: area under the curve and true positives at 1 % false positives,
        each with its interval over networks, KLoM and that of one half of the oracles to the other;
        above them how many networks there were.

    Source: this project.
    Lesson: 05_evaluation, "Example by example".
    """
    rows = {}
    for method, found in record["methods"].items():
        low, high = found["auc_interval"]
        rows[method] = {
            "U-LiRA AUC": f"{found['auc']:.2f} ({low:.2f} – {high:.2f})",
            "hits at 1 % false alarms": _hits(found),
            "KLoM": f"{found['klom']:.1f}", "oracles' own": f"{found['klom_oracles']:.1f}",
        }  # fmt: skip
    about = "{networks} networks a method".format(**record)
    return pd.DataFrame(rows).T.rename_axis("method").rename_axis(about, axis="columns")


def _hits(found: Mapping[str, Any]) -> str:
    low, high = found["tpr_interval"]
    return f"{100 * found['tpr']:.1f} % ({100 * low:.0f} – {100 * high:.0f} %)"


def ledger_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay a ledger out for a person.

    Args:
        rows: From :func:`helpers.ledger.measure`.

    Returns:
        One row a stage, formatted: zeros, channels, parameters, multiply-accumulates of one image,
        size of the file, time of a batch, memory kept for its backward pass and in all.

    Source: this project.
    Lesson: 02_pruning, "The ledger".
    """
    table = {}
    for row in rows:
        table[row["stage"]] = {
            "zeros": f"{row['sparsity']:.1%}",
            "channels": f"{sum(row['channels'].values()):,}",
            "parameters": f"{row['parameters']:,}",
            "MACs (M)": f"{row['macs'] / 1e6:,.2f}",
            "file (kB)": f"{row['file_bytes'] / 1e3:,.0f}",
            f"ms for {row['batch']} images": f"{row['latency_ms']:.2f}",
            "kept for backward (kB)": f"{row['activations'] / 1e3:,.0f}",
            "training memory (kB)": f"{row['memory'] / 1e3:,.0f}",
        }
    return pd.DataFrame(table).T.rename_axis("stage")


def text_table(rows: Iterable[Iterable[str]]) -> str:
    """Lay rows out in columns of equal width.

    Args:
        rows: From :func:`cells`.

    Returns:
        Lines of text; numbers are aligned to the right.

    Source: this project.
    Lesson: 05_evaluation, "The comparison".
    """
    rows = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                  for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: Iterable[Iterable[str]], right: bool = True) -> str:
    """Write rows as a Markdown table.

    Args:
        rows: From :func:`cells`.
        right: Whether all columns but the first are numbers, which stand at the right.

    Returns:
        The table, ending in a line break.

    Source: GitHub-flavoured Markdown.
    Lesson: 05_evaluation, "The comparison".
    """
    head, *body = [list(row) for row in rows]
    lines = [head, ["---", *["---:" if right else "---"] * (len(head) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def provenance(record: Mapping[str, Any]) -> str:
    """Say in one line where and when a record was measured.

    Args:
        record: With the keys of :func:`helpers.runs.environment`.

    Returns:
        Hardware, versions and date.

    Source: every number stands beside its hardware, as in cifar10-airbench.
    Lesson: 00_start_here, "What it costs".
    """
    hardware, versions = record["hardware"], record["versions"]
    device = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} thread(s)"
    if "processes" in hardware:
        device += f", {hardware['processes']} processes"
    return (
        f"Measured {record['date'][:10]} on {device}; Python {versions['python']}, "
        f"torch {versions['torch']}, peft {versions['peft']}."
    )


def budget(notebook: str) -> str:
    """Tell what a notebook, or the whole series, takes: a table of what was measured.

    Args:
        notebook: Name of the notebook, without its suffix; ``all`` for the series.

    Returns:
        Markdown: one row for each preset and machine that was measured.

    Raises:
        FileProblem: If a record is damaged.

    Source: ``results/tutorial-*.json``, written by ``make results``.
    Lesson: 00_start_here, "What it costs".
    """
    rows = [["preset", "hardware", "minutes", "peak memory (MB)", "measured"]]
    for path in sorted(runs.results_folder().glob("tutorial-*.json")):
        record = files.read_json(path, ("costs", "hardware", "date"))
        costs = record["costs"]
        chosen = list(costs.values()) if notebook == "all" else [costs.get(notebook)]
        if None in chosen:
            continue  # a new notebook that was not measured with this preset yet
        rows.append([
            path.stem.removeprefix("tutorial-"),
            record["hardware"].get("gpu") or record["hardware"]["cpu"],
            f"{sum(c['seconds'] for c in chosen) / 60:.1f}",
            f"{max(c['peak_mb'] for c in chosen):.0f}",
            record["date"][:10],
        ])  # fmt: skip
    return markdown_table(rows)
