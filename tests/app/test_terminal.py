"""Tables in a narrow terminal."""

import pytest

from app.terminal import console, show_table


def test_what_a_row_is_called_is_never_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 40)
    with console.capture() as captured:
        show_table("t", ["name", "what", "more"], [("a_name_without_blanks", "b" * 40, "c" * 40)])
    cells = [line.split("│") for line in captured.get().splitlines() if line.startswith("│")]
    assert "".join(row[1].strip() for row in cells) == "a_name_without_blanks"
    assert "…" in captured.get() and all(len(line) <= 40 for line in captured.get().splitlines())
