"""Models to train: pooling put on, and saved so that plain sentence-transformers loads them."""

from pathlib import Path
from typing import Any

import orjson
from sentence_transformers import SentenceTransformer

from trainer.modeling_ata import ATAPooling


def with_pooling(model: SentenceTransformer, mode: str = "log1p", detach: bool = False) -> SentenceTransformer:
    """The model with ATA pooling of this mode in place of its own; `detach` stops gradients at the weights."""
    backbone: Any = model[0]
    dimension = backbone.get_embedding_dimension()
    pooled = SentenceTransformer(modules=[backbone, ATAPooling(dimension, mode, detach), *list(model)[2:]])
    pooled.max_seq_length = model.max_seq_length
    return pooled


def save_model(model: SentenceTransformer, folder: Path) -> None:
    """Save so that plain sentence-transformers loads it: the pooling's class is named by the file beside it."""
    model.save(str(folder), create_model_card=False)
    path = folder / "modules.json"
    modules = orjson.loads(path.read_bytes())
    for module in modules:
        if module["type"].endswith(".ATAPooling"):
            module["type"] = "modeling_ata.ATAPooling"
    path.write_bytes(orjson.dumps(modules, option=orjson.OPT_INDENT_2))
