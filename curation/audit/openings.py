"""Repeated openings: how many negatives of a run begin with the same words as another of it. 16 bytes a negative."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from curation.audit.scope import pages
from curation.audit.shingles import shingle, words_of
from db.tables.examples import Candidate
from db.tables.texts import Passage

NUM_WORDS = 4
_READ = 120  # characters, enough for four words
_NUM_TOP = 5
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Openings:
    """Of `total` different texts, `num` begin as another does; `top` are the most frequent openings, with counts."""

    total: int
    num: int
    top: list[tuple[str, int]]

    def to_dict(self) -> dict[str, Any]:
        share = self.num / self.total if self.total else 0.0
        top = [{"text": text, "num": num} for text, num in self.top]
        return {"num_words": NUM_WORDS, "total": self.total, "num": self.num, "share": share, "top": top}


def repeated_openings(session: Session, run: int) -> Openings:
    """Openings of a run's negatives, each passage counted once."""
    of_run = select(Candidate.passage_id).where(Candidate.run_id == run, Candidate.role == "negative")
    beginnings = select(Passage.id, func.substr(Passage.text, 1, _READ).label("text")).where(Passage.id.in_(of_run))
    hashes, keys = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for page in pages(session, beginnings.order_by(Passage.digest)):
        hashes.append(shingle([_opening(row.text) for row in page], NUM_WORDS).whole)
        keys.append(np.array([row.id for row in page], np.int64))
    _, first, num = np.unique(np.concatenate(hashes), return_index=True, return_counts=True)
    top = [place for place in np.argsort(-num, kind="stable")[:_NUM_TOP].tolist() if num[place] > 1]
    passages = np.concatenate(keys)
    shown = [(_text(session, int(passages[first[place]])), int(num[place])) for place in top]
    return Openings(len(passages), int(num[num > 1].sum()), shown)


def _opening(text: str) -> str:
    return " ".join(words_of(text)[:NUM_WORDS])


def _text(session: Session, passage: int) -> str:
    return _opening(session.scalars(select(func.substr(Passage.text, 1, _READ)).where(Passage.id == passage)).one())
