"""A toy release and a tiny random model, which train in milliseconds."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ANIMALS = ("otter", "heron", "badger", "lynx", "viper", "falcon", "beetle", "salmon")
WORDS = ("the a in place lives where does live habitat", "number eats sleeps runs bank says it of many")


def negative(text: str, rank: int | None, origin: str, score: float | None = None) -> dict[str, Any]:
    """A negative as the configuration `graded` has it."""
    return {
        "id": hashlib.sha256(text.encode()).hexdigest(),
        "text": text,
        "rank": rank,
        "grade": {1: "hard", 2: "medium", 3: "medium", 4: "easy"}.get(rank or 0),
        "origin": origin,
        "scores": [] if score is None else [{"teacher": "judge", "value": score}],
    }


def toy_rows() -> list[dict[str, Any]]:
    """Eight examples of two sources with ranks 1 to 4 (one lacks rank 4), two mined negatives, and uneven lengths."""
    rows = []
    for number, animal in enumerate(ANIMALS):
        other = ANIMALS[(number + 1) % len(ANIMALS)]
        written = [
            negative(
                f"{animal} {word} number {number}" + " it says" * (number * rank), rank, "synthetic", 0.8 - rank / 9
            )
            for rank, word in enumerate(["eats", "sleeps", "runs", "bank"][: 3 if number == 2 else 4], start=1)
        ]
        mined = [negative(f"the {other} lives in place {i}", None, "mined", 0.5 - i / 9) for i in range(2)]
        rows.append(
            {
                "example_id": f"e{number}", "query": f"where does the {animal} live", "query_id": f"q{number}",
                "positive": f"the {animal} lives in habitat {number}", "positive_id": f"p{number}",
                "positive_scores": [{"teacher": "judge", "value": 0.9}], "instruction": "of many",
                "source": "river" if number % 2 else "wood",
                "num_synthetic_slots": 1 + number % 2, "num_mined_slots": 1, "negatives": written + mined,
            }
        )  # fmt: skip
    return rows


def write_release(folder: Path, rows: list[dict[str, Any]], *, split: str = "train") -> Path:
    """A release folder with these rows of `graded`."""
    (folder / "graded").mkdir(parents=True)
    name = f"graded/{split}-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest = {"name": "toy-1.0.0", "digest": "d" * 64, "files": {name: {"sha256": digest}}}
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release") / "toy", toy_rows())


@pytest.fixture
def release_of(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    """A release with other rows."""
    return lambda rows: write_release(tmp_path / "other-release", rows)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random BERT with a vocabulary of the toy release's words; takes 32 tokens.

    Its pooler, as in many published models, is part of no embedding and gets no gradient.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ANIMALS, *" ".join(WORDS).split(), *map(str, range(10))]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    backbone = BertModel(config)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    backbone.save_pretrained(folder / "bert")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"
