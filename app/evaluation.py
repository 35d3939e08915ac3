"""Evaluation on a BEIR folder: reads it, ranks by each model, and puts the metrics side by side."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.encoders import embedding_cache
from app.errors import AppError
from curation.importing.beir import BeirQrel, Fault, read_corpus, read_qrels, read_queries
from trainer.evaluation import METRICS, paired_bootstrap, rank_documents, retrieval_metrics

_DEPTH = 100
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class _Collection:
    """Texts by external id, judgments of the queries that have a relevant document, and what was left out."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, int]]
    faults: list[str]


def evaluate_models(
    models: Sequence[str], data: Path, *, split: str, pool: int | None, progress: Progress
) -> dict[str, Any]:
    """Metrics of each model over the split's queries that have a relevant document.

    Args:
        pool: Rank only judged documents and each query's BM25 top `pool`; None ranks the whole corpus.
    """
    collection = _read(data, split)
    documents = _pooled(collection, pool) if pool else list(collection.documents)
    texts = [collection.documents[key] for key in documents]
    relevance = list(collection.relevance.values())
    results: list[dict[str, Any]] = []
    per_query: list[dict[str, Any]] = []
    for model in models:
        cache = embedding_cache(model)
        documents_DE, _ = cache.embed(texts, progress=progress)
        queries_QE, _ = cache.embed([collection.queries[key] for key in collection.relevance])
        ranked = rank_documents(queries_QE, documents_DE, _DEPTH)
        values = retrieval_metrics([[documents[place] for place in row] for row in ranked], relevance)
        per_query.append(values)
        result: dict[str, Any] = {
            "model": model,
            "name": cache.encoder.name,
            "version": cache.encoder.version,
            "metrics": {name: float(np.mean(values[name])) for name in METRICS},
        }
        if len(per_query) > 1:
            result["difference"] = {name: paired_bootstrap(per_query[0][name], values[name]) for name in METRICS}
        results.append(result)
    return {
        "data": str(data),
        "split": split,
        "pool": pool,
        "num_queries": len(relevance),
        "num_documents": len(documents),
        "models": results,
        "faults": collection.faults,
    }


def _read(data: Path, split: str) -> _Collection:
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    faults: list[str] = []
    for document in read_corpus(data):
        if isinstance(document, Fault):
            faults.append(str(document))
        else:
            _add(documents, document.external_id, document.passage, document.where, faults)
    for query in read_queries(data):
        if isinstance(query, Fault):
            faults.append(str(query))
        else:
            _add(queries, query.external_id, query.text, query.where, faults)
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    for row in read_qrels(data, split):
        fault = _fault(row, documents, queries)
        if fault is not None:
            faults.append(fault)
        elif isinstance(row, BeirQrel):
            relevance[row.query_id][row.document_id] = row.relevance
    judged = {query: judged for query, judged in relevance.items() if any(grade > 0 for grade in judged.values())}
    if not judged:
        raise AppError(f"{data}, split {split!r}: no query has a relevant document in the corpus, nothing to evaluate")
    return _Collection(documents, queries, judged, faults)


def _add(texts: dict[str, str], key: str, text: str, where: str, faults: list[str]) -> None:
    """The first text of an id stands; another one under the same id is a fault."""
    if texts.setdefault(key, text) != text:
        faults.append(f"{where}: _id {key!r} stands for another text before, which is kept")


def _fault(row: BeirQrel | Fault, documents: dict[str, str], queries: dict[str, str]) -> str | None:
    if isinstance(row, Fault):
        return str(row)
    if row.query_id not in queries:
        return f"{row.where}: query-id {row.query_id!r} is not in queries.jsonl"
    if row.document_id not in documents:
        return f"{row.where}: corpus-id {row.document_id!r} is not in corpus.jsonl"
    return None


def _pooled(collection: _Collection, depth: int) -> list[str]:
    """Judged documents and the BM25 top of each query, in the corpus' order."""
    from curation.mining.bm25 import top_documents

    keys = list(collection.documents)
    queries = [collection.queries[key] for key in collection.relevance]
    found, _ = top_documents(queries, list(collection.documents.values()), depth)
    pool = {keys[place] for row in found for place in row if place >= 0}
    pool |= {document for judged in collection.relevance.values() for document in judged}
    return [key for key in keys if key in pool]
