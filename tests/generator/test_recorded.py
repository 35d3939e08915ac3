"""The recorded road: rendered prompts equal the recorded requests, and the run reads the answers once."""

import gzip
import hashlib
import zlib
from pathlib import Path

import orjson
import pytest
from sqlalchemy import func, select

from app.recipes import load_recipe
from curation.importing.rows import import_beir
from db.digest import canonical_json
from db.store import Store
from db.tables.examples import Candidate, Example, Sourcing, Task
from db.tables.ledger import Completion, Request, RequestBody, RunRequest
from generator.generation import generate
from generator.plan import Planner
from generator.recipe import GenerateRecipe

DEMO = Path(__file__).parents[2] / "app" / "demo"


@pytest.fixture
def scifact(store: Store) -> Store:
    import_beir(store, DEMO / "scifact", name="scifact")
    return store


def recipe(name: str) -> GenerateRecipe:
    return load_recipe(DEMO / "recipes" / f"{name}.toml", GenerateRecipe)


# SHA-256 over the canonical bodies of the recorded requests in plan order, taken from the recording itself.
RECORDED = {
    "graded": (265, "7c52c8407e71392a0c52def01d69b0f111cfa0380fabbb58c65eb21c39884abd"),
    "minimal_edits": (200, "489b6d341a653958da8581f35a0bdfb23a9478888e6f01c6b715ec0b52dfedaa"),
}


@pytest.mark.parametrize("name", list(RECORDED))
def test_rendered_requests_are_the_recorded_ones_byte_for_byte(scifact: Store, name: str) -> None:
    total, num = hashlib.sha256(), 0
    with scifact.read() as session:
        for planned in Planner(recipe(name)).first(session):
            total.update(planned.custom_id.encode() + b"\n" + canonical_json(planned.body) + b"\n")
            num += 1
    assert (num, total.hexdigest()) == RECORDED[name]


def test_the_requests_that_wait_for_a_strong_model_are_those_of_today(scifact: Store) -> None:
    folder = DEMO.parents[1] / "benchmarks" / "prompts_v2"
    written = [orjson.loads(line) for line in gzip.decompress((folder / "requests.jsonl.gz").read_bytes()).splitlines()]
    with scifact.read() as session:
        planned = list(Planner(load_recipe(folder / "recipe.toml", GenerateRecipe)).first(session))
    assert len(planned) == 300
    assert [(row["custom_id"], row["body"]) for row in written] == [(item.custom_id, item.body) for item in planned]


def test_recorded_completions_become_examples_and_candidates(scifact: Store) -> None:
    report = generate(scifact, recipe("graded"))
    assert (report.num_planned, report.num_answered, report.num_waiting) == (265, 265, 0)
    assert report.outcomes == {"accepted": 263, "partial": 2}
    assert report.refused == {"copied_sentence": 3}
    with scifact.read() as session:
        assert session.scalar(select(func.count()).select_from(Task)) == 60
        origins = select(Example.origin, func.count()).join(RunRequest, RunRequest.example_id == Example.id)
        found = {origin: num for origin, num in session.execute(origins.group_by(Example.origin))}
        assert found == {"corpus": 200, "synthetic": 60}
        grades = select(Candidate.rank, Candidate.grade, func.count()).where(Candidate.origin == "synthetic")
        rows = session.execute(grades.group_by(Candidate.rank, Candidate.grade).order_by(Candidate.rank)).all()
        ranked = {(rank, grade): num for rank, grade, num in rows if rank}
        assert ranked == {(1, "hard"): 258, (2, "medium"): 260, (3, "medium"): 260, (4, "easy"): 259}


def test_edits_share_the_examples_and_name_what_they_changed(scifact: Store) -> None:
    generate(scifact, recipe("graded"))
    report = generate(scifact, recipe("minimal_edits"))
    assert report.outcomes == {"accepted": 200}
    with scifact.read() as session:
        edited = select(Candidate.rank, Candidate.parent_passage_id, Example.positive_id).join(
            Example, Candidate.example_id == Example.id
        )
        rows = session.execute(edited.where(Candidate.origin == "edited")).all()
        assert len(rows) == 400
        assert all((parent == positive) == (rank == 1) for rank, parent, positive in rows)
        corpus = select(func.count()).select_from(RunRequest).where(RunRequest.kind == "minimal_edit")
        assert session.scalar(corpus) == 200


def counts(store: Store) -> list[int | None]:
    tables = (Request, RequestBody, RunRequest, Completion, Example, Candidate, Sourcing, Task)
    with store.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) for table in tables]


def test_a_second_run_writes_nothing(scifact: Store) -> None:
    first = generate(scifact, recipe("graded"))
    before = counts(scifact)
    again = generate(scifact, recipe("graded"))
    assert counts(scifact) == before
    assert again.num_new_answers == 0
    assert {**again.to_dict(), "num_new_answers": 265} == first.to_dict()


def test_answers_that_come_later_are_read_later(scifact: Store, tmp_path: Path) -> None:
    lines = gzip.decompress((DEMO / "recorded" / "graded" / "completions.jsonl.gz").read_bytes()).splitlines(True)
    source = recipe("graded")
    engine = source.engine.model_copy(
        update={"completions": tmp_path / "answers.jsonl", "requests": tmp_path / "out" / "requests.jsonl"}
    )
    partial = source.model_copy(update={"engine": engine})
    assert generate(scifact, partial).num_waiting == 265
    written = [orjson.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_bytes().splitlines()]
    assert len(written) == 265 and written[0]["url"] == "/v1/chat/completions"
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[:100]))
    assert generate(scifact, partial).num_waiting == 165
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines))
    last = generate(scifact, partial)
    assert (last.num_waiting, last.num_new_answers) == (0, 165)


def test_bad_lines_are_named_and_the_others_stay(scifact: Store, tmp_path: Path) -> None:
    lines = gzip.decompress((DEMO / "recorded" / "graded" / "completions.jsonl.gz").read_bytes()).splitlines(True)
    nested = {
        "custom_id": orjson.loads(lines[5])["custom_id"],
        "response": None,
        "error": {"error": {"message": "too long"}},
    }
    bad = [b"{half\n", b'{"custom_id": "nobody", "response": {}}\n', b"[]\n", orjson.dumps(nested) + b"\n"]
    (tmp_path / "answers.jsonl").write_bytes(b"".join([*lines[:5], *bad]))
    source = recipe("graded")
    engine = source.engine.model_copy(update={"completions": tmp_path / "answers.jsonl"})
    report = generate(scifact, source.model_copy(update={"engine": engine}))
    assert [(line.where, line.reason) for line in report.bad_lines] == [
        ("answers.jsonl:6", "malformed_line"),
        ("answers.jsonl:7", "unknown_request"),
        ("answers.jsonl:8", "malformed_line"),
    ]
    assert sum(report.outcomes.values()) == 5
    before = counts(scifact)
    generate(scifact, source.model_copy(update={"engine": engine}))
    assert counts(scifact) == before
    with scifact.read() as session:
        assert session.scalars(select(Completion.error).where(Completion.error.is_not(None))).all() == ["too long"]
        states = select(Request.state, func.count()).group_by(Request.state)
        assert {s: n for s, n in session.execute(states)} == {"done": 5, "failed": 1, "pending": 259}
        body = session.scalars(select(RequestBody.body).limit(1)).one()
        assert orjson.loads(zlib.decompress(body))["model"] == "recorded-llm"
