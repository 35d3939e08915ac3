"""Pages of candidates equal a brute-force filter, whichever way they are walked and however small the windows."""

from typing import Any, Literal

import pytest
from sqlalchemy import select

from app.viewing.browsing import Filters, browse, runs_of, teachers_of
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score
from db.tables.texts import Passage, Query
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

GRADES = {1: "hard", 2: "medium", 4: "easy"}


def fill(store: Store) -> int:
    """Uneven: examples of one to six candidates of two runs; some have no score. Returns the teacher."""
    with store.write() as session:
        runs = [start_run(session, kind, kind, {"n": kind}, 0) for kind in ("generate", "mine")]
        teacher = put_teacher(session, name="t", version="v", kind="bi-encoder")
        for n in range(9):
            (query,) = put_queries(session, [f"Query {n} about {'otters' if n % 4 == 0 else 'herons'}"])
            texts = [f"text {n} {k} {'100%_OK' if (n + k) % 5 == 0 else ''}" for k in range(1 + n % 6)]
            passages = put_passages(session, texts)
            (example,) = put_examples(session, [(query, passages[0])], origin="corpus")
            rows = [NewCandidate(example, passages[0], "positive", "corpus", runs[0].id)]
            for k, passage in enumerate(passages[1:], 1):
                rank = {1: 1, 2: 2, 3: None, 4: 4}.get(k)
                origin = "synthetic" if rank else "mined"
                grade = GRADES.get(rank or 0)
                rows.append(NewCandidate(example, passage, "negative", origin, runs[k % 2].id, grade=grade, rank=rank))
            put_candidates(session, rows)
            scored = [
                {"teacher_id": teacher, "query_id": query, "passage_id": p, "value": (n * 7 + k * 3) % 10 / 10}
                for k, p in enumerate(passages)
                if (n + k) % 3
            ]
            insert_missing(session, Score, scored)
    return teacher


def brute_force(store: Store, filters: Filters) -> list[int]:
    with store.read() as session:
        rows = session.execute(
            select(Candidate, Query.text, Passage.text, Score.value)
            .join(Example, Example.id == Candidate.example_id)
            .join(Query, Query.id == Example.query_id)
            .join(Passage, Passage.id == Candidate.passage_id)
            .outerjoin(Score, (Score.query_id == Query.id) & (Score.passage_id == Passage.id))
        ).all()

    def matches(one: Any, query: str, text: str, score: float | None) -> bool:
        wanted = {"run_id": filters.run_id, "origin": filters.origin, "grade": filters.grade, "role": filters.role}
        if any(value is not None and getattr(one, name) != value for name, value in wanted.items()):
            return False
        if filters.text.lower() not in query.lower() and filters.text.lower() not in text.lower():
            return False
        low, high = filters.least, filters.most
        if low is None and high is None:
            return True
        return score is not None and (low is None or score >= low) and (high is None or score <= high)

    return sorted((row[0].id for row in rows if matches(*row)), reverse=True)


def walked(store: Store, filters: Filters, towards: Literal["older", "newer"], limit: int, window: int) -> list[int]:
    found: list[int] = []
    beyond = None
    for _ in range(200):
        with store.read() as session:
            page = browse(session, filters, beyond=beyond, towards=towards, limit=limit, window=window)
        found += [row.id for row in (page.rows if towards == "older" else page.rows[::-1])]
        if page.is_end:
            return found
        beyond = page.reached
    raise AssertionError("the pages do not end")


CASES: list[dict[str, Any]] = [
    {},
    {"run_id": 2},
    {"origin": "mined"},
    {"grade": "medium", "role": "negative"},
    {"text": "OTTERS"},
    {"text": "100%_ok"},
    {"text": "nowhere"},
    {"least": 0.3},
    {"most": 0.5, "role": "positive"},
    {"run_id": 1, "least": 0.2, "most": 0.8, "text": "text"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pages_are_the_brute_force_filter(store: Store, case: dict[str, Any]) -> None:
    filters = Filters(teacher_id=fill(store), **case)
    expected = brute_force(store, filters)
    assert (case.get("text") == "nowhere") == (not expected)
    for limit, window in ((3, 2), (1, 50), (50, 5_000)):
        assert walked(store, filters, "older", limit, window) == expected
        assert walked(store, filters, "newer", limit, window) == expected[::-1]


def test_a_text_with_nul_is_looked_for_without_it(store: Store) -> None:
    fill(store)
    with store.read() as session:
        plain, with_nul, alone = (browse(session, Filters(text=text)).rows for text in ("otters", "\0ot\0ters", "\0"))
        assert with_nul == plain and 0 < len(plain) < len(alone)


def test_a_page_carries_what_the_list_shows(store: Store) -> None:
    filters = Filters(teacher_id=fill(store), role="negative", origin="synthetic")
    with store.read() as session:
        row = browse(session, filters, limit=1).rows[0]
        assert (row.role, row.grade, row.rank, row.run) == ("negative", "medium", 2, "generate")
        assert row.query.startswith("Query") and row.text.startswith("text")
        assert [name for _, name in runs_of(session)] == ["mine (mine)", "generate (generate)"]
        assert [name for _, name in teachers_of(session)] == ["t"]


def test_a_long_search_stops_in_time_and_says_how_far_it_came(store: Store) -> None:
    fill(store)
    with store.read() as session:
        page = browse(session, Filters(text="nowhere"), window=4, most_seconds=0)
        newest = brute_force(store, Filters())[0]
        assert (page.rows, page.reached, page.is_end) == ([], newest + 1 - 4, False)


def test_an_empty_store_has_an_empty_last_page(store: Store) -> None:
    with store.read() as session:
        page = browse(session, Filters())
        assert (page.rows, page.is_end) == ([], True)
        assert browse(session, Filters(run_id=7), towards="newer").is_end
