"""Licences that do not go together are refused unless the recipe says so; the card tells facts."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard
from sqlalchemy import select

from curation.errors import CurationError
from curation.release.licences import conflict, kind_of, licence_url
from curation.release.recipe import Acknowledgement, ReleaseRecipe
from curation.release.release import create_release
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.texts import Collection
from db.teachers import put_teacher
from db.texts import put_passages, put_queries


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("CC-BY-4.0", "permissive"),
        ("cc-by-sa-3.0", "share-alike"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("cc-by-nc-nd-4.0", "no-derivatives"),
        ("Apache-2.0", "permissive"),
        ("odbl", "share-alike"),
        ("lgpl-3.0", "share-alike"),
        ("other", "unknown"),
        ("", "unknown"),
        ("my own terms", "unknown"),
    ],
)
def test_a_licence_is_of_a_kind(licence: str, kind: str) -> None:
    assert kind_of(licence) == kind


@pytest.mark.parametrize(
    ("one", "other", "goes"),
    [
        ("mit", "cc-by-sa-4.0", True),
        ("mit", "cc-by-nc-4.0", True),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-sa-3.0", "cc-by-sa-4.0", True),
        ("cc-by-sa-4.0", "odbl", False),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", False),
        ("cc-by-nd-4.0", "mit", False),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", True),
        ("other", "mit", False),
        ("other", "my terms", True),
        ("CC BY-SA 4.0", "cc-by-sa-4.0", True),
        ("CC BY-SA 3.0", "cc_by-sa-4.0", True),
    ],
)
def test_which_licences_go_together(one: str, other: str, goes: bool) -> None:
    assert (conflict(one, other) is None) is goes
    assert (conflict(other, one.upper()) is None) is goes


def test_a_licences_text_is_linked() -> None:
    assert licence_url("CC-BY-SA-4.0") == "https://creativecommons.org/licenses/by-sa/4.0/"
    assert licence_url("CC BY 4.0") == "https://creativecommons.org/licenses/by/4.0/"
    assert licence_url("cc0-1.0") == "https://creativecommons.org/publicdomain/zero/1.0/"
    assert (licence_url("cc-by-sa"), licence_url("mine")) == (None, None)


def fill(store: Store, licences: list[str | None]) -> None:
    """An example of each licence, and a brainstormed one."""
    with store.write() as session:
        run = start_run(session, "generate", "run | [of] `it`", {"pack": None}, 0).id
        teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder", max_length=256)
        for number, licence in enumerate([*licences, "brainstormed"]):
            collection = None
            if licence != "brainstormed":
                insert_missing(session, Collection, [{"name": f"s{number}", "kind": "beir", "licence": licence}])
                collection = session.scalars(select(Collection.id).where(Collection.name == f"s{number}")).one()
            (query,), passages = (
                put_queries(session, [f"q{number}"]),
                put_passages(session, [f"p{number}", f"n{number}"]),
            )
            (example,) = put_examples(session, [(query, passages[0])], origin="corpus", collection_id=collection)
            roles = zip(passages, ("positive", "negative"), ("corpus", "synthetic"), strict=True)
            put_candidates(session, [NewCandidate(example, key, role, origin, run) for key, role, origin in roles])
            row = {"teacher_id": teacher, "query_id": query, "value": 0.5, "num_tokens": 1}
            insert_missing(session, Score, [row | {"passage_id": key} for key in passages])


def test_licences_that_conflict_are_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    fill(store, ["cc-by-sa-4.0", "cc-by-nc-4.0", "mit"])
    with pytest.raises(CurationError, match=r"'cc-by-nc-4\.0' and 'cc-by-sa-4\.0' are mixed.*\[\[acknowledged\]\]"):
        create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    assert list(tmp_path.glob("*toy*")) == []
    other = Acknowledgement(licences=("mit", "cc-by-nc-4.0"), by="Jo", reason="r")
    with pytest.raises(CurationError, match="are mixed"):
        create_release(store, ReleaseRecipe(acknowledged=(other,)), "toy-1.0.0", folder=tmp_path)
    named = Acknowledgement(licences=("CC-BY-SA-4.0", "cc-by-nc-4.0"), by="Jo | Doe", reason="for teaching only")
    recipe = ReleaseRecipe(acknowledged=(named,), output_licence="terms of the maker", language=("en", "de"))
    released = create_release(store, recipe, "toy-1.0.0", folder=tmp_path)
    card = (released.folder / "README.md").read_text()
    assert "Jo \\| Doe takes it on: for teaching only" in card and "outputs: terms of the maker" in card
    assert "| s0 | [cc-by-sa-4.0](https://creativecommons.org/licenses/by-sa/4.0/) | 1 |" in card


def test_a_source_without_a_licence_conflicts_with_one_that_has_one(store: Store, tmp_path: Path) -> None:
    fill(store, ["mit", None])
    with pytest.raises(CurationError, match="what the unknown one allows is not stated"):
        create_release(store, ReleaseRecipe(), "toy-1.0.0", folder=tmp_path)
    create_release(store, ReleaseRecipe(licence="apache-2.0"), "toy-1.0.0", folder=tmp_path)


def test_the_card_tells_facts_and_its_metadata_is_the_hubs(store: Store, tmp_path: Path) -> None:
    fill(store, ["mit"])
    folder = create_release(store, ReleaseRecipe(licence="mit", title="A [b] | c"), "toy-1.0.0", folder=tmp_path).folder
    card = DatasetCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["annotations_creators"]) == ("mit", ["machine-generated"])
    assert "language" not in data and "multilinguality" not in data  # nobody said which
    assert [one["config_name"] for one in data["configs"] if one.get("default")] == ["graded"]
    assert {one["config_name"] for one in data["configs"]} >= {"graded", "triplet", "provenance"}
    for heading in ("Load", "Configurations", "Grades and rubric", "How it was made", "Audit", "Gates", "Human audit",
                    "Contamination", "Known faults", "Licences", "Change log"):  # fmt: skip
        assert f"\n## {heading}\n" in card.text
    assert "n = 0" in card.text and "the first release of this name" in card.text
    block = card.content.split("---")[1]
    assert yaml.safe_load(block)["size_categories"] == ["n<1K"]
    several = create_release(store, ReleaseRecipe(licence="apache-2.0"), "toy-1.1.0", folder=tmp_path).folder
    data = DatasetCard.load(several / "README.md").data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "licences-of-sources")
    assert "recipe, `licence`: mit became apache-2.0" in (several / "README.md").read_text()
