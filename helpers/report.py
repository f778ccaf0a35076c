"""Records as text: the comparison table, for a terminal, a notebook or a README."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from helpers import audit, files, runs, statistics, study, unlearning
from helpers.config import check

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
# the small table: which methods, by which metrics
JUDGED = (
    "original", "retrain", "finetune@3", "lora", "prunelora", "prunelora, all blocks",
    "prunelora_channels", "logit_mask", "head_only", "prototype",
)  # fmt: skip
VERDICT = ("UA", "TA", "MIA", "linear_probe", "head_refit", "prototype_attack")
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
UNMEASURED = "not measured yet"
RANKED = ("finetune", "prune_finetune", "lora")  # by Avg Gap, in the paper

NOTE = (
    "UA, UA test: 1 - accuracy on training and test images of the forgotten class; RA, TA: "
    "accuracy on the other classes, training and test images; MIA-Eff.: share of the forget set "
    "that a membership attack calls unseen. Closer to retrain is better, not higher. Avg Gap "
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

    Source: :func:`helpers.study.difference`; Benjamini & Hochberg 1995, the false discovery rate.
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


def comparison() -> str:
    """Tell the classic numbers and the costs of every method on digits, forgetting one class.

    Returns:
        Markdown: a row a method, mean ± standard deviation over seeds, and where and when.

    Raises:
        FileProblem: If the record is missing or damaged.

    Source: ``results/comparison-cpu.json``, written by ``make results``.
    Lesson: 05_evaluation, "The comparison".
    """
    record = files.read_json(runs.results_folder() / "comparison-cpu.json", ("rows", "hardware"))
    table = markdown_table(cells(statistics.summary(audit.compare(record["rows"]))))
    return f"{table}\n{provenance(record)} {NOTE}\n"


def verdict() -> str:
    """Tell the digits' audit in one small table: the paper's methods, anchors and cheats.

    Returns:
        Markdown: a row a method, what the metrics say in a column each, and where and when.

    Raises:
        FileProblem: If a record is missing or damaged.

    Source: ``results/audit-digits.json`` and ``shadows-digits.json``, by
        ``benchmarks/audit_digits.py``.
    Lesson: 05_evaluation, "What we saw".
    """
    found = study.load(runs.results_folder() / "audit-digits.json")
    shadows = files.read_json(
        runs.results_folder() / "shadows-digits.json", ("methods", "forget", "targets")
    )
    means, inside = found.table.groupby("method")[[*VERDICT, "gmacs"]].mean(), found.inside()
    whole = inside.astype(float).groupby(found.table["method"]).mean()
    titles = [audit.METRICS[name].title for name in VERDICT]
    rows = [["", *(f"{title} %" for title in titles), "U-LiRA %", "GMACs"]]
    for name in JUDGED:
        told = [
            f"{100 * means[m][name]:.1f}{'' if whole[m][name] >= 0.5 else ' ✗'}" for m in VERDICT
        ]
        hits = shadows["methods"].get(name)
        hits = "–" if hits is None else f"{100 * hits['tpr']:.1f}"
        rows.append([f"`{name}`", *told, hits, f"{means['gmacs'][name]:.1f}"])
    seeds, classes = found.table["original_seed"].nunique(), len(found.bands)
    one = " and ".join(map(str, shadows["forget"]))
    return (
        f"{markdown_table(rows)}\nMean over {classes} classes x {seeds} training seeds; ✗: fewer "
        "than half of the networks lie where one more retrained network is expected (of those for "
        "which a value could lie elsewhere). U-LiRA: hits "
        f"at 1 % false alarms of an attack with many shadow networks, digit {one} alone, "
        f"{shadows['targets']} networks attacked. GMACs: 10^9 multiply-accumulates of pruning and "
        "training. `@3`: three epochs, which cost about what PruneLoRA costs. "
        f"{provenance(found.about)}\n"
    )


def methods() -> str:
    """List what each method does.

    Returns:
        Markdown: a row a method.

    Source: :data:`helpers.unlearning.METHODS`.
    Lesson: 04_class_unlearning, "A table of methods".
    """
    rows = [["method", "kind", "what it does"]]
    rows += [[f"`{k}`", m.family, m.summary] for k, m in unlearning.METHODS.items()]
    return markdown_table(rows, right=False)


def shadow_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out how well single images can be attacked.

    Args:
        record: From :func:`helpers.shadows.run`.

    Returns:
        One row a method, formatted: area under the curve with its interval over networks, true
        positives at 1 % false positives, KLoM and that of one half of the oracles to the other;
        above them how many networks there were.

    Source: this project.
    Lesson: 05_evaluation, "Example by example".
    """
    rows = {}
    for method, found in record["methods"].items():
        low, high = found["auc_interval"]
        rows[method] = {
            "U-LiRA AUC": f"{found['auc']:.2f} ({low:.2f} – {high:.2f})",
            "hits at 1 % false alarms": f"{found['tpr']:.1%}",
            "KLoM": f"{found['klom']:.1f}", "oracles' own": f"{found['klom_oracles']:.1f}",
        }  # fmt: skip
    about = "{networks} networks a method, {targets} attacked".format(**record)
    return pd.DataFrame(rows).T.rename_axis("method").rename_axis(about, axis="columns")


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


def savings() -> str:
    """Tell what removed channels, thin adapters and a frozen part computed once save.

    Returns:
        Markdown: one row for each ratio that was measured, and where.

    Raises:
        FileProblem: If the record is missing or damaged.

    Source: ``results/savings.json``, written by ``benchmarks/savings.py``.
    Lesson: 03_lora_adaptation, "The change belongs to the weight".
    """
    record = files.read_json(runs.results_folder() / "savings.json", ("sections", "hardware"))
    rows = [["measured", "network", "ratio", "lowest – highest"]]
    for name, section in record["sections"].items():
        for found in section["checks"]:
            # what was to be reached, and what masks and peft's own adapters do instead
            beside = "lowest" in found and ("mask_structured" in found["what"] or name == "forms")
            if not (found["limit"] or beside) or "difference" in found["what"]:
                continue
            span = f"{found['lowest']:.2f} – {found['highest']:.2f}" if "lowest" in found else ""
            network = section.get("model", "")  # the sections with several name them
            rows.append([found["what"], network, f"{found['measured']:.3g}", span])
    return f"{markdown_table(rows)}\n{provenance(record)} {record['about'].capitalize()}.\n"


def images() -> str:
    """Tell what PruneLoRA on colour images costs beside the way it is usually written.

    Returns:
        Markdown: one row for each ratio that was measured, with a column for each kind of device;
        where the time of a training step goes; how costs grow with the work; and where and when.
        Devices without a record are marked as not measured yet.

    Raises:
        FileProblem: If a record is damaged.

    Source: ``results/images-cpu.json`` and ``images-cuda.json``, by ``benchmarks/images.py``.
    Lesson: 00_start_here, "What it costs".
    """
    found = _by_device()
    sections = {device: record["sections"] for device, record in found.items()}
    tables = [_ratios(sections), *(_shares(device, s) for device, s in sections.items()),
              *(_growth(device, s) for device, s in sections.items())]  # fmt: skip
    return "\n".join([*filter(None, tables), _places(found), ""])


def limits() -> str:
    """Tell those of the ratios of :func:`images` that have a limit, and whether it is kept.

    Returns:
        Markdown: one row for each, with a column for each kind of device; and where and when.

    Raises:
        FileProblem: If a record is damaged.

    Source: ``results/images-cpu.json`` and ``images-cuda.json``, by ``benchmarks/images.py``.
    Lesson: 00_start_here, "What it costs".
    """
    found = _by_device()
    sections = {device: record["sections"] for device, record in found.items()}
    return "\n".join([*filter(None, [_ratios(sections, limited=True)]), _places(found), ""])


def _by_device() -> dict[str, dict[str, Any]]:
    """Read the records of ``benchmarks/images.py`` that there are, by kind of device."""
    paths = {device: runs.results_folder() / f"images-{device}.json" for device in DEVICES}
    return {device: files.read_json(path, ("sections", "hardware", "about"))
            for device, path in paths.items() if path.exists()}  # fmt: skip


def _places(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Say where and when each kind of device was measured, or that it was not."""
    return " ".join(_machines(name, found[d]) if d in found else f"{name}: {UNMEASURED}."
                    for d, name in DEVICES.items())  # fmt: skip


def _machines(name: str, record: Mapping[str, Any]) -> str:
    """Say where the sections of a record were measured; which of them where, if not all at once."""
    several: dict[str, list[str]] = {}
    for section, found in record["sections"].items():
        own = {key: found.get(key, record[key]) for key in ("date", "hardware", "versions")}
        several.setdefault(provenance(own), []).append(section)
    if len({text.split(" on ", 1)[1] for text in several}) < 2:  # the days may differ
        return f"{name}: {provenance(record)}"
    return " ".join(f"{name}, {', '.join(which)}: {text}" for text, which in several.items())


def _ratios(sections: Mapping[str, Mapping[str, Any]], limited: bool = False) -> str:
    """Lay out the ratios of the sections that compare, a column for each kind of device.

    All of them, or those alone that have a limit.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, (device, measured) in itertools.product(("batches", "epoch", "memory", "graphs"),
                                                      sections.items()):  # fmt: skip
        if name in measured:
            # where a section was measured, what it does not have is not what lacks; on a CPU
            # there is nothing to record
            others = {d: "–" for d, one in sections.items() if name in one or name == "graphs"}
            for found in measured[name]["checks"]:
                if limited and not found["limit"]:
                    continue
                row = rows.setdefault(found["what"], {"limit": found["limit"]} | others)
                span = f"{found['lowest']:.3g} – {found['highest']:.3g}"
                missed = " ✗" if found["met"] is False else ""
                row[device] = f"{found['measured']:.3g} ({span}){missed}"
    if not rows:
        return ""
    table = [["measured", "to be reached", *DEVICES.values()]]
    table += [[what, row["limit"].replace("<=", "≤").replace(">=", "≥"),
               *(row.get(device, UNMEASURED) for device in DEVICES)]
              for what, row in rows.items()]  # fmt: skip
    return markdown_table(table)


def _shares(device: str, sections: Mapping[str, Any]) -> str:
    """Lay out what training attains of a matrix product's speed, and where the rest goes."""
    if "peak" not in sections:
        return ""
    rows = [[f"training on the {DEVICES[device]}", "batch", "GFLOP/s", "share of a matrix product",
             "time goes to"]]  # fmt: skip
    for name, network in sections["peak"]["networks"].items():
        for precision, found in network.items():
            share, rates = found["share"], found["flops_per_second"]
            spent = [f"{kind} {part:.0%}" for kind, part in found["profile"].items() if part > 0.01]
            idle = f"; nothing computes in {1 - found['busy']:.0%} of it" if "busy" in found else ""
            rows.append([
                f"{name}, {precision}", str(found["batch"]),
                f"{median(rates) / 1e9:,.0f}",
                f"{share['ratio']:.2f} ({share['lowest']:.2f} – {share['highest']:.2f})",
                ", ".join(spent) + idle,
            ])  # fmt: skip
    return markdown_table(rows)


def _growth(device: str, sections: Mapping[str, Any]) -> str:
    """Lay out the exponents of cost against work, with their intervals."""
    if "cost" not in sections:
        return ""
    costs = {"seconds": "seconds", "bytes": "memory", "counted_bytes": "memory, counted"}
    rows = [[f"exponent on the {DEVICES[device]}, against", *costs.values()]]
    for work, laws in sections["cost"]["laws"].items():
        cells = [f"{law['exponent']:.2f} ({law['lowest']:.2f} – {law['highest']:.2f})"
                 if (law := laws.get(cost)) else "" for cost in costs]  # fmt: skip
        rows.append([work, *cells])
    return markdown_table(rows)


def audits() -> str:
    """Tell what the audit of all methods found.

    Returns:
        Markdown: for each method the share of its networks inside the oracles' band, by group of
        metrics; and where PruneLoRA stands against fine-tuning and retraining.

    Raises:
        FileProblem: If the record is missing or damaged.

    Source: ``results/audit-digits.json``, written by ``benchmarks/audit_digits.py``.
    Lesson: 05_evaluation, "The lie detector".
    """
    found = study.load(runs.results_folder() / "audit-digits.json")
    table = standing(found, "prunelora", OPPONENTS, found.metrics)
    words = [["prunelora, compared with", *table.columns]]
    words += [[str(metric), *row] for metric, row in table.iterrows()]
    seeds, oracles = found.table["original_seed"].nunique(), found.oracles
    return (
        f"{markdown_table(_inside_cells(found))}\n{finding(found)}\n{markdown_table(words)}\n"
        f"Mean over {len(found.bands)} classes x {seeds} training seeds; {oracles} oracles each. "
        "`@3`: three epochs in batches of 32, about as many steps as PruneLoRA's, tuned for that. "
        "Differences of the distances to the oracles' centre, above or below it, with their 95 % "
        "intervals over seeds and classes: below zero PruneLoRA is closer. Decided is what remains "
        "when on average at most one in twenty decisions of the table is wrong (false discovery "
        f"rate). Cost: multiply-accumulates of pruning and training. {provenance(found.about)}\n"
    )


def _inside_cells(found: study.Study) -> list[list[str]]:
    """Format the share of a method's networks inside the oracles' band, by group of metrics."""
    panel = study.panel(found)
    share = panel.pivot_table(index="method", columns="group", values="inside", sort=False)
    rows = [["inside the oracles' band, %", *share.columns]]
    return rows + [[name, *(f"{100 * v:.0f}" for v in row)] for name, row in share.iterrows()]


def photographs() -> str:
    """Tell what the audit on small photographs found, CIFAR-10 with ResNet-20.

    Returns:
        Markdown: the usual metrics of each method and class beside those of the oracles; the share
        of its networks inside the oracles' band, by group of metrics; how well the networks that
        everything starts from do; and where and when. Without a record, that there is none.

    Raises:
        FileProblem: If the record is damaged.

    Source: ``results/audit-cifar.json``, written by ``benchmarks/audit_cifar.py``.
    Lesson: 05_evaluation, "On photographs".
    """
    path = runs.results_folder() / "audit-cifar.json"
    if not path.is_file():
        return f"{UNMEASURED.capitalize()}.\n"
    record = files.read_json(path, ("rows", "columns", "bands", "settings", "training"))
    found = study.load(path)
    trained = {
        name: [row for row in record["training"] if row["method"] == name]
        for name in ("original", "retrain")
    }
    hours = sum(row["seconds"] for rows in trained.values() for row in rows) / 3600
    right = ", ".join(f"{100 * row['accuracy']:.2f} %" for row in trained["original"])
    cells = found.table.groupby("method")["forget"].size()
    several = " to ".join(map(str, sorted({cells.min(), cells.max()})))
    return (
        f"{markdown_table(_protocol_cells(record, _COUNTED))}\n"
        f"{markdown_table(_inside_cells(found))}\n"
        f"{record['data']}, {record['model']}. Networks unlearned with each method: {several}, "
        f"a class and a training seed each; {found.oracles} oracles a class (in their row the Avg "
        "Gap is that of each to the others, on average). Test accuracy of the originals: "
        f"{right}. TMACs: 10^12 multiply-accumulates. By the clock, with "
        f"other jobs beside it, training these and the oracles took {hours:.1f} hours of a core, "
        f"unlearning and its audits {record['core_seconds'] / 3600:.1f}. {provenance(record)}\n"
    )


def protocol() -> str:
    """Set our measurements at the paper's size, if there are any, beside the paper's numbers.

    Returns:
        Markdown: for each network the paper's table, as the paper's, and below it the rows of our
        own record, if there is one.

    Raises:
        FileProblem: If a record is damaged.

    Source: arXiv 2411.11907; ``results/protocol-cuda.json``, written by
        ``benchmarks/gpu/protocol.py``.
    Lesson: 05_evaluation, "The comparison".
    """
    folder = runs.results_folder()
    paper = files.read_json(folder / "paper.json", ("models", "source"))
    path = folder / "protocol-cuda.json"
    ours = files.read_json(path, ("models", "hardware")) if path.is_file() else None
    text = (
        "**The paper's numbers, none of them ours** (after 5 / 10 epochs; class cat, one run of "
        f"each, a T4; Avg Gap computed from them; {paper['source']}):\n"
    )
    lack = []
    for name, rows in paper["models"].items():
        text += f"\n{markdown_table(_paper_cells(name, rows))}"
        if ours and name in ours.get("classic", {}):
            text += f"\n{_trained(name, ours['classic'][name])}"
        if ours and name in ours["models"]:
            table = markdown_table(_protocol_cells(ours["models"][name], _MEASURED))
            text += f"\nOurs, {name}, audited:\n\n{table}"
        else:
            lack.append(name)
    if lack:
        why = "for want of hours on a GPU; `benchmarks/gpu/` would do it"
        text += f"\nNot measured here yet, {why}: the audit of {' and '.join(lack)}.\n"
    if ours is None:
        return text
    return f"{text}\n{provenance(ours)} Mean ± standard deviation over training seeds.\n"


def _trained(name: str, record: Mapping[str, Any]) -> str:
    """Tell the classic numbers of our networks of one kind, each beside the oracles of its class.

    As published, the oracles too are judged with the published second normalisation.
    """
    table = pd.DataFrame(record["rows"])
    table = table.drop_duplicates(["label", "mode", "forget", "seed"])
    first = table[(table["method"] == "original") & (table["mode"] == "default")]
    right = ", ".join(f"{100 * v:.2f} %" for v in first.groupby("seed")["accuracy"].first())
    shown = [[f"our {name}", "class", "judged", *(COLUMNS[m][0] for m in _WITH_GAP), "TMACs", "GB",
              "networks"]]  # fmt: skip
    for (mode, forget), view in table.groupby(["mode", "forget"], sort=False):
        oracles = view[view["method"] == "retrain"]
        middle = {m: oracles[m].mean() for m in audit.GAP_METRICS}
        for label, group in view.groupby("label", sort=False):
            gaps = pd.Series([audit.average_gap(row, middle) for row in group.to_dict("records")])
            cells = [_spread(100 * group[m]) for m in audit.GAP_METRICS]
            cells.append("–" if label == "retrain" or oracles.empty else _spread(100 * gaps))
            spent = [
                f"{group['gmacs'].mean() / 1e3:,.0f}",
                f"{group['memory_mb'].mean() / 1e3:.1f}",
            ]
            judged = "as published" if mode == "paper" else "as here"
            where = [record["classes"][int(forget)], judged]
            shown.append([label, *where, *cells, *spent, str(len(group))])
    unlearned = len(table[~table["method"].isin(["original", "retrain"])])
    none = "" if unlearned else " No method has been measured on it yet."
    return (
        f"Ours, {name} on {record['data']}, trained for {record['train']['epochs']} epochs; test "
        f"accuracy of the originals: {right}.{none}\n\n{markdown_table(shown)}"
    )


_WITH_GAP = (*audit.GAP_METRICS, "Avg Gap")


def _paper_cells(name: str, rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Format a table of the paper, both numbers of epochs in a cell."""
    made = [[f"the paper's {name}", *(COLUMNS[m][0] for m in _WITH_GAP), "s / epoch", "GB"]]
    for method, row in rows.items():
        both = [
            {m: row[m][i] for m in audit.GAP_METRICS} for i in range(len(row["UA"]))
        ]  # fmt: skip
        oracle = [{m: rows["retrain"][m][i] for m in audit.GAP_METRICS} for i in range(len(both))]
        for one, other in zip(both, oracle, strict=True):
            one["Avg Gap"] = audit.average_gap(one, other)
        shown = [" / ".join(f"{100 * one[m]:.2f}" for one in both) for m in _WITH_GAP]
        costs = (row["seconds_per_epoch"], row["memory_gb"])
        made.append([method, *shown, *("–" if c is None else f"{c:g}" for c in costs)])
    return made


# what a method's audits cost, from their rows and the number of epochs
_Costs = Mapping[str, Callable[[pd.DataFrame, int | None], str]]
_MEASURED: _Costs = {
    "s / epoch": lambda rows, epochs: f"{rows['seconds'].mean() / epochs:.1f}" if epochs else "–",
    "GB": lambda rows, _: f"{rows['memory_mb'].mean() / 1e3:.1f}",
}
_COUNTED: _Costs = {  # where several jobs share a machine, and seconds say nothing
    "TMACs": lambda rows, _: f"{rows['gmacs'].mean() / 1e3:.1f}",
    "trainable": lambda rows, _: f"{rows['trainable'].mean():,.0f}",
    "file kB": lambda rows, _: f"{rows['file_bytes'].mean() / 1e3:.0f}",
}


def _protocol_cells(record: Mapping[str, Any], costs: _Costs) -> list[list[str]]:
    """Format our rows: a method and a class in each, over the training seeds."""
    table = pd.DataFrame(record["rows"], columns=record["columns"])
    made = [["method", "class", *(COLUMNS[m][0] for m in _WITH_GAP), *costs, "seeds"]]
    names = dict(enumerate(record["classes"]))
    for forget, seeds in record["bands"].items():
        ends = next(iter(seeds.values()))  # of these metrics the same for every original
        center = [f"{100 * ends[m][2]:.2f}" for m in _WITH_GAP]
        oracles = f"{record['oracles']} oracles"
        without = ["–"] * len(costs)
        made.append(["retrain", names[int(forget)], *center, *without, oracles])
    for (method, forget), group in table.groupby(["method", "forget"], sort=False):
        epochs = record["settings"][method].get("epochs")
        shown = [_spread(100 * group[m].astype(float)) for m in _WITH_GAP]
        spent = [show(group, epochs) for show in costs.values()]
        made.append([method, names[forget], *shown, *spent, str(len(group))])
    return made


def _spread(values: pd.Series) -> str:
    if len(values) < 2:
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {values.std():.2f}"


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """Put texts between their markers, ``<!-- NAME -->`` and ``<!-- end NAME -->``.

    Args:
        text: What has the markers, each on a line of its own.
        blocks: Name -> what belongs there, ending with a newline; replaces what was there.

    Returns:
        The new text.

    Raises:
        InputError: If a marker is missing.

    Source: this project.
    Lesson: 00_start_here, "What it costs".
    """
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        check("text", name, start in text and end in text, f"needs {start.strip()} and {end}")
        before, rest = text.split(start, 1)
        text = f"{before}{start}{block}{end}{rest.split(end, 1)[1]}"
    return text


def render(root: Path) -> None:
    """Write the measured tables between their markers in the project's pages. In place.

    Args:
        root: The project's folder. ``README.md``, ``helpers/README.md`` and
            ``benchmarks/README.md`` in it have ``<!-- NAME -->`` and ``<!-- end NAME -->`` for
            what :data:`PAGES` puts there.

    Raises:
        InputError: If a marker is missing; then no page has changed.
        FileProblem: If a record is damaged or a page cannot be written.

    Source: the records in ``results/``.
    Lesson: 00_start_here, "What it costs".
    """
    pages = {}
    for name, blocks in PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        pages[root / name] = filled(text, {block: make() for block, make in blocks.items()})
    for path, text in pages.items():
        files.write_atomically(path, lambda part, text=text: part.write_text(text, "utf-8"))


# page -> marker -> what makes the text between
PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {
        "verdict": verdict, "budget": lambda: budget("all"), "comparison": comparison,
        "photographs": photographs, "protocol": protocol, "limits": limits,
    },
    "helpers/README.md": {"methods": methods, "glossary": glossary},
    "benchmarks/README.md": {"audits": audits, "savings": savings, "images": images},
}  # fmt: skip
