"""ATA pooling inside sentence-transformers: copies, files, processes, adapters, cached losses, checkpointing."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch import Tensor

from tests.trainer.test_backbones import make_backbone
from trainer.backbones import load_model, save_model, with_pooling
from trainer.recipe import LoRA


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


_ELSEWHERE = """
import sys

import numpy as np
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":
    texts = sys.argv[1:]
    first = SentenceTransformer("one", trust_remote_code=True, device="cpu")
    first.save("two", create_model_card=False)
    second = SentenceTransformer("two", trust_remote_code=True, device="cpu")
    assert not any(name.split(".")[0] == "trainer" for name in sys.modules)
    pool = second.start_multi_process_pool(["cpu"])
    vectors = [first.encode(texts), second.encode(texts), second.encode(texts, pool=pool)]
    second.stop_multi_process_pool(pool)
    np.save("out.npy", np.stack(vectors))
"""


def test_saved_and_saved_again_it_loads_without_gradus_also_in_several_processes(
    minilm: SentenceTransformer, tmp_path: Path
) -> None:
    save_model(minilm, tmp_path / "one")
    (tmp_path / "elsewhere.py").write_text(_ELSEWHERE)
    env = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "elsewhere.py", *TEXTS], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, pooled = np.load(tmp_path / "out.npy")
    assert (first == minilm.encode(TEXTS)).all() and (second == first).all()
    assert np.abs(pooled - first).max() < 1e-6


def test_untrusted_loading_is_refused(minilm: SentenceTransformer, tmp_path: Path) -> None:
    save_model(minilm, tmp_path / "one")
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "one"))


def test_two_threads_do_not_mix_their_texts(minilm: SentenceTransformer) -> None:
    texts = [f"text number {number} " + "words " * number for number in range(8)]
    expected = [minilm.encode([text]) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: minilm.encode([text], show_progress_bar=False), texts * 3))
    assert all(np.abs(a - b).max() < 1e-6 for a, b in zip(together, expected * 3, strict=True))


WORDS = [[f"w{(7 * row + column) % 50}" for column in range(1 + 5 * row % 13)] for row in range(18)]
COLUMNS = [[" ".join(words) for words in WORDS[start : start + 6]] for start in (0, 6, 12)]


def test_poolings_over_one_backbone_take_turns(tmp_path: Path) -> None:
    base = load_model(make_backbone(tmp_path, "bert"), pooling="own", device="cpu")
    first = with_pooling(base)
    expected = first.encode(COLUMNS[0])
    mean = with_pooling(base, "mean")
    assert np.abs(mean.encode(COLUMNS[0]) - expected).max() > 1e-4
    with pytest.raises(RuntimeError, match="only the later"):
        first.encode(COLUMNS[0])
    assert (with_pooling(base).encode(COLUMNS[0]) == expected).all()


def _gradients(model: SentenceTransformer, loss: torch.nn.Module) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    value = loss([model.preprocess(column) for column in COLUMNS], None)
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "mistral", "qwen3"])
def test_cached_losses_checkpointing_and_adapters_keep_the_gradient(kind: str, detach: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"detach_weights": detach, "device": "cpu"}
    if kind in ("mistral", "qwen3"):
        options |= {"lora": LoRA(rank=2, alpha=4), "bidirectional": kind == "mistral"}
    folder = make_backbone(tmp_path, kind)
    found = {}
    for checkpointing in (False, True):
        torch.manual_seed(2)
        model = load_model(folder, gradient_checkpointing=checkpointing, **options).train()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for name, loss in {
            "plain": losses.MultipleNegativesRankingLoss(model),
            "by rows": losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4),
            "by tokens": losses.CachedMultipleNegativesRankingLoss(model, mini_batch_num_tokens=20),
        }.items():
            found[checkpointing, name] = _gradients(model, loss)
            pooling: Any = model[1]
            assert pooling._stash.content is None, "nothing is kept after the backward pass"
    value, expected = found.pop((False, "plain"))
    assert expected and (kind not in ("mistral", "qwen3") or all("lora_" in name for name in expected))
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for other, gradients in found.values():
        assert other == pytest.approx(value, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient / largest, expected[name] / largest, atol=1e-5, rtol=0)


def test_checkpointing_that_would_cut_the_gradient_is_refused(tmp_path: Path) -> None:
    for detach in (True, False):
        model = load_model(make_backbone(tmp_path, "llama"), detach_weights=detach, device="cpu").train()
        inner: Any = model[0]
        inner.model.activation_checkpointing_enable({"use_reentrant": True})
        inner.model.enable_input_require_grads()
        if detach:
            _gradients(model, losses.MultipleNegativesRankingLoss(model))
        else:
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                _gradients(model, losses.MultipleNegativesRankingLoss(model))
