"""From a drawn queue to a session's items: hidden gold and repeats in between, positions given once and for all.

Where gold and repeats stand is random but evenly spread, a pure function of the seed, so that they show at every stage
of a session and cannot be told by their place.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.reviewing.gold import GoldAnswer
from curation.reviewing.queue import Picked
from curation.reviewing.recipe import Repeats
from db.digest import counter_uniform
from db.insert import insert_missing
from db.tables.review import Assignment, ItemCandidate, ReviewItem

_PAGE = 2_000


@dataclass(frozen=True, slots=True)
class Placed:
    """An item to be: `repeats` is the index of the picked example that it shows again."""

    kind: str
    picked: Picked | None = None
    gold: tuple[GoldAnswer, ...] = ()
    index: int | None = None

    @property
    def example_id(self) -> int:
        return self.gold[0].example_id if self.picked is None else self.picked.example_id


def place(picked: Sequence[Picked], gold: Sequence[GoldAnswer], repeats: Repeats | None, seed: int) -> Iterator[Placed]:
    """All items in order. An example that gold asks about is not asked about otherwise."""
    of_example: dict[int, list[GoldAnswer]] = defaultdict(list)
    for answer in gold:
        of_example[answer.example_id].append(answer)
    regular = [one for one in picked if one.example_id not in of_example]
    spots = [(float(number), 0, Placed("regular", one, index=number)) for number, one in enumerate(regular)]
    for number, answers in enumerate(of_example.values()):
        spot = (number + counter_uniform(seed, "gold", number)) * len(regular) / len(of_example)
        spots.append((spot, 1, Placed("gold", gold=tuple(answers))))
    for number, index in enumerate(_repeated(len(regular), repeats, seed)):
        assert repeats is not None
        spot = index + repeats.distance * (1 + 0.5 * counter_uniform(seed, "repeat later", number))
        spots.append((spot, 2, Placed("repeat", regular[index], index=index)))
    return (one for _, _, one in sorted(spots, key=lambda spot: spot[:2]))


def _repeated(num: int, repeats: Repeats | None, seed: int) -> list[int]:
    """Indices of the items that come again, one from each of as many equal stretches; none so late that it cannot."""
    if repeats is None or num <= repeats.distance:
        return []
    reach = num - repeats.distance
    wanted = min(max(1, round(num * repeats.share)), reach)
    return [int((n + counter_uniform(seed, "repeat", n)) * reach / wanted) for n in range(wanted)]


def store_items(session: Session, session_id: int, placed: Iterator[Placed], *, overlap: int) -> dict[str, int]:
    """Write items, what they ask about, and the free slots of regular ones. Returns how many items of each kind."""
    counts: dict[str, int] = defaultdict(int)
    position_of: dict[int, int] = {}
    page: list[Placed] = []
    start = 0
    for one in placed:
        page.append(one)
        if len(page) == _PAGE:
            _store_page(session, session_id, start, page, position_of, overlap)
            start, page = start + len(page), []
        counts[one.kind] += 1
    _store_page(session, session_id, start, page, position_of, overlap)
    return dict(counts)


def _store_page(
    session: Session,
    session_id: int,
    start: int,
    page: Sequence[Placed],
    position_of: dict[int, int],
    overlap: int,
) -> None:
    items = []
    for position, one in enumerate(page, start):
        repeats_position = position_of[one.index] if one.kind == "repeat" and one.index is not None else None
        if one.kind == "regular" and one.index is not None:
            position_of[one.index] = position
        items.append({
            "session_id": session_id, "position": position, "example_id": one.example_id, "kind": one.kind,
            "repeats_position": repeats_position, "suspicion": one.picked.suspicion if one.picked else None,
        })  # fmt: skip
    insert_missing(session, ReviewItem, items)
    in_page = ReviewItem.position.between(start, start + len(page) - 1)
    rows = session.execute(
        select(ReviewItem.position, ReviewItem.id).where(ReviewItem.session_id == session_id, in_page)
    )
    ids = {position: key for position, key in rows}
    asked, slots = [], []
    for position, one in enumerate(page, start):
        asked += _asked_rows(ids[position], one)
        if one.kind == "regular":
            of_item = {"session_id": session_id, "item_id": ids[position], "position": position}
            slots += [{**of_item, "slot": slot} for slot in range(1, overlap + 1)]
    insert_missing(session, ItemCandidate, asked)
    insert_missing(session, Assignment, slots)


def _asked_rows(item_id: int, one: Placed) -> list[Mapping[str, Any]]:
    if one.picked is None:
        nothing = {"stratum": None, "suspicion": None, "reasons": None}
        return [
            {"item_id": item_id, "candidate_id": answer.candidate_id, "expected": answer.decision,
             "expected_grade": answer.grade, **nothing}
            for answer in one.gold
        ]  # fmt: skip
    return [
        {"item_id": item_id, "candidate_id": each.candidate_id, "expected": None, "expected_grade": None,
         "stratum": each.stratum, "suspicion": each.suspicion, "reasons": list(each.reasons) or None}
        for each in one.picked.asked
    ]  # fmt: skip
