"""LameR: what is asked, how answers widen a query, and that they bridge a gap of vocabulary."""

from collections.abc import Sequence

import numpy as np
import pytest

from curation.mining.bm25 import Bm25
from curation.mining.lamer import Lamer, Question, Wording, cut, widen, wording_of

# The query's words stand in the first two alone; the right one, the third, shares words with what they lead to.
PASSAGES = [
    "heart attack statistics by year in several towns",
    "attack of a bear on a heart surgeon, named in the press",
    "myocardial infarction is treated with reperfusion and aspirin",
    "cooking rice in a heavy pot takes twenty minutes",
    "aspirin was first made in a factory",
]
QUERY = "heart attack therapy"


def lamer(answers: Sequence[str], asked: list[Question] | None = None, **fields: object) -> Lamer:
    def told(questions: Sequence[Question]) -> list[list[str]]:
        if asked is not None:
            asked.extend(questions)
        return [list(answers) for _ in questions]

    known = {"answerer": "a", **fields}
    return Lamer(Bm25(PASSAGES), PASSAGES, told, **known)  # type: ignore[arg-type]


def test_answers_bridge_a_gap_that_the_query_alone_does_not() -> None:
    alone, _ = Bm25(PASSAGES).top([QUERY], 5)
    assert 2 not in alone[0]
    found, scores = lamer(["myocardial infarction is treated with reperfusion", "infarction: aspirin"]).top([QUERY], 5)
    assert found[0][0] == 2 and scores[0][0] > 0
    # The query keeps its own matches too, and what nothing matches stays out.
    assert {0, 1} <= set(found[0].tolist()) and 3 not in found[0]


def test_it_searches_for_the_query_before_each_answer() -> None:
    answers = [' "first answer" ', "second\n answer", "\u201c\u201d", " "]
    assert widen("q", answers) == "q first answer q second answer"
    found, scores = lamer(answers[:2]).top([QUERY], 5)
    expected = Bm25(PASSAGES).top([f"{QUERY} first answer {QUERY} second answer"], 5)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


def test_no_answers_or_useless_ones_leave_bm25() -> None:
    expected = Bm25(PASSAGES).top([QUERY], 3)
    for answers in ([], ["", '""']):
        np.testing.assert_array_equal(lamer(answers).top([QUERY], 3)[0], expected[0])
    found, scores = lamer([]).top(["zzz"], 9)
    assert found.shape == (1, 5) and set(found[0].tolist()) == {-1} and not scores.any()
    assert lamer([]).top([], 3)[0].shape == (0, 3)


def test_the_llm_sees_bm25s_first_passages_in_order_and_cut() -> None:
    asked: list[Question] = []
    lamer([], asked, num_candidates=2, max_characters=22).top([QUERY, "rice", "zzz"], 3)
    best, _ = Bm25(PASSAGES).top([QUERY], 2)
    assert asked[0].candidates == tuple(cut(PASSAGES[place], 22) for place in best[0])
    assert all(len(text) <= 22 for text in asked[0].candidates) and "heart attack" in asked[0].candidates
    assert asked[1].candidates == ("cooking rice in a",) and asked[2].candidates == ()


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [("ab cd", 5, "ab cd"), ("ab cd", 4, "ab"), ("ab cd", 2, "ab"), ("abcdef", 3, "abc"), ("ab cd ef", 5, "ab cd")],
)
def test_a_passage_is_cut_at_a_word(text: str, length: int, expected: str) -> None:
    assert cut(text, length) == expected


def test_the_version_changes_with_all_that_decides_a_ranking() -> None:
    base = lamer([])
    others = [
        lamer([], answerer="b"), lamer([], num_candidates=9), lamer([], max_characters=9),
        lamer([], wording=Wording("questions", "question")),
    ]  # fmt: skip
    assert len({one.version for one in (base, *others)}) == 5 and lamer([]).version == base.version


@pytest.mark.parametrize(
    ("collection", "one"),
    [
        ("scifact", "scientific paper passage"),
        ("SciFact-test", "scientific paper passage"),
        ("trec-dl-19-20", "answering passage"),
        ("trec-covid", "scientific paper passage"),
        ("webis-touche2020", "counter-argument passage"),
        ("my-own", "answering passage"),
    ],
)
def test_passages_are_called_by_their_collection(collection: str, one: str) -> None:
    assert wording_of(collection).one == one
