"""A user's own documents as a collection: text, Markdown and PDF files, cut into passages at their paragraphs.

A passage is named by its file and its content, so importing a changed folder again adds what is new and leaves the rest
as it is. A file that cannot be read is a fault with its reason and never stops the others.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.importing.beir import Fault
from curation.importing.rows import ImportReport, Progress, chunked, close_run, open_collection, record_faults
from db.digest import digest_text
from db.insert import insert_missing
from db.store import Store
from db.tables.texts import Document
from db.texts import put_passages

SUFFIXES = (".txt", ".text", ".md", ".markdown", ".pdf")
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$")
# A passage of a few words answers nothing by itself.
_MIN_WORDS = 15


def import_documents(
    store: Store,
    folder: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    max_words: int = 200,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Import the text, Markdown and PDF files of a folder and its subfolders as passages of at most `max_words` words.

    Raises:
        CurationError: No such folder, or none of its files has a known suffix.
    """
    if not folder.is_dir():
        raise CurationError(f"{folder}: no such folder")
    found = sorted(folder.rglob("*"))
    files = [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise CurationError(f"{folder}: no {', '.join(SUFFIXES)} files in it")
    name = name or folder.resolve().name
    report = ImportReport(name, counts={"files": 0, "documents": 0})
    recipe = {"importer": "documents", "collection": name, "licence": licence, "max_words": max_words}
    run_id, collection_id = open_collection(store, recipe, kind="documents")
    with store.write() as session:
        record_faults(session, run_id, list(_bad_links(folder, found)), report)
    for done, file in enumerate(files):
        progress(done, len(files))
        where = file.relative_to(folder).as_posix()
        text = _read(file, where)
        with store.write() as session:
            if isinstance(text, Fault):
                record_faults(session, run_id, [text], report)
                continue
            passages = list(dict.fromkeys(cut(text, max_words)))
            if not passages:
                detail = f"no part of it has {_MIN_WORDS} words, and fewer answer nothing by themselves"
                record_faults(session, run_id, [Fault(where, "too_short", detail)], report)
                continue
            report.counts["files"] += 1
            report.counts["documents"] += len(passages)
            for chunk in chunked(passages):
                report.num_new += _put(session, collection_id, where, chunk, licence)
    progress(len(files), len(files))
    close_run(store, run_id, report)
    return report


def _bad_links(folder: Path, found: Iterable[Path]) -> Iterator[Fault]:
    """Links that bring nothing: to what is not there, and to folders, which are not followed as they may lead round."""
    for path in found:
        if path.is_symlink():
            where = path.relative_to(folder).as_posix()
            if path.is_dir():
                yield Fault(where, "link_to_folder", "links to folders are not followed: import that folder too")
            elif not path.exists():
                yield Fault(where, "dangling_link", "what it links to is not there")


def _put(session: Session, collection_id: int, where: str, passages: list[str], licence: str | None) -> int:
    keys = put_passages(session, passages)
    rows = [
        {
            "collection_id": collection_id,
            "external_id": f"{where[-450:]}#{digest_text(text)[:12]}",
            "passage_id": key,
            "title": "",
            "licence": licence,
        }
        for text, key in zip(passages, keys, strict=True)
    ]
    # Another file may hold the same words; the passage is searched once.
    known = set(
        session.scalars(
            select(Document.passage_id).where(Document.collection_id == collection_id, Document.passage_id.in_(keys))
        )
    )
    return insert_missing(session, Document, [row for row in rows if row["passage_id"] not in known])


def _read(file: Path, where: str) -> str | Fault:
    try:
        text = _read_pdf(file) if file.suffix.lower() == ".pdf" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return Fault(where, "not_utf8", f"byte {error.start} is not UTF-8 text")
    except OSError as error:
        return Fault(where, "unreadable", str(error.strerror or error))
    except _PdfError as error:
        return Fault(where, "unreadable_pdf", str(error))
    if "\x00" in text:
        return Fault(where, "control_character", "the text holds a NUL character")
    return text if text.strip() else Fault(where, "empty", "there is no text in it; a scanned PDF needs OCR first")


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What pypdf logs meanwhile, which would otherwise go to the terminal."""
    heard: list[str] = []
    logger, handler = logging.getLogger("pypdf"), logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _PdfError(Exception):
    """What pypdf says of a file that it cannot read."""


def _read_pdf(file: Path) -> str:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    with _heard() as heard:
        try:
            reader = PdfReader(file)
            if reader.is_encrypted:
                raise _PdfError("it is encrypted")
            return "\n\n".join(page.extract_text() for page in reader.pages)
        # pypdf meets broken files with all kinds of built-in errors beside its own.
        except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            said = f"; {heard[0][:200]}" if heard else ""
            raise _PdfError(f"{type(error).__name__}: {str(error)[:200]}{said}") from error


def cut(text: str, max_words: int) -> Iterator[str]:
    """Passages of at most `max_words` words, cut between paragraphs, else between sentences, else between words.

    Small neighbouring paragraphs are put together; a Markdown heading stands before every passage under it. Passages
    of fewer than 15 words are left out.
    """
    heading, gathered = "", list[str]()
    for block in _PARAGRAPH.split(text):
        for part in _parts(block):
            found = _HEADING.match(part)
            if found is not None or _num_words([*gathered, part]) > max_words:
                yield from _passage(heading, gathered)
                gathered = []
            if found is not None:
                heading = found.group(1)
                continue
            *whole, last = _pieces(part, max_words) or [""]
            for piece in whole:
                yield from _passage(heading, [piece])
            gathered += [last] if last else []
    yield from _passage(heading, gathered)


def _parts(block: str) -> Iterator[str]:
    """A block's text with its headings apart, each on one line."""
    lines: list[str] = []
    for line in block.splitlines():
        if _HEADING.match(line.strip()):
            yield " ".join(" ".join(lines).split())
            yield line.strip()
            lines = []
        else:
            lines.append(line)
    yield " ".join(" ".join(lines).split())


def _pieces(part: str, max_words: int) -> list[str]:
    """The text in pieces of at most `max_words` words, between sentences where that is possible."""
    pieces: list[list[str]] = [[]]
    for sentence in _SENTENCE.split(part):
        words = sentence.split()
        if len(pieces[-1]) + len(words) > max_words and pieces[-1]:
            pieces.append([])
        pieces[-1] += words
        while len(pieces[-1]) > max_words:
            pieces.append(pieces[-1][max_words:])
            pieces[-2] = pieces[-2][:max_words]
    return [" ".join(words) for words in pieces if words]


def _passage(heading: str, parts: list[str]) -> Iterator[str]:
    text = "\n".join(part for part in parts if part)
    if _num_words(parts) >= _MIN_WORDS:
        yield f"{heading}\n{text}" if heading else text


def _num_words(parts: list[str]) -> int:
    return sum(len(part.split()) for part in parts)
