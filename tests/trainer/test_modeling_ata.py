"""ATA pooling by value: against eager attention and the definition, token by token, on every kind of backbone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from trainer import modeling_ata
from trainer.modeling_ata import ATAPooling, Sight, received_attention

LENGTHS = (7, 3, 11, 1)
SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0}
MODERN = {**SIZES, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}
# Windows are shorter than the longest text, so that they matter. A bare name of a decoder is causal.
BACKBONES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertModel, BertConfig, {**SIZES, "pad_token_id": 0}),
    "xlm-r": (XLMRobertaModel, XLMRobertaConfig, {**SIZES, "pad_token_id": 0}),
    "modernbert": (
        ModernBertModel,
        ModernBertConfig,
        {**MODERN, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "modernbert-local": (
        ModernBertModel,
        ModernBertConfig,
        {**MODERN, "local_attention": 6, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "mistral": (MistralModel, MistralConfig, {**GROUPED, "sliding_window": None}),
    "mistral-window": (MistralModel, MistralConfig, {**GROUPED, "sliding_window": 4}),
    "llama": (LlamaModel, LlamaConfig, GROUPED),
    "qwen2": (Qwen2Model, Qwen2Config, GROUPED),
    "qwen2-window": (Qwen2Model, Qwen2Config, {**GROUPED, **WINDOW}),
    "qwen3": (Qwen3Model, Qwen3Config, {**GROUPED, "head_dim": 8}),
}
DECODERS = ("mistral", "mistral-window", "llama", "qwen2", "qwen2-window", "qwen3")
KINDS = [*BACKBONES, *(f"{name}-bidirectional" for name in DECODERS)]


def tiny(kind: str, *, attention: str = "sdpa") -> Any:
    """A tiny random model."""
    torch.manual_seed(3)
    make, configure, sizes = BACKBONES[kind.removesuffix("-bidirectional")]
    model = make(configure(**sizes, attn_implementation=attention))
    if kind.endswith("-bidirectional"):
        model.config.is_causal = False
    for parameter in model.parameters():
        if parameter.dim() > 1:  # as they are, norms keep the scores large enough for uneven attention
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(side: str) -> tuple[Tensor, Tensor]:
    """Token ids and mask of uneven lengths, padded on one side, or the longest text alone without padding."""
    width = max(LENGTHS)
    ids, mask = torch.zeros(len(LENGTHS), width, dtype=torch.long), torch.zeros(len(LENGTHS), width, dtype=torch.long)
    generator = torch.Generator().manual_seed(5)
    for row, length in enumerate(LENGTHS):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(1, 60, (length,), generator=generator)
        mask[row, place] = 1
    return (ids[2:3], mask[2:3]) if side == "none" else (ids, mask)


class Wrapped(torch.nn.Module):
    """A backbone as sentence-transformers' first module holds it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        states: Tensor = self.model(**inputs).last_hidden_state
        return states


def pooled(model: Any, ids: Tensor, mask: Tensor, mode: str = "log1p", **options: Any) -> dict[str, Tensor]:
    backbone, pooling = Wrapped(model), ATAPooling(32, mode, **options)
    pooling.on_model_ready([backbone])
    states = backbone(input_ids=ids, attention_mask=mask)
    return pooling({"token_embeddings": states, "attention_mask": mask})


def by_definition(model: Any, ids: Tensor, mask: Tensor, mode: str = "log1p") -> tuple[Tensor, Tensor]:
    """Weights and embeddings, token by token, from eager attention; a key that a query cannot see has exactly 0."""
    out = model(input_ids=ids, attention_mask=mask, output_attentions=True)
    attention = out.attentions[-1]
    rows = []
    for row in range(len(mask)):
        valid = mask[row].nonzero().flatten().tolist()
        weight = [torch.zeros(()) for _ in range(mask.shape[1])]
        for key in valid:
            seeing = [query for query in valid if attention[row, :, query, key].sum() > 0]
            for query in seeing:
                num_visible = sum(bool(attention[row, :, query, other].sum() > 0) for other in valid)
                received = attention[row, :, query, key]
                score = torch.log1p(num_visible * received) if mode == "log1p" else received
                weight[key] = weight[key] + score.sum() / len(seeing)
        rows.append(torch.stack(weight) / torch.stack(weight).sum())
    weights = torch.stack(rows)
    return weights, (weights[..., None] * out.last_hidden_state).sum(1)


@pytest.mark.parametrize("mode", ["log1p", "sum"])
@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_gradients_equal_the_definition_on_eager_attention(kind: str, side: str, mode: str) -> None:
    ids, mask = batch(side)
    ours, eager = tiny(kind), tiny(kind, attention="eager")
    out = pooled(ours, ids, mask, mode)
    weights, embeddings = by_definition(eager, ids, mask, mode)
    torch.testing.assert_close(out["token_weights"], weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out["sentence_embedding"], embeddings, atol=1e-5, rtol=1e-5)
    assert (out["token_weights"][mask == 0] == 0).all()
    longest = weights[-1 if side == "none" else 2]
    assert longest.max() > 1.2 * longest.min(), "uneven enough to tell"
    direction = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
    (out["sentence_embedding"] * direction).sum().backward()
    (embeddings * direction).sum().backward()
    expected = dict(eager.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:  # the pooler, which is not used
            assert expected[name].grad is None
            continue
        largest = max(1.0, float(expected[name].grad.abs().max()))
        torch.testing.assert_close(
            parameter.grad / largest,
            expected[name].grad / largest,
            atol=1e-5,
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("kind", ["bert", "modernbert-local", "mistral-window", "llama-bidirectional"])
def test_eager_backbones_pool_the_same(kind: str) -> None:
    ids, mask = batch("left")
    with torch.no_grad():
        eager = pooled(tiny(kind, attention="eager"), ids, mask)["token_weights"]
        torch.testing.assert_close(eager, pooled(tiny(kind), ids, mask)["token_weights"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "modernbert-local", "mistral", "qwen2-window", "qwen2-window-bidirectional"])
@pytest.mark.parametrize("size", [1, 50, 200])
def test_size_of_the_pieces_changes_nothing(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome() -> tuple[Tensor, Tensor]:
        model = tiny(kind)
        out = pooled(model, *batch("right"))["sentence_embedding"]
        (out * torch.arange(32)).sum().backward()
        return out.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = outcome()
    monkeypatch.setitem(modeling_ata._PIECE, "cpu", size * 4)
    for part, expected in zip(outcome(), whole, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_uniform_visible_attention_is_mean_pooling(kind: str, side: str) -> None:
    model = tiny(kind)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("query", "key", "q_proj", "k_proj", "Wqkv")):
            torch.nn.init.zeros_(parameter)
    ids, mask = batch(side)
    with torch.no_grad():
        weights = pooled(model, ids, mask)["token_weights"]
    torch.testing.assert_close(weights, mask / mask.sum(-1, keepdim=True))


@pytest.mark.parametrize("mode", ["log1p", "sum", "mean"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_excluded_prompts_get_no_weight_but_still_ask(side: str, mode: str) -> None:
    ids, mask = batch(side)
    backbone, pooling = Wrapped(tiny("llama")), ATAPooling(32, mode, include_prompt=False)
    pooling.on_model_ready([backbone])
    features = {"attention_mask": mask, "prompt_length": 2}
    with torch.no_grad():
        states = backbone(input_ids=ids, attention_mask=mask)
        weights = pooling({**features, "token_embeddings": states})["token_weights"]
        whole = pooled(tiny("llama"), ids, mask, mode)["token_weights"]
    kept = torch.zeros_like(mask)
    for row, length in enumerate(LENGTHS):
        first = mask.shape[1] - length if side == "left" else 0
        kept[row, first + 2 : first + length] = 1
    expected = whole * kept
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True).clamp(min=1e-12))
    assert (mask == batch(side)[1]).all(), "the caller's mask is left alone"


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", ["bert", "mistral", "mistral-window", "modernbert-local", "qwen3-bidirectional"])
def test_flattened_texts_pool_as_padded_ones(kind: str, detach: bool) -> None:
    """The layout of flash attention without padding; here the texts are kept apart by a mask that SDPA takes."""
    ids, mask = batch("right")
    flat = ids[mask.bool()][None]
    texts = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    places = torch.cat([torch.arange(length) for length in LENGTHS])
    apart = texts[:, None] == texts
    distance = places[:, None] - places
    if kind.startswith("mistral"):
        apart = apart & (distance >= 0) & (distance < (4 if kind == "mistral-window" else 99))
    if kind == "modernbert-local":
        near = apart & (distance.abs() <= 3)
        given: Any = {"full_attention": apart[None, None], "sliding_attention": near[None, None]}
    else:
        given = apart[None, None]
    results = []
    for is_flat in (False, True):
        model = tiny(kind)
        backbone, pooling = Wrapped(model), ATAPooling(32, detach_weights=detach)
        pooling.on_model_ready([backbone])
        if is_flat:
            states = backbone(input_ids=flat, attention_mask=given, position_ids=places[None])
            bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
            out = pooling({"token_embeddings": states, "cu_seq_lens_q": bounds})
            weights = out["token_weights"][0]
        else:
            out = pooling({"token_embeddings": backbone(input_ids=ids, attention_mask=mask), "attention_mask": mask})
            weights = out["token_weights"][mask.bool()]
        (out["sentence_embedding"] * torch.arange(32)).sum().backward()
        gradient = next(p.grad for n, p in model.named_parameters() if "layers.0" in n or "layer.0" in n)
        results.append((weights.detach(), out["sentence_embedding"].detach(), gradient / gradient.abs().max()))
    for padded, flattened in zip(*results, strict=True):
        torch.testing.assert_close(flattened, padded, atol=1e-5, rtol=1e-5)


def test_flattened_texts_without_flash_attention_are_refused() -> None:
    backbone, pooling = Wrapped(tiny("bert")), ATAPooling(32)
    pooling.on_model_ready([backbone])
    states = backbone(input_ids=torch.ones(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="without flash attention"):
        pooling({"token_embeddings": states, "cu_seq_lens_q": torch.tensor([0, 5, 8])})


@pytest.mark.parametrize("side", ["right", "left"])
def test_last_mode_takes_the_last_valid_token(side: str) -> None:
    ids, mask = batch(side)
    with torch.no_grad():
        out = pooled(tiny("mistral"), ids, mask, "last")
    places = [11 - 1 if side == "left" else length - 1 for length in LENGTHS]
    expected = out["token_embeddings"][torch.arange(len(LENGTHS)), places]
    torch.testing.assert_close(out["sentence_embedding"], expected)


def test_detached_weights_pass_no_gradient() -> None:
    ids, mask = batch("right")
    ours, eager = tiny("bert"), tiny("bert", attention="eager")
    pooled(ours, ids, mask, detach_weights=True)["sentence_embedding"].sum().backward()
    weights, _ = by_definition(eager, ids, mask)
    states = eager(input_ids=ids, attention_mask=mask).last_hidden_state
    (weights.detach()[..., None] * states).sum().backward()
    for name, parameter in eager.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "mistral-bidirectional"])
def test_bf16_stays_within_its_tolerance(kind: str) -> None:
    """A bfloat16 has 8 bits: weights within 3 % of the largest, against the float32 definition."""
    ids, mask = batch("right")
    with torch.no_grad():
        expected, _ = by_definition(tiny(kind, attention="eager"), ids, mask)
        whole = pooled(tiny(kind).to(torch.bfloat16), ids, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = pooled(tiny(kind), ids, mask)
    assert whole["sentence_embedding"].dtype == torch.bfloat16
    for out in (whole, mixed):
        assert float((out["token_weights"] - expected).abs().max()) < 0.03 * float(expected.max())


def test_many_heads_on_one_key_do_not_overflow() -> None:
    """Every factor of the product of 96 heads is 1 + 64: log1p is summed, not infinite."""
    query = torch.ones(1, 96, 64, 8) * 30
    key = torch.zeros(1, 96, 64, 8)
    key[:, :, 5] = 30
    sight = Sight(torch.ones(1, 64, dtype=torch.bool))
    received = received_attention(query, key, sight, scaling=1.0, mode="log1p")
    assert float(received[0, 5]) == pytest.approx(96 * torch.log(torch.tensor(65.0)).item(), rel=1e-6)


def test_unknown_mode_backbone_and_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="log1p, sum, mean, last"):
        ATAPooling(8, "median")
    with pytest.raises(ValueError, match="no attention layer in Linear"):
        ATAPooling(8).on_model_ready([torch.nn.Linear(2, 2)])
    model = tiny("bert")
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ValueError, match=r"flex_attention.*load the model with 'sdpa'"):
        ATAPooling(8).on_model_ready([Wrapped(model)])


def test_attention_with_changed_scores_is_refused() -> None:
    model = tiny("llama")
    backbone, pooling = Wrapped(model), ATAPooling(32)
    pooling.on_model_ready([backbone])
    with pytest.raises(ValueError, match="softcap"):
        backbone(input_ids=torch.ones(1, 3, dtype=torch.long), softcap=30.0)
    backbone(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_pooling_outside_a_model_says_so() -> None:
    features = {"token_embeddings": torch.zeros(1, 2, 4), "attention_mask": torch.ones(1, 2)}
    with pytest.raises(RuntimeError, match="queries and keys"):
        ATAPooling(4)(features)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    num_texts, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    spans = [sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width)))) for _ in range(num_texts)]
    return {
        "valid": torch.tensor([[low <= place < high for place in range(width)] for low, high in spans]),
        "heads": (groups, per_group),
        "is_causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 5)),
        "piece": draw(st.sampled_from([1, 7, 60, 1 << 19])),
        "mode": draw(st.sampled_from(["log1p", "sum"])),
    }


@given(shape=shapes(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=200)
def test_any_shape_equals_the_sum_written_out(shape: dict[str, Any], seed: int) -> None:
    """Also texts without any token, whose keys get 0, and gradients."""
    valid, (groups, per_group) = shape["valid"], shape["heads"]
    draws = torch.Generator().manual_seed(seed)
    size = (valid.shape[0], groups, valid.shape[1], 4)
    query = torch.randn(size[0], groups * per_group, *size[2:], generator=draws).requires_grad_()
    key = torch.randn(size, generator=draws).requires_grad_()
    direction = torch.randn(valid.shape, generator=draws)
    places = torch.arange(valid.shape[1])
    ahead = places - places[:, None]
    near = ahead.abs() < (shape["window"] or 99)
    visible = valid[:, None, None] & near & ((ahead <= 0) | (not shape["is_causal"]))
    scores = (query @ key.repeat_interleave(per_group, 1).transpose(-1, -2) * 0.5).masked_fill(~visible, -1e9)
    attention = scores.softmax(-1)
    if shape["mode"] == "log1p":
        attention = torch.log1p(visible.sum(-1, keepdim=True) * attention)
    counted = visible & valid[:, None, :, None]
    expected = (attention * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
    sight = Sight(valid, shape["is_causal"], shape["window"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(modeling_ata._PIECE, "cpu", shape["piece"])
        received = received_attention(query, key, sight, scaling=0.5, mode=shape["mode"])
        ours = torch.autograd.grad((received * direction).sum(), [query, key])
    torch.testing.assert_close(received, expected, atol=1e-5, rtol=1e-5)
    for gradient, right in zip(ours, torch.autograd.grad((expected * direction).sum(), [query, key]), strict=True):
        torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-4)
