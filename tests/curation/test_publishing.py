"""Publishing in process against the loopback Hub: every fault is one line and leaves nothing half done."""

import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from huggingface_hub import HfApi

from curation.errors import CurationError
from curation.publishing.changes import RemoteFile, changes, check_order, is_published, is_same
from curation.publishing.content import MANIFEST, Content, LocalFile, read_content
from curation.publishing.errors import MovedHeadError, PublishingError, TagExistsError, UnreachableError
from curation.publishing.hub import HubRepository
from curation.publishing.publishing import plan_publication, publish
from curation.release.catalogue import Version, list_releases
from curation.release.manifest import content_digest, manifest_bytes
from db.publications import publications, record_publication
from db.store import Store
from db.tables.releases import Release, ReleaseEvent

TOKEN = "hf_planted0token"
# The client hands its own HTTP library a file the old way, and is warned of it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def toy_store(toy_releases: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{toy_releases / 'gradus' / 'store.db'}")
    yield opened
    opened.close()


@pytest.fixture
def api(hub: Any) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def go(hub: Any, toy_store: Store) -> Callable[..., Any]:
    def run(name: str = "toy-1.0.0", *, is_private: bool = False, token: str | None = TOKEN, url: str = "") -> Any:
        repository = HubRepository(hub.repo, endpoint=url or hub.url, token=token)
        return publish(toy_store, name, repository, is_private=is_private)

    return run


def _tags(api: HfApi, repo: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo, repo_type="dataset").tags}


def _num_commits(api: HfApi, repo: str) -> int:
    return len(api.list_repo_commits(repo, repo_type="dataset"))


@pytest.mark.parametrize(
    ("at", "status", "message", "told"),
    [
        ("create", 403, "no rights in this organisation", "the token may not write to"),
        ("preupload", 403, "read-only token", "the token may not write to"),
        ("commit", 403, "read-only token", "the token may not write to"),
        ("batch", 507, "disk full", "no space left for"),
        ("upload", 507, "disk full", "no space left for"),
        ("commit", 413, "too large", "no space left for"),
        ("commit", 403, "Private repository storage limit reached", "no space left for"),
        ("commit", 401, "Invalid credentials in Authorization header", "does not take the token"),
        ("commit", 418, "teapot", "refused (committing; the Hub says: teapot)"),
    ],
)
def test_a_refusal_is_one_line_and_the_next_call_publishes(
    hub: Any, api: HfApi, go: Callable[..., Any], at: str, status: int, message: str, told: str
) -> None:
    hub.faults("POST", at=at, do="refuse", status=status, message=message)
    with pytest.raises(PublishingError) as refused:
        go()
    line = str(refused.value)
    assert told in line and message in line and "nothing was published" in line and "\n" not in line
    if at != "create":
        assert _num_commits(api, hub.repo) == 1 and not _tags(api, hub.repo)
    done = go()
    assert done.is_new_commit and _tags(api, hub.repo) == {"v1.0.0": done.commit}


def test_what_a_hub_says_drives_no_terminal(hub: Any, go: Callable[..., Any]) -> None:
    hub.faults("POST", at="commit", do="refuse", status=400, message="a" * 190 + "\x1b[2J\u202e" + "b" * 500)
    with pytest.raises(PublishingError) as refused:
        go()
    assert str(refused.value).isprintable() and "b" * 20 not in str(refused.value)


def test_a_moved_head_stops_and_the_next_call_publishes_on_top(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    hub.faults("POST", at="commit", do="move")
    with pytest.raises(MovedHeadError, match=r"has a new head.*run the same command again.*nothing was published"):
        go()
    assert not _tags(api, hub.repo) and _num_commits(api, hub.repo) == 2
    done = go()
    assert done.is_new_commit and api.file_exists(hub.repo, "elsewhere.txt", repo_type="dataset", revision="v1.0.0")


def test_a_connection_cut_between_upload_and_commit_leaves_nothing(
    hub: Any, api: HfApi, go: Callable[..., Any]
) -> None:
    hub.faults("POST", at="commit", do="cut")
    with pytest.raises(UnreachableError, match=r"connection was lost \(committing: .*run the same command again"):
        go()
    assert _num_commits(api, hub.repo) == 1
    assert go().is_new_commit


def test_a_gateway_that_fails_may_have_lost_an_answer(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    hub.faults("POST", at="commit", do="refuse", status=504, message="timeout")
    with pytest.raises(UnreachableError, match=r"failed \(committing; the Hub says: timeout\); how far it came is not"):
        go()
    assert go().is_new_commit


def test_a_commit_whose_answer_was_lost_is_found_and_tagged(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    hub.faults("POST", at="commit", do="cut-after")
    with pytest.raises(UnreachableError, match=r"\(committing: .*how far it came is not known"):
        go()
    done = go()
    assert not done.is_new_commit and done.is_new_tag and _num_commits(api, hub.repo) == 2


def test_a_tag_whose_answer_was_lost_is_found(hub: Any, api: HfApi, go: Callable[..., Any], toy_store: Store) -> None:
    hub.faults("POST", at="tag", do="cut-after")
    with pytest.raises(UnreachableError, match=r"\(tagging: .*how far it came is not known"):
        go()
    done = go()
    assert not done.is_new_commit and not done.is_new_tag
    assert publications(toy_store, 1)[-1] == {
        "endpoint": hub.url, "repo": hub.repo, "tag": "v1.0.0", "commit": done.commit,
    }  # fmt: skip


def test_an_upload_that_is_cut_once_is_sent_again_by_the_client(hub: Any, go: Callable[..., Any]) -> None:
    hub.faults("POST", at="upload", do="cut")
    assert go().is_new_commit


def test_other_bytes_on_the_way_back_are_noticed(hub: Any, go: Callable[..., Any]) -> None:
    hub.faults("POST", at="resolve", do="corrupt")
    with pytest.raises(PublishingError, match=r"came back as other bytes.*which was not verified"):
        go()
    done = go()
    assert done.num_verified == len(done.changes) and not done.is_new_commit


def test_a_tag_with_other_content_is_refused_before_anything_is_sent(
    hub: Any, api: HfApi, go: Callable[..., Any]
) -> None:
    api.create_repo(hub.repo, repo_type="dataset")
    api.create_tag(hub.repo, tag="v1.0.0", repo_type="dataset")
    with pytest.raises(PublishingError, match=r"tag v1.0.0 of .* holds other content than toy-1.0.0.*nothing was"):
        go()
    assert not {"preupload", "batch", "commit"} & set(hub.faults()["seen"])


def test_a_tag_taken_by_other_content_meanwhile_is_told(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    hub.faults("POST", at="tag", do="take", message="v1.0.0")
    with pytest.raises(TagExistsError, match=r"v1.0.0 .* was given to other content .*stays on main without a tag"):
        go()
    with pytest.raises(PublishingError, match=r"holds other content than toy-1.0.0"):
        go()
    assert _num_commits(api, hub.repo) == 2


def test_an_older_version_is_refused(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    go("toy-1.1.0")
    with pytest.raises(PublishingError, match=r"already at 'toy-1.1.0', which is newer than toy-1.0.0"):
        go("toy-1.0.0")
    assert list(_tags(api, hub.repo)) == ["v1.1.0"]


def test_a_strangers_file_that_would_be_loaded_is_refused(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    api.create_repo(hub.repo, repo_type="dataset")
    path = "graded/train-00000-of-00001-extra.parquet"
    api.upload_file(path_or_fileobj=BytesIO(b"x"), path_in_repo=path, repo_id=hub.repo, repo_type="dataset")
    with pytest.raises(PublishingError, match=rf"'{path}' .*came from no release"):
        go()
    api.delete_file(path, hub.repo, repo_type="dataset")
    assert go().is_new_commit


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nothing_is_asked(hub: Any, go: Callable[..., Any], token: str | None) -> None:
    with pytest.raises(PublishingError, match=r"no token for http.*set HF_TOKEN, or store one by `hf auth login`"):
        go(token=token)
    assert hub.faults()["seen"] == []


def test_private_is_private_and_never_goes_public(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    go(is_private=True)
    assert api.dataset_info(hub.repo).private
    assert not go().is_new_commit  # without the option the repository stays as it is
    assert api.dataset_info(hub.repo).private


def test_private_into_a_public_repository_is_refused(hub: Any, api: HfApi, go: Callable[..., Any]) -> None:
    api.create_repo(hub.repo, repo_type="dataset")
    with pytest.raises(PublishingError, match=r"is public and --private was asked for"):
        go(is_private=True)
    assert _num_commits(api, hub.repo) == 1


@pytest.mark.parametrize("fault", ["changed", "missing", "manifest", "gone"])
def test_a_folder_that_is_not_what_was_frozen_is_refused_before_the_network(
    hub: Any, go: Callable[..., Any], toy_releases: Path, fault: str
) -> None:
    folder = toy_releases / "gradus" / "releases" / "toy-1.0.0"
    backup = folder.with_name("backup")
    shutil.copytree(folder, backup)
    try:
        parquet = next(folder.glob("graded/*.parquet"))
        if fault == "changed":
            parquet.write_bytes(parquet.read_bytes()[:-1] + b"\0")
        elif fault == "missing":
            parquet.unlink()
        elif fault == "manifest":
            manifest = orjson.loads((folder / MANIFEST).read_bytes())
            (folder / MANIFEST).write_bytes(orjson.dumps(manifest | {"num_items": 7}))
        else:
            shutil.rmtree(folder)
        with pytest.raises(PublishingError, match=r"release 'toy-1.0.0' is not what was frozen: .*release export"):
            go()
        assert hub.faults()["seen"] == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        backup.rename(folder)


def test_names_are_checked_before_the_network(hub: Any, go: Callable[..., Any]) -> None:
    with pytest.raises(CurationError, match=r"'other-1.0.0'.* toy-1.0.0, toy-1.1.0"):
        go("other-1.0.0")
    assert hub.faults()["seen"] == []


@pytest.mark.parametrize(
    ("repo", "endpoint", "told"),
    [
        ("noslash", "http://h", "write ORG/NAME"),
        ("a/b/c", "http://h", "--repo"),
        ("a/../b", "http://h", "--repo"),
        ("a/b", "ftp://h", "--endpoint"),
        ("a/b", "http://user:secret@h", "leave credentials out"),
    ],
)
def test_a_repository_or_an_endpoint_that_is_none_is_refused(repo: str, endpoint: str, told: str) -> None:
    with pytest.raises(PublishingError) as refused:
        HubRepository(repo, endpoint=endpoint, token=TOKEN)
    assert told in str(refused.value) and "secret" not in str(refused.value)


def test_an_endpoint_that_does_not_answer_is_told_and_a_dry_run_goes_on(
    go: Callable[..., Any], toy_store: Store
) -> None:
    with pytest.raises(UnreachableError, match=r"127.0.0.1:9 does not answer.*nothing was published"):
        go(url="http://127.0.0.1:9")
    plan = plan_publication(
        toy_store, "toy-1.0.0", HubRepository("a/b", endpoint="http://127.0.0.1:9", token=None), is_private=False
    )
    assert not plan.is_reachable and {change.action for change in plan.changes} == {"add"}


def _content(tmp_path: Path, **files: bytes) -> Content:
    local = {}
    for name, text in files.items():
        path = name.replace("__", "/").replace("_", ".")
        file = tmp_path / name
        file.write_bytes(text)
        local[path] = LocalFile(path, file, len(text), _sha256(text))
    return Content(1, Version.parse("toy-1.2.0"), "d" * 64, local)


def _sha256(text: bytes) -> str:
    from hashlib import sha256

    return sha256(text).hexdigest()


def test_only_what_a_release_put_there_is_replaced_or_removed(tmp_path: Path) -> None:
    content = _content(tmp_path, README_md=b"new", graded__a=b"aa", graded__b=b"bbb", manifest_json=b"{}")
    tree = {
        "README.md": RemoteFile(3, "0" * 40, None),
        "graded/a": RemoteFile(2, "0" * 40, _sha256(b"aa")),
        "graded/b": RemoteFile(3, "0" * 40, _sha256(b"BBB")),
        "graded/old": RemoteFile(9, "0" * 40, None),
        "manifest.json": RemoteFile(2, "0" * 40, None),
        "LICENSE": RemoteFile(1, "0" * 40, None),
        ".gitattributes": RemoteFile(1, "0" * 40, None),
    }
    before = {"name": "toy-1.1.0", "files": {"graded/a": {}, "graded/b": {}, "graded/old": {}, ".gitattributes": {}}}
    assert {change.path: change.action for change in changes(content, tree, before)} == {
        "README.md": "replace", "graded/a": "keep", "graded/b": "replace", "graded/old": "remove",
        "manifest.json": "replace",
    }  # fmt: skip
    for stranger in (None, {}, {"files": []}, {"files": {"graded/b": {}, "README.md": {}}}):
        with pytest.raises(PublishingError, match=r"'graded/.*' .*of the repository came from no release"):
            changes(content, tree, stranger)


def test_bytes_are_compared_by_the_hash_that_the_hub_tells(tmp_path: Path) -> None:
    (local,) = _content(tmp_path, a=b"hello\n").files.values()
    git = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of hello
    assert is_same(local, RemoteFile(6, git, None)) and is_same(local, RemoteFile(6, "0" * 40, local.sha256))
    assert not is_same(local, RemoteFile(6, "0" * 40, None)) and not is_same(local, RemoteFile(7, git, None))
    assert not is_same(local, RemoteFile(6, git, "0" * 64))


def test_a_revision_with_more_files_in_our_folders_is_not_the_release(tmp_path: Path) -> None:
    content = _content(tmp_path, graded__a=b"aa")
    tree = {"graded/a": RemoteFile(2, "", _sha256(b"aa")), "LICENSE": RemoteFile(1, "", None)}
    assert is_published(content, tree)
    assert not is_published(content, tree | {"graded/z": RemoteFile(1, "", None)})
    assert not is_published(content, {})


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ("toy-1.1.9", None),
        ("toy-1.10.0", "newer"),
        ("toy-1.2.1", "newer"),
        ("other-1.0.0", "holds releases of 'other'"),
        ("\x1b[2Jtoy", r"holds release '\\x1b\[2Jtoy', without a version"),
    ],
)
def test_versions_go_up(tmp_path: Path, there: str, told: str | None) -> None:
    content = _content(tmp_path, a=b"")
    before = {"name": there, "digest": "e" * 64}
    if told is None:
        check_order(content, before)
    else:
        with pytest.raises(PublishingError, match=told):
            check_order(content, before)


def test_publications_are_remembered_once_and_retired_releases_refused(store: Store, tmp_path: Path) -> None:
    digest = content_digest({}, {})
    manifest = {"files": {}, "num_items": 0, "rows": {}, "recipe": {}, "digest": digest}
    with store.write() as session:
        release = Release(name="r-1.0.0", digest=digest, recipe={}, manifest=manifest, path=str(tmp_path / "r"))
        session.add(release)
        session.flush()
        number = release.id
    where = {"endpoint": "http://h", "repo": "a/b", "tag": "v1.0.0", "commit": "c" * 40}
    assert record_publication(store, number, **where) and not record_publication(store, number, **where)
    assert record_publication(store, number, **where | {"repo": "a/c"})
    assert [event["repo"] for event in publications(store, number)] == ["a/b", "a/c"]
    assert [listed.retired for listed in list_releases(store)] == [None]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / MANIFEST).write_bytes(manifest_bytes(manifest))
    assert list(read_content(store, "r-1.0.0").files) == [MANIFEST]
    with store.write() as session:
        session.add(ReleaseEvent(release_id=number, kind="retired", reason="wrong licence"))
    with pytest.raises(CurationError, match=r"'r-1.0.0' was retired on .*: wrong licence"):
        read_content(store, "r-1.0.0")
