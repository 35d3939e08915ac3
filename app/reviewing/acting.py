"""Who runs a command that needs a role in review sessions."""

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.tables.review import Reviewer

Acting = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        envvar="GRADUS_REVIEWER",
        help="Who does this, an admin; default: the account's name.",
        show_default=False,
    ),
]


def acting_reviewer(session: "Session", name: str | None) -> "Reviewer":
    """Who runs the command; in a store without people, its first admin."""
    from curation.reviewing.people import has_people, put_reviewer, reviewer_of

    name = name or getpass.getuser()
    return reviewer_of(session, name) if has_people(session) else put_reviewer(session, name, "admin")
