"""What came, went and changed between two releases, and why, as far as the store knows.

Reasons come from the recipes (a run that was not selected, a judge's verdict that counts in one of them), from what
people had decided when each was made, and from the runs behind a candidate. What the store cannot tell is called so.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.judging.verdicts import false_negatives
from curation.release.catalogue import find_release
from curation.release.decided import Decided
from curation.release.recipe import ReleaseRecipe
from curation.reviewing.queue import EDITING
from curation.reviewing.verdicts import Verdict, Verdicts
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.ledger import Run
from db.tables.releases import Release, ReleaseItem
from db.tables.texts import Passage, Query

_NUM_NAMED = 5
_LOOKUP = 2_000
_MAX_TEXT = 200
_WHY_PLACED = "others of its example came or went, or scores are new"
Rows = Mapping[str, Mapping[str, int]]


class Items(Protocol):
    """What a builder remembers: candidates, their places, and which are of dev."""

    @property
    def items(self) -> Sequence[int]: ...
    @property
    def positions(self) -> Sequence[int]: ...
    @property
    def is_dev(self) -> Sequence[int]: ...
    @property
    def decided(self) -> Decided | None: ...


@dataclass(frozen=True, slots=True)
class Side:
    """A release as differences see it. Arrays are sorted by candidate, [items]. People's decisions up to `until` count
    in it; None where it knew of none."""

    recipe: dict[str, Any]
    rows: Rows
    runs: frozenset[str]  # names of the runs behind it; empty where that is not known yet
    keys: NDArray[np.int64]
    is_dev: NDArray[np.bool_]
    positions: NDArray[np.int32]
    until: datetime | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the store knows of a candidate: whether a judge's verdict counts against it, and what people had decided
    on it when either release was made."""

    role: str
    run: str
    run_kind: str
    grade: str | None
    rank: int | None
    is_false: bool
    was: Verdict | None
    now: Verdict | None


@dataclass(frozen=True, slots=True)
class _Told:
    """Where reasons are looked up: people's verdicts as either release knew them, and whose judges count."""

    was: Verdicts | None
    now: Verdicts | None
    recipe: Mapping[str, Any] | None


def diff_releases(store: Store, first: str, second: str) -> dict[str, Any]:
    """What changed from one release to another: recipe, configurations of other bytes, rows, candidates by reason.

    Raises:
        CurationError: There is no release of one of the names.
    """
    with store.read() as session:
        old, new = find_release(session, first), find_release(session, second)
        files = [_files(release) for release in (old, new)]
        others = sorted(
            {name.split("/")[0] for name in {*files[0], *files[1]} if files[0].get(name) != files[1].get(name)}
        )
        found = _differences(session, _side(session, old), _side(session, new))
        return {"from": first, "to": second, "configurations": others, **found}


def _files(release: Release) -> dict[str, str]:
    """SHA-256 of the data files."""
    files = release.manifest["files"]
    return {name: one["sha256"] for name, one in files.items() if name.endswith(".parquet")}


def changes_since(session: Session, parent: Release, recipe: ReleaseRecipe, built: Items, rows: Rows) -> dict[str, Any]:
    """The same from a release to one that is being made."""
    keys = np.array(built.items, dtype=np.int64)
    order = np.argsort(keys)
    new = Side(
        recipe=recipe.model_dump(mode="json"),
        rows=rows,
        runs=frozenset(),
        keys=keys[order],
        is_dev=np.array(built.is_dev, dtype=bool)[order],
        positions=np.array(built.positions, dtype=np.int32)[order],
        until=built.decided.until if built.decided is not None else None,
    )
    changes = _differences(session, _side(session, parent), new)
    # Rows are named in the order of integer keys, which are another store's secret: a release counts them only.
    for part in (changes["came"], changes["went"], *changes["changed"].values()):
        part["reasons"] = [{"reason": one["reason"], "num": one["num"]} for one in part["reasons"]]
    return changes


def _side(session: Session, release: Release) -> Side:
    columns = select(ReleaseItem.candidate_id, ReleaseItem.split, ReleaseItem.position)
    of_release = columns.where(ReleaseItem.release_id == release.id).order_by(ReleaseItem.candidate_id)
    num = release.manifest["num_items"]
    keys, is_dev, positions = np.zeros(num, np.int64), np.zeros(num, bool), np.zeros(num, np.int32)
    for place, (key, split, position) in enumerate(session.execute(of_release, execution_options={"yield_per": 5_000})):
        keys[place], is_dev[place], positions[place] = key, split == "dev", position
    manifest = release.manifest
    runs = frozenset(run["name"] for run in manifest["runs"])
    until = (manifest.get("decisions") or {}).get("until")
    known_until = datetime.fromisoformat(until) if until else None
    return Side(release.recipe, manifest["rows"], runs, keys, is_dev, positions, known_until)


def _differences(session: Session, old: Side, new: Side) -> dict[str, Any]:
    came = np.setdiff1d(new.keys, old.keys, assume_unique=True)
    went = np.setdiff1d(old.keys, new.keys, assume_unique=True)
    _, in_old, in_new = np.intersect1d(old.keys, new.keys, assume_unique=True, return_indices=True)
    moved = old.keys[in_old][old.is_dev[in_old] != new.is_dev[in_new]]
    placed = old.keys[in_old][old.positions[in_old] != new.positions[in_new]]
    recipe = _recipe_changes(old.recipe, new.recipe)
    people = _people(session, old), _people(session, new)
    return {
        "recipe": recipe,
        "rows": _row_changes(old.rows, new.rows),
        "came": _by_reason(session, came, lambda known: _why_came(known, old), _Told(*people, old.recipe)),
        "went": _by_reason(session, went, lambda known: _why_went(known, new), _Told(*people, new.recipe)),
        "changed": {
            "split": _by_reason(session, moved, lambda known: _why_moved(recipe), _Told(None, None, None)),
            "place": _by_reason(session, placed, _why_placed, _Told(*people, None)),
        },
        "num_kept": len(in_old),
    }


def _people(session: Session, side: Side) -> Verdicts | None:
    """What people had decided, as the release knew it."""
    if side.until is None:
        return None
    return Verdicts(session, sessions=_decisions(side).get("sessions", ()), until=side.until)


def _decisions(side: Side) -> Mapping[str, Any]:
    return side.recipe.get("decisions") or {}


def _recipe_changes(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> list[dict[str, Any]]:
    changes = []
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            changes += _recipe_changes(was, now, f"{above}{name}.")
        elif was != now:
            changes.append({"key": f"{above}{name}", "was": was, "now": now})
    return changes


def _row_changes(old: Rows, new: Rows) -> list[dict[str, Any]]:
    places = sorted({(config, split) for rows in (old, new) for config in rows for split in rows[config]})
    return [
        {"configuration": config, "split": split, "was": was, "now": now}
        for config, split in places
        if (was := old.get(config, {}).get(split, 0)) != (now := new.get(config, {}).get(split, 0))
    ]


def _why_came(known: _Known, old: Side) -> str:
    selected = old.recipe["runs"]
    if known.role == "positive":
        return "the positive of an example that came"
    if known.run_kind == EDITING:
        return f"edited by people in the review {known.run}"
    if selected and known.run not in selected:
        return f"run {known.run} was not selected before"
    if known.run not in old.runs:
        return f"run {known.run} is new"
    if (why := _left_out(known.was, old)) is not None:
        return f"left out before: {why}"
    if known.is_false:
        return "judged relevant: left out before, kept now"
    return f"run {known.run} found more"


def _why_went(known: _Known, new: Side) -> str:
    selected = new.recipe["runs"]
    if known.role == "positive":
        return "the positive of an example that went"
    if selected and known.run not in selected and known.run_kind != EDITING:
        return f"run {known.run} is not selected any more"
    if (why := _left_out(known.now, new)) is not None:
        return why
    if known.run_kind == EDITING:
        return "people's edit of another text, which does not hold any more"
    if known.is_false:
        return "judged relevant"
    return "not told by the store"


def _left_out(verdict: Verdict | None, side: Side) -> str | None:
    """Why people's decisions leave a negative out of the release; None where they do not."""
    required = _decisions(side).get("required", "none")
    if verdict is None:
        return None if required == "none" else "nobody decided on it"
    if verdict.word is None:
        return "people disagree on it, and nobody settled it"
    if required == "agreed" and verdict.state == "decided":
        return "one person decided on it, and two have to agree"
    outcomes = {
        "drop": "dropped by people",
        "edit": "edited by people: their text stands in its place",
        "false_negative": "a false negative by people's decision",
    }
    return outcomes.get(verdict.word.outcome)


def _why_placed(known: _Known) -> str:
    was, now = _place(known.was, known), _place(known.now, known)
    if was == now:
        return _WHY_PLACED
    if "false_negative" in (was[0], now[0]):
        return "people's decision whether it is a false negative"
    return "regraded or put in another order by people"


def _place(verdict: Verdict | None, known: _Known) -> tuple[str, str | None, int | None]:
    """Outcome, grade and rank that people's decisions give."""
    word = None if verdict is None else verdict.word
    if word is None or not (word.has_grade or word.outcome == "false_negative"):
        return "keep", known.grade, known.rank
    return word.outcome, word.grade, word.rank


def _why_moved(recipe: Sequence[Mapping[str, Any]]) -> str:
    keys = [change["key"] for change in recipe if change["key"] in ("seed", "split.dev_share")]
    return f"recipe: {', '.join(keys)}" if keys else "its query or positive is linked to other examples now"


def _by_reason(session: Session, keys: NDArray[np.int64], why: Callable[[_Known], str], told: _Told) -> dict[str, Any]:
    """Candidates by reason, the most frequent first, some of each by name."""
    reasons: Counter[str] = Counter()
    named: dict[str, list[int]] = {}
    for start in range(0, len(keys), _LOOKUP):
        page = keys[start : start + _LOOKUP].tolist()
        known = _look_up(session, page, told)
        for key in page:
            reason = why(known[key])
            reasons[reason] += 1
            several = named.setdefault(reason, [])
            if len(several) < _NUM_NAMED:
                several.append(key)
    texts = _texts(session, [key for several in named.values() for key in several])
    ordered = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    return {
        "num": len(keys),
        "reasons": [
            {"reason": reason, "num": num, "rows": [texts[key] for key in named[reason]]} for reason, num in ordered
        ],
    }


def _look_up(session: Session, keys: Sequence[int], told: _Told) -> dict[int, _Known]:
    rows = session.execute(
        select(
            Candidate.id, Candidate.example_id, Candidate.role, Run.name.label("run"), Run.kind.label("run_kind"),
            Candidate.grade, Candidate.rank, Example.query_id, Candidate.passage_id,
        )
        .join(Example, Candidate.example_id == Example.id)
        .join(Run, Candidate.run_id == Run.id)
        .where(Candidate.id.in_(keys))
    ).all()  # fmt: skip
    examples = sorted({row.example_id for row in rows})
    asked = (told.recipe or {}).get("false_negatives")
    false: set[tuple[int, int]] = set()
    if asked and asked["policy"] == "drop":
        false = false_negatives(session, examples, judge=asked["judge"], threshold=asked["threshold"])
    was, now = ({} if one is None else one.of_examples(examples) for one in (told.was, told.now))
    return {
        row.id: _Known(
            row.role, row.run, row.run_kind, row.grade, row.rank, (row.query_id, row.passage_id) in false,
            was.get(row.id), now.get(row.id),
        )
        for row in rows
    }  # fmt: skip


def _texts(session: Session, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
    rows = session.execute(
        select(
            Candidate.id,
            Example.digest,
            Passage.digest,
            Query.text,
            Passage.text,
            Candidate.role,
            Candidate.origin,
            Candidate.grade,
            Candidate.rank,
        )
        .join(Example, Candidate.example_id == Example.id)
        .join(Query, Example.query_id == Query.id)
        .join(Passage, Candidate.passage_id == Passage.id)
        .where(Candidate.id.in_(keys))
    )
    return {
        key: {
            "example_id": example,
            "id": passage,
            "query": query[:_MAX_TEXT],
            "text": text[:_MAX_TEXT],
            "role": role,
            "origin": origin,
            "grade": grade,
            "rank": rank,
        }
        for key, example, passage, query, text, role, origin, grade, rank in rows
    }
