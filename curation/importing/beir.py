"""Reading a folder in the BEIR layout: corpus.jsonl, queries.jsonl (or .jsonl.gz) and qrels/SPLIT.tsv.

Rows stream, so memory does not grow with the corpus. A bad row is a `Fault` that names file, line and field; it never
stops the good ones. What is missing altogether is an error.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson

from curation.errors import CurationError

_QRELS_HEADER = ["query-id", "corpus-id", "score"]
_MAX_ID = 500
_MAX_SCORE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that was left out: where it stands, which reason, and what to do."""

    where: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


@dataclass(frozen=True, slots=True)
class BeirDocument:
    external_id: str
    title: str
    text: str
    where: str

    @property
    def passage(self) -> str:
        """Title and text as one passage, the title on the first line."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class BeirQuery:
    external_id: str
    text: str
    where: str


@dataclass(frozen=True, slots=True)
class BeirQrel:
    query_id: str
    document_id: str
    relevance: int
    where: str


def read_corpus(folder: Path) -> Iterator[BeirDocument | Fault]:
    """Documents of the folder's corpus."""
    for where, row in _json_rows(_required(folder, "corpus")):
        if isinstance(row, Fault):
            yield row
            continue
        texts = _texts(row, where, {"_id": True, "title": False, "text": False})
        if isinstance(texts, Fault):
            yield texts
        elif not (texts["title"].strip() or texts["text"].strip()):
            yield Fault(where, "empty_text", "field 'text' is empty: give the document a text, or remove it")
        else:
            yield BeirDocument(texts["_id"], texts["title"], texts["text"], where)


def read_queries(folder: Path) -> Iterator[BeirQuery | Fault]:
    """Queries of the folder."""
    for where, row in _json_rows(_required(folder, "queries")):
        if isinstance(row, Fault):
            yield row
            continue
        texts = _texts(row, where, {"_id": True, "text": True})
        yield texts if isinstance(texts, Fault) else BeirQuery(texts["_id"], texts["text"], where)


def splits(folder: Path) -> list[str]:
    """Names of the splits that have judgments, sorted."""
    return sorted(path.name.removesuffix(".tsv") for path in (folder / "qrels").glob("*.tsv"))


def read_qrels(folder: Path, split: str) -> Iterator[BeirQrel | Fault]:
    """Judgments of a split; whether the ids exist is for the caller to see."""
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        raise CurationError(f"{path}: no such file; splits with judgments here: {', '.join(splits(folder)) or 'none'}")
    lines = _lines(path)
    header = next(lines, "")
    if isinstance(header, Fault) or _fields(header) != _QRELS_HEADER:
        shown = header.detail if isinstance(header, Fault) else _fields(header)
        raise CurationError(f"{path}:1: the header must be {_QRELS_HEADER} with tabs between, got {shown}")
    for number, line in enumerate(lines, start=2):
        where = f"qrels/{path.name}:{number}"
        if isinstance(line, Fault):
            yield Fault(where, line.reason, line.detail)
        elif line.strip():
            yield _qrel(_fields(line), where)


def _fields(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _qrel(fields: list[str], where: str) -> BeirQrel | Fault:
    if len(fields) != 3:
        return Fault(where, "malformed_line", f"needs 3 fields with tabs between, has {len(fields)}")
    query, document, score = fields
    for name, value in zip(_QRELS_HEADER, (query, document), strict=False):
        if not value:
            return Fault(where, "missing_field", f"field {name!r} is empty")
        if reason := _unusable_id(value):
            return Fault(where, "wrong_type", f"field {name!r} {reason}")
    if not (score.isascii() and score.isdigit() and len(score) <= 10 and int(score) <= _MAX_SCORE):
        return Fault(where, "wrong_type", f"field 'score' = {score!r:.60} is not a whole number from 0 to {_MAX_SCORE}")
    return BeirQrel(query, document, int(score), where)


def _unusable_id(value: str) -> str | None:
    """Why the store cannot keep such an id, or None."""
    if "\x00" in value:
        return "holds a NUL character, which no database can store"
    return f"has {len(value)} characters, more than {_MAX_ID}" if len(value) > _MAX_ID else None


def _required(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise CurationError(f"{folder}: no such folder; give a folder with corpus.jsonl, queries.jsonl and qrels/")
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if path.is_file():
            return path
    raise CurationError(f"{folder / name}.jsonl: no such file (nor .jsonl.gz); a BEIR folder needs it")


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed when its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[str | Fault]:
    try:
        with open_bytes(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    yield Fault(f"{path.name}:{number}", "not_utf8", f"byte {error.start} of the line is not UTF-8")
    except (OSError, EOFError, zlib.error) as error:
        raise CurationError(f"{path}: cannot be read to its end: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, object] | Fault]]:
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path.name}:{number}"
        if isinstance(line, Fault):
            yield where, line
        elif line.strip():
            yield where, _json_object(line, where)


def _json_object(line: str, where: str) -> dict[str, object] | Fault:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Fault(where, "malformed_line", f"not JSON: {error}")
    if not isinstance(row, dict):
        return Fault(where, "malformed_line", f"needs a JSON object, got {type(row).__name__}")
    return row


def _texts(row: dict[str, object], where: str, needed: dict[str, bool]) -> dict[str, str] | Fault:
    texts = {}
    for name, is_needed in needed.items():
        value = row.get(name, "")
        if value is None and not is_needed:
            value = ""
        if name == "_id" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            return Fault(where, "wrong_type", f"field {name!r} = {value!r:.60} is not a string")
        if name == "_id" and (reason := _unusable_id(value)):
            return Fault(where, "wrong_type", f"field {name!r} {reason}")
        if "\x00" in value:
            return Fault(where, "wrong_type", f"field {name!r} holds a NUL character, which no database can store")
        if is_needed and not value.strip():
            state = "is empty" if name in row else "is missing"
            return Fault(where, "missing_field", f"field {name!r} {state}")
        texts[name] = value
    return texts
