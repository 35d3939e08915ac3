"""`gradus review`: sessions in which people decide, who these people are, and what they decided."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.commands.review_bulk import bulk
from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.reviewing.acting import Acting, acting_reviewer
from app.terminal import console, escape, progress_bar, show_table, write_json

if TYPE_CHECKING:
    from curation.reviewing.sessions import Summary

commands = typer.Typer(help="Review sessions: people decide, every decision can be traced.", no_args_is_help=True)
people = typer.Typer(help="Who may review. The first person of a store becomes its admin.", no_args_is_help=True)
commands.add_typer(people, name="people")
commands.command()(bulk)

Name = Annotated[str, typer.Argument(help="The review session.")]
Role = Literal["reader", "reviewer", "admin"]


@commands.command()
def create(
    recipe: Annotated[Path, typer.Argument(help="A review recipe (TOML): queue, rubric, reviewers, overlap.")],
    acting: Acting = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Draw the queue that a recipe describes and freeze it as a session."""
    from app.recipes import load_recipe
    from curation.reviewing.queue import draw_queue
    from curation.reviewing.recipe import SessionRecipe
    from curation.reviewing.sessions import create_session, summary_of

    resolved = load_recipe(recipe, SessionRecipe)
    with opened_store(store, must_exist=True) as opened:
        with opened.write() as session:
            by = acting_reviewer(session, acting)
        # Drawn before the write begins: people who are at work meanwhile do not wait.
        with opened.read() as session, progress_bar("Drawing the queue") as progress:
            queue = draw_queue(session, resolved.queue, resolved.seed, progress=progress)
        with opened.write() as session:
            created = create_session(session, resolved, by, queue=queue)
            told = summary_of(session, created)
            facts = dict(created.facts)
    _show_facts(facts)
    console.print(
        f"Created {escape(told.name)}: {told.num_items:,} items, {told.num_slots:,} turns; decide in 'gradus app'"
    )
    if json is not None:
        write_json(json, {"session": told.to_dict(), "facts": facts})


@commands.command(name="list")
def list_(store: StoreUrl = None, json: JsonFile = None) -> None:
    """List the sessions, the newest first."""
    from curation.reviewing.sessions import list_sessions

    with opened_store(store, must_exist=True) as opened, opened.read() as session:
        listed = list_sessions(session)
    _show_sessions(listed)
    if json is not None:
        write_json(json, {"sessions": [one.to_dict() for one in listed]})


@commands.command()
def show(name: Name, store: StoreUrl = None, json: JsonFile = None) -> None:
    """Show a session: how far it is, who takes part, what was decided."""
    from curation.reviewing.sessions import decision_counts, seats, session_named, summary_of

    with opened_store(store, must_exist=True) as opened, opened.read() as session:
        found = session_named(session, name)
        told, facts = summary_of(session, found), dict(found.facts)
        definition = dict(found.definition)
        sitting = seats(session, found)
        counts = decision_counts(session, found)
    _show_sessions([told])
    _show_facts(facts)
    rows = [(one.name, one.pseudonym, one.num_finished, "yes" if one.is_invited else "no") for one in sitting]
    show_table("People", ["name", "published as", "turns finished", "invited"], rows)
    show_table("Decisions that stand", ["decision", "number"], sorted(counts.items()))
    if json is not None:
        people_told = [one.to_dict() for one in sitting]
        told_all = {"session": told.to_dict(), "facts": facts, "definition": definition}
        write_json(json, {**told_all, "people": people_told, "decisions": counts})


@commands.command()
def close(name: Name, acting: Acting = None, store: StoreUrl = None) -> None:
    """Close a session: no more decisions are taken, what was decided stays."""
    from curation.reviewing.sessions import close_session, session_named

    with opened_store(store, must_exist=True) as opened, opened.write() as session:
        close_session(session, session_named(session, name), by=acting_reviewer(session, acting))
    console.print(f"Closed {escape(name)}")


@commands.command()
def invite(
    name: Name,
    person: Annotated[str, typer.Argument(help="Who may take part from now on.")],
    acting: Acting = None,
    store: StoreUrl = None,
) -> None:
    """Let one more person take part in a session that is by invitation."""
    from curation.reviewing.sessions import invite as let_in
    from curation.reviewing.sessions import session_named

    with opened_store(store, must_exist=True) as opened, opened.write() as session:
        let_in(session, session_named(session, name), person, by=acting_reviewer(session, acting))
    console.print(f"{escape(person)} may take part in {escape(name)}")


@commands.command()
def export(
    name: Name,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, an event a line.")],
    store: StoreUrl = None,
) -> None:
    """Write every event of a session, undone ones too: digests instead of keys, pseudonyms instead of names."""
    import orjson

    from curation.reviewing.exporting import exported_events
    from curation.reviewing.sessions import session_named

    num = 0
    with opened_store(store, must_exist=True) as opened, opened.read() as session:
        found = session_named(session, name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for event in exported_events(session, found):
                    file.write(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))
                    num += 1
        except OSError as error:
            raise AppError(f"cannot write {target}: {error.strerror}") from error
    console.print(f"Wrote {num:,} events to {escape(str(target))}")


@people.command()
def add(
    name: Annotated[str, typer.Argument(help="As the sign-in gives it: an e-mail address, or the account's name.")],
    role: Annotated[Role, typer.Option("--role", help="What the person may do.")] = "reviewer",
    acting: Acting = None,
    store: StoreUrl = None,
) -> None:
    """Add a person, or let one come back."""
    _put(name, role, acting, store)


@people.command(name="role")
def role_(
    name: Annotated[str, typer.Argument(help="The person.")],
    role: Annotated[Role, typer.Argument(help="What the person may do from now on.")],
    acting: Acting = None,
    store: StoreUrl = None,
) -> None:
    """Change what a person may do."""
    from curation.reviewing.people import reviewer_of

    with opened_store(store, must_exist=True) as opened, opened.read() as session:
        reviewer_of(session, name)
    _put(name, role, acting, store)


@people.command()
def remove(
    name: Annotated[str, typer.Argument(help="The person.")], acting: Acting = None, store: StoreUrl = None
) -> None:
    """Let a person decide nothing more; what was decided stays."""
    from curation.reviewing.people import deactivate

    with opened_store(store, must_exist=True) as opened, opened.write() as session:
        deactivate(session, name, by=acting_reviewer(session, acting))
    console.print(f"{escape(name)} may decide nothing more")


@people.command(name="list")
def list_people(store: StoreUrl = None, json: JsonFile = None) -> None:
    """List everybody, with the pseudonyms that stand in what is published."""
    from curation.reviewing.people import people as everybody

    with opened_store(store, must_exist=True) as opened, opened.read() as session:
        rows = [(one.name, one.role, one.pseudonym, "yes" if one.is_active else "no") for one in everybody(session)]
    show_table("People", ["name", "role", "published as", "active"], rows)
    if json is not None:
        keys = ("name", "role", "pseudonym", "is_active")
        listed = [dict(zip(keys, (*row[:3], row[3] == "yes"), strict=True)) for row in rows]
        write_json(json, {"people": listed})


def _put(name: str, role: Role, acting: str | None, store: str | None) -> None:
    from curation.reviewing.people import put_reviewer

    with opened_store(store, must_exist=True) as opened, opened.write() as session:
        put = put_reviewer(session, name, role, by=acting_reviewer(session, acting))
        told = f"{put.name} is {'an' if put.role == 'admin' else 'a'} {put.role}, published as {put.pseudonym}"
    console.print(escape(told))


def _show_sessions(listed: "list[Summary]") -> None:
    rows = [
        (one.name, one.state, one.num_items, f"{one.num_finished:,} of {one.num_slots:,}", one.overlap,
         "blind" if one.is_blind else "open", one.rubric, len(one.reviewers))
        for one in listed
    ]  # fmt: skip
    columns = ["session", "state", "items", "turns", "overlap", "view", "rubric", "people"]
    show_table("Review sessions", columns, rows)


def _show_facts(facts: dict[str, Any]) -> None:
    items = ", ".join(f"{num:,} {kind}" for kind, num in facts["items"].items())
    console.print(
        f"{facts['num_candidates']:,} negatives of {facts['num_examples']:,} examples matched; items: {escape(items)}"
    )
    if strata := facts.get("strata"):
        rows = [(one["name"], one["size"], one["drawn"]) for one in strata]
        show_table("Audit sample", ["stratum", "negatives", "drawn"], rows)
