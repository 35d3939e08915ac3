"""What training said of a negative: margins that came back as scores of a teacher of kind `margin`.

Such a teacher's value is cosine(negative) - cosine(positive), the margin turned round, so that higher is nearer to the
query as with every score; its positives have 0. A negative that stayed above the positive while it was trained on is
suspected to be false; one that is written to be near and was far away on the mean of its steps teaches nothing. The
limits are a judgement, as all strengths of suspicion are.
"""

from collections.abc import Iterable
from math import exp
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from curation.audit.ordering import hardness
from db.reading import among, read
from db.tables.examples import Score, Teacher
from db.teachers import MARGIN

NAME = "margin of {}"
_FALSE, _WIDTH = 0.6, 0.1  # strength far above the positive, and the cosine by which two thirds of it are reached
_EASY, _FAR = 0.3, 0.5  # strength, and the margin from which a negative is too easy for a hard or medium grade


def margin_signs(
    session: Session, asked: Iterable[tuple[int, int, int, int | None]]
) -> dict[int, list[tuple[float, str]]]:
    """Signs of suspicion with their strengths, by candidate.

    Args:
        asked: Candidate id, query id, passage id and rank.
    """
    newest = select(func.max(Teacher.id)).where(Teacher.kind == MARGIN).group_by(Teacher.name)
    teachers = list(
        session.execute(select(Teacher.id, Teacher.name).where(Teacher.id.in_(newest)).order_by(Teacher.id))
    )
    rows = list(asked) if teachers else []
    strongest: dict[int, tuple[float, str]] = {}
    statement: Any = select(Score.query_id, Score.passage_id, Score.value)
    for teacher, name in teachers:
        found = read(
            session,
            statement.where(Score.teacher_id == teacher, among(session, Score.query_id)),
            sorted({query for _, query, _, _ in rows}),
        )
        values = {(query, passage): value for query, passage, value in found}
        for candidate, query, passage, rank in rows:
            value = values.get((query, passage))
            sign = None if value is None else _sign(value, rank, name.removeprefix(NAME.format("")))
            if sign is not None:
                strongest[candidate] = max(strongest.get(candidate, (0.0, "")), sign)
    return {candidate: [sign] for candidate, sign in strongest.items()}


def is_far_below(value: float) -> bool:
    """Whether a negative with this value is easy, whatever grade it has."""
    return value <= -_FAR


def _sign(value: float, rank: int | None, model: str) -> tuple[float, str] | None:
    if value > 0:
        return _FALSE * (1 - exp(-value / _WIDTH)), f"suspected false: {model} kept it {value:.2f} above the positive"
    if is_far_below(value) and rank is not None and hardness(rank) > hardness(4):
        return _EASY, f"too easy for N{rank}: {model} had it {-value:.2f} below the positive"
    return None
