"""Is a store sound? Every promise that the schema cannot make by itself is recomputed from the rows."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from db.digest import digest_text
from db.files import digest_file
from db.quotes import stands_in
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.judgements import Judgement
from db.tables.ledger import Completion, CompletionBody, Request, RequestBody
from db.tables.releases import Release, ReleaseItem
from db.tables.review import CURRENT_DECISION_CHECK, Assignment, CurrentDecision, SessionReviewer
from db.tables.texts import Passage, Query
from db.tables.training import Training, TrainingStep

_PAGE = 2_000
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise: which, how many rows break it, and some of them."""

    promise: str
    num_rows: int
    rows: tuple[str, ...]


def check_store(store: Store, *, progress: Callable[[int, int | None], None]) -> list[Finding]:
    """Every promise that does not hold; an empty list means that the store is sound."""
    checks: list[tuple[str, Callable[[Session], Iterator[str]]]] = [
        ("the database file is intact", _file_faults),
        ("a passage's digest is its text's", lambda session: _wrong_digests(session, Passage)),
        ("a query's digest is its text's", lambda session: _wrong_digests(session, Query)),
        ("a request's body can be read", _unreadable_requests),
        ("a completion's text can be read", _unreadable_completions),
        ("a request that is done has a completion", _done_without_completion),
        ("an example's positive is its one positive candidate", _examples_without_positive),
        ("a judgement's evidence stands in its passage", _unfounded_judgements),
        ("the current decisions are what the events say", _differing_decisions),
        ("a finished turn was decided by its person", _undecided_turns),
        ("a person's finished turns are counted", _miscounted_turns),
        ("a release holds the items its manifest counts", _miscounted_releases),
        ("a training has the steps it counts", _miscounted_trainings),
        ("a release's files are the bytes its manifest names", _changed_files),
    ]
    findings = []
    with store.read() as session:
        for done, (promise, broken) in enumerate(checks):
            progress(done, len(checks))
            rows, count = [], 0
            for row in broken(session):
                count += 1
                if count <= _MAX_NAMED:
                    rows.append(row)
            if count:
                findings.append(Finding(promise, count, tuple(rows)))
    progress(len(checks), len(checks))
    return findings


def _file_faults(session: Session) -> Iterator[str]:
    if session.get_bind().dialect.name != "sqlite":
        return
    for (message,) in session.connection().exec_driver_sql("pragma integrity_check"):
        if message != "ok":
            yield message
    for table, row, parent, _ in session.connection().exec_driver_sql("pragma foreign_key_check"):
        yield f"{table} row {row} refers to a {parent} that is not there"


def _wrong_digests(session: Session, table: type[Passage] | type[Query]) -> Iterator[str]:
    rows = session.execute(select(table.id, table.digest, table.text), execution_options={"yield_per": _PAGE})
    for key, digest, text in rows:
        if digest_text(text) != digest:
            yield f"{table.__tablename__} {key}"


def _unreadable_requests(session: Session) -> Iterator[str]:
    rows = session.execute(
        select(Request.digest, RequestBody.body).outerjoin(RequestBody, RequestBody.request_id == Request.id),
        execution_options={"yield_per": _PAGE},
    )
    for digest, body in rows:
        if not _is_readable(body):
            yield f"request {digest[:12]}"


def _unreadable_completions(session: Session) -> Iterator[str]:
    rows = session.execute(
        select(Completion.id, Completion.error, CompletionBody.body).outerjoin(
            CompletionBody, CompletionBody.completion_id == Completion.id
        ),
        execution_options={"yield_per": _PAGE},
    )
    for key, error, body in rows:
        if error is None and not _is_readable(body):
            yield f"completion {key}"


def _is_readable(body: bytes | None) -> bool:
    try:
        return body is not None and bool(zlib.decompress(body).decode())
    except (zlib.error, UnicodeDecodeError):
        return False


def _done_without_completion(session: Session) -> Iterator[str]:
    answered = exists().where(Completion.request_id == Request.id, Completion.error.is_(None))
    for digest in session.scalars(select(Request.digest).where(Request.state == "done", ~answered)):
        yield f"request {digest[:12]}"


def _examples_without_positive(session: Session) -> Iterator[str]:
    is_positive = (Candidate.example_id == Example.id) & (Candidate.role == "positive")
    matching = func.count().filter(Candidate.passage_id == Example.positive_id)
    query = (
        select(Example.id)
        .outerjoin(Candidate, is_positive)
        .group_by(Example.id)
        .having((func.count(Candidate.id) != 1) | (matching != 1))
    )
    for key in session.scalars(query, execution_options={"yield_per": _PAGE}):
        yield f"example {key}"


def _unfounded_judgements(session: Session) -> Iterator[str]:
    rows = session.execute(
        select(Judgement.id, Judgement.evidence, Passage.text).join(Passage, Passage.id == Judgement.passage_id),
        execution_options={"yield_per": _PAGE},
    )
    for key, evidence, text in rows:
        if evidence and not stands_in(evidence, text):
            yield f"judgement {key}"


def _differing_decisions(session: Session) -> Iterator[str]:
    names = [column.name for column in CurrentDecision.__table__.columns]
    kept = select(*(CurrentDecision.__table__.c[name] for name in names))
    recomputed = select(*(CURRENT_DECISION_CHECK.c[name] for name in names))
    for one in session.execute(kept.except_(recomputed)):
        yield f"decision {one.decision_id} is current and should not be"
    for one in session.execute(recomputed.except_(kept)):
        yield f"decision {one.decision_id} should be current"


def _undecided_turns(session: Session) -> Iterator[str]:
    decided = exists().where(
        CurrentDecision.item_id == Assignment.item_id, CurrentDecision.reviewer_id == Assignment.reviewer_id
    )
    for key in session.scalars(select(Assignment.id).where(Assignment.outcome.is_not(None), ~decided)):
        yield f"assignment {key}"


def _miscounted_turns(session: Session) -> Iterator[str]:
    of_person = (Assignment.session_id == SessionReviewer.session_id) & (
        Assignment.reviewer_id == SessionReviewer.reviewer_id
    )
    num = select(func.count()).where(of_person, Assignment.outcome.is_not(None)).scalar_subquery()
    seats = select(SessionReviewer.session_id, SessionReviewer.reviewer_id, SessionReviewer.num_finished, num)
    for session_id, reviewer, counted, finished in session.execute(seats.where(SessionReviewer.num_finished != num)):
        yield f"session {session_id}, reviewer {reviewer}: {counted} counted, {finished} finished"


def _miscounted_releases(session: Session) -> Iterator[str]:
    for release in session.scalars(select(Release)):
        stored = session.scalar(select(func.count()).where(ReleaseItem.release_id == release.id))
        expected = release.manifest.get("num_items")
        if stored != expected:
            yield f"release {release.name}: {stored} items, the manifest says {expected}"


def _miscounted_trainings(session: Session) -> Iterator[str]:
    num = func.count(TrainingStep.step)
    counted = select(Training.name, Training.digest, Training.num_steps, num).outerjoin(TrainingStep)
    for name, digest, told, found in session.execute(counted.group_by(Training.id).having(num != Training.num_steps)):
        yield f"training {name} ({digest[:8]}): {found} steps, it says {told}"


def _changed_files(session: Session) -> Iterator[str]:
    for release in session.scalars(select(Release)):
        folder = Path(release.path)
        for name, meaning in release.manifest.get("files", {}).items():
            file = folder / name
            if not file.is_file():
                yield f"release {release.name}: {file} is missing"
            elif digest_file(file) != meaning["sha256"]:
                yield f"release {release.name}: {file} was changed"
