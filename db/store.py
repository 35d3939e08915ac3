"""Opening a store: one database at a URL, brought to this code's schema, with short explicit transactions.

SQLite runs in WAL mode with foreign keys on; a write begins IMMEDIATE, so that a writer waits for its turn instead of
failing halfway. Whoever opens a session owns its transaction: query functions never commit.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import Session

from db.errors import StoreError, StoreVersionError

SCHEMA_VERSION = "0007"
_BUSY_TIMEOUT_MS = 60_000
# The standard library's JSON takes several times as long, and every link of the ledger has two such columns.
_JSON: dict[str, Any] = {
    "json_serializer": lambda value: orjson.dumps(value).decode(),
    "json_deserializer": orjson.loads,
}


class Store:
    """A database with Gradus' schema. Use `read()` and `write()`; each is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(begin_immediate=True)

    @classmethod
    def open(cls, url: str) -> "Store":
        """Connect, create or upgrade the schema, and return the store.

        Raises:
            StoreError: The URL is malformed, or the server or folder cannot be reached.
            StoreVersionError: The database is not a Gradus store, or was written by a newer version.
        """
        engine = connect(url)
        try:
            _bring_up_to_date(engine)
        except DatabaseError as error:
            engine.dispose()
            reason = str(error.orig).splitlines()[0]
            raise StoreError(f"cannot open the store {shown_url(engine.url)}: {reason}") from error
        except StoreError:
            engine.dispose()
            raise
        return cls(engine)

    @property
    def sqlite_path(self) -> Path | None:
        """The database file, or None on a server."""
        is_file = self.engine.dialect.name == "sqlite" and self.engine.url.database
        return Path(str(self.engine.url.database)) if is_file else None

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any error."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()


def connect(url: str) -> Engine:
    """An engine with our connection settings; the schema is not looked at."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        # Where a password would stand is not known in what cannot be read.
        told = repr(url) if "@" not in url and "?" not in url else "what was given"
        raise StoreError(f"--store: {told} is not a database URL; try sqlite:///gradus-data/store.db") from error
    if backend == "sqlite":
        if parsed.host or not parsed.database or parsed.database == ":memory:":
            raise StoreError("a store lives in a file: give --store sqlite:///FOLDER/store.db")
        _make_folder(Path(parsed.database).parent)
        engine = create_engine(parsed, **_JSON)
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if backend == "postgresql":
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, **_JSON)
    raise StoreError(f"--store {shown_url(parsed)!r}: only sqlite:/// and postgresql:// stores are supported")


def shown_url(url: URL) -> str:
    """The URL for a person's eyes: no password, neither before the host nor among the parameters."""
    hidden = {name: "hidden" for name in url.query if "pass" in name.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the store's folder {folder}: {error.strerror}") from error


def _set_pragmas(dbapi_connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins too late and too weakly; we begin ourselves.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute(f"pragma busy_timeout = {_BUSY_TIMEOUT_MS}")
    _switch_to_wal(cursor)
    # FULL: a paid completion survives a power cut; group commits make the fsync cheap.
    cursor.execute("pragma synchronous = full")
    cursor.execute("pragma foreign_keys = on")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """SQLite does not wait for the lock here, whatever its busy timeout: two first openings of a file would fail."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("begin_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _bring_up_to_date(engine: Engine) -> None:
    version = stored_version(engine)
    if version == SCHEMA_VERSION:
        return
    if version is not None and version > SCHEMA_VERSION:
        raise StoreVersionError(
            f"the store's schema is {version}, this Gradus knows up to {SCHEMA_VERSION}: upgrade Gradus, then try again"
        )
    from db.upgrade import upgrade  # Alembic is slow to import and needed once in a store's life

    upgrade(engine)


def stored_version(engine: Engine) -> str | None:
    """The schema version in the database; None for an empty one.

    Raises:
        StoreVersionError: There are tables, but not ours.
    """
    with engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        if "alembic_version" in tables:
            return str(connection.exec_driver_sql("select version_num from alembic_version").scalar() or "") or None
    if tables:
        raise StoreVersionError(
            f"{shown_url(engine.url)} holds tables that are not a Gradus store ({', '.join(sorted(tables)[:3])}"
            ", ...): name another file or database with --store"
        )
    return None
