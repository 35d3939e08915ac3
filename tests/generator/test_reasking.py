"""One more draw of a prompt: it waits in the ledger, is asked once by the next call, and what was stays as it is."""

from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import AppError
from app.reasking import ask_again
from app.viewing.run_view import list_runs, rejection_reasons, request_page, request_view
from curation.errors import CurationError
from curation.reviewing.people import has_people, put_reviewer, reviewer_of
from db.store import Store
from db.tables.examples import Candidate
from db.tables.ledger import Completion, Run, RunRequest
from db.tables.review import Reviewer
from generator.generation import generate
from generator.plan import ROUND


def admin(session: Session) -> Reviewer:
    return reviewer_of(session, "ann") if has_people(session) else put_reviewer(session, "ann", "admin")


def generated(store: Store, model_server: Any, toolbox: Any, **more: Any) -> Any:
    toolbox.fill(store, 3)
    recipe = toolbox.recipe_for(model_server, num=3, **more)
    generate(store, recipe)
    return recipe


def test_another_draw_is_asked_once_and_adds_to_the_same_example(store: Store, model_server: Any, toolbox: Any) -> None:
    recipe = generated(store, model_server, toolbox)
    with store.read() as session:
        (run,) = list_runs(session)
        first = request_page(session, run.id, limit=1)[0]
        before = request_view(session, run.id, first.id)
    num_asked = sum(model_server.came.values())
    with store.write() as session:
        again = ask_again(session, run.id, first.id, admin(session))
    assert again.sample_index == 1 and again.custom_id == f"{first.custom_id}~1"
    with store.read() as session:
        waiting = request_view(session, run.id, again.request_id)
        assert waiting is not None and (waiting.state, waiting.outcome) == ("pending", None)
        assert waiting.plan_index == first.plan_index + ROUND
        assert session.get_one(Run, run.id).state == "running"
    with store.write() as session, pytest.raises(AppError, match="waits to be asked already"):
        ask_again(session, run.id, first.id, admin(session))
    assert sum(model_server.came.values()) == num_asked

    generate(store, recipe)
    assert sum(model_server.came.values()) == num_asked + 1
    with store.read() as session:
        assert session.get_one(Run, run.id).state == "finished"
        assert request_view(session, run.id, first.id) == before
        link = session.scalars(select(RunRequest).where(RunRequest.request_id == again.request_id)).one()
        same = session.scalars(select(RunRequest).where(RunRequest.request_id == first.id)).one()
        assert link.outcome is not None and (link.example_id or same.example_id) == same.example_id
    with store.write() as session:
        assert ask_again(session, run.id, first.id, admin(session)).custom_id == f"{first.custom_id}~2"


def test_what_cannot_be_asked_again_is_refused(store: Store, model_server: Any, toolbox: Any) -> None:
    generated(store, model_server, toolbox)
    with store.write() as session:
        with pytest.raises(AppError, match="wants no request 999"):
            ask_again(session, 1, 999, admin(session))
        link = session.scalars(select(RunRequest).order_by(RunRequest.id)).first()
        assert link is not None
        link.outcome = None
        session.flush()
        with pytest.raises(AppError, match="asks it anyway"):
            ask_again(session, link.run_id, link.request_id, admin(session))
        run = session.get_one(Run, link.run_id)
        link.outcome, run.kind = "accepted", "judge"
        session.flush()
        with pytest.raises(AppError, match="kind 'judge'"):
            ask_again(session, link.run_id, link.request_id, admin(session))


def test_a_completion_stands_beside_what_was_read_from_it(store: Store, model_server: Any, toolbox: Any) -> None:
    def script(body: dict[str, Any], turn: int) -> Any:
        query = toolbox.between(toolbox.prompt_of(body), "query")
        return toolbox.Reply("no JSON" if query.endswith("1!") else toolbox.negatives_for(body))

    model_server.script = script
    generated(store, model_server, toolbox, max_rejected=1)
    with store.read() as session:
        (run,) = list_runs(session)
        rows = request_page(session, run.id)
        assert [row.plan_index for row in rows] == sorted(row.plan_index for row in rows)
        assert all(row.tokens == 15 for row in rows)
        rest = request_page(session, run.id, after=rows[0].plan_index)
        assert [row.id for row in rest] == [row.id for row in rows[1:]]
        parsed = 0
        for row in rows:
            view = request_view(session, run.id, row.id)
            assert view is not None and view.messages[0][0] == "user" and len(view.attempts) == 1
            negatives = [one for one in view.parsed if one.role == "negative"]
            assert len(negatives) == row.num_accepted
            assert all(one.text in "".join(attempt.text or "" for attempt in view.attempts) for one in negatives)
            assert bool(view.rejections) == (row.outcome != "accepted")
            parsed += len(negatives)
        assert parsed == session.scalar(select(func.count()).where(Candidate.role == "negative"))
        refused = [row for row in rows if row.outcome == "rejected"]
        assert request_page(session, run.id, outcome="rejected") == refused
        assert request_page(session, run.id, outcome="open") == []
        views = [request_view(session, run.id, row.id) for row in rows]
        num_refused = sum(len(view.rejections) for view in views if view)
        assert sum(num for _, num, _, _ in rejection_reasons(session, run.id)) == num_refused > 0
        assert request_view(session, run.id, 10**9) is None
        assert session.scalar(select(func.count()).select_from(Completion)) == len(rows)


def test_only_an_admin_has_a_request_asked_again(store: Store, model_server: Any, toolbox: Any) -> None:
    generated(store, model_server, toolbox)
    with store.write() as session:
        link = session.scalars(select(RunRequest).order_by(RunRequest.id)).first()
        assert link is not None
        reader = put_reviewer(session, "rea", "reviewer", by=admin(session))
        with pytest.raises(CurationError, match="needs the role 'admin'"):
            ask_again(session, link.run_id, link.request_id, reader)
        assert session.scalar(select(func.count()).select_from(RunRequest)) == 3
