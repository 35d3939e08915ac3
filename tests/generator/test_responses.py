"""What a model sends is data: any text gives a draft or a reason, and one bad part does not cost the good ones."""

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.checks import check_negative, share_of_words_changed
from generator.responses import Draft, DraftNegative, Refusal, read_completion

KINDS = ["graded_negatives", "graded_example", "task_brainstorm", "minimal_edit"]
GOOD: dict[str, Any] = {
    "reflection": {},
    "negatives": [
        {
            "similarity_level": level, "violated_requirement": "r", "plan": "p", "text": f"text {n}",
            "self_check": {"answers_query": False, "reason": ""},
        }
        for n, level in enumerate(["high", "medium", "medium", "low"])
    ],
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["negatives", "tasks", "edits", "requirements", "query", "positive", "text"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@given(kind=st.sampled_from(KINDS), text=st.text(max_size=200))
def test_any_text_gives_a_draft_or_a_reason(kind: str, text: str) -> None:
    assert isinstance(read_completion(kind, text), Draft | Refusal)


@given(kind=st.sampled_from(KINDS), value=JSON)
def test_any_json_gives_a_draft_or_a_reason(kind: str, value: Any) -> None:
    outcome = read_completion(kind, json.dumps(value))
    assert isinstance(outcome, Draft | Refusal)


def read(value: Any) -> Draft:
    outcome = read_completion("graded_negatives", orjson.dumps(value).decode())
    assert isinstance(outcome, Draft)
    return outcome


def test_good_answer_has_ranks_and_grades_in_order() -> None:
    draft = read(GOOD)
    assert [(n.rank, n.grade) for n in draft.negatives] == [(1, "hard"), (2, "medium"), (3, "medium"), (4, "easy")]
    assert draft.refusals == ()


def test_fenced_json_is_read() -> None:
    fenced = f"```json\n{orjson.dumps(GOOD).decode()}\n```"
    assert read_completion("graded_negatives", fenced) == read(GOOD)


@pytest.mark.parametrize(
    ("change", "reason", "kept"),
    [
        (lambda v: v["negatives"][1].update(similarity_level="low"), "wrong_level", 3),
        (lambda v: v["negatives"][0].pop("text"), "wrong_shape", 3),
        (lambda v: v["negatives"][3].update(self_check={"answers_query": "no"}), "wrong_shape", 3),
        (lambda v: v["negatives"].pop(), "wrong_count", 3),
        (lambda v: v["negatives"].append(v["negatives"][3]), "wrong_count", 4),
    ],
)
def test_one_bad_negative_is_refused_alone(change: Any, reason: str, kept: int) -> None:
    value = copy.deepcopy(GOOD)
    change(value)
    draft = read(value)
    assert len(draft.negatives) == kept
    assert [refusal.reason for refusal in draft.refusals] == [reason]


def test_cut_off_answer_is_refused() -> None:
    outcome = read_completion("graded_negatives", orjson.dumps(GOOD).decode(), "length")
    assert isinstance(outcome, Refusal) and outcome.reason == "cut_off"


POSITIVE = "The otter is a mammal that lives near water and eats fish. " * 5
SENTENCE = "The otter is a mammal that lives near water and eats fish."


def negative(text: str, **changes: Any) -> DraftNegative:
    return DraftNegative(1, 1, "hard", text, "r", **changes)


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (negative(POSITIVE.upper()), "is_the_positive"),
        (negative("An earlier  one."), "duplicate"),
        (negative("The badger digs. " * 15, answers_query=True), "self_check"),
        (negative("Short."), "length_ratio"),
        (negative("The badger digs at night. " * 60), "length_ratio"),
        (negative("The badger digs at night. " * 9 + SENTENCE), "copied_sentence"),
        (negative("This hard negative is about badgers. " * 6), "leak_phrase"),
        (negative("nul \x00 " * 30), "control_character"),
    ],
)
def test_checks_give_the_reason(draft: DraftNegative, reason: str) -> None:
    found = check_negative(draft, positive=POSITIVE, source=None, earlier=["an EARLIER one."], language="English")
    assert found is not None and found.reason == reason


def test_good_negative_passes_and_language_is_checked_by_script() -> None:
    good = negative("The badger digs setts at night and sleeps through the day. " * 5)
    assert check_negative(good, positive=POSITIVE, source=None, earlier=[], language="English") is None
    found = check_negative(good, positive=POSITIVE, source=None, earlier=[], language="Korean")
    assert found is not None and found.reason == "wrong_language"
    korean = negative("오소리는 밤에 땅을 파고 낮에는 잠을 잔다. " * 9)
    assert check_negative(korean, positive=POSITIVE, source=None, earlier=[], language="Korean") is None


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (negative(POSITIVE, edited_from="neighbour"), "unchanged"),
        (negative(POSITIVE.replace("otter", "beaver"), edited_from="x", breaks_critical=False), "not_critical"),
        (negative(POSITIVE.replace("otter", "beaver"), edited_from="x", quotes=("not there",)), "quote_not_in_text"),
        (negative("Something else entirely, word for word. " * 5, edited_from="x"), "too_many_changes"),
        (negative(POSITIVE.replace("otter", "beaver"), edited_from="x", quotes=("eats fish",)), None),
    ],
)
def test_edit_checks_give_the_reason(draft: DraftNegative, reason: str | None) -> None:
    found = check_negative(draft, positive="Another text.", source=POSITIVE, earlier=[], language=None)
    assert (found.reason if found else None) == reason


def test_share_of_words_changed_by_value() -> None:
    assert share_of_words_changed("a b c d", "a x c d") == 0.25
    assert share_of_words_changed("a b", "a b") == 0
    assert share_of_words_changed("a b c d", "") == 1
