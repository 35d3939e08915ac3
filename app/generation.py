"""What generation is handed from curation: neighbours of a query, an embedding gate, and round trips of queries."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from db.store import Store
from generator.generation import Seams
from generator.plan import Planner
from generator.prompt_pack import PromptPack
from generator.recipe import DocumentPlan, EmbeddingGate, GenerateRecipe, PairPlan

if TYPE_CHECKING:
    from curation.embeddings import EmbeddingCache
    from curation.mining.neighbours import CollectionIndex


@dataclass(frozen=True)
class CosineGate:
    """Similarities by an encoder with its cache."""

    encoder: "EmbeddingCache"
    limits: EmbeddingGate

    def similarities(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        queries, _ = self.encoder.embed([query for query, _ in groups])
        vectors, _ = self.encoder.embed([text for _, texts in groups for text in texts])
        found, start = [], 0
        for query, (_, texts) in zip(queries, groups, strict=True):
            found.append([float(value) for value in vectors[start : start + len(texts)] @ query])
            start += len(texts)
        return found


@dataclass(frozen=True)
class TopK:
    """Round trips through one collection's index."""

    index: "CollectionIndex"
    k: int

    def ranks(self, queries: Sequence[str], passages: Sequence[int]) -> list[int | None]:
        return self.index.ranks(queries, passages, self.k)


@contextmanager
def generation_seams(store: Store, recipe: GenerateRecipe) -> Iterator[Seams]:
    """Everything that this recipe's plans and gate need; collections are indexed once, and only where needed."""
    pack = PromptPack.load(recipe.pack)
    with store.read() as session:
        Planner(recipe).check_collections(session)
        indices: dict[tuple[str, str], CollectionIndex] = {}

        def index_of(collection: str, retriever: str) -> "CollectionIndex":
            from curation.mining.neighbours import CollectionIndex

            if (collection, retriever) not in indices:
                encoder = None if retriever == "bm25" else _encoder(retriever)
                indices[collection, retriever] = CollectionIndex(session, collection, encoder)
            return indices[collection, retriever]

        needs_neighbours = [
            plan for plan in recipe.plan if isinstance(plan, PairPlan) and pack.entry(plan.entry).facts.neighbours
        ]
        round_trips = {
            number: TopK(index_of(plan.collection, plan.retriever), plan.top_k)
            for number, plan in enumerate(recipe.plan)
            if isinstance(plan, DocumentPlan) and plan.top_k
        }
        gate = CosineGate(_encoder(recipe.gate.encoder), recipe.gate) if recipe.gate else None

        def neighbours(plan: PairPlan, query: str, query_key: int, k: int) -> list[int]:
            return index_of(plan.collection, plan.neighbours).near(query, query_key, k)

        yield Seams(neighbours if needs_neighbours else None, gate, round_trips)


def _encoder(model: str) -> "EmbeddingCache":
    from app.encoders import embedding_cache

    return embedding_cache(model)
