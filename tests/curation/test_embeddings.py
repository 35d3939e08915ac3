"""The embedding cache: nothing is embedded twice, a torn write is dropped, and the real model's figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from curation.embeddings import CHUNK, BiEncoder, EmbeddingCache, has_bf16, model_folder
from curation.errors import CurationError


class HashEncoder:
    """Vectors drawn from the text; remembers every chunk that it was asked for, and can fail at one."""

    name = "hash"
    dimension = 5
    max_length = 8

    def __init__(self, version: str = "a" * 64, fail_at: int | None = None) -> None:
        self.version = version
        self.chunks: list[list[str]] = []
        self._fail_at = fail_at

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if len(self.chunks) == self._fail_at:
            raise KeyboardInterrupt
        self.chunks.append(list(texts))
        drawn = np.array([np.random.default_rng(list(text.encode())).standard_normal(5) for text in texts])
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32), _lengths(texts)


def _lengths(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([len(text) for text in texts], np.int64)


def _vectors_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.f16")
    return file


def test_vectors_come_in_the_order_of_the_texts_with_token_counts(tmp_path: Path) -> None:
    texts = ["b", "aaa", "b", "", "cc"]
    vectors, num_tokens = EmbeddingCache(tmp_path, HashEncoder()).embed(texts)
    expected, _ = HashEncoder().encode(texts)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() < 1e-3
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert num_tokens.tolist() == [1, 3, 1, 0, 2]


def test_no_text_is_embedded_twice_whoever_asks(tmp_path: Path) -> None:
    first = HashEncoder()
    cache = EmbeddingCache(tmp_path, first)
    before, _ = cache.embed(["a", "b", "a"])
    cache.embed(["b", "c"])
    assert first.chunks == [["a", "b"], ["c"]]
    second = HashEncoder()
    after, _ = EmbeddingCache(tmp_path, second).embed(["a", "b", "c"])
    assert second.chunks == []
    assert np.array_equal(after[:2], before[:2])


def test_two_open_caches_of_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    one, two = EmbeddingCache(tmp_path, HashEncoder()), EmbeddingCache(tmp_path, HashEncoder())
    for number in range(6):
        (one if number % 2 else two).embed([f"text {number}", f"other {number}"])
    texts = [f"{kind} {number}" for kind in ("other", "text") for number in range(6)]
    vectors, _ = one.embed(texts)
    expected, _ = HashEncoder().encode(texts)
    assert np.abs(vectors - expected).max() < 1e-3


def test_other_version_of_an_encoder_shares_nothing(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, HashEncoder("a" * 64)).embed(["x"])
    other = HashEncoder("b" * 64)
    EmbeddingCache(tmp_path, other).embed(["x"])
    assert other.chunks == [["x"]]


def test_interrupted_filling_goes_on_with_the_very_same_chunks(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(2 * CHUNK + 7)]
    whole = HashEncoder()
    expected, _ = EmbeddingCache(tmp_path / "whole", whole).embed(texts)
    cut_off = HashEncoder(fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path / "cut", cut_off).embed(texts)
    resumed = HashEncoder()
    seen: list[tuple[int, int | None]] = []
    vectors, _ = EmbeddingCache(tmp_path / "cut", resumed).embed(texts, progress=lambda *at: seen.append(at))
    assert cut_off.chunks + resumed.chunks == whole.chunks
    assert np.array_equal(vectors, expected)
    assert seen == [(0, CHUNK + 7), (CHUNK, CHUNK + 7), (CHUNK + 7, CHUNK + 7)]


@pytest.mark.parametrize("torn", [b"\x01", b"\x07" * 10, b"\x07" * 33])
def test_torn_write_is_dropped(tmp_path: Path, torn: bytes) -> None:
    EmbeddingCache(tmp_path, HashEncoder()).embed(["a", "b"])
    with _vectors_file(tmp_path).open("ab") as file:
        file.write(torn)
    encoder = HashEncoder()
    texts = ["c", "a", "b"]
    vectors, _ = EmbeddingCache(tmp_path, encoder).embed(texts)
    expected, _ = HashEncoder().encode(texts)
    assert encoder.chunks == [["c"]]
    assert np.abs(vectors - expected).max() < 1e-3
    assert _vectors_file(tmp_path).stat().st_size == 3 * 5 * 2


@pytest.mark.parametrize("texts", [["a"], ["b"], ["a", "new"]])
def test_vectors_that_lost_their_end_are_refused_with_the_remedy(tmp_path: Path, texts: list[str]) -> None:
    EmbeddingCache(tmp_path, HashEncoder()).embed(["x", "a", "b"])
    with _vectors_file(tmp_path).open("r+b") as file:
        file.truncate(15)
    with pytest.raises(CurationError, match="remove the folder"):
        EmbeddingCache(tmp_path, HashEncoder()).embed(texts)


def test_damaged_index_is_refused_with_the_remedy(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, HashEncoder()).embed(["x"])
    (index,) = tmp_path.rglob("index.sqlite")
    index.write_bytes(b"not a database, only long enough to be looked at" * 50)
    with pytest.raises(CurationError, match="remove the folder"):
        EmbeddingCache(tmp_path, HashEncoder()).embed(["x"])


def test_no_texts_give_no_vectors(tmp_path: Path) -> None:
    vectors, num_tokens = EmbeddingCache(tmp_path, HashEncoder()).embed([])
    assert len(vectors) == len(num_tokens) == 0


def test_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="give 'minilm' or a model's folder"):
        BiEncoder(str(tmp_path / "absent"))


def test_version_changes_with_what_decides_the_vectors_and_with_nothing_else(tmp_path: Path) -> None:
    for name, content in (("modules.json", "[]"), ("model.safetensors", "w"), ("config.json", "{}")):
        (tmp_path / name).write_text(content)
    version = BiEncoder(str(tmp_path)).version
    assert len(version) == 64
    (tmp_path / "README.md").write_text("a card")
    assert BiEncoder(str(tmp_path)).version == version
    (tmp_path / "model.safetensors").write_text("v")
    changed = BiEncoder(str(tmp_path)).version
    assert changed != version
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert BiEncoder(str(tmp_path)).version not in {version, changed}


def test_minilm_gives_unit_vectors_and_counts_tokens_before_truncation() -> None:
    encoder = BiEncoder("minilm")
    texts = ["Zinc helps.", "zinc supplements help", "word " * 400, "The stock market fell."]
    vectors, num_tokens = encoder.encode(texts)
    assert (encoder.dimension, encoder.max_length) == (384, 256)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert num_tokens[0] == 2 + 3  # [CLS] zinc helps . [SEP]
    assert num_tokens[2] == 2 + 400
    similarities = vectors @ vectors.T
    assert similarities[0, 1] > 0.7
    assert similarities[0, 3] < 0.2


@pytest.mark.skipif(not has_bf16(), reason="this processor has no bfloat16")
def test_bfloat16_moves_cosines_by_less_than_a_hundredth() -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["Zinc helps.", "zinc supplements help", "Aspirin thins the blood. " * 20, "The stock market fell."]
    exact = SentenceTransformer(str(model_folder("minilm"))).encode(texts, normalize_embeddings=True)
    vectors, _ = BiEncoder("minilm").encode(texts)
    assert np.abs(vectors @ vectors.T - exact @ exact.T).max() < 0.01
