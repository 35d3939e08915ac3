"""Which kind of evaluation set something is: told by what lies there."""

from pathlib import Path

from app.errors import AppError
from app.evaluating.measuring import EvaluationSet

_HUB = ("nanobeir:", "mteb:")


def opened_set(data: str, split: str, pool: int | None = None, by: str | None = None) -> EvaluationSet:
    """A BEIR folder, pairs, a release (a folder, or its name in the data folder), or a set on the Hub.

    Args:
        pool: Of retrieval: rank only judged documents and each query's BM25 top `pool`.
        by: Of BEIR folders: a field of the queries that sorts them.

    Raises:
        AppError: It is none of these.
    """
    from app.settings import Settings

    if data.startswith(_HUB):
        from app.evaluating.retrieval import hub_set

        return hub_set(data, split, pool)
    release = Settings().releases / data
    path = release if not Path(data).exists() and (release / "manifest.json").is_file() else Path(data)
    if (path / "manifest.json").is_file():
        from app.evaluating.order import order_set

        return order_set(path, split)
    from app.evaluating.pairs import FILES, pairs_set

    if path.suffix == ".jsonl" and path.is_file():
        return pairs_set(path, split)
    if (path / "qrels").is_dir() or not path.is_dir():
        from app.evaluating.retrieval import beir_set

        return beir_set(path, split, pool, by)
    if any((path / name).is_file() for name in FILES):
        return pairs_set(path, split)
    raise AppError(
        f"--data {data}: neither a BEIR folder (qrels/), nor pairs (pairs.jsonl), nor a release (manifest.json)"
    )
