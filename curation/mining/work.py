"""What a mining run works on, read from the store: passages, queries, their examples and their known positives.

A query may have a positive outside the collection, from another import: it lowers the ceiling too, and a passage with
its text is no negative.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.mining.recipe import MineRecipe
from db.tables.examples import Candidate, Example
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query

_LOOKUP_SIZE = 500


@dataclass(frozen=True, slots=True)
class Work:
    """The work by store id, passages in the order of ids; a passage's place among them is what teachers answer with.

    `copies` are the places of each positive and of passages with its text but for case and white space: none of them
    may become a negative of the positive's query.
    """

    passages: dict[int, str]
    positives_elsewhere: dict[int, str]
    queries: dict[int, str]
    examples: dict[int, list[int]]
    positives: dict[int, set[int]]
    copies: dict[int, set[int]]

    @classmethod
    def load(cls, session: Session, recipe: MineRecipe) -> "Work":
        """Read the recipe's work.

        Raises:
            CurationError: The collection is not in the store, or has no examples that fit the recipe.
        """
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
        elsewhere = _texts(session, Passage, set(chain.from_iterable(positives.values())) - passages.keys())
        copies = _copies(passages, elsewhere, set(chain.from_iterable(positives.values())))
        return cls(passages, elsewhere, _texts(session, Query, examples), examples, positives, copies)

    def known_places(self, query: int) -> set[int]:
        """Places that may not become negatives of a query."""
        return set().union(*(self.copies[passage] for passage in self.positives[query]))

    def positive_text(self, passage: int) -> str:
        return self.passages.get(passage) or self.positives_elsewhere[passage]

    def positive_texts(self, query: int) -> list[str]:
        """Texts of a query's known positives, in the order of ids."""
        return [self.positive_text(passage) for passage in sorted(self.positives[query])]


def _copies(passages: dict[int, str], elsewhere: dict[int, str], positives: set[int]) -> dict[int, set[int]]:
    texts = {passage: _comparable(passages.get(passage) or elsewhere[passage]) for passage in positives}
    places: dict[str, set[int]] = {text: set() for text in texts.values()}
    for place, text in enumerate(map(_comparable, passages.values())):
        if text in places:
            places[text].add(place)
    return {passage: places[text] for passage, text in texts.items()}


def _comparable(text: str) -> str:
    return " ".join(text.casefold().split())


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
