"""Uniting two stores: every row of the other store is found or added here, under what identifies it everywhere.

Integer keys are local, so they are translated table by table. What both stores hold is kept as it is here, with three
exceptions that lose nothing: a finished run or request beats an unfinished one, an outcome fills a missing one, and a
different answer to the same request is added as a further attempt. A release or review session name that means
something else in the other store stops the merge before anything is written. What people decided is united as events
(`db.merge_reviews`).
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table, select, tuple_, update
from sqlalchemy.orm import Session

from db.errors import MergeConflictError
from db.insert import insert_missing
from db.merge_reviews import fit_reviews, recompute_reviews
from db.store import Store
from db.tables.examples import Candidate
from db.tables.ledger import Completion, Request, Run, RunRequest
from db.tables.releases import Release
from db.tables.review import Assignment, CurrentDecision, ReviewSession
from db.tables.schema import IDENTITY, tables_in_order
from db.tables.texts import Document

_PAGE = 2_000
_LOOKUP = 400
Row = dict[str, Any]


@dataclass(slots=True)
class MergeReport:
    """Rows added per table, and rows whose content differs between the stores and was kept as it is here."""

    added: dict[str, int] = field(default_factory=dict)
    kept_differing: dict[str, int] = field(default_factory=dict)


def merge(target: Store, source: Store, *, progress: Callable[[int, int | None], None]) -> MergeReport:
    """Add everything in `source` to `target`, in one transaction.

    Raises:
        MergeConflictError: A release, a review session or a document of a collection is something else in the other
            store.
    """
    report = MergeReport()
    keys: dict[str, array[int]] = {}
    tables = tables_in_order()
    with source.read() as reading, target.write() as writing:
        for done, table in enumerate(tables):
            progress(done, len(tables))
            if table.name != CurrentDecision.__tablename__:
                _merge_table(reading, writing, table, keys, report)
        if report.added.get(Assignment.__tablename__) is not None:
            recompute_reviews(writing)
        progress(len(tables), len(tables))
    return report


def _merge_table(
    reading: Session, writing: Session, table: Table, keys: dict[str, "array[int]"], report: MergeReport
) -> None:
    has_key = "id" in table.columns
    if has_key:
        keys[table.name] = array("q")
    for page in _pages(reading, table):
        rows = [_translated(row, table, keys) for row in page]
        report.added[table.name] = report.added.get(table.name, 0) + _add(writing, table, rows, report)
        if has_key and _is_referenced(table):
            _remember(keys[table.name], page, _ids_here(writing, table, rows))


def _is_referenced(table: Table) -> bool:
    return any(key.column.table is table for other in tables_in_order() for key in other.foreign_keys)


def _pages(reading: Session, table: Table) -> Iterator[list[Row]]:
    order = table.primary_key.columns.values()
    result = reading.execute(select(table).order_by(*order), execution_options={"yield_per": _PAGE})
    own = [key.parent.name for key in table.foreign_keys if key.column.table is table]
    for partition in result.mappings().partitions(_PAGE):
        page: list[Row] = []
        ids: set[int] = set()
        for row in partition:
            # A row that refers to an earlier one of its own table needs that one's new key first.
            if own and not ids.isdisjoint(row[name] for name in own):
                yield page
                page, ids = [], set()
            page.append(dict(row))
            if own:
                ids.add(row["id"])
        yield page


def _translated(row: Row, table: Table, keys: dict[str, "array[int]"]) -> Row:
    new = {name: value for name, value in row.items() if name != "id"}
    for foreign in table.foreign_keys:
        name, referred = foreign.parent.name, foreign.column.table.name
        if new[name] is not None:
            new[name] = keys[referred][new[name]]
    return new


def _remember(mapping: "array[int]", page: Sequence[Row], here: Sequence[int]) -> None:
    highest = page[-1]["id"]
    mapping.extend([-1] * (highest + 1 - len(mapping)))
    for row, key in zip(page, here, strict=True):
        mapping[row["id"]] = key


def _ids_here(writing: Session, table: Table, rows: Sequence[Row]) -> list[int]:
    found = {identity: row["id"] for identity, row in _rows_here(writing, table, rows).items()}
    return [found[_identity(table, row)] for row in rows]


def _identity(table: Table, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY[table.name])


def _rows_here(writing: Session, table: Table, rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    columns = [table.columns[name] for name in IDENTITY[table.name]]
    wanted = [_identity(table, row) for row in rows]
    found: dict[tuple[Any, ...], Row] = {}
    for start in range(0, len(wanted), _LOOKUP):
        clause = tuple_(*columns).in_(wanted[start : start + _LOOKUP])
        for row in writing.execute(select(table).where(clause)).mappings():
            found[_identity(table, dict(row))] = dict(row)
    return found


def _add(writing: Session, table: Table, rows: Sequence[Row], report: MergeReport) -> int:
    fit_reviews(writing, table, rows)
    known = _rows_here(writing, table, rows)
    both = [(known[_identity(table, row)], row) for row in rows if _identity(table, row) in known]
    _refuse_conflicts(table, both)
    if table.name == Completion.__tablename__:
        rows = _as_further_attempts(writing, rows, both)
    added = insert_missing(writing, table, rows)
    _settle(writing, table, both)
    content = _content_columns(table)
    differing = sum(any(here[name] != there[name] for name in content) for here, there in both)
    if differing:
        report.kept_differing[table.name] = report.kept_differing.get(table.name, 0) + differing
    return added


def _content_columns(table: Table) -> list[str]:
    compared = {
        Candidate.__tablename__: ["role", "grade", "rank", "origin"],
        "score": ["value"],
        "qrel": ["relevance"],
        "judgement": ["relevance", "evidence"],
    }
    return compared.get(table.name, [])


def _refuse_conflicts(table: Table, both: Sequence[tuple[Row, Row]]) -> None:
    meaning = {Release.__tablename__: "digest", Document.__tablename__: "passage_id"}.get(table.name)
    if meaning is None:
        return
    for here, there in both:
        if here[meaning] != there[meaning]:
            name = here.get("name") or here["external_id"]
            raise MergeConflictError(
                f"{table.name} {name!r} has other content in the other store: rename one of them, nothing was merged"
            )


def _as_further_attempts(writing: Session, rows: Sequence[Row], both: Sequence[tuple[Row, Row]]) -> list[Row]:
    """Completions under free attempt numbers where both machines answered; one that came by an earlier merge stays."""
    differing = [there for here, there in both if here["received_at"] != there["received_at"]]
    for row in differing:
        attempts = select(Completion.received_at, Completion.attempt).where(Completion.request_id == row["request_id"])
        known = {received_at: attempt for received_at, attempt in writing.execute(attempts)}
        row["attempt"] = known.get(row["received_at"]) or max(known.values()) + 1
        insert_missing(writing, Completion, [row])
    return list(rows)


def _settle(writing: Session, table: Table, both: Sequence[tuple[Row, Row]]) -> None:
    for here, there in both:
        if table.name == Request.__tablename__ and there["state"] == "done" and here["state"] != "done":
            change = update(Request).where(Request.id == here["id"])
            writing.execute(change.values(state="done", leased_until=None))
        elif table.name == Run.__tablename__ and there["state"] == "finished" and here["state"] != "finished":
            change = update(Run).where(Run.id == here["id"])
            writing.execute(change.values(state="finished", finished_at=there["finished_at"], totals=there["totals"]))
        elif table.name == ReviewSession.__tablename__ and there["state"] == "closed" and here["state"] != "closed":
            close = update(ReviewSession).where(ReviewSession.id == here["id"])
            writing.execute(close.values(state="closed", closed_at=there["closed_at"]))
        elif table.name == RunRequest.__tablename__ and here["outcome"] is None and there["outcome"] is not None:
            change = update(RunRequest).where(RunRequest.id == here["id"])
            writing.execute(change.values({name: there[name] for name in ("outcome", "num_accepted", "example_id")}))
