"""The whole schema in one place: all tables, what identifies their rows in any store, and which are frozen."""

from sqlalchemy import MetaData, Table

from db.tables import examples, judgements, ledger, releases, review, texts, training
from db.tables.base import Base

IDENTITY: dict[str, tuple[str, ...]] = {
    **texts.IDENTITY,
    **ledger.IDENTITY,
    **examples.IDENTITY,
    **judgements.IDENTITY,
    **releases.IDENTITY,
    **review.IDENTITY,
    **training.IDENTITY,
}
FROZEN: tuple[str, ...] = (*releases.FROZEN, *review.FROZEN)
METADATA: MetaData = Base.metadata


def tables_in_order() -> list[Table]:
    """Every table, referenced ones before those that refer to them."""
    return list(METADATA.sorted_tables)
