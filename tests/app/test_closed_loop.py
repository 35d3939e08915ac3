"""Margins of training come back: by value, once, and as reasons in the review queue; on both databases."""

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from app.closed_loop import put_margins
from app.errors import AppError
from curation.reviewing.suspicion import suspicion_of, teacher_norms
from db.examples import NewCandidate, put_candidates, put_examples
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.texts import Passage
from db.texts import put_passages, put_queries


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


def _model(folder: Path, rows: list[tuple[str, str, float]], name: str = "small", seed: int = 0) -> Path:
    folder.mkdir()
    summary = {"recipe": {"name": name, "seed": seed}, "release_digest": "d" * 64}
    (folder / "training.json").write_bytes(orjson.dumps(summary))
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
    report = put_margins(store, model)
    assert report.to_dict() == {
        "teacher": "margin of small", "num_negatives": 8, "num_unknown": 1, "num_new": 9, "num_above_positive": 2,
        "num_far_below": 3,
    }  # fmt: skip
    assert put_margins(store, model).num_new == 0
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
    put_margins(store, _model(tmp_path / "a", [(*known["near"][:2], -0.5)]))
    put_margins(store, _model(tmp_path / "b", [(*known["near"][:2], 0.3)], seed=1))
    put_margins(store, _model(tmp_path / "c", [(*known["plain"][:2], -0.2)], name="other"))
    with store.read() as session:
        told = suspicion_of(session, [known["near"][2], known["plain"][2]])
    assert told[known["near"][2]].reasons == ()
    assert told[known["plain"][2]].reasons == ("suspected false: other kept it 0.20 above the positive",)


def test_folders_without_margins_and_other_stores_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"no training\.json"):
        put_margins(store, tmp_path)
    model = _model(tmp_path / "m", [("e" * 64, "f" * 64, 0.1)])
    with pytest.raises(AppError, match="none of its 1 negatives is in this store"):
        put_margins(store, model)
    (model / "margins.parquet").unlink()
    with pytest.raises(AppError, match=r"no margins\.parquet"):
        put_margins(store, model)
