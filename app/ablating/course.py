"""The course of a training, as its journal tells it: what an ablation's curves are drawn from.

Every step tells the loss, the margin by which the positive is ahead of the row's own negatives, and the gradient. Loss
and margin are those of the negatives that the arm has at that step, so they fall and rise with their hardness: read
them within an arm, and the end of the road in the table of what was measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CURVES = ("loss", "margin", "gradient_norm")


def course_of(journals: Sequence[Path], *, warmup: float = 0.0) -> dict[str, Any]:
    """Means over the seeds of an arm, step by step, and V: the variance of the gradient's norm over the steps.

    Args:
        journals: The folder of each seed, with metrics.jsonl.
        warmup: Share of the steps that norms and V leave out, as the learning rate is still rising.

    Returns:
        `course` has a list for `step`, `block` and each of `CURVES` (None where no seed has a value),
        `gradient_norms` those of each seed, and `gradient_variance` is the mean over seeds of their population
        variance; all None where a journal is missing.

    Source: SyNeg, arXiv 2412.17250, V of the gradient figure; what it is the variance of is our reading.
    """
    files = [journal / "metrics.jsonl" for journal in journals]
    if not all(file.is_file() for file in files):
        return {"course": None, "gradient_norms": None, "gradient_variance": None}
    seeds = [[orjson.loads(line) for line in file.read_bytes().splitlines()] for file in files]
    first = seeds[0]
    columns = {name: _mean([[_value(row, name) for row in rows] for rows in seeds]) for name in CURVES}
    start = round(warmup * len(first))
    norms = [[float(row["gradient_norm"]) for row in rows[start:]] for rows in seeds]
    course = {"step": [row["step"] for row in first], "block": [row["block"] for row in first], **columns}
    variance = float(np.mean([np.var(of_seed) for of_seed in norms]))
    return {"course": course, "gradient_norms": norms, "gradient_variance": variance}


def _value(row: Mapping[str, Any], name: str) -> float:
    """One number of a step; NaN where it has none, as the margin of rows without negatives of their own."""
    if name != "margin":
        return float(row[name])
    ranks = row["ranks"].values()
    counts = [one["negatives"] for one in ranks]
    return float(np.average([one["margin"] for one in ranks], weights=counts)) if counts else float("nan")


def _mean(values_SN: Sequence[Sequence[float]]) -> list[float | None]:
    """Over seeds S at each step N; a step that no seed has a value at is None."""
    array = np.array(values_SN, np.float64)
    has_value = ~np.isnan(array)
    sums, counts = np.where(has_value, array, 0).sum(axis=0), has_value.sum(axis=0)
    return [float(total / num) if num else None for total, num in zip(sums, counts, strict=True)]


def norm_shares(norms: Mapping[str, Sequence[Sequence[float]]]) -> tuple[Floats, dict[str, Floats]]:
    """A histogram of each arm's gradient norms over the same bins: their centres, and the share of the arm's steps.

    Args:
        norms: Of each arm, by seed and step. An arm's steps are about five times the bins, of which there are 5 to 40.
    """
    flat = {
        name: np.concatenate([np.asarray(of_seed, np.float64) for of_seed in seeds]) for name, seeds in norms.items()
    }
    every = np.concatenate(list(flat.values()))
    edges = np.histogram_bin_edges(every, max(5, min(40, len(every) // len(flat) // 5)))
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in flat.items()}
    return (edges[1:] + edges[:-1]) / 2, shares


def smoothed(values_N: Floats, window: int) -> Floats:
    """Mean over the `window` steps around each, fewer at the ends, [N]; NaN stays out of it."""
    half = window // 2
    has_value = ~np.isnan(values_N)
    sums = np.concatenate([[0.0], np.cumsum(np.where(has_value, values_N, 0))])
    counts = np.concatenate([[0], np.cumsum(has_value)])
    places = np.arange(len(values_N))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values_N))
    num = counts[high] - counts[low]
    return np.where(num > 0, (sums[high] - sums[low]) / np.maximum(num, 1), np.nan)
