"""Retrieval metrics as trec_eval defines them, and how models are compared.

Models are compared unit by unit: `paired_bootstrap` draws the same units for both.

Legend: Q queries, U units (queries, pairs or examples), R runs (seeds),
S samples drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TrainerError

METRICS = ("ndcg@10", "mrr@10", "recall@100")
_DRAWN_AT_ONCE = 2_000_000
Statistic = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]


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
    """Mean of each drawn sample of units, [S]; a unit without a value (NaN) is passed over, NaN where none has one."""
    drawn = values_U[rows_SU]
    has_value = ~np.isnan(drawn)
    counts = has_value.sum(axis=1)
    sums = np.where(has_value, drawn, 0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def paired_bootstrap(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    *,
    statistic: Statistic = means,
    seed: int = 0,
    num_samples: int = 10_000,
) -> dict[str, Any]:
    """Difference of a statistic, after - before, with a 95 % percentile interval; units drawn with replacement.

    Of several runs (seeds) the statistic is taken of each and averaged, in every sample. Runs are not drawn: the
    interval is that of other units for these very runs.

    Args:
        before: A value of each unit (query, pair, example), [U], or of several runs, [R, U]; NaN where there is none.
        after: The same of the other model, over the same units; the number of runs may differ.
        statistic: What is compared, of samples of units; the mean by default.

    Raises:
        TrainerError: The units are not as many, or one side has no value at all.
    """
    before_RU, after_RU = np.atleast_2d(before), np.atleast_2d(after)
    num_units = before_RU.shape[1]
    if num_units != after_RU.shape[1]:
        raise TrainerError(f"a paired comparison needs the same units: {num_units} and {after_RU.shape[1]}")

    def differences(rows_SU: NDArray[np.int64]) -> NDArray[np.float64]:
        later, earlier = ([statistic(run_U, rows_SU) for run_U in runs_RU] for runs_RU in (after_RU, before_RU))
        return np.asarray(np.mean(later, axis=0) - np.mean(earlier, axis=0))

    difference = float(differences(np.arange(num_units)[None, :])[0])
    if np.isnan(difference):
        raise TrainerError("a paired comparison needs a value on either side")
    draws, at_once = np.random.default_rng(seed), max(1, _DRAWN_AT_ONCE // num_units)
    parts = [
        differences(draws.integers(0, num_units, (min(at_once, num_samples - start), num_units)))
        for start in range(0, num_samples, at_once)
    ]
    low, high = np.nanquantile(np.concatenate(parts), [0.025, 0.975])  # a sample may hold no unit with a value
    return {"difference": difference, "interval_95": [float(low), float(high)]}
