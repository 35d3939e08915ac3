"""What stands near a text in a collection: documents by BM25 or by an encoder, exact, for generation to use.

Generation edits documents near a query that are not relevant to it, and keeps a query only if it retrieves its own
document. Both need the whole collection, so it is indexed once.
"""

from collections.abc import Sequence

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.embeddings import EmbeddingCache, Floats
from curation.errors import CurationError
from curation.mining.bm25 import Bm25
from curation.mining.search import top_k
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel

_EXTRA = 5


class CollectionIndex:
    """A collection's documents, ready to be searched. Ties go to the document whose external id comes first."""

    def __init__(self, session: Session, collection: str, encoder: EmbeddingCache | None = None) -> None:
        rows = session.execute(
            select(Document.passage_id, Passage.text)
            .join(Passage, Document.passage_id == Passage.id)
            .join(Collection, Document.collection_id == Collection.id)
            .where(Collection.name == collection)
            .order_by(Document.external_id)
        ).all()
        if not rows:
            raise CurationError(f"collection {collection!r} has no documents: run 'gradus import' first")
        self._session, self._collection = session, collection
        self._passages = np.array([passage for passage, _ in rows], np.int64)
        self._encoder = encoder
        texts = [text for _, text in rows]
        self._vectors: Floats | None = encoder.embed(texts)[0] if encoder is not None else None
        self._words = Bm25(texts) if encoder is None else None

    def search(self, queries: Sequence[str], k: int) -> list[list[int]]:
        """Passages of the best k documents of each query, the best first."""
        if self._encoder is not None and self._vectors is not None:
            places, _ = top_k(self._encoder.embed(list(queries))[0], self._vectors, k)
        else:
            assert self._words is not None
            places, _ = self._words.top(queries, k)
        return [[int(self._passages[place]) for place in row if place >= 0] for row in places]

    def near(self, query: str, query_key: int, k: int) -> list[int]:
        """Passages of the best k documents that are not judged relevant to the query."""
        relevant = set(
            self._session.scalars(
                select(Document.passage_id)
                .join(Qrel, Qrel.document_id == Document.id)
                .join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
                .join(Collection, CollectionQuery.collection_id == Collection.id)
                .where(Collection.name == self._collection, CollectionQuery.query_id == query_key, Qrel.relevance > 0)
            )
        )
        (found,) = self.search([query], k + len(relevant) + _EXTRA)
        return [passage for passage in dict.fromkeys(found) if passage not in relevant][:k]

    def ranks(self, queries: Sequence[str], passages: Sequence[int], k: int) -> list[int | None]:
        """Rank (from 1) of each query's passage among its best k; None when it is not among them."""
        ranks: list[int | None] = []
        for found, passage in zip(self.search(queries, k), passages, strict=True):
            unique = list(dict.fromkeys(found))
            ranks.append(unique.index(passage) + 1 if passage in unique else None)
        return ranks
