"""What an imported collection offers to ask about: its judged pairs and documents in drawn order, and their texts."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from db.digest import counter_uniform
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query
from generator.errors import GeneratorError

_PAGE = 5_000


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the store, with its key there and its name in the collection."""

    key: int
    text: str
    external_id: str


def refuse_unknown_collection(session: Session, name: str, split: str | None = None) -> None:
    """Stop before anything is indexed or asked.

    Raises:
        GeneratorError: There is no collection of this name, or none of its judgments are of this split.
    """
    key = session.scalar(select(Collection.id).where(Collection.name == name))
    if key is None:
        names = list(session.scalars(select(Collection.name).order_by(Collection.name)))
        raise GeneratorError(
            f"plan.collection = {name!r}: there is no such collection in the store; {_nearest(name, names)}"
        )
    if split is not None:
        of_collection = select(Qrel.split).join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
        splits = list(session.scalars(of_collection.where(CollectionQuery.collection_id == key).distinct()))
        if split not in splits:
            raise GeneratorError(
                f"plan.split = {split!r}: collection {name!r} has no such split; {_nearest(split, sorted(splits))}"
            )


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(map(repr, names[:10]))}" if names else "it has none: run 'gradus import' first"


def draw_pairs(session: Session, collection: str, split: str, seed: int) -> NDArray[np.int64]:
    """Keys of the judged pairs in drawn order, [pairs, 2]: collection query, document. 24 bytes a pair."""
    return _drawn(
        session,
        select(CollectionQuery.id, Document.id, CollectionQuery.external_id, Document.external_id)
        .select_from(Qrel)
        .join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
        .join(Document, Qrel.document_id == Document.id)
        .join(Collection, CollectionQuery.collection_id == Collection.id)
        .where(Collection.name == collection, Qrel.split == split, Qrel.relevance > 0),
        seed,
        "pair",
    )


def draw_documents(session: Session, collection: str, seed: int) -> NDArray[np.int64]:
    """Keys of the documents in drawn order, [documents]."""
    keys = _drawn(
        session,
        select(Document.id, Document.passage_id, Document.external_id, Document.external_id)
        .join(Collection, Document.collection_id == Collection.id)
        .where(Collection.name == collection),
        seed,
        "document",
    )
    return keys[:, 0]


def _drawn(session: Session, statement: Select[int, int, str, str], seed: int, what: str) -> NDArray[np.int64]:
    """The first two columns as keys, sorted by a draw that depends on the external ids alone, so on no store."""
    keys: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    draws: list[NDArray[np.float64]] = [np.empty(0)]
    for page in session.execute(statement, execution_options={"yield_per": _PAGE}).partitions(_PAGE):
        keys.append(np.array([row[:2] for row in page], np.int64))
        draws.append(np.array([counter_uniform(seed, what, row[2], row[3]) for row in page]))
    order = np.argsort(np.concatenate(draws), kind="stable")
    return np.concatenate(keys)[order]


class CollectionTexts:
    """Texts of a collection, one small look-up each."""

    def __init__(self, session: Session, name: str | None) -> None:
        self._session, self._name = session, name
        self._key = session.scalar(select(Collection.id).where(Collection.name == name)) if name else None

    def query(self, external_id: str) -> Text:
        found = self._session.execute(
            select(Query.id, Query.text, CollectionQuery.external_id)
            .join(CollectionQuery, CollectionQuery.query_id == Query.id)
            .where(CollectionQuery.collection_id == self._collection(), CollectionQuery.external_id == external_id)
        ).one_or_none()
        return self._found(found, "query", external_id)

    def passage(self, external_id: str) -> Text:
        found = self._session.execute(
            select(Passage.id, Passage.text, Document.external_id)
            .join(Document, Document.passage_id == Passage.id)
            .where(Document.collection_id == self._collection(), Document.external_id == external_id)
        ).one_or_none()
        return self._found(found, "document", external_id)

    def queries(self, keys: Iterable[int]) -> dict[int, Text]:
        """The queries with these keys of the collection, a chunk at a time."""
        wanted = [int(key) for key in set(keys)]
        rows = self._session.execute(
            select(CollectionQuery.id, Query.id, Query.text, CollectionQuery.external_id)
            .join(Query, CollectionQuery.query_id == Query.id)
            .where(CollectionQuery.id.in_(wanted))
        )
        return {key: Text(query, text, external_id) for key, query, text, external_id in rows}

    def documents(self, keys: Iterable[int]) -> dict[int, Text]:
        """The passages of the documents with these keys, a chunk at a time."""
        wanted = [int(key) for key in set(keys)]
        rows = self._session.execute(
            select(Document.id, Passage.id, Passage.text, Document.external_id)
            .join(Passage, Document.passage_id == Passage.id)
            .where(Document.id.in_(wanted))
        )
        return {key: Text(passage, text, external_id) for key, passage, text, external_id in rows}

    def passage_texts(self, keys: Iterable[int]) -> dict[int, str]:
        """The texts of these passages, a chunk at a time."""
        rows = self._session.execute(select(Passage.id, Passage.text).where(Passage.id.in_(list(set(keys)))))
        return {key: text for key, text in rows}

    def _collection(self) -> int:
        if self._name is None:
            raise GeneratorError("plan.collection is missing: name the imported collection that the cells refer to")
        if self._key is None:
            refuse_unknown_collection(self._session, self._name)
        assert self._key is not None
        return self._key

    def _found(self, row: Any, what: str, external_id: str) -> Text:
        if row is None:
            raise GeneratorError(f"the plan names {what} {external_id!r}, which collection {self._name!r} lacks")
        return Text(row[0], row[1], row[2])
