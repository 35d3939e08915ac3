"""Delta repair: what failed of an answer is asked again alone, with what was measured; the good parts are kept.

The follow-up goes behind the earlier prompt and answer, so a server's cache serves both. An answer of which nothing
can be used (no JSON, wrong shape) is asked again as it was, for another sample; one that was cut off or is a refusal is
not: it would end in the same way.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import counter_below
from db.tables.ledger import Request, RequestBody
from generator.answers import Draft, Refusal
from generator.ledger import Harvestable
from generator.plan import ROUND, Planned, Planner

# A shorter text or another task would be needed, not the same again.
_HOPELESS = frozenset({"cut_off", "refused"})


def plan_repair(
    session: Session,
    planner: Planner,
    item: Harvestable,
    refusals: Sequence[Refusal],
    examples: Sequence[int],
    draft: Draft,
) -> Planned | None:
    """The request that mends this answer, or None when there is nothing to mend or the limit is reached."""
    turn = item.plan_index // ROUND
    entry = planner.pack.entry(item.kind)
    if turn >= planner.recipe.max_repairs or any(refusal.reason in _HOPELESS for refusal in refusals):
        return None
    body, sample_index = _earlier(session, item.request_id)
    index = item.plan_index + ROUND
    name = f"{item.custom_id.partition('~')[0]}~{turn + 1}"
    failed = [refusal for refusal in refusals if refusal.position > 0]
    lacks_parts = any(refusal.reason == "wrong_count" for refusal in refusals)
    if not entry.facts.slots or (not failed and not lacks_parts):
        # Tasks and queries are plenty: only an answer with nothing to use is asked again, for another sample.
        if any(refusal.position == 0 and refusal.reason != "wrong_count" for refusal in refusals):
            body = _another_sample(body, planner.recipe.seed, name)
            return Planned(index, name, item.kind, item.attributes, item.source, body, sample_index + 1)
        return None
    faults = _faults(failed, draft, item, lacks_parts, len(entry.facts.slots))
    if not faults:
        return None
    follow_up = [
        {"role": "assistant", "content": item.text},
        {"role": "user", "content": entry.render_repair(faults)},
    ]
    body = {**body, "messages": [*body["messages"], *follow_up]}
    source = {**item.source, "positions": [fault["position"] for fault in faults], **_known(draft, examples, item)}
    return Planned(index, name, item.kind, item.attributes, source, body)


def _another_sample(body: dict[str, Any], seed: int, name: str) -> dict[str, Any]:
    """The same body; where it bears a seed, with another: the same bytes would bring the same answer."""
    return {**body, "seed": counter_below(2**31, seed, "sample", name)} if "seed" in body else body


def _known(draft: Draft, examples: Sequence[int], item: Harvestable) -> dict[str, Any]:
    """The example that the repaired negatives belong to, with the texts that its answer wrote."""
    if not examples:
        return {}
    query = draft.query or item.source.get("query_text")
    positive = draft.positive or item.source.get("positive_text")
    written = {"query_text": query, "positive_text": positive}
    return {"example": examples[0], **{name: text for name, text in written.items() if text}}


def _faults(
    failed: Sequence[Refusal], draft: Draft, item: Harvestable, lacks_parts: bool, num_slots: int
) -> list[dict[str, Any]]:
    """Failed positions with their reasons, in order; with a wrong count, the missing ones too."""
    faults = {refusal.position: refusal.detail for refusal in failed if refusal.position <= num_slots}
    if lacks_parts:
        asked = item.source.get("positions") or range(1, num_slots + 1)
        present = {negative.position for negative in draft.negatives} | set(faults)
        faults |= {position: "it is missing" for position in asked if position not in present}
    return [{"position": position, "detail": faults[position]} for position in sorted(faults)]


def _earlier(session: Session, request_id: int) -> tuple[dict[str, Any], int]:
    body, sample_index = session.execute(
        select(RequestBody.body, Request.sample_index)
        .join(Request, Request.id == RequestBody.request_id)
        .where(Request.id == request_id)
    ).one()
    return orjson.loads(zlib.decompress(body)), sample_index
