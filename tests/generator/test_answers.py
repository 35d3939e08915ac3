"""What a model sends is data: any text gives a draft or a reason, and one bad part does not cost the good ones."""

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.answers import Draft, DraftNegative, Met, Refusal, read_answer
from generator.checks import AnswerContext, check_negative, share_of_words_changed
from generator.prompt_pack import Checks, Entry, PromptPack, Slot, bundled_packs

ALL = [pack.entry(name) for pack in bundled_packs() for name in pack.entry_names]
ENTRIES = [entry for entry in ALL if entry.facts.response_format != "text"]
V1 = PromptPack.load("v1").entry("graded_negatives")
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
        st.sampled_from(
            ["negatives", "tasks", "edits", "queries", "requirements", "query", "positive", "text", "script", "domain"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


UNDECLARED = ["self_check", "script", "requirements_met", "violated_requirement", "evidence", "text", "source"]
SOURCES = {"positive": "A text. Another.", "neighbour": "N.", "neighbour_1": "N.", "document": "D."}


@given(entry=st.sampled_from(ENTRIES), text=st.text(max_size=200))
def test_any_text_gives_a_draft_or_a_reason(entry: Entry, text: str) -> None:
    assert isinstance(read_answer(entry, text, sources=SOURCES), Draft | Refusal)


@given(entry=st.sampled_from(ENTRIES), value=JSON)
def test_any_json_gives_a_draft_or_a_reason(entry: Entry, value: Any) -> None:
    assert isinstance(read_answer(entry, json.dumps(value), sources=SOURCES), Draft | Refusal)


@given(entry=st.sampled_from(ENTRIES), data=st.data())
def test_any_answer_of_the_right_shape_gives_a_draft(entry: Entry, data: st.DataObject) -> None:
    value = data.draw(_fitting(entry.schema))
    outcome = read_answer(entry, json.dumps(value), sources=SOURCES)
    is_without = isinstance(outcome, Refusal) and outcome.detail == "tasks: none that is a text"
    assert isinstance(outcome, Draft) or is_without or outcome.reason == "control_character"


@given(entry=st.sampled_from(ENTRIES), data=st.data(), name=st.sampled_from(UNDECLARED), value=JSON)
def test_fields_that_an_entry_does_not_declare_are_not_read(
    entry: Entry, data: st.DataObject, name: str, value: Any
) -> None:
    given = data.draw(_fitting(entry.schema))
    parts = given.get(entry.facts.parts, [])
    for part in (part for part in parts if isinstance(part, dict)):
        part.setdefault(name, value)
    assert isinstance(read_answer(entry, json.dumps(given), sources=SOURCES), Draft | Refusal)


@pytest.mark.parametrize("text", ["{" + "[" * 3_000, '{"a": ' * 3_000])
def test_json_that_is_too_deep_is_no_json(text: str) -> None:
    for entry in ENTRIES:
        outcome = read_answer(entry, text, sources=SOURCES)
        assert isinstance(outcome, Refusal) and outcome.reason in ("not_json", "wrong_shape")


@pytest.mark.parametrize("place", ["query", "task", "requirement"])
def test_a_nul_anywhere_is_told(place: str) -> None:
    value = {"query": "a\u0000b"} if place == "query" else {"tasks": ["a\u0000b"]}
    if place == "requirement":
        value = {"requirements": [{"text": "a\u0000b", "critical": True}], "negatives": []}
    for entry in ENTRIES:
        outcome = read_answer(entry, json.dumps(value), sources=SOURCES)
        assert isinstance(outcome, Refusal) and outcome.reason == "control_character"


def _fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema of our kind allows."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "object":
        return st.fixed_dictionaries({name: _fitting(inner) for name, inner in schema["properties"].items()})
    if schema["type"] == "array":
        return st.lists(_fitting(schema["items"]), max_size=4)
    return {"string": st.text(max_size=12), "boolean": st.booleans(), "integer": st.integers(-3, 6)}[schema["type"]]


def read(value: Any) -> Draft:
    outcome = read_answer(V1, orjson.dumps(value).decode())
    assert isinstance(outcome, Draft)
    return outcome


def test_good_answer_has_ranks_and_grades_in_order() -> None:
    draft = read(GOOD)
    assert [(n.rank, n.grade) for n in draft.negatives] == [(1, "hard"), (2, "medium"), (3, "medium"), (4, "easy")]
    assert draft.refusals == ()


def test_fenced_json_is_read() -> None:
    fenced = f"```json\n{orjson.dumps(GOOD).decode()}\n```"
    assert read_answer(V1, fenced) == read(GOOD)


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
    outcome = read_answer(V1, orjson.dumps(GOOD).decode(), finish_reason="length")
    assert isinstance(outcome, Refusal) and outcome.reason == "cut_off"


def test_json_that_is_almost_right_is_repaired_and_marked() -> None:
    broken = orjson.dumps(GOOD).decode()[:-1].replace('"plan":"p",', '"plan":"p"', 1)
    draft = read_answer(V1, f"Here it is:\n{broken}")
    assert isinstance(draft, Draft) and draft.notes == {"json_repaired": True}
    assert [n.text for n in draft.negatives] == [n.text for n in read(GOOD).negatives]


POSITIVE = "The otter is a mammal that lives near water and eats fish. " * 5
SENTENCE = "The otter is a mammal that lives near water and eats fish."
ALL_CHECKS = Checks(
    length_ratio=(0.33, 3.0), copied_words=8, shared_words=8, opening_words=4, changed_words=0.3, language=True
)


def negative(text: str, *, met: tuple[Met, ...] = (), unmet: Any = None, **changes: Any) -> DraftNegative:
    slot = Slot(grade="hard", critical_unmet=unmet, as_it_is=changes.pop("as_it_is", False))
    return DraftNegative(1, 1, "hard", text, "r", slot, met=met, **changes)


def context(earlier: str | None = None, positive: str = POSITIVE, language: str = "English") -> AnswerContext:
    made = AnswerContext(positive, language, ALL_CHECKS, {"x": POSITIVE})
    if earlier is not None:
        made.add(negative(earlier))
    return made


def reason(draft: DraftNegative, made: AnswerContext) -> str | None:
    found = check_negative(draft, made)
    return None if found is None else found.reason


EARLIER = "The badger digs long setts in dry soil during the night hours. An earlier one."


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (negative(POSITIVE.upper()), "is_the_positive"),
        (negative(EARLIER.upper().replace(" ", "  ")), "duplicate"),
        (negative("The badger digs. " * 15, answers_query=True), "self_check"),
        (negative("Short."), "length_ratio"),
        (negative("The badger digs at night. " * 60), "length_ratio"),
        (negative("A badger digs at night. " * 9 + SENTENCE), "copied_sentence"),
        (negative("A badger is grey. " * 9 + EARLIER), "shared_sentence"),
        (negative("The badger digs long tunnels and sleeps in them. " * 4), "repeated_opening"),
        (negative("This hard negative is about badgers. " * 6), "leak_phrase"),
        (negative("Der Dachs gräbt nachts tiefe Baue und schläft am Tag. " * 5), "wrong_language"),
        (negative("A badger digs setts at night and sleeps through the day. " * 5), None),
    ],
)
def test_checks_give_the_reason(draft: DraftNegative, expected: str | None) -> None:
    assert reason(draft, context(EARLIER)) == expected


def test_language_is_checked_by_script_where_that_decides() -> None:
    good = negative("The badger digs setts at night and sleeps through the day. " * 5)
    assert reason(good, context(language="Korean")) == "wrong_language"
    korean = negative("오소리는 밤에 땅을 파고 낮에는 잠을 잔다. " * 9)
    assert reason(korean, context(language="Korean")) is None


BEAVER = POSITIVE.replace("otter", "beaver")


def met(*, is_met: bool, quote: str = "", critical: bool = True) -> Met:
    return Met(is_met, critical, quote)


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (negative(POSITIVE, edited_from="x"), "unchanged"),
        (negative(POSITIVE, edited_from="x", as_it_is=True), None),
        (negative(BEAVER, edited_from="x", breaks_critical=False), "not_critical"),
        (negative(BEAVER, edited_from="x", met=(met(is_met=True, quote="not there"),)), "quote_not_in_text"),
        (negative("Something else entirely, word for word. " * 5, edited_from="x"), "too_many_changes"),
        (negative(BEAVER, edited_from="x", met=(met(is_met=True, quote="eats fish"),)), None),
        (negative(BEAVER, edited_from="x", unmet="some", met=(met(is_met=True),)), "requirement_met"),
        (negative(BEAVER, edited_from="x", unmet="one", met=(met(is_met=False),) * 2), "too_many_unmet"),
        (negative(BEAVER, edited_from="x", unmet="one", met=(met(is_met=False), met(is_met=True))), None),
        (negative(BEAVER, edited_from="x", unmet="one", met=(met(is_met=False, critical=False),)), "requirement_met"),
    ],
)
def test_edit_checks_give_the_reason(draft: DraftNegative, expected: str | None) -> None:
    assert reason(draft, context(positive="Another text.")) == expected


def test_share_of_words_changed_by_value() -> None:
    assert share_of_words_changed("a b c d", "a x c d") == 0.25
    assert share_of_words_changed("a b", "a b") == 0
    assert share_of_words_changed("a b c d", "") == 1
