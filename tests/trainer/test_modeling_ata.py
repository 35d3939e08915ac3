"""ATA pooling by value: against eager attention and a five-line sum, on uneven lengths, left and right padding."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import BertConfig, BertModel, MistralConfig, MistralModel

from trainer.backbones import save_model, with_pooling
from trainer.modeling_ata import ATAPooling

LENGTHS = (7, 3, 11, 1)
SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny(kind: str, *, attention: str = "sdpa") -> torch.nn.Module:
    """A tiny random model; the causal and bidirectional Mistral-like ones have grouped queries."""
    torch.manual_seed(3)
    if kind == "bert":
        model: torch.nn.Module = BertModel(BertConfig(**SIZES, attn_implementation=attention), add_pooling_layer=False)
    else:
        config = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None, attn_implementation=attention)
        model = MistralModel(config)
        model.config.is_causal = kind == "causal"
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(side: str) -> tuple[Tensor, Tensor]:
    """Token ids and mask of uneven lengths, padded on one side."""
    width = max(LENGTHS)
    ids, mask = torch.zeros(len(LENGTHS), width, dtype=torch.long), torch.zeros(len(LENGTHS), width, dtype=torch.long)
    generator = torch.Generator().manual_seed(5)
    for row, length in enumerate(LENGTHS):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(1, 60, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def pooled(backbone: torch.nn.Module, ids: Tensor, mask: Tensor, mode: str = "log1p") -> dict[str, Tensor]:
    pooling = ATAPooling(32, mode)
    pooling.on_model_ready([backbone])
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    states = backbone(input_ids=ids, attention_mask=mask, **positions).last_hidden_state
    return pooling({"token_embeddings": states, "attention_mask": mask})


def brute_force(kind: str, ids: Tensor, mask: Tensor, mode: str) -> Tensor:
    """The definition, token by token, from eager attention."""
    model = tiny(kind, attention="eager")
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    attention = model(input_ids=ids, attention_mask=mask, output_attentions=True, **positions).attentions[-1]
    weights = torch.zeros(mask.shape)
    for row in range(len(mask)):
        valid = mask[row].nonzero().flatten().tolist()
        for key in valid:
            seeing = [q for q in valid if kind != "causal" or q >= key]
            for q in seeing:
                num_visible = len([k for k in valid if kind != "causal" or k <= q])
                received = attention[row, :, q, key]
                score = torch.log1p(num_visible * received) if mode == "log1p" else received
                weights[row, key] += score.sum() / len(seeing)
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("mode", ["log1p", "sum"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "causal", "bidirectional"])
def test_weights_equal_the_definition_on_eager_attention(kind: str, side: str, mode: str) -> None:
    ids, mask = batch(side)
    with torch.no_grad():
        out = pooled(tiny(kind), ids, mask, mode)
        expected = brute_force(kind, ids, mask, mode)
    torch.testing.assert_close(out["token_weights"], expected, atol=2e-6, rtol=2e-5)
    assert (out["token_weights"][mask == 0] == 0).all()
    by_hand = (expected[..., None] * out["token_embeddings"]).sum(1)
    torch.testing.assert_close(out["sentence_embedding"], by_hand, atol=1e-5, rtol=1e-4)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = batch("right")
    with torch.no_grad():
        whole = pooled(tiny("causal"), ids, mask)["token_weights"]
        monkeypatch.setattr("trainer.modeling_ata._ROWS", 4)
        chunked = pooled(tiny("causal"), ids, mask)["token_weights"]
    torch.testing.assert_close(whole, chunked)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "causal", "bidirectional"])
def test_uniform_visible_attention_is_mean_pooling(kind: str, side: str) -> None:
    model = tiny(kind)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("query", "key", "q_proj", "k_proj")):
            torch.nn.init.zeros_(parameter)
    ids, mask = batch(side)
    with torch.no_grad():
        weights = pooled(model, ids, mask)["token_weights"]
    torch.testing.assert_close(weights, mask / mask.sum(-1, keepdim=True))


def test_last_mode_takes_the_last_valid_token() -> None:
    for side in ("left", "right"):
        ids, mask = batch(side)
        with torch.no_grad():
            out = pooled(tiny("causal"), ids, mask, "last")
        places = [11 - 1 if side == "left" else length - 1 for length in LENGTHS]
        expected = out["token_embeddings"][torch.arange(len(LENGTHS)), places]
        torch.testing.assert_close(out["sentence_embedding"], expected)


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_flows_through_the_weights_unless_detached(detach: bool) -> None:
    ids, mask = batch("right")
    backbone = tiny("bert")
    pooling = ATAPooling(32, detach_weights=detach)
    pooling.on_model_ready([backbone])
    states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = pooling.token_weights(states.detach(), mask.bool())
    assert weights.requires_grad is not detach
    if not detach:
        (weights * torch.arange(weights.shape[1])).sum().backward()
        gradient = backbone.encoder.layer[-1].attention.self.query.weight.grad  # type: ignore[union-attr, index]
        assert float(gradient.norm()) > 0


def test_unknown_mode_and_unknown_backbone_are_refused() -> None:
    with pytest.raises(ValueError, match="log1p, sum, mean, last"):
        ATAPooling(8, "median")
    with pytest.raises(ValueError, match="no attention layer"):
        ATAPooling(8).on_model_ready([torch.nn.Linear(2, 2)])


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    from curation.embeddings import model_folder

    base = SentenceTransformer(str(model_folder("minilm")))
    return with_pooling(base)


TEXTS = ["Short.", "A longer sentence, with commas, about the role of anchors in pooling.", "words " * 300]


def test_copies_and_pickles_give_the_same_vectors(minilm: SentenceTransformer) -> None:
    expected = minilm.encode(TEXTS)
    for other in (copy.deepcopy(minilm), pickle.loads(pickle.dumps(minilm))):
        assert (other.encode(TEXTS) == expected).all()
        assert (minilm.encode(TEXTS) == expected).all()


def test_saved_and_saved_again_it_loads_without_gradus(minilm: SentenceTransformer, tmp_path: Path) -> None:
    save_model(minilm, tmp_path / "one")
    code = (
        "import sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "texts = eval(sys.argv[1])\n"
        "first = SentenceTransformer('one', trust_remote_code=True)\n"
        "first.save('two', create_model_card=False)\n"
        "second = SentenceTransformer('two', trust_remote_code=True)\n"
        "assert not any(name.split('.')[0] == 'trainer' for name in sys.modules)\n"
        "np.save('out.npy', np.stack([first.encode(texts), second.encode(texts)]))\n"
    )
    env = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, repr(TEXTS)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = np.load(tmp_path / "out.npy")
    assert (first == minilm.encode(TEXTS)).all() and (second == first).all()


def test_untrusted_loading_is_refused(minilm: SentenceTransformer, tmp_path: Path) -> None:
    save_model(minilm, tmp_path / "one")
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "one"))


def test_pooling_outside_a_model_says_so() -> None:
    features = {"token_embeddings": torch.zeros(1, 2, 4), "attention_mask": torch.ones(1, 2)}
    with pytest.raises(RuntimeError, match="queries and keys"):
        ATAPooling(4)(features)
