"""The schema: what must hold is a constraint, and the migrations build exactly the models' schema."""

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DatabaseError, IntegrityError

from db.digest import digest_text
from db.errors import StoreError, StoreVersionError
from db.runs import start_run
from db.store import SCHEMA_VERSION, Store
from db.tables.examples import Candidate, Example
from db.tables.ledger import Request
from db.tables.releases import Release, ReleaseItem
from db.tables.schema import IDENTITY, METADATA
from db.texts import put_passages, put_queries
from db.upgrade import migration_config


def _example(store: Store) -> tuple[int, int, int]:
    with store.write() as session:
        run = start_run(session, "import", "t", {"a": 1}, 0)
        (query,) = put_queries(session, ["q"])
        positive, negative = put_passages(session, ["p", "n"])
        example = Example(digest=digest_text("e"), query_id=query, positive_id=positive, origin="corpus")
        session.add(example)
        session.flush()
        return example.id, negative, run.id


def test_migrations_build_the_models_schema(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_schema_version_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(migration_config()).get_current_head() == SCHEMA_VERSION


def test_every_table_says_what_identifies_its_rows() -> None:
    assert set(IDENTITY) == set(METADATA.tables)
    for name, columns in IDENTITY.items():
        assert set(columns) <= set(METADATA.tables[name].columns.keys())


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "negative", "rank": 0},
        {"role": "negative", "grade": "impossible"},
        {"role": "positive", "grade": "hard", "rank": 1},
        {"role": "negative", "origin": "edited"},
        {"role": "distractor"},
    ],
)
def test_candidate_constraints_refuse(store: Store, fields: dict[str, object]) -> None:
    example, passage, run = _example(store)
    row = {"example_id": example, "passage_id": passage, "run_id": run, "origin": "synthetic", **fields}
    with pytest.raises(IntegrityError), store.write() as session:
        session.add(Candidate(**row))


def test_leased_request_needs_a_clock(store: Store) -> None:
    with pytest.raises(IntegrityError), store.write() as session:
        session.add(Request(digest="d", model="m", state="leased"))


@pytest.mark.parametrize("statement", ["update {} set {} = {}", "delete from {}"])
@pytest.mark.parametrize(("table", "column"), [("release", "name"), ("release_item", "split")])
def test_releases_are_frozen(store: Store, statement: str, table: str, column: str) -> None:
    example, passage, run = _example(store)
    with store.write() as session:
        candidate = Candidate(example_id=example, passage_id=passage, run_id=run, role="negative", origin="mined")
        release = Release(name="v1", digest="d", recipe={}, manifest={}, path="x")
        session.add_all([candidate, release])
        session.flush()
        session.add(ReleaseItem(release_id=release.id, candidate_id=candidate.id, split="train", position=0))
    with pytest.raises(DatabaseError, match="frozen"), store.write() as session:
        session.execute(sa.text(statement.format(table, column, "'other'")))


def test_texts_are_stored_once_and_ids_follow_the_order(store: Store) -> None:
    with store.write() as session:
        first = put_passages(session, ["b", "a", "b", "ç\n"])
        again = put_passages(session, ["a", "c", "b"])
    assert first[0] == first[2] and len(set(first)) == 3
    assert again[0] == first[1] and again[2] == first[0]


def test_failed_write_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.write() as session:
        put_passages(session, ["lost"])
        raise RuntimeError
    with store.read() as session:
        assert session.execute(sa.text("select count(*) from passage")).scalar() == 0


def test_foreign_keys_hold(store: Store) -> None:
    with pytest.raises(IntegrityError), store.write() as session:
        session.add(Example(digest="x", query_id=99, positive_id=99, origin="corpus"))


def test_newer_store_is_refused(store: Store, store_url: str) -> None:
    with store.write() as session:
        session.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(StoreVersionError, match="upgrade Gradus"):
        Store.open(store_url)


def test_foreign_database_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/other.db"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("create table notes (id integer)")
    engine.dispose()
    with pytest.raises(StoreVersionError, match="not a Gradus store"):
        Store.open(url)


@pytest.mark.parametrize("url", ["nonsense", "mysql://u@h/d", "sqlite://", "sqlite:////proc/none/x.db"])
def test_unusable_url_is_one_clear_error(url: str) -> None:
    with pytest.raises(StoreError):
        Store.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://bob:s3cret@h/db",
        "bob:s3cret@h",
        "postgresql://bob:s3cret@h:notaport/db",
        "sqlite://bob:s3cret@h/x",
        "nosuch://bob:s3cret@h/x",
        "postgresql://bob:s3cret@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=bob&password=s3cret",
        "postgresql://127.0.0.1:1/db?sslpassword=s3cret",
    ],
)
def test_no_error_of_a_url_shows_its_password(url: str) -> None:
    with pytest.raises(StoreError) as refused:
        Store.open(url)
    assert "s3cret" not in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_first_opening_waits_for_the_lock_of_another(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("begin immediate")
    other.execute("create table theirs (x)")
    release = threading.Timer(0.5, other.execute, ["rollback"])
    release.start()
    Store.open(f"sqlite:///{file}").close()
    release.join()
    other.close()


def test_two_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    code = f"from db.store import Store; Store.open('sqlite:///{tmp_path}/new.db'); print('open')"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True) for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["open"] * 3
