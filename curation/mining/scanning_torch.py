"""The scan of `scanning` on a torch device: the product and the selection stay there, and only finalists come back.

Legend: B queries of a block, T documents of a tile, E dimension, F finalists.
"""

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from curation.mining.search import Floats, Indices


class TorchBlock:
    """Finalists of a block of queries, on the device."""

    def __init__(
        self, queries_BE: "Floats", limits_B: "Floats", num_finalists: int, number_format: str, device: str
    ) -> None:
        self._format = getattr(torch, number_format)
        self._queries_BE = torch.from_numpy(queries_BE).to(device, self._format)
        self._limits_B = torch.from_numpy(limits_B).to(device)
        self._num_finalists = num_finalists
        shape = len(queries_BE), num_finalists
        self._scores_BF = torch.full(shape, -torch.inf, device=device)
        self._indices_BF = torch.full(shape, -1, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def take(self, tile_TE: "Floats", start: int, excluded: "tuple[Indices, Indices]") -> None:
        device = self._scores_BF.device
        with _full_sums():
            scores_BT = (self._queries_BE @ torch.from_numpy(tile_TE).to(device, self._format).T).float()
        documents, rows = (torch.from_numpy(places).to(device) for places in excluded)
        scores_BT[rows, documents] = -torch.inf
        scores_BT.masked_fill_(scores_BT >= self._limits_B[:, None], -torch.inf)
        best, places = scores_BT.topk(min(self._num_finalists, len(tile_TE)), dim=1)
        scores = torch.cat([self._scores_BF, best], dim=1)
        indices = torch.cat([self._indices_BF, places + start], dim=1)
        self._scores_BF, kept = scores.topk(self._num_finalists, dim=1)
        self._indices_BF = indices.gather(1, kept)

    def finish(self) -> "tuple[Indices, Floats]":
        indices = self._indices_BF.masked_fill(self._scores_BF == -torch.inf, -1)
        return indices.cpu().numpy(), self._scores_BF[:, -1].cpu().numpy().astype(np.float32)


@contextmanager
def _full_sums() -> "Iterator[None]":
    """Sums of half-precision products stay in float32: the bound on a score's error relies on it."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_reduced_precision_reduction
    settings.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_fp16_reduced_precision_reduction = before
