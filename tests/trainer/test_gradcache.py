"""Chunks with kept graphs and chunks that run twice give the plain loss' gradient, with dropout too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch import Tensor

from trainer.gradcache import Encoder, chunks_of
from trainer.processes import Processes, shared_out
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, Negative
from trainer.tokens import Texts, TokenTable, read_tokens, write_tokens

from .conftest import ANIMALS

WORDS = [*ANIMALS, "place", "lives", "where", "does", "live", "habitat", "number", "eats"]


def examples(num: int) -> list[GradedExample]:
    """Rows with a positive and two negatives, all texts distinct, 1 to 28 words long."""
    draws = np.random.default_rng(7)

    def text(most: int) -> str:
        return " ".join(draws.choice(WORDS, draws.integers(1, most)))

    def one(number: int) -> GradedExample:
        negatives = tuple(Negative(f"{number}{i}", f"{i} {number} {text(29)}", 1) for i in range(2))
        return GradedExample(
            f"e{number}", f"{number} {text(9)}", f"{number} {text(29)}", negatives, (), 2, 0
        )  # fmt: skip

    return [one(number) for number in range(num)]


ROWS = examples(9)
RECIPE = TrainRecipe(name="t", release="r", max_length=24, max_query_length=8)


@pytest.fixture(scope="module")
def tokens(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenTable:
    path = tmp_path_factory.mktemp("tokens") / "tokens.arrow"
    tokenizer = SentenceTransformer(str(tiny_model), device="cpu").tokenizer
    write_tokens(path, Texts(ROWS, RECIPE), tokenizer, RECIPE, "one")
    return read_tokens(path)


def encoder(model: Any, tokens: TokenTable, **sizes: int) -> Encoder:
    return Encoder(model, tokens, Processes("cpu"), **{"chunk_tokens": 40, "kept_tokens": 10**9, **sizes}, bf16=False)


def fresh(tiny_model: Path, dropout: float = 0.0) -> SentenceTransformer:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model.train()


def gradients(model: SentenceTransformer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def pulled(tiny_model: Path, tokens: TokenTable, dropout: float, **sizes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Embeddings of all texts, and parameters' gradients of a fixed linear function of them."""
    model = fresh(tiny_model, dropout)
    ours = encoder(model, tokens, **sizes)
    encoded = ours.encode(range(len(tokens.lengths)), (3, 1))
    target = torch.randn(encoded.embeddings_ME.shape, generator=torch.Generator().manual_seed(1))
    ours.backward(encoded, target)
    return encoded.embeddings_ME, gradients(model)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_running_chunks_again_changes_nothing(tiny_model: Path, tokens: TokenTable, dropout: float) -> None:
    vectors, expected = pulled(tiny_model, tokens, dropout)
    for kept_tokens in (0, 100, 200):
        again, found = pulled(tiny_model, tokens, dropout, kept_tokens=kept_tokens)
        torch.testing.assert_close(again, vectors, atol=1e-6, rtol=0)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[name], gradient, atol=1e-6 * max(1, float(gradient.abs().max())), rtol=1e-6
            )
    if dropout:
        assert not torch.equal(vectors, pulled(tiny_model, tokens, 0.0)[0])


def test_draws_follow_the_key(tiny_model: Path, tokens: TokenTable) -> None:
    ours = encoder(fresh(tiny_model, 0.3), tokens)
    numbers = range(len(tokens.lengths))
    one, other, same = (ours.encode(numbers, key).embeddings_ME for key in ((1, 0), (2, 0), (1, 0)))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_graphs_are_kept_within_the_budget(tiny_model: Path, tokens: TokenTable) -> None:
    ours = encoder(fresh(tiny_model), tokens, kept_tokens=130)
    encoded = ours.encode(range(len(tokens.lengths)), (0,))
    assert sum(chunk.num_tokens for chunk, _ in encoded.kept) <= 130
    assert len(encoded.kept) + len(encoded.again) == len(chunks_of(tokens.lengths.tolist(), 40))
    assert encoded.kept and encoded.again


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    budget=st.integers(1, 200),
    count=st.integers(1, 4),
)
@settings(deadline=None)
def test_chunks_hold_every_text_once_within_the_budget(lengths: list[int], budget: int, count: int) -> None:
    chunks = chunks_of(lengths, budget)
    assert sorted(place for chunk in chunks for place in chunk.places) == list(range(len(lengths)))
    for chunk in chunks:
        width = max(lengths[place] for place in chunk.places)
        assert chunk.num_tokens == width * len(chunk.places)
        assert chunk.num_tokens <= budget or len(chunk.places) == 1
    costs = [float(chunk.num_tokens) for chunk in chunks]
    loads = [0.0] * count
    for cost, owner in zip(costs, shared_out(costs, count), strict=True):
        loads[owner] += cost
    assert max(loads) - min(loads) <= max(costs)


@pytest.mark.parametrize("cached", [False, True])
def test_a_batch_equals_sentence_transformers_losses(tiny_model: Path, tokens: TokenTable, cached: bool) -> None:
    """Loss and every parameter's gradient against MNRL on padded batches and its cached form."""
    from trainer.contrast import Row, contrast_of, known_positives
    from trainer.loss import embedding_loss, terms_of

    theirs = fresh(tiny_model)
    columns = [
        theirs.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        for texts, length in (
            ([e.query for e in ROWS], 8),
            ([e.positive for e in ROWS], 24),
            ([e.written[0].text for e in ROWS], 24),
            ([e.written[1].text for e in ROWS], 24),
        )
    ]
    make: Any = losses.CachedMultipleNegativesRankingLoss if cached else losses.MultipleNegativesRankingLoss
    expected = make(theirs, **({"mini_batch_size": 4} if cached else {}))([dict(c) for c in columns], torch.empty(0))
    expected.backward()

    model, texts = fresh(tiny_model), Texts(ROWS, RECIPE)
    ours = encoder(model, tokens, kept_tokens=150)
    contrast = contrast_of([Row(e, e.written, e.query) for e in ROWS], known_positives(ROWS))
    numbers = [texts.queries[q] for q in contrast.queries] + [texts.passages[p] for p in contrast.passages]
    encoded = ours.encode(numbers, (0,))
    queries, passages = encoded.embeddings_ME.split([len(contrast.queries), len(contrast.passages)])
    loss = embedding_loss(queries, passages, contrast, terms_of(RECIPE))
    torch.testing.assert_close(loss.losses_B.mean(), expected.detach(), atol=1e-5, rtol=0)
    ours.backward(encoded, torch.cat([loss.queries_QE, loss.passages_NE]) / len(ROWS))
    for name, gradient in gradients(theirs).items():
        torch.testing.assert_close(gradients(model)[name], gradient, atol=2e-6, rtol=1e-4)


def test_tokens_are_the_tokenizers_own_and_cuts_are_counted(tiny_model: Path, tokens: TokenTable) -> None:
    tokenizer, texts = SentenceTransformer(str(tiny_model), device="cpu").tokenizer, Texts(ROWS, RECIPE)
    for side, length in ((texts.queries, 8), (texts.passages, 24)):
        for text, number in side.items():
            whole = tokenizer(text)["input_ids"]
            assert tokens.ids(number).tolist() == tokenizer(text, truncation=True, max_length=length)["input_ids"]
            assert tokens.is_cut[number] == (len(whole) > length)
    assert 0 < tokens.is_cut.sum() < len(texts)


def test_tokens_of_another_recipe_are_made_anew(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer, path = SentenceTransformer(str(tiny_model), device="cpu").tokenizer, tmp_path / "tokens.arrow"
    for identity, is_new in (("one", True), ("one", False), ("two", True)):
        stamp = path.stat().st_mtime_ns if path.exists() else 0
        write_tokens(path, Texts(ROWS, RECIPE), tokenizer, RECIPE, identity)
        assert (path.stat().st_mtime_ns != stamp) == is_new


def test_padding_on_the_left_where_the_tokenizer_pads_there(tiny_model: Path, tokens: TokenTable) -> None:
    model = fresh(tiny_model)
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        features = encoder(model, tokens).padded([0, 12, 20])
        expected = model.tokenizer.pad(
            {"input_ids": [tokens.ids(n).tolist() for n in (0, 12, 20)]}, padding=True, return_tensors="pt"
        )
        for name, tensor in features.items():
            assert torch.equal(tensor, expected[name])
