"""Does a turn at review cost more the larger the store is? Claim, view and decide in a small and in a large store.

Usage: python benchmarks/review_store.py [SIZE ...] [--turns N] [--rounds N] [--store URL]
    (SIZE: numbers of candidates; default 1000 1000000)

Each store is filled with examples of a positive and seven graded negatives, scored by two teachers, and gets one
review session over all its examples with overlap 2 in random order (half of it is finished before the clock starts, so
that claims do not begin at the front of an empty queue). Then two people take turns in every store, round by round,
small and large interleaved. Prints a Markdown table with the median, the fastest and the slowest of each step in
milliseconds, the ratio of the medians, the number of SQL statements, and whether each statement finds its rows by an
index. With --store postgresql://... the stores are databases of that server, dropped afterwards.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sqlalchemy import create_engine, event, text, update  # noqa: E402

from curation.reviewing.decisions import decide, undo  # noqa: E402
from curation.reviewing.items import item_view, self_checks  # noqa: E402
from curation.reviewing.leases import claim  # noqa: E402
from curation.reviewing.people import put_reviewer  # noqa: E402
from curation.reviewing.queue import Asked, Picked, Queue  # noqa: E402
from curation.reviewing.recipe import SessionRecipe  # noqa: E402
from curation.reviewing.sessions import create_session, progress_of  # noqa: E402
from db.insert import insert_missing  # noqa: E402
from db.runs import start_run  # noqa: E402
from db.store import Store  # noqa: E402
from db.tables.base import utc_now  # noqa: E402
from db.tables.examples import Candidate, Example, Score  # noqa: E402
from db.tables.review import Assignment, Reviewer, ReviewSession, SessionReviewer  # noqa: E402
from db.tables.texts import Passage, Query  # noqa: E402
from db.teachers import put_teacher  # noqa: E402

AN_EXAMPLE = 8  # candidates: a positive and seven negatives
PAGE = 5_000
GRADES = ("hard", "medium", "medium", "easy", "easy", "easy", "easy")
STEPS = ("claim", "view", "self-checks", "decide one", "progress", "decide the rest", "undo")


@dataclass
class Filled:
    """A store with a session, its two people, and milliseconds by step."""

    size: int
    store: Store
    session: ReviewSession
    people: list[Reviewer]
    times: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    statements: dict[str, list[str]] = field(default_factory=lambda: {step: [] for step in STEPS})


def fill(store: Store, size: int) -> Filled:
    """Examples, candidates and scores by bulk inserts; keys are given, so that nothing has to be looked up."""
    num = size // AN_EXAMPLE
    with store.write() as session:
        run = start_run(session, "generate", "filled", {"size": size}, 0).id
        teachers = [put_teacher(session, name=name, version="w", kind="bi-encoder") for name in ("minilm", "other")]
    for start in range(0, num, PAGE):
        examples = range(start + 1, min(start + PAGE, num) + 1)
        with store.write() as session:
            for table, rows in rows_of(examples, run, teachers).items():
                insert_missing(session, table, rows)
    with store.write() as session:
        boss = put_reviewer(session, "boss", "admin")
        people = [put_reviewer(session, name, "reviewer", by=boss) for name in ("ann", "ben")]
        # The queue is given, because drawing it is not what is measured.
        picked = [Picked(n, tuple(Asked(key) for key in keys_of(n)[1:])) for n in range(1, num + 1)]
        queue = Queue(picked, {"num_candidates": num * (AN_EXAMPLE - 1), "num_examples": num})
        recipe = SessionRecipe.model_validate({"name": "s", "overlap": 2, "queue": {"order": "random"}})
        made = create_session(session, recipe, boss, queue=queue)
        skip_half(session, made.id, people, num)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("analyze")
        connection.commit()
    return Filled(size, store, made, people)


def keys_of(example: int) -> range:
    return range((example - 1) * AN_EXAMPLE + 1, example * AN_EXAMPLE + 1)


def rows_of(examples: range, run: int, teachers: list[int]) -> dict[Any, list[dict[str, Any]]]:
    rows: dict[Any, list[dict[str, Any]]] = {Query: [], Passage: [], Example: [], Candidate: [], Score: []}
    for n in examples:
        rows[Query].append({"id": n, "digest": f"{n:064x}", "text": f"what is known about subject {n}"})
        positive, *negatives = keys_of(n)
        rows[Example].append({"id": n, "digest": f"{n:064x}", "query_id": n, "positive_id": positive,
                              "origin": "synthetic"})  # fmt: skip
        for place, key in enumerate((positive, *negatives)):
            passage = {"id": key, "digest": f"{key:064x}", "text": f"a passage about subject {n}, number {place} " * 8}
            rows[Passage].append(passage)
            rows[Candidate].append({
                "id": key, "example_id": n, "passage_id": key, "role": "negative" if place else "positive",
                "grade": GRADES[place - 1] if place else None, "rank": place or None, "origin": "synthetic",
                "run_id": run,
            })  # fmt: skip
            for teacher in teachers:
                rows[Score].append({"teacher_id": teacher, "query_id": n, "passage_id": key,
                                    "value": 0.9 - 0.1 * place + 0.001 * (n % 97) * teacher})  # fmt: skip
    return rows


def skip_half(session: Any, session_id: int, people: list[Reviewer], num: int) -> None:
    """The first half of the queue as finished, each slot by another person; its events are left out."""
    now = utc_now()
    for slot, person in enumerate(people, start=1):
        of_slot = (Assignment.session_id == session_id) & (Assignment.position < num // 2) & (Assignment.slot == slot)
        finished = {"reviewer_id": person.id, "opened_at": now, "leased_until": now, "finished_at": now}
        session.execute(update(Assignment).where(of_slot).values(**finished, outcome="decided"))
        row = {"session_id": session_id, "reviewer_id": person.id, "is_invited": False, "cursor": 0}
        insert_missing(session, SessionReviewer, [{**row, "num_finished": num // 2}])


def take_turns(filled: Filled, turns: int) -> None:
    """Every step of a turn, clocked with its transaction."""
    for number in range(turns):
        person = filled.people[number % 2]
        claimed = clocked(filled, "claim", lambda one, who=person: claim(one, filled.session, who), writes=True)
        if claimed is None:
            raise SystemExit(f"the queue of {filled.size:,} candidates is empty: fewer --turns or --rounds")
        view = clocked(filled, "view", lambda one, who=person, item=claimed.item_id: item_view(one, item, who))
        clocked(filled, "self-checks", lambda one, item=claimed.item_id: self_checks(one, item))

        def press(
            one: Any, kind: str, key: int | None, who: Reviewer = person, turn: int = claimed.assignment_id
        ) -> Any:
            return decide(one, turn, who, kind, key, shown_at=utc_now())  # type: ignore[arg-type]

        clocked(filled, "decide one", lambda one, key=view.undecided[0], do=press: do(one, "keep", key), writes=True)
        clocked(filled, "progress", lambda one, who=person: progress_of(one, filled.session.id, who))
        clocked(filled, "decide the rest", lambda one, do=press: do(one, "accept_all", None), writes=True)
        if number % 4 >= 2:
            clocked(filled, "undo", lambda one, who=person: undo(one, who, filled.session), writes=True)


def clocked(filled: Filled, step: str, work: Callable[[Any], Any], *, writes: bool = False) -> Any:
    start = time.perf_counter()
    with (filled.store.write if writes else filled.store.read)() as session:
        result = work(session)
    filled.times[step].append(1000 * (time.perf_counter() - start))
    return result


def trace(filled: Filled) -> list[str]:
    """One turn with its statements kept, and which of them read a table from end to end."""
    seen: list[tuple[str, Any]] = []
    step_of: list[str] = []
    current = ""

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.lstrip().lower().startswith(("select", "update", "insert", "delete", "with")):
            seen.append((statement, parameters))
            step_of.append(current)

    event.listen(filled.store.engine, "before_cursor_execute", listen)
    times = {step: list(values) for step, values in filled.times.items()}
    original = clocked

    def following(one: Filled, step: str, work: Callable[[Any], Any], *, writes: bool = False) -> Any:
        nonlocal current
        current = step
        return original(one, step, work, writes=writes)

    globals()["clocked"] = following
    take_turns(filled, 3)
    globals()["clocked"] = original
    event.remove(filled.store.engine, "before_cursor_execute", listen)
    filled.times = times
    for step, (statement, _) in zip(step_of, seen, strict=True):
        filled.statements[step].append(statement)
    return full_reads(filled.store, seen)


def full_reads(store: Store, statements: list[tuple[str, Any]]) -> list[str]:
    """Tables that a statement's plan reads from end to end, small ones (people, sessions, teachers, a person's
    last decisions) aside."""
    small = ("reviewer", "review_session", "rubric", "session_reviewer", "teacher", "run", "judge", "CONSTANT", "anon")
    found = set()
    is_postgres = store.engine.dialect.name == "postgresql"
    with store.engine.connect() as connection:
        for statement, parameters in dict(
            (statement, (statement, parameters)) for statement, parameters in statements
        ).values():
            if isinstance(parameters, list):
                continue  # many inserts at once
            explain = f"explain {statement}" if is_postgres else f"explain query plan {statement}"
            for row in connection.exec_driver_sql(explain, parameters):
                line = str(row[0] if is_postgres else row[3])
                words = line.replace("->", "").split()
                if is_postgres and "Seq Scan on" in line and "cost=0.00..0.00" not in line:  # the table is empty
                    table = words[words.index("on") + 1]
                elif not is_postgres and words[:1] == ["SCAN"] and "USING" not in words:
                    table = words[1]
                else:
                    continue
                if table.rstrip("_0123456789") not in small:
                    found.add(f"{line.strip()} in: {' '.join(statement.split())}")
    return sorted(found)


@contextmanager
def opened(url: str | None, folder: Path, number: int) -> Iterator[Store]:
    if url is None:
        store = Store.open(f"sqlite:///{folder}/{number}.db")
        yield store
        store.close()
        return
    name = f"gradus_review_{os.getpid()}_{number}"
    admin = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database {name}"))
    base, mark, options = url.partition("?")
    store = Store.open(f"{base.rpartition('/')[0]}/{name}{mark}{options}")
    yield store
    store.close()
    with admin.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    admin.dispose()


def show(stores: list[Filled], scans: dict[int, list[str]]) -> None:
    backend = stores[0].store.engine.dialect
    version = sqlite3.sqlite_version if backend.name == "sqlite" else backend.server_version_info
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} processors, "
          f"{backend.name} {version}, load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    sizes = " | ".join(f"{one.size:,}: median (min to max), ms" for one in stores)
    print(f"| step | statements | {sizes} | ratio of medians |\n|---|---:|{'---:|' * (len(stores) + 1)}")
    for step in STEPS:
        medians = [statistics.median(one.times[step]) for one in stores]
        cells = [
            f"{statistics.median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for one in stores for t in [one.times[step]]
        ]
        calls = 1 if step == "undo" else 3
        counts = "/".join(f"{len(one.statements[step]) / calls:.0f}" for one in stores)
        print(f"| {step} | {counts} | {' | '.join(cells)} | {medians[-1] / medians[0]:.2f} |")
    print()
    for one in stores:
        read = "; ".join(scans[one.size]) or "none"
        print(f"Tables read from end to end at {one.size:,} candidates: {read}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[1_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=10, help="in each store and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", metavar="URL", help="a PostgreSQL server; default: SQLite files")
    chosen = parser.parse_args()
    if min(chosen.sizes) // AN_EXAMPLE // 2 < chosen.turns * (chosen.rounds + 1) + 3:
        parser.error(f"{min(chosen.sizes):,} candidates are too few for so many turns: fewer --turns or --rounds")
    with tempfile.TemporaryDirectory() as name:
        stores = []
        managers = [opened(chosen.store, Path(name), number) for number in range(len(chosen.sizes))]
        for size, manager in zip(chosen.sizes, managers, strict=True):
            start = time.monotonic()
            stores.append(fill(manager.__enter__(), size))
            print(f"{size:,} candidates filled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        for one in stores:  # the first turns load code and caches
            take_turns(one, chosen.turns)
            one.times = {step: [] for step in STEPS}
        for _ in range(chosen.rounds):
            for one in stores:
                take_turns(one, chosen.turns)
        scans = {one.size: trace(one) for one in stores}
        show(stores, scans)
        for manager in managers:
            manager.__exit__(None, None, None)


if __name__ == "__main__":
    main()
