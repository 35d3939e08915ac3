"""Edit scripts: what they leave alone stays as it was, what does not apply is refused with its reason."""

import difflib
import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.edit_script import Edited, Replacement, Unfit, apply_script

RECORDED = Path(__file__).parents[2] / "app" / "demo"
SOURCE = "Aspirin lowers risk. Aspirin is cheap – and “old”.\nIt lowers  fever."


def apply(*changes: tuple[str, str], source: str = SOURCE) -> Edited | Unfit:
    return apply_script(source, [Replacement(*change) for change in changes])


def test_replacements_are_made_and_the_rest_stays() -> None:
    made = apply(("lowers risk", "raises risk"), ("old", "new"))
    assert made == Edited("Aspirin raises risk. Aspirin is cheap – and “new”.\nIt lowers  fever.", False)
    assert apply(("risk. ", "")) == Edited("Aspirin lowers Aspirin is cheap – and “old”.\nIt lowers  fever.", False)


@pytest.mark.parametrize(
    ("find", "is_found"),
    [
        ('cheap - and "old"', True),  # another kind of dash and quotes
        ("It lowers fever", True),  # another run of white space
        ("“old”. It lowers", True),
        ("It raises fever", False),
        ("aspirin lowers", False),  # another case is another word
    ],
)
def test_white_space_and_quotes_are_taken_as_meant(find: str, is_found: bool) -> None:
    made = apply((find, "X"))
    assert isinstance(made, Edited) is is_found
    if isinstance(made, Edited):
        assert made.is_mended and "X" in made.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([("Aspirin", "Zinc")], "find_not_unique"),
        ([("lowers", "raises")], "find_not_unique"),
        ([("Zinc", "Aspirin")], "find_not_in_source"),
        ([(" ", "x")], "empty_find"),
        ([("Aspirin lowers", "A"), ("lowers risk", "B")], "overlapping_edits"),
        ([("lowers risk", "A"), ("lowers risk", "B")], "overlapping_edits"),
    ],
)
def test_a_script_that_does_not_apply_says_why(changes: list[tuple[str, str]], reason: str) -> None:
    made = apply(*changes)
    assert isinstance(made, Unfit) and made.reason == reason


@given(st.text(max_size=80), st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=4))
def test_any_script_gives_a_text_or_a_reason(source: str, changes: list[tuple[str, str]]) -> None:
    assert isinstance(apply(*changes, source=source), Edited | Unfit)


@given(st.data())
def test_only_the_spans_that_were_found_change(data: st.DataObject) -> None:
    words = [f"w{n}" for n in range(data.draw(st.integers(1, 30)))]
    chosen = data.draw(st.sets(st.sampled_from(words)))
    source = " ".join(f"<{word}>" for word in words)
    made = apply(*((f"<{word}>", f"[{word}]") for word in chosen), source=source)
    assert made == Edited(" ".join(f"[{w}]" if w in chosen else f"<{w}>" for w in words), False)


def scripted(source: str, edited: str) -> list[Replacement]:
    """A script that turns one text into the other: each changed run of words, widened until it is unique."""
    before, after = source.split(" "), edited.split(" ")
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    spans = [[i1, i2, j1, j2] for tag, i1, i2, j1, j2 in blocks if tag != "equal"]
    merged: list[list[int]] = []
    for span in spans:
        i1, i2, j1, j2 = span
        while i1 == i2 or j1 == j2 or _is_ambiguous(source, " ".join(before[i1:i2])):
            if i1 > 0:
                i1, j1 = i1 - 1, j1 - 1
            if i2 < len(before):
                i2, j2 = i2 + 1, j2 + 1
        if merged and i1 < merged[-1][1]:
            merged[-1][1], merged[-1][3] = max(i2, merged[-1][1]), max(j2, merged[-1][3])
        else:
            merged.append([i1, i2, j1, j2])
    return [Replacement(" ".join(before[i1:i2]), " ".join(after[j1:j2])) for i1, i2, j1, j2 in merged]


def _is_ambiguous(source: str, find: str) -> bool:
    return source.find(find, source.find(find) + 1) >= 0


def lines(path: Path) -> list[Any]:
    return [orjson.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_recorded_edits_are_reproduced_by_scripts_a_fraction_of_their_size() -> None:
    corpus = {row["_id"]: row for row in lines(RECORDED / "scifact" / "corpus.jsonl.gz")}
    folder = RECORDED / "recorded" / "minimal_edits"
    plans = {row["custom_id"]: row for row in lines(folder / "plan.jsonl.gz")}
    texts = scripts = num = 0
    for row in lines(folder / "completions.jsonl.gz"):
        plan = plans[row["custom_id"]]
        answer = orjson.loads(row["response"]["body"]["choices"][0]["message"]["content"])
        for edit in answer["edits"]:
            name = plan["positive_id" if edit["source"] == "positive" else "neighbour_id"]
            source = f"{corpus[name]['title']}\n{corpus[name]['text']}".strip()
            script = scripted(source, edit["text"])
            made = apply_script(source, script)
            assert isinstance(made, Edited) and made.text == edit["text"], row["custom_id"]
            num += 1
            texts += len(orjson.dumps(edit["text"]))
            scripts += len(orjson.dumps([{"find": change.find, "replace": change.replace} for change in script]))
    assert num == 400
    assert scripts < texts / 3, f"{texts / scripts:.1f} times smaller"
