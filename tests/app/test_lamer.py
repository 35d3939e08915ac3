"""LameR's answers through the ledger: N samples a query, never asked twice, and clear when some are missing."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.errors import AppError
from app.lamer import LamerTable, lamer_answers
from curation.mining.bm25 import Bm25
from curation.mining.lamer import Lamer, Wording, wording_of
from db.store import Store
from db.tables.ledger import Request, Run

PASSAGES = ["heart attack statistics", "myocardial infarction needs reperfusion </candidate>", "rice in a pot"]


def table_for(server: Any, **fields: Any) -> LamerTable:
    engine = {"kind": "openai", "base_url": server.url, "concurrency": 4, "timeout_s": 20, "max_attempts": 1}
    return LamerTable.model_validate({"model": "m", "num_samples": 3, "engine": engine, **fields})


def lamer_over(store: Store, table: LamerTable, wording: Wording) -> Lamer:
    answers = lamer_answers(store, table, name="toy")
    return Lamer(Bm25(PASSAGES), PASSAGES, answers, answerer=table.answerer, wording=wording)


def test_each_query_is_asked_n_times_and_never_again(store: Store, chat_server: Any) -> None:
    chat_server.script = lambda body: '"myocardial infarction"'
    table = table_for(chat_server)
    lamer = lamer_over(store, table, wording_of("scifact"))
    found, _ = lamer.top(["heart attack", "rice"], 2)
    assert set(found[0].tolist()) == {0, 1} and set(found[1].tolist()) == {1, 2}
    assert len(chat_server.bodies) == 6 and set(chat_server.came.values()) == {3}
    prompt = chat_server.bodies[0]["messages"][0]["content"]
    assert "one correct scientific paper passage" in prompt and '<candidate number="1">' in prompt
    assert chat_server.bodies[0]["response_format"] == {"type": "text"} and chat_server.bodies[0]["temperature"] == 1
    # What was asked is found again, whatever else is asked with it, and by another process.
    again, _ = lamer_over(store, table, wording_of("scifact")).top(["rice", "new", "heart attack"], 2)
    assert again[2].tolist() == found[0].tolist() and len(chat_server.bodies) == 9
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Request)) == 9
        assert session.scalars(select(Run.state)).all() == ["finished"]
    assert table.model_copy(update={"temperature": 0.5}).answerer != table.answerer


def test_inserted_texts_cannot_leave_their_tags(store: Store, chat_server: Any) -> None:
    chat_server.script = lambda body: "x"
    lamer_over(store, table_for(chat_server), wording_of("x")).top(["infarction </query>"], 1)
    prompt = chat_server.bodies[0]["messages"][0]["content"]
    assert prompt.count("</query>") == 1 and prompt.count("</candidate>") == 1


def test_a_refused_query_has_fewer_answers_and_the_rest_goes_on(store: Store, chat_server: Any) -> None:
    chat_server.script = lambda body: None if "<query>rice" in body["messages"][0]["content"] else "infarction"
    found, _ = lamer_over(store, table_for(chat_server), wording_of("x")).top(["rice", "heart"], 2)
    assert found[0].tolist() == [2, -1] and set(found[1].tolist()) == {0, 1}
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        assert run.state == "running" and run.totals == {"num_failed": 3}


def test_missing_answers_are_one_clear_error(store: Store, chat_server: Any, tmp_path: Path) -> None:
    engine = {
        "kind": "batch_file", "requests": str(tmp_path / "out.jsonl"), "completions": str(tmp_path / "in.jsonl"),
    }  # fmt: skip
    table = table_for(chat_server, engine=engine)
    with pytest.raises(AppError, match="6 answers of 'm' are missing"):
        lamer_over(store, table, wording_of("x")).top(["rice", "heart"], 2)
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 6
    chat_server.script = lambda body: "x"
    tight = table_for(chat_server, budget={"tokens": 10})
    with pytest.raises(AppError, match="budget"):
        lamer_over(store, tight, wording_of("x")).top(["pot"], 2)
