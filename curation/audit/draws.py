"""Which texts a leak is measured on: a bounded draw of a run's candidates, and real texts of the same collection.

Draws go by digest, which is as good as random and the same in every store: what is drawn never depends on keys.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Row, Select, select
from sqlalchemy.orm import Session

from curation.audit.scope import passage_texts
from curation.release.splits import components
from db.tables.examples import Candidate, Example
from db.tables.texts import Document, Passage

_LOOKUP = 400
WRITTEN = ("synthetic", "edited")


@dataclass(slots=True)
class Texts:
    """A set of different passages: text and group (linked queries and positives) by passage id, in draw order."""

    text: dict[int, str] = field(default_factory=dict)
    group: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def without(self, passages: Iterable[int], most: int | None = None) -> "Texts":
        """The first `most` of those that are not among these."""
        dropped = set(passages)
        kept = [key for key in self.text if key not in dropped][:most]
        return Texts({key: self.text[key] for key in kept}, {key: self.group[key] for key in kept})

    def halves(self) -> tuple["Texts", "Texts"]:
        """Every second one, and the others."""
        keys = list(self.text)
        return self.without(keys[1::2]), self.without(keys[::2])


@dataclass(frozen=True, slots=True)
class Draw:
    """A run's drawn examples: rows of candidates, and the linked group of each example and passage."""

    rows: list[Row]
    group_of_example: dict[int, int]
    linked: frozenset[int]

    @property
    def positives(self) -> set[int]:
        return {row.positive_id for row in self.rows}

    def candidates(self, session: Session, rank: int | None = None, *, roles: Sequence[str] = ("negative",)) -> Texts:
        """Candidates of the draw (of one rank), the positives of other drawn examples left out."""
        chosen = [row for row in self.rows if row.role in roles and (rank is None or row.rank == rank)]
        skipped = self.positives if "positive" not in roles else set()
        groups = {row.passage_id: self.group_of_example[row.example_id] for row in reversed(chosen)}
        keys = list(dict.fromkeys(row.passage_id for row in chosen if row.passage_id not in skipped))
        return _texts(session, keys, groups)

    def positive_texts(self, session: Session) -> Texts:
        groups = {row.positive_id: self.group_of_example[row.example_id] for row in reversed(self.rows)}
        return _texts(session, list(dict.fromkeys(row.positive_id for row in self.rows)), groups)

    def mined(self, session: Session, most: int) -> Texts:
        """Real negatives of the drawn examples, whichever run found them."""
        examples = sorted(self.group_of_example)
        found: list[tuple[str, int, int]] = []
        for start in range(0, len(examples), _LOOKUP):
            found += session.execute(
                select(Passage.digest, Candidate.passage_id, Candidate.example_id)
                .join(Passage, Candidate.passage_id == Passage.id)
                .where(
                    Candidate.example_id.in_(examples[start : start + _LOOKUP]),
                    Candidate.role == "negative",
                    Candidate.origin.not_in(WRITTEN),
                )
            )
        groups = {passage: self.group_of_example[example] for _, passage, example in sorted(found, reverse=True)}
        keys = list(dict.fromkeys(passage for _, passage, _ in sorted(found) if passage not in self.positives))
        return _texts(session, keys[:most], groups)


def draw_run(session: Session, run: int, *, positive_origin: str, max_texts: int) -> Draw:
    """The first candidates of a run, at most `max_texts`, in examples of this origin (`corpus` or `synthetic`)."""
    of_run = (Candidate.run_id == run) & (Example.origin == positive_origin)
    rows = list(session.execute(_candidates(of_run, max_texts)))
    return Draw(rows, *_linked(rows))


def _candidates(where: ColumnElement[bool], most: int) -> Select:
    return (
        select(
            Candidate.example_id,
            Candidate.passage_id,
            Candidate.parent_passage_id,
            Candidate.rank,
            Candidate.role,
            Candidate.origin,
            Example.query_id,
            Example.positive_id,
            Example.collection_id,
        )
        .join(Example, Candidate.example_id == Example.id)
        .join(Passage, Candidate.passage_id == Passage.id)
        .where(where)
        .order_by(Example.digest, Candidate.rank, Passage.digest)
        .limit(most)
    )


def _linked(rows: Sequence[Row]) -> tuple[dict[int, int], frozenset[int]]:
    """Group of each example, and every passage that an example knows.

    An edit's source links examples too: the edit is nearly the same text.
    """
    parents = [(row.example_id, row.query_id, row.parent_passage_id) for row in rows if row.parent_passage_id]
    links = [*((row.example_id, row.query_id, row.positive_id) for row in rows), *parents]
    groups = components([query for _, query, _ in links], [passage for *_, passage in links]).tolist()
    of_example = {example: group for (example, _, _), group in zip(links, groups, strict=True)}
    linked = {key for row in rows for key in (row.passage_id, row.positive_id, row.parent_passage_id) if key}
    return of_example, frozenset(linked)


def draw_corpus(session: Session, collection: int, *, most: int) -> Texts:
    """The first passages of a collection by digest, each its own group (negative, so that it links to no example)."""
    rows = session.execute(
        select(Passage.id, Passage.text)
        .where(Passage.id.in_(select(Document.passage_id).where(Document.collection_id == collection)))
        .order_by(Passage.digest)
        .limit(most)
    )
    texts = {key: text for key, text in rows}
    return Texts(texts, {key: -1 - place for place, key in enumerate(texts)})


def _texts(session: Session, keys: Sequence[int], groups: dict[int, int]) -> Texts:
    found = passage_texts(session, keys)
    return Texts({key: found[key] for key in keys}, {key: groups[key] for key in keys})
