"""The whole road on real data, as the commands that a user would type.

Every stage is idempotent: what is done is found done, so a demo that was cut off, by a signal or a power cut, is
finished by running it again.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.rule import Rule

from app.cli import cli
from app.demo.closing import show_closing
from app.settings import Settings
from app.terminal import console, escape, show_table

DATA = Path(__file__).parent
RELEASE = "scifact-graded-1.0.0"
MODEL = "minilm-scifact"
POOL_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the road: what it is for, and the arguments of `gradus`, one tuple a command."""

    title: str
    commands: tuple[tuple[str, ...], ...]


def stages(data: Path, home: Path) -> list[Stage]:
    """The road over the bundled data; reports and models go to the data folder `home`."""
    recipes, scifact = data / "recipes", str(data / "scifact")
    importing = (
        "import",
        "beir",
        scifact,
        "--name",
        "scifact",
        "--licence",
        "CC BY 4.0 (claims), ODC-By 1.0 (abstracts)",
    )
    audit = ("audit", "--json", str(home / "audit.json"), "--html", str(home / "audit.html"))
    evaluate = ("evaluate", "minilm", str(home / "models" / MODEL), "--data", scifact, "--split", "dev")
    pool = ("--pool", str(POOL_DEPTH), "--json", str(home / "evaluation.json"))
    generate = tuple(("generate", str(recipes / f"{name}.toml")) for name in ("graded", "minimal_edits"))
    release = ("release", "create", RELEASE, "--recipe", str(recipes / "release.toml"))
    return [
        Stage("Import a corpus with its queries and judgments", (importing,)),
        Stage("Generate graded negatives, from recorded completions", generate),
        Stage("Mine negatives from the corpus", (("mine", str(recipes / "mine.toml")),)),
        Stage("Score and audit: order, leaks, duplicates, contamination", (("score",), audit)),
        Stage("Freeze a release", (release,)),
        Stage("Train from easy to hard", (("train", str(recipes / "train.toml")),)),
        Stage("Evaluate before and after", ((*evaluate, *pool),)),
    ]


def walk(data: Path = DATA) -> None:
    """Run every stage, showing each command as it runs, then what came of it."""
    settings = Settings()
    times: list[tuple[str, float]] = []
    for number, stage in enumerate(stages(data, settings.data), start=1):
        console.print(Rule(f"{number}. {stage.title}", align="left"))
        start = time.monotonic()
        for arguments in stage.commands:
            _run(arguments)
        times.append((stage.title, time.monotonic() - start))
        console.print(f"[dim]{times[-1][1]:.1f} s[/]\n")
    show_table("Time of each stage", ["stage", "seconds"], [*times, ("all", sum(took for _, took in times))])
    show_closing(settings)


def _run(arguments: Sequence[str]) -> None:
    console.print(f"[bold cyan]$ gradus {escape(shlex.join(_shortened(arguments)))}[/]", soft_wrap=True)
    cli(list(arguments), standalone_mode=False)


def _shortened(arguments: Sequence[str]) -> list[str]:
    """Paths below the current folder as a user would type them."""
    here = str(Path.cwd()) + "/"
    return [argument.removeprefix(here) for argument in arguments]
