"""Pairs of texts: similarity against people's scores (STS), and originals beside edits that negate them.

Both are `pairs.jsonl` files (or `passage_pairs.jsonl`) with `text_a`, `text_b`, `split`, and a number `score` or a
`label`: `paraphrase` keeps the meaning, whatever else is named changes it (CondaQA: `affirmative`, `scope`).
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.errors import AppError
from app.evaluating.measuring import EvaluatedModel, EvaluationSet, Progress, Values, content_digest
from trainer.similarity import share_closer, spearman

FILES = ("passage_pairs.jsonl", "pairs.jsonl")
_SAME = "paraphrase"


def pairs_set(data: Path, split: str) -> EvaluationSet:
    """The folder's pairs of a split, or a file's: similarity where they have scores, else negation.

    Raises:
        AppError: No such rows, or they have neither scores nor labels with `paraphrase` among them.
    """
    file = data if data.is_file() else next(data / name for name in FILES if (data / name).is_file())
    rows, faults = _read(file, split)
    if all(isinstance(row.get("score"), int | float) for row in rows):
        return _similarity_set(rows, str(data), split, faults)
    return _negation_set(rows, data, split, faults)


def _read(file: Path, split: str) -> tuple[list[Mapping[str, Any]], list[str]]:
    rows: list[Mapping[str, Any]] = []
    faults: list[str] = []
    seen = set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name}:{number}"
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                faults.append(f"{where}: is not JSON")
                continue
            texts = [row.get(name) if isinstance(row, dict) else None for name in ("text_a", "text_b")]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                faults.append(f"{where}: needs text_a and text_b")
                continue
            seen.add(row.get("split"))
            if row.get("split", split) == split:
                rows.append(row)
    if not rows:
        have = ", ".join(sorted(str(name) for name in seen)) or "no row"
        raise AppError(f"{file}: has no pair of split {split!r}; it has {have}")
    return rows, faults


def _similarity_set(rows: list[Mapping[str, Any]], data: str, split: str, faults: list[str]) -> EvaluationSet:
    statistic = spearman(np.array([row["score"] for row in rows], np.float64))

    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        return {"spearman": _cosines(model, [(row["text_a"], row["text_b"]) for row in rows], progress)}

    digest = content_digest([row["text_a"], row["text_b"], row["score"]] for row in rows)
    return EvaluationSet(
        "similarity", data, split, "pairs", len(rows), ("spearman",), digest, measure, {"spearman": statistic},
        faults=faults,
    )  # fmt: skip


def _negation_set(rows: list[Mapping[str, Any]], data: Path, split: str, faults: list[str]) -> EvaluationSet:
    edits: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        edits[row["text_a"]][str(row.get("label"))].append(row["text_b"])
    originals = {text: dict(of) for text, of in edits.items() if _SAME in of and len(of) > 1}
    if not originals:
        raise AppError(
            f"{data}: its rows of split {split!r} have neither numbers in 'score' nor, for one text_a, the label "
            f"{_SAME!r} beside another one"
        )
    changed = sorted({label for of in originals.values() for label in of} - {_SAME})
    metrics = ("closer than any", *(f"closer than {label}" for label in changed))

    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        pairs = [(text, edit) for text, of in originals.items() for edits in of.values() for edit in edits]
        cosine = dict(zip(pairs, _cosines(model, pairs, progress), strict=True))
        values: dict[str, list[float]] = {name: [] for name in metrics}
        for text, of in originals.items():
            of_label = {label: [cosine[text, edit] for edit in edits] for label, edits in of.items()}
            same = of_label.pop(_SAME)
            values[metrics[0]].append(share_closer(same, [value for group in of_label.values() for value in group]))
            for label in changed:
                group = of_label.get(label)
                values[f"closer than {label}"].append(share_closer(same, group) if group else float("nan"))
        return {name: np.array(column) for name, column in values.items()}

    digest = content_digest(originals.items())
    return EvaluationSet(
        "negation", str(data), split, "originals", len(originals), metrics, digest, measure, facts={"same": _SAME},
        faults=faults,
    )  # fmt: skip


def _cosines(model: EvaluatedModel, pairs: list[tuple[str, str]], progress: Progress) -> np.ndarray[Any, Any]:
    """Cosine of each pair [U]. Both sides are asked as queries are: a symmetric task has no document side."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    place = {text: number for number, text in enumerate(texts)}
    vectors = model.asked(texts, progress=progress)
    left, right = (vectors[[place[pair[side]] for pair in pairs]].astype(np.float64) for side in (0, 1))
    return np.asarray(np.einsum("ue,ue->u", left, right))
