"""Teachers search and judge as their definitions say, on tiny models; caches keep checkpoints and prompts apart."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.encoders import build_teacher
from curation.embeddings import BiEncoder, EmbeddingCache, model_folder
from curation.errors import CurationError
from curation.mining.late_interaction import MultiVectorTeacher, TokenEncoder
from curation.mining.recipe import BiEncoderSpec, CrossEncoderSpec, MultiVectorSpec
from curation.mining.teachers import BiEncoderTeacher, Bm25Teacher, CrossEncoderTeacher

PASSAGES = [
    "zinc helps a cold",
    "aspirin thins blood",
    "the market fell",
    "zinc",
    "",
    "cats sleep",
    "zinc helps a cold!",
]
QUERIES = ["does zinc help", "what thins the blood", "sleep"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A bare transformer with MiniLM's tokenizer and random weights."""
    return _tiny(tmp_path / "tiny", seed=0)


def _tiny(folder: Path, seed: int) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(model_folder("minilm"))).save_pretrained(folder)
    return folder


def _sentence_transformer(base: Path, folder: Path, prompts: dict[str, str] | None = None) -> Path:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(base), prompts=prompts).save(str(folder), create_model_card=False)
    return folder


def _max_sim(query_SE: np.ndarray, document_TE: np.ndarray) -> float:
    return float(np.mean([max(float(q @ d) for d in document_TE) for q in query_SE]))


def test_multi_vector_teacher_equals_max_sim_by_hand(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.mining.late_interaction._TOKENS_AT_ONCE", 9)  # tiles of one to three passages
    encoder = TokenEncoder(str(tiny))
    teacher = MultiVectorTeacher(PASSAGES, encoder)
    queries = encoder.encode(QUERIES, "query")
    documents = [tokens.astype(np.float16).astype(np.float32) for tokens in encoder.encode(PASSAGES, "document")]
    assert len({len(tokens) for tokens in documents}) > 2
    expected = np.array([[_max_sim(query, document) for document in documents] for query in queries])
    places, scores = teacher.top(QUERIES, 99)
    assert places.tolist() == np.argsort(-np.round(expected, 6), axis=1, kind="stable").tolist()
    assert scores == pytest.approx(np.take_along_axis(expected, places, 1), abs=2e-6)
    pairs = [(query, passage) for query in QUERIES for passage in [*PASSAGES, "elsewhere"]]
    judged = teacher.score(pairs).reshape(len(QUERIES), -1)
    assert judged[:, :-1] == pytest.approx(expected, abs=2e-6)
    (elsewhere,) = encoder.encode(["elsewhere"], "document")
    assert judged[1, -1] == pytest.approx(_max_sim(queries[1], elsewhere), abs=1e-3)


def test_model_saved_as_late_interaction_gives_its_own_vectors(tiny: Path, tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    folder = str(tmp_path / "late")
    MultiVectorEncoder(str(tiny), prompts={"query": "[Q] ", "document": "[D] "}).save(folder, create_model_card=False)
    encoder = TokenEncoder(folder)
    assert encoder.is_late_interaction and not TokenEncoder(str(tiny)).is_late_interaction
    saved = MultiVectorEncoder(folder)
    mine = encoder.encode(QUERIES, "query")
    theirs: Any = saved.encode_query(QUERIES, convert_to_numpy=True)
    for own, other in zip(mine, theirs, strict=True):
        assert own == pytest.approx(other, abs=1e-5)
    teacher = build_teacher(MultiVectorSpec(kind="multi_vector", model=folder), PASSAGES, lambda done, total: None)
    ranked = saved.similarity(theirs, saved.encode_document(PASSAGES, convert_to_numpy=True)).argsort(descending=True)
    assert teacher.top(QUERIES, 2)[0].tolist() == ranked[:, :2].tolist()  # type: ignore[union-attr]


def test_cross_encoder_judges_as_sentence_transformers_does(tiny: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    folder = str(tmp_path / "cross")
    model = CrossEncoder(str(tiny), num_labels=1)
    model.save(folder)
    pairs = [(query, passage) for query in QUERIES for passage in PASSAGES] * 2
    teacher = build_teacher(CrossEncoderSpec(kind="cross_encoder", model=folder), [], lambda done, total: None)
    assert isinstance(teacher, CrossEncoderTeacher)
    assert teacher.score(pairs) == pytest.approx(model.predict(pairs), abs=1e-5)
    assert len(teacher.score([])) == 0


def test_cross_encoder_of_several_labels_is_no_judge(tiny: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(tiny), num_labels=3).save(str(tmp_path / "three"))
    with pytest.raises(CurationError, match="3 labels"):
        CrossEncoderTeacher(str(tmp_path / "three")).score([("a", "b")])
    with pytest.raises(CurationError, match="no model's folder"):
        CrossEncoderTeacher(str(tmp_path / "absent"))


def test_bm25_judges_what_it_has_indexed_and_nothing_else() -> None:
    teacher = Bm25Teacher(PASSAGES)
    places, scores = teacher.top(QUERIES, 3)
    for query, row, of_row in zip(QUERIES, places.tolist(), scores.tolist(), strict=True):
        found = [(place, score) for place, score in zip(row, of_row, strict=True) if place >= 0]
        assert teacher.score([(query, PASSAGES[place]) for place, _ in found]).tolist() == [s for _, s in found]
    outside, no_word = teacher.score([("zinc", "not there"), ("zinc", "cats sleep")])
    assert np.isnan(outside) and no_word == 0


def test_bi_encoder_gives_a_pair_one_score_whoever_asks(tiny: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, BiEncoder(str(_sentence_transformer(tiny, tmp_path / "st"))))
    teacher = BiEncoderTeacher(PASSAGES, cache, cache)
    places, scores = teacher.top(QUERIES, 7)
    pairs = [(query, PASSAGES[place]) for query, row in zip(QUERIES, places, strict=True) for place in row]
    assert teacher.score(pairs).tolist() == scores.ravel().tolist()
    ceilings = scores[:, 2].astype(np.float64)
    below, _ = teacher.top_below(QUERIES, 3, ceilings, [{int(row[4])} for row in places])
    exact = np.einsum("qe,de->qd", *(cache.embed(texts)[0].astype(np.float64) for texts in (QUERIES, PASSAGES)))
    for row, ceiling, of_query, ranked in zip(below, ceilings, exact, places, strict=True):
        kept = [place for place in np.argsort(-of_query, kind="stable") if of_query[place] < ceiling]
        assert row.tolist() == [place for place in kept if place != ranked[4]][:3]


class Counting:
    """Notes what a model is asked to embed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[tuple[str, str]] = []
        encode = BiEncoder.encode

        def counted(encoder: BiEncoder, texts: Sequence[str]) -> Any:
            self.texts += [(encoder.prompt, text) for text in texts]
            return encode(encoder, texts)

        monkeypatch.setattr(BiEncoder, "encode", counted)


def test_prompts_are_the_models_own_unless_given_and_no_text_is_embedded_twice(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("GRADUS_DATA", str(tmp_path / "data"))
    folder = str(_sentence_transformer(tiny, tmp_path / "st", {"query": "query: ", "document": "passage: "}))
    counting = Counting(monkeypatch)
    spec = BiEncoderSpec(kind="bi_encoder", model=folder)
    places, scores = _built(spec).top(QUERIES, 7)
    model = SentenceTransformer(folder)
    theirs = model.similarity(model.encode_query(QUERIES), model.encode_document(PASSAGES)).numpy()
    assert scores == pytest.approx(np.take_along_axis(theirs, places, 1), abs=0.02)
    assert sorted(counting.texts) == sorted(
        [("query: ", text) for text in QUERIES] + [("passage: ", text) for text in PASSAGES]
    )
    again, _ = _built(spec).top([*QUERIES, "one more"], 7)
    assert again[:3].tolist() == places.tolist()
    assert counting.texts[len(QUERIES) + len(PASSAGES) :] == [("query: ", "one more")]
    bare = BiEncoderSpec(kind="bi_encoder", model=folder, query_prompt="", document_prompt="")
    teacher = _built(bare)
    assert teacher.prompt == "" and json.loads(_built(spec).prompt) == {"query": "query: ", "document": "passage: "}
    teacher.top([PASSAGES[0]], 1)  # with one prompt on both sides a text is one text
    assert counting.texts.count(("", PASSAGES[0])) == 1


def _built(spec: BiEncoderSpec) -> BiEncoderTeacher:
    teacher = build_teacher(spec, PASSAGES, lambda done, total: None)
    assert isinstance(teacher, BiEncoderTeacher)
    return teacher


def test_two_checkpoints_of_one_name_and_two_lengths_keep_their_own_vectors(tmp_path: Path) -> None:
    folders = [
        _sentence_transformer(_tiny(tmp_path / f"base{seed}", seed), tmp_path / str(seed) / "model") for seed in (1, 2)
    ]
    text = "zinc helps a cold and aspirin thins blood"
    encoders = [BiEncoder(str(folder)) for folder in folders] + [BiEncoder(str(folders[0]), max_length=4)]
    caches = [EmbeddingCache(tmp_path / "cache", encoder) for encoder in encoders]
    vectors = [cache.embed([text])[0][0] for cache in caches]  # all in memory at once
    assert len({encoder.version for encoder in encoders}) == 3
    assert encoders[2].max_length == 4
    for encoder, vector in zip(encoders, vectors, strict=True):
        assert vector == pytest.approx(encoder.encode([text])[0][0], abs=2e-3)
    assert min(float(np.abs(vectors[a] - vectors[b]).max()) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.01
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])  # trained on, in place: another version, not the old vectors
    assert BiEncoder(str(folders[0])).version == encoders[1].version


def test_model_that_gradus_saved_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    from trainer.backbones import save_model, with_pooling

    monkeypatch.setenv("GRADUS_DATA", str(tmp_path / "data"))
    model = with_pooling(SentenceTransformer(str(model_folder("minilm"))))
    save_model(model, tmp_path / "trained")
    teacher = _built(BiEncoderSpec(kind="bi_encoder", model=str(tmp_path / "trained")))
    places, scores = teacher.top(QUERIES, 7)
    expected = model.similarity(model.encode(QUERIES), model.encode(PASSAGES)).numpy()
    assert teacher.name == "trained"
    assert scores == pytest.approx(np.take_along_axis(expected, places, 1), abs=0.02)
    late = MultiVectorSpec(kind="multi_vector", model=str(tmp_path / "trained"))
    assert build_teacher(late, PASSAGES, lambda done, total: None).top(QUERIES, 1)[0][0, 0] in (0, 3, 6)  # type: ignore[union-attr]
