"""Reading BEIR folders: good rows come through, bad ones are named, nothing raises on one bad row."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.errors import CurationError
from curation.importing.beir import (
    BeirDocument,
    BeirQrel,
    BeirQuery,
    Fault,
    read_corpus,
    read_qrels,
    read_queries,
    splits,
)

HEADER = "query-id\tcorpus-id\tscore\n"


def _faults(rows: Iterable[object]) -> list[tuple[str, str]]:
    return [(row.where, row.reason) for row in rows if isinstance(row, Fault)]


def _qrels_folder(folder: Path, content: str | bytes, split: str = "train") -> Path:
    (folder / "qrels").mkdir()
    data = content.encode() if isinstance(content, str) else content
    (folder / "qrels" / f"{split}.tsv").write_bytes(data)
    return folder


def test_documents_come_with_title_and_text_as_one_passage(tmp_path: Path) -> None:
    lines = [
        '{"_id": "a", "title": "T", "text": "x"}',
        '{"_id": 7, "text": "y"}',
        '{"_id": "c", "title": null, "text": "z"}',
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    documents = [row for row in read_corpus(tmp_path) if isinstance(row, BeirDocument)]
    assert [(d.external_id, d.passage) for d in documents] == [("a", "T\nx"), ("7", "y"), ("c", "z")]


def test_compressed_files_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"_id": "1", "text": "\xc3\xa9"}\r\n\n'))
    assert list(read_queries(tmp_path)) == [BeirQuery("1", "é", "queries.jsonl.gz:1")]


@pytest.mark.parametrize(
    ("line", "reason", "named"),
    [
        (b"{oops", "malformed_line", "JSON"),
        (b"[1]", "malformed_line", "list"),
        (b'{"text": "x"}', "missing_field", "'_id' is missing"),
        (b'{"_id": " ", "text": "x"}', "missing_field", "'_id' is empty"),
        (b'{"_id": true, "text": "x"}', "wrong_type", "'_id'"),
        (b'{"_id": "1", "text": 5}', "wrong_type", "'text'"),
        (b'{"_id": "1", "title": "T", "text": ["x"]}', "wrong_type", "'text'"),
        (b'{"_id": "1", "title": "", "text": "  "}', "empty_text", "'text'"),
        (b'{"_id": "1", "text": "a\\u0000b"}', "wrong_type", "NUL"),
        (b'{"_id": "1", "text": "\\ud800"}', "malformed_line", "JSON"),
        (b'{"_id": "1", "text": "\xff"}', "not_utf8", "UTF-8"),
        (b'{"_id": "' + b"i" * 501 + b'", "text": "x"}', "wrong_type", "501 characters"),
    ],
)
def test_bad_line_is_named_and_the_next_one_read(tmp_path: Path, line: bytes, reason: str, named: str) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "0", "text": "a"}\n' + line + b'\n{"_id": "9", "text": "b"}\n')
    first, fault, last = read_corpus(tmp_path)
    assert isinstance(first, BeirDocument)
    assert isinstance(last, BeirDocument)
    assert isinstance(fault, Fault)
    assert (fault.where, fault.reason) == ("corpus.jsonl:2", reason)
    assert named in str(fault)


def test_judgments_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    rows = [
        "1\td\t2",
        "1\td",
        "1 d 1",
        "\td\t1",
        "1\td\t-1",
        "1\td\t1.5",
        "1\td\tx",
        "1\td\t99999999999",
        "1\ta\x00\t1",
        "",
        "2\te\t0\r",
    ]
    folder = _qrels_folder(tmp_path, HEADER + "\n".join(rows) + "\n")
    found = list(read_qrels(folder, "train"))
    assert [row for row in found if isinstance(row, BeirQrel)] == [
        BeirQrel("1", "d", 2, "qrels/train.tsv:2"),
        BeirQrel("2", "e", 0, "qrels/train.tsv:12"),
    ]
    assert _faults(found) == [
        ("qrels/train.tsv:3", "malformed_line"),
        ("qrels/train.tsv:4", "malformed_line"),
        ("qrels/train.tsv:5", "missing_field"),
        ("qrels/train.tsv:6", "wrong_type"),
        ("qrels/train.tsv:7", "wrong_type"),
        ("qrels/train.tsv:8", "wrong_type"),
        ("qrels/train.tsv:9", "wrong_type"),
        ("qrels/train.tsv:10", "wrong_type"),
    ]


def test_judgment_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder = _qrels_folder(tmp_path, HEADER.encode() + b"\xff\td\t1\n1\td\t1\n")
    found = list(read_qrels(folder, "train"))
    assert _faults(found) == [("qrels/train.tsv:2", "not_utf8")]
    assert isinstance(found[1], BeirQrel)


@pytest.mark.parametrize("content", ["1\td\t1\n", "", "1 0 d 1\n", b"\xff\n"])
def test_judgments_without_the_header_are_refused(tmp_path: Path, content: str | bytes) -> None:
    folder = _qrels_folder(tmp_path, content)
    with pytest.raises(CurationError, match=r"train\.tsv:1: the header must be"):
        list(read_qrels(folder, "train"))


def test_missing_files_are_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CurationError, match=r"corpus\.jsonl: no such file"):
        list(read_corpus(tmp_path))
    with pytest.raises(CurationError, match="no such folder"):
        list(read_queries(tmp_path / "absent"))
    _qrels_folder(tmp_path, HEADER, split="dev")
    with pytest.raises(CurationError, match="splits with judgments here: dev"):
        list(read_qrels(tmp_path, "train"))
    assert splits(tmp_path) == ["dev"]


@pytest.mark.parametrize("cut", [30, -4])
def test_damaged_compressed_file_is_an_error_with_its_name(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(b'{"_id": "1", "text": "a long enough text"}\n' * 50)
    broken = whole[:cut] + b"\x00" * 40 if cut > 0 else whole[:cut]
    (tmp_path / "corpus.jsonl.gz").write_bytes(broken)
    with pytest.raises(CurationError, match=r"corpus\.jsonl\.gz: cannot be read to its end"):
        list(read_corpus(tmp_path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(lines=st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_give_rows_or_faults(tmp_path: Path, lines: list[bytes]) -> None:
    for name, read in (("corpus", read_corpus), ("queries", read_queries)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines))
        for row in read(tmp_path):
            assert isinstance(row, BeirDocument | Fault) or row.text
