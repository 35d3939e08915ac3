"""The plan: what to ask, as a pure function of the recipe, its seed, what was imported and what was answered.

Plan indices: a [[plan]] table starts every `BLOCK`; within it stand the places of its cells, after them the second
stage. A repair of the request at index i has index i + its round times `ROUND`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from sqlalchemy.orm import Session

from db.digest import digest_of
from db.runs import Rejected
from generator.cells import Cells, Place, check_plan_files, read_cells
from generator.collection_texts import CollectionTexts, Text, draw_documents, draw_pairs, refuse_unknown_collection
from generator.errors import GeneratorError
from generator.file_variables import described, file_variables
from generator.prompt_pack import Entry, PromptPack, attribute_set
from generator.recipe import CellPlan, DocumentPlan, GenerateRecipe, PairPlan, TaskPlan
from generator.wire import wire_body

BLOCK = 1_000_000_000
ROUND = 1_000_000_000_000
_STAGE_TWO = BLOCK // 2
_CHUNK = 200
_MAX_NAME = 170  # characters of a custom_id before its mark

# (plan, query, its key, how many) -> passage keys of documents near it, the nearest first, none judged relevant.
Neighbours = Callable[[PairPlan, str, int, int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of the plan: where it stands, its wire body, and what its completion will be about (store keys)."""

    plan_index: int
    custom_id: str
    kind: str
    attributes: dict[str, Any]
    source: dict[str, Any]
    body: dict[str, Any]
    sample_index: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of the cells of one plan table: turns asked so far, those still open, and accepted texts by rank."""

    asked: dict[int, int]
    pending: dict[int, int]
    accepted: dict[int, dict[int, int]]
    tasks: tuple[tuple[int, str, str], ...] = ()
    is_brainstormed: bool = False


class Planner:
    """Plans a recipe: what to ask first, and what else once answers have come."""

    def __init__(self, recipe: GenerateRecipe, neighbours: Neighbours | None = None) -> None:
        self.recipe, self.pack = recipe, PromptPack.load(recipe.pack)
        self._neighbours = neighbours
        self._cells: dict[int, Cells] = {}
        # Turns tried so far, by plan table and cell: a place that brings no new request must not be tried for ever.
        self._tried: dict[int, dict[int, int]] = defaultdict(dict)
        self._mark = digest_of([recipe.model, self.pack.digest])[:6]
        self.skipped: list[Rejected] = []

    def first(self, session: Session) -> Iterator[Planned]:
        """Every request that is known from the start, in order.

        Raises:
            GeneratorError: A cell is malformed, or names what the collection or the pack does not have.
        """
        self.check_collections(session)
        check_plan_files([plan.cells for plan in self.recipe.plan if isinstance(plan, CellPlan)])
        for number, plan in enumerate(self.recipe.plan):
            if isinstance(plan, CellPlan):
                yield from self._from_file(session, plan, number * BLOCK)
            elif isinstance(plan, TaskPlan):
                yield from self._brainstorms(plan, number * BLOCK)
            else:
                cells = self.cells(number)
                num = plan.num or (plan.accepted_per_cell or 0) * len(cells)
                yield from self._drawn(session, number, (cells.place(place) for place in range(num)))

    def check_collections(self, session: Session) -> None:
        """Refuse what the store does not have, before anything is indexed, drawn or asked.

        Raises:
            GeneratorError: A plan table names a collection or a split that is not there.
        """
        for plan in self.recipe.plan:
            if name := getattr(plan, "collection", None):
                refuse_unknown_collection(session, name, plan.split if isinstance(plan, PairPlan) else None)

    def more(self, session: Session, number: int, tally: Tally) -> Iterator[Planned]:
        """What one plan table asks next: examples of brainstormed tasks, and refills of cells that lack texts."""
        plan = self.recipe.plan[number]
        if isinstance(plan, CellPlan) or (isinstance(plan, TaskPlan) and not tally.is_brainstormed):
            return
        cells = self.cells(number)
        places = list(_wanted_places(plan, cells, tally, len(self._ranks(plan)), self._tried[number]))
        if isinstance(plan, TaskPlan):
            yield from self._examples(plan, number * BLOCK, places, tally.tasks)
        elif places:
            yield from self._drawn(session, number, sorted(places, key=lambda place: place.number))

    def second_stage(self, number: int, num: int, tasks: Sequence[tuple[str, str]]) -> Iterator[Planned]:
        """The first `num` examples of a table of tasks, as if these (type, task) had been brainstormed."""
        plan, cells = self.recipe.plan[number], self.cells(number)
        assert isinstance(plan, TaskPlan)
        places = [cells.place(place) for place in range(num)]
        yield from self._examples(plan, number * BLOCK, places, [(0, *task) for task in tasks])

    def cells(self, number: int) -> Cells:
        """The attribute cells of one plan table.

        Raises:
            GeneratorError: The table names an attribute set that does not exist.
        """
        if number not in self._cells:
            self._cells[number] = self._make_cells(number)
        return self._cells[number]

    def _make_cells(self, number: int) -> Cells:
        plan = self.recipe.plan[number]
        assert not isinstance(plan, CellPlan)
        entry = self.pack.entry(plan.entry)
        chosen = {key: (value,) for key, value in self._choices(plan, entry).items()}
        attributes = {key: values for key, values in attributes_of(plan, entry).items() if key not in chosen}
        return Cells(attributes, self.recipe.seed, f"cells {number}")

    def place_of(self, plan_index: int) -> tuple[int, Place] | None:
        """(plan table, place) of a plan index; None for brainstorms and for plans from a file. Repairs count too."""
        number, inside = divmod(plan_index % ROUND, BLOCK)
        plan = self.recipe.plan[number]
        if isinstance(plan, CellPlan):
            return None
        if isinstance(plan, TaskPlan):
            return (number, self.cells(number).place(inside - _STAGE_TWO)) if inside >= _STAGE_TWO else None
        return number, self.cells(number).place(inside)

    @cached_property
    def cell_names(self) -> tuple[str, ...]:
        """A name for every attribute cell, over all plan tables in order; a plan from a file has none."""
        names: list[str] = []
        for number, plan in enumerate(self.recipe.plan):
            if not isinstance(plan, CellPlan):
                told = (", ".join(self.cells(number).values(cell).values()) for cell in range(len(self.cells(number))))
                mark = f"{number + 1}: " if len(self.recipe.plan) > 1 else ""
                names += [f"{mark}{name or plan.entry}" for name in told]
        return tuple(names)

    def cell_of(self, plan_index: int) -> int:
        """The place of a request's cell in `cell_names`; -1 where it has none."""
        placed = self.place_of(plan_index)
        if placed is None:
            return -1
        number, place = placed
        before = (n for n in range(number) if not isinstance(self.recipe.plan[n], CellPlan))
        return sum(len(self.cells(n)) for n in before) + place.cell

    def _ranks(self, plan: PairPlan | TaskPlan | DocumentPlan) -> Sequence[int]:
        """Ranks that every cell has to fill; an entry without slots fills one."""
        return range(1, max(1, len(self.pack.entry(plan.entry).facts.slots)) + 1)

    def _choices(self, plan: PairPlan | TaskPlan | DocumentPlan, entry: Entry) -> dict[str, tuple[str, ...]]:
        """Attributes whose value the model chooses from the whole set."""
        attributes = attributes_of(plan, entry)
        return {name: attributes.get(name, ()) for name in entry.facts.choose}

    def _variables(self, plan: PairPlan | TaskPlan | DocumentPlan, values: dict[str, str]) -> dict[str, object]:
        entry = self.pack.entry(plan.entry)
        return {**values, **{f"{name}s": list(values) for name, values in self._choices(plan, entry).items()}}

    def _planned(
        self,
        entry: Entry,
        *,
        plan_index: int,
        custom_id: str,
        variables: Mapping[str, object],
        attributes: dict[str, Any],
        source: dict[str, Any],
        sample_index: int = 0,
    ) -> Planned:
        body = wire_body(self.recipe, entry, entry.render(variables), key=custom_id)
        return Planned(plan_index, custom_id, entry.name, attributes, source, body, sample_index)

    def _custom_id(self, name: str) -> str:
        """With a mark of model and prompts: a file of another recipe's completions must not pass for this one's."""
        return f"{name[:_MAX_NAME]}-{self._mark}"

    def _from_file(self, session: Session, plan: CellPlan, start: int) -> Iterator[Planned]:
        texts = CollectionTexts(session, plan.collection)
        for index, cell in enumerate(read_cells(plan.cells), start=start):
            entry = self.pack.entry(cell.kind)
            variables, source = file_variables(cell, entry, plan, texts)
            yield self._planned(
                entry,
                plan_index=index,
                custom_id=cell.custom_id,
                variables={**cell.attributes, **variables},
                attributes=cell.attributes,
                source=source,
            )

    def _brainstorms(self, plan: TaskPlan, start: int) -> Iterator[Planned]:
        entry = self.pack.entry(plan.brainstorm)
        topics = plan.topics or ("",)
        per_type = -(-plan.tasks_per_type // plan.tasks_per_request)
        index = 0
        for task_type in plan.task_types:
            for turn in range(max(per_type, len(topics))):
                topic = topics[turn % len(topics)]
                yield self._planned(
                    entry,
                    plan_index=start + index,
                    custom_id=self._custom_id(f"tb{start // BLOCK}-{task_type}-{turn}"),
                    variables={
                        "num_tasks": plan.tasks_per_request,
                        "topic": topic,
                        "task_type_description": described(entry, task_type),
                    },
                    attributes={"topic": topic} if topic else {},
                    source={"task_type": task_type},
                    # The same words ask again for other tasks.
                    sample_index=turn // len(topics),
                )
                index += 1

    def _examples(
        self, plan: TaskPlan, start: int, places: Sequence[Place], tasks: Sequence[tuple[int, str, str]]
    ) -> Iterator[Planned]:
        if places and not tasks:
            raise GeneratorError("no brainstormed task was accepted, so there is nothing to write examples for")
        entry, cells = self.pack.entry(plan.entry), self.cells(start // BLOCK)
        for place in sorted(places, key=lambda place: place.number):
            again, which = divmod(place.number, len(tasks))
            _, task_type, task = tasks[which]
            values = cells.values(place.cell)
            yield self._planned(
                entry,
                plan_index=start + _STAGE_TWO + place.number,
                custom_id=self._custom_id(f"ex{start // BLOCK}-{place.number}"),
                variables={**self._variables(plan, values), "task": task, "task_type": task_type},
                attributes=dict(values),
                source={"task": task, "task_type": task_type},
                sample_index=again,
            )

    def _drawn(self, session: Session, number: int, places: Iterable[Place]) -> Iterator[Planned]:
        plan = self.recipe.plan[number]
        if isinstance(plan, PairPlan):
            yield from self._pairs(session, plan, number * BLOCK, places)
        elif isinstance(plan, DocumentPlan):
            yield from self._documents(session, plan, number * BLOCK, places)

    def _pairs(self, session: Session, plan: PairPlan, start: int, places: Iterable[Place]) -> Iterator[Planned]:
        drawn = draw_pairs(session, plan.collection, plan.split, self.recipe.seed)
        _refuse_too_many(plan.num, len(drawn), f"judged pairs in split {plan.split!r}", plan.collection)
        texts = CollectionTexts(session, plan.collection)
        for some in _chunks(places):
            keys = [drawn[place.number % len(drawn)] for place in some]
            queries = texts.queries(query for query, _ in keys)
            documents = texts.documents(document for _, document in keys)
            for place, (query, document) in zip(some, keys, strict=True):
                pair = queries[query], documents[document]
                planned = self._pair(plan, start, place, place.number // len(drawn), pair, texts)
                if isinstance(planned, Rejected):
                    self.skipped.append(planned)
                else:
                    yield planned

    def _pair(
        self, plan: PairPlan, start: int, place: Place, again: int, pair: tuple[Text, Text], texts: CollectionTexts
    ) -> Planned | Rejected:
        """The request for a pair, or why there is none: its query has fewer neighbours than the entry edits."""
        query, positive = pair
        name = f"pr{start // BLOCK}-{place.number}-{query.external_id}-{positive.external_id}"
        entry, values = self.pack.entry(plan.entry), self.cells(start // BLOCK).values(place.cell)
        near = self._near(plan, entry, query)
        if len(near) < len(entry.facts.neighbours):
            detail = f"{len(near)} neighbours where entry {entry.name!r} edits {len(entry.facts.neighbours)}"
            return Rejected(name, 0, "too_few_neighbours", detail)
        found = texts.passage_texts(near) if near else {}
        names = {f"neighbour_{rank}": key for rank, key in enumerate(near, start=1)}
        return self._planned(
            entry,
            plan_index=start + place.number,
            custom_id=self._custom_id(name),
            variables={
                **self._variables(plan, values),
                "task_instruction": plan.task_instruction,
                "query": query.text,
                "positive": positive.text,
                **{name: found[key] for name, key in names.items()},
            },
            attributes=dict(values),
            source={"query": query.key, "positive": positive.key, **names},
            sample_index=again,
        )

    def _near(self, plan: PairPlan, entry: Entry, query: Text) -> Sequence[int]:
        if not entry.facts.neighbours:
            return ()
        if self._neighbours is None:
            raise GeneratorError(f"entry {entry.name!r} needs neighbours of each pair, and none were given")
        found = self._neighbours(plan, query.text, query.key, max(entry.facts.neighbours))
        return _at_ranks(found, entry.facts.neighbours)

    def _documents(
        self, session: Session, plan: DocumentPlan, start: int, places: Iterable[Place]
    ) -> Iterator[Planned]:
        drawn = draw_documents(session, plan.collection, self.recipe.seed)
        _refuse_too_many(plan.num, len(drawn), "documents", plan.collection)
        entry, cells = self.pack.entry(plan.entry), self.cells(start // BLOCK)
        texts = CollectionTexts(session, plan.collection)
        for some in _chunks(places):
            found = texts.documents(drawn[place.number % len(drawn)] for place in some)
            for place in some:
                document, values = found[drawn[place.number % len(drawn)]], cells.values(place.cell)
                yield self._planned(
                    entry,
                    plan_index=start + place.number,
                    custom_id=self._custom_id(f"dc{start // BLOCK}-{place.number}-{document.external_id}"),
                    variables={**self._variables(plan, values), "document": document.text},
                    attributes=dict(values),
                    source={"document": document.key},
                    sample_index=place.number // len(drawn),
                )


def attributes_of(plan: PairPlan | TaskPlan | DocumentPlan, entry: Entry) -> dict[str, tuple[str, ...]]:
    """Attributes of a plan table with their values: its own, or the entry's; of a named set those that the prompt uses.

    Raises:
        GeneratorError: The set does not exist, or the prompt does not use an attribute of the recipe.
    """
    given = plan.attributes if plan.attributes is not None else entry.facts.attributes
    if given is None:
        return {}
    used = entry.variables | set(entry.facts.choose)
    if isinstance(given, str):
        return {name: values for name, values in attribute_set(given).items() if name in used}
    if unused := sorted(given.keys() - used):
        raise GeneratorError(
            f"plan.attributes: the prompt of entry {entry.name!r} does not use {', '.join(map(repr, unused))}; "
            f"it uses {', '.join(sorted(used)) or 'none'}"
        )
    return dict(given)


def _at_ranks(found: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """What stands at these ranks, each once; where the list ends sooner, the furthest that is left."""
    chosen: list[int] = []
    for rank in ranks:
        left = [passage for passage in found[:rank] if passage not in chosen]
        chosen += left[-1:]
    return chosen


def _chunks(places: Iterable[Place]) -> Iterator[list[Place]]:
    iterator = iter(places)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _wanted_places(
    plan: PairPlan | TaskPlan | DocumentPlan, cells: Cells, tally: Tally, num_ranks: int, tried: dict[int, int]
) -> Iterator[Place]:
    """Places to ask now: all of a second stage (the ledger knows which it has), and refills of cells that lack accepted
    texts. `tried` remembers how far each cell's turns were tried."""
    if plan.num is not None:
        if isinstance(plan, TaskPlan):
            yield from (cells.place(number) for number in range(plan.num))
        return
    quota, most = plan.accepted_per_cell or 0, plan.most_per_cell or 0
    for cell in range(len(cells)):
        start = max(tally.asked.get(cell, 0), tried.get(cell, 0))
        accepted = tally.accepted.get(cell, {})
        lacking = max(quota - accepted.get(rank, 0) for rank in range(1, num_ranks + 1)) - tally.pending.get(cell, 0)
        tried[cell] = max(start, min(start + max(0, lacking), most))
        for turn in range(start, tried[cell]):
            yield cells.place(cells.number(cell, turn))


def _refuse_too_many(num: int | None, available: int, what: str, collection: str) -> None:
    if available == 0 or (num is not None and num > available):
        raise GeneratorError(
            f"plan.num = {num}, but collection {collection!r} has {available} {what}: import it first, or ask for fewer"
        )
