"""`gradus publish` in processes of its own against the loopback Hub: once, again, at once, cut off, refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from db.store import Store
from db.tables.releases import ReleaseEvent

pytestmark = pytest.mark.slow
TOKEN = "hf_planted0token0that0nobody0may0find"
GRADUS = [sys.executable, "-c", "from app.cli import main; main()"]
ROOT = Path(__file__).parents[2]


def _command(hub: Any, *more: str, release: str = "toy-1.0.0") -> list[str]:
    return [*GRADUS, "publish", release, "--repo", hub.repo, *more]


def _environment(hub: Any, home: Path, **more: str) -> dict[str, str]:
    return hub.environment(home, **{"HF_TOKEN": TOKEN, "COLUMNS": "200"} | more)


@pytest.fixture
def publish(hub: Any, toy_releases: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*more: str, release: str = "toy-1.0.0", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            _command(hub, *more, release=release), env=_environment(hub, toy_releases, **environment), cwd=ROOT,
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


def _events(hub: Any, home: Path) -> list[dict[str, str] | None]:
    """Publications in this test's repository, as the store remembers them."""
    store = Store.open(f"sqlite:///{home / 'gradus' / 'store.db'}")
    try:
        with store.read() as session:
            every = list(session.scalars(select(ReleaseEvent.details).order_by(ReleaseEvent.id)))
    finally:
        store.close()
    return [details for details in every if details and details["repo"] == hub.repo]


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
    hub: Any, toy_releases: Path, tmp_path: Path, publish: Callable[..., Any]
) -> None:
    report = _report(publish("--json", "-"))
    assert report["is_new_commit"] and report["is_new_tag"] and report["over_xet"] is False
    assert report["tag"] == "v1.0.0" and report["num_verified"] == len(report["files"])
    assert {file["action"] for file in report["files"]} == {"add"}
    details = {"endpoint": hub.url, "repo": hub.repo, "tag": "v1.0.0", "commit": report["commit"]}
    assert _events(hub, toy_releases) == [details]
    manifest = str(toy_releases / "gradus" / "releases" / "toy-1.0.0" / "manifest.json")
    reader = hub.environment(tmp_path / "reader")
    configurations = _python(_LOAD, reader, hub.repo, "v1.0.0", manifest, "stream")
    offline = reader | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert _python(_LOAD, offline, hub.repo, "v1.0.0", manifest, "whole") == configurations


def test_a_release_that_was_moved_is_published_from_where_it_lies(
    toy_releases: Path, tmp_path: Path, publish: Callable[..., Any]
) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(toy_releases / "gradus" / "releases" / "toy-1.0.0", copy)
    assert _report(publish("--folder", str(copy), "--json", "-"))["is_new_commit"]
    (copy / "README.md").write_text("x")
    assert "README.md: changed" in _refused(publish("--folder", str(copy), "--dry-run"))


def test_a_dry_run_tells_that_the_token_would_be_refused(publish: Callable[..., Any]) -> None:
    plan = _report(publish("--dry-run", "--json", "-", HF_TOKEN=""))
    assert plan["is_reachable"] and plan["note"].startswith("no token for ")
    assert "would be refused: no token for" in publish("--dry-run", HF_TOKEN="").stdout
    assert _report(publish("--dry-run", "--json", "-"))["note"] == ""


def test_publishing_again_makes_no_commit_and_no_second_event(
    hub: Any, toy_releases: Path, publish: Callable[..., Any]
) -> None:
    first = _report(publish("--json", "-"))
    again = _report(publish("--json", "-"))
    assert not again["is_new_commit"] and not again["is_new_tag"] and again["commit"] == first["commit"]
    assert {file["action"] for file in again["files"]} == {"keep"}
    assert _seen(hub, "commit") == 1 and _seen(hub, "tag") == 1 and len(_events(hub, toy_releases)) == 1


def test_the_next_version_replaces_the_files_and_keeps_the_old_tag(
    hub: Any, toy_releases: Path, tmp_path: Path, publish: Callable[..., Any]
) -> None:
    _report(publish("--json", "-"))
    report = _report(publish("--json", "-", release="toy-1.1.0"))
    assert {file["action"] for file in report["files"]} >= {"keep", "replace"}
    reader = hub.environment(tmp_path / "reader")
    for version in ("1.0.0", "1.1.0"):
        manifest = str(toy_releases / "gradus" / "releases" / f"toy-{version}" / "manifest.json")
        _python(_LOAD, reader, hub.repo, f"v{version}", manifest, "whole")
    assert _report(publish("--json", "-"))["is_new_commit"] is False  # its tag is there


def _publish_at_once(hub: Any, home: Path, *releases: str) -> list[subprocess.CompletedProcess[str]]:
    running = [
        subprocess.Popen(
            _command(hub, "--json", "-", release=release), env=_environment(hub, home), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for release in releases
    ]  # fmt: skip
    done = []
    for process in running:
        out, error = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return done


def test_of_two_publishers_one_wins_and_the_other_is_told(
    hub: Any, toy_releases: Path, publish: Callable[..., Any]
) -> None:
    hub.faults("POST", at="commit", do="gather", times=2)
    done = _publish_at_once(hub, toy_releases, "toy-1.0.0", "toy-1.1.0")
    (won,) = [one for one in done if one.returncode == 0]
    (lost,) = [one for one in done if one.returncode == 1]
    line = _refused(lost)
    assert "has a new head" in line and "run the same command again" in line and "nothing was published" in line
    assert [event["commit"] for event in _events(hub, toy_releases) if event] == [_report(won)["commit"]]
    assert _seen(hub, "tag") == 1


def test_two_publishers_of_the_same_untagged_commit_both_succeed(
    hub: Any, toy_releases: Path, publish: Callable[..., Any]
) -> None:
    hub.faults("POST", at="tag", do="cut")
    _refused(publish())
    hub.faults("POST", at="tag", do="gather", times=2)
    reports = [_report(one) for one in _publish_at_once(hub, toy_releases, "toy-1.0.0", "toy-1.0.0")]
    assert sorted(report["is_new_tag"] for report in reports) == [False, True]
    assert not any(report["is_new_commit"] for report in reports) and len(_events(hub, toy_releases)) == 1


def _kill_at(hub: Any, home: Path, step: str) -> None:
    """Publish, and kill the process for good while the Hub has its request for that step in hand."""
    hub.faults("POST", at=step, do="hold")
    with subprocess.Popen(_command(hub), env=_environment(hub, home), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        for _ in range(3_000):
            if hub.faults()["active"][0]["waiting"] or process.poll() is not None:
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    hub.faults("DELETE")


def test_a_publisher_killed_between_commit_and_tag_is_finished_by_the_next_call(
    hub: Any, toy_releases: Path, publish: Callable[..., Any]
) -> None:
    _kill_at(hub, toy_releases, "tag")
    assert _events(hub, toy_releases) == []
    plan = _report(publish("--dry-run", "--json", "-"))
    assert plan["commit"] and not plan["is_tagged"]
    report = _report(publish("--json", "-"))
    assert report["commit"] == plan["commit"] and not report["is_new_commit"] and report["is_new_tag"]
    assert _seen(hub, "commit") == 0 and _seen(hub, "upload") == 0


def test_a_publisher_killed_between_upload_and_commit_left_nothing_and_uploads_nothing_twice(
    hub: Any, toy_releases: Path, publish: Callable[..., Any]
) -> None:
    _kill_at(hub, toy_releases, "commit")
    plan = _report(publish("--dry-run", "--json", "-"))
    assert plan["commit"] is None and {file["action"] for file in plan["files"]} == {"add"}
    assert _report(publish("--json", "-"))["is_new_commit"] and _seen(hub, "upload") == 0


def test_a_release_covered_by_another_before_its_tag_is_tagged_where_it_stands(
    hub: Any, toy_releases: Path, publish: Callable[..., Any]
) -> None:
    hub.faults("POST", at="tag", do="cut")
    line = _refused(publish())
    assert "(tagging: " in line and "run the same command again, it goes on from there" in line
    newer = _report(publish("--json", "-", release="toy-1.1.0"))
    report = _report(publish("--json", "-"))
    assert report["is_new_tag"] and not report["is_new_commit"] and report["commit"] != newer["commit"]


def test_a_dry_run_lists_what_would_change_and_writes_nothing(
    hub: Any, toy_releases: Path, publish: Callable[..., Any]
) -> None:
    plan = _report(publish("--dry-run", "--json", "-"))
    assert plan["is_new_repository"] and plan["is_reachable"] and plan["tag"] == "v1.0.0"
    folder = toy_releases / "gradus" / "releases" / "toy-1.0.0"
    on_disk = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert {file["path"]: file["size"] for file in plan["files"]} == on_disk
    nowhere = publish("--dry-run", "--endpoint", "http://127.0.0.1:9")
    assert nowhere.returncode == 0 and "does not answer" in nowhere.stdout
    assert all(name in nowhere.stdout for name in on_disk)
    written = {"create", "preupload", "batch", "upload", "commit", "tag"}
    assert not written & set(hub.faults()["seen"]) and _events(hub, toy_releases) == []


def _holding(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_the_token_is_nowhere_afterwards(hub: Any, toy_releases: Path, publish: Callable[..., Any]) -> None:
    stored = toy_releases / "token"
    stored.write_text(TOKEN)
    try:
        for step in ("create", "preupload", "batch", "commit", "tag"):
            hub.faults("POST", at=step, do="refuse", status=400, message=f"you sent Authorization: Bearer {TOKEN}")
            assert "Bearer ***" in _refused(publish(HF_TOKEN=""))
        assert TOKEN not in publish("--json", str(toy_releases / "report.json"), HF_TOKEN="").stdout
        assert len(_events(hub, toy_releases)) == 1
        assert _holding(toy_releases, TOKEN) == [stored] and _holding(hub.folder, TOKEN) == []
    finally:
        stored.unlink()
