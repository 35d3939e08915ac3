"""Multi-vector teachers: every token has a vector, and a query's tokens each take their best match (MaxSim).

Scores are divided by the number of the query's tokens, so that they lie in -1 to 1 whatever the query's length
(sentence-transformers calls it meanmaxsim): order within a query is that of MaxSim, and ceilings read like cosines.
Token vectors are held in half precision, about 75 kB for an abstract of 100 tokens and 384 dimensions.

Source: ColBERT, arXiv 2004.12832, section 3.3. Legend: Q queries, D documents, S a query's tokens, T a tile's tokens,
E dimension, K places, P pairs.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curation.embeddings import any_model_folder, folder_digest, has_our_code
from curation.mining.search import Floats, Indices, best_places
from db.digest import canonical_json, digest_of

_TOKENS_AT_ONCE = 16_384
_BATCH = 32
Side = Literal["query", "document"]


class TokenEncoder:
    """A local model's token vectors: a MultiVectorEncoder's own, or any other's last layer."""

    def __init__(
        self,
        model: str,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        max_length: int | None = None,
        trusted_code: Path | None = None,
    ) -> None:
        self._folder = any_model_folder(model)
        self.name = model if model == "minilm" else self._folder.resolve().name
        self._prompts: dict[Side, str | None] = {"query": query_prompt, "document": document_prompt}
        self.max_length = max_length
        self._trusted_code = trusted_code

    @property
    def prompt(self) -> str:
        given = {side: prompt for side, prompt in self._prompts.items() if prompt is not None}
        return canonical_json(given).decode() if given else ""

    @cached_property
    def version(self) -> str:
        return digest_of({"model": folder_digest(self._folder), "max_length": self.max_length})

    @cached_property
    def is_late_interaction(self) -> bool:
        """Whether the model was trained for it: saved as such, by PyLate or by ColBERT, or has such a head."""
        saved = _text(self._folder / "config_sentence_transformers.json") + _text(self._folder / "modules.json")
        config = _text(self._folder / "config.json")
        return (
            '"MultiVectorEncoder"' in saved or "pylate" in saved or "HF_ColBERT" in config or "ForRetrieval" in config
        )

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import MultiVectorEncoder, SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        kind: Any = MultiVectorEncoder if self.is_late_interaction else SentenceTransformer
        model = kind(str(self._folder), trust_remote_code=has_our_code(self._folder, self._trusted_code))
        if self.max_length is not None:
            model.max_seq_length = self.max_length
        return model

    def encode(self, texts: Sequence[str], side: Side) -> list[Floats]:
        """Unit vectors of each text's tokens, [tokens, E] each; a text that has none gets a row of zeros."""
        encode = self._model.encode_query if side == "query" else self._model.encode_document
        found = encode(
            list(texts), prompt=self._prompts[side], output_value="token_embeddings", batch_size=_BATCH,
            convert_to_numpy=False, show_progress_bar=False,
        )  # fmt: skip
        return [_unit(tokens.float().cpu().numpy()) for tokens in found]


class MultiVectorTeacher:
    """Searches and judges by MaxSim; the token vectors of the passages stay in memory."""

    kind = "multi-vector"

    def __init__(self, passages: Sequence[str], encoder: TokenEncoder) -> None:
        self._encoder = encoder
        self.name, self.prompt, self.version, self.max_length = (
            encoder.name, encoder.prompt, encoder.version, encoder.max_length,
        )  # fmt: skip
        self._places = {text: place for place, text in enumerate(passages)}
        self._tokens_TE, self._starts = self._encoded(passages)

    def top(self, queries: Sequence[str], k: int) -> tuple[Indices, Floats]:
        k = min(k, len(self._starts) - 1)
        indices, scores = np.full((len(queries), k), -1, np.int64), np.zeros((len(queries), k), np.float32)
        for row, tokens_SE in enumerate(self._encoder.encode(queries, "query") if queries else []):
            scores_D = self._max_sim(tokens_SE)
            indices[row] = best_places(scores_D, k)
            scores[row] = scores_D[indices[row]]
        return indices, scores

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        queries, texts = (list(dict.fromkeys(side)) for side in zip(*pairs, strict=True)) if pairs else ([], [])
        outside = [text for text in texts if text not in self._places]
        elsewhere = dict(zip(outside, self._encoder.encode(outside, "document") if outside else [], strict=True))
        tokens = dict(zip(queries, self._encoder.encode(queries, "query") if queries else [], strict=True))
        values = []
        for query, passage in pairs:
            if passage in elsewhere:
                tokens_TE = elsewhere[passage].astype(np.float16)
            else:
                place = self._places[passage]
                tokens_TE = self._tokens_TE[self._starts[place] : self._starts[place + 1]]
            values.append(float(_mean_max(tokens[query], tokens_TE, np.zeros(1, np.int64))[0]))
        return np.array(values)

    def _max_sim(self, tokens_SE: Floats) -> Floats:
        """The query's score with every document, [D], a tile of whole documents at a time."""
        scores_D = np.empty(len(self._starts) - 1, np.float32)
        first = 0
        while first < len(scores_D):
            limit = self._starts[first] + _TOKENS_AT_ONCE
            last = max(first + 1, int(np.searchsorted(self._starts, limit, side="right")) - 1)
            tile_TE = self._tokens_TE[self._starts[first] : self._starts[last]]
            scores_D[first:last] = _mean_max(tokens_SE, tile_TE, self._starts[first:last] - self._starts[first])
            first = last
        return scores_D

    def _encoded(self, passages: Sequence[str]) -> tuple[NDArray[np.float16], Indices]:
        parts = []
        lengths = []
        for start in range(0, len(passages), 1_024):
            for tokens_TE in self._encoder.encode(passages[start : start + 1_024], "document"):
                parts.append(tokens_TE.astype(np.float16))
                lengths.append(len(tokens_TE))
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        return (np.concatenate(parts) if parts else np.empty((0, 1), np.float16)), starts


def _mean_max(tokens_SE: Floats, tile_TE: NDArray[np.float16], starts: Indices) -> Floats:
    """Mean over the query's tokens of the best cosine in each document, whose tokens begin at `starts`."""
    similarities_TS = tile_TE.astype(np.float32) @ tokens_SE.T
    mean: Floats = np.maximum.reduceat(similarities_TS, starts, axis=0).mean(axis=1)
    return np.round(mean, 6)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _unit(tokens_TE: Floats) -> Floats:
    if len(tokens_TE) == 0:
        return np.zeros((1, tokens_TE.shape[1]), np.float32)
    return tokens_TE / np.maximum(np.linalg.norm(tokens_TE, axis=1, keepdims=True), 1e-12)
