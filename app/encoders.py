"""Encoders with their caches, and teachers, as the commands use them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curation.embeddings import BiEncoder, EmbeddingCache, Progress

if TYPE_CHECKING:
    from curation.mining.recipe import BiEncoderSpec, JudgeSpec, ProposerSpec
    from curation.mining.teachers import Teacher


def embedding_cache(model: str) -> EmbeddingCache:
    """The model (`minilm` or a folder) with its embeddings in the data folder."""
    from app.settings import Settings

    return EmbeddingCache(Settings().embeddings, BiEncoder(model, trusted_code=trusted_code()))


def build_teacher(spec: "ProposerSpec | JudgeSpec", passages: Sequence[str], progress: Progress) -> "Teacher":
    """The teacher of a table of a mining recipe, over a collection's passages.

    Raises:
        CurationError: No such model.
    """
    from curation.mining.late_interaction import MultiVectorTeacher, TokenEncoder
    from curation.mining.teachers import Bm25Teacher, CrossEncoderTeacher

    match spec.kind:
        case "bm25":
            return Bm25Teacher(passages)
        case "bi_encoder":
            return _bi_encoder(spec, passages, progress)
        case "cross_encoder":
            return CrossEncoderTeacher(spec.model, max_length=spec.max_length)
        case "multi_vector":
            encoder = TokenEncoder(
                spec.model,
                query_prompt=spec.query_prompt,
                document_prompt=spec.document_prompt,
                max_length=spec.max_length,
                trusted_code=trusted_code(),
            )
            return MultiVectorTeacher(passages, encoder)


def _bi_encoder(spec: "BiEncoderSpec", passages: Sequence[str], progress: Progress) -> "Teacher":
    import torch

    from app.settings import Settings
    from curation.mining.teachers import BiEncoderTeacher

    encoder = BiEncoder(spec.model, max_length=spec.max_length, trusted_code=trusted_code())
    query = encoder.own_prompt("query") if spec.query_prompt is None else spec.query_prompt
    document = encoder.own_prompt("document") if spec.document_prompt is None else spec.document_prompt
    folder = Settings().embeddings
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the same result either way
    queries = EmbeddingCache(folder, encoder.with_prompt(query))
    documents = queries if query == document else EmbeddingCache(folder, encoder.with_prompt(document))
    return BiEncoderTeacher(passages, queries, documents, prompts=(query, document), device=device, progress=progress)


def trusted_code() -> Path | None:
    from importlib.util import find_spec

    # Found, not imported: the file itself loads torch.
    spec = find_spec("trainer.modeling_ata")
    return Path(spec.origin) if spec and spec.origin else None
