"""From answers to examples and candidates, a group at a time, in the transaction that records what became of each.

What passes its checks is stored; what fails is a rejection row with its reason, and a repair asks for it alone, with
what was measured, until it passes or the recipe's limit is reached. The good parts of an answer are kept.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from db.digest import digest_text
from db.examples import NewCandidate, NewExample, NewSourcing, put_candidates, put_new_examples, put_sourcings, put_task
from db.runs import Rejected, add_rejections
from db.tables.examples import Candidate, Example
from db.tables.ledger import RunRequest
from db.tables.texts import Passage, Query
from db.texts import put_passages, put_queries
from generator.answers import Draft, DraftNegative, DraftQuery, Refusal, read_answer
from generator.checks import AnswerContext, check_negative, check_query, check_written_pair
from generator.gate import Gate, judge_order
from generator.ledger import Harvestable, enqueue
from generator.plan import BLOCK, ROUND, Planned, Planner
from generator.repair import plan_repair

_LOOKUP = 500


class RoundTrip(Protocol):
    """Finds whether queries retrieve their own passage."""

    def ranks(self, queries: Sequence[str], passages: Sequence[int]) -> list[int | None]:
        """Rank (from 1) of each query's passage among those found for it; None when it is not among them."""


@dataclass(slots=True)
class Accepting:
    """What acceptance needs beside the answers: the plan, the collection, and what can measure similarity."""

    planner: Planner
    run_id: int
    collections: Sequence[int | None]
    gate: Gate | None = None
    round_trips: Mapping[int, RoundTrip] = field(default_factory=dict)

    def read(self, session: Session, items: "Sequence[Harvestable]") -> "Accepted":
        """As the desk calls it: `accept`."""
        return accept(session, self, items)

    def cell_of(self, plan_index: int) -> int:
        """The attribute cell of a request; -1 for a brainstorm."""
        placed = self.planner.place_of(plan_index % ROUND)
        return placed[1].cell if placed else -1


@dataclass(slots=True)
class Accepted:
    """What came of a group of answers."""

    outcomes: dict[str, int] = field(default_factory=dict)
    num_accepted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    num_suspect: int = 0
    new_plan_indices: list[int] = field(default_factory=list)
    cells: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


@dataclass(slots=True)
class _Read:
    """One answer on its way in."""

    item: Harvestable
    draft: Draft
    refusals: list[Refusal]
    good: list[DraftNegative] = field(default_factory=list)
    queries: list[DraftQuery] = field(default_factory=list)
    settled: Sequence[DraftNegative] = ()
    examples: list[int] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def num_accepted(self) -> int:
        return len(self.draft.tasks) + len(self.good) + len(self.queries)


def accept(session: Session, accepting: Accepting, items: Sequence[Harvestable]) -> Accepted:
    """Read answers; store what is good, why the rest is not, and what is asked again."""
    texts = _source_texts(session, items)
    settled = _settled(session, accepting, items)
    reads = [_read(accepting, item, texts, settled.get(item.source.get("example", 0), [])) for item in items]
    _measure_order(accepting, reads, texts)
    _check_round_trips(accepting, reads)
    _refuse_known_queries(session, reads)
    _store(session, accepting, reads)
    report = _settle(session, accepting, reads)
    _ask_again(session, accepting, reads, report)
    return report


def _source_texts(session: Session, items: Sequence[Harvestable]) -> dict[tuple[str, int], str]:
    """Texts that the answers are about, by (role of its table, key)."""
    queries = {item.source["query"] for item in items if "query" in item.source}
    passages = {
        key for item in items for name, key in item.source.items()
        if name in ("positive", "document") or name.startswith("neighbour")
    }  # fmt: skip
    found: dict[tuple[str, int], str] = {}
    for name, table, keys in (("query", Query, sorted(queries)), ("passage", Passage, sorted(passages))):
        for start in range(0, len(keys), _LOOKUP):
            rows = session.execute(select(table.id, table.text).where(table.id.in_(keys[start : start + _LOOKUP])))
            found.update({(name, key): text for key, text in rows})
    return found


def _sources(item: Harvestable, texts: Mapping[tuple[str, int], str]) -> dict[str, str]:
    """Texts that an edit of this answer may change, by the name that the prompt gives them."""
    names = [n for n in item.source if n in ("positive", "document") or n.startswith("neighbour")]
    return {name: texts["passage", item.source[name]] for name in names}


def _settled(session: Session, accepting: Accepting, items: Sequence[Harvestable]) -> dict[int, list[DraftNegative]]:
    """Negatives that the examples of repairs have already: what mends one must fit beside them."""
    slots = {
        item.source["example"]: accepting.planner.pack.entry(item.kind).facts.slots
        for item in items if "example" in item.source
    }  # fmt: skip
    found: dict[int, list[DraftNegative]] = defaultdict(list)
    examples = sorted(slots)
    for start in range(0, len(examples), _LOOKUP):
        rows = session.execute(
            select(Candidate.example_id, Candidate.rank, Candidate.violated_requirement, Passage.text)
            .join(Passage, Passage.id == Candidate.passage_id)
            .where(
                Candidate.example_id.in_(examples[start : start + _LOOKUP]),
                Candidate.run_id == accepting.run_id,
                Candidate.rank.is_not(None),
            )
            .order_by(Candidate.rank)
        )
        for example, rank, violated, text in rows:
            if rank and rank <= len(slots[example]):
                slot = slots[example][rank - 1]
                found[example].append(
                    DraftNegative(rank, rank, slot.grade, text, violated or "", slot, edited_from=slot.source)
                )
    return found


def _read(
    accepting: Accepting,
    item: Harvestable,
    texts: Mapping[tuple[str, int], str],
    settled: Sequence[DraftNegative] = (),
) -> _Read:
    if item.refused is not None:
        return _Read(item, Draft(), [Refusal("refused", item.refused)])
    entry = accepting.planner.pack.entry(item.kind)
    sources = _sources(item, texts)
    positions = item.source.get("positions")
    draft = read_answer(entry, item.text, finish_reason=item.finish_reason, sources=sources, positions=positions)
    if isinstance(draft, Refusal):
        return _Read(item, Draft(), [draft])
    if "example" in item.source:  # a repair: the query and the positive are those of the answer that it mends
        draft = replace(draft, query=None, positive=None)
    read = _Read(item, draft, list(draft.refusals), settled=settled, notes=dict(draft.notes))
    given = item.source.get("positive_text") or sources.get("positive") or sources.get("document")
    positive = draft.positive or given
    if draft.negatives or entry.facts.slots:
        is_asked = "query" in item.source or "example" in item.source
        if not positive or not (draft.query or is_asked):
            read.refusals.append(Refusal("wrong_shape", "the query or the positive is blank"))
            return read
        language = item.attributes.get("language")
        spoken = language if entry.facts.checks.language else None
        if draft.query:
            is_of_document = "document" in item.source
            if refusal := check_written_pair(draft.query, draft.positive, spoken, is_of_document=is_of_document):
                read.refusals.append(refusal)
                return read
        context = AnswerContext(positive, language, entry.facts.checks, sources)
        for negative in settled:
            context.add(negative)
        _check_each(read, context, check_negative)
    for query in draft.queries:
        earlier = [other.text for other in read.queries]
        refusal = check_query(query, sources["document"], item.attributes.get("language"), earlier)
        if refusal is None:
            read.queries.append(query)
        else:
            read.refusals.append(refusal)
    return read


def _check_each(
    read: _Read, context: AnswerContext, check: Callable[[DraftNegative, AnswerContext], Refusal | None]
) -> None:
    for negative in read.draft.negatives:
        refusal = check(negative, context)
        if refusal is None:
            context.add(negative)
        else:
            read.refusals.append(refusal)
    read.good = context.accepted[len(read.settled) :]


def _measure_order(accepting: Accepting, reads: Sequence[_Read], texts: Mapping[tuple[str, int], str]) -> None:
    """The embedding gate: refuse what breaks the order of grades, mark what stands above its positive."""
    if accepting.gate is None:
        return
    measured = [read for read in reads if read.good]
    groups = []
    for read in measured:
        query = read.draft.query or read.item.source.get("query_text") or texts["query", read.item.source["query"]]
        given = read.draft.positive or read.item.source.get("positive_text")
        positive = given or texts["passage", _positive_key(read.item)]
        groups.append((query, [positive, *(negative.text for negative in [*read.good, *read.settled])]))
    for read, values in zip(measured, accepting.gate.similarities(groups), strict=True):
        similarities, of_settled = values[: 1 + len(read.good)], values[1 + len(read.good) :]
        settled = [(one.grade, value) for one, value in zip(read.settled, of_settled, strict=True)]
        refusals, suspect = judge_order(read.good, similarities, accepting.gate.limits, settled=settled)
        read.notes["similarities"] = [round(value, 4) for value in similarities]
        if suspect:
            read.notes["suspect"] = suspect
        refused = {refusal.position for refusal in refusals}
        read.good = [negative for negative in read.good if negative.position not in refused]
        read.refusals += refusals


def _positive_key(item: Harvestable) -> int:
    return int(item.source["positive"] if "positive" in item.source else item.source["document"])


def _check_round_trips(accepting: Accepting, reads: Sequence[_Read]) -> None:
    """Queries that do not retrieve their own passage are refused."""
    for number, round_trip in accepting.round_trips.items():
        asked = [
            (read, query) for read in reads for query in _queries_of(read)
            if (placed := accepting.planner.place_of(read.item.plan_index)) and placed[0] == number
        ]  # fmt: skip
        if not asked:
            continue
        ranks = round_trip.ranks(
            [query.text for _, query in asked], [read.item.source["document"] for read, _ in asked]
        )
        for (read, query), rank in zip(asked, ranks, strict=True):
            if rank is None:
                _take_out(read, query, "not_retrieved", "it does not retrieve its own document")
            else:
                read.notes.setdefault("retrieval_ranks", []).append(rank)


def _queries_of(read: _Read) -> list[DraftQuery]:
    """Queries that the answer wrote for its document."""
    if read.draft.query and "document" in read.item.source:
        return [DraftQuery(0, read.draft.query, "")]
    return list(read.queries)


def _take_out(read: _Read, query: DraftQuery, reason: str, detail: str) -> None:
    """Refuse a query; where the whole answer stands on it, nothing of that enters."""
    read.refusals.append(Refusal(reason, detail, query.position))
    if query in read.queries:
        read.queries.remove(query)
    else:
        read.good, read.draft = [], Draft()


def _refuse_known_queries(session: Session, reads: Sequence[_Read]) -> None:
    """A query that is asked of another document too names neither: the first one stands."""
    documents: dict[str, int] = {}
    digests = {digest_text(query.text) for read in reads for query in _queries_of(read)}
    for start in range(0, len(digests), _LOOKUP):
        wanted = Query.digest.in_(sorted(digests)[start : start + _LOOKUP])
        rows = session.execute(
            select(Query.digest, Example.positive_id).join(Example, Example.query_id == Query.id).where(wanted)
        )
        documents.update({digest: positive for digest, positive in rows})
    for read in reads:
        for query in _queries_of(read):
            document = read.item.source["document"]
            if documents.setdefault(digest_text(query.text), document) != document:
                _take_out(read, query, "duplicate", "the same query was written for another document")


def _store(session: Session, accepting: Accepting, reads: Sequence[_Read]) -> None:
    for read in reads:
        if read.draft.tasks:
            task_type = read.item.source["task_type"]
            read.notes["tasks"] = [put_task(session, task_type, task) for task in read.draft.tasks]
    keys = _put_texts(session, reads)
    examples: list[NewExample] = []
    owners: list[_Read] = []
    for read in reads:
        for example in _new_examples(session, accepting, read, keys):
            examples.append(example)
            owners.append(read)
    for read, key in zip(owners, put_new_examples(session, examples), strict=True):
        read.examples.append(key)
    run_id = accepting.run_id
    positives = [
        NewCandidate(key, example.positive_id, "positive", example.origin, run_id)
        for read, key, example in _with_keys(owners, examples)
    ]
    negatives = [(read, candidate) for read in reads for candidate in _new_negatives(accepting, read, keys)]
    found = put_candidates(session, [*positives, *(candidate for _, candidate in negatives)])
    sourcings = [
        NewSourcing(found[candidate.example_id, candidate.passage_id], run_id, request_id=read.item.request_id)
        for read, candidate in negatives
    ]
    put_sourcings(session, sourcings)


def _with_keys(owners: Sequence[_Read], examples: Sequence[NewExample]) -> list[tuple[_Read, int, NewExample]]:
    seen: dict[int, int] = {}
    rows = []
    for read, example in zip(owners, examples, strict=True):
        place = seen.get(id(read), 0)
        seen[id(read)] = place + 1
        rows.append((read, read.examples[place], example))
    return rows


_Keys = dict[tuple[str, str], int]


def _put_texts(session: Session, reads: Sequence[_Read]) -> _Keys:
    passages = [negative.text for read in reads for negative in read.good]
    passages += [read.draft.positive for read in reads if read.draft.positive]
    queries = [query.text for read in reads for query in read.queries]
    queries += [read.draft.query for read in reads if read.draft.query]
    keys: _Keys = {}
    keys.update({("passage", text): key for text, key in zip(passages, put_passages(session, passages), strict=True)})
    keys.update({("query", text): key for text, key in zip(queries, put_queries(session, queries), strict=True)})
    return keys


def _new_examples(session: Session, accepting: Accepting, read: _Read, keys: _Keys) -> list[NewExample]:
    item, draft = read.item, read.draft
    if item.source.get("example") is not None:
        read.examples.append(item.source["example"])  # a repair adds to the example of the answer that it mends
        return []
    collection = _collection(accepting, item)
    language = item.attributes.get("language")
    if read.queries:
        document = item.source["document"]
        return [
            NewExample(keys["query", query.text], document, "synthetic", collection, None, language)
            for query in read.queries
        ]
    if not read.good and not (draft.query and draft.positive):
        return []
    query = keys["query", draft.query] if draft.query else item.source["query"]
    positive = keys["passage", draft.positive] if draft.positive else item.source.get("positive")
    positive = item.source["document"] if positive is None else positive
    is_corpus = not draft.query and not draft.positive
    task = put_task(session, item.source["task_type"], item.source["task"]) if "task" in item.source else None
    origin = "corpus" if is_corpus else "synthetic"
    return [NewExample(query, positive, origin, None if task else collection, task, language)]


def _collection(accepting: Accepting, item: Harvestable) -> int | None:
    return accepting.collections[item.plan_index % ROUND // BLOCK]


def _new_negatives(accepting: Accepting, read: _Read, keys: _Keys) -> list[NewCandidate]:
    if not read.examples or not read.good:
        return []
    (example,) = read.examples
    return [
        NewCandidate(
            example_id=example,
            passage_id=keys["passage", negative.text],
            role="negative",
            origin=_origin(read.item, negative, keys),
            run_id=accepting.run_id,
            grade=negative.grade,
            rank=negative.rank,
            violated_requirement=negative.violated_requirement,
            parent_passage_id=_parent(read.item, negative, keys),
        )
        for negative in read.good
    ]


def _origin(item: Harvestable, negative: DraftNegative, keys: _Keys) -> str:
    if negative.edited_from is None:
        return "synthetic"
    return "mined" if keys["passage", negative.text] == item.source[negative.edited_from] else "edited"


def _parent(item: Harvestable, negative: DraftNegative, keys: _Keys) -> int | None:
    if negative.edited_from is None or _origin(item, negative, keys) == "mined":
        return None
    return int(item.source[negative.edited_from])


def _settle(session: Session, accepting: Accepting, reads: Sequence[_Read]) -> Accepted:
    report = Accepted()
    rejected, changes = [], []
    for read in reads:
        for refusal in read.refusals:
            rejected.append(Rejected(read.item.custom_id, refusal.position, refusal.reason, refusal.detail))
            report.reasons[refusal.reason] = report.reasons.get(refusal.reason, 0) + 1
        num = read.num_accepted
        outcome = "rejected" if num == 0 else "partial" if read.refusals else "accepted"
        report.outcomes[outcome] = report.outcomes.get(outcome, 0) + 1
        report.num_accepted += num
        report.num_suspect += len(read.notes.get("suspect", ()))
        ranks = tuple(negative.rank for negative in read.good) or ((1,) if read.queries else ())
        report.cells.append((read.item.plan_index, ranks))
        if ranks:
            read.notes["ranks"] = list(ranks)
        changes.append(
            {
                "b_id": read.item.run_request_id,
                "outcome": outcome,
                "num_accepted": num,
                "example_id": read.examples[0] if read.examples else None,
                "notes": read.notes or None,
            }
        )
    add_rejections(session, accepting.run_id, rejected)
    links = RunRequest.__table__
    if changes:
        session.connection().execute(
            update(links).where(links.c.id == bindparam("b_id")),  # type: ignore[arg-type]
            changes,
        )
    return report


def _ask_again(session: Session, accepting: Accepting, reads: Sequence[_Read], report: Accepted) -> None:
    planned: list[Planned] = []
    for read in reads:
        if read.refusals:
            again = plan_repair(session, accepting.planner, read.item, read.refusals, read.examples[:1], read.draft)
            if again is not None:
                planned.append(again)
    if planned:
        enqueue(session, accepting.run_id, planned, accepting.planner.recipe.model)
        report.new_plan_indices = [item.plan_index for item in planned]
