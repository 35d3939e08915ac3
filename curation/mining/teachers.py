"""Teachers: what proposes passages for a query, and what judges pairs, each frozen, named and versioned.

A proposer searches the passages that it was built over; in its answers a passage is its place among them. A judge
scores any pair of texts. LameR's proposer, which asks an LLM, has a room of its own.

Legend: Q queries, K places, P pairs, D passages, E dimension.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from curation.embeddings import EmbeddingCache, Progress, any_model_folder, folder_digest
from curation.errors import CurationError
from curation.mining import bm25
from curation.mining.search import Floats, Indices, pair_scores, top_k
from db.digest import canonical_json, digest_of

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

Pairs = Sequence[tuple[str, str]]
_PAIRS_AT_ONCE = 4_096


class Teacher(Protocol):
    """Whose scores these are: `version` is a digest of all that decides them, `prompt` what stands before the texts."""

    name: str
    kind: str
    prompt: str

    @property
    def version(self) -> str: ...
    @property
    def max_length(self) -> int | None: ...


@runtime_checkable
class Proposer(Teacher, Protocol):
    """A teacher that can search."""

    def top(self, queries: Sequence[str], k: int) -> tuple[Indices, Floats]:
        """The k best passages of each query, highest first, ties by the lower place: places [Q, K], scores [Q, K].

        Places without a passage have index -1 and score 0; K may be less than k where there are fewer passages.
        """


@runtime_checkable
class Preparer(Proposer, Protocol):
    """A proposer that wants to know all queries of a run before it searches for any."""

    def prepare(self, queries: Sequence[str]) -> None: ...


@runtime_checkable
class Judge(Teacher, Protocol):
    """A teacher that can score pairs."""

    def score(self, pairs: Pairs) -> NDArray[np.float64]:
        """A score for each (query, passage), [P]; NaN for a pair that this teacher cannot score."""


@runtime_checkable
class CeilingSearcher(Proposer, Protocol):
    """A proposer that can search below a ceiling."""

    def top_below(
        self, queries: Sequence[str], k: int, ceilings_Q: NDArray[np.float64], excluded: Sequence[Collection[int]]
    ) -> tuple[Indices, Floats]:
        """As `top`, but only of passages that score strictly below the query's ceiling and are not excluded."""


class Bm25Teacher:
    """BM25; it scores a pair only when the passage is in its collection, whose word counts it needs."""

    name = kind = "bm25"
    prompt = ""
    max_length = None

    def __init__(self, passages: Sequence[str]) -> None:
        self._index = bm25.Bm25(passages)
        self._places = {text: place for place, text in enumerate(passages)}
        self.version = bm25.version()

    def top(self, queries: Sequence[str], k: int) -> tuple[Indices, Floats]:
        return self._index.top(queries, k)

    def score(self, pairs: Pairs) -> NDArray[np.float64]:
        scores = np.full(len(pairs), np.nan)
        of_query: dict[str, list[int]] = {}
        for number, (query, passage) in enumerate(pairs):
            if passage in self._places:
                of_query.setdefault(query, []).append(number)
        for query, numbers in of_query.items():
            scores[numbers] = self._index.scores(query)[[self._places[pairs[number][1]] for number in numbers]]
        return scores


class BiEncoderTeacher:
    """A bi-encoder with its cached embeddings: one cache for queries and one for documents, where prompts differ."""

    kind = "bi-encoder"

    def __init__(
        self,
        passages: Sequence[str],
        queries: EmbeddingCache,
        documents: EmbeddingCache,
        *,
        prompts: tuple[str, str] = ("", ""),
        device: str = "cpu",
        progress: Progress = lambda done, total: None,
    ) -> None:
        self._queries, self._documents, self._device = queries, documents, device
        encoder = documents.encoder
        self.name = encoder.name
        self.prompt = _both_prompts(*prompts)
        is_one = queries.encoder.version == encoder.version
        self.version = encoder.version if is_one else digest_of([queries.encoder.version, encoder.version])
        self._vectors_DE = documents.stored(passages, progress=progress)
        self._places = {text: place for place, text in enumerate(passages)}

    @property
    def max_length(self) -> int | None:
        return self._documents.encoder.max_length

    def top(self, queries: Sequence[str], k: int) -> tuple[Indices, Floats]:
        return top_k(self._queries.embed(queries)[0], self._vectors_DE, k, device=self._device)

    def top_below(
        self, queries: Sequence[str], k: int, ceilings_Q: NDArray[np.float64], excluded: Sequence[Collection[int]]
    ) -> tuple[Indices, Floats]:
        vectors_QE = self._queries.embed(queries)[0]
        return top_k(vectors_QE, self._vectors_DE, k, ceilings_Q=ceilings_Q, excluded=excluded, device=self._device)

    def score(self, pairs: Pairs) -> NDArray[np.float64]:
        scores = np.empty(len(pairs))
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            part = pairs[start : start + _PAIRS_AT_ONCE]
            row_of = {query: row for row, query in enumerate(dict.fromkeys(query for query, _ in part))}
            vectors_QE = self._queries.embed(list(row_of))[0][[row_of[query] for query, _ in part]]
            exact = pair_scores(vectors_QE, self._of_passages([text for _, text in part]))
            # As `top` gives them, so that a pair has one score whoever asks.
            scores[start : start + len(part)] = exact.astype(np.float32)
        return scores

    def _of_passages(self, texts: list[str]) -> Floats:
        """Vectors of passages, those from outside the collection too."""
        places = np.array([self._places.get(text, -1) for text in texts], np.int64)
        vectors = self._vectors_DE[np.maximum(places, 0)]
        outside = np.flatnonzero(places < 0)
        if len(outside):
            vectors[outside] = self._documents.embed([texts[row] for row in outside])[0]
        return vectors


class CrossEncoderTeacher:
    """A cross-encoder: a judge only. Its score is the sigmoid of its one label, as sentence-transformers has it."""

    kind = "cross-encoder"
    prompt = ""

    def __init__(self, model: str, *, max_length: int | None = None, batch_size: int = 32) -> None:
        self._folder = any_model_folder(model)
        self.name = self._folder.resolve().name
        self.max_length = max_length
        self._batch_size = batch_size

    @cached_property
    def version(self) -> str:
        return folder_digest(self._folder)

    @cached_property
    def _model(self) -> "CrossEncoder":
        from sentence_transformers import CrossEncoder
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model = CrossEncoder(str(self._folder), max_length=self.max_length)
        if model.num_labels != 1:
            raise CurationError(
                f"{self._folder}: a cross-encoder with {model.num_labels} labels; a judge needs one score"
            )
        return model

    def score(self, pairs: Pairs) -> NDArray[np.float64]:
        if not pairs:
            return np.empty(0)
        # A pair is scored once however often it is asked for; batches go by length inside sentence-transformers.
        unique = list(dict.fromkeys(pairs))
        values = self._model.predict(unique, batch_size=self._batch_size, show_progress_bar=False)
        by_pair: Mapping[tuple[str, str], float] = dict(zip(unique, map(float, values), strict=True))
        return np.array([by_pair[pair] for pair in pairs])


def _both_prompts(query: str, document: str) -> str:
    """The prompts as a teacher's row holds them: empty where there is none."""
    return canonical_json({"query": query, "document": document}).decode() if query or document else ""
