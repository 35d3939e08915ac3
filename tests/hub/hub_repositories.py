"""Repositories of one kind in a folder: files by hash, commits as JSON, branches and tags in `repo.json`.

FOLDER/ORG/NAME/{repo.json, commits/OID.json, files/HASH}. Paths inside a repository are keys in JSON and never names on
disk. A commit or a tag appears by one rename, under one lock, so a reader sees it whole or not at all. One server
process per folder.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_OID = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"


class HubError(Exception):
    """What the client is told: HTTP status, message, and the Hub's own error code where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a commit: git's hash of the blob (of the pointer, for LFS), size in bytes, SHA-256 when it is LFS."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def stored_as(self) -> str:
        return self.sha256 or self.oid

    def to_json(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.sha256 else {}
        return {"type": "file", "path": path, "oid": self.oid, "size": self.size, **lfs}


Tree = dict[str, Entry]


class Repository:
    """One repository; every change is one rename."""

    def __init__(self, folder: Path, lock: RLock) -> None:
        self.folder, self._lock = folder, lock
        self.name = f"{folder.parent.name}/{folder.name}"

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "repo.json").read_bytes())

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit id means."""
        state = self.state()
        for refs in (state["branches"], state["tags"]):
            if revision in refs:
                return refs[revision]
        if _OID.fullmatch(revision) and (self.folder / "commits" / f"{revision}.json").exists():
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit_at(self, oid: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / f"{oid}.json").read_bytes())

    def tree(self, oid: str) -> Tree:
        return {path: Entry(**entry) for path, entry in self.commit_at(oid)["tree"].items()}

    def history(self, oid: str) -> Iterable[dict[str, Any]]:
        """Commits from the newest to the first."""
        at: str | None = oid
        while at:
            commit = self.commit_at(at)
            yield {"id": at, **commit}
            at = commit["parent"]

    def file(self, stored_as: str) -> Path:
        return self.folder / "files" / stored_as

    def add_blob(self, content: bytes) -> Entry:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        _write(self.file(oid), content)
        return Entry(oid, len(content))

    def lfs_entry(self, sha256: str, size: int) -> Entry:
        """A file that was uploaded before; git would keep a pointer to it."""
        path = self.file(sha256)
        if not SHA256.fullmatch(sha256) or not path.exists() or path.stat().st_size != size:
            raise HubError(400, f"LFS object {sha256} was not uploaded, or has another size than {size}")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return Entry(hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), size, sha256)

    def commit(
        self, branch: str, title: str, message: str, changes: dict[str, Entry | None], parent: str | None
    ) -> str:
        """Apply changes (None removes) on top of the branch; refused when its head is not `parent`."""
        with self._lock:
            state = self.state()
            head = state["branches"].get(branch)
            if head is None and state["branches"]:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if parent is not None and not (head or "").startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            tree = self.tree(head) if head else {}
            for path, entry in changes.items():
                if entry is None:
                    tree.pop(path, None)
                else:
                    tree[path] = entry
            oid = self._write_commit(tree, head, title, message)
            state["branches"][branch] = oid
            self._write_state(state)
        return oid

    def _write_commit(self, tree: Tree, parent: str | None, title: str, message: str) -> str:
        files = {path: {"oid": e.oid, "size": e.size, "sha256": e.sha256} for path, e in sorted(tree.items())}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = {"parent": parent, "title": title, "message": message, "date": now, "tree": files}
        content = json.dumps(commit, sort_keys=True).encode()
        oid = hashlib.sha1(content).hexdigest()
        _write(self.folder / "commits" / f"{oid}.json", content)
        return oid

    def tag(self, tag: str, revision: str) -> None:
        if not _NAME.fullmatch(tag):
            raise HubError(400, f"tag {tag!r}: letters, digits, dots, dashes and underscores")
        with self._lock:
            oid, state = self.resolve(revision), self.state()
            if tag in state["tags"]:
                raise HubError(409, f"Tag {tag} already exists")
            state["tags"][tag] = oid
            self._write_state(state)

    def untag(self, tag: str) -> None:
        with self._lock:
            state = self.state()
            if state["tags"].pop(tag, None) is None:
                raise HubError(404, f"Tag {tag} not found", "RevisionNotFound")
            self._write_state(state)

    def _write_state(self, state: dict[str, Any]) -> None:
        _write(self.folder / "repo.json", json.dumps(state, indent=1).encode())


class Repositories:
    """All repositories of one kind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, RLock()
        folder.mkdir(parents=True, exist_ok=True)

    def create(self, owner: str, name: str, *, is_private: bool) -> Repository:
        if not all(_NAME.fullmatch(part) for part in (owner, name)):
            raise HubError(400, f"{owner}/{name}: letters, digits, dots, dashes and underscores")
        repository = Repository(self.folder / owner / name, self._lock)
        with self._lock:
            if repository.folder.exists():
                raise HubError(409, "You already created this repo")
            partial = repository.folder.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            for part in ("commits", "files"):
                (partial / part).mkdir(parents=True)
            state = {"private": is_private, "branches": {}, "tags": {}}
            _write(partial / "repo.json", json.dumps(state).encode())
            draft = Repository(partial, self._lock)
            draft.commit("main", "initial commit", "", {".gitattributes": draft.add_blob(GIT_ATTRIBUTES)}, None)
            partial.rename(repository.folder)
        return repository

    def find(self, owner: str, name: str) -> Repository:
        repository = Repository(self.folder / owner / name, self._lock)
        is_named = all(_NAME.fullmatch(part) for part in (owner, name))
        if not is_named or not (repository.folder / "repo.json").exists():
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def delete(self, owner: str, name: str) -> None:
        with self._lock:
            shutil.rmtree(self.find(owner, name).folder)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}-{id(content)}")
    partial.write_bytes(content)
    partial.replace(path)
