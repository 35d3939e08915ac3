"""Importing a BEIR folder: everything good arrives once, everything bad is named and kept as a rejection."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from curation.errors import CurationError
from curation.importing.rows import import_beir
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.ledger import Rejection, Run
from db.tables.schema import tables_in_order
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query

CORPUS = [
    {"_id": "d1", "title": "One", "text": "first"},
    {"_id": "d2", "title": "", "text": "second"},
    {"_id": "d3", "text": "third"},
    {"_id": "d4", "text": "third"},
]
QUERIES = [{"_id": "q1", "text": "who"}, {"_id": "q2", "text": "what"}, {"_id": "q3", "text": "never judged"}]
TRAIN = ["q1\td1\t1", "q1\td2\t2", "q1\td3\t1", "q2\td1\t0", "q2\td4\t1"]


def _beir_folder(
    folder: Path,
    corpus: list[Any] = CORPUS,
    queries: list[Any] = QUERIES,
    **splits: list[str],
) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for split, rows in (splits or {"train": TRAIN}).items():
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return folder


def _row_counts(store: Store) -> dict[str, int]:
    with store.read() as session:
        return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables_in_order()}


def _pairs_in(store: Store) -> set[tuple[str, str]]:
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text)
            .select_from(Example)
            .join(Query, Example.query_id == Query.id)
            .join(Passage, Example.positive_id == Passage.id)
        )
        return {(query, passage) for query, passage in rows}


def test_every_judged_positive_becomes_an_example_with_its_positive(store: Store, tmp_path: Path) -> None:
    report = import_beir(store, _beir_folder(tmp_path / "set"), licence="CC0")
    assert report.counts == {"documents": 4, "queries": 3, "judgments (train)": 5}
    assert (report.collection, report.num_faults) == ("set", 0)
    assert _pairs_in(store) == {("who", "One\nfirst"), ("who", "second"), ("who", "third"), ("what", "third")}
    with store.read() as session:
        positives = session.execute(
            select(Candidate.role, Candidate.origin).join(Example, Example.positive_id == Candidate.passage_id)
            .where(Candidate.example_id == Example.id)
        ).all()  # fmt: skip
        assert [tuple(row) for row in positives] == [("positive", "corpus")] * 4
        assert session.scalar(select(func.count()).select_from(Candidate)) == 4
        assert session.scalars(select(Qrel.relevance).order_by(Qrel.id)).all() == [1, 2, 1, 0, 1]
        assert session.scalars(select(Collection.licence)).all() == ["CC0"]
        # d3 and d4 have one text: two documents, one passage.
        assert session.scalar(select(func.count(func.distinct(Document.passage_id)))) == 3


def test_the_same_pair_in_two_splits_is_one_example_with_two_judgments(store: Store, tmp_path: Path) -> None:
    import_beir(store, _beir_folder(tmp_path, train=["q1\td1\t1"], dev=["q1\td1\t1", "q2\td2\t1"]))
    assert _pairs_in(store) == {("who", "One\nfirst"), ("what", "second")}
    with store.read() as session:
        rows = session.execute(select(Qrel.split, func.count()).group_by(Qrel.split).order_by(Qrel.split)).all()
        assert [tuple(row) for row in rows] == [("dev", 2), ("train", 1)]


def test_second_import_writes_nothing(store: Store, tmp_path: Path) -> None:
    folder = _beir_folder(tmp_path, corpus=[*CORPUS, "{broken"], train=[*TRAIN, "q9\td1\t1"])
    first = import_beir(store, folder)
    before = _row_counts(store)
    again = import_beir(store, folder)
    assert _row_counts(store) == before
    assert (again.num_new, again.num_faults) == (0, first.num_faults)
    assert first.num_new == 4 + 3 + 5
    with store.read() as session:
        (run,) = session.scalars(select(Run)).all()
        assert run.state == "finished"
        assert run.totals == {**first.counts, "faults": 2}


def test_bad_rows_are_named_kept_as_rejections_and_stop_no_good_one(store: Store, tmp_path: Path) -> None:
    folder = _beir_folder(
        tmp_path,
        corpus=[*CORPUS, "{broken", {"_id": "d1", "text": "another text"}, {"_id": "d5", "text": "fifth"}],
        queries=[*QUERIES, {"_id": "q1", "text": "another query"}, {"text": "no id"}],
        train=[*TRAIN, "q9\td1\t1", "q1\td9\t1", "q1\td1\t3", "q2\td5\t1"],
    )
    report = import_beir(store, folder)
    assert [(fault.where, fault.reason) for fault in report.faults] == [
        ("corpus.jsonl:5", "malformed_line"),
        ("corpus.jsonl:6", "other_text"),
        ("queries.jsonl:5", "missing_field"),
        ("queries.jsonl:4", "other_text"),
        ("qrels/train.tsv:7", "absent_query"),
        ("qrels/train.tsv:8", "absent_document"),
        ("qrels/train.tsv:9", "other_score"),
    ]
    assert "'q9' is not in queries" in str(report.faults[4])
    assert report.counts == {"documents": 5, "queries": 3, "judgments (train)": 6}
    assert ("what", "fifth") in _pairs_in(store)
    with store.read() as session:
        kept = session.execute(select(Rejection.subject, Rejection.reason).order_by(Rejection.id)).all()
    assert [tuple(row) for row in kept] == [(fault.where, fault.reason) for fault in report.faults]


def test_changed_text_under_a_known_id_is_named_and_the_stored_one_stays(store: Store, tmp_path: Path) -> None:
    import_beir(store, _beir_folder(tmp_path))
    changed = [{"_id": "d1", "title": "One", "text": "edited"}, *CORPUS[1:]]
    report = import_beir(store, _beir_folder(tmp_path, corpus=changed))
    assert [(fault.where, fault.reason) for fault in report.faults] == [("corpus.jsonl:1", "other_text")]
    with store.read() as session:
        passage = session.scalars(
            select(Passage.text).join(Document, Document.passage_id == Passage.id).where(Document.external_id == "d1")
        ).one()
    assert passage == "One\nfirst"


def test_changed_score_is_named_and_makes_no_example(store: Store, tmp_path: Path) -> None:
    import_beir(store, _beir_folder(tmp_path, train=["q1\td1\t0", "q2\td2\t1"]))
    report = import_beir(store, _beir_folder(tmp_path, train=["q1\td1\t1", "q2\td2\t1"]))
    assert [(fault.where, fault.reason) for fault in report.faults] == [("qrels/train.tsv:2", "other_score")]
    assert _pairs_in(store) == {("what", "second")}


def test_two_collections_share_texts_but_not_ids(store: Store, tmp_path: Path) -> None:
    folder = _beir_folder(tmp_path)
    import_beir(store, folder, name="one")
    report = import_beir(store, folder, name="two")
    assert (report.num_faults, report.num_new) == (0, 4 + 3 + 5)
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Document)) == 8
        assert session.scalar(select(func.count()).select_from(CollectionQuery)) == 6
        assert session.scalar(select(func.count()).select_from(Passage)) == 3


def test_import_across_chunks_reports_progress_and_keeps_every_row(store: Store, tmp_path: Path) -> None:
    corpus = [{"_id": str(number), "text": f"text {number}"} for number in range(2_501)]
    seen: list[int] = []
    report = import_beir(
        store, _beir_folder(tmp_path, corpus=corpus, train=["q1\t2500\t1"]), progress=lambda done, _: seen.append(done)
    )
    assert report.counts["documents"] == 2_501
    assert seen == [1_000, 2_000, 2_501, 2_504, 2_505]
    assert _pairs_in(store) == {("who", "text 2500")}


def test_folder_that_lacks_a_file_is_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    folder = _beir_folder(tmp_path)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(CurationError, match=r"queries\.jsonl"):
        import_beir(store, folder)
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "who"}\n')
    (folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(CurationError, match="judgments"):
        import_beir(store, folder)
    assert set(_row_counts(store).values()) == {0}
