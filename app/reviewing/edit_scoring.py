"""Scoring an edited text before it is accepted, by the teachers of the store that can run here."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from curation.embeddings import BiEncoder, Encoder, Floats
from db.store import Store
from db.tables.examples import Teacher

if TYPE_CHECKING:
    from curation.reviewing.edits import Scoring


def scoring_of(store: Store, encoder: Encoder) -> "Scoring":
    """Similarity of a query and a text by this encoder, if its very version has scored in the store; else nothing.

    Another version's figure beside the stored ones would compare what cannot be compared. Teachers that are not in the
    store by name and weights (BM25 needs its whole corpus, an encoder its folder) score the child with `gradus score`.
    """
    with store.read() as session:
        newest = select(Teacher.version).where(Teacher.name == encoder.name).order_by(Teacher.id.desc()).limit(1)
        is_known = session.scalar(newest) == encoder.version

    def scoring(query: str, text: str) -> Mapping[str, float]:
        if not is_known:
            return {}
        (of_query, of_text), _ = encoder.encode([query, text])
        return {encoder.name: round(float(np.dot(of_query, of_text)), 6)}

    return scoring


class EncoderThread:
    """An encoder in a thread of its own, whose weights are loaded while somebody still writes their edit.

    One text after the other, whoever asks: an encoder is not made for several threads at once.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.name = encoder.name
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edit-scoring")
        self._thread.submit(encoder.encode, ["warm"])

    @property
    def version(self) -> str:
        return self._encoder.version

    @property
    def dimension(self) -> int:
        return self._encoder.dimension

    @property
    def max_length(self) -> int:
        return self._encoder.max_length

    def encode(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
        return self._thread.submit(self._encoder.encode, texts).result()


def bundled_encoder() -> EncoderThread:
    """The encoder that comes with Gradus, begun to be loaded."""
    return EncoderThread(BiEncoder("minilm"))
