"""The word diff: texts survive it whole, what differs is marked."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reviewing.word_diff import Piece, pieces_html, share_common, word_diff


def own(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.is_own]


def test_what_differs_is_marked_on_both_sides() -> None:
    one, other = word_diff("The river floods in May, every year.", "The river floods in June, every second year.")
    assert own(one) == ["May"]
    assert own(other) == ["June", "second "]
    assert own(word_diff("a\nb", "a  b")[0]) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("東京の春", "東京の秋", ["秋"]),
        ("किताब नई है", "किताब पुरानी है", ["पुरानी "]),
        ("same", "same", []),
        ("a", "b", ["b"]),
        ("Word", "word", ["word"]),
    ],
)
def test_scripts_without_spaces_by_character_and_marks_with_their_letter(
    one: str, other: str, expected: list[str]
) -> None:
    assert own(word_diff(one, other)[1]) == expected


texts = st.text(alphabet=st.sampled_from("ab .,\n東é\u0301\u200b<&'क\u093f"), max_size=60)


@given(texts, texts)
def test_both_texts_survive_whole_and_unmarked_parts_are_common(one: str, other: str) -> None:
    pieces = word_diff(one, other)
    for text, its in zip((one, other), pieces, strict=True):
        assert "".join(piece.text for piece in its) == text
    common = [["".join(piece.text.split()) for piece in its if not piece.is_own] for its in pieces]
    assert "".join(common[0]) == "".join(common[1])


def test_a_very_long_text_is_compared_at_its_beginning_only() -> None:
    one, other = word_diff("x " * 3_000, "y " + "x " * 3_000 + "<b>")
    assert own(other) == ["y "] and len(own(one)) <= 1
    assert "".join(piece.text for piece in other).endswith("<b>")


def test_html_is_escaped_inside_and_outside_of_marks() -> None:
    shown = pieces_html(word_diff("a <i>b</i>", "a <b onclick='x'>")[1], colour="#fff")
    assert re.sub(r"</?mark[^>]*>", "", shown) == html.escape("a <b onclick='x'>")
    assert "<mark" in shown


def test_what_both_say_can_be_marked_instead() -> None:
    one, other = word_diff("a river floods", "the river sleeps well")
    assert share_common(one, other) == 12 / 35 and share_common([], []) == 1
    assert pieces_html(other, colour="c", marks_own=False).split("</mark>")[0].endswith(">river")
