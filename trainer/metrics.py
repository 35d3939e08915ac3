"""What a step says of itself, by rank: loss, similarity, margin, and the variance of the gradient.

V of SyNeg's figure is the variance of gradient values over training. Two forms are kept: the variance over the
negatives of a rank of what each is pushed away with, |dL/dcosine|, and the trace form over the queries of a step,
mean ||g||^2 - ||mean g||^2, with g a query's gradient. Both scale with 1 / temperature^2: compare like with like.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.contrast import Contrast, Row
from trainer.curriculum import Step
from trainer.loss import EmbeddingLoss, counted_negatives

Floats = NDArray[np.float32]


@dataclass(slots=True)
class StepReport:
    """Collects the batches of a step, one entry per negative of a row in each list."""

    step: int
    plan: Step
    temperature: float
    mask_margin: float | None
    losses: list[float] = field(default_factory=list)
    positives: list[float] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    pulls: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    are_written: list[bool] = field(default_factory=list)
    example_ids: list[str] = field(default_factory=list)
    negative_ids: list[str] = field(default_factory=list)
    num_masked: int = 0
    query_gradients: list[Floats] = field(default_factory=list)

    def add(self, rows: Sequence[Row], contrast: Contrast, loss: EmbeddingLoss) -> None:
        """Take in a batch. `contrast` is on the device of the loss."""
        places = np.arange(len(rows))
        cosines_BN, pull_BN = loss.cosines_BN.cpu().numpy(), loss.pull_BN.cpu().numpy()
        positives_B = cosines_BN[places, contrast.positive_B.cpu().numpy()]
        self.losses += loss.losses_B.tolist()
        self.positives += positives_B.tolist()
        self.query_gradients.append(loss.queries_QE.float().cpu().numpy())
        if self.mask_margin is not None:
            left = counted_negatives(loss.cosines_BN, contrast, self.mask_margin)
            self.num_masked += int(counted_negatives(loss.cosines_BN, contrast, None).sum() - left.sum())
        for place, column, negative in contrast.own:
            similarity = float(cosines_BN[place, column])
            self.similarities.append(similarity)
            self.margins.append(round(float(positives_B[place]) - similarity, 6))
            self.pulls.append(float(pull_BN[place, column]))
            self.ranks.append(negative.rank)
            self.are_written.append(negative.is_written)
            self.example_ids.append(rows[place].example.id)
            self.negative_ids.append(negative.id)

    def summary(self, *, gradient_norm: float, learning_rate: float) -> dict[str, Any]:
        """The step's line in metrics.jsonl; similarities are cosines, margins the positive's less the negative's."""
        similarities, written = np.array(self.similarities), np.array(self.are_written, bool)
        return {
            "step": self.step,
            "block": self.plan.block + 1,
            "rank": self.plan.rank,
            "loss": _mean(self.losses),
            "learning_rate": learning_rate,
            "gradient_norm": round(gradient_norm, 6),
            "query_gradient_variance": self._query_variance(),
            "positive": _mean(self.positives),
            "written": _mean(similarities[written]),
            "mined": _mean(similarities[~written]),
            "masked": self.num_masked,
            "ranks": self._by_rank(),
        }

    def _by_rank(self) -> dict[str, dict[str, Any]]:
        labels = np.array(
            [str(rank) if written else "mined" for rank, written in zip(self.ranks, self.are_written, strict=True)]
        )
        similarities, margins, pulls = (np.array(v) for v in (self.similarities, self.margins, self.pulls))
        return {
            str(label): {
                "negatives": int(mine.sum()),
                "loss": _mean(np.logaddexp(0, -margins[mine] / self.temperature)),
                "similarity": _mean(similarities[mine]),
                "margin": _mean(margins[mine]),
                "above_positive": round(float((margins[mine] < 0).mean()), 6),
                "gradient": _mean(np.abs(pulls[mine])),
                "gradient_variance": round(float(np.abs(pulls[mine]).var()), 6),
            }
            for label in sorted(set(labels))
            for mine in [labels == label]
        }

    def _query_variance(self) -> float:
        gradients = np.concatenate(self.query_gradients).astype(np.float64)
        return round(float((gradients**2).sum(1).mean() - (gradients.mean(0) ** 2).sum()), 6)

    def margin_columns(self) -> dict[str, list[Any]]:
        """The margin of every negative that the step trained on."""
        return {
            "step": [self.step] * len(self.margins),
            "example_id": self.example_ids,
            "negative_id": self.negative_ids,
            "rank": self.ranks,
            "margin": self.margins,
        }


def _mean(values: Sequence[float] | NDArray[Any]) -> float | None:
    return round(float(np.mean(values)), 6) if len(values) else None


def by_block(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over each block, and the variance of the gradient's norm over its steps."""
    blocks = []
    for block in sorted({row["block"] for row in metrics}):
        mine = [row for row in metrics if row["block"] == block]
        names = ("loss", "positive", "written", "mined")
        means = {name: _mean([row[name] for row in mine if row[name] is not None]) for name in names}
        variance = float(np.var([row["gradient_norm"] for row in mine]))
        blocks.append({"block": block, "rank": mine[0]["rank"], **means, "gradient_variance": round(variance, 6)})
    return blocks


def by_rank(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over all steps, of each rank and of mined negatives, weighted by their numbers."""
    rows = []
    for label in sorted({label for row in metrics for label in row["ranks"]}):
        mine = [row["ranks"][label] for row in metrics if label in row["ranks"]]
        counts = [row["negatives"] for row in mine]
        names = ("loss", "similarity", "margin", "above_positive", "gradient", "gradient_variance")
        means = {name: round(float(np.average([row[name] for row in mine], weights=counts)), 6) for name in names}
        rows.append({"rank": label, "negatives": sum(counts), **means})
    return rows
