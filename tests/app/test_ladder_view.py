"""The item of a review session as HTML: where things stand on the axis, what is flagged, and text that stays text."""

import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from app.reviewing.ladder_view import Rung, Shown, axis_ends, axis_html, item_html, lanes_of

HOSTILE = "<script>x()</script> </div><img src=x onerror=alert(1)> '\" & \u202egnp\u200b"


def rung(number: int, **facts: object) -> Rung:
    given = {"label": f"N{number}", "grade": "hard", "origin": "synthetic", "text": f"text {number}", "similarity": 0.5}
    return Rung(**{"candidate_id": number, **given, **facts})  # type: ignore[arg-type]


def shown(*rungs: Rung, **facts: object) -> Shown:
    given = {"key": "7-9", "query": "a question", "positive": "an answer", "positive_similarity": 0.9, "teacher": "t"}
    return Shown(**{**given, "rungs": rungs, **facts})  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Names of tags and of attributes, and whether every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_everything_stands_at_its_similarity_and_the_one_in_question_is_ringed() -> None:
    item = shown(rung(1, similarity=0.7), rung(2, similarity=0.5, grade="easy"), rung(3, similarity=None))
    page = axis_html(item, 2)
    places = dict(re.findall(r"left:([\d.]+)%[^>]*>.*?<bdi>(.*?)</bdi>", page))
    assert places == {"0.0": "N2", "50.0": "N1", "100.0": "+"}
    assert page.count("outline:3px") == 1 and "0.50" in page and "0.90" in page


def test_axis_of_negative_equal_and_missing_similarities() -> None:
    assert axis_ends([-0.31, 0.2]) == (-0.35, 0.2)
    assert axis_ends([0.5, 0.5]) == (0.45, 0.55)
    assert axis_ends([0.51, 0.53]) == (0.45, 0.55)
    assert "gradus score" in axis_html(shown(rung(1, similarity=None), positive_similarity=None), 1)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_every_similarity_stands_inside_the_axis(values: list[float]) -> None:
    low, high = axis_ends(values)
    assert high - low >= 0.0999
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)


def test_neighbours_move_down_a_lane() -> None:
    assert lanes_of([10, 11, 12, 13, 14, 15, 15.5, 17.5, 50]) == [0, 1, 2, 3, 4, 0, 1, 2, 0]


def test_flags_reasons_and_what_was_decided_are_chips() -> None:
    flagged = rung(1, is_inverted=True, is_above_positive=True, reasons=("teachers disagree",), decided="keep")
    page = Tags(item_html(shown(flagged, rung(2)), 1, is_detailed=False)).words
    for said in ("inverted", "above the positive", "teachers disagree", "decided: keep"):
        assert said in page
    assert "teachers disagree" not in Tags(item_html(shown(flagged, rung(2)), 2, is_detailed=False)).words


def test_what_is_marked_is_the_rarer_part() -> None:
    alike = shown(rung(1, text="the river floods in May"), positive="the river floods in June")
    assert "what only this one says" in item_html(alike, 1, is_detailed=False)
    assert "what both say" in item_html(shown(rung(1, text="another thing altogether")), 1, is_detailed=False)


def test_requirement_and_self_check_on_demand() -> None:
    item = shown(rung(1, details=(("Breaks", "names the year"), ("Its writer's check", "met"))))
    assert "names the year" not in item_html(item, 1, is_detailed=False)
    page = Tags(item_html(item, 1, is_detailed=True)).words
    assert "Breaks names the year" in page and "Its writer's check met" in page


def test_hostile_text_is_text_wherever_it_stands() -> None:
    hostile = rung(
        1, label=HOSTILE, grade=HOSTILE, origin=HOSTILE, text=HOSTILE, details=((HOSTILE, HOSTILE),),
        reasons=(HOSTILE,), decided=HOSTILE, other_scores=((HOSTILE, 0.5),),
    )  # fmt: skip
    item = shown(hostile, query=HOSTILE, positive=HOSTILE + " more", teacher=HOSTILE)
    page = item_html(item, 1, is_detailed=True)
    tags = Tags(page)
    assert tags.tags <= {"div", "span", "b", "bdi", "mark"} and tags.attributes <= {"style", "dir", "data-shown"}
    assert not tags.open and "\u202e" not in page and "\u200b" not in page and "<script>x()" in tags.words


def test_many_negatives_and_long_texts_are_bounded_and_the_one_in_question_is_there() -> None:
    item = shown(*(rung(number, text=f"text {number} " + "é" * 50_000) for number in range(1, 201)))
    for focus in (1, 100, 200):
        page = item_html(item, focus, is_detailed=True)
        assert len(page.encode()) < 150_000
        assert f"data-shown='7-9-{focus}'" in page and page.count("display:flex;gap:.7rem") == 40
        assert "160 more negatives" in page and "more characters" in page
        assert f"<b style='min-width:3.2rem'><bdi>N{focus}</bdi>" in page
