"""Which tokens of a text are its anchors: the weights that ATA pooling gives them."""

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from trainer.errors import TrainerError


@dataclass(frozen=True, slots=True)
class AnchorToken:
    """A token, the part of the text that it stands for (empty for special tokens), and its weight in the embedding.

    `times_mean` is the weight as a multiple of mean pooling's: 1 where the token is no more and no less than others.
    """

    token: str
    text: str
    weight: float
    times_mean: float


@dataclass(frozen=True, slots=True)
class AnchorPicture:
    """The tokens of a text in their order; `num_tokens` counts those of the whole text, before it was cut."""

    mode: str
    tokens: tuple[AnchorToken, ...]
    num_tokens: int


def anchors_of(model: SentenceTransformer, text: str, *, prompt: str = "") -> AnchorPicture:
    """The weight of every token of a text, with the prompt before it.

    Args:
        model: One with ATA pooling, as `with_pooling` makes it.

    Raises:
        TrainerError: The model pools in another way.
    """
    pooling: Any = model[1]
    if not hasattr(pooling, "detach_weights"):
        raise TrainerError(f"the model pools by {type(pooling).__name__}, which weighs no tokens")
    features: Any = model.preprocess([text], prompt=prompt or None)
    with torch.no_grad():
        out = model.eval()({name: _moved(value, model) for name, value in features.items()})
    kept = features["attention_mask"][0].bool() if "attention_mask" in features else ...
    ids, weights = features["input_ids"][0][kept].tolist(), out["token_weights"][0].cpu()[kept].tolist()
    num_pooled = max(1, sum(weight > 0 for weight in weights))
    pieces, num_tokens = _pieces(model, prompt + text, ids)
    names = model.tokenizer.convert_ids_to_tokens(ids)
    tokens = zip(names, pieces, weights, strict=True)
    return AnchorPicture(pooling.mode, tuple(AnchorToken(n, p, w, w * num_pooled) for n, p, w in tokens), num_tokens)


def _moved(value: Any, model: SentenceTransformer) -> Any:
    return value.to(model.device) if isinstance(value, torch.Tensor) else value


def _pieces(model: SentenceTransformer, text: str, ids: list[int]) -> tuple[list[str], int]:
    """The part of the text of each token; empty where the tokenizer does not say. And how many tokens it has whole."""
    tokenizer: Any = model.tokenizer
    whole = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
    if tokenizer.is_fast:
        options = {"truncation": True, "max_length": model.max_seq_length, "return_offsets_mapping": True}
        encoded = tokenizer(text, **options)
        if encoded["input_ids"] == ids:
            return [text[start:end] for start, end in encoded["offset_mapping"]], whole
    return [""] * len(ids), whole
