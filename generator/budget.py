"""Budgets: the worst case of a request is reserved before it leaves, and settled from its usage when it comes back.

Totals stand on the run's row and change in the transaction that leases or records, so a budget holds across processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db.tables.ledger import Request, Run
from generator.models import ModelFacts

_LOOKUP = 500


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and money."""

    tokens: int = 0
    usd: float = 0.0

    def plus(self, other: "Spent") -> "Spent":
        return Spent(self.tokens + other.tokens, self.usd + other.usd)

    def less(self, other: "Spent") -> "Spent":
        return Spent(self.tokens - other.tokens, self.usd - other.usd)


@dataclass(frozen=True, slots=True)
class Room:
    """What a budget still allows; None where it sets no limit."""

    tokens: int | None
    usd: float | None

    def takes(self, cost: Spent) -> bool:
        fits_tokens = self.tokens is None or cost.tokens <= self.tokens
        return fits_tokens and (self.usd is None or cost.usd <= self.usd + 1e-12)

    def less(self, cost: Spent) -> "Room":
        tokens = None if self.tokens is None else self.tokens - cost.tokens
        return Room(tokens, None if self.usd is None else self.usd - cost.usd)


@dataclass(frozen=True, slots=True)
class WorstCase:
    """What a request can cost at most: every byte a token, the longest answer, nothing read from a cache."""

    facts: ModelFacts
    max_output: int | None
    by_batch: bool = False

    def of(self, wire: bytes) -> Spent:
        output = self.max_output or 0
        cost = self.facts.worst_cost(len(wire), output, by_batch=self.by_batch)
        return Spent(len(wire) + output, cost or 0.0)


def unreserve(session: Session, request_ids: Sequence[int], run_id: int) -> dict[int, Spent]:
    """What these leased requests have reserved, by the run it is booked on (`run_id` where the row does not say).

    Call it before their lease ends.
    """
    found: dict[int, Spent] = {}
    owner = func.coalesce(Request.reserved_by, run_id)
    for start in range(0, len(request_ids), _LOOKUP):
        sums = (
            select(owner, func.sum(Request.reserved_tokens), func.sum(Request.reserved_usd))
            .where(Request.id.in_(request_ids[start : start + _LOOKUP]), Request.state == "leased")
            .group_by(owner)
        )
        for run, tokens, usd in session.execute(sums):
            found[run] = found.get(run, Spent()).plus(Spent(int(tokens or 0), float(usd or 0.0)))
    return found


def book_all(
    session: Session, *, spent: Mapping[int, Spent], reserved: Mapping[int, Spent], freed: Mapping[int, Spent]
) -> None:
    """Add to what runs have spent and reserved, in the order of their ids: two that book the same runs must not wait
    for each other."""
    nothing = Spent()
    for run in sorted({*spent, *reserved, *freed}):
        change = reserved.get(run, nothing).less(freed.get(run, nothing))
        book(session, run, spent=spent.get(run, nothing), reserved=change)


def book(session: Session, run_id: int, *, spent: Spent | None = None, reserved: Spent) -> None:
    """Add to what the run has spent and reserved."""
    spent = spent or Spent()
    session.execute(
        update(Run)
        .where(Run.id == run_id)
        .values(
            spent_tokens=Run.spent_tokens + spent.tokens,
            spent_usd=Run.spent_usd + spent.usd,
            reserved_tokens=Run.reserved_tokens + reserved.tokens,
            reserved_usd=Run.reserved_usd + reserved.usd,
        ),
        execution_options={"synchronize_session": False},
    )
