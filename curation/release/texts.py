"""The queries and the corpus of a release: each text once, in the order of digests."""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from curation.release.files import CORPUS, QUERIES
from curation.release.page import table
from db.reading import among, read
from db.tables.texts import Document, Passage, Query

_PAGE = 2_000


class Texts:
    """Texts that went in, as ids and digests: 40 bytes each time."""

    def __init__(self) -> None:
        self._ids, self._digests = array("q"), bytearray()

    def add(self, ids: NDArray[np.int64], digests: Sequence[str]) -> None:
        self._ids.frombytes(np.ascontiguousarray(ids, dtype=np.int64).tobytes())
        self._digests += bytes.fromhex("".join(digests))

    def pages(self) -> Iterator[list[int]]:
        """Ids, each once, in the order of digests."""
        ids, first = np.unique(np.frombuffer(self._ids, dtype=np.int64), return_index=True)
        ordered = ids[np.argsort(np.frombuffer(self._digests, dtype="S32")[first], kind="stable")]
        for start in range(0, len(ordered), _PAGE):
            yield ordered[start : start + _PAGE].tolist()


def query_tables(session: Session, texts: Texts) -> Iterator[pa.Table]:
    """Rows of the configuration `queries`."""
    asked = select(Query.id, Query.digest, Query.text).where(among(session, Query.id))
    for page in texts.pages():
        row_of = {row[0]: row for row in read(session, asked, page)}
        _, digests, of_query = zip(*(row_of[key] for key in page), strict=True)
        yield table([digests, of_query], QUERIES)


def corpus_tables(session: Session, texts: Texts) -> Iterator[pa.Table]:
    """Rows of the configuration `corpus`. A passage that begins with its title is published in two columns."""
    asked = select(Passage.id, Passage.digest, Passage.text).where(among(session, Passage.id))
    # The smallest title under which a collection holds the passage: one, whatever the order of imports.
    titled = select(Document.passage_id, func.min(Document.title)).where(among(session, Document.passage_id))
    smallest = titled.group_by(Document.passage_id)
    for page in texts.pages():
        title_of = {key: title for key, title in read(session, smallest, page) if title}
        row_of = {row[0]: row for row in read(session, asked, page)}
        _, digests, whole = zip(*(row_of[key] for key in page), strict=True)
        titles = [title_of.get(key, "") for key in page]
        rest = [text.removeprefix(title + "\n") if title else text for text, title in zip(whole, titles, strict=True)]
        yield table([digests, titles, rest], CORPUS)
