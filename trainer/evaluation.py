"""Retrieval metrics as trec_eval defines them, on rankings from exact search.

Models are compared unit by unit: `paired_bootstrap` draws the same units for both.

Legend: Q queries, D documents, E embedding dimension, k places, U units (queries, pairs or examples), S samples drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TrainerError

METRICS = ("ndcg@10", "mrr@10", "recall@100")
_TILE = 4_096
_DRAWN_AT_ONCE = 2_000_000
Floats = NDArray[np.float32]
Statistic = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]


def rank_documents(queries_QE: Floats, documents_DE: Floats, k: int) -> NDArray[np.int64]:
    """The k best documents of each query by inner product, [Q, k]; ties by the lower index."""
    k = min(k, len(documents_DE))
    ranked = np.empty((len(queries_QE), k), np.int64)
    for start in range(0, len(queries_QE), _TILE):
        scores = queries_QE[start : start + _TILE] @ documents_DE.T
        ranked[start : start + _TILE] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ranked


def retrieval_metrics(
    ranked: Sequence[Sequence[str]], relevance: Sequence[Mapping[str, int]]
) -> dict[str, NDArray[np.float64]]:
    """nDCG@10 (linear gain), MRR@10 and Recall@100 per query, [Q].

    Args:
        ranked: Document ids of each query, best first.
        relevance: Judgments of each query; above 0 is relevant. Relevant documents that are not ranked count as missed.

    Raises:
        TrainerError: No queries, or one without a relevant document, for which these metrics have no value.
    """
    if not ranked:
        raise TrainerError("nothing to evaluate: no query has judgments in this split")
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for documents, judged in zip(ranked, relevance, strict=True):
        relevant = {document for document, grade in judged.items() if grade > 0}
        if not relevant:
            raise TrainerError("a query without a relevant document cannot be evaluated: leave it out")
        values["ndcg@10"].append(_ndcg(documents[:10], judged))
        first = next((place for place, document in enumerate(documents[:10], start=1) if document in relevant), None)
        values["mrr@10"].append(1 / first if first else 0.0)
        values["recall@100"].append(len(relevant & set(documents[:100])) / len(relevant))
    return {name: np.array(column) for name, column in values.items()}


def _ndcg(documents: Sequence[str], judged: Mapping[str, int]) -> float:
    gains = [max(0, judged.get(document, 0)) for document in documents]
    best = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:10]
    return _dcg(gains) / _dcg(best)


def _dcg(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(place + 1) for place, gain in enumerate(gains, start=1)))


def means(values_U: NDArray[np.float64], rows_SU: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of each drawn sample of units, [S]; a unit without a value (NaN) is passed over."""
    drawn = values_U[rows_SU]
    has_value = ~np.isnan(drawn)
    return np.where(has_value, drawn, 0).sum(axis=1) / np.maximum(has_value.sum(axis=1), 1)


def paired_bootstrap(
    before_U: NDArray[np.float64],
    after_U: NDArray[np.float64],
    *,
    statistic: Statistic = means,
    seed: int = 0,
    num_samples: int = 10_000,
) -> dict[str, Any]:
    """Difference of a statistic, after - before, with a 95 % percentile interval; units drawn with replacement.

    Args:
        before_U: A value of each unit (query, pair, example); NaN where it has none, the same units in both.
        after_U: The same of the other model.
        statistic: What is compared, of samples of units; the mean by default.
    """
    if len(before_U) != len(after_U):
        raise TrainerError(f"a paired comparison needs the same units: {len(before_U)} and {len(after_U)}")
    draws, num_units = np.random.default_rng(seed), len(before_U)
    at_once = max(1, _DRAWN_AT_ONCE // num_units)
    parts = []
    for start in range(0, num_samples, at_once):
        rows_SU = draws.integers(0, num_units, (min(at_once, num_samples - start), num_units))
        parts.append(statistic(after_U, rows_SU) - statistic(before_U, rows_SU))
    low, high = np.quantile(np.concatenate(parts), [0.025, 0.975])
    all_1U = np.arange(num_units)[None, :]
    difference = float((statistic(after_U, all_1U) - statistic(before_U, all_1U))[0])
    return {"difference": difference, "interval_95": [float(low), float(high)]}
