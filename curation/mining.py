"""Mined negatives: BM25 and a dense teacher propose, the dense teacher keeps those clearly below the positive.

Search is exact, in tiles with a running top-k, so memory does not grow with corpus x queries. A known positive of the
query, by id or by equal text, is never a negative.

Legend: Q queries, D documents, E embedding dimension, k places.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from curation.embeddings import EmbeddingCache, Floats
from curation.errors import CurationError
from curation.recipe_mining import MineRecipe
from db.examples import NewCandidate, NewSourcing, put_candidates, put_sourcings
from db.runs import finish_run, start_run
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.ledger import Run
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query
from db.teachers import put_teacher

_TILE = 8_192
_EXAMPLES_A_TRANSACTION = 200
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


def top_k(queries_QE: Floats, documents_DE: Floats, k: int) -> tuple[NDArray[np.int64], Floats]:
    """The k best documents of each query by inner product: indices [Q, k] and scores [Q, k]; ties by lower index."""
    k = min(k, len(documents_DE))
    best_scores = np.full((len(queries_QE), 0), 0, np.float32)
    best = np.zeros((len(queries_QE), 0), np.int64)
    for start in range(0, len(documents_DE), _TILE):
        tile = queries_QE @ documents_DE[start : start + _TILE].T
        indices = np.broadcast_to(np.arange(start, start + tile.shape[1]), tile.shape)
        scores, found = np.hstack([best_scores, tile]), np.hstack([best, indices])
        # Earlier documents stand first, so a stable sort breaks ties by the lower index.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
    return best, best_scores


def mine(
    store: Store, recipe: MineRecipe, cache: EmbeddingCache, *, progress: Progress = lambda done, total: None
) -> MineReport:
    """Mine negatives for the recipe's examples. What was mined before is found again, not added twice.

    Raises:
        CurationError: The collection is not in the store, or has no examples that fit the recipe.
    """
    from curation import bm25

    report = MineReport(recipe.name)
    with store.read() as session:
        work = _Work.load(session, recipe)
    report.num_examples, report.num_queries = len(work.examples), len(work.queries)
    documents_DE, _ = cache.embed(list(work.passages.values()), progress=progress)
    queries_QE, _ = cache.embed(list(work.queries.values()))
    with store.write() as session:
        run = start_run(session, "mine", recipe.name, recipe.model_dump(mode="json"), 0)
        encoder = cache.encoder
        teachers = {
            "bm25": put_teacher(session, name="bm25", version=bm25.version(), kind="bm25"),
            "dense": put_teacher(
                session,
                name=encoder.name,
                version=encoder.version,
                kind="bi-encoder",
                max_length=encoder.max_length,
            ),
        }
    proposals = _propose(recipe, work, documents_DE, queries_QE)
    chosen = _choose(recipe, work, proposals, documents_DE, queries_QE, report)
    for start in range(0, len(work.examples), _EXAMPLES_A_TRANSACTION):
        with store.write() as session:
            part = work.examples[start : start + _EXAMPLES_A_TRANSACTION]
            report.num_new += _write(session, run.id, part, chosen, teachers)
    with store.write() as session:
        totals = {key: value for key, value in report.to_dict().items() if key != "num_new"}
        finish_run(session, session.get_one(Run, run.id), totals)
    return report


@dataclass(frozen=True, slots=True)
class _Work:
    """What a run works on, by store id; dictionaries keep the order of ids."""

    passages: dict[int, str]
    queries: dict[int, str]
    examples: list[tuple[int, int]]
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
        wanted = {query for _, query in examples}
        texts = session.execute(
            select(Passage.id, Passage.text)
            .where(exists().where(Document.passage_id == Passage.id, Document.collection_id == collection))
            .order_by(Passage.id)
        )
        passages = {key: text for key, text in texts}
        queries = session.execute(select(Query.id, Query.text).where(Query.id.in_(wanted)).order_by(Query.id))
        positives: dict[int, set[int]] = defaultdict(set)
        for query, positive in session.execute(select(Example.query_id, Example.positive_id)):
            if query in wanted:
                positives[query].add(positive)
        return cls(passages, {key: text for key, text in queries}, examples, positives)


def _examples(session: Session, recipe: MineRecipe, collection: int) -> list[tuple[int, int]]:
    """(example id, query id) of the recipe's examples, by id."""
    is_judged = exists().where(
        Qrel.collection_query_id == CollectionQuery.id,
        CollectionQuery.query_id == Example.query_id,
        Qrel.document_id == Document.id,
        Document.passage_id == Example.positive_id,
        Qrel.split == recipe.split,
    )
    statement = select(Example.id, Example.query_id).where(Example.collection_id == collection, is_judged)
    if recipe.examples == "generated":
        is_written = Candidate.origin.in_(("synthetic", "edited"))
        statement = statement.where(exists().where(Candidate.example_id == Example.id, is_written))
    return [(example, query) for example, query in session.execute(statement.order_by(Example.id))]


def _propose(recipe: MineRecipe, work: _Work, documents_DE: Floats, queries_QE: Floats) -> dict[int, list[Proposal]]:
    """Proposals by row of the query."""
    from curation import bm25

    # Known positives stand at the top and are taken out later: look that much deeper.
    depth = recipe.depth + max(len(found) for found in work.positives.values())
    proposals: dict[int, list[Proposal]] = defaultdict(list)
    for proposer in recipe.proposers:
        if proposer == "bm25":
            found, scores = bm25.top_documents(list(work.queries.values()), list(work.passages.values()), depth)
        else:
            found, scores = top_k(queries_QE, documents_DE, depth)  # type: ignore[assignment]
        for row in range(len(found)):
            proposals[row] += [
                Proposal(int(document), proposer, rank, round(float(score), 6))
                for rank, (document, score) in enumerate(zip(found[row], scores[row], strict=True), start=1)
                if document >= 0
            ]
    return proposals


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A surviving negative: its passage, cosine and ceiling, and everyone who proposed it."""

    passage: int
    cosine: float
    ceiling: float
    proposals: tuple[Proposal, ...]


def _choose(
    recipe: MineRecipe,
    work: _Work,
    proposals: dict[int, list[Proposal]],
    documents_DE: Floats,
    queries_QE: Floats,
    report: MineReport,
) -> dict[int, list[_Chosen]]:
    """The hardest survivors of each query, by query id, hardest first."""
    passage_ids = list(work.passages)
    row_of = {passage: row for row, passage in enumerate(passage_ids)}
    chosen: dict[int, list[_Chosen]] = {}
    for row, query in enumerate(work.queries):
        positives = [row_of[passage] for passage in work.positives[query] if passage in row_of]
        lowest = (documents_DE[positives] @ queries_QE[row]).min(initial=1.0)
        ceiling = float(positive_aware_ceiling(np.array(lowest, np.float32), percentage=recipe.percentage))
        known_texts = {_comparable(work.passages[passage_ids[place]]) for place in positives}
        found: dict[int, list[Proposal]] = defaultdict(list)
        for proposal in proposals[row]:
            found[proposal.document].append(proposal)
        cosines = documents_DE[list(found)] @ queries_QE[row]
        survivors = []
        for (document, by), cosine in zip(found.items(), cosines, strict=True):
            passage = passage_ids[document]
            if document in positives or _comparable(work.passages[passage]) in known_texts:
                report.num_known_positives += 1
            elif not cosine < ceiling:
                report.num_over_ceiling += 1
            else:
                survivors.append(_Chosen(passage, round(float(cosine), 6), round(ceiling, 6), tuple(by)))
        report.num_proposed += len(found)
        report.num_survivors += len(survivors)
        survivors.sort(key=lambda one: (-one.cosine, one.passage))
        chosen[query] = survivors[: recipe.num_negatives]
    for _, query in work.examples:
        report.num_candidates += len(chosen[query])
        report.num_short_of_negatives += len(chosen[query]) < recipe.num_negatives
    return chosen


def _comparable(text: str) -> str:
    return " ".join(text.casefold().split())


def _write(
    session: Session,
    run_id: int,
    examples: Sequence[tuple[int, int]],
    chosen: dict[int, list[_Chosen]],
    teachers: dict[str, int],
) -> int:
    """Candidates and how they were found; returns how many findings are new."""
    candidates = [
        NewCandidate(example, one.passage, "negative", "mined", run_id)
        for example, query in examples
        for one in chosen[query]
    ]
    keys = put_candidates(session, candidates)
    sourcings = [
        NewSourcing(
            keys[example, one.passage],
            run_id,
            teacher_id=teachers[proposal.proposer],
            retrieval_rank=proposal.retrieval_rank,
            score=proposal.score,
            threshold=one.ceiling if proposal.proposer == "dense" else None,
        )
        for example, query in examples
        for one in chosen[query]
        for proposal in one.proposals
    ]
    return put_sourcings(session, sourcings)
