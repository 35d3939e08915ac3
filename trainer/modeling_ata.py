"""Anchor-token-aware (ATA) pooling for sentence-transformers, in one file that travels with the model.

A token's weight is the attention that it receives in the last layer: for key k, the mean over the valid queries q that
can see k of the sum over heads of log(1 + n_q * attention[q, k]), with n_q the number of valid keys visible to q,
normalised over the valid keys. Uniform attention gives mean pooling, causal or not.

The model's own attention kernels (SDPA, flash) stay on everywhere: the last layer hands its queries and keys over, and
only the column sums of its attention are recomputed, in chunks of rows.

Source: Negative Matters, ACL 2025 long.1501; `log1p` is our reading of its formula, `sum`, `mean` and `last` are
controls. Legend: B batch, H heads, T tokens, D head dimension, E embedding dimension.
"""

import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules.module import Module
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MODES = ("log1p", "sum", "mean", "last")
_PREFIX = "ata|"
_ROWS = 128  # rows of attention at a time: memory is B * H * rows * T floats


class Stash:
    """Where the last layer leaves its queries and keys for the pooling. Copies and pickles are empty."""

    def __init__(self) -> None:
        self.content: tuple[Tensor, Tensor, float, bool, Tensor | None] | None = None

    def take(self) -> tuple[Tensor, Tensor, float, bool, Tensor | None]:
        content, self.content = self.content, None
        if content is None:
            raise RuntimeError(
                "ATA pooling got no queries and keys: it belongs into a model whose last layer it watches"
            )
        return content

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stash":
        return Stash()

    def __getstate__(self) -> dict[str, None]:
        return {"content": None}


def _watching_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """Leave queries and keys in the stash, then attend as the layer would have."""
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    stash: Any = module._ata_stash
    stash.content = (query, key, scaling, bool(is_causal), attention_mask)
    watched: Any = module.config
    module.config = module._ata_config  # a kernel that reads the config finds the real implementation's name
    try:
        base = watched._attn_implementation.removeprefix(_PREFIX)
        own_eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(base, own_eager)
        return attend(module, query, key, value, attention_mask, **kwargs)
    finally:
        module.config = watched


for _base in ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"):
    ALL_ATTENTION_FUNCTIONS.register(_PREFIX + _base, _watching_attention)


def _last_attention(backbone: torch.nn.Module) -> torch.nn.Module:
    found = [
        m for m in backbone.modules() if hasattr(m, "scaling") and hasattr(m, "config") and hasattr(m, "is_causal")
    ]
    if not found:
        raise ValueError(
            f"ATA pooling knows no attention layer in {type(backbone).__name__}; use mode 'mean' or 'last'"
        )
    return found[-1]


def received_attention(
    query: Tensor, key: Tensor, valid: Tensor, *, scaling: float, is_causal: bool, mask: Tensor | None, mode: str
) -> Tensor:
    """Weight per key from queries and keys, float32, [B, T]; padding gets exactly 0 and each row sums to 1.

    Args:
        query: [B, H, T, D], after rotary embedding.
        key: [B, heads of keys, T, D]; fewer heads than queries when these are grouped.
        valid: [B, T], true for tokens that are not padding.
        is_causal: Whether a query sees only itself and what stands before it.
        mask: The layer's own mask [B or 1, 1, T, T], true or 0 where visible; None when it needed none.
        mode: `log1p` or `sum`.
    """
    batch, num_heads, num_tokens, _ = query.shape
    key = key.repeat_interleave(num_heads // key.shape[1], dim=1)
    mass = torch.zeros(batch, num_tokens, dtype=torch.float32, device=query.device)
    num_seeing = torch.zeros_like(mass)
    for start in range(0, num_tokens, _ROWS):
        rows = slice(start, min(start + _ROWS, num_tokens))
        visible = _visible(valid, rows, is_causal, mask)
        scores = (query[:, :, rows].float() @ key.float().transpose(-1, -2)) * scaling
        # A row that sees nothing would be NaN; it is padding and counts for nothing below.
        blind = ~visible.any(-1, keepdim=True)
        attention = scores.masked_fill(~(visible | blind), float("-inf")).softmax(-1)
        if mode == "log1p":
            attention = torch.log1p(visible.sum(-1, keepdim=True) * attention)
        counted = visible & valid[:, None, rows, None]
        mass = mass + (attention * counted).sum(dim=(1, 2))
        num_seeing = num_seeing + counted.sum(dim=(1, 2))
    weights = torch.where(valid, mass / num_seeing.clamp(min=1), 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)


def _visible(valid: Tensor, rows: slice, is_causal: bool, mask: Tensor | None) -> Tensor:
    """Which valid keys each query of the rows sees, [B, 1, rows, T]."""
    num_tokens = valid.shape[1]
    visible = valid[:, None, None, :].expand(-1, 1, rows.stop - rows.start, -1)
    if mask is not None and mask.dim() == 4:
        own = mask[:, :1, rows, :num_tokens]
        return visible & (own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2)
    if is_causal:
        places = torch.arange(num_tokens, device=valid.device)
        return visible & (places[None, :] <= places[rows, None])[None, None]
    return visible


class ATAPooling(Module):
    """Pools token embeddings by the attention that tokens receive.

    Args:
        embedding_dimension: E of the token embeddings.
        mode: `log1p` (ATA), `sum` (attention without the logarithm), `mean` or `last`.
        detach_weights: Whether gradients stop at the weights.
    """

    config_keys = ["embedding_dimension", "mode", "detach_weights"]  # noqa: RUF012 - the base class' contract

    def __init__(self, embedding_dimension: int, mode: str = "log1p", detach_weights: bool = False) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: choose one of {', '.join(MODES)}")
        self.embedding_dimension, self.mode, self.detach_weights = embedding_dimension, mode, detach_weights
        self._stash = Stash()

    def on_model_ready(self, model: Any) -> None:
        """Watch the last attention layer of the model that this pooling is part of."""
        if self.mode in ("mean", "last"):
            return
        layer: Any = _last_attention(model[0])
        if hasattr(layer, "_ata_config"):
            layer.config = layer._ata_config
        layer._ata_config, watched = layer.config, copy.copy(layer.config)
        watched._attn_implementation_internal = _PREFIX + layer.config._attn_implementation
        layer.config, layer._ata_stash = watched, self._stash

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        tokens: Tensor = features["token_embeddings"]
        valid = features["attention_mask"].bool()
        weights = self.token_weights(tokens, valid)
        features["token_weights"] = weights
        features["sentence_embedding"] = (weights[..., None] * tokens.float()).sum(1).to(tokens.dtype)
        return features

    def token_weights(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Weight of each token, [B, T]."""
        if self.mode == "mean":
            return valid / valid.sum(-1, keepdim=True).clamp(min=1)
        if self.mode == "last":
            places = torch.arange(valid.shape[1], device=valid.device)
            last = torch.where(valid, places, -1).amax(-1, keepdim=True)
            return (places == last).float()
        query, key, scaling, is_causal, mask = self._stash.take()
        if self.detach_weights:
            query, key = query.detach(), key.detach()
        with torch.autocast(tokens.device.type, enabled=False):
            return received_attention(
                query, key, valid, scaling=scaling, is_causal=is_causal, mask=mask, mode=self.mode
            )

    def get_embedding_dimension(self) -> int:
        return self.embedding_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the configuration, and this file into the model's root, where loading looks for it."""
        self.save_config(output_path)
        source, target = Path(__file__), Path(output_path).parent / "modeling_ata.py"
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
