"""What a step says of itself, by value."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from trainer.contrast import Row, contrast_of, known_positives
from trainer.curriculum import Batch, Step
from trainer.loss import embedding_loss, terms_of
from trainer.metrics import StepReport, by_rank
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, Negative

RECIPE = TrainRecipe(name="t", release="r", temperature=0.3, mask_margin=0.05)


def example(name: str, ranks: tuple[int, ...], num_mined: int) -> GradedExample:
    written = tuple(Negative(f"{name}{rank}", f"{name}{rank}", rank) for rank in ranks)
    mined = tuple(Negative(f"{name}m{i}", f"{name}m{i}", None, is_written=False) for i in range(num_mined))
    return GradedExample(
        id=name, query=f"q{name}", positive=f"p{name}", written=written, mined=mined,
        num_written_slots=4, num_mined_slots=4,
    )  # fmt: skip


# Two batches of a step: rows with two, none, one and four negatives of their own.
BATCHES = [[example("a", (1, 4), 2), example("b", (), 0)], [example("c", (2,), 0), example("d", (1, 1), 2)]]


def test_a_steps_figures_equal_their_definitions() -> None:
    everything = [one for batch in BATCHES for one in batch]
    report = StepReport(0, Step(0, None, (Batch((0, 1), 0), Batch((2, 3), 0))), 0.3, 0.05)
    gradients: list[Any] = []
    pulls: dict[str, float] = {}
    masked = 0
    for number, batch in enumerate(BATCHES):
        rows = [Row(one, [*one.written, *one.mined], one.query) for one in batch]
        contrast = contrast_of(rows, known_positives(everything))
        draws = torch.Generator().manual_seed(number + 3)
        queries, passages = (torch.randn(n, 6, generator=draws) for n in (len(rows), len(contrast.passages)))
        loss = embedding_loss(queries, passages, contrast, terms_of(RECIPE))
        report.add(rows, contrast, loss)
        gradients.append(loss.queries_QE.numpy())
        for place, row in enumerate(rows):
            unit = torch.nn.functional.normalize
            cosine = dict(
                zip(contrast.passages, (unit(queries[place], dim=0) @ unit(passages).T).tolist(), strict=True)
            )
            positive = cosine.pop(row.example.positive)
            own = {n.text for n in row.example.written}
            left = {text for text, value in cosine.items() if value <= positive + 0.05 or text in own}
            masked += len(cosine) - len(left)
            terms = {text: math.exp((cosine[text] - positive) / 0.3) if text in left else 0.0 for text in cosine}
            for negative in row.negatives:
                pulls[negative.id] = terms[negative.text] / (1 + sum(terms.values())) / 0.3
    line = report.summary(gradient_norm=1.0, learning_rate=0.1)
    assert line["masked"] == masked > 0
    every = np.concatenate(gradients)
    variance = np.mean([np.sum((gradient - every.mean(0)) ** 2) for gradient in every])
    assert line["query_gradient_variance"] == pytest.approx(variance, rel=1e-4)
    of_label = {
        "1": ["a1", "d1", "d1"], "2": ["c2"], "4": ["a4"], "mined": ["am0", "am1", "dm0", "dm1"],
    }  # fmt: skip
    assert line["ranks"].keys() == of_label.keys()
    for label, ids in of_label.items():
        mine = [pulls[one] for one in ids]
        assert line["ranks"][label]["negatives"] == len(ids)
        assert line["ranks"][label]["gradient"] == pytest.approx(np.mean(mine), abs=2e-6)
        assert line["ranks"][label]["gradient_variance"] == pytest.approx(np.var(mine), abs=2e-6)
    assert min(pulls.values()) == 0 < max(pulls.values()), "one is masked, and one is not"


def test_means_over_steps_are_weighted_by_negatives() -> None:
    names = ("loss", "similarity", "margin", "above_positive", "gradient", "gradient_variance")
    first, second = {"negatives": 1, **dict.fromkeys(names, 0.5)}, {"negatives": 3, **dict.fromkeys(names, 0.1)}
    steps = [{"ranks": {"1": first}}, {"ranks": {"1": second, "mined": {"negatives": 2, **dict.fromkeys(names, 1.0)}}}]
    one, mined = by_rank(steps)
    assert (one["rank"], one["negatives"], one["margin"]) == ("1", 4, pytest.approx(0.2))
    assert (mined["rank"], mined["negatives"], mined["margin"]) == ("mined", 2, 1.0)
