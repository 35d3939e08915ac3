"""One pass over all documents: tiles of scores, of which only what may be among a query's finalists is looked at.

A tile is documents x queries. One pass takes the maximum of every few documents; only groups whose maximum is above
the query's lowest finalist are opened, which after the first tiles is almost none. What is found is collected, and
merged into the finalists when it has grown to half their number. Scores here are off by at most `slack`, the bound
for the number format used; `search` makes them exact.

Legend: Q queries, B queries of a block, T documents of a tile, G groups of documents, E dimension, F finalists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from curation.mining.search import Floats, Indices, Vectors

# 2,048 x 1,024 scores are 8 MB, which stay in a shared cache between the product and the pass over them; smaller
# tiles multiply up to 10 % slower (measured with OpenBLAS and AVX-512, E = 384).
_DOCUMENTS = 2_048
_QUERIES = 1_024
_GROUP = 32
_EPSILON = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-11, "tf32": 2.0**-11}


@dataclass(frozen=True, slots=True)
class Finalists:
    """What a scan kept of each query: indices [Q, F] (-1 empty), whether all places are taken, the lowest score."""

    indices: "Indices"
    is_full: NDArray[np.bool_]
    lowest: "Floats"


class _State(Protocol):
    """The finalists of a block of queries while tiles go by."""

    def take(self, tile_TE: "Floats", start: int, excluded: "tuple[Indices, Indices]") -> None: ...
    def finish(self) -> "tuple[Indices, Floats]":
        """Indices [B, F], and the lowest score of each query, minus infinity while places are free, [B]."""


class Scan:
    """A scan of documents for some queries, with their ceilings (plus infinity for none) and excluded documents."""

    def __init__(
        self,
        queries_QE: "Floats",
        ceilings_Q: NDArray[np.float64],
        excluded: "list[Indices]",
        num_finalists: int,
        is_half: bool,
        device: str,
    ) -> None:
        self._queries_QE, self._device = queries_QE, device
        self._format = ("bfloat16" if device == "cpu" else "float16") if is_half else "float32"
        self._num_finalists = num_finalists
        self._ceilings_Q = ceilings_Q
        rows = [np.full(len(of_query), row) for row, of_query in enumerate(excluded)]
        documents = np.concatenate(excluded) if excluded else np.empty(0, np.int64)
        order = np.argsort(documents, kind="stable")
        self._excluded_documents = documents[order]
        self._excluded_rows = np.concatenate(rows)[order] if rows else np.empty(0, np.int64)

    def run(self, documents_DE: "Vectors") -> "tuple[Finalists, float]":
        """The finalists, and by how much a score of the scan may differ from the exact one."""
        slack = self._slack(documents_DE)
        # A document this far above the ceiling is surely over it; nearer ones are decided by exact scores.
        limits_Q = np.nextafter((self._ceilings_Q + slack).astype(np.float32), np.float32(np.inf))
        blocks = [slice(start, start + _QUERIES) for start in range(0, len(self._queries_QE), _QUERIES)]
        states = self._states(blocks, limits_Q)
        for start in range(0, documents_DE.shape[0], _DOCUMENTS):
            tile = np.ascontiguousarray(documents_DE[start : start + _DOCUMENTS], np.float32)
            for block, state in zip(blocks, states, strict=True):
                state.take(tile, start, self._excluded_in(start, len(tile), block))
        ends = [state.finish() for state in states]
        indices, lowest = (np.concatenate(parts) for parts in zip(*ends, strict=True))
        return Finalists(indices, np.isfinite(lowest), lowest), slack

    def _states(self, blocks: list[slice], limits_Q: "Floats") -> list[_State]:
        if self._device == "cpu":
            multiply = _product(self._queries_QE, blocks, self._format)
            return [
                _Block(limits_Q[block], self._num_finalists, partial(multiply, number))
                for number, block in enumerate(blocks)
            ]
        from curation.mining.scanning_torch import TorchBlock

        return [
            TorchBlock(self._queries_QE[block], limits_Q[block], self._num_finalists, self._format, self._device)
            for block in blocks
        ]

    def _excluded_in(self, start: int, num_documents: int, block: slice) -> "tuple[Indices, Indices]":
        """Places (document of the tile, query of the block) of what is left out."""
        low, high = np.searchsorted(self._excluded_documents, [start, start + num_documents])
        documents, rows = self._excluded_documents[low:high] - start, self._excluded_rows[low:high] - block.start
        is_here = (rows >= 0) & (rows < _QUERIES)
        return documents[is_here], rows[is_here]

    def _slack(self, documents_DE: "Vectors") -> float:
        """Bound of |computed - exact|: rounding of both factors, of E additions in float32, and of the result."""
        largest = 0.0
        for start in range(0, documents_DE.shape[0], _DOCUMENTS):
            tile = documents_DE[start : start + _DOCUMENTS].astype(np.float32, copy=False)
            largest = max(largest, float(np.einsum("te,te->t", tile, tile).max(initial=0)))
        largest_query = float(np.einsum("qe,qe->q", self._queries_QE, self._queries_QE).max(initial=0))
        dimension = self._queries_QE.shape[1]
        relative = (dimension + 2) * _EPSILON["float32"]
        if self._format != "float32" or self._device != "cpu":
            # Two factors and the result, with their products; the last term is for numbers too small to be normal.
            # A GPU may be set to multiply float32 as TF32.
            factor = _EPSILON["tf32" if self._format == "float32" else self._format]
            relative += 3.1 * factor + 2 * dimension**0.5 * 2.0**-25
        return float(relative * (largest * largest_query) ** 0.5 * 1.01)


class _Block:
    """Finalists of a block of queries so far, and what was found since they were last merged."""

    def __init__(self, limits_B: "Floats", num_finalists: int, scores_of: "Callable[[Floats], Floats]") -> None:
        self.indices_BF = np.full((len(limits_B), num_finalists), -1, np.int64)
        self._scores_BF = np.full((len(limits_B), num_finalists), -np.inf, np.float32)
        self.lowest_B = np.full(len(limits_B), -np.inf, np.float32)
        self._limits_B, self._scores_of = limits_B, scores_of
        self._has_limits = bool(np.isfinite(limits_B).any())
        self._found: list[tuple[Any, Any, Any]] = []
        self._num_found = 0

    def finish(self) -> "tuple[Indices, Floats]":
        self._merge()
        return self.indices_BF, self.lowest_B

    def take(self, tile_TE: "Floats", start: int, excluded: "tuple[Indices, Indices]") -> None:
        """Collect what may be among the finalists from the tile of documents that begins at `start`."""
        scores_TB = self._scores_of(tile_TE)
        scores_TB[excluded] = -np.inf
        num_documents, num_queries = scores_TB.shape
        num_finalists = self.indices_BF.shape[1]
        group = min(_GROUP, 1 << max(0, (_DOCUMENTS // (4 * num_finalists)).bit_length() - 1))
        if num_documents % group:
            group = 1
        thresholds = self.lowest_B
        if start == 0 and self._has_limits:
            scores_TB[scores_TB >= self._limits_B] = -np.inf
        grouped = scores_TB.reshape(-1, group, num_queries)
        maxima_GB = grouped.max(axis=1) if group > 1 else scores_TB
        if start == 0 and len(maxima_GB) > num_finalists:
            # The F-th highest of the maxima is a score that F documents reach: nothing below it can stay.
            kth = np.partition(maxima_GB, len(maxima_GB) - num_finalists, axis=0)[len(maxima_GB) - num_finalists]
            thresholds = np.nextafter(kth, np.float32(-np.inf))
        groups, rows = np.nonzero(maxima_GB > thresholds)
        if len(rows) == 0:
            return
        opened = grouped[groups, :, rows]
        hits, places = np.nonzero((opened > thresholds[rows, None]) & (opened < self._limits_B[rows, None]))
        rows = rows[hits]
        self._found.append((rows, groups[hits] * group + places + start, opened[hits, places]))
        self._num_found += len(rows)
        if self._num_found * 2 >= self.indices_BF.size:
            self._merge()

    def _merge(self) -> None:
        """Bring what was found into the finalists."""
        if self._num_found == 0:
            return
        rows, indices, scores = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        self._found, self._num_found = [], 0
        order = np.argsort(rows, kind="stable")
        rows, indices, scores = rows[order], indices[order], scores[order]
        touched, firsts, counts = np.unique(rows, return_index=True, return_counts=True)
        columns = np.arange(len(rows)) - np.repeat(firsts, counts)
        num_finalists = self.indices_BF.shape[1]
        width = num_finalists + int(counts.max())
        all_scores = np.full((len(touched), width), -np.inf, np.float32)
        all_indices = np.full((len(touched), width), -1, np.int64)
        all_scores[:, :num_finalists], all_indices[:, :num_finalists] = (
            self._scores_BF[touched],
            self.indices_BF[touched],
        )
        at = np.repeat(np.arange(len(touched)), counts), num_finalists + columns
        all_scores[at], all_indices[at] = scores, indices
        best = np.argpartition(all_scores, width - num_finalists, axis=1)[:, width - num_finalists :]
        self._scores_BF[touched] = np.take_along_axis(all_scores, best, 1)
        self.indices_BF[touched] = np.take_along_axis(all_indices, best, 1)
        self.lowest_B[touched] = self._scores_BF[touched].min(axis=1)


def _product(queries_QE: "Floats", blocks: list[slice], number_format: str) -> "Callable[[int, Floats], Floats]":
    """A function from a block's number and a tile of documents to scores [T, B]; valid until it is called again."""
    if number_format == "float32":
        space = np.empty(_DOCUMENTS * min(_QUERIES, len(queries_QE)), np.float32)

        def scores_of(number: int, tile_TE: "Floats") -> "Floats":
            block_BE = queries_QE[blocks[number]]
            shape = len(tile_TE), len(block_BE)
            return np.matmul(tile_TE, block_BE.T, out=space[: shape[0] * shape[1]].reshape(shape))

        return scores_of
    import torch

    kind = getattr(torch, number_format)
    queries = [torch.from_numpy(queries_QE[block]).to(kind).T for block in blocks]
    return lambda number, tile_TE: (torch.from_numpy(tile_TE).to(kind) @ queries[number]).float().numpy()
