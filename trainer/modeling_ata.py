"""Anchor-token-aware (ATA) pooling for sentence-transformers, in one file that travels with the model.

A token's weight is the attention that it receives in the last layer: for key k, the mean over the valid queries q that
can see k of the sum over heads of log(1 + n_q * attention[q, k]), with n_q the number of valid keys visible to q,
normalised over the pooled keys. Uniform attention gives mean pooling, causal or not. A prompt that is left out of the
pooling still asks: its tokens count among the queries and in n_q, they only get no weight.

The model's own attention kernels (SDPA, flash) stay on everywhere: the last layer hands its queries and keys over, and
only the column sums of its attention are recomputed, in pieces that fit a processor's cache. Gradients are recomputed
the same way, so memory grows with the tokens, not with their square.

Source: Negative Matters, ACL 2025 long.1501; `log1p` is our reading of its formula, `sum`, `mean` and `last` are
controls. Legend: B batch, H heads of queries, T tokens, D head dimension, E embedding dimension, F tokens of a
flattened batch; b, R, K the texts, query rows and keys of one piece.
"""

import copy
import math
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sentence_transformers.base.modules.module import Module
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MODES = ("log1p", "sum", "mean", "last")
_WATCHING = "ata"
# Elements of attention at a time. On a processor a piece should stay in the cache: an eighth or twice is slower.
_PIECE = {"cpu": 1 << 19, "cuda": 1 << 26}
_NEVER = -1e30  # as minus infinity in a softmax, but a row that sees nothing becomes uniform, not NaN
_CHANGED_SCORES = ("softcap", "s_aux", "position_bias")


class Sight(NamedTuple):
    """What each query sees.

    valid: [B, T], true for tokens that are not padding. is_causal: a query sees only itself and what stands before it.
    window: it sees only keys at a distance below this. mask: what the layer itself used, [B or 1, 1 or H, T, T], true
    where visible or added to the scores; it replaces `is_causal` and `window`.
    """

    valid: Tensor
    is_causal: bool = False
    window: int | None = None
    mask: Tensor | None = None


class Handed(NamedTuple):
    """What the last layer hands over: query [B, H, T, D], key [B, heads of keys, T, D], both after rotary embedding."""

    query: Tensor
    key: Tensor
    scaling: float
    is_causal: bool
    window: int | None
    mask: Tensor | None
    is_flash: bool
    with_grad: bool


class Stash(threading.local):
    """Where the last layer leaves its queries and keys for the pooling, one place per thread. Copies are empty.

    It is open from the start of the model's forward pass to the pooling: a layer that gradient checkpointing runs
    again for the backward pass leaves nothing.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.content: Handed | None = None

    def open(self, *_: Any) -> None:
        self.is_open, self.content = True, None

    def put(self, content: Handed) -> None:
        if self.is_open:
            self.content = content

    def take(self) -> Handed:
        content, self.content, self.is_open = self.content, None, False
        if content is None:
            raise RuntimeError(
                "ATA pooling got no queries and keys: it watches the last layer of the model that it was made part of "
                "(on_model_ready), and of two poolings over one backbone only the later"
            )
        return content

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stash":
        return Stash()

    def __reduce__(self) -> tuple[type["Stash"], tuple[()]]:
        return Stash, ()


def _watching_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """Leave queries and keys in the stash, then attend as the layer would have."""
    layer: Any = module
    base = layer._ata_config._attn_implementation
    _require_plain_scores(layer, query, key, kwargs)
    is_causal = kwargs.get("is_causal")
    is_mask = isinstance(attention_mask, Tensor) and attention_mask.dim() == 4
    layer._ata_stash.put(
        Handed(
            query,
            key,
            kwargs.get("scaling") or query.shape[-1] ** -0.5,
            bool(getattr(layer, "is_causal", True) if is_causal is None else is_causal) and base != "eager",
            None if base == "eager" else kwargs.get("sliding_window"),
            attention_mask if is_mask else None,
            "flash" in base,
            torch.is_grad_enabled(),
        )
    )
    own_eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(base, own_eager)
    if "flash" in base:  # which reads its name from the layer's configuration; a copy, for threads share the layer
        layer = copy.copy(layer)
        layer.config = layer._ata_config
    return attend(layer, query, key, value, attention_mask, **kwargs)


def _require_plain_scores(layer: Any, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
    changed = [name for name in _CHANGED_SCORES if kwargs.get(name) is not None]
    if changed:
        raise ValueError(
            f"ATA pooling cannot recompute the attention of {type(layer).__name__}, which uses {', '.join(changed)}: "
            "use mode 'mean' or 'last'"
        )
    if key.shape[-2] != query.shape[-2]:
        raise ValueError("ATA pooling needs the whole text at once, without keys of an earlier call (past_key_values)")


ALL_ATTENTION_FUNCTIONS.register(_WATCHING, _watching_attention)


def _last_attention(backbone: torch.nn.Module) -> torch.nn.Module:
    found = [m for m in backbone.modules() if hasattr(m, "is_causal") and hasattr(m, "config")]
    if not found:
        model = next((m for m in backbone.modules() if hasattr(m, "config")), backbone)
        raise ValueError(f"ATA pooling knows no attention layer in {type(model).__name__}; use mode 'mean' or 'last'")
    layer: Any = found[-1]
    name = layer.config._attn_implementation
    if name not in ("eager", "sdpa") and "flash" not in name:
        raise ValueError(
            f"ATA pooling does not know the attention implementation {name!r}: load the model with 'sdpa', 'eager' or "
            "a flash attention"
        )
    return layer


def received_attention(query: Tensor, key: Tensor, sight: Sight, *, scaling: float, mode: str) -> Tensor:
    """Attention that each key receives, a mean over the queries that see it, float32, [B, T]; 0 for padding.

    Args:
        query: [B, H, T, D], after rotary embedding.
        key: [B, heads of keys, T, D]; fewer heads than queries when these are grouped.
        sight: What each query sees.
        scaling: Factor of the scores.
        mode: `log1p` or `sum`.
    """
    with torch.autocast(query.device.type, enabled=False):
        mass, num_seeing = _ReceivedMass.apply(query, key, sight, scaling, mode)
        return torch.where(sight.valid, mass / num_seeing.clamp(min=1), 0.0)


class _ReceivedMass(torch.autograd.Function):
    """Sums over queries and heads per key, and how many queries see the key; keeps nothing but queries and keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, sight: Sight, scaling: float, mode: str) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(query, key)
        ctx.sight, ctx.scaling, ctx.mode = sight, scaling, mode
        mass = torch.zeros(sight.valid.shape, dtype=torch.float32, device=query.device)
        num_seeing = torch.zeros_like(mass)
        for piece in _pieces(query, key, sight, scaling):
            attention, texts, keys = piece.attention, piece.texts, piece.keys
            if mode == "log1p":
                received = _summed_log1p(attention.mul_(piece.num_visible), int(sight.valid.shape[1]))
            else:
                received = attention.sum(1)
            num_rows = attention.shape[2]
            if piece.counted is None:
                mass[texts, keys] += received.sum(1)
                num_seeing[texts, keys] += num_rows
            else:
                mass[texts, keys] += (received * piece.counted).sum(1)
                num_seeing[texts, keys] += piece.counted.expand_as(received).sum(1)
        ctx.mark_non_differentiable(num_seeing)
        return mass, num_seeing

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mass: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        query, key = ctx.saved_tensors
        grad_query = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        turned_grad_key = torch.zeros(key.transpose(-1, -2).shape, dtype=torch.float32, device=key.device)
        with torch.autocast(query.device.type, enabled=False):
            for piece in _pieces(query, key, ctx.sight, ctx.scaling):
                attention = piece.attention
                received = grad_mass[piece.texts, None, None, piece.keys]
                grad = piece.spare
                if ctx.mode == "log1p":  # d log(1 + n a) / da * a = n a / (1 + n a) = 1 - 1 / (1 + n a)
                    torch.mul(attention, piece.num_visible, out=grad).add_(1)
                    torch.sub(received, torch.div(received, grad, out=grad), out=grad)
                else:
                    torch.mul(attention, received, out=grad)
                if piece.counted is not None:
                    grad.mul_(piece.counted[:, None])
                grad.addcmul_(attention, grad.sum(-1, keepdim=True), value=-1)
                rows, shape = (piece.texts, slice(None), piece.rows), piece.query.shape
                folded = grad.view(*piece.key.shape[:2], -1, grad.shape[-1])
                grad_query[rows] = (folded @ piece.key).view(shape)
                folded_query = piece.query.reshape(*piece.key.shape[:2], -1, shape[-1])
                turned_grad_key[piece.texts, :, :, piece.keys] += folded_query.transpose(-1, -2) @ folded
        grad_key = turned_grad_key.mul_(ctx.scaling).to(key.dtype).transpose(-1, -2)
        return grad_query.mul_(ctx.scaling).to(query.dtype), grad_key, None, None, None


def _summed_log1p(visits: Tensor, num_keys: int) -> Tensor:
    """Sum over heads of log(1 + visits), [b, R, K], from [b, H, R, K], which is overwritten.

    One logarithm of a product of factors, each at most 1 + num_keys, is exact and much faster than a sum of logarithms.
    """
    most = max(1, int(120 / math.log2(num_keys + 2)))  # factors whose product stays below float32's largest number
    factors = visits.add_(1)
    total = factors[:, :most].prod(1).log_()
    for start in range(most, visits.shape[1], most):
        total += factors[:, start : start + most].prod(1).log_()
    return total


class _Piece(NamedTuple):
    """Part of the attention: the query rows of some texts, all heads, over the keys that they can see.

    attention: [b, H, R, K], to be overwritten. spare: memory of its shape. num_visible: n_q, a number, or [b, 1, R, 1].
    counted: [b, R, K] or [b, R, 1], 1 where a valid query sees a key; None when all do. query: [b, H, R, D]. key:
    [b, heads of keys, K, D].
    """

    texts: slice
    rows: slice
    keys: slice
    attention: Tensor
    spare: Tensor
    num_visible: Any
    counted: Tensor | None
    query: Tensor
    key: Tensor


def _pieces(query: Tensor, key: Tensor, sight: Sight, scaling: float) -> Iterator[_Piece]:
    num_heads, head_dimension = query.shape[1], query.shape[3]
    buffer = torch.empty(2, 0, device=query.device)  # once, for fresh memory is slow to touch
    for texts, rows, keys in _cuts(num_heads, sight):
        query_piece = query[texts, :, rows].float()
        key_piece = key[texts, :, keys].float()
        num_texts, num_rows, num_keys = query_piece.shape[0], query_piece.shape[2], key_piece.shape[2]
        folded = query_piece.reshape(num_texts * key.shape[1], -1, head_dimension)  # grouped heads as further rows
        turned = key_piece.reshape(-1, num_keys, head_dimension).transpose(1, 2)
        size = num_texts * num_heads * num_rows * num_keys
        if buffer.shape[1] < size:
            buffer = torch.empty(2, size, device=query.device)
        scores = buffer[0, :size].view(num_texts * key.shape[1], -1, num_keys)
        torch.baddbmm(scores, folded, turned, beta=0, alpha=scaling, out=scores)
        attention = scores.view(num_texts, num_heads, num_rows, num_keys)
        visible, bias = _visible(sight, texts, rows, keys)
        num_visible: Any = num_keys
        counted = None
        asking = sight.valid[texts, rows, None]
        if bias is not None:
            attention += bias
        if visible is not None:
            num_visible = visible.sum(-1, keepdim=True)
            counted = (visible[:, 0] & asking).float()
        elif query.device.type != "cpu" or not asking.all():
            counted = asking.float()
        torch.softmax(attention, -1, out=attention)
        yield _Piece(
            texts,
            rows,
            keys,
            attention,
            buffer[1, :size].view_as(attention),
            num_visible,
            counted,
            query_piece,
            key_piece,
        )


def _cuts(num_heads: int, sight: Sight) -> Iterator[tuple[slice, slice, slice]]:
    """Texts, query rows and keys of each piece: whole short texts together, long texts by rows.

    On a processor, padding around the texts of a piece is left out; elsewhere their lengths are not waited for.
    """
    num_texts, width = sight.valid.shape
    device = sight.valid.device.type
    most = _PIECE.get(device, _PIECE["cuda"]) // num_heads
    firsts, ends = [0] * num_texts, [width] * num_texts
    if device == "cpu" and not sight.valid.all():
        flags = sight.valid.int()
        firsts, ends = flags.argmax(1).tolist(), (width - flags.flip(1).argmax(1)).tolist()
    start = 0
    while start < num_texts:
        first, end, stop = firsts[start], ends[start], start + 1
        while stop < num_texts:
            wider = min(first, firsts[stop]), max(end, ends[stop])
            if (stop + 1 - start) * (wider[1] - wider[0]) ** 2 > most:
                break
            (first, end), stop = wider, stop + 1
        num_rows = max(1, most // ((stop - start) * (end - first)))
        for row in range(first, end, num_rows):
            rows = slice(row, min(row + num_rows, end))
            yield slice(start, stop), rows, _reach(sight, rows, first, end)
        start = stop


def _reach(sight: Sight, rows: slice, first: int, end: int) -> slice:
    """The keys that any of the rows can see."""
    if sight.mask is not None:
        return slice(first, end)
    if sight.window is not None:
        first, end = max(first, rows.start - sight.window + 1), min(end, rows.stop + sight.window - 1)
    return slice(first, min(end, rows.stop) if sight.is_causal else end)


def _visible(sight: Sight, texts: slice, rows: slice, keys: slice) -> tuple[Tensor | None, Tensor | None]:
    """Which keys each query of a piece sees, [b or 1, 1, R or 1, K], and what to add to the scores; None when all."""
    on_processor = sight.valid.device.type == "cpu"
    valid = sight.valid[texts, None, None, keys]
    visible = None if on_processor and valid.all() else valid
    if sight.mask is not None:
        own = sight.mask[texts if sight.mask.shape[0] > 1 else slice(None), :, rows, keys]
        if own.is_floating_point():
            visible = valid & (own > torch.finfo(own.dtype).min / 2).any(1, keepdim=True)
            return visible, own.float().masked_fill(~visible, _NEVER).clamp_(min=_NEVER)
        if not (on_processor and own.all()):
            visible = own & valid
    elif sight.is_causal or sight.window is not None:
        places = torch.arange(keys.stop, device=valid.device)
        ahead = places[keys.start :] - places[rows, None]
        limit = keys.stop if sight.window is None else sight.window
        near = (ahead <= 0 if sight.is_causal else ahead < limit) & (ahead > -limit)
        if not (on_processor and near.all()):
            visible = near[None, None] & valid
    if visible is None:
        return None, None
    return visible, torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, _NEVER)


class ATAPooling(Module):
    """Pools token embeddings by the attention that tokens receive.

    Args:
        embedding_dimension: E of the token embeddings.
        mode: `log1p` (ATA), `sum` (attention without the logarithm), `mean` or `last`.
        detach_weights: Whether gradients stop at the weights.
        include_prompt: Whether the tokens of a prompt are pooled.
        is_causal: False makes a decoder bidirectional when the model is put together, also where its own
            configuration is lost, as with a saved adapter; None leaves it as it is.
    """

    config_keys = ["embedding_dimension", "mode", "detach_weights", "include_prompt", "is_causal"]  # noqa: RUF012 - the base class' contract

    def __init__(
        self,
        embedding_dimension: int,
        mode: str = "log1p",
        detach_weights: bool = False,
        include_prompt: bool = True,
        is_causal: bool | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: choose one of {', '.join(MODES)}")
        self.embedding_dimension, self.mode, self.detach_weights = embedding_dimension, mode, detach_weights
        self.include_prompt, self.is_causal = include_prompt, is_causal
        self._stash = Stash()

    def on_model_ready(self, model: Any) -> None:
        """Watch the last attention layer of the model that this pooling is part of."""
        backbone: Any = model[0]
        if self.is_causal is not None:
            backbone.model.config.is_causal = self.is_causal
        if (watch := getattr(backbone, "_ata_watch", None)) is not None:
            layer, opening = watch
            layer.config = layer._ata_config
            opening.remove()
            backbone._ata_watch = None
        if self.mode in ("mean", "last"):
            return
        watched: Any = _last_attention(backbone)
        watched._ata_stash, watched._ata_config = self._stash, watched.config
        watched.config = copy.copy(watched.config)
        watched.config._attn_implementation_internal = _WATCHING
        backbone._ata_watch = (watched, backbone.register_forward_pre_hook(self._stash.open))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        tokens: Tensor = features["token_embeddings"]
        with torch.autocast(tokens.device.type, enabled=False):
            if "cu_seq_lens_q" in features:
                weights, pooled = self._pool_flattened(tokens, features)
            else:
                valid = features["attention_mask"].bool()
                weights = self._weights(tokens, valid, self._pooled_tokens(valid, features))
                pooled = (weights[:, None] @ tokens.float())[:, 0]
        features["token_weights"] = weights
        features["sentence_embedding"] = pooled.to(tokens.dtype)
        return features

    def _pool_flattened(self, tokens: Tensor, features: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Weights [1, F] and embeddings [B, E] of texts that stand one after the other without padding, [1, F, E]."""
        starts, ends = features["cu_seq_lens_q"][:-1, None], features["cu_seq_lens_q"][1:, None]
        width = int((ends - starts).max())
        places = starts + torch.arange(width, device=tokens.device)
        valid = places < ends
        places = places.clamp(max=tokens.shape[1] - 1)
        weights = self._weights(tokens, valid, self._pooled_tokens(valid, features), places)
        pooled = (weights[:, None] @ tokens[0, places].float())[:, 0]
        return weights[valid][None], pooled

    def _pooled_tokens(self, valid: Tensor, features: dict[str, Any]) -> Tensor:
        """Valid tokens without those of an excluded prompt, [B, T]."""
        if self.include_prompt or "prompt_length" not in features:
            return valid
        given = features["prompt_length"]
        num_prompt = int(given.flatten()[0]) if isinstance(given, Tensor) else int(given)
        return valid & (valid.cumsum(-1) > num_prompt)

    def _weights(self, tokens: Tensor, valid: Tensor, pooled: Tensor, places: Tensor | None = None) -> Tensor:
        """Weight of each token, [B, T], each row of sum 1; `places` [B, T] picks the texts out of a flattened batch."""
        if self.mode == "last":
            order = torch.arange(valid.shape[1], device=valid.device)
            return (order == torch.where(valid, order, -1).amax(-1, keepdim=True)).float()
        received = pooled.float() if self.mode == "mean" else self._received(tokens, valid, places)
        weights = torch.where(pooled, received, 0.0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)

    def _received(self, tokens: Tensor, valid: Tensor, places: Tensor | None) -> Tensor:
        handed = self._stash.take()
        query, key, mask = handed.query, handed.key, handed.mask
        if places is not None:
            if not handed.is_flash and mask is None:
                raise ValueError(
                    "flattened inputs without flash attention: the texts of the batch would attend to each other"
                )
            query, key, mask = query[0][:, places].transpose(0, 1), key[0][:, places].transpose(0, 1), None
        if self.detach_weights:
            query, key = query.detach(), key.detach()
        elif torch.is_grad_enabled() and tokens.requires_grad and not handed.with_grad:
            raise RuntimeError(
                "gradient checkpointing with use_reentrant=True cuts the gradient of the pooling's weights: set "
                "use_reentrant=False, or detach the weights"
            )
        sight = Sight(valid, handed.is_causal, handed.window, mask)
        return received_attention(query, key, sight, scaling=handed.scaling, mode=self.mode)

    def get_embedding_dimension(self) -> int:
        return self.embedding_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the configuration, and this file into the model's root, where loading looks for it."""
        self.save_config(output_path)
        source, target = Path(__file__), Path(output_path).parent / "modeling_ata.py"
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
