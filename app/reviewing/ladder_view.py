"""An item of a review session as HTML: query, similarity axis, the negative in question beside the positive, the rest.

One block holds all of it, so that a browser never shows the head of one item over the body of another. It carries what
it shows in `data-shown`, which pages/keyboard.js reads. Text from models and corpora is escaped (viewing/showing.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.reviewing.word_diff import pieces_html, share_common, word_diff
from app.viewing.showing import cell, escaped

if TYPE_CHECKING:
    from curation.reviewing.edits import Rescored
    from curation.reviewing.sessions import Progress

# Okabe and Ito's palette, as in the ladder plot; black on it reads in light and dark.
COLOUR = {"positive": "#009E73", "hard": "#D55E00", "medium": "#E69F00", "easy": "#56B4E9"}
_OTHER = "#8C8C8C"
_OWN_OF_POSITIVE, _OWN_OF_NEGATIVE, _OF_BOTH = "rgba(0,158,115,.3)", "rgba(213,94,0,.3)", "rgba(86,180,233,.3)"
# Two texts about different things share few words: marking all the others would only tint the page.
_ALIKE = 0.5
_MAX_LINES, _SUMMARY, _MAX_TEXT = 40, 140, 20_000
_LANE_REM, _LANES, _TOO_NEAR = 1.7, 5, 6.0
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;line-height:1.5"
_MUTED = "opacity:.75"


@dataclass(frozen=True, slots=True)
class Rung:
    """A negative of the item as it is shown.

    Attributes:
        similarity: To the query, by the axis' teacher.
        run: Which run wrote it, where the item has negatives of several.
        is_asked: False for one that only stands beside those that are asked about.
        decided: What this person decided about it, in a few words.
        details: What is shown on demand: (of what, the words).
    """

    candidate_id: int
    label: str
    grade: str | None
    origin: str | None
    text: str
    similarity: float | None
    run: str | None = None
    is_asked: bool = True
    other_scores: tuple[tuple[str, float], ...] = ()
    is_inverted: bool = False
    is_above_positive: bool = False
    reasons: tuple[str, ...] = ()
    decided: str | None = None
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """All that an item paints. `teacher` names whose similarity the axis is; None when nobody scored."""

    key: str
    query: str
    positive: str
    positive_similarity: float | None
    rungs: tuple[Rung, ...]
    teacher: str | None


def item_html(item: Shown, focus: int, *, is_detailed: bool) -> str:
    """The whole item, the negative `focus` (a candidate id) opened; `is_detailed`: with what it breaks."""
    rung = next(rung for rung in item.rungs if rung.candidate_id == focus)
    details = _details_html(rung) if is_detailed else ""
    body = _query_html(item.query) + axis_html(item, focus) + details + _card_html(item, rung)
    return f"<div data-shown='{item.key}-{focus}'>{body}{_ladder_html(item, focus)}</div>"


def _query_html(query: str) -> str:
    return f"<div dir='auto' style='font-size:1.2rem;margin:.1rem 0 .4rem;{_TEXT}'><b>Query</b> {escaped(query)}</div>"


def axis_html(item: Shown, focus: int) -> str:
    """The positive and the negatives on one axis of similarity; who stands too near another moves a lane down."""
    similarities = [(rung.similarity, _Mark(rung.label, rung.grade, rung.candidate_id == focus)) for rung in item.rungs]
    similarities.append((item.positive_similarity, _Mark("+", "positive", False)))
    points = sorted(((value, mark) for value, mark in similarities if value is not None), key=lambda point: point[0])
    if not points:
        return f"<div style='{_MUTED}'>No teacher has scored this example yet: run <code>gradus score</code>.</div>"
    low, high = axis_ends([value for value, _ in points])
    places = [100 * (value - low) / (high - low) for value, _ in points]
    lanes = lanes_of(places)
    marks = "".join(_mark_html(lane, place, mark) for lane, place, (_, mark) in zip(lanes, places, points, strict=True))
    line = "position:absolute;left:0;right:0;top:.75rem;border-top:2px solid rgba(128,128,128,.5)"
    ends = f"<span>{low:.2f}</span><span>{_teacher_html(item)}</span><span>{high:.2f}</span>"
    return (
        f"<div style='margin:.3rem 1.2rem'><div style='position:relative;height:{(1 + max(lanes)) * _LANE_REM:.1f}rem'>"
        f"<div style='{line}'></div>{marks}</div>"
        f"<div style='display:flex;justify-content:space-between;font-size:.8rem;{_MUTED}'>{ends}</div></div>"
    )


def axis_ends(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis on twentieths around the values, at least a tenth apart."""
    low, high = math.floor(min(values) * 20), math.ceil(max(values) * 20)
    return (low / 20, high / 20) if high - low >= 2 else ((low - 1) / 20, (low + 1) / 20)


def lanes_of(places: Sequence[float]) -> list[int]:
    """The first lane where each of the rising places (percent) stands free, or the one with most room."""
    last = [-100.0] * _LANES
    lanes = []
    for place in places:
        free = (lane for lane in range(_LANES) if place - last[lane] >= _TOO_NEAR)
        lane = next(free, last.index(min(last)))
        last[lane] = place
        lanes.append(lane)
    return lanes


@dataclass(frozen=True, slots=True)
class _Mark:
    label: str
    grade: str | None
    is_focus: bool


def _mark_html(lane: int, place: float, mark: _Mark) -> str:
    ring = "outline:3px solid currentColor;outline-offset:1px;z-index:2;" if mark.is_focus else ""
    style = (
        f"position:absolute;left:{place:.1f}%;top:{lane * _LANE_REM:.1f}rem;transform:translateX(-50%);"
        f"min-width:1.7rem;height:1.5rem;line-height:1.5rem;padding:0 .25rem;border-radius:.75rem;text-align:center;"
        f"font-size:.75rem;font-weight:600;background:{COLOUR.get(mark.grade or '', _OTHER)};{ring}"
    )
    # The ring takes the page's colour, the label is black on every colour of the palette.
    return f"<div style='{style}'><span style='color:#111'>{escaped(mark.label)}</span></div>"


def _teacher_html(item: Shown) -> str:
    return f"similarity to the query by {escaped(cell(item.teacher or '', 60))}"


def _card_html(item: Shown, rung: Rung) -> str:
    """The negative in question beside the positive. Marked is what is the rarer: words of one only, or of both."""
    of_positive, of_negative = word_diff(item.positive[:_MAX_TEXT], rung.text[:_MAX_TEXT])
    marks_own = share_common(of_positive, of_negative) >= _ALIKE
    colours = (_OWN_OF_POSITIVE, _OWN_OF_NEGATIVE) if marks_own else (_OF_BOTH, _OF_BOTH)
    bodies = [
        pieces_html(pieces, colour=colour, marks_own=marks_own)
        for pieces, colour in zip((of_positive, of_negative), colours, strict=True)
    ]
    marked = f"marked: {'what only this one says' if marks_own else 'what both say'}"
    notes = [rung.grade, rung.origin, rung.run, _similarity(rung.similarity)]
    notes += [f"{who} {it:.3f}" for who, it in rung.other_scores]
    positive_head = _pane_head("Positive", [_similarity(item.positive_similarity), marked])
    negative_head = _pane_head(rung.label, notes) + _chips_html(rung)
    panes = _pane_html(positive_head, bodies[0], item.positive, "positive")
    panes += _pane_html(negative_head, bodies[1], rung.text, rung.grade)
    grid = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:.8rem;margin:.5rem 0"
    return f"<div style='{grid}'>{panes}</div>"


def _pane_html(head: str, body: str, text: str, grade: str | None) -> str:
    rest = f" … ({len(text) - _MAX_TEXT:,} more characters)" if len(text) > _MAX_TEXT else ""
    border = f"border-left:6px solid {COLOUR.get(grade or '', _OTHER)};padding:.1rem .8rem;min-width:0"
    scroll = f"max-height:36vh;overflow-y:auto;{_TEXT}"
    return f"<div style='{border}'>{head}<div dir='auto' style='{scroll}'>{body}{rest}</div></div>"


def _pane_head(label: str, notes: Sequence[str | None]) -> str:
    note = " · ".join(escaped(cell(note, 60)) for note in notes if note)
    return f"<div><b>{escaped(label)}</b> <span style='{_MUTED}'>{note}</span></div>"


def _similarity(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _chips_html(rung: Rung) -> str:
    """Why this one is suspect, and what this person has decided about it."""
    said = {"inverted": rung.is_inverted, "above the positive": rung.is_above_positive}
    flags = [flag for flag, is_so in said.items() if is_so and not any(flag in reason for reason in rung.reasons)]
    chips = [_chip_html(flag, "rgba(213,94,0,.35)") for flag in flags]
    chips += [_chip_html(reason, "rgba(230,159,0,.3)") for reason in rung.reasons]
    if rung.decided:
        chips.append(_chip_html(f"decided: {rung.decided}", "rgba(86,180,233,.35)"))
    return f"<div style='display:flex;flex-wrap:wrap;gap:.3rem;margin:.15rem 0'>{''.join(chips)}</div>" if chips else ""


def _chip_html(text: str, colour: str) -> str:
    style = f"background:{colour};border-radius:1rem;padding:0 .6rem;font-size:.8rem;overflow-wrap:anywhere"
    return f"<span style='{style}'>{escaped(cell(text, 120))}</span>"


def _details_html(rung: Rung) -> str:
    lines = "".join(
        f"<div dir='auto' style='{_TEXT}'><b>{escaped(cell(name, 80))}</b> {escaped(text, 4_000)}</div>"
        for name, text in rung.details[:_MAX_LINES]
    )
    return f"<div style='background:rgba(128,128,128,.12);border-radius:6px;padding:.4rem .8rem'>{lines}</div>"


def _ladder_html(item: Shown, focus: int) -> str:
    """A line for each negative, those around the one in question where there are many."""
    place = next(number for number, rung in enumerate(item.rungs) if rung.candidate_id == focus)
    start = max(0, min(place - _MAX_LINES // 2, len(item.rungs) - _MAX_LINES))
    lines = [_line_html(rung, is_focus=rung.candidate_id == focus) for rung in item.rungs[start : start + _MAX_LINES]]
    left = len(item.rungs) - len(lines)
    more = f"<div style='{_MUTED}'>{left:,} more negatives: move on to see them.</div>" if left else ""
    return f"<div style='margin-top:.6rem'>{''.join(lines)}{more}</div>"


def _line_html(rung: Rung, *, is_focus: bool) -> str:
    colour = COLOUR.get(rung.grade or "", _OTHER)
    flags = ["inverted"] * rung.is_inverted + ["above the positive"] * rung.is_above_positive
    note = " · ".join(flags or [])
    row = (
        f"border-left:6px solid {colour};padding:.1rem .6rem;margin:.15rem 0;display:flex;gap:.7rem;"
        f"align-items:baseline;{'background:rgba(128,128,128,.22);' if is_focus else ''}"
        f"{'' if rung.is_asked else 'opacity:.6;'}"
    )
    summary = "flex:1;min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;unicode-bidi:isolate"
    figure = "" if rung.similarity is None else f"{rung.similarity:.3f}"
    return (
        f"<div style='{row}'><b style='min-width:3.2rem'>{escaped(rung.label)}</b>"
        f"<span style='font-variant-numeric:tabular-nums;min-width:3rem'>{figure}</span>"
        f"<span dir='auto' style='{summary}'>{escaped(cell(rung.text, _SUMMARY))}</span>"
        f"{_chip_html(note, 'rgba(213,94,0,.35)') if note else ''}"
        f"{_chip_html(rung.decided, 'rgba(86,180,233,.35)') if rung.decided else ''}</div>"
    )


def progress_html(progress: "Progress") -> str:
    """How far the session is, how fast this person goes, and how far they agree with themselves and others."""
    total = progress.done + progress.left
    share = 100 * progress.done / total if total else 100.0
    bar = f"<div style='width:{share:.1f}%;height:100%;background:{COLOUR['positive']};border-radius:4px'></div>"
    said = [f"{progress.done:,} of {total:,} done, {progress.mine:,} by you"]
    if progress.pace_per_minute is not None:
        said.append(f"{progress.pace_per_minute:.1f} items a minute")
    if progress.agreement is not None:
        said.append(f"agreement {progress.agreement:.0%} of {progress.num_compared:,}")
    track = "background:rgba(128,128,128,.25);height:.5rem;border-radius:4px;margin-bottom:.3rem"
    return f"<div style='{track}'>{bar}</div><div style='font-size:.85rem'>{'<br>'.join(said)}</div>"


def rescored_html(edit: "Rescored") -> str:
    """An edited text with the teachers' figures: before, after, and where it now stands above the positive."""
    figures = "".join(
        f"<li>{escaped(cell(name, 60))}: {_similarity(edit.scores_before.get(name)) or 'unknown'} → {value:.3f}"
        f"{' (above the positive)' if edit.is_above_positive(name) else ''}</li>"
        for name, value in sorted(edit.scores.items())
    )
    said = f"<ul>{figures}</ul>" if figures else "<p>No teacher has scored it: none of this example's can run here.</p>"
    return f"<div><b>Edited text</b><div dir='auto' style='{_TEXT}'>{escaped(edit.text, _MAX_TEXT)}</div>{said}</div>"
