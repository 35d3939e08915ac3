"""What a release selects: examples page by page, each with its positive, its negatives in order, and their scores.

Rows come in the order of content digests. A judge's or a person's verdict that a negative answers its query takes it
out here, so that nothing after this room has to ask.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.judging.verdicts import Policy, false_negatives, sorted_by_policy
from curation.release.recipe import ReleaseRecipe
from curation.release.splits import assign_splits
from db.tables.examples import Candidate, Example, Score, Task, Teacher
from db.tables.ledger import Run
from db.tables.texts import Collection, Document, Passage, Query

_PAGE = 250
_WRITTEN = ("synthetic", "edited")


@dataclass(frozen=True, slots=True)
class Negative:
    """A negative, and the row that is published of it."""

    candidate: int
    passage: int
    origin: str
    grade: str | None
    row: dict[str, Any]

    @property
    def is_written(self) -> bool:
        return self.origin in _WRITTEN


@dataclass(frozen=True, slots=True)
class Chosen:
    """An example of the release: its texts, where it stands, and its negatives, the machine-written ones first.

    `num_judged_relevant` of the negatives that were selected are relevant, a judge says; under the policy `relabel`
    they are `more_positives`.
    """

    texts: Row[Any]
    split: str
    positive_candidate: int
    positive_scores: list[dict[str, Any]]
    negatives: list[Negative]
    num_judged_relevant: int
    more_positives: list[Negative]


class Selection:
    """The examples that a recipe selects.

    Raises:
        CurationError: Nothing is selected.
    """

    def __init__(self, session: Session, recipe: ReleaseRecipe) -> None:
        self._session, self._recipe = session, recipe
        self._policy: Policy = recipe.false_negatives.policy if recipe.false_negatives else "keep"
        rows = session.execute(
            select(Example.id, Example.digest, Example.query_id, Example.positive_id)
            .where(Example.id.in_(self._examples()))
            .order_by(Example.digest)
        ).all()
        if not rows:
            runs = f" of runs {', '.join(recipe.runs)}" if recipe.runs else ""
            raise CurationError(f"no negatives{runs} to release: generate, mine or import some first")
        keys, digests, queries, positives = (list(column) for column in zip(*rows, strict=True))
        self._keys, self._false = keys, self._judged_relevant(keys)
        more = sorted(self._false) if self._policy == "relabel" else []
        # A passage that is relabelled links its query to every example of which it is the positive.
        digest_of = dict(zip(queries, digests, strict=True))
        splits = assign_splits(
            [*digests, *(digest_of[query] for query, _ in more)],
            [*queries, *(query for query, _ in more)],
            [*positives, *(passage for _, passage in more)],
            dev_share=recipe.split.dev_share,
            seed=recipe.seed,
        )
        self._split_of = dict(zip(keys, splits[: len(keys)], strict=True))

    def __len__(self) -> int:
        return len(self._keys)

    def examples(self) -> Iterator[Chosen]:
        """Every example, in the order of digests."""
        for start in range(0, len(self._keys), _PAGE):
            yield from self._page(self._keys[start : start + _PAGE])

    def queries(self) -> Iterator[dict[str, str]]:
        """Rows of the queries."""
        asked = select(Example.query_id).where(Example.id.in_(self._examples()))
        rows = select(Query.digest, Query.text).where(Query.id.in_(asked)).order_by(Query.digest)
        for digest, text in self._session.execute(rows, execution_options={"yield_per": 1_000}):
            yield {"_id": digest, "text": text}

    def corpus(self) -> Iterator[dict[str, str]]:
        """Rows of the corpus: positives, relabelled ones too, and negatives that were not machine-written."""
        # A set, not a correlated EXISTS: that would look through all candidates once for every passage.
        real = select(Candidate.passage_id).where(
            Candidate.example_id.in_(self._examples()),
            (Candidate.role == "positive") | Candidate.origin.not_in(_WRITTEN),
        )
        rows = select(Passage.digest, Passage.text, _title()).order_by(Passage.digest)
        of_real = rows.where(Passage.id.in_(real))
        for digest, text, title in self._session.execute(of_real, execution_options={"yield_per": 1_000}):
            yield {"_id": digest, "title": title or "", "text": text.removeprefix(title + "\n") if title else text}
        yield from sorted(self._relabelled(rows, real), key=lambda row: row["_id"])

    def _relabelled(self, rows: Select[str, str, str], real: Select[int]) -> Iterator[dict[str, str]]:
        """Rows of the relabelled positives that are not in the corpus already."""
        passages = sorted({passage for _, passage in self._false}) if self._policy == "relabel" else []
        for start in range(0, len(passages), _PAGE):
            wanted = Passage.id.in_(passages[start : start + _PAGE]) & Passage.id.not_in(real)
            for digest, text, title in self._session.execute(rows.where(wanted)):
                yield {"_id": digest, "title": title or "", "text": text}

    def _examples(self) -> Select[int]:
        """Ids of examples with a negative that the recipe selects."""
        return select(Candidate.example_id).where(Candidate.role == "negative", *self._in_runs())

    def _in_runs(self) -> list[Any]:
        names = self._recipe.runs
        return [Candidate.run_id.in_(select(Run.id).where(Run.name.in_(names)))] if names else []

    def _page(self, keys: Sequence[int]) -> Iterator[Chosen]:
        texts = self._texts(keys)
        scores = self._scores(keys)
        negatives = self._negatives(keys, scores)
        positives = select(Candidate.example_id, Candidate.id).where(
            Candidate.example_id.in_(keys), Candidate.role == "positive"
        )
        positive_of = {example: candidate for example, candidate in self._session.execute(positives)}
        for row in texts:
            selected = [((row.query_id, one.passage), one) for one in negatives.get(row.id, [])]
            kept, relabelled = sorted_by_policy(selected, self._false, self._policy)
            yield Chosen(
                texts=row,
                split=self._split_of[row.id],
                positive_candidate=positive_of[row.id],
                positive_scores=scores.get((row.query_id, row.positive_id), []),
                negatives=self._ordered(kept),
                num_judged_relevant=sum(pair in self._false for pair, _ in selected),
                more_positives=relabelled,
            )

    def _judged_relevant(self, keys: Sequence[int]) -> set[tuple[int, int]]:
        """(query, passage) of the negatives that answer their query, a judge says."""
        asked = self._recipe.false_negatives
        found: set[tuple[int, int]] = set()
        if asked is None:
            return found
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            found |= false_negatives(self._session, page, judge=asked.judge, threshold=asked.threshold)
        return found

    def _texts(self, keys: Sequence[int]) -> Sequence[Row[Any]]:
        rows: Sequence[Row[Any]] = self._session.execute(  # type: ignore[assignment]
            select(
                Example.id,
                Example.digest,
                Example.query_id,
                Example.positive_id,
                Example.language,
                Query.text.label("query"),
                Query.digest.label("query_digest"),
                Passage.text.label("positive"),
                Passage.digest.label("positive_digest"),
                Task.instruction,
                Task.task_type,
                Collection.name.label("source"),
                Collection.licence,
            )
            .join(Query, Example.query_id == Query.id)
            .join(Passage, Example.positive_id == Passage.id)
            .outerjoin(Task, Example.task_id == Task.id)
            .outerjoin(Collection, Example.collection_id == Collection.id)
            .where(Example.id.in_(keys))
            .order_by(Example.digest)
        ).all()
        return rows

    def _negatives(
        self, keys: Sequence[int], scores: dict[tuple[int, int], list[dict[str, Any]]]
    ) -> dict[int, list[Negative]]:
        """Negatives by example."""
        rows = self._session.execute(
            select(
                Candidate.id,
                Candidate.example_id,
                Candidate.passage_id,
                Candidate.grade,
                Candidate.rank,
                Candidate.origin,
                Candidate.violated_requirement,
                Example.query_id,
                Passage.digest,
                Passage.text,
            )
            .join(Example, Candidate.example_id == Example.id)
            .join(Passage, Candidate.passage_id == Passage.id)
            .where(Candidate.example_id.in_(keys), Candidate.role == "negative", *self._in_runs())
        )
        found: dict[int, list[Negative]] = defaultdict(list)
        for row in rows:
            published = {
                "id": row.digest,
                "text": row.text,
                "grade": row.grade,
                "rank": row.rank,
                "origin": row.origin,
                "violated_requirement": row.violated_requirement,
                "mined_rank": None,
                "scores": scores.get((row.query_id, row.passage_id), []),
            }
            found[row.example_id].append(Negative(row.id, row.passage_id, row.origin, row.grade, published))
        return found

    def _ordered(self, negatives: list[Negative]) -> list[Negative]:
        """Machine-written ones by rank, then the others from the most similar down, which is their mined rank."""
        written = sorted((n for n in negatives if n.is_written), key=lambda n: (n.row["rank"] or 99, n.row["id"]))
        others = sorted((n for n in negatives if not n.is_written), key=lambda n: (-self._similarity(n), n.row["id"]))
        for place, negative in enumerate(others, start=1):
            negative.row["mined_rank"] = place
        return [*written, *others]

    def _similarity(self, negative: Negative) -> float:
        by_teacher = {score["teacher"]: score["value"] for score in negative.row["scores"]}
        return float(by_teacher.get(self._recipe.teacher, -1.0))

    def _scores(self, keys: Sequence[int]) -> dict[tuple[int, int], list[dict[str, Any]]]:
        """Scores of the page's pairs by (query id, passage id), teachers by name; a teacher's newest version."""
        pairs = (
            select(Example.query_id, Candidate.passage_id)
            .join(Example, Candidate.example_id == Example.id)
            .where(Candidate.example_id.in_(keys))
            .distinct()
            .subquery()
        )
        rows = self._session.execute(
            select(Score.query_id, Score.passage_id, Teacher.name, Score.value)
            .join(Teacher, Score.teacher_id == Teacher.id)
            .join(pairs, (pairs.c.query_id == Score.query_id) & (pairs.c.passage_id == Score.passage_id))
            .order_by(Teacher.id)
        )
        found: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
        for query, passage, teacher, value in rows:
            found[query, passage][teacher] = value
        return {
            pair: [{"teacher": teacher, "value": value} for teacher, value in sorted(by_teacher.items())]
            for pair, by_teacher in found.items()
        }


def _title() -> Any:
    """The smallest title under which a collection holds the passage: one, whatever the order of imports."""
    return select(func.min(Document.title)).where(Document.passage_id == Passage.id).scalar_subquery().label("title")
