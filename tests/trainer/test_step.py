"""A step by value: rate, clipping, decay and scale against AdamW written out; its draws; its precision."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainer.test_backbones import make_backbone
from tests.trainer.test_training import metrics_of, recipe, started_training
from trainer.contrast import Row
from trainer.curriculum import Batch, Step
from trainer.recipe import TrainRecipe
from trainer.training import load_for_training, train

# Batches of 3, 3 and 2 rows, so steps of 6 and 2; two of the eight warm up.
ASKED = recipe(
    batch_size=3, accumulate=2, learning_rate=1e-2, warmup=0.25, weight_decay=1.0, clip=0.5, temperature=0.2,
    schedule="reverse",
)  # fmt: skip
RATES = [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
NUM_ROWS = [6, 2] * 4


def embedded(model: Any, texts: list[str]) -> Tensor:
    """Texts in one padded forward pass, [texts, E]."""
    features = model.tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    vectors: Tensor = model(dict(features))["sentence_embedding"]
    return vectors


def summed_loss(model: Any, rows: list[Row]) -> Tensor:
    """InfoNCE by its definition, summed over the rows; no row's passages answer another's query."""
    passages = [row.example.positive for row in rows] + [n.text for row in rows for n in row.negatives]
    passages = list(dict.fromkeys(passages))
    queries, others = (
        functional.normalize(embedded(model, texts), dim=1) for texts in ([row.asked for row in rows], passages)
    )
    cosines = queries @ others.T
    total = torch.zeros(())
    for number, row in enumerate(rows):
        positive = cosines[number, passages.index(row.example.positive)]
        against = [cosines[number, place] for place, text in enumerate(passages) if text != row.example.positive]
        total = total + torch.log(1 + torch.exp((torch.stack(against) - positive) / 0.2).sum())
    return total


def take_by_hand(
    model: Any, batches: list[list[Row]], moments: dict[str, tuple[Any, Any]], number: int
) -> tuple[float, dict[str, Tensor]]:
    """AdamW's step (Loshchilov & Hutter 2019, Algorithm 2); the norm before clipping, and the clipped gradients."""
    model.zero_grad()
    num_rows, rate = sum(len(rows) for rows in batches), 1e-2 * RATES[number]
    assert num_rows == NUM_ROWS[number]
    (sum((summed_loss(model, rows) for rows in batches), torch.zeros(())) / num_rows).backward()
    weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
    norm = sum(float((p.grad.double() ** 2).sum()) for p in weights.values()) ** 0.5
    gradients = {name: p.grad * min(1, 0.5 / norm) for name, p in weights.items()}
    with torch.no_grad():
        for name, gradient in gradients.items():
            mean, square = moments.get(name, (0.0, 0.0))
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            moments[name] = mean, square
            if weights[name].dim() > 1:
                weights[name].mul_(1 - rate * 1.0)
            size = (square / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8
            weights[name].sub_(rate * mean / (1 - 0.9 ** (number + 1)) / size)
    return norm, gradients


def test_steps_equal_adamw_written_out(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = started_training(ASKED, release, tiny_model, tmp_path)
    model = copy.deepcopy(run.model)
    moments: dict[str, tuple[Any, Any]] = {}
    norms: list[float] = []
    for number, step in enumerate(run.steps):
        batches = [run.learner.rows_of(batch, step) for batch in step.batches]
        report, norm, rate = run.learner.take(number, step)
        expected_norm, gradients = take_by_hand(model, batches, moments, number)
        norms.append(expected_norm)
        assert rate == pytest.approx(1e-2 * RATES[number])
        assert {group["lr"] for group in run.learner.optimizer.param_groups} == {rate}
        assert norm == pytest.approx(expected_norm, rel=1e-3) and len(report.losses) == NUM_ROWS[number]
        mine, theirs = dict(run.model.named_parameters()), dict(model.named_parameters())
        assert {name for name, p in mine.items() if p.grad is not None} == gradients.keys()
        for name, gradient in gradients.items():
            if not name.endswith("key.bias"):  # zero but for rounding, which Adam blows up
                torch.testing.assert_close(mine[name].grad, gradient, atol=1e-4, rtol=1e-2)
                torch.testing.assert_close(mine[name], theirs[name], atol=1e-3, rtol=0)
    assert min(norms) < 0.5 < max(norms), "some gradients are clipped and some are not"


def test_every_step_and_batch_and_seed_draws_its_own_dropout(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    batch = Batch(tuple(range(8)), 0)
    step = Step(0, 1, (batch, batch))
    losses: dict[str, list[float]] = {}
    for name, changes in {"one": {}, "other seed": {"seed": 1}}.items():
        asked = recipe(dropout=0.4, learning_rate=1e-9, **changes)  # which moves nothing
        run = started_training(asked, release, tiny_model, tmp_path / name)
        run.model.train()
        losses |= {f"{name}, step {number}": run.learner.take(number % 9, step)[0].losses for number in (0, 1, 9)}
    assert losses["one, step 9"] == pytest.approx(losses["one, step 0"])  # step 0 again
    halves = [half for name in ("one, step 0", "one, step 1", "other seed, step 0")
              for half in (losses[name][:8], losses[name][8:])]  # fmt: skip
    for place, half in enumerate(halves):
        assert all(np.abs(np.subtract(half, other)).max() > 1e-3 for other in halves[:place])


def test_training_drops_out_what_the_recipe_says(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    losses = {
        dropout: metrics_of(
            train(
                recipe(dropout=dropout, max_steps=1, schedule="fixed:1"), release, tiny_model,
                output=tmp_path / f"{dropout}" / "toy",
            ).folder
        )[0]["loss"]
        for dropout in (0.0, 0.2, 0.5)
    }  # fmt: skip
    assert len({round(loss, 3) for loss in losses.values()}) == 3


def test_bfloat16_is_autocasts_and_near_float32(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    runs = {bf16: started_training(recipe(bf16=bf16), release, tiny_model, tmp_path / bf16) for bf16 in ("on", "off")}
    texts = list(runs["on"].texts.passages)
    numbers = list(runs["on"].texts.passages.values())
    vectors = {bf16: run.encoder.encode(numbers, (0,)).embeddings_ME for bf16, run in runs.items()}
    assert vectors["on"].dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = embedded(runs["off"].model, texts).float()
    size = float(expected.abs().max())
    gap = float((vectors["on"] - vectors["off"]).abs().max())
    assert 1e-4 * size < gap < 0.05 * size, "computed in bfloat16, and right"
    assert float((vectors["on"] - expected).abs().max()) < 0.02 * size
    for run in runs.values():
        run.learner.take(0, run.steps[0])
    mine, theirs = (dict(run.model.named_parameters()) for run in runs.values())
    for name, parameter in theirs.items():
        if parameter.grad is not None and parameter.dim() > 1:
            got, wanted = mine[name].grad.flatten(), parameter.grad.flatten()
            assert float(functional.cosine_similarity(got, wanted, dim=0)) > 0.98 and not torch.equal(got, wanted)
            assert mine[name].dtype == torch.float32


def arrived(model: Any) -> dict[str, Any]:
    """What of a recipe is to be seen in a loaded model."""
    pooling, inner = model[1], model[0].model
    adapters = getattr(inner, "peft_config", {}).get("default")
    base = {p.dtype for name, p in inner.named_parameters() if "lora_" not in name}
    return {
        "pooling": getattr(pooling, "mode", "own"),
        "detach_weights": getattr(pooling, "detach_weights", None),
        "include_prompt": pooling.include_prompt,
        "bidirectional": getattr(inner.config, "is_causal", None) is False,
        "lora": adapters and (adapters.r, adapters.lora_alpha, adapters.lora_dropout),
        "dtype": base,
        "gradient_checkpointing": inner.is_activation_checkpointing,
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},
    }


@pytest.mark.parametrize("kind", ["bert", "modernbert", "mistral", "qwen3"])
def test_dropout_arrives_in_encoders_and_decoders(kind: str, tmp_path: Path) -> None:
    folder = make_backbone(tmp_path, kind)
    texts = ["w1 w2 w3", "w4 w5 w6 w7"]
    found = {}
    for dropout in (0.0, 0.3):
        model = load_for_training(recipe(dropout=dropout), folder, torch.device("cpu")).train()
        torch.manual_seed(3)
        found[dropout] = embedded(model, texts), embedded(model, texts), model.eval().encode(texts)
    assert torch.equal(found[0.0][0], found[0.0][1]) and not torch.equal(found[0.3][0], found[0.3][1])
    assert (found[0.0][2] == found[0.3][2]).all(), "none when it is used"


DEFAULTS: dict[str, Any] = {
    "pooling": "log1p", "detach_weights": False, "include_prompt": True, "bidirectional": False, "lora": None,
    "dtype": {torch.float32}, "gradient_checkpointing": False, "prompts": {},
}  # fmt: skip
ADAPTERS = {"lora": {"rank": 3, "alpha": 7, "dropout": 0.25}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"pooling": "sum"}, {"pooling": "sum"}),
        ({"pooling": "own"}, {"pooling": "own", "detach_weights": None}),
        ({"detach_weights": True}, {"detach_weights": True}),
        ({"include_prompt": False}, {"include_prompt": False}),
        ({"bidirectional": True}, {"bidirectional": True}),
        (ADAPTERS, {"lora": (3, 7, 0.25)}),
        ({**ADAPTERS, "dtype": "bfloat16"}, {"lora": (3, 7, 0.25), "dtype": {torch.bfloat16}}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"query_prompt": "w1 ", "passage_prompt": "w2 "}, {"prompts": {"query": "w1 ", "document": "w2 "}}),
    ],
)
def test_every_key_of_a_recipe_arrives_at_the_model(
    changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    asked: TrainRecipe = recipe(**changes)
    model = load_for_training(asked, make_backbone(tmp_path, "mistral"), torch.device("cpu"))
    assert arrived(model) == {**DEFAULTS, **expected}
