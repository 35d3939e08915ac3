"""One repository on a Hub, a data set's or a model's, by `huggingface_hub`: reading, one commit, one tag, downloads.

Every foreign error is translated here, into one line without the token: what a server answers may repeat it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import orjson
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from curation.publishing.changes import RemoteFile
from curation.publishing.content import MANIFEST, LocalFile
from curation.publishing.errors import MovedHeadError, PublishingError, TagExistsError, UnreachableError

Kind = Literal["dataset", "model"]
_PATHS: dict[Kind, str] = {"dataset": "datasets/", "model": ""}
_UPLOAD_TOGETHER = 8
_NO_SPACE = {402, 413, 507}
_MOST_OF_AN_ANSWER = 200


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """Head of the main branch and visibility."""

    head: str | None
    is_private: bool


class HubRepository:
    """ORG/NAME at an endpoint. The token stays inside."""

    def __init__(self, repo: str, *, endpoint: str | None, token: str | None, kind: Kind = "dataset") -> None:
        self.endpoint = _endpoint(endpoint or constants.ENDPOINT)
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise PublishingError(f"--repo {repo!r}: {error}") from error
        if "/" not in repo:
            raise PublishingError(f"--repo {repo!r}: write ORG/NAME, with your user name or an organisation")
        self.repo, self._token, self._kind = repo, token, kind
        self._api = HfApi(endpoint=self.endpoint, token=token or False)

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{_PATHS[self._kind]}{self.repo}"

    def check_token(self) -> None:
        """Ask the Hub who we are.

        Raises:
            PublishingError: There is no token, or the Hub does not take it.
        """
        if not self._token:
            raise PublishingError(f"no token for {self.endpoint}: set HF_TOKEN, or store one by `hf auth login`")
        with self._asking("asking who the token belongs to"):
            self._api.whoami()

    def state(self) -> RepositoryState | None:
        """Head and visibility; None where there is no such repository, or none that the token may see."""
        with self._asking("looking at the repository"):
            try:
                info = self._api.repo_info(self.repo, repo_type=self._kind)
            except RepositoryNotFoundError:
                return None
            return RepositoryState(info.sha, bool(info.private))

    def create(self, *, is_private: bool) -> None:
        """Make the repository, by default as visible as its owner's are; one that is there is left as it is."""
        with self._asking("creating the repository"):
            self._api.create_repo(self.repo, repo_type=self._kind, private=is_private or None, exist_ok=True)

    def tags(self) -> dict[str, str]:
        """Commit of every tag."""
        with self._asking("reading the tags"):
            return {
                tag.name: tag.target_commit for tag in self._api.list_repo_refs(self.repo, repo_type=self._kind).tags
            }

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch or a tag means."""
        with self._asking(f"looking at {revision}"):
            return self._api.repo_info(self.repo, revision=revision, repo_type=self._kind).sha

    def tree(self, revision: str) -> dict[str, RemoteFile]:
        """Every file at a revision."""
        with self._asking("listing the files"):
            entries = self._api.list_repo_tree(self.repo, recursive=True, revision=revision, repo_type=self._kind)
            return {
                entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
                for entry in entries
                if isinstance(entry, RepoFile)
            }

    def commits(self, revision: str) -> list[tuple[str, str]]:
        """Id and title of the commits up to a revision, newest first."""
        with self._asking("reading the history"):
            history = self._api.list_repo_commits(self.repo, revision=revision, repo_type=self._kind)
            return [(commit.commit_id, commit.title) for commit in history]

    def manifest(self, revision: str, folder: Path) -> dict[str, Any] | None:
        """The manifest of the release at a revision; None where there is none that can be read."""
        try:
            value = orjson.loads(self.download(MANIFEST, revision, folder).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        return value if isinstance(value, dict) else None

    def download(self, path: str, revision: str, folder: Path) -> Path:
        """Fetch one file into a folder.

        Raises:
            FileNotFoundError: The revision has no such file.
        """
        with self._asking(f"downloading {path}"):
            try:
                found = hf_hub_download(
                    self.repo,
                    path,
                    repo_type=self._kind,
                    revision=revision,
                    local_dir=folder,
                    endpoint=self.endpoint,
                    token=self._token or False,
                )
            except LocalEntryNotFoundError as error:
                raise UnreachableError(f"{self.endpoint} does not answer (downloading {path})") from error
            except EntryNotFoundError as error:
                raise _MissingError(path) from error
            return Path(found)

    def has_xet(self) -> bool:
        """Whether the endpoint takes uploads by Xet; the client would try, and fail, where it does not."""
        with self._asking("asking for Xet storage"):
            url = f"{self.endpoint}/api/{self._kind}s/{self.repo}/xet-write-token/main"
            response = get_session().get(url, headers=build_hf_headers(token=self._token))
            if response.status_code in (404, 405, 501):
                return False
            hf_raise_for_status(response)
            return True

    def commit(
        self,
        files: Sequence[LocalFile],
        gone: Sequence[str],
        *,
        title: str,
        message: str,
        parent: str | None,
        over_xet: bool,
        progress: Callable[[int], None],
    ) -> str:
        """Upload, then write everything as one commit on main whose parent has to be `parent`; the commit's id.

        Raises:
            MovedHeadError: Main is no longer at `parent`; nothing was written.
        """
        with ExitStack() as opened:
            additions = [_addition(file, opened, over_xet=over_xet) for file in files]
            for start in range(0, len(additions), _UPLOAD_TOGETHER):
                progress(start)
                with self._asking("uploading"):
                    part = additions[start : start + _UPLOAD_TOGETHER]
                    self._api.preupload_lfs_files(self.repo, part, repo_type=self._kind, free_memory=False)
            progress(len(additions))
            for file, addition in zip(files, additions, strict=True):
                if addition.upload_info.sha256.hex() != file.sha256:
                    raise PublishingError(f"{file.file} was changed while it was uploaded; restore the folder")
            with self._asking("committing"):
                done = self._api.create_commit(
                    self.repo,
                    [*additions, *(CommitOperationDelete(path) for path in gone)],
                    commit_message=title,
                    commit_description=message,
                    repo_type=self._kind,
                    parent_commit=parent,
                )
            return str(done.oid)

    def tag(self, tag: str, commit: str) -> None:
        """Name a commit.

        Raises:
            TagExistsError: There is such a tag.
        """
        with self._asking("tagging"):
            self._api.create_tag(self.repo, tag=tag, revision=commit, repo_type=self._kind)

    @contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (PublishingError, _MissingError):
            raise
        except OfflineModeIsEnabled as error:
            raise UnreachableError(f"HF_HUB_OFFLINE is set, so {self.endpoint} is not asked ({doing})") from error
        except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            raise self._translated(error, doing) from error

    def _translated(self, error: Exception, doing: str) -> PublishingError:
        # Uploads run in threads whose errors are wrapped: the cause says what happened.
        while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if isinstance(error, HfHubHTTPError):
            return self._refusal(error, doing)
        if isinstance(error, httpx2.TransportError | ConnectionError):
            told = f": {self._clean(str(error))}" if str(error) else ""
            return UnreachableError(f"{self.endpoint} does not answer, or the connection was lost ({doing}{told})")
        return PublishingError(f"{self.repo}: {doing} failed: {self._clean(str(error))}")

    def _refusal(self, error: HfHubHTTPError, doing: str) -> PublishingError:
        status = error.response.status_code
        told = self._clean(error.response.headers.get("X-Error-Message") or error.server_message or "")
        answer = f" ({doing}; the Hub says: {told})" if told else f" ({doing}, HTTP {status})"
        if status == 412:
            return MovedHeadError(f"{self.repo} has a new head: somebody else published or edited it meanwhile{answer}")
        if status == 409 and doing == "tagging":
            return TagExistsError(f"{self.repo} already has the tag{answer}")
        if status in _NO_SPACE or (status == 403 and any(word in told.lower() for word in ("storage", "quota"))):
            return PublishingError(f"no space left for {self.repo}{answer}: free some, or ask for more")
        if status == 401:
            return PublishingError(
                f"{self.endpoint} does not take the token{answer}: renew HF_TOKEN or `hf auth login`"
            )
        if status == 403:
            return PublishingError(f"the token may not write to {self.repo}{answer}: use one with write access")
        if status == 404:
            return PublishingError(
                f"{self.repo} is not there, or not for this token{answer}: check --repo and --endpoint"
            )
        if status == 429:
            return PublishingError(f"{self.endpoint} asks for a pause{answer}: try again later")
        if status >= 500:  # a gateway may lose the answer of what was done behind it
            return UnreachableError(f"{self.endpoint} failed{answer}")
        return PublishingError(f"{self.endpoint} refused{answer}")

    def _clean(self, text: str) -> str:
        """One short line without the token, and without what drives a terminal."""
        if self._token:
            text = text.replace(self._token, "***")
        line = "".join(
            letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split())
        )
        return line if len(line) <= _MOST_OF_AN_ANSWER else line[:_MOST_OF_AN_ANSWER] + "..."


class _MissingError(FileNotFoundError):
    """The revision has no such file."""


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PublishingError(f"--endpoint {url!r}: write http://HOST:PORT or https://HOST")
    if parts.username or parts.password or parts.query:
        raise PublishingError("--endpoint: leave credentials out of the address, the token comes from HF_TOKEN")
    return url.rstrip("/")


def _addition(file: LocalFile, opened: ExitStack, *, over_xet: bool) -> CommitOperationAdd:
    """A path goes over Xet where the client has it; an open file goes over LFS, always."""
    if over_xet or constants.HF_HUB_DISABLE_XET:
        return CommitOperationAdd(file.path, str(file.file))
    if file.size < 1 << 20:
        return CommitOperationAdd(file.path, BytesIO(file.file.read_bytes()))
    return CommitOperationAdd(file.path, opened.enter_context(file.file.open("rb")))
