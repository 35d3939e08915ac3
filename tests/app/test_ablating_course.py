"""The course of a training, from its journal, by value; and as a picture."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.ablating.chart import write_course_chart
from app.ablating.course import course_of, norm_shares, smoothed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _journal(folder: Path, rows: list[tuple[float, float, dict[str, tuple[int, float]]]]) -> Path:
    """Steps as (loss, gradient norm, negatives and margin of each rank), two to a block."""
    lines = []
    for number, (loss, norm, ranks) in enumerate(rows):
        told = {rank: {"negatives": num, "margin": margin} for rank, (num, margin) in ranks.items()}
        lines.append({"step": number, "block": 1 + number // 2, "loss": loss, "gradient_norm": norm, "ranks": told})
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_course_is_the_mean_of_the_seeds_step_by_step(tmp_path: Path) -> None:
    one = [(1.0, 9.0, {"4": (3, 0.2), "mined": (1, 0.6)}), (0.5, 2.0, {}), (0.2, 4.0, {"1": (2, 0.1)})]
    other = [(2.0, 7.0, {"4": (1, 0.5)}), (0.5, 1.0, {}), (0.4, 1.0, {})]
    journals = [_journal(tmp_path / "0", one), _journal(tmp_path / "1", other)]
    told = course_of(journals, warmup=1 / 3)
    assert told["course"] == {
        "step": [0, 1, 2],
        "block": [1, 1, 2],
        "loss": pytest.approx([1.5, 0.5, 0.3]),
        "margin": [pytest.approx((0.3 + 0.5) / 2), None, pytest.approx(0.1)],
        "gradient_norm": pytest.approx([8.0, 1.5, 2.5]),
    }
    assert told["gradient_variance"] == pytest.approx((np.var([2.0, 4.0]) + np.var([1.0, 1.0])) / 2)
    assert told["gradient_norms"] == [[2.0, 4.0], [1.0, 1.0]]
    assert set(course_of([*journals, tmp_path / "none"]).values()) == {None}
    report = {"ablation": "toy $x$", "sets": [], "training": {"a": told, "b": {"course": None}}}
    assert write_course_chart(tmp_path / "course.png", report)
    assert (tmp_path / "course.png").stat().st_size > 1_000
    assert not write_course_chart(
        tmp_path / "none.png", {"ablation": "toy", "sets": [], "training": {"b": {"course": None}}}
    )


def test_shares_of_norms_stand_over_the_same_bins_and_add_up() -> None:
    norms = {"a": [[0.0, 1.0, 1.5], [9.0, 10.0]], "b": [[5.0]]}
    centres, shares = norm_shares(norms)
    assert centres.tolist() == [1, 3, 5, 7, 9]
    assert shares["a"].tolist() == [3 / 5, 0, 0, 0, 2 / 5] and shares["b"].tolist() == [0, 0, 1, 0, 0]
    many = norm_shares({"a": [np.linspace(0, 1, 100).tolist()], "b": [np.linspace(0, 1, 300).tolist()]})[0]
    assert len(many) == 40 and len(norm_shares({"a": [[2.0] * 60]})[0]) == 12


@pytest.mark.parametrize("window", [1, 2, 3, 5, 20])
def test_smoothing_is_the_mean_of_what_is_there(window: int) -> None:
    values = np.array([1.0, np.nan, -2.0, 5.0, np.nan, np.nan, np.nan, 4.0])
    half = window // 2
    around = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    expected = [np.mean(part[~np.isnan(part)]) if (~np.isnan(part)).any() else np.nan for part in around]
    np.testing.assert_allclose(smoothed(values, window), expected)
