"""ATA pooling on a GPU: exact against eager attention, the same flattened for flash attention, no more memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.test_backbones import TEXTS, make_backbone
from tests.trainer.test_modeling_ata import KINDS, by_definition, pooled, tiny
from tests.trainer.test_modeling_ata import batch as made_batch
from trainer.backbones import load_model
from trainer.modeling_ata import Sight, received_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: nothing is claimed for one"),
]


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_gradients_equal_the_definition(kind: str, side: str) -> None:
    ids, mask = (tensor.cuda() for tensor in made_batch(side))
    ours, eager = tiny(kind).cuda(), tiny(kind, attention="eager").cuda()
    out = pooled(ours, ids, mask)
    weights, embeddings = by_definition(eager, ids, mask)
    torch.testing.assert_close(out["token_weights"], weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out["sentence_embedding"], embeddings, atol=1e-5, rtol=1e-4)
    out["sentence_embedding"].square().sum().backward()
    embeddings.square().sum().backward()
    for name, parameter in eager.named_parameters():
        if parameter.grad is not None:
            largest = max(1.0, float(parameter.grad.abs().max()))
            gradient = ours.get_parameter(name).grad
            torch.testing.assert_close(gradient / largest, parameter.grad / largest, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama", "qwen3"])
def test_flash_attention_without_padding_pools_as_sdpa(kind: str, tmp_path: Path) -> None:
    folder = make_backbone(tmp_path, kind)
    options: dict[str, Any] = {"dtype": "bfloat16", "device": "cuda"}
    try:
        flat = load_model(folder, attention="flash_attention_2", **options)
    except Exception as error:  # noqa: BLE001 - which package is missing is transformers' to say
        pytest.skip(f"no flash attention here: {error}")
    assert flat[0].can_flatten_inputs
    expected = load_model(folder, attention="sdpa", **options).encode(TEXTS)
    assert np.abs(flat.encode(TEXTS) - expected).max() < 0.05 * np.abs(expected).max()


def test_memory_does_not_grow_with_the_square_of_the_tokens() -> None:
    def peak(num_tokens: int) -> int:
        query = torch.randn(1, 8, num_tokens, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        key = torch.randn(1, 2, num_tokens, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sight = Sight(torch.ones(1, num_tokens, dtype=torch.bool, device="cuda"), is_causal=True)
        received_attention(query, key, sight, scaling=0.125, mode="log1p").sum().backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak(32_768) < 2.5 * peak(16_384)
