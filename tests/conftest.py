"""Shared fixtures: a fresh migrated store, on SQLite and on PostgreSQL where its binaries or a server are at hand."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from db.store import Store


def _postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).parent if on_path else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server: GRADUS_TEST_POSTGRES, or a throw-away one on a Unix socket, gone after the tests."""
    if url := os.environ.get("GRADUS_TEST_POSTGRES"):
        yield url
        return
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server and no binaries to start one")
    folder = Path(tempfile.mkdtemp(prefix="gradus-pg-"))
    # PostgreSQL refuses to run as root, so root hands the throw-away server to the `postgres` user.
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    control = [*as_user, str(binaries / "pg_ctl"), "-D", str(folder / "data"), "-w", "-s"]
    subprocess.run(
        [*as_user, str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "gradus", "-A", "trust", "-E", "UTF8"],
        check=True, capture_output=True,
    )  # fmt: skip
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], check=True, capture_output=True)
    try:
        yield f"postgresql://gradus@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database."""
    name = f"gradus_{uuid4().hex}"
    admin = create_engine(
        postgres_server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text(f"create database {name}"))
    yield postgres_server.replace("/postgres?", f"/{name}?")
    with admin.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store.open(store_url)
    yield opened
    opened.close()


@dataclass(frozen=True, slots=True)
class LoopbackHub:
    """A Hub in a process of its own (tests/hub); `repo` is a name that no other test uses."""

    url: str
    repo: str
    folder: Path

    def faults(self, method: str = "GET", **fault: Any) -> dict[str, Any]:
        """What is switched on and what was asked for; POST with `at` and `do` switches a fault on, DELETE clears."""
        body = json.dumps(fault).encode() if fault else None
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(f"{self.url}/_faults", method=method, data=body, headers=headers), timeout=30) as answer:
            return json.loads(answer.read())

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a client process: this Hub, a cache of its own, a token; nothing of the machine's own."""
        theirs = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return theirs | ours | {"GRADUS_DATA": str(home / "gradus")} | more


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    folder = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(Path(__file__).parent / "hub"), str(folder), "--port", "0", "--faults"]
    with subprocess.Popen([*command, "--page-size", "3"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield LoopbackHub(server.stdout.readline().strip(), "", folder)
        finally:
            server.terminate()


@pytest.fixture
def hub(hub_server: LoopbackHub) -> Iterator[LoopbackHub]:
    yield LoopbackHub(hub_server.url, f"gradus/set-{uuid4().hex[:12]}", hub_server.folder)
    hub_server.faults("DELETE")


@pytest.fixture(scope="session")
def toy_releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose data folder `gradus` has a small store with releases toy-1.0.0 and toy-1.1.0 (other rows)."""
    from curation.release.recipe import Mix, ReleaseRecipe
    from curation.release.release import create_release

    home = tmp_path_factory.mktemp("toy")
    data = home / "gradus"
    data.mkdir()
    store = Store.open(f"sqlite:///{data / 'store.db'}")
    try:
        _fill_toy(store, 12)
        for name, slots in (("toy-1.0.0", 2), ("toy-1.1.0", 3)):
            create_release(store, ReleaseRecipe(mix=Mix(slots=slots)), name, folder=data / "releases")
    finally:
        store.close()
    return home


def _fill_toy(store: Store, num: int) -> None:
    from db.examples import NewCandidate, put_candidates, put_examples
    from db.insert import insert_missing
    from db.runs import start_run
    from db.tables.examples import Score
    from db.tables.texts import Collection
    from db.teachers import put_teacher
    from db.texts import put_passages, put_queries

    with store.write() as session:
        collection = Collection(name="toy", kind="pairs", licence="cc-by-4.0")
        session.add(collection)
        session.flush()
        run = start_run(session, "generate", "toy", {"pack": "v2", "pack_digest": "f" * 64}, 0)
        teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder", max_length=8)
        queries = put_queries(session, [f"query {n}" for n in range(num)])
        positives = put_passages(session, [f"positive {n}" for n in range(num)])
        pairs = list(zip(queries, positives, strict=True))
        examples = put_examples(session, pairs, origin="corpus", collection_id=collection.id)
        candidates, scores = [], []
        for n, (example, query, positive) in enumerate(zip(examples, queries, positives, strict=True)):
            candidates.append(NewCandidate(example, positive, "positive", "corpus", run.id))
            scores.append({"query_id": query, "passage_id": positive, "value": 0.9})
            texts = [f"written {n} {rank}" for rank in range(1, 5 - n % 3)]
            grades = ("hard", "medium", "medium", "easy")
            for rank, passage in enumerate(put_passages(session, texts), start=1):
                candidates.append(
                    NewCandidate(
                        example, passage, "negative", "synthetic", run.id, grade=grades[rank - 1], rank=rank
                    )
                )  # fmt: skip
                scores.append({"query_id": query, "passage_id": passage, "value": 0.9 - 0.1 * rank})
        put_candidates(session, candidates)
        insert_missing(session, Score, [{"teacher_id": teacher, "num_tokens": 3, **score} for score in scores])
