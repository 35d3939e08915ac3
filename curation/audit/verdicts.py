"""What the audit's figures come to, in one line each: what holds, what a person should look at, what is wrong.

Read from the report as a dict, so that the terminal, the HTML page and a stored JSON say the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LEAKS = {
    "negative_from_positive": "negatives told from positives",
    "synthetic_from_real": "machine-written text told from real text",
    "negative_from_machine_positive": "negatives told from machine-written positives",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`level` is `holds`, `look`, `wrong`, or `unknown` (not measured, with the reason)."""

    level: str
    about: str
    subject: str
    text: str


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """One line for each thing that is measured, what is wrong first."""
    found = [
        *(line for group in report["groups"] for line in _of_group(group)),
        *_duplicates(report["duplicates"]),
        *_contamination(report["contamination"]),
        *(Verdict("unknown", "order", run, "no teacher has scored its negatives") for run in report["unscored_runs"]),
    ]
    levels = ("wrong", "look", "holds", "unknown")
    return sorted(found, key=lambda one: levels.index(one.level))


def _of_group(group: dict[str, Any]) -> Iterator[Verdict]:
    run = group["run"]
    if order := group["order"]:
        low, high = order["interval_95"]
        level = "holds" if low > 0.5 else "wrong" if high < 0.5 else "look"
        also = {"holds": "", "look": ": no better than chance", "wrong": ": worse than chance"}[level]
        yield Verdict(
            level, "order", run, f"{order['accuracy']:.1%} of the pairs in order ({low:.1%} to {high:.1%}){also}"
        )
    for label, rank in group["ranks"].items():
        if rank["above_positive"] >= 0.2:
            yield Verdict(
                "look", "false negatives", run, f"{rank['above_positive']:.1%} of {label} stand above their positive"
            )
    for kind, leak in group["leaks"].items():
        yield from _leak(run, kind, leak)


def _leak(run: str, kind: str, leak: dict[str, Any]) -> Iterator[Verdict]:
    if leak["auc"] is None:
        if kind != "negative_from_machine_positive":
            yield Verdict("unknown", "leak", run, f"{LEAKS[kind]}: {leak['reason']}")
        return
    figure = f"{LEAKS[kind]}: AUC {leak['auc']:.3f}"
    if leak["stands_out"] is None:
        # Without a control, chance is all that it can be held against.
        level = "holds" if leak["interval_95"][0] <= 0.5 else "look"
        yield Verdict(level, "leak", run, f"{figure} ({_interval(leak)}); no control to set it beside")
        return
    beside = f"{figure}, control {leak['control_auc']:.3f}"
    if leak["stands_out"]:
        yield Verdict("wrong", "leak", run, f"{beside}; by {causes_in_words(leak)}")
    else:
        yield Verdict("holds", "leak", run, f"{beside}: no better than between real texts")


def _interval(leak: dict[str, Any]) -> str:
    low, high = leak["interval_95"]
    return f"{low:.3f} to {high:.3f}"


def causes_in_words(leak: dict[str, Any], most: int = 3) -> str:
    """The properties that alone tell the sets apart better than in the control, with their AUC."""
    control = leak["controls"][0]["properties"] if leak["controls"] else {}
    beyond = [one for one in leak["causes"]["properties"] if one["low"] > max(0.5, control.get(one["name"], 0.5))]
    named = [f"{one['name']} {one['auc']:.2f}{_direction(one)}" for one in beyond[:most]]
    return ", ".join(named) or "no single property"


def _direction(cause: dict[str, Any]) -> str:
    if cause["mean_first"] is None:
        return ""
    first, second = (mean_in_words(cause[side], cause["name"]) for side in ("mean_first", "mean_second"))
    return f" ({first} against {second})"


def mean_in_words(value: float, name: str) -> str:
    """A property's mean as a person reads it: rates as a share of the characters."""
    if name.endswith("rate"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _duplicates(found: dict[str, Any]) -> Iterator[Verdict]:
    for key, unit in (("within_examples", "examples with two texts"), ("across_examples", "texts")):
        one = found[key]
        where = "within examples" if key == "within_examples" else "across examples"
        edits = f"; {one['num_declared_edits']:,} near their source, as recorded" if one["num_declared_edits"] else ""
        text = f"{one['num']:,} of {one['total']:,} {unit if one['num'] else unit.split()[0]} "
        text += f"that repeat another ({one['num_exact']:,} exactly){edits}" if one["num"] else f"repeat another{edits}"
        yield Verdict("look" if one["num"] else "holds", "duplicates", where, text)


def _contamination(found: dict[str, Any]) -> Iterator[Verdict]:
    if found["reason"]:
        yield Verdict("unknown", "contamination", "evaluation", found["reason"])
        return
    splits = ", ".join(found["evaluation"])
    for kind in ("queries", "pairs", "positives"):
        one = found[kind]
        text = f"{one['num']:,} of {one['total']:,} {kind} stand in the examples ({one['num_exact']:,} exactly)"
        level = "holds" if not one["num"] else "wrong" if kind == "pairs" else "look"
        yield Verdict(level, "contamination", splits, text)
