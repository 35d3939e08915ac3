"""`gradus publish` in processes of its own against the loopback Hub: once, again, at once, cut off, refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from curation.release.recipe import Mix, ReleaseRecipe
from curation.release.release import create_release
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.releases import ReleaseEvent
from db.tables.texts import Collection
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

TOKEN = "hf_planted0token0that0nobody0may0find"
GRADUS = [sys.executable, "-c", "from app.cli import main; main()"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data folder with the releases toy-1.0.0 and toy-1.1.0 (fewer configurations, other rows) of one small store."""
    data = tmp_path / "home" / "gradus"
    data.mkdir(parents=True)
    store = Store.open(f"sqlite:///{data / 'store.db'}")
    try:
        _fill(store, 12)
        for version, slots in (("1.0.0", 2), ("1.1.0", 3)):
            recipe = ReleaseRecipe(mix=Mix(slots=slots), seed=slots)
            create_release(store, recipe, f"toy-{version}", folder=data / "releases")
    finally:
        store.close()
    return tmp_path / "home"


def _fill(store: Store, num: int) -> None:
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


def _command(hub: Any, *more: str, release: str = "toy-1.0.0") -> list[str]:
    return [*GRADUS, "publish", release, "--repo", hub.repo, *more]


def _environment(hub: Any, home: Path, **more: str) -> dict[str, str]:
    return hub.environment(home, HF_TOKEN=TOKEN, COLUMNS="200", **more)


@pytest.fixture
def publish(hub: Any, home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*more: str, release: str = "toy-1.0.0", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            _command(hub, *more, release=release), env=_environment(hub, home, **environment), cwd=ROOT,
            check=False, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


def _refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a person sees."""
    assert done.returncode == 1, done.stdout + done.stderr
    line = done.stderr.strip()
    assert line.startswith("gradus: ") and "\n" not in line, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return line


def _report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return orjson.loads(done.stdout)


def _python(script: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _events(home: Path) -> list[dict[str, str] | None]:
    store = Store.open(f"sqlite:///{home / 'gradus' / 'store.db'}")
    try:
        with store.read() as session:
            return list(session.scalars(select(ReleaseEvent.details).order_by(ReleaseEvent.id)))
    finally:
        store.close()


def _seen(hub: Any, step: str) -> int:
    return hub.faults()["seen"].count(step)


_LOAD = """
import hashlib, json, sys
from datasets import get_dataset_config_names, load_dataset
repo, tag, manifest = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
for config, splits in manifest["rows"].items():
    for split, rows in splits.items():
        whole = load_dataset(repo, config, revision=tag, split=split)
        assert len(whole) == rows, (config, split, len(whole), rows)
        if sys.argv[4] == "stream":
            assert list(load_dataset(repo, config, revision=tag, split=split, streaming=True)) == list(whole)
print(sorted(manifest["rows"]))
"""


def test_a_published_release_loads_by_tag_streams_and_loads_offline(
    hub: Any, home: Path, tmp_path: Path, publish: Callable[..., Any]
) -> None:
    report = _report(publish("--json", "-"))
    assert report["is_new_commit"] and report["is_new_tag"] and report["over_xet"] is False
    assert report["tag"] == "v1.0.0" and report["num_verified"] == len(report["files"])
    assert {file["action"] for file in report["files"]} == {"add"}
    details = {"endpoint": hub.url, "repo": hub.repo, "tag": "v1.0.0", "commit": report["commit"]}
    assert _events(home) == [details]
    manifest = str(home / "gradus" / "releases" / "toy-1.0.0" / "manifest.json")
    reader = hub.environment(tmp_path / "reader")
    configurations = _python(_LOAD, reader, hub.repo, "v1.0.0", manifest, "stream")
    offline = reader | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert _python(_LOAD, offline, hub.repo, "v1.0.0", manifest, "whole") == configurations


def test_publishing_again_makes_no_commit_and_no_second_event(
    hub: Any, home: Path, publish: Callable[..., Any]
) -> None:
    first = _report(publish("--json", "-"))
    again = _report(publish("--json", "-"))
    assert not again["is_new_commit"] and not again["is_new_tag"] and again["commit"] == first["commit"]
    assert {file["action"] for file in again["files"]} == {"keep"}
    assert _seen(hub, "commit") == 1 and _seen(hub, "tag") == 1 and len(_events(home)) == 1


def test_the_next_version_replaces_the_files_and_keeps_the_old_tag(
    hub: Any, home: Path, tmp_path: Path, publish: Callable[..., Any]
) -> None:
    _report(publish("--json", "-"))
    report = _report(publish("--json", "-", release="toy-1.1.0"))
    assert {file["action"] for file in report["files"]} >= {"keep", "replace"}
    reader = hub.environment(tmp_path / "reader")
    for version in ("1.0.0", "1.1.0"):
        manifest = str(home / "gradus" / "releases" / f"toy-{version}" / "manifest.json")
        _python(_LOAD, reader, hub.repo, f"v{version}", manifest, "whole")
    assert "is already at toy-1.1.0, which is newer" not in _refused(publish(release="toy-9.0.0"))
    assert _report(publish("--json", "-"))["is_new_commit"] is False  # its tag is there
