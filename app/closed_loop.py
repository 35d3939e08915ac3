"""From training back to the store: what each step said, and what the model made of each negative.

A model's folder holds the metrics of every step, and the margin, cosine(positive) - cosine(negative), of every negative
each time it was trained on. The margins' mean, turned round, is the score of a teacher `margin of MODEL`: higher is
nearer to the query, and a positive has 0. All of a training comes in one transaction; done again, nothing changes, but
for margins of examples that came to the store meanwhile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.training_files import read_margins, read_training

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.store import Store
    from db.tables.training import Training

_PAGE = 2_000
Margins = Mapping[tuple[str, str], float]
"""Mean margin by (example's digest, negative's digest)."""


@dataclass(slots=True)
class TrainingReport:
    """What came back: the steps, and the negatives that were trained on, with those that looked wrong.

    `teacher` is None where the folder has no margins; `num_unknown` negatives are not in this store, and those of
    `num_not_finite` have no margin that is a number: neither has a score.
    """

    training: str
    digest: str
    is_new: bool
    num_steps: int
    teacher: str | None = None
    num_negatives: int = 0
    num_unknown: int = 0
    num_not_finite: int = 0
    num_new: int = 0
    num_above_positive: int = 0
    num_far_below: int = 0

    def in_words(self) -> str:
        """One line for a person."""
        steps = f"{self.num_steps:,} steps" if self.is_new else "its steps were there before"
        line = f"in the store: training {self.training} ({self.digest[:8]}), {steps}"
        if self.teacher is None:
            return f"{line}; the folder has no margins.parquet"
        line += f", {self.num_new:,} new scores of {self.num_negatives:,} negatives and their positives"
        if self.num_unknown:
            line += f"; {self.num_unknown:,} negatives are not in this store"
        return line + (f"; {self.num_not_finite:,} have no finite margin" if self.num_not_finite else "")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def import_training(store: "Store", model: Path) -> TrainingReport:
    """Write a trained model's metrics and margins to the store.

    Raises:
        AppError: The folder is not one that `gradus train` made, or a file of it is broken.
    """
    from db.trainings import put_training

    new, margins = read_training(model), read_margins(model)
    with store.write() as session:
        training, is_new = put_training(session, new)
        report = TrainingReport(training.name, training.digest, is_new, training.num_steps)
        if margins is not None:
            means, report.num_not_finite = mean_margins(margins)
            _put_margins(session, training, means, report)
    return report


def mean_margins(margins: Any) -> tuple[Margins, int]:
    """Mean over the times a negative was trained on, and the number of negatives without a finite margin."""
    import pyarrow.compute as pc

    keys = ["example_id", "negative_id"]
    is_number = pc.is_finite(margins["margin"]).fill_null(False)
    means = margins.filter(is_number).group_by(keys).aggregate([("margin", "mean")])
    columns = (means[name].to_pylist() for name in (*keys, "margin_mean"))
    found = {(example, negative): margin for example, negative, margin in zip(*columns, strict=True)}
    return found, margins.group_by(keys).aggregate([]).num_rows - len(found)


def _put_margins(session: "Session", training: "Training", margins: Margins, report: TrainingReport) -> None:
    from curation.reviewing.margins import NAME
    from db.insert import insert_missing
    from db.tables.examples import Score
    from db.teachers import MARGIN, put_teacher

    report.teacher = NAME.format(training.name)
    report.num_negatives = len(margins) + report.num_not_finite
    teacher = put_teacher(session, name=report.teacher, version=training.digest, kind=MARGIN)
    if training.teacher_id is None:
        training.teacher_id = teacher
    values: dict[tuple[int, int], float] = {}
    positives: set[tuple[int, int]] = set()
    for part in _pages(margins):
        positives |= _add_values(session, part, values, report)
    values |= dict.fromkeys(positives, 0.0)
    rows = [
        {"teacher_id": teacher, "query_id": query, "passage_id": passage, "value": round(value, 6), "num_tokens": None}
        for (query, passage), value in values.items()
    ]
    report.num_new = insert_missing(session, Score, rows)


def _pages(margins: Margins) -> Iterator[list[tuple[str, str, float]]]:
    rows = [(example, negative, margin) for (example, negative), margin in margins.items()]
    for start in range(0, len(rows), _PAGE):
        yield rows[start : start + _PAGE]


def _add_values(
    session: "Session", rows: list[tuple[str, str, float]], values: dict[tuple[int, int], float], report: TrainingReport
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
