"""`gradus anchors`: what is shown adds up to what the pooling did, and any text is only text."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.errors import AppError
from trainer.errors import TrainerError

TEXT = "Mice lacking <b>IRF-5</b> [red]gain[/red] weight, $5 each."


def _report(tmp_path: Path, *arguments: str) -> tuple[dict, str]:
    done = CliRunner().invoke(cli, ["anchors", *arguments, "--json", str(tmp_path / "out.json")])
    if done.exception:
        raise done.exception
    return json.loads((tmp_path / "out.json").read_text()), done.stdout


def test_weights_of_a_text_are_shown_written_and_add_up(tmp_path: Path) -> None:
    report, shown = _report(tmp_path, "minilm", TEXT, "--top", "3", "--plot", str(tmp_path / "picture.html"))
    tokens = report["tokens"]
    assert report["mode"] == "log1p" and report["num_tokens"] == report["num_tokens_read"] == len(tokens)
    assert sum(token["weight"] for token in tokens) == pytest.approx(1, abs=1e-5)
    assert "".join(token["text"] for token in tokens) == TEXT.replace(" ", "")
    heaviest = max(tokens, key=lambda token: token["weight"])
    assert heaviest["times_mean"] == pytest.approx(heaviest["weight"] * len(tokens))
    assert heaviest["token"] in shown and "[ red ]" in shown
    page = (tmp_path / "picture.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;" in page and page.count("<span") == len(tokens)


def test_picture_is_a_png_of_any_text(tmp_path: Path) -> None:
    report, _ = _report(tmp_path, "minilm", "$ 中文 \U0001f400 _^{x} \x1b[31m", "--plot", str(tmp_path / "a" / "b.png"))
    assert (tmp_path / "a" / "b.png").read_bytes().startswith(b"\x89PNG")
    assert report["num_tokens"] > 5


def test_long_texts_are_said_to_be_cut(tmp_path: Path) -> None:
    report, shown = _report(tmp_path, "minilm", "mouse " * 400)
    assert report["num_tokens"] == 402 and report["num_tokens_read"] < 402
    assert f"reads {report['num_tokens_read']} of the text's 402 tokens" in shown


def test_excluded_prompt_weighs_nothing(tmp_path: Path) -> None:
    report, _ = _report(tmp_path, "minilm", "gain weight", "--prompt", "find a claim: ", "--exclude-prompt")
    zero = [token["token"] for token in report["tokens"] if token["weight"] == 0]
    assert zero == ["[CLS]", "find", "a", "claim", ":"]


def test_other_files_and_encoders_without_later_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"--plot '.*picture.svg': the file must end in .png or .html"):
        _report(tmp_path, "minilm", TEXT, "--plot", str(tmp_path / "picture.svg"))
    with pytest.raises(TrainerError, match="is no decoder"):
        _report(tmp_path, "minilm", TEXT, "--bidirectional")
