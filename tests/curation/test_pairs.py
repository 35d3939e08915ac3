"""Importing files of pairs: every format, several positives, existing negatives, and rows that do not fit."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from curation.errors import CurationError
from curation.importing.pairs import import_pairs
from db.store import Store
from db.tables.examples import Candidate, Example, Sourcing
from db.tables.ledger import Rejection
from db.tables.schema import tables_in_order
from db.tables.texts import Collection, Document, Passage, Qrel, Query

ROWS = [
    {"query": "who", "positive": ["a", "b"], "negatives": ["x", "y"]},
    {"query": "what", "positive": ["c"], "negatives": []},
    {"query": "why", "positive": ["d", "a", "e"], "negatives": ["x", "", "x"]},
]
EXPECTED = {
    ("who", "a", "a", "positive"), ("who", "a", "x", "negative"), ("who", "a", "y", "negative"),
    ("who", "b", "b", "positive"), ("who", "b", "x", "negative"), ("who", "b", "y", "negative"),
    ("what", "c", "c", "positive"),
    ("why", "d", "d", "positive"), ("why", "d", "x", "negative"),
    ("why", "a", "a", "positive"), ("why", "a", "x", "negative"),
    ("why", "e", "e", "positive"), ("why", "e", "x", "negative"),
}  # fmt: skip


def _stored_candidates(store: Store) -> set[tuple[str, str, str, str]]:
    with store.read() as session:
        texts = {key: text for key, text in session.execute(select(Passage.id, Passage.text))}
        rows = session.execute(
            select(Query.text, Example.positive_id, Candidate.passage_id, Candidate.role)
            .select_from(Candidate)
            .join(Example, Candidate.example_id == Example.id)
            .join(Query, Example.query_id == Query.id)
        )
        return {(query, texts[positive], texts[passage], role) for query, positive, passage, role in rows}


def _num_rows(store: Store) -> dict[str, int]:
    with store.read() as session:
        return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables_in_order()}


def _jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def _write(folder: Path, kind: str) -> Path:
    file = folder / f"pairs.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if kind == "jsonl":
        file.write_bytes(b"\xef\xbb\xbf" + lines)
    elif kind == "jsonl.gz":
        file.write_bytes(gzip.compress(lines))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_list_columns_become_examples_and_candidates(store: Store, tmp_path: Path, kind: str) -> None:
    report = import_pairs(store, _write(tmp_path, kind), negatives=["negatives"], licence="CC0")
    assert (report.collection, report.num_faults) == ("pairs", 0)
    assert report.counts == {"rows": 3, "positives": 6, "negatives": 3}
    assert _stored_candidates(store) == EXPECTED
    with store.read() as session:
        assert session.scalars(select(Collection.kind)).all() == ["pairs"]
        kinds = select(Candidate.origin, Candidate.grade, Candidate.rank).distinct()
        assert [tuple(row) for row in session.execute(kinds)] == [("corpus", None, None)]
        assert session.scalar(select(func.count()).select_from(Sourcing)) == len(EXPECTED)


def test_csv_with_mapped_columns_and_several_of_a_kind(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('q,good,better,bad_1,bad_2\nwho,a,b,x,"y\nz"\nwhat,c,,,\n', encoding="utf-8-sig")
    report = import_pairs(
        store, file, query="q", positives=["good", "better"], negatives=["bad_1", "bad_2"], name="mine"
    )
    assert (report.collection, report.counts) == ("mine", {"rows": 2, "positives": 3, "negatives": 2})
    assert ("who", "b", "y\nz", "negative") in _stored_candidates(store)
    assert len(_stored_candidates(store)) == 7


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_second_import_of_pairs_writes_nothing(store: Store, tmp_path: Path, kind: str) -> None:
    file = _write(tmp_path, kind)
    assert import_pairs(store, file, negatives=["negatives"]).num_new > 0
    before = _num_rows(store)
    assert import_pairs(store, file, negatives=["negatives"]).num_new == 0
    assert _num_rows(store) == before


def test_pairs_are_a_collection_with_documents_and_judgments(store: Store, tmp_path: Path) -> None:
    import_pairs(store, _write(tmp_path, "jsonl"), negatives=["negatives"], split="dev")
    with store.read() as session:
        documents = session.scalars(
            select(Passage.text).join(Document, Document.passage_id == Passage.id).order_by(Passage.text)
        ).all()
        assert documents == ["a", "b", "c", "d", "e", "x", "y"]
        judgments = session.execute(
            select(Qrel.split, Qrel.relevance, func.count()).group_by(Qrel.split, Qrel.relevance)
        )
        assert [tuple(row) for row in judgments] == [("dev", 1, 6)]


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        ("{oops", "malformed_line", "line 2 is not JSON"),
        ("[1]", "malformed_line", "line 2 needs a JSON object"),
        ({"positive": "p"}, "missing_field", "column 'query'"),
        ({"query": " ", "positive": "p"}, "missing_field", "column 'query'"),
        ({"query": 5, "positive": "p"}, "missing_field", "column 'query'"),
        ({"query": "q"}, "missing_field", "column 'positive'"),
        ({"query": "q", "positive": ["", " "]}, "missing_field", "column 'positive'"),
        ({"query": "q", "positive": 3}, "wrong_type", "column 'positive'"),
        ({"query": "q", "positive": "p", "negative": ["x", 3]}, "wrong_type", "column 'negative'"),
        ({"query": "q", "positive": "p", "negative": "a\x00b"}, "wrong_type", "column 'negative'"),
        ({"query": "q", "positive": "p r", "negative": ["x", "p  r"]}, "negative_is_positive", "'p  r'"),
    ],
)
def test_bad_row_of_pairs_is_named_with_file_row_and_column(
    store: Store, tmp_path: Path, row: Any, reason: str, named: str
) -> None:
    file = _jsonl(tmp_path / "pairs.jsonl", [{"query": "a", "positive": "b"}, row, {"query": "c", "positive": "d"}])
    report = import_pairs(store, file, negatives=["negative"])
    (fault,) = report.faults
    assert (fault.where, fault.reason) == ("pairs.jsonl, row 2", reason)
    assert named in fault.detail
    assert report.counts["rows"] == 2
    with store.read() as session:
        assert session.scalars(select(Rejection.reason)).all() == [reason]


def test_csv_rows_that_do_not_fit_are_named_and_the_others_kept(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes(b"query,positive\na,b\nshort\nlong,x,y\nwho,\xff\nc,d\n")
    report = import_pairs(store, file)
    assert [(fault.where, fault.reason) for fault in report.faults] == [
        ("pairs.csv, row 2", "malformed_line"),
        ("pairs.csv, row 3", "malformed_line"),
        ("pairs.csv, row 4", "not_utf8"),
    ]
    assert "column 'positive'" in report.faults[2].detail
    assert report.counts["rows"] == 2


@pytest.mark.parametrize("is_negative_first", [False, True])
@pytest.mark.parametrize("num_between", [0, 600])
def test_text_with_two_roles_for_one_query_is_named_in_any_order_and_distance(
    store: Store, tmp_path: Path, is_negative_first: bool, num_between: int
) -> None:
    clashing = [{"query": "q", "positive": "a"}, {"query": "q", "positive": "b", "negative": "a"}]
    first, second = reversed(clashing) if is_negative_first else clashing
    between = [{"query": f"q{number}", "positive": "a"} for number in range(num_between)]
    file = _jsonl(tmp_path / "pairs.jsonl", [first, *between, second])
    for _ in range(2):  # a second import says the same
        report = import_pairs(store, file, negatives=["negative"])
        assert [(fault.where, fault.reason) for fault in report.faults] == [
            (f"pairs.jsonl, row {2 + num_between}", "other_role")
        ]
    roles = {role for query, _, passage, role in _stored_candidates(store) if (query, passage) == ("q", "a")}
    assert roles == {"negative" if is_negative_first else "positive"}


def test_file_or_column_that_is_not_there_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match=r"absent\.csv: no such file"):
        import_pairs(store, tmp_path / "absent.csv")
    file = tmp_path / "pairs.csv"
    file.write_text("question,positive\na,b\n")
    with pytest.raises(CurationError, match="no column 'query'; it has 'question', 'positive'"):
        import_pairs(store, file)
    pq.write_table(pa.table({"query": ["a"]}), tmp_path / "pairs.parquet")
    with pytest.raises(CurationError, match="no column 'positive'"):
        import_pairs(store, tmp_path / "pairs.parquet")
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(CurationError, match="not a readable Parquet file"):
        import_pairs(store, tmp_path / "bad.parquet")
    (tmp_path / "pairs.xlsx").write_text("x")
    with pytest.raises(CurationError, match="'xlsx' file"):
        import_pairs(store, tmp_path / "pairs.xlsx")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(CurationError, match="no rows"):
        import_pairs(store, tmp_path / "empty.jsonl")
    assert set(_num_rows(store).values()) == {0}
