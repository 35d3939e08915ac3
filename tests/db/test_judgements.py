"""Judgements in the store: what a row must hold, and what `store merge` and `store check` make of them."""

from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from db.check import check_store
from db.merge import merge
from db.quotes import stands_in
from db.store import Store
from db.tables.judgements import Judge, Judgement
from db.tables.ledger import Request
from db.tables.texts import Passage, Query
from db.texts import put_passages, put_queries


def quiet(done: int, total: int | None) -> None: ...


def add(store: Store, query: str, passage: str, **fields: object) -> None:
    """A judgement in a store whose keys begin elsewhere in every store, as others' texts may stand before."""
    with store.write() as session:
        (query_id,) = put_queries(session, [query])
        (passage_id,) = put_passages(session, [passage])
        judge = session.scalars(select(Judge)).first() or Judge(digest="j", model="m", entry="e", prompt_digest="p")
        request = session.scalars(select(Request).where(Request.digest == query)).first() or Request(
            digest=query, model="m", state="done"
        )
        session.add_all([judge, request])
        session.flush()
        row = {"stage": "screen", "relevance": 2, "evidence": passage[:4], "reason": "", **fields}
        session.add(
            Judgement(query_id=query_id, passage_id=passage_id, judge_id=judge.id, request_id=request.id, **row)
        )


def judged(store: Store) -> set[tuple[str, str, int]]:
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text, Judgement.relevance)
            .join(Query, Query.id == Judgement.query_id)
            .join(Passage, Passage.id == Judgement.passage_id)
        )
        return {tuple(row) for row in rows}  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields", [{"relevance": 4}, {"relevance": -1}, {"relevance": 2, "evidence": ""}, {"stage": "guess"}]
)
def test_constraints_refuse(store: Store, fields: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        add(store, "q", "some words", **fields)


def test_merge_translates_keys_and_keeps_what_is_here_where_both_judged(store: Store, tmp_path: Path) -> None:
    other = Store.open(f"sqlite:///{tmp_path}/other.db")
    add(store, "a", "passage a")
    add(other, "z", "passage z", relevance=0, evidence="")
    add(other, "b", "passage b", relevance=3)
    add(other, "a", "passage a", relevance=3)
    report = merge(store, other, progress=quiet)
    expected = {("a", "passage a", 2), ("z", "passage z", 0), ("b", "passage b", 3)}
    assert judged(store) == expected
    assert report.added["judgement"] == 2 and report.added["judge"] == 0
    assert report.kept_differing["judgement"] == 1
    merge(store, other, progress=quiet)
    assert judged(store) == expected
    other.close()


def test_check_finds_evidence_that_stands_nowhere(store: Store) -> None:
    add(store, "a", "some\nwords  here", evidence="words here")
    promise = "a judgement's evidence stands in its passage"
    assert promise not in {finding.promise for finding in check_store(store, progress=quiet)}
    add(store, "b", "other words", evidence="invented")
    found = {finding.promise: finding for finding in check_store(store, progress=quiet)}
    assert found[promise].num_rows == 1


@pytest.mark.parametrize(
    ("quote", "text", "stands"),
    [
        ("a  b\nc", "x a b\tc y", True),
        ("a b", "ab", False),
        ("A b", "a b", False),
        ("", "a", False),
        (" \n", "a", False),
        ("a", "", False),
        ("a\u00a0b", "a b", True),
    ],
)
def test_only_white_space_may_differ(quote: str, text: str, stands: bool) -> None:
    assert stands_in(quote, text) is stands
