"""`gradus mine` with LameR among the teachers, end to end: any engine, nothing asked twice, clear when answers miss."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from app.cli import cli, main
from curation.mining.bm25 import Bm25
from curation.mining.lamer import widen
from db.store import Store
from db.tables.examples import Candidate, Sourcing, Teacher
from db.tables.ledger import Request, Run
from db.tables.texts import Passage
from tests.app.conftest import asked_about

TEXTS = [
    "zinc helps a cold",
    "myocardial infarction needs reperfusion",
    "a heart attack is an infarction of the myocardium",
    "heart rate and sleep",
    "the market fell",
    "aspirin after myocardial infarction",
]
QUERIES = {"treatment of a heart attack": 1, "does zinc help": 0, "why did stocks fall": 4}
RECIPE = """
name = "with-lamer"
collection = "set"
method = "naive"
depth = 3
num_negatives = 2
{more}

[[teachers]]
kind = "lamer"
model = "m"
num_samples = 2
engine = {engine}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path / "data"))
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{place}", "text": text}) for place, text in enumerate(TEXTS)]
    queries = [json.dumps({"_id": f"q{place}", "text": text}) for place, text in enumerate(QUERIES)]
    qrels = [f"q{number}\td{place}\t1" for number, place in enumerate(QUERIES.values())]
    (tmp_path / "set" / "corpus.jsonl").write_text("\n".join(corpus))
    (tmp_path / "set" / "queries.jsonl").write_text("\n".join(queries))
    (tmp_path / "set" / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    return tmp_path


@pytest.fixture
def mine(folder: Path, store_url: str) -> Any:
    def run(engine: str, more: str = "", *arguments: str, tail: str = "") -> Any:
        path = folder / "mine.toml"
        path.write_text(RECIPE.format(engine=engine, more=more) + tail)
        return CliRunner().invoke(cli, ["mine", str(path), "--store", store_url, *arguments])

    done = CliRunner().invoke(cli, ["import", "beir", str(folder / "set"), "--store", store_url])
    assert done.exit_code == 0, done.output
    return run


def _answer(query: str) -> str:
    return {"treatment of a heart attack": "myocardial infarction", "does zinc help": "zinc and sleep"}.get(query, "-")


def _mined(store: Store) -> list[str]:
    with store.read() as session:
        statement = select(Passage.text).join(Candidate, Candidate.passage_id == Passage.id)
        return list(session.scalars(statement.where(Candidate.origin == "mined").order_by(Candidate.id)))


def _by_hand() -> list[str]:
    """Of each query, BM25's first for the query with its two answers, but the positive."""
    found = []
    for query, positive in QUERIES.items():
        places, _ = Bm25(TEXTS).top([widen(query, [_answer(query)] * 2)], 3 + 1)
        found += [TEXTS[place] for place in places[0].tolist() if place not in (positive, -1)][:2]
    return found


def _http(server: Any, **more: object) -> str:
    fields = {"kind": "openai", "base_url": server.url, "concurrency": 4, "timeout_s": 20, "max_attempts": 1, **more}
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in fields.items()) + "}"


def test_lamer_mines_with_what_the_model_answers(store: Store, mine: Any, folder: Path, chat_server: Any) -> None:
    chat_server.script = lambda body: _answer(asked_about(body, "query").strip())
    done = mine(_http(chat_server), "", "--json", str(folder / "report.json"))
    assert done.exit_code == 0, done.output
    assert _mined(store) == _by_hand() != []
    assert len(chat_server.bodies) == len(QUERIES) * 2
    report = json.loads((folder / "report.json").read_text())
    assert [of["teacher"] for of in report["teachers"]] == ["lamer"] and report["num_new"] == len(_by_hand())
    with store.read() as session:
        teacher = session.scalars(select(Teacher)).one()
        assert session.scalar(select(func.count()).select_from(Sourcing).where(Sourcing.teacher_id == teacher.id))
    # Again, with the engine elsewhere: the same run, nothing asked, nothing new.
    again = mine(_http(chat_server, concurrency=1), "", "--json", str(folder / "report.json"))
    assert again.exit_code == 0 and json.loads((folder / "report.json").read_text())["num_new"] == 0
    assert len(chat_server.bodies) == len(QUERIES) * 2
    with store.read() as session:
        assert sorted(session.scalars(select(Run.kind).where(Run.kind.in_(("mine", "lamer"))))) == ["lamer", "mine"]


def test_batch_engine_gets_all_queries_at_once_and_the_second_run_mines(
    store: Store, mine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.mining.mining._BLOCK", 1)
    engine = '{kind = "batch_file", requests = "ask.jsonl", completions = "told.jsonl"}'
    done = mine(engine)
    message = f"run again after completing {folder / 'told.jsonl'} with the answers to {folder / 'ask.jsonl'}"
    assert "6 answers of 'm' are missing" in str(done.exception) and message in str(done.exception)
    assert _mined(store) == []
    rows = [orjson.loads(line) for line in (folder / "ask.jsonl").read_bytes().splitlines()]
    assert len(rows) == 6
    told = []
    for row in rows:
        content = _answer(asked_about(row["body"], "query").strip())
        body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": {}}
        told.append({"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}})
    (folder / "told.jsonl").write_bytes(b"\n".join(map(orjson.dumps, told)))
    done = mine(engine)
    assert done.exit_code == 0, done.output
    assert _mined(store) == _by_hand()


def test_missing_answers_exit_with_one_in_one_line(
    folder: Path, mine: Any, store_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine('{kind = "batch_file", completions = "told.jsonl"}')
    monkeypatch.setattr("sys.argv", ["gradus", "mine", str(folder / "mine.toml"), "--store", store_url])
    (folder / "told.jsonl").write_text("")
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "run again after completing" in " ".join(capsys.readouterr().err.split())


def test_lamer_beside_others_does_not_vote_but_is_masked(
    store_url: str, mine: Any, folder: Path, chat_server: Any
) -> None:
    chat_server.script = lambda body: _answer(asked_about(body, "query").strip())
    others = '\n[[teachers]]\nkind = "bm25"\n[[teachers]]\nkind = "bi_encoder"\nmodel = "minilm"\n'
    more = 'combine = "intra_sample_unique"\nweight = 1.0\noffset = 0.0'
    path = folder / "report.json"
    done = mine(_http(chat_server), more, "--json", str(path), tail=others)
    assert "means nothing to method 'naive'" in str(done.exception) and not chat_server.bodies
    recipe = RECIPE.replace('"naive"', '"consensus"').format(engine=_http(chat_server), more=more) + others
    (folder / "both.toml").write_text(recipe)
    arguments = ["mine", str(folder / "both.toml"), "--store", store_url, "--json", str(path)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(path.read_text())
    assert [of["teacher"] for of in report["teachers"]] == ["lamer", "bm25", "minilm"]
    assert all(of["num_proposed"] for of in report["teachers"]) and report["num_over_ceiling"]


def test_what_cannot_work_is_refused_before_anything_is_asked(
    store: Store, store_url: str, mine: Any, folder: Path, chat_server: Any
) -> None:
    engine = _http(chat_server)
    done = mine(engine + "\nnum_sample = 2")
    assert "num_sample" in str(done.exception) and "did you mean 'num_samples'?" in str(done.exception)
    changed = {
        "cannot score pairs": RECIPE.replace('"naive"', '"percentage"'),  # a share of a score that LameR cannot give
        "there is 1: add a teacher": RECIPE.replace('"naive"', '"consensus"') + '[judge]\nkind = "bm25"\n',
    }
    for message, recipe in changed.items():
        (folder / "other.toml").write_text(recipe.format(engine=engine, more=""))
        done = CliRunner().invoke(cli, ["mine", str(folder / "other.toml"), "--store", store_url])
        assert message in str(done.exception)
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Request)) == 0
    assert not chat_server.bodies
