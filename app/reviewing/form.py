"""A review session from the fields of a form: the same recipe that a TOML file gives to `gradus review create`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import RecipeError
from app.recipes import checked
from curation.reviewing.people import people, reviewer_of
from curation.reviewing.queue import Progress, draw_queue
from curation.reviewing.recipe import SessionRecipe
from curation.reviewing.sessions import Summary, create_session, list_sessions
from db.store import Store
from db.tables.examples import Teacher
from db.tables.ledger import Run
from db.tables.releases import Release
from db.tables.review import ReviewSession
from db.teachers import scores_likeness

_MOST_NAMES = 300


@dataclass(frozen=True, slots=True)
class Choices:
    """Names that a queue may be drawn by, the newest first, and who may be invited."""

    runs: tuple[str, ...]
    releases: tuple[str, ...]
    teachers: tuple[str, ...]
    reviewers: tuple[str, ...]
    sessions: tuple[str, ...]


def choices(session: Session) -> Choices:
    """What the form offers; of each at most so many that the page stays small."""
    runs = session.scalars(select(Run.name).where(Run.kind != "review").order_by(Run.id.desc()).limit(_MOST_NAMES))
    releases = session.scalars(select(Release.name).order_by(Release.id.desc()).limit(_MOST_NAMES))
    newest = select(Teacher.name).where(scores_likeness()).order_by(Teacher.id.desc())
    teachers = session.scalars(newest.limit(_MOST_NAMES))
    sessions = session.scalars(select(ReviewSession.name).order_by(ReviewSession.id.desc()).limit(_MOST_NAMES))
    invited = [one.name for one in people(session) if one.is_active and one.role != "reader"]
    listed = (runs, releases, teachers, invited[:_MOST_NAMES], sessions)
    return Choices(*(tuple(dict.fromkeys(names)) for names in listed))


def recipe_from_form(form: Mapping[str, Any]) -> SessionRecipe:
    """The recipe that a filled form means; what was left empty is left out.

    Raises:
        RecipeError: A value is not valid, with the field, the value and the remedy.
    """
    queue: dict[str, Any] = {
        "runs": form["runs"],
        "release": form["release"],
        "grades": form["grades"],
        "origins": form["origins"],
        "languages": _listed(form["languages"]),
        "attributes": _attributes(form["attributes"]),
        "text": form["text"].strip(),
        "scores": _scores(form),
    }
    if form["sample_size"]:
        sample = {"size": form["sample_size"], "max_error_rate": form["max_error_rate"]}
        queue["sample"] = _filled(sample)
    else:
        queue |= {"order": form["order"], "limit": form["limit"]}
    fields = {
        "name": form["name"].strip(),
        "queue": _filled(queue),
        "rubric": _filled({"name": form["rubric_name"].strip(), "text": form["rubric_text"].strip()}),
        "reviewers": form["reviewers"],
        "overlap": form["overlap"],
        "blind": form["blind"],
        "lease_minutes": form["lease_minutes"],
        "gold": {"session": form["gold_session"]} if form["gold_session"] else None,
        "repeats": {"share": form["repeats"]} if form["repeats"] else None,
        "seed": form["seed"],
    }
    return checked({"name": fields["name"], **_filled(fields)}, SessionRecipe)


def _filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was left empty; numbers and yes or no always count."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], (), {})}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _attributes(text: str) -> dict[str, list[str]]:
    """One attribute a line: `domain = law, medicine`."""
    found = {}
    for line in filter(str.strip, text.splitlines()):
        name, mark, values = line.partition("=")
        if not mark or not name.strip() or not _listed(values):
            raise RecipeError(f"attributes: {line.strip()!r}: write a line as 'name = value, value'")
        found[name.strip()] = _listed(values)
    return found


def _scores(form: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = _filled({"teacher": form["teacher"], "min": form["min_score"], "max": form["max_score"]})
    return [given] if given else []


def create_from_form(store: Store, person: str, recipe: SessionRecipe, progress: Progress) -> int:
    """Draw the queue and freeze it as a session, as the command does; gives its id.

    Raises:
        CurationError: The person is no admin, the name is taken, or nothing matches.
    """
    # Drawn before the write begins: people who are at work meanwhile do not wait.
    with store.read() as session:
        queue = draw_queue(session, recipe.queue, recipe.seed, progress=progress)
    with store.write() as session:
        return create_session(session, recipe, reviewer_of(session, person), queue=queue).id


def listed_sessions(session: Session) -> list[tuple[int, Summary]]:
    """Every session with its key, the newest first."""
    keys = {name: key for key, name in session.execute(select(ReviewSession.id, ReviewSession.name))}
    return [(keys[one.name], one) for one in list_sessions(session)]
