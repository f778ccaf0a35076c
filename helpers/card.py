"""The report card: what the evidence about one network supports, for whoever must answer for it.

One list of sections is made from the record of an audit. The page for a browser, the page as
Markdown and the JSON file are three renderings of that list, so that they cannot disagree. Every
number comes from the record; names of classes, files and methods are escaped where they are
rendered, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from helpers import audit, files
from helpers.config import one_line

PAGE, RECORD, TEXT = NAMES = ("report.html", "report.json", "report.md")
SUPPORTED, REFUTED, UNTESTED = "supported", "not supported", "not tested"
UTILITY = ("RA", "TA")  # here the original is expected to lie inside the band
ENOUGH = 5  # oracles; with fewer the page says how wide the bands are
# Oracles are suspected if the middle one has AS_MUCH of what the original has by MOST metrics of
# features and relearning. Chosen from results/audit-digits.json, every class, any three to five of
# its networks in the place of oracles: of retrained ones it was so by at most 6 of 9 metrics; of
# those with a masked logit, or with a new classifier on old features, by at least 8. Beside an
# original trained three times as long (in no record; eight classes, one seed, without IDI) it was
# by at most 6 and at least 7 of 8. With AS_MUCH 0.8 both do so by 8 of 9; with 0.95 oracles that
# lost a little of the class would pass. Bands that hold the original do not separate them: those of
# three retrained networks can all do so. Beside an original trained for too short honest oracles of
# an easy class are suspected, too.
AS_MUCH, MOST = 0.9, 0.8

UNNAMED = "It no longer names the class"  # the least, which a cheat does, too
USEFUL = "On the other classes it works like a network that never saw the class"
ANSWERS = ("TV", "JS", "activation", "ZRF")
# claim -> names of the metrics that can support it ("*" stands for any ending)
CLAIMS: dict[str, tuple[str, ...]] = {
    UNNAMED: ("UA", "UA_test"),
    USEFUL: UTILITY,
    "Its answers to images of the class are those of a network that never saw it": ANSWERS,
    "By the probes used here its features hold no more of the class than those of a network that "
    "never saw it": (
        "linear_probe", "knn_probe", "head_refit", "inner_refit", "whitened_probe", "IDI",
    ),
    # apart from the one before: layers that were pruned differ without holding anything
    "Its layers are as like to those of networks that never saw it as these are among themselves": (
        "CKA_*",
    ),
    "The class comes back no sooner than in a network that never saw it": (
        "relearn_*", "prototype_attack*",
    ),
    "The membership attacks used here do not tell it from a network that never saw the class": (
        "MIA*", "epsilon",
    ),
}  # fmt: skip

ALWAYS_RIGHT = (UTILITY, ANSWERS)  # what a constant answer passes where one class is kept

COSTS = {
    "seconds": ("time of unlearning", lambda v: f"{v:,.2f} s"),
    "macs": ("multiply-accumulates", lambda v: f"{v / 1e9:,.2f} billion"),
    "peak_memory": ("peak memory", lambda v: f"{v / 1e6:,.1f} MB"),
    "trainable": ("trainable parameters", lambda v: f"{v:,.0f}"),
    "file_bytes": ("size of the network's file", lambda v: f"{v / 1e3:,.1f} kB"),
}


@dataclass(frozen=True)
class Table:
    """A table of the page, as text.

    Attributes:
        caption: Says what it holds.
        rows: The first one is the heading; the first cell of each names its row.
        kind: ``numbers``, ``words`` or ``codes``: how the cells are set.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """

    caption: str
    rows: list[list[str]]
    kind: str = "words"


@dataclass(frozen=True)
class Section:
    """A section of the page, as text.

    Attributes:
        heading: Its heading.
        paragraphs: Its text; the figure and the tables follow.
        tables: Its tables.
        figure: What the figure shows, for those who cannot see it; empty without a figure.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """

    heading: str
    paragraphs: list[str]
    tables: list[Table] = dataclasses.field(default_factory=list)
    figure: str = ""


def _networks(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    networks = record["networks"]
    oracles = [(f"oracle {i}", oracle) for i, oracle in enumerate(networks["oracles"], 1)]
    return [("audited network", networks["model"]), ("original", networks["original"]), *oracles]


# ---------------------------------------------------------------------------- numbers in sentences


def _bounds(metric: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the ends of the band that count: one alone where the metric is one-sided."""
    low, high = metric["band"]
    side = metric["side"]
    return None if side == "upper" else low, None if side == "lower" else high


def _beyond(metric: Mapping[str, Any], value: float) -> float:
    """Return how far a value lies above the band, negative if below, 0 inside."""
    low, high = _bounds(metric)
    if high is not None and value > high:
        return value - high
    return min(value - low, 0.0) if low is not None else 0.0


def _band(metric: Mapping[str, Any]) -> str:
    ends = _bounds(metric)
    # a prediction may reach below zero, which nothing here is, and beyond what a metric can be
    most = audit.form(metric["name"]).most
    ends = tuple(end if end is None else min(max(end, 0.0), most) for end in ends)
    low, high = (audit.shown(metric["name"], end) for end in ends)
    if ends[0] == ends[1]:
        return "no bound" if ends[0] is None else f"exactly {low}"
    if "–" in (low, high):
        return f"at most {high}" if low == "–" else f"at least {low}"
    return f"{low.split()[0]} to {high}"  # the unit once


def _size(name: str, size: float) -> str:
    """Write a difference of two values of a metric."""
    form = audit.form(name)
    shown = f"{100 * size if form.unit else size:.{form.decimals}f}"
    if not float(shown):
        shown = f"less than {10.0**-form.decimals:g}"
    return f"{shown} percentage points" if form.unit else shown


def _inside(metric: Mapping[str, Any]) -> str:
    value = audit.shown(metric["name"], metric["value"])
    return f"{metric['title']} {value} (band {_band(metric)})"


def _outside(metric: Mapping[str, Any]) -> str:
    beyond = _beyond(metric, metric["value"])
    where = f"{_size(metric['name'], abs(beyond))} {'above' if beyond > 0 else 'below'} the band"
    value = audit.shown(metric["name"], metric["value"])
    text = f"{metric['title']} {value}, {where} ({_band(metric)})"
    near = metric["interval"] or [metric["value"]]
    reaches = any(_beyond(metric, end) * beyond <= 0 for end in near)
    return f"{text}, though its interval reaches into it" if reaches else text


def _blind(metric: Mapping[str, Any]) -> bool:
    """Tell whether a metric takes the original itself for a network that never saw the class."""
    return metric["original_inside"] and metric["name"] not in UTILITY


def _known(record: Mapping[str, Any]) -> tuple[int, int]:
    """Count the metrics that look for the class inside, and those that find it in the oracles.

    Found is at least ``AS_MUCH`` of what the original has, in the middle one of the oracles: how
    wide their band is, or whether the original lies a hair outside, counts for nothing. Likeness
    of layers (CKA) does not say what they hold; of several classes the mean counts.
    """
    found = []
    for m in record["metrics"]:
        skipped = m["name"].startswith(("CKA_", f"{audit.BY_CLASS}:"))
        if skipped or m["group"] not in ("features", "relearning"):
            continue
        theirs, most = median(m["oracles"]), m["original"]
        if m["side"] == "lower":  # the less, the more is known
            theirs, most = most, theirs
        if most > 0:
            found.append(theirs >= AS_MUCH * most)
    return sum(found), len(found)


def _doubtful(record: Mapping[str, Any]) -> bool:
    """Tell whether oracles whose training is not known seem to hold the class as the original."""
    found, of = _known(record)
    return record["how"] is None and found > 0 and found >= MOST * of


def _powerless(metric: Mapping[str, Any]) -> bool:
    """Tell whether a metric is inside and would be for the original, or for any network."""
    return metric["inside"] and (_blind(metric) or not _decides(metric))


def _decides(metric: Mapping[str, Any]) -> bool:
    """Tell whether anything could lie outside the band."""
    low, high = _bounds(metric)
    ends = -math.inf if low is None else low, math.inf if high is None else high
    return audit.decides(metric["name"], *ends)


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


# ------------------------------------------------------------------------------------------ claims


def claims(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Judge what may be said about the network, and what may not.

    A claim is supported only if every metric of it that was measured lies inside the band of the
    oracles. Where none of them was measured, or none can tell the original from the oracles, it is
    not tested; nor is anything where the oracles come from files and seem to have seen the class.
    What no such evidence supports stands last.

    Args:
        record: From :func:`helpers.audit.audit`, with ``how``, ``costs`` and the parts of
            :func:`helpers.runs.environment`, as :func:`helpers.study.audit_run` adds them.

    Returns:
        Rows with ``claim``, ``status`` ("supported", "not supported" or "not tested"), ``because``
        (one sentence with values and bands) and ``metrics`` (names of those used).

    Source: this project; why attacks on a population do not suffice: arXiv 2403.01218 (U-LiRA).
    Lesson: 05_evaluation, "Audit your own model".
    """
    return [_claim(record, text, names) for text, names in CLAIMS.items()] + _never(record)


def _claim(record: Mapping[str, Any], text: str, names: Sequence[str]) -> dict[str, Any]:
    used = [m for m in record["metrics"] if any(fnmatchcase(m["name"], n) for n in names)]
    absent = [n for n in names if not any(fnmatchcase(m["name"], n) for m in used)]
    status, because = _judged(used) if used else (UNTESTED, "")
    if status == SUPPORTED and names in ALWAYS_RIGHT and _retained(record) == 1:
        status, because = (
            UNTESTED,
            (
                "Only one class is kept, and a network that always answers it passes here, "
                f"whatever it holds. {because}"
            ),
        )
    if status != UNTESTED and _doubtful(record):
        status, because = UNTESTED, f"The oracles may have seen the class themselves. {because}"
    if not used:
        because = f"None of its metrics was measured: {', '.join(absent)}"
    elif absent:
        because += f"; not measured: {', '.join(absent)}"
    return {"claim": text, "status": status, "because": f"{because}.",
            "metrics": [m["name"] for m in used]}  # fmt: skip


def _retained(record: Mapping[str, Any]) -> int:
    return len(record["about"]["classes"]) - len(record["about"]["forgotten"])


def _judged(used: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    inside = [m for m in used if m["inside"]]
    outside = [_outside(m) for m in used if not m["inside"]]
    seeing = [_inside(m) for m in inside if not _blind(m)]
    blind = [_inside(m) for m in inside if _blind(m)]
    parts = []
    if outside:
        parts.append(f"Outside the band: {'; '.join(outside)}")
    if seeing:
        parts.append(f"inside the band: {'; '.join(seeing)}")
    if blind:
        parts.append(
            "inside the band, but so is the original, which means that this could not have caught "
            f"anything here: {'; '.join(blind)}"
        )
    status = REFUTED if outside else SUPPORTED if seeing else UNTESTED
    because = "; ".join(parts)
    return status, because[:1].upper() + because[1:]


def _never(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the claims that no record of this kind supports."""
    about, oracles = record["about"], len(record["networks"]["oracles"])
    epsilon = next((m for m in record["metrics"] if m["name"] == "epsilon"), None)
    bound = "" if epsilon is None else (
        f"; the epsilon of {audit.shown('epsilon', epsilon['value'])} measured here is what one "
        "attack found, not a bound on all attacks"
    )  # fmt: skip
    because = {
        "Nothing of the class is left in the network": (
            "Known probes and attacks looked, on clean images, at what the classifier receives, at "
            "the ends of stages and at every module of the last one. A network that was made to "
            "pass them can hold the class elsewhere, and the code of its architecture was trusted: "
            "judge the method and its log as well. It can also be stored where no behaviour shows "
            "it, cut off by zeros in the next layer or in the low bits of the weights: round the "
            "weights (for example to bfloat16 and back) before release, and audit the rounded "
            "file. Weights alone prove nothing about how they came about."
        ),
        "No attack can tell whether one image of the class was used": (
            "Attacks on a whole population overstate privacy; an answer for one image needs the "
            "likelihood ratios of U-LiRA over many shadow networks, which is not part of this page."
        ),
        "A formal guarantee, (ε, δ)-unlearning": (
            f"Measurements cannot give it, only a proof about the method can{bound}."
        ),
        "The same would hold for other seeds or other data": (
            f"The bands come from {_count(oracles, 'oracle')} and from "
            f"{about['images']['test_forget']} test images of the class in “{about['data']}”: "
            "other seeds or other data have bands of their own."
        ),
    }
    return [{"claim": claim, "status": REFUTED, "because": why, "metrics": []}
            for claim, why in because.items()]  # fmt: skip


# ---------------------------------------------------------------------------------------- the page


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def _forgotten(record: Mapping[str, Any]) -> str:
    about = record["about"]
    names = [f"“{about['classes'][c]}”" for c in about["forgotten"]]
    return f"class {names[0]}" if len(names) == 1 else f"classes {_joined(names)}"


def _verdict(record: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    judged = {status: [c["claim"] for c in found if c["claim"] in CLAIMS and c["status"] == status]
              for status in (SUPPORTED, REFUTED, UNTESTED)}  # fmt: skip
    what = _forgotten(record)
    it = "it" if len(record["about"]["forgotten"]) == 1 else "them"
    metrics, networks = record["metrics"], record["networks"]
    oracles = networks["oracles"]
    outside = sum(not m["inside"] for m in metrics)
    missed = [one.get("missed") for one in oracles]
    usual = None not in missed and 0 < outside <= max(missed)  # as an honest network does
    if judged[REFUTED] == [USEFUL] and judged[SUPPORTED]:
        text = f"No claim on {what} that was tested tells this network from one that never saw "
        text += f"{it}, but on the other classes it works differently"
        text += ", though it misses no more bands than the worst of the oracles." if usual else "."
    elif judged[REFUTED] and usual and UNNAMED not in judged[REFUTED]:
        text = f"This evidence does not settle whether this network has forgotten {what}: not "
        text += "every claim is supported, but it misses no more bands than the worst of the "
        text += "oracles."
    elif judged[REFUTED] and UNNAMED in judged[SUPPORTED]:
        text = f"This network no longer names {what}, but it is not like one that never saw {it}: "
        text += f"this evidence does not support calling {it} forgotten."
    elif judged[REFUTED]:
        text = f"This evidence does not support saying that this network has forgotten {what}."
    elif not judged[UNTESTED]:
        text = "In everything measured here this network behaves like one that never saw "
        text += f"{what}."
    elif judged[SUPPORTED]:
        text = f"Nothing measured here tells this network from one that never saw {what}, but not "
        text += "everything was tested."
    else:
        text = f"This evidence does not show whether this network has forgotten {what}."
    for status, listed in judged.items():
        if listed:
            quoted = "; ".join(f"“{claim}”" for claim in listed)
            head = f"{status.capitalize()} ({len(listed)} of {len(CLAIMS)} claims)"
            text += f" {head}: {quoted}."
    trained = "said to be trained" if record["how"] is None else "trained"
    text += (
        f" In all, {len(metrics) - outside} of {_count(len(metrics), 'metric')} lie inside the "
        f"band of {_count(len(oracles), 'oracle')}, networks {trained} in the same way without "
        "these images"
    )
    powerless = sum(map(_powerless, metrics))
    text += (
        f"; {powerless} of those inside could not have caught anything: the band holds the "
        "original, too, or every value." if powerless else "."
    )  # fmt: skip
    if _doubtful(record):
        known, of = _known(record)
        text += (
            f" But these oracles may have seen the class themselves: by {known} of {of} metrics of "
            "features and of relearning the middle one of them holds as much of it as the "
            "original, or nearly. Nothing is refuted or supported by them; find out how they were "
            "trained."
        )
    if None not in missed:  # how often the page would be wrong about one that never saw the class
        text += (
            f" Judged in the same way by the others, {missed.count(0)} of these "
            f"{len(missed)} oracles are inside every band, and the worst of them misses "
            f"{max(missed)}."
        )
        if usual:
            text += (
                f" This network misses {outside}, no more than the worst of them: their number "
                "alone refutes nothing; look at how far outside."
            )
    more = networks["model"]["parameters"] - networks["original"]["parameters"]
    if more > 0:
        text += (
            f" It has {_count(more, 'parameter')} more than the original: what was added can hide "
            f"{what} from every metric here, and whoever takes it out has {it} back. Find out what "
            "it does."
        )
    return (
        f"{text} This is evidence and no proof; what it can never show is listed with the claims."
    )


def _what_and_how(record: Mapping[str, Any]) -> Section:
    about, how = record["about"], record["how"]
    n = about["images"]
    apart = n.get("validation_forget", 0)
    apart = f" (beside {apart:,} held out for validation, at which nothing here looks)" * (
        apart > 0
    )
    what = (
        f"To be forgotten: {_forgotten(record)}, of the {len(about['classes'])} classes in "
        f"“{about['data']}”. That is {n['forget']:,} training images{apart}; {n['test_forget']:,} "
        f"test images show the result. To be kept: {n['retain']:,} training images and "
        f"{n['test_retain']:,} test images of the other classes. Seed {about['seed']}."
    )
    if how is None:
        made = "The network was made elsewhere: how it was made to forget is not known here, and "
        made += "its costs were not measured."
        if "test" in about.get("taken", ()):
            made += (
                " These data have no test images of their own: they were taken from the training "
                "images. If the networks were trained on them all the same, every number of test "
                "images is too good, and those of membership attacks mean nothing."
            )
        return Section("What was forgotten, and how", [what, made])
    made = f"Method: {how['method']}, {how['summary']}."
    settings = [["setting", "value"], *([str(k), _value(v)] for k, v in how["config"].items())]
    table = Table("Settings of the method", settings, "codes")
    return Section("What was forgotten, and how", [what, made], [table])


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _claims_section(found: Sequence[Mapping[str, Any]]) -> Section:
    rows = [[c["claim"], c["status"], c["because"]] for c in found]
    head = ["claim", "status", "because"]
    tested, never = rows[: len(CLAIMS)], rows[len(CLAIMS) :]
    text = "Only what is marked as supported may be said, and only together with its numbers."
    return Section("What may be said", [text], [
        Table("Claims that were put to the test", [head, *tested]),
        Table("Claims that this evidence never supports", [head, *never]),
    ])  # fmt: skip


def _figure_section(record: Mapping[str, Any]) -> Section:
    metrics = record["metrics"]
    outside = [_outside(m) for m in metrics if not m["inside"]]
    listed = f"Outside: {'; '.join(outside)}." if outside else "Outside: none."
    shown = f"{_count(len(metrics), 'metric')}, one a row. Inside: {len(metrics) - len(outside)}."
    text = (
        "Where the network lies, one metric a row. The band of the oracles is scaled to the same "
        "width in every row; dots are oracles, a cross is the original, a diamond the audited "
        "network. What lies far outside is written at the edge."
    )
    return Section("The figure", [text], figure=f"{shown} {listed}")


def _metrics_section(record: Mapping[str, Any]) -> Section:
    metrics = record["metrics"]
    interval = f"interval ({record['about']['level']:.1%})".replace(".0%", "%").replace("%", " %")
    rows = [["metric", "group", "value", interval, "band", "original", "network is"]]
    for m in metrics:
        ends = [audit.shown(m["name"], end) for end in m["interval"] or ()]
        between = f"{ends[0].removesuffix(' %')} to {ends[1]}" if ends else "–"
        network, original = ("inside" if m[k] else "outside" for k in ("inside", "original_inside"))
        value, before = (audit.shown(m["name"], m[key]) for key in ("value", "original"))
        rows.append([m["title"], m["group"], value, between, _band(m), f"{before} ({original})",
                     network])  # fmt: skip
    meanings = [["metric", "name", "what is measured"]]
    meanings += [[m["title"], m["name"], m["what"]] for m in metrics]
    return Section("Every metric", _cautions(record), [
        Table("Every metric beside the band of the oracles", rows, "numbers"),
        Table("What each metric measures", meanings),
    ])  # fmt: skip


def _cautions(record: Mapping[str, Any]) -> list[str]:
    texts = []
    for name, network in _networks(record):
        if shut := network.get("shut"):
            texts.append(
                f"{_count(shut, 'channel')} of the {name} let nothing through for any image looked "
                "at, though what would pass is still computed: one number a channel opens them. "
                "They were opened, and of what the features hold and of how soon the class comes "
                "back the worse of both results counts."
            )
    blind = [m["title"] for m in record["metrics"] if _blind(m)]
    if blind:
        texts.append(
            f"Here the original lies inside the band too: {', '.join(blind)}. Such a metric does "
            "not separate it from networks that never saw the class and could not have caught "
            "anything here."
        )
    oracles = len(record["networks"]["oracles"])
    if oracles < ENOUGH or not all(map(_decides, record["metrics"])):
        texts.append(_width(record["metrics"], oracles))
    return texts


def _width(metrics: Sequence[Mapping[str, Any]], oracles: int) -> str:
    """Say how wide the bands are, and which hold everything."""
    few = f" alone, fewer than {ENOUGH}" if oracles < ENOUGH else ""
    text = f"The bands rest on {_count(oracles, 'oracle')}{few}."
    if vain := [m["title"] for m in metrics if not _decides(m)]:
        text += f" Nothing at all could lie outside that of {_joined(vain)}."
    spans = {m["title"]: m["band"][1] - m["band"][0] for m in metrics
             if None not in _bounds(m) and audit.form(m["name"]).unit}  # fmt: skip
    if spans:
        widest = max(spans, key=spans.__getitem__)
        half = _size("", median(spans.values()))
        text += f" Among shares the band is {half} wide in the middle case and "
        text += f"{_size('', spans[widest])} in the widest ({widest})."
    text += " A difference smaller than its band would not be seen."
    if oracles <= audit.LEAST_ORACLES:
        text += (
            " And a network that never saw the class often misses one of them, too; how many, this "
            "page can say from one oracle more."
        )
    return text


def _costs_section(record: Mapping[str, Any]) -> Section:
    if not record["costs"]:
        return Section("Costs", ["The costs were not measured."])
    rows = [["cost", "measured"]]
    for key, value in record["costs"].items():
        title, how = COSTS.get(key, (key, _value))
        rows.append([title, "–" if value is None else how(value)])
    asked = (record["how"] or {}).get("config", {}).get("earlier")
    title = "What forgetting the last request cost" if asked else "What forgetting cost"
    return Section("Costs", [], [Table(title, rows, "numbers")])


def _hashes_section(record: Mapping[str, Any]) -> Section:
    how = record["how"]
    rows = [["what", "SHA-256"], ["data", record["about"]["data_sha256"]]]
    rows.append(["settings", files.digest_json(how["config"]) if how else "–"])
    rows += [[name, network["sha256"]] for name, network in _networks(record)]
    networks = [["network", "architecture", "parameters", "zeros"]]
    networks += [[name, str(n["architecture"]), f"{n['parameters']:,}", f"{n['zeros']:.1%}"]
                 for name, n in _networks(record)]  # fmt: skip
    text = (
        "Whoever has the same files can check that this page speaks of them. The settings are "
        "hashed as JSON with sorted keys; of a network it is the weights, in whatever file: "
        "helpers.models.fingerprint of the loaded network."
    )
    return Section("Which files", [text], [
        Table("Hashes of data, settings and networks", rows, "codes"),
        Table("The networks", networks, "numbers"),
    ])  # fmt: skip


def _origin_section(record: Mapping[str, Any]) -> Section:
    rows = [["what", "value"], ["date", str(record["date"])]]
    for key in ("hardware", "versions"):
        rows += [[f"{key}: {name}", _value(value)] for name, value in record[key].items()]
    return Section("Where and when", [], [Table("Hardware, versions and date", rows, "codes")])


def _guide(record: Mapping[str, Any]) -> Section:
    chance = f"{1 - record['about']['level']:.1%}".removesuffix(".0%").removesuffix("%")
    return Section("How to read this page", [
        "Oracles are networks trained in the same way on the images to be kept alone. They are "
        "what a network would be that never saw the class. No two are the same; the band says how "
        "far they differ by themselves. The original was trained on everything.",
        "Inside the band is good, and better than inside does not exist: beyond the band on the "
        "side that looks better is outside, too, unless the metric counts one side alone.",
        "The interval says how far a value could move with other images of the same kind, and a "
        "membership attack with other images to learn from; of steps back and IDI it spans a few "
        "draws of the images that they learn from, and is too short. A metric "
        "whose band holds the original as well cannot tell forgetting from not forgetting. "
        "Accuracy on the other classes is the exception: there the original belongs inside.",
        "One metric outside its band is enough to leave a claim without support, and of so many "
        "metrics an oracle, too, often misses one; of four oracles or more the verdict says how "
        "many did. Many inside are "
        f"no proof. By chance alone a network that never saw the class misses about {chance} % "
        "of the bands, and of those of distances to the oracles up to one in six where there are "
        "but three of them; so look at how far outside, not only whether.",
    ])  # fmt: skip


def _sections(record: Mapping[str, Any]) -> list[Section]:
    found = claims(record)
    return [
        Section("Verdict", [_verdict(record, found)]), _what_and_how(record),
        _claims_section(found), _figure_section(record), _metrics_section(record),
        _costs_section(record), _hashes_section(record), _origin_section(record), _guide(record),
    ]  # fmt: skip


def _title(record: Mapping[str, Any]) -> str:
    what = _forgotten(record)  # the name of a class keeps its capitals
    return f"Was it forgotten? {what[0].upper()}{what[1:]} of “{record['about']['data']}”"


# ----------------------------------------------------------------------------------- as Markdown


def _clean(text: str) -> str:
    return one_line(" ".join(text.split()))


# a single _ between letters or digits marks nothing; of http://, www. and @ GitHub makes links
_SPECIAL = re.compile(r"[\\`*\[\]|~@]|(?<![^\W_])_|_(?![^\W_])|://|(?<=www)\.", re.IGNORECASE)


def _marked(text: str) -> str:
    """Escape everything that Markdown, or HTML inside of it, would take for a mark."""
    text = escape(_clean(text), quote=False)
    return _SPECIAL.sub(r"\\\g<0>", text)


def markdown(record: Mapping[str, Any]) -> str:
    """Write the report card as Markdown.

    Args:
        record: As for :func:`claims`.

    Returns:
        The page; the figure is told in words.

    Source: GitHub-flavoured Markdown.
    Lesson: 05_evaluation, "Audit your own model".
    """
    from helpers import report

    sections = _sections(record)
    lines = [f"# {_marked(_title(record))}"]
    for section in sections:
        lines.append(f"## {section.heading}")
        lines += [_marked(text) for text in section.paragraphs]
        lines += [f"*Figure:* {_marked(section.figure)}"] if section.figure else []
        for table in section.tables:
            rows = [[_marked(cell) for cell in row] for row in table.rows]
            text = report.markdown_table(rows).rstrip()
            if table.kind != "numbers":
                text = text.replace("---:", "---", len(rows[0]))
            lines += [f"**{_marked(table.caption)}**", text]
    return "\n\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------- as HTML

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1b1b; --soft: #595959;
  --line: #c9c9c9; --yes: #00547f; --no: #a33b00; --open: #595959; --stripe: #f5f5f5; }
@media (prefers-color-scheme: dark) { :root { --page: #181818; --ink: #ececec; --soft: #b4b4b4;
  --line: #4d4d4d; --yes: #7cc4f0; --no: #ffa36b; --open: #b4b4b4; --stripe: #222222; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
.verdict { border-left: .35rem solid var(--ink); padding: .2rem 0 .2rem 1rem; margin: 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; line-height: 1.4; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; color: var(--soft); }
th, td { padding: .3rem .55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tbody th { font-weight: 600; }
tbody tr:nth-child(even) { background: var(--stripe); }
.numbers td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.words tbody th { width: 27%; }
.codes tbody th { width: 27%; font-weight: 400; }
.codes td { font-family: ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.yes, .no, .open { font-weight: 600; white-space: nowrap; }
.yes { color: var(--yes); } .no { color: var(--no); } .open { color: var(--open); }
.yes::before { content: "\\2713\\00a0"; } .no::before { content: "\\2717\\00a0"; }
.open::before { content: "?\\00a0"; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; }
@media print { :root { color-scheme: light; --page: #ffffff; --ink: #000000; --soft: #404040;
  --line: #999999; --yes: #00547f; --no: #8a3200; --open: #404040; --stripe: #ffffff; }
  body { max-width: none; padding: 0; font-size: 10pt; } table { font-size: 8pt; }
  .wide { overflow: visible; } h2, caption { break-after: avoid; }
  tr, figure { break-inside: avoid; } thead { display: table-header-group; } }
"""
_MARKS = {SUPPORTED: "yes", REFUTED: "no", UNTESTED: "open", "inside": "yes", "outside": "no"}


def _safe(text: str) -> str:
    return escape(_clean(text), quote=True)


def html(record: Mapping[str, Any]) -> str:
    """Write the report card as one file for a browser or a printer.

    Args:
        record: As for :func:`claims`.

    Returns:
        The page; style and figure are inside, it runs no script and loads nothing.

    Source: HTML Living Standard; WCAG 2.2 for contrast, headings of tables and text of the figure.
    Lesson: 05_evaluation, "Audit your own model".
    """
    sections = _sections(record)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(_html_section(section, record) for section in sections)
    title = _safe(_title(record))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html_section(section: Section, record: Mapping[str, Any]) -> str:
    kind = ' class="verdict"' if section.heading == "Verdict" else ""
    parts = [f"<section>\n<h2>{_safe(section.heading)}</h2>"]
    parts += [f"<p{kind}>{_safe(text)}</p>" for text in section.paragraphs]
    if section.figure:
        alt = _safe(section.figure)
        parts.append(f'<figure><img src="{_picture(record)}" alt="{alt}"></figure>')
    return "\n".join([*parts, *map(_html_table, section.tables), "</section>"])


def _html_table(table: Table) -> str:
    head, *body = table.rows
    caption = _safe(table.caption)
    top = "".join(f'<th scope="col">{_safe(cell)}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{_safe(first)}</th>{"".join(map(_html_cell, rest))}</tr>'
        for first, *rest in body
    ]
    return (
        f'<div class="wide" role="region" aria-label="{caption}" tabindex="0">'
        f'<table class="{table.kind}">\n<caption>{caption}</caption>\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _html_cell(text: str) -> str:
    mark = f' class="{_MARKS[text]}"' if text in _MARKS else ""
    return f"<td{mark}>{_safe(text)}</td>"


def _picture(record: Mapping[str, Any]) -> str:
    """Draw the figure, a PNG within its address; the same record gives the same bytes."""
    import matplotlib.pyplot as plt

    from helpers import plots

    with plt.rc_context(), io.BytesIO() as file:
        plots.style()
        rows = [{**m, "title": shorten(_clean(m["title"]), 40)} for m in record["metrics"]]
        figure = plots.oracle_bands(rows, write=audit.shown).figure
        figure.savefig(file, format="png", dpi=130, facecolor="white", metadata={"Software": None})
        plt.close(figure)
        return files.as_link(file.getvalue())


def write(record: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write the report card in its three forms, which say the same: all are whole, or the old ones.

    Args:
        record: As for :func:`claims`.
        folder: Where to; made if needed.

    Returns:
        The files ``report.html``, ``report.json`` (the record, with the page as text) and
        ``report.md``, by name.

    Raises:
        ValueError: If a number is not finite; nothing is written then.
        FileProblem: If the folder cannot be written.

    Source: this project.
    Lesson: 05_evaluation, "Audit your own model".
    """
    page = [dataclasses.asdict(section) for section in _sections(record)]
    content = {**record, "claims": claims(record), "verdict": page[0]["paragraphs"][0],
               "page": page}  # fmt: skip
    paths = {name: Path(folder) / name for name in (RECORD, PAGE, TEXT)}
    texts = (files.as_json(paths[RECORD], content), html(record), markdown(record))
    pairs = zip(paths.values(), texts, strict=True)
    files.write_together({path: files.as_text(text) for path, text in pairs})
    return paths
