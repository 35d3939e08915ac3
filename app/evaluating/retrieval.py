"""Retrieval: a collection's queries against its whole corpus, from a BEIR folder or a set on the Hub.

Where the rows of queries.jsonl have a field that sorts them (a template, a domain), the main metric is also told for
each of its values: so a set with operators (and, or, not) shows which of them a model does not understand.
"""

import gzip
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.errors import AppError
from app.evaluating.measuring import EvaluatedModel, EvaluationSet, Progress, Values, content_digest
from curation.importing.beir import BeirQrel, Fault, read_corpus, read_qrels, read_queries
from curation.mining.search import top_k
from trainer.evaluation import METRICS, retrieval_metrics

_DEPTH = 100
_NANO = "sentence-transformers/NanoBEIR-en"
_OWN = ("_id", "text")
_MOST_GROUPS = 30


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts by external id, judgments of the queries that have a relevant document, and what was left out."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, int]]
    faults: list[str]


def beir_set(data: Path, split: str, pool: int | None = None, by: str | None = None) -> EvaluationSet:
    """A folder in the BEIR layout.

    Args:
        pool: Rank only judged documents and each query's BM25 top `pool`; None ranks the whole corpus.
        by: A field of queries.jsonl: the main metric is told for each of its values too.

    Raises:
        AppError: No judged query has the field, or it has too many values to be told apart.
    """
    collection = read_beir(data, split)
    groups = _grouped(data, by, list(collection.relevance)) if by else {}
    return retrieval_set(collection, str(data), split, pool, groups)


def retrieval_set(
    collection: Collection,
    data: str,
    split: str,
    pool: int | None = None,
    groups: Mapping[str, Sequence[bool]] | None = None,
) -> EvaluationSet:
    """A collection as an evaluation set; its units are queries with a relevant document.

    A query's own document, of the same id with the query's text in it, is no answer to it (ArguAna's queries are
    documents of its corpus): it is passed over, unless it was judged relevant. BEIR goes by the id alone, and so drops
    other documents too where queries and documents are both numbered from 1.

    Args:
        groups: Which of the units belong together, by the group's name.
    """
    keys = _pooled(collection, pool) if pool else list(collection.documents)
    relevance = list(collection.relevance.values())
    main, parts, own = METRICS[0], groups or {}, _own_documents(collection, keys)

    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        documents_DE = model.documents.stored([collection.documents[key] for key in keys], progress=progress)
        queries_QE = model.asked([collection.queries[key] for key in collection.relevance])
        ranked, _ = top_k(queries_QE, documents_DE, _DEPTH, excluded=own)
        values = retrieval_metrics([[keys[place] for place in row if place >= 0] for row in ranked.tolist()], relevance)
        of_parts = {_part(main, name): np.where(is_in, values[main], np.nan) for name, is_in in parts.items()}
        return values | of_parts

    facts: dict[str, Any] = {"pool": pool, "num_documents": len(keys)}
    if num_own := sum(map(len, own)):
        facts["num_own_documents"] = num_own
    if parts:
        facts["groups"] = {name: int(np.sum(is_in)) for name, is_in in parts.items()}
    metrics = (*METRICS, *(_part(main, name) for name in parts))
    digest = content_digest(
        ([key, collection.documents[key]] for key in keys),
        ([key, collection.queries[key], judged] for key, judged in collection.relevance.items()),
        ([name, *map(bool, is_in)] for name, is_in in parts.items()),
        *([own] if any(own) else []),
    )
    return EvaluationSet(
        "retrieval", data, split, "queries", len(relevance), metrics, digest, measure, facts=facts,
        faults=collection.faults,
    )  # fmt: skip


def _own_documents(collection: Collection, keys: Sequence[str]) -> list[list[int]]:
    """Place of each query's own document among the ranked ones; empty where there is none, or it is an answer."""
    place = {key: number for number, key in enumerate(keys)}

    def is_own(query: str) -> bool:
        asked, told = (" ".join(texts[query].split()) for texts in (collection.queries, collection.documents))
        return asked in told

    return [
        [place[query]] if query in place and judged.get(query, 0) <= 0 and is_own(query) else []
        for query, judged in collection.relevance.items()
    ]


def _part(metric: str, group: str) -> str:
    return f"{metric}, {group}"


def _grouped(data: Path, field: str, queries: Sequence[str]) -> dict[str, list[bool]]:
    """Which of the queries have each value of a field, the values in order; a query may lack it."""
    plain, zipped = data / "queries.jsonl", data / "queries.jsonl.gz"
    wanted, fields = set(queries), set[str]()
    value_of: dict[str, str] = {}
    with plain.open("rb") if plain.is_file() else gzip.open(zipped, "rb") as lines:
        for line in lines:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # told as a fault where the queries are read
            if not isinstance(row, dict) or row.get("_id") not in wanted:
                continue
            fields |= {name for name, value in row.items() if isinstance(value, str | int) and name not in _OWN}
            if isinstance(row.get(field), str | int):
                value_of.setdefault(row["_id"], str(row[field]))
    values = sorted(set(value_of.values()))
    if not values or field in _OWN:
        have = f"their fields are {', '.join(sorted(fields))}" if fields else "they have no other field"
        raise AppError(f"--by {field!r}: no judged query of {data} has it to be sorted by; {have}")
    if len(values) > _MOST_GROUPS:
        raise AppError(f"--by {field!r}: it has {len(values)} values, more than {_MOST_GROUPS}: name a coarser field")
    return {value: [value_of.get(query) == value for query in queries] for value in values}


def read_beir(data: Path, split: str) -> Collection:
    """The folder's texts and the split's judgments; bad rows are left out and told."""
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
    return _judged(documents, queries, read_qrels(data, split), faults, f"{data}, split {split!r}")


def hub_set(name: str, split: str, pool: int | None = None) -> EvaluationSet:
    """`nanobeir:NFCorpus`, or `mteb:scifact`: a set on the Hub in the layout of NanoBEIR or of MTEB's retrieval tasks.

    MTEB's sets keep their judgments as the configuration `default`, NanoBEIR's keep each collection as a split.

    Raises:
        AppError: The Hub cannot be reached, or it has no such set there.
    """
    family, _, short = name.partition(":")
    if not short:
        raise AppError(f"--data {name!r}: name the set after the colon, as in 'nanobeir:NFCorpus' or 'mteb:scifact'")
    if family == "nanobeir":
        repo, qrels, at = _NANO, "qrels", {part: f"Nano{short}" for part in ("corpus", "queries", "qrels")}
    else:
        repo = short if "/" in short else f"mteb/{short.lower()}"
        qrels, at = "default", {"corpus": "corpus", "queries": "queries", "default": split}
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    faults: list[str] = []
    for row in _hub_rows(repo, "corpus", at["corpus"]):
        text = "\n".join(part for part in (row.get("title"), row["text"]) if part)
        if text.strip():
            _add(documents, str(row["_id"]), text, f"{repo}, corpus", faults)
    for row in _hub_rows(repo, "queries", at["queries"]):
        _add(queries, str(row["_id"]), row["text"], f"{repo}, queries", faults)
    where = f"{repo}, {qrels}, split {at[qrels]!r}"
    rows = (
        BeirQrel(str(row["query-id"]), str(row["corpus-id"]), int(row.get("score", 1)), where)
        for row in _hub_rows(repo, qrels, at[qrels])
    )
    # NanoBEIR's corpora have documents without a text, which sentence-transformers leaves out too.
    return retrieval_set(_judged(documents, queries, rows, faults, where), name, at[qrels], pool)


def _hub_rows(repo: str, configuration: str, split: str) -> Iterable[Mapping[str, Any]]:
    from datasets import disable_progress_bars, load_dataset
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    disable_progress_bars()
    remedy = (
        "download it and give its folder in the BEIR layout, or try again where the Hub can be reached (HF_ENDPOINT)"
    )
    try:
        rows: Iterable[Mapping[str, Any]] = load_dataset(repo, configuration, split=split)
    except (ValueError, RepositoryNotFoundError) as error:
        raise AppError(f"{repo}: no configuration {configuration!r} with split {split!r} there ({error})") from error
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        reason = type(error).__name__
        raise AppError(f"{repo}: it is not on this machine and the Hub did not give it ({reason}): {remedy}") from error
    return rows


def _judged(
    documents: dict[str, str],
    queries: dict[str, str],
    rows: Iterable[BeirQrel | Fault],
    faults: list[str],
    where: str,
) -> Collection:
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        fault = _fault(row, documents, queries)
        if fault is not None:
            faults.append(fault)
        elif isinstance(row, BeirQrel):
            relevance[row.query_id][row.document_id] = row.relevance
    judged = {query: judged for query, judged in relevance.items() if any(grade > 0 for grade in judged.values())}
    if not judged:
        raise AppError(f"{where}: no query has a relevant document in the corpus, nothing to evaluate")
    return Collection(documents, queries, judged, faults)


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


def _pooled(collection: Collection, depth: int) -> list[str]:
    """Judged documents and the BM25 top of each query, in the corpus' order."""
    from curation.mining.bm25 import top_documents

    keys = list(collection.documents)
    queries = [collection.queries[key] for key in collection.relevance]
    found, _ = top_documents(queries, list(collection.documents.values()), depth)
    pool = {keys[place] for row in found for place in row if place >= 0}
    pool |= {document for judged in collection.relevance.values() for document in judged}
    return [key for key in keys if key in pool]
