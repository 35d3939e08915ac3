"""Models to train: loaded whole or with LoRA, decoders made bidirectional, pooling put on, and saved so that plain
sentence-transformers loads them.

What cannot work is refused here, before the first step: an attention that the pooling does not know, adapters on a
model that takes none, a model that does not fit.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from trainer.errors import TrainerError
from trainer.limits import is_out_of_memory
from trainer.modeling_ata import MODES, ATAPooling
from trainer.recipe import LoRA

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Learned positions that a family keeps for itself: RoBERTa's start behind the padding's index.
_RESERVED_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"}
_SAVED_TYPE = "modeling_ata.ATAPooling"
_STOCK_MODES: dict[str, Any] = {"mean": "mean", "last": "lasttoken"}
# What decides a model's numbers: weights, and how they and the tokens are read. A trained model's own journal does not.
_DECIDING = {".safetensors", ".bin", ".json", ".txt", ".model"}
_JOURNAL = "training.json"
# What the libraries raise, by what is wrong with a folder: its JSON, its weights, their shapes, its modules.
_UNREADABLE = (
    ValueError, ImportError, OSError, KeyError, AttributeError, TypeError, RuntimeError, MemoryError, SafetensorError,
)  # fmt: skip


def load_model(
    folder: Path,
    *,
    pooling: str = "log1p",
    detach_weights: bool = False,
    include_prompt: bool = True,
    bidirectional: bool = False,
    prompts: Mapping[str, str] | None = None,
    lora: LoRA | None = None,
    attention: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    gradient_checkpointing: bool = False,
    device: str | None = None,
) -> SentenceTransformer:
    """A model ready for training or for a look at its anchors.

    Args:
        folder: A sentence-transformers model, or a plain transformers encoder or decoder.
        pooling: `log1p`, `sum`, `mean`, `last`, or `own` for the pooling that the model has.
        detach_weights: Whether gradients stop at the weights of the pooling.
        include_prompt: Whether the tokens of a prompt are pooled; they are attended to either way.
        bidirectional: Whether a decoder's tokens see what stands after them. Kept by the saved model.
        prompts: Instructions by name, put before a text with `encode(..., prompt_name=...)`.
        lora: Train adapters of this shape and freeze everything else.
        attention: `sdpa`, `eager`, `flash_attention_2` or another that transformers knows; None leaves it the choice.
        dtype: Of the weights; adapters are float32 always.
        gradient_checkpointing: Recompute activations in the backward pass.
        device: None takes a GPU where there is one.

    Raises:
        TrainerError: No model there, or one of the arguments does not fit it.
    """
    if pooling != "own" and pooling not in MODES:
        raise TrainerError(f"pooling = {pooling!r}: choose own, {', '.join(MODES)}")
    model = _load(folder, attention, dtype, device, dict(prompts or {}))
    tokenizer: Any = model.tokenizer
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)) + 1:  # transformers makes an empty one of no file
        raise TrainerError(
            f"model = {str(folder)!r} has no vocabulary: copy its tokenizer's files too (tokenizer.json)"
        )
    if tokenizer.pad_token is None:  # decoders often have none; what stands there is masked everywhere
        tokenizer.pad_token = tokenizer.eos_token
    if bidirectional:
        _make_bidirectional(model)
    if lora is not None:
        _add_adapters(model, lora)
    if gradient_checkpointing:
        _transformer(model).activation_checkpointing_enable({"use_reentrant": False})
        _transformer(model).enable_input_require_grads()  # frozen embeddings would end the graph before the adapters
    if pooling == "own":
        return model
    return with_pooling(model, pooling, detach_weights, include_prompt=include_prompt)


def _load(
    folder: Path, attention: str | None, dtype: str, device: str | None, prompts: dict[str, str]
) -> SentenceTransformer:
    if not any((folder / name).is_file() for name in ("modules.json", "config.json", "adapter_config.json")):
        raise TrainerError(f"model = {str(folder)!r}: no model's folder (modules.json or config.json) there")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)} if dtype != "float32" else {}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        # The folder's copy of the pooling is not run: this package's own stands in for it, whatever version saved it.
        return SentenceTransformer._load_with_module_classes(
            str(folder), {_SAVED_TYPE: ATAPooling}, device=device, prompts=prompts or None, model_kwargs=options
        )
    except _UNREADABLE as error:
        if is_out_of_memory(error):
            raise TrainerError(
                f"model = {str(folder)!r} does not fit into the memory of {device or 'the machine'}: use dtype = "
                "'bfloat16', LoRA, or a smaller model"
            ) from error
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise TrainerError(f"model = {str(folder)!r} cannot be loaded: {type(error).__name__}: {told}") from error


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of what decides a model's numbers."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _DECIDING and path.name != _JOURNAL and path.is_file():
            with path.open("rb") as file:
                total.update(path.relative_to(folder).as_posix().encode() + b"\0")
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _transformer(model: SentenceTransformer) -> "PreTrainedModel":
    first: Any = model[0]
    inner: PreTrainedModel | None = getattr(first, "model", None)
    if inner is None:
        raise TrainerError(
            f"the model starts with {type(first).__name__}, not with a transformer: it cannot be trained"
        )
    return inner


def longest_text(model: SentenceTransformer) -> int | None:
    """Tokens that the model has positions for; None where nothing limits them."""
    return longest_of(_transformer(model).config)


def longest_of(config: Any) -> int | None:
    """Tokens that a transformer's configuration has positions for; None where nothing limits them."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    if longest is not None and config.model_type in _RESERVED_POSITIONS:
        longest -= (config.pad_token_id or 0) + 1
    return longest


def _make_bidirectional(model: SentenceTransformer) -> None:
    """Let every token see every other one.

    Source: LLM2Vec, arXiv 2404.05961. transformers hands `is_causal` of the configuration on to masks and kernels.
    """
    transformer = _transformer(model)
    layers = [layer for layer in transformer.modules() if getattr(layer, "is_causal", None) is True]
    if not layers:
        raise TrainerError(
            f"bidirectional = true: {type(transformer).__name__} is no decoder, its tokens see each other already"
        )
    transformer.config.is_causal = False


def _add_adapters(model: SentenceTransformer, lora: LoRA) -> None:
    """Adapters on every linear layer (LoRA, arXiv 2106.09685), as in Negative Matters, ACL 2025 long.1501."""
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="FEATURE_EXTRACTION",
    )
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise TrainerError(f"lora: {error}") from error
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()  # an optimiser's small steps are lost in half precision


def with_pooling(
    model: SentenceTransformer, mode: str = "log1p", detach: bool = False, *, include_prompt: bool = True
) -> SentenceTransformer:
    """The model with ATA pooling of this mode in place of its own; `detach` stops gradients at the weights.

    The two share the backbone, whose attention the new one watches from now on.
    """
    modules: list[Any] = list(model)
    # By name: the class of a pooling that was loaded with its model's own code is not the one imported here.
    places = [place for place, module in enumerate(modules) if type(module).__name__ in ("Pooling", "ATAPooling")]
    if len(places) != 1:
        names = ", ".join(type(module).__name__ for module in modules)
        raise TrainerError(f"the model has {len(places)} poolings instead of one ({names}): its pooling stays as it is")
    backbone, config = modules[0], _transformer(model).config
    is_causal = False if getattr(config, "is_causal", None) is False else None
    modules[places[0]] = ATAPooling(backbone.get_embedding_dimension(), mode, detach, include_prompt, is_causal)
    try:
        pooled = SentenceTransformer(
            modules=modules,
            device=str(model.device),
            prompts={name: prompt for name, prompt in model.prompts.items() if prompt is not None},
            default_prompt_name=model.default_prompt_name,
            similarity_fn_name=model.similarity_fn_name,
        )
    except ValueError as error:
        raise TrainerError(f"pooling = {mode!r}: {error}") from error
    pooled.max_seq_length = model.max_seq_length
    return pooled


def save_model(model: SentenceTransformer, folder: Path) -> None:
    """Save so that plain sentence-transformers loads it: our pooling's class is named by the file beside it.

    Adapters are added to the weights that are written; the model itself keeps them apart.
    """
    with _merged(_transformer(model)), _stock_pooling(model):
        model.save(str(folder), create_model_card=False)
    path = folder / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8"))
    for module in modules:
        if module["type"].endswith(".ATAPooling"):
            module["type"] = _SAVED_TYPE
    path.write_text(json.dumps(modules, indent=2), encoding="utf-8")


@contextmanager
def _stock_pooling(model: SentenceTransformer) -> Iterator[None]:
    """The model with sentence-transformers' own pooling where it does the same, which asks nobody to trust our code."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    ours = [
        (name, module) for name, module in model._modules.items()
        if isinstance(module, ATAPooling) and module.mode in _STOCK_MODES
    ]  # fmt: skip
    try:
        for name, module in ours:
            stock = Pooling(module.embedding_dimension, _STOCK_MODES[module.mode], module.include_prompt)
            model._modules[name] = stock
        yield
    finally:
        for name, module in ours:
            model._modules[name] = module


@contextmanager
def _merged(transformer: Any) -> Iterator[None]:
    """The transformer with its adapters added to copies of the weights; untouched afterwards, to the bit."""
    if not getattr(transformer, "_hf_peft_config_loaded", False):
        yield
        return
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in transformer.named_modules() if isinstance(module, LoraLayer)]
    try:
        for name, module in adapted:
            transformer.set_submodule(name, _merged_layer(module))
        transformer._hf_peft_config_loaded = False
        yield
    finally:
        transformer._hf_peft_config_loaded = True
        for name, module in adapted:
            transformer.set_submodule(name, module)


def _merged_layer(module: Any) -> torch.nn.Module:
    base: torch.nn.Module = module.get_base_layer()
    if type(base) is not torch.nn.Linear:
        raise TrainerError(f"adapters on {type(base).__name__} cannot be merged into its weights")
    merged = torch.nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    with torch.no_grad():
        delta = sum(module.get_delta_weight(name) for name in module.active_adapters)
        merged.weight = torch.nn.Parameter((base.weight + delta).to(base.weight.dtype), requires_grad=False)
    if base.bias is not None:
        merged.bias = base.bias
    return merged
