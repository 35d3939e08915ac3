"""The known order of a release: does a model see positive, hard, medium and easy in that order?"""

from pathlib import Path

import numpy as np

from app.errors import AppError
from app.evaluating.measuring import EvaluatedModel, EvaluationSet, Progress, Values, content_digest
from trainer.graded_order import METRICS, POSITIVE, order_metrics
from trainer.release import GradedExample, read_release


def order_set(release: Path, split: str) -> EvaluationSet:
    """The examples of a release's split that have ranked negatives.

    Raises:
        TrainerError: No such split, or files that are not the manifest's.
        AppError: No example has a ranked negative.
    """
    read = read_release(release, split)
    examples = [example for example in read.examples if any(negative.rank for negative in example.written)]
    if not examples:
        raise AppError(f"{release}, split {split!r}: no negative has a rank, so there is no order to see")

    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        rows = [_rows(example) for example in examples]
        passages = list(dict.fromkeys(text for texts, _ in rows for text in texts))
        place = {text: number for number, text in enumerate(passages)}
        queries_QE = model.asked([example.query for example in examples], [example.instruction for example in examples])
        passages_NE, _ = model.documents.embed(passages, progress=progress)
        values = []
        for query_E, (texts, ranks) in zip(queries_QE, rows, strict=True):
            cosines = passages_NE[[place[text] for text in texts]] @ query_E
            values.append(order_metrics(ranks, cosines.astype(np.float64).tolist()))
        return {name: np.array([row[name] for row in values]) for name in METRICS}

    facts = {"release": read.name, "release_digest": read.digest, "num_left_out": len(read.examples) - len(examples)}
    present = {min(negative.rank or 0, 4) for example in examples for negative in example.written}
    metrics = tuple(name for name in METRICS if not any(f"N{rank}" in name for rank in {1, 2, 3, 4} - present))
    digest = content_digest([example.query, example.instruction, *_rows(example)] for example in examples)
    return EvaluationSet(
        "order", str(release), split, "examples", len(examples), metrics, digest, measure, facts=facts,
        has_instructions=True,
    )  # fmt: skip


def _rows(example: GradedExample) -> tuple[list[str], list[int]]:
    """The positive and the ranked negatives: their texts and ranks."""
    ranked = [(negative.text, negative.rank) for negative in example.written if negative.rank]
    return [example.positive, *(text for text, _ in ranked)], [POSITIVE, *(rank for _, rank in ranked)]
