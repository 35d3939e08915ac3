"""Importing: good rows come in once, bad ones are named with file, line and field, and never stop the good ones."""

import gzip
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from curation.beir import BeirDocument, Fault, read_corpus, read_queries
from curation.errors import CurationError
from curation.importing import import_beir
from curation.pairs import import_pairs
from db.store import Store
from db.tables.examples import Candidate, Example, Sourcing
from db.tables.ledger import Rejection
from db.tables.schema import METADATA
from db.tables.texts import Document, Passage

CORPUS = [
    b'{"_id": "1", "title": "T", "text": "one"}',
    b'{"_id": 2, "title": "", "text": "two"}',
    b'{"_id": "3", "text": "one more", "extra": 1}',
]
QUERIES = [b'{"_id": "a", "text": "query a"}', b'{"_id": "b", "text": "query b"}']
QRELS = [b"query-id\tcorpus-id\tscore", b"a\t1\t1", b"a\t2\t2", b"b\t3\t1", b"b\t1\t0"]


def write(folder: Path, corpus: list[bytes], queries: list[bytes], qrels: list[bytes]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wb") as file:
        file.write(b"\n".join(corpus) + b"\n")
    (folder / "queries.jsonl").write_bytes(b"\n".join(queries))
    (folder / "qrels" / "train.tsv").write_bytes(b"\n".join(qrels) + b"\n")
    return folder


def counts(store: Store) -> dict[str, int]:
    with store.read() as session:
        return {name: session.scalar(select(func.count()).select_from(t)) or 0 for name, t in METADATA.tables.items()}


def test_beir_folder_comes_in_once(store: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", CORPUS, QUERIES, QRELS)
    report = import_beir(store, folder, licence="cc0-1.0")
    assert report.counts == {"documents": 3, "queries": 2, "judgments (train)": 4}
    once = counts(store)
    assert (once["qrel"], once["example"], once["candidate"]) == (4, 3, 3)
    with store.read() as session:
        assert "T\none" in session.scalars(select(Passage.text)).all()
        assert set(session.scalars(select(Document.licence))) == {"cc0-1.0"}
        assert set(session.scalars(select(Candidate.role))) == {"positive"}
    again = import_beir(store, folder, licence="cc0-1.0")
    assert again.num_new == 0 and counts(store) == once


BAD = [
    (0, b"{half", "malformed_line"),
    (0, b'["a list"]', "malformed_line"),
    (0, b'{"title": "T", "text": "no id"}', "missing_field"),
    (0, b'{"_id": "9", "text": 5}', "wrong_type"),
    (0, b'{"_id": "9", "title": "", "text": " "}', "empty_text"),
    (0, b'{"_id": "9", "text": "nul \\u0000"}', "wrong_type"),
    (0, b'{"_id": "9", "text": "\xff"}', "not_utf8"),
    (0, b'{"_id": "1", "text": "another text"}', "other_text"),
    (1, b'{"_id": "z"}', "missing_field"),
    (1, b'{"_id": "a", "text": "another query"}', "other_text"),
    (2, b"a\tnowhere\t1", "absent_document"),
    (2, b"nobody\t1\t1", "absent_query"),
    (2, b"a\t1\t-1", "wrong_type"),
    (2, b"a\t1\t0.5", "wrong_type"),
    (2, b"a 1 1", "malformed_line"),
]


@pytest.mark.parametrize(("part", "line", "reason"), BAD)
def test_bad_row_is_named_and_the_good_ones_stay(
    store: Store, tmp_path: Path, part: int, line: bytes, reason: str
) -> None:
    parts = [list(CORPUS), list(QUERIES), list(QRELS)]
    parts[part].append(line)
    report = import_beir(store, write(tmp_path / "toy", *parts))
    assert [fault.reason for fault in report.faults] == [reason]
    name = ["corpus.jsonl.gz", "queries.jsonl", "qrels/train.tsv"][part]
    assert report.faults[0].where == f"{name}:{len(parts[part])}"
    assert counts(store)["example"] == 3
    with store.read() as session:
        assert session.scalars(select(Rejection.reason)).all() == [reason]


def test_missing_files_are_told_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="no such folder"):
        import_beir(store, tmp_path / "none")
    folder = write(tmp_path / "toy", CORPUS, QUERIES, QRELS)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(CurationError, match=r"queries\.jsonl"):
        import_beir(store, folder)
    assert counts(store)["collection"] == 0


def test_headerless_judgments_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="header"):
        import_beir(store, write(tmp_path / "toy", CORPUS, QUERIES, QRELS[1:]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(lines=st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_give_rows_or_faults(tmp_path: Path, lines: list[bytes]) -> None:
    for name, read in (("corpus", read_corpus), ("queries", read_queries)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines))
        for row in read(tmp_path):
            assert isinstance(row, BeirDocument | Fault) or row.text


ROWS = [
    {"q": "one?", "pos": ["p1", "p2"], "n1": "bad 1", "n2": None},
    {"q": "two?", "pos": ["p3"], "n1": "bad 2", "n2": "bad 1"},
    {"q": "three?", "pos": [], "n1": "", "n2": ""},
]


def write_pairs(folder: Path, kind: str) -> Path:
    path = folder / f"pairs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_bytes(b"\n".join(orjson.dumps(row) for row in ROWS))
    else:
        lines = ["q,pos,pos2,n1,n2", '"one?",p1,p2,bad 1,', "two?,p3,,bad 2,bad 1", "three?,,,,"]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_pairs_of_every_kind_give_the_same_store(store: Store, tmp_path: Path, kind: str) -> None:
    file = write_pairs(tmp_path, kind)
    columns = {"query": "q", "positives": ["pos", "pos2"] if kind == "csv" else ["pos"], "negatives": ["n1", "n2"]}
    report = import_pairs(store, file, **columns)  # type: ignore[arg-type]
    assert report.counts == {"rows": 2, "positives": 3, "negatives": 3}
    assert [(fault.where, fault.reason) for fault in report.faults] == [(f"{file.name}, row 3", "missing_field")]
    with store.read() as session:
        rows = session.execute(
            select(Candidate.role, func.count()).group_by(Candidate.role).order_by(Candidate.role)
        ).all()
        assert [tuple(row) for row in rows] == [("negative", 4), ("positive", 3)]
        assert session.scalar(select(func.count()).select_from(Example)) == 3
        assert session.scalar(select(func.count()).select_from(Sourcing)) == 7
    again = import_pairs(store, file, **columns)  # type: ignore[arg-type]
    assert again.num_new == 0


def test_pairs_faults_name_row_and_column(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b'{"query": 1, "positive": "p"}\n{"query": "q", "positive": {"a": 1}}\n{"query": "q", "positive": "p"}'
    )
    report = import_pairs(store, path)
    assert [str(fault) for fault in report.faults] == [
        "pairs.jsonl, row 1: column 'query' has no query text",
        "pairs.jsonl, row 2: column 'positive' = {'a': 1} is not a text or list of texts",
    ]
    assert report.counts["rows"] == 1


def test_negative_that_equals_the_positive_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"query": "q", "positive": "same  text", "n": "same text"}')
    report = import_pairs(store, path, negatives=["n"])
    assert [fault.reason for fault in report.faults] == ["negative_is_positive"]


@pytest.mark.parametrize(("name", "told"), [("none.csv", "no such file"), ("a.xlsx", "xlsx"), ("a.csv", "no column")])
def test_unusable_files_are_told(store: Store, tmp_path: Path, name: str, told: str) -> None:
    if name != "none.csv":
        (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(CurationError, match=told):
        import_pairs(store, tmp_path / name)
