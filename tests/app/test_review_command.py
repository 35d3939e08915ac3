"""`gradus review` as a person types it: sessions from a recipe, people and their roles, what is written for others."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from curation.errors import CurationError
from db.examples import NewCandidate, put_candidates, put_examples
from db.runs import start_run
from db.store import Store
from db.texts import put_passages, put_queries


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/store.db"
    opened = Store.open(url)
    with opened.write() as session:
        run = start_run(session, "generate", "graded", {}, 0)
        for n in range(6):
            (query,) = put_queries(session, [f"query {n}"])
            positive, negative = put_passages(session, [f"positive {n}", f"negative {n}"])
            (example,) = put_examples(session, [(query, positive)], origin="synthetic")
            put_candidates(session, [
                NewCandidate(example, positive, "positive", "corpus", run.id),
                NewCandidate(example, negative, "negative", "synthetic", run.id, grade="hard", rank=1),
            ])  # fmt: skip
    opened.close()
    return url


def call(url: str, *arguments: str, who: str = "ann") -> Any:
    environment = {"GRADUS_REVIEWER": who, "GRADUS_STORE": url}
    return CliRunner(env=environment).invoke(cli, ["review", *arguments], catch_exceptions=False)


def recipe(tmp_path: Path, text: str = 'name = "first"\noverlap = 2\n[queue]\norder = "random"\n') -> str:
    path = tmp_path / "review.toml"
    path.write_text(text)
    return str(path)


def test_a_session_is_created_shown_exported_and_closed(url: str, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    assert call(url, "create", recipe(tmp_path), "--json", str(told)).exit_code == 0
    created = json.loads(told.read_text())
    assert created["session"]["num_items"] == 6 and created["session"]["num_slots"] == 12
    assert call(url, "list", "--json", str(told)).exit_code == 0
    assert [one["name"] for one in json.loads(told.read_text())["sessions"]] == ["first"]
    assert call(url, "show", "first", "--json", str(told)).exit_code == 0
    assert json.loads(told.read_text())["definition"]["overlap"] == 2
    assert "Wrote 0 events" in call(url, "export", "first", str(tmp_path / "events.jsonl")).output
    assert call(url, "close", "first").exit_code == 0
    assert "closed" in call(url, "list").output


def test_the_first_person_is_the_admin_and_others_are_added_by_one(url: str, tmp_path: Path) -> None:
    assert "ben is a reviewer" in call(url, "people", "add", "ben").output
    with pytest.raises(CurationError, match="needs the role 'admin'"):
        call(url, "people", "add", "eve", who="ben")
    with pytest.raises(CurationError, match="not known"):
        call(url, "create", recipe(tmp_path), who="stranger")
    assert "ben is an admin" in call(url, "people", "role", "ben", "admin").output
    assert call(url, "people", "remove", "ann", who="ben").exit_code == 0
    told = tmp_path / "told.json"
    call(url, "people", "list", "--json", str(told))
    listed = {one["name"]: (one["role"], one["is_active"]) for one in json.loads(told.read_text())["people"]}
    assert listed == {"ann": ("admin", False), "ben": ("admin", True)}


def test_an_invited_person_may_take_part(url: str, tmp_path: Path) -> None:
    call(url, "people", "add", "ben")
    text = 'name = "first"\nreviewers = ["ann"]\n[queue]\norder = "random"\n'
    call(url, "create", recipe(tmp_path, text))
    assert call(url, "invite", "first", "ben").exit_code == 0
    assert "ben" in call(url, "show", "first").output


def test_looking_at_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    from app.errors import AppError

    with pytest.raises(AppError, match="there is no store"):
        call(f"sqlite:///{tmp_path}/none.db", "list")
    assert not (tmp_path / "none.db").exists()


def test_the_demo_s_recipe_is_valid() -> None:
    from app.recipes import load_recipe
    from curation.reviewing.recipe import SessionRecipe

    found = load_recipe(Path(__file__).parents[2] / "app" / "demo" / "recipes" / "review.toml", SessionRecipe)
    assert found.overlap == 2 and found.blind and found.repeats is not None
