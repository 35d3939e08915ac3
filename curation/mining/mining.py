"""Mined negatives: BM25 and a dense teacher propose, the dense teacher keeps those clearly below the positive.

Search is exact, and queries go through it block by block, so memory grows with the corpus, never with corpus x
queries. A known positive of the query, by id or by equal text, is never a negative.

Legend: Q queries, D documents, E embedding dimension.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from curation.embeddings import EmbeddingCache, Floats
from curation.errors import CurationError
from curation.mining.recipe import MineRecipe
from curation.mining.search import top_k
from db.examples import NewCandidate, NewSourcing, put_candidates, put_sourcings
from db.runs import finish_run, start_run
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.ledger import Run
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query
from db.teachers import put_teacher

_BLOCK = 200
_LOOKUP_SIZE = 500
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A passage that a proposer found for a query."""

    document: int
    proposer: str
    retrieval_rank: int
    score: float


@dataclass(slots=True)
class MineReport:
    """What was proposed, what the ceiling refused, and which examples got fewer negatives than asked."""

    run: str
    num_examples: int = 0
    num_queries: int = 0
    num_proposed: int = 0
    num_known_positives: int = 0
    num_over_ceiling: int = 0
    num_survivors: int = 0
    num_candidates: int = 0
    num_new: int = 0
    num_short_of_negatives: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def positive_aware_ceiling(positive_scores_Q: Floats, *, percentage: float) -> Floats:
    """Score that a mined negative must stay below, or be suspected of being a false negative.

    Args:
        positive_scores_Q: Cosine of each query with its lowest-scoring positive, [queries].
        percentage: Share of the positive's score, 0 to 1.

    Returns:
        Ceiling per query, [queries]; below the positive for negative cosines too.

    Source: NV-Retriever, arXiv 2407.15831, TopK-PercPos; the magnitude keeps it right below zero.
    """
    return (positive_scores_Q - np.abs(positive_scores_Q) * (1 - percentage)).astype(np.float32)


def mine(
    store: Store, recipe: MineRecipe, cache: EmbeddingCache, *, progress: Progress = lambda done, total: None
) -> MineReport:
    """Mine negatives for the recipe's examples. What was mined before is found again, not added twice.

    Raises:
        CurationError: The collection is not in the store, or has no examples that fit the recipe.
    """
    report = MineReport(recipe.name)
    with store.read() as session:
        work = _Work.load(session, recipe)
    report.num_queries, report.num_examples = len(work.queries), sum(map(len, work.examples.values()))
    documents_DE, _ = cache.embed([*work.passages.values(), *work.positives_elsewhere.values()], progress=progress)
    queries_QE, _ = cache.embed(list(work.queries.values()))
    with store.write() as session:
        run_id = start_run(session, "mine", recipe.name, recipe.model_dump(mode="json"), 0).id
        teachers = _put_teachers(session, recipe, cache)
    miner = _Miner(recipe, work, documents_DE, report)
    queries = list(work.queries)
    for start in range(0, len(queries), _BLOCK):
        chosen = miner.choose(queries[start : start + _BLOCK], queries_QE[start : start + _BLOCK])
        with store.write() as session:
            report.num_new += _write(session, run_id, work.examples, chosen, teachers)
        progress(min(start + _BLOCK, len(queries)), len(queries))
    with store.write() as session:
        totals = {key: value for key, value in report.to_dict().items() if key != "num_new"}
        finish_run(session, session.get_one(Run, run_id), totals)
    return report


def _put_teachers(session: Session, recipe: MineRecipe, cache: EmbeddingCache) -> dict[str, int]:
    """Teacher ids of the proposers."""
    encoder = cache.encoder
    teachers = {
        "dense": put_teacher(
            session, name=encoder.name, version=encoder.version, kind="bi-encoder", max_length=encoder.max_length
        )
    }
    if "bm25" in recipe.proposers:
        from curation.mining import bm25

        teachers["bm25"] = put_teacher(session, name="bm25", version=bm25.version(), kind="bm25")
    return teachers


@dataclass(frozen=True, slots=True)
class _Work:
    """What a run works on, by store id: the collection's passages, and the queries with their examples and positives.

    A query may have a positive outside the collection, from another import: it lowers the ceiling too.
    """

    passages: dict[int, str]
    positives_elsewhere: dict[int, str]
    queries: dict[int, str]
    examples: dict[int, list[int]]
    positives: dict[int, set[int]]

    @classmethod
    def load(cls, session: Session, recipe: MineRecipe) -> "_Work":
        collection = session.scalar(select(Collection.id).where(Collection.name == recipe.collection))
        if collection is None:
            raise CurationError(f"collection = {recipe.collection!r} is not in the store: run 'gradus import' first")
        examples = _examples(session, recipe, collection)
        if not examples:
            raise CurationError(
                f"collection {recipe.collection!r} has no {recipe.examples} examples with a positive in split "
                f"{recipe.split!r}: import judgments, or run 'gradus generate' first for examples = 'generated'"
            )
        is_document = exists().where(Document.passage_id == Passage.id, Document.collection_id == collection)
        rows = session.execute(select(Passage.id, Passage.text).where(is_document).order_by(Passage.id))
        passages = {key: text for key, text in rows}
        positives: dict[int, set[int]] = defaultdict(set)
        for query, positive in session.execute(select(Example.query_id, Example.positive_id)):
            if query in examples:
                positives[query].add(positive)
        elsewhere = set(chain.from_iterable(positives.values())) - passages.keys()
        return cls(passages, _texts(session, Passage, elsewhere), _texts(session, Query, examples), examples, positives)


def _texts(session: Session, table: type[Passage] | type[Query], keys: Iterable[int]) -> dict[int, str]:
    """Texts by id, in the order of ids."""
    ordered = sorted(keys)
    texts: dict[int, str] = {}
    for start in range(0, len(ordered), _LOOKUP_SIZE):
        wanted = table.id.in_(ordered[start : start + _LOOKUP_SIZE])
        rows = session.execute(select(table.id, table.text).where(wanted).order_by(table.id))
        texts.update({key: text for key, text in rows})
    return texts


def _examples(session: Session, recipe: MineRecipe, collection: int) -> dict[int, list[int]]:
    """Ids of the recipe's examples by query id."""
    is_judged = exists().where(
        Qrel.collection_query_id == CollectionQuery.id,
        CollectionQuery.query_id == Example.query_id,
        CollectionQuery.collection_id == collection,
        Qrel.document_id == Document.id,
        Document.passage_id == Example.positive_id,
        Qrel.split == recipe.split,
        Qrel.relevance > 0,
    )
    statement = select(Example.id, Example.query_id).where(Example.collection_id == collection, is_judged)
    if recipe.examples == "generated":
        is_written = Candidate.origin.in_(("synthetic", "edited"))
        statement = statement.where(exists().where(Candidate.example_id == Example.id, is_written))
    examples: dict[int, list[int]] = defaultdict(list)
    for example, query in session.execute(statement.order_by(Example.id)):
        examples[query].append(example)
    return examples


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A surviving negative: its passage, cosine and ceiling, and everyone who proposed it."""

    passage: int
    cosine: float
    ceiling: float
    proposals: tuple[Proposal, ...]


class _Miner:
    """Proposes and chooses, a block of queries at a time. Within it a document is its row among all passages."""

    def __init__(self, recipe: MineRecipe, work: _Work, documents_DE: Floats, report: MineReport) -> None:
        self._recipe, self._work, self._report = recipe, work, report
        self._passages = [*work.passages, *work.positives_elsewhere]
        self._texts = [*work.passages.values(), *work.positives_elsewhere.values()]
        self._row_of = {passage: row for row, passage in enumerate(self._passages)}
        self._documents_DE = documents_DE
        self._bm25 = None
        if "bm25" in recipe.proposers:
            from curation.mining.bm25 import Bm25

            self._bm25 = Bm25(list(work.passages.values()))

    def choose(self, queries: Sequence[int], queries_QE: Floats) -> dict[int, list[_Chosen]]:
        """The hardest survivors of each query, by query id, hardest first."""
        proposed = self._propose(queries, queries_QE)
        return {
            query: self._survivors(query, vector_E, found)
            for query, vector_E, found in zip(queries, queries_QE, proposed, strict=True)
        }

    def _propose(self, queries: Sequence[int], queries_QE: Floats) -> list[dict[int, list[Proposal]]]:
        """Proposals of each query, by document."""
        # Known positives stand near the top and are taken out later: look that much deeper.
        depths = [self._recipe.depth + len(self._work.positives[query]) for query in queries]
        proposed: list[dict[int, list[Proposal]]] = [defaultdict(list) for _ in queries]
        for proposer in self._recipe.proposers:
            if proposer == "bm25" and self._bm25 is not None:
                found, scores = self._bm25.top([self._work.queries[query] for query in queries], max(depths))
            else:
                found, scores = top_k(queries_QE, self._documents_DE[: len(self._work.passages)], max(depths))
            for row, depth in enumerate(depths):
                ranked = zip(found[row, :depth].tolist(), scores[row, :depth].tolist(), strict=True)
                for rank, (document, score) in enumerate(ranked, start=1):
                    if document >= 0:
                        proposal = Proposal(document, proposer, rank, round(score, 6))
                        proposed[row][document].append(proposal)
        return proposed

    def _survivors(self, query: int, query_E: Floats, found: dict[int, list[Proposal]]) -> list[_Chosen]:
        report = self._report
        positives = {self._row_of[passage] for passage in self._work.positives[query]}
        lowest = (self._documents_DE[sorted(positives)] @ query_E).min(keepdims=True)
        (ceiling,) = _rounded(positive_aware_ceiling(lowest, percentage=self._recipe.percentage))
        known_texts = {_comparable(self._texts[row]) for row in positives}
        cosines = _rounded(self._documents_DE[list(found)] @ query_E)
        survivors = []
        for (document, by), cosine in zip(found.items(), cosines, strict=True):
            if document in positives or _comparable(self._texts[document]) in known_texts:
                report.num_known_positives += 1
            elif not cosine < ceiling:
                report.num_over_ceiling += 1
            else:
                survivors.append(_Chosen(self._passages[document], cosine, ceiling, tuple(by)))
        survivors.sort(key=lambda one: (-one.cosine, one.passage))
        kept = survivors[: self._recipe.num_negatives]
        num_examples = len(self._work.examples[query])
        report.num_proposed += len(found)
        report.num_survivors += len(survivors)
        report.num_candidates += num_examples * len(kept)
        report.num_short_of_negatives += num_examples * (len(kept) < self._recipe.num_negatives)
        return kept


def _rounded(scores: Floats) -> list[float]:
    """As they are stored: what is compared is what a reader of the store can compare again."""
    return [round(score, 6) for score in scores.tolist()]


def _comparable(text: str) -> str:
    return " ".join(text.casefold().split())


def _write(
    session: Session,
    run_id: int,
    examples: dict[int, list[int]],
    chosen: dict[int, list[_Chosen]],
    teachers: dict[str, int],
) -> int:
    """Candidates and how they were found; returns how many findings are new."""
    found = [(example, one) for query, kept in chosen.items() for example in examples[query] for one in kept]
    keys = put_candidates(
        session, [NewCandidate(example, one.passage, "negative", "mined", run_id) for example, one in found]
    )
    sourcings = [
        NewSourcing(
            keys[example, one.passage],
            run_id,
            teacher_id=teachers[proposal.proposer],
            retrieval_rank=proposal.retrieval_rank,
            score=one.cosine if proposal.proposer == "dense" else proposal.score,
            threshold=one.ceiling if proposal.proposer == "dense" else None,
        )
        for example, one in found
        for proposal in one.proposals
    ]
    return put_sourcings(session, sourcings)
