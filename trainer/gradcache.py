"""Encoding a batch in chunks, and taking a gradient back through them, in bounded memory.

Texts are sorted by length and cut into chunks of a token budget, so that little is padding. A process keeps the graphs
of its first chunks as long as their tokens stay within a budget, and runs the others again when their gradient is
known (GradCache, Gao et al. 2021). What a chunk draws depends on its key alone, so running it again, on whichever
process, after whichever cut, draws the same. Legend: M texts, E dimensions, T tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.processes import Processes, shared_out
from trainer.tokens import TokenTable


@dataclass(frozen=True, slots=True)
class Chunk:
    """Places in the list of texts that are encoded together, and their tokens with padding."""

    places: tuple[int, ...]
    num_tokens: int


def chunks_of(lengths_M: Sequence[int], chunk_tokens: int, kinds_M: Sequence[int] | None = None) -> list[Chunk]:
    """Chunks by falling length, each within the budget; a text that is longer than that is alone.

    Args:
        kinds_M: Only texts of one kind share a chunk.
    """
    kinds = kinds_M if kinds_M is not None else [0] * len(lengths_M)
    order = sorted(range(len(lengths_M)), key=lambda place: (kinds[place], -lengths_M[place], place))
    chunks, start = [], 0
    while start < len(order):
        first = order[start]
        width, end = int(lengths_M[first]), start + 1
        most = max(1, chunk_tokens // width)
        while end < len(order) and end - start < most and kinds[order[end]] == kinds[first]:
            end += 1
        chunks.append(Chunk(tuple(order[start:end]), width * (end - start)))
        start = end
    return chunks


@dataclass(slots=True)
class Encoded:
    """Embeddings of a list of texts, and what it takes to send a gradient back through them."""

    embeddings_ME: Tensor
    numbers: Sequence[int]
    kept: list[tuple[Chunk, Tensor]] = field(default_factory=list)
    again: list[tuple[int, Chunk]] = field(default_factory=list)
    key: tuple[int, ...] = ()


class Encoder:
    """A model with the token ids of its texts.

    Args:
        chunk_tokens: Tokens, with padding, of a forward pass.
        kept_tokens: Tokens, with padding, whose graphs a process keeps.
        bf16: Whether to compute in bfloat16 where PyTorch's autocast does.
    """

    def __init__(
        self,
        model: Any,
        tokens: TokenTable,
        processes: Processes,
        *,
        chunk_tokens: int,
        kept_tokens: int,
        bf16: bool,
    ) -> None:
        self.model, self.tokens, self.processes = model, tokens, processes
        self.chunk_tokens, self.kept_tokens, self.bf16 = chunk_tokens, kept_tokens, bf16
        # A pooling that leaves prompts out takes one length of prompt for all texts of a forward pass.
        self._pools_prompts = all(getattr(module, "include_prompt", True) for module in model)
        self._pad_id, self._pads_left = int(model.tokenizer.pad_token_id or 0), model.tokenizer.padding_side == "left"

    def encode(self, numbers: Sequence[int], key: tuple[int, ...]) -> Encoded:
        """Embed texts, each process its share; afterwards every process has all of them, float32, [M, E].

        Args:
            numbers: Numbers of the texts in the token table.
            key: What the chunks' draws depend on, beside their place.
        """
        lengths, prompts = (a[list(numbers)].tolist() for a in (self.tokens.lengths, self.tokens.num_prompt))
        chunks = chunks_of(lengths, self.chunk_tokens, None if self._pools_prompts else prompts)
        owners = shared_out([chunk.num_tokens for chunk in chunks], self.processes.count)
        mine = [(place, chunks[place]) for place, owner in enumerate(owners) if owner == self.processes.rank]
        used = np.cumsum([chunk.num_tokens for _, chunk in mine])
        num_kept = int((used <= self.kept_tokens).sum())
        size = self.model.get_embedding_dimension()
        encoded = Encoded(torch.zeros(len(numbers), size, device=self.processes.device), numbers, key=key)
        encoded.again = mine[num_kept:]
        for place, chunk in encoded.again:
            with torch.no_grad(), self._precision():
                encoded.embeddings_ME[list(chunk.places)] = self._forward(encoded, place, chunk)
        # One region for all kept chunks: autocast then rounds each weight once. Not shared with the chunks above,
        # for a weight that was rounded without a graph stays without one.
        with self._precision():
            for place, chunk in mine[:num_kept]:
                vectors = self._forward(encoded, place, chunk)
                encoded.kept.append((chunk, vectors))
                encoded.embeddings_ME[list(chunk.places)] = vectors.detach()
        self.processes.add_up([encoded.embeddings_ME])
        return encoded

    def backward(self, encoded: Encoded, gradient_ME: Tensor) -> None:
        """Add to the parameters' gradients what this process' chunks contribute."""
        while encoded.kept:
            chunk, vectors = encoded.kept.pop()
            vectors.backward(gradient_ME[list(chunk.places)])
            del vectors
        for place, chunk in encoded.again:
            with self._precision():
                vectors = self._forward(encoded, place, chunk)
            vectors.backward(gradient_ME[list(chunk.places)])
        encoded.again = []

    def _precision(self) -> Any:
        return torch.autocast(self.processes.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _forward(self, encoded: Encoded, place: int, chunk: Chunk) -> Tensor:
        torch.manual_seed(_seed(*encoded.key, place))
        numbers = [encoded.numbers[at] for at in chunk.places]
        features: dict[str, Any] = self.padded(numbers)
        if not self._pools_prompts:
            features["prompt_length"] = int(self.tokens.num_prompt[numbers[0]])
        vectors: Tensor = self.model(features)["sentence_embedding"]
        return vectors.float()

    def padded(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Token ids and mask of texts, [M, T]."""
        rows = [self.tokens.ids(number) for number in numbers]
        width = max(len(row) for row in rows)
        ids_MT = np.full((len(rows), width), self._pad_id, np.int64)
        mask_MT = np.zeros((len(rows), width), np.int64)
        for place, row in enumerate(rows):
            span = slice(width - len(row), width) if self._pads_left else slice(0, len(row))
            ids_MT[place, span], mask_MT[place, span] = row, 1
        arrays = {"input_ids": ids_MT, "attention_mask": mask_MT}
        return {name: torch.from_numpy(array).to(self.processes.device) for name, array in arrays.items()}


def _seed(*key: int) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1
