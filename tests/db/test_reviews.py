"""Review sessions in the store: constraints, frozen events, and what `store merge` and `store check` make of them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.exc import DatabaseError, IntegrityError

from db.backup import backup
from db.check import check_store
from db.errors import MergeConflictError
from db.merge import merge
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.ledger import Run
from db.tables.review import (
    CURRENT_DECISION_CHECK,
    Assignment,
    CurrentDecision,
    Decision,
    ItemCandidate,
    Reviewer,
    ReviewItem,
    ReviewSession,
    Rubric,
    SessionReviewer,
)
from db.tables.schema import METADATA
from db.texts import put_passages, put_queries

T0 = datetime(2026, 1, 2, tzinfo=UTC)


def quiet(done: int, total: int | None) -> None: ...


def fill(store: Store, *, uid: str = "u1", name: str = "s", offset: int = 0, rubric: str = "text") -> None:
    """A session of two items with two slots each, over keys that begin elsewhere in every store."""
    with store.write() as session:
        run = start_run(session, "import", "t", {"a": 1}, 2**40)
        put_passages(session, [f"other {uid} {n}" for n in range(offset)])
        people = {who: session.scalars(select(Reviewer).where(Reviewer.name == who)).one_or_none() for who in "ab"}
        for who, known in people.items():
            people[who] = known or Reviewer(name=who, pseudonym=f"{who}{uid}", role="admin")
        text = Rubric(name="default", version=1, digest=rubric, text=rubric)
        session.add_all([*people.values(), text])
        session.flush()
        made = ReviewSession(
            uid=uid, name=name, definition={}, facts={"items": {"regular": 2}}, rubric_id=text.id, overlap=2,
            num_slots=4, is_blind=False, is_by_invitation=False, lease_s=60, seed=2**40, created_by=people["a"].id,
        )  # fmt: skip
        session.add(made)
        session.flush()
        for who in "ab":
            session.add(SessionReviewer(session_id=made.id, reviewer_id=people[who].id))
        for number in range(2):
            (query,) = put_queries(session, [f"q{number}"])
            positive, negative = put_passages(session, [f"p{number}", f"n{number}"])
            example = session.scalars(select(Example).where(Example.query_id == query)).one_or_none()
            if example is None:
                example = Example(digest=f"e{number}", query_id=query, positive_id=positive, origin="corpus")
                session.add(example)
                session.flush()
                for passage, role in ((positive, "positive"), (negative, "negative")):
                    session.add(Candidate(example_id=example.id, passage_id=passage, role=role, origin="mined",
                                          run_id=run.id))  # fmt: skip
                session.flush()
            candidate = session.scalars(
                select(Candidate.id).where(Candidate.example_id == example.id, Candidate.role == "negative")
            ).one()
            item = ReviewItem(session_id=made.id, position=number, example_id=example.id, kind="regular")
            session.add(item)
            session.flush()
            session.add(ItemCandidate(item_id=item.id, candidate_id=candidate))
            for slot in (1, 2):
                session.add(Assignment(session_id=made.id, item_id=item.id, position=number, slot=slot))


def decide(store: Store, who: str, position: int, kind: str, *, slot: int = 1, at: int = 0, uid: str = "") -> None:
    """A finished turn with its event, as the review writes it."""
    with store.write() as session:
        person = session.scalars(select(Reviewer).where(Reviewer.name == who)).one()
        turn = session.scalars(select(Assignment).where(Assignment.position == position, Assignment.slot == slot)).one()
        candidate = session.scalars(
            select(ItemCandidate.candidate_id).where(ItemCandidate.item_id == turn.item_id)
        ).one()
        now = T0 + timedelta(minutes=at)
        turn.reviewer_id, turn.opened_at, turn.leased_until = person.id, now, now
        turn.outcome, turn.finished_at = "decided", now
        rubric = session.scalars(select(Rubric.id).limit(1)).one()
        one = Decision(uid=uid or f"{who}{position}{kind}{at}", item_id=turn.item_id, assignment_id=turn.id,
                       reviewer_id=person.id, candidate_id=candidate, kind=kind, rubric_id=rubric, shown_at=now,
                       decided_at=now, grade="easy" if kind == "regrade" else None)  # fmt: skip
        session.add(one)
        session.flush()
        about = {"item_id": turn.item_id, "reviewer_id": person.id, "candidate_id": candidate, "kind": kind}
        session.add(CurrentDecision(decision_id=one.id, session_id=turn.session_id, aspect="verdict", **about))
        seat = session.get_one(SessionReviewer, (turn.session_id, person.id))
        seat.num_finished += 1


def take_back(store: Store, uid: str, *, by: str = "undo") -> None:
    with store.write() as session:
        one = session.scalars(select(Decision).where(Decision.uid == uid)).one()
        session.add(Decision(uid=by, item_id=one.item_id, assignment_id=one.assignment_id, reviewer_id=one.reviewer_id,
                             kind="undo", rubric_id=one.rubric_id, decided_at=T0, undoes_id=one.id))  # fmt: skip
        session.execute(sa.delete(CurrentDecision).where(CurrentDecision.decision_id == one.id))
        turn = session.get_one(Assignment, one.assignment_id)
        turn.outcome = turn.finished_at = None
        session.get_one(SessionReviewer, (turn.session_id, one.reviewer_id)).num_finished -= 1


def standing(store: Store) -> set[tuple[str, int, str]]:
    """(Person, position, decision) by names, which do not depend on keys."""
    with store.read() as session:
        rows = session.execute(
            select(Reviewer.name, ReviewItem.position, CurrentDecision.kind)
            .select_from(CurrentDecision)
            .join(Reviewer, Reviewer.id == CurrentDecision.reviewer_id)
            .join(ReviewItem, ReviewItem.id == CurrentDecision.item_id)
        )
        return {tuple(row) for row in rows}  # type: ignore[misc]


def turns(store: Store) -> list[tuple[int, int, str | None, str | None]]:
    with store.read() as session:
        rows = session.execute(
            select(Assignment.position, Assignment.slot, Reviewer.name, Assignment.outcome)
            .outerjoin(Reviewer, Reviewer.id == Assignment.reviewer_id)
            .order_by(Assignment.position, Assignment.slot)
        )
        return [tuple(row) for row in rows]  # type: ignore[misc]


def counts(store: Store) -> dict[str, int]:
    with store.read() as session:
        return {name: session.scalar(select(func.count()).select_from(t)) or 0 for name, t in METADATA.tables.items()}


@pytest.fixture
def other(tmp_path: Path) -> Any:
    opened = Store.open(f"sqlite:///{tmp_path}/other.db")
    yield opened
    opened.close()


def test_a_seed_of_64_bits_fits_on_both_databases(store: Store) -> None:
    for seed in (2**63 - 1, -(2**63)):
        with store.write() as session:
            start_run(session, "generate", "r", {"seed": seed}, seed)
    with store.read() as session:
        assert sorted(session.scalars(select(Run.seed))) == [-(2**63), 2**63 - 1]


@pytest.mark.parametrize("statement", ["update {} set {} = {}", "delete from {}"])
@pytest.mark.parametrize(
    ("table", "column"),
    [("rubric", "text"), ("review_item", "kind"), ("item_candidate", "stratum"), ("decision", "kind")],
)
def test_events_items_and_rubrics_are_frozen(store: Store, statement: str, table: str, column: str) -> None:
    fill(store)
    decide(store, "a", 0, "keep")
    with pytest.raises(DatabaseError, match="a change is a new row"), store.write() as session:
        session.execute(sa.text(statement.format(table, column, "'x'")))


def again(session: Any, **changed: Any) -> None:
    one = session.scalars(select(Decision)).one()
    names = [column.name for column in Decision.__table__.columns if column.name != "id"]
    session.add(Decision(**{name: getattr(one, name) for name in names} | {"uid": "new"} | changed))
    session.flush()


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "like"},
        {"kind": "skip"},
        {"candidate_id": None},
        {"kind": "undo", "candidate_id": None},
        {"kind": "settle"},
        {"verdict": "like", "kind": "settle"},
        {"kind": "regrade"},
        {"kind": "settle", "verdict": "regrade"},
        {"kind": "swap"},
        {"shown_at": None},
        {"uid": "a0keep0"},
    ],
)
def test_decision_constraints_refuse(store: Store, changed: dict[str, Any]) -> None:
    fill(store)
    decide(store, "a", 0, "keep")
    with pytest.raises(IntegrityError), store.write() as session:
        again(session, **changed)


def test_nothing_is_undone_twice_or_current_twice(store: Store) -> None:
    fill(store)
    decide(store, "a", 0, "keep", uid="k")
    with pytest.raises(IntegrityError):
        decide(store, "a", 0, "drop")
    take_back(store, "k")
    with pytest.raises(IntegrityError):
        take_back(store, "k", by="again")
    with store.read() as session:
        assert session.execute(select(CURRENT_DECISION_CHECK)).all() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda turn, person: setattr(turn, "reviewer_id", person) or setattr(turn, "outcome", "decided"),
        lambda turn, person: setattr(turn, "leased_until", T0),
        lambda turn, person: setattr(turn, "slot", 2),
        lambda turn, person: setattr(turn, "slot", 0),
    ],
)
def test_turn_constraints_refuse(store: Store, change: Callable[[Any, int], None]) -> None:
    fill(store)
    with pytest.raises(IntegrityError), store.write() as session:
        turn = session.scalars(select(Assignment).where(Assignment.position == 0, Assignment.slot == 1)).one()
        change(turn, session.scalars(select(Reviewer.id).limit(1)).one())


def test_nobody_has_two_turns_at_an_item(store: Store) -> None:
    fill(store)
    with pytest.raises(IntegrityError), store.write() as session:
        person = session.scalars(select(Reviewer.id).limit(1)).one()
        session.execute(sa.update(Assignment).where(Assignment.position == 0).values(reviewer_id=person))


def test_a_whole_session_moves_to_another_store_and_twice_changes_nothing(store: Store, other: Store) -> None:
    fill(store, offset=3, uid="mine", name="mine", rubric="mine")
    fill(other, offset=7, uid="theirs", name="theirs", rubric="theirs")
    decide(other, "a", 0, "keep", uid="k1")
    decide(other, "b", 1, "drop", uid="k2")
    take_back(other, "k2")
    decide(other, "b", 1, "regrade", uid="k3")
    merge(store, other, progress=quiet)
    assert standing(store) == {("a", 0, "keep"), ("b", 1, "regrade")}
    with store.read() as session:
        rubrics = session.execute(select(Rubric.digest, Rubric.version).order_by(Rubric.version)).all()
        undone = session.scalar(select(Decision.undoes_id).where(Decision.kind == "undo"))
        assert session.get_one(Decision, undone).uid == "k2"
    assert [tuple(row) for row in rubrics] == [("mine", 1), ("theirs", 2)]
    assert check_store(store, progress=quiet) == []
    once = counts(store)
    merge(store, other, progress=quiet)
    assert counts(store) == once and check_store(store, progress=quiet) == []


def test_people_who_went_on_in_a_copy_lose_nothing(store: Store, tmp_path: Path) -> None:
    fill(store)
    decide(store, "a", 0, "keep", at=1, uid="first")
    copy = Store.open(f"sqlite:///{backup(store, tmp_path / 'copy.db', progress=quiet)}")
    assert standing(copy) == standing(store) and check_store(copy, progress=quiet) == []
    # Here b takes slot 1 of the second item; in the copy a takes the same slot, and b decides the first item.
    decide(store, "b", 1, "drop", at=2)
    decide(copy, "a", 1, "keep", at=3)
    decide(copy, "b", 0, "false_negative", slot=2, at=4)
    take_back(copy, "first")
    merge(store, copy, progress=quiet)
    assert standing(store) == {("b", 1, "drop"), ("a", 1, "keep"), ("b", 0, "false_negative")}
    assert [turn[:3] for turn in turns(store)] == [(0, 1, "a"), (0, 2, "b"), (1, 1, "b"), (1, 2, "a")]
    once = counts(store)
    merge(store, copy, progress=quiet)
    assert counts(store) == once
    copy.close()


def test_a_third_person_gets_a_further_slot(store: Store, tmp_path: Path) -> None:
    fill(store)
    copy = Store.open(f"sqlite:///{backup(store, tmp_path / 'copy.db', progress=quiet)}")
    with copy.write() as session:
        session.add(Reviewer(name="c", pseudonym="cc", role="reviewer"))
        session.flush()
        person = session.scalars(select(Reviewer.id).where(Reviewer.name == "c")).one()
        session.add(SessionReviewer(session_id=1, reviewer_id=person))
    decide(store, "a", 0, "keep", at=1)
    decide(store, "b", 0, "drop", slot=2, at=2)
    decide(copy, "c", 0, "keep", at=3)
    merge(store, copy, progress=quiet)
    assert standing(store) == {("a", 0, "keep"), ("b", 0, "drop"), ("c", 0, "keep")}
    assert [turn for turn in turns(store) if turn[0] == 0] == [
        (0, 1, "a", "decided"), (0, 2, "b", "decided"), (0, 3, "c", "decided"),
    ]  # fmt: skip
    with store.read() as session:
        assert session.scalars(select(ReviewSession.num_slots)).one() == 5
    assert check_store(store, progress=quiet) == []
    copy.close()


def test_of_two_decisions_of_one_person_the_later_stands_and_both_are_kept(store: Store, tmp_path: Path) -> None:
    fill(store)
    copy = Store.open(f"sqlite:///{backup(store, tmp_path / 'copy.db', progress=quiet)}")
    decide(store, "a", 0, "keep", at=5, uid="later")
    decide(copy, "a", 0, "drop", at=1, uid="earlier")
    merge(store, copy, progress=quiet)
    merge(copy, store, progress=quiet)
    for one in (store, copy):
        assert standing(one) == {("a", 0, "keep")}
        with one.read() as session:
            assert sorted(session.scalars(select(Decision.uid)))[-1] == "later"
            undone = select(Decision.undoes_id).where(Decision.kind == "undo").scalar_subquery()
            assert session.scalar(select(Decision.uid).where(Decision.id == undone)) == "earlier"
        assert check_store(one, progress=quiet) == []
    copy.close()


def test_both_stores_may_undo_the_same_decision(store: Store, tmp_path: Path) -> None:
    fill(store)
    decide(store, "a", 0, "keep", uid="k")
    copy = Store.open(f"sqlite:///{backup(store, tmp_path / 'copy.db', progress=quiet)}")
    take_back(store, "k", by="here")
    take_back(copy, "k", by="there")
    merge(store, copy, progress=quiet)
    assert standing(store) == set()
    with store.read() as session:
        assert sorted(session.scalars(select(Decision.uid))) == ["here", "k"]
    copy.close()


def test_another_session_of_the_same_name_stops_the_merge(store: Store, other: Store) -> None:
    fill(store, uid="mine")
    fill(other, uid="theirs")
    before = counts(store)
    with pytest.raises(MergeConflictError, match="'s' is another one"):
        merge(store, other, progress=quiet)
    assert counts(store) == before


def test_a_closed_session_closes_the_other_s(store: Store, tmp_path: Path) -> None:
    fill(store)
    copy = Store.open(f"sqlite:///{backup(store, tmp_path / 'copy.db', progress=quiet)}")
    with copy.write() as session:
        session.execute(sa.update(ReviewSession).values(state="closed", closed_at=T0))
    merge(store, copy, progress=quiet)
    with store.read() as session:
        assert session.scalars(select(ReviewSession.state)).one() == "closed"
    copy.close()


def test_check_names_what_events_do_not_say(store: Store) -> None:
    fill(store)
    decide(store, "a", 0, "keep")
    decide(store, "b", 1, "drop")
    assert check_store(store, progress=quiet) == []
    with store.write() as session:
        session.execute(sa.delete(CurrentDecision).where(CurrentDecision.kind == "keep"))
        session.execute(sa.update(CurrentDecision).values(kind="regrade"))
        session.execute(sa.update(SessionReviewer).values(num_finished=7))
    found = {finding.promise: finding.num_rows for finding in check_store(store, progress=quiet)}
    assert found == {
        "the current decisions are what the events say": 3,
        "a finished turn was decided by its person": 1,
        "a person's finished turns are counted": 2,
    }
