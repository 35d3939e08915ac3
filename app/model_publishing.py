"""A trained model's folder on the Hub: one commit, a tag where one is asked for, then every file compared.

The Hub is asked what is there before anything is written: a call that was cut off is finished by the next one, and a
model that is there already costs no commit.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from app.errors import AppError

if TYPE_CHECKING:
    from curation.publishing.changes import RemoteFile
    from curation.publishing.content import LocalFile
    from curation.publishing.hub import HubRepository

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
_EVENTS = "events.out.tfevents."


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where a model went; `is_new` is false when every file was there already."""

    repo: str
    url: str
    commit: str
    tag: str | None
    is_new: bool
    is_new_tag: bool
    num_files: int
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def model_files(model: Path) -> dict[str, "LocalFile"]:
    """Every file of the folder by its path in the repository, but hidden ones.

    TensorBoard puts the machine's name into those of its events, which is nobody's business there: they are numbered.
    """
    from curation.publishing.content import LocalFile

    files: dict[str, LocalFile] = {}
    for path in sorted(model.rglob("*")):
        name = path.relative_to(model).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in name.split("/")):
            continue
        if path.name.startswith(_EVENTS):
            number = sum(_EVENTS in known for known in files)
            name = str(PurePosixPath(name).with_name(f"{_EVENTS}{number}"))
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        files[name] = LocalFile(name, path, path.stat().st_size, sha256)
    return files


def push_model(
    model: Path,
    hub: "HubRepository",
    *,
    is_private: bool,
    title: str,
    tag: str | None = None,
    progress: Callable[[int], None],
) -> Pushed:
    """Make the repository where it is missing, commit what differs, tag, and compare what the Hub has then.

    Files that are on the Hub alone stay there, unless they hold weights that would be loaded with the model: those
    stop the push.

    Raises:
        PublishingError: The Hub refuses, or does not answer.
        AppError: It is public and was to be private, weights are in the way, the tag names other files, or the Hub
            lists other bytes than were sent.
    """
    from curation.publishing.errors import MovedHeadError, UnreachableError

    files = model_files(model)
    hub.check_token()
    state = hub.state()
    if state is not None and is_private and not state.is_private:
        raise AppError(f"{hub.repo} is public and --private was asked for: change that in its settings")
    try:
        if state is None:
            hub.create(is_private=is_private)
            state = hub.state()
        return _push(files, hub, state.head if state is not None else None, title=title, tag=tag, progress=progress)
    except UnreachableError as error:
        raise UnreachableError(f"{error}; run the same command again, it goes on from what is there") from error
    except MovedHeadError as error:
        raise MovedHeadError(f"{error}: run the same command again to push on top of it") from error


def _push(
    files: Mapping[str, "LocalFile"],
    hub: "HubRepository",
    head: str | None,
    *,
    title: str,
    tag: str | None,
    progress: Callable[[int], None],
) -> Pushed:
    commit = _tagged(files, hub, tag) if tag is not None else None
    is_new_tag = tag is not None and commit is None
    there = hub.tree(head) if head is not None else {}
    if commit is None and head is not None:
        if not _different(files, there):
            commit = head
        elif tag is not None:
            commit = _cut_off(files, hub, head, title)
    is_new = commit is None
    if commit is None:
        _check_weights(files, there, hub)
        sent = [files[name] for name in _different(files, there)]
        with catch_warnings():
            filterwarnings("ignore", "It seems that you are about to commit a data file")  # the margins: they are meant
            commit = hub.commit(
                sent, [], title=title, message="", parent=head, over_xet=hub.has_xet(), progress=progress
            )
    wrong = _different(files, hub.tree(commit))
    if wrong:
        raise AppError(f"{hub.repo} at {commit[:12]}: {wrong[0]} is not what was sent; push again")
    if tag is not None and is_new_tag:
        is_new_tag = _tag(files, hub, tag, commit)
    size = sum(file.size for file in files.values())
    return Pushed(hub.repo, hub.url, commit, tag, is_new, is_new_tag, len(files), size)


def _tagged(files: Mapping[str, "LocalFile"], hub: "HubRepository", tag: str) -> str | None:
    """The commit that the tag names, which has these files; None where there is no such tag."""
    commit = hub.tags().get(tag)
    if commit is not None and (other := _different(files, hub.tree(commit))):
        raise AppError(
            f"--tag {tag}: {hub.repo} has that tag with another {other[0]} (commit {commit[:12]}); a tag is a promise, "
            "give this model another one"
        )
    return commit


def _cut_off(files: Mapping[str, "LocalFile"], hub: "HubRepository", head: str, title: str) -> str | None:
    """The commit of an earlier call that did not come to its tag, whatever was committed on top of it since."""
    tagged = set(hub.tags().values())
    earlier = (commit for commit, name in hub.commits(head) if name == title and commit not in tagged)
    return next((commit for commit in earlier if not _different(files, hub.tree(commit))), None)


def _tag(files: Mapping[str, "LocalFile"], hub: "HubRepository", tag: str, commit: str) -> bool:
    """Whether this call made the tag; another push of the same model may have been faster."""
    from curation.publishing.errors import TagExistsError

    try:
        hub.tag(tag, commit)
    except TagExistsError:
        return _tagged(files, hub, tag) is None
    return True


def _check_weights(files: Mapping[str, "LocalFile"], there: Mapping[str, "RemoteFile"], hub: "HubRepository") -> None:
    strange = [name for name in sorted(there) if name not in files and name.endswith(_WEIGHTS)]
    if strange:
        raise AppError(
            f"{hub.repo} holds {strange[0]}, which this model has not and which could be loaded in its place: "
            "remove it there, or choose another --repo"
        )


def _different(files: Mapping[str, "LocalFile"], tree: Mapping[str, "RemoteFile"]) -> list[str]:
    from curation.publishing.changes import is_same

    return [name for name, file in files.items() if name not in tree or not is_same(file, tree[name])]
