"""Gates: a failing figure, and one that nobody measured, shut the release; an override opens one, by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from curation.release.gates import GateError, check_gates
from curation.release.recipe import Gates


def figures(**changed: Any) -> dict[str, Any]:
    def group(run: str, accuracy: float | None, auc: float | None) -> dict[str, Any]:
        order = None if accuracy is None else {"accuracy": accuracy, "worst_inversions": [{"query": run, "gap": 0.2}]}
        words = [{"text": "one", "weight": 3.0, "share_first": 0.6, "share_second": 0.07}]
        properties = [{"name": "length", "auc": 0.9, "low": 0.8, "high": 1.0, "mean_first": None, "mean_second": None}]
        causes = {"properties": properties, "first_words": words, "second_words": [], "first_ngrams": []}
        leak = {"auc": auc, "control_auc": 0.52, "causes": causes}
        return {
            "run": run,
            "order": order,
            "leaks": {
                "negative_from_positive": leak if auc else {"auc": None, "reason": "3 examples are too few"},
                "synthetic_from_real": None,
            },
        }

    rows = [{"query": "q", "text": "t"}]
    return {
        "groups": [group("good", 0.9, 0.6), group("bad", 0.55, 0.97), group("mined", None, None)],
        "duplicates": {"within_examples": {"num": 3, "share": 0.01, "rows": rows}},
        "contamination": {"queries": {"num": 1, "rows": rows}, "pairs": {"num": 2, "rows": rows}},
        "judged": {"num_judged": 40, "num_false": 2, "rate": 0.05, "rows": rows},
    } | changed


def test_every_gate_takes_the_worst_run_and_its_rows() -> None:
    gates = Gates(
        order_accuracy=0.6, negatives_from_positives=0.7, judged_false_negatives=0.05, duplicates=0.02, contamination=2
    )
    results = {result.gate: result for result in check_gates(gates, figures())}
    assert {name: (result.figure, result.is_met) for name, result in results.items()} == {
        "order_accuracy": (0.55, False),
        "negatives_from_positives": (0.97, False),
        "judged_false_negatives": (0.05, True),
        "duplicates": (0.01, True),
        "contamination": (3, False),
    }
    assert results["order_accuracy"].rows == [{"query": "bad", "gap": 0.2}]
    assert "run bad" in results["negatives_from_positives"].note and "0.520" in results["negatives_from_positives"].note
    assert [row["tell"] for row in results["negatives_from_positives"].to_dict()["rows"]] == ["length", "word 'one'"]
    assert len(results["contamination"].rows) == 2


@pytest.mark.parametrize(
    ("gates", "changed", "told"),
    [
        (Gates(synthetic_from_real=0.9), {}, "too few texts"),
        (Gates(judged_false_negatives=0.9), {"judged": None}, "gradus judge"),
        (Gates(judged_false_negatives=0.9), {"judged": {"num_judged": 0, "rate": None, "rows": []}}, "gradus judge"),
        (Gates(order_accuracy=0.0), {"groups": []}, "no run has graded negatives"),
        (Gates(negatives_from_positives=1.0), {"groups": figures()["groups"][2:]}, "3 examples are too few"),
    ],
)
def test_what_is_not_measured_is_not_safe(gates: Gates, changed: dict[str, Any], told: str) -> None:
    (result,) = check_gates(gates, figures(**changed))
    assert result.figure is None and not result.is_open and told in result.note
    assert "not measured" in str(GateError([result]))


def test_an_override_opens_its_own_gate_only_and_is_named() -> None:
    override = {"gate": "order_accuracy", "by": "Jo", "reason": "a trial"}
    gates = Gates.model_validate({"order_accuracy": 0.6, "contamination": 0, "overrides": [override]})
    order, contamination = check_gates(gates, figures())
    assert (order.is_met, order.is_open, order.overridden_by, order.reason) == (False, True, "Jo", "a trial")
    assert not contamination.is_open and contamination.overridden_by is None
    told = str(GateError([order, contamination]))
    assert "contamination is 3.000, at most 0 is asked" in told and "order_accuracy is" not in told


def test_an_override_is_not_noted_where_the_gate_is_met() -> None:
    override = {"gate": "order_accuracy", "by": "Jo", "reason": "a trial"}
    (order,) = check_gates(Gates.model_validate({"order_accuracy": 0.5, "overrides": [override]}), figures())
    assert order.is_met and order.overridden_by is None


def test_an_override_of_a_gate_without_a_limit_is_refused() -> None:
    with pytest.raises(ValidationError, match="no limit"):
        Gates.model_validate({"overrides": [{"gate": "duplicates", "by": "Jo", "reason": "r"}]})


def test_no_limit_no_gate() -> None:
    assert check_gates(Gates(), {}) == []
