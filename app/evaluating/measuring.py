"""Models on evaluation sets, side by side: what a set is, what a model is, and the report of both.

A set gives every model a value for each of its units (queries, pairs or examples); means and differences are taken
here, so that whatever is measured is compared in the same way: a paired bootstrap over the units.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.embeddings import BiEncoder, EmbeddingCache, has_our_code, model_folder
from db.digest import canonical_json
from trainer.evaluation import Statistic, means, paired_bootstrap

Progress = Callable[[int, int | None], None]
Values = Mapping[str, NDArray[np.float64]]
_NUM_SAMPLES = 10_000


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its caches; its own prompts, where it names any, stand before queries and documents."""

    given: str
    encoder: BiEncoder
    folder: Path

    @cached_property
    def queries(self) -> EmbeddingCache:
        return EmbeddingCache(self.folder, self.encoder.with_prompt(self.encoder.own_prompt("query")))

    @cached_property
    def documents(self) -> EmbeddingCache:
        return EmbeddingCache(self.folder, self.encoder.with_prompt(self.encoder.own_prompt("document")))


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

    def statistic(self, metric: str) -> Statistic:
        return self.statistics.get(metric, means)

    def summary(self, values: Values) -> dict[str, float]:
        """Each metric over all units."""
        rows_1U = np.arange(self.num_units)[None, :]
        return {name: float(self.statistic(name)(values[name], rows_1U)[0]) for name in self.metrics}

    def difference(self, before: Values, after: Values, metrics: Sequence[str] | None = None) -> dict[str, Any]:
        """after - before of each metric, with its interval."""
        return {
            name: paired_bootstrap(
                before[name],
                after[name],
                statistic=self.statistic(name),
                num_samples=_NUM_SAMPLES if name not in self.statistics else _NUM_SAMPLES // 5,
            )
            for name in metrics or self.metrics
        }


def content_digest(*tables: Iterable[Any]) -> str:
    """SHA-256 of the rows of tables, in order, 64 hex digits; a row is any JSON value, and is not kept."""
    digest = hashlib.sha256()
    for table in tables:
        for row in table:
            digest.update(canonical_json(row) + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def opened_model(model: str, folder: Path | None = None) -> EvaluatedModel:
    """A model (`minilm` or a folder) with its embeddings in the data folder, or in another.

    Raises:
        CurationError: No such model, or it carries code that is not this version's pooling, which is not run.
    """
    from app.encoders import trusted_code
    from app.settings import Settings

    encoder = BiEncoder(model, trusted_code=trusted_code())
    has_our_code(model_folder(model), trusted_code())  # said before anything is measured, not when its turn comes
    return EvaluatedModel(model, encoder, folder or Settings().embeddings)


def evaluate(
    models: Sequence[EvaluatedModel], sets: Sequence[EvaluationSet], *, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """A report of each set: every model's metrics, and the difference of the later ones to the first."""
    reports = []
    for one in sets:
        values = [one.measure(model, progress) for model in models]
        reports.append(report_of(one, models, values))
    return reports


def report_of(one: EvaluationSet, models: Sequence[EvaluatedModel], values: Sequence[Values]) -> dict[str, Any]:
    """The report of a set from its models' values."""
    results: list[dict[str, Any]] = []
    for model, mine in zip(models, values, strict=True):
        result: dict[str, Any] = {
            "model": model.given,
            "name": model.encoder.name,
            "version": model.encoder.version,
            "metrics": one.summary(mine),
        }
        if results:
            result["difference"] = one.difference(values[0], mine)
        results.append(result)
    return {
        "kind": one.kind,
        "data": one.data,
        "split": one.split,
        "digest": one.digest,
        "unit": one.unit,
        f"num_{one.unit}": one.num_units,
        "metrics": list(one.metrics),
        **one.facts,
        "models": results,
        "faults": list(one.faults),
    }
