"""A release obeys its judges and its gates: false negatives leave or become positives, shut gates leave nothing."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sqlalchemy import select, update

from curation.release.exporting import export_release
from curation.release.gates import GateError
from curation.release.recipe import ReleaseRecipe
from curation.release.release import create_release
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.judgements import Judge, Judgement
from db.tables.ledger import Request
from db.tables.texts import Passage, Query
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

NUM = 12


def fill(store: Store, judged: dict[tuple[str, str], int]) -> None:
    """Examples n: positive `p n`, written `w n 1..3`, mined `p n+1` (so positives are shared) and `m n`."""
    with store.write() as session:
        run = start_run(session, "generate", "toy", {"pack": "v1", "pack_digest": "f" * 64}, 0).id
        teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder", max_length=9)
        texts = [f"p {n}" for n in range(NUM)] + [f"w {n} {k}" for n in range(NUM) for k in (1, 2, 3)]
        texts += [f"m {n}" for n in range(NUM)]
        passages = dict(zip(texts, put_passages(session, texts), strict=True))
        queries = put_queries(session, [f"q {n}" for n in range(NUM)])
        pairs = [(queries[n], passages[f"p {n}"]) for n in range(NUM)]
        examples = put_examples(session, pairs, origin="corpus")
        rows, scores = [], []
        for n, example in enumerate(examples):
            rows.append(NewCandidate(example, passages[f"p {n}"], "positive", "corpus", run))
            for k, grade in ((1, "hard"), (2, "medium"), (3, "medium")):
                rows.append(NewCandidate(example, passages[f"w {n} {k}"], "negative", "synthetic", run, grade, k))
            for text in (f"p {(n + 1) % NUM}", f"m {n}"):
                rows.append(NewCandidate(example, passages[text], "negative", "mined", run))
            of_example = [f"p {n}", *(f"w {n} {k}" for k in (1, 2, 3)), f"p {(n + 1) % NUM}", f"m {n}"]
            scores += [
                {"teacher_id": teacher, "query_id": queries[n], "passage_id": passages[text], "value": 0.9 - 0.1 * at,
                 "num_tokens": 3}
                for at, text in enumerate(of_example)
            ]  # fmt: skip
        put_candidates(session, rows)
        insert_missing(session, Score, scores)
        judge = Judge(digest="j" * 64, model="judge", entry="e", prompt_digest="p" * 64)
        session.add(judge)
        session.flush()
        for number, ((query, text), relevance) in enumerate(judged.items()):
            request = Request(digest=f"{number:064}", model="judge", state="done")
            session.add(request)
            session.flush()
            key = session.scalars(select(Query.id).where(Query.text == query)).one()
            passage = session.scalars(select(Passage.id).where(Passage.text == text)).one()
            session.add(
                Judgement(query_id=key, passage_id=passage, judge_id=judge.id, request_id=request.id, stage="confirm",
                          relevance=relevance, evidence="e", reason="r")
            )  # fmt: skip


JUDGED = {("q 0", "w 0 1"): 3, ("q 1", "w 1 2"): 1, ("q 2", "m 2"): 2, ("q 3", "p 4"): 3}


def released(store: Store, folder: Path, **recipe: Any) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    found = create_release(store, ReleaseRecipe.model_validate(recipe), "toy-1.0.0", folder=folder)
    rows = {config: read(found.folder / config, "*") for config in ("graded", "triplet", "n-tuple", "qrels", "corpus")}
    return rows, found.manifest


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob(f"{split}-*")) for row in pq.read_table(file).to_pylist()]


def by_query(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {row["query"]: row for row in rows["graded"]}


def texts(row: dict[str, Any], name: str = "negatives") -> set[str]:
    return {one["text"] for one in row[name]}


def test_dropped_false_negatives_are_nowhere(store: Store, tmp_path: Path) -> None:
    fill(store, JUDGED)
    rows, manifest = released(store, tmp_path, false_negatives={"policy": "drop"})
    graded = by_query(rows)
    assert texts(graded["q 0"]) == {"w 0 2", "w 0 3", "p 1", "m 0"}
    assert texts(graded["q 1"]) == {"w 1 1", "w 1 2", "w 1 3", "p 2", "m 1"}  # judged 1: not relevant
    assert texts(graded["q 2"]) == {"w 2 1", "w 2 2", "w 2 3", "p 3"}
    assert texts(graded["q 3"]) == {"w 3 1", "w 3 2", "w 3 3", "m 3"}
    assert [one["mined_rank"] for one in graded["q 3"]["negatives"] if one["origin"] == "mined"] == [1]
    trained = {(row["anchor"], row["negative"]) for row in rows["triplet"]}
    assert not trained & {("q 0", "w 0 1"), ("q 2", "m 2"), ("q 3", "p 4")}
    assert manifest["mix"]["judged_relevant"] == 3 and len(rows["qrels"]) == NUM


def test_relabelled_false_negatives_are_positives_of_their_query_on_its_side(store: Store, tmp_path: Path) -> None:
    fill(store, JUDGED)
    rows, _ = released(store, tmp_path, false_negatives={"policy": "relabel"}, split={"dev_share": 0.4}, seed=3)
    graded = by_query(rows)
    assert texts(graded["q 0"], "more_positives") == {"w 0 1"} and texts(graded["q 3"], "more_positives") == {"p 4"}
    assert texts(graded["q 1"], "more_positives") == set()
    assert len(rows["qrels"]) == NUM + 3
    in_corpus = {row["text"]: row["_id"] for row in rows["corpus"]}
    assert {row["corpus-id"] for row in rows["qrels"]} <= set(in_corpus.values()) and "w 0 1" in in_corpus
    assert len(in_corpus) == len(rows["corpus"])
    pairs = {(row["anchor"], row["positive"]) for row in rows["n-tuple"]}
    assert {("q 0", "p 0"), ("q 0", "w 0 1"), ("q 3", "p 4")} <= pairs
    sides: dict[str, set[str]] = {}
    for split in ("train", "dev"):
        for row in read(tmp_path / "toy-1.0.0" / "graded", split):
            for positive in (row["positive"], *texts(row, "more_positives")):
                sides.setdefault(positive, set()).add(split)
    assert {frozenset(found) for found in sides.values()} == {frozenset({"train"}), frozenset({"dev"})}


@pytest.mark.parametrize("policy", ["relabel", "drop", "keep"])
def test_a_release_is_written_again_by_the_verdicts_of_its_day(store: Store, tmp_path: Path, policy: str) -> None:
    fill(store, JUDGED)
    recipe = {"false_negatives": {"policy": policy}, "split": {"dev_share": 0.4}, "seed": 3}
    found = create_release(store, ReleaseRecipe.model_validate(recipe), "toy-1.0.0", folder=tmp_path)
    with store.write() as session:  # other verdicts by now: what was false is none, and others are
        session.execute(update(Judgement).values(relevance=3 - Judgement.relevance))
    exported = export_release(store, "toy-1.0.0", folder=tmp_path / "again", allow_missing=True)
    assert exported.left_out.keys() <= {"ladder.png"}
    provenance = {file.name: file.read_bytes() for file in (found.folder / "provenance").iterdir()}
    assert {file.name: file.read_bytes() for file in (exported.target / "provenance").iterdir()} == provenance
    rows = [row for split in ("train", "dev") for row in read(found.folder / "provenance", split)]
    relabelled = [row["position"] for row in rows if row["position"] < 0]
    assert relabelled == ([-1] * 3 if policy == "relabel" else [])


@pytest.mark.parametrize("asked", [None, {"policy": "keep"}, {"judge": "somebody else"}, {"threshold": 3}])
def test_kept_and_unasked_judgements_change_no_row(store: Store, tmp_path: Path, asked: Any) -> None:
    fill(store, {("q 2", "m 2"): 2})
    rows, manifest = released(store, tmp_path, false_negatives=asked)
    assert all(len(row["negatives"]) == 5 and row["more_positives"] == [] for row in rows["graded"])
    assert manifest["mix"]["judged_relevant"] == (asked == {"policy": "keep"})


def test_a_shut_gate_leaves_nothing_behind_and_an_override_stands_on_the_card(store: Store, tmp_path: Path) -> None:
    fill(store, JUDGED)
    shut = {"judged_false_negatives": 0.5, "order_accuracy": 0.5}
    with pytest.raises(GateError, match=r"judged_false_negatives is 0\.750 .*at most 0\.5") as refused:
        released(store, tmp_path, gates=shut)
    (gate,) = [one for one in refused.value.results if not one.is_met]
    assert {row["evidence"] for row in gate.rows} == {"e"} and len(gate.rows) == 3
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    override = {"gate": "judged_false_negatives", "by": "Jo | <b>", "reason": "a trial"}
    _, manifest = released(store, tmp_path, gates={**shut, "overrides": [override]})
    card = (tmp_path / "toy-1.0.0" / "README.md").read_text()
    assert "let through by Jo" in card and "a trial" in card and "called 3 of them relevant" in card
    assert [gate["is_met"] for gate in manifest["gates"]] == [True, False]


def test_the_card_counts_by_the_judge_and_the_threshold_that_the_recipe_names(store: Store, tmp_path: Path) -> None:
    fill(store, JUDGED)
    with store.write() as session:
        put_teacher(session, name="asked nothing", version="v", kind="bi-encoder")
    _, manifest = released(store, tmp_path, false_negatives={"policy": "drop", "judge": "judge", "threshold": 3})
    judged = manifest["audit"]["judged"]
    assert (judged["num_judged"], judged["num_false"], manifest["mix"]["judged_relevant"]) == (4, 2, 2)
    card = (tmp_path / "toy-1.0.0" / "README.md").read_text()
    assert "called 2 of them relevant" in card and "of this selection 2 were left out" in card
    assert "Teachers with scores: `minilm` (w)\n" in card
    unasked = create_release(store, ReleaseRecipe(), "toy-2.0.0", folder=tmp_path).folder / "README.md"
    assert (
        "called 3 of them relevant" in unasked.read_text()
        and "of this selection none was left out" in unasked.read_text()
    )


@pytest.mark.parametrize("fields", [{"title": "a\n## b"}, {"title": ""}, {"language": ["English"]}, {"language": [""]}])
def test_what_would_break_the_card_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReleaseRecipe.model_validate(fields)
