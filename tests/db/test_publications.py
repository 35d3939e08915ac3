"""The migration to publications keeps old events, their triggers, and what may be written."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from db.merge import merge
from db.publications import publications, record_publication
from db.store import Store
from db.tables.releases import Release
from db.upgrade import migration_config


def _upgrade(engine: Engine, revision: str) -> None:
    config = migration_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _event(connection: Connection, kind: str, at: str) -> None:
    values = {"kind": kind, "at": at}
    connection.execute(
        text("insert into release_event (release_id, kind, reason, at) values (1, :kind, 'r', :at)"), values
    )


def test_old_events_stay_frozen_and_only_known_kinds_come_in(store_url: str) -> None:
    engine = create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    _upgrade(engine, "0002")
    with engine.begin() as connection:
        connection.execute(
            text(
                "insert into release (id, name, digest, recipe, manifest, path, created_at) "
                "values (1, 'r-1.0.0', 'd', '{}', '{}', 'p', '2026-01-01 00:00:00')"
            )
        )
        _event(connection, "retired", "2026-01-02 00:00:00")
    engine.dispose()
    Store.open(store_url).close()
    engine = create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        _event(connection, "published", "2026-01-03 00:00:00")
        kinds = connection.execute(text("select kind, details from release_event order by at")).all()
    assert [tuple(row) for row in kinds] == [("retired", None), ("published", None)]
    for change in ("update release_event set reason = 'x'", "delete from release_event"):
        with pytest.raises(DBAPIError, match="frozen"), engine.begin() as connection:
            connection.execute(text(change))
    with pytest.raises(IntegrityError), engine.begin() as connection:
        _event(connection, "sold", "2026-01-04 00:00:00")
    engine.dispose()


def test_publications_come_along_when_stores_are_united(store: Store, tmp_path: Path) -> None:
    where = {"endpoint": "http://h", "repo": "a/b", "tag": "v1.0.0", "commit": "c" * 40}
    other = Store.open(f"sqlite:///{tmp_path / 'other.db'}")
    try:
        for opened in (store, other):
            with opened.write() as session:
                for name in ("other-1.0.0", "r-1.0.0") if opened is store else ("r-1.0.0",):
                    session.add(Release(name=name, digest="d" * 64, recipe={}, manifest={}, path="p"))
                    session.flush()
        record_publication(other, 1, **where)
        for _ in range(2):
            merge(store, other, progress=lambda done, total: None)
    finally:
        other.close()
    assert publications(store, 1) == [] and publications(store, 2) == [where]


def test_two_who_published_the_same_leave_one_event(store: Store) -> None:
    with store.write() as session:
        release = Release(name="toy-1.0.0", digest="d" * 64, recipe={}, manifest={}, path="x")
        session.add(release)
        session.flush()
        key = release.id
    at_once = Barrier(4)

    def record(_: int) -> bool:
        at_once.wait(60)
        return record_publication(store, key, endpoint="e", repo="me/toy", tag="1.0.0", commit="c" * 40)

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(record, range(4))) == [False, False, False, True]
    assert len(publications(store, key)) == 1
