"""A published data set as a person finds it: a folder or a Hub repository, its card, and the files of a configuration.

Files come one by one and are read from disk, so memory does not grow with the set. Configurations are told by the
card's `configs` as `datasets` reads them (a path, a pattern, a list, or splits), else by the names of the files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import orjson
import yaml

from curation.errors import CurationError
from db.digest import digest_of

_DATA = (".parquet", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
_SPLIT = re.compile(r"(?:^|[/_.-])(train|training|dev|validation|valid|val|test|eval)(?:[/_.-]|$)", re.IGNORECASE)
_SPLIT_NAMES = {"training": "train", "valid": "validation", "val": "validation", "eval": "test"}
_BLOCK = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """Names of the files, and where to get them. `revision` is a commit, or of a folder a digest of names and sizes."""

    source: str
    revision: str
    names: tuple[str, ...]
    folder: Path | None = None
    endpoint: str | None = None

    def file(self, name: str) -> Path:
        """A file on this disk, fetched when it is not there yet."""
        if self.folder is not None:
            return self.folder / name
        from huggingface_hub import hf_hub_download

        with _translated(self.source):
            return Path(
                hf_hub_download(self.source, name, repo_type="dataset", revision=self.revision, endpoint=self.endpoint)
            )

    def card(self) -> dict[str, Any]:
        """The card's metadata block; empty where there is none."""
        if "README.md" not in self.names:
            return {}
        text = self.file("README.md").read_text(encoding="utf-8", errors="replace")
        block = _BLOCK.match(text)
        try:
            found = yaml.safe_load(block.group(1)) if block else {}
        except yaml.YAMLError as error:
            raise CurationError(f"{self.source}/README.md: its metadata block is not YAML: {error}") from error
        return found if isinstance(found, dict) else {}

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a release of ours, or None."""
        if "manifest.json" not in self.names:
            return None
        try:
            found = orjson.loads(self.file("manifest.json").read_bytes())
        except orjson.JSONDecodeError:
            return None
        ours = isinstance(found, dict) and all(key in found for key in ("format", "digest", "files", "recipe"))
        return found if ours else None


@contextmanager
def _translated(source: str) -> Iterator[None]:
    """What the Hub's client raises, as one line with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise CurationError(
            f"{source}: no such data set, or it is private: check ORG/NAME, and log in with 'hf auth login'"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CurationError(f"{source}: no such revision; give a tag, a branch or a commit") from error
    except errors.HFValidationError as error:
        raise CurationError(f"{source!r} is no folder, and no ORG/NAME[@REVISION] of a Hub") from error
    except (errors.HTTPError, errors.EntryNotFoundError, OSError) as error:
        raise CurationError(f"{source}: cannot be fetched: {str(error).splitlines()[0]}") from error


def open_published(source: str, *, endpoint: str | None = None) -> PublishedSet:
    """The data set in a folder, or ORG/NAME[@REVISION] on the Hub.

    Raises:
        CurationError: There is no such folder, repository or revision, or the Hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        revision = digest_of([[name, path.stat().st_size] for name, path in zip(names, files, strict=True)])
        return PublishedSet(folder.resolve().name, revision, tuple(names), folder=folder)
    from huggingface_hub import HfApi

    repo, _, asked = source.partition("@")
    with _translated(source):
        info = HfApi(endpoint=endpoint).dataset_info(repo, revision=asked or None)
    names = [one.rfilename for one in info.siblings or ()]
    return PublishedSet(repo, str(info.sha), tuple(sorted(names)), endpoint=endpoint)


def data_files(found: PublishedSet, card: Mapping[str, Any], config: str | None) -> dict[str, list[str]]:
    """Names of a configuration's files by split; without `config` the default one, or the only one.

    Raises:
        CurationError: There is no such configuration, several and none was named, or no file that can be read.
    """
    declared = [one for one in card.get("configs") or () if isinstance(one, dict) and one.get("data_files")]
    readable = [name for name in found.names if name.endswith(_DATA) and not name.startswith(".")]
    if declared:
        chosen = _configuration(found, declared, config)
        files = {split: _matching(readable, patterns) for split, patterns in _patterns(chosen["data_files"])}
    elif config is not None:
        files = _by_name([name for name in readable if name.startswith(f"{config}/")])
    else:
        files = _by_name(readable)
    files = {split: names for split, names in files.items() if names}
    if not files:
        where = f"configuration {config!r} of " if config else ""
        raise CurationError(f"{where}{found.source} has no {', '.join(_DATA)} files")
    return files


def _configuration(found: PublishedSet, declared: Sequence[dict[str, Any]], config: str | None) -> dict[str, Any]:
    names = [str(one.get("config_name", "default")) for one in declared]
    if config is not None:
        if config not in names:
            raise CurationError(f"{found.source} has no configuration {config!r}; it has: {', '.join(names)}")
        return declared[names.index(config)]
    default = [one for one, name in zip(declared, names, strict=True) if one.get("default") or name == "default"]
    if len(declared) > 1 and not default:
        raise CurationError(f"{found.source} has several configurations, name one with --config: {', '.join(names)}")
    return default[0] if default else declared[0]


def _patterns(given: Any) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns) of `data_files`: a pattern, a list of them, or a list of splits with theirs."""
    several = given if isinstance(given, list) else [given]
    plain = [one for one in several if isinstance(one, str)]
    if plain:
        yield "train", plain
    for one in several:
        if isinstance(one, dict) and "path" in one:
            paths = one["path"] if isinstance(one["path"], list) else [one["path"]]
            yield str(one.get("split", "train")), [str(path) for path in paths]


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    wanted = [pattern.removeprefix("./") for pattern in patterns]
    # As glob has it, `**/` is also no folder at all.
    wanted += [pattern.replace("**/", "") for pattern in wanted]
    return [name for name in names if any(fnmatch(name, one) or name.startswith(f"{one}/") for one in wanted)]


def _by_name(names: Sequence[str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for name in names:
        found = _SPLIT.search(name)
        split = found.group(1).lower() if found else "train"
        files.setdefault(_SPLIT_NAMES.get(split, split), []).append(name)
    return files
