"""The loopback Hub against the real clients, each in a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _run(script: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


_PUSH = """
import sys
from datasets import Dataset
from huggingface_hub import HfApi
repo = sys.argv[1]
rows = {"anchor": [f"query {i}" for i in range(50)], "positive": [f"text {i}" for i in range(50)]}
Dataset.from_dict(rows).push_to_hub(repo, "pairs", split="train", num_shards=3)
Dataset.from_dict({"query": ["a", "b"]}).push_to_hub(repo, "graded", split="dev")
HfApi().create_tag(repo, tag="v1.0.0", repo_type="dataset")
"""
_LOAD = """
import sys
from datasets import load_dataset, get_dataset_config_names
repo = sys.argv[1]
assert get_dataset_config_names(repo) == ["graded", "pairs"], get_dataset_config_names(repo)
whole = load_dataset(repo, "pairs", revision="v1.0.0", split="train")
streamed = list(load_dataset(repo, "pairs", revision="v1.0.0", split="train", streaming=True))
assert streamed == list(whole) and len(streamed) == 50 and streamed[7] == {"anchor": "query 7", "positive": "text 7"}
print(len(streamed))
"""
_OFFLINE = """
import sys
from datasets import load_dataset
print(load_dataset(sys.argv[1], "pairs", revision="v1.0.0", split="train")[49]["positive"])
"""


def test_push_load_stream_and_load_offline_with_the_real_clients(hub: Any, tmp_path: Path) -> None:
    without_xet = hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1")
    _run(_PUSH, without_xet, hub.repo)
    reader = hub.environment(tmp_path / "reader")
    assert _run(_LOAD, reader, hub.repo).split() == ["50"]
    nowhere = reader | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert _run(_OFFLINE, nowhere, hub.repo).split() == ["text", "49"]


_COMMITS = """
import io, sys
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
api, repo = HfApi(), sys.argv[1]
api.create_repo(repo, repo_type="dataset")

def commit(parent=None, gone=(), **files):
    adds = [CommitOperationAdd(path.replace("_", "/"), io.BytesIO(text.encode())) for path, text in files.items()]
    operations = adds + [CommitOperationDelete(path) for path in gone]
    return api.create_commit(repo, operations, commit_message="m", repo_type="dataset", parent_commit=parent).oid

first = api.dataset_info(repo).sha
second = commit(parent=first, a_1="one", a_2="two", b_1="x" * 100)
try:
    commit(parent=first, a_1="other")
    raise SystemExit("a stale parent was taken")
except HfHubHTTPError as error:
    assert error.response.status_code == 412
assert commit(a_1="one") == second  # nothing changed, no commit
third = commit(gone=["a/2"], b_2="y")
paths = lambda revision: sorted(f.path for f in api.list_repo_tree(repo, recursive=True, repo_type="dataset",
                                                                  revision=revision))
assert paths(second) == [".gitattributes", "a", "a/1", "a/2", "b", "b/1"], paths(second)
assert paths("main") == [".gitattributes", "a", "a/1", "b", "b/1", "b/2"]
assert [c.commit_id for c in api.list_repo_commits(repo, repo_type="dataset")] == [third, second, first]
info = {f.path: f for f in api.get_paths_info(repo, ["a/1", "a", "nothing"], repo_type="dataset")}
assert sorted(info) == ["a", "a/1"] and info["a/1"].size == 3
api.create_tag(repo, tag="v1", revision=second, repo_type="dataset")
try:
    api.create_tag(repo, tag="v1", revision=third, repo_type="dataset")
    raise SystemExit("a tag was moved")
except HfHubHTTPError as error:
    assert error.response.status_code == 409
tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo, repo_type="dataset").tags}
assert tags == {"v1": second}
assert open(hf_hub_download(repo, "a/2", repo_type="dataset", revision="v1")).read() == "two"
for error, path, revision in [(EntryNotFoundError, "c", "v1"), (RevisionNotFoundError, "a/1", "v9")]:
    try:
        hf_hub_download(repo, path, repo_type="dataset", revision=revision)
        raise SystemExit("found")
    except error:
        pass
api.delete_repo(repo, repo_type="dataset")
assert not api.repo_exists(repo, repo_type="dataset")
"""


def test_commits_tags_trees_and_errors_are_the_hubs_own(hub: Any, tmp_path: Path) -> None:
    _run(_COMMITS, hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1"), hub.repo)


_PRIVATE = """
import sys
from huggingface_hub import HfApi
api, repo = HfApi(), sys.argv[1]
api.create_repo(repo, repo_type="dataset", private=True)
assert api.dataset_info(repo).private and not HfApi(token=False).repo_exists(repo, repo_type="dataset")
data = bytes(range(256)) * 40
api.upload_file(path_or_fileobj=data, path_in_repo="x.bin", repo_id=repo, repo_type="dataset")
from huggingface_hub import HfFileSystem
with HfFileSystem().open(f"datasets/{repo}/x.bin", block_size=100) as file:
    file.seek(5_000)
    assert file.read(300) == data[5_000:5_300]
"""


def test_private_repositories_need_a_token_and_ranges_are_read(hub: Any, tmp_path: Path) -> None:
    _run(_PRIVATE, hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1"), hub.repo)


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/etc/out", "a//b", ".git/config"])
def test_a_path_that_leaves_the_repository_is_refused(hub: Any, path: str) -> None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    def post(where: str, body: str) -> None:
        headers = {"Authorization": "Bearer hf_test", "Content-Type": "application/json"}
        urlopen(Request(hub.url + where, method="POST", data=body.encode(), headers=headers), timeout=30).close()

    owner, name = hub.repo.split("/")
    post("/api/repos/create", f'{{"type": "dataset", "organization": "{owner}", "name": "{name}"}}')
    file = f'{{"key": "file", "value": {{"path": "{path}", "content": ""}}}}'
    lines = f'{{"key": "header", "value": {{"summary": "m"}}}}\n{file}'
    with pytest.raises(HTTPError) as refused:
        post(f"/api/datasets/{hub.repo}/commit/main", lines)
    assert refused.value.code == 400
    refused.value.close()


def test_what_is_not_served_is_told_whatever_its_letters(hub: Any) -> None:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    with pytest.raises(HTTPError) as refused:
        urlopen(f"{hub.url}/%E6%97%A5%0A", timeout=30)
    with refused.value:
        assert refused.value.code == 404
        assert refused.value.headers["X-Error-Message"].startswith("The loopback Hub does not serve /?")


_SNAPSHOT = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
repo = sys.argv[1]
try:
    HfApi(token="hf_wrong").create_repo(repo, repo_type="dataset")
    raise SystemExit("another token may write")
except OSError as error:
    assert "401" in str(error), error
if not HfApi().repo_exists(repo, repo_type="dataset"):
    HfApi().create_repo(repo, repo_type="dataset")
    HfApi().upload_folder(folder_path=sys.argv[2], repo_id=repo, repo_type="dataset")
folder = Path(snapshot_download(repo, repo_type="dataset"))
print(sorted((str(p.relative_to(folder)), p.read_text()) for p in folder.rglob("*.txt")))
"""


def test_a_hub_with_a_token_keeps_everything_over_a_restart(hub: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(5):
        (source / f"part-{number % 2}").mkdir(parents=True, exist_ok=True)
        (source / f"part-{number % 2}" / f"{number}.txt").write_text(f"text {number}")
    expected = sorted((str(path.relative_to(source)), path.read_text()) for path in source.rglob("*.txt"))
    for start in ("first", "again"):
        command = [sys.executable, str(Path(__file__).parent), str(tmp_path / "data"), "--port", "0"]
        environment = hub.environment(tmp_path / start, HF_HUB_DISABLE_XET="1", LOOPBACK_HUB_TOKEN="hf_test")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                assert server.stdout is not None
                environment["HF_ENDPOINT"] = server.stdout.readline().strip()
                assert _run(_SNAPSHOT, environment, "org/set", str(source)).strip() == str(expected)
            finally:
                server.kill()
