"""Trainings come back: steps and margins by value, once, and as reasons in the review queue; on both databases."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from app.closed_loop import import_training
from app.errors import AppError
from app.reviewing.form import choices
from app.viewing.browsing import teachers_of
from curation.audit.order_audit import newest_teacher, scoring_teachers
from curation.release.recipe import Mix, ReleaseRecipe
from curation.release.release import create_release
from curation.reviewing.items import item_view
from curation.reviewing.recipe import SessionRecipe
from curation.reviewing.sessions import create_session
from curation.reviewing.suspicion import suspicion_of, teacher_norms
from db.check import check_store
from db.digest import digest_of
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.review import Reviewer, ReviewItem
from db.tables.texts import Passage
from db.tables.training import Training
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from db.trainings import training_names, training_steps


def _fill(store: Store) -> dict[str, tuple[str, str, int]]:
    """Text of each negative: (example's digest, its digest, candidate id). Two examples share query 0."""
    with store.write() as session:
        run = start_run(session, "generate", "toy", {"name": "toy"}, 0)
        first, second = put_queries(session, ["one?", "two?"])
        texts = ["p0", "p1", "p2", "near", "far hard", "far easy", "plain", "far unranked"]
        ids = dict(zip(texts, put_passages(session, texts), strict=True))
        pairs = [(first, ids["p0"]), (first, ids["p1"]), (second, ids["p2"])]
        examples = put_examples(session, pairs, origin="corpus")
        rows = [
            NewCandidate(example, positive, "positive", "corpus", run.id)
            for example, (_, positive) in zip(examples, pairs, strict=True)
        ]
        ranks = {"near": 1, "far hard": 1, "far easy": 4, "plain": 2, "far unranked": None}
        for text, rank in ranks.items():
            for example in examples if text == "near" else examples[-1:]:
                rows.append(NewCandidate(example, ids[text], "negative", "synthetic", run.id, rank=rank))
        put_candidates(session, rows)
        found = session.execute(
            select(Passage.text, Example.digest, Passage.digest, Candidate.id, Example.positive_id)
            .join(Candidate, Candidate.passage_id == Passage.id)
            .join(Example, Candidate.example_id == Example.id)
            .where(Candidate.role == "negative")
        ).all()
    names = {ids["p0"]: "p0 ", ids["p1"]: "p1 ", ids["p2"]: ""}
    return {names[positive] + text: (example, passage, key) for text, example, passage, key, positive in found}


@contextmanager
def _elsewhere(folder: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{folder}/elsewhere.db")
    yield opened
    opened.close()


def _summary(num_steps: int, name: str = "small", seed: int = 0) -> dict[str, Any]:
    return {
        "recipe": {"name": name, "model": "minilm", "schedule": "easy_to_hard", "pooling": "log1p", "seed": seed},
        "release": "toy-1.0.0", "release_digest": "d" * 64, "num_examples": 2,
        "num_steps": num_steps, "machine": "a toy", "started_at": "2026-01-02T03:04:05+01:00", "blocks": [],
    }  # fmt: skip


def _step(number: int, **more: Any) -> dict[str, Any]:
    return {"step": number, "block": 1 + number // 2, "rank": 4 - number, "loss": 1 / (number + 3), **more}


def _figures(num: int, margin: float | None) -> dict[str, Any]:
    return {
        "negatives": num, "loss": 0.25, "similarity": -0.5, "margin": margin, "above_positive": 1 / 3, "gradient": 2.0,
        "gradient_variance": 1e-9,
    }  # fmt: skip


STEPS = [
    _step(0, learning_rate=2e-5, gradient_norm=3.5, query_gradient_variance=0.125, positive=0.75, written=-0.25,
          mined=None, masked=3, ranks={"1": _figures(3, -0.1), "mined": _figures(1, None)}),
    _step(1, positive=None, ranks={}),
    {**_step(2), "rank": None, "loss": None, "ranks": {"4": _figures(2, 0.3)}},
]  # fmt: skip


def _model(folder: Path, rows: list[tuple[str, str, float]], name: str = "small", seed: int = 0) -> Path:
    folder.mkdir()
    (folder / "training.json").write_bytes(orjson.dumps(_summary(len(STEPS), name, seed)))
    (folder / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(step) + b"\n" for step in STEPS))
    columns: dict[str, Any] = {"step": list(range(len(rows))), "rank": [1] * len(rows)}
    for place, column in enumerate(("example_id", "negative_id", "margin")):
        columns[column] = [row[place] for row in rows]
    pq.write_table(pa.table(columns), folder / "margins.parquet")
    return folder


def test_margins_become_scores_once_and_reasons_for_reviewers(store: Store, tmp_path: Path) -> None:
    known = _fill(store)
    trained = [
        ("near", -0.3), ("near", -0.1), ("p0 near", 0.2), ("p1 near", -0.4), ("far hard", 0.6), ("far easy", 0.7),
        ("plain", 0.2), ("far unranked", 0.9),
    ]  # fmt: skip
    rows = [(*known[text][:2], margin) for text, margin in trained]
    model = _model(tmp_path / "m", [*rows, ("e" * 64, "f" * 64, 0.1)])
    report = import_training(store, model)
    assert report.to_dict() == {
        "training": "small", "digest": digest_of(_summary(3)), "is_new": True, "num_steps": 3,
        "teacher": "margin of small", "num_negatives": 8, "num_unknown": 1, "num_not_finite": 0, "num_new": 9,
        "num_above_positive": 2, "num_far_below": 3,
    }  # fmt: skip
    again = import_training(store, model)
    assert (again.num_new, again.is_new) == (0, False)
    with store.read() as session:
        scores = select(Passage.text, Score.value).join(Passage, Passage.id == Score.passage_id)
        values = sorted(tuple(row) for row in session.execute(scores))
        assert session.scalars(select(Teacher.kind)).all() == ["margin"]
        assert teacher_norms(session) == {}
        told = suspicion_of(session, [key for _, _, key in known.values()])
    # Two examples of query one share `near`: the nearer of 0.2 and -0.4 speaks. The other query's is the mean.
    assert values == [
        ("far easy", -0.7), ("far hard", -0.6), ("far unranked", -0.9), ("near", 0.2), ("near", 0.4), ("p0", 0.0),
        ("p1", 0.0), ("p2", 0.0), ("plain", -0.2),
    ]  # fmt: skip
    reasons = {text: told[key].reasons for text, (_, _, key) in known.items()}
    assert reasons["near"] == ("suspected false: small kept it 0.20 above the positive",)
    assert reasons["p0 near"] == ("suspected false: small kept it 0.40 above the positive",)
    assert reasons["far hard"] == ("too easy for N1: small had it 0.60 below the positive",)
    assert reasons["far easy"] == reasons["far unranked"] == reasons["plain"] == ()
    assert told[known["near"][2]].value > told[known["far hard"][2]].value > told[known["plain"][2]].value == 0


def test_a_newer_training_of_the_same_name_speaks(store: Store, tmp_path: Path) -> None:
    known = _fill(store)
    import_training(store, _model(tmp_path / "a", [(*known["near"][:2], -0.5)]))
    import_training(store, _model(tmp_path / "b", [(*known["near"][:2], 0.3)], seed=1))
    import_training(store, _model(tmp_path / "c", [(*known["plain"][:2], -0.2)], name="other"))
    with store.read() as session:
        told = suspicion_of(session, [known["near"][2], known["plain"][2]])
    assert told[known["near"][2]].reasons == ()
    assert told[known["plain"][2]].reasons == ("suspected false: other kept it 0.20 above the positive",)


def test_steps_come_back_as_they_were_written_and_once(store: Store, tmp_path: Path) -> None:
    model = _model(tmp_path / "m", [])
    other = _model(tmp_path / "other", [], seed=1)
    for folder in (model, other, model):
        import_training(store, folder)
    with store.read() as session:
        first, second = session.scalars(select(Training).order_by(Training.id))
        assert [name.digest for name in training_names(session)] == [second.digest, first.digest]
        steps = training_steps(session, first.id)
        kinds = {teacher.id: teacher.kind for teacher in session.scalars(select(Teacher))}
    figures = ("learning_rate", "gradient_norm", "query_gradient_variance", "positive", "written", "mined", "masked")
    assert steps == [{**dict.fromkeys(figures), "ranks": {}, **step} for step in STEPS]
    assert (first.name, first.base_model, first.release_name, first.num_steps) == ("small", "minilm", "toy-1.0.0", 3)
    assert {**first.summary, "recipe": first.recipe} == _summary(3) and first.digest == digest_of(_summary(3))
    assert first.recipe_digest == digest_of(first.recipe) != second.recipe_digest
    assert first.started_at == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC) and first.finished_at is None
    assert kinds == {first.teacher_id: "margin", second.teacher_id: "margin"}
    assert check_store(store, progress=lambda done, total: None) == []


def test_what_the_store_does_not_know_is_told_and_comes_when_it_does(store: Store, tmp_path: Path) -> None:
    with _elsewhere(tmp_path) as elsewhere:
        known = _fill(elsewhere)
    rows = [(*known[text][:2], margin) for text, margin in (("near", -0.5), ("plain", 0.25), ("plain", float("nan")))]
    model = _model(tmp_path / "m", [*rows, (*known["far easy"][:2], float("inf"))])
    report = import_training(store, model)
    assert (report.num_negatives, report.num_unknown, report.num_not_finite, report.num_new) == (3, 2, 1, 0)
    assert "2 negatives are not in this store; 1 have no finite margin" in report.in_words()
    _fill(store)
    report = import_training(store, model)
    assert (report.is_new, report.num_unknown, report.num_new) == (False, 0, 3)
    with store.read() as session:
        assert sorted(session.scalars(select(Score.value))) == [-0.25, 0.0, 0.5]


def test_a_training_without_margins_comes_and_its_margins_may_follow(store: Store, tmp_path: Path) -> None:
    known = _fill(store)
    model = _model(tmp_path / "m", [(*known["near"][:2], 0.5)])
    (model / "margins.parquet").rename(tmp_path / "kept")
    report = import_training(store, model)
    assert report.teacher is None and "no margins.parquet" in report.in_words()
    with store.read() as session:
        assert session.scalars(select(Training.teacher_id)).all() == [None]
    (tmp_path / "kept").rename(model / "margins.parquet")
    assert import_training(store, model).num_new == 2
    with store.read() as session:
        assert session.scalars(select(Training.teacher_id)).all() == session.scalars(select(Teacher.id)).all()


FAULTS = [
    ("training.json", None, r"no training\.json there .*'gradus train'"),
    ("training.json", b"{", "training.json: "),
    ("training.json", orjson.dumps({**_summary(3), "release_digest": "x"}), "training.json: release_digest: "),
    ("training.json", orjson.dumps({**_summary(3), "machine": "a\0b"}), "training.json holds a NUL"),
    ("training.json", orjson.dumps(_summary(4)), "has 3 steps, training.json says 4"),
    ("metrics.jsonl", None, r"no metrics\.jsonl there"),
    ("metrics.jsonl", b'{"step":0,"block":1,"rank":1}\n{"ste', "metrics.jsonl, line 2"),
    ("metrics.jsonl", b'{"step":1,"block":1,"rank":1}', "line 1 is of step 1, not 0"),
    ("metrics.jsonl", b'{"step":0,"block":1,"rank":1,"loss":"low"}', "line 1: loss: "),
    ("metrics.jsonl", b'{"step":0,"block":1,"rank":1,"perplexity":2}', "perplexity is not known .*: upgrade"),
    ("metrics.jsonl", b'{"step":0,"block":1,"rank":1,"ranks":{"<b>":{"negatives":1}}}', "line 1: ranks"),
    ("margins.parquet", b"no parquet", r"margins\.parquet cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "told"), FAULTS)
def test_a_broken_folder_is_refused_whole(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    model = _model(tmp_path / "m", [])
    (model / name).unlink()
    if content is not None:
        (model / name).write_bytes(content)
    with _elsewhere(tmp_path) as store:
        with pytest.raises(AppError, match=told) as caught:
            import_training(store, model)
        assert "\n" not in str(caught.value)
        with store.read() as session:
            assert session.scalars(select(Training.id)).all() == []


def test_margins_are_picked_as_a_teacher_by_nobody_who_did_not_ask(store: Store, tmp_path: Path) -> None:
    known = _fill(store)
    with store.write() as session:
        teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder")
        query = session.scalars(select(Example.query_id).where(Example.digest == known["near"][0])).one()
        passages = session.scalars(select(Passage.id)).all()
        rows = [{"teacher_id": teacher, "query_id": query, "passage_id": key, "value": 0.5} for key in passages]
        insert_missing(session, Score, [{**row, "num_tokens": 3} for row in rows])
    margin = import_training(store, _model(tmp_path / "m", [(*known[text][:2], 0.5) for text in known])).teacher
    assert margin == "margin of small"
    with store.write() as session:
        assert scoring_teachers(session) == ["minilm"] and newest_teacher(session, margin).kind == "margin"
        assert choices(session).teachers == ("minilm",)
        assert [name for _, name in teachers_of(session)] == ["minilm", margin]
        ann = Reviewer(name="ann", pseudonym="ann-x", role="admin")
        session.add(ann)
        session.flush()
        recipe = SessionRecipe.model_validate({"name": "s", "queue": {"order": "suspicion"}, "reviewers": ["ann"]})
        create_session(session, recipe, ann)
        views = [item_view(session, item, ann) for item in session.scalars(select(ReviewItem.id))]
    told = {one.text: one.scores for view in views for one in view.negatives}
    assert {view.axis for view in views} == {"minilm", None} and told["plain"] == {"minilm": 0.5}
    create_release(store, ReleaseRecipe(mix=Mix(slots=2)), "toy-1.0.0", folder=tmp_path)
    manifest = orjson.loads((tmp_path / "toy-1.0.0" / "manifest.json").read_bytes())
    assert [one["name"] for one in manifest["teachers"]] == ["minilm"]
    rows = pq.read_table(tmp_path / "toy-1.0.0" / "graded").to_pylist()
    assert {one["teacher"] for row in rows for each in row["negatives"] for one in each["scores"]} == {"minilm"}
