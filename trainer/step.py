"""One optimiser step: rows to texts, texts to embeddings, the loss's gradient back through them, and the update.

A step is a function of the plan, the step's number and the weights; it draws nothing from a running generator.
"""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.contrast import Contrast, Row, contrast_of, known_positives
from trainer.curriculum import Batch, Step, negatives_of_row
from trainer.errors import TrainerError
from trainer.gradcache import Encoder
from trainer.loss import embedding_loss, on_device, terms_of
from trainer.metrics import StepReport
from trainer.processes import Processes
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample
from trainer.tokens import Texts, asked


class Learner:
    """A model that takes steps.

    Args:
        examples: Of the whole release: what is a known positive of a query does not depend on the batch.
        num_steps: Of the whole training, for the learning rate.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        encoder: Encoder,
        texts: Texts,
        examples: Sequence[GradedExample],
        processes: Processes,
        num_steps: int,
    ) -> None:
        self.recipe, self.encoder, self.texts, self.examples = recipe, encoder, texts, examples
        self.processes, self.num_steps = processes, num_steps
        self.known, self.terms = known_positives(examples), terms_of(recipe)
        self.parameters = [p for p in encoder.model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.parameters, recipe)
        self.lengths = _matryoshka(recipe, encoder.model.get_embedding_dimension())

    def take(self, number: int, step: Step) -> tuple[StepReport, float, float]:
        """Take a step; its report, the gradient's norm before clipping, and the learning rate."""
        rate = self.recipe.learning_rate * self._rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        report = StepReport(number, step, self.recipe.temperature, self.recipe.mask_margin)
        for place, batch in enumerate(step.batches):
            self._learn(batch, step, (self.recipe.seed, number, place), report)
        self.add_up_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip, error_if_nonfinite=False)
        if not torch.isfinite(norm):
            raise TrainerError(
                f"step {number + 1}: the gradient is not finite; lower learning_rate = {self.recipe.learning_rate} "
                f"or raise temperature = {self.recipe.temperature}"
            )
        self.optimizer.step()
        return report, float(norm), rate

    def _learn(self, batch: Batch, step: Step, key: tuple[int, ...], report: StepReport) -> None:
        rows = self.rows_of(batch, step)
        contrast = contrast_of(
            rows, self.known, self.recipe.distillation.teacher if self.recipe.distillation is not None else None
        )
        encoded = self.encoder.encode(self.numbers_of(contrast), key)
        queries_QE, passages_NE = encoded.embeddings_ME.split([len(contrast.queries), len(contrast.passages)])
        contrast = on_device(contrast, queries_QE.device)
        loss = embedding_loss(queries_QE, passages_NE, contrast, self.terms, lengths=self.lengths)
        self.encoder.backward(encoded, torch.cat([loss.queries_QE, loss.passages_NE]) / step.num_rows)
        report.add(rows, contrast, loss)

    def rows_of(self, batch: Batch, step: Step) -> list[Row]:
        """The batch's examples with the negatives of their turn."""
        recipe, rows = self.recipe, []
        for place in batch.examples:
            example = self.examples[place]
            negatives = negatives_of_row(example, batch.turn, step.rank, recipe.seed, recipe.negatives)
            rows.append(Row(example, negatives, asked(example, recipe)))
        return rows

    def numbers_of(self, contrast: Contrast) -> list[int]:
        """Token table's numbers of a batch's texts, queries first."""
        queries, passages = self.texts.queries, self.texts.passages
        return [queries[text] for text in contrast.queries] + [passages[text] for text in contrast.passages]

    def add_up_gradients(self) -> None:
        """The gradient of the whole batch on every process, which each has a part of."""
        if self.processes.count == 1:
            return
        # What no process has used has no gradient, as on one process: AdamW would decay it for a gradient of zero.
        used_P = torch.tensor([float(p.grad is not None) for p in self.parameters], device=self.processes.device)
        self.processes.add_up([used_P])
        for parameter, used in zip(self.parameters, used_P.tolist(), strict=True):
            if used and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.add_up([p.grad for p in self.parameters if p.grad is not None])

    def rehearse(self, steps: Sequence[Step]) -> None:
        """Run the heaviest batch forward and back without learning from it, so that memory runs out now or never.

        Beside it lie the optimiser's moments, as in every step but the first.
        """
        lengths = self.encoder.tokens.lengths
        heaviest: tuple[int, list[int]] = (0, [])
        for step in steps:
            for batch in step.batches:
                numbers = self.numbers_of(contrast_of(self.rows_of(batch, step), self.known))
                heaviest = max(heaviest, (int(lengths[numbers].sum()), numbers))
        is_new = not self.optimizer.state
        if is_new:
            self._allocate_moments()
        encoded = self.encoder.encode(heaviest[1], (0,))
        self.encoder.backward(encoded, torch.zeros_like(encoded.embeddings_ME))
        self.optimizer.zero_grad(set_to_none=True)
        if is_new:
            self.optimizer.state.clear()

    def _allocate_moments(self) -> None:
        """A step of the optimiser that changes no weight: without a gradient, at a learning rate of 0."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # every step sets its own
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _rate(self, number: int) -> float:
        """Linear warm-up, then linear decay to zero."""
        warm = max(1, round(self.recipe.warmup * self.num_steps))
        return min((number + 1) / warm, (self.num_steps - number) / max(1, self.num_steps - warm))


def _optimizer(parameters: Sequence[torch.nn.Parameter], recipe: TrainRecipe) -> torch.optim.Optimizer:
    """AdamW in one kernel; biases and the norms' gains, which have one dimension, do not decay."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.learning_rate, fused=True)


def _matryoshka(recipe: TrainRecipe, size: int) -> list[tuple[int, float]]:
    if recipe.matryoshka is None:
        return []
    too_long = [length for length in recipe.matryoshka.dimensions if length > size]
    if too_long:
        raise TrainerError(f"matryoshka.dimensions = {too_long[0]}: the model's embeddings have {size}")
    weights = recipe.matryoshka.weights or (1.0,) * len(recipe.matryoshka.dimensions)
    return list(zip(recipe.matryoshka.dimensions, weights, strict=True))
