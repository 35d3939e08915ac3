"""From training back to the store: what a model made of each negative becomes a score that reviewers see.

A model's folder holds the margin, cosine(positive) - cosine(negative), of every negative each time it was trained on.
Their mean, turned round, is the score of a teacher `margin of MODEL`: higher is nearer to the query, and a positive
has 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from app.errors import AppError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.store import Store

_PAGE = 2_000


@dataclass(slots=True)
class MarginReport:
    """What came back: negatives that were trained on, those the store knows, and how many looked wrong."""

    teacher: str
    num_negatives: int = 0
    num_unknown: int = 0
    num_new: int = 0
    num_above_positive: int = 0
    num_far_below: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def put_margins(store: "Store", model: Path) -> MarginReport:
    """Write a trained model's margins to the store; done again, nothing changes.

    Raises:
        AppError: The folder has no margins, or none of its examples is in the store.
    """
    from curation.reviewing.margins import KIND, NAME
    from db.digest import digest_of
    from db.insert import insert_missing
    from db.tables.examples import Score
    from db.teachers import put_teacher

    summary = _summary(model)
    margins = mean_margins(model)
    version = digest_of({"recipe": summary["recipe"], "release": summary["release_digest"]})
    report = MarginReport(NAME.format(summary["recipe"]["name"]), num_negatives=len(margins))
    values: dict[tuple[int, int], float] = {}
    positives: set[tuple[int, int]] = set()
    with store.write() as session:
        for part in _pages(margins):
            positives |= _add_values(session, part, values, report)
        if not values:
            raise AppError(f"model {model}: none of its {len(margins)} negatives is in this store: give its --store")
        values |= dict.fromkeys(positives, 0.0)
        teacher = put_teacher(session, name=report.teacher, version=version, kind=KIND)
        rows = [
            {
                "teacher_id": teacher,
                "query_id": query,
                "passage_id": passage,
                "value": round(value, 6),
                "num_tokens": None,
            }
            for (query, passage), value in values.items()
        ]
        report.num_new = insert_missing(session, Score, rows)
    return report


def mean_margins(model: Path) -> dict[tuple[str, str], float]:
    """Mean margin by (example's digest, negative's digest) over the times it was trained on."""
    import pyarrow.parquet as pq

    path = model / "margins.parquet"
    if not path.is_file():
        raise AppError(f"model {model}: no margins.parquet there; give the folder of a model that 'gradus train' made")
    table = pq.read_table(path, columns=["example_id", "negative_id", "margin"])
    means = table.group_by(["example_id", "negative_id"]).aggregate([("margin", "mean")])
    columns = (means[name].to_pylist() for name in ("example_id", "negative_id", "margin_mean"))
    return {(example, negative): margin for example, negative, margin in zip(*columns, strict=True)}


def _summary(model: Path) -> Mapping[str, Any]:
    path = model / "training.json"
    try:
        summary: Mapping[str, Any] = orjson.loads(path.read_bytes())
        _ = summary["recipe"]["name"], summary["release_digest"]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise AppError(f"model {model}: no training.json of 'gradus train' there") from error
    return summary


def _pages(margins: Mapping[tuple[str, str], float]) -> Iterator[list[tuple[str, str, float]]]:
    rows = [(example, negative, margin) for (example, negative), margin in margins.items()]
    for start in range(0, len(rows), _PAGE):
        yield rows[start : start + _PAGE]


def _add_values(
    session: "Session", rows: list[tuple[str, str, float]], values: dict[tuple[int, int], float], report: MarginReport
) -> set[tuple[int, int]]:
    """Put in the scores of the rows' pairs, the nearest where examples share one; gives the positives' pairs."""
    from sqlalchemy import select

    from curation.reviewing.margins import is_far_below
    from db.tables.examples import Example
    from db.tables.texts import Passage

    digests = {example for example, _, _ in rows}
    examples = {
        digest: (query, positive)
        for digest, query, positive in session.execute(
            select(Example.digest, Example.query_id, Example.positive_id).where(Example.digest.in_(digests))
        )
    }
    wanted = {negative for _, negative, _ in rows}
    passages = {
        digest: key
        for key, digest in session.execute(select(Passage.id, Passage.digest).where(Passage.digest.in_(wanted)))
    }
    positives = set()
    for example, negative, margin in rows:
        if example not in examples or negative not in passages:
            report.num_unknown += 1
            continue
        query, positive = examples[example]
        pair = (query, passages[negative])
        values[pair] = max(values.get(pair, -margin), -margin)
        positives.add((query, positive))
        report.num_above_positive += margin < 0
        report.num_far_below += is_far_below(-margin)
    return positives
