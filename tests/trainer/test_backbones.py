"""Loading: whole or with LoRA, encoders and decoders, and what is refused before the first step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from trainer.backbones import load_model, longest_text, save_model, weights_digest, with_pooling
from trainer.errors import TrainerError
from trainer.recipe import LoRA

MakeModel = Callable[[str], Path]
TEXTS = ["w1 w2 w3.", "w4", "w5 w6 w7 w8 w9 w10 w11 w12 w1 w2 w3"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(56))]
_SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def _tokenizer(has_padding: bool) -> Any:
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=64, **names, **({"pad_token": "[PAD]"} if has_padding else {})
    )


def make_backbone(folder: Path, kind: str) -> Path:
    """The folder of a tiny random model: bert, xlm-roberta, modernbert, mistral, llama, qwen2 or qwen3."""
    is_decoder = kind in ("mistral", "llama", "qwen2", "qwen3")
    sizes = {**_SIZES, **({"num_key_value_heads": 2} if is_decoder else {})}
    sizes |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(7)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / kind)
    _tokenizer(has_padding=not is_decoder).save_pretrained(folder / kind)
    return folder / kind


@pytest.fixture
def backbone_of(tmp_path: Path) -> MakeModel:
    return partial(make_backbone, tmp_path)


def _weights(model: SentenceTransformer) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert", "mistral", "llama", "qwen2", "qwen3"])
def test_every_family_loads_and_embeds(kind: str, backbone_of: MakeModel) -> None:
    model = load_model(backbone_of(kind), device="cpu")
    vectors = model.encode(TEXTS)
    alone = np.concatenate([model.encode([text]) for text in TEXTS])
    assert np.abs(vectors - alone).max() < 1e-5, "padding changes nothing"


@pytest.mark.parametrize("pooling", ["log1p", "mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_bidirectional_decoder_sees_what_follows_and_stays_so_when_saved(
    side: str, pooling: str, backbone_of: MakeModel, tmp_path: Path
) -> None:
    folder = backbone_of("mistral")
    causal = load_model(folder, pooling=pooling, device="cpu")
    both = load_model(folder, pooling=pooling, bidirectional=True, device="cpu")
    for tokenizer in (causal.tokenizer, both.tokenizer):
        tokenizer.padding_side = side
    first = [model.encode(TEXTS, output_value="token_embeddings")[2][0] for model in (causal, both)]
    changed = [*TEXTS[:2], TEXTS[2] + " w20"]
    later = [model.encode(changed, output_value="token_embeddings")[2][0] for model in (causal, both)]
    assert torch.allclose(first[0], later[0], atol=1e-6) and not torch.allclose(first[1], later[1], atol=1e-3)
    save_model(both, tmp_path / "saved")
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=pooling == "log1p", device="cpu")
    assert np.abs(again.encode(TEXTS) - both.encode(TEXTS)).max() <= (0 if pooling == "log1p" else 1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_pooling_that_sentence_transformers_has_is_saved_as_its_own(
    include_prompt: bool, side: str, pooling: str, backbone_of: MakeModel, tmp_path: Path
) -> None:
    model = load_model(backbone_of("llama"), pooling=pooling, include_prompt=include_prompt, device="cpu")
    model.tokenizer.padding_side = side
    expected = model.encode(TEXTS, prompt="w30 w31 ")
    save_model(model, tmp_path / "saved")
    assert type(model[1]).__name__ == "ATAPooling" and (model.encode(TEXTS, prompt="w30 w31 ") == expected).all()
    assert not list((tmp_path / "saved").rglob("*.py"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert type(again[1]).__name__ == "Pooling"
    assert np.abs(again.encode(TEXTS, prompt="w30 w31 ") - expected).max() < 1e-5
    assert (load_model(tmp_path / "saved", pooling=pooling, device="cpu").encode(TEXTS) == model.encode(TEXTS)).all()


def test_the_digest_of_weights_follows_what_decides_the_numbers(backbone_of: MakeModel, tmp_path: Path) -> None:
    folder = backbone_of("bert")
    first = weights_digest(folder)
    (folder / "training.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    assert weights_digest(folder) == first
    digests = {first}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        digests.add(weights_digest(folder))
        (folder / name).write_bytes(content)
    assert len(digests) == 4 and weights_digest(folder) == first


def test_adapters_train_alone_and_are_saved_merged(backbone_of: MakeModel, tmp_path: Path) -> None:
    model = load_model(backbone_of("qwen2"), lora=LoRA(rank=2, alpha=4), bidirectional=True, device="cpu")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name in trained:
            torch.nn.init.normal_(parameter, std=0.2)
    expected, before = model.encode(TEXTS), _weights(model)
    save_model(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    after = _weights(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (model.encode(TEXTS) == expected).all()
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert np.abs(again.encode(TEXTS) - expected).max() < 1e-4 * np.abs(expected).max()


def test_half_precision_weights_have_float32_adapters(backbone_of: MakeModel) -> None:
    model = load_model(backbone_of("llama"), lora=LoRA(rank=2), dtype="bfloat16", device="cpu")
    kinds = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    model.encode(TEXTS)


def test_prompts_are_kept_and_may_stay_out_of_the_pooling(backbone_of: MakeModel, tmp_path: Path) -> None:
    folder = backbone_of("bert")
    prompts = {"query": "w30 w31 "}
    included = load_model(folder, prompts=prompts, device="cpu")
    excluded = load_model(folder, prompts=prompts, include_prompt=False, device="cpu")
    asked = {name: model.encode(TEXTS, prompt_name="query") for name, model in
             (("included", included), ("excluded", excluded))}  # fmt: skip
    assert np.abs(asked["included"] - asked["excluded"]).max() > 1e-3
    assert (included.encode(TEXTS) == excluded.encode(TEXTS)).all()
    save_model(excluded, tmp_path / "saved")
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert (again.encode(TEXTS, prompt_name="query") == asked["excluded"]).all()


def test_own_pooling_and_what_follows_it_are_kept(backbone_of: MakeModel) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize

    folder = backbone_of("bert")
    own = load_model(folder, pooling="own", device="cpu")
    assert type(own[1]).__name__ == "Pooling"
    normalised = SentenceTransformer(modules=[*own, Normalize()], device="cpu")
    vectors = with_pooling(normalised, "sum").encode(TEXTS)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    mean = load_model(folder, pooling="mean", device="cpu")
    assert np.abs(mean.encode(TEXTS) - own.encode(TEXTS)).max() < 1e-5


def test_longest_text_leaves_out_reserved_positions(backbone_of: MakeModel) -> None:
    assert longest_text(load_model(backbone_of("bert"), device="cpu")) == 64
    assert longest_text(load_model(backbone_of("xlm-roberta"), device="cpu")) == 63


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert", {"bidirectional": True}, r"bidirectional = true: BertModel is no decoder"),
        ("bert", {"pooling": "median"}, r"pooling = 'median': choose own, log1p, sum, mean, last"),
        ("bert", {"attention": "flex_attention"}, r"pooling = 'log1p'.*'flex_attention'"),
        ("bert", {"attention": "quick"}, r"cannot be loaded.*quick"),
    ],
)
def test_what_cannot_work_is_refused(kind: str, options: Any, message: str, backbone_of: MakeModel) -> None:
    with pytest.raises(TrainerError, match=message):
        load_model(backbone_of(kind), device="cpu", **options)


def test_missing_model_and_models_without_a_pooling_are_refused(tmp_path: Path, backbone_of: MakeModel) -> None:
    with pytest.raises(TrainerError, match="no model's folder"):
        load_model(tmp_path / "nothing")
    bare = SentenceTransformer(modules=[load_model(backbone_of("bert"), device="cpu")[0]], device="cpu")
    with pytest.raises(TrainerError, match="0 poolings instead of one"):
        with_pooling(bare)


def test_code_in_a_folder_is_never_run(backbone_of: MakeModel, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    model = load_model(backbone_of("bert"), device="cpu")
    save_model(model, saved)
    with (saved / "modeling_ata.py").open("a") as file:
        file.write("\nraise SystemExit('run')\n")
    assert (load_model(saved, device="cpu").encode(TEXTS) == model.encode(TEXTS)).all()
    modules = (saved / "modules.json").read_text().replace("modeling_ata.ATAPooling", "modeling_ata.Other")
    (saved / "modules.json").write_text(modules)
    with pytest.raises(TrainerError, match="third-party code"):
        load_model(saved, device="cpu")


def test_memory_that_is_not_there_is_said(backbone_of: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    folder = backbone_of("bert")
    monkeypatch.setattr("trainer.backbones.SentenceTransformer._load_with_module_classes", full)
    with pytest.raises(TrainerError, match=r"does not fit.*bfloat16.*LoRA"):
        load_model(folder, device="cuda")
