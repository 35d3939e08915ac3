"""Merging, backing up and checking stores."""

import sqlite3
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import func, select

from db.backup import backup
from db.check import check_store
from db.digest import digest_text
from db.errors import MergeConflictError, StoreError
from db.insert import insert_missing
from db.merge import merge
from db.runs import finish_run, start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Sourcing, Teacher
from db.tables.ledger import Completion, CompletionBody, Request, RequestBody, Run, RunRequest
from db.tables.releases import Release
from db.tables.schema import METADATA
from db.tables.texts import Passage
from db.tables.training import Training
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from db.trainings import NewTraining, put_training, training_names, training_steps

T0 = datetime(2026, 1, 2, tzinfo=UTC)


def quiet(done: int, total: int | None) -> None: ...


def fill(store: Store, queries: list[str], *, received_at: datetime = T0, answered: bool = True) -> None:
    """One run that asked one request per query; each has a positive and two negatives, one of them shared by all."""
    with store.write() as session:
        run = start_run(session, "generate", "r", {"recipe": 1}, 7)
        teacher = put_teacher(session, name="t", version="1", kind="bi-encoder")
        for query in queries:
            (query_id,) = put_queries(session, [query])
            positive, own, shared = put_passages(session, [f"p {query}", f"n {query}", "shared"])
            example = Example(digest=digest_text(query), query_id=query_id, positive_id=positive, origin="corpus")
            request = Request(digest=digest_text(f"r {query}"), model="m", state="done" if answered else "pending")
            session.add_all([example, request])
            session.flush()
            session.add(RequestBody(request_id=request.id, body=zlib.compress(b"{}")))
            session.add(
                RunRequest(
                    run_id=run.id, request_id=request.id, plan_index=int(digest_text(query)[:6], 16), custom_id=query,
                    kind="k", attributes={}, source={}, outcome="accepted" if answered else None, num_accepted=2,
                )
            )  # fmt: skip
            if answered:
                completion = Completion(request_id=request.id, attempt=1, engine="e", received_at=received_at)
                session.add(completion)
                session.flush()
                session.add(CompletionBody(completion_id=completion.id, body=zlib.compress(query.encode())))
            for rank, (passage, role) in enumerate([(positive, "positive"), (own, "negative"), (shared, "negative")]):
                candidate = Candidate(
                    example_id=example.id, passage_id=passage, role=role, run_id=run.id, origin="synthetic",
                    rank=rank or None, grade=[None, "hard", "medium"][rank],
                )  # fmt: skip
                session.add(candidate)
                session.flush()
                session.add(Sourcing(candidate_id=candidate.id, run_id=run.id, request_id=request.id))
                session.add(Score(teacher_id=teacher, query_id=query_id, passage_id=passage, value=0.5))
        if answered:
            finish_run(session, run, {"n": len(queries)})


def counts(store: Store) -> dict[str, int]:
    with store.read() as session:
        return {name: session.scalar(select(func.count()).select_from(t)) or 0 for name, t in METADATA.tables.items()}


def graph(store: Store) -> set[tuple[str, str, str, int | None]]:
    """(query, passage, role, rank) by text, which does not depend on keys."""
    statement = sa.text(
        "select q.text, p.text, c.role, c.rank from candidate c join example e on e.id = c.example_id "
        "join query q on q.id = e.query_id join passage p on p.id = c.passage_id"
    )
    with store.read() as session:
        return {tuple(row) for row in session.execute(statement)}  # type: ignore[misc]


@pytest.fixture
def other(tmp_path: Path):
    opened = Store.open(f"sqlite:///{tmp_path}/other.db")
    yield opened
    opened.close()


def test_merge_unites_overlapping_stores_and_twice_changes_nothing(store: Store, other: Store) -> None:
    fill(store, ["a", "b"])
    fill(other, ["c", "b", "d"])
    expected = graph(store) | graph(other)
    report = merge(store, other, progress=quiet)
    assert graph(store) == expected
    assert report.added["example"] == 2 and report.added["sourcing"] == 6 and report.added["run"] == 0
    once = counts(store)
    merge(store, other, progress=quiet)
    assert counts(store) == once
    assert check_store(store, progress=quiet) == []


def test_both_answers_to_one_request_are_kept_once(store: Store, other: Store) -> None:
    fill(store, ["a"])
    fill(other, ["a"], received_at=T0 + timedelta(hours=1))
    for _ in range(2):
        merge(store, other, progress=quiet)
        with store.read() as session:
            assert sorted(session.scalars(select(Completion.attempt))) == [1, 2]
            assert session.scalar(select(func.count()).select_from(CompletionBody)) == 2


def test_finished_work_of_the_other_store_wins(store: Store, other: Store) -> None:
    fill(store, ["a"], answered=False)
    fill(other, ["a"])
    merge(store, other, progress=quiet)
    with store.read() as session:
        assert session.scalars(select(Request.state)).all() == ["done"]
        assert session.scalars(select(RunRequest.outcome)).all() == ["accepted"]
        assert session.scalars(select(Run.state)).all() == ["finished"]


def test_conflicting_release_names_stop_the_merge_before_anything_is_written(store: Store, other: Store) -> None:
    fill(other, ["new"])
    for each, digest in ((store, "1"), (other, "2")):
        with each.write() as session:
            session.add(Release(name="v1", digest=digest, recipe={}, manifest={}, path="x"))
    before = counts(store)
    with pytest.raises(MergeConflictError, match="'v1'"):
        merge(store, other, progress=quiet)
    assert counts(store) == before


def test_merge_brings_trainings_with_their_steps_once(store: Store, other: Store) -> None:
    fill(other, ["a"])
    figures = dict.fromkeys(("loss", "similarity", "margin", "above_positive", "gradient", "gradient_variance"), 0.5)
    names = ("loss", "learning_rate", "gradient_norm", "query_gradient_variance", "positive", "written", "mined")
    for each, machines in ((store, "xy"), (other, "yzw")):
        for machine in machines:
            steps = [
                {"step": n, "block": 1, "rank": 4, "masked": None, **dict.fromkeys(names, n / 7),
                 "ranks": {"4": {"negatives": ord(machine), **figures}, "mined": {"negatives": 2, **figures}}}
                for n in range(ord(machine) - ord("v"))
            ]  # fmt: skip
            recipe = {"name": "toy", "model": "minilm"}
            summary = {"recipe": recipe, "release": "r-1.0.0", "release_digest": "d", "machine": machine}
            with each.write() as session:
                training, _ = put_training(session, NewTraining(summary, machine, T0, None, steps))
                training.teacher_id = put_teacher(session, name="t", version=machine, kind="margin")
    with other.read() as session:
        expected = {one.digest: training_steps(session, one.id) for one in training_names(session)}
    for _ in range(2):
        merge(store, other, progress=quiet)
        with store.read() as session:
            found = {one.digest: training_steps(session, one.id) for one in training_names(session)}
            named = select(Training.machine, Teacher.version).join(Teacher, Training.teacher_id == Teacher.id)
            assert sorted(tuple(row) for row in session.execute(named)) == [(machine, machine) for machine in "wxyz"]
        assert len(found) == 4 and expected.items() <= found.items()
    assert check_store(store, progress=quiet) == []


def test_merge_translates_a_release_parent(store: Store, other: Store) -> None:
    with store.write() as session:
        session.add(Release(name="mine", digest="0", recipe={}, manifest={}, path="x"))
    with other.write() as session:
        first = Release(name="v1", digest="1", recipe={}, manifest={}, path="x")
        session.add(first)
        session.flush()
        session.add(Release(name="v2", digest="2", recipe={}, manifest={}, path="x", parent_id=first.id))
    merge(store, other, progress=quiet)
    with store.read() as session:
        parent = {r.name: r.parent_id for r in session.scalars(select(Release))}
        key = session.scalar(select(Release.id).where(Release.name == "v1"))
    assert parent["v2"] == key


def test_backup_is_the_same_store_and_never_overwrites(store: Store, tmp_path: Path) -> None:
    fill(store, ["a", "b"])
    target = backup(store, tmp_path / "deep" / "copy.db", progress=quiet)
    copy = Store.open(f"sqlite:///{target}")
    assert graph(copy) == graph(store) and counts(copy) == counts(store)
    assert check_store(copy, progress=quiet) == []
    copy.close()
    with pytest.raises(StoreError, match="never overwrites"):
        backup(store, target, progress=quiet)


def test_check_names_what_is_broken(store: Store) -> None:
    fill(store, ["a", "b"])
    assert check_store(store, progress=quiet) == []
    with store.write() as session:
        session.execute(sa.update(Passage).where(Passage.text == "shared").values(digest="0" * 64))
        session.execute(sa.update(Candidate).where(Candidate.role == "positive").values(role="negative"))
        session.execute(sa.delete(CompletionBody))
        insert_missing(
            session, Release,
            [{"name": "v", "digest": "d", "recipe": {}, "path": "/none", "created_at": T0,
              "manifest": {"num_items": 3, "files": {"a.parquet": {"sha256": ""}}}}],
        )  # fmt: skip
    found = {finding.promise: finding.num_rows for finding in check_store(store, progress=quiet)}
    assert found == {
        "a passage's digest is its text's": 1,
        "a completion's text can be read": 2,
        "an example's positive is its one positive candidate": 2,
        "a release holds the items its manifest counts": 1,
        "a release's files are the bytes its manifest names": 1,
    }


def test_check_finds_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    opened = Store.open(f"sqlite:///{path}")
    fill(opened, ["a"])
    opened.close()
    raw = sqlite3.connect(path)
    raw.execute("pragma foreign_keys = off")
    raw.execute("delete from query")
    raw.commit()
    raw.close()
    damaged = Store.open(f"sqlite:///{path}")
    promises = [finding.promise for finding in check_store(damaged, progress=quiet)]
    damaged.close()
    assert "the database file is intact" in promises
