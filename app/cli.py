"""The `gradus` command: puts the subcommands together and turns our errors into one line.

Nothing heavy is imported here or at the top of a command module: `gradus --help` has to answer at once.
"""

import sys
from importlib import import_module

import typer

from app.commands import (
    ablate,
    anchors,
    app_server,
    audit,
    demo,
    evaluate,
    generate,
    import_training,
    importing,
    judge,
    mine,
    prompts,
    publish,
    push_model,
    recipes,
    release,
    review,
    status,
    store,
    train,
)
from app.errors import AppError
from app.terminal import one_line

cli = typer.Typer(
    name="gradus",
    help="Graded hard negatives for text-embedding models: from a corpus to a trained model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.command()(demo.demo)
importing.commands.command()(import_training.training)
cli.add_typer(importing.commands, name="import")
cli.command()(generate.generate)
cli.add_typer(prompts.commands, name="prompts")
cli.command()(mine.mine)
cli.command()(audit.score)
cli.command()(audit.audit)
cli.command()(judge.judge)
cli.add_typer(review.commands, name="review")
cli.add_typer(release.commands, name="release")
cli.command()(publish.publish)
cli.add_typer(recipes.commands, name="recipes")
cli.command()(train.train)
cli.command()(evaluate.evaluate)
cli.command()(ablate.ablate)
cli.command(name="push-model")(push_model.push_model)
cli.command()(anchors.anchors)
cli.command()(status.status)
cli.command()(app_server.app)
cli.add_typer(store.commands, name="store")

# Where each package keeps the base of its errors; looked up only among modules that a command has loaded.
_ERROR_BASES = (
    ("db.errors", "StoreError"),
    ("generator.errors", "GeneratorError"),
    ("curation.errors", "CurationError"),
    ("trainer.errors", "TrainerError"),
)


def main() -> None:
    """Run the command line: usage errors exit with 2, refused input with 1 and one line on stderr."""
    try:
        cli()
    except _expected_errors() as error:
        print(f"gradus: {one_line(str(error))}", file=sys.stderr)
        sys.exit(1)


def _expected_errors() -> tuple[type[Exception], ...]:
    loaded = [getattr(import_module(module), name) for module, name in _ERROR_BASES if module in sys.modules]
    return (AppError, *loaded)
