"""The part of the Hub's HTTP interface that its clients use for data sets and models, over a folder.

Both kinds go through the same routes, a door each: `/api/datasets` with `/datasets/ORG/NAME`, and `/api/models` with
`/ORG/NAME`.

No Xet: uploads go over LFS, so clients that have `hf_xet` need HF_HUB_DISABLE_XET=1 (`gradus publish` finds out by
itself). Reading is open but for private repositories; writing takes a token: the Hub's own where it has one, else any.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs

import yaml
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from hub_repositories import SHA256, Entry, HubError, Repositories, Repository
from starlette.concurrency import run_in_threadpool

_REGULAR_BYTES = 10 << 20
_LFS_ENDINGS = {".parquet", ".arrow", ".png", ".jpg", ".gz", ".zst", ".zip", ".npy", ".safetensors", ".bin"}
_PAGES = {"dataset": "/datasets", "model": ""}  # in this order: a model's address could be read as a data set's


class Door:
    """The repositories of one kind, where they are, and who may come in. `token` None: any token may write."""

    def __init__(self, kind: str, folder: Path, token: str | None, user: str) -> None:
        self.kind, self.repositories, self._token, self.user = kind, Repositories(folder / f"{kind}s"), token, user
        self.api, self.pages = f"/api/{kind}s/{{owner}}/{{name}}", _PAGES[kind] + "/{owner}/{name}"

    def _given(self, request: Request) -> str | None:
        return request.headers.get("authorization", "").removeprefix("Bearer ").strip() or None

    def is_known(self, request: Request) -> bool:
        given = self._given(request)
        return bool(given) and (self._token is None or hmac.compare_digest(given.encode(), self._token.encode()))

    def check(self, request: Request) -> None:
        if not self.is_known(request):
            raise HubError(401, "Invalid credentials in Authorization header")

    def readable(self, request: Request, owner: str, name: str) -> Repository:
        repository = self.repositories.find(owner, name)
        if repository.state()["private"] and not self.is_known(request):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, request: Request, owner: str, name: str) -> Repository:
        self.check(request)
        return self.repositories.find(owner, name)

    def address(self, request: Request, repository: Repository) -> str:
        return f"{_base(request)}{_PAGES[self.kind]}/{repository.name}"


def build_hub(folder: Path, *, token: str | None = None, user: str = "loopback", page_size: int = 1_000) -> FastAPI:
    """The application; `folder` holds everything."""
    hub = FastAPI(title="Loopback Hub", docs_url=None, redoc_url=None, openapi_url=None)
    doors = {kind: Door(kind, folder, token, user) for kind in _PAGES}
    hub.state.repositories = {kind: door.repositories for kind, door in doors.items()}
    hub.add_exception_handler(HubError, _tell)  # type: ignore[arg-type]
    _add_accounts(hub, doors)
    for door in doors.values():
        _add_revisions(hub, door, page_size)
        _add_files(hub, door, page_size)
        _add_writing(hub, door)
        _add_large_files(hub, door)

    @hub.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
    def unknown(path: str) -> None:
        if "xet-write-token" in path or "xet-read-token" in path:
            raise HubError(404, "This Hub has no Xet storage: set HF_HUB_DISABLE_XET=1, uploads then go over LFS")
        raise HubError(404, f"The loopback Hub does not serve /{path}")

    return hub


def _tell(request: Request, error: HubError) -> Response:
    headers = {"X-Error-Message": error.message.replace("\n", " ").encode("ascii", "replace").decode()}
    headers |= {"X-Error-Code": error.code} if error.code else {}
    headers |= {"X-Repo-Commit": error.commit} if error.commit else {}
    return JSONResponse({"error": error.message}, error.status, headers)


def _add_accounts(hub: FastAPI, doors: dict[str, Door]) -> None:
    anybody = doors["model"]

    @hub.get("/api/whoami-v2")
    def whoami(request: Request) -> dict[str, Any]:
        anybody.check(request)
        name, auth = anybody.user, {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
        return {"type": "user", "id": "0", "name": name, "fullname": name, "orgs": [], "auth": auth}

    async def asked_of(request: Request) -> tuple[Door, str, dict[str, Any]]:
        """Door, owner and wish of a request for a whole repository."""
        anybody.check(request)
        asked = await request.json()
        kind = asked.get("type") or "model"
        if kind not in doors:
            raise HubError(400, f"The loopback Hub holds data sets and models, not a {kind}")
        return doors[kind], asked.get("organization") or anybody.user, asked

    @hub.post("/api/repos/create")
    async def create(request: Request) -> dict[str, Any]:
        door, owner, asked = await asked_of(request)
        is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = await run_in_threadpool(door.repositories.create, owner, asked["name"], is_private=is_private)
        return {"url": door.address(request, repository), "name": repository.name, "id": repository.name}

    @hub.delete("/api/repos/delete")
    async def delete(request: Request) -> dict[str, Any]:
        door, owner, asked = await asked_of(request)
        await run_in_threadpool(door.repositories.delete, owner, asked["name"])
        return {}

    @hub.post("/api/validate-yaml")
    async def validate(request: Request) -> Response:
        content = (await request.json())["content"]
        errors, warnings = _card_faults(content)
        return JSONResponse({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def _card_faults(content: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Errors and warnings about a card's metadata block."""
    parts = content.split("---\n", 2)
    if not content.startswith("---\n") or len(parts) < 3:
        return [], [{"message": "empty or missing yaml metadata in repo card"}]
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        return [{"message": f"not YAML: {error}"}], []
    if not isinstance(metadata, dict):
        return [{"message": "the metadata is no mapping"}], []
    names = [config.get("config_name") for config in metadata.get("configs") or [] if isinstance(config, dict)]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [{"message": f"config_name {name!r} is there twice"} for name in twice], []


def _add_revisions(hub: FastAPI, door: Door, page_size: int) -> None:
    @hub.get(door.api)
    def main(request: Request, owner: str, name: str) -> dict[str, Any]:
        return _info(door.readable(request, owner, name), "main")

    @hub.get(door.api + "/revision/{revision}")
    def at_revision(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        return _info(door.readable(request, owner, name), revision)

    @hub.get(door.api + "/refs")
    def refs(request: Request, owner: str, name: str) -> dict[str, Any]:
        state = door.readable(request, owner, name).state()
        branches = [_ref(f"refs/heads/{key}", key, oid) for key, oid in state["branches"].items()]
        tags = [_ref(f"refs/tags/{key}", key, oid) for key, oid in state["tags"].items()]
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    @hub.get(door.api + "/commits/{revision}")
    def commits(request: Request, owner: str, name: str, revision: str, cursor: int = 0) -> Response:
        repository = door.readable(request, owner, name)
        history = [
            {key: commit[key] for key in ("id", "title", "message", "date")} | {"authors": [{"user": door.user}]}
            for commit in repository.history(repository.resolve(revision))
        ]
        return _page(request, history, cursor, page_size)


def _add_files(hub: FastAPI, door: Door, page_size: int) -> None:
    @hub.get(door.api + "/tree/{revision}")
    @hub.get(door.api + "/tree/{revision}/{path:path}")
    def tree(
        request: Request, owner: str, name: str, revision: str, path: str = "", recursive: bool = False, cursor: int = 0
    ) -> Response:
        repository = door.readable(request, owner, name)
        oid = repository.resolve(revision)
        entries = _listing(repository.tree(oid), path.strip("/"), is_recursive=recursive)
        if path.strip("/") and not entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", oid)
        return _page(request, entries, cursor, page_size)

    @hub.post(door.api + "/paths-info/{revision}")
    async def paths_info(request: Request, owner: str, name: str, revision: str) -> list[dict[str, Any]]:
        repository = door.readable(request, owner, name)
        tree = repository.tree(repository.resolve(revision))
        folders = {entry["path"]: entry for entry in _folders(tree)}
        if request.headers.get("content-type", "").startswith("application/json"):
            paths = (await request.json())["paths"]
        else:
            paths = parse_qs((await request.body()).decode()).get("paths", [])
        found = [tree[path].to_json(path) if path in tree else folders.get(path) for path in paths]
        return [entry for entry in found if entry]

    @hub.api_route(door.pages + "/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Response:
        repository = door.readable(request, owner, name)
        oid = repository.resolve(revision)
        entry = repository.tree(oid).get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", oid)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry.stored_as}"', "Accept-Ranges": "bytes"}
        if entry.sha256:
            headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        file = repository.file(entry.stored_as)
        return FileResponse(file, headers=headers, media_type="application/octet-stream")


def _ref(ref: str, name: str, oid: str) -> dict[str, str]:
    return {"ref": ref, "name": name, "targetCommit": oid}


def _info(repository: Repository, revision: str) -> dict[str, Any]:
    oid = repository.resolve(revision)
    siblings = [
        {
            "rfilename": path,
            "size": entry.size,
            "blobId": entry.oid,
            **({"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}} if entry.sha256 else {}),
        }
        for path, entry in repository.tree(oid).items()
    ]
    date = repository.commit_at(oid)["date"]
    return {
        "id": repository.name,
        "author": repository.name.split("/")[0],
        "sha": oid,
        "private": repository.state()["private"],
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "lastModified": date,
        "createdAt": date,
        "siblings": siblings,
    }


def _folders(tree: dict[str, Entry]) -> list[dict[str, Any]]:
    paths = {str(parent) for path in tree for parent in PurePosixPath(path).parents} - {"."}
    return [
        {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
        for path in sorted(paths)
    ]


def _listing(tree: dict[str, Entry], under: str, *, is_recursive: bool) -> list[dict[str, Any]]:
    every = [*_folders(tree), *(entry.to_json(path) for path, entry in tree.items())]
    root = PurePosixPath(under or ".")
    if is_recursive:
        return [entry for entry in every if root in PurePosixPath(entry["path"]).parents]
    return [entry for entry in every if PurePosixPath(entry["path"]).parent == root]


def _page(request: Request, entries: list[dict[str, Any]], cursor: int, size: int) -> Response:
    headers = {}
    if cursor + size < len(entries):
        headers["Link"] = f'<{request.url.include_query_params(cursor=cursor + size)}>; rel="next"'
    return JSONResponse(entries[cursor : cursor + size], headers=headers)


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _add_writing(hub: FastAPI, door: Door) -> None:
    @hub.post(door.api + "/preupload/{revision}")
    async def preupload(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        repository = door.writable(request, owner, name)
        tree = repository.tree(repository.resolve(revision))
        files = []
        for asked in (await request.json())["files"]:
            there = tree.get(asked["path"])
            mode = "lfs" if _is_large(asked) else "regular"
            oid = {"oid": there.stored_as} if there else {}
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"files": files}

    @hub.post(door.api + "/commit/{revision}")
    async def commit(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        repository = door.writable(request, owner, name)
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        oid = await run_in_threadpool(_commit, repository, revision, lines)
        url = f"{door.address(request, repository)}/commit/{oid}"
        return {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}

    @hub.post(door.api + "/tag/{revision}")
    async def tag(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        repository = door.writable(request, owner, name)
        asked = await request.json()
        await run_in_threadpool(repository.tag, asked["tag"], revision)
        return {}

    @hub.delete(door.api + "/tag/{tag}")
    def untag(request: Request, owner: str, name: str, tag: str) -> dict[str, Any]:
        door.writable(request, owner, name).untag(tag)
        return {}


def _is_large(asked: dict[str, Any]) -> bool:
    sample = base64.b64decode(asked.get("sample") or "")
    is_binary = b"\0" in sample
    return is_binary or asked["size"] > _REGULAR_BYTES or PurePosixPath(asked["path"]).suffix in _LFS_ENDINGS


def _commit(repository: Repository, branch: str, lines: list[dict[str, Any]]) -> str:
    if not lines or lines[0].get("key") != "header":
        raise HubError(400, "a commit starts with its header")
    header, changes = lines[0]["value"], {}
    tree = repository.tree(repository.resolve(branch))
    for line in lines[1:]:
        key, value = line["key"], line["value"]
        path = value["path"]
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise HubError(400, f"path {path!r} leaves the repository")
        if key == "file":
            changes[path] = repository.add_blob(_decoded(value))
        elif key == "lfsFile":
            changes[path] = repository.lfs_entry(value["oid"], value["size"])
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in tree if p == path or p.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise HubError(400, f"{path} is not there to be deleted")
            changes |= dict.fromkeys(gone)
        else:
            raise HubError(400, f"operation {key!r} is not served")
    parent = header.get("parentCommit")
    return repository.commit(branch, header["summary"], header.get("description") or "", changes, parent)


def _decoded(value: dict[str, Any]) -> bytes:
    if value.get("encoding") != "base64":
        return str(value["content"]).encode()
    try:
        return base64.b64decode(value["content"], validate=True)
    except binascii.Error as error:
        raise HubError(400, f"{value['path']}: not base64") from error


def _add_large_files(hub: FastAPI, door: Door) -> None:
    key = secrets.token_bytes(32)

    def signature(owner: str, name: str, oid: str, size: int) -> str:
        return hmac.new(key, f"{owner}/{name}/{oid}/{size}".encode(), "sha256").hexdigest()

    @hub.post(door.pages + ".git/info/lfs/objects/batch")
    async def batch(request: Request, owner: str, name: str) -> Response:
        repository = door.writable(request, owner, name)
        objects = []
        for asked in (await request.json())["objects"]:
            oid, size = asked["oid"], asked["size"]
            if not SHA256.fullmatch(oid):
                raise HubError(400, f"{oid!r} is no SHA-256")
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if not repository.file(oid).exists():
                # The client sends no token with the upload itself, so the address carries the permission.
                sign = signature(owner, name, oid, size)
                href = f"{_base(request)}/lfs/{door.kind}/{owner}/{name}/{oid}?size={size}&sign={sign}"
                answer["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(answer)
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    @hub.put(f"/lfs/{door.kind}/{{owner}}/{{name}}/{{oid}}")
    async def upload(request: Request, owner: str, name: str, oid: str, size: int, sign: str) -> dict[str, Any]:
        if not hmac.compare_digest(sign, signature(owner, name, oid, size)):
            raise HubError(403, "this upload was not granted")
        file = door.repositories.find(owner, name).file(oid)
        partial, digest = file.with_name(f"{oid}.{secrets.token_hex(4)}"), hashlib.sha256()
        try:
            with partial.open("wb") as out:
                async for chunk in request.stream():
                    digest.update(chunk)
                    out.write(chunk)
            if digest.hexdigest() != oid or partial.stat().st_size != size:
                raise HubError(400, f"what came is not {oid} with {size} bytes")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return {}
