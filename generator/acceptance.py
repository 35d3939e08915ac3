"""From drafts to examples and candidates, in the transaction that records what became of the completion."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings, put_task
from db.runs import Rejected, add_rejections
from db.tables.ledger import RunRequest
from db.tables.texts import Passage
from db.texts import put_passages, put_queries
from generator.checks import check_negative
from generator.ledger import Harvestable
from generator.responses import Draft, DraftNegative, Refusal, read_completion


def accept(session: Session, run_id: int, item: Harvestable, collection_id: int | None) -> tuple[int, list[Refusal]]:
    """Read one completion; store what is good, and why the rest is not. Returns (accepted parts, refusals)."""
    draft = read_completion(item.kind, item.text, item.finish_reason)
    if isinstance(draft, Refusal):
        return _settle(session, run_id, item, 0, [draft], None)
    if item.kind == "task_brainstorm":
        for task in draft.tasks:
            put_task(session, item.source["task_type"], task)
        return _settle(session, run_id, item, len(draft.tasks), list(draft.refusals), None)
    example, positive = _example(session, run_id, item, draft, collection_id)
    good, refusals = _checked(session, item, draft, positive)
    _put(session, run_id, item, example, good)
    return _settle(session, run_id, item, len(good), [*draft.refusals, *refusals], example)


def _example(
    session: Session, run_id: int, item: Harvestable, draft: Draft, collection_id: int | None
) -> tuple[int, str]:
    """The example's id and its positive's text; made with its positive candidate when it is new."""
    language = item.attributes.get("language")
    if draft.query is not None and draft.positive is not None:
        (query,), (passage,) = put_queries(session, [draft.query]), put_passages(session, [draft.positive])
        task = put_task(session, item.source["task_type"], item.source["task"])
        pairs, origin, collection_id = [(query, passage)], "synthetic", None
    else:
        task, pairs, origin = None, [(item.source["query"], item.source["positive"])], "corpus"
    (example,) = put_examples(
        session, pairs, origin=origin, collection_id=collection_id, task_id=task, language=language
    )
    passage = pairs[0][1]
    positive = NewCandidate(example, passage, "positive", origin, run_id)
    put_candidates(session, [positive])
    return example, session.scalars(select(Passage.text).where(Passage.id == passage)).one()


def _checked(
    session: Session, item: Harvestable, draft: Draft, positive: str
) -> tuple[list[DraftNegative], list[Refusal]]:
    neighbour = item.source.get("neighbour")
    texts = {"positive": positive}
    if neighbour is not None:
        texts["neighbour"] = session.scalars(select(Passage.text).where(Passage.id == neighbour)).one()
    good: list[DraftNegative] = []
    refusals: list[Refusal] = []
    for negative in draft.negatives:
        refusal = check_negative(
            negative,
            positive=positive,
            source=texts[negative.edited_from] if negative.edited_from else None,
            earlier=[other.text for other in good],
            language=item.attributes.get("language"),
        )
        if refusal is None:
            good.append(negative)
        else:
            refusals.append(refusal)
    return good, refusals


def _put(session: Session, run_id: int, item: Harvestable, example: int, negatives: list[DraftNegative]) -> None:
    passages = put_passages(session, [negative.text for negative in negatives])
    candidates = [
        NewCandidate(
            example_id=example,
            passage_id=passage,
            role="negative",
            origin="edited" if negative.edited_from else "synthetic",
            run_id=run_id,
            grade=negative.grade,
            rank=negative.rank,
            violated_requirement=negative.violated_requirement,
            parent_passage_id=item.source[negative.edited_from] if negative.edited_from else None,
        )
        for negative, passage in zip(negatives, passages, strict=True)
    ]
    keys = put_candidates(session, candidates)
    put_sourcings(session, [NewSourcing(key, run_id, request_id=item.request_id) for key in keys.values()])


def _settle(
    session: Session, run_id: int, item: Harvestable, num_good: int, refusals: list[Refusal], example: int | None
) -> tuple[int, list[Refusal]]:
    rows = [Rejected(item.custom_id, r.position, r.reason, r.detail) for r in refusals]
    add_rejections(session, run_id, rows)
    outcome = "rejected" if num_good == 0 else "partial" if refusals else "accepted"
    change = update(RunRequest).where(RunRequest.id == item.run_request_id)
    session.execute(change.values(outcome=outcome, num_accepted=num_good, example_id=example))
    return num_good, refusals
