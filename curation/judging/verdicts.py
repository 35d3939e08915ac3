"""What judges say of negatives, as a release and its gates read it: the last word on a pair, the share of false ones.

The last word is the confirming judge's where there is one, else the screening judge's; of one judge's, the newest. What
becomes of a false negative is a policy of the release: `relabel` it as a positive, `drop` it, or `keep` it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from curation.judging.scope import run_ids
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.judgements import Judge, Judgement
from db.tables.texts import Passage, Query

_PAGE = 1_000
_LOOKUP = 400
_NUM_ROWS = 20
_SHOWN = 300
Policy = Literal["relabel", "drop", "keep"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The last word on a pair."""

    relevance: int
    stage: str
    judge: str
    evidence: str
    reason: str


def false_negatives(
    session: Session, example_ids: Sequence[int], *, judge: str | None = None, threshold: int = 2
) -> set[tuple[int, int]]:
    """(Query id, passage id) of these examples' negatives whose last word is at least `threshold`.

    Args:
        judge: Model whose judgements alone count; None for the last word of any.
    """
    found: set[tuple[int, int]] = set()
    for start in range(0, len(example_ids), _LOOKUP):
        some = Candidate.example_id.in_(example_ids[start : start + _LOOKUP])
        pairs = (
            select(Example.query_id, Candidate.passage_id)
            .select_from(Candidate)
            .join(Example, Candidate.example_id == Example.id)
            .where(some, Candidate.role == "negative")
        )
        words = _last_words(session, pairs, judge)
        found.update(pair for pair, verdict in words.items() if verdict.relevance >= threshold)
    return found


def judged_rate(
    store: Store, runs: Sequence[str] = (), *, judge: str | None = None, threshold: int = 2
) -> dict[str, Any]:
    """How many of the runs' negatives are judged, and what share of those is false, with Wilson's 95 % interval.

    Args:
        runs: Names of the runs whose negatives count; all when empty.
        judge: Model whose judgements alone count; None for the last word of any.

    Returns:
        `num_negatives`, `num_judged`, `num_false`, `rate` and `interval_95` (None without judgements), and `rows`: the
        first false ones by id, with their evidence.

    Raises:
        CurationError: A name is no run's.
    """
    num = {"num_negatives": 0, "num_judged": 0, "num_false": 0}
    first: list[tuple[int, int]] = []
    with store.read() as session:
        conditions = [Candidate.role == "negative"]
        if runs:
            conditions.append(Candidate.run_id.in_(run_ids(session, tuple(runs))))
        pairs = select(Candidate.id, Example.query_id, Candidate.passage_id).select_from(Candidate)
        pairs = pairs.join(Example, Candidate.example_id == Example.id).where(*conditions)
        for page in pages_with_grades(session, pairs, judge):
            false = [(query, passage) for _, query, passage, grade in page if grade is not None and grade >= threshold]
            num["num_negatives"] += len(page)
            num["num_judged"] += sum(grade is not None for *_, grade in page)
            num["num_false"] += len(false)
            first += false[: _NUM_ROWS - len(first)]
        rows = _rows(session, first, judge)
    rate = num["num_false"] / num["num_judged"] if num["num_judged"] else None
    return {**num, "rate": rate, "interval_95": wilson(num["num_false"], num["num_judged"]), "rows": rows}


def pages_with_grades(
    session: Session, pairs: Select[*tuple[Any, ...]], judge: str | None = None
) -> Iterator[list[tuple[Any, ...]]]:
    """Pages of these candidates by id, each row with the last word's grade behind it; None where there is none.

    Args:
        pairs: Selects from `Candidate` joined with `Example`; the first column is the candidate's id.
    """
    is_same = (Judgement.query_id == Example.query_id) & (Judgement.passage_id == Candidate.passage_id)
    if judge is not None:
        is_same &= Judgement.judge_id.in_(select(Judge.id).where(Judge.model == judge))
    graded = pairs.outerjoin(Judgement, is_same).add_columns(Judgement.relevance)
    graded = graded.order_by(Candidate.id, Judgement.stage == "confirm", Judgement.id)
    ids = pairs.with_only_columns(Candidate.id).order_by(Candidate.id).limit(_PAGE)
    last = 0
    while keys := session.scalars(ids.where(Candidate.id > last)).all():
        rows = session.execute(graded.where(Candidate.id > last, Candidate.id <= keys[-1]))
        last = keys[-1]
        # One row a candidate: of several judgements the last word comes last.
        yield list({row[0]: tuple(row) for row in rows}.values())


def wilson(num_false: int, num_judged: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share; None of nothing."""
    from scipy.stats import binomtest

    if not num_judged:
        return None
    interval = binomtest(num_false, num_judged).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def last_words(
    session: Session, pairs: Sequence[tuple[int, int]], judge: str | None = None
) -> dict[tuple[int, int], Verdict]:
    """The last word on each of these (query id, passage id); pairs without one are left out."""
    wanted = set(pairs)
    queries = sorted({query for query, _ in wanted})
    found: dict[tuple[int, int], Verdict] = {}
    for start in range(0, len(queries), _LOOKUP):
        # By query alone: a list of pairs takes the database several times as long.
        some = _select(judge).where(Judgement.query_id.in_(queries[start : start + _LOOKUP]))
        found.update(_newest(session, some, wanted))
    return found


def _last_words(session: Session, pairs: Select[int, int], judge: str | None) -> dict[tuple[int, int], Verdict]:
    of = pairs.distinct().subquery()
    rows = _select(judge).join(of, (of.c.query_id == Judgement.query_id) & (of.c.passage_id == Judgement.passage_id))
    return _newest(session, rows, None)


def _select(judge: str | None) -> Select[*tuple[Any, ...]]:
    """Judgements so that the last word on a pair comes last."""
    statement = (
        select(
            Judgement.query_id,
            Judgement.passage_id,
            Judgement.relevance,
            Judgement.stage,
            Judge.model,
            Judgement.evidence,
            Judgement.reason,
        )
        .select_from(Judgement)
        .join(Judge, Judge.id == Judgement.judge_id)
        .order_by(Judgement.stage == "confirm", Judgement.id)
    )
    return statement if judge is None else statement.where(Judge.model == judge)


def _newest(
    session: Session, statement: Select[*tuple[Any, ...]], wanted: set[tuple[int, int]] | None
) -> dict[tuple[int, int], Verdict]:
    return {
        (query, passage): Verdict(*verdict)
        for query, passage, *verdict in session.execute(statement)
        if wanted is None or (query, passage) in wanted
    }


def _rows(session: Session, pairs: Sequence[tuple[int, int]], judge: str | None) -> list[dict[str, Any]]:
    """What a person looks at: the texts, cut, and the judge's word."""
    shown = []
    words = last_words(session, pairs, judge)
    for query_id, passage_id in pairs:
        query, passage = session.get_one(Query, query_id), session.get_one(Passage, passage_id)
        texts = {"query": query.text[:_SHOWN], "passage": passage.text[:_SHOWN], "passage_digest": passage.digest}
        shown.append({**texts, **asdict(words[query_id, passage_id])})
    return shown
