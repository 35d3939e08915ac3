"""Models on evaluation sets, side by side: what a set is, what a model is, and the report of both.

A set gives every model a value for each of its units (queries, pairs or examples); means and differences are taken
here, so that whatever is measured is compared in the same way: a paired bootstrap over the units.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluating.prompting import Prompts, prompts_of, require_instructions
from curation.embeddings import BiEncoder, EmbeddingCache, Floats, has_our_code, model_folder
from db.digest import canonical_json
from trainer.evaluation import Statistic, means, paired_bootstrap

Progress = Callable[[int, int | None], None]
Values = Mapping[str, NDArray[np.float64]]
_NUM_SAMPLES = 10_000


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its caches and the prompts that it is asked with."""

    given: str
    encoder: BiEncoder
    folder: Path
    prompts: Prompts

    @cached_property
    def documents(self) -> EmbeddingCache:
        return EmbeddingCache(self.folder, self.encoder.with_prompt(self.prompts.document))

    def asked(
        self, queries: Sequence[str], instructions: Sequence[str] = (), *, progress: Progress = lambda done, total: None
    ) -> Floats:
        """Unit vectors of queries [Q, E], each with the model's prompt.

        Args:
            instructions: Of each query, or none: then the one that the prompts know is filled in, where they need one.
        """
        if not self.prompts.takes_instruction or len(set(instructions)) < 2:
            prompt = self.prompts.before_query(instructions[0] if instructions else None)
            return EmbeddingCache(self.folder, self.encoder.with_prompt(prompt)).embed(queries, progress=progress)[0]
        # Not cached: a release may have an instruction for every task, and each would be a cache of its own.
        rows_of: dict[str, list[int]] = {}
        for row, instruction in enumerate(instructions):
            rows_of.setdefault(self.prompts.before_query(instruction), []).append(row)
        vectors_QE = np.empty((len(queries), self.encoder.dimension), np.float32)
        done = 0
        for prompt, rows in rows_of.items():
            progress(done, len(queries))
            vectors_QE[rows], _ = self.encoder.with_prompt(prompt).encode([queries[row] for row in rows])
            done += len(rows)
        return vectors_QE


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """What models are measured on.

    Attributes:
        kind: retrieval, similarity, negation or order.
        unit: What is drawn in the bootstrap, in the plural.
        metrics: Names, the main one first.
        digest: Of all that values are measured on: texts, judgments and what is ranked, wherever they lie.
        measure: Values of a model, an array of one number per unit for each metric; NaN where a unit has none.
        statistics: Of metrics that are no mean over units.
        has_instructions: Whether its queries have instructions of their own.
        facts: More for the report.
        faults: Rows that were left out, each in a line.
    """

    kind: str
    data: str
    split: str
    unit: str
    num_units: int
    metrics: tuple[str, ...]
    digest: str
    measure: Callable[[EvaluatedModel, Progress], Values]
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    faults: Sequence[str] = ()
    has_instructions: bool = False

    def statistic(self, metric: str) -> Statistic:
        return self.statistics.get(metric, means)

    def summary(self, values: Values) -> dict[str, float]:
        """Each metric over all units; NaN where no unit has a value."""
        rows_1U = np.arange(self.num_units)[None, :]
        return {name: float(self.statistic(name)(values[name], rows_1U)[0]) for name in self.metrics}

    def difference(self, before: Values, after: Values, metrics: Sequence[str] | None = None) -> dict[str, Any]:
        """after - before of each metric, with its interval; values may be of several runs, [runs, units]."""
        return {
            name: paired_bootstrap(
                before[name],
                after[name],
                statistic=self.statistic(name),
                num_samples=_NUM_SAMPLES if name not in self.statistics else _NUM_SAMPLES // 5,
            )
            for name in (self.metrics if metrics is None else metrics)
        }


def content_digest(*tables: Iterable[Any]) -> str:
    """SHA-256 of the rows of tables, in order, 64 hex digits; a row is any JSON value, and is not kept."""
    digest = hashlib.sha256()
    for table in tables:
        for row in table:
            digest.update(canonical_json(row) + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def opened_model(
    model: str, folder: Path | None = None, *, otherwise: Prompts | None = None, prompts: Prompts | None = None
) -> EvaluatedModel:
    """A model (`minilm`, one trained here by its name, or a folder) with its embeddings in the data folder.

    Args:
        folder: Of the embeddings, in place of the data folder's.
        otherwise: Prompts of a model that names none, and the instruction of any that takes one.
        prompts: In place of the model's own.

    Raises:
        CurationError: No such model, or it carries code that is not this version's pooling, which is not run.
        AppError: Its training.json is not what a training writes.
    """
    from app.encoders import trusted_code
    from app.settings import Settings
    from app.training import trained_or_given

    place = trained_or_given(model)
    encoder, found = BiEncoder(place, trusted_code=trusted_code()), model_folder(place)
    has_our_code(found, trusted_code())  # said before anything is measured, not when its turn comes
    asked_with = prompts_of(encoder, found, otherwise=otherwise or Prompts()) if prompts is None else prompts
    return EvaluatedModel(model, encoder, folder or Settings().embeddings, asked_with)


def evaluate(
    models: Sequence[EvaluatedModel], sets: Sequence[EvaluationSet], *, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """A report of each set: every model's metrics, and the difference of the later ones to the first.

    Raises:
        AppError: A model is asked with an instruction, and a set has none.
    """
    require_instructions(
        [(model.given, model.prompts) for model in models], [(one.data, one.has_instructions) for one in sets]
    )
    reports = []
    for one in sets:
        values = [one.measure(model, progress) for model in models]
        reports.append(report_of(one, models, values))
    return reports


def report_of(one: EvaluationSet, models: Sequence[EvaluatedModel], values: Sequence[Values]) -> dict[str, Any]:
    """The report of a set from its models' values; metrics that a model has no value of are left out."""
    summaries = [one.summary(mine) for mine in values]
    metrics = [name for name in one.metrics if not any(np.isnan(summary[name]) for summary in summaries)]
    results: list[dict[str, Any]] = []
    for model, mine, summary in zip(models, values, summaries, strict=True):
        result: dict[str, Any] = {
            "model": model.given,
            "name": model.encoder.name,
            "version": model.encoder.version,
            "prompts": asdict(model.prompts),
            "metrics": {name: summary[name] for name in metrics},
        }
        if results:
            result["difference"] = one.difference(values[0], mine, metrics)
        results.append(result)
    return {
        "kind": one.kind,
        "data": one.data,
        "split": one.split,
        "digest": one.digest,
        "unit": one.unit,
        f"num_{one.unit}": one.num_units,
        "metrics": metrics,
        **one.facts,
        "models": results,
        "faults": list(one.faults),
    }
