"""The queries and the corpus of a release: each text once, in the order of digests."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from curation.release.files import CORPUS, QUERIES
from curation.release.reading import among, read
from db.tables.texts import Document, Passage, Query

_PAGE = 2_000


def query_tables(session: Session, keys: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Rows of the configuration `queries`."""
    for page in _by_digest(session, Query, keys):
        rows = _texts(session, Query, page)
        yield pa.Table.from_arrays([pa.array([row[at] for row in rows]) for at in (0, 1)], schema=QUERIES)


def corpus_tables(session: Session, keys: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Rows of the configuration `corpus`. A passage that begins with its title is published in two columns."""
    # The smallest title under which a collection holds the passage: one, whatever the order of imports.
    titled = select(Document.passage_id, func.min(Document.title)).where(among(session, Document.passage_id))
    smallest = titled.group_by(Document.passage_id)
    for page in _by_digest(session, Passage, keys):
        titles = {key: title for key, title in read(session, smallest, page) if title}
        rows = _texts(session, Passage, page)
        of_row = [titles.get(key, "") for key in page]
        texts = [
            text.removeprefix(title + "\n") if title else text for (_, text), title in zip(rows, of_row, strict=True)
        ]
        columns = ([digest for digest, _ in rows], of_row, texts)
        yield pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=CORPUS)


def _by_digest(session: Session, table: type[Query] | type[Passage], keys: NDArray[np.int64]) -> Iterator[list[int]]:
    digests = np.empty(len(keys), dtype="S64")
    for start in range(0, len(keys), _PAGE):
        page = keys[start : start + _PAGE].tolist()
        rows = read(session, select(table.id, table.digest).where(among(session, table.id)), page)
        of_key = {key: digest for key, digest in rows}
        digests[start : start + len(page)] = [of_key[key] for key in page]
    ordered = keys[np.argsort(digests, kind="stable")]
    for start in range(0, len(ordered), _PAGE):
        yield ordered[start : start + _PAGE].tolist()


def _texts(session: Session, table: type[Query] | type[Passage], page: list[int]) -> list[tuple[str, str]]:
    """(digest, text) of these keys, in order."""
    rows = read(session, select(table.id, table.digest, table.text).where(among(session, table.id)), page)
    of_key = {key: (digest, text) for key, digest, text in rows}
    return [of_key[key] for key in page]
