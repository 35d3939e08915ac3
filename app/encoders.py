"""Encoders with their caches, as the commands use them."""

from curation.embeddings import BiEncoder, EmbeddingCache


def embedding_cache(model: str) -> EmbeddingCache:
    """The model (`minilm` or a folder) with its embeddings in the data folder."""
    from importlib.util import find_spec
    from pathlib import Path

    from app.settings import Settings

    # Found, not imported: the file itself loads torch.
    spec = find_spec("trainer.modeling_ata")
    trusted = Path(spec.origin) if spec and spec.origin else None
    return EmbeddingCache(Settings().embeddings, BiEncoder(model, trusted_code=trusted))
