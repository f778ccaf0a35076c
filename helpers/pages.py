"""The measured tables of the project's pages: made from records, put between markers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from helpers import audit, files, report, runs, statistics, study, unlearning
from helpers.config import check
from helpers.report import COLUMNS, markdown_table, provenance

# the small table: which methods, by which metrics
JUDGED = (
    "original", "retrain", "finetune", "finetune@3", "lora", "prunelora", "prunelora, all blocks",
    "prunelora_channels", "logit_mask", "head_only", "prototype",
)  # fmt: skip
VERDICT = ("UA", "TA", "MIA", "head_refit", "inner_refit", "prototype_attack")
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
UNMEASURED = "not measured yet"


def _comparison() -> str:
    """Tell the classic numbers and the costs of every method on digits, forgetting one class.

    Source: ``results/comparison-cpu.json``, written by ``make results``.
    """
    record = files.read_json(runs.results_folder() / "comparison-cpu.json", ("rows", "hardware"))
    table = markdown_table(report.cells(statistics.summary(audit.compare(record["rows"]))))
    return f"{table}\n{provenance(record)} {report.NOTE}\n"


def _verdict() -> str:
    """Tell the digits' audit in one small table: the paper's methods, anchors and cheats.

    Source: records written by ``benchmarks/audit_digits.py``.
    """
    found = study.load(runs.results_folder() / "audit-digits.json")
    shadows = files.read_json(
        runs.results_folder() / "shadows-digits.json", ("methods", "forget", "networks")
    )
    means, inside = found.table.groupby("method")[[*VERDICT, "gmacs"]].mean(), found.inside()
    whole = inside.astype(float).groupby(found.table["method"]).mean()
    titles = [audit.METRICS[name].title for name in VERDICT]
    rows = [["method", *(f"{title} %" for title in titles), "U-LiRA hits %", "GMACs"]]
    for name in JUDGED:
        told = [
            f"{100 * means[m][name]:.1f}{' ✗' if whole[m][name] < 0.5 else ''}" for m in VERDICT
        ]
        hits = shadows["methods"].get(name)
        hits = "–" if hits is None else f"{100 * hits['tpr']:.1f}"
        rows.append([f"`{name}`", *told, hits, f"{means['gmacs'][name]:.1f}"])
    seeds, classes = found.table["original_seed"].nunique(), len(found.bands)
    one = " and ".join(map(str, shadows["forget"]))
    return (
        f"{markdown_table(rows)}\n"
        "Closer to `retrain` is better, not higher or lower. ✗: fewer than half of the networks "
        "lie where one more retrained network is expected (networks whose band leaves out no "
        "value are not counted); U-LiRA and GMACs are not judged so. U-LiRA: hits at 1 % false "
        f"alarms of an attack with many shadow networks, digit {one} alone, {shadows['networks']} "
        "networks attacked. GMACs: 10^9 multiply-accumulates of pruning and training. `@3`: three "
        "epochs, which cost about what PruneLoRA costs. `all blocks`: adapters, and BatchNorm that "
        "trains, in every block. `_channels`: filters removed, not set to zero. The last three are "
        "the cheats. Each method has the smallest of the learning rates that its tuning cannot "
        "tell apart; [how much depends on "
        "that](benchmarks/README.md#what-else-could-have-said-so), U-LiRA above all. Mean over "
        f"{classes} classes x {seeds} training seeds{_repeated(found, JUDGED)}. "
        f"{provenance(found.about)}\n"
    )


def _repeated(found: study.Study, shown: Iterable[str]) -> str:
    """Say which of the methods shown have means over several unlearning seeds of each network."""
    times = found.table.groupby("method")["repetition"].nunique()
    several = [f"`{name}`" for name in times.index[times > 1] if name in shown]
    return f" (of {' and '.join(several)} x {times.max()} unlearning seeds)" if several else ""


def _methods() -> str:
    """List what each method does."""
    rows = [["method", "kind", "what it does"]]
    rows += [[f"`{k}`", m.family, m.summary] for k, m in unlearning.METHODS.items()]
    return markdown_table(rows, right=False)


def _savings() -> str:
    """Tell what removed channels, thin adapters and a frozen part computed once save.

    Source: ``results/savings.json``, written by ``benchmarks/savings.py``.
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


def _images() -> str:
    """Tell what PruneLoRA on colour images costs beside the way it is usually written.

    Source: records of each kind of device, written by ``benchmarks/images.py``.
    """
    found = _by_device()
    sections = {device: record["sections"] for device, record in found.items()}
    tables = [_ratios(sections), *(_shares(device, s) for device, s in sections.items()),
              *(_growth(device, s) for device, s in sections.items())]  # fmt: skip
    return "\n".join([*filter(None, tables), _places(found), ""])


def _limits() -> str:
    """Tell those of the ratios of :func:`_images` that have a limit, and whether it is kept."""
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
            spent = [f"{kind} {100 * part:.0f} %" for kind, part in found["profile"].items()
                     if part > 0.01]  # fmt: skip
            if "busy" in found:
                spent[-1] += f"; nothing computes in {100 * (1 - found['busy']):.0f} % of it"
            rows.append([
                f"{name}, {precision}", str(found["batch"]),
                f"{median(rates) / 1e9:,.0f}",
                f"{share['ratio']:.2f} ({share['lowest']:.2f} – {share['highest']:.2f})",
                ", ".join(spent),
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


def _audits() -> str:
    """Tell what the audit of all methods found.

    Source: ``results/audit-digits.json``, written by ``benchmarks/audit_digits.py``.
    """
    found = study.load(runs.results_folder() / "audit-digits.json")
    table = report.standing(found, "prunelora", report.OPPONENTS, found.metrics)
    table.columns.name = "prunelora, compared with"
    table = table.replace({"^undecided ": "", "^(closer|further) .*": r"**\g<0>**"}, regex=True)
    seeds, oracles = found.table["original_seed"].nunique(), found.oracles
    return (
        f"{markdown_table(_inside_cells(found))}\n{report.finding(found)}\n{_table(table)}\n"
        f"Mean over {len(found.bands)} classes x {seeds} training seeds"
        f"{_repeated(found, found.methods)}; {oracles} oracles each. "
        "`@3`: three epochs in batches of 32, about as many steps as PruneLoRA's, tuned for that. "
        "Differences of the distances to the oracles' centre, above or below it, with their 95 % "
        "intervals over seeds and classes: below zero PruneLoRA is closer. Bold: decided, which is "
        "what remains when on average at most one in twenty decisions of the table is wrong "
        "(false discovery rate). Cost: multiply-accumulates of pruning and training. "
        f"{provenance(found.about)}\n"
    )


def _controls() -> str:
    """Tell what else than memory of the class could have made the audit's verdicts.

    Source: ``results/controls-digits.json``, written by ``benchmarks/controls_digits.py``.
    """
    folder = runs.results_folder()
    other = study.load(folder / "controls-digits.json")
    found = study.join([study.load(folder / "audit-digits.json"), other])
    methods = [label.removesuffix(study.NEVER) for label in other.methods
               if label.endswith(study.NEVER)]  # fmt: skip
    shadows = files.read_json(folder / "shadows-digits.json", ("methods",))["methods"]
    tables = [report.rates(found, shadows | other.about["shadows"]["methods"]),
              report.frozen(found)]  # fmt: skip
    tables += [report.mark(found, method) for method in methods]
    return "\n".join([*map(_table, tables), f"{provenance(other.about)}\n"])


def _table(shown: pd.DataFrame) -> str:
    heading = [shown.columns.name or shown.index.name or "", *shown.columns]
    return markdown_table([heading, *([name, *row] for name, row in shown.iterrows())])


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
    longer, more = path.with_name("longer-cifar.json"), ""
    if longer.is_file():
        one = files.read_json(longer, ("epochs", "accuracy", "seed"))
        epochs = record["settings"]["original"]["epochs"]
        more = (f" after {epochs} epochs; of seed {one['seed']} trained for {one['epochs']}: "
                f"{100 * one['accuracy']:.2f} %")  # fmt: skip
    several = " to ".join(map(str, sorted({cells.min(), cells.max()})))
    return (
        f"{markdown_table(_protocol_cells(record, _COUNTED))}\n"
        f"{markdown_table(_inside_cells(found))}\n"
        f"{record['data']}, {record['model']}. Networks unlearned with each method: {several}, "
        f"a class and a training seed each; {found.oracles} oracles a class (in their row the Avg "
        "Gap is that of each to the others, on average). Test accuracy of the originals: "
        f"{right}{more}. TMACs: 10^12 multiply-accumulates. By the clock, with "
        f"other jobs beside it, training these and the oracles took {hours:.1f} hours of a core, "
        f"unlearning and its audits {record['core_seconds'] / 3600:.1f}. {provenance(record)}\n"
    )


def _marks() -> str:
    """Tell what methods do to networks on photographs that never saw the class, and to originals.

    Source: ``results/controls-cifar.json``, written by ``benchmarks/controls_cifar.py``.
    """
    folder = runs.results_folder()
    record = files.read_json(folder / "controls-cifar.json", ("rows", "class", "hardware"))
    found = study.load(folder / "audit-cifar.json")
    forget = found.about["classes"].index(record["class"])
    with_class = found.table[found.table["forget"] == forget]
    without = pd.DataFrame(record["rows"])
    metrics = ("TA", "RA", "head_refit", "inner_refit", "prototype_attack")
    rows = [[record["class"], *(f"{audit.METRICS[m].title} %" for m in metrics), "networks"]]
    for start, name, table in (
        ("retrain", "oracles", without),
        ("original", "originals", with_class),
    ):
        methods = [start, *(m for m in dict.fromkeys(without["method"]) if m != "retrain")]
        for method in methods:
            view = table[table["method"] == method]
            label = name if method == start else f"`{method}` of these"
            shown = (_spread(100 * view[m].astype(float)) for m in metrics)
            rows.append([label, *shown, str(len(view))])
    return f"{markdown_table(rows)}\n{provenance(record)}\n"


def _protocol() -> str:
    """Set our measurements at the paper's size, if there are any, beside the paper's numbers.

    Source: arXiv 2411.11907; ours are written by ``benchmarks/gpu/protocol.py``.
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
    rows = [row for found in ours.get("classic", {}).values() for row in found["rows"]]
    begun = min((row["date"][:10] for row in rows), default=ours["date"][:10])
    first = f" (the first of it {begun})" if begun < ours["date"][:10] else ""
    return (
        f"{text}\n{provenance(ours)[:-1]}{first}. Mean ± standard deviation over training seeds.\n"
    )


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
    lack = [m for m in _PUBLISHED if m not in {*table["method"]}]
    none = f" Not measured on it yet: {', '.join(lack)}." if lack else ""
    return (
        f"Ours, {name} on {record['data']}, trained for {record['train']['epochs']} epochs; test "
        f"accuracy of the originals: {right}.{none}\n\n{markdown_table(shown)}"
    )


_PUBLISHED = ("finetune", "prune_finetune", "lora", "prunelora")  # the paper's methods
_WITH_GAP = (*audit.GAP_METRICS, "Avg Gap")


def _paper_cells(name: str, rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Format a table of the paper, both numbers of epochs in a cell."""
    made = [[f"the paper's {name}", *(COLUMNS[m][0] for m in _WITH_GAP), "s / epoch", "GB"]]
    for method, row in rows.items():
        both = [{m: row[m][i] for m in audit.GAP_METRICS} for i in range(len(row["UA"]))]
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
        files.write_atomically(path, files.as_text(text))


def keep_figure(figure: Figure, path: Path, *records: Path) -> None:
    """Write a figure and, inside of the file, which records it was drawn from.

    Args:
        figure: The figure.
        path: The PNG file.
        records: The files whose numbers it shows; each is named, with its SHA-256.

    Raises:
        FileProblem: If a record cannot be read or the file cannot be written.

    Source: the records in ``results/``.
    Lesson: 00_start_here, "Where results are kept".
    """
    about = ", ".join(f"{record.name} {files.sha256(record)}" for record in records)
    how = {"format": "png", "dpi": 110, "metadata": {"Description": about, "Software": None}}
    files.write_atomically(path, lambda part: figure.savefig(part, **how))


# page -> marker -> what makes the text between
PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {
        "verdict": _verdict, "budget": lambda: report.budget("all"), "limits": _limits,
    },
    "helpers/README.md": {"methods": _methods, "glossary": report.glossary},
    "benchmarks/README.md": {
        "audits": _audits, "comparison": _comparison, "controls": _controls,
        "photographs": photographs, "marks": _marks, "protocol": _protocol,
        "savings": _savings, "images": _images,
    },
}  # fmt: skip
