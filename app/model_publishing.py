"""A trained model's folder on the Hub: one commit, then every file compared with what the Hub lists."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AppError

if TYPE_CHECKING:
    from curation.publishing.changes import RemoteFile
    from curation.publishing.content import LocalFile
    from curation.publishing.hub import HubRepository


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where a model went; `is_new` is false when everything was there already."""

    repo: str
    url: str
    commit: str
    is_new: bool
    num_files: int
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def model_files(model: Path) -> dict[str, "LocalFile"]:
    """Every file of the folder by its path in the repository, but hidden ones."""
    from curation.publishing.content import LocalFile

    files = {}
    for path in sorted(model.rglob("*")):
        name = path.relative_to(model).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            with path.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            files[name] = LocalFile(name, path, path.stat().st_size, sha256)
    return files


def push_model(
    model: Path, hub: "HubRepository", *, is_private: bool, title: str, progress: Callable[[int], None]
) -> Pushed:
    """Make the repository where it is missing, commit what differs, and compare what the Hub has then.

    Files that are on the Hub alone stay there.

    Raises:
        PublishingError: The Hub refuses, or does not answer.
        AppError: It is public and was to be private, or the Hub lists other bytes than were sent.
    """
    files = model_files(model)
    hub.check_token()
    state = hub.state()
    if state is not None and is_private and not state.is_private:
        raise AppError(f"{hub.repo} is public and --private was asked for: change that in its settings")
    if state is None:
        hub.create(is_private=is_private)
        state = hub.state()
    head = state.head if state is not None else None
    missing = _different(files, hub.tree(head) if head else {})
    if missing:
        sent = [files[name] for name in missing]
        head = hub.commit(sent, [], title=title, message="", parent=head, over_xet=hub.has_xet(), progress=progress)
    wrong = _different(files, hub.tree(str(head)))
    if wrong:
        raise AppError(f"{hub.repo} at {str(head)[:12]}: {wrong[0]} is not what was sent; push again")
    size = sum(file.size for file in files.values())
    return Pushed(hub.repo, hub.url, str(head), bool(missing), len(files), size)


def _different(files: Mapping[str, "LocalFile"], tree: Mapping[str, "RemoteFile"]) -> list[str]:
    from curation.publishing.changes import is_same

    return [name for name, file in files.items() if name not in tree or not is_same(file, tree[name])]
