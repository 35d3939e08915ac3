"""The plan: what to ask, as a pure function of the recipe, its seed and the imported collection.

A cell says what one request asks. Cells come from a file, or are drawn: pairs by counter-based order, attributes
balanced over their combinations, so that resuming or sharding never changes the sample.
"""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import counter_uniform
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query
from generator.errors import GeneratorError
from generator.prompt_pack import PromptPack
from generator.recipe import CellPlan, DrawnPlan, GenerateRecipe


class _Cell(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    custom_id: str = Field(min_length=1)
    attributes: dict[str, Any] = {}


class GradedNegativesCell(_Cell):
    kind: Literal["graded_negatives"]
    query_id: str
    positive_id: str


class MinimalEditCell(_Cell):
    kind: Literal["minimal_edit"]
    query_id: str
    positive_id: str
    neighbour_id: str


class TaskBrainstormCell(_Cell):
    kind: Literal["task_brainstorm"]
    task_type: str


class GradedExampleCell(_Cell):
    kind: Literal["graded_example"]
    task: str
    task_type: str


Cell = GradedNegativesCell | MinimalEditCell | TaskBrainstormCell | GradedExampleCell
_CELL: TypeAdapter[Cell] = TypeAdapter(Annotated[Cell, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of the plan: where it stands, its wire body, and what its completion will be about."""

    plan_index: int
    cell: Cell
    body: dict[str, Any]
    source: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class _Text:
    key: int
    text: str


def plan_requests(session: Session, recipe: GenerateRecipe) -> Iterator[Planned]:
    """Every request of the recipe, in order.

    Raises:
        GeneratorError: A cell is malformed, or names an id that the collection does not have.
    """
    pack = PromptPack.load(recipe.pack)
    texts = _CollectionTexts(session, recipe.plan.collection)
    for index, cell in enumerate(cells_of(session, recipe)):
        variables, source = _variables(cell, recipe, pack, texts)
        prompt = pack.render(cell.kind, {**cell.attributes, **variables})
        yield Planned(index, cell, wire_body(recipe, prompt), source)


def wire_body(recipe: GenerateRecipe, prompt: str) -> dict[str, Any]:
    """The Chat Completions body, as it goes over the wire."""
    return {
        "model": recipe.model,
        "messages": [{"role": "user", "content": prompt}],
        "response_format": {"type": "json_object"},
        "temperature": recipe.temperature,
    }


def cells_of(session: Session, recipe: GenerateRecipe) -> Iterator[Cell]:
    if isinstance(recipe.plan, CellPlan):
        return _read_cells(recipe.plan.cells)
    return iter(_draw_cells(_judged_pairs(session, recipe.plan), recipe.plan, recipe.seed))


def _read_cells(path: Path) -> Iterator[Cell]:
    if not path.is_file():
        raise GeneratorError(f"plan.cells = {path}: no such file")
    seen: set[str] = set()
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            try:
                cell = _CELL.validate_python(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise GeneratorError(f"{where}: not JSON: {error}") from error
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                field = ".".join(str(part) for part in first["loc"])
                raise GeneratorError(f"{where}: field {field!r}: {first['msg']}") from error
            if cell.custom_id in seen:
                raise GeneratorError(f"{where}: custom_id {cell.custom_id!r} stands twice in the plan")
            seen.add(cell.custom_id)
            yield cell


def _judged_pairs(session: Session, plan: DrawnPlan) -> list[tuple[str, str]]:
    rows = session.execute(
        select(CollectionQuery.external_id, Document.external_id)
        .select_from(Qrel)
        .join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
        .join(Document, Qrel.document_id == Document.id)
        .join(Collection, CollectionQuery.collection_id == Collection.id)
        .where(Collection.name == plan.collection, Qrel.split == plan.split, Qrel.relevance > 0)
    )
    pairs = sorted((query, document) for query, document in rows)
    if len(pairs) < plan.num_pairs:
        raise GeneratorError(
            f"plan.num_pairs = {plan.num_pairs}, but collection {plan.collection!r} has {len(pairs)} judged pairs in "
            f"split {plan.split!r}: import it first, or ask for fewer"
        )
    return pairs


def _draw_cells(pairs: Sequence[tuple[str, str]], plan: DrawnPlan, seed: int) -> list[Cell]:
    """The first `num_pairs` pairs in drawn order; each round over the attribute combinations is shuffled anew."""
    order = sorted(pairs, key=lambda pair: counter_uniform(seed, "pair", *pair))[: plan.num_pairs]
    names = sorted(plan.attributes)
    combinations = list(product(*(plan.attributes[name] for name in names)))
    cells: list[Cell] = []
    for index, (query, positive) in enumerate(order):
        turn, place = divmod(index, len(combinations))
        shuffled = sorted(
            range(len(combinations)), key=lambda number: counter_uniform(seed, "attributes", turn, number)
        )
        drawn: dict[str, Any] = dict(zip(names, combinations[shuffled[place]], strict=True))
        cells.append(
            GradedNegativesCell(
                custom_id=f"gn-{query}-{positive}",
                kind="graded_negatives",
                query_id=query,
                positive_id=positive,
                attributes=drawn,
            )
        )
    return cells


class _CollectionTexts:
    """Texts of a collection by external id, one small look-up each."""

    def __init__(self, session: Session, name: str | None) -> None:
        self._session, self._name = session, name
        self._key = session.scalar(select(Collection.id).where(Collection.name == name)) if name else None

    def query(self, external_id: str) -> _Text:
        found = self._session.execute(
            select(Query.id, Query.text)
            .join(CollectionQuery, CollectionQuery.query_id == Query.id)
            .where(CollectionQuery.collection_id == self._collection(), CollectionQuery.external_id == external_id)
        ).one_or_none()
        return self._found(found, "query", external_id)

    def passage(self, external_id: str) -> _Text:
        found = self._session.execute(
            select(Passage.id, Passage.text)
            .join(Document, Document.passage_id == Passage.id)
            .where(Document.collection_id == self._collection(), Document.external_id == external_id)
        ).one_or_none()
        return self._found(found, "document", external_id)

    def _collection(self) -> int:
        if self._name is None:
            raise GeneratorError("plan.collection is missing: name the imported collection that the cells refer to")
        if self._key is None:
            raise GeneratorError(f"plan.collection = {self._name!r} is not in the store: run 'gradus import' first")
        return self._key

    def _found(self, row: Any, what: str, external_id: str) -> _Text:
        if row is None:
            raise GeneratorError(f"the plan names {what} {external_id!r}, which collection {self._name!r} lacks")
        return _Text(row[0], row[1])


def _variables(
    cell: Cell, recipe: GenerateRecipe, pack: PromptPack, texts: _CollectionTexts
) -> tuple[dict[str, object], dict[str, int | str]]:
    """What the template gets beside the attributes, and what the completion will be about (store ids)."""
    if isinstance(cell, TaskBrainstormCell):
        if cell.task_type not in pack.task_types:
            raise GeneratorError(f"cell {cell.custom_id}: prompt pack {pack.name!r} lacks task type {cell.task_type!r}")
        return {"task_type_description": pack.task_types[cell.task_type], "topic": ""}, {"task_type": cell.task_type}
    if isinstance(cell, GradedExampleCell):
        known: dict[str, int | str] = {"task": cell.task, "task_type": cell.task_type}
        return {**known}, known
    query, positive = texts.query(cell.query_id), texts.passage(cell.positive_id)
    variables: dict[str, object] = {
        "task_instruction": recipe.plan.task_instruction,
        "query": query.text,
        "positive": positive.text,
    }
    source: dict[str, int | str] = {"query": query.key, "positive": positive.key}
    if isinstance(cell, MinimalEditCell):
        neighbour = texts.passage(cell.neighbour_id)
        variables["neighbour"], source["neighbour"] = neighbour.text, neighbour.key
    return variables, source
