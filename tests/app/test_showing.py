"""Text from outside stays text, keeps its meaning, and is cut where its HTML would grow too large."""

import html

from hypothesis import given
from hypothesis import strategies as st

from app.viewing.showing import block, cell, escaped, fair_share, shown


def test_markup_is_escaped_and_stands_in_a_direction_of_its_own() -> None:
    assert escaped("<b>&'\"") == "<bdi>&lt;b&gt;&amp;&#x27;&quot;</bdi>"
    assert "dir='auto'" in block("שלום") and "שלום" in block("שלום")


def test_what_has_no_width_is_named_and_what_turns_the_page_is_replaced() -> None:
    assert shown("pass\u200bword \ufeff\u00ad") == "pass[U+200B]word [U+FEFF][U+00AD]"
    assert shown("a\u202eb\u2066c\x1b") == "a\ufffdb\ufffdc\ufffd"
    assert shown("tag \U000e0041") == "tag [U+E0041]"


def test_joiners_stay_where_a_script_needs_them() -> None:
    family, persian = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e"
    assert (shown(family), shown(persian)) == (family, persian)
    assert shown("ad\u200dmin\u200c") == "ad[U+200D]min[U+200C]"


def test_a_cut_counts_what_is_left_out() -> None:
    told = escaped("x" * 5_000, 1_200)
    assert told == f"<bdi>{'x' * 1_200}</bdi> … (3,800 more characters)"
    assert cell("one\ntwo\tthree " + "x" * 500, 20) == "one two three xxxxxx…"
    assert cell(None) == "" and cell("short") == "short"


@given(st.text(max_size=300), st.integers(0, 400))
def test_html_of_any_text_fits_and_is_a_beginning_of_it(text: str, most: int) -> None:
    inside = escaped(text, most).split("</bdi>")[0].removeprefix("<bdi>")
    assert len(inside.encode("utf-8", "replace")) <= most
    assert html.escape(shown(text)).startswith(inside) or shown(text)[: len(html.unescape(inside))] != text[:1]


@given(st.lists(st.text(max_size=60), min_size=1, max_size=12), st.integers(0, 600))
def test_texts_cut_at_their_fair_share_fit_the_budget(texts: list[str], budget: int) -> None:
    share = fair_share(texts, budget)
    sizes = [len(html.escape(shown(text)).encode("utf-8", "replace")) for text in texts]
    assert sum(min(size, share) for size in sizes) <= budget or max(sizes) <= share <= budget
    if sum(sizes) <= budget:
        assert share >= max(sizes)
