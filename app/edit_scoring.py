"""Scoring an edited text before it is accepted, by the teachers of the store that can run here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import select

from curation.embeddings import BiEncoder, Encoder
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


def bundled_encoder() -> BiEncoder:
    """The encoder that comes with Gradus; its weights are loaded at the first edit."""
    return BiEncoder("minilm")
