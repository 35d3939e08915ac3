"""`gradus anchors`: which tokens of a text the pooling leans on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.errors import AppError
from app.options import JsonFile
from app.terminal import console, escape, shortened, show_table, write_json

if TYPE_CHECKING:
    from trainer.anchors import AnchorPicture

_BAR = 24


def anchors(
    model: Annotated[str, typer.Argument(help="`minilm`, or a model's folder.")],
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    mode: Annotated[
        Literal["log1p", "sum"] | None, typer.Option("--mode", help="Default: the model's own, else log1p.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="A prompt's name in the model, or its text.")] = "",
    exclude_prompt: Annotated[bool, typer.Option("--exclude-prompt", help="Pool the text without its prompt.")] = False,
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Let a decoder's tokens see all.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Anchors to list.")] = 10,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw to a file: .png or .html.")] = None,
    json: JsonFile = None,
) -> None:
    """Show each token in the light of its weight in ATA pooling, and list the heaviest."""
    if plot is not None and plot.suffix not in (".png", ".html"):
        raise AppError(f"--plot {str(plot)!r}: the file must end in .png or .html")
    text = sys.stdin.read() if text == "-" else text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AppError("the text is not valid UTF-8") from error
    from curation.embeddings import any_model_folder

    folder = any_model_folder(model)  # before half a minute of imports on a busy machine
    from transformers.utils.logging import disable_progress_bar

    from app.anchor_chart import write_chart
    from trainer.anchors import anchors_of
    from trainer.backbones import load_model, with_pooling

    disable_progress_bar()
    loaded = load_model(folder, pooling="own", bidirectional=bidirectional)
    own = getattr(loaded[1], "mode", None) if len(loaded) > 1 else None
    if mode or exclude_prompt or own not in ("log1p", "sum"):
        chosen = mode or (own if own in ("log1p", "sum") else "log1p")
        loaded = with_pooling(loaded, chosen, include_prompt=not exclude_prompt)
    picture = anchors_of(loaded, text, prompt=loaded.prompts.get(prompt) or prompt)
    _show(picture, top)
    title = f"{Path(model).name}: {shortened(text, 60)}"
    if plot is not None:
        write_chart(plot, title, picture)
        console.print(f"Wrote {escape(str(plot))}")
    if json is not None:
        write_json(json, _report(model, picture))


def _show(picture: "AnchorPicture", top: int) -> None:
    from rich.text import Text

    from app.anchor_chart import light, shown

    lit = Text()
    for token in picture.tokens:
        lit.append(shown(token), style="black on rgb({},{},{})".format(*light(token.times_mean)))
        lit.append(" ")
    console.print(lit)
    if picture.num_tokens > len(picture.tokens):
        console.print(f"Cut: the model reads {len(picture.tokens)} of the text's {picture.num_tokens} tokens.")
    heaviest = sorted(enumerate(picture.tokens, start=1), key=lambda item: -item[1].weight)[:top]
    most = max(token.times_mean for token in picture.tokens)
    rows = [
        (shown(token), place, token.weight, token.times_mean, "█" * round(_BAR * token.times_mean / most))
        for place, token in heaviest
    ]
    title = f"Anchors by {picture.mode}, {len(picture.tokens)} tokens"
    show_table(title, ["token", "place", "weight", "times the mean", ""], rows)


def _report(model: str, picture: "AnchorPicture") -> dict[str, object]:
    return {
        "model": model,
        "mode": picture.mode,
        "num_tokens": picture.num_tokens,
        "num_tokens_read": len(picture.tokens),
        "tokens": [
            {"token": token.token, "text": token.text, "weight": token.weight, "times_mean": token.times_mean}
            for token in picture.tokens
        ],
    }
